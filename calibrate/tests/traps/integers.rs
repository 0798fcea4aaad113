//! GPTQ: zeros of two versions, act-order, fields that straddle words, rules per layer, and what is refused.

use super::{QUERY, halves, read, values, words};
use bitsmith_calibrate::engine::{Activations, Dense};
use safetensors::Dtype;
use serde_json::{Value, json};

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

pub fn code(row: usize, column: usize) -> u8 {
    ((row + 3 * column) % 16) as u8
}

pub fn codes_less(zero: impl Fn(usize) -> i32) -> Vec<f32> {
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
    let groups: Vec<u32> = (0..32).map(|c| 5 * c % 32 / 16).collect();
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
