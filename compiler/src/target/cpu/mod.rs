//! CPU machine code: a kernel becomes one position-independent function.
//!
//! Two emitters stand behind one face, and the level's name says which: from `x86-64-v3` on x86-64 code comes from the
//! wide emitter (`wide`, vectors of 32 or 64 bytes), everything else and every name that ends in `+clif` from Cranelift
//! (vectors of 16 bytes). Neither falls back on the other.
//!
//! Reads a verified kernel, makes an [`Artifact`] whose payload is machine code with its constants behind it. Always
//! holds: the code has no relocations, and the level's name alone (never the machine that runs the compiler) decides it.
//!
//! The function is `extern "C" fn(args: *const u64, scratch: *mut u8, begin: u64, end: u64)`: System V on x86-64 Unix,
//! the platform's own C convention elsewhere.
//!
//! - `args[i]` for parameter `i` is the address of a buffer, or holds a scalar in its low bits. Three more slots follow
//!   the parameters: the number of workgroups along x, y and z.
//! - `scratch` starts at a multiple of 64 and has [`ir::Kernel::shared_bytes`] bytes, laid out as that function says.
//! - Workgroups are numbered with x fastest; the function runs those in `begin..end`, in order.
//!
//! The code keeps no unwind information; it calls nothing and does not trap on a kernel that keeps the rules of the IR.

mod arith;
mod cast;
mod dot_runs;
mod emit;
mod level;
mod memory;
mod object;
mod packed;
mod small_float;
mod support;
mod value;
mod wide;

#[cfg(test)]
mod tests;

pub use object::object;
pub use wide::Report;

use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::{CompiledCode, Context};

use crate::artifact::{Artifact, Payload};
use crate::caps::Caps;
use crate::error::{Error, Result};
use crate::ir::{self, Verified};
use crate::pass::{self, Pass};
use crate::target::{Target, arg};

/// What a kernel goes through before this target emits it.
const PASSES: &[Pass] = &[pass::FOLD, EXPAND, pass::CSE, HOIST, pass::DCE];

/// Sixteen vector registers are few: sums need them more than constants, which are as near as any load.
const HOIST: Pass = Pass {
    name: "hoist",
    reason: "addresses are computed outside of loops; vectors stay where they are used",
    run: |kernel, _| pass::hoist_where(kernel, |ty| ty.lanes == 1 && ty.scalar.is_int()),
};

/// The emitter has sequences of its own for every other extended instruction.
const EXPAND: Pass = Pass {
    name: "expand",
    reason: "no processor has exp2, and Cranelift no products of words in pairs; the rest is emitted as it is",
    run: |kernel, _| {
        let choice = pass::expand::Choice { exp2: true, dot2: true, ..pass::expand::Choice::NONE };
        pass::expand::expand_chosen(kernel, &choice)
    },
};

/// What a kernel goes through before the wide emitter takes it.
const WIDE_PASSES: &[Pass] = &[pass::FOLD, WIDE_EXPAND, pass::CSE, LINES, HOIST, pass::DCE];

/// Loads of 32 bytes are whole ones where that is all a vector holds.
const LINES: Pass = Pass {
    name: "lines",
    reason: "memory delivers the most where each line is asked for and read once",
    run: |kernel, caps| if caps.vector_bytes >= 64 { pass::lines(kernel) } else { kernel },
};

/// The wide emitter has conversions of binary16; the rarer floats are integer arithmetic.
const WIDE_EXPAND: Pass = Pass {
    name: "expand",
    reason: "what x86 has no instruction for, and the casts that its own would round otherwise",
    run: |kernel, _| {
        let choice = pass::expand::Choice {
            exp2: true,
            popcount: true,
            storage_casts: true,
            bf16_casts: true,
            ..pass::expand::Choice::NONE
        };
        pass::expand::expand_chosen(kernel, &choice)
    },
};

/// The version of the code generator behind this target, for manifests.
pub const CRANELIFT_VERSION: &str = cranelift_codegen::VERSION;

/// The CPU target of one level.
pub struct CpuTarget {
    level: level::Level,
}

impl CpuTarget {
    /// The best level that this machine has.
    pub fn host() -> Result<CpuTarget> {
        Ok(CpuTarget { level: level::Level::host()? })
    }

    /// The host through Cranelift, also where the wide emitter knows it.
    pub fn host_with_cranelift() -> Result<CpuTarget> {
        let host = CpuTarget::host()?;
        if host.emitter() == "cranelift" {
            return Ok(host);
        }
        let (level, platform) = host
            .name()
            .split_once('@')
            .map_or((host.name(), ""), |(level, _)| (level, host.name().strip_prefix(level).unwrap_or_default()));
        // Cranelift has no dot products of bf16.
        let level = level.trim_end_matches("+bf16");
        CpuTarget::named(&format!("{level}+clif{platform}"))
    }

