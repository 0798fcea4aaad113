//! Machines as the picker sees them: memory, bandwidth, peaks, and which small types their units take.
//!
//! Reads the compiler's caps; adds what they do not say (how much memory a device has) and CPUs. Peaks are the vendor's,
//! without sparsity; the predictions of the picker take a stated share of them.

use bitsmith_compiler::caps::gpu;
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::{Error, Result};
use serde::Serialize;

/// A machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Machine {
    /// Name on the command line.
    pub name: String,
    /// Name in full.
    pub model: String,
    /// Bytes of memory.
    pub memory: f64,
    /// Bytes per second from memory.
    pub bandwidth: f64,
    /// 16-bit float operations per second, in matrix units where there are some.
    pub f16: f64,
    /// 8-bit integer operations per second; `None` where they are no faster.
    pub int8: Option<f64>,
    /// FP8 operations per second.
    pub fp8: Option<f64>,
    /// FP4 operations per second.
    pub fp4: Option<f64>,
    /// FP8 in the fnuz variant.
    pub fnuz: bool,
    /// Whether it is a CPU.
    pub cpu: bool,
}

/// Device memory in GB (10^9 bytes), from the data sheets that `caps` names.
const MEMORY: &[(&str, f64)] = &[
    ("a100", 80.0),
    ("rtx3090", 24.0),
    ("a10", 24.0),
    ("l4", 24.0),
    ("l40s", 48.0),
    ("rtx4090", 24.0),
    ("h100", 80.0),
    ("h200", 141.0),
    ("b200", 180.0),
    ("rtx5090", 32.0),
    ("mi300x", 192.0),
    ("mi300a", 128.0),
    ("mi325x", 256.0),
];

/// Machines that caps do not describe as a whole: name, model, memory GB, bandwidth GB/s, f16, int8 and fp8 in 10^12/s.
type Row = (&'static str, &'static str, f64, f64, f64, Option<f64>, Option<f64>, bool);
#[rustfmt::skip]
const OTHERS: &[Row] = &[
    // AMD Instinct MI300X data sheet.
    ("mi300x", "AMD Instinct MI300X", 192.0, 5300.0, 1307.4, Some(2614.9), Some(2614.9), false),
    // 12 channels of DDR5-4800; 96 cores at 2.4 GHz with two 256-bit multiply-adds and byte dot products of four times that.
    ("epyc-9654", "AMD EPYC 9654", 384.0, 460.8, 7.4, Some(29.5), None, true),
    // Two channels of DDR5-5600; 8 performance cores at 4 GHz with AVX2.
    ("desktop", "a desktop CPU with AVX2", 32.0, 89.6, 1.0, Some(2.0), None, true),
];

impl Machine {
    /// A machine by name.
    pub fn by_name(name: &str) -> Result<Machine> {
        let lower = name.to_ascii_lowercase();
        if let Some(caps) = gpu(&lower)
            && let Some(device) = caps.gpu
            && let Some((_, memory)) = MEMORY.iter().find(|(own, _)| *own == caps.name)
        {
            let tera = |dtype: DType| device.peaks.matrix_tera.iter().find(|(d, _)| *d == dtype).map(|(_, t)| t * 1e12);
            let fnuz = tera(DType::E4m3fnuz);
            return Ok(Machine {
                name: caps.name.to_owned(),
                model: device.model.to_owned(),
                memory: memory * 1e9,
                bandwidth: device.peaks.memory_gb * 1e9,
                f16: tera(DType::F16).unwrap_or(device.peaks.f32_tera * 1e12),
                int8: tera(DType::I8),
                fp8: tera(DType::E4m3fn).or(fnuz),
                fp4: tera(DType::E2m1),
                fnuz: fnuz.is_some(),
                cpu: false,
            });
        }
        let row = OTHERS.iter().find(|row| row.0 == lower).ok_or_else(|| {
            let name = crate::file::clip(name);
            Error::invalid(format!("device `{name}`; accepted: {}", Machine::names().join(", ")))
        })?;
        let (name, model, memory, bandwidth, f16, int8, fp8, cpu) = *row;
        Ok(Machine {
            name: name.into(),
            model: model.into(),
            memory: memory * 1e9,
            bandwidth: bandwidth * 1e9,
            f16: f16 * 1e12,
            int8: int8.map(|t| t * 1e12),
            fp8: fp8.map(|t| t * 1e12),
            fp4: None,
            fnuz: name.starts_with("mi3"),
            cpu,
        })
    }

    /// Every name that is accepted.
    pub fn names() -> Vec<&'static str> {
        let mut names: Vec<&str> = MEMORY.iter().map(|(name, _)| *name).filter(|name| gpu(name).is_some()).collect();
        names.extend(OTHERS.iter().map(|row| row.0).filter(|name| gpu(name).is_none()));
        names
    }

    /// The same machine with another amount of memory, in bytes.
    pub fn with_memory(self, memory: f64) -> Machine {
        Machine { memory, ..self }
    }
}
