//! Products of matrices in slices of `f32`, by the `gemm` crate: the only `unsafe` of the engine.
//!
//! faer's own `matmul` reaches half of that crate's rate on AVX2 (59 against 122 GFLOP/s on two Zen 3 cores), so products go
//! to the latter directly. Always holds: a view's last element lies in its slice, rows of an output do not overlap; so the
//! pointers that are handed on stay inside. Sums over the inner dimension are taken in one order however many threads run.

/// `rows × columns` numbers; element `(i, j)` lies at `i · strides.0 + j · strides.1`.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    strides: (usize, usize),
}

impl<'a> View<'a> {
    /// Rows that lie `stride` apart.
    ///
    /// # Panics
    /// Where the slice is too short.
    pub fn rows(data: &'a [f32], rows: usize, columns: usize, stride: usize) -> View<'a> {
        assert!(reach(rows, columns, (stride, 1)) <= data.len(), "{rows}x{columns} by {stride} of {}", data.len());
        View { data, rows, columns, strides: (stride, 1) }
    }

    /// Rows and columns changed over.
    pub fn transposed(self) -> View<'a> {
        View { rows: self.columns, columns: self.rows, strides: (self.strides.1, self.strides.0), ..self }
    }
}

/// How many numbers a view reaches over.
fn reach(rows: usize, columns: usize, strides: (usize, usize)) -> usize {
    if rows == 0 || columns == 0 { 0 } else { (rows - 1) * strides.0 + (columns - 1) * strides.1 + 1 }
}

/// Whether threads help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// The caller's alone.
    One,
    /// Those of rayon's pool.
    All,
}

/// `out = keep · out + factor · a · b`, where rows of `out` lie `stride` apart; `keep` is 0 or 1.
///
/// # Panics
/// Where sizes do not belong together.
pub fn multiply(out: &mut [f32], stride: usize, keep: bool, factor: f32, a: View<'_>, b: View<'_>, threads: Threads) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert!(k == b.rows && (stride >= n || m < 2), "{m}x{k} times {}x{n}, rows {stride} apart", b.rows);
    assert!(reach(m, n, (stride, 1)) <= out.len(), "{m}x{n} by {stride} of {}", out.len());
    if m == 0 || n == 0 {
        return;
    }
    let parallelism = match threads {
        Threads::One => gemm::Parallelism::None,
        Threads::All => gemm::Parallelism::Rayon(0),
    };
    // SAFETY: the asserts here and in `View::rows` keep every element of the three matrices inside its slice, and rows of
    // the output apart; the output is borrowed mutably, so nothing else looks at it.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride as isize,
            keep,
            a.data.as_ptr(),
            a.strides.1 as isize,
            a.strides.0 as isize,
            b.data.as_ptr(),
            b.strides.1 as isize,
            b.strides.0 as isize,
            1.0,
            factor,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_views_are_those_of_loops() {
        let mut rng = fastrand::Rng::with_seed(4);
        for (m, n, k, pad) in [(1, 1, 1, 0), (3, 5, 7, 2), (33, 70, 129, 3), (4, 4, 0, 1), (300, 2, 260, 0)] {
            let a: Vec<f32> = (0..m * (k + pad)).map(|_| rng.f32() - 0.5).collect();
            let b: Vec<f32> = (0..n * (k + pad)).map(|_| rng.f32() - 0.5).collect();
            let start: Vec<f32> = (0..m * (n + pad)).map(|_| rng.f32()).collect();
            for (keep, threads) in [(true, Threads::All), (false, Threads::One)] {
                let mut out = start.clone();
                let (left, right) = (View::rows(&a, m, k, k + pad), View::rows(&b, n, k, k + pad).transposed());
                multiply(&mut out, n + pad, keep, -2.0, left, right, threads);
                for (i, (got, before)) in out.iter().zip(&start).enumerate() {
                    let (row, column) = (i / (n + pad), i % (n + pad));
                    let sum: f64 = (0..k)
                        .map(|c| {
                            a[row * (k + pad) + c] as f64 * b.get(column * (k + pad) + c).copied().unwrap_or(0.0) as f64
                        })
                        .sum();
                    let wanted =
                        if column >= n { *before as f64 } else { -2.0 * sum + if keep { *before as f64 } else { 0.0 } };
                    assert!((*got as f64 - wanted).abs() < 1e-4, "{m}x{n}x{k} at {row}, {column}: {got}, not {wanted}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "of 5")]
    fn a_view_beyond_its_slice_is_refused() {
        View::rows(&[0.0; 5], 2, 3, 3);
    }
}
