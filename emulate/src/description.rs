//! A launch as a JSON file, and the check that runs it under every schedule.
//!
//! ```json
//! {
//!   "kernel": "scale",
//!   "grid": [4, 1, 1],
//!   "block": [128, 1, 1],
//!   "buffers": [
//!     { "name": "x", "bytes": 4096, "init": { "random": { "type": "f32", "seed": 1 } } },
//!     { "name": "y", "bytes": 4096, "writable": true }
//!   ],
//!   "arguments": [ { "buffer": "x" }, { "buffer": "y" }, { "f32": 2.0 }, { "u32": 1024 } ]
//! }
//! ```

use crate::fault::{Fault, LoadError};
use crate::launch::{Argument, Buffer, Effects, Launch, Module, Schedule, TensorMap};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A launch file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// The kernel; may be absent where the module has one.
    #[serde(default)]
    pub kernel: Option<String>,
    /// Blocks per dimension.
    pub grid: [u32; 3],
    /// Threads per dimension.
    pub block: [u32; 3],
    /// Blocks of a cluster per dimension.
    #[serde(default = "ones")]
    pub cluster: [u32; 3],
    /// Bytes of dynamic shared memory.
    #[serde(default)]
    pub dynamic_shared: u32,
    /// Device memory.
    #[serde(default)]
    pub buffers: Vec<BufferDescription>,
    /// Arguments in order.
    #[serde(default)]
    pub arguments: Vec<ArgumentDescription>,
    /// Schedules to run; all of them where absent.
    #[serde(default)]
    pub schedules: Vec<Schedule>,
    /// Most instructions times lanes.
    #[serde(default = "budget")]
    pub budget: u64,
}

fn ones() -> [u32; 3] {
    [1; 3]
}

fn budget() -> u64 {
    Launch::default().budget
}

/// A buffer of a launch file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BufferDescription {
    /// Its name.
    pub name: String,
    /// Its size; may be absent where a file gives it.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// What it holds; without it, nothing that may be read.
    #[serde(default)]
    pub init: Option<InitDescription>,
    /// Whether the kernel may write it.
    #[serde(default)]
    pub writable: bool,
    /// A file that gets what the kernel left, beside the launch file.
    #[serde(default)]
    pub save: Option<PathBuf>,
}

/// What a buffer holds at first.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum InitDescription {
    /// One byte, over and over.
    Fill(u8),
    /// 0, 1, 2, … of a type.
    Count(Number),
    /// Uniform numbers of a type: integers over their range, floats from -1 to 1.
    Random {
        /// The type.
        #[serde(rename = "type")]
        number: Number,
        /// The generator's seed.
        #[serde(default)]
        seed: u64,
    },
    /// A file's bytes, beside the launch file.
    File(PathBuf),
}

/// A number's type in a launch file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Number {
    U8,
    U32,
    U64,
    F16,
    Bf16,
    F32,
    F64,
}

/// An argument of a launch file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ArgumentDescription {
    /// A buffer's address, by name.
    Buffer(String),
    /// A buffer's address plus bytes.
    BufferAt {
        /// The buffer's name.
        buffer: String,
        /// Bytes added.
        offset: i64,
    },
    /// A 32-bit unsigned number.
    U32(u32),
    /// A 32-bit signed number.
    I32(i32),
    /// A 64-bit unsigned number.
    U64(u64),
    /// A single.
    F32(f32),
    /// A double.
    F64(f64),
    /// Raw bytes.
    Bytes(Vec<u8>),
    /// A tensor map; its `buffer` is an index into the buffers.
    TensorMap(TensorMap),
}

/// What a check found under one schedule.
#[derive(Clone, Debug)]
pub struct Run {
    /// The schedule.
    pub schedule: Schedule,
    /// The fault, where there was one.
    pub fault: Option<Fault>,
    /// Instructions times lanes.
    pub lane_instructions: u64,
}

/// What a check found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The kernel's name.
    pub kernel: String,
    /// One entry per schedule.
    pub runs: Vec<Run>,
    /// Schedules whose results differ from the first's: buffer, byte, schedule.
    pub differences: Vec<(String, usize, Schedule)>,
}

