//! Every format: names come back, matrices come back, codes are the nearest, hostile parts are refused.
//!
//! Reads `Format::ALL` and a sample of the grammar over all codes, granularities, zeros and scales.

use bitsmith_compiler::error::Error;
use bitsmith_compiler::format::{Code, Format, Part, PartType, Quantized, Zero};
use std::collections::HashSet;

/// All codes × granularities × zeros × scales that the grammar accepts.
fn grammar() -> Vec<Format> {
    let codes = [
        "int2",
        "int3",
        "int4",
        "int5",
        "int6",
        "int7",
        "int8",
        "uint1",
        "uint4",
        "ternary",
        "binary",
        "log2",
        "log3",
        "log4",
        "nf4",
        "iq4nl",
        "fp4",
        "fp8e4m3",
        "fp8e5m2",
        "fp8e4m3fnuz",
        "fp8e5m2fnuz",
    ];
    let granularities = ["tensor", "channel", "g16", "g32", "g48", "g128", "block128", "block4x20"];
    let zeros = ["", "-asym", "-fzero", "-fzero32", "-bias", "-bias3", "-offset", "-asym8"];
    let scales = ["", "-f32", "-f16", "-bf16", "-fp8", "-e8m0", "-dq", "-fp8-dq"];
    let mut formats = vec![];
    for code in codes {
        for granularity in granularities {
            for zero in zeros {
                for scale in scales {
                    if let Ok(format) = format!("{code}-{granularity}{zero}{scale}").parse() {
                        formats.push(format);
                    }
                }
            }
        }
    }
    // 9 integer codes with all zeros and 12 others with none, less what is refused.
    assert!(formats.len() > 4000, "{}", formats.len());
    formats
}

fn weights(n: usize, k: usize, seed: u64) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(seed);
    // About normal, each row at its own size.
    let mut w = vec![];
    for _ in 0..n {
        let size = 0.02 * (1.0 + random.f32() * 4.0);
        w.extend((0..k).map(|_| (0..6).map(|_| random.f32() - 0.5).sum::<f32>() * size));
    }
    w
}

/// Packs, unpacks, and compares everything.
fn comes_back(q: &Quantized) {
    let format = &q.format;
    let parts = (format.container.pack)(q).unwrap_or_else(|error| panic!("{format}: pack: {error}"));
    let back =
        (format.container.unpack)(format, q.n, q.k, &parts).unwrap_or_else(|error| panic!("{format}: unpack: {error}"));
    assert!(back == *q, "{format} [{}, {}] did not come back", q.n, q.k);
}

/// No other code is nearer under the scale and zero as stored.
fn codes_are_nearest(q: &Quantized, w: &[f32]) {
    let mut other = q.clone();
    for row in 0..q.n {
        for column in 0..q.k {
            let at = row * q.k + column;
            let x = w[at] as f64;
            let chosen = (q.value(row, column) - x).abs();
            for code in (0..=255u8).take_while(|code| *code < 255 && (*code as u32) < 1 << q.format.code.bits()) {
                if !q.format.code.valid(code) {
                    continue;
                }
                other.codes[at] = code;
                let error = (other.value(row, column) - x).abs();
                assert!(
                    error.is_nan() || chosen <= error * (1.0 + 1e-9) + 1e-30,
                    "{} at {row}, {column}: {x} has code {} ({}), {code} is nearer ({})",
                    q.format,
                    q.codes[at],
                    q.value(row, column),
                    other.value(row, column)
                );
            }
            other.codes[at] = q.codes[at];
        }
    }
}

#[test]
fn names_come_back() {
    let mut seen = HashSet::new();
    for named in Format::ALL {
        assert!(seen.insert(named.name), "{} is there twice", named.name);
        assert_eq!(named.format.to_string(), named.name);
        assert!(
            !named.summary.is_empty() && named.format.faults().is_empty(),
            "{}: {:?}",
            named.name,
            named.format.faults()
        );
    }
    let named = Format::ALL.iter().map(|named| named.format);
    for format in named.chain(grammar()) {
        let name = format.to_string();
        assert_eq!(name.parse::<Format>().unwrap_or_else(|error| panic!("{name}: {error}")), format, "{name}");
    }
    for (name, printed) in [
        ("int4-asym-g64", "int4-g64-asym"),
        ("INT8-Channel-f16", "int8-channel"),
        ("uint4-g32-bias", "int4-g32-bias"),
        ("fp8e4m3-channel-f32", "fp8e4m3-channel"),
        ("int4-dq-g32", "int4-g32-dq"),
        ("fp4-fp8-dq-g16", "fp4-g16-fp8-dq"),
    ] {
        assert_eq!(name.parse::<Format>().unwrap().to_string(), printed);
    }
}

