//! The operation that an entry of a manifest describes, back as the compiler knows it.

use super::manifest::{Details, KernelEntry};
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::op::{Activation, Dequant, Epilogue, Matmul, Norm, Op, Per, Quantize};
use bitsmith_compiler::{Error, Result};

impl Details {
    /// Those of an operation.
    pub fn of(op: &Op) -> Details {
        match op {
            Op::Matmul(op) => {
                let parts = [
                    (op.epilogue.bias, "bias"),
                    (op.epilogue.silu_mul, "silu_mul"),
                    (op.epilogue.residual, "residual"),
                ];
                let epilogue = parts.iter().filter(|part| part.0).map(|part| part.1.to_string()).collect();
                Details { epilogue, ..Details::default() }
            }
            Op::Dequant(_) => Details::default(),
            Op::Quantize(op) => Details {
                epilogue: Vec::new(),
                input: Some(op.input.name().to_string()),
                sum_group: Some(op.sum_group),
                norm_eps: op.norm.map(|norm| norm.eps),
                smooth: op.smooth,
            },
        }
    }
}

/// How the codes of a quantization come out, as `--activation` takes it.
pub fn activation_of(op: &Quantize) -> Activation {
    match op.code {
        DType::I8 => Activation::Int8(op.per),
        code => Activation::Fp8(code, op.per),
    }
}

impl KernelEntry {
    /// The operation. Fails where a field is missing or says what this version does not know.
    pub fn operation(&self) -> Result<Op> {
        let missing = |field: &str| Error::invalid(format!("kernel {}: `{field}` is missing", self.entry));
        let named = |field: &Option<String>, name: &str| field.clone().ok_or_else(|| missing(name));
        let output: DType = self.output.parse()?;
        let op = match self.op.as_str() {
            "matmul" => {
                let has = |part: &str| self.details.epilogue.iter().any(|given| given == part);
                if let Some(other) =
                    self.details.epilogue.iter().find(|p| !["bias", "silu_mul", "residual"].contains(&p.as_str()))
                {
                    return Err(Error::invalid(format!(
                        "kernel {}: epilogue `{other}`; accepted: bias, silu_mul, residual",
                        self.entry
                    )));
                }
                Op::Matmul(Matmul {
                    n: self.n.ok_or_else(|| missing("n"))?,
                    k: self.k,
                    weight: named(&self.format, "format")?.parse()?,
                    activation: named(&self.activation, "activation")?.parse()?,
                    out: output,
                    epilogue: Epilogue { bias: has("bias"), silu_mul: has("silu_mul"), residual: has("residual") },
                })
            }
            "dequant" => Op::Dequant(Dequant {
                n: self.n.ok_or_else(|| missing("n"))?,
                k: self.k,
                weight: named(&self.format, "format")?.parse()?,
                out: output,
            }),
            "quantize" => {
                let per: Per = match named(&self.activation, "activation")?.parse()? {
                    Activation::Int8(per) | Activation::Fp8(_, per) => per,
                    Activation::Float(dtype) => {
                        return Err(Error::invalid(format!(
                            "kernel {}: quantizes to {}; accepted: int8 and fp8 activations",
                            self.entry,
                            dtype.name()
                        )));
                    }
                };
                Op::Quantize(Quantize {
                    k: self.k,
                    input: named(&self.details.input, "input")?.parse()?,
                    code: output,
                    per,
                    sum_group: self.details.sum_group.ok_or_else(|| missing("sum_group"))?,
                    norm: self.details.norm_eps.map(|eps| Norm { eps }),
                    smooth: self.details.smooth,
                })
            }
            other => {
                return Err(Error::invalid(format!(
                    "kernel {}: operation `{other}`; accepted: matmul, dequant, quantize",
                    self.entry
                )));
            }
        };
        op.checked()
    }
}
