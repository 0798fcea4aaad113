//! Broken kernels: each must be reported, under every schedule, as what it is and where it is.

use crate::common::{self, fails, module, run_all};
use bitsmith_emulate::{Argument, Buffer, FaultKind, Launch};

const REGISTERS: &str = "    .reg .b64 %q<8>;\n    .reg .b32 %r<8>;\n    .reg .pred %p<4>;\n    mov.u32 %r0, %tid.x;\n    \
                         ld.param.u64 %q0, [d];\n    mad.wide.u32 %q1, %r0, 4, %q0;\n";

fn kernel(body: &str) -> String {
    let text = module("sm_90a", ".param .u64 d", &format!("{REGISTERS}{body}"));
    common::assembles("faults", &text);
    text
}

fn launch(threads: u32) -> Launch {
    Launch {
        block: [threads, 1, 1],
        buffers: vec![Buffer::both("d", vec![0; 4 * threads as usize])],
        arguments: vec![Argument::buffer(0)],
        ..Launch::default()
    }
}

/// Threads write shared memory and read what a thread of another warp wrote.
fn exchange(barrier: &str) -> String {
    kernel(&format!(
        "    .shared .align 4 .b8 s[512];\n    mov.u32 %r1, s;\n    mad.lo.u32 %r2, %r0, 4, %r1;\n    \
         st.shared.u32 [%r2], 0;\n    bar.sync 0;\n    st.shared.u32 [%r2], %r0;\n\
         {barrier}\n    xor.b32 %r3, %r0, 32;\n    mad.lo.u32 %r3, %r3, 4, %r1;\n    ld.shared.u32 %r4, [%r3];\n    \
         st.global.u32 [%q1], %r4;"
    ))
}

#[test]
fn a_barrier_makes_an_exchange_sound() {
    let outcome = run_all(&exchange("    bar.sync 0;"), &launch(128));
    assert_eq!(common::u32s(&outcome.buffers[0]), (0..128).map(|i| i ^ 32).collect::<Vec<u32>>());
}

#[test]
fn a_missing_barrier_is_a_race() {
    let fault = fails(&exchange(""), &launch(128), FaultKind::Race);
    assert!(fault.instruction.starts_with("ld.shared.u32") || fault.instruction.starts_with("st.shared"), "{fault}");
    assert!(fault.message.contains("at line"), "{fault}");
}

#[test]
fn a_write_over_what_others_still_read_is_a_race() {
    let text = kernel(
        "    .shared .align 4 .b8 s[512];\n    mov.u32 %r1, s;\n    mad.lo.u32 %r2, %r0, 4, %r1;\n    st.shared.u32 [%r2], %r0;\n    \
         bar.sync 0;\n    xor.b32 %r3, %r0, 32;\n    mad.lo.u32 %r3, %r3, 4, %r1;\n    ld.shared.u32 %r4, [%r3];\n    \
         st.shared.u32 [%r2], 7;\n    st.global.u32 [%q1], %r4;",
    );
    fails(&text, &launch(64), FaultKind::Race);
}

#[test]
fn lanes_that_write_different_values_to_one_place_race() {
    let text = kernel("    .shared .align 4 .b8 s[4];\n    st.shared.u32 [s], %r0;");
    fails(&text, &launch(32), FaultKind::Race);
}

#[test]
fn out_of_bounds_is_found_on_both_sides() {
    let after = fails(&kernel("    st.global.u32 [%q1+4], %r0;"), &launch(32), FaultKind::OutOfBounds);
    assert_eq!(after.lane, Some(31));
    assert!(after.message.contains("offset 128 of `d`"), "{after}");
    let before = fails(&kernel("    st.global.u32 [%q1+-4], %r0;"), &launch(32), FaultKind::OutOfBounds);
    assert_eq!(before.lane, Some(0));
    let shared = "    .shared .align 4 .b8 s[64];\n    mov.u32 %r1, s;\n    mad.lo.u32 %r1, %r0, 4, %r1;\n    st.shared.u32 [%r1], %r0;";
    fails(&kernel(shared), &launch(32), FaultKind::OutOfBounds);
}

