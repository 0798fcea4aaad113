//! Products of quantized matrices: which types are served, how a matrix is packed, and the kernel for a number of rows.
//!
//! Reads blocks as GGUF has them; makes packed matrices and loaded programs. Always holds: a matrix keeps its numbers, and
//! activations are quantized with as fine a scale as ggml quantizes them for the same type of weights.

use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::{Format, Part, PartType};
use bitsmith_compiler::lower::{self, Packing, Role, signature};
use bitsmith_compiler::op::{Activation, Epilogue, Matmul, Op, Per, Quantize};
use bitsmith_compiler::schedule::Schedule;
use bitsmith_compiler::{Error, Result, compile};
use bitsmith_runtime::cpu::CpuDevice;
use bitsmith_runtime::{Device, Program};
use llama_cpp_sys_2 as sys;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

/// Types that are served: ggml's, our name of it, and how many activations share a scale. The last is what ggml quantizes to
/// in front of a product with that type: `Q8_0` has blocks of 32, `Q8_K` of 256 (`type_traits_cpu` in `ggml-cpu.c`).
const KINDS: &[(sys::ggml_type, &str, u32)] = &[
    (sys::GGML_TYPE_Q4_0, "q4_0", 32),
    (sys::GGML_TYPE_Q4_1, "q4_1", 32),
    (sys::GGML_TYPE_Q5_0, "q5_0", 32),
    (sys::GGML_TYPE_Q5_1, "q5_1", 32),
    (sys::GGML_TYPE_Q8_0, "q8_0", 32),
    (sys::GGML_TYPE_IQ4_NL, "iq4_nl", 32),
    (sys::GGML_TYPE_Q2_K, "q2_k", 256),
    (sys::GGML_TYPE_Q3_K, "q3_k", 256),
    (sys::GGML_TYPE_Q4_K, "q4_k", 256),
    (sys::GGML_TYPE_Q5_K, "q5_k", 256),
    (sys::GGML_TYPE_Q6_K, "q6_k", 256),
    (sys::GGML_TYPE_TQ1_0, "tq1_0", 256),
    (sys::GGML_TYPE_TQ2_0, "tq2_0", 256),
];

/// Activations per scale where ggml keeps scales in `f16`; those of `Q8_K` are `f32`.
const HALF_GROUP: u32 = 32;

/// Numbers of rows that kernels are made for: a launch takes the first that is not below its own, or the last.
const ROWS: [usize; 10] = [1, 2, 3, 4, 6, 8, 16, 32, 128, 512];

/// A product `Y[m, n] = X[m, k] · W[n, k]ᵀ` with W of one type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    /// The matrix product.
    pub matmul: Matmul,
    /// Activations that share a scale.
    group: u32,
}

/// A kernel, loaded.
pub struct Kernel {
    /// What it computes.
    pub op: Op,
    schedule: Schedule,
    /// What its buffers hold, in the order of its arguments; the number of rows follows them.
    pub roles: Vec<Role>,
    /// What runs.
    pub program: Program,
}

impl Kernel {
    /// Workgroups for so many rows.
    pub fn grid(&self, m: usize) -> [u32; 3] {
        lower::grid(&self.op, &self.schedule, m)
    }
}

/// What is compiled and loaded, for as long as the process runs.
struct Shop {
    device: CpuDevice,
    kernels: Mutex<HashMap<String, Arc<Kernel>>>,
}

static SHOP: LazyLock<Result<Shop, String>> = LazyLock::new(|| {
    // One thread: the device only loads programs here, ggml's threads run them.
    let device = CpuDevice::new(1).map_err(|error| error.to_string())?;
    Ok(Shop { device, kernels: Mutex::new(HashMap::new()) })
});

/// The processor's level of instructions that kernels are made for; an error where there is no emitter for it.
pub fn target() -> Result<String> {
    let shop = SHOP.as_ref().map_err(|error| Error::Unsupported(error.clone()))?;
    Ok(shop.device.info().target)
}

/// A kernel of the shop, made where there is none yet. `m` is what the schedule is chosen for.
fn kernel(op: Op, m: usize) -> Result<Arc<Kernel>> {
    let shop = SHOP.as_ref().map_err(|error| Error::Unsupported(error.clone()))?;
    let key = format!("{op:?} {m}");
    let mut kernels = shop.kernels.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(kernel) = kernels.get(&key) {
        return Ok(Arc::clone(kernel));
    }
    let op = op.checked()?;
    let schedule = lower::choose(&op, shop.device.caps(), m)?;
    let artifact = compile(&op, &schedule, shop.device.target())?.artifact;
    let roles = signature(&op)?.iter().map(|s| s.role).collect();
    let kernel = Arc::new(Kernel { op, schedule, roles, program: shop.device.load(&artifact)? });
    kernels.insert(key, Arc::clone(&kernel));
    Ok(kernel)
}

impl Product {
    /// The product with a matrix `[n, k]` of a ggml type; `None` where the type or the shape is not served.
    pub fn of(kind: sys::ggml_type, n: usize, k: usize) -> Option<Product> {
        let &(_, name, group) = KINDS.iter().find(|(known, ..)| *known == kind)?;
        let weight: Format = name.parse().ok()?;
        let activation = Activation::Int8(Per::Group(group));
        let matmul = Matmul { n, k, weight, activation, out: DType::F32, epilogue: Epilogue::default() };
        Op::Matmul(matmul).checked().ok()?;
        Some(Product { matmul, group })
    }

