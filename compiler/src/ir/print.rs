//! The printer: kernels and statements as text.
//!
//! Reads any kernel, even a faulty one, since diagnostics show statements; makes the text that [`super::parse()`]
//! describes. Always holds: `parse(print(k)) == k` for every kernel that verifies. What no text can say (an operand
//! that names no parameter, a value without a type) prints as `?`.

use super::asynchronous::{Asynchronous, Factor, Panel};
use super::cooperative::{Cooperative, Lines};
use super::kernel::{Address, Block, Builtin, Constant, Inst, Kernel, ParamKind, Statement};
use super::names::{self, name};
use super::types::{Memory, Scalar, Value};
use std::fmt::{self, Display, Write};

impl Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Printer { kernel: self, out: f }.kernel()
    }
}

/// Most bytes of a statement that a diagnostic shows.
const HEAD_BYTES: usize = 240;

/// The first line of a statement, cut where it is very long: what a diagnostic shows.
pub fn head(kernel: &Kernel, statement: &Statement) -> String {
    let mut out = Bounded { text: String::new(), full: false };
    let _ = Printer { kernel, out: &mut out }.head(statement);
    match statement.inst {
        Inst::For(_) | Inst::If(_) if !out.full => out.text.push_str(" { … }"),
        _ if out.full => out.text.push('…'),
        _ => {}
    }
    out.text
}

/// A string that refuses to grow beyond [`HEAD_BYTES`].
struct Bounded {
    text: String,
    full: bool,
}

impl Write for Bounded {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        if self.text.len() + piece.len() > HEAD_BYTES {
            self.full = true;
            return Err(fmt::Error);
        }
        self.text.push_str(piece);
        Ok(())
    }
}

struct Printer<'a> {
    kernel: &'a Kernel,
    out: &'a mut dyn Write,
}

