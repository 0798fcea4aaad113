//! GGUF, versions 2 and 3, little-endian.
//!
//! ```text
//! "GGUF"  u32 version  u64 tensors  u64 keys
//! keys     text key, u32 value type, value
//! tensors  text name, u32 dimensions, u64 dimension[] (K first), u32 type, u64 offset from the data start
//! padding up to general.alignment (32 unless said otherwise), then the data
//! ```
//!
//! Reads a file or a buffer; makes metadata and a tensor list. Always holds: every listed tensor lies inside the file,
//! aligned, apart from every other one, with a known type whose block divides K; names and keys are unique.

use super::cursor::Cursor;
use super::gguf_value::Value;
use super::map::Bytes;
use super::{GgufType, clip};
use bitsmith_compiler::{Error, Result};
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// The alignment where `general.alignment` is absent.
pub(super) const DEFAULT_ALIGNMENT: usize = 32;
/// ggml tensors have at most four dimensions.
pub(super) const MAX_DIMS: usize = 4;
/// The key that sets the alignment.
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";

/// An open GGUF file.
#[derive(Debug)]
pub struct Gguf {
    name: String,
    version: u32,
    bytes: Bytes,
    alignment: usize,
    metadata: Vec<(String, Value)>,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
}

/// Where one tensor lies and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name.
    pub name: String,
    /// How its weights are stored.
    pub dtype: GgufType,
    /// The shape in numpy order, `[N, K]`: the last dimension is contiguous. The file stores it the other way round.
    pub shape: Vec<usize>,
    /// First byte, from the start of the file.
    pub offset: usize,
    /// How many bytes.
    pub bytes: usize,
}

impl Gguf {
    /// Maps and parses a file.
    pub fn open(path: impl AsRef<Path>) -> Result<Gguf> {
        let path = path.as_ref();
        Gguf::read(Bytes::map(path)?, path.display().to_string())
    }

    /// Parses a buffer; errors call it `name`.
    pub fn parse(bytes: impl Into<Vec<u8>>, name: &str) -> Result<Gguf> {
        Gguf::read(Bytes::Owned(bytes.into()), name.to_owned())
    }

    fn read(bytes: Bytes, name: String) -> Result<Gguf> {
        let mut cursor = Cursor::new(&bytes, &name);
        let header = read_header(&mut cursor)?;
        let metadata = read_metadata(&mut cursor, header.keys)?;
        let alignment = alignment(&metadata).map_err(|fault| cursor.fault(fault))?;
        let tensors = read_tensors(&mut cursor, header.tensors, alignment, bytes.len())?;
        check_apart(&tensors).map_err(|fault| cursor.fault(fault))?;
        let by_name = tensors.iter().enumerate().map(|(index, tensor)| (tensor.name.clone(), index)).collect();
        Ok(Gguf { version: header.version, alignment, metadata, tensors, by_name, name, bytes })
    }

    /// What errors call the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The version of the container, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The alignment of the data.
    pub fn alignment(&self) -> usize {
        self.alignment
    }

    /// The metadata, in file order.
    pub fn metadata(&self) -> &[(String, Value)] {
        &self.metadata
    }

    /// The value of a metadata key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// The tensors, in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of a name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&index| &self.tensors[index])
    }

    /// The bytes of a tensor.
    ///
    /// # Panics
    /// Where `tensor` was not taken from this file: a mistake in the program, which no file can cause.
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        &self.bytes[tensor.offset..tensor.offset + tensor.bytes]
    }
}

struct Header {
    version: u32,
    tensors: u64,
    keys: u64,
}

fn read_header(cursor: &mut Cursor<'_>) -> Result<Header> {
    let magic: [u8; 4] = cursor.array(&"the magic bytes")?;
    if &magic != b"GGUF" {
        return Err(cursor.fault(format!("starts with {}, not with \"GGUF\"", magic.escape_ascii())));
    }
    let version = cursor.u32(&"the version")?;
    let refuse = |message: String| Error::Unsupported(cursor.fault(message).to_string());
    match version {
        2 | 3 => {}
        1 => return Err(refuse("is GGUF version 1, whose counts have 32 bits; accepted versions: 2, 3".into())),
        _ if matches!(version.swap_bytes(), 1..=3) => {
            let version = version.swap_bytes();
            return Err(refuse(format!("is a big-endian GGUF of version {version}; accepted: little-endian, 2 or 3")));
        }
        _ => return Err(refuse(format!("is GGUF version {version}; accepted versions: 2, 3"))),
    }
    Ok(Header { version, tensors: cursor.u64(&"the tensor count")?, keys: cursor.u64(&"the key count")? })
}

/// Refuses a count that the rest of the file cannot hold, since each item takes at least `smallest` bytes.
fn plausible(cursor: &Cursor<'_>, count: u64, smallest: usize, what: &str) -> Result<()> {
    let room = (cursor.left() / smallest) as u64;
    if count > room {
        return Err(cursor.fault(format!("the header says {count} {what}, the file has room for at most {room}")));
    }
    Ok(())
}

