//! safetensors: single files, shards, and the refusals.

use super::*;
use ::safetensors::tensor::{TensorView, serialize, serialize_to_file};

fn view(dtype: Dtype, shape: &[usize], data: &'static [u8]) -> TensorView<'static> {
    TensorView::new(dtype, shape.to_vec(), data).unwrap()
}

fn bytes(names: &[&str]) -> Vec<u8> {
    serialize(names.iter().map(|name| (*name, view(Dtype::F32, &[1, 2], &[0, 0, 128, 63, 0, 0, 0, 64]))), None).unwrap()
}

fn raw(header: &str, data: usize) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.resize(out.len() + data, 0);
    out
}

fn refusal(bytes: Vec<u8>) -> String {
    let text = SafeTensorsFile::parse(bytes, "some.safetensors").unwrap_err().to_string();
    assert!(text.contains("some.safetensors"), "{text}");
    text
}

fn sharded(index: &str) -> Result<SafeTensorsFile> {
    SafeTensorsFile::parse_sharded(index, "index.json", |file| match file {
        "1.safetensors" => Some(bytes(&["a", "b"])),
        "2.safetensors" => Some(bytes(&["c"])),
        "3.safetensors" => Some(bytes(&["a"])),
        _ => None,
    })
}

#[test]
fn a_file_reads_back() {
    let file = SafeTensorsFile::parse(bytes(&["a", "b"]), "x").unwrap();
    let tensor = file.tensor("b").unwrap();
    assert_eq!((tensor.dtype, &tensor.shape[..]), (Dtype::F32, &[1, 2][..]));
    assert_eq!(file.data(tensor), [0, 0, 128, 63, 0, 0, 0, 64]);
    assert_eq!(file.tensors().len(), 2);
}

#[test]
fn every_truncation_is_refused() {
    let bytes = bytes(&["a", "b"]);
    for length in 0..bytes.len() {
        refusal(bytes[..length].to_vec());
    }
}

#[test]
fn each_fault_is_named() {
    assert!(refusal(raw("{}", 4)).contains("not fully covered"));
    assert!(refusal(raw("[]", 0)).contains("an object of tensor name"));
    let dtype = refusal(raw(r#"{"w":{"dtype":"Q4","shape":[1],"data_offsets":[0,4]}}"#, 4));
    assert!(dtype.contains("Q4") && dtype.contains("F32"), "{dtype}");
    let outside = refusal(raw(r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 2));
    assert!(outside.contains("tensor `w`: bytes 0..4 lie outside"), "{outside}");
    let twice =
        r#"{"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    assert!(refusal(raw(twice, 1)).contains("tensor `w` occurs twice"));
    refusal(raw(r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 4));
}

/// Eight tensors of 2^61 bytes each: their end, plus the header, overflows 64 bits inside the crate.
#[test]
fn ends_that_add_up_beyond_64_bits_are_refused() {
    let step = 1u128 << 61;
    let entries: Vec<String> = (0..8)
        .map(|i| {
            let (start, end) = (i * step, ((i + 1) * step).min(u128::from(u64::MAX)));
            format!(r#""t{i}":{{"dtype":"U8","shape":[{}],"data_offsets":[{start},{end}]}}"#, end - start)
        })
        .collect();
    refusal(raw(&format!("{{{}}}", entries.join(",")), 0));
}

#[test]
fn shards_join_and_a_wrong_index_is_refused() {
    let good = r#"{"weight_map":{"a":"1.safetensors","c":"2.safetensors"}}"#;
    let model = sharded(good).unwrap();
    assert_eq!(model.tensors().len(), 3);
    assert_eq!(model.shard_name(model.tensor("c").unwrap()), "2.safetensors");
    for (index, expected) in [
        ("{", "index.json: is not valid JSON"),
        ("{}", "`weight_map` is missing"),
        (r#"{"weight_map":{"a":1}}"#, "tensor `a` is not a file name"),
        (r#"{"weight_map":{"a":"../x"}}"#, "accepted: a plain file name"),
        (r#"{"weight_map":{"a":"9.safetensors"}}"#, r#"names the shard "9.safetensors""#),
        (r#"{"weight_map":{"z":"1.safetensors"}}"#, r#"tensor `z` is not in its shard "1.safetensors""#),
        (r#"{"weight_map":{"a":"1.safetensors","b":"3.safetensors"}}"#, "tensor `a` is also in"),
        (r#"{"weight_map":{"a":"2.safetensors","b":"1.safetensors"}}"#, r#"tensor `a` is in "1.safetensors""#),
    ] {
        let text = sharded(index).unwrap_err().to_string();
        assert!(text.contains(expected), "{text} does not contain {expected}");
    }
}

#[test]
fn folders_open_with_their_config() {
    let folder = std::env::temp_dir().join(format!("bitsmith-safetensors-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    assert!(SafeTensorsFile::open(&folder).unwrap_err().to_string().contains("holds no model.safetensors"));
    let tensors = [("a", view(Dtype::U8, &[2], &[1, 2]))];
    serialize_to_file(tensors, None, &folder.join("s1.safetensors")).unwrap();
    assert_eq!(SafeTensorsFile::open(&folder).unwrap().tensors().len(), 1);
    std::fs::write(folder.join(INDEX_FILE), r#"{"weight_map":{"a":"s1.safetensors"}}"#).unwrap();
    std::fs::write(folder.join("config.json"), r#"{"hidden_size":8}"#).unwrap();
    let model = SafeTensorsFile::open(&folder).unwrap();
    assert_eq!(model.config().and_then(|config| config["hidden_size"].as_u64()), Some(8));
    assert_eq!(model.data(&model.tensors()[0]), [1, 2]);
    std::fs::write(folder.join("config.json"), "{").unwrap();
    assert!(SafeTensorsFile::open(&folder).unwrap_err().to_string().contains("config.json"));
    std::fs::remove_dir_all(folder).unwrap();
}
