//! A simulated device: kernels run on the interpreter, their times come from a model of costs with a planted optimum.
//!
//! Reads a seed; makes a [`SimulatedDevice`] behind the runtime's `Device` trait, and the clock that goes with it. Times
//! have noise (a few percent), preemptions (some samples take much longer) and drift, all of them functions of the seed,
//! the entry and the number of the sample: the same search sees the same world. For tests of the tuner and for a look at
//! how it works; nothing else can be learnt from it.

use crate::measure::Clock;
use bitsmith_compiler::artifact::{Artifact, Payload};
use bitsmith_compiler::caps::Caps;
use bitsmith_compiler::ir::interp::{self, ArgValue};
use bitsmith_compiler::ir::{self, Kernel, Verified};
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::cpu::CpuTarget;
use bitsmith_compiler::{Error, Result};
use bitsmith_runtime::{Buffer, Device, DeviceInfo, Launch, LaunchArg, Program, check_launch};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Its name on the command line; `simulated:<seed>` gives the seed.
pub const NAME: &str = "simulated";

/// Axes of a schedule, as names of entries spell them.
const AXES: [&str; 4] = ["m", "n", "u", "x"];

/// The world that a device and its clock share.
#[derive(Debug)]
struct World {
    seed: u64,
    seconds: f64,
    entry: u64,
    ordinal: u64,
    noise: f64,
    /// Names of programs that compute something else than they should, by what their entry name ends in.
    wrong: Vec<String>,
    /// The optimum of every kernel, by what its entry name ends in; drawn by the seed where it is absent.
    planted: Option<String>,
    /// Which time it is: another one has other noise.
    time: u64,
    /// Launches so far.
    launches: u64,
    /// Wall-clock time that each sample takes, for tests that stop a run in the midst.
    pause: std::time::Duration,
}

/// A device whose times are made up.
#[derive(Clone, Debug)]
pub struct SimulatedDevice {
    target: Arc<SimulatedTarget>,
    world: Arc<Mutex<World>>,
}

/// A target whose artifacts hold the kernel as text.
#[derive(Debug)]
struct SimulatedTarget {
    base: CpuTarget,
}

struct Memory(Mutex<Vec<u8>>);

struct Code {
    kernel: Kernel,
    /// Results by launch arguments, so that each is interpreted once.
    done: Mutex<BTreeMap<i32, Vec<Vec<u8>>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Mixes bits: SplitMix64's finalizer (Steele, Lea, Flood 2014).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A number from 0 to 1.
fn unit(seed: u64) -> f64 {
    (mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)) >> 11) as f64 / (1u64 << 53) as f64
}

impl SimulatedDevice {
    /// A device of a seed. `noise` is the relative deviation of a sample, 0.02 for 2 %; preemptions and drift grow with it.
    pub fn new(seed: u64, noise: f64) -> Result<SimulatedDevice> {
        let world = World {
            seed,
            seconds: 0.0,
            entry: 0,
            ordinal: 0,
            noise,
            wrong: Vec::new(),
            planted: None,
            time: 0,
            launches: 0,
            pause: std::time::Duration::ZERO,
        };
        let target = SimulatedTarget { base: CpuTarget::named("x86-64-v3")? };
        Ok(SimulatedDevice { target: Arc::new(target), world: Arc::new(Mutex::new(world)) })
    }

    /// The same with the optimum at a schedule: `stream_m1n16u4`, as entry names end.
    pub fn planted(self, ending: &str) -> SimulatedDevice {
        lock(&self.world).planted = Some(ending.to_string());
        self
    }

    /// The same at another time: costs stay, noise and drift are others.
    pub fn at_another_time(self, time: u64) -> SimulatedDevice {
        lock(&self.world).time = time;
        self
    }

    /// The same with programs that are fastest of all and wrong, by what their entry names end in.
    pub fn wrong(self, ending: &str) -> SimulatedDevice {
        lock(&self.world).wrong.push(ending.to_string());
        self
    }

    /// The same, but each sample also takes so long by the clock on the wall.
    pub fn paused(self, pause: std::time::Duration) -> SimulatedDevice {
        lock(&self.world).pause = pause;
        self
    }

    /// Its clock.
    pub fn clock(&self) -> SimulatedClock {
        SimulatedClock(Arc::clone(&self.world))
    }

    /// Launches so far.
    pub fn launches(&self) -> u64 {
        lock(&self.world).launches
    }

    /// Seconds that a launch takes without noise: `entry` is its program's name.
    pub fn cost(&self, entry: &str) -> f64 {
        lock(&self.world).cost(entry)
    }
}

