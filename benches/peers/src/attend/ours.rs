//! Our paged cache: keys and values appended, one query token attends to all of them.

use super::contest::{Effort, Numbers, Shape, attention};
use crate::subject::Subject;
use bitsmith_compiler::Error;
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::kv::{KvFormat, Side};
use bitsmith_compiler::op::kv::{Arithmetic, Pool};
use bitsmith_runtime::cpu::CpuDevice;
use bitsmith_runtime::kv::{AttendOptions, KvCache, KvShape, RequestId};
use bitsmith_runtime::{Buffer, Device};
use std::sync::Arc;
use std::time::Instant;

/// A cache of ours with as many layers as there are copies.
pub struct Ours {
    device: Arc<dyn Device>,
    name: String,
    cache: KvCache,
    request: RequestId,
    layers: usize,
    options: AttendOptions,
    q: Buffer,
    y: Buffer,
    outputs: usize,
    bytes: f64,
    turn: usize,
}

/// Tokens that are appended at once.
const PIECE: usize = 512;

impl Ours {
    /// Appends all keys and values to each layer.
    pub fn new(
        format: &str,
        arithmetic: Option<Arithmetic>,
        numbers: &Numbers,
        effort: &Effort,
    ) -> Result<Ours, Error> {
        let Shape { heads, kv_heads, dim, page, tokens } = numbers.shape;
        let parsed: KvFormat = format.parse()?;
        let device: Arc<dyn Device> = Arc::new(CpuDevice::new(effort.threads)?);
        let shape = KvShape { heads, kv_heads, k_dim: dim, v_dim: dim, page, dtype: DType::F32 };
        let pages = tokens.div_ceil(page);
        let mut cache = KvCache::new(Arc::clone(&device), shape, &[parsed], pages, 1)?;
        let layout = *cache.layout(0)?;
        let used = layout.used_bytes() * kv_heads * pages;
        let layers = effort.cycle.div_ceil(used).max(1);
        if layers > 1 {
            cache = KvCache::new(Arc::clone(&device), shape, &vec![parsed; layers], pages, 1)?;
        }
        let request = cache.open()?;
        let fill = |values: &[f32]| -> Result<Buffer, Error> {
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            let buffer = device.allocate(bytes.len())?;
            device.upload(&buffer, 0, &bytes)?;
            Ok(buffer)
        };
        for first in (0..tokens).step_by(PIECE) {
            let count = PIECE.min(tokens - first);
            // Rows of tokens have all heads.
            let rows = |side: &[f32]| -> Vec<f32> {
                let line = |token: usize, head: usize| &side[(head * tokens + token) * dim..][..dim];
                (first..first + count).flat_map(|t| (0..kv_heads).flat_map(move |h| line(t, h).to_vec())).collect()
            };
            let (k, v) = (fill(&rows(&numbers.k))?, fill(&rows(&numbers.v))?);
            cache.grow(&[(request, count)])?;
            (0..layers).try_for_each(|layer| cache.append(layer, k.view(), v.view()))?;
        }
        let options = AttendOptions { arithmetic, ..AttendOptions::causal(1.0 / (dim as f32).sqrt()) };
        let sums = arithmetic.map(|arithmetic| format!(", {arithmetic:?} sums").to_lowercase()).unwrap_or_default();
        // The last step brings one token, as decoding does: its query is the one that attends.
        cache.truncate(request, tokens - 1)?;
        let last = |side: &[f32]| -> Vec<f32> {
            (0..kv_heads).flat_map(|head| side[(head * tokens + tokens - 1) * dim..][..dim].to_vec()).collect()
        };
        let (k, v) = (fill(&last(&numbers.k))?, fill(&last(&numbers.v))?);
        cache.grow(&[(request, 1)])?;
        (0..layers).try_for_each(|layer| cache.append(layer, k.view(), v.view()))?;
        device.synchronize()?;
        Ok(Ours {
            name: format!("bitsmith {format}{sums}"),
            q: fill(&numbers.q)?,
            y: device.allocate(heads * dim * 4)?,
            outputs: heads * dim,
            bytes: (layout.used_bytes() * kv_heads) as f64 / page as f64 * tokens as f64,
            device,
            cache,
            request,
            layers,
            options,
            turn: 0,
        })
    }

    /// What the first and the last query head should make of what the first layer stores.
    pub fn expected(&self, numbers: &Numbers) -> Result<[Vec<f32>; 2], Error> {
        let Shape { heads, kv_heads, dim, page, tokens } = numbers.shape;
        let pool = self.cache.pool(0)?.clone();
        let mut bytes = vec![0; pool.bytes()];
        self.device.download(&pool, 0, &mut bytes)?;
        let layout = *self.cache.layout(0)?;
        let table: Vec<usize> =
            self.cache.pages().table(self.request)?.iter().flatten().map(|&page| page as usize).collect();
        let pool = Pool { layout, statics: &[], bytes: &mut bytes };
        Ok([0, heads - 1].map(|head| {
            let kv = head / (heads / kv_heads);
            let side = |side: Side| -> Vec<f32> {
                let number = |t: usize, c: usize| pool.value(side, table[t / page], kv, t % page, c) as f32;
                (0..tokens).flat_map(|t| (0..dim).map(move |c| (t, c))).map(|(t, c)| number(t, c)).collect()
            };
            attention(&numbers.q[head * dim..][..dim], &side(Side::K), &side(Side::V))
        }))
    }

    fn once(&mut self) -> Result<(), Error> {
        self.turn = (self.turn + 1) % self.layers;
        self.attend(self.turn)
    }

    fn attend(&mut self, layer: usize) -> Result<(), Error> {
        self.cache.attend(layer, self.q.view(), self.y.view(), &self.options)?;
        self.device.synchronize()
    }
}

impl Subject for Ours {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn weight_bytes(&self) -> f64 {
        self.bytes
    }

    fn run(&mut self, runs: usize) -> Result<f64, String> {
        let start = Instant::now();
        for _ in 0..runs {
            self.once().map_err(|error| error.to_string())?;
        }
        Ok(start.elapsed().as_secs_f64() / runs as f64)
    }

    fn result(&mut self) -> Result<Option<Vec<f32>>, String> {
        let mut bytes = vec![0; self.outputs * 4];
        self.attend(0).and_then(|()| self.device.download(&self.y, 0, &mut bytes)).map_err(|e| e.to_string())?;
        Ok(Some(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()))
    }
}