impl Report {
    /// Whether nothing was found.
    pub fn clean(&self) -> bool {
        self.differences.is_empty() && self.runs.iter().all(|r| r.fault.is_none())
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = |s: &Schedule| {
            let turns = s.quantum.map_or("unbounded".to_string(), |q| q.to_string());
            let order = s.seed.map_or(String::new(), |seed| format!(", random order {seed}"));
            let effects = if s.effects == Effects::Early { "early" } else { "late" };
            format!("turns {turns}{order}, effects {effects}, {} blocks at once", s.resident_blocks)
        };
        let mut seen: Vec<&Fault> = Vec::new();
        for run in &self.runs {
            match &run.fault {
                None => writeln!(f, "ok      {}: {} lane instructions", name(&run.schedule), run.lane_instructions)?,
                Some(fault) if seen.contains(&fault) => writeln!(f, "fault   {}: as above", name(&run.schedule))?,
                Some(fault) => {
                    writeln!(f, "fault   {}\n{fault}", name(&run.schedule))?;
                    seen.push(fault);
                }
            }
        }
        for (buffer, at, schedule) in &self.differences {
            writeln!(f, "differs `{buffer}` at byte {at} under: {}", name(schedule))?;
        }
        let verdict = if self.clean() { "no fault found" } else { "FAULTS FOUND" };
        write!(f, "`{}`: {verdict} under {} schedules", self.kernel, self.runs.len())
    }
}

/// Why a check did not come to run.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// A file that cannot be read or written.
    #[error("{0}: {1}")]
    File(PathBuf, std::io::Error),
    /// A launch file that is none.
    #[error("{0}: {1}")]
    Json(PathBuf, serde_json::Error),
    /// PTX that the machine does not know.
    #[error("{0}: {1}")]
    Load(PathBuf, LoadError),
    /// A launch file that contradicts itself.
    #[error("{0}")]
    Invalid(String),
}

/// Checks a kernel under every schedule: the whole of `bitsmith check`.
///
/// # Errors
/// Where a file cannot be read or understood; what the kernel does wrong is in the report.
pub fn check_file(ptx: &Path, launch: &Path) -> Result<Report, CheckError> {
    let read = |path: &Path| std::fs::read_to_string(path).map_err(|e| CheckError::File(path.to_path_buf(), e));
    let text = read(ptx)?;
    let description: Description =
        serde_json::from_str(&read(launch)?).map_err(|e| CheckError::Json(launch.to_path_buf(), e))?;
    let folder = launch.parent().unwrap_or(Path::new("."));
    let module = Module::load(&text).map_err(|e| CheckError::Load(ptx.to_path_buf(), e))?;
    let name = match (&description.kernel, &module.kernels()[..]) {
        (Some(name), _) => name.clone(),
        (None, [only]) => only.to_string(),
        (None, several) => {
            return Err(CheckError::Invalid(format!("name a kernel: the module has {}", several.join(", "))));
        }
    };
    let kernel = module.kernel(&name).map_err(|e| CheckError::Load(ptx.to_path_buf(), e))?;
    let launch = description.launch(folder)?;
    let schedules = if description.schedules.is_empty() { Schedule::all() } else { description.schedules.clone() };
    let mut report = Report { kernel: name, runs: Vec::new(), differences: Vec::new() };
    let mut first: Option<Vec<Buffer>> = None;
    for schedule in schedules {
        match kernel.run(&Launch { schedule, ..launch.clone() }) {
            Ok(outcome) => {
                report.runs.push(Run { schedule, fault: None, lane_instructions: outcome.lane_instructions });
                if let Some(first) = &first {
                    for (a, b) in first.iter().zip(&outcome.buffers) {
                        if let Some(at) =
                            (0..a.data.len()).find(|i| a.data[*i] != b.data[*i] || a.valid[*i] != b.valid[*i])
                        {
                            report.differences.push((a.name.clone(), at, schedule));
                        }
                    }
                }
                first.get_or_insert(outcome.buffers);
            }
            Err(fault) => report.runs.push(Run { schedule, fault: Some(fault), lane_instructions: 0 }),
        }
    }
    for (buffer, result) in description.buffers.iter().zip(first.iter().flatten()) {
        if let Some(file) = &buffer.save {
            let path = folder.join(file);
            std::fs::write(&path, &result.data).map_err(|e| CheckError::File(path, e))?;
        }
    }
    Ok(report)
}

