//! Decodes QT16: from a lane's 16 bytes of a tile to its fragments of operand A, and a panel's scales and zeros.
//!
//! Always holds: an element of a fragment is exactly `code - zero` (class F16), or the stored byte, of which
//! [`Fragments::offset`] is to be taken off (class B8).

use super::{integer_meaning, load_number};
use crate::caps::{Caps, Feature};
use crate::dtype::DType;
use crate::format::qt16::{Class, LaneOrder, PANEL, Qt16, STRIP, Section, section_rows, tile_columns};
use crate::format::{Code, Zero};
use crate::ir::{BinOp, Builder, CastOp, Memory, Scalar, Type, Value};
use crate::lower::lanes::{Lanes, gather, higher, through};
use crate::lower::memory::at;
use crate::lower::walk::Pos;

/// Reads some blocks of rows of one panel, each as large as the instruction's [`Lanes`] say.
pub(in crate::lower) struct Fragments<'a> {
    /// Where things lie.
    pub layout: &'a Qt16,
    /// Who holds what.
    pub lanes: &'a Lanes,
    /// Blocks of rows.
    pub blocks: usize,
    memory: Memory,
    /// Byte of the first block's codes for this lane, in the first strip; `i64`.
    codes: Value,
    /// Entry, in a section's 64, of the first row of A that this lane holds; `i64`.
    held: Value,
    /// Entry of the first row whose sums this lane holds; `i64`.
    summed: Value,
    /// Start of the panel's record, `i64`.
    record: Value,
    width: u8,
    features: crate::caps::Features,
}

/// What rows need at the end of a group.
pub(in crate::lower) struct Group {
    /// For the rows whose sums a lane holds: `f32` vectors, see [`Fragments::of_sums`].
    pub scales: Vec<Value>,
    /// Integer zero points of the same rows, `i32`, if the format has them.
    pub zeros: Option<Vec<Value>>,
    /// Integer zero points of the rows of A that a lane holds, g and g + 8 of each block, `i32`.
    held_zeros: Option<Vec<[Value; 2]>>,
}

/// Why the fragments of a format cannot be decoded here; `None` if they can.
pub(in crate::lower) fn refuses(layout: &Qt16, element: DType) -> Option<String> {
    let format = &layout.format;
    let name = format.to_string();
    let [(width, _)] = *layout.planes else {
        return Some(format!("decodes codes of one plane, not the {} planes of {name}", layout.planes.len()));
    };
    match (format.code, layout.class) {
        (Code::Int { .. } | Code::Ternary, Class::B8) if matches!(element, DType::U8 | DType::I8) => {}
        (Code::Int { .. } | Code::Ternary, Class::F16) if width >= 2 && (width < 8 || element == DType::F16) => {}
        (Code::Float(dtype), Class::B8) if dtype == element => {}
        _ => return Some(format!("has no fragments of {} from {name}", element.name())),
    }
    match format.zero {
        // In a 16-bit float both `power + offset + zero` and `code - offset - zero` must be exact.
        Zero::None | Zero::Bias(-64..=64) => None,
        Zero::Int(bits) if bits <= width => None,
        _ => Some(format!("takes integer zero points as wide as codes, not those of {name}")),
    }
}

/// Bytes of a lane in a tile.
const CHUNK: usize = 16;

