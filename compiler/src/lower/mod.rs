//! Lowering: families turn (operation, schedule, caps) into kernel IR.
//!
//! Reads operations, formats, layouts and caps; makes kernels that know of none of them. `unpack` is the only place that
//! decodes a format. Each family's file holds `applies`, `space` and `build` side by side.

mod activation;
mod dequant;
pub mod kv;
mod lanes;
mod matmul;
mod memory;
mod native;
mod quantize;
mod space;
mod stage;
mod team;
mod unpack;
mod walk;

pub use native::{native, pack};

pub use memory::{Packing, Role, Signature, signature, signature_packed};
pub use space::{Axis, Estimate, estimate, points, refusal};

use crate::caps::Caps;
use crate::error::{Error, Result};
use crate::ir::{Demand, Fit, Kernel};
use crate::op::Op;
use crate::schedule::{Family, Schedule};

/// What a family guesses that a schedule needs for so many rows.
pub type Guess = fn(&Op, &Schedule, &Caps, usize) -> Estimate;

/// A family of programs: one way to compute some operations on some devices.
#[derive(Clone, Copy, Debug)]
pub struct Implementation {
    /// Which family.
    pub family: Family,
    /// What it is good for, in a sentence.
    pub summary: &'static str,
    /// Why it cannot serve this operation on this device; `None` if it can.
    pub refuses: fn(&Op, &Caps) -> Option<String>,
    /// The axes of its space, for whoever searches it: any point that `build` takes counts.
    pub axes: &'static [Axis],
    /// What a point of that space is guessed to need, by counting; `None` where nothing has been counted for the family.
    pub estimate: Option<Guess>,
    /// The schedules that the chooser ranks for `m` rows, its favourite first.
    pub space: fn(&Op, &Caps, usize) -> Vec<Schedule>,
    /// The kernel.
    pub build: fn(&Op, &Schedule, &Caps) -> Result<Kernel>,
}

/// Every family.
pub const FAMILIES: &[Implementation] = &[
    matmul::STREAM,
    matmul::TILE,
    matmul::SPREAD,
    matmul::COOPERATIVE,
    matmul::BLOCK,
    dequant::DECODE,
    quantize::ROWS,
];

/// Families that ask for a packing of their own: whoever takes one asks [`packing`] how to pack.
pub const MATRIX_FAMILIES: &[Implementation] =
    &[matmul::RING, matmul::PANEL_FAMILY, matmul::WIDE, matmul::DENSE, matmul::MMA];

/// Whether a family is one of [`MATRIX_FAMILIES`].
fn is_matrix_family(family: Family) -> bool {
    MATRIX_FAMILIES.iter().any(|known| known.family == family)
}

/// How a kernel's weights must lie on a device of these caps.
pub fn packing(op: &Op, schedule: &Schedule, caps: &Caps) -> Packing {
    match op {
        Op::Matmul(op) if is_matrix_family(schedule.family) => matmul::packing(op, caps),
        _ => Packing::N16,
    }
}

/// What a family's kernels may lose of sums beyond roundings of `f32`, relative to the sum of magnitudes.
pub fn loss(op: &Op, family: Family) -> f64 {
    match op {
        Op::Matmul(op) if matches!(family, Family::Dense | Family::Wide) => op.matrix_loss() + op.decoding_loss(),
        Op::Matmul(op) if is_matrix_family(family) => op.matrix_loss(),
        _ => 0.0,
    }
}

/// The buffers of a kernel in the order of its parameters, a workspace among them where workgroups need one.
pub fn signature_of(op: &Op, schedule: &Schedule, caps: &Caps) -> Result<Vec<Signature>> {
    let mut list = signature_packed(op, packing(op, schedule, caps))?;
    list.extend(workspace(op, schedule));
    Ok(list)
}

/// The workspace of a kernel, or its decoded weights ([`Role::Decoded`]). A launch leaves it as it must be before one, so
/// launches may use it one after the other, but no two at a time.
pub fn workspace(op: &Op, schedule: &Schedule) -> Option<Signature> {
    match op {
        Op::Matmul(op) => matmul::workspace(op, schedule),
        Op::Dequant(_) | Op::Quantize(_) => None,
    }
}

/// A kernel that each launch runs before its own one, and that must have ended before that one begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Preparation {
    /// The kernel.
    pub kernel: Kernel,
    /// Which of the launch's buffers it takes, in the order of its parameters.
    pub takes: Vec<Role>,
    /// Its workgroups, whatever the number of rows.
    pub grid: [u32; 3],
}

/// What a schedule has run before its own kernel; `None` where a launch is one kernel.
pub fn preparation(op: &Op, schedule: &Schedule, caps: &Caps) -> Result<Option<Preparation>> {
    match op {
        Op::Matmul(op) => matmul::preparation(op, schedule, caps),
        Op::Dequant(_) | Op::Quantize(_) => Ok(None),
    }
}

