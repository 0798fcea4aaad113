//! SmoothQuant: outliers of the inputs move into the weights (Xiao et al. 2022), and outlier channel splitting.
//!
//! Reads largest magnitudes of inputs and of weight columns; makes divisors `s` of the inputs, by which weights are
//! multiplied. `s_j = max|X_j|^α / max|W_j|^(1−α)`.

/// Divisors of the inputs; `columns` holds the largest magnitude of each weight column over all matrices that share them.
pub fn scales(absmax: &[f32], columns: &[f32], alpha: f32) -> Vec<f32> {
    absmax
        .iter()
        .zip(columns)
        .map(|(x, w)| (x.max(1e-5).powf(alpha) / w.max(1e-5).powf(1.0 - alpha)).max(1e-5))
        .collect()
}

/// Largest magnitude of each column.
pub fn column_max<'a>(matrices: impl IntoIterator<Item = &'a [f32]>, k: usize) -> Vec<f32> {
    let mut most = vec![0.0f32; k];
    for w in matrices {
        for row in w.chunks_exact(k) {
            most.iter_mut().zip(row).for_each(|(m, w)| *m = m.max(w.abs()));
        }
    }
    most
}

/// Multiplies column `j` of a matrix by `s[j]`.
pub fn scale_columns(w: &mut [f32], s: &[f32]) {
    w.chunks_exact_mut(s.len()).for_each(|row| row.iter_mut().zip(s).for_each(|(w, s)| *w *= s));
}

/// Splits the columns with the largest products of input and weight: each appears twice with half its weight. `extra` is
/// how many; the new width is brought up to a multiple of `multiple` by splitting more. Returns weights `[n, k + more]`
/// and which input each column takes.
pub fn split(w: &[f32], k: usize, absmax: &[f32], extra: usize, multiple: usize) -> (Vec<f32>, Vec<u32>) {
    let wide = (k + extra).next_multiple_of(multiple.max(1));
    let columns = column_max([w], k);
    let mut order: Vec<usize> = (0..k).collect();
    order.sort_by(|&a, &b| (columns[b] * absmax[b]).total_cmp(&(columns[a] * absmax[a])).then(a.cmp(&b)));
    let chosen: Vec<usize> = order.iter().copied().cycle().take((wide - k).min(k)).collect();
    let mut share = vec![1.0f32; k];
    chosen.iter().for_each(|&c| share[c] = 0.5);
    let mut gather: Vec<u32> = (0..k as u32).collect();
    gather.extend(chosen.iter().map(|&c| c as u32));
    let out = w
        .chunks_exact(k)
        .flat_map(|row| gather.iter().map(|&c| row[c as usize] * share[c as usize]).collect::<Vec<_>>())
        .collect();
    (out, gather)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_matrix_computes_the_same() {
        let mut rng = fastrand::Rng::with_seed(5);
        let (n, k) = (4, 64);
        let mut w: Vec<f32> = (0..n * k).map(|_| rng.f32() - 0.5).collect();
        (0..n).for_each(|row| w[row * k + 9] *= 16.0);
        let (wide, gather) = split(&w, k, &vec![1.0; k], 2, 32);
        assert_eq!((wide.len(), gather.len(), gather[k]), (n * 96, 96, 9));
        let x: Vec<f32> = (0..k).map(|_| rng.f32()).collect();
        for row in 0..n {
            let plain: f32 = (0..k).map(|c| w[row * k + c] * x[c]).sum();
            let split: f32 = (0..96).map(|c| wide[row * 96 + c] * x[gather[c] as usize]).sum();
            assert!((plain - split).abs() < 1e-4);
        }
        let most = |w: &[f32]| w.iter().fold(0.0f32, |a, w| a.max(w.abs()));
        assert!(most(&wide) < 0.51 * most(&w));
    }
}
