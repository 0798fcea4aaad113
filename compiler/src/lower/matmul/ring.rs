//! Family `ring`: few rows by matrix instructions, weights through rings of stages in shared memory.
//!
//! ```text
//! Yᵀ[n, m] = W[n, k] · Xᵀ[k, m]        A from QT16 through the ring, B straight from X
//! ring     [subgroup][stage][strip of the step][chunk of the strip][tile of 16 rows][lane][16 bytes]
//! ```
//!
//! A workgroup makes `tile_m` rows by `tile_n` columns of Y; its `split` subgroups take turns at steps of K. A step is a
//! whole group where groups are longer than a strip of the packing, else a strip. Each subgroup has a ring of its own and
//! keeps `unroll - 1` steps of weights under way while it works on one, so no barrier of the workgroup stands in the loop.
//! On devices with bulk copies one lane fetches a step and all wait for its barrier object; elsewhere each lane copies the 16
//! bytes that it will decode itself, and waits for its own copies alone. Weights do not depend on the launch before: the
//! first steps are fetched before this one waits for it. Partial results meet in shared memory in a fixed order.
//! Grid: x over tiles of rows, y over tiles of columns; or over as many workgroups as the schedule says, which share those.

mod share;
mod stages;
mod walk;

pub(in crate::lower) use share::workspace;

use self::share::Share;
use self::stages::Ring;
use self::walk::{Walk, begin};
use super::cut::{Cut, cut, lanes_of};
use super::products::{Products, listed, rows_of};
use super::{Plan, as_matmul, entry};
use crate::caps::{Caps, Feature, MmaShape};
use crate::error::{Error, Result};
use crate::format::qt16::{Qt16, tile_columns};
use crate::ir::{Asynchronous, BinOp, Builder, Builtin, CastOp, CmpOp, Kernel, Memory, Scalar, Value};
use crate::lower::Implementation;
use crate::lower::activation::Rows;
use crate::lower::lanes::Lanes;
use crate::lower::memory::{Packing, Params, Role, byte_index};
use crate::lower::space::Axis;
use crate::lower::team::Team;
use crate::lower::unpack::fragments::Fragments;
use crate::op::{Matmul, Op};
use crate::schedule::{Family, Knob, Schedule};

pub(in crate::lower) const RING: Implementation = Implementation {
    family: Family::Ring,
    summary: "matmul of few rows by matrix instructions, weights through rings of shared memory",
    refuses,
    axes: &[
        Axis::new(Knob::TileM, &[8, 16, 32]),
        Axis::new(Knob::TileN, &[16, 32, 64]),
        Axis::new(Knob::Unroll, &[2, 3, 4, 6, 8]),
        Axis::new(Knob::Threads, &[32, 64, 128, 256, 512]),
        Axis::new(Knob::Split, &[1, 2, 4, 8]),
    ],
    estimate: None,
    space,
    build,
};

/// Most strips of a step.
const LONGEST: usize = 4;
const TOKENS: [u32; 3] = [8, 16, 32];
const ROWS: [u32; 3] = [16, 32, 64];
const SPLITS: [u32; 4] = [1, 2, 4, 8];
const STAGES: [u32; 7] = [2, 3, 4, 5, 6, 7, 8];

/// How the ring cuts K (a block is one strip), and how many times 16 bytes a lane has of a tile of a strip.
fn ring_cut(op: &Op, caps: &Caps) -> Result<(Cut, usize), String> {
    let (cut, _, _, layout) = cut(op, caps, |_| 0, LONGEST)?;
    let chunks = layout.planes.iter().map(|&(width, _)| cut.block / tile_columns(width)).sum();
    let k = as_matmul(op).map_or(0, |op| op.k);
    if cut.segment < k && cut.per > LONGEST {
        return Err(format!("takes integer sums over {LONGEST} strips at most, not over {}", cut.per));
    }
    Ok((cut, chunks))
}

/// Strips of a step: where all of K is one segment, its sums go on from step to step.
fn strips_of(cut: &Cut, k: usize) -> usize {
    if cut.segment >= k { 1 } else { cut.per }
}

/// Steps of all tiles of a row of tiles.
fn shared_steps(matmul: &Matmul, cut: &Cut, tile_n: u32) -> usize {
    matmul.n.div_ceil(tile_n.max(1) as usize) * (matmul.k / cut.block / strips_of(cut, matmul.k))
}

