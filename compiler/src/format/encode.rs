//! Quantization of float weights into any format, without calibration data.
//!
//! Reads weights `[n, k]` and, optionally, how much each column matters; makes a [`Quantized`]. Always holds: scales are
//! rounded to their stored type first, and each code is the nearest one under the scale and zero as stored, ties to
//! even. Named formats that have an algorithm of their own (GGUF, bitsandbytes) go to it instead.
//!
//! | code | scale of a granule | zero |
//! |---|---|---|
//! | two's complement of b bits | `amax / (2^(b-1) - 1)` | |
//! | unsigned with the bias in the middle | `2 * amax / (2^b - 1)` | |
//! | unsigned with a zero or an offset | `(max - min) / (2^b - 1)`, 0 included in the range | `-min / scale` |
//! | ternary, binary | mean of magnitudes | |
//! | log, table, float | `amax / largest code` | |
//!
//! `E8m0` scales are powers of two: for float codes `2^(floor(log2 amax) - exponent of the largest code)` as OCP MX
//! says, for others the next power at or above the scale of the table. A granule of zeros has scale 0 (the smallest
//! power under `E8m0`). With importances, each granule's range is shrunk by 0 to 40 % as the weighted squared error asks.

use super::levels;
use super::{Code, Format, Granularity, Quantized, Zero};
use crate::dtype::DType;
use crate::error::{Error, Result};

/// A format's own quantizer: format, weights, n, k, importance of columns.
pub type Encoder = fn(&Format, &[f32], usize, usize, Option<&[f32]>) -> Result<Quantized>;

impl Format {
    /// Quantizes `w`, row-major `[n, k]`. `importance` weighs the error of each of the `k` columns.
    pub fn encode(&self, w: &[f32], n: usize, k: usize, importance: Option<&[f32]>) -> Result<Quantized> {
        check(self, w, n, k, importance)?;
        match self.named().and_then(|named| named.encode) {
            Some(encode) => encode(self, w, n, k, importance),
            None => nearest(self, w, n, k, importance),
        }
    }

    /// Quantizes by rounding to the nearest code, whatever algorithm the named format has of its own.
    pub fn encode_nearest(&self, w: &[f32], n: usize, k: usize, importance: Option<&[f32]>) -> Result<Quantized> {
        check(self, w, n, k, importance)?;
        nearest(self, w, n, k, importance)
    }
}

impl Format {
    /// Quantizes by rounding to the nearest code after each granule's range was multiplied by its own `shrink`, as a clip
    /// search found it; one per granule.
    pub fn encode_shrunk(&self, w: &[f32], n: usize, k: usize, shrink: &[f64]) -> Result<Quantized> {
        check(self, w, n, k, None)?;
        let ranges = ranges(self.granularity, w, n, k);
        if shrink.len() != ranges.len() || !shrink.iter().all(|p| p.is_finite() && *p > 0.0) {
            return Err(Error::invalid(format!(
                "{} shrinks for {} granules; accepted is one finite number above 0 each",
                shrink.len(),
                ranges.len()
            )));
        }
        Ok(with_shrink(self, &Coder::new(self.code), w, n, k, &ranges, shrink))
    }
}

/// Rounds single numbers to codes, for quantizers that go through a matrix in an order of their own.
pub struct Rounder(Coder);

impl Rounder {
    /// For one kind of code.
    pub fn new(code: Code) -> Rounder {
        Rounder(Coder::new(code))
    }

    /// The code whose number is nearest to `x`, which has the scale divided out and the zero added.
    pub fn code(&self, x: f64) -> u8 {
        self.0.code(x)
    }
}

/// Refuses what cannot be quantized, with the place of the first bad number of each kind.
fn check(format: &Format, w: &[f32], n: usize, k: usize, importance: Option<&[f32]>) -> Result<()> {
    let mut faults = format.shape_faults(n, k);
    if faults.is_empty() {
        faults = (format.container.check)(format, n, k);
    }
    if faults.is_empty() && w.len() != n * k {
        faults.push(format!("{} weights for a [{n}, {k}] matrix; accepted is {}", w.len(), n * k));
    }
    if let (Some(at), true) = (w.iter().position(|x| !x.is_finite()), faults.is_empty()) {
        faults.push(format!("weight {} at row {}, column {}; accepted are finite numbers", w[at], at / k, at % k));
    }
    if let Some(importance) = importance {
        if importance.len() != k {
            faults.push(format!("{} importances for {k} columns", importance.len()));
        }
        if let Some(at) = importance.iter().position(|x| !(x.is_finite() && *x >= 0.0)) {
            faults.push(format!("importance {} at column {at}; accepted are finite numbers from 0", importance[at]));
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(Error::Invalid(faults)) }
}

/// Shares of a granule's range that are tried when importances are given.
const SHRINKS: [f64; 9] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6];

