//! Codes of a cache to numbers and back, in kernels. The only place here that knows what a code is.

use super::super::memory::{at, scalar_of, split, times};
use super::{int, plus};
use crate::caps::{Caps, Feature};
use crate::dtype::DType;
use crate::format::kv::codes::{LARGEST, SMALLEST};
use crate::format::kv::{KvCode, KvCodes, KvLayout, Part, Side};
use crate::ir::{
    BinOp, Builder, CastOp, CmpOp, Inst, Memory, Scalar, Type, UnOp, Value, exp2_parts, exp2_series, exp2_short,
};

/// 2^23 + 2^22. Added to a number of at most 22 bits, it leaves no room for a fraction: the low bits of the sum are the nearest integer.
pub const SHIFT: f32 = 12_582_912.0;

/// How a kernel reads codes.
#[derive(Clone, Copy, Debug)]
pub struct Decoder {
    pub codes: KvCodes,
    fp8: Fp8,
}

/// How fp8 becomes numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fp8 {
    /// By casts, where the device has threads.
    Casts,
    /// By shifts into an `f32` that is smaller by a power of two, whose two halves the caller multiplies to either factor of a
    /// product.
    Shifts,
    /// By tables of bf16 numbers that are smaller by a power of two ([`SMALLER`]), which the other factor makes up for.
    Tables,
}

/// The power of two of [`Fp8::Tables`]: the other factor, a weight times a scale of 2^-109 to 2^56, stays a normal number.
const SMALLER: i32 = 40;

/// A unit of storage on its way to numbers.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// What numbers of even places are made of, and of odd ones: often the same.
    pub halves: [Value; 2],
}

impl Decoder {
    pub fn new(codes: KvCodes, caps: &Caps) -> Decoder {
        let fp8 = if caps.features.has(Feature::Workgroups) { Fp8::Casts } else { Fp8::Shifts };
        Decoder { codes, fp8 }
    }

    /// The same, with fp8 as bf16 numbers in pairs.
    pub fn in_pairs(self) -> Decoder {
        Decoder { fp8: Fp8::Tables, ..self }
    }

    /// What the other factor is multiplied by before, and the product after; their product makes up for the shift.
    pub fn factors(&self) -> (f32, f32) {
        let power = |n: i32| 2f32.powi(n);
        match (self.codes.code, self.fp8) {
            (KvCode::E4m3fn, Fp8::Shifts) => (power(60), power(60)),
            (KvCode::E4m3fnuz, Fp8::Shifts) => (power(60), power(59)),
            (KvCode::E5m2, Fp8::Shifts) => (power(56), power(56)),
            (KvCode::E4m3fn | KvCode::E4m3fnuz | KvCode::E5m2, Fp8::Tables) => (power(SMALLER), 1.0),
            _ => (1.0, 1.0),
        }
    }

    /// Whether a unit of small floats in `lanes` lanes is opened by halves: the even bytes and the odd ones, each as the upper
    /// 16 bits of two `f32`.
    fn halves(&self, lanes: u8) -> bool {
        self.fp8 != Fp8::Casts && lanes > 1 && self.codes.code.float().is_some_and(|float| float.bits() == 8)
    }

    /// How far down the sign of a small float is carried to leave room for the exponent of `f32`, and the bits of the upper 16
    /// that are its own.
    fn upper(&self) -> (i64, u16) {
        if self.codes.code == KvCode::E5m2 { (3, 0x8fe0) } else { (4, 0x87f0) }
    }

    /// The type of a unit of storage in `lanes` lanes.
    pub fn unit_type(&self, lanes: u8) -> Type {
        match self.codes.code {
            KvCode::F16 => Type::vector(Scalar::F16, lanes),
            KvCode::Bf16 => Type::vector(Scalar::Bf16, lanes),
            _ => Type::vector(Scalar::I32, lanes),
        }
    }

