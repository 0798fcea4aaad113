//! Float arithmetic: exact operations under every rounding mode, and approximations as the nearest result.

use super::real::{Brain, Half, Real, finish};
use super::{Lane, Modifiers, Options, WARP, one, two};
use crate::ast::{Kind, Type};
use crate::numeric::{self, Rounding};

fn pair1<T: Real>(a: u64, f: impl Fn(T) -> T) -> u64 {
    (f(T::get(a & 0xffff)).put() & 0xffff) | (f(T::get(a >> 16 & 0xffff)).put() & 0xffff) << 16
}

fn pair2<T: Real>(a: u64, b: u64, f: impl Fn(T, T) -> T) -> u64 {
    let half = |s: u32| f(T::get(a >> s & 0xffff), T::get(b >> s & 0xffff)).put() & 0xffff;
    half(0) | half(16) << 16
}

fn lanes1<T: Real>(pair: bool, plain: super::Fn1, packed: super::Fn1) -> Lane {
    let _ = std::marker::PhantomData::<T>;
    Lane::One(if pair { packed } else { plain })
}

macro_rules! real1 {
    ($t:ty, $ty:expr, |$a:ident, $o:ident| $e:expr) => {
        lanes1::<$t>(
            $ty.pair,
            |d, a, $o| {
                for lane in 0..WARP {
                    let $a = <$t as super::Slot>::get(a[lane]);
                    d[lane] = super::Slot::put($e);
                }
            },
            |d, a, $o| {
                for lane in 0..WARP {
                    d[lane] = pair1::<$t>(a[lane], |$a| $e);
                }
            },
        )
    };
}
macro_rules! real2 {
    ($t:ty, $ty:expr, |$a:ident, $b:ident, $o:ident| $e:expr) => {
        if $ty.pair {
            Lane::Two(|d, a, b, $o| {
                for lane in 0..WARP {
                    d[lane] = pair2::<$t>(a[lane], b[lane], |$a, $b| $e);
                }
            })
        } else {
            two!($t, $t, |$a, $b, $o| $e)
        }
    };
}

fn fma<T: Real>(pair: bool) -> Lane {
    if pair {
        Lane::Three(|d, a, b, c, o| {
            for lane in 0..WARP {
                let half = |s: u32| {
                    let x = |r: &super::Lanes| T::get(r[lane] >> s & 0xffff);
                    x(a).fma(x(b), x(c), o).put() & 0xffff
                };
                d[lane] = half(0) | half(16) << 16;
            }
        })
    } else {
        Lane::Three(|d, a, b, c, o| {
            for lane in 0..WARP {
                d[lane] = T::get(a[lane]).fma(T::get(b[lane]), T::get(c[lane]), o).put();
            }
        })
    }
}

fn exact<T: Real>(name: &str, ty: Type, m: &mut Modifiers) -> Result<Option<Lane>, String> {
    Ok(Some(match name {
        "add" => real2!(T, ty, |a, b, o| a.add(b, o)),
        "sub" => real2!(T, ty, |a, b, o| a.sub(b, o)),
        "mul" => real2!(T, ty, |a, b, o| a.mul(b, o)),
        "fma" | "mad" => fma::<T>(ty.pair),
        "min" => real2!(T, ty, |a, b, o| a.pick(b, o, false)),
        "max" => real2!(T, ty, |a, b, o| a.pick(b, o, true)),
        "neg" => real1!(T, ty, |a, o| a.neg(o)),
        "abs" => real1!(T, ty, |a, o| a.abs(o)),
        "copysign" => {
            m.done()?;
            real2!(T, ty, |a, b, o| if a.negative() { b.abs(o).neg(o) } else { b.abs(o) })
        }
        _ => return Ok(None),
    }))
}

/// An approximation's result: the nearest `f32`, flushed where asked.
fn near(x: f64, o: &Options) -> f32 {
    finish(x as f32, o)
}

