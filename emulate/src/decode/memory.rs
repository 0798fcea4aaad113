//! Loads, stores and atomics.

use super::{Builder, Result, want};
use crate::alu::Modifiers;
use crate::alu::Options;
use crate::alu::real::{Brain, Half, Real};
use crate::ast::{Kind, Operand, Space, Statement, Type};
use crate::op::{Access, Atomic, Combiner, Op};
use crate::order::Orders;

const SCOPES: [&str; 4] = ["cta", "cluster", "gpu", "sys"];

/// Takes cache and eviction hints, which change no result; true where a cache policy operand follows.
pub(super) fn hints(m: &mut Modifiers) -> bool {
    let policy = m.take("L2::cache_hint");
    m.any(&["ca", "cg", "cs", "lu", "cv", "wb", "wt"]);
    m.any(&["L1::evict_normal", "L1::evict_unchanged", "L1::evict_first", "L1::evict_last", "L1::no_allocate"]);
    m.any(&["L2::evict_normal", "L2::evict_first", "L2::evict_last"]);
    m.any(&["L2::64B", "L2::128B", "L2::256B"]);
    policy
}

/// Takes the state space.
pub(super) fn space(m: &mut Modifiers) -> Space {
    let words = [
        "global",
        "shared",
        "shared::cta",
        "shared::cluster",
        "local",
        "const",
        "param",
        "param::entry",
        "param::func",
    ];
    match m.any(&words) {
        Some("global") => Space::Global,
        Some("shared" | "shared::cta" | "shared::cluster") => Space::Shared,
        Some("local") => Space::Local,
        Some("const") => Space::Const,
        Some(_) => Space::Param,
        None => Space::Generic,
    }
}

fn add_half<T: Real>(a: u64, b: u64) -> u64 {
    T::get(a & 0xffff).add(T::get(b & 0xffff), &Options::default()).put() & 0xffff
}

fn pick_half<T: Real>(a: u64, b: u64, greater: bool) -> u64 {
    T::get(a & 0xffff).pick(T::get(b & 0xffff), &Options::default(), greater).put() & 0xffff
}

fn both(a: u64, b: u64, f: fn(u64, u64) -> u64) -> u64 {
    f(a, b) | f(a >> 16, b >> 16) << 16
}

/// Old value, operand, second operand to new value.
fn combiner(name: &str, ty: Type) -> Result<Combiner> {
    let wide = ty.bits == 64;
    let f: Combiner = match (name, ty.kind, ty.bits, ty.pair) {
        ("exch", Kind::Bits, ..) => |_, b, _| b,
        ("cas", Kind::Bits, ..) => |a, b, c| if a == b { c } else { a },
        ("and", Kind::Bits, ..) => |a, b, _| a & b,
        ("or", Kind::Bits, ..) => |a, b, _| a | b,
        ("xor", Kind::Bits, ..) => |a, b, _| a ^ b,
        ("add", Kind::Unsigned | Kind::Signed, ..) => |a, b, _| a.wrapping_add(b),
        ("inc", Kind::Unsigned, 32, _) => |a, b, _| if a >= b { 0 } else { a + 1 },
        ("dec", Kind::Unsigned, 32, _) => |a, b, _| if a == 0 || a > b { b } else { a - 1 },
        ("min", Kind::Unsigned, ..) => |a, b, _| a.min(b),
        ("max", Kind::Unsigned, ..) => |a, b, _| a.max(b),
        ("min", Kind::Signed, ..) if wide => |a, b, _| (a as i64).min(b as i64) as u64,
        ("max", Kind::Signed, ..) if wide => |a, b, _| (a as i64).max(b as i64) as u64,
        ("min", Kind::Signed, ..) => |a, b, _| (a as i32).min(b as i32) as u32 as u64,
        ("max", Kind::Signed, ..) => |a, b, _| (a as i32).max(b as i32) as u32 as u64,
        ("add", Kind::Float, 32, false) => {
            |a, b, _| u64::from((f32::from_bits(a as u32) + f32::from_bits(b as u32)).to_bits())
        }
        ("add", Kind::Float, 64, _) => |a, b, _| (f64::from_bits(a) + f64::from_bits(b)).to_bits(),
        ("add", Kind::Float, 16, _) => |a, b, _| add_half::<Half>(a, b),
        ("add", Kind::Float, 32, true) => |a, b, _| both(a, b, add_half::<Half>),
        ("add", Kind::Bfloat, 16, _) => |a, b, _| add_half::<Brain>(a, b),
        ("add", Kind::Bfloat, ..) => |a, b, _| both(a, b, add_half::<Brain>),
        ("min", Kind::Float, 16, _) => |a, b, _| pick_half::<Half>(a, b, false),
        ("max", Kind::Float, 16, _) => |a, b, _| pick_half::<Half>(a, b, true),
        ("min", Kind::Float, 32, true) => |a, b, _| both(a, b, |a, b| pick_half::<Half>(a, b, false)),
        ("max", Kind::Float, 32, true) => |a, b, _| both(a, b, |a, b| pick_half::<Half>(a, b, true)),
        ("min", Kind::Bfloat, 16, _) => |a, b, _| pick_half::<Brain>(a, b, false),
        ("max", Kind::Bfloat, 16, _) => |a, b, _| pick_half::<Brain>(a, b, true),
        ("min", Kind::Bfloat, ..) => |a, b, _| both(a, b, |a, b| pick_half::<Brain>(a, b, false)),
        ("max", Kind::Bfloat, ..) => |a, b, _| both(a, b, |a, b| pick_half::<Brain>(a, b, true)),
        _ => return Err(format!("atomic `{name}` of this type is not known to this machine")),
    };
    Ok(f)
}

