//! Family `ring`: few rows by matrix instructions, weights through rings of stages in shared memory.
//!
//! ```text
//! Yᵀ[n, m] = W[n, k] · Xᵀ[k, m]        A from QT16 through the ring, B straight from X
//! ring     [subgroup][stage][strip of the step][chunk of the strip][tile of 16 rows][lane][16 bytes]
//! ```
//!
//! A workgroup makes `tile_m` rows by `tile_n` columns of Y; its `split` subgroups take turns at steps of K. A step is a
//! whole group where groups are longer than a strip of the packing, else a strip. Each subgroup has a ring of its own and
//! keeps `unroll - 1` steps of weights under way while it works on one, so no barrier of the workgroup stands in the loop.
//! On devices with bulk copies one lane fetches a step and all wait for its barrier object; elsewhere each lane copies the 16
//! bytes that it will decode itself, and waits for its own copies alone. Weights do not depend on the launch before: the
//! first steps are fetched before this one waits for it. Partial results meet in shared memory in a fixed order.
//! Grid: x over tiles of rows, y over tiles of columns.

use super::products::{Cut, Products, cut, fragment, lanes_of, listed, rows_of};
use super::{Plan, as_matmul, entry};
use crate::caps::{Caps, Feature};
use crate::error::{Error, Result};
use crate::format::qt16::tile_columns;
use crate::ir::{Asynchronous, BinOp, Builder, Builtin, CastOp, CmpOp, Kernel, Memory, Scalar, Type, Value};
use crate::lower::Implementation;
use crate::lower::memory::{Packing, Params, Role, at, byte_index, times};
use crate::lower::team::Team;
use crate::lower::unpack::fragments::Fragments;
use crate::lower::walk::Pos;
use crate::op::Op;
use crate::schedule::{Family, Schedule};

pub(in crate::lower) const RING: Implementation = Implementation {
    family: Family::Ring,
    summary: "matmul of few rows by matrix instructions, weights through rings of shared memory",
    refuses,
    space,
    build,
};

/// Most strips of a step.
const LONGEST: usize = 4;
const TOKENS: [u32; 3] = [8, 16, 32];
const ROWS: [u32; 3] = [16, 32, 64];
const SPLITS: [u32; 4] = [1, 2, 4, 8];
const STAGES: [u32; 7] = [2, 3, 4, 5, 6, 7, 8];

/// How the ring cuts K (a block is one strip), and how many times 16 bytes a lane has of a tile of a strip.
fn ring_cut(op: &Op, caps: &Caps) -> Result<(Cut, usize), String> {
    let (cut, _, _, layout) = cut(op, caps, |_| 0, LONGEST)?;
    let chunks = layout.planes.iter().map(|&(width, _)| cut.block / tile_columns(width)).sum();
    let k = as_matmul(op).map_or(0, |op| op.k);
    if cut.segment < k && cut.per > LONGEST {
        return Err(format!("takes integer sums over {LONGEST} strips at most, not over {}", cut.per));
    }
    Ok((cut, chunks))
}

/// Strips of a step: where all of K is one segment, its sums go on from step to step.
fn strips_of(cut: &Cut, k: usize) -> usize {
    if cut.segment >= k { 1 } else { cut.per }
}

fn refuses(op: &Op, caps: &Caps) -> Option<String> {
    if !caps.features.has(Feature::AsyncCopy) {
        return Some(format!("has no asynchronous copies on {}", caps.name));
    }
    ring_cut(op, caps).err()
}

/// Tiles so small that every unit has work first; as many stages as let two workgroups share a unit.
fn space(op: &Op, caps: &Caps, m: usize) -> Vec<Schedule> {
    let (Ok((cut, chunks)), Ok(matmul)) = (ring_cut(op, caps), as_matmul(op)) else { return Vec::new() };
    let strips = strips_of(&cut, matmul.k);
    let steps = matmul.k / cut.block / strips;
    let tile_m = TOKENS.into_iter().find(|&tokens| tokens as usize >= m).unwrap_or(32);
    let units = caps.gpu.map_or(1, |gpu| gpu.units as usize);
    let most = caps.gpu.map_or(caps.max_shared_bytes, |gpu| gpu.shared_per_unit / 2 - 2048) as usize;
    let mut rows: Vec<u32> = ROWS.into_iter().filter(|&rows| tile_m * rows <= 1024).collect();
    // The largest tile that still gives every unit two workgroups, then the others. With more rows of X, which every
    // workgroup reads in full, larger tiles come first.
    let wanted = if tile_m == 8 { 2 * units } else { units * 3 / 4 };
    rows.sort_by_key(|&rows| {
        let workgroups = matmul.n.div_ceil(rows as usize) * m.div_ceil(tile_m as usize);
        (workgroups < wanted, if workgroups < wanted { rows } else { 64 - rows })
    });
    let mut list = Vec::new();
    for &tile_n in &rows {
        for split in [8, 4, 2, 1] {
            if split > 1 && steps < split as usize {
                continue;
            }
            for stages in [8, 6, 4, 3, 2] {
                let bytes =
                    (split * stages) as usize * strips * chunks * tile_n as usize * 32 + split as usize * 64 * 36;
                if bytes <= most.min(caps.max_shared_bytes as usize) {
                    list.push(
                        Schedule::single(Family::Ring, tile_m, tile_n, stages)
                            .with_threads(caps.subgroup * split, split),
                    );
                }
            }
        }
    }
    list
}

