//! Tensors into safetensors files of a bounded size, with the index that names them.

use bitsmith_compiler::format::{Part, PartType};
use bitsmith_compiler::{Error, Result};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Bytes of a file, about.
const LIMIT: usize = 2 << 30;

/// Tensors on their way to files.
pub(super) struct Shards {
    folder: PathBuf,
    limit: usize,
    pending: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>,
    size: usize,
    written: Vec<Vec<String>>,
    total: u64,
}

impl Shards {
    /// Into a folder.
    pub fn new(folder: &Path) -> Shards {
        Shards { folder: folder.to_owned(), limit: LIMIT, pending: Vec::new(), size: 0, written: Vec::new(), total: 0 }
    }

    /// Takes a tensor.
    pub fn push(&mut self, name: String, dtype: Dtype, shape: Vec<usize>, bytes: Vec<u8>) -> Result<()> {
        if self.size > 0 && self.size + bytes.len() > self.limit {
            self.flush()?;
        }
        self.size += bytes.len();
        self.total += bytes.len() as u64;
        self.pending.push((name, dtype, shape, bytes));
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

    fn flush(&mut self) -> Result<()> {
        let path = self.file(self.written.len());
        let fault = |error: &dyn std::fmt::Display| Error::invalid(format!("{}: {error}", path.display()));
        let views = self
            .pending
            .iter()
            .map(|(name, dtype, shape, bytes)| Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?)))
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
            .map_err(|error| fault(&error))?;
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        // Not `serialize_to_file`: its files are for their owner alone.
        let bytes = safetensors::serialize(views, Some(metadata)).map_err(|error| fault(&error))?;
        std::fs::write(&path, bytes).map_err(|error| fault(&error))?;
        self.written.push(self.pending.drain(..).map(|(name, ..)| name).collect());
        self.size = 0;
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
