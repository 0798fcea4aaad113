//! Model files: GGUF and safetensors behind one face.
//!
//! Reads a file or a folder, decides by its first bytes and its name what it is, and makes one list of tensors.
//! Always holds: what is listed can be read, in bounds; what cannot be read is refused by name when it is opened.

mod cursor;
mod gguf;
mod gguf_type;
mod gguf_value;
mod gguf_write;
mod map;
pub(crate) mod safetensors;
mod safetensors_header;

pub use self::safetensors::{SafeTensor, SafeTensorsFile};
pub use ::safetensors::Dtype as SafeTensorsType;
pub use gguf::{Gguf, TensorInfo};
pub use gguf_type::GgufType;
pub use gguf_value::{Array, Value};
pub use gguf_write::GgufWriter;

use bitsmith_compiler::{Error, Result};
use half::{bf16, f16};
use std::borrow::Cow;
use std::io::Read;
use std::path::{Path, PathBuf};

/// An open model file of either kind.
#[derive(Debug)]
pub enum ModelFile {
    /// A GGUF file.
    Gguf(Gguf),
    /// One or more safetensors files.
    SafeTensors(SafeTensorsFile),
}

/// One tensor of a model file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tensor<'a> {
    /// The name.
    pub name: &'a str,
    /// How its elements are stored.
    pub dtype: FileType,
    /// The shape in numpy order, `[N, K]` for a linear layer.
    pub shape: &'a [usize],
    /// Its bytes, as they lie in the file.
    pub data: &'a [u8],
    /// The file that holds it.
    pub shard: &'a str,
}

/// The element type of a tensor, as its file knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    /// A type of GGUF, blocks among them.
    Gguf(GgufType),
    /// A plain type of safetensors.
    SafeTensors(SafeTensorsType),
}

impl FileType {
    /// The name as the file's own tools spell it: `Q4_K`, `BF16`, `F8_E4M3`.
    pub fn name(self) -> Cow<'static, str> {
        match self {
            FileType::Gguf(kind) => Cow::Borrowed(kind.name()),
            FileType::SafeTensors(kind) => Cow::Owned(kind.to_string()),
        }
    }
}

impl ModelFile {
    /// Opens a GGUF file, a safetensors file, a safetensors index, or a folder that holds one of them.
    pub fn open(path: impl AsRef<Path>) -> Result<ModelFile> {
        let path = path.as_ref();
        let fault = |message: &str| Error::invalid(format!("{}: {message}", path.display()));
        let unreadable = |error: std::io::Error| fault(&format!("cannot be read: {error}"));
        let meta = std::fs::metadata(path).map_err(unreadable)?;
        if meta.is_dir() {
            return match (only_file(path, "safetensors"), only_file(path, "gguf")?) {
                (Ok(None), Some(gguf)) => Gguf::open(gguf).map(ModelFile::Gguf),
                _ => SafeTensorsFile::open(path).map(ModelFile::SafeTensors),
            };
        }
        if !meta.is_file() {
            return Err(fault("is neither a regular file nor a folder"));
        }
        let mut start = Vec::with_capacity(9);
        std::fs::File::open(path).and_then(|file| file.take(9).read_to_end(&mut start)).map_err(unreadable)?;
        let named = |end: &str| path.to_string_lossy().to_ascii_lowercase().ends_with(end);
        if start.starts_with(b"GGUF") || named(".gguf") {
            return Gguf::open(path).map(ModelFile::Gguf);
        }
        if named(".safetensors") || named(".index.json") || start.get(8) == Some(&b'{') {
            return SafeTensorsFile::open(path).map(ModelFile::SafeTensors);
        }
        if start.starts_with(b"PK") || named(".bin") || named(".pt") || named(".pth") {
            return Err(Error::Unsupported(format!(
                "{}: looks like a PyTorch pickle, which can run code when read; accepted: GGUF, safetensors",
                path.display()
            )));
        }
        Err(fault("is not a known model file; accepted: GGUF, safetensors, a safetensors index, a folder of them"))
    }

