//! The kernel that decodes weights once: packed ones in, fragments of operand A in 16-bit floats out.
//!
//! A workgroup has a panel of 64 rows, a subgroup 16 of them, over a run of blocks of K. What a lane reads is what it
//! decodes, scales, rounds and stores: no lane needs another. Grid: x over runs of blocks, y over panels.

use super::{Ready, decoded};
use crate::caps::Caps;
use crate::error::{Error, Result};
use crate::format::qt16::PANEL;
use crate::ir::{Access, BinOp, Builder, Builtin, CastOp, Scalar, Type, Value};
use crate::lower::Preparation;
use crate::lower::matmul::cut::{cut, lanes_of};
use crate::lower::matmul::panel;
use crate::lower::matmul::products::{Products, words_of};
use crate::lower::memory::{Role, Signature, scalar_of, times};
use crate::lower::unpack::fragments::{Fragments, Group};
use crate::lower::walk::{Pos, repeat};
use crate::op::{Matmul, Op};

/// Most blocks of a subgroup: enough to read the next one's words while one is decoded, few enough to fill a device.
const RUN: usize = 4;

pub(super) fn build(matmul: &Matmul, caps: &Caps) -> Result<Preparation> {
    let op = Op::Matmul(*matmul);
    let (cut, _, shape, layout) = cut(&op, caps, panel::block, panel::LONGEST).map_err(Error::Unsupported)?;
    let lanes = lanes_of(shape)?;
    let clean = matmul.weight.to_string().replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    let out: Signature = decoded(matmul);
    let mut made = Builder::new(&format!("decode_n{}_k{}_{clean}_{}", matmul.n, matmul.k, out.dtype.name()));
    let b = &mut made;
    let weights = b.buffer("w", Access::Read, caps.buffer_align);
    let target = b.buffer(out.name, Access::Write, 16);
    b.workgroup(PANEL as u32 / 16 * caps.subgroup, 1, 1);
    let (lane, subgroup) = (b.builtin(Builtin::Lane), b.builtin(Builtin::Subgroup));
    let panel = b.builtin(Builtin::WorkgroupId(1));
    let row = times(b, panel, PANEL);
    let mine = times(b, subgroup, 16);
    let row = b.add(row, mine);
    let row = b.cast(CastOp::ExtendS, row, Scalar::I64);
    let fragments = Fragments::new(b, (&layout, &lanes), weights, row, 1, lane, caps);
    let products = Products { op: matmul, shape, cut, fragments: &fragments, rows: &[], ready: None };
    let ready = Ready::new(b, matmul, target, row, lane);
    let blocks = matmul.k / cut.block;
    let run = (1..=RUN).rev().find(|&run| blocks.is_multiple_of(run)).unwrap_or(1);
    let own = b.builtin(Builtin::WorkgroupId(0));
    let own = b.cast(CastOp::ExtendS, own, Scalar::I64);
    let first = Pos::of(times(b, own, run));
    // A loop, and no straight code: the assembler would read the words of all blocks first and run out of registers.
    repeat(b, run, 1, Vec::new(), |b, turn, state| {
        let block = first.add(b, turn);
        let strip = block.times(b, products.strips());
        let words = words_of(b, &fragments, strip, products.strips());
        let steps = block.times(b, cut.block / shape.k as usize);
        for part in products.parts(b, block, &words) {
            for (step, &a) in part.a[0].iter().enumerate() {
                let numbers = scaled(b, &part.group, a, scalar_of(out.dtype));
                let numbers = b.bitcast(numbers, Type::vector(Scalar::I32, 4));
                ready.store(b, steps.plus(part.first_step + step), numbers);
            }
        }
        state
    });
    let grid = [(blocks / run) as u32, matmul.n.div_ceil(PANEL) as u32, 1];
    Ok(Preparation { kernel: made.finish(), takes: vec![Role::Weights, Role::Decoded], grid })
}

/// A fragment of codes, scaled and rounded: rows g and g + 8 in turn, two numbers of each.
pub(in crate::lower::matmul) fn scaled(b: &mut Builder, group: &Group, codes: Value, out: Scalar) -> Value {
    let both = [0, 0, 1, 1, 0, 0, 1, 1];
    let scales = b.swizzle(group.scales[0], group.scales[0], &both);
    let wide = b.cast(CastOp::Float, codes, Scalar::F32);
    let numbers = match &group.offsets {
        Some(offsets) => {
            let offsets = b.swizzle(offsets[0], offsets[0], &both);
            b.fma(wide, scales, offsets)
        }
        None => b.bin(BinOp::Mul, wide, scales),
    };
    b.cast(CastOp::Float, numbers, out)
}
