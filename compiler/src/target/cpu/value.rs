//! How IR values lie in CLIF values, and the moves between lanes, pieces and widths.
//!
//! A scalar is one CLIF scalar (bools as an `i8` of 0 or 1, small floats as raw integers). A vector is a list of
//! 128-bit pieces; one of fewer than 128 bits lies in the low lanes of a single piece, and the rest of that piece is
//! unspecified. A vector of bools is a mask, 0 or -1 per lane, as wide as what was compared: its `Repr` says how wide.

use cranelift_codegen::ir::immediates::{Ieee32, Ieee64};
use cranelift_codegen::ir::{self as clif, ConstantData, InstBuilder, MemFlagsData, types};

use super::emit::Emitter;
use crate::ir::{Scalar, Type};

/// Bytes of a piece.
pub(super) const PIECE: usize = 16;

/// One IR value as CLIF values.
#[derive(Clone, Debug)]
pub(super) struct Repr {
    /// CLIF type of a lane.
    pub lane: clif::Type,
    /// Number of lanes; 1 is a scalar.
    pub lanes: u8,
    /// The scalar, or the pieces in order.
    pub pieces: Vec<clif::Value>,
}

impl Repr {
    pub(super) fn scalar(lane: clif::Type, value: clif::Value) -> Repr {
        Repr { lane, lanes: 1, pieces: vec![value] }
    }

    /// The scalar, or the only piece.
    pub(super) fn one(&self) -> clif::Value {
        self.pieces[0]
    }

    /// Other pieces of the same shape.
    pub(super) fn with(&self, pieces: Vec<clif::Value>) -> Repr {
        Repr { pieces, ..*self }
    }

    /// Lanes of one piece.
    fn per_piece(&self) -> usize {
        128 / self.lane.bits() as usize
    }
}

/// CLIF type of a scalar, or of a vector's lanes. Bools in block parameters have byte lanes.
pub(super) fn lane_type(scalar: Scalar) -> clif::Type {
    match scalar {
        Scalar::Bool | Scalar::I8 => types::I8,
        Scalar::E4m3fn | Scalar::E4m3fnuz | Scalar::E5m2 | Scalar::E5m2fnuz | Scalar::E8m0 => types::I8,
        Scalar::I16 | Scalar::F16 | Scalar::Bf16 => types::I16,
        Scalar::I32 => types::I32,
        Scalar::I64 => types::I64,
        Scalar::F32 => types::F32,
    }
}

/// The 128-bit vector of this lane.
pub(super) fn vector_type(lane: clif::Type) -> clif::Type {
    match lane {
        types::I8 => types::I8X16,
        types::I16 => types::I16X8,
        types::I32 => types::I32X4,
        types::I64 => types::I64X2,
        types::F32 => types::F32X4,
        _ => types::F64X2,
    }
}

/// The integer of this many bits.
pub(super) fn int_type(bits: u32) -> clif::Type {
    match bits {
        8 => types::I8,
        16 => types::I16,
        32 => types::I32,
        _ => types::I64,
    }
}

/// Pieces that a vector of this lane takes.
pub(super) fn piece_count(lane: clif::Type, lanes: u8) -> usize {
    (lane.bytes() as usize * lanes as usize).div_ceil(PIECE)
}

/// CLIF types of a value's pieces.
pub(super) fn shape(ty: Type) -> (clif::Type, Vec<clif::Type>) {
    let lane = lane_type(ty.scalar);
    if ty.lanes == 1 {
        return (lane, vec![lane]);
    }
    (lane, vec![vector_type(lane); piece_count(lane, ty.lanes)])
}

/// Byte `index` of a piece; `None` where any byte will do.
pub(super) type Byte = Option<(clif::Value, u8)>;

