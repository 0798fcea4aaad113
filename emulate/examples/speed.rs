//! `cargo run --release -p bitsmith-emulate --example speed`: how many lane instructions the machine runs in a second.

use bitsmith_emulate::{Argument, Buffer, Launch, Module};
use std::time::Instant;

/// A loop of integer and float arithmetic, with a load and a store of shared memory where `memory`.
fn text(memory: bool) -> String {
    let access = if memory { "st.shared.u32 [%r6], %r2; ld.shared.u32 %r5, [%r6];" } else { "and.b32 %r5, %r4, 255;" };
    format!(
        ".version 7.8\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 d)\n{{\n\
         .reg .b32 %r<8>; .reg .f32 %f<4>; .reg .pred %p; .reg .b64 %q; .shared .align 4 .b8 s[512];\n\
         mov.u32 %r0, %tid.x; mov.u32 %r1, 0; mov.u32 %r2, 0; mov.f32 %f0, 0f3F800000; mov.f32 %f1, 0f3F000000;\n\
         mov.u32 %r6, s; mad.lo.u32 %r6, %r0, 4, %r6;\n\
         LOOP:\nadd.u32 %r2, %r2, %r0; xor.b32 %r3, %r2, %r1; shl.b32 %r4, %r3, 3; {access}\n\
         mad.lo.u32 %r2, %r5, 7, %r2; fma.rn.f32 %f0, %f0, %f1, %f1; add.f32 %f2, %f0, %f1; mul.f32 %f3, %f2, %f1;\n\
         add.u32 %r1, %r1, 1; setp.lt.u32 %p, %r1, 50000; @%p bra LOOP;\n\
         ld.param.u64 %q, [d]; mad.wide.u32 %q, %r0, 4, %q; st.global.u32 [%q], %r2;\nret;\n}}\n"
    )
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for (name, memory) in [("arithmetic", false), ("arithmetic and shared memory", true)] {
        let module = Module::load(&text(memory))?;
        let kernel = module.kernel("k")?;
        let launch = Launch {
            block: [128, 1, 1],
            buffers: vec![Buffer::output("d", 512)],
            arguments: vec![Argument::buffer(0)],
            ..Launch::default()
        };
        let mut best = f64::INFINITY;
        let mut instructions = 0;
        for _ in 0..3 {
            let start = Instant::now();
            instructions = kernel.run(&launch)?.lane_instructions;
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!("{name}: {:.2} G lane instructions/s", instructions as f64 / best / 1e9);
    }
    Ok(())
}
