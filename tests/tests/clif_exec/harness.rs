//! Loads machine code, feeds it operands, and holds the plain definitions of the small floats.
//!
//! Reads kernels as lists of cases, makes assertions. Nothing here shares code with the compiler's own tables.

use bitsmith_compiler::caps::Caps;
use bitsmith_compiler::ir::{Access, Address, Builder, Scalar, Type, Value, verify};
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::cpu::CpuTarget;
use cranelift_codegen::ir::{AbiParam, types};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{Linkage, Module, default_libcall_names};

pub type Entry = extern "C" fn(*const u64, *mut u8, u64, u64);

/// Bytes between two operands or results.
pub const STRIDE: usize = 512;

pub struct Loaded {
    module: Option<JITModule>,
    entry: Entry,
}

impl Loaded {
    pub fn new(code: &[u8]) -> Loaded {
        let mut flags = cranelift_codegen::settings::builder();
        cranelift_codegen::settings::Configurable::set(&mut flags, "is_pic", "false").expect("a flag");
        let isa = cranelift_native::builder().expect("a known host");
        let isa = isa.finish(cranelift_codegen::settings::Flags::new(flags)).expect("an ISA");
        let mut module = JITModule::new(JITBuilder::with_isa(isa, default_libcall_names()));
        let mut signature = module.make_signature();
        signature.params = vec![AbiParam::new(types::I64); 4];
        let id = module.declare_function("kernel", Linkage::Export, &signature).expect("a declaration");
        module.define_function_bytes(id, 64, code, &[]).expect("a definition");
        module.finalize_definitions().expect("memory to run code in");
        let address = module.get_finalized_function(id);
        // SAFETY: the target documents its functions to have this signature, and the module keeps the code alive.
        let entry = unsafe { std::mem::transmute::<*const u8, Entry>(address) };
        Loaded { module: Some(module), entry }
    }

    pub fn run(&self, args: &[u64], grid: [u64; 3], scratch: &mut Aligned) {
        let slots: Vec<u64> = args.iter().copied().chain(grid).collect();
        (self.entry)(slots.as_ptr(), scratch.0.as_mut_ptr().cast(), 0, grid.iter().product());
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if let Some(module) = self.module.take() {
            // SAFETY: the entry goes away with this value, so nothing can call the code any more.
            unsafe { module.free_memory() };
        }
    }
}

/// Memory that starts at a multiple of 64.
#[repr(align(64))]
#[derive(Clone, Copy)]
pub struct Line(pub [u8; 64]);

pub struct Aligned(pub Vec<Line>);

impl Aligned {
    pub fn new(bytes: usize) -> Aligned {
        Aligned(vec![Line([0xa5; 64]); bytes.div_ceil(64)])
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|line| line.0).collect()
    }

    pub fn fill(&mut self, bytes: &[u8]) {
        for (line, bytes) in self.0.iter_mut().zip(bytes.chunks(64)) {
            line.0[..bytes.len()].copy_from_slice(bytes);
        }
    }
}

pub fn levels() -> Vec<CpuTarget> {
    CpuTarget::names()
        .map(|name| CpuTarget::named(name).expect("a level"))
        .filter(CpuTarget::runs_here)
        .chain([CpuTarget::host().expect("a known host")])
        .collect()
}

pub type Build = Box<dyn Fn(&mut Builder, [Value; 3]) -> Value>;
pub type Expect = Box<dyn Fn(&[Vec<u64>; 3]) -> Vec<u64>>;

/// One expression over three operands, and what it gives.
pub struct Case {
    name: String,
    build: Build,
    expect: Expect,
}

pub fn case(
    name: impl Into<String>,
    build: impl Fn(&mut Builder, [Value; 3]) -> Value + 'static,
    expect: impl Fn(&[Vec<u64>; 3]) -> Vec<u64> + 'static,
) -> Case {
    Case { name: name.into(), build: Box::new(build), expect: Box::new(expect) }
}

