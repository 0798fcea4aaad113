//! Any text as a kernel in text form: refused, or verified without a panic.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = bitsmith_compiler::ir::parse(text);
});
