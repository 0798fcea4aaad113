//! Family `mma`: matrix instructions of a subgroup, with weights as operand A, for few rows and for many.
//!
//! ```text
//! Yᵀ[n, m] = W[n, k] · Xᵀ[k, m]        A from QT16, each lane its own fragment; B straight from X, which lies as B wants it
//! ```
//!
//! A workgroup makes `tile_m` rows by `tile_n` columns of Y. Each of its `split` subgroups makes all of them over its share
//! of the columns of W: whole groups, whose sums it scales, or strips of the only group, whose sums meet first, so that
//! integer sums stay exact. Partial results meet in shared memory in a fixed order: no atomics, the same bits every time.
//! What it does not take (odd groups, float zero points, codes of several planes), families `spread` and `block` take.
//! Grid: x over tiles of rows, y over tiles of columns.
//!
//! Which instruction, and which lane holds what, is data of the device: [`Lanes`] reads it, and nothing here knows a vendor.

mod product;

use self::product::Product;
use super::epilogue::Line;
use super::{Plan, as_matmul, entry};
use crate::caps::{Caps, Feature};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::qt16::{Class, LaneOrder, Qt16, tile_columns};
use crate::format::{Code, Zero};
use crate::ir::{BinOp, Builder, Builtin, CastOp, CmpOp, Kernel, Scalar};
use crate::lower::Implementation;
use crate::lower::activation::Rows;
use crate::lower::lanes::{Lanes, gather, higher};
use crate::lower::memory::{Packing, Params, Role, byte_index};
use crate::lower::space::Axis;
use crate::lower::team::Team;
use crate::lower::unpack::fragments::{Fragments, refuses as refuses_codes};
use crate::op::{Activation, Matmul, Op};
use crate::schedule::{Family, Knob, Schedule};

pub(in crate::lower) const MMA: Implementation = Implementation {
    family: Family::Mma,
    summary: "matmul by matrix instructions of a subgroup, weights as operand A from QT16",
    refuses,
    axes: &[
        Axis::new(Knob::TileM, &[8, 16, 24, 32, 48, 64]),
        Axis::new(Knob::TileN, &[16, 32, 64]),
        Axis::new(Knob::Unroll, &[1, 2, 4]),
        Axis::new(Knob::Threads, &[32, 64, 128, 256, 512]),
        Axis::new(Knob::Split, &[1, 2, 4, 8, 16]),
    ],
    estimate: None,
    space,
    build,
};

/// The class of the packing for an operation, and the types of operands and sums; those tried first come first.
fn types(op: &Matmul) -> Vec<(Class, [DType; 3])> {
    match (op.activation, op.weight.code) {
        (Activation::Float(dtype @ (DType::F16 | DType::Bf16)), _) => vec![(Class::F16, [dtype, dtype, DType::F32])],
        // Bytes as they are stored, where the device takes them.
        (Activation::Int8(_), _) => {
            [DType::U8, DType::I8].map(|weight| (Class::B8, [weight, DType::I8, DType::I32])).to_vec()
        }
        (Activation::Fp8(x, _), Code::Float(weight)) => vec![(Class::B8, [weight, x, DType::F32])],
        // Small integers are numbers of this type.
        (Activation::Fp8(x, _), _) => vec![(Class::B8, [DType::E4m3fn, x, DType::F32])],
        _ => Vec::new(),
    }
}

/// The instruction to take, and how weights lie for it; `None` if the device has none for these types.
fn instruction(op: &Matmul, caps: &Caps) -> Result<Option<(Lanes, Qt16)>> {
    for (class, [a, b, sums]) in types(op) {
        for shape in caps.matrix.iter().filter(|shape| (shape.a, shape.b, shape.acc) == (a, b, sums)) {
            let Some(lanes) = Lanes::of(shape).filter(|_| shape.lanes == caps.subgroup) else { continue };
            let layout = Qt16::of(&op.weight, op.k, class, lanes.order)?;
            // A strip must be whole instructions: of each 256 bits of K, a lane has two words for each `t`.
            let words = tile_columns(layout.planes[0].0) * shape.b.bits() as usize / 256 * 2 * lanes.own;
            if words.is_multiple_of(lanes.registers()) {
                return Ok(Some((lanes, layout)));
            }
        }
    }
    Ok(None)
}

/// Whether codes become numbers by additions alone.
fn adds_up(code: &Code) -> bool {
    matches!(code, Code::Int { .. } | Code::Ternary)
}

/// How the weights of matrix families lie on a device.
pub(in crate::lower) fn packing(op: &Matmul, caps: &Caps) -> Packing {
    match instruction(op, caps) {
        Ok(Some((_, layout))) => Packing::Qt16(layout.class, layout.order),
        // The family refuses; nobody will pack for it.
        Ok(None) | Err(_) => Packing::Qt16(Class::F16, LaneOrder::Gt),
    }
}

