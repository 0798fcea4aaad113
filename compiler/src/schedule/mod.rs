//! How an operation runs: family, tile, unrolling, packing. Data and serde only; `lower` gives it meaning.

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
}

/// A family of programs for one operation. Each has one file under `lower`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Matmul for few rows: weights are streamed once, decoded in registers and used for every row.
    Stream,
    /// Matmul for many rows: a workgroup decodes its weights once and walks over tiles of rows.
    Tile,
    /// Element-wise decoding of weights.
    Decode,
    /// Row-wise quantization of activations.
    Rows,
}

impl Family {
    /// Every family.
    pub const ALL: [Family; 4] = [Family::Stream, Family::Tile, Family::Decode, Family::Rows];

    /// Stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Family::Stream => "stream",
            Family::Tile => "tile",
            Family::Decode => "decode",
            Family::Rows => "rows",
        }
    }
}
