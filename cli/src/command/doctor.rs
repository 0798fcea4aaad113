//! `doctor`: what this machine has, and which outside tools are there, what for, and how to get them.

use crate::table::{Table, bytes};
use crate::{Io, Outcome, memory};
use bitsmith_runtime::DeviceInfo;
use serde::Serialize;
use std::process::{Command, Stdio};

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
pub struct Doctor {
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// An outside tool: names to try, how to ask for its version, what it is for, how to get it.
struct Tool(&'static [&'static str], &'static str, &'static str, &'static str);

const TOOLS: [Tool; 7] = [
    Tool(&["gcc", "cc", "clang"], "--version", "links bundles into C programs; tests do so", "apt install gcc"),
    Tool(&["ptxas"], "--version", "validates PTX in tests", "the CUDA toolkit, or pip install nvidia-cuda-nvcc"),
    Tool(&["clang-19", "clang-20", "clang-18"], "--version", "validates HIP source in tests", "apt install clang-19"),
    Tool(&["spirv-val"], "--version", "validates SPIR-V in tests", "apt install spirv-tools"),
    Tool(&["vulkaninfo"], "--version", "lists Vulkan devices", "apt install vulkan-tools mesa-vulkan-drivers"),
    Tool(&["qemu-aarch64", "qemu-aarch64-static"], "--version", "runs aarch64 code in tests", "apt install qemu-user"),
    Tool(&["qemu-riscv64", "qemu-riscv64-static"], "--version", "runs riscv64 code in tests", "apt install qemu-user"),
];

#[derive(Serialize)]
struct Findings {
    bitsmith: &'static str,
    cranelift: &'static str,
    devices: Vec<DeviceInfo>,
    faults: Vec<String>,
    memory_available: Option<u64>,
    tools: Vec<Found>,
}

#[derive(Serialize)]
struct Found {
    tool: &'static str,
    version: Option<String>,
    purpose: &'static str,
    install: &'static str,
}

impl Doctor {
    pub(super) fn run(&self, io: &mut Io<'_>) -> Outcome {
        let (devices, faults) = bitsmith_runtime::found();
        let findings = Findings {
            bitsmith: env!("CARGO_PKG_VERSION"),
            cranelift: bitsmith_compiler::target::cpu::CRANELIFT_VERSION,
            devices,
            faults,
            memory_available: memory::available(),
            tools: TOOLS.iter().map(find).collect(),
        };
        if self.json {
            return io.json(&findings);
        }
        writeln!(io.out, "bitsmith {}, Cranelift {}", findings.bitsmith, findings.cranelift)?;
        for device in &findings.devices {
            writeln!(
                io.out,
                "device {}: {}, {} threads or units, target {}, features {}",
                device.name,
                device.model,
                device.threads,
                device.target,
                device.features.join(" ")
            )?;
        }
        for fault in &findings.faults {
            writeln!(io.out, "device {fault}")?;
        }
        if let Some(available) = findings.memory_available {
            writeln!(io.out, "memory available: {}", bytes(available as f64))?;
        }
        let mut table = Table::new(&["tool", "found", "what for"]);
        for tool in &findings.tools {
            let found = tool.version.clone().unwrap_or_else(|| format!("no; {}", tool.install));
            table.row(vec![tool.tool.into(), found, tool.purpose.into()]);
        }
        write!(io.out, "\nNo outside tool is needed to make or run CPU kernels.\n{table}")?;
        Ok(())
    }
}

fn find(tool: &Tool) -> Found {
    let Tool(names, flag, purpose, install) = *tool;
    let version = names.iter().find_map(|name| version(name, flag));
    Found { tool: names[0], version, purpose, install }
}

/// The first line with a digit of what a program says about its version.
fn version(name: &str, flag: &str) -> Option<String> {
    let output = Command::new(name).arg(flag).stdin(Stdio::null()).output().ok()?;
    let text = format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let numbered = |line: &&str| line.chars().any(|c| c.is_ascii_digit()) && line.contains('.');
    let line = text.lines().find(numbered).or(text.lines().next())?.trim();
    Some(line.chars().take(80).collect())
}
