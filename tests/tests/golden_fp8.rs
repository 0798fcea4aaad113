//! Small floats against tables and conversions that `ml_dtypes` made, bit for bit.

use bitsmith_compiler::dtype::DType;
use bitsmith_tests::data;
use std::path::{Path, PathBuf};

/// The files' name for a type, and ours.
const TYPES: [(&str, DType); 11] = [
    ("float8_e4m3fn", DType::E4m3fn),
    ("float8_e4m3fnuz", DType::E4m3fnuz),
    ("float8_e5m2", DType::E5m2),
    ("float8_e5m2fnuz", DType::E5m2fnuz),
    ("float8_e4m3", DType::E4m3),
    ("float8_e3m4", DType::E3m4),
    ("float8_e4m3b11fnuz", DType::E4m3b11fnuz),
    ("float8_e8m0fnu", DType::E8m0),
    ("float4_e2m1fn", DType::E2m1),
    ("float6_e2m3fn", DType::E2m3),
    ("float6_e3m2fn", DType::E3m2),
];

/// One of a type's two ways to encode.
type Encode = fn(DType, f64) -> u32;

fn folder(test: &str) -> Option<PathBuf> {
    data("golden/fp8", test)
}

/// Rows of hexadecimal and other fields, without the heading.
fn csv(path: &Path) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().skip(1).map(|line| line.split(',').map(str::to_string).collect()).collect()
}

fn hex(text: &str) -> u32 {
    u32::from_str_radix(text, 16).unwrap_or_else(|error| panic!("`{text}`: {error}"))
}

#[test]
fn every_type_of_the_vectors_is_tested() {
    let Some(folder) = folder("every_type_of_the_vectors_is_tested") else { return };
    let mut found: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_suffix(".table.csv").map(str::to_string))
        .collect();
    found.sort();
    let mut tested = TYPES.map(|(name, _)| name.to_string());
    tested.sort();
    assert_eq!(found, tested);
}

#[test]
fn decode_gives_the_tables() {
    let Some(folder) = folder("decode_gives_the_tables") else { return };
    for (name, dtype) in TYPES {
        let rows = csv(&folder.join(format!("{name}.table.csv")));
        assert_eq!(rows.len(), 1 << dtype.bits(), "{name}: codes in the table");
        for row in rows {
            let (code, expected) = (hex(&row[0]), f32::from_bits(hex(&row[1])) as f64);
            let found = dtype.decode(code);
            if expected.is_nan() {
                assert!(found.is_nan(), "{name} {code:#04x}: {found}, expected NaN");
            } else {
                assert_eq!(found.to_bits(), expected.to_bits(), "{name} {code:#04x}: {found}, expected {expected}");
            }
        }
    }
}

#[test]
fn facts_agree() {
    let Some(folder) = folder("facts_agree") else { return };
    let text = std::fs::read_to_string(folder.join("info.json")).unwrap();
    let facts: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (name, dtype) in TYPES {
        let facts = &facts[name];
        assert_eq!(dtype.max_finite(), facts["max"].as_f64().unwrap(), "{name}");
        let codes = |wanted: fn(f64) -> bool| -> Vec<u64> {
            (0..1u32 << dtype.bits()).filter(|&code| wanted(dtype.decode(code))).map(u64::from).collect()
        };
        let listed = |key: &str| -> Vec<u64> {
            facts[key].as_array().unwrap().iter().map(|code| code.as_u64().unwrap()).collect()
        };
        let nans = codes(f64::is_nan);
        assert_eq!(nans.len() as u64, facts["n_nan"].as_u64().unwrap(), "{name}");
        // The file lists the first eight.
        assert_eq!(nans[..nans.len().min(8)], listed("nan_codes"), "{name}");
        assert_eq!(codes(f64::is_infinite), listed("inf_codes"), "{name}");
    }
}

#[test]
fn encode_agrees_for_every_f16_and_bf16() {
    let Some(folder) = folder("encode_agrees_for_every_f16_and_bf16") else { return };
    for (name, dtype) in TYPES {
        let files: [(&str, DType, Encode); 3] = [
            ("from_f16_all.bin", DType::F16, DType::encode_nonsaturating),
            ("from_bf16_all.bin", DType::Bf16, DType::encode_nonsaturating),
            ("from_f16_all.sat.bin", DType::F16, DType::encode),
        ];
        for (file, from, encode) in files {
            let path = folder.join(format!("{name}.{file}"));
            // Powers of two have no saturating vectors.
            if dtype == DType::E8m0 && file.ends_with(".sat.bin") {
                continue;
            }
            let expected = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert_eq!(expected.len(), 1 << 16, "{name}.{file}");
            let wrong: Vec<String> = (0..1u32 << 16)
                .map(|bits| (bits, encode(dtype, from.decode(bits)), expected[bits as usize] as u32))
                .filter(|(_, found, expected)| found != expected)
                .map(|(bits, found, expected)| {
                    format!("{bits:#06x} ({}) gave {found:#04x}, expected {expected:#04x}", from.decode(bits))
                })
                .collect();
            assert!(wrong.is_empty(), "{name}.{file}: {} differ: {:#?}", wrong.len(), &wrong[..wrong.len().min(8)]);
        }
    }
}

#[test]
fn encode_agrees_where_f32_is_half_way() {
    let Some(folder) = folder("encode_agrees_where_f32_is_half_way") else { return };
    for (name, dtype) in TYPES {
        let rows = csv(&folder.join(format!("{name}.f32_rounding.csv")));
        assert!(rows.len() > 50, "{name}: only {} rows", rows.len());
        for row in rows {
            let x = f32::from_bits(hex(&row[0]));
            let found = dtype.encode_nonsaturating(x as f64);
            assert_eq!(found, hex(&row[1]), "{name} {x} ({}) to {found:#04x}", row[0]);
            if dtype != DType::E8m0 {
                let found = dtype.encode(x as f64);
                assert_eq!(found, hex(&row[2]), "{name} {x} ({}) saturating to {found:#04x}", row[0]);
            }
        }
    }
}
