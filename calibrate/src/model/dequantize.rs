//! Quantized matrices to floats, row by row and in parallel, and their rows in another order.
//!
//! Always holds: each number is `Quantized::value` rounded once to `f32`.

use bitsmith_compiler::format::{Granularity, Quantized, Span, Zero};
use bitsmith_compiler::{Error, Result};
use rayon::prelude::*;

/// All numbers, row-major.
pub fn dequantize(q: &Quantized) -> Vec<f32> {
    let mut out = vec![0.0; q.n * q.k];
    let decoded = decoded(q);
    out.par_chunks_mut(q.k).enumerate().for_each(|(at, values)| fill(q, &decoded, at, values));
    out
}

/// The numbers of one row.
pub fn row(q: &Quantized, row: usize) -> Vec<f32> {
    let mut values = vec![0.0; q.k];
    fill(q, &decoded(q), row, &mut values);
    values
}

fn decoded(q: &Quantized) -> Vec<f64> {
    (0..=255u8).map(|code| q.format.code.decode(code)).collect()
}

fn fill(q: &Quantized, decoded: &[f64], row: usize, values: &mut [f32]) {
    let codes = &q.codes[row * q.k..][..q.k];
    let (mut last, mut scale, mut zero, mut offset) = (usize::MAX, 0.0, 0.0, 0.0);
    for (column, (value, &code)) in values.iter_mut().zip(codes).enumerate() {
        let granule = q.granule(row, column);
        if granule != last {
            last = granule;
            scale = q.scale(granule, row, column);
            (zero, offset) = match q.format.zero {
                Zero::None => (0.0, 0.0),
                Zero::Bias(bias) => (bias as f64, 0.0),
                Zero::Int(_) => (q.zeros[granule] as f64, 0.0),
                Zero::Float(dtype) => (dtype.decode(q.zeros[granule]), 0.0),
                Zero::Offset { sign, .. } => (0.0, sign as f64 * q.offset(granule, row, column)),
            };
        }
        *value = (scale * (decoded[code as usize] - zero) + offset) as f32;
    }
}

/// The same matrix with its rows in another order: row `i` of the result is row `order[i]`. Refuses formats whose rows
/// share numbers that an order would mix.
pub fn permute_rows(q: &Quantized, order: &[usize]) -> Result<Quantized> {
    let per_row = |granularity: Granularity| matches!(granularity, Granularity::Channel | Granularity::Group(_));
    let shared = |span: Option<Span>| matches!(span, Some(Span::Flat(_)));
    let outer = q.format.scale.outer;
    let offset_outer = match q.format.zero {
        Zero::Offset { scale, .. } => scale.outer,
        _ => None,
    };
    if !(per_row(q.format.granularity) || q.format.granularity == Granularity::Tensor)
        || shared(outer.map(|o| o.span))
        || shared(offset_outer.map(|o| o.span))
    {
        return Err(Error::Unsupported(format!("rows of {} cannot change places without loss", q.format)));
    }
    let rows = |list: &[u32]| -> Vec<u32> {
        if !list.len().is_multiple_of(q.n) || list.len() < q.n {
            return list.to_vec();
        }
        let width = list.len() / q.n;
        order.iter().flat_map(|&row| list[row * width..][..width].iter().copied()).collect()
    };
    let keep_tensor =
        |list: &[u32]| if q.format.granularity == Granularity::Tensor { list.to_vec() } else { rows(list) };
    let second = |span: Option<Span>, list: &[u32]| match span {
        Some(Span::Tensor) | None => list.to_vec(),
        Some(_) => rows(list),
    };
    let codes = order.iter().flat_map(|&row| q.codes[row * q.k..][..q.k].iter().copied()).collect();
    Ok(Quantized {
        codes,
        scales: keep_tensor(&q.scales),
        outer: second(outer.map(|o| o.span), &q.outer),
        zeros: keep_tensor(&q.zeros),
        zeros_outer: second(offset_outer.map(|o| o.span), &q.zeros_outer),
        ..q.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_compiler::format::Format;

    #[test]
    fn agrees_with_value_in_every_format_and_permutes_back() {
        let mut rng = fastrand::Rng::with_seed(7);
        let w: Vec<f32> = (0..32 * 256).map(|_| rng.f32() - 0.4).collect();
        for named in Format::ALL {
            let Ok(q) = named.format.encode(&w, 32, 256, None) else { continue };
            let values = dequantize(&q);
            for (i, value) in values.iter().enumerate() {
                // A zero may come with either sign.
                assert_eq!(*value, q.value(i / q.k, i % q.k) as f32, "{} at {i}", named.name);
            }
            assert_eq!(row(&q, 5), values[5 * 256..6 * 256]);
            let order: Vec<usize> = (0..32).rev().collect();
            if let Ok(turned) = permute_rows(&q, &order) {
                assert_eq!(dequantize(&turned)[..256], values[31 * 256..], "{}", named.name);
                assert_eq!(permute_rows(&turned, &order).unwrap(), q, "{}", named.name);
            }
        }
    }
}
