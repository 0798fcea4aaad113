//! `tune merge`, `tune diff`: tables as files.

use crate::failure::Failure;
use crate::stages::describe_schedule;
use crate::table::Table as Columns;
use crate::{Io, Outcome};
use bitsmith_autotune::table::{self, Change, Table};
use std::path::PathBuf;

/// Arguments of `tune merge`.
#[derive(Debug, clap::Args)]
pub struct Merge {
    /// Tables of one device
    #[arg(required = true)]
    tables: Vec<PathBuf>,
    /// Where the merged table goes
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl Merge {
    pub(super) fn run(&self, io: &mut Io<'_>) -> Outcome {
        let tables = self.tables.iter().map(|path| table::read(path)).collect::<Result<Vec<Table>, _>>()?;
        let merged = table::merge(&tables)?;
        let _lock = table::Lock::take(&self.out)?;
        table::write(&self.out, &merged)?;
        writeln!(io.out, "{}: {} entries of {}", self.out.display(), merged.entries.len(), merged.device)?;
        Ok(())
    }
}

/// Arguments of `tune diff`.
#[derive(Debug, clap::Args)]
pub struct Diff {
    /// The old table
    old: PathBuf,
    /// The new table
    new: PathBuf,
    /// Times of the same schedule that differ by less count as equal, in percent
    #[arg(long, default_value_t = 5.0)]
    tolerance: f64,
}

impl Diff {
    pub(super) fn run(&self, io: &mut Io<'_>) -> Outcome {
        if !(0.0..=1000.0).contains(&self.tolerance) {
            return Err(Failure::invalid(format!("--tolerance is {}; accepted: 0 to 1000", self.tolerance)));
        }
        let (old, new) = (table::read(&self.old)?, table::read(&self.new)?);
        if old.device != new.device {
            writeln!(io.out, "devices: {} and {}", old.device, new.device)?;
        }
        let changes = table::diff(&old, &new, self.tolerance / 100.0);
        let mut columns = Columns::new(&["entry", "change", "old", "new", "speed"]);
        for change in &changes {
            let row = match change {
                Change::Added(e) => {
                    vec![e.key.to_string(), "added".into(), "-".into(), describe_schedule(&e.schedule), "-".into()]
                }
                Change::Removed(e) => {
                    vec![e.key.to_string(), "removed".into(), describe_schedule(&e.schedule), "-".into(), "-".into()]
                }
                Change::Schedule(key, old, new, ratio) => {
                    let (old, new) = (describe_schedule(old), describe_schedule(new));
                    vec![key.to_string(), "schedule".into(), old, new, format!("x{ratio:.2}")]
                }
                Change::Time(key, ratio) => {
                    vec![key.to_string(), "time".into(), "-".into(), "-".into(), format!("x{ratio:.2}")]
                }
            };
            columns.row(row);
        }
        if columns.is_empty() {
            writeln!(io.out, "no difference beyond {} %", self.tolerance)?;
            return Ok(());
        }
        write!(io.out, "{columns}")?;
        Err(Failure::Found(format!("{} entries differ", changes.len())))
    }
}
