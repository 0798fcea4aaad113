//! Barrier objects, bulk copies, and products of four subgroups.
//!
//! Always holds: a copy arrives as late as it may, which is when somebody waits for its phase; a barrier object is used by
//! its maker, or behind a barrier of the workgroup; whoever waits for what nobody ends is reported by the caller.

use super::code::{Place, Slot};
use super::memory::{Space, Use, Who};
use super::workgroup::{address, counter};
use crate::caps::{MmaShape, place};
use crate::dtype::DType;
use crate::ir::asynchronous::Panel;
use crate::ir::types::Memory;
use std::collections::BTreeMap;

/// One instruction with its operands resolved.
#[derive(Debug)]
pub enum Beside {
    Init {
        barrier: Place,
        arrivals: u32,
    },
    Arrive {
        barrier: Place,
        bytes: u32,
    },
    Wait {
        barrier: Place,
        parity: Slot,
    },
    Copy {
        to: Place,
        from: Place,
        bytes: u32,
        barrier: Place,
    },
    Meet,
    /// Of the device, between workgroups.
    Fence,
    Mma(Product),
    Nothing,
}

/// Barrier objects of a workgroup, by shared array and byte.
#[derive(Debug, Default)]
pub struct Objects(BTreeMap<(Memory, i64), Object>);

#[derive(Debug)]
struct Object {
    maker: Who,
    arrivals: u32,
    /// Arrivals that this phase still lacks.
    missing: u32,
    /// Bytes announced for this phase and not copied yet.
    bytes: i64,
    /// Phases that have ended.
    phase: u32,
    copies: Vec<Copy>,
}

#[derive(Debug)]
struct Copy {
    op: usize,
    to: (Memory, i64),
    bytes: Vec<u8>,
}

impl Object {
    fn settle(&mut self) {
        if self.missing == 0 && self.bytes == 0 {
            self.phase += 1;
            self.missing = self.arrivals;
        }
    }
}

impl Objects {
    /// One instruction of one thread; `false` if it has to wait.
    pub fn step(
        &mut self,
        op: &Beside,
        regs: &[u8],
        space: &mut Space,
        who: Who,
        number: usize,
    ) -> Result<bool, String> {
        match op {
            Beside::Init { barrier, arrivals } => {
                let at = (barrier.memory, address(barrier, regs));
                space.access(at.0, at.1, 8, barrier.align, Use::Store, who)?.fill(0xa5);
                let object = Object {
                    maker: who,
                    arrivals: *arrivals,
                    missing: *arrivals,
                    bytes: 0,
                    phase: 0,
                    copies: Vec::new(),
                };
                self.0.insert(at, object);
            }
            Beside::Arrive { barrier, bytes } => {
                let object = self.find(barrier, regs, who)?;
                object.bytes += *bytes as i64;
                object.missing =
                    object.missing.checked_sub(1).ok_or("more arrivals at a barrier object than a phase has")?;
                object.settle();
                space.synchronized(who.thread);
            }
            Beside::Wait { barrier, parity } => {
                let parity = counter(regs, *parity, false) as u32 & 1;
                let object = self.find(barrier, regs, who)?;
                if object.phase & 1 == parity {
                    for copy in std::mem::take(&mut object.copies) {
                        space.end_bulk(copy.to.0, copy.to.1, &copy.bytes);
                        object.bytes -= copy.bytes.len() as i64;
                    }
                    if object.bytes < 0 {
                        return Err(format!("{} bytes more were copied than were announced", -object.bytes));
                    }
                    object.settle();
                }
                return Ok(object.phase & 1 != parity);
            }
            Beside::Copy { to, from, bytes, barrier } => {
                let target = (to.memory, address(to, regs));
                let source = (from.memory, address(from, regs));
                let bytes = space.access(source.0, source.1, *bytes as usize, 16, Use::Load, who)?.to_vec();
                let object = self.find(barrier, regs, who)?;
                space.begin_bulk(target.0, target.1, bytes.len(), who)?;
                object.copies.push(Copy { op: number, to: target, bytes });
            }
            Beside::Fence => space.fence(who),
            Beside::Meet | Beside::Mma(_) | Beside::Nothing => {}
        }
        Ok(true)
    }

    fn find(&mut self, barrier: &Place, regs: &[u8], who: Who) -> Result<&mut Object, String> {
        let at = address(barrier, regs);
        let Some(object) = self.0.get_mut(&(barrier.memory, at)) else {
            return Err(format!("byte {at} holds no barrier object"));
        };
        if object.maker.thread != who.thread && object.maker.interval == who.interval {
            return Err(format!("race: thread {} has just made this barrier object", object.maker.thread));
        }
        Ok(object)
    }