fn build(op: &Op, schedule: &Schedule, caps: &Caps) -> Result<Kernel> {
    let matmul = as_matmul(op)?;
    let Schedule { tile_m, tile_n, unroll, threads, split, .. } = *schedule;
    let faults = listed(
        schedule,
        &[
            ("tile_m", tile_m, &TOKENS),
            ("tile_n", tile_n, &ROWS),
            ("unroll", unroll, &STAGES),
            ("split", split, &SPLITS),
            ("threads", threads, &[split * caps.subgroup]),
        ],
    );
    if !faults.is_empty() {
        return Err(Error::Invalid(faults));
    }
    let (cut, class, shape, layout) = cut(op, caps, |_| 0, LONGEST).map_err(Error::Unsupported)?;
    let lanes = lanes_of(shape)?;
    let mut b = Builder::new(&entry(matmul, schedule));
    let params = Params::declare_packed(&mut b, op, Packing::Qt16(class, layout.order), caps)?;
    let team = Team::of_subgroups(&mut b, caps.subgroup, split, 16, (tile_n / 16 * tile_m / 8) as usize);
    if caps.features.has(Feature::GridDependency) {
        b.asynchronous(Asynchronous::LaunchDependents);
    }
    let lane = b.builtin(Builtin::Lane);
    let tile_y = b.builtin(Builtin::WorkgroupId(1));
    let start = b.bin_imm(BinOp::Mul, tile_y, tile_n as i64);
    let start = b.cast(CastOp::ExtendS, start, Scalar::I64);
    let tile_x = b.builtin(Builtin::WorkgroupId(0));
    let first = b.bin_imm(BinOp::Mul, tile_x, tile_m as i64);
    let tiles = tile_n as usize / 16;
    let fragments = Fragments::new(&mut b, (&layout, &lanes), params.get(Role::Weights), start, tiles, lane, caps);
    let (g, t) = (b.bin_imm(BinOp::ShrU, lane, 2), b.bin_imm(BinOp::And, lane, 3));
    let tokens = tile_m as usize / 8;
    let rows = rows_of(&mut b, matmul, &params, first, t, tokens);
    let last = b.bin_imm(BinOp::Sub, params.m, 1);
    let columns = (0..tokens)
        .map(|token| {
            // Rows past M repeat the last one; nobody stores what they give.
            let row = b.bin_imm(BinOp::Add, first, 8 * token as i64);
            let row = b.add(row, g);
            let row = b.bin(BinOp::MinS, row, last);
            let place = byte_index(&mut b, row, matmul.k * shape.b.bits() as usize / 8);
            let mine = byte_index(&mut b, t, 4);
            b.add(place, mine)
        })
        .collect();
    let products = Products { op: matmul, shape, cut, fragments: &fragments, rows: &rows };
    let strips = strips_of(&cut, matmul.k);
    let ring = Ring::new(&mut b, schedule, (strips, &fragments), matmul.k / cut.block / strips, lane, caps);
    let walk = Walk { products, ring, team: &team, x: params.get(Role::Activations), columns };
    let results = walk.run(&mut b, caps);
    let plan = Plan::with_lanes(matmul, &Schedule { unroll: 1, ..*schedule }, caps, 1, 1)?;
    walk.products.store(&mut b, (&plan, &params), (start, g), &results, &mut |b, i, body| {
        team.on_slice(b, i, |b| body(b));
    });
    Ok(b.finish())
}

/// A subgroup's ring.
struct Ring {
    memory: Memory,
    /// Barrier objects, one per stage, where copies are bulk copies.
    barriers: Option<Memory>,
    /// Byte of the subgroup's first stage, for its lane 0 and for this lane; of its first barrier object. `i32`.
    base: Value,
    mine: Value,
    barrier: Value,
    /// Bool: lane 0.
    leader: Value,
    stages: usize,
    strips: usize,
    tiles: usize,
    /// Of 16 bytes that a lane has of a tile of a strip.
    chunks: Vec<(usize, usize)>,
    /// Steps of all subgroups.
    steps: usize,
    split: usize,
}

