//! What every recipe costs on a trained model of other people, in one table; the bounds that recipes are held to are asserted.
//!
//! `cargo test --release --workspace --test calibrate_suite quality:: -- --ignored --nocapture` prints it, in some minutes.
//! Calibration text begins behind the text that is judged. Each figure is taken twice: over twelve windows, the rule by which the
//! data's expected values were made, and over 96, whose standard error is a third of that.

use crate::support;
use bitsmith_calibrate::engine::{Activations, Dense, FloatCache, Kernels};
use bitsmith_calibrate::evaluate::{Comparison, Windows, compare};
use bitsmith_calibrate::import::Checkpoint;
use bitsmith_calibrate::model::{Layers, Model};
use bitsmith_calibrate::quantize::{Prompts, quantize, sizes, within_budget};
use bitsmith_calibrate::recipe::{Calibration, Plan, RecipeFile};
use bitsmith_calibrate::text::Tokenizer;

const FLOATS: Dense = Dense { activations: Activations::Floats };
/// Windows of the rule, and of the longer look.
const COUNTS: [usize; 2] = [12, 96];
/// Tokens of a window.
const LENGTH: usize = 256;

/// The model, the windows that are judged and prompts from behind them.
struct Ground {
    model: Model,
    windows: [Windows; 2],
    prompts: Prompts,
    kernels: Kernels,
}

/// What a recipe costs over the windows of the rule, and over more.
struct Cost {
    rule: Comparison,
    long: Comparison,
}

impl Cost {
    /// How much of another's loss is won back, of perplexity and of divergence.
    fn closes(&self, nearest: &Cost) -> (f64, f64) {
        let share = |ours: f64, theirs: f64| 1.0 - ours / theirs;
        let found = (
            share(self.long.increase, nearest.long.increase),
            share(self.long.mean_divergence, nearest.long.mean_divergence),
        );
        println!("    wins back {:.0} % by perplexity, {:.0} % by divergence", 100.0 * found.0, 100.0 * found.1);
        found
    }
}

impl Ground {
    fn judge(&self, name: &str, model: &dyn Layers) -> Cost {
        let of =
            |windows| compare((&self.model, &FLOATS), (model, &self.kernels), windows, &FloatCache::boxed).unwrap();
        let [rule, long] = self.windows.each_ref().map(of);
        println!(
            "{name:58} {:+8.3} ± {:.3} {:+8.3} ± {:.3} %  {:.2e} nats  {:.1} %",
            100.0 * rule.increase,
            100.0 * rule.increase_error,
            100.0 * long.increase,
            100.0 * long.increase_error,
            long.mean_divergence,
            100.0 * long.top_1
        );
        Cost { rule, long }
    }

    fn of(&self, text: &str) -> Cost {
        let recipe = RecipeFile::from_toml(text).unwrap();
        let plan = Plan::new(&recipe, &sizes(&self.model), true).unwrap();
        let done = quantize(&self.model, &recipe, &plan, Some(&self.prompts), &FLOATS, &mut |_, _| {}).unwrap();
        self.judge(&text.replace('\n', ", "), &done.model)
    }

    fn within(&self, text: &str) -> Cost {
        let recipe = RecipeFile::from_toml(text).unwrap();
        let made = within_budget(
            &self.model,
            &recipe,
            &sizes(&self.model),
            &self.prompts,
            &FLOATS,
            &self.kernels,
            &mut |_, _| {},
        )
        .unwrap();
        let cost = self.judge(&text.replace('\n', ", "), &made.quantization.model);
        let found = &made.found;
        println!(
            "    {:+.3} % of the prompts' perplexity before, {:+.3} ± {:.3} % now; {} to {} bytes; in 8 bits or floats: {}",
            100.0 * found.before.increase,
            100.0 * found.now.increase,
            100.0 * found.now.increase_error,
            found.bytes_before,
            found.bytes_now,
            found.fallen().join(" ")
        );
        assert!(found.met);
        cost
    }
}

#[test]
#[ignore = "takes minutes"]
fn what_recipes_cost() {
    let Some(data) = support::data("", "what_recipes_cost") else { return };
    let folder = data.join("models/tinystories-656k");
    let text = std::fs::read_to_string(data.join("text/exl2_tiny.utf8")).unwrap();
    let ids = Tokenizer::open(&folder).unwrap().encode(&text).unwrap();
    let how = Calibration { samples: 128, length: LENGTH, seed: 0 };
    let ground = Ground {
        model: Checkpoint::open(&folder).unwrap().model().unwrap(),
        windows: COUNTS.map(|count| Windows::new(&ids, Some(1), LENGTH, count).unwrap()),
        prompts: Prompts::new(&ids, Some(1), &how, COUNTS[1] * LENGTH).unwrap(),
        kernels: Kernels::new(bitsmith_runtime::open("cpu:2").unwrap()),
    };
    let mut missed = Vec::new();
    let mut demand = |what: &str, holds: bool| {
        if !holds {
            println!("    MISSED: {what}");
            missed.push(what.to_owned());
        }
    };
    let w8 = ground.of("weight = \"int8-channel\"\nmethod = \"rtn\"");
    demand("8 bits per channel within 0.3 %", w8.rule.increase < 0.003 && w8.long.increase < 0.003);
    let w4 = ground.of("weight = \"int4-g32-asym\"\nmethod = \"rtn\"");
    demand("4 bits in groups of 32 with zeros within 0.6 % by the rule", w4.rule.increase < 0.006);
    for (format, methods) in
        [("int4-g64", &[("gptq", 0.3), ("awq", 0.1)][..]), ("int3-g32", &[("gptq", 0.3)]), ("int4-g128-asym", &[])]
    {
        let nearest = ground.of(&format!("weight = \"{format}\"\nmethod = \"rtn\""));
        for (method, share) in methods {
            let (perplexity, divergence) =
                ground.of(&format!("weight = \"{format}\"\nmethod = \"{method}\"")).closes(&nearest);
            demand(&format!("{method} at {format}"), perplexity >= *share && divergence >= *share);
        }
        if methods.is_empty() {
            let (_, divergence) = ground.of(&format!("weight = \"{format}\"\nmethod = \"awq\"")).closes(&nearest);
            demand("AWQ with zeros, by divergence", divergence >= 0.1);
        }
    }
    ground.of("base = \"W8A8\"");
    let smooth = ground.of("base = \"W8A8\"\nsmooth = true");
    demand("SmoothQuant W8A8 within 0.5 %", smooth.rule.increase < 0.005 && smooth.long.increase < 0.005);
    for base in ["FP8_DYNAMIC", "FP8"] {
        ground.of(&format!("base = \"{base}\""));
        ground.of(&format!("base = \"{base}\"\nactivation = \"f16\""));
        let within = ground.within(&format!("base = \"{base}\"\n[budget]\nperplexity-increase = 0.003"));
        demand(
            &format!("{base} within a budget of 0.3 %"),
            within.rule.increase < 0.003 && within.long.increase < 0.003,
        );
    }
    ground.of("base = \"W4A8\"");
    let w2 = ground.of("base = \"W2A16\"\nmethod = \"rtn\"");
    demand("2 bits break, and it shows", w2.long.increase > 1.0);
    assert!(missed.is_empty(), "{missed:#?}");
}
