//! Bundles of several targets: made twice the same, explained, compared, verified, run by the runtime alone.

use bitsmith_runtime::bundle::{Bundle, Kernels, Want};
use bitsmith_tests::cli::{fails, ok, ok_json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const TARGETS: &str = "x86-64-v2,x86-64-v3,sm_90a,gfx942,vulkan";

fn generate(out: &Path, recipe: &str, devices: &str) -> String {
    let out = out.display().to_string();
    ok(&[
        "generate",
        "--recipe",
        recipe,
        "--shapes",
        "48x64,32x96",
        "--no-measure",
        "--device",
        devices,
        "--out",
        &out,
    ]);
    out
}

#[test]
fn a_fat_bundle_is_the_same_from_any_folder_and_runs_where_it_can() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b): (PathBuf, PathBuf) = (folder.path().join("a/kernels"), folder.path().join("somewhere/else/kernels"));
    let (first, second) = (generate(&a, "W4A16", TARGETS), generate(&b, "W4A16", TARGETS));
    let text = ok(&["diff", &first, &second]);
    assert!(text.starts_with("identical"), "{text}");
    let text = ok(&["inspect", &first]);
    for word in ["x86-64-v2", "sm_90a", "mi300x", "needs", "planes", "every file has the hash"] {
        assert!(text.contains(word), "no `{word}` in\n{text}");
    }
    for (target, extension) in [("x86-64-v3", "o"), ("sm_90a", "ptx"), ("mi300x", "hip"), ("vulkan", "spv")] {
        let files = std::fs::read_dir(a.join(target)).unwrap().map(|entry| entry.unwrap().path());
        assert!(files.filter(|path| path.extension().is_some_and(|e| e == extension)).count() >= 4, "{target}");
    }
    // The runtime takes the richest level that this processor runs, says why, and computes what it should.
    let seen = ok_json(&["verify", &first, "--device", "cpu:2", "--m", "1,5,33", "--json"]);
    assert!(seen["target"].as_str().unwrap().contains("the best that cpu"), "{seen}");
    // Two matmuls with three numbers of rows, and two decodings of weights.
    assert!(seen["results"].as_array().unwrap().len() >= 8, "{seen}");
    assert!(seen["results"].as_array().unwrap().iter().all(|row| row["check"]["wrong"] == 0));
    assert!(seen["faults"].as_array().unwrap().is_empty());
    // A bundle of several targets is replaced as a whole, and a stranger in it protects it.
    generate(&a, "W4A16", "x86-64-v3");
    assert!(!a.join("sm_90a").exists());
    std::fs::write(b.join("sm_90a/notes.txt"), "mine").unwrap();
    let args = ["generate", "--recipe", "W4A16", "--shapes", "32x64", "--device", "x86-64-v3", "--out", &second];
    fails(2, &args, &["notes.txt"]);
}

#[test]
fn a_bundle_carries_the_kernels_of_kv_caches() {
    let folder = tempfile::tempdir().unwrap();
    let make = |name: &str, extra: &[&str]| {
        let out = folder.path().join(name).display().to_string();
        let args = ["generate", "--recipe", "W4A16", "--shapes", "32x64", "--no-measure", "--out", &out];
        ok(&[&args, extra].concat());
        out
    };
    let formats = "f16,int8-head,int4-token-asym,fp8e4m3-group32,int4-channel-asym.int4-token-asym+64";
    let sizes = ["--kv", formats, "--heads", "6/2x64", "--page", "32"];
    let (first, second) = (make("a", &sizes), make("b", &sizes));
    assert!(ok(&["diff", &first, &second]).starts_with("identical"));
    let seen = ok_json(&["verify", &first, "--device", "cpu:2", "--json"]);
    let caches = seen["caches"].as_array().unwrap();
    assert_eq!(caches.len(), 5, "{seen}");
    for cache in caches {
        assert!(cache["wrong"] == 0 && cache["stored"].as_u64().unwrap() > 10_000, "{cache}");
        assert!(cache["compared"].as_u64().unwrap() > 500 && cache["worst_ratio"].as_f64().unwrap() <= 1.0, "{cache}");
    }
    assert!(ok(&["inspect", &first]).contains("attend, int8-head, 6 heads over 2 of 64, page 32, queries 1, f16"));
    // Rotated keys, brain floats, other devices.
    let rotated = make("c", &["--kv", "int8-token", "--heads", "2/1x64", "--rope", "32i", "--result", "bf16"]);
    let seen = ok_json(&["verify", &rotated, "--device", "cpu", "--json"]);
    let cache = &seen["caches"][0];
    assert!(cache["cache"].as_str().unwrap().ends_with("bf16, rotated") && cache["wrong"] == 0, "{seen}");
    assert!(cache["worst_ratio"].as_f64().unwrap() <= 1.0, "{seen}");
    let fat = make("d", &["--kv", "int8-head", "--heads", "2/1x64", "--device", TARGETS]);
    let text = ok(&["diff", &fat, &make("e", &["--kv", "int8-head", "--heads", "2/1x64", "--device", TARGETS])]);
    assert!(text.starts_with("identical"), "{text}");
    let (code, text, _) = bitsmith_tests::cli::run(&["diff", &first, &fat, "--json"]);
    assert!(code == 1 && text.contains("sm_90a/attend"), "{text}");
    // A changed file is found before anything runs; what does not fit is refused.
    let bundle = Bundle::open(Path::new(&first)).unwrap();
    let file = &bundle.manifest().targets[0].kv[0].object.file;
    let path = Path::new(&first).join(file);
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    fails(1, &["verify", &first, "--device", "cpu"], &[file.as_str(), "SHA-256"]);
    let args = ["generate", "--recipe", "W4A16", "--shapes", "32x64", "--no-measure", "--out", &second, "--kv"];
    fails(2, &[&args[..], &["int8-head"]].concat(), &["--heads"]);
    fails(2, &[&args[..], &["int8-head", "--heads", "3/2x64"]].concat(), &["3 query heads over 2 KV heads"]);
    fails(2, &[&args[..], &["int8-head", "--heads", "2/2x60"]].concat(), &["head_dim is 60"]);
    fails(2, &[&args[..], &["int9", "--heads", "2/2x64"]].concat(), &["int9"]);
    fails(2, &[&args[..], &["int8-head", "--heads", "2x2"]].concat(), &["32/8x128"]);
}