#[test]
fn null_is_out_of_bounds() {
    fails(&kernel("    mov.b64 %q2, 0;\n    ld.global.u32 %r1, [%q2];"), &launch(32), FaultKind::OutOfBounds);
}

#[test]
fn misaligned_is_found() {
    let fault = fails(&kernel("    ld.global.v2.u32 {%r1, %r2}, [%q1];"), &launch(32), FaultKind::Misaligned);
    assert_eq!(fault.lane, Some(1));
    fails(&kernel("    st.global.u32 [%q0+2], %r0;"), &launch(32), FaultKind::Misaligned);
}

#[test]
fn uninitialised_registers_predicates_and_memory_are_found() {
    fails(&kernel("    add.u32 %r1, %r2, 1;"), &launch(32), FaultKind::Uninitialised);
    fails(&kernel("    @%p1 st.global.u32 [%q1], %r0;"), &launch(32), FaultKind::Uninitialised);
    let memory = "    .shared .align 4 .b8 s[128];\n    ld.shared.u32 %r1, [s];\n    add.u32 %r1, %r1, 1;";
    let fault = fails(&kernel(memory), &launch(32), FaultKind::Uninitialised);
    assert!(fault.instruction.starts_with("add.u32"), "a load is no use, an addition is: {fault}");
    // A register that only some lanes wrote.
    let partial = "    setp.lt.u32 %p0, %r0, 16;\n    @%p0 mov.u32 %r1, 5;\n    st.global.u32 [%q1], %r1;";
    assert_eq!(fails(&kernel(partial), &launch(32), FaultKind::Uninitialised).lane, Some(16));
    // An output that nobody wrote is visible in the outcome.
    let launch = Launch { buffers: vec![Buffer::output("d", 128)], ..launch(32) };
    let outcome = run_all(&kernel("    setp.ne.u32 %p0, %r0, 3;\n    @%p0 st.global.u32 [%q1], %r0;"), &launch);
    assert_eq!(outcome.buffers[0].first_unwritten(), Some(12));
}

#[test]
fn read_only_memory_stays() {
    let launch = Launch { buffers: vec![Buffer::input("d", vec![0; 128])], ..launch(32) };
    fails(&kernel("    st.global.u32 [%q1], %r0;"), &launch, FaultKind::ReadOnly);
}

#[test]
fn a_divergent_barrier_is_found() {
    let text = kernel(
        "    setp.lt.u32 %p0, %r0, 16;\n    @%p0 bra SKIP;\n    bar.sync 0;\n    bra.uni END;\nSKIP:\n    bar.sync 1;\nEND:",
    );
    let fault = fails(&text, &launch(64), FaultKind::Divergence);
    assert!(fault.message.contains("lanes 0xffff0000") || fault.message.contains("lanes 0x0000ffff"), "{fault}");
}

#[test]
fn shuffles_need_their_lanes() {
    let text = kernel(
        "    setp.lt.u32 %p0, %r0, 8;\n    @!%p0 bra END;\n    shfl.sync.bfly.b32 %r1, %r0, 1, 31, 0xffffffff;\n    bra.uni OUT;\nEND:\n    \
         bar.warp.sync 0xffffffff;\nOUT:",
    );
    fails(&text, &launch(32), FaultKind::Divergence);
    let outside = kernel("    shfl.sync.bfly.b32 %r1, %r0, 1, 31, 0xff;");
    fails(&outside, &launch(32), FaultKind::Misuse);
}

#[test]
fn a_barrier_that_not_all_reach_is_a_deadlock() {
    let text = kernel("    setp.lt.u32 %p0, %r0, 32;\n    @%p0 bra END;\n    bar.sync 1, 128;\nEND:");
    let fault = fails(&text, &launch(128), FaultKind::Deadlock);
    assert!(fault.message.contains("waits at barrier 1, 96 of 128 threads arrived"), "{fault}");
}

