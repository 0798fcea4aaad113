//! The parser: text to kernel.
//!
//! Reads the text form below; makes a kernel that the verifier has yet to check. Always holds: it never panics, its
//! recursion is bounded by [`MAX_DEPTH`], and its memory by the length of the text, so hostile text is refused or
//! read, and nothing else.
//!
//! ```text
//! kernel     = "kernel" "@" name "(" [param {"," param}] ")" "workgroup" int int int "{" {head} {statement} "}"
//! param      = name ":" (("read" | "write" | "readwrite") "align" int | scalar)
//! head       = "shared" name ":" int "align" int            an array of that many bytes
//!            | "unused" define                              a value number that nothing defines
//! statement  = [define {"," define} "="] inst
//! define     = value ":" type
//! value      = "%" digits                                   numbers run from 0 without a hole
//! type       = scalar ["x" lanes]                           i32, f16x4
//! scalar     = bool | i8 | i16 | i32 | i64 | f16 | bf16 | f32 | e4m3fn | e4m3fnuz | e5m2 | e5m2fnuz | e8m0
//!
//! inst       = "const" (number | "[" number {"," number} "]")      one number for every lane, or one per lane
//!            | "arg" name
//!            | ("workgroup_id" | "workgroup_count" | "local_id") "." ("x" | "y" | "z") | "lane" | "subgroup"
//!            | bin value "," value
//!            | un value
//!            | cmp value "," value
//!            | cast value                                          to the type of the result
//!            | "select" value "," value "," value                  condition, where true, where false
//!            | "bitcast" value
//!            | "fma" value "," value "," value
//!            | "vector" "[" values "]"
//!            | "splat" value
//!            | "extract" value "," int
//!            | "swizzle" value "," value "," "[" int {"," int} "]"
//!            | "load" address "align" int
//!            | "store" address "align" int "," value
//!            | "prefetch" address
//!            | "barrier"
//!            | "for" define "=" value "to" value "step" int ["carry" "(" carried {"," carried} ")"] block
//!            | "if" value block ["else" block]
//!            | "yield" [values]                                    the values stand on the line of the `yield`
//!            | ("unpack_u" | "unpack_s") value "shift" int "bits" int
//!            | ("dot4_ss" | "dot4_us") value "," value "," value "a_bits" int       a, b, accumulator
//!            | "dot2" value "," value "," value                    a, b, accumulator
//!            | "permute_bytes" value "," value                     table, index
//!            | ("shuffle_index" | "shuffle_xor" | "shuffle_down") value "," value
//!            | ("subgroup_add" | "subgroup_max") value
//!            | "atomic_add" address "," value
//! carried    = define "=" value
//! block      = "{" {statement} "}"           a block that does not end with `yield` gets one of nothing; so does a
//!                                            missing `else`; the body of the kernel has none
//! address    = name "[" (value ["+" int] | int) "]"         bytes
//! values     = value {"," value}
//! bin        = add | sub | mul | div | div_s | rem_s | min | max | min_s | max_s | and | or | xor
//!            | shl | shr_u | shr_s
//! un         = neg | not | abs | sqrt | nearest | floor | exp2 | popcount
//! cmp        = eq | ne | lt | le | lt_s | le_s | lt_u
//! cast       = truncate | extend_u | extend_s | int_to_float_s | int_to_float_u | float_to_int_s | convert
//! number     = int for an integer type; "true" or "false" for a bool; a decimal for f32, f16 and bf16, rounded to
//!              nearest even; for any type "0x" digits, the bits of the lane (the only form for fp8, e8m0, NaN, ∞)
//! int        = ["-"] digits | "0x" digits
//! name       = (letter | "_") {letter | digit | "_"}
//! ```
//!
//! White space separates; `//` starts a comment up to the end of the line.

mod asynchronous;
mod constant;
mod cooperative;
mod words;

use self::words::scalar;
use super::kernel::{Address, Block, For, If, Inst, Kernel, Param, ParamKind, Shared, Statement};
use super::lexer::{Lexeme, Lexer, Token};
use super::names::{self, find};
use super::types::{Memory, Type, Value};
use crate::caps::{MmaShape, matrix_shapes};
use std::collections::{BTreeMap, HashMap};

/// How deep blocks may nest.
pub const MAX_DEPTH: usize = 64;

/// Why a text is no kernel: where it stopped making sense, and what would have been right there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: found {found}, expected {expected}")]
pub struct ParseError {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// What stands there.
    pub found: String,
    /// What may stand there.
    pub expected: String,
}

