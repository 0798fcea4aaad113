//! The frame of a source file: head, helpers that the kernel uses, signature, body.

use super::emit::{self, Piece};
use crate::caps::{AmdGpu, Dot4, Float8, Matrix};
use crate::error::{Error, Result};
use crate::ir::{Access, Kernel, ParamKind, Scalar, resources};
use serde::Serialize;
use std::sync::LazyLock;
use tera::{Context, Tera};

/// The templates, as they lie in `templates/hip`.
const TEMPLATES: &[(&str, &str)] = &[
    ("frame", include_str!("../../../templates/hip/frame.hip.tera")),
    ("base", include_str!("../../../templates/hip/base.h.tera")),
    ("mask", include_str!("../../../templates/hip/mask.h.tera")),
    ("least", include_str!("../../../templates/hip/least.h.tera")),
    ("math", include_str!("../../../templates/hip/math.h.tera")),
    ("saturate", include_str!("../../../templates/hip/saturate.h.tera")),
    ("fused", include_str!("../../../templates/hip/fused.h.tera")),
    ("count_bits", include_str!("../../../templates/hip/count_bits.h.tera")),
    ("small_float", include_str!("../../../templates/hip/small_float.h.tera")),
    ("wave", include_str!("../../../templates/hip/wave.h.tera")),
    ("shuffle", include_str!("../../../templates/hip/shuffle.h.tera")),
    ("sync", include_str!("../../../templates/hip/sync.h.tera")),
    ("atomic", include_str!("../../../templates/hip/atomic.h.tera")),
    ("dot4", include_str!("../../../templates/hip/dot4.h.tera")),
    ("look_up", include_str!("../../../templates/hip/look_up.h.tera")),
    ("halves", include_str!("../../../templates/hip/halves.h.tera")),
    ("inline", include_str!("../../../templates/hip/inline.h.tera")),
    ("order", include_str!("../../../templates/hip/order.h.tera")),
];

static TERA: LazyLock<Tera> = LazyLock::new(|| {
    let mut tera = Tera::default();
    tera.add_raw_templates(TEMPLATES.iter().copied()).expect("the templates parse: a test renders each");
    tera
});

fn template(piece: Piece) -> &'static str {
    match piece {
        Piece::Mask => "mask",
        Piece::Least => "least",
        Piece::Math => "math",
        Piece::Saturate => "saturate",
        Piece::Fused => "fused",
        Piece::CountBits => "count_bits",
        Piece::SmallFloat => "small_float",
        Piece::Wave => "wave",
        Piece::Shuffle => "shuffle",
        Piece::Sync => "sync",
        Piece::Atomic => "atomic",
        Piece::Dot4 => "dot4",
        Piece::LookUp => "look_up",
        Piece::Order => "order",
        Piece::Halves => "halves",
        Piece::Inline => "inline",
    }
}

#[derive(Serialize)]
struct Device {
    gfx: &'static str,
    models: &'static str,
    wave: u32,
    dies: u32,
    dot4: &'static str,
}

/// An 8-bit float as the helpers need it.
#[derive(Serialize)]
struct Float {
    name: &'static str,
    /// The hardware's name for it, where it converts it.
    hardware: &'static str,
    /// Its numbers: fraction, bias, first special code, infinity, signed zero.
    shape: &'static str,
    max: &'static str,
    largest: &'static str,
    nan: &'static str,
}

#[derive(Serialize)]
struct Entry<'a> {
    name: &'a str,
    workgroup: String,
    threads: u32,
    /// Most vector registers of a lane.
    registers: u32,
    /// The same number as clang counts it.
    counted_registers: u32,
    shared_bytes: u64,
    parameters: Vec<String>,
    signature: String,
    body: String,
}