fn refuses(op: &Op, caps: &Caps) -> Option<String> {
    if !caps.features.has(Feature::AsyncCopy) {
        return Some(format!("has no asynchronous copies on {}", caps.name));
    }
    ring_cut(op, caps).err()
}

/// Tiles so small that every unit has work first; as many stages as let two workgroups share a unit.
fn space(op: &Op, caps: &Caps, m: usize) -> Vec<Schedule> {
    let (Ok((cut, chunks)), Ok(matmul)) = (ring_cut(op, caps), as_matmul(op)) else { return Vec::new() };
    let strips = strips_of(&cut, matmul.k);
    let steps = matmul.k / cut.block / strips;
    let tile_m = TOKENS.into_iter().find(|&tokens| tokens as usize >= m).unwrap_or(32);
    let units = caps.gpu.map_or(1, |gpu| gpu.units as usize);
    let most = caps.gpu.map_or(caps.max_shared_bytes, |gpu| gpu.shared_per_unit / 2 - 2048) as usize;
    let mut rows: Vec<u32> = ROWS.into_iter().filter(|&rows| tile_m * rows <= 1024).collect();
    // The largest tile that still gives every unit two workgroups, then the others. With more rows of X, which every
    // workgroup reads in full, larger tiles come first.
    let wanted = if tile_m == 8 { 2 * units } else { units * 3 / 4 };
    rows.sort_by_key(|&rows| {
        let workgroups = matmul.n.div_ceil(rows as usize) * m.div_ceil(tile_m as usize);
        (workgroups < wanted, if workgroups < wanted { rows } else { 64 - rows })
    });
    let mut list = Vec::new();
    for &tile_n in &rows {
        for split in [8, 4, 2, 1] {
            if split > 1 && steps < split as usize {
                continue;
            }
            for stages in [8, 6, 4, 3, 2] {
                let bytes =
                    (split * stages) as usize * strips * chunks * tile_n as usize * 32 + split as usize * 64 * 36;
                if bytes <= most.min(caps.max_shared_bytes as usize) {
                    list.push(
                        Schedule::single(Family::Ring, tile_m, tile_n, stages)
                            .with_threads(caps.subgroup * split, split),
                    );
                }
            }
        }
    }
    let (sharing, first) = sharing(matmul, &cut, caps, &list, m);
    let at = if first { 0 } else { list.len() };
    list.splice(at..at, sharing);
    list
}

/// Bytes of weights that a workgroup must read for its part of a shared tile to be worth meeting for: meeting takes about as
/// long as a unit needs for these.
const WORTH_SHARING: usize = 32 << 10;

/// The schedules of a list whose workgroups may share tiles, two workgroups per unit, largest tiles first; and whether they
/// are better than the list's first one, which leaves units idle in its last round.
fn sharing(matmul: &Matmul, cut: &Cut, caps: &Caps, list: &[Schedule], m: usize) -> (Vec<Schedule>, bool) {
    let (Some(gpu), Some(favourite)) = (caps.gpu, list.first()) else { return (Vec::new(), false) };
    if !caps.features.has(Feature::DeviceFence) {
        return (Vec::new(), false);
    }
    let places = 2 * gpu.units as usize;
    let tiles = matmul.n.div_ceil(favourite.tile_n as usize) * m.div_ceil(favourite.tile_m as usize);
    // More than 8 rows keep a unit busy with one workgroup: tiles for all units are not worth sharing (20.4 us for 8192 x 8192
    // and 16 rows on an H100, 26.1 shared), tiles for some rounds and a part of one are (73.1 and 67.9 us for 28672 x 8192).
    let round = if m > 8 { gpu.units as usize } else { places };
    let idle = tiles.div_ceil(round) * round * 9 > tiles * 10;
    let bytes = matmul.n * matmul.k * matmul.weight.code.bits() as usize / 8;
    let mut shared: Vec<Schedule> = Vec::new();
    for schedule in list {
        let steps = shared_steps(matmul, cut, schedule.tile_n);
        // Small matrices are shared among fewer: each subgroup has a step at least.
        let workgroups = places.min(steps / schedule.split as usize);
        if workgroups > 1 {
            shared.push(schedule.with_workgroups(workgroups as u32));
        }
    }
    // With more rows of X each subgroup reads more of them: fewer subgroups with longer rings (measured on an H100).
    let many = |schedule: &Schedule| schedule.tile_m > 8 && schedule.split > 4;
    shared.sort_by_key(|schedule| (std::cmp::Reverse(schedule.tile_n), many(schedule)));
    let first = idle && favourite.tile_m <= 16 && m <= favourite.tile_m as usize && bytes >= places * WORTH_SHARING;
    (shared, first)
}

