//! A decoder's forward pass in `f64`, from the publishers' definitions: a second reading that shares nothing with the
//! engine but the weights.
//!
//! Reads a model of floats and token ids; makes all logits. No cache and no blocks of tokens: each position looks back
//! over all that came before it.

use bitsmith_calibrate::model::{Config, Floats, Gated, Linear, Mlp, Model, Scaling};
use std::f64::consts::PI;

fn numbers(floats: &Floats) -> Vec<f64> {
    floats.values.iter().map(|&x| x as f64).collect()
}

fn times(linear: &Linear, x: &[f64]) -> Vec<f64> {
    let w = linear.weight.values();
    (0..linear.n)
        .map(|row| {
            let sum: f64 = (0..linear.k).map(|c| w[row * linear.k + c] as f64 * x[c]).sum();
            sum + linear.bias.as_ref().map_or(0.0, |bias| bias.values[row] as f64)
        })
        .collect()
}

fn norm(x: &[f64], gain: &[f64], eps: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(gain).map(|(x, g)| x / (mean + eps).sqrt() * g).collect()
}

/// Cosine and sine of each pair at a position, as transformers' `modeling_rope_utils` defines them.
fn turns(config: &Config, position: usize, length: usize) -> Vec<(f64, f64)> {
    let (dim, theta) = (config.shape.head_dim as f64, config.rope.theta);
    (0..config.shape.head_dim / 2)
        .map(|pair| {
            let exponent = 2.0 * pair as f64 / dim;
            let plain = theta.powf(-exponent);
            let (frequency, size) = match config.rope.scaling {
                Scaling::None => (plain, 1.0),
                Scaling::Linear(factor) => (plain / factor, 1.0),
                Scaling::Dynamic { factor, trained } => {
                    let longer = if length as f64 > trained { length as f64 } else { trained };
                    let base = theta * ((factor * longer / trained) - (factor - 1.0)).powf(dim / (dim - 2.0));
                    (1.0 / base.powf(exponent), 1.0)
                }
                Scaling::Llama3 { factor, low, high, original } => {
                    let wave = 2.0 * PI / plain;
                    let frequency = if wave < original / high {
                        plain
                    } else if wave > original / low {
                        plain / factor
                    } else {
                        let smooth = (original / wave - low) / (high - low);
                        (1.0 - smooth) * plain / factor + smooth * plain
                    };
                    (frequency, 1.0)
                }
                Scaling::Yarn { factor, original, fast, slow, whole, attention } => {
                    let at = |rotations: f64| dim * (original / (rotations * 2.0 * PI)).log10() / (2.0 * theta.log10());
                    let round = |x: f64, up: bool| match (whole, up) {
                        (false, _) => x,
                        (true, false) => x.floor(),
                        (true, true) => x.ceil(),
                    };
                    let low = round(at(fast), false).max(0.0);
                    let high = round(at(slow), true).min(dim - 1.0);
                    let share = ((pair as f64 - low) / (if low == high { 0.001 } else { high - low })).clamp(0.0, 1.0);
                    (plain * (1.0 - share) + plain / factor * share, attention)
                }
            };
            let angle = position as f64 * frequency;
            (angle.cos() * size, angle.sin() * size)
        })
        .collect()
}

fn rotate(head: &mut [f64], turns: &[(f64, f64)]) {
    let half = head.len() / 2;
    for (i, (cos, sin)) in turns.iter().enumerate() {
        let (x, y) = (head[i], head[i + half]);
        (head[i], head[i + half]) = (x * cos - y * sin, x * sin + y * cos);
    }
}

fn softmax(x: &mut [f64]) {
    let most = x.iter().copied().fold(f64::MIN, f64::max);
    x.iter_mut().for_each(|x| *x = (*x - most).exp());
    let sum: f64 = x.iter().sum();
    x.iter_mut().for_each(|x| *x /= sum);
}

fn gated(block: &Gated, x: &[f64]) -> Vec<f64> {
    let up = times(&block.up, x);
    let middle: Vec<f64> = times(&block.gate, x).iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
    times(&block.down, &middle)
}

fn feed_forward(config: &Config, mlp: &Mlp, x: &[f64]) -> Vec<f64> {
    let (router, experts) = match mlp {
        Mlp::Dense(block) => return gated(block, x),
        Mlp::Experts { router, experts } => (router, experts),
    };
    let mut share = times(router, x);
    softmax(&mut share);
    let mut order: Vec<usize> = (0..share.len()).collect();
    order.sort_by(|&a, &b| share[b].total_cmp(&share[a]));
    order.truncate(config.shape.experts_per_token);
    let sum: f64 = if config.normalize_experts { order.iter().map(|&e| share[e]).sum() } else { 1.0 };
    let mut out = vec![0.0; x.len()];
    for e in order {
        gated(&experts[e], x).iter().zip(&mut out).for_each(|(y, out)| *out += share[e] / sum * y);
    }
    out
}

/// All logits, `[ids, vocab]`.
pub fn logits(model: &Model, ids: &[u32]) -> Vec<f64> {
    let config = &model.config;
    let s = &config.shape;
    let embedding = model.embedding.weight.values();
    let row = |id: &u32| embedding[*id as usize * s.hidden..][..s.hidden].iter().map(|&x| x as f64).collect();
    let mut stream: Vec<Vec<f64>> = ids.iter().map(row).collect();
    for layer in &model.layers {
        let a = &layer.attention;
        let (mut queries, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for (position, x) in stream.iter().enumerate() {
            let x = norm(x, &numbers(&layer.input_norm), config.eps);
            let turns = turns(config, position, ids.len());
            for (linear, gain, list) in [(&a.q, &a.q_norm, &mut queries), (&a.k, &a.k_norm, &mut keys)] {
                let mut all = times(linear, &x);
                for head in all.chunks_mut(s.head_dim) {
                    if let Some(gain) = gain {
                        head.copy_from_slice(&norm(head, &numbers(gain), config.eps));
                    }
                    rotate(head, &turns);
                }
                list.push(all);
            }
            values.push(times(&a.v, &x));
        }
        for position in 0..ids.len() {
            let first = config.window.map_or(0, |window| (position + 1).saturating_sub(window));
            let mut seen = vec![0.0; s.heads * s.head_dim];
            for head in 0..s.heads {
                let of = |all: &[f64], head: usize| all[head * s.head_dim..][..s.head_dim].to_vec();
                let kv = head * s.kv_heads / s.heads;
                let query = of(&queries[position], head);
                let mut scores: Vec<f64> = (first..=position)
                    .map(|at| of(&keys[at], kv).iter().zip(&query).map(|(k, q)| k * q).sum::<f64>())
                    .map(|score| score / (s.head_dim as f64).sqrt())
                    .collect();
                softmax(&mut scores);
                for (at, share) in (first..=position).zip(scores) {
                    let out = &mut seen[head * s.head_dim..][..s.head_dim];
                    out.iter_mut().zip(of(&values[at], kv)).for_each(|(out, v)| *out += share * v);
                }
            }
            let out = times(&a.o, &seen);
            stream[position].iter_mut().zip(out).for_each(|(x, y)| *x += y);
        }
        for x in &mut stream {
            let out = feed_forward(config, &layer.mlp, &norm(x, &numbers(&layer.post_norm), config.eps));
            x.iter_mut().zip(out).for_each(|(x, y)| *x += y);
        }
    }
    let head = model.head.as_ref().unwrap_or(&model.embedding);
    stream.iter().flat_map(|x| times(head, &norm(x, &numbers(&model.norm), config.eps))).collect()
}
