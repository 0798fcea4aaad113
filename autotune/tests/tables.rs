//! Whole runs on simulated devices: a run that is cut goes on to the same bytes, shards merge to the bytes of one run.

use bitsmith_autotune::key::Key;
use bitsmith_autotune::measure::Clock;
use bitsmith_autotune::simulate::{SimulatedClock, SimulatedDevice};
use bitsmith_autotune::table::{self, Change, Lock, Table};
use bitsmith_autotune::tune::{Options, Shard, tune};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

fn keys() -> Vec<Key> {
    let word = || "f16".to_string();
    let mut keys = Vec::new();
    for (n, k) in [(32, 32), (48, 32), (32, 64)] {
        for m in [1, 4, 16] {
            keys.push(Key {
                weight: "int4-g32".into(),
                activation: word(),
                out: word(),
                epilogue: String::new(),
                k,
                n,
                m,
            });
        }
    }
    keys
}

fn options(shard: &str) -> Options {
    Options {
        budget: 6.0,
        seed: 1,
        shard: shard.parse().unwrap(),
        exhaustive: false,
        cycle: 0,
        resume: false,
        fresh: false,
        warm: Vec::new(),
        date: "2026-01-01".into(),
        code_generator: "none".into(),
    }
}

fn device() -> SimulatedDevice {
    SimulatedDevice::new(3, 0.02).unwrap()
}

fn run(path: &Path, options: &Options) -> Table {
    let device = device();
    tune(&device, &device.clock(), &keys(), options, path, &mut ()).unwrap().table
}

/// A clock that is pulled out of the wall after so many samples.
struct Cut {
    clock: SimulatedClock,
    left: AtomicU64,
}

impl Clock for Cut {
    fn begin(&self, entry: u64, ordinal: u64) {
        self.clock.begin(entry, ordinal);
    }

    fn seconds(&self) -> f64 {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 0 {
            // As a kill has it: no destructor of the tuner's own may matter, and a panic runs none that writes.
            std::panic::panic_any("cut");
        }
        self.clock.seconds()
    }
}

#[test]
fn a_run_that_is_cut_at_any_moment_goes_on_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.json");
    run(&whole, &options("1/1"));
    let expected = std::fs::read(&whole).unwrap();
    let samples = lines(&whole);
    let mut rng = fastrand::Rng::with_seed(20);
    std::panic::set_hook(Box::new(|_| {}));
    let path = folder.path().join("cut.json");
    let (mut cuts, mut before) = (0, 0);
    let _ = std::fs::remove_file(table::journal_path(&path));
    // Twenty cuts, one after the other over several runs; some tear the last line apart as well.
    while cuts < 20 {
        let device = device();
        let clock = Cut { clock: device.clock(), left: AtomicU64::new(rng.u64(2..600)) };
        let options = Options { resume: true, ..options("1/1") };
        let done = catch_unwind(AssertUnwindSafe(|| tune(&device, &clock, &keys(), &options, &path, &mut ())));
        if done.is_ok() {
            assert_eq!(std::fs::read(&path).unwrap(), expected, "after {cuts} cuts");
            std::fs::remove_file(&path).unwrap();
            std::fs::remove_file(table::journal_path(&path)).unwrap();
            before = 0;
            continue;
        }
        cuts += 1;
        assert!(!path.exists(), "half a table was written");
        // Whatever was measured before is still there.
        let now = lines(&path);
        assert!(now >= before, "{now} samples after a cut, {before} before");
        before = now;
        if cuts % 3 == 0 {
            let mut torn = std::fs::read(table::journal_path(&path)).unwrap();
            torn.extend_from_slice(b"{\"sample\":[{\"fam");
            std::fs::write(table::journal_path(&path), torn).unwrap();
        }
    }
    let _ = std::panic::take_hook();
    let last = run(&path, &Options { resume: true, ..options("1/1") });
    assert_eq!(std::fs::read(&path).unwrap(), expected);
    assert_eq!(lines(&path), samples, "no sample was taken twice or lost");
    assert_eq!(last.entries.len(), keys().len());
}

