//! The Python package: its wheel is built, installed into a fresh virtual environment, and run against numpy.
//!
//! numpy comes from the folder that `BITSMITH_WHEELS` names, or from `target/tools/wheels`; without it the test is skipped by name.

use crate::support::{bitsmith, libraries, run, skip, wheels};
use std::path::Path;
use std::process::Command;

#[test]
fn a_wheel_is_built_installed_and_agrees_with_numpy() {
    let works = |args: &[&str]| Command::new("python3").args(args).output().is_ok_and(|output| output.status.success());
    if !works(&["-c", "import venv, ensurepip"]) || !works(&["-m", "pip", "--version"]) {
        return skip("python-package", "needs python3 with venv and pip: the wheel is not built");
    }
    let Some(wheels) = wheels() else {
        return skip("python-package", "needs a wheel of numpy (BITSMITH_WHEELS): the wheel is not built");
    };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../python");
    let library = libraries().join("libbitsmith.so");
    // Built as any PEP 517 front end does it, with nothing from outside.
    let build = || {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "wheel", "-q", "--no-deps", "--no-index", "--disable-pip-version-check"]);
        run(pip.arg("--wheel-dir").arg(path("dist")).arg(&source).env("BITSMITH_LIBRARY", &library));
        let name = std::fs::read_dir(path("dist")).unwrap().next().unwrap().unwrap().path();
        (std::fs::read(&name).unwrap(), name)
    };
    let (first, wheel) = build();
    let name = wheel.file_name().unwrap().to_string_lossy().into_owned();
    assert!(name.starts_with("bitsmith-") && name.contains("-py3-none-"), "{name}");
    assert!(first == build().0, "the same files gave another wheel");
    run(Command::new("python3").args(["-m", "venv"]).arg(path("env")));
    let python = path("env/bin/python");
    let mut install = Command::new(&python);
    install.args(["-m", "pip", "install", "-q", "--no-index", "--disable-pip-version-check", "--find-links"]);
    run(install.arg(&wheels).arg(&wheel));
    for recipe in ["W4A16", "W8A8"] {
        let out = path(recipe).display().to_string();
        let sizes = ["--shapes", "72x256", "--kv", "f16,int8-head,int4-head", "--heads", "4/2x64", "--page", "16"];
        bitsmith(&[&["generate", "--recipe", recipe, "--no-measure", "--out", &out], &sizes[..]].concat());
    }
    // Away from the sources, so that the installed package is what is imported.
    let text = run(Command::new(&python)
        .arg(source.join("tests/test_bitsmith.py"))
        .arg(folder.path())
        .current_dir(folder.path())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env_remove("BITSMITH_LIBRARY")
        .env_remove("PYTHONPATH"));
    assert!(text.contains("\nOK"), "{text}");
}
