//! `check`: parses and verifies kernel IR files, and says where each fault is; runs PTX files on the PTX machine.

use crate::failure::Failure;
use crate::launch::LaunchFile;
use crate::{Io, Outcome};
use bitsmith_compiler::caps::{CPU_LEVELS, Caps};
use bitsmith_compiler::ir::{self, Kernel, ParamKind};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub struct Check {
    /// Files of kernel IR (a comment line that starts with three dashes parts the kernels of a file), or one of PTX,
    /// which runs on the PTX machine under every schedule of warps and needs `--launch`
    #[arg(required = true, value_name = "FILE.kir|FILE.ptx")]
    files: Vec<PathBuf>,
    /// The device to verify for: `any`, or a CPU level
    #[arg(long, default_value = "any")]
    caps: String,
    /// Run each kernel with the grid and arguments of a JSON file: kernel IR on the interpreter, PTX on the PTX machine
    #[arg(long, value_name = "LAUNCH.json")]
    launch: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// What one file came to.
#[derive(Serialize)]
struct Checked {
    file: String,
    kernels: Vec<Statistics>,
    faults: Vec<Fault>,
}

#[derive(Serialize)]
struct Fault {
    line: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<u32>,
    message: String,
}

/// What a sound kernel is made of.
#[derive(Serialize)]
struct Statistics {
    name: String,
    buffers: usize,
    scalars: usize,
    statements: usize,
    workgroup: [u32; 3],
    shared_bytes: u64,
    /// Values by type.
    values: BTreeMap<String, usize>,
    /// The bytes of each argument after a launch.
    #[serde(skip_serializing_if = "Option::is_none")]
    buffers_after: Option<Vec<Vec<u8>>>,
}

impl Check {
    pub(super) fn run(&self, io: &mut Io<'_>) -> Outcome {
        if let [file] = &self.files[..]
            && file.extension().is_some_and(|extension| extension == "ptx")
        {
            return self.ptx(io, file);
        }
        let caps = caps(&self.caps)?;
        let launch = self.launch.as_deref().map(LaunchFile::read).transpose()?;
        let mut checked = Vec::new();
        for file in &self.files {
            let text = std::fs::read_to_string(file).map_err(|error| Failure::file(file, "read", &error))?;
            checked.push(check(file, &text, &caps, launch.as_ref()));
        }
        if self.json {
            io.json(&checked)?;
        } else {
            checked.iter().try_for_each(|file| print(io, file))?;
        }
        let faults: usize = checked.iter().map(|file| file.faults.len()).sum();
        let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        if faults == 0 {
            Ok(())
        } else {
            Err(Failure::Found(format!("{} in {}", count(faults, "fault"), count(checked.len(), "file"))))
        }
    }
}

impl Check {
    /// Runs a PTX kernel without a GPU: races, missing barriers, bad accesses, results that depend on the schedule.
    fn ptx(&self, io: &mut Io<'_>, file: &Path) -> Outcome {
        let launch = self.launch.as_deref().ok_or_else(|| {
            Failure::invalid(format!("{}: PTX is checked by running it; give --launch LAUNCH.json", file.display()))
        })?;
        let report = bitsmith_emulate::check_file(file, launch).map_err(|error| Failure::invalid(error.to_string()))?;
        if self.json {
            let runs: Vec<_> = report
                .runs
                .iter()
                .map(|run| {
                    serde_json::json!({
                        "schedule": run.schedule,
                        "lane_instructions": run.lane_instructions,
                        "fault": run.fault.as_ref().map(ToString::to_string),
                    })
                })
                .collect();
            let differences: Vec<_> = report
                .differences
                .iter()
                .map(|(buffer, byte, schedule)| serde_json::json!({"buffer": buffer, "byte": byte, "schedule": schedule}))
                .collect();
            io.json(&serde_json::json!({"kernel": report.kernel, "runs": runs, "differences": differences}))?;
        } else {
            writeln!(io.out, "{report}")?;
        }
        if report.clean() { Ok(()) } else { Err(Failure::Found(format!("{} is at fault", report.kernel))) }
    }
}

fn caps(name: &str) -> Result<Caps, Failure> {
    if name == "any" {
        return Ok(Caps::ANY);
    }
    CPU_LEVELS.iter().find(|caps| caps.name == name).copied().ok_or_else(|| {
        let names: Vec<&str> = CPU_LEVELS.iter().map(|caps| caps.name).collect();
        Failure::invalid(format!("--caps {name} is not known; accepted: any, {}", names.join(", ")))
    })
}

fn check(file: &Path, text: &str, caps: &Caps, launch: Option<&LaunchFile>) -> Checked {
    let mut checked = Checked { file: file.display().to_string(), kernels: Vec::new(), faults: Vec::new() };
    for section in sections(text) {
        let (kernel, lines) = match ir::parse_with_lines(&section) {
            Ok(parsed) => parsed,
            Err(error) => {
                let message = format!("found {}, expected {}", error.found, error.expected);
                checked.faults.push(Fault { line: error.line, column: Some(error.column), message });
                continue;
            }
        };
        match ir::verify(&kernel, caps) {
            Ok(verified) => {
                let mut statistics = statistics(&kernel);
                match launch.map(|launch| launch.run(&verified, caps.subgroup)).transpose() {
                    Ok(buffers) => statistics.buffers_after = buffers,
                    Err(trap) => {
                        let line = lines.of("kernel").unwrap_or(1);
                        let (column, message) = (column(&section, line), format!("@{}: {trap}", kernel.name));
                        checked.faults.push(Fault { line, column, message });
                    }
                }
                checked.kernels.push(statistics);
            }
            Err(faults) => checked.faults.extend(faults.into_iter().map(|fault| {
                let line = lines.of(&fault.place).or_else(|| lines.of("kernel")).unwrap_or(1);
                let column = column(&section, line);
                let message = format!("{}: `{}`: {}", fault.place, fault.text, fault.message);
                Fault { line, column, message }
            })),
        }
    }
    checked
}

/// Column, from 1, of the first character of a line that is not white space.
fn column(text: &str, line: u32) -> Option<u32> {
    let line = text.lines().nth(line as usize - 1)?;
    Some(line.chars().position(|c| !c.is_whitespace())? as u32 + 1)
}

/// The kernels of a file; the lines before each are blank, so that line numbers stay those of the file.
fn sections(text: &str) -> Vec<String> {
    let mut list = vec![String::new()];
    for (number, line) in text.lines().enumerate() {
        let parts = line.trim_start().strip_prefix("//").is_some_and(|rest| rest.trim_start().starts_with("---"));
        if parts {
            list.push("\n".repeat(number));
        }
        if let Some(section) = list.last_mut() {
            section.push_str(line);
            section.push('\n');
        }
    }
    let empty = |section: &String| section.lines().all(|line| line.trim().is_empty() || line.trim().starts_with("//"));
    if list.len() > 1 {
        list.retain(|section| !empty(section));
    }
    list
}

fn statistics(kernel: &Kernel) -> Statistics {
    let buffers = kernel.params.iter().filter(|p| matches!(p.kind, ParamKind::Buffer { .. })).count();
    let mut values = BTreeMap::new();
    for ty in &kernel.types {
        *values.entry(ty.to_string()).or_default() += 1;
    }
    // The text form has a line per statement; the head and the braces are not among them.
    let text = kernel.to_string();
    let code = |line: &&str| !line.trim().is_empty() && line.trim() != "}" && !line.trim_start().starts_with("//");
    Statistics {
        name: kernel.name.clone(),
        buffers,
        scalars: kernel.params.len() - buffers,
        statements: text.lines().filter(code).count().saturating_sub(1),
        workgroup: kernel.workgroup,
        shared_bytes: kernel.shared_bytes(),
        values,
        buffers_after: None,
    }
}

/// A little-endian word of up to four bytes.
fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect()
}

