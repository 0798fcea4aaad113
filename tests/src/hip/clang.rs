//! clang for AMD GPUs: compiles generated sources, reads back what they need of the device.

use bitsmith_compiler::artifact::{Artifact, Payload};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A clang that compiles for AMD GPUs: `BITSMITH_CLANG`, or `clang-19` of the path. Says by name that the test was skipped
/// if there is none.
pub fn find(test: &str) -> Option<PathBuf> {
    let path = std::env::var_os("BITSMITH_CLANG").map_or_else(|| PathBuf::from("clang-19"), PathBuf::from);
    let targets = Command::new(&path).arg("--print-targets").output();
    match targets {
        Ok(output) if String::from_utf8_lossy(&output.stdout).contains("amdgcn") => Some(path),
        Ok(_) => {
            crate::skip("clang", test, &format!("{} knows no amdgcn", path.display()));
            None
        }
        Err(error) => {
            crate::skip("clang", test, &format!("{}: {error}", path.display()));
            None
        }
    }
}

/// Whether this clang compiles for an instruction set: clang 19 is older than gfx950.
pub fn knows(clang: &Path, gfx: &str) -> bool {
    let mut command = Command::new(clang);
    command.args(["--target=amdgcn-amd-amdhsa", "-nogpulib", "-x", "c", "-c", "/dev/null", "-o", "/dev/null"]);
    command.arg(format!("-mcpu={gfx}")).output().is_ok_and(|output| output.status.success())
}

/// The source text of an artifact.
///
/// # Panics
/// If it is no text.
pub fn source(artifact: &Artifact) -> &str {
    match &artifact.payload {
        Payload::Text(text) => text,
        Payload::Machine(_) | Payload::Binary(_) => panic!("{} is no source", artifact.entry),
    }
}

/// What a compiled kernel needs of the device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Its entry.
    pub name: String,
    /// Scalar registers.
    pub sgprs: u32,
    /// Vector registers.
    pub vgprs: u32,
    /// Accumulation registers.
    pub agprs: u32,
    /// Bytes of private memory per lane.
    pub scratch: u32,
    /// Scalar registers spilled.
    pub sgpr_spills: u32,
    /// Vector registers spilled.
    pub vgpr_spills: u32,
    /// Bytes of shared memory.
    pub shared: u32,
    /// Waves per SIMD that fit.
    pub occupancy: u32,
}

/// Compiles sources of one device in one go; gives the needs of every kernel, or what clang said. The code lands in `out`.
pub fn compile(clang: &Path, gfx: &str, text: &str, out: &Path) -> Result<Vec<Resources>, String> {
    let source = out.with_extension("hip");
    std::fs::write(&source, text).map_err(|e| e.to_string())?;
    let output = Command::new(clang)
        .args(["-x", "hip", "--offload-device-only", "--no-gpu-bundle-output", "-nogpulib", "-nogpuinc"])
        .args([
            "-O3",
            "-std=c++17",
            "-Wall",
            "-Werror",
            "-Wno-unused-variable",
            // Random kernels compare a value with itself.
            "-Wno-tautological-compare",
            "-Wno-unused-but-set-variable",
            "-Rpass-analysis=kernel-resource-usage",
        ])
        .arg(format!("--offload-arch={gfx}"))
        .arg(&source)
        .arg("-o")
        .arg(out)
        .output()
        .map_err(|e| e.to_string())?;
    let messages = String::from_utf8_lossy(&output.stderr).to_string();
    if !output.status.success() {
        return Err(format!("{gfx}: {}: {messages}", source.display()));
    }
    Ok(resources(&messages))
}

/// Reads the remarks of `kernel-resource-usage`.
fn resources(messages: &str) -> Vec<Resources> {
    let mut all: Vec<Resources> = Vec::new();
    for line in messages.lines() {
        let Some((_, remark)) = line.split_once("remark: ") else { continue };
        let Some((key, value)) = remark.split_once(": ") else { continue };
        let value = value.split_whitespace().next().unwrap_or_default();
        if key.trim() == "Function Name" {
            all.push(Resources { name: value.to_string(), ..Resources::default() });
            continue;
        }
        let (Some(last), Ok(number)) = (all.last_mut(), value.parse()) else { continue };
        match key.trim() {
            "SGPRs" | "TotalSGPRs" => last.sgprs = number,
            "VGPRs" => last.vgprs = number,
            "AGPRs" => last.agprs = number,
            "ScratchSize [bytes/lane]" => last.scratch = number,
            "Occupancy [waves/SIMD]" => last.occupancy = number,
            "SGPRs Spill" => last.sgpr_spills = number,
            "VGPRs Spill" => last.vgpr_spills = number,
            "LDS Size [bytes/block]" => last.shared = number,
            _ => {}
        }
    }
    all
}

/// The disassembly of a compiled file, by kernel.
pub fn disassembly(clang: &Path, gfx: &str, code: &Path) -> Result<Vec<(String, String)>, String> {
    let name =
        clang.file_name().map(|name| name.to_string_lossy().replace("clang", "llvm-objdump")).unwrap_or_default();
    let tool = clang.with_file_name(name);
    let output = Command::new(&tool)
        .args(["-d", "--no-show-raw-insn", &format!("--mcpu={gfx}")])
        .arg(code)
        .output()
        .map_err(|e| format!("{}: {e}", tool.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut kernels: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_suffix(">:").and_then(|line| line.split_once('<')) {
            kernels.push((name.1.to_string(), String::new()));
        } else if let Some((_, body)) = kernels.last_mut() {
            body.push_str(line.split("//").next().unwrap_or_default().trim());
            body.push('\n');
        }
    }
    Ok(kernels)
}
