//! The walk of a subgroup over its steps of K, and how the sums of subgroups become results.
//!
//! Always holds: partial results meet in a fixed order, so a launch gives the same bits every time.

use super::stages::{Find, Ring};
use crate::caps::{Caps, Feature};
use crate::ir::{Asynchronous, BinOp, Builder, CmpOp, Memory, Scalar, Value};
use crate::lower::matmul::products::{Products, fragment};
use crate::lower::memory::at;
use crate::lower::team::Team;
use crate::lower::walk::Pos;

/// The walk of a subgroup over its steps of a tile.
pub(super) struct Walk<'a> {
    pub products: Products<'a>,
    pub ring: &'a Ring,
    pub team: &'a Team,
    pub x: Memory,
    /// For each tile of 8 rows of X: the byte of this lane's first number, `i64`.
    pub columns: &'a [Value],
}

/// Makes a ring ready and starts to fetch a subgroup's first steps, those from `index` (`i64`) on; then waits for the launches
/// that this one depends on. Gives the stage that is read first, that which is written next, and the parity of the first.
pub(super) fn begin(b: &mut Builder, ring: &Ring, find: &Find<'_, '_>, index: Value, caps: &Caps) -> [Value; 3] {
    ring.prepare(b);
    let ahead = ring.stages - 1;
    for stage in 0..ahead {
        let step = b.bin_imm(BinOp::Add, index, (stage * ring.split) as i64);
        let stage = b.int(Scalar::I32, stage as i64);
        ring.fetch(b, find, step, stage);
    }
    if caps.features.has(Feature::GridDependency) {
        b.asynchronous(Asynchronous::AwaitDependencies);
    }
    [b.int(Scalar::I32, 0), b.int(Scalar::I32, ahead as i64), b.int(Scalar::I32, 0)]
}