impl Ring {
    fn new(
        b: &mut Builder,
        schedule: &Schedule,
        (strips, fragments): (usize, &Fragments<'_>),
        steps: usize,
        lane: Value,
        caps: &Caps,
    ) -> Ring {
        let (stages, split) = (schedule.unroll as usize, schedule.split as usize);
        let (tiles, chunks) = (fragments.blocks, fragments.chunks());
        let bytes = strips * chunks.len() * tiles * 512;
        let memory = b.shared("ring", (split * stages * bytes) as u32, 128);
        let bulk = caps.features.has(Feature::BulkCopy);
        let barriers = bulk.then(|| b.shared("arrived", (split * stages * 8) as u32, 8));
        let subgroup = b.builtin(Builtin::Subgroup);
        let base = times(b, subgroup, stages * bytes);
        let chunk = times(b, lane, 16);
        let mine = b.add(base, chunk);
        let barrier = times(b, subgroup, stages * 8);
        let zero = b.int(Scalar::I32, 0);
        let leader = b.cmp(CmpOp::Eq, lane, zero);
        Ring { memory, barriers, base, mine, barrier, leader, stages, strips, tiles, chunks, steps, split }
    }

    fn bytes(&self) -> usize {
        self.strips * self.chunks.len() * self.tiles * 512
    }

    /// The strips and chunks of a step that starts at a strip, in the ring's order.
    fn places(&self, strip: Pos) -> Vec<(Pos, (usize, usize))> {
        (0..self.strips).flat_map(|i| self.chunks.iter().map(move |&chunk| (strip.plus(i), chunk))).collect()
    }

    /// Makes the barrier objects.
    fn prepare(&self, b: &mut Builder) {
        let Some(barriers) = self.barriers else { return };
        b.if_then(self.leader, |b| {
            for stage in 0..self.stages {
                let barrier = at(barriers, Some(self.barrier), 8 * stage);
                b.asynchronous(Asynchronous::BarrierInit { barrier, arrivals: 1 });
            }
            b.asynchronous(Asynchronous::Fence);
        });
        b.barrier();
    }

    /// Starts to fetch a step, if there is one, to a stage (its number, `i32`).
    fn fetch(&self, b: &mut Builder, fragments: &Fragments<'_>, step: Value, stage: Value) {
        let end = b.int(Scalar::I64, self.steps as i64);
        let exists = b.cmp(CmpOp::LtS, step, end);
        let offset = times(b, stage, self.bytes());
        let strip = Pos { index: Some(step), fixed: 0 }.times(b, self.strips);
        match self.barriers {
            Some(barriers) => {
                let fetches = b.bin(BinOp::And, exists, self.leader);
                let to = b.add(self.base, offset);
                let barrier = times(b, stage, 8);
                let barrier = b.add(barrier, self.barrier);
                let barrier = at(barriers, Some(barrier), 0);
                b.if_then(fetches, |b| {
                    b.asynchronous(Asynchronous::BarrierExpect { barrier, bytes: self.bytes() as u32 });
                    let bytes = 512 * self.tiles;
                    for (i, (strip, chunk)) in self.places(strip).into_iter().enumerate() {
                        let to = at(self.memory, Some(to), i * bytes);
                        let from = fragments.chunk(b, strip, chunk, 0);
                        b.asynchronous(Asynchronous::BulkCopy { to, from, bytes: bytes as u32, barrier });
                    }
                });
            }
            None => {
                let to = b.add(self.mine, offset);
                b.if_then(exists, |b| {
                    for (i, (strip, chunk)) in self.places(strip).into_iter().enumerate() {
                        for tile in 0..self.tiles {
                            let to = at(self.memory, Some(to), (i * self.tiles + tile) * 512);
                            let from = fragments.chunk(b, strip, chunk, tile);
                            b.async_copy(to, from, 16);
                        }
                    }
                });
                b.async_commit();
            }
        }
    }

    /// The words of the step in a stage once they have come, `[strip][tile][chunk]`.
    fn words(&self, b: &mut Builder, stage: Value, parity: Value) -> Vec<Vec<Vec<Value>>> {
        match self.barriers {
            Some(barriers) => {
                let barrier = times(b, stage, 8);
                let barrier = b.add(barrier, self.barrier);
                b.asynchronous(Asynchronous::BarrierWait { barrier: at(barriers, Some(barrier), 0), parity });
            }
            None => b.async_wait(self.stages as u8 - 1),
        }
        let offset = times(b, stage, self.bytes());
        let from = b.add(self.mine, offset);
        let chunks = self.chunks.len();
        let mut word = |strip: usize, chunk: usize, tile: usize| {
            let place = (strip * chunks + chunk) * self.tiles + tile;
            b.load(Type::vector(Scalar::I32, 4), at(self.memory, Some(from), place * 512), 16)
        };
        let mut words = Vec::new();
        for strip in 0..self.strips {
            let tile = |tile| (0..chunks).map(|chunk| word(strip, chunk, tile)).collect();
            words.push((0..self.tiles).map(tile).collect());
        }
        words
    }
}

/// The walk of a subgroup over its steps.
struct Walk<'a> {
    products: Products<'a>,
    ring: Ring,
    team: &'a Team,
    x: Memory,
    /// For each tile of 8 rows of X: the byte of this lane's first number, `i64`.
    columns: Vec<Value>,
}

