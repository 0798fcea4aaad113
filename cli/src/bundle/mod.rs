//! A bundle: a folder with the object files of some kernels and a C header, or with their texts, and a manifest.
//!
//! Reads compiled kernels; makes files. Always holds: the same kernels give the same bytes, a bundle appears as a whole or
//! not at all, and nothing but a bundle is ever replaced. Measurements are kept apart, since they differ from run to run.

mod entry;
mod header;
mod page;
mod write;

pub use bitsmith_runtime::bundle::{MANIFEST, Manifest, sha256};
pub use write::{check, write};

pub use crate::place::Maker;

use crate::failure::Failure;
use bitsmith_compiler::artifact::Artifact;
use bitsmith_compiler::lower::Packing;
use bitsmith_compiler::op::Op;
use bitsmith_compiler::op::kv::KvOp;
use bitsmith_compiler::schedule::{KvSchedule, Schedule};
use bitsmith_runtime::bundle::{FileEntry, SCHEMA, TargetEntry, ToolVersions};

/// A kernel as a bundle takes it.
pub struct Piece<'a> {
    /// What it computes.
    pub op: &'a Op,
    /// How.
    pub schedule: &'a Schedule,
    /// How its weights lie.
    pub packing: Packing,
    /// Its code.
    pub artifact: &'a Artifact,
    /// The layers that use it.
    pub layers: &'a str,
    /// Numbers of rows that it was chosen for.
    pub rows: &'a [usize],
    /// Where its schedule comes from.
    pub chosen_by: &'a str,
}

/// A kernel of a KV cache as a bundle takes it.
pub struct KvPiece {
    /// What it computes.
    pub op: KvOp,
    /// How.
    pub schedule: KvSchedule,
    /// Its code.
    pub artifact: Artifact,
}

/// A file of a bundle: its name and content.
pub type File = (String, Vec<u8>);

/// Name of the C header.
pub const HEADER: &str = "bitsmith_kernels.h";

/// What was made for one target.
pub struct Part<'a> {
    /// What made it.
    pub maker: &'a Maker,
    /// The kernels.
    pub pieces: Vec<Piece<'a>>,
    /// Kernels of KV caches.
    pub kv: &'a [KvPiece],
}

/// Licence of what the compiler writes.
const LICENCE: &str = "MIT OR Apache-2.0";

/// Every file of a bundle, the manifest last. The files of one target lie side by side; those of several, in a folder per
/// target.
pub fn files(parts: &[Part<'_>], recipe: &str, model: &str) -> Result<Vec<File>, Failure> {
    let mut files = Vec::new();
    let mut manifest = Manifest {
        schema: SCHEMA,
        digest: String::new(),
        tool: ToolVersions::here(),
        licence: LICENCE.to_string(),
        recipe: recipe.to_string(),
        model: model.to_string(),
        packings: Vec::new(),
        targets: Vec::new(),
    };
    for part in parts {
        let folder = if parts.len() > 1 { format!("{}/", part.maker.name()) } else { String::new() };
        let mut kernels = Vec::new();
        for piece in &part.pieces {
            let (name, bytes) = part.maker.file(piece.artifact)?;
            let name = format!("{folder}{name}");
            kernels.push(entry::entry(piece, &name, sha256(&bytes))?);
            files.push((name, bytes));
            manifest.packings.extend(entry::packing(piece)?);
        }
        let mut target = TargetEntry {
            target: part.maker.name().to_string(),
            made_for: part.pieces.first().map_or(part.maker.name(), |piece| &piece.artifact.target).to_string(),
            triple: part.maker.platform(),
            needs: part.maker.needs(),
            header: None,
            extra: Vec::new(),
            kernels,
            kv: Vec::new(),
        };
        if part.maker.links() {
            let header = header::render(&manifest, &target)?.into_bytes();
            let name = format!("{folder}{HEADER}");
            target.header = Some(FileEntry { file: name.clone(), sha256: sha256(&header) });
            files.push((name, header));
        }
        if part.maker.browses() {
            for (name, bytes) in page::files(part, &manifest, &target)? {
                let name = format!("{folder}{name}");
                target.extra.push(FileEntry { file: name.clone(), sha256: sha256(&bytes) });
                files.push((name, bytes));
            }
        }
        for piece in part.kv {
            let (name, bytes) = part.maker.file(&piece.artifact)?;
            let name = format!("{folder}{name}");
            target.kv.push(entry::kv_entry(piece, &name, sha256(&bytes)));
            files.push((name, bytes));
        }
        manifest.targets.push(target);
    }
    manifest.packings.sort_by(|a, b| (&a.packing, &a.format).cmp(&(&b.packing, &b.format)));
    manifest.packings.dedup();
    manifest.seal()?;
    files.push((MANIFEST.to_string(), manifest.to_text()?.into_bytes()));
    Ok(files)
}
