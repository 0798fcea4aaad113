//! Loads and stores, aligned and within their buffers.

use super::{ALIGN, INPUT, Maker, OUT, PLACE, SCRATCH};
use bitsmith_compiler::ir::{Address, BinOp, Builder, CastOp, Memory, Scalar, Type, Value};

impl Maker {
    /// An address in `len` bytes from `base`, aligned for the type in some random degree.
    fn address(&mut self, b: &mut Builder, memory: Memory, base: Option<Value>, len: u32, ty: Type) -> (Address, u32) {
        let align = 1 << self.rng.u32(0..=ty.bytes().min(16).trailing_zeros());
        // Half of the room for the index, half for the constant.
        let half = (len / 2) as i64;
        let slack = (half - ty.bytes() as i64) / align as i64;
        let offset = self.rng.i64(0..=slack) * align as i64;
        if self.rng.u32(0..3) == 0 && base.is_none() {
            return (Address { memory, index: None, offset }, align);
        }
        let x = self.value(b, Scalar::I32.into());
        let mut index = b.bin_imm(BinOp::And, x, (half - 1) & !(align as i64 - 1));
        let mut offset = offset;
        if base.is_none() && self.rng.u32(0..4) == 0 {
            let zero = b.int(Scalar::I32, 0);
            index = b.bin(BinOp::Sub, zero, index);
            offset += half;
        }
        if let Some(base) = base {
            index = b.add(base, index);
        }
        if self.rng.bool() {
            index = b.cast(CastOp::ExtendS, index, Scalar::I64);
        }
        (Address { memory, index: Some(index), offset }, align)
    }

    pub(super) fn load(&mut self, b: &mut Builder) -> Value {
        let ty = self.memory_type();
        self.load_of(b, ty)
    }

    pub(super) fn load_of(&mut self, b: &mut Builder, ty: Type) -> Value {
        let [input, scratch, _] = self.memory;
        let from_scratch = self.rng.u32(0..4) == 0 && ty.scalar != Scalar::Bool;
        // The base of an address must not lead to another load of its own.
        let scalars = self.scope.iter().any(|&v| b.ty(v) == Scalar::I32.into());
        if !scalars {
            return self.constant(b, ty);
        }
        let (address, align) = if from_scratch {
            let base = self.bases[0];
            self.address(b, scratch, Some(base), SCRATCH, ty)
        } else {
            self.address(b, input, None, INPUT, ty)
        };
        b.load(ty, address, align)
    }

    pub(super) fn store(&mut self, b: &mut Builder) {
        let value = self.any(b);
        if self.rng.bool() {
            let value = self.clean(b, value);
            let (base, ty) = (self.bases[0], b.ty(value));
            let (address, align) = self.address(b, self.memory[1], Some(base), SCRATCH, ty);
            b.store(address, align, value);
        } else {
            let place = self.rng.u32(OUT / PLACE / 2..OUT / PLACE);
            self.store_out(b, place, value);
        }
    }

    pub(super) fn store_out(&mut self, b: &mut Builder, place: u32, value: Value) {
        let value = self.clean(b, value);
        let align = b.ty(value).bytes().min(ALIGN);
        let address = Address { memory: self.memory[2], index: Some(self.bases[1]), offset: (place * PLACE) as i64 };
        b.store(address, align, value);
    }
}