/// The end of an entry name that says how a kernel runs: family and numbers.
fn schedule_part(entry: &str) -> (&str, [f64; AXES.len()]) {
    let families = ["stream_", "tile_"];
    let start = families.iter().filter_map(|f| entry.rfind(f)).max().unwrap_or(0);
    let (family, numbers) = entry[start..].split_once('_').unwrap_or((&entry[start..], ""));
    let value = |axis: &str| -> f64 {
        let digits: String =
            numbers.split_once(axis).map_or("", |(_, rest)| rest).chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<f64>().unwrap_or(1.0).max(1.0).log2()
    };
    (family, AXES.map(value))
}

impl World {
    /// A bowl around the planted point, each axis with a slope of its own, a step between families, and a little dirt.
    /// Whatever is not the planted point takes at least 6 % longer.
    fn cost(&self, entry: &str) -> f64 {
        const BASE: f64 = 3e-3;
        if self.wrong.iter().any(|ending| entry.ends_with(ending.as_str())) {
            return BASE * 0.5;
        }
        let drawn;
        let planted = match &self.planted {
            Some(planted) => planted.as_str(),
            None => {
                let pick = |salt: u64, list: &[u32]| list[(mix(self.seed ^ salt) % list.len() as u64) as usize];
                drawn =
                    format!("stream_m{}n{}u{}", pick(1, &[1, 2, 3, 4]), pick(2, &[8, 16, 32]), pick(3, &[1, 2, 4, 8]));
                &drawn
            }
        };
        if entry.ends_with(planted) {
            return BASE;
        }
        let ((family, at), (best_family, best)) = (schedule_part(entry), schedule_part(planted));
        let mut cost = 1.06;
        for (axis, (at, best)) in at.into_iter().zip(best).enumerate() {
            let slope = 0.05 + 0.25 * unit(self.seed ^ (17 + axis as u64));
            cost += slope * (at - best).abs();
        }
        if family != best_family {
            cost += 0.3 * unit(self.seed ^ 31);
        }
        let dirt = entry.bytes().fold(self.seed, |h, b| mix(h ^ u64::from(b)));
        BASE * (cost + 0.05 * unit(dirt))
    }

    /// What a sample's time is multiplied by.
    fn disturbance(&self) -> f64 {
        let at = mix(self.seed ^ mix(self.time) ^ mix(self.entry) ^ mix(self.ordinal.wrapping_mul(3)));
        // The sum of four uniform numbers is nearly normal; its deviation is 0.577.
        let normal = (0..4).map(|i| unit(at ^ i)).sum::<f64>() - 2.0;
        let preempted = if unit(at ^ 99) < 0.04 { 1.0 + 40.0 * self.noise * unit(at ^ 98) } else { 1.0 };
        let phase = self.ordinal as f64 / 60.0 + 6.3 * unit(self.seed ^ self.entry);
        let drift = 1.0 + 4.0 * self.noise * phase.sin();
        (1.0 + self.noise * normal / 0.577).max(0.5) * preempted * drift
    }
}

/// The clock of a simulated device.
#[derive(Clone, Debug)]
pub struct SimulatedClock(Arc<Mutex<World>>);

impl Clock for SimulatedClock {
    fn begin(&self, entry: u64, ordinal: u64) {
        let pause = {
            let mut world = lock(&self.0);
            (world.entry, world.ordinal) = (entry, ordinal);
            // Differences of a large number would lose digits, and with them the record's sameness.
            world.seconds = 0.0;
            world.pause
        };
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }

    fn seconds(&self) -> f64 {
        lock(&self.0).seconds
    }
}

impl Target for SimulatedTarget {
    fn caps(&self) -> &Caps {
        self.base.caps()
    }

    fn legalize(&self, kernel: &Verified<'_>) -> Result<Kernel> {
        Ok(kernel.kernel().clone())
    }

    fn emit(&self, kernel: &Verified<'_>) -> Result<Artifact> {
        let kernel = kernel.kernel();
        Ok(Artifact {
            target: NAME.into(),
            entry: kernel.name.clone(),
            payload: Payload::Text(kernel.to_string()),
            args: kernel.params.iter().map(bitsmith_compiler::target::arg).collect::<Result<_>>()?,
            workgroup: [1; 3],
            shared_bytes: 0,
            preparation: None,
        })
    }

    fn show(&self, _kernel: &Verified<'_>, _stage: &str) -> Option<Result<String>> {
        None
    }
}

fn memory(buffer: &Buffer) -> Result<&Memory> {
    buffer.memory().downcast_ref::<Memory>().ok_or_else(|| Error::invalid("the buffer belongs to another device"))
}

fn range(offset: usize, len: usize, total: usize) -> Result<std::ops::Range<usize>> {
    match offset.checked_add(len) {
        Some(end) if end <= total => Ok(offset..end),
        _ => Err(Error::invalid(format!("bytes {offset}+{len} of a buffer of {total} bytes"))),
    }
}

