//! Matrix instructions against plain products, with fragments laid out by an independent source.
//!
//! The tables are the thread-value layouts of CuTe (NVIDIA CUTLASS, `include/cute/atom/mma_traits_sm80.hpp` and
//! `mma_traits_sm90_gmma.hpp`): a mixed-radix index of thread and value times strides is a column-major coordinate. Those
//! of 4-bit types follow the PTX ISA's fragment figures in the same notation. The machine derives its own from groups and
//! members. Inputs are small integers, so products and sums are exact in every type.

use crate::common::{self, module, run_all, u32s, u64s};
use bitsmith_emulate::{Argument, Buffer, Launch};

/// Sizes and strides.
type Modes = &'static [(usize, usize)];

struct Layout {
    thread: Modes,
    value: Modes,
}

fn walk(modes: Modes, mut index: usize) -> usize {
    modes.iter().fold(0, |sum, (size, stride)| {
        let at = index % size;
        index /= size;
        sum + at * stride
    })
}

impl Layout {
    fn index(&self, thread: usize, value: usize) -> usize {
        walk(self.thread, thread) + walk(self.value, value)
    }
}

const ROW_16X8: Layout = Layout { thread: &[(4, 32), (8, 1)], value: &[(2, 16), (2, 8)] };
const ROW_8X8: Layout = Layout { thread: &[(4, 16), (8, 1)], value: &[(2, 8)] };
const COLUMN_8X4: Layout = Layout { thread: &[(4, 8), (8, 1)], value: &[(1, 0)] };
const ROW_8X16: Layout = Layout { thread: &[(4, 32), (8, 1)], value: &[(4, 8)] };

struct Shape {
    name: &'static str,
    target: &'static str,
    m: usize,
    k: usize,
    a: Layout,
    b: Layout,
    c: Layout,
}

