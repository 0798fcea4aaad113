//! Workgroups that share tiles of a product: reference, interpreter and PTX machine agree for ragged shapes and odd numbers of
//! workgroups, a workspace serves launch after launch, and a fence that is missing is found.

use bitsmith_autotune::cases;
use bitsmith_autotune::problem::{Problem, Sample};
use bitsmith_compiler::artifact::Payload;
use bitsmith_compiler::compile;
use bitsmith_compiler::ir::interp::{ArgValue, Launch, run};
use bitsmith_compiler::ir::{Asynchronous, Block, Inst, Kernel, verify};
use bitsmith_compiler::lower::{self, MATRIX_FAMILIES, Role};
use bitsmith_compiler::op::Op;
use bitsmith_compiler::schedule::{Family, Schedule};
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::ptx::PtxTarget;
use bitsmith_emulate::Schedule as Turns;
use bitsmith_tests::machine;

/// A product that workgroups share on a device.
struct Shared {
    op: Op,
    schedule: Schedule,
    problem: Problem,
}

/// The one of a seed, if the device shares any product of the seed's operation.
fn shared(target: &PtxTarget, seed: u64) -> Option<Shared> {
    let caps = target.caps();
    let (op, m) = cases::matrix_case(seed);
    let ring = MATRIX_FAMILIES.iter().find(|family| family.family == Family::Ring).unwrap();
    if (ring.refuses)(&op, caps).is_some() {
        return None;
    }
    let space: Vec<Schedule> = (ring.space)(&op, caps, m).into_iter().filter(|s| s.workgroups > 1).collect();
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut schedule = *space.get(rng.usize(..space.len().max(1)))?;
    // Any number up to that of steps is right, and most divide nothing.
    schedule.workgroups = rng.u32(2..=schedule.workgroups * schedule.split);
    if (ring.build)(&op, &schedule, caps).is_err() {
        schedule.workgroups = 2;
    }
    // Up to two rows of tiles: the interpreter multiplies slowly.
    let problem = Problem::random(&op, m.min(schedule.tile_m as usize + 3), seed).unwrap();
    let problem = problem.packed_for(&schedule, caps).unwrap();
    Some(Shared { op, schedule, problem })
}

fn arguments(problem: &Problem) -> Vec<ArgValue> {
    let mut args: Vec<ArgValue> = (problem.buffers.iter())
        .map(|buffer| match buffer.signature.written {
            true => ArgValue::unwritten(buffer.bytes.len()),
            false => ArgValue::filled(buffer.bytes.clone()),
        })
        .collect();
    args.push(ArgValue::I32(problem.m as i32));
    args
}

/// The place of a role among a problem's buffers.
fn place(problem: &Problem, role: Role) -> usize {
    problem.buffers.iter().position(|buffer| buffer.signature.role == role).unwrap()
}

/// Y and the workspace after a launch on the interpreter, the workspace before it being this.
fn interpret(
    kernel: &Kernel,
    target: &PtxTarget,
    one: &Shared,
    workspace: &[u8],
) -> Result<(Vec<u8>, Vec<u8>), String> {
    let verified = verify(kernel, target.caps()).map_err(|faults| format!("{faults:?}"))?;
    let (y, w) = (place(&one.problem, Role::Output), place(&one.problem, Role::Workspace));
    let mut args = arguments(&one.problem);
    args[w] = ArgValue::filled(workspace.to_vec());
    let grid = lower::grid(&one.op, &one.schedule, one.problem.m);
    run(&verified, target.caps().subgroup, Launch { grid, args: &mut args }).map_err(|trap| trap.to_string())?;
    if let ArgValue::Buffer(memory) = &args[y]
        && let Some(hole) = memory.written.as_ref().and_then(|written| written.iter().position(|written| !written))
    {
        return Err(format!("byte {hole} of Y was never written"));
    }
    Ok((args[y].bytes().to_vec(), args[w].bytes().to_vec()))
}

fn case(target: &PtxTarget, seed: u64) -> Result<bool, String> {
    let Some(one) = shared(target, seed) else { return Ok(false) };
    let at = |stage: &str, why: String| {
        format!(
            "seed {seed} on {}, {stage}: {why}\n  {:?} {:?} m {}",
            target.caps().name,
            one.op,
            one.schedule,
            one.problem.m
        )
    };
    let compiled = compile(&one.op, &one.schedule, target).map_err(|e| at("compile", e.to_string()))?;
    let check = |stage: &str, y: &[u8]| {
        let report = one.problem.check(one.schedule.family, &[y], Sample::Everything);
        if report.passed() { Ok(()) } else { Err(at(stage, report.first_wrong.unwrap_or_default())) }
    };
    let (y, w) = (place(&one.problem, Role::Output), place(&one.problem, Role::Workspace));
    let zeros = one.problem.buffers[w].bytes.clone();
    let (first, after) = interpret(&compiled.legal, target, &one, &zeros).map_err(|e| at("interpreter", e))?;
    check("interpreter", &first)?;
    let (second, _) = interpret(&compiled.legal, target, &one, &after).map_err(|e| at("second launch", e))?;
    if first != second {
        return Err(at("second launch", "other bytes than the first".into()));
    }
    let grid = lower::grid(&one.op, &one.schedule, one.problem.m);
    let mut before = zeros;
    let mut known: Option<Vec<u8>> = None;
    // The workspace goes from launch to launch, as on a device.
    for turns in Turns::all() {
        let stage = format!("PTX machine under {turns:?}");
        let mut args = arguments(&one.problem);
        args[w] = ArgValue::filled(before);
        let found = machine::run(&compiled.legal, &compiled.artifact, grid, &args, turns).map_err(|e| at(&stage, e))?;
        check(&stage, &found[y])?;
        if known.get_or_insert_with(|| found[y].clone()) != &found[y] {
            return Err(at(&stage, "other bytes than under another schedule".into()));
        }
        before = found[w].clone();
    }
    Ok(true)
}

