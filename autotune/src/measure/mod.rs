//! Measuring: what takes a sample, what a sample is, and what many samples come to.

mod bench;
mod clock;
pub mod statistics;

pub use bench::{DeviceBench, Slice, slice};
pub use clock::{Clock, MachineClock};

use bitsmith_compiler::Result;
use bitsmith_compiler::schedule::Schedule;
use serde::{Deserialize, Serialize};

/// One sample: the time of several launches, as one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Seconds per launch.
    pub seconds: f64,
    /// Seconds that the sample took, all its launches together.
    pub spent: f64,
}

impl Sample {
    /// To six digits, by the same steps for a number that was measured and for one that was read: decisions are made by
    /// these, so that a record gives them again.
    pub fn rounded(self) -> Sample {
        let round = |x: f64| format!("{x:.5e}").parse().unwrap_or(x);
        Sample { seconds: round(self.seconds), spent: round(self.spent) }
    }
}

/// What became of a candidate when it was made and compared with the reference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It computes what it should.
    Sound,
    /// It does not, or it could not be made: why.
    Rejected(String),
}

/// Something that candidates of one entry can be measured on.
pub trait Bench {
    /// Makes a candidate and compares it with the reference.
    fn admit(&mut self, schedule: &Schedule) -> Result<Verdict>;

    /// Times a sound candidate. `ordinal` numbers the samples of the entry.
    fn sample(&mut self, schedule: &Schedule, ordinal: u64) -> Result<Sample>;
}
