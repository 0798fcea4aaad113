//! The import table of `compiler/README.md` against the `use` lines, file lengths, module docs.

use std::path::{Path, PathBuf};

/// What each module of `compiler` may import; `error` is everybody's.
const TABLE: &[(&str, &[&str])] = &[
    ("dtype", &[]),
    ("layout", &[]),
    ("format", &["dtype", "layout"]),
    ("caps", &["dtype", "layout"]),
    ("op", &["dtype", "format"]),
    ("schedule", &["dtype"]),
    ("ir", &["dtype", "caps"]),
    ("lower", &["op", "format", "layout", "schedule", "caps", "ir", "dtype"]),
    ("pass", &["ir", "caps"]),
    ("target", &["ir", "pass", "caps", "artifact"]),
    ("artifact", &["dtype"]),
    ("error", &[]),
];

/// Longest file that is accepted.
const WALL: usize = 800;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

fn all_sources() -> Vec<PathBuf> {
    let mut files = Vec::new();
    for part in [
        "compiler/src",
        "runtime/src",
        "runtime/ggml/src",
        "runtime/ggml/tests",
        "autotune/src",
        "autotune/tests",
        "calibrate/src",
        "emulate/src",
        "emulate/tests",
        "cli/src",
        "cli/tests",
        "tests",
        "benches",
        "runtime/candle",
        "runtime/capi",
    ] {
        sources(&root().join(part), &mut files);
    }
    files.sort();
    files
}

/// Modules of the crate that a source text names after `crate::` or, at a module's own top, through `super::`.
fn imports(text: &str) -> Vec<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    code.match_indices("crate::")
        .filter(|&(at, _)| {
            at == 0 || !code.as_bytes()[at - 1].is_ascii_alphanumeric() && code.as_bytes()[at - 1] != b'_'
        })
        .map(|(at, found)| {
            let rest = &code[at + found.len()..];
            rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
        })
        .collect()
}

#[test]
fn modules_import_what_the_table_allows() {
    let src = root().join("compiler/src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut faults = Vec::new();
    for file in files {
        let inside = file.strip_prefix(&src).unwrap();
        let module =
            inside.components().next().unwrap().as_os_str().to_string_lossy().trim_end_matches(".rs").to_string();
        if module == "lib" {
            continue;
        }
        let Some((_, allowed)) = TABLE.iter().find(|(name, _)| *name == module) else {
            faults.push(format!("{}: module `{module}` is not in the table", inside.display()));
            continue;
        };
        // A test may look at anything.
        let text = std::fs::read_to_string(&file).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        if file.file_stem().is_some_and(|stem| stem == "tests") {
            continue;
        }
        for name in imports(text) {
            // `Error` and `Result` stand at the root too.
            let own = name == module || ["error", "Error", "Result", ""].contains(&name.as_str());
            if !own && !allowed.contains(&name.as_str()) {
                faults.push(format!("{}: imports `{name}`", inside.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_table_is_the_one_that_the_readme_shows() {
    let readme = std::fs::read_to_string(root().join("compiler/README.md")).unwrap();
    for (module, allowed) in TABLE.iter().filter(|(module, _)| *module != "error") {
        let row = readme.lines().find(|line| line.starts_with(&format!("| `{module}` |"))).unwrap_or_else(|| {
            panic!("compiler/README.md has no row for `{module}`");
        });
        let shown = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let expected = if allowed.is_empty() { "–".to_string() } else { allowed.join(", ") };
        assert_eq!(shown, expected, "row of `{module}`");
    }
}

#[test]
fn files_are_short_and_say_what_they_are() {
    let mut faults = Vec::new();
    for file in all_sources() {
        let text = std::fs::read_to_string(&file).unwrap();
        let name = file.strip_prefix(root()).unwrap_or(&file).display().to_string();
        let lines = text.lines().count();
        if lines > WALL {
            faults.push(format!("{name}: {lines} lines; accepted: at most {WALL}"));
        }
        if !text.starts_with("//!") && !text.starts_with("#![doc") {
            faults.push(format!("{name}: does not open with what it reads, makes and promises"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn unsafe_code_says_why() {
    let compiler = std::fs::read_to_string(root().join("compiler/src/lib.rs")).unwrap();
    assert!(compiler.contains("#![forbid(unsafe_code)]"));
}

#[test]
fn the_ptx_machine_knows_nothing_of_the_compiler() {
    // It is a second reading of the PTX ISA, so it must not share code or tables with what it checks.
    let manifest = std::fs::read_to_string(root().join("emulate/Cargo.toml")).unwrap();
    let dependencies = manifest.split("[dependencies]").nth(1).unwrap();
    assert!(!dependencies.contains("bitsmith"), "emulate depends on a crate of the project");
    let mut files = Vec::new();
    sources(&root().join("emulate"), &mut files);
    assert!(files.len() > 20, "the sources of the PTX machine were not found");
    let own = "bitsmith_emulate";
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap().replace(own, "");
        assert!(!text.contains("bitsmith_"), "{} names a crate of the project", file.display());
        assert!(!text.contains("/compiler/"), "{} includes the compiler's sources", file.display());
    }
    assert!(std::fs::read_to_string(root().join("emulate/src/lib.rs")).unwrap().contains("#![forbid(unsafe_code)]"));
}