fn nearest(format: &Format, w: &[f32], n: usize, k: usize, importance: Option<&[f32]>) -> Result<Quantized> {
    let ranges = ranges(format.granularity, w, n, k);
    let coder = Coder::new(format.code);
    let whole = vec![1.0; ranges.len()];
    let Some(importance) = importance else {
        return Ok(with_shrink(format, &coder, w, n, k, &ranges, &whole));
    };
    let (mut best, mut least) = (whole, vec![f64::INFINITY; ranges.len()]);
    for shrink in SHRINKS {
        let q = with_shrink(format, &coder, w, n, k, &ranges, &vec![shrink; ranges.len()]);
        let mut errors = vec![0.0; ranges.len()];
        for row in 0..n {
            for column in 0..k {
                let error = q.value(row, column) - w[row * k + column] as f64;
                errors[q.granule(row, column)] += importance[column] as f64 * error * error;
            }
        }
        for (granule, error) in errors.into_iter().enumerate() {
            if error < least[granule] {
                (best[granule], least[granule]) = (shrink, error);
            }
        }
    }
    Ok(with_shrink(format, &coder, w, n, k, &ranges, &best))
}

/// What a scale is computed from.
#[derive(Clone, Copy, Default)]
struct Range {
    /// Least weight, or 0.
    low: f64,
    /// Greatest weight, or 0.
    high: f64,
    /// Sum of magnitudes.
    sum: f64,
    /// Number of weights.
    count: usize,
    /// A weight of the granule.
    place: (usize, usize),
}

fn ranges(granularity: Granularity, w: &[f32], n: usize, k: usize) -> Vec<Range> {
    let (rows, columns) = granularity.grid(n, k);
    let mut ranges = vec![Range::default(); rows * columns];
    for (row, start, end, granule) in runs(granularity, n, k) {
        let range = &mut ranges[granule];
        range.place = (row, start);
        range.count += end - start;
        for x in &w[row * k + start..row * k + end] {
            let x = *x as f64;
            range.low = range.low.min(x);
            range.high = range.high.max(x);
            range.sum += x.abs();
        }
    }
    ranges
}

/// The matrix as pieces of rows, each within one granule: (row, first column, end column, granule).
fn runs(granularity: Granularity, n: usize, k: usize) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    let width = match granularity {
        Granularity::Tensor | Granularity::Channel => k,
        Granularity::Group(g) => g as usize,
        Granularity::Block { k: width, .. } => width as usize,
    };
    (0..n).flat_map(move |row| {
        (0..k).step_by(width).map(move |start| (row, start, (start + width).min(k), granularity.index(k, row, start)))
    })
}

fn with_shrink(
    format: &Format,
    coder: &Coder,
    w: &[f32],
    n: usize,
    k: usize,
    ranges: &[Range],
    shrink: &[f64],
) -> Quantized {
    let places: Vec<_> = ranges.iter().map(|range| range.place).collect();
    let ideal: Vec<f64> = ranges.iter().zip(shrink).map(|(range, p)| ideal_scale(format, range, *p)).collect();
    let mut q = Quantized {
        format: *format,
        n,
        k,
        codes: vec![0; n * k],
        scales: vec![],
        outer: vec![],
        zeros: vec![],
        zeros_outer: vec![],
        scale_offset: 0.0,
        order: None,
    };
    let written = levels::write(&q, &format.scale, &ideal, &places);
    (q.scales, q.outer, q.scale_offset) = (written.inner, written.outer, written.offset);
    let scales: Vec<f64> =
        places.iter().enumerate().map(|(granule, place)| q.scale(granule, place.0, place.1)).collect();
    match format.zero {
        Zero::None | Zero::Bias(_) => {}
        Zero::Int(bits) => {
            let most = ((1u32 << bits) - 1) as f64;
            let zero = |i: usize| (-ranges[i].low * shrink[i] / scales[i]).round_ties_even().clamp(0.0, most) as u32;
            q.zeros = (0..ranges.len()).map(|i| if scales[i] == 0.0 { 0 } else { zero(i) }).collect();
        }
        Zero::Float(dtype) => {
            let zero = |i: usize| levels::store(dtype, -ranges[i].low * shrink[i] / scales[i]);
            q.zeros = (0..ranges.len()).map(|i| if scales[i] == 0.0 { 0 } else { zero(i) }).collect();
        }
        Zero::Offset { scale, sign } => {
            let ideal: Vec<f64> = ranges.iter().zip(shrink).map(|(range, p)| range.low * p * sign as f64).collect();
            let written = levels::write(&q, &scale, &ideal, &places);
            (q.zeros, q.zeros_outer) = (written.inner, written.outer);
        }
    }
    for (row, start, end, granule) in runs(format.granularity, n, k) {
        let scale = scales[granule];
        // Under a scale of 0 every code means the same; take the one that stands for 0 or is nearest to it.
        let inverse = |x: f64| if scale == 0.0 { 0.0 } else { x / scale };
        let (zero, offset) = match format.zero {
            Zero::None => (0.0, 0.0),
            Zero::Bias(bias) => (bias as f64, 0.0),
            Zero::Int(_) => (q.zeros[granule] as f64, 0.0),
            Zero::Float(dtype) => (dtype.decode(q.zeros[granule]), 0.0),
            Zero::Offset { sign, .. } => (0.0, sign as f64 * q.offset(granule, row, start)),
        };
        let run = row * k + start..row * k + end;
        for (code, x) in q.codes[run.clone()].iter_mut().zip(&w[run]) {
            *code = coder.code(inverse(*x as f64 - offset) + zero);
        }
    }
    q
}