impl Description {
    /// The launch that the file describes; files are looked for in `folder`.
    ///
    /// # Errors
    /// Where a file is missing, or names and sizes contradict each other.
    pub fn launch(&self, folder: &Path) -> Result<Launch, CheckError> {
        let buffers = self.buffers.iter().map(|b| b.buffer(folder)).collect::<Result<Vec<_>, _>>()?;
        let find = |name: &str| {
            let found = self.buffers.iter().position(|b| b.name == name);
            found.ok_or_else(|| {
                CheckError::Invalid(format!("an argument names buffer `{name}`, which is not described"))
            })
        };
        let mut arguments = Vec::new();
        for argument in &self.arguments {
            arguments.push(match argument {
                ArgumentDescription::Buffer(name) => Argument::buffer(find(name)?),
                ArgumentDescription::BufferAt { buffer, offset } => {
                    Argument::Pointer { buffer: find(buffer)?, offset: *offset }
                }
                ArgumentDescription::U32(n) => Argument::u32(*n),
                ArgumentDescription::I32(n) => Argument::Bytes(n.to_le_bytes().to_vec()),
                ArgumentDescription::U64(n) => Argument::Bytes(n.to_le_bytes().to_vec()),
                ArgumentDescription::F32(n) => Argument::Bytes(n.to_le_bytes().to_vec()),
                ArgumentDescription::F64(n) => Argument::Bytes(n.to_le_bytes().to_vec()),
                ArgumentDescription::Bytes(bytes) => Argument::Bytes(bytes.clone()),
                ArgumentDescription::TensorMap(map) => Argument::Map(map.clone()),
            });
        }
        Ok(Launch {
            grid: self.grid,
            block: self.block,
            cluster: self.cluster,
            dynamic_shared: self.dynamic_shared,
            buffers,
            arguments,
            schedule: Schedule::default(),
            budget: self.budget,
        })
    }
}

impl BufferDescription {
    fn buffer(&self, folder: &Path) -> Result<Buffer, CheckError> {
        let sized = || match self.bytes {
            Some(bytes) if bytes <= 1 << 34 => Ok(bytes as usize),
            Some(bytes) => {
                Err(CheckError::Invalid(format!("buffer `{}`: {bytes} bytes; accepted: at most 16 GiB", self.name)))
            }
            None => Err(CheckError::Invalid(format!("buffer `{}` has no size", self.name))),
        };
        let data = match &self.init {
            None => return Ok(Buffer { writable: self.writable, ..Buffer::output(&self.name, sized()?) }),
            Some(InitDescription::Fill(byte)) => vec![*byte; sized()?],
            Some(InitDescription::Count(number)) => {
                let size = sized()?;
                (0u64..).flat_map(|i| number.bytes(i as f64, i)).take(size).collect()
            }
            Some(InitDescription::Random { number, seed }) => {
                let size = sized()?;
                let mut random = fastrand::Rng::with_seed(*seed);
                let values = std::iter::repeat_with(|| number.bytes(random.f64() * 2.0 - 1.0, random.u64(..)));
                values.flatten().take(size).collect()
            }
            Some(InitDescription::File(file)) => {
                let path = folder.join(file);
                let data = std::fs::read(&path).map_err(|e| CheckError::File(path.clone(), e))?;
                if self.bytes.is_some_and(|bytes| bytes != data.len() as u64) {
                    return Err(CheckError::Invalid(format!(
                        "buffer `{}`: {} bytes in {}, not {:?}",
                        self.name,
                        data.len(),
                        path.display(),
                        self.bytes
                    )));
                }
                data
            }
        };
        Ok(Buffer { writable: self.writable, ..Buffer::input(&self.name, data) })
    }
}

impl Number {
    /// Bytes of a float value, or of an integer where the type is one.
    fn bytes(self, float: f64, integer: u64) -> Vec<u8> {
        use crate::numeric::{BF16, F16, Rounding};
        let round = Rounding::Nearest;
        match self {
            Number::U8 => vec![integer as u8],
            Number::U32 => (integer as u32).to_le_bytes().to_vec(),
            Number::U64 => integer.to_le_bytes().to_vec(),
            Number::F16 => (F16.round(float, round, true) as u16).to_le_bytes().to_vec(),
            Number::Bf16 => (BF16.round(float, round, true) as u16).to_le_bytes().to_vec(),
            Number::F32 => (float as f32).to_le_bytes().to_vec(),
            Number::F64 => float.to_le_bytes().to_vec(),
        }
    }
}
