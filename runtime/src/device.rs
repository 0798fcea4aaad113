//! The face of every device, and the checks that stand before every launch.

use crate::timing::Recording;
use bitsmith_compiler::artifact::{ArgKind, Artifact};
use bitsmith_compiler::caps::Caps;
use bitsmith_compiler::target::Target;
use bitsmith_compiler::{Error, Result};
use serde::Serialize;
use std::any::Any;
use std::sync::Arc;

/// Something that kernels run on.
pub trait Device: Send + Sync {
    /// What it is.
    fn info(&self) -> DeviceInfo;

    /// The target that makes artifacts for it.
    fn target(&self) -> &dyn Target;

    /// What it can do.
    fn caps(&self) -> &Caps {
        self.target().caps()
    }

    /// Memory of this many bytes, with undefined content, aligned to `caps().buffer_align`.
    fn allocate(&self, bytes: usize) -> Result<Buffer>;

    /// The caller's memory as a buffer, on a device that shares its address space.
    ///
    /// # Safety
    /// The memory must stay valid while the buffer or a launch with it lives, and nobody else may touch it during a launch.
    unsafe fn wrap(&self, memory: *mut u8, bytes: usize) -> Result<Buffer> {
        let _ = (memory, bytes);
        Err(Error::Unsupported(format!("memory of the caller on {}; accepted: buffers of its own", self.info().name)))
    }

    /// Copies to the device. Fails where the bytes do not fit.
    fn upload(&self, buffer: &Buffer, offset: usize, bytes: &[u8]) -> Result<()>;

    /// Copies from the device, after all launches before it. Fails where the range does not fit.
    fn download(&self, buffer: &Buffer, offset: usize, bytes: &mut [u8]) -> Result<()>;

    /// How well code made for a target serves here: higher is better, `None` if it does not run.
    fn accepts(&self, target: &str) -> Option<u32> {
        (self.info().target == target).then_some(0)
    }

    /// Makes an artifact ready to run.
    fn load(&self, artifact: &Artifact) -> Result<Program>;

    /// Starts a launch; it may still run when this returns.
    fn launch(&self, launch: &Launch<'_>) -> Result<()>;

    /// Waits for every launch.
    fn synchronize(&self) -> Result<()>;

    /// Launches in order, ready to be repeated and timed by the device's own clock. `None` where it has none that is
    /// better than the host's.
    fn record<'a>(&'a self, _launches: &[Launch<'a>]) -> Result<Option<Box<dyn Recording + 'a>>> {
        Ok(None)
    }
}

/// What a device is, for people and for `--json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeviceInfo {
    /// Name on the command line: `cpu`.
    pub name: String,
    /// What it calls itself.
    pub model: String,
    /// Name of the target's caps: `x86-64-v4+vnni`.
    pub target: String,
    /// Threads that run workgroups on a CPU, units of a GPU.
    pub threads: usize,
    /// Names of features.
    pub features: Vec<String>,
    /// What a user should know about how it was opened.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Memory of a device. Clones share it.
#[derive(Clone)]
pub struct Buffer {
    pub(crate) memory: Arc<dyn Any + Send + Sync>,
    bytes: usize,
}

impl Buffer {
    /// Wraps a device's own memory.
    pub(crate) fn new(memory: Arc<dyn Any + Send + Sync>, bytes: usize) -> Buffer {
        Buffer { memory, bytes }
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All of it.
    pub fn view(&self) -> View<'_> {
        View { buffer: self, offset: 0, bytes: self.bytes }
    }

    /// A range of it. Fails where it does not fit.
    pub fn range(&self, offset: usize, bytes: usize) -> Result<View<'_>> {
        self.check(offset, bytes)?;
        Ok(View { buffer: self, offset, bytes })
    }

    pub(crate) fn check(&self, offset: usize, bytes: usize) -> Result<()> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => Ok(()),
            _ => Err(Error::invalid(format!("bytes {offset}+{bytes} of a buffer of {} bytes", self.bytes))),
        }
    }

    fn same(&self, other: &Buffer) -> bool {
        Arc::ptr_eq(&self.memory, &other.memory)
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.bytes)
    }
}

/// A range of a buffer.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The buffer.
    pub buffer: &'a Buffer,
    /// First byte.
    pub offset: usize,
    /// Number of bytes.
    pub bytes: usize,
}

/// A loaded artifact. Clones share it.
#[derive(Clone)]
pub struct Program {
    pub(crate) code: Arc<dyn Any + Send + Sync>,
    /// What was loaded.
    pub artifact: Arc<Artifact>,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Program({})", self.artifact.entry)
    }
}

/// A launch of a program over a grid of workgroups.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// What runs.
    pub program: &'a Program,
    /// Workgroups along x, y, z.
    pub grid: [u32; 3],
    /// One per argument of the artifact, in order.
    pub args: Vec<LaunchArg<'a>>,
}

/// One argument of a launch.
#[derive(Clone, Copy, Debug)]
pub enum LaunchArg<'a> {
    /// A range of memory. The kernel may touch all of it; that it touches no more is the compiler's promise for the
    /// sizes of `lower::signature`.
    Buffer(View<'a>),
    /// A number.
    I32(i32),
    /// A number.
    I64(i64),
    /// A number.
    F32(f32),
}

/// Checks a launch against its artifact: number and kind of arguments, alignment, overlap of what is written. Lists every
/// fault.
pub fn check_launch(launch: &Launch<'_>) -> Result<()> {
    let artifact = &launch.program.artifact;
    let mut faults = Vec::new();
    if launch.args.len() != artifact.args.len() {
        faults.push(format!("{} arguments; {} takes {}", launch.args.len(), artifact.entry, artifact.args.len()));
    }
    if launch.grid.iter().try_fold(1u64, |total, &n| total.checked_mul(n as u64)).is_none() {
        faults.push(format!("a grid of {:?} workgroups; accepted: at most 2^64 in all", launch.grid));
    }
    let mut ranges: Vec<(&str, View<'_>, bool)> = Vec::new();
    for (arg, given) in artifact.args.iter().zip(&launch.args) {
        let (align, written) = match (arg.kind, given) {
            (ArgKind::Read { align }, LaunchArg::Buffer(_)) => (align, false),
            (ArgKind::Write { align } | ArgKind::ReadWrite { align }, LaunchArg::Buffer(_)) => (align, true),
            (ArgKind::I32, LaunchArg::I32(_))
            | (ArgKind::I64, LaunchArg::I64(_))
            | (ArgKind::F32, LaunchArg::F32(_)) => continue,
            (expected, found) => {
                faults.push(format!("argument `{}` is {found:?}; accepted: {expected:?}", arg.name));
                continue;
            }
        };
        if let LaunchArg::Buffer(view) = given {
            if view.offset % align as usize != 0 {
                faults.push(format!(
                    "argument `{}` starts at byte {}; accepted: multiples of {align}",
                    arg.name, view.offset
                ));
            }
            ranges.push((&arg.name, *view, written));
        }
    }
    for (i, (name, view, written)) in ranges.iter().enumerate() {
        for (other_name, other, other_written) in &ranges[..i] {
            let apart = view.offset >= other.offset + other.bytes || other.offset >= view.offset + view.bytes;
            if (*written || *other_written) && view.buffer.same(other.buffer) && !apart {
                faults.push(format!("arguments `{other_name}` and `{name}` overlap, and one of them is written"));
            }
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(Error::Invalid(faults)) }
}
