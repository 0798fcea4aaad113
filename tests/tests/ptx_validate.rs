//! Invariant 2 for NVIDIA GPUs: every kernel that a family makes for a device assembles there, within the device's registers
//! and the shared memory that the kernel states, and the machine code of one kernel of each kind (a family, what it asks for)
//! holds the instructions that it asks for. None of them has local memory, and registers and shared memory stay within the
//! estimate that the compiler makes.

use bitsmith_compiler::compile;
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::Format;
use bitsmith_compiler::ir::{Asynchronous, Block, Demand, Fit, Inst, Kernel, ReduceOp, Scalar, resources};
use bitsmith_compiler::lower::{families, matrix_families, offered};
use bitsmith_compiler::op::{Activation, Dequant, Epilogue, Matmul, Norm, Op, Per, Quantize};
use bitsmith_compiler::schedule::{Family, Schedule};
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::ptx::{ARCHES, PtxTarget, STATIC_SHARED};
use bitsmith_tests::ptxas::{self, Entry};
use std::collections::{BTreeMap, BTreeSet};

/// Shapes of linear layers (rows and columns of W) in Llama 3 8B: attention, up and gate, down.
const SHAPES: [(usize, usize); 3] = [(4096, 4096), (14336, 4096), (4096, 14336)];
/// Formats of the grammar beside the named ones: every width and granularity.
const MORE: [&str; 20] = [
    "int2-g32",
    "int3-g64-asym",
    "int4-g128",
    "int4-g128-asym",
    "int4-g32-fp8",
    "int5-channel",
    "int6-g64",
    "int8-channel",
    "int8-g128-asym",
    "int4-g48",
    "int4-tensor",
    "ternary-channel",
    "ternary-g128",
    "binary-g64",
    "log4-g64",
    "nf4",
    "mxfp4",
    "fp8e4m3-channel",
    "fp8e4m3-block128",
    "fp8e5m2-tensor",
];

/// Whether every operation is made on every device and for more numbers of rows, which is a dozen times the work.
fn all() -> bool {
    std::env::var("BITSMITH_PTX_OFFERED").is_ok_and(|which| which == "all")
}

/// Numbers of rows that schedules are for: decode, a few rows, prefill.
fn rows() -> &'static [usize] {
    if all() { &[1, 4, 16, 64, 512, 4096] } else { &[1, 16, 512] }
}

/// What the suite makes for one device: operations with the number of rows that their schedules are for.
fn operations() -> Vec<(Op, usize)> {
    let mut list = Vec::new();
    let named = Format::ALL.iter().map(|named| named.format);
    let more = MORE.iter().map(|text| text.parse::<Format>().unwrap_or_else(|e| panic!("{text}: {e}")));
    for (i, weight) in named.chain(more).enumerate() {
        let (n, k) = SHAPES[i % SHAPES.len()];
        if !(weight.container.check)(&weight, n, k).is_empty() {
            continue;
        }
        let activations = [
            Activation::Float(DType::F16),
            Activation::Float(DType::Bf16),
            Activation::Int8(Per::Token),
            Activation::Fp8(DType::E4m3fn, Per::Token),
        ];
        for (j, activation) in activations.into_iter().enumerate() {
            let epilogue = if j == 0 { Epilogue { bias: true, ..Epilogue::default() } } else { Epilogue::default() };
            let op = Op::Matmul(Matmul { n, k, weight, activation, out: DType::F16, epilogue });
            // Decode, a few rows, prefill.
            list.extend(rows().iter().map(|&m| (op, m)));
        }
        list.push((Op::Dequant(Dequant { n, k, weight, out: DType::Bf16 }), 1));
    }
    for code in [DType::I8, DType::E4m3fn] {
        for norm in [None, Some(Norm { eps: 1e-5 })] {
            let quantize =
                Quantize { k: 4096, input: DType::F16, code, per: Per::Token, sum_group: 0, norm, smooth: false };
            list.push((Op::Quantize(quantize), 1));
        }
    }
    list
}

/// The text of a launch: its kernel, and one that it runs first where there is one.
struct Module {
    text: String,
    kernels: Vec<Kernel>,
    family: &'static str,
    /// The operation and the schedule, for reports.
    made_from: String,
}

