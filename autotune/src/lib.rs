//! Chooses schedules per device: measures a declared space, keeps what it found in tables, and reads them again.
//!
//! Reads operations and devices; makes measurements whose results were compared with `op::reference` first, and tables of
//! schedules out of them. `README.md` beside this crate says how it searches and what its files hold.

#![forbid(unsafe_code)]

pub mod bucket;
pub mod ceiling;
pub mod choice;
pub mod compare;
pub mod execute;
pub mod groups;
pub mod journal;
pub mod key;
pub mod measure;
pub mod problem;
pub mod report;
pub mod search;
pub mod simulate;
pub mod table;
pub mod tune;

/// A number out of a key that is the same on every machine: FNV-1a over its text.
pub(crate) fn hash(value: &impl std::fmt::Display) -> u64 {
    value
        .to_string()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
