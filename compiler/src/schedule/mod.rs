//! How an operation runs: family, tile, unrolling, packing. Data and serde only; `lower` gives it meaning.

mod kv;

pub use kv::KvSchedule;

use serde::{Deserialize, Serialize};

/// A schedule: one point of a family's space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Schedule {
    /// Which program.
    pub family: Family,
    /// Rows of activations (M) that one register tile holds.
    pub tile_m: u32,
    /// Output features (N) that one workgroup makes.
    pub tile_n: u32,
    /// Packing units of K per turn of the inner loop.
    pub unroll: u32,
    /// Threads per workgroup.
    #[serde(default = "one")]
    pub threads: u32,
    /// Threads of a workgroup that share the columns of a row of W.
    #[serde(default = "one")]
    pub split: u32,
    /// Register tiles along N that a workgroup of one thread makes one after the other, with activations made ready once.
    #[serde(default = "one")]
    pub strips: u32,
    /// Workgroups that share all tiles of Y along N, each taking an equal run of them cut into steps of K; 1 where each tile has
    /// a workgroup of its own.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub workgroups: u32,
}

const fn one() -> u32 {
    1
}

fn is_one(number: &u32) -> bool {
    *number == 1
}

impl Schedule {
    /// A schedule for workgroups of one thread.
    pub const fn single(family: Family, tile_m: u32, tile_n: u32, unroll: u32) -> Schedule {
        Schedule { family, tile_m, tile_n, unroll, threads: 1, split: 1, strips: 1, workgroups: 1 }
    }

    /// The same schedule for workgroups of so many threads, `split` of which share a row of W.
    pub const fn with_threads(self, threads: u32, split: u32) -> Schedule {
        Schedule { threads, split, ..self }
    }

    /// The same schedule with so many register tiles per workgroup.
    pub const fn with_strips(self, strips: u32) -> Schedule {
        Schedule { strips, ..self }
    }

    /// The same schedule for so many workgroups that share the tiles of Y.
    pub const fn with_workgroups(self, workgroups: u32) -> Schedule {
        Schedule { workgroups, ..self }
    }
}

/// One number of a schedule, by name: what an axis of a family's space turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Knob {
    /// [`Schedule::tile_m`].
    TileM,
    /// [`Schedule::tile_n`].
    TileN,
    /// [`Schedule::unroll`].
    Unroll,
    /// [`Schedule::threads`].
    Threads,
    /// [`Schedule::split`].
    Split,
    /// [`Schedule::strips`].
    Strips,
    /// [`Schedule::workgroups`].
    Workgroups,
}

impl Knob {
    /// Every knob.
    pub const ALL: [Knob; 7] =
        [Knob::TileM, Knob::TileN, Knob::Unroll, Knob::Threads, Knob::Split, Knob::Strips, Knob::Workgroups];

    /// Stable name, that of the field.
    pub const fn name(self) -> &'static str {
        match self {
            Knob::TileM => "tile_m",
            Knob::TileN => "tile_n",
            Knob::Unroll => "unroll",
            Knob::Threads => "threads",
            Knob::Split => "split",
            Knob::Strips => "strips",
            Knob::Workgroups => "workgroups",
        }
    }

    /// Its value in a schedule.
    pub const fn of(self, schedule: &Schedule) -> u32 {
        match self {
            Knob::TileM => schedule.tile_m,
            Knob::TileN => schedule.tile_n,
            Knob::Unroll => schedule.unroll,
            Knob::Threads => schedule.threads,
            Knob::Split => schedule.split,
            Knob::Strips => schedule.strips,
            Knob::Workgroups => schedule.workgroups,
        }
    }

    /// The schedule with another value.
    pub const fn set(self, schedule: Schedule, value: u32) -> Schedule {
        match self {
            Knob::TileM => Schedule { tile_m: value, ..schedule },
            Knob::TileN => Schedule { tile_n: value, ..schedule },
            Knob::Unroll => Schedule { unroll: value, ..schedule },
            Knob::Threads => Schedule { threads: value, ..schedule },
            Knob::Split => Schedule { split: value, ..schedule },
            Knob::Strips => Schedule { strips: value, ..schedule },
            Knob::Workgroups => Schedule { workgroups: value, ..schedule },
        }
    }
}

/// A family of programs for one operation. Each has one file under `lower`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Matmul for few rows: weights are streamed once, decoded in registers and used for every row.
    Stream,
    /// Matmul for many rows: a workgroup decodes its weights once and walks over tiles of rows.
    Tile,
    /// Matmul for few rows on workgroups of many threads: each takes a row of W and some of its columns.
    Spread,
    /// Matmul for many rows on workgroups of many threads: decoded weights lie in shared memory.
    Block,
    /// Matmul by matrix instructions of a subgroup, with weights in QT16.
    Mma,
    /// Matmul of many rows by matrix instructions: rows of X go through stages of shared memory.
    Panel,
    /// Matmul of many rows by pending products of four subgroups: weights become operands in the loop, scales and all.
    Wide,
    /// Matmul of many rows by matrix instructions over weights that a kernel before it has decoded to 16-bit floats.
    Dense,
    /// Matmul of few rows by matrix instructions: weights go through rings of stages in shared memory.
    Ring,
    /// Matmul of many rows by cooperative matrices: weights and rows of X lie in shared memory as `f16`.
    Cooperative,
    /// Element-wise decoding of weights.
    Decode,
    /// Row-wise quantization of activations.
    Rows,
}

impl Family {
    /// Every family.
    pub const ALL: [Family; 12] = [
        Family::Stream,
        Family::Tile,
        Family::Spread,
        Family::Block,
        Family::Mma,
        Family::Panel,
        Family::Wide,
        Family::Dense,
        Family::Ring,
        Family::Cooperative,
        Family::Decode,
        Family::Rows,
    ];

    /// Stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Family::Stream => "stream",
            Family::Tile => "tile",
            Family::Spread => "spread",
            Family::Block => "block",
            Family::Mma => "mma",
            Family::Panel => "panel",
            Family::Wide => "wide",
            Family::Dense => "dense",
            Family::Ring => "ring",
            Family::Cooperative => "cooperative",
            Family::Decode => "decode",
            Family::Rows => "rows",
        }
    }
}
