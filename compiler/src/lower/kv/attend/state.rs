//! What a workgroup keeps between the tiles of its work item, and between the steps of a tile.
//!
//! State of a head lies side by side, so that one number says where that of the next head is: a workgroup that takes all heads
//! reads a page from its first byte to its last, tile by tile, with one such state for each head. What lives for one tile of
//! one head is there once.

use super::factors::{Factors, Packing};
use super::values::{has_offsets, scales_weights};
use super::{Kernel, int};
use crate::format::kv::{KvPer, Side};
use crate::ir::{Address, BinOp, Builder, Builtin, CastOp, CmpOp, Memory, Scalar, Type, Value};
use crate::lower::memory::{at, times};
use crate::op::kv::Attend;

/// The row of [`Arrays::stat`] that lives for a tile.
pub(super) const SHARE: usize = 4;

/// An array of 32-bit numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    memory: Memory,
    /// First byte.
    offset: usize,
    /// Whether each head of the workgroup has one.
    own: bool,
}

impl Slot {
    /// All of a memory.
    pub fn of(memory: Memory) -> Slot {
        Slot { memory, offset: 0, own: false }
    }
}

/// Arrays in shared memory.
#[derive(Clone)]
pub(super) struct Arrays {
    /// Queries `[row, k_dim]`, scaled.
    pub q: Slot,
    /// Queries times the scales of a page's channels, where channels have scales.
    pub q_page: Option<Slot>,
    /// Sums of queries `[group, padded]`; where queries are multiples of a step, what the bias of codes takes off the sums of
    /// integers; where keys have offsets per channel, the product with those.
    pub q_sum: Option<Slot>,
    /// Scores, then weights `[row, tile]`.
    pub s: Slot,
    /// Weights times scales of values, where tokens have some `[row, tile]`.
    pub p: Option<Slot>,
    /// Queries in a few bits, and weights.
    pub q_factors: Option<Factors>,
    pub p_factors: Option<Factors>,
    /// Steps of queries `[group, padded]`, where they have some.
    pub q_steps: Option<Slot>,
    /// Steps of weights `[padded]`.
    pub p_steps: Option<Slot>,
    /// Outputs `[row, v_dim]`.
    pub o: Slot,
    /// Largest score, correction, sum, sum of weighted offsets, and what a tile's largest weight is beside the largest so far
    /// ([`SHARE`]) `[5, padded]`.
    pub stat: Slot,
}

impl Arrays {
    /// The arrays of a kernel, bytes from the state of one head to that of the next, and bytes in all.
    pub fn new(
        b: &mut Builder,
        op: &Attend,
        rows: (usize, usize),
        tile: usize,
        heads: usize,
    ) -> (Arrays, usize, usize) {
        let bytes = |count: usize| (count * 4).next_multiple_of(64);
        if heads == 1 {
            let mut total = 0;
            let arrays = Arrays::lay(op, rows, tile, &mut |name, count, _| {
                total += bytes(count);
                Slot::of(b.shared(name, bytes(count) as u32, 64))
            });
            return (arrays, 0, total);
        }
        // Once to know how large a head's state is, once to lay it out.
        let shared = |b: &mut Builder, memory: Option<Memory>| {
            let (mut stride, mut total) = (0, 0);
            let arrays = Arrays::lay(op, rows, tile, &mut |name, count, own| match memory {
                _ if own => {
                    stride += bytes(count);
                    let memory = memory.unwrap_or(Memory::Shared(0));
                    Slot { memory, offset: stride - bytes(count), own }
                }
                Some(_) => {
                    total += bytes(count);
                    Slot::of(b.shared(name, bytes(count) as u32, 64))
                }
                None => Slot::of(Memory::Shared(0)),
            });
            (arrays, stride, total)
        };
        let size = shared(b, None).1 * heads;
        let memory = b.shared("heads", size as u32, 64);
        let (arrays, stride, total) = shared(b, Some(memory));
        (arrays, stride, total + size)
    }

