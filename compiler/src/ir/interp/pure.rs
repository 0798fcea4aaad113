//! What each pure instruction does to its operands: the arithmetic of the IR.
//!
//! Reads and writes a register file; the interpreter and constant folding both run this code, so they cannot differ.
//! Always holds: lanes are independent. Cheap operations work on whole 16-byte chunks, whatever lies past the last
//! lane; operations that can fault or are slow stop at the last lane.

mod products;

use self::products::{dot2, dot2_bf16, dot2_bytes, dot4, permute, permute_long};
use super::code::{Op, Slot};
use super::number::{self, float_bin, float_cmp, float_un};
use crate::ir::kernel::{BinOp, CastOp, CmpOp, UnOp};
use crate::ir::types::Scalar;

/// Runs one pure operation. Operations that are not pure do nothing here.
#[inline(always)]
pub fn step(op: &Op, tables: &[Slot], regs: &mut [u8]) -> Result<(), String> {
    match *op {
        Op::Bin { op, scalar, d, a, b, n, lanes } => return bin(op, scalar, At { d, a, b, n, lanes }, regs),
        Op::Un { op, scalar, d, a, n, lanes } => un(op, scalar, At { d, a, b: a, n, lanes }, regs),
        Op::Cmp { op, scalar, d, a, b, lanes } => cmp(op, scalar, At { d, a, b, n: 0, lanes }, regs),
        Op::Select { d, cond, a, b, n, bytes } => select(cond, At { d, a, b, n, lanes: 0 }, bytes, regs),
        Op::Choose { d, cond, a, b, n } => {
            let from = if regs[cond as usize] != 0 { a } else { b };
            copy(regs, d, from, n);
        }
        Op::Cast { op, from, to, d, a, lanes } => cast(op, from, to, At { d, a, b: a, n: 0, lanes }, regs),
        Op::Copy { d, a, n } => copy(regs, d, a, n),
        Op::Fma { scalar, d, a, b, c, n, lanes } => fma(scalar, At { d, a, b, n, lanes }, c, regs),
        Op::Splat { d, a, n, bytes } => splat(d, a, n, bytes, regs),
        Op::Gather { d, first, lanes, bytes } => {
            let sources = &tables[first as usize..][..lanes as usize];
            match bytes {
                1 => gather::<1>(d, sources, regs),
                2 => gather::<2>(d, sources, regs),
                4 => gather::<4>(d, sources, regs),
                _ => gather::<8>(d, sources, regs),
            }
        }
        Op::Unpack { d, a, shift, bits, signed, float, bytes, n } => {
            unpack(At { d, a, b: a, n, lanes: 0 }, Field { shift, bits, signed, float }, bytes, regs);
        }
        Op::Dot4 { signs, a_bits, d, a, b, c, lanes } => {
            return dot4(signs, a_bits, At { d, a, b, n: 0, lanes }, c, regs);
        }
        Op::Dot2 { sum, d, a, b, c, lanes } => {
            let dot = match sum {
                Scalar::F32 => dot2_bf16,
                Scalar::I16 => dot2_bytes,
                _ => dot2,
            };
            dot(At { d, a, b, n: 0, lanes }, c, regs);
        }
        Op::Permute { d, a, b, bytes } => return permute(d, a, b, bytes, regs),
        Op::PermuteLong { d, low, high, index, bytes } => permute_long(d, [low, high], index, bytes, regs),
        Op::Builtin { .. }
        | Op::Load { .. }
        | Op::Store { .. }
        | Op::Atomic { .. }
        | Op::Barrier
        | Op::Shuffle { .. }
        | Op::Reduce { .. }
        | Op::Mma { .. }
        | Op::AsyncCopy { .. }
        | Op::AsyncCommit
        | Op::AsyncWait { .. }
        | Op::Asynchronous(_)
        | Op::Cooperative(_)
        | Op::Enter { .. }
        | Op::Head { .. }
        | Op::Next { .. }
        | Op::Branch { .. }
        | Op::Jump { .. }
        | Op::End => {}
    }
    Ok(())
}

/// Where an operation reads and writes.
#[derive(Clone, Copy)]
struct At {
    d: Slot,
    a: Slot,
    b: Slot,
    n: u8,
    lanes: u8,
}

