//! candle's quantized product. Its threads are those that the environment of the process names.

use crate::subject::Subject;
use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{Device, Module, Tensor};
use std::borrow::Cow;
use std::time::Instant;

/// A product by candle.
pub struct Candle {
    weights: Vec<QMatMul>,
    x: Tensor,
    bytes: usize,
    turn: usize,
}

/// A type of candle's by the name that GGUF gives it.
pub fn kind(name: &str) -> Option<GgmlDType> {
    Some(match name {
        "q4_0" => GgmlDType::Q4_0,
        "q8_0" => GgmlDType::Q8_0,
        "q2_k" => GgmlDType::Q2K,
        "q4_k" => GgmlDType::Q4K,
        "q6_k" => GgmlDType::Q6K,
        _ => return None,
    })
}

impl Candle {
    /// Weights in `copies` copies and activations `[m, k]`.
    pub fn new(
        kind: GgmlDType,
        blocks: &[u8],
        x: &[f32],
        (n, k, m): (usize, usize, usize),
        copies: usize,
    ) -> candle_core::Result<Candle> {
        let weights = (0..copies)
            .map(|_| {
                let storage = QStorage::from_data(Cow::Borrowed(blocks), &Device::Cpu, kind)?;
                QMatMul::from_qtensor(QTensor::new(storage, (n, k))?)
            })
            .collect::<candle_core::Result<Vec<_>>>()?;
        let x = Tensor::from_slice(x, (m, k), &Device::Cpu)?;
        Ok(Candle { weights, x, bytes: blocks.len(), turn: 0 })
    }

    fn once(&mut self) -> Result<Tensor, String> {
        let weights = &self.weights[self.turn % self.weights.len()];
        self.turn += 1;
        weights.forward(&self.x).map_err(|error| error.to_string())
    }
}

impl Subject for Candle {
    fn name(&self) -> String {
        "candle".into()
    }

    fn weight_bytes(&self) -> f64 {
        self.bytes as f64
    }

    fn run(&mut self, runs: usize) -> Result<f64, String> {
        self.once()?;
        let start = Instant::now();
        for _ in 0..runs {
            std::hint::black_box(self.once()?);
        }
        Ok(start.elapsed().as_secs_f64() / runs as f64)
    }

    fn result(&mut self) -> Result<Option<Vec<f32>>, String> {
        let y = self.once()?;
        y.flatten_all().and_then(|y| y.to_vec1()).map(Some).map_err(|error| error.to_string())
    }
}
