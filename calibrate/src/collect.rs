//! Calibration: statistics of what flows through a model, collected layer by layer and kept in a folder.
//!
//! ```text
//! manifest.json       what was asked, and how many layers are done
//! layer-000.json      per site: rows, largest and mean magnitudes, histogram, percentiles, outlier channels
//! streams-000.bin     the residual streams after that layer; only the newest is kept
//! ```
//!
//! Reads a checkpoint and prompts; writes the folder. Always holds: in memory are one layer, its statistics and one
//! prompt; a run that was cut off goes on after its last whole layer and gives the same numbers, bit for bit; a folder of
//! another model, text or seed is refused.

use crate::engine::{Block, Executor, FloatCache, Site, embed};
use crate::import::Checkpoint;
use crate::quantize::{Histogram, Prompts, Stats};
use crate::recipe::Calibration;
use bitsmith_compiler::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// What a folder was made from, and how far it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the files.
    pub schema: u32,
    /// SHA-256 of the configuration and the prompts.
    pub inputs: String,
    /// What was asked for.
    pub calibration: Calibration,
    /// Prompts.
    pub prompts: usize,
    /// Tokens of all prompts.
    pub tokens: usize,
    /// Layers that are done.
    pub done: usize,
    /// Layers of the model.
    pub layers: usize,
}

/// What is kept of a site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteStats {
    /// `attention`, `output`, `mlp`, `down`, or those of an expert.
    pub site: String,
    /// Rows seen.
    pub rows: u64,
    /// Largest magnitude of each channel.
    pub absmax: Vec<f32>,
    /// Mean magnitude of each channel.
    pub mean_abs: Vec<f32>,
    /// Magnitudes of all inputs.
    pub histogram: Histogram,
    /// Magnitudes below which 99, 99.9 and 99.99 % of inputs lie.
    pub percentiles: [f32; 3],
    /// Channels whose maximum is more than six times the median channel's, the largest first.
    pub outliers: Vec<usize>,
}

const SCHEMA: u32 = 1;
/// How many times the median channel's maximum makes an outlier.
const OUTLIER: f32 = 6.0;

