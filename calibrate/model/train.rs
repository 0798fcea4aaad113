//! Trains the small model of the tests and writes it beside this file.
//!
//! `cargo run --release -p bitsmith-calibrate --example train_model` makes `config.json`, `tokenizer.json`,
//! `model.safetensors` (f16), `text.txt` and `probes/*.jsonl` in `calibrate/model`. Training text is `corpus`,
//! which is ours; the evaluation text is of another seed. A decoder of the Llama kind with the backward pass written out:
//! AdamW, cosine decay, a few minutes on two cores.

#[path = "../tests/support/corpus.rs"]
mod corpus;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use half::f16;
use std::collections::HashMap;
use std::path::Path;

const HIDDEN: usize = 128;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DIM: usize = 32;
const FFN: usize = 256;
const EPS: f32 = 1e-5;
const LENGTH: usize = 96;
const BATCH: usize = 24;

/// A matrix or vector with its gradient and the moments of Adam.
struct Param {
    name: String,
    shape: Vec<usize>,
    w: Vec<f32>,
    g: Vec<f32>,
    m: Vec<f32>,
    v: Vec<f32>,
}

impl Param {
    fn new(name: String, shape: &[usize], rng: &mut fastrand::Rng) -> Param {
        let count = shape.iter().product();
        let w = match shape {
            [_, k] => (0..count).map(|_| normal(rng) * 0.7 / (*k as f32).sqrt()).collect(),
            _ => vec![1.0; count],
        };
        let zeros = vec![0.0; count];
        Param { name, shape: shape.to_vec(), w, g: zeros.clone(), m: zeros.clone(), v: zeros }
    }
}

fn normal(rng: &mut fastrand::Rng) -> f32 {
    (-2.0 * (1.0 - rng.f32()).ln()).sqrt() * (std::f32::consts::TAU * rng.f32()).cos()
}

/// `out (+)= a · b` with row-major shapes after the transpositions that `ta` and `tb` ask for.
fn gemm(out: &mut [f32], a: (&[f32], usize, usize, bool), b: (&[f32], usize, usize, bool), add: bool) {
    let view = |(x, rows, columns, turned): (&'_ [f32], usize, usize, bool)| -> (usize, usize) {
        assert_eq!(x.len(), rows * columns);
        if turned { (columns, rows) } else { (rows, columns) }
    };
    let ((m, k), (k2, n)) = (view(a), view(b));
    assert_eq!(k, k2);
    let (left, right) = (MatRef::from_row_major_slice(a.0, a.1, a.2), MatRef::from_row_major_slice(b.0, b.1, b.2));
    let left = if a.3 { left.transpose() } else { left };
    let right = if b.3 { right.transpose() } else { right };
    let accumulate = if add { Accum::Add } else { Accum::Replace };
    matmul(MatMut::from_row_major_slice_mut(out, m, n), accumulate, left, right, 1.0, Par::rayon(0));
}

/// `x · wᵀ`.
fn linear(x: &[f32], w: &Param) -> Vec<f32> {
    let (n, k) = (w.shape[0], w.shape[1]);
    let m = x.len() / k;
    let mut out = vec![0.0; m * n];
    gemm(&mut out, (x, m, k, false), (&w.w, n, k, true), false);
    out
}

/// Adds to the weight's gradient; returns that of the input.
fn linear_back(dy: &[f32], x: &[f32], w: &mut Param) -> Vec<f32> {
    let (n, k) = (w.shape[0], w.shape[1]);
    let m = x.len() / k;
    gemm(&mut w.g, (dy, m, n, true), (x, m, k, false), true);
    let mut dx = vec![0.0; m * k];
    gemm(&mut dx, (dy, m, n, false), (&w.w, n, k, false), false);
    dx
}

