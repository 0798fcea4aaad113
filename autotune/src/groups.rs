//! Speed against error: formats of one layer, the Pareto front among them, and the one to take.

use bitsmith_compiler::schedule::Schedule;
use serde::Serialize;

/// A format for a layer, measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// The format.
    pub format: String,
    /// Relative error of the weights, root mean square.
    pub error: f64,
    /// Seconds per launch of the best schedule that was found.
    pub seconds: f64,
    /// That schedule.
    pub schedule: Schedule,
    /// Bits of codes, scales and zeros per weight.
    pub bits_per_weight: f64,
    /// Whether no other is better in both; see [`front`].
    pub front: bool,
}

/// Times that differ by less are equal: a smaller error is worth more than noise.
const EQUAL: f64 = 0.02;

/// Marks the points that no other beats in both error and time.
pub fn front(points: &mut [Point]) {
    for i in 0..points.len() {
        let own = &points[i];
        let beats = |p: &Point| {
            p.error <= own.error && p.seconds <= own.seconds && (p.error < own.error || p.seconds < own.seconds)
        };
        let beaten = points.iter().any(beats);
        points[i].front = !beaten;
    }
}

/// The fastest point within an error; among those that are as fast but for noise, the one with the least error. `None`
/// where every point's error is larger.
pub fn recommend(points: &[Point], most: f64) -> Option<&Point> {
    let within = || points.iter().filter(|p| p.error <= most);
    let fastest = within().map(|p| p.seconds).fold(f64::INFINITY, f64::min);
    within()
        .filter(|p| p.seconds <= fastest * (1.0 + EQUAL))
        .min_by(|a, b| a.error.total_cmp(&b.error).then(a.seconds.total_cmp(&b.seconds)).then(a.format.cmp(&b.format)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_compiler::schedule::Family;

    #[test]
    fn a_front_and_a_recommendation() {
        let point = |format: &str, error: f64, seconds: f64| Point {
            format: format.into(),
            error,
            seconds,
            schedule: Schedule::single(Family::Stream, 1, 8, 1),
            bits_per_weight: 4.0,
            front: false,
        };
        let mut points = vec![
            point("g16", 0.05, 1.3),
            point("g32", 0.07, 1.01),
            point("g64", 0.08, 1.0),
            point("g128", 0.12, 0.9),
            point("bad", 0.09, 1.2),
        ];
        front(&mut points);
        assert_eq!(points.iter().map(|p| p.front).collect::<Vec<_>>(), [true, true, true, true, false]);
        let take = |most: f64| recommend(&points, most).map(|p| p.format.as_str());
        assert_eq!(take(0.2), Some("g128"));
        assert_eq!(take(0.1), Some("g32"), "as fast as g64 but for noise");
        assert_eq!(take(0.06), Some("g16"));
        assert_eq!(take(0.01), None);
    }
}
