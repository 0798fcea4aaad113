//! `cvt`: between integers, floats and the packed small floats.

use super::real::half_to_f32;
use super::{Lane, Lanes, Modifiers, Options, WARP, one};
use crate::ast::{Kind, Type};
use crate::numeric::{self, BF16, E4M3, E5M2, F16, Float, Rounding, TF32};

/// What a register holds, for a conversion.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Sort {
    Integer { bits: u32, signed: bool },
    Single,
    Double,
    Small(Float),
    Pair(Float),
    Bytes(Float),
}

fn sort(word: &str) -> Option<Sort> {
    Some(match word {
        "f32" => Sort::Single,
        "f64" => Sort::Double,
        "f16" => Sort::Small(F16),
        "bf16" => Sort::Small(BF16),
        "tf32" => Sort::Small(TF32),
        "f16x2" => Sort::Pair(F16),
        "bf16x2" => Sort::Pair(BF16),
        "e4m3x2" => Sort::Bytes(E4M3),
        "e5m2x2" => Sort::Bytes(E5M2),
        _ => match Type::parse(word)? {
            Type { kind: Kind::Unsigned, bits, pair: false } => Sort::Integer { bits, signed: false },
            Type { kind: Kind::Signed, bits, pair: false } => Sort::Integer { bits, signed: true },
            _ => return None,
        },
    })
}

fn type_of(sort: Sort) -> Type {
    let make = |kind, bits| Type { kind, bits, pair: false };
    match sort {
        Sort::Integer { bits, signed } => make(if signed { Kind::Signed } else { Kind::Unsigned }, bits),
        Sort::Single => make(Kind::Float, 32),
        Sort::Double => make(Kind::Float, 64),
        Sort::Small(f) if f == F16 => make(Kind::Float, 16),
        Sort::Small(f) if f == BF16 => make(Kind::Bfloat, 16),
        Sort::Small(_) | Sort::Pair(_) => make(Kind::Bits, 32),
        Sort::Bytes(_) => make(Kind::Bits, 16),
    }
}

/// The slot of an integer result.
fn integer(value: i128, bits: u32, signed: bool, saturate: bool) -> u64 {
    let (low, high) =
        if signed { (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1) } else { (0, (1i128 << bits) - 1) };
    let value = if saturate { value.clamp(low, high) } else { value };
    let unused = 64 - bits;
    let raw = (value as u64) << unused;
    if signed { ((raw as i64) >> unused) as u64 } else { raw >> unused }
}

fn read_integer(bits: u64, width: u32, signed: bool) -> i128 {
    let raw = bits << (64 - width);
    if signed { i128::from((raw as i64) >> (64 - width)) } else { i128::from(raw >> (64 - width)) }
}

fn whole(x: f64, mode: Rounding) -> f64 {
    match mode {
        Rounding::Nearest => x.round_ties_even(),
        Rounding::Zero => x.trunc(),
        Rounding::Down => x.floor(),
        Rounding::Up => x.ceil(),
        Rounding::Away => x.round(),
    }
}

/// An exact integer as an `f64` that was rounded to odd.
fn integer_odd(value: i128) -> f64 {
    let near = value as f64;
    let error = value - near as i128;
    if error == 0 || near.to_bits() & 1 == 1 {
        near
    } else if error > 0 {
        near.next_up()
    } else {
        near.next_down()
    }
}

fn double_of_integer(value: i128, mode: Rounding) -> f64 {
    let near = value as f64;
    let error = value - near as i128;
    match mode {
        Rounding::Zero if error != 0 && (error < 0) == (value > 0) => {
            if value > 0 {
                near.next_down()
            } else {
                near.next_up()
            }
        }
        Rounding::Up if error > 0 => near.next_up(),
        Rounding::Down if error < 0 => near.next_down(),
        _ => near,
    }
}

fn read(sort: Sort, bits: u64, o: &Options) -> f64 {
    match sort {
        Sort::Single => {
            let x = f32::from_bits(bits as u32);
            f64::from(if o.ftz { numeric::flush(x) } else { x })
        }
        Sort::Double => f64::from_bits(bits),
        Sort::Small(f) if f == TF32 => f64::from(f32::from_bits(bits as u32)),
        Sort::Small(f) => f.value(bits as u32 & 0xffff),
        Sort::Integer { .. } | Sort::Pair(_) | Sort::Bytes(_) => f64::NAN,
    }
}