fn norm(x: &[f32], gain: &Param) -> Vec<f32> {
    let mut out = x.to_vec();
    for row in out.chunks_exact_mut(HIDDEN) {
        let r = 1.0 / (row.iter().map(|x| x * x).sum::<f32>() / HIDDEN as f32 + EPS).sqrt();
        row.iter_mut().zip(&gain.w).for_each(|(x, g)| *x *= r * g);
    }
    out
}

/// Adds the gradient of the input to `dx`.
fn norm_back(dy: &[f32], x: &[f32], gain: &mut Param, dx: &mut [f32]) {
    for ((dy, x), dx) in dy.chunks_exact(HIDDEN).zip(x.chunks_exact(HIDDEN)).zip(dx.chunks_exact_mut(HIDDEN)) {
        let r = 1.0 / (x.iter().map(|x| x * x).sum::<f32>() / HIDDEN as f32 + EPS).sqrt();
        let dot: f32 = (0..HIDDEN).map(|i| dy[i] * gain.w[i] * x[i]).sum();
        for i in 0..HIDDEN {
            gain.g[i] += dy[i] * x[i] * r;
            dx[i] += r * dy[i] * gain.w[i] - x[i] * r * r * r * dot / HIDDEN as f32;
        }
    }
}

/// Turns heads; `direction` -1 turns gradients back.
fn rope(x: &mut [f32], width: usize, direction: f32) {
    for (at, row) in x.chunks_exact_mut(width).enumerate() {
        let position = (at % LENGTH) as f32;
        for head in row.chunks_exact_mut(DIM) {
            for i in 0..DIM / 2 {
                let angle = direction * position * 10000f32.powf(-2.0 * i as f32 / DIM as f32);
                let (sin, cos) = angle.sin_cos();
                let (a, b) = (head[i], head[i + DIM / 2]);
                (head[i], head[i + DIM / 2]) = (a * cos - b * sin, b * cos + a * sin);
            }
        }
    }
}

fn slice(x: &[f32], sequence: usize, width: usize, offset: usize) -> Vec<f32> {
    (0..LENGTH).flat_map(|t| x[(sequence * LENGTH + t) * width + offset..][..DIM].iter().copied()).collect()
}

fn unslice(x: &mut [f32], part: &[f32], sequence: usize, width: usize, offset: usize) {
    for (t, row) in part.chunks_exact(DIM).enumerate() {
        x[(sequence * LENGTH + t) * width + offset..][..DIM].iter_mut().zip(row).for_each(|(x, p)| *x += p);
    }
}

/// Attention of every sequence and head; returns outputs and probabilities.
fn attention(q: &[f32], k: &[f32], v: &[f32]) -> (Vec<f32>, Vec<Vec<f32>>) {
    let mut out = vec![0.0; q.len()];
    let mut all = Vec::new();
    for sequence in 0..BATCH {
        for head in 0..HEADS {
            let kv = head / (HEADS / KV_HEADS) * DIM;
            let qs = slice(q, sequence, HEADS * DIM, head * DIM);
            let (ks, vs) = (slice(k, sequence, KV_HEADS * DIM, kv), slice(v, sequence, KV_HEADS * DIM, kv));
            let mut p = vec![0.0; LENGTH * LENGTH];
            gemm(&mut p, (&qs, LENGTH, DIM, false), (&ks, LENGTH, DIM, true), false);
            for (t, row) in p.chunks_exact_mut(LENGTH).enumerate() {
                row.iter_mut().for_each(|x| *x /= (DIM as f32).sqrt());
                let top = row[..=t].iter().copied().fold(f32::MIN, f32::max);
                row[..=t].iter_mut().for_each(|x| *x = (*x - top).exp());
                let sum: f32 = row[..=t].iter().sum();
                row[..=t].iter_mut().for_each(|x| *x /= sum);
                row[t + 1..].fill(0.0);
            }
            let mut o = vec![0.0; LENGTH * DIM];
            gemm(&mut o, (&p, LENGTH, LENGTH, false), (&vs, LENGTH, DIM, false), false);
            unslice(&mut out, &o, sequence, HEADS * DIM, head * DIM);
            all.push(p);
        }
    }
    (out, all)
}

