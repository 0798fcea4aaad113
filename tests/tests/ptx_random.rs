//! Seeded random kernels of several threads, written as PTX for every architecture: `ptxas` takes them all.

use bitsmith_compiler::ir::verify;
use bitsmith_compiler::legalize;
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::ptx::{ARCHES, PtxTarget};
use bitsmith_tests::ptxas;
use bitsmith_tests::random::{Options, kernel};

/// Kernels per architecture and set of options; `BITSMITH_SEEDS` changes it.
fn seeds() -> u64 {
    std::env::var("BITSMITH_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(40)
}

const SETS: [Options; 3] = [
    Options { threads: 64, subgroup: 32, ..Options::SIMT },
    // A last warp that is not full.
    Options { threads: 48, subgroup: 32, ..Options::SIMT },
    Options { vector_bytes: 64, size: 30, ..Options::SIMT_ALONE },
];

fn module(target: &PtxTarget, seed: u64, set: usize) -> String {
    let mut case = kernel(seed, SETS[set]);
    case.kernel.name = format!("random_{set}_{seed}");
    let legal = legalize(&case.kernel, target).unwrap_or_else(|error| panic!("seed {seed} of set {set}: {error}"));
    let verified =
        verify(&legal, target.caps()).unwrap_or_else(|faults| panic!("seed {seed} of set {set}: {faults:?}"));
    let artifact = target.emit(&verified).unwrap_or_else(|error| panic!("seed {seed} of set {set}: {error}"));
    assert_eq!(artifact, target.emit(&verified).unwrap(), "emission is a function");
    String::from_utf8(artifact.payload.bytes().to_vec()).unwrap()
}

#[test]
fn ptxas_takes_random_kernels() {
    let Some(tool) = ptxas::find("ptxas_takes_random_kernels") else { return };
    let mut count = 0;
    for arch in ARCHES {
        let target = PtxTarget::named(arch.name).unwrap();
        for set in 0..SETS.len() {
            let modules: Vec<String> = (0..seeds()).map(|seed| module(&target, seed, set)).collect();
            let entries = tool.assemble(arch.name, &modules, false).unwrap_or_else(|said| {
                if let Some(folder) = std::env::var_os("BITSMITH_KEEP") {
                    for (i, module) in modules.iter().enumerate() {
                        let _ = std::fs::write(std::path::Path::new(&folder).join(format!("{set}_{i}.ptx")), module);
                    }
                }
                panic!("{} refused set {set}:\n{}", arch.name, said.lines().take(20).collect::<Vec<_>>().join("\n"))
            });
            assert_eq!(entries.len() as u64, seeds(), "every entry is reported");
            count += entries.len();
        }
    }
    println!("{count} random kernels assembled");
}
