//! Family of `attend_merge`: a workgroup makes the output of one query row and head from its slots.
//!
//! Each thread walks over the slots for its own channels: first for the largest score, then for the sums. A row without
//! slots, or whose slots saw no token, is 0. A GPU asks for several slots at once; those past the last repeat it, and weigh
//! nothing.

use super::super::memory::{at, scalar_of, split, times};
use super::codes;
use super::{Params, field, int, local};
use crate::caps::{Caps, Feature};
use crate::ir::{Asynchronous, BinOp, Builder, Builtin, CastOp, CmpOp, Scalar, Type, Value};
use crate::op::kv::{Merge, ROW};
use crate::schedule::KvSchedule;

/// Slots that a thread of a GPU asks for at once.
const AT_ONCE: usize = 8;

pub fn build(b: &mut Builder, op: &Merge, params: &Params, schedule: &KvSchedule, caps: &Caps) {
    let many = caps.features.has(Feature::Workgroups);
    let lanes: u8 = if many { 1 } else { (caps.vector_bytes / 4).min(16) as u8 };
    if caps.features.has(Feature::GridDependency) {
        b.asynchronous(Asynchronous::AwaitDependencies);
        b.asynchronous(Asynchronous::LaunchDependents);
    }
    let row = b.builtin(Builtin::WorkgroupId(0));
    let row = b.cast(CastOp::ExtendS, row, Scalar::I64);
    let head = b.builtin(Builtin::WorkgroupId(1));
    let head = b.cast(CastOp::ExtendS, head, Scalar::I64);
    let rows = params.get("rows");
    let f: Vec<Value> = (0..3).map(|i| field(b, rows, row, ROW, i)).collect();
    let group = op.heads / op.kv_heads;
    let (kv_head, member) = split(b, head, group);
    // Number of this row and head in a slot.
    let query = times(b, f[2], group);
    let inner = b.add(query, member);
    let per_slot = op.queries * group;
    let line = |b: &mut Builder, slot: Value| {
        let slot = b.add(f[0], slot);
        let slot = times(b, slot, op.kv_heads);
        let slot = b.add(slot, kv_head);
        let slot = times(b, slot, per_slot);
        b.add(slot, inner)
    };
    let (o, ml) = (params.get("o"), params.get("ml"));
    let stat = |b: &mut Builder, slot: Value, which: usize| {
        let line = line(b, slot);
        let place = times(b, line, 8);
        b.load(Scalar::F32, at(ml, Some(place), which * 4), 4)
    };
    let zero = int(b, 0);
    let lowest = b.f32(1, -1e30);
    let sink = params.find("sinks").map(|memory| {
        let place = times(b, head, 4);
        let sink = b.load(Scalar::F32, at(memory, Some(place), 0), 4);
        let unit = b.f32(1, std::f32::consts::LOG2_E);
        b.mul(sink, unit)
    });
    let first = sink.map_or(lowest, |sink| b.bin(BinOp::Max, lowest, sink));
    let at_once = if many { AT_ONCE } else { 1 };
    let last = b.bin_imm(BinOp::Add, f[1], -1);
    // The slots of a turn.
    let slots = |b: &mut Builder, slot: Value| -> Vec<Value> {
        let one = |b: &mut Builder, i: usize| {
            let slot = super::plus(b, slot, i);
            super::least(b, slot, last)
        };
        if many { (0..at_once).map(|i| one(b, i)).collect() } else { vec![slot] }
    };
    let top = b.for_loop(zero, f[1], at_once as i64, &[first], |b, slot, top| {
        let all: Vec<Value> = slots(b, slot).into_iter().map(|slot| stat(b, slot, 0)).collect();
        vec![all.into_iter().fold(top[0], |top, m| b.bin(BinOp::Max, top, m))]
    })[0];
    let none = b.f32(1, 0.0);
    let extra = match sink {
        Some(sink) => {
            let x = b.bin(BinOp::Sub, sink, top);
            codes::power_of_two(b, x)
        }
        None => none,
    };
    let start = local(b, schedule.threads);
    let start = times(b, start, lanes as usize);
    let end = int(b, op.dim);
    // The weight of a slot is found once for as many vectors as registers hold.
    let divides = |n: &usize| op.dim.is_multiple_of(n * lanes as usize);
    let vectors = if many { 1 } else { [8, 4, 2].into_iter().find(divides).unwrap_or(1) };
    let step = (schedule.threads as usize * lanes as usize * vectors) as i64;
    b.for_loop(start, end, step, &[], |b, channel, _| {
        let nothing = b.f32(lanes, 0.0);
        let mut state = vec![nothing; vectors];
        state.push(extra);
        let sums = b.for_loop(zero, f[1], at_once as i64, &state, |b, slot, sums| {
            let mut next = sums.to_vec();
            let all = slots(b, slot);
            let stats: Vec<[Value; 2]> = all.iter().map(|&slot| [0, 1].map(|which| stat(b, slot, which))).collect();
            let values: Vec<Vec<Value>> = all
                .iter()
                .map(|&slot| {
                    let line = line(b, slot);
                    let place = times(b, line, op.dim);
                    let place = b.add(place, channel);
                    let place = times(b, place, 4);
                    let ty = Type::vector(Scalar::F32, lanes);
                    (0..vectors).map(|v| b.load(ty, at(o, Some(place), v * lanes as usize * 4), 4)).collect()
                })
                .collect();
            for (i, (&[m, l], values)) in stats.iter().zip(values).enumerate() {
                let x = b.bin(BinOp::Sub, m, top);
                let mut weight = codes::power_of_two(b, x);
                if i > 0 {
                    let slot = super::plus(b, slot, i);
                    let there = b.cmp(CmpOp::LtS, slot, f[1]);
                    weight = b.select(there, weight, none);
                }
                let wide = b.splat(weight, lanes);
                for (v, value) in values.into_iter().enumerate() {
                    next[v] = b.fma(value, wide, next[v]);
                }
                next[vectors] = b.fma(l, weight, next[vectors]);
            }
            next
        });
        let below = b.splat(sums[vectors], lanes);
        let empty = b.cmp(CmpOp::Eq, below, nothing);
        let scalar = scalar_of(op.out);
        let line = times(b, row, op.heads);
        let line = b.add(line, head);
        let place = times(b, line, op.dim);
        let place = b.add(place, channel);
        let place = times(b, place, scalar.bytes() as usize);
        for (v, &sum) in sums[..vectors].iter().enumerate() {
            let quotient = b.bin(BinOp::Div, sum, below);
            let y = b.select(empty, nothing, quotient);
            let y = if scalar == Scalar::F32 { y } else { b.cast(CastOp::Float, y, scalar) };
            let further = v * lanes as usize * scalar.bytes() as usize;
            b.store(at(params.get("y"), Some(place), further), scalar.bytes(), y);
        }
        Vec::new()
    });
}
