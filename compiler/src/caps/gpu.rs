//! What families and pickers ask of a GPU beyond the limits of one workgroup.

use crate::dtype::DType;

/// A GPU as a whole. A unit is what one workgroup runs on: a streaming multiprocessor, a compute unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gpu {
    /// Name of the instruction set that its code is made for: `sm_90a`.
    pub arch: &'static str,
    /// Model in full.
    pub model: &'static str,
    /// Units.
    pub units: u32,
    /// 32-bit registers of a unit.
    pub registers_per_unit: u32,
    /// Most 32-bit registers of a thread.
    pub registers_per_thread: u32,
    /// How an assembler deals with them.
    pub registers: RegisterUse,
    /// Bytes of shared memory of a unit, over all its workgroups.
    pub shared_per_unit: u32,
    /// Most threads that a unit keeps under way.
    pub threads_per_unit: u32,
    /// Bytes of the last cache before memory.
    pub cache_bytes: u64,
    /// What it can reach at most.
    pub peaks: Peaks,
}

/// How registers are dealt out to threads, and what lies in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterUse {
    /// A thread has a multiple of this many.
    pub step: u32,
    /// Whether a kernel may take what a unit's workgroups leave over: nothing else could use it.
    pub leftover: bool,
    /// Whether the tables of byte look-ups lie in registers: a permute takes no constants.
    pub tables: bool,
}

/// Peaks as the vendor states them, without sparsity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peaks {
    /// 10^9 bytes per second from memory.
    pub memory_gb: f64,
    /// 10^12 `f32` operations per second outside of matrix units.
    pub f32_tera: f64,
    /// 10^12 operations per second of matrix units, by type of the operands (sums in `f32` or `i32`).
    pub matrix_tera: &'static [(DType, f64)],
    /// Where the figures stand.
    pub source: &'static str,
}

impl Peaks {
    /// 10^12 operations per second of matrix units on operands of a type; `None` if it has no such unit.
    pub fn matrix(&self, dtype: DType) -> Option<f64> {
        self.matrix_tera.iter().find(|(known, _)| *known == dtype).map(|&(_, tera)| tera)
    }
}
