//! The command line as a user meets it: arguments in; text, files and an exit code out.

use bitsmith_compiler::format::Format;
use bitsmith_compiler::format::n16::N16;
use bitsmith_tests::{data, skip};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::cli_support::{gguf, link};
use bitsmith_tests::cli::{fails, ok, ok_json, run};

/// Every file of a folder.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(path).unwrap()))
        .collect()
}

fn generate(out: &Path, more: &[&str]) -> String {
    let out = out.display().to_string();
    let mut args = vec!["generate", "--recipe", "W4A8", "--shapes", "64x96,32x64", "--no-measure", "--out", &out];
    args.extend(more);
    ok(&args)
}

#[test]
fn the_same_request_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    generate(&a, &[]);
    generate(&b, &[]);
    let files = contents(&a);
    assert_eq!(files, contents(&b));
    assert!(files.contains_key("manifest.json") && files.contains_key("bitsmith_kernels.h"));
    // Per shape: decode, prefill, quantize, dequant.
    assert_eq!(files.keys().filter(|name| name.ends_with(".o")).count(), 8, "{:?}", files.keys());
    // Once more into the same place: the old bundle is replaced, and nothing else is left beside it.
    generate(&a, &["--m", "1"]);
    assert_eq!(contents(&a).keys().filter(|name| name.ends_with(".o")).count(), 6);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn a_manifest_says_how_to_launch_and_what_every_file_hashes_to() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    generate(&out, &[]);
    let manifest: Value = serde_json::from_slice(&fs::read(out.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["schema"], 4);
    assert_eq!(manifest["recipe"], "W4A8");
    for kernel in manifest["targets"][0]["kernels"].as_array().unwrap() {
        let bytes = fs::read(out.join(kernel["file"].as_str().unwrap())).unwrap();
        assert_eq!(kernel["sha256"], bitsmith_cli::bundle::sha256(&bytes));
        assert_eq!(kernel["args"].as_array().unwrap().last().unwrap()["name"], "m");
        let keys: Vec<&String> = kernel.as_object().unwrap().keys().collect();
        assert!(keys.is_sorted(), "{keys:?}");
        if kernel["op"] != "quantize" {
            assert_eq!(kernel["packing"], "n16");
            assert!(kernel["packed_bytes"].as_u64().unwrap() > 0);
        }
    }
    // Inspection computes the hashes again, and finds a changed byte.
    let path = out.display().to_string();
    let seen = ok_json(&["inspect", &path, "--json"]);
    assert_eq!(seen["faults"].as_array().unwrap().len(), 0);
    let (name, mut bytes) = contents(&out).into_iter().find(|(name, _)| name.ends_with(".o")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(out.join(&name), bytes).unwrap();
    fails(1, &["inspect", &path], &[&name, "SHA-256"]);
}

#[test]
fn code_for_another_machine_is_made_and_not_run() {
    let folder = tempfile::tempdir().unwrap();
    for (level, magic) in [("aarch64+i8mm", 183u16), ("x86-64-v3", 62), ("riscv64", 243)] {
        let out = folder.path().join(level).display().to_string();
        let text =
            ok(&["generate", "--recipe", "W8A8", "--shapes", "32x64", "--device", level, "--out", &out, "--m", "1"]);
        assert!(text.contains("nothing is measured"), "{text}");
        let objects: Vec<Vec<u8>> =
            contents(Path::new(&out)).into_iter().filter(|(name, _)| name.ends_with(".o")).map(|(_, b)| b).collect();
        assert!(objects.len() >= 3);
        for object in objects {
            assert_eq!(&object[..4], b"\x7fELF");
            assert_eq!(u16::from_le_bytes([object[18], object[19]]), magic, "{level}");
        }
    }
}

#[test]
fn generate_measures_and_checks_every_kernel() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle").display().to_string();
    let report = folder.path().join("report.json");
    let path = report.display().to_string();
    let args = ["generate", "--recipe", "W4A8", "--shapes", "64x96", "--m", "1,16", "--out", &out, "--report", &path];
    let text = ok(&args);
    for word in ["Prefill", "Decode", "Quantization", "64x96", "of roof"] {
        assert!(text.contains(word), "no `{word}` in\n{text}");
    }
    let report: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    let rows = report["measurements"].as_array().unwrap();
    // Prefill, decode, quantization for each M, and one decoding of weights.
    assert_eq!(rows.len(), 5);
    for row in rows {
        assert_eq!(row["check"]["wrong"], 0, "{row}");
        assert!(row["check"]["compared"].as_u64().unwrap() > 0);
        assert!(row["seconds"]["median"].as_f64().unwrap() > 0.0);
    }
    assert!(!contents(Path::new(&out)).contains_key("report.json"));
}

