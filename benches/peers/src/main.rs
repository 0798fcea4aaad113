//! Peers side by side with ours: the same weights where formats allow it, in turn, in one run, beside the machine's roofs.
//!
//! Reads formats, shapes, rows and threads; prints a table; writes JSON and a roofline. Always holds: whoever is timed has
//! first come as near to the `f64` product as ggml's own tests ask, and quantizes its activations within its time.
//!
//! Some peers take their number of threads from the environment of their process, so each number of threads is measured
//! in a process of its own.

mod attend;
mod candle;
mod contest;
mod ggml;
mod ours;
mod python;
mod report;
mod subject;

use bitsmith_runtime::roofs;
use clap::Parser;
use contest::{DISCIPLINES, Discipline, Effort, Weights};
use report::Report;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

/// ggml, candle, onnxruntime and OpenVINO beside ours, in one run: products of matrices, and `attend`
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    other: Option<Other>,
    /// Formats [default: all]
    #[arg(long, value_delimiter = ',')]
    formats: Vec<String>,
    /// Shapes, N x K
    #[arg(long, value_delimiter = ',', default_values_t = ["4096x4096".to_string(), "14336x4096".to_string()])]
    shapes: Vec<String>,
    /// Numbers of rows
    #[arg(long, value_delimiter = ',', default_values_t = [1, 128, 512])]
    m: Vec<usize>,
    /// Numbers of threads
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    threads: Vec<usize>,
    /// Megabytes of weights to cycle through with up to 8 rows
    #[arg(long, default_value_t = 256)]
    cycle_mb: usize,
    /// Milliseconds per subject of a contest
    #[arg(long, default_value_t = 500)]
    budget_ms: u64,
    /// A Python that has onnxruntime, onnx and openvino; without one these peers are skipped
    #[arg(long)]
    python: Option<PathBuf>,
    /// Write everything as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write a roofline
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Measure in this process, and print JSON
    #[arg(long, hide = true)]
    inner: bool,
}

/// Contests other than products.
#[derive(Debug, clap::Subcommand)]
enum Other {
    Attend(attend::Attend),
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match &args.other {
        Some(Other::Attend(attend)) => attend.run(),
        None if args.inner => inner(&args),
        None => outer(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

/// A process per number of threads; their reports together.
fn outer(args: &Args) -> Result<(), String> {
    chosen(args)?;
    shapes(args)?;
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut all = Report::default();
    for threads in &args.threads {
        let mut command = Command::new(&program);
        command.args(["--inner", "--threads", &threads.to_string()]);
        command.args(["--cycle-mb", &args.cycle_mb.to_string(), "--budget-ms", &args.budget_ms.to_string()]);
        command.args(["--shapes", &args.shapes.join(",")]);
        command.args(["--m", &args.m.iter().map(usize::to_string).collect::<Vec<_>>().join(",")]);
        if !args.formats.is_empty() {
            command.args(["--formats", &args.formats.join(",")]);
        }
        if let Some(python) = &args.python {
            command.arg("--python").arg(python);
        }
        command.env("RAYON_NUM_THREADS", threads.to_string()).env("CANDLE_NUM_THREADS", threads.to_string());
        let output = command.stderr(std::process::Stdio::inherit()).output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(format!("with {threads} threads: {}", output.status));
        }
        let report: Report = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
        all = Report { roofs: [all.roofs, report.roofs].concat(), rows: [all.rows, report.rows].concat(), ..report };
    }
    print!("{}", all.table());
    if let Some(path) = &args.json {
        write(path, &serde_json::to_string_pretty(&all).map_err(|error| error.to_string())?)?;
    }
    if let Some(path) = &args.svg {
        write(path, &all.plot().svg())?;
    }
    Ok(())
}

/// Every contest with one number of threads.
fn inner(args: &Args) -> Result<(), String> {
    let threads = *args.threads.first().ok_or("no number of threads")?;
    let effort = Effort {
        threads,
        cycle: args.cycle_mb << 20,
        budget: Duration::from_millis(args.budget_ms),
        python: args.python.clone(),
    };
    ggml::silence();
    let footprint = effort.cycle.max(256 << 20);
    let before = roofs::measure(threads, footprint);
    let mut rows = Vec::new();
    for (n, k) in shapes(args)? {
        for discipline in chosen(args)? {
            let weights = Weights::new(discipline.format, n, k)?;
            for &m in &args.m {
                rows.extend(contest::hold(discipline, &weights, m, &effort)?);
            }
        }
    }
    let roofs = vec![before.higher(&roofs::measure(threads, footprint))];
    let report = Report { processor: bitsmith_runtime::cpu::model(), ggml: ggml::features(), roofs, rows };
    println!("{}", serde_json::to_string(&report).map_err(|error| error.to_string())?);
    Ok(())
}

fn chosen(args: &Args) -> Result<Vec<&'static Discipline>, String> {
    if args.formats.is_empty() {
        return Ok(DISCIPLINES.iter().collect());
    }
    let known = || DISCIPLINES.iter().map(|d| d.format).collect::<Vec<_>>().join(", ");
    let find = |name: &String| {
        DISCIPLINES.iter().find(|d| d.format == name).ok_or_else(|| format!("format `{name}`; accepted: {}", known()))
    };
    args.formats.iter().map(find).collect()
}

/// N and K of each shape; K in whole blocks of every format.
fn shapes(args: &Args) -> Result<Vec<(usize, usize)>, String> {
    let shape = |text: &String| {
        let (n, k) = text.split_once('x')?;
        let (n, k): (usize, usize) = (n.parse().ok()?, k.parse().ok()?);
        (n > 0 && k > 0 && n.is_multiple_of(8) && k.is_multiple_of(256)).then_some((n, k))
    };
    let bad = |text: &String| format!("shape `{text}`; accepted: NxK, N a multiple of 8, K one of 256");
    args.shapes.iter().map(|text| shape(text).ok_or_else(|| bad(text))).collect()
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}
