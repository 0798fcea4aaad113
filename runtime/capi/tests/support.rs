//! What the tests of the packages share.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a command that must succeed; its output.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    text
}

/// Whether a tool is there; a missing one is named, or is a failure where `BITSMITH_REQUIRE` asks for it.
pub fn tool(name: &str) -> bool {
    if Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success()) {
        return true;
    }
    skip(name, "was not found: the installed package is not built or not run under it");
    false
}

/// The folder where Cargo put the libraries.
pub fn libraries() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let deps = test.parent().unwrap();
    let found = [deps, deps.parent().unwrap()].into_iter().find(|folder| folder.join("libbitsmith.so").is_file());
    found.expect("libbitsmith.so lies beside this test").to_path_buf()
}

/// Says what is not there and so is not tested, or fails where `BITSMITH_REQUIRE` asks for it.
pub fn skip(name: &str, why: &str) {
    let required = std::env::var("BITSMITH_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|wanted| wanted == name), "{name} is required: {why}");
    eprintln!("skipped: {name} {why}");
}

/// Runs the command line, which must succeed.
pub fn bitsmith(args: &[&str]) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let args = std::iter::once("bitsmith").chain(args.iter().copied()).map(std::ffi::OsString::from);
    let code = bitsmith_cli::run(args, &mut out, &mut err);
    assert_eq!(code, 0, "{}", String::from_utf8_lossy(&err));
}

/// A folder with a wheel of numpy for this machine's Python.
pub fn wheels() -> Option<PathBuf> {
    let folder = match std::env::var_os("BITSMITH_WHEELS") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/wheels"),
    };
    let mut names = std::fs::read_dir(&folder).ok()?.filter_map(|entry| Some(entry.ok()?.file_name()));
    names.any(|name| name.to_string_lossy().starts_with("numpy-")).then_some(folder)
}
