//! The verifier: the only maker of [`Verified`].
//!
//! Reads any kernel, however broken, and the caps of a device; makes the proof or a list of every fault. Always
//! holds: it never panics, and a value that is at fault in one place is not reported again where it is used rightly.
//! This file walks the tree and keeps the scopes; `rules` types the instructions, `memory` checks addresses.

mod asynchronous;
mod cooperative;
mod matrix;
mod memory;
mod rules;
#[cfg(test)]
mod tests;

use super::cooperative::{Fragment, fragments};
use super::kernel::{Block, Constant, For, Inst, Kernel, ParamKind, Statement};
use super::parse::MAX_DEPTH;
use super::print;
use super::types::{Scalar, Type, Value};
use super::uniform::{Uniform, uniformity};
use crate::caps::{Caps, Feature};
use std::cell::OnceCell;
use std::collections::HashSet;

/// A kernel that has passed [`verify`] for some device's caps.
#[derive(Clone, Copy, Debug)]
pub struct Verified<'k>(&'k Kernel);

impl<'k> Verified<'k> {
    /// The kernel.
    pub fn kernel(&self) -> &'k Kernel {
        self.0
    }
}

/// One fault of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Where: statement path such as `body.3.for.1`, or `kernel`, `param x`, `shared x`.
    pub place: String,
    /// The statement, printed.
    pub text: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl std::fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: `{}`: {}", self.place, self.text, self.message)
    }
}

/// Checks a kernel against the rules of the IR and the caps of a device; lists every fault.
pub fn verify<'k>(kernel: &'k Kernel, caps: &Caps) -> Result<Verified<'k>, Vec<Diagnostic>> {
    let count = kernel.types.len();
    let mut defined = vec![false; count];
    let mut check = Check {
        kernel,
        caps,
        faults: Vec::new(),
        path: "body".to_string(),
        statement: None,
        scopes: vec![Scope::Ahead; count],
        constants: vec![None; count],
        defined: Vec::new(),
        uniform: Vec::new(),
        fragments: Vec::new(),
        uses: OnceCell::new(),
        control: vec![(Uniform::Workgroup, String::new())],
    };
    check.header();
    if deepest(&kernel.body, 0) > MAX_DEPTH {
        check.header_fault("kernel", format!("blocks may nest {MAX_DEPTH} deep at most"));
        return Err(check.faults);
    }
    print::mark(&kernel.body, &mut defined);
    check.defined = defined;
    check.uniform = uniformity(kernel, caps.subgroup);
    check.fragments = fragments(kernel);
    check.unused();
    check.block(&kernel.body, None);
    if check.faults.is_empty() { Ok(Verified(kernel)) } else { Err(check.faults) }
}

/// How far a value's definition is.
#[derive(Clone, Copy, PartialEq)]
enum Scope {
    /// Not met yet, or never.
    Ahead,
    /// In an open block.
    Open,
    /// In a block that has ended.
    Closed,
}

struct Check<'k> {
    kernel: &'k Kernel,
    caps: &'k Caps,
    faults: Vec<Diagnostic>,
    /// Place of the statement under check.
    path: String,
    statement: Option<&'k Statement>,
    scopes: Vec<Scope>,
    constants: Vec<Option<&'k Constant>>,
    /// Whether any statement defines the value.
    defined: Vec<bool>,
    uniform: Vec<Uniform>,
    /// Which values are matrices of the subgroup; empty where none is.
    fragments: Vec<Option<Fragment>>,
    /// How often each value is read; counted where somebody asks.
    uses: OnceCell<Vec<u32>>,
    /// For each open block, how widely threads agree to be in it, and the place of the branch that parted them.
    control: Vec<(Uniform, String)>,
}

impl<'k> Check<'k> {
    fn fault(&mut self, message: impl Into<String>) {
        let text = self.statement.map_or(String::new(), |statement| print::head(self.kernel, statement));
        self.faults.push(Diagnostic { place: self.path.clone(), text, message: message.into() });
    }

