//! Scales, zero points and offsets of groups, in the lanes of a vector.

use super::Weights;
use super::numbers::load_number;
use crate::dtype::DType;
use crate::format::Zero;
use crate::format::n16::Section;
use crate::ir::{BinOp, Builder, CastOp, Scalar, Type, UnOp, Value};
use crate::lower::walk::{Pos, Remainder};

impl Weights<'_> {
    /// Numbers of a section at `entry` for vector `v`, as `f32`.
    fn section(&self, b: &mut Builder, section: &Section, entry: Pos, v: usize) -> Value {
        if section.shared() > 1 {
            let number = self.whole(b, section, entry, v);
            return b.cast(CastOp::IntToFloatS, number, Scalar::F32);
        }
        let (address, align) = self.entry(b, section, entry, v);
        load_number(b, section.dtype, address, self.lanes, align, self.features)
    }

    fn two_level(&self, b: &mut Builder, inner: &Section, outer: Option<&Section>, group: Pos, v: usize) -> Value {
        let number = self.section(b, inner, group, v);
        let Some(outer) = outer else { return number };
        let entry = if outer.entries == 1 { Pos::fixed(0) } else { group.divide(b, outer.span / self.layout.group) };
        let factor = self.section(b, outer, entry, v);
        b.mul(number, factor)
    }

    /// The bytes of an entry of a section for vector `v`, which other entries may share, as `i32`.
    ///
    /// # Panics
    /// If they are no whole numbers.
    fn raw(&self, b: &mut Builder, section: &Section, entry: Pos, v: usize) -> Value {
        let extend = match section.dtype {
            DType::I8 => CastOp::ExtendS,
            DType::U4 | DType::U8 => CastOp::ExtendU,
            other => panic!("{other} is no whole number"),
        };
        let (address, align) = self.entry(b, section, entry, v);
        let raw = b.load(Type::vector(Scalar::I8, self.lanes), address, align);
        b.cast(extend, raw, Scalar::I32)
    }

    /// Whole numbers of a section at `entry` for vector `v`, as `i32`.
    fn whole(&self, b: &mut Builder, section: &Section, entry: Pos, v: usize) -> Value {
        let raw = self.raw(b, section, entry, v);
        if section.shared() == 1 {
            return raw;
        }
        let number = self.shifted(b, section, entry, raw);
        b.bin_imm(BinOp::And, number, (1 << section.dtype.bits()) - 1)
    }

    /// `raw` shifted so that the number of `entry` comes first of those that share their bytes.
    fn shifted(&self, b: &mut Builder, section: &Section, entry: Pos, raw: Value) -> Value {
        let bits = i64::from(section.dtype.bits());
        match entry.remainder(b, section.shared()) {
            Remainder::Fixed(0) => raw,
            Remainder::Fixed(at) => b.bin_imm(BinOp::ShrU, raw, at as i64 * bits),
            Remainder::Of(at) => {
                let by = b.bin_imm(BinOp::Mul, at, bits);
                let by = b.splat(by, self.lanes);
                b.bin(BinOp::ShrU, raw, by)
            }
        }
    }

    /// Whole numbers of a section for two groups, from an even `entry` on, as the words of each lane.
    fn whole_pair(&self, b: &mut Builder, section: &Section, entry: Pos, v: usize) -> Value {
        let both = if section.shared() == 2 {
            let low = self.raw(b, section, entry, v);
            let bits = i64::from(section.dtype.bits());
            let high = b.bin_imm(BinOp::Shl, low, 16 - bits);
            let both = b.bin(BinOp::Or, low, high);
            b.bin_imm(BinOp::And, both, ((1 << bits) - 1) * 0x0001_0001)
        } else {
            let [low, high] = [0, 1].map(|i| self.whole(b, section, entry.plus(i), v));
            let low = if section.dtype == DType::I8 { b.bin_imm(BinOp::And, low, 0xffff) } else { low };
            let high = b.bin_imm(BinOp::Shl, high, 16);
            b.bin(BinOp::Or, low, high)
        };
        b.bitcast(both, Type::vector(Scalar::I16, 2 * self.lanes))
    }

    /// The inner of two scales of a group for vector `v`, where it is a whole number, in both words of each lane.
    pub fn inner_scale(&self, b: &mut Builder, group: Pos, v: usize) -> Value {
        let (section, words) = (&self.layout.scales, Type::vector(Scalar::I16, 2 * self.lanes));
        if section.shared() > 1 {
            // Groups that share bytes share them in both words.
            let raw = self.raw(b, section, group, v);
            let high = b.bin_imm(BinOp::Shl, raw, 16);
            let both = b.bin(BinOp::Or, raw, high);
            let both = self.shifted(b, section, group, both);
            let both = b.bin_imm(BinOp::And, both, 0x0001_0001 * ((1 << section.dtype.bits()) - 1));
            return b.bitcast(both, words);
        }
        let scale = self.whole(b, section, group, v);
        let scale = b.bitcast(scale, words);
        let picks: Vec<u8> = (0..words.lanes).map(|i| i & !1).collect();
        b.swizzle(scale, scale, &picks)
    }

    /// Those of a group and the next one, a word each.
    pub fn inner_scales(&self, b: &mut Builder, group: Pos, v: usize) -> Value {
        self.whole_pair(b, &self.layout.scales, group, v)
    }

    /// The inner of two numbers that make an offset, where it is a whole one, of a group and the next one, a word each.
    pub fn inner_offsets(&self, b: &mut Builder, group: Pos, v: usize) -> Value {
        self.whole_pair(b, self.layout.zeros.as_ref().expect("the format has offsets"), group, v)
    }

    /// The outer of two scales for vector `v`, as `f32`.
    pub fn outer_scale(&self, b: &mut Builder, entry: Pos, v: usize) -> Value {
        self.section(b, self.layout.outer.as_ref().expect("scales have two levels"), entry, v)
    }

    /// The outer of two numbers that make an offset for vector `v`, as `f32`, with the offset's sign.
    pub fn outer_offset(&self, b: &mut Builder, entry: Pos, v: usize) -> Value {
        let outer = self.section(b, self.layout.zeros_outer.as_ref().expect("offsets have two levels"), entry, v);
        self.signed(b, outer)
    }

    /// An offset as it is added, of one that is stored with its sign apart.
    fn signed(&self, b: &mut Builder, offset: Value) -> Value {
        match self.layout.format.zero {
            Zero::Offset { sign, .. } if sign < 0 => b.un(UnOp::Neg, offset),
            _ => offset,
        }
    }

    /// Scales of a group for vector `v`.
    pub fn scale(&self, b: &mut Builder, group: Pos, v: usize) -> Value {
        self.two_level(b, &self.layout.scales, self.layout.outer.as_ref(), group, v)
    }

    /// Integer zero points of a group, as `i32`; `None` if the format has none.
    pub fn integer_zero(&self, b: &mut Builder, group: Pos, v: usize) -> Option<Value> {
        let (Zero::Int(_), Some(section)) = (self.layout.format.zero, &self.layout.zeros) else { return None };
        Some(self.whole(b, section, group, v))
    }

    /// Zero points of a group as numbers, integer or float; `None` if the format has none.
    pub fn float_zero(&self, b: &mut Builder, group: Pos, v: usize) -> Option<Value> {
        match (self.layout.format.zero, &self.layout.zeros) {
            (Zero::Int(_) | Zero::Float(_), Some(section)) => Some(self.section(b, section, group, v)),
            _ => None,
        }
    }

    /// Offsets of a group with their sign, to be added to `scale · code`; `None` if the format has none.
    pub fn offset(&self, b: &mut Builder, group: Pos, v: usize) -> Option<Value> {
        let (Zero::Offset { .. }, Some(section)) = (self.layout.format.zero, &self.layout.zeros) else {
            return None;
        };
        let offset = self.two_level(b, section, self.layout.zeros_outer.as_ref(), group, v);
        Some(self.signed(b, offset))
    }

    /// What turns codes of a group into weights for vector `v`: the scale, then the zero point or the offset, if any.
    pub fn group(&self, b: &mut Builder, group: Pos, v: usize) -> Vec<Value> {
        let scale = self.scale(b, group, v);
        let other = self.float_zero(b, group, v).or_else(|| self.offset(b, group, v));
        std::iter::once(scale).chain(other).collect()
    }

    /// Weights from codes (of [`Weights::floats`]) and what [`Weights::group`] gave.
    pub fn weight(&self, b: &mut Builder, code: Value, group: &[Value]) -> Value {
        let has_offset = matches!(self.layout.format.zero, Zero::Offset { .. });
        match *group {
            [scale, offset] if has_offset => b.fma(code, scale, offset),
            [scale, zero] => {
                let centred = b.bin(BinOp::Sub, code, zero);
                b.mul(centred, scale)
            }
            _ => b.mul(code, group[0]),
        }
    }
}
