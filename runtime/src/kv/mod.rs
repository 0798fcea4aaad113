//! A paged KV cache on a device: requests, pages, append, attend.
//!
//! Reads keys, values and queries in device memory; keeps the pages of all layers. Layers share block tables and differ in
//! format as they like. Always holds: a call that fails for want of room or of sense has written nothing, and a launch
//! writes pages of the named requests only.
//!
//! ```text
//! let mut cache = KvCache::new(device, shape, &[format; layers], pages, requests)?;
//! let request = cache.open()?;
//! cache.grow(&[(request, tokens)])?;                           room in every layer, or an error
//! for layer in … { cache.append(layer, k, v)?; cache.attend(layer, q, y, &options)?; }
//! ```

mod attention;
mod operations;
mod pages;
mod plan;
mod programs;
mod window;

pub use operations::{arithmetic, operations};
pub use pages::{Pages, RequestId};
pub use plan::{AttendPlan, Queries, Segment, Splits, attend as plan_attend, spans as plan_spans};

use self::programs::Programs;
use self::window::Window;
use crate::bundle::Kernels;
use crate::{Buffer, Device, LaunchArg, View};
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::kv::{KvFormat, KvLayout};
use bitsmith_compiler::op::kv::{Arithmetic, KvAppend, KvDequant, KvOp, KvStatics, Rope, Sight};
use bitsmith_compiler::{Error, Result};
use std::sync::Arc;

/// What all layers have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KvShape {
    /// Query heads.
    pub heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Channels of queries and keys.
    pub k_dim: usize,
    /// Channels of values.
    pub v_dim: usize,
    /// Tokens of a page: 16 to 256.
    pub page: usize,
    /// Type of keys, values, queries and outputs.
    pub dtype: DType,
}

impl KvShape {
    /// Fails where the heads do not fit, or the type is none of floats. The rest is checked with the formats.
    fn check(&self) -> Result<()> {
        if self.kv_heads == 0 || self.heads == 0 || !self.heads.is_multiple_of(self.kv_heads) || self.heads > 4096 {
            return Err(Error::invalid(format!(
                "{} query heads over {} KV heads; accepted: multiples of the latter up to 4096",
                self.heads, self.kv_heads
            )));
        }
        if !matches!(self.dtype, DType::F16 | DType::Bf16 | DType::F32) {
            return Err(Error::invalid(format!("keys and values of {}; accepted: f16, bf16, f32", self.dtype.name())));
        }
        Ok(())
    }
}

/// How attention runs.
#[derive(Clone, Debug, PartialEq)]
pub struct AttendOptions {
    /// Multiplies scores.
    pub scale: f32,
    /// Soft cap of scores.
    pub softcap: Option<f32>,
    /// What a query sees.
    pub sight: Sight,
    /// Slopes of a bias by distance, one per query head; empty for none.
    pub slopes: Vec<f32>,
    /// Scores of learned sinks, one per query head; empty for none.
    pub sinks: Vec<f32>,
    /// How tokens are split over work items; `None` fits the device.
    pub splits: Option<Splits>,
    /// How products are summed up; `None` is what is fastest on the device ([`arithmetic`]).
    pub arithmetic: Option<Arithmetic>,
}

impl AttendOptions {
    /// Plain causal attention with this scale.
    pub fn causal(scale: f32) -> AttendOptions {
        AttendOptions {
            scale,
            softcap: None,
            sight: Sight::All,
            slopes: Vec::new(),
            sinks: Vec::new(),
            splits: None,
            arithmetic: None,
        }
    }
}

/// One layer's pages.
struct Layer {
    layout: KvLayout,
    statics: Option<Buffer>,
    pool: Buffer,
    window: Option<Window>,
}

/// A paged KV cache of some layers.
pub struct KvCache {
    device: Arc<dyn Device>,
    shape: KvShape,
    pages: Pages,
    layers: Vec<Layer>,
    rope: Option<(Rope, Buffer, usize)>,
    programs: Programs,
    /// The requests of the present step and their new tokens.
    step: Vec<(RequestId, usize)>,
    /// Counts what makes a plan of attention stale.
    changes: u64,
    /// The plan made last: layers of a step share it.
    planned: Option<attention::Planned>,
    most_requests: usize,
    open: usize,
}

impl KvCache {
    /// A cache of one layer per format, with `pages` pages in each and up to `requests` open requests.
    pub fn new(
        device: Arc<dyn Device>,
        shape: KvShape,
        formats: &[KvFormat],
        pages: usize,
        requests: usize,
    ) -> Result<KvCache> {
        KvCache::with(Programs::new(Arc::clone(&device)), device, shape, formats, pages, requests)
    }

