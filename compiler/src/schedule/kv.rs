//! How an operation on a KV cache runs.

use serde::{Deserialize, Serialize};

/// A schedule of an operation on a KV cache. Only attention has more than threads to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KvSchedule {
    /// Threads per workgroup.
    pub threads: u32,
    /// Tokens between two looks at the largest score.
    pub tile: u32,
    /// Query rows whose sums are held in registers together.
    pub rows: u32,
    /// Vectors of tokens, or of channels, that share a query's or a weight's number: as many of them as fit a page or a head.
    pub vectors: u32,
    /// KV heads of a work item that one workgroup can take: 1, or all of the cache, which a launch asks for by one workgroup an
    /// item. Workgroups of one head each are understood either way.
    #[serde(default = "one")]
    pub heads: u32,
}

/// What schedules that say nothing about heads mean.
fn one() -> u32 {
    1
}

impl Default for KvSchedule {
    fn default() -> KvSchedule {
        KvSchedule { threads: 1, tile: 64, rows: 4, vectors: 2, heads: 1 }
    }
}
