//! Instructions of devices whose copies and matrix units run beside the threads: barrier objects in shared memory, copies
//! of long ranges, matrix products of four subgroups, order between workgroups and between launches.
//!
//! Always holds: each needs a feature of [`crate::caps`], so a target that lacks it refuses it by that name, and no other
//! instruction depends on one of these.

use super::kernel::Address;
use super::types::Value;
use crate::caps::{Feature, MmaShape};

/// One such instruction. All but `Mma` are without a result.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Asynchronous {
    /// Makes 8 bytes of shared memory (a multiple of 8) a barrier object. A phase of it ends when this many arrivals have
    /// come and as many bytes have been copied as were announced; then the next one begins. Other threads may use it after
    /// a `fence` of this thread and a barrier of the workgroup.
    BarrierInit {
        /// Where.
        barrier: Address,
        /// Arrivals per phase, from 1 on.
        arrivals: u32,
    },
    /// Arrives: what this thread did before is seen by those who wait for this phase.
    BarrierArrive {
        /// Where.
        barrier: Address,
    },
    /// Announces bytes that copies of this phase bring, and arrives.
    BarrierExpect {
        /// Where.
        barrier: Address,
        /// Bytes.
        bytes: u32,
    },
    /// Waits until the phase of this parity has ended. Phases count from 0.
    BarrierWait {
        /// Where.
        barrier: Address,
        /// `i32`; its lowest bit counts.
        parity: Value,
    },
    /// Starts to copy a range of a buffer to shared memory, and tells a barrier object when its bytes have come. What it
    /// writes is undefined until a wait for that phase.
    BulkCopy {
        /// In a shared array that nothing but such copies writes; a multiple of 16.
        to: Address,
        /// In a buffer; a multiple of 16.
        from: Address,
        /// A multiple of 16.
        bytes: u32,
        /// Where the barrier object is.
        barrier: Address,
    },
    /// What this thread has written to shared memory is seen by `Mma` and by copies that start later; a barrier makes it so
    /// for the other threads.
    Fence,
    /// The threads of a subgroup meet; what they did to shared memory before it comes before what they do after it.
    SubgroupBarrier,
    /// Four subgroups, the first of them a multiple of four, multiply `[64, k]` by `[k, columns]` and add: subgroup `i` holds
    /// rows `16 i` on of A and of the sums. It ends when the sums are there, or, where it is `pending`, has only begun then: its
    /// registers and its panels stay in use, and its sums go nowhere but to further such products, until an `MmaWait` has seen
    /// it end. See [`super::Inst::Mma`] for their arithmetic.
    Mma {
        /// How A and the sums lie in the lanes: a fragment of A is that of this instruction, and the sums of its 8 columns
        /// follow each other.
        shape: &'static MmaShape,
        /// Columns of B and of the sums: 8, 16, 32, 64 or 128.
        columns: u32,
        /// A.
        a: Factor,
        /// B: its rows here are the columns of the product.
        b: Panel,
        /// The sums before; the result is alike. Those of a pending product are used by nobody else: the result takes their
        /// registers.
        acc: Value,
        /// Whether it goes on beside the threads.
        pending: bool,
    },
    /// Waits until no more than this many of the pending products that this thread's four subgroups began last are under way.
    MmaWait(u8),
    /// Sets the registers that each thread of four subgroups may use: gives some back, or waits for more.
    Registers {
        /// 24 to 256, a multiple of 8.
        count: u32,
        /// Whether that is more than before.
        more: bool,
    },
    /// Launches that depend on this one may start.
    LaunchDependents,
    /// Waits until the launches that this one depends on have ended and their writes are seen.
    AwaitDependencies,
    /// Order between the workgroups of a launch. What this thread did before, and what a barrier has put before that, is seen
    /// behind such a fence of a thread of any workgroup that has found, by an atomic between, the result of an atomic behind
    /// this fence; and behind a barrier after that, by that thread's whole workgroup.
    DeviceFence,
}

/// Operand A of a product of four subgroups.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Factor {
    /// This lane's fragments, one per step of k.
    Fragments(Vec<Value>),
    /// 64 rows in shared memory, and the steps of k.
    Panel(Panel, u32),
}

impl Factor {
    /// Steps of k.
    pub fn steps(&self) -> u32 {
        match self {
            Factor::Fragments(list) => list.len() as u32,
            Factor::Panel(_, steps) => *steps,
        }
    }
}

