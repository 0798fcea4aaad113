//! Kernels of KV caches in a manifest: what each computes, as fields, and back as the compiler knows it.
//!
//! Always holds: two operations have the same fields exactly where they are the same, so that a cache finds its kernels by
//! comparing fields.

use super::manifest::FileEntry;
use bitsmith_compiler::artifact::Arg;
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::kv::{KvFormat, KvLayout};
use bitsmith_compiler::op::kv::{Arithmetic, Attend, KvAppend, KvDequant, KvOp, KvRequantize, Merge, Rope, Sight};
use bitsmith_compiler::schedule::KvSchedule;
use bitsmith_compiler::{Error, Result};
use serde::{Deserialize, Serialize};

/// One kernel of a KV cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KvEntry {
    /// Symbol in the object file.
    pub entry: String,
    /// `kv_append`, `attend`, `attend_merge`, `kv_dequant` or `kv_requantize`.
    pub op: String,
    /// What it computes.
    #[serde(flatten)]
    pub spec: KvSpec,
    /// How it runs.
    pub schedule: KvSchedule,
    /// Threads per workgroup.
    pub workgroup: [u32; 3],
    /// Bytes of scratch per thread of a CPU, of shared memory per workgroup of a GPU.
    pub scratch_bytes: u64,
    /// Arguments, in order; their sizes follow from the work lists that the runtime plans.
    pub args: Vec<Arg>,
    /// Its object file.
    #[serde(flatten)]
    pub object: FileEntry,
}

/// What a kernel of a KV cache computes. Fields that an operation does not have are absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KvSpec {
    /// Format of the cache, as `list kv` shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// Format of the pages that are stored again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Tokens of a page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page: Option<usize>,
    /// Query heads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// KV heads.
    pub kv_heads: usize,
    /// Channels of keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k_dim: Option<usize>,
    /// Channels of values.
    pub v_dim: usize,
    /// Query tokens of a work item.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queries: Option<usize>,
    /// Type of keys, values, queries or outputs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub element: Option<String>,
    /// Multiplies scores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<f32>,
    /// Soft cap of scores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub softcap: Option<f32>,
    /// Whether a bias by distance is added.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub alibi: bool,
    /// Tokens of the sliding window, and first tokens that are always seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<[u32; 2]>,
    /// Whether codes of integers are summed up as integers.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub integer: bool,
    /// Whether codes of FP8 are summed up as bf16 numbers in pairs.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub bf16: bool,
    /// Whether products are summed up by matrix instructions.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub matrix: bool,
    /// Whether a learned sink is in the denominator.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub sinks: bool,
    /// Channels of keys that are rotated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotary: Option<usize>,
    /// Whether pairs of rotated channels are neighbours.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub interleaved: bool,
}

impl KvSpec {
    /// The fields of an operation.
    pub fn of(op: &KvOp) -> KvSpec {
        let layout = |l: &KvLayout| KvSpec {
            format: Some(l.format.to_string()),
            page: Some(l.page),
            kv_heads: l.heads,
            k_dim: Some(l.k.head_dim),
            v_dim: l.v.head_dim,
            ..KvSpec::default()
        };
        let element = |dtype: DType| Some(dtype.name().to_string());
        match op {
            KvOp::Append(op) => KvSpec {
                element: element(op.input),
                rotary: op.rope.map(|rope| rope.rotary),
                interleaved: op.rope.is_some_and(|rope| rope.interleaved),
                ..layout(&op.layout)
            },
            KvOp::Attend(op) => KvSpec {
                heads: Some(op.heads),
                queries: Some(op.queries),
                element: element(op.input),
                scale: Some(op.scale),
                softcap: op.softcap,
                alibi: op.alibi,
                integer: op.arithmetic == Arithmetic::Integer,
                bf16: op.arithmetic == Arithmetic::Bf16,
                matrix: op.arithmetic == Arithmetic::Matrix,
                window: match op.sight {
                    Sight::All => None,
                    Sight::Window { window, first } => Some([window, first]),
                },
                ..layout(&op.layout)
            },
            KvOp::Merge(op) => KvSpec {
                heads: Some(op.heads),
                kv_heads: op.kv_heads,
                v_dim: op.dim,
                queries: Some(op.queries),
                element: element(op.out),
                sinks: op.sinks,
                ..KvSpec::default()
            },
            KvOp::Dequant(op) => KvSpec { element: element(op.out), ..layout(&op.layout) },
            KvOp::Requantize(op) => KvSpec { from: Some(op.from.format.to_string()), ..layout(&op.to) },
        }
    }
}

