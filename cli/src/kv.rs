//! Arguments that say how keys and values are kept while a model is judged.

use crate::Failure;
use crate::place::Place;
use bitsmith_calibrate::engine::{PagedCaches, Through};
use bitsmith_calibrate::kv::{self, KvScales};
use bitsmith_calibrate::model::Layers;
use std::path::{Path, PathBuf};

/// How keys and values are kept.
#[derive(Debug, clap::Args)]
pub(crate) struct KvArgs {
    /// Keep keys and values in a KV format, by the kernels of the device; `bitsmith list kv`. Left out: f32
    #[arg(long, value_name = "FORMAT")]
    kv: Option<String>,
    /// Scales for formats per tensor or head, by `calibrate --kv` or `quantize`; left out: those in the model's folder
    #[arg(long, value_name = "FILE", requires = "kv")]
    kv_scales: Option<PathBuf>,
    /// What attends: the kernels on codes, or floats on codes that are dequantized
    #[arg(long, value_enum, default_value_t = KvVia::Kernels, requires = "kv")]
    kv_via: KvVia,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum KvVia {
    /// The attention kernels, on codes
    Kernels,
    /// Codes dequantized by a kernel, attention in floats
    Dequantized,
}

impl KvArgs {
    /// Whether there is a format, and its name.
    pub fn name(&self) -> &str {
        self.kv.as_deref().unwrap_or("f32")
    }

    /// Caches for a model that lies in a folder; `None` where keys and values stay floats.
    pub fn caches(
        &self,
        model: &dyn Layers,
        folder: &Path,
        device: &str,
        room: usize,
    ) -> Result<Option<PagedCaches>, Failure> {
        let Some(format) = self.kv.as_deref().map(kv::format).transpose()?.flatten() else { return Ok(None) };
        let own = folder.join(kv::FILE);
        let scales = match &self.kv_scales {
            Some(path) => Some(KvScales::read(path)?),
            None if !(format.k.is_static() || format.v.is_static()) => None,
            None if own.is_file() => Some(KvScales::read(&own)?),
            None => KvScales::of_checkpoint(model, &format)?,
        };
        let through = match self.kv_via {
            KvVia::Kernels => Through::Kernels,
            KvVia::Dequantized => Through::Dequantized,
        };
        Ok(Some(PagedCaches::new(Place::running(device)?, format, through, room, scales)?))
    }
}
