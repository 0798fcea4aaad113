//! Tensors into safetensors files of a bounded size, with the index that names them.

use bitsmith_compiler::format::{Part, PartType};
use bitsmith_compiler::{Error, Result};
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Bytes of a file, about.
const LIMIT: usize = 2 << 30;

/// Tensors on their way to files; their bytes wait in a file of their own, so that memory holds one tensor.
pub(super) struct Shards {
    folder: PathBuf,
    limit: usize,
    spool: Option<File>,
    pending: Vec<Pending>,
    size: usize,
    written: Vec<Vec<String>>,
    total: u64,
}

/// A tensor whose bytes wait.
struct Pending {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    at: u64,
    bytes: usize,
}

impl Shards {
    /// Into a folder.
    pub fn new(folder: &Path) -> Shards {
        Shards {
            folder: folder.to_owned(),
            limit: LIMIT,
            spool: None,
            pending: Vec::new(),
            size: 0,
            written: Vec::new(),
            total: 0,
        }
    }

    fn fault(&self, error: &dyn std::fmt::Display) -> Error {
        Error::invalid(format!("{}: cannot be written: {error}", self.folder.display()))
    }

    /// Takes a tensor.
    pub fn push(&mut self, name: String, dtype: Dtype, shape: Vec<usize>, bytes: Vec<u8>) -> Result<()> {
        if self.size > 0 && self.size + bytes.len() > self.limit {
            self.flush()?;
        }
        let spool = match &mut self.spool {
            Some(spool) => spool,
            // Beside what is written, where there is room for it or for nothing.
            None => self.spool.insert(
                tempfile::tempfile_in(&self.folder)
                    .map_err(|e| Error::invalid(format!("{}: cannot be written: {e}", self.folder.display())))?,
            ),
        };
        spool.write_all(&bytes).map_err(|error| self.fault(&error))?;
        self.pending.push(Pending { name, dtype, shape, at: self.size as u64, bytes: bytes.len() });
        self.size += bytes.len();
        self.total += bytes.len() as u64;
        Ok(())
    }

    /// Takes a part of a container.
    pub fn part(&mut self, prefix: &str, part: Part) -> Result<()> {
        let dtype = match part.dtype {
            PartType::U8 => Dtype::U8,
            PartType::I8 => Dtype::I8,
            PartType::I32 => Dtype::I32,
            PartType::I64 => Dtype::I64,
            PartType::F16 => Dtype::F16,
            PartType::Bf16 => Dtype::BF16,
            PartType::F32 => Dtype::F32,
            PartType::E4m3fn => Dtype::F8_E4M3,
            PartType::E5m2 => Dtype::F8_E5M2,
            PartType::E4m3fnuz => Dtype::F8_E4M3FNUZ,
            PartType::E5m2fnuz => Dtype::F8_E5M2FNUZ,
        };
        self.push(format!("{prefix}.{}", part.name), dtype, part.shape, part.bytes)
    }

    fn file(&self, index: usize) -> PathBuf {
        self.folder.join(format!("part-{index}"))
    }

    /// One file: the length of a header, the header, the tensors. Those of wide types come first, so that all are aligned.
    fn flush(&mut self) -> Result<()> {
        let path = self.file(self.written.len());
        self.pending.sort_by(|a, b| b.dtype.bitsize().cmp(&a.dtype.bitsize()).then(a.name.cmp(&b.name)));
        let mut header = serde_json::json!({ "__metadata__": { "format": "pt" } });
        let mut end = 0;
        for tensor in &self.pending {
            let offsets = [end, end + tensor.bytes];
            header[&tensor.name] =
                serde_json::json!({ "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets });
            end += tensor.bytes;
        }
        let mut header = header.to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let write = || -> std::io::Result<()> {
            let mut out = BufWriter::new(File::create(&path)?);
            out.write_all(&(header.len() as u64).to_le_bytes())?;
            out.write_all(&header)?;
            for tensor in &self.pending {
                let Some(mut spool) = self.spool.as_ref() else { continue };
                spool.seek(SeekFrom::Start(tensor.at))?;
                if std::io::copy(&mut spool.take(tensor.bytes as u64), &mut out)? != tensor.bytes as u64 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
            }
            out.flush()
        };
        write().map_err(|error| self.fault(&error))?;
        self.written.push(self.pending.drain(..).map(|tensor| tensor.name).collect());
        (self.size, self.spool) = (0, None);
        Ok(())
    }

    /// Writes what is left, names the files, writes the index where there are several. Returns the bytes of all tensors.
    pub fn finish(mut self) -> Result<u64> {
        self.flush()?;
        let count = self.written.len();
        let name = |index: usize| match count {
            1 => "model.safetensors".to_string(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
        };
        let fault = |error: std::io::Error| Error::invalid(format!("{}: {error}", self.folder.display()));
        let mut places = BTreeMap::new();
        for (index, tensors) in self.written.iter().enumerate() {
            std::fs::rename(self.file(index), self.folder.join(name(index))).map_err(fault)?;
            tensors.iter().for_each(|tensor| _ = places.insert(tensor.clone(), name(index)));
        }
        if count > 1 {
            let index = serde_json::json!({ "metadata": { "total_size": self.total }, "weight_map": places });
            std::fs::write(self.folder.join("model.safetensors.index.json"), format!("{index:#}\n")).map_err(fault)?;
        }
        Ok(self.total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::SafeTensorsFile;

    #[test]
    fn several_files_read_back_as_one_model() {
        let folder = tempfile::tempdir().unwrap();
        let mut shards = Shards::new(folder.path());
        shards.limit = 100;
        for i in 0..5u8 {
            shards.push(format!("t{i}"), Dtype::U8, vec![10, 4], vec![i; 40]).unwrap();
        }
        assert_eq!(shards.finish().unwrap(), 200);
        let file = SafeTensorsFile::open(folder.path()).unwrap();
        assert!(folder.path().join("model-00003-of-00003.safetensors").is_file());
        for i in 0..5u8 {
            let tensor = file.tensor(&format!("t{i}")).unwrap();
            assert_eq!((file.data(tensor), &tensor.shape[..]), (&[i; 40][..], &[10, 4][..]));
        }
    }
}
