//! The installed package, as a C and a C++ program see it: built by CMake in a clean folder from nothing but the package, run by
//! themselves, under valgrind and under ThreadSanitizer.

use crate::support::{bitsmith, libraries, run, tool};
use std::path::Path;
use std::process::Command;

#[test]
fn a_clean_folder_builds_and_runs_programs_from_the_installed_package() {
    if !tool("cmake") || !tool("gcc") || !tool("g++") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let prefix = folder.path().join("package");
    run(Command::new(here.join("install.sh")).arg(&prefix).arg(libraries()));
    let generate = |device: &str| -> Vec<(String, &str, &str)> {
        [("W4A16", "int4-g128", "f16"), ("W8A8", "int8-channel", "int8-token")]
            .map(|(recipe, format, activation)| {
                let out = folder.path().join(format!("{recipe}-{device}")).display().to_string();
                let sizes =
                    ["--shapes", "72x256", "--kv", "f16,int8-head,int4-head", "--heads", "4/2x64", "--page", "16"];
                let how = ["generate", "--recipe", recipe, "--device", device, "--no-measure", "--out", &out];
                bitsmith(&[&how[..], &sizes[..]].concat());
                (out, format, activation)
            })
            .into()
    };
    let bundles = generate("cpu");
    let source = folder.path().join("source");
    std::fs::create_dir(&source).unwrap();
    for name in ["CMakeLists.txt", "matmul.c", "attention.c", "threads.cpp"] {
        std::fs::copy(here.join("examples").join(name), source.join(name)).unwrap();
    }
    let build = folder.path().join("build");
    run(Command::new("cmake")
        .arg("-S")
        .arg(&source)
        .arg("-B")
        .arg(&build)
        .arg(format!("-DCMAKE_PREFIX_PATH={}", prefix.display())));
    run(Command::new("cmake").arg("--build").arg(&build));
    for (bundle, format, activation) in &bundles {
        for program in ["matmul", "matmul_static"] {
            for m in ["1", "7", "40"] {
                let args = [bundle.as_str(), format, activation, "72", "256", m];
                let text = run(Command::new(build.join(program)).args(args));
                assert!(text.contains("of its bound"), "{text}");
            }
        }
    }
    let (bundle, format, _) = &bundles[0];
    let on = |bundle: &str, kv: &str, prompt: &str| [bundle, kv, "4", "2", "64", prompt, "3"].map(String::from);
    let attention = |kv: &str, prompt: &str| on(bundle, kv, prompt);
    for kv in ["f16", "int8-head", "int4-head"] {
        for prompt in ["1", "40", "150"] {
            let text = run(Command::new(build.join("attention")).args(attention(kv, prompt)));
            assert!(text.contains("of its bound"), "{text}");
        }
    }
    let threads = [bundle.as_str(), format, "72", "256", "int8-head"];
    for program in ["threads", "threads_tsan"] {
        // The library is not instrumented, so its atomics are unknown to the sanitizer: what is checked is that nothing which a
        // program shares with it is touched without order.
        let options = "halt_on_error=1 ignore_noninstrumented_modules=1";
        let text = run(Command::new(build.join(program)).args(threads).env("TSAN_OPTIONS", options));
        assert!(text.contains(" 0 wrong") && !text.contains("WARNING"), "{text}");
    }
    // pkg-config says the same as CMake.
    if tool("pkg-config") {
        let flags = run(Command::new("pkg-config")
            .args(["--cflags", "--libs", "bitsmith"])
            .env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig")));
        let program = folder.path().join("by_hand");
        run(Command::new("gcc")
            .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic"])
            .arg(source.join("matmul.c"))
            .args(flags.split_whitespace())
            .arg("-lm")
            .arg("-o")
            .arg(&program));
        let library_path = prefix.join("lib");
        let args = [bundle.as_str(), format, "f16", "72", "256", "3"];
        run(Command::new(&program).args(args).env("LD_LIBRARY_PATH", library_path));
    }
    if tool("valgrind") {
        let valgrind = |program: &str, args: &[&str]| {
            run(Command::new("valgrind")
                .args(["--error-exitcode=9", "--leak-check=full", "--errors-for-leak-kinds=definite", "-q"])
                .arg(build.join(program))
                .args(args));
        };
        // Valgrind is a processor of its own: one without AVX-512, whatever this machine has.
        let bundles = generate(if cfg!(target_arch = "x86_64") { "x86-64-v3" } else { "cpu" });
        for kv in ["int8-head", "int4-head"] {
            let args = on(&bundles[0].0, kv, "20");
            valgrind("attention", &args.each_ref().map(String::as_str));
        }
        for (bundle, format, activation) in &bundles {
            let args = [bundle.as_str(), format, activation, "72", "256", "5"];
            valgrind("matmul", &args);
        }
    }
}