/// The line of each place that a [`super::Diagnostic`] can name.
#[derive(Clone, Debug, Default)]
pub struct Lines(BTreeMap<String, u32>);

impl Lines {
    /// The line of a place, from 1.
    pub fn of(&self, place: &str) -> Option<u32> {
        self.0.get(place).copied()
    }
}

/// Reads one kernel.
pub fn parse(text: &str) -> Result<Kernel, ParseError> {
    parse_with_lines(text).map(|(kernel, _)| kernel)
}

/// Reads one kernel, and keeps the line of each statement, parameter and shared array.
pub fn parse_with_lines(text: &str) -> Result<(Kernel, Lines), ParseError> {
    let mut lexer = Lexer::new(text);
    let next = lexer.next();
    let mut parser = Parser {
        lexer,
        next,
        line: 1,
        memories: HashMap::new(),
        types: BTreeMap::new(),
        lines: Lines::default(),
        path: "body".to_string(),
        depth: 0,
    };
    let kernel = parser.kernel()?;
    Ok((kernel, parser.lines))
}

type Parsed<T> = Result<T, ParseError>;

struct Parser<'t> {
    lexer: Lexer<'t>,
    /// The token to be read next.
    next: Lexeme<'t>,
    /// Line of the token read last.
    line: u32,
    memories: HashMap<&'t str, Memory>,
    types: BTreeMap<u32, (Type, Lexeme<'t>)>,
    lines: Lines,
    /// Path of the block that is being read.
    path: String,
    depth: usize,
}

impl<'t> Parser<'t> {
    fn kernel(&mut self) -> Parsed<Kernel> {
        self.word("kernel")?;
        self.lines.0.insert("kernel".to_string(), self.line);
        self.mark('@')?;
        let name = self.name()?.to_string();
        let mut params = Vec::new();
        self.mark('(')?;
        if !self.eat(')') {
            loop {
                let at = self.next;
                let param = self.name()?;
                if params.len() > u16::MAX as usize {
                    return Err(self.error(at, "at most 65536 parameters"));
                }
                // The first of several equal names is meant; the verifier refuses the others.
                self.memories.entry(param).or_insert(Memory::Param(params.len() as u16));
                self.lines.0.entry(format!("param {param}")).or_insert(self.line);
                params.push(Param { name: param.to_string(), kind: self.param_kind()? });
                if !self.more(')')? {
                    break;
                }
            }
        }
        self.word("workgroup")?;
        let workgroup = [self.int()?, self.int()?, self.int()?];
        self.mark('{')?;
        let mut shared = Vec::new();
        loop {
            let at = self.next;
            if self.eat_word("unused") {
                self.define()?;
            } else if self.eat_word("shared") {
                let name = self.name()?;
                if shared.len() > u16::MAX as usize {
                    return Err(self.error(at, "at most 65536 shared arrays"));
                }
                self.memories.entry(name).or_insert(Memory::Shared(shared.len() as u16));
                self.lines.0.entry(format!("shared {name}")).or_insert(self.line);
                self.mark(':')?;
                let bytes = self.int()?;
                self.word("align")?;
                shared.push(Shared { name: name.to_string(), bytes, align: self.int()? });
            } else {
                break;
            }
        }
        let body = Block { statements: self.statements()? };
        let at = self.next;
        if at.token != Token::End {
            return Err(self.error(at, "the end of the text"));
        }
        Ok(Kernel { name, params, shared, workgroup, types: self.all_types()?, body })
    }

    fn param_kind(&mut self) -> Parsed<ParamKind> {
        self.mark(':')?;
        let at = self.next;
        let word = self.any_word("an access right (read, write, readwrite) or a scalar type")?;
        if let Some(access) = find(names::ACCESS, word) {
            self.word("align")?;
            return Ok(ParamKind::Buffer { access, align: self.int()? });
        }
        match scalar(word) {
            Some(scalar) => Ok(ParamKind::Scalar(scalar)),
            None => Err(self.error(at, "an access right (read, write, readwrite) or a scalar type")),
        }
    }

    /// The types in the order of the values' numbers, which must have no hole.
    fn all_types(&self) -> Parsed<Vec<Type>> {
        let mut types = Vec::with_capacity(self.types.len());
        for (&number, &(ty, at)) in &self.types {
            if number as usize != types.len() {
                let hole = types.len();
                return Err(self.error(at, &format!("a definition of %{hole} too, or `unused %{hole}: type`")));
            }
            types.push(ty);
        }
        Ok(types)
    }