/// The scale of a granule before it is rounded to its stored type.
fn ideal_scale(format: &Format, range: &Range, shrink: f64) -> f64 {
    let (low, high) = (range.low * shrink, range.high * shrink);
    let amax = high.max(-low);
    let power = format.scale.dtype == DType::E8m0 && format.scale.outer.is_none();
    let scale = match format.code {
        Code::Ternary | Code::Binary => shrink * range.sum / range.count.max(1) as f64,
        Code::Int { bits, signed: true } if bits > 1 => amax / ((1u32 << (bits - 1)) - 1) as f64,
        Code::Int { signed: true, .. } => amax,
        Code::Int { bits, signed: false } => {
            let most = ((1u32 << bits) - 1) as f64;
            match format.zero {
                Zero::Bias(bias) if 2 * bias as i32 == 1 << bits => 2.0 * amax / most,
                Zero::Bias(bias) => {
                    let (above, below) = (most - bias as f64, bias as f64);
                    let up = if above > 0.0 { high / above } else { 0.0 };
                    let down = if below > 0.0 { -low / below } else { 0.0 };
                    up.max(down)
                }
                Zero::None => high / most,
                Zero::Int(_) | Zero::Float(_) | Zero::Offset { .. } => (high - low) / most,
            }
        }
        Code::Log { .. } => amax,
        Code::Table(table) => {
            // The scale at which neither end is cut.
            let greatest = table.values.iter().fold(0.0, |a: f32, b| a.max(*b)) as f64;
            let least = table.values.iter().fold(0.0, |a: f32, b| a.min(*b)) as f64;
            (high / greatest).max(low / least)
        }
        Code::Float(dtype) if power => {
            let largest = levels::largest(dtype);
            return if amax > 0.0 { (floor_log2(amax) - floor_log2(largest)).exp2() } else { 0.0 };
        }
        Code::Float(dtype) => amax / levels::largest(dtype),
    };
    if power && scale > 0.0 {
        let floor = floor_log2(scale);
        return if floor.exp2() == scale { scale } else { (floor + 1.0).exp2() };
    }
    scale
}

/// The exponent of a positive number, exact (`f64::log2` rounds up just below a power of two).
fn floor_log2(x: f64) -> f64 {
    let exponent = (x.to_bits() >> 52 & 0x7FF) as i32;
    // Every positive f32, divided by a code, is a normal f64.
    (exponent - 1023) as f64
}

/// Numbers to codes, for one kind of code.
enum Coder {
    /// Least and greatest number, and the number of code 0; two's complement where codes are signed.
    Int { low: f64, high: f64, mask: u8, shift: i16 },
    /// The sign.
    Binary,
    /// Codes in the order of their numbers, the midpoints between neighbours, and whether ties go to even codes.
    List { codes: Vec<u8>, midpoints: Vec<f64>, even: bool },
}

impl Coder {
    fn new(code: Code) -> Coder {
        let width = code.bits();
        let mask = ((1u16 << width) - 1) as u8;
        match code {
            Code::Int { signed: true, .. } => {
                let half = 1i16 << (width - 1);
                Coder::Int { low: -half as f64, high: (half - 1) as f64, mask, shift: 0 }
            }
            Code::Int { signed: false, .. } => Coder::Int { low: 0.0, high: mask as f64, mask, shift: 0 },
            Code::Ternary => Coder::Int { low: -1.0, high: 1.0, mask, shift: 1 },
            Code::Binary => Coder::Binary,
            Code::Log { .. } | Code::Float(_) | Code::Table(_) => {
                let mut list: Vec<(f64, u8)> = (0..=mask)
                    .map(|code_bits| (code.decode(code_bits), code_bits))
                    // Code 0 is the zero of every float; the negative one is never written.
                    .filter(|(value, code_bits)| {
                        value.is_finite() && (*value != 0.0 || *code_bits == 0 || !matches!(code, Code::Float(_)))
                    })
                    .collect();
                list.sort_by(|a, b| a.0.total_cmp(&b.0));
                let midpoints = list.windows(2).map(|pair| (pair[0].0 + pair[1].0) / 2.0).collect();
                let codes = list.into_iter().map(|(_, code_bits)| code_bits).collect();
                Coder::List { codes, midpoints, even: matches!(code, Code::Float(_)) }
            }
        }
    }

    /// The code whose number is nearest to `x`.
    fn code(&self, x: f64) -> u8 {
        match self {
            Coder::Int { low, high, mask, shift } => {
                (x.round_ties_even().clamp(*low, *high) as i16 + shift) as u8 & mask
            }
            Coder::Binary => (x >= 0.0) as u8,
            Coder::List { codes, midpoints, even } => {
                let at = midpoints.partition_point(|midpoint| *midpoint < x);
                let tie = *even && midpoints.get(at).is_some_and(|midpoint| *midpoint == x) && codes[at] & 1 == 1;
                codes[at + tie as usize]
            }
        }
    }
}
