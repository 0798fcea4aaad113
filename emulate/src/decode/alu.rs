//! Instructions on registers: arithmetic, moves, comparisons, selections, carries.

use super::{Builder, Result, Symbol, want};
use crate::alu::{Lane, Modifiers, Options, compare, select};
use crate::ast::{Kind, Operand, Space, Statement, Type};
use crate::memory::window;
use crate::op::{Combine, Logic, Op, Test};

const CLOCKS: [&str; 6] = ["%clock", "%clock64", "%clock_hi", "%globaltimer", "%globaltimer_lo", "%globaltimer_hi"];

fn logic(name: &str) -> Option<Logic> {
    Some(match name {
        "and" => Logic::And,
        "or" => Logic::Or,
        "xor" => Logic::Xor,
        _ => return None,
    })
}

impl Builder<'_> {
    pub(super) fn alu(&mut self, s: &Statement, m: &mut Modifiers) -> Result<bool> {
        match s.name.as_str() {
            "mov" => self.mov(s, m)?,
            "setp" | "set" => self.comparison(s, m)?,
            "selp" => {
                want(s, 4..=4)?;
                let ty = m.ty()?;
                let op = Op::Select {
                    out: self.dest(&s.operands[0])?,
                    a: self.source(&s.operands[1], ty)?,
                    b: self.source(&s.operands[2], ty)?,
                    test: self.test(&s.operands[3])?,
                };
                self.push(op);
            }
            "slct" => {
                want(s, 4..=4)?;
                m.take("ftz");
                let (ty, by) = (m.ty()?, m.ty()?);
                let op = Op::SelectSign {
                    float: by.kind == Kind::Float,
                    out: self.dest(&s.operands[0])?,
                    a: self.source(&s.operands[1], ty)?,
                    b: self.source(&s.operands[2], ty)?,
                    c: self.source(&s.operands[3], by)?,
                };
                self.push(op);
            }
            "cvta" => self.cvta(s, m)?,
            "isspacep" => {
                want(s, 2..=2)?;
                let space = match m.first() {
                    Some("global") => Space::Global,
                    Some("shared" | "shared::cta" | "shared::cluster") => Space::Shared,
                    Some("local") => Space::Local,
                    Some("const") => Space::Const,
                    Some("param" | "param::entry") => Space::Param,
                    other => return Err(format!("`isspacep` of {other:?}")),
                };
                let (out, a) =
                    (self.pred_dest(&s.operands[0])?, self.source(&s.operands[1], Type::parse("u64").ok_or("")?)?);
                self.push(Op::IsSpace(out, a, space));
            }
            "add" | "sub" | "addc" | "subc" | "mad" | "madc"
                if s.name.ends_with('c') || s.modifiers.iter().any(|m| m == "cc") =>
            {
                self.carry(s, m)?;
            }
            "and" | "or" | "xor" | "not" if s.modifiers.iter().any(|m| m == "pred") => {
                m.take("pred");
                let (out, a) = (self.pred_dest(&s.operands[0])?, self.test(&s.operands[1])?);
                let op = match logic(&s.name) {
                    Some(how) => Op::PredLogic(how, out, a, self.test(&s.operands[2])?),
                    None => Op::PredMove(out, Test { negated: !a.negated, ..a }),
                };
                self.push(op);
            }
            _ => return self.arithmetic(s, m),
        }
        Ok(true)
    }

    fn arithmetic(&mut self, s: &Statement, m: &mut Modifiers) -> Result<bool> {
        let Some((lane, mut options, ty)) = select(&s.name, m)? else { return Ok(false) };
        let mut operands = &s.operands[..];
        if s.name == "lop3" {
            want(s, 5..=5)?;
            let Operand::Integer(table) = s.operands[4] else {
                return Err("`lop3` wants a number as its table".into());
            };
            options.code = table as u32 & 0xff;
            operands = &s.operands[..4];
        }
        let count = match lane {
            Lane::One(_) => 1,
            Lane::Two(_) => 2,
            Lane::Three(_) => 3,
            Lane::Four(_) => 4,
        };
        if operands.len() != count + 1 {
            return Err(format!("{} operands; accepted: {}", operands.len(), count + 1));
        }
        let out = self.dest(&operands[0])?;
        let sources = operands[1..].iter().map(|o| self.source(o, ty)).collect::<Result<Vec<_>>>()?;
        let op = match (lane, &sources[..]) {
            (Lane::One(f), [a]) => Op::One(f, options, out, *a),
            (Lane::Two(f), [a, b]) => Op::Two(f, options, out, *a, *b),
            (Lane::Three(f), [a, b, c]) => Op::Three(f, options, out, [*a, *b, *c]),
            (Lane::Four(f), [a, b, c, d]) => Op::Four(f, options, out, [*a, *b, *c, *d]),
            _ => return Err("wrong number of operands".into()),
        };
        self.push(op);
        Ok(true)
    }

    fn mov(&mut self, s: &Statement, m: &mut Modifiers) -> Result<()> {
        want(s, 2..=2)?;
        let ty = m.ty()?;
        let (to, from) = (&s.operands[0], &s.operands[1]);
        if ty.kind == Kind::Predicate {
            let out = self.pred_dest(to)?;
            let op = match from {
                Operand::Integer(n) => Op::PredConst(out, *n != 0),
                other => Op::PredMove(out, self.test(other)?),
            };
            self.push(op);
            return Ok(());
        }
        if let Operand::Name(name) = from
            && CLOCKS.contains(&name.as_str())
        {
            let out = self.dest(to)?;
            self.push(Op::Clock(out));
            return Ok(());
        }
        let (targets, sources) = (self.parts(to)?, self.parts(from)?);
        match (targets.len(), sources.len()) {
            (1, 1) => {
                let op = Op::Move(self.dest(to)?, self.source(from, ty)?);
                self.push(op);
            }
            (1, n) if (ty.bits as usize).is_multiple_of(n) => {
                let width = ty.bits / n as u32;
                let part = Type { kind: Kind::Bits, bits: width, pair: false };
                let parts = sources.iter().map(|p| self.source(p, part)).collect::<Result<Vec<_>>>()?;
                let op = Op::Pack { out: self.dest(to)?, parts: parts.into(), width };
                self.push(op);
            }
            (n, 1) if (ty.bits as usize).is_multiple_of(n) => {
                let op = Op::Unpack {
                    parts: self.dests(to)?.into(),
                    from: self.source(from, ty)?,
                    width: ty.bits / n as u32,
                };
                self.push(op);
            }
            (n, k) if n == k => {
                // Through temporaries, for the two sides may share registers.
                let mut temporaries = Vec::new();
                for source in &sources {
                    let (out, a) = (self.new_reg(), self.source(source, ty)?);
                    self.push(Op::Move(out, a));
                    temporaries.push(out);
                }
                for (target, a) in targets.iter().zip(temporaries) {
                    let op = Op::Move(self.dest(target)?, a);
                    self.push(op);
                }
            }
            (n, k) => return Err(format!("`mov` of {k} values into {n} registers")),
        }
        Ok(())
    }

    fn comparison(&mut self, s: &Statement, m: &mut Modifiers) -> Result<()> {
        let name = m.first().ok_or("a comparison without a relation")?;
        let how = m.any(&["and", "or", "xor"]).and_then(logic);
        let ftz = m.take("ftz");
        want(s, if how.is_some() { 4..=4 } else { 3..=3 })?;
        let result = if s.name == "set" { Some(m.ty()?) } else { None };
        let ty = m.ty()?;
        let compare = compare::select(name, ty, ftz)
            .ok_or_else(|| format!("comparison `{name}` of this type is not known to this machine"))?;
        let (a, b) = (self.source(&s.operands[1], ty)?, self.source(&s.operands[2], ty)?);
        let combine = match how {
            Some(how) => Some(Combine { how, with: self.test(&s.operands[3])? }),
            None => None,
        };
        let op = match result {
            Some(result) => {
                let yes = match (result.kind, result.bits, result.pair) {
                    (Kind::Float, 32, false) => 0x3f80_0000,
                    (Kind::Float, 16, _) | (Kind::Float, 32, true) => 0x3c00,
                    (Kind::Bfloat, _, _) => 0x3f80,
                    (_, 16, _) => 0xffff,
                    (_, 32, _) if ty.pair => 0xffff,
                    (_, 32, _) => 0xffff_ffff,
                    _ => return Err("`set` into this type is not known to this machine".into()),
                };
                Op::Set { compare, packed: ty.pair, yes, out: self.dest(&s.operands[0])?, a, b, combine }
            }
            None => {
                let (out, other) = match &s.operands[0] {
                    Operand::Pair(p, q) => (self.pred_dest(p)?, Some(self.pred_dest(q)?)),
                    single => (self.pred_dest(single)?, None),
                };
                Op::Compare { compare, packed: ty.pair, out, other, a, b, combine }
            }
        };
        self.push(op);
        Ok(())
    }

    fn cvta(&mut self, s: &Statement, m: &mut Modifiers) -> Result<()> {
        want(s, 2..=2)?;
        let to = m.take("to");
        let space = match m.first() {
            Some("global" | "const") => Space::Global,
            Some("shared" | "shared::cta" | "shared::cluster") => Space::Shared,
            Some("local") => Space::Local,
            Some("param" | "param::entry") => Space::Param,
            other => return Err(format!("`cvta` of {other:?} is not known to this machine")),
        };
        let ty = m.ty()?;
        let (out, a) = (self.dest(&s.operands[0])?, self.source(&s.operands[1], ty)?);
        let base = window(space);
        if base == 0 {
            self.push(Op::Move(out, a));
            return Ok(());
        }
        let b = self.constant(base);
        let f: crate::alu::Fn2 = if to {
            |d, a, b, _o| {
                for lane in 0..crate::alu::WARP {
                    d[lane] = a[lane].wrapping_sub(b[lane]);
                }
            }
        } else {
            |d, a, b, _o| {
                for lane in 0..crate::alu::WARP {
                    d[lane] = a[lane].wrapping_add(b[lane]);
                }
            }
        };
        self.push(Op::Two(f, Options::default(), out, a, b));
        Ok(())
    }

    fn carry(&mut self, s: &Statement, m: &mut Modifiers) -> Result<()> {
        let give = m.take("cc");
        let take = s.name.ends_with('c');
        let part = m.any(&["lo", "hi"]);
        let ty = m.ty()?;
        let wide = match ty.bits {
            32 => false,
            64 => true,
            other => return Err(format!("carries of {other} bits")),
        };
        let out = self.dest(&s.operands[0])?;
        if s.name.starts_with("mad") {
            want(s, 4..=4)?;
            let high = part == Some("hi");
            let mut args = [0; 3];
            for (arg, operand) in args.iter_mut().zip(&s.operands[1..]) {
                *arg = self.source(operand, ty)?;
            }
            self.push(Op::MulCarry { high, signed: ty.signed(), take, give, wide, out, args });
        } else {
            want(s, 3..=3)?;
            let (a, b) = (self.source(&s.operands[1], ty)?, self.source(&s.operands[2], ty)?);
            self.push(Op::Carry { subtract: s.name.starts_with("sub"), take, give, wide, out, a, b });
        }
        Ok(())
    }

    /// The registers of a name that stands for one, or nothing.
    pub(super) fn register_of(&mut self, name: &str) -> Option<crate::op::Reg> {
        match self.symbol(name) {
            Ok(Symbol::Register(reg)) => Some(reg),
            _ => None,
        }
    }
}
