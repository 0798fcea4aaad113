//! Addresses, loads, stores and the atomic addition.

use cranelift_codegen::ir::{self as clif, AtomicRmwOp, InstBuilder, MemFlagsData, types};

use super::emit::{Emitter, flags};
use super::level::Arch;
use super::value::{PIECE, Repr, lane_type, shape, vector_type};
use crate::ir::{self, Address, Type};

impl Emitter<'_> {
    /// Start of memory plus index, and the constant rest, which fits the offset of a CLIF access with `room` to spare.
    fn pointer(&mut self, address: &Address, room: i32) -> (clif::Value, i32) {
        let Some(&(base, before)) = self.bases.get(&address.memory) else {
            unreachable!("the verifier let an address name memory that the kernel lacks");
        };
        let mut offset = before.wrapping_add(address.offset);
        let mut pointer = base;
        if let Some(index) = address.index {
            match self.known(index) {
                Some(bits) if self.kernel.ty(index).scalar == ir::Scalar::I32 => {
                    offset = offset.wrapping_add(i64::from(bits as u32 as i32));
                }
                Some(bits) => offset = offset.wrapping_add(bits as i64),
                None => pointer = self.indexed(base, address.memory, index),
            }
        }
        match i32::try_from(offset) {
            Ok(small) if small.checked_add(room).is_some() => (pointer, small),
            _ => (self.b.ins().iadd_imm_s(pointer, offset), 0),
        }
    }

    /// `base + index`, made once per block and used in the blocks inside it.
    fn indexed(&mut self, base: clif::Value, memory: ir::Memory, index: ir::Value) -> clif::Value {
        let key = (memory, index);
        if let Some(&sum) = self.addresses.iter().rev().find_map(|open| open.get(&key)) {
            return sum;
        }
        let wide = match self.wide_counters.get(&index) {
            Some(&wide) => wide,
            None => {
                let repr = self.get(index);
                self.resize(&repr, types::I64, true).one()
            }
        };
        let sum = self.b.ins().iadd(base, wide);
        if let Some(open) = self.addresses.last_mut() {
            open.insert(key, sum);
        }
        sum
    }

    /// Reads a value. `as_float` reads an integer as the float of its width.
    pub(super) fn load(&mut self, address: &Address, align: u32, ty: Type, as_float: bool) -> Repr {
        let (pointer, offset) = self.pointer(address, ty.bytes() as i32);
        let (lane, shapes) = shape(ty);
        let aligned = flags(align >= ty.bytes().min(PIECE as u32));
        if ty.lanes == 1 {
            let read = match (as_float, lane) {
                (true, types::I32) => types::F32,
                (true, types::I64) => types::F64,
                _ => lane,
            };
            return Repr::scalar(lane, self.b.ins().load(read, aligned, pointer, offset));
        }
        let pieces = match ty.bytes() {
            2 | 4 | 8 => {
                let short = match ty.bytes() {
                    2 => types::I16,
                    4 => types::F32,
                    _ => types::F64,
                };
                let scalar = self.b.ins().load(short, aligned, pointer, offset);
                let vector = self.in_lane_0(scalar);
                vec![self.bits_as(vector, vector_type(lane))]
            }
            _ => shapes
                .iter()
                .enumerate()
                .map(|(i, &piece)| self.load_piece(piece, aligned, pointer, offset + (PIECE * i) as i32))
                .collect(),
        };
        Repr { lane, lanes: ty.lanes, pieces }
    }

    /// Reads 16 bytes.
    ///
    /// Below AVX an operand of 16 bytes in memory must be aligned. Cranelift (0.135.8) knows that of every instruction
    /// but `cmpps` and `cmppd`, which it lets read from any address, and the processor faults there. So floats
    /// that may lie anywhere are read as integers: the load is then an instruction of its own, as it has to be, and the
    /// change of type is none.
    fn load_piece(&mut self, piece: clif::Type, flags: MemFlagsData, pointer: clif::Value, offset: i32) -> clif::Value {
        if self.facts.arch == Arch::X86 && !self.facts.avx && !flags.aligned() && piece == types::F32X4 {
            let read = self.b.ins().load(types::I32X4, flags, pointer, offset);
            return self.bits_as(read, piece);
        }
        self.b.ins().load(piece, flags, pointer, offset)
    }

    /// Writes a value.
    pub(super) fn store(&mut self, address: &Address, align: u32, value: &Repr) {
        let bytes = value.lane.bytes() * u32::from(value.lanes);
        let (pointer, offset) = self.pointer(address, bytes as i32);
        let aligned = flags(align >= bytes.min(PIECE as u32));
        if value.lanes > 1 && bytes < PIECE as u32 {
            let short = match bytes {
                2 => types::I16,
                4 => types::F32,
                _ => types::F64,
            };
            let vector = self.bits_as(value.one(), vector_type(short));
            let scalar = self.b.ins().extractlane(vector, 0);
            self.b.ins().store(aligned, scalar, pointer, offset);
            return;
        }
        for (i, &piece) in value.pieces.iter().enumerate() {
            self.b.ins().store(aligned, piece, pointer, offset + (PIECE * i) as i32);
        }
    }

    /// Adds to a number in memory; gives what was there.
    pub(super) fn atomic_add(&mut self, address: &Address, value: clif::Value) -> Repr {
        let (pointer, offset) = self.pointer(address, 4);
        let pointer = if offset == 0 { pointer } else { self.b.ins().iadd_imm_s(pointer, i64::from(offset)) };
        let before = self.b.ins().atomic_rmw(types::I32, flags(true), AtomicRmwOp::Add, pointer, value);
        Repr::scalar(lane_type(ir::Scalar::I32), before)
    }
}
