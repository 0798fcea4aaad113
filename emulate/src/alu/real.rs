//! Float types behind one face, with rounding, flushing, saturation and NaN rules in one place.

use super::{Options, Slot};
use crate::numeric::{self, BF16, F16, Float, Rounding};

/// A half.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Half(pub u16);
/// A bfloat16.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Brain(pub u16);

impl Slot for Half {
    fn get(bits: u64) -> Self {
        Half(bits as u16)
    }
    fn put(self) -> u64 {
        u64::from(self.0)
    }
}

impl Slot for Brain {
    fn get(bits: u64) -> Self {
        Brain(bits as u16)
    }
    fn put(self) -> u64 {
        u64::from(self.0)
    }
}

/// The value of a half, without branches for the common case.
pub(crate) fn half_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff);
    let sign = u32::from(bits & 0x8000) << 16;
    if magnitude >= 0x7c00 {
        return f32::from_bits(sign | if magnitude == 0x7c00 { 0x7f80_0000 } else { 0x7fff_ffff });
    }
    // Multiplying by 2^112 moves the exponent and makes subnormals normal, exactly.
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits(0x7780_0000);
    f32::from_bits(sign | scaled.to_bits())
}

/// Nearest half of an `f64` that was rounded to odd.
pub(crate) fn half_from_f64(x: f64) -> u16 {
    let bits = x.to_bits();
    let field = (bits >> 52 & 0x7ff) as i32 - 1023;
    if !(-14..15).contains(&field) {
        return F16.round(x, Rounding::Nearest, false) as u16;
    }
    let sign = (bits >> 48) as u16 & 0x8000;
    let mantissa = bits & ((1 << 52) - 1);
    let (whole, rest) = ((mantissa >> 42) as u16, mantissa & ((1 << 42) - 1));
    let half = 1u64 << 41;
    let up = rest > half || rest == half && whole & 1 == 1;
    sign | ((((field + 15) as u16) << 10) + whole + u16::from(up))
}

/// Arithmetic of one float type.
pub(crate) trait Real: Slot {
    fn add(self, b: Self, o: &Options) -> Self;
    fn mul(self, b: Self, o: &Options) -> Self;
    fn fma(self, b: Self, c: Self, o: &Options) -> Self;
    fn neg(self, o: &Options) -> Self;
    fn abs(self, o: &Options) -> Self;
    fn value(self) -> f64;
    fn negative(self) -> bool;
    fn nan() -> Self;
    /// Inputs and results under `.ftz`.
    fn flushed(self, o: &Options) -> Self;

    fn sub(self, b: Self, o: &Options) -> Self {
        self.add(b.neg(&Options::default()), o)
    }

    fn pick(self, b: Self, o: &Options, greater: bool) -> Self {
        let (x, y) = (self.flushed(o), b.flushed(o));
        let (mut x, mut y, sign) = (x, y, x.negative() != y.negative());
        if o.xorsign {
            (x, y) = (x.abs(&Options::default()), y.abs(&Options::default()));
        }
        let (p, q) = (x.value(), y.value());
        let found = if p.is_nan() || q.is_nan() {
            if o.nan || p.is_nan() && q.is_nan() {
                return Self::nan();
            }
            if p.is_nan() { y } else { x }
        } else if p == q {
            if x.negative() != greater { x } else { y }
        } else if (p < q) != greater {
            x
        } else {
            y
        };
        if o.xorsign && sign { found.neg(&Options::default()) } else { found }
    }
}

impl Real for f32 {
    fn flushed(self, o: &Options) -> f32 {
        if o.ftz { numeric::flush(self) } else { self }
    }
    fn add(self, b: f32, o: &Options) -> f32 {
        if o.round == Rounding::Nearest && !o.ftz && !o.sat {
            return self + b;
        }
        let (a, b) = (self.flushed(o), b.flushed(o));
        finish(numeric::to_f32(numeric::add_odd(f64::from(a), f64::from(b), o.round), o.round), o)
    }
    fn mul(self, b: f32, o: &Options) -> f32 {
        if o.round == Rounding::Nearest && !o.ftz && !o.sat {
            return self * b;
        }
        let (a, b) = (self.flushed(o), b.flushed(o));
        finish(numeric::to_f32(f64::from(a) * f64::from(b), o.round), o)
    }
    fn fma(self, b: f32, c: f32, o: &Options) -> f32 {
        if o.round == Rounding::Nearest && !o.ftz && !o.sat {
            return fused(self, b, c);
        }
        let (a, b, c) = (self.flushed(o), b.flushed(o), c.flushed(o));
        finish(numeric::to_f32(numeric::fma_odd(f64::from(a), f64::from(b), f64::from(c), o.round), o.round), o)
    }
    fn neg(self, o: &Options) -> f32 {
        -self.flushed(o)
    }
    fn abs(self, o: &Options) -> f32 {
        self.flushed(o).abs()
    }
    fn value(self) -> f64 {
        f64::from(self)
    }
    fn negative(self) -> bool {
        self.is_sign_negative()
    }
    fn nan() -> f32 {
        f32::NAN
    }
}

