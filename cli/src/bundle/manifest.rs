//! The manifest: what a bundle holds, for engines and build scripts. A promise: fields are added, not changed, within a
//! schema version.

use super::Piece;
use crate::failure::Failure;
use bitsmith_compiler::Error;
use bitsmith_compiler::artifact::ArgKind;
use bitsmith_compiler::lower::{self, Role};
use bitsmith_compiler::op::Op;
use bitsmith_compiler::schedule::Schedule;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Version of the manifest's fields.
pub const SCHEMA: u32 = 1;

/// Name of the manifest's file.
pub const MANIFEST: &str = "manifest.json";

/// What a bundle holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What made it.
    pub tool: ToolVersions,
    /// Name of the target: `x86-64-v3`.
    pub target: String,
    /// Platform of the object files.
    pub triple: String,
    /// Name of the recipe.
    pub recipe: String,
    /// Name of the model, or its shapes.
    pub model: String,
    /// The C header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<FileEntry>,
    /// Other files: WebGPU's page and its data.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra: Vec<FileEntry>,
    /// The kernels.
    pub kernels: Vec<KernelEntry>,
}

/// Versions that decide the bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolVersions {
    /// This tool.
    pub bitsmith: String,
    /// The code generator.
    pub cranelift: String,
}

/// A file and its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Name inside the bundle.
    pub file: String,
    /// SHA-256 of its bytes.
    pub sha256: String,
}

/// One kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelEntry {
    /// Symbol in the object file.
    pub entry: String,
    /// `matmul`, `dequant` or `quantize`.
    pub op: String,
    /// Layers that use it: `q_proj+o_proj`.
    pub layers: String,
    /// Output features; absent for quantization.
    pub n: Option<usize>,
    /// Input features.
    pub k: usize,
    /// Format of the weights, as `--format` takes it.
    pub format: Option<String>,
    /// How activations come.
    pub activation: Option<String>,
    /// Type of the result, or of the codes.
    pub output: String,
    /// How weights are packed, as `pack --packing` takes it: `n16`, `qt16-f16-gt`, `qt16-b8-gt`.
    pub packing: Option<String>,
    /// Bytes of the packed weights.
    pub packed_bytes: Option<usize>,
    /// How it runs.
    pub schedule: Schedule,
    /// Numbers of rows that it was chosen for; it computes any other number too.
    pub chosen_for_rows: Vec<usize>,
    /// How many workgroups a launch has.
    pub grid: Grid,
    /// Threads per workgroup.
    #[serde(default = "one_thread")]
    pub workgroup: [u32; 3],
    /// Bytes of scratch per thread of a CPU, of shared memory per workgroup of a GPU.
    pub scratch_bytes: u64,
    /// Arguments, in order.
    pub args: Vec<ArgEntry>,
    /// Its object file.
    #[serde(flatten)]
    pub object: FileEntry,
}

/// How many workgroups a launch has: `x` times `y` times `z`, where `x` may depend on the number of rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grid {
    /// The rule for people: `ceil(m / 4) * 256 * 1`.
    pub rule: String,
    /// Rows per workgroup along x: `x = ceil(m / this)`; absent where x is 1.
    pub tile_m: Option<u32>,
    /// Output features per workgroup along y; absent where y is 1.
    pub tile_n: Option<u32>,
    /// Workgroups along y.
    pub y: u32,
    /// Workgroups along z.
    pub z: u32,
}

/// One argument.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArgEntry {
    /// Its name.
    pub name: String,
    /// `buffer` or `i32`.
    pub kind: String,
    /// What it holds, in words.
    pub holds: String,
    /// Type of an element.
    pub dtype: String,
    /// Bytes that do not depend on the number of rows.
    pub bytes: usize,
    /// Bytes per row.
    pub bytes_per_row: usize,
    /// Alignment of its start.
    pub align: u32,
    /// Whether the kernel writes it.
    pub written: bool,
}

const fn one_thread() -> [u32; 3] {
    [1; 3]
}

impl ToolVersions {
    /// Those of this build.
    pub fn here() -> ToolVersions {
        ToolVersions {
            bitsmith: env!("CARGO_PKG_VERSION").to_string(),
            cranelift: bitsmith_compiler::target::cpu::CRANELIFT_VERSION.to_string(),
        }
    }
}

impl Manifest {
    /// As it stands in the file: sorted keys, two spaces, a newline at the end.
    pub fn to_text(&self) -> Result<String, Failure> {
        let value = serde_json::to_value(self).map_err(|error| Failure::Output(error.into()))?;
        Ok(format!("{:#}\n", sorted(value)))
    }

