//! One row under quantization: its sweeps, and what becomes of their states.

use super::{across, narrowed};
use crate::dtype::DType;
use crate::ir::{BinOp, Builder, CastOp, CmpOp, Scalar, Type, UnOp, Value};
use crate::lower::memory::{Params, Role, alignment, at, byte_index, scalar_of};
use crate::lower::team::Team;
use crate::lower::walk::{Pos, Split, repeat, share};
use crate::op::{Per, Quantize};

/// Segments from which on each is one thread's.
const ENOUGH: usize = 32;

/// Groups or segments that a thread which is alone takes at once.
pub(super) const AT_ONCE: usize = 4;

/// Columns up to which groups or segments are short: the code for several stays small, since a launch of one row reads it but
/// a few times.
const SHORT: usize = 128;

/// One row under quantization.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub op: &'a Quantize,
    pub params: &'a Params,
    pub row: Value,
    /// Columns that a sweep takes in a vector.
    pub wide: usize,
    /// Vectors in a turn of a sweep's loop.
    pub vectors: usize,
    /// Most groups or segments that are taken at once: [`AT_ONCE`] or 1.
    pub most: usize,
    /// Lanes of the device's vectors.
    pub lanes: usize,
    /// Columns whose numbers half of the device's registers hold, as they do from one sweep to the next in straight code.
    pub held: usize,
    /// `1 / sqrt(mean(x²) + eps)`.
    pub gain: Option<Value>,
    /// The threads that sweep together, and this one's share.
    pub together: Option<(&'a Team, Split)>,
}

/// What a sweep over several columns carries: a vector of `wide` lanes, and a scalar for columns that fill none.
type State = Vec<Value>;