#[test]
fn a_c_program_links_a_bundle_and_computes_a_matmul() {
    let test = "a_c_program_links_a_bundle_and_computes_a_matmul";
    if Command::new("gcc").arg("--version").output().is_err() {
        return skip("gcc", test, "gcc is absent");
    }
    let folder = tempfile::tempdir().unwrap();
    if let Err(why) = link::link_and_run(folder.path()) {
        panic!("{why}");
    }
}

#[test]
fn requests_that_cannot_be_served_say_what_would_be() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out").display().to_string();
    let base = |recipe: &str, shapes: &str, device: &str, words: &[&str]| {
        let args = ["generate", "--recipe", recipe, "--shapes", shapes, "--device", device, "--out", &out];
        fails(2, &args, words);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "something was written for {args:?}");
    };
    base("W5A5", "64x96", "cpu", &["W5A5", "W4A16", "accepted"]);
    base("W4A16", "llama-9", "cpu", &["llama-9", "llama-3-8b", "config.json"]);
    base("W4A16", "64x96", "tpu", &["tpu", "cpu:<threads>", "aarch64+i8mm"]);
    base("W4A16", "0x96", "cpu", &["0x96", "at least 1"]);
    base("W4A16", "64x96,96x0", "cpu", &["96x0"]);
    base("W4A16", "99999999x64", "cpu", &["99999999", "16777216"]);
    base("W4A16", "99999999999999999999999x64", "cpu", &["64 bits"]);
    base("W4A16", "16777216x16777216", "cpu", &["16777216", "memory"]);
    base("W8A8", "1048576x1048576", "cpu", &["memory", "--no-measure"]);
    base("MXFP4", "64x100", "cpu", &["64x100", "100", "multiple"]);
    base("W4A16", "64x96", "cpu:0", &["cpu:0", "1 to 1024"]);
    fails(2, &["generate", "--recipe", "W4A16", "--shapes", "64x96", "--m", "0", "--out", &out], &["--m", "0"]);
    fails(2, &["bench", "--format", "int9-g32"], &["int9"]);
    fails(2, &["bench", "--activation", "int8-tensor"], &["int8-tensor", "token"]);
    fails(2, &["bench", "--n", "0"], &["N is 0"]);
    fails(2, &["bench", "--device", "aarch64"], &["aarch64", "accepted"]);
    fails(2, &["run", "matmul", "--weights", "/nowhere.gguf", "--tensor", "w"], &["/nowhere.gguf"]);
    fails(2, &["inspect", "/nowhere"], &["/nowhere"]);
    fails(2, &["check", "/nowhere.kir"], &["/nowhere.kir", "check the path"]);
    fails(2, &["pack", "--weights", "/nowhere.gguf", "--tensor", "w", "--out", &out], &["/nowhere.gguf"]);
    fails(2, &["list", "colours"], &["colours", "recipes"]);
    fails(2, &["frobnicate"], &["frobnicate"]);
}

#[test]
fn what_is_no_bundle_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("thesis");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("chapter1.txt"), "years of work").unwrap();
    let path = out.display().to_string();
    let base = ["generate", "--recipe", "W4A16", "--shapes", "64x96", "--no-measure", "--out"];
    fails(2, &[&base[..], &[&path]].concat(), &["thesis", "no bundle"]);
    fs::write(out.join("manifest.json"), "{\"name\": \"my web page\"}").unwrap();
    fails(2, &[&base[..], &[&path]].concat(), &["thesis", "no bundle"]);
    assert_eq!(contents(&out).len(), 2);
    let file = out.join("chapter1.txt").display().to_string();
    fails(2, &[&base[..], &[&file]].concat(), &["chapter1.txt", "is a file"]);
    let under = out.join("chapter1.txt").join("kernels").display().to_string();
    fails(2, &[&base[..], &[&under]].concat(), &["chapter1.txt"]);
    // A place where nobody may create a folder, not even root.
    fails(2, &[&base[..], &["/proc/bitsmith/kernels"]].concat(), &["/proc"]);
    assert_eq!(fs::read_to_string(out.join("chapter1.txt")).unwrap(), "years of work");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    // Nor is a bundle to which somebody added something.
    let bundle = folder.path().join("bundle");
    generate(&bundle, &[]);
    fs::write(bundle.join("notes.txt"), "mine").unwrap();
    fails(2, &[&base[..], &[&bundle.display().to_string()]].concat(), &["notes.txt", "manifest"]);
    assert_eq!(fs::read_to_string(bundle.join("notes.txt")).unwrap(), "mine");
}

