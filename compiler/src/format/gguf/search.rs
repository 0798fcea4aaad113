//! Searches for the scale, and the offset, of a few weights, as ggml's reference quantizers make them.
//!
//! Reads weights and how much each matters; makes codes and the scale that fits them best. The operations on `f32`
//! are in ggml's order (`ggml-quants.c` @d99724f2), so that the results agree bit for bit.

/// Below this magnitude ggml takes a group for zeros.
pub(super) const TINY: f32 = 1e-15;

/// The nearest integer, ties to even.
pub(super) fn nearest(x: f32) -> i32 {
    x.round_ties_even() as i32
}

/// The weight of greatest magnitude, with its sign; the first of equals.
pub(super) fn extreme(x: &[f32]) -> f32 {
    x.iter().fold(0.0f32, |most, x| if x.abs() > most.abs() { *x } else { most })
}

/// A scale for codes of `-half .. half`, stored as `0 .. 2 * half`: least squares over 19 trial scales about the one
/// that puts the extreme weight at `-half`.
pub(super) fn symmetric(x: &[f32], weight: impl Fn(usize) -> f32, half: i32, codes: &mut [u8]) -> f32 {
    let extreme = extreme(x);
    if extreme.abs() < TINY {
        codes.fill(0);
        return 0.0;
    }
    let level = |inverse: f32, x: f32| nearest(inverse * x).clamp(-half, half - 1);
    let sums = |inverse: f32| {
        let (mut along, mut square) = (0.0f32, 0.0f32);
        for (i, x) in x.iter().enumerate() {
            let (l, w) = (level(inverse, *x) as f32, weight(i));
            along += w * x * l;
            square += w * l * l;
        }
        (along, square)
    };
    let mut chosen = -half as f32 / extreme;
    let (along, square) = sums(chosen);
    let mut scale = if square != 0.0 { along / square } else { 0.0 };
    let mut best = scale * along;
    for step in (-9..=9).filter(|step| *step != 0) {
        let inverse = -(half as f32 + 0.1f32 * step as f32) / extreme;
        let (along, square) = sums(inverse);
        if square > 0.0 && along * along > best * square {
            scale = along / square;
            best = scale * along;
            chosen = inverse;
        }
    }
    for (code, x) in codes.iter_mut().zip(x) {
        *code = (level(chosen, *x) + half) as u8;
    }
    scale
}

