//! Control flow, warp instructions, memory, atomics, asynchronous copies and clusters, under every schedule.

use crate::common::{self, bytes_of_u32, module, run_all, u32s};
use bitsmith_emulate::{Argument, Buffer, FaultKind, Launch, Schedule};

const HEAD: &str = "    .reg .b64 %q<8>;\n    .reg .b32 %r<16>;\n    .reg .b16 %h<4>;\n    .reg .pred %p<8>;\n    mov.u32 %r0, %tid.x;\n    \
                    ld.param.u64 %q0, [d];\n    mad.wide.u32 %q1, %r0, 4, %q0;\n";

fn kernel(body: &str) -> String {
    let text = module("sm_90a", ".param .u64 d", &format!("{HEAD}{body}"));
    common::assembles("warps", &text);
    text
}

fn results(body: &str, threads: u32, words: usize) -> Vec<u32> {
    let launch = Launch {
        block: [threads, 1, 1],
        buffers: vec![Buffer::both("d", vec![0; 4 * words])],
        arguments: vec![Argument::buffer(0)],
        ..Launch::default()
    };
    u32s(&run_all(&kernel(body), &launch).buffers[0])
}

#[test]
fn lanes_diverge_and_meet_again() {
    // Collatz steps: every lane loops another number of times, then all shuffle.
    let out = results(
        "    add.u32 %r1, %r0, 1;\n    mov.u32 %r2, 0;\nLOOP:\n    setp.eq.u32 %p0, %r1, 1;\n    @%p0 bra DONE;\n    and.b32 %r3, %r1, 1;\n    \
         setp.eq.u32 %p1, %r3, 1;\n    @%p1 bra ODD;\n    shr.u32 %r1, %r1, 1;\n    bra.uni NEXT;\nODD:\n    mad.lo.u32 %r1, %r1, 3, 1;\nNEXT:\n    \
         add.u32 %r2, %r2, 1;\n    bra.uni LOOP;\nDONE:\n    shfl.sync.bfly.b32 %r4, %r2, 1, 31, -1;\n    st.global.u32 [%q1], %r4;",
        32,
        32,
    );
    let steps = |mut n: u32| {
        let mut count = 0;
        while n != 1 {
            n = if n % 2 == 1 { 3 * n + 1 } else { n / 2 };
            count += 1;
        }
        count
    };
    assert_eq!(out, (0..32).map(|lane| steps((lane ^ 1) + 1)).collect::<Vec<_>>());
}

#[test]
fn shuffles_follow_the_isa() {
    let out = results(
        "    shfl.sync.up.b32 %r1|%p0, %r0, 3, 0, -1;\n    selp.u32 %r2, 100, 0, %p0;\n    add.u32 %r1, %r1, %r2;\n    \
         shfl.sync.down.b32 %r3|%p1, %r0, 5, 0x101f, -1;\n    selp.u32 %r4, 100, 0, %p1;\n    add.u32 %r3, %r3, %r4;\n    \
         shfl.sync.idx.b32 %r5, %r0, 6, 0x181f, -1;\n    shfl.sync.bfly.b32 %r6|%p2, %r0, 16, 15, -1;\n    \
         st.global.u32 [%q1], %r1;\n    st.global.u32 [%q1+128], %r3;\n    st.global.u32 [%q1+256], %r5;\n    st.global.u32 [%q1+384], %r6;",
        32,
        128,
    );
    for lane in 0..32usize {
        let up = if lane >= 3 { lane - 3 + 100 } else { lane };
        // Segments of 16: 0x10 in the upper bits of the clamp.
        let down = if lane % 16 + 5 < 16 { lane + 5 + 100 } else { lane };
        let segment = lane / 8 * 8 + 6;
        // A clamp of 15 keeps the low half from reaching lanes 16 and up.
        let butterfly = if (lane ^ 16) <= 15 { lane ^ 16 } else { lane };
        assert_eq!(
            [out[lane], out[32 + lane], out[64 + lane], out[96 + lane]],
            [up, down, segment, butterfly].map(|x| x as u32),
            "{lane}"
        );
    }
}

