//! `wgmma`, tensor copies and their swizzles against independent layouts.
//!
//! Operand layouts in shared memory are the canonical ones of CuTe (NVIDIA CUTLASS, `mma_traits_sm90_gmma.hpp`, comment
//! above `make_gmma_desc`): shapes and strides in 16-byte units, then `Swizzle<B,4,3>`, which adds bits 7.. of the address
//! to bits 4.. without carry. Accumulators are `CLayout_64xN`. The machine has its own formulas.

use crate::common::{self, bytes_of_u32, module, run_all, u32s};
use bitsmith_emulate::{Argument, Buffer, FaultKind, Launch, Swizzle, TensorMap};

/// `Swizzle<B,4,3>` on a byte address.
fn swizzle(bits: u32, address: usize) -> usize {
    let mask = (1usize << bits) - 1;
    address ^ ((address >> 7 & mask) << 4)
}

/// Where byte `b` of element (x, k) goes, in an operand of `x` rows or columns whose rows are `w` units of 16 bytes, by the
/// canonical layout; `major_k` says what is contiguous. Returns the offset, for offsets L and S of the descriptor.
fn canonical(x: usize, k: usize, bytes: usize, w: usize, major_k: bool, l: usize, s: usize) -> usize {
    let t = 16 / bytes;
    if major_k {
        // ((8, m), (T, 2)) : ((w T, S), (1, L or T)), in elements of T to 16 bytes.
        let (x0, x1, k0, k1) = (x % 8, x / 8, k % t, k / t);
        let along = if w == 1 { l } else { 16 };
        x0 * w * 16 + x1 * s + k0 * bytes + k1 * along
    } else {
        // ((T, w, m), (8, k)) : ((1, T, L or S), (w T, S or L))
        let (x0, x1, x2, k0, k1) = (x % t, x / t % w, x / t / w, k % 8, k / 8);
        let (outer, deep) = if w == 1 { (s, l) } else { (l, s) };
        x0 * bytes + x1 * 16 + x2 * outer + k0 * w * 16 + k1 * deep
    }
}

struct Case {
    name: &'static str,
    bytes: usize,
    n: usize,
    swizzle_bits: u32,
    a_major_k: bool,
    b_major_k: bool,
    registers: bool,
}

const CASES: &[Case] = &[
    Case {
        name: "f32.bf16.bf16",
        bytes: 2,
        n: 16,
        swizzle_bits: 0,
        a_major_k: true,
        b_major_k: true,
        registers: false,
    },
    Case {
        name: "f32.bf16.bf16",
        bytes: 2,
        n: 24,
        swizzle_bits: 1,
        a_major_k: true,
        b_major_k: true,
        registers: false,
    },
    Case { name: "f32.f16.f16", bytes: 2, n: 64, swizzle_bits: 2, a_major_k: true, b_major_k: true, registers: false },
    Case {
        name: "f32.bf16.bf16",
        bytes: 2,
        n: 128,
        swizzle_bits: 3,
        a_major_k: true,
        b_major_k: true,
        registers: false,
    },
    Case {
        name: "f32.bf16.bf16",
        bytes: 2,
        n: 64,
        swizzle_bits: 0,
        a_major_k: false,
        b_major_k: false,
        registers: false,
    },
    Case { name: "f32.f16.f16", bytes: 2, n: 64, swizzle_bits: 1, a_major_k: false, b_major_k: true, registers: false },
    Case {
        name: "f32.bf16.bf16",
        bytes: 2,
        n: 64,
        swizzle_bits: 2,
        a_major_k: true,
        b_major_k: false,
        registers: false,
    },
    Case {
        name: "f32.bf16.bf16",
        bytes: 2,
        n: 128,
        swizzle_bits: 3,
        a_major_k: false,
        b_major_k: false,
        registers: false,
    },
    Case { name: "f32.bf16.bf16", bytes: 2, n: 32, swizzle_bits: 3, a_major_k: true, b_major_k: true, registers: true },
    Case { name: "f32.f16.f16", bytes: 2, n: 64, swizzle_bits: 3, a_major_k: true, b_major_k: false, registers: true },
    Case {
        name: "f32.e4m3.e5m2",
        bytes: 1,
        n: 40,
        swizzle_bits: 3,
        a_major_k: true,
        b_major_k: true,
        registers: false,
    },
    Case { name: "f32.e4m3.e4m3", bytes: 1, n: 16, swizzle_bits: 2, a_major_k: true, b_major_k: true, registers: true },
    Case { name: "s32.s8.u8", bytes: 1, n: 32, swizzle_bits: 3, a_major_k: true, b_major_k: true, registers: false },
    Case { name: "s32.u8.s8", bytes: 1, n: 64, swizzle_bits: 0, a_major_k: true, b_major_k: true, registers: true },
    Case {
        name: "f32.tf32.tf32",
        bytes: 4,
        n: 48,
        swizzle_bits: 1,
        a_major_k: true,
        b_major_k: true,
        registers: false,
    },
];

