//! The command line: one binary, one file per subcommand.
//!
//! Reads arguments; writes text for people, or one JSON document with `--json`, to stdout, and errors to stderr. Always
//! holds: exit code 0 is success, 1 is a fault that was found (a wrong kernel, a bad file under `check`), 2 is a request
//! that cannot be served, whose message names what is wrong and what would be accepted.

#![forbid(unsafe_code)]

pub mod bundle;
pub mod command;
mod failure;
mod files;
mod forced;
mod kv;
mod launch;
mod measure;
mod memory;
mod place;
mod plan;
mod roofs;
mod shapes;
mod stages;
mod table;
mod tuned;
mod weights;

pub use failure::Failure;

use clap::Parser;
use command::Command;
use std::ffi::OsString;
use std::io::Write;

/// What a command did.
pub type Outcome = Result<(), Failure>;

#[derive(Debug, Parser)]
#[command(
    name = "bitsmith",
    version,
    about = "Tuned, verified kernels for quantized LLM inference",
    max_term_width = 120
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Where a command writes.
pub struct Io<'a> {
    /// Results.
    pub out: &'a mut dyn Write,
    /// Errors, warnings, progress.
    pub err: &'a mut dyn Write,
}

impl Io<'_> {
    /// Writes one JSON document, keys in the order of the type.
    pub fn json(&mut self, value: &impl serde::Serialize) -> Outcome {
        let text = serde_json::to_string_pretty(value).map_err(|error| Failure::Output(error.into()))?;
        writeln!(self.out, "{text}")?;
        Ok(())
    }

    /// Says aloud what a user should know about how a device was opened.
    pub(crate) fn notes(&mut self, device: &bitsmith_runtime::DeviceInfo) -> Outcome {
        for note in &device.notes {
            writeln!(self.err, "note: {note}")?;
        }
        Ok(())
    }
}

/// Runs a command line, the program's name first; returns the exit code.
pub fn run<A: Into<OsString> + Clone>(
    args: impl IntoIterator<Item = A>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors, and go to stdout.
            let written = if error.use_stderr() { write!(err, "{error}") } else { write!(out, "{error}") };
            return if error.use_stderr() || written.is_err() { 2 } else { 0 };
        }
    };
    let outcome = cli.command.run(&mut Io { out: &mut *out, err: &mut *err }).and_then(|()| Ok(out.flush()?));
    match outcome {
        Ok(()) => 0,
        Err(failure) => failure.report(err),
    }
}
