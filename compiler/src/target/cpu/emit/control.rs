//! Blocks, branches and loops.

use super::super::value::{Repr, shape};
use super::Emitter;
use crate::ir::{self, Inst, Scalar};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{self as clif, BlockArg, InstBuilder, types};
use std::collections::HashMap;

impl<'a> Emitter<'a> {
    pub(super) fn jump(&mut self, to: clif::Block, values: &[clif::Value]) {
        let values: Vec<BlockArg> = values.iter().copied().map(BlockArg::Value).collect();
        self.b.ins().jump(to, &values);
    }

    /// Gives a block the parameters of some IR values, and defines these values as them.
    fn take_params(&mut self, block: clif::Block, values: &[ir::Value]) {
        for &value in values {
            let (lane, pieces) = shape(self.kernel.ty(value));
            let pieces = pieces.into_iter().map(|ty| self.b.append_block_param(block, ty)).collect();
            self.define(value, Repr { lane, lanes: self.kernel.ty(value).lanes, pieces });
        }
    }

    /// Goes on in a block that the current one dominates.
    fn enter(&mut self, block: clif::Block) {
        self.b.switch_to_block(block);
        self.constants.clear();
        self.vectors.clear();
    }

    /// Emits statements; returns what the last one yields.
    pub(super) fn block(&mut self, block: &'a ir::Block) -> &'a [ir::Value] {
        self.addresses.push(HashMap::new());
        let mut yielded: &[ir::Value] = &[];
        for statement in &block.statements {
            match &statement.inst {
                Inst::Yield(values) => yielded = values,
                Inst::For(for_) => self.for_loop(for_, &statement.results),
                Inst::If(if_) => self.branch(if_, &statement.results),
                inst => self.statement(inst, statement.results.first().copied()),
            }
        }
        yielded
    }

    fn leave(&mut self) {
        self.addresses.pop();
    }

    fn branch(&mut self, if_: &'a ir::If, results: &[ir::Value]) {
        let (then, otherwise, join) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        let cond = self.get(if_.cond).one();
        self.b.ins().brif(cond, then, &[], otherwise, &[]);
        for (side, body) in [(then, &if_.then), (otherwise, &if_.otherwise)] {
            self.enter(side);
            let yielded = self.block(body);
            let values = self.canonical_pieces(yielded);
            self.leave();
            self.jump(join, &values);
        }
        self.enter(join);
        self.take_params(join, results);
    }

    fn for_loop(&mut self, for_: &'a ir::For, results: &[ir::Value]) {
        let narrow = self.kernel.ty(for_.variable).scalar == Scalar::I32;
        let known = self.known(for_.start).zip(self.known(for_.end));
        let signed = |bits: u64| if narrow { i64::from(bits as u32 as i32) } else { bits as i64 };
        let runs = known.map(|(start, end)| signed(start) < signed(end));
        let inits: Vec<ir::Value> = for_.carried.iter().map(|&(_, init)| init).collect();
        let init = self.canonical_pieces(&inits);
        // The counter is kept in 64 bits: a 32-bit one cannot overflow there, and it is an index without conversion.
        let wide = |this: &mut Self, value: ir::Value| {
            let value = this.get(value).one();
            if narrow { this.b.ins().sextend(types::I64, value) } else { value }
        };
        let (start, end) = (wide(self, for_.start), wide(self, for_.end));
        let (head, exit) = (self.b.create_block(), self.b.create_block());
        let enter: Vec<clif::Value> = [start].into_iter().chain(init.iter().copied()).collect();
        match runs {
            Some(true) => self.jump(head, &enter),
            Some(false) => self.jump(exit, &init),
            None => {
                let any = self.b.ins().icmp(IntCC::SignedLessThan, start, end);
                let enter: Vec<BlockArg> = enter.into_iter().map(BlockArg::Value).collect();
                let init: Vec<BlockArg> = init.into_iter().map(BlockArg::Value).collect();
                self.b.ins().brif(any, head, &enter, exit, &init);
            }
        }
        if runs != Some(false) {
            self.enter(head);
            let counter = self.b.append_block_param(head, types::I64);
            let named: Vec<ir::Value> = for_.carried.iter().map(|&(name, _)| name).collect();
            self.take_params(head, &named);
            let variable = if narrow {
                self.wide_counters.insert(for_.variable, counter);
                Repr::scalar(types::I32, self.b.ins().ireduce(types::I32, counter))
            } else {
                Repr::scalar(types::I64, counter)
            };
            self.define(for_.variable, variable);
            let yielded = self.block(&for_.body);
            let values = self.canonical_pieces(yielded);
            self.leave();
            let next = self.b.ins().iadd_imm_s(counter, for_.step);
            let no_overflow = narrow && for_.step < 1 << 62
                || known.is_some_and(|(_, end)| signed(end).checked_add(for_.step).is_some());
            let more = if no_overflow {
                self.b.ins().icmp(IntCC::SignedLessThan, next, end)
            } else {
                // `end - counter` is positive here, so it is exact as an unsigned number.
                let left = self.b.ins().isub(end, counter);
                let step = self.b.ins().iconst(types::I64, for_.step);
                self.b.ins().icmp(IntCC::UnsignedGreaterThan, left, step)
            };
            let again: Vec<BlockArg> = [next].into_iter().chain(values.iter().copied()).map(BlockArg::Value).collect();
            let done: Vec<BlockArg> = values.into_iter().map(BlockArg::Value).collect();
            self.b.ins().brif(more, head, &again, exit, &done);
        }
        self.enter(exit);
        self.take_params(exit, results);
    }
}
