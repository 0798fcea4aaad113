//! Real models with the backend and without it: the same text, the same perplexity.
//!
//! Reads the optional data that the main workspace's tests read; says by name what it skipped where that is absent.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The optional data beside the checkout, or in `BITSMITH_DATA`.
fn data(test: &str) -> Option<PathBuf> {
    let root = match std::env::var_os("BITSMITH_DATA") {
        Some(root) => PathBuf::from(root),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"),
    };
    if root.is_dir() {
        return Some(root);
    }
    let required = std::env::var("BITSMITH_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|r| r == "data"),
        "{test}: no {}, and BITSMITH_REQUIRE lists data",
        root.display()
    );
    eprintln!("skipped: {test}: no {}", root.display());
    None
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_bitsmith-ggml"))
}

#[test]
fn text_and_perplexity_stay_the_same() {
    let Some(data) = data("text_and_perplexity_stay_the_same") else { return };
    let models: Vec<PathBuf> = ["q8_0", "q4_0"]
        .map(|name| data.join(format!("models/tinystories-656k-gguf/{name}.gguf")))
        .into_iter()
        .filter(|model| model.exists())
        .collect();
    assert!(!models.is_empty(), "{} has no model", data.display());
    for threads in ["1", "2"] {
        let output = program()
            .arg("compare")
            .args(&models)
            .arg("--text")
            .arg(data.join("text/exl2_tiny.utf8"))
            .args(["--threads", threads])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(text.matches("bitsmith beside ggml repack: perplexity differs by").count(), models.len(), "{text}");
    }
}

/// What cannot be done is refused with what was found.
#[test]
fn refusals_name_what_was_found() {
    for (args, expected) in [
        (&["generate", "absent.gguf"][..], "absent.gguf: no such file"),
        (&["generate", "Cargo.toml"], "Cargo.toml: llama.cpp cannot open it"),
        (&["generate", "absent.gguf", "--threads", "0"], "0 threads; accepted: 1 to 256"),
        (&["bench", "absent.gguf", "--prompt", "0"], "a prompt of 0 tokens"),
        (&["synthesize", ".", "--types", "q9_9"], "type `q9_9`; accepted: q4_0"),
        (&["compare", "absent.gguf", "--text", "absent.txt"], "absent.txt: "),
    ] {
        let output = program().args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(expected), "{args:?}: {text}");
    }
}