fn refuses(op: &Op, caps: &Caps) -> Option<String> {
    let Op::Matmul(op) = op else { return Some("computes matmuls only".into()) };
    let (lanes, layout) = match instruction(op, caps) {
        Ok(Some(found)) => found,
        Ok(None) => {
            return Some(format!("has no matrix instruction of {} for {} activations", caps.name, op.activation));
        }
        Err(error) => return Some(error.to_string()),
    };
    if let Some(why) = refuses_codes(&layout, lanes.shape.a) {
        return Some(why);
    }
    if lanes.shape.a == DType::Bf16 && !caps.features.has(Feature::Bf16Arithmetic) && !adds_up(&op.weight.code) {
        return Some(format!("makes bf16 of the codes of {} by products, which {} lacks", op.weight, caps.name));
    }
    if lanes.shape.a.bits() == 8 && lanes.shape.acc == DType::F32 && lanes.order == LaneOrder::Gt {
        return Some("leaves 8-bit floats to families that take their sums over to f32 block by block".into());
    }
    if matches!(op.weight.zero, Zero::Float(_) | Zero::Offset { .. }) {
        return Some(format!("takes no float zero points or offsets, not those of {}", op.weight));
    }
    if layout.planes.len() != 1 {
        return Some(format!("decodes codes of one plane, not the {} planes of {}", layout.planes.len(), op.weight));
    }
    let (columns, segment) = (tile_columns(layout.planes[0].0), op.segment());
    if !op.k.is_multiple_of(segment) || !segment.is_multiple_of(columns) {
        return Some(format!(
            "takes groups in multiples of {columns} columns that divide K; here they have {segment}, and K is {}",
            op.k
        ));
    }
    if layout.groups > 1 && !layout.group.is_multiple_of(segment) {
        return Some(format!("takes activation groups that divide weight groups, not {segment} and {}", layout.group));
    }
    (layout.class == Class::B8 && segment > 1 << 16)
        .then(|| format!("sums at most 65536 columns in 32 bits, not {segment}"))
}

/// Most sums of a lane; each has a result beside it. In order TG a lane decodes rows of two tiles of W at once, for which a
/// quarter of the registers is left to sums and results.
fn most_sums(lanes: &Lanes, caps: &Caps) -> u32 {
    match lanes.order {
        LaneOrder::Gt => 64,
        LaneOrder::Tg => caps.vector_registers / 8,
    }
}

/// Few rows: many small workgroups whose subgroups split K. Many rows: as many sums as registers hold.
fn space(op: &Op, caps: &Caps, m: usize) -> Vec<Schedule> {
    let Ok(matmul) = as_matmul(op) else { return Vec::new() };
    let Ok(Some((lanes, layout))) = instruction(matmul, caps) else { return Vec::new() };
    let segments = matmul.k / matmul.segment().max(1);
    let mut list = Vec::new();
    let least = lanes.shape.n;
    let tokens = m.min(32).next_multiple_of(least as usize).next_power_of_two() as u32;
    let strip = tile_columns(layout.planes[0].0) as u32;
    for tile_m in [tokens, least].into_iter().take(if tokens == least { 1 } else { 2 }) {
        // What all blocks of a strip multiply with stays in registers: in order TG, an eighth of them.
        let held = tile_m * strip * lanes.shape.b.bits() / 32 / caps.subgroup;
        if lanes.order == LaneOrder::Tg && tile_m > least && held > caps.vector_registers / 8 {
            continue;
        }
        for tile_n in if m > 32 { [64, 32, 16] } else { [32, 16, 64] } {
            for split in if m > 32 { [4, 2, 8, 1] } else { [8, 4, 2, 1] } {
                let schedule =
                    Schedule::single(Family::Mma, tile_m, tile_n, 1).with_threads(caps.subgroup * split, split);
                let shared = schedule.threads <= caps.max_workgroup && (segments == 1 || segments >= split as usize);
                let whole = tile_n.is_multiple_of(lanes.block_rows() as u32);
                if shared && whole && tile_m * tile_n / caps.subgroup <= most_sums(&lanes, caps) {
                    list.push(schedule);
                    list.push(Schedule { unroll: 2, ..schedule });
                }
            }
        }
    }
    list
}

fn faults(schedule: &Schedule, lanes: &Lanes, caps: &Caps) -> Vec<String> {
    let mut faults = Vec::new();
    let Schedule { tile_m, tile_n, unroll, threads, split, .. } = *schedule;
    let least = lanes.shape.n;
    if !tile_m.is_multiple_of(least) || !(least..=64).contains(&tile_m) {
        faults.push(format!("tile_m is {tile_m}; accepted: multiples of {least} up to 64"));
    }
    let blocks = [16, 32, 64]
        .into_iter()
        .filter(|rows: &u32| rows.is_multiple_of(lanes.block_rows() as u32))
        .collect::<Vec<_>>();
    if !blocks.contains(&tile_n) {
        faults.push(format!("tile_n is {tile_n}; accepted: one of {blocks:?}"));
    }
    if !split.is_power_of_two() || u64::from(threads) != u64::from(split) * u64::from(caps.subgroup) {
        faults.push(format!("threads is {threads}, split {split}; accepted: a power of two of subgroups"));
    }
    if threads > caps.max_workgroup {
        faults.push(format!("threads is {threads}; accepted: at most {}", caps.max_workgroup));
    }
    if !(1..=8).contains(&unroll) {
        faults.push(format!("unroll is {unroll}; accepted: 1 to 8"));
    }
    faults
}

