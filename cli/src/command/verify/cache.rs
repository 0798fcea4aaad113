//! Kernels of KV caches in a bundle, run on a device: what they store, gather and attend to, against the reference.
//!
//! Reads the attention kernels of a target; makes a cache for each format and shape from the bundle alone, fills it in two steps (a
//! prompt over several pages, then one token), and compares every number that is gathered, bit by bit, and every output, with its
//! bound.

use crate::failure::Failure;
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::kv::{KvFormat, KvLayout, Side};
use bitsmith_compiler::op::kv::{Attend, AttendInputs, KvAppend, KvOp, KvRequantize, KvStatics, Pool, Rope, Sight};
use bitsmith_runtime::bundle::{Kernels, KvEntry};
use bitsmith_runtime::kv::{AttendOptions, KvCache, KvShape};
use bitsmith_runtime::{Buffer, Device};
use serde::Serialize;
use std::sync::Arc;

/// What became of one cache.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    /// The cache, in words.
    pub cache: String,
    /// Numbers that were gathered.
    pub stored: usize,
    /// Those that are not what the reference stores.
    pub wrong: usize,
    /// Outputs of attention.
    pub compared: usize,
    /// The largest error over its bound.
    pub worst_ratio: f64,
}

impl Row {
    /// Whether all is as it should be.
    pub fn passed(&self) -> bool {
        self.wrong == 0 && self.compared > 0 && self.worst_ratio <= 1.0
    }
}

/// Runs every cache that the bundle has kernels for.
pub(super) fn results(kernels: &Arc<Kernels>) -> Result<Vec<Row>, Failure> {
    let entries = &kernels.target().kv;
    let mut rows = Vec::new();
    for entry in entries {
        let KvOp::Attend(attend) = entry.operation()? else { continue };
        // Each format once; `generate` makes attention over all tokens, for one new one and for many.
        if attend.queries != 1 || attend.sight != Sight::All || attend.alibi {
            continue;
        }
        let rope = entries.iter().filter(|other| other.op == "kv_append" && same(other, entry, attend.layout.format));
        let rope = rope.map(|other| other.spec.rotary.map(|rotary| (rotary, other.spec.interleaved))).next();
        let rope = rope.flatten().map(|(rotary, interleaved)| Rope { rotary, interleaved });
        rows.push(Case { attend, rope }.run(kernels)?);
    }
    Ok(rows)
}

/// Whether an append serves the cache of an attention: its format, or the f16 pages of its window.
fn same(append: &KvEntry, attend: &KvEntry, format: KvFormat) -> bool {
    let shape = |entry: &KvEntry| (entry.spec.page, entry.spec.kv_heads, entry.spec.k_dim, entry.spec.v_dim);
    let wanted = if format.window > 0 { KvFormat::F16 } else { format };
    shape(append) == shape(attend) && append.spec.format == Some(wanted.to_string())
}

struct Case {
    attend: Attend,
    rope: Option<Rope>,
}

