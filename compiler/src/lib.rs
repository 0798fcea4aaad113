#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod artifact;
pub mod caps;
pub mod dtype;
pub mod error;
pub mod ir;
pub mod pass;
pub mod schedule;
pub mod target;

pub use error::{Error, Result};
