//! How values of the IR lie in SPIR-V values: a vector of many lanes is a list of pieces of 4 lanes each, lane 0 first.

use super::module::{Module, Repr};
use crate::ir::{Constant, Scalar, Type};
use crate::target::pieces::{piece_count, piece_lanes};
use rspirv::dr::Operand;
use rspirv::spirv::{Op, Word};

/// The pieces of a value.
pub(super) type Pieces = Vec<Word>;

/// The SPIR-V type of a piece.
pub(super) fn piece_type(m: &mut Module, ty: Type) -> Word {
    m.ty(Repr::of(ty.scalar), piece_lanes(ty))
}

/// A constant of the IR.
pub(super) fn constant(m: &mut Module, constant: &Constant, ty: Type) -> Pieces {
    let repr = Repr::of(ty.scalar);
    let lanes = piece_lanes(ty) as usize;
    match constant {
        Constant::Splat(bits) => vec![m.splat(repr, lanes as u8, *bits); piece_count(ty)],
        Constant::Lanes(list) => list.chunks(lanes).map(|bits| m.constant(repr, bits)).collect(),
    }
}

/// One lane.
pub(super) fn extract(m: &mut Module, pieces: &Pieces, ty: Type, lane: u8) -> Word {
    let lanes = piece_lanes(ty);
    let piece = pieces[(lane / lanes) as usize];
    if lanes == 1 { piece } else { m.extract(piece, Repr::of(ty.scalar), lane % lanes) }
}

/// A value of scalars, lane 0 first.
pub(super) fn gather(m: &mut Module, scalar: Scalar, lanes: &[Word]) -> Pieces {
    let repr = Repr::of(scalar);
    lanes.chunks(lanes.len().min(4)).map(|part| m.construct(repr, part)).collect()
}

/// The same scalar in every lane.
pub(super) fn splat(m: &mut Module, scalar: Word, ty: Type) -> Pieces {
    let lanes = piece_lanes(ty) as usize;
    vec![m.construct(Repr::of(ty.scalar), &vec![scalar; lanes]); piece_count(ty)]
}

/// Lanes picked from `a ++ b`, both of type `from`.
pub(super) fn swizzle(m: &mut Module, a: &Pieces, b: &Pieces, from: Type, picks: &[u8]) -> Pieces {
    let repr = Repr::of(from.scalar);
    let lanes = piece_lanes(from);
    let sources: Vec<Word> = a.iter().chain(b).copied().collect();
    picks
        .chunks(picks.len().min(4))
        .map(|picks| {
            let mut used: Vec<u8> = picks.iter().map(|pick| pick / lanes).collect();
            used.sort_unstable();
            used.dedup();
            if lanes == 1 || used.len() > 2 || picks.len() == 1 {
                let parts: Vec<Word> = picks
                    .iter()
                    .map(|pick| {
                        let piece = sources[(pick / lanes) as usize];
                        if lanes == 1 { piece } else { m.extract(piece, repr, pick % lanes) }
                    })
                    .collect();
                return m.construct(repr, &parts);
            }
            let (first, second) = (used[0], *used.last().unwrap_or(&used[0]));
            let mut operands = vec![Operand::IdRef(sources[first as usize]), Operand::IdRef(sources[second as usize])];
            operands.extend(picks.iter().map(|pick| {
                let base = if pick / lanes == first { 0 } else { lanes };
                Operand::LiteralBit32((base + pick % lanes) as u32)
            }));
            let ty = m.ty(repr, picks.len() as u8);
            m.op_with(Op::VectorShuffle, ty, operands)
        })
        .collect()
}

/// The same bits as another type of the same width.
pub(super) fn bitcast(m: &mut Module, pieces: &Pieces, from: Type, to: Type) -> Pieces {
    let (from_repr, to_repr) = (Repr::of(from.scalar), Repr::of(to.scalar));
    let (from_lanes, to_lanes) = (piece_lanes(from), piece_lanes(to));
    if from_repr == to_repr && from_lanes == to_lanes {
        return pieces.clone();
    }
    if piece_count(from) == piece_count(to) {
        let ty = piece_type(m, to);
        return pieces.iter().map(|&piece| m.op(Op::Bitcast, ty, &[piece])).collect();
    }
    // Pieces differ in width, so they hold whole 32-bit words: all of them in a row, then cut anew.
    let words: Vec<Word> = pieces.iter().flat_map(|&piece| to_words(m, piece, from_repr, from_lanes)).collect();
    let each = words.len() / piece_count(to);
    words.chunks(each).map(|words| from_words(m, words, to_repr, to_lanes)).collect()
}

/// The 32-bit words of a piece.
fn to_words(m: &mut Module, piece: Word, repr: Repr, lanes: u8) -> Vec<Word> {
    let spread = |m: &mut Module, vector: Word, lanes: u8| -> Vec<Word> {
        if lanes == 1 { vec![vector] } else { (0..lanes).map(|lane| m.extract(vector, Repr::U32, lane)).collect() }
    };
    match repr {
        Repr::U64 | Repr::F64 => (0..lanes)
            .flat_map(|lane| {
                let wide = if lanes == 1 { piece } else { m.extract(piece, repr, lane) };
                let ty = m.ty(Repr::U32, 2);
                let pair = m.op(Op::Bitcast, ty, &[wide]);
                spread(m, pair, 2)
            })
            .collect(),
        Repr::U32 => spread(m, piece, lanes),
        Repr::Bool | Repr::U8 | Repr::U16 | Repr::F16 | Repr::F32 => {
            let words = (lanes as u32 * width(repr) / 32) as u8;
            let ty = m.ty(Repr::U32, words);
            let vector = m.op(Op::Bitcast, ty, &[piece]);
            spread(m, vector, words)
        }
    }
}

/// A piece of 32-bit words.
fn from_words(m: &mut Module, words: &[Word], repr: Repr, lanes: u8) -> Word {
    match repr {
        Repr::U64 | Repr::F64 => {
            let parts: Vec<Word> = words
                .chunks(2)
                .map(|pair| {
                    let pair = m.construct(Repr::U32, pair);
                    let ty = m.ty(repr, 1);
                    m.op(Op::Bitcast, ty, &[pair])
                })
                .collect();
            m.construct(repr, &parts)
        }
        Repr::U32 => m.construct(repr, words),
        Repr::Bool | Repr::U8 | Repr::U16 | Repr::F16 | Repr::F32 => {
            let vector = m.construct(Repr::U32, words);
            let ty = m.ty(repr, lanes);
            m.op(Op::Bitcast, ty, &[vector])
        }
    }
}

fn width(repr: Repr) -> u32 {
    match repr {
        Repr::Bool => 1,
        Repr::U8 => 8,
        Repr::U16 | Repr::F16 => 16,
        Repr::U32 | Repr::F32 => 32,
        Repr::U64 | Repr::F64 => 64,
    }
}
