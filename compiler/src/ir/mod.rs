//! The kernel IR: what one thread of a workgroup does, in structured SSA with short vectors.
//!
//! Reads nothing but `dtype` and `caps`; makes kernels that every target can emit. It has never heard of formats,
//! operations, schedules or targets. Always holds: a [`Verified`] kernel can be emitted without further checks, and
//! the text form is complete (`parse(print(k)) == k`).

mod asynchronous;
mod builder;
mod cooperative;
mod exp2;
pub mod interp;
mod kernel;
mod late;
mod lexer;
mod names;
mod operands;
mod parse;
mod pressure;
mod print;
mod types;
mod uniform;
mod verify;

pub use asynchronous::{Asynchronous, Factor, MMA_COLUMNS, Panel};
pub use builder::Builder;
pub use cooperative::{Cooperative, Fragment, Lines as MatrixLines, Order, Part, fragments};
pub use exp2::{exp2_parts, exp2_series, exp2_short};
pub use kernel::*;
pub use late::late;
pub use parse::{Lines, MAX_DEPTH, ParseError, parse, parse_with_lines};
pub use pressure::{Demand, Fit, Resources, live_words, resources};
pub use print::head as statement_head;
pub use types::{Memory, Scalar, Type, Value};
pub use uniform::{Uniform, uniformity};
pub use verify::{Diagnostic, Verified, verify};
