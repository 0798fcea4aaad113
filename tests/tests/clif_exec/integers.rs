//! Integers of every width and number of lanes.

use super::harness::{case, check};
use super::{INTS, LANES, each, low, sign_extend};
use bitsmith_compiler::ir::{BinOp, CastOp, CmpOp, Scalar, Type, UnOp};

fn int_bin(op: BinOp, w: u32, a: u64, b: u64) -> u64 {
    let (sa, sb) = (sign_extend(a, w), sign_extend(b, w));
    let by = (b % u64::from(w)) as u32;
    let result = match op {
        BinOp::Add => a.wrapping_add(b),
        BinOp::Sub => a.wrapping_sub(b),
        BinOp::Mul => a.wrapping_mul(b),
        BinOp::DivS => sa.wrapping_div(sb) as u64,
        BinOp::RemS => sa.wrapping_rem(sb) as u64,
        BinOp::MinS => sa.min(sb) as u64,
        BinOp::MaxS => sa.max(sb) as u64,
        BinOp::And => a & b,
        BinOp::Or => a | b,
        BinOp::Xor => a ^ b,
        BinOp::Shl => a << by,
        BinOp::ShrU => a >> by,
        BinOp::ShrS => (sa >> by) as u64,
        BinOp::Div | BinOp::Min | BinOp::Max => unreachable!("floats"),
    };
    low(result, w)
}

#[test]
fn integers() {
    for (scalar, lanes) in INTS.into_iter().flat_map(|scalar| LANES.map(|lanes| (scalar, lanes))) {
        let w = scalar.bits();
        let mut cases = Vec::new();
        for op in [
            BinOp::Add,
            BinOp::Sub,
            BinOp::Mul,
            BinOp::MinS,
            BinOp::MaxS,
            BinOp::And,
            BinOp::Or,
            BinOp::Xor,
            BinOp::Shl,
            BinOp::ShrU,
            BinOp::ShrS,
        ] {
            cases.push(case(
                format!("{op:?}"),
                move |b, [x, y, _]| b.bin(op, x, y),
                move |o| each(o, |a, b, _| int_bin(op, w, a, b)),
            ));
        }
        for op in [BinOp::Shl, BinOp::ShrU, BinOp::ShrS] {
            for by in [0, 3, i64::from(w) - 1, i64::from(w) + 1] {
                cases.push(case(
                    format!("{op:?} by {by}"),
                    move |b, [x, ..]| b.bin_imm(op, x, by),
                    move |o| each(o, |a, _, _| int_bin(op, w, a, by as u64)),
                ));
            }
            cases.push(case(
                format!("{op:?} by a splat"),
                move |b, [x, y, _]| {
                    let first = b.extract(y, 0);
                    let by = b.splat(first, lanes);
                    b.bin(op, x, by)
                },
                move |o| each(o, |a, _, _| int_bin(op, w, a, o[1][0])),
            ));
        }
        for (op, by) in [BinOp::DivS, BinOp::RemS].into_iter().flat_map(|op| [1, -1, 7, -8, 100].map(|by| (op, by))) {
            cases.push(case(
                format!("{op:?} by {by}"),
                move |b, [x, ..]| b.bin_imm(op, x, by),
                move |o| each(o, |a, _, _| int_bin(op, w, a, low(by as u64, w))),
            ));
        }
        cases.push(case("neg", |b, [x, ..]| b.un(UnOp::Neg, x), move |o| each(o, |a, _, _| low(a.wrapping_neg(), w))));
        cases.push(case("not", |b, [x, ..]| b.un(UnOp::Not, x), move |o| each(o, |a, _, _| low(!a, w))));
        cases.push(case(
            "popcount",
            |b, [x, ..]| b.un(UnOp::Popcount, x),
            |o| each(o, |a, _, _| u64::from(a.count_ones())),
        ));
        let compare = move |op, a, b| match op {
            CmpOp::Eq => a == b,
            CmpOp::Ne => a != b,
            CmpOp::LtS => sign_extend(a, w) < sign_extend(b, w),
            CmpOp::LeS => sign_extend(a, w) <= sign_extend(b, w),
            _ => a < b,
        };
        for op in [CmpOp::Eq, CmpOp::Ne, CmpOp::LtS, CmpOp::LeS, CmpOp::LtU] {
            cases.push(case(
                format!("{op:?}"),
                move |b, [x, y, _]| b.cmp(op, x, y),
                move |o| each(o, |a, b, _| compare(op, a, b).into()),
            ));
            cases.push(case(
                format!("select by {op:?}"),
                move |b, [x, y, z]| {
                    let cond = b.cmp(op, x, y);
                    b.select(cond, z, x)
                },
                move |o| each(o, |a, b, c| if compare(op, a, b) { c } else { a }),
            ));
        }
        cases.push(case(
            "bool arithmetic",
            |b, [x, y, z]| {
                let (p, q, r) = (b.cmp(CmpOp::LtS, x, y), b.cmp(CmpOp::LtU, y, z), b.cmp(CmpOp::LeS, z, x));
                let (and, xor) = (b.bin(BinOp::And, p, q), b.bin(BinOp::Xor, q, r));
                let or = b.bin(BinOp::Or, and, xor);
                let not = b.un(UnOp::Not, or);
                let differs = b.bin(BinOp::Xor, not, p);
                b.un(UnOp::Not, differs)
            },
            move |o| {
                each(o, |a, b, c| {
                    let (p, q, r) =
                        (sign_extend(a, w) < sign_extend(b, w), b < c, sign_extend(c, w) <= sign_extend(a, w));
                    (((p & q) | (q ^ r)) != p).into()
                })
            },
        ));
        for to in INTS.into_iter().filter(|&to| to != scalar) {
            for op in [CastOp::Truncate, CastOp::ExtendU, CastOp::ExtendS] {
                if (op == CastOp::Truncate) == (to.bits() < w) {
                    cases.push(case(
                        format!("{op:?} to {to}"),
                        move |b, [x, ..]| b.cast(op, x, to),
                        move |o| {
                            each(o, |a, _, _| {
                                low(if op == CastOp::ExtendS { sign_extend(a, w) as u64 } else { a }, to.bits())
                            })
                        },
                    ));
                }
            }
        }
        if scalar != Scalar::I64 {
            cases.push(case(
                "to float, signed",
                |b, [x, ..]| b.cast(CastOp::IntToFloatS, x, Scalar::F32),
                move |o| each(o, |a, _, _| (sign_extend(a, w) as f32).to_bits().into()),
            ));
            cases.push(case(
                "to float, unsigned",
                |b, [x, ..]| b.cast(CastOp::IntToFloatU, x, Scalar::F32),
                |o| each(o, |a, _, _| (a as f32).to_bits().into()),
            ));
        }
        check(Type::vector(scalar, lanes), &cases);
    }
}
