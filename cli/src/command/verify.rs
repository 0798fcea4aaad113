//! `verify`: whether a bundle is what its manifest says, and whether its kernels compute what they should on a device.

mod cache;

use crate::failure::Failure;
use crate::table::Table;
use crate::{Io, Outcome, measure, memory};
use bitsmith_autotune::problem::{Problem, Report, Sample};
use bitsmith_runtime::bundle::{Bundle, Kernel, Kernels, Want};
use bitsmith_runtime::{Buffer, Device, View};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;

/// Arguments of `verify`.
#[derive(Debug, clap::Args)]
pub struct Verify {
    /// The bundle
    bundle: PathBuf,
    /// Run its kernels on a device too and compare them with the reference: cpu, cuda:0
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Numbers of rows to run matmuls and quantizations with
    #[arg(long, value_name = "M", value_delimiter = ',', default_values_t = [1, 7], value_parser = super::rows)]
    m: Vec<usize>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    entry: String,
    m: usize,
    /// Why the runtime took this kernel for so many rows.
    reason: String,
    check: Report,
}

#[derive(Serialize)]
struct Summary<'a> {
    bundle: String,
    files: usize,
    faults: &'a [String],
    /// Why this target; absent where nothing was run.
    target: Option<String>,
    results: &'a [Row],
    /// Caches made of the bundle's kernels.
    caches: &'a [cache::Row],
}

impl Verify {
    pub(super) fn run(&self, io: &mut Io<'_>) -> Outcome {
        let bundle = Arc::new(Bundle::open(&self.bundle)?);
        let faults = bundle.faults();
        let (mut rows, mut caches, mut target) = (Vec::new(), Vec::new(), None);
        // What is not as it was made is not run.
        if let (Some(name), true) = (&self.device, faults.is_empty()) {
            let kernels = Arc::new(Kernels::new(bundle.clone(), bitsmith_runtime::open(name)?)?);
            target = Some(kernels.reason().to_string());
            rows = self.results(&kernels)?;
            caches = cache::results(&kernels)?;
        }
        let summary = Summary {
            bundle: self.bundle.display().to_string(),
            files: bundle.manifest().files().count(),
            faults: &faults,
            target,
            results: &rows,
            caches: &caches,
        };
        if self.json {
            io.json(&summary)?
        } else {
            print(io, &summary)?
        }
        let wrong = rows.iter().filter(|row| !row.check.passed()).map(|row| format!("{}: out of bounds", row.entry));
        let wrong_caches =
            caches.iter().filter(|row| !row.passed()).map(|row| format!("KV cache {}: wrong", row.cache));
        let all: Vec<String> = faults.iter().cloned().chain(wrong).chain(wrong_caches).collect();
        if all.is_empty() { Ok(()) } else { Err(Failure::Found(all.join("\nerror: "))) }
    }

    fn results(&self, kernels: &Kernels) -> Result<Vec<Row>, Failure> {
        let mut rows = Vec::new();
        for entry in &kernels.target().kernels {
            let op = entry.operation()?;
            let counts = if entry.op == "dequant" { &[1][..] } else { &self.m };
            for &m in counts {
                memory::check(&format!("running {}", entry.entry), measure::memory(&op, m, 0), "take smaller --m")?;
                // As an engine asks: for the operation and its sizes.
                let want = Want {
                    op: &entry.op,
                    layer: entry.layers.split('+').next(),
                    n: entry.n,
                    k: Some(entry.k),
                    format: entry.format.as_deref(),
                    activation: entry.activation.as_deref(),
                };
                let choice = kernels.choose(&want, m)?;
                let kernel = kernels.kernel(choice.index)?;
                if rows.iter().any(|row: &Row| row.entry == kernel.entry().entry && row.m == m) {
                    continue;
                }
                let check = run(&kernel, &Problem::random(&op, m, 1)?, &**kernels.device())?;
                rows.push(Row { entry: kernel.entry().entry.clone(), m, reason: choice.reason, check });
            }
        }
        Ok(rows)
    }
}

/// Runs a kernel of a bundle on a problem and compares every output.
fn run(kernel: &Kernel<'_>, problem: &Problem, device: &dyn Device) -> Result<Report, Failure> {
    let packed = problem.packed_for(&kernel.entry().schedule, device.caps())?;
    let mut memories: Vec<Buffer> = Vec::new();
    for buffer in &packed.buffers {
        let memory = device.allocate(buffer.bytes.len())?;
        device.upload(&memory, 0, &buffer.bytes)?;
        memories.push(memory);
    }
    let views: Vec<View<'_>> = memories.iter().map(Buffer::view).collect();
    kernel.launch(problem.m, &views)?;
    device.synchronize()?;
    let mut outputs = Vec::new();
    for (memory, _) in memories.iter().zip(&packed.buffers).filter(|(_, buffer)| buffer.signature.written) {
        let mut bytes = vec![0; memory.bytes()];
        device.download(memory, 0, &mut bytes)?;
        outputs.push(bytes);
    }
    let outputs: Vec<&[u8]> = outputs.iter().map(Vec::as_slice).collect();
    Ok(problem.check(kernel.entry().schedule.family, &outputs, Sample::Lines(64)))
}

fn print(io: &mut Io<'_>, summary: &Summary<'_>) -> Outcome {
    if summary.faults.is_empty() {
        writeln!(io.out, "{}: {} files have the hashes that the manifest states", summary.bundle, summary.files)?;
    }
    if let Some(target) = &summary.target {
        writeln!(io.out, "{target}")?;
        let mut table = Table::new(&["kernel", "m", "error / bound", "compared"]);
        for row in summary.results {
            table.row(vec![
                row.entry.clone(),
                row.m.to_string(),
                format!("{:.3}", row.check.worst_ratio),
                row.check.compared.to_string(),
            ]);
        }
        write!(io.out, "{table}")?;
    }
    if !summary.caches.is_empty() {
        let mut table = Table::new(&["KV cache", "stored", "wrong", "outputs", "error / bound"]);
        for row in summary.caches {
            table.row(vec![
                row.cache.clone(),
                row.stored.to_string(),
                row.wrong.to_string(),
                row.compared.to_string(),
                format!("{:.3}", row.worst_ratio),
            ]);
        }
        write!(io.out, "{table}")?;
    }
    Ok(())
}
