//! Seeded random kernels: every pass, and every other way to run a kernel, gives the interpreter's bytes.

use bitsmith_compiler::caps::Caps;
use bitsmith_compiler::ir::interp::{ArgValue, Launch, run};
use bitsmith_compiler::ir::{Inst, Kernel, parse, verify};
use bitsmith_compiler::pass::expand::{Choice, expand_chosen};
use bitsmith_compiler::pass::{CSE, DCE, FOLD, HOIST, Pass, UNROLL, renumber, run_all};
use bitsmith_tests::random::{Case, Options, kernel};

/// Seeds per set of options. `BITSMITH_SEEDS` asks for more.
fn seeds() -> std::ops::Range<u64> {
    let count = std::env::var("BITSMITH_SEEDS").ok().and_then(|text| text.parse().ok());
    0..count.unwrap_or(200)
}

/// The buffers after a launch of a kernel with a case's arguments.
fn interpret(name: &str, kernel: &Kernel, case: &Case) -> Vec<ArgValue> {
    let caps = Caps { subgroup: case.subgroup, ..Caps::ANY };
    let verified = verify(kernel, &caps).unwrap_or_else(|faults| {
        let faults: Vec<String> = faults.iter().map(|fault| fault.to_string()).collect();
        panic!("{name}: {}", faults.join("\n"))
    });
    let mut args = case.args.clone();
    let launch = Launch { grid: case.grid, args: &mut args };
    if let Err(trap) = run(&verified, case.subgroup, launch) {
        panic!("{name}: {trap}");
    }
    args
}

/// Hook for other ways to run or to write down a kernel: print and parse, the CPU target, devices that are present.
/// Each is given the case and the buffers that the launch must leave behind.
const OTHER_WAYS: &[fn(name: &str, case: &Case, expected: &[ArgValue])] = &[print_and_parse];

fn print_and_parse(name: &str, case: &Case, _: &[ArgValue]) {
    let text = case.kernel.to_string();
    let again = parse(&text).unwrap_or_else(|fault| panic!("{name}: {fault:?}\n{text}"));
    assert!(again == case.kernel, "{name}: parsed to another kernel\n{text}");
}

fn check(options: Options) {
    let lists: &[&[Pass]] = &[
        &[FOLD],
        &[CSE],
        &[DCE],
        &[HOIST],
        &[UNROLL],
        &[UNROLL, FOLD, CSE, HOIST, DCE],
        &[HOIST, CSE, UNROLL, FOLD, DCE],
    ];
    for seed in seeds() {
        let case = kernel(seed, options);
        let expected = interpret(&format!("seed {seed}"), &case.kernel, &case);
        let mut forms: Vec<(String, Kernel)> = vec![("renumber".to_string(), renumber(case.kernel.clone()))];
        for list in lists {
            let names: Vec<&str> = list.iter().map(|pass| pass.name).collect();
            forms.push((names.join(", "), run_all(case.kernel.clone(), list, &Caps::ANY)));
        }
        let choice = Choice { subgroup_of_one: case.subgroup == 1, ..Choice::ALL };
        let expanded = expand_chosen(case.kernel.clone(), &choice);
        forms.push(("expand, fold, cse, hoist, dce".to_string(), run_all(expanded.clone(), lists[5], &Caps::ANY)));
        forms.push(("expand".to_string(), expanded));
        for (form, kernel) in forms {
            let name = format!("seed {seed} of {options:?} after {form}");
            assert!(interpret(&name, &kernel, &case) == expected, "{name}: other bytes");
        }
        for way in OTHER_WAYS {
            way(&format!("seed {seed} of {options:?}"), &case, &expected);
        }
    }
}

#[test]
fn one_thread() {
    check(Options::CPU);
}

#[test]
fn one_thread_without_narrow_vectors() {
    check(Options { narrow_vectors: false, ..Options::CPU });
}

#[test]
fn one_thread_with_wide_vectors_and_small_floats() {
    check(Options::WIDE);
}

#[test]
fn several_threads() {
    check(Options::SIMT);
}

#[test]
fn random_kernels_cover_the_instructions_and_do_something() {
    let mut names = std::collections::BTreeSet::new();
    let mut lively = 0;
    for seed in 0..100 {
        let case = kernel(seed, Options::SIMT);
        collect(&case.kernel.body, &mut names);
        let after = interpret("coverage", &case.kernel, &case);
        lively += after[2].bytes().iter().filter(|&&byte| byte != 0).count();
        assert_eq!(case.kernel, kernel(seed, Options::SIMT).kernel, "the same seed gives the same kernel");
    }
    for name in [
        "Const",
        "Arg",
        "Builtin",
        "Bin",
        "Un",
        "Cmp",
        "Select",
        "Cast",
        "Bitcast",
        "Fma",
        "Vector",
        "Splat",
        "Extract",
        "Swizzle",
        "Load",
        "Store",
        "Barrier",
        "For",
        "If",
        "Yield",
        "Unpack",
        "Dot4",
        "Dot2",
        "PermuteBytes",
        "Shuffle",
        "SubgroupReduce",
        "AtomicAdd",
    ] {
        assert!(names.contains(name), "no {name} in a hundred kernels");
    }
    assert!(lively > 100_000, "only {lively} bytes that are not zero");
}

fn collect(block: &bitsmith_compiler::ir::Block, names: &mut std::collections::BTreeSet<String>) {
    for statement in &block.statements {
        let text = format!("{:?}", statement.inst);
        names.insert(text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_string());
        match &statement.inst {
            Inst::For(inner) => collect(&inner.body, names),
            Inst::If(inner) => {
                collect(&inner.then, names);
                collect(&inner.otherwise, names);
            }
            _ => {}
        }
    }
}
