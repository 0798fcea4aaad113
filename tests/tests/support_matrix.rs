//! `docs/support.md`, the table of formats by targets, is made here and must not be stale.
//!
//! A cell is what the compiler does: each format's matmul by integers and by floats, with few rows and with many, and its
//! decoding are compiled for the target. What a mark means beyond that, how a target's code was run, is said in
//! [`COLUMNS`] next to the test that runs it. `BITSMITH_UPDATE=1 cargo test --workspace --test suite support_matrix::` writes
//! the file anew.

use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::Format;
use bitsmith_compiler::lower::choose;
use bitsmith_compiler::op::{Dequant, Epilogue, Matmul, Op};
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::cpu::CpuTarget;
use bitsmith_compiler::target::ptx::PtxTarget;
use bitsmith_compiler::target::spirv::SpirvTarget;
use bitsmith_compiler::target::wgsl::WgslTarget;
use bitsmith_compiler::{Result, compile};
use std::fmt::Write;
use std::path::Path;

/// How code for a target was run.
#[derive(Clone, Copy)]
enum Evidence {
    /// On a processor of its own.
    Hardware,
    /// Under an emulator or on a software machine, and past the target's own validator.
    Here,
}

impl Evidence {
    fn mark(self) -> &'static str {
        match self {
            Evidence::Hardware => "ran on hardware",
            Evidence::Here => "ran here and validated",
        }
    }
}

type Open = fn() -> Result<Box<dyn Target>>;

fn cpu<const LEVEL: usize>() -> Result<Box<dyn Target>> {
    const LEVELS: [&str; 4] = ["x86-64-v3", "x86-64-v4+vnni", "aarch64+i8mm", "riscv64"];
    Ok(Box::new(CpuTarget::named(LEVELS[LEVEL])?))
}

fn ptx() -> Result<Box<dyn Target>> {
    let name = PtxTarget::names().next().expect("PTX has targets");
    Ok(Box::new(PtxTarget::named(name)?))
}

fn vulkan() -> Result<Box<dyn Target>> {
    Ok(Box::new(SpirvTarget::named("vulkan")?))
}

fn webgpu() -> Result<Box<dyn Target>> {
    Ok(Box::new(WgslTarget::named("webgpu")?))
}

/// The targets, each with how its code was run and the test that does it.
const COLUMNS: [(&str, Open, Evidence); 7] = [
    // differential.rs, on every machine with AVX2.
    ("x86-64-v3", cpu::<0>, Evidence::Hardware),
    // x86_machine.rs, on a software machine; differential.rs on machines that have it.
    ("x86-64-v4+vnni", cpu::<1>, Evidence::Here),
    // foreign.rs, under qemu.
    ("aarch64+i8mm", cpu::<2>, Evidence::Here),
    ("riscv64", cpu::<3>, Evidence::Here),
    // ptx_validate.rs and ptx_machine.rs, through ptxas and on the PTX machine.
    ("PTX", ptx, Evidence::Here),
    // vulkan.rs, through spirv-val and on Mesa's driver for the CPU.
    ("Vulkan", vulkan, Evidence::Here),
    // wgsl.rs and browser.rs, through naga and in a browser on a software device.
    ("WebGPU", webgpu, Evidence::Here),
];

/// What is made for each format.
fn operations(format: Format) -> Vec<(Op, usize)> {
    // Every container takes these sizes: whole blocks of 256, whole words along N.
    let (n, k) = (32, 512);
    let matmul = |activation: &str| {
        let activation = activation.parse().expect("an activation");
        Op::Matmul(Matmul { n, k, weight: format, activation, out: DType::F32, epilogue: Epilogue::default() })
    };
    let dequant = Op::Dequant(Dequant { n, k, weight: format, out: DType::F16 });
    vec![(matmul("int8-token"), 1), (matmul("int8-token"), 32), (matmul("bf16"), 1), (matmul("bf16"), 32), (dequant, 1)]
}

fn compiles(target: &dyn Target, format: Format) -> bool {
    operations(format).iter().all(|(op, m)| {
        let made = choose(op, target.caps(), *m).and_then(|schedule| compile(op, &schedule, target));
        made.is_ok()
    })
}

fn table() -> String {
    let mut text = String::from(
        "# Formats by targets\n\nMade by `tests/tests/support_matrix.rs` from what the compiler does. A mark stands where matmul by integers and by floats,\nwith few rows and with many, and decoding all compile; it says how code for that target was run. *Not yet*: they do not\nall compile.\n\n| format |",
    );
    for (name, ..) in COLUMNS {
        let _ = write!(text, " {name} |");
    }
    text += "\n|---|";
    text += &"---|".repeat(COLUMNS.len());
    let targets =
        COLUMNS.map(|(name, open, evidence)| (open().unwrap_or_else(|error| panic!("{name}: {error}")), evidence));
    for named in Format::ALL {
        let _ = write!(text, "\n| {} |", named.name);
        for (target, evidence) in &targets {
            let mark = if compiles(&**target, named.format) { evidence.mark() } else { "not yet" };
            let _ = write!(text, " {mark} |");
        }
    }
    text + "\n"
}

#[test]
fn the_support_matrix_is_fresh() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/support.md");
    let made = table();
    // No format may be without a target at all.
    assert!(
        made.lines().filter(|line| line.starts_with("| ")).all(|line| line.contains("ran") || line.contains("format"))
    );
    if std::env::var_os("BITSMITH_UPDATE").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(kept, made, "docs/support.md is stale: run this test with BITSMITH_UPDATE=1");
}