#[test]
fn every_stage_can_be_printed() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out").display().to_string();
    let shape = ["generate", "--recipe", "W4A16", "--shapes", "32x64", "--no-measure", "--m", "1", "--out", &out];
    // A level that Cranelift emits for; the wide emitter has no stage of its own between IR and machine code.
    let base = [&shape[..], &["--device", "x86-64-v2"]].concat();
    let emit = ["--emit", "op,schedule,kir,legal,clif,asm", "--only", "matmul"];
    let text = ok(&[&base[..], &emit[..]].concat());
    for stage in ["op", "schedule", "kir", "legal", "clif", "asm"] {
        assert!(text.contains(&format!(": {stage}\n")), "{stage}");
    }
    assert!(text.contains("kernel @matmul_n32_k64") && !text.contains("=== dequant"));
    let json = ok_json(&[&base[..], &emit[..], &["--json"]].concat());
    let stages = json["stages"].as_object().unwrap();
    assert_eq!(stages.len(), 1);
    assert_eq!(stages.values().next().unwrap().as_object().unwrap().len(), 6);
    fails(2, &[&base[..], &["--emit", "kir", "--only", "nothing"]].concat(), &["nothing", "matmul_n32"]);
    fails(2, &[&base[..], &["--emit", "soup"]].concat(), &["soup", "legal"]);
    let wide = [&shape[..], &["--device", "x86-64-v4", "--only", "matmul", "--emit"]].concat();
    assert!(ok(&[&wide[..], &["asm"]].concat()).contains("zmm"));
    fails(2, &[&wide[..], &["clif"]].concat(), &["clif", "x86-64-v4"]);
}

#[test]
fn every_gguf_type_with_a_format_runs() {
    let folder = tempfile::tempdir().unwrap();
    let path = gguf::write_every_type(folder.path()).display().to_string();
    for name in gguf::NAMES {
        for activation in ["f32", "int8-token"] {
            let json = ok_json(&[
                "run",
                "matmul",
                "--weights",
                &path,
                "--tensor",
                name,
                "--m",
                "1,9",
                "--activation",
                activation,
                "--json",
            ]);
            assert_eq!(json["format"], name.to_lowercase());
            let results = json["results"].as_array().unwrap();
            assert!(results.len() == 2 && results.iter().all(|r| r["passed"] == true), "{name}: {json}");
        }
        ok(&["run", "dequant", "--weights", &path, "--tensor", name]);
    }
    let floats = ["run", "matmul", "--weights", &path, "--tensor", "floats"];
    fails(2, &floats, &["floats", "--format"]);
    let text = ok(&[&floats[..], &["--format", "int4-g32", "--m", "3"]].concat());
    assert!(text.contains("int4-g32") && text.contains("ok"), "{text}");
    ok(&["run", "quantize", "--weights", &path, "--tensor", "Q4_0", "--activation", "int8-token", "--m", "5"]);
    fails(2, &["run", "quantize", "--weights", &path, "--tensor", "Q4_0"], &["f32", "int8"]);
    fails(2, &["run", "matmul", "--weights", &path, "--tensor", "Q4_0", "--format", "int4-g32"], &["Q4_0"]);
    fails(2, &["run", "matmul", "--weights", &path, "--tensor", "Q9_9"], &["Q9_9"]);
    fails(2, &["run", "matmul", "--weights", &path, "--tensor", "row", "--format", "int4-g32"], &["row", "[N, K]"]);
    fails(2, &["run", "matmul", "--weights", &path, "--tensor", "IQ4_XS"], &["IQ4_XS", "Q4_K"]);
    // Cut short, the file is refused by name.
    let bytes = fs::read(&path).unwrap();
    let cut = folder.path().join("cut.gguf");
    fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    fails(2, &["run", "matmul", "--weights", &cut.display().to_string(), "--tensor", "Q4_0"], &["cut.gguf"]);
    fails(2, &["inspect", &cut.display().to_string()], &["cut.gguf"]);
    let seen = ok_json(&["inspect", &path, "--json"]);
    assert_eq!(seen["kind"], "gguf");
    assert!(ok(&["inspect", &path]).contains("Q4_K"));
}

