//! Runs a problem on the interpreter.

use bitsmith_autotune::problem::Problem;
use bitsmith_compiler::caps::Caps;
use bitsmith_compiler::ir::interp::{ArgValue, Launch, run};
use bitsmith_compiler::ir::{Kernel, verify};
use bitsmith_compiler::lower;
use bitsmith_compiler::schedule::Schedule;

/// The outputs of a kernel on the interpreter, or what went wrong.
pub fn interpret(kernel: &Kernel, caps: &Caps, problem: &Problem, schedule: &Schedule) -> Result<Vec<Vec<u8>>, String> {
    let verified =
        verify(kernel, caps).map_err(|faults| faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
    let problem = &problem.packed_for(schedule, caps).map_err(|error| error.to_string())?;
    let mut args: Vec<ArgValue> =
        problem
            .buffers
            .iter()
            .map(|b| {
                if b.signature.written { ArgValue::unwritten(b.bytes.len()) } else { ArgValue::filled(b.bytes.clone()) }
            })
            .collect();
    args.push(ArgValue::I32(problem.m as i32));
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
