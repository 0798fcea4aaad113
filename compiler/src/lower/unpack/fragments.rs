//! Decodes QT16: from a lane's 16 bytes of a tile to its fragments of operand A, and a panel's scales and zeros.
//!
//! Always holds: an element of a fragment is exactly `code - zero` (class F16), or the stored byte, of which
//! [`Fragments::offset`] is to be taken off (class B8).

mod direct;

use self::direct::Direct;
use super::{integer_meaning, load_number};
use crate::caps::{Caps, Feature};
use crate::dtype::DType;
use crate::format::qt16::{Class, PANEL, Qt16, STRIP, Section, tile_columns};
use crate::format::{Code, Zero};
use crate::ir::{Address, BinOp, Builder, Constant, Inst, Memory, Scalar, Type, Value};
use crate::lower::memory::at;
use crate::lower::walk::Pos;

/// Reads some tiles of 16 rows of one panel.
pub(in crate::lower) struct Fragments<'a> {
    /// Where things lie.
    pub layout: &'a Qt16,
    /// Tiles of 16 rows.
    pub tiles: usize,
    memory: Memory,
    /// Byte of the first tile's codes for this lane, in the first strip; `i64`.
    codes: Value,
    /// Byte of the first tile's entries in a section of 1-byte numbers for this lane; `i64`.
    numbers: Value,
    /// Start of the panel's record, `i64`.
    record: Value,
    /// Bits of a code, over all planes.
    width: u8,
    f16_convert: bool,
}

/// What a row needs at the end of a group, for the two rows of each tile that a lane holds.
pub(in crate::lower) struct Group {
    /// `f32x2` per tile.
    pub scales: Vec<Value>,
    /// Integer zero points, `i32x2` per tile, if the format has them.
    pub zeros: Option<Vec<Value>>,
}

/// Columns of a strip: whole tiles of every plane.
pub(in crate::lower) fn strip_columns(layout: &Qt16) -> usize {
    layout.planes.iter().map(|&(width, _)| tile_columns(width)).max().unwrap_or(1)
}

/// Why the fragments of a format cannot be decoded here; `None` if they can.
pub(in crate::lower) fn refuses(layout: &Qt16, element: DType) -> Option<String> {
    let format = &layout.format;
    let name = format.to_string();
    let width: u8 = layout.planes.iter().map(|&(width, _)| width).sum();
    match (format.code, layout.class) {
        (Code::Int { .. } | Code::Ternary, Class::B8) if element == DType::U8 => {}
        (Code::Int { .. } | Code::Ternary, Class::F16) if width >= 2 && (width < 8 || element == DType::F16) => {}
        (code, Class::F16) if Direct::of(code, element).is_some() => {
            if format.zero != Zero::None {
                return Some(format!("takes no zero points with the codes of {name}"));
            }
        }
        (Code::Float(dtype), Class::B8) if dtype == element => {}
        // Numbers up to 16 are exact in this type, so a look-up makes them of codes without zero points of their own.
        (Code::Int { .. } | Code::Ternary, Class::B8) if element == DType::E4m3fn && matches!(width, 2 | 4) => {
            if !matches!(format.zero, Zero::None | Zero::Bias(-1..=16)) {
                return Some(format!("makes 8-bit floats of codes with one zero for all, not of {name}"));
            }
        }
        _ => return Some(format!("has no fragments of {} from {name}", element.name())),
    }
    match format.zero {
        // In a 16-bit float both `power + offset + zero` and `code - offset - zero` must be exact.
        Zero::None | Zero::Bias(-64..=64) => None,
        Zero::Int(bits) if bits <= width => None,
        _ => Some(format!("takes integer zero points as wide as codes, not those of {name}")),
    }
}

