//! Offline rotation of the residual stream by a randomized Hadamard matrix (QuaRot's R1): outliers spread over channels.
//!
//! Reads a model in floats; gives it with other weights that compute the same. Gains of norms move into the matrices after
//! them (a norm without gain commutes with a rotation), a tied head gets its own matrix, since the two no longer agree.
//! Widths that are no power of two are rotated in blocks of the largest power of two that divides them.

use crate::model::{Config, Floats, Layer, Layers, Linear, Mlp, Weight};
use bitsmith_compiler::{Error, Result};
use rayon::prelude::*;
use std::borrow::Cow;

/// A rotation of vectors of one width.
#[derive(Clone, Debug)]
pub struct Rotation {
    signs: Vec<f32>,
    block: usize,
}

impl Rotation {
    /// Random signs, then Hadamard.
    pub fn new(width: usize, seed: u64) -> Rotation {
        let mut rng = fastrand::Rng::with_seed(seed);
        let signs = (0..width).map(|_| if rng.bool() { 1.0 } else { -1.0 }).collect();
        Rotation { signs, block: 1 << width.trailing_zeros() }
    }

    /// Turns a vector.
    pub fn apply(&self, x: &mut [f32]) {
        x.iter_mut().zip(&self.signs).for_each(|(x, s)| *x *= s);
        let norm = 1.0 / (self.block as f32).sqrt();
        for part in x.chunks_exact_mut(self.block) {
            let mut half = 1;
            while half < self.block {
                for pair in part.chunks_exact_mut(2 * half) {
                    let (low, high) = pair.split_at_mut(half);
                    low.iter_mut().zip(high).for_each(|(a, b)| (*a, *b) = (*a + *b, *a - *b));
                }
                half *= 2;
            }
            part.iter_mut().for_each(|x| *x *= norm);
        }
    }
}

/// A model with its residual stream rotated, part by part as they are asked for.
pub struct Rotated<'a> {
    source: &'a dyn Layers,
    config: Config,
    rotation: Rotation,
}

impl<'a> Rotated<'a> {
    /// Rotates by a seed.
    pub fn new(source: &'a dyn Layers, seed: u64) -> Rotated<'a> {
        let mut config = source.config().clone();
        // The last norm's gain moves into the head, which can be the embedding no more.
        config.shape.tied = false;
        if let Some(json) = &mut config.json {
            json["tie_word_embeddings"] = false.into();
        }
        let rotation = Rotation::new(config.shape.hidden, seed);
        Rotated { source, config, rotation }
    }
}

impl Layers for Rotated<'_> {
    fn config(&self) -> &Config {
        &self.config
    }

    fn embedding(&self) -> Result<Cow<'_, Linear>> {
        let mut embedding = self.source.embedding()?.into_owned();
        inputs(&mut embedding, None, &self.rotation)?;
        Ok(Cow::Owned(embedding))
    }

    fn layer(&self, index: usize) -> Result<Cow<'_, Layer>> {
        let mut layer = self.source.layer(index)?.into_owned();
        rotate_layer(&mut layer, &self.rotation)?;
        Ok(Cow::Owned(layer))
    }

    fn norm(&self) -> Result<Cow<'_, Floats>> {
        let norm = self.source.norm()?;
        Ok(Cow::Owned(Floats { values: vec![1.0; norm.values.len()], dtype: norm.dtype }))
    }

    fn head(&self) -> Result<Option<Cow<'_, Linear>>> {
        let mut head = Linear { name: "lm_head".into(), ..self.source.logits()?.into_owned() };
        inputs(&mut head, Some(&self.source.norm()?.values), &self.rotation)?;
        Ok(Some(Cow::Owned(head)))
    }
}

fn rotate_layer(layer: &mut Layer, rotation: &Rotation) -> Result<()> {
    let unit = |floats: &mut Floats| {
        let width = floats.values.len();
        std::mem::replace(&mut floats.values, vec![1.0; width])
    };
    let (first, second) = (unit(&mut layer.input_norm), unit(&mut layer.post_norm));
    let a = &mut layer.attention;
    for linear in [&mut a.q, &mut a.k, &mut a.v] {
        inputs(linear, Some(&first), rotation)?;
    }
    outputs(&mut a.o, rotation)?;
    let gates = match &mut layer.mlp {
        Mlp::Dense(gated) => std::slice::from_mut(gated),
        Mlp::Experts { router, experts } => {
            inputs(router, Some(&second), rotation)?;
            &mut experts[..]
        }
    };
    for gated in gates {
        inputs(&mut gated.gate, Some(&second), rotation)?;
        inputs(&mut gated.up, Some(&second), rotation)?;
        outputs(&mut gated.down, rotation)?;
    }
    Ok(())
}

fn floats(linear: &mut Linear) -> Result<&mut Floats> {
    match &mut linear.weight {
        // What a rotation makes of a 16-bit number needs more bits.
        Weight::Floats(floats) => {
            floats.dtype = bitsmith_compiler::dtype::DType::F32;
            Ok(floats)
        }
        Weight::Quantized(q) => {
            Err(Error::invalid(format!("{}: is {} already; a rotation takes floats", linear.name, q.format)))
        }
    }
}

/// `W · diag(gain) · Rᵀ`: each row turns like an input.
fn inputs(linear: &mut Linear, gain: Option<&[f32]>, rotation: &Rotation) -> Result<()> {
    let k = linear.k;
    floats(linear)?.values.par_chunks_exact_mut(k).for_each(|row| {
        if let Some(gain) = gain {
            row.iter_mut().zip(gain).for_each(|(w, g)| *w *= g);
        }
        rotation.apply(row);
    });
    Ok(())
}

/// `R · W`: each column turns.
fn outputs(linear: &mut Linear, rotation: &Rotation) -> Result<()> {
    let (n, k) = (linear.n, linear.k);
    let turn = |values: &mut Vec<f32>, k: usize| {
        let mut columns = vec![0.0; n * k];
        columns.par_chunks_exact_mut(n).enumerate().for_each(|(c, column)| {
            column.iter_mut().enumerate().for_each(|(row, x)| *x = values[row * k + c]);
            rotation.apply(column);
        });
        values.par_chunks_exact_mut(k).enumerate().for_each(|(row, out)| {
            out.iter_mut().enumerate().for_each(|(c, x)| *x = columns[c * n + row]);
        });
    };
    turn(&mut floats(linear)?.values, k);
    if let Some(bias) = &mut linear.bias {
        turn(&mut bias.values, 1);
    }
    Ok(())
}