impl Emitter<'_> {
    pub(super) fn type_of(&self, value: clif::Value) -> clif::Type {
        self.b.func.dfg.value_type(value)
    }

    /// A number of any scalar or 128-bit vector type; every lane has these low bits.
    pub(super) fn number(&mut self, ty: clif::Type, bits: u64) -> clif::Value {
        if ty.is_vector() {
            let bytes = bits.to_le_bytes();
            let width = ty.lane_type().bytes() as usize;
            let lanes: Vec<u8> = bytes[..width].iter().copied().cycle().take(PIECE).collect();
            return self.vconst(ty, lanes);
        }
        match ty {
            types::F32 => self.b.ins().f32const(Ieee32::with_bits(bits as u32)),
            types::F64 => self.b.ins().f64const(Ieee64::with_bits(bits)),
            _ => {
                let masked = if ty.bits() == 64 { bits } else { bits & ((1 << ty.bits()) - 1) };
                self.b.ins().iconst(ty, masked as i64)
            }
        }
    }

    pub(super) fn vconst(&mut self, ty: clif::Type, bytes: Vec<u8>) -> clif::Value {
        let key = (ty, bytes);
        if let Some(&value) = self.vectors.get(&key) {
            return value;
        }
        let handle = self.b.func.dfg.constants.insert(ConstantData::from(key.1.as_slice()));
        let value = self.b.ins().vconst(ty, handle);
        self.vectors.insert(key, value);
        value
    }

    /// The same bits as another type of the same width.
    pub(super) fn bits_as(&mut self, value: clif::Value, ty: clif::Type) -> clif::Value {
        if self.type_of(value) == ty {
            return value;
        }
        let flags = MemFlagsData::new().with_endianness(clif::Endianness::Little);
        self.b.ins().bitcast(ty, flags, value)
    }

    /// A scalar in lane 0 of a piece; the other lanes are unspecified.
    pub(super) fn in_lane_0(&mut self, scalar: clif::Value) -> clif::Value {
        let ty = self.type_of(scalar);
        match ty {
            types::I8 | types::I16 => {
                let wide = self.b.ins().uextend(types::I32, scalar);
                let vector = self.b.ins().scalar_to_vector(types::I32X4, wide);
                self.bits_as(vector, vector_type(ty))
            }
            _ => self.b.ins().scalar_to_vector(vector_type(ty), scalar),
        }
    }

    /// Lane `index` of a value as a scalar; a bool's as 0 or -1.
    pub(super) fn lane(&mut self, repr: &Repr, index: u8) -> clif::Value {
        if repr.lanes == 1 {
            return repr.one();
        }
        let per = repr.per_piece();
        self.b.ins().extractlane(repr.pieces[index as usize / per], (index as usize % per) as u8)
    }

    /// A vector of scalars.
    pub(super) fn lanes_to_vector(&mut self, lane: clif::Type, scalars: &[clif::Value]) -> Repr {
        if scalars.len() == 1 {
            return Repr::scalar(lane, scalars[0]);
        }
        let ty = vector_type(lane);
        let per = PIECE / lane.bytes() as usize;
        let pieces = scalars
            .chunks(per)
            .map(|chunk| {
                if chunk.iter().all(|&scalar| scalar == chunk[0]) {
                    return self.b.ins().splat(ty, chunk[0]);
                }
                let mut vector = self.in_lane_0(chunk[0]);
                for (i, &scalar) in chunk.iter().enumerate().skip(1) {
                    vector = self.b.ins().insertlane(vector, scalar, i as u8);
                }
                vector
            })
            .collect();
        Repr { lane, lanes: scalars.len() as u8, pieces }
    }

    /// Applies an operation to each piece.
    pub(super) fn map(&mut self, a: &Repr, mut f: impl FnMut(&mut Self, clif::Value) -> clif::Value) -> Repr {
        let pieces = a.pieces.iter().map(|&piece| f(self, piece)).collect();
        a.with(pieces)
    }

    /// Applies an operation to each pair of pieces.
    pub(super) fn zip(
        &mut self,
        a: &Repr,
        b: &Repr,
        mut f: impl FnMut(&mut Self, clif::Value, clif::Value) -> clif::Value,
    ) -> Repr {
        let pieces = a.pieces.iter().zip(&b.pieces).map(|(&a, &b)| f(self, a, b)).collect();
        a.with(pieces)
    }

    /// Applies a scalar operation to each pair of lanes, where no vector instruction does it.
    pub(super) fn zip_lanes(
        &mut self,
        a: &Repr,
        b: &Repr,
        mut f: impl FnMut(&mut Self, clif::Value, clif::Value) -> clif::Value,
    ) -> Repr {
        let scalars: Vec<clif::Value> = (0..a.lanes)
            .map(|i| {
                let (a, b) = (self.lane(a, i), self.lane(b, i));
                f(self, a, b)
            })
            .collect();
        self.lanes_to_vector(a.lane, &scalars)
    }

    /// Bytes picked from any pieces, as `i8x16`.
    pub(super) fn gather_bytes(&mut self, bytes: &[Byte; PIECE]) -> clif::Value {
        let mut sources: Vec<clif::Value> = Vec::new();
        for (piece, _) in bytes.iter().flatten() {
            if !sources.contains(piece) {
                sources.push(*piece);
            }
        }
        let Some((&first, others)) = sources.split_first() else {
            return self.number(types::I8X16, 0);
        };
        let place = |piece: clif::Value, own: u8, at: usize, bytes: &[Byte; PIECE]| match bytes[at] {
            Some((source, index)) if source == piece => index + own,
            _ => at as u8,
        };
        let mut gathered = self.bits_as(first, types::I8X16);
        let second = others.first().copied().unwrap_or(first);
        let mask: [u8; PIECE] = std::array::from_fn(|at| match bytes[at] {
            Some((source, _)) if source == second && source != first => place(second, PIECE as u8, at, bytes),
            Some(_) => place(first, 0, at, bytes),
            None => at as u8,
        });
        let identity = |mask: &[u8; PIECE]| mask.iter().enumerate().all(|(at, &from)| at == from as usize);
        if !identity(&mask) {
            let second = self.bits_as(second, types::I8X16);
            gathered = self.shuffle(gathered, second, mask);
        }
        for &piece in others.iter().skip(1) {
            let mask = std::array::from_fn(|at| place(piece, PIECE as u8, at, bytes));
            let piece = self.bits_as(piece, types::I8X16);
            gathered = self.shuffle(gathered, piece, mask);
        }
        gathered
    }

    fn shuffle(&mut self, a: clif::Value, b: clif::Value, mask: [u8; PIECE]) -> clif::Value {
        let mask = self.b.func.dfg.immediates.push(ConstantData::from(mask.to_vec()));
        self.b.ins().shuffle(a, b, mask)
    }

    /// Lanes picked from a list of (value, lane); all values have the same lane type.
    pub(super) fn gather_lanes(&mut self, lane: clif::Type, picks: &[(&Repr, u8)]) -> Repr {
        let width = lane.bytes() as usize;
        if picks.len() == 1 {
            let scalar = self.lane(picks[0].0, picks[0].1);
            return Repr::scalar(lane, scalar);
        }
        if picks.iter().any(|(repr, _)| repr.lanes == 1) {
            let scalars: Vec<clif::Value> = picks.iter().map(|(repr, index)| self.lane(repr, *index)).collect();
            return self.lanes_to_vector(lane, &scalars);
        }
        let per = PIECE / width;
        let pieces = picks
            .chunks(per)
            .map(|chunk| {
                let bytes: [Byte; PIECE] = std::array::from_fn(|at| {
                    chunk.get(at / width).map(|(repr, index)| {
                        let byte = *index as usize * width + at % width;
                        (repr.pieces[byte / PIECE], (byte % PIECE) as u8)
                    })
                });
                let gathered = self.gather_bytes(&bytes);
                self.bits_as(gathered, vector_type(lane))
            })
            .collect();
        Repr { lane, lanes: picks.len() as u8, pieces }
    }

    /// Reads a value's bits as another type of the same width. Neither side is a bool.
    pub(super) fn bitcast(&mut self, a: &Repr, to: Type) -> Repr {
        let lane = lane_type(to.scalar);
        let pieces = match (a.lanes, to.lanes) {
            (1, 1) => vec![self.bits_as(a.one(), lane)],
            (1, _) => {
                let vector = self.in_lane_0(a.one());
                vec![self.bits_as(vector, vector_type(lane))]
            }
            (_, 1) => {
                let vector = self.bits_as(a.one(), vector_type(lane));
                vec![self.b.ins().extractlane(vector, 0)]
            }
            (_, _) => a.pieces.iter().map(|&piece| self.bits_as(piece, vector_type(lane))).collect(),
        };
        Repr { lane, lanes: to.lanes, pieces }
    }

    /// Integers of twice the width, extended.
    fn widen_once(&mut self, a: &Repr, signed: bool) -> Repr {
        let lane = int_type(a.lane.bits() * 2);
        let pieces = (0..piece_count(lane, a.lanes))
            .map(|i| {
                let piece = a.pieces[i / 2];
                match (i % 2, signed) {
                    (0, true) => self.b.ins().swiden_low(piece),
                    (0, false) => self.b.ins().uwiden_low(piece),
                    (_, true) => self.b.ins().swiden_high(piece),
                    (_, false) => self.b.ins().uwiden_high(piece),
                }
            })
            .collect();
        Repr { lane, lanes: a.lanes, pieces }
    }

    /// Integers of half the width, low bits kept. `fits` says that every number already fits in the low half,
    /// read as signed (`Some(true)`) or unsigned (`Some(false)`) or saturating to it is wanted.
    fn narrow_once(&mut self, a: &Repr, fits: Option<bool>) -> Repr {
        let half = a.lane.bits() / 2;
        let lane = int_type(half);
        let pieces = (0..piece_count(lane, a.lanes))
            .map(|i| {
                let low = a.pieces[2 * i];
                let high = a.pieces.get(2 * i + 1).copied().unwrap_or(low);
                if half == 32 {
                    let bytes: [Byte; PIECE] = std::array::from_fn(|at| {
                        Some((if at < 8 { low } else { high }, (at % 8 / 4 * 8 + at % 4) as u8))
                    });
                    let gathered = self.gather_bytes(&bytes);
                    return self.bits_as(gathered, types::I32X4);
                }
                match fits {
                    Some(true) => self.b.ins().snarrow(low, high),
                    Some(false) => self.b.ins().unarrow(low, high),
                    None => {
                        let mask = self.number(vector_type(a.lane), (1 << half) - 1);
                        let low = self.b.ins().band(low, mask);
                        let high = self.b.ins().band(high, mask);
                        self.b.ins().unarrow(low, high)
                    }
                }
            })
            .collect();
        Repr { lane, lanes: a.lanes, pieces }
    }

    /// Integers of another width: extended, or their low bits.
    pub(super) fn resize(&mut self, a: &Repr, to: clif::Type, signed: bool) -> Repr {
        if a.lanes == 1 {
            let value = if to.bits() > a.lane.bits() {
                if signed { self.b.ins().sextend(to, a.one()) } else { self.b.ins().uextend(to, a.one()) }
            } else if to.bits() < a.lane.bits() {
                self.b.ins().ireduce(to, a.one())
            } else {
                a.one()
            };
            return Repr::scalar(to, value);
        }
        let mut a = a.clone();
        while a.lane.bits() < to.bits() {
            a = self.widen_once(&a, signed);
        }
        while a.lane.bits() > to.bits() {
            a = self.narrow_once(&a, None);
        }
        a
    }

    /// Vectors of integers of a smaller width; numbers that do not fit saturate (as signed if `signed`, else to unsigned).
    pub(super) fn narrow_saturating(&mut self, a: &Repr, to: clif::Type, signed: bool) -> Repr {
        let mut a = a.clone();
        while a.lane.bits() > to.bits() {
            a = self.narrow_once(&a, Some(signed));
        }
        a
    }

    /// A mask with lanes of this many bits.
    pub(super) fn mask_of_width(&mut self, mask: &Repr, bits: u32) -> Repr {
        let mut mask = mask.clone();
        while mask.lane.bits() < bits {
            mask = self.widen_once(&mask, true);
        }
        while mask.lane.bits() > bits {
            mask = self.narrow_once(&mask, Some(true));
        }
        mask
    }
}
