//! A second look at an entry, some time after the first.
//!
//! A machine that others share has states that last for minutes: what is best while its memory is fast may not be while
//! neighbours load it. Two looks see one state more often than one look does, and what did well for neighbours meanwhile is
//! tried as well. Always holds: as for a search, samples alone decide.

use super::run::{EQUAL, Run, WORTH};
use super::{Effort, Outcome, Space, Watch};
use crate::measure::Bench;
use bitsmith_compiler::Result;
use bitsmith_compiler::schedule::Schedule;
use std::collections::BTreeMap;

/// Candidates of the first look that race again.
const FINALISTS: usize = 3;
/// Candidates of neighbours that race as well.
const GUESTS: usize = 2;

/// Races the best of a first look, the incumbent and the best of what is `near` once more, and says what both looks come to.
/// Where they name different schedules, that one is taken which is the faster by the product of both, each against the
/// incumbent of the same look.
pub fn again(
    space: &Space,
    incumbent: &Schedule,
    first: Outcome,
    near: &[Schedule],
    bench: &mut dyn Bench,
    effort: Effort,
    watch: &mut dyn Watch,
) -> Result<Outcome> {
    let mut run = Run::new(bench, incumbent, effort.seconds, watch).going_on(first.samples);
    let mut finalists = vec![first.best];
    let ranked = first.measured.iter().filter(|m| m.left >= 3).map(|m| m.schedule);
    finalists.extend(ranked.filter(|s| *s != first.best && s != incumbent).take(FINALISTS - 1));
    let mut guests: Vec<Schedule> = Vec::new();
    for schedule in near.iter().filter(|s| space.of(s).is_some_and(|c| c.pruned.is_none())) {
        if schedule != incumbent && !finalists.contains(schedule) && !guests.contains(schedule) {
            guests.push(*schedule);
        }
    }
    let guests = run.round(&guests, 2)?;
    finalists.extend(run.ranked(&guests).into_iter().take(GUESTS));
    let prior = |schedule: &Schedule| space.of(schedule).map_or(f64::INFINITY, |c| c.prior);
    let second = run.race(finalists, effort.race, &prior)?;

    let before: BTreeMap<Schedule, f64> = first.measured.iter().map(|m| (m.schedule, m.seconds)).collect();
    let now = |schedule: &Schedule| run.level(schedule) / run.level(incumbent);
    let then = |schedule: &Schedule| before.get(schedule).map(|seconds| seconds / first.incumbent_seconds);
    let mut best = second;
    if second != first.best {
        // What the first look did not meet has to be better by itself.
        let both = |schedule: &Schedule| now(schedule) * then(schedule).unwrap_or(1.0 + EQUAL);
        let old = match then(&second) {
            Some(_) => both(&first.best),
            None => now(&first.best),
        };
        if both(&second) >= old {
            best = first.best;
        }
        let seen = if then(&best).is_some() { now(&best) * then(&best).unwrap_or(1.0) } else { now(&best).powi(2) };
        if seen.sqrt() * (1.0 + WORTH) >= 1.0 {
            best = *incumbent;
        }
    }
    let mut outcome = run.outcome(space, best, Vec::new(), false);
    // A run that was cut may have no time of the best: those of the first look stand.
    if !outcome.seconds.is_finite() {
        (outcome.best, outcome.seconds) = (first.best, first.seconds);
        outcome.incumbent_seconds = first.incumbent_seconds;
    }
    let known: Vec<Schedule> = outcome.measured.iter().map(|m| m.schedule).collect();
    outcome.measured.extend(first.measured.into_iter().filter(|m| !known.contains(&m.schedule)));
    outcome.measured.sort_by(|a, b| a.seconds.total_cmp(&b.seconds).then(a.schedule.cmp(&b.schedule)));
    let measured = |schedule: &Schedule| outcome.measured.iter().any(|m| m.schedule == *schedule);
    outcome.dropped = first.dropped.into_iter().filter(|(schedule, _)| !measured(schedule)).collect();
    outcome.samples += first.samples;
    outcome.spent += first.spent;
    outcome.cut = first.cut;
    Ok(outcome)
}
