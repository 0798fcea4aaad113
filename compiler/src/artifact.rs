//! What a target makes of a kernel: bytes or source, and all a loader needs to run it.
//!
//! Always holds: the same kernel and target give the same artifact, byte for byte, on every machine.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A kernel ready to be loaded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Artifact {
    /// Name of the target that made it: `x86-64-v3`.
    pub target: String,
    /// Name of the entry point.
    pub entry: String,
    /// The code.
    #[serde(skip)]
    pub payload: Payload,
    /// What the caller passes, in order.
    pub args: Vec<Arg>,
    /// Threads per workgroup.
    pub workgroup: [u32; 3],
    /// Bytes of shared memory (scratch on a CPU) per workgroup.
    pub shared_bytes: u64,
    /// A kernel of the same code that each launch runs first; whoever launches the artifact launches both, in this order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preparation: Option<Preparation>,
}

/// A kernel that runs before the artifact's own, which begins when all of it has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preparation {
    /// Name of its entry point in the same code.
    pub entry: String,
    /// What it takes, in order: some of the launch's buffers, by their names.
    pub args: Vec<Arg>,
    /// Its workgroups along x, y, z, the same for every launch.
    pub grid: [u32; 3],
    /// Threads per workgroup.
    pub workgroup: [u32; 3],
    /// Bytes of shared memory per workgroup.
    pub shared_bytes: u64,
}

impl Preparation {
    /// Where its arguments stand among those of the artifact. Fails where one is missing.
    pub fn places(&self, args: &[Arg]) -> Result<Vec<usize>> {
        let place = |own: &Arg| {
            let found = args.iter().position(|arg| arg.name == own.name);
            found.ok_or_else(|| {
                let names: Vec<&str> = args.iter().map(|arg| arg.name.as_str()).collect();
                Error::invalid(format!("{} takes `{}`; a launch has {}", self.entry, own.name, names.join(", ")))
            })
        };
        self.args.iter().map(place).collect()
    }
}

/// The code of an artifact.
#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    /// Position-independent machine code of one function, with no relocations.
    Machine(Vec<u8>),
    /// Source or assembly text.
    Text(String),
    /// A module that a driver compiles: SPIR-V, its words low byte first.
    Binary(Vec<u8>),
}

impl Default for Payload {
    fn default() -> Payload {
        Payload::Machine(Vec::new())
    }
}

impl Payload {
    /// The bytes that a file would hold.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Payload::Machine(bytes) | Payload::Binary(bytes) => bytes,
            Payload::Text(text) => text.as_bytes(),
        }
    }
}

/// One argument of a launch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arg {
    /// Name, as in the kernel.
    pub name: String,
    /// What it is.
    #[serde(flatten)]
    pub kind: ArgKind,
}

/// What an argument is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ArgKind {
    /// A buffer that the kernel reads.
    Read {
        /// Alignment of its start in bytes.
        align: u32,
    },
    /// A buffer that the kernel writes.
    Write {
        /// Alignment of its start in bytes.
        align: u32,
    },
    /// A buffer that the kernel reads and writes.
    ReadWrite {
        /// Alignment of its start in bytes.
        align: u32,
    },
    /// A 32-bit integer.
    I32,
    /// A 64-bit integer.
    I64,
    /// A 32-bit float.
    F32,
}

impl ArgKind {
    /// Whether the kernel writes it.
    pub fn writes(&self) -> bool {
        matches!(self, ArgKind::Write { .. } | ArgKind::ReadWrite { .. })
    }
}

impl Artifact {
    /// Fails where a launch is more than one kernel: for loaders that launch just one.
    pub fn alone(&self, loader: &str) -> Result<()> {
        match &self.preparation {
            None => Ok(()),
            Some(first) => Err(Error::Unsupported(format!(
                "{} runs {} before it; accepted on {loader}: artifacts of one kernel",
                self.entry, first.entry
            ))),
        }
    }

    /// SHA-256 of the payload in lower-case hexadecimal.
    pub fn sha256(&self) -> String {
        sha256(self.payload.bytes())
    }
}

/// SHA-256 in lower-case hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
