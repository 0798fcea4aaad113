//! Code for processors that are not this one: differential cases as object files, linked with a C driver by a cross
//! compiler, run under qemu-user, compared with the interpreter bit for bit and with the reference within its bound.
//!
//! A level runs on a processor that has its features and, where qemu knows one, no more. Skipped by name where the cross
//! compiler or qemu is absent.

use bitsmith_autotune::problem::{Problem, Sample};
use bitsmith_compiler::artifact::{ArgKind, Artifact};
use bitsmith_compiler::compile;
use bitsmith_compiler::lower;
use bitsmith_compiler::schedule::{Family, Schedule};
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::cpu::{CpuTarget, object};
use bitsmith_tests::{cases, poison, run, skip};
use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Output};

/// An architecture: its cross compiler, its qemu and the oldest version of it that will do.
struct Machine {
    compiler: &'static str,
    emulator: &'static str,
    oldest: u32,
}

const ARM: Machine = Machine { compiler: "aarch64-linux-gnu-gcc", emulator: "qemu-aarch64", oldest: 7 };
/// qemu 7 gives up on some vector instructions: `decode_save_opc: Assertion`, its issue 1441.
const RISCV: Machine = Machine { compiler: "riscv64-linux-gnu-gcc", emulator: "qemu-riscv64", oldest: 8 };

