//! `completions`: a completion script for a shell.

use crate::{Io, Outcome};
use clap::CommandFactory;

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
pub struct Completions {
    /// Which shell
    shell: clap_complete::Shell,
}

impl Completions {
    pub(super) fn run(&self, io: &mut Io<'_>) -> Outcome {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut crate::Cli::command(), "bitsmith", &mut script);
        io.out.write_all(&script)?;
        Ok(())
    }
}
