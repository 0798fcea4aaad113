//! Cooperative matrices: `SPV_KHR_cooperative_matrix`, of subgroups.
//!
//! Always holds: a matrix lies in an array of its own elements or of vectors of them. What a loop or branch hands on goes through a variable of the
//! thread, as compilers of shading languages write it: drivers see no phis of matrices from these.

use super::memory::Arrays;
use super::module::{Module, Repr};
use crate::ir::{Cooperative, Fragment, Kernel, MatrixLines, Order, Part, Scalar};
use rspirv::dr::Operand;
use rspirv::spirv::{CooperativeMatrixLayout, CooperativeMatrixOperands, CooperativeMatrixUse, Op, Word};

/// The type of a matrix.
pub(super) fn ty(m: &mut Module, fragment: &Fragment) -> Word {
    let part = match fragment.part {
        Part::A => CooperativeMatrixUse::MatrixAKHR,
        Part::B => CooperativeMatrixUse::MatrixBKHR,
        Part::Sums => CooperativeMatrixUse::MatrixAccumulatorKHR,
    };
    let (rows, columns) = fragment.size();
    let repr = Scalar::of(fragment.dtype()).map_or(Repr::U32, Repr::of);
    m.matrix(repr, rows, columns, part)
}

/// A matrix with the same number everywhere.
pub(super) fn fill(m: &mut Module, fragment: &Fragment, number: Word) -> Word {
    let ty = ty(m, fragment);
    m.op(Op::CompositeConstruct, ty, &[number])
}

/// Pointer, layout, stride and memory operands, with the matrix that a store puts between them.
fn operands(
    (m, arrays, kernel): (&mut Module, &mut Arrays, &Kernel),
    lines: &MatrixLines,
    offset: Word,
    stored: Option<Word>,
) -> Vec<Operand> {
    let (pointer, unit) = arrays.matrix(m, kernel, lines.address.memory, offset);
    let layout = match lines.order {
        Order::Rows => CooperativeMatrixLayout::RowMajorKHR,
        Order::Columns => CooperativeMatrixLayout::ColumnMajorKHR,
    };
    let (layout, stride) = (m.word(layout as u32), m.word(lines.stride / unit));
    let ids = std::iter::once(pointer).chain(stored).chain([layout, stride]);
    ids.map(Operand::IdRef).chain(m.seen_by_others()).collect()
}

/// A matrix from a shared array.
pub(super) fn load(
    (m, arrays, kernel): (&mut Module, &mut Arrays, &Kernel),
    fragment: &Fragment,
    lines: &MatrixLines,
    offset: Word,
) -> Word {
    let operands = operands((m, arrays, kernel), lines, offset, None);
    let ty = ty(m, fragment);
    m.op_with(Op::CooperativeMatrixLoadKHR, ty, operands)
}

/// A matrix to a shared array.
pub(super) fn store(
    (m, arrays, kernel): (&mut Module, &mut Arrays, &Kernel),
    lines: &MatrixLines,
    offset: Word,
    matrix: Word,
) {
    let operands = operands((m, arrays, kernel), lines, offset, Some(matrix));
    m.act(Op::CooperativeMatrixStoreKHR, operands);
}

/// `A · B + C`.
pub(super) fn multiply(m: &mut Module, inst: &Cooperative, [a, b, c]: [Word; 3]) -> Word {
    let shape = inst.shape();
    let ty = ty(m, &Fragment { shape, part: Part::Sums });
    let mut operands = [a, b, c].map(Operand::IdRef).to_vec();
    let signs = [
        (Part::A, CooperativeMatrixOperands::MATRIX_A_SIGNED_COMPONENTS_KHR),
        (Part::B, CooperativeMatrixOperands::MATRIX_B_SIGNED_COMPONENTS_KHR),
        (Part::Sums, CooperativeMatrixOperands::MATRIX_C_SIGNED_COMPONENTS_KHR),
        (Part::Sums, CooperativeMatrixOperands::MATRIX_RESULT_SIGNED_COMPONENTS_KHR),
    ];
    let signs = signs.into_iter().filter(|&(part, _)| Fragment { shape, part }.is_signed()).map(|(_, sign)| sign);
    if let Some(signs) = signs.reduce(|all, sign| all | sign) {
        operands.push(Operand::CooperativeMatrixOperands(signs));
    }
    m.op_with(Op::CooperativeMatrixMulAddKHR, ty, operands)
}

/// `a · b + c`, element by element.
pub(super) fn scale(m: &mut Module, inst: &Cooperative, [a, b, c]: [Word; 3]) -> Word {
    let ty = ty(m, &Fragment { shape: inst.shape(), part: Part::Sums });
    let product = m.op(Op::FMul, ty, &[a, b]);
    m.op(Op::FAdd, ty, &[product, c])
}
