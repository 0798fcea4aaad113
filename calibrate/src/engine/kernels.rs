//! Matrices on a device, by bitsmith's own kernels: weights stay packed, inputs are quantized by a kernel where the recipe
//! says so.
//!
//! Reads linear layers; makes programs, one per operation and number of rows. Matrices of floats have no kernel (a format
//! is always quantized) and go to the dense path.

use super::dense::{gather, static_scale};
use super::{Activations, Apply, Dense, Executor};
use crate::model::Linear;
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::canonical::sort_groups;
use bitsmith_compiler::format::n16::N16;
use bitsmith_compiler::lower::{self, Role};
use bitsmith_compiler::op::{Activation, Epilogue, Matmul, Op, Per, Quantize};
use bitsmith_compiler::schedule::Schedule;
use bitsmith_compiler::{Error, Result};
use bitsmith_runtime::{Buffer, Device, Launch, LaunchArg, Program};
use half::{bf16, f16};
use std::sync::{Arc, Mutex, PoisonError};

/// Executes on a device.
#[derive(Clone)]
pub struct Kernels {
    device: Arc<dyn Device>,
    programs: Arc<Mutex<Vec<(Op, Schedule, Program)>>>,
}

impl Kernels {
    /// On this device.
    pub fn new(device: Arc<dyn Device>) -> Kernels {
        Kernels { device, programs: Arc::default() }
    }

    fn program(&self, op: &Op, m: usize) -> Result<(Schedule, Program)> {
        let schedule = lower::choose(op, self.device.caps(), m)?;
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((.., program)) = programs.iter().find(|(o, s, _)| o == op && *s == schedule) {
            return Ok((schedule, program.clone()));
        }
        let compiled = bitsmith_compiler::compile(op, &schedule, self.device.target())?;
        let program = self.device.load(&compiled.artifact)?;
        programs.push((*op, schedule, program.clone()));
        Ok((schedule, program))
    }
}

struct KernelLinear {
    kernels: Kernels,
    matmul: Matmul,
    quantize: Option<Quantize>,
    weights: Buffer,
    bias: Option<Buffer>,
    gather: Option<Vec<u32>>,
    input_scale: Option<f32>,
    ready: Mutex<Option<Ready>>,
}

/// Programs and buffers for one number of rows.
struct Ready {
    m: usize,
    matmul: (Schedule, Program),
    quantize: Option<(Schedule, Program)>,
    floats: Buffer,
    codes: Option<Buffer>,
    scales: Option<Buffer>,
    sums: Option<Buffer>,
    out: Buffer,
}

impl Executor for Kernels {
    fn prepare(&self, linear: &Linear) -> Result<Box<dyn Apply>> {
        let Some(q) = linear.weight.quantized() else {
            return Dense { activations: Activations::Floats }.prepare(linear);
        };
        let named = |error: Error| match error {
            Error::Invalid(faults) => {
                Error::Invalid(faults.iter().map(|fault| format!("{}: {fault}", linear.name)).collect())
            }
            Error::Unsupported(why) => Error::Unsupported(format!("{}: {why}", linear.name)),
            other => other,
        };
        let (sorted, order) = sort_groups(q).map_err(named)?;
        let gather = match (&linear.gather, order) {
            (None, order) => order,
            (Some(outer), None) => Some(outer.clone()),
            (Some(outer), Some(order)) => Some(order.iter().map(|&column| outer[column as usize]).collect()),
        };
        let matmul = Matmul {
            n: linear.n,
            k: linear.k,
            weight: sorted.format,
            activation: linear.activation.unwrap_or(Activation::Float(DType::F32)),
            out: DType::F32,
            epilogue: Epilogue { bias: linear.bias.is_some(), ..Epilogue::default() },
        };
        let (code, per, sum_group) = match matmul.activation {
            Activation::Float(_) => (None, Per::Token, 0),
            Activation::Int8(per) => (Some(DType::I8), per, matmul.segment()),
            Activation::Fp8(dtype, per) => (Some(dtype), per, 0),
        };
        let quantize = code.map(|code| Quantize {
            k: linear.k,
            input: DType::F32,
            code,
            per,
            sum_group,
            norm: None,
            smooth: false,
        });
        let (_, packed) = N16::pack(&sorted).map_err(named)?;
        let upload = |bytes: &[u8]| -> Result<Buffer> {
            let buffer = self.device.allocate(bytes.len())?;
            self.device.upload(&buffer, 0, bytes)?;
            Ok(buffer)
        };
        Ok(Box::new(KernelLinear {
            kernels: self.clone(),
            matmul,
            quantize,
            weights: upload(&packed)?,
            bias: linear.bias.as_ref().map(|bias| upload(&bytes_of(&bias.values, DType::F32))).transpose()?,
            gather,
            input_scale: linear.input_scale,
            ready: Mutex::new(None),
        }))
    }
}

