//! Families of the operations on a KV cache.
//!
//! A kernel is written once for a vector of lanes and a number of threads: on a CPU a workgroup is one thread whose vectors
//! hold tokens (scores) or channels (outputs); elsewhere a thread holds one of either, and threads meet at barriers. Stores
//! and gathers are threads that each own whole units of storage, so none of them meet.

mod append;
mod attend;
mod codes;
mod gather;
mod merge;
mod source;

use super::memory::scalar_of;
use crate::caps::{Caps, Feature};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ir::{Access, BinOp, Builder, Builtin, CastOp, CmpOp, Kernel, Memory, Scalar, Type, Value};
use crate::op::kv::{Arithmetic, Attend, KvOp};
use crate::schedule::KvSchedule;

/// One buffer of an operation on a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvBuffer {
    /// Name in kernels and headers.
    pub name: &'static str,
    /// What the kernel does with it.
    pub access: Access,
    /// Type of an element; `U8` for pages.
    pub dtype: DType,
}

/// The buffers of an operation in the order of the kernel's parameters. Append, dequantize and requantize take one more
/// parameter, the number of work records, an `i32`.
pub fn signature(op: &KvOp) -> Vec<KvBuffer> {
    let of = |name, access, dtype| KvBuffer { name, access, dtype };
    let read = |name, dtype| of(name, Access::Read, dtype);
    let write = |name, dtype| of(name, Access::Write, dtype);
    let mut list = Vec::new();
    let has_statics = |l: &crate::format::kv::KvLayout| l.k.codes.is_static() || l.v.codes.is_static();
    match op {
        KvOp::Append(op) => {
            list.extend([read("k", op.input), read("v", op.input), read("spans", DType::I32)]);
            if op.rope.is_some() {
                list.push(read("rope", DType::F32));
            }
            if has_statics(&op.layout) {
                list.push(read("scales", DType::F32));
            }
            list.push(of("pool", Access::ReadWrite, DType::U8));
        }
        KvOp::Attend(op) => {
            list.extend([read("q", op.input), read("pool", DType::U8)]);
            list.extend([read("table", DType::I32), read("items", DType::I32)]);
            if has_statics(&op.layout) {
                list.push(read("scales", DType::F32));
            }
            if op.alibi {
                list.push(read("slopes", DType::F32));
            }
            list.extend([write("o", DType::F32), write("ml", DType::F32)]);
        }
        KvOp::Merge(op) => {
            list.extend([read("o", DType::F32), read("ml", DType::F32), read("rows", DType::I32)]);
            if op.sinks {
                list.push(read("sinks", DType::F32));
            }
            list.push(write("y", op.out));
        }
        KvOp::Dequant(op) => {
            list.extend([read("pool", DType::U8), read("spans", DType::I32)]);
            if has_statics(&op.layout) {
                list.push(read("scales", DType::F32));
            }
            list.extend([write("k", op.out), write("v", op.out)]);
        }
        KvOp::Requantize(op) => {
            list.extend([read("source", DType::U8), read("pairs", DType::I32)]);
            if has_statics(&op.from) {
                list.push(read("source_scales", DType::F32));
            }
            if has_statics(&op.to) {
                list.push(read("scales", DType::F32));
            }
            list.push(of("pool", Access::ReadWrite, DType::U8));
        }
    }
    list
}

/// The schedule to take where nothing has been measured.
pub fn choose(op: &KvOp, caps: &Caps) -> KvSchedule {
    let many = caps.features.has(Feature::Workgroups);
    match op {
        KvOp::Attend(op) if op.arithmetic == Arithmetic::Matrix => attend::matrix::choose(op, caps),
        KvOp::Attend(op) => attend::choose(op, caps),
        KvOp::Merge(_) | KvOp::Append(_) | KvOp::Dequant(_) | KvOp::Requantize(_) => {
            KvSchedule { threads: if many { 64.min(caps.max_workgroup) } else { 1 }, ..KvSchedule::default() }
        }
    }
}

/// Whether a device sums up an attention by matrix instructions ([`Arithmetic::Matrix`]), however
/// the operation itself says that products are summed up.
pub fn takes_matrix(op: &Attend, caps: &Caps) -> bool {
    attend::matrix::refuses(op, caps).is_none()
}

/// Whether a device sums up an attention by products of bf16 numbers in pairs ([`Arithmetic::Bf16`]), however the operation
/// itself says that products are summed up.
pub fn takes_bf16(op: &Attend, caps: &Caps) -> bool {
    attend::refuses_bf16(op, caps).is_none()
}

/// Turns an operation and a schedule into a kernel for devices of these caps.
pub fn lower(op: &KvOp, schedule: &KvSchedule, caps: &Caps) -> Result<Kernel> {
    let op = op.checked()?;
    let most = if caps.features.has(Feature::Workgroups) { caps.max_workgroup } else { 1 };
    if !schedule.threads.is_power_of_two() || schedule.threads > most {
        return Err(Error::invalid(format!(
            "{}: {} threads; accepted: a power of two up to {most}",
            op.name(),
            schedule.threads
        )));
    }
    let mut b = Builder::new(&entry(&op, schedule));
    let params = Params::declare(&mut b, &op, caps);
    b.workgroup(schedule.threads, 1, 1);
    match &op {
        KvOp::Append(op) => append::build(&mut b, op, &params, schedule),
        KvOp::Attend(op) if op.arithmetic == Arithmetic::Matrix => {
            attend::matrix::build(&mut b, op, &params, schedule, caps)?;
        }
        KvOp::Attend(op) => attend::build(&mut b, op, &params, schedule, caps)?,
        KvOp::Merge(op) => merge::build(&mut b, op, &params, schedule, caps),
        KvOp::Dequant(op) => gather::dequant(&mut b, op, &params, schedule),
        KvOp::Requantize(op) => gather::requantize(&mut b, op, &params, schedule),
    }
    Ok(b.finish())
}

