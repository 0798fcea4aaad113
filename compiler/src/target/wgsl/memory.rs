//! Loads, stores and atomics on arrays of words.
//!
//! A memory is an array of words, of quads of words where every access is aligned to 16 bytes, or of atomic words where
//! there are atomics or stores of less than a word. Such a store clears its bits of the word and then sets them: other
//! threads may do the same to other bits of it meanwhile.

use super::text::{Text, mask, words};
use super::value::{self, Pieces};
use crate::ir::{Address, Inst, Kernel, Memory, Scalar, Type};
use std::collections::BTreeMap;

/// What a memory's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// 16 where elements are quads of words, otherwise 4.
    pub unit: u32,
    /// Elements are atomic.
    pub atomic: bool,
}

/// The shape of each memory that a kernel touches.
pub(super) fn shapes(kernel: &Kernel) -> BTreeMap<Memory, Shape> {
    let mut shapes = BTreeMap::new();
    kernel.body.each(&mut |statement| match &statement.inst {
        Inst::Load { address, align } => {
            let bytes = statement.results.first().map_or(4, |&value| kernel.ty(value).bytes());
            note(&mut shapes, address, *align, bytes, false);
        }
        Inst::Store { address, align, value } => {
            let bytes = kernel.ty(*value).bytes();
            note(&mut shapes, address, *align, bytes, *align < 4 || bytes < 4);
        }
        Inst::AtomicAdd { address, .. } => note(&mut shapes, address, 4, 4, true),
        _ => {}
    });
    shapes
}

fn note(shapes: &mut BTreeMap<Memory, Shape>, address: &Address, align: u32, bytes: u32, atomic: bool) {
    let unit = if align >= 16 && bytes >= 16 { 16 } else { 4 };
    let shape = shapes.entry(address.memory).or_insert(Shape { unit, atomic });
    shape.atomic |= atomic;
    shape.unit = if shape.atomic { 4 } else { shape.unit.min(unit) };
}

/// An array by name.
pub(super) struct Array {
    pub name: String,
    pub shape: Shape,
}

impl Array {
    fn word(&self, index: &str) -> String {
        if self.shape.atomic {
            format!("atomicLoad(&{}[{index}])", self.name)
        } else {
            format!("{}[{index}]", self.name)
        }
    }

    /// Reads a value from a byte offset.
    pub fn load(&self, t: &mut Text, offset: &str, align: u32, ty: Type) -> Pieces {
        let bytes = ty.bytes();
        if self.shape.unit == 16 {
            let first = t.bind(format!("{offset} >> 4u"));
            let pieces: Pieces = (0..bytes / 16).map(|i| t.bind(format!("{}[{first} + {i}u]", self.name))).collect();
            return value::bitcast(t, &pieces, raw_type(4, bytes), ty);
        }
        let unit = align.min(4).min(bytes);
        let raw = raw_type(unit, bytes);
        let parts: Vec<String> = if unit == 4 {
            let first = t.bind(format!("{offset} >> 2u"));
            (0..bytes / 4).map(|i| t.bind(self.word(&format!("{first} + {i}u")))).collect()
        } else {
            (0..bytes / unit)
                .map(|i| {
                    let at = t.bind(format!("{offset} + {}u", i * unit));
                    let word = t.bind(self.word(&format!("{at} >> 2u")));
                    t.bind(format!("({word} >> (({at} & 3u) * 8u)) & {}", words(1, mask(8 * unit))))
                })
                .collect()
        };
        let pieces = value::gather(t, raw.scalar, &parts);
        value::bitcast(t, &pieces, raw, ty)
    }

    /// Writes a value to a byte offset.
    pub fn store(&self, t: &mut Text, offset: &str, align: u32, ty: Type, pieces: &Pieces) {
        let bytes = ty.bytes();
        let unit = align.min(self.shape.unit).min(bytes);
        let raw = raw_type(unit, bytes);
        let pieces = value::bitcast(t, pieces, ty, raw);
        if unit == 16 {
            let first = t.bind(format!("{offset} >> 4u"));
            for (i, piece) in pieces.iter().enumerate() {
                t.line(format!("{}[{first} + {i}u] = {piece};", self.name));
            }
            return;
        }
        for i in 0..raw.lanes {
            let value = value::extract(&pieces, raw, i);
            let at = t.bind(format!("{offset} + {}u", i as u32 * raw.scalar.bytes()));
            let name = &self.name;
            if raw.scalar.bytes() == 4 {
                let place = format!("{name}[{at} >> 2u]");
                if self.shape.atomic {
                    t.line(format!("atomicStore(&{place}, {value});"));
                } else {
                    t.line(format!("{place} = {value};"));
                }
                continue;
            }
            let shift = t.bind(format!("({at} & 3u) * 8u"));
            t.line(format!("atomicAnd(&{name}[{at} >> 2u], ~({} << {shift}));", words(1, mask(raw.scalar.bits()))));
            t.line(format!("atomicOr(&{name}[{at} >> 2u], {value} << {shift});"));
        }
    }

    /// Adds to a word in one step; gives what was there.
    pub fn atomic_add(&self, t: &mut Text, offset: &str, addend: &str) -> String {
        t.bind(format!("atomicAdd(&{}[{offset} >> 2u], {addend})", self.name))
    }
}

fn raw_type(unit: u32, bytes: u32) -> Type {
    let scalar = match unit {
        1 => Scalar::I8,
        2 => Scalar::I16,
        _ => Scalar::I32,
    };
    Type::vector(scalar, (bytes / scalar.bytes()) as u8)
}
