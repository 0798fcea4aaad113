//! KV caches: made over a bundle or over the compiler; grown, appended to, attended.

use super::bundle::{BitsmithView, range_of};
use super::guard::{Answer, Fault, guarded};
use super::pointer::{read, slice, text, write};
use super::registry::{self, Thing};
use bitsmith_compiler::Error;
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::kv::KvFormat;
use bitsmith_compiler::op::kv::{KvStatics, Rope, Sight};
use bitsmith_runtime::kv::{AttendOptions, KvCache, KvShape, RequestId, Splits};
use bitsmith_runtime::{Buffer, View};
use std::ffi::c_char;
use std::sync::{Arc, Mutex};

/// Most layers of a cache, and most requests of a step.
const MOST: usize = 1 << 16;

/// What all layers of a cache have in common.
#[repr(C)]
#[derive(Debug)]
pub struct BitsmithKvShape {
    /// Type of keys, values, queries and outputs: `f16`, `bf16`, `f32`.
    pub element: *const c_char,
    /// Query heads.
    pub heads: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// Channels of queries and keys.
    pub k_dim: u32,
    /// Channels of values.
    pub v_dim: u32,
    /// Tokens of a page: 16, 32, 64, 128, 256.
    pub page: u32,
}

/// How attention runs. What is 0 or null is not asked for.
#[repr(C)]
#[derive(Debug)]
pub struct BitsmithAttention {
    /// Multiplies scores; 0 stands for `1 / sqrt(k_dim)`.
    pub scale: f32,
    /// Soft cap of scores.
    pub softcap: f32,
    /// A query sees so many of the newest tokens.
    pub window: u32,
    /// And so many of the first.
    pub first: u32,
    /// Slopes of a bias by distance, one per query head.
    pub slopes: *const f32,
    /// Scores of learned sinks, one per query head.
    pub sinks: *const f32,
    /// Numbers behind `slopes` and `sinks`: the query heads.
    pub heads: usize,
    /// Tokens per work item, so that a result does not depend on the other requests; 0 fits the device.
    pub split: u64,
}

/// A cache behind a handle, and the channels of its keys.
pub(crate) struct Cache {
    cache: Mutex<KvCache>,
    k_dim: u32,
}

impl Cache {
    /// Runs a call on the cache, one at a time.
    pub(crate) fn with<T>(&self, body: impl FnOnce(&mut KvCache) -> Answer<T>) -> Answer<T> {
        match self.cache.lock() {
            Ok(mut cache) => body(&mut cache),
            Err(_) => Err(Fault::Error(Error::Bug {
                message: "an earlier call on this cache failed half-way; close it".into(),
                text: String::new(),
            })),
        }
    }
}

fn number(value: u64, name: &str, most: usize) -> Answer<usize> {
    let found = usize::try_from(value).ok().filter(|&found| found <= most);
    found.ok_or_else(|| Fault::invalid(format!("{name} is {value}; accepted: up to {most}")))
}

/// Makes a KV cache with a layer for each format, `pages` pages in each, and room for `requests` requests at a time. `kernels`
/// is a bundle, whose kernels it runs, or a device, for which kernels are compiled as they are needed.
///
/// # Safety
/// `shape` must be readable, its text and each of the `layers` texts of `formats` must end with zero bytes; `cache` must be
/// writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_kv_create(
    kernels: u64,
    shape: *const BitsmithKvShape,
    formats: *const *const c_char,
    layers: usize,
    pages: u64,
    requests: u64,
    cache: *mut u64,
) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise, here and below.
        let (given, dtype) = unsafe {
            write(cache, 0, "cache")?;
            let given = read(shape, "shape")?;
            (given, text(given.element, "element")?.parse::<DType>()?)
        };
        let shape = KvShape {
            heads: given.heads as usize,
            kv_heads: given.kv_heads as usize,
            k_dim: given.k_dim as usize,
            v_dim: given.v_dim as usize,
            page: given.page as usize,
            dtype,
        };
        if layers > MOST {
            return Err(Fault::invalid(format!("{layers} layers; accepted: 1 to {MOST}")));
        }
        // SAFETY: as above.
        let list = unsafe { slice(formats, layers, "formats")? };
        let mut parsed: Vec<KvFormat> = Vec::with_capacity(layers);
        for &format in list {
            // SAFETY: as above.
            parsed.push(unsafe { text(format, "a format")? }.parse()?);
        }
        let (pages, requests) = (number(pages, "pages", i32::MAX as usize)?, number(requests, "requests", 1 << 20)?);
        let (made, device) = match registry::find(kernels)? {
            Thing::Bundle(kernels) => {
                let device = Arc::clone(kernels.device());
                (KvCache::of_bundle(kernels, shape, &parsed, pages, requests)?, device)
            }
            Thing::Device(device) => (KvCache::new(Arc::clone(&device), shape, &parsed, pages, requests)?, device),
            other => return registry::wrong(kernels, &other, "bundle or a device"),
        };
        let made = Arc::new(Cache { cache: Mutex::new(made), k_dim: given.k_dim });
        // SAFETY: as above.
        unsafe { write(cache, registry::register(Thing::Cache(made, device)), "cache") }
    })
}

