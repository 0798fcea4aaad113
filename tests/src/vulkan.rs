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

    /// One that knows cooperative matrices, from version 2023.4 on: by `BITSMITH_SPIRV_VAL_NEW`, else the same as others; or
    /// a skip by name.
    pub fn find_for_matrices(test: &str) -> Option<SpirvVal> {
        let named = ["BITSMITH_SPIRV_VAL_NEW", "BITSMITH_SPIRV_VAL"].into_iter().find_map(std::env::var_os);
        let tool = named.map_or(PathBuf::from("spirv-val"), PathBuf::from);
        let output = Command::new(&tool).arg("--version").output().ok().filter(|output| output.status.success());
        let text = output.map_or(String::new(), |output| String::from_utf8_lossy(&output.stdout).into_owned());
        let first = text.lines().next().unwrap_or("spirv-val, which is absent,");
        if version(first).is_some_and(|version| version >= (2023, 4)) {
            return Some(SpirvVal(tool));
        }
        let why = format!("{first} knows no cooperative matrices; BITSMITH_SPIRV_VAL_NEW names one from v2023.4 on");
        crate::skip("spirv-val-new", test, &why);
        None
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

/// Year and number in a line such as `SPIRV-Tools v2023.1 ...`.
fn version(line: &str) -> Option<(u32, u32)> {
    let word = line.split_whitespace().find_map(|word| word.strip_prefix('v'))?;
    let (year, number) = word.split_once('.')?;
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    Some((year.parse().ok()?, digits.parse().ok()?))
}
