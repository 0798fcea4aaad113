//! Matmul families. What they share: the flush of a segment's sums into the result, the epilogue, the stores.

mod block;
mod columns;
mod cooperative;
mod cut;
mod dense;
mod epilogue;
mod float;
mod integer;
mod meeting;
mod mma;
mod panel;
mod products;
mod registers;
mod ring;
mod spans;
mod spread;
mod staged;
mod stream;
mod tile;
mod wide;

use super::Preparation;
use super::activation::Rows;
use super::memory::Signature;
use super::team::Team;
use super::unpack::{Integers, Weights};
use super::walk::Walk;
use crate::caps::{Caps, Feature};
use crate::error::{Error, Result};
use crate::format::n16::N16;
use crate::ir::{BinOp, Builder, CmpOp, Scalar, Value};
use crate::op::{Activation, Matmul, Op};
use crate::schedule::{Family, Schedule};
pub(super) use block::{BLOCK, block_rows};
pub(super) use cooperative::COOPERATIVE;
pub(super) use dense::{DENSE, pays as decoding_once_pays};
pub(super) use mma::{MMA, packing};
pub(super) use panel::PANEL_FAMILY;
pub(super) use ring::RING;
pub(super) use spread::SPREAD;
pub(super) use stream::{STREAM, serves_many_rows};
pub(super) use tile::{TILE, few_rows_pay_tiles};
pub(super) use wide::WIDE;

/// A tile of sums under construction: `vectors` vectors of rows of W for each row of X.
pub(super) struct Tile<'a> {
    weights: &'a Weights<'a>,
    rows: &'a Rows,
    vectors: usize,
    /// Whether a product waits several cycles for the one before it: fused multiply-adds and dot instructions do, while
    /// integer products without such an instruction are added up by plain additions.
    waits: bool,
    /// The threads that share each segment, where several do.
    team: Option<&'a Team>,
}

impl Tile<'_> {
    /// Sums in a tile.
    fn sums(&self) -> usize {
        self.rows.count() * self.vectors
    }

    /// The sums of a state that starts with `[chain][row][vector]`, chains added up.
    fn folded(&self, b: &mut Builder, state: &[Value]) -> Vec<Value> {
        let (first, others) = state[..self.chains() * self.sums()].split_at(self.sums());
        let mut sums = first.to_vec();
        for chain in others.chunks(self.sums()) {
            for (sum, &part) in sums.iter_mut().zip(chain) {
                *sum = b.add(*sum, part);
            }
        }
        sums
    }

    /// Partial sums per sum, added up at the end of a segment. A multiply-add takes about four cycles and two start per
    /// cycle, so eight must be under way: small tiles take two partial sums each.
    fn chains(&self) -> usize {
        if self.sums() <= 4 && self.waits { 2 } else { 1 }
    }
}

/// What of a matmul does not change while its kernel is built.
struct Plan {
    op: Matmul,
    layout: N16,
    walk: Walk,
    /// How codes enter an integer dot product, where both sides are integers.
    integers: Option<Integers>,
    /// Rows of W per vector.
    lanes: u8,
    /// Vectors per tile.
    vectors: usize,
    /// See [`Tile::waits`].
    waits: bool,
}

impl Plan {
    /// For a workgroup of one thread.
    fn new(op: &Matmul, schedule: &Schedule, caps: &Caps) -> Result<Plan> {
        let lanes = (caps.vector_bytes / 4).min(16) as u8;
        let faults = schedule_faults(schedule, lanes as usize);
        if !faults.is_empty() {
            return Err(Error::Invalid(faults));
        }
        Plan::with_lanes(op, schedule, caps, lanes, schedule.tile_n as usize / lanes as usize)
    }

    /// For threads that each hold so many vectors of so many rows of W.
    fn with_lanes(op: &Matmul, schedule: &Schedule, caps: &Caps, lanes: u8, vectors: usize) -> Result<Plan> {
        let layout = N16::of(&op.weight, op.k)?;
        let integers = integers_of(op, &layout, caps);
        let walk = Walk::new(&layout, op.segment(), schedule.unroll as usize)?;
        if integers.is_some() && walk.segment > 1 << 16 {
            return Err(Error::Unsupported(format!(
                "integer sums over {} columns in 32 bits; groups of at most 65536 columns are",
                walk.segment
            )));
        }
        let waits = integers.is_none() || has_dot(caps);
        Ok(Plan { op: *op, layout, walk, integers, lanes, vectors, waits })
    }
}

/// How codes enter an integer dot product, where both sides are integers.
fn integers_of(op: &Matmul, layout: &N16, caps: &Caps) -> Option<Integers> {
    match op.activation {
        Activation::Int8(_) => Integers::of(layout, caps),
        _ => None,
    }
}

/// Whether a device multiplies and adds four bytes in one instruction.
fn has_dot(caps: &Caps) -> bool {
    caps.features.has(Feature::Dot4UnsignedSigned) || caps.features.has(Feature::Dot4SignedSigned)
}

