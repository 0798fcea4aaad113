//! Progress of a run: a bar, what is measured, the best so far, the time that is left; and the day.

use crate::stages::describe_schedule;
use crate::table::time;
use bitsmith_autotune::key::Key;
use bitsmith_autotune::search::{Outcome, Watch};
use bitsmith_autotune::tune::Progress;
use bitsmith_compiler::schedule::Schedule;
use indicatif::{ProgressBar, ProgressStyle};
use std::time::{SystemTime, UNIX_EPOCH};

/// A bar on stderr; silent where that is no terminal.
pub(super) struct Bar {
    bar: ProgressBar,
    key: String,
}

impl Bar {
    pub fn new(count: usize) -> Bar {
        let bar = ProgressBar::new(count as u64);
        if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len} {elapsed} {msg}") {
            bar.set_style(style);
        }
        Bar { bar, key: String::new() }
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Watch for Bar {
    fn best(&mut self, best: &Schedule, seconds: f64, incumbent: f64) {
        let gain = incumbent / seconds;
        self.bar.set_message(format!("{}: {} {} x{gain:.2}", self.key, describe_schedule(best), time(seconds)));
    }
}

impl Progress for Bar {
    fn entry(&mut self, done: usize, total: usize, key: &Key, left: f64) {
        self.bar.set_length(total as u64);
        self.bar.set_position(done as u64);
        self.key = format!("at most {:.0} s left, {}x{} M={}", left, key.n, key.k, key.m);
        self.bar.set_message(self.key.clone());
    }

    fn done(&mut self, _key: &Key, _outcome: &Outcome) {
        self.bar.inc(1);
    }
}

/// The day by the system's clock, in UTC: `2026-11-26`.
pub(super) fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    date(seconds / 86_400)
}

/// Civil date of a day since 1970-01-01, by Howard Hinnant's algorithm ("chrono-Compatible Low-Level Date Algorithms").
fn date(days: u64) -> String {
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    #[test]
    fn days() {
        assert_eq!(super::date(0), "1970-01-01");
        assert_eq!(super::date(19_782), "2024-02-29");
        assert_eq!(super::date(20_783), "2026-11-26");
    }
}
