//! The page that runs a bundle's WGSL kernels in a browser, from `templates/webgpu/page.html.tera`, and its data.
//!
//! Always holds: the same kernels give the same files. Kernels whose inputs would take more than [`MOST`] bytes come
//! without data: the page times them on zeros.

use super::{File, Manifest, Piece};
use crate::failure::Failure;
use bitsmith_autotune::problem::Problem;
use bitsmith_compiler::Error;
use bitsmith_compiler::artifact::ArgKind;
use bitsmith_compiler::op::Op;
use serde_json::{Value, json};

const TEMPLATE: &str = include_str!("../../../templates/webgpu/page.html.tera");

/// Name of the page.
const PAGE: &str = "index.html";

/// Most bytes of inputs that a kernel comes with.
const MOST: usize = 8 << 20;

/// Largest product of rows and weights that a reference is computed for.
const MOST_WORK: usize = 1 << 28;

/// The page, the data first.
pub fn files(pieces: &[Piece<'_>], manifest: &Manifest) -> Result<Vec<File>, Failure> {
    let mut files = Vec::new();
    let mut kernels = Vec::new();
    for (piece, entry) in pieces.iter().zip(&manifest.kernels) {
        let rows: &[usize] = if matches!(piece.op, Op::Dequant(_)) { &[1] } else { piece.rows };
        let checks = rows.iter().map(|&m| check(piece, m, &mut files)).collect::<Result<Vec<_>, Failure>>()?;
        let operations = match piece.op {
            Op::Matmul(op) => 2 * op.n * op.k,
            Op::Dequant(op) => op.n * op.k,
            Op::Quantize(op) => op.k,
        };
        kernels.push(json!({
            "entry": entry.entry,
            "file": entry.object.file,
            "grid": entry.grid,
            "args": entry.args,
            "uses_rows": piece.artifact.args.iter().any(|arg| matches!(arg.kind, ArgKind::I32)),
            "operations_per_row": operations,
            "checks": checks,
        }));
    }
    let list = serde_json::to_string(&kernels).map_err(|error| Failure::Output(error.into()))?;
    let context = json!({
        "model": manifest.model,
        "recipe": manifest.recipe,
        "count": kernels.len(),
        // Nothing in it may end the script.
        "kernels": list.replace('<', "\\u003c"),
    });
    let bug = |error: tera::Error| Error::Bug { message: format!("the page: {error:?}"), text: String::new() };
    let context = tera::Context::from_serialize(&context).map_err(bug)?;
    files.push((PAGE.to_string(), tera::Tera::one_off(TEMPLATE, &context, true).map_err(bug)?.into_bytes()));
    Ok(files)
}

/// The inputs of a kernel and what the reference makes of them, as files; nothing but the rows where they are too large.
fn check(piece: &Piece<'_>, m: usize, files: &mut Vec<File>) -> Result<Value, Failure> {
    let (n, k) = match piece.op {
        Op::Matmul(op) => (op.n, op.k),
        Op::Dequant(op) => (op.n, op.k),
        // Its quotients are not exact in WGSL, and a code may fall on the other side of a tie: it is only timed.
        Op::Quantize(_) => return Ok(json!({ "m": m })),
    };
    // Weights are the most of it: a byte each at the most.
    if n * k > MOST || m * n * k > MOST_WORK {
        return Ok(json!({ "m": m }));
    }
    let problem = Problem::random(piece.op, m, m as u64)?;
    let entry = &piece.artifact.entry;
    let mut inputs = Vec::new();
    for (i, buffer) in problem.buffers.iter().enumerate() {
        if buffer.signature.written {
            inputs.push(Value::Null);
            continue;
        }
        let name = format!("{entry}.m{m}.{i}.bin");
        inputs.push(Value::String(name.clone()));
        files.push((name, buffer.bytes.clone()));
    }
    let name = format!("{entry}.m{m}.expected.bin");
    let numbers = problem.expected().into_iter().flat_map(|e| [e.value, e.bound]);
    files.push((name.clone(), numbers.flat_map(f64::to_le_bytes).collect()));
    Ok(json!({ "m": m, "inputs": inputs, "expected": name }))
}
