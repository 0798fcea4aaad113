//! The small trained model of this repository through everything: engine, kernels, quantizers, export, calibration.

mod caches;

use crate::support;
use bitsmith_calibrate::collect::{collect, read_layer, read_manifest};
use bitsmith_calibrate::engine::{Activations, Dense, Engine, FloatCache, Kernels};
use bitsmith_calibrate::evaluate::{Comparison, Windows, compare, perplexity, probe, read_probes};
use bitsmith_calibrate::export::{Target, export};
use bitsmith_calibrate::import::Checkpoint;
use bitsmith_calibrate::model::{Layers, Model};
use bitsmith_calibrate::quantize::{LinearReport, Prompts, quantize, rotate::Rotated, sizes, within_budget};
use bitsmith_calibrate::recipe::{Budget, Calibration, Plan, RecipeFile, Sizes};
use bitsmith_calibrate::report::{Subject, html, markdown, report};
use bitsmith_calibrate::text::Tokenizer;
use std::path::PathBuf;
use std::sync::LazyLock;

const FLOATS: Dense = Dense { activations: Activations::Floats };
const SIMULATED: Dense = Dense { activations: Activations::Quantized };

fn folder() -> PathBuf {
    support::own_model()
}

/// The model, the windows that it is judged on, and prompts from behind them.
static OWN: LazyLock<(Model, Windows, Prompts)> = LazyLock::new(|| {
    let model = Checkpoint::open(folder()).unwrap().model().unwrap();
    let text = std::fs::read_to_string(folder().join("text.txt")).unwrap();
    let ids = Tokenizer::open(folder()).unwrap().encode(&text).unwrap();
    let windows = Windows::new(&ids, model.config.bos, 128, 16).unwrap();
    let how = Calibration { samples: 128, length: 128, seed: 7 };
    let prompts = Prompts::new(&ids, model.config.bos, &how, 16 * 128).unwrap();
    (model, windows, prompts)
});

/// A quantized model in memory.
struct Made {
    model: Model,
    reports: Vec<LinearReport>,
}

fn made(recipe: &str) -> Made {
    let (model, _, prompts) = &*OWN;
    let recipe = RecipeFile::from_toml(recipe).unwrap();
    let plan = Plan::new(&recipe, &sizes(model), true).unwrap();
    let done = quantize(model, &recipe, &plan, Some(prompts), &FLOATS, &mut |_, _| {}).unwrap();
    Made { model: done.model.whole().unwrap(), reports: done.reports }
}

fn judged(model: &Model, executor: &dyn bitsmith_calibrate::engine::Executor) -> Comparison {
    let (own, windows, _) = &*OWN;
    compare((own, &FLOATS), (model, executor), windows, &FloatCache::boxed).unwrap()
}

#[test]
fn it_has_learnt_its_grammar() {
    let (model, windows, _) = &*OWN;
    let bytes = std::fs::metadata(folder().join("model.safetensors")).unwrap().len();
    assert!(bytes < 2 << 20 && model.config.shape.head_dim >= 32);
    let engine = Engine::new(model, &FLOATS).unwrap();
    let found = perplexity((model, &FLOATS), windows, &FloatCache::boxed).unwrap();
    println!("perplexity {:.3} of {} words", found.perplexity, model.config.shape.vocab);
    assert!(found.perplexity < 10.0, "{}", found.perplexity);
    let tokenizer = Tokenizer::open(folder()).unwrap();
    for task in read_probes(&folder().join("probes"), 100).unwrap() {
        let result = probe(&engine, &tokenizer, &task, &FloatCache::boxed).unwrap();
        println!("{}: {:.2} ({:.2} to {:.2})", result.name, result.accuracy, result.low, result.high);
        assert!(result.low > 0.6, "{} is at {}", result.name, result.accuracy);
    }
}

#[test]
fn corpus_and_files_belong_together() {
    let text = std::fs::read_to_string(folder().join("text.txt")).unwrap();
    assert_eq!(text, support::corpus::text(3, 24_000));
    let ids = Tokenizer::open(folder()).unwrap().encode(&text).unwrap();
    assert!(ids.iter().all(|id| *id > 2), "a word is not in the vocabulary");
    assert_eq!(OWN.0.config.shape.vocab, support::corpus::vocabulary().len());
}

