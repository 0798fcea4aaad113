//! What the tests of the machine share: a kernel around one instruction, and `ptxas` where it is installed.

use bitsmith_emulate::{Argument, Buffer, Fault, FaultKind, Launch, Module, Outcome, Schedule};
use std::process::Command;

/// A module with one kernel `k`.
pub fn module(target: &str, parameters: &str, body: &str) -> String {
    let version = match target {
        "sm_80" | "sm_86" => "7.8",
        "sm_89" => "8.4",
        _ => "8.4",
    };
    format!(
        ".version {version}\n.target {target}\n.address_size 64\n.visible .entry k({parameters})\n{{\n{body}\n    ret;\n}}\n"
    )
}

/// Runs kernel `k` under one schedule.
pub fn run(text: &str, launch: &Launch) -> Result<Outcome, Fault> {
    let module = Module::load(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let kernel = module.kernel("k").unwrap_or_else(|e| panic!("{e}\n{text}"));
    kernel.run(launch)
}

/// Runs under every schedule; all must agree on every byte.
pub fn run_all(text: &str, launch: &Launch) -> Outcome {
    let mut first: Option<Outcome> = None;
    for schedule in Schedule::all() {
        let outcome = run(text, &Launch { schedule, ..launch.clone() });
        let outcome = outcome.unwrap_or_else(|e| panic!("{schedule:?}: {e}\n{text}"));
        if let Some(first) = &first {
            assert_eq!(first.buffers, outcome.buffers, "{schedule:?}");
        }
        first.get_or_insert(outcome);
    }
    first.unwrap()
}

/// Every schedule must report this kind of fault; the first report comes back.
pub fn fails(text: &str, launch: &Launch, kind: FaultKind) -> Fault {
    let mut first = None;
    for schedule in Schedule::all() {
        match run(text, &Launch { schedule, ..launch.clone() }) {
            Ok(_) => panic!("{schedule:?}: no fault, expected {kind:?}\n{text}"),
            Err(fault) => {
                assert_eq!(fault.kind, kind, "{schedule:?}: {fault}");
                assert!(fault.line > 0 && !fault.instruction.is_empty(), "{fault:?}");
                first.get_or_insert(fault);
            }
        }
    }
    first.unwrap()
}

/// Where `ptxas` is: an environment variable, then `PATH`.
pub fn ptxas() -> Option<String> {
    let candidate = std::env::var("BITSMITH_PTXAS").unwrap_or_else(|_| "ptxas".into());
    Command::new(&candidate).arg("--version").output().ok().filter(|o| o.status.success()).map(|_| candidate)
}

/// Whether the environment turns a missing tool into a failure.
pub fn required(tool: &str) -> bool {
    std::env::var("BITSMITH_REQUIRE").is_ok_and(|list| list.split(',').any(|name| name == tool))
}

/// Says what did not run, or fails where it had to.
pub fn skip(tool: &str, test: &str) {
    assert!(!required(tool), "`{tool}` is required and was not found");
    eprintln!("skipped: {test}: `{tool}` was not found");
}

/// Assembles PTX, so that nobody tests the machine with PTX that is none.
pub fn assembles(test: &str, text: &str) {
    let Some(ptxas) = ptxas() else { return skip("ptxas", test) };
    let target = text.lines().find_map(|l| l.strip_prefix(".target ")).unwrap().trim().to_string();
    let file = tempfile::Builder::new().suffix(".ptx").tempfile().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let output = Command::new(ptxas).args(["-arch", &target, "-o", "/dev/null"]).arg(file.path()).output().unwrap();
    let report = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{test}: ptxas refuses:\n{report}\n{text}");
}

pub fn bytes_of_u64(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub fn bytes_of_u32(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub fn u64s(buffer: &Buffer) -> Vec<u64> {
    assert_eq!(buffer.first_unwritten(), None, "`{}` has bytes that nothing wrote", buffer.name);
    buffer.data.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect()
}

pub fn u32s(buffer: &Buffer) -> Vec<u32> {
    assert_eq!(buffer.first_unwritten(), None, "`{}` has bytes that nothing wrote", buffer.name);
    buffer.data.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect()
}

/// Registers and loads around one instruction: inputs `%q1 %q2 %q3` (64 bits), their low halves `%r1…`, `%h1…`, and
/// results `%q0`, `%r0`, `%h0`, predicates `%p0…`.
pub fn around(target: &str, instructions: &[&str]) -> String {
    let mut body = String::from(
        "    .reg .b64 %q<8>;\n    .reg .b32 %r<8>;\n    .reg .b16 %h<8>;\n    .reg .pred %p<4>;\n    .reg .b64 %at<3>;\n    \
         .reg .b32 %i<4>;\n    mov.u32 %i0, %tid.x;\n    mov.u32 %i1, %ctaid.x;\n    mov.u32 %i2, %ntid.x;\n    \
         mad.lo.u32 %i0, %i1, %i2, %i0;\n",
    );
    for (i, name) in ["a", "b", "c"].iter().enumerate() {
        let n = i + 1;
        body += &format!(
            "    ld.param.u64 %at0, [{name}];\n    mad.wide.u32 %at0, %i0, 8, %at0;\n    ld.global.u64 %q{n}, [%at0];\n    \
             cvt.u32.u64 %r{n}, %q{n};\n    cvt.u16.u64 %h{n}, %q{n};\n"
        );
    }
    body += "    ld.param.u64 %at1, [d];\n    mad.wide.u32 %at1, %i0, ";
    body += &format!("{}, %at1;\n", 8 * instructions.len());
    for (i, text) in instructions.iter().enumerate() {
        body += "    mov.b64 %q0, 0;\n    mov.b32 %r0, 0;\n    mov.b16 %h0, 0;\n";
        body += &format!("    {text}\n");
        let at = 8 * i;
        let to = text.rfind("%q0").map(|_| "q").or(text.rfind("%r0").map(|_| "r")).unwrap_or("h");
        body += &match to {
            "q" => format!("    st.global.u64 [%at1+{at}], %q0;\n"),
            "r" => format!("    cvt.u64.u32 %q0, %r0;\n    st.global.u64 [%at1+{at}], %q0;\n"),
            _ => format!("    cvt.u64.u16 %q0, %h0;\n    st.global.u64 [%at1+{at}], %q0;\n"),
        };
    }
    module(target, ".param .u64 a, .param .u64 b, .param .u64 c, .param .u64 d", &body)
}

/// Runs instructions over all inputs: one row of results per input triple.
pub fn evaluate(text: &str, inputs: &[[u64; 3]], instructions: usize) -> Vec<Vec<u64>> {
    let padded = inputs.len().next_multiple_of(32);
    let column = |i: usize| {
        let values: Vec<u64> = (0..padded).map(|at| inputs[at.min(inputs.len() - 1)][i]).collect();
        bytes_of_u64(&values)
    };
    let launch = Launch {
        grid: [(padded / 32) as u32, 1, 1],
        buffers: vec![
            Buffer::input("a", column(0)),
            Buffer::input("b", column(1)),
            Buffer::input("c", column(2)),
            Buffer::output("d", padded * 8 * instructions),
        ],
        arguments: (0..4).map(Argument::buffer).collect(),
        ..Launch::default()
    };
    let outcome = run(text, &launch).unwrap_or_else(|e| panic!("{e}\n{text}"));
    u64s(&outcome.buffers[3]).chunks(instructions).take(inputs.len()).map(<[u64]>::to_vec).collect()
}