#[test]
fn a_packed_tensor_is_what_the_kernels_of_a_bundle_take() {
    let folder = tempfile::tempdir().unwrap();
    let path = gguf::write_every_type(folder.path()).display().to_string();
    let bundle = folder.path().join("bundle");
    ok(&[
        "generate",
        "--recipe",
        "W4A16",
        "--shapes",
        "24x64",
        "--no-measure",
        "--m",
        "1",
        "--out",
        &bundle.display().to_string(),
    ]);
    let manifest: Value = serde_json::from_slice(&fs::read(bundle.join("manifest.json")).unwrap()).unwrap();
    let out = folder.path().join("floats.n16");
    let to = out.display().to_string();
    let base = ["pack", "--weights", &path, "--tensor"];
    let json = ok_json(&[&base[..], &["floats", "--format", "int4-g128", "--out", &to, "--json"]].concat());
    let packed = fs::read(&out).unwrap();
    assert_eq!(manifest["targets"][0]["kernels"][0]["packed_bytes"], packed.len());
    assert_eq!(manifest["targets"][0]["kernels"][0]["format"], json["format"]);
    assert_eq!(json["sha256"], bitsmith_cli::bundle::sha256(&packed));
    let floats = bitsmith_calibrate::file::ModelFile::open(&path).unwrap().tensor_f32("floats").unwrap();
    let format: Format = "int4-g128".parse().unwrap();
    assert_eq!(packed, N16::pack(&format.encode(&floats, 24, 64, None).unwrap()).unwrap().1);
    ok(&[&base[..], &["Q6_K", "--out", &to]].concat());
    fails(2, &[&base[..], &["floats", "--out", &to]].concat(), &["floats", "--format"]);
    fails(2, &[&base[..], &["Q6_K", "--out", "/nowhere/w.n16"]].concat(), &["/nowhere/w.n16", "check the path"]);
}

#[test]
fn real_models_run() {
    if let Some(path) = data("models/tinystories-656k-gguf/q4_0.gguf", "real_models_run") {
        let path = path.display().to_string();
        ok(&["run", "matmul", "--weights", &path, "--tensor", "blk.0.attn_q.weight", "--m", "1,7"]);
    }
    if let Some(path) = data("models/tinystories-656k-quant/gptq-w4-g32-sym", "real_models_run") {
        let path = path.display().to_string();
        let tensor = "model.layers.0.self_attn.q_proj.qweight";
        fails(2, &["run", "matmul", "--weights", &path, "--tensor", tensor, "--format", "int4-g32"], &["I32", "F16"]);
    }
    if let Some(path) = data("models/tinystories-656k", "real_models_run") {
        let path = path.display().to_string();
        let tensor = "model.layers.0.mlp.down_proj.weight";
        ok(&["run", "matmul", "--weights", &path, "--tensor", tensor, "--format", "int4-g32", "--m", "1,7"]);
    }
}

