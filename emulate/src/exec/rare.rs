//! What warps execute seldom: barriers, copies, matrices, messages between lanes.

use super::state::{self, Wait, Warp};
use super::{Machine, Next, Result, write};
use crate::fault::{Fault, FaultKind};
use crate::op::Op;

impl Machine<'_> {
    pub(super) fn execute_rare(&mut self, warp: &mut Warp, pc: u32, active: u32, group: u32) -> Result<Next> {
        let program = self.program;
        let inst = &program.insts[pc as usize];
        let mut out = [0u64; 32];
        match &inst.op {
            Op::Carry { subtract, take, give, wide, out: d, a, b } => {
                self.need(warp, active, *a)?;
                self.need(warp, active, *b)?;
                let mask = if *wide { u128::from(u64::MAX) } else { 0xffff_ffff };
                let mut carry = 0;
                for (lane, slot) in out.iter_mut().enumerate() {
                    let x = u128::from(warp.registers[*a as usize][lane]) & mask;
                    let y = u128::from(warp.registers[*b as usize][lane]) & mask;
                    let c = u128::from(*take && warp.carry >> lane & 1 == 1);
                    // A subtraction's borrow is the carry flag, set where a borrow happened.
                    let sum = if *subtract { x.wrapping_sub(y).wrapping_sub(c) } else { x + y + c };
                    *slot = (sum & mask) as u64;
                    carry |= u32::from(sum & !mask != 0) << lane;
                }
                write(warp, active, *d, &out);
                if *give {
                    warp.carry = warp.carry & !active | carry & active;
                }
            }
            Op::MulCarry { high, signed, take, give, wide, out: d, args } => {
                args.iter().try_for_each(|a| self.need(warp, active, *a))?;
                let bits = if *wide { 64 } else { 32 };
                let mask = if *wide { u128::from(u64::MAX) } else { 0xffff_ffff };
                let mut carry = 0;
                for (lane, slot) in out.iter_mut().enumerate() {
                    let [x, y, z] = args.map(|a| warp.registers[a as usize][lane]);
                    let extend = |v: u64| {
                        let shifted = v << (64 - bits);
                        if *signed {
                            i128::from(shifted as i64 >> (64 - bits))
                        } else {
                            i128::from(shifted >> (64 - bits))
                        }
                    };
                    let product = extend(x).wrapping_mul(extend(y)) as u128;
                    let part = if *high { product >> bits } else { product } & mask;
                    let c = u128::from(*take && warp.carry >> lane & 1 == 1);
                    let sum = part + (u128::from(z) & mask) + c;
                    *slot = (sum & mask) as u64;
                    carry |= u32::from(sum & !mask != 0) << lane;
                }
                write(warp, active, *d, &out);
                if *give {
                    warp.carry = warp.carry & !active | carry & active;
                }
            }
            Op::Set { compare, packed, yes, out: d, a, b, combine } => {
                self.need(warp, active, *a)?;
                self.need(warp, active, *b)?;
                let (x, y) = (&warp.registers[*a as usize], &warp.registers[*b as usize]);
                let (mut low, mut high) = (compare(x, y, false), if *packed { compare(x, y, true) } else { 0 });
                if let Some(combine) = combine {
                    let with = self.test(warp, active, combine.with)?;
                    (low, high) = (combine.how.apply(low, with), combine.how.apply(high, with));
                }
                for (lane, slot) in out.iter_mut().enumerate() {
                    *slot = u64::from(low >> lane & 1) * yes;
                    if *packed {
                        *slot |= (u64::from(high >> lane & 1) * yes) << 16;
                    }
                }
                write(warp, active, *d, &out);
            }
            Op::SelectSign { float, out: d, a, b, c } => {
                self.need(warp, active, *c)?;
                for (lane, slot) in out.iter_mut().enumerate() {
                    let by = warp.registers[*c as usize][lane] as u32;
                    let first = if *float { f32::from_bits(by) >= 0.0 } else { by as i32 >= 0 };
                    *slot = warp.registers[if first { *a } else { *b } as usize][lane];
                }
                self.need(warp, active, *a)?;
                self.need(warp, active, *b)?;
                write(warp, active, *d, &out);
            }
            Op::Clock(d) => {
                out.fill(self.warp_instructions);
                write(warp, active, *d, &out);
            }
            Op::IsSpace(p, a, space) => {
                self.need(warp, active, *a)?;
                let mut bits = 0;
                for lane in 0..32 {
                    let found = crate::memory::locate(warp.registers[*a as usize][lane]).0;
                    bits |= u32::from(found == *space) << lane;
                }
                self.set_pred(warp, active, *p, bits);
            }
            Op::JumpTable { index, targets } => {
                self.need(warp, active, *index)?;
                let mut left = active;
                let rest = group & !active;
                let current = warp.current;
                let mut groups = Vec::new();
                if rest != 0 {
                    groups.push(state::Group { pc: pc + 1, mask: rest, wait: Wait::No });
                }
                while left != 0 {
                    let lane = left.trailing_zeros() as usize;
                    let at = warp.registers[*index as usize][lane] as u32;
                    let Some(target) = targets.get(at as usize) else {
                        return Err(Fault::lane(
                            FaultKind::Misuse,
                            lane,
                            format!("index {at} into {} targets", targets.len()),
                        ));
                    };
                    let mask = (0..32)
                        .filter(|l| left >> l & 1 == 1 && warp.registers[*index as usize][*l] as u32 == at)
                        .fold(0, |m, l| m | 1 << l);
                    left &= !mask;
                    groups.push(state::Group { pc: *target, mask, wait: Wait::No });
                }
                warp.groups.remove(current);
                warp.groups.extend(groups);
                return Ok(Next::Reschedule);
            }
            Op::Exit => {
                warp.live &= !active;
                let current = warp.current;
                if group & !active == 0 {
                    warp.groups.remove(current);
                    warp.current = 0;
                } else {
                    warp.groups[current].mask &= !active;
                    warp.groups[current].pc = pc + 1;
                }
                // Lanes that waited for these to converge need no longer wait.
                for group in warp.groups.iter_mut().filter(|g| g.wait == Wait::Converge) {
                    group.wait = Wait::No;
                }
                if warp.live == 0 {
                    self.finish_warp(warp)?;
                }
                return Ok(Next::Reschedule);
            }
            Op::Trap => return Err(Fault::new(FaultKind::Trap, "the kernel trapped")),
            Op::ProxyFence => self.blocks[warp.block].races.proxy_fence(warp.index),
            Op::Atomic(atomic) => {
                self.atomic(warp, active, atomic, inst.source)?;
                self.progress += 1;
                return Ok(Next::Yield);
            }
            Op::Mapa { out: d, address, rank, generic } => {
                self.need(warp, active, *address)?;
                self.need(warp, active, *rank)?;
                for (lane, slot) in out.iter_mut().enumerate() {
                    let address = warp.registers[*address as usize][lane];
                    let rank = warp.registers[*rank as usize][lane] & 0xff;
                    let base = if *generic { crate::memory::window(crate::ast::Space::Shared) } else { 0 };
                    let inside = address.wrapping_sub(base) & ((1 << crate::memory::RANK_SHIFT) - 1);
                    *slot = base + (inside | (rank + 1) << crate::memory::RANK_SHIFT);
                }
                write(warp, active, *d, &out);
            }
            Op::Rank { out: d, address, generic } => {
                self.need(warp, active, *address)?;
                let own = self.blocks[warp.block].rank;
                for (lane, slot) in out.iter_mut().enumerate() {
                    let address = warp.registers[*address as usize][lane];
                    let base = if *generic { crate::memory::window(crate::ast::Space::Shared) } else { 0 };
                    let tag = (address.wrapping_sub(base) >> crate::memory::RANK_SHIFT) as u32;
                    *slot = u64::from(if tag == 0 { own } else { tag - 1 });
                }
                write(warp, active, *d, &out);
            }
            Op::Shuffle { .. }
            | Op::Vote { .. }
            | Op::Match { .. }
            | Op::ActiveMask(_)
            | Op::Redux { .. }
            | Op::Elect { .. }
            | Op::WarpBarrier(_) => return self.warp_op(warp, pc, active, group),
            Op::Barrier(barrier) => return self.barrier(warp, active, group, barrier),
            Op::ClusterArrive => return self.cluster_arrive(warp, active),
            Op::ClusterWait => return Ok(self.cluster_wait(warp)),
            _ => return self.asynchronous(warp, pc, active, group),
        }
        Ok(Next::Advance)
    }
}
