//! Faults planted in a kernel's source, each of which the checks must catch.

use bitsmith_compiler::caps::Caps;
use bitsmith_compiler::ir::interp::ArgValue;
use bitsmith_compiler::ir::{Access, Address, BinOp, Builder, Builtin, Kernel, Scalar, verify};
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::hip::HipTarget;
use bitsmith_tests::hip::clang;
use bitsmith_tests::hip::host::{Launch, Order, Program, Sanitize};
use std::path::PathBuf;

const ORDERS: [Order; 4] = [Order::Forward, Order::Reversed, Order::Random(1), Order::Random(2)];

/// Each thread hands its word to the thread at the other end of the workgroup, through shared memory.
fn reversal(threads: u32) -> Kernel {
    let mut b = Builder::new("reversal");
    b.workgroup(threads, 1, 1);
    let input = b.buffer("words", Access::Read, 16);
    let out = b.buffer("out", Access::Write, 16);
    let slots = b.shared("slots", 4 * threads, 16);
    let thread = b.builtin(Builtin::LocalId(0));
    let mine = b.bin_imm(BinOp::Mul, thread, 4);
    let word = b.load(Scalar::I32, Address { memory: input, index: Some(mine), offset: 0 }, 4);
    b.store(Address { memory: slots, index: Some(mine), offset: 0 }, 4, word);
    b.barrier();
    let last = b.int(Scalar::I32, 4 * (threads as i64 - 1));
    let theirs = b.bin(BinOp::Sub, last, mine);
    let word = b.load(Scalar::I32, Address { memory: slots, index: Some(theirs), offset: 0 }, 4);
    b.store(Address { memory: out, index: Some(mine), offset: 0 }, 4, word);
    b.finish()
}

struct Setting {
    clang: PathBuf,
    launch: Launch,
    expected: Vec<u8>,
}

fn setting(test: &str) -> Option<Setting> {
    let clang = clang::find(test)?;
    let target = HipTarget::named("mi300x").unwrap();
    let threads = 256u32;
    let caps = Caps { subgroup: 64, ..Caps::ANY };
    let kernel = reversal(threads);
    let legal = target.legalize(&verify(&kernel, &caps).unwrap()).unwrap();
    let artifact = target.emit(&verify(&legal, &caps).unwrap()).unwrap();
    let words: Vec<u32> = (0..threads).map(|i| i * i + 1).collect();
    let bytes = |words: &mut dyn Iterator<Item = &u32>| words.flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let args = vec![ArgValue::filled(bytes(&mut words.iter())), ArgValue::filled(vec![0; 4 * threads as usize])];
    let expected = bytes(&mut words.iter().rev());
    let source = clang::source(&artifact).to_string();
    Some(Setting { clang, launch: Launch { artifact, source, wave: 64, grid: [1, 1, 1], args }, expected })
}

impl Setting {
    /// The orders under which the source gives other bytes, or what the host says of it.
    fn faults(&self, source: String, sanitize: Sanitize) -> Vec<String> {
        let launch = Launch { source, ..self.launch.clone() };
        let program = Program::build(&self.clang, vec![launch], true, sanitize).unwrap();
        let mut faults = Vec::new();
        for order in ORDERS {
            match program.run(order) {
                Ok(results) if results[0][1] == self.expected => {}
                Ok(_) => faults.push(format!("{order:?}: other bytes")),
                Err(why) => faults.push(why),
            }
        }
        faults
    }

    fn changed(&self, from: &str, to: &str) -> String {
        // The helper of this name stands before the body.
        let (head, body) = self.launch.source.rsplit_once("extern \"C\"").unwrap();
        assert_eq!(body.matches(from).count(), 1, "{from} in\n{body}");
        format!("{head}extern \"C\"{}", body.replace(from, to))
    }
}

#[test]
fn the_kernel_is_right_as_it_is() {
    let Some(setting) = setting("hip_faults") else { return };
    assert_eq!(setting.faults(setting.launch.source.clone(), Sanitize::Nothing), [""; 0]);
    assert_eq!(setting.faults(setting.launch.source.clone(), Sanitize::AddressAndUndefined), [""; 0]);
}

#[test]
fn a_deleted_barrier_is_found() {
    let Some(setting) = setting("hip_faults") else { return };
    let faults = setting.faults(setting.changed("barrier();", ""), Sanitize::Nothing);
    assert!(!faults.is_empty(), "no order of waves shows that the barrier is gone");
}

#[test]
fn a_barrier_that_some_lanes_miss_is_found() {
    let Some(setting) = setting("hip_faults") else { return };
    let faults = setting.faults(setting.changed("barrier();", "if (thread < 100u) barrier();"), Sanitize::Nothing);
    assert!(faults.iter().all(|why| why.contains("divergent barrier")) && faults.len() == ORDERS.len(), "{faults:?}");
}

#[test]
fn an_overrun_of_shared_memory_is_found() {
    let Some(setting) = setting("hip_faults") else { return };
    let faults = setting.faults(setting.changed("slots[1024]", "slots[1020]"), Sanitize::AddressAndUndefined);
    assert!(faults.iter().all(|why| why.contains("overflow")) && faults.len() == ORDERS.len(), "{faults:?}");
}
