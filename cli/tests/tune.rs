//! The `tune` command of the real binary: killed at random moments, shared out, merged, compared; group sizes of a model.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

fn bitsmith(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitsmith"));
    command.args(args).stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    bitsmith(args).output().unwrap()
}

fn ok(args: &[&str]) -> String {
    let output = run(args);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{args:?}\n{out}\n{err}");
    out.into_owned()
}

fn fails(args: &[&str], code: i32, words: &[&str]) {
    let output = run(args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}\n{text}");
    for word in words {
        assert!(text.contains(word), "{args:?}: no `{word}` in\n{text}");
    }
}

/// Tuning of two small shapes on a simulated device.
fn tune<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let base = ["tune", "--recipe", "W4A16", "--shapes", "128x128,64x128", "--device", "simulated:7", "--m", "1,4,16"];
    [&base[..], &["--budget", "6", "--out", out], more].concat()
}

fn samples(table: &Path) -> usize {
    let text = std::fs::read_to_string(table.with_extension("journal")).unwrap_or_default();
    text.lines().filter(|line| line.starts_with("{\"sample\"")).count()
}

#[test]
fn twenty_kills_and_resume_give_the_same_table() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let (whole, cut) = (place("whole.json"), place("cut.json"));
    let start = std::time::Instant::now();
    ok(&tune(&whole.display().to_string(), &[]));
    let length = start.elapsed();
    let expected = std::fs::read(&whole).unwrap();
    let text = cut.display().to_string();
    let args = tune(&text, &["--resume"]);
    let mut random = Random(11);
    let (mut kills, mut before, mut midway) = (0, 0, 0);
    while kills < 20 {
        let mut child = bitsmith(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Runs get further from kill to kill, so each lasts a part of the whole.
        std::thread::sleep(length.mul_f64(0.02 + 0.25 * random.next()).max(Duration::from_millis(3)));
        if child.try_wait().unwrap().is_some() {
            // It came to its end; from the start again.
            assert_eq!(std::fs::read(&cut).unwrap(), expected, "after {kills} kills");
            std::fs::remove_file(&cut).unwrap();
            std::fs::remove_file(cut.with_extension("journal")).unwrap();
            before = 0;
            continue;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        let now = samples(&cut);
        assert!(now >= before, "{now} samples after a kill, {before} before it");
        midway += usize::from(now > 0);
        before = now;
        if let Ok(found) = std::fs::read(&cut) {
            assert_eq!(found, expected, "a table that is there is whole");
        }
    }
    assert!(midway >= 5, "only {midway} kills came in the midst of the measurements");
    ok(&args);
    assert_eq!(std::fs::read(&cut).unwrap(), expected);
    assert_eq!(samples(&cut), samples(&whole));
    let left: Vec<PathBuf> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
    // A kill between writing and renaming may leave a file of another name, and nothing else.
    for path in left {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let known = [".json", ".journal", ".lock", ".new"].iter().any(|end| name.ends_with(end));
        assert!(known, "{name}");
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[test]
fn shards_merge_to_one_table_and_differences_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name).display().to_string();
    let one = place("one.json");
    ok(&tune(&one, &[]));
    let mut parts = Vec::new();
    for i in 1..=4 {
        let (out, shard) = (place(&format!("{i}.json")), format!("{i}/4"));
        ok(&tune(&out, &["--shard", &shard]));
        parts.push(out);
    }
    for order in [[0, 1, 2, 3], [3, 1, 0, 2]] {
        let merged = place("merged.json");
        let list: Vec<&str> = order.iter().map(|&i: &usize| parts[i].as_str()).collect();
        ok(&[&["tune", "merge", "--out", &merged][..], &list].concat());
        assert_eq!(std::fs::read(&merged).unwrap(), std::fs::read(&one).unwrap());
    }
    assert!(ok(&["tune", "diff", &one, &place("merged.json")]).contains("no difference"));
    fails(&["tune", "diff", &one, &parts[0]], 1, &["removed", "entries differ"]);
    // A check of it on another device is refused, and on its own it is done.
    fails(&["tune", "check", &one, "--device", "simulated:8"], 2, &["simulated device 8", "accepted"]);
    let text = ok(&["tune", "check", &one, "--device", "simulated:7", "--budget-ms", "20"]);
    assert!(text.contains("times as fast as chooser's in the geometric mean"), "{text}");
    // Two tables of the same work are compared with each other; a part is not the same work.
    let check = ["tune", "check", &one, "--device", "simulated:7", "--budget-ms", "20", "--against"];
    let text = ok(&[&check[..], &[&place("merged.json")]].concat());
    assert!(text.contains("than 3 %, 6 within 3 % of each other"), "{text}");
    fails(&[&check[..], &[&parts[0]]].concat(), 2, &["1.json: has no entry", "accepted"]);
}

#[test]
fn a_page_shows_a_run_and_bundles_say_where_schedules_come_from() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name).display().to_string();
    let (table, page) = (place("table.json"), place("page.html"));
    let text = ok(&tune(&table, &["--report", &page]));
    for word in ["128x128", "runner-up", "bound by", "geometric mean", "6 entries"] {
        assert!(text.contains(word), "no `{word}` in\n{text}");
    }
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.matches("<svg").count() >= 3 && !html.contains("NaN"), "{html}");
    let bundle = place("bundle");
    let generate = |tuned: &str| {
        let shape = ["generate", "--recipe", "W4A16", "--shapes", "128x128", "--device", "x86-64-v3", "--no-measure"];
        ok(&[&shape[..], &["--m", "1,16", "--out", &bundle, "--tuned", tuned]].concat());
        std::fs::read_to_string(folder.path().join("bundle/manifest.json")).unwrap()
    };
    assert!(generate(&table).contains("tuned on a near device, simulated device 7"));
    let untuned = generate("none");
    assert!(untuned.contains("\"chosen_by\": \"chooser\"") && !untuned.contains("near device"));
}

