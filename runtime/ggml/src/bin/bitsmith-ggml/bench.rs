//! How fast a model reads and writes, with the backend and without it, in turn, in one run.
//!
//! Prints a table, writes JSON. Always holds: contestants are timed in turn, round by round, on the same threads, so that
//! whatever else the machine does falls on all of them.

use crate::engine::{self, BATCH, Engine, How, Threads};
use serde::Serialize;
use std::path::Path;
use std::time::Instant;

/// How much is timed.
pub struct Effort<'a> {
    pub threads: &'a [usize],
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens decoded after it.
    pub tokens: usize,
    pub rounds: usize,
}

/// One contestant on so many threads.
#[derive(Debug, Serialize)]
pub struct Row {
    model: String,
    threads: usize,
    who: &'static str,
    /// Medians, in tokens per second.
    prefill: f64,
    decode: f64,
    /// Slowest and fastest round.
    prefill_range: [f64; 2],
    decode_range: [f64; 2],
}

/// Everything that was timed.
#[derive(Debug, Serialize)]
pub struct Report {
    processor: String,
    /// What ggml was compiled with.
    ggml: String,
    rows: Vec<Row>,
}

/// Times a model; a row per contestant and number of threads.
pub fn hold(model: &Path, effort: &Effort<'_>, pool: &Threads) -> Result<Vec<Row>, String> {
    let name = model.file_stem().map_or(String::new(), |name| name.to_string_lossy().into_owned());
    let room = (effort.prompt + effort.tokens).next_multiple_of(256) as u32;
    let hows = [How::Ggml, How::GgmlPlain, How::Bitsmith];
    let mut engines = Vec::new();
    for how in hows {
        eprintln!("{name}: opening for {}", how.name());
        engines.push(Engine::open(model, how, room, pool)?);
    }
    let mut random = fastrand::Rng::with_seed(3);
    let vocabulary = engines[0].vocabulary_size() as i32;
    let tokens: Vec<i32> = (0..effort.prompt + effort.tokens).map(|_| random.i32(0..vocabulary)).collect();
    let (prompt, rest) = tokens.split_at(effort.prompt);
    let mut rows = Vec::new();
    for &threads in effort.threads {
        let mut times: Vec<Vec<[f64; 2]>> = vec![Vec::new(); hows.len()];
        // The first round warms up: kernels are made, memory is touched.
        for round in 0..=effort.rounds {
            for (engine, times) in engines.iter_mut().zip(&mut times) {
                engine.set_threads(threads);
                let speeds = once(engine, if round == 0 { &prompt[..prompt.len().min(64)] } else { prompt }, rest)?;
                if round > 0 {
                    times.push(speeds);
                }
            }
            eprintln!("{name}: {threads} threads, round {round} of {}", effort.rounds);
        }
        for (how, times) in hows.iter().zip(times) {
            let [prefill, decode] = [0, 1].map(|what| {
                let mut speeds: Vec<f64> = times.iter().map(|speeds| speeds[what]).collect();
                speeds.sort_by(f64::total_cmp);
                speeds
            });
            let range = |speeds: &[f64]| [speeds[0], speeds[speeds.len() - 1]];
            rows.push(Row {
                model: name.clone(),
                threads,
                who: how.name(),
                prefill: prefill[prefill.len() / 2],
                decode: decode[decode.len() / 2],
                prefill_range: range(&prefill),
                decode_range: range(&decode),
            });
        }
    }
    Ok(rows)
}

/// Tokens per second of prefill and of decoding.
fn once(engine: &mut Engine<'_>, prompt: &[i32], rest: &[i32]) -> Result<[f64; 2], String> {
    engine.forget();
    let start = Instant::now();
    for batch in prompt.chunks(BATCH as usize) {
        engine.read(batch, false)?;
    }
    // Logits are fetched: only then has everything been computed.
    engine.logits(-1)?;
    let prefill = prompt.len() as f64 / start.elapsed().as_secs_f64();
    let start = Instant::now();
    for &token in rest {
        engine.read(&[token], false)?;
        engine.logits(-1)?;
    }
    Ok([prefill, rest.len() as f64 / start.elapsed().as_secs_f64()])
}

impl Report {
    /// On this machine.
    pub fn new(rows: Vec<Row>) -> Report {
        Report { processor: bitsmith_runtime::cpu::model(), ggml: engine::features(), rows }
    }

    /// For people: each of ours beside the faster of ggml's.
    pub fn table(&self) -> String {
        let mut text = format!("{}; ggml with {}\n", self.processor, self.ggml);
        text += "model            threads  who           prefill t/s         decode t/s          × best of ggml's\n";
        for row in &self.rows {
            let peers = || {
                self.rows
                    .iter()
                    .filter(|r| r.model == row.model && r.threads == row.threads && r.who != How::Bitsmith.name())
            };
            let best = |speed: fn(&Row) -> f64| peers().map(speed).fold(0.0, f64::max);
            let ratios = if row.who == How::Bitsmith.name() {
                format!("{:.2} {:.2}", row.prefill / best(|r| r.prefill), row.decode / best(|r| r.decode))
            } else {
                String::new()
            };
            let cell = |speed: f64, [low, high]: [f64; 2]| format!("{speed:.2} ({low:.2}–{high:.2})");
            text += &format!(
                "{:<16} {:>7}  {:<12}  {:<18}  {:<18}  {ratios}\n",
                row.model,
                row.threads,
                row.who,
                cell(row.prefill, row.prefill_range),
                cell(row.decode, row.decode_range),
            );
        }
        text
    }

    /// As JSON, first under another name.
    pub fn write(&self, path: &Path) -> Result<(), String> {
        let io = |error: std::io::Error| format!("{}: {error}", path.display());
        let text = serde_json::to_string_pretty(self).map_err(|error| error.to_string())?;
        let temporary = path.with_extension("part");
        std::fs::write(&temporary, text).map_err(io)?;
        std::fs::rename(&temporary, path).map_err(io)
    }
}
