//! Roofs of whatever runs the kernels: this processor's, or a GPU's, measured on the device by kernels of our own.

use crate::failure::Failure;
use bitsmith_autotune::gpu_roofs::{self, Extent, GpuRoofs, group_roof, matrix_roof};
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::op::{Activation, Op};
use bitsmith_runtime::Device;
use bitsmith_runtime::roofs::{self, Roofs as CpuRoofs};
use serde::Serialize;

/// Roofs of a device.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Roofs {
    /// A CPU's, for a number of threads.
    Cpu(CpuRoofs),
    /// A GPU's.
    Gpu(GpuRoofs),
}

/// What limits a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Limit {
    /// Reads from memory, GB/s.
    Memory(f64),
    /// Arithmetic: its name, GOP/s; 0 where this machine's is not known.
    Arithmetic(&'static str, f64),
}

/// Measures the roofs of a device; none of one that is neither this machine's processor nor a GPU that is known.
pub(crate) fn measure(device: &dyn Device, footprint: usize) -> Result<Option<Roofs>, Failure> {
    let info = device.info();
    if info.name.starts_with("cpu") {
        return Ok(Some(Roofs::Cpu(roofs::measure(info.threads, footprint))));
    }
    // The PTX machine has the caps of a GPU, and no speed.
    let gpu = device.caps().gpu.filter(|_| !info.name.starts_with("ptx"));
    let Some(gpu) = gpu else { return Ok(None) };
    let footprint = footprint.max(8 * gpu.cache_bytes as usize);
    Ok(Some(Roofs::Gpu(gpu_roofs::measure(device, Extent::of(footprint))?)))
}

impl Roofs {
    /// The higher of each roof: measured before and after kernels, so that a neighbour's burst does not lower them.
    pub fn higher(self, other: &Roofs) -> Roofs {
        match (self, other) {
            (Roofs::Cpu(own), Roofs::Cpu(other)) => Roofs::Cpu(own.higher(other)),
            (Roofs::Gpu(own), Roofs::Gpu(other)) => Roofs::Gpu(own.higher(other)),
            (own, _) => own,
        }
    }

    /// What limits an operation that moves `bytes` and makes `operations`. `many` tells whether a CPU counts it as prefill.
    pub fn limit(&self, op: &Op, many: bool, bytes: f64, operations: f64) -> Limit {
        match self {
            Roofs::Cpu(roofs) => match (op, many) {
                (Op::Matmul(op), true) => {
                    let (name, gops) = match op.activation {
                        Activation::Int8(_) => roofs.best_dot(op.weight.code.bits()).unwrap_or(("dot", 0.0)),
                        Activation::Float(DType::Bf16) => roofs.best_bf16().unwrap_or(("fma", 0.0)),
                        Activation::Float(_) | Activation::Fp8(..) => roofs.best_fma().unwrap_or(("fma", 0.0)),
                    };
                    Limit::Arithmetic(name, gops)
                }
                _ => Limit::Memory(roofs.read_gbs),
            },
            Roofs::Gpu(roofs) => {
                let arithmetic = match op {
                    Op::Matmul(op) => Some(matrix(roofs, op.activation)),
                    Op::Dequant(_) | Op::Quantize(_) => None,
                };
                match arithmetic {
                    Some((name, gops)) if operations / gops > bytes / roofs.read_gbs => Limit::Arithmetic(name, gops),
                    _ => Limit::Memory(roofs.read_gbs),
                }
            }
        }
    }

    /// Reading from memory, GB/s.
    pub fn read_gbs(&self) -> f64 {
        match self {
            Roofs::Cpu(roofs) => roofs.read_gbs,
            Roofs::Gpu(roofs) => roofs.read_gbs,
        }
    }

    /// What attention over many queries is bound by, GOP/s: multiply-adds of a CPU, f16 matrix instructions of a GPU.
    pub fn attention_gops(&self) -> Option<f64> {
        match self {
            Roofs::Cpu(roofs) => roofs.best_fma().map(|(_, gops)| gops),
            Roofs::Gpu(roofs) => Some(matrix(roofs, Activation::Float(DType::F16)).1),
        }
    }

    /// All of them in a line.
    pub fn describe(&self) -> String {
        match self {
            Roofs::Cpu(roofs) => {
                let mut text = format!(
                    "roofs with {} threads: read {:.1} GB/s (median pass {:.1})",
                    roofs.threads, roofs.read_gbs, roofs.read_median_gbs
                );
                for (name, value) in roofs.arithmetic() {
                    text += &format!(", {name} {value:.0}");
                }
                text + " GOP/s"
            }
            Roofs::Gpu(roofs) => {
                let mut text = format!("roofs of the device: read {:.0} GB/s", roofs.read_gbs);
                for peak in &roofs.arithmetic {
                    text += &format!(", {} {:.1}", peak.name, peak.gops / 1e3);
                }
                text + " TOP/s"
            }
        }
    }
}

/// The arithmetic that activations of a type can use: the faster matrix instruction of the type, that of f16 where there is
/// none, multiply-adds for `f32`.
fn matrix(roofs: &GpuRoofs, activation: Activation) -> (&'static str, f64) {
    let dtype = match activation {
        Activation::Float(dtype) | Activation::Fp8(dtype, _) => dtype,
        Activation::Int8(_) => DType::I8,
    };
    let half = matches!(activation, Activation::Fp8(..)).then_some(DType::F16);
    let best = |dtype: DType| {
        let names = [matrix_roof(dtype), group_roof(dtype)].into_iter().flatten();
        names.filter_map(|name| roofs.peak(name)).max_by(|a, b| a.gops.total_cmp(&b.gops))
    };
    let found = best(dtype).or_else(|| half.and_then(best)).or_else(|| roofs.peak("fma"));
    found.map_or(("fma", 0.0), |peak| (peak.name, peak.gops))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_autotune::gpu_roofs::Peak;
    use bitsmith_compiler::op::{Epilogue, Matmul};

    #[test]
    fn what_limits_a_kernel_of_a_gpu() {
        let peak = |name, tops: f64| Peak { name, gops: tops * 1e3 };
        let arithmetic =
            vec![peak("fma", 60.0), peak("mma-f16", 600.0), peak("mma-i8", 1200.0), peak("wgmma-f16", 900.0)];
        let roofs = Roofs::Gpu(GpuRoofs { read_gbs: 4000.0, arithmetic, ..GpuRoofs::default() });
        let op = |activation: &str| {
            Op::Matmul(Matmul {
                n: 8192,
                k: 8192,
                weight: "int4-g128".parse().unwrap(),
                activation: activation.parse().unwrap(),
                out: DType::F16,
                epilogue: Epilogue::default(),
            })
        };
        let limit = |activation, m: f64| roofs.limit(&op(activation), m > 8.0, 34e6, 2.0 * m * 8192.0 * 8192.0);
        assert_eq!(limit("f16", 1.0), Limit::Memory(4000.0));
        assert_eq!(limit("f16", 16.0), Limit::Memory(4000.0));
        assert_eq!(limit("f16", 2048.0), Limit::Arithmetic("wgmma-f16", 900e3));
        assert_eq!(limit("int8-token", 2048.0), Limit::Arithmetic("mma-i8", 1200e3));
        assert_eq!(limit("fp8-token", 2048.0), Limit::Arithmetic("wgmma-f16", 900e3));
        assert_eq!(limit("f32", 2048.0), Limit::Arithmetic("fma", 60e3));
        assert!(roofs.describe().contains("mma-i8 1200.0"));
    }
}