impl<'a> Fragments<'a> {
    /// Reads `blocks` blocks from row `row` (`i64`, a multiple of a block) on, which lie in one panel.
    pub fn new(
        b: &mut Builder,
        (layout, lanes): (&'a Qt16, &'a Lanes),
        memory: Memory,
        row: Value,
        blocks: usize,
        lane: Value,
        caps: &Caps,
    ) -> Fragments<'a> {
        let bits = caps.subgroup.trailing_zeros() as u8;
        let panel = b.bin_imm(BinOp::ShrU, row, PANEL.trailing_zeros() as i64);
        let record = b.bin_imm(BinOp::Mul, panel, layout.record as i64);
        let in_panel = b.bin_imm(BinOp::And, row, PANEL as i64 - 1);
        let (width, start) = layout.planes[0];
        // Chunks of a tile are numbered [g][t] or [t][g]; rows from 16 on lie in the next tile of 512 bytes.
        let (g, t) = if layout.order == LaneOrder::Gt { (2, 0) } else { (0, 3) };
        let places = lanes.row_of_a().into_iter().map(|(from, to)| (from, if to < 3 { to + g + 4 } else { to + 5 }));
        let mine: Vec<_> = places.chain(higher(lanes.t(), t + 4)).collect();
        let mine = gather(b, lane, bits, mine);
        let mine = b.cast(CastOp::ExtendS, mine, Scalar::I64);
        let tile = b.bin_imm(BinOp::Shl, in_panel, 5);
        let codes = b.add(tile, mine);
        let codes = b.add(codes, record);
        let codes = b.bin_imm(BinOp::Add, codes, start as i64);
        let rows = section_rows(layout.order);
        let first = gather(b, in_panel, 6, through(vec![(4, 4), (5, 5)], &rows));
        let mut entry = |moves| {
            let own = gather(b, lane, bits, through(moves, &rows));
            let own = b.cast(CastOp::ExtendS, own, Scalar::I64);
            b.add(first, own)
        };
        let (held, summed) = (entry(lanes.row_of_a()), entry(lanes.row_of_sums()));
        Fragments { layout, lanes, blocks, memory, codes, held, summed, record, width, features: caps.features }
    }

    /// Columns of a strip.
    pub fn columns(&self) -> usize {
        tile_columns(self.width)
    }

    /// A lane's 16 bytes of each tile of a strip, `i32x4`, for each `t` that it holds of each block: two words of row g, two
    /// of row g + 8.
    pub fn words(&self, b: &mut Builder, strip: Pos) -> Vec<Vec<Value>> {
        let start = strip.times(b, STRIP).add(b, Pos { index: Some(self.codes), fixed: 0 });
        let next = CHUNK * if self.layout.order == LaneOrder::Gt { 1 } else { 8 };
        let ty = Type::vector(Scalar::I32, 4);
        (0..self.blocks)
            .map(|block| {
                let first = start.fixed + 512 * self.lanes.fragments * block;
                let own = 0..self.lanes.own;
                own.map(|t| b.load(ty, at(self.memory, start.index, first + next * t), CHUNK as u32)).collect()
            })
            .collect()
    }

    /// The registers of A, `i32`, for each fragment of one block and each instruction of a strip, from its words. `biases`
    /// are what [`Fragments::biases`] made for the block.
    pub fn decode(
        &self,
        b: &mut Builder,
        words: &[Value],
        element: DType,
        biases: &[[Value; 2]],
    ) -> Vec<Vec<Vec<Value>>> {
        let own: Vec<_> = words.iter().map(|&words| self.steps(b, words, element, biases)).collect();
        let one = |fragment: usize| {
            let halves = if self.lanes.fragments == 1 { vec![0, 1] } else { vec![fragment] };
            // In the order in which B comes: steps, words, then what the lane holds of each.
            let mut registers = Vec::new();
            for step in 0..own[0].len() {
                for word in 0..2 {
                    for own in &own {
                        registers.extend(halves.iter().map(|half| own[step][2 * word + half]));
                    }
                }
            }
            registers.chunks(self.lanes.registers() * halves.len()).map(<[Value]>::to_vec).collect()
        };
        (0..self.lanes.fragments).map(one).collect()
    }

    /// The words of each step of 256 bits of K, from 16 bytes: the first of rows g and g + 8, the second of both.
    fn steps(&self, b: &mut Builder, words: Value, element: DType, biases: &[[Value; 2]]) -> Vec<[Value; 4]> {
        let words: Vec<Value> = (0..4).map(|i| b.extract(words, i)).collect();
        let (low, high) = (&words[..2], &words[2..]);
        match self.layout.class {
            Class::B8 => self.bytes(b, low, high, element),
            Class::F16 if self.width == 8 => self.wide_pairs(b, low, high, biases),
            Class::F16 => self.pairs(b, low, high, element, biases),
        }
    }

    /// Bytes as they are stored: a step takes four neighbours, then four that are 16 columns further.
    fn bytes(&self, b: &mut Builder, low: &[Value], high: &[Value], element: DType) -> Vec<[Value; 4]> {
        if self.width == 8 {
            let words = [low[0], high[0], low[1], high[1]];
            let signs = 0x8080_8080_u32 as i32 as i64;
            return vec![words.map(|word| if element == DType::I8 { b.bin_imm(BinOp::Xor, word, signs) } else { word })];
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
            self.centred(b, bits, element, biases[(kept / self.width) as usize][half])
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
            self.centred(b, bits, DType::F16, biases[0][half])
        };
        low.iter()
            .zip(high)
            .map(|(&row, &other)| [pair(b, row, 0, 0), pair(b, other, 0, 1), pair(b, row, 1, 0), pair(b, other, 1, 1)])
            .collect()
    }

    /// Whether the device adds in a type; where it does not, it adds in `f32`.
    fn native(&self, element: DType) -> bool {
        element == DType::F16 || self.features.has(Feature::Bf16Arithmetic)
    }

    /// `pair + bias`, which is exact; both as bits.
    fn centred(&self, b: &mut Builder, bits: Value, element: DType, bias: Value) -> Value {
        if self.native(element) {
            let ty = Type::vector(float(element), 2);
            let pair = b.bitcast(bits, ty);
            let one = b.int(ty, if element == DType::F16 { 0x3c00 } else { 0x3f80 });
            let sum = b.fma(pair, one, bias);
            return b.bitcast(sum, Scalar::I32);
        }
        // A bf16 is the upper half of an f32; the sum has as few bits, so nothing is lost when the rest is cut off.
        let low = b.bin_imm(BinOp::Shl, bits, 16);
        let high = b.bin_imm(BinOp::And, bits, 0xffff_0000_u32 as i32 as i64);
        let [low, high] = [low, high].map(|half| {
            let number = b.bitcast(half, Scalar::F32);
            let sum = b.add(number, bias);
            b.bitcast(sum, Scalar::I32)
        });
        let low = b.bin_imm(BinOp::ShrU, low, 16);
        b.bin(BinOp::Or, low, high)
    }

    /// What [`Fragments::decode`] adds to the pairs of a block: minus the power of two that the field stands in, minus the
    /// zero. For each place of a field in its mantissa, and for rows g and g + 8. Empty for class B8.
    pub fn biases(&self, b: &mut Builder, element: DType, group: &Group, block: usize) -> Vec<[Value; 2]> {
        if self.layout.class == Class::B8 {
            return Vec::new();
        }
        let fixed = self.offset(element);
        let places = if element == DType::F16 && self.width < 8 { 8 / self.width } else { 1 };
        (0..places)
            .map(|place| {
                let power = power(element, place * self.width);
                [0, 1].map(|half| {
                    let mut number = b.f32(1, -(power + fixed as f32));
                    if let Some(zeros) = &group.held_zeros {
                        let zero = b.cast(CastOp::IntToFloatS, zeros[block][half], Scalar::F32);
                        number = b.bin(BinOp::Sub, number, zero);
                    }
                    if !self.native(element) {
                        return number;
                    }
                    let number = b.cast(CastOp::Float, number, float(element));
                    b.splat(number, 2)
                })
            })
            .collect()
    }

    /// What is to be taken off a code as an operand of this type has it, beside a zero of its group.
    pub fn offset(&self, element: DType) -> i32 {
        match self.layout.format.code {
            Code::Float(_) => 0,
            code => {
                let stored = integer_meaning(code, self.layout.format.zero).1;
                // As signed bytes, the operands are 128 less than what is stored.
                if element == DType::I8 && self.width == 8 { stored - 128 } else { stored }
            }
        }
    }

    /// Scales and integer zeros of a group.
    pub fn group(&self, b: &mut Builder, group: Pos) -> Group {
        let mut scales = Vec::new();
        for row in self.rows_of_sums() {
            scales.push(self.scale(b, group, row));
        }
        let mut found = Group { scales, zeros: None, held_zeros: None };
        if let (Zero::Int(_), Some(section)) = (self.layout.format.zero, &self.layout.zeros) {
            if self.layout.class == Class::B8 {
                let zeros = self.rows_of_sums().into_iter().map(|row| self.zeros(b, section, group, self.summed, row));
                found.zeros = Some(zeros.collect());
            } else {
                let of_block = |b: &mut Builder, block: usize| {
                    let row = block * self.lanes.block_rows();
                    if self.layout.order == LaneOrder::Gt {
                        let both = self.zeros(b, section, group, self.held, (row, 2));
                        return [0, 1].map(|half| b.extract(both, half));
                    }
                    [row, row + 8].map(|row| self.zeros(b, section, group, self.held, (row, 1)))
                };
                found.held_zeros = Some((0..self.blocks).map(|block| of_block(b, block)).collect());
            }
        }
        found
    }

    /// The numbers that a lane needs of a group for its sums, as runs that lie side by side: row in the first block, count.
    fn rows_of_sums(&self) -> Vec<(usize, u8)> {
        let (rows, fragments) = (self.lanes.block_rows(), self.lanes.fragments);
        let blocks = 0..self.blocks;
        match self.layout.order {
            // Rows g and g + 8.
            LaneOrder::Gt => blocks.map(|block| (rows * block, 2)).collect(),
            LaneOrder::Tg => blocks
                .flat_map(|block| (0..fragments).map(move |fragment| rows * block + 8 * fragment))
                .map(|row| (row, self.lanes.run as u8))
                .collect(),
        }
    }

    /// What [`Group::scales`] or [`Group::zeros`] hold for the sums of a fragment from an element on, as many as stand side
    /// by side.
    pub fn of_sums(&self, b: &mut Builder, numbers: &[Value], block: usize, fragment: usize, element: usize) -> Value {
        match self.layout.order {
            LaneOrder::Gt => b.extract(numbers[block], (self.lanes.place(fragment, element).0 / 8) as u8),
            LaneOrder::Tg => numbers[block * self.lanes.fragments + fragment],
        }
    }

    fn scale(&self, b: &mut Builder, group: Pos, rows: (usize, u8)) -> Value {
        let inner = self.number(b, &self.layout.scales, group, rows);
        let Some(outer) = &self.layout.outer else { return inner };
        let entry = if outer.entries == 1 { Pos::fixed(0) } else { group.divide(b, outer.span / self.layout.group) };
        let outer = self.number(b, outer, entry, rows);
        b.mul(inner, outer)
    }

    /// The byte of an entry's number of the row that is `row` rows after the first of a lane.
    fn place(&self, b: &mut Builder, section: &Section, entry: Pos, first: Value, row: usize) -> Pos {
        let fixed = section.place(0, row) - section.place(0, 0);
        let numbers = Pos { index: Some(first), fixed: 0 }.times(b, section.size()).plus(fixed);
        let start = entry.times(b, PANEL * section.size()).add(b, numbers);
        start.add(b, Pos { index: Some(self.record), fixed: section.offset })
    }

    fn zeros(&self, b: &mut Builder, section: &Section, entry: Pos, first: Value, (row, count): (usize, u8)) -> Value {
        let place = self.place(b, section, entry, first, row);
        let address = at(self.memory, place.index, place.fixed);
        let raw = b.load(Type::vector(Scalar::I8, count), address, count as u32);
        b.cast(CastOp::ExtendU, raw, Scalar::I32)
    }

    fn number(&self, b: &mut Builder, section: &Section, entry: Pos, (row, count): (usize, u8)) -> Value {
        let place = self.place(b, section, entry, self.summed, row);
        let address = at(self.memory, place.index, place.fixed);
        let f16_convert = self.features.has(Feature::F16Convert);
        load_number(b, section.dtype, address, count, (count as usize * section.size()).min(16) as u32, f16_convert)
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

fn float(element: DType) -> Scalar {
    if element == DType::F16 { Scalar::F16 } else { Scalar::Bf16 }
}
