//! Runs workgroups: each thread on its own until it must meet others, then the meeting.
//!
//! Always holds: threads meet only at the same operation in the same turns of the same loops; anything else traps.

use super::asynchronous::{Beside, Objects};
use super::code::{Op, Place, Program, Slot};
use super::matrix;
use super::memory::{MAX_INTERVALS, Space, Use, Who};
use super::pure;
use super::trap::Trap;
use crate::ir::kernel::{BinOp, Builtin, Kernel, ReduceOp, ShuffleMode};
use crate::ir::types::{Memory, Scalar};

/// A launch under way.
#[derive(Debug)]
pub struct Machine<'k> {
    kernel: &'k Kernel,
    program: Program,
    subgroup: u32,
    grid: [u32; 3],
    group: [u32; 3],
    space: Space,
    steps_left: u64,
    threads: Vec<Thread>,
    /// Barrier objects and bulk copies of the workgroup.
    objects: Objects,
}

/// One thread: its registers, and the operation that it stands at.
#[derive(Debug)]
struct Thread {
    regs: Vec<u8>,
    at: usize,
    stop: Stop,
    copies: Copies,
}

/// A thread's asynchronous copies. They arrive as late as they may: when a wait asks for them.
#[derive(Debug, Default)]
struct Copies {
    /// Since the last commit.
    open: Vec<Copy>,
    /// Groups under way, oldest first.
    groups: std::collections::VecDeque<Vec<Copy>>,
}

/// One asynchronous copy, its places resolved.
#[derive(Clone, Copy, Debug)]
struct Copy {
    to: (Memory, i64),
    from: (Memory, i64),
    bytes: u8,
}

/// Why a thread stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// It does not.
    Running,
    /// It waits for its workgroup.
    Barrier,
    /// It waits for its subgroup.
    Exchange,
    /// It waits for its four subgroups.
    Product,
    /// It waits for a phase of a barrier object.
    Phase,
    /// It is done.
    End,
}

/// What went wrong, at which operation of which thread.
struct Fault {
    op: usize,
    thread: u32,
    message: String,
}

impl<'k> Machine<'k> {
    pub fn new(kernel: &'k Kernel, program: Program, subgroup: u32, grid: [u32; 3], space: Space, steps: u64) -> Self {
        let thread = || Thread { regs: program.image.clone(), at: 0, stop: Stop::Running, copies: Copies::default() };
        let threads = (0..kernel.threads()).map(|_| thread()).collect();
        let objects = Objects::default();
        Machine { kernel, program, subgroup, grid, group: [0; 3], space, steps_left: steps, threads, objects }
    }

    /// The memory, for its owner.
    pub fn into_space(self) -> Space {
        self.space
    }

    /// Runs every workgroup, x fastest.
    pub fn run_grid(&mut self) -> Result<(), Trap> {
        let [nx, ny, nz] = self.grid;
        let mut number = 0;
        for z in 0..nz {
            for y in 0..ny {
                for x in 0..nx {
                    self.group = [x, y, z];
                    self.run_group(number).map_err(|fault| {
                        let origin = self.program.origins[fault.op];
                        Trap::at(self.kernel, origin, fault.message, self.group, fault.thread)
                    })?;
                    number += 1;
                }
            }
        }
        Ok(())
    }

    fn run_group(&mut self, number: u32) -> Result<(), Fault> {
        self.space.enter_workgroup();
        for thread in &mut self.threads {
            (thread.at, thread.stop) = (0, Stop::Running);
            thread.copies = Copies::default();
        }
        self.objects = Objects::default();
        let count = self.threads.len();
        for interval in 0..MAX_INTERVALS {
            while self.turn(number, interval)? {}
            if let Some(thread) = self.threads.iter().position(|thread| thread.stop == Stop::Phase) {
                let message = "waits for a phase of a barrier object that nobody is going to end: deadlock".into();
                return Err(Fault { op: self.threads[thread].at, thread: thread as u32, message });
            }
            self.products(true, number, interval)?;
            if self.threads.iter().all(|thread| thread.stop == Stop::End) {
                return match self.objects.under_way() {
                    None => Ok(()),
                    Some(op) => Err(Fault { op, thread: 0, message: "a copy that nobody has waited for".into() }),
                };
            }
            self.meet(0..count, Stop::Barrier, "the workgroup")?;
            self.release(0..count);
        }
        Err(Fault { op: self.threads[0].at, thread: 0, message: format!("more than {MAX_INTERVALS} barriers") })
    }

