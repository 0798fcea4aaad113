//! The kernels behind the roofs, and what their results must be.

use bitsmith_compiler::caps::{MmaShape, place};
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::ir::{
    Access, Address, Asynchronous, BinOp, Builder, Builtin, CastOp, CmpOp, Factor, Inst, Kernel, Memory, Panel,
    ReduceOp, Scalar, Type, Value,
};

/// Threads of a workgroup.
pub const THREADS: u32 = 256;
/// Loads of 16 bytes that each thread of the reading kernel has under way.
const LOADS: u32 = 16;
/// Bytes that a workgroup of the reading kernel reads.
pub const GROUP_BYTES: usize = (THREADS * LOADS * 16) as usize;
/// Sums that each subgroup of an arithmetic kernel has under way: a matrix instruction takes some dozens of cycles.
const CHAINS: usize = 8;

/// The thread's number in the grid as `i64`.
fn thread(b: &mut Builder) -> Value {
    let (group, local) = (b.builtin(Builtin::WorkgroupId(0)), b.builtin(Builtin::LocalId(0)));
    let group = b.cast(CastOp::ExtendS, group, Scalar::I64);
    let before = b.bin_imm(BinOp::Mul, group, i64::from(THREADS));
    let local = b.cast(CastOp::ExtendS, local, Scalar::I64);
    b.add(before, local)
}

fn at(memory: Memory, index: Value, offset: i64) -> Address {
    Address { memory, index: Some(index), offset }
}

/// Reads `GROUP_BYTES` per workgroup and stores the sum of the words that each subgroup read (of each thread, where
/// `subgroup` is 1).
pub fn read_kernel(subgroup: u32) -> Kernel {
    let mut b = Builder::new("read_sum");
    b.workgroup(THREADS, 1, 1);
    let data = b.buffer("data", Access::Read, 16);
    let out = b.buffer("out", Access::Write, 16);
    let group = b.builtin(Builtin::WorkgroupId(0));
    let group = b.cast(CastOp::ExtendS, group, Scalar::I64);
    let start = b.bin_imm(BinOp::Mul, group, GROUP_BYTES as i64);
    let local = b.builtin(Builtin::LocalId(0));
    let local = b.cast(CastOp::ExtendS, local, Scalar::I64);
    let own = b.bin_imm(BinOp::Mul, local, 16);
    let index = b.add(start, own);
    let words = Type::vector(Scalar::I32, 4);
    let mut loaded: Vec<Value> =
        (0..LOADS).map(|load| b.load(words, at(data, index, i64::from(load * THREADS * 16)), 16)).collect();
    while loaded.len() > 1 {
        loaded = loaded.chunks(2).map(|pair| b.add(pair[0], pair[1])).collect();
    }
    let mut lanes: Vec<Value> = (0..4).map(|lane| b.extract(loaded[0], lane)).collect();
    while lanes.len() > 1 {
        lanes = lanes.chunks(2).map(|pair| b.add(pair[0], pair[1])).collect();
    }
    let sum = lanes[0];
    let id = thread(&mut b);
    if subgroup == 1 {
        let to = b.bin_imm(BinOp::Mul, id, 4);
        b.store(at(out, to, 0), 4, sum);
        return b.finish();
    }
    let sum = b.push(Scalar::I32.into(), Inst::SubgroupReduce(ReduceOp::Add, sum));
    let lane = b.builtin(Builtin::Lane);
    let zero = b.int(Scalar::I32, 0);
    let first = b.cmp(CmpOp::Eq, lane, zero);
    let number = b.bin_imm(BinOp::ShrU, id, i64::from(subgroup.trailing_zeros()));
    let to = b.bin_imm(BinOp::Mul, number, 4);
    b.if_then(first, |b| b.store(at(out, to, 0), 4, sum));
    b.finish()
}

