//! Weights from a tensor of a model file: in their own format, or quantized now.

use crate::failure::Failure;
use bitsmith_calibrate::file::{FileType, GgufType, SafeTensorsType as Plain, Tensor};
use bitsmith_compiler::Error;
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::{Format, Part, PartType, Quantized, Scale, Zero};

/// The sizes of a tensor, which must be a matrix.
pub(crate) fn matrix(tensor: &Tensor<'_>) -> Result<(usize, usize), Failure> {
    match tensor.shape {
        &[n, k] => Ok((n, k)),
        shape => Err(Failure::invalid(format!("tensor `{}` has the shape {shape:?}; accepted: [N, K]", tensor.name))),
    }
}

/// The GGUF type of a tensor that is quantized in its file.
fn blocks(tensor: &Tensor<'_>) -> Option<GgufType> {
    match tensor.dtype {
        FileType::Gguf(GgufType::F32 | GgufType::F16 | GgufType::BF16 | GgufType::F64) => None,
        FileType::Gguf(kind) => Some(kind),
        FileType::SafeTensors(_) => None,
    }
}

/// The format of a tensor: its own, or the one to quantize it to.
pub(crate) fn format(tensor: &Tensor<'_>, wanted: Option<Format>) -> Result<Format, Failure> {
    let Some(kind) = blocks(tensor) else {
        if let FileType::SafeTensors(kind) = tensor.dtype
            && !matches!(kind, Plain::F32 | Plain::F16 | Plain::BF16 | Plain::F64)
        {
            return Err(Failure::Request(Error::Unsupported(format!(
                "tensor `{}` is {kind}; accepted: F32, F16, BF16, F64",
                tensor.name
            ))));
        }
        return wanted.ok_or_else(|| {
            Failure::invalid(format!(
                "tensor `{}` is {}; --format says what to quantize it to, int4-g32 for instance",
                tensor.name,
                tensor.dtype.name()
            ))
        });
    };
    let own = Format::ALL.iter().find(|named| named.name.eq_ignore_ascii_case(kind.name())).ok_or_else(|| {
        let known = |kind: &&GgufType| Format::ALL.iter().any(|named| named.name.eq_ignore_ascii_case(kind.name()));
        let names: Vec<&str> = GgufType::ALL.iter().filter(known).map(|kind| kind.name()).collect();
        Error::Unsupported(format!(
            "tensor `{}` is {kind}; accepted: F32, F16, BF16, {}",
            tensor.name,
            names.join(", ")
        ))
    })?;
    match wanted {
        Some(wanted) if wanted != own.format => Err(Failure::invalid(format!(
            "tensor `{}` is {kind} already; --format {wanted} is for float tensors",
            tensor.name
        ))),
        _ => Ok(own.format),
    }
}

/// The weights of a tensor, quantized now if its file has floats.
pub(crate) fn load(tensor: &Tensor<'_>, n: usize, k: usize, wanted: Option<Format>) -> Result<Quantized, Failure> {
    let format = format(tensor, wanted)?;
    let named = |error: Error| match error {
        Error::Invalid(faults) => {
            Error::Invalid(faults.iter().map(|fault| format!("tensor `{}`: {fault}", tensor.name)).collect())
        }
        other => other,
    };
    if blocks(tensor).is_none() {
        return Ok(format.encode(&tensor.to_f32()?, n, k, None).map_err(named)?);
    }
    let part = Part {
        name: "blocks",
        dtype: PartType::U8,
        shape: vec![n, tensor.data.len() / n],
        bytes: tensor.data.to_vec(),
    };
    let weights = (format.container.unpack)(&format, n, k, &[part]).map_err(named)?;
    finite(&weights)
        .then_some(weights)
        .ok_or_else(|| Failure::invalid(format!("tensor `{}`: a scale is not a finite number", tensor.name)))
}

/// Whether every scale is a number that a sum can take.
fn finite(weights: &Quantized) -> bool {
    let all = |dtype: DType, raw: &[u32]| raw.iter().all(|&raw| dtype.decode(raw).is_finite());
    let level = |scale: &Scale, inner: &[u32], outer: &[u32]| {
        all(scale.dtype, inner) && scale.outer.is_none_or(|level| all(level.dtype, outer))
    };
    let zeros = match &weights.format.zero {
        Zero::Offset { scale, .. } => level(scale, &weights.zeros, &weights.zeros_outer),
        Zero::Float(dtype) => all(*dtype, &weights.zeros),
        Zero::None | Zero::Bias(_) | Zero::Int(_) => true,
    };
    zeros && level(&weights.format.scale, &weights.scales, &weights.outer)
}
