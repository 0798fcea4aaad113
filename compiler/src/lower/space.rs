//! The space of schedules as data: every family declares axes beside its program, and this crosses them.
//!
//! Reads the axes of the families that serve an operation; makes every point that a family can build. Always holds: what
//! the chooser ranks is among the points, and no point stands twice.

use super::{FAMILIES, Implementation, MATRIX_FAMILIES, lower};
use crate::caps::Caps;
use crate::error::{Error, Result};
use crate::op::Op;
use crate::schedule::{Family, Knob, Schedule};

/// One axis of a family's space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// What it turns.
    pub knob: Knob,
    /// The values worth trying, ascending.
    pub values: &'static [u32],
}

impl Axis {
    pub(super) const fn new(knob: Knob, values: &'static [u32]) -> Axis {
        Axis { knob, values }
    }
}

/// What a schedule is guessed to need on a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Vector registers that the inner loop wants at once.
    pub registers: u32,
    /// Vector instructions per product of one weight and one activation.
    pub work: f64,
}

/// The family's guess for a schedule and `m` rows; `None` where it has none.
pub fn estimate(op: &Op, schedule: &Schedule, caps: &Caps, m: usize) -> Option<Estimate> {
    let family = FAMILIES.iter().chain(MATRIX_FAMILIES).find(|f| f.family == schedule.family)?;
    Some(family.estimate?(op, schedule, caps, m))
}

/// Every point of the declared spaces of the families that serve an operation, what the chooser ranks for `m` rows first in
/// each. Fails where no family serves.
pub fn points(op: &Op, caps: &Caps, m: usize) -> Result<Vec<Schedule>> {
    let op = op.checked()?;
    let able: Vec<&Implementation> =
        FAMILIES.iter().chain(MATRIX_FAMILIES).filter(|f| (f.refuses)(&op, caps).is_none()).collect();
    if able.is_empty() {
        super::families(&op, caps)?;
    }
    let mut points: Vec<Schedule> = Vec::new();
    for family in able {
        let mut list = (family.space)(&op, caps, m);
        if list.is_empty() && matches!(family.family, Family::Dense | Family::Wide) {
            // They are for many rows only.
            continue;
        }
        let mut crossed = vec![Schedule::single(family.family, 1, 1, 1)];
        for axis in family.axes {
            crossed = crossed
                .iter()
                .flat_map(|&point| axis.values.iter().map(move |&value| axis.knob.set(point, value)))
                .collect();
        }
        if !family.axes.is_empty() {
            list.extend(crossed);
        }
        for schedule in list {
            if !points.contains(&schedule) {
                points.push(schedule);
            }
        }
    }
    Ok(points)
}

/// Why a schedule cannot be built for an operation, if it cannot; that does not depend on the number of rows.
pub fn refusal(op: &Op, schedule: &Schedule, caps: &Caps) -> Result<Option<String>> {
    match lower(op, schedule, caps) {
        Ok(_) => Ok(None),
        Err(Error::Invalid(faults)) => Ok(Some(faults.join("; "))),
        Err(Error::Unsupported(why)) => Ok(Some(why)),
        Err(other) => Err(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caps::{CPU_LEVELS, NVIDIA_DEVICES};
    use crate::op::{Epilogue, Matmul};

    #[test]
    fn the_choosers_schedules_are_among_the_declared_points() {
        let weight = "int4-g32".parse().unwrap();
        let activation = "f16".parse().unwrap();
        let out = crate::dtype::DType::F16;
        let op = Op::Matmul(Matmul { n: 64, k: 64, weight, activation, out, epilogue: Epilogue::default() });
        let mut refused = 0;
        for caps in CPU_LEVELS.iter().take(3).chain(NVIDIA_DEVICES.iter().take(1)) {
            for m in [1, 16] {
                let why = |schedule: Schedule| (schedule, refusal(&op, &schedule, caps).unwrap());
                let points: Vec<_> = points(&op, caps, m).unwrap().into_iter().map(why).collect();
                let sound = |wanted: &Schedule| points.iter().any(|(s, why)| s == wanted && why.is_none());
                assert!(super::super::space(&op, caps, m).unwrap().iter().all(sound), "{}", caps.name);
                assert!(sound(&super::super::choose(&op, caps, m).unwrap()), "{}", caps.name);
                let able = points.iter().filter(|(_, why)| why.is_none()).count();
                assert!(able > 40, "{}: {able} of {}", caps.name, points.len());
                refused += points.len() - able;
            }
        }
        assert!(refused > 0, "no point of any space was refused");
    }

    #[test]
    fn knobs_set_what_they_read() {
        let schedule = Schedule::single(Family::Tile, 1, 1, 1);
        for knob in Knob::ALL {
            assert_eq!(knob.of(&knob.set(schedule, 7)), 7, "{}", knob.name());
            assert!(Knob::ALL.iter().all(|&other| other == knob || other.of(&knob.set(schedule, 7)) == 1));
        }
    }
}
