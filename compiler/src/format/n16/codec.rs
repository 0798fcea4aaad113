//! Packs a matrix into N16, and reads it back.

use super::{N16, ROWS, Section, flip, storable};
use crate::error::{Error, Result};
use crate::format::Quantized;
use crate::format::canonical::canonical;

impl N16 {
    /// Packs a matrix (of any format with columns in group order).
    pub fn pack(q: &Quantized) -> Result<(N16, Vec<u8>)> {
        let layout = N16::of(&q.format, q.k)?;
        let c = canonical(q)?;
        let storable: Vec<bool> = (0..=255u8).map(|code| storable(c.format.code, code)).collect();
        if let Some(i) = c.codes.iter().position(|&code| !storable[code as usize]) {
            return Err(Error::invalid(format!(
                "row {}, column {}: code {:#04x} is not a finite number of the format",
                i / c.k,
                i % c.k,
                c.codes[i]
            )));
        }
        let mut out = vec![0u8; layout.bytes(c.n)];
        let places = layout.places();
        for row in 0..c.n {
            let record = row / ROWS * layout.record;
            let lane = row % ROWS;
            let mut numbers = |section: Option<Section>, raw: &[u32]| {
                let Some(section) = section else { return };
                for (entry, number) in raw[row * section.entries..][..section.entries].iter().enumerate() {
                    let (place, bit) = layout.entry_place(&section, entry);
                    let at = record + place + lane * section.size();
                    let bytes = (number << bit).to_le_bytes();
                    out[at..at + section.size()].iter_mut().zip(bytes).for_each(|(byte, number)| *byte |= number);
                }
            };
            numbers(layout.outer, &c.outer);
            numbers(layout.zeros_outer, &c.zeros_outer);
            numbers(Some(layout.scales), &c.scales);
            numbers(layout.zeros, &c.zeros);
            layout.pack_codes(&places, &c.codes[row * c.k..][..c.k], lane, &mut out[record..]);
        }
        Ok((layout, out))
    }

    fn pack_codes(&self, places: &[Vec<(usize, u8)>], codes: &[u8], lane: usize, out: &mut [u8]) {
        let flip = flip(self.format.code);
        let mut low = 0;
        for (places, &width) in places.iter().zip(self.planes) {
            let mask = (0xffu16 >> (8 - width)) as u8;
            for (&code, &(at, bit)) in codes.iter().zip(places) {
                out[at + lane * 4] |= ((code ^ flip) >> low & mask) << bit;
            }
            low += width;
        }
    }

    /// For each plane, where each column's field lies: the byte of row 0 in the record, and the bit in it.
    fn places(&self) -> Vec<Vec<(usize, u8)>> {
        let mut places = vec![Vec::with_capacity(self.k); self.planes.len()];
        for column in 0..self.k {
            let (quad, byte) = self.place(column);
            let (unit, words) = self.quad(quad);
            for (places, (word, bit)) in places.iter_mut().zip(words) {
                places.push((self.unit_place(unit) + word + byte, bit));
            }
        }
        places
    }

    /// Reads a packed matrix of `n` rows back, in canonical form.
    pub fn unpack(&self, n: usize, packed: &[u8]) -> Result<Quantized> {
        if packed.len() != self.bytes(n) {
            return Err(Error::invalid(format!(
                "packed weights: found {} bytes, expected {}",
                packed.len(),
                self.bytes(n)
            )));
        }
        let numbers = |section: Option<Section>| -> Vec<u32> {
            let Some(section) = section else { return Vec::new() };
            let (size, mask) = (section.size(), u32::MAX >> (32 - section.dtype.bits()));
            let mut raw = Vec::with_capacity(n * section.entries);
            for row in 0..n {
                for entry in 0..section.entries {
                    let (place, bit) = self.entry_place(&section, entry);
                    let at = row / ROWS * self.record + place + row % ROWS * size;
                    let mut word = [0; 4];
                    word[..size].copy_from_slice(&packed[at..at + size]);
                    raw.push(u32::from_le_bytes(word) >> bit & mask);
                }
            }
            raw
        };
        let mut codes = vec![0u8; n * self.k];
        let places = self.places();
        for (row, codes) in codes.chunks_mut(self.k).enumerate() {
            let block = &packed[row / ROWS * self.record + row % ROWS * 4..];
            let mut low = 0;
            for (places, &width) in places.iter().zip(self.planes) {
                let mask = (0xffu16 >> (8 - width)) as u8;
                for (code, &(at, bit)) in codes.iter_mut().zip(places) {
                    *code |= (block[at] >> bit & mask) << low;
                }
                low += width;
            }
            codes.iter_mut().for_each(|code| *code ^= flip(self.format.code));
        }
        Ok(Quantized {
            format: self.format,
            n,
            k: self.k,
            codes,
            scales: numbers(Some(self.scales)),
            outer: numbers(self.outer),
            zeros: numbers(self.zeros),
            zeros_outer: numbers(self.zeros_outer),
            scale_offset: 0.0,
            order: None,
        })
    }
}
