//! The only decoder: from packed words, scales and zeros to numbers in registers.
//!
//! A vector lane is a row of W; see `format::n16` for where things lie. Always holds: what it makes of a code is exactly
//! `Code::decode`, up to the factors that [`Integers`] and [`Floats`] name.

pub(super) mod fields;
pub(super) mod fragments;
mod hints;
mod numbers;
pub(super) mod pairs;
mod scales;

use self::numbers::{small_float, table_lookup, with_sign};
use super::memory::{at, split, times};
use super::walk::Pos;
use crate::caps::{Caps, Feature, Features};
use crate::dtype::DType;
use crate::format::n16::{N16, ROWS, Section};
use crate::format::{Code, Zero};
use crate::ir::{Address, BinOp, Builder, CastOp, Dot4Signs, Memory, Scalar, Type, Value};

/// Reads the packed weights of a strip of rows.
pub(super) struct Weights<'a> {
    /// Where things lie.
    pub layout: &'a N16,
    memory: Memory,
    /// Rows per vector.
    pub lanes: u8,
    /// First row of the strip.
    row: Value,
    /// Whether the strip may start inside a block of 16 rows.
    inside: bool,
    /// The last block, where the strip may reach past it: what lies there is never stored, but must be readable.
    last_block: Option<usize>,
    features: Features,
    /// How far ahead of the words that are read others are asked for, in bytes.
    ahead: Option<usize>,
}

/// How codes enter an integer dot product: `code = (factor · byte - offset) · scale`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Integers {
    /// How the dot product reads the bytes of weights and activations.
    pub signs: Dot4Signs,
    /// Bits that the bytes use.
    pub bits: u8,
    /// 1 or 2.
    pub factor: i32,
    /// Taken off after multiplication.
    pub offset: i32,
    /// A power of two that goes into the scale.
    pub scale: f32,
    table: Option<[i8; 16]>,
    /// Whether the top bit of a byte is flipped to make it signed.
    flip: bool,
}

