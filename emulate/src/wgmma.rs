//! Asynchronous warpgroup matrix multiply, with A from registers or shared memory and B from shared memory.
//!
//! Each warp of the group computes its own 16 rows. Matrix descriptors:
//!
//! ```text
//! bits  0..14  start address / 16          bits 49..52  base offset (only 0 is known)
//! bits 16..30  leading byte offset / 16    bits 62..64  swizzle: 0 none, 1 128 bytes, 2 64 bytes, 3 32 bytes
//! bits 32..46  stride byte offset / 16
//! ```
//!
//! Where element (x, k) of an operand lies, x being the row of A or the column of B, `L` and `S` the two offsets, `W` the
//! swizzle's row, and `c = 16 / element bytes`; swizzles then permute the address itself:
//!
//! ```text
//! k contiguous, no swizzle   S (x / 8) + L (k / c) + 16 (x % 8) + bytes (k % c)
//! k contiguous, swizzle      S (x / 8) + W (x % 8) + bytes k
//! x contiguous, no swizzle   S (x / c) + L (k / 8) + 16 (k % 8) + bytes (x % c)
//! x contiguous, swizzle      L (x / w) + S (k / 8) + W (k % 8) + bytes (x % w)      w = W / bytes
//! ```

use crate::exec::Machine;
use crate::exec::state::Warp;
use crate::fault::{Fault, FaultKind};
use crate::launch::{Effects, Swizzle};
use crate::matrix::{Element, Sum};
use crate::op::{Op, Reg, Test};

/// `wgmma.mma_async`.
#[derive(Clone, Debug)]
pub(crate) struct Wgmma {
    pub columns: usize,
    pub depth: usize,
    pub a: Element,
    pub b: Element,
    pub sum: Sum,
    pub saturate: bool,
    pub d_registers: Vec<Reg>,
    /// One register is a descriptor, four are a fragment.
    pub a_registers: Vec<Reg>,
    pub b_descriptor: Reg,
    pub accumulate: Test,
    pub negate: bool,
    pub a_transposed: bool,
    pub b_transposed: bool,
}

/// One that was issued and not waited for.
#[derive(Clone, Debug)]
pub(crate) struct Flight {
    pc: u32,
    a: u64,
    b: u64,
    accumulate: bool,
    /// Number of the commit that takes it.
    group: u32,
    /// Its number among the warp's `wgmma`, from 1.
    number: u32,
    /// When it was issued.
    stamp: u64,
    computed: bool,
    /// Its reads were looked at once more when it finished.
    checked: bool,
}

struct Descriptor {
    start: u64,
    leading: u64,
    stride: u64,
    swizzle: Swizzle,
    row: u64,
}

impl Descriptor {
    fn parse(bits: u64) -> Result<Descriptor, Fault> {
        let field = |at: u32| (bits >> at & 0x3fff) << 4;
        let (swizzle, row) = match bits >> 62 {
            0 => (Swizzle::None, 16),
            1 => (Swizzle::B128, 128),
            2 => (Swizzle::B64, 64),
            _ => (Swizzle::B32, 32),
        };
        if bits >> 49 & 7 != 0 {
            return Err(Fault::new(FaultKind::Misuse, "a matrix descriptor with a base offset; accepted: 0"));
        }
        Ok(Descriptor { start: field(0), leading: field(16), stride: field(32), swizzle, row })
    }

    /// Shared address of element (x, k).
    fn address(&self, x: u64, k: u64, bytes: u64, transposed: bool) -> u64 {
        let c = 16 / bytes;
        let w = self.row / bytes;
        let at = match (transposed, self.swizzle == Swizzle::None) {
            (false, true) => self.stride * (x / 8) + self.leading * (k / c) + 16 * (x % 8) + bytes * (k % c),
            (false, false) => self.stride * (x / 8) + self.row * (x % 8) + bytes * k,
            (true, true) => self.stride * (x / c) + self.leading * (k / 8) + 16 * (k % 8) + bytes * (x % c),
            (true, false) => self.leading * (x / w) + self.stride * (k / 8) + self.row * (k % 8) + bytes * (x % w),
        };
        self.swizzle.apply(self.start + at)
    }
}