fn encode(value: i64, ty: &str) -> u32 {
    let float = value as f32;
    match ty {
        "tf32" => float.to_bits(),
        "f16" => u32::from(half::f16::from_f32(float).to_bits()),
        "bf16" => u32::from(half::bf16::from_f32(float).to_bits()),
        "e4m3" => [0, 0x38, 0x40, 0x44][value.unsigned_abs() as usize] | u32::from(value < 0) << 7,
        "e5m2" => [0, 0x3c, 0x40, 0x42][value.unsigned_abs() as usize] | u32::from(value < 0) << 7,
        _ => u32::from(value as u8),
    }
}

/// Offsets for a tile of `count` by `depth`, chosen apart so that nothing overlaps.
fn offsets(count: usize, depth: usize, bytes: usize, w: usize, major_k: bool) -> (usize, usize) {
    let t = 16 / bytes;
    match (major_k, w == 1) {
        // L between the two k pieces, S between groups of eight.
        (true, true) => (128 * count.div_ceil(8), 128),
        (true, false) => (16, 8 * w * 16),
        // S between pieces along x, L between groups of eight k.
        (false, true) => (128 * count.div_ceil(t), 128),
        (false, false) => (8 * w * 16 * depth.div_ceil(8), 8 * w * 16),
    }
}

fn wgmma_text(case: &Case, a: (usize, usize), b: (usize, usize), image: usize, commits: &str) -> String {
    let depth = 32 / case.bytes;
    let layout: u64 = [0, 3, 2, 1][case.swizzle_bits as usize];
    let descriptor = |(l, s): (usize, usize)| (l as u64 >> 4) << 16 | (s as u64 >> 4) << 32 | layout << 62;
    let integer = case.name.starts_with("s32");
    let sums = case.n / 2;
    let ty = if integer { "b32" } else { "f32" };
    let d: Vec<String> = (0..sums).map(|i| format!("%d{i}")).collect();
    let mut body = format!(
        "    .shared .align 1024 .b8 s[{image}];\n    .reg .{ty} %d<{sums}>;\n    .reg .b32 %r<8>, %a<4>, %t;\n    .reg .b64 %p<4>, %q<4>;\n    \
         .reg .pred %go;\n    mov.u32 %t, %tid.x;\n    ld.param.u64 %p0, [image];\n    mov.u32 %r0, %t;\nCOPY:\n    \
         mad.wide.u32 %p1, %r0, 16, %p0;\n    ld.global.v4.b32 {{%r1, %r2, %r3, %r4}}, [%p1];\n    mov.u32 %r5, s;\n    \
         mad.lo.u32 %r5, %r0, 16, %r5;\n    st.shared.v4.b32 [%r5], {{%r1, %r2, %r3, %r4}};\n    add.u32 %r0, %r0, 128;\n    \
         setp.lt.u32 %go, %r0, {};\n    @%go bra COPY;\n    fence.proxy.async.shared::cta;\n    bar.sync 0;\n",
        image / 16
    );
    body += "    ld.param.u64 %p2, [fragments];\n    mad.wide.u32 %p2, %t, 16, %p2;\n    ld.global.v4.b32 {%a0, %a1, %a2, %a3}, [%p2];\n";
    for name in &d {
        body += &format!("    mov.{ty} {name}, {};\n", if integer { "1" } else { "0f3F800000" });
    }
    body += &format!(
        "    mov.u32 %r5, s;\n    shr.u32 %r5, %r5, 4;\n    cvt.u64.u32 %q0, %r5;\n    or.b64 %q1, %q0, {:#x};\n    \
         add.u64 %q2, %q0, {};\n    or.b64 %q2, %q2, {:#x};\n    wgmma.fence.sync.aligned;\n",
        descriptor(a),
        (image / 2) >> 4,
        descriptor(b)
    );
    let first = if case.registers { "{%a0, %a1, %a2, %a3}".to_string() } else { "%q1".into() };
    let tail = match (integer, case.bytes == 2, case.registers) {
        (true, ..) => String::new(),
        (_, false, _) => ", 1, 1".into(),
        (_, true, true) => format!(", 1, 1, {}", u8::from(!case.b_major_k)),
        (_, true, false) => format!(", 1, 1, {}, {}", u8::from(!case.a_major_k), u8::from(!case.b_major_k)),
    };
    for _ in 0..2 {
        body += &format!(
            "    wgmma.mma_async.sync.aligned.m64n{}k{depth}.{} {{{}}}, {first}, %q2, 1{tail};\n",
            case.n,
            case.name,
            d.join(", ")
        );
    }
    body += commits;
    body += &format!("    ld.param.u64 %p3, [out];\n    mad.wide.u32 %p3, %t, {}, %p3;\n", 4 * sums);
    for (i, name) in d.iter().enumerate() {
        body += &format!("    st.global.{ty} [%p3+{}], {name};\n", 4 * i);
    }
    module("sm_90a", ".param .u64 image, .param .u64 fragments, .param .u64 out", &body)
}

