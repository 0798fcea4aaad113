//! Decode attention of ours beside ggml's `flash_attn_ext`, in turn, in one run, beside the machine's read roof.
//!
//! Reads shapes, contexts and threads; prints a table; writes JSON. Always holds: keys, values and queries are the same numbers
//! for everyone, each stores them in its own format, and whoever is timed has come as near to the `f64` attention over the
//! numbers that it stored as ggml's own tests ask.

mod contest;
mod ours;
mod report;

use crate::ggml;
use bitsmith_runtime::roofs;
use contest::{CONTESTS, Contest, Effort, Numbers, Shape};
use report::Report;
use std::path::PathBuf;
use std::time::Duration;

/// Decode attention: ggml's flash attention beside ours, in one run
#[derive(Debug, clap::Args)]
pub struct Attend {
    /// Formats of ggml's cache: f16, q8_0, q4_0 [default: all]
    #[arg(long, value_delimiter = ',')]
    kv: Vec<String>,
    /// Tokens in the cache: 4k is 4096
    #[arg(long, value_delimiter = ',', default_values_t = [4096, 16384, 65536], value_parser = tokens)]
    context: Vec<usize>,
    /// Query heads
    #[arg(long, default_value_t = 32)]
    heads: usize,
    /// KV heads
    #[arg(long, default_value_t = 8)]
    kv_heads: usize,
    /// Channels of a head
    #[arg(long, default_value_t = 128)]
    head_dim: usize,
    /// Tokens of a page of ours
    #[arg(long, default_value_t = 64)]
    page: usize,
    /// Numbers of threads
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    threads: Vec<usize>,
    /// Megabytes of cache to cycle through
    #[arg(long, default_value_t = 256)]
    cycle_mb: usize,
    /// Milliseconds per subject of a contest
    #[arg(long, default_value_t = 300)]
    budget_ms: u64,
    /// Write everything as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Tokens as clap takes them: `8192`, `8k`, up to 2^20.
fn tokens(text: &str) -> Result<usize, String> {
    let (digits, unit) = text.strip_suffix(['k', 'K']).map_or((text, 1), |digits| (digits, 1024));
    match digits.parse::<usize>().ok().and_then(|n| n.checked_mul(unit)) {
        Some(n) if (16..=1 << 20).contains(&n) => Ok(n),
        _ => Err("accepted: 16 to 1024k".into()),
    }
}

impl Attend {
    /// Every contest with every number of threads.
    pub fn run(&self) -> Result<(), String> {
        let contests = self.chosen()?;
        self.check()?;
        ggml::silence();
        let mut report = Report {
            processor: bitsmith_runtime::cpu::model(),
            ggml: ggml::features(),
            command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
            ..Report::default()
        };
        for &tokens in &self.context {
            let shape =
                Shape { heads: self.heads, kv_heads: self.kv_heads, dim: self.head_dim, page: self.page, tokens };
            let numbers = Numbers::new(shape);
            for &threads in &self.threads {
                let effort =
                    Effort { threads, cycle: self.cycle_mb << 20, budget: Duration::from_millis(self.budget_ms) };
                for contest in &contests {
                    // Roofs are those of this contest: a shared machine changes within a run.
                    let before = roofs::measure(threads, 256 << 20);
                    let rows = contest.hold(&numbers, &effort)?;
                    let roof = before.higher(&roofs::measure(threads, 256 << 20)).read_gbs;
                    report.rows.extend(rows.into_iter().map(|row| row.under(roof)));
                }
            }
        }
        print!("{}", report.table());
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(&report).map_err(|error| error.to_string())?;
            crate::write(path, &text)?;
        }
        Ok(())
    }

    fn chosen(&self) -> Result<Vec<&'static Contest>, String> {
        if self.kv.is_empty() {
            return Ok(CONTESTS.iter().collect());
        }
        let known = || CONTESTS.iter().map(|contest| contest.kv).collect::<Vec<_>>().join(", ");
        let find = |name: &String| {
            let found = CONTESTS.iter().find(|contest| contest.kv == name);
            found.ok_or_else(|| format!("KV format `{name}`; accepted: {}", known()))
        };
        self.kv.iter().map(find).collect()
    }

    fn check(&self) -> Result<(), String> {
        if self.kv_heads == 0 || self.heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!(
                "{} query heads over {} KV heads; accepted: multiples of the latter",
                self.heads, self.kv_heads
            ));
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(32) || self.head_dim > 256 {
            return Err(format!("{} channels; accepted: multiples of 32 up to 256", self.head_dim));
        }
        match self.threads.iter().find(|&&threads| !(1..=1024).contains(&threads)) {
            Some(threads) => Err(format!("{threads} threads; accepted: 1 to 1024")),
            None => Ok(()),
        }
    }
}
