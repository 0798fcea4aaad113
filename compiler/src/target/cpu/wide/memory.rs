//! Addresses, loads, stores and the atomic addition.

use iced_x86::Mnemonic as M;

use super::lower::Lower;
use super::machine::{Arg, Base, Class, Mem, Reg, Size};
use super::value::{Repr, is_general};
use crate::ir::{self, Address, BinOp, Inst, Scalar, Type};

impl Lower<'_> {
    /// A 32-bit index as 64 bits, made once per block and used in the blocks inside it.
    pub fn extended_index(&mut self, index: ir::Value) -> Reg {
        if let Some(&reg) = self.extended.iter().rev().find_map(|open| open.get(&index)) {
            return reg;
        }
        let arg = self.get(index).arg();
        let reg = self.general(M::Movsxd, Size::B8, &[arg]);
        if let Some(open) = self.extended.last_mut() {
            open.insert(index, reg);
        }
        reg
    }

    /// The operand of an access of so many bytes.
    pub fn place(&mut self, address: &Address, bytes: u32) -> Mem {
        let Some(&(base, before)) = self.bases.get(&address.memory) else {
            unreachable!("the verifier let an address name memory that the kernel lacks");
        };
        let mut offset = before.wrapping_add(address.offset);
        let mut index = None;
        if let Some(value) = address.index {
            match self.known(value) {
                Some(bits) if self.kernel.ty(value).scalar == Scalar::I32 => {
                    offset = offset.wrapping_add(i64::from(bits as u32 as i32));
                }
                Some(bits) => offset = offset.wrapping_add(bits as i64),
                None => index = Some(self.index(value, &mut offset)),
            }
        }
        let fits = i32::try_from(offset).ok().filter(|offset| offset.checked_add(bytes as i32).is_some());
        match fits {
            Some(offset) => Mem { base: Base::Reg(base), index, offset, bytes, broadcast: false },
            None => {
                let far = self.int(Size::B8, offset);
                let base = self.general2(M::Add, Size::B8, base, Arg::Use(far, Size::B8));
                Mem { base: Base::Reg(base), index, offset: 0, bytes, broadcast: false }
            }
        }
    }

    /// The register and scale of an index; a constant that is added to it goes to the offset.
    fn index(&mut self, value: ir::Value, offset: &mut i64) -> (Reg, u8) {
        if self.kernel.ty(value).scalar == Scalar::I32 {
            return (self.extended_index(value), 1);
        }
        let mut value = value;
        if let Some(Inst::Bin(BinOp::Add, a, b)) = self.defs[value.0 as usize]
            && let Some(number) = self.known(*b)
            && self.values[a.0 as usize].is_some()
        {
            *offset = offset.wrapping_add(number as i64);
            value = *a;
        }
        if let Some(Inst::Bin(BinOp::Shl, a, b)) = self.defs[value.0 as usize]
            && let Some(by @ 1..=3) = self.known(*b)
            && self.values[a.0 as usize].is_some()
        {
            return (self.get(*a).one(), 1 << by);
        }
        (self.get(value).one(), 1)
    }

    /// Asks for a cache line some way ahead of a vector that a loop reads from a buffer which nobody writes: in the
    /// kernels' streams the next lines lie there, and a line that is not wanted costs one instruction. A kernel with hints of
    /// its own knows better.
    pub fn prefetch(&mut self, address: &Address, mem: &Mem) {
        const AHEAD: i32 = 4096;
        let ir::Memory::Param(index) = address.memory else { return };
        let read_only = matches!(
            self.kernel.params[index as usize].kind,
            ir::ParamKind::Buffer { access: ir::Access::Read, align } if align >= 64
        );
        let starts_line = mem.offset % 64 == 0 && mem.bytes >= 32;
        if self.depth > 0
            && !self.prefetches
            && read_only
            && starts_line
            && mem.index.is_some()
            && mem.offset < i32::MAX - AHEAD
            && self.prefetched.insert(*mem)
        {
            self.push(M::Prefetcht0, vec![Arg::Mem(Mem { offset: mem.offset + AHEAD, ..*mem })]);
        }
    }

    /// Reads a value.
    pub fn load(&mut self, address: &Address, ty: Type) -> Repr {
        let place = self.place(address, ty.bytes());
        if is_general(ty) {
            let (mnemonic, size) = match ty.scalar.bytes() {
                1 | 2 => (M::Movzx, Size::B4),
                4 => (M::Mov, Size::B4),
                _ => (M::Mov, Size::B8),
            };
            let reg = self.general(mnemonic, size, &[Arg::Mem(place)]);
            return Repr::general(ty.scalar, reg);
        }
        let (size, count) = self.vector_shape(ty.bytes());
        let regs = match ty.bytes() {
            2 => {
                let bits = self.general(M::Movzx, Size::B4, &[Arg::Mem(place)]);
                vec![self.vec(M::Vmovd, Size::X, &[Arg::Use(bits, Size::B4)])]
            }
            4 => vec![self.vec(M::Vmovd, Size::X, &[Arg::Mem(place)])],
            8 => vec![self.vec(M::Vmovq, Size::X, &[Arg::Mem(place)])],
            _ => (0..count as i32)
                .map(|i| {
                    let step = size.bytes();
                    let part = Mem { offset: place.offset + i * step as i32, bytes: step, ..place };
                    self.prefetch(address, &part);
                    self.vec(M::Vmovups, size, &[Arg::Mem(part)])
                })
                .collect(),
        };
        Repr::vector(size, regs)
    }

    /// Writes a value.
    pub fn store(&mut self, address: &Address, value: ir::Value) {
        let ty = self.kernel.ty(value);
        let repr = self.get(value);
        let place = self.place(address, ty.bytes());
        if is_general(ty) {
            let size = [Size::B1, Size::B2, Size::B4, Size::B8][ty.scalar.bytes().trailing_zeros() as usize];
            return self.push(M::Mov, vec![Arg::Mem(place), Arg::Use(repr.one(), size)]);
        }
        match ty.bytes() {
            2 => {
                let bits = self.general(M::Vmovd, Size::B4, &[repr.arg()]);
                self.push(M::Mov, vec![Arg::Mem(place), Arg::Use(bits, Size::B2)]);
            }
            4 => self.push(M::Vmovd, vec![Arg::Mem(place), Arg::Use(repr.one(), Size::X)]),
            8 => self.push(M::Vmovq, vec![Arg::Mem(place), Arg::Use(repr.one(), Size::X)]),
            _ => {
                let step = repr.size.bytes();
                for (i, &reg) in repr.regs.iter().enumerate() {
                    let part = Mem { offset: place.offset + (i as u32 * step) as i32, bytes: step, ..place };
                    self.push(M::Vmovups, vec![Arg::Mem(part), Arg::Use(reg, repr.size)]);
                }
            }
        }
    }

    /// Adds to a number in memory; gives what was there.
    pub fn atomic_add(&mut self, address: &Address, value: ir::Value) -> Repr {
        let value = self.get(value).one();
        let place = self.place(address, 4);
        let before = self.f.reg(Class::General);
        self.push(M::Xadd, vec![Arg::Mem(place), Arg::Change(value, before, Size::B4)]);
        Repr::general(Scalar::I32, before)
    }
}