impl Walk<'_> {
    /// Results `[tile][rows of X]`, the same in every subgroup.
    fn run(&self, b: &mut Builder, caps: &Caps) -> Vec<Value> {
        let (products, ring, fragments) = (&self.products, &self.ring, self.products.fragments);
        let index = self.team.split(b).index;
        ring.prepare(b);
        let ahead = ring.stages - 1;
        for stage in 0..ahead {
            let step = b.bin_imm(BinOp::Add, index, (stage * ring.split) as i64);
            let stage = b.int(Scalar::I32, stage as i64);
            ring.fetch(b, fragments, step, stage);
        }
        if caps.features.has(Feature::GridDependency) {
            b.asynchronous(Asynchronous::AwaitDependencies);
        }
        // Where all of K is one segment of several strips, its sums go on and are scaled at the end.
        let goes_on = products.cut.segment >= products.op.k && products.cut.per > 1;
        let mut state = vec![b.int(Scalar::I32, 0), b.int(Scalar::I32, ahead as i64), b.int(Scalar::I32, 0)];
        let kept = state.len();
        let nothing = if goes_on { products.no_sums(b, 4, products.count()) } else { products.zeros(b) };
        state.extend(nothing);
        let end = b.int(Scalar::I64, ring.steps as i64);
        let state = b.for_loop(index, end, ring.split as i64, &state, |b, step, state| {
            let (read, write, parity) = (state[0], state[1], state[2]);
            if ring.barriers.is_some() {
                // Every lane has read the stage that is written next.
                b.asynchronous(Asynchronous::SubgroupBarrier);
            }
            let later = b.bin_imm(BinOp::Add, step, (ahead * ring.split) as i64);
            ring.fetch(b, fragments, later, write);
            let words = ring.words(b, read, parity);
            let step = Pos { index: Some(step), fixed: 0 };
            let values = self.step(b, step, &words, goes_on, state[kept..].to_vec());
            let (next_read, wrapped) = self.after(b, read);
            let (next_write, _) = self.after(b, write);
            let flipped = b.bin_imm(BinOp::Xor, parity, 1);
            let parity = b.select(wrapped, flipped, parity);
            [next_read, next_write, parity].into_iter().chain(values).collect()
        });
        let values = self.team.combine(b, BinOp::Add, &state[kept..]);
        if !goes_on {
            return values;
        }
        let group = fragments.group(b, Pos::fixed(0));
        let results = products.zeros(b);
        let sum = |b: &mut Builder, tile: usize, token: usize, element| {
            b.extract(values[tile * products.rows.len() + token], element)
        };
        products.scaled(b, (&group, Pos::fixed(0)), &sum, &results)
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
        let multiply = |b: &mut Builder, a: &[Vec<Value>], first: usize, mut sums: Vec<Value>| {
            for (tile, a) in a.iter().enumerate() {
                for (step, &a) in a.iter().enumerate() {
                    for (token, &x) in x[first + step].iter().enumerate() {
                        let sum = &mut sums[tile * tokens + token];
                        *sum = b.mma(products.shape, a, x, *sum);
                    }
                }
            }
            sums
        };
        let mut open = if goes_on { values.clone() } else { products.no_sums(b, 4, products.count()) };
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
                open = products.no_sums(b, 4, products.count());
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
        for &base in &self.columns {
            let start = start.add(b, Pos { index: Some(base), fixed: 0 });
            let registers =
                [0, k / 2].map(|half| b.load(Scalar::I32, at(self.x, start.index, start.fixed + half * size), 4));
            list.push(fragment(b, &registers, shape.b, shape.b_elements()));
        }
        list
    }
}
