//! A bundle: a folder with the object files of some kernels and a C header, or with their texts, and a manifest.
//!
//! Reads compiled kernels; makes files. Always holds: the same kernels give the same bytes, a bundle appears as a whole or
//! not at all, and nothing but a bundle is ever replaced. Measurements are kept apart, since they differ from run to run.

mod header;
mod manifest;
mod page;
mod write;

pub use manifest::{ArgEntry, FileEntry, Grid, KernelEntry, MANIFEST, Manifest, SCHEMA, ToolVersions};
pub use write::{check, write};

pub use crate::place::Maker;

use crate::failure::Failure;
use bitsmith_compiler::artifact::Artifact;
use bitsmith_compiler::op::Op;
use bitsmith_compiler::schedule::Schedule;
use sha2::{Digest, Sha256};

/// A kernel as a bundle takes it.
pub struct Piece<'a> {
    /// What it computes.
    pub op: &'a Op,
    /// How.
    pub schedule: &'a Schedule,
    /// Its code.
    pub artifact: &'a Artifact,
    /// The layers that use it.
    pub layers: &'a str,
    /// Numbers of rows that it was chosen for.
    pub rows: &'a [usize],
}

/// A file of a bundle: its name and content.
pub type File = (String, Vec<u8>);

/// Name of the C header.
pub const HEADER: &str = "bitsmith_kernels.h";

/// Every file of a bundle, the manifest last.
pub fn files(pieces: &[Piece<'_>], maker: &Maker, recipe: &str, model: &str) -> Result<Vec<File>, Failure> {
    let mut files = Vec::new();
    let mut kernels = Vec::new();
    for piece in pieces {
        let (name, bytes) = maker.file(piece.artifact)?;
        kernels.push(KernelEntry::new(piece, &name, sha256(&bytes))?);
        files.push((name, bytes));
    }
    let mut manifest = Manifest {
        schema: SCHEMA,
        tool: ToolVersions::here(),
        target: maker.name().to_string(),
        triple: maker.platform(),
        recipe: recipe.to_string(),
        model: model.to_string(),
        header: None,
        extra: Vec::new(),
        kernels,
    };
    if maker.links() {
        let header = header::render(&manifest)?.into_bytes();
        manifest.header = Some(FileEntry { file: HEADER.to_string(), sha256: sha256(&header) });
        files.push((HEADER.to_string(), header));
    }
    if maker.browses() {
        for (name, bytes) in page::files(pieces, &manifest)? {
            manifest.extra.push(FileEntry { file: name.clone(), sha256: sha256(&bytes) });
            files.push((name, bytes));
        }
    }
    files.push((MANIFEST.to_string(), manifest.to_text()?.into_bytes()));
    Ok(files)
}

/// SHA-256 in lower-case hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
