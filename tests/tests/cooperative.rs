//! Cooperative matrices: reference = interpreter for the family that uses them, over every format, width, granularity and
//! tail it serves, in shapes of several devices; faults planted in a kernel are found; the SPIR-V says what the schedule says.
//!
//! The interpreter runs every thread, and traps on races even between lanes of one subgroup, since nobody says which lane
//! touches what. A driver that has these matrices runs them too; Debian 12's has not.

use bitsmith_autotune::cases;
use bitsmith_autotune::execute::Prepared;
use bitsmith_autotune::problem::{Problem, Sample};
use bitsmith_compiler::caps::{Caps, Feature};
use bitsmith_compiler::compile;
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::ir::{Block, Cooperative, Inst, Kernel, Order, parse, resources};
use bitsmith_compiler::lower::{self, FAMILIES, Implementation, lower};
use bitsmith_compiler::op::{Activation, Epilogue, Matmul, Op, Per};
use bitsmith_compiler::schedule::{Family, Schedule};
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::spirv::SpirvTarget;
use bitsmith_runtime::Device;
use bitsmith_runtime::vulkan::{Options, VulkanDevice};
use bitsmith_tests::vulkan::SpirvVal;
use bitsmith_tests::{poison, run, skip};
use std::collections::BTreeMap;

/// Number of cases; `BITSMITH_CASES` changes it.
fn count() -> u64 {
    std::env::var("BITSMITH_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(240)
}

fn family() -> &'static Implementation {
    FAMILIES.iter().find(|family| family.family == Family::Cooperative).unwrap()
}

/// 16 x 16 x 16 in subgroups of 32 and 64, 8 x 16 x 16 in 16, 8 x 8 x 8 in 8.
const TARGETS: [&str; 4] = ["vulkan-coop", "vulkan-amd-coop@64", "vulkan-intel-coop", "vulkan-lavapipe-coop"];

/// A matmul that the family serves, drawn from the formats of all tests; half of them with group sizes and K of no round
/// number.
fn case(seed: u64, caps: &Caps) -> (Matmul, usize) {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0xc0de);
    for draw in 0.. {
        let seed = seed.wrapping_mul(977) + 131_071 * draw;
        let (op, m) = if draw % 2 == 0 { cases::operation(seed) } else { cases::matrix_case(seed) };
        let Op::Matmul(mut op) = op else { continue };
        if rng.u32(..4) > 0 {
            op.activation = Activation::Float(DType::F16);
        } else if let Activation::Fp8(dtype, Per::Group(_)) = op.activation {
            op.activation = Activation::Fp8(dtype, Per::Token);
        }
        if (family().refuses)(&Op::Matmul(op), caps).is_none() {
            return (op, m.max(9 + rng.usize(..9)));
        }
    }
    unreachable!("some operation is served")
}

fn check(caps: &Caps, op: &Matmul, m: usize, schedule: &Schedule, seed: u64) -> Result<f64, String> {
    let at =
        |stage: &str, why: String| format!("seed {seed} on {}, {stage}: {why}\n  {op:?}, {m}, {schedule:?}", caps.name);
    let op = Op::Matmul(*op);
    let kernel = lower(&op, schedule, caps).map_err(|e| at("lower", e.to_string()))?;
    if parse(&kernel.to_string()).map_err(|e| at("parse", e.to_string()))? != kernel {
        return Err(at("parse", "what was printed parses to another kernel".into()));
    }
    execute(&kernel, caps, &op, m, schedule, seed).map_err(|why| at("interpreter", why))
}

/// The largest ratio of an error to its bound; padding holds garbage.
fn execute(kernel: &Kernel, caps: &Caps, op: &Op, m: usize, schedule: &Schedule, seed: u64) -> Result<f64, String> {
    let mut problem = Problem::random(op, m, seed).map_err(|e| e.to_string())?;
    poison::padding(&mut problem, seed);
    let outputs = run::interpret(kernel, caps, &problem, schedule)?;
    let outputs: Vec<&[u8]> = outputs.iter().map(Vec::as_slice).collect();
    let report = problem.check(schedule.family, &outputs, Sample::Everything);
    if report.passed() { Ok(report.worst_ratio) } else { Err(report.first_wrong.unwrap_or_default()) }
}