pub fn read(bytes: &[u8], scalar: Scalar, lanes: usize) -> Vec<u64> {
    let width = scalar.bytes() as usize;
    bytes[..lanes * width]
        .chunks(width)
        .map(|chunk| chunk.iter().rev().fold(0, |bits, &byte| bits << 8 | u64::from(byte)))
        .collect()
}

pub fn edge(rng: &mut fastrand::Rng, scalar: Scalar) -> u64 {
    let bits = scalar.bits();
    let mask = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
    let floats = [0.0f32, -0.0, 1.0, -1.5, 2.5, 0.5, 448.0, 1e-40, -6e-8, 65504.0, 65519.0, 65520.0, 3e38, 240.0]
        .map(f32::to_bits);
    let specials = [0x7f80_0000u32, 0xff80_0000, 0x7fc0_0000, 0x4f00_0000, 0xcf00_0000, 0x4b80_0001, 0x3380_0000];
    match rng.u8(..8) {
        0 if scalar == Scalar::F32 => u64::from(floats[rng.usize(..floats.len())]),
        1 if scalar == Scalar::F32 => u64::from(specials[rng.usize(..specials.len())]),
        2..5 if scalar == Scalar::F32 => u64::from(((rng.f32() - 0.5) * (rng.f32() * 24.0 - 8.0).exp2()).to_bits()),
        0 => [0, 1, mask, mask >> 1, (mask >> 1) + 1, 0x80 & mask, 0x7f][rng.usize(..7)],
        _ => rng.u64(..) & mask,
    }
}

/// Builds one kernel of all cases over a type, and checks it on every level and on many inputs.
pub fn check(ty: Type, cases: &[Case]) {
    let mut b = Builder::new("cases");
    let input = b.buffer("input", Access::Read, 64);
    let output = b.buffer("output", Access::Write, 64);
    let place = |memory, i: usize| Address { memory, index: None, offset: (STRIDE * i) as i64 };
    let operands = [0, 1, 2].map(|i| b.load(ty, place(input, i), 1));
    let mut results = Vec::new();
    for (i, case) in cases.iter().enumerate() {
        let mut value = (case.build)(&mut b, operands);
        let of = b.ty(value);
        if of.scalar == Scalar::Bool {
            let (one, zero) = (b.int(of.with_scalar(Scalar::I8), 1), b.int(of.with_scalar(Scalar::I8), 0));
            value = b.select(value, one, zero);
        }
        results.push(b.ty(value));
        b.store(place(output, i), 1, value);
    }
    let kernel = b.finish();
    let verified = verify(&kernel, &Caps::ANY).unwrap_or_else(|faults| panic!("{ty}: {}", faults[0]));
    for target in levels() {
        let legal = target.legalize(&verified).expect("a sound kernel has a legal form");
        let legal = verify(&legal, &Caps::ANY).unwrap_or_else(|faults| panic!("{ty}: {}", faults[0]));
        let artifact = target.emit(&legal).unwrap_or_else(|error| panic!("{ty} on {}: {error}", target.name()));
        let loaded = Loaded::new(artifact.payload.bytes());
        let mut rng = fastrand::Rng::with_seed(0x5eed);
        for _ in 0..60 {
            let mut bytes = vec![0; 3 * STRIDE];
            for operand in 0..3 {
                for lane in 0..ty.lanes as usize {
                    let width = ty.scalar.bytes() as usize;
                    let at = operand * STRIDE + lane * width;
                    bytes[at..at + width].copy_from_slice(&edge(&mut rng, ty.scalar).to_le_bytes()[..width]);
                }
            }
            let operands = [0, 1, 2].map(|i| read(&bytes[i * STRIDE..], ty.scalar, ty.lanes as usize));
            let (mut from, mut to) = (Aligned::new(3 * STRIDE), Aligned::new(cases.len() * STRIDE));
            from.fill(&bytes);
            let args = [from.0.as_ptr() as u64, to.0.as_mut_ptr() as u64];
            loaded.run(&args, [1, 1, 1], &mut Aligned::new(64));
            let made = to.bytes();
            for (i, (case, of)) in cases.iter().zip(&results).enumerate() {
                let got = read(&made[i * STRIDE..], of.scalar, of.lanes as usize);
                let want = (case.expect)(&operands);
                assert_eq!(got.len(), want.len(), "{} {ty}", case.name);
                for (lane, (&got, &want)) in got.iter().zip(&want).enumerate() {
                    assert!(
                        got == want || is_nan(of.scalar, got) && is_nan(of.scalar, want),
                        "{} of {ty} on {}, lane {lane}: {got:#x}, not {want:#x}; operands {:x?}",
                        case.name,
                        target.name(),
                        operands.each_ref().map(|operand| operand.get(lane))
                    );
                }
                let end = (i + 1) * STRIDE;
                assert!(made[i * STRIDE + of.bytes() as usize..end].iter().all(|&byte| byte == 0xa5), "{}", case.name);
            }
        }
    }
}