struct Built {
    launch: Launch,
    text: String,
    wanted: Vec<i64>,
}

fn build(case: &Case, commits: &str) -> Built {
    let mut random = fastrand::Rng::with_seed(case.n as u64);
    let types: Vec<&str> = case.name.split('.').collect();
    let depth = 32 / case.bytes;
    let w = 1usize << case.swizzle_bits;
    let mut values = |count: usize, ty: &str| -> Vec<i64> {
        (0..count).map(|_| random.i64(if ty.starts_with('u') { 0..4 } else { -3..4 })).collect()
    };
    // a[row + 64 k], b[column + n k].
    let (a, b) = (values(64 * depth, types[1]), values(case.n * depth, types[2]));
    let (a_offsets, b_offsets) =
        (offsets(64, depth, case.bytes, w, case.a_major_k), offsets(case.n, depth, case.bytes, w, case.b_major_k));
    let image_size = 65536;
    let mut image = vec![0u8; image_size];
    let mut put = |base: usize, x: usize, k: usize, major_k: bool, (l, s): (usize, usize), bits: u32| {
        let at = swizzle(case.swizzle_bits, base + canonical(x, k, case.bytes, w, major_k, l, s));
        image[at..at + case.bytes].copy_from_slice(&bits.to_le_bytes()[..case.bytes]);
    };
    for k in 0..depth {
        for row in 0..64 {
            put(0, row, k, case.a_major_k, a_offsets, encode(a[row + 64 * k], types[1]));
        }
        for column in 0..case.n {
            put(image_size / 2, column, k, case.b_major_k, b_offsets, encode(b[column + case.n * k], types[2]));
        }
    }
    // ALayout_64x16 and ALayout_64x32: thread (4, 8, 4), value (per, 2, 2) to row + 64 k.
    let per = 4 / case.bytes;
    let mut fragments = Vec::new();
    for thread in 0..128 {
        for r in 0..4 {
            let mut bits = 0;
            for j in 0..per {
                let row = thread / 4 % 8 + 16 * (thread / 32) + 8 * (r % 2);
                let k = thread % 4 * per + j + 4 * per * (r / 2);
                bits |= encode(a[row + 64 * k], types[1]) << (8 * case.bytes * j);
            }
            fragments.push(bits);
        }
    }
    let text = wgmma_text(case, a_offsets, b_offsets, image_size, commits);
    let launch = Launch {
        block: [128, 1, 1],
        buffers: vec![
            Buffer::input("image", image),
            Buffer::input("fragments", bytes_of_u32(&fragments)),
            Buffer::output("out", 128 * case.n / 2 * 4),
        ],
        arguments: (0..3).map(Argument::buffer).collect(),
        ..Launch::default()
    };
    let mut wanted = vec![0; 64 * case.n];
    for row in 0..64 {
        for column in 0..case.n {
            let product: i64 = (0..depth).map(|k| a[row + 64 * k] * b[column + case.n * k]).sum();
            // Two of them on top of 1.
            wanted[row + 64 * column] = 1 + 2 * product;
        }
    }
    Built { launch, text, wanted }
}

const COMMIT: &str = "    wgmma.commit_group.sync.aligned;\n    wgmma.wait_group.sync.aligned 0;\n";

