//! Family `dense`: weights decoded once by a kernel of its own, then a dense product. reference = interpreter = PTX machine on
//! ragged shapes, whatever the decoded weights held before; what is planted is found; who cannot launch two kernels says so.

use bitsmith_autotune::problem::{Problem, Sample};
use bitsmith_autotune::{cases, poison};
use bitsmith_compiler::artifact::{Artifact, Payload};
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::Format;
use bitsmith_compiler::lower::{self, MATRIX_FAMILIES, Role};
use bitsmith_compiler::op::{Activation, Epilogue, Matmul, Op};
use bitsmith_compiler::schedule::{Family, Schedule};
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::cpu::CpuTarget;
use bitsmith_compiler::target::ptx::PtxTarget;
use bitsmith_compiler::{Compiled, compile};
use bitsmith_emulate::Schedule as Turns;
use bitsmith_runtime::machine::MachineDevice;
use bitsmith_runtime::{Device, Launch, LaunchArg};
use bitsmith_tests::cli::{ok, ok_json};
use bitsmith_tests::{machine, run};
use serde_json::Value;
use std::collections::BTreeSet;

fn targets() -> [PtxTarget; 3] {
    ["sm_80", "sm_89", "sm_90a"].map(|name| PtxTarget::named(name).unwrap())
}

/// One operation with a schedule of the family.
struct Case {
    op: Op,
    m: usize,
    schedule: Schedule,
    problem: Problem,
    compiled: Compiled,
}

fn family() -> &'static lower::Implementation {
    MATRIX_FAMILIES.iter().find(|family| family.family == Family::Dense).unwrap()
}

