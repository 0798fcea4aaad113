//! Cases of the differential tests and of the hardware suite, drawn from a seed: format × activation × operation × ragged
//! shape × schedule.

use bitsmith_compiler::caps::Caps;
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::Format;
use bitsmith_compiler::lower::{self, MATRIX_FAMILIES, families};
use bitsmith_compiler::op::{Activation, Dequant, Epilogue, Matmul, Norm, Op, Per, Quantize};
use bitsmith_compiler::schedule::Schedule;
use bitsmith_compiler::{Error, Result};

/// One case.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Seed of its inputs.
    pub seed: u64,
    /// What to compute.
    pub op: Op,
    /// Rows of activations.
    pub m: usize,
    /// How.
    pub schedule: Schedule,
}

/// The case of a seed for devices of these caps.
///
/// # Panics
/// If the suite draws an operation that no family serves: each combination drawn here is promised to work.
pub fn case(seed: u64, caps: &Caps) -> Case {
    let (op, m, mut rng) = draw(seed);
    let space = lower::space(&op, caps, m).unwrap_or_else(|error| panic!("seed {seed}: {op:?}: {error}"));
    Case { seed, op, m, schedule: space[rng.usize(..space.len())] }
}

/// The case of a seed, where every family that can serve its operation gets its turn, however small its space; every
/// fourth one is an operation that matrix families are for.
pub fn of_any_family(seed: u64, caps: &Caps) -> Result<Case> {
    let (op, m) = match seed % 8 {
        3 => matrix(seed),
        7 => matrix_case(seed),
        _ => operation(seed),
    };
    let mut able = families(&op, caps)?;
    able.extend(MATRIX_FAMILIES.iter().filter(|family| (family.refuses)(&op, caps).is_none()));
    let mut rng = fastrand::Rng::with_seed(seed);
    let start = rng.usize(..able.len());
    able.rotate_left(start);
    for family in &able {
        let space = (family.space)(&op, caps, m);
        if !space.is_empty() {
            return Ok(Case { seed, op, m, schedule: space[rng.usize(..space.len())] });
        }
    }
    Err(Error::Unsupported(format!("seed {seed} on {}: no family has a schedule for {op:?}", caps.name)))
}

/// An operation that matrix families are for, mostly, and its rows: groups of whole tiles, ragged N and M.
pub fn matrix(seed: u64) -> (Op, usize) {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x3a77);
    let formats = [
        "int4-g64",
        "int4-g128",
        "int4-channel",
        "uint4-g128-asym",
        "int4-g64-asym-bf16",
        "int8-channel",
        "int8-g64",
        "int8-g32-asym",
        "int8-tensor-f32",
        "int2-g128",
        "uint2-g128-asym",
        "ternary-g128",
        "ternary-channel-bf16",
    ];
    let weight = formats[rng.usize(..formats.len())];
    let k = 128 * (1 + rng.usize(..4));
    let activations = [
        Activation::Float(DType::F16),
        Activation::Float(DType::Bf16),
        Activation::Int8(Per::Token),
        Activation::Int8(Per::Group(128)),
    ];
    let op = Matmul {
        n: 1 + rng.usize(..140),
        k,
        weight: weight.parse().expect("the formats of this list are of the grammar"),
        activation: activations[rng.usize(..activations.len())],
        out: [DType::F16, DType::Bf16, DType::F32][rng.usize(..3)],
        epilogue: Epilogue { bias: rng.bool(), silu_mul: rng.u32(..4) == 0, residual: rng.bool() },
    };
    let most = if rng.bool() { 8 } else { 40 };
    (Op::Matmul(op), 1 + rng.usize(..most))
}

