//! Measures kernels on a device: first the answer against the reference, then the time against the machine's roofs.

use crate::failure::Failure;
use crate::plan::{DECODE_ROWS, Phase};
use crate::roofs::{Limit, Roofs};
use crate::stages::describe_schedule;
use crate::table::{Table, ratio, time};
use bitsmith_autotune::execute::Prepared;
use bitsmith_autotune::problem::{Problem, Report, Sample};
use bitsmith_autotune::repeat::Repeat;
use bitsmith_compiler::artifact::Artifact;
use bitsmith_compiler::format::n16::N16;
use bitsmith_compiler::op::Op;
use bitsmith_compiler::schedule::Schedule;
use bitsmith_runtime::roofs::Reader;
use bitsmith_runtime::timing::{self, Measurement};
use bitsmith_runtime::{Device, Launch};
use serde::Serialize;
use std::time::{Duration, Instant};

/// One kernel, measured with one number of rows.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub phase: Phase,
    pub layers: String,
    pub entry: String,
    pub n: Option<usize>,
    pub k: usize,
    pub m: usize,
    pub threads: usize,
    pub schedule: Schedule,
    /// Seconds per launch.
    pub seconds: Measurement,
    /// Seconds that a plain reading of as many bytes took in turn with it, where it was read in turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reading: Option<Measurement>,
    /// Copies of the weights that were used in turn.
    pub copies: usize,
    /// Whether the device's own clock told the time.
    pub by_device_clock: bool,
    /// Bytes that an ideal kernel moves.
    pub bytes: usize,
    /// Operations, two per product.
    pub operations: f64,
    pub gbs: f64,
    pub gops: f64,
    /// The roof that limits it: its name and value, in GB/s or GOP/s.
    pub roof: &'static str,
    pub roof_value: f64,
    /// Share of the roof; absent where this machine's roof is not known.
    pub fraction: Option<f64>,
    /// What the comparison with the reference found.
    pub check: Report,
}

/// How long and with how much memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Time to sample for.
    pub budget: Duration,
    /// Bytes of weights to cycle through while decoding.
    pub cycle: usize,
}

/// Bytes that measuring an operation takes, at most.
pub(crate) fn memory(op: &Op, m: usize, cycle: usize) -> f64 {
    match op {
        Op::Matmul(op) => {
            let packed = packed(op.n, N16::of(&op.weight, op.k).ok());
            let rows = m as f64 * (op.k as f64 * 24.0 + op.n as f64 * 8.0);
            op.n as f64 * op.k as f64 * 2.0 + packed + packed.max(cycle as f64 + packed) + rows
        }
        Op::Dequant(op) => {
            let packed = packed(op.n, N16::of(&op.weight, op.k).ok());
            op.n as f64 * op.k as f64 * (2.0 + 3.0 * op.out.bits() as f64 / 8.0) + 2.0 * packed
        }
        Op::Quantize(op) => m as f64 * op.k as f64 * 32.0,
    }
}

fn packed(n: usize, layout: Option<N16>) -> f64 {
    layout.map_or(0.0, |layout| n.div_ceil(16) as f64 * layout.record as f64)
}

/// What is measured.
pub(crate) struct Subject<'a> {
    pub op: &'a Op,
    pub schedule: &'a Schedule,
    pub artifact: &'a Artifact,
    pub layers: &'a str,
    pub m: usize,
    pub seed: u64,
}

