//! Which kernels a recipe needs for the layers of a model, for one token and for many.

use crate::failure::Failure;
use crate::shapes::{Layers, Model};
use bitsmith_calibrate::recipe::Recipe;
use bitsmith_compiler::Error;
use bitsmith_compiler::caps::Caps;
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::Format;
use bitsmith_compiler::lower;
use bitsmith_compiler::op::{Activation, Dequant, Epilogue, Matmul, Op, Quantize};
use bitsmith_compiler::schedule::Schedule;
use serde::Serialize;

/// What part of inference a kernel serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// Matmul with many rows.
    Prefill,
    /// Matmul with few rows.
    Decode,
    /// Activations to codes.
    Quantize,
    /// Weights to floats.
    Dequant,
}

/// Rows up to which a matmul counts as decoding.
pub(crate) const DECODE_ROWS: usize = 8;

/// The format of the output head, which recipes leave alone.
const HEAD_FORMAT: &str = "int8-channel";

/// One kernel to be made.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    /// What it computes.
    pub op: Op,
    /// How.
    pub schedule: Schedule,
    /// The layers that use it.
    pub layers: String,
    /// Which part of inference.
    pub phase: Phase,
    /// Numbers of rows that it was chosen for.
    pub rows: Vec<usize>,
}

/// Everything to be made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// The kernels; no two are the same.
    pub kernels: Vec<Planned>,
    /// What a user should know.
    pub notes: Vec<String>,
}

/// What the plan is made from.
pub(crate) struct Request<'a> {
    pub recipe: &'a Recipe,
    pub model: &'a Model,
    /// Replaces the recipe's activation.
    pub activation: Option<&'a str>,
    /// Type of results, and of activations before they are quantized.
    pub result: Option<DType>,
    /// Rows to choose schedules for.
    pub rows: &'a [usize],
}

impl Plan {
    /// Plans every kernel, or lists the faults of all layers.
    pub fn new(request: &Request<'_>, caps: &Caps) -> Result<Plan, Failure> {
        let recipe = request.recipe;
        let named = |error: Error| match error {
            Error::Unsupported(why) => Error::Unsupported(format!("recipe {}: {why}", recipe.name)),
            Error::Invalid(faults) => {
                Error::Invalid(faults.iter().map(|fault| format!("recipe {}: {fault}", recipe.name)).collect())
            }
            other => other,
        };
        let weight: Format = recipe.weight.parse().map_err(named)?;
        let activation: Activation = match request.activation {
            Some(text) => text.parse()?,
            None => recipe.activation.parse().map_err(named)?,
        };
        let result = match (request.result, activation) {
            (Some(result), _) => result,
            (None, Activation::Float(dtype)) => dtype,
            (None, _) => DType::F16,
        };
        let mut plan = Plan::default();
        let mut faults = Vec::new();
        for layers in &request.model.layers {
            let weight = if layers.head {
                plan.notes.push(format!(
                    "{} stays out of the recipe: it is made for {HEAD_FORMAT} weights and {activation} activations",
                    layers.name
                ));
                HEAD_FORMAT.parse()?
            } else {
                weight
            };
            match plan.layers(layers, weight, activation, result, request.rows, caps) {
                Ok(()) => {}
                Err(Error::Invalid(list)) => {
                    faults.extend(
                        list.iter().map(|fault| format!("{} ({}x{}): {fault}", layers.name, layers.n, layers.k)),
                    );
                }
                Err(other) => return Err(named(other).into()),
            }
        }
        if !faults.is_empty() {
            return Err(Error::Invalid(faults).into());
        }
        plan.kernels.sort_by_key(|kernel| kernel.phase);
        Ok(plan)
    }

    fn layers(
        &mut self,
        layers: &Layers,
        weight: Format,
        activation: Activation,
        result: DType,
        rows: &[usize],
        caps: &Caps,
    ) -> Result<(), Error> {
        let Layers { n, k, .. } = *layers;
        let matmul = Matmul { n, k, weight, activation, out: result, epilogue: Epilogue::default() };
        for &m in rows {
            let phase = if m > DECODE_ROWS { Phase::Prefill } else { Phase::Decode };
            self.add(Op::Matmul(matmul), &layers.name, phase, m, caps)?;
            if let Some(quantize) = quantize_for(&matmul, result) {
                self.add(Op::Quantize(quantize), &layers.name, Phase::Quantize, m, caps)?;
            }
        }
        self.add(Op::Dequant(Dequant { n, k, weight, out: result }), &layers.name, Phase::Dequant, 1, caps)
    }

    fn add(&mut self, op: Op, layers: &str, phase: Phase, m: usize, caps: &Caps) -> Result<(), Error> {
        let op = lower::native(op.checked()?, caps);
        let schedule = lower::choose(&op, caps, m)?;
        match self.kernels.iter_mut().find(|old| old.op == op && old.schedule == schedule) {
            Some(old) => {
                if !old.layers.split('+').any(|part| layers.split('+').any(|new| new == part)) {
                    old.layers = format!("{}+{layers}", old.layers);
                }
                if !old.rows.contains(&m) {
                    old.rows.push(m);
                }
            }
            None => {
                self.kernels.push(Planned { op, schedule, layers: layers.to_string(), phase, rows: vec![m] });
            }
        }
        Ok(())
    }
}

/// The quantization that a matmul's activations need, from floats of a type.
pub(crate) fn quantize_for(matmul: &Matmul, input: DType) -> Option<Quantize> {
    let (code, per, sum_group) = match matmul.activation {
        Activation::Float(_) => return None,
        Activation::Int8(per) => (DType::I8, per, matmul.segment()),
        Activation::Fp8(dtype, per) => (dtype, per, 0),
    };
    Some(Quantize { k: matmul.k, input, code, per, sum_group, norm: None, smooth: false })
}
