//! How K is cut for a matrix instruction: which instruction, blocks of K, and where their sums are scaled.
//!
//! A *block* is a run of columns that is fetched at once: whole strips of the packing. Always holds: a block and a segment
//! are multiples of one another, and of the instruction's steps.

use super::as_matmul;
use crate::caps::{Caps, MmaShape};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::Code;
use crate::format::qt16::{Class, LaneOrder, Qt16};
use crate::lower::lanes::Lanes;
use crate::lower::unpack::fragments::{refuses as refuses_codes, strip_columns};
use crate::op::{Activation, Matmul, Op};

/// The instruction for an operation, and the class of the packing whose fragments it takes.
pub(super) fn instruction(op: &Matmul, caps: &Caps) -> Option<(Class, &'static MmaShape)> {
    let (class, shape) = match op.activation {
        Activation::Float(dtype @ (DType::F16 | DType::Bf16)) => (Class::F16, caps.mma(dtype, dtype, DType::F32)?),
        Activation::Int8(_) => (Class::B8, caps.mma(DType::U8, DType::I8, DType::I32)?),
        Activation::Fp8(dtype, _) => {
            let a = match op.weight.code {
                Code::Float(dtype) => dtype,
                // Small integers are numbers of this type.
                _ => DType::E4m3fn,
            };
            (Class::B8, caps.mma(a, dtype, DType::F32)?)
        }
        _ => return None,
    };
    ((shape.m, shape.n, shape.lanes) == (16, 8, caps.subgroup)).then_some((class, shape))
}

/// The lanes of an instruction that [`instruction`] has found.
pub(super) fn lanes_of(shape: &'static MmaShape) -> Result<Lanes> {
    Lanes::of(shape).ok_or_else(|| Error::Unsupported(format!("the lanes of {shape} for QT16")))
}

/// How K is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// Columns of a block.
    pub block: usize,
    /// Columns of a segment, see [`Matmul::segment`].
    pub segment: usize,
    /// Blocks after which sums are scaled; 1 where a block holds whole segments.
    pub per: usize,
}

/// The cut of an operation into blocks of `wanted` columns, or of one strip where that does not fit; or why there is none.
/// `longest` is how many blocks may be summed before they are scaled, where a segment is not all of K.
pub(super) fn cut(
    op: &Op,
    caps: &Caps,
    wanted: impl Fn(&MmaShape) -> usize,
    longest: usize,
) -> std::result::Result<(Cut, Class, &'static MmaShape, Qt16), String> {
    let op = as_matmul(op).map_err(|_| "computes matmuls only".to_string())?;
    let Some((class, shape)) = instruction(op, caps) else {
        let lack = format!("has no matrix instruction of {} for {} weights", caps.name, op.weight);
        return Err(format!("{lack} and {} activations", op.activation));
    };
    let layout = Qt16::of(&op.weight, op.k, class, LaneOrder::Gt).map_err(|error| error.to_string())?;
    if let Some(why) = refuses_codes(&layout, shape.a) {
        return Err(why);
    }
    let (strip, segment) = (strip_columns(&layout), op.segment());
    let k = shape.k as usize;
    let fits = |block: usize| {
        let group = if segment >= op.k { op.k } else { segment };
        op.k.is_multiple_of(block)
            && (block.is_multiple_of(group) && group.is_multiple_of(k) || group.is_multiple_of(block))
    };
    let wanted = wanted(shape).max(strip).next_multiple_of(strip);
    let Some(block) = [wanted, strip].into_iter().find(|&block| fits(block)) else {
        return Err(format!(
            "takes blocks of {strip} columns that divide K, and groups that divide them or are their multiples in steps of {k}; \
             here they have {segment} columns, and K is {}",
            op.k
        ));
    };
    if layout.groups > 1 && segment < op.k && !layout.group.is_multiple_of(segment) {
        return Err(format!("takes activation groups that divide weight groups, not {segment} and {}", layout.group));
    }
    if !op.k.is_multiple_of(segment) {
        return Err(format!("takes groups that divide K; here they have {segment} columns, and K is {}", op.k));
    }
    let integers = shape.acc == DType::I32;
    if integers && segment > 1 << 16 {
        return Err(format!("sums at most 65536 columns in 32 bits, not {segment}"));
    }
    let whole = (segment / block).max(1);
    // Floats may be scaled block by block; integers at the end of their segment.
    let per = if integers || (segment >= op.k && shape.a.bits() > 8) || whole <= longest { whole } else { 1 };
    let per = if shape.a.bits() == 8 && !integers { 1 } else { per };
    Ok((Cut { block, segment, per }, class, shape, layout))
}