/// Checks and times one kernel with random weights; [`set_roofs`] completes the row. `last` is the problem measured before,
/// whose weights are used again where the operation is the same. `before` is launched ahead of each run. While decoding, the
/// reader takes turns with it.
pub(crate) fn measure(
    device: &dyn Device,
    subject: &Subject<'_>,
    last: &mut Option<Problem>,
    before: Option<&Prepared<'_>>,
    mut reader: Option<&mut Reader>,
    effort: Effort,
) -> Result<Row, Failure> {
    let Subject { op, schedule, artifact, m, seed, .. } = *subject;
    let problem = match last.take() {
        Some(last) if last.op == *op => last.with_rows(m, seed)?,
        _ => Problem::random(op, m, seed)?,
    };
    let (phase, n, k) = match op {
        Op::Matmul(op) => (if m > DECODE_ROWS { Phase::Prefill } else { Phase::Decode }, Some(op.n), op.k),
        Op::Dequant(op) => (Phase::Dequant, Some(op.n), op.k),
        Op::Quantize(op) => (Phase::Quantize, None, op.k),
    };
    let traffic = problem.traffic();
    let cycled = phase == Phase::Decode || device.caps().gpu.is_some() && m <= CYCLED_ROWS;
    let copies = if cycled { effort.cycle.div_ceil(traffic.max(1)).clamp(1, 4096) } else { 1 };
    let prepared = Prepared::new(device, &problem, artifact, schedule, copies)?;
    let start = Instant::now();
    prepared.launch(0)?;
    device.synchronize()?;
    let first = start.elapsed().as_secs_f64();
    let check = compared(&prepared, &problem)?;
    let turns = Turns { device, prepared: &prepared, before, copies };
    let recorded = turns.recorded(effort.budget)?;
    let by_device_clock = recorded.is_some();
    if let Some(reader) = &mut reader {
        reader.set_piece(traffic);
    }
    let reader = reader.filter(|reader| phase == Phase::Decode && reader.piece() == traffic);
    let (seconds, reading) = match recorded {
        Some(seconds) => (seconds, None),
        None => turns.sample(first, reader, effort.budget)?,
    };
    let operations = problem.operations();
    let (gbs, gops) = (traffic as f64 / seconds.median / 1e9, operations / seconds.median / 1e9);
    *last = Some(problem);
    Ok(Row {
        phase,
        layers: subject.layers.to_string(),
        entry: artifact.entry.clone(),
        n,
        k,
        m,
        threads: device.info().threads,
        schedule: *schedule,
        seconds,
        reading,
        copies,
        by_device_clock,
        bytes: traffic,
        operations,
        gbs,
        gops,
        roof: "",
        roof_value: 0.0,
        fraction: None,
        check,
    })
}

/// Sets rows against the roofs of the same run.
pub(crate) fn set_roofs(rows: &mut [Row], op: impl Fn(&Row) -> Option<Op>, roofs: &Roofs) {
    for row in rows {
        let Some(op) = op(row) else { continue };
        let many = row.phase == Phase::Prefill;
        let reached = match roofs.limit(&op, many, row.bytes as f64, row.operations) {
            Limit::Memory(gbs) => {
                (row.roof, row.roof_value) = ("read", gbs);
                row.gbs
            }
            Limit::Arithmetic(name, gops) => {
                (row.roof, row.roof_value) = (name, gops);
                row.gops
            }
        };
        row.fraction = (row.roof_value > 0.0).then(|| reached / row.roof_value);
    }
}

/// Launches once and compares.
pub(crate) fn checked(prepared: &Prepared<'_>, problem: &Problem) -> Result<Report, Failure> {
    prepared.launch(0)?;
    compared(prepared, problem)
}

fn compared(prepared: &Prepared<'_>, problem: &Problem) -> Result<Report, Failure> {
    let outputs = prepared.outputs()?;
    let outputs: Vec<&[u8]> = outputs.iter().map(Vec::as_slice).collect();
    Ok(problem.check(prepared.family(), &outputs, Sample::Lines(16)))
}

/// Rows up to which a GPU is bound by the weights' bytes, so that they are cycled through as while decoding.
const CYCLED_ROWS: usize = 64;

/// Most launches of a recording, where there are no more copies than that.
const MOST_RECORDED: usize = 4096;

/// A launch that takes longer than this is timed once more, one that takes four times as long not again.
const LONG: f64 = 0.5;

/// Launches in turn over the copies of the weights.
struct Turns<'a> {
    device: &'a dyn Device,
    prepared: &'a Prepared<'a>,
    before: Option<&'a Prepared<'a>>,
    copies: usize,
}

/// Least samples where the device's own clock tells the time.
const LEAST_SAMPLES: usize = 20;
/// What such a sample should take at least, so that its ends weigh nothing.
const SAMPLE: f64 = 2e-3;
/// How long threads are given to fall asleep.
const SETTLE: Duration = Duration::from_micros(300);

