//! The page that runs a bundle's WGSL kernels in a browser, from `templates/webgpu/page.html.tera`, and its data.
//!
//! Reads the kernels of a bundle; makes the page, the inputs of each kernel and numbers that the reference gives for them.
//! Always holds: the same kernels give the same files. Kernels whose weights take more than [`MOST`] bytes come without
//! data: the page times them on zeros and says so.

use super::{File, Manifest, Part, Piece, sha256};
use crate::failure::Failure;
use bitsmith_autotune::problem::{Problem, Sample};
use bitsmith_compiler::Error;
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::lower::{Role, signature};
use bitsmith_compiler::op::Op;
use bitsmith_runtime::bundle::TargetEntry;
use serde_json::{Value, json};

const TEMPLATE: &str = include_str!("../../templates/webgpu/page.html.tera");

/// Name of the page.
const PAGE: &str = "index.html";

/// Most bytes of packed weights that a kernel comes with.
const MOST: usize = 16 << 20;

/// Rows and columns of a result that are compared; smaller results are compared as a whole.
const LINES: usize = 64;

/// The page, the data first.
pub fn files(part: &Part<'_>, manifest: &Manifest, target: &TargetEntry) -> Result<Vec<File>, Failure> {
    let mut files = Vec::new();
    let mut kernels = Vec::new();
    let mut last = None;
    for (piece, entry) in part.pieces.iter().zip(&target.kernels) {
        let rows: &[usize] = if matches!(piece.op, Op::Dequant(_)) { &[1] } else { piece.rows };
        let mut checks = Vec::new();
        for &m in rows {
            checks.push(check(piece, m, &mut last, &mut files)?);
        }
        let operations = match piece.op {
            Op::Matmul(op) => 2 * op.n * op.k,
            Op::Dequant(op) => op.n * op.k,
            Op::Quantize(op) => op.k,
        };
        kernels.push(json!({
            "entry": entry.entry,
            "op": entry.op,
            "layers": entry.layers,
            "n": entry.n,
            "k": entry.k,
            "format": entry.format,
            "activation": entry.activation,
            // Beside the page, whatever folder both lie in.
            "file": entry.object.file.rsplit('/').next(),
            "grid": entry.grid,
            "args": entry.args,
            "operations_per_row": operations,
            "checks": checks,
        }));
    }
    let list = serde_json::to_string(&kernels).map_err(|error| Failure::Output(error.into()))?;
    let context = json!({
        "model": manifest.model,
        "recipe": manifest.recipe,
        "target": target.target,
        "version": manifest.tool.bitsmith,
        // Nothing in it may end the script.
        "kernels": list.replace('<', "\\u003c"),
    });
    let bug = |error: tera::Error| Error::Bug { message: format!("the page: {error:?}"), text: String::new() };
    let context = tera::Context::from_serialize(&context).map_err(bug)?;
    files.push((PAGE.to_string(), tera::Tera::one_off(TEMPLATE, &context, true).map_err(bug)?.into_bytes()));
    Ok(files)
}

/// The inputs of a kernel and what the reference makes of them, as files; the rows alone where the weights are too large or
/// the codes are no integers.
fn check(piece: &Piece<'_>, m: usize, last: &mut Option<Problem>, files: &mut Vec<File>) -> Result<Value, Failure> {
    let weights = signature(piece.op)?.into_iter().find(|s| s.role == Role::Weights).map_or(0, |s| s.bytes(m));
    let why = match piece.op {
        _ if weights > MOST => Some(format!("{} MiB of weights do not come with the page", weights >> 20)),
        Op::Quantize(op) if op.code != DType::I8 => Some("codes of 8-bit floats are not compared".to_string()),
        _ => None,
    };
    if let Some(why) = why {
        return Ok(json!({ "m": m, "timed_only": why }));
    }
    let problem = match last.take() {
        Some(old) if old.op == *piece.op => old.with_rows(m, m as u64)?,
        _ => Problem::random(piece.op, m, m as u64)?,
    };
    let mut inputs = Vec::new();
    for buffer in &problem.buffers {
        inputs.push((!buffer.signature.written).then(|| data(buffer.bytes.clone(), files)));
    }
    let mut expected = problem.expected(piece.schedule.family, Sample::Lines(LINES));
    if let Op::Quantize(_) = piece.op {
        // A quotient in WGSL may be off by 2.5 units in the last place, so that a tie may fall to the other side.
        expected.iter_mut().for_each(|(_, number)| number.bound = number.bound.max(1.0));
    }
    let numbers = expected.into_iter().flat_map(|(place, number)| [place as f64, number.value, number.bound]);
    let expected = data(numbers.flat_map(f64::to_le_bytes).collect(), files);
    *last = Some(problem);
    Ok(json!({ "m": m, "inputs": inputs, "expected": expected }))
}

/// The file that holds some bytes, made if there is none yet.
fn data(bytes: Vec<u8>, files: &mut Vec<File>) -> String {
    let name = format!("data-{}.bin", &sha256(&bytes)[..16]);
    if !files.iter().any(|(known, _)| *known == name) {
        files.push((name.clone(), bytes));
    }
    name
}
