//! What a device reaches at most, as one pair of numbers: measured where that is possible, from its data sheet elsewhere.

use bitsmith_compiler::op::{Activation, Op};
use bitsmith_runtime::Device;
use bitsmith_runtime::roofs::{self, Roofs};
use serde::{Deserialize, Serialize};

/// Bytes read while measuring bandwidth.
const FOOTPRINT: usize = 256 << 20;

/// Roofs over all matmuls of a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ceiling {
    /// Read bandwidth, GB/s.
    pub read_gbs: f64,
    /// Arithmetic on floats, GOP/s.
    pub float_gops: f64,
    /// Name of that roof.
    pub float_by: String,
    /// Arithmetic on bytes, GOP/s.
    pub byte_gops: f64,
    /// Name of that roof.
    pub byte_by: String,
    /// `measured`, `data sheet`, or `guess` where neither is there and shares of it are not shown.
    pub source: String,
    /// Arithmetic that applies to an operation; set by [`Ceiling::over`].
    #[serde(skip)]
    pub gops: f64,
}

impl Ceiling {
    /// Measures a CPU's roofs (a few seconds), reads a GPU's data sheet, or guesses.
    pub fn of(device: &dyn Device) -> Ceiling {
        let info = device.info();
        if info.name == "cpu" {
            return Ceiling::measured(&roofs::measure(info.threads, FOOTPRINT));
        }
        match device.caps().gpu {
            Some(gpu) => {
                let best = gpu.peaks.matrix_tera.iter().map(|(_, tera)| *tera).fold(gpu.peaks.f32_tera, f64::max);
                Ceiling {
                    read_gbs: gpu.peaks.memory_gb,
                    float_gops: 1e3 * best,
                    float_by: "peak".into(),
                    byte_gops: 1e3 * best,
                    byte_by: "peak".into(),
                    source: "data sheet".into(),
                    gops: 0.0,
                }
            }
            None => Ceiling::guess(),
        }
    }

    /// From roofs that were measured.
    pub fn measured(roofs: &Roofs) -> Ceiling {
        let (float_by, float_gops) = roofs.best_fma().unwrap_or(("fma", 0.0));
        let (byte_by, byte_gops) = roofs.best_dot(4).unwrap_or((float_by, float_gops));
        if float_gops <= 0.0 || roofs.read_gbs <= 0.0 {
            return Ceiling { read_gbs: roofs.read_gbs.max(1.0), ..Ceiling::guess() };
        }
        Ceiling {
            read_gbs: round(roofs.read_gbs),
            float_gops: round(float_gops),
            float_by: float_by.into(),
            byte_gops: round(byte_gops),
            byte_by: byte_by.into(),
            source: "measured".into(),
            gops: 0.0,
        }
    }

    /// Where nothing is known.
    pub fn guess() -> Ceiling {
        Ceiling {
            read_gbs: 10.0,
            float_gops: 100.0,
            float_by: "unknown".into(),
            byte_gops: 100.0,
            byte_by: "unknown".into(),
            source: "guess".into(),
            gops: 0.0,
        }
    }

    /// The ceiling over an operation.
    pub fn over(&self, op: &Op) -> Ceiling {
        let bytes = matches!(op, Op::Matmul(op) if matches!(op.activation, Activation::Int8(_)));
        Ceiling { gops: if bytes { self.byte_gops } else { self.float_gops }, ..self.clone() }
    }

    /// What limits work of so many bytes and operations that takes `seconds`: name of the roof and the share of it that is
    /// reached; no share where the roofs are guesses.
    pub fn share(&self, op: &Op, bytes: f64, operations: f64, seconds: f64) -> (String, Option<f64>) {
        let over = self.over(op);
        let (memory, arithmetic) = (bytes / over.read_gbs / 1e9, operations / over.gops / 1e9);
        let by =
            if over.gops == self.byte_gops && self.byte_by != self.float_by { &self.byte_by } else { &self.float_by };
        let name = if memory >= arithmetic { "read".to_string() } else { by.clone() };
        (name, (self.source != "guess").then(|| round(memory.max(arithmetic) / seconds)))
    }
}

/// Four significant digits: what a measurement is worth, and what keeps tables short.
pub fn round(x: f64) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    format!("{x:.3e}").parse().unwrap_or(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_digits() {
        assert_eq!(round(0.000123456), 0.0001235);
        assert_eq!(round(98765.4), 98770.0);
        assert_eq!(round(0.0), 0.0);
    }

    #[test]
    fn what_limits() {
        let roofs = Roofs { threads: 1, read_gbs: 10.0, fma256_gflops: 100.0, ..Roofs::default() };
        let ceiling = Ceiling::measured(&roofs);
        let op = crate::key::Key {
            weight: "int4-g32".into(),
            activation: "f16".into(),
            out: "f16".into(),
            epilogue: String::new(),
            k: 64,
            n: 64,
            m: 1,
        };
        let op = op.op().unwrap();
        assert_eq!(ceiling.share(&op, 1e9, 1e9, 0.2), ("read".into(), Some(0.5)));
        assert_eq!(ceiling.share(&op, 1e9, 1e11, 2.0), ("fma256".into(), Some(0.5)));
        assert_eq!(Ceiling::guess().share(&op, 1e9, 1e9, 0.2).1, None);
    }
}
