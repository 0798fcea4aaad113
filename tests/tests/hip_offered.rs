//! Every kernel that is offered for AMD GPUs, by instruction set, family, format and model: clang takes it and holds it to
//! the registers that were estimated without a spill, and the instructions that it is made for are there. Its source is short.
//!
//! Sources are made and measured for all of them. Clang takes a fixed selection of more than 1,000, with each family of each
//! format on each instruction set at least once; with `BITSMITH_HIP_OFFERED=all` it takes every one (some minutes).
//! `BITSMITH_HIP_KEEP=folder` keeps the sources there, for readers.

use bitsmith_calibrate::shapes::MODELS;
use bitsmith_compiler::caps::Matrix;
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::Format;
use bitsmith_compiler::lower::{self, MATRIX_FAMILIES};
use bitsmith_compiler::op::{Activation, Dequant, Epilogue, Matmul, Op, Per, Quantize};
use bitsmith_compiler::schedule::{Family, Schedule};
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::hip::HipTarget;
use bitsmith_compiler::{Compiled, compile};
use bitsmith_tests::hip::clang::{self, Assembly};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Kernels that one compilation takes.
const BATCH: usize = 24;

/// A kernel's source has fewer lines.
const LINES: usize = 400;

/// Fewest kernels that the selection must hold.
const WANTED: usize = 1000;

/// A device of each instruction set.
const DEVICES: [&str; 5] = ["mi250", "mi300x", "mi350x", "rx7900xtx", "rx9070xt"];

/// What the environment may ask for beside the fixed selection.
const ALL: &str = "BITSMITH_HIP_OFFERED";
const KEEP: &str = "BITSMITH_HIP_KEEP";

/// One kernel.
struct Offered {
    op: Op,
    schedule: Schedule,
    made: Compiled,
    source: String,
}

/// Formats beside the named ones, which recipes and users spell.
const SPELLED: [&str; 6] =
    ["int4-g32-asym", "int8-g128-asym", "int2-g128", "ternary-channel", "fp8e5m2-channel", "fp8e4m3-g128"];

fn formats() -> Vec<Format> {
    let named = Format::ALL.iter().map(|named| named.format);
    named.chain(SPELLED.iter().map(|text| text.parse().unwrap())).collect()
}

/// What activations a format is used with; bf16, which differs from f16 in little, with every fourth.
fn activations(weight: &Format, number: usize) -> Vec<Activation> {
    let fp8 = matches!(weight.code, bitsmith_compiler::format::Code::Float(dtype) if dtype != DType::E2m1);
    let quantized = if fp8 { Activation::Fp8(DType::E4m3fn, Per::Token) } else { Activation::Int8(Per::Token) };
    let mut list = vec![Activation::Float(DType::F16), quantized];
    if number.is_multiple_of(4) {
        list.push(Activation::Float(DType::Bf16));
    }
    list
}