/// Collects statistics into a folder, or goes on where it was cut off. `progress` hears how many layers are done.
pub fn collect(
    checkpoint: &Checkpoint,
    prompts: &Prompts,
    how: &Calibration,
    executor: &dyn Executor,
    folder: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Manifest> {
    let mut manifest = start(checkpoint, prompts, how, folder)?;
    let hidden = checkpoint.config.shape.hidden;
    if manifest.done == 0 && !streams(folder, 0).is_file() {
        let embedding = checkpoint.embedding()?;
        let path = streams(folder, 0);
        whole(&path, |out| prompts.list.iter().try_for_each(|prompt| write_stream(out, &embed(&embedding, prompt)?)))?;
    }
    for index in manifest.done..manifest.layers {
        let block = Block::new(&checkpoint.config, checkpoint.layer(index)?, executor)?;
        let mut sites: BTreeMap<Site, Stats> = BTreeMap::new();
        let mut before = BufReader::new(File::open(streams(folder, index)).map_err(|e| fault(folder, &e))?);
        whole(&streams(folder, index + 1), |out| {
            for prompt in &prompts.list {
                let mut x = read_stream(&mut before, prompt.len() * hidden)?;
                let mut cache = FloatCache::new(&checkpoint.config);
                block.forward(&mut x, prompt.len(), &mut cache, &mut |site, x, m| {
                    let width = x.len() / m.max(1);
                    sites.entry(site).or_insert_with(|| Stats::new(width, false)).add(x);
                    Ok(())
                })?;
                write_stream(out, &x)?;
            }
            Ok(())
        })?;
        let list: Vec<SiteStats> = sites.iter().map(|(site, stats)| SiteStats::new(*site, stats)).collect();
        write_json(&folder.join(format!("layer-{index:03}.json")), &list)?;
        manifest.done = index + 1;
        write_json(&folder.join("manifest.json"), &manifest)?;
        // The next layer needs the newest streams alone.
        let _ = std::fs::remove_file(streams(folder, index));
        progress(manifest.done, manifest.layers);
    }
    Ok(manifest)
}

impl SiteStats {
    fn new(site: Site, stats: &Stats) -> SiteStats {
        SiteStats {
            site: site.name(),
            rows: stats.rows,
            absmax: stats.absmax.clone(),
            mean_abs: stats.mean_abs(),
            histogram: stats.histogram.clone(),
            percentiles: [0.99, 0.999, 0.9999].map(|share| stats.histogram.percentile(share)),
            outliers: stats.outliers(OUTLIER),
        }
    }
}

/// The statistics of a layer.
pub fn read_layer(folder: &Path, index: usize) -> Result<Vec<SiteStats>> {
    let path = folder.join(format!("layer-{index:03}.json"));
    let text = crate::file::safetensors::read_text(&path)?;
    serde_json::from_str(&text).map_err(|error| Error::invalid(format!("{}: {error}", path.display())))
}

/// The manifest of a folder; `None` where there is none.
pub fn read_manifest(folder: &Path) -> Result<Option<Manifest>> {
    let path = folder.join("manifest.json");
    if !path.is_file() {
        return Ok(None);
    }
    let text = crate::file::safetensors::read_text(&path)?;
    serde_json::from_str(&text).map(Some).map_err(|error| Error::invalid(format!("{}: {error}", path.display())))
}

fn start(checkpoint: &Checkpoint, prompts: &Prompts, how: &Calibration, folder: &Path) -> Result<Manifest> {
    let mut hash = Sha256::new();
    hash.update(checkpoint.config.to_json().to_string());
    for prompt in &prompts.list {
        prompt.iter().for_each(|id| hash.update(id.to_le_bytes()));
        hash.update(u32::MAX.to_le_bytes());
    }
    let inputs: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let layers = checkpoint.config.shape.layers;
    let fresh = Manifest {
        schema: SCHEMA,
        inputs,
        calibration: *how,
        prompts: prompts.list.len(),
        tokens: prompts.tokens(),
        done: 0,
        layers,
    };
    match read_manifest(folder)? {
        Some(found) if Manifest { done: 0, ..found.clone() } == fresh => Ok(found),
        Some(_) => Err(Error::invalid(format!(
            "{}: holds the statistics of another model, text or seed; name a new folder",
            folder.display()
        ))),
        None => {
            std::fs::create_dir_all(folder).map_err(|error| fault(folder, &error))?;
            write_json(&folder.join("manifest.json"), &fresh)?;
            Ok(fresh)
        }
    }
}

fn streams(folder: &Path, done: usize) -> PathBuf {
    folder.join(format!("streams-{done:03}.bin"))
}

fn fault(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::invalid(format!("{}: {error}", path.display()))
}

/// Writes a file beside its place first, so that none is ever found half written.
fn whole(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let part = path.with_extension("part");
    let mut out = BufWriter::new(File::create(&part).map_err(|error| fault(&part, &error))?);
    fill(&mut out)?;
    out.flush().and_then(|()| std::fs::rename(&part, path)).map_err(|error| fault(path, &error))
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(value).map_err(|error| fault(path, &error))?;
    whole(path, |out| out.write_all(text.as_bytes()).map_err(|error| fault(path, &error)))
}

fn write_stream(out: &mut impl Write, x: &[f32]) -> Result<()> {
    let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
    out.write_all(&bytes).map_err(|error| Error::invalid(format!("residual streams: {error}")))
}

fn read_stream(from: &mut impl Read, count: usize) -> Result<Vec<f32>> {
    let mut bytes = vec![0; count * 4];
    from.read_exact(&mut bytes).map_err(|error| Error::invalid(format!("residual streams: {error}")))?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
}