    /// Reads a manifest.
    pub fn parse(text: &str, name: &str) -> Result<Manifest, Failure> {
        let value: Value = serde_json::from_str(text).map_err(|error| Failure::invalid(format!("{name}: {error}")))?;
        match value.get("schema").and_then(Value::as_u64) {
            Some(schema) if schema == u64::from(SCHEMA) => {}
            other => {
                let found = other.map_or("none".to_string(), |schema| schema.to_string());
                return Err(Failure::invalid(format!("{name}: schema version is {found}; accepted: {SCHEMA}")));
            }
        }
        serde_json::from_value(value).map_err(|error| Failure::invalid(format!("{name}: {error}")))
    }
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(String, Value)> = map.into_iter().collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().map(|(key, value)| (key, sorted(value))).collect::<Map<_, _>>())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(sorted).collect()),
        other => other,
    }
}

impl KernelEntry {
    /// The entry of a kernel whose object file has this name and hash.
    pub fn new(piece: &Piece<'_>, file: &str, sha256: String) -> Result<KernelEntry, Failure> {
        let packing = lower::packing(piece.op, piece.schedule);
        let signatures = lower::signature_packed(piece.op, packing)?;
        let (n, k, format, activation, output) = match piece.op {
            Op::Matmul(op) => (Some(op.n), op.k, Some(op.weight.to_string()), Some(op.activation.to_string()), op.out),
            Op::Dequant(op) => (Some(op.n), op.k, Some(op.weight.to_string()), None, op.out),
            Op::Quantize(op) => (None, op.k, None, None, op.code),
        };
        let weights = signatures.iter().find(|s| s.role == Role::Weights);
        let args = piece.artifact.args.iter().enumerate().map(|(i, arg)| match (signatures.get(i), arg.kind) {
            (Some(s), ArgKind::Read { align } | ArgKind::Write { align } | ArgKind::ReadWrite { align }) => ArgEntry {
                name: arg.name.clone(),
                kind: "buffer".into(),
                holds: holds(s.role).into(),
                dtype: s.dtype.name().into(),
                bytes: s.fixed * s.dtype.bits() as usize / 8,
                bytes_per_row: s.per_row * s.dtype.bits() as usize / 8,
                align,
                written: s.written,
            },
            _ => ArgEntry {
                name: arg.name.clone(),
                kind: "i32".into(),
                holds: "number of rows".into(),
                dtype: "i32".into(),
                bytes: 4,
                bytes_per_row: 0,
                align: 4,
                written: false,
            },
        });
        Ok(KernelEntry {
            entry: piece.artifact.entry.clone(),
            op: piece.op.name().to_string(),
            layers: piece.layers.to_string(),
            n,
            k,
            format,
            activation,
            output: output.name().to_string(),
            packing: weights.map(|_| packing.name().to_string()),
            packed_bytes: weights.map(|s| s.fixed),
            schedule: *piece.schedule,
            chosen_for_rows: if n.is_some() && piece.op.name() == "dequant" { Vec::new() } else { piece.rows.to_vec() },
            grid: grid(piece.op, piece.schedule)?,
            workgroup: piece.artifact.workgroup,
            scratch_bytes: piece.artifact.shared_bytes,
            args: args.collect(),
            object: FileEntry { file: file.to_string(), sha256 },
        })
    }
}

/// What an argument holds, in words.
fn holds(role: Role) -> &'static str {
    match role {
        Role::Activations => "activations [m, k]",
        Role::ActivationScales => "activation scales",
        Role::ActivationSums => "sums of activation codes per segment of k",
        Role::Weights => "packed weights",
        Role::Bias => "bias [n]",
        Role::Mul => "multiplier of the gate [m, n]",
        Role::Residual => "residual [m, n]",
        Role::Gain => "gain of the norm [k]",
        Role::Smooth => "reciprocal smoothing [k]",
        Role::Output => "result",
    }
}

/// The rule behind `lower::grid`: its values for many numbers of rows decide, so that the two cannot drift apart.
fn grid(op: &Op, schedule: &Schedule) -> Result<Grid, Failure> {
    let at = |m: usize| lower::grid(op, schedule, m);
    let [_, y, z] = at(1);
    let most = 1024;
    let fits =
        |step: Option<u32>| (1..=most).all(|m| at(m) == [step.map_or(1, |step| (m as u32).div_ceil(step)), y, z]);
    // The rows of one workgroup: the most that a single one serves.
    let tile_m = (1..most).find(|&m| at(m + 1)[0] > 1).map(|m| m as u32);
    if !fits(tile_m) {
        let text = format!("{op:?} {schedule:?}");
        return Err(Error::Bug { message: "the grid follows no known rule".into(), text }.into());
    }
    let x = tile_m.map_or("1".to_string(), |step| if step == 1 { "m".into() } else { format!("ceil(m / {step})") });
    let tile_n = (y > 1).then_some(schedule.tile_n);
    Ok(Grid { rule: format!("{x} * {y} * {z}"), tile_m, tile_n, y, z })
}
