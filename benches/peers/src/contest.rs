//! A contest: one format, one shape, one number of rows; everyone who can serve it, in turn.

use crate::candle::{self, Candle};
use crate::ggml::{self, Ggml};
use crate::ours::Ours;
use crate::python::{Product, Python};
use crate::report::Row;
use crate::subject::{Subject, interleave, nmse};
use bitsmith_compiler::format::{Format, Part, PartType, Quantized};
use bitsmith_runtime::cpu::CpuDevice;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A format in which contests are held: its name in our grammar, our activations, and what the Python peers call it.
pub struct Discipline {
    pub format: &'static str,
    activations: &'static [&'static str],
    bits_group: Option<(u32, usize)>,
}

/// Everything there is. Peers in Rust take GGUF blocks, those in Python integers in groups.
pub const DISCIPLINES: &[Discipline] = &[
    Discipline { format: "q4_0", activations: &["int8-token", "int8-g32"], bits_group: Some((4, 32)) },
    Discipline { format: "int4-g128", activations: &["int8-token", "int8-g128"], bits_group: Some((4, 128)) },
    Discipline { format: "q4_k", activations: &["int8-token", "int8-g32"], bits_group: None },
    Discipline { format: "q6_k", activations: &["int8-token"], bits_group: None },
    Discipline { format: "q8_0", activations: &["int8-token", "int8-g32"], bits_group: Some((8, 32)) },
    Discipline { format: "q2_k", activations: &["int8-token"], bits_group: None },
    Discipline { format: "tq2_0", activations: &["int8-token"], bits_group: None },
];

/// Largest error, squared and relative to the squared result, that ggml's own tests accept of a product.
const TOLERANCE: f64 = 5e-4;

/// How long, how much, on how many threads.
pub struct Effort {
    pub threads: usize,
    /// Bytes of weights to cycle through with few rows.
    pub cycle: usize,
    /// Per subject.
    pub budget: Duration,
    pub python: Option<PathBuf>,
}

/// Weights of a contest: blocks as a GGUF file holds them, and the same as ours.
pub struct Weights {
    pub quantized: Quantized,
    pub blocks: Option<Vec<u8>>,
    /// The numbers that they stand for.
    floats: Vec<f32>,
}

impl Weights {
    /// Random weights of a format; ggml makes the blocks where it knows the format.
    pub fn new(format: &str, n: usize, k: usize) -> Result<Weights, String> {
        let mut random = fastrand::Rng::with_seed(1);
        // The sum of four uniform numbers: a bell, with the few large weights that quantizers must deal with.
        let floats: Vec<f32> = (0..n * k).map(|_| (0..4).map(|_| random.f32() - 0.5).sum::<f32>() * 0.05).collect();
        let parsed: Format = format.parse().map_err(|error| format!("{format}: {error}"))?;
        let error = |error: bitsmith_compiler::Error| format!("{format}: {error}");
        let blocks = ggml::kind(format).map(|kind| ggml::quantize(kind, &floats, n, k));
        let quantized = match &blocks {
            Some(blocks) => {
                let shape = vec![n, blocks.len() / n];
                let part = Part { name: "blocks", dtype: PartType::U8, shape, bytes: blocks.clone() };
                (parsed.container.unpack)(&parsed, n, k, &[part]).map_err(error)?
            }
            None => parsed.encode(&floats, n, k, None).map_err(error)?,
        };
        drop(floats);
        let floats = quantized.dequantize();
        Ok(Weights { quantized, blocks, floats })
    }

    /// The first rows of the product, in `f64`.
    fn reference(&self, x: &[f32], rows: usize) -> Vec<f32> {
        let k = self.quantized.k;
        let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(&x, &w)| x as f64 * w as f64).sum::<f64>() as f32;
        x.chunks(k).take(rows).flat_map(|x| self.floats.chunks(k).map(move |w| dot(x, w))).collect()
    }
}