const SHAPES: &[Shape] = &[
    Shape {
        name: "m16n8k8.row.col.f32.f16.f16.f32",
        target: "sm_80",
        m: 16,
        k: 8,
        a: ROW_16X8,
        b: ROW_8X8,
        c: ROW_16X8,
    },
    Shape {
        name: "m16n8k16.row.col.f32.f16.f16.f32",
        target: "sm_80",
        m: 16,
        k: 16,
        a: Layout { thread: &[(4, 32), (8, 1)], value: &[(2, 16), (2, 8), (2, 128)] },
        b: Layout { thread: &[(4, 16), (8, 1)], value: &[(2, 8), (2, 64)] },
        c: ROW_16X8,
    },
    Shape {
        name: "m16n8k16.row.col.f16.f16.f16.f16",
        target: "sm_80",
        m: 16,
        k: 16,
        a: Layout { thread: &[(4, 32), (8, 1)], value: &[(2, 16), (2, 8), (2, 128)] },
        b: Layout { thread: &[(4, 16), (8, 1)], value: &[(2, 8), (2, 64)] },
        c: ROW_16X8,
    },
    Shape {
        name: "m16n8k16.row.col.f32.bf16.bf16.f32",
        target: "sm_80",
        m: 16,
        k: 16,
        a: Layout { thread: &[(4, 32), (8, 1)], value: &[(2, 16), (2, 8), (2, 128)] },
        b: Layout { thread: &[(4, 16), (8, 1)], value: &[(2, 8), (2, 64)] },
        c: ROW_16X8,
    },
    Shape {
        name: "m16n8k8.row.col.f32.bf16.bf16.f32",
        target: "sm_80",
        m: 16,
        k: 8,
        a: ROW_16X8,
        b: ROW_8X8,
        c: ROW_16X8,
    },
    Shape {
        name: "m16n8k4.row.col.f32.tf32.tf32.f32",
        target: "sm_80",
        m: 16,
        k: 4,
        a: Layout { thread: &[(4, 16), (8, 1)], value: &[(2, 8)] },
        b: COLUMN_8X4,
        c: ROW_16X8,
    },
    Shape {
        name: "m16n8k8.row.col.f32.tf32.tf32.f32",
        target: "sm_80",
        m: 16,
        k: 8,
        a: Layout { thread: &[(4, 16), (8, 1)], value: &[(2, 8), (2, 64)] },
        b: Layout { thread: &[(4, 8), (8, 1)], value: &[(2, 32)] },
        c: ROW_16X8,
    },
    Shape {
        name: "m8n8k4.row.col.f64.f64.f64.f64",
        target: "sm_80",
        m: 8,
        k: 4,
        a: COLUMN_8X4,
        b: COLUMN_8X4,
        c: ROW_8X8,
    },
    Shape { name: "m8n8k16.row.col.s32.s8.s8.s32", target: "sm_80", m: 8, k: 16, a: ROW_8X16, b: ROW_8X16, c: ROW_8X8 },
    Shape {
        name: "m16n8k16.row.col.s32.u8.s8.s32",
        target: "sm_80",
        m: 16,
        k: 16,
        a: Layout { thread: &[(4, 64), (8, 1)], value: &[(4, 16), (2, 8)] },
        b: ROW_8X16,
        c: ROW_16X8,
    },
    Shape {
        name: "m16n8k32.row.col.s32.s8.u8.s32",
        target: "sm_80",
        m: 16,
        k: 32,
        a: Layout { thread: &[(4, 64), (8, 1)], value: &[(4, 16), (2, 8), (2, 256)] },
        b: Layout { thread: &[(4, 32), (8, 1)], value: &[(4, 8), (2, 128)] },
        c: ROW_16X8,
    },
    Shape {
        name: "m16n8k64.row.col.s32.s4.s4.s32",
        target: "sm_80",
        m: 16,
        k: 64,
        a: Layout { thread: &[(4, 128), (8, 1)], value: &[(8, 16), (2, 8), (2, 512)] },
        b: Layout { thread: &[(4, 64), (8, 1)], value: &[(8, 8), (2, 256)] },
        c: ROW_16X8,
    },
    Shape {
        name: "m16n8k32.row.col.s32.u4.s4.s32",
        target: "sm_80",
        m: 16,
        k: 32,
        a: Layout { thread: &[(4, 128), (8, 1)], value: &[(8, 16), (2, 8)] },
        b: Layout { thread: &[(4, 64), (8, 1)], value: &[(8, 8)] },
        c: ROW_16X8,
    },
    Shape {
        name: "m16n8k32.row.col.f32.e4m3.e5m2.f32",
        target: "sm_89",
        m: 16,
        k: 32,
        a: Layout { thread: &[(4, 64), (8, 1)], value: &[(4, 16), (2, 8), (2, 256)] },
        b: Layout { thread: &[(4, 32), (8, 1)], value: &[(4, 8), (2, 128)] },
        c: ROW_16X8,
    },
];

fn width(ty: &str) -> usize {
    match ty {
        "f64" => 64,
        "f32" | "tf32" | "s32" => 32,
        "f16" | "bf16" => 16,
        "s8" | "u8" | "e4m3" | "e5m2" => 8,
        _ => 4,
    }
}

/// A small integer in a type.
fn encode(value: i64, ty: &str) -> u64 {
    let float = value as f32;
    match ty {
        "f64" => (value as f64).to_bits(),
        "f32" | "tf32" => u64::from(float.to_bits()),
        "s32" => u64::from(value as u32),
        "f16" => u64::from(half::f16::from_f32(float).to_bits()),
        "bf16" => u64::from(half::bf16::from_f32(float).to_bits()),
        "e4m3" => [0, 0x38, 0x40, 0x44, 0x48][value.unsigned_abs() as usize] | u64::from(value < 0) << 7,
        "e5m2" => [0, 0x3c, 0x40, 0x42, 0x44][value.unsigned_abs() as usize] | u64::from(value < 0) << 7,
        other => value as u64 & ((1 << width(other)) - 1),
    }
}

fn decode(bits: u64, ty: &str) -> i64 {
    match ty {
        "f64" => f64::from_bits(bits) as i64,
        "f32" => f32::from_bits(bits as u32) as i64,
        "f16" => half::f16::from_bits(bits as u16).to_f32() as i64,
        _ => i64::from(bits as u32 as i32),
    }
}

fn values(random: &mut fastrand::Rng, count: usize, ty: &str) -> Vec<i64> {
    let low = if ty.starts_with('u') { 0 } else { -3 };
    (0..count).map(|_| random.i64(low..4)).collect()
}

