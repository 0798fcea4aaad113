//! Runs a problem on the interpreter.

use bitsmith_autotune::problem::{Buffer, Problem};
use bitsmith_compiler::caps::Caps;
use bitsmith_compiler::ir::interp::{ArgValue, Launch, run};
use bitsmith_compiler::ir::{Kernel, verify};
use bitsmith_compiler::lower::{self, Role};
use bitsmith_compiler::schedule::Schedule;

/// What a launch of a problem is given: nothing has written outputs and decoded weights yet.
pub fn arguments(problem: &Problem) -> Vec<ArgValue> {
    let given = |buffer: &Buffer| match buffer.signature.written || buffer.signature.role == Role::Decoded {
        true => ArgValue::unwritten(buffer.bytes.len()),
        false => ArgValue::filled(buffer.bytes.clone()),
    };
    problem.buffers.iter().map(given).chain([ArgValue::I32(problem.m as i32)]).collect()
}

/// Runs the kernel that a launch runs first, on the launch's arguments. Fails also where it leaves a byte unwritten.
pub fn prepare(
    first: &lower::Preparation,
    caps: &Caps,
    problem: &Problem,
    args: &mut [ArgValue],
) -> Result<(), String> {
    let verified = verify(&first.kernel, caps)
        .map_err(|faults| faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
    let place = |role: &Role| problem.buffers.iter().position(|buffer| buffer.signature.role == *role);
    let places: Vec<usize> =
        first.takes.iter().map(|role| place(role).ok_or(format!("no buffer of {role:?}"))).collect::<Result<_, _>>()?;
    let mut own: Vec<ArgValue> = places.iter().map(|&place| args[place].clone()).collect();
    run(&verified, caps.subgroup, Launch { grid: first.grid, args: &mut own })
        .map_err(|trap| format!("{}: {trap}", first.kernel.name))?;
    for (place, value) in places.into_iter().zip(own) {
        if let ArgValue::Buffer(memory) = &value
            && let Some(hole) = memory.written.as_ref().and_then(|written| written.iter().position(|written| !written))
        {
            return Err(format!("byte {hole} of {} was never written", problem.buffers[place].signature.name));
        }
        args[place] = value;
    }
    Ok(())
}

/// The outputs of a kernel on the interpreter, or what went wrong.
pub fn interpret(kernel: &Kernel, caps: &Caps, problem: &Problem, schedule: &Schedule) -> Result<Vec<Vec<u8>>, String> {
    let verified =
        verify(kernel, caps).map_err(|faults| faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
    let problem = &problem.packed_for(schedule, caps).map_err(|error| error.to_string())?;
    let mut args = arguments(problem);
    let first = lower::preparation(&problem.op, schedule, caps).map_err(|error| error.to_string())?;
    if let Some(first) = &first {
        prepare(first, caps, problem, &mut args)?;
    }
    let grid = lower::grid(&problem.op, schedule, problem.m);
    run(&verified, caps.subgroup, Launch { grid, args: &mut args }).map_err(|trap| trap.to_string())?;
    for (arg, buffer) in args.iter().zip(&problem.buffers) {
        if let (ArgValue::Buffer(memory), true) = (arg, buffer.signature.written)
            && let Some(hole) = memory.written.as_ref().and_then(|w| w.iter().position(|w| !w))
        {
            return Err(format!("byte {hole} of {} was never written", buffer.signature.name));
        }
    }
    Ok(args
        .iter()
        .zip(&problem.buffers)
        .filter(|(_, buffer)| buffer.signature.written)
        .map(|(arg, _)| arg.bytes().to_vec())
        .collect())
}
