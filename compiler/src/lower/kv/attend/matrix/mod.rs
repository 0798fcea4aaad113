//! Family of `attend` by matrix instructions of a subgroup: few query rows, any number of tokens.
//!
//! ```text
//! Sᵀ[token, row]   = K[token, channel] · Qᵀ[channel, row]          a chunk of 32 tokens; Q stays in registers
//! Oᵀ[channel, row] = Vᵀ[channel, token] · Pᵀ[token, row]           P goes from one lane to another by shuffles
//! ```
//!
//! A workgroup takes one work item and one KV head. Each of its subgroups goes over chunks of its own with a softmax of its own
//! and meets nobody until the end, where sums meet in shared memory; so nothing waits but for codes, which are asked for long
//! before: those of the next keys while values are weighed, those of values while scores are summed up. Codes become pairs of
//! 16-bit floats exactly; weights are rounded to such. Weights are powers from [`LIFT`] below the largest score, so that small
//! ones keep their digits, and the item's largest score is given as that much less.

mod finish;
mod operands;
mod places;
mod products;
mod softmax;

use self::operands::Operands;
use self::places::Bases;
use super::LOWEST;
use super::Params;
use super::values::has_offsets;
use crate::caps::{Caps, Feature, MmaShape, PAIRS};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::kv::{KvCodes, KvPer, Side};
use crate::ir::{Asynchronous, BinOp, Builder, Builtin, CastOp, CmpOp, Memory, Scalar, Value};
use crate::lower::memory::{at, times};
use crate::op::kv::{Attend, ITEM};
use crate::schedule::KvSchedule;

/// Tokens that a subgroup takes at once.
const CHUNK: usize = 32;
/// Query rows: columns of the instruction's sums.
pub(super) const COLUMNS: usize = 8;
/// Weights are up to 2 to the power of this.
const LIFT: f32 = 15.0;
/// Words of codes that a lane has under way.
const UNDER_WAY: usize = 64;
/// Words of a lane, codes of a chunk among them, up to which the next chunk's keys are asked for early.
const AHEAD: usize = 184;

/// The instruction for a type of operands, where the device's is the one that this family is written for.
fn instruction(element: DType, caps: &Caps) -> Option<&'static MmaShape> {
    let shape = caps.mma(element, element, DType::F32)?;
    let fits = (shape.m, shape.n, shape.k, shape.lanes) == (16, 8, 16, 32) && caps.subgroup == 32;
    (fits && shape.map == Some(PAIRS)).then_some(shape)
}

/// Whether scales are of whole tokens, of a head, or there are none.
fn serves(codes: &KvCodes) -> bool {
    codes.code.is_plain() || matches!(codes.per, KvPer::Tensor | KvPer::Head | KvPer::Token)
}

/// Subgroups of a workgroup: as many as there is room for.
fn subgroups(op: &Attend, caps: &Caps) -> Option<u32> {
    let fits = |count: &u32| {
        count * caps.subgroup <= caps.max_workgroup
            && count * (COLUMNS * (op.layout.v.head_dim + 2) * 4) as u32 <= caps.max_shared_bytes
    };
    [4, 2, 1].into_iter().find(fits)
}

/// Why the family does not take an operation on a device; `None` if it does.
pub fn refuses(op: &Attend, caps: &Caps) -> Option<String> {
    let layout = &op.layout;
    let Some(weights) = op.weight_type() else {
        return Some(format!("multiplies queries of 16-bit floats, not {}", op.input.name()));
    };
    if [op.input, weights].into_iter().any(|element| instruction(element, caps).is_none()) {
        return Some(format!("has no matrix instruction of 16 × 8 × 16 of {}", caps.name));
    }
    if layout.k.codes.code.is_plain() && layout.k.codes.code.float() != Some(op.input) {
        return Some(format!("takes keys of the queries' type, not {}", layout.k.codes.code.name()));
    }
    if !serves(&layout.k.codes) || !serves(&layout.v.codes) {
        return Some(format!("takes scales of tensors, heads and tokens, not those of {}", layout.format));
    }
    if op.rows() > COLUMNS {
        return Some(format!("takes up to {COLUMNS} query rows per KV head, not {}", op.rows()));
    }
    if layout.k.head_dim.max(layout.v.head_dim) > 256 {
        return Some("takes up to 256 channels".into());
    }
    subgroups(op, caps).is_none().then(|| format!("{} has no room for its sums", caps.name))
}

pub fn choose(op: &Attend, caps: &Caps) -> KvSchedule {
    let threads = subgroups(op, caps).unwrap_or(1) * caps.subgroup;
    KvSchedule { threads, tile: CHUNK as u32, rows: COLUMNS as u32, vectors: 1, heads: 1 }
}

