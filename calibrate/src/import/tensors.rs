//! One matrix out of safetensors, whatever tool wrote it.
//!
//! Reads the tensors that lie under a layer's name and the scheme of the checkpoint; makes a [`Linear`]. Always holds:
//! codes, scales and zeros are those of the file, bit for bit, and containers check every shape and type.

use super::scheme::Scheme;
use super::source::Source;
use crate::file::{SafeTensor, SafeTensorsFile, SafeTensorsType as T, clip};
use crate::model::{Floats, Linear, Weight};
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::{Error, Result};
use half::{bf16, f16};

/// Suffixes that stand for a matrix.
const WEIGHTS: &[&str] = &["weight", "qweight", "weight_packed", "W_q", "n16"];

/// Whether a matrix of this name is there.
pub(super) fn has(file: &SafeTensorsFile, linear: &str) -> bool {
    WEIGHTS.iter().any(|suffix| file.tensor(&format!("{linear}.{suffix}")).is_some())
}

/// A matrix.
pub(super) fn linear(
    file: &SafeTensorsFile,
    scheme: &Scheme,
    name: &str,
    n: usize,
    k: usize,
    note: &mut dyn FnMut(String),
) -> Result<Linear> {
    let bias = match file.tensor(&format!("{name}.bias")) {
        Some(_) => Some(floats(file, &format!("{name}.bias"), &[n])?),
        None => None,
    };
    let plain = file.tensor(&format!("{name}.weight")).is_some_and(|t| float_type(t.dtype).is_some());
    let mut linear = Linear::floats(name, n, k, Floats::f32(Vec::new()));
    linear.bias = bias;
    if plain {
        linear.weight = Weight::Floats(floats(file, &format!("{name}.weight"), &[n, k])?);
        return Ok(linear);
    }
    if let Scheme::Packed(packed) = scheme
        && let Some(found) = packed.linear(file, name, n, k)?
    {
        return Ok(Linear { bias: linear.bias, ..found });
    }
    let source = Source { file, name, n, k };
    let q = match scheme {
        Scheme::Gptq { bits, group, sym, v2, dynamic } => {
            let own = dynamic.iter().find(|(regex, _)| regex.is_match(name)).and_then(|(_, own)| *own);
            let (bits, group) = own.unwrap_or((*bits, *group));
            source.gptq(bits, group, *sym, *v2, note)?
        }
        Scheme::Awq { group } => source.awq(*group)?,
        Scheme::Ct { groups, .. } => {
            let group = groups.iter().find(|group| group.holds(name)).ok_or_else(|| {
                Error::invalid(format!("{name}: is quantized, but no config group of the checkpoint names it"))
            })?;
            linear.activation = group.activation;
            if let Some(text) = &group.activation_note {
                note(text.clone());
            }
            source.compressed(group)?
        }
        Scheme::Fp8 { block, activation } => {
            linear.activation = Some(*activation);
            source.fp8(*block)?
        }
        Scheme::Bnb => source.bitsandbytes()?,
        Scheme::Hqq => source.hqq()?,
        Scheme::None | Scheme::Gguf | Scheme::Packed(_) => {
            let found = file.tensor(&format!("{name}.weight")).map_or("missing".into(), |t| t.dtype.to_string());
            return Err(Error::invalid(format!(
                "{}: tensor `{name}.weight` is {found}; accepted without a quantization config: F32, F16, BF16",
                file.name()
            )));
        }
    };
    if file.tensor(&format!("{name}.input_scale")).is_some() {
        linear.input_scale = Some(scalar(file, &format!("{name}.input_scale"))?);
    }
    source.finite(&q)?;
    linear.weight = Weight::Quantized(q);
    Ok(linear)
}

/// A tensor of floats of a known shape.
pub(super) fn floats(file: &SafeTensorsFile, name: &str, shape: &[usize]) -> Result<Floats> {
    let tensor = find(file, name)?;
    if tensor.shape != shape {
        return Err(Error::invalid(format!(
            "{}: tensor `{}` has the shape {:?}; the configuration means {shape:?}",
            file.name(),
            clip(name),
            tensor.shape
        )));
    }
    let dtype = float_type(tensor.dtype).ok_or_else(|| {
        Error::Unsupported(format!(
            "{}: tensor `{}` is {}; accepted: F32, F16, BF16",
            file.name(),
            clip(name),
            tensor.dtype
        ))
    })?;
    Ok(Floats { values: decode(file.data(tensor), dtype), dtype })
}

/// A tensor of one float, of any shape.
pub(super) fn scalar(file: &SafeTensorsFile, name: &str) -> Result<f32> {
    let tensor = find(file, name)?;
    let values = float_type(tensor.dtype).map(|dtype| decode(file.data(tensor), dtype)).unwrap_or_default();
    match values[..] {
        [value] if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err(Error::invalid(format!(
            "{}: tensor `{}` is {} of {:?}; accepted: one finite float above 0",
            file.name(),
            clip(name),
            tensor.dtype,
            tensor.shape
        ))),
    }
}

fn find<'f>(file: &'f SafeTensorsFile, name: &str) -> Result<&'f SafeTensor> {
    file.tensor(name).ok_or_else(|| Error::invalid(format!("{}: has no tensor `{}`", file.name(), clip(name))))
}

pub(super) fn float_type(dtype: T) -> Option<DType> {
    match dtype {
        T::F32 => Some(DType::F32),
        T::F16 => Some(DType::F16),
        T::BF16 => Some(DType::Bf16),
        _ => None,
    }
}

fn decode(data: &[u8], dtype: DType) -> Vec<f32> {
    match dtype {
        DType::F32 => data.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        DType::F16 => data.as_chunks::<2>().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
        _ => data.as_chunks::<2>().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
    }
}