    /// A unit of storage as [`Decoder::number`] takes it.
    pub fn open(&self, b: &mut Builder, unit: Value) -> Opened {
        let ty = b.ty(unit);
        if self.fp8 == Fp8::Tables && self.halves(ty.lanes) {
            return self.looked_up(b, unit);
        }
        if self.halves(ty.lanes) {
            let (down, mask) = self.upper();
            let odd = b.bitcast(unit, Type::vector(Scalar::I16, 2 * ty.lanes));
            let even = b.bin_imm(BinOp::Shl, odd, 8);
            let halves = [even, odd].map(|half| {
                let half = b.bin_imm(BinOp::ShrS, half, down);
                let half = b.bin_imm(BinOp::And, half, i64::from(mask));
                b.bitcast(half, ty)
            });
            return Opened { halves };
        }
        let whole = match self.codes.code {
            KvCode::E4m3fn | KvCode::E4m3fnuz | KvCode::E5m2 if self.fp8 == Fp8::Casts => {
                let scalar = scalar_of(self.codes.code.float().unwrap_or(DType::E4m3fn));
                let bytes = b.bitcast(unit, Type::vector(scalar, 4 * b.ty(unit).lanes));
                b.cast(CastOp::Float, bytes, Scalar::F32)
            }
            _ => unit,
        };
        Opened { halves: [whole; 2] }
    }

    /// A unit of fp8 by tables: the low bytes of all numbers, then the high ones, brought together within 16 bytes at a time, which
    /// takes one instruction each: the first half holds the numbers of the first two lanes of every four, a pair to a lane, the
    /// second half those of the other two ([`gathered`]).
    fn looked_up(&self, b: &mut Builder, unit: Value) -> Opened {
        let ty = b.ty(unit);
        let codes = b.bitcast(unit, Type::vector(Scalar::I8, 4 * ty.lanes));
        let float = self.codes.code.float().unwrap_or(DType::E4m3fn);
        // No code that is stored is NaN or infinite; but past the last token lies anything, which has a weight of 0.
        let number = |code| Some(float.decode(code)).filter(|number| number.is_finite()).unwrap_or(0.0);
        let smaller = |code| DType::Bf16.encode(number(code) * 2f64.powi(-SMALLER));
        let numbers: Vec<u64> = (0..128).map(|code| smaller(code).into()).collect();
        let [low, high] = [0, 8].map(|shift| {
            let [low, high] = [&numbers[..64], &numbers[64..]].map(|half| {
                let bytes: Vec<u64> = half.iter().map(|number| number >> shift & 0xff).collect();
                b.lanes(Scalar::I8, &bytes)
            });
            b.push(b.ty(codes), Inst::PermuteLong { low, high, index: codes })
        });
        let sign = b.bin_imm(BinOp::And, codes, 0x80);
        let high = b.bin(BinOp::Or, sign, high);
        let halves = [0, 8].map(|first| {
            let picks = |byte: u8| byte / 16 * 16 + first + byte % 16 / 2 + byte % 2 * 4 * ty.lanes;
            let half = b.swizzle(low, high, &(0..4 * ty.lanes).map(picks).collect::<Vec<u8>>());
            b.bitcast(half, ty)
        });
        Opened { halves }
    }

