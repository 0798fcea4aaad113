//! Invariant 3: reference = interpreter = CPU over a seeded sample of formats, activations, operations and ragged shapes.
//!
//! The interpreter runs the kernel as lowered and as legalized; the CPU runs the legalized one. Legalized, the two agree bit
//! for bit; with the reference they agree within the operation's bound. Both forms print and parse to themselves. Padding of
//! packed weights holds garbage, and on the CPU the answer is the same, bit for bit, as over zeros.

use bitsmith_autotune::execute::Prepared;
use bitsmith_autotune::problem::{Problem, Sample};
use bitsmith_compiler::compile;
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::ir::parse;
use bitsmith_compiler::op::{Epilogue, Matmul, Op};
use bitsmith_compiler::schedule::{Family, Schedule};
use bitsmith_runtime::{Device, cpu::CpuDevice};
use bitsmith_tests::cases::{self, Case};
use bitsmith_tests::{cpu_levels, poison, run};

/// Number of cases; `BITSMITH_CASES` changes it.
fn count() -> u64 {
    std::env::var("BITSMITH_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(3000)
}

/// Runs one case everywhere; returns the largest ratio of an error to its bound.
fn agree(device: &CpuDevice, case: &Case) -> Result<f64, String> {
    let (caps, seed) = (device.caps(), case.seed);
    let at = |stage: &str, why: String| format!("seed {seed}, {stage}: {why}\n  {case:?}");
    let clean = Problem::random(&case.op, case.m, seed).map_err(|e| at("problem", e.to_string()))?;
    let mut problem = clean.clone();
    poison::padding(&mut problem, seed);
    let compiled = compile(&case.op, &case.schedule, device.target()).map_err(|e| at("compile", e.to_string()))?;
    for kernel in [&compiled.kernel, &compiled.legal] {
        let again = parse(&kernel.to_string()).map_err(|e| at("parse", e.to_string()))?;
        if again != *kernel {
            return Err(at("parse", "what was printed parses to another kernel".into()));
        }
    }
    let check = |stage: &str, outputs: &[Vec<u8>]| {
        let outputs: Vec<&[u8]> = outputs.iter().map(Vec::as_slice).collect();
        let report = problem.check(case.schedule.family, &outputs, Sample::Everything);
        if report.passed() { Ok(report.worst_ratio) } else { Err(at(stage, report.first_wrong.unwrap_or_default())) }
    };
    let lowered = run::interpret(&compiled.kernel, caps, &problem, &case.schedule).map_err(|e| at("interpreter", e))?;
    let worst = check("interpreter", &lowered)?;
    let legal = run::interpret(&compiled.legal, caps, &problem, &case.schedule).map_err(|e| at("legalized", e))?;
    let launch = |problem: &Problem| {
        let prepared = Prepared::new(device, problem, &compiled.artifact, &case.schedule, 1)
            .map_err(|e| at("load", e.to_string()))?;
        prepared.launch(0).map_err(|e| at("launch", e.to_string()))?;
        prepared.outputs().map_err(|e| at("outputs", e.to_string()))
    };
    let native = launch(&problem)?;
    if native != launch(&clean)? {
        return Err(at("CPU", "garbage in the padding of the weights changes the answer".into()));
    }
    let worst = worst.max(check("CPU", &native)?);
    if legal != native {
        let byte = legal.iter().flatten().zip(native.iter().flatten()).position(|(a, b)| a != b);
        return Err(at("CPU against interpreter", format!("byte {byte:?} differs")));
    }
    Ok(worst)
}

#[test]
fn reference_interpreter_and_cpu_agree() {
    // All cases on the host's own level, a tenth of them on every other one that runs here.
    for (i, target) in cpu_levels().into_iter().enumerate() {
        let device = CpuDevice::with_target(target, 2).unwrap();
        let cases = if i == 0 { count() } else { count().div_ceil(10) };
        let mut failures = Vec::new();
        let mut worst: f64 = 0.0;
        for seed in 0..cases {
            match agree(&device, &cases::case(seed, device.caps())) {
                Ok(ratio) => worst = worst.max(ratio),
                Err(why) => failures.push(why),
            }
        }
        let name = device.caps().name;
        println!("{cases} cases on {name}, worst error {worst:.3} of its bound");
        let shown = failures.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
        assert!(failures.is_empty(), "{} of {cases} cases on {name} failed:\n{shown}", failures.len());
    }
}

/// Weights, activations, N, K, rows, and the tile: rows, columns, and one knob more.
type Tiled = (&'static str, &'static str, usize, usize, usize, (u32, u32, u32));

/// The operation, its rows and its tile.
fn parsed((weight, activation, n, k, m, tile): Tiled) -> (Op, usize, (u32, u32, u32)) {
    let (weight, activation) = (weight.parse().unwrap(), activation.parse().unwrap());
    let op = Matmul { n, k, weight, activation, out: DType::F32, epilogue: Epilogue::default() };
    (Op::Matmul(op).checked().unwrap(), m, tile)
}

/// Tiles by strips. Columns are more than a block holds, and most cases end with a part of a block, of a tile of rows or of a strip.
const IN_BLOCKS: [Tiled; 23] = [
    // Words in pairs: one segment over several blocks, groups, offsets, zero points, more rows than wait at once.
    ("int8-channel", "int8-token", 40, 1536, 7, (5, 16, 2)),
    ("int8-channel", "int8-token", 56, 768, 9, (2, 32, 1)),
    ("int8-channel", "int8-g128", 24, 1152, 3, (11, 8, 8)),
    ("q8_0", "int8-token", 40, 1056, 6, (5, 16, 3)),
    ("q8_0", "int8-g32", 33, 1088, 1, (1, 16, 1)),
    ("int8-g128-asym", "int8-g128", 48, 1152, 11, (4, 16, 3)),
    ("int8-g64", "int8-token", 16, 576, 197, (5, 16, 1)),
    // Two levels of scales: codes with an offset and with offsets per group, groups of 16 and 32, more rows than wait at once.
    ("q6_k", "int8-token", 40, 1280, 7, (6, 16, 2)),
    ("q6_k", "int8-g512", 48, 1536, 11, (4, 8, 3)),
    ("q3_k", "int8-token", 24, 768, 9, (5, 16, 1)),
    ("q4_k", "int8-token", 56, 1280, 3, (3, 32, 1)),
    ("q5_k", "int8-g256", 33, 768, 1, (1, 16, 1)),
    ("q2_k", "int8-token", 16, 1536, 197, (5, 16, 1)),
    // Floats.
    ("int4-g32", "f16", 72, 288, 7, (3, 32, 2)),
    ("int4-g128-asym", "bf16", 40, 640, 13, (6, 16, 3)),
    ("q6_k", "f32", 24, 512, 5, (3, 16, 8)),
    ("q4_k", "f16", 17, 768, 4, (2, 16, 1)),
    ("int2-g64", "f16", 16, 320, 195, (6, 16, 1)),
    // Dot products of bf16, where there are any: offsets, byte tables and numbers, 8-bit floats, more rows than wait at once.
    ("q4_k", "bf16", 72, 768, 7, (3, 32, 2)),
    ("int8-channel", "bf16", 40, 1536, 9, (4, 16, 2)),
    ("mxfp4", "bf16", 48, 1088, 5, (2, 16, 3)),
    ("fp8e4m3-channel", "fp8-g128", 33, 1152, 6, (5, 16, 1)),
    ("int4-g32", "bf16", 64, 576, 197, (6, 16, 1)),
];

#[test]
fn tiles_in_blocks_of_columns_agree() {
    let mut ran = 0;
    for target in cpu_levels() {
        let device = CpuDevice::with_target(target, 2).unwrap();
        // Vectors of 16 bytes take no blocks, so that these schedules are none of theirs.
        if device.caps().vector_bytes < 32 {
            continue;
        }
        for (seed, (op, m, (tile_m, tile_n, strips))) in IN_BLOCKS.into_iter().map(parsed).enumerate() {
            let schedule = Schedule::single(Family::Tile, tile_m, tile_n, 4).with_strips(strips);
            match agree(&device, &Case { seed: seed as u64, op, m, schedule }) {
                Ok(_) => ran += 1,
                // A level with an instruction for bytes takes these in no blocks, and says so; nor do vectors of 64 bytes where
                // columns are not whole vectors of activations.
                Err(why) if strips > 1 && why.contains("accepted here: 1 to 1") => {
                    let partial = device.caps().vector_bytes == 64 && !IN_BLOCKS[seed].3.is_multiple_of(64);
                    assert!(device.caps().name.contains("vnni") || partial, "{why}");
                }
                // Vectors of 64 bytes fill wider tiles.
                Err(why) if why.contains("tile_n is") => assert_eq!(device.caps().vector_bytes, 64, "{why}"),
                Err(why) => panic!("{}: {why}", device.caps().name),
            }
        }
    }
    if ran == 0 {
        bitsmith_tests::skip("avx2", "tiles_in_blocks_of_columns_agree", "no level with vectors of 32 bytes runs here");
    }
}

/// Tiles by unroll. Short codes under two levels of scales, which few rows meet in whole numbers: offsets per group and a bias, N
/// that is no multiple of a tile or a block, a row past the last one, one span and several, activations with scales for one span,
/// for several and for all.
const SPANS: [Tiled; 6] = [
    ("q2_k", "int8-token", 40, 1280, 1, (1, 16, 1)),
    ("q2_k", "int8-g512", 33, 1536, 5, (2, 16, 2)),
    ("q2_k", "int8-token", 17, 256, 2, (2, 8, 1)),
    ("q3_k", "int8-g256", 24, 768, 1, (1, 32, 2)),
    ("q3_k", "int8-token", 48, 512, 3, (1, 8, 4)),
    ("q3_k", "int8-token", 71, 1024, 1, (1, 16, 1)),
];

#[test]
fn few_rows_agree_under_two_levels_of_scales() {
    let mut ran = 0;
    for target in cpu_levels() {
        let device = CpuDevice::with_target(target, 2).unwrap();
        let lanes = device.caps().vector_bytes / 4;
        for (seed, (op, m, (tile_m, tile_n, unroll))) in SPANS.into_iter().map(parsed).enumerate() {
            let schedule = Schedule::single(Family::Stream, tile_m, tile_n.max(lanes), unroll);
            agree(&device, &Case { seed: seed as u64, op, m, schedule })
                .unwrap_or_else(|why| panic!("{}: {why}", device.caps().name));
            ran += 1;
        }
    }
    assert!(ran >= SPANS.len(), "no level ran");
}
