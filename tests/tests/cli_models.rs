//! The commands for models as a new user meets them, in the order of `calibrate/README.md`, on the small model beside it.

use bitsmith_tests::cli::{fails, ok, ok_json};
use std::path::Path;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../calibrate/model");

#[test]
fn a_model_goes_from_a_pick_to_a_report_and_to_other_tools() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name).display().to_string();
    let text = format!("{MODEL}/text.txt");
    let small = ["--windows", "4", "--window", "64"];

    let inspected = ok(&["inspect", MODEL]);
    assert!(inspected.contains("model.layers.1.mlp.down_proj.weight"), "{inspected}");

    let recipe = place("recipe.toml");
    let picked = ok_json(&[
        "pick",
        "--model",
        &format!("{MODEL}/config.json"),
        "--device",
        "epyc-9654",
        "--goal",
        "latency",
        "--write",
        &recipe,
        "--json",
    ]);
    let command = picked["commands"][0].as_str().unwrap();
    assert!(command.contains(&format!("quantize {MODEL} ")), "{command}");
    assert!(
        picked["picks"][0]["fits"].as_bool().unwrap() && !picked["picks"][0]["reason"].as_str().unwrap().is_empty()
    );

    // Statistics; the second run finds that nothing is left to do.
    let statistics = place("statistics");
    let calibrate =
        ["calibrate", MODEL, "--text", &text, "--out", &statistics, "--samples", "8", "--length", "64", "--json"];
    let first = ok_json(&calibrate);
    assert_eq!((first["manifest"]["done"].as_u64(), first["layers_now"].as_u64()), (Some(2), Some(2)));
    assert_eq!(ok_json(&calibrate)["layers_now"].as_u64(), Some(0));

    // The recipe that was picked, then one with groups.
    let at = |recipe: &str, out: &str, more: &[&str]| {
        let mut args = vec!["quantize", MODEL, "--recipe", recipe, "--out", out, "--text", &text];
        args.extend(["--samples", "16", "--length", "64"].iter().chain(&small).chain(more));
        ok_json(&[&args[..], &["--json"]].concat())
    };
    let done = at(&recipe, &place("picked"), &[]);
    assert!(done["comparison"]["increase"].as_f64().unwrap().abs() < 0.02, "{}", done["comparison"]);
    let quantized = place("w4");
    let done = at("W4A16", &quantized, &[]);
    let (before, after) = (done["matrices_before"].as_u64().unwrap(), done["matrices_after"].as_u64().unwrap());
    assert!(3 * after < before, "{before} bytes before, {after} now");
    assert!(done["layers"].as_array().unwrap().iter().all(|layer| layer["method"] == "gptq"));
    let written = std::fs::read_to_string(Path::new(&quantized).join("config.json")).unwrap();
    assert!(written.contains("pack-quantized") && written.contains("\"symmetric\": true"), "{written}");
    // Nothing that is there is replaced, and no layer is quantized twice.
    fails(2, &["quantize", MODEL, "--recipe", "W8A16", "--out", &quantized], &["there already"]);
    fails(
        2,
        &["quantize", &quantized, "--recipe", "W8A16", "--out", &place("twice")],
        &["q_proj", "down_proj", "already"],
    );

    let mut eval = vec!["eval", &quantized, "--text", &text, "--reference", MODEL, "--via", "kernels", "--json"];
    eval.extend(small);
    let found = ok_json(&eval);
    let (again, first) = (&found["comparison"]["model"]["perplexity"], &done["comparison"]["model"]["perplexity"]);
    assert!((again.as_f64().unwrap() / first.as_f64().unwrap() - 1.0).abs() < 1e-4, "{again} after {first}");

    // Keys and values through the kernels of the cache, and the same codes dequantized.
    let kv = |more: &[&str]| {
        let mut args = vec!["eval", MODEL, "--text", &text, "--reference", MODEL, "--json"];
        args.extend(small.iter().chain(more));
        ok_json(&args)["comparison"]["model"]["perplexity"].as_f64().unwrap()
    };
    let (real, exact) = (kv(&["--kv", "int4-kivi"]), kv(&["--kv", "int4-kivi", "--kv-via", "dequantized"]));
    assert!((real / exact - 1.0).abs() < 1e-3 && real != kv(&[]), "{real}, dequantized {exact}");
    let eval_kv = ["eval", MODEL, "--text", &text, "--kv", "fp8-head"];
    fails(2, &eval_kv, &["calibrate --kv fp8e4m3-head"]);
    fails(
        2,
        &["calibrate", MODEL, "--text", &text, "--out", &place("no"), "--kv", "int8-token"],
        &["makes these scales itself"],
    );
    let with_scales: Vec<&str> = calibrate.iter().copied().chain(["--kv", "fp8-head"]).collect();
    assert_eq!(ok_json(&with_scales)["kv_scales"]["layers"].as_array().unwrap().len(), 2);
    let scales = Path::new(&statistics).join("kv_scales.json").display().to_string();
    assert!(kv(&["--kv", "fp8-head", "--kv-scales", &scales]) > 1.0);
    fails(
        2,
        &["eval", MODEL, "--text", &text, "--kv", "int8-head", "--kv-scales", &scales],
        &["fp8e4m3-head", "int8-head"],
    );
    fails(2, &["eval", MODEL, "--text", &text, "--kv", "int9"], &["`int9` is no code"]);

    let report = place("report");
    let probes = format!("{MODEL}/probes");
    let mut args = vec!["report", &quantized, "--reference", MODEL, "--text", &text, "--out", &report];
    args.extend(["--probes", &probes, "--pairs", "10"].iter().chain(&small));
    let said = ok(&args);
    assert!(said.contains("tokens per second"), "{said}");
    for file in ["report.json", "report.md", "report.html"] {
        assert!(Path::new(&report).join(file).is_file(), "{file}");
    }

    for (format, out) in [("gptq", "gptq"), ("awq", "awq"), ("packed", "packed"), ("compressed-tensors", "again")] {
        let out = place(out);
        let said = ok(&["export", &quantized, "--format", format, "--out", &out]);
        assert!(said.contains("read back with the same numbers"), "{said}");
        let mut eval = vec!["eval", &out, "--text", &text, "--json"];
        eval.extend(small);
        let perplexity = ok_json(&eval)["perplexity"]["perplexity"].as_f64().unwrap();
        assert!((perplexity / again.as_f64().unwrap() - 1.0).abs() < 1e-3, "{format}: {perplexity}");
    }
    fails(2, &["export", &quantized, "--format", "gguf", "--out", &place("model.gguf")], &["q_proj", "q4_k"]);
}

