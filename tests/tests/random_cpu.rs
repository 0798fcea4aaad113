//! Seeded random kernels through every stage: print, parse, verify, legalize, interpreter, CPU. The bytes are the same.

use bitsmith_compiler::caps::Feature;
use bitsmith_compiler::ir::interp::ArgValue;
use bitsmith_compiler::ir::parse;
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::cpu::CpuTarget;
use bitsmith_runtime::Device;
use bitsmith_runtime::cpu::CpuDevice;
use bitsmith_tests::cpu_levels;
use bitsmith_tests::random::{Case, Options, kernel};
use bitsmith_tests::stages::{interpret, on_device, proven};

/// Kernels per set of options, 10,000 in all; `BITSMITH_SEEDS` changes it.
fn seeds() -> u64 {
    std::env::var("BITSMITH_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5000)
}

/// Everything that one kernel goes through.
fn stages(device: &CpuDevice, case: &Case) -> Result<(), String> {
    let text = case.kernel.to_string();
    let again = parse(&text).map_err(|fault| format!("{fault}"))?;
    if again != case.kernel {
        return Err(format!("parsed to another kernel:\n{text}"));
    }
    let expected = interpret(&case.kernel, case)?;
    let legal = device.target().legalize(&proven(&case.kernel, 1)?).map_err(|e| e.to_string())?;
    if interpret(&legal, case)? != expected {
        return Err(format!("legalized to another kernel:\n{text}"));
    }
    let artifact = device.target().emit(&proven(&legal, 1)?).map_err(|e| e.to_string())?;
    let outputs = on_device(device, &artifact, case).map_err(|e| e.to_string())?;
    match expected.iter().zip(&outputs).position(|(expected, got)| expected.bytes() != got) {
        Some(i) => {
            let byte = expected[i].bytes().iter().zip(&outputs[i]).position(|(a, b)| a != b);
            Err(format!("argument {i} differs at byte {byte:?} on the CPU:\n{text}"))
        }
        None => Ok(()),
    }
}

/// All seeds on the host's own level, a fifth of them on every other one that runs here.
fn check(options: Options) {
    for (i, target) in cpu_levels().into_iter().enumerate() {
        if target.caps().vector_bytes >= options.vector_bytes.min(32) {
            check_on(target, options, if i == 0 { seeds() } else { seeds().div_ceil(5) });
        }
    }
}

fn check_on(target: CpuTarget, options: Options, seeds: u64) {
    let has = |feature| target.caps().features.has(feature);
    let permute_long = options.vector_bytes == 64 && has(Feature::PermuteLong);
    let (dot2_bf16, dot2_bytes) = (has(Feature::Dot2Bf16), has(Feature::Dot2));
    let options = Options { dot2_bf16, dot2_bytes, permute_long, ..options };
    let device = CpuDevice::with_target(target, 1).unwrap();
    let first: u64 = std::env::var("BITSMITH_FIRST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    for seed in first..first + seeds {
        let case = kernel(seed, options);
        if let Err(why) = stages(&device, &case) {
            panic!("seed {seed} of {options:?} on {:?}: {why}", device.target());
        }
    }
}

#[test]
fn kernels_for_the_cpu() {
    check(Options::CPU);
}

#[test]
fn kernels_without_narrow_vectors() {
    check(Options { narrow_vectors: false, ..Options::CPU });
}

#[test]
fn kernels_with_wide_vectors() {
    check(Options { vector_bytes: 64, ..Options::CPU });
}

/// A vector read at an address that is no multiple of its size, straight into each comparison and a sum:
/// below AVX a processor faults on such an operand in memory, so the read must be an instruction of its own.
#[test]
fn vectors_at_any_address_are_compared() {
    let floats = |from: i32| (0..64).map(move |i| ((i * 37 + from) % 23 - 11) as f32 / 4.0);
    let bytes = |from| floats(from).flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
    for (op, lanes) in ["eq", "ne", "lt", "le"].into_iter().flat_map(|op| [4, 8, 16].map(|lanes| (op, lanes))) {
        let size = 4 * lanes;
        let text = format!(
            "kernel @compare(x: read align 64, y: read align 64, out: write align 64) workgroup 1 1 1 {{
  %0: i32x{lanes} = const -1
  %1: i32x{lanes} = const 0
  %2: f32x{lanes} = load x[4] align 4
  %3: f32x{lanes} = load y[8] align 8
  %4: boolx{lanes} = {op} %2, %3
  %5: i32x{lanes} = select %4, %0, %1
  store out[0] align 64, %5
  %6: f32x{lanes} = load x[20] align 4
  %7: f32x{lanes} = load y[40] align 8
  %8: f32x{lanes} = add %6, %7
  store out[{size}] align 16, %8
}}
"
        );
        let case = Case {
            kernel: parse(&text).unwrap_or_else(|fault| panic!("{fault}\n{text}")),
            subgroup: 1,
            grid: [1, 1, 1],
            args: vec![
                ArgValue::filled(bytes(0)),
                ArgValue::filled(bytes(5)),
                ArgValue::filled(vec![0; 2 * size as usize]),
            ],
        };
        for target in cpu_levels() {
            let device = CpuDevice::with_target(target, 1).unwrap();
            if let Err(why) = stages(&device, &case) {
                panic!("{op} of {lanes} lanes on {:?}: {why}", device.target());
            }
        }
    }
}
