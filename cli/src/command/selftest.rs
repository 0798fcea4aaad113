//! `selftest`: the hardware suite on a device: drawn operations of every family, format and tail against the reference.

use crate::failure::Failure;
use crate::place::Place;
use crate::{Io, Outcome};
use bitsmith_autotune::suite::plant::{Fault, Faulty};
use bitsmith_autotune::suite::{self, Verdict};
use bitsmith_runtime::{Device, DeviceInfo};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Arguments of `selftest`.
#[derive(Debug, clap::Args)]
pub struct Selftest {
    /// Where it runs
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Seed of the first case; each case after it has the next one
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number of cases
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    count: u64,
    /// Start no case after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    time_limit: Option<u64>,
    /// Spoil the device in one way, to see that the suite finds it: missing-workgroup, flipped-bit, overrun, written-input,
    /// unsteady
    #[arg(long, value_name = "FAULT")]
    plant: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Summary<'a> {
    device: &'a DeviceInfo,
    seed: u64,
    count: u64,
    passed: bool,
    seconds: f64,
    #[serde(flatten)]
    verdict: &'a Verdict,
    /// One command per failure, which repeats it.
    repeat: Vec<String>,
}

/// Failures that are printed in full.
const SHOWN: usize = 20;

impl Selftest {
    pub(super) fn run(&self, io: &mut Io<'_>) -> Outcome {
        let fault: Option<Fault> = self.plant.as_deref().map(str::parse).transpose()?;
        let mut device = Place::running(&self.device)?;
        if let Some(fault) = fault {
            device = Arc::new(Faulty::new(device, fault));
        }
        let info = device.info();
        io.notes(&info)?;
        let start = Instant::now();
        let verdict = self.cases(&*device, start);
        let repeat: Vec<String> = verdict.failures.iter().map(|failure| self.command(failure.seed)).collect();
        let summary = Summary {
            device: &info,
            seed: self.seed,
            count: self.count,
            passed: verdict.passed(),
            seconds: start.elapsed().as_secs_f64(),
            verdict: &verdict,
            repeat,
        };
        if self.json {
            io.json(&summary)?
        } else {
            print(io, &summary)?
        }
        if verdict.passed() {
            return Ok(());
        }
        let lost = verdict.lost.iter().map(|why| format!("; {why}")).collect::<String>();
        Err(Failure::Found(format!(
            "{} of {} cases failed on {}{lost}",
            verdict.failures.len(),
            verdict.cases,
            info.model
        )))
    }

    fn cases(&self, device: &dyn Device, start: Instant) -> Verdict {
        let limit = self.time_limit.map_or(Duration::MAX, Duration::from_secs);
        let bar = ProgressBar::new(self.count);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}") {
            bar.set_style(style);
        }
        let seeds = (0..self.count).map(|case| self.seed.wrapping_add(case));
        let verdict = suite::run(device, seeds, |_, failed| {
            bar.inc(1);
            if failed > 0 {
                bar.set_message(format!("{failed} failed"));
            }
            start.elapsed() < limit
        });
        bar.finish_and_clear();
        verdict
    }

    /// The command that repeats one case.
    fn command(&self, seed: u64) -> String {
        let plant = self.plant.iter().map(|fault| format!(" --plant {fault}")).collect::<String>();
        format!("bitsmith selftest --device {} --seed {seed} --count 1{plant}", self.device)
    }
}

fn print(io: &mut Io<'_>, summary: &Summary<'_>) -> Outcome {
    let verdict = summary.verdict;
    writeln!(io.out, "{}: {} ({})", summary.device.name, summary.device.model, summary.device.target)?;
    for (failure, repeat) in verdict.failures.iter().zip(&summary.repeat).take(SHOWN) {
        writeln!(io.out, "seed {}, {}: {}", failure.seed, failure.stage, failure.why)?;
        if !failure.case.is_empty() {
            writeln!(io.out, "  {}", failure.case)?;
        }
        writeln!(io.out, "  {repeat}")?;
    }
    if verdict.failures.len() > SHOWN {
        writeln!(io.out, "… and {} more; --json lists them all", verdict.failures.len() - SHOWN)?;
    }
    let families: Vec<String> = verdict.families.iter().map(|(name, count)| format!("{name} {count}")).collect();
    writeln!(
        io.out,
        "{} cases from seed {} (asked for {}), {} failed; {} numbers compared, worst error {:.3} of its bound",
        verdict.cases,
        summary.seed,
        summary.count,
        verdict.failures.len(),
        verdict.compared,
        verdict.worst_ratio
    )?;
    writeln!(
        io.out,
        "passed by family: {}; {} formats; {:.1} s",
        families.join(", "),
        verdict.formats.len(),
        summary.seconds
    )?;
    Ok(())
}
