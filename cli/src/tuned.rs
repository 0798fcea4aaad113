//! `--tuned`: which tables schedules are taken from.

use crate::failure::Failure;
use bitsmith_autotune::choice::Tables;
use bitsmith_autotune::table;
use std::path::Path;

/// Tables of tuned schedules.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Tuned {
    /// Tables of `bitsmith tune` to take schedules from, before those that ship; `none` for the chooser alone
    #[arg(long, value_name = "FILE|none", value_delimiter = ',')]
    tuned: Vec<String>,
}

impl Tuned {
    /// The tables that are asked for.
    pub(crate) fn tables(&self) -> Result<Tables, Failure> {
        if self.tuned.iter().any(|name| name == "none") {
            return match self.tuned.len() {
                1 => Ok(Tables::none()),
                _ => Err(Failure::invalid("--tuned: `none` among others; accepted: `none` alone, or files")),
            };
        }
        let mut tables = Tables::shipped()?;
        for name in self.tuned.iter().rev() {
            tables = tables.with(table::read(Path::new(name))?);
        }
        Ok(tables)
    }
}
