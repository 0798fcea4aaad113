//! Family `dense`: many rows by two kernels. The first decodes all weights once, the second multiplies what it has left.
//!
//! ```text
//! decoded  [tile of 16 rows of W][step of 16 columns][lane][16 bytes]     operand A as the matrix instruction takes it
//! ```
//!
//! The first kernel ([`preparation`]) reads packed weights, takes each `scale · (code - zero)` in `f32` and rounds it once to
//! the type of X. The second is that of family `panel` with nothing to decode and nothing to scale: each lane reads its
//! fragments as they are, and sums run over all of K. Decoding costs the traffic of the weights in 16 bits once per launch
//! instead of work in every tile of rows of X, and those tiles read more; [`pays`] counts both.
//!
//! Always holds: the first kernel writes every byte of the decoded weights, also those of rows past N, so that what they
//! held before does not matter. A weight past the range of f16 becomes infinite and shows in Y as that.

pub(super) mod decode;

use super::cut::cut;
use super::{as_matmul, panel};
use crate::caps::{Caps, Feature};
use crate::dtype::DType;
use crate::error::Result;
use crate::format::qt16::PANEL;
use crate::ir::{Address, Builder, Kernel, Memory, Scalar, Type, Value};
use crate::lower::memory::{Role, Signature, at, byte_index};
use crate::lower::space::Axis;
use crate::lower::walk::Pos;
use crate::lower::{Implementation, Preparation};
use crate::op::{Activation, Matmul, Op};
use crate::schedule::{Family, Knob, Schedule};

pub(in crate::lower) const DENSE: Implementation = Implementation {
    family: Family::Dense,
    summary: "matmul of many rows by matrix instructions, weights decoded once by a kernel before it",
    refuses,
    axes: &[
        Axis::new(Knob::TileM, &[16, 32, 64, 128]),
        Axis::new(Knob::TileN, &[64, 128, 256]),
        Axis::new(Knob::Unroll, &[2, 3, 4]),
        Axis::new(Knob::Threads, &[64, 128, 256, 512]),
    ],
    estimate: None,
    space,
    build,
};

/// Columns of a step of the instruction: [`Matmul::k`] is a multiple.
pub(super) const STEP: usize = 16;
/// Bytes of a tile of 16 rows in such a step.
const TILE: usize = 512;
/// Fewer rows of X than this are not worth another pass over the weights, whatever the device.
const LEAST_ROWS: usize = 64;

fn refuses(op: &Op, caps: &Caps) -> Option<String> {
    if let Some(why) = panel::refuses(op, caps) {
        return Some(why);
    }
    let matmul = as_matmul(op).ok()?;
    let Activation::Float(_) = matmul.activation else {
        return Some(format!(
            "decodes weights to f16 or bf16, for activations of that type, not {}",
            matmul.activation
        ));
    };
    let bytes = decoded(matmul).bytes(0) as u64;
    (bytes > caps.max_buffer_bytes).then(|| {
        format!("needs {bytes} bytes for decoded weights; a buffer of {} has {}", caps.name, caps.max_buffer_bytes)
    })
}

/// Columns of a block of the product.
pub(super) fn block(op: &Matmul) -> usize {
    [4 * STEP, 2 * STEP].into_iter().find(|block| op.k.is_multiple_of(*block)).unwrap_or(STEP)
}

fn space(op: &Op, caps: &Caps, m: usize) -> Vec<Schedule> {
    match as_matmul(op) {
        Ok(matmul) if m >= LEAST_ROWS => panel::tiles(op, caps, m, (Family::Dense, 2 * block(matmul))),
        _ => Vec::new(),
    }
}

fn build(op: &Op, schedule: &Schedule, caps: &Caps) -> Result<Kernel> {
    panel::make(op, schedule, caps)
}

/// Bytes that a unit's lanes get from the cache before memory, per `f32` operation they could do: 32 bytes per cycle for 128
/// lanes, half of what one unit alone may get (64 bytes), since all of them ask at once.
const CACHE: f64 = 32.0 / 256.0;