/// The caller's scales of a layer whose format has them per tensor or head: `count` is 4 per KV head, scale and offset of keys,
/// scale and offset of values. Before the first append.
///
/// # Safety
/// `scales` must have `count` readable floats.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_kv_scales(cache: u64, layer: u64, scales: *const f32, count: usize) -> i32 {
    guarded(|| {
        let (cache, _) = registry::cache(cache)?;
        if !count.is_multiple_of(4) || count > 4 * MOST {
            return Err(Fault::invalid(format!("{count} numbers; accepted: 4 per KV head")));
        }
        // SAFETY: the caller's promise.
        let given = unsafe { slice(scales, count, "scales")? };
        if let Some(number) = given.iter().find(|number| !number.is_finite()) {
            return Err(Fault::invalid(format!("{number} among the scales; accepted: finite numbers")));
        }
        if let Some(scale) = given.chunks(2).map(|pair| pair[0]).find(|&scale| scale <= 0.0) {
            return Err(Fault::invalid(format!("a scale of {scale}; accepted: positive")));
        }
        let list: Vec<KvStatics> = given.chunks(4).map(|s| KvStatics { k: (s[0], s[1]), v: (s[2], s[3]) }).collect();
        cache.with(|cache| Ok(cache.set_scales(number(layer, "layer", MOST)?, &list)?))
    })
}

/// Rotates keys as they are appended: `table` has `count` floats, for each position the cosines of its `rotary / 2` pairs, then
/// their sines. The two channels of a pair are neighbours where `interleaved` is not 0, else `rotary / 2` apart.
///
/// # Safety
/// `table` must have `count` readable floats.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_kv_rope(
    cache: u64,
    rotary: u32,
    interleaved: u32,
    table: *const f32,
    count: usize,
) -> i32 {
    guarded(|| {
        let (cache, _) = registry::cache(cache)?;
        // SAFETY: the caller's promise.
        let table = unsafe { slice(table, count, "table")? };
        let rope = Rope { rotary: rotary as usize, interleaved: interleaved != 0 };
        cache.with(|cache| Ok(cache.set_rope(rope, table)?))
    })
}

/// Opens a request: a sequence of tokens, none yet. Its number is good for this cache.
///
/// # Safety
/// `request` must be writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_kv_open(cache: u64, request: *mut u64) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise, here and below.
        unsafe { write(request, 0, "request")? };
        let (cache, _) = registry::cache(cache)?;
        let opened = cache.with(|cache| Ok(cache.open()?))?;
        // SAFETY: as above.
        unsafe { write(request, opened.number(), "request") }
    })
}

/// Ends a request; its pages are free.
#[unsafe(no_mangle)]
pub extern "C" fn bitsmith_kv_end(cache: u64, request: u64) -> i32 {
    guarded(|| registry::cache(cache)?.0.with(|cache| Ok(cache.close(RequestId::of_number(request))?)))
}

/// Takes back a request's newest tokens, so that `tokens` remain.
#[unsafe(no_mangle)]
pub extern "C" fn bitsmith_kv_truncate(cache: u64, request: u64, tokens: u64) -> i32 {
    guarded(|| {
        let tokens = number(tokens, "tokens", usize::MAX)?;
        registry::cache(cache)?.0.with(|cache| Ok(cache.truncate(RequestId::of_number(request), tokens)?))
    })
}

/// Tokens of a request.
///
/// # Safety
/// `tokens` must be writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_kv_tokens(cache: u64, request: u64, tokens: *mut u64) -> i32 {
    guarded(|| {
        let (cache, _) = registry::cache(cache)?;
        let found = cache.with(|cache| Ok(cache.pages().tokens(RequestId::of_number(request))?))?;
        // SAFETY: the caller's promise.
        unsafe { write(tokens, found as u64, "tokens") }
    })
}

/// Begins a step: makes room in every layer for `tokens[i]` new tokens of `requests[i]`, or fails and changes nothing. Rows of the
/// calls of a step are those tokens, request after request.
///
/// # Safety
/// `requests` and `tokens` must have `count` readable elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_kv_grow(cache: u64, requests: *const u64, tokens: *const u64, count: usize) -> i32 {
    guarded(|| {
        let (cache, _) = registry::cache(cache)?;
        if count > MOST {
            return Err(Fault::invalid(format!("{count} requests; accepted: up to {MOST}")));
        }
        // SAFETY: the caller's promise.
        let (requests, tokens) = unsafe { (slice(requests, count, "requests")?, slice(tokens, count, "tokens")?) };
        let step = requests.iter().zip(tokens).map(|(&request, &tokens)| {
            Ok((RequestId::of_number(request), number(tokens, "tokens", i32::MAX as usize)?))
        });
        let step = step.collect::<Answer<Vec<_>>>()?;
        cache.with(|cache| Ok(cache.grow(&step)?))
    })
}