pub fn build(b: &mut Builder, op: &Attend, params: &Params, schedule: &KvSchedule, caps: &Caps) -> Result<()> {
    if let Some(why) = refuses(op, caps) {
        return Err(Error::Unsupported(format!("attend by matrix instructions {why}")));
    }
    let KvSchedule { threads, tile, rows, vectors, heads } = *schedule;
    let most = subgroups(op, caps).unwrap_or(1) * caps.subgroup;
    if !threads.is_multiple_of(caps.subgroup)
        || threads > most
        || (tile, rows, vectors, heads) != (CHUNK as u32, 8, 1, 1)
    {
        return Err(Error::invalid(format!(
            "attend by matrix instructions: {threads} threads, tile {tile}, rows {rows}, vectors {vectors}, heads {heads}; \
             accepted: whole subgroups up to {most} threads, tile {CHUNK}, rows 8, vectors 1, heads 1"
        )));
    }
    let (Some(of_keys), Some(weights)) = (instruction(op.input, caps), op.weight_type()) else { return Ok(()) };
    let Some(of_values) = instruction(weights, caps) else { return Ok(()) };
    if caps.features.has(Feature::GridDependency) {
        // Queries, keys and values come from launches before; the merge has to wait for this one anyway.
        b.asynchronous(Asynchronous::AwaitDependencies);
        b.asynchronous(Asynchronous::LaunchDependents);
    }
    Matrix::new(b, op, params, (threads / caps.subgroup) as usize, [of_keys, of_values], caps).emit(b);
    Ok(())
}

/// The kernel under construction. Numbers of tokens, rows and lanes are `i32` here.
struct Matrix<'a> {
    op: &'a Attend,
    params: &'a Params,
    subgroups: usize,
    shapes: [&'static MmaShape; 2],
    keys: Operands,
    values: Operands,
    /// What subgroups have found, for the end: `[subgroup, row, 2 or 3]` and `[subgroup, row, v_dim]`.
    stats: Memory,
    sums: Memory,
    /// This thread's subgroup, and `4g + t`, its place there.
    subgroup: Value,
    g: Value,
    t: Value,
    /// Whether its keys are in the second block of a chunk, its values in the second of two.
    upper: Value,
    /// KV head, `i64`.
    head: Value,
    item: Vec<Value>,
    /// The item's last token.
    last: Value,
    lane_places: [Value; 3],
}

/// What goes from chunk to chunk beside codes. Pairs are of this lane's two rows.
struct State {
    /// The largest scores, less [`LIFT`].
    top: [Value; 2],
    /// This lane's part of the sums of weights.
    sum: [Value; 2],
    /// This lane's part of the sums of weights times offsets of tokens.
    offset: Option<[Value; 2]>,
    /// Oᵀ, `[pair of blocks][tile]`.
    outputs: Vec<Value>,
}

impl State {
    fn all(&self) -> Vec<Value> {
        let small = self.top.iter().chain(&self.sum).chain(self.offset.iter().flatten());
        small.chain(&self.outputs).copied().collect()
    }

    fn of(&self, values: &[Value]) -> State {
        let offset = self.offset.map(|_| [values[4], values[5]]);
        let first = if offset.is_some() { 6 } else { 4 };
        State {
            top: [values[0], values[1]],
            sum: [values[2], values[3]],
            offset,
            outputs: values[first..first + self.outputs.len()].to_vec(),
        }
    }
}

/// What is known of a chunk's keys before its scores are summed up: codes, scales and offsets of tokens.
struct Keys {
    codes: Vec<Vec<Value>>,
    scales: Vec<Value>,
}

impl Keys {
    fn all(&self) -> Vec<Value> {
        self.codes.iter().flatten().chain(&self.scales).copied().collect()
    }

    fn of(&self, values: &[Value]) -> Keys {
        let mut rest = values.iter().copied();
        let codes = self.codes.iter().map(|load| rest.by_ref().take(load.len()).collect()).collect();
        Keys { codes, scales: rest.take(self.scales.len()).collect() }
    }
}

