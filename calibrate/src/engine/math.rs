//! Float arithmetic of a decoder: products, norms, softmax.
//!
//! Products go to [`super::gemm`]; everything else is a loop. Always holds: sums of norms and softmax are taken in `f64`, so that
//! the float path can serve as the reference of the quantized ones.

use super::gemm::{Threads, View, multiply};

/// `out[m, n] = x[m, k] · w[n, k]ᵀ`.
pub fn product(x: &[f32], w: &[f32], m: usize, n: usize, k: usize) -> Vec<f32> {
    let mut out = vec![0.0f32; m * n];
    multiply(&mut out, n, false, 1.0, View::rows(x, m, k, k), View::rows(w, n, k, k).transposed(), Threads::All);
    out
}

/// RMS norm of rows of `gain.len()` numbers.
pub fn rms_norm(x: &[f32], gain: &[f32], eps: f64) -> Vec<f32> {
    let mut out = x.to_vec();
    rms_norm_in_place(&mut out, gain, eps);
    out
}

/// RMS norm of rows of `gain.len()` numbers, in place.
pub fn rms_norm_in_place(x: &mut [f32], gain: &[f32], eps: f64) {
    for row in x.chunks_exact_mut(gain.len()) {
        let mean = row.iter().map(|&v| v as f64 * v as f64).sum::<f64>() / row.len() as f64;
        let r = 1.0 / (mean + eps).sqrt();
        row.iter_mut().zip(gain).for_each(|(v, g)| *v = (*v as f64 * r) as f32 * g);
    }
}

/// `silu(gate) * up`, into `gate`.
pub fn silu_mul(gate: &mut [f32], up: &[f32]) {
    gate.iter_mut().zip(up).for_each(|(g, u)| *g = *g / (1.0 + (-*g).exp()) * u);
}

/// `a += b`.
pub fn add(a: &mut [f32], b: &[f32]) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
}

/// Softmax in place.
pub fn softmax(x: &mut [f32]) {
    let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0f64;
    for v in x.iter_mut() {
        *v = (*v - top).exp();
        sum += *v as f64;
    }
    let inverse = (1.0 / sum) as f32;
    x.iter_mut().for_each(|v| *v *= inverse);
}

/// Logarithm of the sum of exponentials.
pub fn log_sum_exp(x: &[f32]) -> f64 {
    let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    top + x.iter().map(|&v| (v as f64 - top).exp()).sum::<f64>().ln()
}
