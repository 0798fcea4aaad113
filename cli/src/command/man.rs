//! `man`: manual pages, one for the program and one for each command, from the same description as `--help`.

use crate::failure::Failure;
use crate::{Io, Outcome, files};
use clap::CommandFactory;
use std::path::{Path, PathBuf};

/// Arguments of `man`.
#[derive(Debug, clap::Args)]
pub struct Man {
    /// Folder of the pages: share/man/man1 of a prefix
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
}

impl Man {
    pub(super) fn run(&self, io: &mut Io<'_>) -> Outcome {
        std::fs::create_dir_all(&self.out).map_err(|error| Failure::file(&self.out, "created", &error))?;
        // Building gives commands their full names: `bitsmith-bench-attend`.
        let mut program = crate::Cli::command().disable_help_subcommand(true);
        program.build();
        let count = pages(&program, &self.out)?;
        writeln!(io.out, "{count} pages in {}", self.out.display())?;
        Ok(())
    }
}

/// Writes the page of a command and those of the commands under it; their number.
fn pages(command: &clap::Command, out: &Path) -> Result<usize, Failure> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_string();
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    files::write(&out.join(format!("{name}.1")), page)?;
    command
        .get_subcommands()
        .filter(|under| !under.is_hide_set())
        .try_fold(1, |count, under| Ok(count + pages(under, out)?))
}
