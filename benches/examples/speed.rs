use bitsmith_autotune::{
    execute::Prepared,
    problem::{Problem, Sample},
};
use bitsmith_compiler::{compile, dtype::DType, lower, op::*, schedule::*};
use bitsmith_runtime::{Device, cpu::CpuDevice, roofs, timing::interleave};
use std::time::Duration;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let get = |k: &str, d: &str| args.iter().position(|a| a == k).map(|i| args[i + 1].clone()).unwrap_or(d.to_string());
    let n: usize = get("--n", "4096").parse().unwrap();
    let k: usize = get("--k", "4096").parse().unwrap();
    let m: usize = get("--m", "1").parse().unwrap();
    let threads: usize = get("--threads", "1").parse().unwrap();
    let fmt = get("--format", "int4-g128");
    let act: Activation = get("--act", "int8-token").parse().unwrap();
    let top: usize = get("--top", "6").parse().unwrap();
    let fam = get("--family", "");
    let device = CpuDevice::new(threads).unwrap();
    let op = Op::Matmul(Matmul {
        n,
        k,
        weight: fmt.parse().unwrap(),
        activation: act,
        out: DType::F32,
        epilogue: Epilogue::default(),
    });
    let problem = Problem::random(&op, m, 1).unwrap();
    let wbytes = problem.buffers.iter().map(|b| b.bytes.len()).max().unwrap();
    let copies = (256usize << 20).div_ceil(wbytes);
    let mut space = lower::space(&op, device.caps(), m).unwrap();
    if !fam.is_empty() {
        space.retain(|s| s.family.name() == fam);
    }
    if let Ok(s) = get("--sched", "").split(',').map(|x| x.parse::<u32>()).collect::<Result<Vec<_>, _>>() {
        space = vec![Schedule {
            family: if fam == "tile" { Family::Tile } else { Family::Stream },
            tile_m: s[0],
            tile_n: s[1],
            unroll: s[2],
        }];
    }
    space.truncate(top);
    let mut base: Option<Prepared> = None;
    let mut preps = Vec::new();
    for s in &space {
        let c = compile(&op, s, device.target()).unwrap();
        if get("--asm", "0") == "1" {
            let v = bitsmith_compiler::ir::verify(&c.legal, device.caps()).unwrap();
            println!("{}", device.target().show(&v, "asm").unwrap().unwrap());
        }
        let p = match &base {
            None => Prepared::new(&device, &problem, &c.artifact, s, copies).unwrap(),
            Some(b) => b.with_program(&c.artifact, s, &problem).unwrap(),
        };
        p.launch(0).unwrap();
        let o = p.outputs().unwrap();
        let r: Vec<&[u8]> = o.iter().map(|x| &x[..]).collect();
        let rep = problem.check(&r, Sample::Lines(16));
        assert!(rep.passed(), "{rep:?}");
        if base.is_none() {
            base = Some(p.with_program(&c.artifact, s, &problem).unwrap());
        }
        preps.push((s, p, c.artifact.payload.bytes().len()));
    }
    let roofs = roofs::measure(threads, 512 << 20);
    println!("{roofs:?}");
    let turn = std::cell::Cell::new(0usize);
    let mut fs: Vec<Box<dyn FnMut(usize)>> = preps
        .iter()
        .map(|(_, p, _)| {
            let turn = &turn;
            Box::new(move |runs: usize| {
                for _ in 0..runs {
                    turn.set(turn.get() + 1);
                    p.launch(turn.get()).unwrap();
                }
            }) as Box<dyn FnMut(usize)>
        })
        .collect();
    let mut subj: Vec<&mut dyn FnMut(usize)> = fs.iter_mut().map(|f| &mut **f as &mut dyn FnMut(usize)).collect();
    let ms = interleave(&mut subj, Duration::from_millis(20), Duration::from_secs(4));
    for ((s, _, code), t) in preps.iter().zip(ms) {
        let gb = problem.traffic() as f64 / t.median / 1e9;
        let go = problem.operations() / t.median / 1e9;
        println!(
            "{} m{} n{} u{} code {code}: {:.1} us  {:.1} GB/s ({:.0}%)  {:.1} GOP/s ({:.0}% of dot128)",
            s.family.name(),
            s.tile_m,
            s.tile_n,
            s.unroll,
            t.median * 1e6,
            gb,
            100.0 * gb / roofs.read_gbs,
            go,
            100.0 * go / roofs.dot128_gops
        );
    }
}
