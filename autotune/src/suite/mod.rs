//! The hardware suite: cases drawn from seeds, run on a device and compared with the reference.
//!
//! Reads a device and a range of seeds; makes a verdict. Always holds: outputs are poisoned before a launch, every buffer
//! stands between guards that no kernel may touch, inputs must come back as they were, padding of weights holds garbage,
//! and a second launch gives the same bits. The same code runs on every device.

mod case;
pub mod plant;

use bitsmith_runtime::Device;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What one case came to.
#[derive(Clone, Debug)]
pub struct Passed {
    /// The family that ran.
    pub family: &'static str,
    /// The weights' format, where the operation has some.
    pub format: Option<String>,
    /// Numbers compared with the reference.
    pub compared: usize,
    /// Largest ratio of an error to its bound.
    pub worst_ratio: f64,
}

/// A case that failed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Failed {
    /// Its seed.
    pub seed: u64,
    /// At which stage.
    pub stage: &'static str,
    /// What was found.
    pub why: String,
    /// The case in words.
    pub case: String,
}

/// What a run of the suite came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Verdict {
    /// Cases that ran, those that failed among them.
    pub cases: u64,
    /// Numbers compared with the reference.
    pub compared: usize,
    /// Largest ratio of an error to its bound among cases that passed.
    pub worst_ratio: f64,
    /// Cases that passed, by family.
    pub families: BTreeMap<&'static str, u64>,
    /// Formats of weights among cases that passed.
    pub formats: BTreeSet<String>,
    /// Cases that failed.
    pub failures: Vec<Failed>,
    /// Why the run ended before its last case: the device answers no more.
    pub lost: Option<String>,
}

impl Verdict {
    /// Whether every case ran and passed.
    pub fn passed(&self) -> bool {
        self.failures.is_empty() && self.lost.is_none() && self.cases > 0
    }
}

/// Runs one case.
pub fn case(device: &dyn Device, seed: u64) -> Result<Passed, Failed> {
    case::run(device, seed)
}

/// Runs the cases of some seeds. `each` is told how many cases have run and failed, and says whether to go on.
pub fn run(
    device: &dyn Device,
    seeds: impl IntoIterator<Item = u64>,
    mut each: impl FnMut(u64, usize) -> bool,
) -> Verdict {
    let mut verdict = Verdict::default();
    for seed in seeds {
        verdict.cases += 1;
        match case(device, seed) {
            Ok(passed) => {
                *verdict.families.entry(passed.family).or_insert(0) += 1;
                verdict.formats.extend(passed.format);
                verdict.compared += passed.compared;
                verdict.worst_ratio = verdict.worst_ratio.max(passed.worst_ratio);
            }
            Err(failed) => {
                verdict.failures.push(failed);
                // After some faults a device refuses everything: what follows would say nothing about its kernels.
                if let Err(error) = device.synchronize() {
                    verdict.lost = Some(format!("the device answers no more after seed {seed}: {error}"));
                    break;
                }
            }
        }
        if !each(verdict.cases, verdict.failures.len()) {
            break;
        }
    }
    verdict
}
