//! GGUF block types: a row is a sequence of blocks, each with its own scales inside.
//!
//! Reads and makes one part, `blocks`, u8 `[n, k / weights * bytes]`, as ggml lays it (`ggml-common.h` @d99724f2).
//! One file per type: its [`Block`] says the layout and how ggml's reference quantizer fills it; what is common, the
//! walk over rows and blocks, is here. Always holds: a block's fields come back as they were written.

mod iq4_nl;
mod mxfp4;
mod offset_blocks;
mod q2_0;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod search;
mod simple;
mod tq1_0;
mod tq2_0;

use super::named::Named;
use super::part::Parts;
use super::{Container, Format, Granularity, Outer, OuterRule, Part, PartType, Quantized, Scale, Span, Zero};
use crate::dtype::DType;
use crate::error::{Error, Result};
use half::f16;

pub(super) use iq4_nl::Iq4Nl;
pub(super) use mxfp4::Mxfp4;
pub(super) use q2_0::Q2_0;
pub(super) use q2_k::Q2K;
pub(super) use q3_k::Q3K;
pub(super) use q4_0::Q4_0;
pub(super) use q4_1::Q4_1;
pub(super) use q4_k::Q4K;
pub(super) use q5_0::Q5_0;
pub(super) use q5_1::Q5_1;
pub(super) use q5_k::Q5K;
pub(super) use q6_k::Q6K;
pub(super) use q8_0::Q8_0;
pub(super) use tq1_0::Tq1_0;
pub(super) use tq2_0::Tq2_0;

/// A block type.
pub(super) trait Block {
    /// Its name: `q4_0`.
    const NAME: &'static str;
    /// One line for lists.
    const SUMMARY: &'static str;
    /// Weights of a block.
    const WEIGHTS: usize;
    /// Bytes of a block.
    const BYTES: usize;
    /// The format that it holds; its container is `container::<Self>()`.
    const FORMAT: Format;
    /// Bits of an inner scale as the block holds it; -32 to 31 where it is 6 bits of an `I8`.
    const SCALE_BITS: u32;

    /// Writes a block.
    fn write(fields: &Fields, bytes: &mut [u8]);
    /// Reads a block.
    fn read(bytes: &[u8], fields: &mut Fields);
    /// Fills the fields as ggml's reference quantizer does.
    fn quantize(x: &Weights<'_>, fields: &mut Fields);
}

/// What a block holds, apart from its layout.
pub(super) struct Fields {
    /// Codes, in the order of the weights.
    pub codes: [u8; 256],
    /// Raw bits of the scales: the f16 of the block, or the inner scales.
    pub scales: [u32; 16],
    /// Raw bits of the scales' second level.
    pub outer: u32,
    /// Raw bits of the offsets, like `scales`.
    pub offsets: [u32; 16],
    /// Raw bits of the offsets' second level.
    pub offsets_outer: u32,
}

/// What a quantizer of one block reads.
pub(super) struct Weights<'a> {
    /// The weights of the block.
    pub x: &'a [f32],
    /// How much each matters, where that is known.
    pub importance: Option<&'a [f32]>,
    /// Mean of the squares of the whole row.
    pub row_variance: f32,
}

impl Fields {
    fn new() -> Fields {
        Fields { codes: [0; 256], scales: [0; 16], outer: 0, offsets: [0; 16], offsets_outer: 0 }
    }
}

/// The container of a block type.
pub(super) const fn container<T: Block>(name: &'static str) -> Container {
    Container { name, pack: pack::<T>, unpack: unpack::<T>, check: check::<T> }
}

/// The named format of a block type.
pub(super) const fn named<T: Block>() -> Named {
    Named { name: T::NAME, format: T::FORMAT, summary: T::SUMMARY, encode: Some(encode::<T>) }
}

/// The f16 scale per block that the simple types have.
const HALF: Scale = Scale::of(DType::F16);