#[test]
fn losses_of_formats_and_gains_of_quantizers() {
    let at = |recipe: &str, executor: &dyn bitsmith_calibrate::engine::Executor| {
        let found = judged(&made(recipe).model, executor);
        println!("{recipe:60} {:+.3} %  {:.3e} nats", 100.0 * found.increase, found.mean_divergence);
        found
    };
    let w8 = at("weight = \"int8-channel\"\nmethod = \"rtn\"", &FLOATS);
    assert!(w8.increase.abs() < 0.003 && w8.mean_divergence < 1e-3);
    let fp8 = at("base = \"FP8\"", &SIMULATED);
    assert!(fp8.increase < 0.01, "{}", fp8.increase);
    let w8a8 = at("base = \"W8A8\"\nsmooth = true", &SIMULATED);
    assert!(w8a8.increase < 0.005, "{}", w8a8.increase);
    for format in ["int4-g64", "int3-g32-asym"] {
        let nearest = at(&format!("weight = \"{format}\"\nmethod = \"rtn\""), &FLOATS);
        let gptq = at(&format!("weight = \"{format}\"\nmethod = \"gptq\""), &FLOATS);
        assert!(gptq.mean_divergence < 0.7 * nearest.mean_divergence, "{format}");
    }
    let nearest = at("weight = \"int4-g64-asym\"\nmethod = \"rtn\"", &FLOATS);
    let awq = at("weight = \"int4-g64-asym\"\nmethod = \"awq\"", &FLOATS);
    // So small a model has no channels that stand out, so AWQ has nothing to win; it must not break it either.
    assert!(awq.mean_divergence < 1.3 * nearest.mean_divergence);
    let w2 = at("weight = \"int2-g32-asym\"\nmethod = \"rtn\"", &FLOATS);
    assert!(w2.mean_divergence > 10.0 * nearest.mean_divergence, "two bits should show: {}", w2.mean_divergence);
}

/// Kernels on the CPU against the reference that dequantizes weights and, where the recipe quantizes them, inputs.
#[test]
fn kernels_compute_what_the_recipes_mean() {
    let kernels = Kernels::new(bitsmith_runtime::open("cpu:2").unwrap());
    for (recipe, bound) in [
        ("base = \"W4A16\"", 1e-3),
        ("base = \"W3A16\"", 1e-3),
        ("base = \"W8A8\"", 1e-3),
        ("base = \"W4A8\"", 1e-3),
        ("base = \"FP8\"", 1e-3),
        ("base = \"FP8_DYNAMIC\"", 1e-3),
        ("base = \"FP8_BLOCK\"", 1e-3),
        ("base = \"NVFP4\"", 1e-3),
        (
            "weight = \"q4_k\"\nactivation = \"int8-token\"\non-indivisible = \"skip\"\n[[layers]]\nmatch = \"re:.*(q|k|v|o|gate|up)_proj\"\nweight = \"q4_0\"",
            1e-3,
        ),
        ("base = \"W4A16\"\nsplit = 0.02", 1e-3),
    ] {
        let done = made(recipe);
        let (simulated, real) = (judged(&done.model, &SIMULATED), judged(&done.model, &kernels));
        let off = real.model.perplexity / simulated.model.perplexity - 1.0;
        println!(
            "{recipe:40} reference {:.5}, kernels {:.5} ({:+.1e})",
            simulated.model.perplexity, real.model.perplexity, off
        );
        assert!(off.abs() < bound, "{recipe}: {off:e}");
        assert!(real.increase.abs() < 1.0, "{recipe}");
    }
}

