//! Asynchronous copies and transaction barriers.

use super::memory::space;
use super::{Builder, Result, want};
use crate::alu::Modifiers;
use crate::ast::{Kind, Operand, Space, Statement, Type};
use crate::asynchronous::{Bulk, Way};
use crate::op::{Copy16, Mbarrier, Op, Test};

const U32: Type = Type { kind: Kind::Unsigned, bits: 32, pair: false };
const U64: Type = Type { kind: Kind::Unsigned, bits: 64, pair: false };

impl Builder<'_> {
    pub(super) fn bulk(&mut self, s: &Statement, m: &mut Modifiers) -> Result<bool> {
        match s.name.as_str() {
            "mbarrier" => self.mbarrier(s, m)?,
            "cp" => {
                if !m.take("async") {
                    return Err("`cp` without `.async`".into());
                }
                if m.take("bulk") { self.bulk_copy(s, m)? } else { self.copy(s, m)? }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn number(s: &Statement, at: usize) -> Result<u32> {
        match s.operands.get(at) {
            Some(Operand::Integer(n)) if *n < 1 << 16 => Ok(*n as u32),
            other => Err(format!("{other:?} where a small number is due")),
        }
    }

    fn copy(&mut self, s: &Statement, m: &mut Modifiers) -> Result<()> {
        if m.take("commit_group") {
            self.push(Op::CopyCommit);
            return Ok(());
        }
        if m.take("wait_all") {
            self.push(Op::CopyWait(u32::MAX));
            return Ok(());
        }
        if m.take("wait_group") {
            let left = Self::number(s, 0)?;
            self.push(Op::CopyWait(left));
            return Ok(());
        }
        if m.take("mbarrier") {
            m.take("arrive");
            let raise = !m.take("noinc");
            space(m);
            m.ty()?;
            want(s, 1..=1)?;
            let place = self.place(&s.operands[0], Space::Shared)?;
            self.push(Op::Mbarrier(Box::new((place, Mbarrier::CopyArrive { raise }))));
            return Ok(());
        }
        let level = m.any(&["ca", "cg"]).ok_or("`cp.async` wants `.ca` or `.cg`")?;
        if !m.take("shared") && !m.take("shared::cta") || !m.take("global") {
            return Err("`cp.async` goes from `.global` to `.shared`".into());
        }
        let policy = m.take("L2::cache_hint");
        m.any(&["L2::64B", "L2::128B", "L2::256B"]);
        want(s, 3..=4 + usize::from(policy))?;
        let bytes = Self::number(s, 2)?;
        if !(bytes == 16 || level == "ca" && matches!(bytes, 4 | 8)) {
            return Err(format!("`cp.async.{level}` of {bytes} bytes; accepted: 4, 8, 16 with `.ca`, 16 with `.cg`"));
        }
        let (mut source_bytes, mut ignore): (Option<u32>, Option<Test>) = (None, None);
        if let Some(operand) = s.operands.get(3).filter(|_| s.operands.len() - 3 > usize::from(policy)) {
            if self.is_pred(operand) {
                ignore = Some(self.test(operand)?);
            } else {
                source_bytes = Some(self.source(operand, U32)?);
            }
        }
        let copy = Copy16 {
            to: self.place(&s.operands[0], Space::Shared)?,
            from: self.place(&s.operands[1], Space::Global)?,
            bytes,
            source_bytes,
            ignore,
        };
        self.push(Op::Copy(Box::new(copy)));
        Ok(())
    }

    fn bulk_copy(&mut self, s: &Statement, m: &mut Modifiers) -> Result<()> {
        if m.take("commit_group") {
            self.push(Op::BulkCommit);
            return Ok(());
        }
        if m.take("wait_group") {
            m.take("read");
            let left = Self::number(s, 0)?;
            self.push(Op::BulkWait(left));
            return Ok(());
        }
        if m.take("prefetch") {
            while m.first().is_some() {}
            self.push(Op::Nothing);
            return Ok(());
        }
        let tensor = m.take("tensor");
        if tensor {
            m.any(&["1d", "2d", "3d", "4d", "5d"]).ok_or("a tensor copy without its dimensions")?;
        }
        let to = m.first().ok_or("a bulk copy without spaces")?;
        let from = m.first().ok_or("a bulk copy without spaces")?;
        m.take("tile");
        let policy = usize::from(m.take("L2::cache_hint"));
        let way = match (to, from) {
            ("shared::cluster" | "shared::cta", "global") => Way::Load,
            ("global", "shared::cta") => Way::Store,
            ("shared::cluster", "shared::cta") if !tensor => Way::Across,
            _ => return Err(format!("a bulk copy from `.{from}` to `.{to}` is not known to this machine")),
        };
        let barrier = m.take("mbarrier::complete_tx::bytes");
        let group = m.take("bulk_group");
        if barrier == (way == Way::Store) || group != (way == Way::Store) {
            return Err("loads complete on an mbarrier, stores in a bulk group".into());
        }
        let multicast = m.take("multicast::cluster");
        let operands = &s.operands;
        let fixed = match (tensor, way) {
            (true, Way::Store) => 2,
            (true, _) | (false, Way::Store) => 3,
            (false, _) => 4,
        };
        want(s, fixed + usize::from(multicast)..=fixed + usize::from(multicast) + policy)?;
        let (shared, far) = if way == Way::Store { (&operands[1], &operands[0]) } else { (&operands[0], &operands[1]) };
        let mut bulk = Bulk {
            way,
            bytes: None,
            tensor: None,
            global: None,
            shared: self.place(shared, Space::Shared)?,
            other: None,
            mbarrier: None,
            multicast: None,
        };
        if tensor {
            let Operand::Address { base: Some(name), offset: 0, more } = far else {
                return Err(format!("{far:?} is no tensor and coordinates"));
            };
            let [Operand::Vector(coordinates)] = &more[..] else {
                return Err("a tensor copy wants `[map, {coordinates}]`".into());
            };
            let map = match self.register_of(name) {
                Some(map) => map,
                None => return Err(format!("`{name}` is no register with a tensor map's address")),
            };
            let at = coordinates.iter().map(|c| self.source(c, U32)).collect::<Result<Vec<_>>>()?;
            bulk.tensor = Some((map, at));
        } else {
            if way == Way::Across {
                bulk.other = Some(self.place(far, Space::Shared)?);
            } else {
                bulk.global = Some(self.place(far, Space::Global)?);
            }
            bulk.bytes = Some(self.source(&operands[2], U32)?);
        }
        if barrier {
            bulk.mbarrier = Some(self.place(&operands[fixed - 1], Space::Shared)?);
        }
        if multicast {
            bulk.multicast = Some(self.source(&operands[fixed], U32)?);
        }
        self.push(Op::Bulk(Box::new(bulk)));
        Ok(())
    }

    fn mbarrier(&mut self, s: &Statement, m: &mut Modifiers) -> Result<()> {
        let names = [
            "init",
            "inval",
            "arrive",
            "arrive_drop",
            "expect_tx",
            "complete_tx",
            "try_wait",
            "test_wait",
            "pending_count",
        ];
        let name = m.any(&names).ok_or("this mbarrier operation is not known to this machine")?;
        let no_complete = m.take("noComplete");
        // `arrive.expect_tx` was taken as `arrive`, for it comes first in the list.
        let expect = m.take("expect_tx");
        let parity = m.take("parity");
        m.any(&["release", "acquire", "relaxed"]);
        m.any(&["cta", "cluster"]);
        space(m);
        m.ty()?;
        let operands = &s.operands;
        let (place, op) = match name {
            "init" => {
                want(s, 2..=2)?;
                (&operands[0], Mbarrier::Init { count: self.source(&operands[1], U32)? })
            }
            "inval" => (&operands[0], Mbarrier::Invalidate),
            "expect_tx" | "complete_tx" => {
                want(s, 2..=2)?;
                let bytes = self.source(&operands[1], U32)?;
                let op = if name == "expect_tx" { Mbarrier::Expect { bytes } } else { Mbarrier::Complete { bytes } };
                (&operands[0], op)
            }
            "arrive" | "arrive_drop" => {
                let state = !matches!(operands[0], Operand::Address { .. });
                let first = usize::from(state);
                let state = if state { Some(self.dest(&operands[0])?) } else { None };
                let last = match operands.get(first + 1) {
                    Some(operand) => Some(self.source(operand, U32)?),
                    None => None,
                };
                if expect && last.is_none() {
                    return Err("`.expect_tx` wants a byte count".into());
                }
                let _ = no_complete;
                let (count, bytes) = if expect { (None, last) } else { (last, None) };
                (&operands[first], Mbarrier::Arrive { state, count, bytes, drop: name == "arrive_drop" })
            }
            "pending_count" => {
                want(s, 2..=2)?;
                let (out, state) = (self.dest(&operands[0])?, self.source(&operands[1], U64)?);
                let base = self.constant(0);
                let place = crate::op::Place { space: Space::Shared, base, offset: 0 };
                self.push(Op::Mbarrier(Box::new((place, Mbarrier::Pending { out, state }))));
                return Ok(());
            }
            _ => {
                want(s, 3..=4)?;
                let state = self.source(&operands[2], if parity { U32 } else { U64 })?;
                (&operands[1], Mbarrier::Wait { out: self.pred_dest(&operands[0])?, state, parity })
            }
        };
        let place = self.place(place, Space::Shared)?;
        self.push(Op::Mbarrier(Box::new((place, op))));
        Ok(())
    }
}
