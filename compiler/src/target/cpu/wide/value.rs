//! How IR values lie in registers, and the constants among them.
//!
//! A scalar integer (and a scalar float that is not `f32`) lies in a general register whose bits past its width are
//! unspecified; a scalar bool is 0 or 1 there. A scalar `f32` is lane 0 of a vector. A vector is one register of 16, 32
//! or 64 bytes, or several of the widest; bytes past its last lane are unspecified. A vector of bools is one AVX-512 mask
//! (lane `i` is bit `i`, bits past the last lane are 0), or on AVX2 a vector whose lanes are all ones or zeros.

use iced_x86::Mnemonic as M;

use super::lower::Lower;
use super::machine::{Arg, Base, Class, Inst, Mem, Reg, Size};
use crate::ir::{self, Constant, Scalar, Type};

/// One IR value in registers.
#[derive(Clone, Debug)]
pub(super) struct Repr {
    /// What is named of each register.
    pub size: Size,
    /// AVX2: bits of a lane of a vector of bools.
    pub lane: u32,
    /// The registers, lowest lanes first.
    pub regs: Vec<Reg>,
}

impl Repr {
    pub fn general(scalar: Scalar, reg: Reg) -> Repr {
        Repr { size: general_size(scalar), lane: 0, regs: vec![reg] }
    }

    pub fn vector(size: Size, regs: Vec<Reg>) -> Repr {
        Repr { size, lane: 0, regs }
    }

    /// The only register.
    pub fn one(&self) -> Reg {
        self.regs[0]
    }

    /// The only register as an operand that is read.
    pub fn arg(&self) -> Arg {
        Arg::Use(self.regs[0], self.size)
    }
}

/// How much of a general register instructions on a scalar name.
pub(super) fn general_size(scalar: Scalar) -> Size {
    if scalar == Scalar::I64 { Size::B8 } else { Size::B4 }
}

/// Whether a value lies in a general register.
pub(super) fn is_general(ty: Type) -> bool {
    ty.lanes == 1 && ty.scalar != Scalar::F32
}

/// One of four mnemonics, by the width of lanes.
pub(super) fn by_lane(bits: u32, mnemonics: [M; 4]) -> M {
    mnemonics[match bits {
        8 => 0,
        16 => 1,
        32 => 2,
        _ => 3,
    }]
}

impl<'a> Lower<'a> {
    /// Bytes of the widest vector.
    pub fn widest(&self) -> u32 {
        if self.facts.evex { 64 } else { 32 }
    }

    /// Size and number of the registers of a vector of so many bytes.
    pub fn vector_shape(&self, bytes: u32) -> (Size, usize) {
        let widest = self.widest();
        if bytes > widest { (Size::vector(widest), (bytes / widest) as usize) } else { (Size::vector(bytes), 1) }
    }

    /// The shape of a value that is no vector of bools.
    pub fn shape(&self, ty: Type) -> (Size, usize) {
        if is_general(ty) { (general_size(ty.scalar), 1) } else { self.vector_shape(ty.bytes()) }
    }

    // Instructions.

    pub fn push(&mut self, mnemonic: M, args: Vec<Arg>) {
        self.f.push(Inst::Op { mnemonic, args, mask: None });
    }

    /// An instruction that defines a register of a class from its other operands.
    pub fn define_by(&mut self, mnemonic: M, class: Class, size: Size, args: &[Arg]) -> Reg {
        let reg = self.f.reg(class);
        let mut all = vec![Arg::Def(reg, size)];
        all.extend_from_slice(args);
        self.push(mnemonic, all);
        reg
    }

    /// A new vector from the other operands.
    pub fn vec(&mut self, mnemonic: M, size: Size, args: &[Arg]) -> Reg {
        self.define_by(mnemonic, Class::Vector, size, args)
    }

    /// A new vector from two vectors of the same size.
    pub fn vec2(&mut self, mnemonic: M, size: Size, a: Reg, b: Reg) -> Reg {
        self.vec(mnemonic, size, &[Arg::Use(a, size), Arg::Use(b, size)])
    }

    /// A new vector from a vector and a number.
    pub fn vec_imm(&mut self, mnemonic: M, size: Size, a: Reg, number: i64) -> Reg {
        self.vec(mnemonic, size, &[Arg::Use(a, size), Arg::Imm(number)])
    }

    /// A new vector that starts as `acc` and takes in the other operands.
    pub fn accumulate(&mut self, mnemonic: M, size: Size, acc: Reg, args: &[Arg]) -> Reg {
        let reg = self.f.reg(Class::Vector);
        let mut all = vec![Arg::Change(acc, reg, size)];
        all.extend_from_slice(args);
        self.push(mnemonic, all);
        reg
    }

    /// A new vector under an AVX-512 mask.
    pub fn masked(&mut self, mnemonic: M, size: Size, mask: (Reg, bool), args: &[Arg]) -> Reg {
        let reg = self.f.reg(Class::Vector);
        let mut all = vec![Arg::Def(reg, size)];
        all.extend_from_slice(args);
        self.f.push(Inst::Op { mnemonic, args: all, mask: Some(mask) });
        reg
    }

