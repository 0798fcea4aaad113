//! Parsed text into a program: names become register numbers, jumps become positions, device functions are inlined.
//!
//! An instruction, modifier or operand form that is not known is an error here: a program that loads has none.

mod alu;
mod bulk;
mod control;
mod matrix;
mod memory;
mod special;
mod warp;

use crate::alu::Modifiers;
use crate::ast::{Function, Item, Operand, Space, Statement, Text, Type, Variable};
use crate::fault::LoadError;
use crate::memory::{SEGMENT_SHIFT, SHARED_START, segment_base};
use crate::op::{Inst, Op, Place, Pred, Reg, Test};
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

    fn find_label(&self, name: &str) -> Result<u32> {
        let found = self.scopes.iter().rev().find_map(|s| s.labels.get(name));
        found.copied().ok_or_else(|| format!("no label `{name}` here"))
    }

    fn symbol(&mut self, name: &str) -> Result<Symbol> {
        if let Some(found) = self.scopes.iter().rev().find_map(|s| s.names.get(name)) {
            return Ok(found.clone());
        }
        if let Some(special) = Special::parse(name) {
            let reg = match self.specials.get(&special) {
                Some(reg) => *reg,
                None => {
                    let reg = self.new_reg();
                    self.specials.insert(special, reg);
                    reg
                }
            };
            return Ok(Symbol::Register(reg));
        }
        if let Some(address) = self.globals.get(name) {
            return Ok(Symbol::Memory { space: Space::Global, address: *address });
        }
        let Some(v) = self.text.variables.iter().find(|v| v.name == name) else {
            return Err(format!("`{name}` is not declared"));
        };
        if v.space != Space::Shared {
            return Err(format!("`{name}` lies in a space that modules cannot hold here"));
        }
        if v.external || v.size == 0 {
            return Ok(Symbol::Dynamic);
        }
        if let Some(address) = self.shared_names.get(name) {
            return Ok(Symbol::Memory { space: Space::Shared, address: *address });
        }
        let address = self.shared.next_multiple_of(v.align.max(1));
        self.shared = address + v.size;
        self.shared_names.insert(name.to_string(), address);
        Ok(Symbol::Memory { space: Space::Shared, address })
    }

    fn constant(&mut self, value: u64) -> Reg {
        if let Some(reg) = self.constants.get(&value) {
            return *reg;
        }
        let reg = self.new_reg();
        self.constants.insert(value, reg);
        reg
    }

    fn dynamic(&mut self, offset: i64) -> Reg {
        let reg = self.new_reg();
        self.dynamic.push((reg, offset));
        reg
    }

    /// A value operand.
    fn source(&mut self, operand: &Operand, ty: Type) -> Result<Reg> {
        let float = matches!(ty.kind, crate::ast::Kind::Float);
        match operand {
            Operand::Integer(n) => Ok(self.constant(*n)),
            Operand::Single(bits) if float && ty.bits == 64 => {
                Ok(self.constant(f64::from(f32::from_bits(*bits)).to_bits()))
            }
            Operand::Single(bits) => Ok(self.constant(u64::from(*bits))),
            Operand::Double(bits) if float && ty.bits == 32 => {
                Ok(self.constant(u64::from((f64::from_bits(*bits) as f32).to_bits())))
            }
            Operand::Double(bits) => Ok(self.constant(*bits)),
            Operand::Name(name) => match self.symbol(name)? {
                Symbol::Register(reg) => Ok(reg),
                Symbol::Memory { address, .. } => Ok(self.constant(address)),
                Symbol::Dynamic => Ok(self.dynamic(0)),
                _ => Err(format!("`{name}` is no value")),
            },
            Operand::Sum(name, offset) => match self.symbol(name)? {
                Symbol::Memory { address, .. } => Ok(self.constant(address.wrapping_add_signed(*offset))),
                Symbol::Dynamic => Ok(self.dynamic(*offset)),
                _ => Err(format!("`{name}` plus a number is no value")),
            },
            other => Err(format!("{other:?} is no value")),
        }
    }

    /// A register that is written; `_` gets one that nobody reads.
    fn dest(&mut self, operand: &Operand) -> Result<Reg> {
        match operand {
            Operand::Name(name) if name == "_" => Ok(self.new_reg()),
            Operand::Name(name) => match self.symbol(name)? {
                Symbol::Register(reg) if !self.specials.values().any(|r| *r == reg) => Ok(reg),
                _ => Err(format!("`{name}` is no register that can be written")),
            },
            other => Err(format!("{other:?} is no register")),
        }
    }

    fn pred_dest(&mut self, operand: &Operand) -> Result<Pred> {
        match operand {
            Operand::Name(name) if name == "_" => Ok(self.new_pred()),
            Operand::Name(name) => match self.symbol(name)? {
                Symbol::Predicate(p) => Ok(p),
                _ => Err(format!("`{name}` is no predicate")),
            },
            other => Err(format!("{other:?} is no predicate")),
        }
    }

    fn is_pred(&mut self, operand: &Operand) -> bool {
        match operand {
            Operand::Name(name) => matches!(self.symbol(name), Ok(Symbol::Predicate(_))),
            Operand::Not(_) => true,
            _ => false,
        }
    }

    fn test(&mut self, operand: &Operand) -> Result<Test> {
        match operand {
            Operand::Not(inner) => {
                let test = self.test(inner)?;
                Ok(Test { negated: !test.negated, ..test })
            }
            Operand::Integer(n) => {
                let pred = self.new_pred();
                self.push(Op::PredConst(pred, *n != 0));
                Ok(Test { pred, negated: false })
            }
            other => Ok(Test { pred: self.pred_dest(other)?, negated: false }),
        }
    }

    /// A memory operand of a given space; names decide it where the instruction does not.
    fn place(&mut self, operand: &Operand, space: Space) -> Result<Place> {
        let Operand::Address { base, offset, .. } = operand else {
            return Err(format!("{operand:?} is no address"));
        };
        let Some(name) = base else {
            let base = self.constant(*offset as u64);
            return Ok(Place { space, base, offset: 0 });
        };
        match self.symbol(name)? {
            Symbol::Register(base) => Ok(Place { space, base, offset: *offset }),
            Symbol::Memory { space: own, address } => {
                // Parameters of device functions lie in local memory here.
                let space = if space == Space::Generic || space == Space::Param { own } else { space };
                let base = self.constant(address);
                Ok(Place { space, base, offset: *offset })
            }
            Symbol::Dynamic => Ok(Place { space: Space::Shared, base: self.dynamic(0), offset: *offset }),
            _ => Err(format!("`{name}` is no address")),
        }
    }

    /// The parts of a vector operand; a scalar is a vector of one.
    fn parts(&mut self, operand: &Operand) -> Result<Vec<Operand>> {
        Ok(match operand {
            Operand::Vector(parts) => parts.clone(),
            Operand::Name(name) => match self.symbol(name) {
                Ok(Symbol::Vector(parts)) => parts.into_iter().map(Operand::Name).collect(),
                _ => vec![operand.clone()],
            },
            other => vec![other.clone()],
        })
    }

    fn sources(&mut self, operand: &Operand, ty: Type) -> Result<Vec<Reg>> {
        self.parts(operand)?.iter().map(|p| self.source(p, ty)).collect()
    }

    fn dests(&mut self, operand: &Operand) -> Result<Vec<Option<Reg>>> {
        let parts = self.parts(operand)?;
        parts.iter().map(|p| if *p == Operand::Name("_".into()) { Ok(None) } else { self.dest(p).map(Some) }).collect()
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
