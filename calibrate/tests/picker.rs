//! The picker over models, machines and goals, as one reviewed table; and its bytes against those of written files.

use crate::support;
use bitsmith_calibrate::engine::{Activations, Dense};
use bitsmith_calibrate::export::{Target, export};
use bitsmith_calibrate::import::Checkpoint;
use bitsmith_calibrate::pick::{Goal, Kv, Machine, Request, kv, linears, matrix_bytes, pick, weights};
use bitsmith_calibrate::quantize::{quantize, sizes};
use bitsmith_calibrate::recipe::{Plan, RecipeFile};
use bitsmith_calibrate::shapes::ModelShape;
use std::fmt::Write;

fn request(goal: Goal, batch: usize, context: usize) -> Request {
    Request { goal, batch, context, max_increase: None, calibration: true }
}

/// One line per model, machine and goal.
const REVIEWED: &str = include_str!("picks.txt");

const MODELS: [&str; 5] = ["llama-3-8b", "llama-3-70b", "qwen3-0.6b", "qwen3-32b", "mixtral-8x7b"];
const MACHINES: [&str; 5] = ["h100", "mi300x", "a100", "rtx4090", "epyc-9654"];
const GOALS: [(Goal, usize, usize); 4] =
    [(Goal::Throughput, 64, 4096), (Goal::Latency, 1, 4096), (Goal::Memory, 4, 65536), (Goal::Quality, 1, 4096)];

#[test]
fn picks_are_the_reviewed_ones() {
    let mut table = String::new();
    assert!(MODELS.len() * MACHINES.len() * GOALS.len() >= 40);
    for model in MODELS {
        let shape = ModelShape::by_name(model).unwrap();
        for machine in MACHINES {
            let machine = Machine::by_name(machine).unwrap();
            for (goal, batch, context) in GOALS {
                let picks = pick(&shape, &machine, &request(goal, batch, context)).unwrap();
                let p = &picks[0];
                writeln!(
                    table,
                    "{model:12} {:9} {:10} b{batch} c{context}: {} + {} | {:.1} GB of {:.0}{} | {}",
                    machine.name,
                    format!("{goal:?}").to_lowercase(),
                    p.weights,
                    p.kv.name(),
                    p.memory.total() / 1e9,
                    machine.memory / 1e9,
                    if p.fits { "" } else { ", does not fit" },
                    p.reason
                )
                .unwrap();
            }
        }
    }
    // What it is now, for whoever reviews a change: it is never taken over by itself.
    let now = std::env::temp_dir().join("bitsmith-picks.txt");
    if table != REVIEWED {
        std::fs::write(&now, &table).unwrap();
    }
    assert!(table == REVIEWED, "picks changed; compare calibrate/tests/picks.txt with {}", now.display());
}

#[test]
fn rules_of_the_trade_hold() {
    let llama = ModelShape::by_name("llama-3-8b").unwrap();
    let first = |machine: &str, r: &Request| {
        let picks = pick(&llama, &Machine::by_name(machine).unwrap(), r).unwrap();
        (picks[0].weights, picks[0].kv, picks[0].fits)
    };
    for machine in ["h100", "mi300x"] {
        let (weights, kv, fits) = first(machine, &request(Goal::Throughput, 64, 4096));
        assert!(weights == "FP8" && matches!(kv, Kv::Fp8Tensor | Kv::Int8TokenHead) && fits, "{machine}");
        let open = Request { calibration: false, ..request(Goal::Throughput, 64, 4096) };
        assert_eq!(first(machine, &open).0, "FP8_DYNAMIC");
    }
    assert_eq!(first("h100", &request(Goal::Latency, 1, 4096)), ("W8A16", Kv::Int8TokenHead, true));
    // 24 GB hold 70 billion weights in no format, 8 GB hold 8 billion in 4 bits only.
    let small = Machine::by_name("rtx4090").unwrap().with_memory(8e9);
    assert_eq!(pick(&llama, &small, &request(Goal::Latency, 1, 4096)).unwrap()[0].weights, "W4A16");
    let (weights, kv, _) = first("a100", &request(Goal::Memory, 4, 65536));
    assert!(weights == "W4A16" && kv == Kv::Int4Kivi);
    for machine in ["a100", "epyc-9654"] {
        assert_eq!(first(machine, &request(Goal::Throughput, 64, 4096)).0, "W8A8", "{machine}");
    }
    // A tight limit leaves only what keeps it; none at all is an error that says so.
    let tight = Request { max_increase: Some(0.0012), ..request(Goal::Memory, 4, 4096) };
    assert_eq!(first("h100", &tight).0, "W8A16");
    let none = Request { max_increase: Some(0.0001), ..tight };
    let error = pick(&llama, &Machine::by_name("h100").unwrap(), &none).unwrap_err().to_string();
    assert!(error.contains("0.01 %"), "{error}");
    assert!(Machine::by_name("h1000").unwrap_err().to_string().contains("h100"));
}

