//! PTX text under construction: registers by class, lines, operands.
//!
//! Always holds: every register is declared once, numbers follow the order of first use, so the same kernel gives the
//! same text; an immediate stands only where its instruction takes one.

use std::fmt::{self, Display, Write};

/// Where a 32-bit piece of a value, a 64-bit lane or a bool is. A vector of narrow lanes is packed as it lies in
/// memory: four bytes or two halves to a word, lane 0 lowest; bits of a word past the value are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// A 32-bit register.
    R(u32),
    /// A 64-bit register.
    D(u32),
    /// A predicate.
    P(u32),
    /// 32 bits known now.
    I(u32),
    /// 64 bits known now.
    L(u64),
    /// A bool known now.
    B(bool),
}

impl Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Word::R(n) => write!(f, "%r{n}"),
            Word::D(n) => write!(f, "%d{n}"),
            Word::P(n) => write!(f, "%p{n}"),
            Word::I(bits) if *bits < 1 << 16 => write!(f, "{bits}"),
            Word::I(bits) if *bits > u32::MAX - (1 << 15) => write!(f, "{}", *bits as i32),
            Word::I(bits) => write!(f, "{bits:#x}"),
            Word::L(bits) if *bits < 1 << 16 => write!(f, "{bits}"),
            Word::L(bits) if *bits > u64::MAX - (1 << 15) => write!(f, "{}", *bits as i64),
            Word::L(bits) => write!(f, "{bits:#x}"),
            Word::B(bit) => write!(f, "{}", *bit as u8),
        }
    }
}

/// A word as an operand of an `f32` instruction: immediates are spelled as floats.
#[derive(Clone, Copy)]
pub struct F(pub Word);

impl Display for F {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Word::I(bits) => write!(f, "0f{bits:08X}"),
            other => write!(f, "{other}"),
        }
    }
}

/// A 16-bit register, which only conversions use.
#[derive(Clone, Copy, Debug)]
pub struct Half(u32);

impl Display for Half {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%h{}", self.0)
    }
}

/// The body of an entry, and how many registers of each class it has.
#[derive(Debug, Default)]
pub struct Text {
    /// The lines so far.
    pub body: String,
    words: u32,
    doubles: u32,
    predicates: u32,
    halves: u32,
    labels: u32,
}

impl Text {
    /// A new 32-bit register.
    pub fn new_word(&mut self) -> Word {
        self.words += 1;
        Word::R(self.words - 1)
    }

    /// A new 64-bit register.
    pub fn new_double(&mut self) -> Word {
        self.doubles += 1;
        Word::D(self.doubles - 1)
    }

    /// A new predicate.
    pub fn new_predicate(&mut self) -> Word {
        self.predicates += 1;
        Word::P(self.predicates - 1)
    }

    /// A new 16-bit register.
    pub fn new_half(&mut self) -> Half {
        self.halves += 1;
        Half(self.halves - 1)
    }

    /// A new register of the class of a word.
    pub fn new_like(&mut self, word: Word) -> Word {
        match word {
            Word::R(_) | Word::I(_) => self.new_word(),
            Word::D(_) | Word::L(_) => self.new_double(),
            Word::P(_) | Word::B(_) => self.new_predicate(),
        }
    }

    /// A number for the labels of one loop or branch.
    pub fn new_label(&mut self) -> u32 {
        self.labels += 1;
        self.labels - 1
    }