#[test]
fn every_target_reads_back_number_for_number() {
    let (own, ..) = &*OWN;
    let expected = |model: &Model| -> Vec<Vec<f32>> {
        model.linears().into_iter().map(|l| l.weight.values().into_owned()).collect()
    };
    for (recipe, targets) in [
        (
            "weight = \"int4-g64\"\nmethod = \"gptq\"",
            &[Target::CompressedTensors, Target::Gptq, Target::Awq, Target::Packed][..],
        ),
        // Rows of most of its matrices are as long as a group.
        ("base = \"W4A16\"", &[Target::CompressedTensors, Target::Gptq, Target::Awq]),
        ("weight = \"int4-g32\"\nmethod = \"rtn\"", &[Target::Gguf, Target::CompressedTensors, Target::Awq]),
        ("weight = \"int8-g32\"\nmethod = \"rtn\"", &[Target::Gguf, Target::Packed]),
        (
            "weight = \"int4-g32-asym\"\nmethod = \"awq\"",
            &[Target::CompressedTensors, Target::Gptq, Target::Awq, Target::Packed],
        ),
        ("weight = \"int3-g32\"\nmethod = \"gptq\"", &[Target::Gptq, Target::Packed]),
        ("base = \"W8A8\"\nsmooth = 0.5", &[Target::CompressedTensors, Target::Packed]),
        ("base = \"FP8\"", &[Target::CompressedTensors, Target::Packed]),
        ("base = \"FP8_BLOCK\"", &[Target::CompressedTensors, Target::Packed]),
        ("base = \"NVFP4\"", &[Target::CompressedTensors]),
        ("weight = \"ct-mxfp4\"", &[Target::CompressedTensors]),
        ("weight = \"ternary-g128\"", &[Target::Packed]),
        ("weight = \"int4-g32\"\nmethod = \"gptq\"\nsplit = 0.03\nrotate = true", &[Target::Packed]),
        (
            "weight = \"int4-g32\"\n[[layers]]\nmatch = \"re:.*down_proj\"\nweight = \"int8-channel\"",
            &[Target::CompressedTensors],
        ),
    ] {
        let done = made(recipe);
        for &target in targets {
            let place = tempfile::tempdir().unwrap();
            let out = place.path().join(if target == Target::Gguf { "model.gguf" } else { "model" });
            export(&done.model, target, &out, Some(&folder()))
                .unwrap_or_else(|e| panic!("{recipe} as {target:?}: {e}"));
            let again =
                Checkpoint::open(&out).unwrap().model().unwrap_or_else(|e| panic!("{recipe} as {target:?}: {e}"));
            assert!(expected(&again) == expected(&done.model), "{recipe} as {target:?}");
            let activations = |m: &Model| -> Vec<Option<String>> {
                let shown = |a: bitsmith_compiler::op::Activation| a.to_string();
                m.linears().into_iter().map(|l| l.activation.map(shown).filter(|a| a != "f16")).collect()
            };
            if matches!(target, Target::CompressedTensors | Target::Packed) {
                let read: Vec<_> = activations(&again);
                assert_eq!(read, activations(&done.model), "{recipe} as {target:?}");
            }
            let (a, b) = (Engine::new(&done.model, &FLOATS).unwrap(), Engine::new(&again, &FLOATS).unwrap());
            let (a, b) = (a.logits(&[1, 5, 9, 40]).unwrap(), b.logits(&[1, 5, 9, 40]).unwrap());
            let worst = a.iter().zip(&b).fold(0.0f32, |w, (a, b)| w.max((a - b).abs()));
            assert!(worst < 1e-4, "{recipe} as {target:?}: logits differ by {worst}");
        }
    }
    // What a target cannot hold is refused by name, and nothing is left behind.
    let place = tempfile::tempdir().unwrap();
    let error =
        export(&made("weight = \"ternary-g128\"").model, Target::Gptq, &place.path().join("x"), None).unwrap_err();
    assert!(error.to_string().contains("model.layers.0.self_attn.q_proj"), "{error}");
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    assert!(
        export(own, Target::CompressedTensors, place.path(), None).unwrap_err().to_string().contains("there already")
    );
}

#[test]
fn a_rotated_model_computes_the_same() {
    let (own, windows, _) = &*OWN;
    let turned = Rotated::new(own, 3).whole().unwrap();
    let found = compare((own, &FLOATS), (&turned, &FLOATS), windows, &FloatCache::boxed).unwrap();
    assert!(found.max_logit_error < 1e-3 && found.mean_divergence < 1e-7, "{found:?}");
    assert!(turned.linears()[0].weight.values() != own.linears()[0].weight.values());
}

