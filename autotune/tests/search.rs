//! The search on simulated devices: it finds what was planted, with few measurements, and refuses what is wrong.

use bitsmith_autotune::ceiling::Ceiling;
use bitsmith_autotune::key::Key;
use bitsmith_autotune::measure::{Bench, DeviceBench, Sample, Slice, Verdict};
use bitsmith_autotune::search::{Effort, Outcome, Space, again, exhaustive, points, search};
use bitsmith_autotune::simulate::SimulatedDevice;
use bitsmith_compiler::Result;
use bitsmith_compiler::lower;
use bitsmith_compiler::schedule::{Family, Schedule};
use bitsmith_runtime::Device;

fn key(n: usize, k: usize, m: usize) -> Key {
    let word = || "f16".to_string();
    Key { weight: "int4-g32".into(), activation: word(), out: word(), epilogue: String::new(), k, n, m }
}

/// What a schedule costs without noise.
fn cost(device: &SimulatedDevice, schedule: &Schedule) -> f64 {
    device.cost(&ending(schedule))
}

fn ending(s: &Schedule) -> String {
    let strips = if s.strips > 1 { format!("x{}", s.strips) } else { String::new() };
    format!("{}_m{}n{}u{}{strips}", s.family.name(), s.tile_m, s.tile_n, s.unroll)
}

struct World {
    device: SimulatedDevice,
    key: Key,
    space: Space,
    incumbent: Schedule,
}

impl World {
    fn new(device: SimulatedDevice, key: Key, keep: impl Fn(&Schedule) -> bool) -> World {
        let op = key.op().unwrap();
        let caps = *device.caps();
        let incumbent = lower::choose(&op, &caps, key.m).unwrap();
        let mut points = points(&op, &caps, key.m).unwrap();
        points.retain(|(s, _)| keep(s) || *s == incumbent);
        let space = Space::new(&key, &op, &caps, &Ceiling::guess().over(&op), 1, &points);
        World { device, key, space, incumbent }
    }

    /// A world whose optimum is somewhere among the points that the prior thinks well of: up to 1.6 times its best.
    fn planted(seed: u64, key: Key, keep: impl Fn(&Schedule) -> bool + Copy) -> World {
        let device = SimulatedDevice::new(seed, 0.02).unwrap();
        let bare = World::new(device.clone(), key.clone(), keep);
        let best = bare.space.open().next().unwrap().prior;
        let likely: Vec<Schedule> = bare.space.open().filter(|c| c.prior <= 1.6 * best).map(|c| c.schedule).collect();
        let pick = likely[fastrand::Rng::with_seed(seed).usize(..likely.len())];
        World::new(device.planted(&ending(&pick)), key, keep)
    }

    fn bench<'a>(&'a self, clock: &'a bitsmith_autotune::simulate::SimulatedClock) -> DeviceBench<'a> {
        let part = Slice { columns: self.key.n, rows: self.key.m, cycle: 0 };
        DeviceBench::new(&self.device, clock, &self.key, part, None).unwrap()
    }

    fn search(&self, seed: u64) -> Outcome {
        let clock = self.device.clock();
        let mut bench = self.bench(&clock);
        search(&self.space, &self.incumbent, &[], &mut bench, Effort::default(), seed, &mut ()).unwrap()
    }

    /// The cheapest point that may be measured, by the model itself.
    fn optimum(&self) -> Schedule {
        let cheaper = |a: &Schedule, b: &Schedule| cost(&self.device, a).total_cmp(&cost(&self.device, b));
        self.space.open().map(|c| c.schedule).min_by(cheaper).unwrap()
    }
}

#[test]
fn the_planted_optimum_is_found_in_99_of_100_worlds() {
    let found = std::sync::atomic::AtomicUsize::new(0);
    let next = std::sync::atomic::AtomicU64::new(0);
    let missed = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= 100 {
                        break;
                    }
                    let m = [1, 2, 4, 8, 16][seed as usize % 5];
                    let world = World::planted(seed, key(32, 32, m), |_| true);
                    let (outcome, optimum) = (world.search(seed), world.optimum());
                    if outcome.best == optimum {
                        found.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    } else {
                        missed.lock().unwrap().push((seed, outcome.best, optimum, outcome.samples));
                    }
                }
            });
        }
    });
    let found = found.into_inner();
    println!("planted optimum found in {found} of 100; missed: {:?}", missed.lock().unwrap());
    assert!(found >= 99, "{:?}", missed.into_inner().unwrap());
}