/// The case of a seed, garbage in the padding of its weights; `None` where the family does not serve the operation.
fn case(seed: u64, target: &PtxTarget) -> Option<Case> {
    let (Op::Matmul(mut op), _) = cases::matrix_case(seed) else { return None };
    let mut rng = fastrand::Rng::with_seed(seed ^ 0xdec0de);
    op.activation = Activation::Float(if rng.bool() { DType::F16 } else { DType::Bf16 });
    let (op, m) = (Op::Matmul(op), 64 + rng.usize(..90));
    let caps = target.caps();
    if (family().refuses)(&op, caps).is_some() {
        return None;
    }
    let space = (family().space)(&op, caps, m);
    let schedule = space[rng.usize(..space.len())];
    let clean = Problem::random(&op, m, seed).unwrap();
    let problem = poison::packed(&clean, &schedule, caps, seed).unwrap();
    let compiled = compile(&op, &schedule, target).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    Some(Case { op, m, schedule, problem, compiled })
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn check(one: &Case, stage: &str, y: &[u8]) {
    let report = one.problem.check(one.schedule.family, &[y], Sample::Everything);
    assert!(report.passed(), "{stage}: {:?}\n  {:?} {:?}", report.first_wrong, one.op, one.schedule);
}

fn place(one: &Case, role: Role) -> usize {
    one.problem.buffers.iter().position(|buffer| buffer.signature.role == role).unwrap()
}

#[test]
fn reference_interpreter_and_machine_agree() {
    let (targets, mut served, mut formats) = (targets(), 0, BTreeSet::new());
    let turns = Turns::all();
    for seed in 0..number("BITSMITH_CASES", 120) {
        let target = &targets[seed as usize % targets.len()];
        let Some(one) = case(seed, target) else { continue };
        let Op::Matmul(op) = one.op else { unreachable!() };
        served += 1;
        formats.insert(op.weight.to_string());
        // The outputs and the decoded weights start unwritten: the interpreter traps on reads of what nothing wrote, and
        // finds bytes that the first kernel leaves out. It and the machine watch for races.
        let found = run::interpret(&one.compiled.legal, target.caps(), &one.problem, &one.schedule);
        let found = found.unwrap_or_else(|why| panic!("seed {seed}: {why}\n  {:?} {:?}", one.op, one.schedule));
        check(&one, &format!("seed {seed}, interpreter"), &found[0]);
        let grid = lower::grid(&one.op, &one.schedule, one.m);
        let (y, order) = (place(&one, Role::Output), turns[seed as usize % turns.len()]);
        let args = run::arguments(&one.problem);
        let after = machine::run(&one.compiled.legal, &one.compiled.artifact, grid, &args, order);
        let after = after.unwrap_or_else(|why| panic!("seed {seed}, {order:?}: {why}"));
        check(&one, &format!("seed {seed}, PTX machine under {order:?}"), &after[y]);
    }
    println!("{served} cases of {} formats", formats.len());
    assert!(served >= 40 && formats.len() >= 12 || number("BITSMITH_CASES", 120) < 120, "{served}: {formats:?}");
}

/// Y after a launch on the PTX machine as a device, the decoded weights holding this byte before.
fn on_device(
    device: &MachineDevice,
    artifact: &Artifact,
    one: &Case,
    content: u8,
) -> bitsmith_compiler::Result<Vec<u8>> {
    let program = device.load(artifact)?;
    let mut buffers = Vec::new();
    for buffer in &one.problem.buffers {
        let memory = device.allocate(buffer.bytes.len())?;
        let bytes =
            if buffer.signature.role == Role::Decoded { &vec![content; buffer.bytes.len()] } else { &buffer.bytes };
        device.upload(&memory, 0, bytes)?;
        buffers.push(memory);
    }
    let mut args: Vec<LaunchArg<'_>> = buffers.iter().map(|buffer| LaunchArg::Buffer(buffer.view())).collect();
    args.push(LaunchArg::I32(one.m as i32));
    let grid = lower::grid(&one.op, &one.schedule, one.m);
    device.launch(&Launch { program: &program, grid, args })?;
    let place = place(one, Role::Output);
    let mut y = vec![0; one.problem.buffers[place].bytes.len()];
    device.download(&buffers[place], 0, &mut y)?;
    Ok(y)
}

/// Cases that a small number of seeds serves, one per target.
fn some() -> Vec<(PtxTarget, Case)> {
    let one = |target: PtxTarget| {
        let case = (0..100).find_map(|seed| case(seed, &target)).expect("one of a hundred seeds is served");
        (target, case)
    };
    targets().map(one).into()
}

#[test]
fn a_launch_is_both_kernels_whatever_the_decoded_weights_held() {
    for (target, one) in some() {
        let device = MachineDevice::new(target.caps().name).unwrap();
        let runs: Vec<Vec<u8>> = [0, 0xff]
            .into_iter()
            .map(|content| on_device(&device, &one.compiled.artifact, &one, content).unwrap())
            .collect();
        check(&one, target.caps().name, &runs[0]);
        assert_eq!(runs[0], runs[1], "{}", target.caps().name);
        // The kernel alone multiplies what was there before: all of that counts.
        let alone = Artifact { preparation: None, ..one.compiled.artifact.clone() };
        let zero = on_device(&device, &alone, &one, 0).unwrap();
        assert_ne!(zero, runs[0], "the first kernel makes no difference");
    }
}

#[test]
fn the_decoded_weights_are_the_weights_rounded_once() {
    for (target, one) in some() {
        let Op::Matmul(op) = one.op else { unreachable!() };
        let Activation::Float(dtype) = op.activation else { unreachable!() };
        let first = lower::preparation(&one.op, &one.schedule, target.caps()).unwrap().expect("the family has one");
        let mut args = run::arguments(&one.problem);
        run::prepare(&first, target.caps(), &one.problem, &mut args).unwrap();
        let bytes = args[place(&one, Role::Decoded)].bytes();
        let weights = one.problem.weights.as_ref().unwrap();
        for row in 0..op.n {
            // Scale, code and zero point meet in f32, whose roundings are relative to the largest of them.
            let largest = (0..op.k).map(|column| weights.value(row, column).abs()).fold(0.0, f64::max);
            for column in 0..op.k {
                // The order of operand A (PTX ISA, "Matrix Fragments for mma.m16n8k16"), written down here anew.
                let (r, c) = (row % 16, column % 16);
                let lane = 4 * (r % 8) + c % 8 / 2;
                let element = 4 * (c / 8) + 2 * (r / 8) + c % 2;
                let tile = row / 16 * (op.k / 16) + column / 16;
                let at = 512 * tile + 16 * lane + 2 * element;
                let found = dtype.decode(u32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]])));
                let value = weights.value(row, column);
                let rounded = (op.decoding_loss() + op.matrix_loss()) * value.abs();
                // Below its normal numbers f16 has steps of 2^-24.
                let bound = rounded + 2f64.powi(-25) + 2f64.powi(-20) * largest;
                assert!(
                    (found - value).abs() <= bound,
                    "row {row}, column {column}: {found}, not {value}: {:?}",
                    one.op
                );
            }
        }
    }
}

