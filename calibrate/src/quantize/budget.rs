//! Falling back to more bits, site by site, until the rise of perplexity is within its budget.
//!
//! ```text
//! every site alone at its first step: how much does the divergence fall?
//!   ─► the most sensitive sites step up until the budget is met ─► each goes back a step if it is met without
//!   ─► the recipe with a rule per matrix ─► quantized anew by that recipe, and measured again
//! ```
//!
//! Reads a model in floats, a recipe with a budget and calibration prompts, which are all that is measured on: text that a
//! model is judged by later stays unseen. Makes the model, and the recipe that makes it without a search. Matrices that share
//! an input step up together, since an input is quantized once for all of them. Sensitivity counts per weight: bytes and the
//! work that slower inputs make both grow with it. Always holds: perplexity rises by no more than the budget with two
//! standard errors to spare, or every site is in floats, or what is left says that it is not met.

use super::linear::quantize_linear;
use super::{LinearReport, Prompts, Quantization, quantize};
use crate::engine::{Executor, FloatCache};
use crate::evaluate::{Comparison, Reference, Windows, compare_with};
use crate::model::{Config, Floats, Layer, Layers, Linear, Mlp};
use crate::recipe::{Budget, LayerRule, LinearPlan, Method, Plan, RecipeFile, Sizes};
use bitsmith_compiler::format::Format;
use bitsmith_compiler::op::Activation;
use bitsmith_compiler::{Error, Result};
use serde::Serialize;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Matrices that share an input, and what they cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sensitivity {
    /// The matrices.
    pub names: Vec<String>,
    /// Their weights.
    pub weights: usize,
    /// How much the mean divergence falls, in nats, when they alone take their first step.
    pub gain: f64,
    /// How many steps they took in the end.
    pub steps: usize,
    /// What their weights are now.
    pub format: String,
}

/// What falling back did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FallBack {
    /// The budget: a share of perplexity.
    pub budget: f64,
    /// Sites, the most sensitive per weight first.
    pub sweep: Vec<Sensitivity>,
    /// By the recipe as it was, over the calibration prompts.
    pub before: Comparison,
    /// By the recipe that was found.
    pub now: Comparison,
    /// Bytes of all matrices before.
    pub bytes_before: usize,
    /// Bytes of all matrices now.
    pub bytes_now: usize,
    /// Whether the rise and two standard errors of it are within the budget.
    pub met: bool,
}

impl FallBack {
    /// Matrices that took a step.
    pub fn fallen(&self) -> Vec<&str> {
        self.sweep.iter().filter(|s| s.steps > 0).flat_map(|s| s.names.iter().map(String::as_str)).collect()
    }
}

/// A model within its budget, and how to make it again.
pub struct Within {
    /// The model.
    pub quantization: Quantization,
    /// The recipe that makes it; it has a rule per matrix that fell back, and no budget.
    pub recipe: RecipeFile,
    /// What the search found.
    pub found: FallBack,
}

