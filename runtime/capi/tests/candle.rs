//! The example engine on candle is built from its own workspace against `libbitsmith`, and runs.
//!
//! Its crates are not this workspace's: where they have not been fetched, the test is skipped by name.

mod support;

use std::path::Path;
use std::process::Command;
use support::{bitsmith, libraries, run, skip};

#[test]
fn a_feed_forward_block_on_candle_agrees_with_candles_own_matmuls() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = root.join("runtime/candle/Cargo.toml");
    let command = |word: &str| {
        let mut command = Command::new(&cargo);
        command.args([word, "--offline", "--locked", "--manifest-path"]).arg(&manifest);
        command
    };
    if !command("tree").output().is_ok_and(|output| output.status.success()) {
        return skip("candle", "needs its crates (cargo fetch --manifest-path runtime/candle/Cargo.toml)");
    }
    let target = libraries().ancestors().find(|folder| folder.ends_with("target")).map(|folder| folder.join("candle"));
    let target = target.unwrap_or_else(|| root.join("target/candle"));
    run(command("build").arg("-q").arg("--target-dir").arg(&target).env("BITSMITH_LIB_DIR", libraries()));
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("kernels").display().to_string();
    bitsmith(&["generate", "--recipe", "W4A16", "--shapes", "384x256,256x384", "--no-measure", "--out", &out]);
    let text = run(Command::new(target.join("debug/bitsmith-candle")).args([&out, "int4-g128", "256", "384"]));
    assert!(text.contains("40 tokens") && text.contains("agree"), "{text}");
}