/// Inner scales of K-quants: f16 per 256 weights.
const fn inner(dtype: DType) -> Scale {
    let outer = Outer { dtype: DType::F16, span: Span::Weights(256), rule: OuterRule::Multiply };
    Scale { dtype, outer: Some(outer) }
}

/// Scales of one block.
fn granules<T: Block>() -> usize {
    match T::FORMAT.granularity {
        Granularity::Group(g) => T::WEIGHTS / g as usize,
        Granularity::Tensor | Granularity::Channel | Granularity::Block { .. } => 1,
    }
}

fn check<T: Block>(format: &Format, n: usize, k: usize) -> Vec<String> {
    let mut faults = format.shape_faults(n, k);
    if *format != T::FORMAT {
        faults.push(format!("GGUF {} holds one format; found {:?} beside its container", T::NAME, format.code));
    }
    if !k.is_multiple_of(T::WEIGHTS) {
        faults.push(format!("GGUF {}: K is {k}; accepted are multiples of {}", T::NAME, T::WEIGHTS));
    }
    faults
}

fn checked<T: Block>(format: &Format, n: usize, k: usize) -> Result<()> {
    let faults = check::<T>(format, n, k);
    if faults.is_empty() { Ok(()) } else { Err(Error::Invalid(faults)) }
}

fn pack<T: Block>(q: &Quantized) -> Result<Vec<Part>> {
    checked::<T>(&q.format, q.n, q.k)?;
    q.check()?;
    if q.order.is_some() {
        return Err(Error::invalid(format!("GGUF {} has no group indices", T::NAME)));
    }
    let wide = |raw: &[u32], signed: bool| {
        raw.iter().copied().find(|raw| {
            let value = if signed { *raw as u8 as i8 as i32 + (1 << (T::SCALE_BITS - 1)) } else { *raw as i32 };
            !(0..1i64 << T::SCALE_BITS).contains(&(value as i64))
        })
    };
    let signed = q.format.scale.dtype == DType::I8;
    if let Some(raw) = wide(&q.scales, signed).or_else(|| wide(&q.zeros, false)) {
        return Err(Error::invalid(format!(
            "GGUF {}: the inner scale {raw:#x} is wider than {} bits",
            T::NAME,
            T::SCALE_BITS
        )));
    }
    let (per_block, blocks) = (granules::<T>(), q.n * q.k / T::WEIGHTS);
    let mut bytes = vec![0u8; blocks * T::BYTES];
    let mut fields = Fields::new();
    for (block, out) in bytes.chunks_exact_mut(T::BYTES).enumerate() {
        fields.codes[..T::WEIGHTS].copy_from_slice(&q.codes[block * T::WEIGHTS..][..T::WEIGHTS]);
        fields.scales[..per_block].copy_from_slice(&q.scales[block * per_block..][..per_block]);
        fields.outer = q.outer.get(block).copied().unwrap_or(0);
        if !q.zeros.is_empty() {
            fields.offsets[..per_block].copy_from_slice(&q.zeros[block * per_block..][..per_block]);
        }
        fields.offsets_outer = q.zeros_outer.get(block).copied().unwrap_or(0);
        T::write(&fields, out);
    }
    Ok(vec![Part::of_bytes("blocks", PartType::U8, &[q.n, q.k / T::WEIGHTS * T::BYTES], bytes)])
}

fn unpack<T: Block>(format: &Format, n: usize, k: usize, parts: &[Part]) -> Result<Quantized> {
    checked::<T>(format, n, k)?;
    let parts = Parts::new(format.container.name, parts);
    let bytes = parts.bytes("blocks", PartType::U8, &[&[n, k / T::WEIGHTS * T::BYTES]])?;
    let mut fields = Fields::new();
    let mut q = empty(format, n, k);
    for block in bytes.chunks_exact(T::BYTES) {
        T::read(block, &mut fields);
        append::<T>(&mut q, &fields);
    }
    q.check()?;
    Ok(q)
}

