//! From a lane's bytes to operand A: fields, magic numbers, look-ups, planes put together.
//!
//! Always holds: what comes out is exactly `code - zero`, or the stored byte that [`Fragments::offset`] speaks of.

use super::book;
use super::direct::Direct;
use super::{Fragments, Group};
use crate::caps::Feature;
use crate::dtype::DType;
use crate::format::Code;
use crate::format::qt16::Class;
use crate::ir::{BinOp, Builder, CastOp, Constant, Inst, Scalar, Type, Value};
use crate::lower::unpack::integer_meaning;

impl Fragments<'_> {
    /// The words of each step of 256 bits of K, from 16 bytes for each of [`Fragments::chunks`]: the first of rows g and
    /// g + 8, the second of both. `biases` are what [`Fragments::biases`] made for the block.
    pub fn steps(&self, b: &mut Builder, words: &[Value], element: DType, biases: &[[Value; 2]]) -> Vec<[Value; 4]> {
        if self.layout.planes.len() > 1 {
            return self.planes(b, words, element, biases);
        }
        let words: Vec<Value> = (0..4).map(|i| b.extract(words[0], i)).collect();
        let (low, high) = (&words[..2], &words[2..]);
        if let (Class::F16, Some(book)) = (self.layout.class, self.book()) {
            return self.book_pairs(b, (low, high), book, element);
        }
        match self.layout.class {
            Class::B8 if self.looks_up(element) => {
                let table = self.table(b, element);
                let steps = self.bytes(b, low, high, element);
                steps.into_iter().map(|step| step.map(|word| look_up(b, table, word))).collect()
            }
            Class::B8 => self.bytes(b, low, high, element),
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
        let small_floats = self.layout.class == Class::B8 && element == DType::E4m3fn;
        let table = self.table(b, element);
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
                return if small_floats { look_up(b, table, all) } else { all };
            }
            if let Some(direct) = self.direct(element) {
                return direct.pair(b, all, 0, element);
            }
            let magic = magic(element, 0);
            let bits = b.bin_imm(BinOp::Or, all, magic << 16 | magic);
            self.centred(b, bits, element, biases[0][half])
        };
        let steps = self.columns() / step_columns;
        let order = [(0, 0), (0, 1), (1, 0), (1, 1)];
        (0..steps).map(|step| order.map(|(second, half)| code(b, 2 * step + second, half))).collect()
    }

    /// Bytes as they are stored: a step takes four neighbours, then four that are 16 columns further.
    fn bytes(&self, b: &mut Builder, low: &[Value], high: &[Value], element: DType) -> Vec<[Value; 4]> {
        if self.width == 8 {
            let words = [low[0], high[0], low[1], high[1]];
            let signs = 0x8080_8080_u32 as i32 as i64;
            return vec![
                words.map(|word| if element == DType::I8 { b.bin_imm(BinOp::Xor, word, signs) } else { word }),
            ];
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
        if self.layout.class == Class::B8 || self.book().is_some() || self.direct(element).is_some() {
            return Vec::new();
        }
        let fixed = self.offset(element);
        let lone = self.layout.planes.len() == 1;
        let places = if element == DType::F16 && self.width < 8 && lone { 8 / self.width } else { 1 };
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

    /// Whether the bytes of operands are found by a look-up.
    fn looks_up(&self, element: DType) -> bool {
        self.book().is_some() || element == DType::E4m3fn && !matches!(self.layout.format.code, Code::Float(_))
    }

    /// The bytes of all stored codes as operands of a type, `i8x16`: those of a book, or 8-bit floats.
    fn table(&self, b: &mut Builder, element: DType) -> Value {
        let numbers = match self.book() {
            Some(book) => book::bytes(book, element),
            None => {
                (0..16).map(|code| DType::E4m3fn.encode((code - self.offset(DType::E4m3fn)) as f64) as u64).collect()
            }
        };
        b.push(Type::vector(Scalar::I8, 16), Inst::Const(Constant::Lanes(numbers)))
    }

    /// What is to be taken off a code as an operand of this type has it, beside a zero of its group.
    pub fn offset(&self, element: DType) -> i32 {
        match self.layout.format.code {
            Code::Float(_) | Code::Binary | Code::Log { .. } => 0,
            Code::Table(_) if element == DType::U8 => book::BYTE_OFFSET,
            Code::Table(_) => 0,
            code => {
                let stored = integer_meaning(code, self.layout.format.zero).1;
                // As signed bytes, the operands are 128 less than what is stored.
                if element == DType::I8 && self.width == 8 { stored - 128 } else { stored }
            }
        }
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

/// Bytes of a table by the bytes of a word.
pub(super) fn look_up(b: &mut Builder, table: Value, word: Value) -> Value {
    let bytes = Type::vector(Scalar::I8, 4);
    let index = b.bitcast(word, bytes);
    let found = b.push(bytes, Inst::PermuteBytes { table, index });
    b.bitcast(found, Scalar::I32)
}

pub(super) fn float(element: DType) -> Scalar {
    if element == DType::F16 { Scalar::F16 } else { Scalar::Bf16 }
}
