//! The walk over a kernel: statements in order, loops and branches as labels, values as lists of words.
//!
//! Always holds: each statement is written once, where it stands; what a value's words are is known before any use, as
//! the verifier has promised.

use super::PtxTarget;
use super::text::{Text, Word};
use crate::ir::{
    Block, Constant, For, If, Inst, Kernel, ParamKind, Scalar, Statement, Type, Uniform, Value, resources,
    statement_head, uniformity,
};
use std::fmt::Write;

/// Bytes of shared memory that an entry may declare; more is asked for by the launch.
pub const STATIC_SHARED: u64 = 48 << 10;

/// A kernel being written.
pub(super) struct Emitter<'k> {
    pub kernel: &'k Kernel,
    pub target: PtxTarget,
    pub text: Text,
    /// The words of each value.
    pub values: Vec<Vec<Word>>,
    /// The start of each parameter's buffer, or the scalar itself.
    pub params: Vec<Word>,
    /// The start of each shared array.
    pub shared: Vec<Word>,
    /// The lanes of a subgroup that exist, and the highest of them.
    pub members: Word,
    pub last_lane: Word,
    uniform: Vec<Uniform>,
}

/// The whole module for one kernel.
pub(super) fn module(kernel: &Kernel, target: PtxTarget) -> String {
    let mut emitter = Emitter {
        kernel,
        target,
        text: Text::default(),
        values: vec![Vec::new(); kernel.types.len()],
        params: Vec::new(),
        shared: Vec::new(),
        members: Word::I(u32::MAX),
        last_lane: Word::I(31),
        uniform: uniformity(kernel, target.caps.subgroup),
    };
    emitter.prologue();
    emitter.block(&kernel.body, &[]);
    emitter.text.line(format_args!("ret"));
    emitter.finish()
}