fn attention_back(d: &[f32], q: &[f32], k: &[f32], v: &[f32], all: &[Vec<f32>]) -> [Vec<f32>; 3] {
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    for sequence in 0..BATCH {
        for head in 0..HEADS {
            let kv = head / (HEADS / KV_HEADS) * DIM;
            let p = &all[sequence * HEADS + head];
            let qs = slice(q, sequence, HEADS * DIM, head * DIM);
            let (ks, vs) = (slice(k, sequence, KV_HEADS * DIM, kv), slice(v, sequence, KV_HEADS * DIM, kv));
            let d = slice(d, sequence, HEADS * DIM, head * DIM);
            let mut part = vec![0.0; LENGTH * DIM];
            gemm(&mut part, (p, LENGTH, LENGTH, true), (&d, LENGTH, DIM, false), false);
            unslice(&mut dv, &part, sequence, KV_HEADS * DIM, kv);
            let mut ds = vec![0.0; LENGTH * LENGTH];
            gemm(&mut ds, (&d, LENGTH, DIM, false), (&vs, LENGTH, DIM, true), false);
            for (ds, p) in ds.chunks_exact_mut(LENGTH).zip(p.chunks_exact(LENGTH)) {
                let dot: f32 = ds.iter().zip(p).map(|(a, b)| a * b).sum();
                ds.iter_mut().zip(p).for_each(|(ds, p)| *ds = p * (*ds - dot) / (DIM as f32).sqrt());
            }
            gemm(&mut part, (&ds, LENGTH, LENGTH, false), (&ks, LENGTH, DIM, false), false);
            unslice(&mut dq, &part, sequence, HEADS * DIM, head * DIM);
            gemm(&mut part, (&ds, LENGTH, LENGTH, true), (&qs, LENGTH, DIM, false), false);
            unslice(&mut dk, &part, sequence, KV_HEADS * DIM, kv);
        }
    }
    [dq, dk, dv]
}

/// Parameters of a layer start here; their order is that of `names`.
fn base(layer: usize) -> usize {
    2 + layer * 9
}

fn parameters(vocab: usize, rng: &mut fastrand::Rng) -> Vec<Param> {
    let mut list = vec![
        Param::new("model.embed_tokens.weight".into(), &[vocab, HIDDEN], rng),
        Param::new("model.norm.weight".into(), &[HIDDEN], rng),
    ];
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HEADS * DIM, HIDDEN]),
            ("self_attn.k_proj", vec![KV_HEADS * DIM, HIDDEN]),
            ("self_attn.v_proj", vec![KV_HEADS * DIM, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HEADS * DIM]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("mlp.gate_proj", vec![FFN, HIDDEN]),
            ("mlp.up_proj", vec![FFN, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, FFN]),
        ] {
            list.push(Param::new(format!("model.layers.{layer}.{name}.weight"), &shape, rng));
        }
    }
    list
}

struct Saved {
    x: Vec<f32>,
    n1: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    p: Vec<Vec<f32>>,
    seen: Vec<f32>,
    middle: Vec<f32>,
    n2: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    product: Vec<f32>,
}

