//! Family `mma`: matrix instructions of a subgroup, with weights as operand A, for few rows and for many.
//!
//! ```text
//! Yᵀ[n, m] = W[n, k] · Xᵀ[k, m]        A from QT16, each lane its own fragment; B straight from X, which lies as B wants it
//! ```
//!
//! A workgroup makes `tile_m` rows by `tile_n` columns of Y. Each of its `split` subgroups makes all of them over its share
//! of the columns of W: whole groups, whose sums it scales, or strips of the only group, whose sums meet first, so that
//! integer sums stay exact. Partial results meet in shared memory in a fixed order: no atomics, the same bits every time.
//! What it does not take (odd groups, float zero points, codes of several planes), families `spread` and `block` take.
//! Grid: x over tiles of rows, y over tiles of columns.

use super::epilogue::Line;
use super::{Plan, as_matmul, entry};
use crate::caps::{Caps, MmaShape};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::qt16::{Class, LaneOrder, Qt16, tile_columns};
use crate::ir::{BinOp, Builder, Builtin, CastOp, CmpOp, Inst, Kernel, Memory, Scalar, Type, Value};
use crate::lower::activation::Rows;
use crate::lower::memory::{Packing, Params, Role, at, byte_index, scalar_of, times};
use crate::lower::space::Axis;
use crate::lower::team::Team;
use crate::lower::unpack::fragments::{Fragments, Group, refuses as refuses_codes};
use crate::lower::walk::{Pos, repeat, share};
use crate::lower::{Implementation, packing};
use crate::op::{Activation, Matmul, Op};
use crate::schedule::{Family, Knob, Schedule};

pub(in crate::lower) const MMA: Implementation = Implementation {
    family: Family::Mma,
    summary: "matmul by matrix instructions of a subgroup, weights as operand A from QT16",
    refuses,
    axes: &[
        Axis::new(Knob::TileM, &[8, 16, 24, 32, 48, 64]),
        Axis::new(Knob::TileN, &[16, 32, 64]),
        Axis::new(Knob::Unroll, &[1, 2, 4]),
        Axis::new(Knob::Threads, &[32, 64, 128, 256, 512]),
        Axis::new(Knob::Split, &[1, 2, 4, 8, 16]),
    ],
    estimate: None,
    space,
    build,
};

/// What a matmul's activations ask for: the class of the packing, the instruction.
fn instruction(op: &Matmul, caps: &Caps) -> Option<(Class, &'static MmaShape)> {
    let (class, shape) = match op.activation {
        Activation::Float(dtype @ (DType::F16 | DType::Bf16)) => (Class::F16, caps.mma(dtype, dtype, DType::F32)?),
        Activation::Int8(_) => (Class::B8, caps.mma(DType::U8, DType::I8, DType::I32)?),
        _ => return None,
    };
    // The fragments of QT16 are those of this instruction.
    ((shape.m, shape.n, shape.lanes) == (16, 8, caps.subgroup)).then_some((class, shape))
}

/// The class of the packing that this family reads for an operation.
pub(in crate::lower) fn class(op: &Matmul) -> Class {
    if matches!(op.activation, Activation::Int8(_)) { Class::B8 } else { Class::F16 }
}

fn refuses(op: &Op, caps: &Caps) -> Option<String> {
    let Op::Matmul(op) = op else { return Some("computes matmuls only".into()) };
    let Some((class, shape)) = instruction(op, caps) else {
        return Some(format!("has no matrix instruction of {} for {} activations", caps.name, op.activation));
    };
    let layout = match Qt16::of(&op.weight, op.k, class, LaneOrder::Gt) {
        Ok(layout) => layout,
        Err(error) => return Some(error.to_string()),
    };
    if let Some(why) = refuses_codes(&layout, shape.a) {
        return Some(why);
    }
    let (columns, segment) = (tile_columns(layout.planes[0].0), op.segment());
    if !op.k.is_multiple_of(segment) || !segment.is_multiple_of(columns) {
        return Some(format!(
            "takes groups in multiples of {columns} columns that divide K; here they have {segment}, and K is {}",
            op.k
        ));
    }
    if layout.groups > 1 && !layout.group.is_multiple_of(segment) {
        return Some(format!("takes activation groups that divide weight groups, not {segment} and {}", layout.group));
    }
    (class == Class::B8 && segment > 1 << 16).then(|| format!("sums at most 65536 columns in 32 bits, not {segment}"))
}