impl Emitter<'_> {
    /// Everything before the first statement: the header is known only when the registers are counted.
    fn finish(self) -> String {
        let (kernel, arch) = (self.kernel, self.target.arch);
        let mut out = String::with_capacity(self.text.body.len() + 2048);
        let _ = writeln!(out, ".version {}\n.target {}\n.address_size 64\n", arch.version, arch.name);
        if dynamic(kernel) {
            let align = kernel.shared.iter().map(|array| array.align).max().unwrap_or(1);
            let _ = writeln!(out, ".extern .shared .align {align} .b8 shared_memory[];\n");
        }
        let _ = writeln!(out, ".visible .entry {}(", kernel.name);
        for (i, param) in kernel.params.iter().enumerate() {
            let comma = if i + 1 < kernel.params.len() { "," } else { "" };
            let name = &param.name;
            let _ = match param.kind {
                ParamKind::Buffer { align, .. } => {
                    writeln!(out, "\t.param .u64 .ptr .global .align {align} arg_{name}{comma}")
                }
                ParamKind::Scalar(scalar) => writeln!(out, "\t.param {} arg_{name}{comma}", param_type(scalar)),
            };
        }
        let [x, y, z] = kernel.workgroup;
        let _ = writeln!(out, ")\n.reqntid {x}, {y}, {z}");
        // Without a bound, the assembler takes fewer registers than it needs wherever that lets one more workgroup run, and
        // keeps the rest in local memory.
        if let Some(resources) = resources(kernel, self.target.caps) {
            let _ = writeln!(out, ".maxnreg {}", resources.registers);
        }
        out.push_str("{\n");
        out.push_str(&self.text.declarations());
        if !dynamic(kernel) {
            for array in &kernel.shared {
                let (name, align, bytes) = (&array.name, array.align, array.bytes);
                let _ = writeln!(out, "\t.shared .align {align} .b8 shared_{name}[{bytes}];");
            }
        }
        out.push_str(&self.text.body);
        out.push_str("}\n");
        out
    }

    fn prologue(&mut self) {
        for param in &self.kernel.params {
            let name = format!("[arg_{}]", param.name);
            let word = match param.kind {
                ParamKind::Buffer { .. } => {
                    let address = self.text.b64("ld.param.u64", &[&name]);
                    self.text.b64("cvta.to.global.u64", &[&address])
                }
                ParamKind::Scalar(Scalar::I64) => self.text.b64("ld.param.u64", &[&name]),
                ParamKind::Scalar(scalar) => self.text.b32(&format!("ld.param{}", param_type(scalar)), &[&name]),
            };
            self.params.push(word);
        }
        if dynamic(self.kernel) {
            let start = self.text.b32("mov.u32", &[&"shared_memory"]);
            let mut at = 0u32;
            for array in &self.kernel.shared {
                at = at.div_ceil(array.align) * array.align;
                let base = if at == 0 { start } else { self.text.b32("add.s32", &[&start, &at]) };
                self.shared.push(base);
                at += array.bytes;
            }
        } else {
            for array in &self.kernel.shared {
                let base = self.text.b32("mov.u32", &[&format!("shared_{}", array.name)]);
                self.shared.push(base);
            }
        }
        if uses_subgroups(&self.kernel.body) {
            self.subgroup_prologue();
        }
    }

    /// The words of a value.
    pub fn words(&self, value: Value) -> Vec<Word> {
        self.values[value.0 as usize].clone()
    }

    /// The one word of a scalar.
    pub fn scalar(&self, value: Value) -> Word {
        self.values[value.0 as usize][0]
    }

    /// The type of a value.
    pub fn ty(&self, value: Value) -> Type {
        self.kernel.ty(value)
    }

    /// Writes a block; its yield copies to the words of `targets`.
    fn block(&mut self, block: &Block, targets: &[Vec<Word>]) {
        for statement in &block.statements {
            match &statement.inst {
                Inst::Const(constant) => {
                    let value = statement.results[0];
                    self.values[value.0 as usize] = constant_words(constant, self.ty(value));
                }
                Inst::Yield(values) => self.copies(values, targets),
                Inst::For(inner) => {
                    self.note(statement);
                    self.for_loop(inner, &statement.results);
                }
                Inst::If(inner) => {
                    self.note(statement);
                    self.branch(inner, &statement.results);
                }
                _ => {
                    self.note(statement);
                    let words = self.instruction(statement);
                    if let Some(&result) = statement.results.first() {
                        self.values[result.0 as usize] = words;
                    }
                }
            }
        }
    }

    fn note(&mut self, statement: &Statement) {
        let head = statement_head(self.kernel, statement);
        // The assembler takes ASCII only, comments included.
        self.text.comment(&head.replace('…', "..."));
    }

    /// Copies values to registers as if all at once: a yield may swap carried values.
    fn copies(&mut self, values: &[Value], targets: &[Vec<Word>]) {
        let mut pairs: Vec<(Word, Word)> = Vec::new();
        for (&value, target) in values.iter().zip(targets) {
            pairs.extend(target.iter().copied().zip(self.words(value)).filter(|(to, from)| to != from));
        }
        let written: Vec<Word> = pairs.iter().map(|&(to, _)| to).collect();
        let mut later = Vec::new();
        for (i, (to, from)) in pairs.into_iter().enumerate() {
            // A source that an earlier copy overwrites is saved first.
            let from = if written[..i].contains(&from) {
                let saved = self.text.new_like(from);
                self.text.copy(saved, from);
                saved
            } else {
                from
            };
            later.push((to, from));
        }
        for (to, from) in later {
            self.text.copy(to, from);
        }
    }

    /// Fresh registers for a value of this type.
    fn registers(&mut self, ty: Type) -> Vec<Word> {
        let count = word_count(ty);
        (0..count)
            .map(|_| match ty.scalar {
                Scalar::Bool => self.text.new_predicate(),
                Scalar::I64 => self.text.new_double(),
                _ => self.text.new_word(),
            })
            .collect()
    }

    fn uni(&self, values: &[Value]) -> &'static str {
        let apart = |value: &Value| self.uniform[value.0 as usize] == Uniform::Varying;
        if values.iter().any(apart) { "" } else { ".uni" }
    }

    fn for_loop(&mut self, inner: &For, results: &[Value]) {
        let wide = self.ty(inner.variable).scalar == Scalar::I64;
        let kind = if wide { "s64" } else { "s32" };
        let uni = self.uni(&[inner.start, inner.end]);
        let mut carried = Vec::new();
        for &(name, start) in &inner.carried {
            let words = self.registers(self.ty(name));
            for (to, from) in words.iter().zip(self.words(start)) {
                self.text.copy(*to, from);
            }
            self.values[name.0 as usize] = words.clone();
            carried.push(words);
        }
        let variable = self.registers(self.ty(inner.variable));
        self.text.copy(variable[0], self.scalar(inner.start));
        self.values[inner.variable.0 as usize] = variable.clone();
        let (counter, end) = (variable[0], self.scalar(inner.end));
        let number = self.text.new_label();
        let skip = self.text.pred(&format!("setp.ge.{kind}"), &[&counter, &end]);
        self.text.line(format_args!("@{skip} bra{uni} $end_{number}"));
        self.text.label("$for", number);
        self.block(&inner.body, &carried);
        self.text.line(format_args!("add.{kind} {counter}, {counter}, {}", inner.step));
        let again = self.text.pred(&format!("setp.lt.{kind}"), &[&counter, &end]);
        self.text.line(format_args!("@{again} bra{uni} $for_{number}"));
        self.text.label("$end", number);
        for (&result, words) in results.iter().zip(carried) {
            self.values[result.0 as usize] = words;
        }
    }

    fn branch(&mut self, inner: &If, results: &[Value]) {
        let targets: Vec<Vec<Word>> = results.iter().map(|&result| self.registers(self.ty(result))).collect();
        let cond = self.scalar(inner.cond);
        let cond = self.text.reg(cond);
        let uni = self.uni(&[inner.cond]);
        let number = self.text.new_label();
        let has_else = inner.otherwise.statements.len() > 1 || !results.is_empty();
        let first = if has_else { "$else" } else { "$end" };
        self.text.line(format_args!("@!{cond} bra{uni} {first}_{number}"));
        self.block(&inner.then, &targets);
        if has_else {
            self.text.line(format_args!("bra.uni $end_{number}"));
            self.text.label("$else", number);
            self.block(&inner.otherwise, &targets);
        }
        self.text.label("$end", number);
        for (&result, words) in results.iter().zip(targets) {
            self.values[result.0 as usize] = words;
        }
    }

    /// Writes one instruction that is neither constant nor control flow; gives its result's words.
    fn instruction(&mut self, statement: &Statement) -> Vec<Word> {
        let ty = statement.results.first().map_or(Type::scalar(Scalar::I32), |&result| self.ty(result));
        match &statement.inst {
            Inst::Arg(number) => vec![self.params[*number as usize]],
            Inst::Builtin(builtin) => vec![self.builtin(*builtin)],
            Inst::Bin(op, a, b) => self.bin(*op, *a, *b, ty),
            Inst::Un(op, a) => self.un(*op, *a, ty),
            Inst::Cmp(op, a, b) => self.cmp(*op, *a, *b),
            Inst::Select { cond, a, b } => self.select(*cond, *a, *b, ty),
            Inst::Cast(op, a) => self.cast(*op, *a, ty),
            Inst::Bitcast(a) => {
                let words = self.words(*a);
                self.bitcast(&words, self.ty(*a), ty)
            }
            Inst::Fma(a, b, c) => self.fma(*a, *b, *c, ty),
            Inst::Vector(parts) => {
                let words: Vec<Vec<Word>> = parts.iter().map(|&part| self.words(part)).collect();
                let one = ty.with_lanes(1);
                let picks: Vec<_> = words.iter().map(|words| (&words[..], one, 0)).collect();
                self.pick(ty.scalar, &picks)
            }
            Inst::Splat(a) => {
                let words = self.words(*a);
                let picks = vec![(&words[..], ty.with_lanes(1), 0); ty.lanes as usize];
                self.pick(ty.scalar, &picks)
            }
            Inst::Extract { vector, lane } => {
                let words = self.words(*vector);
                vec![self.lane(&words, self.ty(*vector), *lane, super::lanes::Fill::Zero)]
            }
            Inst::Swizzle { a, b, lanes } => {
                let from = self.ty(*a);
                let (first, second) = (self.words(*a), self.words(*b));
                let picks: Vec<_> = lanes
                    .iter()
                    .map(|&lane| {
                        let words = if lane < from.lanes { &first } else { &second };
                        (&words[..], from, lane % from.lanes)
                    })
                    .collect();
                self.pick(ty.scalar, &picks)
            }
            Inst::Load { address, align } => self.load(address, *align, ty),
            Inst::Store { address, align, value } => {
                self.store(address, *align, *value);
                Vec::new()
            }
            Inst::Barrier => {
                self.text.line(format_args!("bar.sync 0"));
                Vec::new()
            }
            Inst::Unpack { a, shift, bits, signed } => self.unpack(*a, *shift, *bits, *signed, ty),
            Inst::Dot4 { signs, a, b, acc, .. } => self.dot4(*signs, *a, *b, *acc),
            Inst::PermuteBytes { table, index } => self.permute(*table, *index),
            Inst::Shuffle { mode, value, index } => vec![self.shuffle(*mode, *value, *index)],
            Inst::SubgroupReduce(op, value) => vec![self.reduce(*op, *value)],
            Inst::AtomicAdd { address, value } => vec![self.atomic(address, *value)],
            Inst::Mma { shape, a, b, acc } => self.mma(shape, [*a, *b, *acc]),
            Inst::AsyncCopy { to, from, bytes } => {
                self.async_copy(to, from, *bytes);
                Vec::new()
            }
            Inst::AsyncCommit => {
                self.text.line(format_args!("cp.async.commit_group"));
                Vec::new()
            }
            Inst::AsyncWait(pending) => {
                self.text.line(format_args!("cp.async.wait_group {pending}"));
                Vec::new()
            }
            Inst::Asynchronous(inner) => self.asynchronous(inner),
            // Refused by `support` before.
            Inst::Cooperative(_) => Vec::new(),
            // Written by `block`, expanded before, or a hint that threads in great numbers make up for.
            Inst::Dot2 { .. }
            | Inst::PermuteLong { .. }
            | Inst::Prefetch(_)
            | Inst::Const(_)
            | Inst::For(_)
            | Inst::If(_)
            | Inst::Yield(_) => Vec::new(),
        }
    }
}

