//! Passes: kernel IR to kernel IR.
//!
//! Reads a kernel and, for `expand`, the caps of a device; makes a kernel that gives the same bits. Always holds: a
//! pass turns a verified kernel into one that the verifier takes, and values end up numbered densely.

mod cse;
mod dce;
pub mod expand;
mod fold;
mod hoist;
mod lines;
mod narrow;
mod rewrite;
mod unroll;

#[cfg(test)]
mod tests;

pub use cse::cse;
pub use dce::{dce, renumber};
pub use expand::expand;
pub use fold::fold;
pub use hoist::{hoist, hoist_where};
pub use lines::lines;
pub use narrow::narrow;
pub use unroll::unroll;

use crate::caps::Caps;
use crate::ir::Kernel;

/// One line of a target's pass list.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Its name, for `--emit`.
    pub name: &'static str,
    /// Why it stands where it stands.
    pub reason: &'static str,
    /// What it does.
    pub run: fn(Kernel, &Caps) -> Kernel,
}

/// Runs passes in order, then numbers the values densely.
pub fn run_all(kernel: Kernel, passes: &[Pass], caps: &Caps) -> Kernel {
    renumber(passes.iter().fold(kernel, |kernel, pass| (pass.run)(kernel, caps)))
}

/// `fold`.
pub const FOLD: Pass =
    Pass { name: "fold", reason: "constants known now cost nothing later", run: |kernel, _| fold(kernel) };
/// `cse`.
pub const CSE: Pass = Pass {
    name: "cse",
    reason: "families and expansions repeat constants and addresses",
    run: |kernel, _| cse(kernel),
};
/// `dce`.
pub const DCE: Pass =
    Pass { name: "dce", reason: "what nobody reads need not be emitted", run: |kernel, _| dce(kernel) };
/// `hoist`.
pub const HOIST: Pass = Pass {
    name: "hoist",
    reason: "what a loop does not change is done once before it",
    run: |kernel, _| hoist(kernel),
};
/// `narrow`.
pub const NARROW: Pass = Pass {
    name: "narrow",
    reason: "buffers are below 2 GiB, so that 32 bits hold every index",
    run: |kernel, _| narrow(kernel),
};
/// `unroll` with [`UNROLL_LIMIT`].
pub const UNROLL: Pass = Pass {
    name: "unroll",
    reason: "short loops of known length become straight code that folds",
    run: |kernel, _| unroll(kernel, UNROLL_LIMIT),
};
/// `expand` for the device.
pub const EXPAND: Pass = Pass {
    name: "expand",
    reason: "what the device lacks becomes core instructions",
    run: |kernel, caps| expand(kernel, caps),
};

/// Most statements that unrolling one loop may make.
pub const UNROLL_LIMIT: usize = 256;
