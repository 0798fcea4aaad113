//! Arithmetic, comparisons, selections and casts, piece by piece.
//!
//! Always holds: sums, differences and products of floats carry `NoContraction`; what SPIR-V leaves undefined (shifts by
//! the width, conversions out of range, minimum of NaN) is spelled out in defined instructions.

use super::module::{Module, Repr};
use crate::ir::{BinOp, CastOp, CmpOp, Dot4Signs, Scalar, UnOp};
use rspirv::dr::Operand;
use rspirv::spirv::{Capability, GlslStd450Op, Op, PackedVectorFormat, Word};

/// `a op b` of one piece.
pub(super) fn bin(m: &mut Module, op: BinOp, scalar: Scalar, lanes: u8, a: Word, b: Word) -> Word {
    let repr = Repr::of(scalar);
    let ty = m.ty(repr, lanes);
    let float = scalar.is_float();
    let bool_ = scalar == Scalar::Bool;
    let plain = match op {
        BinOp::Add if float => Op::FAdd,
        BinOp::Sub if float => Op::FSub,
        BinOp::Mul if float => Op::FMul,
        BinOp::Add => Op::IAdd,
        BinOp::Sub => Op::ISub,
        BinOp::Mul => Op::IMul,
        BinOp::Div => Op::FDiv,
        BinOp::DivS => Op::SDiv,
        BinOp::RemS => Op::SRem,
        BinOp::And if bool_ => Op::LogicalAnd,
        BinOp::Or if bool_ => Op::LogicalOr,
        BinOp::Xor if bool_ => Op::LogicalNotEqual,
        BinOp::And => Op::BitwiseAnd,
        BinOp::Or => Op::BitwiseOr,
        BinOp::Xor => Op::BitwiseXor,
        BinOp::Shl | BinOp::ShrU | BinOp::ShrS => {
            let mask = m.splat(repr, lanes, scalar.bits() as u64 - 1);
            let amount = m.op(Op::BitwiseAnd, ty, &[b, mask]);
            let op = match op {
                BinOp::Shl => Op::ShiftLeftLogical,
                BinOp::ShrU => Op::ShiftRightLogical,
                _ => Op::ShiftRightArithmetic,
            };
            return m.op(op, ty, &[a, amount]);
        }
        BinOp::MinS | BinOp::MaxS => {
            let bools = m.ty(Repr::Bool, lanes);
            let (first, second) = if op == BinOp::MinS { (a, b) } else { (b, a) };
            let less = m.op(Op::SLessThan, bools, &[first, second]);
            return m.op(Op::Select, ty, &[less, a, b]);
        }
        BinOp::Min | BinOp::Max => return extreme(m, op == BinOp::Min, scalar, lanes, a, b),
    };
    let result = m.op(plain, ty, &[a, b]);
    if matches!(plain, Op::FAdd | Op::FSub | Op::FMul) { m.exact(result) } else { result }
}

/// IEEE 754-2019 `minimum` or `maximum`: NaN if either is, and -0 below +0.
fn extreme(m: &mut Module, least: bool, scalar: Scalar, lanes: u8, a: Word, b: Word) -> Word {
    let repr = Repr::of(scalar);
    let (ty, bools) = (m.ty(repr, lanes), m.ty(Repr::Bool, lanes));
    let bits = m.ty(Repr::of_bits(scalar.bits()), lanes);
    let (first, second) = if least { (a, b) } else { (b, a) };
    let a_wins = m.op(Op::FOrdLessThan, bools, &[first, second]);
    let b_wins = m.op(Op::FOrdLessThan, bools, &[second, first]);
    let equal = m.op(Op::FOrdEqual, bools, &[a, b]);
    // Equal numbers differ at most in the sign of zero.
    let (a_bits, b_bits) = (m.op(Op::Bitcast, bits, &[a]), m.op(Op::Bitcast, bits, &[b]));
    let both = m.op(if least { Op::BitwiseOr } else { Op::BitwiseAnd }, bits, &[a_bits, b_bits]);
    let both = m.op(Op::Bitcast, ty, &[both]);
    let nan = m.splat(repr, lanes, if scalar == Scalar::F16 { 0x7e00 } else { 0x7fc0_0000 });
    let rest = m.op(Op::Select, ty, &[equal, both, nan]);
    let rest = m.op(Op::Select, ty, &[b_wins, b, rest]);
    m.op(Op::Select, ty, &[a_wins, a, rest])
}

