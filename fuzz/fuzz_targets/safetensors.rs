//! Any bytes as a safetensors file, and as the index of one shard: refused, or read with all data in bounds.
#![no_main]

use bitsmith_calibrate::file::SafeTensorsFile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(file) = SafeTensorsFile::parse(bytes, "fuzz.safetensors") {
        for tensor in file.tensors() {
            assert_eq!(file.data(tensor).len(), tensor.bytes);
        }
    }
    if let Ok(index) = std::str::from_utf8(bytes) {
        let _ = SafeTensorsFile::parse_sharded(index, "fuzz.json", |_| Some(b"\x02\0\0\0\0\0\0\0{}".to_vec()));
    }
});
