//! Writes a model: compressed-tensors, GPTQ, AWQ, GGUF, or bitsmith's own packed layout.
//!
//! Reads the parts of a model one by one; makes a folder (or a file, for GGUF) that other tools read. Always holds: no code is rounded again; a
//! matrix that the container cannot hold is refused with its name, all of them at once; an output appears whole or not at
//! all, and nothing that is there already is replaced.

mod gguf;
mod huggingface;
mod packed;
mod reframe;
mod shards;

pub use packed::{PackedFile, open as open_packed};
pub use reframe::{needs_gptq_v2, reframe, reframe_as};

use crate::model::Layers;
use bitsmith_compiler::{Error, Result};
use std::path::{Path, PathBuf};

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// compressed-tensors, for vLLM.
    CompressedTensors,
    /// GPTQ, version 1, or 2 where a zero of 0 asks for it.
    Gptq,
    /// AWQ, the gemm version.
    Awq,
    /// GGUF.
    Gguf,
    /// The layout that bitsmith's kernels take.
    Packed,
}

impl Target {
    /// Every target and its name.
    pub const ALL: &'static [(&'static str, Target)] = &[
        ("compressed-tensors", Target::CompressedTensors),
        ("gptq", Target::Gptq),
        ("awq", Target::Awq),
        ("gguf", Target::Gguf),
        ("packed", Target::Packed),
    ];

    /// The target of a name.
    pub fn by_name(name: &str) -> Result<Target> {
        Target::ALL.iter().find(|(own, _)| *own == name).map(|(_, target)| *target).ok_or_else(|| {
            let names: Vec<&str> = Target::ALL.iter().map(|(name, _)| *name).collect();
            Error::invalid(format!("target `{}`; accepted: {}", crate::file::clip(name), names.join(", ")))
        })
    }
}

/// Files beside weights that a model needs, copied as they are.
const SIDE_FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
];

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Where.
    pub path: PathBuf,
    /// Bytes of the weights.
    pub bytes: u64,
}

/// Writes a model. `side` is the folder whose tokenizer goes with it.
pub fn export(model: &dyn Layers, target: Target, out: &Path, side: Option<&Path>) -> Result<Written> {
    let fault = |error: std::io::Error| Error::invalid(format!("{}: cannot be written: {error}", out.display()));
    if out.exists() {
        return Err(Error::invalid(format!("{}: is there already; name a new place", out.display())));
    }
    if target == Target::Gguf {
        gguf::write(model, out, side)?;
        let bytes = std::fs::metadata(out).map_err(fault)?.len();
        return Ok(Written { path: out.to_owned(), bytes });
    }
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(fault)?;
    let folder = tempfile::Builder::new().prefix(".bitsmith-").tempdir_in(parent).map_err(fault)?;
    let bytes = match target {
        Target::Packed => packed::write(model, folder.path())?,
        _ => huggingface::write(model, target, folder.path())?,
    };
    for name in SIDE_FILES {
        let from = side.map(|side| side.join(name));
        if let Some(from) = from.filter(|from| from.is_file()) {
            std::fs::copy(&from, folder.path().join(name)).map_err(fault)?;
        }
    }
    let kept = folder.keep();
    // A temporary folder is private; the model has the permissions that the user's mask asks for.
    let moved = std::fs::create_dir(out).and_then(|()| {
        for entry in std::fs::read_dir(&kept)? {
            let entry = entry?;
            std::fs::rename(entry.path(), out.join(entry.file_name()))?;
        }
        std::fs::remove_dir(&kept)
    });
    if moved.is_err() {
        // The first error is the one to report.
        let _ = std::fs::remove_dir_all(&kept);
    }
    moved.map_err(fault)?;
    Ok(Written { path: out.to_owned(), bytes })
}