/// Per lane: the fragment's registers.
fn fragment(matrix: &[i64], layout: &Layout, ty: &str, lanes: usize) -> Vec<Vec<u64>> {
    let bits = width(ty);
    let per = (32 / bits).max(1);
    let count: usize = layout.value.iter().map(|(size, _)| size).product();
    (0..lanes)
        .map(|lane| {
            (0..count / per)
                .map(|r| (0..per).map(|j| encode(matrix[layout.index(lane, r * per + j)], ty) << (bits * j)).sum())
                .collect()
        })
        .collect()
}

fn list(prefix: &str, count: usize) -> String {
    (0..count).map(|i| format!("{prefix}{i}")).collect::<Vec<_>>().join(", ")
}

#[test]
fn mma_fragments_lie_as_cute_has_them() {
    let mut random = fastrand::Rng::with_seed(1);
    for shape in SHAPES {
        let types: Vec<&str> = shape.name.split('.').skip(3).collect();
        let (d_type, a_type, b_type) = (types[0], types[1], types[2]);
        let a = values(&mut random, shape.m * shape.k, a_type);
        let b = values(&mut random, 8 * shape.k, b_type);
        let c = values(&mut random, shape.m * 8, d_type);
        let fragments = [
            fragment(&a, &shape.a, a_type, 32),
            fragment(&b, &shape.b, b_type, 32),
            fragment(&c, &shape.c, d_type, 32),
        ];
        let counts: Vec<usize> = fragments.iter().map(|f| f[0].len()).collect();
        let (ty, bytes) = if a_type == "f64" { ("b64", 8) } else { ("b32", 4) };
        // Results and sums of `f64` and `f32` want float registers.
        let sum = if d_type == "f64" {
            "f64"
        } else if d_type == "f32" {
            "f32"
        } else {
            "b32"
        };
        let source = if a_type == "f64" { "f64" } else { ty };
        let mut body = format!(
            "    .reg .{source} %a<8>, %b<8>;\n    .reg .{sum} %c<8>, %d<8>;\n    .reg .b64 %p<8>;\n    .reg .b32 %l;\n    mov.u32 %l, %tid.x;\n"
        );
        for (i, (name, count)) in ["a", "b", "c"].iter().zip(&counts).enumerate() {
            body +=
                &format!("    ld.param.u64 %p{i}, [{name}];\n    mad.wide.u32 %p{i}, %l, {}, %p{i};\n", bytes * count);
            let ty = if *name == "c" { sum } else { source };
            for r in 0..*count {
                body += &format!("    ld.global.{ty} %{name}{r}, [%p{i}+{}];\n", bytes * r);
            }
        }
        body += &format!(
            "    mma.sync.aligned.{} {{{}}}, {{{}}}, {{{}}}, {{{}}};\n    ld.param.u64 %p3, [d];\n    mad.wide.u32 %p3, %l, {}, %p3;\n",
            shape.name,
            list("%d", counts[2]),
            list("%a", counts[0]),
            list("%b", counts[1]),
            list("%c", counts[2]),
            bytes * counts[2]
        );
        for r in 0..counts[2] {
            body += &format!("    st.global.{sum} [%p3+{}], %d{r};\n", bytes * r);
        }
        let text = module(shape.target, ".param .u64 a, .param .u64 b, .param .u64 c, .param .u64 d", &body);
        common::assembles(shape.name, &text);
        let flat = |f: &Vec<Vec<u64>>| -> Vec<u8> {
            f.iter().flatten().flat_map(|v| v.to_le_bytes()[..bytes].to_vec()).collect()
        };
        let launch = Launch {
            buffers: vec![
                Buffer::input("a", flat(&fragments[0])),
                Buffer::input("b", flat(&fragments[1])),
                Buffer::input("c", flat(&fragments[2])),
                Buffer::output("d", 32 * counts[2] * bytes),
            ],
            arguments: (0..4).map(Argument::buffer).collect(),
            ..Launch::default()
        };
        let out = &run_all(&text, &launch).buffers[3];
        let raw: Vec<u64> = if bytes == 8 { u64s(out) } else { u32s(out).into_iter().map(u64::from).collect() };
        let per = 32 / width(d_type).min(32);
        for lane in 0..32 {
            for value in 0..counts[2] * per {
                let at = shape.c.index(lane, value);
                let (row, column) = (at % shape.m, at / shape.m);
                let wanted: i64 = c[at] + (0..shape.k).map(|k| a[row + shape.m * k] * b[column + 8 * k]).sum::<i64>();
                let bits = raw[lane * counts[2] + value / per] >> (width(d_type) * (value % per));
                assert_eq!(decode(bits, d_type), wanted, "{}: row {row}, column {column}", shape.name);
            }
        }
    }
}