#[test]
fn wgmma_reads_the_canonical_layouts() {
    for case in CASES {
        let built = build(case, COMMIT);
        common::assembles(case.name, &built.text);
        let out = u32s(&run_all(&built.text, &built.launch).buffers[2]);
        for thread in 0..128 {
            for value in 0..case.n / 2 {
                // CLayout_64xN: thread (4, 8, 4) : (128, 1, 16), value (2, 2, n / 8) : (64, 8, 512).
                let at = thread % 4 * 128
                    + thread / 4 % 8
                    + thread / 32 * 16
                    + value % 2 * 64
                    + value / 2 % 2 * 8
                    + value / 4 * 512;
                let bits = out[thread * case.n / 2 + value];
                let found =
                    if case.name.starts_with("s32") { i64::from(bits as i32) } else { f32::from_bits(bits) as i64 };
                let what = format!("{} n{} swizzle {} {}", case.name, case.n, case.swizzle_bits, case.registers);
                assert_eq!(found, built.wanted[at], "{what}: row {}, column {}", at % 64, at / 64);
            }
        }
    }
}

#[test]
fn wgmma_without_its_fences_and_waits_is_found() {
    let case = &CASES[3];
    let built = build(case, "    wgmma.commit_group.sync.aligned;\n");
    // Results are not there before the wait.
    common::fails(&built.text, &built.launch, FaultKind::Uninitialised);
    let built = build(case, COMMIT);
    let text = built.text.replace("    wgmma.fence.sync.aligned;\n", "");
    let fault = common::fails(&text, &built.launch, FaultKind::Misuse);
    assert!(fault.message.contains("wgmma.fence"), "{fault}");
    // Its registers belong to it until the wait.
    let case = CASES.iter().find(|case| case.registers).expect("one has A in registers");
    let taken = build(case, &format!("    wgmma.commit_group.sync.aligned;\n    mov.b32 %a0, 0;\n{COMMIT}"));
    let fault = common::fails(&taken.text, &taken.launch, FaultKind::Misuse);
    assert!(fault.message.contains("wait_group"), "{fault}");
    let text = built.text.replace("    fence.proxy.async.shared::cta;\n", "");
    let fault = common::fails(&text, &built.launch, FaultKind::Race);
    assert!(fault.message.contains("fence.proxy.async"), "{fault}");
    let text = built.text.replace("    bar.sync 0;\n", "");
    for schedule in bitsmith_emulate::Schedule::all() {
        let fault = common::run(&text, &Launch { schedule, ..built.launch.clone() }).expect_err("a fault");
        assert!(matches!(fault.kind, FaultKind::Race | FaultKind::Uninitialised), "{fault}");
    }
}

/// A box of a tensor into shared memory, out again byte by byte, and back into another tensor.
fn tensor_text() -> String {
    module(
        "sm_90a",
        ".param .align 64 .b8 from[128], .param .align 64 .b8 to[128], .param .u64 out, .param .u32 x, .param .u32 y",
        "    .shared .align 1024 .b8 s[2048];\n    .shared .align 8 .b64 bar;\n    .reg .b64 %p<4>, %state;\n    .reg .b32 %r<8>, %t, %x, %y, %s, %b;\n    \
         .reg .pred %first, %done;\n    mov.u32 %t, %tid.x;\n    setp.eq.u32 %first, %t, 0;\n    mov.u32 %s, s;\n    mov.u32 %b, bar;\n    \
         ld.param.u32 %x, [x];\n    ld.param.u32 %y, [y];\n    mov.b64 %p0, from;\n    cvta.param.u64 %p0, %p0;\n    mov.b64 %p1, to;\n    cvta.param.u64 %p1, %p1;\n    \
         @%first mbarrier.init.shared::cta.b64 [%b], 1;\n    bar.sync 0;\n    @!%first bra WAIT;\n    \
         mbarrier.arrive.expect_tx.shared::cta.b64 %state, [%b], 2048;\n    \
         cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%s], [%p0, {%x, %y}], [%b];\nWAIT:\n    \
         mbarrier.try_wait.parity.shared::cta.b64 %done, [%b], 0;\n    @!%done bra WAIT;\n    \
         ld.param.u64 %p2, [out];\n    mad.lo.u32 %r0, %t, 16, %s;\n    ld.shared.v4.b32 {%r1, %r2, %r3, %r4}, [%r0];\n    \
         mad.wide.u32 %p3, %t, 16, %p2;\n    st.global.v4.b32 [%p3], {%r1, %r2, %r3, %r4};\n    \
         @!%first bra END;\n    cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%p1, {%x, %y}], [%s];\n    \
         cp.async.bulk.commit_group;\n    cp.async.bulk.wait_group 0;\nEND:",
    )
}

