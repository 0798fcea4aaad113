//! Family `tile`: many rows. A workgroup decodes its weights into scratch once, then walks over tiles of rows.
//!
//! A workgroup makes all rows by `tile_n` columns of Y, or by some strips of so many ([`columns`]). Scratch holds bytes for an
//! integer dot product, or finished `f32` weights, so that the inner loop is loads, broadcasts and multiply-adds alone. Grid: y
//! over tiles of columns.
//!
//! ```text
//! bytes    [quad][tile_n] words of four neighbouring columns        floats    [column][tile_n]
//! ```

use super::epilogue;
use super::integer::{IntegerSums, Results};
use super::{Plan, Tile, as_matmul, columns, entry, integers_of};
use crate::caps::Caps;
use crate::error::{Error, Result};
use crate::format::Zero;
use crate::format::n16::N16;
use crate::ir::{Builder, Builtin, CastOp, Kernel, Memory, Scalar, Type, Value};
use crate::lower::activation::Rows;
use crate::lower::memory::{Params, Role, at};
use crate::lower::space::Axis;
use crate::lower::stage::Kept;
use crate::lower::unpack::{Integers, Weights};
use crate::lower::walk::{Pos, Step, Visit, Walk, repeat};
use crate::lower::{Estimate, Implementation};
use crate::op::{Activation, Matmul, Op, Per};
use crate::schedule::{Family, Knob, Schedule};

