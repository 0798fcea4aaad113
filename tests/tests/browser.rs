//! The page of a WebGPU bundle in headless Chromium: every kernel's numbers are within the bounds of the reference, those of
//! recipes and those of cases drawn from every format, activation, operation, ragged shape and schedule; and a wrong one is
//! seen.

use bitsmith_cli::bundle::{self, Maker, Part, Piece};
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::wgsl::WgslTarget;
use bitsmith_compiler::{Compiled, compile, lower};
use bitsmith_tests::browser::Browser;
use bitsmith_tests::cases::{self, Case};
use bitsmith_tests::cli::ok;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A bundle with a page.
fn generate(folder: &Path, device: &str, recipe: &str, shapes: &str, m: &str) {
    let out = folder.display().to_string();
    ok(&["generate", "--recipe", recipe, "--shapes", shapes, "--m", m, "--device", device, "--out", &out]);
}

/// What the page found.
fn results(browser: &Browser, folder: &Path) -> (String, Vec<Value>) {
    let text = browser.report(folder).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    (report["device"].as_str().unwrap_or_default().to_string(), report["results"].as_array().unwrap().clone())
}

#[test]
fn kernels_in_a_browser_are_within_their_bounds() {
    let Some(browser) = Browser::find("kernels_in_a_browser_are_within_their_bounds") else { return };
    let folder = tempfile::tempdir().unwrap();
    for (device, recipe, shapes, m) in [
        ("webgpu", "W4A16", "192x256,40x128", "1,3,33"),
        ("webgpu", "W8A8", "192x256,40x128", "1,3,33"),
        ("webgpu-packed", "W4A8", "192x256,40x128", "1,3,33"),
        ("webgpu-packed", "W8A8", "192x256", "1,33"),
    ] {
        let bundle = folder.path().join(format!("{device}-{recipe}"));
        generate(&bundle, device, recipe, shapes, m);
        let (adapter, results) = results(&browser, &bundle);
        let (mut compared, mut worst) = (0, 0.0f64);
        let mut matmuls = 0;
        for result in &results {
            let name = format!("{device} {recipe}: {result}");
            assert!(result["failed"].is_null() && result["timed_only"].is_null(), "{name}");
            assert_eq!(result["wrong"], 0, "{name}");
            assert!(result["compared"].as_u64().unwrap() > 0, "{name}");
            assert!(result["seconds"].as_f64().unwrap() > 0.0, "{name}");
            compared += result["compared"].as_u64().unwrap();
            worst = worst.max(result["worst_ratio"].as_f64().unwrap());
            matmuls += u64::from(result["kernel"].as_str().unwrap().starts_with("matmul"));
        }
        assert!(matmuls >= 2, "{device} {recipe}: {matmuls} matmuls in {} results", results.len());
        println!(
            "{device} {recipe} on {adapter}: {} runs, {compared} numbers, worst {worst:.3} of its bound",
            results.len()
        );
    }
}

