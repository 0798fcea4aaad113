//! A further look at an entry, some time after those before.
//!
//! A machine that others share has states that last for minutes: what is best while its memory is fast may not be while
//! neighbours load it. Several looks see more states than one does, and what did well for neighbours meanwhile is
//! tried as well. Always holds: as for a search, samples alone decide.

use super::run::{EQUAL, Run, WORTH};
use super::{Effort, Measured, Outcome, Space, Watch};
use crate::measure::Bench;
use bitsmith_compiler::Result;
use bitsmith_compiler::schedule::Schedule;
use std::collections::BTreeMap;

/// Candidates of the first look that race again.
const FINALISTS: usize = 4;
/// Candidates of neighbours that race as well.
const GUESTS: usize = 3;

/// Races the best of what `looks` looks came to, the incumbent and the best of what is `near` once more, and says what all looks
/// come to. Where they name different schedules, that one is taken which is the faster in the mean of all, each against the
/// incumbent of the same look.
pub fn again(
    space: &Space,
    incumbent: &Schedule,
    (first, looks): (Outcome, usize),
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

    let before: BTreeMap<Schedule, f64> =
        first.measured.iter().map(|m| (m.schedule, m.seconds / first.incumbent_seconds)).collect();
    let now = |schedule: &Schedule| run.level(schedule) / run.level(incumbent);
    // Against the incumbent, in the geometric mean over all looks that met it.
    let mean = |schedule: &Schedule| match before.get(schedule) {
        Some(then) => (now(schedule).ln() + looks as f64 * then.ln()).exp().powf(1.0 / (looks + 1) as f64),
        None => now(schedule),
    };
    let mut best = second;
    if second != first.best {
        let slower = match before.contains_key(&second) {
            true => mean(&second) >= mean(&first.best),
            // What no look before met has to be better by itself.
            false => now(&second) * (1.0 + EQUAL) >= now(&first.best),
        };
        if slower {
            best = first.best;
        }
        // What is faster in one state of the machine alone is not worth it.
        if now(&best).max(mean(&best)) * (1.0 + WORTH) >= 1.0 {
            best = *incumbent;
        }
    }
    let level = run.level(incumbent);
    let means: BTreeMap<Schedule, f64> = run.samples.keys().map(|schedule| (*schedule, mean(schedule))).collect();
    let mut outcome = run.outcome(space, best, Vec::new(), false);
    if level.is_finite() {
        for measured in &mut outcome.measured {
            measured.seconds = means[&measured.schedule] * level;
        }
        outcome.seconds = means.get(&best).map_or(f64::INFINITY, |mean| mean * level);
    }
    // A run that was cut may have no time of the best: those of the looks before stand.
    if !outcome.seconds.is_finite() {
        (outcome.best, outcome.seconds) = (first.best, first.seconds);
        outcome.incumbent_seconds = first.incumbent_seconds;
    }
    let scale = outcome.incumbent_seconds / first.incumbent_seconds;
    let known: Vec<Schedule> = outcome.measured.iter().map(|m| m.schedule).collect();
    let unmet = first.measured.into_iter().filter(|m| !known.contains(&m.schedule));
    outcome.measured.extend(unmet.map(|m| Measured { seconds: m.seconds * scale, ..m }));
    outcome.measured.sort_by(|a, b| a.seconds.total_cmp(&b.seconds).then(a.schedule.cmp(&b.schedule)));
    let measured = |schedule: &Schedule| outcome.measured.iter().any(|m| m.schedule == *schedule);
    outcome.dropped = first.dropped.into_iter().filter(|(schedule, _)| !measured(schedule)).collect();
    outcome.samples += first.samples;
    outcome.spent += first.spent;
    outcome.cut = first.cut;
    Ok(outcome)
}
