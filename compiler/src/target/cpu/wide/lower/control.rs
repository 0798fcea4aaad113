//! Blocks, branches and loops.

use super::super::machine::{Arg, Class, Condition, Inst as Op, Label, Reg, Size};
use super::super::value::{Repr, is_general};
use super::Lower;
use crate::ir::{self, Inst, Scalar, Type};
use iced_x86::Mnemonic as M;
use std::collections::HashMap;

impl<'a> Lower<'a> {
    /// Goes on in a block that the current one dominates.
    fn enter(&mut self, label: Label) {
        self.f.begin(label, self.depth);
        self.vectors.clear();
        self.prefetched.clear();
        self.widened_bytes.clear();
    }

    /// The class of the registers of a value in the shape that its type alone decides.
    fn carried_shape(&self, ty: Type) -> (Class, Size, usize) {
        if ty.scalar == Scalar::Bool && ty.lanes > 1 {
            if self.facts.evex {
                return (Class::Mask, Size::K, 1);
            }
            let (size, count) = self.vector_shape(u32::from(ty.lanes));
            return (Class::Vector, size, count);
        }
        let (size, count) = self.shape(ty);
        (if is_general(ty) { Class::General } else { Class::Vector }, size, count)
    }

    /// The registers of values, vectors of bools in byte lanes.
    fn carried(&mut self, values: &[ir::Value]) -> Vec<Reg> {
        let mut regs = Vec::new();
        for &value in values {
            let repr = self.get(value);
            let ty = self.kernel.ty(value);
            let repr =
                if ty.scalar == Scalar::Bool && ty.lanes > 1 { self.mask_of_width(&repr, ty.lanes, 8) } else { repr };
            regs.extend(repr.regs);
        }
        regs
    }

    /// Gives a block the parameters of some values, and defines these values as them.
    fn take_params(&mut self, label: Label, values: &[ir::Value]) {
        for &value in values {
            let ty = self.kernel.ty(value);
            let (class, size, count) = self.carried_shape(ty);
            let regs = (0..count).map(|_| self.f.param(label, class)).collect();
            let lane = if class == Class::Vector && ty.scalar == Scalar::Bool { 8 } else { 0 };
            self.define(value, Repr { size, lane, regs });
        }
    }

    /// Lowers statements; returns what the last one yields.
    pub(super) fn block(&mut self, block: &'a ir::Block) -> &'a [ir::Value] {
        self.extended.push(HashMap::new());
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

    fn branch(&mut self, if_: &'a ir::If, results: &[ir::Value]) {
        let (then, otherwise, join) = (self.f.label(), self.f.label(), self.f.label());
        let cond = self.get(if_.cond).one();
        self.push(M::Test, vec![Arg::Use(cond, Size::B4), Arg::Use(cond, Size::B4)]);
        self.f.push(Op::Branch(Condition::NotZero, then, otherwise));
        for (side, body) in [(then, &if_.then), (otherwise, &if_.otherwise)] {
            self.enter(side);
            let yielded = self.block(body);
            let values = self.carried(yielded);
            self.extended.pop();
            self.f.push(Op::Jump(join, values));
        }
        self.take_params(join, results);
        self.enter(join);
    }

    fn for_loop(&mut self, for_: &'a ir::For, results: &[ir::Value]) {
        let narrow = self.kernel.ty(for_.variable).scalar == Scalar::I32;
        let signed = |bits: u64| if narrow { i64::from(bits as u32 as i32) } else { bits as i64 };
        let known = self.known(for_.start).zip(self.known(for_.end)).map(|(a, b)| (signed(a), signed(b)));
        let inits: Vec<ir::Value> = for_.carried.iter().map(|&(_, init)| init).collect();
        let init = self.carried(&inits);
        let (head, exit) = (self.f.label(), self.f.label());
        self.take_params(exit, results);
        if known.is_some_and(|(start, end)| start >= end) {
            self.f.push(Op::Jump(exit, init));
            return self.enter(exit);
        }
        // The counter is kept in 64 bits: a 32-bit one cannot overflow there, and it is an index without conversion.
        let start = self.counter_bound(for_.start, known.map(|(start, _)| start), narrow);
        let limit = known.map(|(_, end)| end).filter(|&end| i32::try_from(end).is_ok());
        let end = match limit {
            Some(end) => Arg::Imm(end),
            None => Arg::Use(self.counter_bound(for_.end, known.map(|(_, end)| end), narrow), Size::B8),
        };
        if known.is_none() {
            let (enter, skip) = (self.f.label(), self.f.label());
            self.push(M::Cmp, vec![Arg::Use(start, Size::B8), end]);
            self.f.push(Op::Branch(Condition::Less, enter, skip));
            self.f.begin(skip, self.depth);
            self.f.push(Op::Jump(exit, init.clone()));
            self.f.begin(enter, self.depth);
        }
        let enter: Vec<Reg> = [start].into_iter().chain(init).collect();
        self.f.push(Op::Jump(head, enter));

        let counter = self.f.param(head, Class::General);
        let named: Vec<ir::Value> = for_.carried.iter().map(|&(name, _)| name).collect();
        self.take_params(head, &named);
        self.depth += 1;
        self.enter(head);
        self.extended.push(HashMap::new());
        if narrow {
            self.extended.last_mut().expect("a map was just pushed").insert(for_.variable, counter);
        }
        self.define(for_.variable, Repr::general(if narrow { Scalar::I32 } else { Scalar::I64 }, counter));
        let yielded = self.block(&for_.body);
        let values = self.carried(yielded);
        self.extended.pop();
        self.extended.pop();
        let step = match i32::try_from(for_.step) {
            Ok(step) => Arg::Imm(i64::from(step)),
            Err(_) => Arg::Use(self.int(Size::B8, for_.step), Size::B8),
        };
        let next = self.general2(M::Add, Size::B8, counter, step);
        let (again, done) = (self.f.label(), self.f.label());
        let no_overflow =
            narrow && for_.step < 1 << 62 || known.is_some_and(|(_, end)| end.checked_add(for_.step).is_some());
        if no_overflow {
            self.push(M::Cmp, vec![Arg::Use(next, Size::B8), end]);
            self.f.push(Op::Branch(Condition::Less, again, done));
        } else {
            // `end - counter` is positive here, so it is exact as an unsigned number.
            let end = match end {
                Arg::Imm(end) => self.int(Size::B8, end),
                _ => self.counter_bound(for_.end, known.map(|(_, end)| end), narrow),
            };
            let left = self.general2(M::Sub, Size::B8, end, Arg::Use(counter, Size::B8));
            self.push(M::Cmp, vec![Arg::Use(left, Size::B8), step]);
            self.f.push(Op::Branch(Condition::Above, again, done));
        }
        let back: Vec<Reg> = [next].into_iter().chain(values.iter().copied()).collect();
        self.f.begin(again, self.depth);
        self.f.push(Op::Jump(head, back));
        self.depth -= 1;
        self.f.begin(done, self.depth);
        self.f.push(Op::Jump(exit, values));
        self.enter(exit);
    }

    fn counter_bound(&mut self, value: ir::Value, known: Option<i64>, narrow: bool) -> Reg {
        match known {
            Some(number) => self.int(Size::B8, number),
            None if narrow => self.extended_index(value),
            None => self.get(value).one(),
        }
    }
}