fn parsed(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn differences_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let first = generate(&folder.path().join("a"), "W4A16", "x86-64-v3");
    let second = generate(&folder.path().join("b"), "W8A16", "x86-64-v3,sm_90a");
    fails(1, &["diff", &first, &second], &["differ"]);
    let seen = parsed(&bitsmith_tests::cli::run(&["diff", &first, &second, "--json"]).1);
    assert_eq!(seen["identical"], false);
    assert!(seen["fields"][0].as_str().unwrap().contains("W4A16 -> W8A16"), "{seen}");
    assert!(!seen["only_in_first"].as_array().unwrap().is_empty());
    assert!(
        seen["only_in_second"].as_array().unwrap().iter().any(|name| name.as_str().unwrap().starts_with("sm_90a/"))
    );
}

#[test]
fn what_was_changed_is_refused_before_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let path = generate(&folder.path().join("bundle"), "W4A8", "cpu");
    let bundle = Bundle::open(Path::new(&path)).unwrap();
    let kernel = bundle.manifest().targets[0].kernels[0].object.file.clone();
    let file = Path::new(&path).join(&kernel);
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&file, &bytes).unwrap();
    fails(1, &["verify", &path, "--device", "cpu"], &[&kernel, "SHA-256"]);
    // The manifest itself: a size that a launch would believe.
    let manifest = Path::new(&path).join("manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replacen("\"k\": 64", "\"k\": 32", 1)).unwrap();
    fails(2, &["inspect", &path], &["digest"]);
    fails(2, &["verify", &path], &["digest"]);
}

#[test]
fn the_runtime_says_why_and_asks_for_more_where_it_must() {
    let folder = tempfile::tempdir().unwrap();
    let path = generate(&folder.path().join("bundle"), "W4A8", TARGETS);
    let bundle = Arc::new(Bundle::open(Path::new(&path)).unwrap());
    let kernels = Kernels::new(bundle.clone(), bitsmith_runtime::open("cpu:1").unwrap()).unwrap();
    assert!(kernels.target().target.starts_with("x86-64-v"), "{}", kernels.reason());
    let want = Want { op: "matmul", n: Some(48), ..Want::default() };
    let (few, many) = (kernels.choose(&want, 2).unwrap(), kernels.choose(&want, 100).unwrap());
    assert!(few.reason.contains("made for 1 rows, nearest to m = 2 of 1, 128"), "{}", few.reason);
    assert!(many.reason.contains("made for 128 rows"), "{}", many.reason);
    assert_ne!(few.index, many.index);
    let vague = kernels.choose(&Want { op: "matmul", ..Want::default() }, 1).unwrap_err().to_string();
    assert!(vague.contains("say more"), "{vague}");
    let absent = kernels.choose(&Want { op: "matmul", n: Some(7), ..Want::default() }, 1).unwrap_err().to_string();
    assert!(absent.contains("matmul n=7") && absent.contains("48x64"), "{absent}");
    // Short buffers and wrong numbers of them are named, and nothing runs.
    let kernel = kernels.kernel(few.index).unwrap();
    let buffers: Vec<_> =
        kernel.buffers().map(|arg| kernels.device().allocate(arg.bytes_for(2).unwrap() - 1)).collect();
    let buffers: Vec<_> = buffers.into_iter().map(Result::unwrap).collect();
    let views: Vec<_> = buffers.iter().map(bitsmith_runtime::Buffer::view).collect();
    let fault = kernel.launch(2, &views).unwrap_err().to_string();
    assert!(fault.contains("buffer `x` has") && fault.contains("for 2 rows"), "{fault}");
    assert!(kernel.launch(2, &views[1..]).unwrap_err().to_string().contains("takes"));
    assert!(kernel.launch(0, &views).is_err());
    // A bundle without code for this machine says what it holds.
    let other = generate(&folder.path().join("other"), "W4A8", "sm_90a");
    let bundle = Arc::new(Bundle::open(Path::new(&other)).unwrap());
    let refused = Kernels::new(bundle, bitsmith_runtime::open("cpu:1").unwrap()).unwrap_err().to_string();
    assert!(refused.contains("sm_90a") && refused.contains("generate for that device"), "{refused}");
}
