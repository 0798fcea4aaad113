//! Parsed text into a program: names become register numbers, jumps become positions, device functions are inlined.
//!
//! An instruction, modifier or operand form that is not known is an error here: a program that loads has none.

mod alu;
mod bulk;
mod control;
mod matrix;
mod memory;
mod operands;
mod special;
mod warp;

use crate::alu::Modifiers;
use crate::ast::{Function, Item, Operand, Space, Statement, Text, Type, Variable};
use crate::fault::LoadError;
use crate::memory::{SEGMENT_SHIFT, SHARED_START, segment_base};
use crate::op::{Inst, Op, Pred, Reg, Test};
pub(crate) use special::Special;
use std::collections::HashMap;

/// A kernel, ready to run.
pub(crate) struct Program {
    pub insts: Vec<Inst>,
    /// Line and text of each statement.
    pub sources: Vec<(u32, String)>,
    pub registers: u32,
    pub predicates: u32,
    pub constants: Vec<(Reg, u64)>,
    pub specials: Vec<(Reg, Special)>,
    /// Bytes of shared memory from address 0, static part.
    pub shared: u64,
    pub local: u64,
    /// Parameters: name, offset, size.
    pub parameters: Vec<(String, u64, u64)>,
    pub parameter_bytes: u64,
    pub directives: HashMap<String, Vec<u32>>,
}

/// What a name means.
#[derive(Clone, Debug)]
enum Symbol {
    Register(Reg),
    Predicate(Pred),
    Vector(Vec<String>),
    Memory {
        space: Space,
        address: u64,
    },
    /// Shared memory whose size the launch decides.
    Dynamic,
    Targets(Vec<String>),
}

struct Scope {
    names: HashMap<String, Symbol>,
    /// `%r<10>` style declarations: base name, count.
    labels: HashMap<String, u32>,
}

pub(crate) struct Builder<'t> {
    text: &'t Text,
    globals: HashMap<String, u64>,
    scopes: Vec<Scope>,
    insts: Vec<Inst>,
    sources: Vec<(u32, String)>,
    registers: u32,
    predicates: u32,
    constants: HashMap<u64, Reg>,
    specials: HashMap<Special, Reg>,
    dynamic: Vec<(Reg, i64)>,
    shared: u64,
    shared_names: HashMap<String, u64>,
    local: u64,
    labels: u32,
    /// Positions of labels, by label number.
    targets: Vec<Option<u32>>,
    depth: u32,
    /// Where `ret` goes in an inlined function.
    ret: Option<u32>,
}

type Result<T> = std::result::Result<T, String>;

/// Decodes one kernel of a module.
pub(crate) fn decode(text: &Text, entry: &str) -> std::result::Result<Program, LoadError> {
    let Some(function) = text.functions.iter().find(|f| f.entry && f.name == entry) else {
        let names: Vec<_> = text.functions.iter().filter(|f| f.entry).map(|f| f.name.as_str()).collect();
        return Err(LoadError::at(0, format!("no kernel `{entry}`; this module has {}", names.join(", "))));
    };
    let globals = global_variables(text).enumerate().map(|(i, v)| (v.name.clone(), segment_base(i))).collect();
    let mut builder = Builder {
        text,
        globals,
        scopes: Vec::new(),
        insts: Vec::new(),
        sources: Vec::new(),
        registers: 0,
        predicates: 0,
        constants: HashMap::new(),
        specials: HashMap::new(),
        dynamic: Vec::new(),
        shared: SHARED_START,
        shared_names: HashMap::new(),
        local: 0,
        labels: 0,
        targets: Vec::new(),
        depth: 0,
        ret: None,
    };
    let mut names = HashMap::new();
    let mut parameters = Vec::new();
    let mut at = 0u64;
    for p in &function.parameters {
        at = at.next_multiple_of(p.align.max(1));
        names.insert(p.name.clone(), Symbol::Memory { space: Space::Param, address: at });
        parameters.push((p.name.clone(), at, p.size));
        at += p.size;
    }
    builder.function(function, names)?;
    let last = builder.sources.len() as u32;
    builder.sources.push((function.line, format!("end of `{entry}`")));
    builder.insts.push(Inst { op: Op::Exit, guard: None, source: last });
    builder.resolve()?;
    let shared = builder.shared.next_multiple_of(16);
    // Dynamic shared memory starts where 128-byte swizzles need it.
    let dynamic = shared.next_multiple_of(1024);
    let mut constants: Vec<_> = builder.constants.iter().map(|(v, r)| (*r, *v)).collect();
    constants.extend(builder.dynamic.iter().map(|(r, offset)| (*r, dynamic.wrapping_add_signed(*offset))));
    constants.sort_unstable();
    let mut specials: Vec<_> = builder.specials.into_iter().map(|(s, r)| (r, s)).collect();
    specials.sort_unstable_by_key(|(r, _)| *r);
    Ok(Program {
        insts: builder.insts,
        sources: builder.sources,
        registers: builder.registers,
        predicates: builder.predicates,
        constants,
        specials,
        shared: if builder.dynamic.is_empty() { shared } else { dynamic },
        local: builder.local.next_multiple_of(16),
        parameters,
        parameter_bytes: at,
        directives: function.directives.clone(),
    })
}

