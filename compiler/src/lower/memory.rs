//! What a kernel is passed: the names, types and sizes of an operation's buffers, in order.
//!
//! The runtime, the manifest and the C header all take the arguments from here.

use crate::caps::Caps;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::n16::N16;
use crate::format::qt16::{Class, LaneOrder, Qt16, strip_layout};
use crate::format::{Format, Quantized};
use crate::ir::{Access, Address, BinOp, Builder, Memory, Scalar, Value};
use crate::layout::Layout;
use crate::op::{Activation, Op, Per};

/// What a buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Activations or their codes `[m, k]`.
    Activations,
    /// Activation scales: `[m, per_row]`, or one.
    ActivationScales,
    /// Activation sums per segment `[m, segments]`, `i32`.
    ActivationSums,
    /// Packed weights.
    Weights,
    /// Bias `[n]`, `f32`.
    Bias,
    /// Multiplier of the gate `[m, n]`.
    Mul,
    /// Residual `[m, n]`.
    Residual,
    /// Gain of the norm `[k]`, `f32`.
    Gain,
    /// Reciprocal smoothing `[k]`, `f32`.
    Smooth,
    /// The result.
    Output,
    /// What workgroups leave for each other: zero before the first launch, and again as a launch needs it after each.
    Workspace,
    /// Decoded weights, which the kernel before the launch's own writes: any content before a launch, for one launch at a time.
    Decoded,
}

/// One buffer of an operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Signature {
    /// What it holds.
    pub role: Role,
    /// Name in kernels, manifests and headers.
    pub name: &'static str,
    /// Type of an element; `U8` for packed weights.
    pub dtype: DType,
    /// Elements that do not depend on M.
    pub fixed: usize,
    /// Elements per row of M.
    pub per_row: usize,
    /// Whether it is a result. A workspace is none, though kernels write it.
    pub written: bool,
}

impl Signature {
    /// Bytes for `m` rows.
    pub fn bytes(&self, m: usize) -> usize {
        (self.fixed + self.per_row * m) * self.dtype.bits() as usize / 8
    }

    /// What the kernel does with it.
    pub fn access(&self) -> Access {
        match (self.role, self.written) {
            (Role::Workspace, _) => Access::ReadWrite,
            (Role::Decoded, _) => Access::Write,
            (_, true) => Access::Write,
            (_, false) => Access::Read,
        }
    }
}

/// How the weights of a kernel lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packing {
    /// [`N16`]: 16 rows side by side.
    N16,
    /// [`Qt16`]: fragments of matrix instructions.
    Qt16(Class, LaneOrder),
}

impl Packing {
    /// Every packing.
    pub const ALL: [Packing; 5] = [
        Packing::N16,
        Packing::Qt16(Class::F16, LaneOrder::Gt),
        Packing::Qt16(Class::B8, LaneOrder::Gt),
        Packing::Qt16(Class::F16, LaneOrder::Tg),
        Packing::Qt16(Class::B8, LaneOrder::Tg),
    ];

    /// Stable name: `n16`, `qt16-f16-gt`.
    pub const fn name(self) -> &'static str {
        match self {
            Packing::N16 => "n16",
            Packing::Qt16(Class::F16, LaneOrder::Gt) => "qt16-f16-gt",
            Packing::Qt16(Class::B8, LaneOrder::Gt) => "qt16-b8-gt",
            Packing::Qt16(Class::F16, LaneOrder::Tg) => "qt16-f16-tg",
            Packing::Qt16(Class::B8, LaneOrder::Tg) => "qt16-b8-tg",
        }
    }

    /// Bytes of a packed matrix.
    pub fn bytes(self, format: &Format, n: usize, k: usize) -> Result<usize> {
        Ok(match self {
            Packing::N16 => N16::of(format, k)?.bytes(n),
            Packing::Qt16(class, order) => Qt16::of(format, k, class, order)?.bytes(n),
        })
    }

    /// Where the codes lie: a layout per plane of bits, for tools that read a packed matrix without us.
    pub fn planes(self, format: &Format, k: usize) -> Result<Vec<Layout>> {
        Ok(match self {
            Packing::N16 => N16::of(format, k)?.plane_layouts()?,
            Packing::Qt16(class, order) => {
                let layout = Qt16::of(format, k, class, order)?;
                layout.planes.iter().map(|&(width, _)| strip_layout(width, class, order)).collect()
            }
        })
    }

    /// What the layouts of [`Packing::planes`] leave open, in words.
    pub const fn describe(self) -> &'static str {
        match self {
            Packing::N16 => {
                "records of 16 rows in chunks along k, padded to 64 bytes: in each second-level scales, scales and zero points of \
                 its groups, then their planes unit by unit; a chunk has as few groups as make whole units, spans and lines"
            }
            Packing::Qt16(..) => {
                "records of 64 rows, each part padded to 256 bytes: second-level scales, scales, zero points by group, then each \
                 plane, tile by tile along k, in the fragment order of matrix instructions"
            }
        }
    }

    /// Packs a matrix.
    pub fn pack(self, weights: &Quantized) -> Result<Vec<u8>> {
        Ok(match self {
            Packing::N16 => N16::pack(weights)?.1,
            Packing::Qt16(class, order) => Qt16::pack(weights, class, order)?.1,
        })
    }
}

