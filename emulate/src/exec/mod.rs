//! The machine proper: warps take turns, and a turn runs instructions of one group of lanes.

mod barrier;
mod effects;
mod memory;
mod rare;
mod schedule;
pub(crate) mod state;
mod warp;

use crate::alu::Lanes;
use crate::decode::Program;
use crate::fault::{Fault, FaultKind};
use crate::launch::{Schedule, TensorMap};
use crate::memory::{Bytes, Memory};
use crate::op::{Op, Pred, Reg, Test};
use crate::order::Order;
use crate::race::{Actor, Collision};
use state::{Block, Wait, Warp};

type Result<T> = std::result::Result<T, Fault>;

/// What an instruction asks of the loop that ran it.
enum Next {
    /// The following instruction.
    Advance,
    /// Somewhere else, or another group.
    Reschedule,
    /// Give the turn away, then the following instruction.
    Yield,
    /// This group waits.
    Wait(Wait),
}

/// A launch in progress.
pub(crate) struct Machine<'p> {
    pub program: &'p Program,
    pub memory: Memory,
    pub parameters: Bytes,
    pub maps: Vec<TensorMap>,
    pub blocks: Vec<Block>,
    pub warps: Vec<Warp>,
    pub schedule: Schedule,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub cluster: [u32; 3],
    pub dynamic_shared: u64,
    /// Instructions times active lanes.
    pub lane_instructions: u64,
    pub warp_instructions: u64,
    pub budget: u64,
    /// Between blocks.
    pub order: Order,
    /// Counts what lets somebody else go on.
    pub progress: u64,
    pub random: fastrand::Rng,
    pub next_copy: u64,
    /// Where lane functions leave their results.
    pub scratch: Lanes,
    /// B operands of recent `wgmma`, by block, warpgroup and number.
    pub operand_cache: Vec<((usize, usize, u32), Vec<f64>)>,
    /// Segment of the launch's first buffer.
    pub first_buffer: usize,
}

#[inline]
pub(crate) fn write(warp: &mut Warp, mask: u32, to: Reg, value: &Lanes) {
    let out = &mut warp.registers[to as usize];
    if mask == !0 {
        *out = *value;
    } else {
        for lane in 0..32 {
            if mask >> lane & 1 == 1 {
                out[lane] = value[lane];
            }
        }
    }
    warp.defined[to as usize] |= mask;
    warp.stamps[to as usize] = warp.now;
}

#[cold]
fn uninitialised(program: &Program, register: Reg, lanes: u32) -> Fault {
    let _ = program;
    Fault::lane(
        FaultKind::Uninitialised,
        lanes.trailing_zeros() as usize,
        format!("an operand (register slot {register}) that nothing wrote"),
    )
}