#[test]
fn votes_matches_and_reductions_follow_the_isa() {
    let out = results(
        "    and.b32 %r1, %r0, 3;\n    setp.eq.u32 %p0, %r1, 1;\n    vote.sync.ballot.b32 %r2, %p0, -1;\n    vote.sync.any.pred %p1, %p0, -1;\n    \
         vote.sync.all.pred %p2, %p0, -1;\n    vote.sync.uni.pred %p3, !%p0, -1;\n    selp.u32 %r3, 1, 0, %p1;\n    @%p2 add.u32 %r3, %r3, 2;\n    \
         @%p3 add.u32 %r3, %r3, 4;\n    match.any.sync.b32 %r4, %r1, -1;\n    match.all.sync.b32 %r5|%p4, %r2, -1;\n    \
         redux.sync.add.u32 %r6, %r0, -1;\n    redux.sync.max.s32 %r7, %r0, -1;\n    redux.sync.xor.b32 %r8, %r1, -1;\n    \
         activemask.b32 %r9;\n    elect.sync %r10|%p5, -1;\n    selp.u32 %r11, 1, 0, %p5;\n    mad.lo.u32 %r12, %r0, 32, %r0;\n    \
         mad.wide.u32 %q2, %r0, 40, %q0;\n    st.global.v2.u32 [%q2], {%r2, %r3};\n    st.global.v2.u32 [%q2+8], {%r4, %r5};\n    \
         st.global.v2.u32 [%q2+16], {%r6, %r7};\n    st.global.v2.u32 [%q2+24], {%r8, %r9};\n    st.global.v2.u32 [%q2+32], {%r10, %r11};",
        32,
        320,
    );
    for lane in 0..32u32 {
        let at = &out[10 * lane as usize..][..10];
        let same = 0x1111_1111 << (lane % 4);
        assert_eq!(at, [0x2222_2222, 1, same, !0, 496, 31, 0, !0, 0, u32::from(lane == 0)], "{lane}");
    }
}

#[test]
fn named_barriers_order_producers_and_consumers() {
    // Warps 0 and 1 write and arrive; warps 2 and 3 wait and read.
    let out = results(
        "    .shared .align 4 .b8 s[256];\n    mov.u32 %r1, s;\n    and.b32 %r2, %r0, 63;\n    mad.lo.u32 %r1, %r2, 4, %r1;\n    \
         setp.lt.u32 %p0, %r0, 64;\n    @!%p0 bra CONSUME;\n    mul.lo.u32 %r3, %r0, %r0;\n    st.shared.u32 [%r1], %r3;\n    bar.arrive 5, 128;\n    \
         bra.uni END;\nCONSUME:\n    bar.sync 5, 128;\n    ld.shared.u32 %r4, [%r1];\n    st.global.u32 [%q1+-256], %r4;\nEND:",
        128,
        64,
    );
    assert_eq!(out, (0..64).map(|i| i * i).collect::<Vec<u32>>());
}

#[test]
fn barrier_reductions_count_predicates() {
    let out = results(
        "    setp.lt.u32 %p0, %r0, 40;\n    bar.red.popc.u32 %r1, 0, %p0;\n    bar.red.and.pred %p1, 1, %p0;\n    bar.red.or.pred %p2, 2, %p0;\n    \
         @%p1 add.u32 %r1, %r1, 1000;\n    @%p2 add.u32 %r1, %r1, 2000;\n    st.global.u32 [%q1], %r1;",
        96,
        96,
    );
    assert_eq!(out, vec![2040; 96]);
}

