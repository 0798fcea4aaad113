//! What calibration keeps of the inputs of a matrix: maxima, means, a histogram, second moments, a few rows.
//!
//! Reads rows of inputs as they stream by; keeps numbers whose size depends on the width of the layer, not on the number
//! of tokens. Always holds: the same rows in the same order give the same statistics, bit for bit.

use crate::engine::gemm::{Threads, View, multiply};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Bins of the histogram of magnitudes.
const BINS: usize = 2048;
/// Largest square on the diagonal of the second moments, of which both halves are computed.
const BAND: usize = 256;
/// Columns of one task.
const COLUMNS: usize = 512;
/// Rows that are kept as they are.
const SAMPLE: usize = 256;

/// Statistics of the inputs at one site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Inputs per row.
    pub k: usize,
    /// Rows seen.
    pub rows: u64,
    /// Largest magnitude of each channel.
    pub absmax: Vec<f32>,
    /// Sum of magnitudes of each channel.
    pub sum_abs: Vec<f64>,
    /// Magnitudes of all inputs.
    pub histogram: Histogram,
    /// Some rows as they were: every `stride`-th.
    pub sample: Vec<f32>,
    stride: u64,
    /// `Σ x xᵀ`, of which the lower triangle holds, where it was asked for.
    #[serde(skip)]
    pub moments: Option<Vec<f32>>,
}

/// A histogram whose range doubles when a number falls beyond it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Upper end of the last bin.
    pub top: f32,
    /// Counts.
    pub bins: Vec<u64>,
}

impl Histogram {
    fn new() -> Histogram {
        Histogram { top: 1.0 / 1024.0, bins: vec![0; BINS] }
    }

    /// Makes room for magnitudes up to this one.
    fn reach(&mut self, most: f32) {
        while most >= self.top {
            for i in 0..BINS / 2 {
                self.bins[i] = self.bins[2 * i] + self.bins[2 * i + 1];
            }
            self.bins[BINS / 2..].fill(0);
            self.top *= 2.0;
        }
    }

    /// Takes the finite ones of some numbers.
    fn add(&mut self, x: &[f32]) {
        let finite = |x: &f32| Some(x.abs()).filter(|x| x.is_finite());
        // Magnitudes that are not finite count as 0; comparing and choosing is what vectors do well.
        let most =
            |part: &[f32]| part.iter().fold(0.0f32, |a, x| if x.abs() < f32::INFINITY { a.max(x.abs()) } else { a });
        self.reach(x.par_chunks(1 << 16).map(most).reduce(|| 0.0, f32::max));
        // The range is a power of two, so that this factor, and where it puts a number, is exact.
        let scale = BINS as f32 / self.top;
        let parts: Vec<Vec<u64>> = x
            .par_chunks(1 << 20)
            .map(|part| {
                let mut bins = vec![0; BINS];
                part.iter().filter_map(finite).for_each(|x| bins[((x * scale) as usize).min(BINS - 1)] += 1);
                bins
            })
            .collect();
        parts.iter().for_each(|part| self.bins.iter_mut().zip(part).for_each(|(bin, count)| *bin += count));
    }

    /// The magnitude below which this share of inputs lies, to the width of a bin.
    pub fn percentile(&self, share: f64) -> f32 {
        let total: u64 = self.bins.iter().sum();
        let wanted = (total as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (i, count) in self.bins.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                return self.top * (i + 1) as f32 / BINS as f32;
            }
        }
        0.0
    }
}

impl Stats {
    /// Nothing seen yet; `moments` asks for second moments, `k²` numbers.
    pub fn new(k: usize, moments: bool) -> Stats {
        Stats {
            k,
            rows: 0,
            absmax: vec![0.0; k],
            sum_abs: vec![0.0; k],
            histogram: Histogram::new(),
            sample: Vec::new(),
            stride: 1,
            moments: moments.then(|| vec![0.0; k * k]),
        }
    }

    /// Takes more rows.
    pub fn add(&mut self, x: &[f32]) {
        let x = &x[..x.len() / self.k * self.k];
        // Threads share out columns, so that each sum is taken in the order of the rows.
        let columns = self.absmax.par_chunks_mut(COLUMNS).zip(self.sum_abs.par_chunks_mut(COLUMNS)).enumerate();
        columns.for_each(|(at, (most, sums))| {
            for row in x.chunks_exact(self.k) {
                for ((x, most), sum) in row[at * COLUMNS..].iter().zip(&mut *most).zip(&mut *sums) {
                    *most = most.max(x.abs());
                    *sum += x.abs() as f64;
                }
            }
        });
        self.histogram.add(x);
        for row in x.chunks_exact(self.k) {
            if self.rows.is_multiple_of(self.stride) {
                self.sample.extend_from_slice(row);
                if self.sample.len() == 2 * SAMPLE * self.k {
                    // Half of them stay, and from now on half as many come.
                    self.stride *= 2;
                    let kept: Vec<f32> =
                        self.sample.chunks_exact(2 * self.k).flat_map(|pair| pair[..self.k].iter().copied()).collect();
                    self.sample = kept;
                }
            }
            self.rows += 1;
        }
        if let Some(moments) = &mut self.moments {
            add_moments(moments, x, self.k);
        }
    }

    /// Mean magnitude of each channel.
    pub fn mean_abs(&self) -> Vec<f32> {
        self.sum_abs.iter().map(|sum| (sum / self.rows.max(1) as f64) as f32).collect()
    }

