//! Recipes: the names that users know, and the formats behind them.
//!
//! Reads a name, makes the format of the weights and that of the activations, as strings of the format grammar; or reads
//! a recipe file ([`RecipeFile`]), which starts from a name and says what is different, and for which layers. Always
//! holds: names are unique, whatever their case.

mod file;
mod plan;

pub use file::{Budget, Calibration, LayerRule, OnIndivisible, RecipeFile, Smooth};
pub use plan::{LinearPlan, Method, Plan, Sizes, preflight};

use bitsmith_compiler::{Error, Result};

/// What one recipe does to a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// The name that users say.
    pub name: &'static str,
    /// The format of the weights, in the format grammar.
    pub weight: &'static str,
    /// The activations: `f16`, or how they are quantized while the model runs.
    pub activation: &'static str,
}

/// Every recipe. Names follow the preset schemes of compressed-tensors where it has one.
pub const RECIPES: &[Recipe] = &[
    recipe("W8A16", "int8-channel", "f16"),
    recipe("W4A16", "int4-g128", "f16"),
    recipe("W4A16_ASYM", "int4-g128-asym", "f16"),
    recipe("W3A16", "int3-g128", "f16"),
    recipe("W2A16", "int2-g64-asym", "f16"),
    recipe("W8A8", "int8-channel", "int8-token"),
    recipe("W4A8", "int4-g128", "int8-token"),
    // One static scale per tensor on both sides, found by calibration.
    recipe("FP8", "fp8e4m3-tensor", "fp8-tensor"),
    recipe("FP8_DYNAMIC", "fp8e4m3-channel", "fp8-token"),
    // Activations are scaled per token and 128 channels, as the checkpoints of this kind expect.
    recipe("FP8_BLOCK", "fp8e4m3-block128", "fp8-g128"),
    recipe("NVFP4", "nvfp4", "f16"),
    recipe("MXFP4", "mxfp4", "f16"),
    recipe("NF4", "nf4", "f16"),
    recipe("ternary", "ternary-g128", "f16"),
    recipe("binary", "binary-g128", "f16"),
    recipe("log", "log4-g32", "f16"),
];

const fn recipe(name: &'static str, weight: &'static str, activation: &'static str) -> Recipe {
    Recipe { name, weight, activation }
}

impl Recipe {
    /// The recipe of a name; case does not matter.
    pub fn by_name(name: &str) -> Result<&'static Recipe> {
        RECIPES.iter().find(|recipe| recipe.name.eq_ignore_ascii_case(name)).ok_or_else(|| {
            let names: Vec<_> = RECIPES.iter().map(|recipe| recipe.name).collect();
            let name = crate::file::clip(name);
            Error::invalid(format!("recipe `{name}` is unknown; accepted: {}", names.join(", ")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found_in_any_case() {
        for (index, recipe) in RECIPES.iter().enumerate() {
            assert_eq!(Recipe::by_name(&recipe.name.to_lowercase()).unwrap(), recipe);
            assert!(RECIPES[..index].iter().all(|other| !other.name.eq_ignore_ascii_case(recipe.name)));
        }
    }

    #[test]
    fn an_unknown_name_lists_the_accepted_ones() {
        let text = Recipe::by_name("W5A5").unwrap_err().to_string();
        assert!(RECIPES.iter().all(|recipe| text.contains(recipe.name)), "{text}");
    }
}
