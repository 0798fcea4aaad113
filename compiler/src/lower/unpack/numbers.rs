//! Numbers of every stored type as `f32`.

use crate::caps::{Feature, Features};
use crate::dtype::DType;
use crate::ir::{Address, BinOp, Builder, CastOp, CmpOp, Scalar, Type, Value};

/// Numbers of a type in memory as `f32`.
pub(super) fn load_number(
    b: &mut Builder,
    dtype: DType,
    address: Address,
    lanes: u8,
    align: u32,
    features: Features,
) -> Value {
    let load = |b: &mut Builder, scalar: Scalar| b.load(Type::vector(scalar, lanes), address, align);
    match dtype {
        DType::F32 => load(b, Scalar::F32),
        DType::F16 if features.has(Feature::F16Convert) => {
            let raw = load(b, Scalar::F16);
            b.cast(CastOp::Float, raw, Scalar::F32)
        }
        DType::F16 => {
            let raw = load(b, Scalar::I16);
            let raw = b.cast(CastOp::ExtendU, raw, Scalar::I32);
            finite_float(b, raw, F16, features)
        }
        DType::Bf16 => {
            let raw = load(b, Scalar::I16);
            let raw = b.cast(CastOp::ExtendU, raw, Scalar::I32);
            let bits = b.bin_imm(BinOp::Shl, raw, 16);
            b.bitcast(bits, Type::vector(Scalar::F32, lanes))
        }
        DType::E4m3fn => {
            let raw = load(b, Scalar::I8);
            let raw = b.cast(CastOp::ExtendU, raw, Scalar::I32);
            small_float(b, raw, DType::E4m3fn, features)
        }
        DType::E8m0 => {
            let raw = load(b, Scalar::E8m0);
            b.cast(CastOp::Float, raw, Scalar::F32)
        }
        DType::I8 => {
            let raw = load(b, Scalar::I8);
            b.cast(CastOp::IntToFloatS, raw, Scalar::F32)
        }
        _ => {
            let raw = load(b, Scalar::I8);
            b.cast(CastOp::IntToFloatU, raw, Scalar::F32)
        }
    }
}

/// The sign bit `bit` of `raw` set on a non-negative float's bits.
pub(super) fn with_sign(b: &mut Builder, magnitude: Value, raw: Value, bit: u8) -> Value {
    let sign = b.bin_imm(BinOp::And, raw, 1 << bit);
    let sign = b.bin_imm(BinOp::Shl, sign, 31 - bit as i64);
    let bits = b.bin(BinOp::Or, magnitude, sign);
    let ty = b.ty(bits).with_scalar(Scalar::F32);
    b.bitcast(bits, ty)
}

/// A float with a sign by its numbers: bits in all, bits of the fraction, bias of the exponent.
pub(super) type Shape = (u8, u8, i32);

/// binary16.
pub(super) const F16: Shape = (16, 10, 15);

/// A finite 8- or 4-bit float in the low bits of `i32` lanes, as `f32`. Exact.
pub(super) fn small_float(b: &mut Builder, raw: Value, dtype: DType, features: Features) -> Value {
    let shape = match dtype {
        DType::E4m3fn => (8, 3, 7),
        DType::E4m3fnuz => (8, 3, 8),
        DType::E5m2 => (8, 2, 15),
        DType::E5m2fnuz => (8, 2, 16),
        _ => (4, 1, 1),
    };
    finite_float(b, raw, shape, features)
}

/// A finite float in the low bits of `i32` lanes, as `f32`. Exact: its exponent and fraction are placed in those of an
/// `f32`, and a product with a power of two moves the exponent's bias. Subnormals become subnormals on the way; where a
/// device may take those for zeros, they are made apart, as the small integers that they are times the smallest step.
fn finite_float(b: &mut Builder, raw: Value, (bits, fraction, bias): Shape, features: Features) -> Value {
    let magnitude = b.bin_imm(BinOp::And, raw, (1 << (bits - 1)) - 1);
    let placed = b.bin_imm(BinOp::Shl, magnitude, 23 - i64::from(fraction));
    let ty = b.ty(placed);
    let floats = ty.with_scalar(Scalar::F32);
    let unsigned = if features.has(Feature::Subnormals) {
        let float = b.bitcast(placed, floats);
        let factor = b.f32(ty.lanes, 2f32.powi(127 - bias));
        let scaled = b.mul(float, factor);
        b.bitcast(scaled, ty)
    } else {
        let normal = b.bin_imm(BinOp::Add, placed, i64::from(127 - bias) << 23);
        let steps = b.cast(CastOp::IntToFloatS, magnitude, Scalar::F32);
        let step = b.f32(ty.lanes, 2f32.powi(1 - bias - i32::from(fraction)));
        let tiny = b.mul(steps, step);
        let tiny = b.bitcast(tiny, ty);
        let limit = b.int(ty, 1 << fraction);
        let is_tiny = b.cmp(CmpOp::LtS, magnitude, limit);
        b.select(is_tiny, tiny, normal)
    };
    with_sign(b, unsigned, raw, bits - 1)
}

/// `values[raw]` for `i32` lanes below 16: each byte of the float comes from its own byte table.
pub(super) fn table_lookup(b: &mut Builder, raw: Value, values: &[f32; 16]) -> Value {
    let lanes = b.ty(raw).lanes;
    let bytes = Type::vector(Scalar::I8, 4 * lanes);
    let repeated = b.bin_imm(BinOp::Mul, raw, 0x0101_0101);
    let index = b.bitcast(repeated, bytes);
    let mut joined: Option<Value> = None;
    for plane in 0..4 {
        let entries: Vec<u64> = values.iter().map(|v| (v.to_bits() >> (8 * plane) & 0xff) as u64).collect();
        let table = b.lanes(Scalar::I8, &entries);
        let found = b.push(bytes, crate::ir::Inst::PermuteBytes { table, index });
        let words = b.bitcast(found, Type::vector(Scalar::I32, lanes));
        let part = b.bin_imm(BinOp::And, words, 0xff << (8 * plane));
        joined = Some(joined.map_or(part, |j| b.bin(BinOp::Or, j, part)));
    }
    let bits = joined.expect("a float has four bytes");
    b.bitcast(bits, Type::vector(Scalar::F32, lanes))
}
