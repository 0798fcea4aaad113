//! Barrier objects, bulk copies and products of four subgroups on small kernels.

use super::{ArgValue, Launch, Trap, run};
use crate::caps::Caps;
use crate::ir::{parse, verify};

fn run_text(body: &str, threads: u32, args: &mut [ArgValue]) -> Result<(), Trap> {
    let text = format!(
        "kernel @k(x: read align 16, y: write align 16) workgroup {threads} 1 1 {{\n\
         shared stage: 8192 align 128\nshared arrived: 16 align 8\n{body}\n}}"
    );
    let kernel = parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(parse(&kernel.to_string()).as_ref(), Ok(&kernel));
    let kernel = verify(&kernel, &Caps::ANY).unwrap_or_else(|faults| panic!("{faults:?}"));
    run(&kernel, 32, Launch { grid: [1; 3], args })
}

/// One thread fetches 1024 bytes twice into one stage, 64 threads read 16 of them each time.
fn fetched(expect: u32, wait: &str, release: &str) -> Result<Vec<u8>, Trap> {
    let body = format!(
        "%0: i32 = local_id.x
        %1: i32 = const 0
        %2: bool = eq %0, %1
        %3: i32 = const 4
        %4: i32 = shl %0, %3
        %5: i32 = const 1
        if %2 {{
          barrier_init arrived[0] arrivals 1
          barrier_init arrived[8] arrivals 64
          fence_async
        }}
        barrier
        if %2 {{
          barrier_expect arrived[0] bytes {expect}
          bulk_copy stage[0], x[0] bytes 1024, arrived[0]
        }}
        {wait}
        %6: i32x4 = load stage[%4] align 16
        store y[%4] align 16, %6
        {release}
        if %2 {{
          barrier_wait arrived[8], %1
          barrier_expect arrived[0] bytes 1024
          bulk_copy stage[0], x[1024] bytes 1024, arrived[0]
        }}
        barrier_wait arrived[0], %5
        %7: i32x4 = load stage[%4] align 16
        store y[%4 + 1024] align 16, %7"
    );
    let input: Vec<u8> = (0..2048u32).map(|i| (i * 7 + i / 256) as u8).collect();
    let mut args = [ArgValue::filled(input), ArgValue::unwritten(2048)];
    run_text(&body, 64, &mut args)?;
    Ok(args[1].bytes().to_vec())
}

fn trips<T: std::fmt::Debug>(result: Result<T, Trap>, text: &str) {
    let trap = result.expect_err("the kernel is broken");
    assert!(trap.message.contains(text), "{trap}");
}

#[test]
fn bulk_copies_come_in_phases() {
    let (wait, release) = ("barrier_wait arrived[0], %1", "barrier_arrive arrived[8]");
    let input: Vec<u8> = (0..2048u32).map(|i| (i * 7 + i / 256) as u8).collect();
    assert_eq!(fetched(1024, wait, release), Ok(input));
    trips(fetched(1024, "", release), "nothing has written");
    trips(fetched(2048, wait, release), "deadlock");
    trips(fetched(512, wait, release), "more were copied than were announced");
    trips(fetched(1024, wait, ""), "deadlock");
}

#[test]
fn copies_over_what_is_still_read_are_races() {
    let body = "%0: i32 = local_id.x
        %1: i32 = const 0
        %2: bool = eq %0, %1
        %3: i32 = const 1
        if %2 {
          barrier_init arrived[0] arrivals 1
        }
        barrier
        if %2 {
          barrier_expect arrived[0] bytes 16
          bulk_copy stage[0], x[0] bytes 16, arrived[0]
        }
        barrier_wait arrived[0], %1
        %4: i32x4 = load stage[0] align 16
        %5: bool = eq %0, %3
        if %5 {
          barrier_expect arrived[0] bytes 16
          bulk_copy stage[0], x[0] bytes 16, arrived[0]
        }
        barrier_wait arrived[0], %3";
    let mut args = [ArgValue::filled(vec![1; 16]), ArgValue::unwritten(16)];
    trips(run_text(body, 64, &mut args), "has read and not arrived anywhere since");
}

/// A of ones and twos in registers or shared memory, B of column numbers: sums by hand.
#[test]
fn products_of_four_subgroups() {
    for from_panel in [false, true] {
        // Stage: B is 16 rows of 64 bytes (32 f16) in pieces, all of a row alike; A, 64 rows, behind it, all twos.
        let a =
            if from_panel { "stage[1024] leading 1024 stride 128 steps 2".to_string() } else { "[%7, %7]".to_string() };
        let body = format!(
            "%0: i32 = local_id.x
            %1: i32 = const 16
            %2: i32 = mul %0, %1
            %3: i32x4 = load x[%2] align 16
            store stage[%2] align 16, %3
            %4: i32x4 = load x[%2 + 2048] align 16
            store stage[%2 + 2048] align 16, %4
            %5: i32x4 = load x[%2 + 4096] align 16
            store stage[%2 + 4096] align 16, %5
            fence_async
            barrier
            %6: f32x8 = const 1.0
            %7: f16x8 = const 2.0
            %8: f32x8 = warpgroup_mma m16n8k16_f16_f16_f32_l32 columns 16 a {a} b stage[0] leading 256 stride 128, %6
            %9: i32 = const 32
            %10: i32 = mul %0, %9
            store y[%10] align 16, %8"
        );
        let mut image = Vec::new();
        for _piece in 0..4 {
            for row in 0..16 {
                (0..8).for_each(|_| image.extend(half::f16::from_f32(row as f32).to_bits().to_le_bytes()));
            }
        }
        (0..64 * 32).for_each(|_| image.extend(half::f16::from_f32(2.0).to_bits().to_le_bytes()));
        image.resize(6144, 0);
        let mut args = [ArgValue::filled(image), ArgValue::unwritten(128 * 32)];
        run_text(&body, 128, &mut args).expect("the kernel is sound");
        for (i, word) in args[1].bytes().as_chunks::<4>().0.iter().enumerate() {
            let (thread, element) = (i / 8, i % 8);
            let column = 8 * (element / 4) + 2 * (thread % 4) + element % 2;
            assert_eq!(
                f32::from_le_bytes(*word),
                1.0 + 32.0 * 2.0 * column as f32,
                "{from_panel}: {thread}, {element}"
            );
        }
    }
}