    /// The same with the kernels of a bundle: nothing is compiled, and a call that needs another kernel fails with its name.
    pub fn of_bundle(
        kernels: Arc<Kernels>,
        shape: KvShape,
        formats: &[KvFormat],
        pages: usize,
        requests: usize,
    ) -> Result<KvCache> {
        let device = Arc::clone(kernels.device());
        KvCache::with(Programs::of_bundle(kernels), device, shape, formats, pages, requests)
    }

    fn with(
        programs: Programs,
        device: Arc<dyn Device>,
        shape: KvShape,
        formats: &[KvFormat],
        pages: usize,
        requests: usize,
    ) -> Result<KvCache> {
        shape.check()?;
        if requests == 0 || requests > 1 << 20 {
            return Err(Error::invalid(format!("{requests} requests; accepted: 1 to 1048576")));
        }
        let mut layers = Vec::new();
        for format in formats {
            let layout = KvLayout::new(*format, shape.page, shape.kv_heads, shape.k_dim, shape.v_dim)?;
            let bytes = layout.page_bytes().checked_mul(pages).filter(|&b| b <= isize::MAX as usize);
            let bytes =
                bytes.ok_or_else(|| Error::invalid(format!("{pages} pages of {} bytes", layout.page_bytes())))?;
            let one = vec![KvStatics::ONE; shape.kv_heads];
            let statics = (layout.k.codes.is_static() || layout.v.codes.is_static())
                .then(|| upload(&*device, &KvStatics::bytes(&one)))
                .transpose()?;
            let window = (format.window > 0).then(|| Window::new(&*device, &layout, requests)).transpose()?;
            layers.push(Layer { layout, statics, pool: device.allocate(bytes.max(64))?, window });
        }
        if layers.is_empty() {
            return Err(Error::invalid("a cache of no layers; accepted: one format per layer, at least one"));
        }
        let pages = Pages::new(shape.page, pages)?;
        Ok(KvCache {
            device,
            shape,
            pages,
            layers,
            rope: None,
            programs,
            step: Vec::new(),
            changes: 0,
            planned: None,
            most_requests: requests,
            open: 0,
        })
    }

    /// Rotates keys as they are appended. `table` is `f32 [position][cos of each pair, then sin of each pair]`.
    pub fn set_rope(&mut self, rope: Rope, table: &[f32]) -> Result<()> {
        if rope.rotary == 0 || table.is_empty() || !table.len().is_multiple_of(rope.rotary) {
            return Err(Error::invalid(format!(
                "a rotary table of {} numbers; accepted: a multiple of the {} rotary channels",
                table.len(),
                rope.rotary
            )));
        }
        let bytes: Vec<u8> = table.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.rope = Some((rope, upload(&*self.device, &bytes)?, table.len() / rope.rotary));
        Ok(())
    }

    /// The caller's scales of a layer, one per KV head, for formats with scales per tensor or head. Before the first append.
    pub fn set_scales(&mut self, layer: usize, scales: &[KvStatics]) -> Result<()> {
        let heads = self.shape.kv_heads;
        let device = Arc::clone(&self.device);
        let layer = self.layer_mut(layer)?;
        if layer.statics.is_none() || scales.len() != heads {
            return Err(Error::invalid(format!(
                "{} scales for {}; accepted: {heads}, for formats with scales per tensor or head",
                scales.len(),
                layer.layout.format
            )));
        }
        let bytes = KvStatics::bytes(scales);
        layer.statics = Some(upload(&*device, &bytes)?);
        Ok(())
    }

    fn layer(&self, layer: usize) -> Result<&Layer> {
        let count = self.layers.len();
        self.layers.get(layer).ok_or_else(|| Error::invalid(format!("layer {layer} of {count}")))
    }

