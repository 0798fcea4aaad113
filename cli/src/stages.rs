//! `--emit`: any stage of a compilation as text.

mod tools;

use crate::failure::Failure;
use crate::{Io, Outcome};
use bitsmith_compiler::op::Op;
use bitsmith_compiler::op::kv::KvOp;
use bitsmith_compiler::schedule::{KvSchedule, Schedule};
use bitsmith_compiler::target::Target;
use bitsmith_compiler::{Compiled, Error, ir};
use clap::ValueEnum;
use serde_json::{Map, Value};

/// One stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Stage {
    /// What to compute.
    Op,
    /// How it runs.
    Schedule,
    /// The kernel as its family wrote it.
    Kir,
    /// The kernel as the target's emitter takes it.
    Legal,
    /// Cranelift's own text.
    Clif,
    /// Assembly.
    Asm,
    /// NVIDIA's portable assembly.
    Ptx,
    /// SPIR-V, disassembled.
    Spirv,
    /// WGSL.
    Wgsl,
    /// WGSL in Metal's language, by naga.
    Msl,
    /// WGSL in Direct3D's language, by naga.
    Hlsl,
    /// NVIDIA's machine code, by `ptxas` and `cuobjdump`.
    Sass,
    /// The assembled module in hexadecimal, by `ptxas`.
    Cubin,
    /// Registers, shared and local memory, by `ptxas`.
    Resources,
}

/// Which stages are printed, of which kernels.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Emit {
    /// Stages of each kernel to print, separated by commas
    #[arg(long, value_name = "STAGES", value_delimiter = ',')]
    pub emit: Vec<Stage>,
    /// Print stages only of kernels whose entry name contains this
    #[arg(long, value_name = "SUBSTRING", requires = "emit")]
    pub only: Option<String>,
}

impl Emit {
    /// The requested stages of a kernel, by name; `None` where none was requested.
    pub(crate) fn of(
        &self,
        op: &Op,
        schedule: &Schedule,
        compiled: &Compiled,
        target: &dyn Target,
    ) -> Result<Option<Map<String, Value>>, Failure> {
        self.described((&|| describe(op), &|| describe_schedule(schedule)), compiled, target)
    }

    /// The same of a kernel of a KV cache.
    pub(crate) fn of_kv(
        &self,
        op: &KvOp,
        schedule: &KvSchedule,
        compiled: &Compiled,
        target: &dyn Target,
    ) -> Result<Option<Map<String, Value>>, Failure> {
        self.described((&|| format!("{op:?}"), &|| format!("{schedule:?}")), compiled, target)
    }

    /// The requested stages of a kernel whose operation and schedule the two functions put into words.
    fn described(
        &self,
        (op, schedule): (&dyn Fn() -> String, &dyn Fn() -> String),
        compiled: &Compiled,
        target: &dyn Target,
    ) -> Result<Option<Map<String, Value>>, Failure> {
        let entry = &compiled.artifact.entry;
        if self.emit.is_empty() || self.only.as_ref().is_some_and(|only| !entry.contains(only.as_str())) {
            return Ok(None);
        }
        let mut stages = Map::new();
        for &stage in &self.emit {
            let text = match stage {
                Stage::Op => op(),
                Stage::Schedule => schedule(),
                Stage::Kir => compiled.kernel.to_string(),
                Stage::Legal => compiled.legal.to_string(),
                Stage::Sass | Stage::Cubin | Stage::Resources => tools::nvidia(stage, &compiled.artifact)?,
                Stage::Clif | Stage::Asm | Stage::Ptx | Stage::Spirv | Stage::Wgsl | Stage::Msl | Stage::Hlsl => {
                    let name = stage.name();
                    let verified = ir::verify(&compiled.legal, target.caps()).map_err(|faults| Error::Bug {
                        message: faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
                        text: compiled.legal.to_string(),
                    })?;
                    target.show(&verified, &name).ok_or_else(|| {
                        Error::Unsupported(format!("stage `{name}` of target {}", target.caps().name))
                    })??
                }
            };
            stages.insert(stage.name(), Value::String(text));
        }
        Ok(Some(stages))
    }
}

impl Stage {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default()
    }
}

/// Prints stages for people.
pub(crate) fn print(io: &mut Io<'_>, entry: &str, stages: &Map<String, Value>) -> Outcome {
    for (stage, text) in stages {
        writeln!(io.out, "=== {entry}: {stage}\n{}\n", text.as_str().unwrap_or_default().trim_end())?;
    }
    Ok(())
}

/// An operation in a line.
pub(crate) fn describe(op: &Op) -> String {
    match op {
        Op::Matmul(op) => {
            let mut text = format!(
                "matmul N={} K={} weights {} activations {} result {}",
                op.n,
                op.k,
                op.weight,
                op.activation,
                op.out.name()
            );
            for (on, name) in [
                (op.epilogue.bias, " + bias"),
                (op.epilogue.silu_mul, ", silu times mul"),
                (op.epilogue.residual, " + residual"),
            ] {
                if on {
                    text += name;
                }
            }
            text
        }
        Op::Dequant(op) => format!("dequant N={} K={} weights {} result {}", op.n, op.k, op.weight, op.out.name()),
        Op::Quantize(op) => format!(
            "quantize K={} from {} to {}, scales per {:?}, sums per {} columns",
            op.k,
            op.input.name(),
            op.code.name(),
            op.per,
            op.sum_group
        ),
    }
}

/// A schedule in a line.
pub(crate) fn describe_schedule(schedule: &Schedule) -> String {
    let strips = if schedule.strips > 1 { format!(" x{}", schedule.strips) } else { String::new() };
    let shared = if schedule.workgroups > 1 { format!(" w{}", schedule.workgroups) } else { String::new() };
    format!("{} {}x{}{strips}{shared} u{}", schedule.family.name(), schedule.tile_m, schedule.tile_n, schedule.unroll)
}
