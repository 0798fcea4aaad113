//! The kernels of a bundle on a device: loaded when first used, launched with every size checked.

use super::choose::{self, Choice, Want};
use super::kv::KvSpec;
use super::manifest::{ArgEntry, Grid, KernelEntry, TargetEntry};
use super::{Bundle, code};
use crate::device::{Device, Launch, LaunchArg, Program, View};
use bitsmith_compiler::op::kv::{Attend, KvOp};
use bitsmith_compiler::schedule::KvSchedule;
use bitsmith_compiler::{Error, Result};
use std::sync::{Arc, OnceLock};

/// The kernels of a bundle's best target for a device.
pub struct Kernels {
    bundle: Arc<Bundle>,
    device: Arc<dyn Device>,
    target: usize,
    reason: String,
    programs: Vec<OnceLock<Program>>,
}

impl Kernels {
    /// Takes the target that serves the device best. Fails where none does.
    pub fn new(bundle: Arc<Bundle>, device: Arc<dyn Device>) -> Result<Kernels> {
        let (target, reason) = choose::target(bundle.manifest(), &*device)?;
        let programs = bundle.manifest().targets[target].kernels.iter().map(|_| OnceLock::new()).collect();
        Ok(Kernels { bundle, device, target, reason, programs })
    }

    /// The target.
    pub fn target(&self) -> &TargetEntry {
        &self.bundle.manifest().targets[self.target]
    }

    /// Why it is this target.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// The kernel for a request and `m` rows. Fails where none fits, or where the request is said of several.
    pub fn choose(&self, want: &Want<'_>, m: usize) -> Result<Choice> {
        choose::kernel(self.target(), want, m)
    }

    /// A kernel by its index, loaded at its first use. Fails where there is none, or where its file is not what the manifest
    /// states.
    pub fn kernel(&self, index: usize) -> Result<Kernel<'_>> {
        let target = self.target();
        let (Some(entry), Some(cell)) = (target.kernels.get(index), self.programs.get(index)) else {
            return Err(Error::invalid(format!("kernel {index}; the target has {}", target.kernels.len())));
        };
        let program = match cell.get() {
            Some(program) => program,
            None => {
                let content = self.bundle.file(&entry.object)?;
                let program = self.device.load(&code::artifact(target, entry, content)?)?;
                cell.get_or_init(|| program)
            }
        };
        Ok(Kernel { entry, program, device: &*self.device })
    }

    /// The kernel for an operation on a KV cache, loaded, and how it runs. Fails with what the bundle has where it is not there.
    pub fn kv(&self, op: &KvOp) -> Result<(KvSchedule, Program)> {
        let (target, spec) = (self.target(), KvSpec::of(op));
        let Some(entry) = target.kv.iter().find(|entry| entry.op == op.name() && entry.spec == spec) else {
            let have = target.kv.iter().filter(|entry| entry.op == op.name());
            let have: Vec<String> = have.map(|entry| entry.spec.to_string()).collect();
            let have = if have.is_empty() { "none of that kind".to_string() } else { have.join("; ") };
            return Err(Error::Unsupported(format!(
                "{} for {spec} is not in the bundle (made with --kv); it has {have}",
                op.name()
            )));
        };
        let content = self.bundle.file(&entry.object)?;
        Ok((entry.schedule, self.device.load(&code::kv_artifact(target, entry, content)?)?))
    }

    /// The numbers of query tokens per work item that the bundle has attention for, where all else is as in `op`; ascending.
    pub fn attend_queries(&self, op: &Attend) -> Vec<usize> {
        let spec = KvSpec { queries: None, ..KvSpec::of(&KvOp::Attend(*op)) };
        let same = self.target().kv.iter().filter(|entry| KvSpec { queries: None, ..entry.spec.clone() } == spec);
        let mut queries: Vec<usize> = same.filter_map(|entry| entry.spec.queries).collect();
        queries.sort_unstable();
        queries
    }
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernels({}, {})", self.bundle.folder().display(), self.target().target)
    }
}

/// A loaded kernel.
#[derive(Clone, Copy)]
pub struct Kernel<'a> {
    entry: &'a KernelEntry,
    program: &'a Program,
    device: &'a dyn Device,
}

impl Kernel<'_> {
    /// What the manifest says of it.
    pub fn entry(&self) -> &KernelEntry {
        self.entry
    }

    /// The arguments that a launch takes: the buffers. The number of rows comes beside them.
    pub fn buffers(&self) -> impl Iterator<Item = &ArgEntry> {
        self.entry.args.iter().filter(|arg| arg.kind == "buffer")
    }

    /// Starts it for `m` rows. `buffers` are those of [`Kernel::buffers`], in order. Fails, before anything runs, where one is
    /// missing, too small, misaligned, or overlaps one that is written.
    pub fn launch(&self, m: usize, buffers: &[View<'_>]) -> Result<()> {
        let rows = i32::try_from(m).ok().filter(|&rows| rows >= 1);
        let rows = rows.ok_or_else(|| Error::invalid(format!("m is {m}; accepted: 1 to {}", i32::MAX)))?;
        let expected = self.buffers().count();
        if buffers.len() != expected {
            let names: Vec<&str> = self.buffers().map(|arg| arg.name.as_str()).collect();
            return Err(Error::invalid(format!(
                "{} buffers; {} takes {expected}: {}",
                buffers.len(),
                self.entry.entry,
                names.join(", ")
            )));
        }
        let mut faults = Vec::new();
        for (arg, view) in self.buffers().zip(buffers) {
            match arg.bytes_for(m) {
                Some(needed) if needed <= view.bytes => {}
                Some(needed) => faults.push(format!(
                    "buffer `{}` has {} bytes; {} needs {needed} for {m} rows",
                    arg.name, view.bytes, self.entry.entry
                )),
                None => faults.push(format!("buffer `{}`: {m} rows are more than memory holds", arg.name)),
            }
        }
        if !faults.is_empty() {
            return Err(Error::Invalid(faults));
        }
        let mut given = buffers.iter();
        let args = (self.entry.args.iter())
            .map(|arg| match arg.kind.as_str() {
                "buffer" => given.next().map(|view| LaunchArg::Buffer(*view)),
                _ => Some(LaunchArg::I32(rows)),
            })
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| Error::invalid("fewer buffers than arguments"))?;
        self.device.launch(&Launch { program: self.program, grid: self.entry.grid.workgroups(m), args })
    }
}

impl Grid {
    /// Workgroups of a launch for `m` rows.
    pub fn workgroups(&self, m: usize) -> [u32; 3] {
        let x = self.tile_m.map_or(1, |step| u32::try_from(m.div_ceil(step.max(1) as usize)).unwrap_or(u32::MAX));
        [x, self.y, self.z]
    }
}
