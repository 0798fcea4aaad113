//! AWQ, compressed-tensors, HQQ and bitsandbytes: the order of nibbles and words, offsets, nested scales.

use super::integers::{code, codes_less};
use super::{QUERY, halves, read, singles, values, words};
use crate::support;
use safetensors::Dtype;
use serde_json::{Value, json};

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

pub fn ct(bits: u8, symmetric: bool, more: Value) -> Value {
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

/// A matrix that HQQ itself quantized and packed: every number is the one that HQQ makes of it, to a last bit.
#[test]
fn hqq_packs_as_hqq_itself() {
    let Some(data) = support::data("golden/packing/hqq_b4_axis1_opt.safetensors", "hqq_packs_as_hqq_itself") else {
        return;
    };
    let file = bitsmith_calibrate::file::SafeTensorsFile::open(&data).unwrap();
    let bytes = |name: &str| file.data(file.tensor(name).unwrap()).to_vec();
    let parts = [
        ("W_q", Dtype::U8, vec![64, 64], bytes("W_q")),
        ("scale", Dtype::F32, vec![128, 1], bytes("scale")),
        ("zero", Dtype::F32, vec![128, 1], bytes("zero")),
        ("nbits", Dtype::I64, vec![], 4i64.to_le_bytes().to_vec()),
        ("group_size", Dtype::I64, vec![], 64i64.to_le_bytes().to_vec()),
        ("axis", Dtype::I64, vec![], 1i64.to_le_bytes().to_vec()),
    ];
    let found = values(64, 128, json!({ "quant_method": "hqq" }), &parts);
    let expected = bytes("deq");
    let expected: Vec<f32> = expected.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
    // HQQ rounds twice in `f32`, after taking the zero off and after scaling; ours is rounded once.
    for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
        assert!((a - b).abs() <= 2.0f32.powi(-22) * b.abs(), "{i}: {a} is not {b}");
    }
    assert_eq!(found.len(), expected.len());
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
