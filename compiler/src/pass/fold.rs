//! `fold`: computes what is known now, with the interpreter's own arithmetic, and drops operations that do nothing.
//!
//! Always holds: the new kernel's results are the old one's, bit for bit; float identities such as `x + 0` are left
//! alone because they are not identities. An operation that would trap stays, so that it still does.

use super::rewrite::{Names, rename, take_body, yielded};
use crate::ir::interp::evaluate::evaluate;
use crate::ir::{Address, BinOp, Block, Constant, Inst, Kernel, Statement, Type, Value};
use std::collections::HashMap;

/// Folds constants, integer identities, address offsets and branches of known direction.
pub fn fold(mut kernel: Kernel) -> Kernel {
    let body = take_body(&mut kernel);
    let mut folder = Folder { kernel, constants: HashMap::new(), sums: HashMap::new(), names: Names::new() };
    let body = folder.block(body);
    folder.kernel.body = body;
    folder.kernel
}

struct Folder {
    kernel: Kernel,
    constants: HashMap<Value, Constant>,
    /// Scalar integers that are another value plus a constant.
    sums: HashMap<Value, (Value, i64)>,
    names: Names,
}

/// What a statement becomes.
enum Folded {
    Constant(Constant),
    Same(Value),
    Keep,
}

impl Folder {
    fn block(&mut self, block: Block) -> Block {
        let mut out = Vec::with_capacity(block.statements.len());
        for mut statement in block.statements {
            rename(&mut statement.inst, &self.names);
            match statement.inst {
                Inst::For(mut inner) => {
                    inner.body = self.block(inner.body);
                    out.push(Statement { results: statement.results, inst: Inst::For(inner) });
                }
                Inst::If(mut inner) => {
                    if let Some(taken) = self.lanes(inner.cond).map(|lanes| lanes[0] != 0) {
                        let mut side = self.block(if taken { inner.then } else { inner.otherwise });
                        for (result, value) in statement.results.iter().zip(yielded(&side)) {
                            self.alias(*result, value);
                        }
                        side.statements.pop();
                        out.append(&mut side.statements);
                        continue;
                    }
                    inner.then = self.block(inner.then);
                    inner.otherwise = self.block(inner.otherwise);
                    out.push(Statement { results: statement.results, inst: Inst::If(inner) });
                }
                inst => {
                    let mut statement = Statement { results: statement.results, inst };
                    if self.statement(&mut statement) {
                        out.push(statement);
                    }
                }
            }
        }
        Block { statements: out }
    }

    fn alias(&mut self, from: Value, to: Value) {
        self.names.insert(from, to);
    }

    /// Folds one simple statement in place; false if it is gone.
    fn statement(&mut self, statement: &mut Statement) -> bool {
        self.addresses(&mut statement.inst);
        let &[result] = statement.results.as_slice() else { return true };
        let ty = self.kernel.ty(result);
        match self.simplify(&statement.inst, ty) {
            Folded::Keep => {}
            Folded::Same(value) => {
                self.alias(result, value);
                return false;
            }
            Folded::Constant(constant) => statement.inst = Inst::Const(constant),
        }
        if let Inst::Const(constant) = &statement.inst {
            self.constants.insert(result, constant.clone());
        }
        if let Inst::Bin(BinOp::Add, a, b) = statement.inst
            && ty.lanes == 1
            && ty.scalar == crate::ir::Scalar::I64
            && let Some(lanes) = self.lanes(b)
        {
            self.sums.insert(result, (a, lanes[0] as i64));
        }
        true
    }

    /// Moves constants out of an address's index into its offset. Only 64-bit sums: a 32-bit one may have wrapped.
    fn addresses(&mut self, inst: &mut Inst) {
        match inst {
            Inst::Load { address, .. }
            | Inst::Store { address, .. }
            | Inst::Prefetch(address)
            | Inst::AtomicAdd { address, .. } => {
                self.address(address);
            }
            Inst::AsyncCopy { to, from, .. } => {
                self.address(to);
                self.address(from);
            }
            Inst::Asynchronous(inner) => inner.each_address(&mut |address| self.address(address)),
            Inst::Cooperative(inner) => {
                if let Some(address) = inner.address_mut() {
                    self.address(address);
                }
            }
            _ => {}
        }
    }