impl KvEntry {
    /// The operation. Fails where a field is missing or says what this version does not know.
    pub fn operation(&self) -> Result<KvOp> {
        let spec = &self.spec;
        let missing = |field: &str| Error::invalid(format!("kernel {}: `{field}` is missing", self.entry));
        let format = || -> Result<KvFormat> { spec.format.as_deref().ok_or_else(|| missing("format"))?.parse() };
        let layout = |format: KvFormat| {
            let page = spec.page.ok_or_else(|| missing("page"))?;
            KvLayout::new(format, page, spec.kv_heads, spec.k_dim.ok_or_else(|| missing("k_dim"))?, spec.v_dim)
        };
        let element = || -> Result<DType> { spec.element.as_deref().ok_or_else(|| missing("element"))?.parse() };
        let heads = || spec.heads.ok_or_else(|| missing("heads"));
        let queries = || spec.queries.ok_or_else(|| missing("queries"));
        let op = match self.op.as_str() {
            "kv_append" => KvOp::Append(KvAppend {
                layout: layout(format()?)?,
                input: element()?,
                rope: spec.rotary.map(|rotary| Rope { rotary, interleaved: spec.interleaved }),
            }),
            "attend" => KvOp::Attend(Attend {
                layout: layout(format()?)?,
                heads: heads()?,
                queries: queries()?,
                input: element()?,
                scale: spec.scale.ok_or_else(|| missing("scale"))?,
                softcap: spec.softcap,
                alibi: spec.alibi,
                sight: spec.window.map_or(Sight::All, |[window, first]| Sight::Window { window, first }),
                arithmetic: match (spec.integer, spec.bf16, spec.matrix) {
                    (false, false, false) => Arithmetic::Float,
                    (true, false, false) => Arithmetic::Integer,
                    (false, true, false) => Arithmetic::Bf16,
                    (false, false, true) => Arithmetic::Matrix,
                    _ => {
                        let why = "more than one of `integer`, `bf16` and `matrix`";
                        return Err(Error::invalid(format!("kernel {}: {why}", self.entry)));
                    }
                },
            }),
            "attend_merge" => KvOp::Merge(Merge {
                heads: heads()?,
                kv_heads: spec.kv_heads,
                queries: queries()?,
                dim: spec.v_dim,
                out: element()?,
                sinks: spec.sinks,
            }),
            "kv_dequant" => KvOp::Dequant(KvDequant { layout: layout(format()?)?, out: element()? }),
            "kv_requantize" => {
                let from: KvFormat = spec.from.as_deref().ok_or_else(|| missing("from"))?.parse()?;
                KvOp::Requantize(KvRequantize { from: layout(from)?, to: layout(format()?)? })
            }
            other => {
                return Err(Error::invalid(format!(
                    "kernel {}: operation `{other}`; accepted: kv_append, attend, attend_merge, kv_dequant, kv_requantize",
                    self.entry
                )));
            }
        };
        op.checked()
    }
}

