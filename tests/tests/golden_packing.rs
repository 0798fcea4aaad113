//! Containers against the files of other tools: their bytes read as the known values, and written again as the same bytes.
//!
//! Reads `golden/packing` of the shared data; skipped by name where that is absent.

use bitsmith_compiler::format::{Format, Part, PartType, Quantized};
use safetensors::{Dtype, SafeTensors};

/// A file of tensors.
struct File {
    bytes: Vec<u8>,
}

impl File {
    fn open(name: &str, test: &str) -> Option<File> {
        let path = bitsmith_tests::data(&format!("golden/packing/{name}.safetensors"), test)?;
        Some(File { bytes: std::fs::read(path).unwrap() })
    }

    /// A tensor as a part of another name.
    fn part(&self, tensor: &str, name: &'static str) -> Part {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = file.tensor(tensor).unwrap();
        let dtype = match view.dtype() {
            Dtype::U8 => PartType::U8,
            Dtype::I8 => PartType::I8,
            Dtype::I32 => PartType::I32,
            Dtype::F16 => PartType::F16,
            Dtype::F32 => PartType::F32,
            other => panic!("{tensor}: {other:?}"),
        };
        Part { name, dtype, shape: view.shape().to_vec(), bytes: view.data().to_vec() }
    }

    fn floats(&self, tensor: &str) -> Vec<f32> {
        let part = self.part(tensor, "floats");
        match part.dtype {
            PartType::F32 => part.bytes.chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect(),
            PartType::F16 => {
                part.bytes.chunks_exact(2).map(|c| half::f16::from_le_bytes(c.try_into().unwrap()).to_f32()).collect()
            }
            PartType::I8 => part.bytes.iter().map(|b| *b as i8 as f32).collect(),
            other => panic!("{tensor}: {other:?}"),
        }
    }
}

fn unpack(format: &Format, n: usize, k: usize, parts: &[Part]) -> Quantized {
    (format.container.unpack)(format, n, k, parts).unwrap_or_else(|error| panic!("{format}: {error}"))
}

/// Writes the matrix and compares every part of the file.
fn packs_as(q: &Quantized, expected: &[Part]) {
    let found = (q.format.container.pack)(q).unwrap();
    for part in expected {
        let ours = found.iter().find(|ours| ours.name == part.name).unwrap_or_else(|| panic!("no {}", part.name));
        assert_eq!((&ours.dtype, &ours.shape), (&part.dtype, &part.shape), "{}: {}", q.format, part.name);
        assert!(ours.bytes == part.bytes, "{}: {} differs", q.format, part.name);
    }
}

/// Every value is the file's, within `relative` of the largest.
fn values_are(q: &Quantized, expected: &[f32], relative: f32) {
    let found = q.dequantize();
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |a, b| a.max(b.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= relative * largest, "{}: {i}: {found}, file {expected}", q.format);
    }
}

#[test]
fn gptq() {
    for (name, format) in [
        ("gptq_b2_asym_g64_noact", "gptq-int2-g64-asym"),
        ("gptq_b3_sym_g32_noact", "gptq-int3-g32"),
        ("gptq_b4_sym_g64_noact", "gptq-int4-g64"),
        ("gptq_b4_asym_g32_noact", "gptq-int4-g32-asym"),
        ("gptq_b8_sym_g64_noact", "gptq-int8-g64"),
    ] {
        let Some(file) = File::open(name, &format!("gptq::{name}")) else { return };
        let parts = [
            file.part("qweight", "qweight"),
            file.part("qzeros", "qzeros"),
            file.part("scales", "scales"),
            file.part("g_idx_ckpt", "g_idx"),
        ];
        let format: Format = format.parse().unwrap();
        let q = unpack(&format, 64, 128, &parts);
        // The file's scales are f16, its Wq was made with f32 ones.
        values_are(&q, &file.floats("Wq"), 1e-3);
        if let bitsmith_compiler::format::Zero::Int(_) = format.zero {
            let zeros: Vec<f32> = q.zeros.iter().map(|zero| *zero as f32).collect();
            assert_eq!(zeros, file.floats("zero"));
        }
        packs_as(&q, &parts);
        // The same codes as version 2 store every zero one higher.
        let v2: Format = format!("{format}-v2").parse().unwrap();
        let written = (v2.container.pack)(&Quantized { format: v2, ..q.clone() }).unwrap();
        assert_eq!(Quantized { format, ..unpack(&v2, 64, 128, &written) }, q);
        assert!(written[1].bytes != parts[1].bytes && written[0].bytes == parts[0].bytes);
        if !name.contains("asym") {
            let error = (v2.container.unpack)(&v2, 64, 128, &parts).unwrap_err().to_string();
            assert!(error.contains("other GPTQ version"), "{error}");
            let error = (format.container.unpack)(&format, 64, 128, &written).unwrap_err().to_string();
            assert!(error.contains("other GPTQ version"), "{error}");
            let version = |part: &Part| bitsmith_compiler::format::gptq::version(&part.bytes, format.code.bits());
            assert_eq!((version(&parts[1]), version(&written[1])), (Some(1), Some(2)));
        }
    }
}

