//! Programs on threads that somebody else owns: an engine that has threads of its own hands out the workgroups itself.
//!
//! Reads a loaded program and addresses; makes a call that any thread may take a share of. Always holds: number, kind and
//! alignment of the arguments are checked before there is something to run. No pool, no lock, and nothing is allocated per
//! share.

use super::code::Code;
use crate::device::Program;
use bitsmith_compiler::artifact::ArgKind;
use bitsmith_compiler::{Error, Result};
use std::ops::Range;

/// An argument by address.
#[derive(Clone, Copy, Debug)]
pub enum DirectArg {
    /// The start of memory.
    Memory(*mut u8),
    /// A number.
    I32(i32),
}

/// A launch of a CPU program whose workgroups threads of the caller's run.
#[derive(Clone, Debug)]
pub struct DirectCall {
    program: Program,
    words: Vec<u64>,
    workgroups: u64,
}

impl DirectCall {
    /// Prepares a launch. Fails where the program is not one of a CPU's, or an argument is of another kind, null or not
    /// aligned as the program wants it; lists every fault.
    pub fn new(program: &Program, args: &[DirectArg], grid: [u32; 3]) -> Result<DirectCall> {
        if !program.code.is::<Code>() {
            return Err(Error::invalid("the program belongs to another device than a CPU"));
        }
        let artifact = &program.artifact;
        let mut faults = Vec::new();
        if args.len() != artifact.args.len() {
            faults.push(format!("{} arguments; {} takes {}", args.len(), artifact.entry, artifact.args.len()));
        }
        let workgroups = grid.iter().try_fold(1u64, |total, &n| total.checked_mul(n as u64));
        if workgroups.is_none() {
            faults.push(format!("a grid of {grid:?} workgroups; accepted: at most 2^64 in all"));
        }
        let mut words = Vec::with_capacity(args.len() + 3);
        for (expected, given) in artifact.args.iter().zip(args) {
            words.push(match (expected.kind, given) {
                (
                    ArgKind::Read { align } | ArgKind::Write { align } | ArgKind::ReadWrite { align },
                    &DirectArg::Memory(start),
                ) => {
                    if start.is_null() || !(start as usize).is_multiple_of(align as usize) {
                        let name = &expected.name;
                        faults.push(format!("argument `{name}` is at {start:p}; accepted: multiples of {align} bytes"));
                    }
                    start as u64
                }
                (ArgKind::I32, &DirectArg::I32(number)) => number as u32 as u64,
                (kind, given) => {
                    faults.push(format!("argument `{}` is {given:?}; accepted: {kind:?}", expected.name));
                    0
                }
            });
        }
        words.extend(grid.map(u64::from));
        match workgroups {
            Some(workgroups) if faults.is_empty() => Ok(DirectCall { program: program.clone(), words, workgroups }),
            _ => Err(Error::Invalid(faults)),
        }
    }

    /// Workgroups in all.
    pub fn workgroups(&self) -> u64 {
        self.workgroups
    }

    /// Bytes of scratch that each thread needs, at a multiple of 64.
    pub fn scratch_bytes(&self) -> usize {
        self.program.artifact.shared_bytes as usize
    }

    /// Runs some of the workgroups on the calling thread. Each is to be run once; in any order, on any thread.
    ///
    /// # Safety
    /// The memory that the arguments point at must be as large as the operation's signature says for this number of rows,
    /// `scratch` must have [`DirectCall::scratch_bytes`] that no other thread uses, and nobody else may touch what is
    /// written, nor write what is read, until every workgroup has run.
    ///
    /// # Panics
    /// If the range goes past the last workgroup.
    pub unsafe fn run(&self, scratch: *mut u8, workgroups: Range<u64>) {
        assert!(workgroups.end <= self.workgroups, "workgroups {workgroups:?} of {}", self.workgroups);
        let code = self.program.code.downcast_ref::<Code>().expect("checked when it was made");
        if workgroups.start < workgroups.end {
            // SAFETY: kinds were checked in `new`; sizes and exclusion are the caller's promise.
            unsafe { code.call(&self.words, scratch as u64, workgroups.start, workgroups.end) };
        }
    }
}

// SAFETY: the addresses are only followed in `run`, whose caller promises that they may be.
unsafe impl Send for DirectCall {}
// SAFETY: as above.
unsafe impl Sync for DirectCall {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::CpuDevice;
    use crate::device::Device;
    use bitsmith_compiler::dtype::DType;
    use bitsmith_compiler::op::{Op, Per, Quantize, QuantizeInputs};
    use bitsmith_compiler::{compile, lower};

    /// Two threads of the test's own share the rows; the codes are those of the operation's meaning.
    #[test]
    fn threads_of_the_caller_share_a_launch() {
        let (m, k) = (5usize, 96usize);
        let quantize = Quantize {
            k,
            input: DType::F32,
            code: DType::I8,
            per: Per::Group(32),
            sum_group: 32,
            norm: None,
            smooth: false,
        };
        let op = Op::Quantize(quantize);
        let device = CpuDevice::new(1).unwrap();
        let schedule = lower::choose(&op, device.caps(), m).unwrap();
        let program = device.load(&compile(&op, &schedule, device.target()).unwrap().artifact).unwrap();
        let x: Vec<f32> = (0..m * k).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
        let (mut codes, mut scales, mut sums) = (vec![0u8; m * k], vec![0f32; m * 3], vec![0i32; m * 3]);
        let at = DirectArg::Memory;
        let args = [
            at(x.as_ptr().cast_mut().cast()),
            at(codes.as_mut_ptr()),
            at(scales.as_mut_ptr().cast()),
            at(sums.as_mut_ptr().cast()),
            DirectArg::I32(m as i32),
        ];
        let call = DirectCall::new(&program, &args, lower::grid(&op, &schedule, m)).unwrap();
        assert_eq!((call.workgroups(), call.scratch_bytes()), (m as u64, 0));
        std::thread::scope(|scope| {
            for part in [0..2, 2..5] {
                let call = &call;
                // SAFETY: every buffer has the size of its signature, and the two ranges write different rows.
                scope.spawn(move || unsafe { call.run(std::ptr::null_mut(), part) });
            }
        });
        let inputs = QuantizeInputs { x: &x, gain: &[], smooth: &[], scale: 0.0 };
        for row in 0..m {
            let expected = quantize.reference(&inputs, row);
            assert_eq!(codes[row * k..][..k], expected.codes);
            assert_eq!(scales[row * 3..][..3], expected.scales);
            assert_eq!(sums[row * 3..][..3], expected.sums);
        }

        let odd = [args[0], args[1], at(std::ptr::without_provenance_mut(2)), DirectArg::I32(1), DirectArg::I32(1)];
        let error = DirectCall::new(&program, &odd, [1; 3]).unwrap_err().to_string();
        assert!(error.contains("`scale` is at 0x2") && error.contains("`sum` is I32(1)"), "{error}");
        assert!(DirectCall::new(&program, &args[1..], [1; 3]).unwrap_err().to_string().contains("takes 5"));
    }
}
