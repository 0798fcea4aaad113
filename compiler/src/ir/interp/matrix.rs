//! Matrix instructions: fragments of all lanes as matrices, their product, and back.
//!
//! Where a device keeps its lane map to itself, the elements are dealt out here row by row: lane 0 has the first ones.

use crate::caps::{MmaShape, place};
use crate::dtype::DType;

/// The fragments of D, by lane, from those of A, B and C. Sums of floats are made in `f64` and rounded once.
pub fn multiply(shape: &MmaShape, a: &[&[u8]], b: &[&[u8]], c: &[&[u8]]) -> Vec<Vec<u8>> {
    let map = shape.map.as_ref();
    let (m, n, k) = (shape.m as usize, shape.n as usize, shape.k as usize);
    let a = gather(a, |at| map.map_or((at / k, at % k), |map| place(&map.a, at)), shape.a, k, m * k);
    let b = gather(b, |at| map.map_or((at / n, at % n), |map| place(&map.b, at)), shape.b, n, k * n);
    let c_matrix = gather(c, |at| map.map_or((at / n, at % n), |map| place(&map.acc, at)), shape.acc, n, m * n);
    let mut d = vec![0u32; m * n];
    for (i, out) in d.iter_mut().enumerate() {
        let (row, column) = (i / n, i % n);
        let pairs = (0..k).map(|x| (a[row * k + x], b[x * n + column]));
        *out = if shape.acc == DType::I32 {
            // Exact: each product is below 2^16, and so the sum below 2^53.
            let sum: f64 = pairs.map(|(x, y)| x * y).sum();
            (c_matrix[i] as i64).wrapping_add(sum as i64) as u32
        } else {
            ((pairs.map(|(x, y)| x * y).sum::<f64>() + c_matrix[i]) as f32).to_bits()
        };
    }
    let elements = shape.acc_elements() as usize;
    let lane = |lane: usize| {
        let at = |i: usize| {
            let address = lane * elements + i;
            let (row, column) = map.map_or((address / n, address % n), |map| place(&map.acc, address));
            row * n + column
        };
        (0..elements).flat_map(|i| d[at(i)].to_le_bytes()).collect()
    };
    (0..shape.lanes as usize).map(lane).collect()
}

/// A matrix `[row][column]` of `count` numbers from fragments.
fn gather(
    fragments: &[&[u8]],
    place: impl Fn(usize) -> (usize, usize),
    dtype: DType,
    columns: usize,
    count: usize,
) -> Vec<f64> {
    let size = dtype.bits() as usize / 8;
    let elements = count / fragments.len();
    let mut matrix = vec![0.0; count];
    for address in 0..count {
        let (lane, i) = (address / elements, address % elements);
        let mut word = [0; 4];
        word[..size].copy_from_slice(&fragments[lane][i * size..][..size]);
        let (row, column) = place(address);
        matrix[row * columns + column] = dtype.decode(u32::from_le_bytes(word));
    }
    matrix
}
