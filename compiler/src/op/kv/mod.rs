//! Operations on a paged KV cache: append, attend, merge, dequantize, requantize.
//!
//! They are not variants of [`super::Op`]: an `Op` has a matrix and M rows, and everything that asks for a schedule, a size
//! or a roof counts in rows. A cache operation has pages, block tables and a list of work that the host plans, so it has an
//! enumeration, a signature and families of its own; IR, targets and runtime are the same.
//!
//! Work lists are arrays of `i32` records, one for each thing that a launch does; their fields stand with each operation.
//! Always holds: what `append` and `requantize` store is defined bit by bit, and `attend` by a value and a derived bound.

mod append;
mod attend;
mod pool;
mod reference;

pub use append::{KvAppend, Rope, SPAN};
pub use attend::{Arithmetic, Attend, ITEM, LEAST, MOST_TOKENS, Merge, ROW, Sight};
pub use pool::{KvStatics, Pool};
pub use reference::{AttendInputs, Reference};

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::kv::{KvLayout, KvPer};

/// Something to do with a KV cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KvOp {
    /// New keys and values, rotated and quantized, into pages.
    Append(KvAppend),
    /// Attention over a range of tokens per work item: partial results.
    Attend(Attend),
    /// Partial results into attention outputs.
    Merge(Merge),
    /// Pages into plain numbers.
    Dequant(KvDequant),
    /// Pages of one format into pages of another.
    Requantize(KvRequantize),
}

/// Gathers tokens: `k_out [rows, heads, k_dim]` and `v_out [rows, heads, v_dim]`. Work: [`SPAN`] records.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KvDequant {
    /// The cache.
    pub layout: KvLayout,
    /// Type of the numbers: f16, bf16 or f32.
    pub out: DType,
}

/// Stores pages of one cache in another format. Work: records of 4 `i32`, `{source page, target page, tokens, 0}`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KvRequantize {
    /// Where pages come from.
    pub from: KvLayout,
    /// Where they go; the same page size and shape.
    pub to: KvLayout,
}

/// `i32` fields of a record of [`KvRequantize`].
pub const PAIR: usize = 4;

impl KvOp {
    /// Every fault of the description.
    pub fn faults(&self) -> Vec<String> {
        match self {
            KvOp::Append(op) => op.faults(),
            KvOp::Attend(op) => op.faults(),
            KvOp::Merge(op) => op.faults(),
            KvOp::Dequant(op) => {
                let mut faults = Vec::new();
                super::float_fault("output type", op.out, &mut faults);
                faults
            }
            KvOp::Requantize(op) => op.faults(),
        }
    }

    /// The operation if it is sound, else all its faults.
    pub fn checked(self) -> Result<KvOp> {
        let faults = self.faults();
        if faults.is_empty() { Ok(self) } else { Err(Error::Invalid(faults)) }
    }

    /// Short name for messages and entry points.
    pub fn name(&self) -> &'static str {
        match self {
            KvOp::Append(_) => "kv_append",
            KvOp::Attend(_) => "attend",
            KvOp::Merge(_) => "attend_merge",
            KvOp::Dequant(_) => "kv_dequant",
            KvOp::Requantize(_) => "kv_requantize",
        }
    }
}

impl KvRequantize {
    fn faults(&self) -> Vec<String> {
        let shape = |l: &KvLayout| (l.page, l.heads, l.k.head_dim, l.v.head_dim);
        let mut faults = Vec::new();
        if shape(&self.from) != shape(&self.to) {
            faults.push(format!(
                "pages of {:?} become pages of {:?} (tokens, heads, channels of K and V); accepted: the same shape",
                shape(&self.from),
                shape(&self.to)
            ));
        }
        faults
    }

    /// Stores `tokens` tokens of `source`'s page `from` in `target`'s page `to`.
    pub fn reference(&self, source: &Pool<'_>, target: &mut Pool<'_>, from: usize, to: usize, tokens: usize) {
        for head in 0..self.to.heads {
            for side in [crate::format::kv::Side::K, crate::format::kv::Side::V] {
                let dim = self.to.part(side).head_dim;
                let row = |token: usize| -> Vec<f32> {
                    (0..dim).map(|c| source.stored(side, from, head, token, c)).collect()
                };
                if self.to.part(side).codes.per == KvPer::Channel {
                    let rows: Vec<Vec<f32>> = (0..tokens).map(row).collect();
                    target.store_page(side, to, head, &rows);
                } else {
                    (0..tokens).for_each(|token| target.store_token(side, to, head, token, &row(token)));
                }
            }
        }
    }
}