impl std::fmt::Display for KvSpec {
    /// In words, for messages and tables: `int8-head, 4 heads over 2 of 64, page 64, 1 query, f16`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.from.as_ref().map(|from| format!("from {from}")));
        parts.extend(self.format.clone());
        let dims = match self.k_dim {
            Some(k_dim) if k_dim != self.v_dim => format!("{k_dim} and {}", self.v_dim),
            _ => self.v_dim.to_string(),
        };
        parts.push(match self.heads {
            Some(heads) => format!("{heads} heads over {} of {dims}", self.kv_heads),
            None => format!("{} heads of {dims}", self.kv_heads),
        });
        parts.extend(self.page.map(|page| format!("page {page}")));
        parts.extend(self.queries.map(|queries| format!("queries {queries}")));
        parts.extend(self.element.clone());
        parts.extend(self.scale.map(|scale| format!("scale {scale}")));
        parts.extend(self.softcap.map(|cap| format!("soft cap {cap}")));
        parts.extend(self.alibi.then(|| "bias by distance".to_string()));
        parts.extend(self.window.map(|[window, first]| format!("window {window} after the first {first}")));
        parts.extend(self.integer.then(|| "integer sums".to_string()));
        parts.extend(self.bf16.then(|| "bf16 products".to_string()));
        parts.extend(self.matrix.then(|| "matrix sums".to_string()));
        parts.extend(self.sinks.then(|| "sinks".to_string()));
        let pairs = if self.interleaved { " in neighbours" } else { "" };
        parts.extend(self.rotary.map(|rotary| format!("{rotary} rotary channels{pairs}")));
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_goes_to_fields_and_back() {
        let layout = |format: &str| KvLayout::new(format.parse().unwrap(), 32, 2, 64, 32).unwrap();
        let (plain, windowed) = (layout("f16"), layout("int4-channel-asym.int4-token-asym+64"));
        let attend = Attend {
            layout: windowed,
            heads: 6,
            queries: 3,
            input: DType::Bf16,
            scale: 0.12345678,
            softcap: Some(30.0),
            alibi: true,
            sight: Sight::Window { window: 100, first: 4 },
            arithmetic: Arithmetic::Integer,
        };
        let merge = Merge { heads: 6, kv_heads: 2, queries: 3, dim: 32, out: DType::F16, sinks: true };
        let rope = Some(Rope { rotary: 48, interleaved: true });
        let ops = [
            KvOp::Append(KvAppend { layout: plain, input: DType::F32, rope }),
            KvOp::Append(KvAppend { layout: plain, input: DType::F32, rope: None }),
            KvOp::Attend(attend),
            KvOp::Attend(Attend { softcap: None, alibi: false, sight: Sight::All, ..attend }),
            KvOp::Attend(Attend { arithmetic: Arithmetic::Float, ..attend }),
            KvOp::Attend(Attend { arithmetic: Arithmetic::Bf16, ..attend }),
            KvOp::Attend(Attend { arithmetic: Arithmetic::Matrix, ..attend }),
            KvOp::Merge(merge),
            KvOp::Dequant(KvDequant { layout: windowed, out: DType::F16 }),
            KvOp::Requantize(KvRequantize { from: plain, to: windowed }),
        ];
        for op in &ops {
            let entry = KvEntry {
                entry: "e".into(),
                op: op.name().into(),
                spec: KvSpec::of(op),
                schedule: KvSchedule::default(),
                workgroup: [1; 3],
                scratch_bytes: 0,
                args: Vec::new(),
                object: FileEntry { file: "f".into(), sha256: String::new() },
            };
            let text = serde_json::to_string(&entry).unwrap();
            let back: KvEntry = serde_json::from_str(&text).unwrap();
            assert_eq!(back, entry, "{text}");
            assert_eq!(back.operation().unwrap(), *op, "{text}");
            assert_eq!(
                ops.iter().filter(|other| KvSpec::of(other) == entry.spec && other.name() == op.name()).count(),
                1
            );
            let unknown = KvEntry { op: "kv_append2".into(), ..entry };
            assert!(unknown.operation().unwrap_err().to_string().contains("kv_requantize"));
        }
    }
}