impl Machine<'_> {
    /// Complains when active lanes read a register that nothing wrote.
    #[inline]
    pub(crate) fn need(&self, warp: &Warp, mask: u32, register: Reg) -> Result<()> {
        let missing = mask & !warp.defined[register as usize];
        if missing == 0 { Ok(()) } else { Err(uninitialised(self.program, register, missing)) }
    }

    #[inline]
    pub(crate) fn need_pred(&self, warp: &Warp, mask: u32, pred: Pred) -> Result<()> {
        let missing = mask & !warp.pred_defined[pred as usize];
        if missing == 0 {
            return Ok(());
        }
        Err(Fault::lane(
            FaultKind::Uninitialised,
            missing.trailing_zeros() as usize,
            "a predicate that nothing wrote".to_string(),
        ))
    }

    #[inline]
    pub(crate) fn test(&self, warp: &Warp, mask: u32, test: Test) -> Result<u32> {
        self.need_pred(warp, mask, test.pred)?;
        let bits = warp.preds[test.pred as usize];
        Ok(if test.negated { !bits } else { bits })
    }

    pub(crate) fn set_pred(&self, warp: &mut Warp, mask: u32, pred: Pred, bits: u32) {
        let p = pred as usize;
        warp.preds[p] = warp.preds[p] & !mask | bits & mask;
        warp.pred_defined[p] |= mask;
    }

    /// The value that all active lanes share.
    pub(crate) fn uniform(&self, warp: &Warp, mask: u32, register: Reg, what: &str) -> Result<u64> {
        self.need(warp, mask, register)?;
        let values = &warp.registers[register as usize];
        let first = values[mask.trailing_zeros() as usize];
        match (0..32).find(|lane| mask >> lane & 1 == 1 && values[*lane] != first) {
            None => Ok(first),
            Some(lane) => {
                Err(Fault::lane(FaultKind::Misuse, lane, format!("{what} differs between lanes of the warp")))
            }
        }
    }

    pub(crate) fn race(&self, block: usize, collision: Collision, write: bool, at: u64) -> Fault {
        let who = self.blocks[block].races.name(collision.warp);
        let (line, text) = &self.program.sources[collision.source as usize];
        let how = if write { "a write to" } else { "a read of" };
        let other = if collision.wrote { "write" } else { "read" };
        let message = if collision.proxy {
            format!(
                "the asynchronous proxy reads shared address {at:#x}, written by {who} at line {line} (`{text}`), without \
                 `fence.proxy.async` after the write"
            )
        } else {
            format!("{how} shared address {at:#x} is not ordered with the {other} by {who} at line {line} (`{text}`)")
        };
        Fault::new(FaultKind::Race, message)
    }

    pub(crate) fn actor(&self, warp: &Warp, source: u32) -> Actor {
        Actor {
            warp: warp.index,
            source,
            sequence: self.warp_instructions as u32,
            atomic: false,
            proxy: false,
            unit: None,
        }
    }

    /// Runs one warp for a turn.
    fn turn(&mut self, index: usize, quantum: u64) -> Result<()> {
        let mut warp = std::mem::take(&mut self.warps[index]);
        let result = self.run(&mut warp, quantum);
        let result = result.map_err(|mut fault| {
            if fault.line == 0
                && let Some(group) = warp.groups.get(warp.current)
            {
                let source = self.program.insts[group.pc as usize].source as usize;
                fault.line = self.program.sources[source].0;
                fault.instruction = self.program.sources[source].1.clone();
            }
            fault.block = self.blocks[warp.block].index;
            fault.warp = warp.index as u32;
            fault
        });
        self.warps[index] = warp;
        result
    }

    fn run(&mut self, warp: &mut Warp, quantum: u64) -> Result<()> {
        let mut left = quantum;
        'groups: while self.choose(warp)? {
            let (mut pc, mask) = (warp.groups[warp.current].pc, warp.groups[warp.current].mask);
            // Where another group of this warp must run or join.
            let limit = limit(warp, pc);
            loop {
                if left == 0 {
                    warp.groups[warp.current].pc = pc;
                    if std::mem::take(&mut warp.spun) {
                        rotate(warp);
                    }
                    return Ok(());
                }
                left -= 1;
                let inst = &self.program.insts[pc as usize];
                self.warp_instructions += 1;
                warp.now = self.warp_instructions;
                let active = match inst.guard {
                    None => mask,
                    Some(test) => {
                        let bits = self.test(warp, mask, test).inspect_err(|_| warp.groups[warp.current].pc = pc)?;
                        bits & mask
                    }
                };
                self.lane_instructions += u64::from(active.count_ones());
                if active != 0 {
                    let next = match self.execute(warp, pc, active, mask) {
                        Ok(next) => next,
                        Err(fault) => {
                            warp.groups[warp.current].pc = pc;
                            return Err(fault);
                        }
                    };
                    match next {
                        Next::Advance => {}
                        Next::Reschedule => continue 'groups,
                        Next::Yield => {
                            warp.groups[warp.current].pc = pc + 1;
                            warp.spun = true;
                            if self.schedule.quantum.is_none() {
                                // Somebody may spin here: without limits on turns, another group or warp goes on.
                                rotate(warp);
                                return Ok(());
                            }
                            continue 'groups;
                        }
                        Next::Wait(wait) => {
                            let current = warp.current;
                            warp.groups[current].pc = pc;
                            warp.groups[current].wait = wait;
                            continue 'groups;
                        }
                    }
                }
                pc += 1;
                if pc >= limit {
                    warp.groups[warp.current].pc = pc;
                    continue 'groups;
                }
            }
        }
        Ok(())
    }

    #[inline]
    fn execute(&mut self, warp: &mut Warp, pc: u32, active: u32, group: u32) -> Result<Next> {
        let program = self.program;
        let inst = &program.insts[pc as usize];
        match &inst.op {
            Op::Two(f, options, d, a, b) => {
                self.need(warp, active, *a)?;
                self.need(warp, active, *b)?;
                f(&mut self.scratch, &warp.registers[*a as usize], &warp.registers[*b as usize], options);
                write(warp, active, *d, &self.scratch);
            }
            Op::One(f, options, d, a) => {
                self.need(warp, active, *a)?;
                f(&mut self.scratch, &warp.registers[*a as usize], options);
                write(warp, active, *d, &self.scratch);
            }
            Op::Three(f, options, d, args) => {
                args.iter().try_for_each(|a| self.need(warp, active, *a))?;
                let [a, b, c] = args.map(|a| a as usize);
                f(&mut self.scratch, &warp.registers[a], &warp.registers[b], &warp.registers[c], options);
                write(warp, active, *d, &self.scratch);
            }
            Op::Four(f, options, d, args) => {
                args.iter().try_for_each(|a| self.need(warp, active, *a))?;
                f(&mut self.scratch, args.map(|a| &warp.registers[a as usize]), options);
                write(warp, active, *d, &self.scratch);
            }
            Op::Move(d, a) => {
                let value = warp.registers[*a as usize];
                let defined = warp.defined[*a as usize];
                write(warp, active, *d, &value);
                // A move carries what is unwritten along; only a use is a fault.
                warp.defined[*d as usize] &= !active | defined;
            }
            Op::Select { out: d, a, b, test } => {
                let mut out = [0u64; 32];
                let test = self.test(warp, active, *test)?;
                let (x, y) = (&warp.registers[*a as usize], &warp.registers[*b as usize]);
                for lane in 0..32 {
                    out[lane] = if test >> lane & 1 == 1 { x[lane] } else { y[lane] };
                }
                let defined = warp.defined[*a as usize] & test | warp.defined[*b as usize] & !test;
                write(warp, active, *d, &out);
                warp.defined[*d as usize] &= !active | defined;
            }
            Op::Compare { compare, packed, out: p, other, a, b, combine } => {
                self.need(warp, active, *a)?;
                self.need(warp, active, *b)?;
                let (x, y) = (&warp.registers[*a as usize], &warp.registers[*b as usize]);
                let first = compare(x, y, false);
                let second = if *packed { compare(x, y, true) } else { !first };
                let (mut first, mut second) = (first, second);
                if let Some(combine) = combine {
                    let with = self.test(warp, active, combine.with)?;
                    (first, second) = (combine.how.apply(first, with), combine.how.apply(second, with));
                }
                self.set_pred(warp, active, *p, first);
                if let Some(other) = other {
                    self.set_pred(warp, active, *other, second);
                }
            }
            Op::Jump(target) => return Ok(self.jump(warp, pc, active, group, *target)),
            Op::Load(access) => {
                self.load(warp, active, access, inst.source)?;
                if access.strong {
                    return Ok(Next::Yield);
                }
            }
            Op::Store(access) => self.store(warp, active, access, inst.source)?,
            Op::Pack { out: d, parts, width } => {
                let mut out = [0u64; 32];
                let mut defined = !0;
                for (i, part) in parts.iter().enumerate() {
                    defined &= warp.defined[*part as usize];
                    let from = &warp.registers[*part as usize];
                    for lane in 0..32 {
                        out[lane] |= (from[lane] & ((1 << width) - 1)) << (i as u32 * width);
                    }
                }
                write(warp, active, *d, &out);
                warp.defined[*d as usize] &= !active | defined;
            }
            Op::Unpack { parts, from, width } => {
                let mut out = [0u64; 32];
                let value = warp.registers[*from as usize];
                let defined = warp.defined[*from as usize];
                for (i, part) in parts.iter().enumerate() {
                    let Some(part) = part else { continue };
                    for lane in 0..32 {
                        out[lane] = value[lane] >> (i as u32 * width) & ((1 << width) - 1);
                    }
                    write(warp, active, *part, &out);
                    warp.defined[*part as usize] &= !active | defined;
                }
            }
            Op::PredMove(p, test) => {
                let bits = self.test(warp, active, *test)?;
                self.set_pred(warp, active, *p, bits);
            }
            Op::PredConst(p, value) => self.set_pred(warp, active, *p, if *value { !0 } else { 0 }),
            Op::PredLogic(how, p, a, b) => {
                let bits = how.apply(self.test(warp, active, *a)?, self.test(warp, active, *b)?);
                self.set_pred(warp, active, *p, bits);
            }
            Op::Nothing => {}
            Op::DeviceFence => self.device_fence(warp, true, true),
            _ => return self.execute_rare(warp, pc, active, group),
        }
        Ok(Next::Advance)
    }

    fn jump(&self, warp: &mut Warp, pc: u32, active: u32, group: u32, target: u32) -> Next {
        let current = warp.current;
        if active == group {
            warp.groups[current].pc = target;
        } else {
            warp.groups[current] = state::Group { pc: pc + 1, mask: group & !active, wait: Wait::No };
            warp.groups.push(state::Group { pc: target, mask: active, wait: Wait::No });
        }
        Next::Reschedule
    }
}

/// The least position of another group that the current one must not pass.
fn limit(warp: &Warp, pc: u32) -> u32 {
    let others = warp.groups.iter().enumerate().filter(|(i, _)| *i != warp.current);
    others.map(|(_, g)| g.pc).filter(|p| *p > pc).min().unwrap_or(u32::MAX)
}

/// Another group of the warp is to be first: lanes that spin must not starve the lanes they wait for.
fn rotate(warp: &mut Warp) {
    let runs = |i: &usize| warp.groups[*i].wait == Wait::No;
    let count = warp.groups.len();
    if let Some(next) = (1..count).map(|i| (warp.current + i) % count).find(runs) {
        warp.current = next;
        warp.rotated = true;
    }
}
