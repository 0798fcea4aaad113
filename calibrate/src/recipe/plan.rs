//! What a recipe means for each matrix of a model, and every fault of it before any long work.
//!
//! Reads a recipe and a model's matrices by name and size; makes a [`LinearPlan`] for each. Always holds: all faults of
//! all layers come at once, each with its layer and what can be done.

use super::{OnIndivisible, RecipeFile};
use crate::model::{Layers, Weight};
use bitsmith_compiler::format::{Code, Format, Granularity};
use bitsmith_compiler::op::Activation;
use bitsmith_compiler::{Error, Result};
use regex::Regex;
use serde::{Deserialize, Serialize};

/// How codes are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Round to nearest.
    Rtn,
    /// Round to nearest with the clip that has the least error.
    Mse,
    /// Round to nearest with ranges cut at a percentile.
    Percentile,
    /// Errors made good by later columns; needs calibration.
    Gptq,
    /// Channels that matter scaled up; needs calibration.
    Awq,
}

impl Method {
    /// Whether statistics of inputs are needed.
    pub fn calibrated(self) -> bool {
        matches!(self, Method::Gptq | Method::Awq)
    }
}

/// What happens to one matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearPlan {
    /// The layer.
    pub name: String,
    /// Its format; `None` leaves it in floats.
    pub format: Option<Format>,
    /// Its activations while it runs.
    pub activation: Option<Activation>,
    /// How codes are found.
    pub method: Method,
    /// Columns of zeros to add.
    pub pad: usize,
    /// Why it is not what the recipe says at first, in words.
    pub note: Option<String>,
}

/// Name and size of a matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// The layer.
    pub name: String,
    /// Outputs.
    pub n: usize,
    /// Inputs.
    pub k: usize,
}

/// What happens to every matrix.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// In the order of the model.
    pub linears: Vec<LinearPlan>,
}

impl Plan {
    /// Plans every matrix, or lists the faults of all.
    pub fn new(recipe: &RecipeFile, linears: &[Sizes], calibrated: bool) -> Result<Plan> {
        let rules = Rules::new(recipe)?;
        let (mut list, mut faults) = (Vec::new(), Vec::new());
        if let Some(Err(error)) = recipe.kv.as_deref().map(crate::kv::format) {
            faults.push(error.to_string());
        }
        let steps = steps(recipe, &mut faults);
        for sizes in linears {
            for format in &steps {
                let mut misfits = (format.container.check)(format, sizes.n, sizes.k);
                if let Granularity::Group(g) = format.granularity
                    && !sizes.k.is_multiple_of(g as usize)
                {
                    misfits.push(format!("K is {}, no multiple of the group size {g}", sizes.k));
                }
                faults
                    .extend(misfits.into_iter().map(|fault| format!("{}: fall-back `{format}`: {fault}", sizes.name)));
            }
            match rules.linear(recipe, sizes, calibrated) {
                Ok(plan) => list.push(plan),
                Err(Error::Invalid(more)) => {
                    faults.extend(more.into_iter().map(|f| format!("{} ({}x{}): {f}", sizes.name, sizes.n, sizes.k)));
                }
                Err(other) => faults.push(format!("{}: {other}", sizes.name)),
            }
        }
        for rule in &recipe.layers {
            if !linears.iter().any(|sizes| rules.hits(&rule.matches, &sizes.name)) {
                faults.push(format!("rule `{}` matches no layer", rule.matches));
            }
        }
        if faults.is_empty() { Ok(Plan { linears: list }) } else { Err(Error::Invalid(faults)) }
    }

    /// The plan of a layer.
    pub fn of(&self, name: &str) -> Option<&LinearPlan> {
        self.linears.iter().find(|plan| plan.name == name)
    }

    /// Looks at all weights before any long work: every matrix that is not in floats, and every number that is not finite,
    /// comes at once. Reads the model once, layer by layer.
    pub fn check_weights(&self, model: &dyn Layers) -> Result<()> {
        let mut faults = Vec::new();
        model.each_linear(&mut |linear| {
            if self.of(&linear.name).is_none_or(|plan| plan.format.is_none()) {
                return Ok(());
            }
            match &linear.weight {
                Weight::Floats(floats) => faults.extend(preflight(&linear.name, &floats.values, linear.k)),
                Weight::Quantized(q) => {
                    faults.push(format!("{}: is {} already; quantizing starts from floats", linear.name, q.format));
                }
            }
            Ok(())
        })?;
        if faults.is_empty() { Ok(()) } else { Err(Error::Invalid(faults)) }
    }

    /// Whether any layer needs statistics of inputs.
    pub fn calibrated(&self) -> bool {
        self.linears.iter().any(|plan| plan.format.is_some() && plan.method.calibrated())
    }
}

