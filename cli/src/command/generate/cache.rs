//! Kernels of KV caches for a bundle: what `--kv` asks for.

use crate::bundle::KvPiece;
use crate::failure::Failure;
use crate::shapes::{Heads, Model};
use crate::stages::Emit;
use bitsmith_compiler::compile_kv;
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::kv::KvFormat;
use bitsmith_compiler::lower::kv::choose;
use bitsmith_compiler::op::kv::Rope;
use bitsmith_compiler::target::Target;
use bitsmith_runtime::kv::{KvShape, operations};
use serde_json::{Map, Value};

/// Options for KV caches.
#[derive(Debug, clap::Args)]
pub struct Cache {
    /// Formats of KV caches to add kernels for (append, attention, gather); `bitsmith list kv`
    #[arg(long, value_name = "FORMAT", value_delimiter = ',')]
    kv: Vec<String>,
    /// Heads of attention as QUERY/KVxCHANNELS, such as 32/8x128 [default: those of the model]
    #[arg(long, value_name = "HEADS", requires = "kv")]
    heads: Option<Heads>,
    /// Tokens of a page of the KV cache
    #[arg(long, value_name = "TOKENS", default_value_t = 64)]
    page: usize,
    /// Channels of keys to rotate as they are appended, the two of a pair half of them apart; with an `i`, neighbours: 128, 64i
    #[arg(long, value_name = "CHANNELS", requires = "kv", value_parser = rope)]
    rope: Option<Rope>,
}

/// A rotary embedding as clap takes it.
fn rope(text: &str) -> Result<Rope, String> {
    let (digits, interleaved) = text.strip_suffix('i').map_or((text, false), |digits| (digits, true));
    let rotary = digits.parse().map_err(|_| "accepted: a number of channels, with an `i` for neighbours")?;
    Ok(Rope { rotary, interleaved })
}

/// What a cache needs on one target.
#[derive(Default)]
pub struct Kernels {
    pub pieces: Vec<KvPiece>,
    pub stages: Vec<(String, Map<String, Value>)>,
}

impl Cache {
    /// The kernels of every format for a target, and the stages of them that `emit` asks for, by entry; numbers come and go
    /// in `dtype`.
    pub fn kernels(&self, model: &Model, dtype: DType, target: &dyn Target, emit: &Emit) -> Result<Kernels, Failure> {
        if self.kv.is_empty() {
            return Ok(Kernels::default());
        }
        let Heads { query, kv, dim } = self.heads.or(model.heads).ok_or_else(|| {
            Failure::invalid(format!(
                "--kv with --shapes {}: sizes name no heads of attention; add --heads, such as 32/8x128",
                model.name
            ))
        })?;
        let shape = KvShape { heads: query, kv_heads: kv, k_dim: dim, v_dim: dim, page: self.page, dtype };
        let Kernels { mut pieces, mut stages } = Kernels::default();
        for format in &self.kv {
            let format: KvFormat = format.parse()?;
            for op in operations(&shape, format, self.rope, target.caps())? {
                // Formats share the merge, and the f16 pages of windows.
                if pieces.iter().any(|piece| piece.op == op) {
                    continue;
                }
                let schedule = choose(&op, target.caps());
                let made = compile_kv(&op, &schedule, target)?;
                if let Some(some) = emit.of_kv(&op, &schedule, &made, target)? {
                    stages.push((made.artifact.entry.clone(), some));
                }
                pieces.push(KvPiece { op, schedule, artifact: made.artifact });
            }
        }
        Ok(Kernels { pieces, stages })
    }
}
