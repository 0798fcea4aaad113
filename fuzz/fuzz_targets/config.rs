//! Any text as a `config.json`: refused, or a shape whose sizes can be multiplied out.
#![no_main]

use bitsmith_calibrate::shapes::ModelShape;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(shape) = ModelShape::parse_config(text, "fuzz.json") {
        assert!(shape.parameters() > 0);
        assert!(!shape.distinct().is_empty());
    }
});