/// `op a` of one piece. `Exp2` is expanded before.
pub(super) fn un(m: &mut Module, op: UnOp, scalar: Scalar, lanes: u8, a: Word) -> Word {
    let repr = Repr::of(scalar);
    let ty = m.ty(repr, lanes);
    match op {
        UnOp::Neg if scalar.is_float() => m.op(Op::FNegate, ty, &[a]),
        UnOp::Neg => m.op(Op::SNegate, ty, &[a]),
        UnOp::Not if scalar == Scalar::Bool => m.op(Op::LogicalNot, ty, &[a]),
        UnOp::Not => m.op(Op::Not, ty, &[a]),
        UnOp::Abs => m.extended(GlslStd450Op::FAbs, ty, &[a]),
        UnOp::Sqrt => m.extended(GlslStd450Op::Sqrt, ty, &[a]),
        UnOp::Nearest => m.extended(GlslStd450Op::RoundEven, ty, &[a]),
        UnOp::Floor => m.extended(GlslStd450Op::Floor, ty, &[a]),
        UnOp::Exp2 => m.extended(GlslStd450Op::Exp2, ty, &[a]),
        UnOp::Popcount => popcount(m, scalar, lanes, a),
    }
}

/// Vulkan counts bits of 32-bit integers alone.
fn popcount(m: &mut Module, scalar: Scalar, lanes: u8, a: Word) -> Word {
    let (ty, words) = (m.ty(Repr::of(scalar), lanes), m.ty(Repr::U32, lanes));
    if scalar == Scalar::I64 {
        let distance = m.splat(Repr::U64, lanes, 32);
        let high = m.op(Op::ShiftRightLogical, ty, &[a, distance]);
        let counts = [a, high].map(|half| {
            let half = m.op(Op::UConvert, words, &[half]);
            m.op(Op::BitCount, words, &[half])
        });
        let sum = m.op(Op::IAdd, words, &counts);
        return m.op(Op::UConvert, ty, &[sum]);
    }
    if scalar == Scalar::I32 {
        return m.op(Op::BitCount, words, &[a]);
    }
    let wide = m.op(Op::UConvert, words, &[a]);
    let count = m.op(Op::BitCount, words, &[wide]);
    m.op(Op::UConvert, ty, &[count])
}

/// `a * b + c` of one piece, with one rounding where the device's `Fma` has one.
pub(super) fn fma(m: &mut Module, scalar: Scalar, lanes: u8, [a, b, c]: [Word; 3]) -> Word {
    let ty = m.ty(Repr::of(scalar), lanes);
    let result = m.extended(GlslStd450Op::Fma, ty, &[a, b, c]);
    m.exact(result)
}