/// The formats that a budget falls back to; what is wrong with it goes to the faults.
fn steps(recipe: &RecipeFile, faults: &mut Vec<String>) -> Vec<Format> {
    let Some(budget) = &recipe.budget else { return Vec::new() };
    if !(budget.perplexity_increase.is_finite() && budget.perplexity_increase >= 0.0) {
        faults.push(format!("a budget of {}; accepted: a share of perplexity from 0 on", budget.perplexity_increase));
    }
    let mut list = Vec::new();
    for step in budget.fall_back.iter().filter(|step| *step != "none") {
        match step.parse() {
            Ok(format) => list.push(format),
            Err(error) => faults.push(format!("fall-back `{step}`: {error}")),
        }
    }
    list
}

/// A recipe with its patterns compiled.
struct Rules {
    patterns: Vec<(String, Regex)>,
    weight: String,
    activation: String,
}

impl Rules {
    fn new(recipe: &RecipeFile) -> Result<Rules> {
        let base = recipe.base()?;
        let weight =
            recipe.weight.clone().or(base.map(|b| b.weight.to_owned())).ok_or_else(|| {
                Error::invalid("a recipe names neither `base` nor `weight`; one of them says what to do")
            })?;
        let activation =
            recipe.activation.clone().or(base.map(|b| b.activation.to_owned())).unwrap_or_else(|| "f16".into());
        let (mut patterns, mut faults) = (Vec::new(), Vec::new());
        for text in recipe.layers.iter().map(|rule| &rule.matches).chain(&recipe.ignore) {
            if let Some(pattern) = text.strip_prefix("re:") {
                match Regex::new(&format!("^(?:{pattern})")) {
                    Ok(regex) => patterns.push((text.clone(), regex)),
                    Err(error) => faults.push(format!("`{text}`: {error}")),
                }
            }
        }
        if faults.is_empty() { Ok(Rules { patterns, weight, activation }) } else { Err(Error::Invalid(faults)) }
    }

    fn hits(&self, rule: &str, name: &str) -> bool {
        match self.patterns.iter().find(|(text, _)| text == rule) {
            Some((_, regex)) => regex.is_match(name),
            None => rule == name,
        }
    }

    fn linear(&self, recipe: &RecipeFile, sizes: &Sizes, calibrated: bool) -> Result<LinearPlan> {
        let name = &sizes.name;
        let keep = |note: &str| LinearPlan {
            name: name.clone(),
            format: None,
            activation: None,
            method: Method::Rtn,
            pad: 0,
            note: Some(note.to_owned()),
        };
        let exact = recipe.layers.iter().find(|rule| !rule.matches.starts_with("re:") && rule.matches == *name);
        let rule = exact
            .or_else(|| recipe.layers.iter().find(|r| r.matches.starts_with("re:") && self.hits(&r.matches, name)));
        if exact.is_none() && recipe.ignore.iter().any(|ignored| self.hits(ignored, name)) {
            return Ok(keep("ignored by the recipe"));
        }
        let mut weight = rule.and_then(|rule| rule.weight.as_deref()).unwrap_or(&self.weight);
        if name == "lm_head" && rule.is_none_or(|rule| rule.weight.is_none()) {
            match recipe.lm_head.as_deref() {
                Some(head) => weight = head,
                None => return Ok(keep("the output head stays floats unless `lm-head` says otherwise")),
            }
        }
        if matches!(weight, "none" | "f16" | "bf16" | "f32") {
            return Ok(keep("left in floats by the recipe"));
        }
        let mut format: Format = weight.parse()?;
        let activation: Activation =
            rule.and_then(|rule| rule.activation.as_deref()).unwrap_or(&self.activation).parse()?;
        let (mut pad, mut note) = (0, None);
        if let Granularity::Group(g) = format.granularity
            && !sizes.k.is_multiple_of(g as usize)
            && sizes.k > g as usize
        {
            let fault = format!("K is {}, no multiple of the group size {g}", sizes.k);
            match recipe.on_indivisible {
                None => {
                    return Err(Error::invalid(format!(
                        "{fault}; --on-indivisible skip, pad or smaller-group says what to do"
                    )));
                }
                Some(OnIndivisible::Skip) => return Ok(keep(&format!("{fault}: left in floats"))),
                Some(OnIndivisible::Pad) => {
                    pad = sizes.k.next_multiple_of(g as usize) - sizes.k;
                    note = Some(format!("{fault}: {pad} columns of zeros are added"));
                }
                Some(OnIndivisible::SmallerGroup) => {
                    let smaller =
                        [128, 96, 64, 48, 32, 16].into_iter().find(|s| *s < g && sizes.k.is_multiple_of(*s as usize));
                    let Some(smaller) = smaller else {
                        return Err(Error::invalid(format!("{fault}, and no smaller one from 16 divides it")));
                    };
                    format.granularity = Granularity::Group(smaller);
                    note = Some(format!("{fault}: groups of {smaller} are taken"));
                }
            }
        } else if let Granularity::Group(g) = format.granularity
            && sizes.k < g as usize
        {
            // A group longer than the row is the row.
            format.granularity = Granularity::Channel;
        }
        let faults = (format.container.check)(&format, sizes.n, sizes.k + pad);
        if !faults.is_empty() {
            return Err(Error::Invalid(faults));
        }
        // Small floats keep three bits or fewer of a number, as few as 4-bit integers do.
        let few_bits = matches!(format.code, Code::Int { bits: 2..=4, .. } | Code::Float(_));
        let own = rule.and_then(|rule| rule.method).or(recipe.method);
        let method = own.unwrap_or(if calibrated && few_bits { Method::Gptq } else { Method::Rtn });
        if method.calibrated() && !calibrated {
            return Err(Error::invalid(format!("method {method:?} takes calibration text; --text names it")));
        }
        Ok(LinearPlan { name: name.clone(), format: Some(format), activation: Some(activation), method, pad, note })
    }
}