#[test]
fn every_pick_that_fits_says_a_batch_and_context_that_do() {
    let llama = ModelShape::by_name("llama-3-8b").unwrap();
    let machine = Machine::by_name("l4").unwrap();
    for goal in [Goal::Throughput, Goal::Latency, Goal::Memory, Goal::Quality] {
        for p in pick(&llama, &machine, &request(goal, 4, 8192)).unwrap() {
            assert_eq!(p.fits, p.memory.total() <= 0.9 * machine.memory);
            assert_eq!(p.fits, p.max_batch >= 4 && p.max_context >= 8192, "{} {:?}", p.weights, p.kv);
            assert!(p.prefill_seconds > 0.0 && p.decode_seconds > 0.0 && !p.reason.is_empty());
            RecipeFile::from_toml(&p.recipe.to_toml().unwrap()).unwrap();
        }
    }
}

/// What the picker thinks weights take against what `export` writes, tensors of all kinds included.
#[test]
fn weight_bytes_are_those_that_are_written() {
    let model = Checkpoint::open(support::own_model()).unwrap().model().unwrap();
    let shape = &model.config.shape;
    let floats = Dense { activations: Activations::Floats };
    for (preset, target) in [
        ("W8A16", Target::CompressedTensors),
        ("W4A16", Target::CompressedTensors),
        ("W4A16_ASYM", Target::CompressedTensors),
        ("W8A8", Target::CompressedTensors),
        ("FP8", Target::CompressedTensors),
        ("FP8_DYNAMIC", Target::CompressedTensors),
        ("FP8_BLOCK", Target::CompressedTensors),
        ("NVFP4", Target::CompressedTensors),
        ("W4A16_ASYM", Target::Awq),
    ] {
        let recipe = RecipeFile::preset(preset).unwrap();
        let plan = Plan::new(&recipe, &sizes(&model), false).unwrap();
        let done = quantize(&model, &recipe, &plan, None, &floats, &mut |_, _| {}).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let written = export(&done.model, target, &folder.path().join("q"), None).unwrap();
        let names = linears(shape);
        let estimate = weights(shape, &Plan::new(&recipe, &names, false).unwrap(), &names);
        let off = estimate / written.bytes as f64 - 1.0;
        println!("{preset} as {target:?}: {estimate} estimated, {} written ({:+.3} %)", written.bytes, 100.0 * off);
        assert!(off.abs() < 0.01, "{preset} as {target:?}: {estimate} against {}", written.bytes);
    }
    // Keys and values: 2 layers, 2 heads of 32, 100 tokens in pages of 16.
    assert_eq!(kv(shape, Kv::F16, 1, 100), 2.0 * 2.0 * 64.0 * 2.0 * 112.0);
    assert_eq!(matrix_bytes(&"int4-g64-asym".parse().unwrap(), 8, 128), 8.0 * 64.0 + 16.0 * 2.5);
}
