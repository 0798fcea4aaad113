//! Launch files of `check --launch`: a grid and arguments, for a kernel on the interpreter.
//!
//! ```json
//! { "grid": [1, 1, 1], "args": [{ "f32s": [1.0, 2.0] }, { "unwritten": 8 }, { "i32": 2 }] }
//! ```
//!
//! A buffer is given by its content (`f32s`, `i32s`, `bytes`) or as so many bytes that nothing has written (`unwritten`);
//! a scalar is an `i32`, `i64` or `f32`.

use crate::failure::Failure;
use bitsmith_compiler::ir::Verified;
use bitsmith_compiler::ir::interp::{self, ArgValue};
use serde::Deserialize;
use std::path::Path;

/// A launch.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LaunchFile {
    grid: [u32; 3],
    args: Vec<Arg>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Arg {
    F32s(Vec<f32>),
    I32s(Vec<i32>),
    Bytes(Vec<u8>),
    Unwritten(usize),
    I32(i32),
    I64(i64),
    F32(f32),
}

/// Largest buffer of a launch file.
const MOST: usize = 1 << 28;

impl LaunchFile {
    /// Reads a launch file.
    pub fn read(path: &Path) -> Result<LaunchFile, Failure> {
        let text = std::fs::read_to_string(path).map_err(|error| Failure::file(path, "read", &error))?;
        let launch: LaunchFile =
            serde_json::from_str(&text).map_err(|error| Failure::invalid(format!("{}: {error}", path.display())))?;
        match launch.args.iter().find(|arg| matches!(arg, Arg::Unwritten(bytes) if *bytes > MOST)) {
            Some(arg) => Err(Failure::invalid(format!("{}: {arg:?}; accepted: up to {MOST}", path.display()))),
            None => Ok(launch),
        }
    }

    /// Runs a kernel; the bytes of each buffer afterwards, empty for scalars, or why it trapped.
    pub fn run(&self, kernel: &Verified<'_>, subgroup: u32) -> Result<Vec<Vec<u8>>, String> {
        let mut args: Vec<ArgValue> = self.args.iter().map(Arg::value).collect();
        let launch = interp::Launch { grid: self.grid, args: &mut args };
        interp::run(kernel, subgroup, launch).map_err(|trap| trap.to_string())?;
        Ok(args.iter().map(|arg| arg.bytes().to_vec()).collect())
    }
}

impl Arg {
    fn value(&self) -> ArgValue {
        match self {
            Arg::F32s(list) => ArgValue::filled(list.iter().flat_map(|x| x.to_le_bytes()).collect()),
            Arg::I32s(list) => ArgValue::filled(list.iter().flat_map(|x| x.to_le_bytes()).collect()),
            Arg::Bytes(list) => ArgValue::filled(list.clone()),
            Arg::Unwritten(bytes) => ArgValue::unwritten(*bytes),
            Arg::I32(x) => ArgValue::I32(*x),
            Arg::I64(x) => ArgValue::I64(*x),
            Arg::F32(x) => ArgValue::F32(*x),
        }
    }
}
