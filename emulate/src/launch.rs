//! Modules, launches and their outcome: the face of the machine.

mod setup;

use crate::ast::Text;
use crate::decode::{Program, decode};
use crate::exec::Machine;
use crate::fault::{Fault, LoadError};
use crate::memory::Bytes;
use serde::{Deserialize, Serialize};

/// A parsed PTX module.
#[derive(Clone, Debug)]
pub struct Module {
    text: Text,
}

/// A kernel that is ready to run: every instruction of it is known.
pub struct Kernel<'m> {
    module: &'m Module,
    program: Program,
    name: String,
}

/// When asynchronous effects become visible.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effects {
    /// At once.
    #[default]
    Early,
    /// When something waits for them and nothing else can go on.
    Late,
}

/// Who runs when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Schedule {
    /// Instructions of a warp's turn; without it, a warp runs until it waits.
    pub quantum: Option<u32>,
    /// With a seed, warps take turns of random length in random order.
    pub seed: Option<u64>,
    /// When asynchronous effects become visible.
    pub effects: Effects,
    /// Blocks that run together; 1 runs them one after the other.
    pub resident_blocks: u32,
}

impl Default for Schedule {
    fn default() -> Schedule {
        Schedule { quantum: Some(100), seed: None, effects: Effects::Early, resident_blocks: 4 }
    }
}

impl Schedule {
    /// The schedules under which a kernel is to be tried: every quantum, both kinds of effects, random order.
    pub fn all() -> Vec<Schedule> {
        let mut out = Vec::new();
        for effects in [Effects::Early, Effects::Late] {
            for quantum in [Some(1), Some(100), None] {
                let resident_blocks = if quantum.is_none() { 1 } else { 4 };
                out.push(Schedule { quantum, seed: None, effects, resident_blocks });
            }
            out.push(Schedule { quantum: Some(64), seed: Some(0x5eed), effects, resident_blocks: 4 });
        }
        out
    }
}

/// A buffer of device memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Its name, for reports.
    pub name: String,
    /// Its bytes.
    pub data: Vec<u8>,
    /// Which bytes hold something: 1 or 0 per byte.
    pub valid: Vec<u8>,
    /// Whether the kernel may write it.
    pub writable: bool,
}

impl Buffer {
    /// An input: written, and read-only for the kernel.
    pub fn input(name: &str, data: impl Into<Vec<u8>>) -> Buffer {
        let data = data.into();
        Buffer { name: name.to_string(), valid: vec![1; data.len()], data, writable: false }
    }

    /// An output: nothing in it counts until the kernel writes it.
    pub fn output(name: &str, bytes: usize) -> Buffer {
        let poisoned = Bytes::poisoned(bytes);
        Buffer { name: name.to_string(), data: poisoned.data, valid: poisoned.valid, writable: true }
    }

    /// A buffer that holds something and may be written.
    pub fn both(name: &str, data: impl Into<Vec<u8>>) -> Buffer {
        Buffer { writable: true, ..Buffer::input(name, data) }
    }

    /// The first byte that nothing wrote.
    pub fn first_unwritten(&self) -> Option<usize> {
        self.valid.iter().position(|v| *v == 0)
    }
}

/// How a tensor map permutes 16-byte pieces of shared memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Swizzle {
    /// Not at all.
    #[default]
    #[serde(rename = "none")]
    None,
    /// 32-byte rows.
    #[serde(rename = "32")]
    B32,
    /// 64-byte rows.
    #[serde(rename = "64")]
    B64,
    /// 128-byte rows.
    #[serde(rename = "128")]
    B128,
}

impl Swizzle {
    /// Permutes a shared address: bits from 7 on are added, without carry, to bits from 4 on.
    pub fn apply(self, address: u64) -> u64 {
        let bits = match self {
            Swizzle::None => return address,
            Swizzle::B32 => 1,
            Swizzle::B64 => 3,
            Swizzle::B128 => 7,
        };
        address ^ (address >> 7 & bits) << 4
    }
}

/// What a tensor map says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorMap {
    /// Index of the buffer.
    pub buffer: usize,
    /// Bytes from the buffer's start.
    #[serde(default)]
    pub offset: u64,
    /// Bytes of an element.
    pub element_bytes: u64,
    /// Elements per dimension, the innermost first.
    pub sizes: Vec<u64>,
    /// Bytes between neighbours of each dimension but the first.
    pub strides: Vec<u64>,
    /// Elements that one copy moves, per dimension.
    #[serde(rename = "box")]
    pub box_sizes: Vec<u32>,
    /// How shared memory is permuted.
    #[serde(default)]
    pub swizzle: Swizzle,
}

/// A kernel argument.
#[derive(Clone, Debug, PartialEq)]
pub enum Argument {
    /// The address of a buffer, plus an offset.
    Pointer {
        /// Index into the launch's buffers.
        buffer: usize,
        /// Bytes added.
        offset: i64,
    },
    /// Raw bytes: scalars and structures.
    Bytes(Vec<u8>),
    /// A tensor map by value.
    Map(TensorMap),
}

impl Argument {
    /// A 32-bit scalar.
    pub fn u32(value: u32) -> Argument {
        Argument::Bytes(value.to_le_bytes().to_vec())
    }

    /// A pointer to a buffer's start.
    pub fn buffer(index: usize) -> Argument {
        Argument::Pointer { buffer: index, offset: 0 }
    }
}