    /// One instruction.
    pub fn line(&mut self, text: fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.body, "\t{text};");
    }

    /// A label.
    pub fn label(&mut self, name: &str, number: u32) {
        let _ = writeln!(self.body, "{name}_{number}:");
    }

    /// A comment on a line of its own.
    pub fn comment(&mut self, text: &str) {
        let _ = writeln!(self.body, "\t// {text}");
    }

    fn operation(&mut self, op: &str, result: &dyn Display, operands: &[&dyn Display]) {
        let _ = write!(self.body, "\t{op} {result}");
        for operand in operands {
            let _ = write!(self.body, ", {operand}");
        }
        self.body.push_str(";\n");
    }

    /// An instruction whose result is a new 32-bit register.
    pub fn b32(&mut self, op: &str, operands: &[&dyn Display]) -> Word {
        let result = self.new_word();
        self.operation(op, &result, operands);
        result
    }

    /// An instruction whose result is a new 64-bit register.
    pub fn b64(&mut self, op: &str, operands: &[&dyn Display]) -> Word {
        let result = self.new_double();
        self.operation(op, &result, operands);
        result
    }

    /// An instruction whose result is a new predicate.
    pub fn pred(&mut self, op: &str, operands: &[&dyn Display]) -> Word {
        let result = self.new_predicate();
        self.operation(op, &result, operands);
        result
    }

    /// An instruction whose result is a new 16-bit register.
    pub fn b16(&mut self, op: &str, operands: &[&dyn Display]) -> Half {
        let result = self.new_half();
        self.operation(op, &result, operands);
        result
    }

    /// The word in a register, moved there if it is an immediate.
    pub fn reg(&mut self, word: Word) -> Word {
        match word {
            Word::I(_) => self.b32("mov.b32", &[&word]),
            Word::L(_) => self.b64("mov.b64", &[&word]),
            Word::B(bit) => self.pred(if bit { "setp.eq.u32" } else { "setp.ne.u32" }, &[&0, &0]),
            Word::R(_) | Word::D(_) | Word::P(_) => word,
        }
    }

    /// Copies a word to a register.
    pub fn copy(&mut self, to: Word, from: Word) {
        match (to, from) {
            _ if to == from => {}
            (Word::P(_), Word::B(bit)) => {
                let op = if bit { "setp.eq.u32" } else { "setp.ne.u32" };
                self.line(format_args!("{op} {to}, 0, 0"));
            }
            (Word::P(_), _) => self.line(format_args!("mov.pred {to}, {from}")),
            (Word::D(_), _) => self.line(format_args!("mov.b64 {to}, {from}")),
            _ => self.line(format_args!("mov.b32 {to}, {from}")),
        }
    }

    /// The two 16-bit halves of a word, low first.
    pub fn split(&mut self, word: Word) -> [Half; 2] {
        let (low, high) = (self.new_half(), self.new_half());
        self.line(format_args!("mov.b32 {{{low}, {high}}}, {word}"));
        [low, high]
    }

    /// A word from its 16-bit halves.
    pub fn join(&mut self, low: Half, high: Half) -> Word {
        let result = self.new_word();
        self.line(format_args!("mov.b32 {result}, {{{low}, {high}}}"));
        result
    }

    /// The low and high word of a 64-bit one.
    pub fn split_double(&mut self, double: Word) -> [Word; 2] {
        if let Word::L(bits) = double {
            return [Word::I(bits as u32), Word::I((bits >> 32) as u32)];
        }
        let (low, high) = (self.new_word(), self.new_word());
        self.line(format_args!("mov.b64 {{{low}, {high}}}, {double}"));
        [low, high]
    }

    /// A 64-bit word from two.
    pub fn join_double(&mut self, low: Word, high: Word) -> Word {
        if let (Word::I(low), Word::I(high)) = (low, high) {
            return Word::L((high as u64) << 32 | low as u64);
        }
        let (low, high) = (self.reg(low), self.reg(high));
        let result = self.new_double();
        self.line(format_args!("mov.b64 {result}, {{{low}, {high}}}"));
        result
    }

    /// The declarations of all registers.
    pub fn declarations(&self) -> String {
        let mut out = String::new();
        let classes = [(".b32", "r", self.words), (".b64", "d", self.doubles), (".pred", "p", self.predicates)];
        for (ty, name, count) in classes.into_iter().chain([(".b16", "h", self.halves)]) {
            if count > 0 {
                let _ = writeln!(out, "\t.reg {ty} %{name}<{count}>;");
            }
        }
        out
    }
}
