//! The walk of four subgroups over K: what they wait for, fetch, decode and begin to multiply.

use super::columns;
use super::stages::{Copier, Pos32, Stages};
use crate::caps::MmaShape;
use crate::dtype::DType;
use crate::ir::{Asynchronous, BinOp, Builder, CmpOp, Factor, Scalar, Type, Value};
use crate::lower::matmul::dense::decode::scaled;
use crate::lower::matmul::products::fragment;
use crate::lower::memory::scalar_of;
use crate::lower::unpack::fragments::{Fragments, Group};
use crate::lower::walk::{Pos, repeat};

/// The walk over K, and what it needs.
pub(super) struct Walk<'a> {
    pub shape: &'static MmaShape,
    pub stages: &'a Stages,
    pub copier: &'a Copier,
    /// One for each tile of 64 rows of W.
    pub fragments: &'a [Fragments<'a>],
}

/// What scales the weights of a tile in a run of columns.
#[derive(Clone)]
struct Scaling {
    /// Scales as they are stored, for rows g and g + 8, where a product with them in the type of X is all that there is to do.
    stored: Option<Value>,
    group: Group,
}

impl Scaling {
    fn values(&self) -> Vec<Value> {
        self.stored.into_iter().chain(self.group.values()).collect()
    }

    fn with(&self, values: &[Value]) -> Scaling {
        let (stored, rest) = values.split_at(usize::from(self.stored.is_some()));
        Scaling { stored: stored.first().copied(), group: self.group.with(rest) }
    }
}