/// The families that can serve an operation; if there is none, the error names what each one lacks.
pub fn families(op: &Op, caps: &Caps) -> Result<Vec<&'static Implementation>> {
    let able: Vec<_> = FAMILIES.iter().filter(|f| (f.refuses)(op, caps).is_none()).collect();
    if able.is_empty() {
        let why: Vec<String> = FAMILIES
            .iter()
            .filter_map(|f| (f.refuses)(op, caps).map(|why| format!("family {}: {why}", f.family.name())))
            .collect();
        return Err(Error::Unsupported(format!("{} on {}: {}", op.name(), caps.name, why.join("; "))));
    }
    Ok(able)
}

/// Every schedule worth trying for `m` rows whose weights lie in N16; those of [`MATRIX_FAMILIES`] come beside them.
pub fn space(op: &Op, caps: &Caps, m: usize) -> Result<Vec<Schedule>> {
    Ok(families(op, caps)?.into_iter().flat_map(|f| (f.space)(op, caps, m)).collect())
}

/// The schedule to take for `m` rows where nothing has been measured.
pub fn choose(op: &Op, caps: &Caps, m: usize) -> Result<Schedule> {
    for family in matrix_families(op, caps, m) {
        if let Some(schedule) = offered(family, op, caps, m)? {
            return Ok(schedule);
        }
    }
    // A family for this many rows first; the others serve too, and a family can be without a schedule for this shape.
    let (mut first, others): (Vec<&Implementation>, Vec<_>) = families(op, caps)?.into_iter().partition(|f| {
        let many = m > 8 && !matmul::serves_many_rows(op, caps) || matmul::few_rows_pay_tiles(op, caps, m);
        let wanted: &[Family] =
            if many { &[Family::Tile, Family::Cooperative, Family::Block] } else { &[Family::Stream, Family::Spread] };
        wanted.contains(&f.family)
    });
    first.extend(others);
    for family in first {
        if let Some(schedule) = offered(family, op, caps, m)? {
            return Ok(schedule);
        }
    }
    Err(Error::Unsupported(format!("{} on {}: no family has a schedule for {m} rows", op.name(), caps.name)))
}

/// What a family offers for `m` rows: the first schedule of its space whose kernel a GPU's registers hold ([`Demand::fit`]),
/// since a tile in local memory is slower than a smaller one in registers. Where that is sure of none, the one with the fewest
/// live words, unless they are far too many. `None` where there is no such schedule.
pub fn offered(family: &Implementation, op: &Op, caps: &Caps, m: usize) -> Result<Option<Schedule>> {
    let mut best = None;
    let mut counted: Vec<(Schedule, Demand)> = Vec::new();
    for schedule in (family.space)(op, caps, m) {
        if caps.gpu.is_none() {
            return Ok(Some(schedule));
        }
        let tile = registers_of(&schedule);
        let known = counted.iter().find(|(known, _)| *known == tile).map(|&(_, demand)| demand);
        let demand = match known {
            // What one kernel of a tile does not fit, no other does: they are not even built, which takes most of the time.
            Some(demand) if demand.fit(schedule.threads, caps) != Fit::Sure => demand,
            _ => Demand::of((family.build)(op, &schedule, caps)?, caps),
        };
        match demand.fit(schedule.threads, caps) {
            Fit::Sure => return Ok(Some(schedule)),
            // Pending products stand where they are, and so does what is made for them: no assembler moves it ahead.
            Fit::Doubtful(live) if schedule.family == Family::Wide && live <= WIDE_WORDS => return Ok(Some(schedule)),
            Fit::Doubtful(live) if best.is_none_or(|(least, _)| live < least) => best = Some((live, schedule)),
            Fit::Doubtful(_) | Fit::No => {}
        }
        if known.is_none() {
            counted.push((tile, demand));
        }
    }
    Ok(best.map(|(_, schedule)| schedule))
}

/// Most live words, as counted here, of a kernel of family `wide` that `ptxas` was seen to keep in 255 registers: sums that go on
/// to be stored are counted twice.
const WIDE_WORDS: u32 = 305;

/// What of a schedule decides how many registers a thread wants. Subgroups that share a sum want as many as one alone, and
/// stages lie in shared memory; threads of `panel` say how many rows of W a subgroup has.
fn registers_of(schedule: &Schedule) -> Schedule {
    match schedule.family {
        Family::Ring => Schedule { unroll: 1, threads: 1, split: 1, ..*schedule },
        Family::Panel | Family::Wide | Family::Dense => Schedule { unroll: 1, workgroups: 1, ..*schedule },
        Family::Mma => Schedule { threads: 1, split: 1, ..*schedule },
        _ => *schedule,
    }
}

