//! Families of models with random weights: against a reference in `f64`, through files and back, experts against one block,
//! steps against a whole text.

use crate::support;
use bitsmith_calibrate::engine::{Activations, Dense, Engine, FloatCache, Kernels};
use bitsmith_calibrate::export::{Target, export};
use bitsmith_calibrate::import::Checkpoint;
use bitsmith_calibrate::model::{Attention, Config, Floats, Gated, Layer, Linear, Mlp, Model, Rope, Weight};
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::Format;

const FLOATS: Dense = Dense { activations: Activations::Floats };

fn config(kind: &str, more: serde_json::Value) -> Config {
    let mut json = serde_json::json!({
        "model_type": kind, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 50, "bos_token_id": 1, "rms_norm_eps": 1e-5,
    });
    for (key, value) in more.as_object().unwrap() {
        json[key] = value.clone();
    }
    Config::from_json(&json, kind).unwrap()
}

fn model(config: Config, seed: u64) -> Model {
    let mut rng = fastrand::Rng::with_seed(seed);
    let s = config.shape.clone();
    let mut floats = |count: usize, scale: f32, around: f32| {
        let values: Vec<f32> = (0..count).map(|_| around + (rng.f32() - 0.5) * scale).collect();
        Floats::rounded(&values, DType::Bf16)
    };
    let (queries, keys) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
    let mut layers = Vec::new();
    for i in 0..s.layers {
        let prefix = format!("model.layers.{i}");
        let mut linear =
            |name: &str, n: usize, k: usize| Linear::floats(format!("{prefix}.{name}"), n, k, floats(n * k, 0.4, 0.0));
        let mut a = Attention {
            q: linear("self_attn.q_proj", queries, s.hidden),
            k: linear("self_attn.k_proj", keys, s.hidden),
            v: linear("self_attn.v_proj", keys, s.hidden),
            o: linear("self_attn.o_proj", s.hidden, queries),
            q_norm: None,
            k_norm: None,
        };
        let mlp = match config.family.model_type() {
            kind @ ("mixtral" | "qwen3_moe") => {
                let (part, names) = match kind {
                    "mixtral" => ("block_sparse_moe", ["w1", "w3", "w2"]),
                    _ => ("mlp", ["gate_proj", "up_proj", "down_proj"]),
                };
                let router = linear(&format!("{part}.gate"), s.experts, s.hidden);
                let experts = (0..s.experts)
                    .map(|e| Gated {
                        gate: linear(&format!("{part}.experts.{e}.{}", names[0]), s.ffn, s.hidden),
                        up: linear(&format!("{part}.experts.{e}.{}", names[1]), s.ffn, s.hidden),
                        down: linear(&format!("{part}.experts.{e}.{}", names[2]), s.hidden, s.ffn),
                    })
                    .collect();
                Mlp::Experts { router, experts }
            }
            _ => Mlp::Dense(Gated {
                gate: linear("mlp.gate_proj", s.ffn, s.hidden),
                up: linear("mlp.up_proj", s.ffn, s.hidden),
                down: linear("mlp.down_proj", s.hidden, s.ffn),
            }),
        };
        if config.family.head_norms() {
            (a.q_norm, a.k_norm) = (Some(floats(s.head_dim, 0.5, 1.0)), Some(floats(s.head_dim, 0.5, 1.0)));
        }
        if config.family.model_type() == "qwen2" {
            for linear in [&mut a.q, &mut a.k, &mut a.v] {
                linear.bias = Some(floats(linear.n, 0.5, 0.0));
            }
        }
        layers.push(Layer {
            input_norm: floats(s.hidden, 0.5, 1.0),
            attention: a,
            post_norm: floats(s.hidden, 0.5, 1.0),
            mlp,
            kv_scales: None,
        });
    }
    let embedding = Linear::floats("model.embed_tokens", s.vocab, s.hidden, floats(s.vocab * s.hidden, 2.0, 0.0));
    let head = Linear::floats("lm_head", s.vocab, s.hidden, floats(s.vocab * s.hidden, 0.5, 0.0));
    let norm = floats(s.hidden, 0.5, 1.0);
    Model { head: (!s.tied).then_some(head), config, embedding, layers, norm }
}