/// What [`read_kernel`] stores for workgroups that read `data`, which is whole workgroups.
pub fn expected_sums(data: &[u8], subgroup: u32) -> Vec<u32> {
    let mut sums = Vec::new();
    for group in data.chunks_exact(GROUP_BYTES) {
        let mut threads = vec![0u32; THREADS as usize];
        for (i, vector) in group.chunks_exact(16).enumerate() {
            for word in vector.chunks_exact(4) {
                let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                let sum = &mut threads[i % THREADS as usize];
                *sum = sum.wrapping_add(word);
            }
        }
        sums.extend(threads.chunks(subgroup as usize).map(|own| own.iter().fold(0u32, |a, &b| a.wrapping_add(b))));
    }
    sums
}

/// What a roof of arithmetic is measured with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Fused multiply-adds of `f32`.
    MultiplyAdd,
    /// Matrix instructions of a subgroup.
    Matrix(&'static MmaShape),
    /// Matrix instructions of four subgroups, whose fragments are those of this shape.
    Warpgroup(&'static MmaShape),
}

/// A kernel of arithmetic, its input, and what each lane of a subgroup stores.
pub struct Arithmetic {
    /// The kernel: input, output of one `f32` or `i32` per thread.
    pub kernel: Kernel,
    /// Its input.
    pub input: Vec<u8>,
    /// Operations of a thread per turn, two per product.
    pub per_turn: f64,
    /// The result per lane, with how far off it may be.
    expected: Vec<(f64, f64)>,
    integers: bool,
}

impl Arithmetic {
    /// Compares what every thread stored.
    pub fn check(&self, found: &[u8]) -> Result<(), String> {
        let lanes = self.expected.len();
        for (thread, word) in found.chunks_exact(4).enumerate() {
            let word = [word[0], word[1], word[2], word[3]];
            let got =
                if self.integers { f64::from(i32::from_le_bytes(word)) } else { f64::from(f32::from_le_bytes(word)) };
            let (value, bound) = self.expected[thread % lanes];
            let error = (got - value).abs();
            if error.is_nan() || error > bound {
                return Err(format!("thread {thread} has {got}, not {value} ± {bound}"));
            }
        }
        Ok(())
    }
}

/// A kernel of one kind over `turns` turns.
pub fn arithmetic_kernel(kind: Kind, turns: u32) -> Arithmetic {
    match kind {
        Kind::MultiplyAdd => multiply_add(turns),
        Kind::Matrix(shape) => matrix(shape, turns),
        Kind::Warpgroup(shape) => warpgroup(shape, turns),
    }
}

/// The IR scalar of a type that matrix instructions take: bytes, where the IR has none of it.
fn scalar(dtype: DType) -> Scalar {
    Scalar::of(dtype).unwrap_or(Scalar::I8)
}

/// Numbers of a type as bytes, small and exact in every type, and what they are.
fn draw(rng: &mut fastrand::Rng, dtype: DType, count: usize) -> (Vec<u8>, Vec<f64>) {
    let size = dtype.bits() as usize / 8;
    let (mut bytes, mut values) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let code = dtype.encode([-2.0, -1.0, 0.5, 1.0, 2.0, 3.0][rng.usize(..6)]);
        bytes.extend_from_slice(&code.to_le_bytes()[..size]);
        values.push(dtype.decode(code));
    }
    (bytes, values)
}

/// The sum of all sums of all chains, in each lane.
fn total(b: &mut Builder, sums: &[Value]) -> Value {
    let mut parts: Vec<Value> = Vec::new();
    for &sum in sums {
        for lane in 0..b.ty(sum).lanes {
            parts.push(b.extract(sum, lane));
        }
    }
    while parts.len() > 1 {
        parts = parts.chunks(2).map(|pair| if let [a, c] = *pair { b.add(a, c) } else { pair[0] }).collect();
    }
    parts[0]
}

