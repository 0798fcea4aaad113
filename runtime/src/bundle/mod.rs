//! Bundles: kernels in files, which run where no compiler is.
//!
//! Reads the folder that `bitsmith generate` writes; makes programs of a device and checked launches. Always holds: a manifest
//! that was changed is refused, a file runs only if it has the hash that the manifest states, and nothing outside the folder
//! is read.

mod choose;
mod code;
mod kernels;
mod kv;
mod manifest;
mod spec;

pub use bitsmith_compiler::artifact::sha256;
pub use choose::{Choice, Want};
pub use kernels::{Kernel, Kernels};
pub use kv::{KvEntry, KvSpec};
pub use manifest::{
    ArgEntry, Details, FileEntry, Grid, KernelEntry, MANIFEST, Manifest, PackingEntry, SCHEMA, TargetEntry,
    ToolVersions,
};
pub use spec::activation_of;

use bitsmith_compiler::{Error, Result};
use std::path::{Path, PathBuf};

/// An opened bundle.
#[derive(Clone, Debug)]
pub struct Bundle {
    folder: PathBuf,
    manifest: Manifest,
}

impl Bundle {
    /// Opens the bundle in a folder: reads its manifest and checks it, not the files. Fails where there is none, or where it
    /// was changed.
    pub fn open(folder: &Path) -> Result<Bundle> {
        let path = folder.join(MANIFEST);
        let text = std::fs::read_to_string(&path).map_err(|error| cannot_read(&path, &error))?;
        let manifest = Manifest::parse(&text, &path.display().to_string())?;
        Ok(Bundle { folder: folder.to_path_buf(), manifest })
    }

    /// What it holds.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The content of one of its files. Fails where it is not what the manifest states.
    pub fn file(&self, file: &FileEntry) -> Result<Vec<u8>> {
        if !inside(&file.file) {
            return Err(Error::invalid(format!("{}: the manifest names a file outside the bundle", file.file)));
        }
        let path = self.folder.join(&file.file);
        let content = std::fs::read(&path).map_err(|error| cannot_read(&path, &error))?;
        let found = sha256(&content);
        if found != file.sha256 {
            return Err(Error::invalid(format!(
                "{}: SHA-256 is {found}, the manifest states {}",
                path.display(),
                file.sha256
            )));
        }
        Ok(content)
    }

    /// What is wrong with its files: each is read, and its hash compared.
    pub fn faults(&self) -> Vec<String> {
        self.manifest.files().filter_map(|(_, file)| self.file(file).err()).map(|error| error.to_string()).collect()
    }
}

/// A manifest is a file like any other: it may not send us elsewhere. A file lies in the folder, or one folder deeper.
fn inside(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let plain = |c: Option<std::path::Component<'_>>| matches!(c, None | Some(std::path::Component::Normal(_)));
    let (first, second) = (components.next(), components.next());
    first.is_some() && plain(first) && plain(second) && components.next().is_none() && !name.contains(['\\', ':'])
}

fn cannot_read(path: &Path, error: &std::io::Error) -> Error {
    Error::invalid(format!("{}: cannot be read: {error}", path.display()))
}