/// One launch.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Blocks per dimension.
    pub grid: [u32; 3],
    /// Threads of a block per dimension.
    pub block: [u32; 3],
    /// Blocks of a cluster per dimension.
    pub cluster: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// Device memory.
    pub buffers: Vec<Buffer>,
    /// Arguments in order.
    pub arguments: Vec<Argument>,
    /// Who runs when.
    pub schedule: Schedule,
    /// Most instructions times lanes that may run.
    pub budget: u64,
}

impl Default for Launch {
    fn default() -> Launch {
        Launch {
            grid: [1; 3],
            block: [32, 1, 1],
            cluster: [1; 3],
            dynamic_shared: 0,
            buffers: Vec::new(),
            arguments: Vec::new(),
            schedule: Schedule::default(),
            budget: 1 << 36,
        }
    }
}

/// What a launch left behind.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The launch's buffers, as the kernel left them.
    pub buffers: Vec<Buffer>,
    /// Instructions times active lanes.
    pub lane_instructions: u64,
    /// Instructions of warps.
    pub warp_instructions: u64,
}

/// Words that mark a tensor map's bytes; its index follows.
const MAP_MARK: [u8; 8] = *b"bsmithTM";

/// The index of the tensor map in these bytes.
pub(crate) fn map_index(bytes: &[u8]) -> Option<usize> {
    (bytes[..8] == MAP_MARK).then(|| usize::from(bytes[8]) | usize::from(bytes[9]) << 8)
}

impl Module {
    /// Parses PTX text.
    ///
    /// # Errors
    /// Where the text is no PTX module that this machine can read.
    pub fn load(text: &str) -> Result<Module, LoadError> {
        Ok(Module { text: crate::parse::parse(text)? })
    }

    /// Names of the kernels.
    pub fn kernels(&self) -> Vec<&str> {
        self.text.functions.iter().filter(|f| f.entry).map(|f| f.name.as_str()).collect()
    }

    /// Decodes a kernel.
    ///
    /// # Errors
    /// Where it does not exist, or holds anything that this machine does not know.
    pub fn kernel(&self, name: &str) -> Result<Kernel<'_>, LoadError> {
        Ok(Kernel { module: self, program: decode(&self.text, name)?, name: name.to_string() })
    }
}

impl Kernel<'_> {
    /// Bytes of static shared memory.
    pub fn static_shared(&self) -> u64 {
        self.program.shared - crate::memory::SHARED_START
    }

    /// Instructions in the decoded program.
    pub fn instructions(&self) -> usize {
        self.program.insts.len()
    }

    /// Runs a launch.
    ///
    /// # Errors
    /// The first fault of the kernel, or of the launch itself.
    pub fn run(&self, launch: &Launch) -> Result<Outcome, Fault> {
        self.check(launch)?;
        let (memory, first) = self.memory(launch)?;
        let mut maps = Vec::new();
        let parameters = self.parameters(launch, first, &mut maps)?;
        let mut machine = Machine {
            program: &self.program,
            memory,
            parameters,
            maps,
            blocks: Vec::new(),
            warps: Vec::new(),
            schedule: launch.schedule,
            grid: launch.grid,
            block: launch.block,
            cluster: launch.cluster,
            dynamic_shared: u64::from(launch.dynamic_shared),
            lane_instructions: 0,
            warp_instructions: 0,
            budget: launch.budget,
            order: Default::default(),
            progress: 0,
            random: fastrand::Rng::with_seed(launch.schedule.seed.unwrap_or(0)),
            next_copy: 0,
            scratch: [0; 32],
            operand_cache: Vec::new(),
            first_buffer: first,
        };
        machine.run_grid()?;
        let buffers = machine.memory.segments.drain(first..).map(|segment| Buffer {
            name: segment.name,
            data: segment.bytes.data,
            valid: segment.bytes.valid,
            writable: segment.writable,
        });
        Ok(Outcome {
            buffers: buffers.collect(),
            lane_instructions: machine.lane_instructions,
            warp_instructions: machine.warp_instructions,
        })
    }
}

impl TensorMap {
    /// What the driver would refuse when it encodes such a map.
    fn check(&self, buffers: usize) -> Result<(), String> {
        let rank = self.sizes.len();
        if self.buffer >= buffers {
            return Err(format!("a tensor map of buffer {}, of {buffers}", self.buffer));
        }
        if !(1..=5).contains(&rank) || self.strides.len() != rank - 1 || self.box_sizes.len() != rank {
            return Err("a tensor map has 1 to 5 sizes, one stride less, and as many box sizes".into());
        }
        if !matches!(self.element_bytes, 1 | 2 | 4 | 8) {
            return Err(format!("tensor elements of {} bytes", self.element_bytes));
        }
        if self.strides.iter().any(|s| s % 16 != 0) || !self.offset.is_multiple_of(16) {
            return Err("a tensor map's strides and start must be multiples of 16 bytes".into());
        }
        if self.box_sizes.iter().any(|n| *n == 0 || *n > 256) {
            return Err("a tensor map's box has 1 to 256 elements per dimension".into());
        }
        let row = u64::from(self.box_sizes[0]) * self.element_bytes;
        let most = match self.swizzle {
            Swizzle::None => u64::MAX,
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        };
        if !row.is_multiple_of(16) || row > most {
            return Err(format!("a box row of {row} bytes; accepted: multiples of 16 up to {most}"));
        }
        Ok(())
    }
}
