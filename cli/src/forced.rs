//! `--schedule`: a schedule in words, for kernels that the chooser would not make.
//!
//! ```text
//! panel tile_m=64,tile_n=128,unroll=4,threads=256
//! ```

use crate::failure::Failure;
use bitsmith_compiler::schedule::{Family, Knob, Schedule};

/// The schedule that a text says; what it does not name is 1.
pub(crate) fn schedule(text: &str) -> Result<Schedule, Failure> {
    let (name, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    let refuse = |what: String| Failure::invalid(format!("--schedule `{text}`: {what}"));
    let family = Family::ALL.into_iter().find(|family| family.name() == name).ok_or_else(|| {
        let accepted: Vec<_> = Family::ALL.iter().map(|family| family.name()).collect();
        refuse(format!("family `{name}`; accepted: {}", accepted.join(", ")))
    })?;
    let mut schedule = Schedule::single(family, 1, 1, 1);
    let mut given: Vec<Knob> = Vec::new();
    for part in rest.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').ok_or_else(|| refuse(format!("`{part}`; accepted: NAME=NUMBER")))?;
        let knob = Knob::ALL.into_iter().find(|knob| knob.name() == name.trim()).ok_or_else(|| {
            let accepted: Vec<_> = Knob::ALL.iter().map(|knob| knob.name()).collect();
            refuse(format!("`{}`; accepted: {}", name.trim(), accepted.join(", ")))
        })?;
        if given.contains(&knob) {
            return Err(refuse(format!("{} stands twice", knob.name())));
        }
        let value =
            value.trim().parse().map_err(|_| refuse(format!("{} is `{value}`; accepted: numbers", knob.name())))?;
        given.push(knob);
        schedule = knob.set(schedule, value);
    }
    Ok(schedule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_schedules_and_wrong_words_are_named() {
        let found = schedule("panel tile_m=64, tile_n=128,unroll=4,threads=256").unwrap();
        assert_eq!(found, Schedule::single(Family::Panel, 64, 128, 4).with_threads(256, 1));
        for (text, name) in [
            ("pannel tile_m=64", "pannel"),
            ("panel tile=64", "`tile`"),
            ("panel tile_m", "NAME=NUMBER"),
            ("panel tile_m=x", "`x`"),
            ("panel tile_m=1,tile_m=1", "twice"),
        ] {
            let failure = schedule(text).unwrap_err();
            assert!(format!("{failure:?}").contains(name), "{text}: {failure:?}");
        }
    }
}
