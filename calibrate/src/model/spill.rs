//! A model whose matrices lie in a temporary file: what a quantizer makes before it is known how a target writes it.
//!
//! Reads layers one by one; gives them back as they were. Always holds: in memory are names, sizes and norms; numbers are
//! the same to the bit; the file goes when its owner goes, however the process ends.

use super::{Config, Floats, Layer, Layers, Linear, Weight};
use bitsmith_compiler::{Error, Result};
use std::borrow::Cow;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::{Mutex, PoisonError};

/// A model in a temporary file.
pub struct Spill {
    config: Config,
    embedding: Option<(Linear, Extent)>,
    layers: Vec<(Layer, Vec<Extent>)>,
    norm: Floats,
    head: Option<(Linear, Extent)>,
    file: Mutex<File>,
    end: u64,
}

/// Where the numbers of a matrix are, and how many of each kind.
#[derive(Clone, Debug, Default)]
struct Extent {
    at: u64,
    floats: usize,
    codes: usize,
    /// Scales, outer scales, zeros, outer zeros, order.
    words: [usize; 5],
}

fn fault(error: std::io::Error) -> Error {
    Error::invalid(format!("temporary file: {error}"))
}

impl Spill {
    /// A file without a model yet.
    pub fn new(config: &Config) -> Result<Spill> {
        Ok(Spill {
            config: config.clone(),
            embedding: None,
            layers: Vec::new(),
            norm: Floats::f32(Vec::new()),
            head: None,
            file: Mutex::new(tempfile::tempfile().map_err(fault)?),
            end: 0,
        })
    }

    /// Takes the next layer.
    pub fn push(&mut self, mut layer: Layer) -> Result<()> {
        let extents = layer.linears_mut().into_iter().map(|linear| self.put(linear)).collect::<Result<_>>()?;
        self.layers.push((layer, extents));
        Ok(())
    }

    /// Takes what is not a layer.
    pub fn finish(&mut self, mut embedding: Linear, norm: Floats, head: Option<Linear>) -> Result<()> {
        let extent = self.put(&mut embedding)?;
        self.embedding = Some((embedding, extent));
        self.norm = norm;
        self.head = match head {
            None => None,
            Some(mut head) => {
                let extent = self.put(&mut head)?;
                Some((head, extent))
            }
        };
        Ok(())
    }

    /// Moves the numbers of a matrix to the file.
    fn put(&mut self, linear: &mut Linear) -> Result<Extent> {
        let mut extent = Extent { at: self.end, ..Extent::default() };
        let mut bytes = Vec::new();
        match &mut linear.weight {
            Weight::Floats(floats) => {
                extent.floats = floats.values.len();
                floats.values.iter().for_each(|x| bytes.extend(x.to_le_bytes()));
                floats.values = Vec::new();
            }
            Weight::Quantized(q) => {
                extent.codes = q.codes.len();
                bytes = std::mem::take(&mut q.codes);
                let lists = [&mut q.scales, &mut q.outer, &mut q.zeros, &mut q.zeros_outer];
                for (count, list) in extent.words.iter_mut().zip(lists.into_iter().chain(q.order.as_mut())) {
                    *count = list.len();
                    std::mem::take(list).iter().for_each(|word| bytes.extend(word.to_le_bytes()));
                }
            }
        }
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(self.end)).and_then(|_| file.write_all(&bytes)).map_err(fault)?;
        self.end += bytes.len() as u64;
        Ok(extent)
    }

    /// A matrix with its numbers.
    fn get(&self, linear: &Linear, extent: &Extent) -> Result<Linear> {
        let mut linear = linear.clone();
        let mut bytes = vec![0; 4 * extent.floats + extent.codes + 4 * extent.words.iter().sum::<usize>()];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(extent.at)).and_then(|_| file.read_exact(&mut bytes)).map_err(fault)?;
        drop(file);
        match &mut linear.weight {
            Weight::Floats(floats) => {
                floats.values = bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
            }
            Weight::Quantized(q) => {
                let words: Vec<u32> =
                    bytes[extent.codes..].as_chunks::<4>().0.iter().map(|&b| u32::from_le_bytes(b)).collect();
                bytes.truncate(extent.codes);
                q.codes = bytes;
                let mut at = 0;
                let lists = [&mut q.scales, &mut q.outer, &mut q.zeros, &mut q.zeros_outer];
                for (&count, list) in extent.words.iter().zip(lists.into_iter().chain(q.order.as_mut())) {
                    *list = words[at..at + count].to_vec();
                    at += count;
                }
            }
        }
        Ok(linear)
    }
}

impl Layers for Spill {
    fn config(&self) -> &Config {
        &self.config
    }

    fn embedding(&self) -> Result<Cow<'_, Linear>> {
        let (linear, extent) = self.embedding.as_ref().ok_or_else(|| Error::Bug {
            message: "a spilled model is read before it was finished".into(),
            text: self.config.shape.name.to_string(),
        })?;
        self.get(linear, extent).map(Cow::Owned)
    }

    fn layer(&self, index: usize) -> Result<Cow<'_, Layer>> {
        let (layer, extents) = &self.layers[index];
        let mut layer = layer.clone();
        for (linear, extent) in layer.linears_mut().into_iter().zip(extents) {
            *linear = self.get(linear, extent)?;
        }
        Ok(Cow::Owned(layer))
    }

    fn norm(&self) -> Result<Cow<'_, Floats>> {
        Ok(Cow::Borrowed(&self.norm))
    }

    fn head(&self) -> Result<Option<Cow<'_, Linear>>> {
        self.head.as_ref().map(|(linear, extent)| self.get(linear, extent).map(Cow::Owned)).transpose()
    }
}
