//! Family `decode`: a whole weight matrix in numbers, row-major.
//!
//! A workgroup makes `tile_n` rows. Where it is one thread, vector lanes are rows of W, and rows of the result are contiguous
//! along K, so each square of numbers is turned before it is stored. Where it is many, each thread takes one row and some
//! of its columns.

use super::Implementation;
use super::memory::{Params, Role, alignment, at, byte_index, scalar_of};
use super::space::Axis;
use super::team::Team;
use super::unpack::Weights;
use super::walk::{Pos, Split, Step, Visit, Walk};
use crate::caps::{Caps, Feature};
use crate::error::{Error, Result};
use crate::format::n16::{N16, ROWS};
use crate::ir::{BinOp, Builder, Builtin, CastOp, CmpOp, Kernel, Memory, Scalar, Value};
use crate::op::{Dequant, Op};
use crate::schedule::{Family, Knob, Schedule};

pub(super) const DECODE: Implementation = Implementation {
    family: Family::Decode,
    summary: "dequantization: decodes rows of weights and stores them row-major",
    refuses,
    axes: &[
        Axis::new(Knob::TileN, &[4, 8, 16, 32]),
        Axis::new(Knob::Unroll, &[1, 2, 4, 8]),
        Axis::new(Knob::Threads, &[1, 128, 256, 512]),
        Axis::new(Knob::Split, &[1, 8, 16, 32]),
    ],
    estimate: None,
    space,
    build,
};

fn refuses(op: &Op, _caps: &Caps) -> Option<String> {
    let Op::Dequant(op) = op else { return Some("decodes weights only".into()) };
    N16::of(&op.weight, op.k).err().map(|error| error.to_string())
}

fn space(_op: &Op, caps: &Caps, _m: usize) -> Vec<Schedule> {
    if caps.features.has(Feature::Workgroups) {
        return [(16, 1), (8, 1), (16, 2)]
            .map(|(split, unroll)| {
                Schedule::single(Family::Decode, 1, ROWS as u32, unroll).with_threads(ROWS as u32 * split, split)
            })
            .into_iter()
            .filter(|schedule| schedule.threads <= caps.max_workgroup)
            .collect();
    }
    let lanes = (caps.vector_bytes / 4).min(16);
    [1, 2, 4].map(|unroll| Schedule::single(Family::Decode, 1, lanes, unroll)).to_vec()
}

fn build(op: &Op, schedule: &Schedule, caps: &Caps) -> Result<Kernel> {
    let Op::Dequant(dequant) = op else { return Err(Error::Unsupported(format!("{} in family decode", op.name()))) };
    let layout = N16::of(&dequant.weight, dequant.k)?;
    let many = caps.features.has(Feature::Workgroups);
    let rows = if many { ROWS as u32 } else { (caps.vector_bytes / 4).min(16) };
    let Schedule { tile_n, unroll, threads, split, .. } = *schedule;
    let sound = threads == if many { rows * split } else { 1 } && threads <= caps.max_workgroup;
    if tile_n != rows || !(1..=64).contains(&unroll) || !split.is_power_of_two() || split > 1 << 10 || !sound {
        return Err(Error::invalid(format!(
            "family decode: tile_n is {tile_n}, unroll {unroll}, threads {threads}, split {split}; accepted: tile_n {rows}, \
             unroll 1 to 64, {}",
            if many { "split a power of two, threads tile_n times split" } else { "threads 1" }
        )));
    }
    let clean = dequant.weight.to_string().replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    let mut name = format!("dequant_n{}_k{}_{clean}_{}_u{unroll}", dequant.n, dequant.k, dequant.out.name());
    if many {
        name.push_str(&format!("t{threads}s{split}"));
    }
    let mut b = Builder::new(&name);
    let params = Params::declare(&mut b, op, caps)?;
    let tile = b.builtin(Builtin::WorkgroupId(1));
    let start = b.bin_imm(BinOp::Mul, tile, tile_n as i64);
    let start = b.cast(CastOp::ExtendS, start, Scalar::I64);
    let walk = Walk::new(&layout, layout.group.min(dequant.k), unroll as usize)?;
    let memory = params.get(Role::Weights);
    let emit = |b: &mut Builder, start: Value, weights: &Weights<'_>, share: Option<&Split>| {
        let (output, group) = (params.get(Role::Output), walk.segment);
        let align = store_align(dequant, group, params.align);
        let mut turn = Turn { op: dequant, weights, output, start, group, align };
        match share {
            Some(share) => walk.emit_split(b, &mut turn, share, Vec::new()),
            None => walk.emit(b, &mut turn, Vec::new()),
        };
    };
    if many {
        let team = Team::apart(&mut b, tile_n, split);
        let row = b.add(start, team.row);
        let share = team.split(&mut b);
        let end = b.int(Scalar::I64, dequant.n as i64);
        let inside = b.cmp(CmpOp::LtS, row, end);
        b.if_then(inside, |b| emit(b, row, &Weights::few(&layout, memory, row, 1, caps), Some(&share)));
    } else {
        let weights = Weights::new(&layout, memory, start, dequant.n, tile_n as usize, caps);
        emit(&mut b, start, &weights, None);
    }
    Ok(b.finish())
}