/// Few rows: many small workgroups whose subgroups split K. Many rows: as many sums as registers hold.
fn space(op: &Op, caps: &Caps, m: usize) -> Vec<Schedule> {
    let Ok(matmul) = as_matmul(op) else { return Vec::new() };
    let segments = matmul.k / matmul.segment().max(1);
    let mut list = Vec::new();
    let tokens = m.min(32).next_multiple_of(8).next_power_of_two() as u32;
    for tile_m in [tokens, 8].into_iter().take(if tokens == 8 { 1 } else { 2 }) {
        for tile_n in if m > 32 { [64, 32, 16] } else { [32, 16, 64] } {
            for split in if m > 32 { [4, 2, 8, 1] } else { [8, 4, 2, 1] } {
                let schedule =
                    Schedule::single(Family::Mma, tile_m, tile_n, 1).with_threads(caps.subgroup * split, split);
                let shared = schedule.threads <= caps.max_workgroup && (segments == 1 || segments >= split as usize);
                // Sums and results of a lane, two registers each.
                if shared && tile_m * tile_n / caps.subgroup <= 64 {
                    list.push(schedule);
                    list.push(Schedule { unroll: 2, ..schedule });
                }
            }
        }
    }
    list
}

fn faults(schedule: &Schedule, caps: &Caps) -> Vec<String> {
    let mut faults = Vec::new();
    let Schedule { tile_m, tile_n, unroll, threads, split, .. } = *schedule;
    if !tile_m.is_multiple_of(8) || !(8..=64).contains(&tile_m) {
        faults.push(format!("tile_m is {tile_m}; accepted: multiples of 8 up to 64"));
    }
    if ![16, 32, 64].contains(&tile_n) {
        faults.push(format!("tile_n is {tile_n}; accepted: 16, 32, 64"));
    }
    if !split.is_power_of_two() || u64::from(threads) != u64::from(split) * u64::from(caps.subgroup) {
        faults.push(format!("threads is {threads}, split {split}; accepted: a power of two of subgroups"));
    }
    if threads > caps.max_workgroup {
        faults.push(format!("threads is {threads}; accepted: at most {}", caps.max_workgroup));
    }
    if !(1..=8).contains(&unroll) {
        faults.push(format!("unroll is {unroll}; accepted: 1 to 8"));
    }
    faults
}

fn build(op: &Op, schedule: &Schedule, caps: &Caps) -> Result<Kernel> {
    let matmul = as_matmul(op)?;
    let faults = faults(schedule, caps);
    if !faults.is_empty() {
        return Err(Error::Invalid(faults));
    }
    let Some((class, shape)) = instruction(matmul, caps) else {
        return Err(Error::Unsupported(format!("{} activations in family mma on {}", matmul.activation, caps.name)));
    };
    let layout = Qt16::of(&matmul.weight, matmul.k, class, LaneOrder::Gt)?;
    debug_assert_eq!(packing(op, schedule), Packing::Qt16(class));
    let mut b = Builder::new(&entry(matmul, schedule));
    let params = Params::declare_packed(&mut b, op, Packing::Qt16(class), caps)?;
    let team = Team::of_subgroups(&mut b, caps.subgroup, schedule.split, 16);
    let lane = b.builtin(Builtin::Lane);
    let tile_y = b.builtin(Builtin::WorkgroupId(1));
    let start = b.bin_imm(BinOp::Mul, tile_y, schedule.tile_n as i64);
    let start = b.cast(CastOp::ExtendS, start, Scalar::I64);
    let tile_x = b.builtin(Builtin::WorkgroupId(0));
    let first = b.bin_imm(BinOp::Mul, tile_x, schedule.tile_m as i64);
    let tiles = schedule.tile_n as usize / 16;
    let fragments = Fragments::new(&mut b, &layout, params.get(Role::Weights), start, tiles, lane, caps);
    let g = b.bin_imm(BinOp::ShrU, lane, 2);
    let t = b.bin_imm(BinOp::And, lane, 3);
    let last = b.bin_imm(BinOp::Sub, params.m, 1);
    let (mut columns, mut rows) = (Vec::new(), Vec::new());
    for token in (0..schedule.tile_m as i64).step_by(8) {
        // Columns of the result past M repeat its last row; nobody stores them.
        let tile = b.bin_imm(BinOp::Add, first, token);
        let row = b.add(tile, g);
        let row = b.bin(BinOp::MinS, row, last);
        let place = byte_index(&mut b, row, matmul.k * shape.b.bits() as usize / 8);
        let mine = byte_index(&mut b, t, 4);
        columns.push(b.add(place, mine));
        let pair = times(&mut b, t, 2);
        let pair = b.add(tile, pair);
        let below = b.bin(BinOp::MinS, pair, last);
        rows.push((pair, Rows::new(&mut b, matmul, &params, below, 2, 1)));
    }
    let x = params.get(Role::Activations);
    let product = Product { op: matmul, shape, fragments: &fragments, x, columns, rows: &rows };
    let results = product.results(&mut b, &team, schedule.unroll as usize);
    let plan = Plan::with_lanes(matmul, &Schedule { unroll: 1, ..*schedule }, caps, 1, 1)?;
    for (i, &result) in results.iter().enumerate() {
        let (tile, token) = (i / rows.len(), i % rows.len());
        let (pair, rows) = &rows[token];
        team.on_slice(&mut b, i, |b| {
            for element in 0..4u8 {
                let (half, parity) = ((element / 2) as usize, (element % 2) as usize);
                let n = b.cast(CastOp::ExtendS, g, Scalar::I64);
                let n = b.add(start, n);
                let n = b.bin_imm(BinOp::Add, n, (16 * tile + 8 * half) as i64);
                let end = b.int(Scalar::I64, matmul.n as i64);
                let inside = b.cmp(CmpOp::LtS, n, end);
                let m = b.bin_imm(BinOp::Add, *pair, parity as i64);
                let below = b.cmp(CmpOp::LtS, m, params.m);
                let stores = b.bin(BinOp::And, inside, below);
                b.if_then(stores, |b| {
                    let sum = b.extract(result, element);
                    let sum = match rows.row_scale(b, parity) {
                        Some(scale) => b.mul(sum, scale),
                        None => sum,
                    };
                    Line::new(b, &plan, &params, m, n).finish(b, sum, 0);
                });
            }
        });
    }
    Ok(b.finish())
}

