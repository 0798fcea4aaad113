//! A problem: an operation with inputs in numbers and in bytes, and what its outputs should be.
//!
//! Reads an operation, M and a seed (or real weights); makes the buffers of a launch. Always holds: the reference sees the
//! same numbers as the kernel, and none of the kernel's code.

mod check;
mod random;

pub use check::{Report, Sample};
pub use random::{numbers, quantized};

use bitsmith_compiler::caps::Caps;
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::Quantized;
use bitsmith_compiler::format::n16::N16;
use bitsmith_compiler::lower::{Packing, Role, Signature, packing, signature, signature_packed, workspace};
use bitsmith_compiler::op::{Activation, Op, Per, Quantize};
use bitsmith_compiler::schedule::Schedule;
use bitsmith_compiler::{Error, Result};

/// An operation with its inputs.
#[derive(Clone, Debug)]
pub struct Problem {
    /// What to compute.
    pub op: Op,
    /// Rows of activations.
    pub m: usize,
    /// Buffers in the order of the kernel's parameters. Outputs hold poison.
    pub buffers: Vec<Buffer>,
    /// W, where the operation has weights.
    pub weights: Option<Quantized>,
    /// Numbers behind the float inputs, by role, as the reference takes them.
    x: Vec<f64>,
    scales: Vec<f32>,
    bias: Vec<f32>,
    mul: Vec<f64>,
    residual: Vec<f64>,
    gain: Vec<f32>,
    smooth: Vec<f32>,
}

/// One buffer of a launch.
#[derive(Clone, Debug)]
pub struct Buffer {
    /// What it is.
    pub signature: Signature,
    /// Its bytes, exactly as many as the kernel may touch.
    pub bytes: Vec<u8>,
}

/// The byte that outputs hold before a launch: an unwritten `f32` is a NaN-like number, an unwritten code is odd.
pub const POISON: u8 = 0xfb;

impl Problem {
    /// A problem with random inputs: the same for the same seed.
    pub fn random(op: &Op, m: usize, seed: u64) -> Result<Problem> {
        let weights = match op {
            Op::Matmul(op) => Some(quantized(&op.weight, op.n, op.k, seed ^ 0x5eed)?),
            Op::Dequant(op) => Some(quantized(&op.weight, op.n, op.k, seed ^ 0x5eed)?),
            Op::Quantize(_) => None,
        };
        Problem::with_weights(op, m, weights, seed)
    }

    /// A problem with given weights (with columns in group order) and random activations.
    pub fn with_weights(op: &Op, m: usize, weights: Option<Quantized>, seed: u64) -> Result<Problem> {
        Problem::build(op, m, weights, None, seed)
    }

    /// The same operation and weights with another number of rows and other activations. Saves packing them again.
    pub fn with_rows(self, m: usize, seed: u64) -> Result<Problem> {
        let packed = self.buffers.into_iter().find(|b| b.signature.role == Role::Weights).map(|b| b.bytes);
        Problem::build(&self.op, m, self.weights, packed, seed)
    }

    fn build(op: &Op, m: usize, weights: Option<Quantized>, mut packed: Option<Vec<u8>>, seed: u64) -> Result<Problem> {
        let op = op.checked()?;
        if m == 0 {
            return Err(Error::invalid("M is 0; accepted: at least 1"));
        }
        let mut problem = Problem {
            op,
            m,
            buffers: Vec::new(),
            weights,
            x: Vec::new(),
            scales: Vec::new(),
            bias: Vec::new(),
            mul: Vec::new(),
            residual: Vec::new(),
            gain: Vec::new(),
            smooth: Vec::new(),
        };
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut sums = Vec::new();
        if let Op::Matmul(matmul) = &op
            && let Activation::Int8(_) | Activation::Fp8(..) = matmul.activation
        {
            sums = problem.quantized_activations(matmul, &mut rng)?;
        }
        for signature in signature(&op)? {
            let bytes = match packed.take_if(|_| signature.role == Role::Weights) {
                Some(packed) => packed,
                None => problem.fill(&signature, &mut rng, &sums)?,
            };
            problem.buffers.push(Buffer { signature, bytes });
        }
        Ok(problem)
    }

    /// Codes and scales by the reference quantizer; returns the sums.
    fn quantized_activations(
        &mut self,
        op: &bitsmith_compiler::op::Matmul,
        rng: &mut fastrand::Rng,
    ) -> Result<Vec<i32>> {
        let (code, per, sum_group) = match op.activation {
            Activation::Int8(per) => (DType::I8, per, op.segment()),
            Activation::Fp8(dtype, per) => (dtype, per, 0),
            Activation::Float(_) => return Ok(Vec::new()),
        };
        let quantize = Quantize { k: op.k, input: DType::F32, code, per, sum_group, norm: None, smooth: false };
        let x: Vec<f32> = numbers(rng, self.m * op.k);
        let scale = x.iter().fold(0.0f32, |a, x| a.max(x.abs())) / quantize.top();
        let inputs = bitsmith_compiler::op::QuantizeInputs { x: &x, gain: &[], smooth: &[], scale };
        let mut sums = Vec::new();
        if per == Per::Tensor {
            self.scales.push(scale);
        }
        for m in 0..self.m {
            let row = quantize.reference(&inputs, m);
            self.x.extend(row.codes.iter().map(|&c| code.decode(c as u32)));
            self.scales.extend(row.scales);
            sums.extend(row.sums);
        }
        Ok(sums)
    }

