//! Statements: declarations, loops, branches, memory, what the lanes do together.
//!
//! Reads a kernel that `support` has passed, makes the lines of its body and the list of what they need. A pure value that
//! one statement of its own block reads is written where it is read, so that a line says about as much as a person's would.

use super::facts::{Fact, facts};
use super::matrix;
use super::names::Names;
use super::text::{Binds, Expr};
use super::types::Vectors;
use super::webs::webs;
use crate::caps::{AmdGpu, Matrix};
use crate::ir::{
    Address, Block, Constant, For, If, Inst, Kernel, ReduceOp, Scalar, ShuffleMode, Statement, Type, Value,
};
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
}

/// Longest text that is written where it is read.
const INLINE_TEXT: usize = 64;
/// Most operations in it, one inside the other.
const INLINE_DEPTH: u32 = 3;
/// Longest line.
const LINE: usize = 116;

pub(super) struct Emitter<'k> {
    pub kernel: &'k Kernel,
    pub gpu: &'k AmdGpu,
    pub facts: Vec<Fact<'k>>,
    pub names: Names,
    pub vectors: Vectors,
    pub pieces: BTreeSet<Piece>,
    /// Helpers of matrix instructions.
    products: Vec<String>,
    /// What each value is called, or the expression that stands for it.
    spelled: Vec<Option<Expr>>,
    inlined: Vec<bool>,
    /// The carried variable that takes a value where it is made.
    webs: Vec<Option<Value>>,
    lines: Vec<String>,
    depth: usize,
}

/// The body of a kernel and what it needs.
pub(super) struct Body {
    pub lines: Vec<String>,
    pub types: Vec<String>,
    pub pieces: BTreeSet<Piece>,
    pub products: Vec<String>,
    pub names: Names,
}

