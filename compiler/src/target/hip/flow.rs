//! Loops and branches: the variables that they carry, and how these get their next values.

use super::emit::{Emitter, LINE};
use super::text::{Binds, Expr};
use crate::ir::{Address, Block, For, If, Inst, Value};

impl Emitter<'_> {
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

    pub(super) fn for_loop(&mut self, inner: &For, results: &[Value]) {
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
            self.declaration(&type_name, &text, &first.text);
            if let Some(expr) = &mut self.spelled[name.0 as usize] {
                expr.reads = vec![name];
                self.spelled[result.0 as usize] = self.spelled[name.0 as usize].clone();
            }
            variables.push((name, text));
        }
        let type_name = self.vectors.signed(self.ty(inner.variable));
        let start = self.signed(inner.start);
        let end = self.bound(inner.end, &type_name);
        self.comment_on_loop(inner);
        let counter = self.names.open_loop();
        let step = if inner.step == 1 { format!("{counter}++") } else { format!("{counter} += {}", inner.step) };
        // How far a loop is unrolled is the schedule's to say: clang would do it again, beyond all registers.
        self.line("#pragma unroll 1");
        self.line(&format!("for ({type_name} {counter} = {}; {counter} < {end}; {step}) {{", start.text));
        self.spelled[inner.variable.0 as usize] = Some(Expr::atom(counter).taken_signed());
        self.depth += 1;
        self.block(&inner.body);
        self.assign(&inner.body, &variables);
        self.depth -= 1;
        self.names.close_loop();
        self.line("}");
    }

    /// Says what a turn of a loop brings in and makes, for the reader.
    fn comment_on_loop(&mut self, inner: &For) {
        let (mut loads, mut stores) = (Vec::<(String, usize)>::new(), Vec::<(String, usize)>::new());
        let (mut products, mut dots) = (0, 0);
        let names = &self.names;
        let note = |list: &mut Vec<(String, usize)>, address: &Address| {
            let name = names.memory(address.memory);
            match list.iter_mut().find(|(known, _)| known == name) {
                Some((_, count)) => *count += 1,
                None => list.push((name.to_string(), 1)),
            }
        };
        inner.body.each(&mut |statement| match &statement.inst {
            Inst::Load { address, .. } => note(&mut loads, address),
            Inst::Store { address, .. } => note(&mut stores, address),
            Inst::Mma { .. } => products += 1,
            Inst::Dot4 { .. } => dots += 1,
            _ => {}
        });
        let (loads, stores) = ((loads, "loads of"), (stores, "stores to"));
        let memories = [loads, stores]
            .into_iter()
            .flat_map(|(list, what)| list.into_iter().map(move |(name, count)| format!("{count} {what} {name}")));
        let made = [(products, "matrix products"), (dots, "dot products of bytes")];
        let made = made.into_iter().filter(|&(count, _)| count > 0).map(|(count, what)| format!("{count} {what}"));
        let parts: Vec<String> = memories.chain(made).collect();
        if !parts.is_empty() {
            let inner_loops = if has_loop(&inner.body) { ", loops inside counted once" } else { "" };
            self.line(&format!("// A turn: {}{inner_loops}.", parts.join(", ")));
        }
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

    pub(super) fn branch(&mut self, inner: &If, results: &[Value]) {
        let mut variables = Vec::new();
        for &result in results {
            let ty = self.ty(result);
            let (name, type_name) = self.variable(result, ty);
            self.line(&format!("{type_name} {name};"));
            variables.push((result, name));
        }
        let condition = self.operand(inner.cond);
        self.line(&format!("if ({}) {{", condition.text));
        let opened = self.lines.len();
        self.depth += 1;
        self.block(&inner.then);
        self.assign(&inner.then, &variables);
        self.depth -= 1;
        // A single short statement stands beside its condition.
        if inner.otherwise.statements.len() <= 1 && results.is_empty() && self.lines.len() == opened + 1 {
            let head = self.lines[opened - 1].trim_end_matches('{').to_string();
            let joined = head + self.lines[opened].trim_start();
            if joined.len() <= LINE && is_statement(&self.lines[opened]) {
                self.lines.truncate(opened - 1);
                self.lines.push(joined);
                return;
            }
        }
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

/// Whether a line is one whole statement, no declaration and no part of a branch.
fn is_statement(line: &str) -> bool {
    line.ends_with(");") && !line.contains(" = ") && !line.trim_start().starts_with("if ")
}

/// Whether a block holds a loop.
fn has_loop(block: &Block) -> bool {
    let mut found = false;
    block.each(&mut |statement| found |= matches!(statement.inst, Inst::For(_)));
    found
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
