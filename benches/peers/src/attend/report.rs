//! What came out: a table, JSON.

use bitsmith_runtime::timing::Measurement;
use serde::Serialize;

/// One subject of one contest.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What ggml's cache holds.
    pub kv: String,
    pub tokens: usize,
    pub threads: usize,
    pub who: String,
    pub ours: bool,
    /// Seconds per query token.
    pub seconds: Measurement,
    /// Codes and scales of all tokens.
    pub bytes: f64,
    pub gbs: f64,
    /// The read roof: the higher of before and after the contest.
    pub read_gbs: f64,
    /// Bytes over time, of the read roof.
    pub share: f64,
    /// Squared error over squared result, against `f64` over what is stored.
    pub nmse: f64,
}

impl Row {
    /// With the read roof, GB/s.
    pub fn under(self, read_gbs: f64) -> Row {
        Row { read_gbs, share: self.gbs / read_gbs, ..self }
    }
}

/// A whole run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub processor: String,
    /// What ggml was compiled with.
    pub ggml: String,
    /// The arguments of this run.
    pub command: String,
    pub rows: Vec<Row>,
}

impl Report {
    /// Contest by contest: ggml, then ours, with ggml's time over ours.
    pub fn table(&self) -> String {
        let mut out = format!("{}\nggml: {}\n", self.processor, self.ggml);
        out += &format!(
            "{:<8} {:>7} {:>7}  {:<34} {:>10} {:>22} {:>6} {:>8} {:>9} {:>8}\n",
            "ggml kv",
            "context",
            "threads",
            "who",
            "time us",
            "min to max (samples)",
            "GB/s",
            "of read",
            "ggml/ours",
            "error"
        );
        let mut last = None;
        for row in &self.rows {
            let contest = (&row.kv, row.tokens, row.threads);
            if last.replace(contest).is_some_and(|last| last != contest) {
                out += "\n";
            }
            let peer = self.rows.iter().find(|peer| !peer.ours && (&peer.kv, peer.tokens, peer.threads) == contest);
            let ratio = match peer {
                Some(peer) if row.ours => format!("{:.2}", peer.seconds.median / row.seconds.median),
                _ => String::new(),
            };
            let spread =
                format!("{:.0} to {:.0} ({})", row.seconds.min * 1e6, row.seconds.max * 1e6, row.seconds.samples);
            out += &format!(
                "{:<8} {:>7} {:>7}  {:<34} {:>10.1} {:>22} {:>6.1} {:>6.0} % {:>9} {:>8.0e}\n",
                row.kv,
                row.tokens,
                row.threads,
                row.who,
                row.seconds.median * 1e6,
                spread,
                row.gbs,
                100.0 * row.share,
                ratio,
                row.nmse
            );
        }
        out
    }
}
