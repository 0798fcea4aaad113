//! The text of instructions that run beside the threads.
//!
//! ```text
//! inst = "barrier_init" address "arrivals" int
//!      | "barrier_arrive" address
//!      | "barrier_expect" address "bytes" int
//!      | "barrier_wait" address "," value                                 parity
//!      | "bulk_copy" address "," address "bytes" int "," address           to, from, barrier
//!      | "fence_async" | "subgroup_barrier" | "launch_dependents" | "await_dependencies"
//!      | "device_fence"
//!      | ("warpgroup_mma" | "warpgroup_mma_pending") shape "columns" int "a" ("[" values "]" | panel "steps" int) "b" panel "," value
//!      | "warpgroup_wait" int
//!      | ("registers_give" | "registers_take") int
//! panel = address "leading" int "stride" int ["swizzled"]
//! ```

use super::{Parsed, Parser};
use crate::ir::asynchronous::{Asynchronous, Factor, Panel};

/// The words that start one.
pub(super) const NAMES: [&str; 15] = [
    "barrier_init",
    "barrier_arrive",
    "barrier_expect",
    "barrier_wait",
    "bulk_copy",
    "fence_async",
    "subgroup_barrier",
    "warpgroup_mma",
    "warpgroup_mma_pending",
    "warpgroup_wait",
    "registers_give",
    "registers_take",
    "launch_dependents",
    "await_dependencies",
    "device_fence",
];

impl Parser<'_> {
    /// What follows one of [`NAMES`].
    pub(super) fn asynchronous(&mut self, name: &str) -> Parsed<Asynchronous> {
        Ok(match name {
            "barrier_init" => {
                let barrier = self.address()?;
                self.word("arrivals")?;
                Asynchronous::BarrierInit { barrier, arrivals: self.int()? }
            }
            "barrier_arrive" => Asynchronous::BarrierArrive { barrier: self.address()? },
            "barrier_expect" => {
                let barrier = self.address()?;
                self.word("bytes")?;
                Asynchronous::BarrierExpect { barrier, bytes: self.int()? }
            }
            "barrier_wait" => Asynchronous::BarrierWait { barrier: self.address()?, parity: self.comma_value()? },
            "bulk_copy" => {
                let to = self.address()?;
                self.mark(',')?;
                let from = self.address()?;
                self.word("bytes")?;
                let bytes = self.int()?;
                self.mark(',')?;
                Asynchronous::BulkCopy { to, from, bytes, barrier: self.address()? }
            }
            "subgroup_barrier" => Asynchronous::SubgroupBarrier,
            "warpgroup_mma" | "warpgroup_mma_pending" => {
                let shape = self.shape()?;
                self.word("columns")?;
                let columns = self.int()?;
                self.word("a")?;
                let a = if self.next.token == super::Token::Mark('[') {
                    Factor::Fragments(self.bracketed(Self::value)?)
                } else {
                    let panel = self.panel()?;
                    self.word("steps")?;
                    Factor::Panel(panel, self.int()?)
                };
                self.word("b")?;
                let b = self.panel()?;
                let pending = name == "warpgroup_mma_pending";
                Asynchronous::Mma { shape, columns, a, b, acc: self.comma_value()?, pending }
            }
            "warpgroup_wait" => Asynchronous::MmaWait(self.int()?),
            "registers_give" => Asynchronous::Registers { count: self.int()?, more: false },
            "registers_take" => Asynchronous::Registers { count: self.int()?, more: true },
            "launch_dependents" => Asynchronous::LaunchDependents,
            "await_dependencies" => Asynchronous::AwaitDependencies,
            "device_fence" => Asynchronous::DeviceFence,
            _ => Asynchronous::Fence,
        })
    }

    fn panel(&mut self) -> Parsed<Panel> {
        let address = self.address()?;
        self.word("leading")?;
        let leading = self.int()?;
        self.word("stride")?;
        let stride = self.int()?;
        let swizzled = self.next.token == super::Token::Word("swizzled");
        if swizzled {
            self.word("swizzled")?;
        }
        Ok(Panel { address, leading, stride, swizzled })
    }
}
