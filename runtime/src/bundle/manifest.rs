//! The manifest: what a bundle holds, for engines and build scripts. A promise: fields are added, not changed, within a
//! schema version.

use super::kv::KvEntry;
use super::sha256;
use bitsmith_compiler::artifact::{Arg, ArgKind, Preparation};
use bitsmith_compiler::schedule::Schedule;
use bitsmith_compiler::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Version of the manifest's fields.
pub const SCHEMA: u32 = 4;

/// Name of the manifest's file.
pub const MANIFEST: &str = "manifest.json";

/// What a bundle holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`SCHEMA`].
    pub schema: u32,
    /// SHA-256 of this manifest's own text without this field: a changed manifest is refused, since sizes are read from it.
    #[serde(default)]
    pub digest: String,
    /// What made it.
    pub tool: ToolVersions,
    /// The licence of the kernels, as SPDX writes it.
    pub licence: String,
    /// Name of the recipe.
    pub recipe: String,
    /// Name of the model, or its shapes.
    pub model: String,
    /// How packed weights lie, one entry per packing and format.
    pub packings: Vec<PackingEntry>,
    /// One entry per target; more than one in a fat bundle.
    pub targets: Vec<TargetEntry>,
}

/// The kernels of one target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetEntry {
    /// Name of the target, as `--device` takes it: `x86-64-v3`, `sm_90a`.
    pub target: String,
    /// Name of the target in the artifacts, which decides whether a device takes them.
    pub made_for: String,
    /// Platform of the files.
    pub triple: String,
    /// What a machine must have to run them, in words.
    pub needs: String,
    /// The C header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<FileEntry>,
    /// Other files: WebGPU's page and its data.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra: Vec<FileEntry>,
    /// The kernels.
    pub kernels: Vec<KernelEntry>,
    /// Kernels of KV caches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kv: Vec<KvEntry>,
}

/// How the packed weights of a format lie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackingEntry {
    /// Name of the packing, as `pack --packing` takes it.
    pub packing: String,
    /// Name of the format, as `--format` takes it.
    pub format: String,
    /// The layout of each plane of codes, low address bit first: `b0 b1 k2 k0 k1 n0 n1 n2 n3`.
    pub planes: Vec<String>,
    /// The rest in words.
    pub description: String,
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
    /// What only some operations have.
    #[serde(flatten)]
    pub details: Details,
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
    /// Where the schedule comes from: `chooser`, or the device that it was tuned on.
    #[serde(default)]
    pub chosen_by: String,
    /// How many workgroups a launch has.
    pub grid: Grid,
    /// Threads per workgroup.
    #[serde(default = "one_thread")]
    pub workgroup: [u32; 3],
    /// Bytes of scratch per thread of a CPU, of shared memory per workgroup of a GPU.
    pub scratch_bytes: u64,
    /// Arguments, in order.
    pub args: Vec<ArgEntry>,
    /// A kernel of the same file that each launch runs first, over a grid of its own; absent where a launch is one kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preparation: Option<Preparation>,
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
    /// Output features per workgroup along y; absent where y is 1, or where workgroups share them.
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
    /// A workspace: it must be zero before the first launch with it, and each launch leaves it ready for the next one. No two
    /// launches may use one at a time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub zeroed: bool,
}

/// What only some operations have; absent where they do not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Details {
    /// Parts of a matmul's epilogue: `bias`, `silu_mul`, `residual`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub epilogue: Vec<String>,
    /// Type of what a quantization reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// Columns per sum that a quantization writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sum_group: Option<usize>,
    /// Epsilon of the RMSNorm in front of a quantization.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_eps: Option<f32>,
    /// Whether a quantization multiplies by a smoothing vector.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub smooth: bool,
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
    /// States the digest of everything else.
    pub fn seal(&mut self) -> Result<()> {
        self.digest = self.own_digest()?;
        Ok(())
    }

    fn own_digest(&self) -> Result<String> {
        Ok(sha256(Manifest { digest: String::new(), ..self.clone() }.to_text()?.as_bytes()))
    }

    /// As it stands in the file: sorted keys, two spaces, a newline at the end.
    pub fn to_text(&self) -> Result<String> {
        let bug = |error: serde_json::Error| Error::Bug { message: error.to_string(), text: format!("{self:?}") };
        Ok(format!("{:#}\n", sorted(serde_json::to_value(self).map_err(bug)?)))
    }

    /// Reads a manifest and checks its digest. Fails with the name, what was found and what is accepted.
    pub fn parse(text: &str, name: &str) -> Result<Manifest> {
        let fault = |what: String| Error::invalid(format!("{name}: {what}"));
        let value: Value = serde_json::from_str(text).map_err(|error| fault(error.to_string()))?;
        match value.get("schema").and_then(Value::as_u64) {
            Some(schema) if schema == u64::from(SCHEMA) => {}
            other => {
                let found = other.map_or("none".to_string(), |schema| schema.to_string());
                return Err(fault(format!("schema version is {found}; accepted: {SCHEMA}; generate the bundle again")));
            }
        }
        let manifest: Manifest = serde_json::from_value(value).map_err(|error| fault(error.to_string()))?;
        let digest = manifest.own_digest()?;
        if digest != manifest.digest {
            return Err(fault(format!(
                "its content has digest {digest}, it states `{}`: it was changed or cut; generate the bundle again",
                manifest.digest
            )));
        }
        Ok(manifest)
    }

    /// Every file that the manifest states, with the target that it belongs to.
    pub fn files(&self) -> impl Iterator<Item = (&TargetEntry, &FileEntry)> {
        self.targets.iter().flat_map(|target| {
            let kernels = target.kernels.iter().map(|kernel| &kernel.object);
            let kv = target.kv.iter().map(|kernel| &kernel.object);
            target.header.iter().chain(&target.extra).chain(kernels).chain(kv).map(move |file| (target, file))
        })
    }

    /// Every kernel, with its target.
    pub fn kernels(&self) -> impl Iterator<Item = (&TargetEntry, &KernelEntry)> {
        self.targets.iter().flat_map(|target| target.kernels.iter().map(move |kernel| (target, kernel)))
    }
}

impl ArgEntry {
    /// Bytes for `m` rows; `None` past what a machine can address.
    pub fn bytes_for(&self, m: usize) -> Option<usize> {
        self.bytes_per_row.checked_mul(m)?.checked_add(self.bytes)
    }

    /// As an artifact states it.
    pub(super) fn arg(&self) -> Arg {
        let align = self.align;
        let kind = match (self.kind.as_str(), self.written) {
            ("buffer", true) if self.zeroed => ArgKind::ReadWrite { align },
            ("buffer", true) => ArgKind::Write { align },
            ("buffer", false) => ArgKind::Read { align },
            _ => ArgKind::I32,
        };
        Arg { name: self.name.clone(), kind }
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