fn functions32(name: &str, m: &mut Modifiers) -> Result<Lane, String> {
    // `approx` and `full` are within 1 or 2 ulp of these results by the ISA's own bounds.
    let approximate = m.take("approx") || m.take("full");
    Ok(match name {
        "div" if approximate => two!(f32, f32, |a, b, o| near(f64::from(a.flushed(o)) / f64::from(b.flushed(o)), o)),
        "div" => two!(f32, f32, |a, b, o| {
            let odd = numeric::div_odd(f64::from(a.flushed(o)), f64::from(b.flushed(o)));
            finish(numeric::to_f32(odd, o.round), o)
        }),
        "rcp" => one!(f32, |a, o| finish(numeric::to_f32(numeric::div_odd(1.0, f64::from(a.flushed(o))), o.round), o)),
        "sqrt" => one!(f32, |a, o| finish(numeric::to_f32(numeric::sqrt_odd(f64::from(a.flushed(o))), o.round), o)),
        "rsqrt" => one!(f32, |a, o| near(1.0 / f64::from(a.flushed(o)).sqrt(), o)),
        "sin" => one!(f32, |a, o| near(f64::from(a.flushed(o)).sin(), o)),
        "cos" => one!(f32, |a, o| near(f64::from(a.flushed(o)).cos(), o)),
        "lg2" => one!(f32, |a, o| near(f64::from(a.flushed(o)).log2(), o)),
        "ex2" => one!(f32, |a, o| near(f64::from(a.flushed(o)).exp2(), o)),
        "tanh" => one!(f32, |a, o| near(f64::from(a.flushed(o)).tanh(), o)),
        _ => return Err(format!("`{name}.f32` is not known to this machine")),
    })
}

fn functions64(name: &str, m: &mut Modifiers) -> Result<Lane, String> {
    let approximate = m.take("approx");
    Ok(match name {
        "div" => two!(f64, f64, |a, b, o| {
            if o.round == Rounding::Nearest { a / b } else { numeric::div64(a, b, o.round) }
        }),
        // `rcp.approx.ftz.f64` gives 20 bits and zeros below.
        "rcp" if approximate => one!(f64, |a, _o| f64::from_bits((1.0 / a).to_bits() & !0xffff_ffff)),
        "rsqrt" if approximate => one!(f64, |a, _o| f64::from_bits((1.0 / a.sqrt()).to_bits() & !0xffff_ffff)),
        "rcp" => one!(f64, |a, o| numeric::div64(1.0, a, o.round)),
        "sqrt" => one!(f64, |a, o| numeric::sqrt64(a, o.round)),
        _ => return Err(format!("`{name}.f64` is not known to this machine")),
    })
}

fn functions16<T: Real>(name: &str, ty: Type, m: &mut Modifiers) -> Result<Lane, String> {
    m.take("approx");
    let half = ty.kind == Kind::Float;
    Ok(match (name, half) {
        ("tanh", true) => {
            real1!(Half, ty, |a, _o| Half(numeric::F16.round(a.value().tanh(), Rounding::Nearest, false) as u16))
        }
        ("tanh", false) => {
            real1!(Brain, ty, |a, _o| Brain(numeric::BF16.round(a.value().tanh(), Rounding::Nearest, false) as u16))
        }
        ("ex2", true) => real1!(Half, ty, |a, o| {
            Half(numeric::F16.round(a.flushed(o).value().exp2(), Rounding::Nearest, false) as u16).flushed(o)
        }),
        ("ex2", false) => real1!(Brain, ty, |a, o| {
            Brain(numeric::BF16.round(a.flushed(o).value().exp2(), Rounding::Nearest, false) as u16).flushed(o)
        }),
        _ => return Err(format!("`{name}` of a 16-bit float is not known to this machine")),
    })
}

pub(super) fn select(name: &str, ty: Type, m: &mut Modifiers, o: &mut Options) -> Result<Lane, String> {
    if o.round == Rounding::Away || (ty.bits == 16 || ty.pair) && o.round != Rounding::Nearest {
        return Err("this rounding mode is not known here".into());
    }
    if name == "testp" {
        return Err("`testp` is not known to this machine".into());
    }
    match (ty.kind, ty.bits, ty.pair) {
        (Kind::Float, 32, false) => exact::<f32>(name, ty, m)?.map_or_else(|| functions32(name, m), Ok),
        (Kind::Float, 64, false) => exact::<f64>(name, ty, m)?.map_or_else(|| functions64(name, m), Ok),
        (Kind::Float, 16, _) | (Kind::Float, 32, true) => {
            exact::<Half>(name, ty, m)?.map_or_else(|| functions16::<Half>(name, ty, m), Ok)
        }
        (Kind::Bfloat, _, _) => exact::<Brain>(name, ty, m)?.map_or_else(|| functions16::<Brain>(name, ty, m), Ok),
        _ => Err(format!("`{name}` of this type is not known to this machine")),
    }
}
