//! Numbers out of noisy samples: quantiles, and whether one of two is faster for sure.
//!
//! On a machine that is shared, noise only adds time, now and then much of it. So a candidate stands for its lower
//! quartile, and two candidates are compared by samples that were taken one right after the other.

/// The value below which a share of the samples lies, between neighbours in proportion. Of no samples, NaN.
pub fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = share.clamp(0.0, 1.0) * last as f64;
    let (low, part) = (place.floor() as usize, place.fract());
    sorted[low] + part * (sorted[(low + 1).min(last)] - sorted[low])
}

/// The middle one.
pub fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

/// What a candidate stands for: its fastest sample where there are up to three, else its lower quartile.
pub fn level(samples: &[f64]) -> f64 {
    quantile(samples, if samples.len() <= 3 { 0.0 } else { 0.25 })
}

/// Pairs of samples that were taken right after each other: whether `a` is faster than `b`, by the exact sign test on the
/// pairs at a level of 5 % (two-sided), beyond `margin` (0.01 for 1 %).
pub fn faster(a: &[f64], b: &[f64], margin: f64) -> bool {
    let pairs = a.len().min(b.len());
    let wins = a.iter().zip(b).filter(|(a, b)| **a * (1.0 + margin) < **b).count();
    // P(at least `wins` of `pairs` heads), by summing the tail.
    let mut term = 0.5f64.powi(pairs as i32);
    let mut tail = 0.0;
    for heads in (0..=pairs).rev() {
        if heads >= wins {
            tail += term;
        }
        // C(n, h - 1) = C(n, h) · h / (n - h + 1).
        term *= heads as f64 / (pairs - heads + 1) as f64;
    }
    pairs > 0 && tail <= 0.025
}

/// The geometric mean. Of nothing, 1.
pub fn geometric_mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, count) = values.into_iter().fold((0.0, 0u32), |(sum, count), x| (sum + x.ln(), count + 1));
    if count == 0 { 1.0 } else { (sum / count as f64).exp() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0, 5.0], 0.25), 2.0);
        assert_eq!(level(&[3.0, 2.0]), 2.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn the_sign_test_wants_six_of_six() {
        let (a, b) = ([1.0; 6], [1.1; 6]);
        assert!(faster(&a, &b, 0.01) && !faster(&b, &a, 0.01));
        assert!(!faster(&a[..5], &b[..5], 0.01), "five pairs prove nothing at 5 %");
        assert!(!faster(&a, &b, 0.2), "within the margin");
        let mut mixed = b;
        mixed[0] = 0.9;
        assert!(!faster(&a, &mixed, 0.01), "five of six");
    }

    #[test]
    fn means() {
        assert!((geometric_mean([2.0, 8.0]) - 4.0).abs() < 1e-12);
        assert_eq!(geometric_mean([]), 1.0);
    }
}
