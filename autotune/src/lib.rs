//! Chooses schedules per device: problems to run, cases drawn from seeds and the suite that runs them on a device,
//! measurements of a declared space, and tables of what was found.
//!
//! Reads operations and devices; makes measurements whose results were compared with `op::reference` first, and tables of
//! schedules out of them. `README.md` beside this crate says how it searches and what its files hold.

#![forbid(unsafe_code)]

pub mod bucket;
pub mod cases;
pub mod ceiling;
pub mod choice;
pub mod compare;
pub mod execute;
pub mod gpu_roofs;
pub mod groups;
pub mod journal;
pub mod key;
mod look;
pub mod measure;
pub mod poison;
pub mod problem;
pub mod repeat;
pub mod report;
pub mod search;
pub mod simulate;
pub mod suite;
pub mod table;
pub mod tune;

/// A number out of a key that is the same on every machine: FNV-1a over its text.
pub(crate) fn hash(value: &impl std::fmt::Display) -> u64 {
    value
        .to_string()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