/// Workgroups of a launch over so many work records.
pub fn grid(op: &KvOp, schedule: &KvSchedule, work: usize) -> [u32; 3] {
    let flat = |parts: usize| [(work * parts).div_ceil(schedule.threads as usize) as u32, 1, 1];
    match op {
        KvOp::Append(op) => flat(append::parts(&op.layout)),
        KvOp::Attend(op) if schedule.heads > 1 => [work as u32, 1, 1],
        KvOp::Attend(op) => [work as u32, op.layout.heads as u32, 1],
        KvOp::Merge(op) => [work as u32, op.heads as u32, 1],
        KvOp::Dequant(op) => flat(gather::parts(&op.layout)),
        KvOp::Requantize(op) => flat(gather::page_parts(&op.to)),
    }
}

/// A name that says what the kernel depends on, short enough for every assembler.
fn entry(op: &KvOp, schedule: &KvSchedule) -> String {
    use std::hash::{Hash, Hasher};
    // The description in full is long; its digits tell kernels of one module apart.
    struct Fnv(u64);
    impl Hasher for Fnv {
        fn finish(&self) -> u64 {
            self.0
        }
        fn write(&mut self, bytes: &[u8]) {
            bytes.iter().for_each(|&byte| self.0 = (self.0 ^ byte as u64).wrapping_mul(0x100_0000_01b3));
        }
    }
    let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
    format!("{op:?} {schedule:?}").hash(&mut hash);
    format!("{}_{:016x}", op.name(), hash.finish())
}

/// The parameters of a kernel under construction.
struct Params {
    list: Vec<(&'static str, Memory)>,
    /// Number of work records, `i64`, where the operation takes it.
    work: Option<Value>,
}

impl Params {
    fn declare(b: &mut Builder, op: &KvOp, caps: &Caps) -> Params {
        let mut list = Vec::new();
        for buffer in signature(op) {
            let pages = buffer.dtype == DType::U8;
            let align = if pages { caps.buffer_align } else { 16.min(caps.buffer_align) };
            list.push((buffer.name, b.buffer(buffer.name, buffer.access, align)));
        }
        let flat = matches!(op, KvOp::Append(_) | KvOp::Dequant(_) | KvOp::Requantize(_));
        let work = flat.then(|| {
            let n = b.scalar("n", Scalar::I32);
            b.cast(CastOp::ExtendS, n, Scalar::I64)
        });
        Params { list, work }
    }

    fn find(&self, name: &str) -> Option<Memory> {
        self.list.iter().find(|(n, _)| *n == name).map(|&(_, memory)| memory)
    }

    fn get(&self, name: &str) -> Memory {
        self.find(name).expect("the signature names every buffer that its operation uses")
    }
}

/// An `i64` constant.
fn int(b: &mut Builder, value: usize) -> Value {
    b.int(Scalar::I64, value as i64)
}

/// `a + n`.
fn plus(b: &mut Builder, a: Value, n: usize) -> Value {
    if n == 0 { a } else { b.bin_imm(BinOp::Add, a, n as i64) }
}

/// Index of this thread in the grid, `i64`.
fn thread_in_grid(b: &mut Builder, threads: u32) -> Value {
    let group = b.builtin(Builtin::WorkgroupId(0));
    let group = b.cast(CastOp::ExtendS, group, Scalar::I64);
    if threads == 1 {
        return group;
    }
    let before = super::memory::times(b, group, threads as usize);
    let local = local(b, threads);
    b.add(before, local)
}

/// Index of this thread in its workgroup, `i64`.
fn local(b: &mut Builder, threads: u32) -> Value {
    if threads == 1 {
        return int(b, 0);
    }
    let id = b.builtin(Builtin::LocalId(0));
    b.cast(CastOp::ExtendS, id, Scalar::I64)
}

/// A field of a work record, `i64`.
fn field(b: &mut Builder, memory: Memory, record: Value, fields: usize, index: usize) -> Value {
    let place = super::memory::times(b, record, fields * 4);
    let value = b.load(Scalar::I32, super::memory::at(memory, Some(place), index * 4), 4);
    b.cast(CastOp::ExtendS, value, Scalar::I64)
}

/// A number of a buffer of floats, as `f32`.
fn float(b: &mut Builder, memory: Memory, dtype: DType, index: Value) -> Value {
    floats(b, memory, dtype, index, 1)
}

/// So many numbers of a buffer of floats side by side, as `f32`.
fn floats(b: &mut Builder, memory: Memory, dtype: DType, index: Value, lanes: u8) -> Value {
    let scalar = scalar_of(dtype);
    let place = super::memory::times(b, index, scalar.bytes() as usize);
    let ty = Type::vector(scalar, lanes);
    let x = b.load(ty, super::memory::at(memory, Some(place), 0), scalar.bytes());
    if scalar == Scalar::F32 { x } else { b.cast(CastOp::Float, x, Scalar::F32) }
}

/// The smaller of two `i64`.
fn least(b: &mut Builder, x: Value, y: Value) -> Value {
    b.bin(BinOp::MinS, x, y)
}

/// Does something for a thread whose number is below `count`.
fn below(b: &mut Builder, index: Value, count: Value, body: impl FnOnce(&mut Builder)) {
    let inside = b.cmp(CmpOp::LtS, index, count);
    b.if_then(inside, body);
}
