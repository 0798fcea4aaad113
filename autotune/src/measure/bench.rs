//! Candidates of one entry on a device: made, compared with the reference, timed with cold weights.
//!
//! Reads a key and a device; makes samples. Always holds: a candidate is timed only after its numbers have been compared;
//! while decoding, launches in turn read different copies of the weights, more bytes than any cache holds.

use super::{Bench, Clock, Sample, Verdict};
use crate::bucket::DECODE_ROWS;
use crate::execute::Prepared;
use crate::key::Key;
use crate::problem::{Problem, Sample as Lines};
use bitsmith_compiler::caps::{Caps, Feature};
use bitsmith_compiler::lower::{Packing, packing};
use bitsmith_compiler::op::Op;
use bitsmith_compiler::schedule::Schedule;
use bitsmith_compiler::{Error, Result, compile};
use bitsmith_runtime::Device;
use std::collections::BTreeMap;

/// Shortest sample: launches are repeated to fill it.
const SAMPLE_SECONDS: f64 = 2e-3;
/// Most launches of a sample.
const MOST_LAUNCHES: usize = 10_000;

/// Least columns of a part: a thread has several workgroups of each candidate, so that what a part favours is what the
/// whole favours.
const LEAST_COLUMNS: usize = 1024;

/// Least rows of a part, on a processor: more than a block of rows whose activations a cache holds, so that more rows are more
/// of the same. On a GPU rows decide how many workgroups there are, and all of them are measured.
const LEAST_ROWS: usize = 1024;

/// The part of Y that is measured: columns are independent of each other, and so are rows, so that of a large matmul a part will
/// do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Columns that are measured.
    pub columns: usize,
    /// Rows that are measured.
    pub rows: usize,
    /// Bytes of weights to cycle through while decoding.
    pub cycle: usize,
}

/// The part of a matmul that takes about `seconds` at `gops` and `gbs`: all of it, or halves of its columns in multiples of 64, at
/// least 1024, then, on a processor, halves of its rows, at least 1024.
pub fn slice(key: &Key, bytes: f64, (gbs, gops): (f64, f64), seconds: f64, cycle: usize, caps: &Caps) -> Slice {
    let (mut columns, mut rows) = (key.n, key.m);
    let time = |columns: usize, rows: usize| {
        let operations = 2.0 * rows as f64 * columns as f64 * key.k as f64;
        (operations / gops / 1e9).max(bytes * columns as f64 / key.n as f64 / gbs / 1e9)
    };
    while time(columns, rows) > seconds && columns / 2 >= LEAST_COLUMNS {
        columns = (columns / 2).next_multiple_of(64);
    }
    let processor = !caps.features.has(Feature::Workgroups);
    while processor && time(columns, rows) > seconds && rows / 2 >= LEAST_ROWS {
        rows /= 2;
    }
    Slice { columns, rows, cycle }
}

/// A device that measures candidates for one key.
pub struct DeviceBench<'d> {
    device: &'d dyn Device,
    clock: &'d dyn Clock,
    problem: Problem,
    copies: usize,
    entry: u64,
    /// Buffers, by how weights are packed.
    bases: Vec<(Packing, Prepared<'d>)>,
    ready: BTreeMap<Schedule, Ready<'d>>,
    turn: usize,
}

struct Ready<'d> {
    prepared: Prepared<'d>,
    launches: usize,
}