    /// Statements up to the closing brace, which is read too.
    fn statements(&mut self) -> Parsed<Vec<Statement>> {
        let mut statements = Vec::new();
        while !self.eat('}') {
            let length = self.path.len();
            self.path.push_str(&format!(".{}", statements.len()));
            self.lines.0.insert(self.path.clone(), self.next.line);
            statements.push(self.statement()?);
            self.path.truncate(length);
        }
        Ok(statements)
    }

    fn block(&mut self, part: &str) -> Parsed<Block> {
        let at = self.next;
        self.mark('{')?;
        if self.depth == MAX_DEPTH {
            return Err(self.error(at, &format!("at most {MAX_DEPTH} nested blocks")));
        }
        self.depth += 1;
        let length = self.path.len();
        self.path.push_str(part);
        let mut statements = self.statements()?;
        if !matches!(statements.last(), Some(Statement { inst: Inst::Yield(_), .. })) {
            self.lines.0.insert(format!("{}.{}", self.path, statements.len()), self.line);
            statements.push(bare_yield());
        }
        self.path.truncate(length);
        self.depth -= 1;
        Ok(Block { statements })
    }

    fn statement(&mut self) -> Parsed<Statement> {
        let mut results = Vec::new();
        if matches!(self.next.token, Token::Value(_)) {
            loop {
                results.push(self.define()?);
                if !self.more('=')? {
                    break;
                }
            }
        }
        let ty = results.first().and_then(|v| self.types.get(&v.0)).map(|(ty, _)| *ty);
        let inst = self.inst(ty)?;
        Ok(Statement { results, inst })
    }

    fn inst(&mut self, ty: Option<Type>) -> Parsed<Inst> {
        let at = self.next;
        let word = self.any_word("an instruction, a value, or `}`")?;
        if let Some(op) = find(names::BIN, word) {
            return Ok(Inst::Bin(op, self.value()?, self.comma_value()?));
        }
        if let Some(op) = find(names::UN, word) {
            return Ok(Inst::Un(op, self.value()?));
        }
        if let Some(op) = find(names::CMP, word) {
            return Ok(Inst::Cmp(op, self.value()?, self.comma_value()?));
        }
        if let Some(op) = find(names::CAST, word) {
            return Ok(Inst::Cast(op, self.value()?));
        }
        if let Some(op) = find(names::REDUCE, word) {
            return Ok(Inst::SubgroupReduce(op, self.value()?));
        }
        if let Some(mode) = find(names::SHUFFLE, word) {
            return Ok(Inst::Shuffle { mode, value: self.value()?, index: self.comma_value()? });
        }
        if let Some(signed) = find(names::UNPACK, word) {
            let a = self.value()?;
            self.word("shift")?;
            let shift = self.int()?;
            self.word("bits")?;
            return Ok(Inst::Unpack { a, shift, bits: self.int()?, signed });
        }
        if let Some(signs) = find(names::DOT4, word) {
            let (a, b, acc) = (self.value()?, self.comma_value()?, self.comma_value()?);
            self.word("a_bits")?;
            return Ok(Inst::Dot4 { signs, a_bits: self.int()?, a, b, acc });
        }
        if names::BUILTIN.iter().any(|(_, name, _)| *name == word) {
            return self.builtin(word);
        }
        Ok(match word {
            "const" => match ty {
                Some(ty) => Inst::Const(self.constant(ty.scalar)?),
                None => return Err(self.error(at, "a result with a type before a constant: `%0: i32 = const 1`")),
            },
            "arg" => {
                let at = self.next;
                match self.memory()? {
                    Memory::Param(index) => Inst::Arg(index),
                    Memory::Shared(_) => return Err(self.error(at, "the name of a parameter")),
                }
            }
            "select" => Inst::Select { cond: self.value()?, a: self.comma_value()?, b: self.comma_value()? },
            "bitcast" => Inst::Bitcast(self.value()?),
            "fma" => Inst::Fma(self.value()?, self.comma_value()?, self.comma_value()?),
            "dot2" => Inst::Dot2 { a: self.value()?, b: self.comma_value()?, acc: self.comma_value()? },
            "vector" => Inst::Vector(self.bracketed(Self::value)?),
            "splat" => Inst::Splat(self.value()?),
            "extract" => {
                let vector = self.value()?;
                self.mark(',')?;
                Inst::Extract { vector, lane: self.int()? }
            }
            "swizzle" => {
                let (a, b) = (self.value()?, self.comma_value()?);
                self.mark(',')?;
                Inst::Swizzle { a, b, lanes: self.bracketed(Self::int)? }
            }
            "load" => Inst::Load { address: self.address()?, align: self.align()? },
            "prefetch" => Inst::Prefetch(self.address()?),
            "store" => Inst::Store { address: self.address()?, align: self.align()?, value: self.comma_value()? },
            "barrier" => Inst::Barrier,
            "atomic_add" => Inst::AtomicAdd { address: self.address()?, value: self.comma_value()? },
            "mma" => {
                let shape = self.shape()?;
                Inst::Mma { shape, a: self.value()?, b: self.comma_value()?, acc: self.comma_value()? }
            }
            "async_copy" => {
                let to = self.address()?;
                self.mark(',')?;
                let from = self.address()?;
                self.word("bytes")?;
                Inst::AsyncCopy { to, from, bytes: self.int()? }
            }
            "async_commit" => Inst::AsyncCommit,
            "async_wait" => Inst::AsyncWait(self.int()?),
            word if asynchronous::NAMES.contains(&word) => Inst::Asynchronous(Box::new(self.asynchronous(word)?)),
            word if cooperative::NAMES.contains(&word) => Inst::Cooperative(Box::new(self.cooperative(word)?)),
            "permute_long" => {
                Inst::PermuteLong { low: self.value()?, high: self.comma_value()?, index: self.comma_value()? }
            }
            "permute_bytes" => Inst::PermuteBytes { table: self.value()?, index: self.comma_value()? },
            "yield" => Inst::Yield(self.yielded()?),
            "for" => self.for_loop()?,
            "if" => {
                let cond = self.value()?;
                let then = self.block(".then")?;
                let otherwise = if self.eat_word("else") {
                    self.block(".else")?
                } else {
                    self.lines.0.insert(format!("{}.else.0", self.path), self.line);
                    Block { statements: vec![bare_yield()] }
                };
                Inst::If(Box::new(If { cond, then, otherwise }))
            }
            _ => return Err(self.error(at, "an instruction")),
        })
    }