pub(in crate::lower) const TILE: Implementation = Implementation {
    family: Family::Tile,
    summary: "matmul for many rows: weights are decoded once into scratch and used for every tile of rows",
    refuses,
    axes: &[
        Axis::new(Knob::TileM, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
        Axis::new(Knob::TileN, &[4, 8, 16, 32, 64]),
        Axis::new(Knob::Unroll, &[1, 2, 4, 8]),
        Axis::new(Knob::Strips, &[1, 2, 4, 8]),
    ],
    estimate: Some(estimate),
    space,
    build,
};

/// Rows from which on tiles of dot products of bf16 are faster than family `stream` on Zen 5.
const FEW_ROWS: usize = 4;

fn refuses(op: &Op, caps: &Caps) -> Option<String> {
    super::refuses(op, caps).or_else(|| refuses_groups(op))
}

/// A quad of activations is scaled at once.
pub(super) fn refuses_groups(op: &Op) -> Option<String> {
    match op {
        Op::Matmul(Matmul {
            activation: Activation::Int8(Per::Group(g)) | Activation::Fp8(_, Per::Group(g)), ..
        }) if g % 4 != 0 => Some(format!("takes activation groups in multiples of 4, not {g}")),
        _ => None,
    }
}

/// Register tiles that fit with their operands: sums, one broadcast per row, a vector of weights, one to spare. One
/// register too many halves the speed, since a sum then goes through memory in every turn.
fn space(op: &Op, caps: &Caps, m: usize) -> Vec<Schedule> {
    let Ok(op) = as_matmul(op) else { return Vec::new() };
    let lanes = (caps.vector_bytes / 4).min(16);
    // Without a dot instruction, products of neighbours add up in 16 bits: the more of them in a turn, the better.
    // Units of several planes are so long that one is enough where registers are short.
    let layout = N16::of(&op.weight, op.k);
    let sums_bytes = caps.vector_bytes >= 32 && matches!(op.activation, Activation::Int8(_));
    // With a dot instruction of 64 bytes, results in scratch show where segments are short: one such is stored in a cycle.
    let short = sums_bytes && super::has_dot(caps) && caps.vector_bytes >= 64 && op.segment() < op.k;
    let unrolls = match &layout {
        // A unit of several groups is long as it is.
        Ok(layout) if short && op.segment() < layout.unit => [1, 2, 4],
        _ if short && op.segment() <= 32 => [4, 2, 1],
        _ if super::has_dot(caps) => [2, 4, 1],
        Ok(layout) if layout.planes.len() > 1 && sums_bytes => [1, 2, 4],
        _ => [4, 2, 1],
    };
    let mut list = Vec::new();
    for tile_n in [4, 8, 16, 32, 64].into_iter().filter(|n| n % lanes == 0) {
        let vectors = tile_n / lanes;
        let layout = layout.as_ref().ok();
        let blocks = layout.and_then(|layout| Some((layout, columns::blocks(op, layout, tile_n, caps)?)));
        let strips = blocks.as_ref().map_or(1, |(_, blocks)| columns::strips(op, tile_n, blocks));
        // Registers of 64 bytes take wider tiles where an instruction multiplies two columns, which is twice as many words in a line.
        if tile_n > 32 && !blocks.is_some_and(|(_, blocks)| blocks.are_dots()) {
            continue;
        }
        let scratch = op.k.next_multiple_of(32) as u64 * tile_n as u64 * 4;
        if scratch > caps.max_shared_bytes as u64 {
            continue;
        }
        for tile_m in 1..=12u32 {
            let fits = match (blocks, layout) {
                (Some((layout, blocks)), _) => columns::fits(&blocks, tile_m, vectors, layout, caps),
                (None, Some(layout)) if caps.vector_bytes >= 32 => fits(op, layout, tile_m, vectors, caps),
                _ => tile_m * vectors + tile_m + 2 <= caps.vector_registers,
            };
            if !fits {
                continue;
            }
            let rows = (m as u32).div_ceil(tile_m) as f64 * tile_m as f64 / m as f64;
            let cost = rows * (1.0 + 1.0 / tile_m as f64 + 1.0 / vectors as f64);
            let in_scratch = 2 * tile_m * vectors + tile_m + vectors > caps.vector_registers;
            let cost = if short && in_scratch { cost + 8.0 / op.segment() as f64 } else { cost };
            // Turns of one group: four groups by ten sums (Q4_K) are more code than a processor keeps decoded.
            let unrolls = if blocks.is_some_and(|(_, blocks)| blocks.are_scaled()) { [1, 2, 4] } else { unrolls };
            for (rank, unroll) in unrolls.into_iter().enumerate() {
                list.push((cost, rank, Schedule::single(Family::Tile, tile_m, tile_n, unroll).with_strips(strips)));
            }
        }
    }
    // Of equals the wider one; where products add up in 16 bits the taller one, which is a tenth faster on Zen 3.
    let taller = sums_bytes && !super::has_dot(caps);
    let wide = |s: &Schedule| if taller { s.tile_m } else { s.tile_n };
    list.sort_by(|a, b| a.0.total_cmp(&b.0).then(wide(&b.2).cmp(&wide(&a.2))).then(a.1.cmp(&b.1)));
    list.into_iter().map(|(_, _, schedule)| schedule).collect()
}

/// Whether a tile fits where vectors are wide.
fn fits(op: &Matmul, layout: &N16, tile_m: u32, vectors: u32, caps: &Caps) -> bool {
    let sums = tile_m * vectors;
    let shifted = u32::from(!matches!(layout.format.zero, Zero::None | Zero::Bias(_)));
    // Results stay in registers besides, where there is more than one segment.
    let results = if op.segment() < op.k { sums } else { 0 };
    // Where a unit of columns holds several groups, their scales wait beside the words of further planes (Q3_K).
    let several = layout.planes.len() > 1 && op.segment() < layout.unit;
    let waiting = if several { vectors + 1 } else { 0 };
    // Many registers keep their results from one group to the next.
    let waiting = if several && caps.vector_registers > 16 { waiting + sums } else { waiting };
    let needed = match integers_of(op, layout, caps) {
        // 16 bits hold so few products that both kinds of sums are in use all the time.
        Some(how) if !super::has_dot(caps) && (5..8).contains(&how.bits) => 2 * sums + results + 4,
        // Even and odd bytes of both sides.
        Some(how) if !super::has_dot(caps) && how.bits == 8 => sums + results + 7 + vectors.min(tile_m),
        // A product beside its sum where there is no dot instruction.
        Some(_) => sums + tile_m + 2 + u32::from(!super::has_dot(caps)) + 2 * shifted * vectors + waiting,
        // Four columns of each row at once.
        None => sums + 4 * tile_m + vectors + 2,
    };
    needed <= caps.vector_registers
}

/// Sums, a broadcast and a vector of weights in registers; instructions per product, decoding shared by all rows, and six to
/// convert a vector of activations that are floats, shared by all strips.
fn estimate(op: &Op, schedule: &Schedule, caps: &Caps, m: usize) -> Estimate {
    let lanes = (caps.vector_bytes / 4).min(16);
    let (tile_m, vectors) = (schedule.tile_m, (schedule.tile_n / lanes).max(1));
    let rows = (m as u32).div_ceil(tile_m) as f64 * tile_m as f64 / m as f64;
    let products = rows * (1.0 + 1.0 / tile_m as f64 + 1.0 / vectors as f64);
    let work = if multiplies_pairs(op, schedule, caps) { products / 2.0 } else { products } + 5.0 / m as f64;
    let converts = matches!(op, Op::Matmul(Matmul { activation: Activation::Float(_), .. }));
    let work = if converts { work + 6.0 / f64::from(schedule.tile_n * schedule.strips.max(1)) } else { work };
    Estimate { registers: tile_m * vectors + vectors.min(2) + 1, work: work / lanes as f64 }
}

/// Whether tiles serve so few rows better than a family that decodes weights for each tile of rows: they do where an
/// instruction multiplies two columns of floats.
pub(in crate::lower) fn few_rows_pay_tiles(op: &Op, caps: &Caps, m: usize) -> bool {
    let schedule = Schedule::single(Family::Tile, 4, 64, 1);
    m >= FEW_ROWS && multiplies_pairs(op, &schedule, caps)
}

/// Whether an instruction multiplies two columns of floats.
fn multiplies_pairs(op: &Op, schedule: &Schedule, caps: &Caps) -> bool {
    let Ok(op) = as_matmul(op) else { return false };
    let blocks = N16::of(&op.weight, op.k).ok().and_then(|layout| columns::blocks(op, &layout, schedule.tile_n, caps));
    blocks.is_some_and(|blocks| blocks.are_dots())
}

fn build(op: &Op, schedule: &Schedule, caps: &Caps) -> Result<Kernel> {
    let matmul = as_matmul(op)?;
    let plan = Plan::new(matmul, schedule, caps)?;
    let mut b = Builder::new(&entry(matmul, schedule));
    let params = Params::declare(&mut b, op, caps)?;
    let blocks = columns::blocks(matmul, &plan.layout, schedule.tile_n, caps);
    let most = if blocks.is_some() { columns::MOST_STRIPS } else { 1 };
    if !(1..=most).contains(&schedule.strips) {
        return Err(Error::invalid(format!("strips is {}; accepted here: 1 to {most}", schedule.strips)));
    }
    if let Some(blocks) = blocks {
        columns::build(&mut b, &plan, schedule, caps, &params, blocks);
        return Ok(b.finish());
    }
    let tile_y = b.builtin(Builtin::WorkgroupId(1));
    let start = b.bin_imm(crate::ir::BinOp::Mul, tile_y, schedule.tile_n as i64);
    let start = b.cast(CastOp::ExtendS, start, Scalar::I64);
    let weights =
        Weights::new(&plan.layout, params.get(Role::Weights), start, matmul.n, schedule.tile_n as usize, caps);
    let lines = match plan.integers {
        Some(_) => plan.layout.units * plan.layout.unit / 4,
        None => matmul.k,
    };
    let bytes = lines as u64 * schedule.tile_n as u64 * 4;
    if bytes > caps.max_shared_bytes as u64 {
        return Err(Error::Unsupported(format!(
            "{bytes} bytes of scratch for {} columns of {} weights; {} has {}",
            schedule.tile_n, matmul.k, caps.name, caps.max_shared_bytes
        )));
    }
    let scratch = Scratch::declare(&mut b, "decoded", lines, schedule, plan.lanes);
    let groups = Walk::new(&plan.layout, plan.layout.group.min(matmul.k), 1)?;
    let mut decode = Decode {
        weights: &weights,
        how: plan.integers.as_ref(),
        vectors: plan.vectors,
        scratch,
        group: groups.segment,
        piecewise: false,
    };
    groups.emit(&mut b, &mut decode, Vec::new());

    let count = schedule.tile_m as usize * plan.vectors;
    let (results_kept, sums_kept) = if crowded(&plan, schedule, caps) {
        let several = plan.walk.segment < matmul.k;
        let turns = schedule.unroll as usize * plan.layout.unit < plan.walk.segment;
        (
            several.then(|| Kept::declare(&mut b, "results", count, plan.lanes)),
            (turns && !super::has_dot(caps)).then(|| Kept::integers(&mut b, "sums", count, plan.lanes)),
        )
    } else {
        (None, None)
    };

    let zero = b.int(Scalar::I32, 0);
    b.for_loop(zero, params.m, schedule.tile_m as i64, &[], |b, first, _| {
        let rows = Rows::new(b, matmul, &params, first, schedule.tile_m as usize, plan.lanes);
        let tile = Tile { weights: &weights, rows: &rows, vectors: plan.vectors, waits: plan.waits, team: None };
        let results = match &plan.integers {
            Some(how) => {
                let per_unit = plan.layout.unit / 4;
                let ty = Type::vector(Scalar::I8, 4 * plan.lanes);
                let mut bytes = |b: &mut Builder, step: &Step, quad: usize, v: usize| {
                    let line = step.unit.times(b, per_unit).plus(step.first + quad);
                    scratch.load(b, ty, line, v)
                };
                let mut sums = IntegerSums {
                    tile: &tile,
                    how,
                    segment: plan.walk.segment,
                    bytes: &mut bytes,
                    late: !super::has_dot(caps) && caps.vector_bytes >= 32,
                    quarters: false,
                    results: Results::kept(results_kept.as_ref()),
                    sums: sums_kept.as_ref(),
                };
                sums.over(b, &plan.walk)
            }
            None => {
                let nothing = b.f32(plan.lanes, 0.0);
                let outer = vec![nothing; count];
                float_sums(b, &tile, &scratch, (Pos::fixed(0), plan.op.k), schedule.unroll as usize, outer)
            }
        };
        epilogue::store(b, &plan, &params, &rows, (first, schedule.tile_m == 1), start, results);
        Vec::new()
    });
    Ok(b.finish())
}

/// Whether results of integer sums, and sums between turns, wait in scratch: both of them beside what a turn works on are
/// more than the registers hold, and they are touched once per segment or turn.
fn crowded(plan: &Plan, schedule: &Schedule, caps: &Caps) -> bool {
    let shifted = !matches!(plan.layout.format.zero, Zero::None | Zero::Bias(_));
    let ends = if shifted { 2 * plan.vectors } else { plan.vectors };
    let alive = 2 * schedule.tile_m as usize * plan.vectors + ends + 4;
    plan.integers.is_some() && caps.vector_bytes >= 32 && alive > caps.vector_registers as usize
}

/// Decoded weights of the workgroup.
#[derive(Clone, Copy)]
pub(super) struct Scratch {
    pub memory: Memory,
    /// Bytes of a line.
    pub line: usize,
    /// Bytes of a vector.
    pub vector: usize,
    /// Where this thread's vectors start in a line, in bytes.
    pub base: Pos,
}

impl Scratch {
    /// So many lines, each as wide as a tile of rows of W.
    pub fn declare(b: &mut Builder, name: &str, lines: usize, schedule: &Schedule, lanes: u8) -> Scratch {
        let line = schedule.tile_n as usize * 4;
        let memory = b.shared(name, (lines * line) as u32, 64);
        Scratch { memory, line, vector: lanes as usize * 4, base: Pos::fixed(0) }
    }

    /// Vector `v` of a line.
    pub fn load(&self, b: &mut Builder, ty: Type, line: Pos, v: usize) -> Value {
        let place = line.times(b, self.line).add(b, self.base);
        b.load(ty, at(self.memory, place.index, place.fixed + v * self.vector), self.vector as u32)
    }

    /// Writes vector `v` of a line.
    pub fn store(&self, b: &mut Builder, value: Value, line: Pos, v: usize) {
        let place = line.times(b, self.line).add(b, self.base);
        b.store(at(self.memory, place.index, place.fixed + v * self.vector), self.vector as u32, value);
    }
}

/// Decodes every quad into scratch. The state of a segment holds its scales, zeros and offsets, by vector.
pub(super) struct Decode<'a> {
    pub weights: &'a Weights<'a>,
    pub how: Option<&'a Integers>,
    pub vectors: usize,
    pub scratch: Scratch,
    /// Columns of a segment.
    pub group: usize,
    /// Whether lines count from the start of the piece, instead of from the start of the row.
    pub piecewise: bool,
}

