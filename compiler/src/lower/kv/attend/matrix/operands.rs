//! Codes as operands of matrix instructions: units of storage become pairs of 16-bit floats, exactly.
//!
//! ```text
//! operand A, 16 rows by 16 of the contraction     lane 4g + t holds rows g and g + 8, and four places of the contraction
//! ```
//!
//! Which number of the contraction takes which place is free as long as operand B agrees, and so is which token (or channel)
//! is which row. So a lane takes, of its own unit `t`, the numbers as they come, for four neighbouring rows: two tiles of A.

use crate::caps::{Caps, Feature};
use crate::dtype::DType;
use crate::format::Code;
use crate::format::kv::{KvCode, KvCodes};
use crate::ir::{BinOp, Builder, CastOp, Scalar, Type, Value};
use crate::lower::memory::scalar_of;
use crate::lower::unpack::fragments::direct::Direct;

/// Neighbouring rows of which a lane holds the units: those of two tiles.
pub(super) const ROWS: usize = 4;

/// Nibbles as f16 are this much smaller.
const NIBBLES: f32 = 512.0;

/// How the codes of one side become operands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operands {
    codes: KvCodes,
    /// F16 or Bf16.
    pub element: DType,
    /// Whether the device converts FP8 itself.
    converts: bool,
}

/// Both halves of a word.
fn twice(half: u16) -> i64 {
    i64::from((u32::from(half) << 16 | u32::from(half)) as i32)
}

impl Operands {
    pub fn new(codes: KvCodes, element: DType, caps: &Caps) -> Operands {
        let has = matches!(codes.code, KvCode::E4m3fn | KvCode::E5m2) && caps.features.has(Feature::Float8Convert);
        Operands { codes, element, converts: has && element == DType::F16 }
    }

    /// Whether what is no code may become a NaN.
    pub fn has_nan(&self) -> bool {
        self.codes.code.float().is_some()
    }

    /// Numbers of the contraction that a lane holds in a load: four plain ones, or those of a word.
    pub fn per_load(&self) -> usize {
        self.codes.code.per_unit().max(ROWS)
    }

    /// Instructions along the contraction that a load serves.
    pub fn steps(&self) -> usize {
        self.per_load() / 4
    }

    /// The numbers of a load that each pair holds, low half first; two pairs make an instruction's four.
    pub fn order(&self) -> Vec<[usize; 2]> {
        match self.codes.code {
            KvCode::F16 | KvCode::Bf16 => vec![[0, 1], [2, 3]],
            KvCode::Int8 if self.element == DType::F16 => vec![[0, 1], [2, 3]],
            KvCode::E4m3fn | KvCode::E5m2 if self.converts => vec![[0, 1], [2, 3]],
            KvCode::Int8 | KvCode::E4m3fn | KvCode::E4m3fnuz | KvCode::E5m2 => vec![[0, 2], [1, 3]],
            KvCode::Int4 => vec![[0, 2], [1, 3], [4, 6], [5, 7]],
        }
    }

    fn pair_type(&self) -> Type {
        Type::vector(scalar_of(self.element), 2)
    }

    /// `x - y` of pairs, as bits.
    fn less(&self, b: &mut Builder, x: Value, y: Value) -> Value {
        let (x, y) = (b.bitcast(x, self.pair_type()), b.bitcast(y, self.pair_type()));
        let difference = b.bin(BinOp::Sub, x, y);
        b.bitcast(difference, Scalar::I32)
    }

    fn less_constant(&self, b: &mut Builder, x: Value, y: f64) -> Value {
        let bits = self.element.encode(y) as u16;
        let y = b.int(Scalar::I32, twice(bits));
        self.less(b, x, y)
    }

    /// What the numbers of operands are multiplied by to be those of codes.
    pub fn unit(&self) -> f32 {
        if self.codes.code == KvCode::Int4 && self.element == DType::F16 { NIBBLES } else { 1.0 }
    }

    /// `(word >> shift & mask) | magic`.
    fn field(&self, b: &mut Builder, word: Value, shift: i64, mask: u16, magic: u16) -> Value {
        let moved = if shift == 0 { word } else { b.bin_imm(BinOp::ShrU, word, shift) };
        let field = b.bin_imm(BinOp::And, moved, twice(mask));
        if magic == 0 {
            return field;
        }
        b.bin_imm(BinOp::Or, field, twice(magic))
    }