/// Holds a contest; a row per subject.
pub fn hold(discipline: &Discipline, weights: &Weights, m: usize, effort: &Effort) -> Result<Vec<Row>, String> {
    let (n, k) = (weights.quantized.n, weights.quantized.k);
    eprintln!("{} {n}x{k}, {m} rows, {} threads", discipline.format, effort.threads);
    let mut random = fastrand::Rng::with_seed(2);
    let x: Vec<f32> = (0..m * k).map(|_| (0..4).map(|_| random.f32() - 0.5).sum::<f32>() * 2.0).collect();
    let mut subjects: Vec<Box<dyn Subject>> = Vec::new();
    let copies = |bytes: usize| if m <= 8 { effort.cycle.div_ceil(bytes.max(1)).max(1) } else { 1 };
    let device = Arc::new(CpuDevice::new(effort.threads).map_err(|error| error.to_string())?);
    let about = n * k * discipline.bits() as usize / 8;
    for activation in discipline.activations {
        let ours = Ours::new(&device, &weights.quantized, activation, &x, m, copies(about));
        subjects.push(Box::new(ours.map_err(|error| format!("bitsmith: {error}"))?));
    }
    if let (Some(blocks), Some(kind)) = (&weights.blocks, ggml::kind(discipline.format)) {
        for repack in [false, true] {
            match Ggml::new(kind, blocks, &x, (n, k, m), copies(blocks.len()), effort.threads, repack)? {
                Some(ggml) => subjects.push(Box::new(ggml)),
                None => eprintln!("  skipped: ggml repack: it has no layout for {}", discipline.format),
            }
        }
        match candle::kind(discipline.format) {
            Some(kind) => {
                let candle = Candle::new(kind, blocks, &x, (n, k, m), copies(blocks.len()));
                subjects.push(Box::new(candle.map_err(|error| format!("candle: {error}"))?));
            }
            None => eprintln!("  skipped: candle: it has no {}", discipline.format),
        }
    }
    if let Some((bits, group)) = discipline.bits_group {
        for peer in ["onnxruntime", "openvino"] {
            let product = Product { n, k, m, bits, group, copies: copies(about), threads: effort.threads };
            let made = effort.python.as_ref().ok_or("no --python".to_string());
            match made.and_then(|python| Python::new(python, peer, product)) {
                Ok(python) => subjects.push(Box::new(python)),
                Err(why) => eprintln!("  skipped: {peer}: {why}"),
            }
        }
    }
    let errors = check(&mut subjects, weights, &x, n)?;
    let times = interleave(&mut subjects, effort.budget)?;
    let rows = subjects.iter().zip(times).zip(errors).map(|((subject, seconds), nmse)| Row {
        format: discipline.format.into(),
        n,
        k,
        m,
        threads: effort.threads,
        who: subject.name(),
        ours: subject.name().starts_with("bitsmith"),
        seconds,
        weight_bytes: subject.weight_bytes(),
        gbs: subject.weight_bytes() / seconds.median / 1e9,
        gops: 2.0 * (m * n * k) as f64 / seconds.median / 1e9,
        nmse,
    });
    Ok(rows.collect())
}

impl Discipline {
    fn bits(&self) -> u32 {
        match self.format {
            "q8_0" => 8,
            "q6_k" => 6,
            "q2_k" | "tq2_0" => 2,
            _ => 4,
        }
    }
}

/// Everyone's result against the reference; an error where someone is not as near as ggml's tests ask.
fn check(subjects: &mut [Box<dyn Subject>], weights: &Weights, x: &[f32], n: usize) -> Result<Vec<f64>, String> {
    let rows = (x.len() / weights.quantized.k).min(2);
    let expected = weights.reference(x, rows);
    let mut errors = Vec::new();
    for subject in subjects {
        let error = match subject.result()? {
            Some(result) => nmse(&result[..rows * n], &expected),
            None => subject.own_error().unwrap_or(f64::NAN),
        };
        if error.is_nan() || error > TOLERANCE {
            return Err(format!(
                "{}: squared error {error:.1e} of the result; accepted: {TOLERANCE:.0e}",
                subject.name()
            ));
        }
        errors.push(error);
    }
    Ok(errors)
}
