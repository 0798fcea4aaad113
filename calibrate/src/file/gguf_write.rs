//! Writes GGUF version 3.
//!
//! Reads metadata and tensors in the order in which they are given; makes a file that [`Gguf`](super::Gguf) reads
//! back. Always holds: the same calls give the same bytes, and a file appears whole or not at all.

use super::gguf::{MAX_DIMS, alignment};
use super::gguf_value::{Value, write_string};
use super::{GgufType, clip};
use bitsmith_compiler::{Error, Result};
use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Collects metadata and tensors, then writes them.
#[derive(Debug, Default)]
pub struct GgufWriter<'a> {
    metadata: Vec<(String, Value)>,
    tensors: Vec<Tensor<'a>>,
    /// Where data wait, if they do not wait in memory, and how many bytes wait there.
    spool: Option<(File, u64)>,
}

#[derive(Debug)]
struct Tensor<'a> {
    name: String,
    dtype: GgufType,
    shape: Vec<usize>,
    data: Data<'a>,
}

#[derive(Debug)]
enum Data<'a> {
    Memory(Cow<'a, [u8]>),
    /// Place and length in the spool.
    Spool(u64, usize),
}

impl Data<'_> {
    fn len(&self) -> usize {
        match self {
            Data::Memory(bytes) => bytes.len(),
            Data::Spool(_, length) => *length,
        }
    }
}

impl<'a> GgufWriter<'a> {
    /// An empty file.
    pub fn new() -> GgufWriter<'a> {
        GgufWriter::default()
    }

    /// An empty file whose tensors wait in a temporary one until they are written, so that memory does not grow with them.
    pub fn spooled() -> Result<GgufWriter<'a>> {
        let file = tempfile::tempfile().map_err(|error| Error::invalid(format!("temporary file: {error}")))?;
        Ok(GgufWriter { spool: Some((file, 0)), ..GgufWriter::default() })
    }

    /// Adds a metadata key. `general.alignment` (a u32) also sets the alignment of the data.
    pub fn key(&mut self, key: &str, value: Value) -> Result<&mut GgufWriter<'a>> {
        if self.metadata.iter().any(|(name, _)| name == key) {
            return Err(Error::invalid(format!("key `{}` was added twice", clip(key))));
        }
        if let Value::Array(array) = &value
            && !array.is_readable()
        {
            return Err(Error::invalid(format!("key `{}`: arrays are nested too deep", clip(key))));
        }
        let entry = (key.to_owned(), value);
        alignment(std::slice::from_ref(&entry)).map_err(Error::invalid)?;
        self.metadata.push(entry);
        Ok(self)
    }

    /// Adds a tensor of a shape in numpy order, `[N, K]`, whose data are already encoded.
    pub fn tensor(
        &mut self,
        name: &str,
        dtype: GgufType,
        shape: &[usize],
        data: impl Into<Cow<'a, [u8]>>,
    ) -> Result<&mut GgufWriter<'a>> {
        let data = data.into();
        let fault = |message: String| Error::invalid(format!("tensor `{}`: {message}", clip(name)));
        if self.tensors.iter().any(|tensor| tensor.name == name) {
            return Err(fault("was added twice".into()));
        }
        if shape.len() > MAX_DIMS {
            return Err(fault(format!("has {} dimensions; accepted: at most {MAX_DIMS}", shape.len())));
        }
        let bytes = dtype.tensor_bytes(shape).map_err(fault)?;
        if bytes != data.len() {
            return Err(fault(format!("shape {shape:?} of {dtype} takes {bytes} bytes, {} were given", data.len())));
        }
        let data = match &mut self.spool {
            None => Data::Memory(data),
            Some((file, end)) => {
                file.write_all(&data).map_err(|error| fault(format!("temporary file: {error}")))?;
                let at = *end;
                *end += data.len() as u64;
                Data::Spool(at, data.len())
            }
        };
        self.tensors.push(Tensor { name: name.to_owned(), dtype, shape: shape.to_vec(), data });
        Ok(self)
    }

    /// The whole file as bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        self.write_to(&mut out).map_err(|error| Error::invalid(format!("cannot write: {error}")))?;
        Ok(out)
    }

    /// Writes the file: first beside its place, then renamed over it, so that no reader sees half a file and a
    /// mapping of the old file stays whole.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let fault = |error: std::io::Error| Error::invalid(format!("{}: cannot be written: {error}", path.display()));
        let Some(name) = path.file_name() else {
            return Err(Error::invalid(format!("{}: is not a file name", path.display())));
        };
        let mut temporary = name.to_owned();
        temporary.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(temporary);
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary).map_err(fault)?;
        let result = self.write_file(file).and_then(|()| std::fs::rename(&temporary, path));
        if result.is_err() {
            // The first error is the one to report; a temporary file that also cannot be removed adds nothing.
            let _ = std::fs::remove_file(&temporary);
        }
        result.map_err(fault)
    }

    fn write_file(&self, file: File) -> std::io::Result<()> {
        let mut out = BufWriter::new(file);
        self.write_to(&mut out)?;
        out.into_inner().map_err(|error| error.into_error())?.sync_all()
    }

    fn write_to(&self, out: &mut impl Write) -> std::io::Result<()> {
        // Every key was checked when it was added.
        let alignment = alignment(&self.metadata).map_err(std::io::Error::other)?;
        let mut head = Vec::from(*b"GGUF");
        head.extend(3u32.to_le_bytes());
        head.extend((self.tensors.len() as u64).to_le_bytes());
        head.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            write_string(&mut head, key);
            head.extend(value.type_id().to_le_bytes());
            value.write(&mut head);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            write_string(&mut head, &tensor.name);
            head.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|&dim| head.extend((dim as u64).to_le_bytes()));
            head.extend(tensor.dtype.id().to_le_bytes());
            head.extend((offset as u64).to_le_bytes());
            offset += tensor.data.len().next_multiple_of(alignment);
        }
        out.write_all(&head)?;
        let mut at = head.len();
        for tensor in &self.tensors {
            pad(out, &mut at, alignment)?;
            match (&tensor.data, &self.spool) {
                (Data::Memory(bytes), _) => out.write_all(bytes)?,
                (Data::Spool(at, length), Some((file, _))) => {
                    let mut file = file;
                    file.seek(SeekFrom::Start(*at))?;
                    if std::io::copy(&mut file.take(*length as u64), out)? != *length as u64 {
                        return Err(std::io::ErrorKind::UnexpectedEof.into());
                    }
                }
                (Data::Spool(..), None) => return Err(std::io::Error::other("a spooled tensor without its spool")),
            }
            at += tensor.data.len();
        }
        pad(out, &mut at, alignment)
    }
}

/// Zero bytes up to the next multiple of `alignment`.
fn pad(out: &mut impl Write, at: &mut usize, alignment: usize) -> std::io::Result<()> {
    let end = at.next_multiple_of(alignment);
    std::io::copy(&mut Read::take(std::io::repeat(0), (end - *at) as u64), out)?;
    *at = end;
    Ok(())
}