#[test]
fn faults_come_before_any_work_and_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let (recipe, out) = (folder.path().join("r.toml"), folder.path().join("out"));
    let (recipe, out) = (recipe.display().to_string(), out.display().to_string());
    // Rows of 128 do not fit groups of 80; nor do those of the down projections, of 256.
    std::fs::write(&recipe, "weight = \"int8-g80\"\n").unwrap();
    let args = ["quantize", MODEL, "--recipe", &recipe, "--out", &out];
    fails(2, &args, &["layers.0.self_attn.q_proj", "layers.1.mlp.down_proj", "--on-indivisible"]);
    assert!(!Path::new(&out).exists());
    for (how, note) in [("skip", "left in floats"), ("pad", "columns of zeros"), ("smaller-group", "groups of")] {
        let out = folder.path().join(how).display().to_string();
        let mut args = vec!["quantize", MODEL, "--recipe", &recipe, "--out", &out, "--on-indivisible", how];
        args.extend(["--format", "packed"]);
        let (code, said, notes) = bitsmith_tests::cli::run(&args);
        assert_eq!(code, 0, "{how}: {said}{notes}");
        assert!(notes.contains(note), "{how}: {notes}");
        assert!(Path::new(&out).is_dir());
    }
    let check = ok(&["quantize", MODEL, "--recipe", "W4A16", "--out", &out, "--check"]);
    assert!(check.contains("no fault") && !Path::new(&out).exists(), "{check}");
}