/// A tile of `tile_n` rows of W must be whole vectors, and lie in one block of 16 rows or be whole blocks.
fn schedule_faults(schedule: &Schedule, lanes: usize) -> Vec<String> {
    let mut faults = Vec::new();
    let n = schedule.tile_n as usize;
    if n == 0 || !n.is_multiple_of(lanes) || !(n.is_multiple_of(16) || 16usize.is_multiple_of(n)) || n > 256 {
        faults.push(format!(
            "tile_n is {n}; accepted: a multiple of {lanes} that divides 16, or a multiple of 16 up to 256"
        ));
    }
    if !(1..=16).contains(&schedule.tile_m) {
        faults.push(format!("tile_m is {}; accepted: 1 to 16", schedule.tile_m));
    }
    if !(1..=64).contains(&schedule.unroll) {
        faults.push(format!("unroll is {}; accepted: 1 to 64", schedule.unroll));
    }
    faults
}

/// What a schedule's kernels need beside the operation's buffers.
pub(super) fn workspace(op: &Matmul, schedule: &Schedule) -> Option<Signature> {
    match schedule.family {
        Family::Dense => Some(dense::decoded(op)),
        Family::Wide => wide::workspace(op, schedule),
        _ => ring::workspace(schedule),
    }
}

/// What a schedule has run before its own kernel.
pub(super) fn preparation(op: &Matmul, schedule: &Schedule, caps: &Caps) -> Result<Option<Preparation>> {
    match schedule.family {
        Family::Dense => dense::preparation(op, caps).map(Some),
        _ => Ok(None),
    }
}

fn as_matmul(op: &Op) -> Result<&Matmul> {
    match op {
        Op::Matmul(op) => Ok(op),
        other => Err(Error::Unsupported(format!("{} in a matmul family", other.name()))),
    }
}

fn refuses(op: &Op, caps: &Caps) -> Option<String> {
    if caps.features.has(Feature::Workgroups) {
        return Some("is written for devices whose workgroup is one thread".into());
    }
    refuses_packing(op)
}

/// Why a family for workgroups of many threads cannot serve.
fn refuses_threads(op: &Op, caps: &Caps) -> Option<String> {
    if !caps.features.has(Feature::Workgroups) {
        return Some("is written for devices with workgroups of many threads".into());
    }
    refuses_packing(op)
}

/// What is wrong with the threads and the unroll of a schedule whose workgroups make tiles of columns by way of shared memory.
fn tile_faults(schedule: &Schedule, caps: &Caps) -> Vec<String> {
    let mut faults = Vec::new();
    let Schedule { tile_n, unroll, threads, .. } = *schedule;
    if !threads.is_power_of_two() || threads < tile_n || threads > caps.max_workgroup {
        faults.push(format!(
            "threads is {threads}; accepted: powers of two from tile_n ({tile_n}) to {}",
            caps.max_workgroup
        ));
    }
    if !(1..=4).contains(&unroll) {
        faults.push(format!("unroll is {unroll}; accepted: 1 to 4"));
    }
    faults
}

fn refuses_packing(op: &Op) -> Option<String> {
    let Op::Matmul(op) = op else { return Some("computes matmuls only".into()) };
    let layout = match N16::of(&op.weight, op.k) {
        Ok(layout) => layout,
        Err(error) => return Some(error.to_string()),
    };
    Walk::new(&layout, op.segment(), 1).err().map(|error| error.to_string())
}

/// Entry name of a kernel: it says what it computes, so that a profile or a symbol table can be read.
fn entry(op: &Matmul, schedule: &Schedule) -> String {
    let clean = |text: String| text.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    let mut name = format!(
        "matmul_n{}_k{}_{}_{}_{}_{}_m{}n{}u{}",
        op.n,
        op.k,
        clean(op.weight.to_string()),
        clean(op.activation.to_string()),
        op.out.name(),
        schedule.family.name(),
        schedule.tile_m,
        schedule.tile_n,
        schedule.unroll
    );
    if schedule.threads > 1 {
        name.push_str(&format!("t{}s{}", schedule.threads, schedule.split));
    }
    if schedule.strips > 1 {
        name.push_str(&format!("x{}", schedule.strips));
    }
    if schedule.workgroups > 1 {
        name.push_str(&format!("w{}", schedule.workgroups));
    }
    for (on, text) in
        [(op.epilogue.bias, "_bias"), (op.epilogue.silu_mul, "_silu_mul"), (op.epilogue.residual, "_residual")]
    {
        if on {
            name.push_str(text);
        }
    }
    name
}

/// The stage after the one that starts at this byte (`i32`), of `count` stages of so many bytes each, the first behind the last.
fn after(b: &mut Builder, stage: Value, bytes: usize, count: usize) -> Value {
    let end = b.int(Scalar::I32, (count * bytes) as i64);
    let zero = b.int(Scalar::I32, 0);
    let next = b.bin_imm(BinOp::Add, stage, bytes as i64);
    let past = b.cmp(CmpOp::Eq, next, end);
    b.select(past, zero, next)
}