/// The families of matrix instructions that can serve an operation, that for so many rows first.
pub fn matrix_families(op: &Op, caps: &Caps, m: usize) -> Vec<&'static Implementation> {
    let mut able: Vec<_> = MATRIX_FAMILIES.iter().filter(|f| (f.refuses)(op, caps).is_none()).collect();
    let first = if m > FEW_ROWS { Family::Panel } else { Family::Ring };
    let once = matmul::decoding_once_pays(op, caps, m);
    able.sort_by_key(|f| match f.family {
        Family::Dense if once => 0,
        Family::Wide if m > FEW_ROWS => 1,
        family if family == first => 2,
        Family::Dense => 4,
        _ => 3,
    });
    able
}

/// Up to here, a kernel is bound by reading weights, and stages for activations do not pay.
const FEW_ROWS: usize = 16;

/// Turns an operation and a schedule into a kernel for devices of these caps.
pub fn lower(op: &Op, schedule: &Schedule, caps: &Caps) -> Result<Kernel> {
    let op = op.checked()?;
    let family =
        FAMILIES.iter().chain(MATRIX_FAMILIES).find(|f| f.family == schedule.family).expect("every family is listed");
    if let Some(why) = (family.refuses)(&op, caps) {
        return Err(Error::Unsupported(format!(
            "{} on {}: family {}: {why}",
            op.name(),
            caps.name,
            family.family.name()
        )));
    }
    if schedule.workgroups != 1 && !matches!(schedule.family, Family::Ring | Family::Wide) {
        return Err(Error::invalid(format!(
            "workgroups is {}; accepted in family {}: 1",
            schedule.workgroups,
            schedule.family.name()
        )));
    }
    let kernel = (family.build)(&op, schedule, caps)?;
    // A tile of a tuner's or a caller's may want more than a family's own choices do.
    let (bytes, most) = (kernel.shared_bytes(), u64::from(caps.max_shared_bytes));
    if bytes > most {
        return Err(Error::invalid(format!(
            "{}: its tiles take {bytes} bytes of shared memory; accepted on {}: up to {most}",
            family.family.name(),
            caps.name
        )));
    }
    Ok(kernel)
}

/// An operation and a schedule in words, for the head of a source.
pub fn describe(op: &Op, schedule: &Schedule) -> Vec<String> {
    let what = match op {
        Op::Matmul(op) => format!(
            "Y[m, {}] = X[m, {}] times W transposed: X {}, W {}, Y {}",
            op.n,
            op.k,
            op.activation,
            op.weight,
            op.out.name()
        ),
        Op::Dequant(op) => {
            format!("The numbers of W[{}, {}], which is {}, as {}", op.n, op.k, op.weight, op.out.name())
        }
        Op::Quantize(op) => format!("The codes of X[m, {}], which is {}, as {}", op.k, op.input.name(), op.code.name()),
    };
    let Schedule { family, tile_m, tile_n, unroll, threads, split, strips, workgroups } = *schedule;
    let summary = FAMILIES.iter().chain(MATRIX_FAMILIES).find(|known| known.family == family).map_or("", |f| f.summary);
    vec![
        what,
        format!("Family {}: {summary}", family.name()),
        format!(
            "Schedule: tile_m {tile_m}, tile_n {tile_n}, unroll {unroll}, threads {threads}, split {split}, strips {strips}, \
             workgroups {workgroups}"
        ),
    ]
}

/// Workgroups of a launch for `m` rows.
pub fn grid(op: &Op, schedule: &Schedule, m: usize) -> [u32; 3] {
    match (op, schedule.family) {
        (Op::Matmul(_), Family::Ring | Family::Wide) if schedule.workgroups > 1 => {
            [m.div_ceil(schedule.tile_m as usize) as u32, schedule.workgroups, 1]
        }
        (
            Op::Matmul(op),
            Family::Stream
            | Family::Spread
            | Family::Block
            | Family::Mma
            | Family::Panel
            | Family::Wide
            | Family::Dense
            | Family::Ring
            | Family::Cooperative,
        ) => {
            let rows = if schedule.family == Family::Block { matmul::block_rows(schedule) } else { schedule.tile_m };
            let columns = schedule.tile_n as usize * schedule.strips.max(1) as usize;
            [m.div_ceil(rows as usize) as u32, op.n.div_ceil(columns) as u32, 1]
        }
        (Op::Matmul(op), _) => {
            let columns = schedule.tile_n as usize * schedule.strips.max(1) as usize;
            [1, op.n.div_ceil(columns) as u32, 1]
        }
        (Op::Dequant(op), _) => [1, op.n.div_ceil(schedule.tile_n as usize) as u32, 1],
        (Op::Quantize(_), _) => [m as u32, 1, 1],
    }
}