impl Case {
    fn run(&self, kernels: &Arc<Kernels>) -> Result<Row, Failure> {
        let (op, layout) = (&self.attend, self.attend.layout);
        let format = layout.format;
        let (k_dim, v_dim, dtype) = (layout.k.head_dim, layout.v.head_dim, op.input);
        let shape = KvShape { heads: op.heads, kv_heads: layout.heads, k_dim, v_dim, page: layout.page, dtype };
        let tokens = format.window as usize + 2 * layout.page + 6;
        let pages = tokens.div_ceil(layout.page);
        let device = &**kernels.device();
        let mut cache = KvCache::of_bundle(kernels.clone(), shape, &[format], pages, 1)?;
        let statics: Vec<KvStatics> = if layout.k.codes.is_static() || layout.v.codes.is_static() {
            let given = KvStatics { k: (2.0 / layout.k.codes.top(), -1.0), v: (2.0 / layout.v.codes.top(), -1.0) };
            let list = vec![given; layout.heads];
            cache.set_scales(0, &list)?;
            list
        } else {
            Vec::new()
        };
        let table: Vec<f32> = self.rope.map_or(Vec::new(), |rope| rotary_table(rope, tokens));
        if let Some(rope) = self.rope {
            cache.set_rope(rope, &table)?;
        }
        let mut rng = fastrand::Rng::with_seed(7);
        let mut numbers = |count: usize| -> Vec<f32> {
            let rounded = |x: f32| dtype.decode(dtype.encode(f64::from(x))) as f32;
            (0..count).map(|_| rounded(rng.f32() * 2.0 - 1.0)).collect()
        };
        let (k, v) = (numbers(tokens * layout.heads * k_dim), numbers(tokens * layout.heads * v_dim));
        let q = numbers(tokens * op.heads * k_dim);
        let id = cache.open()?;
        let options =
            AttendOptions { softcap: op.softcap, arithmetic: Some(op.arithmetic), ..AttendOptions::causal(op.scale) };
        let mut outputs = Vec::new();
        for (start, count) in [(0, tokens - 1), (tokens - 1, 1)] {
            let part = |list: &[f32], width: usize| list[start * width..(start + count) * width].to_vec();
            let upload = |list: Vec<f32>| filled(device, dtype, &list);
            let (kb, vb) = (upload(part(&k, layout.heads * k_dim))?, upload(part(&v, layout.heads * v_dim))?);
            let (qb, yb) = (
                upload(part(&q, op.heads * k_dim))?,
                device.allocate(count * op.heads * v_dim * dtype.bits() as usize / 8)?,
            );
            cache.grow(&[(id, count)])?;
            cache.append(0, kb.view(), vb.view())?;
            cache.attend(0, qb.view(), yb.view(), &options)?;
            outputs.extend(read(device, dtype, &yb, count * op.heads * v_dim)?);
        }
        let size = dtype.bits() as usize / 8;
        let gathered = [k_dim, v_dim].map(|dim| device.allocate(tokens * layout.heads * dim * size));
        let [gk, gv] = gathered;
        let (gk, gv) = (gk?, gv?);
        cache.dequantize(0, id, 0, tokens, gk.view(), gv.view())?;
        let gathered = (
            read(device, dtype, &gk, tokens * layout.heads * k_dim)?,
            read(device, dtype, &gv, tokens * layout.heads * v_dim)?,
        );
        self.compare(&statics, &table, (&q, &k, &v), &outputs, &gathered, tokens)
    }

