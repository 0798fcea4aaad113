//! Time and memory at the size of real layers. Run by name:
//! `cargo test --release --workspace --test calibrate_suite large:: -- --ignored --nocapture --test-threads 1`.

use bitsmith_calibrate::collect::collect;
use bitsmith_calibrate::engine::{Activations, Dense};
use bitsmith_calibrate::import::Checkpoint;
use bitsmith_calibrate::model::Layers;
use bitsmith_calibrate::quantize::{Prompts, Stats, gptq::Gptq, quantize};
use bitsmith_calibrate::recipe::{Calibration, Plan, RecipeFile};
use bitsmith_compiler::format::Format;
use half::bf16;
use safetensors::{Dtype, tensor::TensorView};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// 128 prompts of 2048 tokens into the moments of a 4096 x 4096 layer, and the layer through GPTQ.
#[test]
#[ignore = "takes a minute"]
fn gptq_of_4096_by_4096() {
    let (n, k) = (4096, 4096);
    let mut rng = fastrand::Rng::with_seed(1);
    let w: Vec<f32> = (0..n * k).map(|_| rng.f32() - 0.5).collect();
    let x: Vec<f32> = (0..2048 * k).map(|_| rng.f32() - 0.5).collect();
    let start = Instant::now();
    let mut stats = Stats::new(k, true);
    for _ in 0..128 {
        stats.add(&x);
    }
    let moments = start.elapsed().as_secs_f64();
    let format: Format = "ct-int4-g128".parse().unwrap();
    let start = Instant::now();
    let found = Gptq::default().quantize(&w, n, k, &format, &stats).unwrap();
    let codes = start.elapsed().as_secs_f64();
    println!("moments of {} tokens {moments:.1} s, codes {codes:.1} s, together {:.1} s", stats.rows, moments + codes);
    assert_eq!(found.damping, Some(0.01));
}

fn resident(what: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(what)).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap_or(0.0) * 1024.0
}

const HIDDEN: usize = 4096;
const FFN: usize = 11008;
const VOCAB: usize = 512;
/// Bytes of a layer in `f32`.
const LAYER: f64 = ((4 * HIDDEN * HIDDEN + 3 * HIDDEN * FFN) * 4) as f64;

/// A checkpoint with layers of the size of Llama 2 7B.
fn checkpoint(folder: &Path, layers: usize) -> Checkpoint {
    let mut tensors: Vec<(String, Vec<usize>)> =
        vec![("model.embed_tokens.weight".into(), vec![VOCAB, HIDDEN]), ("model.norm.weight".into(), vec![HIDDEN])];
    for layer in 0..layers {
        let prefix = format!("model.layers.{layer}");
        for name in ["input_layernorm", "post_attention_layernorm"] {
            tensors.push((format!("{prefix}.{name}.weight"), vec![HIDDEN]));
        }
        for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            tensors.push((format!("{prefix}.self_attn.{name}.weight"), vec![HIDDEN, HIDDEN]));
        }
        tensors.push((format!("{prefix}.mlp.gate_proj.weight"), vec![FFN, HIDDEN]));
        tensors.push((format!("{prefix}.mlp.up_proj.weight"), vec![FFN, HIDDEN]));
        tensors.push((format!("{prefix}.mlp.down_proj.weight"), vec![HIDDEN, FFN]));
    }
    let mut rng = fastrand::Rng::with_seed(2);
    let bytes: Vec<u8> =
        (0..FFN * HIDDEN).flat_map(|_| bf16::from_f32((rng.f32() - 0.5) * 0.03).to_le_bytes()).collect();
    let views = tensors.iter().map(|(name, shape)| {
        let size: usize = shape.iter().product::<usize>() * 2;
        (name.as_str(), TensorView::new(Dtype::BF16, shape.clone(), &bytes[..size]).unwrap())
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": layers,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": VOCAB, "tie_word_embeddings": true,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    Checkpoint::open(folder).unwrap()
}

fn prompts() -> (Prompts, Calibration) {
    let mut rng = fastrand::Rng::with_seed(3);
    let ids: Vec<u32> = (0..4096).map(|_| rng.u32(0..VOCAB as u32)).collect();
    let how = Calibration { samples: 4, length: 512, seed: 0 };
    (Prompts::new(&ids, None, &how, 0).unwrap(), how)
}

/// The most anonymous memory that something takes beyond what was there before it.
fn memory(run: impl FnOnce()) -> f64 {
    let before = resident("RssAnon:");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = before;
            while !done.load(Ordering::Relaxed) {
                most = most.max(resident("RssAnon:"));
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            most
        });
        run();
        done.store(true, Ordering::Relaxed);
        watch.join().unwrap() - before
    })
}

/// `calibrate`: one layer, its statistics and one prompt.
#[test]
#[ignore = "writes a gigabyte"]
fn calibration_of_7b_layers_holds_one_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(folder.path(), 2);
    let (prompts, how) = prompts();
    let floats = Dense { activations: Activations::Floats };
    let start = Instant::now();
    let most = memory(|| {
        collect(&checkpoint, &prompts, &how, &floats, &folder.path().join("statistics"), &mut |_, _| {}).unwrap();
    });
    // Residual stream, queries, keys, values, outputs; gate, up, their product and its copy.
    let prompt = (how.length * (8 * HIDDEN + 4 * FFN) * 4) as f64;
    println!(
        "calibrate: layer {:.2} GB in f32, a prompt on its way {:.2} GB, {:.2} GB at most, {:.1} s for 2 layers of {} tokens",
        LAYER / 1e9,
        prompt / 1e9,
        most / 1e9,
        start.elapsed().as_secs_f64(),
        prompts.tokens()
    );
    // A tenth is what the allocator keeps.
    assert!(most < 1.1 * (LAYER + prompt), "{:.2} GB", most / 1e9);
}

/// `quantize` by GPTQ: the layer and the copy of it that runs; or, for its widest matrix, moments and two matrices of that
/// size beside what is left of the layer.
#[test]
#[ignore = "takes minutes"]
fn gptq_of_a_7b_layer_holds_it_and_its_statistics() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(folder.path(), 1);
    let (prompts, _) = prompts();
    let recipe = RecipeFile::from_toml("base = \"W4A16\"\nmethod = \"gptq\"").unwrap();
    let plan = Plan::new(&recipe, &checkpoint.sizes(), true).unwrap();
    let floats = Dense { activations: Activations::Floats };
    let start = Instant::now();
    let most = memory(|| {
        let done = quantize(&checkpoint, &recipe, &plan, Some(&prompts), &floats, &mut |_, _| {}).unwrap();
        assert!(done.reports.len() >= 7 && done.model.config().shape.layers == 1);
    });
    let statistics = (FFN * FFN * 4) as f64;
    println!(
        "quantize by GPTQ: layer {:.2} GB in f32, moments of its widest matrix {:.2} GB, {:.2} GB at most, {:.1} s for a layer and {} tokens",
        LAYER / 1e9,
        statistics / 1e9,
        most / 1e9,
        start.elapsed().as_secs_f64(),
        prompts.tokens()
    );
    assert!(most < 1.25 * LAYER + 3.25 * statistics, "{:.2} GB", most / 1e9);
}