/// Input: the fragment of A of each lane, then for each chain the fragment of B of each lane.
fn matrix(shape: &'static MmaShape, turns: u32) -> Arithmetic {
    let (a_type, b_type, acc) = (scalar(shape.a), scalar(shape.b), scalar(shape.acc));
    let lanes = shape.lanes as usize;
    let of_lane = [shape.a_elements(), shape.b_elements()].map(|elements| elements as usize);
    let mut rng = fastrand::Rng::with_seed(7);
    let (mut input, a_values) = draw(&mut rng, shape.a, lanes * of_lane[0]);
    let mut b_values = Vec::new();
    let b_start = input.len();
    for _ in 0..CHAINS {
        let (bytes, values) = draw(&mut rng, shape.b, lanes * of_lane[1]);
        input.extend(bytes);
        b_values.push(values);
    }
    let mut b = Builder::new(&format!("peak_{}", shape.a.name()));
    b.workgroup(THREADS, 1, 1);
    let data = b.buffer("data", Access::Read, 16);
    let out = b.buffer("out", Access::Write, 16);
    let lane = b.builtin(Builtin::Lane);
    let a_ty = Type::vector(a_type, of_lane[0] as u8);
    let b_ty = Type::vector(b_type, of_lane[1] as u8);
    let a_at = b.bin_imm(BinOp::Mul, lane, i64::from(a_ty.bytes()));
    let b_at = b.bin_imm(BinOp::Mul, lane, i64::from(b_ty.bytes()));
    let a = b.load(a_ty, at(data, a_at, 0), a_ty.bytes().min(16));
    let b_bytes = lanes * b_ty.bytes() as usize;
    let factors: Vec<Value> = (0..CHAINS)
        .map(|chain| b.load(b_ty, at(data, b_at, (b_start + chain * b_bytes) as i64), b_ty.bytes().min(16)))
        .collect();
    let acc_ty = Type::vector(acc, shape.acc_elements() as u8);
    let zero = b.int(acc_ty, 0);
    let (start, end) = (b.int(Scalar::I32, 0), b.int(Scalar::I32, i64::from(turns)));
    let sums = b.for_loop(start, end, 1, &[zero; CHAINS], |b, _, sums| {
        sums.iter().zip(&factors).map(|(&sum, &factor)| b.mma(shape, a, factor, sum)).collect()
    });
    let all = total(&mut b, &sums);
    let id = thread(&mut b);
    let to = b.bin_imm(BinOp::Mul, id, 4);
    b.store(at(out, to, 0), 4, all);
    let expected = match shape.map {
        None => vec![(0.0, f64::INFINITY); lanes],
        Some(map) => {
            let [m, n, k] = [shape.m, shape.n, shape.k].map(|size| size as usize);
            let mut a = vec![0.0; m * k];
            for (address, &value) in a_values.iter().enumerate() {
                let (row, column) = place(&map.a, address);
                a[row * k + column] = value;
            }
            let (mut products, mut sizes) = (vec![0.0; m * n], vec![0.0; m * n]);
            for values in &b_values {
                for (address, &value) in values.iter().enumerate() {
                    let (row, column) = place(&map.b, address);
                    for i in 0..m {
                        products[i * n + column] += a[i * k + row] * value;
                        sizes[i * n + column] += (a[i * k + row] * value).abs();
                    }
                }
            }
            let per_lane = shape.acc_elements() as usize;
            let lane = |lane: usize| {
                let places = (lane * per_lane..(lane + 1) * per_lane).map(|address| place(&map.acc, address));
                let (mut value, mut size) = (0.0, 0.0);
                for (row, column) in places {
                    value += f64::from(turns) * products[row * n + column];
                    size += f64::from(turns) * sizes[row * n + column];
                }
                // Matrix units keep as few as 14 bits of a sum of 8-bit floats.
                (value, if shape.acc == DType::I32 { 0.0 } else { 1e-3 * size })
            };
            (0..lanes).map(lane).collect()
        }
    };
    let per_turn = 2.0 * CHAINS as f64 * f64::from(shape.m * shape.n * shape.k) / f64::from(shape.lanes);
    Arithmetic { kernel: b.finish(), input, per_turn, expected, integers: shape.acc == DType::I32 }
}