impl<'a> Matrix<'a> {
    fn new(
        b: &mut Builder,
        op: &'a Attend,
        params: &'a Params,
        subgroups: usize,
        shapes: [&'static MmaShape; 2],
        caps: &Caps,
    ) -> Matrix<'a> {
        let keys = Operands::new(op.layout.k.codes, shapes[0].a, caps);
        let values = Operands::new(op.layout.v.codes, shapes[1].a, caps);
        let stats = b.shared("stats", (subgroups * COLUMNS * finish::STATS * 4) as u32, 16);
        let sums = b.shared("sums", (subgroups * COLUMNS * op.layout.v.head_dim * 4) as u32, 16);
        let subgroup = b.builtin(Builtin::Subgroup);
        let lane = b.builtin(Builtin::Lane);
        let (g, t) = (b.bin_imm(BinOp::ShrU, lane, 2), b.bin_imm(BinOp::And, lane, 3));
        let four = b.int(Scalar::I32, 4);
        let upper = b.cmp(CmpOp::LeS, four, g);
        let record = b.builtin(Builtin::WorkgroupId(0));
        let record = b.cast(CastOp::ExtendS, record, Scalar::I64);
        let record = times(b, record, ITEM * 4);
        let head = b.builtin(Builtin::WorkgroupId(1));
        let head = b.cast(CastOp::ExtendS, head, Scalar::I64);
        let items = params.get("items");
        let item: Vec<Value> = (0..7).map(|i| b.load(Scalar::I32, at(items, Some(record), 4 * i), 4)).collect();
        let last = b.bin_imm(BinOp::Add, item[4], -1);
        let mut matrix = Matrix {
            op,
            params,
            subgroups,
            shapes,
            keys,
            values,
            stats,
            sums,
            subgroup,
            g,
            t,
            upper,
            head,
            item,
            last,
            lane_places: [last; 3],
        };
        matrix.lane_places = matrix.lane_places(b);
        matrix
    }

    /// Words of a lane's codes of a chunk.
    fn words(&self, side: Side) -> usize {
        let part = self.op.layout.part(side);
        part.head_dim.next_multiple_of(32) * part.codes.code.bits() / 32
    }

    /// Whether the next chunk's keys are asked for while this one's values are weighed.
    fn ahead(&self) -> bool {
        let held = self.op.layout.k.head_dim / 8 + self.op.layout.v.head_dim.next_multiple_of(32) / 4;
        held + self.words(Side::K) + self.words(Side::V) <= AHEAD
    }

    fn emit(&self, b: &mut Builder) {
        let queries = self.queries(b);
        let shape = self.shape(b, &queries);
        let (lowest, none) = (b.f32(1, LOWEST), b.f32(1, 0.0));
        let tiles = 2 * self.value_pairs();
        let state = State {
            top: [lowest; 2],
            sum: [none; 2],
            offset: (has_offsets_of_tokens(&self.op.layout.v.codes)).then_some([none; 2]),
            outputs: vec![b.f32(4, 0.0); tiles],
        };
        let first = times(b, self.subgroup, CHUNK);
        let first = b.add(first, self.item[3]);
        let turn = (self.subgroups * CHUNK) as i64;
        let (mut all, pages) = (state.all(), self.pages());
        let count = all.len();
        let here = self.bases(b, first);
        let next = b.bin_imm(BinOp::Add, first, turn);
        let there = self.bases(b, next);
        all.extend(here.iter().chain(&there));
        let ahead = self.ahead().then(|| self.ask_keys(b, &here, first));
        all.extend(ahead.iter().flat_map(Keys::all));
        let all = b.for_loop(first, self.item[4], turn, &all, |b, start, values| {
            let mut state = state.of(values);
            let here: Bases = values[count..count + pages].to_vec();
            let there: Bases = values[count + pages..count + 2 * pages].to_vec();
            let keys = ahead.as_ref().map(|keys| keys.of(&values[count + 2 * pages..]));
            let next = b.bin_imm(BinOp::Add, start, turn);
            let further = b.bin_imm(BinOp::Add, start, 2 * turn);
            let early = keys.is_some();
            let places = self.value_places(b, &here, start);
            let mut loads = Vec::new();
            if early {
                loads = self.ask_values(b, &places, 0..self.value_pairs());
            }
            let scales = self.ask_scales(b, Side::V, &here, start);
            let scores = self.scores(b, &queries, (&here, start), keys.as_ref());
            let after = self.bases(b, further);
            // Where codes take most registers, scores have theirs first.
            let large = self.words(Side::K) >= UNDER_WAY;
            let mut asked = (early && !large).then(|| self.ask_keys(b, &there, next));
            // What registers hold at once.
            let batch = (UNDER_WAY * self.value_pairs() / self.words(Side::V).max(1)).clamp(1, self.value_pairs());
            if !early {
                loads = self.ask_values(b, &places, 0..batch);
            }
            let scales = self.scales_of(b, &scales);
            let weights = self.softmax(b, &shape, (start, &scores), &scales, &mut state);
            if early && large {
                asked = Some(self.ask_keys(b, &there, next));
            }
            self.weigh(b, (start, &places), (loads, batch), &weights, &mut state);
            let mut all = state.all();
            all.extend(there.iter().chain(&after));
            all.extend(asked.iter().flat_map(Keys::all));
            all
        });
        self.finish(b, &state.of(&all));
    }
}

/// Whether each token has an offset of its own.
fn has_offsets_of_tokens(codes: &KvCodes) -> bool {
    codes.asymmetric && !codes.is_static() && has_offsets(codes)
}