/// Samples in the journal of a table.
fn lines(path: &Path) -> usize {
    let text = std::fs::read_to_string(table::journal_path(path)).unwrap();
    text.lines().filter(|line| line.starts_with("{\"sample\"")).count()
}

#[test]
fn shards_merge_in_any_order_to_the_bytes_of_one_run() {
    let folder = tempfile::tempdir().unwrap();
    let one = run(&folder.path().join("one.json"), &options("1/1"));
    let parts: Vec<Table> =
        (1..=4).map(|i| run(&folder.path().join(format!("{i}.json")), &options(&format!("{i}/4")))).collect();
    assert!(parts.iter().filter(|part| !part.entries.is_empty()).count() >= 3, "the work was not shared");
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1], [1, 3, 0, 2]] {
        let list: Vec<Table> = order.iter().map(|&i| parts[i].clone()).collect();
        let merged = table::merge(&list).unwrap();
        assert_eq!(merged.to_text().unwrap(), one.to_text().unwrap(), "{order:?}");
        // Merging again, or merging merged ones, changes nothing.
        let again = table::merge(&[merged.clone(), list[0].clone(), merged.clone()]).unwrap();
        assert_eq!(again, merged);
    }
    let mut other = parts[0].clone();
    other.device.threads = 9;
    assert!(table::merge(&[parts[1].clone(), other]).unwrap_err().to_string().contains("two devices"));
}

#[test]
fn tables_read_as_they_were_written_and_differences_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("table.json");
    let table = run(&path, &options("1/1"));
    assert_eq!(table::read(&path).unwrap(), table);
    let mut other = table.clone();
    let gone = other.entries.remove(0);
    other.entries[0].schedule.unroll += 1;
    other.entries[1].seconds *= 2.0;
    other.entries[2].seconds *= 1.01;
    let changes = table::diff(&table, &other, 0.05);
    assert_eq!(changes.len(), 3, "{changes:?}");
    assert_eq!(changes[0], Change::Removed(gone));
    assert!(matches!(&changes[1], Change::Schedule(..)));
    assert!(matches!(&changes[2], Change::Time(_, ratio) if (ratio - 0.5).abs() < 1e-9));
    for (from, to, word) in [("\"schema\": 1", "\"schema\": 9", "schema version is 9"), ("\"f16\"", "\"f17\"", "f17")] {
        let text = std::fs::read_to_string(&path).unwrap().replacen(from, to, 1);
        assert!(Table::parse(&text, "t").unwrap_err().to_string().contains(word), "{word}");
    }
}

#[test]
fn a_journal_is_neither_lost_nor_taken_for_another_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("table.json");
    let device = device();
    let go = |options: &Options| tune(&device, &device.clock(), &keys(), options, &path, &mut ());
    std::panic::set_hook(Box::new(|_| {}));
    let clock = Cut { clock: device.clock(), left: AtomicU64::new(100) };
    assert!(
        catch_unwind(AssertUnwindSafe(|| tune(&device, &clock, &keys(), &options("1/1"), &path, &mut ()))).is_err()
    );
    let _ = std::panic::take_hook();
    let refused = go(&options("1/1")).unwrap_err().to_string();
    assert!(refused.contains("--resume") && refused.contains("--fresh"), "{refused}");
    let other = Options { resume: true, seed: 2, shard: Shard { index: 1, count: 2 }, ..options("1/1") };
    let refused = go(&other).unwrap_err().to_string();
    assert!(refused.contains("another seed") && refused.contains("another shard"), "{refused}");
    // Two tuners do not work on one table.
    let lock = Lock::take(&path).unwrap();
    assert!(go(&Options { fresh: true, ..options("1/1") }).unwrap_err().to_string().contains("another tuner"));
    drop(lock);
    assert!(go(&Options { fresh: true, ..options("1/1") }).is_ok());
    // A finished journal is no obstacle.
    assert!(go(&options("1/1")).is_ok());
}