impl<'a> Fragments<'a> {
    /// Reads `tiles` tiles from row `row` (`i64`, a multiple of 16) on, which lie in one panel.
    pub fn new(
        b: &mut Builder,
        layout: &'a Qt16,
        memory: Memory,
        row: Value,
        tiles: usize,
        lane: Value,
        caps: &Caps,
    ) -> Fragments<'a> {
        let panel = b.bin_imm(BinOp::ShrU, row, PANEL.trailing_zeros() as i64);
        let record = b.bin_imm(BinOp::Mul, panel, layout.record as i64);
        let tile = b.bin_imm(BinOp::And, row, PANEL as i64 - 1);
        let tile = b.bin_imm(BinOp::ShrU, tile, 4);
        let start = layout.planes[0].1;
        let width = layout.planes.iter().map(|&(width, _)| width).sum();
        let lane = b.cast(crate::ir::CastOp::ExtendS, lane, Scalar::I64);
        let codes = b.bin_imm(BinOp::Shl, tile, 9);
        let mine = b.bin_imm(BinOp::Shl, lane, 4);
        let codes = b.add(codes, mine);
        let codes = b.add(codes, record);
        let codes = b.bin_imm(BinOp::Add, codes, start as i64);
        // Rows of a section stand as [g][tile][half].
        let g = b.bin_imm(BinOp::ShrU, lane, 2);
        let g = b.bin_imm(BinOp::Shl, g, 3);
        let pair = b.bin_imm(BinOp::Shl, tile, 1);
        let numbers = b.add(g, pair);
        let f16_convert = caps.features.has(Feature::F16Convert);
        Fragments { layout, tiles, memory, codes, numbers, record, width, f16_convert }
    }

    /// Columns of a strip: whole tiles of every plane.
    pub fn columns(&self) -> usize {
        strip_columns(self.layout)
    }

    /// Where the 16 bytes of a strip start that a lane has of each tile, plane by plane: its number among the planes, and
    /// which of the plane's tiles along K.
    pub fn chunks(&self) -> Vec<(usize, usize)> {
        let of = |(plane, &(width, _)): (usize, &(u8, usize))| {
            (0..self.columns() / tile_columns(width)).map(move |tile| (plane, tile))
        };
        self.layout.planes.iter().enumerate().flat_map(of).collect()
    }

    /// Where a lane's 16 bytes of a tile of a strip are, of one of [`Fragments::chunks`].
    pub fn chunk(&self, b: &mut Builder, strip: Pos, (plane, along): (usize, usize), tile: usize) -> Address {
        let (width, start) = self.layout.planes[plane];
        let strip = strip.times(b, self.columns() / tile_columns(width)).plus(along);
        let place =
            strip.times(b, STRIP).add(b, Pos { index: Some(self.codes), fixed: start - self.layout.planes[0].1 });
        at(self.memory, place.index, place.fixed + 512 * tile)
    }

    /// A lane's 16 bytes of each tile of a strip of a lone plane, `i32x4`: two words of row g, two of row g + 8.
    pub fn words(&self, b: &mut Builder, strip: Pos) -> Vec<Value> {
        let start = strip.times(b, STRIP).add(b, Pos { index: Some(self.codes), fixed: 0 });
        (0..self.tiles)
            .map(|tile| {
                b.load(Type::vector(Scalar::I32, 4), at(self.memory, start.index, start.fixed + 512 * tile), 16)
            })
            .collect()
    }

    /// The fragments of one tile, one per step of the matrix instruction, each in as many `i32` as it has registers.
    /// `zeros` are what [`Fragments::biases`] made for the tile.
    /// `words` are `i32x4`, one for each of [`Fragments::chunks`].
    pub fn decode(&self, b: &mut Builder, words: &[Value], element: DType, biases: &[[Value; 2]]) -> Vec<[Value; 4]> {
        if self.layout.planes.len() > 1 {
            return self.planes(b, words, element, biases);
        }
        let words: Vec<Value> = (0..4).map(|i| b.extract(words[0], i)).collect();
        let (low, high) = (&words[..2], &words[2..]);
        match self.layout.class {
            Class::B8 if element == DType::E4m3fn && !matches!(self.layout.format.code, Code::Float(_)) => {
                let table = self.table(b);
                let steps = self.bytes(b, low, high);
                steps.into_iter().map(|step| step.map(|word| look_up(b, table, word))).collect()
            }
            Class::B8 => self.bytes(b, low, high),
            Class::F16 if self.direct(element).is_some() => self.direct_pairs(b, low, high, element),
            Class::F16 if self.width == 8 => self.wide_pairs(b, low, high, biases),
            Class::F16 => self.pairs(b, low, high, element, biases),
        }
    }

    fn direct(&self, element: DType) -> Option<Direct> {
        if self.layout.class == Class::F16 { Direct::of(self.layout.format.code, element) } else { None }
    }

    /// Pairs of 16-bit floats whose bits are those of the codes.
    fn direct_pairs(&self, b: &mut Builder, low: &[Value], high: &[Value], element: DType) -> Vec<[Value; 4]> {
        let direct = self.direct(element).expect("asked before");
        let width = i64::from(self.width);
        let mut steps = Vec::new();
        for (&row, &other) in low.iter().zip(high) {
            for step in 0..8 / width {
                let (first, second) = (2 * step * width, (2 * step + 1) * width);
                steps.push(
                    [(row, first), (other, first), (row, second), (other, second)]
                        .map(|(word, bit)| direct.pair(b, word, bit, element)),
                );
            }
        }
        steps
    }

    /// Codes of several planes: each plane's field moves to its place in the code. A step takes two fields of each row.
    fn planes(&self, b: &mut Builder, words: &[Value], element: DType, biases: &[[Value; 2]]) -> Vec<[Value; 4]> {
        let (container, step_columns, ones) = match self.layout.class {
            Class::F16 => (16usize, 16, 0x0001_0001i64),
            Class::B8 => (8, 32, 0x0101_0101),
        };
        // The words of rows g and g + 8 in the order of their columns, for each plane.
        let mut rows = vec![[Vec::new(), Vec::new()]; self.layout.planes.len()];
        for (&(plane, _), &chunk) in self.chunks().iter().zip(words) {
            for (half, row) in rows[plane].iter_mut().enumerate() {
                row.extend([0, 1].map(|i| b.extract(chunk, 2 * half as u8 + i)));
            }
        }
        let code = |b: &mut Builder, number: usize, half: usize| {
            let (mut low, mut all) = (0, None);
            for (rows, &(width, _)) in rows.iter().zip(&self.layout.planes) {
                let per_word = container / width as usize;
                let (word, bit) = (rows[half][number / per_word], (number % per_word * width as usize) as i64);
                let moved = match bit - low {
                    0 => word,
                    down @ 1.. => b.bin_imm(BinOp::ShrU, word, down),
                    up => b.bin_imm(BinOp::Shl, word, -up),
                };
                let field = b.bin_imm(BinOp::And, moved, (((1i64 << width) - 1) << low) * ones);
                all = Some(all.map_or(field, |all| b.bin(BinOp::Or, all, field)));
                low += width as i64;
            }
            let all = all.expect("a format has a plane");
            if self.layout.class == Class::B8 {
                return all;
            }
            if let Some(direct) = self.direct(element) {
                return direct.pair(b, all, 0, element);
            }
            let magic = magic(element, 0);
            let bits = b.bin_imm(BinOp::Or, all, magic << 16 | magic);
            centred(b, bits, element, biases[0][half])
        };
        let steps = self.columns() / step_columns;
        let order = [(0, 0), (0, 1), (1, 0), (1, 1)];
        (0..steps).map(|step| order.map(|(second, half)| code(b, 2 * step + second, half))).collect()
    }

    /// Bytes as they are stored: a step takes four neighbours, then four that are 16 columns further.
    fn bytes(&self, b: &mut Builder, low: &[Value], high: &[Value]) -> Vec<[Value; 4]> {
        if self.width == 8 {
            return vec![[low[0], high[0], low[1], high[1]]];
        }
        let field = |b: &mut Builder, word: Value, field: u8| {
            let moved = if field == 0 { word } else { b.bin_imm(BinOp::ShrU, word, (field * self.width) as i64) };
            b.bin_imm(BinOp::And, moved, ((1 << self.width) - 1) * 0x0101_0101)
        };
        let mut steps = Vec::new();
        for (&row, &other) in low.iter().zip(high) {
            for step in 0..4 / self.width {
                let (first, second) = (2 * step, 2 * step + 1);
                steps.push([
                    field(b, row, first),
                    field(b, other, first),
                    field(b, row, second),
                    field(b, other, second),
                ]);
            }
        }
        steps
    }

    /// Pairs of 16-bit floats: the field lands in the mantissa of a power of two, which a multiply-add takes off with the
    /// zero. An f16 has room for a field at bit `b` below 8 as it stands (`2^(10 - b) + code`); a bf16 for one at bit 0.
    fn pairs(
        &self,
        b: &mut Builder,
        low: &[Value],
        high: &[Value],
        element: DType,
        biases: &[[Value; 2]],
    ) -> Vec<[Value; 4]> {
        let per_word = 16 / self.width;
        let mask = ((1i64 << self.width) - 1) * 0x0001_0001;
        let pair = |b: &mut Builder, word: Value, number: u8, half: usize| {
            let bit = number * self.width;
            let kept = if element == DType::F16 { bit % 8 } else { 0 };
            let moved = if bit == kept { word } else { b.bin_imm(BinOp::ShrU, word, (bit - kept) as i64) };
            let field = b.bin_imm(BinOp::And, moved, mask << kept);
            let magic = magic(element, kept);
            let bits = b.bin_imm(BinOp::Or, field, magic << 16 | magic);
            centred(b, bits, element, biases[(kept / self.width) as usize][half])
        };
        let mut steps = Vec::new();
        for (&row, &other) in low.iter().zip(high) {
            for step in 0..per_word / 2 {
                let (first, second) = (2 * step, 2 * step + 1);
                steps.push([
                    pair(b, row, first, 0),
                    pair(b, other, first, 1),
                    pair(b, row, second, 0),
                    pair(b, other, second, 1),
                ]);
            }
        }
        steps
    }

    /// Pairs from bytes: bytes 0 and 2 of a word are the first pair, 1 and 3 the second.
    fn wide_pairs(&self, b: &mut Builder, low: &[Value], high: &[Value], biases: &[[Value; 2]]) -> Vec<[Value; 4]> {
        let pair = |b: &mut Builder, word: Value, number: i64, half: usize| {
            let moved = if number == 0 { word } else { b.bin_imm(BinOp::ShrU, word, 8) };
            let field = b.bin_imm(BinOp::And, moved, 0x00ff_00ff);
            let magic = magic(DType::F16, 0);
            let bits = b.bin_imm(BinOp::Or, field, magic << 16 | magic);
            centred(b, bits, DType::F16, biases[0][half])
        };
        low.iter()
            .zip(high)
            .map(|(&row, &other)| [pair(b, row, 0, 0), pair(b, other, 0, 1), pair(b, row, 1, 0), pair(b, other, 1, 1)])
            .collect()
    }

    /// What [`Fragments::decode`] adds to the pairs of a tile: minus the power of two that the field stands in, minus the
    /// zero. For each place of a field in its mantissa, and for rows g and g + 8. Empty for class B8.
    pub fn biases(&self, b: &mut Builder, element: DType, group: &Group, tile: usize) -> Vec<[Value; 2]> {
        if self.layout.class == Class::B8 || self.direct(element).is_some() {
            return Vec::new();
        }
        let fixed = self.offset();
        let lone = self.layout.planes.len() == 1;
        let places = if element == DType::F16 && self.width < 8 && lone { 8 / self.width } else { 1 };
        (0..places)
            .map(|place| {
                let power = power(element, place * self.width);
                [0u8, 1].map(|half| {
                    let number = match &group.zeros {
                        Some(zeros) => {
                            let zero = b.extract(zeros[tile], half);
                            let zero = b.cast(crate::ir::CastOp::IntToFloatS, zero, Scalar::F32);
                            let base = b.f32(1, -(power + fixed as f32));
                            b.bin(BinOp::Sub, base, zero)
                        }
                        None => b.f32(1, -(power + fixed as f32)),
                    };
                    let number = b.cast(crate::ir::CastOp::Float, number, float(element));
                    b.splat(number, 2)
                })
            })
            .collect()
    }

    /// The 8-bit floats of all stored codes, `i8x16`.
    fn table(&self, b: &mut Builder) -> Value {
        let numbers = (0..16).map(|code| DType::E4m3fn.encode((code - self.offset()) as f64) as u64).collect();
        b.push(Type::vector(Scalar::I8, 16), Inst::Const(Constant::Lanes(numbers)))
    }

    /// What is to be taken off a stored code, beside a zero of its group.
    pub fn offset(&self) -> i32 {
        match self.layout.format.code {
            Code::Float(_) | Code::Binary | Code::Log { .. } => 0,
            code => integer_meaning(code, self.layout.format.zero).1,
        }
    }

    /// Scales and integer zeros of a group.
    pub fn group(&self, b: &mut Builder, group: Pos) -> Group {
        let scales = (0..self.tiles).map(|tile| self.scale(b, group, tile)).collect();
        let zeros = match (self.layout.format.zero, &self.layout.zeros) {
            (Zero::Int(_), Some(section)) => {
                let zero = |b: &mut Builder, tile: usize| {
                    let raw = self.pair(b, section, Scalar::I8, group, tile);
                    b.cast(crate::ir::CastOp::ExtendU, raw, Scalar::I32)
                };
                Some((0..self.tiles).map(|tile| zero(b, tile)).collect())
            }
            _ => None,
        };
        Group { scales, zeros }
    }

    fn scale(&self, b: &mut Builder, group: Pos, tile: usize) -> Value {
        let inner = self.number(b, &self.layout.scales, group, tile);
        let Some(outer) = &self.layout.outer else { return inner };
        let entry = if outer.entries == 1 { Pos::fixed(0) } else { group.divide(b, outer.span / self.layout.group) };
        let outer = self.number(b, outer, entry, tile);
        b.mul(inner, outer)
    }

    fn place(&self, b: &mut Builder, section: &Section, entry: Pos, tile: usize) -> Pos {
        let numbers = Pos { index: Some(self.numbers), fixed: 2 * tile }.times(b, section.size());
        let start = entry.times(b, PANEL * section.size()).add(b, numbers);
        start.add(b, Pos { index: Some(self.record), fixed: section.offset })
    }

    fn pair(&self, b: &mut Builder, section: &Section, scalar: Scalar, entry: Pos, tile: usize) -> Value {
        let place = self.place(b, section, entry, tile);
        b.load(Type::vector(scalar, 2), at(self.memory, place.index, place.fixed), 2 * section.size() as u32)
    }

    fn number(&self, b: &mut Builder, section: &Section, entry: Pos, tile: usize) -> Value {
        let place = self.place(b, section, entry, tile);
        let address = at(self.memory, place.index, place.fixed);
        load_number(b, section.dtype, address, 2, 2 * section.size() as u32, self.f16_convert)
    }
}

