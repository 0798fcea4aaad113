//! GPTQ: codes column by column, each column's error made good by the columns after it (Frantar et al. 2022).
//!
//! Reads weights `[n, k]` and second moments of the inputs; makes a [`Quantized`]. The inverse comes from one Cholesky
//! factor of the reversed matrix: where `J H J = L Lᵀ`, the upper factor of the inverse, `H⁻¹ = Uᵀ U`, is
//! `U = J L⁻¹ J`. Rows do not depend on each other, so they are shared out over threads.
//!
//! Scales of a group are taken from the weights as they stand when the block of 128 columns begins in which its first column
//! lies: what GPTQ's reference implementations do, and codes agree with theirs. With `act_order`, and for two-level scales,
//! they are taken from the weights as given: groups then stay in order, and files need no group index.
//! Always holds: where no damping makes the moments positive definite, the result is round to nearest, and says so.

use super::stats::Stats;
use crate::engine::gemm::{Threads, View, multiply};
use bitsmith_compiler::format::{Format, Granularity, PLAIN, Quantized, Rounder, Zero};
use bitsmith_compiler::{Error, Result};
use faer::{Mat, Par, Side};
use rayon::prelude::*;

/// How to go about it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gptq {
    /// Added to the diagonal, as a share of its mean.
    pub damping: f64,
    /// Columns with the largest inputs first.
    pub act_order: bool,
    /// Search a clip for each group's scale.
    pub clip: bool,
}

impl Default for Gptq {
    fn default() -> Gptq {
        Gptq { damping: 0.01, act_order: false, clip: false }
    }
}

/// What came out.
#[derive(Clone, Debug)]
pub struct GptqResult {
    /// The matrix.
    pub quantized: Quantized,
    /// The damping that was enough; `None` where none was, and the result is round to nearest.
    pub damping: Option<f64>,
}

/// Columns between updates of all later ones.
const BLOCK: usize = 128;
/// Rows of one task.
const ROWS: usize = 128;

impl Gptq {
    /// Quantizes.
    pub fn quantize(&self, w: &[f32], n: usize, k: usize, format: &Format, stats: &Stats) -> Result<GptqResult> {
        if stats.k != k {
            return Err(Error::invalid(format!("statistics of {} inputs for a matrix of {k}", stats.k)));
        }
        let nearest =
            || if self.clip { super::clip::mse(format, w, n, k) } else { format.encode_nearest(w, n, k, None) };
        let moments = stats.lower_moments();
        let mut w = w.to_vec();
        // An input that is always 0 gets a moment of 1, and its weights become 0.
        let diagonal: Vec<f32> =
            moments.iter().step_by(k + 1).map(|&moment| if moment == 0.0 { 1.0 } else { moment }).collect();
        for i in (0..k).filter(|i| moments[i * k + i] == 0.0) {
            w.iter_mut().skip(i).step_by(k).for_each(|w| *w = 0.0);
        }
        let mut order: Vec<usize> = (0..k).collect();
        if self.act_order {
            order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]).then(a.cmp(&b)));
        }
        let mut damping = self.damping;
        let factor = loop {
            match inverse_factor(&moments, &diagonal, &order, damping) {
                Some(factor) => break factor,
                None if damping < 1.0 => damping *= 10.0,
                None => return Ok(GptqResult { quantized: nearest()?, damping: None }),
            }
        };
        drop(moments);
        let fixed = self.act_order
            || format.scale.outer.is_some()
            || matches!(format.zero, Zero::Offset { scale, .. } if scale.outer.is_some())
            || !matches!(format.granularity, Granularity::Group(_));
        // Shape, zeros and scales; where groups are taken as they come, this is only the frame.
        let mut q = if fixed { nearest()? } else { format.encode_nearest(&w, n, k, None)? };
        let groups = q.format.granularity.grid(n, k).1;
        let frame = &q;
        let tasks: Vec<Result<Task>> = w
            .par_chunks_mut(ROWS * k)
            .enumerate()
            .map(|(at, rows)| {
                let mut task = Task {
                    format,
                    first: at * ROWS,
                    rows: rows.len() / k,
                    k,
                    groups,
                    codes: vec![0; rows.len()],
                    scales: Vec::new(),
                    zeros: Vec::new(),
                };
                task.run(rows, &factor, &order, frame, fixed, self.clip)?;
                Ok(task)
            })
            .collect();
        for task in tasks {
            let task = task?;
            q.codes[task.first * k..][..task.codes.len()].copy_from_slice(&task.codes);
            if !fixed {
                q.scales[task.first * groups..][..task.scales.len()].copy_from_slice(&task.scales);
                if !q.zeros.is_empty() {
                    q.zeros[task.first * groups..][..task.zeros.len()].copy_from_slice(&task.zeros);
                }
            }
        }
        Ok(GptqResult { quantized: q, damping: Some(damping) })
    }
}

/// The rows of one thread.
struct Task<'a> {
    format: &'a Format,
    first: usize,
    rows: usize,
    k: usize,
    groups: usize,
    codes: Vec<u8>,
    scales: Vec<u32>,
    zeros: Vec<u32>,
}