    /// The pages as the reference fills them, page `i` with the tokens from `i · page` on, and what it makes of them.
    fn compare(
        &self,
        statics: &[KvStatics],
        table: &[f32],
        (q, k, v): (&[f32], &[f32], &[f32]),
        outputs: &[f32],
        gathered: &(Vec<f32>, Vec<f32>),
        tokens: usize,
    ) -> Result<Row, Failure> {
        let (op, layout) = (&self.attend, self.attend.layout);
        let (k_dim, v_dim, dtype) = (layout.k.head_dim, layout.v.head_dim, op.input);
        let pages = tokens.div_ceil(layout.page);
        let windowed = layout.format.window > 0;
        let newest =
            if windowed { KvLayout::new(KvFormat::F16, layout.page, layout.heads, k_dim, v_dim)? } else { layout };
        let mut bytes = vec![0; pages * newest.page_bytes()];
        let mut fresh = Pool { layout: newest, statics: if windowed { &[] } else { statics }, bytes: &mut bytes };
        let append = KvAppend { layout: newest, input: dtype, rope: self.rope };
        for token in 0..tokens {
            for head in 0..layout.heads {
                let row = token * layout.heads + head;
                let (keys, values) = (&k[row * k_dim..][..k_dim], &v[row * v_dim..][..v_dim]);
                let place = (token / layout.page, token % layout.page);
                append.reference(&mut fresh, place, head, (keys, values), (table, token));
            }
        }
        // A page is quantized when the token that needs its place in the ring arrives.
        let ring = layout.format.window as usize / layout.page;
        let sealed = if windowed { pages.saturating_sub(ring) } else { 0 };
        let mut old_bytes = vec![0; sealed * layout.page_bytes()];
        let mut old = Pool { layout, statics, bytes: &mut old_bytes };
        let requantize = KvRequantize { from: newest, to: layout };
        (0..sealed).for_each(|page| requantize.reference(&fresh, &mut old, page, page, layout.page));
        let numbers: Vec<usize> = (0..pages).collect();
        let split = sealed * layout.page;
        let mut row = Row { cache: String::new(), stored: 0, wrong: 0, compared: 0, worst_ratio: 0.0 };
        row.cache = format!(
            "{}, {} heads over {} of {k_dim}, pages of {}, {}{}",
            layout.format,
            op.heads,
            layout.heads,
            layout.page,
            dtype.name(),
            if self.rope.is_some() { ", rotated" } else { "" }
        );
        for (side, dim, found) in [(Side::K, k_dim, &gathered.0), (Side::V, v_dim, &gathered.1)] {
            for (at, &found) in found.iter().enumerate() {
                let (token, head, channel) = (at / dim / layout.heads, at / dim % layout.heads, at % dim);
                let pool = if token < split { &old } else { &fresh };
                let exact = pool.stored(side, token / layout.page, head, token % layout.page, channel);
                let expected = dtype.decode(dtype.encode(f64::from(exact))) as f32;
                row.stored += 1;
                row.wrong += usize::from(found.to_bits() != expected.to_bits() && !(found == 0.0 && expected == 0.0));
            }
        }
        // The last queries of the prompt, and the one that was decoded; the first ones saw pages before they were quantized.
        for query in [0, tokens / 2, tokens - 2, tokens - 1] {
            if windowed && query < tokens - 2 {
                continue;
            }
            for head in 0..op.heads {
                let at = query * op.heads + head;
                let inputs = AttendInputs {
                    q: &q[at * k_dim..][..k_dim],
                    head: head / op.group(),
                    position: query,
                    slope: 0.0,
                    sink: None,
                };
                let reference = if windowed {
                    op.reference(&inputs, &[(&old, &numbers, 0, split), (&fresh, &numbers[sealed..], split, tokens)])
                } else {
                    op.reference(&inputs, &[(&fresh, &numbers, 0, tokens)])
                };
                for channel in 0..v_dim {
                    let expected = reference.expected(channel, dtype);
                    let ratio = (f64::from(outputs[at * v_dim + channel]) - expected.value).abs() / expected.bound;
                    row.compared += 1;
                    row.worst_ratio = if ratio.is_nan() { f64::INFINITY } else { row.worst_ratio.max(ratio) };
                }
            }
        }
        Ok(row)
    }
}

/// Cosines and sines as models have them: base 10000.
fn rotary_table(rope: Rope, tokens: usize) -> Vec<f32> {
    let half = rope.rotary / 2;
    let angle = |position: usize, pair: usize| position as f64 / 10000f64.powf(pair as f64 / half as f64);
    (0..tokens)
        .flat_map(|position| {
            let cosines = (0..half).map(move |pair| angle(position, pair).cos() as f32);
            cosines.chain((0..half).map(move |pair| angle(position, pair).sin() as f32))
        })
        .collect()
}

fn filled(device: &dyn Device, dtype: DType, numbers: &[f32]) -> Result<Buffer, Failure> {
    let bytes = dtype.to_bytes(numbers.iter().map(|&x| f64::from(x)));
    let buffer = device.allocate(bytes.len())?;
    device.upload(&buffer, 0, &bytes)?;
    Ok(buffer)
}

fn read(device: &dyn Device, dtype: DType, buffer: &Buffer, count: usize) -> Result<Vec<f32>, Failure> {
    let mut bytes = vec![0; count * dtype.bits() as usize / 8];
    device.download(buffer, 0, &mut bytes)?;
    Ok(dtype.from_bytes(&bytes).map(|x| x as f32).collect())
}
