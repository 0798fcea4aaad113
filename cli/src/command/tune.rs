//! `tune`: schedules for the matmuls of a recipe and a model, measured on a device and kept in a table.

mod check;
mod files;
mod groups;
mod progress;

use crate::failure::Failure;
use crate::memory;
use crate::plan;
use crate::shapes;
use crate::stages::describe_schedule;
use crate::table::{Table, time};
use crate::{Io, Outcome};
use bitsmith_autotune::bucket::BUCKETS;
use bitsmith_autotune::choice::Tables;
use bitsmith_autotune::key::Key;
use bitsmith_autotune::measure::{Clock, MachineClock};
use bitsmith_autotune::report;
use bitsmith_autotune::simulate::{self, SimulatedDevice};
use bitsmith_autotune::table::DeviceName;
use bitsmith_autotune::tune::{self, Options, Shard, Summary};
use bitsmith_calibrate::recipe::Recipe;
use bitsmith_runtime::Device;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Arguments of `tune`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Tune {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    start: Option<Start>,
}

/// What can be done with tables.
#[derive(Debug, clap::Subcommand)]
enum Action {
    /// One table out of several of the same device; their order does not matter
    Merge(files::Merge),
    /// What is different in a second table; exit code 1 if anything is
    Diff(files::Diff),
    /// Weigh speed against error over group sizes, per layer of a model
    Groups(groups::Groups),
    /// Measure a table's schedules against the chooser's again, side by side
    Check(check::Check),
}

/// Arguments of a run.
#[derive(Debug, clap::Args)]
struct Start {
    /// What is done to the weights and activations; `bitsmith list recipes`
    #[arg(long, value_name = "NAME")]
    recipe: String,
    /// A model (`bitsmith list shapes`), the path of a config.json, or sizes NxK separated by commas
    #[arg(long, value_name = "SHAPES")]
    shapes: String,
    /// Where it is measured: any device that kernels run on here, such as cpu, cpu:<threads>, hip:<index>, vulkan:<index>; or simulated:<seed>
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: String,
    /// Numbers of rows (tokens) to tune for [default: 1, 2, 4, … 4096]
    #[arg(long, value_name = "M", value_delimiter = ',', value_parser = super::rows)]
    m: Vec<usize>,
    /// Activations other than the recipe's
    #[arg(long, value_name = "ACTIVATION")]
    activation: Option<String>,
    /// Type of results [default: that of the activations, f16 where they are quantized]
    #[arg(long, value_name = "TYPE")]
    result: Option<super::Float>,
    /// Seconds of measuring in all
    #[arg(long, value_name = "SECONDS", default_value_t = 420, value_parser = clap::value_parser!(u32).range(1..=604_800))]
    budget: u32,
    /// The table; what it holds already stays [default: autotune/tuned/<device>.json]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Go on with a run that was cut
    #[arg(long)]
    resume: bool,
    /// Throw away the journal of a run that was cut
    #[arg(long, conflicts_with = "resume")]
    fresh: bool,
    /// Tune only part i of n: for machines that share the work
    #[arg(long, value_name = "I/N", default_value = "1/1")]
    shard: Shard,
    /// Measure every candidate instead of searching
    #[arg(long)]
    exhaustive: bool,
    /// Megabytes of weights to cycle through while decoding
    #[arg(long, default_value_t = 192, value_parser = clap::value_parser!(u64).range(..=1 << 20))]
    cycle_mb: u64,
    /// Seed of random numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write a page about the run: what was gained where, and why
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// A device and the clock that times it.
pub(super) struct Timed {
    pub device: Arc<dyn Device>,
    pub clock: Box<dyn Clock>,
}

impl Timed {
    /// Opens a device that runs kernels.
    pub fn open(name: &str) -> Result<Timed, Failure> {
        if let Some(rest) = name.strip_prefix(simulate::NAME) {
            let seed = match rest.strip_prefix(':') {
                None if rest.is_empty() => Some(1),
                None => None,
                Some(seed) => seed.parse().ok(),
            };
            let seed = seed.ok_or_else(|| {
                Failure::invalid(format!("device `{name}`; accepted: simulated:<seed>, the seed a number"))
            })?;
            let device = SimulatedDevice::new(seed, 0.01)?.paused(Duration::from_micros(300));
            let clock = Box::new(device.clock());
            return Ok(Timed { device: Arc::new(device), clock });
        }
        Ok(Timed { device: bitsmith_runtime::open(name)?, clock: Box::new(MachineClock::default()) })
    }
}

#[derive(Serialize)]
struct Document<'a> {
    table: String,
    device: &'a DeviceName,
    entries: usize,
    /// Geometric mean of how many times as long the chooser's launches took.
    gain: f64,
    replayed: usize,
    seconds: f64,
}

