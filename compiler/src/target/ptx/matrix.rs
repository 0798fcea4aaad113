//! Matrix instructions of a warp, and asynchronous copies to shared memory.
//!
//! Always holds: a fragment's words are the registers that `mma.sync` names, in its order, since lane maps number elements
//! as the PTX ISA does.

use super::emit::Emitter;
use super::memory::list;
use super::text::Word;
use crate::caps::MmaShape;
use crate::ir::{Address, Value};

impl Emitter<'_> {
    pub(super) fn mma(&mut self, shape: &MmaShape, operands: [Value; 3]) -> Vec<Word> {
        let [a, b, c] = operands.map(|value| {
            let words: Vec<Word> = self.words(value).into_iter().map(|word| self.text.reg(word)).collect();
            list(&words)
        });
        let results: Vec<Word> = (0..shape.acc_elements()).map(|_| self.text.new_word()).collect();
        let MmaShape { m, n, k, .. } = shape;
        let acc = spelled(shape.acc.name());
        let types = format!("{acc}.{}.{}.{acc}", spelled(shape.a.name()), spelled(shape.b.name()));
        let d = list(&results);
        self.text.line(format_args!("mma.sync.aligned.m{m}n{n}k{k}.row.col.{types} {d}, {a}, {b}, {c}"));
        results
    }

    pub(super) fn async_copy(&mut self, to: &Address, from: &Address, bytes: u8) {
        let (to, from) = (self.place(to, bytes as u32), self.place(from, bytes as u32));
        // Sixteen bytes may pass by the first cache; fewer may not.
        let cache = if bytes == 16 { "cg" } else { "ca" };
        let line = format!("cp.async.{cache}.shared.global {}, {}, {bytes}", to.at(0), from.at(0));
        self.text.line(format_args!("{line}"));
    }
}

/// A type as `mma` spells it, from its name.
pub(super) fn spelled(name: &'static str) -> &'static str {
    match name {
        "i8" => "s8",
        "i32" => "s32",
        "e4m3fn" => "e4m3",
        other => other,
    }
}
