//! What goes wrong: text that is no PTX this machine knows, launches that contradict it, and faults of a running kernel.

use std::fmt;

/// A module that cannot be loaded.
#[derive(Clone, Debug, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct LoadError {
    /// Line in the PTX text, from 1; 0 when the fault has no line.
    pub line: u32,
    /// What was found, and what is accepted.
    pub message: String,
}

impl LoadError {
    pub(crate) fn at(line: u32, message: impl Into<String>) -> LoadError {
        LoadError { line, message: message.into() }
    }
}

/// What a running kernel did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// An access outside every buffer, or across a buffer's end.
    OutOfBounds,
    /// An address that is no multiple of what the access needs.
    Misaligned,
    /// Arithmetic, an address or a decision made from a value that nothing wrote.
    Uninitialised,
    /// Two accesses to shared memory, at least one a write, without order between them.
    Race,
    /// An `.aligned` barrier or warp instruction that a part of the warp does not reach.
    Divergence,
    /// Every thread waits for something that cannot come.
    Deadlock,
    /// The instruction budget ran out.
    Budget,
    /// A write to memory that is read-only for the kernel.
    ReadOnly,
    /// A use of barriers, matrix descriptors or asynchronous copies that the ISA forbids.
    Misuse,
    /// `trap`, `brkpt` or a failed assertion.
    Trap,
    /// Arguments, block size or memory that do not fit the kernel.
    Launch,
}

/// A fault, and where the kernel stood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What kind of fault.
    pub kind: FaultKind,
    /// Line in the PTX text, from 1; 0 for a launch fault.
    pub line: u32,
    /// The instruction as written.
    pub instruction: String,
    /// What was found.
    pub message: String,
    /// Block index in the grid.
    pub block: [u32; 3],
    /// Warp of the block.
    pub warp: u32,
    /// Lane of the warp, where one lane is to blame.
    pub lane: Option<u32>,
}

impl Fault {
    pub(crate) fn new(kind: FaultKind, message: impl Into<String>) -> Fault {
        Fault { kind, line: 0, instruction: String::new(), message: message.into(), block: [0; 3], warp: 0, lane: None }
    }

    pub(crate) fn lane(kind: FaultKind, lane: usize, message: impl Into<String>) -> Fault {
        Fault { lane: Some(lane as u32), ..Fault::new(kind, message) }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.message)?;
        if self.line > 0 {
            let [x, y, z] = self.block;
            write!(f, "\n  line {}: {}\n  block ({x}, {y}, {z}), warp {}", self.line, self.instruction, self.warp)?;
            if let Some(lane) = self.lane {
                write!(f, ", lane {lane}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}
