//! Traps of other tools' files: each has broken someone's checkpoint, and each is a file made here by hand whose numbers are
//! worked out here by hand.
//!
//! Names say the trap. Sources are those that the containers name.

use bitsmith_calibrate::engine::{Activations, Dense, Engine};
use bitsmith_calibrate::import::Checkpoint;
use bitsmith_calibrate::model::Linear;
use half::f16;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use std::path::Path;

/// A tensor: name, type, shape, bytes.
type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn halves(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()
}

fn singles(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn write(path: &Path, tensors: &[Tensor]) {
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()))
        .collect();
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// A model of one layer whose query matrix is `n x k`; everything else are ones in floats.
fn config(n: usize, k: usize) -> Value {
    json!({ "model_type": "llama", "hidden_size": k, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": n, "vocab_size": 4, "tie_word_embeddings": true })
}

fn floats(n: usize, k: usize) -> Vec<Tensor> {
    let mut list = vec![("model.embed_tokens", vec![4, k]), ("model.norm", vec![k])];
    list.extend([("model.layers.0.input_layernorm", vec![k]), ("model.layers.0.post_attention_layernorm", vec![k])]);
    for (name, rows, columns) in [("k", n, k), ("v", n, k), ("o", k, n)] {
        let name = if name == "k" {
            "k_proj"
        } else if name == "v" {
            "v_proj"
        } else {
            "o_proj"
        };
        list.push((["model.layers.0.self_attn.", name].concat().leak(), vec![rows, columns]));
    }
    for (name, rows, columns) in [("gate_proj", 16, k), ("up_proj", 16, k), ("down_proj", k, 16)] {
        list.push((["model.layers.0.mlp.", name].concat().leak(), vec![rows, columns]));
    }
    list.into_iter()
        .map(|(name, shape)| {
            let count = shape.iter().product();
            (format!("{name}.weight"), Dtype::F32, shape, singles(&vec![1.0; count]))
        })
        .collect()
}

const QUERY: &str = "model.layers.0.self_attn.q_proj";

fn folder(n: usize, k: usize, quantization: Value, parts: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(n, k);
    if !quantization.is_null() {
        config["quantization_config"] = quantization;
    }
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let mut tensors = floats(n, k);
    for (name, dtype, shape, bytes) in parts {
        let name =
            if name.starts_with("self_attn") { format!("model.layers.0.{name}") } else { format!("{QUERY}.{name}") };
        tensors.push((name, *dtype, shape.clone(), bytes.clone()));
    }
    write(&folder.path().join("model.safetensors"), &tensors);
    folder
}

/// The query matrix and the notes, or the error.
fn read(
    n: usize,
    k: usize,
    quantization: Value,
    parts: &[(&str, Dtype, Vec<usize>, Vec<u8>)],
) -> Result<(Linear, Vec<String>), String> {
    let folder = folder(n, k, quantization, parts);
    let checkpoint = Checkpoint::open(folder.path()).map_err(|e| e.to_string())?;
    let layer = checkpoint.layer(0).map_err(|e| e.to_string())?;
    Ok((layer.attention.q, checkpoint.notes()))
}

fn values(n: usize, k: usize, quantization: Value, parts: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> Vec<f32> {
    read(n, k, quantization, parts).unwrap().0.weight.values().into_owned()
}

fn gptq(bits: u8, sym: bool, format: &str) -> Value {
    json!({ "quant_method": "gptq", "bits": bits, "group_size": 16, "sym": sym, "desc_act": false,
        "checkpoint_format": format })
}

/// Words of eight outputs of `8 · rows` inputs, 4 bits: code `(row + 3 · column) % 16`.
fn gptq_words(rows: usize) -> Vec<u8> {
    let word = |r: usize, row: usize| (0..8).fold(0u32, |w, j| w | (code(row, 8 * r + j) as u32) << (4 * j));
    words(&(0..rows).flat_map(|r| (0..8).map(move |row| word(r, row))).collect::<Vec<_>>())
}

/// Eight outputs of 16 inputs, zeros as given, scale 1.
fn gptq_parts(zeros: u32) -> Vec<(&'static str, Dtype, Vec<usize>, Vec<u8>)> {
    vec![
        ("qweight", Dtype::I32, vec![2, 8], gptq_words(2)),
        ("qzeros", Dtype::I32, vec![1, 1], words(&[zeros])),
        ("scales", Dtype::F16, vec![1, 8], halves(&[1.0; 8])),
        ("g_idx", Dtype::I32, vec![16], words(&[0; 16])),
    ]
}

fn code(row: usize, column: usize) -> u8 {
    ((row + 3 * column) % 16) as u8
}

fn codes_less(zero: impl Fn(usize) -> i32) -> Vec<f32> {
    (0..8)
        .flat_map(|row| (0..16).map(move |c| (row, c)))
        .map(|(row, c)| (code(row, c) as i32 - zero(row)) as f32)
        .collect()
}

#[test]
fn gptq_version_1_stores_zeros_less_one_and_version_2_as_they_are() {
    // Fields 0 to 7 of the word hold 0, 1 … 7.
    let zeros = 0x7654_3210;
    assert_eq!(values(8, 16, gptq(4, false, "gptq"), &gptq_parts(zeros)), codes_less(|row| row as i32 + 1));
    assert_eq!(values(8, 16, gptq(4, false, "gptq_v2"), &gptq_parts(zeros)), codes_less(|row| row as i32));
}

#[test]
fn gptq_version_1_zero_of_0_is_all_ones_of_its_own_field() {
    // A masked writer's word for zeros 8, 0, 3, 15, 1, 0, 7, 12.
    let zeros = [8, 0, 3, 15, 1, 0, 7, 12];
    let (linear, notes) = read(8, 16, gptq(4, false, "gptq"), &gptq_parts(0xB6F0_E2F7)).unwrap();
    assert_eq!(linear.weight.values().into_owned(), codes_less(|row| zeros[row]));
    assert!(notes.is_empty(), "{notes:?}");
}

#[test]
fn gptq_words_that_an_unmasked_writer_spoiled_are_told() {
    let (linear, notes) = read(8, 16, gptq(4, false, "gptq"), &gptq_parts(0xFFFF_FFF7)).unwrap();
    assert!(notes.len() == 1 && notes[0].contains("spoiled") && notes[0].contains(QUERY), "{notes:?}");
    // What is there is read as AutoGPTQ reads it: the lost zeros are 0.
    assert_eq!(linear.weight.values().into_owned(), codes_less(|row| if row == 0 { 8 } else { 0 }));
}

#[test]
fn gptq_symmetric_zeros_are_believed_over_the_declared_version() {
    for (declared, word, version) in [("gptq", 0x8888_8888u32, 2), ("gptq_v2", 0x7777_7777, 1)] {
        let (linear, notes) = read(8, 16, gptq(4, true, declared), &gptq_parts(word)).unwrap();
        assert_eq!(linear.weight.values().into_owned(), codes_less(|_| 8), "{declared}");
        assert!(notes.iter().any(|n| n.contains(&format!("those of version {version}"))), "{declared}: {notes:?}");
    }
    let (_, notes) = read(8, 16, gptq(4, true, "gptq"), &gptq_parts(0x7777_7777)).unwrap();
    assert!(notes.is_empty(), "{notes:?}");
}

#[test]
fn gptq_zeros_that_differ_are_zeros_whatever_sym_says() {
    assert_eq!(values(8, 16, gptq(4, true, "gptq"), &gptq_parts(0x7654_3210)), codes_less(|row| row as i32 + 1));
}

#[test]
fn gptq_act_order_columns_take_the_scale_of_their_group() {
    // Columns fall into the two groups in no order.
    let groups: Vec<u32> = (0..32).map(|c| (7 * c + c / 5) % 2).collect();
    assert!(groups.windows(2).any(|g| g[0] > g[1]) && groups.iter().filter(|g| **g == 1).count() == 16);
    let parts = [
        ("qweight", Dtype::I32, vec![4, 8], gptq_words(4)),
        ("qzeros", Dtype::I32, vec![2, 1], words(&[0x7777_7777, 0x7777_7777])),
        ("scales", Dtype::F16, vec![2, 8], halves(&[[1.0; 8], [0.5; 8]].concat())),
        ("g_idx", Dtype::I32, vec![32], words(&groups)),
    ];
    let mut config = gptq(4, true, "gptq");
    config["desc_act"] = true.into();
    let (linear, _) = read(8, 32, config, &parts).unwrap();
    for (i, w) in linear.weight.values().iter().enumerate() {
        let (row, c) = (i / 32, i % 32);
        let scale = if groups[c] == 1 { 0.5 } else { 1.0 };
        assert_eq!(*w, scale * (code(row, c) as f32 - 8.0), "row {row}, column {c}");
    }
    // The kernels' layout puts columns in order and inputs with them.
    let device = bitsmith_runtime::open("cpu:1").unwrap();
    let x: Vec<f32> = (0..32).map(|c| 0.25 * c as f32 - 1.0).collect();
    let run =
        |executor: &dyn bitsmith_calibrate::engine::Executor| executor.prepare(&linear).unwrap().apply(&x, 1).unwrap();
    let (dense, kernels) =
        (run(&Dense { activations: Activations::Floats }), run(&bitsmith_calibrate::engine::Kernels::new(device)));
    dense.iter().zip(&kernels).for_each(|(a, b)| assert!((a - b).abs() < 1e-4, "{a} {b}"));
}

#[test]
fn gptq_three_bit_fields_straddle_words_along_k_and_along_n() {
    // 32 inputs and 32 outputs: three words each way; code (row + column) % 8, zero - 1 is row % 8.
    let stream = |fields: &mut dyn Iterator<Item = u32>| -> [u32; 3] {
        let wide = fields.enumerate().fold(0u128, |w, (i, field)| w | (field as u128) << (3 * i));
        [wide as u32, (wide >> 32) as u32, (wide >> 64) as u32]
    };
    let columns: Vec<[u32; 3]> = (0..32u32).map(|row| stream(&mut (0..32).map(|c| (row + c) % 8))).collect();
    let q: Vec<u32> = (0..3).flat_map(|r| columns.iter().map(move |words| words[r])).collect();
    let zeros = stream(&mut (0..32).map(|row| row % 8));
    let mut config = gptq(3, false, "gptq");
    config["group_size"] = (-1).into();
    let found = values(
        32,
        32,
        config,
        &[
            ("qweight", Dtype::I32, vec![3, 32], words(&q)),
            ("qzeros", Dtype::I32, vec![1, 3], words(&zeros)),
            ("scales", Dtype::F16, vec![1, 32], halves(&[2.0; 32])),
            ("g_idx", Dtype::I32, vec![32], words(&[0; 32])),
        ],
    );
    for (i, w) in found.iter().enumerate() {
        let (row, c) = (i as i32 / 32, i as i32 % 32);
        // Version 1 adds 1 and keeps three bits: a stored 7 is a zero of 0.
        assert_eq!(*w, 2.0 * ((row + c) % 8 - (row % 8 + 1) % 8) as f32, "row {row}, column {c}");
    }
}

#[test]
fn gptq_layers_that_a_rule_leaves_out_stay_floats_and_others_have_their_own_bits() {
    let mut config = gptq(4, true, "gptq");
    config["dynamic"] = json!({ "-:.*k_proj": {}, "+:.*q_proj": { "bits": 8, "group_size": -1 } });
    let q: Vec<u32> =
        (0..4).flat_map(|r| (0..4).map(move |row| 0x0404_0404u32 * r as u32 + 0x8080_8080 + row)).collect();
    let parts = [
        ("qweight", Dtype::I32, vec![4, 4], words(&q)),
        ("qzeros", Dtype::I32, vec![1, 1], words(&[0x7f7f_7f7f])),
        ("scales", Dtype::F16, vec![1, 4], halves(&[1.0; 4])),
    ];
    let found = values(4, 16, config, &parts);
    for (i, w) in found.iter().enumerate() {
        let (row, c) = (i / 16, i % 16);
        assert_eq!(*w, (4 * (c / 4) + if c % 4 == 0 { row } else { 0 }) as f32, "row {row}, column {c}");
    }
}

#[test]
fn layouts_that_no_container_knows_are_refused_by_name() {
    for (config, named) in [
        (gptq(4, true, "marlin"), "marlin"),
        (gptq(5, true, "gptq"), "5 bits"),
        (gptq(4, true, "gptq_p"), "gptq_p"),
        (json!({ "quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemv" }), "gemv"),
        (json!({ "quant_method": "awq", "bits": 3, "group_size": 16 }), "3 bits"),
        (json!({ "quant_method": "exl2" }), "exl2"),
        (json!({ "quant_method": "exl3" }), "exl3"),
        (json!({ "quant_method": "bitsandbytes", "load_in_8bit": true }), "8 bits"),
        (json!({ "quant_method": "quip" }), "quip"),
    ] {
        let error = read(8, 16, config, &gptq_parts(0x7777_7777)).unwrap_err();
        assert!(error.contains(named) && error.contains("accepted"), "{error}");
    }
}

#[test]
fn awq_nibbles_lie_in_the_order_0_2_4_6_1_3_5_7_and_zeros_are_not_less_one() {
    const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
    let pack = |of: &dyn Fn(usize) -> u32| (0..8).fold(0u32, |w, i| w | of(ORDER[i]) << (4 * i));
    let q: Vec<u32> = (0..16).map(|c| pack(&|row| code(row, c) as u32)).collect();
    let zeros = pack(&|row| row as u32 + 2);
    let found = values(
        8,
        16,
        json!({ "quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": true, "version": "gemm" }),
        &[
            ("qweight", Dtype::I32, vec![16, 1], words(&q)),
            ("qzeros", Dtype::I32, vec![1, 1], words(&[zeros])),
            ("scales", Dtype::F16, vec![1, 8], halves(&[1.0; 8])),
        ],
    );
    assert_eq!(found, codes_less(|row| row as i32 + 2));
}

fn ct(bits: u8, symmetric: bool, more: Value) -> Value {
    let mut weights = json!({ "num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "channel" });
    more.as_object().unwrap().iter().for_each(|(key, value)| weights[key] = value.clone());
    json!({ "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "config_groups": { "group_0": { "targets": ["Linear"], "weights": weights } }, "ignore": [] })
}

#[test]
fn compressed_tensors_codes_have_an_offset_and_zeros_are_signed_and_packed_along_n() {
    // Signed codes -8 … 7 are stored plus 8; signed zeros -4 … 3 too, one per row, packed along rows.
    let q: Vec<u32> = (0..8)
        .flat_map(|row| (0..2).map(move |r| (0..8).fold(0u32, |w, j| w | (code(row, 8 * r + j) as u32) << (4 * j))))
        .collect();
    let zeros = (0..8).fold(0u32, |w, row| w | (row + 4) << (4 * row));
    let parts = [
        ("weight_packed", Dtype::I32, vec![8, 2], words(&q)),
        ("weight_scale", Dtype::F16, vec![8, 1], halves(&[1.0; 8])),
        ("weight_zero_point", Dtype::I32, vec![1, 1], words(&[zeros])),
        ("weight_shape", Dtype::I64, vec![2], [8i64, 16].iter().flat_map(|x| x.to_le_bytes()).collect()),
    ];
    assert_eq!(values(8, 16, ct(4, false, json!({})), &parts), codes_less(|row| row as i32 + 4));
    // Without zeros the offset alone is taken off.
    let symmetric = [parts[0].clone(), parts[1].clone(), parts[3].clone()];
    assert_eq!(values(8, 16, ct(4, true, json!({})), &symmetric), codes_less(|_| 8));
}

/// 48 columns: 5 words padded, 5 dense; 64 columns: 7 words padded, 6 dense.
#[test]
fn compressed_tensors_three_bits_of_both_generations_are_told_apart_or_refused() {
    let field = |row: usize, c: usize| ((row + 3 * c) % 8) as u32;
    let dense = |row: usize, k: usize| -> Vec<u32> {
        let mut out = vec![0u32; (3 * k).div_ceil(32)];
        for c in 0..k {
            let wide = (field(row, c) as u64) << (3 * c % 32);
            out[3 * c / 32] |= wide as u32;
            if wide >> 32 != 0 {
                out[3 * c / 32 + 1] |= (wide >> 32) as u32;
            }
        }
        out
    };
    let padded = |row: usize, k: usize| -> Vec<u32> {
        (0..k.div_ceil(10))
            .map(|w| (0..10.min(k - 10 * w)).fold(0, |x, j| x | field(row, 10 * w + j) << (3 * j)))
            .collect()
    };
    for (k, old) in [(64, false), (64, true), (48, false), (48, true)] {
        let q: Vec<u32> = (0..8).flat_map(|row| if old { padded(row, k) } else { dense(row, k) }).collect();
        let parts = [
            ("weight_packed", Dtype::I32, vec![8, q.len() / 8], words(&q)),
            ("weight_scale", Dtype::F16, vec![8, 1], halves(&[1.0; 8])),
            ("weight_shape", Dtype::I64, vec![2], [8i64, k as i64].iter().flat_map(|x| x.to_le_bytes()).collect()),
        ];
        let found = read(8, k, ct(3, true, json!({})), &parts);
        if old && k == 48 {
            let error = found.unwrap_err();
            assert!(error.contains("dense or padded") && error.contains(QUERY), "{error}");
            continue;
        }
        for (i, w) in found.unwrap().0.weight.values().iter().enumerate() {
            assert_eq!(*w, field(i / k, i % k) as f32 - 4.0, "k {k}, old {old}, {i}");
        }
    }
}

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

/// NF4: high nibbles are even elements, in one flat row; nested scales have the mean taken off, and it is added again.
#[test]
fn bitsandbytes_high_nibbles_come_first_and_nested_scales_have_an_offset() {
    let state = |nested: bool| {
        let mut state = json!({ "quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [2, 64] });
        if nested {
            (state["nested_blocksize"], state["nested_offset"]) = (256.into(), 0.75.into());
        }
        state.to_string().into_bytes()
    };
    const NAME: &str = "weight.quant_state.bitsandbytes__nf4";
    let config = json!({ "quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4" });
    let map = singles(&[
        -1.0,
        -0.6961928,
        -0.52507305,
        -0.3949175,
        -0.28444138,
        -0.18477343,
        -0.091050036,
        0.0,
        0.0795803,
        0.1609302,
        0.2461123,
        0.33791524,
        0.44070983,
        0.562617,
        0.72295684,
        1.0,
    ]);
    // Codes 15 (1) and 0 (-1) in turn; scales 2 and 3.
    let bytes = vec![0xf0u8; 64];
    let found = values(
        2,
        64,
        config.clone(),
        &[
            ("weight", Dtype::U8, vec![64, 1], bytes.clone()),
            ("weight.absmax", Dtype::F32, vec![2], singles(&[2.0, 3.0])),
            ("weight.quant_map", Dtype::F32, vec![16], map.clone()),
            (NAME, Dtype::U8, vec![state(false).len()], state(false)),
        ],
    );
    assert_eq!(found, [[2.0, -2.0].repeat(32), [3.0, -3.0].repeat(32)].concat());
    // Nested: code 255 of the map is 1, so the scale is 1 · nested + offset.
    let format: bitsmith_compiler::format::Format = "nf4-dq".parse().unwrap();
    let made = format.encode(&[0.5f32; 128], 2, 64, None).unwrap();
    let parts = (format.container.pack)(&made).unwrap();
    let nested = parts.iter().find(|p| p.name == "nested_quant_map").unwrap().bytes.clone();
    let found = values(
        2,
        64,
        config,
        &[
            ("weight", Dtype::U8, vec![64, 1], bytes),
            ("weight.absmax", Dtype::U8, vec![2], vec![255, 255]),
            ("weight.quant_map", Dtype::F32, vec![16], map),
            ("weight.nested_absmax", Dtype::F32, vec![1], singles(&[0.5])),
            ("weight.nested_quant_map", Dtype::F32, vec![256], nested),
            (NAME, Dtype::U8, vec![state(true).len()], state(true)),
        ],
    );
    assert_eq!(found, [1.25, -1.25].repeat(64));
}

/// HQQ of 4 bits: rows of groups in two halves, the first in high nibbles; zeros are floats and are taken off before scaling.
#[test]
fn hqq_halves_lie_in_high_and_low_nibbles_and_zeros_are_floats() {
    let int = |x: i64| x.to_le_bytes().to_vec();
    let parts = [
        ("W_q", Dtype::U8, vec![2, 16], vec![0x5au8; 32]),
        ("scale", Dtype::F16, vec![4, 1], halves(&[1.0, 2.0, 0.5, 0.25])),
        ("zero", Dtype::F16, vec![4, 1], halves(&[0.5, 1.5, 2.0, 8.0])),
        ("nbits", Dtype::I64, vec![], int(4)),
        ("group_size", Dtype::I64, vec![], int(16)),
        ("axis", Dtype::I64, vec![], int(1)),
    ];
    // Two outputs of 32 inputs: groups 0 and 1 are row 0, in the high nibbles (5); 2 and 3 are row 1, in the low ones (10).
    let found = values(2, 32, json!({ "quant_method": "hqq" }), &parts);
    assert_eq!(found, [[4.5; 16], [7.0; 16], [4.0; 16], [0.5; 16]].concat());
    let mut other = parts.to_vec();
    other[5].3 = int(0);
    assert!(read(2, 32, json!({ "quant_method": "hqq" }), &other).unwrap_err().contains("axis 0"));
}

#[test]
fn tied_embeddings_may_have_either_name() {
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        let folder = tempfile::tempdir().unwrap();
        let mut tensors = floats(8, 16);
        tensors.push((format!("{QUERY}.weight"), Dtype::F32, vec![8, 16], singles(&[0.1; 128])));
        let embedding: Vec<f32> = (0..64).map(|i| (i as f32 * 0.37).sin()).collect();
        tensors[0] = (name.into(), Dtype::F32, vec![4, 16], singles(&embedding));
        write(&folder.path().join("model.safetensors"), &tensors);
        std::fs::write(folder.path().join("config.json"), config(8, 16).to_string()).unwrap();
        let model = Checkpoint::open(folder.path()).unwrap().model().unwrap();
        assert!(model.head.is_none() && model.embedding.name == "model.embed_tokens", "{name}");
        let logits = Engine::new(&model, &Dense { activations: Activations::Floats }).unwrap().logits(&[1, 2]).unwrap();
        assert!(logits.iter().all(|x| x.is_finite()) && logits.len() == 8);
    }
}

#[test]
fn a_shard_that_is_missing_or_holds_other_tensors_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = floats(8, 16);
    tensors.push((format!("{QUERY}.weight"), Dtype::F32, vec![8, 16], singles(&[0.1; 128])));
    let (first, second) = tensors.split_at(4);
    let place = |at: usize| format!("model-0000{at}-of-00002.safetensors");
    write(&folder.path().join(place(1)), first);
    let mut places = serde_json::Map::new();
    for (at, list) in [(1, first), (2, second)] {
        list.iter().for_each(|(name, ..)| _ = places.insert(name.clone(), place(at).into()));
    }
    std::fs::write(folder.path().join("config.json"), config(8, 16).to_string()).unwrap();
    let index = |places: &serde_json::Map<String, Value>| {
        let text = json!({ "metadata": {}, "weight_map": places }).to_string();
        std::fs::write(folder.path().join("model.safetensors.index.json"), text).unwrap();
    };
    index(&places);
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains(&place(2)), "{error}");
    write(&folder.path().join(place(2)), &second[1..]);
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains(&second[0].0) && error.contains(&place(2)), "{error}");
    write(&folder.path().join(place(2)), second);
    Checkpoint::open(folder.path()).unwrap().model().unwrap();
    // A tensor that the index forgets is still found in the shard that holds it.
    places.remove(&second[0].0);
    index(&places);
    Checkpoint::open(folder.path()).unwrap().model().unwrap();
}

#[test]
fn a_missing_tensor_is_named_with_its_layer() {
    let error = read(8, 16, Value::Null, &[]).unwrap_err();
    assert!(error.contains(&format!("{QUERY}.weight")), "{error}");
}