/// The schedule that each family which serves an operation offers, each kernel under a name of its own.
fn make(target: &PtxTarget, share: usize) -> Vec<Module> {
    let mut made = Vec::new();
    let mut count = 0;
    let all = all();
    // What one number of rows is offered, another may be, too.
    let mut known: Vec<(Op, Schedule)> = Vec::new();
    for (i, (op, m)) in operations().into_iter().enumerate() {
        // Each device takes its share of the operations, and all devices together every one several times.
        if all || i % 6 == share || op.name() != "matmul" {
            let Ok(mut able) = families(&op, target.caps()) else { continue };
            known.retain(|(of, _)| *of == op);
            able.extend(matrix_families(&op, target.caps(), m));
            for family in able {
                // Families of matrix instructions are for few rows or for many.
                if matches!(
                    (family.family, m > 16),
                    (Family::Ring, true) | (Family::Panel | Family::Wide | Family::Dense, false)
                ) {
                    continue;
                }
                let offered = offered(family, &op, target.caps(), m).expect("kernels of its space");
                // Where workgroups share tiles there is another program, which is not the favourite of most shapes.
                let shares = |schedule: &Schedule| schedule.workgroups > 1 && m <= 8;
                let sharing = (family.space)(&op, target.caps(), m).into_iter().filter(shares).find(|schedule| {
                    let kernel = (family.build)(&op, schedule, target.caps()).expect("a kernel of its space");
                    Demand::of(kernel, target.caps()).fit(schedule.threads, target.caps()) == Fit::Sure
                });
                for schedule in offered.into_iter().chain(sharing) {
                    if known.contains(&(op, schedule)) {
                        continue;
                    }
                    known.push((op, schedule));
                    let compiled =
                        compile(&op, &schedule, target).unwrap_or_else(|e| panic!("{op:?} {schedule:?}: {e}"));
                    let mut text = std::str::from_utf8(compiled.artifact.payload.bytes()).unwrap().to_string();
                    // The text holds what a launch runs first, too.
                    let first = compiled.preparation.map(|first| (first.artifact.entry, first.legal));
                    let mut kernels = Vec::new();
                    for (entry, legal) in first.into_iter().chain([(compiled.artifact.entry, compiled.legal)]) {
                        let name = format!("kernel_{count}");
                        count += 1;
                        let old = format!(".entry {entry}(");
                        assert_eq!(text.matches(&old).count(), 1, "{entry}");
                        text = text.replacen(&old, &format!(".entry {name}("), 1);
                        kernels.push(Kernel { name, ..legal });
                    }
                    made.push(Module {
                        text,
                        kernels,
                        family: family.family.name(),
                        made_from: format!("{op:?} {schedule:?}"),
                    });
                }
            }
        }
    }
    made
}

