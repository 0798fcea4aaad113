//! From statements to SPIR-V: control flow, and each instruction to the file that knows it.
//!
//! Reads a legalized kernel that [`super::support`] has passed; makes a module. A loop is a header with phis, a body, a
//! continue block and a merge block; what the body yields gets the ids that the header's phis already read.

use super::memory::{self, Arrays};
use super::module::{Module, Repr};
use super::value::{self, Pieces, piece_type};
use super::{arith, group, matrix};
use crate::caps::vulkan::Vulkan;
use crate::ir::{
    Block, Builtin, Cooperative, For, Fragment, If, Inst, Kernel, Scalar, Statement, Type, Value, fragments,
};
use crate::target::pieces::{Definitions, piece_lanes};
use rspirv::dr::{Module as Finished, Operand};
use rspirv::spirv::{BuiltIn, Capability, ExecutionMode, LoopControl, Op, SelectionControl, Word};

/// The module of a kernel.
pub(super) fn module(kernel: &Kernel, device: &Vulkan) -> Finished {
    let fragments = fragments(kernel);
    let mut m = Module::new(kernel.workgroup, !fragments.is_empty());
    float_modes(&mut m, kernel, device);
    let arrays = Arrays::new(&mut m, kernel);
    let mut emitter = Emitter {
        kernel,
        m,
        arrays,
        values: Definitions::new(kernel),
        fragments,
        width: device.caps.subgroup,
        fuses: device.fuses_f32,
    };
    emitter.block(&kernel.body);
    let Emitter { mut m, arrays, .. } = emitter;
    arrays.finish(&mut m);
    m.finish(&kernel.name)
}

/// Asks for IEEE behaviour as far as the device promises it, for the widths that the kernel uses.
fn float_modes(m: &mut Module, kernel: &Kernel, device: &Vulkan) {
    for (scalar, modes) in [(Scalar::F16, device.f16_modes), (Scalar::F32, device.f32_modes)] {
        if !kernel.types.iter().any(|ty| ty.scalar == scalar) {
            continue;
        }
        for (on, capability, mode) in [
            (modes.preserves_nan, Capability::SignedZeroInfNanPreserve, ExecutionMode::SignedZeroInfNanPreserve),
            (modes.rounds_to_even, Capability::RoundingModeRTE, ExecutionMode::RoundingModeRTE),
            (modes.keeps_subnormals, Capability::DenormPreserve, ExecutionMode::DenormPreserve),
        ] {
            if on {
                m.needs(capability);
                m.mode(mode, vec![scalar.bits()]);
            }
        }
    }
}

struct Emitter<'k> {
    kernel: &'k Kernel,
    m: Module,
    arrays: Arrays,
    values: Definitions<Word>,
    /// Which values are matrices of the subgroup; empty where none is.
    fragments: Vec<Option<Fragment>>,
    width: u32,
    /// Whether the device's `Fma` of `f32` rounds once.
    fuses: bool,
}