#[test]
fn layers_fall_back_until_the_budget_is_met() {
    let (own, _, prompts) = &*OWN;
    let prompts = Prompts { list: prompts.list[..16].to_vec() };
    let bytes = |reports: &[LinearReport]| reports.iter().map(|r| r.bytes_after).sum::<usize>();
    let search = |text: &str, executor: &dyn bitsmith_calibrate::engine::Executor| {
        let recipe = RecipeFile::from_toml(text).unwrap();
        (within_budget(own, &recipe, &sizes(own), &prompts, &FLOATS, executor, &mut |_, _| {}).unwrap(), recipe)
    };
    let two_bits = "weight = \"int2-g32-asym\"\nmethod = \"rtn\"\n[budget]\nperplexity-increase = ";
    let coded_inputs = "base = \"W4A8\"\nmethod = \"rtn\"\n[budget]\nperplexity-increase = ";
    for (text, budget, executor) in [(two_bits, 0.01, &FLOATS), (coded_inputs, 0.001, &SIMULATED)] {
        let (made, recipe) = search(&format!("{text}{budget}"), executor);
        assert_eq!(recipe.budget, Some(Budget::new(budget)));
        let found = &made.found;
        println!(
            "{:+.3} % before, {:+.3} % now, {} of {} fallen, {} to {} bytes",
            100.0 * found.before.increase,
            100.0 * found.now.increase,
            found.fallen().len(),
            own.linears().len(),
            found.bytes_before,
            found.bytes_now
        );
        assert!(found.before.increase + 2.0 * found.before.increase_error > budget && found.met);
        assert!(found.now.increase + 2.0 * found.now.increase_error <= budget);
        let fallen = found.fallen();
        assert!(!fallen.is_empty() && made.recipe.budget.is_none() && made.recipe.layers.len() == fallen.len());
        assert_eq!(found.bytes_now, bytes(&made.quantization.reports));
        let model = made.quantization.model.whole().unwrap();
        for linear in model.linears() {
            let fell = fallen.contains(&&linear.name[..]);
            assert_eq!(fell, ["int8-channel", "f32"].contains(&&linear.weight.format_name()[..]), "{}", linear.name);
            let coded = linear.activation.is_some_and(|a| a.to_string() == "int8-token");
            assert_eq!(coded, !fell && text == coded_inputs, "{}", linear.name);
        }
        // The recipe that was written down makes the same model without a search.
        let again = RecipeFile::from_toml(&made.recipe.to_toml().unwrap()).unwrap();
        let plan = Plan::new(&again, &sizes(own), true).unwrap();
        let again = quantize(own, &again, &plan, Some(&prompts), &FLOATS, &mut |_, _| {}).unwrap();
        let again = again.model.whole().unwrap();
        let pairs = model.linears().into_iter().zip(again.linears());
        pairs.for_each(|(a, b)| assert!(a.weight.values() == b.weight.values(), "{}", a.name));
    }
    // A budget that is met falls nowhere; one that cannot be met by its steps says so.
    let (easy, _) = search("base = \"W8A16\"\n[budget]\nperplexity-increase = 0.02", &FLOATS);
    assert!(easy.found.met && easy.found.fallen().is_empty() && easy.recipe.layers.is_empty());
    let (hard, _) = search(
        "weight = \"binary-g128\"\nmethod = \"rtn\"\n[budget]\nperplexity-increase = 0.01\nfall-back = [\"int2-g32-asym\"]",
        &FLOATS,
    );
    assert!(!hard.found.met && hard.found.fallen().len() == own.linears().len());
}

#[test]
fn faults_of_a_budget_come_before_any_work() {
    let plan = |text: &str, k: usize| {
        let recipe =
            RecipeFile::from_toml(&format!("base = \"W8A16\"\n[budget]\nperplexity-increase = {text}")).unwrap();
        Plan::new(&recipe, &[Sizes { name: "a".into(), n: 64, k }], true)
    };
    let error = plan("-1.0\nfall-back = [\"int9\", \"int8-g96\", \"none\"]", 128).unwrap_err().to_string();
    let named = ["a budget of -1", "int9", "a: fall-back `int8-g96`: K is 128, no multiple of the group size 96"];
    assert!(named.iter().all(|fault| error.contains(fault)), "{error}");
    assert!(plan("nan", 128).unwrap_err().to_string().contains("a budget of NaN"));
    assert!(plan("0.01", 128).is_ok() && plan("0.01\nfall-back = [\"int8-g96\"]", 192).is_ok());
}

