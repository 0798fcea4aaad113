//! Tables: what was chosen on a device, and how that was found out.
//!
//! Reads and writes `<device>.json`: sorted by key, one entry a block, numbers of four digits, so that a difference is a
//! difference of measurements. Always holds: a file is written to another name and renamed; merging does not depend on the
//! order; the same entries and runs give the same bytes.

mod files;
mod merge;

pub use files::{Lock, journal_path, read, write};
pub use merge::{Change, diff, merge};

use crate::ceiling::{Ceiling, round};
use crate::key::Key;
use bitsmith_compiler::schedule::Schedule;
use bitsmith_compiler::{Error, Result};
use bitsmith_runtime::DeviceInfo;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of the fields.
pub const SCHEMA: u32 = 1;

/// The device that a table is for. Nothing in it names a host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceName {
    /// The target's caps: `x86-64-v3`.
    pub target: String,
    /// What the device calls itself.
    pub model: String,
    /// Threads that run workgroups.
    pub threads: usize,
}

impl DeviceName {
    /// The name of a device.
    pub fn of(info: &DeviceInfo) -> DeviceName {
        DeviceName { target: info.target.clone(), model: info.model.clone(), threads: info.threads }
    }

    /// As a file name without its ending: `x86-64-v3_amd-epyc_2`.
    pub fn slug(&self) -> String {
        let clean = |text: &str| {
            let words: Vec<String> = text
                .split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
                .filter(|word| !word.is_empty())
                .map(str::to_ascii_lowercase)
                .collect();
            words.join("-")
        };
        format!("{}_{}_{}", clean(&self.target), clean(&self.model), self.threads)
    }
}

impl std::fmt::Display for DeviceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}, {} threads)", self.model, self.target, self.threads)
    }
}

/// A run of the tuner: under what its measurements were taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Day of its start: `2026-11-26`.
    pub date: String,
    /// Version of this tool.
    pub bitsmith: String,
    /// Version of the code generator or driver.
    pub code_generator: String,
    /// Roofs at its start.
    pub ceiling: Ceiling,
    /// Seconds of samples that an entry was given at most.
    pub seconds_per_entry: f64,
    /// Seed of problems and orders.
    pub seed: u64,
}

impl Provenance {
    /// With the numbers that its text stands for.
    pub fn rounded(self) -> Provenance {
        let c = self.ceiling;
        let ceiling = Ceiling {
            read_gbs: round(c.read_gbs),
            float_gops: round(c.float_gops),
            byte_gops: round(c.byte_gops),
            gops: 0.0,
            ..c
        };
        Provenance { ceiling, seconds_per_entry: round(self.seconds_per_entry), ..self }
    }
}

/// What was chosen for one key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// What it is about.
    pub key: Key,
    /// How it should run.
    pub schedule: Schedule,
    /// Seconds per launch over the part that was measured.
    pub seconds: f64,
    /// Columns that were measured: all, or a part of a large matmul.
    pub columns: usize,
    /// Rows that were measured, where they are fewer than the key's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<usize>,
    /// Seconds per launch of what the chooser takes, in the same samples.
    pub chooser_seconds: f64,
    /// What the chooser takes.
    pub chooser: Schedule,
    /// The roof that bounds it.
    pub bound: String,
    /// The share of that roof that is reached; absent where the roof is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// The fastest that was not taken, and how many times as long it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner_up: Option<(Schedule, f64)>,
    /// What was tried.
    pub tried: Tried,
    /// Day of the measurement.
    pub date: String,
}

impl Entry {
    /// Rows that were measured.
    pub fn measured_rows(&self) -> usize {
        self.rows.unwrap_or(self.key.m)
    }

    /// Seconds per launch over all rows of the key, and the columns that were measured.
    pub fn of_all_rows(&self) -> f64 {
        self.seconds * (self.key.m as f64 / self.measured_rows() as f64)
    }
}

/// What was tried for an entry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tried {
    /// Points of the declared space.
    pub declared: usize,
    /// Candidates that were measured.
    pub measured: usize,
    /// Samples taken.
    pub samples: usize,
    /// Candidates that the reference refused.
    pub wrong: usize,
    /// Whether the time was used up.
    pub cut: bool,
}

/// What was chosen on a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The device.
    pub device: DeviceName,
    /// The runs behind the entries, sorted, each once.
    pub runs: Vec<Provenance>,
    /// The entries, sorted by key.
    pub entries: Vec<Entry>,
}

impl Table {
    /// A table without entries.
    pub fn new(device: DeviceName) -> Table {
        Table { schema: SCHEMA, device, runs: Vec::new(), entries: Vec::new() }
    }

    /// Puts runs and entries in order, and takes each once.
    pub fn sort(&mut self) {
        let mut runs: BTreeMap<String, Provenance> = BTreeMap::new();
        for run in self.runs.drain(..) {
            runs.insert(serde_json::to_string(&run).unwrap_or_default(), run);
        }
        self.runs = runs.into_values().collect();
        let mut entries: BTreeMap<Key, Entry> = BTreeMap::new();
        for entry in self.entries.drain(..) {
            let best = match entries.remove(&entry.key) {
                Some(old) => merge::newer(old, entry),
                None => entry,
            };
            entries.insert(best.key.clone(), best);
        }
        self.entries = entries.into_values().collect();
    }

    /// The entry of a key.
    pub fn of(&self, key: &Key) -> Option<&Entry> {
        self.entries.binary_search_by(|entry| entry.key.cmp(key)).ok().map(|at| &self.entries[at])
    }

    /// As it stands in the file.
    pub fn to_text(&self) -> Result<String> {
        serde_json::to_string_pretty(self)
            .map(|text| text + "\n")
            .map_err(|error| Error::Bug { message: error.to_string(), text: format!("table of {}", self.device) })
    }

    /// Reads a table; `name` is what errors call it.
    pub fn parse(text: &str, name: &str) -> Result<Table> {
        let value: serde_json::Value =
            serde_json::from_str(text).map_err(|error| Error::invalid(format!("{name}: {error}")))?;
        match value.get("schema").and_then(serde_json::Value::as_u64) {
            Some(schema) if schema == u64::from(SCHEMA) => {}
            other => {
                let found = other.map_or("none".to_string(), |schema| schema.to_string());
                return Err(Error::invalid(format!("{name}: schema version is {found}; accepted: {SCHEMA}")));
            }
        }
        let mut table: Table =
            serde_json::from_value(value).map_err(|error| Error::invalid(format!("{name}: {error}")))?;
        let numbers = |e: &Entry| {
            [e.seconds, e.chooser_seconds].iter().all(|s| s.is_finite() && *s > 0.0)
                && e.key.op().is_ok()
                && e.key.m > 0
        };
        if let Some(entry) = table.entries.iter().find(|entry| !numbers(entry)) {
            return Err(Error::invalid(format!(
                "{name}: entry {}; accepted: an operation that is known, with times above 0",
                entry.key
            )));
        }
        // A number that was read may be off by its last bit; rounding makes it the one that was written.
        for entry in &mut table.entries {
            entry.seconds = round(entry.seconds);
            entry.chooser_seconds = round(entry.chooser_seconds);
            entry.share = entry.share.map(round);
            entry.runner_up = entry.runner_up.map(|(schedule, ratio)| (schedule, round(ratio)));
        }
        table.runs = table.runs.into_iter().map(Provenance::rounded).collect();
        table.sort();
        Ok(table)
    }
}
