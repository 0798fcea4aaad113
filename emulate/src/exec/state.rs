//! What a running kernel consists of: warps with their lane groups, and blocks with their shared memory.

use crate::alu::Lanes;
use crate::asynchronous::{CopyEntry, Mbarrier, Pending};
use crate::memory::Bytes;
use crate::order::{Acquired, Fences};
use crate::race::{Clock, Races};
use crate::wgmma::Flight;
use std::collections::HashMap;

/// Why a group of lanes does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// It runs.
    No,
    /// For other lanes of its warp to reach the same instruction.
    Converge,
    /// For a block barrier to leave this generation.
    Barrier { id: usize, generation: u32 },
    /// For a transaction barrier's phase to end.
    Mbarrier { block: usize, at: u32, phase: u64 },
    /// For the other warps of the warpgroup to issue as many `wgmma`.
    Warpgroup { issued: u32 },
    /// For the cluster's barrier to leave this generation.
    Cluster { generation: u32 },
}

/// Lanes of a warp that stand at one instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub pc: u32,
    pub mask: u32,
    pub wait: Wait,
}

/// A warp.
#[derive(Default)]
pub(crate) struct Warp {
    pub block: usize,
    pub index: usize,
    pub registers: Vec<Lanes>,
    pub defined: Vec<u32>,
    pub preds: Vec<u32>,
    pub pred_defined: Vec<u32>,
    pub groups: Vec<Group>,
    pub current: usize,
    /// `current` was chosen on purpose, and the next choice keeps it.
    pub rotated: bool,
    /// An instruction ran that may be part of a spin loop.
    pub spun: bool,
    /// Lanes that have not exited.
    pub live: u32,
    pub local: Bytes,
    pub local_size: usize,
    /// `cp.async` copies in flight, and how many groups each lane committed.
    pub copies: Vec<CopyEntry>,
    pub commits: [u32; 32],
    /// Bulk stores: of the open group, and of committed ones.
    pub bulk_open: Vec<u64>,
    pub bulk_groups: Vec<Vec<u64>>,
    pub flights: Vec<Flight>,
    pub wgmma_commits: u32,
    /// How many `wgmma` this warp issued.
    pub wgmma_issued: u32,
    /// When each register was last written, and when `wgmma.fence` last ran.
    pub stamps: Vec<u64>,
    pub fence_stamp: u64,
    /// Number of the instruction that runs.
    pub now: u64,
    pub carry: u32,
    /// Generation of the cluster barrier at the last arrival.
    pub cluster_generation: u32,
    /// What its fences order between blocks.
    pub fences: Fences,
    /// A failed `try_wait` may return now.
    pub give_up: bool,
}

/// A block barrier.
#[derive(Default)]
pub(crate) struct Gate {
    pub generation: u32,
    pub arrived: u32,
    pub expected: Option<u32>,
    pub clock: Clock,
    /// What the last generation published, and its votes: lanes true, lanes that voted.
    pub released: Clock,
    pub votes: (u32, u32),
    pub result: (u32, u32),
    /// Warps that arrived in the running generation.
    pub arrivals: Vec<usize>,
}

/// A thread block.
pub(crate) struct Block {
    pub index: [u32; 3],
    /// Slot of the cluster's first block, and the rank in the cluster.
    pub first: usize,
    pub rank: u32,
    pub threads: u32,
    /// Its warps are these of the machine.
    pub warps: std::ops::Range<usize>,
    pub shared: Bytes,
    pub races: Races,
    pub gates: Vec<Gate>,
    pub mbarriers: HashMap<u32, Mbarrier>,
    /// Shared addresses that may hold one, so that most accesses need not look.
    pub mbarrier_span: std::ops::Range<usize>,
    pub pending: Vec<Pending>,
    /// Cluster barrier, used in the cluster's first block.
    pub cluster: Gate,
    pub live_warps: u32,
    /// Its number in the grid.
    pub number: u32,
    /// What fences have brought from other blocks.
    pub acquired: Acquired,
}