#[test]
fn few_measurements_come_within_three_percent_of_an_exhaustive_search() {
    type Keep = fn(&Schedule) -> bool;
    let spaces: [(&str, usize, Keep); 8] = [
        ("decode, all", 1, |_| true),
        ("decode, stream", 4, |s| s.family == Family::Stream),
        ("decode, narrow", 2, |s| s.tile_n <= 16),
        ("eight rows, all", 8, |_| true),
        ("prefill, all", 32, |_| true),
        ("prefill, tile", 64, |s| s.family == Family::Tile),
        ("prefill, wide", 16, |s| s.tile_n >= 16),
        ("prefill, no unrolling of 8", 128, |s| s.unroll < 8),
    ];
    for (i, (name, m, keep)) in spaces.into_iter().enumerate() {
        let world = World::planted(500 + i as u64, key(32, 32, m), keep);
        let clock = world.device.clock();
        let mut bench = world.bench(&clock);
        let whole = exhaustive(&world.space, &world.incumbent, &mut bench, Effort::default(), &mut ()).unwrap();
        let outcome = world.search(i as u64);
        let share = outcome.samples as f64 / whole.samples as f64;
        let loss = cost(&world.device, &outcome.best) / cost(&world.device, &whole.best) - 1.0;
        println!(
            "{name}: {} ({}); {} of {} measurements ({:.1} %), {:.1} % from the exhaustive best",
            ending(&outcome.best),
            ending(&whole.best),
            outcome.samples,
            whole.samples,
            100.0 * share,
            100.0 * loss
        );
        assert!(loss <= 0.03, "{name}: {loss}");
        assert!(share <= 0.15, "{name}: {share}");
    }
}

#[test]
fn two_searches_choose_within_three_percent_of_each_other() {
    // The same device at another time: the landscape stays, noise and drift are others.
    let mut apart = 0;
    for seed in 0..20 {
        let ending = "stream_m2n16u4";
        let best: Vec<Schedule> = (0..2)
            .map(|time| {
                let device = SimulatedDevice::new(seed, 0.02).unwrap().planted(ending).at_another_time(time);
                World::new(device, key(32, 32, 2), |_| true).search(time).best
            })
            .collect();
        let device = SimulatedDevice::new(seed, 0.0).unwrap().planted(ending);
        let ratio = cost(&device, &best[0]) / cost(&device, &best[1]);
        apart += usize::from(ratio.max(1.0 / ratio) > 1.03);
    }
    assert!(apart <= 1, "{apart} of 20");
}

#[test]
fn a_fast_wrong_kernel_is_refused_and_the_reason_is_kept() {
    let device = SimulatedDevice::new(7, 0.02).unwrap().planted("stream_m1n8u2").wrong("stream_m1n8u4");
    let world = World::new(device, key(32, 64, 1), |s| s.tile_m <= 2);
    let outcome = world.search(3);
    let wrong = Schedule::single(Family::Stream, 1, 8, 4);
    assert_eq!(ending(&outcome.best), "stream_m1n8u2");
    let why = outcome.dropped.iter().find(|(s, _)| *s == wrong).map(|(_, why)| why.clone()).unwrap();
    assert!(why.contains("disagrees with the reference: y["), "{why}");
    assert!(outcome.measured.iter().all(|m| m.schedule != wrong));
    // Every declared point is measured or has its reason.
    let every = world.space.candidates.len();
    assert_eq!(outcome.measured.len() + outcome.dropped.len(), every);
    assert!(outcome.dropped.iter().all(|(_, why)| !why.is_empty()));
    assert!(outcome.dropped.iter().any(|(_, why)| why.contains("vector registers")));
}

#[test]
fn warm_candidates_are_tried_whatever_the_prior_says() {
    let device = SimulatedDevice::new(11, 0.02).unwrap().planted("tile_m4n16u8");
    let world = World::new(device, key(32, 32, 4), |_| true);
    let clock = world.device.clock();
    let mut bench = world.bench(&clock);
    let planted = Schedule::single(Family::Tile, 4, 16, 8);
    let effort = Effort { width: 4, ..Effort::default() };
    let outcome = search(&world.space, &world.incumbent, &[planted], &mut bench, effort, 1, &mut ()).unwrap();
    assert_eq!(outcome.best, planted);
}