    /// A new AVX-512 mask.
    pub fn mask(&mut self, mnemonic: M, args: &[Arg]) -> Reg {
        self.define_by(mnemonic, Class::Mask, Size::K, args)
    }

    /// A new general register from the other operands.
    pub fn general(&mut self, mnemonic: M, size: Size, args: &[Arg]) -> Reg {
        self.define_by(mnemonic, Class::General, size, args)
    }

    /// A new general register that starts as `a` and takes in an operand.
    pub fn general2(&mut self, mnemonic: M, size: Size, a: Reg, b: Arg) -> Reg {
        let reg = self.f.reg(Class::General);
        self.push(mnemonic, vec![Arg::Change(a, reg, size), b]);
        reg
    }

    pub fn and(&mut self, size: Size, a: Reg, b: Arg) -> Reg {
        let mnemonic = if self.facts.evex { M::Vpandd } else { M::Vpand };
        self.vec(mnemonic, size, &[Arg::Use(a, size), b])
    }

    pub fn or(&mut self, size: Size, a: Reg, b: Arg) -> Reg {
        let mnemonic = if self.facts.evex { M::Vpord } else { M::Vpor };
        self.vec(mnemonic, size, &[Arg::Use(a, size), b])
    }

    pub fn xor(&mut self, size: Size, a: Reg, b: Arg) -> Reg {
        let mnemonic = if self.facts.evex { M::Vpxord } else { M::Vpxor };
        self.vec(mnemonic, size, &[Arg::Use(a, size), b])
    }

    // Constants.

    /// A number in a general register.
    pub fn int(&mut self, size: Size, value: i64) -> Reg {
        let small = u32::try_from(value);
        match small {
            Ok(value) => self.general(M::Mov, Size::B4, &[Arg::Imm(i64::from(value))]),
            Err(_) => self.general(M::Mov, size, &[Arg::Imm(value)]),
        }
    }

    /// Bytes among the constants, as an operand.
    pub fn constant_arg(&mut self, bytes: &[u8]) -> Arg {
        let base = Base::Constant(self.f.constant(bytes));
        Arg::Mem(Mem { base, index: None, offset: 0, bytes: bytes.len() as u32, broadcast: false })
    }

    /// Bytes in a vector register; kept for the rest of the block.
    pub fn constant(&mut self, size: Size, bytes: &[u8]) -> Reg {
        let key = (size, bytes.to_vec());
        if let Some(&reg) = self.vectors.get(&key) {
            return reg;
        }
        let reg = self.constant_now(size, bytes);
        self.vectors.insert(key, reg);
        reg
    }

    /// Bytes in a new vector register.
    pub fn constant_now(&mut self, size: Size, bytes: &[u8]) -> Reg {
        if bytes.iter().all(|&byte| byte == 0) {
            return self.zero();
        }
        if bytes.iter().all(|&byte| byte == 0xff) {
            return self.ones(size);
        }
        let arg = self.constant_arg(bytes);
        self.vec(M::Vmovups, size, &[arg])
    }

    /// A number in every lane, as bytes.
    pub fn splat_bytes(size: Size, lane_bits: u32, value: u64) -> Vec<u8> {
        let bytes = value.to_le_bytes();
        bytes[..lane_bits as usize / 8].iter().copied().cycle().take(size.bytes() as usize).collect()
    }

    /// A number in every lane of a register.
    pub fn number(&mut self, size: Size, lane_bits: u32, value: u64) -> Reg {
        let bytes = Self::splat_bytes(size, lane_bits, value);
        self.constant(size, &bytes)
    }

    /// A number in every lane, in a register if it is there, else in memory.
    pub fn number_arg(&mut self, size: Size, lane_bits: u32, value: u64) -> Arg {
        let bytes = Self::splat_bytes(size, lane_bits, value);
        self.bytes_arg(size, &bytes)
    }

    /// Constant bytes, in a register if they are there, else in memory.
    pub fn bytes_arg(&mut self, size: Size, bytes: &[u8]) -> Arg {
        match self.vectors.get(&(size, bytes.to_vec())) {
            Some(&reg) => Arg::Use(reg, size),
            None => self.constant_arg(bytes),
        }
    }

    /// All bits clear, in a vector of any size: writing the low part clears the rest.
    pub fn zero(&mut self) -> Reg {
        let reg = self.f.reg(Class::Vector);
        self.f.push(Inst::Zero(reg));
        reg
    }

    /// All bits set.
    pub fn ones(&mut self, size: Size) -> Reg {
        let bytes = vec![0xff; size.bytes() as usize];
        let arg = self.constant_arg(&bytes);
        self.vec(M::Vmovups, size, &[arg])
    }

    /// The bytes of each register of a constant vector.
    pub fn constant_bytes(&self, constant: &Constant, ty: Type) -> Vec<Vec<u8>> {
        let width = ty.scalar.bytes() as usize;
        let lane = |bits: u64| bits.to_le_bytes()[..width].to_vec();
        let mut bytes: Vec<u8> = match constant {
            Constant::Splat(bits) => (0..ty.lanes).flat_map(|_| lane(*bits)).collect(),
            Constant::Lanes(lanes) => lanes.iter().flat_map(|&bits| lane(bits)).collect(),
        };
        let (size, count) = self.vector_shape(ty.bytes());
        // A short vector repeats over its register, so that equal constants of several lengths are one constant.
        let own = bytes.clone();
        let total = size.bytes() as usize * count;
        while bytes.len() < total {
            bytes.extend_from_slice(&own);
        }
        bytes.chunks(size.bytes() as usize).map(<[u8]>::to_vec).collect()
    }

