//! Why a command did not succeed, and which exit code that is.

use bitsmith_compiler::Error;
use std::io::{self, Write};
use std::path::Path;

/// Why a command did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// The request cannot be served: exit code 2, or 1 where the compiler or an outside tool is at fault.
    Request(Error),
    /// A fault was found, and has been reported; this sums it up. Exit code 1.
    Found(String),
    /// The output cannot be written. A reader that went away is no failure.
    Output(io::Error),
}

impl Failure {
    /// A request that cannot be served.
    pub fn invalid(message: impl Into<String>) -> Failure {
        Failure::Request(Error::invalid(message))
    }

    /// A file that cannot be read or written, and what to do about it.
    pub fn file(path: &Path, verb: &str, error: &io::Error) -> Failure {
        let remedy = match error.kind() {
            io::ErrorKind::NotFound => "; check the path",
            io::ErrorKind::PermissionDenied => "; check its permissions",
            _ => "",
        };
        Failure::invalid(format!("{}: cannot be {verb}: {error}{remedy}", path.display()))
    }

    /// Says it on stderr; returns the exit code.
    pub(crate) fn report(&self, err: &mut dyn Write) -> u8 {
        // Where stderr is closed, the exit code alone must do.
        match self {
            Failure::Request(Error::Invalid(faults)) => {
                for fault in faults {
                    let _ = writeln!(err, "error: {fault}");
                }
                2
            }
            Failure::Request(error @ Error::Unsupported(_)) => {
                let _ = writeln!(err, "error: {error}");
                2
            }
            Failure::Request(error @ (Error::Tool { .. } | Error::Bug { .. })) => {
                let _ = writeln!(err, "error: {error}");
                1
            }
            Failure::Found(message) => {
                let _ = writeln!(err, "error: {message}");
                1
            }
            Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            Failure::Output(error) => {
                let _ = writeln!(err, "error: the output cannot be written: {error}");
                2
            }
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Request(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Output(error)
    }
}