#[test]
fn reference_and_interpreter_agree() {
    let targets: Vec<SpirvTarget> = TARGETS.iter().map(|name| SpirvTarget::named(name).unwrap()).collect();
    let (mut failures, mut worst) = (Vec::new(), 0.0f64);
    let (mut schedules, mut formats) = (BTreeMap::new(), BTreeMap::new());
    for seed in 0..count() {
        let caps = targets[seed as usize % targets.len()].caps();
        let (op, m) = case(seed, caps);
        let space = (family().space)(&Op::Matmul(op), caps, m);
        let schedule = space[fastrand::Rng::with_seed(seed).usize(..space.len())];
        match check(caps, &op, m, &schedule, seed) {
            Ok(ratio) => worst = worst.max(ratio),
            Err(why) => failures.push(why),
        }
        *schedules.entry((schedule.tile_m, schedule.tile_n, schedule.threads)).or_insert(0) += 1;
        *formats.entry(op.weight.to_string()).or_insert(0) += 1;
    }
    println!("{} cases, {} formats, worst error {worst:.3} of its bound, {schedules:?}", count(), formats.len());
    let shown = failures.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
    assert!(failures.is_empty(), "{} of {} cases failed:\n{shown}", failures.len(), count());
}

#[test]
fn the_chooser_takes_matrices_for_many_rows_and_leaves_what_f16_does_not_hold() {
    let chosen = |target: &str, format: &str, activation: &str, m: usize| {
        let target = SpirvTarget::named(target).unwrap();
        let op = matmul(format, activation, 256, 256);
        lower::choose(&op, target.caps(), m).unwrap().family
    };
    for target in TARGETS {
        assert_eq!(chosen(target, "int4-g32", "f16", 64), Family::Cooperative, "{target}");
        assert_eq!(chosen(target, "int4-g32", "f16", 4), Family::Spread, "{target}");
        // bf16 and f32 would be rounded, NF4's levels too; int8 sums are exact elsewhere.
        for (format, activation) in
            [("int4-g32", "bf16"), ("int4-g32", "f32"), ("nf4-g64", "f16"), ("int8-channel", "int8-token")]
        {
            assert_eq!(chosen(target, format, activation, 64), Family::Block, "{target} {format} {activation}");
        }
    }
    assert_eq!(chosen("vulkan", "int4-g32", "f16", 64), Family::Block);
    // No matrices for subgroups of this width.
    assert_eq!(chosen("vulkan-coop@4", "int4-g32", "f16", 64), Family::Block);
}

fn matmul(format: &str, activation: &str, n: usize, k: usize) -> Op {
    Op::Matmul(Matmul {
        n,
        k,
        weight: format.parse().unwrap(),
        activation: activation.parse().unwrap(),
        out: DType::F16,
        epilogue: Epilogue::default(),
    })
}

/// Changes statements of a kernel, those inside of loops and branches too; `change` drops one by saying false.
fn edit(block: &mut Block, change: &mut dyn FnMut(&mut Inst) -> bool) {
    block.statements.retain_mut(|statement| {
        match &mut statement.inst {
            Inst::For(inner) => edit(&mut inner.body, change),
            Inst::If(inner) => {
                edit(&mut inner.then, change);
                edit(&mut inner.otherwise, change);
            }
            _ => {}
        }
        change(&mut statement.inst)
    });
}

/// Kernels with several segments of several pieces, and of one piece each; results go through shared memory twice.
fn faulty() -> Vec<(Op, Schedule)> {
    let schedule = Schedule::single(Family::Cooperative, 64, 32, 1).with_threads(64, 1);
    [("int4-g64-fzero", 192), ("int8-g32-asym", 96)]
        .map(|(format, k)| (matmul(format, "f16", 40, k), schedule))
        .to_vec()
}

