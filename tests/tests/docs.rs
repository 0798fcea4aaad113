//! Commands in the documentation are true: each `bitsmith` line of a page runs, in order, in a clean folder.

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
    let elsewhere = [
        include_str!("../../runtime/capi/tests/package.rs"),
        include_str!("../../runtime/capi/tests/python.rs"),
        include_str!("../../runtime/capi/tests/candle.rs"),
    ];
    for name in ["generating.md", "ci.md", "linking.md"] {
        let folder = tempfile::tempdir().unwrap();
        std::env::set_current_dir(folder.path()).unwrap();
        let text = page(name);
        let mut ran = 0;
        for line in commands(&text) {
            let words: Vec<&str> = line.split_whitespace().collect();
            if words[0] == "bitsmith" {
                ok(&words[1..]);
                ran += 1;
            } else {
                // What is no command of ours is run by a test of a package or an example: by its name there.
                let program = words[0].rsplit('/').next().unwrap();
                assert!(
                    ["cargo"].contains(&program) || elsewhere.iter().any(|test| test.contains(program)),
                    "{name}: nothing runs `{line}`"
                );
            }
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
