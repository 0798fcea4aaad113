//! One case of the suite on a device.

use super::{Failed, Passed};
use crate::cases::{Case, of_any_family};
use crate::poison;
use crate::problem::{POISON, Problem, Sample, is_workspace};
use bitsmith_compiler::compile;
use bitsmith_compiler::lower::grid;
use bitsmith_compiler::op::Op;
use bitsmith_runtime::{Buffer, Device, Launch, LaunchArg, Program};

/// What a guard holds: NaN in every float type, -1 in every integer.
const GUARD: u8 = 0xff;

/// Bytes before and after each buffer.
fn guard(device: &dyn Device) -> usize {
    (device.caps().buffer_align as usize).max(256)
}

pub(super) fn run(device: &dyn Device, seed: u64) -> Result<Passed, Failed> {
    let fail = |stage, case: String, why: String| Failed { seed, stage, why, case };
    let case = of_any_family(seed, device.caps()).map_err(|e| fail("draw", String::new(), e.to_string()))?;
    let at = |stage: &'static str, why: String| fail(stage, format!("{case:?}"), why);
    let clean = Problem::random(&case.op, case.m, seed).map_err(|e| at("problem", e.to_string()))?;
    let problem =
        poison::packed(&clean, &case.schedule, device.caps(), seed).map_err(|e| at("packing", e.to_string()))?;
    let made = compile(&case.op, &case.schedule, device.target()).map_err(|e| at("compile", e.to_string()))?;
    let program = device.load(&made.artifact).map_err(|e| at("load", e.to_string()))?;
    let setting = Setting::new(device, &case, &problem, program).map_err(|e| at("upload", e.to_string()))?;
    setting.launch().map_err(|e| at("launch", e.to_string()))?;
    let first = setting.outputs(&problem).map_err(|(stage, why)| at(stage, why))?;
    let slices: Vec<&[u8]> = first.iter().map(Vec::as_slice).collect();
    let report = problem.check(case.schedule.family, &slices, Sample::Everything);
    if !report.passed() {
        let what = report.first_wrong.unwrap_or("nothing was compared".into());
        return Err(at("reference", format!("{} of {} numbers: {what}", report.wrong, report.compared)));
    }
    setting.poison(&problem, !POISON).map_err(|e| at("upload", e.to_string()))?;
    setting.launch().map_err(|e| at("second launch", e.to_string()))?;
    let second = setting.outputs(&problem).map_err(|(stage, why)| at(stage, why))?;
    if first != second {
        let place = first.iter().flatten().zip(second.iter().flatten()).position(|(a, b)| a != b);
        return Err(at("repetition", format!("byte {place:?} of the outputs is another one the second time")));
    }
    Ok(Passed {
        family: case.schedule.family.name(),
        format: match &case.op {
            Op::Matmul(op) => Some(op.weight.to_string()),
            Op::Dequant(op) => Some(op.weight.to_string()),
            Op::Quantize(_) => None,
        },
        compared: report.compared,
        worst_ratio: report.worst_ratio,
    })
}

/// A problem's buffers on a device, each between two guards.
struct Setting<'d> {
    device: &'d dyn Device,
    program: Program,
    grid: [u32; 3],
    m: i32,
    buffers: Vec<(Buffer, usize)>,
}

impl<'d> Setting<'d> {
    fn new(
        device: &'d dyn Device,
        case: &Case,
        problem: &Problem,
        program: Program,
    ) -> bitsmith_compiler::Result<Setting<'d>> {
        let around = guard(device);
        let mut buffers = Vec::with_capacity(problem.buffers.len());
        for buffer in &problem.buffers {
            let size = buffer.bytes.len();
            let memory = device.allocate(size + 2 * around)?;
            let mut bytes = vec![GUARD; size + 2 * around];
            bytes[around..around + size].copy_from_slice(&buffer.bytes);
            device.upload(&memory, 0, &bytes)?;
            buffers.push((memory, size));
        }
        Ok(Setting { device, program, grid: grid(&case.op, &case.schedule, case.m), m: case.m as i32, buffers })
    }

    fn launch(&self) -> bitsmith_compiler::Result<()> {
        let around = guard(self.device);
        let mut args = Vec::with_capacity(self.buffers.len() + 1);
        for (buffer, size) in &self.buffers {
            args.push(LaunchArg::Buffer(buffer.range(around, *size)?));
        }
        args.push(LaunchArg::I32(self.m));
        self.device.launch(&Launch { program: &self.program, grid: self.grid, args })?;
        self.device.synchronize()
    }

    /// Fills the outputs with another byte than before.
    fn poison(&self, problem: &Problem, byte: u8) -> bitsmith_compiler::Result<()> {
        for ((buffer, size), of) in self.buffers.iter().zip(&problem.buffers) {
            if of.signature.written {
                self.device.upload(buffer, guard(self.device), &vec![byte; *size])?;
            }
        }
        Ok(())
    }

    /// The outputs, once guards and inputs have been found untouched.
    fn outputs(&self, problem: &Problem) -> Result<Vec<Vec<u8>>, (&'static str, String)> {
        let around = guard(self.device);
        let mut outputs = Vec::new();
        for ((buffer, size), of) in self.buffers.iter().zip(&problem.buffers) {
            let mut bytes = vec![0; size + 2 * around];
            self.device.download(buffer, 0, &mut bytes).map_err(|error| ("download", error.to_string()))?;
            let name = of.signature.name;
            if let Some(at) = bytes[..around].iter().position(|&byte| byte != GUARD) {
                return Err(("guard", format!("byte {} before the start of `{name}` was written", around - at)));
            }
            if let Some(past) = bytes[around + size..].iter().position(|&byte| byte != GUARD) {
                return Err(("guard", format!("byte {past} past the end of `{name}` was written")));
            }
            let own = &bytes[around..around + size];
            if of.signature.written {
                outputs.push(own.to_vec());
            } else if let Some(at) = own.iter().zip(&of.bytes).position(|(a, b)| a != b)
                && !is_workspace(&of.signature)
            {
                return Err(("inputs", format!("byte {at} of `{name}`, which is only read, was changed")));
            }
        }
        Ok(outputs)
    }
}