impl Turns<'_> {
    /// So many runs in turn.
    fn launches(&self, runs: usize) -> Vec<Launch<'_>> {
        (0..runs)
            .flat_map(|turn| {
                self.before.map(|before| before.launch_of(turn)).into_iter().chain([self.prepared.launch_of(turn)])
            })
            .collect()
    }

    /// Times recordings that the device repeats; `None` where it has no clock of its own. Every recording goes through all
    /// copies.
    fn recorded(&self, budget: Duration) -> Result<Option<Measurement>, Failure> {
        let mut repeat = Repeat::new(self.device, self.launches(self.copies))?;
        if !repeat.by_device() {
            return Ok(None);
        }
        repeat.run()?;
        let once = (repeat.run()? / self.copies as f64).max(1e-9);
        let wanted = ((SAMPLE / once).ceil() as usize).next_multiple_of(self.copies);
        let runs = wanted.min(MOST_RECORDED).max(self.copies);
        if runs != self.copies {
            repeat = Repeat::new(self.device, self.launches(runs))?;
            repeat.run()?;
        }
        let (start, mut samples) = (Instant::now(), Vec::new());
        let least = if once * runs as f64 > 0.1 { 5 } else { LEAST_SAMPLES };
        while samples.len() < least || start.elapsed() < budget {
            samples.push(repeat.run()? / runs as f64);
        }
        Ok(Some(Measurement::of(samples)))
    }

    /// Times launches by the host's clock until the budget is used up, in turn with a plain reading where there is a reader;
    /// `first` is how long the launch took that was compared.
    fn sample(
        &self,
        first: f64,
        mut reader: Option<&mut Reader>,
        budget: Duration,
    ) -> Result<(Measurement, Option<Measurement>), Failure> {
        let mut turn = 0;
        let mut run = |runs: usize| -> Result<f64, Failure> {
            let start = Instant::now();
            for _ in 0..runs {
                if let Some(before) = self.before {
                    before.launch(turn)?;
                }
                self.prepared.launch(turn)?;
                turn += 1;
            }
            self.device.synchronize()?;
            Ok(start.elapsed().as_secs_f64() / runs as f64)
        };
        if first > 4.0 * LONG && self.before.is_none() {
            return Ok((Measurement::of(vec![first]), None));
        }
        let once = run(1)?.max(1e-9);
        if once > LONG {
            return Ok((Measurement::of(vec![once]), None));
        }
        let runs = ((SAMPLE / once).ceil() as usize).clamp(1, 100_000);
        let (start, mut samples, mut reading) = (Instant::now(), Vec::new(), Vec::new());
        while samples.len() < 3 || start.elapsed() < budget {
            samples.push(run(runs)?);
            if let Some(reader) = &mut reader {
                // Threads that look out for the next launch are in the way of others.
                std::thread::sleep(SETTLE);
                reading.push(timing::seconds(|| (0..runs).for_each(|_| reader.pass())) / runs as f64);
                std::thread::sleep(SETTLE);
            }
        }
        Ok((Measurement::of(samples), reader.map(|_| Measurement::of(reading))))
    }
}

/// Rows as a table.
pub(crate) fn table<'r>(rows: impl Iterator<Item = &'r Row>, phase: Phase) -> Table {
    let rate = if phase == Phase::Prefill { "GOP/s" } else { "GB/s" };
    let mut table = Table::new(&[
        "kernel",
        "NxK",
        "M",
        "schedule",
        "threads",
        "time",
        rate,
        "of roof",
        "roof",
        "of reading",
        "max error",
        "bound",
        "error/bound",
        "verdict",
    ]);
    for row in rows.filter(|row| row.phase == phase) {
        table.row(vec![
            row.layers.clone(),
            row.n.map_or(format!("K={}", row.k), |n| format!("{n}x{}", row.k)),
            if phase == Phase::Dequant { "-".into() } else { row.m.to_string() },
            describe_schedule(&row.schedule),
            row.threads.to_string(),
            time(row.seconds.median),
            format!("{:.1}", if phase == Phase::Prefill { row.gops } else { row.gbs }),
            row.fraction.map_or("-".into(), |fraction| format!("{:.0} %", 100.0 * fraction)),
            if row.roof.is_empty() { "-".into() } else { row.roof.into() },
            row.reading.map_or("-".into(), |reading| format!("{:.0} %", 100.0 * reading.median / row.seconds.median)),
            format!("{:.2e}", row.check.max_error),
            format!("{:.2e}", row.check.bound),
            ratio(row.check.worst_ratio),
            if row.check.passed() { "ok".into() } else { "WRONG".into() },
        ]);
    }
    table
}
