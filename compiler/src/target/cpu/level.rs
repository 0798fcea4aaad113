//! CPU levels: the name decides the caps and every Cranelift setting.

use std::str::FromStr;
use std::sync::Arc;

use cranelift_codegen::isa::{self, TargetIsa};
use cranelift_codegen::settings::{self, Configurable};
use target_lexicon::{Architecture, Triple};

use super::wide::Wide;
use crate::caps::{CPU_LEVELS, Caps, Feature};
use crate::error::{Error, Result};

/// One CPU level, ready to compile for.
pub(super) struct Level {
    /// What [`Level::named`] would take to make it again.
    pub name: String,
    /// Device facts.
    pub caps: Caps,
    /// Cranelift's view of it.
    pub isa: Arc<dyn TargetIsa>,
    /// What the emitter asks most.
    pub facts: Facts,
}

/// What decides between instruction sequences.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub arch: Arch,
    /// x86: instructions whose operands in memory may lie anywhere.
    pub avx: bool,
    /// x86: `vpdpbusd`.
    pub vnni: bool,
    /// aarch64: `sdot`.
    pub dotprod: bool,
    /// aarch64: `usdot`.
    pub i8mm: bool,
    /// Fused multiply-add in one instruction.
    pub fma: bool,
    /// What the wide emitter needs to know; `None` where Cranelift emits.
    pub wide: Option<Wide>,
}

/// An instruction set family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arch {
    X86,
    Arm,
    RiscV,
}

/// A level's name, its own triple, and Cranelift's flags.
struct Row(&'static str, &'static str, &'static [&'static str]);

const V2: &[&str] = &["has_sse3", "has_ssse3", "has_sse41", "has_sse42", "has_popcnt", "has_cmpxchg16b"];
const V3: &[&str] = &["has_avx", "has_avx2", "has_fma", "has_bmi1", "has_bmi2", "has_lzcnt"];
const V4: &[&str] = &["has_avx512f", "has_avx512dq", "has_avx512vl"];
const X86: &str = "x86_64-unknown-linux-gnu";
const ARM: &str = "aarch64-unknown-linux-gnu";

const ROWS: &[Row] = &[
    Row("x86-64-v2", X86, &[]),
    Row("x86-64-v3", X86, &[]),
    Row("x86-64-v3+vnni", X86, &["has_avx_vnni"]),
    Row("x86-64-v4", X86, &[]),
    Row("x86-64-v4+vnni", X86, &["has_avx512vnni"]),
    Row("x86-64-v4+vnni+bf16", X86, &["has_avx512vnni"]),
    Row("x86-64-v3+clif", X86, &[]),
    Row("x86-64-v3+vnni+clif", X86, &["has_avx_vnni"]),
    Row("x86-64-v4+clif", X86, &[]),
    Row("x86-64-v4+vnni+clif", X86, &["has_avx512vnni"]),
    Row("aarch64", ARM, &[]),
    Row("aarch64+dotprod", ARM, &["has_dotprod"]),
    Row("aarch64+i8mm", ARM, &["has_dotprod", "has_i8mm"]),
    Row("riscv64", "riscv64gc-unknown-linux-gnu", &["has_v", "has_zvl32b", "has_zvl64b", "has_zvl128b"]),
];

/// Every accepted level name.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    ROWS.iter().map(|row| row.0)
}

impl Level {
    pub(super) fn named(name: &str) -> Result<Level> {
        let (level, triple) = match name.split_once('@') {
            Some((level, triple)) => (level, Some(triple)),
            None => (name, None),
        };
        let known = || names().collect::<Vec<_>>().join(", ");
        let unknown = || Error::Unsupported(format!("CPU level `{level}`; known levels: {}", known()));
        let row = ROWS.iter().find(|row| row.0 == level).ok_or_else(unknown)?;
        let caps = caps(row.0).ok_or_else(unknown)?;
        let parsed = Triple::from_str(triple.unwrap_or(row.1))
            .map_err(|error| Error::Unsupported(format!("target triple `{}`: {error}", triple.unwrap_or(row.1))))?;
        let arch = arch_of(row.0);
        if !arch.fits(parsed.architecture) {
            return Err(Error::Unsupported(format!("level {level} on {parsed}: another architecture")));
        }
        let isa = isa_for(row, parsed).map_err(|message| Error::Unsupported(format!("{name}: {message}")))?;
        let facts = Facts {
            arch,
            avx: isa.isa_flags().iter().any(|flag| flag.name == "has_avx" && flag.as_bool() == Some(true)),
            vnni: row.0.contains("+vnni"),
            dotprod: row.2.contains(&"has_dotprod"),
            i8mm: row.2.contains(&"has_i8mm"),
            fma: caps.features.has(Feature::Fma),
            wide: wide(row.0),
        };
        Ok(Level { name: name.to_string(), caps, isa, facts })
    }

    pub(super) fn host() -> Result<Level> {
        let level = host_level().ok_or_else(|| {
            Error::Unsupported(format!(
                "this CPU is below every known level: {}",
                names().collect::<Vec<_>>().join(", ")
            ))
        })?;
        let own = Triple::host();
        let row_triple = ROWS.iter().find(|row| row.0 == level).map_or("", |row| row.1);
        // Every Linux has the same calling convention and object format, so musl and gnu need no name of their own.
        if own.operating_system == target_lexicon::OperatingSystem::Linux || own.to_string() == row_triple {
            Level::named(level)
        } else {
            Level::named(&format!("{level}@{own}"))
        }
    }
}