    /// Number `j` of a unit; the bias of nibbles is still in it. One is made at a time, right before it is multiplied: all of
    /// a unit at once leave too few registers for the sums.
    pub fn number(&self, b: &mut Builder, opened: Opened, j: usize) -> Value {
        let opened = opened.halves[j % 2];
        let ty = b.ty(opened);
        let floats = ty.with_scalar(Scalar::F32);
        let signed = !self.codes.asymmetric;
        let bit = 8 * j as u8;
        match self.codes.code {
            KvCode::F16 | KvCode::Bf16 => b.cast(CastOp::Float, opened, Scalar::F32),
            KvCode::Int8 => b.unpack(opened, bit, 8, signed, floats),
            KvCode::Int4 => b.unpack(opened, bit % 32 + bit / 32 * 4, 4, false, floats),
            KvCode::E4m3fn | KvCode::E4m3fnuz | KvCode::E5m2 if self.halves(ty.lanes) => {
                let high = 0xffff_0000;
                let bits = if j < 2 { b.bin_imm(BinOp::Shl, opened, 16) } else { b.bin_imm(BinOp::And, opened, high) };
                b.bitcast(bits, floats)
            }
            KvCode::E4m3fn | KvCode::E4m3fnuz | KvCode::E5m2 if self.fp8 == Fp8::Shifts => {
                let (down, mask) = self.upper();
                let top = if j == 3 { opened } else { b.bin_imm(BinOp::Shl, opened, 24 - 8 * j as i64) };
                let bits = b.bin_imm(BinOp::ShrS, top, down);
                let bits = b.bin_imm(BinOp::And, bits, i64::from(mask) << 16);
                b.bitcast(bits, floats)
            }
            KvCode::E4m3fn | KvCode::E4m3fnuz | KvCode::E5m2 => {
                let lanes = ty.lanes / 4;
                let picks: Vec<u8> = (0..lanes).map(|lane| 4 * lane + j as u8).collect();
                if lanes == 1 { b.extract(opened, j as u8) } else { b.swizzle(opened, opened, &picks) }
            }
        }
    }
}

/// Sums of pairs that come apart as [`Fp8::Tables`] leaves them, lane by lane again.
pub fn gathered(b: &mut Builder, [first, second]: [Value; 2]) -> Value {
    let lanes = b.ty(first).lanes;
    let [even, odd] = [0, 1].map(|pair| {
        let picks: Vec<u8> = (0..lanes).map(|lane| lane / 4 * 4 + lane % 2 * 2 + pair + lane % 4 / 2 * lanes).collect();
        b.swizzle(first, second, &picks)
    });
    b.add(even, odd)
}

/// bf16 bits, one per lane, as `f32`.
pub fn bf16(b: &mut Builder, memory: Memory, place: Value, offset: usize, lanes: u8) -> Value {
    let bits = b.load(Type::vector(Scalar::I16, lanes), at(memory, Some(place), offset), 2);
    let wide = b.cast(CastOp::ExtendU, bits, Scalar::I32);
    let high = b.bin_imm(BinOp::Shl, wide, 16);
    b.bitcast(high, Type::vector(Scalar::F32, lanes))
}

/// Bytes, one per lane, as `f32`.
pub fn bytes(b: &mut Builder, memory: Memory, place: Value, offset: usize, lanes: u8) -> Value {
    let bits = b.load(Type::vector(Scalar::I8, lanes), at(memory, Some(place), offset), 1);
    let wide = b.cast(CastOp::ExtendU, bits, Scalar::I32);
    b.cast(CastOp::IntToFloatS, wide, Scalar::F32)
}

/// `2^x` for `x` up to 0 (a little above does no harm): within 2 units in the last place from 2^-125 on, 0 below; NaN stays.
/// Made of instructions that every target rounds alike, so that all of them agree.
pub fn power_of_two(b: &mut Builder, x: Value) -> Value {
    let ty = b.ty(x);
    let least = b.f32(ty.lanes, -125.0);
    let zero = b.f32(ty.lanes, 0.0);
    let gone = b.cmp(CmpOp::Lt, x, least);
    let x = b.bin(BinOp::Max, x, least);
    let (n, sum) = exp2_parts(b, x);
    let n = b.bin_imm(BinOp::Shl, n, 23);
    let bits = b.bitcast(sum, ty.with_scalar(Scalar::I32));
    let bits = b.add(bits, n);
    let power = b.bitcast(bits, ty);
    b.select(gone, zero, power)
}

