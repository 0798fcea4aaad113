//! What a release needs: crates that are whole by themselves, manual pages, completion scripts, a changelog that names every command.

use bitsmith_tests::cli::ok;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Folders of the crates that are published.
const CRATES: [&str; 7] = ["compiler", "runtime", "runtime/capi", "autotune", "calibrate", "emulate", "cli"];

fn cargo(args: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).args(args).arg("--offline").current_dir(root()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "cargo {args:?}: {text}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn sources(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// `a/b/../c` as `a/c`.
fn plain(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            std::path::Component::ParentDir => {
                if !plain.pop() {
                    return None;
                }
            }
            other => plain.push(other),
        }
    }
    Some(plain)
}

#[test]
fn every_crate_packs_all_that_its_sources_include() {
    for folder in CRATES {
        let manifest = root().join(folder).join("Cargo.toml");
        let manifest = manifest.to_str().unwrap();
        let listed = cargo(&["package", "--list", "--allow-dirty", "--manifest-path", manifest]);
        let listed: BTreeSet<PathBuf> = listed.lines().map(PathBuf::from).collect();
        assert!(listed.contains(Path::new("Cargo.toml")) && listed.len() > 5, "{folder}: {listed:?}");
        let crate_root = root().join(folder);
        let mut files = Vec::new();
        sources(&crate_root.join("src"), &mut files);
        for file in files {
            let inside = file.strip_prefix(&crate_root).unwrap();
            assert!(listed.contains(inside), "{folder}: {} is not packed", inside.display());
            let text = std::fs::read_to_string(&file).unwrap();
            for (at, _) in text.match_indices("include_str!(\"").chain(text.match_indices("include_bytes!(\"")) {
                let named = text[at..].split('"').nth(1).unwrap();
                let path = plain(&inside.parent().unwrap().join(named));
                let path = path.unwrap_or_else(|| panic!("{folder}: {} includes {named}", inside.display()));
                assert!(listed.contains(&path), "{folder}: {} is included and not packed", path.display());
            }
        }
    }
    // Versions, licences and descriptions, and dependencies that a registry would take: cargo checks them as it packs.
    let target = tempfile::tempdir().unwrap();
    let mut args = vec!["package", "--no-verify", "--allow-dirty", "--workspace", "--target-dir"];
    args.push(target.path().to_str().unwrap());
    args.extend(["--exclude", "bitsmith-tests", "--exclude", "bitsmith-benches"]);
    cargo(&args);
    let packed = std::fs::read_dir(target.path().join("package")).unwrap().map(|entry| entry.unwrap().path());
    let packed = packed.filter(|path| path.extension().is_some_and(|extension| extension == "crate"));
    assert_eq!(packed.count(), CRATES.len());
}

/// Names of commands as `--help` lists them.
fn commands() -> Vec<String> {
    let help = ok(&["--help"]);
    let list = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names = list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").map(String::from).collect()
}

#[test]
fn every_command_has_a_manual_page() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("man1");
    let text = ok(&["man", "--out", out.to_str().unwrap()]);
    let names = commands();
    assert!(names.len() > 15, "{names:?}");
    for name in std::iter::once("bitsmith".to_string()).chain(names.iter().map(|name| format!("bitsmith-{name}"))) {
        let page = std::fs::read_to_string(out.join(format!("{name}.1"))).unwrap();
        assert!(page.contains(&format!(".TH {name} 1")) && page.contains(".SH SYNOPSIS"), "{name}: {page}");
    }
    let page = std::fs::read_to_string(out.join("bitsmith-bench-attend.1")).unwrap();
    assert!(page.contains("Formats of the cache"), "{page}");
    let count = std::fs::read_dir(&out).unwrap().count();
    assert!(count > names.len() && text.starts_with(&format!("{count} pages")), "{text}");
    // Written again, they are the same, and nothing else is left over.
    ok(&["man", "--out", out.to_str().unwrap()]);
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), count);
    if Command::new("mandoc").arg("-V").output().is_ok_and(|output| output.status.success()) {
        let checked =
            Command::new("mandoc").args(["-T", "lint", "-W", "error"]).arg(out.join("bitsmith.1")).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    }
}

#[test]
fn completion_scripts_know_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = ok(&["completions", shell]);
        for name in commands() {
            assert!(script.contains(&name), "{shell}: no `{name}`");
        }
    }
}

#[test]
fn the_changelog_names_every_command() {
    let changelog = std::fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    for name in commands() {
        assert!(changelog.contains(&format!("`{name}")), "CHANGELOG.md does not name `{name}`");
    }
}
