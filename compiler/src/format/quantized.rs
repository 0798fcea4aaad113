//! A weight matrix in a format: raw bits of codes, scales and zeros, and what they mean in numbers.

use super::{Code, Format, Granularity, Outer, OuterRule, Scale, Span, Zero};
use crate::dtype::DType;
use std::sync::LazyLock;

/// A quantized weight matrix `[n, k]`, unpacked: one byte per code, raw bits per scale and zero.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// How it is written.
    pub format: Format,
    /// Rows (output features).
    pub n: usize,
    /// Columns (input features).
    pub k: usize,
    /// Codes, row-major `[n, k]`.
    pub codes: Vec<u8>,
    /// Raw bits of the scales, row-major over `granularity.grid(n, k)`.
    pub scales: Vec<u32>,
    /// Raw bits of the scales' second level; see [`Span`].
    pub outer: Vec<u32>,
    /// Zeros, one per scale: the integer, or the raw bits of the float or offset. Empty for `None` and `Bias`.
    pub zeros: Vec<u32>,
    /// Raw bits of the offsets' second level.
    pub zeros_outer: Vec<u32>,
    /// The matrix-wide offset of scales under [`OuterRule::DynamicMap`]; otherwise 0.
    pub scale_offset: f32,
    /// Group of each column where groups are not in order (GPTQ act-order); otherwise `None`.
    pub order: Option<Vec<u32>>,
}

impl Quantized {
    /// The number that weight (`row`, `column`) stands for.
    pub fn value(&self, row: usize, column: usize) -> f64 {
        let granule = self.granule(row, column);
        let code = self.format.code.decode(self.codes[row * self.k + column]);
        let scale = self.scale(granule, row, column);
        match self.format.zero {
            Zero::None => scale * code,
            Zero::Bias(bias) => scale * (code - bias as f64),
            Zero::Int(_) => scale * (code - self.zeros[granule] as f64),
            Zero::Float(dtype) => scale * (code - dtype.decode(self.zeros[granule])),
            Zero::Offset { scale: how, sign } => {
                let offset = level(
                    &how,
                    &self.zeros,
                    &self.zeros_outer,
                    0.0,
                    granule,
                    self.outer_index(&how, granule, row, column),
                );
                scale * code + sign as f64 * offset
            }
        }
    }

    /// All numbers, row-major, each rounded once to `f32`.
    pub fn dequantize(&self) -> Vec<f32> {
        (0..self.n * self.k).map(|i| self.value(i / self.k, i % self.k) as f32).collect()
    }

    /// Index of the scale of weight (`row`, `column`).
    pub fn granule(&self, row: usize, column: usize) -> usize {
        match (&self.order, self.format.granularity) {
            (Some(order), Granularity::Group(g)) => row * self.k.div_ceil(g as usize) + order[column] as usize,
            _ => self.format.granularity.index(self.k, row, column),
        }
    }

    /// The scale of a granule that holds weight (`row`, `column`).
    pub fn scale(&self, granule: usize, row: usize, column: usize) -> f64 {
        let how = self.format.scale;
        level(&how, &self.scales, &self.outer, self.scale_offset, granule, self.outer_index(&how, granule, row, column))
    }

    /// The offset `m` (without its sign) of a granule; 0 where the format has none.
    pub fn offset(&self, granule: usize, row: usize, column: usize) -> f64 {
        match self.format.zero {
            Zero::Offset { scale, .. } => level(
                &scale,
                &self.zeros,
                &self.zeros_outer,
                0.0,
                granule,
                self.outer_index(&scale, granule, row, column),
            ),
            _ => 0.0,
        }
    }

    /// Index of the second level's number for a granule that holds weight (`row`, `column`).
    pub fn outer_index(&self, scale: &Scale, granule: usize, row: usize, column: usize) -> usize {
        match scale.outer {
            None => 0,
            Some(Outer { span, .. }) => match span {
                Span::Tensor => 0,
                Span::Row => row,
                Span::Weights(w) => row * self.k.div_ceil(w as usize) + column / w as usize,
                Span::Flat(s) => granule / s as usize,
            },
        }
    }
}

/// A number of a two-level scale.
fn level(how: &Scale, inner: &[u32], outer: &[u32], offset: f32, granule: usize, outer_index: usize) -> f64 {
    let raw = inner[granule];
    match how.outer {
        None => how.dtype.decode(raw),
        Some(Outer { dtype, rule, .. }) => {
            let outer = dtype.decode(outer[outer_index]);
            match rule {
                OuterRule::Multiply => how.dtype.decode(raw) * outer,
                OuterRule::Divide => how.dtype.decode(raw) / outer,
                // bitsandbytes computes these in f32, and its files are meant that way.
                OuterRule::DynamicMap => (DYNAMIC_MAP[raw as usize & 255] * outer as f32 + offset) as f64,
            }
        }
    }
}

/// The signed dynamic map of bitsandbytes (`create_dynamic_map(signed=True, max_exponent_bits=7, total_bits=8)`):
/// for each exponent the midpoints of a linear split of [0.1, 1], times a power of ten, with both signs, and 0 and 1.
pub static DYNAMIC_MAP: LazyLock<[f32; 256]> = LazyLock::new(|| {
    let mut values = vec![0.0f32, 1.0];
    for i in 0..7i32 {
        // torch.linspace in f32 over [0.1, 1], then means of neighbours.
        let items = (1usize << i) + 1;
        let edge = |j: usize| -> f32 {
            let (start, end) = (0.1f32, 1.0f32);
            let step = (end - start) / (items - 1) as f32;
            // torch fuses the product and the sum; a tenth of the map differs in its last bit otherwise.
            if j < items / 2 { step.mul_add(j as f32, start) } else { (-step).mul_add((items - 1 - j) as f32, end) }
        };
        for j in 0..items - 1 {
            let mean = (edge(j) + edge(j + 1)) / 2.0;
            let value = 10f64.powi(i - 6) as f32 * mean;
            values.push(value);
            values.push(-value);
        }
    }
    values.sort_by(f32::total_cmp);
    values.try_into().expect("2 + 2 * 127 numbers")
});

impl Format {
    /// Whether every weight can be written as an integer below 2^7 in magnitude times its scale: the code then enters
    /// an integer dot product as it is.
    pub fn integer_code(&self) -> bool {
        match self.code {
            Code::Int { .. } | Code::Ternary | Code::Binary => true,
            Code::Float(DType::E2m1) => true,
            Code::Log { bits } => bits <= 3,
            Code::Table(table) => table.values.iter().all(|v| v.fract() == 0.0 && v.abs() <= 127.0),
            Code::Float(_) => false,
        }
    }
}
