//! GGUF: what is written is read back, and each kind of damage is named.

use super::super::{Array, GgufWriter};
use super::*;

fn sample() -> GgufWriter<'static> {
    let mut writer = GgufWriter::new();
    let nested = Array::Array(vec![Array::U8(vec![1, 2]), Array::Array(vec![Array::F64(vec![0.5])])]);
    let values = [
        Value::U8(1),
        Value::I8(-1),
        Value::U16(2),
        Value::I16(-2),
        Value::U32(3),
        Value::I32(-3),
        Value::F32(0.5),
        Value::Bool(true),
        Value::String("träger".into()),
        Value::Array(Array::String(vec!["a".into(), String::new()])),
        Value::Array(nested),
        Value::U64(u64::MAX),
        Value::I64(i64::MIN),
        Value::F64(-0.25),
    ];
    for (index, value) in values.into_iter().enumerate() {
        writer.key(&format!("test.{index}"), value).unwrap();
    }
    for (index, &dtype) in GgufType::ALL.iter().enumerate() {
        let data: Vec<u8> = (0..dtype.block_bytes() * 3).map(|byte| (byte + index) as u8).collect();
        writer.tensor(&format!("w.{dtype}"), dtype, &[3, dtype.block()], data).unwrap();
    }
    writer
}

/// The bytes of a file with one F32 tensor `w` of shape [2, 8], and where its tensor entry starts.
fn small() -> (Vec<u8>, usize) {
    let mut writer = GgufWriter::new();
    writer.key("k", Value::U32(7)).unwrap().tensor("w", GgufType::F32, &[2, 8], vec![1; 64]).unwrap();
    (writer.to_bytes().unwrap(), 24 + 9 + 4 + 4)
}

fn refusal(bytes: Vec<u8>) -> String {
    let text = Gguf::parse(bytes, "some.gguf").unwrap_err().to_string();
    assert!(text.contains("some.gguf"), "{text}");
    text
}

fn patched(at: usize, with: &[u8]) -> String {
    let (mut bytes, _) = small();
    bytes[at..at + with.len()].copy_from_slice(with);
    refusal(bytes)
}

#[test]
fn writes_and_reads_every_value_and_tensor_type() {
    let writer = sample();
    let bytes = writer.to_bytes().unwrap();
    assert_eq!(bytes, sample().to_bytes().unwrap());
    let file = Gguf::parse(bytes, "sample").unwrap();
    assert_eq!(file.metadata().len(), 14);
    assert_eq!(file.get("test.11"), Some(&Value::U64(u64::MAX)));
    assert_eq!(file.get("test.8").and_then(Value::as_str), Some("träger"));
    assert_eq!(file.tensors().len(), GgufType::ALL.len());
    for (index, tensor) in file.tensors().iter().enumerate() {
        assert_eq!(tensor.shape, [3, tensor.dtype.block()]);
        assert_eq!(tensor.offset % 32, 0);
        let expected: Vec<u8> = (0..tensor.bytes).map(|byte| (byte + index) as u8).collect();
        assert_eq!(file.data(tensor), expected);
        assert_eq!(file.tensor(&tensor.name), Some(tensor));
    }
}