impl Visit for Decode<'_> {
    fn begin(&mut self, b: &mut Builder, segment: Pos) -> Vec<Value> {
        if self.how.is_some() {
            return Vec::new();
        }
        let column = segment.times(b, self.group);
        let group = column.divide(b, self.weights.layout.group);
        (0..self.vectors).flat_map(|v| self.weights.group(b, group, v)).collect()
    }

    fn step(&mut self, b: &mut Builder, _segment: Pos, step: &Step, state: Vec<Value>) -> Vec<Value> {
        let per_vector = state.len() / self.vectors;
        let (quads, columns) = if self.piecewise {
            (step.local, step.local.times(b, 4))
        } else {
            (step.unit.times(b, self.weights.layout.unit / 4).plus(step.first), step.column)
        };
        for (i, &valid) in step.quads.iter().enumerate() {
            for v in 0..self.vectors {
                let words = self.weights.words(b, step.unit, step.first + i, v);
                if let Some(how) = self.how {
                    let bytes = self.weights.bytes(b, how, &words);
                    self.scratch.store(b, bytes, quads.plus(i), v);
                    continue;
                }
                for byte in 0..valid {
                    let code = self.weights.floats(b, &words, byte);
                    let w = self.weights.weight(b, code, &state[v * per_vector..][..per_vector]);
                    self.scratch.store(b, w, columns.plus(4 * i + byte), v);
                }
            }
        }
        state
    }

    fn end(&mut self, _b: &mut Builder, _segment: Pos, _inner: Vec<Value>, outer: Vec<Value>) -> Vec<Value> {
        outer
    }
}

