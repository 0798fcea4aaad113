//! Decodes QT16: from a lane's 16 bytes of a tile to its fragments of operand A, and a panel's scales and zeros.
//!
//! Always holds: an element of a fragment is exactly `code - zero` (class F16), or the stored byte, of which
//! [`Fragments::offset`] is to be taken off (class B8).

mod book;
mod decode;
pub(in crate::lower) mod direct;

use self::decode::float;
use self::direct::Direct;
use super::numbers::load_number;
use crate::caps::Caps;
use crate::dtype::DType;
use crate::format::qt16::{Class, LaneOrder, PANEL, Qt16, STRIP, Section, section_rows, tile_columns};
use crate::format::{Code, Zero};
use crate::ir::{Address, BinOp, Builder, CastOp, Memory, Scalar, Type, UnOp, Value};
use crate::lower::lanes::{Lanes, gather, higher, through};
use crate::lower::memory::at;
use crate::lower::walk::Pos;

/// Reads some blocks of rows of one panel, each as large as the instruction's [`Lanes`] say.
#[derive(Clone, Copy)]
pub(in crate::lower) struct Fragments<'a> {
    /// Where things lie.
    pub layout: &'a Qt16,
    /// Who holds what.
    pub lanes: &'a Lanes,
    /// Blocks of rows.
    pub blocks: usize,
    memory: Memory,
    /// Byte of the first block's codes for this lane, in the first strip; `i64`.
    codes: Value,
    /// Entry, in a section's 64, of the first row of A that this lane holds; `i64`.
    held: Value,
    /// Entry of the first row whose sums this lane holds; `i64`.
    summed: Value,
    /// Start of the panel's record, `i64`.
    record: Value,
    /// Bits of a code, over all planes.
    width: u8,
    features: crate::caps::Features,
}

/// What rows need at the end of a group.
#[derive(Clone)]
pub(in crate::lower) struct Group {
    /// For the rows whose sums a lane holds: `f32` vectors, see [`Fragments::of_sums`].
    pub scales: Vec<Value>,
    /// Integer zero points of the same rows, `i32`, if the format has them.
    pub zeros: Option<Vec<Value>>,
    /// What the same rows add to `scale · code` for each activation, `f32`, if zero points are floats or offsets.
    pub offsets: Option<Vec<Value>>,
    /// Integer zero points of the rows of A that a lane holds, g and g + 8 of each block, `i32`.
    held_zeros: Option<Vec<[Value; 2]>>,
}

impl Group {
    /// All its values, in an order that [`Group::with`] knows.
    pub fn values(&self) -> Vec<Value> {
        let lists = [Some(&self.scales), self.zeros.as_ref(), self.offsets.as_ref()];
        let held = self.held_zeros.iter().flatten().flatten();
        lists.into_iter().flatten().flatten().chain(held).copied().collect()
    }

    /// The same group for those who know its scales otherwise.
    pub fn without_scales(self) -> Group {
        Group { scales: Vec::new(), ..self }
    }

    /// The same group with other values.
    pub fn with(&self, values: &[Value]) -> Group {
        let mut rest = values.iter().copied();
        let mut list = |like: &Vec<Value>| like.iter().zip(&mut rest).map(|(_, value)| value).collect::<Vec<_>>();
        let scales = list(&self.scales);
        let zeros = self.zeros.as_ref().map(&mut list);
        let offsets = self.offsets.as_ref().map(&mut list);
        let flat = self.held_zeros.as_ref().map(|held| list(&held.iter().flatten().copied().collect()));
        let held_zeros = flat.map(|flat| flat.chunks(2).map(|pair| [pair[0], pair[1]]).collect());
        Group { scales, zeros, offsets, held_zeros }
    }
}

/// Columns of a strip: whole tiles of every plane.
pub(in crate::lower) fn strip_columns(layout: &Qt16) -> usize {
    layout.planes.iter().map(|&(width, _)| tile_columns(width)).max().unwrap_or(1)
}