/// The bits of the power of two whose mantissa has its unit at bit `bit`.
fn magic(element: DType, bit: u8) -> i64 {
    if element == DType::F16 { 0x6400 - ((bit as i64) << 10) } else { 0x4300 }
}

/// That power of two.
fn power(element: DType, bit: u8) -> f32 {
    if element == DType::F16 { (10.0 - bit as f32).exp2() } else { 128.0 }
}

fn look_up(b: &mut Builder, table: Value, word: Value) -> Value {
    let bytes = Type::vector(Scalar::I8, 4);
    let index = b.bitcast(word, bytes);
    let found = b.push(bytes, Inst::PermuteBytes { table, index });
    b.bitcast(found, Scalar::I32)
}

fn float(element: DType) -> Scalar {
    if element == DType::F16 { Scalar::F16 } else { Scalar::Bf16 }
}

/// `1 · pair + bias`, which is exact; back as bits.
fn centred(b: &mut Builder, bits: Value, element: DType, bias: Value) -> Value {
    let ty = Type::vector(float(element), 2);
    let pair = b.bitcast(bits, ty);
    let one = b.int(ty, if element == DType::F16 { 0x3c00 } else { 0x3f80 });
    let sum = b.fma(pair, one, bias);
    b.bitcast(sum, Scalar::I32)
}