impl Tune {
    pub(super) fn run(&self, io: &mut Io<'_>) -> Outcome {
        match (&self.action, &self.start) {
            (Some(Action::Merge(command)), _) => command.run(io),
            (Some(Action::Diff(command)), _) => command.run(io),
            (Some(Action::Check(command)), _) => command.run(io),
            (Some(Action::Groups(command)), _) => command.run(io),
            (None, Some(start)) => start.run(io),
            (None, None) => {
                Err(Failure::invalid("tune: accepted: --recipe and --shapes, or merge, diff, check, groups"))
            }
        }
    }
}

impl Start {
    fn run(&self, io: &mut Io<'_>) -> Outcome {
        let begun = Instant::now();
        let recipe = Recipe::by_name(&self.recipe)?;
        let model = shapes::resolve(&self.shapes)?;
        let timed = Timed::open(&self.device)?;
        let device = &*timed.device;
        let rows = if self.m.is_empty() { BUCKETS.to_vec() } else { self.m.clone() };
        let request = plan::Request {
            recipe,
            model: &model,
            activation: self.activation.as_deref(),
            result: self.result.map(super::Float::dtype),
            rows: &rows,
            tables: &Tables::none(),
            device: None,
        };
        let plan = plan::Plan::new(&request, device.caps())?;
        let of =
            |kernel: &plan::Planned| kernel.rows.iter().filter_map(|&m| Key::of(&kernel.op, m)).collect::<Vec<_>>();
        let keys: Vec<Key> = plan.kernels.iter().flat_map(of).collect();
        let name = DeviceName::of(&device.info());
        let path = match &self.out {
            Some(path) => path.clone(),
            None => PathBuf::from("autotune/tuned").join(format!("{}.json", name.slug())),
        };
        let options = Options {
            budget: f64::from(self.budget),
            seed: self.seed,
            shard: self.shard,
            exhaustive: self.exhaustive,
            cycle: (self.cycle_mb as usize) << 20,
            resume: self.resume,
            fresh: self.fresh,
            warm: Tables::shipped()?.list().to_vec(),
            date: progress::today(),
            code_generator: match device.info().name.as_str() {
                "cpu" => format!("cranelift {}", bitsmith_compiler::target::cpu::CRANELIFT_VERSION),
                other => format!("{other} driver"),
            },
        };
        let (count, most) = tune::extent(device, &keys, &options)?;
        memory::check("tuning", most, "take smaller --shapes, --m or --cycle-mb")?;
        let mut bar = progress::Bar::new(count);
        let summary = tune::tune(device, &*timed.clock, &keys, &options, &path, &mut bar)?;
        bar.finish();
        if let Some(path) = &self.report {
            crate::files::write(path, &report::page(&summary).html()?)?;
        }
        if self.json {
            return io.json(&Document {
                table: path.display().to_string(),
                device: &summary.table.device,
                entries: summary.entries.len(),
                gain: summary.gain(),
                replayed: summary.replayed,
                seconds: begun.elapsed().as_secs_f64(),
            });
        }
        print(io, &summary)?;
        for note in &plan.notes {
            writeln!(io.out, "note: {note}")?;
        }
        writeln!(io.out, "{:.0} s in all", begun.elapsed().as_secs_f64())?;
        Ok(())
    }
}

fn print(io: &mut Io<'_>, summary: &Summary) -> Outcome {
    let mut table = Table::new(&[
        "weights",
        "NxK",
        "M",
        "taken",
        "time",
        "of roof",
        "bound by",
        "chooser's",
        "gain",
        "tried",
        "runner-up",
    ]);
    for entry in &summary.entries {
        table.row(vec![
            entry.key.weight.clone(),
            format!("{}x{}", entry.key.n, entry.key.k),
            entry.key.m.to_string(),
            describe_schedule(&entry.schedule),
            time(entry.of_all_rows() * entry.key.n as f64 / entry.columns as f64),
            entry.share.map_or("-".into(), |share| format!("{:.0} %", 100.0 * share)),
            entry.bound.clone(),
            describe_schedule(&entry.chooser),
            format!("{:.2}", entry.chooser_seconds / entry.seconds),
            format!("{}/{}{}", entry.tried.measured, entry.tried.declared, if entry.tried.cut { " cut" } else { "" }),
            entry.runner_up.map_or("-".into(), |(s, ratio)| format!("{} x{ratio:.2}", describe_schedule(&s))),
        ]);
    }
    writeln!(io.out, "{table}")?;
    let wrong: usize = summary.entries.iter().map(|e| e.tried.wrong).sum();
    if wrong > 0 {
        writeln!(io.out, "{wrong} candidates disagree with the reference and were refused")?;
    }
    if summary.replayed > 0 {
        writeln!(io.out, "{} samples came from the journal", summary.replayed)?;
    }
    writeln!(
        io.out,
        "{} entries, {:.3} times as fast as the chooser's in the geometric mean; {}",
        summary.entries.len(),
        summary.gain(),
        summary.path.display()
    )?;
    Ok(())
}
