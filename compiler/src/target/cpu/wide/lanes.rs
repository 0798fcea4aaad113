//! Lanes: building vectors, taking them apart, moving lanes about, reading bits as another type.
//!
//! What has no short form goes through chunks of 16 bytes, which every level can shuffle.

use iced_x86::Mnemonic as M;

use super::lower::Lower;
use super::machine::{Arg, Reg, Size};
use super::permute::{interleaving, within_quarters};
use super::value::{Repr, by_lane, general_size, is_general};
use crate::ir::{self, Inst, Scalar, Type};

impl Lower<'_> {
    /// Chunk `index` of 16 bytes of a vector.
    pub fn chunk(&mut self, repr: &Repr, index: usize) -> Reg {
        let per = repr.size.bytes() as usize / 16;
        let reg = repr.regs[index / per];
        match index % per {
            0 => reg,
            within => {
                let mnemonic = if self.facts.evex { M::Vextracti32x4 } else { M::Vextracti128 };
                self.vec_part(mnemonic, reg, repr.size, within)
            }
        }
    }

    /// Part `index` of a vector, of 16 bytes, by an instruction that extracts.
    fn vec_part(&mut self, mnemonic: M, reg: Reg, size: Size, index: usize) -> Reg {
        self.vec(mnemonic, Size::X, &[Arg::Use(reg, size), Arg::Imm(index as i64)])
    }

    /// The upper half of a vector of 32 or 64 bytes.
    pub fn upper_half(&mut self, reg: Reg, size: Size) -> Reg {
        match size {
            Size::Z => self.vec(M::Vextracti64x4, Size::Y, &[Arg::Use(reg, size), Arg::Imm(1)]),
            _ if self.facts.evex => self.vec_part(M::Vextracti32x4, reg, size, 1),
            _ => self.vec_part(M::Vextracti128, reg, size, 1),
        }
    }

    /// Two halves side by side in a vector of this size.
    pub fn join_halves(&mut self, size: Size, low: Reg, high: Reg) -> Reg {
        match size {
            Size::Z => self.vec(M::Vinserti64x4, size, &[Arg::Use(low, size), Arg::Use(high, Size::Y), Arg::Imm(1)]),
            Size::Y => {
                let mnemonic = if self.facts.evex { M::Vinserti32x4 } else { M::Vinserti128 };
                self.vec(mnemonic, size, &[Arg::Use(low, size), Arg::Use(high, Size::X), Arg::Imm(1)])
            }
            _ => self.vec2(M::Vpunpcklqdq, size, low, high),
        }
    }

    /// Chunks of 16 bytes side by side, as the registers of a vector.
    pub fn joined_chunks(&mut self, chunks: &[Reg]) -> Repr {
        let (size, _) = self.vector_shape(16 * chunks.len() as u32);
        let per = size.bytes() as usize / 16;
        let regs = chunks
            .chunks(per)
            .map(|part| match *part {
                [one] => one,
                [low, high] => self.join_halves(Size::Y, low, high),
                [a, b, c, d] => {
                    let (low, high) = (self.join_halves(Size::Y, a, b), self.join_halves(Size::Y, c, d));
                    self.join_halves(Size::Z, low, high)
                }
                _ => part[0],
            })
            .collect();
        Repr::vector(size, regs)
    }

    /// Sixteen bytes picked from chunks; `None` where any byte will do.
    pub fn gather(&mut self, picks: &[Option<(Reg, u8)>; 16]) -> Reg {
        let mut sources: Vec<Reg> = Vec::new();
        for (chunk, _) in picks.iter().flatten() {
            if !sources.contains(chunk) {
                sources.push(*chunk);
            }
        }
        let identity = |source: Reg| {
            picks
                .iter()
                .enumerate()
                .all(|(at, pick)| pick.is_none_or(|(chunk, byte)| chunk == source && byte == at as u8))
        };
        if let Some((low, high, order)) = halves(picks) {
            return self.vec(M::Vshufps, Size::X, &[Arg::Use(low, Size::X), Arg::Use(high, Size::X), Arg::Imm(order)]);
        }
        let mut gathered: Option<Reg> = None;
        for source in sources {
            let part = if identity(source) {
                source
            } else {
                let mask: Vec<u8> = picks
                    .iter()
                    .map(|pick| match pick {
                        Some((chunk, byte)) if *chunk == source => *byte,
                        _ => 0x80,
                    })
                    .collect();
                let mask = self.bytes_arg(Size::X, &mask);
                self.vec(M::Vpshufb, Size::X, &[Arg::Use(source, Size::X), mask])
            };
            gathered = Some(match gathered {
                None => part,
                Some(before) => self.or(Size::X, before, Arg::Use(part, Size::X)),
            });
        }
        match gathered {
            Some(reg) => reg,
            None => self.zero(),
        }
    }

    /// The vector whose lane 0 is a scalar.
    pub fn in_lane_0(&mut self, ty: Type, repr: &Repr) -> Reg {
        if !is_general(ty) {
            return repr.one();
        }
        let mnemonic = if repr.size == Size::B8 { M::Vmovq } else { M::Vmovd };
        self.vec(mnemonic, Size::X, &[repr.arg()])
    }

    /// Lane 0 of a vector as a scalar of a type.
    pub fn lane_0_as(&mut self, scalar: Scalar, reg: Reg) -> Repr {
        if scalar == Scalar::F32 {
            return Repr::vector(Size::X, vec![reg]);
        }
        let size = general_size(scalar);
        let mnemonic = if size == Size::B8 { M::Vmovq } else { M::Vmovd };
        let out = self.general(mnemonic, size, &[Arg::Use(reg, Size::X)]);
        Repr::general(scalar, out)
    }

    pub fn bitcast(&mut self, value: ir::Value, to: Type) -> Repr {
        let from = self.kernel.ty(value);
        let repr = self.get(value);
        match (is_general(from), is_general(to)) {
            (true, true) => repr,
            (true, false) => {
                let reg = self.in_lane_0(from, &repr);
                Repr::vector(Size::X, vec![reg])
            }
            (false, true) => self.lane_0_as(to.scalar, repr.one()),
            (false, false) => repr,
        }
    }

    /// A scalar in every lane.
    pub fn splat(&mut self, value: ir::Value, ty: Type) -> Repr {
        if ty.lanes == 1 {
            return self.get(value);
        }
        if ty.scalar == Scalar::Bool {
            let bit = self.get(value).one();
            return self.splat_bool(bit, ty.lanes);
        }
        let (size, count) = self.vector_shape(ty.bytes());
        let bits = ty.scalar.bits();
        let broadcast = by_lane(bits, [M::Vpbroadcastb, M::Vpbroadcastw, M::Vpbroadcastd, M::Vpbroadcastq]);
        if let Some(mems) = self.in_memory(value) {
            let mnemonic = if bits == 32 { M::Vbroadcastss } else { broadcast };
            // A broadcast of 16 bytes from memory has no float form with VEX of that size on every level; integers do.
            let mnemonic = if size == Size::X && bits == 32 { broadcast } else { mnemonic };
            let reg = self.vec(mnemonic, size, &[Arg::Mem(mems[0])]);
            return Repr::vector(size, vec![reg; count]);
        }
        let repr = self.get(value);
        let scalar = Type::scalar(ty.scalar);
        let reg = if is_general(scalar) && self.facts.evex {
            let from = if bits == 64 { Size::B8 } else { Size::B4 };
            self.vec(broadcast, size, &[Arg::Use(repr.one(), from)])
        } else {
            let lane = self.in_lane_0(scalar, &repr);
            self.vec(broadcast, size, &[Arg::Use(lane, Size::X)])
        };
        Repr::vector(size, vec![reg; count])
    }

    /// A vector of scalars.
    pub fn vector(&mut self, lanes: &[ir::Value], ty: Type) -> Repr {
        if ty.lanes == 1 {
            return self.get(lanes[0]);
        }
        if lanes.iter().all(|&lane| lane == lanes[0]) {
            return self.splat(lanes[0], ty);
        }
        let scalars: Vec<Repr> = lanes.iter().map(|&lane| self.get(lane)).collect();
        if ty.scalar == Scalar::Bool {
            let bytes: Vec<Reg> = scalars.iter().map(Repr::one).collect();
            let bytes = self.vector_of(Scalar::I8, &bytes);
            return self.nonzero_bytes(&bytes, ty.lanes);
        }
        let regs: Vec<Reg> = scalars.iter().map(Repr::one).collect();
        self.vector_of(ty.scalar, &regs)
    }

    /// A vector of scalars in registers.
    pub fn vector_of(&mut self, scalar: Scalar, scalars: &[Reg]) -> Repr {
        let per = 16 / scalar.bytes() as usize;
        let general = is_general(Type::scalar(scalar));
        let chunks: Vec<Reg> = scalars
            .chunks(per)
            .map(|part| {
                let size = general_size(scalar);
                let mut chunk = match general {
                    true if size == Size::B8 => self.vec(M::Vmovq, Size::X, &[Arg::Use(part[0], size)]),
                    true => self.vec(M::Vmovd, Size::X, &[Arg::Use(part[0], size)]),
                    false => part[0],
                };
                for (i, &lane) in part.iter().enumerate().skip(1) {
                    let at = i as i64;
                    chunk = if general {
                        let insert = by_lane(scalar.bits(), [M::Vpinsrb, M::Vpinsrw, M::Vpinsrd, M::Vpinsrq]);
                        self.vec(insert, Size::X, &[Arg::Use(chunk, Size::X), Arg::Use(lane, size), Arg::Imm(at)])
                    } else {
                        let args = [Arg::Use(chunk, Size::X), Arg::Use(lane, Size::X), Arg::Imm(at << 4)];
                        self.vec(M::Vinsertps, Size::X, &args)
                    };
                }
                chunk
            })
            .collect();
        self.joined_chunks(&chunks)
    }

    /// Lane `index` of a vector that holds no bools, as a scalar.
    pub fn lane(&mut self, scalar: Scalar, repr: &Repr, index: usize) -> Repr {
        let bytes = scalar.bytes() as usize;
        let chunk = self.chunk(repr, index * bytes / 16);
        let within = (index % (16 / bytes)) as i64;
        if within == 0 {
            return self.lane_0_as(scalar, chunk);
        }
        if scalar == Scalar::F32 {
            let reg = self.vec_imm(M::Vpermilps, Size::X, chunk, within * 0x55);
            return Repr::vector(Size::X, vec![reg]);
        }
        let mnemonic = by_lane(scalar.bits(), [M::Vpextrb, M::Vpextrw, M::Vpextrd, M::Vpextrq]);
        let reg = self.general(mnemonic, general_size(scalar), &[Arg::Use(chunk, Size::X), Arg::Imm(within)]);
        Repr::general(scalar, reg)
    }

    pub fn extract(&mut self, vector: ir::Value, lane: u8) -> Repr {
        let ty = self.kernel.ty(vector);
        let repr = self.get(vector);
        if ty.lanes == 1 {
            return repr;
        }
        if ty.scalar == Scalar::Bool {
            let bit = self.mask_bit(&repr, lane);
            return Repr::general(Scalar::Bool, bit);
        }
        self.lane(ty.scalar, &repr, lane as usize)
    }

    /// Lanes picked from the concatenation of two values.
    pub fn swizzle(&mut self, a: ir::Value, b: ir::Value, lanes: &[u8]) -> Repr {
        let ty = self.kernel.ty(a);
        let (a_repr, b_repr) = (self.get(a), self.get(b));
        if ty.scalar == Scalar::Bool {
            return self.swizzle_bools(ty, [&a_repr, &b_repr], lanes);
        }
        if lanes.len() == 1 {
            let (repr, lane) = if lanes[0] < ty.lanes { (&a_repr, lanes[0]) } else { (&b_repr, lanes[0] - ty.lanes) };
            return if ty.lanes == 1 { repr.clone() } else { self.lane(ty.scalar, repr, lane as usize) };
        }
        self.pick(ty, [&a_repr, &b_repr], lanes)
    }

    /// Lanes picked from two values that are no bools, several of them.
    pub fn pick(&mut self, ty: Type, sources: [&Repr; 2], lanes: &[u8]) -> Repr {
        let width = ty.scalar.bytes() as usize;
        let total = width * lanes.len();
        if lanes.iter().enumerate().all(|(i, &lane)| lane as usize == i) && lanes.len() <= ty.lanes as usize {
            // The first lanes of the first value: its low registers, read in a smaller size if need be.
            let (size, count) = self.vector_shape(total as u32);
            if ty.lanes > 1 {
                return Repr::vector(size, sources[0].regs[..count].to_vec());
            }
        }
        if let Some(mnemonic) = interleaving(width, ty, lanes)
            && sources.iter().all(|source| source.regs.len() == 1 && source.size.bytes() == total as u32)
        {
            let reg = self.vec2(mnemonic, sources[0].size, sources[0].one(), sources[1].one());
            return Repr::vector(sources[0].size, vec![reg]);
        }
        if let Some(bytes) = within_quarters(width, ty, lanes)
            && sources[0].size.bytes() > 16
        {
            let bytes: Vec<u8> = bytes.into_iter().cycle().take(sources[0].size.bytes() as usize).collect();
            let places = self.constant(sources[0].size, &bytes);
            return self.each(sources[0], |l, size, a| l.vec2(M::Vpshufb, size, a, places));
        }
        let upper: bool = lanes.iter().enumerate().all(|(i, &lane)| lane as usize == i + lanes.len());
        if upper && lanes.len() * 2 == ty.lanes as usize && total >= 16 && sources[0].regs.len() == 1 {
            let reg = self.upper_half(sources[0].one(), sources[0].size);
            return Repr::vector(self.vector_shape(total as u32).0, vec![reg]);
        }
        let vectors: Vec<Repr> = sources
            .iter()
            .map(|repr| {
                if ty.lanes == 1 && is_general(ty) {
                    let reg = self.in_lane_0(ty, repr);
                    Repr::vector(Size::X, vec![reg])
                } else {
                    (*repr).clone()
                }
            })
            .collect();
        self.pick_vectors(ty, [&vectors[0], &vectors[1]], lanes)
    }

    /// Lanes picked from two vectors; a scalar is one here as well.
    pub fn pick_vectors(&mut self, ty: Type, vectors: [&Repr; 2], lanes: &[u8]) -> Repr {
        if let Some(reg) = self.permuted(ty, vectors, lanes) {
            return reg;
        }
        let width = ty.scalar.bytes() as usize;
        let total = width * lanes.len();
        let mut made: Vec<(usize, usize, Reg)> = Vec::new();
        let chunks: Vec<Reg> = (0..total.div_ceil(16))
            .map(|chunk| {
                let mut picks = [None; 16];
                for (at, pick) in picks.iter_mut().enumerate() {
                    let byte = chunk * 16 + at;
                    let Some(&lane) = lanes.get(byte / width) else { continue };
                    let source = usize::from(lane >= ty.lanes);
                    let from = (lane as usize - source * ty.lanes as usize) * width + byte % width;
                    let found = made.iter().find(|(s, c, _)| (*s, *c) == (source, from / 16)).map(|&(_, _, reg)| reg);
                    let reg = match found {
                        Some(reg) => reg,
                        None => {
                            let reg = self.chunk(vectors[source], from / 16);
                            made.push((source, from / 16, reg));
                            reg
                        }
                    };
                    *pick = Some((reg, (from % 16) as u8));
                }
                self.gather(&picks)
            })
            .collect();
        self.joined_chunks(&chunks)
    }

    /// Looks bytes up in a table of 16.
    pub fn permute_bytes(&mut self, table: ir::Value, index: ir::Value) -> Repr {
        let index = self.get(index);
        let size = index.size;
        let table = match self.defs[table.0 as usize] {
            Some(Inst::Const(constant)) => {
                let own = self.constant_bytes(constant, self.kernel.ty(table)).concat();
                let bytes: Vec<u8> = own.iter().copied().cycle().take(size.bytes() as usize).collect();
                self.constant(size, &bytes)
            }
            _ => {
                let table = self.get(table).one();
                match size {
                    Size::X => table,
                    _ => {
                        let pair = self.join_halves(Size::Y, table, table);
                        if size == Size::Z { self.join_halves(Size::Z, pair, pair) } else { pair }
                    }
                }
            }
        };
        let regs = index.regs.iter().map(|&index| self.vec2(M::Vpshufb, size, table, index)).collect();
        Repr::vector(size, regs)
    }

    /// Looks 64 bytes up in a table of 128.
    pub fn permute_long(&mut self, [low, high]: [ir::Value; 2], index: ir::Value) -> Repr {
        let index = self.get(index).one();
        let low = Arg::Use(self.get(low).one(), Size::Z);
        let high = self.args(high)[0];
        Repr::vector(Size::Z, vec![self.accumulate(M::Vpermi2b, Size::Z, index, &[low, high])])
    }
}

/// `vshufps`: two numbers of 4 bytes from one register, then two from another; and their places.
fn halves(picks: &[Option<(Reg, u8)>; 16]) -> Option<(Reg, Reg, i64)> {
    let mut numbers = Vec::new();
    for number in picks.chunks(4) {
        let (reg, first) = number[0]?;
        let whole = first % 4 == 0 && (0..4).all(|i| number[i as usize] == Some((reg, first + i)));
        numbers.push(whole.then_some((reg, first / 4))?);
    }
    let together = numbers[0].0 == numbers[1].0 && numbers[2].0 == numbers[3].0 && numbers[0].0 != numbers[2].0;
    let order = numbers.iter().enumerate().fold(0, |all, (i, &(_, place))| all | i64::from(place) << (2 * i));
    together.then_some((numbers[0].0, numbers[2].0, order))
}
