//! `roofline`: what this machine reads and computes at most, per number of threads, in a table, JSON or a picture.

use crate::failure::Failure;
use crate::table::Table;
use crate::{Io, Outcome, memory};
use bitsmith_runtime::roofs::picture::{Plot, Point};
use bitsmith_runtime::roofs::{self, Roofs};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Arguments of `roofline`.
#[derive(Debug, clap::Args)]
pub struct Roofline {
    /// Numbers of threads [default: 1, 2, 4, … up to all of this machine]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Vec<u32>,
    /// Megabytes to read; far more than the caches hold
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    footprint_mb: u64,
    /// Write a picture
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Kernels to set into the picture: what `bitsmith bench --json` printed
    #[arg(long, value_name = "FILE", requires = "svg")]
    points: Vec<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Summary {
    processor: String,
    roofs: Vec<Roofs>,
}

/// What `bench --json` prints, as far as a picture needs it.
#[derive(Deserialize)]
struct Benchmark {
    op: String,
    measurements: Vec<Measured>,
}

#[derive(Deserialize)]
struct Measured {
    m: usize,
    threads: usize,
    bytes: f64,
    operations: f64,
    gops: f64,
}

impl Roofline {
    pub(super) fn run(&self, io: &mut Io<'_>) -> Outcome {
        let footprint = (self.footprint_mb as usize) << 20;
        memory::check("reading", footprint as f64, "take a smaller --footprint-mb")?;
        // A file that cannot be read is told before anything is measured.
        let points = self.points.iter().map(|path| points(path)).collect::<Result<Vec<_>, _>>()?.concat();
        let roofs: Vec<Roofs> =
            self.numbers().iter().map(|&threads| roofs::measure(threads as usize, footprint)).collect();
        let summary = Summary { processor: bitsmith_runtime::cpu::model(), roofs };
        if let Some(path) = &self.svg {
            let plot = Plot { title: format!("{}: roofline", summary.processor), roofs: summary.roofs.clone(), points };
            std::fs::write(path, plot.svg()).map_err(|error| Failure::file(path, "written", &error))?;
        }
        if self.json { io.json(&summary) } else { print(io, &summary) }
    }

    fn numbers(&self) -> Vec<u32> {
        if !self.threads.is_empty() {
            return self.threads.clone();
        }
        let all = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        let mut numbers: Vec<u32> = (0..).map(|power| 1 << power).take_while(|&n| n < all).collect();
        numbers.push(all);
        numbers
    }
}

/// The kernels of a file.
fn points(path: &Path) -> Result<Vec<Point>, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| Failure::file(path, "read", &error))?;
    let bench: Benchmark = serde_json::from_str(&text).map_err(|error| {
        Failure::invalid(format!("{}: {error}; accepted: what `bitsmith bench --json` prints", path.display()))
    })?;
    let point = |row: &Measured| Point {
        series: bench.op.clone(),
        label: format!("M={}, {} threads", row.m, row.threads),
        intensity: row.operations / row.bytes,
        gops: row.gops,
    };
    Ok(bench.measurements.iter().map(point).collect())
}

fn print(io: &mut Io<'_>, summary: &Summary) -> Outcome {
    writeln!(io.out, "{}", summary.processor)?;
    let mut table = Table::new(&["threads", "read GB/s", "dot GOP/s", "dot by", "fma GFLOP/s", "fma by"]);
    let best = |best: Option<(&str, f64)>| match best {
        Some((name, gops)) => [format!("{gops:.0}"), name.to_string()],
        None => ["-".to_string(), "-".to_string()],
    };
    for roofs in &summary.roofs {
        let mut cells = vec![roofs.threads.to_string(), format!("{:.1}", roofs.read_gbs)];
        cells.extend(best(roofs.best_dot(8)));
        cells.extend(best(roofs.best_fma()));
        table.row(cells);
    }
    write!(io.out, "{table}")?;
    for roofs in &summary.roofs {
        writeln!(io.out, "{}", crate::roofs::Roofs::Cpu(*roofs).describe())?;
    }
    Ok(())
}
