//! What threads do together: barriers, shuffles, reductions.
//!
//! Always holds: a sum of floats is the butterfly that the IR describes, whatever the subgroup's width.

use super::arith;
use super::module::{Module, Repr};
use crate::ir::{BinOp, ReduceOp, Scalar, ShuffleMode};
use rspirv::dr::Operand;
use rspirv::spirv::{BuiltIn, Capability, GroupOperation, MemorySemantics, Op, Scope, Word};

/// All threads of the workgroup meet, and see each other's writes.
pub(super) fn barrier(m: &mut Module) {
    let mut semantics =
        MemorySemantics::ACQUIRE_RELEASE | MemorySemantics::WORKGROUP_MEMORY | MemorySemantics::UNIFORM_MEMORY;
    if m.vulkan_memory {
        semantics |= MemorySemantics::MAKE_AVAILABLE | MemorySemantics::MAKE_VISIBLE;
    }
    let scope = m.scope(Scope::Workgroup);
    let semantics = m.word(semantics.bits());
    let operands = vec![Operand::IdScope(scope), Operand::IdScope(scope), Operand::IdMemorySemantics(semantics)];
    m.act(Op::ControlBarrier, operands);
}

/// The thread's index in its subgroup.
pub(super) fn lane(m: &mut Module) -> Word {
    m.needs(Capability::GroupNonUniform);
    m.builtin(BuiltIn::SubgroupLocalInvocationId, None)
}

/// The subgroup's index in its workgroup.
pub(super) fn subgroup(m: &mut Module) -> Word {
    m.needs(Capability::GroupNonUniform);
    m.builtin(BuiltIn::SubgroupId, None)
}

/// The 32-bit value of another lane.
pub(super) fn shuffle(m: &mut Module, mode: ShuffleMode, repr: Repr, value: Word, index: Word, width: u32) -> Word {
    let word = m.ty(Repr::U32, 1);
    let from = match mode {
        ShuffleMode::Index => index,
        ShuffleMode::Xor => {
            let own = lane(m);
            m.op(Op::BitwiseXor, word, &[own, index])
        }
        ShuffleMode::Down => {
            let own = lane(m);
            let bools = m.ty(Repr::Bool, 1);
            let sum = m.op(Op::IAdd, word, &[own, index]);
            let width = m.word(width);
            let inside = m.op(Op::ULessThan, bools, &[sum, width]);
            m.op(Op::Select, word, &[inside, sum, own])
        }
    };
    m.needs(Capability::GroupNonUniformShuffle);
    let ty = m.ty(repr, 1);
    let scope = m.scope(Scope::Subgroup);
    let operands = vec![Operand::IdScope(scope), Operand::IdRef(value), Operand::IdRef(from)];
    m.op_with(Op::GroupNonUniformShuffle, ty, operands)
}

/// The combination of all lanes' values, in every lane.
pub(super) fn reduce(m: &mut Module, op: ReduceOp, scalar: Scalar, value: Word, width: u32) -> Word {
    if scalar == Scalar::I32 {
        m.needs(Capability::GroupNonUniformArithmetic);
        let word = m.ty(Repr::U32, 1);
        let scope = m.scope(Scope::Subgroup);
        let whole = match op {
            ReduceOp::Add => Op::GroupNonUniformIAdd,
            ReduceOp::Max => Op::GroupNonUniformSMax,
        };
        let operands =
            vec![Operand::IdScope(scope), Operand::GroupOperation(GroupOperation::Reduce), Operand::IdRef(value)];
        return m.op_with(whole, word, operands);
    }
    let combine = match op {
        ReduceOp::Add => BinOp::Add,
        ReduceOp::Max if scalar.is_float() => BinOp::Max,
        ReduceOp::Max => BinOp::MaxS,
    };
    let mut sum = value;
    let mut distance = 1;
    while distance < width {
        let other = exchange(m, scalar, sum, distance, width);
        sum = arith::bin(m, combine, scalar, 1, sum, other);
        distance *= 2;
    }
    sum
}

/// The value of the lane at a distance, for scalars of any width: narrow ones travel as words, wide ones as two.
fn exchange(m: &mut Module, scalar: Scalar, value: Word, distance: u32, width: u32) -> Word {
    let repr = Repr::of(scalar);
    let (ty, word) = (m.ty(repr, 1), m.ty(Repr::U32, 1));
    let index = m.word(distance);
    match scalar.bits() {
        32 => shuffle(m, ShuffleMode::Xor, repr, value, index, width),
        64 => {
            let pair = m.ty(Repr::U32, 2);
            let words = m.op(Op::Bitcast, pair, &[value]);
            let moved = [0, 1].map(|half| {
                let half = m.extract(words, Repr::U32, half);
                shuffle(m, ShuffleMode::Xor, Repr::U32, half, index, width)
            });
            let words = m.construct(Repr::U32, &moved);
            m.op(Op::Bitcast, ty, &[words])
        }
        bits => {
            let narrow = Repr::of_bits(bits);
            let raw = m.ty(narrow, 1);
            let as_bits = if narrow == repr { value } else { m.op(Op::Bitcast, raw, &[value]) };
            let wide = m.op(Op::UConvert, word, &[as_bits]);
            let moved = shuffle(m, ShuffleMode::Xor, Repr::U32, wide, index, width);
            let back = m.op(Op::UConvert, raw, &[moved]);
            if narrow == repr { back } else { m.op(Op::Bitcast, ty, &[back]) }
        }
    }
}