impl Walk<'_> {
    /// Results `[tile][rows of X]`, the same in every subgroup, where all steps are of one tile.
    pub fn run(&self, b: &mut Builder, caps: &Caps) -> Vec<Value> {
        let find = |_: &mut Builder, step: Value| (*self.products.fragments, step);
        let index = self.team.split(b).index;
        let stages = begin(b, self.ring, &find, index, caps);
        let end = self.ring.steps as i64;
        let (_, sums) = self.steps(b, (index, |b: &mut Builder| b.int(Scalar::I64, end)), stages, None, &find);
        let sums = self.team.combine(b, BinOp::Add, &sums);
        self.results(b, sums)
    }

    /// The sums of this subgroup over its steps from one to an end, and the stages behind them; `first` is the tile's first
    /// step, 0 where there is none.
    pub fn steps(
        &self,
        b: &mut Builder,
        (index, end): (Value, impl FnOnce(&mut Builder) -> Value),
        stages: [Value; 3],
        first: Option<Value>,
        find: &Find<'_, '_>,
    ) -> ([Value; 3], Vec<Value>) {
        let (products, ring) = (&self.products, self.ring);
        let ahead = ring.stages - 1;
        let goes_on = self.goes_on();
        let mut state = stages.to_vec();
        let kept = state.len();
        let nothing = if goes_on { self.no_sums(b) } else { products.zeros(b) };
        state.extend(nothing);
        let end = end(b);
        let state = b.for_loop(index, end, ring.split as i64, &state, |b, step, state| {
            let (read, write, parity) = (state[0], state[1], state[2]);
            if ring.barriers.is_some() {
                // Every lane has read the stage that is written next.
                b.asynchronous(Asynchronous::SubgroupBarrier);
            }
            let later = b.bin_imm(BinOp::Add, step, (ahead * ring.split) as i64);
            ring.fetch(b, find, later, write);
            let words = ring.words(b, read, parity);
            let step = first.map_or(step, |first| b.bin(BinOp::Sub, step, first));
            let step = Pos::of(step);
            let values = self.step(b, step, &words, goes_on, state[kept..].to_vec());
            let (next_read, wrapped) = self.after(b, read);
            let (next_write, _) = self.after(b, write);
            let flipped = b.bin_imm(BinOp::Xor, parity, 1);
            let parity = b.select(wrapped, flipped, parity);
            [next_read, next_write, parity].into_iter().chain(values).collect()
        });
        ([state[0], state[1], state[2]], state[kept..].to_vec())
    }

    /// Whether all of K is one segment of several strips: then its sums go on and are scaled at the end.
    fn goes_on(&self) -> bool {
        self.products.cut.segment >= self.products.op.k && self.products.cut.per > 1
    }

    /// The results of a tile's sums.
    pub fn results(&self, b: &mut Builder, values: Vec<Value>) -> Vec<Value> {
        if !self.goes_on() {
            return values;
        }
        let products = &self.products;
        let group = products.group(b, Pos::fixed(0));
        let results = products.zeros(b);
        let sum = |b: &mut Builder, tile: usize, token: usize, element| {
            b.extract(values[tile * products.rows.len() + token], element)
        };
        products.scaled(b, (&group, Pos::fixed(0)), &sum, &results)
    }

    /// Sums of nothing, `[tile][rows of X]`.
    fn no_sums(&self, b: &mut Builder) -> Vec<Value> {
        self.products.no_sums(b, 4, self.products.summed_tiles() * self.products.rows.len())
    }

    /// The stage after one, and whether that is the first again.
    fn after(&self, b: &mut Builder, stage: Value) -> (Value, Value) {
        let next = b.bin_imm(BinOp::Add, stage, 1);
        let end = b.int(Scalar::I32, self.ring.stages as i64);
        let zero = b.int(Scalar::I32, 0);
        let wrapped = b.cmp(CmpOp::Eq, next, end);
        (b.select(wrapped, zero, next), wrapped)
    }

    /// The sums or results after a step.
    fn step(
        &self,
        b: &mut Builder,
        step: Pos,
        words: &[Vec<Vec<Value>>],
        goes_on: bool,
        mut values: Vec<Value>,
    ) -> Vec<Value> {
        let products = &self.products;
        let tokens = products.rows.len();
        let block = step.times(b, self.ring.strips);
        let steps = products.cut.block / products.shape.k as usize;
        let column = block.times(b, products.cut.block);
        // All loads come first, so that they are under way together.
        let x: Vec<Vec<Value>> =
            (0..self.ring.strips * steps).map(|step| self.fragments_of_x(b, column, step)).collect();
        let ones = products.sums_activations().then(|| products.ones(b));
        let multiply = |b: &mut Builder, a: &[Vec<Value>], first: usize, mut sums: Vec<Value>| {
            let ones = ones.map(|ones| vec![ones; a[0].len()]);
            for (tile, a) in a.iter().chain(&ones).enumerate() {
                for (step, &a) in a.iter().enumerate() {
                    for (token, &x) in x[first + step].iter().enumerate() {
                        let sum = &mut sums[tile * tokens + token];
                        *sum = b.mma(products.shape, a, x, *sum);
                    }
                }
            }
            sums
        };
        let mut open = if goes_on { values.clone() } else { self.no_sums(b) };
        for (strip, words) in words.iter().enumerate() {
            for part in products.parts(b, block.plus(strip), std::slice::from_ref(words)) {
                let sums = multiply(b, &part.a, strip * steps + part.first_step, open);
                if goes_on {
                    return sums;
                }
                // Integers wait for the last strip of their segment, and so may floats.
                if products.cut.per > 1 && strip + 1 < self.ring.strips {
                    open = sums;
                    continue;
                }
                let sum = |b: &mut Builder, tile: usize, token: usize, element| {
                    b.extract(sums[tile * tokens + token], element)
                };
                values = products.scaled(b, (&part.group, part.segment), &sum, &values);
                open = self.no_sums(b);
            }
        }
        values
    }

    /// Operand B for one step of k, for each tile of 8 rows: this lane's numbers in two places half a step apart.
    fn fragments_of_x(&self, b: &mut Builder, column: Pos, step: usize) -> Vec<Value> {
        let shape = self.products.shape;
        let (size, k) = (shape.b.bits() as usize / 8, shape.k as usize);
        let start = column.plus(step * k).times(b, size);
        let mut list = Vec::new();
        for &base in self.columns {
            let start = start.add(b, Pos::of(base));
            let registers =
                [0, k / 2].map(|half| b.load(Scalar::I32, at(self.x, start.index, start.fixed + half * size), 4));
            list.push(fragment(b, &registers, shape.b, shape.b_elements()));
        }
        list
    }
}
