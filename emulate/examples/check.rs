//! `cargo run --release -p bitsmith-emulate --example check -- kernel.ptx launch.json`: runs a kernel under every schedule.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [ptx, launch] = &arguments[..] else {
        eprintln!("usage: check kernel.ptx launch.json");
        return ExitCode::from(2);
    };
    match bitsmith_emulate::check_file(ptx.as_ref(), launch.as_ref()) {
        Ok(report) => {
            println!("{report}");
            if report.clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