#[test]
fn check_names_the_line_and_column() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let good = "kernel @good(x: read align 16, y: write align 16) workgroup 1 1 1 {\n  %0: f32x4 = load x[0] align 16\n  \
                store y[0] align 16, %0\n}\n";
    let sound = write("good.kir", good);
    let text = ok(&["check", &sound]);
    assert!(text.contains("@good ok") && text.contains("2 buffers"), "{text}");
    let broken = write("syntax.kir", &good.replace("load", "lode"));
    fails(1, &["check", &sound, &broken], &["syntax.kir:2:15", "lode"]);
    let unsound = write("unsound.kir", &good.replace("align 16, %0", "align 32, %0"));
    fails(1, &["check", &unsound], &["unsound.kir:3:3", "1 fault in 1 file"]);
    let two = write("two.kir", &format!("{good}// ---\n{}", good.replace("load", "lode")));
    fails(1, &["check", &two], &["two.kir:7:15"]);
    let (code, out, _) = run(&["check", &unsound, "--json"]);
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &json[0]["faults"][0]["line"]), (1, &Value::from(3)));
    let launch =
        write("launch.json", r#"{ "grid": [1, 1, 1], "args": [{ "f32s": [1, 2, 3, 4] }, { "unwritten": 16 }] }"#);
    let json = ok_json(&["check", &sound, "--launch", &launch, "--json"]);
    let after: Vec<Vec<u8>> = serde_json::from_value(json[0]["kernels"][0]["buffers_after"].clone()).unwrap();
    assert_eq!(after[1], [1f32, 2.0, 3.0, 4.0].map(f32::to_le_bytes).concat());
    assert!(ok(&["check", &sound, "--launch", &launch]).contains("argument 1: 3f800000 40000000 40400000 40800000"));
    let short = write("short.json", r#"{ "grid": [1, 1, 1], "args": [{ "f32s": [1, 2] }, { "unwritten": 16 }] }"#);
    fails(1, &["check", &sound, "--launch", &short], &["good.kir:1:1", "@good"]);
    let wrong = write("wrong.json", r#"{ "grid": [1, 1], "args": [] }"#);
    fails(2, &["check", &sound, "--launch", &wrong], &["wrong.json"]);
    fails(2, &["check", &sound, "--caps", "z80"], &["z80", "x86-64-v3"]);
}

#[test]
fn bench_reports_both_phases_and_the_roofs() {
    let json = ok_json(&[
        "bench",
        "--n",
        "64",
        "--k",
        "128",
        "--m",
        "1,16",
        "--threads",
        "1,2",
        "--cycle-mb",
        "1",
        "--budget-ms",
        "5",
        "--activation-quantization",
        "--json",
    ]);
    let rows = json["measurements"].as_array().unwrap();
    assert_eq!(rows.len(), 4);
    assert!(rows.iter().all(|row| row["check"]["wrong"] == 0), "{json}");
    assert_eq!(rows[0]["phase"], "decode");
    assert_eq!(rows[1]["phase"], "prefill");
    assert!(json["roofs"][0]["read_gbs"].as_f64().unwrap() > 0.0);
    fails(2, &["bench", "--activation", "f16", "--activation-quantization"], &["--activation-quantization", "int8"]);
}

#[test]
fn lists_help_and_completions() {
    for what in ["formats", "recipes", "shapes", "devices", "targets", "families", "activations"] {
        assert!(ok(&["list", what]).lines().count() >= 2, "{what}");
        assert!(!ok_json(&["list", what, "--json"]).as_array().unwrap().is_empty(), "{what}");
    }
    assert!(ok(&["--help"]).contains("generate"));
    assert!(ok(&["--version"]).contains("bitsmith"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(ok(&["completions", shell]).contains("generate"), "{shell}");
    }
    assert!(ok_json(&["doctor", "--json"])["tools"].as_array().unwrap().len() >= 6);
    assert!(ok(&["doctor"]).contains("ptxas"));
}

#[test]
fn a_roofline_is_measured_and_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (svg, bench) = (file("roofline.svg"), file("bench.json"));
    let measured = ok(&[
        "bench",
        "--n",
        "64",
        "--k",
        "64",
        "--m",
        "1",
        "--threads",
        "1",
        "--cycle-mb",
        "0",
        "--budget-ms",
        "1",
        "--json",
    ]);
    fs::write(&bench, &measured).unwrap();
    let found =
        ok_json(&["roofline", "--threads", "1", "--footprint-mb", "1", "--svg", &svg, "--points", &bench, "--json"]);
    assert!(found["roofs"][0]["read_gbs"].as_f64().unwrap() > 0.0);
    let picture = fs::read_to_string(&svg).unwrap();
    assert!(picture.starts_with("<svg") && picture.contains("M=1, 1 threads"), "{picture}");
    fs::write(&bench, "[]").unwrap();
    let args = ["roofline", "--footprint-mb", "1", "--svg", &svg, "--points", &bench];
    fails(2, &args, &["bench.json", "bitsmith bench --json"]);
}