fn build(op: &Op, schedule: &Schedule, caps: &Caps) -> Result<Kernel> {
    let matmul = as_matmul(op)?;
    let Some((lanes, layout)) = instruction(matmul, caps)? else {
        return Err(Error::Unsupported(format!("{} activations in family mma on {}", matmul.activation, caps.name)));
    };
    let faults = faults(schedule, &lanes, caps);
    if !faults.is_empty() {
        return Err(Error::Invalid(faults));
    }
    let shape = lanes.shape;
    let mut b = Builder::new(&entry(matmul, schedule));
    let params = Params::declare_packed(&mut b, op, Packing::Qt16(layout.class, layout.order), caps)?;
    let blocks = schedule.tile_n as usize / lanes.block_rows();
    let sums = blocks * lanes.fragments * (schedule.tile_m / shape.n) as usize;
    let team = Team::of_subgroups(&mut b, caps.subgroup, schedule.split, 4 * shape.acc_elements(), sums);
    let lane = b.builtin(Builtin::Lane);
    let bits = caps.subgroup.trailing_zeros() as u8;
    let tile_y = b.builtin(Builtin::WorkgroupId(1));
    let start = b.bin_imm(BinOp::Mul, tile_y, schedule.tile_n as i64);
    let start = b.cast(CastOp::ExtendS, start, Scalar::I64);
    let tile_x = b.builtin(Builtin::WorkgroupId(0));
    let first = b.bin_imm(BinOp::Mul, tile_x, schedule.tile_m as i64);
    let weights = params.get(Role::Weights);
    let fragments = Fragments::new(&mut b, (&layout, &lanes), weights, start, blocks, lane, caps);
    let column_of_b = gather(&mut b, lane, bits, lanes.column_of_b());
    let word_of_b = gather(&mut b, lane, bits, higher(lanes.t(), 2));
    let column_of_sums = gather(&mut b, lane, bits, lanes.column_of_sums());
    let last = b.bin_imm(BinOp::Sub, params.m, 1);
    let (mut columns, mut rows) = (Vec::new(), Vec::new());
    for token in (0..schedule.tile_m).step_by(shape.n as usize) {
        // Columns of the result past M repeat its last row; nobody stores them.
        let tile = b.bin_imm(BinOp::Add, first, token as i64);
        let row = b.add(tile, column_of_b);
        let row = b.bin(BinOp::MinS, row, last);
        let place = byte_index(&mut b, row, matmul.k * shape.b.bits() as usize / 8);
        let mine = byte_index(&mut b, word_of_b, 1);
        columns.push(b.add(place, mine));
        let own = b.add(tile, column_of_sums);
        let below = b.bin(BinOp::MinS, own, last);
        rows.push((own, Rows::new(&mut b, matmul, &params, below, lanes.columns(), 1)));
    }
    let x = params.get(Role::Activations);
    let product = Product { op: matmul, lanes: &lanes, fragments: &fragments, x, columns, rows: &rows };
    let results = product.results(&mut b, &team, schedule.unroll as usize);
    let plan = Plan::with_lanes(matmul, &Schedule { unroll: 1, ..*schedule }, caps, lanes.run as u8, 1)?;
    let row_of_sums = gather(&mut b, lane, bits, lanes.row_of_sums());
    let row_of_sums = b.cast(CastOp::ExtendS, row_of_sums, Scalar::I64);
    let start = b.add(start, row_of_sums);
    for (i, &result) in results.iter().enumerate() {
        let (block, fragment, token) = product.of_sum(i);
        let (own, rows) = &rows[token];
        team.on_slice(&mut b, i, |b| {
            for element in (0..shape.acc_elements() as usize).step_by(lanes.run) {
                let (row, column) = lanes.place(fragment, element);
                let n = b.bin_imm(BinOp::Add, start, (block * lanes.block_rows() + row) as i64);
                let m = b.bin_imm(BinOp::Add, *own, column as i64);
                let below = b.cmp(CmpOp::LtS, m, params.m);
                let mut sum = product.run_of(b, result, element);
                if let Some(scale) = rows.row_scale(b, column) {
                    let scale = b.splat(scale, lanes.run as u8);
                    sum = b.mul(sum, scale);
                }
                // A run of neighbours is stored as one where N leaves none of them out.
                let apart = if matmul.n.is_multiple_of(lanes.run) { 1 } else { lanes.run };
                for part in 0..apart {
                    let n = b.bin_imm(BinOp::Add, n, part as i64);
                    let end = b.int(Scalar::I64, matmul.n as i64);
                    let inside = b.cmp(CmpOp::LtS, n, end);
                    let stores = b.bin(BinOp::And, inside, below);
                    b.if_then(stores, |b| {
                        let sum = if apart == 1 { sum } else { b.extract(sum, part as u8) };
                        Line::new(b, &plan, &params, m, n).finish(b, sum, 0);
                    });
                }
            }
        });
    }
    Ok(b.finish())
}
