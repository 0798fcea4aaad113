//! A run of the tuner: keys in, a table out, a journal in between.
//!
//! Keys that come to the same measurement (the same columns of the same matmul) are measured once. Keys of the same words
//! and K that are of one phase form a chain: within a chain, what did well for a neighbour is tried first, and when all have
//! been looked at, what is left of the chain's time goes to a second look at each. A shard takes
//! whole chains, so that shards do what one run would do. Always holds: how an entry is searched depends on its own chain
//! and samples alone.

use crate::bucket::DECODE_ROWS;
use crate::ceiling::{Ceiling, round};
use crate::journal::Journal;
use crate::key::Key;
use crate::look::{Found, Group, LOOKS, NEIGHBOURS, Work, left, nearest, warm};
use crate::measure::statistics::geometric_mean;
use crate::measure::{Clock, slice};
use crate::search::{Outcome, Watch};
use crate::table::{self, DeviceName, Entry, Lock, Provenance, Table, Tried};
use bitsmith_compiler::format::n16::N16;
use bitsmith_compiler::op::Op;
use bitsmith_compiler::schedule::Schedule;
use bitsmith_compiler::{Error, Result, lower};
use bitsmith_runtime::Device;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Which part of the chains this run takes: number `index` (from 1) of `count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// From 1.
    pub index: usize,
    /// How many there are.
    pub count: usize,
}

impl std::str::FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Shard, String> {
        let refuse = || format!("shard `{text}`; accepted: <i>/<n> with 1 <= i <= n <= 65536");
        let (index, count) = text.split_once('/').ok_or_else(refuse)?;
        let (index, count) = (index.parse().map_err(|_| refuse())?, count.parse().map_err(|_| refuse())?);
        if (1..=count).contains(&index) && count <= 1 << 16 { Ok(Shard { index, count }) } else { Err(refuse()) }
    }
}

/// How a run is done.
#[derive(Clone, Debug)]
pub struct Options {
    /// Seconds of samples for the whole list, all shards together.
    pub budget: f64,
    /// Seed of problems and orders.
    pub seed: u64,
    /// Which part.
    pub shard: Shard,
    /// Measure every candidate that can be built, with as many samples as a finalist gets.
    pub exhaustive: bool,
    /// Bytes of weights to cycle through while decoding.
    pub cycle: usize,
    /// Goes on with the journal that is there.
    pub resume: bool,
    /// Throws away a journal that is there.
    pub fresh: bool,
    /// Tables whose schedules are tried early, of this device or of near ones.
    pub warm: Vec<Table>,
    /// The day, for the record.
    pub date: String,
    /// Version of what makes the code.
    pub code_generator: String,
}

/// How long a launch may take before only a part of it is measured.
const LAUNCH_SECONDS: f64 = 0.02;

/// What the head of a journal says: a run goes on only under the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Head {
    device: DeviceName,
    provenance: Provenance,
    shard: Shard,
    exhaustive: bool,
    cycle: usize,
    keys: Vec<Key>,
}

/// Hears how a run goes.
pub trait Progress: Watch {
    /// An entry begins: its number, how many there are, the seconds that the rest will take at most.
    fn entry(&mut self, done: usize, total: usize, key: &Key, left: f64);

    /// An entry is done.
    fn done(&mut self, key: &Key, outcome: &Outcome);
}

impl Progress for () {
    fn entry(&mut self, _done: usize, _total: usize, _key: &Key, _left: f64) {}

    fn done(&mut self, _key: &Key, _outcome: &Outcome) {}
}

/// What a run did.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The table, with what its file held before.
    pub table: Table,
    /// The entries of this run.
    pub entries: Vec<Entry>,
    /// Every measured candidate of each entry, for reports.
    pub outcomes: Vec<(Key, Outcome)>,
    /// Samples that came from the journal.
    pub replayed: usize,
    /// Where the table was written.
    pub path: PathBuf,
}

impl Summary {
    /// Geometric mean of how many times as long the chooser's launches take.
    pub fn gain(&self) -> f64 {
        geometric_mean(self.entries.iter().map(|entry| entry.chooser_seconds / entry.seconds))
    }
}

/// Chains of groups, each in the order of its measurement.
fn chains(device: &dyn Device, keys: &[Key], ceiling: &Ceiling, options: &Options) -> Result<Vec<Vec<Group>>> {
    let mut keys = keys.to_vec();
    keys.sort();
    keys.dedup();
    let mut chains: Vec<Vec<Group>> = Vec::new();
    for key in keys {
        let op = key.op()?;
        let chooser = lower::choose(&op, device.caps(), key.m)?;
        let over = ceiling.over(&op);
        let roofs = (over.read_gbs, over.gops);
        let part = slice(&key, bytes(&op), roofs, LAUNCH_SECONDS, options.cycle, device.caps());
        let op = Key { n: part.columns, ..key.clone() }.op()?;
        let phase = |m: usize| m <= DECODE_ROWS;
        let own = |chain: &&mut Vec<Group>| {
            let first = &chain[0].keys[0];
            first.same_words(&key) && first.k == key.k && phase(first.m) == phase(key.m)
        };
        let chain = match chains.iter_mut().find(own) {
            Some(chain) => chain,
            None => {
                chains.push(Vec::new());
                let last = chains.len() - 1;
                &mut chains[last]
            }
        };
        let same = |g: &&mut Group| g.op == op && g.chooser == chooser && g.part == part;
        match chain.iter_mut().find(same) {
            Some(group) => group.keys.push(key),
            None => chain.push(Group { keys: vec![key], op, chooser, part }),
        }
    }
    for chain in &mut chains {
        // The same operation stays together, so that its weights are made once.
        chain.sort_by_key(|g| (std::cmp::Reverse(g.part.columns), g.keys[0].n, g.keys[0].m));
    }
    Ok(chains)
}

/// Bytes of packed weights.
pub(crate) fn bytes(op: &Op) -> f64 {
    match op {
        Op::Matmul(op) => N16::of(&op.weight, op.k).map_or(0.0, |l| op.n.div_ceil(16) as f64 * l.record as f64),
        _ => 0.0,
    }
}

/// Number of measurements that keys come to, and bytes of memory that the largest one takes at most.
pub fn extent(device: &dyn Device, keys: &[Key], options: &Options) -> Result<(usize, f64)> {
    let chains = chains(device, keys, &Ceiling::guess(), options)?;
    let memory = |g: &Group| {
        let (m, n, k) = (g.part.rows as f64, g.part.columns as f64, g.keys[0].k as f64);
        n * k * 3.0 + options.cycle as f64 + 4.0 * bytes(&g.op) + m * (24.0 * k + 8.0 * n)
    };
    let groups = || chains.iter().flatten();
    Ok((groups().count(), groups().map(memory).fold(0.0, f64::max)))
}

/// Tunes keys on a device and writes the table, to which what the file held before is added.
pub fn tune(
    device: &dyn Device,
    clock: &dyn Clock,
    keys: &[Key],
    options: &Options,
    path: &Path,
    progress: &mut dyn Progress,
) -> Result<Summary> {
    if keys.is_empty() {
        return Err(Error::invalid("nothing to tune; accepted: one shape and number of rows or more"));
    }
    let _lock = Lock::take(path)?;
    let name = DeviceName::of(&device.info());
    let old = if path.exists() { Some(table::read(path)?) } else { None };
    if let Some(old) = old.as_ref().filter(|old| old.device != name) {
        return Err(Error::invalid(format!(
            "{}: holds the table of {}, this is {name}; accepted: another --out",
            path.display(),
            old.device
        )));
    }
    let (mut journal, head) = open(device, keys, options, path, &name)?;
    let provenance = head.provenance;
    let chains = chains(device, keys, &provenance.ceiling, options)?;
    let mine: Vec<Vec<Group>> = chains
        .into_iter()
        .enumerate()
        .filter(|(i, _)| i % options.shard.count == options.shard.index - 1)
        .map(|(_, chain)| chain)
        .collect();
    let count: usize = mine.iter().map(Vec::len).sum();
    let replayed = journal.found();
    let (mut entries, mut outcomes, mut done) = (Vec::new(), Vec::new(), 0);
    let mut work = Work { device, clock, options, provenance: &provenance, last: None, refusals: Default::default() };
    for chain in &mine {
        let mut found: Vec<Found> = Vec::new();
        for group in chain {
            let key = &group.keys[0];
            progress.entry(done, count, key, (count - done) as f64 * provenance.seconds_per_entry);
            let warm = warm(key, chain, &found, &options.warm, &name);
            found.push(work.look(group, (&warm, provenance.seconds_per_entry, None), &mut journal, progress)?);
            done += 1;
        }
        for looks in 1..if options.exhaustive { 1 } else { LOOKS } {
            let share = 1.0 / (LOOKS - looks) as f64;
            for (i, seconds) in left(&found, provenance.seconds_per_entry).into_iter().enumerate() {
                let near = nearest(&chain[i].keys[0], chain, &found).map(|found| found.outcome.best);
                let near: Vec<Schedule> = near.take(NEIGHBOURS).collect();
                let before = Some((found[i].outcome.clone(), looks));
                found[i] = work.look(&chain[i], (&near, share * seconds, before), &mut journal, progress)?;
            }
        }
        for (group, found) in chain.iter().zip(found) {
            for key in &group.keys {
                entries.push(entry(key, group, &found, &provenance));
                outcomes.push((key.clone(), found.outcome.clone()));
            }
            progress.done(&group.keys[0], &found.outcome);
        }
    }
    let mut table = Table::new(name);
    if let Some(old) = old {
        table.runs.extend(old.runs);
        // What was measured now replaces what stood there, whatever its day.
        table.entries.extend(old.entries.into_iter().filter(|old| entries.iter().all(|e: &Entry| e.key != old.key)));
    }
    table.runs.push(provenance);
    table.entries.extend(entries.iter().cloned());
    table.sort();
    table::write(path, &table)?;
    journal.finish()?;
    Ok(Summary { table, entries, outcomes, replayed, path: path.to_path_buf() })
}

/// The journal and its head: a new one, or the one that is there if that is wanted and fits.
fn open(
    device: &dyn Device,
    keys: &[Key],
    options: &Options,
    path: &Path,
    name: &DeviceName,
) -> Result<(Journal, Head)> {
    let journal_path = table::journal_path(path);
    let mut sorted = keys.to_vec();
    sorted.sort();
    sorted.dedup();
    if options.resume {
        if let Some((journal, mut head)) = Journal::open::<Head>(&journal_path)? {
            head.provenance = head.provenance.rounded();
            let seconds = options.budget
                / chains(device, keys, &head.provenance.ceiling, options)?.iter().map(Vec::len).sum::<usize>().max(1)
                    as f64;
            let mut faults = Vec::new();
            let mut same = |what: &str, same: bool| {
                if !same {
                    faults.push(format!("{}: another {what} than now", journal_path.display()));
                }
            };
            same("device", head.device == *name);
            same("list of shapes and rows", head.keys == sorted);
            same("shard", head.shard == options.shard);
            same("seed", head.provenance.seed == options.seed);
            same("budget", head.provenance.seconds_per_entry == round(seconds));
            same("memory to cycle through", head.cycle == options.cycle);
            same("version of bitsmith", head.provenance.bitsmith == env!("CARGO_PKG_VERSION"));
            same("code generator", head.provenance.code_generator == options.code_generator);
            same("way to search", head.exhaustive == options.exhaustive);
            if !faults.is_empty() {
                faults.push("accepted: the arguments of the run that was cut, or --fresh".into());
                return Err(Error::Invalid(faults));
            }
            return Ok((journal, head));
        }
    } else if !options.fresh && Journal::unfinished(&journal_path) {
        return Err(Error::invalid(format!(
            "{}: the journal of a run that was cut; pass --resume to go on with it or --fresh to throw it away",
            journal_path.display()
        )));
    }
    let ceiling = if device.info().name == crate::simulate::NAME { Ceiling::guess() } else { Ceiling::of(device) };
    let groups = chains(device, keys, &ceiling, options)?.iter().map(Vec::len).sum::<usize>();
    let provenance = Provenance {
        date: options.date.clone(),
        bitsmith: env!("CARGO_PKG_VERSION").into(),
        code_generator: options.code_generator.clone(),
        ceiling,
        seconds_per_entry: round(options.budget / groups.max(1) as f64),
        seed: options.seed,
    };
    let head = Head {
        device: name.clone(),
        provenance,
        shard: options.shard,
        exhaustive: options.exhaustive,
        cycle: options.cycle,
        keys: sorted,
    };
    Ok((Journal::create(&journal_path, &head)?, head))
}

fn entry(key: &Key, group: &Group, found: &Found, provenance: &Provenance) -> Entry {
    let Found { outcome, declared, ideal: (bytes, operations) } = found;
    let (bound, share) = provenance.ceiling.share(&group.op, *bytes, *operations, outcome.seconds);
    let runner_up = outcome.measured.iter().find(|m| m.schedule != outcome.best && m.left >= 3);
    let wrong = outcome.dropped.iter().filter(|(_, why)| why.contains("disagrees with the reference")).count();
    Entry {
        key: key.clone(),
        schedule: outcome.best,
        seconds: round(outcome.seconds),
        columns: group.part.columns,
        rows: (group.part.rows < key.m).then_some(group.part.rows),
        chooser_seconds: round(outcome.incumbent_seconds),
        chooser: group.chooser,
        bound,
        share,
        runner_up: runner_up.map(|m| (m.schedule, round(m.seconds / outcome.seconds))),
        tried: Tried {
            declared: *declared,
            measured: outcome.measured.len(),
            samples: outcome.samples,
            wrong,
            cut: outcome.cut,
        },
        date: provenance.date.clone(),
    }
}
