//! safetensors: one file, or shards that an index names, with `config.json` beside them.
//!
//! Reads through the crate `safetensors`, whose rules are the format's: no holes, no overlap, dtype × shape = bytes.
//! Makes one list of tensors over all shards. Always holds: every listed tensor lies inside its shard, names are
//! unique over all shards, and every tensor of the index is in the shard that the index names.

use super::map::Bytes;
use super::{clip, safetensors_header};
use ::safetensors::{Dtype, SafeTensors};
use bitsmith_compiler::{Error, Result};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// The index file of a sharded model.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// The weights of a model in one file.
pub const SINGLE_FILE: &str = "model.safetensors";
/// Configurations are some kilobytes, indexes some megabytes; beyond this a file is not what its name says.
const MAX_JSON: u64 = 256 << 20;

/// An open model in safetensors files.
#[derive(Debug)]
pub struct SafeTensorsFile {
    name: String,
    shards: Vec<Shard>,
    tensors: Vec<SafeTensor>,
    by_name: HashMap<String, usize>,
    config: Option<Value>,
}

/// Where one tensor lies and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SafeTensor {
    /// The name.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// The shape in numpy order.
    pub shape: Vec<usize>,
    /// Which shard holds it.
    pub shard: usize,
    /// First byte, from the start of the shard.
    pub offset: usize,
    /// How many bytes.
    pub bytes: usize,
}

#[derive(Debug)]
struct Shard {
    file: String,
    bytes: Bytes,
}

impl SafeTensorsFile {
    /// Opens a folder, a `.safetensors` file or an index file.
    pub fn open(path: impl AsRef<Path>) -> Result<SafeTensorsFile> {
        let path = path.as_ref();
        let file = if path.is_dir() { find(path)? } else { path.to_owned() };
        let name = file.display().to_string();
        let folder = file.parent().unwrap_or(Path::new(""));
        let mut model = if name.ends_with(".json") {
            let index = read_text(&file)?;
            SafeTensorsFile::assemble(&index, &name, |shard| {
                let path = folder.join(shard);
                if !path.is_file() {
                    return Err(Error::invalid(format!("{name}: names the shard {shard:?}, which is not beside it")));
                }
                Bytes::map(&path)
            })?
        } else {
            SafeTensorsFile::from_shards(name, vec![Shard { file: file_name(&file), bytes: Bytes::map(&file)? }])?
        };
        let config = folder.join("config.json");
        if config.is_file() {
            let text = read_text(&config)?;
            model.config = Some(parse_json(&text, &config.display().to_string())?);
        }
        Ok(model)
    }

    /// Parses one file from a buffer; errors call it `name`.
    pub fn parse(bytes: impl Into<Vec<u8>>, name: &str) -> Result<SafeTensorsFile> {
        SafeTensorsFile::from_shards(
            name.to_owned(),
            vec![Shard { file: name.to_owned(), bytes: Bytes::Owned(bytes.into()) }],
        )
    }

    /// Parses an index and the shards that `load` gives for its file names (`None`: there is no such shard).
    pub fn parse_sharded(
        index: &str,
        name: &str,
        mut load: impl FnMut(&str) -> Option<Vec<u8>>,
    ) -> Result<SafeTensorsFile> {
        SafeTensorsFile::assemble(index, name, |shard| {
            let missing = || Error::invalid(format!("{name}: names the shard {shard:?}, which is not beside it"));
            load(shard).map(Bytes::Owned).ok_or_else(missing)
        })
    }

    fn assemble(index: &str, name: &str, mut load: impl FnMut(&str) -> Result<Bytes>) -> Result<SafeTensorsFile> {
        let index = parse_index(index, name)?;
        let mut files: Vec<&String> = index.values().collect();
        files.sort();
        files.dedup();
        let shards = files
            .iter()
            .map(|&file| Ok(Shard { file: file.clone(), bytes: load(file)? }))
            .collect::<Result<Vec<_>>>()?;
        let model = SafeTensorsFile::from_shards(name.to_owned(), shards)?;
        let mut faults = Vec::new();
        for (tensor, file) in &index {
            match model.tensor(tensor).map(|found| model.shard_name(found)) {
                Some(found) if found == file => {}
                Some(found) => {
                    faults.push(format!("{name}: tensor `{}` is in {found:?}, not in {file:?}", clip(tensor)));
                }
                None => faults.push(format!("{name}: tensor `{}` is not in its shard {file:?}", clip(tensor))),
            }
        }
        if faults.is_empty() { Ok(model) } else { Err(Error::Invalid(faults)) }
    }