/// A bit field of a container.
#[derive(Clone, Copy)]
struct Field {
    shift: u8,
    bits: u8,
    signed: bool,
    float: bool,
}

#[inline(always)]
fn bytes<const N: usize>(regs: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&regs[at..at + N]);
    out
}

#[inline(always)]
fn put<const N: usize>(regs: &mut [u8], at: usize, value: [u8; N]) {
    regs[at..at + N].copy_from_slice(&value);
}

fn copy(regs: &mut [u8], d: Slot, a: Slot, n: u8) {
    for i in 0..n as usize * 16 {
        if i % 16 == 0 {
            put::<16>(regs, d as usize + i, bytes(regs, a as usize + i));
        }
    }
}

/// Makes functions that apply a closure to every lane of one, two or three operands, chunk by chunk.
macro_rules! chunkwise {
    ($one:ident, $two:ident, $t:ty, $size:literal) => {
        #[inline(always)]
        fn $one(regs: &mut [u8], at: At, f: impl Fn($t) -> $t) {
            for i in 0..at.n as usize {
                let a: [u8; 16] = bytes(regs, at.a as usize + 16 * i);
                let mut out = [0; 16];
                for (out, a) in out.as_chunks_mut::<$size>().0.iter_mut().zip(a.as_chunks::<$size>().0) {
                    *out = f(<$t>::from_le_bytes(*a)).to_le_bytes();
                }
                put(regs, at.d as usize + 16 * i, out);
            }
        }
        #[inline(always)]
        fn $two(regs: &mut [u8], at: At, f: impl Fn($t, $t) -> $t) {
            for i in 0..at.n as usize {
                let a: [u8; 16] = bytes(regs, at.a as usize + 16 * i);
                let b: [u8; 16] = bytes(regs, at.b as usize + 16 * i);
                let mut out = [0; 16];
                let pairs = a.as_chunks::<$size>().0.iter().zip(b.as_chunks::<$size>().0);
                for (out, (a, b)) in out.as_chunks_mut::<$size>().0.iter_mut().zip(pairs) {
                    *out = f(<$t>::from_le_bytes(*a), <$t>::from_le_bytes(*b)).to_le_bytes();
                }
                put(regs, at.d as usize + 16 * i, out);
            }
        }
    };
}
chunkwise!(one_u8, two_u8, u8, 1);
chunkwise!(one_u16, two_u16, u16, 2);
chunkwise!(one_u32, two_u32, u32, 4);
chunkwise!(one_u64, two_u64, u64, 8);
chunkwise!(one_f32, two_f32, f32, 4);

