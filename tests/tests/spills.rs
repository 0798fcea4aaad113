//! No kernel that the chooser picks for the wide emitter keeps vectors on the stack inside its loops.
//!
//! Compiles every named format by every kind of activations, few rows and many, for each level of the wide emitter, and
//! reads the emitter's own report. A schedule that spills is slow by a factor, and nothing else would say so.

use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::kv::{KvFormat, KvLayout};
use bitsmith_compiler::format::{Format, Named};
use bitsmith_compiler::ir::{Kernel, verify};
use bitsmith_compiler::lower::{choose, kv, lower};
use bitsmith_compiler::op::kv::{Arithmetic, Attend, KvOp, Sight};
use bitsmith_compiler::op::{Activation, Epilogue, Matmul, Op, Quantize};
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::cpu::{CpuTarget, Report};
use bitsmith_runtime::kv::arithmetic;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const LEVELS: [&str; 5] = ["x86-64-v3", "x86-64-v3+vnni", "x86-64-v4", "x86-64-v4+vnni", "x86-64-v4+vnni+bf16"];
const ACTIVATIONS: [&str; 6] = ["f32", "f16", "bf16", "int8-token", "int8-g32", "int8-g128"];
/// Rows: each number of decode, one of prefill.
const ROWS: [usize; 6] = [1, 2, 3, 4, 8, 128];
/// N and K of layers of known models: square, up, down, key and value, an N that is no multiple of a tile.
const SHAPES: [(usize, usize); 5] = [(4096, 4096), (14336, 4096), (4096, 14336), (1024, 4096), (4864, 896)];

/// What is compiled for a format: all rows for the first shape, which decides registers; few of them for the others, where
/// only constants and tails differ.
fn cases(format: Format) -> Vec<(Op, usize)> {
    let mut list = Vec::new();
    for (i, &(n, k)) in SHAPES.iter().enumerate() {
        let rows: &[usize] = if i == 0 { &ROWS } else { &[1, 128] };
        let activations = if i == 0 { &ACTIVATIONS[..] } else { &["bf16", "int8-token"] };
        for activation in activations {
            let activation: Activation = activation.parse().expect("an activation");
            let op = Matmul { n, k, weight: format, activation, out: DType::F32, epilogue: Epilogue::default() };
            // Some formats take no such group, or no such K.
            let Ok(op) = Op::Matmul(op).checked() else { continue };
            list.extend(rows.iter().map(|&m| (op, m)));
        }
    }
    list
}

/// What the wide emitter says of a kernel.
fn report_of(target: &CpuTarget, made: &Kernel) -> Report {
    let legal = target.legalize(&verify(made, target.caps()).expect("a sound kernel")).expect("a legal kernel");
    let report = target.report(&verify(&legal, target.caps()).expect("a sound kernel")).expect("code");
    report.expect("the wide emitter")
}

/// What is wrong with one kernel; `None` where no family takes it.
fn fault(target: &CpuTarget, op: &Op, m: usize) -> Option<Result<(), String>> {
    let schedule = choose(op, target.caps(), m).ok()?;
    let made = lower(op, &schedule, target.caps()).unwrap_or_else(|error| panic!("{}: {error}", op.name()));
    let report = report_of(target, &made);
    if report.vector_spills_in_loops == 0 {
        return Some(Ok(()));
    }
    Some(Err(format!("{} {m} rows {}: {report}", target.name(), made.name)))
}

#[test]
fn chosen_kernels_do_not_spill_in_loops() {
    let targets = LEVELS.map(|level| CpuTarget::named(level).expect("a level"));
    let next = AtomicUsize::new(0);
    let faults = Mutex::new(Vec::new());
    let compiled = AtomicUsize::new(0);
    let formats: &[Named] = Format::ALL;
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, |n| n.get()) {
            scope.spawn(|| {
                while let Some(named) = formats.get(next.fetch_add(1, Ordering::Relaxed)) {
                    for (op, m) in cases(named.format) {
                        for target in &targets {
                            match fault(target, &op, m) {
                                None => {}
                                Some(Ok(())) => _ = compiled.fetch_add(1, Ordering::Relaxed),
                                Some(Err(text)) => faults.lock().unwrap().push(text),
                            }
                        }
                    }
                }
            });
        }
    });
    let (compiled, mut faults) = (compiled.into_inner(), faults.into_inner().unwrap());
    faults.sort();
    println!("{compiled} kernels without spills of vectors in loops");
    assert!(faults.is_empty(), "{} of {} spill:\n{}", faults.len(), faults.len() + compiled, faults.join("\n"));
    assert!(compiled > 5000, "only {compiled} kernels were compiled");
}

#[test]
fn quantizers_do_not_spill_in_loops() {
    let mut compiled = 0;
    for level in LEVELS {
        let target = CpuTarget::named(level).expect("a level");
        for activation in ["int8-token", "int8-g32", "int8-g128"] {
            let Activation::Int8(per) = activation.parse().expect("an activation") else { panic!("{activation}") };
            for sum_group in [0, 32, 128] {
                let op =
                    Quantize { k: 4096, input: DType::F32, code: DType::I8, per, sum_group, norm: None, smooth: false };
                let Ok(op) = Op::Quantize(op).checked() else { continue };
                match fault(&target, &op, 1) {
                    Some(Ok(())) => compiled += 1,
                    Some(Err(text)) => panic!("{text}"),
                    None => panic!("no family takes {op:?}"),
                }
            }
        }
    }
    assert!(compiled >= 24, "only {compiled} quantizers were compiled");
}

/// Whether the products of a format's codes have the registers for their sums at a level: integers have fewer than they need
/// without dot products of 64 bytes, where spilling them takes no longer than less of them at a time (measured for INT4 on Zen 5).
fn has_registers(level: &str, arithmetic: Arithmetic) -> bool {
    level.starts_with("x86-64-v4+vnni") || arithmetic != Arithmetic::Integer
}

/// Query heads to a KV head, and query tokens of an item: decoding of known models, speculation, a chunk of a prompt.
const SHARED: [(usize, usize); 6] = [(1, 1), (4, 1), (8, 1), (4, 4), (4, 16), (16, 1)];

#[test]
fn attention_does_not_spill_in_loops() {
    let (mut compiled, mut faults) = (0, Vec::new());
    for level in LEVELS {
        let target = CpuTarget::named(level).expect("a level");
        for name in KvFormat::NAMED {
            let format: KvFormat = name.parse().expect("a format");
            for (group, queries) in SHARED {
                let layout = KvLayout::new(format, 64, 8, 128, 128).expect("a layout");
                let attend = Attend {
                    layout,
                    heads: 8 * group,
                    queries,
                    input: DType::F16,
                    scale: 0.1,
                    softcap: None,
                    alibi: false,
                    sight: Sight::All,
                    arithmetic: Arithmetic::Float,
                };
                let arithmetic = arithmetic(&attend, None, target.caps());
                if !has_registers(level, arithmetic) {
                    continue;
                }
                let op = KvOp::Attend(Attend { arithmetic, ..attend });
                let schedule = kv::choose(&op, target.caps());
                let made = kv::lower(&op, &schedule, target.caps()).expect("a kernel");
                let report = report_of(&target, &made);
                compiled += 1;
                if report.vector_spills_in_inner_loops > 0 {
                    faults.push(format!("{level} {name} {group} heads, {queries} queries {}: {report}", made.name));
                }
            }
        }
    }
    println!("{compiled} kernels of attention");
    assert!(compiled > 300, "only {compiled} kernels were compiled");
    assert!(faults.is_empty(), "{} of {compiled} spill:\n{}", faults.len(), faults.join("\n"));
}