    fn from_shards(name: String, shards: Vec<Shard>) -> Result<SafeTensorsFile> {
        let mut tensors: Vec<SafeTensor> = Vec::new();
        let mut by_name = HashMap::new();
        for (shard, Shard { file, bytes }) in shards.iter().enumerate() {
            let fault = |message: &dyn std::fmt::Display| Error::invalid(format!("{file}: {message}"));
            safetensors_header::check(bytes).map_err(|message| fault(&message))?;
            let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| fault(&error))?;
            for tensor in metadata.offset_keys() {
                let Some(info) = metadata.info(&tensor) else { continue };
                if let Some(first) = by_name.insert(tensor.clone(), tensors.len()) {
                    let first = &shards[tensors[first].shard].file;
                    return Err(fault(&format!("tensor `{}` is also in {first:?}", clip(&tensor))));
                }
                tensors.push(SafeTensor {
                    name: tensor,
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                    shard,
                    offset: 8 + header + info.data_offsets.0,
                    bytes: info.data_offsets.1 - info.data_offsets.0,
                });
            }
        }
        Ok(SafeTensorsFile { name, shards, tensors, by_name, config: None })
    }

    /// What errors call the model: the path of the file or index.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `config.json`, where it lies beside the weights.
    pub fn config(&self) -> Option<&Value> {
        self.config.as_ref()
    }

    /// The tensors, shard by shard, in file order.
    pub fn tensors(&self) -> &[SafeTensor] {
        &self.tensors
    }

    /// The tensor of a name.
    pub fn tensor(&self, name: &str) -> Option<&SafeTensor> {
        self.by_name.get(name).map(|&index| &self.tensors[index])
    }

    /// The file name of a tensor's shard.
    ///
    /// # Panics
    /// Where `tensor` was not taken from this model: a mistake in the program, which no file can cause.
    pub fn shard_name(&self, tensor: &SafeTensor) -> &str {
        &self.shards[tensor.shard].file
    }

    /// The bytes of a tensor.
    ///
    /// # Panics
    /// Where `tensor` was not taken from this model: a mistake in the program, which no file can cause.
    pub fn data(&self, tensor: &SafeTensor) -> &[u8] {
        &self.shards[tensor.shard].bytes[tensor.offset..tensor.offset + tensor.bytes]
    }
}

/// The weights in a folder: the single file, else the index, else the only `.safetensors` file.
fn find(folder: &Path) -> Result<PathBuf> {
    for name in [SINGLE_FILE, INDEX_FILE] {
        if folder.join(name).is_file() {
            return Ok(folder.join(name));
        }
    }
    super::only_file(folder, "safetensors")?.ok_or_else(|| {
        Error::invalid(format!("{}: holds no {SINGLE_FILE}, {INDEX_FILE} or *.safetensors", folder.display()))
    })
}

/// Tensor name to shard file name.
fn parse_index(text: &str, name: &str) -> Result<BTreeMap<String, String>> {
    let index = parse_json(text, name)?;
    let Some(Value::Object(map)) = index.get("weight_map") else {
        return Err(Error::invalid(format!("{name}: `weight_map` is missing or not an object of tensor to file name")));
    };
    let mut out = BTreeMap::new();
    for (tensor, file) in map {
        let fault = |what: &str| Error::invalid(format!("{name}: the shard of tensor `{}` {what}", clip(tensor)));
        let file = file.as_str().ok_or_else(|| fault("is not a file name"))?;
        // A shard lies beside the index: a path would let a downloaded model read files elsewhere.
        let plain = !file.is_empty() && file != "." && file != ".." && !file.contains(['/', '\\', ':', '\0']);
        if !plain {
            return Err(fault(&format!("is {:?}; accepted: a plain file name", clip(file))));
        }
        out.insert(tensor.clone(), file.to_owned());
    }
    Ok(out)
}

pub(crate) fn parse_json(text: &str, name: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| Error::invalid(format!("{name}: is not valid JSON: {error}")))
}

/// Reads a small text file.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let fault = |message: String| Error::invalid(format!("{}: {message}", path.display()));
    let unreadable = |error: std::io::Error| fault(format!("cannot be read: {error}"));
    let meta = std::fs::metadata(path).map_err(unreadable)?;
    if !meta.is_file() || meta.len() > MAX_JSON {
        return Err(fault(format!("is not a regular file of at most {MAX_JSON} bytes")));
    }
    std::fs::read_to_string(path).map_err(unreadable)
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
#[path = "safetensors_tests.rs"]
mod tests;
