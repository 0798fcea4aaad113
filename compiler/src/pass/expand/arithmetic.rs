//! Expansions of integer instructions and of `exp2`.

use crate::ir::{BinOp, Builder, CastOp, CmpOp, Dot4Signs, Scalar, Type, Value, exp2_parts};

/// A field moves to the bottom of its container by shifts.
pub fn unpack(b: &mut Builder, a: Value, shift: u8, bits: u8, signed: bool, ty: Type) -> Value {
    let float = ty.scalar == Scalar::F32;
    let container = if float { ty.with_scalar(Scalar::I32) } else { ty };
    let width = container.scalar.bits() as u8;
    let mut field = b.bitcast(a, container);
    if signed {
        let (up, down) = (width - bits - shift, width - bits);
        if up > 0 {
            field = b.bin_imm(BinOp::Shl, field, up as i64);
        }
        if down > 0 {
            field = b.bin_imm(BinOp::ShrS, field, down as i64);
        }
    } else {
        if shift > 0 {
            field = b.bin_imm(BinOp::ShrU, field, shift as i64);
        }
        if shift + bits < width {
            field = b.bin_imm(BinOp::And, field, (u64::MAX >> (64 - bits)) as i64);
        }
    }
    if !float {
        field
    } else if signed || bits < 32 {
        b.cast(CastOp::IntToFloatS, field, Scalar::F32)
    } else {
        b.cast(CastOp::IntToFloatU, field, Scalar::F32)
    }
}

/// Four multiplications of bytes that shifts cut out of the 32-bit lanes.
pub fn dot4(b: &mut Builder, signs: Dot4Signs, a: Value, factor: Value, acc: Value) -> Value {
    let words = b.ty(acc);
    let (a, factor) = (b.bitcast(a, words), b.bitcast(factor, words));
    (0..4).fold(acc, |sum, j| {
        let left = unpack(b, a, 8 * j, 8, signs == Dot4Signs::SignedSigned, words);
        let right = unpack(b, factor, 8 * j, 8, true, words);
        let product = b.mul(left, right);
        b.add(sum, product)
    })
}

/// Two multiplications of words that shifts cut out of the 32-bit lanes.
pub fn dot2(b: &mut Builder, a: Value, factor: Value, acc: Value) -> Value {
    let words = b.ty(acc);
    let (a, factor) = (b.bitcast(a, words), b.bitcast(factor, words));
    (0..2).fold(acc, |sum, j| {
        let left = unpack(b, a, 16 * j, 16, true, words);
        let right = unpack(b, factor, 16 * j, 16, true, words);
        let product = b.mul(left, right);
        b.add(sum, product)
    })
}

/// Each entry of the table goes where the index names it.
pub fn permute(b: &mut Builder, table: Value, index: Value) -> Value {
    let ty = b.ty(index);
    let first = b.extract(table, 0);
    let mut out = b.splat(first, ty.lanes);
    for entry in 1..16 {
        let value = b.extract(table, entry);
        let value = b.splat(value, ty.lanes);
        let number = b.int(ty, entry as i64);
        let here = b.cmp(CmpOp::Eq, index, number);
        out = b.select(here, value, out);
    }
    out
}

/// Counts in pairs, nibbles, bytes, then adds the bytes.
pub fn popcount(b: &mut Builder, a: Value) -> Value {
    let width = b.ty(a).scalar.bits();
    let halves = b.bin_imm(BinOp::ShrU, a, 1);
    let halves = b.bin_imm(BinOp::And, halves, 0x5555_5555_5555_5555);
    let pairs = b.bin(BinOp::Sub, a, halves);
    let low = b.bin_imm(BinOp::And, pairs, 0x3333_3333_3333_3333);
    let high = b.bin_imm(BinOp::ShrU, pairs, 2);
    let high = b.bin_imm(BinOp::And, high, 0x3333_3333_3333_3333);
    let nibbles = b.add(low, high);
    let up = b.bin_imm(BinOp::ShrU, nibbles, 4);
    let sum = b.add(nibbles, up);
    let mut sum = b.bin_imm(BinOp::And, sum, 0x0f0f_0f0f_0f0f_0f0f);
    let mut distance = 8;
    while distance < width {
        let up = b.bin_imm(BinOp::ShrU, sum, distance as i64);
        sum = b.add(sum, up);
        distance *= 2;
    }
    if width > 8 { b.bin_imm(BinOp::And, sum, 0x7f) } else { sum }
}

/// `2^x` as `2^n · 2^f`, `n` the nearest integer. Error at most 2 units in the last place where the result is normal;
/// results below are rounded once more as they lose digits, and NaN stays NaN.
///
/// `2^n` is two factors, so that neither leaves the normal range.
pub fn exp2(b: &mut Builder, x: Value) -> Value {
    let ty = b.ty(x);
    // Past these, the result is infinity or zero all the same; Min and Max keep NaN.
    let (top, bottom) = (b.f32(ty.lanes, 130.0), b.f32(ty.lanes, -160.0));
    let x = b.bin(BinOp::Min, x, top);
    let x = b.bin(BinOp::Max, x, bottom);
    let (n, mut sum) = exp2_parts(b, x);
    let half = b.bin_imm(BinOp::ShrS, n, 1);
    let other = b.bin(BinOp::Sub, n, half);
    for part in [half, other] {
        let biased = b.bin_imm(BinOp::Add, part, 127);
        let bits = b.bin_imm(BinOp::Shl, biased, 23);
        let factor = b.bitcast(bits, ty);
        sum = b.mul(sum, factor);
    }
    sum
}
