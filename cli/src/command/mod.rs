//! The subcommands, one file each.

mod bench;
mod calibrate;
mod check;
mod completions;
mod diff;
mod doctor;
mod eval;
mod export;
mod generate;
mod inspect;
mod list;
mod man;
mod pack;
mod pick;
mod quantize;
mod report;
mod roofline;
mod run;
mod selftest;
mod tune;
mod verify;

use crate::{Io, Outcome};

/// A subcommand with its arguments.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make the kernels that a model needs under a recipe, as a bundle of object files
    Generate(generate::Generate),
    /// Run one operation on a tensor of a model file and compare it with the reference
    Run(run::Run),
    /// Run drawn operations of every family, format and tail on a device and compare them with the reference
    Selftest(selftest::Selftest),
    /// Pack a tensor of a model file as the kernels of a bundle take it
    Pack(pack::Pack),
    /// Time a matmul against this machine's roofs
    Bench(bench::Bench),
    /// Measure schedules for a recipe and a model on a device, and keep the best in a table
    Tune(tune::Tune),
    /// Choose a recipe for a model on a machine
    Pick(pick::Pick),
    /// Collect statistics of what flows through a model
    Calibrate(calibrate::Calibrate),
    /// Take a model through a recipe and write it for other tools
    Quantize(quantize::Quantize),
    /// Write a model in the files of another tool, without rounding again
    Export(export::Export),
    /// Say what quantizing cost and brought: JSON, Markdown, HTML
    Report(report::Report),
    /// Perplexity and task accuracy of a model, alone or beside a reference
    Eval(eval::Eval),
    /// Measure what this machine reads and computes at most
    Roofline(roofline::Roofline),
    /// Parse and verify kernel IR files
    Check(check::Check),
    /// Show what a model file or a bundle holds
    Inspect(inspect::Inspect),
    /// Compute a bundle's hashes again, and its results on a device
    Verify(verify::Verify),
    /// Show in what two bundles differ
    Diff(diff::Diff),
    /// List what other commands accept
    List(list::List),
    /// Show what this machine has, and which outside tools are there
    Doctor(doctor::Doctor),
    /// Print a completion script for a shell
    Completions(completions::Completions),
    /// Write a manual page for each command
    Man(man::Man),
}

impl Command {
    /// Does it.
    pub fn run(&self, io: &mut Io<'_>) -> Outcome {
        match self {
            Command::Generate(command) => command.run(io),
            Command::Run(command) => command.run(io),
            Command::Selftest(command) => command.run(io),
            Command::Pack(command) => command.run(io),
            Command::Bench(command) => command.run(io),
            Command::Tune(command) => command.run(io),
            Command::Pick(command) => command.run(io),
            Command::Calibrate(command) => command.run(io),
            Command::Report(command) => command.run(io),
            Command::Quantize(command) => command.run(io),
            Command::Export(command) => command.run(io),
            Command::Eval(command) => command.run(io),
            Command::Roofline(command) => command.run(io),
            Command::Check(command) => command.run(io),
            Command::Inspect(command) => command.run(io),
            Command::Verify(command) => command.run(io),
            Command::Diff(command) => command.run(io),
            Command::List(command) => command.run(io),
            Command::Doctor(command) => command.run(io),
            Command::Completions(command) => command.run(io),
            Command::Man(command) => command.run(io),
        }
    }
}

/// A float type of activations or results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Float {
    F32,
    F16,
    Bf16,
}

impl Float {
    /// As the compiler knows it.
    pub fn dtype(self) -> bitsmith_compiler::dtype::DType {
        use bitsmith_compiler::dtype::DType;
        match self {
            Float::F32 => DType::F32,
            Float::F16 => DType::F16,
            Float::Bf16 => DType::Bf16,
        }
    }
}

/// Rows as clap takes them: 1 to 2^20.
pub(crate) fn rows(text: &str) -> Result<usize, String> {
    match text.trim().parse::<usize>() {
        Ok(m) if (1..=1 << 20).contains(&m) => Ok(m),
        _ => Err("accepted: 1 to 1048576".into()),
    }
}