    /// A constant in registers.
    pub fn make_constant(&mut self, constant: &Constant, ty: Type) -> Repr {
        if ty.scalar == Scalar::Bool && ty.lanes > 1 {
            return self.constant_mask(constant, ty.lanes);
        }
        if is_general(ty) {
            let bits = match constant {
                Constant::Splat(bits) => *bits,
                Constant::Lanes(lanes) => lanes[0],
            };
            let reg = self.int(general_size(ty.scalar), bits as i64);
            return Repr::general(ty.scalar, reg);
        }
        let (size, _) = self.shape(ty);
        let regs = self.constant_bytes(constant, ty).iter().map(|bytes| self.constant(size, bytes)).collect();
        Repr::vector(size, regs)
    }

    // Values.

    /// The registers of an IR value; constants and folded loads are made here.
    pub fn get(&mut self, value: ir::Value) -> Repr {
        if let Some(repr) = &self.values[value.0 as usize] {
            return repr.clone();
        }
        if let Some(ir::Inst::Const(constant)) = self.defs[value.0 as usize] {
            return self.make_constant(constant, self.kernel.ty(value));
        }
        if let Some(ir::Inst::Bitcast(inner)) = self.defs[value.0 as usize]
            && self.folded.contains(&value)
        {
            let repr = self.get(*inner);
            self.define(value, repr.clone());
            return repr;
        }
        if let Some(&ir::Inst::Splat(lane)) = self.defs[value.0 as usize] {
            let repr = self.splat(lane, self.kernel.ty(value));
            self.define(value, repr.clone());
            return repr;
        }
        let Some(ir::Inst::Load { address, .. }) = self.defs[value.0 as usize] else {
            unreachable!("the verifier let {value} be used before it is defined");
        };
        let repr = self.load(address, self.kernel.ty(value));
        self.define(value, repr.clone());
        repr
    }

    /// The registers of a value as operands to be read once: a load that only this instruction uses stays in memory.
    pub fn args(&mut self, value: ir::Value) -> Vec<Arg> {
        if let Some(mems) = self.in_memory(value) {
            return mems.into_iter().map(Arg::Mem).collect();
        }
        if self.values[value.0 as usize].is_none()
            && let Some(ir::Inst::Const(constant)) = self.defs[value.0 as usize]
        {
            let ty = self.kernel.ty(value);
            let (size, _) = self.shape(ty);
            if !is_general(ty) && ty.scalar != Scalar::Bool && ty.bytes() >= 4 {
                return self.constant_bytes(constant, ty).iter().map(|bytes| self.bytes_arg(size, bytes)).collect();
            }
        }
        let repr = self.get(value);
        repr.regs.iter().map(|&reg| Arg::Use(reg, repr.size)).collect()
    }

    /// Where the registers of a folded load would come from.
    pub fn in_memory(&mut self, value: ir::Value) -> Option<Vec<Mem>> {
        if !self.folded.contains(&value) || self.values[value.0 as usize].is_some() {
            return None;
        }
        let ty = self.kernel.ty(value);
        match self.defs[value.0 as usize] {
            Some(ir::Inst::Bitcast(inner)) => self.in_memory(*inner),
            Some(ir::Inst::Splat(lane)) => {
                let lane = self.in_memory(*lane)?[0];
                let (_, count) = self.vector_shape(ty.bytes());
                Some(vec![Mem { broadcast: true, ..lane }; count])
            }
            Some(ir::Inst::Load { address, .. }) => {
                let (size, count) = if is_general(ty) { (Size::B4, 1) } else { self.vector_shape(ty.bytes()) };
                let step = if is_general(ty) { ty.bytes() } else { size.bytes().min(ty.bytes()) };
                let place = self.place(address, ty.bytes());
                let parts: Vec<Mem> = (0..count as i32)
                    .map(|i| Mem { offset: place.offset + i * step as i32, bytes: step, ..place })
                    .collect();
                parts.iter().for_each(|part| self.prefetch(address, part));
                Some(parts)
            }
            _ => None,
        }
    }

    pub fn define(&mut self, value: ir::Value, repr: Repr) {
        self.values[value.0 as usize] = Some(repr);
    }

    /// The bits of a value that is the same known number in every lane.
    pub fn known(&self, value: ir::Value) -> Option<u64> {
        match self.defs[value.0 as usize]? {
            ir::Inst::Const(Constant::Splat(bits)) => Some(*bits),
            ir::Inst::Const(Constant::Lanes(lanes)) => lanes.iter().all(|&bits| bits == lanes[0]).then_some(lanes[0]),
            ir::Inst::Splat(scalar) => self.known(*scalar),
            _ => None,
        }
    }
}
