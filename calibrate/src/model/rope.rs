//! Rotary position embedding: frequencies with their scalings, and the rotation of heads.
//!
//! Reads the fields of a configuration; makes cosines and sines per position, and turns heads in place. Pairs are
//! `(i, i + dim/2)` in the half-split order of Hugging Face, `(2i, 2i + 1)` in the interleaved order of GGUF.

use std::f64::consts::PI;

/// How positions turn into angles.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// How frequencies are stretched beyond the trained context.
    pub scaling: Scaling,
    /// Divisors of the frequencies from the file itself (`rope_freqs` of GGUF); they stand for a scaling.
    pub factors: Option<Vec<f32>>,
    /// Whether a pair is two neighbours rather than two halves.
    pub interleaved: bool,
}

/// How frequencies are stretched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// All by one factor.
    Linear(f64),
    /// Llama 3: low frequencies by a factor, high ones not at all, a ramp between.
    Llama3 {
        /// The factor of the lowest frequencies.
        factor: f64,
        /// Turns over the original context below which a frequency is low.
        low: f64,
        /// Turns over the original context above which a frequency is high.
        high: f64,
        /// The original context.
        original: f64,
    },
    /// Dynamic NTK: the base grows with the text once it is longer than the trained context.
    Dynamic {
        /// How fast it grows.
        factor: f64,
        /// The trained context.
        trained: f64,
    },
    /// YaRN (Peng et al. 2023): low frequencies by a factor, high ones not at all, a ramp between, and rotated heads scaled.
    Yarn {
        /// The factor of the lowest frequencies.
        factor: f64,
        /// The original context.
        original: f64,
        /// Turns over the original context above which a frequency is left alone.
        fast: f64,
        /// Turns over the original context below which a frequency has the whole factor.
        slow: f64,
        /// Whether the ends of the ramp fall on whole pairs.
        whole: bool,
        /// What rotated heads are multiplied with.
        attention: f64,
    },
}

impl Scaling {
    /// YaRN's multiplier of rotated heads where a configuration names none.
    pub fn yarn_attention(factor: f64) -> f64 {
        if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 }
    }
}

impl Rope {
    /// A plain one.
    pub fn new(theta: f64) -> Rope {
        Rope { theta, scaling: Scaling::None, factors: None, interleaved: false }
    }

    /// Angles per position of each pair of a head of `dim` numbers, in a text that stays within the trained context.
    pub fn frequencies(&self, dim: usize) -> Vec<f64> {
        self.frequencies_at(dim, 0)
    }

    /// Whether angles depend on how long a text is.
    pub fn grows(&self) -> bool {
        matches!(self.scaling, Scaling::Dynamic { .. })
    }