    fn layer_mut(&mut self, layer: usize) -> Result<&mut Layer> {
        let count = self.layers.len();
        self.layers.get_mut(layer).ok_or_else(|| Error::invalid(format!("layer {layer} of {count}")))
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// The layout of a layer's pages.
    pub fn layout(&self, layer: usize) -> Result<&KvLayout> {
        Ok(&self.layer(layer)?.layout)
    }

    /// A layer's pages in device memory.
    pub fn pool(&self, layer: usize) -> Result<&Buffer> {
        Ok(&self.layer(layer)?.pool)
    }

    /// Which pages belong to whom.
    pub fn pages(&self) -> &Pages {
        &self.pages
    }

    /// Bytes of device memory: pages and windows of all layers.
    pub fn bytes(&self) -> usize {
        let window = |layer: &Layer| layer.window.as_ref().map_or(0, |window| window.pool.bytes());
        self.layers.iter().map(|layer| layer.pool.bytes() + window(layer)).sum()
    }

    /// A new request. Fails where as many are open as there may be.
    pub fn open(&mut self) -> Result<RequestId> {
        if self.open == self.most_requests {
            return Err(Error::invalid(format!("{} requests are open, which is the most", self.open)));
        }
        self.open += 1;
        let id = self.pages.open();
        for window in self.layers.iter_mut().filter_map(|layer| layer.window.as_mut()) {
            window.sealed[id.slot()] = 0;
        }
        Ok(id)
    }

    /// Ends a request and frees its pages.
    pub fn close(&mut self, id: RequestId) -> Result<()> {
        self.pages.close(id)?;
        self.changes += 1;
        self.open -= 1;
        self.step.retain(|&(other, _)| other != id);
        Ok(())
    }

    /// Takes back a request's newest tokens, as after a speculation that failed. Fails where that reaches past a window.
    pub fn truncate(&mut self, id: RequestId, tokens: usize) -> Result<()> {
        // A request that is not open has no place in the windows.
        self.pages.tokens(id)?;
        let sealed =
            self.layers.iter().filter_map(|l| l.window.as_ref()).map(|w| w.sealed[id.slot()]).max().unwrap_or(0);
        if tokens < sealed * self.shape.page {
            return Err(Error::invalid(format!(
                "truncating to {tokens} tokens: the f16 window starts at token {}, and what is before it is quantized",
                sealed * self.shape.page
            )));
        }
        self.pages.truncate(id, tokens)?;
        self.changes += 1;
        self.step.retain(|&(other, _)| other != id);
        Ok(())
    }

    /// Begins a step: makes room for new tokens of some requests (0 is allowed). Fails, and changes nothing, where pages run
    /// out. Rows of the step's calls are those tokens, request after request.
    pub fn grow(&mut self, step: &[(RequestId, usize)]) -> Result<()> {
        if let Some((_, _, positions)) = self.rope {
            for &(id, tokens) in step {
                let end = self.pages.tokens(id)?.saturating_add(tokens);
                if end > positions {
                    return Err(Error::invalid(format!("{end} tokens; the rotary table has {positions} positions")));
                }
            }
        }
        self.pages.grow(step)?;
        self.changes += 1;
        self.step = step.to_vec();
        Ok(())
    }

    /// Rows of the present step.
    pub fn rows(&self) -> usize {
        self.step.iter().map(|&(_, tokens)| tokens).sum()
    }

    fn check(&self, what: &str, view: &View<'_>, per_row: usize) -> Result<()> {
        let wanted = self.rows() * per_row * self.shape.dtype.bits() as usize / 8;
        if view.bytes < wanted {
            return Err(Error::invalid(format!("{what} has {} bytes; the step's rows take {wanted}", view.bytes)));
        }
        Ok(())
    }

    /// Stores the step's new keys `[rows, kv_heads, k_dim]` and values `[rows, kv_heads, v_dim]` in a layer.
    pub fn append(&mut self, layer: usize, k: View<'_>, v: View<'_>) -> Result<()> {
        self.check("k", &k, self.shape.kv_heads * self.shape.k_dim)?;
        self.check("v", &v, self.shape.kv_heads * self.shape.v_dim)?;
        self.layer(layer)?;
        let (page, steps) = (self.shape.page, self.step.clone());
        if self.layers[layer].window.is_some() {
            return self.append_windowed(layer, k, v, &steps);
        }
        let (mut records, mut row) = (Vec::new(), 0);
        for &(id, tokens) in &steps {
            let end = self.pages.tokens(id)?;
            plan_spans(self.pages.table(id)?, page, row, end - tokens, tokens, &mut records)?;
            row += tokens;
        }
        let part = &self.layers[layer];
        self.store(part.layout, &part.statics.clone(), &part.pool.clone(), k, v, &records)
    }

    fn store(
        &mut self,
        layout: KvLayout,
        statics: &Option<Buffer>,
        pool: &Buffer,
        k: View<'_>,
        v: View<'_>,
        records: &[i32],
    ) -> Result<()> {
        let op =
            KvOp::Append(KvAppend { layout, input: self.shape.dtype, rope: self.rope.as_ref().map(|rope| rope.0) });
        let spans = self.programs.list("spans", records)?;
        let mut args = vec![LaunchArg::Buffer(k), LaunchArg::Buffer(v), LaunchArg::Buffer(spans.view())];
        args.extend(self.rope.as_ref().map(|rope| LaunchArg::Buffer(rope.1.view())));
        args.extend(statics.as_ref().map(|buffer| LaunchArg::Buffer(buffer.view())));
        args.push(LaunchArg::Buffer(pool.view()));
        self.programs.flat(&op, records.len() / bitsmith_compiler::op::kv::SPAN, args)
    }

    /// Rows go through the ring of f16 pages; a page whose place is needed is quantized first.
    fn append_windowed(&mut self, layer: usize, k: View<'_>, v: View<'_>, steps: &[(RequestId, usize)]) -> Result<()> {
        let page = self.shape.page;
        // Pages leave the window.
        self.changes += 1;
        let mut done = vec![0; steps.len()];
        let mut first_rows = Vec::new();
        let mut row = 0;
        for &(_, tokens) in steps {
            first_rows.push(row);
            row += tokens;
        }
        loop {
            let (mut records, mut pairs) = (Vec::new(), Vec::new());
            for (i, &(id, tokens)) in steps.iter().enumerate() {
                let start = self.pages.tokens(id)? - tokens + done[i];
                let left = tokens - done[i];
                let Some(window) = &mut self.layers[layer].window else { continue };
                if left == 0 {
                    continue;
                }
                // Up to the end of the last page that has a place in the ring beside those before it.
                let last = start / page;
                let table = self.pages.table(id)?;
                window.seal(id, last, table, page, &mut pairs)?;
                let count = left.min((last + 1) * page - start);
                let ring = window.table(id, last + 1);
                plan_spans(&ring, page, first_rows[i] + done[i], start, count, &mut records)?;
                done[i] += count;
            }
            if records.is_empty() {
                return Ok(());
            }
            let part = &self.layers[layer];
            let Some(window) = &part.window else { return Ok(()) };
            let (ring, ring_layout) = (window.pool.clone(), window.layout);
            if !pairs.is_empty() {
                let op =
                    KvOp::Requantize(bitsmith_compiler::op::kv::KvRequantize { from: ring_layout, to: part.layout });
                let list = self.programs.list("pairs", &pairs)?;
                let mut args = vec![LaunchArg::Buffer(ring.view()), LaunchArg::Buffer(list.view())];
                args.extend(part.statics.as_ref().map(|buffer| LaunchArg::Buffer(buffer.view())));
                args.push(LaunchArg::Buffer(part.pool.view()));
                self.programs.flat(&op, pairs.len() / bitsmith_compiler::op::kv::PAIR, args)?;
            }
            self.store(ring_layout, &None, &ring, k, v, &records)?;
        }
    }

    /// Gathers tokens `start..start + count` of a request: `k [count, kv_heads, k_dim]`, `v [count, kv_heads, v_dim]`.
    pub fn dequantize(
        &mut self,
        layer: usize,
        id: RequestId,
        start: usize,
        count: usize,
        k: View<'_>,
        v: View<'_>,
    ) -> Result<()> {
        let tokens = self.pages.tokens(id)?;
        if start.checked_add(count).is_none_or(|end| end > tokens) {
            return Err(Error::invalid(format!("tokens {start}+{count} of a request of {tokens}")));
        }
        let bytes = |dim: usize| count * self.shape.kv_heads * dim * self.shape.dtype.bits() as usize / 8;
        if k.bytes < bytes(self.shape.k_dim) || v.bytes < bytes(self.shape.v_dim) {
            return Err(Error::invalid(format!("{} and {} bytes for {count} tokens are too few", k.bytes, v.bytes)));
        }
        let page = self.shape.page;
        let part = self.layer(layer)?;
        let sealed = part.window.as_ref().map_or(usize::MAX, |window| window.sealed[id.slot()] * page);
        let (mut old, mut new) = (Vec::new(), Vec::new());
        let split = sealed.clamp(start, start + count);
        plan_spans(self.pages.table(id)?, page, 0, start, split - start, &mut old)?;
        let mut sources = vec![(part.layout, part.pool.clone(), part.statics.clone(), old)];
        if let Some(window) = &part.window {
            let table = window.table(id, tokens.div_ceil(page));
            plan_spans(&table, page, split - start, split, start + count - split, &mut new)?;
            sources.push((window.layout, window.pool.clone(), None, new));
        }
        for (layout, pool, statics, records) in sources.into_iter().filter(|source| !source.3.is_empty()) {
            let spans = self.programs.list("spans", &records)?;
            let mut args = vec![LaunchArg::Buffer(pool.view()), LaunchArg::Buffer(spans.view())];
            args.extend(statics.as_ref().map(|buffer| LaunchArg::Buffer(buffer.view())));
            args.extend([LaunchArg::Buffer(k), LaunchArg::Buffer(v)]);
            let op = KvOp::Dequant(KvDequant { layout, out: self.shape.dtype });
            self.programs.flat(&op, records.len() / bitsmith_compiler::op::kv::SPAN, args)?;
        }
        Ok(())
    }
}

fn upload(device: &dyn Device, bytes: &[u8]) -> Result<Buffer> {
    let buffer = device.allocate(bytes.len().max(64))?;
    device.upload(&buffer, 0, bytes)?;
    Ok(buffer)
}