impl Printer<'_> {
    fn kernel(&mut self) -> fmt::Result {
        let kernel = self.kernel;
        write!(self.out, "kernel @{}(", kernel.name)?;
        self.list(&kernel.params, |p, param| match param.kind {
            ParamKind::Buffer { access, align } => {
                write!(p.out, "{}: {} align {align}", param.name, name(names::ACCESS, access))
            }
            ParamKind::Scalar(scalar) => write!(p.out, "{}: {scalar}", param.name),
        })?;
        let [x, y, z] = kernel.workgroup;
        writeln!(self.out, ") workgroup {x} {y} {z} {{")?;
        for shared in &kernel.shared {
            writeln!(self.out, "  shared {}: {} align {}", shared.name, shared.bytes, shared.align)?;
        }
        self.unused()?;
        self.statements(&kernel.body.statements, 1)?;
        self.out.write_str("}\n")
    }

    /// Values that have a type and no definition: passes leave them behind, and numbers must not shift.
    fn unused(&mut self) -> fmt::Result {
        let mut defined = vec![false; self.kernel.types.len()];
        mark(&self.kernel.body, &mut defined);
        for (number, _) in defined.iter().enumerate().filter(|(_, defined)| !**defined) {
            self.out.write_str("  unused ")?;
            self.definition(Value(number as u32))?;
            self.out.write_str("\n")?;
        }
        Ok(())
    }

    fn statements(&mut self, statements: &[Statement], depth: usize) -> fmt::Result {
        for statement in statements {
            write!(self.out, "{:1$}", "", 2 * depth)?;
            self.head(statement)?;
            match &statement.inst {
                Inst::For(inst) => self.block(&inst.body, depth)?,
                Inst::If(inst) => {
                    self.block(&inst.then, depth)?;
                    if !inst.otherwise.is_bare() {
                        self.out.write_str(" else")?;
                        self.block(&inst.otherwise, depth)?;
                    }
                }
                _ => {}
            }
            self.out.write_str("\n")?;
        }
        Ok(())
    }

    fn block(&mut self, block: &Block, depth: usize) -> fmt::Result {
        self.out.write_str(" {\n")?;
        let shown = match block.statements.split_last() {
            Some((last, before)) if last.is_bare_yield() => before,
            _ => &block.statements,
        };
        self.statements(shown, depth + 1)?;
        write!(self.out, "{:1$}}}", "", 2 * depth)
    }

    /// A statement without its blocks.
    fn head(&mut self, statement: &Statement) -> fmt::Result {
        self.list(&statement.results, |p, &value| p.definition(value))?;
        if !statement.results.is_empty() {
            self.out.write_str(" = ")?;
        }
        match &statement.inst {
            Inst::Const(constant) => {
                let ty = statement.results.first().and_then(|v| self.kernel.types.get(v.0 as usize));
                self.constant(constant, ty.map_or(Scalar::I64, |ty| ty.scalar))
            }
            Inst::Arg(index) => {
                self.out.write_str("arg ")?;
                self.memory(Memory::Param(*index))
            }
            Inst::Builtin(builtin) => self.builtin(*builtin),
            Inst::Bin(op, a, b) => write!(self.out, "{} {a}, {b}", name(names::BIN, *op)),
            Inst::Un(op, a) => write!(self.out, "{} {a}", name(names::UN, *op)),
            Inst::Cmp(op, a, b) => write!(self.out, "{} {a}, {b}", name(names::CMP, *op)),
            Inst::Select { cond, a, b } => write!(self.out, "select {cond}, {a}, {b}"),
            Inst::Cast(op, a) => write!(self.out, "{} {a}", name(names::CAST, *op)),
            Inst::Bitcast(a) => write!(self.out, "bitcast {a}"),
            Inst::Fma(a, b, c) => write!(self.out, "fma {a}, {b}, {c}"),
            Inst::Vector(lanes) => {
                self.out.write_str("vector [")?;
                self.values(lanes)?;
                self.out.write_str("]")
            }
            Inst::Splat(a) => write!(self.out, "splat {a}"),
            Inst::Extract { vector, lane } => write!(self.out, "extract {vector}, {lane}"),
            Inst::Swizzle { a, b, lanes } => {
                write!(self.out, "swizzle {a}, {b}, [")?;
                self.list(lanes, |p, lane| write!(p.out, "{lane}"))?;
                self.out.write_str("]")
            }
            Inst::Load { address, align } => {
                self.out.write_str("load ")?;
                self.address(address)?;
                write!(self.out, " align {align}")
            }
            Inst::Store { address, align, value } => {
                self.out.write_str("store ")?;
                self.address(address)?;
                write!(self.out, " align {align}, {value}")
            }
            Inst::Prefetch(address) => {
                self.out.write_str("prefetch ")?;
                self.address(address)
            }
            Inst::Barrier => self.out.write_str("barrier"),
            Inst::For(inst) => {
                self.out.write_str("for ")?;
                self.definition(inst.variable)?;
                write!(self.out, " = {} to {} step {}", inst.start, inst.end, inst.step)?;
                if inst.carried.is_empty() {
                    return Ok(());
                }
                self.out.write_str(" carry (")?;
                self.list(&inst.carried, |p, (inside, first)| {
                    p.definition(*inside)?;
                    write!(p.out, " = {first}")
                })?;
                self.out.write_str(")")
            }
            Inst::If(inst) => write!(self.out, "if {}", inst.cond),
            Inst::Yield(values) => {
                self.out.write_str(if values.is_empty() { "yield" } else { "yield " })?;
                self.values(values)
            }
            Inst::Unpack { a, shift, bits, signed } => {
                write!(self.out, "{} {a} shift {shift} bits {bits}", name(names::UNPACK, *signed))
            }
            Inst::Dot4 { signs, a_bits, a, b, acc } => {
                write!(self.out, "{} {a}, {b}, {acc} a_bits {a_bits}", name(names::DOT4, *signs))
            }
            Inst::Dot2 { a, b, acc } => write!(self.out, "dot2 {a}, {b}, {acc}"),
            Inst::PermuteBytes { table, index } => write!(self.out, "permute_bytes {table}, {index}"),
            Inst::PermuteLong { low, high, index } => write!(self.out, "permute_long {low}, {high}, {index}"),
            Inst::Shuffle { mode, value, index } => {
                write!(self.out, "{} {value}, {index}", name(names::SHUFFLE, *mode))
            }
            Inst::SubgroupReduce(op, value) => write!(self.out, "{} {value}", name(names::REDUCE, *op)),
            Inst::AtomicAdd { address, value } => {
                self.out.write_str("atomic_add ")?;
                self.address(address)?;
                write!(self.out, ", {value}")
            }
            Inst::Mma { shape, a, b, acc } => write!(self.out, "mma {shape} {a}, {b}, {acc}"),
            Inst::AsyncCopy { to, from, bytes } => {
                self.out.write_str("async_copy ")?;
                self.address(to)?;
                self.out.write_str(", ")?;
                self.address(from)?;
                write!(self.out, " bytes {bytes}")
            }
            Inst::AsyncCommit => self.out.write_str("async_commit"),
            Inst::AsyncWait(pending) => write!(self.out, "async_wait {pending}"),
            Inst::Asynchronous(inner) => self.asynchronous(inner),
            Inst::Cooperative(inner) => self.cooperative(inner),
        }
    }

    fn cooperative(&mut self, inst: &Cooperative) -> fmt::Result {
        write!(self.out, "{} {}", inst.name(), inst.shape())?;
        match inst {
            Cooperative::Fill { fragment, value } => write!(self.out, " {}, {value}", name(names::PART, fragment.part)),
            Cooperative::Load { fragment, from } => {
                write!(self.out, " {}", name(names::PART, fragment.part))?;
                self.lines(from)
            }
            Cooperative::Store { to, sums, .. } => {
                self.lines(to)?;
                write!(self.out, ", {sums}")
            }
            Cooperative::Multiply { a, b, sums, .. } | Cooperative::Scale { a, b, sums, .. } => {
                write!(self.out, " {a}, {b}, {sums}")
            }
        }
    }

    fn lines(&mut self, lines: &Lines) -> fmt::Result {
        write!(self.out, " {} ", name(names::ORDER, lines.order))?;
        self.address(&lines.address)?;
        write!(self.out, " stride {}", lines.stride)
    }

    fn asynchronous(&mut self, inst: &Asynchronous) -> fmt::Result {
        self.out.write_str(inst.name())?;
        let place = |p: &mut Self, before: &str, address: &Address| {
            p.out.write_str(before)?;
            p.address(address)
        };
        match inst {
            Asynchronous::BarrierInit { barrier, arrivals } => {
                place(self, " ", barrier)?;
                write!(self.out, " arrivals {arrivals}")
            }
            Asynchronous::BarrierArrive { barrier } => place(self, " ", barrier),
            Asynchronous::BarrierExpect { barrier, bytes } => {
                place(self, " ", barrier)?;
                write!(self.out, " bytes {bytes}")
            }
            Asynchronous::BarrierWait { barrier, parity } => {
                place(self, " ", barrier)?;
                write!(self.out, ", {parity}")
            }
            Asynchronous::BulkCopy { to, from, bytes, barrier } => {
                place(self, " ", to)?;
                place(self, ", ", from)?;
                write!(self.out, " bytes {bytes}")?;
                place(self, ", ", barrier)
            }
            Asynchronous::Mma { shape, columns, a, b, acc, .. } => {
                write!(self.out, " {shape} columns {columns} a ")?;
                match a {
                    Factor::Fragments(list) => {
                        self.out.write_str("[")?;
                        self.values(list)?;
                        self.out.write_str("]")?;
                    }
                    Factor::Panel(panel, steps) => {
                        self.panel(panel)?;
                        write!(self.out, " steps {steps}")?;
                    }
                }
                self.out.write_str(" b ")?;
                self.panel(b)?;
                write!(self.out, ", {acc}")
            }
            Asynchronous::Registers { count, .. } => write!(self.out, " {count}"),
            Asynchronous::MmaWait(left) => write!(self.out, " {left}"),
            Asynchronous::Fence
            | Asynchronous::SubgroupBarrier
            | Asynchronous::LaunchDependents
            | Asynchronous::AwaitDependencies
            | Asynchronous::DeviceFence => Ok(()),
        }
    }

    fn panel(&mut self, panel: &Panel) -> fmt::Result {
        self.address(&panel.address)?;
        let swizzled = if panel.swizzled { " swizzled" } else { "" };
        write!(self.out, " leading {} stride {}{swizzled}", panel.leading, panel.stride)
    }

    fn definition(&mut self, value: Value) -> fmt::Result {
        match self.kernel.types.get(value.0 as usize) {
            Some(ty) => write!(self.out, "{value}: {ty}"),
            None => write!(self.out, "{value}: ?"),
        }
    }

    fn values(&mut self, values: &[Value]) -> fmt::Result {
        self.list(values, |p, value| write!(p.out, "{value}"))
    }

    fn list<T>(&mut self, items: &[T], mut each: impl FnMut(&mut Self, &T) -> fmt::Result) -> fmt::Result {
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.out.write_str(", ")?;
            }
            each(self, item)?;
        }
        Ok(())
    }

    fn builtin(&mut self, builtin: Builtin) -> fmt::Result {
        match names::BUILTIN.iter().find(|(known, ..)| *known == builtin) {
            Some((_, name, "")) => self.out.write_str(name),
            Some((_, name, axis)) => write!(self.out, "{name}.{axis}"),
            None => write!(self.out, "?{builtin:?}"),
        }
    }

    fn memory(&mut self, memory: Memory) -> fmt::Result {
        let name = match memory {
            Memory::Param(index) => self.kernel.params.get(index as usize).map(|p| &p.name),
            Memory::Shared(index) => self.kernel.shared.get(index as usize).map(|s| &s.name),
        };
        match name {
            Some(name) => self.out.write_str(name),
            None => write!(self.out, "?{memory:?}"),
        }
    }

    fn address(&mut self, address: &Address) -> fmt::Result {
        self.memory(address.memory)?;
        match (address.index, address.offset) {
            (None, offset) => write!(self.out, "[{offset}]"),
            (Some(index), 0) => write!(self.out, "[{index}]"),
            (Some(index), offset) => write!(self.out, "[{index} + {offset}]"),
        }
    }

    fn constant(&mut self, constant: &Constant, scalar: Scalar) -> fmt::Result {
        self.out.write_str("const ")?;
        match constant {
            Constant::Splat(bits) => self.number(*bits, scalar),
            Constant::Lanes(lanes) => {
                self.out.write_str("[")?;
                self.list(lanes, |p, &bits| p.number(bits, scalar))?;
                self.out.write_str("]")
            }
        }
    }

    /// One lane of a constant: a decimal where it reads back to the same bits, else the bits in hexadecimal.
    fn number(&mut self, bits: u64, scalar: Scalar) -> fmt::Result {
        let fits = scalar.bits() == 64 || bits >> scalar.bits() == 0;
        let float = match scalar {
            Scalar::F32 => f32::from_bits(bits as u32),
            Scalar::F16 => half::f16::from_bits(bits as u16).to_f32(),
            Scalar::Bf16 => half::bf16::from_bits(bits as u16).to_f32(),
            _ => f32::NAN,
        };
        match scalar {
            _ if !fits => write!(self.out, "{bits:#x}"),
            Scalar::Bool => write!(self.out, "{}", bits == 1),
            _ if scalar.is_int() => {
                let unused = 64 - scalar.bits();
                write!(self.out, "{}", ((bits << unused) as i64) >> unused)
            }
            _ if float.is_finite() => write!(self.out, "{float:?}"),
            _ => write!(self.out, "{bits:#x}"),
        }
    }
}

/// Marks every value that some statement in the block defines.
pub(super) fn mark(block: &Block, defined: &mut [bool]) {
    let mut set = |value: Value| {
        if let Some(slot) = defined.get_mut(value.0 as usize) {
            *slot = true;
        }
    };
    for statement in &block.statements {
        statement.results.iter().for_each(|&v| set(v));
        if let Inst::For(inst) = &statement.inst {
            set(inst.variable);
            inst.carried.iter().for_each(|&(v, _)| set(v));
        }
    }
    for statement in &block.statements {
        match &statement.inst {
            Inst::For(inst) => mark(&inst.body, defined),
            Inst::If(inst) => {
                mark(&inst.then, defined);
                mark(&inst.otherwise, defined);
            }
            _ => {}
        }
    }
}

impl Statement {
    /// A `yield` of nothing, which the text form leaves out at the end of a block.
    fn is_bare_yield(&self) -> bool {
        self.results.is_empty() && matches!(&self.inst, Inst::Yield(values) if values.is_empty())
    }
}

impl Block {
    /// Nothing but a bare `yield`: an `else` that is left out.
    fn is_bare(&self) -> bool {
        matches!(self.statements.as_slice(), [only] if only.is_bare_yield())
    }
}
