//! HIP sources on the host: `hip/shim.h` gives each lane a fiber and the builtins a meaning.

use bitsmith_compiler::artifact::{ArgKind, Artifact};
use bitsmith_compiler::ir::interp::ArgValue;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A launch of one kernel.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The kernel; entries of one program differ.
    pub artifact: Artifact,
    /// Its source, which a test may have changed.
    pub source: String,
    /// Lanes of a wave.
    pub wave: u32,
    /// Workgroups.
    pub grid: [u32; 3],
    /// Arguments.
    pub args: Vec<ArgValue>,
}

/// In which order waves run between the places where they meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The first wave that can run does.
    Forward,
    /// The last one.
    Reversed,
    /// Any one, and its lanes in any order, by a seed.
    Random(u64),
}

/// Sanitizers that a program is built with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sanitize {
    /// None.
    Nothing,
    /// Addresses and undefined behaviour.
    AddressAndUndefined,
}

/// Launches compiled into one program.
#[derive(Debug)]
pub struct Program {
    folder: tempfile::TempDir,
    launches: Vec<Launch>,
}

impl Program {
    /// Compiles launches of kernels for one device. `fnuz` is the kind of 8-bit floats that its hardware converts.
    pub fn build(clang: &Path, launches: Vec<Launch>, fnuz: bool, sanitize: Sanitize) -> Result<Program, String> {
        let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
        let hip = Path::new(env!("CARGO_MANIFEST_DIR")).join("hip");
        let mut text = format!("#include \"{}\"\n", hip.join("shim.h").display());
        for launch in &launches {
            text += &launch.source;
        }
        text += "static void (*const bitsmith_kernels[])(void**) = {\n";
        for launch in &launches {
            text += &format!(
                "    [](void** a) {{ bitsmith::{}({}); }},\n",
                launch.artifact.entry,
                arguments(&launch.artifact)
            );
        }
        text += &format!("}};\n#include \"{}\"\n", hip.join("main.h").display());
        let source = folder.path().join("kernels.cpp");
        std::fs::write(&source, text).map_err(|e| e.to_string())?;
        let mut command = Command::new(clang);
        // Programs run for a moment, and optimizing them would take longer. GCC's library lacks the rounding to bf16 that they call.
        command.args(["-x", "c++", "-std=c++17", "-O0", "-rtlib=compiler-rt"]);
        command.args(["-Xclang", "-ffloat16-excess-precision=none"]);
        command.args(["-Wno-ignored-attributes", "-Wno-unknown-attributes", "-Wno-psabi"]);
        if fnuz {
            command.arg("-DBITSMITH_FNUZ");
        }
        if sanitize == Sanitize::AddressAndUndefined {
            command.args(["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]);
        }
        let program = Program { folder, launches };
        let output = command.arg(&source).arg("-o").arg(program.path("kernels")).args(["-lstdc++", "-lm"]).output();
        let output = output.map_err(|e| format!("{}: {e}", clang.display()))?;
        if !output.status.success() {
            let messages = String::from_utf8_lossy(&output.stderr);
            let kept = program.folder.keep();
            return Err(format!("{}: {}", kept.display(), messages.chars().take(4000).collect::<String>()));
        }
        Ok(program)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs every launch; gives each one's buffers afterwards (scalars are empty), or what the host said.
    pub fn run(&self, order: Order) -> Result<Vec<Vec<Vec<u8>>>, String> {
        std::fs::write(self.path("launches"), self.encoded()).map_err(|e| e.to_string())?;
        let (number, seed) = match order {
            Order::Forward => (0, 0),
            Order::Reversed => (1, 0),
            Order::Random(seed) => (2, seed),
        };
        let output = Command::new(self.path("kernels"))
            .args([self.path("launches"), self.path("results")])
            .args([number.to_string(), seed.to_string()])
            // Fibers have stacks that the sanitizer did not make.
            .env("ASAN_OPTIONS", "detect_stack_use_after_return=0:detect_leaks=0")
            .output()
            .map_err(|e| e.to_string())?;
        if !output.status.success() {
            let messages = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{order:?}: {}: {}", output.status, messages.chars().take(4000).collect::<String>()));
        }
        let bytes = std::fs::read(self.path("results")).map_err(|e| e.to_string())?;
        let mut rest = bytes.as_slice();
        let mut all = Vec::new();
        for launch in &self.launches {
            let mut buffers = Vec::new();
            for arg in &launch.args {
                let (own, after) = rest.split_at(arg.bytes().len());
                buffers.push(own.to_vec());
                rest = after;
            }
            all.push(buffers);
        }
        Ok(all)
    }

    fn encoded(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let word = |out: &mut Vec<u8>, number: u32| out.extend(number.to_le_bytes());
        word(&mut out, self.launches.len() as u32);
        for (number, launch) in self.launches.iter().enumerate() {
            word(&mut out, number as u32);
            for n in launch.grid.into_iter().chain(launch.artifact.workgroup) {
                word(&mut out, n);
            }
            word(&mut out, launch.wave);
            word(&mut out, launch.args.len() as u32);
            for arg in &launch.args {
                let (kind, bytes) = match arg {
                    ArgValue::Buffer(buffer) => (0, buffer.bytes.clone()),
                    ArgValue::I32(x) => (1, x.to_le_bytes().to_vec()),
                    ArgValue::I64(x) => (1, x.to_le_bytes().to_vec()),
                    ArgValue::F32(x) => (1, x.to_le_bytes().to_vec()),
                };
                word(&mut out, kind);
                out.extend((bytes.len() as u64).to_le_bytes());
                out.extend(bytes);
            }
        }
        out
    }
}

fn arguments(artifact: &Artifact) -> String {
    let one = |(number, kind): (usize, &ArgKind)| match kind {
        ArgKind::Read { .. } | ArgKind::Write { .. } | ArgKind::ReadWrite { .. } => {
            format!("*static_cast<unsigned char**>(a[{number}])")
        }
        ArgKind::I32 => format!("*static_cast<int*>(a[{number}])"),
        ArgKind::I64 => format!("*static_cast<long long*>(a[{number}])"),
        ArgKind::F32 => format!("*static_cast<float*>(a[{number}])"),
    };
    artifact.args.iter().map(|arg| &arg.kind).enumerate().map(one).collect::<Vec<_>>().join(", ")
}
