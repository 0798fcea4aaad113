//! Kernels of the KV cache for NVIDIA GPUs: every head shape and format assembles, without local memory.

use bitsmith_compiler::caps::Caps;
use bitsmith_compiler::compile_kv;
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::kv::{KvFormat, KvLayout};
use bitsmith_compiler::ir::Kernel;
use bitsmith_compiler::lower::kv::{choose, takes_matrix};
use bitsmith_compiler::op::kv::{Arithmetic, Attend, KvAppend, KvDequant, KvOp, KvRequantize, Merge, Rope, Sight};
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::ptx::PtxTarget;
use bitsmith_tests::ptxas;

/// Query heads, KV heads, channels of keys, of values: MHA, GQA and MQA of all sizes.
const SHAPES: [(usize, usize, usize, usize); 8] = [
    (12, 12, 64, 64),
    (32, 8, 64, 64),
    (32, 32, 80, 80),
    (32, 32, 96, 96),
    (32, 8, 128, 128),
    (64, 8, 128, 128),
    (16, 2, 192, 128),
    (8, 1, 256, 256),
];

/// Operations on a cache of a shape and format; `turn` varies what formats do not say.
fn operations(
    name: &str,
    (heads, kv_heads, k_dim, v_dim): (usize, usize, usize, usize),
    turn: usize,
    caps: &Caps,
) -> Vec<KvOp> {
    let page = [16, 64, 128][turn % 3];
    let format: KvFormat = name.parse().unwrap();
    let Ok(layout) = KvLayout::new(
        KvFormat { window: if format.window > 0 { 128 } else { 0 }, ..format },
        page,
        kv_heads,
        k_dim,
        v_dim,
    ) else {
        // Groups that do not divide the head.
        return Vec::new();
    };
    let plain = KvLayout::new(KvFormat::F16, page, kv_heads, k_dim, v_dim).unwrap();
    let queries = if heads / kv_heads <= 4 && turn % 2 == 1 { 2 } else { 1 };
    let attend = Attend {
        layout,
        heads,
        queries,
        input: if turn.is_multiple_of(2) { DType::F16 } else { DType::Bf16 },
        scale: 1.0 / (k_dim as f32).sqrt(),
        softcap: turn.is_multiple_of(5).then_some(50.0),
        alibi: turn.is_multiple_of(4),
        sight: if turn.is_multiple_of(3) { Sight::Window { window: 4096, first: 4 } } else { Sight::All },
        arithmetic: if turn % 8 < 6 { Arithmetic::Float } else { Arithmetic::Integer },
    };
    let merge = Merge { heads, kv_heads, queries, dim: v_dim, out: DType::F16, sinks: turn.is_multiple_of(2) };
    let rope = turn.is_multiple_of(2).then_some(Rope { rotary: k_dim, interleaved: false });
    let direct = if format.window > 0 { plain } else { layout };
    let mut list = vec![
        KvOp::Attend(attend),
        KvOp::Append(KvAppend { layout: direct, input: DType::F16, rope }),
        KvOp::Merge(merge),
        KvOp::Dequant(KvDequant { layout, out: DType::F16 }),
    ];
    if takes_matrix(&attend, caps) {
        list.push(KvOp::Attend(Attend { arithmetic: Arithmetic::Matrix, ..attend }));
    }
    if format.window > 0 {
        list.push(KvOp::Requantize(KvRequantize { from: plain, to: layout }));
    }
    list
}

#[test]
fn every_head_shape_assembles_without_spills() {
    let Some(tool) = ptxas::find("every_head_shape_assembles_without_spills") else { return };
    let half = |parity: usize| {
        let mut wrong = Vec::new();
        let mut count = 0;
        // The families are the same for all of them; what differs is what they can convert.
        for (t, name) in ["a100", "h200"].into_iter().enumerate() {
            let target = PtxTarget::named(name).unwrap();
            let (mut modules, mut kernels, mut what): (Vec<String>, Vec<Kernel>, Vec<String>) = Default::default();
            for (f, format) in KvFormat::NAMED.iter().enumerate() {
                for (s, shape) in SHAPES.into_iter().enumerate() {
                    // Each device takes half of them; every shape and every format is with both.
                    if (f + s) % 2 != t || (f / 2 + s) % 2 != parity {
                        continue;
                    }
                    for op in operations(format, shape, f + s, target.caps()) {
                        let schedule = choose(&op, target.caps());
                        let made = compile_kv(&op, &schedule, &target).unwrap_or_else(|e| panic!("{op:?}: {e}"));
                        let text = std::str::from_utf8(made.artifact.payload.bytes()).unwrap();
                        let name = format!("kernel_{}", kernels.len());
                        let entry = format!(".entry {}(", made.artifact.entry);
                        modules.push(text.replacen(&entry, &format!(".entry {name}("), 1));
                        kernels.push(Kernel { name, ..made.legal });
                        what.push(format!("{} {format} {shape:?}", op.name()));
                    }
                }
            }
            for ((modules, kernels), what) in modules.chunks(40).zip(kernels.chunks(40)).zip(what.chunks(40)) {
                let entries =
                    tool.assemble(target.arch().name, modules, false).unwrap_or_else(|e| panic!("{name}: {e}"));
                for (kernel, what) in kernels.iter().zip(what) {
                    count += 1;
                    match entries.get(&kernel.name) {
                        Some(entry) if entry.spills == 0 && entry.stack == 0 && entry.registers > 0 => {}
                        Some(entry) => wrong.push(format!("{name}: {what}: {} bytes of local memory", entry.stack)),
                        None => wrong.push(format!("{name}: {what}: not reported")),
                    }
                }
            }
        }
        (count, wrong)
    };
    let (first, second) = std::thread::scope(|scope| {
        let other = scope.spawn(|| half(1));
        (half(0), other.join().expect("the other half panicked"))
    });
    let count = first.0 + second.0;
    let wrong: Vec<String> = first.1.into_iter().chain(second.1).collect();
    println!("{count} kernels of the KV cache assembled");
    assert!(
        wrong.is_empty(),
        "{} of {count}:\n{}",
        wrong.len(),
        wrong.iter().take(20).cloned().collect::<Vec<_>>().join("\n")
    );
    assert!(count > 250, "{count} kernels are too few");
}
