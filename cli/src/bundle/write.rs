//! Writing a bundle: into a folder beside its place, which is then renamed.

use super::{File, MANIFEST, Manifest};
use crate::failure::Failure;
use std::fs;
use std::path::{Path, PathBuf};

/// A folder that disappears unless it was renamed.
struct Staging(PathBuf);

impl Drop for Staging {
    fn drop(&mut self) {
        // What is left over is named after its bundle and this process, so that a person can tell what it is.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Writes the files of a bundle to a folder, which must be absent, empty, or a bundle: that one is replaced as a whole.
pub fn write(out: &Path, files: &[File]) -> Result<(), Failure> {
    let old = occupied(out)?;
    let (parent, name) = place(out)?;
    fs::create_dir_all(&parent).map_err(|error| Failure::file(&parent, "created", &error))?;
    let beside = |what: &str| parent.join(format!(".{name}.{what}-{}", std::process::id()));
    let staging = Staging(beside("new"));
    fs::create_dir(&staging.0).map_err(|error| Failure::file(&parent, "written into", &error))?;
    for (name, bytes) in files {
        let path = staging.0.join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|error| Failure::file(folder, "written", &error))?;
        }
        fs::write(&path, bytes).map_err(|error| Failure::file(&path, "written", &error))?;
    }
    if !old {
        return fs::rename(&staging.0, out).map_err(|error| Failure::file(out, "written", &error));
    }
    let aside = beside("old");
    fs::rename(out, &aside).map_err(|error| Failure::file(out, "replaced", &error))?;
    if let Err(error) = fs::rename(&staging.0, out) {
        let restored = fs::rename(&aside, out);
        let place = if restored.is_ok() { "" } else { "; the old bundle is beside it" };
        return Err(Failure::invalid(format!("{}: cannot be replaced: {error}{place}", out.display())));
    }
    let _ = fs::remove_dir_all(&aside);
    Ok(())
}

/// Refuses a folder that a bundle could not take the place of, before any work is done.
pub fn check(out: &Path) -> Result<(), Failure> {
    occupied(out)?;
    let (parent, _) = place(out)?;
    let mut existing = parent.as_path();
    while !existing.exists() {
        match existing.parent() {
            Some(up) if !up.as_os_str().is_empty() => existing = up,
            _ => return Ok(()),
        }
    }
    let meta = fs::metadata(existing).map_err(|error| Failure::file(existing, "read", &error))?;
    if !meta.is_dir() {
        return Err(Failure::invalid(format!("{}: is a file, not a folder; choose another --out", existing.display())));
    }
    if meta.permissions().readonly() {
        return Err(Failure::invalid(format!("{}: cannot be written into; check its permissions", existing.display())));
    }
    Ok(())
}

/// The folder that holds a bundle, and the bundle's name in it.
fn place(out: &Path) -> Result<(PathBuf, String), Failure> {
    let name = out.file_name().ok_or_else(|| {
        Failure::invalid(format!("{}: names no folder to write; choose another --out", out.display()))
    })?;
    let parent = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    Ok((parent, name.to_string_lossy().into_owned()))
}

/// Whether an old bundle stands there. Anything else with content is refused.
fn occupied(out: &Path) -> Result<bool, Failure> {
    let meta = match fs::metadata(out) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Failure::file(out, "read", &error)),
    };
    if !meta.is_dir() {
        return Err(Failure::invalid(format!("{}: is a file; choose another --out", out.display())));
    }
    let unreadable = |error: std::io::Error| Failure::file(out, "read", &error);
    let names = fs::read_dir(out).map_err(unreadable)?.map(|entry| entry.map(|entry| entry.file_name()));
    let names = names.collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    if names.is_empty() {
        return Ok(true);
    }
    let foreign = |why: &str| {
        Failure::invalid(format!("{}: holds files and is no bundle ({why}); choose another --out", out.display()))
    };
    let text = fs::read_to_string(out.join(MANIFEST)).map_err(|_| foreign("it has no manifest.json"))?;
    let manifest = Manifest::parse(&text, MANIFEST).map_err(|_| foreign("its manifest.json is of another kind"))?;
    let listed = |name: &str| name == MANIFEST || manifest.files().any(|(_, file)| name == file.file);
    let mut found = Vec::new();
    for name in names {
        let path = out.join(&name);
        let name = name.to_string_lossy().into_owned();
        // A fat bundle has a folder per target, and no deeper one.
        if path.is_dir() {
            for entry in fs::read_dir(&path).map_err(unreadable)? {
                found.push(format!("{name}/{}", entry.map_err(unreadable)?.file_name().to_string_lossy()));
            }
        } else {
            found.push(name);
        }
    }
    match found.iter().find(|name| !listed(name)) {
        None => Ok(true),
        Some(name) => Err(Failure::invalid(format!(
            "{}: the bundle there also holds `{}`, which its manifest does not list; move it or choose another --out",
            out.display(),
            name
        ))),
    }
}
