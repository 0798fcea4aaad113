//! Names for values: a stem that says what the value is, and a number where the stem is taken.

use super::facts::Fact;
use crate::ir::{BinOp, Builtin, CastOp, Inst, Kernel, Memory, Type, UnOp, Value};
use std::collections::{HashMap, HashSet};

/// Names that are taken from the start: what C++ keeps, and what the helpers are called.
const TAKEN: &[&str] = &[
    "alignas",
    "alignof",
    "and",
    "and_eq",
    "asm",
    "atomic_add",
    "auto",
    "barrier",
    "bf16",
    "bf16_to_f32",
    "bitand",
    "bitor",
    "bits_as",
    "bitsmith",
    "bool",
    "break",
    "case",
    "catch",
    "char",
    "choose",
    "class",
    "co_await",
    "compl",
    "const",
    "const_cast",
    "constexpr",
    "continue",
    "count_bits",
    "decltype",
    "default",
    "delete",
    "do",
    "dot4_signed",
    "dot4_unsigned_signed",
    "double",
    "dynamic_cast",
    "e4m3fn",
    "e4m3fnuz",
    "e5m2",
    "e5m2fnuz",
    "e8m0",
    "else",
    "enum",
    "explicit",
    "export",
    "extern",
    "f16",
    "f32",
    "false",
    "float",
    "Float8",
    "for",
    "friend",
    "from_lane",
    "from_lane_down",
    "from_lane_xor",
    "fused",
    "goto",
    "greatest",
    "i16",
    "i32",
    "i64",
    "i8",
    "if",
    "inline",
    "int",
    "least",
    "load",
    "long",
    "look_up",
    "main",
    "mask",
    "maximum",
    "minimum",
    "mutable",
    "namespace",
    "nearby_block",
    "new",
    "noexcept",
    "not",
    "not_eq",
    "nullptr",
    "operator",
    "or",
    "or_eq",
    "own_lane",
    "partner",
    "partner_of",
    "pick",
    "Place",
    "both_halves",
    "power_of_two",
    "private",
    "protected",
    "public",
    "reduce",
    "register",
    "reinterpret_cast",
    "requires",
    "return",
    "root",
    "saturate",
    "short",
    "signed",
    "sizeof",
    "static",
    "static_assert",
    "static_cast",
    "store",
    "struct",
    "switch",
    "template",
    "this",
    "thread_local",
    "throw",
    "true",
    "try",
    "typedef",
    "typeid",
    "typename",
    "u16",
    "u32",
    "u64",
    "u8",
    "uniform",
    "union",
    "unsigned",
    "using",
    "vector",
    "virtual",
    "void",
    "volatile",
    "wchar_t",
    "while",
    "xor",
    "xor_eq",
    "unix",
    "linux",
    "NULL",
    "thread",
    "thread_y",
    "thread_z",
    "lane",
    "wave",
];

/// Whether a name of a kernel, parameter or array cannot stand in the source as it is.
pub(super) fn is_taken(name: &str) -> bool {
    let vector_of = |element: &str| {
        name.strip_prefix(element)
            .and_then(|rest| rest.strip_prefix('x'))
            .is_some_and(|lanes| lanes.chars().all(|c| c.is_ascii_digit()))
    };
    let elements = ["u8", "u16", "u32", "u64", "i8", "i16", "i32", "i64", "f16", "f32", "bool", "bf16"];
    TAKEN.contains(&name)
        || name.starts_with("__")
        || name.starts_with("multiply_")
        || name.starts_with("BITSMITH")
        || name.contains("_to_f32")
        || name.contains("f32_to_")
        || elements.into_iter().any(vector_of)
        || ["e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0"].into_iter().any(vector_of)
}

/// The names of one kernel.
#[derive(Debug)]
pub(super) struct Names {
    taken: HashSet<String>,
    next: HashMap<String, u32>,
    /// Names of parameters, then of shared arrays.
    params: Vec<String>,
    shared: Vec<String>,
    loops: u32,
}

impl Names {
    /// Names parameters and arrays after themselves, as far as C++ allows.
    pub fn new(kernel: &Kernel) -> Names {
        let mut names = Names {
            taken: HashSet::from([kernel.name.clone()]),
            next: HashMap::new(),
            params: Vec::new(),
            shared: Vec::new(),
            loops: 0,
        };
        names.params = kernel.params.iter().map(|param| names.declared(&param.name)).collect();
        names.shared = kernel.shared.iter().map(|shared| names.declared(&shared.name)).collect();
        names
    }

    fn declared(&mut self, name: &str) -> String {
        let mut own = name.to_string();
        while is_taken(&own) || !self.taken.insert(own.clone()) {
            own.push('_');
        }
        own
    }

    /// The name of a parameter.
    pub fn param(&self, number: u16) -> &str {
        &self.params[number as usize]
    }

    /// The name of a buffer or a shared array.
    pub fn memory(&self, memory: Memory) -> &str {
        match memory {
            Memory::Param(number) => self.param(number),
            Memory::Shared(number) => &self.shared[number as usize],
        }
    }

    /// A new name with this stem.
    pub fn fresh(&mut self, stem: &str) -> String {
        loop {
            let number = self.next.entry(stem.to_string()).or_insert(0);
            *number += 1;
            let name = if *number == 1 && !is_taken(stem) { stem.to_string() } else { format!("{stem}{number}") };
            if self.taken.insert(name.clone()) {
                return name;
            }
        }
    }

    /// A name that the emitter itself gives a meaning, taken once.
    pub fn reserved(&mut self, name: &str) -> String {
        if self.taken.insert(name.to_string()) { name.to_string() } else { self.fresh(name) }
    }