/// Faults of weights themselves: numbers that are not finite, rows of one layer that are all zero.
pub fn preflight(name: &str, values: &[f32], k: usize) -> Vec<String> {
    let mut faults = Vec::new();
    if let Some(at) = values.iter().position(|x| !x.is_finite()) {
        let count = values.iter().filter(|x| !x.is_finite()).count();
        faults.push(format!(
            "{name}: {count} weights are not finite, the first {} at row {}, column {}; repair the checkpoint",
            values[at],
            at / k,
            at % k
        ));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(list: &[(&str, usize, usize)]) -> Vec<Sizes> {
        list.iter().map(|&(name, n, k)| Sizes { name: name.into(), n, k }).collect()
    }

    #[test]
    fn exact_names_win_over_patterns_in_order() {
        let recipe = RecipeFile::from_toml(
            "base = \"W4A16\"\nignore = [\"re:.*router\"]\n\
             [[layers]]\nmatch = \"re:.*down\"\nweight = \"int8-channel\"\n\
             [[layers]]\nmatch = \"re:.*\"\nactivation = \"int8-token\"\n\
             [[layers]]\nmatch = \"a.down\"\nweight = \"none\"\n",
        )
        .unwrap();
        let list = sizes(&[
            ("a.down", 64, 128),
            ("b.down", 64, 128),
            ("c.up", 64, 128),
            ("d.router", 8, 128),
            ("lm_head", 64, 128),
        ]);
        let plan = Plan::new(&recipe, &list, true).unwrap();
        let format = |name: &str| plan.of(name).unwrap().format.map(|f| f.to_string());
        assert_eq!(format("a.down"), None);
        assert_eq!(format("b.down").unwrap(), "int8-channel");
        assert_eq!(format("c.up").unwrap(), "int4-g128");
        assert_eq!(plan.of("c.up").unwrap().activation.unwrap().to_string(), "int8-token");
        assert_eq!(format("d.router"), None);
        assert_eq!(format("lm_head"), None);
        assert_eq!(plan.of("c.up").unwrap().method, Method::Gptq);
        assert_eq!(plan.of("b.down").unwrap().method, Method::Rtn);
    }

    #[test]
    fn every_fault_of_every_layer_comes_at_once() {
        let mut recipe = RecipeFile::preset("W4A16").unwrap();
        recipe.layers.push(super::super::LayerRule { matches: "nobody".into(), ..Default::default() });
        let list = sizes(&[("a", 64, 192), ("b", 64, 128), ("c", 64, 320)]);
        let Err(Error::Invalid(faults)) = Plan::new(&recipe, &list, false) else { panic!() };
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(
            faults[0].starts_with("a (64x192)") && faults[1].starts_with("c (64x320)") && faults[2].contains("nobody")
        );
        recipe.layers.clear();
        for (what, format, pad) in [
            (OnIndivisible::Skip, None, 0),
            (OnIndivisible::Pad, Some("int4-g128"), 64),
            (OnIndivisible::SmallerGroup, Some("int4-g96"), 0),
        ] {
            recipe.on_indivisible = Some(what);
            let plan = Plan::new(&recipe, &list, false).unwrap();
            let a = plan.of("a").unwrap();
            assert_eq!((a.format.map(|f| f.to_string()).as_deref(), a.pad), (format, pad), "{what:?}");
            assert!(a.note.is_some());
        }
    }

    #[test]
    fn weights_that_are_not_numbers_are_named() {
        let faults = preflight("x", &[0.0, f32::NAN, 1.0, f32::INFINITY], 2);
        assert!(faults[0].contains("2 weights") && faults[0].contains("row 0, column 1"), "{faults:?}");
        assert!(preflight("x", &[0.0; 4], 2).is_empty());
    }
}
