//! Any bytes as a GGUF file: refused, or read with all data in bounds.
#![no_main]

use bitsmith_calibrate::file::Gguf;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(file) = Gguf::parse(bytes, "fuzz.gguf") {
        for tensor in file.tensors() {
            assert_eq!(file.data(tensor).len(), tensor.bytes);
        }
    }
});