/// Why the fragments of a format cannot be decoded here; `None` if they can.
pub(in crate::lower) fn refuses(layout: &Qt16, element: DType) -> Option<String> {
    let format = &layout.format;
    let name = format.to_string();
    let width: u8 = layout.planes.iter().map(|&(width, _)| width).sum();
    match (format.code, layout.class) {
        (Code::Int { .. } | Code::Ternary, Class::B8) if matches!(element, DType::U8 | DType::I8) => {}
        (Code::Int { .. } | Code::Ternary, Class::F16) if width >= 2 && (width < 8 || element == DType::F16) => {}
        (Code::Table(book), _) if book::serves(book, element) => {
            if format.zero != Zero::None {
                return Some(format!("takes no zero points with the codes of {name}"));
            }
        }
        (code, Class::F16) if Direct::of(code, element).is_some() => {
            if format.zero != Zero::None {
                return Some(format!("takes no zero points with the codes of {name}"));
            }
        }
        (Code::Float(dtype), Class::B8) if dtype == element => {}
        // Numbers up to 16 are exact in this type, so a look-up makes them of codes; zero points of groups come later.
        (Code::Int { .. } | Code::Ternary, Class::B8) if element == DType::E4m3fn && matches!(width, 2..=4) => {
            if matches!(format.zero, Zero::Bias(bias) if !(-1..=16).contains(&bias)) {
                return Some(format!("makes 8-bit floats of codes with a bias from -1 to 16, not of {name}"));
            }
        }
        _ => return Some(format!("has no fragments of {} from {name}", element.name())),
    }
    match format.zero {
        // In a 16-bit float both `power + offset + zero` and `code - offset - zero` must be exact.
        Zero::None | Zero::Bias(-64..=64) => None,
        // Taken off by sums of activations, see [`Group::offsets`].
        Zero::Float(_) | Zero::Offset { .. } => None,
        Zero::Int(bits) if bits <= width => None,
        _ => Some(format!("takes integer zero points as wide as codes, not those of {name}")),
    }
}

/// Bytes of a lane in a tile.
const CHUNK: usize = 16;

