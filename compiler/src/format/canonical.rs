//! The canonical form: the few shapes of scale and zero that compute packings carry.
//!
//! Reads any [`Quantized`]; makes one whose granularity is `Channel` or `Group`, whose columns are in group order, whose
//! zeros are `None`, `Bias`, `Int`, `Float` or `Offset`, and whose second levels multiply per row or per run of weights.
//! Always holds: the numbers are the same to within two roundings in `f32` (NVFP4's division becomes a product), and
//! exactly the same for every other format.

use super::{Format, Granularity, Outer, OuterRule, Quantized, Scale, Span, Zero};
use crate::dtype::DType;
use crate::error::{Error, Result};

/// The canonical form of a format for rows of `k` columns.
pub fn canonical_format(format: &Format, k: usize) -> Format {
    let granularity = match format.granularity {
        Granularity::Tensor | Granularity::Channel => Granularity::Channel,
        Granularity::Group(g) | Granularity::Block { k: g, .. } if g as usize >= k => Granularity::Channel,
        Granularity::Group(g) | Granularity::Block { k: g, .. } => Granularity::Group(g),
    };
    let zero = match format.zero {
        Zero::Offset { scale, sign } => Zero::Offset { scale: canonical_scale(&scale), sign },
        other => other,
    };
    Format { granularity, zero, scale: canonical_scale(&format.scale), ..*format }
}

fn canonical_scale(scale: &Scale) -> Scale {
    match scale.outer {
        None => *scale,
        Some(Outer { span: Span::Flat(_), .. } | Outer { rule: OuterRule::DynamicMap, .. }) => Scale::of(DType::F32),
        Some(Outer { rule: OuterRule::Divide, .. }) => {
            Scale { outer: Some(Outer { dtype: DType::F32, span: Span::Row, rule: OuterRule::Multiply }), ..*scale }
        }
        Some(Outer { dtype, span: Span::Tensor, rule }) => {
            Scale { outer: Some(Outer { dtype, span: Span::Row, rule }), ..*scale }
        }
        Some(_) => *scale,
    }
}

/// Brings columns into the order of their groups. Returns the matrix and, for each new column, the old one that it holds:
/// the caller gathers activations by it. Fails where a group does not have `group_size` members.
pub fn sort_groups(q: &Quantized) -> Result<(Quantized, Option<Vec<u32>>)> {
    let Some(order) = &q.order else { return Ok((q.clone(), None)) };
    let Granularity::Group(g) = q.format.granularity else {
        return Err(Error::invalid("columns have a group index, but the format has no groups"));
    };
    let mut columns: Vec<u32> = (0..q.k as u32).collect();
    columns.sort_by_key(|&c| order[c as usize]);
    if let Some(i) = (0..q.k).find(|&i| order[columns[i] as usize] as usize != i / g as usize) {
        return Err(Error::invalid(format!(
            "group index: group {} does not have {g} columns, so they cannot be brought into order",
            i / g as usize
        )));
    }
    let mut codes = Vec::with_capacity(q.codes.len());
    for row in q.codes.chunks(q.k) {
        codes.extend(columns.iter().map(|&c| row[c as usize]));
    }
    Ok((Quantized { codes, order: None, ..q.clone() }, Some(columns)))
}

/// The canonical form of a matrix. Fails where its columns are not in group order ([`sort_groups`] first), and where a
/// scale is not finite.
pub fn canonical(q: &Quantized) -> Result<Quantized> {
    if q.order.is_some() {
        return Err(Error::invalid("columns are not in group order; sort them first"));
    }
    let format = canonical_format(&q.format, q.k);
    let (rows, groups) = format.granularity.grid(q.n, q.k);
    let group = match format.granularity {
        Granularity::Group(g) => g as usize,
        _ => q.k,
    };
    let spread = |granules: &[u32]| -> Vec<u32> {
        if granules.is_empty() {
            return Vec::new();
        }
        (0..rows * groups).map(|i| granules[q.format.granularity.index(q.k, i / groups, i % groups * group)]).collect()
    };
    let (scales, outer) = levels(q, &q.format.scale, &format.scale, spread(&q.scales), &q.outer, group)?;
    let (zeros, zeros_outer) = match (&q.format.zero, &format.zero) {
        (Zero::Offset { scale: from, .. }, Zero::Offset { scale: to, .. }) => {
            levels(q, from, to, spread(&q.zeros), &q.zeros_outer, group)?
        }
        _ => (spread(&q.zeros), Vec::new()),
    };
    Ok(Quantized {
        format,
        n: q.n,
        k: q.k,
        codes: q.codes.clone(),
        scales,
        outer,
        zeros,
        zeros_outer,
        scale_offset: 0.0,
        order: None,
    })
}

/// Both levels of a scale in canonical form; `inner` is spread to `[n, groups]` already.
fn levels(
    q: &Quantized,
    from: &Scale,
    to: &Scale,
    inner: Vec<u32>,
    outer: &[u32],
    group: usize,
) -> Result<(Vec<u32>, Vec<u32>)> {
    let groups = inner.len() / q.n;
    let at = |i: usize| (i / groups, i % groups * group);
    let (inner, outer) = match (from.outer, to.outer) {
        (Some(_), None) => {
            let collapsed = (0..inner.len())
                .map(|i| {
                    let (row, column) = at(i);
                    (q.scale(q.format.granularity.index(q.k, row, column), row, column) as f32).to_bits()
                })
                .collect();
            (collapsed, Vec::new())
        }
        (Some(Outer { dtype, span, rule: OuterRule::Divide }), _) => {
            let one = |row: usize| match span {
                Span::Row => outer[row],
                _ => outer[0],
            };
            (inner, (0..q.n).map(|row| ((1.0 / dtype.decode(one(row))) as f32).to_bits()).collect())
        }
        (Some(Outer { span: Span::Tensor, .. }), _) => (inner, vec![outer[0]; q.n]),
        _ => (inner, outer.to_vec()),
    };
    let bad = |dtype: DType, bits: &[u32]| bits.iter().position(|&b| !dtype.decode(b).is_finite());
    if let Some(i) = bad(to.dtype, &inner) {
        let (row, column) = at(i);
        return Err(Error::invalid(format!("the scale of row {row}, column {column} is not a finite number")));
    }
    if let Some(i) = to.outer.and_then(|o| bad(o.dtype, &outer)) {
        return Err(Error::invalid(format!("second-level scale {i} is not a finite number")));
    }
    Ok((inner, outer))
}