    /// Lets every thread go as far as it gets before it needs others; whether one has moved.
    fn turn(&mut self, number: u32, interval: u32) -> Result<bool, Fault> {
        let (count, width) = (self.threads.len(), self.subgroup as usize);
        let mut moved = false;
        for first in (0..count).step_by(width) {
            let lanes = first..(first + width).min(count);
            loop {
                for lane in lanes.clone() {
                    if self.threads[lane].stop == Stop::Phase {
                        self.threads[lane].stop = Stop::Running;
                        let before = self.threads[lane].at;
                        self.advance(Who { workgroup: number, thread: lane as u32, interval })?;
                        moved |= self.threads[lane].at != before || self.threads[lane].stop != Stop::Phase;
                    } else if self.threads[lane].stop == Stop::Running {
                        moved = true;
                        self.advance(Who { workgroup: number, thread: lane as u32, interval })?;
                    }
                }
                let stops = |stop| self.threads[lanes.clone()].iter().any(|thread| thread.stop == stop);
                if stops(Stop::Phase) || !stops(Stop::Exchange) {
                    break;
                }
                self.meet(lanes.clone(), Stop::Exchange, "its subgroup")?;
                self.exchange(lanes.clone(), Who { workgroup: number, thread: first as u32, interval })?;
                self.release(lanes.clone());
                moved = true;
            }
        }
        Ok(self.products(false, number, interval)? || moved)
    }

    /// The products whose four subgroups have come; whether there was one. `last`: nobody comes any more.
    fn products(&mut self, last: bool, number: u32, interval: u32) -> Result<bool, Fault> {
        let (count, width) = (self.threads.len(), 4 * self.subgroup as usize);
        let mut done = false;
        for first in (0..count).step_by(width) {
            let who = first..(first + width).min(count);
            let waiting = self.threads[who.clone()].iter().filter(|thread| thread.stop == Stop::Product).count();
            if waiting == 0 || (waiting < who.len() && !last) {
                continue;
            }
            self.meet(who.clone(), Stop::Product, "its four subgroups")?;
            let at = self.threads[first].at;
            let Op::Asynchronous(op) = self.program.ops[at] else { continue };
            let Beside::Mma(product) = &self.program.beside[op as usize] else { continue };
            let regs: Vec<&[u8]> = self.threads[who.clone()].iter().map(|thread| &thread.regs[..]).collect();
            let who_reads = |thread: usize| Who { workgroup: number, thread: (first + thread) as u32, interval };
            let results = product.compute(&regs, &mut self.space, &who_reads);
            let results = results.map_err(|message| Fault { op: at, thread: first as u32, message })?;
            for (thread, result) in self.threads[who.clone()].iter_mut().zip(&results) {
                thread.regs[product.d as usize..][..result.len()].copy_from_slice(result);
            }
            self.release(who);
            done = true;
        }
        Ok(done)
    }

