//! Models of other tools through the engine: perplexity and logits against an independent reference.

use crate::support;
use bitsmith_calibrate::engine::{Activations, Dense, Engine, FloatCache};
use bitsmith_calibrate::evaluate::{Windows, perplexity};
use bitsmith_calibrate::import::Checkpoint;
use bitsmith_calibrate::text::Tokenizer;
use std::path::Path;

const FLOATS: Dense = Dense { activations: Activations::Floats };

/// The rule of the data's README: 12 windows of 256 tokens after the opening token, no special tokens.
fn windows(data: &Path) -> Windows {
    let tokenizer = Tokenizer::open(data.join("models/tinystories-656k")).unwrap();
    let text = std::fs::read_to_string(data.join("text/exl2_tiny.utf8")).unwrap();
    Windows::new(&tokenizer.encode(&text).unwrap(), Some(1), 256, 12).unwrap()
}

fn engine(path: &Path) -> Engine {
    Engine::new(&Checkpoint::open(path).unwrap().model().unwrap(), &FLOATS).unwrap()
}

#[test]
fn perplexity_of_every_model_is_the_expected_one() {
    let Some(data) = support::data("", "perplexity_of_every_model_is_the_expected_one") else { return };
    let windows = windows(&data);
    let mut seen = 0;
    let read = |path: &str| -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(data.join(path)).unwrap()).unwrap()
    };
    let quantized = read("models/tinystories-656k-quant/expected_ppl.json");
    let gguf = read("models/tinystories-656k-gguf/expected_ppl.json");
    let in_folders = quantized["ppl"].as_object().unwrap().iter().map(|(name, expected)| {
        let folder = if name == "fp32" { "tinystories-656k".into() } else { format!("tinystories-656k-quant/{name}") };
        (folder, expected.as_f64().unwrap())
    });
    let in_files =
        ["q8_0", "q4_0"].map(|name| (format!("tinystories-656k-gguf/{name}.gguf"), gguf[name].as_f64().unwrap()));
    for (path, expected) in in_folders.chain(in_files) {
        let checkpoint = Checkpoint::open(data.join("models").join(&path)).unwrap();
        let found = perplexity((&checkpoint, &FLOATS), &windows, &FloatCache::boxed).unwrap();
        assert_eq!((found.windows, found.tokens), (12, 12 * 256));
        let off = found.perplexity / expected - 1.0;
        println!("{path}: {} expected {expected} ({:+.5} %)", found.perplexity, 100.0 * off);
        assert!(off.abs() < 5e-4, "{path}: {} is not {expected}", found.perplexity);
        seen += 1;
    }
    assert_eq!(seen, 8);
}

#[test]
fn logits_are_those_of_the_reference() {
    let Some(data) = support::data("", "logits_are_those_of_the_reference") else { return };
    let bytes = std::fs::read(data.join("golden/model_ref/656K.prompt_ids.i32le.bin")).unwrap();
    let ids: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|&b| u32::from_le_bytes(b)).collect();
    let bytes = std::fs::read(data.join("golden/model_ref/656K.logits_64xV.f32le.bin")).unwrap();
    let expected: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
    let logits = engine(&data.join("models/tinystories-656k")).logits(&ids).unwrap();
    assert_eq!(logits.len(), expected.len());
    let worst = logits.iter().zip(&expected).fold(0.0f32, |a, (x, y)| a.max((x - y).abs()));
    println!("largest difference of a logit: {worst:e}");
    assert!(worst < 1e-4, "{worst:e}");
}