fn bin(op: BinOp, scalar: Scalar, at: At, regs: &mut [u8]) -> Result<(), String> {
    macro_rules! integer {
        ($two:ident, $u:ty, $i:ty) => {{
            const BITS: u32 = <$u>::BITS;
            match op {
                BinOp::Add => $two(regs, at, |a, b| a.wrapping_add(b)),
                BinOp::Sub => $two(regs, at, |a, b| a.wrapping_sub(b)),
                BinOp::Mul => $two(regs, at, |a, b| a.wrapping_mul(b)),
                BinOp::And => $two(regs, at, |a, b| a & b),
                BinOp::Or => $two(regs, at, |a, b| a | b),
                BinOp::Xor => $two(regs, at, |a, b| a ^ b),
                BinOp::Shl => $two(regs, at, |a, b| a << (b as u32 % BITS)),
                BinOp::ShrU => $two(regs, at, |a, b| a >> (b as u32 % BITS)),
                BinOp::ShrS => $two(regs, at, |a, b| (a as $i >> (b as u32 % BITS)) as $u),
                BinOp::MinS => $two(regs, at, |a, b| (a as $i).min(b as $i) as $u),
                BinOp::MaxS => $two(regs, at, |a, b| (a as $i).max(b as $i) as $u),
                BinOp::DivS | BinOp::RemS => {
                    const SIZE: usize = <$u>::BITS as usize / 8;
                    for lane in 0..at.lanes as usize {
                        let a = <$i>::from_le_bytes(bytes(regs, at.a as usize + SIZE * lane));
                        let b = <$i>::from_le_bytes(bytes(regs, at.b as usize + SIZE * lane));
                        let (quotient, remainder) = match (a.checked_div(b), a.checked_rem(b)) {
                            (Some(quotient), Some(remainder)) => (quotient, remainder),
                            _ if b == 0 => return Err(format!("lane {lane}: {a} divided by zero")),
                            _ => return Err(format!("lane {lane}: {a} divided by {b} overflows")),
                        };
                        let out = if op == BinOp::DivS { quotient } else { remainder };
                        put(regs, at.d as usize + SIZE * lane, out.to_le_bytes());
                    }
                }
                // Floats alone have these.
                BinOp::Div | BinOp::Min | BinOp::Max => {}
            }
        }};
    }
    match scalar {
        Scalar::Bool | Scalar::I8 => integer!(two_u8, u8, i8),
        Scalar::I16 => integer!(two_u16, u16, i16),
        Scalar::I32 => integer!(two_u32, u32, i32),
        Scalar::I64 => integer!(two_u64, u64, i64),
        Scalar::F32 => match op {
            BinOp::Add => two_f32(regs, at, |a, b| a + b),
            BinOp::Sub => two_f32(regs, at, |a, b| a - b),
            BinOp::Mul => two_f32(regs, at, |a, b| a * b),
            _ => two_f32(regs, at, |a, b| float_bin(op, a, b)),
        },
        Scalar::F16 | Scalar::Bf16 => {
            for lane in 0..at.lanes as usize {
                let a = number::widen(scalar, u16::from_le_bytes(bytes(regs, at.a as usize + 2 * lane)));
                let b = number::widen(scalar, u16::from_le_bytes(bytes(regs, at.b as usize + 2 * lane)));
                let out = number::narrow(scalar, float_bin(op, a, b));
                put(regs, at.d as usize + 2 * lane, out.to_le_bytes());
            }
        }
        // Storage floats have no arithmetic; the verifier says so.
        Scalar::E4m3fn | Scalar::E4m3fnuz | Scalar::E5m2 | Scalar::E5m2fnuz | Scalar::E8m0 => {}
    }
    Ok(())
}

fn un(op: UnOp, scalar: Scalar, at: At, regs: &mut [u8]) {
    macro_rules! integer {
        ($one:ident, $t:ty) => {
            match op {
                UnOp::Neg => $one(regs, at, |a| a.wrapping_neg()),
                UnOp::Not => $one(regs, at, |a| !a),
                UnOp::Popcount => $one(regs, at, |a| a.count_ones() as $t),
                UnOp::Abs | UnOp::Sqrt | UnOp::Nearest | UnOp::Floor | UnOp::Exp2 => {}
            }
        };
    }
    match scalar {
        Scalar::Bool => one_u8(regs, at, |a| a ^ 1),
        Scalar::I8 => integer!(one_u8, u8),
        Scalar::I16 => integer!(one_u16, u16),
        Scalar::I32 => integer!(one_u32, u32),
        Scalar::I64 => integer!(one_u64, u64),
        Scalar::F32 if op == UnOp::Exp2 => {
            for lane in 0..at.lanes as usize {
                let a = f32::from_le_bytes(bytes(regs, at.a as usize + 4 * lane));
                put(regs, at.d as usize + 4 * lane, float_un(op, a).to_le_bytes());
            }
        }
        Scalar::F32 => one_f32(regs, at, |a| float_un(op, a)),
        Scalar::F16 | Scalar::Bf16 => {
            for lane in 0..at.lanes as usize {
                let a = u16::from_le_bytes(bytes(regs, at.a as usize + 2 * lane));
                let out = match op {
                    UnOp::Neg => a ^ 0x8000,
                    UnOp::Abs => a & 0x7fff,
                    _ => number::narrow(scalar, float_un(op, number::widen(scalar, a))),
                };
                put(regs, at.d as usize + 2 * lane, out.to_le_bytes());
            }
        }
        Scalar::E4m3fn | Scalar::E4m3fnuz | Scalar::E5m2 | Scalar::E5m2fnuz | Scalar::E8m0 => {}
    }
}

