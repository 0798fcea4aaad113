//! How long a kernel takes from description to machine code, stage by stage, and over all named formats.

use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::Format;
use bitsmith_compiler::ir::verify;
use bitsmith_compiler::op::{Activation, Epilogue, Matmul, Op, Per};
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::cpu::CpuTarget;
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

/// The median over all named formats, both activations and both families, which one number per format would hide.
fn all_formats(c: &mut Criterion) {
    let target = CpuTarget::host().expect("a CPU with a known level");
    let mut times = Vec::new();
    for named in Format::ALL {
        for activation in [Activation::Int8(Per::Token), Activation::Float(DType::F16)] {
            for m in [1, 128] {
                let op = matmul(named.format, activation);
                let schedule = lower::choose(&op, target.caps(), m).expect("a schedule");
                let start = Instant::now();
                let compiled = compile(&op, &schedule, &target).expect("a kernel");
                times.push((start.elapsed().as_secs_f64() * 1e3, named.name, activation, m));
                black_box(compiled);
            }
        }
    }
    times.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (slowest, name, activation, m) = times[times.len() - 1];
    println!(
        "all formats: {} kernels, median {:.2} ms, slowest {slowest:.2} ms ({name} by {activation}, M={m})",
        times.len(),
        times[times.len() / 2].0
    );
    let op = matmul("q4_k".parse().expect("a format"), Activation::Int8(Per::Token));
    let schedule = lower::choose(&op, target.caps(), 128).expect("a schedule");
    let mut group = c.benchmark_group("q4_k by int8-token, M=128");
    group.sample_size(20);
    group.bench_function("all", |b| b.iter(|| compile(black_box(&op), &schedule, &target)));
    group.finish();
}

criterion_group!(benches, stages, all_formats);
criterion_main!(benches);