/// `2^x` for `x` up to 0 in fewer instructions than [`power_of_two`], where a sum is rounded as it stands: on a processor.
/// Compilers of shaders may take a number that is added and subtracted for nothing. Within 2 units in the last place from
/// 2^-125 on, at most 2^-125 below, 0 from 2^-128 on; NaN stays.
pub fn power_of_two_here(b: &mut Builder, x: Value) -> Value {
    power_by(b, x, exp2_series)
}

/// [`power_of_two_here`] to within 3e-6 of it, exact for 0: for what is rounded to 8 bits next.
pub fn power_of_two_about(b: &mut Builder, x: Value) -> Value {
    power_by(b, x, exp2_short)
}

/// `2^x`, its fraction by a series that takes a factor.
fn power_by(b: &mut Builder, x: Value, series: fn(&mut Builder, Value, f32) -> Value) -> Value {
    let ty = b.ty(x);
    // The exponent of the nearest power is 0 here, all of whose bits are: no mask for what weighs nothing.
    let least = b.f32(ty.lanes, -128.0);
    let gone = b.cmp(CmpOp::Lt, x, least);
    let x = b.select(gone, least, x);
    // The low bits of the sum are the nearest integer plus 128.
    let shift = b.f32(ty.lanes, SHIFT + 128.0);
    let moved = b.add(x, shift);
    let whole = b.bin(BinOp::Sub, moved, shift);
    let rest = b.bin(BinOp::Sub, x, whole);
    // Half of the series, since 128 is one more than the bias of exponents.
    let sum = series(b, rest, 0.5);
    let bits = b.bitcast(moved, ty.with_scalar(Scalar::I32));
    let bits = b.bin_imm(BinOp::Shl, bits, 23);
    let power = b.bitcast(bits, ty);
    b.mul(sum, power)
}

/// A number of less than 2^110 as the nearest one that bf16 has; NaN stays.
pub fn nearest_bf16(b: &mut Builder, x: Value) -> Value {
    // The sum's last digit is 2^16 times that of `x`; what is left without the larger part is `x` to that digit.
    let lanes = b.ty(x).lanes;
    let (up, down) = (b.f32(lanes, 65536.0), b.f32(lanes, -65536.0));
    let sum = b.fma(x, up, x);
    b.fma(x, down, sum)
}

/// `format::kv::codes::sanitize`.
pub fn sanitize(b: &mut Builder, codes: &KvCodes, x: Value) -> Value {
    let limit = if codes.code.is_plain() { codes.top() } else { LARGEST };
    let (high, low, smallest, zero) = (b.f32(1, limit), b.f32(1, -limit), b.f32(1, SMALLEST), b.f32(1, 0.0));
    let clamped = b.bin(BinOp::Min, x, high);
    let clamped = b.bin(BinOp::Max, clamped, low);
    let size = b.un(UnOp::Abs, x);
    let some = b.cmp(CmpOp::Le, smallest, size);
    b.select(some, clamped, zero)
}

/// `format::kv::codes::scale_up`: the bits, `i32`, and the number.
pub fn scale_up(b: &mut Builder, x: Value) -> (Value, Value) {
    let bits = b.bitcast(x, Scalar::I32);
    directed(b, bits, 0xffff)
}

/// `format::kv::codes::offset_down`.
pub fn offset_down(b: &mut Builder, x: Value) -> (Value, Value) {
    let bits = b.bitcast(x, Scalar::I32);
    let zero = b.int(Scalar::I32, 0);
    let negative = b.cmp(CmpOp::LtS, bits, zero);
    let more = b.bin_imm(BinOp::Add, bits, 0xffff);
    let bits = b.select(negative, more, bits);
    directed(b, bits, 0)
}

fn directed(b: &mut Builder, bits: Value, add: i64) -> (Value, Value) {
    let bits = if add == 0 { bits } else { b.bin_imm(BinOp::Add, bits, add) };
    let short = b.bin_imm(BinOp::ShrU, bits, 16);
    let back = b.bin_imm(BinOp::Shl, short, 16);
    (short, b.bitcast(back, Scalar::F32))
}

