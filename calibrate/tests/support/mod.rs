//! What the tests of this crate share: optional data beside the checkout, said by name where it is absent.

pub mod corpus;
pub mod reference;

use std::io::Write;
use std::path::{Path, PathBuf};

/// A file or folder of the optional data beside the checkout (or in `BITSMITH_DATA`). Where it is absent, says by name
/// that the test was skipped, or fails if `BITSMITH_REQUIRE` lists `data`.
pub fn data(sub: &str, test: &str) -> Option<PathBuf> {
    let root = match std::env::var_os("BITSMITH_DATA") {
        Some(root) => PathBuf::from(root),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"),
    };
    let path = root.join(sub);
    if path.exists() {
        return Some(path);
    }
    let why = format!("{} is absent", path.display());
    let required = std::env::var("BITSMITH_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|r| r == "data"), "{test}: {why}, and BITSMITH_REQUIRE lists data");
    // Straight to the stream: the test harness hides what `println!` writes in a test that passes.
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {why}");
    None
}

/// The folder of the small model.
pub fn own_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("model")
}
