//! What the parser makes of PTX text: declarations and instructions, with names still unresolved.

use std::collections::HashMap;

/// State spaces that a variable or an access can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// No space named: the address says which one it is.
    Generic,
    /// Memory of the device.
    Global,
    /// Memory of the device that kernels may not write.
    Const,
    /// Kernel parameters, and the parameters of device functions.
    Param,
    /// Memory of one thread.
    Local,
    /// Memory of one block, or of a cluster's blocks.
    Shared,
}

/// A scalar type's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Untyped bits.
    Bits,
    /// Unsigned integer.
    Unsigned,
    /// Signed integer.
    Signed,
    /// IEEE float.
    Float,
    /// bfloat16, alone or in pairs.
    Bfloat,
    /// Predicate.
    Predicate,
}

/// A scalar type as declarations name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Type {
    /// Its kind.
    pub kind: Kind,
    /// Its width in bits; a predicate has 1.
    pub bits: u32,
    /// Two values side by side (`f16x2`).
    pub pair: bool,
}

impl Type {
    /// Reads `u32`, `f16x2`, `pred`.
    pub fn parse(name: &str) -> Option<Type> {
        let make = |kind, bits, pair| Some(Type { kind, bits, pair });
        match name {
            "pred" => return make(Kind::Predicate, 1, false),
            "f16x2" => return make(Kind::Float, 32, true),
            "bf16x2" => return make(Kind::Bfloat, 32, true),
            "u16x2" => return make(Kind::Unsigned, 32, true),
            "s16x2" => return make(Kind::Signed, 32, true),
            "bf16" => return make(Kind::Bfloat, 16, false),
            "tf32" => return make(Kind::Bits, 32, false),
            _ => {}
        }
        let kind = match name.as_bytes().first()? {
            b'b' => Kind::Bits,
            b'u' => Kind::Unsigned,
            b's' => Kind::Signed,
            b'f' => Kind::Float,
            _ => return None,
        };
        let bits: u32 = name[1..].parse().ok()?;
        let known = match kind {
            Kind::Float => matches!(bits, 16 | 32 | 64),
            Kind::Bits => matches!(bits, 8 | 16 | 32 | 64 | 128),
            _ => matches!(bits, 8 | 16 | 32 | 64),
        };
        if known { make(kind, bits, false) } else { None }
    }

    /// Size in bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.bits.div_ceil(8))
    }

    /// Whether it is a signed integer.
    pub fn signed(self) -> bool {
        self.kind == Kind::Signed
    }
}

/// One element of a variable's initial value.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    /// A number's bits, already of the element type.
    Bits(u64),
    /// The address of a variable, plus an offset; `true` for a generic address.
    Address(String, i64, bool),
}

/// A declared variable.
#[derive(Clone, Debug)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Where it lies.
    pub space: Space,
    /// Its alignment in bytes.
    pub align: u64,
    /// Its size in bytes; 0 for `extern` arrays without a size.
    pub size: u64,
    /// Size of an element of its initial value.
    pub element: u64,
    /// Declared `extern`.
    pub external: bool,
    /// Its initial value.
    pub init: Vec<Init>,
    /// Set for a parameter that is a register (`.reg` parameters of functions).
    pub register: Option<Type>,
}

/// An operand as written.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    /// A register, variable, label or `_`.
    Name(String),
    /// An integer.
    Integer(u64),
    /// `0f…` or a decimal float.
    Single(u32),
    /// `0d…`, or a decimal float.
    Double(u64),
    /// `{a, b}`.
    Vector(Vec<Operand>),
    /// `p|q`.
    Pair(Box<Operand>, Box<Operand>),
    /// `!p`.
    Not(Box<Operand>),
    /// `[base + offset]`, with tensor coordinates where there are any.
    Address {
        /// Register or variable; absent for an absolute address.
        base: Option<String>,
        /// Bytes added to it.
        offset: i64,
        /// What stands after a comma inside the brackets.
        more: Vec<Operand>,
    },
    /// `(a, b)` of a call.
    List(Vec<Operand>),
    /// A name plus a number, as initial values and `mov` have them.
    Sum(String, i64),
}

/// One instruction as written.
#[derive(Clone, Debug)]
pub struct Statement {
    /// `@p` or `@!p`: the predicate and whether it is negated.
    pub guard: Option<(String, bool)>,
    /// First word of the opcode.
    pub name: String,
    /// Its modifiers, without dots.
    pub modifiers: Vec<String>,
    /// Its operands.
    pub operands: Vec<Operand>,
    /// Line in the text, from 1.
    pub line: u32,
    /// As written, on one line.
    pub text: String,
}

/// One thing in a function's body.
#[derive(Clone, Debug)]
pub enum Item {
    /// Registers: base name, count (0 for a single one), type, elements of a vector register.
    Registers(String, u32, Type, u32),
    /// A variable of the function.
    Variable(Variable),
    /// A jump target.
    Label(String),
    /// A table of jump targets for `brx.idx`.
    Targets(String, Vec<String>),
    /// An instruction.
    Statement(Statement),
    /// `{`.
    Open,
    /// `}`.
    Close,
}

/// A function or kernel.
#[derive(Clone, Debug)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Whether a launch can name it.
    pub entry: bool,
    /// What it returns.
    pub results: Vec<Variable>,
    /// What it takes.
    pub parameters: Vec<Variable>,
    /// What it does.
    pub body: Vec<Item>,
    /// `.reqntid`, `.maxntid`, `.minnctapersm`, `.reqnctapercluster`, … with their numbers.
    pub directives: HashMap<String, Vec<u32>>,
    /// Line of its name.
    pub line: u32,
}

/// A PTX module's text, parsed.
#[derive(Clone, Debug, Default)]
pub struct Text {
    /// `.version`, as (major, minor).
    pub version: (u32, u32),
    /// `.target`'s words.
    pub target: Vec<String>,
    /// Module variables.
    pub variables: Vec<Variable>,
    /// Functions with a body.
    pub functions: Vec<Function>,
}
