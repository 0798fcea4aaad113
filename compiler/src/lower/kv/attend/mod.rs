//! Family of `attend`: a workgroup takes one work item and one KV head, all its query rows, tile by tile of tokens.
//!
//! ```text
//! scores    lane = token     s[row, t] = Σ_c q[row, c] · k[t, c], scale, cap, bias, mask      → shared
//! largest   thread = row     m' = max(m, s), correction 2^(m - m')
//! weights   lane = token     p = 2^(s - m'), and p · scale of v[t]                            → shared
//! sums      thread = row     l = l · correction + Σ p
//! values    lane = channel   o[row, c] = o · correction + Σ_t p · v[t, c]                     → shared
//! ```
//!
//! Query rows that share a KV head share every load and every unpacking of keys and values, as many as registers hold. A
//! scale of a whole token is applied to its score and to its weight, not to its channels; the bias of nibbles and offsets
//! are added as sums of queries and of weights. Where the operation says so, queries and the weights of a tile are multiples
//! of a step of their row, or bf16 numbers. Threads meet at a barrier between the steps; on a CPU there is one thread,
//! and lanes are those of its vectors. Tokens before an item's range or unseen weigh nothing, whatever lies there.

mod factors;
mod folded;
pub(super) mod matrix;
mod pace;
mod place;
mod queries;
mod rounded;
mod scores;
mod softmax;
mod state;
mod values;
mod weights;

use self::place::Tile;
use self::softmax::ROWS;
use self::state::{Arrays, Heads, Slot};
use super::super::memory::{split, times};
use super::codes::{Decoder, Scales};
use super::{Params, field, floats, int, least, local, plus};
use crate::caps::{Caps, Feature};
use crate::error::{Error, Result};
use crate::format::kv::{KvCode, KvPer, Side};
use crate::ir::{BinOp, Builder, Builtin, CastOp, Scalar, Value};
use crate::op::kv::{Arithmetic, Attend, ITEM};
use crate::schedule::KvSchedule;

/// Scores start from here: below every score, and finite, so that differences are numbers.
const LOWEST: f32 = -1e30;

pub fn choose(op: &Attend, caps: &Caps) -> KvSchedule {
    if !caps.features.has(Feature::Workgroups) {
        // Sums of all rows and vectors, two vectors of codes and one number stay in registers; those of pairs of bf16 numbers are
        // twice as many.
        let pairs = [Side::K, Side::V].into_iter().any(|side| op.takes_bf16(side));
        let most = if caps.vector_bytes >= 64 && !pairs { 8 } else { 4 };
        let rows = op.rows().min(most) as u32;
        let tile = tile_of(op, caps);
        let heads = if caps.vector_bytes >= 64 { state::heads_of(op, tile) } else { 1 };
        return KvSchedule { threads: 1, tile, rows, vectors: 2, heads };
    }
    let dim = op.layout.v.head_dim.max(op.layout.k.head_dim);
    let threads = if dim > 64 { 128 } else { 64 }.min(caps.max_workgroup);
    // Rows in shared memory: queries and sums of 256 channels take 2 KiB a row.
    KvSchedule { threads, tile: threads.max(64), rows: op.rows().min(8) as u32, vectors: 1, heads: 1 }
}

/// Tokens of a tile on a processor. That of few rows is a whole page as a rule: of parts of one, INT4 and FP8 read 57 and
/// 74 % as fast as memory alone on Zen 5, of the whole 88 and 90; of four pages of 16, f16 and `int4-token` 77 and 73 %, of
/// one 98 and 82.
fn tile_of(op: &Attend, caps: &Caps) -> u32 {
    let (page, values) = (op.layout.page as u32, op.layout.v.codes);
    // What happens once a tile is most there.
    let groups = values.code == KvCode::Int4 && matches!(values.per, KvPer::Group(_)) && page == 16;
    match caps.vector_bytes {
        _ if op.rows() > 4 => 64,
        64.. if !groups => page,
        _ => page.max(64),
    }
}

