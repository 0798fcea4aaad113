//! bitsmith's own kernels: activations are quantized by one launch and multiplied by the next.

use crate::subject::Subject;
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::Quantized;
use bitsmith_compiler::format::n16::N16;
use bitsmith_compiler::lower::{self, Role, Signature, signature};
use bitsmith_compiler::op::{Activation, Epilogue, Matmul, Op, Per, Quantize};
use bitsmith_compiler::{Error, compile};
use bitsmith_runtime::cpu::CpuDevice;
use bitsmith_runtime::{Buffer, Device, Launch, LaunchArg, Program};
use std::sync::Arc;
use std::time::Instant;

/// A loaded kernel with its buffers.
struct Kernel {
    program: Program,
    grid: [u32; 3],
    /// Buffers in the order of parameters; weights are `None`, and chosen by turn.
    buffers: Vec<Option<Buffer>>,
}

/// A product by our kernels.
pub struct Ours {
    device: Arc<CpuDevice>,
    name: String,
    kernels: Vec<Kernel>,
    weights: Vec<Buffer>,
    output: Buffer,
    m: usize,
    n: usize,
    turn: usize,
}

impl Ours {
    /// Compiles for `m` rows and uploads `x` and `copies` copies of the weights.
    pub fn new(
        device: &Arc<CpuDevice>,
        weights: &Quantized,
        activation: &str,
        x: &[f32],
        m: usize,
        copies: usize,
    ) -> Result<Ours, Error> {
        let activation: Activation = activation.parse()?;
        let (n, k) = (weights.n, weights.k);
        let matmul =
            Matmul { n, k, weight: weights.format, activation, out: DType::F32, epilogue: Epilogue::default() };
        let packed = N16::pack(weights)?.1;
        let copies = (0..copies)
            .map(|_| {
                let buffer = device.allocate(packed.len())?;
                device.upload(&buffer, 0, &packed)?;
                Ok(buffer)
            })
            .collect::<Result<Vec<_>, Error>>()?;
        let mut shared: Vec<(Signature, Buffer)> = Vec::new();
        let mut ours = Ours {
            device: Arc::clone(device),
            name: String::new(),
            kernels: Vec::new(),
            weights: copies,
            output: device.allocate(0)?,
            m,
            n,
            turn: 0,
        };
        let per = match activation {
            Activation::Float(_) => None,
            Activation::Int8(per) | Activation::Fp8(_, per) => Some(per),
        };
        if let (Activation::Int8(_), Some(per)) = (activation, per) {
            let sum_group = matmul.segment();
            let quantize =
                Quantize { k, input: DType::F32, code: DType::I8, per, sum_group, norm: None, smooth: false };
            ours.add(&Op::Quantize(quantize), x, &mut shared)?;
        }
        let schedule = ours.add(&Op::Matmul(matmul), x, &mut shared)?;
        let per = per.map_or("float", |per| if let Per::Token = per { "per token" } else { "per group" });
        ours.name = format!("bitsmith {activation}");
        eprintln!("  bitsmith, {per}: {schedule}");
        Ok(ours)
    }

    /// Compiles an operation and gives it buffers; what an earlier kernel wrote, this one reads.
    fn add(&mut self, op: &Op, x: &[f32], shared: &mut Vec<(Signature, Buffer)>) -> Result<String, Error> {
        let op = op.checked()?;
        let schedule = lower::choose(&op, self.device.caps(), self.m)?;
        let artifact = compile(&op, &schedule, self.device.target())?.artifact;
        let mut buffers = Vec::new();
        for s in signature(&op)? {
            if s.role == Role::Weights {
                buffers.push(None);
                continue;
            }
            // A quantizer calls the codes its output; the product calls them its activations.
            let same = |old: &Signature| match s.role {
                Role::Activations => old.written && old.role == Role::Output,
                role => old.role == role,
            };
            let found = shared.iter().find(|(old, _)| !s.written && same(old)).map(|(_, buffer)| buffer.clone());
            let buffer = match found {
                Some(buffer) => buffer,
                None => {
                    let buffer = self.device.allocate(s.bytes(self.m))?;
                    if s.role == Role::Activations {
                        let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
                        self.device.upload(&buffer, 0, &bytes)?;
                    }
                    buffer
                }
            };
            if s.written {
                shared.push((s, buffer.clone()));
                if s.role == Role::Output {
                    self.output = buffer.clone();
                }
            }
            buffers.push(Some(buffer));
        }
        let program = self.device.load(&artifact)?;
        self.kernels.push(Kernel { program, grid: lower::grid(&op, &schedule, self.m), buffers });
        Ok(format!("{schedule:?}"))
    }

    fn once(&mut self) -> Result<(), Error> {
        let weights = &self.weights[self.turn % self.weights.len()];
        self.turn += 1;
        for kernel in &self.kernels {
            let mut args: Vec<LaunchArg<'_>> = kernel
                .buffers
                .iter()
                .map(|buffer| LaunchArg::Buffer(buffer.as_ref().unwrap_or(weights).view()))
                .collect();
            args.push(LaunchArg::I32(self.m as i32));
            self.device.launch(&Launch { program: &kernel.program, grid: kernel.grid, args })?;
        }
        Ok(())
    }
}

impl Subject for Ours {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn weight_bytes(&self) -> f64 {
        self.weights[0].bytes() as f64
    }

    fn run(&mut self, runs: usize) -> Result<f64, String> {
        let start = Instant::now();
        for _ in 0..runs {
            self.once().map_err(|error| error.to_string())?;
        }
        Ok(start.elapsed().as_secs_f64() / runs as f64)
    }

    fn result(&mut self) -> Result<Option<Vec<f32>>, String> {
        let mut bytes = vec![0; self.m * self.n * 4];
        self.once().and_then(|()| self.device.download(&self.output, 0, &mut bytes)).map_err(|e| e.to_string())?;
        Ok(Some(bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect()))
    }
}
