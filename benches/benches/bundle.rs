//! What the runtime adds: opening a bundle up to its first launch, and each launch of a kernel that does next to nothing.

use bitsmith_runtime::bundle::{Bundle, Kernels, Want};
use bitsmith_runtime::{Buffer, View};
use criterion::{Criterion, criterion_group, criterion_main};
use std::sync::Arc;

fn runtime(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("kernels");
    let path = out.display().to_string();
    let args = ["bitsmith", "generate", "--recipe", "W4A16", "--shapes", "16x32", "--no-measure", "--out", &path];
    let (mut text, mut errors) = (Vec::new(), Vec::new());
    assert_eq!(bitsmith_cli::run(args, &mut text, &mut errors), 0, "{}", String::from_utf8_lossy(&errors));
    let device = bitsmith_runtime::open("cpu:1").expect("a CPU");
    let want = Want { op: "matmul", ..Want::default() };
    let first = || {
        let kernels = Kernels::new(Arc::new(Bundle::open(&out).expect("a bundle")), device.clone()).expect("a target");
        let kernel = kernels.kernel(kernels.choose(&want, 1).expect("a kernel").index).expect("code");
        let buffers: Vec<Buffer> =
            kernel.buffers().map(|arg| device.allocate(arg.bytes_for(1).unwrap_or(0)).expect("memory")).collect();
        let views: Vec<View<'_>> = buffers.iter().map(Buffer::view).collect();
        kernel.launch(1, &views).expect("a launch");
    };
    c.bench_function("bundle opened, first launch", |b| b.iter(first));
    let kernels = Kernels::new(Arc::new(Bundle::open(&out).expect("a bundle")), device.clone()).expect("a target");
    let index = kernels.choose(&want, 1).expect("a kernel").index;
    let kernel = kernels.kernel(index).expect("code");
    let buffers: Vec<Buffer> =
        kernel.buffers().map(|arg| device.allocate(arg.bytes_for(1).unwrap_or(0)).expect("memory")).collect();
    let views: Vec<View<'_>> = buffers.iter().map(Buffer::view).collect();
    // A matmul of 16 x 32: the kernel itself takes some tens of nanoseconds.
    c.bench_function("launch of a tiny kernel", |b| b.iter(|| kernel.launch(1, &views).expect("a launch")));
    c.bench_function("kernel chosen and launched", |b| {
        b.iter(|| {
            let index = kernels.choose(&want, 1).expect("a kernel").index;
            kernels.kernel(index).expect("code").launch(1, &views).expect("a launch");
        });
    });
}

criterion_group!(benches, runtime);
criterion_main!(benches);