/// Columns of a product of four subgroups.
const COLUMNS: u32 = 128;
/// Steps of k that one such instruction of ours takes.
const GROUP_STEPS: usize = 8;

/// Four subgroups multiply `[64, k]` by `[k, 128]`: A from registers, the same for each subgroup, B from shared memory.
/// Input: the fragments of A of each lane, step by step, then B as it lies in shared memory.
fn warpgroup(shape: &'static MmaShape, turns: u32) -> Arithmetic {
    let lanes = shape.lanes as usize;
    let mut rng = fastrand::Rng::with_seed(8);
    let a_ty = Type::vector(scalar(shape.a), shape.a_elements() as u8);
    let (mut input, mut a_values) = (Vec::new(), Vec::new());
    for _ in 0..GROUP_STEPS {
        let (bytes, values) = draw(&mut rng, shape.a, lanes * shape.a_elements() as usize);
        input.extend(bytes);
        a_values.push(values);
    }
    // Rows of the panel are columns of the product; pieces of 16 bytes of eight rows lie together.
    let size = shape.b.bits() as usize / 8;
    let depth = GROUP_STEPS * shape.k as usize;
    let (panel_start, panel_bytes) = (input.len(), COLUMNS as usize * depth * size);
    let (leading, stride) = (16 * COLUMNS, 128u32);
    let (drawn, b_values) = draw(&mut rng, shape.b, COLUMNS as usize * depth);
    let mut image = vec![0u8; panel_bytes];
    for (i, number) in drawn.chunks_exact(size).enumerate() {
        let (row, byte) = (i / depth, i % depth * size);
        let place = leading as usize * (byte / 16) + stride as usize * (row / 8) + 16 * (row % 8) + byte % 16;
        image[place..place + size].copy_from_slice(number);
    }
    input.extend(image);
    let mut b = Builder::new(&format!("peak_group_{}", shape.a.name()));
    b.workgroup(THREADS, 1, 1);
    let data = b.buffer("data", Access::Read, 16);
    let out = b.buffer("out", Access::Write, 16);
    let shared = b.shared("panel", panel_bytes as u32, 128);
    let local = b.builtin(Builtin::LocalId(0));
    let mine = b.bin_imm(BinOp::Mul, local, 16);
    let words = Type::vector(Scalar::I32, 4);
    for start in (0..panel_bytes).step_by(16 * THREADS as usize) {
        let piece = b.load(words, at(data, mine, (panel_start + start) as i64), 16);
        b.store(at(shared, mine, start as i64), 16, piece);
    }
    b.asynchronous(Asynchronous::Fence);
    b.barrier();
    let lane = b.builtin(Builtin::Lane);
    let a_at = b.bin_imm(BinOp::Mul, lane, i64::from(a_ty.bytes()));
    let step_bytes = lanes * a_ty.bytes() as usize;
    let fragments: Vec<Value> = (0..GROUP_STEPS)
        .map(|step| b.load(a_ty, at(data, a_at, (step * step_bytes) as i64), a_ty.bytes().min(16)))
        .collect();
    let per_lane = shape.acc_elements() * COLUMNS / shape.n;
    let zero = b.int(Type::vector(scalar(shape.acc), per_lane as u8), 0);
    let (start, end) = (b.int(Scalar::I32, 0), b.int(Scalar::I32, i64::from(turns)));
    // Sums of 8-bit floats keep some 14 bits: over thousands of turns they would stand still, so each turn has its own.
    let short = size == 1 && shape.acc == DType::F32;
    let sums = b.for_loop(start, end, 1, &[zero], |b, _, sums| {
        let panel =
            Panel { address: Address { memory: shared, index: None, offset: 0 }, leading, stride, swizzled: false };
        let factor = Factor::Fragments(fragments.clone());
        if !short {
            return vec![b.warpgroup_mma(shape, COLUMNS, factor, panel, sums[0])];
        }
        let products = b.warpgroup_mma(shape, COLUMNS, factor, panel, zero);
        vec![b.add(sums[0], products)]
    });
    let all = total(&mut b, &sums);
    let id = thread(&mut b);
    let to = b.bin_imm(BinOp::Mul, id, 4);
    b.store(at(out, to, 0), 4, all);
    let expected = match shape.map {
        None => vec![(0.0, f64::INFINITY); lanes],
        Some(map) => {
            let mut a = vec![0.0; shape.m as usize * depth];
            for (step, values) in a_values.iter().enumerate() {
                for (address, &value) in values.iter().enumerate() {
                    let (row, column) = place(&map.a, address);
                    a[row * depth + step * shape.k as usize + column] = value;
                }
            }
            let own = shape.acc_elements() as usize;
            let lane = |lane: usize| {
                let (mut value, mut size) = (0.0, 0.0);
                for block in 0..(COLUMNS / shape.n) as usize {
                    for address in lane * own..(lane + 1) * own {
                        let (row, column) = place(&map.acc, address);
                        let column = block * shape.n as usize + column;
                        for k in 0..depth {
                            let product = f64::from(turns) * a[row * depth + k] * b_values[column * depth + k];
                            value += product;
                            size += product.abs();
                        }
                    }
                }
                (value, if shape.acc == DType::I32 { 0.0 } else { 1e-3 * size })
            };
            (0..lanes).map(lane).collect()
        }
    };
    // 64 rows over the 128 threads of four subgroups.
    let per_turn = 2.0 * 64.0 * f64::from(COLUMNS) * depth as f64 / 128.0;
    Arithmetic { kernel: b.finish(), input, per_turn, expected, integers: shape.acc == DType::I32 }
}

