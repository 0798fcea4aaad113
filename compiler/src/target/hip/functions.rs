//! The functions that a kernel calls again and again, as lambdas at its head, and their calls.
//!
//! Always holds: a function names nothing outside of its parameters, and the compiler puts it where it is called.

use super::emit::{Emitter, Piece};
use super::names::Names;
use super::outline::{Function, Passed};
use super::text::Expr;
use crate::ir::{Access, Inst, ParamKind, Scalar, Statement};

impl Emitter<'_> {
    /// Writes every function of the kernel.
    pub(super) fn write_functions(&mut self) {
        let functions = std::mem::take(&mut self.outlines.functions);
        for function in &functions {
            let name = self.names.fresh(verb(function));
            let lines = self.function(function, &name);
            self.lines.extend(lines);
            self.functions.push(name);
        }
        self.outlines.functions = functions;
    }

    /// A function as lines.
    fn function(&mut self, function: &Function, name: &str) -> Vec<String> {
        let mut inner = Emitter::new(&function.kernel, self.gpu);
        // What the function needs, the kernel needs.
        self.swap_needs(&mut inner);
        let mut parameters: Vec<String> = function
            .kernel
            .params
            .iter()
            .enumerate()
            .map(|(number, param)| {
                let reads = matches!(param.kind, ParamKind::Buffer { access: Access::Read, .. });
                format!("{}u8* {}", if reads { "const " } else { "" }, inner.names.param(number as u16))
            })
            .collect();
        for (&value, &origin) in function.values.iter().zip(&function.origins) {
            let ty = inner.ty(value);
            let stem = match origin {
                Passed::Value(origin) => Names::argument(&self.facts[origin.0 as usize], ty),
                Passed::Step(_) => "step".to_string(),
            };
            let signed = ty.lanes == 1
                && matches!(ty.scalar, Scalar::I32 | Scalar::I64)
                && inner.facts[value.0 as usize].signed > 0;
            let type_name = if signed { inner.vectors.signed(ty) } else { inner.vectors.name(ty) };
            let name = inner.names.fresh(&stem);
            parameters.push(format!("{type_name} {name}"));
            inner.spelled[value.0 as usize] = Some(Expr { signed, ..Expr::atom(name) });
        }
        let gives = function.result.map_or(String::new(), |result| {
            let ty = inner.ty(result);
            format!(" -> {}", inner.vectors.name(ty))
        });
        inner.returns = function.result;
        inner.helper(Piece::Inline, "");
        inner.line(&format!("// Called {} times.", function.calls));
        inner.line(&format!("auto {name} = []({}) BITSMITH_INLINE{gives} {{", parameters.join(", ")));
        inner.depth += 1;
        inner.block(&function.kernel.body);
        inner.depth -= 1;
        inner.line("};");
        self.swap_needs(&mut inner);
        inner.lines
    }

    /// Exchanges with another emitter what has been noted for the head of the source.
    fn swap_needs(&mut self, other: &mut Emitter<'_>) {
        std::mem::swap(&mut other.vectors, &mut self.vectors);
        std::mem::swap(&mut other.pieces, &mut self.pieces);
        std::mem::swap(&mut other.floats, &mut self.floats);
        std::mem::swap(&mut other.products, &mut self.products);
    }

    /// Whether a call further down makes what this statement makes.
    pub(super) fn is_taken_in(&self, statement: &Statement) -> bool {
        self.outlines.taken.contains(&std::ptr::from_ref(statement))
    }

    /// Writes the call that stands for a statement; `false` if none does.
    pub(super) fn call(&mut self, statement: &Statement) -> bool {
        let Some(call) = self.outlines.calls.get(&std::ptr::from_ref(statement)).cloned() else { return false };
        let mut operands: Vec<Expr> = call.places.iter().map(|place| Expr::atom(self.place(place))).collect();
        operands.extend(call.values.iter().map(|&passed| match passed {
            Passed::Value(value) => self.operand(value),
            Passed::Step(step) => Expr::atom(step.to_string()),
        }));
        let text = Expr::call(&self.functions[call.function], &operands.iter().collect::<Vec<_>>());
        match statement.results.first() {
            None => self.line(&format!("{};", text.text)),
            // What it reads from memory may be another thing further down.
            Some(&result) if self.outlines.functions[call.function].loads => self.define_here(result, &text.text),
            Some(&result) => self.define(result, text),
        }
        true
    }
}

/// What a function does, in a word.
fn verb(function: &Function) -> &'static str {
    let (mut stores, mut multiplies, mut adds_bytes, mut branches, mut bits) = (false, false, false, false, false);
    function.kernel.body.each(&mut |statement| match &statement.inst {
        Inst::Store { .. } => stores = true,
        Inst::Mma { .. } => multiplies = true,
        Inst::Dot4 { .. } => adds_bytes = true,
        Inst::If(_) => branches = true,
        Inst::Bin(op, ..) => {
            use crate::ir::BinOp;
            bits |= matches!(op, BinOp::And | BinOp::Or | BinOp::ShrU | BinOp::ShrS);
        }
        _ => {}
    });
    match () {
        () if stores && branches => "put_inside",
        () if stores && function.loads => "renew",
        () if stores => "put",
        () if multiplies => "multiply_and_add",
        () if adds_bytes => "add_products",
        () if bits => "decode",
        () if function.loads => "fetch",
        () => "combine",
    }
}
