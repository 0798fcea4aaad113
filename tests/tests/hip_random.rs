//! Seeded random kernels as HIP: clang takes them for every device, and on the host shim they give the interpreter's bytes
//! whatever the order of waves.

use bitsmith_compiler::caps::{Caps, Float8};
use bitsmith_compiler::ir::interp::{self, ArgValue};
use bitsmith_compiler::ir::{Kernel, Verified, verify};
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::hip::HipTarget;
use bitsmith_tests::hip::clang;
use bitsmith_tests::hip::host::{Launch, Order, Program, Sanitize};
use bitsmith_tests::random::{Options, kernel};

/// Kernels per wave size; `BITSMITH_HIP_SEEDS` changes it.
fn seeds() -> u64 {
    std::env::var("BITSMITH_HIP_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(80)
}

/// Kernels that one compilation takes.
const BATCH: u64 = 20;

fn options(wave: u32) -> Options {
    Options { threads: 2 * wave, subgroup: wave, ..Options::SIMT }
}

fn proven<'k>(kernel: &'k Kernel, caps: &Caps) -> Verified<'k> {
    verify(kernel, caps).unwrap_or_else(|faults| {
        panic!("{}", faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
    })
}

/// The launch of a seed and the buffers that it must leave behind.
fn launch(target: &HipTarget, seed: u64) -> (Launch, Vec<ArgValue>) {
    let wave = target.caps().subgroup;
    let mut case = kernel(seed, options(wave));
    case.kernel.name = format!("random_{seed}");
    let caps = Caps { subgroup: wave, ..Caps::ANY };
    let legal = target.legalize(&proven(&case.kernel, &caps)).unwrap();
    let artifact = target.emit(&proven(&legal, &caps)).unwrap();
    let mut expected = case.args.clone();
    let how = interp::Launch { grid: case.grid, args: &mut expected };
    interp::run(&proven(&case.kernel, &caps), wave, how).unwrap_or_else(|trap| panic!("seed {seed}: {trap}"));
    let source = clang::source(&artifact).to_string();
    (Launch { artifact, source, wave, grid: case.grid, args: case.args }, expected)
}

fn agree(device: &str, sanitize: Sanitize, range: std::ops::Range<u64>, orders: &[Order]) {
    let Some(clang) = clang::find("hip_random") else { return };
    let target = HipTarget::named(device).unwrap();
    let fnuz = target.gpu().float8 == Float8::Fnuz;
    let firsts: Vec<u64> = range.clone().step_by(BATCH as usize).collect();
    let end = range.end;
    let batch = |first: u64| {
        let seeds: Vec<u64> = (first..(first + BATCH).min(end)).collect();
        let (launches, expected): (Vec<Launch>, Vec<Vec<ArgValue>>) =
            seeds.iter().map(|&seed| launch(&target, seed)).unzip();
        let sources: Vec<String> = launches.iter().map(|launch| launch.source.clone()).collect();
        let program = Program::build(&clang, launches, fnuz, sanitize).unwrap();
        for &order in orders {
            let results = program.run(order).unwrap_or_else(|why| panic!("seeds from {first} for {device}: {why}"));
            for (((seed, result), expected), source) in seeds.iter().zip(&results).zip(&expected).zip(&sources) {
                for (number, (got, wanted)) in result.iter().zip(expected).enumerate() {
                    let differs = got.iter().zip(wanted.bytes()).position(|(a, b)| a != b);
                    assert!(
                        differs.is_none(),
                        "seed {seed} for {device}, {order:?}: argument {number} differs at byte {differs:?}\n{source}"
                    );
                }
            }
        }
    };
    // Two batches at a time: a small machine has two cores.
    for pair in firsts.chunks(2) {
        std::thread::scope(|scope| {
            for &first in pair {
                scope.spawn(move || batch(first));
            }
        });
    }
}

const ORDERS: &[Order] = &[Order::Forward, Order::Reversed, Order::Random(1), Order::Random(2)];

#[test]
fn waves_of_64_with_fnuz_floats() {
    agree("mi300x", Sanitize::Nothing, 0..seeds(), ORDERS);
}

#[test]
fn waves_of_64_with_ocp_floats() {
    agree("mi350x", Sanitize::Nothing, seeds()..seeds() * 3 / 2, ORDERS);
}

#[test]
fn waves_of_32() {
    agree("rx7900xtx", Sanitize::Nothing, 0..seeds(), ORDERS);
}

#[test]
fn under_sanitizers() {
    agree("mi250", Sanitize::AddressAndUndefined, 0..seeds() / 4, &[Order::Reversed]);
}

#[test]
fn clang_takes_them_for_every_device() {
    let Some(clang) = clang::find("hip_random") else { return };
    let folder = tempfile::tempdir().unwrap();
    for device in ["mi300x", "mi250", "rx7900xtx", "rx9070xt"] {
        let target = HipTarget::named(device).unwrap();
        let text: String = (0..seeds() / 4).map(|seed| launch(&target, seed).0.source).collect();
        let resources = clang::compile(&clang, target.arch(), &text, &folder.path().join(device)).unwrap();
        assert_eq!(resources.len() as u64, seeds() / 4, "{device}: a remark for every kernel");
    }
}
