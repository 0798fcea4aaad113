//! NVIDIA's assembler and disassembler as outside validators.
//!
//! Reads PTX modules of one entry each, makes what `ptxas -v` says of each entry, and its SASS where that is asked for.
//! Modules are joined, so that one run of the tool serves many kernels; entries must have names of their own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the assembler made of one entry.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entry {
    /// Registers per thread.
    pub registers: u32,
    /// Bytes of shared memory that the text declares.
    pub shared: u32,
    /// Bytes of local memory per thread.
    pub stack: u32,
    /// Bytes of registers spilled to local memory, stored and loaded.
    pub spills: u32,
    /// Machine instructions as the disassembler spells them; empty unless asked for.
    pub sass: Vec<String>,
}

/// The tools' folder.
#[derive(Clone, Debug)]
pub struct Ptxas {
    ptxas: PathBuf,
    cuobjdump: Option<PathBuf>,
}

/// The assembler named by `BITSMITH_PTXAS`, or on `PATH`, or in Python's site-packages; or a skip by name.
pub fn find(test: &str) -> Option<Ptxas> {
    let found = candidates().into_iter().find(|path| path.is_file());
    let Some(ptxas) = found else {
        crate::skip("ptxas", test, "no ptxas: BITSMITH_PTXAS, PATH and Python's site-packages have none");
        return None;
    };
    let beside = ptxas.with_file_name("cuobjdump");
    Some(Ptxas { cuobjdump: beside.is_file().then_some(beside), ptxas })
}

fn candidates() -> Vec<PathBuf> {
    let mut list: Vec<PathBuf> = std::env::var_os("BITSMITH_PTXAS").map(PathBuf::from).into_iter().collect();
    let path = std::env::var_os("PATH").unwrap_or_default();
    list.extend(std::env::split_paths(&path).map(|folder| folder.join("ptxas")));
    if list.iter().any(|path| path.is_file()) {
        return list;
    }
    // The wheel `nvidia-cuda-nvcc` puts it here.
    let script = "import sysconfig; print(sysconfig.get_paths()['purelib']); print(sysconfig.get_paths()['platlib'])";
    if let Ok(output) = Command::new("python3").args(["-c", script]).output() {
        for folder in String::from_utf8_lossy(&output.stdout).lines() {
            list.extend(
                ["cu13", "cuda_nvcc"].map(|cuda| Path::new(folder).join("nvidia").join(cuda).join("bin/ptxas")),
            );
        }
    }
    list
}

impl Ptxas {
    /// Assembles modules for one architecture, all in one run; the error is what the tool printed.
    pub fn assemble(&self, arch: &str, modules: &[String], sass: bool) -> Result<BTreeMap<String, Entry>, String> {
        let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
        let (source, cubin) = (folder.path().join("kernels.ptx"), folder.path().join("kernels.cubin"));
        std::fs::write(&source, join(modules)).map_err(|e| e.to_string())?;
        let output = Command::new(&self.ptxas)
            .args(["-v", "-arch", arch, "-o"])
            .args([&cubin, &source])
            .output()
            .map_err(|e| format!("{}: {e}", self.ptxas.display()))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            return Err(said);
        }
        let mut entries = report(&said);
        if let (true, Some(tool)) = (sass, &self.cuobjdump) {
            let output = Command::new(tool).arg("-sass").arg(&cubin).output().map_err(|e| e.to_string())?;
            for (name, lines) in disassembly(&String::from_utf8_lossy(&output.stdout)) {
                entries.entry(name).or_default().sass = lines;
            }
        }
        Ok(entries)
    }
}

/// One module of many: the first header stands for all, and each module's dynamic shared memory gets its own name.
fn join(modules: &[String]) -> String {
    let mut out = String::new();
    for (i, module) in modules.iter().enumerate() {
        for line in module.lines() {
            let header = [".version", ".target", ".address_size"].iter().any(|word| line.starts_with(word));
            if i == 0 || !header {
                out += &line.replace("shared_memory", &format!("shared_memory_{i}"));
                out.push('\n');
            }
        }
    }
    out
}

/// The number before some words of a line.
fn number(line: &str, words: &str) -> Option<u32> {
    let before = line[..line.find(words)?].trim_end();
    before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn report(said: &str) -> BTreeMap<String, Entry> {
    let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
    let mut current = String::new();
    for line in said.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            current = rest.split('\'').next().unwrap_or_default().to_string();
            entries.entry(current.clone()).or_default();
        }
        let Some(entry) = entries.get_mut(&current) else { continue };
        if let Some(registers) = number(line, " registers") {
            entry.registers = registers;
            entry.shared = number(line, " bytes smem").unwrap_or(0);
        }
        if let Some(stack) = number(line, " bytes stack frame") {
            entry.stack = stack;
            entry.spills =
                number(line, " bytes spill stores").unwrap_or(0) + number(line, " bytes spill loads").unwrap_or(0);
        }
    }
    entries
}

/// The instructions of each function, without addresses and encodings.
fn disassembly(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut functions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(name) = line.split("Function : ").nth(1) {
            current = name.trim().to_string();
        } else if let Some((_, rest)) = line.split_once("*/")
            && let Some((instruction, _)) = rest.split_once(';')
        {
            functions.entry(current.clone()).or_default().push(instruction.trim().to_string());
        }
    }
    functions
}