    /// Channels whose largest magnitude is more than `times` the median of all, the largest first.
    pub fn outliers(&self, times: f32) -> Vec<usize> {
        let mut sorted = self.absmax.clone();
        sorted.sort_by(f32::total_cmp);
        let median = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
        let mut list: Vec<usize> = (0..self.k).filter(|&c| self.absmax[c] > times * median).collect();
        list.sort_by(|&a, &b| self.absmax[b].total_cmp(&self.absmax[a]));
        list
    }

    /// `Σ x xᵀ`, of which the lower triangle holds; from the sampled rows where moments were not asked for.
    pub fn lower_moments(&self) -> Cow<'_, [f32]> {
        match &self.moments {
            Some(lower) => Cow::Borrowed(lower),
            None => {
                let mut own = vec![0.0; self.k * self.k];
                add_moments(&mut own, &self.sample, self.k);
                Cow::Owned(own)
            }
        }
    }

    /// `Σ x xᵀ` as a full symmetric matrix.
    pub fn full_moments(&self) -> Vec<f32> {
        let mut full = self.lower_moments().into_owned();
        for i in 0..self.k {
            for j in 0..i {
                full[j * self.k + i] = full[i * self.k + j];
            }
        }
        full
    }

    /// Statistics of the inputs divided by `s`, channel by channel. The histogram is taken anew from the sampled rows.
    pub fn divide(&mut self, s: &[f32]) {
        for (c, s) in s.iter().enumerate() {
            self.absmax[c] /= s;
            self.sum_abs[c] /= *s as f64;
        }
        self.sample.chunks_exact_mut(self.k).for_each(|row| row.iter_mut().zip(s).for_each(|(x, s)| *x /= s));
        self.histogram = Histogram::new();
        self.histogram.add(&self.sample);
        if let Some(moments) = &mut self.moments {
            for (row, a) in moments.chunks_exact_mut(self.k).zip(s) {
                row.iter_mut().zip(s).for_each(|(m, b)| *m /= a * b);
            }
        }
    }

    /// Statistics of the inputs in another order, some of them perhaps several times.
    pub fn gather(&self, order: &[u32]) -> Stats {
        let at = |c: &u32| *c as usize;
        let full = self.moments.is_some().then(|| self.full_moments());
        let pick = |row: &[f32]| order.iter().map(|c| row[at(c)]).collect::<Vec<f32>>();
        Stats {
            k: order.len(),
            rows: self.rows,
            absmax: pick(&self.absmax),
            sum_abs: order.iter().map(|c| self.sum_abs[at(c)]).collect(),
            histogram: self.histogram.clone(),
            sample: self.sample.chunks_exact(self.k).flat_map(pick).collect(),
            stride: self.stride,
            moments: full.map(|full| order.iter().flat_map(|c| pick(&full[at(c) * self.k..][..self.k])).collect()),
        }
    }

    /// How many rows the moments hold.
    pub fn moment_rows(&self) -> f64 {
        if self.moments.is_some() { self.rows as f64 } else { (self.sample.len() / self.k) as f64 }
    }
}

/// `Σ x xᵀ` on and below the diagonal: squares of [`BAND`] on it, and what is left of it in halves, so that the largest part
/// is one large product.
fn add_moments(moments: &mut [f32], x: &[f32], k: usize) {
    let rows = x.len() / k;
    let mut parts = vec![(0, k)];
    while let Some((start, end)) = parts.pop() {
        let mut block = |rows_at: (usize, usize), columns: (usize, usize)| {
            let (left, right) = (rows_at.1 - rows_at.0, columns.1 - columns.0);
            multiply(
                &mut moments[rows_at.0 * k + columns.0..],
                k,
                true,
                1.0,
                View::rows(&x[rows_at.0.min(x.len())..], rows, left, k).transposed(),
                View::rows(&x[columns.0.min(x.len())..], rows, right, k),
                Threads::All,
            );
        };
        if end - start <= BAND {
            block((start, end), (start, end));
        } else {
            let middle = start + ((end - start) / 2).next_multiple_of(BAND).min(end - start - 1);
            block((middle, end), (start, middle));
            parts.extend([(start, middle), (middle, end)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_those_of_the_rows() {
        let mut rng = fastrand::Rng::with_seed(3);
        let rows: Vec<f32> = (0..3000 * 8).map(|i| (rng.f32() - 0.5) * if i % 8 == 5 { 40.0 } else { 2.0 }).collect();
        let mut stats = Stats::new(8, true);
        rows.chunks(8 * 700).for_each(|chunk| stats.add(chunk));
        assert_eq!(stats.rows, 3000);
        let max5 = rows.iter().skip(5).step_by(8).fold(0.0f32, |a, x| a.max(x.abs()));
        assert_eq!(stats.absmax[5], max5);
        assert_eq!(stats.outliers(4.0), [5]);
        let mut sorted: Vec<f32> = rows.iter().map(|x| x.abs()).collect();
        sorted.sort_by(f32::total_cmp);
        for share in [0.5, 0.9, 0.999] {
            let exact = sorted[(sorted.len() as f64 * share) as usize];
            let found = stats.histogram.percentile(share);
            assert!((found - exact).abs() <= stats.histogram.top / BINS as f32 + 0.01, "{share}: {found} {exact}");
        }
        assert!(stats.sample.len() / 8 >= SAMPLE && stats.sample.len() / 8 <= 2 * SAMPLE);
        let full = stats.full_moments();
        let exact: f64 = rows.chunks(8).map(|row| row[1] as f64 * row[5] as f64).sum();
        assert!((full[8 + 5] as f64 - exact).abs() < 0.05 * exact.abs().max(10.0), "{} {exact}", full[8 + 5]);
        assert_eq!(full[8 + 5], full[5 * 8 + 1]);
    }
}