    /// Angles per position of each pair of a head of `dim` numbers, in a text of so many tokens so far. Where they depend on
    /// it, keys that are in a cache already keep the angles they were given, as they do in transformers.
    pub fn frequencies_at(&self, dim: usize, tokens: usize) -> Vec<f64> {
        let theta = match self.scaling {
            Scaling::Dynamic { factor, trained } => {
                let length = (tokens as f64).max(trained);
                let grown = factor * length / trained - (factor - 1.0);
                self.theta * grown.powf(dim as f64 / (dim as f64 - 2.0))
            }
            _ => self.theta,
        };
        let stretched = |i: usize| {
            let frequency = theta.powf(-2.0 * i as f64 / dim as f64);
            match self.scaling {
                Scaling::None | Scaling::Dynamic { .. } => frequency,
                Scaling::Yarn { factor, original, fast, slow, whole, .. } => {
                    // The pair that turns so many times over the original context.
                    let pair = |turns: f64| dim as f64 * (original / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
                    let (first, last) = (pair(fast), pair(slow));
                    let (first, last) = if whole { (first.floor(), last.ceil()) } else { (first, last) };
                    let (first, mut last) = (first.max(0.0), last.min(dim as f64 - 1.0));
                    if first == last {
                        last += 0.001;
                    }
                    let ramp = ((i as f64 - first) / (last - first)).clamp(0.0, 1.0);
                    frequency / factor * ramp + frequency * (1.0 - ramp)
                }
                Scaling::Linear(factor) => frequency / factor,
                Scaling::Llama3 { factor, low, high, original } => {
                    let turns = original * frequency / (2.0 * PI);
                    let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        };
        let divisor = |i: usize| self.factors.as_ref().map_or(1.0, |factors| factors[i] as f64);
        (0..dim / 2).map(|i| stretched(i) / divisor(i)).collect()
    }

    /// Turns heads of `dim` numbers that lie one after another, all at one position.
    pub fn rotate(&self, heads: &mut [f32], dim: usize, frequencies: &[f64], position: usize) {
        let times = if let Scaling::Yarn { attention, .. } = self.scaling { attention } else { 1.0 };
        let turns: Vec<(f32, f32)> = frequencies
            .iter()
            .map(|f| (position as f64 * f).sin_cos())
            .map(|(sin, cos)| ((sin * times) as f32, (cos * times) as f32))
            .collect();
        for head in heads.chunks_exact_mut(dim) {
            for (i, &(sin, cos)) in turns.iter().enumerate() {
                let (a, b) = if self.interleaved { (2 * i, 2 * i + 1) } else { (i, i + dim / 2) };
                let (x, y) = (head[a], head[b]);
                head[a] = x * cos - y * sin;
                head[b] = y * cos + x * sin;
            }
        }
    }

    /// Rows of a query or key matrix as GGUF's `llama` architecture stores them: row `i` of the file is row `order[i]` of
    /// the half-split matrix, head by head (`reshape(heads, 2, dim/2).swapaxes(1, 2)`).
    pub fn interleaved_order(heads: usize, dim: usize) -> Vec<usize> {
        (0..heads * dim).map(|row| row / dim * dim + row % 2 * (dim / 2) + row % dim / 2).collect()
    }

    /// The order that undoes [`Rope::interleaved_order`].
    pub fn half_split_order(heads: usize, dim: usize) -> Vec<usize> {
        let mut order = vec![0; heads * dim];
        for (to, from) in Rope::interleaved_order(heads, dim).into_iter().enumerate() {
            order[from] = to;
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_orders_turn_the_same_pairs() {
        let half = Rope::new(10000.0);
        let inter = Rope { interleaved: true, ..half.clone() };
        let frequencies = half.frequencies(8);
        let plain: Vec<f32> = (0..16).map(|i| i as f32 * 0.3 - 1.0).collect();
        let order = Rope::interleaved_order(2, 8);
        let mut shuffled: Vec<f32> = order.iter().map(|&row| plain[row]).collect();
        let mut turned = plain.clone();
        half.rotate(&mut turned, 8, &frequencies, 5);
        inter.rotate(&mut shuffled, 8, &frequencies, 5);
        let back = Rope::half_split_order(2, 8);
        let restored: Vec<f32> = back.iter().map(|&row| shuffled[row]).collect();
        assert_eq!(restored, turned);
        assert_ne!(turned, plain);
    }

    /// Frequencies of Llama 3.1 (theta 500000, factor 8, 1 and 4 turns, 8192), from the definition in its publisher's
    /// `apply_scaling`: the highest is untouched, the lowest divided by 8.
    #[test]
    fn llama3_scaling_leaves_high_frequencies() {
        let scaling = Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 };
        let rope = Rope { scaling, ..Rope::new(500000.0) };
        let (scaled, plain) = (rope.frequencies(128), Rope::new(500000.0).frequencies(128));
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[63], plain[63] / 8.0);
        let middle = scaled.iter().zip(&plain).filter(|(s, p)| **s < **p && **s > **p / 8.0).count();
        assert!((4..=12).contains(&middle), "{middle} frequencies on the ramp");
        assert_eq!(Rope { scaling: Scaling::Linear(4.0), ..Rope::new(1e4) }.frequencies(8)[0], 0.25);
    }
}
