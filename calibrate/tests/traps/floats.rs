//! Small floats: FP4 and its nibbles, FP8 of two makers, codes that are no number, scales of keys and values.

use super::packings::ct;
use super::{QUERY, folder, read, singles, values};
use bitsmith_calibrate::import::Checkpoint;
use safetensors::Dtype;
use serde_json::{Value, json};

#[test]
fn nvfp4_low_nibbles_come_first_and_the_global_scale_divides() {
    // Codes of 1 (0.5) in even columns and 2 (1.0) in odd ones; scale 2 is 0x40 in E4M3; global 4.
    let more = json!({ "type": "float", "strategy": "tensor_group", "group_size": 16 });
    let found = values(
        4,
        16,
        ct(4, true, more),
        &[
            ("weight_packed", Dtype::U8, vec![4, 8], vec![0x21; 32]),
            ("weight_scale", Dtype::F8_E4M3, vec![4, 1], vec![0x40; 4]),
            ("weight_global_scale", Dtype::F32, vec![1], singles(&[4.0])),
        ],
    );
    assert_eq!(found, [0.25, 0.5].repeat(32));
}

#[test]
fn mxfp4_nibbles_lie_otherwise_in_compressed_tensors_than_in_gguf() {
    // Both hold 0.5 where the low nibble is, 1.0 where the high one is; 2^(127 - 127) = 1.
    let more = json!({ "type": "float", "strategy": "group", "group_size": 32 });
    let found = values(
        4,
        32,
        ct(4, true, more),
        &[
            ("weight_packed", Dtype::U8, vec![4, 16], vec![0x21; 64]),
            ("weight_scale", Dtype::U8, vec![4, 1], vec![127; 4]),
        ],
    );
    assert_eq!(found, [0.5, 1.0].repeat(64));
    let gguf: bitsmith_compiler::format::Format = "mxfp4".parse().unwrap();
    let mut block = vec![127u8];
    block.extend([0x21; 16]);
    let part = bitsmith_compiler::format::Part {
        name: "blocks",
        dtype: bitsmith_compiler::format::PartType::U8,
        shape: vec![1, 17],
        bytes: block,
    };
    let q = (gguf.container.unpack)(&gguf, 1, 32, &[part]).unwrap();
    assert_eq!(bitsmith_calibrate::model::dequantize(&q), [[0.5; 16], [1.0; 16]].concat());
}

fn fp8(block: Value, scheme: &str) -> Value {
    json!({ "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": scheme, "weight_block_size": block })
}

#[test]
fn fp8_scales_multiply_even_where_they_are_called_inverse_and_edge_blocks_are_cut() {
    // 0x38 is 1. Blocks of 128: 144 x 160 has two by two of them, those at the edges cut.
    let (n, k) = (144, 160);
    let found = values(
        n,
        k,
        fp8(json!([128, 128]), "dynamic"),
        &[
            ("weight", Dtype::F8_E4M3, vec![n, k], vec![0x38; n * k]),
            ("weight_scale_inv", Dtype::F32, vec![2, 2], singles(&[1.0, 2.0, 3.0, 4.0])),
        ],
    );
    for (i, w) in found.iter().enumerate() {
        assert_eq!(*w, (1 + i % k / 128 + 2 * (i / k / 128)) as f32);
    }
    let tensor = [
        ("weight", Dtype::F8_E4M3, vec![4, 16], vec![0x40; 64]),
        ("weight_scale", Dtype::F32, vec![], singles(&[0.25])),
        ("input_scale", Dtype::F32, vec![], singles(&[0.5])),
    ];
    let (linear, _) = read(4, 16, fp8(Value::Null, "static"), &tensor).unwrap();
    assert_eq!(linear.weight.values().into_owned(), vec![0.5; 64]);
    assert_eq!((linear.input_scale, linear.activation.unwrap().to_string()), (Some(0.5), "fp8-tensor".into()));
}

#[test]
fn fp8_codes_that_are_no_number_are_refused() {
    let mut weight = vec![0x38u8; 64];
    weight[37] = 0x7f;
    let parts =
        [("weight", Dtype::F8_E4M3, vec![4, 16], weight), ("weight_scale", Dtype::F32, vec![1], singles(&[1.0]))];
    let error = read(4, 16, fp8(Value::Null, "dynamic"), &parts).unwrap_err();
    assert!(error.contains("NaN") && error.contains(QUERY), "{error}");
}

/// The same byte means half as much in fnuz, 0x80 is its only NaN, and 0x7f is a number.
#[test]
fn fp8_of_amd_is_another_format() {
    let parts = |byte: u8| {
        [
            ("weight", Dtype::F8_E4M3FNUZ, vec![4, 16], vec![byte; 64]),
            ("weight_scale", Dtype::F32, vec![1], singles(&[1.0])),
        ]
    };
    assert_eq!(values(4, 16, fp8(Value::Null, "dynamic"), &parts(0x38)), vec![0.5; 64]);
    assert_eq!(values(4, 16, fp8(Value::Null, "dynamic"), &parts(0x7f)), vec![240.0; 64]);
    assert!(read(4, 16, fp8(Value::Null, "dynamic"), &parts(0x80)).unwrap_err().contains("NaN"));
}

#[test]
fn kv_scales_that_are_missing_are_told_and_the_old_shared_one_is_both() {
    let mut config = ct(8, true, json!({ "type": "float", "strategy": "tensor" }));
    config["format"] = "float-quantized".into();
    config["kv_cache_scheme"] = json!({ "num_bits": 8, "type": "float", "strategy": "tensor" });
    let weight = [
        ("weight", Dtype::F8_E4M3, vec![4, 16], vec![0x38u8; 64]),
        ("weight_scale", Dtype::F32, vec![1], singles(&[1.0])),
    ];
    let scales = |more: &[(&'static str, f32)]| {
        let mut parts = weight.to_vec();
        parts.extend(more.iter().map(|(name, s)| (*name, Dtype::F32, vec![1], singles(&[*s]))));
        let folder = folder(4, 16, config.clone(), &parts);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        (checkpoint.layer(0).map(|layer| layer.kv_scales).map_err(|e| e.to_string()), checkpoint.notes())
    };
    let (found, notes) = scales(&[]);
    assert_eq!(found, Ok(None));
    assert!(notes.iter().any(|n| n.contains("no scales; 1 is taken")), "{notes:?}");
    assert_eq!(scales(&[("self_attn.kv_scale", 0.5)]).0, Ok(Some((0.5, 0.5))));
    let (found, notes) = scales(&[("self_attn.k_scale", 0.25), ("self_attn.v_scale", 2.0)]);
    assert_eq!((found, notes), (Ok(Some((0.25, 2.0))), vec![]));
    let error = scales(&[("self_attn.k_scale", f32::NAN), ("self_attn.v_scale", 2.0)]).0.unwrap_err();
    assert!(error.contains("k_scale"), "{error}");
}