#[test]
fn larger_groups_have_larger_errors_on_the_model_of_this_project() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../calibrate/model").display().to_string();
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("groups.html").display().to_string();
    let base = ["tune", "groups", &model, "--seconds", "0.02", "--max-error", "0.11", "--json"];
    let text =
        ok(&[&base[..], &["--only", "layers.0", "--groups", "16,32,64,128,channel", "--report", &page]].concat());
    let layers: serde_json::Value = serde_json::from_str(&text).unwrap();
    let layers = layers.as_array().unwrap();
    assert_eq!(layers.len(), 7);
    for layer in layers {
        let points = layer["points"].as_array().unwrap();
        for asymmetric in [false, true] {
            let errors: Vec<f64> = points
                .iter()
                .filter(|p| p["format"].as_str().unwrap().ends_with("asym") == asymmetric)
                .map(|p| p["error"].as_f64().unwrap())
                .collect();
            assert!(errors.len() >= 4 && errors.is_sorted(), "{}: {errors:?}", layer["name"]);
            assert!(errors[0] > 0.01 && errors[errors.len() - 1] < 0.5, "{errors:?}");
        }
        let taken = layer["recommended"].as_str().unwrap();
        let taken = points.iter().find(|p| p["format"] == taken).unwrap();
        assert!(taken["error"].as_f64().unwrap() <= 0.11);
    }
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.matches("<polyline").count() == 7 && !html.contains("NaN"));
    fails(&["tune", "groups", &model, "--groups", "17"], 2, &["17", "accepted"]);
    fails(&["tune", "groups", &model, "--groups", "many"], 2, &["many", "channel"]);
}

#[test]
fn what_cannot_be_tuned_is_said() {
    fails(&["tune"], 2, &[]);
    fails(&["tune", "--recipe", "W4A16", "--shapes", "64x64", "--device", "simulated:x"], 2, &["simulated:<seed>"]);
    fails(&["tune", "--recipe", "W4A16", "--shapes", "64x64", "--device", "h200"], 2, &["h200"]);
    fails(&["tune", "--recipe", "W4A16", "--shapes", "64x64", "--shard", "3/2"], 2, &["3/2"]);
    fails(&["tune", "merge", "/nowhere.json", "--out", "/nowhere/x.json"], 2, &["/nowhere.json"]);
    fails(&["generate", "--recipe", "W4A16", "--shapes", "64x64", "--tuned", "none,/x"], 2, &["none"]);
}