impl Device for SimulatedDevice {
    fn info(&self) -> DeviceInfo {
        let seed = lock(&self.world).seed;
        DeviceInfo {
            name: NAME.into(),
            model: format!("simulated device {seed}"),
            target: self.target.caps().name.into(),
            threads: 1,
            features: Vec::new(),
            notes: vec!["times are made up by a cost model".into()],
        }
    }

    fn target(&self) -> &dyn Target {
        &*self.target
    }

    fn allocate(&self, bytes: usize) -> Result<Buffer> {
        Ok(Buffer::new(Arc::new(Memory(Mutex::new(vec![0; bytes]))), bytes))
    }

    fn upload(&self, buffer: &Buffer, offset: usize, bytes: &[u8]) -> Result<()> {
        let mut content = lock(&memory(buffer)?.0);
        let range = range(offset, bytes.len(), content.len())?;
        content[range].copy_from_slice(bytes);
        Ok(())
    }

    fn download(&self, buffer: &Buffer, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let content = lock(&memory(buffer)?.0);
        bytes.copy_from_slice(&content[range(offset, bytes.len(), content.len())?]);
        Ok(())
    }

    fn load(&self, artifact: &Artifact) -> Result<Program> {
        artifact.alone(NAME)?;
        let Payload::Text(text) = &artifact.payload else {
            return Err(Error::invalid("an artifact of machine code; accepted: those of this device's target"));
        };
        let kernel = ir::parse(text).map_err(|error| Error::invalid(error.to_string()))?;
        let code = Code { kernel, done: Mutex::default() };
        Ok(Program::new(Arc::new(code), Arc::new(artifact.clone())))
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        check_launch(launch)?;
        let entry = &launch.program.artifact.entry;
        let wrong = {
            let mut world = lock(&self.world);
            let seconds = world.cost(entry) * world.disturbance();
            world.seconds += seconds;
            world.launches += 1;
            world.wrong.iter().any(|ending| entry.ends_with(ending.as_str()))
        };
        let code = launch
            .program
            .code()
            .downcast_ref::<Code>()
            .ok_or_else(|| Error::invalid("the program belongs to another device"))?;
        let rows = launch.args.iter().find_map(|arg| if let LaunchArg::I32(x) = arg { Some(*x) } else { None });
        let mut done = lock(&code.done);
        if let std::collections::btree_map::Entry::Vacant(e) = done.entry(rows.unwrap_or(0)) {
            let mut results = self.interpret(&code.kernel, launch)?;
            if wrong && let Some(byte) = results.last_mut().and_then(|bytes| bytes.first_mut()) {
                *byte ^= 0x40;
            }
            e.insert(results);
        }
        let results = &done[&rows.unwrap_or(0)];
        let written = written(launch);
        for (view, result) in written.into_iter().zip(results) {
            let mut content = lock(&memory(view.buffer)?.0);
            content[view.offset..][..view.bytes].copy_from_slice(result);
        }
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

/// The buffers that a launch writes.
fn written<'l>(launch: &'l Launch<'_>) -> Vec<bitsmith_runtime::View<'l>> {
    use bitsmith_compiler::artifact::ArgKind;
    let args = launch.program.artifact.args.iter().zip(&launch.args);
    args.filter_map(|(arg, given)| match (arg.kind, given) {
        (ArgKind::Write { .. } | ArgKind::ReadWrite { .. }, LaunchArg::Buffer(view)) => Some(*view),
        _ => None,
    })
    .collect()
}

impl SimulatedDevice {
    /// The bytes of every written buffer after a launch.
    fn interpret(&self, kernel: &Kernel, launch: &Launch<'_>) -> Result<Vec<Vec<u8>>> {
        let mut args = Vec::new();
        for arg in &launch.args {
            args.push(match arg {
                LaunchArg::Buffer(view) => {
                    let content = lock(&memory(view.buffer)?.0);
                    ArgValue::filled(content[view.offset..][..view.bytes].to_vec())
                }
                LaunchArg::I32(x) => ArgValue::I32(*x),
                LaunchArg::I64(x) => ArgValue::I64(*x),
                LaunchArg::F32(x) => ArgValue::F32(*x),
            });
        }
        let proof = ir::verify(kernel, self.target.caps()).map_err(|faults| Error::Bug {
            message: faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
            text: kernel.to_string(),
        })?;
        interp::run(&proof, 1, interp::Launch { grid: launch.grid, args: &mut args })
            .map_err(|trap| Error::Bug { message: trap.to_string(), text: kernel.to_string() })?;
        let kinds = launch.program.artifact.args.iter();
        use bitsmith_compiler::artifact::ArgKind;
        Ok(kinds
            .zip(args)
            .filter(|(arg, _)| matches!(arg.kind, ArgKind::Write { .. } | ArgKind::ReadWrite { .. }))
            .map(|(_, value)| value.bytes().to_vec())
            .collect())
    }
}