    /// Checks that all these threads wait for each other at one place of one turn.
    fn meet(&self, who: std::ops::Range<usize>, why: Stop, whom: &str) -> Result<(), Fault> {
        let Some(model) = who.clone().find(|&t| self.threads[t].stop == why) else { return Ok(()) };
        let first = &self.threads[model];
        for t in who {
            let thread = &self.threads[t];
            let same_turn = || {
                self.program.turns[first.at]
                    .iter()
                    .all(|&turn| counter(&thread.regs, turn, true) == counter(&first.regs, turn, true))
            };
            let elsewhere = if thread.stop == Stop::End {
                "has ended"
            } else if thread.stop != why || thread.at != first.at {
                "waits at another instruction"
            } else if !same_turn() {
                "is in another turn of a loop"
            } else {
                continue;
            };
            let what = if why == Stop::Barrier { "non-uniform barrier" } else { "subgroup operation under divergence" };
            let message = format!("{what}: thread {model} waits here for {whom}, but thread {t} {elsewhere}");
            return Err(Fault { op: first.at, thread: model as u32, message });
        }
        Ok(())
    }

    /// Lets threads go on after the operation that they met at.
    fn release(&mut self, who: std::ops::Range<usize>) {
        for thread in &mut self.threads[who] {
            thread.at += 1;
            thread.stop = Stop::Running;
        }
    }

    /// The operation that the lanes of a subgroup have met at; `who` is the first of them.
    fn exchange(&mut self, lanes: std::ops::Range<usize>, who: Who) -> Result<(), Fault> {
        let at = self.threads[lanes.start].at;
        let count = lanes.len();
        let fault = |lane: usize, message: String| Fault { op: at, thread: (lanes.start + lane) as u32, message };
        match self.program.ops[at] {
            Op::Shuffle { mode, d, a, b } => {
                let value = |lane: usize| chunk(&self.threads[lanes.start + lane].regs, a);
                let mut results = Vec::with_capacity(count);
                for lane in 0..count {
                    let index = counter(&self.threads[lanes.start + lane].regs, b, false);
                    let from = match mode {
                        ShuffleMode::Index => index,
                        ShuffleMode::Xor => lane as i64 ^ index,
                        ShuffleMode::Down if index >= 0 && lane as i64 + index >= count as i64 => lane as i64,
                        ShuffleMode::Down => lane as i64 + index,
                    };
                    if index < 0 || from < 0 || from >= count as i64 {
                        return Err(fault(lane, format!("shuffle from lane {from} of a subgroup of {count}")));
                    }
                    results.push(value(from as usize));
                }
                self.scatter(lanes.start, d, &results);
            }
            Op::Reduce { op, scalar, d, a } => {
                if !count.is_power_of_two() {
                    return Err(fault(0, format!("the subgroup has {count} threads, not a power of two")));
                }
                let mut values: Vec<[u8; 16]> = lanes.clone().map(|t| chunk(&self.threads[t].regs, a)).collect();
                let mut distance = 1;
                while distance < count {
                    let mut next = Vec::with_capacity(count);
                    for lane in 0..count {
                        // The lower lane is the first operand on both sides, so both get the same bits.
                        let (low, high) = (lane & !distance, lane | distance);
                        next.push(combine(op, scalar, values[low], values[high]).map_err(|m| fault(lane, m))?);
                    }
                    values = next;
                    distance *= 2;
                }
                self.scatter(lanes.start, d, &values);
            }
            Op::Mma { shape, d, a, b, c } => {
                if count != shape.lanes as usize {
                    return Err(fault(0, format!("the subgroup has {count} threads; {shape} takes {}", shape.lanes)));
                }
                let of = |slot: Slot| -> Vec<&[u8]> {
                    self.threads[lanes.clone()].iter().map(|thread| &thread.regs[slot as usize..]).collect()
                };
                let results = matrix::multiply(shape, &of(a), &of(b), &of(c));
                for (thread, result) in self.threads[lanes.clone()].iter_mut().zip(&results) {
                    thread.regs[d as usize..][..result.len()].copy_from_slice(result);
                }
            }
            Op::Cooperative(op) => {
                let threads = &mut self.threads[lanes.clone()];
                let mut regs: Vec<&mut [u8]> = threads.iter_mut().map(|thread| &mut thread.regs[..]).collect();
                let result = self.program.together[op as usize].run(&mut regs, &mut self.space, who);
                result.map_err(|message| Fault { op: at, thread: who.thread, message })?;
            }
            Op::Asynchronous(_) => lanes.for_each(|thread| self.space.synchronized(thread as u32)),
            _ => {}
        }
        Ok(())
    }