#[test]
fn a_missing_barrier_is_found() {
    let target = SpirvTarget::named("vulkan-coop").unwrap();
    let caps = target.caps();
    for (op, schedule) in faulty() {
        let sound = lower(&op, &schedule, caps).unwrap();
        execute(&sound, caps, &op, 50, &schedule, 1).unwrap();
        let mut barriers = 0;
        edit(&mut sound.body.clone(), &mut |inst| {
            barriers += usize::from(matches!(inst, Inst::Barrier));
            true
        });
        assert!(barriers >= 5, "{barriers} barriers");
        for missing in 0..barriers {
            let (mut kernel, mut number) = (sound.clone(), 0);
            edit(&mut kernel.body, &mut |inst| {
                let barrier = matches!(inst, Inst::Barrier);
                number += usize::from(barrier);
                !barrier || number != missing + 1
            });
            let found = execute(&kernel, caps, &op, 50, &schedule, 1).expect_err("a barrier is missing");
            assert!(found.contains("race") || found.contains("nothing has written"), "barrier {missing}: {found}");
        }
    }
}

#[test]
fn a_matrix_read_the_wrong_way_or_past_its_array_is_found() {
    let target = SpirvTarget::named("vulkan-coop").unwrap();
    let caps = target.caps();
    for (op, schedule) in faulty() {
        let sound = lower(&op, &schedule, caps).unwrap();
        let mut turned = sound.clone();
        edit(&mut turned.body, &mut |inst| {
            if let Inst::Cooperative(inner) = inst
                && let Cooperative::Load { from, .. } = &mut **inner
                && from.order == Order::Columns
            {
                from.order = Order::Rows;
            }
            true
        });
        assert_ne!(turned, sound);
        execute(&turned, caps, &op, 50, &schedule, 1).expect_err("W is read as if it were not transposed");
        for name in ["staged_w", "staged_x", "results"] {
            let mut short = sound.clone();
            let array = short.shared.iter_mut().find(|array| array.name == name).unwrap();
            // The last line without its last 16 numbers, and what follows it.
            array.bytes -= 64;
            let found = execute(&short, caps, &op, 50, &schedule, 1).expect_err("an array is too short");
            assert!(found.contains("out of bounds") || found.contains("pass the end"), "{name}: {found}");
        }
    }
}

/// The instructions of a module: opcode and operands, by the SPIR-V specification's framing alone.
fn instructions(bytes: &[u8]) -> Vec<(u32, Vec<u32>)> {
    let words: Vec<u32> = bytes.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect();
    let (mut at, mut list) = (5, Vec::new());
    while at < words.len() {
        let length = (words[at] >> 16) as usize;
        assert!(length > 0, "an instruction of no words");
        list.push((words[at] & 0xffff, words[at + 1..at + length].to_vec()));
        at += length;
    }
    list
}

/// Numbers of the specification: of instructions, and of what they name.
mod spec {
    pub const EXTENSION: u32 = 10;
    pub const MEMORY_MODEL: u32 = 14;
    pub const CAPABILITY: u32 = 17;
    pub const TYPE_FLOAT: u32 = 22;
    pub const CONSTANT: u32 = 43;
    pub const LOAD: u32 = 61;
    pub const STORE: u32 = 62;
    pub const CONTROL_BARRIER: u32 = 224;
    pub const TYPE_MATRIX: u32 = 4456;
    pub const MATRIX_LOAD: u32 = 4457;
    pub const MATRIX_STORE: u32 = 4458;
    pub const MATRIX_MULTIPLY: u32 = 4459;
    pub const VULKAN_MEMORY_MODEL: u32 = 5345;
    pub const COOPERATIVE_MATRIX: u32 = 6022;
    pub const SUBGROUP: u32 = 3;
    pub const NON_PRIVATE: u32 = 0x20;
}