/// A bench on which every candidate takes the same time, but for noise.
struct Flat(u64);

impl Bench for Flat {
    fn admit(&mut self, _schedule: &Schedule) -> Result<Verdict> {
        Ok(Verdict::Sound)
    }

    fn sample(&mut self, schedule: &Schedule, ordinal: u64) -> Result<Sample> {
        let seed = self.0 ^ ordinal << 20 ^ u64::from(schedule.tile_m * 64 + schedule.tile_n * 8 + schedule.unroll);
        let seconds = 1e-3 * (1.0 + 0.02 * (fastrand::Rng::with_seed(seed).f64() - 0.5));
        Ok(Sample { seconds, spent: seconds })
    }
}

#[test]
fn noise_alone_does_not_replace_the_incumbent() {
    let world = World::new(SimulatedDevice::new(1, 0.0).unwrap(), key(32, 32, 1), |_| true);
    for seed in 0..50 {
        let outcome =
            search(&world.space, &world.incumbent, &[], &mut Flat(seed), Effort::default(), seed, &mut ()).unwrap();
        assert_eq!(outcome.best, world.incumbent, "seed {seed}");
    }
}

#[test]
fn a_budget_is_kept_and_said() {
    let world = World::new(SimulatedDevice::new(5, 0.02).unwrap(), key(32, 32, 1), |_| true);
    let clock = world.device.clock();
    let mut bench = world.bench(&clock);
    // About forty launches of 3 to 6 ms.
    let effort = Effort { seconds: 0.2, ..Effort::default() };
    let outcome = search(&world.space, &world.incumbent, &[], &mut bench, effort, 1, &mut ()).unwrap();
    assert!(outcome.cut && outcome.samples < 80, "{} samples", outcome.samples);
    assert!(outcome.seconds <= outcome.incumbent_seconds);
    assert!(outcome.dropped.iter().any(|(_, why)| why == "the time was used up"));
}

/// A machine that takes as long as it is told.
struct Told(Box<dyn Fn(&Schedule) -> f64>);

impl Bench for Told {
    fn admit(&mut self, _schedule: &Schedule) -> Result<Verdict> {
        Ok(Verdict::Sound)
    }

    fn sample(&mut self, schedule: &Schedule, _ordinal: u64) -> Result<Sample> {
        let seconds = (self.0)(schedule);
        Ok(Sample { seconds, spent: seconds })
    }
}

#[test]
fn a_second_look_takes_what_did_best_by_both() {
    let world = World::new(SimulatedDevice::new(3, 0.0).unwrap(), key(64, 64, 1), |_| true);
    let incumbent = world.incumbent;
    let others: Vec<Schedule> = world.space.open().map(|c| c.schedule).filter(|s| *s != incumbent).take(3).collect();
    let [a, b, guest] = others[..] else { panic!("too small a space: {others:?}") };
    let machine = move |of_a: f64, of_b: f64, of_guest: f64| {
        Told(Box::new(move |s: &Schedule| match *s {
            s if s == incumbent => 1.0,
            s if s == a => of_a,
            s if s == b => of_b,
            s if s == guest => of_guest,
            _ => 1.3,
        }))
    };
    let effort = Effort::default();
    let first = search(&world.space, &incumbent, &[a, b], &mut machine(0.8, 0.9, 1.2), effort, 1, &mut ()).unwrap();
    assert_eq!(first.best, a);
    // The second look's times of a, b and a neighbour's best, and what both looks come to.
    for (times, best) in [
        ([0.8, 0.9, 1.2], a),
        ([0.9, 0.85, 1.2], a),
        ([0.99, 0.85, 1.2], b),
        ([1.4, 1.3, 1.2], incumbent),
        ([0.9, 0.95, 0.5], guest),
    ] {
        let mut bench = machine(times[0], times[1], times[2]);
        let outcome =
            again(&world.space, &incumbent, (first.clone(), 1), &[guest], &mut bench, effort, &mut ()).unwrap();
        assert_eq!(outcome.best, best, "{times:?}");
        assert!(outcome.samples > first.samples && outcome.measured.iter().any(|m| m.schedule == best));
    }
}