/// Drawn cases in a browser; `BITSMITH_BROWSER_CASES` changes it.
fn count() -> u64 {
    std::env::var("BITSMITH_BROWSER_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(30)
}

#[test]
fn drawn_cases_in_a_browser_are_within_their_bounds() {
    drawn_cases("drawn_cases_in_a_browser_are_within_their_bounds", "webgpu", 0);
}

#[test]
fn drawn_cases_of_packed_products_in_a_browser_are_within_their_bounds() {
    drawn_cases("drawn_cases_of_packed_products_in_a_browser_are_within_their_bounds", "webgpu-packed", 50_000);
}

/// The page's software device fills one processor; so each device is a test of its own.
fn drawn_cases(test: &str, name: &str, first: u64) {
    let Some(browser) = Browser::find(test) else { return };
    let target = WgslTarget::named(name).unwrap();
    let mut made: Vec<(Case, Compiled)> = Vec::new();
    for seed in first..first + count() {
        let case = cases::case(seed, target.caps());
        let compiled = compile(&case.op, &case.schedule, &target).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        // Files are named after entries.
        if made.iter().all(|(_, other)| other.artifact.entry != compiled.artifact.entry) {
            made.push((case, compiled));
        }
    }
    let rows: Vec<[usize; 1]> = made.iter().map(|(case, _)| [case.m]).collect();
    let pieces: Vec<Piece<'_>> = made
        .iter()
        .zip(&rows)
        .map(|((case, made), rows)| Piece {
            op: &case.op,
            schedule: &case.schedule,
            artifact: &made.artifact,
            layers: "drawn",
            rows,
            packing: lower::packing(&case.op, &case.schedule, target.caps()),
            chosen_by: "seed",
        })
        .collect();
    let maker = Maker::Text { target: Box::new(target), name: name.into(), platform: "wgsl", extension: "wgsl" };
    let folder = tempfile::tempdir().unwrap();
    let part = Part { maker: &maker, pieces, kv: &[] };
    for (file, bytes) in bundle::files(&[part], "drawn", "cases").unwrap() {
        std::fs::write(folder.path().join(file), bytes).unwrap();
    }
    let (adapter, results) = results(&browser, folder.path());
    assert_eq!(results.len(), made.len());
    let (mut compared, mut worst) = (0, 0.0f64);
    let mut failures = Vec::new();
    for (result, (case, _)) in results.iter().zip(&made) {
        if result["wrong"] == 0 && result["compared"].as_u64() > Some(0) {
            compared += 1;
            worst = worst.max(result["worst_ratio"].as_f64().unwrap_or_default());
        } else if result["timed_only"].is_null() {
            failures.push(format!("{result}\n  {case:?}"));
        }
    }
    let shown = failures.iter().take(4).cloned().collect::<Vec<_>>().join("\n");
    assert!(failures.is_empty(), "{} of {} cases on {name}:\n{shown}", failures.len(), made.len());
    assert!(10 * compared >= 9 * made.len(), "{compared} of {} cases were compared", made.len());
    println!("{name} on {adapter}: {compared} drawn cases, worst {worst:.3} of its bound");
}

/// The kernels of a bundle: entry, operation, file.
fn kernels(bundle: &Path) -> Vec<(String, String, PathBuf)> {
    let manifest: Value = serde_json::from_slice(&std::fs::read(bundle.join("manifest.json")).unwrap()).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_string();
    let list = manifest["targets"][0]["kernels"].as_array().unwrap();
    list.iter().map(|k| (text(&k["entry"]), text(&k["op"]), bundle.join(text(&k["file"])))).collect()
}

#[test]
fn a_page_sees_wrong_sums_and_broken_shaders() {
    let Some(browser) = Browser::find("a_page_sees_wrong_sums_and_broken_shaders") else { return };
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    generate(&bundle, "webgpu", "W4A8", "64x128", "1,9");
    let mut broken = Vec::new();
    for (entry, op, file) in kernels(&bundle) {
        let text = std::fs::read_to_string(&file).unwrap();
        // Quantization of activations loses its end. In a matmul the last product, which scales a sum, is too large.
        let changed = match op.as_str() {
            "matmul" => {
                let (before, after) =
                    text.rsplit_once("fma(").unwrap_or_else(|| panic!("{entry}: no product in\n{text}"));
                format!("{before}fma(1.25f * {after}")
            }
            "quantize" => text.trim_end().trim_end_matches('}').to_string(),
            _ => continue,
        };
        std::fs::write(&file, changed).unwrap();
        broken.push((entry, op));
    }
    let (_, results) = results(&browser, &bundle);
    for result in &results {
        let entry = result["kernel"].as_str().unwrap();
        match broken.iter().find(|(name, _)| name == entry) {
            Some((_, op)) if op == "quantize" => assert!(result["failed"].is_string(), "{result}"),
            Some(_) => assert!(result["wrong"].as_u64().unwrap() > 0, "{result}"),
            None => assert_eq!(result["wrong"], 0, "{result}"),
        }
    }
    assert!(broken.len() >= 3, "{broken:?}");
}

#[test]
fn a_page_sees_wrong_weights() {
    let Some(browser) = Browser::find("a_page_sees_wrong_weights") else { return };
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    generate(&bundle, "webgpu", "W4A16", "64x128", "1,9");
    // The one input that every matmul reads, whatever its rows, is the packed weights of the one matrix.
    let page = std::fs::read_to_string(bundle.join("index.html")).unwrap();
    let list = page.lines().find_map(|line| line.strip_prefix("const kernels = ")).unwrap();
    let list: Vec<Value> = serde_json::from_str(list.trim_end_matches(';')).unwrap();
    let mut shared: Option<BTreeSet<String>> = None;
    for kernel in list.iter().filter(|kernel| kernel["op"] == "matmul") {
        for check in kernel["checks"].as_array().unwrap() {
            let inputs = check["inputs"].as_array().unwrap().iter();
            let inputs: BTreeSet<String> = inputs.filter_map(|file| Some(file.as_str()?.to_string())).collect();
            shared = Some(shared.map_or(inputs.clone(), |shared| &shared & &inputs));
        }
    }
    let shared: Vec<String> = shared.unwrap().into_iter().collect();
    assert_eq!(shared.len(), 1, "{shared:?}");
    let file = bundle.join(&shared[0]);
    let mut weights = std::fs::read(&file).unwrap();
    weights.iter_mut().for_each(|byte| *byte ^= 0x44);
    std::fs::write(&file, weights).unwrap();
    let (_, results) = results(&browser, &bundle);
    let matmuls: Vec<&Value> =
        results.iter().filter(|result| result["kernel"].as_str().unwrap().starts_with("matmul")).collect();
    assert!(matmuls.len() >= 2, "{results:?}");
    for result in matmuls {
        assert!(result["wrong"].as_u64().unwrap() > 0, "{result}");
    }
}