/// Multiply-adds of each sum within a turn, so that the loop itself weighs nothing.
const STEPS: usize = 16;

/// Each sum is multiplied by one number and raised by another, `s = s * x + y`: by 1 and by 0.5, which no compiler sees.
fn multiply_add(turns: u32) -> Arithmetic {
    let (x, y) = (1.0f32, 0.5f32);
    let input = [x.to_le_bytes(), y.to_le_bytes()].concat();
    let mut b = Builder::new("peak_fma");
    b.workgroup(THREADS, 1, 1);
    let data = b.buffer("data", Access::Read, 16);
    let out = b.buffer("out", Access::Write, 16);
    let zero = b.int(Scalar::I64, 0);
    let (x_value, y_value) = (b.load(Scalar::F32, at(data, zero, 0), 4), b.load(Scalar::F32, at(data, zero, 4), 4));
    let starts: Vec<Value> = (0..CHAINS).map(|chain| b.f32(1, chain as f32)).collect();
    let (start, end) = (b.int(Scalar::I32, 0), b.int(Scalar::I32, i64::from(turns)));
    let sums = b.for_loop(start, end, 1, &starts, |b, _, sums| {
        let mut next = sums.to_vec();
        for _ in 0..STEPS {
            next.iter_mut().for_each(|sum| *sum = b.fma(*sum, x_value, y_value));
        }
        next
    });
    let all = total(&mut b, &sums);
    let id = thread(&mut b);
    let to = b.bin_imm(BinOp::Mul, id, 4);
    b.store(at(out, to, 0), 4, all);
    let mut chains: Vec<f32> = (0..CHAINS).map(|chain| chain as f32).collect();
    for _ in 0..turns as usize * STEPS {
        chains.iter_mut().for_each(|sum| *sum = sum.mul_add(x, y));
    }
    let value: f64 = chains.iter().map(|&sum| f64::from(sum)).sum();
    let per_turn = 2.0 * (CHAINS * STEPS) as f64;
    Arithmetic { kernel: b.finish(), input, per_turn, expected: vec![(value, 1e-5 * value.abs())], integers: false }
}
