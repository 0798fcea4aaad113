//! The walk of a workgroup over K: what it waits for, fetches and multiplies from block to block.
//!
//! Always holds: a stage is written again only behind a barrier that everybody passed after reading it.

use super::stages::{Copier, Stages};
use crate::ir::{Asynchronous, BinOp, Builder, CmpOp, Factor, Panel, Scalar, Type, Value};
use crate::lower::matmul::dense::STEP;
use crate::lower::matmul::products::{Products, fragment, words_of};
use crate::lower::memory::at;
use crate::lower::memory::scalar_of;
use crate::lower::walk::{Pos, repeat};

/// Who multiplies.
pub(super) enum Engine {
    /// Four subgroups together, X from shared memory.
    Warpgroup,
    /// Each subgroup, X from lanes: the byte of this lane's first number in 8 rows of a piece, `i32`.
    Subgroup(Value),
}

impl Engine {
    /// Lanes of a vector of sums, and how many there are.
    fn sums(&self, products: &Products<'_>) -> (u8, usize) {
        match self {
            Engine::Warpgroup => (4 * products.rows.len() as u8, products.summed_tiles()),
            Engine::Subgroup(_) => (4, products.summed_tiles() * products.rows.len()),
        }
    }

    /// The sums after the steps of a part.
    fn multiply(
        &self,
        b: &mut Builder,
        products: &Products<'_>,
        stages: &Stages,
        (stage, first_step): (Value, usize),
        a: &[Vec<Value>],
        mut sums: Vec<Value>,
    ) -> Vec<Value> {
        let (shape, piece) = (products.shape, stages.rows * 16);
        let start = 2 * first_step * piece;
        let ones = products.sums_activations().then(|| products.ones(b));
        match self {
            Engine::Warpgroup => {
                let address = at(stages.shared, Some(stage), start);
                let panel = Panel { address, leading: piece as u32, stride: 128, swizzled: false };
                let ones = ones.map(|ones| vec![ones; a[0].len()]);
                let multiply = |(a, &sum): (&Vec<Value>, &Value)| {
                    b.warpgroup_mma(shape, stages.rows as u32, Factor::Fragments(a.clone()), panel, sum)
                };
                a[..1].iter().chain(&ones).zip(&sums).map(multiply).collect()
            }
            Engine::Subgroup(mine) => {
                let place = b.add(stage, *mine);
                for step in 0..a[0].len() {
                    for token in 0..products.rows.len() {
                        let registers = [0, 1].map(|half| {
                            let fixed = start + (2 * step + half) * piece + 128 * token;
                            b.load(Scalar::I32, at(stages.shared, Some(place), fixed), 4)
                        });
                        let x = fragment(b, &registers, shape.b, shape.b_elements());
                        for (tile, a) in a.iter().map(|a| a[step]).chain(ones).enumerate() {
                            let sum = &mut sums[tile * products.rows.len() + token];
                            *sum = b.mma(shape, a, x, *sum);
                        }
                    }
                }
                sums
            }
        }
    }

    /// An element of the sums of a tile and 8 rows of X.
    fn sum(&self, b: &mut Builder, products: &Products<'_>, sums: &[Value], place: (usize, usize, u8)) -> Value {
        let (tile, token, element) = place;
        match self {
            Engine::Warpgroup => b.extract(sums[tile], 4 * token as u8 + element),
            Engine::Subgroup(_) => b.extract(sums[tile * products.rows.len() + token], element),
        }
    }
}

/// The walk over K, and what it needs.
pub(super) struct Walk<'a> {
    pub products: Products<'a>,
    pub stages: &'a Stages,
    pub copier: &'a Copier,
    pub engine: &'a Engine,
}

/// What blocks hand on to each other.
struct Kept {
    /// Byte of the stage to read, and of the one to write, `i32`.
    read: Value,
    write: Value,
    /// The words of the block in one list: `[strip][tile][chunk]`, or `[tile][step]` where they lie ready.
    words: Vec<Value>,
}

impl Kept {
    fn split(state: &[Value], words: usize) -> (Kept, Vec<Value>) {
        let (words, more) = state[2..].split_at(words);
        (Kept { read: state[0], write: state[1], words: words.to_vec() }, more.to_vec())
    }

    fn joined(self, more: Vec<Value>) -> Vec<Value> {
        [self.read, self.write].into_iter().chain(self.words).chain(more).collect()
    }
}

