//! Statements: declarations, loops, branches, memory, what the lanes do together.
//!
//! Reads a kernel that `support` has passed, makes the lines of its body and the list of what they need. A pure value that
//! one statement of its own block reads is written where it is read, so that a line says about as much as a person's would.

use super::facts::{Fact, facts};
use super::matrix;
use super::names::Names;
use super::outline::{Outlines, outlines};
use super::text::{Binds, Expr};
use super::types::Vectors;
use super::webs::webs;
use crate::caps::{AmdGpu, Matrix};
use crate::ir::{Address, Block, Constant, Inst, Kernel, ReduceOp, Scalar, ShuffleMode, Statement, Type, Value};
use std::collections::BTreeSet;

/// A part of the helpers, which a kernel has only if it uses it. In the order in which they stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Piece {
    Mask,
    Least,
    Math,
    Saturate,
    Fused,
    CountBits,
    SmallFloat,
    Wave,
    Shuffle,
    Sync,
    Atomic,
    Dot4,
    LookUp,
    Order,
    Halves,
    Inline,
}

/// Longest text that is written where it is read.
const INLINE_TEXT: usize = 64;
/// Most operations in it, one inside the other.
const INLINE_DEPTH: u32 = 3;
/// Longest line.
pub(super) const LINE: usize = 116;

pub(super) struct Emitter<'k> {
    pub kernel: &'k Kernel,
    pub gpu: &'k AmdGpu,
    pub facts: Vec<Fact<'k>>,
    pub names: Names,
    pub vectors: Vectors,
    pub pieces: BTreeSet<Piece>,
    /// Small floats that the kernel converts.
    pub floats: BTreeSet<&'static str>,
    /// Helpers of matrix instructions.
    pub products: Vec<String>,
    /// What the kernel says again and again.
    pub outlines: Outlines,
    /// What the functions of `outlines` are called.
    pub functions: Vec<String>,
    /// The value that a function gives back where it is made.
    pub returns: Option<Value>,
    /// What each value is called, or the expression that stands for it.
    pub spelled: Vec<Option<Expr>>,
    inlined: Vec<bool>,
    /// The carried variable that takes a value where it is made.
    pub webs: Vec<Option<Value>>,
    pub lines: Vec<String>,
    pub depth: usize,
    /// The last declaration: its line and its type, for others of that type to join.
    declared: Option<(usize, String)>,
    /// The line of the last assignment.
    assigned: Option<usize>,
}

/// The body of a kernel and what it needs.
pub(super) struct Body {
    pub lines: Vec<String>,
    pub types: Vec<String>,
    pub pieces: BTreeSet<Piece>,
    pub floats: BTreeSet<&'static str>,
    pub products: Vec<String>,
    pub names: Names,
}

/// Emits the body of a kernel.
pub(super) fn body(kernel: &Kernel, gpu: &AmdGpu) -> Body {
    let mut emitter = Emitter::new(kernel, gpu);
    emitter.webs = webs(kernel, &emitter.facts);
    emitter.outlines = outlines(kernel, &emitter.facts, &emitter.webs);
    emitter.shared();
    emitter.write_functions();
    emitter.block(&kernel.body);
    if emitter.pieces.contains(&Piece::LookUp) {
        emitter.vectors.name(Type::vector(Scalar::I32, 4));
    }
    Body {
        lines: emitter.lines,
        types: emitter.vectors.declarations(),
        pieces: emitter.pieces,
        floats: emitter.floats,
        products: emitter.products,
        names: emitter.names,
    }
}

impl<'k> Emitter<'k> {
    /// An emitter of a kernel that has written nothing.
    pub(super) fn new(kernel: &'k Kernel, gpu: &'k AmdGpu) -> Emitter<'k> {
        Emitter {
            kernel,
            gpu,
            facts: facts(kernel),
            names: Names::new(kernel),
            vectors: Vectors::default(),
            pieces: BTreeSet::new(),
            floats: BTreeSet::new(),
            products: Vec::new(),
            outlines: Outlines::default(),
            functions: Vec::new(),
            returns: None,
            spelled: vec![None; kernel.types.len()],
            inlined: vec![false; kernel.types.len()],
            webs: vec![None; kernel.types.len()],
            lines: Vec::new(),
            depth: 1,
            declared: None,
            assigned: None,
        }
    }
}

