//! The outside validator of SPIR-V.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// `spirv-val`, or a skip by name where it is absent.
pub struct SpirvVal(PathBuf);

impl SpirvVal {
    /// Finds it, by `BITSMITH_SPIRV_VAL` or on the path.
    pub fn find(test: &str) -> Option<SpirvVal> {
        let tool = std::env::var_os("BITSMITH_SPIRV_VAL").map_or(PathBuf::from("spirv-val"), PathBuf::from);
        match Command::new(&tool).arg("--version").output() {
            Ok(output) if output.status.success() => Some(SpirvVal(tool)),
            _ => {
                crate::skip("spirv-val", test, "spirv-val is absent (apt install spirv-tools)");
                None
            }
        }
    }

    /// Validates a module for Vulkan 1.2; what it objects to.
    pub fn check(&self, words: &[u8]) -> Result<(), String> {
        let mut child = Command::new(&self.0)
            .args(["--target-env", "vulkan1.2", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(words).map_err(|error| error.to_string())?;
        }
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
    }
}
