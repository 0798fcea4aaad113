//! Chooses schedules per device: problems to run, cases drawn from seeds and the suite that runs them on a device,
//! measurements, and later the search and its tables.
//!
//! Reads operations and devices; makes measurements whose results were compared with `op::reference` first.

pub mod cases;
pub mod execute;
pub mod gpu_roofs;
pub mod poison;
pub mod problem;
pub mod repeat;
pub mod suite;
