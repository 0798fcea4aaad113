//! AWQ, the `gemm` version: 4-bit integers with zeros, packed along N in an interleaved order.
//!
//! ```text
//! qweight  i32 [k, n / 8]       nibble i (bits 4i) of word c holds row 8 c + [0, 2, 4, 6, 1, 3, 5, 7][i]
//! qzeros   i32 [groups, n / 8]  in the same order, as they are (no -1)
//! scales   f16 [groups, n]
//! ```
//!
//! `w = (q - zero) * scale`. Source: AutoAWQ `packing_utils.py`, `linear/gemm.py` @88e4c76b.

use super::gptq::{common_faults, matrix, refuse, scale_word, transpose};
use super::grammar::{Family, granularity, granularity_word};
use super::part::Parts;
use super::{Code, Container, Format, Granularity, Part, Quantized, Scale, Zero};
use crate::dtype::DType;
use crate::error::{Error, Result};

/// The container.
pub static AWQ: Container = Container { name: "awq", pack, unpack, check };

/// Names: `awq-g128`.
pub(super) static FAMILY: Family = Family { prefix: "awq-", accepted: "<g<size>|channel>[-bf16|-f32]", parse, print };

/// Row within a word that each nibble holds.
const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

fn parse(tail: &str) -> Result<Format> {
    let accepted = || Error::invalid(format!("`{tail}` after awq-; accepted is {}", FAMILY.accepted));
    let (grain, dtype) = match tail.split_once('-') {
        None => (tail, DType::F16),
        Some((grain, "bf16")) => (grain, DType::Bf16),
        Some((grain, "f32")) => (grain, DType::F32),
        Some(_) => return Err(accepted()),
    };
    let granularity = granularity(grain)?
        .filter(|found| matches!(found, Granularity::Group(_) | Granularity::Channel))
        .ok_or_else(accepted)?;
    Ok(Format {
        code: Code::Int { bits: 4, signed: false },
        granularity,
        zero: Zero::Int(4),
        scale: Scale::of(dtype),
        container: &AWQ,
    })
}

fn print(format: &Format) -> Option<String> {
    (*format.container == AWQ).then(|| granularity_word(format.granularity) + scale_word(format.scale.dtype))
}

fn check(format: &Format, n: usize, k: usize) -> Vec<String> {
    let mut faults = format.shape_faults(n, k);
    if format.code != (Code::Int { bits: 4, signed: false }) || format.zero != Zero::Int(4) {
        faults.push(format!("AWQ of {:?} with {:?}; accepted are 4-bit codes and zeros", format.code, format.zero));
    } else {
        faults.extend(common_faults("AWQ", format));
    }
    if !n.is_multiple_of(8) {
        faults.push(format!("AWQ: N is {n}; accepted are multiples of 8"));
    }
    if let Granularity::Group(g) = format.granularity
        && g > 0
        && !k.is_multiple_of(g as usize)
    {
        faults.push(format!("AWQ: K is {k}; accepted are multiples of the group size {g}"));
    }
    faults
}

/// Packs rows of `[rows, n]`.
fn pack_nibbles(fields: &[u8]) -> Vec<u32> {
    let word = |eight: &[u8]| ORDER.iter().enumerate().fold(0, |word, (i, row)| word | (eight[*row] as u32) << (4 * i));
    fields.chunks_exact(8).map(word).collect()
}

/// Unpacks what [`pack_nibbles`] packs.
fn unpack_nibbles(words: &[u32]) -> Vec<u8> {
    let mut fields = vec![0u8; words.len() * 8];
    for (word, eight) in words.iter().zip(fields.chunks_exact_mut(8)) {
        for (i, row) in ORDER.iter().enumerate() {
            eight[*row] = (word >> (4 * i)) as u8 & 15;
        }
    }
    fields
}

fn pack(q: &Quantized) -> Result<Vec<Part>> {
    refuse(check(&q.format, q.n, q.k))?;
    q.check()?;
    if q.order.is_some() {
        return Err(Error::invalid("AWQ has no group indices"));
    }
    let (n, k) = (q.n, q.k);
    let groups = q.format.granularity.grid(n, k).1;
    let zeros: Vec<u8> = transpose(&q.zeros, n, groups).into_iter().map(|zero| zero as u8).collect();
    Ok(vec![
        Part::of_words("qweight", &[k, n / 8], &pack_nibbles(&transpose(&q.codes, n, k))),
        Part::of_words("qzeros", &[groups, n / 8], &pack_nibbles(&zeros)),
        Part::of_raw("scales", q.format.scale.dtype, &[groups, n], &transpose(&q.scales, n, groups)),
    ])
}

fn unpack(format: &Format, n: usize, k: usize, parts: &[Part]) -> Result<Quantized> {
    refuse(check(format, n, k))?;
    let parts = Parts::new(AWQ.name, parts);
    let groups = format.granularity.grid(n, k).1;
    let codes = transpose(&unpack_nibbles(&parts.words("qweight", &[k, n / 8])?), k, n);
    let zeros = transpose(&unpack_nibbles(&parts.words("qzeros", &[groups, n / 8])?), groups, n);
    let scales = transpose(&parts.raw("scales", format.scale.dtype, &[&[groups, n]])?, groups, n);
    let q = matrix(format, n, k, codes, scales, zeros.into_iter().map(|zero| zero as u32).collect(), None);
    q.check()?;
    Ok(q)
}