/// Cases per level; `BITSMITH_FOREIGN_CASES` changes it.
fn count() -> u64 {
    std::env::var("BITSMITH_FOREIGN_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(150)
}

/// A case that was compiled, with what its outputs must be.
struct Compiled {
    place: String,
    problem: Problem,
    family: Family,
    outputs: Vec<Vec<u8>>,
    launch: Vec<u8>,
}

#[test]
fn aarch64_agrees() {
    agrees(&ARM, "aarch64", "cortex-a53", 1_000_000);
}

#[test]
fn aarch64_with_dot_products_agrees() {
    agrees(&ARM, "aarch64+dotprod", "neoverse-n1", 2_000_000);
}

#[test]
fn aarch64_with_mixed_dot_products_agrees() {
    agrees(&ARM, "aarch64+i8mm", "max", 3_000_000);
}

#[test]
fn riscv64_agrees() {
    agrees(&RISCV, "riscv64", "rv64,v=true,vlen=128,elen=64,vext_spec=v1.0", 4_000_000);
}

/// Cases of seeds from `first` on, on one level and one emulated processor.
fn agrees(machine: &Machine, level: &str, processor: &str, first: u64) {
    let test = format!("{level} under {}", machine.emulator);
    for tool in [machine.compiler, machine.emulator] {
        if Command::new(tool).arg("--version").output().is_err() {
            return skip("qemu", &test, &format!("{tool} is absent"));
        }
    }
    let version = version(machine.emulator);
    if version < machine.oldest {
        let why = format!("{} is version {version}, {} is needed", machine.emulator, machine.oldest);
        return skip("qemu-8", &test, &why);
    }
    let target = CpuTarget::named(level).unwrap();
    let mut artifacts = Vec::new();
    let mut compiled = Vec::new();
    let mut failures = Vec::new();
    for seed in first..first + count() {
        match prepare(&target, seed, artifacts.len()) {
            Ok((artifact, case)) => {
                artifacts.push(artifact);
                compiled.push(case);
            }
            Err(why) => failures.push(why),
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let bytes = object(&artifacts.iter().collect::<Vec<_>>(), target.triple()).unwrap();
    std::fs::write(folder.path().join("kernels.o"), bytes).unwrap();
    std::fs::write(
        folder.path().join("launches"),
        compiled.iter().flat_map(|c| &c.launch).copied().collect::<Vec<_>>(),
    )
    .unwrap();
    std::fs::write(folder.path().join("table.h"), table(artifacts.iter().map(|a| a.entry.as_str()))).unwrap();
    let output = execute(machine, processor, folder.path());
    compare(&compiled, &output, &mut failures);
    println!("{} cases on {level} ({processor})", compiled.len());
    let shown = failures.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
    assert!(failures.is_empty(), "{} of {} cases failed on {level}:\n{shown}", failures.len(), count());
}

/// The major version that a qemu tells.
fn version(emulator: &str) -> u32 {
    let output = Command::new(emulator).arg("--version").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = text.split("version ").nth(1).and_then(|rest| rest.split('.').next()?.parse().ok());
    number.unwrap_or_else(|| panic!("{emulator} --version: no version in\n{text}"))
}

/// Compiles a case and asks the interpreter what it makes.
fn prepare(target: &CpuTarget, seed: u64, index: usize) -> Result<(Artifact, Compiled), String> {
    let case = cases::case(seed, target.caps());
    let place = format!("seed {seed}: {case:?}");
    let at = |why: String| format!("{place}: {why}");
    let mut problem = Problem::random(&case.op, case.m, seed).map_err(|e| at(e.to_string()))?;
    poison::padding(&mut problem, seed);
    let made = compile(&case.op, &case.schedule, target).map_err(|e| at(e.to_string()))?;
    let outputs = run::interpret(&made.legal, target.caps(), &problem, &case.schedule).map_err(at)?;
    let mut artifact = made.artifact;
    // Two cases may be the same kernel.
    artifact.entry = format!("case_{index}");
    let launch = launch(&problem, &case.schedule, index, &artifact);
    Ok((artifact, Compiled { place, problem, family: case.schedule.family, outputs, launch }))
}

/// A launch as the driver reads it.
fn launch(problem: &Problem, schedule: &Schedule, index: usize, artifact: &Artifact) -> Vec<u8> {
    let mut out = Vec::new();
    let numbers = |out: &mut Vec<u8>, list: &[usize]| out.extend(list.iter().flat_map(|&x| (x as u64).to_le_bytes()));
    numbers(&mut out, &[index, artifact.shared_bytes as usize]);
    numbers(&mut out, &lower::grid(&problem.op, schedule, problem.m).map(|n| n as usize));
    numbers(&mut out, &[artifact.args.len()]);
    let mut buffers = problem.buffers.iter();
    for arg in &artifact.args {
        match arg.kind {
            ArgKind::Read { align } | ArgKind::Write { align } | ArgKind::ReadWrite { align } => {
                let buffer = buffers.next().expect("one buffer per parameter");
                numbers(&mut out, &[1 + buffer.signature.written as usize, buffer.bytes.len(), align as usize]);
                out.extend(&buffer.bytes);
            }
            // The one scalar is the number of rows.
            ArgKind::I32 | ArgKind::I64 | ArgKind::F32 => numbers(&mut out, &[0, 8, 8, problem.m]),
        }
    }
    out
}

/// The header that the driver includes: every entry in order.
fn table<'a>(entries: impl Iterator<Item = &'a str> + Clone) -> String {
    let mut text =
        "#include <stdint.h>\ntypedef void kernel(const uint64_t *, void *, uint64_t, uint64_t);\n".to_string();
    for entry in entries.clone() {
        let _ = writeln!(text, "extern kernel {entry};");
    }
    let list: Vec<&str> = entries.collect();
    let _ = writeln!(
        text,
        "enum {{ KERNELS = {} }};\nstatic kernel *const TABLE[] = {{ {} }};",
        list.len(),
        list.join(", ")
    );
    text
}

/// Links and runs; what the driver wrote.
fn execute(machine: &Machine, processor: &str, folder: &Path) -> Vec<u8> {
    let driver = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign/driver.c");
    let succeed = |command: &mut Command| {
        let Output { status, stderr, .. } = command.current_dir(folder).output().unwrap();
        assert!(status.success(), "{command:?}: {status}\n{}", String::from_utf8_lossy(&stderr));
    };
    let flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-static", "-I.", "-o", "program"];
    succeed(Command::new(machine.compiler).args(flags).arg(driver).arg("kernels.o"));
    succeed(Command::new(machine.emulator).args(["-cpu", processor, "./program", "launches", "outputs"]));
    std::fs::read(folder.join("outputs")).unwrap()
}

fn compare(compiled: &[Compiled], mut output: &[u8], failures: &mut Vec<String>) {
    for case in compiled {
        let mut native = Vec::new();
        for expected in &case.outputs {
            let Some((one, rest)) = output.split_at_checked(expected.len()) else {
                return failures.push(format!("{}: the outputs end early", case.place));
            };
            native.push(one);
            output = rest;
        }
        let report = case.problem.check(case.family, &native, Sample::Everything);
        if !report.passed() {
            failures.push(format!("{}: {}", case.place, report.first_wrong.unwrap_or_default()));
        } else if case.outputs != native {
            failures.push(format!("{}: differs from the interpreter", case.place));
        }
    }
    if !output.is_empty() {
        failures.push(format!("{} bytes more than the outputs have", output.len()));
    }
}