    /// What errors call the model.
    pub fn name(&self) -> &str {
        match self {
            ModelFile::Gguf(file) => file.name(),
            ModelFile::SafeTensors(file) => file.name(),
        }
    }

    /// The tensors, in file order.
    pub fn tensors(&self) -> Vec<Tensor<'_>> {
        match self {
            ModelFile::Gguf(file) => file.tensors().iter().map(|tensor| gguf_tensor(file, tensor)).collect(),
            ModelFile::SafeTensors(file) => {
                file.tensors().iter().map(|tensor| safetensors_tensor(file, tensor)).collect()
            }
        }
    }

    /// The tensor of a name.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        match self {
            ModelFile::Gguf(file) => file.tensor(name).map(|tensor| gguf_tensor(file, tensor)),
            ModelFile::SafeTensors(file) => file.tensor(name).map(|tensor| safetensors_tensor(file, tensor)),
        }
        .ok_or_else(|| Error::invalid(format!("{}: has no tensor `{}`", self.name(), clip(name))))
    }

    /// The values of a tensor of plain floats (F32, F16, BF16, F64); other types are refused by name.
    pub fn tensor_f32(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.tensor(name)?;
        tensor.to_f32().map_err(|error| match error {
            Error::Unsupported(message) => Error::Unsupported(format!("{}: {message}", self.name())),
            other => other,
        })
    }
}

impl Tensor<'_> {
    /// The values of plain floats (F32, F16, BF16, F64); F64 is rounded to nearest. Other types are refused by name.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        use FileType::{Gguf as G, SafeTensors as S};
        fn each<const N: usize>(data: &[u8], decode: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            data.as_chunks::<N>().0.iter().map(|&bytes| decode(bytes)).collect()
        }
        match self.dtype {
            G(GgufType::F32) | S(SafeTensorsType::F32) => Ok(each(self.data, f32::from_le_bytes)),
            G(GgufType::F16) | S(SafeTensorsType::F16) => {
                Ok(each(self.data, |bytes| f16::from_le_bytes(bytes).to_f32()))
            }
            G(GgufType::BF16) | S(SafeTensorsType::BF16) => {
                Ok(each(self.data, |bytes| bf16::from_le_bytes(bytes).to_f32()))
            }
            G(GgufType::F64) | S(SafeTensorsType::F64) => Ok(each(self.data, |bytes| f64::from_le_bytes(bytes) as f32)),
            other => Err(Error::Unsupported(format!(
                "tensor `{}` is {}, which is not a plain float here; accepted: F32, F16, BF16, F64",
                clip(self.name),
                other.name()
            ))),
        }
    }
}

fn gguf_tensor<'a>(file: &'a Gguf, tensor: &'a TensorInfo) -> Tensor<'a> {
    let data = file.data(tensor);
    Tensor { name: &tensor.name, dtype: FileType::Gguf(tensor.dtype), shape: &tensor.shape, data, shard: file.name() }
}

fn safetensors_tensor<'a>(file: &'a SafeTensorsFile, tensor: &'a SafeTensor) -> Tensor<'a> {
    let (data, shard) = (file.data(tensor), file.shard_name(tensor));
    Tensor { name: &tensor.name, dtype: FileType::SafeTensors(tensor.dtype), shape: &tensor.shape, data, shard }
}

/// The only file with this extension in a folder; more than one is an error that lists them.
fn only_file(folder: &Path, extension: &str) -> Result<Option<PathBuf>> {
    let unreadable = |error: std::io::Error| Error::invalid(format!("{}: cannot be read: {error}", folder.display()));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension)) && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    if found.len() > 1 {
        let names: Vec<_> = found.iter().map(|path| path.display().to_string()).collect();
        return Err(Error::invalid(format!("{}: name one of {}", folder.display(), names.join(", "))));
    }
    Ok(found.pop())
}

/// A name from a file, short enough to print.
pub(crate) fn clip(name: &str) -> String {
    const LIMIT: usize = 120;
    let mut out: String = name.chars().take(LIMIT).flat_map(char::escape_debug).collect();
    if name.chars().nth(LIMIT).is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests;