/// A fused multiply-add through `f64`: the product is exact there, and the sum is rounded to odd only where the result
/// may be a tie.
#[inline(always)]
fn fused(a: f32, b: f32, c: f32) -> f32 {
    let product = f64::from(a) * f64::from(b);
    let sum = product + f64::from(c);
    let bits = sum.to_bits();
    // Bits below an f32 decide the second rounding; they mislead only where they say "tie", or where the result is
    // subnormal and the tie lies elsewhere.
    let tie = bits & 0x1fff_ffff == 0x1000_0000;
    let small = bits & 0x7ff0_0000_0000_0000 < 0x3810_0000_0000_0000;
    if tie || small {
        return numeric::add_odd(product, f64::from(c), Rounding::Nearest) as f32;
    }
    sum as f32
}

/// Flush and saturation of an `f32` result.
pub(crate) fn finish(x: f32, o: &Options) -> f32 {
    let x = x.flushed(o);
    if !o.sat {
        x
    } else if x.is_nan() || x <= 0.0 {
        0.0
    } else {
        x.min(1.0)
    }
}

impl Real for f64 {
    fn flushed(self, _o: &Options) -> f64 {
        self
    }
    fn add(self, b: f64, o: &Options) -> f64 {
        if o.round == Rounding::Nearest { self + b } else { numeric::add64(self, b, o.round) }
    }
    fn mul(self, b: f64, o: &Options) -> f64 {
        if o.round == Rounding::Nearest { self * b } else { numeric::mul64(self, b, o.round) }
    }
    fn fma(self, b: f64, c: f64, o: &Options) -> f64 {
        numeric::fma64(self, b, c, o.round)
    }
    fn neg(self, _o: &Options) -> f64 {
        -self
    }
    fn abs(self, _o: &Options) -> f64 {
        f64::abs(self)
    }
    fn value(self) -> f64 {
        self
    }
    fn negative(self) -> bool {
        self.is_sign_negative()
    }
    fn nan() -> f64 {
        f64::NAN
    }
}

fn small_finish(format: Float, bits: u16, o: &Options) -> u16 {
    let sign = 1u16 << 15;
    let magnitude = bits & !sign;
    let one = if format == F16 { 0x3c00 } else { 0x3f80 };
    let infinity = format.largest() as u16 + 1;
    let bits = if o.ftz && magnitude < 1 << format.fraction { bits & sign } else { bits };
    if o.sat {
        return if magnitude > infinity || bits & sign != 0 { 0 } else { bits.min(one) };
    }
    if o.relu && magnitude <= infinity && bits & sign != 0 { 0 } else { bits }
}

macro_rules! small_real {
    ($t:ident, $format:expr, $value:expr, $round:expr) => {
        impl Real for $t {
            fn flushed(self, o: &Options) -> $t {
                if o.ftz && self.0 & 0x7fff < 1 << $format.fraction { $t(self.0 & 0x8000) } else { self }
            }
            fn add(self, b: $t, o: &Options) -> $t {
                let (a, b) = (self.flushed(o), b.flushed(o));
                $t(small_finish($format, $round(numeric::add_odd(a.value(), b.value(), o.round)), o))
            }
            fn mul(self, b: $t, o: &Options) -> $t {
                let (a, b) = (self.flushed(o), b.flushed(o));
                $t(small_finish($format, $round(a.value() * b.value()), o))
            }
            fn fma(self, b: $t, c: $t, o: &Options) -> $t {
                let (a, b, c) = (self.flushed(o), b.flushed(o), c.flushed(o));
                $t(small_finish($format, $round(numeric::fma_odd(a.value(), b.value(), c.value(), o.round)), o))
            }
            fn neg(self, o: &Options) -> $t {
                $t(self.flushed(o).0 ^ 0x8000)
            }
            fn abs(self, o: &Options) -> $t {
                $t(self.flushed(o).0 & 0x7fff)
            }
            fn value(self) -> f64 {
                $value(self.0)
            }
            fn negative(self) -> bool {
                self.0 & 0x8000 != 0
            }
            fn nan() -> $t {
                $t(0x7fff)
            }
        }
    };
}
small_real!(Half, F16, |bits| f64::from(half_to_f32(bits)), half_from_f64);
small_real!(Brain, BF16, |bits| f64::from(f32::from_bits(u32::from(bits) << 16)), |x| {
    BF16.round(x, Rounding::Nearest, false) as u16
});