    /// The operation of a copy that nobody has waited for.
    pub fn under_way(&self) -> Option<usize> {
        self.0.values().find_map(|object| object.copies.first()).map(|copy| copy.op)
    }
}

/// A product of four subgroups.
#[derive(Debug)]
pub struct Product {
    pub shape: &'static MmaShape,
    pub columns: u32,
    pub steps: u32,
    pub fragments: Vec<Slot>,
    pub a: Option<(Place, Panel)>,
    pub b: (Place, Panel),
    pub acc: Slot,
    pub d: Slot,
}

impl Product {
    /// The sums of each thread, from the registers of all of them.
    pub fn compute(
        &self,
        regs: &[&[u8]],
        space: &mut Space,
        who: &dyn Fn(usize) -> Who,
    ) -> Result<Vec<Vec<u8>>, String> {
        let Some(map) = &self.shape.map else { return Err(format!("nobody knows the lanes of {}", self.shape)) };
        let (lanes, m, n) = (self.shape.lanes as usize, self.shape.m as usize, self.shape.n as usize);
        if regs.len() != 4 * lanes {
            return Err(format!("{} threads come; four subgroups of {lanes} work together", regs.len()));
        }
        let k = (self.shape.k * self.steps) as usize;
        let columns = self.columns as usize;
        let b = panel(&self.b, regs, columns, self.shape.b, k, space, who)?;
        let a = match &self.a {
            Some(place) => panel(place, regs, 4 * m, self.shape.a, k, space, who)?,
            None => {
                let (size, elements) = (self.shape.a.bits() as usize / 8, self.shape.a_elements() as usize);
                let mut a = vec![0.0; 4 * m * k];
                for (thread, regs) in regs.iter().enumerate() {
                    for (step, &slot) in self.fragments.iter().enumerate() {
                        for i in 0..elements {
                            let (row, column) = place(&map.a, thread % lanes * elements + i);
                            let number = decode(self.shape.a, &regs[slot as usize + i * size..][..size]);
                            a[(thread / lanes * m + row) * k + step * self.shape.k as usize + column] = number;
                        }
                    }
                }
                a
            }
        };
        let elements = self.shape.acc_elements() as usize;
        let sum = |thread: usize, i: usize| {
            let (row, column) = place(&map.acc, thread % lanes * elements + i % elements);
            let (row, column) = (thread / lanes * m + row, i / elements * n + column);
            let products = a[row * k..][..k].iter().zip(&b[column * k..][..k]).map(|(x, y)| x * y).sum::<f64>();
            let before = &regs[thread][self.acc as usize + 4 * i..][..4];
            let before = u32::from_le_bytes([before[0], before[1], before[2], before[3]]);
            if self.shape.acc == DType::I32 {
                // Exact: a product is below 2^16.
                before.wrapping_add(products as i64 as u32)
            } else {
                ((products + f32::from_bits(before) as f64) as f32).to_bits()
            }
        };
        let lane = |thread| (0..columns / 2).flat_map(|i| sum(thread, i).to_le_bytes()).collect();
        Ok((0..regs.len()).map(lane).collect())
    }
}

/// The numbers `[row][k]` of a panel, each piece read by one of the threads.
fn panel(
    (place, panel): &(Place, Panel),
    regs: &[&[u8]],
    rows: usize,
    dtype: DType,
    k: usize,
    space: &mut Space,
    who: &dyn Fn(usize) -> Who,
) -> Result<Vec<f64>, String> {
    let size = dtype.bits() as usize / 8;
    let start = address(place, regs[0]);
    if let Some(thread) = regs.iter().position(|regs| address(place, regs) != start) {
        return Err(format!("thread {thread} names another panel than the first one"));
    }
    let mut numbers = vec![0.0; rows * k];
    for row in 0..rows {
        for piece in 0..k * size / 16 {
            let at = start.saturating_add(panel.place(row as u32, piece as u32));
            let bytes = space.access(place.memory, at, 16, 16, Use::Load, who(row % regs.len()))?;
            for (i, number) in bytes.chunks(size).enumerate() {
                numbers[row * k + piece * 16 / size + i] = decode(dtype, number);
            }
        }
    }
    Ok(numbers)
}

fn decode(dtype: DType, bytes: &[u8]) -> f64 {
    let mut word = [0; 4];
    word[..bytes.len()].copy_from_slice(bytes);
    dtype.decode(u32::from_le_bytes(word))
}
