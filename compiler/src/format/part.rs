//! Parts of a container: made from raw bits, and read back with every size, type and shape checked first.
//!
//! Reads what a file claims, makes slices that are as long as they say. Always holds: a hostile part gives
//! `Error::Invalid` that names the part, what was found and what is accepted; nothing is allocated before the check.

use super::{Part, PartType};
use crate::dtype::DType;
use crate::error::{Error, Result};

/// The parts of one matrix, as a container reads them.
pub(super) struct Parts<'a> {
    container: &'static str,
    parts: &'a [Part],
}

impl<'a> Parts<'a> {
    /// Reads `parts` as those of the named container.
    pub(super) fn new(container: &'static str, parts: &'a [Part]) -> Parts<'a> {
        Parts { container, parts }
    }

    /// A part that may be absent.
    pub(super) fn find(&self, name: &str) -> Option<&'a Part> {
        self.parts.iter().find(|part| part.name == name)
    }

    /// A part that must be there.
    pub(super) fn get(&self, name: &str) -> Result<&'a Part> {
        self.find(name).ok_or_else(|| {
            let found: Vec<_> = self.parts.iter().map(|part| part.name).collect();
            Error::invalid(format!("{}: part `{name}` is missing; found {found:?}", self.container))
        })
    }

    /// The bytes of a part of this type and one of these shapes.
    pub(super) fn bytes(&self, name: &str, dtype: PartType, shapes: &[&[usize]]) -> Result<&'a [u8]> {
        let part = self.get(name)?;
        self.check(part, dtype, shapes)?;
        Ok(&part.bytes)
    }

    /// The little-endian words of an `I32` part.
    pub(super) fn words(&self, name: &str, shape: &[usize]) -> Result<Vec<u32>> {
        let bytes = self.bytes(name, PartType::I32, &[shape])?;
        Ok(raw_of(DType::I32, bytes))
    }

    /// The raw bits of a part that holds one number per element.
    pub(super) fn raw(&self, name: &str, dtype: DType, shapes: &[&[usize]]) -> Result<Vec<u32>> {
        Ok(raw_of(dtype, self.bytes(name, PartType::of(dtype), shapes)?))
    }

    fn check(&self, part: &Part, dtype: PartType, shapes: &[&[usize]]) -> Result<()> {
        let place = format!("{}: part `{}`", self.container, part.name);
        let mut faults = Vec::new();
        if part.dtype != dtype {
            faults.push(format!("{place} has type {:?}; accepted is {dtype:?}", part.dtype));
        }
        if !shapes.iter().any(|shape| *shape == part.shape) {
            faults.push(format!("{place} has shape {:?}; accepted is {}", part.shape, list(shapes)));
        }
        let size = part.shape.iter().try_fold(dtype.bytes(), |size, extent| size.checked_mul(*extent));
        if size != Some(part.bytes.len()) {
            faults.push(format!(
                "{place} has {} bytes, but shape {:?} of {dtype:?} takes {}",
                part.bytes.len(),
                part.shape,
                size.map_or("more than memory".to_string(), |size| size.to_string())
            ));
        }
        if faults.is_empty() { Ok(()) } else { Err(Error::Invalid(faults)) }
    }
}

fn list(shapes: &[&[usize]]) -> String {
    shapes.iter().map(|shape| format!("{shape:?}")).collect::<Vec<_>>().join(" or ")
}

impl Part {
    /// A part of bytes.
    pub(super) fn of_bytes(name: &'static str, dtype: PartType, shape: &[usize], bytes: Vec<u8>) -> Part {
        Part { name, dtype, shape: shape.to_vec(), bytes }
    }

    /// A part of raw bits, one number per element.
    pub(super) fn of_raw(name: &'static str, dtype: DType, shape: &[usize], raw: &[u32]) -> Part {
        let width = PartType::of(dtype).bytes();
        let bytes = raw.iter().flat_map(|bits| bits.to_le_bytes().into_iter().take(width)).collect();
        Part::of_bytes(name, PartType::of(dtype), shape, bytes)
    }

    /// A part of 32-bit words.
    pub(super) fn of_words(name: &'static str, shape: &[usize], words: &[u32]) -> Part {
        Part::of_raw(name, DType::I32, shape, words)
    }
}

/// Raw bits of numbers that lie one after another.
fn raw_of(dtype: DType, bytes: &[u8]) -> Vec<u32> {
    bytes
        .chunks_exact(PartType::of(dtype).bytes())
        .map(|chunk| chunk.iter().rev().fold(0u32, |bits, byte| bits << 8 | *byte as u32))
        .collect()
}

impl PartType {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            PartType::I64 => 8,
            PartType::I32 | PartType::F32 => 4,
            PartType::F16 | PartType::Bf16 => 2,
            PartType::U8
            | PartType::I8
            | PartType::E4m3fn
            | PartType::E4m3fnuz
            | PartType::E5m2
            | PartType::E5m2fnuz => 1,
        }
    }

    /// How files declare numbers of a scalar type; types that files lack, such as `E8m0`, are bytes.
    pub const fn of(dtype: DType) -> PartType {
        match dtype {
            DType::F32 => PartType::F32,
            DType::F16 => PartType::F16,
            DType::Bf16 => PartType::Bf16,
            DType::I32 => PartType::I32,
            DType::I8 => PartType::I8,
            DType::E4m3fn => PartType::E4m3fn,
            DType::E4m3fnuz => PartType::E4m3fnuz,
            DType::E5m2 => PartType::E5m2,
            DType::E5m2fnuz => PartType::E5m2fnuz,
            DType::E8m0
            | DType::E2m1
            | DType::I2
            | DType::I3
            | DType::I4
            | DType::U2
            | DType::U3
            | DType::U4
            | DType::U8
            | DType::E2m3
            | DType::E3m2
            | DType::E4m3
            | DType::E3m4
            | DType::E4m3b11fnuz => PartType::U8,
        }
    }
}