/// `f32` multiply-adds over the finished weights of `len` columns from `start` on, four columns at a time; line 0 of the
/// scratch holds the first one.
pub(super) fn float_sums(
    b: &mut Builder,
    tile: &Tile<'_>,
    scratch: &Scratch,
    (start, len): (Pos, usize),
    unroll: usize,
    outer: Vec<Value>,
) -> Vec<Value> {
    let ty = Type::vector(Scalar::F32, tile.weights.lanes);
    let quad = |b: &mut Builder, line: Pos, valid: usize, mut state: Vec<Value>| {
        let column = start.add(b, line);
        let x: Vec<Vec<Value>> = (0..tile.rows.count())
            .map(|row| {
                let numbers = tile.rows.quad_floats(b, row, column, valid);
                match tile.rows.group_scale(b, row, column) {
                    Some(scale) => numbers.into_iter().map(|x| b.mul(x, scale)).collect(),
                    None => numbers,
                }
            })
            .collect();
        for byte in 0..valid {
            for v in 0..tile.vectors {
                let w = scratch.load(b, ty, line.plus(byte), v);
                for (row, x) in x.iter().enumerate() {
                    let sum = &mut state[row * tile.vectors + v];
                    *sum = b.fma(w, x[byte], *sum);
                }
            }
        }
        state
    };
    let step = 4 * unroll;
    let mut state = repeat(b, len / step, step, outer, |b, line, mut state| {
        for i in 0..unroll {
            state = quad(b, line.plus(4 * i), 4, state);
        }
        state
    });
    let mut line = len / step * step;
    while line < len {
        let valid = (len - line).min(4);
        state = quad(b, Pos::fixed(line), valid, state);
        line += valid;
    }
    state
}