#[test]
fn loads_and_stores_keep_widths_and_signs() {
    let out = results(
        "    .local .align 16 .b8 stack[32];\n    sub.s32 %r1, 0, %r0;\n    st.local.u8 [stack+3], %r1;\n    ld.local.s8 %r2, [stack+3];\n    \
         ld.local.u8 %r3, [stack+3];\n    cvt.u16.u32 %h0, %r1;\n    st.local.u16 [stack+8], %h0;\n    ld.local.s16 %r4, [stack+8];\n    \
         ld.local.s8 %q2, [stack+3];\n    shr.u64 %q2, %q2, 32;\n    cvt.u32.u64 %r5, %q2;\n    mov.u64 %q3, stack;\n    cvta.local.u64 %q3, %q3;\n    \
         st.u32 [%q3+16], %r0;\n    ld.local.u32 %r6, [stack+16];\n    mad.wide.u32 %q4, %r0, 20, %q0;\n    st.global.u32 [%q4], %r2;\n    \
         st.global.u32 [%q4+4], %r3;\n    st.global.u32 [%q4+8], %r4;\n    st.global.u32 [%q4+12], %r5;\n    st.global.u32 [%q4+16], %r6;",
        32,
        160,
    );
    for lane in 0..32i32 {
        let at = &out[5 * lane as usize..][..5];
        let high = if lane == 0 { 0 } else { u32::MAX };
        assert_eq!(at, [-lane as u32, -lane as u8 as u32, -lane as u32, high, lane as u32], "{lane}");
    }
}

#[test]
fn atomics_of_every_kind_add_up() {
    let body = "    atom.global.add.u32 %r1, [%q0], 3;\n    red.global.max.s32 [%q0+4], %r0;\n    atom.global.inc.u32 %r2, [%q0+8], 9;\n    \
        atom.global.dec.u32 %r2, [%q0+12], 4;\n    red.global.xor.b32 [%q0+16], %r0;\n    red.global.or.b32 [%q0+20], %r0;\n    \
        cvt.rn.f32.u32 %r3, %r0;\n    red.global.add.f32 [%q0+24], %r3;\n    atom.global.cas.b32 %r4, [%q0+28], 0, 77;\n    \
        atom.global.exch.b32 %r5, [%q0+32], 55;\n    mov.b32 %r6, 0x3c003c00;\n    red.global.add.noftz.f16x2 [%q0+36], %r6;\n    \
        mov.b64 %q2, 5;\n    red.global.add.u64 [%q0+40], %q2;\n    red.global.min.u32 [%q0+48], %r0;\n    \
        mov.b32 %r7, 0x3f803f80;\n    red.global.add.noftz.bf16x2 [%q0+52], %r7;";
    let text = kernel(body);
    let launch = Launch {
        block: [64, 1, 1],
        buffers: vec![Buffer::both("d", bytes_of_u32(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 99, 0]))],
        arguments: vec![Argument::buffer(0)],
        ..Launch::default()
    };
    let out = u32s(&run_all(&text, &launch).buffers[0]);
    assert_eq!(out[..6], [192, 63, 4, 1, 0, 63]);
    assert_eq!(f32::from_bits(out[6]), 2016.0);
    assert_eq!(out[7..9], [77, 55]);
    // 64 additions of one to each half: exact in f16 and in bf16.
    assert_eq!(out[9], 0x5400_5400);
    assert_eq!(out[10..13], [320, 0, 0]);
    assert_eq!(out[13], 0x4280_4280);
}

#[test]
fn shared_atomics_are_no_races() {
    let out = results(
        "    .shared .align 4 .b8 s[4];\n    setp.eq.u32 %p0, %r0, 0;\n    @%p0 st.shared.u32 [s], 0;\n    bar.sync 0;\n    \
         atom.shared.add.u32 %r1, [s], %r0;\n    bar.sync 0;\n    ld.shared.u32 %r2, [s];\n    st.global.u32 [%q1], %r2;",
        128,
        128,
    );
    assert_eq!(out, vec![127 * 64; 128]);
}