    fn header_fault(&mut self, place: &str, message: impl Into<String>) {
        let text = format!("kernel @{}", self.kernel.name.chars().take(80).collect::<String>());
        self.faults.push(Diagnostic { place: place.to_string(), text, message: message.into() });
    }

    /// Name, parameters, shared arrays, workgroup.
    fn header(&mut self) {
        let kernel = self.kernel;
        if !is_name(&kernel.name) {
            self.header_fault("kernel", NAME);
        }
        if kernel.params.len().max(kernel.shared.len()) > 1 << 16 {
            self.header_fault("kernel", "at most 65536 parameters and 65536 shared arrays can be numbered");
        }
        let mut names = HashSet::new();
        for param in &kernel.params {
            let place = format!("param {}", param.name);
            self.declared_name(&place, &param.name, &mut names);
            match param.kind {
                ParamKind::Buffer { align, .. } => self.declared_align(&place, align),
                ParamKind::Scalar(Scalar::I32 | Scalar::I64 | Scalar::F32) => {}
                ParamKind::Scalar(scalar) => {
                    self.header_fault(&place, format!("a scalar parameter is i32, i64 or f32, not {scalar}"));
                }
            }
        }
        let mut total = 0u64;
        for shared in &kernel.shared {
            let place = format!("shared {}", shared.name);
            self.declared_name(&place, &shared.name, &mut names);
            self.declared_align(&place, shared.align);
            if shared.bytes == 0 {
                self.header_fault(&place, "a shared array has at least one byte");
            }
            total = total.next_multiple_of(shared.align.max(1) as u64) + shared.bytes as u64;
        }
        let most = self.caps.max_shared_bytes;
        if total > most as u64 {
            self.header_fault("kernel", format!("{total} bytes of shared memory; {} has {most}", self.caps.name));
        }
        let threads = kernel.workgroup.iter().fold(1u64, |product, &n| product.saturating_mul(n as u64));
        let most = self.caps.max_workgroup;
        if threads == 0 {
            self.header_fault("kernel", "each extent of the workgroup is at least 1");
        }
        if threads > most as u64 {
            self.header_fault("kernel", format!("{threads} threads per workgroup; {} allows {most}", self.caps.name));
        }
        if threads > 1 && !self.caps.features.has(Feature::Workgroups) {
            self.header_fault("kernel", lacks(self.caps, Feature::Workgroups, "several threads per workgroup"));
        }
    }

    fn declared_name(&mut self, place: &str, name: &'k str, names: &mut HashSet<&'k str>) {
        if !is_name(name) {
            self.header_fault(place, NAME);
        }
        if !names.insert(name) {
            self.header_fault(place, format!("the name `{name}` is already taken; names are unique"));
        }
    }

    fn declared_align(&mut self, place: &str, align: u32) {
        if !align.is_power_of_two() {
            self.header_fault(place, format!("an alignment is a power of two, not {align}"));
        }
    }

    /// Values that nothing defines need a type that exists all the same.
    fn unused(&mut self) {
        for number in 0..self.kernel.types.len() {
            let ty = self.kernel.types[number];
            if !self.defined[number] && !has_lanes(ty) {
                self.header_fault("kernel", format!("unused %{number}: {ty}: {LANES}"));
            }
        }
    }

