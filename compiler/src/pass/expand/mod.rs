//! `expand`: extended and hard instructions as core ones, for devices that lack them.
//!
//! Always holds: the expansion gives the instruction's bits exactly, and `exp2` stays within its stated error.

mod arithmetic;
mod float;
mod small;

use super::rewrite::{Names, rename, take_body};
use crate::caps::{Caps, Feature};
use crate::ir::{Block, Builder, CastOp, Dot4Signs, Inst, Kernel, Scalar, Statement, Type, UnOp, Value};

/// What to expand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// `unpack` to shifts, masks and casts.
    pub unpack: bool,
    /// `dot4` of unsigned by signed bytes to byte multiplications.
    pub dot4_unsigned_signed: bool,
    /// `dot4` of signed bytes to byte multiplications.
    pub dot4_signed_signed: bool,
    /// `dot2` of integers to multiplications of words.
    pub dot2: bool,
    /// `permute_bytes` to comparisons and selects.
    pub permute_bytes: bool,
    /// `exp2` to a polynomial.
    pub exp2: bool,
    /// `popcount` to shifts and adds.
    pub popcount: bool,
    /// Casts from and to the 8-bit floats to integer arithmetic.
    pub storage_casts: bool,
    /// But not those from and to E4M3 and E5M2, which the device has.
    pub native_ocp_casts: bool,
    /// Casts from and to f16 to integer arithmetic.
    pub f16_casts: bool,
    /// Casts from and to bf16 to integer arithmetic.
    pub bf16_casts: bool,
    /// Arithmetic on f16 to arithmetic on `f32` and casts.
    pub f16_arithmetic: bool,
    /// `fma` of f16 to arithmetic on `f32`, for devices that have the rest but round this twice.
    pub f16_fma: bool,
    /// Arithmetic on bf16 to arithmetic on `f32` and casts.
    pub bf16_arithmetic: bool,
    /// `shuffle` and `subgroup_reduce` of a subgroup of one thread to nothing.
    pub subgroup_of_one: bool,
}

impl Choice {
    /// What a device of these caps lacks. Where no feature says that a device has an instruction, it is expanded.
    pub fn for_caps(caps: &Caps) -> Choice {
        let lacks = |feature| !caps.features.has(feature);
        Choice {
            unpack: true,
            dot4_unsigned_signed: lacks(Feature::Dot4UnsignedSigned),
            dot4_signed_signed: lacks(Feature::Dot4SignedSigned),
            dot2: lacks(Feature::Dot2),
            permute_bytes: lacks(Feature::PermuteBytes),
            exp2: true,
            popcount: true,
            storage_casts: true,
            native_ocp_casts: false,
            f16_casts: lacks(Feature::F16Convert),
            bf16_casts: true,
            f16_arithmetic: lacks(Feature::F16Arithmetic),
            f16_fma: lacks(Feature::F16Arithmetic),
            bf16_arithmetic: lacks(Feature::Bf16Arithmetic),
            subgroup_of_one: caps.subgroup == 1,
        }
    }

    /// Nothing.
    pub const NONE: Choice = Choice {
        unpack: false,
        dot4_unsigned_signed: false,
        dot4_signed_signed: false,
        dot2: false,
        permute_bytes: false,
        exp2: false,
        popcount: false,
        storage_casts: false,
        native_ocp_casts: false,
        f16_casts: false,
        bf16_casts: false,
        f16_arithmetic: false,
        f16_fma: false,
        bf16_arithmetic: false,
        subgroup_of_one: false,
    };

    /// Everything, for a device with a subgroup of one thread.
    pub const ALL: Choice = Choice {
        unpack: true,
        dot4_unsigned_signed: true,
        dot4_signed_signed: true,
        dot2: true,
        permute_bytes: true,
        exp2: true,
        popcount: true,
        storage_casts: true,
        native_ocp_casts: false,
        f16_casts: true,
        bf16_casts: true,
        f16_arithmetic: true,
        f16_fma: true,
        bf16_arithmetic: true,
        subgroup_of_one: true,
    };

    /// Whether a cast between `f32` and this float is expanded.
    fn casts(&self, scalar: Scalar) -> bool {
        match scalar {
            Scalar::F16 => self.f16_casts,
            Scalar::Bf16 => self.bf16_casts,
            Scalar::E4m3fn | Scalar::E5m2 if self.native_ocp_casts => false,
            other => other.is_storage() && self.storage_casts,
        }
    }
}

