//! Handles: numbers that stand for devices, buffers, weights, bundles, kernels and KV caches.

use super::guard::{Answer, Fault};
use super::kv::Cache;
use bitsmith_compiler::format::Quantized;
use bitsmith_runtime::bundle::Kernels;
use bitsmith_runtime::{Buffer, Device};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

/// What a handle stands for. Clones share it, so that a call goes on where another thread closes its handles.
#[derive(Clone)]
pub(crate) enum Thing {
    Device(Arc<dyn Device>),
    Buffer(Buffer, Arc<dyn Device>),
    Weights(Arc<Quantized>),
    Bundle(Arc<Kernels>),
    Kernel(Arc<Kernels>, usize, Arc<str>),
    Cache(Arc<Cache>, Arc<dyn Device>),
}

impl Thing {
    fn what(&self) -> &'static str {
        match self {
            Thing::Device(_) => "device",
            Thing::Buffer(..) => "buffer",
            Thing::Weights(_) => "weights",
            Thing::Bundle(_) => "bundle",
            Thing::Kernel(..) => "kernel",
            Thing::Cache(..) => "KV cache",
        }
    }
}

static THINGS: LazyLock<RwLock<HashMap<u64, Thing>>> = LazyLock::new(RwLock::default);
/// The next handle. Handles start far from 0, so that a small number that was never a handle is not one by chance.
static NEXT: AtomicU64 = AtomicU64::new(FIRST);
const FIRST: u64 = 0x6269_7400_0000_0001;

/// A new handle.
pub(crate) fn register(thing: Thing) -> u64 {
    let handle = NEXT.fetch_add(1, Ordering::Relaxed);
    THINGS.write().unwrap_or_else(PoisonError::into_inner).insert(handle, thing);
    handle
}

/// What a handle stands for.
pub(crate) fn find(handle: u64) -> Answer<Thing> {
    let things = THINGS.read().unwrap_or_else(PoisonError::into_inner);
    things.get(&handle).cloned().ok_or_else(|| absent(handle))
}

/// Forgets a handle; what it stands for lives on while something else uses it.
pub(crate) fn close(handle: u64) -> Answer<()> {
    let thing = THINGS.write().unwrap_or_else(PoisonError::into_inner).remove(&handle);
    // Dropped outside the lock: a device joins its threads.
    thing.map(drop).ok_or_else(|| absent(handle))
}

fn absent(handle: u64) -> Fault {
    if (FIRST..NEXT.load(Ordering::Relaxed)).contains(&handle) {
        Fault::Closed(handle)
    } else {
        Fault::invalid(format!("{handle} is no handle"))
    }
}

/// A handle of another kind than the call takes.
pub(crate) fn wrong<T>(handle: u64, found: &Thing, wanted: &str) -> Answer<T> {
    Err(Fault::invalid(format!("handle {handle} is a {}; accepted: a {wanted}", found.what())))
}

/// The device behind a handle.
pub(crate) fn device(handle: u64) -> Answer<Arc<dyn Device>> {
    match find(handle)? {
        Thing::Device(device) => Ok(device),
        other => wrong(handle, &other, "device"),
    }
}

/// The buffer behind a handle, and its device.
pub(crate) fn buffer(handle: u64) -> Answer<(Buffer, Arc<dyn Device>)> {
    match find(handle)? {
        Thing::Buffer(buffer, device) => Ok((buffer, device)),
        other => wrong(handle, &other, "buffer"),
    }
}

/// The weights behind a handle.
pub(crate) fn weights(handle: u64) -> Answer<Arc<Quantized>> {
    match find(handle)? {
        Thing::Weights(weights) => Ok(weights),
        other => wrong(handle, &other, "matrix of weights"),
    }
}

/// The bundle behind a handle.
pub(crate) fn bundle(handle: u64) -> Answer<Arc<Kernels>> {
    match find(handle)? {
        Thing::Bundle(bundle) => Ok(bundle),
        other => wrong(handle, &other, "bundle"),
    }
}

/// The kernel behind a handle: its bundle, its index, and why it was chosen.
pub(crate) fn kernel(handle: u64) -> Answer<(Arc<Kernels>, usize, Arc<str>)> {
    match find(handle)? {
        Thing::Kernel(kernels, index, reason) => Ok((kernels, index, reason)),
        other => wrong(handle, &other, "kernel"),
    }
}

/// The KV cache behind a handle, and its device.
pub(crate) fn cache(handle: u64) -> Answer<(Arc<Cache>, Arc<dyn Device>)> {
    match find(handle)? {
        Thing::Cache(cache, device) => Ok((cache, device)),
        other => wrong(handle, &other, "KV cache"),
    }
}