/// The act-order file has no packed tensors: its matrix, with its group indices, is packed here and must come back.
#[test]
fn gptq_act_order() {
    let Some(file) = File::open("gptq_b4_asym_g64_act", "gptq_act_order") else { return };
    let (n, k) = (64, 128);
    let format: Format = "gptq-int4-g64-asym-f32".parse().unwrap();
    let (wq, scale, zero) = (file.floats("Wq"), file.floats("scale"), file.floats("zero"));
    let order: Vec<u32> =
        file.part("g_idx", "g_idx").bytes.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect();
    assert!(order.windows(2).any(|pair| pair[0] > pair[1]), "groups are in order");
    let codes = (0..n * k)
        .map(|i| {
            let granule = i / k * 2 + order[i % k] as usize;
            (wq[i] / scale[granule] + zero[granule]).round() as u8
        })
        .collect();
    let q = Quantized {
        format,
        n,
        k,
        codes,
        scales: scale.iter().map(|scale| scale.to_bits()).collect(),
        outer: vec![],
        zeros: zero.iter().map(|zero| *zero as u32).collect(),
        zeros_outer: vec![],
        scale_offset: 0.0,
        order: Some(order),
    };
    values_are(&q, &wq, 1e-6);
    let parts = (format.container.pack)(&q).unwrap();
    assert_eq!(parts.iter().find(|part| part.name == "g_idx").unwrap().bytes, file.part("g_idx", "g_idx").bytes);
    assert_eq!(unpack(&format, n, k, &parts), q);
}

#[test]
fn gptq_zero_of_zero() {
    let Some(path) = bitsmith_tests::data("golden/packing/gptq_v1_zero0_trap.json", "gptq_zero_of_zero") else {
        return;
    };
    let trap: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let numbers = |key: &str| -> Vec<u32> {
        trap[key].as_array().unwrap().iter().map(|number| number.as_u64().unwrap() as u32).collect()
    };
    let word = |key: &str| u32::from_str_radix(trap[key].as_str().unwrap(), 16).unwrap().to_le_bytes().to_vec();
    let format: Format = "gptq-int4-g32-asym".parse().unwrap();
    let (n, k) = (8, 32);
    let mut q = format.encode(&vec![0.25; n * k], n, k, None).unwrap();
    q.zeros = numbers("true_zeros");
    let mut parts = (format.container.pack)(&q).unwrap();
    assert_eq!(parts[1].bytes, word("masked_word"));
    assert_eq!(unpack(&format, n, k, &parts), q);
    parts[1].bytes = word("autogptq_word");
    assert_eq!(unpack(&format, n, k, &parts).zeros, numbers("decode_v1_of_autogptq_word"));
}

#[test]
fn awq() {
    let Some(file) = File::open("awq_gemm_g64", "awq") else { return };
    let names = ["qweight", "qzeros", "scales"];
    let parts = names.map(|name| file.part(name, name));
    let format: Format = "awq-g64".parse().unwrap();
    let q = unpack(&format, 64, 128, &parts);
    let turned = file.floats("deq_KxN");
    values_are(&q, &(0..64 * 128).map(|i| turned[i % 128 * 64 + i / 128]).collect::<Vec<_>>(), 1e-3);
    assert_eq!(q.zeros.iter().map(|zero| *zero as f32).collect::<Vec<_>>(), file.floats("zero"));
    packs_as(&q, &parts);
    // The same weights as AutoAWQ repacked them for GPTQ, version 1.
    let gptq: Format = "gptq-int4-g64-asym".parse().unwrap();
    packs_as(
        &Quantized { format: gptq, ..q },
        &[file.part("exllama_qweight", "qweight"), file.part("exllama_qzeros", "qzeros")],
    );
}

#[test]
fn compressed_tensors_integers() {
    for bits in [3u32, 4, 8] {
        let Some(file) = File::open(&format!("ct_pack_int{bits}"), &format!("compressed_tensors_int{bits}")) else {
            return;
        };
        let (n, k) = (6, 70);
        let format: Format = format!("ct-int{bits}-channel-f32").parse().unwrap();
        let packed = file.part("packed_dim1", "weight_packed");
        let ones = Part {
            name: "weight_scale",
            dtype: PartType::F32,
            shape: vec![n, 1],
            bytes: 1.0f32.to_le_bytes().repeat(n),
        };
        let q = unpack(&format, n, k, &[packed.clone(), ones]);
        assert_eq!(q.dequantize(), file.floats("value"));
        packs_as(&q, &[packed]);
        // Zeros lie along N: with 70 groups of one row of zeros each, they are the other packing of the same numbers.
        let asym: Format = format!("ct-int{bits}-g16-asym-f32").parse().unwrap();
        let (n, k) = (6, 70 * 16);
        let mut zeros = asym.encode(&vec![0.5; n * k], n, k, None).unwrap();
        zeros.zeros = q.codes.iter().map(|code| *code as u32).collect();
        packs_as(&zeros, &[file.part("packed_dim0", "weight_zero_point")]);
        let parts = (asym.container.pack)(&zeros).unwrap();
        assert_eq!(unpack(&asym, n, k, &parts), zeros);
    }
}

