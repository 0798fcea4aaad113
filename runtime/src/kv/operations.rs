//! The operations that a cache of a format launches: what a bundle must hold for it.

use super::KvShape;
use super::programs::most_rows;
use bitsmith_compiler::Result;
use bitsmith_compiler::caps::{Caps, Feature};
use bitsmith_compiler::format::kv::{KvFormat, KvLayout};
use bitsmith_compiler::lower::kv::{takes_bf16, takes_matrix};
use bitsmith_compiler::op::kv::{Arithmetic, Attend, KvAppend, KvDequant, KvOp, KvRequantize, Merge, Rope, Sight};

/// How an attention sums up products: as it is asked to, where it has integers at all, or the device has matrix instructions
/// for it. Unasked by those, else in integers on a processor with vectors of 32 bytes or more, where that is faster and 16
/// bits lose nothing that shows, or beside FP8 by bf16 numbers, which such codes outdo in losses.
pub fn arithmetic(attend: &Attend, asked: Option<Arithmetic>, caps: &Caps) -> Arithmetic {
    let wide = !caps.features.has(Feature::Workgroups) && caps.vector_bytes >= 32;
    match asked {
        None | Some(Arithmetic::Matrix) if takes_matrix(attend, caps) => Arithmetic::Matrix,
        Some(Arithmetic::Integer) if attend.has_integers() => Arithmetic::Integer,
        None if wide && attend.has_integers() => Arithmetic::Integer,
        None | Some(Arithmetic::Bf16) if takes_bf16(attend, caps) => Arithmetic::Bf16,
        _ => Arithmetic::Float,
    }
}

/// Append (rotated where `rope` says so), attention for one new token and for many, merge, gather, and what a window takes,
/// on devices of these caps: plain causal attention, scaled by `1 / sqrt(k_dim)`.
pub fn operations(shape: &KvShape, format: KvFormat, rope: Option<Rope>, caps: &Caps) -> Result<Vec<KvOp>> {
    shape.check()?;
    let layout = |format| KvLayout::new(format, shape.page, shape.kv_heads, shape.k_dim, shape.v_dim);
    let own = layout(format)?;
    let mut layouts = vec![own];
    if format.window > 0 {
        layouts.push(layout(KvFormat::F16)?);
    }
    let newest = layouts[layouts.len() - 1];
    let mut ops = vec![KvOp::Append(KvAppend { layout: newest, input: shape.dtype, rope })];
    if format.window > 0 {
        ops.push(KvOp::Requantize(KvRequantize { from: newest, to: own }));
    }
    let most = (most_rows(caps) / (shape.heads / shape.kv_heads)).max(1);
    let mut queries = vec![1, most];
    queries.dedup();
    for queries in queries {
        for &layout in &layouts {
            let attend = Attend {
                layout,
                heads: shape.heads,
                queries,
                input: shape.dtype,
                scale: 1.0 / (shape.k_dim as f32).sqrt(),
                softcap: None,
                alibi: false,
                sight: Sight::All,
                arithmetic: Arithmetic::Float,
            };
            ops.push(KvOp::Attend(Attend { arithmetic: arithmetic(&attend, None, caps), ..attend }));
        }
        ops.push(KvOp::Merge(Merge {
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            queries,
            dim: shape.v_dim,
            out: shape.dtype,
            sinks: false,
        }));
    }
    ops.extend(layouts.iter().map(|&layout| KvOp::Dequant(KvDequant { layout, out: shape.dtype })));
    ops.into_iter().map(KvOp::checked).collect()
}
