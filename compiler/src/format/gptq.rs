//! GPTQ (AutoGPTQ, GPTQModel): integers of 2, 3, 4 or 8 bits, packed along K.
//!
//! ```text
//! qweight  i32 [k * bits / 32, n]       column n is a bit stream over k, least significant bit first; 3-bit fields straddle
//! qzeros   i32 [groups, n * bits / 32]  row g is a bit stream over n; version 1 stores zero - 1, version 2 the zero
//! scales   f16 [groups, n]              (or bf16, f32)
//! g_idx    i32 [k]                      group of each column; k / group unless act-order
//! ```
//!
//! `w = (q - zero) * scale[g_idx[k], n]`. In version 1 a zero of 0 is stored as all ones of its own field: the writer
//! masks it, and the reader adds 1 and masks. (AutoGPTQ's writer does not mask, and so spoils every higher field of the
//! word; what it wrote cannot be recovered.) Symmetric files still carry zeros, all in the middle; one that says
//! version 1 but holds version 2's zeros is refused by name, see [`version`].
//! Source: AutoGPTQ `qlinear_cuda_old.py` @9f7d3707, GPTQModel `utils/model.py` @f4c327a1.

use super::grammar::{Family, granularity, granularity_word, number};
use super::part::Parts;
use super::{Code, Container, Format, Granularity, Part, Quantized, Scale, Zero, bits};
use crate::dtype::DType;
use crate::error::{Error, Result};

/// Zeros stored less one: what `checkpoint_format` "gptq", or none, means.
pub static GPTQ_V1: Container =
    Container { name: "gptq", pack: |q| pack(q, 1), unpack: |f, n, k, p| unpack(f, n, k, p, 1), check };
/// Zeros stored as they are: `checkpoint_format` "gptq_v2".
pub static GPTQ_V2: Container =
    Container { name: "gptq-v2", pack: |q| pack(q, 0), unpack: |f, n, k, p| unpack(f, n, k, p, 0), check };

/// Names: `gptq-int4-g128-asym-v2`.
pub(super) static FAMILY: Family =
    Family { prefix: "gptq-", accepted: "int<2|3|4|8>-<g<size>|channel>[-asym][-v2][-bf16|-f32]", parse, print };

/// The version that the zeros of a symmetric matrix show: all `2^(bits-1) - 1` is 1, all `2^(bits-1)` is 2, else `None`.
/// Some checkpoints declare the wrong one.
pub fn version(qzeros: &[u8], code_bits: u8) -> Option<u8> {
    let words: Vec<u32> = qzeros.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect();
    if !matches!(code_bits, 2 | 3 | 4 | 8) || words.is_empty() || !(words.len() * 32).is_multiple_of(code_bits as usize)
    {
        return None;
    }
    let fields = bits::unpack_words(&words, code_bits, words.len() * 32 / code_bits as usize);
    let middle = 1u8 << (code_bits - 1);
    match fields[0] {
        first if fields.iter().any(|field| *field != first) => None,
        first if first == middle - 1 => Some(1),
        first if first == middle => Some(2),
        _ => None,
    }
}

/// Words of version 1 zeros that look as an unmasked writer leaves them: a zero of 0 is stored as -1, whose sign bits fill
/// every higher field of the word. A sound file can hold such a word, so this is a suspicion, not a proof; 3-bit fields
/// straddle words, and are not looked at.
pub fn spoiled_words(qzeros: &[u8], code_bits: u8) -> usize {
    if !matches!(code_bits, 2 | 4 | 8) {
        return 0;
    }
    let mask = ((1u64 << code_bits) - 1) as u32;
    let fields = 32 / code_bits as u32;
    qzeros
        .chunks_exact(4)
        .map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]))
        .filter(|word| {
            let first = (0..fields).find(|i| word >> (i * code_bits as u32) & mask == mask);
            first.is_some_and(|i| {
                let rest = word >> (i * code_bits as u32);
                i + 1 < fields && rest == u32::MAX >> (i * code_bits as u32)
            })
        })
        .count()
}