/// What the place of any quad of a result is a multiple of.
fn store_align(op: &Dequant, group: usize, buffer: u32) -> u32 {
    let size = scalar_of(op.out).bytes() as usize;
    let group = if group < op.k { group * size } else { 0 };
    alignment(&[op.k * size, group, 4 * size, buffer as usize]).max(size as u32)
}

/// Decodes a quad of columns for a vector of rows, and stores it row by row.
struct Turn<'a> {
    op: &'a Dequant,
    weights: &'a Weights<'a>,
    output: Memory,
    start: Value,
    group: usize,
    /// What places of four numbers are multiples of.
    align: u32,
}

impl Visit for Turn<'_> {
    fn begin(&mut self, b: &mut Builder, segment: Pos) -> Vec<Value> {
        let column = segment.times(b, self.group);
        let group = column.divide(b, self.weights.layout.group);
        self.weights.group(b, group, 0)
    }

    fn step(&mut self, b: &mut Builder, _segment: Pos, step: &Step, state: Vec<Value>) -> Vec<Value> {
        for (i, &valid) in step.quads.iter().enumerate() {
            let words = self.weights.words(b, step.unit, step.first + i, 0);
            let columns: Vec<Value> = (0..valid)
                .map(|byte| {
                    let code = self.weights.floats(b, &words, byte);
                    self.weights.weight(b, code, &state)
                })
                .collect();
            self.store(b, &columns, step.column.plus(4 * i));
        }
        state
    }

    fn end(&mut self, _b: &mut Builder, _segment: Pos, _inner: Vec<Value>, outer: Vec<Value>) -> Vec<Value> {
        outer
    }
}

impl Turn<'_> {
    fn store(&self, b: &mut Builder, columns: &[Value], column: Pos) {
        let lanes = self.weights.lanes as usize;
        let out = scalar_of(self.op.out);
        let size = out.bytes() as usize;
        let square = match *columns {
            [c0, c1, c2, c3] if lanes == 4 => Some(turn_square(b, [c0, c1, c2, c3]).to_vec()),
            [_, _, _, _] if lanes == 1 => Some(vec![b.vector(columns)]),
            _ => None,
        };
        let place = byte_index(b, self.start, self.op.k * size);
        let column = column.times(b, size);
        let place = column.add(b, Pos::of(place));
        for lane in 0..lanes {
            let put = |b: &mut Builder, value: Value, at_column: usize| {
                let value = if out == Scalar::F32 { value } else { b.cast(CastOp::Float, value, out) };
                let address = at(self.output, place.index, place.fixed + (lane * self.op.k + at_column) * size);
                let align = if b.ty(value).lanes == 1 { size as u32 } else { self.align };
                b.store(address, align, value);
            };
            let write = |b: &mut Builder| match &square {
                Some(lines) => put(b, lines[lane], 0),
                None => {
                    for (i, &c) in columns.iter().enumerate() {
                        let number = b.extract(c, lane as u8);
                        put(b, number, i);
                    }
                }
            };
            if self.op.n.is_multiple_of(lanes) {
                write(b);
            } else {
                let row = b.bin_imm(BinOp::Add, self.start, lane as i64);
                let end = b.int(Scalar::I64, self.op.n as i64);
                let inside = b.cmp(CmpOp::LtS, row, end);
                b.if_then(inside, write);
            }
        }
    }
}

/// Four vectors of four: rows become columns.
fn turn_square(b: &mut Builder, c: [Value; 4]) -> [Value; 4] {
    let low01 = b.swizzle(c[0], c[1], &[0, 4, 1, 5]);
    let high01 = b.swizzle(c[0], c[1], &[2, 6, 3, 7]);
    let low23 = b.swizzle(c[2], c[3], &[0, 4, 1, 5]);
    let high23 = b.swizzle(c[2], c[3], &[2, 6, 3, 7]);
    [
        b.swizzle(low01, low23, &[0, 1, 4, 5]),
        b.swizzle(low01, low23, &[2, 3, 6, 7]),
        b.swizzle(high01, high23, &[0, 1, 4, 5]),
        b.swizzle(high01, high23, &[2, 3, 6, 7]),
    ]
}