/// The operation of a seed and its rows, and what is left of the seed's random numbers.
fn draw(seed: u64) -> (Op, usize, fastrand::Rng) {
    let mut rng = fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let (op, m) = match rng.u32(..10) {
        0 => (Op::Quantize(quantize(&mut rng)), 1 + rng.usize(..9)),
        1 => {
            let weight = format(&mut rng);
            let k = columns(&mut rng, &weight);
            let n = rows(&mut rng, &weight, k, 40);
            (Op::Dequant(Dequant { n, k, weight, out: float(&mut rng) }), 1)
        }
        _ => matmul(&mut rng),
    };
    (op, m, rng)
}

/// The operation of a seed and its rows.
pub fn operation(seed: u64) -> (Op, usize) {
    let (op, m, _) = draw(seed);
    (op, m)
}

/// The case of a seed that a family of matrix instructions serves on a device: groups of whole tiles, ragged N and M.
///
/// # Panics
/// If a hundred draws find none that the device serves.
pub fn matrix_case_for(seed: u64, caps: &Caps) -> Case {
    let mut rng = fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x3a77);
    for _ in 0..100 {
        let (op, m) = matrix_matmul(&mut rng);
        let able = MATRIX_FAMILIES.iter().filter(|family| (family.refuses)(&op, caps).is_none());
        let space: Vec<Schedule> = able.flat_map(|family| (family.space)(&op, caps, m)).collect();
        if !space.is_empty() {
            return Case { seed, op, m, schedule: space[rng.usize(..space.len())] };
        }
    }
    panic!("seed {seed}: no matrix family of {} serves any of a hundred operations", caps.name);
}

fn matrix_matmul(rng: &mut fastrand::Rng) -> (Op, usize) {
    let kinds = [
        ("fp8e4m3", DType::E4m3fn),
        ("fp8e4m3fnuz", DType::E4m3fnuz),
        ("fp8e5m2", DType::E5m2),
        ("fp8e5m2fnuz", DType::E5m2fnuz),
    ];
    let (weight, activation) = if rng.u32(..4) == 0 {
        let (name, _) = pick(rng, &kinds);
        let granularity = pick(rng, &["channel", "tensor", "g128", "g32", "block128"]);
        let per =
            if granularity == "g32" { Per::Group(32) } else { pick(rng, &[Per::Token, Per::Tensor, Per::Group(128)]) };
        (format!("{name}-{granularity}"), Activation::Fp8(pick(rng, &kinds).1, per))
    } else {
        let floats = [DType::F16, DType::Bf16].map(Activation::Float);
        let activation =
            pick(rng, &[floats[0], floats[1], Activation::Int8(Per::Token), Activation::Int8(Per::Group(128))]);
        (pick(rng, &MATRIX_FORMATS).to_string(), activation)
    };
    let op = Matmul {
        n: 1 + rng.usize(..140),
        k: 128 * (1 + rng.usize(..4)),
        weight: weight.parse().unwrap_or_else(|why| panic!("{weight}: {why}")),
        activation,
        out: float(rng),
        epilogue: Epilogue { bias: rng.bool(), silu_mul: rng.u32(..4) == 0, residual: rng.bool() },
    };
    let most = if rng.bool() { 8 } else { 40 };
    (Op::Matmul(op), 1 + rng.usize(..most))
}

