//! PTX that NVIDIA's compiler writes, from `foreign/kernels.cu`: results against plain Rust, and a broken one found.

use crate::common;
use bitsmith_emulate::{Argument, Buffer, FaultKind, Launch, Module, Outcome, Schedule};
use std::path::{Path, PathBuf};
use std::process::Command;

/// `nvcc` by its variable, from `PATH`, or beside `ptxas`; nothing where it lacks the headers of halves.
fn nvcc() -> Option<PathBuf> {
    let named = std::env::var("BITSMITH_NVCC").ok().map(PathBuf::from);
    let beside = common::ptxas().map(|p| Path::new(&p).with_file_name("nvcc"));
    [named, Some(PathBuf::from("nvcc")), beside].into_iter().flatten().find(|nvcc| {
        let file = tempfile::Builder::new().suffix(".cu").tempfile().unwrap();
        std::fs::write(file.path(), "#include <cuda_fp16.h>\n").unwrap();
        let done = Command::new(nvcc).args(["-ptx", "-o", "/dev/null"]).arg(file.path()).output();
        done.is_ok_and(|o| o.status.success())
    })
}

fn compile(test: &str, options: &[&str]) -> Option<String> {
    let Some(nvcc) = nvcc() else {
        common::skip("nvcc", test);
        return None;
    };
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign/kernels.cu");
    let out = tempfile::Builder::new().suffix(".ptx").tempfile().unwrap();
    let mut command = Command::new(nvcc);
    command.args(["-ptx", "-std=c++17", "-o"]).arg(out.path()).args(options).arg(source);
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Some(std::fs::read_to_string(out.path()).unwrap())
}

fn run_all(text: &str, kernel: &str, launch: &Launch) -> Outcome {
    let module = Module::load(text).unwrap();
    let kernel = module.kernel(kernel).unwrap();
    let mut first: Option<Outcome> = None;
    for schedule in Schedule::all() {
        let outcome =
            kernel.run(&Launch { schedule, ..launch.clone() }).unwrap_or_else(|e| panic!("{schedule:?}: {e}"));
        if let Some(first) = &first {
            assert_eq!(first.buffers, outcome.buffers, "{schedule:?}");
        }
        first.get_or_insert(outcome);
    }
    first.unwrap()
}

fn i32_(n: i32) -> Argument {
    Argument::Bytes(n.to_le_bytes().to_vec())
}

fn floats(random: &mut fastrand::Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| random.i32(-8..9) as f32 / 4.0).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn product_launch() -> (Launch, Vec<f32>) {
    let (m, n, k) = (35, 50, 41);
    let mut random = fastrand::Rng::with_seed(4);
    let (a, b) = (floats(&mut random, m * k), floats(&mut random, k * n));
    let mut wanted = vec![0.0; m * n];
    for row in 0..m {
        for column in 0..n {
            // Quarters: exact in any order.
            wanted[row * n + column] = (0..k).map(|i| a[row * k + i] * b[i * n + column]).sum();
        }
    }
    let launch = Launch {
        grid: [4, 3, 1],
        block: [16, 16, 1],
        buffers: vec![Buffer::input("a", bytes(&a)), Buffer::input("b", bytes(&b)), Buffer::output("c", 4 * m * n)],
        arguments: vec![
            Argument::buffer(0),
            Argument::buffer(1),
            Argument::buffer(2),
            i32_(m as i32),
            i32_(n as i32),
            i32_(k as i32),
        ],
        ..Launch::default()
    };
    (launch, wanted)
}

