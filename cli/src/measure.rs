//! Measures kernels on a device: first the answer against the reference, then the time against the machine's roofs.

use crate::failure::Failure;
use crate::plan::{DECODE_ROWS, Phase};
use crate::stages::describe_schedule;
use crate::table::{Table, ratio, time};
use bitsmith_autotune::execute::Prepared;
use bitsmith_autotune::problem::{Problem, Report, Sample};
use bitsmith_compiler::artifact::Artifact;
use bitsmith_compiler::format::n16::N16;
use bitsmith_compiler::op::{Activation, Op};
use bitsmith_compiler::schedule::Schedule;
use bitsmith_runtime::Device;
use bitsmith_runtime::roofs::{self, Roofs};
use bitsmith_runtime::timing::Measurement;
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
    /// Copies of the weights that were used in turn.
    pub copies: usize,
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

/// Checks and times one kernel with random weights; [`set_roofs`] completes the row. `last` is the problem measured before, whose weights are used again
/// where the operation is the same. `before` is launched ahead of each run.
pub(crate) fn measure(
    device: &dyn Device,
    subject: &Subject<'_>,
    last: &mut Option<Problem>,
    before: Option<&Prepared<'_>>,
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
    let copies = if phase == Phase::Decode { effort.cycle.div_ceil(traffic.max(1)).clamp(1, 4096) } else { 1 };
    let prepared = Prepared::new(device, &problem, artifact, schedule, copies)?;
    let start = Instant::now();
    prepared.launch(0)?;
    prepared.synchronize()?;
    let first = start.elapsed().as_secs_f64();
    let check = compared(&prepared, &problem)?;
    let seconds = sample(&prepared, before, first, effort.budget)?;
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
        copies,
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
        (row.roof, row.roof_value) = roof(&op, row.phase, roofs);
        let reached = if row.phase == Phase::Prefill { row.gops } else { row.gbs };
        row.fraction = (row.roof_value > 0.0).then(|| reached / row.roof_value);
    }
}

/// The roofs of the processor that a device runs on, by so many threads; none of a device that is not this machine's own
/// processor, whose memory and arithmetic the host cannot measure.
pub(crate) fn roofs(device: &dyn Device, footprint: usize) -> Option<Roofs> {
    let info = device.info();
    info.name.starts_with("cpu").then(|| roofs::measure(info.threads, footprint))
}

/// Launches once and compares.
pub(crate) fn checked(prepared: &Prepared<'_>, problem: &Problem) -> Result<Report, Failure> {
    prepared.launch(0)?;
    compared(prepared, problem)
}

fn compared(prepared: &Prepared<'_>, problem: &Problem) -> Result<Report, Failure> {
    let outputs = prepared.outputs()?;
    let outputs: Vec<&[u8]> = outputs.iter().map(Vec::as_slice).collect();
    Ok(problem.check(&outputs, Sample::Lines(16)))
}

/// A launch that takes longer than this is timed once more, one that takes four times as long not again.
const LONG: f64 = 0.5;

/// Times launches until the budget is used up; `first` is how long the launch took that was compared.
fn sample(
    prepared: &Prepared<'_>,
    before: Option<&Prepared<'_>>,
    first: f64,
    budget: Duration,
) -> Result<Measurement, Failure> {
    let mut turn = 0;
    let mut run = |runs: usize| -> Result<f64, Failure> {
        let start = Instant::now();
        for _ in 0..runs {
            if let Some(before) = before {
                before.launch(turn)?;
            }
            prepared.launch(turn)?;
            turn += 1;
        }
        prepared.synchronize()?;
        Ok(start.elapsed().as_secs_f64() / runs as f64)
    };
    if first > 4.0 * LONG && before.is_none() {
        return Ok(Measurement::of(vec![first]));
    }
    let once = run(1)?.max(1e-9);
    if once > LONG {
        return Ok(Measurement::of(vec![once]));
    }
    let runs = ((2e-3 / once).ceil() as usize).clamp(1, 100_000);
    let (start, mut samples) = (Instant::now(), Vec::new());
    while samples.len() < 3 || start.elapsed() < budget {
        samples.push(run(runs)?);
    }
    Ok(Measurement::of(samples))
}

/// The roof over a kernel: name and height. Everything but prefill is bound by memory.
fn roof(op: &Op, phase: Phase, roofs: &Roofs) -> (&'static str, f64) {
    match (op, phase) {
        (Op::Matmul(op), Phase::Prefill) => match op.activation {
            Activation::Int8(_) => roofs.best_dot(op.weight.code.bits()).unwrap_or(("dot", 0.0)),
            Activation::Float(_) | Activation::Fp8(..) => roofs.best_fma().unwrap_or(("fma", 0.0)),
        },
        _ => ("read", roofs.read_gbs),
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
            format!("{:.2e}", row.check.max_error),
            format!("{:.2e}", row.check.bound),
            ratio(row.check.worst_ratio),
            if row.check.passed() { "ok".into() } else { "WRONG".into() },
        ]);
    }
    table
}