/// Module variables that live in device memory, in the order of their segments.
pub(crate) fn global_variables(text: &Text) -> impl Iterator<Item = &Variable> {
    text.variables.iter().filter(|v| matches!(v.space, Space::Global | Space::Const))
}

impl<'t> Builder<'t> {
    fn function(
        &mut self,
        function: &'t Function,
        names: HashMap<String, Symbol>,
    ) -> std::result::Result<(), LoadError> {
        if self.depth > 64 {
            return Err(LoadError::at(function.line, "recursive calls are not known to this machine"));
        }
        let outer = std::mem::take(&mut self.scopes);
        self.scopes.push(Scope { names, labels: HashMap::new() });
        // Labels are visible before they stand: each scope's labels are numbered when it opens.
        self.open(&function.body, 0);
        let mut at = 0;
        while at < function.body.len() {
            let line = match &function.body[at] {
                Item::Statement(s) => s.line,
                _ => function.line,
            };
            self.item(&function.body, at).map_err(|m| match &function.body[at] {
                Item::Statement(s) => LoadError::at(line, format!("{m}\n  {}", s.text)),
                _ => LoadError::at(line, m),
            })?;
            at += 1;
        }
        self.scopes = outer;
        Ok(())
    }

    /// Opens a scope whose items start at `from`.
    fn open(&mut self, body: &[Item], from: usize) {
        let mut labels = HashMap::new();
        let mut depth = 0;
        for item in &body[from..] {
            match item {
                Item::Open => depth += 1,
                Item::Close if depth == 0 => break,
                Item::Close => depth -= 1,
                Item::Label(name) if depth == 0 => {
                    labels.insert(name.clone(), self.label());
                }
                _ => {}
            }
        }
        self.scopes.push(Scope { names: HashMap::new(), labels });
    }

    fn label(&mut self) -> u32 {
        self.labels += 1;
        self.targets.push(None);
        self.labels - 1
    }

    fn place_label(&mut self, label: u32) {
        self.targets[label as usize] = Some(self.insts.len() as u32);
    }

    fn item(&mut self, body: &'t [Item], at: usize) -> Result<()> {
        match &body[at] {
            Item::Open => self.open(body, at + 1),
            Item::Close => {
                self.scopes.pop();
            }
            Item::Label(name) => {
                let label = self.find_label(name)?;
                self.place_label(label);
            }
            Item::Targets(name, targets) => self.declare(name.clone(), Symbol::Targets(targets.clone())),
            Item::Registers(name, count, ty, vector) => {
                let names =
                    if *count == 0 { vec![name.clone()] } else { (0..*count).map(|i| format!("{name}{i}")).collect() };
                for name in names {
                    self.declare_register(name, *ty, *vector);
                }
            }
            Item::Variable(v) => {
                let space = if v.space == Space::Param { Space::Local } else { v.space };
                let symbol = match space {
                    Space::Shared if v.external => Symbol::Dynamic,
                    Space::Shared => {
                        self.shared = self.shared.next_multiple_of(v.align.max(1));
                        self.shared += v.size;
                        Symbol::Memory { space, address: self.shared - v.size }
                    }
                    Space::Local => {
                        self.local = self.local.next_multiple_of(v.align.max(1)) + v.size;
                        Symbol::Memory { space, address: self.local - v.size }
                    }
                    _ => return Err(format!("`{}`: device memory declared inside a function", v.name)),
                };
                self.declare(v.name.clone(), symbol);
            }
            Item::Statement(s) => {
                self.sources.push((s.line, s.text.clone()));
                self.statement(s)?;
            }
        }
        Ok(())
    }