/// Before 2026-05 three-bit values were stored ten to a word.
#[test]
fn compressed_tensors_old_three_bit_words() {
    let format: Format = "ct-int3-g128".parse().unwrap();
    let (n, k) = (2, 384);
    let w: Vec<f32> = (0..n * k).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    let q = format.encode(&w, n, k, None).unwrap();
    let mut parts = (format.container.pack)(&q).unwrap();
    assert_eq!(parts[0].shape, [n, 36]);
    let old = q.codes.chunks_exact(k).flat_map(|row| {
        row.chunks(10).map(|ten| ten.iter().enumerate().fold(0u32, |word, (i, code)| word | (*code as u32) << (3 * i)))
    });
    parts[0].bytes = old.flat_map(u32::to_le_bytes).collect();
    parts[0].shape = vec![n, 39];
    assert_eq!(unpack(&format, n, k, &parts), q);
    // At 70 columns both take 7 words: padding in every word may be either, and is refused.
    let narrow: Format = "ct-int3-channel".parse().unwrap();
    let mut parts = (narrow.container.pack)(&narrow.encode(&w[..140], 2, 70, None).unwrap()).unwrap();
    parts[0].bytes.chunks_exact_mut(4).for_each(|word| word[3] &= 0x3F);
    let error = (narrow.container.unpack)(&narrow, 2, 70, &parts).unwrap_err().to_string();
    assert!(error.contains("dense or padded"), "{error}");
}

#[test]
fn compressed_tensors_fp4() {
    let Some(file) = File::open("ct_fp4_pack", "compressed_tensors_fp4") else { return };
    let (n, k) = (4, 64);
    let format: Format = "nvfp4".parse().unwrap();
    let parts = [
        file.part("packed", "weight_packed"),
        // E4M3 1.0 is 0x38; the global scale divides, so 0.5 doubles.
        Part { name: "weight_scale", dtype: PartType::E4m3fn, shape: vec![n, 4], bytes: vec![0x38; n * 4] },
        Part {
            name: "weight_global_scale",
            dtype: PartType::F32,
            shape: vec![1],
            bytes: 0.5f32.to_le_bytes().to_vec(),
        },
    ];
    let q = unpack(&format, n, k, &parts);
    let doubled: Vec<f32> = file.floats("value").iter().map(|x| x * 2.0).collect();
    assert_eq!(q.dequantize(), doubled);
    packs_as(&q, &parts);
}

#[test]
fn bitsandbytes_nf4() {
    for (name, format) in [("bnb_nf4_single", "nf4"), ("bnb_nf4_double", "nf4-dq")] {
        let Some(file) = File::open(name, &format!("bitsandbytes_nf4::{name}")) else { return };
        let (n, k) = (64, 256);
        let format: Format = format.parse().unwrap();
        let mut parts =
            vec![file.part("packed", "weight"), file.part("absmax", "absmax"), file.part("quant_map", "quant_map")];
        if name.ends_with("double") {
            parts.push(file.part("nested_absmax", "nested_absmax"));
            parts.push(file.part("nested_quant_map", "nested_quant_map"));
            let state: serde_json::Value =
                serde_json::from_slice(&file.part("bitsandbytes__nf4", "state").bytes).unwrap();
            let offset = state["nested_offset"].as_f64().unwrap() as f32;
            parts.push(Part {
                name: "nested_offset",
                dtype: PartType::F32,
                shape: vec![1],
                bytes: offset.to_le_bytes().to_vec(),
            });
        }
        let q = unpack(&format, n, k, &parts);
        values_are(&q, &file.floats("deq"), if name.ends_with("double") { 1e-6 } else { 0.0 });
        packs_as(&q, &parts);
        // Our quantizer finds the tool's own bytes where scales are stored as they are. Where they are quantized, the tool
        // takes codes under the scales from before, we under those that are stored; and it looks scales up in a coarse
        // table, so that a few of its codes are not the nearest.
        let ours = format.encode(&file.floats("W"), n, k, None).unwrap();
        if name.ends_with("double") {
            packs_as(&ours, &parts[2..]);
            let apart: Vec<u32> =
                ours.scales.iter().zip(&q.scales).map(|(a, b)| a.abs_diff(*b)).filter(|d| *d > 0).collect();
            assert!(apart.len() <= 4 && apart.iter().all(|d| *d == 1), "{apart:?}");
        } else {
            packs_as(&ours, &parts);
        }
    }
}
