//! Keys and values in bitsmith's paged cache: quantized, stored and attended by kernels on a device.
//!
//! Reads keys, values and queries in `f32`; keeps one sequence of one layer in a [`bitsmith_runtime::kv::KvCache`]. Caches of
//! sequences that have ended are used again, with the kernels that were made for them. Always holds: both ways to attend
//! ([`Through`]) see the same stored codes, so that what tells them apart is the attention kernel alone; a format whose
//! scales are the caller's is refused without them.

use super::{FloatCache, KvCache, NewCache};
use crate::kv::KvScales;
use crate::model::Config;
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::kv::{KvFormat, KvPer};
use bitsmith_compiler::op::kv::Sight;
use bitsmith_compiler::{Error, Result};
use bitsmith_runtime::kv::{AttendOptions, KvShape, RequestId};
use bitsmith_runtime::{Buffer, Device, kv};
use std::sync::{Arc, Mutex, PoisonError};

/// How attention reads a quantized cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    /// The attention kernels, on codes.
    Kernels,
    /// The gather kernel makes `f32` of all codes, and attention is that of [`FloatCache`]: the reference of the former.
    Dequantized,
}

/// Makes caches of one format on one device.
pub struct PagedCaches {
    shared: Arc<Shared>,
}

struct Shared {
    device: Arc<dyn Device>,
    format: KvFormat,
    through: Through,
    room: usize,
    scales: Option<KvScales>,
    idle: Mutex<Vec<Room>>,
}

/// A cache of one layer and one request, and for how many tokens it has pages.
struct Room {
    cache: kv::KvCache,
    shape: KvShape,
    tokens: usize,
}

struct PagedCache {
    shared: Arc<Shared>,
    config: Config,
    layer: usize,
    shape: KvShape,
    room: Option<(Room, RequestId)>,
    tokens: usize,
    /// Tokens of the last append.
    step: usize,
}

impl PagedCaches {
    /// Caches with pages for `room` tokens, or for those of a sequence's first append where that is longer. Fails where the
    /// format takes scales of the caller and there are none.
    pub fn new(
        device: Arc<dyn Device>,
        format: KvFormat,
        through: Through,
        room: usize,
        scales: Option<KvScales>,
    ) -> Result<PagedCaches> {
        if (format.k.is_static() || format.v.is_static()) && scales.is_none() {
            return Err(Error::invalid(format!(
                "KV format {format} takes scales from calibration, and there are none; accepted: a file that `calibrate --kv \
                 {format}` writes, or a format with scales per token, such as int8-token"
            )));
        }
        if let Some(scales) = &scales {
            scales.check(&format)?;
        }
        let shared = Shared { device, format, through, room, scales, idle: Mutex::default() };
        Ok(PagedCaches { shared: Arc::new(shared) })
    }

    /// An empty cache for a layer; pass `&|config, layer| caches.cache(config, layer)` as a [`NewCache`].
    pub fn cache(&self, config: &Config, layer: usize) -> Result<Box<dyn KvCache>> {
        let s = &config.shape;
        let shape = KvShape {
            heads: s.heads,
            kv_heads: s.kv_heads,
            k_dim: s.head_dim,
            v_dim: s.head_dim,
            page: page(&self.shared.format)?,
            dtype: DType::F32,
        };
        Ok(Box::new(PagedCache {
            shared: Arc::clone(&self.shared),
            config: config.clone(),
            layer,
            shape,
            room: None,
            tokens: 0,
            step: 0,
        }))
    }
}

/// Tokens of a page: what a window is a multiple of, and 32 where keys share scales over a page, as KIVI has it.
fn page(format: &KvFormat) -> Result<usize> {
    let most = if format.k.per == KvPer::Channel { 32 } else { 64 };
    let fits = |page: &usize| *page <= most && (format.window as usize).is_multiple_of(*page);
    [64, 32, 16].into_iter().find(fits).ok_or_else(|| {
        Error::invalid(format!("KV format {format}: a window of {} tokens; accepted: multiples of 16", format.window))
    })
}