fn cmp(op: CmpOp, scalar: Scalar, at: At, regs: &mut [u8]) {
    macro_rules! integer {
        ($u:ty, $i:ty, $size:literal) => {
            for lane in 0..at.lanes as usize {
                let a = <$u>::from_le_bytes(bytes(regs, at.a as usize + $size * lane));
                let b = <$u>::from_le_bytes(bytes(regs, at.b as usize + $size * lane));
                let out = match op {
                    CmpOp::Eq => a == b,
                    CmpOp::Ne => a != b,
                    CmpOp::LtS => (a as $i) < b as $i,
                    CmpOp::LeS => a as $i <= b as $i,
                    CmpOp::LtU => a < b,
                    CmpOp::Lt | CmpOp::Le => false,
                };
                regs[at.d as usize + lane] = out as u8;
            }
        };
    }
    match scalar {
        Scalar::Bool | Scalar::I8 => integer!(u8, i8, 1),
        Scalar::I16 => integer!(u16, i16, 2),
        Scalar::I32 => integer!(u32, i32, 4),
        Scalar::I64 => integer!(u64, i64, 8),
        Scalar::F32 => {
            for lane in 0..at.lanes as usize {
                let a = f32::from_le_bytes(bytes(regs, at.a as usize + 4 * lane));
                let b = f32::from_le_bytes(bytes(regs, at.b as usize + 4 * lane));
                regs[at.d as usize + lane] = float_cmp(op, a, b) as u8;
            }
        }
        Scalar::F16 | Scalar::Bf16 => {
            for lane in 0..at.lanes as usize {
                let a = number::widen(scalar, u16::from_le_bytes(bytes(regs, at.a as usize + 2 * lane)));
                let b = number::widen(scalar, u16::from_le_bytes(bytes(regs, at.b as usize + 2 * lane)));
                regs[at.d as usize + lane] = float_cmp(op, a, b) as u8;
            }
        }
        Scalar::E4m3fn | Scalar::E4m3fnuz | Scalar::E5m2 | Scalar::E5m2fnuz | Scalar::E8m0 => {}
    }
}

fn select(cond: Slot, at: At, size: u8, regs: &mut [u8]) {
    for i in 0..at.n as usize {
        let a: [u8; 16] = bytes(regs, at.a as usize + 16 * i);
        let b: [u8; 16] = bytes(regs, at.b as usize + 16 * i);
        let mut out = [0; 16];
        let per_chunk = 16 / size as usize;
        let first = cond as usize + per_chunk * i;
        // A condition's slot has a whole chunk for 16 lanes, so lanes past the last read its padding.
        match size {
            1 => blend::<1, 16>(&bytes::<16>(regs, first), &a, &b, &mut out),
            2 => blend::<2, 8>(&bytes::<8>(regs, first), &a, &b, &mut out),
            4 => blend::<4, 4>(&bytes::<4>(regs, first), &a, &b, &mut out),
            _ => blend::<8, 2>(&bytes::<2>(regs, first), &a, &b, &mut out),
        }
        put(regs, at.d as usize + 16 * i, out);
    }
}

#[inline(always)]
fn blend<const SIZE: usize, const LANES: usize>(cond: &[u8; LANES], a: &[u8; 16], b: &[u8; 16], out: &mut [u8; 16]) {
    for (lane, &cond) in cond.iter().enumerate() {
        let from = if cond != 0 { a } else { b };
        out[lane * SIZE..][..SIZE].copy_from_slice(&from[lane * SIZE..][..SIZE]);
    }
}