/// `a * b + c` of one piece of `f32` with one rounding, for devices whose `Fma` has two: in `f64` the product is exact; the
/// sum is rounded to odd there, which keeps the rounding to `f32` honest (S. Boldo, G. Melquiond, 2008).
pub(super) fn fma_by_double(m: &mut Module, lanes: u8, factors: [Word; 3]) -> Word {
    let (doubles, longs, bools) = (m.ty(Repr::F64, lanes), m.ty(Repr::U64, lanes), m.ty(Repr::Bool, lanes));
    let float = |m: &mut Module, op: Op, a: Word, b: Word| {
        let id = m.op(op, doubles, &[a, b]);
        m.exact(id)
    };
    let [a, b, c] = factors.map(|x| m.op(Op::FConvert, doubles, &[x]));
    let product = float(m, Op::FMul, a, b);
    let sum = float(m, Op::FAdd, product, c);
    // Knuth's two-sum: what the addition lost, exactly.
    let of_c = float(m, Op::FSub, sum, product);
    let of_product = float(m, Op::FSub, sum, of_c);
    let lost_product = float(m, Op::FSub, product, of_product);
    let lost_c = float(m, Op::FSub, c, of_c);
    let lost = float(m, Op::FAdd, lost_product, lost_c);
    let zero = m.splat(Repr::F64, lanes, 0);
    // Both are false of the NaN that infinities make.
    let below = m.op(Op::FOrdLessThan, bools, &[lost, zero]);
    let above = m.op(Op::FOrdLessThan, bools, &[zero, lost]);
    let inexact = m.op(Op::LogicalOr, bools, &[below, above]);
    let negative = m.op(Op::FOrdLessThan, bools, &[sum, zero]);
    let inward = m.op(Op::LogicalNotEqual, bools, &[below, negative]);
    let bits = m.op(Op::Bitcast, longs, &[sum]);
    let [one, minus_one, none] = [1, u64::MAX, 0].map(|step| m.splat(Repr::U64, lanes, step));
    let last = m.op(Op::BitwiseAnd, longs, &[bits, one]);
    let words = m.ty(Repr::U32, lanes);
    let last = m.op(Op::UConvert, words, &[last]);
    let no = m.splat(Repr::U32, lanes, 0);
    let even = m.op(Op::IEqual, bools, &[last, no]);
    let moves = m.op(Op::LogicalAnd, bools, &[inexact, even]);
    let step = m.op(Op::Select, longs, &[inward, minus_one, one]);
    let step = m.op(Op::Select, longs, &[moves, step, none]);
    let odd = m.op(Op::IAdd, longs, &[bits, step]);
    let odd = m.op(Op::Bitcast, doubles, &[odd]);
    let floats = m.ty(Repr::F32, lanes);
    let rounded = m.op(Op::FConvert, floats, &[odd]);
    // Drivers drop the addition of a zero and with it the sign of the sum. A sum of zero is negative where both its terms
    // are: equal numbers that cancel differ in their signs. In 32 bits, which drivers compile much faster than 64.
    let [of_a, of_b, of_c] = factors.map(|x| m.op(Op::Bitcast, words, &[x]));
    let both = m.op(Op::BitwiseXor, words, &[of_a, of_b]);
    let both = m.op(Op::BitwiseAnd, words, &[both, of_c]);
    let sign = m.splat(Repr::U32, lanes, 1 << 31);
    let both = m.op(Op::BitwiseAnd, words, &[both, sign]);
    let is_zero = m.op(Op::FOrdEqual, bools, &[sum, zero]);
    let bits = m.op(Op::Bitcast, words, &[rounded]);
    let signed = m.op(Op::Select, words, &[is_zero, both, bits]);
    m.op(Op::Bitcast, floats, &[signed])
}

/// A comparison of one piece.
pub(super) fn cmp(m: &mut Module, op: CmpOp, scalar: Scalar, lanes: u8, a: Word, b: Word) -> Word {
    let bools = m.ty(Repr::Bool, lanes);
    let float = scalar.is_float();
    let op = match op {
        CmpOp::Eq if float => Op::FOrdEqual,
        CmpOp::Ne if float => Op::FUnordNotEqual,
        CmpOp::Eq => Op::IEqual,
        CmpOp::Ne => Op::INotEqual,
        CmpOp::Lt => Op::FOrdLessThan,
        CmpOp::Le => Op::FOrdLessThanEqual,
        CmpOp::LtS => Op::SLessThan,
        CmpOp::LeS => Op::SLessThanEqual,
        CmpOp::LtU => Op::ULessThan,
    };
    m.op(op, bools, &[a, b])
}