fn write(sort: Sort, x: f64, o: &Options) -> u64 {
    let x = if o.relu && x < 0.0 { 0.0 } else { x };
    match sort {
        Sort::Single => {
            let y = super::real::finish(numeric::to_f32(x, o.round), o);
            super::Slot::put(y)
        }
        Sort::Double if x.is_nan() => 0x7fff_ffff_ffff_ffff,
        Sort::Double if o.sat => (if x > 0.0 { x.min(1.0) } else { 0.0 }).to_bits(),
        Sort::Double => x.to_bits(),
        Sort::Small(f) if f == TF32 => {
            u64::from(if x.is_nan() { 0x7fff_ffff } else { f.round(x, o.round, o.sat) << 13 })
        }
        // `.satfinite` came with `code` 1; plain `.sat` clamps to 0 and 1.
        Sort::Small(f) if o.sat && o.code == 0 => {
            u64::from(f.round(if x > 0.0 { x.min(1.0) } else { 0.0 }, o.round, false))
        }
        Sort::Small(f) => u64::from(f.round(x, o.round, o.sat)),
        Sort::Integer { .. } | Sort::Pair(_) | Sort::Bytes(_) => 0,
    }
}

/// Sorts that a lane function needs, packed beside the options.
fn code(sort: Sort) -> u32 {
    match sort {
        Sort::Integer { bits, signed } => bits | u32::from(signed) << 7,
        Sort::Single => 0x100,
        Sort::Double => 0x101,
        Sort::Small(f) => 0x200 | format_code(f),
        Sort::Pair(f) => 0x300 | format_code(f),
        Sort::Bytes(f) => 0x400 | format_code(f),
    }
}

const FORMATS: [Float; 5] = [F16, BF16, TF32, E4M3, E5M2];

fn format_code(f: Float) -> u32 {
    FORMATS.iter().position(|x| *x == f).map_or(0, |at| at as u32)
}

fn decode(code: u32) -> Sort {
    let format = FORMATS[(code & 7) as usize % FORMATS.len()];
    match code >> 8 {
        0 => Sort::Integer { bits: code & 0x7f, signed: code & 0x80 != 0 },
        1 => {
            if code & 1 == 1 {
                Sort::Double
            } else {
                Sort::Single
            }
        }
        2 => Sort::Small(format),
        3 => Sort::Pair(format),
        _ => Sort::Bytes(format),
    }
}

fn scalar(from: Sort, to: Sort, bits: u64, o: &Options, integral: bool) -> u64 {
    match (from, to) {
        (Sort::Integer { bits: w, signed: s }, Sort::Integer { bits: v, signed: t }) => {
            integer(read_integer(bits, w, s), v, t, o.sat)
        }
        (Sort::Integer { bits: w, signed: s }, Sort::Double) => {
            double_of_integer(read_integer(bits, w, s), o.round).to_bits()
        }
        (Sort::Integer { bits: w, signed: s }, to) => write(to, integer_odd(read_integer(bits, w, s)), o),
        (from, Sort::Integer { bits: v, signed: t }) => {
            let x = read(from, bits, o);
            // A conversion to an integer always clamps, and NaN becomes 0 but for 64-bit targets from wide floats.
            if x.is_nan() {
                return if v == 64 || from == Sort::Double { 1 << (v - 1) } else { 0 };
            }
            integer(whole(x, o.round) as i128, v, t, true)
        }
        (from, to) => {
            let x = read(from, bits, o);
            write(to, if integral { whole(x, o.round) } else { x }, o)
        }
    }
}

/// Two values into one register: `a` is the high half.
fn pack(from: Sort, to: Sort, a: u64, b: u64, o: &Options) -> u64 {
    let (format, width) = match to {
        Sort::Pair(f) => (f, 16),
        Sort::Bytes(f) => (f, 8),
        _ => return 0,
    };
    let small = |bits: u64| {
        let x = read(from, bits, o);
        let x = if o.relu && x < 0.0 { 0.0 } else { x };
        u64::from(format.round(x, o.round, o.sat))
    };
    small(a) << width | small(b)
}

macro_rules! by_code {
    (|$from:ident, $to:ident, $x:ident, $o:ident| $e:expr) => {
        Lane::One(|d: &mut Lanes, a: &Lanes, $o: &Options| {
            let ($from, $to) = (decode($o.code >> 16), decode($o.code & 0xffff));
            for lane in 0..WARP {
                let $x = a[lane];
                d[lane] = $e;
            }
        })
    };
}