impl<'d> DeviceBench<'d> {
    /// For a key whose first rows and columns are measured, as many as the slice says. `last` is the problem of an entry before,
    /// whose weights are taken again where they are the same.
    pub fn new(
        device: &'d dyn Device,
        clock: &'d dyn Clock,
        key: &Key,
        slice: Slice,
        last: Option<Problem>,
    ) -> Result<DeviceBench<'d>> {
        let op = sliced(key, slice)?;
        let seed = crate::hash(key);
        let problem = match last {
            Some(last) if last.op == op => last.with_rows(slice.rows, seed)?,
            _ => Problem::random(&op, slice.rows, seed)?,
        };
        let copies =
            if key.m <= DECODE_ROWS { slice.cycle.div_ceil(problem.traffic().max(1)).clamp(1, 4096) } else { 1 };
        Ok(DeviceBench {
            device,
            clock,
            problem,
            copies,
            entry: seed,
            bases: Vec::new(),
            ready: BTreeMap::new(),
            turn: 0,
        })
    }

    /// The problem, to be used again.
    pub fn into_problem(self) -> Problem {
        self.problem
    }

    /// Bytes that an ideal kernel moves, and operations.
    pub fn ideal(&self) -> (f64, f64) {
        (self.problem.traffic() as f64, self.problem.operations())
    }

    fn prepare(&mut self, schedule: &Schedule) -> Result<Verdict> {
        let made = match compile(&self.problem.op, schedule, self.device.target()) {
            Ok(made) => made,
            Err(Error::Invalid(faults)) => return Ok(Verdict::Rejected(faults.join("; "))),
            Err(error @ (Error::Unsupported(_) | Error::Tool { .. })) => {
                return Ok(Verdict::Rejected(first_line(&error.to_string())));
            }
            Err(error) => return Err(error),
        };
        let packed = packing(&self.problem.op, schedule, self.device.caps());
        let prepared = match self.bases.iter().find(|(known, _)| *known == packed) {
            Some((_, base)) => base.with_program(&made.artifact, schedule, &self.problem)?,
            None => {
                let base = Prepared::new(self.device, &self.problem, &made.artifact, schedule, self.copies)?;
                let own = base.with_program(&made.artifact, schedule, &self.problem)?;
                self.bases.push((packed, base));
                own
            }
        };
        prepared.poison()?;
        prepared.launch(0)?;
        let outputs = prepared.outputs()?;
        let outputs: Vec<&[u8]> = outputs.iter().map(Vec::as_slice).collect();
        let report = self.problem.check(schedule.family, &outputs, Lines::Lines(12));
        if !report.passed() {
            let what = report.first_wrong.unwrap_or_else(|| "nothing was compared".into());
            return Ok(Verdict::Rejected(format!("disagrees with the reference: {what}")));
        }
        self.ready.insert(*schedule, Ready { prepared, launches: 0 });
        Ok(Verdict::Sound)
    }

    fn time(&self, prepared: &Prepared<'d>, launches: usize) -> Result<f64> {
        let start = self.clock.seconds();
        for i in 0..launches {
            prepared.launch(self.turn + i)?;
        }
        self.device.synchronize()?;
        Ok((self.clock.seconds() - start).max(1e-9))
    }
}

impl Bench for DeviceBench<'_> {
    fn admit(&mut self, schedule: &Schedule) -> Result<Verdict> {
        if self.ready.contains_key(schedule) {
            return Ok(Verdict::Sound);
        }
        self.prepare(schedule)
    }

    fn sample(&mut self, schedule: &Schedule, ordinal: u64) -> Result<Sample> {
        // After a restart the verdict stands in the record, and the program has to be made again.
        if !self.ready.contains_key(schedule)
            && let Verdict::Rejected(why) = self.prepare(schedule)?
        {
            return Err(Error::invalid(format!("{schedule:?} was sound before: {why}")));
        }
        self.clock.begin(self.entry, ordinal);
        let ready = &self.ready[schedule];
        let mut launches = ready.launches;
        if launches == 0 {
            // The first one warms up and says how many fill a sample.
            let once = self.time(&ready.prepared, 1)?;
            launches = ((SAMPLE_SECONDS / once).ceil() as usize).clamp(1, MOST_LAUNCHES);
            self.clock.begin(self.entry, ordinal);
        }
        let spent = self.time(&ready.prepared, launches)?;
        self.turn += launches;
        if let Some(ready) = self.ready.get_mut(schedule) {
            ready.launches = launches;
        }
        Ok(Sample { seconds: spent / launches as f64, spent })
    }
}

/// The operation over the first columns of Y.
pub(crate) fn sliced(key: &Key, slice: Slice) -> Result<Op> {
    Key { n: slice.columns, ..key.clone() }.op()
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_string()
}