fn families() -> Vec<Config> {
    let llama3 = serde_json::json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64 });
    // A slow and a fast end that fall among the sixteen pairs.
    let yarn = serde_json::json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
        "beta_fast": 2.0, "beta_slow": 0.1 });
    vec![
        config("llama", serde_json::json!({})),
        config("llama", serde_json::json!({ "rope_scaling": llama3, "tie_word_embeddings": true })),
        config("llama", serde_json::json!({ "rope_scaling": { "rope_type": "linear", "factor": 2.0 } })),
        config("qwen3", serde_json::json!({ "rope_scaling": yarn, "max_position_embeddings": 64 })),
        config("qwen2", serde_json::json!({})),
        config("qwen3", serde_json::json!({})),
        config("mixtral", serde_json::json!({ "num_local_experts": 4, "num_experts_per_tok": 2 })),
        config(
            "qwen3_moe",
            serde_json::json!({ "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96,
            "norm_topk_prob": true }),
        ),
    ]
}

const IDS: [u32; 9] = [1, 7, 33, 2, 49, 12, 12, 5, 20];

fn logits(model: &Model) -> Vec<f32> {
    Engine::new(model, &FLOATS).unwrap().logits(&IDS).unwrap()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0f32, |w, (a, b)| w.max((a - b).abs()))
}

#[test]
fn every_family_reads_back_from_both_containers() {
    for config in families() {
        let name = format!("{} {:?}", config.family.model_type(), config.rope.scaling);
        let model = model(config, 5);
        let expected = logits(&model);
        for (target, file) in [(Target::CompressedTensors, "m"), (Target::Gguf, "m.gguf"), (Target::Packed, "p")] {
            let place = tempfile::tempdir().unwrap();
            export(&model, target, &place.path().join(file), None).unwrap_or_else(|e| panic!("{name}: {e}"));
            let again = Checkpoint::open(place.path().join(file)).unwrap().model().unwrap();
            let worst = difference(&logits(&again), &expected);
            assert!(worst < 2e-5, "{name} as {target:?}: {worst}");
            assert_eq!(again.linears().len(), model.linears().len());
        }
    }
}

/// One that has no file but `config.json` to say it.
fn dynamic(trained: usize) -> Config {
    let scaling = serde_json::json!({ "rope_type": "dynamic", "factor": 2.0 });
    config("llama", serde_json::json!({ "rope_scaling": scaling, "max_position_embeddings": trained }))
}

#[test]
fn logits_are_those_of_a_reference_in_f64() {
    let windowed = Config { window: Some(4), ..config("mistral", serde_json::json!({})) };
    let loose = serde_json::json!({ "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96,
        "norm_topk_prob": false });
    let more = [dynamic(4), windowed, config("qwen3_moe", loose)];
    let mut seen = Vec::new();
    for config in families().into_iter().chain(more) {
        let name = format!("{} {:?}", config.family.model_type(), config.rope.scaling);
        let model = model(config, 11);
        let expected = support::reference::logits(&model, &IDS);
        let found = logits(&model);
        assert_eq!(found.len(), expected.len());
        let worst = found.iter().zip(&expected).fold(0.0f64, |w, (a, b)| w.max((*a as f64 - b).abs()));
        println!("{name}: {worst:.1e} of {:.1}", expected.iter().fold(0.0f64, |w, x| w.max(x.abs())));
        assert!(worst < 1e-4, "{name}: {worst}");
        seen.push(found);
    }
    // Same weights, other rotations: each scaling shows in the logits.
    for (i, a) in seen.iter().enumerate() {
        for (j, b) in seen.iter().enumerate().skip(i + 1) {
            assert!(difference(a, b) > 1e-3, "{i} and {j} are the same");
        }
    }
}

#[test]
fn dynamic_rotation_is_plain_until_the_text_outgrows_the_trained_context() {
    let plain = logits(&model(config("llama", serde_json::json!({})), 4));
    assert_eq!(logits(&model(dynamic(IDS.len()), 4)), plain);
    assert!(difference(&logits(&model(dynamic(IDS.len() - 1), 4)), &plain) > 1e-3);
    let place = tempfile::tempdir().unwrap();
    let error = export(&model(dynamic(4), 4), Target::Gguf, &place.path().join("m.gguf"), None).unwrap_err();
    assert!(error.to_string().contains("dynamic"), "{error}");
    export(&model(dynamic(4), 4), Target::CompressedTensors, &place.path().join("m"), None).unwrap();
    let again = Checkpoint::open(place.path().join("m")).unwrap().model().unwrap();
    assert_eq!(logits(&again), logits(&model(dynamic(4), 4)));
}

