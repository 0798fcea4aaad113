//! What the tests share: optional data, cases drawn from a seed, one function that runs a case everywhere.

pub mod browser;
pub mod cli;
pub mod hip;
pub mod kv;
pub mod machine;
pub mod ptxas;
pub mod random;
pub mod run;
pub mod stages;
pub mod vulkan;
pub mod x86;

pub use bitsmith_autotune::{cases, poison};

use bitsmith_compiler::target::cpu::CpuTarget;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The CPU levels that this machine runs, its own first.
///
/// # Panics
/// If this machine is below every level.
pub fn cpu_levels() -> Vec<CpuTarget> {
    let host = CpuTarget::host().expect("this machine has a level");
    let own = host.name().to_string();
    let others = CpuTarget::names().filter(|name| *name != own).filter_map(|name| CpuTarget::named(name).ok());
    std::iter::once(host).chain(others.filter(CpuTarget::runs_here)).collect()
}

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
    skip("data", test, &format!("{} is absent", path.display()));
    None
}

/// Says that a test was skipped and why, or fails if `BITSMITH_REQUIRE` lists what it lacks.
///
/// # Panics
/// If `BITSMITH_REQUIRE` lists `what`.
pub fn skip(what: &str, test: &str, why: &str) {
    let required = std::env::var("BITSMITH_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|r| r == what), "{test}: {why}, and BITSMITH_REQUIRE lists {what}");
    // Straight to the stream: the test harness hides what `println!` writes in a test that passes.
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {why}");
}

/// Runs an ignored test of this program in a process of its own, after `prepare` has set that process up; what it printed.
/// The test is named by the caller's `module_path!()` and its own name.
///
/// # Panics
/// If the test fails, or there is none of that name.
pub fn in_child(module: &str, test: &str, prepare: impl FnOnce(&mut Command)) -> String {
    let within = module.split_once("::").map_or(String::new(), |(_, within)| format!("{within}::"));
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", &format!("{within}{test}"), "--ignored", "--nocapture"]);
    prepare(&mut command);
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{command:?}:\n{text}");
    text
}

/// The Rust of the documentation compiles.
#[cfg(doctest)]
#[doc = include_str!("../../docs/linking.md")]
mod pages {}