impl Walk<'_> {
    /// The sums over the blocks of this workgroup, `count` from block `first` (`i64`) on: a vector for each tile.
    pub fn run(&self, b: &mut Builder, (first, count): (Option<Value>, usize)) -> Vec<Value> {
        let stages = self.stages;
        let ahead = stages.count - 2;
        let from = first.map_or(Pos::fixed(0), Pos::of);
        for stage in 0..ahead {
            if stage < count {
                let place = Pos32 { index: None, fixed: stage * stages.bytes() };
                self.copier.start(b, stages, self.fragments, from.plus(stage), place);
            }
            b.async_commit();
        }
        let nothing = self.nothing(b);
        let read = b.int(Scalar::I32, 0);
        let write = b.int(Scalar::I32, (ahead * stages.bytes()) as i64);
        let like = self.scaling(b, from);
        let changes = self.fragments[0].layout.groups > 1;
        let carried = if changes { like.iter().flat_map(Scaling::values).collect() } else { Vec::new() };
        let tiles = self.fragments.len();
        let sums = vec![nothing; tiles];
        let state: Vec<Value> = [read, write].into_iter().chain(sums).chain(carried).collect();
        let state = repeat(b, count, 1, state, |b, turn, state| {
            let (read, write) = (state[0], state[1]);
            let mut sums = state[2..2 + tiles].to_vec();
            self.fetch(b, turn, (from, count), write);
            let scaling = if changes { given(&like, &state[2 + tiles..]) } else { like.clone() };
            let next = changes.then(|| {
                let next = from.add(b, turn);
                let next = self.after(b, next);
                self.scaling(b, next)
            });
            for unit in 0..stages.units {
                for (tile, sum) in sums.iter_mut().enumerate() {
                    *sum = self.multiply(b, (tile, unit), read, &scaling, *sum);
                }
            }
            let next = next.iter().flatten().flat_map(Scaling::values);
            [stages.next(b, read), stages.next(b, write)].into_iter().chain(sums).chain(next).collect()
        });
        b.asynchronous(Asynchronous::MmaWait(0));
        state[2..2 + tiles].to_vec()
    }

    /// Sums of nothing.
    fn nothing(&self, b: &mut Builder) -> Value {
        let lanes = (self.stages.rows / 2) as u8;
        match self.shape.acc {
            DType::I32 => b.int(Type::vector(Scalar::I32, lanes), 0),
            _ => b.f32(lanes, 0.0),
        }
    }

    /// The sums of a tile after a unit, which may be under way.
    fn multiply(
        &self,
        b: &mut Builder,
        (tile, unit): (usize, usize),
        stage: Value,
        scaling: &[Scaling],
        sums: Value,
    ) -> Value {
        let (strip, wide) = (self.fragments[tile].columns(), columns(self.shape));
        let strips = unit * wide / strip..((unit + 1) * wide).div_ceil(strip);
        let words = |b: &mut Builder| self.copier.words(b, self.stages, stage, (tile, strips.clone()));
        let (shape, rows) = (self.shape, self.stages.rows as u32);
        let panel = self.stages.panel(stage, unit);
        if shape.acc == DType::F32 && shape.b.bits() == 8 {
            // Matrix units sum 8-bit floats with fewer bits than `f32` has. The other four subgroups multiply meanwhile.
            let words = words(b);
            let a = self.decoded(b, (tile, unit), &words, scaling);
            let nothing = self.nothing(b);
            let sum = b.begin_warpgroup_mma(shape, rows, Factor::Fragments(a), panel, nothing);
            b.asynchronous(Asynchronous::MmaWait(0));
            return b.add(sums, sum);
        }
        // The product before may go on; the one before that has read the registers that are written now. Bytes are operands
        // as they are read, other words are decoded to registers of their own and may be read before the wait.
        let early = if shape.a.bits() > 8 { Some(words(b)) } else { None };
        b.asynchronous(Asynchronous::MmaWait(1));
        let words = match early {
            Some(words) => words,
            None => words(b),
        };
        let a = self.decoded(b, (tile, unit), &words, scaling);
        b.begin_warpgroup_mma(shape, rows, Factor::Fragments(a), panel, sums)
    }

    /// Waits for the stage of a turn of so many from a block on, and starts the copies of a later one.
    fn fetch(&self, b: &mut Builder, turn: Pos, (from, count): (Pos, usize), write: Value) {
        let stages = self.stages;
        let ahead = stages.count - 2;
        b.async_wait(ahead as u8 - 1);
        b.asynchronous(Asynchronous::Fence);
        b.barrier();
        // Behind the barrier all products have ended but those of the block before.
        let later = turn.plus(ahead);
        let place = Pos32 { index: Some(write), fixed: 0 };
        let start = |b: &mut Builder| {
            let block = from.add(b, later);
            self.copier.start(b, stages, self.fragments, block, place);
        };
        match later.index {
            None if later.fixed >= count => {}
            None => start(b),
            Some(index) => {
                let end = b.int(Scalar::I64, count as i64 - later.fixed as i64);
                let more = b.cmp(CmpOp::LtS, index, end);
                b.if_then(more, start);
            }
        }
        b.async_commit();
    }

    /// The block after one, or the last one.
    fn after(&self, b: &mut Builder, block: Pos) -> Pos {
        let last = self.stages.blocks - 1;
        match block.index {
            None => Pos::fixed((block.fixed + 1).min(last)),
            Some(index) => {
                let next = b.bin_imm(BinOp::Add, index, block.fixed as i64 + 1);
                let last = b.int(Scalar::I64, last as i64);
                Pos::of(b.bin(BinOp::MinS, next, last))
            }
        }
    }

    /// Runs of columns with one scale in a block.
    fn parts(&self) -> usize {
        let layout = self.fragments[0].layout;
        if layout.groups == 1 { 1 } else { (self.stages.block / layout.group).max(1) }
    }

    /// What scales the weights of a block, `[tile][part]`.
    fn scaling(&self, b: &mut Builder, block: Pos) -> Vec<Scaling> {
        let mut list = Vec::new();
        for fragments in self.fragments {
            let layout = fragments.layout;
            for part in 0..self.parts() {
                let column = block.times(b, self.stages.block).plus(part * layout.group);
                let group = if layout.groups == 1 { Pos::fixed(0) } else { column.divide(b, layout.group) };
                let found = fragments.group(b, group);
                let plain = self.shape.a == DType::F16 && found.offsets.is_none();
                let stored = if plain { fragments.stored_scales(b, group, 0) } else { None };
                let group = if stored.is_some() { found.without_scales() } else { found };
                list.push(Scaling { stored, group });
            }
        }
        list
    }

    /// Operand A of a unit, from the words of its strips: a fragment for each step.
    fn decoded(
        &self,
        b: &mut Builder,
        (tile, unit): (usize, usize),
        words: &[Vec<Value>],
        scaling: &[Scaling],
    ) -> Vec<Value> {
        let fragments = &self.fragments[tile];
        let (strip, k, wide) = (fragments.columns(), self.shape.k as usize, columns(self.shape));
        let (parts, element) = (self.parts(), self.shape.a);
        let (first, end) = (unit * wide, (unit + 1) * wide);
        let length = self.stages.block / parts;
        let mut list = Vec::new();
        for part in first / length..end.div_ceil(length) {
            let scaling = &scaling[tile * parts + part];
            let biases = fragments.biases(b, element, &scaling.group, 0);
            let (from, to) = (first.max(part * length), end.min((part + 1) * length));
            for number in from / strip..to.div_ceil(strip) {
                let decoded = fragments.steps(b, &words[number - first / strip], element, &biases);
                for (step, registers) in decoded.iter().enumerate() {
                    if (from..to).contains(&(number * strip + step * k)) {
                        let codes = fragment(b, registers, element, self.shape.a_elements());
                        list.push(self.operand(b, scaling, codes));
                    }
                }
            }
        }
        list
    }

    /// A fragment of codes as the product takes it.
    fn operand(&self, b: &mut Builder, scaling: &Scaling, codes: Value) -> Value {
        if self.shape.b.bits() == 8 {
            // Scaled behind the loop.
            return codes;
        }
        match scaling.stored {
            // A product of two numbers of 11 bits, rounded once: the same as by way of `f32`.
            Some(scales) => {
                let scales = b.swizzle(scales, scales, &[0, 0, 1, 1, 0, 0, 1, 1]);
                b.mul(codes, scales)
            }
            None => scaled(b, &scaling.group, codes, scalar_of(self.shape.a)),
        }
    }
}

/// What scales, from values in a row.
fn given(like: &[Scaling], mut values: &[Value]) -> Vec<Scaling> {
    let mut list = Vec::new();
    for like in like {
        let (own, rest) = values.split_at(like.values().len());
        list.push(like.with(own));
        values = rest;
    }
    list
}