pub fn is_nan(scalar: Scalar, bits: u64) -> bool {
    match scalar {
        Scalar::Bool | Scalar::I8 | Scalar::I16 | Scalar::I32 | Scalar::I64 => false,
        _ => decode(scalar, bits).is_nan(),
    }
}

/// The number of a code, from the definition of each type.
pub fn decode(scalar: Scalar, code: u64) -> f64 {
    let small = |mantissa: u32, bias: i32, nan: &dyn Fn(u64) -> bool, infinite: bool| {
        let (sign, magnitude) = (code >> 7 & 1, code & 0x7f);
        let (exponent, fraction) = ((magnitude >> mantissa) as i32, (magnitude & ((1 << mantissa) - 1)) as f64);
        let top = exponent == (1 << (7 - mantissa)) - 1;
        let unit = (1u32 << mantissa) as f64;
        let value = match () {
            _ if nan(code) => f64::NAN,
            _ if infinite && top => f64::INFINITY,
            _ if exponent == 0 => fraction / unit * 2f64.powi(1 - bias),
            _ => (1.0 + fraction / unit) * 2f64.powi(exponent - bias),
        };
        if sign == 1 { -value } else { value }
    };
    match scalar {
        Scalar::F32 => f32::from_bits(code as u32).into(),
        Scalar::F16 => half::f16::from_bits(code as u16).to_f64(),
        Scalar::Bf16 => half::bf16::from_bits(code as u16).to_f64(),
        Scalar::E4m3fn => small(3, 7, &|code| code & 0x7f == 0x7f, false),
        Scalar::E4m3fnuz => small(3, 8, &|code| code == 0x80, false),
        Scalar::E5m2 => small(2, 15, &|code| code & 0x7f > 0x7c, true),
        Scalar::E5m2fnuz => small(2, 16, &|code| code == 0x80, false),
        Scalar::E8m0 if code == 0xff => f64::NAN,
        Scalar::E8m0 => 2f64.powi(code as i32 - 127),
        _ => code as f64,
    }
}

/// The code nearest to a number, by search over all codes; ties go to the even one.
pub fn encode(scalar: Scalar, bits: u64) -> u64 {
    let value = f32::from_bits(bits as u32);
    match scalar {
        Scalar::F32 => bits,
        Scalar::F16 => half::f16::from_f32(value).to_bits().into(),
        Scalar::Bf16 => half::bf16::from_f32(value).to_bits().into(),
        Scalar::E8m0 if value.is_nan() => 0xff,
        Scalar::E8m0 => (0..=0xfe).rev().find(|&code| decode(scalar, code) <= value.abs().into()).unwrap_or(0),
        _ => {
            let negative = value.is_sign_negative();
            let nan = if matches!(scalar, Scalar::E4m3fnuz | Scalar::E5m2fnuz) { 0x80 } else { 0x7f };
            if value.is_nan() {
                return nan;
            }
            let finite = (0..0x80u64).filter(|&code| decode(scalar, code).is_finite());
            let distance = |code: u64| (decode(scalar, code) - f64::from(value.abs()).min(1e9)).abs();
            let code = finite.min_by(|&a, &b| distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1))));
            let code = code.unwrap_or(0);
            if negative && !(code == 0 && nan == 0x80) { code | 0x80 } else { code }
        }
    }
}
