//! The interpreter: the living definition of every instruction.
//!
//! Reads a verified kernel and a launch, writes the launch's buffers. It runs every workgroup of the grid with all its
//! threads, and traps on what the IR leaves undefined: accesses out of bounds or misaligned, reads of bytes that
//! nothing wrote, races, barriers that some threads miss, subgroup operations under divergence, broken promises.
//! Always holds: a launch that ends without a trap has one result on every correct target, but for `exp2`'s and
//! NaN payloads' freedom.

mod asynchronous;
mod code;
mod cooperative;
pub(crate) mod evaluate;
mod float8;
mod matrix;
mod memory;
mod number;
mod order;
mod pure;
mod trap;
mod workgroup;

#[cfg(test)]
mod gpu_tests;
#[cfg(test)]
mod tests;

pub use float8::{decode, encode};
pub use trap::Trap;

use super::kernel::{Kernel, ParamKind};
use super::types::Scalar;
use super::verify::Verified;

/// Steps that [`run`] allows: enough for any test, few enough that an endless loop ends in a minute or two.
pub const DEFAULT_STEPS: u64 = 4_000_000_000;

/// One launch of a kernel.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Workgroups along x, y, z.
    pub grid: [u32; 3],
    /// One argument per parameter, in order.
    pub args: &'a mut [ArgValue],
}

/// An argument of a launch.
#[derive(Clone, Debug, PartialEq)]
pub enum ArgValue {
    /// Device memory.
    Buffer(Buffer),
    /// A scalar `i32`.
    I32(i32),
    /// A scalar `i64`.
    I64(i64),
    /// A scalar `f32`.
    F32(f32),
}

/// Device memory behind a parameter. Its start counts as aligned to what the parameter claims.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Buffer {
    /// The bytes; accesses past them trap.
    pub bytes: Vec<u8>,
    /// Which bytes hold something; loads of others trap, stores set them. `None`: all do.
    pub written: Option<Vec<bool>>,
}

impl ArgValue {
    /// A buffer that holds these bytes.
    pub fn filled(bytes: Vec<u8>) -> ArgValue {
        ArgValue::Buffer(Buffer { bytes, written: None })
    }

    /// A buffer of this many bytes that nothing has written. They read as 0xA5 afterwards where still nothing has.
    pub fn unwritten(len: usize) -> ArgValue {
        ArgValue::Buffer(Buffer { bytes: vec![0xa5; len], written: Some(vec![false; len]) })
    }

    /// The bytes of a buffer; empty for a scalar.
    pub fn bytes(&self) -> &[u8] {
        match self {
            ArgValue::Buffer(buffer) => &buffer.bytes,
            ArgValue::I32(_) | ArgValue::I64(_) | ArgValue::F32(_) => &[],
        }
    }
}

/// Runs a launch with [`DEFAULT_STEPS`]. After a trap, the buffers hold what had been written by then.
pub fn run(kernel: &Verified<'_>, subgroup: u32, launch: Launch<'_>) -> Result<(), Trap> {
    run_limited(kernel, subgroup, launch, DEFAULT_STEPS)
}

/// Runs a launch, and traps once all threads together have taken this many steps (an instruction is about one).
pub fn run_limited(kernel: &Verified<'_>, subgroup: u32, launch: Launch<'_>, steps: u64) -> Result<(), Trap> {
    run_kernel(kernel.kernel(), subgroup, launch, steps)
}

/// Runs a kernel that the verifier may not have seen: the interpreter's checks stand on their own.
pub(crate) fn run_kernel(kernel: &Kernel, subgroup: u32, launch: Launch<'_>, steps: u64) -> Result<(), Trap> {
    let groups = launch.grid.iter().map(|&n| n as u64).try_fold(1u64, u64::checked_mul).unwrap_or(u64::MAX);
    let scalars = scalars(kernel, launch.args).map_err(Trap::launch)?;
    if groups > memory::MAX_WORKGROUPS {
        return Err(Trap::launch(format!("{groups} workgroups, at most {} can be run", memory::MAX_WORKGROUPS)));
    }
    if kernel.threads() > memory::MAX_THREADS || kernel.threads() == 0 || subgroup == 0 {
        return Err(Trap::launch(format!("{} threads per workgroup, subgroup of {subgroup}", kernel.threads())));
    }
    let mut program = code::compile(kernel);
    for (number, slot) in std::mem::take(&mut program.args) {
        let bits = scalars[number as usize];
        program.image[slot as usize..][..8].copy_from_slice(&bits.to_le_bytes());
    }
    let space = memory::Space::new(kernel, launch.args, groups * kernel.threads() as u64);
    let mut machine = workgroup::Machine::new(kernel, program, subgroup, launch.grid, space, steps);
    let result = machine.run_grid();
    machine.into_space().give_back(launch.args);
    result
}

/// The bits of each scalar argument (0 for buffers), or what is wrong with the arguments.
fn scalars(kernel: &Kernel, args: &[ArgValue]) -> Result<Vec<u64>, String> {
    if args.len() != kernel.params.len() {
        return Err(format!("{} arguments for {} parameters", args.len(), kernel.params.len()));
    }
    let mut bits = Vec::new();
    for (param, arg) in kernel.params.iter().zip(args) {
        bits.push(match (param.kind, arg) {
            (ParamKind::Buffer { .. }, ArgValue::Buffer(buffer)) => {
                if buffer.written.as_ref().is_some_and(|written| written.len() != buffer.bytes.len()) {
                    return Err(format!("{}: the map of written bytes has another length than the bytes", param.name));
                }
                0
            }
            (ParamKind::Scalar(Scalar::I32), ArgValue::I32(value)) => *value as u32 as u64,
            (ParamKind::Scalar(Scalar::I64), ArgValue::I64(value)) => *value as u64,
            (ParamKind::Scalar(Scalar::F32), ArgValue::F32(value)) => value.to_bits() as u64,
            _ => return Err(format!("{}: the argument is not of the parameter's kind", param.name)),
        });
    }
    Ok(bits)
}
