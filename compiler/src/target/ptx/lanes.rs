//! Lanes of packed vectors: taking them apart, putting them together, moving bytes between words.
//!
//! Always holds: bits of a word past the end of its value stay zero.

use super::emit::Emitter;
use super::text::Word;
use crate::ir::{Scalar, Type};

/// One byte of a word.
pub type Byte = (Word, u8);

/// How a lane of 8 or 16 bits fills 32.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// With zeros.
    Zero,
    /// With its sign.
    Sign,
}

impl Emitter<'_> {
    /// The lanes of a value, one word each; lanes of 8 and 16 bits are extended to 32.
    pub(super) fn lanes(&mut self, words: &[Word], ty: Type, fill: Fill) -> Vec<Word> {
        match ty.scalar.bits() {
            8 | 16 => (0..ty.lanes).map(|lane| self.lane(words, ty, lane, fill)).collect(),
            _ => words.to_vec(),
        }
    }

    /// One lane of a value, extended to 32 bits if narrower.
    pub(super) fn lane(&mut self, words: &[Word], ty: Type, lane: u8, fill: Fill) -> Word {
        let bits = ty.scalar.bits();
        if !matches!(bits, 8 | 16) {
            return words[lane as usize];
        }
        let per_word = 32 / bits;
        let word = words[lane as usize / per_word as usize];
        let at = lane as u32 % per_word * bits;
        if let Word::I(constant) = word {
            let up = constant << (32 - bits - at);
            let down = 32 - bits;
            return Word::I(if fill == Fill::Sign { (up as i32 >> down) as u32 } else { up >> down });
        }
        match fill {
            Fill::Zero if ty.lanes == 1 => word,
            Fill::Zero if at + bits == 32 => self.text.b32("shr.u32", &[&word, &at]),
            Fill::Zero if at == 0 => self.text.b32("and.b32", &[&word, &Word::I((1 << bits) - 1)]),
            Fill::Zero => self.text.b32("bfe.u32", &[&word, &at, &bits]),
            Fill::Sign if at + bits == 32 => self.text.b32("shr.s32", &[&word, &at]),
            Fill::Sign => self.text.b32("bfe.s32", &[&word, &at, &bits]),
        }
    }

    /// A value from its lanes; of lanes of 8 and 16 bits the low bits count.
    pub(super) fn pack(&mut self, ty: Type, lanes: &[Word]) -> Vec<Word> {
        let bytes = match ty.scalar.bits() {
            8 => 1,
            16 => 2,
            _ => return lanes.to_vec(),
        };
        let all: Vec<Byte> = lanes.iter().flat_map(|&lane| (0..bytes).map(move |byte| (lane, byte))).collect();
        self.gather(&all)
    }

    /// Words whose bytes are the listed ones; a last word that is not full ends in zeros.
    pub(super) fn gather(&mut self, bytes: &[Byte]) -> Vec<Word> {
        bytes.chunks(4).map(|bytes| self.gather_word(bytes)).collect()
    }

    fn gather_word(&mut self, bytes: &[Byte]) -> Word {
        let mut constant = 0;
        let mut mask = 0;
        for (place, &(word, byte)) in bytes.iter().enumerate() {
            if let Word::I(bits) = word {
                constant |= (bits >> (8 * byte) & 0xff) << (8 * place);
                mask |= 0xffu32 << (8 * place);
            }
        }
        let all: u32 = if bytes.len() == 4 { u32::MAX } else { (1 << (8 * bytes.len())) - 1 };
        if mask == all {
            return Word::I(constant);
        }
        let mut sources: Vec<Word> = Vec::new();
        for &(word, _) in bytes {
            if !matches!(word, Word::I(_)) && !sources.contains(&word) {
                sources.push(word);
            }
        }
        let in_place = |source: Word| {
            bytes.iter().enumerate().all(|(place, &(word, byte))| word != source || byte as usize == place)
        };
        if mask == 0 && bytes.len() == 4 && sources.len() == 1 && in_place(sources[0]) {
            return sources[0];
        }
        if sources.len() == 1 && in_place(sources[0]) {
            // The source's own bytes stay; the rest is masked off and filled in.
            let kept = self.text.b32("and.b32", &[&sources[0], &Word::I(all & !mask)]);
            return if constant == 0 { kept } else { self.text.b32("or.b32", &[&kept, &Word::I(constant)]) };
        }
        // The first two words give their bytes, the constant or zero the rest; each further word adds its own.
        let first = sources[0];
        let second = sources.get(1).copied();
        let rest_needed = mask != 0 || bytes.len() < 4;
        let (other, constant_there) = match second {
            Some(word) => (word, false),
            None => (Word::I(constant), true),
        };
        let mut selector = 0u32;
        for place in 0..4 {
            let pick = match bytes.get(place) {
                Some(&(word, byte)) if word == first => byte as u32,
                Some(&(word, byte)) if Some(word) == second => 4 + byte as u32,
                _ if constant_there => 4 + place as u32,
                _ => 0,
            };
            selector |= pick << (4 * place);
        }
        let mut out = self.text.b32("prmt.b32", &[&first, &other, &hex(selector)]);
        for &source in sources.iter().skip(2) {
            let mut selector = 0u32;
            for place in 0..4 {
                let pick = match bytes.get(place) {
                    Some(&(word, byte)) if word == source => 4 + byte as u32,
                    _ => place as u32,
                };
                selector |= pick << (4 * place);
            }
            out = self.text.b32("prmt.b32", &[&out, &source, &hex(selector)]);
        }
        if rest_needed && !constant_there {
            let kept = self.text.b32("and.b32", &[&out, &Word::I(all & !mask)]);
            out = if constant == 0 { kept } else { self.text.b32("or.b32", &[&kept, &Word::I(constant)]) };
        }
        out
    }

    /// The bytes of lane `lane` of a packed value.
    pub(super) fn lane_bytes(words: &[Word], ty: Type, lane: u8) -> Vec<Byte> {
        let size = ty.scalar.bytes() as usize;
        let first = lane as usize * size;
        (first..first + size).map(|at| (words[at / 4], (at % 4) as u8)).collect()
    }

    /// A value whose lanes are picked from others of the same scalar: `(words, type, lane)` for each.
    pub(super) fn pick(&mut self, scalar: Scalar, picks: &[(&[Word], Type, u8)]) -> Vec<Word> {
        match scalar.bits() {
            8 | 16 => {
                let bytes: Vec<Byte> =
                    picks.iter().flat_map(|&(words, ty, lane)| Self::lane_bytes(words, ty, lane)).collect();
                self.gather(&bytes)
            }
            _ => picks.iter().map(|&(words, _, lane)| words[lane as usize]).collect(),
        }
    }
}

/// A selector of bytes as `prmt` takes it.
fn hex(selector: u32) -> String {
    format!("{selector:#06x}")
}