    fn scatter(&mut self, first: usize, d: Slot, values: &[[u8; 16]]) {
        for (thread, value) in self.threads[first..].iter_mut().zip(values) {
            thread.regs[d as usize..][..16].copy_from_slice(value);
        }
    }

    /// Runs one thread until it stops.
    fn advance(&mut self, who: Who) -> Result<(), Fault> {
        let thread = &mut self.threads[who.thread as usize];
        let (regs, tables) = (&mut thread.regs[..], &self.program.tables[..]);
        let ops = &self.program.ops[..];
        let mut at = thread.at;
        let mut since_turn = 0u64;
        let stop = loop {
            let fault = |message: String| Fault { op: at, thread: who.thread, message };
            since_turn += 1;
            match &ops[at] {
                Op::Load { d, place, bytes } => {
                    let from = address(place, regs);
                    let bytes = *bytes as usize;
                    let memory = self.space.access(place.memory, from, bytes, place.align, Use::Load, who);
                    let memory = memory.map_err(fault)?;
                    regs[*d as usize..][..bytes].copy_from_slice(memory);
                }
                Op::Store { a, place, bytes } => {
                    let to = address(place, regs);
                    let bytes = *bytes as usize;
                    let memory = self.space.access(place.memory, to, bytes, place.align, Use::Store, who);
                    memory.map_err(fault)?.copy_from_slice(&regs[*a as usize..][..bytes]);
                }
                Op::Atomic { d, a, place } => {
                    let to = address(place, regs);
                    let memory = self.space.access(place.memory, to, 4, place.align, Use::Atomic, who);
                    let memory = memory.map_err(fault)?;
                    let mut old = [0; 4];
                    old.copy_from_slice(memory);
                    let added = counter(regs, *a, false) as i32;
                    memory.copy_from_slice(&i32::from_le_bytes(old).wrapping_add(added).to_le_bytes());
                    regs[*d as usize..][..4].copy_from_slice(&old);
                }
                Op::Builtin { d, builtin } => {
                    let [x, y, _] = self.kernel.workgroup;
                    let value = match builtin {
                        Builtin::WorkgroupId(axis) => self.group[*axis as usize],
                        Builtin::WorkgroupCount(axis) => self.grid[*axis as usize],
                        Builtin::LocalId(0) => who.thread % x,
                        Builtin::LocalId(1) => who.thread / x % y,
                        Builtin::LocalId(_) => who.thread / x / y,
                        Builtin::Lane => who.thread % self.subgroup,
                        Builtin::Subgroup => who.thread / self.subgroup,
                    };
                    regs[*d as usize..][..4].copy_from_slice(&value.to_le_bytes());
                }
                Op::Enter { turn } => regs[*turn as usize..][..8].fill(0),
                Op::Head { variable, end, wide, exit } => {
                    if counter(regs, *variable, *wide) >= counter(regs, *end, *wide) {
                        at = *exit as usize;
                        continue;
                    }
                }
                Op::Next { variable, turn, step, wide, head } => {
                    let next = counter(regs, *variable, *wide).checked_add(*step);
                    let next = next.filter(|&next| *wide || i32::try_from(next).is_ok());
                    let next = next.ok_or_else(|| fault("the loop's counter overflows".to_string()))?;
                    let width = if *wide { 8 } else { 4 };
                    regs[*variable as usize..][..width].copy_from_slice(&next.to_le_bytes()[..width]);
                    let turns = counter(regs, *turn, true) + 1;
                    regs[*turn as usize..][..8].copy_from_slice(&turns.to_le_bytes());
                    if since_turn > self.steps_left {
                        return Err(fault("out of steps: the loop may not end".to_string()));
                    }
                    self.steps_left -= since_turn;
                    since_turn = 0;
                    at = *head as usize;
                    continue;
                }
                Op::Branch { cond, otherwise } => {
                    if regs[*cond as usize] == 0 {
                        at = *otherwise as usize;
                        continue;
                    }
                }
                Op::Jump { to } => {
                    at = *to as usize;
                    continue;
                }
                Op::Barrier => break Stop::Barrier,
                Op::AsyncCopy { to, from, bytes } => {
                    let copy = Copy {
                        to: (to.memory, address(to, regs)),
                        from: (from.memory, address(from, regs)),
                        bytes: *bytes,
                    };
                    let (len, align) = (*bytes as usize, *bytes as u32);
                    let source = self.space.access(copy.from.0, copy.from.1, len, align, Use::Load, who);
                    source.map_err(fault)?;
                    self.space.begin_store(copy.to.0, copy.to.1, len, align, who).map_err(fault)?;
                    thread.copies.open.push(copy);
                }
                Op::AsyncCommit => {
                    let group = std::mem::take(&mut thread.copies.open);
                    thread.copies.groups.push_back(group);
                }
                Op::AsyncWait { pending } => {
                    while thread.copies.groups.len() > *pending as usize {
                        for copy in thread.copies.groups.pop_front().unwrap_or_default() {
                            let (len, align) = (copy.bytes as usize, copy.bytes as u32);
                            let source = self.space.access(copy.from.0, copy.from.1, len, align, Use::Load, who);
                            let source = source.map_err(fault)?.to_vec();
                            let target = self.space.access(copy.to.0, copy.to.1, len, align, Use::Store, who);
                            target.map_err(fault)?.copy_from_slice(&source);
                        }
                    }
                }
                Op::Shuffle { .. } | Op::Reduce { .. } | Op::Mma { .. } | Op::Cooperative(_) => break Stop::Exchange,
                Op::Asynchronous(op) => match &self.program.beside[*op as usize] {
                    Beside::Meet => break Stop::Exchange,
                    Beside::Mma(_) => break Stop::Product,
                    op => {
                        if !self.objects.step(op, regs, &mut self.space, who, at).map_err(fault)? {
                            break Stop::Phase;
                        }
                    }
                },
                Op::End => break Stop::End,
                op => pure::step(op, tables, regs).map_err(fault)?,
            }
            at += 1;
        };
        self.steps_left = self.steps_left.saturating_sub(since_turn);
        thread.at = at;
        thread.stop = stop;
        Ok(())
    }
}

