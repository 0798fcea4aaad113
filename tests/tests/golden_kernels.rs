//! Goldens: lowered kernels of a handful of operations, and which schedule is chosen where. A change of either shows here
//! and is reviewed; `INSTA_UPDATE=always cargo test --workspace --test suite golden_kernels::` writes them anew.

use bitsmith_compiler::caps::Caps;
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::lower::{choose, lower};
use bitsmith_compiler::op::{Dequant, Epilogue, Matmul, Op, Per, Quantize};
use bitsmith_compiler::schedule::Schedule;
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::cpu::CpuTarget;
use std::fmt::Write;

/// Compares with `tests/golden/<name>.snap`. Only the text counts: where it was asserted does not.
fn golden(name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../golden");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}

fn matmul(n: usize, k: usize, weight: &str, activation: &str, out: DType) -> Op {
    let (weight, activation) = (weight.parse().unwrap(), activation.parse().unwrap());
    Op::Matmul(Matmul { n, k, weight, activation, out, epilogue: Epilogue::default() })
}

fn kernel(name: &str, level: &str, op: Op, m: usize) {
    let target = CpuTarget::named(level).unwrap();
    let op = op.checked().unwrap();
    let schedule = choose(&op, target.caps(), m).unwrap();
    golden(name, &lower(&op, &schedule, target.caps()).unwrap().to_string());
}

#[test]
fn a_decode_of_4_bit_weights_by_8_bit_activations() {
    kernel("decode_int4_int8", "x86-64-v3", matmul(16, 64, "int4-g32", "int8-token", DType::F32), 1);
}

#[test]
fn a_decode_of_3_bit_weights_by_floats() {
    let mut op = matmul(4, 32, "int3-g32-asym", "bf16", DType::Bf16);
    if let Op::Matmul(op) = &mut op {
        op.epilogue = Epilogue { bias: true, silu_mul: false, residual: true };
    }
    kernel("decode_int3_bf16_epilogue", "aarch64+dotprod", op, 1);
}

#[test]
fn a_prefill_of_8_bit_weights() {
    kernel("prefill_int8", "x86-64-v4+vnni", matmul(16, 32, "int8-channel", "int8-token", DType::F16), 16);
}

#[test]
fn decoding_of_a_k_quant() {
    let op = Dequant { n: 8, k: 256, weight: "q2_k".parse().unwrap(), out: DType::F32 };
    kernel("dequant_q2_k", "riscv64", Op::Dequant(op), 1);
}

#[test]
fn quantization_of_activations() {
    let op = Quantize {
        k: 48,
        input: DType::F32,
        code: DType::I8,
        per: Per::Token,
        sum_group: 32,
        norm: None,
        smooth: true,
    };
    kernel("quantize_int8", "x86-64-v3", Op::Quantize(op), 1);
}

#[test]
fn the_choice_of_schedules() {
    let mut text = String::new();
    let line = |text: &mut String, caps: &Caps, op: &Op, what: &str, m: usize| {
        let Schedule { family, tile_m, tile_n, unroll, .. } = choose(op, caps, m).unwrap();
        let _ = writeln!(
            text,
            "{:<16} {what:<28} M={m:<4} {} {tile_m}x{tile_n}, unroll {unroll}",
            caps.name,
            family.name()
        );
    };
    for level in ["x86-64-v3", "x86-64-v4+vnni", "aarch64+dotprod", "riscv64"] {
        let target = CpuTarget::named(level).unwrap();
        for weight in
            ["int8-channel", "int4-g32", "int4-g128-asym", "int2-g64", "ternary-g128", "q4_k", "q6_k", "mxfp4"]
        {
            for activation in ["int8-token", "bf16"] {
                let op = matmul(4096, 4096, weight, activation, DType::F32);
                for m in [1, 8, 128] {
                    line(&mut text, target.caps(), &op, &format!("{weight} by {activation}"), m);
                }
            }
        }
    }
    golden("schedules", &text);
}
