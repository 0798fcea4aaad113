//! Random inputs: activations with an outlier now and then, and weights in any format straight from random bits.

use bitsmith_compiler::Result;
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::{Format, OuterRule, Quantized, Scale, Span, Zero};

/// Numbers of mean 0 and deviation 1, roughly normal; one in about 200 is ten times larger, as activations have it.
pub fn numbers(rng: &mut fastrand::Rng, count: usize) -> Vec<f32> {
    (0..count)
        .map(|_| {
            let bits = rng.u64(..);
            // The sum of four uniform numbers has variance 4/12.
            let sum: u32 = (0..4).map(|i| (bits >> (16 * i) & 0xffff) as u32).sum();
            let x = (sum as f32 / 65536.0 - 2.0) * 1.732;
            if bits >> 56 == 17 { 10.0 * x } else { x }
        })
        .collect()
}

/// A matrix of random codes, scales and zeros that a format allows. Every code of the format turns up.
pub fn quantized(format: &Format, n: usize, k: usize, seed: u64) -> Result<Quantized> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let usable: Vec<u8> = (0..=255u8)
        .filter(|&c| (c as u32) < 1 << format.code.bits() && format.code.valid(c) && format.code.decode(c).is_finite())
        .collect();
    let codes = if usable.len().is_power_of_two() {
        let mut codes = vec![0u8; n * k];
        rng.fill(&mut codes);
        codes.iter_mut().for_each(|c| *c = usable[*c as usize & (usable.len() - 1)]);
        codes
    } else {
        (0..n * k).map(|_| usable[rng.usize(..usable.len())]).collect()
    };
    let (rows, columns) = format.granularity.grid(n, k);
    let granules = rows * columns;
    // Codes reach about the middle of their range, so scales of its inverse give weights near 1/8.
    let reach = usable.iter().fold(0.0f64, |a, &c| a.max(format.code.decode(c).abs()));
    let (scales, outer) = levels(&mut rng, &format.scale, n, k, granules, 0.25 / reach);
    let (zeros, zeros_outer) = match format.zero {
        Zero::None | Zero::Bias(_) => (Vec::new(), Vec::new()),
        Zero::Int(bits) => ((0..granules).map(|_| rng.u32(..1 << bits)).collect(), Vec::new()),
        Zero::Float(dtype) => ((0..granules).map(|_| dtype.encode(rng.f64() * reach)).collect(), Vec::new()),
        Zero::Offset { scale, .. } => levels(&mut rng, &scale, n, k, granules, 0.1),
    };
    Ok(Quantized { format: *format, n, k, codes, scales, outer, zeros, zeros_outer, scale_offset: 0.0, order: None })
}

fn levels(
    rng: &mut fastrand::Rng,
    scale: &Scale,
    n: usize,
    k: usize,
    granules: usize,
    size: f64,
) -> (Vec<u32>, Vec<u32>) {
    let Some(outer) = scale.outer else {
        return ((0..granules).map(|_| scale.dtype.encode(size * (0.5 + rng.f64()))).collect(), Vec::new());
    };
    let count = match outer.span {
        Span::Tensor => 1,
        Span::Row => n,
        Span::Weights(w) => n * k.div_ceil(w as usize),
        Span::Flat(s) => granules.div_ceil(s as usize),
    };
    let top = match scale.dtype {
        DType::U8 => 63.0,
        DType::I8 => 100.0,
        other => other.max_finite().min(256.0),
    };
    let inner = (0..granules).map(|_| scale.dtype.encode((0.25 + 0.75 * rng.f64()) * top)).collect();
    let unit = if outer.rule == OuterRule::Divide { top / size } else { size / top };
    let outer = (0..count).map(|_| outer.dtype.encode(unit * (0.5 + rng.f64()))).collect();
    (inner, outer)
}
