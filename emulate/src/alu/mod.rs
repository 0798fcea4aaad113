//! Lane arithmetic: an opcode and its modifiers pick one function over the 32 lanes of a warp.
//!
//! Registers are 64-bit slots; a function reads as many low bits as its type has and writes the rest zero, or, for
//! narrow signed results, sign-extended. Nothing here faults: division by zero gives what hardware gives.

pub(crate) mod compare;
pub(crate) mod convert;
mod float;
mod integer;
mod logic;
pub(crate) mod real;

use crate::ast::{Kind, Type};
use crate::numeric::Rounding;

/// Lanes of a warp.
pub const WARP: usize = 32;

/// One register of a warp.
pub type Lanes = [u64; WARP];

/// What modifiers say beyond the choice of a function.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// How results are rounded.
    pub round: Rounding,
    /// Subnormal inputs and results become zero.
    pub ftz: bool,
    /// `.sat` or `.satfinite`.
    pub sat: bool,
    /// `.relu`.
    pub relu: bool,
    /// `.NaN`.
    pub nan: bool,
    /// `.xorsign.abs`.
    pub xorsign: bool,
    /// A look-up table or mode number.
    pub code: u32,
}

pub(crate) type Fn1 = fn(&mut Lanes, &Lanes, &Options);
pub(crate) type Fn2 = fn(&mut Lanes, &Lanes, &Lanes, &Options);
pub(crate) type Fn3 = fn(&mut Lanes, &Lanes, &Lanes, &Lanes, &Options);
pub(crate) type Fn4 = fn(&mut Lanes, [&Lanes; 4], &Options);

/// A function over lanes by its number of operands.
#[derive(Clone, Copy)]
pub(crate) enum Lane {
    /// One operand.
    One(Fn1),
    /// Two operands.
    Two(Fn2),
    /// Three operands.
    Three(Fn3),
    /// Four operands.
    Four(Fn4),
}

/// How a Rust type lies in a register slot.
pub(crate) trait Slot: Copy {
    fn get(bits: u64) -> Self;
    fn put(self) -> u64;
}

macro_rules! integer_slot {
    ($($t:ty),*) => { $(impl Slot for $t {
        fn get(bits: u64) -> Self { bits as $t }
        fn put(self) -> u64 { self as u64 }
    })* };
}
integer_slot!(u8, u16, u32, u64, i8, i16, i32, i64);

impl Slot for f32 {
    fn get(bits: u64) -> Self {
        f32::from_bits(bits as u32)
    }
    fn put(self) -> u64 {
        u64::from(if self.is_nan() { 0x7fff_ffff } else { self.to_bits() })
    }
}

impl Slot for f64 {
    fn get(bits: u64) -> Self {
        f64::from_bits(bits)
    }
    fn put(self) -> u64 {
        self.to_bits()
    }
}

impl Slot for bool {
    fn get(bits: u64) -> Self {
        bits & 1 == 1
    }
    fn put(self) -> u64 {
        u64::from(self)
    }
}

macro_rules! one {
    ($ta:ty, |$a:ident, $o:ident| $e:expr) => {
        $crate::alu::Lane::One(|d, a, $o| {
            for lane in 0..$crate::alu::WARP {
                let $a = <$ta as $crate::alu::Slot>::get(a[lane]);
                d[lane] = $crate::alu::Slot::put($e);
            }
        })
    };
}
macro_rules! two {
    ($ta:ty, $tb:ty, |$a:ident, $b:ident, $o:ident| $e:expr) => {
        $crate::alu::Lane::Two(|d, a, b, $o| {
            for lane in 0..$crate::alu::WARP {
                let $a = <$ta as $crate::alu::Slot>::get(a[lane]);
                let $b = <$tb as $crate::alu::Slot>::get(b[lane]);
                d[lane] = $crate::alu::Slot::put($e);
            }
        })
    };
}
macro_rules! three {
    ($ta:ty, $tb:ty, $tc:ty, |$a:ident, $b:ident, $c:ident, $o:ident| $e:expr) => {
        $crate::alu::Lane::Three(|d, a, b, c, $o| {
            for lane in 0..$crate::alu::WARP {
                let $a = <$ta as $crate::alu::Slot>::get(a[lane]);
                let $b = <$tb as $crate::alu::Slot>::get(b[lane]);
                let $c = <$tc as $crate::alu::Slot>::get(c[lane]);
                d[lane] = $crate::alu::Slot::put($e);
            }
        })
    };
}
pub(crate) use {one, three, two};