/// The matrices of every known model, each size once.
fn shapes() -> Vec<(usize, usize)> {
    let all = MODELS.iter().flat_map(|model| model.linears()).map(|linear| (linear.n, linear.k));
    all.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Every kernel of a device: each family that serves an operation, for one token and for many. Sizes take turns.
fn offered(target: &HipTarget) -> Vec<Offered> {
    let (caps, shapes) = (target.caps(), shapes());
    let mut list: Vec<(Op, Schedule)> = Vec::new();
    let mut turn = 0;
    let mut add = |op: Op| {
        let op = lower::native(op.checked().unwrap(), caps);
        let matrix = MATRIX_FAMILIES.iter().filter(|family| (family.refuses)(&op, caps).is_none());
        for family in lower::families(&op, caps).unwrap_or_default().into_iter().chain(matrix) {
            // A family's favourite for the rows that it is for; matrix instructions serve few and many.
            let rows: &[usize] = match family.family {
                Family::Spread | Family::Decode | Family::Rows => &[1],
                Family::Block => &[512],
                _ => &[1, 512],
            };
            for &m in rows {
                let Some(schedule) = lower::offered(family, &op, caps, m).unwrap() else { continue };
                if !list.contains(&(op, schedule)) {
                    list.push((op, schedule));
                }
            }
        }
    };
    for (number, weight) in formats().into_iter().enumerate() {
        for activation in activations(&weight, number) {
            // The next size that the format can have.
            let fits = |&(n, k): &(usize, usize)| (weight.container.check)(&weight, n, k).is_empty();
            turn += 1;
            let sizes = shapes.iter().cycle().skip(turn % shapes.len()).take(shapes.len());
            let Some(&(n, k)) = sizes.copied().collect::<Vec<_>>().iter().find(|size| fits(size)) else { continue };
            let op = Matmul { n, k, weight, activation, out: DType::F16, epilogue: Epilogue::default() };
            add(Op::Matmul(op));
            if activation == Activation::Float(DType::F16) {
                add(Op::Dequant(Dequant { n, k, weight, out: DType::F16 }));
            }
        }
    }
    for code in [DType::I8, DType::E4m3fn, DType::E5m2] {
        for (input, per) in [(DType::F16, Per::Token), (DType::Bf16, Per::Group(128))] {
            let sum_group = if code == DType::I8 { 128 } else { 0 };
            add(Op::Quantize(Quantize { k: 4096, input, code, per, sum_group, norm: None, smooth: false }));
        }
    }
    let make = |(number, (op, schedule)): (usize, (Op, Schedule))| {
        let mut made = compile(&op, &schedule, target).unwrap_or_else(|why| panic!("{op:?}: {why}"));
        // Kernels of one file need names of their own.
        let entry = format!("kernel_{number}");
        let source = clang::source(&made.artifact).replace(&made.artifact.entry, &entry);
        made.artifact.entry = entry;
        Offered { op, schedule, made, source }
    };
    list.into_iter().enumerate().map(make).collect()
}

/// The instructions that a kernel must have.
fn expected(target: &HipTarget, kernel: &Offered) -> Vec<&'static [&'static str]> {
    let wide: &[&str] = &["global_load_dwordx4", "global_load_b128"];
    let Op::Matmul(op) = &kernel.op else { return Vec::new() };
    match (kernel.schedule.family, target.gpu().matrix) {
        (Family::Mma, Matrix::Mfma) => vec![&["v_mfma_"], wide],
        (Family::Mma, _) => vec![&["v_wmma_"], wide],
        _ if matches!(op.activation, Activation::Int8(_)) && op.weight.integer_code() => vec![&["v_dot4"]],
        _ => Vec::new(),
    }
}

/// The kernels that clang takes where not all are asked for: the first of each family and weight format, and every second of
/// the rest.
fn selected(kernels: Vec<Offered>) -> Vec<Offered> {
    let mut seen = BTreeSet::new();
    let key = |kernel: &Offered| {
        let weight = match &kernel.op {
            Op::Matmul(op) => op.weight.to_string(),
            Op::Dequant(op) => op.weight.to_string(),
            Op::Quantize(op) => format!("{op:?}"),
        };
        (kernel.schedule.family.name(), weight)
    };
    let keep = |(number, kernel): (usize, Offered)| (seen.insert(key(&kernel)) || number % 2 == 0).then_some(kernel);
    kernels.into_iter().enumerate().filter_map(keep).collect()
}

fn faults(target: &HipTarget, kernel: &Offered, found: &Assembly) -> Vec<String> {
    let needs = &found.resources;
    let mut faults = Vec::new();
    if (needs.scratch, needs.sgpr_spills, needs.vgpr_spills) != (0, 0, 0) {
        faults.push(format!("scratch {}, spills {} and {}", needs.scratch, needs.sgpr_spills, needs.vgpr_spills));
    }
    let estimate = kernel.made.resources.expect("an AMD GPU");
    if needs.vgprs == 0 || needs.vgprs + needs.agprs > estimate.registers {
        faults.push(format!("{} + {} registers, estimated {}", needs.vgprs, needs.agprs, estimate.registers));
    }
    if u64::from(needs.shared) != estimate.shared_bytes {
        faults.push(format!("{} bytes of LDS, expected {}", needs.shared, estimate.shared_bytes));
    }
    for choices in expected(target, kernel) {
        if !choices.iter().any(|name| found.text.contains(name)) {
            faults.push(format!("no {}", choices.join(" or ")));
        }
    }
    let name = |fault: String| format!("{}, {:?}, {:?}: {fault}", target.arch(), kernel.op, kernel.schedule);
    faults.into_iter().map(name).collect()
}