/// Conversions that kernels spend time in.
fn quick(from: Sort, to: Sort, o: &Options) -> Option<Lane> {
    if o.sat || o.ftz || o.relu {
        return None;
    }
    Some(match (from, to) {
        (Sort::Integer { bits: 32, signed: false }, Sort::Integer { bits: 64, .. }) => one!(u32, |a, _o| a),
        (Sort::Integer { bits: 32, signed: true }, Sort::Integer { bits: 64, .. }) => one!(i32, |a, _o| a),
        (Sort::Integer { .. }, Sort::Integer { bits: 32, signed: false }) if width(from) >= 32 => one!(u32, |a, _o| a),
        (Sort::Integer { .. }, Sort::Integer { bits: 16, signed: false }) if width(from) >= 16 => one!(u16, |a, _o| a),
        (Sort::Integer { bits: 32, signed: true }, Sort::Single) if o.round == Rounding::Nearest => {
            one!(i32, |a, _o| a as f32)
        }
        (Sort::Integer { bits: 32, signed: false }, Sort::Single) if o.round == Rounding::Nearest => {
            one!(u32, |a, _o| a as f32)
        }
        (Sort::Small(F16), Sort::Single) => one!(u16, |a, _o| half_to_f32(a)),
        (Sort::Small(BF16), Sort::Single) => one!(u16, |a, _o| f32::from_bits(u32::from(a) << 16)),
        _ => return None,
    })
}

fn width(sort: Sort) -> u32 {
    type_of(sort).bits
}

pub(super) fn select(m: &mut Modifiers) -> Result<(Lane, Options, Type), String> {
    let mut o = Options::default();
    let mut integral = false;
    let mut rounded = false;
    if let Some(mode) = m.rounding() {
        (o.round, rounded) = (mode, true);
    } else if let Some(mode) = m.any(&["rni", "rzi", "rmi", "rpi"]) {
        o.round = match mode {
            "rni" => Rounding::Nearest,
            "rzi" => Rounding::Zero,
            "rmi" => Rounding::Down,
            _ => Rounding::Up,
        };
        integral = true;
    }
    o.ftz = m.take("ftz");
    let finite = m.take("satfinite");
    o.sat = m.take("sat") || finite;
    o.relu = m.take("relu");
    let mut next = || m.first().and_then(sort).ok_or("`cvt` between these types is not known to this machine");
    let (to, from) = (next()?, next()?);
    let float = |s: Sort| !matches!(s, Sort::Integer { .. });
    if float(from) && !float(to) && !integral {
        return Err("a conversion from float to integer needs `.rni`, `.rzi`, `.rmi` or `.rpi`".into());
    }
    let narrows = float(to) && (!float(from) || width(to) < width(from)) && !rounded && !integral;
    if narrows && to != from {
        return Err("this conversion needs a rounding mode".into());
    }
    let ty = type_of(from);
    match (from, to) {
        (Sort::Single, Sort::Pair(_) | Sort::Bytes(_)) => {
            if matches!(to, Sort::Bytes(_)) && !finite {
                return Err("a conversion to 8-bit floats needs `.satfinite`".into());
            }
            o.code = code(to);
            let lane = Lane::Two(|d, a, b, o| {
                let to = decode(o.code);
                for lane in 0..WARP {
                    d[lane] = pack(Sort::Single, to, a[lane], b[lane], o);
                }
            });
            Ok((lane, o, ty))
        }
        (Sort::Pair(F16), Sort::Bytes(_)) => {
            o.code = code(to);
            let lane = Lane::One(|d, a, o| {
                let to = decode(o.code);
                for lane in 0..WARP {
                    d[lane] = pack(Sort::Small(F16), to, a[lane] >> 16, a[lane], o);
                }
            });
            Ok((lane, o, ty))
        }
        (Sort::Bytes(f), Sort::Pair(F16)) => {
            o.code = format_code(f);
            let lane = Lane::One(|d, a, o| {
                let format = FORMATS[o.code as usize];
                for lane in 0..WARP {
                    let half = |s: u32| {
                        let x = format.value((a[lane] >> s) as u32 & 0xff);
                        u64::from(F16.round(if o.relu && x < 0.0 { 0.0 } else { x }, Rounding::Nearest, false))
                    };
                    d[lane] = half(0) | half(8) << 16;
                }
            });
            Ok((lane, o, ty))
        }
        (Sort::Pair(_) | Sort::Bytes(_), _) | (_, Sort::Pair(_) | Sort::Bytes(_)) => {
            Err("this packed conversion is not known to this machine".into())
        }
        _ => {
            if let Some(lane) = quick(from, to, &o) {
                return Ok((lane, o, ty));
            }
            if finite && !matches!(to, Sort::Small(_)) {
                return Err("`.satfinite` is not known here".into());
            }
            o.code = code(from) << 16 | code(to);
            let lane = match (integral, finite) {
                (true, _) => by_code!(|from, to, x, o| scalar(from, to, x, o, true)),
                (false, false) => by_code!(|from, to, x, o| scalar(from, to, x, &Options { code: 0, ..*o }, false)),
                (false, true) => by_code!(|from, to, x, o| scalar(from, to, x, &Options { code: 1, ..*o }, false)),
            };
            Ok((lane, o, ty))
        }
    }
}
