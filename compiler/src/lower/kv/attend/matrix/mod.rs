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
mod softmax;

use self::operands::Operands;
use self::places::Bases;
use super::LOWEST;
use super::{Params, has_offsets};
use crate::caps::{Caps, MmaShape, place};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::kv::{KvCodes, KvPer, Side};
use crate::ir::{BinOp, Builder, Builtin, CastOp, CmpOp, Memory, Scalar, Type, Value};
use crate::lower::memory::{at, split, times};
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
    let rows_and_columns = |lane: usize, i: usize| {
        let (g, t) = (lane / 4, lane % 4);
        let (high, low) = (i / 2 % 2 * 8, 2 * t + i % 2);
        let a = place(&shape.a_map(), 8 * lane + i) == (g + high, low + i / 4 * 8);
        let b = i >= 4 || place(&shape.b_map(), 4 * lane + i) == (low + high, g);
        let sums = i >= 4 || place(&shape.acc_map(), 4 * lane + i) == (g + high, low);
        a && b && sums
    };
    (fits && (0..32).all(|lane| (0..8).all(|i| rows_and_columns(lane, i)))).then_some(shape)
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
    KvSchedule { threads, tile: CHUNK as u32, rows: COLUMNS as u32, vectors: 1 }
}

pub fn build(b: &mut Builder, op: &Attend, params: &Params, schedule: &KvSchedule, caps: &Caps) -> Result<()> {
    if let Some(why) = refuses(op, caps) {
        return Err(Error::Unsupported(format!("attend by matrix instructions {why}")));
    }
    let KvSchedule { threads, tile, rows, vectors } = *schedule;
    let most = subgroups(op, caps).unwrap_or(1) * caps.subgroup;
    if !threads.is_multiple_of(caps.subgroup) || threads > most || (tile, rows, vectors) != (CHUNK as u32, 8, 1) {
        return Err(Error::invalid(format!(
            "attend by matrix instructions: {threads} threads, tile {tile}, rows {rows}, vectors {vectors}; accepted: whole \
             subgroups up to {most} threads, tile {CHUNK}, rows 8, vectors 1"
        )));
    }
    let (Some(of_keys), Some(weights)) = (instruction(op.input, caps), op.weight_type()) else { return Ok(()) };
    let Some(of_values) = instruction(weights, caps) else { return Ok(()) };
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
            let asked = early.then(|| self.ask_keys(b, &there, next));
            // What registers hold at once.
            let batch = (UNDER_WAY * self.value_pairs() / self.words(Side::V).max(1)).clamp(1, self.value_pairs());
            if !early {
                loads = self.ask_values(b, &places, 0..batch);
            }
            let scales = self.scales_of(b, &scales);
            let weights = self.softmax(b, &shape, (start, &scores), &scales, &mut state);
            self.weigh(b, (start, &places), (loads, batch), &weights, &mut state);
            let mut all = state.all();
            all.extend(there.iter().chain(&after));
            all.extend(asked.iter().flat_map(Keys::all));
            all
        });
        self.finish(b, &state.of(&all));
    }

    /// Operands B of the queries, one for each instruction along their channels.
    fn queries(&self, b: &mut Builder) -> Vec<Value> {
        let (op, per) = (self.op, self.keys.per_load());
        let (group, dim) = (op.group(), op.layout.k.head_dim);
        // Columns past the rows, and rows past the item's queries, repeat others; nobody reads them.
        let row = b.bin_imm(BinOp::MinS, self.g, op.rows() as i64 - 1);
        let (query, member) = split(b, row, group);
        let most = b.bin_imm(BinOp::Add, self.item[1], -1);
        let query = b.bin(BinOp::MinS, query, most);
        let query = b.add(query, self.item[0]);
        let [query, member] = [query, member].map(|x| b.cast(CastOp::ExtendS, x, Scalar::I64));
        let line = times(b, query, op.heads);
        let head = times(b, self.head, group);
        let line = b.add(line, head);
        let line = b.add(line, member);
        let line = times(b, line, dim * 2);
        let q = self.params.get("q");
        let order = self.keys.order();
        let half = Scalar::I16;
        let mut list = Vec::new();
        for load in 0..self.key_loads() {
            let numbers = if self.op.layout.k.codes.code.is_plain() {
                let own = times(b, self.t, 2);
                let own = b.cast(CastOp::ExtendS, own, Scalar::I64);
                let place = b.add(line, own);
                let numbers: Vec<Value> =
                    (0..4).map(|j| b.load(half, at(q, Some(place), (16 * load + 4 * j) * 2), 2)).collect();
                b.vector(&numbers)
            } else {
                let units = self.last_units().filter(|_| load + 1 == self.key_loads());
                let t = units.map_or(self.t, |units| b.bin_imm(BinOp::MinS, self.t, units as i64 - 1));
                let own = times(b, t, per * 2);
                let own = b.cast(CastOp::ExtendS, own, Scalar::I64);
                let place = b.add(line, own);
                let ty = Type::vector(half, per as u8);
                let numbers = b.load(ty, at(q, Some(place), 4 * load * per * 2), 2 * per as u32);
                match units {
                    Some(units) => {
                        let (units, none) = (b.int(Scalar::I32, units as i64), b.int(ty, 0));
                        let there = b.cmp(CmpOp::LtS, self.t, units);
                        b.select(there, numbers, none)
                    }
                    None => numbers,
                }
            };
            for pairs in order.chunks(2) {
                let picks: Vec<u8> = pairs.iter().flatten().map(|&number| number as u8).collect();
                let four = b.swizzle(numbers, numbers, &picks);
                list.push(b.bitcast(four, Type::vector(crate::lower::memory::scalar_of(self.keys.element), 4)));
            }
        }
        list
    }

    /// Asks for the keys of the chunk from a token on.
    fn ask_keys(&self, b: &mut Builder, bases: &[Value], start: Value) -> Keys {
        let place = self.key_place(b, bases, start);
        let codes = (0..self.key_loads()).map(|load| self.load_keys(b, place, load)).collect();
        Keys { codes, scales: self.ask_scales(b, Side::K, bases, start) }
    }

    /// Asks for scales, and offsets, of the tokens of this lane's keys, where tokens have some.
    fn ask_scales(&self, b: &mut Builder, side: Side, bases: &[Value], start: Value) -> Vec<Value> {
        let part = self.op.layout.part(side);
        let mut list = Vec::new();
        if part.codes.per == KvPer::Token && !part.codes.code.is_plain() {
            list.push(self.of_tokens(b, bases, start, part.scale));
            if part.codes.asymmetric {
                list.push(self.of_tokens(b, bases, start, part.offset));
            }
        }
        list
    }

    /// Scales and offsets as numbers: for each of the four tokens.
    fn scales_of(&self, b: &mut Builder, asked: &[Value]) -> Vec<Value> {
        let one = |b: &mut Builder, bits: Value| {
            let wide = b.cast(CastOp::ExtendU, bits, Scalar::I32);
            let high = b.bin_imm(BinOp::Shl, wide, 16);
            b.bitcast(high, Type::vector(Scalar::F32, 4))
        };
        asked.iter().map(|&bits| one(b, bits)).collect()
    }

    /// Sums of products of the queries and a chunk's keys, times scales of tokens: those of four tokens, for each of two rows.
    fn scores(
        &self,
        b: &mut Builder,
        queries: &[Value],
        (bases, start): (&[Value], Value),
        keys: Option<&Keys>,
    ) -> softmax::Scores {
        let mut sums = [b.f32(4, 0.0); 2];
        let steps = self.keys.steps();
        let mut one = |b: &mut Builder, load: usize, codes: &[Value]| {
            for (step, tiles) in self.keys.tiles(b, codes).into_iter().enumerate() {
                for (sum, tile) in sums.iter_mut().zip(tiles) {
                    *sum = b.mma(self.shapes[0], tile, queries[load * steps + step], *sum);
                }
            }
        };
        let scales = match keys {
            Some(keys) => {
                keys.codes.iter().enumerate().for_each(|(load, codes)| one(b, load, codes));
                keys.scales.clone()
            }
            None => {
                let place = self.key_place(b, bases, start);
                let scales = self.ask_scales(b, Side::K, bases, start);
                let batch = (UNDER_WAY * self.key_loads() / self.words(Side::K).max(1)).max(1);
                for first in (0..self.key_loads()).step_by(batch) {
                    let loads = first..(first + batch).min(self.key_loads());
                    let codes: Vec<_> = loads.clone().map(|load| self.load_keys(b, place, load)).collect();
                    loads.zip(&codes).for_each(|(load, codes)| one(b, load, codes));
                }
                scales
            }
        };
        let scales = self.scales_of(b, &scales);
        softmax::Scores { sums, scales }
    }

    /// Asks for the values of pairs of blocks of channels, `[pair][step]`.
    fn ask_values(
        &self,
        b: &mut Builder,
        places: &[[Value; 2]],
        pairs: std::ops::Range<usize>,
    ) -> Vec<Vec<Vec<Value>>> {
        let steps = self.value_steps();
        pairs.map(|pair| (0..steps).map(|step| self.load_values(b, places, pair, step)).collect()).collect()
    }

    /// Adds the weighted values of a chunk to the outputs.
    fn weigh(
        &self,
        b: &mut Builder,
        (start, places): (Value, &[[Value; 2]]),
        (first, batch): (Vec<Vec<Vec<Value>>>, usize),
        weights: &[Value],
        state: &mut State,
    ) {
        let masks = self.masks(b, start);
        let mut loads = first;
        let mut done = 0;
        while done < self.value_pairs() {
            for (number, steps) in loads.iter().enumerate() {
                for (step, codes) in steps.iter().enumerate() {
                    let codes = self.masked(b, &masks, step, codes);
                    for (i, tiles) in self.values.tiles(b, &codes).into_iter().enumerate() {
                        for (half, tile) in tiles.into_iter().enumerate() {
                            let sum = &mut state.outputs[2 * (done + number) + half];
                            *sum = b.mma(self.shapes[1], tile, weights[step * self.values.steps() + i], *sum);
                        }
                    }
                }
            }
            done += loads.len();
            let next = done..(done + batch).min(self.value_pairs());
            loads = self.ask_values(b, places, next);
        }
    }

    /// For each load along the tokens, what keeps codes past the item's end out: codes of words are masked by bits, plain ones
    /// are taken or left. `None` where no code is a NaN.
    fn masks(&self, b: &mut Builder, start: Value) -> Option<Vec<Vec<Value>>> {
        if !self.values.has_nan() {
            return None;
        }
        let left = b.bin(BinOp::Sub, self.item[4], start);
        let own = times(b, self.t, 4);
        let left = b.bin(BinOp::Sub, left, own);
        let plain = self.op.layout.v.codes.code.is_plain();
        let of = |b: &mut Builder, step: usize| {
            let left = b.bin_imm(BinOp::Add, left, -(16 * step as i64));
            if plain {
                let there = |j: i64| {
                    let number = b.int(Scalar::I32, j);
                    b.cmp(CmpOp::LtS, number, left)
                };
                return (0..4).map(there).collect();
            }
            let (zero, three) = (b.int(Scalar::I32, 0), b.int(Scalar::I32, 3));
            let some = b.bin(BinOp::MaxS, left, zero);
            let some = b.bin(BinOp::MinS, some, three);
            let bits = times(b, some, 8);
            let one = b.int(Scalar::I32, 1);
            let power = b.bin(BinOp::Shl, one, bits);
            let mask = b.bin_imm(BinOp::Add, power, -1);
            let all = b.int(Scalar::I32, -1);
            let whole = b.cmp(CmpOp::LtS, three, left);
            vec![b.select(whole, all, mask)]
        };
        Some((0..self.value_steps()).map(|step| of(b, step)).collect())
    }

    fn masked(&self, b: &mut Builder, masks: &Option<Vec<Vec<Value>>>, step: usize, codes: &[Value]) -> Vec<Value> {
        let Some(masks) = masks else { return codes.to_vec() };
        if !self.op.layout.v.codes.code.is_plain() {
            let mask = b.splat(masks[step][0], 4);
            return vec![b.bin(BinOp::And, codes[0], mask)];
        }
        let none = b.int(Type::vector(Scalar::I32, 2), 0);
        codes.iter().zip(&masks[step]).map(|(&codes, &there)| b.select(there, codes, none)).collect()
    }
}

/// Whether each token has an offset of its own.
fn has_offsets_of_tokens(codes: &KvCodes) -> bool {
    codes.asymmetric && !codes.is_static() && has_offsets(codes)
}