/// A matrix in shared memory whose rows have k contiguous in pieces of 16 bytes. Byte `j` of row `x` is at
/// `leading * (j / 16) + stride * (x / 8) + 16 * (x % 8) + j % 16`; where it is swizzled, rows have 128 bytes, whose pieces
/// change places within them: `stride * (x / 8) + 128 * (x % 8) + 16 * ((j / 16) ^ (x % 8)) + j % 16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Panel {
    /// Where it starts, a multiple of 16; of 1024 where it is swizzled.
    pub address: Address,
    /// Bytes from one piece of a row to the next; a multiple of 16, and 16 where it is swizzled.
    pub leading: u32,
    /// Bytes from eight rows to the next eight; a multiple of 16.
    pub stride: u32,
    /// Whether pieces change places.
    pub swizzled: bool,
}

impl Panel {
    /// The byte of a piece of 16 bytes of a row, from the start.
    pub fn place(&self, row: u32, piece: u32) -> i64 {
        let eights = self.stride as i64 * (row / 8) as i64;
        if self.swizzled {
            return eights + 128 * (row % 8) as i64 + 16 * (piece ^ (row % 8)) as i64;
        }
        self.leading as i64 * piece as i64 + eights + 16 * (row % 8) as i64
    }
}

/// Which columns [`Asynchronous::Mma`] takes.
pub const MMA_COLUMNS: [u32; 5] = [8, 16, 32, 64, 128];

impl Asynchronous {
    /// What a device must have.
    pub fn feature(&self) -> Feature {
        match self {
            Asynchronous::BarrierInit { .. }
            | Asynchronous::BarrierArrive { .. }
            | Asynchronous::BarrierExpect { .. }
            | Asynchronous::BarrierWait { .. }
            | Asynchronous::BulkCopy { .. }
            | Asynchronous::Fence
            | Asynchronous::SubgroupBarrier => Feature::BulkCopy,
            Asynchronous::Mma { .. } | Asynchronous::MmaWait(_) | Asynchronous::Registers { .. } => {
                Feature::WarpgroupMma
            }
            Asynchronous::LaunchDependents | Asynchronous::AwaitDependencies => Feature::GridDependency,
            Asynchronous::DeviceFence => Feature::DeviceFence,
        }
    }

    /// Its name in the text form.
    pub fn name(&self) -> &'static str {
        match self {
            Asynchronous::BarrierInit { .. } => "barrier_init",
            Asynchronous::BarrierArrive { .. } => "barrier_arrive",
            Asynchronous::BarrierExpect { .. } => "barrier_expect",
            Asynchronous::BarrierWait { .. } => "barrier_wait",
            Asynchronous::BulkCopy { .. } => "bulk_copy",
            Asynchronous::Fence => "fence_async",
            Asynchronous::SubgroupBarrier => "subgroup_barrier",
            Asynchronous::Mma { pending: false, .. } => "warpgroup_mma",
            Asynchronous::Mma { pending: true, .. } => "warpgroup_mma_pending",
            Asynchronous::MmaWait(_) => "warpgroup_wait",
            Asynchronous::Registers { more: false, .. } => "registers_give",
            Asynchronous::Registers { more: true, .. } => "registers_take",
            Asynchronous::LaunchDependents => "launch_dependents",
            Asynchronous::AwaitDependencies => "await_dependencies",
            Asynchronous::DeviceFence => "device_fence",
        }
    }

    /// Results.
    pub fn results(&self) -> usize {
        usize::from(matches!(self, Asynchronous::Mma { .. }))
    }

    /// Calls `visit` with every address that it names.
    pub fn each_address(&mut self, visit: &mut dyn FnMut(&mut Address)) {
        match self {
            Asynchronous::BarrierInit { barrier, .. }
            | Asynchronous::BarrierArrive { barrier }
            | Asynchronous::BarrierExpect { barrier, .. }
            | Asynchronous::BarrierWait { barrier, .. } => visit(barrier),
            Asynchronous::BulkCopy { to, from, barrier, .. } => {
                visit(to);
                visit(from);
                visit(barrier);
            }
            Asynchronous::Mma { a, b, .. } => {
                if let Factor::Panel(panel, _) = a {
                    visit(&mut panel.address);
                }
                visit(&mut b.address);
            }
            Asynchronous::Fence
            | Asynchronous::SubgroupBarrier
            | Asynchronous::MmaWait(_)
            | Asynchronous::Registers { .. }
            | Asynchronous::LaunchDependents
            | Asynchronous::AwaitDependencies
            | Asynchronous::DeviceFence => {}
        }
    }

    /// Calls `visit` with every value that it reads, those of addresses first.
    pub fn each_operand(&mut self, visit: &mut dyn FnMut(&mut Value)) {
        self.each_address(&mut |address| {
            if let Some(index) = &mut address.index {
                visit(index);
            }
        });
        match self {
            Asynchronous::BarrierWait { parity, .. } => visit(parity),
            Asynchronous::Mma { a, acc, .. } => {
                if let Factor::Fragments(list) = a {
                    list.iter_mut().for_each(&mut *visit);
                }
                visit(acc);
            }
            _ => {}
        }
    }
}