impl<'a> Fragments<'a> {
    /// Reads `blocks` blocks from row `row` (`i64`, a multiple of a block) on, which lie in one panel.
    pub fn new(
        b: &mut Builder,
        (layout, lanes): (&'a Qt16, &'a Lanes),
        memory: Memory,
        row: Value,
        blocks: usize,
        lane: Value,
        caps: &Caps,
    ) -> Fragments<'a> {
        let bits = caps.subgroup.trailing_zeros() as u8;
        let panel = b.bin_imm(BinOp::ShrU, row, PANEL.trailing_zeros() as i64);
        let record = b.bin_imm(BinOp::Mul, panel, layout.record as i64);
        let in_panel = b.bin_imm(BinOp::And, row, PANEL as i64 - 1);
        let start = layout.planes[0].1;
        let width = layout.planes.iter().map(|&(width, _)| width).sum();
        // Chunks of a tile are numbered [g][t] or [t][g]; rows from 16 on lie in the next tile of 512 bytes.
        let (g, t) = if layout.order == LaneOrder::Gt { (2, 0) } else { (0, 3) };
        let places = lanes.row_of_a().into_iter().map(|(from, to)| (from, if to < 3 { to + g + 4 } else { to + 5 }));
        let mine: Vec<_> = places.chain(higher(lanes.t(), t + 4)).collect();
        let mine = gather(b, lane, bits, mine);
        let mine = b.cast(CastOp::ExtendS, mine, Scalar::I64);
        let tile = b.bin_imm(BinOp::Shl, in_panel, 5);
        let codes = b.add(tile, mine);
        let codes = b.add(codes, record);
        let codes = b.bin_imm(BinOp::Add, codes, start as i64);
        let rows = section_rows(layout.order);
        let first = gather(b, in_panel, 6, through(vec![(4, 4), (5, 5)], &rows));
        let mut entry = |moves| {
            let own = gather(b, lane, bits, through(moves, &rows));
            let own = b.cast(CastOp::ExtendS, own, Scalar::I64);
            b.add(first, own)
        };
        let (held, summed) = (entry(lanes.row_of_a()), entry(lanes.row_of_sums()));
        Fragments { layout, lanes, blocks, memory, codes, held, summed, record, width, features: caps.features }
    }

    /// Columns of a strip: whole tiles of every plane.
    pub fn columns(&self) -> usize {
        strip_columns(self.layout)
    }

    /// Where the 16 bytes of a strip start that a lane has of each tile, plane by plane: its number among the planes, and
    /// which of the plane's tiles along K.
    pub fn chunks(&self) -> Vec<(usize, usize)> {
        let of = |(plane, &(width, _)): (usize, &(u8, usize))| {
            (0..self.columns() / tile_columns(width)).map(move |tile| (plane, tile))
        };
        self.layout.planes.iter().enumerate().flat_map(of).collect()
    }

    /// Where a lane's 16 bytes of a tile of a strip are, of one of [`Fragments::chunks`].
    pub fn chunk(&self, b: &mut Builder, strip: Pos, (plane, along): (usize, usize), tile: usize) -> Address {
        let (width, start) = self.layout.planes[plane];
        let strip = strip.times(b, self.columns() / tile_columns(width)).plus(along);
        let place = strip.times(b, STRIP).add(b, Pos::of(self.codes).plus(start - self.layout.planes[0].1));
        at(self.memory, place.index, place.fixed + 512 * tile)
    }

    /// A lane's 16 bytes of each tile of a strip of a lone plane, `i32x4`, for each `t` that it holds of each block: two words of row g, two
    /// of row g + 8.
    pub fn words(&self, b: &mut Builder, strip: Pos) -> Vec<Vec<Value>> {
        let start = strip.times(b, STRIP).add(b, Pos::of(self.codes));
        let next = CHUNK * if self.layout.order == LaneOrder::Gt { 1 } else { 8 };
        let ty = Type::vector(Scalar::I32, 4);
        (0..self.blocks)
            .map(|block| {
                let first = start.fixed + 512 * self.lanes.fragments * block;
                let own = 0..self.lanes.own;
                own.map(|t| b.load(ty, at(self.memory, start.index, first + next * t), CHUNK as u32)).collect()
            })
            .collect()
    }

    /// The registers of A, `i32`, for each fragment of one block and each instruction of a strip, from its words. `biases`
    /// are what [`Fragments::biases`] made for the block.
    pub fn decode(
        &self,
        b: &mut Builder,
        words: &[Value],
        element: DType,
        biases: &[[Value; 2]],
    ) -> Vec<Vec<Vec<Value>>> {
        let own: Vec<_> = words.iter().map(|&words| self.steps(b, &[words], element, biases)).collect();
        let one = |fragment: usize| {
            let halves = if self.lanes.fragments == 1 { vec![0, 1] } else { vec![fragment] };
            // In the order in which B comes: steps, words, then what the lane holds of each.
            let mut registers = Vec::new();
            for step in 0..own[0].len() {
                for word in 0..2 {
                    for own in &own {
                        registers.extend(halves.iter().map(|half| own[step][2 * word + half]));
                    }
                }
            }
            registers.chunks(self.lanes.registers() * halves.len()).map(<[Value]>::to_vec).collect()
        };
        (0..self.lanes.fragments).map(one).collect()
    }

    /// Scales and integer zeros of a group.
    pub fn group(&self, b: &mut Builder, group: Pos) -> Group {
        let mut scales = Vec::new();
        for row in self.rows_of_sums() {
            scales.push(self.scale(b, group, row));
        }
        let mut found = Group { scales, zeros: None, offsets: self.offsets(b, group), held_zeros: None };
        for (offset, &scale) in found.offsets.iter_mut().flatten().zip(&found.scales) {
            if matches!(self.layout.format.zero, Zero::Float(_)) {
                *offset = b.mul(*offset, scale);
            }
        }
        if let (Zero::Int(_), Some(section)) = (self.layout.format.zero, &self.layout.zeros) {
            if self.layout.class == Class::B8 {
                let zeros = self.rows_of_sums().into_iter().map(|row| self.zeros(b, section, group, self.summed, row));
                found.zeros = Some(zeros.collect());
            } else {
                let of_block = |b: &mut Builder, block: usize| {
                    let row = block * self.lanes.block_rows();
                    if self.layout.order == LaneOrder::Gt {
                        let both = self.zeros(b, section, group, self.held, (row, 2));
                        return [0, 1].map(|half| b.extract(both, half));
                    }
                    [row, row + 8].map(|row| self.zeros(b, section, group, self.held, (row, 1)))
                };
                found.held_zeros = Some((0..self.blocks).map(|block| of_block(b, block)).collect());
            }
        }
        found
    }

    /// Scales of rows g and g + 8 of a block as they are stored, `f16x2`, where they are `f16` without a second level.
    pub fn stored_scales(&self, b: &mut Builder, group: Pos, block: usize) -> Option<Value> {
        if self.layout.order != LaneOrder::Gt || self.layout.scales.dtype != DType::F16 || self.layout.outer.is_some() {
            return None;
        }
        let place = self.place(b, &self.layout.scales, group, self.summed, self.lanes.block_rows() * block);
        Some(b.load(Type::vector(Scalar::F16, 2), at(self.memory, place.index, place.fixed), 4))
    }

    /// The numbers that a lane needs of a group for its sums, as runs that lie side by side: row in the first block, count.
    fn rows_of_sums(&self) -> Vec<(usize, u8)> {
        let (rows, fragments) = (self.lanes.block_rows(), self.lanes.fragments);
        let blocks = 0..self.blocks;
        match self.layout.order {
            // Rows g and g + 8.
            LaneOrder::Gt => blocks.map(|block| (rows * block, 2)).collect(),
            LaneOrder::Tg => blocks
                .flat_map(|block| (0..fragments).map(move |fragment| rows * block + 8 * fragment))
                .map(|row| (row, self.lanes.run as u8))
                .collect(),
        }
    }

    /// What [`Group::scales`] or [`Group::zeros`] hold for the sums of a fragment from an element on, as many as stand side
    /// by side.
    pub fn of_sums(&self, b: &mut Builder, numbers: &[Value], block: usize, fragment: usize, element: usize) -> Value {
        match self.layout.order {
            LaneOrder::Gt => b.extract(numbers[block], (self.lanes.place(fragment, element).0 / 8) as u8),
            LaneOrder::Tg => numbers[block * self.lanes.fragments + fragment],
        }
    }

    /// A sum of integers (`i32`) less what its stored codes are too large by: [`Fragments::offset`] and, where it varies, the
    /// zero point that `zero` gives, times the sum of the activations.
    pub fn less_zeros(
        &self,
        b: &mut Builder,
        sum: Value,
        activations: Value,
        element: DType,
        zero: Option<impl FnOnce(&mut Builder) -> Value>,
    ) -> Value {
        let fixed = b.int(b.ty(sum), i64::from(self.offset(element)));
        let taken = match zero {
            Some(zero) => {
                let zero = zero(b);
                b.add(zero, fixed)
            }
            None => fixed,
        };
        let taken = b.mul(taken, activations);
        b.bin(BinOp::Sub, sum, taken)
    }

    fn scale(&self, b: &mut Builder, group: Pos, rows: (usize, u8)) -> Value {
        self.two_levels(b, (&self.layout.scales, self.layout.outer.as_ref()), group, rows)
    }

    /// Minus the float zero points of a group, or its offsets with their sign; `None` if the format has neither.
    fn offsets(&self, b: &mut Builder, group: Pos) -> Option<Vec<Value>> {
        let sections = (self.layout.zeros.as_ref()?, self.layout.zeros_outer.as_ref());
        let negative = match self.layout.format.zero {
            Zero::Float(_) => true,
            Zero::Offset { sign, .. } => sign < 0,
            Zero::None | Zero::Bias(_) | Zero::Int(_) => return None,
        };
        let offset = |rows| {
            let number = self.two_levels(b, sections, group, rows);
            if negative { b.un(UnOp::Neg, number) } else { number }
        };
        Some(self.rows_of_sums().into_iter().map(offset).collect())
    }

    /// Numbers of a group that may have a second level.
    fn two_levels(
        &self,
        b: &mut Builder,
        (section, outer): (&Section, Option<&Section>),
        group: Pos,
        rows: (usize, u8),
    ) -> Value {
        let inner = self.number(b, section, group, rows);
        let Some(outer) = outer else { return inner };
        let entry = if outer.entries == 1 { Pos::fixed(0) } else { group.divide(b, outer.span / self.layout.group) };
        let outer = self.number(b, outer, entry, rows);
        b.mul(inner, outer)
    }

    /// The byte of an entry's number of the row that is `row` rows after the first of a lane.
    fn place(&self, b: &mut Builder, section: &Section, entry: Pos, first: Value, row: usize) -> Pos {
        let fixed = section.place(0, row) - section.place(0, 0);
        let numbers = Pos::of(first).times(b, section.size()).plus(fixed);
        let start = entry.times(b, PANEL * section.size()).add(b, numbers);
        start.add(b, Pos::of(self.record).plus(section.offset))
    }

    fn zeros(&self, b: &mut Builder, section: &Section, entry: Pos, first: Value, (row, count): (usize, u8)) -> Value {
        let place = self.place(b, section, entry, first, row);
        let address = at(self.memory, place.index, place.fixed);
        let raw = b.load(Type::vector(Scalar::I8, count), address, count as u32);
        b.cast(CastOp::ExtendU, raw, Scalar::I32)
    }

    fn number(&self, b: &mut Builder, section: &Section, entry: Pos, (row, count): (usize, u8)) -> Value {
        let place = self.place(b, section, entry, self.summed, row);
        let address = at(self.memory, place.index, place.fixed);
        let align = (count as usize * section.size()).min(16) as u32;
        load_number(b, section.dtype, address, count, align, self.features)
    }
}