impl Rows<'_> {
    /// How many groups of `len` columns are taken at once: as segments are, but where registers would hold their numbers from
    /// one sweep to the next, and are too few.
    fn groups_at_once(&self, len: usize) -> usize {
        let again = self.is_straight(len) || len >= 2 * self.vectors * self.wide;
        if again { self.segments_at_once(len) } else { 1 }
    }

    /// How many segments of `len` columns are taken at once: several, where each is short and made of whole vectors.
    fn segments_at_once(&self, len: usize) -> usize {
        if len <= SHORT && len.is_multiple_of(self.wide) { self.most } else { 1 }
    }

    /// Whether so many columns are swept in straight code.
    fn is_straight(&self, len: usize) -> bool {
        AT_ONCE * len <= self.held
    }

    /// Sweeps columns `start .. start + len`: a few vectors in a turn of a loop, then vector by vector, then one by one.
    /// Threads together each sweep some.
    fn sweep(
        &self,
        b: &mut Builder,
        start: Pos,
        len: usize,
        state: State,
        mut body: impl FnMut(&mut Builder, Pos, u8, State) -> State,
    ) -> State {
        let vectors = len / self.wide;
        let split = self.together.map(|(_, split)| split);
        let turns = if self.is_straight(len) { 0 } else { vectors / self.vectors };
        let turn = self.vectors * self.wide;
        let mut state = share(b, split.as_ref(), turns, turn, state, &mut |b, at, mut state| {
            let column = start.add(b, at);
            for i in 0..self.vectors {
                state = body(b, column.plus(i * self.wide), self.wide as u8, state);
            }
            state
        });
        for v in turns * self.vectors..vectors {
            state = body(b, start.plus(v * self.wide), self.wide as u8, state);
        }
        for c in vectors * self.wide..len {
            state = match &split {
                Some(split) => split.one(b, c, state, |b, state| body(b, start.plus(c), 1, state)),
                None => body(b, start.plus(c), 1, state),
            };
        }
        state
    }

    /// The states of sweeps as one number each, lanes of a vector; of one sweep a number that threads together all have.
    fn totals(&self, b: &mut Builder, op: BinOp, states: &[State]) -> Value {
        if let [state] = states {
            let across = across(b, op, state[0]);
            let own = b.bin(op, across, state[1]);
            return match self.together {
                Some((team, _)) => team.combine(b, op, &[own])[0],
                None => own,
            };
        }
        // Several sweeps have whole vectors only.
        let vectors = states.iter().map(|state| narrowed(b, op, state[0], self.lanes)).collect();
        side_by_side(b, op, vectors)
    }

    /// Stores numbers that threads together all have.
    fn store_once(&self, b: &mut Builder, role: Role, place: Pos, value: Value) {
        let address = at(self.params.get(role), place.index, place.fixed);
        match self.together {
            Some((team, _)) => b.if_then(team.leader, |b| b.store(address, 4, value)),
            None => b.store(address, 4, value),
        }
    }

    /// What the places of `lanes` elements of this size are multiples of, in rows of `per_row` of them.
    fn align(&self, per_row: usize, lanes: u8, size: usize) -> u32 {
        let inner = |columns: usize| if columns < self.op.k { columns * size } else { 0 };
        let buffer = self.params.align as usize;
        let places = [per_row * size, lanes as usize * size, inner(self.op.group()), inner(self.op.sum_group), buffer];
        if lanes as usize == self.wide { alignment(&places).max(size as u32) } else { size as u32 }
    }

    fn place(&self, b: &mut Builder, column: Pos, per_row: usize, size: usize) -> Pos {
        let line = byte_index(b, self.row, per_row * size);
        let column = column.times(b, size);
        column.add(b, Pos::of(line))
    }

    fn input(&self, b: &mut Builder, column: Pos, lanes: u8) -> Value {
        let scalar = scalar_of(self.op.input);
        let size = scalar.bytes();
        let place = self.place(b, column, self.op.k, size as usize);
        let align = self.align(self.op.k, lanes, size as usize);
        let memory = self.params.get(Role::Activations);
        let x = b.load(Type::vector(scalar, lanes), at(memory, place.index, place.fixed), align);
        if scalar == Scalar::F32 { x } else { b.cast(CastOp::Float, x, Scalar::F32) }
    }

    fn vector(&self, b: &mut Builder, role: Role, column: Pos, lanes: u8) -> Value {
        let place = column.times(b, 4);
        let align = self.align(0, lanes, 4);
        b.load(Type::vector(Scalar::F32, lanes), at(self.params.get(role), place.index, place.fixed), align)
    }

    /// The numbers to quantize.
    fn numbers(&self, b: &mut Builder, column: Pos, lanes: u8) -> Value {
        let mut v = self.input(b, column, lanes);
        if let Some(root) = self.gain {
            let gain = self.vector(b, Role::Gain, column, lanes);
            let root = b.splat(root, lanes);
            let factor = b.mul(root, gain);
            v = b.mul(v, factor);
        }
        if self.op.smooth {
            let smooth = self.vector(b, Role::Smooth, column, lanes);
            v = b.mul(v, smooth);
        }
        v
    }

    /// Which part of a state a step of so many lanes goes into.
    fn part(&self, lanes: u8) -> usize {
        usize::from(lanes == 1 && self.wide != 1)
    }

    pub fn root(&self, b: &mut Builder, eps: f32) -> Value {
        let zeros = vec![b.f32(self.wide as u8, 0.0), b.f32(1, 0.0)];
        let sums = self.sweep(b, Pos::fixed(0), self.op.k, zeros, |b, column, lanes, mut state| {
            let x = self.input(b, column, lanes);
            let sum = &mut state[self.part(lanes)];
            *sum = b.fma(x, x, *sum);
            state
        });
        let total = self.totals(b, BinOp::Add, &[sums]);
        let count = b.f32(1, self.op.k as f32);
        let mean = b.bin(BinOp::Div, total, count);
        let eps = b.f32(1, eps);
        let shifted = b.add(mean, eps);
        let root = b.un(UnOp::Sqrt, shifted);
        let one = b.f32(1, 1.0);
        b.bin(BinOp::Div, one, root)
    }

    /// Scales, codes and sums of all groups that have `len` columns, the first `groups` of the row.
    pub fn whole_groups(&self, b: &mut Builder, groups: usize, len: usize) {
        in_turn(b, groups, self.groups_at_once(len), |b, index, count| self.groups(b, (index, count), len));
    }

    /// Scales, codes and sums of `count` groups from the first one on, each with `len` columns.
    pub fn groups(&self, b: &mut Builder, (first, count): (Pos, usize), len: usize) {
        let starts: Vec<Pos> = (0..count).map(|i| first.plus(i).times(b, self.op.group())).collect();
        let inverses = match self.op.per {
            Per::Tensor => {
                let scale = b.load(Scalar::F32, at(self.params.get(Role::ActivationScales), None, 0), 4);
                let one = b.f32(1, 1.0);
                b.bin(BinOp::Div, one, scale)
            }
            Per::Token | Per::Group(_) => self.scales(b, first, &starts, len),
        };
        // The tensor's alone is no vector, and extracted as it is.
        let runs: Vec<(Pos, Value)> =
            starts.into_iter().enumerate().map(|(i, start)| (start, b.extract(inverses, i as u8))).collect();
        if self.op.sum_group == 0 {
            runs.iter().for_each(|&run| _ = self.codes(b, run, len));
            return;
        }
        let segment = self.op.sum_group.min(self.op.group());
        let first = first.times(b, self.op.group().div_ceil(segment));
        if count > 1 && segment >= len {
            let states: Vec<State> = runs.iter().map(|&run| self.codes(b, run, len)).collect();
            return self.store_sums(b, first, &states);
        }
        for (i, &run) in runs.iter().enumerate() {
            let first = first.plus(i * self.op.group().div_ceil(segment));
            self.segments(b, run, (first, segment), len);
        }
    }

    /// Codes and sums of a group that is cut into segments; the first one's sum has its place given.
    fn segments(&self, b: &mut Builder, (start, inverse): (Pos, Value), (first, segment): (Pos, usize), len: usize) {
        let full = len / segment;
        let several = |b: &mut Builder, rows: &Rows<'_>, turn: Pos, count: usize| {
            let states: Vec<State> = (0..count)
                .map(|i| {
                    let columns = turn.plus(i).times(b, segment);
                    let column = start.add(b, columns);
                    rows.codes(b, (column, inverse), segment)
                })
                .collect();
            let place = first.add(b, turn);
            rows.store_sums(b, place, &states);
            Vec::new()
        };
        match &self.together {
            Some((_, split)) if full >= ENOUGH => {
                let single = Rows { together: None, ..*self };
                share(b, Some(split), full, 1, Vec::new(), &mut |b, turn, _| several(b, &single, turn, 1));
            }
            _ => {
                let most = self.segments_at_once(segment);
                in_turn(b, full, most, |b, turn, count| _ = several(b, self, turn, count));
            }
        }
        if !len.is_multiple_of(segment) {
            let sums = self.codes(b, (start.plus(full * segment), inverse), len % segment);
            self.store_sums(b, first.plus(full), &[sums]);
        }
    }

    /// Stores the codes of `len` columns; returns their sums, `i32`, which are only right where sums are wanted.
    fn codes(&self, b: &mut Builder, (start, inverse): (Pos, Value), len: usize) -> State {
        let code = scalar_of(self.op.code);
        let output = self.params.get(Role::Output);
        let wide = self.wide as u8;
        let inverses = [b.splat(inverse, wide), inverse];
        let zeros = vec![b.int(Type::vector(Scalar::I32, wide), 0), b.int(Scalar::I32, 0)];
        self.sweep(b, start, len, zeros, |b, column, lanes, mut sums| {
            let v = self.numbers(b, column, lanes);
            let part = self.part(lanes);
            let scaled = b.mul(v, inverses[part]);
            let codes = if self.op.code == DType::I8 {
                let integers = integer_codes(b, scaled);
                sums[part] = b.add(sums[part], integers);
                b.cast(CastOp::Truncate, integers, Scalar::I8)
            } else {
                b.cast(CastOp::Float, scaled, code)
            };
            let place = self.place(b, column, self.op.k, 1);
            b.store(at(output, place.index, place.fixed), self.align(self.op.k, lanes, 1), codes);
            sums
        })
    }

    /// Stores the sums of neighbouring segments.
    fn store_sums(&self, b: &mut Builder, first: Pos, states: &[State]) {
        let sums = self.totals(b, BinOp::Add, states);
        let segments = self.op.k.div_ceil(self.op.sum_group);
        let place = self.place(b, first, segments, 4);
        self.store_once(b, Role::ActivationSums, place, sums);
    }

    /// Stores the scales of neighbouring groups of `len` columns; returns their inverses.
    fn scales(&self, b: &mut Builder, first: Pos, starts: &[Pos], len: usize) -> Value {
        let states: Vec<State> = starts.iter().map(|&start| self.magnitudes(b, start, len)).collect();
        let top = self.totals(b, BinOp::MaxS, &states);
        let count = b.ty(top).lanes;
        let top = b.bitcast(top, Type::vector(Scalar::F32, count));
        let limit = b.f32(count, self.op.top());
        let scale = b.bin(BinOp::Div, top, limit);
        let place = self.place(b, first, self.op.per.per_row(self.op.k), 4);
        self.store_once(b, Role::ActivationScales, place, scale);
        let inverse = b.bin(BinOp::Div, limit, top);
        let zero = b.f32(count, 0.0);
        let some = b.cmp(CmpOp::Lt, zero, top);
        b.select(some, inverse, zero)
    }

    /// The largest magnitude of `len` columns, as the bits of a float: without their signs, floats are ordered as their bits
    /// are, with NaN above all numbers, and processors compare those faster.
    fn magnitudes(&self, b: &mut Builder, start: Pos, len: usize) -> State {
        let zeros = vec![b.int(Type::vector(Scalar::I32, self.wide as u8), 0), b.int(Scalar::I32, 0)];
        self.sweep(b, start, len, zeros, |b, column, lanes, mut state| {
            let v = self.numbers(b, column, lanes);
            let size = b.un(UnOp::Abs, v);
            let bits = b.bitcast(size, Type::vector(Scalar::I32, lanes));
            let top = &mut state[self.part(lanes)];
            *top = b.bin(BinOp::MaxS, *top, bits);
            state
        })
    }
}

