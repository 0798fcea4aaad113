//! A PTX machine: it runs PTX text on the CPU, lane by lane, and finds races, missing barriers and bad accesses.
//!
//! It reads PTX and nothing else: it shares no code and no table with the compiler, so it is a second reading of the PTX
//! ISA. `Module::load` parses, `Module::kernel` decodes (an instruction that is not known is an error there), and
//! `Kernel::run` runs a launch under a schedule, to an `Outcome` or to the first `Fault`.
#![forbid(unsafe_code)]
// A lane's number indexes several registers at once all over this crate.
#![allow(clippy::needless_range_loop)]

mod alu;
mod ast;
mod asynchronous;
mod decode;
mod description;
mod exec;
mod fault;
mod launch;
mod lex;
mod matrix;
mod memory;
mod numeric;
mod op;
mod order;
mod parse;
mod race;
mod wgmma;

pub use description::{
    ArgumentDescription, BufferDescription, CheckError, Description, InitDescription, Number, Report, Run, check_file,
};
pub use fault::{Fault, FaultKind, LoadError};
pub use launch::{Argument, Buffer, Effects, Kernel, Launch, Module, Outcome, Schedule, Swizzle, TensorMap};
pub use numeric::{Float, Rounding, Top};
