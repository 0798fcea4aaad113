//! Files that appear whole or not at all.

use crate::Outcome;
use crate::failure::Failure;
use std::io::Write;
use std::path::Path;

/// Writes a file beside its place first, so that no half file is ever found there.
pub(crate) fn write(path: &Path, content: impl AsRef<[u8]>) -> Outcome {
    let failed = |error: &std::io::Error| Failure::file(path, "written", error);
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // A file created by name has the permissions that the user's mask asks for; a plain temporary file is private.
    let create = |path: &Path| std::fs::File::create_new(path);
    let mut file = tempfile::Builder::new().make_in(parent, create).map_err(|error| failed(&error))?;
    file.write_all(content.as_ref()).map_err(|error| failed(&error))?;
    file.persist(path).map_err(|error| failed(&error.error))?;
    Ok(())
}