    /// A block that is to yield these values (place, types), or the kernel's body, which yields nothing.
    fn block(&mut self, block: &'k Block, yields: Option<&[Value]>) {
        let length = self.path.len();
        let mut opened = Vec::new();
        for (i, statement) in block.statements.iter().enumerate() {
            self.path.truncate(length);
            self.path.push_str(&format!(".{i}"));
            self.statement = Some(statement);
            let last = i + 1 == block.statements.len();
            match (&statement.inst, yields) {
                (Inst::Yield(_), None) => self.fault("the kernel's body yields nothing: it has no `yield`"),
                (Inst::Yield(_), Some(_)) if !last => self.fault("`yield` is the last statement of its block"),
                (Inst::Yield(values), Some(wanted)) => self.yielded(values, wanted),
                (_, Some(_)) if last => self.fault("the block ends here without a `yield`"),
                _ => {}
            }
            self.opaque(statement);
            self.inst(statement);
            self.statement = Some(statement);
            for &value in &statement.results {
                self.define(value, &mut opened);
            }
            if let (Inst::Const(constant), [value]) = (&statement.inst, statement.results.as_slice())
                && let Some(slot) = self.constants.get_mut(value.0 as usize)
            {
                *slot = Some(constant);
            }
        }
        self.path.truncate(length);
        if block.statements.is_empty() && yields.is_some() {
            self.fault(format!("{} is empty; a block ends with `yield`", self.path));
        }
        self.close(opened);
    }

    fn yielded(&mut self, values: &[Value], wanted: &[Value]) {
        if values.len() != wanted.len() {
            self.fault(format!("yields {} values; {} are wanted", values.len(), wanted.len()));
        }
        for (&value, &wanted) in values.iter().zip(wanted) {
            if let (Some(found), Some(wanted)) = (self.peek(value), self.peek(wanted))
                && found != wanted
            {
                self.fault(format!("{value} is {found}; {wanted} is to be yielded"));
            }
            self.same_matrix(value, wanted);
        }
    }

    /// A loop or branch: its head, then its blocks, each a scope.
    fn control(&mut self, statement: &'k Statement) {
        let results = &statement.results;
        match &statement.inst {
            Inst::For(inst) => {
                self.loop_head(inst, results);
                let inside: Vec<Value> = inst.carried.iter().map(|&(name, _)| name).collect();
                let mut opened = Vec::new();
                self.define(inst.variable, &mut opened);
                inside.iter().for_each(|&value| self.define(value, &mut opened));
                let turns = self.level(inst.start).max(self.level(inst.end));
                self.inner(&inst.body, ".for", &inside, turns);
                self.close(opened);
            }
            Inst::If(inst) => {
                self.expect(inst.cond, Type::scalar(Scalar::Bool), "the condition");
                let level = self.level(inst.cond);
                self.inner(&inst.then, ".then", results, level);
                self.inner(&inst.otherwise, ".else", results, level);
            }
            _ => {}
        }
    }

    fn loop_head(&mut self, inst: &For, results: &[Value]) {
        if let Some(ty) = self.peek(inst.variable) {
            if ty != Type::scalar(Scalar::I32) && ty != Type::scalar(Scalar::I64) {
                self.fault(format!("the counter {} is {ty}; it is i32 or i64", inst.variable));
            }
            self.expect(inst.start, ty, "the start");
            self.expect(inst.end, ty, "the end");
            let most = if ty.scalar == Scalar::I32 { i32::MAX as i64 } else { i64::MAX };
            if inst.step < 1 || inst.step > most {
                self.fault(format!("the step is {}; it is positive and fits the counter's type", inst.step));
            }
        }
        if results.len() != inst.carried.len() {
            self.fault(format!("{} results, but {} carried values; they match", results.len(), inst.carried.len()));
        }
        for (i, &(name, first)) in inst.carried.iter().enumerate() {
            let Some(ty) = self.peek(name) else { continue };
            self.expect(first, ty, &format!("the first {name}"));
            if let Some(&result) = results.get(i)
                && let Some(found) = self.peek(result)
                && found != ty
            {
                self.fault(format!("the result {result} is {found}, but the carried {name} is {ty}; they match"));
            }
        }
    }