/// One subgroup's part of a product.
struct Product<'a> {
    op: &'a Matmul,
    shape: &'static MmaShape,
    fragments: &'a Fragments<'a>,
    x: Memory,
    /// For each tile of 8 rows of X: the byte of this lane's first number, `i64`.
    columns: Vec<Value>,
    /// For each tile of 8 rows of X: the first of this lane's two rows of the result, and both.
    rows: &'a [(Value, Rows)],
}

impl Product<'_> {
    fn sums(&self) -> usize {
        self.fragments.tiles * self.rows.len()
    }

    fn sum_type(&self) -> Type {
        Type::vector(if self.shape.acc == DType::I32 { Scalar::I32 } else { Scalar::F32 }, 4)
    }

    fn nothing(&self, b: &mut Builder, ty: Type) -> Vec<Value> {
        let zero = if ty.scalar == Scalar::I32 { b.int(ty, 0) } else { b.f32(ty.lanes, 0.0) };
        vec![zero; self.sums()]
    }

    /// Results `[tile][rows of X]`, `f32x4` each, the same in every subgroup.
    fn results(&self, b: &mut Builder, team: &Team, unroll: usize) -> Vec<Value> {
        let segment = self.op.segment();
        let (segments, strips) = (self.op.k / segment, segment / self.fragments.columns());
        let split = team.split(b);
        let results = self.nothing(b, Type::vector(Scalar::F32, 4));
        if segments == 1 {
            let group = self.fragments.group(b, Pos::fixed(0));
            let sums = self.nothing(b, self.sum_type());
            let biases = self.biases(b, &group);
            let sums =
                share(b, Some(&split), strips, 1, sums, &mut |b, strip, sums| self.strips(b, strip, 1, &biases, sums));
            let sums = team.combine(b, BinOp::Add, &sums);
            return self.scaled(b, &group, Pos::fixed(0), &sums, results);
        }
        let unroll = (1..=unroll).rev().find(|&u| strips.is_multiple_of(u)).unwrap_or(1);
        let results = share(b, Some(&split), segments, 1, results, &mut |b, index, results| {
            let column = index.times(b, segment);
            let group = column.divide(b, self.fragments.layout.group);
            let group = self.fragments.group(b, group);
            let biases = self.biases(b, &group);
            let first = index.times(b, strips);
            let sums = self.nothing(b, self.sum_type());
            let sums = repeat(b, strips / unroll, unroll, sums, |b, strip, sums| {
                let strip = first.add(b, strip);
                self.strips(b, strip, unroll, &biases, sums)
            });
            self.scaled(b, &group, index, &sums, results)
        });
        team.combine(b, BinOp::Add, &results)
    }

    fn biases(&self, b: &mut Builder, group: &Group) -> Vec<Vec<[Value; 2]>> {
        (0..self.fragments.tiles).map(|tile| self.fragments.biases(b, self.shape.a, group, tile)).collect()
    }

    /// The sums after `count` strips. All loads come first, so that they are under way together.
    fn strips(
        &self,
        b: &mut Builder,
        strip: Pos,
        count: usize,
        biases: &[Vec<[Value; 2]>],
        mut sums: Vec<Value>,
    ) -> Vec<Value> {
        let width = self.fragments.columns();
        let words: Vec<_> = (0..count).map(|i| self.fragments.words(b, strip.plus(i))).collect();
        let steps = width / self.shape.k as usize;
        let column = strip.times(b, width);
        let x: Vec<Vec<Value>> = (0..count * steps).map(|step| self.fragments_of_x(b, column, step)).collect();
        for (i, words) in words.iter().enumerate() {
            for (tile, &words) in words.iter().enumerate() {
                let decoded = self.fragments.decode(b, words, self.shape.a, &biases[tile]);
                for (step, registers) in decoded.iter().enumerate() {
                    let a = self.fragment(b, registers, self.shape.a, self.shape.a_elements());
                    for (token, &x) in x[i * steps + step].iter().enumerate() {
                        let sum = &mut sums[tile * self.rows.len() + token];
                        *sum = b.mma(self.shape, a, x, *sum);
                    }
                }
            }
        }
        sums
    }

    /// Operand B for one step, for each tile of 8 rows: numbers from `k / 8` on in two places half a step apart.
    fn fragments_of_x(&self, b: &mut Builder, column: Pos, step: usize) -> Vec<Value> {
        let size = self.shape.b.bits() as usize / 8;
        let k = self.shape.k as usize;
        let mut list = Vec::new();
        for &base in &self.columns {
            let start = column.plus(step * k).times(b, size).add(b, Pos { index: Some(base), fixed: 0 });
            let registers =
                [0, k / 2].map(|half| b.load(Scalar::I32, at(self.x, start.index, start.fixed + half * size), 4));
            list.push(self.fragment(b, &registers, self.shape.b, self.shape.b_elements()));
        }
        list
    }

    fn fragment(&self, b: &mut Builder, registers: &[Value], dtype: DType, elements: u32) -> Value {
        let words = b.push(Type::vector(Scalar::I32, registers.len() as u8), Inst::Vector(registers.to_vec()));
        b.bitcast(words, Type::vector(scalar_of(dtype), elements as u8))
    }

    /// The results with the sums of a segment, scaled, its zeros taken off where decoding has not.
    fn scaled(&self, b: &mut Builder, group: &Group, segment: Pos, sums: &[Value], results: Vec<Value>) -> Vec<Value> {
        let integers = self.shape.acc == DType::I32;
        let offset = self.fragments.offset();
        let corrects = integers && (offset != 0 || group.zeros.is_some());
        let column = segment.times(b, self.op.segment());
        let factors: Vec<_> = self
            .rows
            .iter()
            .map(|(_, rows)| {
                [0, 1].map(|row| {
                    let sum = corrects.then(|| rows.sum(b, row, segment));
                    (rows.group_scale(b, row, column), sum)
                })
            })
            .collect();
        let mut list = Vec::with_capacity(results.len());
        for (i, (&sum, &result)) in sums.iter().zip(&results).enumerate() {
            let (tile, token) = (i / self.rows.len(), i % self.rows.len());
            let parts: Vec<Value> = (0..4u8)
                .map(|element| {
                    let (half, parity) = (element / 2, (element % 2) as usize);
                    let (scale_x, sum_x) = factors[token][parity];
                    let mut number = b.extract(sum, element);
                    if let Some(sum_x) = sum_x {
                        let fixed = b.int(Scalar::I32, offset as i64);
                        let taken = match &group.zeros {
                            Some(zeros) => {
                                let zero = b.extract(zeros[tile], half);
                                b.add(zero, fixed)
                            }
                            None => fixed,
                        };
                        let taken = b.mul(taken, sum_x);
                        number = b.bin(BinOp::Sub, number, taken);
                    }
                    if integers {
                        number = b.cast(CastOp::IntToFloatS, number, Scalar::F32);
                    }
                    let scale = b.extract(group.scales[tile], half);
                    let factor = scale_x.map_or(scale, |x| b.mul(scale, x));
                    let old = b.extract(result, element);
                    b.fma(number, factor, old)
                })
                .collect();
            list.push(b.vector(&parts));
        }
        list
    }
}