impl Task<'_> {
    fn run(
        &mut self,
        w: &mut [f32],
        factor: &[f32],
        order: &[usize],
        frame: &Quantized,
        fixed: bool,
        clip: bool,
    ) -> Result<()> {
        let (k, rows) = (self.k, self.rows);
        let rounder = Rounder::new(self.format.code);
        let decoded: Vec<f64> = (0..=255u8).map(|code| self.format.code.decode(code)).collect();
        if !fixed {
            (self.scales, self.zeros) = (vec![0; rows * self.groups], vec![0; rows * self.groups]);
        }
        // Columns in the order in which they are taken.
        let mut sorted: Vec<f32> = Vec::with_capacity(w.len());
        w.chunks_exact(k).for_each(|row| sorted.extend(order.iter().map(|&c| row[c])));
        let w = &mut sorted;
        let span = match self.format.granularity {
            Granularity::Group(g) => g as usize,
            Granularity::Block { k, .. } => k as usize,
            Granularity::Tensor | Granularity::Channel => k,
        };
        let granules = k.div_ceil(span);
        let mut table: Vec<(f64, f64, f64)> =
            (0..rows * granules).map(|i| meaning(frame, self.first + i / granules, i % granules * span)).collect();
        let mut errors = vec![0.0f32; rows * BLOCK];
        for start in (0..k).step_by(BLOCK) {
            let end = (start + BLOCK).min(k);
            if !fixed {
                let first = start.next_multiple_of(span);
                (first..end).step_by(span).try_for_each(|at| self.group(w, at, span, &mut table, clip))?;
            }
            for i in start..end {
                let column = order[i];
                let pivot = factor[i * k + i];
                for row in 0..rows {
                    let weight = w[row * k + i];
                    let (scale, zero, offset) = table[row * granules + column / span];
                    let code = if scale == 0.0 {
                        rounder.code(zero)
                    } else {
                        rounder.code((weight as f64 - offset) / scale + zero)
                    };
                    self.codes[row * k + column] = code;
                    let value = scale * (decoded[code as usize] - zero) + offset;
                    let error = ((weight as f64 - value) / pivot as f64) as f32;
                    errors[row * BLOCK + i - start] = error;
                    let (later, step) = (&mut w[row * k + i + 1..row * k + end], &factor[i * k + i + 1..i * k + end]);
                    later.iter_mut().zip(step).for_each(|(w, u)| *w -= error * u);
                }
            }
            if end < k {
                let (made, step) = (end - start, &factor[start * k + end..]);
                let (left, right) = (View::rows(&errors, rows, made, BLOCK), View::rows(step, made, k - end, k));
                multiply(&mut w[end..], k, true, -1.0, left, right, Threads::One);
            }
        }
        Ok(())
    }

    /// Scales and zeros of the group that starts at a column, from the weights as they stand.
    fn group(
        &mut self,
        w: &[f32],
        start: usize,
        group: usize,
        table: &mut [(f64, f64, f64)],
        clip: bool,
    ) -> Result<()> {
        let (k, rows) = (self.k, self.rows);
        let width = group.min(k - start);
        let part: Vec<f32> = (0..rows).flat_map(|row| w[row * k + start..][..width].iter().copied()).collect();
        let one = Format { granularity: Granularity::Channel, container: &PLAIN, ..*self.format };
        let found = if clip {
            super::clip::mse(&one, &part, rows, width)?
        } else {
            one.encode_nearest(&part, rows, width, None)?
        };
        let at = start / group;
        for row in 0..rows {
            let place = row * self.groups + at;
            table[place] = meaning(&found, row, 0);
            self.scales[place] = found.scales[row];
            if let Some(&zero) = found.zeros.get(row) {
                self.zeros[place] = zero;
            }
        }
        Ok(())
    }
}

/// Scale, zero and offset of a weight.
fn meaning(q: &Quantized, row: usize, column: usize) -> (f64, f64, f64) {
    let granule = q.granule(row, column);
    let scale = q.scale(granule, row, column);
    match q.format.zero {
        Zero::None => (scale, 0.0, 0.0),
        Zero::Bias(bias) => (scale, bias as f64, 0.0),
        Zero::Int(_) => (scale, q.zeros[granule] as f64, 0.0),
        Zero::Float(dtype) => (scale, dtype.decode(q.zeros[granule]), 0.0),
        Zero::Offset { sign, .. } => (scale, 0.0, sign as f64 * q.offset(granule, row, column)),
    }
}

/// `U` of `H⁻¹ = Uᵀ U`, row-major, for columns in an order; `None` where the damped matrix is not positive definite. Of the
/// moments the lower triangle is read, and their diagonal from `diagonal`. Beside them two matrices are in memory at a time.
fn inverse_factor(lower: &[f32], diagonal: &[f32], order: &[usize], damping: f64) -> Option<Vec<f32>> {
    let k = diagonal.len();
    let mean = diagonal.iter().map(|&moment| moment as f64).sum::<f64>() / k as f64;
    let damp = (damping * mean) as f32;
    let at = |i: usize| order[k - 1 - i];
    let reversed = Mat::<f32>::from_fn(k, k, |i, j| match (at(i), at(j)) {
        (a, b) if a == b => diagonal[a] + damp,
        (a, b) => lower[a.max(b) * k + a.min(b)],
    });
    let cholesky = reversed.llt(Side::Lower).ok()?;
    drop(reversed);
    let mut inverse = Mat::<f32>::zeros(k, k);
    faer::linalg::triangular_inverse::invert_lower_triangular(inverse.as_mut(), cholesky.L(), Par::rayon(0));
    drop(cholesky);
    let mut factor = vec![0.0; k * k];
    factor.par_chunks_exact_mut(k).enumerate().for_each(|(i, row)| {
        for (j, out) in row.iter_mut().enumerate().skip(i) {
            *out = inverse[(k - 1 - i, k - 1 - j)];
        }
    });
    factor.iter().step_by(k + 1).all(|x| x.is_finite() && *x > 0.0).then_some(factor)
}