impl Emitter<'_> {
    pub(super) fn ty(&self, value: Value) -> Type {
        self.kernel.ty(value)
    }

    /// Whether a value stands where it is read.
    pub(super) fn is_inlined(&self, value: Value) -> bool {
        self.inlined[value.0 as usize]
    }

    /// Whether a value has a name or an expression here; what a function has taken in has none.
    pub(super) fn is_spelled(&self, value: Value) -> bool {
        self.spelled[value.0 as usize].is_some()
    }

    /// Notes that a part of the helpers is used.
    pub(super) fn helper<'n>(&mut self, piece: Piece, name: &'n str) -> &'n str {
        self.pieces.insert(piece);
        name
    }

    /// What a value is called.
    pub(super) fn operand(&mut self, value: Value) -> Expr {
        match &self.spelled[value.0 as usize] {
            Some(expr) => expr.clone(),
            None => unreachable!("{value} is defined before it is read"),
        }
    }

    pub(super) fn line(&mut self, text: &str) {
        let indent = "    ".repeat(self.depth);
        let more = if text.starts_with("//") { "// " } else { "        " };
        let mut rest = format!("{indent}{text}");
        // Long lists break after a comma.
        while rest.len() > LINE {
            let Some(at) = rest[..LINE].rfind(", ").filter(|&at| at > indent.len() + 20) else { break };
            self.lines.push(rest[..=at].to_string());
            rest = format!("{indent}{more}{}", &rest[at + 2..]);
        }
        self.lines.push(rest);
    }

    fn shared(&mut self) {
        for (number, shared) in self.kernel.shared.iter().enumerate() {
            let name = self.names.memory(crate::ir::Memory::Shared(number as u16)).to_string();
            let line = format!("__shared__ u8 {name}[{}] __attribute__((aligned({})));", shared.bytes, shared.align);
            self.line(&line);
        }
    }

    pub(super) fn block(&mut self, block: &Block) {
        for statement in &block.statements {
            self.statement(statement);
        }
    }

    /// Declares a value with an expression, or keeps the expression for the one place that reads it.
    pub(super) fn define(&mut self, value: Value, expr: Expr) {
        if let Some(variable) = self.webs[value.0 as usize] {
            return self.assign_to(variable, value, &expr.text);
        }
        let fact = &self.facts[value.0 as usize];
        let at_home = fact.uses == 1 && fact.used_in == Some(fact.defined_in);
        let is_name = matches!(fact.inst, Some(Inst::Arg(_)))
            || matches!(fact.inst, Some(Inst::Const(Constant::Splat(_))))
            || matches!(fact.inst, Some(Inst::Const(_))) && self.ty(value).lanes == 1;
        // A lane of a vector that has a name has one too, as long as no loop changes it.
        let is_lane = matches!(fact.inst, Some(Inst::Extract { .. }))
            && expr.binds == Binds::Atom
            && expr.depth <= 1
            && expr.reads.is_empty();
        let builtin = matches!(fact.inst, Some(Inst::Builtin(_)));
        let short = expr.text.len() <= INLINE_TEXT && expr.depth <= INLINE_DEPTH;
        let returned = self.returns == Some(value);
        if !returned && (is_name || is_lane || at_home && short && !builtin) {
            self.inlined[value.0 as usize] = true;
            self.spelled[value.0 as usize] = Some(expr);
            return;
        }
        self.declare(value, &expr.text);
    }

    /// Declares a value, or gives it to the carried variable that takes it.
    pub(super) fn define_here(&mut self, value: Value, text: &str) {
        match self.webs[value.0 as usize] {
            Some(variable) => self.assign_to(variable, value, text),
            None => self.declare(value, text),
        }
    }

    /// Gives a carried variable its next value; short neighbours share a line.
    fn assign_to(&mut self, variable: Value, value: Value, text: &str) {
        let name = self.operand(variable);
        let text = format!("{} = {text};", name.text);
        let last = self.lines.len().wrapping_sub(1);
        match self.lines.last_mut() {
            Some(line) if self.assigned == Some(last) && line.len() + 1 + text.len() <= LINE => {
                line.push(' ');
                line.push_str(&text);
            }
            _ => {
                self.line(&text);
                self.assigned = Some(self.lines.len() - 1);
            }
        }
        self.spelled[value.0 as usize] = Some(name);
    }

    /// Declares a value, or returns it where a function does.
    fn declare(&mut self, value: Value, text: &str) {
        if self.returns == Some(value) {
            return self.line(&format!("return {text};"));
        }
        let ty = self.ty(value);
        let (name, type_name) = self.variable(value, ty);
        self.declaration(&type_name, &name, text);
    }

    /// Writes a declaration; neighbours of one type share a line.
    pub(super) fn declaration(&mut self, type_name: &str, name: &str, text: &str) {
        let last = self.lines.len().wrapping_sub(1);
        if let (Some((line, known)), Some(open)) = (&self.declared, self.lines.last())
            && (*line, known.as_str()) == (last, type_name)
        {
            let joined = format!("{}, {name} = {text};", open.trim_end_matches(';'));
            if joined.len() <= LINE {
                self.lines[last] = joined;
                return;
            }
        }
        self.line(&format!("{type_name} {name} = {text};"));
        self.declared = Some((self.lines.len() - 1, type_name.to_string()));
    }

    /// A name and the C++ type for a value that becomes a variable.
    pub(super) fn variable(&mut self, value: Value, ty: Type) -> (String, String) {
        let signed =
            ty.lanes == 1 && matches!(ty.scalar, Scalar::I32 | Scalar::I64) && self.facts[value.0 as usize].signed > 0;
        let name = self.names.value(value, ty, &self.facts);
        let type_name = if signed { self.vectors.signed(ty) } else { self.vectors.name(ty) };
        self.spelled[value.0 as usize] = Some(Expr { signed, ..Expr::atom(name.clone()) });
        (name, type_name)
    }

    fn statement(&mut self, statement: &Statement) {
        if self.is_taken_in(statement) || self.call(statement) {
            return;
        }
        let result = statement.results.first().copied();
        match &statement.inst {
            Inst::Load { address, align } => {
                let Some(value) = result else { return };
                let ty = self.ty(value);
                let (place, type_name) = (self.place(address), self.vectors.name(ty));
                self.declare(value, &format!("load<{type_name}, {align}>({place})"));
            }
            Inst::Store { address, align, value } => {
                let ty = self.ty(*value);
                let x = if ty.scalar.is_int() { self.unsigned(*value) } else { self.operand(*value) };
                let (place, type_name) = (self.place(address), self.vectors.name(ty));
                self.line(&format!("store<{type_name}, {align}>({place}, {});", x.text));
            }
            Inst::Barrier => {
                let name = self.helper(Piece::Sync, "barrier");
                self.line(&format!("{name}();"));
            }
            Inst::For(inner) => self.for_loop(inner, &statement.results),
            Inst::If(inner) => self.branch(inner, &statement.results),
            // The block's owner reads it.
            Inst::Yield(_) => {}
            Inst::Shuffle { mode, value, index } => {
                let Some(result) = result else { return };
                let (x, index) = (self.unsigned(*value), self.unsigned(*index));
                self.pieces.extend([Piece::Wave, Piece::Shuffle]);
                let width = self.kernel.threads().min(self.gpu.caps.subgroup);
                let function = match mode {
                    ShuffleMode::Index => "from_lane".to_string(),
                    ShuffleMode::Xor => "from_lane_xor".to_string(),
                    ShuffleMode::Down => format!("from_lane_down<{width}>"),
                };
                self.declare(result, &Expr::call(&function, &[&x, &index]).text);
            }
            Inst::SubgroupReduce(op, value) => {
                let Some(result) = result else { return };
                let text = self.reduction(*op, *value);
                self.declare(result, &text);
            }
            Inst::AtomicAdd { address, value } => {
                let Some(result) = result else { return };
                let name = self.helper(Piece::Atomic, "atomic_add");
                let (place, x) = (self.place(address), self.unsigned(*value));
                let call = format!("{name}({place}, {})", x.text);
                if self.facts[result.0 as usize].uses == 0 {
                    self.line(&format!("{call};"));
                } else {
                    self.declare(result, &call);
                }
            }
            Inst::Mma { shape, a, b, acc } => {
                let Some(result) = result else { return };
                let name = matrix::name(shape);
                if let Some(helper) = matrix::helper(shape, self.gpu, &mut self.vectors)
                    && !self.products.contains(&helper)
                {
                    self.products.push(helper);
                }
                if self.gpu.matrix == Matrix::WmmaTwice {
                    self.pieces.extend([Piece::Wave, Piece::Halves]);
                }
                let [a, b, sum] = [*a, *b, *acc].map(|value| self.operand(value));
                self.define_here(result, &Expr::call(&name, &[&a, &b, &sum]).text);
            }
            pure => {
                let Some(value) = result else { return };
                let ty = self.ty(value);
                if let Some(expr) = self.expression(pure, ty) {
                    self.define(value, expr);
                }
            }
        }
    }

    fn reduction(&mut self, op: ReduceOp, value: Value) -> String {
        let ty = self.ty(value);
        self.pieces.extend([Piece::Wave, Piece::Shuffle]);
        let width = self.kernel.threads().min(self.gpu.caps.subgroup);
        let type_name = self.vectors.name(ty);
        let [a, b] = ["a", "b"].map(Expr::atom);
        let combined = match (op, ty.scalar) {
            (ReduceOp::Add, Scalar::Bf16) => {
                let (a, b) = (self.widened_expr(a, ty), self.widened_expr(b, ty));
                self.narrowed(Expr::infix("+", &a, &b), ty).text
            }
            (ReduceOp::Add, Scalar::I8 | Scalar::I16) => format!("{type_name}(a + b)"),
            (ReduceOp::Add, _) => "a + b".to_string(),
            (ReduceOp::Max, Scalar::F32) => Expr::call(self.helper(Piece::Math, "maximum"), &[&a, &b]).text,
            (ReduceOp::Max, scalar) if scalar.is_int() => {
                let signed = self.vectors.signed(ty);
                format!("{type_name}({}({signed}(a), {signed}(b)))", self.helper(Piece::Least, "greatest"))
            }
            (ReduceOp::Max, _) => {
                let (a, b) = (self.widened_expr(a, ty), self.widened_expr(b, ty));
                let most = Expr::call(self.helper(Piece::Math, "maximum"), &[&a, &b]);
                self.narrowed(most, ty).text
            }
        };
        let x = if ty.scalar.is_int() { self.unsigned(value) } else { self.operand(value) };
        format!("reduce<{width}>({}, []({type_name} a, {type_name} b) {{ return {combined}; }})", x.text)
    }

    /// A place in memory, as a pointer.
    pub(super) fn place(&mut self, address: &Address) -> String {
        let mut text = self.names.memory(address.memory).to_string();
        if let Some(index) = address.index {
            // The index has a sign; the constant beside it must not wrap with it.
            let index = self.signed(index);
            text = format!("{text} + {}", index.at_least(Binds::Product));
        }
        match address.offset {
            0 => text,
            offset if offset > 0 => format!("{text} + {offset}"),
            offset => format!("{text} - {}", offset.unsigned_abs()),
        }
    }
}
