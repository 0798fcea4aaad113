//! Instructions that join lanes or warps: shuffles, votes, barriers.

use super::{Builder, Result, want};
use crate::alu::Modifiers;
use crate::ast::{Kind, Operand, Statement, Type};
use crate::op::{Bar, Barrier, Op, Redux, Shuffle, Vote};

const U32: Type = Type { kind: Kind::Unsigned, bits: 32, pair: false };

fn redux(name: &str, ty: Type) -> Result<Redux> {
    Ok(match (name, ty.kind) {
        ("add", Kind::Unsigned | Kind::Signed) => u32::wrapping_add,
        ("min", Kind::Unsigned) => u32::min,
        ("max", Kind::Unsigned) => u32::max,
        ("min", Kind::Signed) => |a, b| (a as i32).min(b as i32) as u32,
        ("max", Kind::Signed) => |a, b| (a as i32).max(b as i32) as u32,
        ("and", Kind::Bits) => |a, b| a & b,
        ("or", Kind::Bits) => |a, b| a | b,
        ("xor", Kind::Bits) => |a, b| a ^ b,
        _ => return Err(format!("`redux.{name}` of this type is not known to this machine")),
    })
}

impl Builder<'_> {
    pub(super) fn warp(&mut self, s: &Statement, m: &mut Modifiers) -> Result<bool> {
        match s.name.as_str() {
            "shfl" => self.shuffle(s, m)?,
            "vote" => self.vote(s, m)?,
            "match" => {
                let all = m.any(&["any", "all"]).ok_or("`match` wants `.any` or `.all`")? == "all";
                m.take("sync");
                let ty = m.ty()?;
                want(s, 3..=3)?;
                let (out, pred) = self.pair(&s.operands[0])?;
                let (value, members) = (self.source(&s.operands[1], ty)?, self.source(&s.operands[2], U32)?);
                self.push(Op::Match { all, wide: ty.bits == 64, out, pred, value, members });
            }
            "activemask" => {
                m.ty()?;
                let out = self.dest(&s.operands[0])?;
                self.push(Op::ActiveMask(out));
            }
            "redux" => {
                m.take("sync");
                let name =
                    m.any(&["add", "min", "max", "and", "or", "xor"]).ok_or("`redux` of an unknown operation")?;
                let function = redux(name, m.ty()?)?;
                want(s, 3..=3)?;
                let op = Op::Redux {
                    function,
                    out: self.dest(&s.operands[0])?,
                    value: self.source(&s.operands[1], U32)?,
                    members: self.source(&s.operands[2], U32)?,
                };
                self.push(op);
            }
            "elect" => {
                m.take("sync");
                want(s, 2..=2)?;
                let (out, pred) = self.pair(&s.operands[0])?;
                let pred = pred.ok_or("`elect.sync` wants `d|p`")?;
                let members = self.source(&s.operands[1], U32)?;
                self.push(Op::Elect { out, pred, members });
            }
            "bar" | "barrier" => self.barrier(s, m)?,
            "mapa" | "getctarank" => {
                let generic = !m.take("shared::cluster");
                let ty = m.ty()?;
                let out = self.dest(&s.operands[0])?;
                let address = self.source(&s.operands[1], ty)?;
                let op = if s.name == "mapa" {
                    want(s, 3..=3)?;
                    Op::Mapa { out, address, rank: self.source(&s.operands[2], U32)?, generic }
                } else {
                    want(s, 2..=2)?;
                    Op::Rank { out, address, generic }
                };
                self.push(op);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// `d|p`, or `d` alone.
    fn pair(&mut self, operand: &Operand) -> Result<(crate::op::Reg, Option<crate::op::Pred>)> {
        match operand {
            Operand::Pair(d, p) => Ok((self.dest(d)?, Some(self.pred_dest(p)?))),
            single => Ok((self.dest(single)?, None)),
        }
    }

    fn shuffle(&mut self, s: &Statement, m: &mut Modifiers) -> Result<()> {
        let sync = m.take("sync");
        let how = match m.any(&["up", "down", "bfly", "idx"]) {
            Some("up") => Shuffle::Up,
            Some("down") => Shuffle::Down,
            Some("bfly") => Shuffle::Butterfly,
            Some(_) => Shuffle::Index,
            None => return Err("`shfl` wants `.up`, `.down`, `.bfly` or `.idx`".into()),
        };
        m.ty()?;
        want(s, if sync { 5..=5 } else { 4..=4 })?;
        let (out, valid) = self.pair(&s.operands[0])?;
        let op = Op::Shuffle {
            how,
            out,
            valid,
            value: self.source(&s.operands[1], U32)?,
            lane: self.source(&s.operands[2], U32)?,
            clamp: self.source(&s.operands[3], U32)?,
            members: if sync { Some(self.source(&s.operands[4], U32)?) } else { None },
        };
        self.push(op);
        Ok(())
    }

    fn vote(&mut self, s: &Statement, m: &mut Modifiers) -> Result<()> {
        let sync = m.take("sync");
        let how = match m.any(&["all", "any", "uni", "ballot"]) {
            Some("all") => Vote::All,
            Some("any") => Vote::Any,
            Some("uni") => Vote::Uniform,
            Some(_) => Vote::Ballot,
            None => return Err("`vote` wants `.all`, `.any`, `.uni` or `.ballot`".into()),
        };
        if !m.take("pred") {
            m.ty()?;
        }
        want(s, if sync { 3..=3 } else { 2..=2 })?;
        let ballot = how == Vote::Ballot;
        let op = Op::Vote {
            how,
            out: if ballot { self.dest(&s.operands[0])? } else { 0 },
            out_pred: if ballot { 0 } else { self.pred_dest(&s.operands[0])? },
            test: self.test(&s.operands[1])?,
            members: if sync { Some(self.source(&s.operands[2], U32)?) } else { None },
        };
        self.push(op);
        Ok(())
    }

    fn barrier(&mut self, s: &Statement, m: &mut Modifiers) -> Result<()> {
        if m.take("cluster") {
            let arrive = m.any(&["arrive", "wait"]).ok_or("`barrier.cluster` wants `.arrive` or `.wait`")? == "arrive";
            m.any(&["release", "relaxed", "acquire"]);
            m.take("aligned");
            want(s, 0..=0)?;
            self.push(if arrive { Op::ClusterArrive } else { Op::ClusterWait });
            return Ok(());
        }
        if m.take("warp") {
            m.take("sync");
            want(s, 1..=1)?;
            let members = self.source(&s.operands[0], U32)?;
            self.push(Op::WarpBarrier(members));
            return Ok(());
        }
        m.take("cta");
        // `bar` is `barrier.cta` with `.aligned`.
        let kind = m.any(&["sync", "arrive", "red"]).ok_or("`bar` wants `.sync`, `.arrive` or `.red`")?;
        let aligned = m.take("aligned") || s.name == "bar";
        let mut barrier =
            Barrier { how: Bar::Sync, aligned, id: 0, threads: None, out: None, out_pred: None, test: None };
        let rest = match kind {
            "red" => {
                barrier.how = match m.any(&["popc", "and", "or"]) {
                    Some("popc") => Bar::Count,
                    Some("and") => Bar::All,
                    _ => Bar::Any,
                };
                if !m.take("pred") {
                    m.ty()?;
                }
                want(s, 3..=4)?;
                let last = s.operands.len() - 1;
                barrier.test = Some(self.test(&s.operands[last])?);
                if barrier.how == Bar::Count {
                    barrier.out = Some(self.dest(&s.operands[0])?);
                } else {
                    barrier.out_pred = Some(self.pred_dest(&s.operands[0])?);
                }
                &s.operands[1..last]
            }
            "arrive" => {
                want(s, 2..=2)?;
                barrier.how = Bar::Arrive;
                &s.operands[..]
            }
            _ => {
                want(s, 1..=2)?;
                &s.operands[..]
            }
        };
        barrier.id = self.source(&rest[0], U32)?;
        barrier.threads = match rest.get(1) {
            Some(threads) => Some(self.source(threads, U32)?),
            None => None,
        };
        self.push(Op::Barrier(Box::new(barrier)));
        Ok(())
    }
}