fn build(op: &Op, schedule: &Schedule, caps: &Caps) -> Result<Kernel> {
    let matmul = as_matmul(op)?;
    let Schedule { tile_m, tile_n, unroll, threads, split, workgroups, .. } = *schedule;
    let mut faults = listed(
        schedule,
        &[
            ("tile_m", tile_m, &TOKENS),
            ("tile_n", tile_n, &ROWS),
            ("unroll", unroll, &STAGES),
            ("split", split, &SPLITS),
            ("threads", threads, &[split * caps.subgroup]),
        ],
    );
    let (cut, class, shape, layout) = cut(op, caps, |_| 0, LONGEST).map_err(Error::Unsupported)?;
    let most = shared_steps(matmul, &cut, tile_n);
    if workgroups == 0 || workgroups as usize > most {
        faults.push(format!("workgroups is {workgroups}; accepted: 1 to {most}, the steps of all tiles"));
    }
    if !faults.is_empty() {
        return Err(Error::Invalid(faults));
    }
    if workgroups > 1 && !caps.features.has(Feature::DeviceFence) {
        return Err(Error::Unsupported(format!("workgroups of {} that share tiles: it lacks device-fence", caps.name)));
    }
    let lanes = lanes_of(shape)?;
    let mut b = Builder::new(&entry(matmul, schedule));
    let packing = Packing::Qt16(class, layout.order);
    let params = Params::declare_with(&mut b, op, packing, workspace(schedule), caps)?;
    let team = Team::of_subgroups(&mut b, caps.subgroup, split, 16, (tile_n / 16 * tile_m / 8) as usize);
    if caps.features.has(Feature::GridDependency) {
        b.asynchronous(Asynchronous::LaunchDependents);
    }
    let lane = b.builtin(Builtin::Lane);
    let places = Places {
        layout: &layout,
        lanes: &lanes,
        weights: params.get(Role::Weights),
        tiles: tile_n as usize / 16,
        lane,
    };
    if workgroups > 1 {
        shared(&mut b, (matmul, schedule, caps), (cut, shape), &places, &params, &team)?;
        return Ok(b.finish());
    }
    let tile_y = b.builtin(Builtin::WorkgroupId(1));
    let start = b.bin_imm(BinOp::Mul, tile_y, tile_n as i64);
    let start = b.cast(CastOp::ExtendS, start, Scalar::I64);
    let tile_x = b.builtin(Builtin::WorkgroupId(0));
    let first = b.bin_imm(BinOp::Mul, tile_x, tile_m as i64);
    let fragments = places.at(&mut b, start, caps);
    let input = Input::new(&mut b, (matmul, shape, tile_m), &params, (first, lane));
    let products = Products { op: matmul, shape, cut, fragments: &fragments, rows: &input.rows, ready: None };
    let strips = strips_of(&cut, matmul.k);
    let ring = Ring::new(&mut b, schedule, (strips, &fragments), matmul.k / cut.block / strips, lane, caps);
    let walk = Walk { products, ring: &ring, team: &team, x: params.get(Role::Activations), columns: &input.columns };
    let results = walk.run(&mut b, caps);
    let plan = Plan::with_lanes(matmul, &Schedule { unroll: 1, ..*schedule }, caps, 1, 1)?;
    walk.products.store(&mut b, (&plan, &params), (start, input.g), &results, &mut |b, i, body| {
        team.on_slice(b, i, |b| body(b));
    });
    Ok(b.finish())
}

/// What finds the weights of a tile.
struct Places<'a> {
    layout: &'a Qt16,
    lanes: &'a Lanes,
    weights: Memory,
    /// Of 16 rows, in a tile of Y.
    tiles: usize,
    lane: Value,
}