#[test]
fn tensor_copies_swizzle_clip_and_fill() {
    let text = tensor_text();
    common::assembles("tensor copies", &text);
    let (width, height) = (100u64, 40u64);
    let data: Vec<u8> = (0..256 * height).map(|i| (i * 7 + i / 256) as u8).collect();
    for (mode, span) in [(Swizzle::B128, 128u32), (Swizzle::B64, 64), (Swizzle::B32, 32), (Swizzle::None, 32)] {
        let rows = 2048 / span;
        for (x, y) in [(0i32, 0i32), (8, 3), (width as i32 - 5, height as i32 - 7), (-3, -2), (200, 0)] {
            let map = |buffer| TensorMap {
                buffer,
                offset: 0,
                element_bytes: 2,
                sizes: vec![width, height],
                strides: vec![256],
                box_sizes: vec![span / 2, rows],
                swizzle: mode,
            };
            let launch = Launch {
                block: [128, 1, 1],
                buffers: vec![
                    Buffer::input("from", data.clone()),
                    Buffer::both("to", vec![0xee; data.len()]),
                    Buffer::output("out", 2048),
                ],
                arguments: vec![
                    Argument::Map(map(0)),
                    Argument::Map(map(1)),
                    Argument::buffer(2),
                    Argument::u32(x as u32),
                    Argument::u32(y as u32),
                ],
                ..Launch::default()
            };
            let outcome = run_all(&text, &launch);
            let mut stored = vec![0xee; data.len()];
            for row in 0..rows as i64 {
                for column in 0..i64::from(span / 2) {
                    let (i, j) = (i64::from(x) + column, i64::from(y) + row);
                    let inside = i >= 0 && j >= 0 && (i as u64) < width && (j as u64) < height;
                    let from = 256 * j + 2 * i;
                    // 16-byte piece p of a 128-byte line is exchanged with piece p ^ (line % 8), in spans of 8, 4 or 2.
                    let linear = (row as u64 * u64::from(span) + 2 * column as u64) as usize;
                    let (line, piece) = (linear / 128, linear / 16 % 8);
                    let turn = match mode {
                        Swizzle::B128 => line & 7,
                        Swizzle::B64 => line & 3,
                        Swizzle::B32 => line & 1,
                        Swizzle::None => 0,
                    };
                    let at = line * 128 + (piece ^ turn) * 16 + linear % 16;
                    for byte in 0..2 {
                        let wanted = if inside { data[from as usize + byte] } else { 0 };
                        assert_eq!(
                            outcome.buffers[2].data[at + byte],
                            wanted,
                            "{mode:?} at ({x}, {y}): row {row}, column {column}"
                        );
                        if inside {
                            stored[from as usize + byte] = wanted;
                        }
                    }
                }
            }
            assert_eq!(outcome.buffers[1].data, stored, "{mode:?} at ({x}, {y}): what goes back");
        }
    }
}

#[test]
fn tensor_maps_that_the_driver_would_refuse_are_refused() {
    let text = tensor_text();
    let good = TensorMap {
        buffer: 0,
        offset: 0,
        element_bytes: 2,
        sizes: vec![64, 16],
        strides: vec![128],
        box_sizes: vec![64, 16],
        swizzle: Swizzle::B128,
    };
    for bad in [
        TensorMap { strides: vec![120], ..good.clone() },
        TensorMap { box_sizes: vec![128, 8], ..good.clone() },
        TensorMap { box_sizes: vec![4, 8], ..good.clone() },
        TensorMap { element_bytes: 3, ..good.clone() },
        TensorMap { sizes: vec![64], ..good.clone() },
        TensorMap { buffer: 9, ..good.clone() },
    ] {
        let launch = Launch {
            block: [128, 1, 1],
            buffers: vec![Buffer::both("b", vec![0; 2048]), Buffer::output("out", 2048)],
            arguments: vec![
                Argument::Map(bad),
                Argument::Map(good.clone()),
                Argument::buffer(1),
                Argument::u32(0),
                Argument::u32(0),
            ],
            ..Launch::default()
        };
        assert_eq!(common::run(&text, &launch).expect_err("a fault").kind, FaultKind::Launch);
    }
}