/// `clamp(round_half_even(v), -127, 127)`; a NaN converts to 0.
fn integer_codes(b: &mut Builder, scaled: Value) -> Value {
    let lanes = b.ty(scaled).lanes;
    let rounded = b.un(UnOp::Nearest, scaled);
    let integers = b.cast(CastOp::FloatToIntS, rounded, Scalar::I32);
    let ty = Type::vector(Scalar::I32, lanes);
    let (low, high) = (b.int(ty, -127), b.int(ty, 127));
    let above = b.bin(BinOp::MaxS, integers, low);
    b.bin(BinOp::MinS, above, high)
}

/// Does something for `count` things, `most` of them at a time and the rest one by one.
fn in_turn(b: &mut Builder, count: usize, most: usize, mut body: impl FnMut(&mut Builder, Pos, usize)) {
    repeat(b, count / most, most, Vec::new(), |b, index, _| {
        body(b, index, most);
        Vec::new()
    });
    for index in count / most * most..count {
        body(b, Pos::fixed(index), 1);
    }
}

/// Vectors of as many lanes, a power of two of them and at most as many as lanes, each combined across its lanes: one number
/// for each, side by side. Pairs are combined with halves of both in one vector, where numbers of one lie a step apart, as
/// many as there are vectors in it; so two vectors take one combination where each alone takes one.
fn side_by_side(b: &mut Builder, op: BinOp, mut vectors: Vec<Value>) -> Value {
    let count = vectors.len();
    let mut step = 1;
    while vectors.len() > 1 {
        let lanes = b.ty(vectors[0]).lanes as usize;
        let per = lanes / step;
        vectors = (vectors.chunks(2))
            .map(|pair| {
                let [low, high] = [0, per / 2].map(|from| {
                    let lane = |j: usize, which: usize| which / step * lanes + (from + j) * step + which % step;
                    let lanes: Vec<u8> =
                        (0..per / 2).flat_map(|j| (0..2 * step).map(move |which| lane(j, which) as u8)).collect();
                    b.swizzle(pair[0], pair[1], &lanes)
                });
                b.bin(op, low, high)
            })
            .collect();
        step *= 2;
    }
    narrowed(b, op, vectors[0], count)
}
