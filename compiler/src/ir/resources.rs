//! What a kernel takes of a unit: registers of a thread, bytes of shared memory.
//!
//! Reads any kernel; makes an estimate before a vendor's compiler has seen it. Always holds: shared memory is exact. Registers
//! are those of the values that live at once in the order of the text, values that a subgroup shares left out; an assembler
//! that moves loads up takes more, one that finds common parts takes fewer.

use super::kernel::{Block, Constant, Inst, Kernel};
use super::types::{Type, Value};
use super::uniform::{Uniform, uniformity};

/// What a kernel takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// 32-bit registers of a thread, for values in which the threads of a subgroup may differ.
    pub registers: u32,
    /// Bytes of shared memory of a workgroup.
    pub shared_bytes: u32,
}

/// What a kernel takes where a subgroup has this many threads.
pub fn resources(kernel: &Kernel, subgroup: u32) -> Resources {
    let mut walk = Walk {
        types: &kernel.types,
        levels: uniformity(kernel, subgroup),
        parts: (0..kernel.types.len() as u32).map(|number| vec![Value(number)]).collect(),
        live: vec![false; kernel.types.len()],
        now: 0,
        most: 0,
    };
    walk.views(&kernel.body);
    walk.block(&kernel.body);
    Resources { registers: walk.most, shared_bytes: u32::try_from(kernel.shared_bytes()).unwrap_or(u32::MAX) }
}

struct Walk<'k> {
    types: &'k [Type],
    levels: Vec<Uniform>,
    /// The values in whose registers a value lies: its own, or those that it is put together from or cut out of.
    parts: Vec<Vec<Value>>,
    live: Vec<bool>,
    now: u32,
    most: u32,
}

impl Walk<'_> {
    /// Finds values that need no registers of their own.
    fn views(&mut self, block: &Block) {
        for statement in &block.statements {
            let of = |values: &[Value], parts: &[Vec<Value>]| -> Vec<Value> {
                let mut all: Vec<Value> = values.iter().flat_map(|value| parts[value.0 as usize].clone()).collect();
                all.sort_unstable();
                all.dedup();
                all
            };
            let parts = match &statement.inst {
                Inst::Const(Constant::Splat(_) | Constant::Lanes(_)) | Inst::Arg(_) => Some(Vec::new()),
                Inst::Bitcast(a) | Inst::Extract { vector: a, .. } => Some(of(&[*a], &self.parts)),
                Inst::Vector(lanes) => Some(of(lanes, &self.parts)),
                Inst::For(inner) => {
                    self.views(&inner.body);
                    None
                }
                Inst::If(inner) => {
                    self.views(&inner.then);
                    self.views(&inner.otherwise);
                    None
                }
                _ => None,
            };
            if let (Some(parts), Some(result)) = (parts, statement.results.first()) {
                self.parts[result.0 as usize] = parts;
            }
        }
    }

    fn size(&self, value: Value) -> u32 {
        let varies = self.levels[value.0 as usize] == Uniform::Varying;
        if varies { self.types[value.0 as usize].bytes().div_ceil(4) } else { 0 }
    }

    fn begin(&mut self, value: Value) {
        for part in self.parts[value.0 as usize].clone() {
            if !std::mem::replace(&mut self.live[part.0 as usize], true) {
                self.now += self.size(part);
            }
        }
        self.most = self.most.max(self.now);
    }

    fn end(&mut self, value: Value) {
        if std::mem::replace(&mut self.live[value.0 as usize], false) {
            self.now -= self.size(value);
        }
    }

    /// Goes up a block: from what lives after it to what lives before it.
    fn block(&mut self, block: &Block) {
        for statement in block.statements.iter().rev() {
            // A result that nobody reads takes its registers for a moment.
            for &result in &statement.results {
                if self.parts[result.0 as usize] == [result] {
                    self.begin(result);
                }
            }
            for &result in &statement.results {
                self.end(result);
            }
            match &statement.inst {
                Inst::For(inner) => {
                    // What a turn reads from outside lives in every turn.
                    for value in outside(&inner.body) {
                        self.begin(value);
                    }
                    self.begin(inner.end);
                    self.begin(inner.variable);
                    self.block(&inner.body);
                    self.end(inner.variable);
                    for &(name, _) in &inner.carried {
                        self.begin(name);
                    }
                    for &(name, _) in &inner.carried {
                        self.end(name);
                    }
                }
                Inst::If(inner) => {
                    self.block(&inner.otherwise);
                    // What only the other side reads counts here too: its registers are seldom used in between.
                    self.block(&inner.then);
                }
                _ => {}
            }
            for value in statement.inst.operands() {
                self.begin(value);
            }
        }
    }
}

/// The values that a block reads and does not make.
fn outside(block: &Block) -> Vec<Value> {
    fn visit(block: &Block, read: &mut Vec<Value>, made: &mut Vec<Value>) {
        for statement in &block.statements {
            read.extend(statement.inst.operands());
            made.extend(&statement.results);
            match &statement.inst {
                Inst::For(inner) => {
                    made.push(inner.variable);
                    made.extend(inner.carried.iter().map(|&(name, _)| name));
                    visit(&inner.body, read, made);
                }
                Inst::If(inner) => {
                    visit(&inner.then, read, made);
                    visit(&inner.otherwise, read, made);
                }
                _ => {}
            }
        }
    }
    let (mut read, mut made) = (Vec::new(), Vec::new());
    visit(block, &mut read, &mut made);
    made.sort_unstable();
    read.sort_unstable();
    read.dedup();
    read.retain(|value| made.binary_search(value).is_err());
    read
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Access, Address, BinOp, Builder, Builtin, Scalar};

    #[test]
    fn a_vector_counts_once_and_shared_numbers_not_at_all() {
        let mut b = Builder::new("sums");
        b.workgroup(64, 1, 1);
        let (x, y) = (b.buffer("x", Access::Read, 16), b.buffer("y", Access::Write, 16));
        let slots = b.shared("slots", 256, 16);
        let id = b.builtin(Builtin::LocalId(0));
        let at = b.bin_imm(BinOp::Mul, id, 16);
        let place = |memory| Address { memory, index: Some(at), offset: 0 };
        let words = b.load(Type::vector(Scalar::I32, 4), place(x), 16);
        let other = b.load(Type::vector(Scalar::I32, 4), Address { offset: 1024, ..place(x) }, 16);
        let sum = b.add(words, other);
        b.store(place(y), 16, sum);
        b.store(Address { memory: slots, index: None, offset: 0 }, 16, sum);
        let found = resources(&b.finish(), 64);
        // Two vectors and the address.
        assert_eq!(found, Resources { registers: 9, shared_bytes: 256 });
    }
}