const MBARRIER: &str = "    .shared .align 128 .b8 s[128];\n    .shared .align 8 .b64 bar;\n    setp.eq.u32 %p0, %r0, 0;\n    \
                        @%p0 mbarrier.init.shared.b64 [bar], 1;\n    bar.sync 0;\n";

fn bulk(expected: u32) -> String {
    kernel(&format!(
        "{MBARRIER}    @!%p0 bra WAIT;\n    mbarrier.arrive.expect_tx.shared.b64 %q2, [bar], {expected};\n    \
         cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [s], [%q0], 128, [bar];\nWAIT:\n    \
         mbarrier.try_wait.parity.shared.b64 %p1, [bar], 0;\n    @!%p1 bra WAIT;\n    mov.u32 %r1, s;\n    \
         and.b32 %r2, %r0, 31;\n    mad.lo.u32 %r1, %r2, 4, %r1;\n    ld.shared.u32 %r3, [%r1];\n    st.global.u32 [%q1+128], %r3;"
    ))
}

fn bulk_launch() -> Launch {
    let data: Vec<u8> = (0..32u32).flat_map(|i| (i * i).to_le_bytes()).chain([0; 256]).collect();
    Launch { buffers: vec![Buffer::both("d", data)], ..launch(64) }
}

#[test]
fn a_right_transaction_count_works() {
    let outcome = run_all(&bulk(128), &bulk_launch());
    assert_eq!(common::u32s(&outcome.buffers[0])[32..64], (0..32).map(|i| i * i).collect::<Vec<u32>>());
}

#[test]
fn a_wrong_transaction_count_is_a_deadlock_that_says_so() {
    let fault = fails(&bulk(144), &bulk_launch(), FaultKind::Deadlock);
    assert!(fault.message.contains("0 arrivals and 16 bytes outstanding"), "{fault}");
    let fault = fails(&bulk(112), &bulk_launch(), FaultKind::Deadlock);
    assert!(fault.message.contains("0 arrivals and -16 bytes outstanding"), "{fault}");
}

#[test]
fn a_bulk_copy_that_nobody_waits_for_is_a_race_or_unwritten() {
    // Without the wait the data may be there or not: early it is a race, late it is not even written.
    let text = bulk(128).replace("    mbarrier.try_wait.parity.shared.b64 %p1, [bar], 0;\n    @!%p1 bra WAIT;\n", "");
    for schedule in bitsmith_emulate::Schedule::all() {
        let fault = common::run(&text, &Launch { schedule, ..bulk_launch() }).expect_err("a fault");
        assert!(matches!(fault.kind, FaultKind::Race | FaultKind::Uninitialised), "{schedule:?}: {fault}");
    }
}

#[test]
fn mbarrier_misuse_is_found() {
    let late = kernel(&format!(
        "{}    @%p0 mbarrier.arrive.shared.b64 %q2, [bar];\n",
        MBARRIER.replace("    bar.sync 0;\n", "").replace("    @%p0 mbarrier.init.shared.b64 [bar], 1;\n", "")
    ));
    let fault = fails(&late, &launch(32), FaultKind::Misuse);
    assert!(fault.message.contains("no mbarrier was initialised"), "{fault}");
    let many = kernel(&format!("{MBARRIER}    mbarrier.arrive.shared.b64 %q2, [bar], 2;\n"));
    let fault = fails(&many, &launch(32), FaultKind::Misuse);
    assert!(fault.message.contains("2 arrivals"), "{fault}");
    let plain = kernel(&format!("{MBARRIER}    ld.shared.b64 %q2, [bar];\n"));
    fails(&plain, &launch(32), FaultKind::Misuse);
}