fn parse(tail: &str) -> Result<Format> {
    let accepted = || Error::invalid(format!("`{tail}` after gptq-; accepted is {}", FAMILY.accepted));
    let mut words = tail.split('-');
    let width = words.next().and_then(|word| word.strip_prefix("int")).and_then(number);
    let width = width.filter(|width| matches!(width, 2 | 3 | 4 | 8)).ok_or_else(accepted)? as u8;
    let (mut grain, mut zero) = (None, Zero::Bias(1 << (width - 1)));
    let (mut container, mut dtype) = (&GPTQ_V1, DType::F16);
    for word in words {
        match word {
            "asym" => zero = Zero::Int(width),
            "v2" => container = &GPTQ_V2,
            "bf16" => dtype = DType::Bf16,
            "f32" => dtype = DType::F32,
            _ => grain = Some(granularity(word)?.filter(|_| grain.is_none()).ok_or_else(accepted)?),
        }
    }
    let granularity = grain.ok_or_else(accepted)?;
    if !matches!(granularity, Granularity::Group(_) | Granularity::Channel) {
        return Err(accepted());
    }
    Ok(Format { code: Code::Int { bits: width, signed: false }, granularity, zero, scale: Scale::of(dtype), container })
}

fn print(format: &Format) -> Option<String> {
    let v2 = *format.container == GPTQ_V2;
    (v2 || *format.container == GPTQ_V1).then(|| {
        let mut name = format!("int{}-{}", format.code.bits(), granularity_word(format.granularity));
        if matches!(format.zero, Zero::Int(_)) {
            name += "-asym";
        }
        if v2 {
            name += "-v2";
        }
        name + scale_word(format.scale.dtype)
    })
}

/// Words for scale types other than f16.
pub(super) fn scale_word(dtype: DType) -> &'static str {
    match dtype {
        DType::Bf16 => "-bf16",
        DType::F32 => "-f32",
        _ => "",
    }
}

fn check(format: &Format, n: usize, k: usize) -> Vec<String> {
    let mut faults = format.shape_faults(n, k);
    let width = format.code.bits();
    if !matches!(format.code, Code::Int { bits: 2 | 3 | 4 | 8, signed: false }) {
        faults.push(format!("GPTQ of {:?}; accepted are unsigned integers of 2, 3, 4 and 8 bits", format.code));
    }
    faults.extend(common_faults("GPTQ", format));
    if faults.is_empty() {
        for (name, extent) in [("K", k), ("N", n)] {
            if !(extent * width as usize).is_multiple_of(32) {
                faults.push(format!("GPTQ: {name} is {extent}; accepted are whole words of {width}-bit fields"));
            }
        }
    }
    faults
}

/// What GPTQ, AWQ and compressed-tensors integers share: zeros, scales and granularity.
pub(super) fn common_faults(name: &str, format: &Format) -> Vec<String> {
    let mut faults = vec![];
    let width = format.code.bits();
    match format.zero {
        Zero::Bias(bias) if (1..=8).contains(&width) && bias == 1 << (width - 1) => {}
        Zero::Int(zero) if zero == width => {}
        other => {
            faults.push(format!("{name} with {other:?}; accepted are the middle as bias, or zeros as wide as codes"))
        }
    }
    if !matches!(format.scale, Scale { dtype: DType::F16 | DType::Bf16 | DType::F32, outer: None }) {
        faults.push(format!("{name} with {:?}; accepted are one-level F16, Bf16 and F32", format.scale));
    }
    if !matches!(format.granularity, Granularity::Group(_) | Granularity::Channel) {
        faults.push(format!("{name} with {:?}; accepted are groups and channels", format.granularity));
    }
    faults
}

/// Row-major `[rows, columns]` turned.
pub(super) fn transpose<T: Copy>(x: &[T], rows: usize, columns: usize) -> Vec<T> {
    (0..columns).flat_map(|c| (0..rows).map(move |r| x[r * columns + c])).collect()
}

