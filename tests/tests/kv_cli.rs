//! The command line on KV caches: what formats take, and attention timed.

use bitsmith_tests::cli::{ok_json, run};
use serde_json::Value;

#[test]
fn formats_and_what_they_take() {
    let list = ok_json(&["list", "kv", "--json"]);
    let of = |name: &str| -> f64 {
        let row = list.as_array().unwrap().iter().find(|row| row["kv"] == name).unwrap();
        row["of_f16"].as_str().unwrap().parse().unwrap()
    };
    assert_eq!((of("f16"), of("int8-head"), of("int4-head")), (1.0, 2.0, 4.0));
    assert!(of("int8-token") >= 1.96 && of("int4-token-asym") >= 3.7);
}

#[test]
fn attention_is_timed_and_checked() {
    let small = ["--heads", "4", "--kv-heads", "2", "--head-dim", "32", "--cycle-mb", "0", "--budget-ms", "1"];
    let run_of =
        [&["bench", "attend", "--kv", "int4-head,fp8e4m3-token", "--context", "100,1k", "--chunk", "3"], &small[..]];
    let document = ok_json(&[&run_of.concat()[..], &["--json"]].concat());
    let rows = document["measurements"].as_array().unwrap();
    assert_eq!(rows.len(), 8);
    for row in rows {
        assert!(row["error_of_bound"].as_f64().unwrap() <= 1.0 && row["gigabytes_per_second"].as_f64().unwrap() > 0.0);
    }
    assert_eq!((&rows[0]["phase"], &rows[0]["context"]), (&Value::from("decode"), &Value::from(100)));
    assert_eq!((&rows[3]["phase"], &rows[3]["context"]), (&Value::from("prefill"), &Value::from(1027)));
    for (args, word) in [
        (vec!["bench", "attend", "--kv", "int5-head"], "`int5` is no code"),
        (vec!["bench", "attend", "--context", "0"], "accepted"),
        (vec!["bench", "attend", "--heads", "5"], "5 query heads over 8 KV heads"),
        (vec!["bench", "attend", "--page", "48"], "pages of 48 tokens"),
    ] {
        let (code, _, err) = run(&args);
        assert!(code == 2 && err.contains(word), "{args:?}: {code} {err}");
    }
}
