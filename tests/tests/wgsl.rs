//! WGSL: every operation that a family serves becomes a shader that naga validates, and translates for Metal and Direct3D.
//!
//! What the shaders compute is compared in `browser.rs`, where a browser is found.

use bitsmith_compiler::compile;
use bitsmith_compiler::ir::verify;
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::wgsl::WgslTarget;
use bitsmith_tests::cases;

/// Cases per form of WGSL; `BITSMITH_CASES` changes it.
fn count() -> u64 {
    std::env::var("BITSMITH_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(60)
}

fn check(target: &WgslTarget, seed: u64) -> Result<(), String> {
    let case = cases::case(seed, target.caps());
    let at = |stage: &str, why: String| format!("seed {seed}, {stage}: {why}\n  {case:?}");
    let made = compile(&case.op, &case.schedule, target).map_err(|e| at("compile", e.to_string()))?;
    let legal = verify(&made.legal, target.caps()).map_err(|faults| at("verify", format!("{faults:?}")))?;
    for stage in ["msl", "hlsl"] {
        let text = target.show(&legal, stage).ok_or_else(|| at(stage, "no such stage".into()))?;
        if text.map_err(|e| at(stage, e.to_string()))?.is_empty() {
            return Err(at(stage, "nothing was written".into()));
        }
    }
    Ok(())
}

#[test]
fn families_are_valid_shaders() {
    for name in WgslTarget::names() {
        let target = WgslTarget::named(name).unwrap();
        let failures: Vec<String> = (0..count()).filter_map(|seed| check(&target, seed).err()).collect();
        let shown = failures.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
        assert!(failures.is_empty(), "{} of {} shaders for {name}:\n{shown}", failures.len(), count());
    }
}