fn print(io: &mut Io<'_>, checked: &Checked) -> Outcome {
    for kernel in &checked.kernels {
        let values: Vec<String> = kernel.values.iter().map(|(ty, count)| format!("{count} {ty}")).collect();
        writeln!(
            io.out,
            "{}: @{} ok: {} buffers, {} scalars, {} lines, {} bytes of shared memory, values: {}",
            checked.file,
            kernel.name,
            kernel.buffers,
            kernel.scalars,
            kernel.statements,
            kernel.shared_bytes,
            if values.is_empty() { "none".into() } else { values.join(", ") }
        )?;
        for (index, bytes) in kernel.buffers_after.iter().flatten().enumerate().filter(|(_, bytes)| !bytes.is_empty()) {
            let words: Vec<String> = bytes.chunks(4).take(16).map(hexadecimal).collect();
            let more = if bytes.len() > 64 { " ..." } else { "" };
            writeln!(io.out, "  argument {index}: {}{more}", words.join(" "))?;
        }
    }
    for fault in &checked.faults {
        let place = match fault.column {
            Some(column) => format!("{}:{}:{column}", checked.file, fault.line),
            None => format!("{}:{}", checked.file, fault.line),
        };
        writeln!(io.err, "{place}: {}", fault.message)?;
    }
    Ok(())
}