impl<'a> Places<'a> {
    /// Those of the tile whose first row of W is this (`i64`).
    fn at(&self, b: &mut Builder, start: Value, caps: &Caps) -> Fragments<'a> {
        Fragments::new(b, (self.layout, self.lanes), self.weights, start, self.tiles, self.lane, caps)
    }
}

/// What a lane needs to know of X.
struct Input {
    /// See [`Products::rows`].
    rows: Vec<(Value, Rows)>,
    /// See [`Walk::columns`].
    columns: Vec<Value>,
    /// The lane's row of a tile of 8, `i32`.
    g: Value,
}

impl Input {
    /// For the tile of X whose first row is `first` (`i32`).
    fn new(
        b: &mut Builder,
        (matmul, shape, tile_m): (&Matmul, &'static MmaShape, u32),
        params: &Params,
        (first, lane): (Value, Value),
    ) -> Input {
        let (g, t) = (b.bin_imm(BinOp::ShrU, lane, 2), b.bin_imm(BinOp::And, lane, 3));
        let tokens = tile_m as usize / 8;
        let rows = rows_of(b, matmul, params, first, t, tokens);
        let last = b.bin_imm(BinOp::Sub, params.m, 1);
        let columns = (0..tokens)
            .map(|token| {
                // Rows past M repeat the last one; nobody stores what they give.
                let row = b.bin_imm(BinOp::Add, first, 8 * token as i64);
                let row = b.add(row, g);
                let row = b.bin(BinOp::MinS, row, last);
                let place = byte_index(b, row, matmul.k * shape.b.bits() as usize / 8);
                let mine = byte_index(b, t, 4);
                b.add(place, mine)
            })
            .collect();
        Input { rows, columns, g }
    }
}

/// The body of a kernel whose workgroups share tiles.
fn shared(
    b: &mut Builder,
    (matmul, schedule, caps): (&Matmul, &Schedule, &Caps),
    (cut, shape): (Cut, &'static MmaShape),
    places: &Places<'_>,
    params: &Params,
    team: &Team,
) -> Result<()> {
    let tile_x = b.builtin(Builtin::WorkgroupId(0));
    let first = b.bin_imm(BinOp::Mul, tile_x, schedule.tile_m as i64);
    let input = Input::new(b, (matmul, shape, schedule.tile_m), params, (first, places.lane));
    let strips = strips_of(&cut, matmul.k);
    let steps = matmul.k / cut.block / strips;
    let tiles = matmul.n.div_ceil(schedule.tile_n as usize);
    let share = Share::new(b, schedule, (tiles, steps), params.get(Role::Workspace), (tile_x, places.lane), team);
    let zero = b.int(Scalar::I64, 0);
    let any = places.at(b, zero, caps);
    let ring = Ring::new(b, schedule, (strips, &any), steps, places.lane, caps).ending(share.end());
    let find = |b: &mut Builder, step: Value| {
        let (start, step) = share.find(b, step);
        (places.at(b, start, caps), step)
    };
    let plan = Plan::with_lanes(matmul, &Schedule { unroll: 1, ..*schedule }, caps, 1, 1)?;
    let index = share.first(b, team);
    let stages = begin(b, &ring, &find, index, caps);
    share.each_tile(b, (index, stages), ring.split, |b, part, state| {
        let fragments = places.at(b, part.start, caps);
        let products = Products { op: matmul, shape, cut, fragments: &fragments, rows: &input.rows, ready: None };
        let (x, columns) = (params.get(Role::Activations), &input.columns);
        let walk = Walk { products, ring: &ring, team, x, columns };
        let (stages, sums) = part.walk(b, &walk, state, &find);
        let sums = team.combine(b, BinOp::Add, &sums);
        let (sums, here) = share.complete(b, part, team, &sums);
        let nothing = b.int(Scalar::I32, 0);
        let here = b.cmp(CmpOp::Ne, here, nothing);
        b.if_then(here, |b| {
            let results = walk.results(b, sums);
            walk.products.store(b, (&plan, params), (part.start, input.g), &results, &mut |b, i, body| {
                team.on_slice(b, i, |b| body(b));
            });
        });
        stages
    });
    Ok(())
}