    fn address(&mut self, address: &mut Address) {
        while let Some(index) = address.index {
            let ty = self.kernel.ty(index);
            if let Some(lanes) = self.lanes(index) {
                let shift = 64 - ty.scalar.bits();
                let value = ((lanes[0] << shift) as i64) >> shift;
                let Some(offset) = address.offset.checked_add(value) else { return };
                (address.index, address.offset) = (None, offset);
            } else if let Some(&(base, more)) = self.sums.get(&index) {
                let Some(offset) = address.offset.checked_add(more) else { return };
                (address.index, address.offset) = (Some(base), offset);
            } else {
                return;
            }
        }
    }

    fn lanes(&self, value: Value) -> Option<Vec<u64>> {
        let lanes = self.kernel.ty(value).lanes as usize;
        Some(match self.constants.get(&value)? {
            Constant::Splat(bits) => vec![*bits; lanes],
            Constant::Lanes(bits) => bits.clone(),
        })
    }

    /// Whether every lane of a constant has these low bits.
    fn is(&self, value: Value, bits: i64) -> bool {
        let width = self.kernel.ty(value).scalar.bits();
        let mask = if width == 64 { u64::MAX } else { (1 << width) - 1 };
        self.lanes(value).is_some_and(|lanes| lanes.iter().all(|&lane| lane & mask == bits as u64 & mask))
    }

    fn simplify(&self, inst: &Inst, ty: Type) -> Folded {
        let operands = inst.operands();
        if !operands.is_empty()
            && let Some(lanes) = evaluate(inst, ty, &|value| self.kernel.ty(value), &|value| self.constants.get(&value))
        {
            let first = lanes[0];
            let all_same = lanes.iter().all(|&lane| lane == first);
            return Folded::Constant(if all_same { Constant::Splat(first) } else { Constant::Lanes(lanes) });
        }
        match *inst {
            Inst::Bin(op, a, b) if !ty.scalar.is_float() => self.identity(op, a, b),
            Inst::Select { a, b, .. } if a == b => Folded::Same(a),
            Inst::Select { cond, a, .. } if self.is(cond, 1) => Folded::Same(a),
            Inst::Select { cond, b, .. } if self.is(cond, 0) => Folded::Same(b),
            Inst::Bitcast(a) if self.kernel.ty(a) == ty => Folded::Same(a),
            Inst::Swizzle { a, ref lanes, .. }
                if self.kernel.ty(a) == ty && lanes.iter().enumerate().all(|(i, &lane)| lane as usize == i) =>
            {
                Folded::Same(a)
            }
            _ => Folded::Keep,
        }
    }

    /// Identities of integers and bools.
    fn identity(&self, op: BinOp, a: Value, b: Value) -> Folded {
        let same = match op {
            BinOp::Add | BinOp::Or | BinOp::Xor if self.is(a, 0) => Some(b),
            BinOp::Add | BinOp::Sub | BinOp::Or | BinOp::Xor | BinOp::Shl | BinOp::ShrU | BinOp::ShrS
                if self.is(b, 0) =>
            {
                Some(a)
            }
            BinOp::Mul if self.is(a, 1) => Some(b),
            BinOp::Mul | BinOp::DivS if self.is(b, 1) && self.kernel.ty(b).scalar.is_int() => Some(a),
            BinOp::And if self.is(a, -1) => Some(b),
            BinOp::And if self.is(b, -1) => Some(a),
            BinOp::And | BinOp::Or | BinOp::MinS | BinOp::MaxS if a == b => Some(a),
            _ => None,
        };
        if let Some(value) = same {
            return Folded::Same(value);
        }
        let zero = match op {
            BinOp::Mul | BinOp::And => self.is(a, 0) || self.is(b, 0),
            BinOp::Xor | BinOp::Sub => a == b,
            _ => false,
        };
        if zero { Folded::Constant(Constant::Splat(0)) } else { Folded::Keep }
    }
}
