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

/// A clang for an instruction set: the given one, or `BITSMITH_CLANG_NEW` or `clang-22` of the path where that is too old.
/// Says by name that the test was skipped if neither knows it.
pub fn that_knows(clang: &Path, gfx: &str, test: &str) -> Option<PathBuf> {
    if knows(clang, gfx) {
        return Some(clang.to_path_buf());
    }
    let newer = std::env::var_os("BITSMITH_CLANG_NEW").map_or_else(|| PathBuf::from("clang-22"), PathBuf::from);
    if knows(&newer, gfx) {
        return Some(newer);
    }
    crate::skip("clang-new", test, &format!("neither {} nor {} knows {gfx}", clang.display(), newer.display()));
    None
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

/// A kernel as assembly, and what it needs.
#[derive(Clone, Debug, Default)]
pub struct Assembly {
    /// What it needs of the device.
    pub resources: Resources,
    /// Its instructions.
    pub text: String,
}

/// Compiles sources of one device to assembly in one go: the back end runs as it does for code, and nothing is linked.
pub fn assemble(clang: &Path, gfx: &str, text: &str, folder: &Path) -> Result<Vec<Assembly>, String> {
    let (source, out) = (folder.join("kernels.hip"), folder.join("kernels.s"));
    std::fs::write(&source, text).map_err(|e| e.to_string())?;
    let output = Command::new(clang)
        .args(["-x", "hip", "--offload-device-only", "--no-gpu-bundle-output", "-nogpulib", "-nogpuinc"])
        .args(["-O3", "-std=c++17", "-Wall", "-Werror", "-Wno-unused-variable", "-Wno-unused-but-set-variable", "-S"])
        .arg(format!("--offload-arch={gfx}"))
        .arg(&source)
        .arg("-o")
        .arg(&out)
        .output()
        .map_err(|e| e.to_string())?;
    if !output.status.success() {
        let messages = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{gfx}: {}", messages.chars().take(4000).collect::<String>()));
    }
    let text = std::fs::read_to_string(&out).map_err(|e| e.to_string())?;
    Ok(assemblies(&text))
}

/// Cuts assembly into kernels: instructions from a label on, then comments with what the kernel needs.
fn assemblies(text: &str) -> Vec<Assembly> {
    let (mut all, mut code): (Vec<Assembly>, String) = (Vec::new(), String::new());
    for line in text.lines() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix(".amdhsa_kernel ") {
            let resources = Resources { name: name.to_string(), ..Resources::default() };
            all.push(Assembly { resources, text: std::mem::take(&mut code) });
        } else if let Some((key, value)) = line.strip_prefix("; ").and_then(|rest| rest.split_once(": ")) {
            let number = value.split_whitespace().next().and_then(|word| word.parse().ok());
            let (Some(last), Some(number)) = (all.last_mut(), number) else { continue };
            match key {
                "TotalNumSgprs" | "NumSgprs" => last.resources.sgprs = number,
                "NumVgprs" => last.resources.vgprs = number,
                "NumAgprs" => last.resources.agprs = number,
                "ScratchSize" => last.resources.scratch = number,
                "LDSByteSize" => last.resources.shared = number,
                "Occupancy" => last.resources.occupancy = number,
                _ => {}
            }
        } else if line.starts_with(".type") && line.ends_with("@function") {
            code.clear();
        } else if !line.starts_with([';', '.', '#']) {
            code.push_str(line.split(';').next().unwrap_or_default().trim_end());
            code.push('\n');
        }
    }
    // The notes at the end say of each kernel what was spilled.
    let mut name = "";
    let mut spills: Vec<(&str, &str, u32)> = Vec::new();
    let mut pending: Vec<(&str, u32)> = Vec::new();
    for line in text.lines().map(|line| line.trim().trim_start_matches("- ")) {
        if let Some(found) = line.strip_prefix(".name:").map(str::trim)
            && all.iter().any(|one| one.resources.name == found)
        {
            name = found;
        }
        for key in [".sgpr_spill_count:", ".vgpr_spill_count:"] {
            if let Some(number) = line.strip_prefix(key).and_then(|rest| rest.trim().parse().ok()) {
                pending.push((key, number));
            }
        }
        // The keys of a kernel come in alphabetical order: the last one closes it.
        if line.starts_with(".vgpr_spill_count:") {
            spills.extend(pending.drain(..).map(|(key, number)| (name, key, number)));
        }
    }
    for (name, key, number) in spills {
        if let Some(one) = all.iter_mut().find(|one| one.resources.name == name) {
            let of = &mut one.resources;
            *(if key.starts_with(".sgpr") { &mut of.sgpr_spills } else { &mut of.vgpr_spills }) = number;
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