/// Eight rows of sixteen bytes, read and written back in every form; `movmatrix` is its own inverse.
#[test]
fn matrices_move_between_shared_memory_and_fragments() {
    let body = "    .shared .align 16 .b8 s[512];\n    .shared .align 16 .b8 o[512];\n    .reg .b64 %p<3>;\n    .reg .b32 %l, %a, %b, %r<8>, %t<8>;\n    \
        mov.u32 %l, %tid.x;\n    ld.param.u64 %p0, [d];\n    mad.wide.u32 %p1, %l, 16, %p0;\n    ld.global.v4.b32 {%r0, %r1, %r2, %r3}, [%p1];\n    \
        mov.u32 %a, s;\n    mad.lo.u32 %a, %l, 16, %a;\n    st.shared.v4.b32 [%a], {%r0, %r1, %r2, %r3};\n    bar.warp.sync -1;\n    \
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r0, %r1, %r2, %r3}, [%a];\n    \
        ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%r4, %r5, %r6, %r7}, [%a];\n    \
        movmatrix.sync.aligned.m8n8.trans.b16 %t0, %r0;\n    movmatrix.sync.aligned.m8n8.trans.b16 %t1, %r5;\n    \
        mov.u32 %b, o;\n    mad.lo.u32 %b, %l, 16, %b;\n    \
        stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%b], {%r0, %r1, %r2, %r3};\n    bar.warp.sync -1;\n    \
        ld.shared.v4.b32 {%t4, %t5, %t6, %t7}, [%b];\n    mad.wide.u32 %p2, %l, 48, %p0;\n    \
        st.global.v4.b32 [%p2+512], {%r0, %r4, %t0, %t1};\n    st.global.v4.b32 [%p2+528], {%t4, %t5, %t6, %t7};\n    \
        st.global.v4.b32 [%p2+544], {%r3, %r5, 0, 0};";
    let text = module("sm_90", ".param .u64 d", body);
    common::assembles("matrix moves", &text);
    let halves: Vec<u16> = (0..256).collect();
    let data: Vec<u8> = halves.iter().flat_map(|h| h.to_le_bytes()).chain([0; 48 * 32]).collect();
    let launch =
        Launch { buffers: vec![Buffer::both("d", data)], arguments: vec![Argument::buffer(0)], ..Launch::default() };
    let out = u32s(&run_all(&text, &launch).buffers[0]);
    // Element (row, column) of matrix i is 64 i + 8 row + column.
    let pair = |low: usize, high: usize| (low | high << 16) as u32;
    for lane in 0..32 {
        let at = &out[128 + 12 * lane..][..12];
        let (row, column) = (lane / 4, 2 * (lane % 4));
        assert_eq!(at[0], pair(8 * row + column, 8 * row + column + 1), "x4, first");
        assert_eq!(at[8], pair(192 + 8 * row + column, 192 + 8 * row + column + 1), "x4, last");
        assert_eq!(at[1], pair(8 * column + row, 8 * (column + 1) + row), "x4.trans, first");
        assert_eq!(at[9], pair(64 + 8 * column + row, 64 + 8 * (column + 1) + row), "x4.trans, second");
        assert_eq!(at[2], at[1], "movmatrix of the first is its transposed load");
        assert_eq!(at[3], pair(64 + 8 * row + column, 64 + 8 * row + column + 1), "movmatrix undoes a transposed load");
        // Stored transposed: row r of matrix i holds column r.
        let (matrix, r) = (lane / 8, lane % 8);
        for j in 0..4 {
            assert_eq!(
                at[4 + j],
                pair(64 * matrix + 8 * (2 * j) + r, 64 * matrix + 8 * (2 * j + 1) + r),
                "stmatrix.trans"
            );
        }
    }
}
