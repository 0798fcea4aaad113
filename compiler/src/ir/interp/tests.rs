use super::*;
use crate::caps::Caps;
use crate::ir::*;

#[test]
#[ignore = "a measurement: run with --ignored --nocapture"]
fn speed_of_vector_code() {
    let mut b = Builder::new("speed");
    let input = b.buffer("input", Access::Read, 16);
    let out = b.buffer("out", Access::Write, 16);
    let (start, end) = (b.int(Scalar::I32, 0), b.int(Scalar::I32, 100_000));
    let zero = b.int(Type::vector(Scalar::I32, 4), 0);
    let fzero = b.f32(4, 0.0);
    let mask = b.int(Type::vector(Scalar::I8, 16), 0x0f);
    let results = b.for_loop(start, end, 1, &[zero, fzero], |b, i, carried| {
        let (mut acc, mut sum) = (carried[0], carried[1]);
        let index = b.bin_imm(BinOp::And, i, 63);
        let index = b.bin_imm(BinOp::Shl, index, 4);
        for j in 0..4 {
            let at = Address { memory: input, index: Some(index), offset: 16 * j };
            let raw = b.load(Type::vector(Scalar::I8, 16), at, 16);
            let low = b.bin(BinOp::And, raw, mask);
            let high = b.bin_imm(BinOp::ShrU, raw, 4);
            acc = b.dot4(Dot4Signs::UnsignedSigned, 4, low, raw, acc);
            acc = b.dot4(Dot4Signs::UnsignedSigned, 4, high, raw, acc);
            let words = b.bitcast(raw, Type::vector(Scalar::I32, 4));
            let field = b.unpack(words, 4, 4, false, Type::vector(Scalar::F32, 4));
            let scaled = b.mul(field, field);
            sum = b.fma(scaled, field, sum);
            sum = b.add(sum, field);
        }
        vec![acc, sum]
    });
    b.store(Address { memory: out, index: None, offset: 0 }, 16, results[0]);
    b.store(Address { memory: out, index: None, offset: 16 }, 16, results[1]);
    let kernel = b.finish();
    let kernel = verify(&kernel, &Caps::ANY).unwrap();
    for grid in [1, 8] {
        let mut args = [ArgValue::filled((0..4096).map(|i| i as u8).collect()), ArgValue::unwritten(32)];
        let start = std::time::Instant::now();
        let launch = Launch { grid: [1; 3], args: &mut args };
        run(&kernel, 1, launch).unwrap();
        let _ = grid;
        let seconds = start.elapsed().as_secs_f64();
        println!("{:.1} M instructions per second", 43.0 * 100_000.0 / seconds / 1e6);
    }
}
