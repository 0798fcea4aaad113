//! Merging and comparing tables.

use super::{Entry, Table};
use crate::key::Key;
use bitsmith_compiler::schedule::Schedule;
use bitsmith_compiler::{Error, Result};

/// Of two entries for one key, the one that counts: the newer one, then the one with more samples, then the faster one,
/// then the one whose text sorts first. A total order, so that merging knows no order.
pub(super) fn newer(a: Entry, b: Entry) -> Entry {
    let text = |e: &Entry| serde_json::to_string(e).unwrap_or_default();
    let order = a
        .date
        .cmp(&b.date)
        .then(a.tried.samples.cmp(&b.tried.samples))
        .then(b.seconds.total_cmp(&a.seconds))
        .then_with(|| text(&b).cmp(&text(&a)));
    if order.is_ge() { a } else { b }
}

/// One table out of several of the same device. Fails where they are of different devices.
pub fn merge(tables: &[Table]) -> Result<Table> {
    let Some(first) = tables.first() else { return Err(Error::invalid("no table; accepted: one or more")) };
    let mut merged = Table::new(first.device.clone());
    for table in tables {
        if table.device != merged.device {
            return Err(Error::invalid(format!(
                "tables of two devices, {} and {}; accepted: tables of one device",
                merged.device, table.device
            )));
        }
        merged.runs.extend(table.runs.iter().cloned());
        merged.entries.extend(table.entries.iter().cloned());
    }
    merged.sort();
    Ok(merged)
}

/// How an entry differs between two tables.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Only the second has it.
    Added(Entry),
    /// Only the first has it.
    Removed(Entry),
    /// Another schedule: the first's, the second's, and how many times as long the first's launch took.
    Schedule(Key, Schedule, Schedule, f64),
    /// The same schedule whose times differ by more than the tolerance: how many times as long the first's took.
    Time(Key, f64),
}

/// What is different in `b`, sorted by key; times of the same schedule within `tolerance` (0.05 for 5 %) count as equal.
pub fn diff(a: &Table, b: &Table, tolerance: f64) -> Vec<Change> {
    let mut changes: Vec<(Key, Change)> = Vec::new();
    for old in &a.entries {
        let Some(new) = b.of(&old.key) else {
            changes.push((old.key.clone(), Change::Removed(old.clone())));
            continue;
        };
        // What was measured may differ, so times are compared per row and column.
        let ratio = (old.of_all_rows() / old.columns as f64) / (new.of_all_rows() / new.columns as f64);
        if old.schedule != new.schedule {
            let change = Change::Schedule(old.key.clone(), old.schedule, new.schedule, ratio);
            changes.push((old.key.clone(), change));
        } else if ratio.max(1.0 / ratio) > 1.0 + tolerance {
            changes.push((old.key.clone(), Change::Time(old.key.clone(), ratio)));
        }
    }
    for new in b.entries.iter().filter(|new| a.of(&new.key).is_none()) {
        changes.push((new.key.clone(), Change::Added(new.clone())));
    }
    changes.sort_by(|a, b| a.0.cmp(&b.0));
    changes.into_iter().map(|(_, change)| change).collect()
}
