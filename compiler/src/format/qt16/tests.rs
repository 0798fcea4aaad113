//! Round trips over widths, classes and orders, and places against the formulas of fragments.

use super::*;
use crate::format::Code;

/// The column of value `v` of lane `t` in a tile: class F16 holds four per step of 16, class B8 eight per step of 32.
fn column(class: Class, t: usize, v: usize) -> usize {
    match class {
        Class::F16 => 16 * (v / 4) + [2 * t, 2 * t + 1, 2 * t + 8, 2 * t + 9][v % 4],
        Class::B8 => 32 * (v / 8) + 4 * t + v % 4 + if v % 8 < 4 { 0 } else { 16 },
    }
}

/// The bit of value `v` in the 8 bytes of a row of a lane's chunk, as the module's page says.
fn bit(class: Class, width: usize, v: usize) -> usize {
    let per_word = 32 / width;
    let (word, v) = (v / per_word, v % per_word);
    let within = match (class, width) {
        (Class::F16, 8) => 8 * [0, 2, 1, 3].iter().position(|&x| x == v).unwrap(),
        (Class::F16, 4) => 4 * [0, 2, 4, 6, 1, 3, 5, 7].iter().position(|&x| x == v).unwrap(),
        (Class::F16, _) => 16 * (v % 2) + width * (v / 2),
        (Class::B8, 8) => 8 * v,
        (Class::B8, 4) => 4 * [0, 4, 1, 5, 2, 6, 3, 7].iter().position(|&x| x == v).unwrap(),
        (Class::B8, _) => 8 * (v % 4) + width * (v / 4),
    };
    32 * word + within
}

#[test]
fn lanes_find_their_fragments() {
    for class in [Class::F16, Class::B8] {
        for order in [LaneOrder::Gt, LaneOrder::Tg] {
            for width in [1u8, 2, 4, 8] {
                let layout = strip_layout(width, class, order);
                assert_eq!(layout.size(), STRIP as u64 * 8);
                for (g, t, half, tile) in (0..8 * 4 * 2 * 4).map(|i| (i % 8, i / 8 % 4, i / 32 % 2, i / 64)) {
                    let lane = if order == LaneOrder::Gt { 4 * g + t } else { 8 * t + g };
                    for v in 0..64 / width as usize {
                        let at = Coords::ORIGIN
                            .with(Dim::N, (16 * tile + 8 * half + g) as u32)
                            .with(Dim::K, column(class, t, v) as u32);
                        let expected = (tile * 32 + lane) * 128 + half * 64 + bit(class, width as usize, v);
                        assert_eq!(layout.address(at), expected, "{class:?} {order:?} {width} bits, lane {lane}, {v}");
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_packed_unpacks() {
    let mut seed = 1u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as u32
    };
    let formats = [
        "int8-channel",
        "int6-g32-asym",
        "int5-g128",
        "int4-g128",
        "uint4-g64-asym",
        "int3-g64-asym",
        "int2-g16-fzero",
        "ternary-g128",
        "binary-channel",
        "log4-g32",
        "fp8e4m3-channel",
        "mxfp4",
        "nf4",
        "q4_k",
        "q6_k",
        "nvfp4",
    ];
    for (name, (n, k)) in formats.into_iter().flat_map(|name| [(64, 512), (37, 1280)].map(|shape| (name, shape))) {
        let format: Format = name.parse().unwrap();
        let values: Vec<f32> = (0..n * k).map(|_| random() as f32 / (1u32 << 30) as f32 - 1.0).collect();
        let q = format.encode(&values, n, k, None).unwrap();
        for class in [Class::F16, Class::B8] {
            for order in [LaneOrder::Gt, LaneOrder::Tg] {
                let (layout, packed) = Qt16::pack(&q, class, order).unwrap();
                assert_eq!(packed.len(), layout.bytes(n), "{name}");
                assert_eq!(layout.unpack(n, &packed).unwrap(), canonical(&q).unwrap(), "{name} {class:?} {order:?}");
            }
        }
        assert!(Qt16::of(&format, k, Class::F16, LaneOrder::Gt).unwrap().unpack(n, &[0]).is_err());
    }
    let nan = Quantized {
        format: "fp8e4m3-channel".parse().unwrap(),
        codes: vec![0x7f; 64],
        ..Format::encode(&"fp8e4m3-channel".parse().unwrap(), &[1.0; 64], 1, 64, None).unwrap()
    };
    assert!(matches!(nan.format.code, Code::Float(_)));
    assert!(Qt16::pack(&nan, Class::B8, LaneOrder::Gt).is_err());
}