    /// The pairs of a word of codes, `i32` each, as [`Operands::order`] says.
    fn pairs(&self, b: &mut Builder, word: Value) -> Vec<Value> {
        let half = self.element == DType::F16;
        match self.codes.code {
            KvCode::Int8 => {
                // A byte with its top bit flipped is the number and 128.
                let signed = !self.codes.asymmetric;
                let bytes =
                    if half && signed { b.bin_imm(BinOp::Xor, word, 0x8080_8080_u32 as i32 as i64) } else { word };
                if half {
                    let offset = if signed { 1024.0 + 128.0 } else { 1024.0 };
                    let ty = Type::vector(Scalar::I8, 4);
                    let (bytes, magic) = (b.bitcast(bytes, ty), b.int(ty, 0x64));
                    return [[0, 4, 1, 4], [2, 4, 3, 4]]
                        .map(|picks| {
                            let pair = b.swizzle(bytes, magic, &picks);
                            let pair = b.bitcast(pair, Scalar::I32);
                            self.less_constant(b, pair, offset)
                        })
                        .to_vec();
                }
                // The top bit makes 128 of what is taken off into 256.
                let bytes = if signed { bytes } else { b.bin_imm(BinOp::Xor, bytes, 0x8080_8080_u32 as i32 as i64) };
                [0, 8]
                    .map(|shift| {
                        let low = self.field(b, bytes, shift, 0x7f, 0x4300);
                        let high = self.field(b, bytes, shift, 0x80, 0x4300);
                        let number = self.less(b, low, high);
                        if signed { number } else { self.less_constant(b, number, -128.0) }
                    })
                    .to_vec()
            }
            KvCode::Int4 => {
                let bias = f64::from(self.codes.bias());
                if half {
                    // A nibble alone is a subnormal number: one multiply-add makes it a normal one and takes its bias off.
                    let ty = self.pair_type();
                    let taken = b.int(ty, DType::F16.encode(-bias / f64::from(NIBBLES)) as i64);
                    return [(0, 0x0f, 15), (8, 0x0f, 15), (0, 0xf0, 11), (8, 0xf0, 11)]
                        .map(|(shift, mask, up)| {
                            let pair = self.field(b, word, shift, mask, 0);
                            let pair = b.bitcast(pair, ty);
                            let power = b.int(ty, DType::F16.encode(f64::from(1 << up)) as i64);
                            let pair = b.fma(pair, power, taken);
                            b.bitcast(pair, Scalar::I32)
                        })
                        .to_vec();
                }
                [0, 8, 4, 12]
                    .map(|shift| {
                        let pair = self.field(b, word, shift, 0x0f, 0x4300);
                        self.less_constant(b, pair, 128.0 + bias)
                    })
                    .to_vec()
            }
            KvCode::E4m3fn | KvCode::E4m3fnuz | KvCode::E5m2 => {
                let float = self.codes.code.float().unwrap_or(DType::E4m3fn);
                if self.converts {
                    let bytes = b.bitcast(word, Type::vector(scalar_of(float), 4));
                    let halves = b.cast(CastOp::Float, bytes, Scalar::F16);
                    let words = b.bitcast(halves, Type::vector(Scalar::I32, 2));
                    return vec![b.extract(words, 0), b.extract(words, 1)];
                }
                let direct = Direct::of(Code::Float(float), self.element);
                [0, 8].iter().filter_map(|&bit| Some(direct.as_ref()?.pair(b, word, bit, self.element))).collect()
            }
            KvCode::F16 | KvCode::Bf16 => vec![word],
        }
    }

    /// Operands A of two tiles for each instruction along the contraction, from what a lane has loaded: the words of four rows,
    /// or for each of four numbers of the contraction those of four rows, in two words.
    pub fn tiles(&self, b: &mut Builder, loaded: &[Value]) -> Vec<[Value; 2]> {
        // Registers of a tile: rows g and g + 8 of the first two numbers, then of the other two.
        let mut registers: Vec<[Vec<Value>; 2]> = Vec::new();
        if self.codes.code.is_plain() {
            let halves = Type::vector(Scalar::I16, 2);
            registers.push([0, 1].map(|tile| {
                let mut list = Vec::new();
                for pair in loaded.chunks(2) {
                    let [x, y] = [0, 1].map(|number: usize| {
                        let word = b.extract(pair[number], tile);
                        b.bitcast(word, halves)
                    });
                    for picks in [[0, 2], [1, 3]] {
                        let both = b.swizzle(x, y, &picks);
                        list.push(b.bitcast(both, Scalar::I32));
                    }
                }
                list
            }));
        } else {
            let rows: Vec<Vec<Value>> = (0..ROWS as u8)
                .map(|row| {
                    let word = b.extract(loaded[0], row);
                    self.pairs(b, word)
                })
                .collect();
            for step in 0..self.steps() {
                registers.push([0, 2].map(|row: usize| {
                    let (x, y) = (&rows[row], &rows[row + 1]);
                    vec![x[2 * step], y[2 * step], x[2 * step + 1], y[2 * step + 1]]
                }));
            }
        }
        registers.into_iter().map(|tiles| tiles.map(|list| self.fragment(b, &list))).collect()
    }

    /// Registers as an operand.
    pub fn fragment(&self, b: &mut Builder, registers: &[Value]) -> Value {
        let words = b.vector(registers);
        b.bitcast(words, Type::vector(scalar_of(self.element), 2 * registers.len() as u8))
    }
}