impl PagedCache {
    /// A room of its own, idle or new.
    fn enter(&mut self, tokens: usize) -> Result<()> {
        let shared = &self.shared;
        let found = {
            let mut idle = shared.idle.lock().unwrap_or_else(PoisonError::into_inner);
            let at = idle.iter().position(|room| room.shape == self.shape && room.tokens >= tokens);
            at.map(|at| idle.swap_remove(at))
        };
        let mut room = match found {
            Some(room) => room,
            None => {
                let pages = tokens.max(shared.room).div_ceil(self.shape.page);
                let cache = kv::KvCache::new(Arc::clone(&shared.device), self.shape, &[shared.format], pages, 1)?;
                Room { cache, shape: self.shape, tokens: pages * self.shape.page }
            }
        };
        if let Some(scales) = &shared.scales
            && (shared.format.k.is_static() || shared.format.v.is_static())
        {
            room.cache.set_scales(0, &scales.of(self.layer, self.shape.kv_heads)?)?;
        }
        let request = room.cache.open()?;
        self.room = Some((room, request));
        Ok(())
    }

    fn upload(&self, x: &[f32]) -> Result<Buffer> {
        let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
        let buffer = self.shared.device.allocate(bytes.len().max(64))?;
        self.shared.device.upload(&buffer, 0, &bytes)?;
        Ok(buffer)
    }

    fn download(&self, buffer: &Buffer, count: usize) -> Result<Vec<f32>> {
        let mut bytes = vec![0; count * 4];
        self.shared.device.download(buffer, 0, &mut bytes)?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
    }
}

impl KvCache for PagedCache {
    fn tokens(&self) -> usize {
        self.tokens
    }

    fn append(&mut self, keys: &[f32], values: &[f32]) -> Result<()> {
        let width = self.shape.kv_heads * self.shape.k_dim;
        if keys.len() != values.len() || keys.is_empty() || !keys.len().is_multiple_of(width) {
            return Err(Error::invalid(format!("{} keys beside {} values", keys.len(), values.len())));
        }
        let count = keys.len() / width;
        if self.room.is_none() {
            self.enter(count)?;
        }
        let (k, v) = (self.upload(keys)?, self.upload(values)?);
        let Some((room, request)) = &mut self.room else { return Ok(()) };
        if self.tokens + count > room.tokens {
            return Err(Error::invalid(format!(
                "a sequence of {} tokens in a KV cache with pages for {}",
                self.tokens + count,
                room.tokens
            )));
        }
        room.cache.grow(&[(*request, count)])?;
        room.cache.append(0, k.view(), v.view())?;
        self.tokens += count;
        self.step = count;
        Ok(())
    }

    fn attend(&mut self, queries: &[f32], m: usize) -> Result<Vec<f32>> {
        let width = self.shape.heads * self.shape.k_dim;
        if m == 0 || m != self.step || queries.len() != m * width {
            return Err(Error::invalid(format!(
                "{} queries of {m} tokens after an append of {}",
                queries.len(),
                self.step
            )));
        }
        let (tokens, kv_width) = (self.tokens, self.shape.kv_heads * self.shape.k_dim);
        match self.shared.through {
            Through::Kernels => {
                let (q, y) = (self.upload(queries)?, self.shared.device.allocate(m * width * 4)?);
                let mut options = AttendOptions::causal(1.0 / (self.shape.k_dim as f32).sqrt());
                if let Some(window) = self.config.window {
                    options.sight = Sight::Window { window: window as u32, first: 0 };
                }
                let Some((room, _)) = &mut self.room else { return Ok(Vec::new()) };
                room.cache.attend(0, q.view(), y.view(), &options)?;
                self.download(&y, m * width)
            }
            Through::Dequantized => {
                let bytes = tokens * kv_width * 4;
                let (k, v) = (self.shared.device.allocate(bytes)?, self.shared.device.allocate(bytes)?);
                let Some((room, request)) = &mut self.room else { return Ok(Vec::new()) };
                room.cache.dequantize(0, *request, 0, tokens, k.view(), v.view())?;
                let mut floats = FloatCache::new(&self.config);
                floats.append(&self.download(&k, tokens * kv_width)?, &self.download(&v, tokens * kv_width)?)?;
                floats.attend(queries, m)
            }
        }
    }
}

impl Drop for PagedCache {
    fn drop(&mut self) {
        if let Some((mut room, request)) = self.room.take()
            && room.cache.close(request).is_ok()
        {
            self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner).push(room);
        }
    }
}

/// A cache per format word: `None` keeps `f32`.
pub fn with_caches<T>(caches: Option<&PagedCaches>, run: impl FnOnce(NewCache<'_>) -> Result<T>) -> Result<T> {
    match caches {
        None => run(&FloatCache::boxed),
        Some(caches) => run(&|config: &Config, layer: usize| caches.cache(config, layer)),
    }
}