#[test]
fn an_mbarrier_that_others_use_before_they_know_of_it_is_found() {
    let text = kernel(&format!(
        "{}    setp.eq.u32 %p2, %r0, 32;\n    @%p2 mbarrier.arrive.shared.b64 %q2, [bar];\n",
        MBARRIER.replace("    bar.sync 0;\n", "")
    ));
    for schedule in bitsmith_emulate::Schedule::all() {
        let fault = common::run(&text, &Launch { schedule, ..launch(64) }).expect_err("a fault");
        assert!(matches!(fault.kind, FaultKind::Race | FaultKind::Misuse), "{schedule:?}: {fault}");
    }
}

#[test]
fn a_copy_that_nobody_waited_for_is_found_when_effects_are_late() {
    let body = |wait: &str| {
        format!(
            "    .shared .align 16 .b8 s[512];\n    mov.u32 %r1, s;\n    mad.lo.u32 %r1, %r0, 16, %r1;\n    \
             mad.wide.u32 %q2, %r0, 16, %q0;\n    cp.async.cg.shared.global [%r1], [%q2], 16;\n    cp.async.commit_group;\n{wait}    \
             ld.shared.u32 %r2, [%r1];\n    add.u32 %r2, %r2, 1;\n    st.global.u32 [%q2], %r2;"
        )
    };
    let launch = Launch { buffers: vec![Buffer::both("d", vec![3; 512])], ..launch(32) };
    run_all(&kernel(&body("    cp.async.wait_group 0;\n")), &launch);
    let text = kernel(&body(""));
    let late = bitsmith_emulate::Schedule { effects: bitsmith_emulate::Effects::Late, ..Default::default() };
    let fault = common::run(&text, &Launch { schedule: late, ..launch }).expect_err("a fault");
    assert_eq!(fault.kind, FaultKind::Uninitialised, "{fault}");
}

/// Two blocks leave numbers for each other; the one that counts last reads what the other one left.
fn handed_over(barrier: &str, before: &str, count: &str, after: &str) -> (String, Launch) {
    let text = kernel(&format!(
        "    .shared .align 4 .b8 s[4];\n    mov.u32 %r1, %ctaid.x;\n    mad.lo.u32 %r2, %r1, 64, %r0;\n    \
         mad.wide.u32 %q2, %r2, 4, %q0;\n    st.global.u32 [%q2+256], %r2;\n{barrier}    setp.ne.u32 %p0, %r0, 0;\n    \
         @%p0 bra SKIP;\n{before}    {count} %r3, [%q0], 1;\n{after}    st.shared.u32 [s], %r3;\nSKIP:\n    bar.sync 0;\n    \
         ld.shared.u32 %r3, [s];\n    setp.ne.u32 %p1, %r3, 1;\n    @%p1 bra END;\n    xor.b32 %r4, %r1, 1;\n    \
         mad.lo.u32 %r4, %r4, 64, %r0;\n    mad.wide.u32 %q3, %r4, 4, %q0;\n    ld.global.u32 %r5, [%q3+256];\n    \
         st.global.u32 [%q1+768], %r5;\nEND:"
    ));
    let buffers = vec![Buffer::both("d", vec![0; 1024])];
    (text, Launch { grid: [2, 1, 1], buffers, ..launch(64) })
}