    fn fill(&mut self, signature: &Signature, rng: &mut fastrand::Rng, sums: &[i32]) -> Result<Vec<u8>> {
        let bytes = signature.bytes(self.m);
        if signature.written {
            return Ok(vec![POISON; bytes]);
        }
        let count = signature.fixed + signature.per_row * self.m;
        Ok(match signature.role {
            Role::Activations if self.x.is_empty() => {
                let (bytes, values) = floats(rng, count, signature.dtype);
                self.x = values;
                bytes
            }
            Role::Activations => self.x.iter().map(|&x| signature.dtype.encode(x) as u8).collect(),
            Role::ActivationScales if self.scales.is_empty() => {
                self.scales = vec![0.05];
                encode_f32(&self.scales)
            }
            Role::ActivationScales => encode_f32(&self.scales),
            Role::ActivationSums => sums.iter().flat_map(|s| s.to_le_bytes()).collect(),
            Role::Weights => {
                let weights = self.weights.as_ref().ok_or_else(|| Error::invalid("the operation takes weights"))?;
                N16::pack(weights)?.1
            }
            Role::Bias => {
                self.bias = numbers(rng, count);
                encode_f32(&self.bias)
            }
            Role::Mul => {
                let (bytes, values) = floats(rng, count, signature.dtype);
                self.mul = values;
                bytes
            }
            Role::Residual => {
                let (bytes, values) = floats(rng, count, signature.dtype);
                self.residual = values;
                bytes
            }
            Role::Gain => {
                self.gain = numbers(rng, count);
                encode_f32(&self.gain)
            }
            Role::Smooth => {
                self.smooth = numbers(rng, count).iter().map(|x: &f32| x.abs() + 0.25).collect();
                encode_f32(&self.smooth)
            }
            Role::Output | Role::Workspace | Role::Decoded => {
                return Err(Error::invalid(format!("`{}` as an input", signature.name)));
            }
        })
    }

    /// The same problem with weights packed as a schedule's kernel takes them on a device of these caps, and its workspace, if
    /// it has one, behind the other buffers.
    pub fn packed_for(&self, schedule: &Schedule, caps: &Caps) -> Result<Problem> {
        let packing = packing(&self.op, schedule, caps);
        let mut problem = self.clone();
        problem.buffers.retain(|buffer| !is_workspace(&buffer.signature));
        if let (Some(weights), true) = (&self.weights, packing != Packing::N16) {
            for (buffer, signature) in problem.buffers.iter_mut().zip(signature_packed(&self.op, packing)?) {
                if signature.role == Role::Weights {
                    *buffer = Buffer { signature, bytes: packing.pack(weights)? };
                }
            }
        }
        if let Some(signature) = workspace(&self.op, schedule) {
            problem.buffers.push(Buffer { signature, bytes: workspace_bytes(&signature, self.m) });
        }
        Ok(problem)
    }

    /// The buffers that the operation writes, in order.
    pub fn outputs(&self) -> impl Iterator<Item = &Buffer> {
        self.buffers.iter().filter(|buffer| buffer.signature.written)
    }

    /// Bytes that an ideal kernel reads and writes.
    pub fn traffic(&self) -> usize {
        let counts = |buffer: &&Buffer| !is_workspace(&buffer.signature);
        self.buffers.iter().filter(counts).map(|buffer| buffer.bytes.len()).sum()
    }

    /// Arithmetic operations: two per multiply-add of a matmul, one per element otherwise.
    pub fn operations(&self) -> f64 {
        match &self.op {
            Op::Matmul(op) => 2.0 * self.m as f64 * op.n as f64 * op.k as f64,
            Op::Dequant(op) => op.n as f64 * op.k as f64,
            Op::Quantize(op) => self.m as f64 * op.k as f64,
        }
    }
}

/// Whether a buffer belongs to a schedule and not to the operation.
pub fn is_workspace(signature: &Signature) -> bool {
    matches!(signature.role, Role::Workspace | Role::Decoded)
}

/// What a workspace holds before the first launch: poison, where its content must not matter.
pub fn workspace_bytes(signature: &Signature, m: usize) -> Vec<u8> {
    let content = if signature.role == Role::Decoded { POISON } else { 0 };
    vec![content; signature.bytes(m)]
}

fn encode_f32(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Random numbers of a float type: their bytes and what they stand for.
fn floats(rng: &mut fastrand::Rng, count: usize, dtype: DType) -> (Vec<u8>, Vec<f64>) {
    let size = dtype.bits() as usize / 8;
    let mut bytes = Vec::with_capacity(count * size);
    let mut values = Vec::with_capacity(count);
    for x in numbers(rng, count) {
        let code = dtype.encode(x as f64);
        bytes.extend_from_slice(&code.to_le_bytes()[..size]);
        values.push(dtype.decode(code));
    }
    (bytes, values)
}