/// Expands what the device lacks.
pub fn expand(kernel: Kernel, caps: &Caps) -> Kernel {
    expand_chosen(kernel, &Choice::for_caps(caps))
}

/// Expands what a target chose.
pub fn expand_chosen(mut kernel: Kernel, choice: &Choice) -> Kernel {
    let body = take_body(&mut kernel);
    let mut expander = Expander { kernel, choice: *choice, names: Names::new() };
    let body = expander.block(body);
    expander.kernel.body = body;
    expander.kernel
}

struct Expander {
    /// The kernel without its body: new values go to its types.
    kernel: Kernel,
    choice: Choice,
    names: Names,
}

impl Expander {
    fn block(&mut self, block: Block) -> Block {
        let mut out = Vec::with_capacity(block.statements.len());
        for mut statement in block.statements {
            rename(&mut statement.inst, &self.names);
            match statement.inst {
                Inst::For(mut inner) => {
                    inner.body = self.block(inner.body);
                    out.push(Statement { results: statement.results, inst: Inst::For(inner) });
                }
                Inst::If(mut inner) => {
                    inner.then = self.block(inner.then);
                    inner.otherwise = self.block(inner.otherwise);
                    out.push(Statement { results: statement.results, inst: Inst::If(inner) });
                }
                inst => {
                    let &[result] = statement.results.as_slice() else {
                        out.push(Statement { results: statement.results, inst });
                        continue;
                    };
                    let ty = self.kernel.ty(result);
                    let empty = Kernel {
                        name: String::new(),
                        params: Vec::new(),
                        shared: Vec::new(),
                        workgroup: [1; 3],
                        types: Vec::new(),
                        body: Block::default(),
                    };
                    let mut builder = Builder::extend(std::mem::replace(&mut self.kernel, empty));
                    let value = self.choice.instruction(&mut builder, &inst, ty);
                    self.kernel = builder.finish();
                    let made = take_body(&mut self.kernel);
                    match value {
                        Some(value) => {
                            out.extend(made.statements);
                            self.names.insert(result, value);
                        }
                        None => out.push(Statement { results: vec![result], inst }),
                    }
                }
            }
        }
        Block { statements: out }
    }
}

impl Choice {
    /// Builds the expansion of one instruction, or nothing if it stays.
    fn instruction(&self, b: &mut Builder, inst: &Inst, ty: Type) -> Option<Value> {
        match *inst {
            Inst::Unpack { a, shift, bits, signed } if self.unpack => {
                Some(arithmetic::unpack(b, a, shift, bits, signed, ty))
            }
            Inst::Dot4 { signs, a, b: factor, acc, .. } => {
                let expand = match signs {
                    Dot4Signs::UnsignedSigned => self.dot4_unsigned_signed,
                    Dot4Signs::SignedSigned => self.dot4_signed_signed,
                };
                expand.then(|| arithmetic::dot4(b, signs, a, factor, acc))
            }
            Inst::Dot2 { a, b: factor, acc } if self.dot2 && ty.scalar == Scalar::I32 => {
                Some(arithmetic::dot2(b, a, factor, acc))
            }
            Inst::PermuteBytes { table, index } if self.permute_bytes => Some(arithmetic::permute(b, table, index)),
            Inst::Un(UnOp::Exp2, a) if self.exp2 => Some(arithmetic::exp2(b, a)),
            Inst::Un(UnOp::Popcount, a) if self.popcount => Some(arithmetic::popcount(b, a)),
            Inst::SubgroupReduce(_, a) | Inst::Shuffle { value: a, .. } if self.subgroup_of_one => Some(a),
            Inst::Cast(CastOp::Float, a) => self.float_cast(b, a, ty.scalar),
            _ => self.small_arithmetic(b, inst, ty),
        }
    }

    /// A cast between floats, through `f32`, which holds every number of the others.
    fn float_cast(&self, b: &mut Builder, a: Value, to: Scalar) -> Option<Value> {
        let from = b.ty(a).scalar;
        if from == to || !(self.casts(from) || self.casts(to)) {
            return None;
        }
        let wide = match from {
            Scalar::F32 => a,
            from if self.casts(from) => float::decode(b, a),
            _ => b.cast(CastOp::Float, a, Scalar::F32),
        };
        Some(match to {
            Scalar::F32 => wide,
            to if self.casts(to) => float::encode(b, wide, to),
            to => b.cast(CastOp::Float, wide, to),
        })
    }
}