#[test]
fn copies_fill_with_zeros_and_wait_by_group() {
    let body = "    .shared .align 16 .b8 s[1024];\n    mov.u32 %r1, s;\n    mad.lo.u32 %r1, %r0, 32, %r1;\n    mad.wide.u32 %q2, %r0, 16, %q0;\n    \
        cp.async.cg.shared.global [%r1], [%q2], 16;\n    cp.async.commit_group;\n    mov.u32 %r2, 4;\n    \
        cp.async.ca.shared.global [%r1+16], [%q2], 8, %r2;\n    cp.async.ca.shared.global [%r1+24], [%q2], 4;\n    cp.async.commit_group;\n    \
        cp.async.wait_group 1;\n    ld.shared.u32 %r3, [%r1+4];\n    cp.async.wait_all;\n    ld.shared.v2.u32 {%r4, %r5}, [%r1+16];\n    \
        ld.shared.u32 %r6, [%r1+24];\n    st.global.v4.u32 [%q2+512], {%r3, %r4, %r5, %r6};";
    let data: Vec<u32> = (0..256).map(|i| if i < 128 { i + 1000 } else { 0 }).collect();
    let launch = Launch {
        buffers: vec![Buffer::both("d", bytes_of_u32(&data))],
        arguments: vec![Argument::buffer(0)],
        ..Launch::default()
    };
    let out = u32s(&run_all(&kernel(body), &launch).buffers[0]);
    for lane in 0..32usize {
        let first = data[4 * lane];
        assert_eq!(out[128 + 4 * lane..][..4], [data[4 * lane + 1], first, 0, first]);
    }
}

#[test]
fn copies_announce_themselves_on_an_mbarrier() {
    let out = results(
        "    .shared .align 16 .b8 s[1024];\n    .shared .align 8 .b64 bar;\n    mov.u32 %r1, s;\n    mad.lo.u32 %r1, %r0, 16, %r1;\n    \
         setp.eq.u32 %p0, %r0, 0;\n    @%p0 mbarrier.init.shared.b64 [bar], 64;\n    bar.sync 0;\n    mad.wide.u32 %q2, %r0, 16, %q0;\n    \
         st.global.u32 [%q2], %r0;\n    cp.async.cg.shared.global [%r1], [%q2], 16;\n    cp.async.mbarrier.arrive.noinc.shared.b64 [bar];\nWAIT:\n    \
         mbarrier.test_wait.parity.shared.b64 %p1, [bar], 0;\n    @!%p1 bra WAIT;\n    xor.b32 %r2, %r0, 32;\n    mov.u32 %r3, s;\n    \
         mad.lo.u32 %r3, %r2, 16, %r3;\n    ld.shared.u32 %r4, [%r3];\n    st.global.u32 [%q2+4], %r4;",
        64,
        256,
    );
    assert_eq!((0..64).map(|i| out[4 * i + 1]).collect::<Vec<_>>(), (0..64).map(|i| i ^ 32).collect::<Vec<u32>>());
}

#[test]
fn functions_are_called_with_memory_and_register_parameters() {
    let text = format!(
        ".version 8.3\n.target sm_80\n.address_size 64\n.global .align 4 .u32 table[4] = {{10, 20, 30, 40}};\n\
         .func (.param .b32 result) twice(.param .b32 x, .param .align 8 .b8 pair[8])\n{{\n    .reg .b32 %r<4>;\n    ld.param.u32 %r0, [x];\n    \
         ld.param.u32 %r1, [pair+4];\n    mad.lo.u32 %r2, %r0, 2, %r1;\n    st.param.b32 [result], %r2;\n    ret;\n}}\n\
         .func (.reg .u32 %out) plus(.reg .u32 %in)\n{{\n    .reg .pred %p;\n    setp.gt.u32 %p, %in, 20;\n    mov.u32 %out, %in;\n    @%p ret;\n    add.u32 %out, %in, 1;\n    ret;\n}}\n\
         .visible .entry k(.param .u64 d)\n{{\n{HEAD}    {{\n    .param .b32 a;\n    .param .align 8 .b8 b[8];\n    .param .b32 c;\n    \
         st.param.b32 [a], %r0;\n    st.param.b32 [b+4], 7;\n    st.param.b32 [b], 1;\n    call.uni (c), twice, (a, b);\n    ld.param.b32 %r1, [c];\n    }}\n    \
         call (%r2), plus, (%r1);\n    and.b32 %r3, %r0, 3;\n    mov.u64 %q2, table;\n    mad.wide.u32 %q2, %r3, 4, %q2;\n    ld.global.u32 %r4, [%q2];\n    \
         add.u32 %r2, %r2, %r4;\n    st.global.u32 [%q1], %r2;\n    ret;\n}}\n"
    );
    common::assembles("functions", &text);
    let launch =
        Launch { buffers: vec![Buffer::output("d", 128)], arguments: vec![Argument::buffer(0)], ..Launch::default() };
    let out = u32s(&run_all(&text, &launch).buffers[0]);
    let plus = |x: u32| if x > 20 { x } else { x + 1 };
    assert_eq!(out, (0..32).map(|i| plus(2 * i + 7) + 10 * (i % 4 + 1)).collect::<Vec<u32>>());
}

