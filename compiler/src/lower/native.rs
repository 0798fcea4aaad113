//! What a device makes of an operation and of weights that come as files have them: OCP fp8 on devices with `fnuz` types.
//!
//! Always holds: the numbers are the same. Only bits change, and those of scales.

use super::{Packing, packing};
use crate::caps::Caps;
use crate::error::Result;
use crate::format::fnuz::{fnuz_format, fnuz_type, to_fnuz};
use crate::format::{Format, Quantized};
use crate::op::{Activation, Op};
use crate::schedule::Schedule;

/// The operation in the device's own types: where it multiplies `fnuz` floats, weights and activations in OCP fp8 become
/// those. [`pack`] converts the weights; activations are quantized on the device, to the type that the operation says.
pub fn native(op: Op, caps: &Caps) -> Op {
    if !caps.has_fnuz() {
        return op;
    }
    let weight = |format: Format| fnuz_format(&format).unwrap_or(format);
    let activation = |activation| match activation {
        Activation::Fp8(dtype, per) => Activation::Fp8(fnuz_type(dtype).unwrap_or(dtype), per),
        Activation::Float(_) | Activation::Int8(_) => activation,
    };
    match op {
        Op::Matmul(op) => {
            Op::Matmul(crate::op::Matmul { weight: weight(op.weight), activation: activation(op.activation), ..op })
        }
        Op::Dequant(op) => Op::Dequant(crate::op::Dequant { weight: weight(op.weight), ..op }),
        Op::Quantize(op) => Op::Quantize(crate::op::Quantize { code: fnuz_type(op.code).unwrap_or(op.code), ..op }),
    }
}

/// Weights as a kernel of an operation ([`native`] to the device) takes them: in its types and its packing. Fails where a
/// number cannot be written, naming its place.
pub fn pack(op: &Op, schedule: &Schedule, caps: &Caps, weights: &Quantized) -> Result<Vec<u8>> {
    let packing: Packing = packing(op, schedule, caps);
    let wanted = match op {
        Op::Matmul(op) => Some(op.weight.code),
        Op::Dequant(op) => Some(op.weight.code),
        Op::Quantize(_) => None,
    };
    let converts = wanted.is_some_and(|code| fnuz_format(&weights.format).is_some_and(|format| format.code == code));
    if converts { packing.pack(&to_fnuz(weights)?) } else { packing.pack(weights) }
}
