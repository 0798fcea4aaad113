//! The bytes of a file: mapped from disk, or owned.
//!
//! Reads a path, makes bytes that stay put for as long as they are held. This is the one place of the crate with
//! `unsafe`: a mapped file is only as steady as the file system keeps it.

use bitsmith_compiler::{Error, Result};
use memmap2::Mmap;
use std::fs::File;
use std::ops::Deref;
use std::path::Path;

/// Bytes of a model file.
#[derive(Debug)]
pub(crate) enum Bytes {
    /// Mapped from disk; pages come in when they are read.
    Mapped(Mmap),
    /// In memory, for parsed buffers and empty files (an empty range cannot be mapped).
    Owned(Vec<u8>),
}

impl Bytes {
    /// Maps a regular file read-only.
    ///
    /// Nobody may shorten the file while it is held: a read beyond the new end ends the process with a bus error,
    /// which no program can turn into an `Error`. Replacing the file by renaming another over it is harmless.
    pub fn map(path: &Path) -> Result<Bytes> {
        let fault = |error: std::io::Error| Error::invalid(format!("{}: cannot be read: {error}", path.display()));
        let kind = std::fs::metadata(path).map_err(fault)?;
        if !kind.is_file() {
            return Err(Error::invalid(format!("{}: is not a regular file", path.display())));
        }
        let file = File::open(path).map_err(fault)?;
        if file.metadata().map_err(fault)?.len() == 0 {
            return Ok(Bytes::Owned(Vec::new()));
        }
        // SAFETY: the mapping is private to this value and read-only. The contract that the bytes do not change
        // underneath rests on other processes leaving the file alone, as for every mapped model file; all offsets
        // were checked against the length at mapping time, and every value is read as plain bytes, so a concurrent
        // overwrite can give wrong numbers, and a concurrent truncation a bus error, but no wild access.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }.map_err(fault)?;
        Ok(Bytes::Mapped(map))
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }
}
