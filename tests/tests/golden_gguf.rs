//! GGUF types against ggml: its reference quantizers' bytes, and its values for those and for random blocks.
//!
//! Reads `golden/gguf` of the shared data; skipped by name where that is absent.

use bitsmith_compiler::format::{Format, Part, PartType, Quantized};
use std::path::Path;

const N: usize = 8;
const K: usize = 512;

fn floats(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    bytes.chunks_exact(4).map(|chunk| f32::from_le_bytes(chunk.try_into().unwrap())).collect()
}

fn format(name: &str) -> Format {
    name.to_ascii_lowercase().parse().unwrap()
}

fn unpack(format: &Format, n: usize, k: usize, bytes: Vec<u8>) -> Quantized {
    let part = Part { name: "blocks", dtype: PartType::U8, shape: vec![n, bytes.len() / n], bytes };
    (format.container.unpack)(format, n, k, &[part]).unwrap()
}

fn pack(q: &Quantized) -> Vec<u8> {
    (q.format.container.pack)(q).unwrap().remove(0).bytes
}

/// Equal as numbers, bit for bit but for the sign of zero; infinities and NaNs of random scales agree as such.
fn same(found: f32, expected: f32) -> bool {
    found == expected || found.is_nan() && expected.is_nan()
}

fn quantizes_as(name: &str, suffix: &str, importance: Option<&str>) {
    let Some(folder) = bitsmith_tests::data("golden/gguf", &format!("gguf_{name}{suffix}")) else { return };
    let weights = floats(&folder.join("weights.f32le.bin"));
    let importance = importance.map(|file| floats(&folder.join(file)));
    let expected = std::fs::read(folder.join(format!("{name}.quant.{suffix}.bin"))).unwrap();
    let q = format(name).encode(&weights, N, K, importance.as_deref()).unwrap();
    let found = pack(&q);
    assert_eq!(found.len(), expected.len());
    let size = expected.len() / (N * K / block(name));
    let wrong: Vec<usize> =
        (0..expected.len() / size).filter(|b| found[b * size..][..size] != expected[b * size..][..size]).collect();
    assert!(
        wrong.is_empty(),
        "{name} {suffix}: {} of {} blocks differ, first {}:\n{:02x?}\n{:02x?}",
        wrong.len(),
        expected.len() / size,
        wrong[0],
        &found[wrong[0] * size..][..size],
        &expected[wrong[0] * size..][..size]
    );
}

fn block(name: &str) -> usize {
    if name.ends_with("_K") || name.starts_with("TQ") { 256 } else { 32 }
}

const TYPES: [&str; 6] = ["Q4_0", "Q8_0", "MXFP4", "TQ2_0", "Q4_K", "Q6_K"];

#[test]
fn quantizes_as_ggml_does() {
    for name in TYPES {
        quantizes_as(name, "ggml_c", None);
    }
}

#[test]
fn quantizes_as_ggml_does_with_an_importance_matrix() {
    for name in ["Q4_0", "Q4_K", "Q6_K"] {
        quantizes_as(name, "ggml_c.imatrix", Some("imatrix.f32le.bin"));
    }
}

#[test]
fn quantizes_as_gguf_py_does() {
    for name in ["Q4_0", "Q8_0", "MXFP4", "TQ2_0"] {
        quantizes_as(name, "gguf_py", None);
    }
}

#[test]
fn values_are_those_of_ggml() {
    let Some(folder) = bitsmith_tests::data("golden/gguf", "values_are_those_of_ggml") else { return };
    for name in TYPES {
        let format = format(name);
        let quantized = folder.join(format!("{name}.quant.ggml_c.bin"));
        for (blocks, values) in [
            (quantized, folder.join(format!("{name}.dequant.f32le.bin"))),
            (
                folder.join(format!("{name}.randblocks.bin")),
                folder.join(format!("{name}.randblocks.dequant.f32le.bin")),
            ),
        ] {
            let (bytes, expected) = (std::fs::read(&blocks).unwrap(), floats(&values));
            let n = 1;
            let q = unpack(&format, n, expected.len() / n, bytes.clone());
            for (i, (found, expected)) in q.dequantize().iter().zip(&expected).enumerate() {
                assert!(same(*found, *expected), "{}: weight {i} is {found}, ggml says {expected}", blocks.display());
            }
            assert_eq!(pack(&q), bytes, "{}: bytes changed on the way", blocks.display());
        }
    }
}