fn cast(op: CastOp, from: Scalar, to: Scalar, at: At, regs: &mut [u8]) {
    macro_rules! lanes {
        ($from:ty, $to:ty, $f:expr) => {{
            const FROM: usize = size_of::<$from>();
            const TO: usize = size_of::<$to>();
            let f: fn($from) -> $to = $f;
            for lane in 0..at.lanes as usize {
                let a = <$from>::from_le_bytes(bytes(regs, at.a as usize + FROM * lane));
                put(regs, at.d as usize + TO * lane, f(a).to_le_bytes());
            }
        }};
    }
    match (op, from, to) {
        // The casts of decoding loops, spelled out for speed.
        (CastOp::ExtendU, Scalar::I8, Scalar::I16) => lanes!(u8, u16, |a| a as u16),
        (CastOp::ExtendU, Scalar::I8, Scalar::I32) => lanes!(u8, u32, |a| a as u32),
        (CastOp::ExtendU, Scalar::I16, Scalar::I32) => lanes!(u16, u32, |a| a as u32),
        (CastOp::ExtendS, Scalar::I8, Scalar::I16) => lanes!(i8, i16, |a| a as i16),
        (CastOp::ExtendS, Scalar::I8, Scalar::I32) => lanes!(i8, i32, |a| a as i32),
        (CastOp::ExtendS, Scalar::I16, Scalar::I32) => lanes!(i16, i32, |a| a as i32),
        (CastOp::ExtendS, Scalar::I32, Scalar::I64) => lanes!(i32, i64, |a| a as i64),
        (CastOp::Truncate, Scalar::I32, Scalar::I8) => lanes!(u32, u8, |a| a as u8),
        (CastOp::Truncate, Scalar::I16, Scalar::I8) => lanes!(u16, u8, |a| a as u8),
        (CastOp::Truncate, Scalar::I32, Scalar::I16) => lanes!(u32, u16, |a| a as u16),
        (CastOp::IntToFloatS, Scalar::I32, Scalar::F32) => lanes!(i32, f32, |a| a as f32),
        (CastOp::FloatToIntS, Scalar::F32, Scalar::I32) => lanes!(f32, i32, |a| a as i32),
        (CastOp::Float, Scalar::F16, Scalar::F32) => lanes!(u16, f32, |a| number::widen(Scalar::F16, a)),
        (CastOp::Float, Scalar::F32, Scalar::F16) => lanes!(f32, u16, |a| number::narrow(Scalar::F16, a)),
        _ => {
            let (wide, narrow) = (from.bytes() as usize, to.bytes() as usize);
            for lane in 0..at.lanes as usize {
                let mut bits = [0; 8];
                bits[..wide].copy_from_slice(&regs[at.a as usize + wide * lane..][..wide]);
                let out = number::cast(op, from, to, u64::from_le_bytes(bits)).to_le_bytes();
                regs[at.d as usize + narrow * lane..][..narrow].copy_from_slice(&out[..narrow]);
            }
        }
    }
}

fn fma(scalar: Scalar, at: At, c: Slot, regs: &mut [u8]) {
    if scalar == Scalar::F32 {
        for lane in 0..at.lanes as usize {
            let a = f32::from_le_bytes(bytes(regs, at.a as usize + 4 * lane));
            let b = f32::from_le_bytes(bytes(regs, at.b as usize + 4 * lane));
            let c = f32::from_le_bytes(bytes(regs, c as usize + 4 * lane));
            put(regs, at.d as usize + 4 * lane, a.mul_add(b, c).to_le_bytes());
        }
    } else {
        for lane in 0..at.lanes as usize {
            let part = |slot: Slot| u16::from_le_bytes(bytes(regs, slot as usize + 2 * lane));
            let out = number::small_fma(scalar, part(at.a), part(at.b), part(c));
            put(regs, at.d as usize + 2 * lane, out.to_le_bytes());
        }
    }
}

fn splat(d: Slot, a: Slot, n: u8, size: u8, regs: &mut [u8]) {
    let mut chunk: [u8; 16] = bytes(regs, a as usize);
    let size = size as usize;
    for i in size..16 {
        chunk[i] = chunk[i - size];
    }
    for i in 0..n as usize {
        put(regs, d as usize + 16 * i, chunk);
    }
}

#[inline(always)]
fn gather<const SIZE: usize>(d: Slot, sources: &[Slot], regs: &mut [u8]) {
    for (lane, &source) in sources.iter().enumerate() {
        put::<SIZE>(regs, d as usize + SIZE * lane, bytes(regs, source as usize));
    }
}

fn unpack(at: At, field: Field, size: u8, regs: &mut [u8]) {
    macro_rules! cut {
        ($one:ident, $u:ty, $i:ty) => {{
            // The field moves to the top, then back down with zeros or its sign.
            let left = <$u>::BITS - (field.shift + field.bits) as u32;
            let right = <$u>::BITS - field.bits as u32;
            if field.signed {
                $one(regs, at, |a| (((a << left) as $i) >> right) as $u)
            } else {
                $one(regs, at, |a| (a << left) >> right)
            }
        }};
    }
    match size {
        1 => cut!(one_u8, u8, i8),
        2 => cut!(one_u16, u16, i16),
        4 => cut!(one_u32, u32, i32),
        _ => cut!(one_u64, u64, i64),
    }
    if field.float {
        let at = At { a: at.d, ..at };
        if field.signed {
            one_u32(regs, at, |a| (a as i32 as f32).to_bits());
        } else {
            one_u32(regs, at, |a| (a as f32).to_bits());
        }
    }
}