fn encode<T: Block>(format: &Format, w: &[f32], n: usize, k: usize, importance: Option<&[f32]>) -> Result<Quantized> {
    checked::<T>(format, n, k)?;
    let mut q = empty(format, n, k);
    for (row, x) in w.chunks_exact(k).enumerate() {
        let row_variance = x.iter().fold(0.0, |sum, x| sum + x * x) / k as f32;
        for (block, x) in x.chunks_exact(T::WEIGHTS).enumerate() {
            let importance = importance.map(|importance| &importance[block * T::WEIGHTS..][..T::WEIGHTS]);
            let mut fields = Fields::new();
            T::quantize(&Weights { x, importance, row_variance }, &mut fields);
            let infinite = |how: Scale, inner: u32, outer: u32| {
                let (dtype, raw) = how.outer.map_or((how.dtype, inner), |level| (level.dtype, outer));
                dtype == DType::F16 && !f16::from_bits(raw as u16).is_finite()
            };
            let offset = match format.zero {
                Zero::Offset { scale, .. } => infinite(scale, fields.offsets[0], fields.offsets_outer),
                Zero::None | Zero::Bias(_) | Zero::Int(_) | Zero::Float(_) => false,
            };
            if offset || infinite(format.scale, fields.scales[0], fields.outer) {
                let column = block * T::WEIGHTS;
                return Err(Error::invalid(format!(
                    "GGUF {}: the scale of the weights at row {row}, column {column} exceeds f16",
                    T::NAME
                )));
            }
            append::<T>(&mut q, &fields);
        }
    }
    Ok(q)
}

fn empty(format: &Format, n: usize, k: usize) -> Quantized {
    Quantized {
        format: *format,
        n,
        k,
        codes: Vec::with_capacity(n * k),
        scales: vec![],
        outer: vec![],
        zeros: vec![],
        zeros_outer: vec![],
        scale_offset: 0.0,
        order: None,
    }
}

fn append<T: Block>(q: &mut Quantized, fields: &Fields) {
    let per_block = granules::<T>();
    q.codes.extend_from_slice(&fields.codes[..T::WEIGHTS]);
    q.scales.extend_from_slice(&fields.scales[..per_block]);
    if T::FORMAT.scale.outer.is_some() {
        q.outer.push(fields.outer);
    }
    if let Zero::Offset { scale, .. } = T::FORMAT.zero {
        q.zeros.extend_from_slice(&fields.offsets[..per_block]);
        if scale.outer.is_some() {
            q.zeros_outer.push(fields.offsets_outer);
        }
    }
}

/// Raw bits of a float as f16, rounded to nearest even.
fn half_bits(x: f32) -> u32 {
    f16::from_f32(x).to_bits() as u32
}

/// The number that raw f16 bits stand for.
fn half_value(raw: u32) -> f32 {
    f16::from_bits(raw as u16).to_f32()
}

/// Two little-endian bytes as raw bits.
fn get_half(bytes: &[u8]) -> u32 {
    u16::from_le_bytes([bytes[0], bytes[1]]) as u32
}

/// Raw f16 bits as two little-endian bytes.
fn put_half(bytes: &mut [u8], raw: u32) {
    bytes[..2].copy_from_slice(&(raw as u16).to_le_bytes());
}

/// Reads 2-bit fields: each run of 32 bytes holds 128 weights, byte `j` those at `j`, `j + 32`, `j + 64`, `j + 96`.
fn get_crumbs(bytes: &[u8], codes: &mut [u8]) {
    for (i, code) in codes.iter_mut().enumerate() {
        *code = bytes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
    }
}

/// Writes the low 2 bits of each code, laid as [`get_crumbs`] reads them.
fn put_crumbs(bytes: &mut [u8], codes: impl Iterator<Item = u8>) {
    bytes.fill(0);
    for (i, code) in codes.enumerate() {
        bytes[i / 128 * 32 + i % 32] |= (code & 3) << (i % 128 / 32 * 2);
    }
}
