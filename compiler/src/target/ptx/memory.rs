//! Addresses, loads, stores and atomics.
//!
//! Always holds: an access is cut into pieces of at most 16 bytes, each no wider than the alignment that the IR
//! states; buffers that nobody writes during the launch are read through the non-coherent path.

use super::emit::{Emitter, word_count};
use super::text::Word;
use crate::ir::{Address, Memory, Scalar, Type, Value};

/// A resolved address: state space, register, constant offset.
pub(super) struct Place {
    pub space: &'static str,
    base: Word,
    offset: i64,
    /// Nobody writes it during the launch.
    constant: bool,
}

impl Place {
    /// The register and the offset.
    pub fn parts(&self) -> (Word, i64) {
        (self.base, self.offset)
    }

    /// The operand at some bytes from the place.
    pub fn at(&self, bytes: i64) -> String {
        match self.offset + bytes {
            0 => format!("[{}]", self.base),
            offset => format!("[{}+{offset}]", self.base),
        }
    }
}

impl Emitter<'_> {
    /// Resolves an address; `bytes` after it are to be reached by constant offsets.
    pub(super) fn place(&mut self, address: &Address, bytes: u32) -> Place {
        let index = address.index.map(|index| (self.scalar(index), self.ty(index).scalar == Scalar::I64));
        let (space, mut base, constant) = match address.memory {
            Memory::Param(number) => {
                (".global", self.params[number as usize], self.kernel.is_read_only(address.memory))
            }
            Memory::Shared(number) => (".shared", self.shared[number as usize], false),
        };
        let mut offset = address.offset;
        match (space, index) {
            (_, None) => {}
            (_, Some((Word::I(bits), _))) => offset = offset.saturating_add(bits as i32 as i64),
            (_, Some((Word::L(bits), _))) => offset = offset.saturating_add(bits as i64),
            (".global", Some((index, false))) => base = self.text.b64("mad.wide.s32", &[&index, &1, &base]),
            (".global", Some((index, true))) => base = self.text.b64("add.s64", &[&base, &index]),
            (_, Some((index, wide))) => {
                let index = if wide { self.text.b32("cvt.u32.u64", &[&index]) } else { index };
                base = self.text.b32("add.s32", &[&base, &index]);
            }
        }
        // An offset of an address has 32 bits with sign.
        let fits = |offset: i64| i32::try_from(offset).is_ok();
        if !fits(offset) || !fits(offset.saturating_add(bytes as i64)) {
            base = match base {
                Word::D(_) => self.text.b64("add.s64", &[&base, &Word::L(offset as u64)]),
                _ => self.text.b32("add.s32", &[&base, &Word::I(offset as u32)]),
            };
            offset = 0;
        }
        Place { space, base, offset, constant }
    }

    pub(super) fn load(&mut self, address: &Address, align: u32, ty: Type) -> Vec<Word> {
        let place = self.place(address, ty.bytes());
        let nc = if place.constant { ".nc" } else { "" };
        let op = format!("ld{}{nc}", place.space);
        let mut words = Vec::new();
        // Bytes and halves of a word that are still to be joined: (piece, bytes).
        let mut pieces: Vec<(Word, u32)> = Vec::new();
        for (at, size) in chunks(ty.bytes(), align) {
            let from = place.at(at as i64);
            match size {
                1 | 2 => {
                    let piece = self.text.b32(&format!("{op}.u{}", 8 * size), &[&from]);
                    pieces.push((piece, size));
                    let have: u32 = pieces.iter().map(|&(_, size)| size).sum();
                    if have == 4 || at + size == ty.bytes() {
                        let bytes: Vec<_> = pieces
                            .drain(..)
                            .flat_map(|(word, size)| (0..size as u8).map(move |byte| (word, byte)))
                            .collect();
                        let whole = bytes.len() == size as usize;
                        // A lone piece has zeros above it already.
                        words.push(if whole { piece } else { self.gather(&bytes)[0] });
                    }
                }
                4 => words.push(self.text.b32(&format!("{op}.b32"), &[&from])),
                _ => {
                    let registers: Vec<Word> = (0..size / 4).map(|_| self.text.new_word()).collect();
                    let list = list(&registers);
                    self.text.line(format_args!("{op}.v{}.b32 {list}, {from}", size / 4));
                    words.extend(registers);
                }
            }
        }
        if ty.scalar == Scalar::I64 {
            words = words.chunks(2).map(|pair| self.text.join_double(pair[0], pair[1])).collect();
        }
        debug_assert_eq!(words.len(), word_count(ty));
        words
    }

    pub(super) fn store(&mut self, address: &Address, align: u32, value: Value) {
        let ty = self.ty(value);
        let mut words = self.words(value);
        if ty.scalar == Scalar::I64 {
            words = words.iter().flat_map(|&word| self.text.split_double(word)).collect();
        }
        let place = self.place(address, ty.bytes());
        let op = format!("st{}", place.space);
        for (at, size) in chunks(ty.bytes(), align) {
            let to = place.at(at as i64);
            let first = at as usize / 4;
            match size {
                1 | 2 => {
                    let word = self.text.reg(words[first]);
                    let shift = at % 4 * 8;
                    let piece = if shift == 0 { word } else { self.text.b32("shr.u32", &[&word, &shift]) };
                    self.text.line(format_args!("{op}.u{} {to}, {piece}", 8 * size));
                }
                4 => {
                    let word = self.text.reg(words[first]);
                    self.text.line(format_args!("{op}.b32 {to}, {word}"));
                }
                _ => {
                    let count = size as usize / 4;
                    let registers: Vec<Word> = words[first..first + count].to_vec();
                    let registers: Vec<Word> = registers.into_iter().map(|word| self.text.reg(word)).collect();
                    self.text.line(format_args!("{op}.v{count}.b32 {to}, {}", list(&registers)));
                }
            }
        }
    }

    pub(super) fn atomic(&mut self, address: &Address, value: Value) -> Word {
        let word = self.scalar(value);
        let word = self.text.reg(word);
        let place = self.place(address, 4);
        self.text.b32(&format!("atom{}.add.u32", place.space), &[&place.at(0), &word])
    }
}

/// Registers as a vector operand.
pub(super) fn list(registers: &[Word]) -> String {
    let names: Vec<String> = registers.iter().map(Word::to_string).collect();
    format!("{{{}}}", names.join(", "))
}

/// The pieces of an access: (first byte, size).
fn chunks(bytes: u32, align: u32) -> Vec<(u32, u32)> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes {
        let mut size = align.min(16);
        while size > bytes - at {
            size /= 2;
        }
        out.push((at, size));
        at += size;
    }
    out
}