/// Quantizes a model so that perplexity over the prompts rises within the recipe's budget. `floats` runs the reference and
/// the calibration, `executor` the quantized model.
pub fn within_budget(
    source: &dyn Layers,
    recipe: &RecipeFile,
    sizes: &[Sizes],
    prompts: &Prompts,
    floats: &dyn Executor,
    executor: &dyn Executor,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Within> {
    let Some(budget) = &recipe.budget else { return Err(Error::invalid("a recipe without a budget")) };
    let plan = Plan::new(recipe, sizes, true)?;
    let done = quantize(source, recipe, &plan, Some(prompts), floats, progress)?;
    let windows = Windows::of_prompts(prompts);
    let reference = Reference::new((source, floats), &windows)?;
    let mut search = Search { done: &done, steps: Vec::new(), windows: &windows, reference, executor };
    let before = search.compare(&search.nothing())?;
    let bytes_before = done.reports.iter().map(|r| r.bytes_after).sum();
    let mut found = FallBack {
        budget: budget.perplexity_increase,
        sweep: Vec::new(),
        before,
        now: before,
        bytes_before,
        bytes_now: bytes_before,
        met: within(&before, budget),
    };
    let mut plain = RecipeFile { budget: None, ..recipe.clone() };
    if found.met {
        return Ok(Within { quantization: done, recipe: plain, found });
    }
    for group in groups(source, &plan)? {
        search.steps.push(Steps::new(group, budget, &plan, &done)?);
    }
    found.sweep = search.sweep(before.mean_divergence)?;
    let mut levels = search.climb(budget)?;
    // The recipe with its rules is the result; what was tried in place was the way to it.
    loop {
        plain.layers = recipe.layers.clone();
        for (group, level) in search.steps.iter().zip(&levels) {
            let rules = group.rules(*level, budget);
            plain.layers.splice(0..0, rules);
        }
        let plan = Plan::new(&plain, sizes, true)?;
        let mut made = quantize(source, &plain, &plan, Some(prompts), floats, progress)?;
        let now = compare_with(&mut search.reference, (&made.model, executor), &windows, &FloatCache::boxed)?;
        found.met = within(&now, budget);
        let next = (0..levels.len()).find(|&at| levels[at] < search.steps[at].candidates.len());
        if let (false, Some(next)) = (found.met, next) {
            levels[next] += 1;
            continue;
        }
        found.now = now;
        found.bytes_now = made.reports.iter().map(|r| r.bytes_after).sum();
        for (entry, level) in found.sweep.iter_mut().zip(&levels) {
            entry.steps = *level;
            let format = |r: &&LinearReport| entry.names.contains(&r.name);
            entry.format = made.reports.iter().find(format).map_or(String::new(), |r| r.format.clone());
        }
        for report in made.reports.iter_mut().filter(|r| found.fallen().contains(&&r.name[..])) {
            report.note = Some("fell back to more bits, to stay within the budget".into());
        }
        return Ok(Within { quantization: made, recipe: plain, found });
    }
}

/// Standard errors of the rise that are kept to spare. The prompts are a sample, and so is the text that a model is judged by: with
/// one, every sixth model would be over its budget on other text of the kind.
const SPARE: f64 = 2.0;

fn within(found: &Comparison, budget: &Budget) -> bool {
    found.increase + SPARE * found.increase_error <= budget.perplexity_increase
}

/// Names of matrices that share an input, as far as a plan quantizes them.
fn groups(source: &dyn Layers, plan: &Plan) -> Result<Vec<Vec<String>>> {
    let mut list: Vec<Vec<String>> = Vec::new();
    let mut add = |linears: &[&Linear]| {
        let quantized = |l: &&&Linear| plan.of(&l.name).is_some_and(|p| p.format.is_some());
        let names: Vec<String> = linears.iter().filter(quantized).map(|l| l.name.clone()).collect();
        if !names.is_empty() {
            list.push(names);
        }
    };
    for index in 0..source.config().shape.layers {
        let layer = source.layer(index)?;
        let a = &layer.attention;
        add(&[&a.q, &a.k, &a.v]);
        add(&[&a.o]);
        let gated = match &layer.mlp {
            Mlp::Dense(gated) => std::slice::from_ref(gated),
            Mlp::Experts { experts, .. } => experts,
        };
        for gated in gated {
            add(&[&gated.gate, &gated.up]);
            add(&[&gated.down]);
        }
    }
    if let Some(head) = source.head()? {
        add(&[&head]);
    }
    Ok(list)
}

/// Matrices that step up together, and what they are after each step.
struct Steps {
    names: Vec<String>,
    weights: usize,
    /// Per step: its place in the budget's list, and the matrices.
    candidates: Vec<(usize, Vec<Linear>)>,
}

impl Steps {
    fn new(names: Vec<String>, budget: &Budget, plan: &Plan, done: &Quantization) -> Result<Steps> {
        let originals: Vec<&Linear> = names.iter().filter_map(|name| done.floats.get(name)).collect();
        let mut candidates = Vec::new();
        for (at, step) in budget.fall_back.iter().enumerate() {
            let format: Option<Format> = if step == "none" { None } else { Some(step.parse()?) };
            let same = |name: &String| {
                let plan = plan.of(name);
                plan.and_then(|p| p.format) == format && plan.and_then(|p| p.activation).is_none_or(|a| a == FLOATS)
            };
            if !names.iter().all(same) {
                let made = originals.iter().map(|linear| candidate(linear, format)).collect::<Result<_>>()?;
                candidates.push((at, made));
            }
        }
        Ok(Steps { weights: originals.iter().map(|l| l.n * l.k).sum(), names, candidates })
    }

    /// A rule for each matrix at a level.
    fn rules(&self, level: usize, budget: &Budget) -> Vec<LayerRule> {
        let Some(step) = level.checked_sub(1) else { return Vec::new() };
        let weight = &budget.fall_back[self.candidates[step].0];
        let rule = |name: &String| LayerRule {
            matches: name.clone(),
            weight: Some(weight.clone()),
            activation: Some("f16".into()),
            method: Some(Method::Rtn),
        };
        self.names.iter().map(rule).collect()
    }
}

/// Inputs of matrices that fell back.
const FLOATS: Activation = Activation::Float(bitsmith_compiler::dtype::DType::F16);

fn candidate(linear: &Linear, format: Option<Format>) -> Result<Linear> {
    let mut linear = linear.clone();
    linear.activation = None;
    let plan = LinearPlan {
        name: linear.name.clone(),
        format,
        activation: format.map(|_| FLOATS),
        method: Method::Rtn,
        pad: 0,
        note: None,
    };
    quantize_linear(&mut linear, &RecipeFile::default(), Some(&plan), None)?;
    Ok(linear)
}

struct Search<'a> {
    done: &'a Quantization,
    steps: Vec<Steps>,
    windows: &'a Windows,
    reference: Reference,
    executor: &'a dyn Executor,
}