/// Runs a call on two ranges of buffers that belong to the cache's device.
fn with_views(
    cache: u64,
    views: [&BitsmithView; 2],
    body: impl FnOnce(&Cache, View<'_>, View<'_>) -> Answer<()>,
) -> Answer<()> {
    let (cache, device) = registry::cache(cache)?;
    let mut buffers: Vec<Buffer> = Vec::with_capacity(2);
    for view in views {
        let (buffer, owner) = registry::buffer(view.buffer)?;
        if !Arc::ptr_eq(&owner, &device) {
            return Err(Fault::invalid(format!(
                "buffer {} belongs to another device than the cache; accepted: buffers of {}",
                view.buffer,
                device.info().name
            )));
        }
        buffers.push(buffer);
    }
    body(&cache, range_of(views[0], &buffers[0])?, range_of(views[1], &buffers[1])?)
}

/// Stores the step's new keys `[rows, kv_heads, k_dim]` and values `[rows, kv_heads, v_dim]` in a layer.
///
/// # Safety
/// `k` and `v` must be readable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_kv_append(
    cache: u64,
    layer: u64,
    k: *const BitsmithView,
    v: *const BitsmithView,
) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise.
        let views = unsafe { [read(k, "k")?, read(v, "v")?] };
        let layer = number(layer, "layer", MOST)?;
        with_views(cache, views, |cache, k, v| cache.with(|cache| Ok(cache.append(layer, k, v)?)))
    })
}

/// Attention of the step's queries `[rows, heads, k_dim]` over all tokens of their requests, the step's own included, each up
/// to its own position; outputs are `[rows, heads, v_dim]`. `how` is null for plain attention. On a GPU it may still run when this
/// returns.
///
/// # Safety
/// `q` and `y` must be readable; `how` is null or readable, its lists null or as long as it says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_kv_attend(
    cache: u64,
    layer: u64,
    q: *const BitsmithView,
    y: *const BitsmithView,
    how: *const BitsmithAttention,
) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise, here and below.
        let views = unsafe { [read(q, "q")?, read(y, "y")?] };
        let layer = number(layer, "layer", MOST)?;
        let mut options = AttendOptions::causal(0.0);
        if !how.is_null() {
            // SAFETY: as above.
            let how = unsafe { read(how, "how")? };
            options.scale = how.scale;
            options.softcap = (how.softcap != 0.0).then_some(how.softcap);
            if how.window > 0 || how.first > 0 {
                options.sight = Sight::Window { window: how.window, first: how.first };
            }
            if how.heads > MOST {
                return Err(Fault::invalid(format!("{} heads; accepted: up to {MOST}", how.heads)));
            }
            // SAFETY: as above.
            unsafe {
                if !how.slopes.is_null() {
                    options.slopes = slice(how.slopes, how.heads, "slopes")?.to_vec();
                }
                if !how.sinks.is_null() {
                    options.sinks = slice(how.sinks, how.heads, "sinks")?.to_vec();
                }
            }
            options.splits =
                (how.split > 0).then(|| number(how.split, "split", 1 << 30).map(Splits::Fixed)).transpose()?;
        }
        with_views(cache, views, |cache, q, y| {
            if options.scale == 0.0 {
                options.scale = 1.0 / (cache.k_dim as f32).sqrt();
            }
            cache.with(|cache| Ok(cache.attend(layer, q, y, &options)?))
        })
    })
}

/// Gathers tokens `start` to `start + count - 1` of a request from a layer as plain numbers: `k [count, kv_heads, k_dim]` and
/// `v [count, kv_heads, v_dim]`.
///
/// # Safety
/// `k` and `v` must be readable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_kv_dequantize(
    cache: u64,
    layer: u64,
    request: u64,
    start: u64,
    count: u64,
    k: *const BitsmithView,
    v: *const BitsmithView,
) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise.
        let views = unsafe { [read(k, "k")?, read(v, "v")?] };
        let layer = number(layer, "layer", MOST)?;
        let (start, count) = (number(start, "start", 1 << 40)?, number(count, "count", 1 << 40)?);
        let request = RequestId::of_number(request);
        with_views(cache, views, |cache, k, v| {
            cache.with(|cache| Ok(cache.dequantize(layer, request, start, count, k, v)?))
        })
    })
}