impl Emitter<'_> {
    fn ty(&self, value: Value) -> Type {
        self.kernel.ty(value)
    }

    /// Emits statements; gives the pieces that a yield at the end gives.
    fn block(&mut self, block: &Block) -> Vec<Pieces> {
        for statement in &block.statements {
            match &statement.inst {
                Inst::Yield(values) => return values.iter().map(|&value| self.values.get(value)).collect(),
                Inst::For(inner) => self.repeat(inner, &statement.results),
                Inst::If(inner) => self.branch(inner, &statement.results),
                _ => self.statement(statement),
            }
        }
        Vec::new()
    }

    fn statement(&mut self, statement: &Statement) {
        match statement.results.as_slice() {
            &[result] => {
                let ty = self.ty(result);
                let pieces = self.value(&statement.inst, ty);
                self.values.set(result, pieces);
            }
            _ => self.effect(&statement.inst),
        }
    }

    /// An instruction without a result.
    fn effect(&mut self, inst: &Inst) {
        match inst {
            Inst::Store { address, align, value } => {
                let (ty, pieces) = (self.ty(*value), self.values.get(*value));
                let offset = self.offset(address);
                self.arrays.store(&mut self.m, self.kernel, address.memory, offset, *align, ty, &pieces);
            }
            Inst::Barrier => group::barrier(&mut self.m),
            Inst::Cooperative(inner) => {
                self.cooperative(inner);
            }
            // Everything else has a result, or is control flow.
            _ => {}
        }
    }

    fn offset(&mut self, address: &crate::ir::Address) -> Word {
        let index = address.index.map(|index| (self.values.one(index), self.ty(index).scalar));
        memory::offset(&mut self.m, address, |m, _| match index {
            Some((id, Scalar::I64)) => {
                let word = m.ty(Repr::U32, 1);
                m.op(Op::UConvert, word, &[id])
            }
            Some((id, _)) => id,
            None => m.word(0),
        })
    }

    /// Applies a function to the pieces of operands of one type.
    fn each<const N: usize>(&mut self, operands: [Value; N], f: impl Fn(&mut Module, [Word; N]) -> Word) -> Pieces {
        let lists = operands.map(|value| self.values.get(value));
        (0..lists[0].len()).map(|i| f(&mut self.m, std::array::from_fn(|n| lists[n][i]))).collect()
    }

    fn value(&mut self, inst: &Inst, ty: Type) -> Pieces {
        let lanes = piece_lanes(ty);
        match inst {
            Inst::Const(constant) => value::constant(&mut self.m, constant, ty),
            Inst::Arg(param) => self.arrays.scalar(&mut self.m, *param, ty.scalar).into_iter().collect(),
            Inst::Builtin(builtin) => vec![self.builtin(*builtin)],
            Inst::Bin(op, a, b) => self.each([*a, *b], |m, [a, b]| arith::bin(m, *op, ty.scalar, lanes, a, b)),
            Inst::Un(op, a) => self.each([*a], |m, [a]| arith::un(m, *op, ty.scalar, lanes, a)),
            Inst::Cmp(op, a, b) => {
                let scalar = self.ty(*a).scalar;
                self.each([*a, *b], |m, [a, b]| arith::cmp(m, *op, scalar, lanes, a, b))
            }
            Inst::Select { cond, a, b } => {
                let piece = piece_type(&mut self.m, ty);
                if self.ty(*cond).lanes == 1 {
                    let cond = self.values.one(*cond);
                    return self.each([*a, *b], |m, [a, b]| m.op(Op::Select, piece, &[cond, a, b]));
                }
                self.each([*cond, *a, *b], |m, operands| m.op(Op::Select, piece, &operands))
            }
            Inst::Cast(op, a) => {
                let from = self.ty(*a).scalar;
                self.each([*a], |m, [a]| arith::cast(m, *op, from, ty.scalar, lanes, a))
            }
            Inst::Bitcast(a) => {
                let (from, pieces) = (self.ty(*a), self.values.get(*a));
                value::bitcast(&mut self.m, &pieces, from, ty)
            }
            Inst::Fma(a, b, c) if ty.scalar == Scalar::F32 && !self.fuses => {
                self.each([*a, *b, *c], |m, operands| arith::fma_by_double(m, lanes, operands))
            }
            Inst::Fma(a, b, c) => self.each([*a, *b, *c], |m, operands| arith::fma(m, ty.scalar, lanes, operands)),
            Inst::Vector(parts) => {
                let parts: Vec<Word> = parts.iter().map(|&part| self.values.one(part)).collect();
                value::gather(&mut self.m, ty.scalar, &parts)
            }
            Inst::Splat(a) => {
                let scalar = self.values.one(*a);
                value::splat(&mut self.m, scalar, ty)
            }
            Inst::Extract { vector, lane } => {
                let (from, pieces) = (self.ty(*vector), self.values.get(*vector));
                vec![value::extract(&mut self.m, &pieces, from, *lane)]
            }
            Inst::Swizzle { a, b, lanes } => {
                let (from, a, b) = (self.ty(*a), self.values.get(*a), self.values.get(*b));
                value::swizzle(&mut self.m, &a, &b, from, lanes)
            }
            Inst::Load { address, align } => {
                let offset = self.offset(address);
                self.arrays.load(&mut self.m, self.kernel, address.memory, offset, *align, ty)
            }
            Inst::Dot4 { signs, a, b, acc, .. } => self.dot4(*signs, [*a, *b, *acc], ty),
            Inst::Shuffle { mode, value, index } => {
                let (operand, index) = (self.values.one(*value), self.values.one(*index));
                vec![group::shuffle(&mut self.m, *mode, Repr::of(ty.scalar), operand, index, self.width)]
            }
            Inst::SubgroupReduce(op, a) => {
                let operand = self.values.one(*a);
                vec![group::reduce(&mut self.m, *op, ty.scalar, operand, self.width)]
            }
            Inst::AtomicAdd { address, value } => {
                let addend = self.values.one(*value);
                let offset = self.offset(address);
                vec![self.arrays.atomic_add(&mut self.m, self.kernel, address.memory, offset, addend)]
            }
            Inst::Cooperative(inner) => self.cooperative(inner).into_iter().collect(),
            // Expanded or refused before, or without a result.
            Inst::Unpack { .. }
            | Inst::Dot2 { .. }
            | Inst::PermuteBytes { .. }
            | Inst::PermuteLong { .. }
            | Inst::Mma { .. }
            | Inst::AsyncCopy { .. }
            | Inst::AsyncCommit
            | Inst::AsyncWait(_)
            | Inst::Asynchronous(_)
            | Inst::Store { .. }
            | Inst::Prefetch(_)
            | Inst::Barrier
            | Inst::For(_)
            | Inst::If(_)
            | Inst::Yield(_) => Vec::new(),
        }
    }

    fn cooperative(&mut self, inst: &Cooperative) -> Option<Word> {
        let offset = inst.place().map(|(lines, _)| self.offset(&lines.address));
        let memory = (&mut self.m, &mut self.arrays, self.kernel);
        match (inst, offset) {
            (Cooperative::Fill { fragment, value }, _) => {
                let number = self.values.one(*value);
                Some(matrix::fill(&mut self.m, fragment, number))
            }
            (Cooperative::Load { fragment, from }, Some(offset)) => Some(matrix::load(memory, fragment, from, offset)),
            (Cooperative::Store { to, sums, .. }, Some(offset)) => {
                let sums = self.values.one(*sums);
                matrix::store(memory, to, offset, sums);
                None
            }
            (Cooperative::Multiply { a, b, sums, .. }, _) => {
                let operands = [*a, *b, *sums].map(|value| self.values.one(value));
                Some(matrix::multiply(&mut self.m, inst, operands))
            }
            (Cooperative::Scale { a, b, sums, .. }, _) => {
                let operands = [*a, *b, *sums].map(|value| self.values.one(value));
                Some(matrix::scale(&mut self.m, inst, operands))
            }
            // Both have a place.
            (Cooperative::Load { .. } | Cooperative::Store { .. }, None) => None,
        }
    }

    /// The type of a value that is a matrix.
    fn matrix_type(&mut self, value: Value) -> Option<Word> {
        let fragment = self.fragments.get(value.0 as usize).copied().flatten()?;
        Some(matrix::ty(&mut self.m, &fragment))
    }

    fn store_local(&mut self, variable: Word, value: Word) {
        self.m.act(Op::Store, [variable, value].map(Operand::IdRef).to_vec());
    }

    fn builtin(&mut self, builtin: Builtin) -> Word {
        let m = &mut self.m;
        match builtin {
            Builtin::WorkgroupId(axis) => m.builtin(BuiltIn::WorkgroupId, Some(axis)),
            Builtin::WorkgroupCount(axis) => m.builtin(BuiltIn::NumWorkgroups, Some(axis)),
            Builtin::LocalId(axis) => m.builtin(BuiltIn::LocalInvocationId, Some(axis)),
            // Where each thread is a subgroup of its own, the driver's are not what is meant.
            Builtin::Lane if self.width == 1 => m.word(0),
            Builtin::Subgroup if self.width == 1 => m.builtin(BuiltIn::LocalInvocationIndex, None),
            Builtin::Lane => group::lane(m),
            Builtin::Subgroup => group::subgroup(m),
        }
    }

    fn dot4(&mut self, signs: crate::ir::Dot4Signs, [a, b, acc]: [Value; 3], ty: Type) -> Pieces {
        let bytes = self.ty(a);
        let sources = [a, b].map(|value| {
            let pieces = self.values.get(value);
            value::bitcast(&mut self.m, &pieces, bytes, ty)
        });
        let acc = self.values.get(acc);
        let sums: Vec<Word> = (0..ty.lanes)
            .map(|lane| {
                let [a, b, acc] =
                    [&sources[0], &sources[1], &acc].map(|pieces| value::extract(&mut self.m, pieces, ty, lane));
                arith::dot4(&mut self.m, signs, a, b, acc)
            })
            .collect();
        value::gather(&mut self.m, ty.scalar, &sums)
    }

    fn jump(&mut self, to: Word) {
        self.m.end(Op::Branch, vec![Operand::IdRef(to)]);
    }

    fn repeat(&mut self, inner: &For, results: &[Value]) {
        let [header, body, next, merge] = std::array::from_fn(|_| self.m.id());
        let counter_type = self.ty(inner.variable);
        let repr = Repr::of(counter_type.scalar);
        let counter_word = self.m.ty(repr, 1);
        let (start, end) = (self.values.one(inner.start), self.values.one(inner.end));
        let before = self.m.block;
        // Matrices go through variables.
        let locals: Vec<Option<(Word, Word)>> = inner
            .carried
            .iter()
            .map(|&(name, first)| {
                let ty = self.matrix_type(name)?;
                let variable = self.m.local(ty);
                let first = self.values.one(first);
                self.store_local(variable, first);
                Some((variable, ty))
            })
            .collect();
        self.jump(header);

        self.m.begin(header);
        let phi = |m: &mut Module, ty: Word, first: Word, later: Word| {
            let operands = [first, before, later, next].map(Operand::IdRef).to_vec();
            m.op_with(Op::Phi, ty, operands)
        };
        let counter_next = self.m.id();
        let counter = phi(&mut self.m, counter_word, start, counter_next);
        self.values.set(inner.variable, vec![counter]);
        let mut later_ids: Vec<Vec<Word>> = Vec::new();
        for (&(name, first), local) in inner.carried.iter().zip(&locals) {
            if local.is_some() {
                later_ids.push(Vec::new());
                continue;
            }
            let piece = piece_type(&mut self.m, self.kernel.ty(name));
            let firsts = self.values.get(first);
            let laters: Vec<Word> = firsts.iter().map(|_| self.m.id()).collect();
            let pieces = firsts.iter().zip(&laters).map(|(&f, &l)| phi(&mut self.m, piece, f, l)).collect();
            self.values.set(name, pieces);
            later_ids.push(laters);
        }
        // All phis come first.
        for (&(name, _), local) in inner.carried.iter().zip(&locals) {
            if let &Some((variable, ty)) = local {
                let current = self.m.op(Op::Load, ty, &[variable]);
                self.values.set(name, vec![current]);
            }
        }
        let bools = self.m.ty(Repr::Bool, 1);
        let goes_on = self.m.op(Op::SLessThan, bools, &[counter, end]);
        let control = Operand::LoopControl(LoopControl::NONE);
        self.m.act(Op::LoopMerge, vec![Operand::IdRef(merge), Operand::IdRef(next), control]);
        self.m.end(Op::BranchConditional, [goes_on, body, merge].map(Operand::IdRef).to_vec());

        self.m.begin(body);
        let yielded = self.block(&inner.body);
        self.jump(next);

        self.m.begin(next);
        let step = self.m.constant(repr, &[inner.step as u64 & (u64::MAX >> (64 - counter_type.scalar.bits()))]);
        self.m.define(counter_next, Op::IAdd, counter_word, [counter, step].map(Operand::IdRef).to_vec());
        for (local, pieces) in locals.iter().zip(&yielded) {
            if let &Some((variable, _)) = local {
                self.store_local(variable, pieces[0]);
            }
        }
        for ((&(name, _), laters), pieces) in inner.carried.iter().zip(&later_ids).zip(&yielded) {
            let piece = piece_type(&mut self.m, self.kernel.ty(name));
            for (&later, &value) in laters.iter().zip(pieces) {
                self.m.define(later, Op::CopyObject, piece, vec![Operand::IdRef(value)]);
            }
        }
        self.jump(header);

        self.m.begin(merge);
        for (&result, &(name, _)) in results.iter().zip(&inner.carried) {
            let pieces = self.values.get(name);
            self.values.set(result, pieces);
        }
    }

    fn branch(&mut self, inner: &If, results: &[Value]) {
        let [then, otherwise, merge] = std::array::from_fn(|_| self.m.id());
        let cond = self.values.one(inner.cond);
        let locals: Vec<Option<(Word, Word)>> = results
            .iter()
            .map(|&result| {
                let ty = self.matrix_type(result)?;
                Some((self.m.local(ty), ty))
            })
            .collect();
        let control = Operand::SelectionControl(SelectionControl::NONE);
        self.m.act(Op::SelectionMerge, vec![Operand::IdRef(merge), control]);
        self.m.end(Op::BranchConditional, [cond, then, otherwise].map(Operand::IdRef).to_vec());
        let sides = [(then, &inner.then), (otherwise, &inner.otherwise)].map(|(label, block)| {
            self.m.begin(label);
            let yielded = self.block(block);
            for (local, pieces) in locals.iter().zip(&yielded) {
                if let &Some((variable, _)) = local {
                    self.store_local(variable, pieces[0]);
                }
            }
            let from = self.m.block;
            self.jump(merge);
            (yielded, from)
        });
        self.m.begin(merge);
        let [(thens, then_from), (others, other_from)] = sides;
        for (((&result, thens), others), local) in results.iter().zip(&thens).zip(&others).zip(&locals) {
            if local.is_some() {
                continue;
            }
            let piece = piece_type(&mut self.m, self.kernel.ty(result));
            let pieces = thens
                .iter()
                .zip(others)
                .map(|(&a, &b)| {
                    let operands = [a, then_from, b, other_from].map(Operand::IdRef).to_vec();
                    self.m.op_with(Op::Phi, piece, operands)
                })
                .collect();
            self.values.set(result, pieces);
        }
        for (&result, local) in results.iter().zip(&locals) {
            if let &Some((variable, ty)) = local {
                let chosen = self.m.op(Op::Load, ty, &[variable]);
                self.values.set(result, vec![chosen]);
            }
        }
    }
}
