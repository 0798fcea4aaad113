//! Recipe files: TOML or YAML that names a preset and says what is different, for all layers or for some.
//!
//! ```toml
//! base = "W4A16"                      # a preset; the fields below replace its parts
//! method = "gptq"                     # rtn, mse, percentile, gptq, awq; left out: by width and calibration
//! ignore = ["re:.*mlp.gate$"]         # layers that stay floats, beside the defaults
//! lm-head = "int8-channel"            # left out: stays floats
//! on-indivisible = "smaller-group"    # skip, pad or smaller-group; left out: an error
//!
//! [[layers]]                          # exact names win over patterns, patterns in this order, then the default
//! match = "re:.*down_proj"
//! weight = "int8-channel"
//! ```
//!
//! Reads text, makes a [`RecipeFile`]; always holds: unknown fields are refused with the accepted ones.

use super::{Method, Recipe};
use bitsmith_compiler::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What to do to a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RecipeFile {
    /// A name of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The preset that it starts from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Format of weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<String>,
    /// Format of activations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation: Option<String>,
    /// Format of keys and values: `f16`, `int8-token-head`, `fp8-tensor`, `int4-kivi` …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv: Option<String>,
    /// How codes are found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// Group sizes to choose from, per layer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub group_sizes: Vec<u32>,
    /// SmoothQuant's strength.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smooth: Option<Smooth>,
    /// Rotate the residual stream first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rotate: bool,
    /// Share of columns to split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<f32>,
    /// GPTQ: columns with the largest inputs first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub act_order: bool,
    /// GPTQ: share of the mean diagonal that is added to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damping: Option<f64>,
    /// GPTQ and AWQ: search a clip for each group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<bool>,
    /// Percentile of the method of that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percentile: Option<f64>,
    /// Layers that stay floats.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignore: Vec<String>,
    /// Format of the output head; left out, it stays in floats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lm_head: Option<String>,
    /// What to do where K is no multiple of the group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_indivisible: Option<OnIndivisible>,
    /// How much text, how long, which seed.
    #[serde(default)]
    pub calibration: Calibration,
    /// How much perplexity may rise before layers fall back to more bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// Rules for some layers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerRule>,
}

/// What is different for some layers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LayerRule {
    /// An exact name, or `re:` and a regular expression that must match from the start of the name.
    #[serde(rename = "match")]
    pub matches: String,
    /// Format of weights; `none` leaves them floats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<String>,
    /// Format of activations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation: Option<String>,
    /// How codes are found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
}

/// SmoothQuant's strength: a number, or the best of several by calibration.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Smooth {
    /// This α.
    Alpha(f32),
    /// `true`: the best of 0.5 to 0.9 for each norm.
    Auto(bool),
}

/// What to do where K is no multiple of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnIndivisible {
    /// Leave the layer in floats.
    Skip,
    /// Add columns of zeros.
    Pad,
    /// Take the largest smaller group that divides.
    SmallerGroup,
}

/// How much text, how long, which seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Calibration {
    /// Prompts.
    pub samples: usize,
    /// Tokens of each.
    pub length: usize,
    /// Which places of the text they are taken from.
    pub seed: u64,
}

impl Default for Calibration {
    fn default() -> Calibration {
        Calibration { samples: 128, length: 512, seed: 0 }
    }
}

/// How much perplexity may rise, and what matrices fall back to until it rises no more than that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Budget {
    /// The share: 0.01 is one per cent.
    pub perplexity_increase: f64,
    /// Formats of weights to fall back to, one after another; inputs stay floats there. `none` leaves weights floats too.
    #[serde(default = "Budget::steps")]
    pub fall_back: Vec<String>,
}

impl Budget {
    /// A budget with the usual steps: 8 bits per channel, then floats.
    pub fn new(perplexity_increase: f64) -> Budget {
        Budget { perplexity_increase, fall_back: Budget::steps() }
    }

    fn steps() -> Vec<String> {
        ["int8-channel", "none"].map(str::to_owned).to_vec()
    }
}

impl RecipeFile {
    /// A preset as it is.
    pub fn preset(name: &str) -> Result<RecipeFile> {
        let recipe = Recipe::by_name(name)?;
        Ok(RecipeFile { base: Some(recipe.name.to_owned()), ..RecipeFile::default() })
    }

    /// A preset by name, or a file by path: what a command line takes.
    pub fn resolve(name_or_path: &str) -> Result<RecipeFile> {
        match RecipeFile::preset(name_or_path) {
            Ok(recipe) => Ok(recipe),
            Err(_) if Path::new(name_or_path).is_file() => RecipeFile::open(Path::new(name_or_path)),
            Err(Error::Invalid(mut faults)) => {
                faults.iter_mut().for_each(|fault| *fault += ", or the path of a recipe file (.toml, .yaml)");
                Err(Error::Invalid(faults))
            }
            Err(other) => Err(other),
        }
    }

    /// Reads a file.
    pub fn open(path: &Path) -> Result<RecipeFile> {
        let text = crate::file::safetensors::read_text(path)?;
        let yaml = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("yaml") || e.eq_ignore_ascii_case("yml"));
        let read = if yaml { RecipeFile::from_yaml(&text) } else { RecipeFile::from_toml(&text) };
        read.map_err(|error| Error::invalid(format!("{}: {error}", path.display())))
    }

    /// Reads TOML.
    pub fn from_toml(text: &str) -> Result<RecipeFile> {
        toml::from_str(text).map_err(|error| Error::invalid(error.to_string()))
    }

    /// Reads YAML.
    pub fn from_yaml(text: &str) -> Result<RecipeFile> {
        serde_norway::from_str(text).map_err(|error| Error::invalid(error.to_string()))
    }

    /// Writes TOML.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|error| Error::invalid(error.to_string()))
    }

    /// Writes YAML.
    pub fn to_yaml(&self) -> Result<String> {
        serde_norway::to_string(self).map_err(|error| Error::invalid(error.to_string()))
    }

    /// The preset behind it, if it names one.
    pub fn base(&self) -> Result<Option<&'static Recipe>> {
        self.base.as_deref().map(Recipe::by_name).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_languages_say_the_same() {
        let toml = "base = \"W4A16\"\nmethod = \"gptq\"\nignore = [\"lm_head\"]\non-indivisible = \"smaller-group\"\n\
                    [calibration]\nsamples = 64\n[[layers]]\nmatch = \"re:.*down_proj\"\nweight = \"int8-channel\"\n";
        let yaml = "base: W4A16\nmethod: gptq\nignore: [lm_head]\non-indivisible: smaller-group\n\
                    calibration: {samples: 64}\nlayers:\n- match: 're:.*down_proj'\n  weight: int8-channel\n";
        let recipe = RecipeFile::from_toml(toml).unwrap();
        assert_eq!(recipe, RecipeFile::from_yaml(yaml).unwrap());
        assert_eq!(recipe.calibration, Calibration { samples: 64, ..Calibration::default() });
        assert_eq!(RecipeFile::from_toml(&recipe.to_toml().unwrap()).unwrap(), recipe);
        assert_eq!(RecipeFile::from_yaml(&recipe.to_yaml().unwrap()).unwrap(), recipe);
    }

    #[test]
    fn a_field_that_is_not_known_is_refused_with_its_name() {
        let error = RecipeFile::from_toml("bass = \"W4A16\"").unwrap_err().to_string();
        assert!(error.contains("bass") && error.contains("base"), "{error}");
        assert!(RecipeFile::from_yaml("method: magic").unwrap_err().to_string().contains("gptq"));
        assert!(RecipeFile::resolve("W5A5").unwrap_err().to_string().contains(".toml"));
    }
}
