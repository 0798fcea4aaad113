//! Calibration prompts, and the residual stream of all of them between layers.
//!
//! Reads token ids; makes prompts at places that a seed chooses. Residual streams stay in memory while they are small and
//! go to a temporary file beyond that, so that memory does not grow with the number of prompts.

use crate::engine::embed;
use crate::model::Linear;
use crate::recipe::Calibration;
use bitsmith_compiler::{Error, Result};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

/// Prompts of equal length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompts {
    /// Token ids of each.
    pub list: Vec<Vec<u32>>,
}

impl Prompts {
    /// Prompts from a text, behind its first `skip` tokens, which an evaluation keeps for itself. A text too short for that
    /// many different places gives fewer.
    pub fn new(ids: &[u32], bos: Option<u32>, how: &Calibration, skip: usize) -> Result<Prompts> {
        let ids = ids.get(skip..).unwrap_or_default();
        let body = how.length.saturating_sub(usize::from(bos.is_some()));
        if body < 8 || how.samples == 0 || ids.len() < body {
            return Err(Error::invalid(format!(
                "{} prompts of {} tokens from a text that has {} tokens left; accepted: a longer text, or shorter prompts",
                how.samples,
                how.length,
                ids.len()
            )));
        }
        let places = ids.len() - body + 1;
        // Places do not overlap by more than they must: one in each of as many stretches, shaken by the seed.
        let samples = how.samples.min(places);
        let mut rng = fastrand::Rng::with_seed(how.seed);
        let list = (0..samples)
            .map(|i| {
                let (from, to) = (i * places / samples, (i + 1) * places / samples);
                let start = rng.usize(from..to.max(from + 1));
                bos.into_iter().chain(ids[start..start + body].iter().copied()).collect()
            })
            .collect();
        Ok(Prompts { list })
    }

    /// Rows of the embedding of each prompt.
    pub fn embedded(&self, embedding: &Linear) -> Result<Residuals> {
        let mut streams = Residuals::new(self.list.iter().map(|prompt| prompt.len() * embedding.k).collect())?;
        for (i, prompt) in self.list.iter().enumerate() {
            streams.set(i, embed(embedding, prompt)?)?;
        }
        Ok(streams)
    }

    /// Tokens of all prompts.
    pub fn tokens(&self) -> usize {
        self.list.iter().map(Vec::len).sum()
    }
}

/// Bytes up to which residual streams stay in memory.
const IN_MEMORY: usize = 256 << 20;

/// One matrix per prompt, replaced layer by layer.
pub struct Residuals {
    sizes: Vec<usize>,
    offsets: Vec<u64>,
    store: Store,
}

enum Store {
    Memory(Vec<Vec<f32>>),
    Disk(File),
}

impl Residuals {
    /// Room for one matrix of each size.
    pub fn new(sizes: Vec<usize>) -> Result<Residuals> {
        let total: usize = sizes.iter().sum();
        let mut offsets = Vec::with_capacity(sizes.len());
        let mut at = 0u64;
        for size in &sizes {
            offsets.push(at);
            at += *size as u64 * 4;
        }
        let store = if total * 4 <= IN_MEMORY {
            Store::Memory(vec![Vec::new(); sizes.len()])
        } else {
            let file = tempfile::tempfile().map_err(|error| Error::invalid(format!("temporary file: {error}")))?;
            Store::Disk(file)
        };
        Ok(Residuals { sizes, offsets, store })
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.sizes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sizes.is_empty()
    }

    /// The matrix of a prompt.
    pub fn get(&mut self, index: usize) -> Result<Vec<f32>> {
        let size = self.sizes[index];
        match &mut self.store {
            Store::Memory(list) => Ok(list[index].clone()),
            Store::Disk(file) => {
                let mut bytes = vec![0; size * 4];
                file.seek(SeekFrom::Start(self.offsets[index]))
                    .and_then(|_| file.read_exact(&mut bytes))
                    .map_err(fault)?;
                Ok(bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
            }
        }
    }

    /// Replaces the matrix of a prompt.
    pub fn set(&mut self, index: usize, x: Vec<f32>) -> Result<()> {
        if x.len() != self.sizes[index] {
            return Err(Error::invalid(format!("{} numbers for prompt {index} of {}", x.len(), self.sizes[index])));
        }
        match &mut self.store {
            Store::Memory(list) => list[index] = x,
            Store::Disk(file) => {
                let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
                file.seek(SeekFrom::Start(self.offsets[index])).and_then(|_| file.write_all(&bytes)).map_err(fault)?;
            }
        }
        Ok(())
    }
}

fn fault(error: std::io::Error) -> Error {
    Error::invalid(format!("temporary file: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_chooses_places_and_the_evaluation_keeps_its_own() {
        let ids: Vec<u32> = (0..10_000).collect();
        let how = Calibration { samples: 16, length: 65, seed: 4 };
        let prompts = Prompts::new(&ids, Some(1), &how, 3000).unwrap();
        assert_eq!(prompts, Prompts::new(&ids, Some(1), &how, 3000).unwrap());
        assert_ne!(prompts, Prompts::new(&ids, Some(1), &Calibration { seed: 5, ..how }, 3000).unwrap());
        assert_eq!(prompts.list.len(), 16);
        assert!(prompts.list.iter().all(|p| p.len() == 65 && p[0] == 1 && p[1..].iter().all(|id| *id >= 3000)));
        assert!(Prompts::new(&ids[..50], None, &how, 0).unwrap_err().to_string().contains("50 tokens"));
    }

    #[test]
    fn streams_come_back_from_disk_as_they_went() {
        let sizes = vec![3, 5];
        let mut disk =
            Residuals { offsets: vec![0, 12], store: Store::Disk(tempfile::tempfile().unwrap()), sizes: sizes.clone() };
        let mut memory = Residuals::new(sizes).unwrap();
        for list in [&mut disk, &mut memory] {
            list.set(1, vec![1.5; 5]).unwrap();
            list.set(0, vec![-0.5; 3]).unwrap();
            assert_eq!((list.get(0).unwrap(), list.get(1).unwrap()), (vec![-0.5; 3], vec![1.5; 5]));
            assert!(list.set(0, vec![0.0; 4]).is_err());
        }
    }
}
