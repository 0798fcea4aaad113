//! The wide emitter: x86-64 machine code for vectors of 32 bytes (AVX2) and 64 bytes (AVX-512).
//!
//! Reads a legalized kernel, makes the bytes of one position-independent function with its constants behind it, and a
//! [`Report`] of what allocation cost. The function is called as the module docs of [`super`] say.
//!
//! ```text
//! kernel IR ─ lower ─► instructions over virtual registers ─ allocate (regalloc2) ─► assemble (iced-x86) ─► bytes
//!                      (constants into free registers)
//! ```
//!
//! Always holds: statements keep the order of the IR, since the schedule owns it; the code ends with `vzeroupper`; the
//! level's name alone decides the bytes.

mod allocate;
mod assemble;
mod convert;
mod dot;
mod encode;
mod float;
mod fold;
mod integer;
mod lanes;
mod lower;
mod machine;
mod mask;
mod memory;
mod permute;
mod report;
mod resident;
mod scalar;
mod value;

pub use report::Report;

use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};

use super::level::Level;
use crate::error::{Error, Result};
use crate::ir;

/// What the wide emitter needs to know of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wide {
    /// AVX-512 F, BW, CD, DQ and VL.
    pub avx512: bool,
    /// `vpdpbusd`: AVX512_VNNI with AVX-512, AVX-VNNI without.
    pub vnni: bool,
}

/// The code of a kernel that [`super::support::check`] let pass.
pub(super) fn compile(kernel: &ir::Kernel, level: &Level, wide: Wide) -> Result<(Vec<u8>, Report)> {
    let facts = lower::Facts { evex: wide.avx512, vnni: wide.vnni };
    let mut function = lower::function(kernel, facts);
    let windows = level.isa.triple().operating_system == target_lexicon::OperatingSystem::Windows;
    let convention = if windows { allocate::Convention::Windows } else { allocate::Convention::SystemV };
    let assemble = |function: &machine::Function| {
        assemble::assemble(function, convention, wide.avx512).map_err(|message| Error::Bug {
            message: format!("the wide emitter on kernel `{}` for {}: {message}", kernel.name, level.name),
            text: kernel.to_string(),
        })
    };
    if !resident::constants(&mut function, if wide.avx512 { 32 } else { 16 }) {
        return assemble(&function);
    }
    let made = assemble(&function)?;
    if made.1.vector_spills_in_loops == 0 {
        return Ok(made);
    }
    // What registers were counted as free were not, or the kernel spills anyway.
    let plain = assemble(&lower::function(kernel, facts))?;
    Ok(if plain.1.vector_spills_in_loops <= made.1.vector_spills_in_loops { plain } else { made })
}

/// Code in the syntax of Intel's manuals, one instruction a line, then the constants.
pub(super) fn disassemble(code: &[u8], report: &Report) -> String {
    let mut text = format!("; {report}\n");
    let mut formatter = IntelFormatter::new();
    let mut line = String::new();
    for instruction in Decoder::with_ip(64, &code[..report.code_bytes], 0, DecoderOptions::NONE).iter() {
        line.clear();
        formatter.format(&instruction, &mut line);
        text += &format!("{:6x}  {line}\n", instruction.ip());
    }
    let first = code.len() - report.constant_bytes;
    for (i, bytes) in code[first..].chunks(16).enumerate() {
        let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        text += &format!("{:6x}  {}\n", first + 16 * i, hex.join(" "));
    }
    text
}
