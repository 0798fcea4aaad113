//! A linear layer as an operation of candle: quantized weights, kernels of a bundle.

use crate::library::Handle;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use half::f16;
use std::sync::Arc;

/// `y = x wᵀ` for weights `[n, k]`, activations in f16.
pub struct Linear {
    device: Arc<Handle>,
    bundle: Arc<Handle>,
    format: String,
    shape: [usize; 2],
    /// Packed weights in memory of the device.
    weights: Handle,
    /// What the quantized weights stand for, for checks.
    numbers: Vec<f32>,
}

impl Linear {
    /// Quantizes and packs a matrix `[n, k]`.
    pub fn new(device: &Arc<Handle>, bundle: &Arc<Handle>, format: &str, weights: &Tensor) -> Result<Arc<Linear>> {
        let (n, k) = weights.dims2()?;
        let quantized = Handle::quantized(format, [n, k], &weights.flatten_all()?.to_vec1::<f32>()?)?;
        Ok(Arc::new(Linear {
            device: device.clone(),
            bundle: bundle.clone(),
            format: format.to_string(),
            shape: [n, k],
            weights: device.filled(&quantized.packed("n16")?)?,
            numbers: quantized.dequantized(n * k)?,
        }))
    }

    /// The layer over `x [.., k]`.
    pub fn forward(self: &Arc<Linear>, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op1_no_bwd(&Operation(self.clone()))
    }

    /// The weights that it multiplies by, as candle would hold them.
    pub fn dense(&self) -> Result<Tensor> {
        Tensor::from_slice(&self.numbers, (self.shape[0], self.shape[1]), &candle_core::Device::Cpu)
    }
}

/// What candle calls.
struct Operation(Arc<Linear>);

impl CustomOp1 for Operation {
    fn name(&self) -> &'static str {
        "bitsmith-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Linear { device, bundle, format, shape: [n, k], weights, .. } = &*self.0;
        let (CpuStorage::F16(values), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("a quantized linear layer takes contiguous f16");
        };
        let mut dims = layout.dims().to_vec();
        if dims.last() != Some(k) {
            bail!("x has shape {dims:?}; accepted: [.., {k}]");
        }
        let m = (end - start) / k;
        let (x, y) = (device.filled(&values[start..end])?, device.room(m * n * size_of::<f16>())?);
        bundle.matmul(format, [*n, *k], m)?.launch(m, &[&x, weights, &y])?;
        *dims.last_mut().unwrap_or(&mut 0) = *n;
        Ok((CpuStorage::F16(y.read(m * n)?), dims.into()))
    }
}