#[test]
fn bad_names_say_what_is_accepted() {
    for name in [
        "",
        "int4",
        "int1-g32",
        "int9-g32",
        "int4-g0",
        "int4-g8",
        "int4-g99999999",
        "int4-g064",
        "int4-g-1",
        "int4-g",
        "int4-g32-g64",
        "int4-g32-asym-bias",
        "int4-g32-f16-bf16",
        "int4-g32-dq-dq",
        "fp8e4m3-g32-asym",
        "ternary-g128-bias",
        "log5-g32",
        "q4_9",
        "int4-block0",
        "int4-g32-what",
        "int4-tensor-dq",
        "int4-g32-f32-dq",
        "int4--g32",
        "int4-g32-",
        "gptq-int5-g128",
        "gptq-int4",
        "gptq-",
        "awq-g7",
        "ct-int4",
        "ct-",
        "nf4-",
        "🦀-g32",
    ] {
        match name.parse::<Format>() {
            Err(Error::Invalid(faults)) => {
                assert!(
                    faults.iter().all(|fault| fault.contains("accepted")
                        || fault.contains("twice")
                        || fault.contains("second level")),
                    "{name}: {faults:?}"
                );
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn the_grammar_comes_back_and_rounds_to_nearest() {
    for (i, format) in grammar().into_iter().enumerate() {
        // Every third shape has rows that do not fill their last group, byte or block.
        let (n, k) = [(3, 96), (5, 77), (2, 131)][i % 3];
        let w = weights(n, k, i as u64);
        let q = format.encode(&w, n, k, None).unwrap_or_else(|error| panic!("{format}: {error}"));
        comes_back(&q);
        codes_are_nearest(&q, &w);
    }
}

#[test]
fn named_formats_come_back_and_are_close() {
    for (i, named) in Format::ALL.iter().enumerate() {
        let (n, k) = (64, 512);
        let mut w = weights(n, k, 100 + i as u64);
        if matches!(named.format.code, Code::Ternary) || ["tq2_0", "q2_0"].contains(&named.name) {
            // These are meant for weights that are ternary already.
            w.iter_mut().enumerate().for_each(|(i, x)| *x = x.signum() * (i % 3 != 0) as u8 as f32 * 0.5);
        }
        let importance: Vec<f32> = (0..k).map(|column| 0.5 + (column % 7) as f32).collect();
        for importance in [None, Some(&importance[..])] {
            let q = named.format.encode(&w, n, k, importance).unwrap_or_else(|error| panic!("{}: {error}", named.name));
            comes_back(&q);
            let error: f64 = (0..n * k).map(|i| (q.value(i / k, i % k) - w[i] as f64).powi(2)).sum();
            let power: f64 = w.iter().map(|x| (*x as f64).powi(2)).sum();
            // Half a step of an even quantizer at the format's width, five times over for ranges that are not filled.
            // An 8-bit float has a step like that of about 4 bits.
            let bits = if let Code::Float(_) = named.format.code { 4 } else { named.format.code.bits() };
            let step = 2.0 / (1u32 << bits) as f64;
            let bound = (step * step / 12.0) * 3.0 * 25.0;
            assert!(error / power < bound.min(0.5), "{}: relative error {}", named.name, (error / power).sqrt());
        }
    }
}

#[test]
fn importance_lowers_the_weighted_error() {
    let (n, k) = (8, 256);
    let w = weights(n, k, 7);
    let importance: Vec<f32> = (0..k).map(|column| if column % 16 == 0 { 50.0 } else { 1.0 }).collect();
    for name in ["int3-g64", "int4-g64-asym", "int2-g32-fzero", "fp4-g32", "nf4-g64", "int4-g32-dq", "ternary-g64"] {
        let format: Format = name.parse().unwrap();
        let error = |q: &Quantized| -> f64 {
            (0..n * k).map(|i| importance[i % k] as f64 * (q.value(i / k, i % k) - w[i] as f64).powi(2)).sum()
        };
        let plain = error(&format.encode(&w, n, k, None).unwrap());
        let weighted = error(&format.encode(&w, n, k, Some(&importance)).unwrap());
        assert!(weighted < plain, "{name}: {weighted} is not below {plain}");
    }
}

#[test]
fn zeros_and_extremes_stay_finite() {
    let (n, k) = (64, 512);
    let named = Format::ALL.iter().map(|named| named.format);
    let sample = grammar().into_iter().step_by(7);
    for format in named.chain(sample) {
        let mut w = vec![0.0f32; n * k];
        let q = format.encode(&w, n, k, None).unwrap();
        comes_back(&q);
        let largest = q.dequantize().iter().fold(0.0f32, |a, b| a.max(b.abs()));
        assert!(largest <= 1e-30, "{format}: zeros became {largest}");
        // One weight among zeros, a constant row, numbers at both ends of f32's range.
        w[5] = 1.0;
        w[k..2 * k].fill(-0.75);
        w[2 * k + 9] = 1e-30;
        comes_back(&format.encode(&w, n, k, None).unwrap());
        w[3 * k + 9] = 3e38;
        w[3 * k + 10] = -3e38;
        match format.encode(&w, n, k, None) {
            Ok(q) => {
                comes_back(&q);
                assert!((0..n * k).all(|i| q.value(i / k, i % k).is_finite()), "{format}");
            }
            Err(Error::Invalid(faults)) => assert!(faults[0].contains("exceed"), "{format}: {faults:?}"),
            Err(other) => panic!("{format}: {other}"),
        }
    }
}

#[test]
fn bad_weights_are_refused_with_their_place() {
    let format: Format = "int4-g64-asym".parse().unwrap();
    let mut w = weights(4, 64, 1);
    w[64 * 2 + 7] = f32::NAN;
    let message = format.encode(&w, 4, 64, None).unwrap_err().to_string();
    assert!(message.contains("row 2, column 7"), "{message}");
    w[64 * 2 + 7] = f32::INFINITY;
    assert!(format.encode(&w, 4, 64, None).is_err());
    assert!(format.encode(&weights(4, 64, 1), 5, 64, None).is_err());
    assert!(format.encode(&[], 0, 64, None).is_err());
    assert!(format.encode(&weights(4, 64, 1), 4, 64, Some(&[1.0; 63])).is_err());
    assert!(format.encode(&weights(4, 64, 1), 4, 64, Some(&[f32::NAN; 64])).is_err());
    assert!(format.encode(&[], usize::MAX, usize::MAX, None).is_err());
    let q4_k: Format = "q4_k".parse().unwrap();
    let message = q4_k.encode(&weights(4, 64, 1), 4, 64, None).unwrap_err().to_string();
    assert!(message.contains("64") && message.contains("256"), "{message}");
}

/// Every part of every format: cut, lengthened, retyped, reshaped, removed, filled with noise.
#[test]
fn hostile_parts_are_refused() {
    let named = Format::ALL.iter().map(|named| named.format);
    let sample = grammar().into_iter().step_by(11);
    for (i, format) in named.chain(sample).enumerate() {
        let (n, k) = (64, 512);
        let q = format.encode(&weights(n, k, i as u64), n, k, None).unwrap();
        let parts = (format.container.pack)(&q).unwrap();
        let unpack = |parts: &[Part], n, k| (format.container.unpack)(&format, n, k, parts);
        assert!(unpack(&[], n, k).is_err(), "{format}: nothing was accepted");
        for (n, k) in [(0, k), (n, 0), (n + 1, k), (n, k + 256), (usize::MAX, k), (n, usize::MAX), (1 << 40, 1 << 40)] {
            assert!(unpack(&parts, n, k).is_err(), "{format}: shape {n}, {k} was accepted");
        }
        for at in 0..parts.len() {
            let with = |change: &dyn Fn(&mut Part)| {
                let mut parts = parts.clone();
                change(&mut parts[at]);
                unpack(&parts, n, k)
            };
            let name = parts[at].name;
            let refused = |what: &str, result: Result<Quantized, Error>| {
                assert!(matches!(result, Err(Error::Invalid(_))), "{format}: {what} `{name}` was accepted");
            };
            refused("cut", with(&|part| part.bytes.truncate(part.bytes.len() - 1)));
            refused("empty", with(&|part| part.bytes.clear()));
            refused("long", with(&|part| part.bytes.push(0)));
            let other = if parts[at].dtype == PartType::I64 { PartType::U8 } else { PartType::I64 };
            refused("retyped", with(&|part| part.dtype = other));
            refused("reshaped", with(&|part| part.shape.push(2)));
            refused("huge", with(&|part| part.shape = vec![usize::MAX, usize::MAX]));
            // Files may leave out what the shape already says.
            if name != "g_idx" && name != "weight_shape" {
                refused("renamed", with(&|part| part.name = "nothing"));
            }
            let mut random = fastrand::Rng::with_seed(i as u64);
            for _ in 0..4 {
                let mut parts = parts.clone();
                parts[at].bytes.iter_mut().for_each(|byte| *byte = random.u8(..));
                // Noise may or may not mean something, but it never panics, and what it means comes back.
                if let Ok(q) = unpack(&parts, n, k) {
                    q.dequantize();
                    if !matches!(format.zero, Zero::Bias(_)) {
                        (format.container.pack)(&q).unwrap();
                    }
                }
            }
        }
        // A matrix whose fields lie does not make the writer panic either.
        for change in [
            (|q: &mut Quantized| q.codes.truncate(3)) as fn(&mut Quantized),
            |q| q.scales.clear(),
            |q| q.scales.push(0),
            |q| q.zeros.push(0),
            |q| q.outer.push(0),
            |q| q.order = Some(vec![u32::MAX; 3]),
            |q| q.n = usize::MAX,
            |q| q.k = 0,
            |q| q.format.granularity = bitsmith_compiler::format::Granularity::Group(0),
            |q| q.format.code = Code::Int { bits: 9, signed: false },
        ] {
            let mut q = q.clone();
            change(&mut q);
            assert!((format.container.pack)(&q).is_err(), "{format}: a false matrix was packed");
        }
    }
}
