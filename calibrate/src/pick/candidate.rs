//! What is considered: presets with their methods, typical losses and arithmetic, and the recipe of each.

use super::Kv;
use crate::recipe::{Calibration, Method, RecipeFile, Smooth};

/// A preset that is considered.
pub(super) struct Candidate {
    /// Its name.
    pub preset: &'static str,
    /// How codes are found.
    pub method: Method,
    /// Whether it takes calibration text.
    pub calibrated: bool,
    /// Rise of perplexity that is typical, as a share.
    pub increase: f64,
    /// What multiplies.
    pub kind: Arithmetic,
    /// What may go wrong.
    pub risk: Option<&'static str>,
}

/// What multiplies.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Arithmetic {
    Floats,
    Int8,
    Fp8,
    Fp4,
}

use Arithmetic::{Floats, Fp4, Fp8, Int8};

const fn candidate(
    preset: &'static str,
    method: Method,
    increase: f64,
    kind: Arithmetic,
    risk: Option<&'static str>,
) -> Candidate {
    let calibrated = matches!(method, Method::Gptq | Method::Awq);
    Candidate { preset, method, calibrated, increase, kind, risk }
}

/// Everything that is considered. Rises are typical of 7 to 8 billion weights and 2048 tokens of web text.
pub(super) const CANDIDATES: &[Candidate] = &[
    candidate("W8A16", Method::Rtn, 0.001, Floats, None),
    Candidate {
        calibrated: true,
        ..candidate(
            "FP8",
            Method::Rtn,
            0.004,
            Fp8,
            Some("one static scale per tensor: outliers of inputs that calibration did not show are cut"),
        )
    },
    candidate("FP8_DYNAMIC", Method::Rtn, 0.003, Fp8, None),
    Candidate {
        calibrated: true,
        ..candidate(
            "W8A8",
            Method::Rtn,
            0.006,
            Int8,
            Some("outlier channels of inputs: SmoothQuant moves them into the weights"),
        )
    },
    candidate("W4A16", Method::Gptq, 0.02, Floats, Some("small models lose more")),
    candidate(
        "W4A16_ASYM",
        Method::Rtn,
        0.035,
        Floats,
        Some("rounded to nearest, since there is no text to calibrate with"),
    ),
    candidate("W4A8", Method::Gptq, 0.03, Int8, Some("both weights and inputs lose bits")),
    candidate("NVFP4", Method::Rtn, 0.03, Fp4, Some("few tools read it yet")),
    candidate("W3A16", Method::Gptq, 0.09, Floats, Some("three bits: check the report before use")),
    candidate("W2A16", Method::Gptq, 0.6, Floats, Some("two bits break most models")),
];

/// The typical rise that a kind of keys and values adds.
pub(super) fn kv_increase(kind: Kv) -> f64 {
    match kind {
        Kv::F16 => 0.0,
        Kv::Fp8Tensor => 0.001,
        Kv::Int8TokenHead => 0.0005,
        Kv::Int4Kivi => 0.005,
    }
}

/// The recipe of a candidate.
pub(super) fn recipe(candidate: &Candidate, kind: Kv) -> RecipeFile {
    RecipeFile {
        base: Some(candidate.preset.to_owned()),
        method: Some(candidate.method),
        kv: Some(kind.name().to_owned()),
        smooth: (candidate.preset == "W8A8").then_some(Smooth::Auto(true)),
        on_indivisible: Some(crate::recipe::OnIndivisible::SmallerGroup),
        calibration: Calibration::default(),
        ..RecipeFile::default()
    }
}