#[test]
fn nvcc_kernels_compute_what_they_say() {
    for architecture in ["-arch=sm_80", "-arch=sm_89"] {
        let Some(text) = compile("nvcc_kernels_compute_what_they_say", &[architecture]) else { return };
        let mut random = fastrand::Rng::with_seed(8);

        let (launch, wanted) = product_launch();
        assert_eq!(run_all(&text, "product", &launch).buffers[2].data, bytes(&wanted));

        let (rows, n) = (3, 300);
        let input: Vec<half::f16> = (0..rows * n).map(|_| half::f16::from_f32(random.f32() * 8.0 - 4.0)).collect();
        let launch = Launch {
            grid: [rows as u32, 1, 1],
            block: [96, 1, 1],
            buffers: vec![
                Buffer::input("in", input.iter().flat_map(|h| h.to_le_bytes()).collect::<Vec<u8>>()),
                Buffer::output("out", 2 * rows * n),
            ],
            arguments: vec![Argument::buffer(0), Argument::buffer(1), i32_(n as i32)],
            ..Launch::default()
        };
        let out = &run_all(&text, "softmax", &launch).buffers[1];
        for (row, line) in input.chunks(n).enumerate() {
            let sum: f64 = line.iter().map(|x| x.to_f64().exp()).sum();
            for (i, x) in line.iter().enumerate() {
                let at = 2 * (row * n + i);
                let found = half::bf16::from_le_bytes([out.data[at], out.data[at + 1]]).to_f64();
                let wanted = x.to_f64().exp() / sum;
                assert!((found - wanted).abs() <= wanted / 200.0, "softmax: {found}, expected {wanted}");
            }
        }

        let data: Vec<u8> = (0..16 * 300).map(|_| random.u8(..) & random.u8(..)).collect();
        let launch = Launch {
            grid: [2, 1, 1],
            block: [64, 1, 1],
            buffers: vec![Buffer::input("in", data.clone()), Buffer::both("bins", vec![0; 1024])],
            arguments: vec![Argument::buffer(0), Argument::buffer(1), i32_(300)],
            ..Launch::default()
        };
        let bins = common::u32s(&run_all(&text, "histogram", &launch).buffers[1]);
        for (value, count) in bins.iter().enumerate() {
            assert_eq!(*count as usize, data.iter().filter(|b| usize::from(**b) == value).count(), "bin {value}");
        }
        rules(&text, &mut random);
    }
}

fn rules(text: &str, random: &mut fastrand::Rng) {
    let scales = [3i64, -7, 11, 1 << 40, 0x1234_5678_9abc, -2];
    let table: Vec<u8> = (0..6i64).flat_map(|i| [i.to_le_bytes(), scales[i as usize].to_le_bytes()].concat()).collect();
    let input: Vec<i64> = (0..200).map(|_| random.i64(..) >> random.u32(2..60)).collect();
    let launch = Launch {
        grid: [4, 1, 1],
        block: [64, 1, 1],
        buffers: vec![
            Buffer::input("table", table),
            Buffer::input("in", input.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()),
            Buffer::output("out", 1600),
        ],
        arguments: vec![Argument::buffer(0), Argument::buffer(1), Argument::buffer(2), i32_(200)],
        ..Launch::default()
    };
    let out = common::u64s(&run_all(text, "rules", &launch).buffers[2]);
    for (i, x) in input.iter().enumerate() {
        let scale = scales[i % 6];
        let history = [*x, x.wrapping_mul(3), x.wrapping_sub(7), scale];
        let wanted = match i % 6 {
            0 => history[(*x & 3) as usize].wrapping_div(scale),
            1 => history[(x.wrapping_add(1) & 3) as usize].wrapping_rem(scale),
            2 => i64::from(history[1].count_ones() + history[2].leading_zeros()),
            3 => (x.reverse_bits() as u64 >> 5) as i64,
            4 => ((i128::from(*x) * i128::from(scale)) >> 64) as i64,
            _ => scale ^ x,
        };
        assert_eq!(out[i] as i64, wanted, "rule {} of {x}", i % 6);
    }
}

#[test]
fn a_missing_syncthreads_in_cuda_is_found_in_its_ptx() {
    let Some(text) = compile("a_missing_syncthreads_in_cuda_is_found_in_its_ptx", &["-arch=sm_80", "-DBROKEN"]) else {
        return;
    };
    let module = Module::load(&text).unwrap();
    let kernel = module.kernel("product").unwrap();
    let (launch, _) = product_launch();
    for schedule in Schedule::all() {
        let fault = kernel.run(&Launch { schedule, ..launch.clone() }).expect_err("a race");
        assert_eq!(fault.kind, FaultKind::Race, "{schedule:?}: {fault}");
        assert!(fault.instruction.contains("shared"), "{fault}");
    }
}