fn read_metadata(cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<(String, Value)>> {
    // A key takes at least its length, a type and a byte.
    plausible(cursor, count, 13, "metadata keys")?;
    let mut metadata = Vec::new();
    let mut seen = HashSet::new();
    for index in 0..count {
        let key = cursor.string(&format_args!("metadata key {index}"))?;
        let what = format!("key `{}`", clip(&key));
        let id = cursor.u32(&what)?;
        let value = Value::read(cursor, id, &what)?;
        if !seen.insert(key.clone()) {
            return Err(cursor.fault(format!("{what} occurs twice; keys must be unique")));
        }
        metadata.push((key, value));
    }
    Ok(metadata)
}

/// The alignment that the metadata asks for.
pub(super) fn alignment(metadata: &[(String, Value)]) -> Result<usize, String> {
    match metadata.iter().find(|(key, _)| key == ALIGNMENT_KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        // A gigabyte is far beyond any page, and keeps every sum below in range.
        Some((_, Value::U32(value))) if value.is_power_of_two() && *value <= 1 << 30 => Ok(*value as usize),
        Some((_, Value::U32(value))) => {
            Err(format!("key `{ALIGNMENT_KEY}` is {value}; accepted: a power of two up to 2^30"))
        }
        Some((_, value)) => Err(format!("key `{ALIGNMENT_KEY}` is a {}; accepted: a u32", value.type_name())),
    }
}

fn read_tensors(cursor: &mut Cursor<'_>, count: u64, alignment: usize, length: usize) -> Result<Vec<TensorInfo>> {
    // A tensor takes at least a name length, a dimension count, a type and an offset.
    plausible(cursor, count, 24, "tensors")?;
    let mut tensors = Vec::new();
    let mut seen = HashSet::new();
    for index in 0..count {
        let (tensor, relative) = read_tensor(cursor, index)?;
        if !seen.insert(tensor.name.clone()) {
            return Err(cursor.fault(format!("tensor `{}` occurs twice; names must be unique", clip(&tensor.name))));
        }
        tensors.push((tensor, relative));
    }
    // The position is at most the file length, which is at most `isize::MAX`, so this does not overflow.
    let start = cursor.at().next_multiple_of(alignment);
    tensors
        .into_iter()
        .map(|(mut tensor, relative)| {
            let name = clip(&tensor.name);
            if !relative.is_multiple_of(alignment as u64) {
                return Err(cursor
                    .fault(format!("tensor `{name}`: offset {relative} is not a multiple of the alignment {alignment}")));
            }
            let range = usize::try_from(relative).ok().and_then(|relative| {
                let offset = start.checked_add(relative)?;
                offset.checked_add(tensor.bytes).filter(|&end| end <= length)?;
                Some(offset)
            });
            tensor.offset = range.ok_or_else(|| {
                let bytes = tensor.bytes;
                cursor.fault(format!(
                    "tensor `{name}`: {bytes} bytes at data offset {relative} (data starts at {start}) lie outside the file of {length} bytes"
                ))
            })?;
            Ok(tensor)
        })
        .collect()
}

/// One tensor, whose offset is still to be set, and its offset from the data start.
fn read_tensor(cursor: &mut Cursor<'_>, index: u64) -> Result<(TensorInfo, u64)> {
    let name = cursor.string(&format_args!("the name of tensor {index}"))?;
    let what = format!("tensor `{}`", clip(&name));
    let dims = cursor.u32(&what)? as usize;
    if dims > MAX_DIMS {
        return Err(cursor.fault(format!("{what}: has {dims} dimensions; accepted: at most {MAX_DIMS}")));
    }
    let mut shape = Vec::with_capacity(dims);
    for _ in 0..dims {
        let dim = cursor.u64(&what)?;
        let too_large = |_| cursor.fault(format!("{what}: dimension {dim} overflows the address space"));
        shape.push(usize::try_from(dim).map_err(too_large)?);
    }
    shape.reverse();
    let id = cursor.u32(&what)?;
    let dtype = GgufType::from_id(id).ok_or_else(|| {
        let message = format!("{what}: type {id} is unknown; accepted: {}", GgufType::accepted());
        Error::Unsupported(cursor.fault(message).to_string())
    })?;
    let relative = cursor.u64(&what)?;
    let bytes = dtype.tensor_bytes(&shape).map_err(|fault| cursor.fault(format!("{what}: {fault}")))?;
    Ok((TensorInfo { name, dtype, shape, offset: 0, bytes }, relative))
}

/// Refuses tensors that share bytes.
fn check_apart(tensors: &[TensorInfo]) -> Result<(), String> {
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by_key(|tensor| tensor.offset);
    match order.windows(2).find(|pair| pair[0].offset + pair[0].bytes > pair[1].offset) {
        None => Ok(()),
        Some(pair) => Err(format!(
            "tensors `{}` (bytes {}..{}) and `{}` (from byte {}) overlap",
            clip(&pair[0].name),
            pair[0].offset,
            pair[0].offset + pair[0].bytes,
            clip(&pair[1].name),
            pair[1].offset
        )),
    }
}

#[cfg(test)]
#[path = "gguf_tests.rs"]
mod tests;
