//! Commands in the documentation are true: each line of a page runs, in order, in a clean folder. (`linking.md` runs in
//! `runtime/capi/tests/pages.rs`, beside the libraries.)

use bitsmith_tests::cli::ok;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

fn page(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name)).unwrap()
}

/// The lines of a page's `sh` blocks.
fn commands(text: &str) -> Vec<&str> {
    text.split("```sh\n").skip(1).flat_map(|rest| rest.split("```").next().unwrap_or_default().lines()).collect()
}

#[test]
fn commands_of_the_pages_run_and_the_schema_describes_what_they_write() {
    let schema: Value = serde_json::from_str(&page("manifest.schema.json")).unwrap();
    for name in ["generating.md", "ci.md"] {
        let folder = tempfile::tempdir().unwrap();
        std::env::set_current_dir(folder.path()).unwrap();
        let text = page(name);
        let mut ran = 0;
        for line in commands(&text) {
            let words: Vec<&str> = line.split_whitespace().collect();
            assert_eq!(words[0], "bitsmith", "{name}: nothing runs `{line}`");
            ok(&words[1..]);
            ran += 1;
        }
        assert!(ran >= 1, "{name} has no command");
        for manifest in manifests(folder.path()) {
            let value: Value = serde_json::from_str(&std::fs::read_to_string(&manifest).unwrap()).unwrap();
            let mut faults = Vec::new();
            let mut seen = BTreeSet::new();
            compare(&schema, &schema, &value, "manifest", &mut faults, &mut seen);
            assert!(faults.is_empty(), "{}: {}", manifest.display(), faults.join("\n"));
        }
    }
}

/// The workflow for a user's own repository: its commands run for every recipe of its matrix, on a small shape.
#[test]
fn commands_of_the_example_workflow_run() {
    let text = page("ci-example.yml").replace("\\\n", " ");
    let list = text.lines().find_map(|line| line.trim().strip_prefix("recipe: [")).unwrap();
    let mut ran = 0;
    for recipe in list.trim_end_matches(']').split(", ") {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("kernels").display().to_string();
        for line in text.lines().map(str::trim).filter(|line| line.starts_with("bitsmith ")) {
            let line = line.replace("${{ matrix.recipe }}", recipe).replace("${{ matrix.shapes }}", "256x256");
            assert!(!line.contains("${{"), "{line}");
            let words = line.split_whitespace().skip(1).map(|word| if word == "kernels" { &out } else { word });
            ok(&words.collect::<Vec<_>>());
            ran += 1;
        }
        let manifest = std::fs::read_to_string(Path::new(&out).join("manifest.json")).unwrap();
        assert!(serde_json::from_str::<Value>(&manifest).unwrap()["digest"].is_string());
    }
    assert!(ran >= 9, "{ran} commands");
}

fn manifests(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() {
            found.extend(manifests(&entry.path()));
        } else if entry.file_name() == "manifest.json" {
            found.push(entry.path());
        }
    }
    found
}

/// The part of JSON Schema that the file uses: `$ref`, `type`, `properties`, `required`, `additionalProperties`, `items`, `const`.
fn compare(
    root: &Value,
    schema: &Value,
    value: &Value,
    place: &str,
    faults: &mut Vec<String>,
    seen: &mut BTreeSet<String>,
) {
    if let Some(name) = schema["$ref"].as_str() {
        let target = root.pointer(name.trim_start_matches('#')).unwrap_or_else(|| panic!("no {name}"));
        return compare(root, target, value, place, faults, seen);
    }
    if !schema["const"].is_null() && schema["const"] != *value {
        faults.push(format!("{place} is {value}, not {}", schema["const"]));
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    if !kinds.is_empty() && !kinds.contains(&kind) {
        faults.push(format!("{place} is a {kind}, not {kinds:?}"));
    }
    if let Value::Array(list) = value {
        list.iter().for_each(|item| compare(root, &schema["items"], item, &format!("{place}[]"), faults, seen));
    }
    let Value::Object(map) = value else { return };
    for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !map.contains_key(required) {
            faults.push(format!("{place} has no `{required}`"));
        }
    }
    for (key, item) in map {
        let property = &schema["properties"][key];
        if property.is_null() {
            if schema["additionalProperties"] == false {
                faults.push(format!("{place} has `{key}`, which the schema does not know"));
            }
            continue;
        }
        seen.insert(format!("{place}.{key}"));
        compare(root, property, item, &format!("{place}.{key}"), faults, seen);
    }
}