    fn shape(&mut self) -> Parsed<&'static MmaShape> {
        let at = self.next;
        let name = self.any_word("a matrix instruction such as m16n8k16_f16_f16_f32_l32")?;
        match matrix_shapes().find(|shape| shape.to_string() == name) {
            Some(shape) => Ok(shape),
            None => Err(self.error(at, "a matrix instruction such as m16n8k16_f16_f16_f32_l32")),
        }
    }

    fn for_loop(&mut self) -> Parsed<Inst> {
        let variable = self.define()?;
        self.mark('=')?;
        let start = self.value()?;
        self.word("to")?;
        let end = self.value()?;
        self.word("step")?;
        let step = self.int()?;
        let mut carried = Vec::new();
        if self.eat_word("carry") {
            self.mark('(')?;
            loop {
                let inside = self.define()?;
                self.mark('=')?;
                carried.push((inside, self.value()?));
                if !self.more(')')? {
                    break;
                }
            }
        }
        let body = self.block(".for")?;
        Ok(Inst::For(Box::new(For { variable, start, end, step, carried, body })))
    }

    /// Values on the line of the `yield`: without that rule a bare one would swallow the next statement's results.
    fn yielded(&mut self) -> Parsed<Vec<Value>> {
        let mut values = Vec::new();
        let line = self.line;
        if matches!(self.next.token, Token::Value(_)) && self.next.line == line {
            values.push(self.value()?);
            while self.eat(',') {
                values.push(self.value()?);
            }
        }
        Ok(values)
    }

    fn builtin(&mut self, word: &str) -> Parsed<Inst> {
        let at = self.next;
        let axis = match names::BUILTIN.iter().any(|(_, name, axis)| *name == word && axis.is_empty()) {
            true => "",
            false => {
                self.mark('.')?;
                self.any_word("an axis: x, y or z")?
            }
        };
        match names::BUILTIN.iter().find(|(_, name, known)| *name == word && *known == axis) {
            Some((builtin, ..)) => Ok(Inst::Builtin(*builtin)),
            None => Err(self.error(at, "an axis: .x, .y or .z")),
        }
    }

    fn address(&mut self) -> Parsed<Address> {
        let memory = self.memory()?;
        self.mark('[')?;
        let (index, offset) = match self.next.token {
            Token::Value(_) => {
                let index = self.value()?;
                (Some(index), if self.eat('+') { self.int()? } else { 0 })
            }
            _ => (None, self.int()?),
        };
        self.mark(']')?;
        Ok(Address { memory, index, offset })
    }

    fn align(&mut self) -> Parsed<u32> {
        self.word("align")?;
        self.int()
    }
}

fn bare_yield() -> Statement {
    Statement { results: Vec::new(), inst: Inst::Yield(Vec::new()) }
}
