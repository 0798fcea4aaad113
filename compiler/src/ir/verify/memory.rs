//! Addresses: rights, alignment, static bounds.

use super::Check;
use crate::caps::Feature;
use crate::ir::kernel::{Access, Address, ParamKind};
use crate::ir::types::{Memory, Scalar, Type, Value};

/// What an instruction does to memory.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Use {
    Load,
    Store,
    Atomic,
}

impl Check<'_> {
    /// A load, store or atomic of `ty` that claims the address to be a multiple of `align`.
    /// An address that need not be one of its memory.
    pub(super) fn hint(&mut self, address: &Address) {
        if let Some(index) = address.index {
            self.index(index);
        }
        self.memory(Use::Load, address.memory);
    }

    pub(super) fn access(&mut self, what: Use, address: &Address, align: u32, ty: Option<Type>) {
        if let Some(ty) = ty
            && ty.scalar == Scalar::Bool
        {
            self.fault(format!("{ty} has no place in memory; select an integer by it"));
        }
        if let Some(index) = address.index {
            self.index(index);
        }
        let valid = align.is_power_of_two();
        if !valid {
            self.fault(format!("an alignment is a power of two, not {align}"));
        }
        let Some((declared, bytes)) = self.memory(what, address.memory) else { return };
        if valid && align > declared {
            self.fault(format!("claims alignment {align}, but its memory is only aligned to {declared}"));
        }
        let Some(size) = ty.map(Type::bytes) else { return };
        if address.index.is_some() {
            if bytes.is_some_and(|bytes| size > bytes) {
                self.fault(format!("{size} bytes at any place do not fit the array"));
            }
            return;
        }
        if valid && address.offset % align as i64 != 0 {
            self.fault(format!("claims alignment {align}, but the offset {} is no multiple of it", address.offset));
        }
        let end = address.offset.checked_add(size as i64);
        if address.offset < 0 {
            self.fault(format!("the offset {} lies before the start of the memory", address.offset));
        } else if let Some(bytes) = bytes
            && end.is_none_or(|end| end > bytes as i64)
        {
            self.fault(format!("{size} bytes at {} pass the end of the array of {bytes} bytes", address.offset));
        }
    }

    pub(super) fn atomic(&mut self, address: &Address, value: Value, ty: Option<Type>) {
        self.needs(Feature::Atomics, "atomic_add");
        let i32 = Type::scalar(Scalar::I32);
        self.expect(value, i32, "the summand");
        self.result_is(ty, i32);
        self.access(Use::Atomic, address, 4, Some(i32));
    }

    pub(super) fn async_copy(&mut self, to: &Address, from: &Address, bytes: u8) {
        self.needs(Feature::AsyncCopy, "async_copy");
        if !matches!(bytes, 4 | 8 | 16) {
            return self.fault(format!("{bytes} bytes; a copy takes 4, 8 or 16"));
        }
        if !matches!(to.memory, Memory::Shared(_)) {
            self.fault("copies to a buffer; it copies to a shared array");
        }
        if !matches!(from.memory, Memory::Param(_)) {
            self.fault("copies from a shared array; it copies from a buffer");
        }
        let piece = Some(Type::vector(Scalar::I8, bytes));
        self.access(Use::Store, to, bytes as u32, piece);
        self.access(Use::Load, from, bytes as u32, piece);
    }

    fn index(&mut self, index: Value) {
        if let Some(ty) = self.operand(index)
            && ty != Type::scalar(Scalar::I32)
            && ty != Type::scalar(Scalar::I64)
        {
            self.fault(format!("the index {index} is {ty}; it is i32 or i64"));
        }
    }

    /// Alignment of a memory, and its size where the kernel knows it.
    fn memory(&mut self, what: Use, memory: Memory) -> Option<(u32, Option<u32>)> {
        match memory {
            Memory::Shared(index) => match self.kernel.shared.get(index as usize) {
                Some(shared) => return Some((shared.align, Some(shared.bytes))),
                None => self.fault(format!("there is no shared array number {index}")),
            },
            Memory::Param(index) => match self.kernel.params.get(index as usize).map(|p| p.kind) {
                Some(ParamKind::Buffer { access, align }) => {
                    match (what, access) {
                        (Use::Load, Access::Write) => self.fault("loads from a `write` buffer; it takes `readwrite`"),
                        (Use::Store, Access::Read) => self.fault("stores to a `read` buffer; it takes `write`"),
                        (Use::Atomic, Access::Read | Access::Write) => {
                            self.fault("atomics take a `readwrite` buffer or a shared array");
                        }
                        _ => {}
                    }
                    return Some((align, None));
                }
                Some(ParamKind::Scalar(_)) => self.fault("a scalar parameter is no memory; read it with `arg`"),
                None => self.fault(format!("there is no parameter number {index}")),
            },
        }
        None
    }
}