/// `BITSMITH_CASES` changes the number of seeds.
#[test]
fn shared_tiles_agree_under_every_schedule() {
    let count = std::env::var("BITSMITH_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(90u64);
    let targets = ["sm_80", "sm_89", "sm_90a"].map(|name| PtxTarget::named(name).unwrap());
    let half = |first: u64| -> Vec<Result<bool, String>> {
        (first..count).step_by(2).map(|seed| case(&targets[(seed / 2) as usize % targets.len()], seed)).collect()
    };
    let results = std::thread::scope(|scope| {
        let other = scope.spawn(|| half(1));
        let mut results = half(0);
        results.extend(other.join().expect("the other half panicked"));
        results
    });
    let ran = results.iter().filter(|result| matches!(result, Ok(true))).count();
    let failures: Vec<String> = results.into_iter().filter_map(Result::err).collect();
    println!("{ran} of {count} seeds share tiles");
    let shown = failures.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
    assert!(failures.is_empty(), "{} failed:\n{shown}", failures.len());
    assert!(ran as u64 * 3 > count, "only {ran} of {count} seeds share tiles");
}

/// Takes fences number `from` to `to` away, counted on from `seen`.
fn without_fences(block: &mut Block, keep: &dyn Fn(usize) -> bool, seen: &mut usize) {
    block.statements.retain_mut(|statement| match &mut statement.inst {
        Inst::Asynchronous(inner) if **inner == Asynchronous::DeviceFence => {
            *seen += 1;
            keep(*seen - 1)
        }
        Inst::For(inner) => {
            without_fences(&mut inner.body, keep, seen);
            true
        }
        Inst::If(inner) => {
            without_fences(&mut inner.then, keep, seen);
            without_fences(&mut inner.otherwise, keep, seen);
            true
        }
        _ => true,
    });
}

#[test]
fn a_missing_fence_is_found_by_the_interpreter_and_by_the_ptx_machine() {
    let target = PtxTarget::named("sm_90a").unwrap();
    let mut tried = 0;
    // Where workgroups do not divide the tiles, one of these is in parts.
    let in_parts = |one: &Shared| {
        let Op::Matmul(op) = one.op else { return false };
        !op.n.div_ceil(one.schedule.tile_n as usize).is_multiple_of(one.schedule.workgroups as usize)
    };
    for one in (0..40).filter_map(|seed| shared(&target, seed)).filter(in_parts).take(3) {
        let compiled = compile(&one.op, &one.schedule, &target).unwrap();
        let w = place(&one.problem, Role::Workspace);
        let zeros = one.problem.buffers[w].bytes.clone();
        let grid = lower::grid(&one.op, &one.schedule, one.problem.m);
        let Payload::Text(text) = &compiled.artifact.payload else { panic!("PTX is text") };
        let fence = "fence.acq_rel.gpu;";
        assert_eq!(text.matches(fence).count(), 2);
        for which in 0..2 {
            let (mut kernel, mut seen) = (compiled.legal.clone(), 0);
            without_fences(&mut kernel.body, &|number| number != which, &mut seen);
            assert_eq!(seen, 2);
            let why = interpret(&kernel, &target, &one, &zeros).expect_err("a race");
            assert!(why.contains("race on byte") && why.contains("workspace"), "{why}");
            let (before, after) = text.split_at(text.match_indices(fence).nth(which).unwrap().0);
            let mut artifact = compiled.artifact.clone();
            artifact.payload = Payload::Text(format!("{before}{}", &after[fence.len()..]));
            for turns in Turns::all() {
                let why = machine::run(&compiled.legal, &artifact, grid, &arguments(&one.problem), turns);
                let why = why.expect_err("a race");
                assert!(why.contains("is not ordered") && why.contains("`workspace`"), "{turns:?}: {why}");
            }
        }
        tried += 1;
    }
    assert_eq!(tried, 3);
}

#[test]
fn more_workgroups_than_steps_and_families_that_share_nothing_are_refused() {
    let target = PtxTarget::named("sm_80").unwrap();
    let one = (0..40).find_map(|seed| shared(&target, seed)).unwrap();
    let refuse =
        |schedule: Schedule| lower::lower(&one.op, &schedule, target.caps()).expect_err("a refusal").to_string();
    let why = refuse(one.schedule.with_workgroups(1 << 20));
    assert!(why.contains("workgroups is 1048576; accepted: 1 to "), "{why}");
    assert!(refuse(one.schedule.with_workgroups(0)).contains("workgroups is 0"));
    let spread = Schedule { family: Family::Spread, ..one.schedule };
    assert!(refuse(spread).contains("accepted in family spread: 1"));
    assert!(lower::workspace(&one.op, &one.schedule.with_workgroups(1)).is_none());
}