/// A scale for codes of `-half .. half`, stored as `0 .. 2 * half`: coordinate descent on codes, weights as their own
/// squares.
pub(super) fn descent(x: &[f32], half: i32, codes: &mut [u8]) -> f32 {
    let extreme = extreme(x);
    if extreme.abs() < TINY {
        codes.fill(0);
        return 0.0;
    }
    let inverse = -half as f32 / extreme;
    let mut levels: Vec<i32> = x.iter().map(|x| nearest(inverse * x).clamp(-half, half - 1)).collect();
    let (mut along, mut square) = (0.0f32, 0.0f32);
    for (x, l) in x.iter().zip(&levels) {
        let (w, l) = (x * x, *l as f32);
        along += w * x * l;
        square += w * l * l;
    }
    for _ in 0..5 {
        let mut changed = false;
        for (x, level) in x.iter().zip(&mut levels) {
            let (w, l) = (x * x, *level as f32);
            let mut rest_along = along - w * x * l;
            if rest_along > 0.0 {
                let mut rest_square = square - w * l * l;
                let better = nearest(x * rest_square / rest_along).clamp(-half, half - 1);
                if better != *level {
                    let l = better as f32;
                    rest_along += w * x * l;
                    rest_square += w * l * l;
                    if rest_square > 0.0 && rest_along * rest_along * square > along * along * rest_square {
                        *level = better;
                        along = rest_along;
                        square = rest_square;
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    for (code, level) in codes.iter_mut().zip(&levels) {
        *code = (level + half) as u8;
    }
    if square > 0.0 { along / square } else { 0.0 }
}

/// Trial scales of [`offset`]: `(start + step * i + most) / range` for `i` in `0 ..= count`.
#[derive(Clone, Copy)]
pub(super) struct Trials {
    /// The first one's distance from the plain scale, in codes.
    pub start: f32,
    /// Distance between neighbours.
    pub step: f32,
    /// The last one's number.
    pub count: i32,
    /// Compare absolute instead of squared errors.
    pub absolute: bool,
}

/// A scale and an offset `m >= 0` for codes of `0 ..= most`, `x = scale * code - m`: weighted least squares over
/// trial scales.
pub(super) fn offset(x: &[f32], weights: &[f32], most: i32, codes: &mut [u8], trials: Trials) -> (f32, f32) {
    let (mut low, mut high) = (x[0], x[0]);
    let mut sum_w = weights[0];
    let mut sum_x = sum_w * x[0];
    for (x, w) in x.iter().zip(weights).skip(1) {
        low = low.min(*x);
        high = high.max(*x);
        sum_w += w;
        sum_x += w * x;
    }
    low = low.min(0.0);
    if high <= low {
        codes.fill(0);
        return (0.0, -low);
    }
    let level = |inverse: f32, x: f32, low: f32| nearest(inverse * (x - low)).clamp(0, most) as u8;
    let error = |scale: f32, low: f32, codes: &[u8]| {
        let mut sum = 0.0f32;
        for ((x, w), code) in x.iter().zip(weights).zip(codes) {
            let difference = scale * *code as f32 + low - x;
            sum += w * if trials.absolute { difference.abs() } else { difference * difference };
        }
        sum
    };
    let inverse = most as f32 / (high - low);
    let mut scale = 1.0 / inverse;
    for (code, x) in codes.iter_mut().zip(x) {
        *code = level(inverse, *x, low);
    }
    let mut least = error(scale, low, codes);
    let mut trial = [0u8; 32];
    let trial = &mut trial[..x.len()];
    for i in 0..=trials.count {
        // The range follows the best offset so far.
        let inverse = (trials.start + trials.step * i as f32 + most as f32) / (high - low);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0f32, 0.0f32, 0.0f32);
        for ((x, w), code) in x.iter().zip(weights).zip(trial.iter_mut()) {
            *code = level(inverse, *x, low);
            let l = *code as f32;
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * x;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant > 0.0 {
            let mut new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut new_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if new_low > 0.0 {
                new_low = 0.0;
                new_scale = sum_xl / sum_l2;
            }
            let new_error = error(new_scale, new_low, trial);
            if new_error < least {
                codes.copy_from_slice(trial);
                least = new_error;
                scale = new_scale;
                low = new_low;
            }
        }
    }
    (scale, -low)
}

/// A scale for numbers from 0 up with codes of `0 ..= most`: trial scales, then coordinate descent.
pub(super) fn positive(x: &[f32], weights: &[f32], most: i32, codes: &mut [u8]) -> f32 {
    let high = x.iter().fold(0.0f32, |high, x| high.max(*x));
    if high < TINY {
        codes.fill(0);
        return 0.0;
    }
    let level = |inverse: f32, x: f32| nearest(inverse * x).clamp(0, most);
    let error = |inverse: f32| {
        let scale = 1.0 / inverse;
        let mut sum = 0.0f32;
        for (x, w) in x.iter().zip(weights) {
            let difference = x - scale * level(inverse, *x) as f32;
            sum += w * difference * difference;
        }
        sum
    };
    let mut inverse = most as f32 / high;
    let mut least = error(inverse);
    for step in (-4..=4).filter(|step| *step != 0) {
        let trial = (0.1f32 * step as f32 + most as f32) / high;
        let trial_error = error(trial);
        if trial_error < least {
            least = trial_error;
            inverse = trial;
        }
    }
    let (mut along, mut square) = (0.0f32, 0.0f32);
    for ((x, w), code) in x.iter().zip(weights).zip(codes.iter_mut()) {
        *code = level(inverse, *x) as u8;
        let l = *code as f32;
        along += w * x * l;
        square += w * l * l;
    }
    for _ in 0..5 {
        let mut changed = false;
        for ((x, w), code) in x.iter().zip(weights).zip(codes.iter_mut()) {
            let l = *code as f32;
            let mut rest_along = along - w * x * l;
            let mut rest_square = square - w * l * l;
            if rest_along > 0.0 && rest_square > 0.0 {
                let better = nearest(x * rest_square / rest_along).clamp(0, most);
                if better != *code as i32 {
                    let l = better as f32;
                    rest_along += w * x * l;
                    rest_square += w * l * l;
                    if rest_along * rest_along * square > along * along * rest_square {
                        *code = better as u8;
                        along = rest_along;
                        square = rest_square;
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    if square > 0.0 { along / square } else { 0.0 }
}
