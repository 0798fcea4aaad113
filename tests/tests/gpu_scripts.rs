//! The scripts of `benches/gpu`: their own tests, which need Python and nothing else.

use bitsmith_tests::cli::ok_json;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

#[test]
fn the_table_and_the_run_are_tested_by_themselves() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/gpu");
    let output =
        Command::new("python3").args(["-B", "-m", "unittest", "-v", "test_bench"]).current_dir(&folder).output();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            return bitsmith_tests::skip(
                "python",
                "the_table_and_the_run_are_tested_by_themselves",
                &error.to_string(),
            );
        }
    };
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let count: usize = text
        .lines()
        .find_map(|line| line.strip_prefix("Ran ")?.split(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("no count of tests in\n{text}"));
    assert!(count >= 12, "{text}");
}

#[test]
fn every_kind_of_row_is_one_that_the_command_line_serves() {
    // The PTX machine stands in for the GPU: formats, activations and results of the table, few rows and many.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/gpu");
    let script = "import gates, json; print(json.dumps(gates.KINDS))";
    let kinds = match Command::new("python3").args(["-B", "-c", script]).current_dir(&folder).output() {
        Ok(output) => output.stdout,
        Err(error) => {
            let test = "every_kind_of_row_is_one_that_the_command_line_serves";
            return bitsmith_tests::skip("python", test, &error.to_string());
        }
    };
    let kinds: Value = serde_json::from_slice(&kinds).unwrap();
    assert_eq!(kinds.as_object().unwrap().len(), 6);
    for (kind, how) in kinds.as_object().unwrap() {
        let of = |key: &str| how[key].as_str().unwrap();
        let args = ["bench", "--device", "ptx:h200", "-n", "64", "-k", "256", "-m", "1,16", "--json"];
        let more = ["--format", of("format"), "--activation", of("activation"), "--result", of("result")];
        let effort = ["--cycle-mb", "0", "--budget-ms", "1"];
        let found = ok_json(&[&args[..], &more, &effort].concat());
        let rows = found["measurements"].as_array().unwrap();
        assert!(rows.len() == 2 && rows.iter().all(|row| row["check"]["wrong"] == 0), "{kind}: {found}");
        // What the script reads of a row.
        for key in ["m", "bytes", "entry", "schedule", "copies"] {
            assert!(!rows[0][key].is_null(), "{kind}: no `{key}` in {found}");
        }
        assert!(rows[0]["seconds"]["median"].as_f64().unwrap() > 0.0);
    }
}
