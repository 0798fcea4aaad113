//! Faults planted under the suite, to see that it finds them: a device that does one thing wrong.

use bitsmith_compiler::artifact::{ArgKind, Artifact};
use bitsmith_compiler::target::Target;
use bitsmith_compiler::{Error, Result};
use bitsmith_runtime::{Buffer, Device, DeviceInfo, Launch, LaunchArg, Program, View};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The last workgroups along the grid's longest axis do not run.
    MissingWorkgroup,
    /// The second highest bit of each result's last byte is flipped: of an exponent, in every float type.
    FlippedBit,
    /// The byte past each result is written.
    Overrun,
    /// The first byte of the first input is written.
    WrittenInput,
    /// The lowest bit of each result's first byte depends on how many launches there were.
    Unsteady,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Fault; 5] =
        [Fault::MissingWorkgroup, Fault::FlippedBit, Fault::Overrun, Fault::WrittenInput, Fault::Unsteady];

    /// Name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Fault::MissingWorkgroup => "missing-workgroup",
            Fault::FlippedBit => "flipped-bit",
            Fault::Overrun => "overrun",
            Fault::WrittenInput => "written-input",
            Fault::Unsteady => "unsteady",
        }
    }
}

impl FromStr for Fault {
    type Err = Error;

    fn from_str(text: &str) -> Result<Fault> {
        Fault::ALL.into_iter().find(|fault| fault.name() == text).ok_or_else(|| {
            let names: Vec<&str> = Fault::ALL.iter().map(|fault| fault.name()).collect();
            Error::invalid(format!("fault `{text}`; accepted: {}", names.join(", ")))
        })
    }
}

/// A device with a fault.
pub struct Faulty {
    inner: Arc<dyn Device>,
    fault: Fault,
    launches: AtomicU64,
}

impl Faulty {
    /// Plants a fault in a device.
    pub fn new(inner: Arc<dyn Device>, fault: Fault) -> Faulty {
        Faulty { inner, fault, launches: AtomicU64::new(0) }
    }

    /// Changes a byte of device memory.
    fn change(&self, buffer: &Buffer, at: usize, change: impl Fn(u8) -> u8) -> Result<()> {
        let mut byte = [0];
        self.inner.download(buffer, at, &mut byte)?;
        self.inner.upload(buffer, at, &[change(byte[0])])
    }

    /// Does something to each written argument.
    fn results(&self, launch: &Launch<'_>, mut each: impl FnMut(&View<'_>) -> Result<()>) -> Result<()> {
        for (arg, given) in launch.program.artifact.args.iter().zip(&launch.args) {
            if let (ArgKind::Write { .. } | ArgKind::ReadWrite { .. }, LaunchArg::Buffer(view)) = (arg.kind, given) {
                each(view)?;
            }
        }
        Ok(())
    }
}

impl Device for Faulty {
    fn info(&self) -> DeviceInfo {
        let mut info = self.inner.info();
        info.notes.push(format!("a fault was planted: {}", self.fault.name()));
        info
    }

    fn target(&self) -> &dyn Target {
        self.inner.target()
    }

    fn allocate(&self, bytes: usize) -> Result<Buffer> {
        self.inner.allocate(bytes)
    }

    fn upload(&self, buffer: &Buffer, offset: usize, bytes: &[u8]) -> Result<()> {
        self.inner.upload(buffer, offset, bytes)
    }

    fn download(&self, buffer: &Buffer, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.inner.download(buffer, offset, bytes)
    }

    fn accepts(&self, target: &str) -> Option<u32> {
        self.inner.accepts(target)
    }

    fn load(&self, artifact: &Artifact) -> Result<Program> {
        self.inner.load(artifact)
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        let mut launch = launch.clone();
        if self.fault == Fault::MissingWorkgroup {
            let longest = (0..3).max_by_key(|&axis| launch.grid[axis]).unwrap_or(0);
            launch.grid[longest] = launch.grid[longest].saturating_sub(1);
        }
        self.inner.launch(&launch)?;
        let turn = self.launches.fetch_add(1, Ordering::Relaxed);
        match self.fault {
            Fault::MissingWorkgroup => Ok(()),
            Fault::FlippedBit => self.results(&launch, |view| {
                self.change(view.buffer, view.offset + view.bytes.max(1) - 1, |byte| byte ^ 0x40)
            }),
            Fault::Overrun => {
                self.results(&launch, |view| self.change(view.buffer, view.offset + view.bytes, |byte| byte ^ 0x55))
            }
            Fault::Unsteady if turn % 2 == 1 => {
                self.results(&launch, |view| self.change(view.buffer, view.offset, |byte| byte ^ 1))
            }
            Fault::Unsteady => Ok(()),
            Fault::WrittenInput => match launch.args.first() {
                Some(LaunchArg::Buffer(view)) => self.change(view.buffer, view.offset, |byte| byte ^ 1),
                _ => Ok(()),
            },
        }
    }

    fn synchronize(&self) -> Result<()> {
        self.inner.synchronize()
    }
}