#[test]
fn calibration_goes_on_where_it_was_cut_off() {
    let (_, _, prompts) = &*OWN;
    let prompts = Prompts { list: prompts.list[..6].to_vec() };
    let how = Calibration { samples: 6, length: 128, seed: 7 };
    let checkpoint = Checkpoint::open(folder()).unwrap();
    let (whole, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let done = collect(&checkpoint, &prompts, &how, &FLOATS, whole.path(), &mut |_, _| {}).unwrap();
    assert_eq!((done.done, done.tokens), (2, 6 * 128));
    // Cut off after the first layer: the progress call ends the run, as a signal would.
    let end = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        collect(&checkpoint, &prompts, &how, &FLOATS, cut.path(), &mut |_, _| panic!("cut off"))
    }));
    assert!(end.is_err());
    assert_eq!(read_manifest(cut.path()).unwrap().unwrap().done, 1);
    let mut now = Vec::new();
    collect(&checkpoint, &prompts, &how, &FLOATS, cut.path(), &mut |at, _| now.push(at)).unwrap();
    assert_eq!(now, [2]);
    for layer in 0..2 {
        let sites = read_layer(whole.path(), layer).unwrap();
        assert_eq!(sites, read_layer(cut.path(), layer).unwrap());
        let names: Vec<&str> = sites.iter().map(|s| s.site.as_str()).collect();
        assert_eq!(names, ["attention", "output", "mlp", "down"]);
        assert!(sites.iter().all(|s| s.rows == 6 * 128 && s.absmax.iter().all(|x| x.is_finite())));
    }
    let other = Calibration { seed: 8, ..how };
    let error = collect(&checkpoint, &prompts, &other, &FLOATS, cut.path(), &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("another model, text or seed"));
}

#[test]
fn the_same_seed_gives_the_same_codes() {
    let recipe = "weight = \"int4-g64\"\nmethod = \"gptq\"\n[calibration]\nseed = 3";
    let values =
        |q: &Made| -> Vec<Vec<f32>> { q.model.linears().into_iter().map(|l| l.weight.values().into_owned()).collect() };
    assert!(values(&made(recipe)) == values(&made(recipe)));
}

#[test]
fn a_report_says_where_it_breaks() {
    let (own, windows, _) = &*OWN;
    let tokenizer = Tokenizer::open(folder()).unwrap();
    let tasks = read_probes(&folder().join("probes"), 20).unwrap();
    let windows = Windows { list: windows.list[..4].to_vec(), ..windows.clone() };
    let verdict = |recipe: &str| {
        let done = made(recipe);
        let kernels = Kernels::new(bitsmith_runtime::open("cpu:2").unwrap());
        let made = report(&Subject {
            reference: own,
            model: &done.model,
            floats: &FLOATS,
            executor: &kernels,
            cache: &FloatCache::boxed,
            windows: &windows,
            probes: Some((&tasks, &tokenizer)),
            noted: &done.reports,
            names: ["<q>", "model", "scheme", "text", "kernels", "f32"].map(str::to_owned),
        })
        .unwrap();
        assert_eq!((made.layers.len(), made.worst.len(), made.performance.len()), (14, 5, 2));
        assert!(made.bytes_after < made.bytes_before && made.probes.len() == 5);
        let page = html(&made).unwrap();
        assert!(page.contains("&lt;q&gt;") && !page.contains("<q>") && page.matches("<svg").count() == 6);
        assert!(!page.contains("NaN") && page.contains(&made.verdict));
        let text = markdown(&made);
        assert!(text.contains("down_proj") && text.contains("4 windows of 128 tokens"), "{text}");
        made.verdict
    };
    let (good, bad) = (verdict("base = \"W8A16\""), verdict("weight = \"binary-g128\"\nmethod = \"rtn\""));
    assert!(good.starts_with("excellent"), "{good}");
    assert!(bad.starts_with("broken"), "{bad}");
}