/// A matmul that matrix families take, for the seed: each width, granularity and type of activations they know, tails of
/// rows and columns.
pub fn matrix_case(seed: u64) -> (Op, usize) {
    let mut rng = fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5eed);
    let weight = pick(&mut rng, &MATRIX_FORMATS);
    let weight: Format = weight.parse().unwrap_or_else(|error| panic!("{weight}: {error}"));
    let k = pick(&mut rng, &[256, 384, 512, 768]);
    let m = match rng.u32(..4) {
        0 => 1 + rng.usize(..8),
        1 => 1 + rng.usize(..40),
        2 => 17 + rng.usize(..48),
        _ => 40 + rng.usize(..100),
    };
    // What the interpreter multiplies stays small.
    let n = 1 + rng.usize(..if m > 16 { 100 } else { 150 });
    let float8 = matches!(weight.code, bitsmith_compiler::format::Code::Float(_));
    let mut op = Matmul {
        n,
        k,
        weight,
        activation: Activation::Float(DType::F16),
        out: float(&mut rng),
        epilogue: epilogue(&mut rng),
    };
    op.activation = match rng.u32(..if float8 { 9 } else { 7 }) {
        0 | 1 => Activation::Float(DType::F16),
        2 => Activation::Float(DType::Bf16),
        3 => Activation::Int8(Per::Token),
        4 => Activation::Int8(Per::Group(op.segment().min(128) as u32)),
        _ => {
            let per = pick(&mut rng, &[Per::Token, Per::Tensor, Per::Group(op.segment().min(128) as u32)]);
            Activation::Fp8(pick(&mut rng, &[DType::E4m3fn, DType::E4m3fn, DType::E5m2]), per)
        }
    };
    (Op::Matmul(op), m)
}

/// Formats of [`matrix_case`].
const MATRIX_FORMATS: [&str; 46] = [
    "nf4",
    "nf4-g64",
    "iq4nl-g32",
    "iq4nl-g128",
    "int4-g128",
    "int4-g128-asym",
    "int4-g64",
    "int4-g32",
    "int4-g32-asym",
    "int4-g16",
    "int4-channel",
    "int4-channel-asym",
    "int8-channel",
    "int8-g128",
    "int8-g32-asym",
    "int8-tensor",
    "int2-g128-asym",
    "int2-g64",
    "int2-channel",
    "ternary-g128",
    "ternary-channel",
    "binary-channel",
    "fp4-g32-e8m0",
    "nvfp4",
    "mxfp4",
    "log3-g64",
    "log4-g32",
    "binary-g128",
    "int3-g128",
    "int3-g64-asym",
    "int5-g32",
    "int5-channel",
    "int6-g64-asym",
    "int6-channel",
    "fp8e4m3-channel",
    "fp8e4m3-block128",
    "fp8e5m2-tensor",
    "fp8e4m3-g32",
    // Float zero points and offsets, as HQQ, Q4_1, Q4_K and Q5_K have them.
    "int4-g64-fzero",
    "int4-channel-fzero32",
    "int2-g64-fzerobf16",
    "int8-g128-fzero",
    "int4-g32-offset",
    "int4-channel-offset",
    "int5-g32-offset",
    "int3-channel-offset",
];

fn pick<T: Copy>(rng: &mut fastrand::Rng, list: &[T]) -> T {
    list[rng.usize(..list.len())]
}

fn float(rng: &mut fastrand::Rng) -> DType {
    pick(rng, &[DType::F32, DType::F16, DType::Bf16])
}

fn matmul(rng: &mut fastrand::Rng) -> (Op, usize) {
    let weight = format(rng);
    let m = match rng.u32(..8) {
        0 => 1,
        1..5 => 1 + rng.usize(..8),
        5 | 6 => 1 + rng.usize(..33),
        _ => 1 + rng.usize(..130),
    };
    // Many rows of few columns: the product stays small enough for the interpreter.
    let k = columns(rng, &weight);
    let n = rows(rng, &weight, k, if m > 33 { 20 } else { 70 });
    let mut op =
        Matmul { n, k, weight, activation: Activation::Float(DType::F32), out: float(rng), epilogue: epilogue(rng) };
    op.activation = match rng.u32(..9) {
        0..3 => Activation::Float(float(rng)),
        3..6 => Activation::Int8(Per::Token),
        6 | 7 => {
            // A group that fits: the weights' own, or any multiple of 4 where a row is one group.
            let segment = op.segment();
            let g = if segment >= k { pick(rng, &[32, 64, 16, 20]) } else { segment };
            Activation::Int8(Per::Group(g as u32))
        }
        _ => {
            let dtype = pick(rng, &[DType::E4m3fn, DType::E4m3fnuz, DType::E5m2, DType::E5m2fnuz]);
            let segment = op.segment();
            let g = if segment >= k { pick(rng, &[32, 128]) } else { segment };
            Activation::Fp8(dtype, pick(rng, &[Per::Token, Per::Tensor, Per::Group(g as u32)]))
        }
    };
    (Op::Matmul(op), m)
}