/// The source file of a kernel.
pub(super) fn source(kernel: &Kernel, gpu: &AmdGpu) -> Result<String> {
    let body = emit::body(kernel, gpu);
    let mut context = Context::new();
    context.insert(
        "device",
        &Device {
            gfx: super::arch(gpu),
            models: gpu.caps.gpu.map_or("", |gpu| gpu.model),
            wave: gpu.caps.subgroup,
            dies: gpu.dies,
            dot4: match gpu.dot4 {
                Dot4::Sdot4 => "sdot4",
                Dot4::Sudot4 => "sudot4",
            },
        },
    );
    let used = |name: &str| body.floats.contains(name);
    let floats: Vec<Float> = floats(gpu.float8).into_iter().filter(|float| used(float.name)).collect();
    context.insert("in_software", &floats.iter().any(|float| float.hardware.is_empty()));
    context.insert("floats", &floats);
    context.insert("bf16", &used("bf16"));
    context.insert("e8m0", &used("e8m0"));
    let render = |name: &str, context: &Context| {
        TERA.render(name, context)
            .map(|text| text.trim_end().to_string())
            .map_err(|error| Error::Bug { message: format!("template {name}: {error:?}"), text: kernel.to_string() })
    };
    let pieces = body.pieces.iter().map(|&piece| render(template(piece), &context)).collect::<Result<Vec<String>>>()?;
    let pieces: Vec<String> = pieces.into_iter().chain(body.products.iter().map(|text| guarded(text))).collect();
    let base = render("base", &context)?;
    context.insert("base", &base);
    context.insert("pieces", &pieces);
    context.insert("types", &body.types);
    let [x, y, z] = kernel.workgroup;
    let registers = resources(kernel, &gpu.caps).map_or(gpu.caps.vector_registers, |needs| needs.registers);
    context.insert(
        "kernel",
        &Entry {
            name: &kernel.name,
            workgroup: if y * z == 1 { x.to_string() } else { format!("{x} x {y} x {z}") },
            threads: kernel.threads(),
            registers,
            // Where sums of matrix instructions may lie in registers of their own, out of one file, clang takes a number for
            // each kind and doubles it: `AMDGPUSubtarget.cpp`, `getBaseMaxNumVGPRs`.
            counted_registers: if gpu.matrix == Matrix::Mfma { registers / 2 } else { registers },
            shared_bytes: kernel.shared_bytes(),
            parameters: (0..kernel.params.len()).map(|i| described(kernel, &body.names, i)).collect(),
            signature: (0..kernel.params.len())
                .map(|i| declared(kernel, &body.names, i))
                .collect::<Vec<_>>()
                .join(", "),
            body: body.lines.join("\n"),
        },
    );
    Ok(render("frame", &context)? + "\n")
}

/// A helper that stands once, however many kernels share a file.
fn guarded(text: &str) -> String {
    let name = text.split_once(" multiply_").and_then(|(_, rest)| rest.split_once('(')).map_or("", |(name, _)| name);
    format!("#ifndef BITSMITH_{name}\n#define BITSMITH_{name}\n{text}\n#endif")
}

fn described(kernel: &Kernel, names: &super::names::Names, number: usize) -> String {
    let name = names.param(number as u16);
    match kernel.params[number].kind {
        ParamKind::Buffer { access, align } => {
            let access = match access {
                Access::Read => "read",
                Access::Write => "written",
                Access::ReadWrite => "read and written",
            };
            format!("{name}: {access}, starts at a multiple of {align} bytes")
        }
        ParamKind::Scalar(scalar) => format!("{name}: {scalar}"),
    }
}

fn declared(kernel: &Kernel, names: &super::names::Names, number: usize) -> String {
    let name = names.param(number as u16);
    match kernel.params[number].kind {
        ParamKind::Buffer { access: Access::Read, .. } => format!("const u8* __restrict__ {name}"),
        ParamKind::Buffer { access: Access::Write | Access::ReadWrite, .. } => format!("u8* __restrict__ {name}"),
        ParamKind::Scalar(Scalar::I64) => format!("i64 {name}"),
        ParamKind::Scalar(Scalar::F32) => format!("f32 {name}"),
        // The verifier knows no fourth.
        ParamKind::Scalar(_) => format!("i32 {name}"),
    }
}

fn floats(hardware: Float8) -> [Float; 4] {
    let by = |kind: Float8, name: &'static str| if hardware == kind { name } else { "" };
    [
        Float {
            name: "e4m3fn",
            hardware: by(Float8::Ocp, "fp8"),
            shape: "Float8<3, 7, 0x7f, false, true>",
            max: "448.0f",
            largest: "0x7e",
            nan: "0x7f",
        },
        Float {
            name: "e4m3fnuz",
            hardware: by(Float8::Fnuz, "fp8"),
            shape: "Float8<3, 8, 0x80, false, false>",
            max: "240.0f",
            largest: "0x7f",
            nan: "0x80",
        },
        Float {
            name: "e5m2",
            hardware: by(Float8::Ocp, "bf8"),
            shape: "Float8<2, 15, 0x7c, true, true>",
            max: "57344.0f",
            largest: "0x7b",
            nan: "0x7e",
        },
        Float {
            name: "e5m2fnuz",
            hardware: by(Float8::Fnuz, "bf8"),
            shape: "Float8<2, 16, 0x80, false, false>",
            max: "57344.0f",
            largest: "0x7f",
            nan: "0x80",
        },
    ]
}