    /// Bytes of the packed matrix.
    pub fn packed_bytes(&self) -> Result<usize> {
        Packing::N16.bytes(&self.matmul.weight, self.matmul.n, self.matmul.k)
    }

    /// Packs a matrix from its blocks, row after row, into `out`, which has [`Product::packed_bytes`].
    pub fn pack(&self, blocks: &[u8], out: &mut [u8]) -> Result<()> {
        let Matmul { n, k, weight, .. } = self.matmul;
        let row = blocks.len() / n;
        // Rows are independent, 16 at a time; pieces keep what is unpacked in between small.
        let rows = (PIECE / k).next_multiple_of(16).max(16);
        let packed = Packing::N16.bytes(&weight, rows, k)?;
        let threads = bitsmith_runtime::cpu::available_threads();
        let pieces = Mutex::new(blocks.chunks(rows * row).zip(out.chunks_mut(packed)));
        let work = || -> Result<()> {
            loop {
                let Some((blocks, out)) = pieces.lock().unwrap_or_else(PoisonError::into_inner).next() else {
                    return Ok(());
                };
                let rows = blocks.len() / row;
                let part = Part { name: "blocks", dtype: PartType::U8, shape: vec![rows, row], bytes: blocks.to_vec() };
                let quantized = (weight.container.unpack)(&weight, rows, k, &[part])?;
                out.copy_from_slice(&Packing::N16.pack(&quantized)?);
            }
        };
        std::thread::scope(|scope| {
            let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let own = work();
            helpers.into_iter().map(|helper| helper.join().expect("packing does not panic")).fold(own, Result::and)
        })
    }

    /// Whether ggml keeps the scales of these activations in `f16`.
    pub fn half_scales(&self) -> bool {
        self.group == HALF_GROUP
    }

    /// The quantization of activations in front of it.
    pub fn quantize(&self) -> Quantize {
        Quantize {
            k: self.matmul.k,
            input: DType::F32,
            code: DType::I8,
            per: Per::Group(self.group),
            sum_group: self.matmul.segment(),
            norm: None,
            smooth: false,
        }
    }
}

/// Weights that are unpacked at a time.
const PIECE: usize = 1 << 18;

/// A packed matrix's product with its kernels, made when they are first wanted.
pub struct Packed {
    /// The product.
    pub product: Product,
    quantize: OnceLock<Arc<Kernel>>,
    kernels: [OnceLock<Arc<Kernel>>; ROWS.len()],
}

impl Packed {
    /// Without any kernel yet.
    pub fn new(product: Product) -> Packed {
        Packed { product, quantize: OnceLock::new(), kernels: std::array::from_fn(|_| OnceLock::new()) }
    }

    /// The kernel that quantizes activations.
    pub fn quantizer(&self) -> Result<&Arc<Kernel>> {
        once(&self.quantize, || kernel(Op::Quantize(self.product.quantize()), 1))
    }

    /// The kernel for so many rows.
    pub fn kernel(&self, m: usize) -> Result<&Arc<Kernel>> {
        let bucket = ROWS.iter().position(|&rows| m <= rows).unwrap_or(ROWS.len() - 1);
        once(&self.kernels[bucket], || kernel(Op::Matmul(self.product.matmul), ROWS[bucket]))
    }
}

/// `OnceLock::get_or_try_init`, which is not stable.
fn once<T>(cell: &OnceLock<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    match cell.get() {
        Some(value) => Ok(value),
        None => make().map(|value| cell.get_or_init(|| value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A matrix of several pieces, the last of them ragged, is packed as if in one piece.
    #[test]
    fn pieces_pack_as_the_whole() {
        for (kind, n, k) in [(sys::GGML_TYPE_Q8_0, 8213, 64), (sys::GGML_TYPE_Q4_K, 1100, 512)] {
            let product = Product::of(kind, n, k).unwrap();
            let mut random = fastrand::Rng::with_seed(7);
            // SAFETY: the size of a row depends on the type alone.
            let row = unsafe { sys::ggml_row_size(kind, k as i64) };
            let weights: Vec<f32> = (0..n * k).map(|_| random.f32() - 0.5).collect();
            let mut blocks = vec![0_u8; n * row];
            let (from, to) = (weights.as_ptr(), blocks.as_mut_ptr().cast());
            // SAFETY: n rows of k numbers are there, and room for as many rows of blocks.
            let bytes = unsafe { sys::ggml_quantize_chunk(kind, from, to, 0, n as i64, k as i64, std::ptr::null()) };
            assert_eq!(bytes, blocks.len());
            let mut out = vec![0; product.packed_bytes().unwrap()];
            product.pack(&blocks, &mut out).unwrap();
            let weight = product.matmul.weight;
            let part = Part { name: "blocks", dtype: PartType::U8, shape: vec![n, row], bytes: blocks };
            let whole = (weight.container.unpack)(&weight, n, k, &[part]).unwrap();
            assert!(out == Packing::N16.pack(&whole).unwrap(), "{kind}");
        }
    }

    #[test]
    fn what_is_not_served_is_left_to_ggml() {
        assert!(Product::of(sys::GGML_TYPE_F16, 64, 64).is_none());
        assert!(Product::of(sys::GGML_TYPE_IQ2_XS, 64, 256).is_none());
        assert!(Product::of(sys::GGML_TYPE_Q4_K, 64, 128).is_none(), "K is not in whole blocks");
        assert!(Product::of(sys::GGML_TYPE_Q8_0, 1 << 25, 64).is_none(), "N is past what kernels address");
    }
}