    /// A name for the counter of a loop, while it is open.
    pub fn open_loop(&mut self) -> String {
        let letter = ["i", "j", "k", "l"].get(self.loops as usize).copied();
        self.loops += 1;
        match letter {
            Some(letter) if !self.taken.contains(letter) => letter.to_string(),
            _ => self.fresh("turn"),
        }
    }

    /// The loop has ended; its counter's name is free again.
    pub fn close_loop(&mut self) {
        self.loops -= 1;
    }

    /// A stem for a parameter of a function that takes such a value.
    pub fn argument(fact: &Fact<'_>, ty: Type) -> String {
        match fact.inst {
            Some(Inst::Const(_)) if ty.scalar.is_int() && ty.lanes == 1 => "count".to_string(),
            Some(Inst::Const(_)) => "constant".to_string(),
            Some(Inst::Load { .. }) => "loaded".to_string(),
            Some(Inst::Builtin(_)) => "which".to_string(),
            Some(Inst::Extract { .. }) if ty.scalar.is_int() => "word".to_string(),
            Some(inst) => stem(inst, ty, fact).to_string(),
            None => if fact.sums { "sum" } else { "turn" }.to_string(),
        }
    }

    /// A name for a value.
    pub fn value(&mut self, value: Value, ty: Type, facts: &[Fact<'_>]) -> String {
        let fact = &facts[value.0 as usize];
        let stem = match fact.inst {
            Some(Inst::Load { address, .. }) => format!("{}_", self.memory(address.memory).trim_end_matches('_')),
            Some(Inst::Builtin(Builtin::LocalId(axis))) => {
                return self.reserved(["thread", "thread_y", "thread_z"][*axis as usize % 3]);
            }
            Some(Inst::Builtin(Builtin::Lane)) => return self.reserved("lane"),
            Some(Inst::Builtin(Builtin::Subgroup)) => return self.reserved("wave"),
            Some(inst) => stem(inst, ty, fact).to_string(),
            None => if fact.sums && ty.scalar.is_float() { "sum" } else { "carried" }.to_string(),
        };
        self.fresh(&stem)
    }
}

fn stem(inst: &Inst, ty: Type, fact: &Fact<'_>) -> &'static str {
    let integer = ty.scalar.is_int();
    match inst {
        Inst::Const(_) => "table",
        Inst::Builtin(Builtin::LocalId(_) | Builtin::Lane | Builtin::Subgroup) => "number",
        Inst::Builtin(Builtin::WorkgroupId(axis)) => ["block_x", "block_y", "block_z"][*axis as usize % 3],
        Inst::Builtin(Builtin::WorkgroupCount(axis)) => ["blocks_x", "blocks_y", "blocks_z"][*axis as usize % 3],
        _ if fact.addresses => "at",
        _ if fact.leads => "offset",
        Inst::Bin(BinOp::Min | BinOp::MinS | BinOp::Max | BinOp::MaxS, ..) => "bounded",
        Inst::Bin(BinOp::DivS | BinOp::Div, ..) => "quotient",
        Inst::Bin(BinOp::RemS, ..) => "rest",
        Inst::Bin(BinOp::Shl | BinOp::ShrU | BinOp::ShrS | BinOp::And | BinOp::Or | BinOp::Xor, ..) => {
            if ty.lanes > 1 || ty.scalar.bits() < 32 { "codes" } else { "bits" }
        }
        Inst::Bin(BinOp::Mul, ..) => {
            if integer {
                "n"
            } else {
                "product"
            }
        }
        Inst::Bin(BinOp::Add, ..) => {
            if integer {
                "n"
            } else {
                "sum"
            }
        }
        Inst::Bin(BinOp::Sub, ..) => {
            if integer {
                "n"
            } else {
                "difference"
            }
        }
        Inst::Un(UnOp::Sqrt, _) => "root_of",
        Inst::Un(UnOp::Nearest | UnOp::Floor, _) => "whole",
        Inst::Un(UnOp::Abs, _) => "size",
        Inst::Un(UnOp::Exp2, _) => "power",
        Inst::Un(UnOp::Popcount, _) => "ones",
        Inst::Un(UnOp::Neg | UnOp::Not, _) => "opposite",
        Inst::Cmp(..) => "is",
        Inst::Select { .. } => "chosen",
        Inst::Cast(CastOp::Float | CastOp::IntToFloatS | CastOp::IntToFloatU, _) => "number",
        Inst::Cast(CastOp::FloatToIntS, _) => "code",
        Inst::Cast(..) => {
            if ty.scalar.bits() < 32 {
                "narrow"
            } else {
                "n"
            }
        }
        Inst::Bitcast(_) => "bits",
        Inst::Fma(..) | Inst::Dot4 { .. } | Inst::Dot2 { .. } | Inst::Mma { .. } => "sum",
        Inst::Vector(_) | Inst::Splat(_) | Inst::Swizzle { .. } => "lanes",
        Inst::Extract { .. } => "part",
        Inst::Unpack { .. } | Inst::PermuteBytes { .. } | Inst::PermuteLong { .. } => "codes",
        Inst::Shuffle { .. } => "other",
        Inst::SubgroupReduce(..) => "total",
        Inst::AtomicAdd { .. } => "before",
        Inst::For(_) => "sum",
        Inst::If(_) => "chosen",
        Inst::AsyncCopy { .. } | Inst::AsyncCommit | Inst::AsyncWait(_) => "value",
        Inst::Asynchronous(_) | Inst::Cooperative(_) => "value",
        Inst::Arg(_) | Inst::Load { .. } | Inst::Store { .. } | Inst::Prefetch(_) | Inst::Barrier | Inst::Yield(_) => {
            "value"
        }
    }
}
