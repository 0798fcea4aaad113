//! The C header of a bundle, from `templates/c/kernels.h.tera`.

use crate::failure::Failure;
use bitsmith_compiler::Error;
use bitsmith_runtime::bundle::{ArgEntry, KernelEntry, Manifest, TargetEntry};
use serde_json::{Value, json};

const TEMPLATE: &str = include_str!("../../templates/c/kernels.h.tera");

/// The header's text for the kernels of one target.
pub fn render(manifest: &Manifest, target: &TargetEntry) -> Result<String, Failure> {
    let kernels: Vec<Value> = target.kernels.iter().map(kernel).collect();
    let context = json!({
        "version": manifest.tool.bitsmith,
        "target": target.target,
        "triple": target.triple,
        "recipe": manifest.recipe,
        "model": manifest.model,
        "kernels": kernels,
    });
    let bug =
        |error: tera::Error| Error::Bug { message: format!("the C header: {error:?}"), text: context.to_string() };
    let context = tera::Context::from_serialize(&context).map_err(&bug)?;
    Ok(tera::Tera::one_off(TEMPLATE, &context, false).map_err(bug)?)
}

fn kernel(kernel: &KernelEntry) -> Value {
    let what = match (kernel.op.as_str(), kernel.n) {
        ("matmul", Some(n)) => format!(
            "y[m, {n}] = x[m, {k}] * w[{n}, {k}]^T, weights {}, activations {}",
            kernel.format.as_deref().unwrap_or("-"),
            kernel.activation.as_deref().unwrap_or("-"),
            k = kernel.k
        ),
        ("dequant", Some(n)) => {
            format!("y[{n}, {}] = weights of {} in numbers", kernel.k, kernel.format.as_deref().unwrap_or("-"))
        }
        _ => format!("codes[m, {}] and scales of activations", kernel.k),
    };
    let rows: Vec<String> = kernel.chosen_for_rows.iter().map(ToString::to_string).collect();
    json!({
        "entry": kernel.entry,
        "what": what,
        "layers": kernel.layers,
        "file": kernel.object.file,
        "rows": rows.join(", "),
        "rule": kernel.grid.rule,
        "tile_m": kernel.grid.tile_m,
        "y": kernel.grid.y,
        "z": kernel.grid.z,
        "packed_bytes": kernel.packed_bytes,
        "scratch_bytes": kernel.scratch_bytes,
        "args": kernel.args.iter().map(arg).collect::<Vec<_>>(),
        "count": kernel.args.len(),
    })
}

fn arg(arg: &ArgEntry) -> Value {
    let element = match arg.dtype.as_str() {
        "f32" => "float",
        "f16" | "bf16" => "uint16_t",
        "i8" => "int8_t",
        "i32" => "int32_t",
        _ => "uint8_t",
    };
    let buffer = arg.kind == "buffer";
    let declaration = match (buffer, arg.written) {
        (false, _) => format!("int32_t {}", arg.name),
        (true, true) => format!("{element} *{}", arg.name),
        (true, false) => format!("const {element} *{}", arg.name),
    };
    let bytes = match (arg.bytes, arg.bytes_per_row) {
        (fixed, 0) => format!("{fixed} bytes"),
        (0, per_row) => format!("m * {per_row} bytes"),
        (fixed, per_row) => format!("{fixed} + m * {per_row} bytes"),
    };
    json!({
        "name": arg.name,
        "declaration": declaration,
        "buffer": buffer,
        "written": arg.written,
        "holds": arg.holds,
        "dtype": arg.dtype,
        "bytes": bytes,
        "align": arg.align,
    })
}
