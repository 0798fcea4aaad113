//! Which schedule to take: what was tuned on the device, else on a near one, else what the chooser takes.
//!
//! Reads tables, those that ship with this program among them; makes a schedule and says where it comes from. Always
//! holds: the schedule can be built for the operation; the same tables and names give the same choice on every machine.

use crate::bucket::bucket;
use crate::key::Key;
use crate::table::{DeviceName, Table};
use bitsmith_compiler::Result;
use bitsmith_compiler::caps::Caps;
use bitsmith_compiler::lower;
use bitsmith_compiler::op::Op;
use bitsmith_compiler::schedule::Schedule;
use std::fmt;

/// Tables that ship with this program: name and text of every file of `autotune/tuned`.
pub const SHIPPED: &[(&str, &str)] =
    &[("x86-64-v4-vnni-bf16_amd-epyc_2.json", include_str!("../tuned/x86-64-v4-vnni-bf16_amd-epyc_2.json"))];

/// A shape this many doublings away, N and K together, may lend its schedule.
const NEAR: f64 = 2.0;

/// Tables to choose from.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    list: Vec<Table>,
}

/// Where a schedule comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// Measured on this device, for this shape or the one that is named.
    Table(DeviceName, Option<Key>),
    /// Measured on another device of the same target, for this shape or the one that is named.
    NearDevice(DeviceName, Option<Key>),
    /// Nothing was measured.
    Chooser,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let near = |key: &Option<Key>| key.as_ref().map_or(String::new(), |key| format!(", by {}x{}", key.n, key.k));
        match self {
            Source::Table(device, key) => write!(f, "tuned on {device}{}", near(key)),
            Source::NearDevice(device, key) => write!(f, "tuned on a near device, {device}{}", near(key)),
            Source::Chooser => f.write_str("chooser"),
        }
    }
}

impl Tables {
    /// No table: every choice is the chooser's.
    pub fn none() -> Tables {
        Tables::default()
    }

    /// Those that ship.
    pub fn shipped() -> Result<Tables> {
        let list = SHIPPED.iter().map(|(name, text)| Table::parse(text, name)).collect::<Result<_>>()?;
        Ok(Tables { list })
    }

    /// One table more, which counts before those that are there.
    pub fn with(mut self, table: Table) -> Tables {
        self.list.insert(0, table);
        self
    }

    /// The tables.
    pub fn list(&self) -> &[Table] {
        &self.list
    }

    /// The schedule for `m` rows. `device` is what it will run on; `None` where only the target is known.
    pub fn choose(&self, op: &Op, caps: &Caps, device: Option<&DeviceName>, m: usize) -> Result<(Schedule, Source)> {
        if let Some(key) = Key::of(op, bucket(m)) {
            let mut tables: Vec<&Table> = self.list.iter().filter(|table| table.device.target == caps.name).collect();
            let threads = |table: &Table| {
                device.map_or(0.0, |device| (table.device.threads as f64 / device.threads as f64).log2().abs())
            };
            // This device first, then its model, then the nearest number of threads; ties keep the order of the list.
            tables.sort_by(|a, b| {
                let other = |t: &Table| device.is_none_or(|device| t.device != *device);
                let stranger = |t: &Table| device.is_none_or(|device| t.device.model != device.model);
                (other(a), stranger(a)).cmp(&(other(b), stranger(b))).then(threads(a).total_cmp(&threads(b)))
            });
            for table in tables {
                let own = device == Some(&table.device);
                let source = |key: Option<Key>| {
                    let device = table.device.clone();
                    if own { Source::Table(device, key) } else { Source::NearDevice(device, key) }
                };
                if let Some(entry) = table.of(&key)
                    && fits(op, &entry.schedule, caps)?
                {
                    return Ok((entry.schedule, source(None)));
                }
                let near = table.entries.iter().filter(|e| e.key.m == key.m && key.distance(&e.key) <= NEAR);
                let near = near.min_by(|a, b| key.distance(&a.key).total_cmp(&key.distance(&b.key)));
                if let Some(entry) = near
                    && fits(op, &entry.schedule, caps)?
                {
                    return Ok((entry.schedule, source(Some(entry.key.clone()))));
                }
            }
        }
        Ok((lower::choose(op, caps, m)?, Source::Chooser))
    }
}

/// Whether a schedule of a table can be built for an operation here.
fn fits(op: &Op, schedule: &Schedule, caps: &Caps) -> Result<bool> {
    Ok(lower::refusal(op, schedule, caps)?.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Entry, Tried};
    use bitsmith_compiler::schedule::Family;
    use bitsmith_compiler::target::Target;
    use bitsmith_compiler::target::cpu::CpuTarget;

    fn key(n: usize, k: usize, m: usize) -> Key {
        let (weight, word) = ("int4-g32".into(), "f16");
        Key { weight, activation: word.into(), out: word.into(), epilogue: String::new(), k, n, m }
    }

    fn device(model: &str, threads: usize) -> DeviceName {
        DeviceName { target: "x86-64-v3".into(), model: model.into(), threads }
    }

    fn table(name: DeviceName, unroll: u32) -> Table {
        let schedule = Schedule::single(Family::Stream, 1, 8, unroll);
        let mut table = Table::new(name);
        table.entries.push(Entry {
            key: key(64, 64, 1),
            schedule,
            seconds: 1.0,
            columns: 64,
            rows: None,
            chooser_seconds: 1.0,
            chooser: schedule,
            bound: "read".into(),
            share: None,
            runner_up: None,
            tried: Tried::default(),
            date: "2026-01-01".into(),
        });
        table
    }

    #[test]
    fn the_device_then_a_near_one_then_the_chooser() {
        let target = CpuTarget::named("x86-64-v3").unwrap();
        let caps = target.caps();
        let tables = Tables::none().with(table(device("a", 2), 1)).with(table(device("b", 8), 2));
        let choose = |n: usize, m: usize, name: Option<&DeviceName>| {
            let op = key(n, 64, m).op().unwrap();
            tables.choose(&op, caps, name, m).unwrap()
        };
        let (schedule, source) = choose(64, 1, Some(&device("a", 2)));
        assert_eq!((schedule.unroll, source), (1, Source::Table(device("a", 2), None)));
        let (schedule, source) = choose(128, 1, Some(&device("b", 8)));
        assert_eq!((schedule.unroll, source), (2, Source::Table(device("b", 8), Some(key(64, 64, 1)))));
        let (schedule, source) = choose(64, 1, Some(&device("c", 6)));
        assert_eq!((schedule.unroll, source), (2, Source::NearDevice(device("b", 8), None)));
        for (n, m) in [(1024, 1), (64, 16)] {
            let (schedule, source) = choose(n, m, Some(&device("a", 2)));
            assert_eq!(source, Source::Chooser);
            assert_eq!(schedule, lower::choose(&key(n, 64, m).op().unwrap(), caps, m).unwrap());
        }
        // A level that the tables know nothing of.
        let other = CpuTarget::named("aarch64").unwrap();
        let op = key(64, 64, 1).op().unwrap();
        assert_eq!(tables.choose(&op, other.caps(), None, 1).unwrap().1, Source::Chooser);
    }

    #[test]
    fn every_table_of_the_folder_ships() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tuned");
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| name.ends_with(".json"))
            .collect();
        names.sort();
        assert_eq!(names, SHIPPED.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>());
        for ((name, text), table) in SHIPPED.iter().zip(Tables::shipped().unwrap().list()) {
            assert_eq!(*name, format!("{}.json", table.device.slug()));
            assert_eq!(table.to_text().unwrap(), *text, "{name} is not as this program writes it");
        }
    }
}