    /// A level by name, such as `x86-64-v3`; `level@triple` chooses an operating system other than Linux, such as
    /// `aarch64+dotprod@aarch64-apple-darwin`.
    pub fn named(name: &str) -> Result<CpuTarget> {
        Ok(CpuTarget { level: level::Level::named(name)? })
    }

    /// The names that [`CpuTarget::named`] takes, weakest first within an architecture.
    pub fn names() -> impl Iterator<Item = &'static str> {
        level::names()
    }

    /// The platform that the code is for.
    pub fn triple(&self) -> &target_lexicon::Triple {
        self.level.isa.triple()
    }

    /// Name of the level, with the triple if it is not the level's own: the name that [`CpuTarget::named`] takes.
    pub fn name(&self) -> &str {
        &self.level.name
    }

    /// Whether the machine that runs this can run its code.
    pub fn runs_here(&self) -> bool {
        level::runs_here(&self.level)
    }

    fn compile(&self, kernel: &ir::Kernel, disassemble: bool) -> Result<CompiledCode> {
        let mut context = Context::for_function(self.function(kernel)?);
        context.set_disasm(disassemble);
        let isa = &*self.level.isa;
        match context.compile(isa, &mut ControlPlane::default()) {
            Ok(_) => {}
            Err(error) => {
                let message =
                    format!("Cranelift refused kernel `{}` for {}: {:?}", kernel.name, self.name(), error.inner);
                return Err(Error::Bug { message, text: error.func.display().to_string() });
            }
        }
        let Some(code) = context.take_compiled_code() else {
            return Err(bug("Cranelift made no code", kernel));
        };
        if !code.buffer.relocs().is_empty() {
            return Err(bug(&format!("the code has relocations: {:?}", code.buffer.relocs()), kernel));
        }
        Ok(code)
    }

    /// Which emitter makes the code of this level: `wide` or `cranelift`.
    pub fn emitter(&self) -> &'static str {
        if self.level.facts.wide.is_some() { "wide" } else { "cranelift" }
    }

    /// What the wide emitter makes of a legalized kernel and what registers cost it; `None` where Cranelift emits.
    pub fn report(&self, kernel: &Verified<'_>) -> Result<Option<Report>> {
        Ok(self.wide(kernel.kernel())?.map(|(_, report)| report))
    }

    fn wide(&self, kernel: &ir::Kernel) -> Result<Option<(Vec<u8>, Report)>> {
        let Some(wide) = self.level.facts.wide else { return Ok(None) };
        support::check(kernel, &self.level.caps, true)?;
        wide::compile(kernel, &self.level, wide).map(Some)
    }

    fn function(&self, kernel: &ir::Kernel) -> Result<cranelift_codegen::ir::Function> {
        support::check(kernel, &self.level.caps, false)?;
        Ok(emit::function(kernel, &self.level))
    }
}

impl std::fmt::Debug for CpuTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("CpuTarget").field(&self.name()).finish()
    }
}

impl Target for CpuTarget {
    fn caps(&self) -> &Caps {
        &self.level.caps
    }

    fn legalize(&self, kernel: &Verified<'_>) -> Result<ir::Kernel> {
        let passes = if self.level.facts.wide.is_some() { WIDE_PASSES } else { PASSES };
        Ok(pass::run_all(kernel.kernel().clone(), passes, self.caps()))
    }

    fn emit(&self, kernel: &Verified<'_>) -> Result<Artifact> {
        let kernel = kernel.kernel();
        let code = match self.wide(kernel)? {
            Some((code, _)) => code,
            None => self.compile(kernel, false)?.buffer.data().to_vec(),
        };
        Ok(Artifact {
            target: self.name().to_string(),
            entry: kernel.name.clone(),
            payload: Payload::Machine(code),
            args: kernel.params.iter().map(arg).collect::<Result<_>>()?,
            workgroup: kernel.workgroup,
            shared_bytes: kernel.shared_bytes(),
            preparation: None,
        })
    }

    fn show(&self, kernel: &Verified<'_>, stage: &str) -> Option<Result<String>> {
        match stage {
            "clif" if self.level.facts.wide.is_some() => None,
            "asm" if self.level.facts.wide.is_some() => {
                let text = |(code, report): (Vec<u8>, Report)| wide::disassemble(&code, &report);
                Some(self.wide(kernel.kernel()).map(|made| made.map(text).unwrap_or_default()))
            }
            "clif" => Some(self.function(kernel.kernel()).map(|function| function.display().to_string())),
            "asm" => Some(self.compile(kernel.kernel(), true).map(|code| code.vcode.unwrap_or_default())),
            _ => None,
        }
    }
}

fn bug(message: &str, kernel: &ir::Kernel) -> Error {
    Error::Bug { message: message.to_string(), text: format!("{kernel:#?}") }
}