/// Emits the body of a kernel.
pub(super) fn body(kernel: &Kernel, gpu: &AmdGpu) -> Body {
    let mut emitter = Emitter {
        kernel,
        gpu,
        webs: Vec::new(),
        facts: facts(kernel),
        names: Names::new(kernel),
        vectors: Vectors::default(),
        pieces: BTreeSet::new(),
        products: Vec::new(),
        spelled: vec![None; kernel.types.len()],
        inlined: vec![false; kernel.types.len()],
        lines: Vec::new(),
        depth: 1,
    };
    emitter.webs = webs(kernel, &emitter.facts);
    emitter.shared();
    emitter.block(&kernel.body);
    if emitter.pieces.contains(&Piece::LookUp) {
        emitter.vectors.name(Type::vector(Scalar::I32, 4));
    }
    Body {
        lines: emitter.lines,
        types: emitter.vectors.declarations(),
        pieces: emitter.pieces,
        products: emitter.products,
        names: emitter.names,
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

    fn line(&mut self, text: &str) {
        let indent = "    ".repeat(self.depth);
        let mut rest = format!("{indent}{text}");
        // Long lists break after a comma.
        while rest.len() > LINE {
            let Some(at) = rest[..LINE].rfind(", ").filter(|&at| at > indent.len() + 20) else { break };
            self.lines.push(rest[..=at].to_string());
            rest = format!("{indent}        {}", &rest[at + 2..]);
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

    fn block(&mut self, block: &Block) {
        for statement in &block.statements {
            self.statement(statement);
        }
    }

    /// Declares a value with an expression, or keeps the expression for the one place that reads it.
    fn define(&mut self, value: Value, expr: Expr) {
        if let Some(variable) = self.webs[value.0 as usize] {
            return self.assign_to(variable, value, &expr.text);
        }
        let fact = &self.facts[value.0 as usize];
        let at_home = fact.uses == 1 && fact.used_in == Some(fact.defined_in);
        let is_name = matches!(fact.inst, Some(Inst::Arg(_)))
            || matches!(fact.inst, Some(Inst::Const(Constant::Splat(_))))
            || matches!(fact.inst, Some(Inst::Const(_))) && self.ty(value).lanes == 1;
        let builtin = matches!(fact.inst, Some(Inst::Builtin(_)));
        let short = expr.text.len() <= INLINE_TEXT && expr.depth <= INLINE_DEPTH;
        if is_name || at_home && short && !builtin {
            self.inlined[value.0 as usize] = true;
            self.spelled[value.0 as usize] = Some(expr);
            return;
        }
        self.declare(value, &expr.text);
    }

    /// Declares a value, or gives it to the carried variable that takes it.
    fn define_here(&mut self, value: Value, text: &str) {
        match self.webs[value.0 as usize] {
            Some(variable) => self.assign_to(variable, value, text),
            None => self.declare(value, text),
        }
    }

    /// Gives a carried variable its next value.
    fn assign_to(&mut self, variable: Value, value: Value, text: &str) {
        let name = self.operand(variable);
        self.line(&format!("{} = {text};", name.text));
        self.spelled[value.0 as usize] = Some(name);
    }

    /// Declares a value.
    fn declare(&mut self, value: Value, text: &str) {
        let ty = self.ty(value);
        let (name, type_name) = self.variable(value, ty);
        self.line(&format!("{type_name} {name} = {text};"));
    }

    /// A name and the C++ type for a value that becomes a variable.
    fn variable(&mut self, value: Value, ty: Type) -> (String, String) {
        let signed =
            ty.lanes == 1 && matches!(ty.scalar, Scalar::I32 | Scalar::I64) && self.facts[value.0 as usize].signed > 0;
        let name = self.names.value(value, ty, &self.facts);
        let type_name = if signed { self.vectors.signed(ty) } else { self.vectors.name(ty) };
        self.spelled[value.0 as usize] = Some(Expr { signed, ..Expr::atom(name.clone()) });
        (name, type_name)
    }

    fn statement(&mut self, statement: &Statement) {
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
    fn place(&mut self, address: &Address) -> String {
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

    /// The text of values that a block hands to variables, as assignments that do not disturb each other.
    fn assign(&mut self, block: &Block, variables: &[(Value, String)]) {
        let Some(Inst::Yield(values)) = block.statements.last().map(|statement| &statement.inst) else { return };
        let mut pending: Vec<(Value, String, Expr)> = Vec::new();
        for ((variable, name), &value) in variables.iter().zip(values) {
            let signed = self.spelled[variable.0 as usize].as_ref().is_some_and(|expr| expr.signed);
            let expr = self.assigned(value, signed);
            if expr.text != *name {
                pending.push((*variable, name.clone(), expr));
            }
        }
        for at in 0..pending.len() {
            // A later assignment that reads this variable must see it as it was.
            let (variable, name, expr) = pending[at].clone();
            let read_later = pending[at + 1..].iter().any(|(_, _, later)| later.reads.contains(&variable));
            if read_later {
                let old = self.names.fresh("old");
                self.line(&format!("auto {old} = {name};"));
                for (_, _, later) in &mut pending[at + 1..] {
                    later.text = replace_name(&later.text, &name, &old);
                }
            }
            self.line(&format!("{name} = {};", expr.text));
        }
    }

    /// A value as a variable takes it: C++ converts between signed and unsigned of one width without loss.
    fn assigned(&mut self, value: Value, signed: bool) -> Expr {
        let constant = matches!(self.facts[value.0 as usize].inst, Some(Inst::Const(_)));
        if constant && signed { self.signed(value) } else { self.operand(value) }
    }

    fn for_loop(&mut self, inner: &For, results: &[Value]) {
        let mut variables = Vec::new();
        for (&(name, start), &result) in inner.carried.iter().zip(results) {
            let ty = self.ty(name);
            if let Some(variable) = self.continued(start) {
                // The loop goes on with a variable that nobody else reads.
                self.spelled[name.0 as usize] = Some(variable.clone());
                self.spelled[result.0 as usize] = Some(variable.clone());
                variables.push((variable.reads[0], variable.text));
                continue;
            }
            // The sign that readers of either want.
            let both = self.facts[name.0 as usize].signed + self.facts[result.0 as usize].signed;
            self.facts[name.0 as usize].signed = both;
            let (text, type_name) = self.variable(name, ty);
            let first = self.assigned(start, type_name.starts_with('i'));
            self.line(&format!("{type_name} {text} = {};", first.text));
            if let Some(expr) = &mut self.spelled[name.0 as usize] {
                expr.reads = vec![name];
                self.spelled[result.0 as usize] = self.spelled[name.0 as usize].clone();
            }
            variables.push((name, text));
        }
        let type_name = self.vectors.signed(self.ty(inner.variable));
        let start = self.signed(inner.start);
        let end = self.bound(inner.end, &type_name);
        let counter = self.names.open_loop();
        let step = if inner.step == 1 { format!("{counter}++") } else { format!("{counter} += {}", inner.step) };
        self.line(&format!("for ({type_name} {counter} = {}; {counter} < {end}; {step}) {{", start.text));
        self.spelled[inner.variable.0 as usize] = Some(Expr::atom(counter).taken_signed());
        self.depth += 1;
        self.block(&inner.body);
        self.assign(&inner.body, &variables);
        self.depth -= 1;
        self.names.close_loop();
        self.line("}");
    }

    /// The variable of a loop outside of this one, or before it, that a loop can go on with: it is read nowhere else.
    fn continued(&self, start: Value) -> Option<Expr> {
        let fact = &self.facts[start.0 as usize];
        let variable = self.spelled[start.0 as usize].as_ref()?;
        let is_variable = variable.binds == Binds::Atom && variable.reads.len() == 1 && variable.depth == 0;
        let carried = fact.sums || matches!(fact.inst, Some(Inst::For(_))) || self.webs[start.0 as usize].is_some();
        let at_home = fact.uses == 1 && fact.used_in == Some(fact.defined_in);
        (at_home && is_variable && carried && !self.is_inlined(start)).then(|| variable.clone())
    }

    /// The end of a loop: a name or a number, since every turn reads it.
    fn bound(&mut self, end: Value, type_name: &str) -> String {
        let end = self.signed(end);
        if end.depth == 0 || end.reads.is_empty() && end.depth == 1 && end.text.len() < 24 {
            return end.at_least(Binds::Sum);
        }
        let name = self.names.fresh("end");
        self.line(&format!("{type_name} {name} = {};", end.text));
        name
    }

    fn branch(&mut self, inner: &If, results: &[Value]) {
        let mut variables = Vec::new();
        for &result in results {
            let ty = self.ty(result);
            let (name, type_name) = self.variable(result, ty);
            self.line(&format!("{type_name} {name};"));
            variables.push((result, name));
        }
        let condition = self.operand(inner.cond);
        self.line(&format!("if ({}) {{", condition.text));
        self.depth += 1;
        self.block(&inner.then);
        self.assign(&inner.then, &variables);
        self.depth -= 1;
        if inner.otherwise.statements.len() > 1 || !results.is_empty() {
            self.line("} else {");
            self.depth += 1;
            self.block(&inner.otherwise);
            self.assign(&inner.otherwise, &variables);
            self.depth -= 1;
        }
        self.line("}");
    }
}

/// Replaces a name where it stands alone.
fn replace_name(text: &str, name: &str, by: &str) -> String {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(name) {
        let before = rest[..at].chars().next_back().or(out.chars().next_back());
        let after = rest[at + name.len()..].chars().next();
        let alone = !before.is_some_and(word) && !after.is_some_and(word);
        out.push_str(&rest[..at]);
        out.push_str(if alone { by } else { name });
        rest = &rest[at + name.len()..];
    }
    out + rest
}