impl Search<'_> {
    fn nothing(&self) -> Vec<usize> {
        vec![0; self.steps.len()]
    }

    /// The model with each group at a level, beside the reference.
    fn compare(&mut self, levels: &[usize]) -> Result<Comparison> {
        let mut with = BTreeMap::new();
        for (steps, level) in self.steps.iter().zip(levels) {
            if let Some(step) = level.checked_sub(1) {
                with.extend(steps.candidates[step].1.iter().map(|linear| (&linear.name[..], linear)));
            }
        }
        let model = Replaced { base: &self.done.model, with };
        compare_with(&mut self.reference, (&model, self.executor), self.windows, &FloatCache::boxed)
    }

    /// Tries each group alone and sorts them, the most sensitive per weight first.
    fn sweep(&mut self, divergence: f64) -> Result<Vec<Sensitivity>> {
        let mut list = Vec::new();
        for at in 0..self.steps.len() {
            let mut levels = self.nothing();
            levels[at] = usize::from(!self.steps[at].candidates.is_empty());
            let alone = self.compare(&levels)?.mean_divergence;
            let Steps { names, weights, .. } = &self.steps[at];
            let (names, weights) = (names.clone(), *weights);
            list.push((at, Sensitivity { names, weights, gain: divergence - alone, steps: 0, format: String::new() }));
        }
        let key = |s: &Sensitivity| s.gain / s.weights.max(1) as f64;
        list.sort_by(|(_, a), (_, b)| key(b).total_cmp(&key(a)));
        let mut old: Vec<Option<Steps>> = self.steps.drain(..).map(Some).collect();
        self.steps = list.iter().filter_map(|(at, _)| old[*at].take()).collect();
        Ok(list.into_iter().map(|(_, entry)| entry).collect())
    }

    /// Levels within the budget: up in the order of the sweep, step by step, then down where that leaves it met.
    fn climb(&mut self, budget: &Budget) -> Result<Vec<usize>> {
        let mut levels = self.nothing();
        let most = self.steps.iter().map(|s| s.candidates.len()).max().unwrap_or(0);
        let mut met = false;
        'up: for level in 1..=most {
            for at in 0..levels.len() {
                if self.steps[at].candidates.len() < level {
                    continue;
                }
                levels[at] = level;
                met = within(&self.compare(&levels)?, budget);
                if met {
                    break 'up;
                }
            }
        }
        for at in (0..levels.len()).rev().filter(|_| met) {
            while levels[at] > 0 {
                levels[at] -= 1;
                if !within(&self.compare(&levels)?, budget) {
                    levels[at] += 1;
                    break;
                }
            }
        }
        Ok(levels)
    }
}

/// A model with some matrices in another's place.
struct Replaced<'a> {
    base: &'a dyn Layers,
    with: BTreeMap<&'a str, &'a Linear>,
}

impl Layers for Replaced<'_> {
    fn config(&self) -> &Config {
        self.base.config()
    }

    fn embedding(&self) -> Result<Cow<'_, Linear>> {
        self.base.embedding()
    }

    fn layer(&self, index: usize) -> Result<Cow<'_, Layer>> {
        let mut layer = self.base.layer(index)?;
        if layer.linears().iter().any(|linear| self.with.contains_key(&linear.name[..])) {
            for place in layer.to_mut().linears_mut() {
                if let Some(other) = self.with.get(&place.name[..]) {
                    *place = (*other).clone();
                }
            }
        }
        Ok(layer)
    }

    fn norm(&self) -> Result<Cow<'_, Floats>> {
        self.base.norm()
    }

    fn head(&self) -> Result<Option<Cow<'_, Linear>>> {
        let head = self.base.head()?;
        Ok(head.map(|head| match self.with.get(&head.name[..]) {
            Some(other) => Cow::Borrowed(*other),
            None => head,
        }))
    }
}