/// A cast of one piece. Casts of the floats that are bits alone are expanded before.
pub(super) fn cast(m: &mut Module, op: CastOp, from: Scalar, to: Scalar, lanes: u8, a: Word) -> Word {
    let ty = m.ty(Repr::of(to), lanes);
    let words = m.ty(Repr::U32, lanes);
    match op {
        CastOp::Truncate | CastOp::ExtendU => m.op(Op::UConvert, ty, &[a]),
        CastOp::ExtendS => m.op(Op::SConvert, ty, &[a]),
        CastOp::IntToFloatS => {
            let wide = if from == Scalar::I32 { a } else { m.op(Op::SConvert, words, &[a]) };
            m.op(Op::ConvertSToF, ty, &[wide])
        }
        CastOp::IntToFloatU => {
            let wide = if from == Scalar::I32 { a } else { m.op(Op::UConvert, words, &[a]) };
            m.op(Op::ConvertUToF, ty, &[wide])
        }
        CastOp::FloatToIntS => float_to_int(m, to, lanes, a),
        CastOp::Float => m.op(Op::FConvert, ty, &[a]),
    }
}

/// Saturates, NaN to 0: the conversion itself sees numbers in range alone.
fn float_to_int(m: &mut Module, to: Scalar, lanes: u8, a: Word) -> Word {
    let (words, bools, floats) = (m.ty(Repr::U32, lanes), m.ty(Repr::Bool, lanes), m.ty(Repr::F32, lanes));
    let half = 2f32.powi(to.bits() as i32 - 1);
    let (low, high) =
        (m.splat(Repr::F32, lanes, (-half).to_bits() as u64), m.splat(Repr::F32, lanes, half.to_bits() as u64));
    let zero = m.splat(Repr::F32, lanes, 0);
    let above_low = m.op(Op::FOrdGreaterThanEqual, bools, &[a, low]);
    let below_high = m.op(Op::FOrdLessThan, bools, &[a, high]);
    let inside = m.op(Op::LogicalAnd, bools, &[above_low, below_high]);
    let number = m.op(Op::Select, floats, &[inside, a, zero]);
    let converted = m.op(Op::ConvertFToS, words, &[number]);
    let most = (1u64 << (to.bits() - 1)) - 1;
    let least = !most & 0xffff_ffff;
    let (least, most) = (m.splat(Repr::U32, lanes, least), m.splat(Repr::U32, lanes, most));
    let too_low = m.op(Op::FOrdLessThan, bools, &[a, low]);
    let too_high = m.op(Op::FOrdGreaterThanEqual, bools, &[a, high]);
    let result = m.op(Op::Select, words, &[too_low, least, converted]);
    let result = m.op(Op::Select, words, &[too_high, most, result]);
    if to == Scalar::I32 {
        return result;
    }
    let ty = m.ty(Repr::of(to), lanes);
    m.op(Op::UConvert, ty, &[result])
}

/// `acc + Σ a.byte · b.byte` of one 32-bit lane, by the dot product of packed bytes.
pub(super) fn dot4(m: &mut Module, signs: Dot4Signs, a: Word, b: Word, acc: Word) -> Word {
    m.needs(Capability::DotProduct);
    m.needs(Capability::DotProductInput4x8BitPacked);
    m.extension("SPV_KHR_integer_dot_product");
    let word = m.ty(Repr::U32, 1);
    // The mixed form takes its signed factor first.
    let (op, first, second) = match signs {
        Dot4Signs::SignedSigned => (Op::SDot, a, b),
        Dot4Signs::UnsignedSigned => (Op::SUDot, b, a),
    };
    let format = Operand::PackedVectorFormat(PackedVectorFormat::PackedVectorFormat4x8Bit);
    let product = m.op_with(op, word, vec![Operand::IdRef(first), Operand::IdRef(second), format]);
    m.op(Op::IAdd, word, &[product, acc])
}
