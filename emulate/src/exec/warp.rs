//! Instructions that look at other lanes of the warp.

use super::state::{Wait, Warp};
use super::{Machine, Next, Result, write};
use crate::fault::{Fault, FaultKind};
use crate::op::{Op, Reg, Shuffle, Vote};

fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |lane| mask >> lane & 1 == 1)
}

impl Machine<'_> {
    /// The lanes named by a member mask, once they are all here; nothing while some are not.
    fn members(&self, warp: &Warp, active: u32, group: u32, members: Reg) -> Result<Option<u32>> {
        let named = self.uniform(warp, active, members, "the member mask")? as u32;
        if let Some(lane) = lanes(active & !named).next() {
            return Err(Fault::lane(
                FaultKind::Misuse,
                lane,
                format!("this lane is not in its own member mask {named:#010x}"),
            ));
        }
        let needed = named & warp.live;
        let guarded = needed & group & !active;
        if guarded != 0 {
            return Err(Fault::lane(
                FaultKind::Divergence,
                guarded.trailing_zeros() as usize,
                format!("member mask {named:#010x} names lanes whose guard is false"),
            ));
        }
        Ok(if needed & !active == 0 { Some(needed) } else { None })
    }

    pub(super) fn warp_op(&mut self, warp: &mut Warp, pc: u32, active: u32, group: u32) -> Result<Next> {
        let program = self.program;
        let mut out = [0u64; 32];
        match &program.insts[pc as usize].op {
            Op::Shuffle { how, out: d, valid, value, lane, clamp, members } => {
                if let Some(members) = members
                    && self.members(warp, active, group, *members)?.is_none()
                {
                    return Ok(Next::Wait(Wait::Converge));
                }
                self.need(warp, active, *lane)?;
                self.need(warp, active, *clamp)?;
                let (mut bits, mut defined) = (0, 0);
                for me in 0..32usize {
                    let b = warp.registers[*lane as usize][me] as i64 & 0x1f;
                    let c = warp.registers[*clamp as usize][me] as i64;
                    let (limit, segment) = (c & 0x1f, c >> 8 & 0x1f);
                    let me_i = me as i64;
                    let (most, least) = (me_i & segment | limit & !segment, me_i & segment);
                    let (from, inside) = match how {
                        Shuffle::Up => (me_i - b, me_i - b >= most),
                        Shuffle::Down => (me_i + b, me_i + b <= most),
                        Shuffle::Butterfly => (me_i ^ b, me_i ^ b <= most),
                        Shuffle::Index => (least | b & !segment, (least | b & !segment) <= most),
                    };
                    let from = if inside { from as usize & 31 } else { me };
                    bits |= u32::from(inside) << me;
                    out[me] = warp.registers[*value as usize][from] & 0xffff_ffff;
                    // A lane that does not take part has nothing to give.
                    let given = warp.defined[*value as usize] & active;
                    defined |= (given >> from & 1) << me;
                }
                write(warp, active, *d, &out);
                warp.defined[*d as usize] &= !active | defined;
                if let Some(valid) = valid {
                    self.set_pred(warp, active, *valid, bits);
                }
            }
            Op::Vote { how, out: d, out_pred, test, members } => {
                if let Some(members) = members
                    && self.members(warp, active, group, *members)?.is_none()
                {
                    return Ok(Next::Wait(Wait::Converge));
                }
                let bits = self.test(warp, active, *test)? & active;
                let value = match how {
                    Vote::Ballot => {
                        write(warp, active, *d, &[u64::from(bits); 32]);
                        return Ok(Next::Advance);
                    }
                    Vote::All => bits == active,
                    Vote::Any => bits != 0,
                    Vote::Uniform => bits == 0 || bits == active,
                };
                self.set_pred(warp, active, *out_pred, if value { !0 } else { 0 });
            }
            Op::Match { all, wide, out: d, pred, value, members } => {
                let Some(members) = self.members(warp, active, group, *members)? else {
                    return Ok(Next::Wait(Wait::Converge));
                };
                self.need(warp, active, *value)?;
                let mask = if *wide { !0 } else { 0xffff_ffff };
                let get = |lane: usize| warp.registers[*value as usize][lane] & mask;
                let mut bits = 0;
                for me in lanes(active) {
                    let same = lanes(active).filter(|l| get(*l) == get(me)).fold(0u32, |m, l| m | 1 << l);
                    let matched = !*all || same == active;
                    out[me] = u64::from(if !matched {
                        0
                    } else if *all {
                        members
                    } else {
                        same
                    });
                    bits |= u32::from(matched) << me;
                }
                write(warp, active, *d, &out);
                if let Some(pred) = pred {
                    self.set_pred(warp, active, *pred, bits);
                }
            }
            Op::ActiveMask(d) => write(warp, active, *d, &[u64::from(active); 32]),
            Op::Redux { function, out: d, value, members } => {
                if self.members(warp, active, group, *members)?.is_none() {
                    return Ok(Next::Wait(Wait::Converge));
                }
                self.need(warp, active, *value)?;
                let all = lanes(active).map(|lane| warp.registers[*value as usize][lane] as u32).reduce(*function);
                write(warp, active, *d, &[u64::from(all.unwrap_or(0)); 32]);
            }
            Op::Elect { out: d, pred, members } => {
                let Some(members) = self.members(warp, active, group, *members)? else {
                    return Ok(Next::Wait(Wait::Converge));
                };
                let leader = members.trailing_zeros();
                write(warp, active, *d, &[u64::from(leader); 32]);
                self.set_pred(warp, active, *pred, 1 << leader);
            }
            Op::WarpBarrier(members) => {
                if self.members(warp, active, group, *members)?.is_none() {
                    return Ok(Next::Wait(Wait::Converge));
                }
            }
            _ => return Err(Fault::new(FaultKind::Misuse, "no warp instruction".to_string())),
        }
        Ok(Next::Advance)
    }
}
