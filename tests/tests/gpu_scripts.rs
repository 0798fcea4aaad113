//! The scripts of `benches/gpu`: their own tests, which need Python and nothing else.

use std::path::Path;
use std::process::Command;

#[test]
fn the_table_and_the_run_are_tested_by_themselves() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/gpu");
    let output =
        Command::new("python3").args(["-B", "-m", "unittest", "-v", "test_bench"]).current_dir(&folder).output();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            return bitsmith_tests::skip(
                "python",
                "the_table_and_the_run_are_tested_by_themselves",
                &error.to_string(),
            );
        }
    };
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let count: usize = text
        .lines()
        .find_map(|line| line.strip_prefix("Ran ")?.split(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("no count of tests in\n{text}"));
    assert!(count >= 12, "{text}");
}
