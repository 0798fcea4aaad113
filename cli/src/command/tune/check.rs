//! `tune check`: a table's schedules against the chooser's, or another table's, measured again side by side.

use super::Timed;
use crate::failure::Failure;
use crate::stages::describe_schedule;
use crate::table::{Table as Columns, time};
use crate::{Io, Outcome};
use bitsmith_autotune::compare::compare;
use bitsmith_autotune::measure::statistics::geometric_mean;
use bitsmith_autotune::table::{self, DeviceName, Entry};
use indicatif::ProgressBar;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Arguments of `tune check`.
#[derive(Debug, clap::Args)]
pub struct Check {
    /// The table
    table: PathBuf,
    /// Another run's table: its schedules are measured in the place of the chooser's
    #[arg(long, value_name = "TABLE")]
    against: Option<PathBuf>,
    /// Where it is measured; tables must be of this device
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: String,
    /// Milliseconds to sample each entry for, at least fifteen pairs in five visits
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    budget_ms: u64,
    /// Megabytes of weights to cycle through while decoding
    #[arg(long, default_value_t = 192, value_parser = clap::value_parser!(u64).range(..=1 << 20))]
    cycle_mb: u64,
    /// Only entries whose text holds this: `4096x4096`, `M=1`
    #[arg(long, value_name = "SUBSTRING")]
    only: Option<String>,
    /// Entry i of n alone, so that a long check can be done in pieces
    #[arg(long, value_name = "I/N", default_value = "1/1")]
    shard: bitsmith_autotune::tune::Shard,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

impl Check {
    pub(super) fn run(&self, io: &mut Io<'_>) -> Outcome {
        let timed = Timed::open(&self.device)?;
        let name = DeviceName::of(&timed.device.info());
        let read = |path: &Path| match table::read(path)? {
            table if table.device == name => Ok(table),
            table => Err(Failure::invalid(format!(
                "{}: is of {}, this is {name}; accepted: a table of this device",
                path.display(),
                table.device
            ))),
        };
        let table = read(&self.table)?;
        let against = self.against.as_deref().map(|path| Ok::<_, Failure>((path, read(path)?))).transpose()?;
        let wanted = |i: usize, text: String| {
            i % self.shard.count == self.shard.index - 1 && self.only.as_ref().is_none_or(|only| text.contains(only))
        };
        let beside = |entry: &Entry| match &against {
            None => Ok(entry.chooser),
            // Both are timed over this table's columns: how many a run takes depends on how fast it found the machine.
            Some((path, other)) => match other.of(&entry.key) {
                Some(same) => Ok(same.schedule),
                None => Err(Failure::invalid(format!(
                    "{}: has no entry `{}`; accepted: a table of the same work",
                    path.display(),
                    entry.key
                ))),
            },
        };
        let entries = table
            .entries
            .iter()
            .enumerate()
            .filter(|(i, entry)| wanted(*i, entry.key.to_string()))
            .map(|(_, entry)| Ok((entry.clone(), beside(entry)?)))
            .collect::<Result<Vec<_>, Failure>>()?;
        if entries.is_empty() {
            return Err(Failure::invalid(format!("{}: no entry is wanted", self.table.display())));
        }
        let bar = ProgressBar::new(entries.len() as u64);
        let cycle = (self.cycle_mb as usize) << 20;
        let seconds = self.budget_ms as f64 / 1e3;
        let compared = compare(&*timed.device, &*timed.clock, &entries, seconds, cycle, &mut |done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        let mean = geometric_mean(compared.iter().map(|c| c.ratio));
        let worst = compared.iter().map(|c| c.ratio).fold(f64::INFINITY, f64::min);
        let losses = compared.iter().filter(|c| c.ratio < 0.97).count();
        // Neither side is more than 3 % faster.
        let alike = compared.iter().filter(|c| (0.97..=1.0 / 0.97).contains(&c.ratio)).count();
        if self.json {
            return io.json(&json!({
                "mean": mean, "worst": worst, "losses": losses, "alike": alike, "entries": compared,
            }));
        }
        let other = if against.is_some() { "the other table's" } else { "chooser's" };
        let mut columns = Columns::new(&["entry", "tuned", other, "time", "speed", "pairs"]);
        for c in &compared {
            columns.row(vec![
                c.key.to_string(),
                describe_schedule(&c.tuned),
                describe_schedule(&c.other),
                time(c.seconds),
                format!("{:.3}", c.ratio),
                c.pairs.to_string(),
            ]);
        }
        writeln!(io.out, "{columns}")?;
        writeln!(
            io.out,
            "{} entries: {mean:.3} times as fast as {other} in the geometric mean, worst {worst:.3}, {losses} slower by more \
             than 3 %, {alike} within 3 % of each other",
            compared.len()
        )?;
        Ok(())
    }
}