/// An instruction's modifiers, each to be taken once: what nobody takes is an error.
pub(crate) struct Modifiers<'s> {
    left: Vec<&'s str>,
}

impl<'s> Modifiers<'s> {
    pub(crate) fn new(all: &'s [String]) -> Self {
        Modifiers { left: all.iter().map(String::as_str).collect() }
    }

    /// Takes a modifier if it is there.
    pub(crate) fn take(&mut self, name: &str) -> bool {
        let found = self.left.iter().position(|m| *m == name);
        found.map(|at| self.left.remove(at)).is_some()
    }

    /// Takes the first of these that is there.
    pub(crate) fn any(&mut self, names: &[&'static str]) -> Option<&'static str> {
        names.iter().find(|name| self.take(name)).copied()
    }

    /// Takes the first type among the modifiers.
    pub(crate) fn ty(&mut self) -> Result<Type, String> {
        match self.left.iter().position(|m| Type::parse(m).is_some()) {
            Some(at) => Type::parse(self.left.remove(at)).ok_or_else(|| "no type".to_string()),
            None => Err("this instruction names no type that this machine knows".into()),
        }
    }

    /// Takes the first modifier, whatever it is.
    pub(crate) fn first(&mut self) -> Option<&'s str> {
        if self.left.is_empty() { None } else { Some(self.left.remove(0)) }
    }

    pub(crate) fn rounding(&mut self) -> Option<Rounding> {
        Some(match self.any(&["rn", "rz", "rm", "rp", "rna"])? {
            "rn" => Rounding::Nearest,
            "rz" => Rounding::Zero,
            "rm" => Rounding::Down,
            "rp" => Rounding::Up,
            _ => Rounding::Away,
        })
    }

    /// Complains about modifiers that nobody took.
    pub(crate) fn done(&self) -> Result<(), String> {
        match self.left.first() {
            None => Ok(()),
            Some(m) => Err(format!("modifier `.{m}` is not known to this machine here")),
        }
    }
}

/// Picks the function of an instruction that works on registers alone, and the type of its operands.
pub(crate) fn select(name: &str, modifiers: &mut Modifiers) -> Result<Option<(Lane, Options, Type)>, String> {
    let mut options = Options::default();
    if matches!(name, "cvt" | "cvt.pack") {
        return Ok(Some(convert::select(modifiers)?));
    }
    if let Some(found) = logic::select(name, modifiers, &mut options)? {
        return Ok(Some((found.0, options, found.1)));
    }
    let arithmetic = [
        "add", "sub", "mul", "mad", "fma", "div", "rem", "abs", "neg", "min", "max", "mul24", "mad24", "sad", "rcp",
        "sqrt", "rsqrt", "sin", "cos", "lg2", "ex2", "tanh", "copysign", "testp", "dp4a", "dp2a",
    ];
    if !arithmetic.contains(&name) {
        return Ok(None);
    }
    if let Some(mode) = modifiers.rounding() {
        options.round = mode;
    }
    options.ftz = modifiers.take("ftz");
    options.sat = modifiers.take("sat");
    options.relu = modifiers.take("relu");
    options.nan = modifiers.take("NaN");
    options.xorsign = modifiers.take("xorsign") && modifiers.take("abs");
    if matches!(name, "dp4a" | "dp2a") {
        let (lane, ty) = integer::dot(name, modifiers)?;
        return Ok(Some((lane, options, ty)));
    }
    let ty = modifiers.ty()?;
    let found = match ty.kind {
        Kind::Float | Kind::Bfloat => float::select(name, ty, modifiers, &mut options),
        _ => integer::select(name, ty, modifiers, &mut options),
    };
    found.map(|lane| Some((lane, options, ty)))
}