#[test]
fn modules_say_what_their_schedules_say() {
    for (name, size, subgroup) in [
        ("vulkan-coop", [16, 16, 16], 32),
        ("vulkan-amd-coop@64", [16, 16, 16], 64),
        ("vulkan-intel-coop", [8, 16, 16], 16),
    ] {
        let target = SpirvTarget::named(name).unwrap();
        let op = matmul("int4-channel", "f16", 64, 128);
        let schedule = Schedule::single(Family::Cooperative, 64, 64, 1).with_threads(4 * subgroup, 1);
        let compiled = compile(&op, &schedule, &target).unwrap();
        assert_eq!(resources(&compiled.legal, target.caps()), None);
        let again = compile(&op, &schedule, &target).unwrap();
        assert_eq!(again.artifact.payload, compiled.artifact.payload, "{name}: other bytes the second time");
        let list = instructions(compiled.artifact.payload.bytes());
        let count = |op: u32| list.iter().filter(|(code, _)| *code == op).count();
        let has = |op: u32, operand: u32| list.iter().any(|(code, words)| *code == op && words.contains(&operand));
        assert!(has(spec::CAPABILITY, spec::COOPERATIVE_MATRIX) && has(spec::CAPABILITY, spec::VULKAN_MEMORY_MODEL));
        assert!(list.contains(&(spec::MEMORY_MODEL, vec![0, 3])), "the memory model is Vulkan's");
        let text =
            |words: &[u32]| words.iter().flat_map(|w| w.to_le_bytes()).take_while(|&b| b != 0).collect::<Vec<u8>>();
        let extensions: Vec<_> = list.iter().filter(|(op, _)| *op == spec::EXTENSION).map(|(_, w)| text(w)).collect();
        assert!(extensions.contains(&b"SPV_KHR_cooperative_matrix".to_vec()));

        let constants: BTreeMap<u32, u32> =
            list.iter().filter(|(op, _)| *op == spec::CONSTANT).map(|(_, w)| (w[1], w[2])).collect();
        let widths: BTreeMap<u32, u32> =
            list.iter().filter(|(op, _)| *op == spec::TYPE_FLOAT).map(|(_, w)| (w[0], w[1])).collect();
        let mut types: Vec<[u32; 5]> = (list.iter().filter(|(op, _)| *op == spec::TYPE_MATRIX))
            .map(|(_, w)| [widths[&w[1]], constants[&w[2]], constants[&w[3]], constants[&w[4]], constants[&w[5]]])
            .collect();
        types.sort_unstable_by_key(|ty| ty[4]);
        let [m, n, k] = size;
        let expected = [[16, spec::SUBGROUP, m, k, 0], [16, spec::SUBGROUP, k, n, 1], [32, spec::SUBGROUP, m, n, 2]];
        assert_eq!(types, expected, "{name}");

        // Four subgroups have 32 by 32 each; one loop over pieces of 32 columns, one line of scales per column of matrices.
        let (rows, across, steps) = ((32 / m) as usize, (32 / n) as usize, (32 / k) as usize);
        assert_eq!(count(spec::MATRIX_MULTIPLY), rows * across * steps, "{name}");
        assert_eq!(count(spec::MATRIX_LOAD), (rows + across) * steps + across, "{name}");
        assert_eq!(count(spec::MATRIX_STORE), rows * across, "{name}");
        for (op, words) in &list {
            let non_private = |at: usize| words.get(at) == Some(&spec::NON_PRIVATE);
            match *op {
                spec::MATRIX_LOAD => assert!(non_private(5), "{words:?}"),
                spec::MATRIX_STORE => assert!(non_private(4), "{words:?}"),
                // Acquire, release, workgroup and buffer memory, made available and visible.
                spec::CONTROL_BARRIER => assert_eq!(constants[&words[2]], 0x8 | 0x40 | 0x100 | 0x2000 | 0x4000),
                _ => {}
            }
        }
        let others =
            |op: u32, at: usize| list.iter().filter(|(code, w)| *code == op && w.get(at) == Some(&0x20)).count();
        assert!(others(spec::LOAD, 3) > 0 && others(spec::STORE, 2) > 0, "plain accesses to shared memory are private");
    }
}

#[test]
fn modules_are_valid() {
    let Some(validator) = SpirvVal::find_for_matrices("modules_are_valid") else { return };
    let mut checked = 0;
    for name in TARGETS.into_iter().chain(["vulkan-nvidia-coop", "vulkan-intel-coop@8"]) {
        let target = SpirvTarget::named(name).unwrap();
        for seed in 0..count() / 24 {
            let (op, m) = case(seed, target.caps());
            let op = Op::Matmul(op);
            let space = (family().space)(&op, target.caps(), m);
            let schedule = &space[fastrand::Rng::with_seed(seed).usize(..space.len())];
            let compiled = compile(&op, schedule, &target).unwrap_or_else(|why| panic!("{op:?} {schedule:?}: {why}"));
            let checks = validator.check(compiled.artifact.payload.bytes());
            checks.unwrap_or_else(|why| panic!("{name} {op:?} {schedule:?}: {why}"));
            checked += 1;
        }
    }
    println!("{checked} modules are valid");
}

