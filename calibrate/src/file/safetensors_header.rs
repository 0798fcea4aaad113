//! A check of a safetensors header that goes before the crate's own.
//!
//! Reads the JSON header; makes nothing but a verdict. It is here because the crate (0.8.0) adds up tensor ends
//! without an overflow check, so that eight tensors of 2^61 bytes end it in a panic, and because a JSON map keeps the
//! last of two equal names silently. Always holds after it: every offset lies inside the file and names are unique.

use super::clip;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use std::collections::HashSet;
use std::fmt;

/// The crate's own limit on the header.
const MAX_HEADER: usize = 100_000_000;

/// Refuses a header that is truncated, not JSON, names a tensor twice or points outside the file.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(format!("has {} bytes; a safetensors file starts with 8 bytes of header length", bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    let Some(header) = usize::try_from(length).ok().and_then(|length| rest.get(..length)) else {
        return Err(format!("the header says {length} bytes, the file has {} after the length", rest.len()));
    };
    if header.len() > MAX_HEADER {
        return Err(format!("the header says {length} bytes; accepted: at most {MAX_HEADER}"));
    }
    let data = rest.len() - header.len();
    let text = std::str::from_utf8(header).map_err(|error| format!("the header is not UTF-8: {error}"))?;
    let header: Header = serde_json::from_str(text).map_err(|error| format!("the header is not valid: {error}"))?;
    for (name, [start, end]) in header.0 {
        if start > end || end > data as u64 {
            return Err(format!("tensor `{}`: bytes {start}..{end} lie outside the {data} of the data", clip(&name)));
        }
    }
    Ok(())
}

/// Names and offsets.
struct Header(Vec<(String, [u64; 2])>);

#[derive(Deserialize)]
struct Entry {
    data_offsets: [u64; 2],
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Header, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensor name to dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut entries = Vec::new();
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
            } else {
                entries.push((name.clone(), map.next_value::<Entry>()?.data_offsets));
            }
            if seen.contains(&name) {
                return Err(serde::de::Error::custom(format_args!("tensor `{}` occurs twice", clip(&name))));
            }
            seen.insert(name);
        }
        Ok(Header(entries))
    }
}