/// `format::kv::codes::inverse`.
pub fn inverse(b: &mut Builder, scale: Value) -> Value {
    let (least, one, zero) = (b.f32(1, 1.0 / (1u128 << 120) as f32), b.f32(1, 1.0), b.f32(1, 0.0));
    let quotient = b.bin(BinOp::Div, one, scale);
    let some = b.cmp(CmpOp::Le, least, scale);
    b.select(some, quotient, zero)
}

/// `format::kv::codes::code_of`: an `i32`.
pub fn code_of(b: &mut Builder, codes: &KvCodes, x: Value, inverse: Value, offset: Value) -> Value {
    let small = |b: &mut Builder, x: Value, scalar: Scalar| {
        let narrow = b.cast(CastOp::Float, x, scalar);
        let bits = b.bitcast(narrow, if scalar.bits() == 8 { Scalar::I8 } else { Scalar::I16 });
        b.cast(CastOp::ExtendU, bits, Scalar::I32)
    };
    match codes.code {
        KvCode::F16 => small(b, x, Scalar::F16),
        KvCode::Bf16 => small(b, x, Scalar::Bf16),
        KvCode::Int8 | KvCode::Int4 => {
            let x = if codes.asymmetric { b.bin(BinOp::Sub, x, offset) } else { x };
            let scaled = b.mul(x, inverse);
            let rounded = b.un(UnOp::Nearest, scaled);
            let low = b.f32(1, if codes.asymmetric { 0.0 } else { -codes.top() });
            let high = b.f32(1, codes.top());
            let clamped = b.bin(BinOp::Max, rounded, low);
            let clamped = b.bin(BinOp::Min, clamped, high);
            let code = b.cast(CastOp::FloatToIntS, clamped, Scalar::I32);
            let code = if codes.bias() == 0.0 { code } else { b.bin_imm(BinOp::Add, code, codes.bias() as i64) };
            b.bin_imm(BinOp::And, code, if codes.code == KvCode::Int8 { 0xff } else { 0xf })
        }
        KvCode::E4m3fn | KvCode::E4m3fnuz | KvCode::E5m2 => {
            let scaled = b.mul(x, inverse);
            small(b, scaled, scalar_of(codes.code.float().unwrap_or(DType::E4m3fn)))
        }
    }
}

/// Scale and offset of one token's channel as scalars: `statics` is the caller's buffer, `base` the record's first byte.
#[derive(Clone, Copy, Debug)]
pub struct Scales {
    pub side: Side,
    pub pool: Memory,
    pub statics: Option<Memory>,
}

impl Scales {
    /// The caller's scale and offset of a head; offset 0 where symmetric.
    pub fn given(&self, b: &mut Builder, part: &Part, head: Value) -> (Value, Value) {
        let zero = b.f32(1, 0.0);
        let Some(memory) = self.statics else { return (zero, zero) };
        let place = times(b, head, 16);
        let first = if self.side == Side::K { 0 } else { 8 };
        let scale = b.load(Scalar::F32, at(memory, Some(place), first), 4);
        if !part.codes.asymmetric {
            return (scale, zero);
        }
        (scale, b.load(Scalar::F32, at(memory, Some(place), first + 4), 4))
    }