fn epilogue(rng: &mut fastrand::Rng) -> Epilogue {
    match rng.u32(..4) {
        0 => Epilogue { bias: rng.bool(), silu_mul: rng.bool(), residual: rng.bool() },
        _ => Epilogue::default(),
    }
}

/// K: what the format needs, and otherwise ragged.
fn columns(rng: &mut fastrand::Rng, format: &Format) -> usize {
    let ragged = 1 + rng.usize(..300);
    let steps = [1, 2, 4, 8, 16, 32, 64, 128, 256];
    let fits = |k: &usize| (format.container.check)(format, 32, *k).is_empty();
    steps.into_iter().map(|step| ragged.next_multiple_of(step)).find(fits).unwrap_or(512)
}

/// N: what the format needs (GPTQ packs zeros in words along N), and otherwise ragged, about `most` at most.
fn rows(rng: &mut fastrand::Rng, format: &Format, k: usize, most: usize) -> usize {
    let ragged = 1 + rng.usize(..most);
    let fits = |n: &usize| (format.container.check)(format, *n, k).is_empty();
    [1, 8, 16, 32].into_iter().map(|step| ragged.next_multiple_of(step)).find(fits).unwrap_or(32)
}

/// A format: a named one, or one of the grammar.
pub fn format(rng: &mut fastrand::Rng) -> Format {
    if rng.u32(..3) == 0 {
        return Format::ALL[rng.usize(..Format::ALL.len())].format;
    }
    loop {
        let group = pick(rng, &[16, 20, 32, 48, 50, 64, 100, 128, 150]);
        let granularity = match rng.u32(..8) {
            0 => "tensor".to_string(),
            1 | 2 => "channel".to_string(),
            _ => format!("g{group}"),
        };
        let scale = pick(rng, &["", "-f32", "-bf16", "-fp8"]);
        let text = match rng.u32(..10) {
            0..5 => {
                let bits = pick(rng, &[2, 3, 4, 5, 6, 8]);
                let zero = pick(rng, &["", "-asym", "-fzero", "-bias"]);
                format!("int{bits}-{granularity}{zero}{scale}")
            }
            5 => format!("ternary-{granularity}{scale}"),
            6 => format!("binary-{granularity}{scale}"),
            7 => format!("log{}-{granularity}{scale}", 2 + rng.u32(..3)),
            8 => format!("{}-{granularity}{scale}", pick(rng, &["fp8e4m3", "fp8e4m3fnuz", "fp8e5m2", "fp8e5m2fnuz"])),
            _ => pick(rng, &["fp4-g32-e8m0", "fp8e4m3-block128", "nf4", "mxfp4"]).to_string(),
        };
        if let Ok(format) = text.parse() {
            return format;
        }
    }
}

fn quantize(rng: &mut fastrand::Rng) -> Quantize {
    let k = 1 + rng.usize(..300);
    let code = pick(rng, &[DType::I8, DType::I8, DType::E4m3fn, DType::E5m2]);
    let (per, sum_group) = if code == DType::I8 {
        match rng.u32(..3) {
            0 => (Per::Token, 0),
            1 => (Per::Token, pick(rng, &[32, 20, k])),
            _ => {
                let g = pick(rng, &[16, 32, 60]);
                (Per::Group(g), g as usize / pick(rng, &[1, 2]))
            }
        }
    } else {
        (pick(rng, &[Per::Token, Per::Tensor, Per::Group(48)]), 0)
    };
    let norm = rng.bool().then_some(Norm { eps: 1e-5 });
    Quantize { k, input: float(rng), code, per, sum_group, norm, smooth: rng.bool() }
}