#[test]
fn a_file_on_disk_reads_back_and_leaves_no_temporary() {
    let folder = std::env::temp_dir().join(format!("bitsmith-gguf-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("a.gguf");
    sample().write(&path).unwrap();
    sample().write(&path).unwrap();
    assert_eq!(Gguf::open(&path).unwrap().tensors().len(), GgufType::ALL.len());
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    assert!(sample().write(folder.join("missing/a.gguf")).unwrap_err().to_string().contains("missing"));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn version_two_is_read_and_the_alignment_is_obeyed() {
    let mut writer = GgufWriter::new();
    writer.key(ALIGNMENT_KEY, Value::U32(256)).unwrap();
    writer.tensor("a", GgufType::I8, &[3], vec![1, 2, 3]).unwrap().tensor("b", GgufType::I8, &[1], vec![4]).unwrap();
    let mut bytes = writer.to_bytes().unwrap();
    bytes[4] = 2;
    let file = Gguf::parse(bytes, "two").unwrap();
    assert_eq!((file.version(), file.alignment()), (2, 256));
    assert_eq!(file.tensors()[1].offset - file.tensors()[0].offset, 256);
    assert_eq!(file.data(&file.tensors()[1]), [4]);
}

#[test]
fn every_truncation_is_refused() {
    let (bytes, _) = small();
    for length in 0..bytes.len() {
        refusal(bytes[..length].to_vec());
    }
    let bytes = sample().to_bytes().unwrap();
    let end = Gguf::parse(bytes.clone(), "sample").unwrap().tensors().iter().map(|t| t.offset + t.bytes).max().unwrap();
    for length in 0..end {
        refusal(bytes[..length].to_vec());
    }
}

#[test]
fn each_fault_is_named() {
    let (bytes, tensor) = small();
    assert!(patched(0, b"GGJT").contains("GGJT"));
    assert!(patched(4, &1u32.to_le_bytes()).contains("version 1"));
    assert!(patched(4, &3u32.to_be_bytes()).contains("big-endian"));
    assert!(patched(4, &9u32.to_le_bytes()).contains("accepted versions: 2, 3"));
    assert!(patched(8, &u64::MAX.to_le_bytes()).contains("tensors, the file has room"));
    assert!(patched(16, &u64::MAX.to_le_bytes()).contains("metadata keys, the file has room"));
    assert!(patched(24, &u64::MAX.to_le_bytes()).contains("metadata key 0"));
    assert!(patched(32, &[0xFF]).contains("UTF-8"));
    assert!(patched(33, &13u32.to_le_bytes()).contains("key `k`: value type 13 is unknown; accepted: 0=u8"));
    let dims = tensor + 9;
    assert!(patched(dims, &5u32.to_le_bytes()).contains("tensor `w`: has 5 dimensions"));
    assert!(patched(dims + 4, &(1u64 << 63).to_le_bytes()).contains("overflows"));
    assert!(patched(dims + 4, &0u64.to_le_bytes()).contains("zero"));
    assert!(patched(dims + 4, &9u64.to_le_bytes()).contains("outside the file"));
    let kind = dims + 4 + 16;
    let unknown = patched(kind, &36u32.to_le_bytes());
    assert!(unknown.contains("type 36 is unknown") && unknown.contains("12=Q4_K"), "{unknown}");
    assert!(patched(kind, &2u32.to_le_bytes()).contains("K = 8 is not a multiple of 32"));
    assert!(patched(kind + 4, &8u64.to_le_bytes()).contains("multiple of the alignment"));
    assert!(patched(kind + 4, &(u64::MAX - 31).to_le_bytes()).contains("outside the file"));
    assert!(Gguf::parse(bytes, "some.gguf").is_ok());
}

#[test]
fn duplicates_overlaps_and_bad_alignments_are_refused() {
    let mut writer = GgufWriter::new();
    writer.key("ka", Value::Bool(true)).unwrap().key("kb", Value::Bool(true)).unwrap();
    writer.tensor("wa", GgufType::I8, &[64], vec![0; 64]).unwrap();
    writer.tensor("wb", GgufType::I8, &[32], vec![0; 32]).unwrap();
    let bytes = writer.to_bytes().unwrap();
    let renamed = |from: &[u8], to: &[u8]| {
        let mut bytes = bytes.clone();
        let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to);
        refusal(bytes)
    };
    assert!(renamed(b"kb", b"ka").contains("key `ka` occurs twice"));
    assert!(renamed(b"wb", b"wa").contains("tensor `wa` occurs twice"));
    assert!(renamed(&64u64.to_le_bytes(), &96u64.to_le_bytes()).contains("overlap"));
    let mut bools = bytes.clone();
    let at = bytes.windows(2).position(|window| window == b"ka").unwrap();
    bools[at + 6] = 2;
    assert!(refusal(bools).contains("a bool is the byte 2"));
    assert!(writer.key(ALIGNMENT_KEY, Value::U32(24)).unwrap_err().to_string().contains("power of two"));
    assert!(writer.key(ALIGNMENT_KEY, Value::U64(32)).unwrap_err().to_string().contains("u64"));
    assert!(writer.tensor("wa", GgufType::I8, &[1], vec![0]).unwrap_err().to_string().contains("twice"));
    assert!(writer.tensor("wc", GgufType::I8, &[2], vec![0]).unwrap_err().to_string().contains("takes 2 bytes"));
}

#[test]
fn deep_arrays_and_false_lengths_are_refused_before_they_cost_memory() {
    let head = |kind: &[u8]| {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(0u64.to_le_bytes());
        bytes.extend(1u64.to_le_bytes());
        bytes.extend(1u64.to_le_bytes());
        bytes.extend(b"k");
        bytes.extend(9u32.to_le_bytes());
        bytes.extend(kind);
        bytes.resize(bytes.len() + 64, 0);
        refusal(bytes)
    };
    let array = |id: u32, count: u64| [&id.to_le_bytes()[..], &count.to_le_bytes()].concat();
    assert!(head(&array(9, 1).repeat(40)).contains("nested deeper"));
    assert!(head(&array(0, 1 << 40)).contains("room for 64"));
    assert!(head(&array(8, u64::MAX)).contains("room for 8"));
}
