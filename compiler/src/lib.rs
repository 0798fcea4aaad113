#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod artifact;
pub mod caps;
pub mod dtype;
pub mod error;
pub mod format;
pub mod ir;
pub mod lower;
pub mod op;
pub mod pass;
pub mod schedule;
pub mod target;

pub use error::{Error, Result};