#[test]
fn jump_tables_go_where_their_index_says() {
    let out = results(
        "    and.b32 %r1, %r0, 3;\n    TABLE: .branchtargets A, B, C, D;\n    brx.idx %r1, TABLE;\nA:\n    mov.u32 %r2, 11;\n    bra.uni END;\nB:\n    \
         mov.u32 %r2, 22;\n    bra.uni END;\nC:\n    mov.u32 %r2, 33;\n    bra.uni END;\nD:\n    mov.u32 %r2, 44;\nEND:\n    st.global.u32 [%q1], %r2;",
        32,
        32,
    );
    assert_eq!(out, (0..32).map(|i| 11 * (i % 4 + 1)).collect::<Vec<u32>>());
}

#[test]
fn blocks_of_a_cluster_share_memory() {
    let text = kernel(
        "    .shared .align 4 .b8 s[128];\n    mov.u32 %r1, s;\n    mad.lo.u32 %r1, %r0, 4, %r1;\n    mov.u32 %r2, %cluster_ctarank;\n    \
         mad.lo.u32 %r3, %r2, 100, %r0;\n    st.shared.u32 [%r1], %r3;\n    barrier.cluster.arrive;\n    barrier.cluster.wait;\n    \
         xor.b32 %r4, %r2, 1;\n    mapa.shared::cluster.u32 %r5, %r1, %r4;\n    ld.shared::cluster.u32 %r6, [%r5];\n    \
         mov.u32 %r7, %ctaid.x;\n    mad.lo.u32 %r7, %r7, 32, %r0;\n    mad.wide.u32 %q2, %r7, 4, %q0;\n    st.global.u32 [%q2], %r6;\n    \
         barrier.cluster.arrive;\n    barrier.cluster.wait;",
    );
    let launch = Launch {
        grid: [4, 1, 1],
        cluster: [2, 1, 1],
        buffers: vec![Buffer::output("d", 512)],
        arguments: vec![Argument::buffer(0)],
        ..Launch::default()
    };
    let out = u32s(&run_all(&text, &launch).buffers[0]);
    assert_eq!(out, (0..128).map(|i| ((i / 32) ^ 1) % 2 * 100 + i % 32).collect::<Vec<u32>>());
    // Without the second barrier a block may end while the other still reads.
    let early = text.replacen("    barrier.cluster.arrive;\n    barrier.cluster.wait;\n    ret;", "    ret;", 1);
    assert_ne!(early, text);
    let found = Schedule::all().into_iter().any(|schedule| {
        common::run(&early, &Launch { schedule, ..launch.clone() }).is_err_and(|f| f.kind == FaultKind::Misuse)
    });
    assert!(found, "no schedule saw the block that ended too early");
}

#[test]
fn a_lane_that_spins_does_not_starve_the_lane_it_waits_for() {
    let out = results(
        "    setp.eq.u32 %p0, %r0, 7;\n    @%p0 bra SET;\nSPIN:\n    ld.volatile.global.u32 %r1, [%q0+128];\n    setp.eq.u32 %p1, %r1, 0;\n    \
         @%p1 bra SPIN;\n    bra.uni END;\nSET:\n    mov.u32 %r1, 9;\n    st.volatile.global.u32 [%q0+128], %r1;\nEND:\n    st.global.u32 [%q1], %r1;",
        32,
        33,
    );
    assert_eq!(out, vec![9; 33]);
}
