//! The hardware suite and the devices of GPUs, as far as a machine without one goes: `selftest` on the CPU passes, finds every
//! planted fault, and prints the command that repeats it; a missing driver is one line and exit code 2.

use bitsmith_autotune::suite::plant::Fault;
use bitsmith_tests::cli::run as bitsmith;
use serde_json::Value;

#[test]
fn the_suite_passes_on_the_cpu() {
    let count = std::env::var("BITSMITH_CASES").unwrap_or("400".into());
    let (code, out, err) = bitsmith(&["selftest", "--device", "cpu", "--count", &count, "--json"]);
    assert_eq!(code, 0, "{out}{err}");
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(found["passed"], true);
    assert_eq!(found["cases"].to_string(), count);
    assert!(found["compared"].as_u64().unwrap() > 10_000);
    for family in ["stream", "tile", "decode", "rows"] {
        assert!(found["families"][family].as_u64().unwrap() > 0, "no case of family {family}: {found}");
    }
    assert!(found["formats"].as_array().unwrap().len() > 50);
}

#[test]
fn the_suite_passes_on_the_ptx_machine() {
    // The way a GPU goes: families of workgroups and of matrix instructions, QT16, PTX.
    for (device, count) in [("ptx:a100", 40), ("ptx:l4", 20), ("ptx:h200", 20)] {
        let (code, out, err) = bitsmith(&["selftest", "--device", device, "--count", &count.to_string(), "--json"]);
        assert_eq!(code, 0, "{device}: {out}{err}");
        let found: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(found["cases"], count);
        for family in ["spread", "mma"] {
            assert!(found["families"][family].as_u64() > Some(0), "{device}: no case of family {family}: {found}");
        }
    }
    for fault in Fault::ALL {
        let args = ["selftest", "--device", "ptx:a100", "--seed", "20", "--count", "4", "--plant", fault.name()];
        let (code, out, err) = bitsmith(&args);
        assert!(code == 1 && err.contains("4 of 4 cases failed"), "{}: {out}{err}", fault.name());
    }
}

#[test]
fn planted_faults_are_found_and_can_be_repeated() {
    for fault in Fault::ALL {
        let args = ["selftest", "--device", "cpu", "--seed", "20", "--count", "25", "--plant", fault.name()];
        let (code, out, err) = bitsmith(&args);
        assert_eq!(code, 1, "{}: {out}{err}", fault.name());
        assert!(err.contains("25 of 25 cases failed"), "{}: {out}{err}", fault.name());
        assert!(err.contains(&format!("a fault was planted: {}", fault.name())), "{err}");
        // The printed command finds the same again.
        let command = out.lines().find(|line| line.trim_start().starts_with("bitsmith selftest")).unwrap();
        let again: Vec<&str> = command.split_whitespace().skip(1).collect();
        let (code, found, _) = bitsmith(&again);
        assert_eq!(code, 1, "{command}");
        let first = out.lines().nth(1).unwrap();
        assert!(found.contains(first), "{first}\n{found}");
    }
    let (code, _, err) = bitsmith(&["selftest", "--plant", "gremlin"]);
    assert!(code == 2 && err.contains("missing-workgroup"), "{err}");
}

#[test]
fn a_machine_without_a_driver_says_so_in_one_line() {
    for (device, library) in [("cuda:0", "libcuda"), ("hip:0", "libamdhip64")] {
        let commands: [&[&str]; 3] = [
            &["selftest", "--device", device],
            &["bench", "--device", device],
            &["generate", "--recipe", "W4A16", "--shapes", "64x128", "--device", device],
        ];
        for args in commands {
            if let Ok(found) = bitsmith_runtime::open(device) {
                let why = format!("{device} is here: {}", found.info().model);
                bitsmith_tests::skip("no-gpu", "a_machine_without_a_driver_says_so_in_one_line", &why);
                continue;
            }
            let (code, out, err) = bitsmith(args);
            assert_eq!(code, 2, "{args:?}: {err}");
            // Where the driver is here, it is a device that is missing.
            let named = err.contains(library) && err.contains("install")
                || err.contains("sees 0 devices")
                || err.contains("NO_DEVICE");
            assert!(err.lines().count() == 1 && named && out.is_empty(), "{args:?}: {err}{out}");
        }
    }
}

#[test]
fn doctor_and_list_show_the_devices_that_are_here() {
    let (code, out, err) = bitsmith(&["doctor", "--json"]);
    assert_eq!(code, 0, "{err}");
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(found["devices"][0]["name"], "cpu");
    let backends = |list: &str, key: Option<&str>| -> Vec<String> {
        let name = |entry: &Value| {
            key.map_or(entry, |key| &entry[key]).as_str().unwrap().split(':').next().unwrap().to_string()
        };
        found[list].as_array().unwrap().iter().map(name).collect()
    };
    let (here, absent) = (backends("devices", Some("name")), backends("faults", None));
    for backend in ["cuda", "hip", "vulkan"] {
        let either = (here.iter().any(|name| name == backend), absent.iter().any(|name| name == backend));
        assert!(either.0 != either.1, "{backend}: {here:?}, {absent:?}");
    }
    let (code, out, _) = bitsmith(&["list", "devices", "--json"]);
    let rows: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, rows.as_array().unwrap().len()), (0, here.len()));
}

#[test]
fn code_for_a_gpu_is_made_without_one() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle").display().to_string();
    let args = ["generate", "--recipe", "W4A16", "--shapes", "64x128", "--device", "sm_90a", "--out", &out];
    let (code, _, err) = bitsmith(&args);
    assert_eq!(code, 0, "{err}");
    let texts = std::fs::read_dir(&out).unwrap().filter(|entry| {
        let path = entry.as_ref().unwrap().path();
        path.extension().is_some_and(|e| e == "ptx")
            && std::fs::read_to_string(path).unwrap().contains(".target sm_90a")
    });
    assert!(texts.count() >= 2);
}
