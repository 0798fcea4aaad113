//! Any text as a kernel in text form: refused, or verified without a panic; what parses prints to itself.
#![no_main]

use bitsmith_compiler::caps::Caps;
use bitsmith_compiler::ir::{parse, verify};

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(kernel) = parse(text)
        && verify(&kernel, &Caps::ANY).is_ok()
    {
        assert!(parse(&kernel.to_string()).as_ref() == Ok(&kernel));
    }
});