impl Machine<'_> {
    pub(crate) fn wgmma(
        &mut self,
        warp: &mut Warp,
        pc: u32,
        active: u32,
        op: &Wgmma,
        source: u32,
    ) -> Result<(), Fault> {
        self.whole_warp(active, "`wgmma`")?;
        let a = if op.a_registers.len() == 1 {
            self.uniform(warp, active, op.a_registers[0], "a matrix descriptor")?
        } else {
            0
        };
        let b = self.uniform(warp, active, op.b_descriptor, "a matrix descriptor")?;
        let bits = self.test(warp, active, op.accumulate)?;
        let accumulate = bits & active == active;
        if !accumulate && bits & active != 0 {
            return Err(Fault::new(FaultKind::Misuse, "`scale-d` differs between lanes of the warp"));
        }
        let chained = |r: &Reg| {
            warp.flights
                .iter()
                .any(|f| matches!(&self.program.insts[f.pc as usize].op, Op::Wgmma(o) if o.d_registers.contains(r)))
        };
        for register in &op.d_registers {
            if accumulate && warp.defined[*register as usize] != !0 && !chained(register) {
                self.need(warp, active, *register)?;
            }
            self.fenced(warp, *register)?;
        }
        if op.a_registers.len() > 1 {
            for register in &op.a_registers {
                self.need(warp, active, *register)?;
                self.fenced(warp, *register)?;
            }
        }
        warp.wgmma_issued += 1;
        let number = warp.wgmma_issued;
        let (group, stamp) = (warp.wgmma_commits, self.warp_instructions);
        let mut flight = Flight { pc, a, b, accumulate, group, number, stamp, computed: false, checked: false };
        self.operands(warp, op, &flight, source)?;
        if self.schedule.effects == Effects::Early {
            self.multiply(warp, op, &flight)?;
            flight.computed = true;
        }
        // Until a wait, nobody may look at the results.
        for register in &op.d_registers {
            warp.defined[*register as usize] = 0;
        }
        warp.flights.push(flight);
        Ok(())
    }

    fn fenced(&self, warp: &Warp, register: Reg) -> Result<(), Fault> {
        if warp.fence_stamp != 0 && warp.stamps[register as usize] <= warp.fence_stamp {
            return Ok(());
        }
        Err(Fault::new(
            FaultKind::Misuse,
            "`wgmma` uses a register that was written since the last `wgmma.fence`, or no `wgmma.fence` ran",
        ))
    }

    /// The other warps of a warp's warpgroup.
    pub(crate) fn warpgroup(&self, warp: &Warp) -> impl Iterator<Item = usize> + use<> {
        let all = self.blocks[warp.block].warps.clone();
        let first = all.start + warp.index / 4 * 4;
        let own = all.start + warp.index;
        (first..(first + 4).min(all.end)).filter(move |i| *i != own)
    }

    /// Finishes flights of all groups but the last `left`; where other warps of the warpgroup have not come as far, says
    /// how many they must issue.
    ///
    /// The instruction belongs to the warpgroup: when it is finished for one warp, it has read its operands for all.
    pub(crate) fn wgmma_wait(&mut self, warp: &mut Warp, left: u32) -> Result<Option<u32>, Fault> {
        let program = self.program;
        let commits = warp.wgmma_commits;
        let done = |f: &Flight| f.group + left < commits;
        let Some(last) = warp.flights.iter().filter(|f| done(f)).map(|f| f.number).max() else { return Ok(None) };
        let others: Vec<usize> = self.warpgroup(warp).collect();
        if others.len() < 3 {
            return Err(Fault::new(FaultKind::Misuse, "`wgmma` in a block without four warps in the warpgroup"));
        }
        if others.iter().any(|i| self.warps[*i].wgmma_issued < last) {
            return Ok(Some(last));
        }
        for index in others {
            let mut other = std::mem::take(&mut self.warps[index]);
            let result = self.compute_until(&mut other, last);
            self.warps[index] = other;
            result?;
        }
        self.compute_until(warp, last)?;
        let unit = self.blocks[warp.block].races.unit(warp.index);
        let known = &mut self.blocks[warp.block].races.clocks[warp.index][unit];
        *known = (*known).max(last);
        while let Some(at) = warp.flights.iter().position(done) {
            let flight = warp.flights.remove(at);
            let Op::Wgmma(op) = &program.insts[flight.pc as usize].op else { continue };
            let used = op.d_registers.iter().chain(op.a_registers.iter().filter(|_| op.a_registers.len() > 1));
            if used.into_iter().any(|&register| warp.stamps[register as usize] > flight.stamp) {
                return Err(Fault::new(
                    FaultKind::Misuse,
                    "a register of a `wgmma` was written before a `wgmma.wait_group` had seen it end",
                ));
            }
            for register in &op.d_registers {
                let later = warp.flights.iter().any(
                    |f| matches!(&program.insts[f.pc as usize].op, Op::Wgmma(o) if o.d_registers.contains(register)),
                );
                warp.defined[*register as usize] = if later { 0 } else { !0 };
            }
        }
        Ok(None)
    }

    fn compute_until(&mut self, warp: &mut Warp, last: u32) -> Result<(), Fault> {
        let program = self.program;
        for at in 0..warp.flights.len() {
            let flight = warp.flights[at].clone();
            let inst = &program.insts[flight.pc as usize];
            let Op::Wgmma(op) = &inst.op else { continue };
            if flight.number > last {
                continue;
            }
            // What it read must have stayed as it was until now.
            if !flight.checked {
                self.operands(warp, op, &flight, inst.source)?;
                warp.flights[at].checked = true;
            }
            if !flight.computed {
                self.multiply(warp, op, &flight)?;
                warp.flights[at].computed = true;
            }
        }
        Ok(())
    }

    /// Checks the reads of shared memory.
    fn operands(&mut self, warp: &Warp, op: &Wgmma, flight: &Flight, source: u32) -> Result<(), Fault> {
        let mut actor = self.actor(warp, source);
        actor.proxy = true;
        actor.unit = Some((self.blocks[warp.block].races.unit(warp.index), flight.number));
        if op.a_registers.len() == 1 {
            let first = 16 * (warp.index as u64 % 4);
            self.operand(warp, flight.a, (first, 16), op.depth, op.a, op.a_transposed, Some(actor))?;
        }
        self.operand(warp, flight.b, (0, op.columns), op.depth, op.b, op.b_transposed, Some(actor))?;
        Ok(())
    }

    /// The elements of an operand in shared memory, all of one k together; only checks them where an actor is given.
    #[allow(clippy::too_many_arguments)]
    fn operand(
        &mut self,
        warp: &Warp,
        descriptor: u64,
        (first, count): (u64, usize),
        depth: usize,
        element: Element,
        transposed: bool,
        actor: Option<crate::race::Actor>,
    ) -> Result<Vec<f64>, Fault> {
        let descriptor = Descriptor::parse(descriptor)?;
        let bytes = u64::from(element.bits() / 8);
        let per = (16 / bytes) as usize;
        if let Some(actor) = actor {
            // Sixteen bytes at a time: along k, or along x where that is contiguous.
            let (outer, inner) = if transposed { (depth, count) } else { (count, depth) };
            for o in 0..outer {
                for i in (0..inner).step_by(per) {
                    let (x, k) = if transposed { (i, o) } else { (o, i) };
                    let address = descriptor.address(first + x as u64, k as u64, bytes, transposed);
                    let spot = self.shared_spot(warp.block, address, 16, 16)?;
                    self.check_read(warp.block, spot, 16, actor)?;
                    if self.blocks[spot.0].shared.valid[spot.1..spot.1 + 16].contains(&0) {
                        return Err(Fault::new(
                            FaultKind::Uninitialised,
                            format!("`wgmma` reads shared address {address:#x}, which nothing wrote"),
                        ));
                    }
                }
            }
            return Ok(Vec::new());
        }
        let mut out = Vec::with_capacity(count * depth);
        let shared = &self.blocks[warp.block].shared;
        for k in 0..depth {
            for x in 0..count {
                let at = descriptor.address(first + x as u64, k as u64, bytes, transposed) as usize;
                out.push(element.value(shared.read(at, bytes as usize).0));
            }
        }
        Ok(out)
    }

    fn multiply(&mut self, warp: &mut Warp, op: &Wgmma, flight: &Flight) -> Result<(), Fault> {
        let depth = op.depth;
        let a = if op.a_registers.len() == 1 {
            let first = 16 * (warp.index as u64 % 4);
            self.operand(warp, flight.a, (first, 16), depth, op.a, op.a_transposed, None)?
        } else {
            let per = (32 / op.a.bits()) as usize;
            let mut a = vec![0.0; 16 * depth];
            for (r, register) in op.a_registers.iter().enumerate() {
                for lane in 0..32 {
                    let raw = warp.registers[*register as usize][lane];
                    let (row, k) = (lane / 4 + 8 * (r % 2), lane % 4 * per + 4 * per * (r / 2));
                    for j in 0..per {
                        a[16 * (k + j) + row] = op.a.value(raw >> (op.a.bits() * j as u32));
                    }
                }
            }
            a
        };
        // The four warps of a group read the same B.
        let key = (warp.block, warp.index / 4, flight.number);
        let b = match self.operand_cache.iter().position(|(k, _)| *k == key) {
            Some(at) => std::mem::take(&mut self.operand_cache[at].1),
            None => {
                let b = self.operand(warp, flight.b, (0, op.columns), depth, op.b, op.b_transposed, None)?;
                if self.operand_cache.len() == 16 {
                    self.operand_cache.remove(0);
                }
                self.operand_cache.push((key, Vec::new()));
                b
            }
        };
        let mut products = vec![0.0f64; 16 * op.columns];
        for (row, sums) in products.chunks_exact_mut(op.columns).enumerate() {
            for (k, line) in b.chunks_exact(op.columns).enumerate() {
                let x = a[16 * k + row];
                for (sum, y) in sums.iter_mut().zip(line) {
                    *sum += x * y;
                }
            }
        }
        if let Some(entry) = self.operand_cache.iter_mut().find(|(k, _)| *k == key) {
            entry.1 = b;
        }
        let sign = if op.negate { -1.0 } else { 1.0 };
        for lane in 0..32 {
            for i in 0..op.columns / 2 {
                let (row, column) = (lane / 4 + 8 * (i / 2 % 2), 8 * (i / 4) + 2 * (lane % 4) + i % 2);
                let product = sign * products[row * op.columns + column];
                let (register, shift) = op.sum.slot(i);
                let slot = &mut warp.registers[op.d_registers[register] as usize][lane];
                let old = if flight.accumulate { op.sum.value(*slot >> shift) } else { 0.0 };
                let mask = if op.sum == Sum::F16 { 0xffff } else { 0xffff_ffff };
                *slot = *slot & !(mask << shift) & 0xffff_ffff | op.sum.bits(product + old, op.saturate) << shift;
            }
        }
        Ok(())
    }
}