#[test]
fn what_is_planted_is_found() {
    let (target, one) = some().swap_remove(2);
    let text = String::from_utf8(one.compiled.artifact.payload.bytes().to_vec()).unwrap();
    let args = run::arguments(&one.problem);
    let grid = lower::grid(&one.op, &one.schedule, one.m);
    let fault = |from: &str, to: &str| {
        let start =
            text.find(&format!(".entry {}", one.compiled.artifact.preparation.as_ref().unwrap().entry)).unwrap();
        assert!(text[start..].contains(from), "{from}");
        let broken = format!("{}{}", &text[..start], text[start..].replacen(from, to, 1));
        let artifact = Artifact { payload: Payload::Text(broken), ..one.compiled.artifact.clone() };
        machine::run(&one.compiled.legal, &artifact, grid, &args, Turns::all()[0]).expect_err(to)
    };
    // A store less leaves decoded weights unwritten, which the product then reads.
    let why = fault("st.global.v4", "// st.global.v4");
    assert!(why.contains("that nothing wrote"), "{}: {why}", target.caps().name);
}

#[test]
fn the_chooser_takes_it_for_many_rows_only_and_others_refuse_it_by_name() {
    let weight: Format = "int4-g128".parse().unwrap();
    let matmul = |activation, out| Matmul { n: 4096, k: 4096, weight, activation, out, epilogue: Epilogue::default() };
    let op = Op::Matmul(matmul(Activation::Float(DType::Bf16), DType::Bf16));
    let mut takers = 0;
    for name in ["a100", "rtx4090", "h200"] {
        let target = PtxTarget::named(name).unwrap();
        let taken = |m: usize| lower::choose(&op, target.caps(), m).unwrap().family == Family::Dense;
        assert!(!taken(16) && !taken(128), "{name}");
        let first = (7..=17).map(|bits| 1 << bits).find(|&m| taken(m));
        println!("{name}: int4-g128 by bf16 is decoded once from {first:?} rows on");
        takers += u32::from(first.is_some());
        // Whoever takes it once takes it for more rows, too.
        assert!(
            (7..=17).map(|bits| 1usize << bits).all(|m| taken(m) == first.is_some_and(|first| m >= first)),
            "{name}"
        );
        assert!(lower::points(&op, target.caps(), 512).unwrap().iter().any(|s| s.family == Family::Dense), "{name}");
        assert!(lower::points(&op, target.caps(), 8).unwrap().iter().all(|s| s.family != Family::Dense), "{name}");
    }
    assert!(takers > 0, "nobody takes it");
    let h200 = PtxTarget::named("h200").unwrap();
    let why = |op: &Op, caps| (family().refuses)(op, caps).expect("a refusal");
    let int8 = Op::Matmul(matmul("int8-token".parse().unwrap(), DType::F16));
    assert!(why(&int8, h200.caps()).contains("decodes weights to f16 or bf16"));
    let cpu = CpuTarget::named("x86-64-v3").unwrap();
    assert!(why(&op, cpu.caps()).contains("asynchronous copies"));
    // A loader of single kernels names both.
    let schedule = (family().space)(&op, h200.caps(), 512)[0];
    let artifact = compile(&op, &schedule, &h200).unwrap().artifact;
    let refusal = artifact.alone("HIP").unwrap_err().to_string();
    assert!(refusal.contains("decode_n4096") && refusal.contains("HIP"), "{refusal}");
}

#[test]
fn a_bundle_holds_both_kernels_and_runs_them() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("kernels").display().to_string();
    let generate = ["generate", "--recipe", "W4A16", "--shapes", "192x256", "--device", "rtx4090", "--m", "65536"];
    ok(&[&generate[..], &["--out", &out]].concat());
    let manifest: Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{out}/manifest.json")).unwrap()).unwrap();
    let kernels = manifest["targets"][0]["kernels"].as_array().unwrap();
    let kernel = kernels.iter().find(|kernel| kernel["schedule"]["family"] == "dense").expect("a kernel of the family");
    let first = &kernel["preparation"];
    let text = std::fs::read_to_string(format!("{out}/{}", kernel["file"].as_str().unwrap())).unwrap();
    for entry in [&first["entry"], &kernel["entry"]] {
        assert!(text.contains(&format!(".visible .entry {}(", entry.as_str().unwrap())), "{entry}");
    }
    let decoded = kernel["args"].as_array().unwrap().iter().find(|arg| arg["name"] == "decoded").unwrap();
    assert_eq!(decoded["bytes"], 192 * 256 * 2);
    assert_eq!((&decoded["written"], &decoded["zeroed"]), (&Value::Bool(true), &Value::Null));
    let names: Vec<&str> = first["args"].as_array().unwrap().iter().map(|arg| arg["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["w", "decoded"]);
    let report = ok_json(&["verify", &out, "--device", "ptx:rtx4090", "--m", "70", "--json"]);
    let rows = report["results"].as_array().unwrap();
    assert!(rows.iter().any(|row| row["entry"] == kernel["entry"] && row["check"]["wrong"] == 0), "{report:#}");
}
