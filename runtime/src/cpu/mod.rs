//! The CPU as a device: machine code in this process, workgroups spread over a pool of threads.

mod affinity;
mod code;
mod direct;
mod memory;
mod pool;

use self::code::Code;
pub use self::direct::{DirectArg, DirectCall};
use self::memory::Memory;
pub use self::pool::{Pool, PoolOptions, Split};
use crate::device::{Buffer, Device, DeviceInfo, Launch, LaunchArg, Program, check_launch};
use crate::pages::Pages;
use bitsmith_compiler::artifact::{ArgKind, Artifact};
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::cpu::CpuTarget;
use bitsmith_compiler::{Error, Result};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// This machine's CPU.
pub struct CpuDevice {
    target: CpuTarget,
    pool: Pool,
    pages: Pages,
    /// Held by whoever touches device memory: launches and copies never overlap. Holds the scratch of each thread.
    scratch: Mutex<Vec<Memory>>,
}

/// Threads that this process may use.
pub fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

impl CpuDevice {
    /// The host with its best target, on this many threads (the caller's included).
    pub fn new(threads: usize) -> Result<CpuDevice> {
        CpuDevice::with_target(CpuTarget::host()?, threads)
    }

    /// The host with a given target, which it must be able to run.
    pub fn with_target(target: CpuTarget, threads: usize) -> Result<CpuDevice> {
        CpuDevice::with_options(target, threads, PoolOptions::default())
    }

    /// The same with a say in how threads share the work.
    pub fn with_options(target: CpuTarget, threads: usize, options: PoolOptions) -> Result<CpuDevice> {
        if !target.runs_here() {
            return Err(Error::Unsupported(format!("running {} code on this machine", target.caps().name)));
        }
        let pool = Pool::with_options(threads, options);
        Ok(CpuDevice { target, pool, pages: Pages::default(), scratch: Mutex::new(Vec::new()) })
    }

    /// The pool, for measurements of its own cost.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Memory>> {
        // A panic under the lock leaves numbers half-computed, not memory in disorder.
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn own(buffer: &Buffer) -> Result<&Memory> {
    buffer.memory.downcast_ref::<Memory>().ok_or_else(|| Error::invalid("the buffer belongs to another device"))
}

/// Refuses what `check_launch` cannot see: wrapped memory of two buffers that overlaps where one is written.
fn apart(launch: &Launch<'_>) -> Result<()> {
    let mut ranges: Vec<(u64, u64, bool)> = Vec::with_capacity(launch.args.len());
    for (arg, given) in launch.program.artifact.args.iter().zip(&launch.args) {
        let LaunchArg::Buffer(view) = given else { continue };
        let start = own(view.buffer)?.address(view.offset);
        let (end, written) = (start + view.bytes as u64, !matches!(arg.kind, ArgKind::Read { .. }));
        if ranges.iter().any(|&(other, last, other_written)| (written || other_written) && start < last && other < end)
        {
            return Err(Error::invalid(format!(
                "argument `{}` overlaps another, and one of them is written",
                arg.name
            )));
        }
        ranges.push((start, end, written));
    }
    Ok(())
}

impl Device for CpuDevice {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            name: "cpu".into(),
            model: model(),
            target: self.target.caps().name.into(),
            threads: self.pool.threads(),
            features: self.target.caps().features.iter().map(|f| f.name().to_string()).collect(),
            notes: Vec::new(),
        }
    }

    fn target(&self) -> &dyn Target {
        &self.target
    }

    fn allocate(&self, bytes: usize) -> Result<Buffer> {
        Ok(Buffer::new(Arc::new(Memory::new(bytes, &self.pages)?), bytes))
    }

    unsafe fn wrap(&self, memory: *mut u8, bytes: usize) -> Result<Buffer> {
        // SAFETY: the caller's promise.
        Ok(Buffer::new(Arc::new(unsafe { Memory::foreign(memory, bytes)? }), bytes))
    }

    fn upload(&self, buffer: &Buffer, offset: usize, bytes: &[u8]) -> Result<()> {
        buffer.check(offset, bytes.len())?;
        let memory = own(buffer)?;
        let _lock = self.lock();
        memory.write(offset, bytes);
        Ok(())
    }

    fn download(&self, buffer: &Buffer, offset: usize, bytes: &mut [u8]) -> Result<()> {
        buffer.check(offset, bytes.len())?;
        let memory = own(buffer)?;
        let _lock = self.lock();
        memory.read(offset, bytes);
        Ok(())
    }

    fn accepts(&self, target: &str) -> Option<u32> {
        let runs = CpuTarget::named(target).is_ok_and(|made_for| made_for.runs_here());
        // Levels are listed from the plainest to the richest; Cranelift's code comes after our own.
        let rank = CpuTarget::names().filter(|name| !name.ends_with("+clif")).position(|name| name == target);
        runs.then_some(rank.map_or(0, |rank| rank as u32 + 1))
    }

    fn load(&self, artifact: &Artifact) -> Result<Program> {
        artifact.alone("a CPU")?;
        let made_for = CpuTarget::named(&artifact.target)?;
        if !made_for.runs_here() {
            return Err(Error::Unsupported(format!(
                "{} is code for {}, which this machine ({}) cannot run",
                artifact.entry,
                artifact.target,
                self.target.caps().name
            )));
        }
        let code = Code::load(artifact)?;
        Ok(Program { code: Arc::new(code), artifact: Arc::new(artifact.clone()) })
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        check_launch(launch)?;
        let code = launch
            .program
            .code
            .downcast_ref::<Code>()
            .ok_or_else(|| Error::invalid("the program belongs to another device"))?;
        apart(launch)?;
        let mut args = Vec::with_capacity(launch.args.len() + 3);
        for arg in &launch.args {
            args.push(match arg {
                LaunchArg::Buffer(view) => own(view.buffer)?.address(view.offset),
                LaunchArg::I32(x) => *x as u32 as u64,
                LaunchArg::I64(x) => *x as u64,
                LaunchArg::F32(x) => x.to_bits() as u64,
            });
        }
        args.extend(launch.grid.map(u64::from));
        let total = launch.grid.iter().map(|&n| n as u64).product();
        let mut scratch = self.lock();
        let shared = launch.program.artifact.shared_bytes as usize;
        while scratch.len() < self.pool.threads() {
            scratch.push(Memory::new(0, &self.pages)?);
        }
        for memory in scratch.iter_mut().filter(|memory| memory.bytes() < shared) {
            *memory = Memory::new(shared, &self.pages)?;
        }
        let scratch = &*scratch;
        self.pool.run(total, &|thread, begin, end| {
            // SAFETY: `check_launch` matched the arguments to the artifact, every buffer outlives this call and is not
            // touched by others while the lock is held, and each thread has scratch of its own of the artifact's size.
            unsafe { code.call(&args, scratch[thread].address(0), begin, end) };
        });
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

/// What the processor calls itself, where the system tells. Asked once: the system may take as long to answer as a small launch.
pub fn model() -> String {
    static MODEL: OnceLock<String> = OnceLock::new();
    let read = || {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name =
            text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim()));
        name.unwrap_or(std::env::consts::ARCH).to_string()
    };
    MODEL.get_or_init(read).clone()
}
