//! OCP fp8 on devices with `fnuz` floats: what is packed for them stands for the numbers that the file had, for every code;
//! what they cannot write is refused with its place; devices with OCP floats get what the file has.

use bitsmith_autotune::problem::{Problem, Sample, quantized};
use bitsmith_compiler::caps::{Caps, gpu};
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::qt16::Qt16;
use bitsmith_compiler::format::{Format, Quantized, fnuz};
use bitsmith_compiler::lower::{self, Packing, native, pack};
use bitsmith_compiler::op::{Activation, Epilogue, Matmul, Op, Per, Quantize};
use bitsmith_compiler::schedule::Family;
use bitsmith_tests::run;

const FORMATS: [(&str, DType, DType); 4] = [
    ("fp8e4m3-channel", DType::E4m3fn, DType::E4m3fnuz),
    ("fp8e4m3-g32-f16", DType::E4m3fn, DType::E4m3fnuz),
    ("fp8e5m2-tensor", DType::E5m2, DType::E5m2fnuz),
    ("fp8e5m2-g64-bf16", DType::E5m2, DType::E5m2fnuz),
];

fn device(name: &str) -> &'static Caps {
    gpu(name).unwrap()
}

fn matmul(weight: Format, activation: DType) -> Op {
    let activation = Activation::Fp8(activation, Per::Token);
    Op::Matmul(Matmul { n: 70, k: 128, weight, activation, out: DType::F32, epilogue: Epilogue::default() })
}

/// Weights that hold every code, those left out that are no numbers.
fn weights(format: &Format, dtype: DType) -> Quantized {
    let mut weights = quantized(format, 70, 128, 7).unwrap();
    let finite: Vec<u8> = (0..=255u8).filter(|&code| dtype.decode(code as u32).is_finite()).collect();
    weights.codes = (0..70 * 128).map(|i| finite[i % finite.len()]).collect();
    weights
}

#[test]
fn packed_codes_stand_for_the_same_numbers() {
    for (text, ocp, uz) in FORMATS {
        let format: Format = text.parse().unwrap();
        let weights = weights(&format, ocp);
        let caps = device("mi300x");
        let op = native(matmul(format, ocp), caps);
        let Op::Matmul(own) = op else { unreachable!() };
        assert_eq!(own.activation, Activation::Fp8(uz, Per::Token), "activations are quantized to the device's kind");
        assert_eq!(Some(own.weight), fnuz::fnuz_format(&format));
        let schedule = lower::choose(&op, caps, 16).unwrap();
        assert_eq!(schedule.family, Family::Mma, "{text}");
        let packed = pack(&op, &schedule, caps, &weights).unwrap();
        let Packing::Qt16(class, order) = lower::packing(&op, &schedule, caps) else { panic!("{text}: no QT16") };
        let back = Qt16::of(&own.weight, 128, class, order).unwrap().unpack(70, &packed).unwrap();
        for row in 0..70 {
            for column in 0..128 {
                assert_eq!(back.value(row, column), weights.value(row, column), "{text}, row {row}, column {column}");
            }
        }
    }
}

#[test]
fn kernels_agree_with_the_numbers_of_the_file() {
    for (seed, (text, ocp, _)) in FORMATS.into_iter().enumerate() {
        let format: Format = text.parse().unwrap();
        let original = quantized(&format, 70, 128, seed as u64).unwrap();
        let converted = fnuz::to_fnuz(&original).unwrap();
        for name in ["mi300x", "mi350x", "rx9070xt"] {
            let caps = device(name);
            let op = native(matmul(format, ocp), caps);
            let own = if caps.has_fnuz() { converted.clone() } else { original.clone() };
            let problem = Problem::with_weights(&op, 5, Some(own), 3).unwrap();
            let schedule = lower::choose(&op, caps, 5).unwrap();
            let kernel = lower::lower(&op, &schedule, caps).unwrap();
            let outputs = run::interpret(&kernel, caps, &problem, &schedule).unwrap();
            let outputs: Vec<&[u8]> = outputs.iter().map(Vec::as_slice).collect();
            let report = problem.check(schedule.family, &outputs, Sample::Everything);
            assert!(report.passed(), "{text} on {name}: {}", report.first_wrong.unwrap_or_default());
        }
    }
}

#[test]
fn what_has_no_counterpart_is_refused_with_its_place() {
    let format: Format = "fp8e4m3-channel".parse().unwrap();
    let mut weights = weights(&format, DType::E4m3fn);
    weights.codes[3 * 128 + 17] = 0xff;
    let caps = device("mi300x");
    let op = native(matmul(format, DType::E4m3fn), caps);
    let schedule = lower::choose(&op, caps, 16).unwrap();
    let error = pack(&op, &schedule, caps, &weights).unwrap_err().to_string();
    assert!(error.contains("row 3, column 17") && error.contains("0xff"), "{error}");
}

#[test]
fn devices_with_ocp_floats_take_what_the_file_has() {
    for name in ["mi350x", "rx9070xt", "h200"] {
        let op = matmul("fp8e4m3-channel".parse().unwrap(), DType::E4m3fn);
        assert_eq!(native(op, device(name)), op, "{name}");
    }
    let quantize = Op::Quantize(Quantize {
        k: 64,
        input: DType::F16,
        code: DType::E5m2,
        per: Per::Token,
        sum_group: 0,
        norm: None,
        smooth: false,
    });
    let Op::Quantize(own) = native(quantize, device("mi300a")) else { unreachable!() };
    assert_eq!(own.code, DType::E5m2fnuz);
}