/// One step of a reduction.
fn combine(op: ReduceOp, scalar: Scalar, a: [u8; 16], b: [u8; 16]) -> Result<[u8; 16], String> {
    let op = match (op, scalar.is_int()) {
        (ReduceOp::Add, _) => BinOp::Add,
        (ReduceOp::Max, true) => BinOp::MaxS,
        (ReduceOp::Max, false) => BinOp::Max,
    };
    let mut regs = [0; 48];
    regs[..16].copy_from_slice(&a);
    regs[16..32].copy_from_slice(&b);
    pure::step(&Op::Bin { op, scalar, d: 32, a: 0, b: 16, n: 1, lanes: 1 }, &[], &mut regs)?;
    Ok(chunk(&regs, 32))
}

fn chunk(regs: &[u8], slot: Slot) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&regs[slot as usize..][..16]);
    out
}

/// A scalar `i32` (or `i64` if wide) as a number.
#[inline(always)]
pub(super) fn counter(regs: &[u8], slot: Slot, wide: bool) -> i64 {
    let mut bits = [0; 8];
    bits.copy_from_slice(&regs[slot as usize..][..8]);
    let bits = i64::from_le_bytes(bits);
    if wide { bits } else { bits as i32 as i64 }
}

#[inline(always)]
pub(super) fn address(place: &Place, regs: &[u8]) -> i64 {
    let index = place.index.map_or(0, |index| counter(regs, index, place.wide));
    // Saturation keeps an absurd sum out of bounds.
    index.saturating_add(place.offset)
}