#[test]
fn devices_without_matrices_refuse_them_by_name() {
    let (op, schedule) = faulty().remove(0);
    for name in ["vulkan", "vulkan-nvidia", "vulkan-lavapipe"] {
        let target = SpirvTarget::named(name).unwrap();
        let refused = compile(&op, &schedule, &target).expect_err("it has no matrices").to_string();
        assert!(refused.contains("has no cooperative matrices on"), "{refused}");
    }
    // And so do emitters that get a kernel of another device.
    let caps = *SpirvTarget::named("vulkan-coop").unwrap().caps();
    let kernel = lower(&op, &schedule, &caps).unwrap();
    let verified = bitsmith_compiler::ir::verify(&kernel, &caps).unwrap();
    let targets: [Box<dyn Target>; 5] = [
        Box::new(SpirvTarget::named("vulkan").unwrap()),
        Box::new(bitsmith_compiler::target::ptx::PtxTarget::named("h200").unwrap()),
        Box::new(bitsmith_compiler::target::hip::HipTarget::named("mi300x").unwrap()),
        Box::new(bitsmith_compiler::target::wgsl::WgslTarget::named("webgpu").unwrap()),
        Box::new(bitsmith_compiler::target::cpu::CpuTarget::named("x86-64-v3").unwrap()),
    ];
    for target in targets {
        let refused = target.emit(&verified).expect_err("it has no matrices").to_string();
        assert!(refused.contains("matrix_load"), "{refused}");
    }
}

/// One case on a driver; the largest ratio of an error to its bound.
fn on_driver(device: &VulkanDevice, op: &Op, m: usize, schedule: &Schedule, seed: u64) -> Result<f64, String> {
    let mut problem = Problem::random(op, m, seed).map_err(|e| e.to_string())?;
    poison::padding(&mut problem, seed);
    let compiled = compile(op, schedule, device.target()).map_err(|e| e.to_string())?;
    let prepared = Prepared::new(device, &problem, &compiled.artifact, schedule, 1).map_err(|e| e.to_string())?;
    let outputs = prepared.launch(0).and_then(|()| prepared.outputs()).map_err(|e| e.to_string())?;
    let outputs: Vec<&[u8]> = outputs.iter().map(Vec::as_slice).collect();
    let report = problem.check(schedule.family, &outputs, Sample::Everything);
    if report.passed() { Ok(report.worst_ratio) } else { Err(report.first_wrong.unwrap_or_default()) }
}

#[test]
fn a_driver_that_has_matrices_agrees_with_the_reference() {
    let test = "a_driver_that_has_matrices_agrees_with_the_reference";
    let validate = std::env::var_os("BITSMITH_NO_LAYERS").is_none();
    let device = match VulkanDevice::open(Options { validate, ..Options::default() }) {
        Ok(device) => device,
        Err(error) => return skip("vulkan-matrices", test, &error.to_string()),
    };
    let model = device.info().model;
    if !device.caps().features.has(Feature::CooperativeMatrix) {
        return skip("vulkan-matrices", test, &format!("{model} has no cooperative matrices"));
    }
    let (mut failures, mut worst) = (Vec::new(), 0.0f64);
    for seed in 0..count() / 4 {
        let (op, m) = case(seed, device.caps());
        let op = Op::Matmul(op);
        let space = (family().space)(&op, device.caps(), m);
        let schedule = space[fastrand::Rng::with_seed(seed).usize(..space.len())];
        match on_driver(&device, &op, m, &schedule, seed) {
            Ok(ratio) => worst = worst.max(ratio),
            Err(why) => failures.push(format!("seed {seed}: {why}\n  {op:?}, {m}, {schedule:?}")),
        }
    }
    let target = device.info().target;
    println!("{} cases on {model} as {target}, worst error {worst:.3} of its bound", count() / 4);
    let shown = failures.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
    assert!(failures.is_empty(), "{} of {} cases failed on {model}:\n{shown}", failures.len(), count() / 4);
    assert_eq!(device.complaints(), Vec::<String>::new());
}
