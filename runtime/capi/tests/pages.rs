//! `docs/linking.md` and the Python package's README are true: their lines run as they stand, in order, in a clean folder that has
//! nothing of this project but `runtime`, beside the libraries that this test was built with.

use crate::support::{bitsmith, libraries, run, skip, tool, wheels};
use std::path::{Path, PathBuf};
use std::process::Command;

const PYTHON: &str = "runtime/python/README.md";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The blocks of a page in one language.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let text = std::fs::read_to_string(root().join(page)).unwrap();
    let fence = format!("```{language}\n");
    text.split(fence.as_str()).skip(1).map(|rest| rest.split("```").next().unwrap().to_string()).collect()
}

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Whether a block can run here: what it lacks is named, or is a failure where it is required.
fn possible(block: &str) -> bool {
    let python =
        |args: &[&str]| Command::new("python3").args(args).output().is_ok_and(|output| output.status.success());
    if block.contains("cmake") {
        return ["cmake", "gcc", "g++"].into_iter().all(tool);
    }
    if block.contains("python3") {
        let found =
            python(&["-c", "import venv, ensurepip"]) && python(&["-m", "pip", "--version"]) && wheels().is_some();
        if !found {
            skip(
                "python-package",
                "needs python3 with venv and pip, and a wheel of numpy: the page's lines are not run",
            );
        }
        return found;
    }
    if block.contains("candle") {
        let mut tree = cargo();
        tree.args(["tree", "--offline", "--locked", "--manifest-path"]).arg(root().join("runtime/candle/Cargo.toml"));
        let found = tree.output().is_ok_and(|output| output.status.success());
        if !found {
            skip("candle", "needs its crates (cargo fetch --manifest-path runtime/candle/Cargo.toml)");
        }
        return found;
    }
    true
}

#[test]
fn every_line_of_the_linking_page_runs() {
    let folder = tempfile::tempdir().unwrap();
    // The example on candle is copied, so that what is built of it stays out of the sources.
    let (sources, here) = (root().join("runtime").canonicalize().unwrap(), folder.path().join("runtime"));
    std::fs::create_dir_all(here.join("candle")).unwrap();
    for name in ["capi", "python", "candle/Cargo.toml", "candle/Cargo.lock", "candle/build.rs", "candle/src"] {
        std::os::unix::fs::symlink(sources.join(name), here.join(name)).unwrap();
    }
    let blocks = blocks("docs/linking.md", "sh");
    assert!(blocks.len() >= 3);
    for block in blocks {
        if !possible(&block) {
            continue;
        }
        for line in block.lines() {
            // What built this test has built the libraries too.
            if line == "cargo build --release --workspace" {
                continue;
            }
            if let Some(rest) = line.strip_prefix("bitsmith ") {
                // It runs in this process, whose folder is another one.
                let (rest, out) = rest.split_once(" --out ").expect("a line with an output folder");
                let out = folder.path().join(out).display().to_string();
                bitsmith(&rest.split_whitespace().chain(["--out", &out]).collect::<Vec<_>>());
                continue;
            }
            let mut shell = Command::new("sh");
            shell
                .current_dir(folder.path())
                .args(["-ec", line])
                .env("BITSMITH_LIB_DIR", libraries())
                .env("CARGO_NET_OFFLINE", "true");
            // The page runs what Cargo puts beside the example.
            shell.env_remove("CARGO_TARGET_DIR");
            shell.env("BITSMITH_LIBRARY", libraries().join("libbitsmith.so")).env("PIP_NO_INDEX", "1");
            if let Some(wheels) = wheels() {
                shell.env("PIP_FIND_LINKS", wheels);
            }
            let text = run(&mut shell);
            if line.starts_with("build/") {
                assert!(text.contains("of its bound"), "{line}: {text}");
            } else if line.contains("bitsmith-candle ") {
                assert!(text.contains("40 tokens") && text.contains("agree"), "{line}: {text}");
            }
        }
    }
    // The environment of the page has the package: its own README's lines run in it, on the page's bundle.
    let python = folder.path().join("env/bin/python");
    if !python.exists() || !folder.path().join("kernels").exists() {
        return;
    }
    let lines = self::blocks(PYTHON, "python").concat();
    let tokens = "import numpy\nq, k, v = (numpy.ones((5, n, 64), 'float16') for n in (4, 2, 2))\n";
    let checks = "assert y.shape == (5, 4, 64) and abs(y - 1).max() < 0.02, y\nprint('attended')\n";
    let text = run(Command::new(python)
        .arg("-c")
        .arg(format!("{tokens}{lines}{checks}"))
        .env_remove("PYTHONPATH")
        .current_dir(folder.path()));
    assert!(text.contains("attended"), "{text}");
}
