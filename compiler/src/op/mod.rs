//! Operations: what to compute, and its meaning in plain `f64` and `i64` loops.
//!
//! Reads formats; makes expectations. Knows nothing of schedules, IR or devices. Always holds: [`Expected::bound`] is
//! derived from the number of roundings that any allowed schedule makes, not fitted to what a kernel returns.

mod bound;
mod dequant;
pub mod kv;
mod matmul;
mod quantize;

pub use bound::{Expected, gamma, rounding};
pub use dequant::Dequant;
pub use matmul::{Epilogue, Matmul, MatmulInputs};
pub use quantize::{Norm, Quantize, QuantizeInputs, QuantizedRows};

use crate::dtype::DType;
use crate::error::{Error, Result};

/// Something to compute, with its shapes and types.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    /// `Y[m, n] = X[m, k] · W[n, k]ᵀ` with W quantized.
    Matmul(Matmul),
    /// W in numbers.
    Dequant(Dequant),
    /// Activations to int8 or fp8, row by row.
    Quantize(Quantize),
}

/// How activations come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// As they are: `F32`, `F16` or `Bf16`.
    Float(DType),
    /// Signed bytes with an `f32` scale per token or group, and sums (see [`Quantize`]).
    Int8(Per),
    /// FP8 (`E4m3fn`, `E4m3fnuz`, `E5m2`, `E5m2fnuz`) with an `f32` scale per token, group or tensor.
    Fp8(DType, Per),
}

/// Which activations share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Per {
    /// All of them.
    Tensor,
    /// Those of a row.
    Token,
    /// This many neighbours of a row.
    Group(u32),
}

impl Per {
    /// Scales per row; 0 where one serves the whole tensor.
    pub fn per_row(self, k: usize) -> usize {
        match self {
            Per::Tensor => 0,
            Per::Token => 1,
            Per::Group(g) => k.div_ceil(g as usize),
        }
    }
}

impl std::fmt::Display for Activation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let per = |per: &Per| match per {
            Per::Tensor => "tensor".to_string(),
            Per::Token => "token".to_string(),
            Per::Group(g) => format!("g{g}"),
        };
        match self {
            Activation::Float(dtype) => f.write_str(dtype.name()),
            Activation::Int8(p) => write!(f, "int8-{}", per(p)),
            Activation::Fp8(dtype, p) => {
                let name = match dtype {
                    DType::E4m3fn => "fp8",
                    DType::E4m3fnuz => "fp8e4m3fnuz",
                    DType::E5m2 => "fp8e5m2",
                    _ => "fp8e5m2fnuz",
                };
                write!(f, "{name}-{}", per(p))
            }
        }
    }
}

impl std::str::FromStr for Activation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Activation> {
        let bad = || {
            Error::invalid(format!(
                "activation `{text}` is not known; accepted: f32, f16, bf16, int8-token, int8-g<N>, fp8-token, fp8-tensor, fp8-g<N>, \
                 fp8e4m3fnuz-…, fp8e5m2-…, fp8e5m2fnuz-…"
            ))
        };
        let lower = text.to_ascii_lowercase();
        match lower.as_str() {
            "f32" => return Ok(Activation::Float(DType::F32)),
            "f16" => return Ok(Activation::Float(DType::F16)),
            "bf16" => return Ok(Activation::Float(DType::Bf16)),
            _ => {}
        }
        let (code, per) = lower.split_once('-').ok_or_else(bad)?;
        let per = match per {
            "tensor" => Per::Tensor,
            "token" => Per::Token,
            _ => match per.strip_prefix('g').and_then(|g| g.parse::<u32>().ok()) {
                Some(g) if g >= 16 => Per::Group(g),
                Some(g) => {
                    return Err(Error::invalid(format!("activation `{text}`: group {g} is below 16, the least")));
                }
                None => return Err(bad()),
            },
        };
        let activation = match code {
            "int8" => Activation::Int8(per),
            "fp8" | "fp8e4m3" => Activation::Fp8(DType::E4m3fn, per),
            "fp8e4m3fnuz" => Activation::Fp8(DType::E4m3fnuz, per),
            "fp8e5m2" => Activation::Fp8(DType::E5m2, per),
            "fp8e5m2fnuz" => Activation::Fp8(DType::E5m2fnuz, per),
            _ => return Err(bad()),
        };
        match activation {
            Activation::Int8(Per::Tensor) => Err(Error::invalid(format!(
                "activation `{text}`: int8 takes a scale per token or group, not per tensor"
            ))),
            other => Ok(other),
        }
    }
}

impl Op {
    /// Every fault of the description; empty if it can be computed somewhere.
    pub fn faults(&self) -> Vec<String> {
        match self {
            Op::Matmul(op) => op.faults(),
            Op::Dequant(op) => op.faults(),
            Op::Quantize(op) => op.faults(),
        }
    }

    /// The operation if it is sound, else all its faults.
    pub fn checked(self) -> Result<Op> {
        let faults = self.faults();
        if faults.is_empty() { Ok(self) } else { Err(Error::Invalid(faults)) }
    }

    /// Short name for messages and entry points: `matmul`.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Matmul(_) => "matmul",
            Op::Dequant(_) => "dequant",
            Op::Quantize(_) => "quantize",
        }
    }
}

/// Largest N or K that is accepted: it keeps every byte offset of one matrix below 2^62.
pub const MAX_DIM: usize = 1 << 24;

fn dim_fault(name: &str, value: usize, faults: &mut Vec<String>) {
    if value == 0 || value > MAX_DIM {
        faults.push(format!("{name} is {value}; accepted: 1 to {MAX_DIM}"));
    }
}

fn float_fault(name: &str, dtype: DType, faults: &mut Vec<String>) {
    if !matches!(dtype, DType::F32 | DType::F16 | DType::Bf16) {
        faults.push(format!("{name} is {}; accepted: f32, f16, bf16", dtype.name()));
    }
}
