//! How long a kernel takes from description to code, stage by stage, and over all named formats: to machine code for this
//! processor, to PTX and HIP source for GPUs. For NVIDIA devices the median must stay under 5 ms.

use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::Format;
use bitsmith_compiler::ir::verify;
use bitsmith_compiler::op::{Activation, Epilogue, Matmul, Op, Per};
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::cpu::CpuTarget;
use bitsmith_compiler::target::hip::HipTarget;
use bitsmith_compiler::target::ptx::PtxTarget;
use bitsmith_compiler::{compile, legalize, lower};
use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use std::time::Instant;

fn matmul(weight: Format, activation: Activation) -> Op {
    Op::Matmul(Matmul { n: 4096, k: 4096, weight, activation, out: DType::F32, epilogue: Epilogue::default() })
}

fn stages(c: &mut Criterion) {
    let target = CpuTarget::host().expect("a CPU with a known level");
    let op = matmul("int4-g128".parse().expect("a format"), Activation::Int8(Per::Token));
    let schedule = lower::choose(&op, target.caps(), 1).expect("a schedule");
    let kernel = lower::lower(&op, &schedule, target.caps()).expect("a kernel");
    let legal = legalize(&kernel, &target).expect("a legal kernel");
    let mut group = c.benchmark_group("int4-g128 by int8-token, M=1");
    group.sample_size(30);
    group.bench_function("choose", |b| b.iter(|| lower::choose(black_box(&op), target.caps(), 1)));
    group.bench_function("lower", |b| b.iter(|| lower::lower(black_box(&op), &schedule, target.caps())));
    group.bench_function("verify", |b| b.iter(|| verify(black_box(&kernel), target.caps()).is_ok()));
    group.bench_function("legalize", |b| b.iter(|| legalize(black_box(&kernel), &target)));
    group.bench_function("emit", |b| {
        let verified = verify(&legal, target.caps()).expect("a sound kernel");
        b.iter(|| target.emit(black_box(&verified)));
    });
    group.bench_function("all", |b| b.iter(|| compile(black_box(&op), &schedule, &target)));
    group.finish();
}

/// GPUs that text is made for, and the most milliseconds that the median kernel may take.
const GPUS: [(&str, Option<f64>); 4] =
    [("a100", Some(5.0)), ("h100", Some(5.0)), ("h200", Some(5.0)), ("mi300x", None)];

/// The median over all named formats, both activations, few rows and many, which one number per format would hide.
fn over_all_formats(name: &str, target: &dyn Target) -> f64 {
    let mut times = Vec::new();
    for named in Format::ALL {
        for activation in [Activation::Int8(Per::Token), Activation::Float(DType::F16)] {
            for m in [1, 16, 128] {
                let op = matmul(named.format, activation);
                // From the description: the choice of a schedule counts.
                let start = Instant::now();
                let schedule = lower::choose(&op, target.caps(), m).expect("a schedule");
                let compiled = compile(&op, &schedule, target).expect("a kernel");
                times.push((start.elapsed().as_secs_f64() * 1e3, named.name, activation, m));
                black_box(compiled);
            }
        }
    }
    times.sort_by(|a, b| a.0.total_cmp(&b.0));
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    let (median, (slowest, format, activation, m)) = (at(50).0, at(100));
    println!(
        "all formats for {name}: {} kernels, median {median:.2} ms, nine of ten within {:.2} ms, slowest {slowest:.2} ms ({format} by {activation}, M={m})",
        times.len(),
        at(90).0
    );
    median
}

fn all_formats(c: &mut Criterion) {
    let target = CpuTarget::host().expect("a CPU with a known level");
    over_all_formats(target.caps().name, &target);
    for (name, most) in GPUS {
        let target: Box<dyn Target> = match PtxTarget::named(name) {
            Ok(target) => Box::new(target),
            Err(_) => Box::new(HipTarget::named(name).expect("a device of either vendor")),
        };
        let median = over_all_formats(name, &*target);
        if let Some(most) = most {
            assert!(median < most, "{name}: the median of {median:.2} ms is not under {most} ms");
        }
    }
    let op = matmul("q4_k".parse().expect("a format"), Activation::Int8(Per::Token));
    let schedule = lower::choose(&op, target.caps(), 128).expect("a schedule");
    let mut group = c.benchmark_group("q4_k by int8-token, M=128");
    group.sample_size(20);
    group.bench_function("all", |b| b.iter(|| compile(black_box(&op), &schedule, &target)));
    group.finish();
}

criterion_group!(benches, stages, all_formats);
criterion_main!(benches);
