//! Sensitivity of layers, and falling back to more bits until perplexity is within its budget.
//!
//! Reads a model in floats, its quantized twin and windows of text; changes the twin. Each quantized matrix is tried alone
//! in the twin's place of more bits; those that move the output most per byte come first. Always holds: the result is
//! within the budget, or every matrix has fallen back and the report says that even so it is not.

use super::LinearReport;
use super::linear::quantize_linear;
use crate::engine::{Executor, FloatCache};
use crate::evaluate::{Runner, Windows, compare};
use crate::model::{Linear, Model};
use crate::recipe::{LinearPlan, Method, RecipeFile};
use bitsmith_compiler::Result;
use bitsmith_compiler::format::Format;
use serde::Serialize;
use std::collections::BTreeMap;

/// What one matrix costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sensitivity {
    /// The layer.
    pub name: String,
    /// How much the mean divergence falls when this matrix alone has more bits.
    pub gain: f64,
    /// Bytes that it takes.
    pub bytes: usize,
}

/// What falling back did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FallBack {
    /// Matrices, the most sensitive first.
    pub sweep: Vec<Sensitivity>,
    /// Those that have more bits now.
    pub fallen: Vec<String>,
    /// Rise of perplexity before.
    pub before: f64,
    /// Rise of perplexity now.
    pub now: f64,
    /// Whether that is within the budget.
    pub met: bool,
}

/// The format that matrices fall back to.
const MORE_BITS: &str = "int8-channel";

/// Who compares with what.
pub struct Judge<'a> {
    /// The model in floats, and who multiplies for it.
    pub reference: Runner<'a>,
    /// Text.
    pub windows: &'a Windows,
    /// Who multiplies.
    pub executor: &'a dyn Executor,
}

impl Judge<'_> {
    fn of(&self, model: &Model) -> Result<(f64, f64)> {
        let found = compare(self.reference, (model, self.executor), self.windows, &FloatCache::boxed)?;
        Ok((found.increase, found.mean_divergence))
    }
}

/// Falls back until the rise of perplexity is at most `budget`. `floats` holds each matrix as it was before codes were
/// found, foldings included.
pub fn fall_back(
    model: &mut Model,
    floats: &BTreeMap<String, Linear>,
    reports: &mut [LinearReport],
    judge: &Judge<'_>,
    budget: f64,
) -> Result<FallBack> {
    let (before, divergence) = judge.of(model)?;
    let mut out = FallBack { sweep: Vec::new(), fallen: Vec::new(), before, now: before, met: before <= budget };
    if out.met {
        return Ok(out);
    }
    let format: Format = MORE_BITS.parse()?;
    let mut better: BTreeMap<String, (Linear, LinearReport)> = BTreeMap::new();
    for (name, linear) in floats {
        let plan = LinearPlan {
            name: name.clone(),
            format: Some(format),
            activation: None,
            method: Method::Rtn,
            pad: 0,
            note: Some("fell back to more bits, to stay within the budget".into()),
        };
        let mut linear = linear.clone();
        let mut report = quantize_linear(&mut linear, &RecipeFile::default(), Some(&plan), None)?;
        let old = model.linears().into_iter().find(|l| l.name == *name).and_then(|l| l.activation);
        linear.activation = old;
        report.activation = old.map(|a| a.to_string());
        let (_, alone) = judge.of(&replaced(model, &linear))?;
        out.sweep.push(Sensitivity { name: name.clone(), gain: divergence - alone, bytes: report.bytes_after });
        better.insert(name.clone(), (linear, report));
    }
    out.sweep.sort_by(|a, b| (b.gain / b.bytes as f64).total_cmp(&(a.gain / a.bytes as f64)));
    for entry in out.sweep.clone() {
        let Some((linear, report)) = better.remove(&entry.name) else { continue };
        *model = replaced(model, &linear);
        if let Some(old) = reports.iter_mut().find(|r| r.name == entry.name) {
            *old = report;
        }
        out.fallen.push(entry.name);
        (out.now, _) = judge.of(model)?;
        if out.now <= budget {
            out.met = true;
            break;
        }
    }
    Ok(out)
}

fn replaced(model: &Model, linear: &Linear) -> Model {
    let mut model = model.clone();
    for place in model.linears_mut() {
        if place.name == linear.name {
            *place = linear.clone();
        }
    }
    model
}
