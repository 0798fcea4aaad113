//! The command line with Vulkan devices: bundles of SPIR-V for any machine, and `run` and `bench` where a driver is found.

use crate::cli_support::gguf;
use bitsmith_runtime::vulkan::{Options, VulkanDevice};
use bitsmith_tests::cli::{fails, ok, ok_json};
use bitsmith_tests::skip;
use bitsmith_tests::vulkan::SpirvVal;
use std::fs;
use std::time::Instant;

/// Whether a Vulkan device is here; says by name what is skipped where there is none.
fn vulkan(test: &str) -> bool {
    match VulkanDevice::open(Options::default()) {
        Ok(_) => true,
        Err(error) => {
            skip("vulkan", test, &error.to_string());
            false
        }
    }
}

#[test]
fn a_model_is_generated_for_vulkan_in_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    let out_text = out.display().to_string();
    let start = Instant::now();
    let model = ["generate", "--recipe", "W4A16", "--shapes", "llama-3-8b", "--device", "vulkan", "--out", &out_text];
    let summary = ok_json(&[&model[..], &["--json"]].concat());
    let seconds = start.elapsed().as_secs_f64();
    println!("{} kernels in {seconds:.2} s", summary["kernels"].as_array().unwrap().len());
    assert!(seconds < 10.0, "{seconds} s");
    assert_eq!(summary["targets"][0], "vulkan");
    let modules: Vec<_> = fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "spv"))
        .collect();
    assert_eq!(modules.len(), summary["kernels"].as_array().unwrap().len());
    if let Some(validator) = SpirvVal::find("a_model_is_generated_for_vulkan_in_seconds") {
        for path in &modules {
            validator.check(&fs::read(path).unwrap()).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
        }
    }
    // The same bytes again, and what `inspect` hashes.
    let again = folder.path().join("again");
    let again_text = again.display().to_string();
    ok(&["generate", "--recipe", "W4A16", "--shapes", "llama-3-8b", "--device", "vulkan", "--out", &again_text]);
    for path in &modules {
        assert_eq!(fs::read(path).unwrap(), fs::read(again.join(path.file_name().unwrap())).unwrap());
    }
    ok(&["inspect", &out_text]);
}

#[test]
fn stages_of_spirv_and_wgsl_are_shown() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle").display().to_string();
    let shape = ["generate", "--recipe", "W4A8", "--shapes", "32x64", "--m", "1", "--no-measure", "--out", &out];
    let with = |device: &str, stages: &str| {
        ok(&[&shape[..], &["--device", device, "--emit", stages, "--only", "matmul"]].concat())
    };
    let text = with("vulkan-lavapipe@4", "kir,legal,spirv");
    for word in ["OpEntryPoint GLCompute", "OpSUDot", "OpCapability DotProductInput4x8BitPacked", "kernel"] {
        assert!(text.contains(word), "no `{word}` in\n{text}");
    }
    let many = ["generate", "--recipe", "W4A16", "--shapes", "64x128", "--m", "64", "--no-measure", "--out", &out];
    let text = ok(&[&many[..], &["--device", "vulkan-coop", "--emit", "kir,spirv", "--only", "matmul"]].concat());
    for word in
        ["matrix_multiply m16n16k16", "_cooperative_", "OpCooperativeMatrixMulAddKHR", "OpMemoryModel Logical Vulkan"]
    {
        assert!(text.contains(word), "no `{word}` in\n{text}");
    }
    let text = with("webgpu-packed", "wgsl,msl,hlsl");
    for word in ["@compute @workgroup_size", "dot4I8Packed", "kernel void", "[numthreads("] {
        assert!(text.contains(word), "no `{word}` in\n{text}");
    }
    let device = |device: &'static str| [&shape[..], &["--device", device, "--emit"]].concat();
    fails(2, &[&device("webgpu")[..], &["spirv"]].concat(), &["stage `spirv` of target webgpu"]);
    fails(2, &[&device("vulkan@3")[..], &["spirv"]].concat(), &["vulkan@3", "1, 2, 4"]);
    fails(2, &[&device("vulkan-nobody")[..], &["spirv"]].concat(), &["vulkan-nobody", "vulkan-nvidia", "webgpu"]);
}

#[test]
fn tensors_run_on_vulkan() {
    if !vulkan("tensors_run_on_vulkan") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = gguf::write_every_type(folder.path()).display().to_string();
    for tensor in gguf::NAMES.iter().step_by(3) {
        let run = ["run", "matmul", "--weights", &file, "--tensor", tensor, "--m", "1,9", "--device", "vulkan:0"];
        let summary = ok_json(&[&run[..], &["--json"]].concat());
        let results = summary["results"].as_array().unwrap();
        assert_eq!(results.len(), 2, "{summary}");
        for result in results {
            assert_eq!(result["passed"], true, "{tensor}: {result}");
            assert!(result["check"]["compared"].as_u64().unwrap() > 0, "{tensor}: {result}");
        }
    }
    let run = ["run", "matmul", "--weights", &file, "--tensor", "Q4_0", "--device", "vulkan:99"];
    fails(2, &run, &["vulkan:99", "accepted: vulkan:0"]);
}

#[test]
fn matmuls_are_timed_on_vulkan() {
    if !vulkan("matmuls_are_timed_on_vulkan") {
        return;
    }
    let bench = ["bench", "--device", "vulkan:0", "-n", "256", "-k", "512", "--m", "1,9", "--cycle-mb", "1"];
    let summary = ok_json(&[&bench[..], &["--budget-ms", "20", "--json"]].concat());
    let rows = summary["measurements"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for row in rows {
        assert!(row["seconds"]["median"].as_f64().unwrap() > 0.0, "{row}");
        assert_eq!(row["check"]["wrong"], 0, "{row}");
        assert!(row["fraction"].is_null(), "the host's roofs are no roofs of this device: {row}");
    }
    let text = ok(&[&bench[..], &["--budget-ms", "20"]].concat());
    assert!(text.contains("ok") && text.contains("vulkan"), "{text}");
}
