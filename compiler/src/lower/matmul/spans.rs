//! Codes under two levels of scales, the inner ones whole numbers (K-quants), without a dot instruction: products of bytes are
//! summed in pairs of columns, and what multiplies and adds the two halves of a lane takes the inner scale in place of ones. A
//! group then ends without leaving the integers, and the columns of an outer scale, a *span*, share one multiply-add of floats.

mod streamed;

pub(super) use self::streamed::SpanSums;
use super::has_dot;
use crate::caps::{Caps, Feature};
use crate::dtype::DType;
use crate::format::Zero;
use crate::format::n16::N16;
use crate::ir::{Builder, CastOp, Memory, Scalar, Type, Value};
use crate::lower::memory::at;
use crate::lower::stage::Kept;
use crate::lower::unpack::Integers;
use crate::lower::walk::Pos;
use crate::op::{Activation, Matmul, Per};

/// Quads whose weights wait in registers while rows go by: four leave room for ten sums of sixteen registers.
const MOST_QUADS: usize = 4;

/// How codes lie under two levels of scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Columns under an outer scale.
    pub columns: usize,
    /// Quads whose products 16 bits hold, as many as a group has at most.
    pub quads: usize,
    /// Whether codes are taken less an offset, and activations are raised to be the unsigned side.
    pub raised: bool,
    /// Whether offsets are added to weights.
    pub offsets: bool,
}

impl Span {
    /// With codes less their offset, if they have one. `None` where scales are others, and where sums might not be exact.
    pub fn of_signed(op: &Matmul, layout: &N16, how: &Integers) -> Option<Span> {
        let offset = i64::from(how.offset);
        let most_code = offset.max((1 << how.bits) - 1 - offset);
        let raised = offset != 0;
        Span::with(op, layout, how, (most_code, if raised { 255 } else { 128 }, raised))
    }

    /// With codes as they are stored, whose offset is taken off sums: for weights that meet few rows, on devices without a dot
    /// instruction.
    pub fn of_stored(op: &Matmul, layout: &N16, how: &Integers, caps: &Caps) -> Option<Span> {
        let span = Span::with(op, layout, how, ((1 << how.bits) - 1, 128, false))?;
        let whole = op.k.is_multiple_of(span.columns) && layout.padded_group == layout.group;
        let products = !has_dot(caps) && caps.features.has(Feature::Dot2) && caps.vector_bytes >= 32;
        (whole && products).then_some(span)
    }

    fn with(
        op: &Matmul,
        layout: &N16,
        how: &Integers,
        (most_code, most_activation, raised): (i64, i64, bool),
    ) -> Option<Span> {
        let columns = layout.outer?.span;
        let most_scale = match layout.scales.dtype {
            DType::I8 => 128,
            DType::U4 => 15,
            DType::U8 => 255,
            _ => return None,
        };
        let offsets = match layout.format.zero {
            Zero::None | Zero::Bias(_) => false,
            Zero::Offset { scale, .. } if matches!(scale.dtype, DType::I8 | DType::U4 | DType::U8) => {
                layout.zeros_outer.filter(|outer| outer.span == columns)?;
                true
            }
            _ => return None,
        };
        let group = layout.group;
        let groups = columns / group;
        let whole_units = group.is_multiple_of(layout.unit) || layout.unit.is_multiple_of(group);
        // Sums of activations take 16 bits, two of them a lane.
        let fits = groups.is_power_of_two() && groups > 1 && group <= 128 && op.segment() == group;
        let whole = columns.is_multiple_of(group) && group.is_multiple_of(4) && whole_units && fits;
        let same_activations = match op.activation {
            Activation::Int8(Per::Group(g)) => (g as usize).is_multiple_of(columns),
            _ => true,
        };
        let quads = (i64::from(i16::MAX) / (2 * most_activation * most_code)) as usize;
        let exact = quads > 0 && columns as i64 * most_code * most_scale * most_activation <= i64::from(i32::MAX);
        let serves = whole && same_activations && exact && how.factor == 1 && how.scale == 1.0;
        serves.then(|| Span { columns, quads: quads.min(group / 4).min(MOST_QUADS), raised, offsets })
    }
}

/// The sums of the activations of two neighbouring groups, which lie at a place as `i16`, as the words of each lane.
pub(super) fn sums_pair(b: &mut Builder, memory: Memory, place: Pos, lanes: u8) -> Value {
    let sums = b.load(Scalar::I32, at(memory, place.index, place.fixed), 4);
    let sums = b.splat(sums, lanes);
    b.bitcast(sums, Type::vector(Scalar::I16, 2 * lanes))
}

/// Adds a sum, times an outer scale and that of the activations, to result `.2` from a place on.
pub(super) fn add_scaled(
    b: &mut Builder,
    (results, from, i): (&Kept, Pos, usize),
    sum: Value,
    (scale, scale_x): (Value, Option<Value>),
) {
    let number = b.cast(CastOp::IntToFloatS, sum, Scalar::F32);
    let factor = scale_x.map_or(scale, |x| b.mul(scale, x));
    let before = results.load(b, from, i);
    let result = b.fma(number, factor, before);
    results.store(b, from, i, result);
}
