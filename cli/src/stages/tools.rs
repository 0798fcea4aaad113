//! Stages that NVIDIA's own tools make of PTX: machine code, modules, resources.
//!
//! Reads an artifact, runs `ptxas` (named by `BITSMITH_PTXAS`, or on `PATH`) and `cuobjdump` beside it.

use super::Stage;
use crate::failure::Failure;
use bitsmith_compiler::Error;
use bitsmith_compiler::artifact::{Artifact, Payload};
use std::path::{Path, PathBuf};
use std::process::Command;

/// One of `sass`, `cubin`, `resources`.
pub(super) fn nvidia(stage: Stage, artifact: &Artifact) -> Result<String, Failure> {
    let Payload::Text(text) = &artifact.payload else {
        let why = format!("stage `{}` of target {}: it makes no PTX", stage.name(), artifact.target);
        return Err(Failure::Request(Error::Unsupported(why)));
    };
    let ptxas = find(&stage)?;
    let folder = tempfile::tempdir().map_err(|error| Failure::file(Path::new("a temporary folder"), "made", &error))?;
    let (source, cubin) = (folder.path().join("kernel.ptx"), folder.path().join("kernel.cubin"));
    std::fs::write(&source, text).map_err(|error| Failure::file(&source, "written", &error))?;
    let assembled = tool(&ptxas, &["-v", "-arch", &artifact.target, "-o"], &[&cubin, &source])?;
    match stage {
        Stage::Cubin => {
            let bytes = std::fs::read(&cubin).map_err(|error| Failure::file(&cubin, "read", &error))?;
            Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
        }
        Stage::Sass => tool(&ptxas.with_file_name("cuobjdump"), &["-sass"], &[&cubin]),
        _ => Ok(assembled),
    }
}

fn find(stage: &Stage) -> Result<PathBuf, Failure> {
    let named = std::env::var_os("BITSMITH_PTXAS").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("ptxas"));
    named.into_iter().chain(on_path).find(|path| path.is_file()).ok_or_else(|| {
        Failure::Request(Error::Unsupported(format!(
            "stage `{}` without ptxas; set BITSMITH_PTXAS or PATH (the CUDA toolkit, or pip install nvidia-cuda-nvcc)",
            stage.name()
        )))
    })
}

/// What a tool prints, on both streams.
fn tool(program: &Path, options: &[&str], files: &[&Path]) -> Result<String, Failure> {
    let output = Command::new(program).args(options).args(files).output();
    let output = output.map_err(|error| Failure::file(program, "run", &error))?;
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    if output.status.success() {
        return Ok(said);
    }
    Err(Failure::Request(Error::Tool {
        command: format!("{} {}", program.display(), options.join(" ")),
        stderr: said,
        path: files.last().map(|path| path.display().to_string()).unwrap_or_default(),
    }))
}