#[test]
fn blocks_that_hand_over_device_memory_need_fences_and_barriers() {
    let (barrier, fence) = ("    bar.sync 0;\n", "    fence.acq_rel.gpu;\n");
    let add = "atom.global.add.u32";
    for (before, count, after) in [
        (fence, add, fence),
        ("    membar.gl;\n", add, "    fence.sc.sys;\n"),
        ("", "atom.acq_rel.gpu.global.add.u32", ""),
        (fence, "atom.acquire.gpu.global.add.u32", ""),
        ("", "atom.release.gpu.global.add.u32", fence),
    ] {
        let (text, launch) = handed_over(barrier, before, count, after);
        for schedule in bitsmith_emulate::Schedule::all() {
            let outcome = common::run(&text, &Launch { schedule, ..launch.clone() }).unwrap();
            let numbers = common::u32s(&outcome.buffers[0]);
            let first = if numbers[192] == 0 { 0 } else { 64 };
            assert_eq!(numbers[192..], (first..first + 64).collect::<Vec<u32>>(), "{schedule:?}");
        }
    }
    for (barrier, before, count, after) in [
        (barrier, "", add, fence),
        (barrier, fence, add, ""),
        (barrier, "    membar.cta;\n", add, fence),
        (barrier, fence, "atom.cta.global.add.u32", fence),
        (barrier, "", "atom.acquire.gpu.global.add.u32", ""),
        ("", fence, add, fence),
    ] {
        let (text, launch) = handed_over(barrier, before, count, after);
        let fault = fails(&text, &launch, FaultKind::Race);
        assert!(fault.instruction.starts_with("ld.global") && fault.message.contains("block ("), "{fault}");
    }
}

#[test]
fn blocks_that_write_different_values_to_one_place_race() {
    let text = |value: &str| kernel(&format!("    mov.u32 %r1, %ctaid.x;\n    st.global.u32 [%q1], {value};"));
    let launch = Launch { grid: [2, 1, 1], ..launch(32) };
    run_all(&text("%r0"), &launch);
    fails(&text("%r1"), &launch, FaultKind::Race);
}

#[test]
fn a_spin_that_never_ends_runs_out_of_budget() {
    let text =
        kernel("LOOP:\n    ld.volatile.global.u32 %r1, [%q0];\n    setp.eq.u32 %p0, %r1, 0;\n    @%p0 bra LOOP;");
    fails(&text, &Launch { budget: 1 << 16, ..launch(32) }, FaultKind::Budget);
}

#[test]
fn traps_are_reported() {
    fails(&kernel("    trap;"), &launch(32), FaultKind::Trap);
}

#[test]
fn launches_that_do_not_fit_are_refused() {
    let text = kernel("    st.global.u32 [%q1], %r0;");
    for launch in [
        Launch { arguments: vec![], ..launch(32) },
        Launch { arguments: vec![Argument::u32(1)], ..launch(32) },
        Launch { arguments: vec![Argument::buffer(3)], ..launch(32) },
        Launch { block: [2048, 1, 1], ..launch(32) },
        Launch { grid: [0, 1, 1], ..launch(32) },
        Launch { dynamic_shared: 1 << 20, ..launch(32) },
    ] {
        assert_eq!(common::run(&text, &launch).expect_err("a fault").kind, FaultKind::Launch);
    }
}

#[test]
fn what_the_machine_does_not_know_is_an_error_with_a_line() {
    for (body, what) in [
        ("    frobnicate.b32 %r1, %r2;", "`frobnicate` is not known"),
        ("    add.sideways.u32 %r1, %r2, 3;", "`.sideways` is not known"),
        ("    add.u32 %r1, %nothing, 3;", "`%nothing` is not declared"),
        ("    tex.2d.v4.f32.f32 {%r1,%r2,%r3,%r4}, [t, {%r1,%r2}];", "`tex` is not known"),
        ("    bra NOWHERE;", "no label `NOWHERE`"),
        ("    cp.async.cg.shared.global [%r1], [%q1], 8;", "8 bytes; accepted"),
    ] {
        let text = module("sm_90a", ".param .u64 d", &format!("{REGISTERS}{body}"));
        let error = bitsmith_emulate::Module::load(&text).unwrap().kernel("k").err().expect("an error");
        assert!(error.message.contains(what), "{error}");
        assert_eq!(error.line, 12, "{error}");
    }
    for text in [
        "",
        "garbage",
        ".version 8.0 .target sm_80 .visible .entry k( {",
        ".version 8.0\n.target sm_80\n.entry k() { add.u32 %r1",
    ] {
        assert!(bitsmith_emulate::Module::load(text).is_err(), "{text}");
    }
}