impl Builder<'_> {
    pub(super) fn memory(&mut self, s: &Statement, m: &mut Modifiers) -> Result<bool> {
        match s.name.as_str() {
            "ld" | "ldu" | "st" => self.access(s, m)?,
            "atom" | "red" => {
                if m.take("async") {
                    return Err("`red.async` is not known to this machine".into());
                }
                self.atomic(s, m)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn access(&mut self, s: &Statement, m: &mut Modifiers) -> Result<()> {
        if m.take("async") {
            return Err("`st.async` is not known to this machine".into());
        }
        m.take("mmio");
        m.take("weak");
        let how = m.any(&["volatile", "relaxed", "acquire", "release"]);
        let strong = how.is_some();
        let device = strong && m.any(&SCOPES).is_none_or(|scope| scope == "gpu" || scope == "sys");
        let orders =
            Orders { device, acquire: device && how == Some("acquire"), release: device && how == Some("release") };
        let space = space(m);
        m.take("nc");
        m.take("unified");
        let policy = hints(m);
        want(s, 2..=2 + usize::from(policy))?;
        let count = match m.any(&["v2", "v4", "v8"]) {
            Some("v2") => 2,
            Some("v4") => 4,
            Some(_) => 8,
            None => 1,
        };
        let ty = m.ty()?;
        if ty.bits > 64 || ty.bytes() * count as u64 > 32 || count == 8 && ty.bits != 32 {
            return Err("an access of this width is not known to this machine".into());
        }
        let load = s.name != "st";
        let (values, address) = if load { (&s.operands[0], &s.operands[1]) } else { (&s.operands[1], &s.operands[0]) };
        let place = self.place(address, space)?;
        let values: Vec<_> =
            if load { self.dests(values)? } else { self.sources(values, ty)?.into_iter().map(Some).collect() };
        if values.len() != count {
            return Err(format!("{} values; accepted: {count}", values.len()));
        }
        let access = Box::new(Access { place, bytes: ty.bytes() as u32, signed: ty.signed(), values, strong, orders });
        self.push(if load { Op::Load(access) } else { Op::Store(access) });
        Ok(())
    }

    fn atomic(&mut self, s: &Statement, m: &mut Modifiers) -> Result<()> {
        let how = m.any(&["relaxed", "acquire", "release", "acq_rel"]);
        let device = m.any(&SCOPES).is_none_or(|scope| scope == "gpu" || scope == "sys");
        let orders = Orders {
            device,
            acquire: device && matches!(how, Some("acquire" | "acq_rel")),
            release: device && matches!(how, Some("release" | "acq_rel")),
        };
        let space = space(m);
        let names = ["exch", "cas", "and", "or", "xor", "add", "inc", "dec", "min", "max"];
        let name = m.any(&names).ok_or("this atomic operation is not known to this machine")?;
        m.take("noftz");
        let policy = m.take("L2::cache_hint");
        let count = match m.any(&["v2", "v4", "v8"]) {
            Some("v2") => 2,
            Some("v4") => 4,
            Some(_) => 8,
            None => 1,
        };
        let ty = m.ty()?;
        if ty.bits > 64 {
            return Err("128-bit atomics are not known to this machine".into());
        }
        let red = s.name == "red";
        let first = usize::from(!red);
        let cas = name == "cas";
        let size = first + 2 + usize::from(cas);
        want(s, size..=size + usize::from(policy))?;
        let out = if red {
            Vec::new()
        } else if s.operands[0] == Operand::Name("_".into()) {
            vec![None; count]
        } else {
            self.dests(&s.operands[0])?
        };
        let values = self.sources(&s.operands[first + 1], ty)?;
        if values.len() != count || !red && out.len() != count {
            return Err(format!("{} values; accepted: {count}", values.len()));
        }
        let atomic = Atomic {
            place: self.place(&s.operands[first], space)?,
            bytes: ty.bytes() as u32,
            function: combiner(name, ty)?,
            out,
            values,
            swap: if cas { Some(self.source(&s.operands[first + 2], ty)?) } else { None },
            orders,
        };
        self.push(Op::Atomic(Box::new(atomic)));
        Ok(())
    }
}