    /// Scale (both levels) and offset of a token and group (or channel).
    pub fn of(
        &self,
        b: &mut Builder,
        layout: &KvLayout,
        base: Value,
        head: Value,
        token: Value,
        group: Value,
    ) -> (Value, Value) {
        let part = layout.part(self.side);
        let zero = b.f32(1, 0.0);
        if part.codes.code.is_plain() {
            return (b.f32(1, 1.0), zero);
        }
        if part.codes.is_static() {
            return self.given(b, part, head);
        }
        let index = |b: &mut Builder, two_level: bool| index(b, layout, self.side, token, group, two_level);
        let first = index(b, part.codes.two_level);
        let first = times(b, first, 2);
        let place = b.add(base, first);
        let mut scale = bf16(b, self.pool, place, part.scale, 1);
        if part.codes.two_level {
            let inner = index(b, false);
            let place = b.add(base, inner);
            let inner = bytes(b, self.pool, place, part.inner, 1);
            scale = b.mul(scale, inner);
        }
        let offset = if part.codes.asymmetric { bf16(b, self.pool, place, part.offset, 1) } else { zero };
        (scale, offset)
    }
}

/// Number of the scale of a token and group in its section; `outer` asks for the first of two levels.
pub fn index(b: &mut Builder, layout: &KvLayout, side: Side, token: Value, group: Value, outer: bool) -> Value {
    use crate::format::kv::KvPer;
    match layout.part(side).codes.per {
        KvPer::Channel => group,
        KvPer::Group(_) if !outer => {
            let before = times(b, group, layout.page);
            b.add(before, token)
        }
        KvPer::Group(_) | KvPer::Tensor | KvPer::Head | KvPer::Token => token,
    }
}

/// Byte (from the record's first) of the unit that holds a token's channel; both `i64`.
pub fn unit_place(b: &mut Builder, layout: &KvLayout, side: Side, token: Value, channel: Value) -> Value {
    let part = layout.part(side);
    let (per, size) = (part.codes.code.per_unit(), part.codes.code.unit_bytes());
    let (lane, along) = match side {
        Side::K => (token, channel),
        Side::V => (channel, token),
    };
    let (block, lane) = split(b, lane, part.block);
    let block = times(b, block, layout.units(side));
    let unit = b.bin_imm(BinOp::ShrU, along, per.trailing_zeros() as i64);
    let unit = b.add(block, unit);
    let before = times(b, unit, part.block);
    let unit = b.add(before, lane);
    let place = times(b, unit, size);
    plus(b, place, part.code)
}

/// First byte of a head of a page.
pub fn record(b: &mut Builder, layout: &KvLayout, page: Value, head: Value) -> Value {
    let page = times(b, page, layout.page_bytes());
    let head = times(b, head, layout.record);
    b.add(page, head)
}

/// The bit where code `within` (`i64`) of a unit starts, `i32`.
pub fn bit_of(b: &mut Builder, per: usize, within: Value) -> Value {
    let within = b.cast(CastOp::Truncate, within, Scalar::I32);
    match per {
        8 => {
            let byte = b.bin_imm(BinOp::And, within, 3);
            let byte = b.bin_imm(BinOp::Shl, byte, 3);
            let half = b.bin_imm(BinOp::And, within, 4);
            b.bin(BinOp::Or, byte, half)
        }
        _ => b.bin_imm(BinOp::Shl, within, 3),
    }
}

/// The bits of a unit of codes before code `within` (`i64`), as a mask, `i32`.
pub fn bits_before(b: &mut Builder, per: usize, within: Value) -> Value {
    let ones = |b: &mut Builder, count: Value| {
        let bits = times(b, count, 8);
        let one = int(b, 1);
        let power = b.bin(BinOp::Shl, one, bits);
        let mask = b.bin_imm(BinOp::Add, power, -1);
        b.cast(CastOp::Truncate, mask, Scalar::I32)
    };
    if per == 4 {
        return ones(b, within);
    }
    let four = int(b, 4);
    let low = b.bin(BinOp::MinS, within, four);
    let high = b.bin(BinOp::MaxS, within, four);
    let high = b.bin_imm(BinOp::Add, high, -4);
    let (low, high) = (ones(b, low), ones(b, high));
    let low = b.bin_imm(BinOp::And, low, 0x0f0f_0f0f);
    let high = b.bin_imm(BinOp::And, high, 0xf0f0_f0f0);
    b.bin(BinOp::Or, low, high)
}
