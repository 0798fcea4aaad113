//! Runs the command line in this process.

use serde_json::Value;

/// Exit code, stdout, stderr.
pub fn run(args: &[&str]) -> (u8, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = bitsmith_cli::run(std::iter::once("bitsmith").chain(args.iter().copied()), &mut out, &mut err);
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

/// The stdout of a command that must succeed.
pub fn ok(args: &[&str]) -> String {
    let (code, out, err) = run(args);
    assert_eq!(code, 0, "{args:?}\n{out}\n{err}");
    out
}

/// The document of a command that must succeed.
pub fn ok_json(args: &[&str]) -> Value {
    let out = ok(args);
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{args:?}: {error}\n{out}"))
}

/// A command that must fail with this exit code and name these things on stderr.
pub fn fails(code: u8, args: &[&str], words: &[&str]) {
    let (found, out, err) = run(args);
    assert_eq!(found, code, "{args:?}\n{out}\n{err}");
    for word in words {
        assert!(err.contains(word), "{args:?}: no `{word}` in\n{err}");
    }
}