impl Arch {
    fn fits(self, architecture: Architecture) -> bool {
        match self {
            Arch::X86 => architecture == Architecture::X86_64,
            Arch::Arm => matches!(architecture, Architecture::Aarch64(_)),
            Arch::RiscV => matches!(architecture, Architecture::Riscv64(_)),
        }
    }
}

fn arch_of(level: &str) -> Arch {
    if level.starts_with("x86") {
        Arch::X86
    } else if level.starts_with("aarch64") {
        Arch::Arm
    } else {
        Arch::RiscV
    }
}

/// From `x86-64-v3` on the wide emitter makes x86-64 code; a name that ends in `+clif` asks for Cranelift instead.
fn wide(level: &str) -> Option<Wide> {
    let wide = level.starts_with("x86-64-v3") || level.starts_with("x86-64-v4");
    (wide && !level.ends_with("+clif"))
        .then(|| Wide { avx512: level.starts_with("x86-64-v4"), vnni: level.contains("+vnni") })
}

fn caps(level: &str) -> Option<Caps> {
    CPU_LEVELS.iter().find(|caps| caps.name == level).copied()
}

fn isa_for(row: &Row, triple: Triple) -> std::result::Result<Arc<dyn TargetIsa>, String> {
    let mut shared = settings::builder();
    for (name, value) in [
        // The optimizer moves every pure operation to its last use, which spills unrolled vector kernels (2x slower).
        ("opt_level", "none"),
        ("enable_verifier", "true"),
        ("enable_probestack", "false"),
        ("unwind_info", "false"),
        ("is_pic", "true"),
    ] {
        shared.set(name, value).map_err(|error| error.to_string())?;
    }
    let mut builder = isa::lookup(triple).map_err(|error| error.to_string())?;
    let inherited = [("x86-64-v2", V2), ("x86-64-v3", V3), ("x86-64-v4", V4)];
    let base = row.0.split('+').next().unwrap_or(row.0);
    let inherited = inherited.iter().filter(|(level, _)| arch_of(row.0) == Arch::X86 && *level <= base);
    for flag in inherited.flat_map(|(_, flags)| flags.iter()).chain(row.2) {
        builder.enable(flag).map_err(|error| error.to_string())?;
    }
    builder.finish(settings::Flags::new(shared)).map_err(|error| error.to_string())
}

/// Whether this machine has all that a level asks for: its host level has the same features and more.
pub(super) fn runs_here(level: &Level) -> bool {
    let Some(host) = host_level().and_then(|name| Level::named(name).ok()) else { return false };
    let own = Triple::host();
    let triple = level.isa.triple();
    let enabled = |level: &Level| -> Vec<String> {
        level
            .isa
            .isa_flags()
            .iter()
            .filter(|flag| flag.as_bool() == Some(true))
            .map(|flag| flag.name.to_string())
            .collect()
    };
    let there = enabled(&host);
    // Cranelift has no name for what only the wide emitter uses.
    let bf16 = |level: &Level| level.caps.features.has(Feature::Dot2Bf16);
    triple.architecture == own.architecture
        && (bf16(&host) || !bf16(level))
        && triple.operating_system == own.operating_system
        && enabled(level).iter().all(|flag| there.contains(flag))
}

#[cfg(target_arch = "x86_64")]
fn host_level() -> Option<&'static str> {
    macro_rules! all {
        ($($feature:tt),*) => { $(std::arch::is_x86_feature_detected!($feature))&&* };
    }
    let v2 = all!("sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "cmpxchg16b");
    let v3 = v2 && all!("avx", "avx2", "fma", "bmi1", "bmi2", "lzcnt", "f16c", "movbe");
    let v4 = v3 && all!("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl");
    Some(match (v2, v3, v4) {
        (false, ..) => return None,
        (_, _, true) if all!("avx512vnni", "avx512bf16", "avx512vbmi") => "x86-64-v4+vnni+bf16",
        (_, _, true) if all!("avx512vnni") => "x86-64-v4+vnni",
        (_, true, _) if all!("avxvnni") => "x86-64-v3+vnni",
        (_, _, true) => "x86-64-v4",
        (_, true, _) => "x86-64-v3",
        _ => "x86-64-v2",
    })
}

#[cfg(target_arch = "aarch64")]
fn host_level() -> Option<&'static str> {
    let dotprod = std::arch::is_aarch64_feature_detected!("dotprod");
    let i8mm = dotprod && std::arch::is_aarch64_feature_detected!("i8mm");
    Some(if i8mm {
        "aarch64+i8mm"
    } else if dotprod {
        "aarch64+dotprod"
    } else {
        "aarch64"
    })
}

#[cfg(target_arch = "riscv64")]
fn host_level() -> Option<&'static str> {
    std::arch::is_riscv_feature_detected!("v").then_some("riscv64")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
fn host_level() -> Option<&'static str> {
    None
}