/// Whether decoding once is worth its traffic for `m` rows, by counting, per weight and row of X.
///
/// A product takes as long as its matrix instructions or the cache, whichever is slower; a tile reads a weight once for all of
/// its rows of X, in 16 bits where it lies decoded. `panel` decodes besides, in about an instruction per pair and plane
/// and one to place it, and scales each sum once per group, in two; half of that is taken to hide behind the matrix units.
/// (None of these figures has been measured on a GPU; the tuner tries both.)
pub(in crate::lower) fn pays(op: &Op, caps: &Caps, m: usize) -> bool {
    // Every choice asks: few rows, which are most of them, get the answer at once.
    if m < LEAST_ROWS || refuses(op, caps).is_some() {
        return false;
    }
    let (Ok(matmul), Some(gpu)) = (as_matmul(op), caps.gpu) else { return false };
    let Ok((cut, _, shape, layout)) = cut(op, caps, panel::block, panel::LONGEST) else { return false };
    let Some(matrix) = gpu.peaks.matrix(shape.a) else { return false };
    let bytes: f64 = layout.planes.iter().map(|&(width, _)| f64::from(width) / 8.0).sum();
    let lanes = gpu.peaks.f32_tera * 1e12;
    let product = |weight: f64, (rows_of_x, rows_of_w): (f64, f64)| {
        let read = (weight / rows_of_x + 2.0 / rows_of_w) / (lanes * CACHE);
        read.max(2.0 / (matrix * 1e12))
    };
    // The largest tiles whose sums fit into registers: rows of X, of W here.
    let (rows_of_x, rows_of_w) = if caps.features.has(Feature::WarpgroupMma) { (128.0, 128.0) } else { (64.0, 256.0) };
    let decoding = (1 + layout.planes.len()) as f64 / 2.0 / rows_of_x;
    let scaling = if cut.segment < matmul.k { 2.0 / cut.segment as f64 } else { 0.0 };
    // A lane does two operations per instruction at its peak.
    let work = 0.5 * (decoding + scaling) / (lanes / 2.0);
    let saved = product(bytes, (rows_of_x, 128.0)) + work - product(2.0, (rows_of_x, rows_of_w));
    m as f64 * saved > (bytes + 2.0) / (gpu.peaks.memory_gb * 1e9)
}

/// Where decoded weights lie.
pub(super) fn decoded(op: &Matmul) -> Signature {
    let dtype = if let Activation::Float(dtype) = op.activation { dtype } else { DType::F16 };
    let fixed = op.n.next_multiple_of(PANEL) * op.k;
    Signature { role: Role::Decoded, name: "decoded", dtype, fixed, per_row: 0, written: false }
}

/// The kernel that decodes.
pub(in crate::lower) fn preparation(op: &Matmul, caps: &Caps) -> Result<Preparation> {
    decode::build(op, caps)
}

/// Weights that lie ready, as a lane of the product sees them.
#[derive(Clone, Copy)]
pub(super) struct Ready {
    memory: Memory,
    /// Byte of this lane in the first step of its subgroup's first tile, `i64`.
    place: Value,
    /// Steps of a row.
    steps: usize,
}

impl Ready {
    /// For the lane, from row `row` of W (`i64`, a multiple of 16) on.
    pub fn new(b: &mut Builder, op: &Matmul, memory: Memory, row: Value, lane: Value) -> Ready {
        let steps = op.k / STEP;
        let tile = byte_index(b, row, steps * TILE / 16);
        let own = byte_index(b, lane, 16);
        Ready { memory, place: b.add(tile, own), steps }
    }

    /// The address of a tile's step.
    fn at(&self, b: &mut Builder, step: Pos, tile: usize) -> Address {
        let place = step.times(b, TILE).add(b, Pos::of(self.place).plus(tile * self.steps * TILE));
        at(self.memory, place.index, place.fixed)
    }

    /// This lane's 16 bytes of each step of a block for so many tiles, `[tile][step]`.
    pub fn words(&self, b: &mut Builder, block: Pos, steps: usize, tiles: usize) -> Vec<Value> {
        let first = block.times(b, steps);
        let mut words = Vec::new();
        for tile in 0..tiles {
            for step in 0..steps {
                let from = self.at(b, first.plus(step), tile);
                words.push(b.load(Type::vector(Scalar::I32, 4), from, 16));
            }
        }
        words
    }

    /// Stores this lane's 16 bytes of a step.
    pub fn store(&self, b: &mut Builder, step: Pos, words: Value) {
        let to = self.at(b, step, 0);
        b.store(to, 16, words);
    }
}
