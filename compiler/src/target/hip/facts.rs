//! What the emitter asks about values: who reads them, where, and whether as signed numbers.
//!
//! Reads a kernel, makes one [`Fact`] per value.

use crate::ir::{BinOp, Block, CastOp, CmpOp, Inst, Kernel, Statement, Value};

/// What is known of one value.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fact<'k> {
    /// The instruction that defines it; none for a loop's counter and carried values.
    pub inst: Option<&'k Inst>,
    /// How often it is read.
    pub uses: u32,
    /// The block that reads it, if only one does.
    pub used_in: Option<u32>,
    /// The block that defines it.
    pub defined_in: u32,
    /// Reads that take it as a signed number, less those that take it as an unsigned one.
    pub signed: i32,
    /// It adds up over the turns of a loop.
    pub sums: bool,
    /// It is an address.
    pub addresses: bool,
    /// It is a part of an address, and perhaps of other things.
    pub leads: bool,
}

/// The facts of every value.
pub(super) fn facts(kernel: &Kernel) -> Vec<Fact<'_>> {
    let mut gather = Gather { facts: vec![Fact::default(); kernel.types.len()], blocks: 0 };
    gather.block(&kernel.body);
    gather.leads(&kernel.body);
    gather.facts
}

struct Gather<'k> {
    facts: Vec<Fact<'k>>,
    blocks: u32,
}

impl<'k> Gather<'k> {
    fn fact(&mut self, value: Value) -> &mut Fact<'k> {
        &mut self.facts[value.0 as usize]
    }

    fn block(&mut self, block: &'k Block) {
        self.blocks += 1;
        let number = self.blocks;
        for statement in &block.statements {
            for value in statement.inst.operands() {
                let fact = self.fact(value);
                fact.used_in = if fact.uses == 0 || fact.used_in == Some(number) { Some(number) } else { None };
                fact.uses += 1;
            }
            for &value in &statement.results {
                let fact = self.fact(value);
                fact.inst = Some(&statement.inst);
                fact.defined_in = number;
            }
            self.signs(&statement.inst);
            match &statement.inst {
                Inst::For(inner) => {
                    let body = self.blocks + 1;
                    for &(name, _) in &inner.carried {
                        let fact = self.fact(name);
                        fact.sums = true;
                        fact.defined_in = body;
                    }
                    self.block(&inner.body);
                }
                Inst::If(inner) => {
                    self.block(&inner.then);
                    self.block(&inner.otherwise);
                }
                _ => {}
            }
        }
    }

    /// Marks what addresses are made of, from the last statement back.
    fn leads(&mut self, block: &'k Block) {
        for statement in block.statements.iter().rev() {
            match &statement.inst {
                Inst::For(inner) => self.leads(&inner.body),
                Inst::If(inner) => {
                    self.leads(&inner.otherwise);
                    self.leads(&inner.then);
                }
                Inst::Bin(_, a, b) if self.leads_on(statement) => {
                    self.fact(*a).leads = true;
                    self.fact(*b).leads = true;
                }
                Inst::Cast(_, a) if self.leads_on(statement) => self.fact(*a).leads = true,
                _ => {}
            }
        }
    }

    fn leads_on(&mut self, statement: &Statement) -> bool {
        statement.results.first().is_some_and(|&result| {
            let fact = self.fact(result);
            fact.addresses || fact.leads
        })
    }

    /// Counts reads that care for the sign.
    fn signs(&mut self, inst: &Inst) {
        let (signed, unsigned): (Vec<Value>, Vec<Value>) = match *inst {
            Inst::Bin(BinOp::DivS | BinOp::RemS | BinOp::MinS | BinOp::MaxS, a, b) => (vec![a, b], vec![]),
            Inst::Bin(BinOp::ShrS, a, _) => (vec![a], vec![]),
            Inst::Bin(BinOp::ShrU | BinOp::Shl, a, b) => (vec![], vec![a, b]),
            Inst::Cmp(CmpOp::LtS | CmpOp::LeS, a, b) => (vec![a, b], vec![]),
            Inst::Cmp(CmpOp::LtU, a, b) => (vec![], vec![a, b]),
            Inst::Cast(CastOp::ExtendS | CastOp::IntToFloatS, a) => (vec![a], vec![]),
            Inst::Cast(CastOp::ExtendU | CastOp::IntToFloatU, a) => (vec![], vec![a]),
            Inst::Shuffle { index, .. } => (vec![], vec![index]),
            Inst::Load { ref address, .. } | Inst::Store { ref address, .. } | Inst::AtomicAdd { ref address, .. } => {
                if let Some(index) = address.index {
                    self.fact(index).addresses = true;
                }
                (address.index.into_iter().collect(), vec![])
            }
            Inst::For(ref inner) => (vec![inner.start, inner.end], vec![]),
            _ => (vec![], vec![]),
        };
        for value in signed {
            self.fact(value).signed += 1;
        }
        for value in unsigned {
            self.fact(value).signed -= 1;
        }
    }
}