/// Loss of a batch; gradients are added where `learn` says so.
fn step(params: &mut [Param], ids: &[usize], targets: &[usize], learn: bool) -> f32 {
    let mut x: Vec<f32> = ids.iter().flat_map(|id| params[0].w[id * HIDDEN..][..HIDDEN].to_vec()).collect();
    let mut saved = Vec::new();
    for layer in 0..LAYERS {
        let p = &params[base(layer)..base(layer) + 9];
        let n1 = norm(&x, &p[0]);
        let (mut q, mut k, v) = (linear(&n1, &p[1]), linear(&n1, &p[2]), linear(&n1, &p[3]));
        rope(&mut q, HEADS * DIM, 1.0);
        rope(&mut k, KV_HEADS * DIM, 1.0);
        let (seen, probabilities) = attention(&q, &k, &v);
        let before = x.clone();
        x.iter_mut().zip(linear(&seen, &p[4])).for_each(|(x, y)| *x += y);
        let middle = x.clone();
        let n2 = norm(&x, &p[5]);
        let (gate, up) = (linear(&n2, &p[6]), linear(&n2, &p[7]));
        let product: Vec<f32> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        x.iter_mut().zip(linear(&product, &p[8])).for_each(|(x, y)| *x += y);
        saved.push(Saved { x: before, n1, q, k, v, p: probabilities, seen, middle, n2, gate, up, product });
    }
    let last = norm(&x, &params[1]);
    let mut logits = linear(&last, &params[0]);
    let vocab = params[0].shape[0];
    let mut loss = 0.0;
    for (row, &target) in logits.chunks_exact_mut(vocab).zip(targets) {
        let top = row.iter().copied().fold(f32::MIN, f32::max);
        row.iter_mut().for_each(|x| *x = (*x - top).exp());
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|x| *x /= sum);
        loss -= row[target].max(1e-30).ln();
        row[target] -= 1.0;
        row.iter_mut().for_each(|x| *x /= targets.len() as f32);
    }
    if !learn {
        return loss / targets.len() as f32;
    }
    let dlast = linear_back(&logits, &last, &mut params[0]);
    let mut dx = vec![0.0; x.len()];
    norm_back(&dlast, &x, &mut params[1], &mut dx);
    for (layer, s) in saved.iter().enumerate().rev() {
        let p = &mut params[base(layer)..base(layer) + 9];
        let dproduct = linear_back(&dx, &s.product, &mut p[8]);
        let (mut dgate, mut dup) = (dproduct.clone(), dproduct);
        for i in 0..dgate.len() {
            let sigmoid = 1.0 / (1.0 + (-s.gate[i]).exp());
            let silu = s.gate[i] * sigmoid;
            dgate[i] *= s.up[i] * (sigmoid + silu * (1.0 - sigmoid));
            dup[i] *= silu;
        }
        let mut dn2 = linear_back(&dgate, &s.n2, &mut p[6]);
        dn2.iter_mut().zip(linear_back(&dup, &s.n2, &mut p[7])).for_each(|(a, b)| *a += b);
        norm_back(&dn2, &s.middle, &mut p[5], &mut dx);
        let dseen = linear_back(&dx, &s.seen, &mut p[4]);
        let [mut dq, mut dk, dv] = attention_back(&dseen, &s.q, &s.k, &s.v, &s.p);
        rope(&mut dq, HEADS * DIM, -1.0);
        rope(&mut dk, KV_HEADS * DIM, -1.0);
        let mut dn1 = linear_back(&dq, &s.n1, &mut p[1]);
        dn1.iter_mut().zip(linear_back(&dk, &s.n1, &mut p[2])).for_each(|(a, b)| *a += b);
        dn1.iter_mut().zip(linear_back(&dv, &s.n1, &mut p[3])).for_each(|(a, b)| *a += b);
        norm_back(&dn1, &s.x, &mut p[0], &mut dx);
    }
    for (id, dx) in ids.iter().zip(dx.chunks_exact(HIDDEN)) {
        params[0].g[id * HIDDEN..][..HIDDEN].iter_mut().zip(dx).for_each(|(g, d)| *g += d);
    }
    loss / targets.len() as f32
}

fn adam(params: &mut [Param], rate: f32, at: usize) {
    let total: f32 = params.iter().flat_map(|p| &p.g).map(|g| g * g).sum::<f32>().sqrt();
    let clip = if total > 1.0 { 1.0 / total } else { 1.0 };
    let (c1, c2) = (1.0 - 0.9f32.powi(at as i32), 1.0 - 0.98f32.powi(at as i32));
    for p in params {
        let decay = if p.shape.len() == 2 { 0.05 } else { 0.0 };
        for i in 0..p.w.len() {
            let g = p.g[i] * clip;
            p.m[i] = 0.9 * p.m[i] + 0.1 * g;
            p.v[i] = 0.98 * p.v[i] + 0.02 * g * g;
            p.w[i] -= rate * ((p.m[i] / c1) / ((p.v[i] / c2).sqrt() + 1e-8) + decay * p.w[i]);
            p.g[i] = 0.0;
        }
    }
}

