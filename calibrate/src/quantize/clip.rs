//! Ranges that are cut before scales are taken: by squared error (or another power of it), or by percentile.
//!
//! Reads weights; makes a [`Quantized`] whose granules have each the range that served it best. A power of 2.4 is what
//! GPTQ's authors and llm-compressor take.

use bitsmith_compiler::Result;
use bitsmith_compiler::format::{Format, Quantized};
use rayon::prelude::*;

/// The power of errors.
const NORM: f64 = 2.4;
/// Steps of the search.
const GRID: usize = 40;
/// The least share of a range that is tried.
const LEAST: f64 = 0.4;

/// Cuts each granule's range where the sum of errors to the power of 2.4 is least.
pub fn mse(format: &Format, w: &[f32], n: usize, k: usize) -> Result<Quantized> {
    let (rows, columns) = format.granularity.grid(n, k);
    let count = rows * columns;
    let shares: Vec<f64> = (0..=GRID).map(|i| 1.0 - (1.0 - LEAST) * i as f64 / GRID as f64).collect();
    let tried: Vec<Result<Vec<f64>>> = shares
        .par_iter()
        .map(|&share| {
            let q = format.encode_shrunk(w, n, k, &vec![share; count])?;
            let values = crate::model::dequantize(&q);
            let mut errors = vec![0.0; count];
            for (i, (a, b)) in values.iter().zip(w).enumerate() {
                errors[format.granularity.index(k, i / k, i % k)] += ((a - b).abs() as f64).powf(NORM);
            }
            Ok(errors)
        })
        .collect();
    let (mut best, mut least) = (vec![1.0; count], vec![f64::INFINITY; count]);
    for (share, errors) in shares.iter().zip(tried) {
        for (granule, error) in errors?.into_iter().enumerate() {
            if error < least[granule] {
                (best[granule], least[granule]) = (*share, error);
            }
        }
    }
    format.encode_shrunk(w, n, k, &best)
}

/// Cuts each granule's range at a percentile of its magnitudes: 0.999 leaves one in a thousand beyond.
pub fn percentile(format: &Format, w: &[f32], n: usize, k: usize, share: f64) -> Result<Quantized> {
    let (rows, columns) = format.granularity.grid(n, k);
    let mut members: Vec<Vec<f32>> = vec![Vec::new(); rows * columns];
    for (i, x) in w.iter().enumerate() {
        members[format.granularity.index(k, i / k, i % k)].push(x.abs());
    }
    let shrink: Vec<f64> = members
        .iter_mut()
        .map(|list| {
            let top = list.iter().copied().fold(0.0f32, f32::max);
            let at = ((list.len() as f64 * share).ceil() as usize).clamp(1, list.len()) - 1;
            let (_, cut, _) = list.select_nth_unstable_by(at, f32::total_cmp);
            if top > 0.0 && *cut > 0.0 { (*cut / top) as f64 } else { 1.0 }
        })
        .collect();
    format.encode_shrunk(w, n, k, &shrink)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(q: &Quantized, w: &[f32]) -> f64 {
        crate::model::dequantize(q).iter().zip(w).map(|(a, b)| ((a - b).abs() as f64).powf(NORM)).sum()
    }

    #[test]
    fn a_search_is_never_worse_than_the_full_range() {
        let mut rng = fastrand::Rng::with_seed(11);
        let w: Vec<f32> = (0..8 * 128).map(|_| (0..4).map(|_| rng.f32() - 0.5).sum::<f32>()).collect();
        for name in ["int4-g64", "int4-g32-asym", "int3-channel", "ct-int4-g64", "nf4"] {
            let format: Format = name.parse().unwrap();
            let (plain, cut) = (format.encode_nearest(&w, 8, 128, None).unwrap(), mse(&format, &w, 8, 128).unwrap());
            assert!(error(&cut, &w) <= error(&plain, &w), "{name}");
        }
    }

    #[test]
    fn a_percentile_cuts_the_outlier_alone() {
        let mut w = vec![1.0f32; 128];
        w[7] = 100.0;
        let format: Format = "int8-channel".parse().unwrap();
        let q = percentile(&format, &w, 1, 128, 0.99).unwrap();
        assert!((q.value(0, 7) - 1.0).abs() < 0.02 && (q.value(0, 8) - 1.0).abs() < 0.01, "{}", q.value(0, 7));
        let whole = percentile(&format, &w, 1, 128, 1.0).unwrap();
        assert!((whole.value(0, 7) - 100.0).abs() < 0.1);
    }
}