fn pack(q: &Quantized, less: u8) -> Result<Vec<Part>> {
    refuse(check(&q.format, q.n, q.k))?;
    q.check()?;
    let (n, k, width) = (q.n, q.k, q.format.code.bits());
    let groups = q.format.granularity.grid(n, k).1;
    let rows: Vec<u32> = q.codes.chunks_exact(k).flat_map(|row| bits::pack_words(row, width)).collect();
    let height = bits::words_for(k, width);
    let mask = ((1u16 << width) - 1) as u8;
    let zero = |zero: u8| zero.wrapping_sub(less) & mask;
    let zeros: Vec<u8> = match q.format.zero {
        Zero::Bias(bias) => vec![zero(bias as u8); n * groups],
        _ => transpose(&q.zeros, n, groups).into_iter().map(|z| zero(z as u8)).collect(),
    };
    let zeros: Vec<u32> = zeros.chunks_exact(n).flat_map(|row| bits::pack_words(row, width)).collect();
    let order = q.order.clone().unwrap_or_else(|| trivial_order(&q.format, k));
    Ok(vec![
        Part::of_words("qweight", &[height, n], &transpose(&rows, n, height)),
        Part::of_words("qzeros", &[groups, bits::words_for(n, width)], &zeros),
        Part::of_raw("scales", q.format.scale.dtype, &[groups, n], &transpose(&q.scales, n, groups)),
        Part::of_words("g_idx", &[k], &order),
    ])
}

/// Groups in order.
pub(super) fn trivial_order(format: &Format, k: usize) -> Vec<u32> {
    match format.granularity {
        Granularity::Group(g) => (0..k as u32).map(|column| column / g).collect(),
        Granularity::Tensor | Granularity::Channel | Granularity::Block { .. } => vec![0; k],
    }
}

/// Faults as an error.
pub(super) fn refuse(faults: Vec<String>) -> Result<()> {
    if faults.is_empty() { Ok(()) } else { Err(Error::Invalid(faults)) }
}

fn unpack(format: &Format, n: usize, k: usize, parts: &[Part], less: u8) -> Result<Quantized> {
    refuse(check(format, n, k))?;
    let parts = Parts::new(format.container.name, parts);
    let width = format.code.bits();
    let groups = format.granularity.grid(n, k).1;
    let height = bits::words_for(k, width);
    let columns = transpose(&parts.words("qweight", &[height, n])?, height, n);
    let codes = columns.chunks_exact(height).flat_map(|words| bits::unpack_words(words, width, k)).collect();
    let across = bits::words_for(n, width);
    let words = parts.words("qzeros", &[groups, across])?;
    let mask = ((1u16 << width) - 1) as u8;
    let zeros: Vec<u8> = words
        .chunks_exact(across)
        .flat_map(|row| bits::unpack_words(row, width, n))
        .map(|zero| zero.wrapping_add(less) & mask)
        .collect();
    let zeros = match format.zero {
        Zero::Bias(bias) => {
            if let Some(zero) = zeros.iter().find(|zero| **zero as i16 != bias) {
                let off_by_one = zeros.iter().all(|zero| *zero as i16 == bias + less as i16 * 2 - 1);
                let hint =
                    if off_by_one { "; all differ by one: the checkpoint is of the other GPTQ version" } else { "" };
                return Err(Error::invalid(format!(
                    "{}: part `qzeros` holds the zero {zero}; accepted in a symmetric matrix is {bias}{hint}",
                    format.container.name
                )));
            }
            vec![]
        }
        _ => transpose(&zeros, groups, n).into_iter().map(|zero| zero as u32).collect(),
    };
    let scales = transpose(&parts.raw("scales", format.scale.dtype, &[&[groups, n]])?, groups, n);
    let order = match parts.find("g_idx") {
        Some(_) => Some(parts.words("g_idx", &[k])?).filter(|order| *order != trivial_order(format, k)),
        None => None,
    };
    let q = matrix(format, n, k, codes, scales, zeros, order);
    q.check()?;
    Ok(q)
}

/// A matrix with one-level scales.
pub(super) fn matrix(
    format: &Format,
    n: usize,
    k: usize,
    codes: Vec<u8>,
    scales: Vec<u32>,
    zeros: Vec<u32>,
    order: Option<Vec<u32>>,
) -> Quantized {
    Quantized {
        format: *format,
        n,
        k,
        codes,
        scales,
        outer: vec![],
        zeros,
        zeros_outer: vec![],
        scale_offset: 0.0,
        order,
    }
}