/// Whether shared memory is asked for by the launch instead of declared.
pub(super) fn dynamic(kernel: &Kernel) -> bool {
    kernel.shared_bytes() > STATIC_SHARED
}

fn param_type(scalar: Scalar) -> &'static str {
    match scalar {
        Scalar::I64 => ".u64",
        Scalar::F32 => ".f32",
        // The verifier takes no other scalar parameter.
        _ => ".u32",
    }
}

/// Words of a value.
pub(super) fn word_count(ty: Type) -> usize {
    match ty.scalar {
        Scalar::Bool | Scalar::I64 => ty.lanes as usize,
        _ => ty.bytes().div_ceil(4) as usize,
    }
}

fn constant_words(constant: &Constant, ty: Type) -> Vec<Word> {
    let lane = |lane: usize| match constant {
        Constant::Splat(bits) => *bits,
        Constant::Lanes(lanes) => lanes[lane],
    };
    let lanes = ty.lanes as usize;
    match ty.scalar {
        Scalar::Bool => (0..lanes).map(|i| Word::B(lane(i) != 0)).collect(),
        Scalar::I64 => (0..lanes).map(|i| Word::L(lane(i))).collect(),
        scalar => {
            let bits = scalar.bits() as usize;
            let mut words = vec![0u32; word_count(ty)];
            for i in 0..lanes {
                words[i * bits / 32] |= (lane(i) as u32) << (i * bits % 32);
            }
            words.into_iter().map(Word::I).collect()
        }
    }
}

fn uses_subgroups(block: &Block) -> bool {
    block.statements.iter().any(|statement| match &statement.inst {
        Inst::Shuffle { .. } | Inst::SubgroupReduce(..) => true,
        Inst::For(inner) => uses_subgroups(&inner.body),
        Inst::If(inner) => uses_subgroups(&inner.then) || uses_subgroups(&inner.otherwise),
        _ => false,
    })
}
