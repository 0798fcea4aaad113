//! How values of the IR lie in WGSL values: lists of pieces of up to 4 lanes, lane 0 first.

use super::text::{Lane, Text, lane, mask, type_name, width, words};
use crate::ir::{Constant, Scalar, Type};
use crate::target::pieces::{piece_count, piece_lanes};

/// The names of a value's pieces.
pub(super) type Pieces = Vec<String>;

/// A constant of the IR.
pub(super) fn constant(t: &mut Text, constant: &Constant, ty: Type) -> Pieces {
    let lanes = piece_lanes(ty);
    let count = piece_count(ty);
    let mut piece = |bits: &[u64]| {
        let parts: Vec<String> = bits
            .iter()
            .map(|&bits| match Lane::of(ty.scalar) {
                Lane::Bool => (bits != 0).to_string(),
                Lane::Word | Lane::Float => format!("{}u", bits as u32),
            })
            .collect();
        let (lane, float) = match Lane::of(ty.scalar) {
            Lane::Bool => (Lane::Bool, false),
            Lane::Word => (Lane::Word, false),
            Lane::Float => (Lane::Word, true),
        };
        let text =
            if lanes == 1 { parts[0].clone() } else { format!("{}({})", type_name(lane, lanes), parts.join(", ")) };
        let name = t.bind(text);
        // NaN and infinity have no spelling, and their bits must not be known while the shader is compiled.
        if float { t.bind(format!("bitcast<{}>({name})", type_name(Lane::Float, lanes))) } else { name }
    };
    match constant {
        Constant::Splat(bits) => vec![piece(&vec![*bits; lanes as usize]); count],
        Constant::Lanes(list) => list.chunks(lanes as usize).map(piece).collect(),
    }
}

/// One lane of a value.
pub(super) fn extract(pieces: &Pieces, ty: Type, index: u8) -> String {
    let lanes = piece_lanes(ty);
    lane(&pieces[(index / lanes) as usize], lanes, index % lanes)
}

/// A value of lanes, lane 0 first.
pub(super) fn gather(t: &mut Text, scalar: Scalar, lanes: &[String]) -> Pieces {
    lanes
        .chunks(lanes.len().min(4))
        .map(|part| match part {
            [one] => t.bind(one),
            _ => t.bind(format!("{}({})", type_name(Lane::of(scalar), part.len() as u8), part.join(", "))),
        })
        .collect()
}

/// The same bits as another type of the same width.
pub(super) fn bitcast(t: &mut Text, pieces: &Pieces, from: Type, to: Type) -> Pieces {
    let (from_lane, to_lane) = (Lane::of(from.scalar), Lane::of(to.scalar));
    if from.lanes == to.lanes {
        if from_lane == to_lane {
            return pieces.clone();
        }
        let name = type_name(to_lane, piece_lanes(to));
        return pieces.iter().map(|piece| t.bind(format!("bitcast<{name}>({piece})"))).collect();
    }
    if from.bits() < 32 {
        // Two bytes and a half-word.
        let piece = &pieces[0];
        return vec![if from.lanes == 2 {
            t.bind(format!("{piece}.x | ({piece}.y << 8u)"))
        } else {
            t.bind(format!("vec2<u32>({piece} & 255u, {piece} >> 8u)"))
        }];
    }
    let words: Vec<String> = pieces.iter().flat_map(|piece| to_words(t, piece, from)).collect();
    let lanes = piece_lanes(to);
    let each = (lanes as u32 * width(to.scalar) / 32) as usize;
    words.chunks(each).map(|words| from_words(t, words, to.scalar, lanes)).collect()
}

/// The words of a piece of at least 32 bits.
pub(super) fn to_words(t: &mut Text, piece: &str, ty: Type) -> Vec<String> {
    let lanes = piece_lanes(ty);
    match (Lane::of(ty.scalar), width(ty.scalar)) {
        (Lane::Float, _) => (0..lanes).map(|i| format!("bitcast<u32>({})", lane(piece, lanes, i))).collect(),
        (_, 8) => {
            if let Some(known) = t.packed.get(piece) {
                return vec![known.clone()];
            }
            let x = piece;
            vec![t.bind(format!("{x}.x | ({x}.y << 8u) | ({x}.z << 16u) | ({x}.w << 24u)"))]
        }
        (_, 16) => (0..lanes / 2)
            .map(|i| {
                let (low, high) = (lane(piece, lanes, 2 * i), lane(piece, lanes, 2 * i + 1));
                t.bind(format!("{low} | ({high} << 16u)"))
            })
            .collect(),
        _ => (0..lanes).map(|i| lane(piece, lanes, i)).collect(),
    }
}

/// A piece of words.
fn from_words(t: &mut Text, list: &[String], scalar: Scalar, lanes: u8) -> String {
    let joined = list.join(", ");
    match (Lane::of(scalar), width(scalar)) {
        (Lane::Float, _) if lanes == 1 => t.bind(format!("bitcast<f32>({joined})")),
        (Lane::Float, _) => t.bind(format!("bitcast<vec{lanes}<f32>>(vec{lanes}<u32>({joined}))")),
        (_, 8) => {
            let word = t.bind(&list[0]);
            let name = t.bind(format!("(vec4<u32>({word}) >> vec4<u32>(0u, 8u, 16u, 24u)) & {}", words(4, mask(8))));
            t.packed.insert(name.clone(), word);
            name
        }
        (_, 16) => {
            let halves: Vec<String> = list
                .iter()
                .map(|word| {
                    let word = t.bind(word);
                    format!("{word} & 65535u, {word} >> 16u")
                })
                .collect();
            t.bind(format!("vec{lanes}<u32>({})", halves.join(", ")))
        }
        _ if lanes == 1 => t.bind(&list[0]),
        _ => t.bind(format!("vec{lanes}<u32>({joined})")),
    }
}