/// What a kernel asks for, and names of instructions of which the machine code must hold at least one.
type Wanted = BTreeMap<&'static str, &'static [&'static str]>;

fn wanted(kernel: &Kernel) -> Wanted {
    let mut list = Wanted::new();
    add_wanted(&kernel.body, kernel, &mut list);
    list
}

/// Adds what a block asks for.
fn add_wanted(block: &Block, kernel: &Kernel, list: &mut Wanted) {
    for statement in &block.statements {
        match &statement.inst {
            Inst::Dot4 { .. } => _ = list.insert("dot4", &["IDP.4A"]),
            Inst::Mma { shape, .. } => {
                let names: &[&str] = match shape.a {
                    DType::I8 | DType::U8 => &["IMMA."],
                    DType::E4m3fn | DType::E5m2 => &["QMMA.", "HMMA."],
                    _ => &["HMMA."],
                };
                list.insert("mma", names);
            }
            Inst::AsyncCopy { .. } => _ = list.insert("async_copy", &["LDGSTS"]),
            Inst::Barrier => _ = list.insert("barrier", &["BAR."]),
            Inst::AtomicAdd { .. } => _ = list.insert("atomic_add", &["ATOM", "RED."]),
            Inst::Asynchronous(inner) => match &**inner {
                Asynchronous::BulkCopy { .. } => _ = list.insert("bulk_copy", &["UBLKCP"]),
                Asynchronous::BarrierWait { .. } => _ = list.insert("barrier_wait", &["SYNCS."]),
                Asynchronous::Fence => _ = list.insert("fence_async", &["FENCE.VIEW.ASYNC"]),
                Asynchronous::Mma { shape, .. } => {
                    let names: &[&str] = match shape.a {
                        DType::I8 | DType::U8 => &["IGMMA."],
                        DType::E4m3fn | DType::E5m2 => &["QGMMA."],
                        _ => &["HGMMA."],
                    };
                    list.insert("warpgroup_mma", names);
                }
                Asynchronous::Registers { .. } => _ = list.insert("registers", &["USETMAXREG"]),
                Asynchronous::AwaitDependencies => _ = list.insert("await_dependencies", &["ACQBULK"]),
                Asynchronous::LaunchDependents => _ = list.insert("launch_dependents", &["PREEXIT"]),
                Asynchronous::DeviceFence => _ = list.insert("device_fence", &["MEMBAR."]),
                Asynchronous::BarrierInit { .. }
                | Asynchronous::BarrierArrive { .. }
                | Asynchronous::BarrierExpect { .. }
                | Asynchronous::MmaWait(_)
                | Asynchronous::SubgroupBarrier => {}
            },
            Inst::SubgroupReduce(ReduceOp::Add | ReduceOp::Max, value) if kernel.ty(*value).scalar == Scalar::I32 => {
                list.insert("reduce", &["REDUX"]);
            }
            Inst::For(inner) => add_wanted(&inner.body, kernel, list),
            Inst::If(inner) => {
                add_wanted(&inner.then, kernel, list);
                add_wanted(&inner.otherwise, kernel, list);
            }
            _ => {}
        }
    }
}

/// What is wrong with one assembled kernel, and with its machine code if that was asked for.
fn faults(kernel: &Kernel, entry: &Entry, sass: bool, target: &PtxTarget) -> Vec<String> {
    let mut faults = Vec::new();
    if entry.stack > 0 || entry.spills > 0 {
        faults.push(format!("{} bytes of spills, {} of local memory", entry.spills, entry.stack));
    }
    let estimate = resources(kernel, target.caps()).expect("an NVIDIA device");
    if entry.registers == 0 || entry.registers > estimate.registers {
        let threads = kernel.threads();
        faults.push(format!(
            "{} registers of {threads} threads; the estimate is {}",
            entry.registers, estimate.registers
        ));
    }
    let stated = estimate.shared_bytes;
    // The tool may round up to an alignment, and from sm_90 on adds 1 KiB of its own.
    let declared = if stated > STATIC_SHARED { 0 } else { stated };
    if (entry.shared as u64) < declared || entry.shared as u64 > declared + 1024 + 128 {
        faults.push(format!("{} bytes of shared memory; the kernel states {stated}", entry.shared));
    }
    if !sass {
        return faults;
    }
    if entry.sass.is_empty() {
        faults.push("no machine code was shown".to_string());
    }
    for (what, names) in wanted(kernel) {
        let word = |line: &String| names.iter().any(|name| line.split_whitespace().any(|word| word.starts_with(name)));
        if !entry.sass.iter().any(word) {
            faults.push(format!("{what}: the machine code has none of {names:?}"));
        }
    }
    faults
}

/// The kernels of an architecture through the assembler, in batches: how many of each family, what is wrong.
fn check(tool: &ptxas::Ptxas, share: usize) -> (BTreeMap<&'static str, usize>, Vec<String>) {
    let target = PtxTarget::named(ARCHES[share].name).unwrap();
    let made = make(&target, share);
    let mut families = BTreeMap::new();
    made.iter().for_each(|module| *families.entry(module.family).or_default() += 1);
    let mut wrong = Vec::new();
    // Machine code is looked at once for each kind of kernel: the disassembler takes half as long as the assembler.
    let mut seen: BTreeSet<(&str, Vec<Wanted>)> = BTreeSet::new();
    let (shown, plain): (Vec<&Module>, Vec<&Module>) = made
        .iter()
        .partition(|module| all() || seen.insert((module.family, module.kernels.iter().map(wanted).collect())));
    let batches =
        shown.chunks(40).map(|modules| (true, modules)).chain(plain.chunks(40).map(|modules| (false, modules)));
    for (sass, modules) in batches {
        let texts: Vec<String> = modules.iter().map(|module| module.text.clone()).collect();
        let entries = match tool.assemble(target.arch().name, &texts, sass) {
            Ok(entries) => entries,
            Err(said) => {
                wrong.push(format!("{}: {}", target.arch().name, said.lines().take(10).collect::<Vec<_>>().join("\n")));
                continue;
            }
        };
        for (kernel, from) in modules.iter().flat_map(|module| module.kernels.iter().map(|k| (k, &module.made_from))) {
            match entries.get(&kernel.name) {
                Some(entry) => {
                    for fault in faults(kernel, entry, sass, &target) {
                        wrong.push(format!("{}: {fault}: {from}", target.arch().name));
                    }
                }
                None => wrong.push(format!("{} for {}: not reported", kernel.name, target.arch().name)),
            }
        }
    }
    (families, wrong)
}

#[test]
fn every_kernel_assembles_within_its_means() {
    let Some(tool) = ptxas::find("every_kernel_assembles_within_its_means") else { return };
    let half = |first: usize| (first..ARCHES.len()).step_by(2).map(|share| check(&tool, share)).collect::<Vec<_>>();
    let results: Vec<(BTreeMap<&'static str, usize>, Vec<String>)> = std::thread::scope(|scope| {
        let other = scope.spawn(|| half(1));
        let mut results = half(0);
        results.extend(other.join().expect("the other half panicked"));
        results
    });
    let mut families: BTreeMap<&'static str, usize> = BTreeMap::new();
    results.iter().flat_map(|(made, _)| made).for_each(|(name, count)| *families.entry(name).or_default() += count);
    let count: usize = families.values().sum();
    println!("{count} kernels assembled for {} architectures, by family {families:?}", ARCHES.len());
    let wrong: Vec<String> = results.into_iter().flat_map(|(.., wrong)| wrong).collect();
    let shown = wrong.iter().take(20).cloned().collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{} faults in {count} kernels:\n{shown}", wrong.len());
    assert!(count > 2000, "{count} kernels are too few");
    for family in ["spread", "block", "mma", "panel", "dense", "ring", "decode", "rows"] {
        assert!(families.contains_key(family), "no kernel of family {family}");
    }
}