    fn declare(&mut self, name: String, symbol: Symbol) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.names.insert(name, symbol);
        }
    }

    fn declare_register(&mut self, name: String, ty: Type, vector: u32) {
        if vector > 1 {
            let parts: Vec<_> = (0..vector).map(|i| format!("{name}.{}", ["x", "y", "z", "w"][i as usize])).collect();
            for part in &parts {
                self.declare_register(part.clone(), ty, 1);
            }
            self.declare(name, Symbol::Vector(parts));
        } else if ty.kind == crate::ast::Kind::Predicate {
            let pred = self.new_pred();
            self.declare(name, Symbol::Predicate(pred));
        } else {
            let reg = self.new_reg();
            self.declare(name, Symbol::Register(reg));
        }
    }

    fn new_reg(&mut self) -> Reg {
        self.registers += 1;
        self.registers - 1
    }

    fn new_pred(&mut self) -> Pred {
        self.predicates += 1;
        self.predicates - 1
    }

    fn push(&mut self, op: Op) {
        self.push_guarded(op, None);
    }

    fn push_guarded(&mut self, op: Op, guard: Option<Test>) {
        let source = self.sources.len().saturating_sub(1) as u32;
        self.insts.push(Inst { op, guard, source });
    }

    fn statement(&mut self, s: &'t Statement) -> Result<()> {
        let guard = match &s.guard {
            Some((name, negated)) => {
                Some(Test { pred: self.pred_dest(&Operand::Name(name.clone()))?, negated: *negated })
            }
            None => None,
        };
        let from = self.insts.len();
        let mut modifiers = Modifiers::new(&s.modifiers);
        let known = self.alu(s, &mut modifiers)?
            || self.control(s, &mut modifiers)?
            || self.memory(s, &mut modifiers)?
            || self.warp(s, &mut modifiers)?
            || self.bulk(s, &mut modifiers)?
            || self.matrix(s, &mut modifiers)?;
        if !known {
            return Err(format!("instruction `{}` is not known to this machine", s.name));
        }
        modifiers.done()?;
        // A guarded call is refused where it is decoded; everything else is one or a few instructions.
        for inst in &mut self.insts[from..] {
            inst.guard = inst.guard.or(guard);
        }
        Ok(())
    }

    /// Labels into positions.
    fn resolve(&mut self) -> std::result::Result<(), LoadError> {
        let targets = std::mem::take(&mut self.targets);
        let find = |label: &mut u32| -> std::result::Result<(), LoadError> {
            *label =
                targets[*label as usize].ok_or_else(|| LoadError::at(0, "a jump to a label that stands nowhere"))?;
            Ok(())
        };
        for inst in &mut self.insts {
            match &mut inst.op {
                Op::Jump(target) => find(target)?,
                Op::JumpTable { targets, .. } => targets.iter_mut().try_for_each(find)?,
                _ => {}
            }
        }
        Ok(())
    }
}

/// How many operands an instruction has, as an error.
fn want(s: &Statement, counts: std::ops::RangeInclusive<usize>) -> Result<()> {
    if counts.contains(&s.operands.len()) {
        return Ok(());
    }
    Err(format!("{} operands; accepted: {} to {}", s.operands.len(), counts.start(), counts.end()))
}

const _: () = assert!(SEGMENT_SHIFT > 32);