impl Walk<'_> {
    /// The results over all of K.
    pub fn run(&self, b: &mut Builder) -> Vec<Value> {
        let (products, stages) = (&self.products, self.stages);
        let ahead = stages.count - 1;
        for stage in 0..ahead {
            if stage < stages.blocks {
                self.copier.start(b, stages, Pos::fixed(stage), None, stage * stages.bytes());
            }
            b.async_commit();
        }
        let read = b.int(Scalar::I32, 0);
        let write = b.int(Scalar::I32, (ahead * stages.bytes()) as i64);
        let words = self.words(b, Pos::fixed(0));
        let count = words.len();
        if products.ready.is_some() {
            return self.ready(b, Kept { read, write, words });
        }
        let zeros = products.zeros(b);
        let state = Kept { read, write, words }.joined(zeros);
        let per = products.cut.per;
        let state = repeat(b, stages.blocks / per, 1, state, |b, turn, state| {
            let (kept, results) = Kept::split(&state, count);
            let first = turn.times(b, per);
            if per == 1 { self.whole(b, first, kept, results) } else { self.summed(b, turn, kept, results) }
        });
        Kept::split(&state, count).1
    }

    /// The results over all of K where nothing is decoded or scaled.
    fn ready(&self, b: &mut Builder, kept: Kept) -> Vec<Value> {
        let products = &self.products;
        let count = kept.words.len();
        let (lanes, sums) = self.engine.sums(products);
        let nothing = products.no_sums(b, lanes, sums);
        let ty = Type::vector(scalar_of(products.shape.a), products.shape.a_elements() as u8);
        let state = repeat(b, self.stages.blocks, 1, kept.joined(nothing), |b, block, state| {
            let (kept, sums) = Kept::split(&state, count);
            let (words, next) = self.advance(b, block, &kept);
            let a: Vec<Vec<Value>> = words
                .chunks(count / products.fragments.blocks)
                .map(|steps| steps.iter().map(|&words| b.bitcast(words, ty)).collect())
                .collect();
            let sums = self.engine.multiply(b, products, self.stages, (kept.read, 0), &a, sums);
            next.joined(sums)
        });
        let (_, sums) = Kept::split(&state, count);
        let tokens = products.rows.len();
        (0..products.count())
            .map(|i| {
                let parts =
                    [0, 1, 2, 3].map(|element| self.engine.sum(b, products, &sums, (i / tokens, i % tokens, element)));
                b.vector(&parts)
            })
            .collect()
    }

    /// A block that holds whole groups, or whose sums are scaled though its group goes on.
    fn whole(&self, b: &mut Builder, block: Pos, kept: Kept, mut results: Vec<Value>) -> Vec<Value> {
        let products = &self.products;
        let (words, next) = self.advance(b, block, &kept);
        let words = self.by_tile(&words);
        let (lanes, count) = self.engine.sums(products);
        for part in products.parts(b, block, &words) {
            let sums = products.no_sums(b, lanes, count);
            let sums = self.engine.multiply(b, products, self.stages, (kept.read, part.first_step), &part.a, sums);
            let sum =
                |b: &mut Builder, tile, token, element| self.engine.sum(b, products, &sums, (tile, token, element));
            results = products.scaled(b, (&part.group, part.segment), &sum, &results);
        }
        next.joined(results)
    }

    /// A segment of several blocks, whose sums are scaled at its end.
    fn summed(&self, b: &mut Builder, segment: Pos, kept: Kept, results: Vec<Value>) -> Vec<Value> {
        let products = &self.products;
        let first = segment.times(b, products.cut.per);
        let held = kept.words.len();
        let (lanes, count) = self.engine.sums(products);
        let nothing = products.no_sums(b, lanes, count);
        let state = repeat(b, products.cut.per, 1, kept.joined(nothing), |b, turn, state| {
            let (kept, sums) = Kept::split(&state, held);
            let block = first.add(b, turn);
            let (words, next) = self.advance(b, block, &kept);
            let words = self.by_tile(&words);
            let part = products.parts(b, block, &words).swap_remove(0);
            let sums = self.engine.multiply(b, products, self.stages, (kept.read, 0), &part.a, sums);
            next.joined(sums)
        });
        let (kept, sums) = Kept::split(&state, held);
        let column = first.times(b, products.cut.block);
        let group = products.group(b, column);
        let sum = |b: &mut Builder, tile, token, element| self.engine.sum(b, products, &sums, (tile, token, element));
        let results = products.scaled(b, (&group, segment), &sum, &results);
        kept.joined(results)
    }

    fn words(&self, b: &mut Builder, block: Pos) -> Vec<Value> {
        let fragments = self.products.fragments;
        if let Some(ready) = &self.products.ready {
            return ready.words(b, block, self.products.cut.block / STEP, fragments.blocks);
        }
        let strips = self.products.strips();
        let first = block.times(b, strips);
        words_of(b, fragments, first, strips).into_iter().flatten().flatten().collect()
    }

    /// Words that were kept in one list, `[strip][tile][chunk]`.
    fn by_tile(&self, words: &[Value]) -> Vec<Vec<Vec<Value>>> {
        let (tiles, chunks) = (self.products.fragments.blocks, self.products.fragments.chunks().len());
        let strip = |words: &[Value]| words.chunks(chunks).map(<[Value]>::to_vec).collect();
        words.chunks(tiles * chunks).map(strip).collect()
    }

    /// Waits for the stage of a block, starts the copies of a later block and the reads of the next one's words. Gives this
    /// block's words and what the next one finds.
    fn advance(&self, b: &mut Builder, block: Pos, kept: &Kept) -> (Vec<Value>, Kept) {
        let stages = self.stages;
        let ahead = stages.count - 1;
        b.async_wait(ahead as u8 - 1);
        if matches!(self.engine, Engine::Warpgroup) {
            b.asynchronous(Asynchronous::Fence);
        }
        b.barrier();
        // Behind the barrier nobody reads the stage of the block before any more.
        let later = block.plus(ahead);
        let start = |b: &mut Builder| self.copier.start(b, stages, later, Some(kept.write), 0);
        match later.index {
            None if later.fixed >= stages.blocks => {}
            None => start(b),
            Some(index) => {
                let end = b.int(Scalar::I64, stages.blocks as i64 - later.fixed as i64);
                let more = b.cmp(CmpOp::LtS, index, end);
                b.if_then(more, start);
            }
        }
        b.async_commit();
        let next = match block.index {
            None => Pos::fixed((block.fixed + 1).min(stages.blocks - 1)),
            Some(index) => {
                let next = b.bin_imm(BinOp::Add, index, block.fixed as i64 + 1);
                let last = b.int(Scalar::I64, stages.blocks as i64 - 1);
                Pos::of(b.bin(BinOp::MinS, next, last))
            }
        };
        let next = self.words(b, next);
        (kept.words.clone(), Kept { read: stages.next(b, kept.read), write: stages.next(b, kept.write), words: next })
    }
}
