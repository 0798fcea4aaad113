//! The `bitsmith` binary: arguments in, exit code out. All of it is in the library, where tests can call it.

use std::process::ExitCode;

fn main() -> ExitCode {
    let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr());
    ExitCode::from(bitsmith_cli::run(std::env::args_os(), &mut out, &mut err))
}
