//! What came out: a table, JSON, a roofline.

use bitsmith_runtime::roofs::Roofs;
use bitsmith_runtime::roofs::picture::{Plot, Point};
use bitsmith_runtime::timing::Measurement;
use serde::{Deserialize, Serialize};

/// One subject of one contest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    pub format: String,
    pub n: usize,
    pub k: usize,
    pub m: usize,
    pub threads: usize,
    pub who: String,
    pub ours: bool,
    /// Seconds per product, quantization of activations included.
    pub seconds: Measurement,
    pub weight_bytes: f64,
    pub gbs: f64,
    pub gops: f64,
    /// Squared error over squared result, against `f64` over the same weights.
    pub nmse: f64,
}

/// A whole run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub processor: String,
    /// What ggml was compiled with.
    pub ggml: String,
    /// Roofs per number of threads, the higher of before and after.
    pub roofs: Vec<Roofs>,
    pub rows: Vec<Row>,
}

impl Report {
    /// The table, contest by contest: the fastest first, with the best peer's time over ours.
    pub fn table(&self) -> String {
        let mut out = format!("{}\nggml: {}\n", self.processor, self.ggml);
        for roofs in &self.roofs {
            out += &format!("roofs with {} threads: read {:.1} GB/s", roofs.threads, roofs.read_gbs);
            for (name, gops) in roofs.arithmetic() {
                out += &format!(", {name} {gops:.0}");
            }
            out += " GOP/s\n";
        }
        let mut rest = &self.rows[..];
        while let Some(first) = rest.first() {
            let key = |row: &Row| (row.format.clone(), row.n, row.k, row.m, row.threads);
            let count = rest.iter().take_while(|row| key(row) == key(first)).count();
            let (contest, others) = rest.split_at(count);
            rest = others;
            out += &self.contest(contest);
        }
        out
    }

    fn contest(&self, rows: &[Row]) -> String {
        let first = &rows[0];
        let best = |ours: bool| {
            let times = rows.iter().filter(|row| row.ours == ours).map(|row| row.seconds.median);
            times.min_by(f64::total_cmp)
        };
        let ratio = best(false).zip(best(true)).map(|(peer, ours)| format!("best peer / ours {:.2}", peer / ours));
        let mut out = format!(
            "\n{} {}x{} M={} threads={}: {}\n",
            first.format,
            first.n,
            first.k,
            first.m,
            first.threads,
            ratio.unwrap_or("no peer".into())
        );
        let mut sorted: Vec<&Row> = rows.iter().collect();
        sorted.sort_by(|a, b| a.seconds.median.total_cmp(&b.seconds.median));
        let read = self.roofs.iter().find(|roofs| roofs.threads == first.threads).map_or(f64::NAN, |r| r.read_gbs);
        for row in sorted {
            out += &format!(
                "  {:<28} {:>10.1} us  {:>7.1} GOP/s  {:>5.1} GB/s ({:>3.0} % of read)  min {:.1} max {:.1} us, {} samples, error {:.1e}\n",
                row.who,
                row.seconds.median * 1e6,
                row.gops,
                row.gbs,
                100.0 * row.gbs / read,
                row.seconds.min * 1e6,
                row.seconds.max * 1e6,
                row.seconds.samples,
                row.nmse
            );
        }
        out
    }

    /// Everyone under the roofs.
    pub fn plot(&self) -> Plot {
        let point = |row: &Row| Point {
            // Versions and group sizes are of no use in a legend.
            series: row
                .who
                .split(' ')
                .take(if row.who.starts_with("ggml") { 2 } else { 1 })
                .collect::<Vec<_>>()
                .join(" "),
            label: format!("{} {}, {}x{}, M={}, {} threads", row.who, row.format, row.n, row.k, row.m, row.threads),
            intensity: 2.0 * (row.m * row.n * row.k) as f64 / row.weight_bytes,
            gops: row.gops,
        };
        Plot {
            title: format!("{}: ours and peers", self.processor),
            roofs: self.roofs.clone(),
            points: self.rows.iter().map(point).collect(),
        }
    }
}