/// The buffers of an operation with weights in N16; see [`signature_packed`].
pub fn signature(op: &Op) -> Result<Vec<Signature>> {
    signature_packed(op, Packing::N16)
}

/// The buffers of an operation in the order of the kernel's parameters; a workspace follows them where the schedule has one
/// ([`super::signature_of`]), then `m`, an `i32`.
pub fn signature_packed(op: &Op, packing: Packing) -> Result<Vec<Signature>> {
    let read = |role, name, dtype, fixed, per_row| Signature { role, name, dtype, fixed, per_row, written: false };
    let write = |role, name, dtype, fixed, per_row| Signature { role, name, dtype, fixed, per_row, written: true };
    let mut list = Vec::new();
    match op {
        Op::Matmul(op) => {
            let (code, per) = match op.activation {
                Activation::Float(dtype) => (dtype, None),
                Activation::Int8(per) => (DType::I8, Some(per)),
                Activation::Fp8(dtype, per) => (dtype, Some(per)),
            };
            list.push(read(Role::Activations, "x", code, 0, op.k));
            if let Some(per) = per {
                let fixed = if per == Per::Tensor { 1 } else { 0 };
                list.push(read(Role::ActivationScales, "x_scale", DType::F32, fixed, per.per_row(op.k)));
            }
            if let Activation::Int8(_) = op.activation {
                list.push(read(Role::ActivationSums, "x_sum", DType::I32, 0, op.k.div_ceil(op.segment())));
            }
            list.push(read(Role::Weights, "w", DType::U8, packing.bytes(&op.weight, op.n, op.k)?, 0));
            if op.epilogue.bias {
                list.push(read(Role::Bias, "bias", DType::F32, op.n, 0));
            }
            if op.epilogue.silu_mul {
                list.push(read(Role::Mul, "mul", op.out, 0, op.n));
            }
            if op.epilogue.residual {
                list.push(read(Role::Residual, "residual", op.out, 0, op.n));
            }
            list.push(write(Role::Output, "y", op.out, 0, op.n));
        }
        Op::Dequant(op) => {
            list.push(read(Role::Weights, "w", DType::U8, packing.bytes(&op.weight, op.n, op.k)?, 0));
            list.push(write(Role::Output, "y", op.out, op.n * op.k, 0));
        }
        Op::Quantize(op) => {
            list.push(read(Role::Activations, "x", op.input, 0, op.k));
            if op.norm.is_some() {
                list.push(read(Role::Gain, "gain", DType::F32, op.k, 0));
            }
            if op.smooth {
                list.push(read(Role::Smooth, "smooth", DType::F32, op.k, 0));
            }
            if op.per == Per::Tensor {
                list.push(read(Role::ActivationScales, "scale", DType::F32, 1, 0));
            }
            list.push(write(Role::Output, "codes", op.code, 0, op.k));
            if op.per != Per::Tensor {
                list.push(write(Role::ActivationScales, "scale", DType::F32, 0, op.per.per_row(op.k)));
            }
            if op.sum_group != 0 {
                list.push(write(Role::ActivationSums, "sum", DType::I32, 0, op.k.div_ceil(op.sum_group)));
            }
        }
    }
    Ok(list)
}

/// The parameters of a kernel under construction, by role.
pub(super) struct Params {
    buffers: Vec<(Role, Memory)>,
    /// Rows of the launch, `i32`.
    pub m: Value,
    /// What buffers of activations and results start at multiples of; 1 where that is their element's size.
    pub align: u32,
}

/// Device memory starts at multiples of this, and kernels of many threads load this much at a time.
const VECTOR: u32 = 16;

impl Params {
    /// Declares an operation's parameters, weights in N16.
    pub fn declare(b: &mut Builder, op: &Op, caps: &Caps) -> Result<Params> {
        Params::declare_packed(b, op, Packing::N16, caps)
    }