/// Why a device does not sum up products of bf16 numbers in an operation; `None` if it does.
pub fn refuses_bf16(op: &Attend, caps: &Caps) -> Option<String> {
    if !op.has_bf16() {
        return Some(format!("takes FP8, not {}", op.layout.format));
    }
    let missing = [Feature::Dot2Bf16, Feature::PermuteLong].into_iter().find(|&feature| !caps.features.has(feature));
    match missing {
        Some(feature) => Some(format!("needs {feature}, which {} lacks", caps.name)),
        None => (caps.vector_bytes < 64).then(|| format!("needs vectors of 64 bytes, not {}", caps.vector_bytes)),
    }
}

pub fn build(b: &mut Builder, op: &Attend, params: &Params, schedule: &KvSchedule, caps: &Caps) -> Result<()> {
    let many = caps.features.has(Feature::Workgroups);
    if op.arithmetic == Arithmetic::Bf16
        && let Some(why) = refuses_bf16(op, caps)
    {
        return Err(Error::Unsupported(format!("attend by products of bf16 in pairs {why}")));
    }
    let lanes = if many { 1 } else { (caps.vector_bytes / 4).min(16) as u8 };
    let fits = [16, 32, 64, 128, 256].contains(&schedule.tile)
        && (1..=16).contains(&schedule.rows)
        && [1, 2, 4].contains(&schedule.vectors)
        && lanes as usize * schedule.vectors as usize <= 64
        && (many || schedule.threads == 1)
        && (schedule.heads == 1 || !many && lanes >= 4 && schedule.heads as usize == op.layout.heads);
    if !fits {
        return Err(Error::invalid(format!(
            "attend: tile {}, rows {}, vectors {}, heads {}; accepted: tile 16 to 256, rows 1 to 16, vectors 1, 2 or 4, heads 1 \
             or, for one thread, all",
            schedule.tile, schedule.rows, schedule.vectors, schedule.heads
        )));
    }
    let tile = match op.layout.k.codes.per {
        KvPer::Channel => (schedule.tile as usize).min(op.layout.page),
        _ => schedule.tile as usize,
    };
    let kernel = Kernel::new(b, op, params, schedule, caps, (lanes, tile));
    if kernel.shared_bytes > caps.max_shared_bytes as usize {
        return Err(Error::Unsupported(format!(
            "attend: {} query rows of {} channels need {} bytes of shared memory; {} has {}: take fewer query tokens per item",
            op.rows(),
            op.layout.k.head_dim,
            kernel.shared_bytes,
            caps.name,
            caps.max_shared_bytes
        )));
    }
    kernel.emit(b);
    Ok(())
}

#[derive(Clone)]
struct Kernel<'a> {
    op: &'a Attend,
    params: &'a Params,
    schedule: &'a KvSchedule,
    /// Numbers of a vector.
    lanes: u8,
    tile: usize,
    rows: usize,
    /// As many places as the state of rows has: a vector of several rows lies within.
    padded: usize,
    keys: Decoder,
    values: Decoder,
    arrays: Arrays,
    shared_bytes: usize,
    /// This thread in the workgroup.
    thread: Value,
    /// The KV head that code is made for.
    head: Value,
    /// All those of the workgroup, where there may be several.
    heads: Option<Heads>,
    item: Vec<Value>,
    /// Whether codes are asked for while others are read.
    ahead: bool,
}