fn main() {
    let steps: usize = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(1500);
    let words = corpus::vocabulary();
    let index: HashMap<&str, usize> = words.iter().enumerate().map(|(i, w)| (w.as_str(), i)).collect();
    let encode = |text: &str| -> Vec<usize> { text.split_whitespace().map(|w| index[w]).collect() };
    let train = encode(&corpus::text(1, 600_000));
    let held = encode(&corpus::text(2, 20_000));
    let mut rng = fastrand::Rng::with_seed(42);
    let mut params = parameters(words.len(), &mut rng);
    println!("{} words, {} parameters", words.len(), params.iter().map(|p| p.w.len()).sum::<usize>());
    let mut batch = |ids: &[usize]| -> (Vec<usize>, Vec<usize>) {
        let (mut inputs, mut targets) = (Vec::new(), Vec::new());
        for _ in 0..BATCH {
            let start = rng.usize(0..ids.len() - LENGTH);
            inputs.push(1);
            inputs.extend(&ids[start..start + LENGTH - 1]);
            targets.extend(&ids[start..start + LENGTH]);
        }
        (inputs, targets)
    };
    for at in 1..=steps {
        let (inputs, targets) = batch(&train);
        let loss = step(&mut params, &inputs, &targets, true);
        let warm = (at as f32 / 100.0).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f32::consts::PI * at as f32 / steps as f32).cos());
        adam(&mut params, 4e-3 * warm * (0.02 + 0.98 * cosine), at);
        if at % 100 == 0 || at == 1 {
            let (inputs, targets) = batch(&held);
            println!("step {at}: loss {loss:.4}, held out {:.4}", step(&mut params, &inputs, &targets, false));
        }
    }
    write(&params, &words, Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/model")));
}

fn write(params: &[Param], words: &[String], folder: &Path) {
    let tensors: Vec<(&str, Vec<usize>, Vec<u8>)> = params
        .iter()
        .map(|p| (p.name.as_str(), p.shape.clone(), p.w.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect()))
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (*name, safetensors::tensor::TensorView::new(safetensors::Dtype::F16, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FFN,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": DIM,
        "vocab_size": words.len(), "max_position_embeddings": 512, "rms_norm_eps": EPS, "rope_theta": 10000.0,
        "rope_scaling": null, "hidden_act": "silu", "tie_word_embeddings": true, "torch_dtype": "float16",
        "bos_token_id": 1, "eos_token_id": 2,
    });
    let vocab: serde_json::Map<String, serde_json::Value> =
        words.iter().enumerate().map(|(i, word)| (word.clone(), i.into())).collect();
    let special = |id: usize| {
        serde_json::json!({
            "id": id, "content": words[id], "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true,
        })
    };
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special(0), special(1), special(2)],
        "normalizer": null, "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "<unk>" },
    });
    std::fs::write(folder.join("config.json"), format!("{config:#}\n")).unwrap();
    std::fs::write(folder.join("tokenizer.json"), format!("{tokenizer:#}\n")).unwrap();
    std::fs::write(folder.join("text.txt"), corpus::text(3, 24_000)).unwrap();
    std::fs::create_dir_all(folder.join("probes")).unwrap();
    for (name, pairs) in corpus::probes(4, 100) {
        let lines: Vec<String> = pairs
            .iter()
            .map(|(good, bad)| serde_json::json!({ "sentence_good": good, "sentence_bad": bad }).to_string())
            .collect();
        std::fs::write(folder.join("probes").join(format!("{name}.jsonl")), lines.join("\n") + "\n").unwrap();
    }
}