    fn inner(&mut self, block: &'k Block, part: &str, yields: &[Value], level: Uniform) {
        let statement = self.statement;
        let length = self.path.len();
        let (outer, cause) = self.control.last().cloned().unwrap_or((Uniform::Workgroup, String::new()));
        let cause = if level > outer { self.path.clone() } else { cause };
        self.control.push((outer.max(level), cause));
        self.path.push_str(part);
        self.block(block, Some(yields));
        self.path.truncate(length);
        self.control.pop();
        self.statement = statement;
    }

    /// Refuses a statement here unless threads agree this widely to be here.
    fn reached_by(&mut self, wanted: Uniform) {
        let Some((level, cause)) = self.control.last().cloned() else { return };
        if level > wanted {
            let whom = if wanted == Uniform::Workgroup { "the workgroup" } else { "the subgroup" };
            self.fault(format!(
                "not all threads of {whom} need come here: the branch at {cause} may part them; it takes a uniform one"
            ));
        }
    }

    fn define(&mut self, value: Value, opened: &mut Vec<Value>) {
        let Some(ty) = self.peek(value) else {
            return self.fault(format!("{value} has no type; the kernel has {} values", self.kernel.types.len()));
        };
        if self.scopes[value.0 as usize] != Scope::Ahead {
            return self.fault(format!("{value} is defined a second time; a value is defined once"));
        }
        if !has_lanes(ty) {
            self.fault(format!("{value}: {ty}: {LANES}"));
        }
        self.scopes[value.0 as usize] = Scope::Open;
        opened.push(value);
    }

    fn close(&mut self, opened: Vec<Value>) {
        for value in opened {
            self.scopes[value.0 as usize] = Scope::Closed;
        }
    }

    /// The type of an operand, after a check that it is in scope.
    fn operand(&mut self, value: Value) -> Option<Type> {
        let ty = self.peek(value);
        let Some(scope) = self.scopes.get(value.0 as usize) else {
            self.fault(format!("{value} does not exist; the kernel has {} values", self.kernel.types.len()));
            return None;
        };
        match scope {
            Scope::Open => return ty,
            Scope::Closed => self.fault(format!("{value} is out of scope: the block that defines it has ended")),
            Scope::Ahead if self.defined[value.0 as usize] => {
                self.fault(format!("{value} is used before its definition"));
            }
            Scope::Ahead => self.fault(format!("{value} is never defined")),
        }
        ty
    }

    /// An operand that must have this type.
    fn expect(&mut self, value: Value, wanted: Type, role: &str) {
        if let Some(found) = self.operand(value)
            && found != wanted
        {
            self.fault(format!("{role} {value} is {found}; it must be {wanted}"));
        }
    }

    fn peek(&self, value: Value) -> Option<Type> {
        self.kernel.types.get(value.0 as usize).copied()
    }

    fn level(&self, value: Value) -> Uniform {
        self.uniform.get(value.0 as usize).copied().unwrap_or(Uniform::Workgroup)
    }

    fn needs(&mut self, feature: Feature, what: &str) {
        if !self.caps.features.has(feature) {
            self.fault(lacks(self.caps, feature, what));
        }
    }
}

const NAME: &str = "a name is a letter or _, then letters, digits and _";
const LANES: &str = "a type has 1, 2, 4, 8, 16, 32 or 64 lanes";

fn lacks(caps: &Caps, feature: Feature, what: &str) -> String {
    format!("{what} needs the feature {feature}, which {} lacks", caps.name)
}

fn has_lanes(ty: Type) -> bool {
    ty.lanes.is_power_of_two() && ty.lanes <= 64
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// How deep blocks nest below this one, counted no further than just past the limit.
fn deepest(block: &Block, depth: usize) -> usize {
    if depth > MAX_DEPTH {
        return depth;
    }
    let inner = |statement: &Statement| match &statement.inst {
        Inst::For(inst) => deepest(&inst.body, depth + 1),
        Inst::If(inst) => deepest(&inst.then, depth + 1).max(deepest(&inst.otherwise, depth + 1)),
        _ => depth,
    };
    block.statements.iter().map(inner).max().unwrap_or(depth)
}
