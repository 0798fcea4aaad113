//! Formats: how a quantized weight matrix is written, as one `Copy` value.
//!
//! `Format` = code × granularity × zero × scale × container. A matrix in a format is a [`Quantized`]: codes, scales and
//! zeros as raw bits, whose meaning in numbers is [`Quantized::value`]. Reads `dtype` and `layout` only; knows nothing
//! of operations, IR or targets. Always holds: `unpack(pack(q)) == q`, bit for bit, for every format.
//!
//! W is `[N, K]`: N output features (rows), K input features; groups run along K.

mod awq;
mod bits;
pub mod canonical;
mod ct;
mod encode;
pub mod fnuz;
mod fp4;
mod gguf;
pub mod gptq;

mod grammar;
pub mod kv;
mod levels;
pub mod n16;
mod named;
mod nf4;
mod part;
mod plain;
pub mod qt16;
mod quantized;
pub mod tables;
mod valid;

pub use awq::AWQ;
pub use ct::{CT_PACK, CT_PLAIN, HF_FP8};
pub use encode::{Encoder, Rounder};
pub use gptq::{GPTQ_V1, GPTQ_V2};
pub use named::Named;
pub use plain::PLAIN;
pub use quantized::Quantized;

use crate::dtype::DType;
use crate::error::Result;

/// How a weight matrix is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Format {
    /// How one code becomes a number.
    pub code: Code,
    /// Which weights share a scale (and a zero).
    pub granularity: Granularity,
    /// What is taken off a code, or added after scaling.
    pub zero: Zero,
    /// How scales are written.
    pub scale: Scale,
    /// How all of it lies in memory or in a file.
    pub container: &'static Container,
}

/// How one code becomes a number, before scale and zero.
#[derive(Clone, Copy, Debug)]
pub enum Code {
    /// An integer of 1 to 8 bits: unsigned, or two's complement.
    Int {
        /// Width.
        bits: u8,
        /// Two's complement.
        signed: bool,
    },
    /// 0, 1, 2 stand for -1, 0, 1; two bits.
    Ternary,
    /// 0, 1 stand for -1, 1; one bit.
    Binary,
    /// Top bit is the sign, the rest an exponent `e`: ±2^-e. There is no zero.
    Log {
        /// Width, sign included: 2 to 4.
        bits: u8,
    },
    /// A small float: `E4m3fn`, `E4m3fnuz`, `E5m2`, `E5m2fnuz` or `E2m1`.
    Float(DType),
    /// A code book.
    Table(&'static Table),
}

/// A code book of 16 numbers.
#[derive(Debug, PartialEq)]
pub struct Table {
    /// Name: `nf4`.
    pub name: &'static str,
    /// What each code stands for.
    pub values: [f32; 16],
}

impl Table {
    /// How far off a number may be, relative to itself, once it is of a type. Products of two 16-bit floats take books so, ours
    /// as well as those of bitsandbytes, whose book is of the activations' type (`csrc/kernels.cu`, `kgemm_4bit_inference_naive`).
    pub fn rounding(&self, dtype: DType) -> f64 {
        let off = |&value: &f32| match f64::from(value) {
            0.0 => 0.0,
            value => (dtype.decode(dtype.encode(value)) - value).abs() / value.abs(),
        };
        self.values.iter().map(off).fold(0.0, f64::max)
    }
}

/// Which weights share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Granularity {
    /// All of them.
    Tensor,
    /// A row.
    Channel,
    /// This many neighbours along K (at least 16); the last group of a row may be shorter.
    Group(u32),
    /// A rectangle of `n` rows by `k` columns; those at the edges may be smaller.
    Block {
        /// Rows.
        n: u32,
        /// Columns.
        k: u32,
    },
}

/// What is taken off a code before scaling, or added after it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Zero {
    /// Nothing: `w = s * code`.
    None,
    /// The same for all: `w = s * (code - bias)`.
    Bias(i16),
    /// An unsigned integer of this many bits per scale: `w = s * (code - z)`.
    Int(u8),
    /// A float per scale: `w = s * (code - z)`.
    Float(DType),
    /// An offset per scale: `w = s * code + sign * m`, `m` written as a [`Scale`] is.
    Offset {
        /// How `m` is written.
        scale: Scale,
        /// -1 where the offset is subtracted (K-quants), else 1.
        sign: i8,
    },
}

/// How a scale is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// Type of the number per granule: `F32`, `F16`, `Bf16`, `E4m3fn`, `E8m0`, `U8` or `I8`.
    pub dtype: DType,
    /// The second level, where scales are themselves scaled.
    pub outer: Option<Outer>,
}

/// The second level of a two-level scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outer {
    /// Type of the number: `F32` or `F16`.
    pub dtype: DType,
    /// How many scales share it.
    pub span: Span,
    /// How it acts on the scale.
    pub rule: OuterRule,
}

/// How many scales share one number of the second level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// All of the matrix.
    Tensor,
    /// All of a row.
    Row,
    /// Those of this many neighbouring weights of a row (256 in K-quants).
    Weights(u32),
    /// This many neighbours in the flat, row-major order of scales over the whole matrix (256 in bitsandbytes).
    Flat(u32),
}

