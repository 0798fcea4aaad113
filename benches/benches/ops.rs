//! Kernels on the CPU of this machine: matmul with few and with many rows, decoding of weights, quantization of activations,
//! over the main formats. `cargo bench -p bitsmith-benches --bench ops -- decode` runs one group.
//!
//! Weights stay in the caches here: this shows what a change does to a kernel. What memory allows, and what peers do, is
//! measured by `bitsmith bench` and in `benches/peers`.

use bitsmith_autotune::execute::Prepared;
use bitsmith_autotune::problem::{Problem, Sample};
use bitsmith_compiler::compile;
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::lower::choose;
use bitsmith_compiler::op::{Dequant, Epilogue, Matmul, Op, Per, Quantize};
use bitsmith_runtime::Device;
use bitsmith_runtime::cpu::{CpuDevice, Pool, PoolOptions, Split};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const N: usize = 1024;
const K: usize = 1024;

const FORMATS: [&str; 8] =
    ["int8-channel", "int4-g32", "int4-g128-asym", "int3-g64", "int2-g64", "ternary-g128", "q4_k", "fp8e4m3-channel"];

fn matmul(format: &str, activation: &str) -> Op {
    Op::Matmul(Matmul {
        n: N,
        k: K,
        weight: format.parse().expect("a format"),
        activation: activation.parse().expect("an activation"),
        out: DType::F32,
        epilogue: Epilogue::default(),
    })
}

/// Checks a kernel once, then times it.
fn bench(c: &mut Criterion, device: &CpuDevice, group: &str, name: &str, op: &Op, m: usize) {
    let op = op.checked().expect("a sound operation");
    let schedule = choose(&op, device.caps(), m).expect("a family serves it");
    let artifact = compile(&op, &schedule, device.target()).expect("it compiles").artifact;
    let problem = Problem::random(&op, m, 1).expect("inputs");
    let prepared = Prepared::new(device, &problem, &artifact, &schedule, 1).expect("memory");
    prepared.launch(0).expect("it runs");
    let outputs = prepared.outputs().expect("outputs");
    let report =
        problem.check(schedule.family, &outputs.iter().map(Vec::as_slice).collect::<Vec<_>>(), Sample::Lines(4));
    assert!(report.passed(), "{group}/{name}: {:?}", report.first_wrong);
    let mut group = c.benchmark_group(group);
    group.throughput(match op {
        Op::Matmul(_) if m > 8 => Throughput::Elements(problem.operations() as u64),
        _ => Throughput::Bytes(problem.traffic() as u64),
    });
    group.sample_size(20).bench_function(name, |b| b.iter(|| prepared.launch(0).expect("it runs")));
    group.finish();
}

/// What handing work to threads costs: a launch of 64 workgroups that do nothing.
fn launches(c: &mut Criterion) {
    let mut group = c.benchmark_group("launch");
    for threads in 1..=bitsmith_runtime::cpu::available_threads().min(4) {
        for split in [Split::Dynamic, Split::Static] {
            let pool = Pool::with_options(threads, PoolOptions { split, pin: false });
            group.bench_function(format!("{threads} threads, {split:?}"), |b| b.iter(|| pool.run(64, &|_, _, _| {})));
        }
    }
    group.finish();
}

fn ops(c: &mut Criterion) {
    let device = CpuDevice::new(1).expect("a CPU device");
    for format in FORMATS {
        for activation in ["int8-token", "bf16"] {
            let op = matmul(format, activation);
            bench(c, &device, "decode", &format!("{format}/{activation}"), &op, 1);
            bench(c, &device, "prefill", &format!("{format}/{activation}"), &op, 32);
        }
        let weight = format.parse().expect("a format");
        bench(c, &device, "dequant", format, &Op::Dequant(Dequant { n: N, k: K, weight, out: DType::Bf16 }), 1);
    }
    for (name, per, sum_group) in
        [("token", Per::Token, 0), ("token, sums", Per::Token, 32), ("g32", Per::Group(32), 32)]
    {
        let op = Quantize { k: K, input: DType::F32, code: DType::I8, per, sum_group, norm: None, smooth: false };
        bench(c, &device, "quantize", name, &Op::Quantize(op), 32);
    }
}

criterion_group! {
    name = all;
    config = Criterion::default()
        .warm_up_time(std::time::Duration::from_millis(200))
        .measurement_time(std::time::Duration::from_millis(800));
    targets = ops, launches
}
criterion_main!(all);