/// One compilation's faults, and for the summary the registers found and estimated of each kernel.
fn check(clang: &Path, target: &HipTarget, kernels: &[Offered]) -> (Vec<String>, Vec<(u32, u32)>) {
    let folder = tempfile::tempdir().unwrap();
    let text: String = kernels.iter().map(|kernel| kernel.source.as_str()).collect();
    let found = match clang::assemble(clang, target.arch(), &text, folder.path()) {
        Ok(found) => found,
        Err(why) => return (vec![why], Vec::new()),
    };
    if found.len() != kernels.len() {
        return (
            vec![format!("{}: {} kernels of {} came back", target.arch(), found.len(), kernels.len())],
            Vec::new(),
        );
    }
    let mut all = (Vec::new(), Vec::new());
    for (kernel, found) in kernels.iter().zip(&found) {
        assert_eq!(kernel.made.artifact.entry, found.resources.name);
        all.0.extend(faults(target, kernel, found));
        all.1.push((found.resources.vgprs + found.resources.agprs, kernel.made.resources.map_or(0, |r| r.registers)));
    }
    all
}

#[test]
fn every_offered_source_is_short() {
    let keep = std::env::var_os(KEEP).map(std::path::PathBuf::from);
    let (mut long, mut total, mut most) = (Vec::new(), 0, 0);
    for device in DEVICES {
        let target = HipTarget::named(device).unwrap();
        for kernel in offered(&target) {
            let lines = kernel.source.lines().count();
            (total, most) = (total + 1, most.max(lines));
            if lines >= LINES {
                long.push(format!("{}, {:?}, {:?}: {lines} lines", target.arch(), kernel.op, kernel.schedule));
            }
            if let Some(folder) = &keep {
                let folder = folder.join(target.arch());
                std::fs::create_dir_all(&folder).unwrap();
                std::fs::write(folder.join(format!("{}.hip", kernel.made.artifact.entry)), &kernel.source).unwrap();
            }
        }
    }
    println!("{total} sources, at most {most} lines");
    assert!(total >= WANTED, "{total} kernels are offered");
    assert!(long.is_empty(), "{} sources of {LINES} lines or more:\n{}", long.len(), long.join("\n"));
}

#[test]
fn every_offered_kernel_is_taken_by_clang_within_its_estimate() {
    let test = "hip_offered";
    let all = match std::env::var(ALL) {
        Err(_) => false,
        Ok(text) if text == "all" => true,
        Ok(text) => panic!("{ALL} is {text}; accepted: all"),
    };
    let Some(clang) = clang::find(test) else { return };
    let (mut jobs, mut counts, mut targets) = (Vec::new(), BTreeMap::new(), 0);
    for device in DEVICES {
        let target = HipTarget::named(device).unwrap();
        let Some(clang) = clang::that_knows(&clang, target.arch(), test) else { continue };
        targets += 1;
        let mut kernels = offered(&target);
        if !all {
            kernels = selected(kernels);
        }
        for kernel in &kernels {
            *counts.entry((target.arch(), kernel.schedule.family.name())).or_insert(0) += 1;
        }
        while !kernels.is_empty() {
            let rest = kernels.split_off(kernels.len().min(BATCH));
            jobs.push((clang.clone(), target, std::mem::replace(&mut kernels, rest)));
        }
    }
    let (next, found) = (AtomicUsize::new(0), Mutex::new((Vec::new(), Vec::new())));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((clang, target, kernels)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (faults, registers) = check(clang, target, kernels);
                    for fault in &faults {
                        eprintln!("{fault}");
                    }
                    let mut found = found.lock().unwrap();
                    found.0.extend(faults);
                    found.1.extend(registers);
                }
            });
        }
    });
    let (faults, registers) = found.into_inner().unwrap();
    let (most, close) = registers.iter().fold((0, 0.0f64), |(most, close), &(found, estimate)| {
        (most.max(found), close.max(f64::from(found) / f64::from(estimate)))
    });
    println!("{} kernels: {counts:?}; at most {most} registers, at most {close:.2} of the estimate", registers.len());
    let shown = faults.iter().take(12).cloned().collect::<Vec<_>>().join("\n");
    assert!(faults.is_empty(), "{} faults:\n{shown}", faults.len());
    // Without a clang that knows every instruction set the others are checked all the same.
    assert!(registers.len() * DEVICES.len() >= WANTED * targets, "{} kernels are offered", registers.len());
}
