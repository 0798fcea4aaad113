//! Hints: weights that are asked for before they are read.

use super::Weights;
use crate::ir::{Address, Builder};
use crate::lower::memory::at;
use crate::lower::walk::Pos;

impl<'a> Weights<'a> {
    /// The same, asking for words so many bytes ahead of those that are read.
    pub fn asking_ahead(self, bytes: usize) -> Weights<'a> {
        Weights { ahead: Some(bytes), ..self }
    }

    /// Asks for the words of a unit for vector `v` as they lie so many bytes further on.
    pub fn ask_words(&self, b: &mut Builder, unit: Pos, v: usize, bytes: usize) {
        let start = self.unit_start(b, unit, v);
        for quad in 0..self.layout.unit / 4 {
            for (word, _) in self.layout.quad(quad).1.into_iter().filter(|&(_, bit)| bit == 0) {
                b.prefetch(at(self.memory, start.index, start.fixed + word + bytes));
            }
        }
    }

    /// Asks for the scales and offsets of `count` groups from `group` on as they lie so many bytes further on.
    pub fn ask_groups(&self, b: &mut Builder, group: Pos, count: usize, v: usize, bytes: usize) {
        for section in [Some(self.layout.scales), self.layout.zeros].into_iter().flatten() {
            let (address, _) = self.entry(b, &section, group, v);
            for line in (0..section.bytes(count)).step_by(64) {
                b.prefetch(Address { offset: address.offset + (line + bytes) as i64, ..address });
            }
        }
    }
}