    fn lay(
        op: &Attend,
        (rows, padded): (usize, usize),
        tile: usize,
        shared: &mut dyn FnMut(&'static str, usize, bool) -> Slot,
    ) -> Arrays {
        let (k_dim, v_dim) = (op.layout.k.head_dim, op.layout.v.head_dim);
        let channel = op.layout.k.codes.per == KvPer::Channel;
        let (keys, values) = (Packing::of(op, Side::K, k_dim), Packing::of(op, Side::V, tile));
        let groups = op.layout.k.codes.groups(k_dim);
        let has_steps = |packing: Option<Packing>| packing.is_some_and(|packing| packing.steps().is_some());
        Arrays {
            q: shared("queries", rows * k_dim, true),
            q_page: channel.then(|| shared("page_queries", rows * k_dim, false)),
            q_sum: has_offsets(&op.layout.k.codes).then(|| shared("query_sums", padded * groups, true)),
            s: shared("scores", rows * tile, false),
            p: ((scales_weights(&op.layout.v.codes) || op.steps(Side::V).is_some()) && !op.takes_bf16(Side::V))
                .then(|| shared("weights", rows * tile, false)),
            q_factors: keys
                .map(|packing| Factors { packing, memory: shared("query_factors", packing.words(rows), true) }),
            p_factors: values
                .map(|packing| Factors { packing, memory: shared("weight_factors", packing.words(rows), false) }),
            q_steps: has_steps(keys).then(|| shared("query_steps", padded * groups, true)),
            p_steps: has_steps(values).then(|| shared("weight_steps", padded, false)),
            o: shared("outputs", rows * v_dim, true),
            stat: shared("state", padded * (SHARE + 1), true),
        }
    }
}

/// The KV heads of a workgroup.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    /// First one and end, `i64`.
    pub first: Value,
    pub end: Value,
    /// Bytes from the state of one to that of the next.
    stride: usize,
    /// First byte of the state of the head that code is made for.
    base: Option<Value>,
}

impl Heads {
    /// All heads where an item has one workgroup, else the one that the workgroup's number is.
    pub fn new(b: &mut Builder, own: Value, heads: usize, stride: usize) -> Heads {
        let count = b.builtin(Builtin::WorkgroupCount(1));
        let count = b.cast(CastOp::ExtendS, count, Scalar::I64);
        let one = int(b, 1);
        let single = b.cmp(CmpOp::Eq, count, one);
        let all = int(b, heads);
        let next = b.bin_imm(BinOp::Add, own, 1);
        Heads { first: own, end: b.select(single, all, next), stride, base: None }
    }
}

/// KV heads of a workgroup on a processor with vectors of 64 bytes: all of them where reading codes takes longer than
/// multiplying them, tiles are whole pages, and what is kept for the heads leaves a cache of the second level to the codes.
pub(super) fn heads_of(op: &Attend, tile: u32) -> u32 {
    let layout = &op.layout;
    let state = layout.heads * op.rows() * (layout.k.head_dim + layout.v.head_dim) * 4;
    let all = op.rows() <= 4 && (tile as usize).is_multiple_of(layout.page) && state <= 128 << 10;
    if all { layout.heads as u32 } else { 1 }
}

impl Kernel<'_> {
    /// Makes code for each head of the workgroup.
    pub(super) fn each_head(&self, b: &mut Builder, body: &dyn Fn(&Self, &mut Builder)) {
        let Some(heads) = self.heads else { return body(self, b) };
        b.for_loop(heads.first, heads.end, 1, &[], |b, head, _| {
            let before = b.bin(BinOp::Sub, head, heads.first);
            let base = times(b, before, heads.stride);
            let own = Kernel { head, heads: Some(Heads { base: Some(base), ..heads }), ..self.clone() };
            body(&own, b);
            Vec::new()
        });
    }

    /// Where number `index + offset` of an array is.
    pub(super) fn place(&self, b: &mut Builder, slot: Slot, index: Value, offset: usize) -> Address {
        let mut place = times(b, index, 4);
        if let Some(base) = self.heads.and_then(|heads| heads.base).filter(|_| slot.own) {
            place = b.add(base, place);
        }
        at(slot.memory, Some(place), slot.offset + offset * 4)
    }

    /// The number at `index` of an array of `f32`.
    pub(super) fn read(&self, b: &mut Builder, slot: Slot, index: Value, offset: usize, lanes: u8) -> Value {
        let place = self.place(b, slot, index, offset);
        b.load(Type::vector(Scalar::F32, lanes), place, aligned(slot.memory, lanes))
    }

    pub(super) fn write(&self, b: &mut Builder, slot: Slot, index: Value, offset: usize, value: Value) {
        let place = self.place(b, slot, index, offset);
        let align = aligned(slot.memory, b.ty(value).lanes);
        b.store(place, align, value);
    }
}

/// Vectors start at multiples of their size, as far as the memory does.
fn aligned(memory: Memory, lanes: u8) -> u32 {
    match memory {
        Memory::Shared(_) => 4 * lanes as u32,
        Memory::Param(_) => (4 * lanes as u32).min(16),
    }
}