impl<'a> Weights<'a> {
    /// Reads rows of a matrix of `n` from `row` (`i64`) on, as many at a time as the device's vectors hold; `tile` rows in all.
    pub fn new(layout: &'a N16, memory: Memory, row: Value, n: usize, tile: usize, caps: &Caps) -> Weights<'a> {
        let lanes = (caps.vector_bytes / 4).min(ROWS as u32) as u8;
        Weights { lanes, ..Weights::strip(layout, memory, row, n, tile, caps) }
    }

    /// Reads the `lanes` rows from `row` (`i64`) on, which lie in one block of 16 rows.
    pub fn few(layout: &'a N16, memory: Memory, row: Value, lanes: u8, caps: &Caps) -> Weights<'a> {
        Weights { lanes, ..Weights::strip(layout, memory, row, ROWS, lanes as usize, caps) }
    }

    fn strip(layout: &'a N16, memory: Memory, row: Value, n: usize, tile: usize, caps: &Caps) -> Weights<'a> {
        let blocks = n.div_ceil(ROWS);
        Weights {
            layout,
            memory,
            lanes: 1,
            row,
            inside: !tile.is_multiple_of(ROWS),
            last_block: (tile > ROWS && !(blocks * ROWS).is_multiple_of(tile)).then(|| blocks - 1),
            features: caps.features,
            ahead: None,
        }
    }

    /// Where the codes of a unit start for vector `v`.
    fn unit_start(&self, b: &mut Builder, unit: Pos, v: usize) -> Pos {
        let base = self.base(b, v, 4);
        let start = self.jump(b, unit, self.layout.unit_bytes(), self.layout.chunk_units, self.layout.header());
        start.add(b, base).plus(self.layout.codes)
    }

    /// The start of vector `v` in a section whose rows are `size` bytes wide: an index and a constant.
    fn base(&self, b: &mut Builder, v: usize, size: usize) -> Pos {
        let first = v * self.lanes as usize;
        let (mut block, within) = split(b, self.row, ROWS);
        if let Some(last) = self.last_block {
            block = b.bin_imm(BinOp::Add, block, (first / ROWS) as i64);
            block = b.bin_imm(BinOp::MinS, block, last as i64);
            let index = b.bin_imm(BinOp::Mul, block, self.layout.record as i64);
            return Pos::of(index).plus(first % ROWS * size);
        }
        let mut index = b.bin_imm(BinOp::Mul, block, self.layout.record as i64);
        if self.inside {
            let bytes = times(b, within, size);
            index = b.add(index, bytes);
        }
        Pos::of(index).plus(first / ROWS * self.layout.record + first % ROWS * size)
    }

    /// The words of quad `quad` of a unit for vector `v`, one per plane, with the bit of the field in each byte.
    pub fn words(&self, b: &mut Builder, unit: Pos, quad: usize, v: usize) -> Vec<(Value, u8)> {
        let (_, places) = self.layout.quad(quad);
        let start = self.unit_start(b, unit, v);
        places
            .into_iter()
            .map(|(word, bit)| {
                let place = start.fixed + word;
                // Quads that share a word share the hint, and so do vectors that share a line.
                if let Some(ahead) = self.ahead.filter(|_| bit == 0 && self.starts_block(v)) {
                    b.prefetch(at(self.memory, start.index, place + ahead));
                }
                let address = at(self.memory, start.index, place);
                (b.load(Type::vector(Scalar::I32, self.lanes), address, 4 * self.lanes as u32), bit)
            })
            .collect()
    }

    /// Whether vector `v` holds the first rows of a block.
    pub fn starts_block(&self, v: usize) -> bool {
        (v * self.lanes as usize).is_multiple_of(ROWS)
    }

    /// Bytes from the first of things that lie in chunks to the one at `place`: each has `size` bytes, and after every
    /// `per_chunk` of them others take `gap` bytes.
    fn jump(&self, b: &mut Builder, place: Pos, size: usize, per_chunk: usize, gap: usize) -> Pos {
        let start = place.times(b, size);
        if gap == 0 || self.layout.units <= self.layout.chunk_units {
            return start;
        }
        let gaps = place.divide(b, per_chunk).times(b, gap);
        start.add(b, gaps)
    }

    /// The start of an entry of a section for vector `v`, with its alignment; asks for what lies ahead.
    fn entry(&self, b: &mut Builder, section: &Section, entry: Pos, v: usize) -> (Address, u32) {
        let (size, shared) = (section.size(), section.shared());
        let base = self.base(b, v, size);
        let entry = entry.divide(b, shared);
        let start = self.jump(b, entry, section.stride(), section.per_chunk / shared, self.layout.entry_gap(section));
        let start = start.add(b, base);
        let place = start.fixed + section.offset;
        let inner = section.entries > 1 && section.span == self.layout.group;
        if let Some(ahead) = self.ahead.filter(|_| inner && self.starts_block(v)) {
            b.prefetch(at(self.memory, start.index, place + ahead));
        }
        (at(self.memory, start.index, place), (self.lanes as u32 * size as u32).min(64))
    }

    /// Codes of a quad as they are stored, in bytes.
    fn codes(&self, b: &mut Builder, words: &[(Value, u8)]) -> Value {
        let ty = Type::vector(Scalar::I8, 4 * self.lanes);
        match *words {
            [(word, bit)] => b.unpack(word, bit, self.layout.planes[0], false, ty),
            _ => {
                let joined = self.join(b, words, 0x0101_0101);
                b.bitcast(joined, ty)
            }
        }
    }

    /// Codes of a quad as bytes of an integer dot product.
    pub fn bytes(&self, b: &mut Builder, how: &Integers, words: &[(Value, u8)]) -> Value {
        let mut bytes = self.codes(b, words);
        let ty = b.ty(bytes);
        if let Some(table) = how.table {
            let table: Vec<u64> = table.iter().map(|&v| v as u8 as u64).collect();
            let table = b.lanes(Scalar::I8, &table);
            bytes = b.push(ty, crate::ir::Inst::PermuteBytes { table, index: bytes });
        }
        if how.flip {
            bytes = b.bin_imm(BinOp::Xor, bytes, 0x80);
        }
        bytes
    }

    /// Fields of all planes side by side from bit 0 of a byte; `ones` has a 1 at bit 0 of each byte that counts.
    fn join(&self, b: &mut Builder, words: &[(Value, u8)], ones: i64) -> Value {
        let mut joined: Option<Value> = None;
        let mut low = 0u8;
        for (&(word, bit), &width) in words.iter().zip(self.layout.planes) {
            let moved = match bit.cmp(&low) {
                std::cmp::Ordering::Greater => b.bin_imm(BinOp::ShrU, word, (bit - low) as i64),
                std::cmp::Ordering::Less => b.bin_imm(BinOp::Shl, word, (low - bit) as i64),
                std::cmp::Ordering::Equal => word,
            };
            let mask = ones * ((((1i64 << width) - 1) << low) & 0xff);
            let field = b.bin_imm(BinOp::And, moved, mask);
            joined = Some(joined.map_or(field, |j| b.bin(BinOp::Or, j, field)));
            low += width;
        }
        joined.expect("every code has a plane")
    }

    /// Codes of column `byte` of a quad as exact `f32` numbers, before zero points and scales of the matrix.
    pub fn floats(&self, b: &mut Builder, words: &[(Value, u8)], byte: usize) -> Value {
        let lanes = self.lanes;
        let int = Type::vector(Scalar::I32, lanes);
        let float = Type::vector(Scalar::F32, lanes);
        let shift = |bit: u8| 8 * byte as u8 + bit;
        let code = self.layout.format.code;
        let plain = |b: &mut Builder, ty: Type| match *words {
            [(word, bit)] => b.unpack(word, shift(bit), self.layout.planes[0], false, ty),
            // Wide vectors have few registers: one word of joined bytes instead of four shifts of each plane.
            _ if lanes >= 8 => {
                let joined = self.join(b, words, 0x0101_0101);
                b.unpack(joined, 8 * byte as u8, 8, false, ty)
            }
            _ => {
                let shifted: Vec<(Value, u8)> =
                    words.iter().map(|&(w, bit)| (b.bin_imm(BinOp::ShrU, w, 8 * byte as i64), bit)).collect();
                let joined = self.join(b, &shifted, 1);
                if ty.scalar == Scalar::F32 { b.cast(CastOp::IntToFloatS, joined, Scalar::F32) } else { joined }
            }
        };
        match code {
            Code::Int { .. } | Code::Ternary | Code::Binary => {
                let raw = plain(b, float);
                let (factor, offset) = integer_meaning(code, self.layout.format.zero);
                let offset_value = b.f32(lanes, -offset as f32);
                match (factor, offset) {
                    (1, 0) => raw,
                    (1, _) => b.add(raw, offset_value),
                    _ => {
                        let factor = b.f32(lanes, factor as f32);
                        b.fma(raw, factor, offset_value)
                    }
                }
            }
            Code::Float(dtype) => {
                let raw = plain(b, int);
                small_float(b, raw, dtype, self.features)
            }
            Code::Log { bits } => {
                let raw = plain(b, int);
                let exponent = b.bin_imm(BinOp::And, raw, (1 << (bits - 1)) - 1);
                let bias = b.int(int, 127);
                let biased = b.bin(BinOp::Sub, bias, exponent);
                let magnitude = b.bin_imm(BinOp::Shl, biased, 23);
                with_sign(b, magnitude, raw, bits - 1)
            }
            Code::Table(table) => {
                let raw = plain(b, int);
                table_lookup(b, raw, &table.values)
            }
        }
    }
}

impl Integers {
    /// Whether bytes come from a table.
    pub fn has_table(&self) -> bool {
        self.table.is_some()
    }

    /// How the codes of a layout enter a device's integer dot product; `None` if they are not integers.
    pub fn of(layout: &N16, caps: &Caps) -> Option<Integers> {
        let code = layout.format.code;
        let unsigned = caps.features.has(Feature::Dot4UnsignedSigned) || !caps.features.has(Feature::Dot4SignedSigned);
        let signs = if unsigned { Dot4Signs::UnsignedSigned } else { Dot4Signs::SignedSigned };
        match code {
            Code::Int { .. } | Code::Ternary | Code::Binary => {
                let (factor, mut offset) = integer_meaning(code, layout.format.zero);
                let bits = code.bits();
                // Bytes of 8 bits do not fit a signed operand: shift them by half their range.
                let flip = bits == 8 && !unsigned;
                if flip {
                    offset -= 128;
                }
                // A signed operand is a whole byte to the instruction, however few of its bits are used.
                let bits = if unsigned { bits } else { 8 };
                Some(Integers { signs, bits, factor, offset, scale: 1.0, table: None, flip })
            }
            Code::Log { .. } | Code::Float(DType::E2m1) | Code::Table(_) if layout.format.integer_code() => {
                let values: Vec<f64> =
                    (0..16u8).map(|c| if c < 1 << code.bits() { code.decode(c) } else { 0.0 }).collect();
                // The smallest power of two that makes every value an integer.
                let up = (0..7).map(|e| (1 << e) as f64).find(|f| values.iter().all(|v| (v * f).fract() == 0.0))?;
                let low = values.iter().fold(0.0f64, |a, &v| a.min(v * up));
                let offset = if unsigned { -low as i32 } else { 0 };
                let mut table = [0i8; 16];
                let mut top = 0;
                for (entry, value) in table.iter_mut().zip(&values) {
                    let byte = (value * up) as i32 + offset;
                    top = top.max(byte);
                    *entry = byte as u8 as i8;
                }
                let bits = if unsigned { 32 - (top as u32).leading_zeros() as u8 } else { 8 };
                Some(Integers {
                    signs,
                    bits,
                    factor: 1,
                    offset,
                    scale: 1.0 / up as f32,
                    table: Some(table),
                    flip: false,
                })
            }
            _ => None,
        }
    }
}

/// `code - bias = factor · stored - offset` for integer codes as N16 stores them.
fn integer_meaning(code: Code, zero: Zero) -> (i32, i32) {
    let bias = match zero {
        Zero::Bias(bias) => bias as i32,
        _ => 0,
    };
    match code {
        Code::Int { bits, signed: true } => (1, (1 << (bits - 1)) + bias),
        Code::Ternary => (1, 1 + bias),
        Code::Binary => (2, 1 + bias),
        _ => (1, bias),
    }
}