impl<'a> Kernel<'a> {
    fn new(
        b: &mut Builder,
        op: &'a Attend,
        params: &'a Params,
        schedule: &'a KvSchedule,
        caps: &Caps,
        (lanes, tile): (u8, usize),
    ) -> Kernel<'a> {
        let [keys, values] = [Side::K, Side::V].map(|side| {
            let decoder = Decoder::new(op.layout.part(side).codes, caps);
            if op.takes_bf16(side) { decoder.in_pairs() } else { decoder }
        });
        let rows = op.rows();
        let padded = rows.next_multiple_of(ROWS);
        let (arrays, stride, shared_bytes) = Arrays::new(b, op, (rows, padded), tile, schedule.heads as usize);
        let thread = local(b, schedule.threads);
        let record = b.builtin(Builtin::WorkgroupId(0));
        let record = b.cast(CastOp::ExtendS, record, Scalar::I64);
        let head = b.builtin(Builtin::WorkgroupId(1));
        let head = b.cast(CastOp::ExtendS, head, Scalar::I64);
        let heads = (schedule.heads > 1).then(|| Heads::new(b, head, op.layout.heads, stride));
        let items = params.get("items");
        let item = (0..7).map(|i| field(b, items, record, ITEM, i)).collect();
        Kernel {
            op,
            params,
            schedule,
            lanes,
            tile,
            rows,
            padded,
            keys,
            values,
            arrays,
            shared_bytes,
            thread,
            head,
            heads,
            item,
            // A GPU has other threads to wait for memory.
            ahead: !caps.features.has(Feature::Workgroups),
        }
    }

    /// Does something for each `step` of `0..end` (`i64`, a multiple of `step`): threads take turns.
    fn each(&self, b: &mut Builder, end: Value, step: usize, body: &mut dyn FnMut(&mut Builder, Value)) {
        let start = times(b, self.thread, step);
        b.for_loop(start, end, (step as u32 * self.schedule.threads) as i64, &[], |b, i, _| {
            body(b, i);
            Vec::new()
        });
    }

    fn meet(&self, b: &mut Builder) {
        if self.schedule.threads > 1 {
            b.barrier();
        }
    }

    fn rows_value(&self, b: &mut Builder) -> Value {
        int(b, self.rows)
    }

    fn emit(&self, b: &mut Builder) {
        self.each_head(b, &|own, b| own.prepare(b));
        self.meet(b);
        let (first, end) = (self.item[3], self.item[4]);
        b.for_loop(first, end, self.tile as i64, &[], |b, start, _| {
            let left = b.bin(BinOp::Sub, end, start);
            let whole = int(b, self.tile);
            let count = least(b, left, whole);
            // As many scores at a time as share a query's number.
            let step = STEP.max(self.lanes as usize * self.vectors(Side::K));
            let blocks = plus(b, count, step - 1);
            let blocks = b.bin_imm(BinOp::And, blocks, -(step as i64));
            self.each_head(b, &|own, b| own.turn(b, start, (count, blocks)));
            Vec::new()
        });
        self.each_head(b, &|own, b| own.finish(b));
    }

    /// `count` tokens from `start` on, in whole `blocks`.
    fn turn(&self, b: &mut Builder, start: Value, (count, blocks): (Value, Value)) {
        let tile = self.tile_at(b, start, (count, blocks));
        if self.folds_keys() {
            self.page_queries(b, tile);
            self.meet(b);
        }
        self.scores(b, tile);
        self.meet(b);
        if self.alone() {
            self.softmax(b, tile);
        } else {
            self.largest(b, tile);
            self.meet(b);
            self.weights(b, tile);
            self.meet(b);
            self.sums(b, tile);
            self.meet(b);
        }
        self.outputs(b, tile);
        self.meet(b);
    }

    /// Queries into shared memory, and the state before the first token.
    fn prepare(&self, b: &mut Builder) {
        let (k_dim, v_dim) = (self.op.layout.k.head_dim, self.op.layout.v.head_dim);
        let group = self.op.group();
        let factor = match self.op.softcap {
            Some(_) => self.op.scale,
            None => self.op.scale * std::f32::consts::LOG2_E,
        };
        // Heads have whole vectors of channels.
        let lanes = self.lanes;
        let end = int(b, self.rows * k_dim);
        self.each(b, end, lanes as usize, &mut |b, i| {
            let (row, c) = split(b, i, k_dim);
            let (query, member) = split(b, row, group);
            // Rows past the item's queries repeat the last one.
            let last = b.bin_imm(BinOp::Add, self.item[1], -1);
            let query = least(b, query, last);
            let query = b.add(self.item[0], query);
            let line = times(b, query, self.op.heads);
            let head = times(b, self.head, group);
            let line = b.add(line, head);
            let line = b.add(line, member);
            let place = times(b, line, k_dim);
            let place = b.add(place, c);
            let x = floats(b, self.params.get("q"), self.op.input, place, lanes);
            let factor = b.f32(lanes, factor);
            let x = b.mul(x, factor);
            self.write(b, self.arrays.q, i, 0, x);
        });
        let zero = b.f32(1, 0.0);
        let zeros = b.f32(lanes, 0.0);
        let end = int(b, self.rows * v_dim);
        self.each(b, end, lanes as usize, &mut |b, i| self.write(b, self.arrays.o, i, 0, zeros));
        let end = int(b, self.padded);
        self.each(b, end, 1, &mut |b, row| {
            let lowest = b.f32(1, LOWEST);
            for (i, value) in [lowest, zero, zero, zero].into_iter().enumerate() {
                self.write(b, self.arrays.stat, row, i * self.padded, value);
            }
        });
        let pre = self.keys.factors().0;
        if pre != 1.0 {
            self.meet(b);
            let end = int(b, self.rows * k_dim);
            self.each(b, end, lanes as usize, &mut |b, i| {
                let x = self.read(b, self.arrays.q, i, 0, lanes);
                let x = self.times_constant(b, x, pre);
                self.write(b, self.arrays.q, i, 0, x);
            });
        }
        if !self.folds_keys() {
            self.query_factors(b, self.arrays.q);
        }
    }

    fn scales(&self, side: Side) -> Scales {
        Scales { side, pool: self.params.get("pool"), statics: self.params.find("scales") }
    }

    /// Outputs, largest scores and sums into the item's slot.
    fn finish(&self, b: &mut Builder) {
        let v_dim = self.op.layout.v.head_dim;
        let slot = times(b, self.item[6], self.op.layout.heads);
        let slot = b.add(slot, self.head);
        let first = times(b, slot, self.rows * v_dim);
        let post = self.values.factors().1;
        let wide = self.wide();
        let end = int(b, self.rows * v_dim);
        self.each(b, end, wide as usize, &mut |b, i| {
            let o = self.read(b, self.arrays.o, i, 0, wide);
            let o = self.times_constant(b, o, post);
            let index = b.add(first, i);
            self.write(b, Slot::of(self.params.get("o")), index, 0, o);
        });
        let first = times(b, slot, self.rows * 2);
        let end = self.rows_value(b);
        self.each(b, end, 1, &mut |b, row| {
            let out = times(b, row, 2);
            let out = b.add(first, out);
            for (i, from) in [0, 2].into_iter().enumerate() {
                let value = self.read(b, self.arrays.stat, row, from * self.padded, 1);
                self.write(b, Slot::of(self.params.get("ml")), out, i, value);
            }
        });
    }
}

