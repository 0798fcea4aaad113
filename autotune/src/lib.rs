//! Chooses schedules per device: problems to run, measurements, and later the search and its tables.
//!
//! Reads operations and devices; makes measurements whose results were compared with `op::reference` first.

pub mod problem;
