//! Time and memory at the size of real layers. Run by name: `cargo test --release -p bitsmith-calibrate --test large -- --ignored
//! --nocapture`.

use bitsmith_calibrate::collect::collect;
use bitsmith_calibrate::engine::{Activations, Dense};
use bitsmith_calibrate::import::Checkpoint;
use bitsmith_calibrate::quantize::{Prompts, Stats, gptq::Gptq};
use bitsmith_calibrate::recipe::Calibration;
use bitsmith_compiler::format::Format;
use half::bf16;
use safetensors::{Dtype, tensor::TensorView};
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

/// A checkpoint with two layers of the size of Llama 2 7B: memory stays at one of them, its statistics and one prompt.
#[test]
#[ignore = "writes a gigabyte"]
fn calibration_of_7b_layers_holds_one_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let (hidden, ffn, vocab) = (4096usize, 11008usize, 512usize);
    let mut tensors: Vec<(String, Vec<usize>)> =
        vec![("model.embed_tokens.weight".into(), vec![vocab, hidden]), ("model.norm.weight".into(), vec![hidden])];
    for layer in 0..2 {
        let prefix = format!("model.layers.{layer}");
        for name in ["input_layernorm", "post_attention_layernorm"] {
            tensors.push((format!("{prefix}.{name}.weight"), vec![hidden]));
        }
        for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            tensors.push((format!("{prefix}.self_attn.{name}.weight"), vec![hidden, hidden]));
        }
        tensors.push((format!("{prefix}.mlp.gate_proj.weight"), vec![ffn, hidden]));
        tensors.push((format!("{prefix}.mlp.up_proj.weight"), vec![ffn, hidden]));
        tensors.push((format!("{prefix}.mlp.down_proj.weight"), vec![hidden, ffn]));
    }
    let longest = ffn * hidden;
    let mut rng = fastrand::Rng::with_seed(2);
    let bytes: Vec<u8> = (0..longest).flat_map(|_| bf16::from_f32((rng.f32() - 0.5) * 0.03).to_le_bytes()).collect();
    let views = tensors.iter().map(|(name, shape)| {
        let size: usize = shape.iter().product::<usize>() * 2;
        (name.as_str(), TensorView::new(Dtype::BF16, shape.clone(), &bytes[..size]).unwrap())
    });
    safetensors::serialize_to_file(views, None, &folder.path().join("model.safetensors")).unwrap();
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": 2,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": vocab, "tie_word_embeddings": true,
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    drop(bytes);
    let ids: Vec<u32> = (0..4096).map(|_| rng.u32(0..vocab as u32)).collect();
    let how = Calibration { samples: 4, length: 512, seed: 0 };
    let prompts = Prompts::new(&ids, None, &how, 0).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let before = resident("RssAnon:");
    let out = folder.path().join("statistics");
    let start = Instant::now();
    let mut most = before;
    let floats = Dense { activations: Activations::Floats };
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0.0f64;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                most = most.max(resident("RssAnon:"));
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            most
        });
        collect(&checkpoint, &prompts, &how, &floats, &out, &mut |_, _| {}).unwrap();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        most = most.max(watch.join().unwrap());
    });
    let layer = (4 * hidden * hidden + 3 * hidden * ffn) as f64 * 4.0;
    println!(
        "layer {:.2} GB in f32, memory beyond the start {:.2} GB at most, {:.1} s for 2 layers of {} tokens",
        layer / 1e9,
        (most - before) / 1e9,
        start.elapsed().as_secs_f64(),
        prompts.tokens()
    );
    assert!(most - before < 1.25 * layer, "{:.2} GB", (most - before) / 1e9);
}