/// Tokens that scores and weights come in, at least: every page has a whole number of these.
const STEP: usize = 16;

/// Cycles after which the next multiply-add may join a sum: four on Zen 5 and Intel's since Skylake, of integers too, and one
/// in hand, since not every one starts when it could (f16 from a cache 1.06 times as fast on Zen 5, INT8 1.03).
const FMA: usize = 5;

/// Sums `0..count`, and as many more that start from zero for every further chain.
fn chained(sums: &[Value], zero: Value, chains: usize) -> Vec<Value> {
    let mut all = sums.to_vec();
    all.resize(sums.len() * chains, zero);
    all
}

/// The sums of all chains.
fn unchained(b: &mut Builder, all: &[Value], count: usize) -> Vec<Value> {
    let (first, rest) = all.split_at(count);
    rest.chunks(count).fold(first.to_vec(), |sums, more| sums.iter().zip(more).map(|(&x, &y)| b.add(x, y)).collect())
}

/// Rows in blocks of at most `most`.
fn row_blocks(rows: usize, most: usize) -> Vec<std::ops::Range<usize>> {
    (0..rows).step_by(most).map(|first| first..rows.min(first + most)).collect()
}

/// All lanes combined, by halves.
fn across(b: &mut Builder, op: BinOp, value: Value) -> Value {
    let lanes = b.ty(value).lanes;
    if lanes == 1 {
        return value;
    }
    let half = lanes / 2;
    if half == 1 {
        let (x, y) = (b.extract(value, 0), b.extract(value, 1));
        return b.bin(op, x, y);
    }
    let low: Vec<u8> = (0..half).collect();
    let high: Vec<u8> = (half..lanes).collect();
    let (low, high) = (b.swizzle(value, value, &low), b.swizzle(value, value, &high));
    let both = b.bin(op, low, high);
    across(b, op, both)
}