impl KernelLinear {
    fn ready(&self, m: usize) -> Result<Ready> {
        let device = &self.kernels.device;
        let op = Op::Matmul(self.matmul);
        let signatures = lower::signature(&op)?;
        let sized = |role: Role| -> Result<Option<Buffer>> {
            signatures.iter().find(|s| s.role == role).map(|s| device.allocate(s.bytes(m))).transpose()
        };
        let need = |buffer: Option<Buffer>| {
            buffer.ok_or_else(|| Error::Bug { message: "a matmul without a buffer".into(), text: format!("{op:?}") })
        };
        let quantize = self.quantize.map(|q| self.kernels.program(&Op::Quantize(q), m)).transpose()?;
        let inputs = need(sized(Role::Activations)?)?;
        let (floats, codes) = match self.quantize {
            Some(q) => (device.allocate(m * q.k * 4)?, Some(inputs)),
            None => (inputs, None),
        };
        Ok(Ready {
            m,
            matmul: self.kernels.program(&op, m)?,
            quantize,
            floats,
            codes,
            scales: sized(Role::ActivationScales)?,
            sums: sized(Role::ActivationSums)?,
            out: need(sized(Role::Output)?)?,
        })
    }

    fn launch(&self, op: &Op, program: &(Schedule, Program), ready: &Ready, quantizing: bool) -> Result<()> {
        let mut args = Vec::new();
        for signature in lower::signature(op)? {
            let buffer = match (signature.role, quantizing) {
                (Role::Activations, true) => Some(&ready.floats),
                (Role::Activations, false) => ready.codes.as_ref().or(Some(&ready.floats)),
                (Role::Output, true) => ready.codes.as_ref(),
                (Role::Output, false) => Some(&ready.out),
                (Role::ActivationScales, _) => ready.scales.as_ref(),
                (Role::ActivationSums, _) => ready.sums.as_ref(),
                (Role::Weights, _) => Some(&self.weights),
                (Role::Bias, _) => self.bias.as_ref(),
                (Role::Mul | Role::Residual | Role::Gain | Role::Smooth | Role::Workspace | Role::Decoded, _) => None,
            };
            let buffer = buffer.ok_or_else(|| Error::Bug {
                message: format!("no buffer for `{}`", signature.name),
                text: format!("{op:?}"),
            })?;
            args.push(LaunchArg::Buffer(buffer.view()));
        }
        args.push(LaunchArg::I32(ready.m as i32));
        let grid = lower::grid(op, &program.0, ready.m);
        self.kernels.device.launch(&Launch { program: &program.1, grid, args })
    }
}

impl Apply for KernelLinear {
    fn apply(&self, x: &[f32], m: usize) -> Result<Vec<f32>> {
        let device = &self.kernels.device;
        let gathered = self.gather.as_ref().map(|order| gather(x, m, order));
        let x = gathered.as_deref().unwrap_or(x);
        if x.len() != m * self.matmul.k {
            return Err(Error::invalid(format!("{} inputs for {m} rows of {}", x.len(), self.matmul.k)));
        }
        let mut slot = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.as_ref().is_none_or(|ready| ready.m != m) {
            *slot = Some(self.ready(m)?);
        }
        let Some(ready) = slot.as_ref() else { return Ok(Vec::new()) };
        match self.matmul.activation {
            Activation::Float(dtype) => device.upload(&ready.floats, 0, &bytes_of(x, dtype))?,
            Activation::Int8(_) | Activation::Fp8(..) => device.upload(&ready.floats, 0, &bytes_of(x, DType::F32))?,
        }
        if let (Some(quantize), Some(program)) = (&self.quantize, &ready.quantize) {
            if quantize.per == Per::Tensor
                && let Some(scales) = &ready.scales
            {
                device.upload(scales, 0, &static_scale(x, quantize, self.input_scale).to_le_bytes())?;
            }
            self.launch(&Op::Quantize(*quantize), program, ready, true)?;
        }
        self.launch(&Op::Matmul(self.matmul), &ready.matmul, ready, false)?;
        let mut bytes = vec![0; m * self.matmul.n * 4];
        device.download(&ready.out, 0, &mut bytes)?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
    }
}

fn bytes_of(x: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F16 => x.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        DType::Bf16 => x.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        _ => x.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}