/// How the second level acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OuterRule {
    /// `scale * outer`.
    Multiply,
    /// `scale / outer` (NVFP4's global scale).
    Divide,
    /// `map[scale] * outer + offset`, the signed dynamic map and the matrix-wide offset of bitsandbytes; the scale is `U8`.
    DynamicMap,
}

/// How codes, scales and zeros lie in memory or in a file: one or several named tensors.
pub struct Container {
    /// Stable name, printed in manifests: `gguf-q4_k`, `gptq`, `plain`.
    pub name: &'static str,
    /// Writes a matrix.
    pub pack: fn(&Quantized) -> Result<Vec<Part>>,
    /// Reads a matrix of this format and shape (`n`, `k`).
    pub unpack: fn(&Format, usize, usize, &[Part]) -> Result<Quantized>,
    /// Faults of a shape for this format (`n`, `k`); empty if it can be written. `K % 256 != 0` for K-quants, say.
    pub check: fn(&Format, usize, usize) -> Vec<String>,
}

/// One tensor of a container.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Name, as the suffix that files use: `qweight`, `weight_scale`, `blocks`.
    pub name: &'static str,
    /// Element type as files declare it: `i32`, `f16`, `u8` …
    pub dtype: PartType,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
    /// Little-endian bytes.
    pub bytes: Vec<u8>,
}

/// Element type of a [`Part`], as files declare it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartType {
    /// Unsigned byte.
    U8,
    /// Signed byte.
    I8,
    /// 32-bit integer.
    I32,
    /// 64-bit integer.
    I64,
    /// binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// binary32.
    F32,
    /// FP8 E4M3 (OCP).
    E4m3fn,
    /// FP8 E4M3 with bias 8.
    E4m3fnuz,
    /// FP8 E5M2.
    E5m2,
    /// FP8 E5M2 with bias 16.
    E5m2fnuz,
}

impl Code {
    /// Bits of one code, as packed by the plain containers (ternary 2, binary 1).
    pub const fn bits(self) -> u8 {
        match self {
            Code::Int { bits, .. } | Code::Log { bits } => bits,
            Code::Ternary => 2,
            Code::Binary => 1,
            Code::Float(DType::E2m1) | Code::Table(_) => 4,
            Code::Float(_) => 8,
        }
    }

    /// The number that a code stands for; exact.
    pub fn decode(self, code: u8) -> f64 {
        match self {
            Code::Int { bits, signed: true } => ((code << (8 - bits)) as i8 >> (8 - bits)) as f64,
            Code::Int { signed: false, .. } => code as f64,
            Code::Ternary => code as f64 - 1.0,
            Code::Binary => code as f64 * 2.0 - 1.0,
            Code::Log { bits } => {
                let exponent = code & ((1 << (bits - 1)) - 1);
                let sign = if code >> (bits - 1) & 1 == 1 { -1.0 } else { 1.0 };
                sign * (-(exponent as f64)).exp2()
            }
            Code::Float(dtype) => dtype.decode(code as u32),
            Code::Table(table) => table.values[code as usize & 15] as f64,
        }
    }

    /// Whether a code of this width is one that the format defines (ternary has no 3).
    pub fn valid(self, code: u8) -> bool {
        match self {
            Code::Ternary => code < 3,
            _ => (code as u32) < 1 << self.bits(),
        }
    }
}

impl PartialEq for Code {
    fn eq(&self, other: &Code) -> bool {
        match (self, other) {
            (Code::Int { bits: a, signed: s }, Code::Int { bits: b, signed: t }) => a == b && s == t,
            (Code::Ternary, Code::Ternary) | (Code::Binary, Code::Binary) => true,
            (Code::Log { bits: a }, Code::Log { bits: b }) => a == b,
            (Code::Float(a), Code::Float(b)) => a == b,
            (Code::Table(a), Code::Table(b)) => a.name == b.name,
            _ => false,
        }
    }
}

impl PartialEq for Container {
    fn eq(&self, other: &Container) -> bool {
        self.name == other.name
    }
}

impl std::fmt::Debug for Container {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Granularity {
    /// Number of granules along N and along K for a matrix of `n` rows and `k` columns.
    pub fn grid(self, n: usize, k: usize) -> (usize, usize) {
        match self {
            Granularity::Tensor => (1, 1),
            Granularity::Channel => (n, 1),
            Granularity::Group(g) => (n, k.div_ceil(g as usize)),
            Granularity::Block { n: bn, k: bk } => (n.div_ceil(bn as usize), k.div_ceil(bk as usize)),
        }
    }

    /// Index of the granule of weight (`row`, `column`), row-major over [`Granularity::grid`].
    pub fn index(self, k: usize, row: usize, column: usize) -> usize {
        match self {
            Granularity::Tensor => 0,
            Granularity::Channel => row,
            Granularity::Group(g) => row * k.div_ceil(g as usize) + column / g as usize,
            Granularity::Block { n: bn, k: bk } => (row / bn as usize) * k.div_ceil(bk as usize) + column / bk as usize,
        }
    }
}

impl Scale {
    /// A one-level scale.
    pub const fn of(dtype: DType) -> Scale {
        Scale { dtype, outer: None }
    }
}