#[test]
fn equal_experts_are_one_block() {
    let mut mixture =
        model(config("mixtral", serde_json::json!({ "num_local_experts": 4, "num_experts_per_tok": 2 })), 8);
    let mut dense = mixture.clone();
    dense.config = config("llama", serde_json::json!({}));
    for (a, b) in mixture.layers.iter_mut().zip(&mut dense.layers) {
        if let Mlp::Experts { experts, .. } = &mut a.mlp {
            let first = experts[0].clone();
            experts.iter_mut().for_each(|expert| *expert = first.clone());
            b.mlp = Mlp::Dense(first);
        }
    }
    assert!(difference(&logits(&mixture), &logits(&dense)) < 1e-4);
    let unequal = model(mixture.config.clone(), 8);
    assert!(difference(&logits(&mixture), &logits(&unequal)) > 1e-2);
}

#[test]
fn steps_give_what_a_whole_text_gives() {
    for mut config in families() {
        config.window = Some(4);
        let model = model(config, 6);
        let engine = Engine::new(&model, &FLOATS).unwrap();
        let whole = engine.logits(&IDS).unwrap();
        let mut caches = engine.caches(&FloatCache::boxed).unwrap();
        let mut steps = Vec::new();
        for part in [&IDS[..3], &IDS[3..4], &IDS[4..]] {
            engine.forward(part, &mut caches, part.len(), |_, logits| steps.extend_from_slice(logits)).unwrap();
        }
        assert!(difference(&whole, &steps) < 1e-4, "{}", model.config.family.model_type());
    }
}

#[test]
fn a_window_hides_what_is_far() {
    let far = |window: Option<usize>| {
        let mut config = config("llama", serde_json::json!({ "num_hidden_layers": 1 }));
        config.window = window;
        let engine = Engine::new(&model(config, 6), &FLOATS).unwrap();
        let other = [40, 41, 42, 2, 49, 12, 12, 5, 20];
        let (a, b) = (engine.logits(&IDS).unwrap(), engine.logits(&other).unwrap());
        difference(&a[8 * 50..], &b[8 * 50..])
    };
    assert!(far(None) > 1e-3 && far(Some(9)) > 1e-3);
    assert_eq!(far(Some(4)), 0.0);
}

/// Biases, experts and heads of 32 through the kernels.
#[test]
fn kernels_serve_every_family() {
    let kernels = Kernels::new(bitsmith_runtime::open("cpu:2").unwrap());
    let format: Format = "int8-g32-f32".parse().unwrap();
    for config in families() {
        let mut model = model(config, 7);
        for linear in model.linears_mut() {
            let q = format.encode(&linear.weight.values(), linear.n, linear.k, None).unwrap();
            linear.weight = Weight::Quantized(q);
        }
        let real = Engine::new(&model, &kernels).unwrap().logits(&IDS).unwrap();
        let worst = difference(&real, &logits(&model));
        assert!(worst < 1e-3, "{}: {worst}", model.config.family.model_type());
    }
}

#[test]
fn interleaved_rows_with_interleaved_rotation_are_the_same_model() {
    let half = model(config("llama", serde_json::json!({})), 9);
    let mut turned = half.clone();
    turned.config.rope.interleaved = true;
    for layer in &mut turned.layers {
        for (linear, heads) in [(&mut layer.attention.q, 4), (&mut layer.attention.k, 2)] {
            let order = Rope::interleaved_order(heads, 32);
            let values = linear.weight.values().into_owned();
            let rows = order.iter().flat_map(|&row| values[row * 64..][..64].to_vec()).collect();
            linear.weight = Weight::Floats(Floats::f32(rows));
        }
    }
    assert!(difference(&logits(&half), &logits(&turned)) < 1e-5);
    turned.config.rope.interleaved = false;
    assert!(difference(&logits(&half), &logits(&turned)) > 1e-3);
}