    /// Declares an operation's parameters.
    pub fn declare_packed(b: &mut Builder, op: &Op, packing: Packing, caps: &Caps) -> Result<Params> {
        Params::declare_with(b, op, packing, None, caps)
    }

    /// The same with a workspace.
    pub fn declare_with(
        b: &mut Builder,
        op: &Op,
        packing: Packing,
        workspace: Option<Signature>,
        caps: &Caps,
    ) -> Result<Params> {
        Params::declare_all(b, op, packing, workspace.map(|s| (s, s.access())), caps)
    }

    /// The same with weights that another kernel has decoded, which this one only reads.
    pub fn declare_decoded(
        b: &mut Builder,
        op: &Op,
        packing: Packing,
        decoded: Signature,
        caps: &Caps,
    ) -> Result<Params> {
        Params::declare_all(b, op, packing, Some((decoded, Access::Read)), caps)
    }

    fn declare_all(
        b: &mut Builder,
        op: &Op,
        packing: Packing,
        more: Option<(Signature, Access)>,
        caps: &Caps,
    ) -> Result<Params> {
        let mut buffers = Vec::new();
        let least = if caps.subgroup > 1 { VECTOR } else { 1 };
        let own = signature_packed(op, packing)?.into_iter().map(|s| (s, s.access()));
        for (s, access) in own.chain(more) {
            let bytes = s.bytes(0) as u64;
            if bytes > caps.max_buffer_bytes {
                return Err(Error::Unsupported(format!(
                    "{} on {}: buffer `{}` of {bytes} bytes; accepted: at most {}",
                    op.name(),
                    caps.name,
                    s.name,
                    caps.max_buffer_bytes
                )));
            }
            let align = if s.role == Role::Weights { caps.buffer_align } else { s.dtype.bits().div_ceil(8).max(least) };
            buffers.push((s.role, b.buffer(s.name, access, align)));
        }
        let m = b.scalar("m", Scalar::I32);
        Ok(Params { buffers, m, align: least })
    }

    /// The buffer of a role.
    pub fn get(&self, role: Role) -> Memory {
        self.find(role).expect("the operation has this buffer")
    }

    /// The buffer of a role, if the operation has one.
    pub fn find(&self, role: Role) -> Option<Memory> {
        self.buffers.iter().find(|(r, _)| *r == role).map(|&(_, memory)| memory)
    }
}

/// A place at `index` (a number of bytes, if any) plus a constant.
pub(super) fn at(memory: Memory, index: Option<Value>, offset: usize) -> Address {
    Address { memory, index, offset: offset as i64 }
}

/// An `i64` number of bytes: `value` (i32 or i64) times `scale`.
pub(super) fn byte_index(b: &mut Builder, value: Value, scale: usize) -> Value {
    let wide = match b.ty(value).scalar {
        Scalar::I64 => value,
        _ => b.cast(crate::ir::CastOp::ExtendS, value, Scalar::I64),
    };
    times(b, wide, scale)
}

/// `value * by` for a constant: a shift where it is a power of two, since not every target's own optimizer sees that.
pub(super) fn times(b: &mut Builder, value: Value, by: usize) -> Value {
    match by {
        1 => value,
        _ if by.is_power_of_two() => b.bin_imm(BinOp::Shl, value, by.trailing_zeros() as i64),
        _ => b.bin_imm(BinOp::Mul, value, by as i64),
    }
}

/// `value / by` and `value % by` for a value that is not negative.
pub(super) fn split(b: &mut Builder, value: Value, by: usize) -> (Value, Value) {
    if by.is_power_of_two() {
        let high = b.bin_imm(BinOp::ShrU, value, by.trailing_zeros() as i64);
        (high, b.bin_imm(BinOp::And, value, by as i64 - 1))
    } else {
        (b.bin_imm(BinOp::DivS, value, by as i64), b.bin_imm(BinOp::RemS, value, by as i64))
    }
}

/// The IR scalar that holds an element of memory: bytes, where the IR has none of its type.
pub(super) fn scalar_of(dtype: DType) -> Scalar {
    Scalar::of(dtype).unwrap_or(Scalar::I8)
}

/// The largest power of two that divides all of these; zeros do not count.
pub(super) fn alignment(places: &[usize]) -> u32 {
    let low = places.iter().filter(|&&place| place > 0).map(|place| place.trailing_zeros()).min();
    1 << low.unwrap_or(0)
}
