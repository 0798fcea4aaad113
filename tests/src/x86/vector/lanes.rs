//! Moves of lanes, products of bytes and words, packing, masks.

use super::super::{Machine, Named, Outcome};
use super::{Bytes, bits, float, lane, multiply_add, normal, put, signed, suffix};
use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

impl Machine {
    /// Moves of lanes, dot products, masks.
    pub(super) fn lane_step(&mut self, i: &Instruction, name: &str) -> Outcome<bool> {
        let bytes = self.vector_bytes(i);
        match i.mnemonic() {
            M::Vmovups => {
                let value = self.vector(i, 1, bytes)?;
                self.write_vector(i, &value, bytes, 4)?;
            }
            M::Vmovd | M::Vmovq => {
                let size = if i.mnemonic() == M::Vmovd { 4 } else { 8 };
                let is_vector = |operand| i.op_kind(operand) == OpKind::Register && i.op_register(operand).is_vector();
                let value = if is_vector(1) {
                    lane(&self.vectors[i.op_register(1).number()], size, 0)
                } else {
                    self.number(i, 1)?
                };
                if is_vector(0) {
                    let mut out = [0; 64];
                    put(&mut out, size, 0, value);
                    self.vectors[i.op_register(0).number()] = out;
                } else {
                    self.write(i, 0, value)?;
                }
            }
            M::Vpbroadcastb | M::Vpbroadcastw | M::Vpbroadcastd | M::Vpbroadcastq | M::Vbroadcastss => {
                let width = if i.mnemonic() == M::Vbroadcastss { 4 } else { suffix(name) };
                let from_general = i.op_kind(1) == OpKind::Register && i.op_register(1).is_general();
                let value = if from_general { self.number(i, 1)? } else { lane(&self.vector(i, 1, width)?, width, 0) };
                let mut out = [0; 64];
                (0..bytes / width).for_each(|index| put(&mut out, width, index, value));
                self.write_vector(i, &out, bytes, width)?;
            }
            M::Vpshufb => {
                return self.within_quarters(i, |a, b, byte| {
                    let pick = b[byte];
                    if pick & 0x80 != 0 { 0 } else { a[byte / 16 * 16 + (pick & 15) as usize] }
                });
            }
            M::Vpunpcklbw
            | M::Vpunpcklwd
            | M::Vpunpckldq
            | M::Vpunpcklqdq
            | M::Vpunpckhbw
            | M::Vpunpckhwd
            | M::Vpunpckhdq => {
                // The name ends in what two lanes make, except where that is 16 bytes.
                let width = if i.mnemonic() == M::Vpunpcklqdq { 8 } else { suffix(name) / 2 };
                let first = if name.starts_with("vpunpckh") { 8 } else { 0 };
                return self.within_quarters(i, move |a, b, byte| {
                    let lane = byte % 16 / width;
                    let from = byte / 16 * 16 + first + lane / 2 * width + byte % width;
                    if lane % 2 == 0 { a[from] } else { b[from] }
                });
            }
            M::Vshufps => {
                let picks = i.immediate8();
                return self.within_quarters(i, move |a, b, byte| {
                    let word = byte % 16 / 4;
                    let from = byte / 16 * 16 + (picks >> (2 * word) & 3) as usize * 4 + byte % 4;
                    if word < 2 { a[from] } else { b[from] }
                });
            }
            M::Vpermilps => {
                let picks = i.immediate8();
                let a = self.vector(i, 1, bytes)?;
                let mut out = [0; 64];
                for index in 0..bytes / 4 {
                    let from = index / 4 * 4 + (picks >> (2 * (index % 4)) & 3) as usize;
                    put(&mut out, 4, index, lane(&a, 4, from));
                }
                self.write_vector(i, &out, bytes, 4)?;
            }
            M::Vpermq => {
                let picks = i.immediate8();
                let a = self.vector(i, 1, bytes)?;
                let mut out = [0; 64];
                for index in 0..bytes / 8 {
                    put(&mut out, 8, index, lane(&a, 8, index / 4 * 4 + (picks >> (2 * (index % 4)) & 3) as usize));
                }
                self.write_vector(i, &out, bytes, 8)?;
            }
            M::Vpermw | M::Vpermd => {
                let width = suffix(name);
                let (index, a) = (self.vector(i, 1, bytes)?, self.vector(i, 2, bytes)?);
                let mut out = [0; 64];
                for at in 0..bytes / width {
                    let from = lane(&index, width, at) as usize % (bytes / width);
                    put(&mut out, width, at, lane(&a, width, from));
                }
                self.write_vector(i, &out, bytes, width)?;
            }
            M::Vpermt2w | M::Vpermt2d | M::Vpermi2b => {
                let width = suffix(name);
                // What is overwritten is a table or the index.
                let (first, index) = if i.mnemonic() == M::Vpermi2b { (1, 0) } else { (0, 1) };
                let (a, b) = (self.vector(i, first, bytes)?, self.vector(i, 2, bytes)?);
                let (index, per) = (self.vector(i, index, bytes)?, bytes / width);
                let mut out = [0; 64];
                for at in 0..per {
                    let from = lane(&index, width, at) as usize % (2 * per);
                    put(&mut out, width, at, lane(if from < per { &a } else { &b }, width, from % per));
                }
                self.write_vector(i, &out, bytes, width)?;
            }
            M::Vpternlogd => {
                let sources = [self.vector(i, 0, bytes)?, self.vector(i, 1, bytes)?, self.vector(i, 2, bytes)?];
                let mut out = [0; 64];
                for (at, byte) in out.iter_mut().enumerate().take(bytes) {
                    for bit in 0..8 {
                        let [a, b, c] = sources.map(|source| source[at] >> bit & 1);
                        *byte |= (i.immediate8() >> (4 * a + 2 * b + c) & 1) << bit;
                    }
                }
                self.write_vector(i, &out, bytes, 4)?;
            }
            M::Vinsertps => {
                let control = i.immediate8();
                let source = self.vector(i, 2, 16)?;
                let mut out = self.vector(i, 1, 16)?;
                put(&mut out, 4, (control >> 4 & 3) as usize, lane(&source, 4, (control >> 6) as usize));
                (0..4).filter(|index| control >> index & 1 == 1).for_each(|index| put(&mut out, 4, index, 0));
                self.write_vector(i, &out, 16, 4)?;
            }
            M::Vpinsrb | M::Vpinsrw | M::Vpinsrd | M::Vpinsrq => {
                let width = suffix(name);
                let value = self.number(i, 2)?;
                let mut out = self.vector(i, 1, 16)?;
                put(&mut out, width, i.immediate8() as usize % (16 / width), value);
                self.write_vector(i, &out, 16, width)?;
            }
            M::Vpextrb | M::Vpextrw | M::Vpextrd | M::Vpextrq => {
                let width = suffix(name);
                let a = self.vector(i, 1, 16)?;
                self.write(i, 0, lane(&a, width, i.immediate8() as usize % (16 / width)))?;
            }
            M::Vextracti128 | M::Vextracti32x4 | M::Vextracti64x4 => {
                let part = if i.mnemonic() == M::Vextracti64x4 { 32 } else { 16 };
                let whole = i.op_register(1).size();
                let a = self.vector(i, 1, whole)?;
                let from = i.immediate8() as usize % (whole / part) * part;
                let mut out = [0; 64];
                out[..part].copy_from_slice(&a[from..from + part]);
                self.write_vector(i, &out, part, 4)?;
            }
            M::Vinserti128 | M::Vinserti32x4 | M::Vinserti64x4 => {
                let part = if i.mnemonic() == M::Vinserti64x4 { 32 } else { 16 };
                let mut out = self.vector(i, 1, bytes)?;
                let piece = self.vector(i, 2, part)?;
                let at = i.immediate8() as usize % (bytes / part) * part;
                out[at..at + part].copy_from_slice(&piece[..part]);
                self.write_vector(i, &out, bytes, 4)?;
            }
            M::Vpblendvb => {
                let (a, b, mask) = (self.vector(i, 1, bytes)?, self.vector(i, 2, bytes)?, self.vector(i, 3, bytes)?);
                let mut out = [0; 64];
                (0..bytes).for_each(|at| out[at] = if mask[at] & 0x80 != 0 { b[at] } else { a[at] });
                self.write_vector(i, &out, bytes, 1)?;
            }
            M::Vpblendmb | M::Vpblendmw | M::Vpblendmd | M::Vpblendmq => {
                let width = suffix(name);
                if !i.has_op_mask() || i.zeroing_masking() {
                    return Err("a blend of a form that is not known".into());
                }
                let mask = self.masks[i.op_mask().number()];
                let (a, b) = (self.vector(i, 1, bytes)?, self.vector(i, 2, bytes)?);
                let mut out = [0; 64];
                for index in 0..bytes / width {
                    put(&mut out, width, index, lane(if mask >> index & 1 == 1 { &b } else { &a }, width, index));
                }
                self.vectors[i.op_register(0).number()] = out;
            }
            M::Vpdpbusd => {
                let sources = [self.vector(i, 0, bytes)?, self.vector(i, 1, bytes)?, self.vector(i, 2, bytes)?];
                let mut out = [0; 64];
                for index in 0..bytes / 4 {
                    let product = |at: usize| i32::from(sources[1][at]) * i32::from(sources[2][at] as i8);
                    let sum: i32 = (4 * index..4 * index + 4).map(product).sum();
                    put(&mut out, 4, index, lane(&sources[0], 4, index).wrapping_add(sum as u64));
                }
                self.write_vector(i, &out, bytes, 4)?;
            }
            M::Vpdpwssd => {
                let sources = [self.vector(i, 0, bytes)?, self.vector(i, 1, bytes)?, self.vector(i, 2, bytes)?];
                let mut out = [0; 64];
                for index in 0..bytes / 4 {
                    let word = |source: usize, at: usize| i64::from(lane(&sources[source], 2, at) as i16);
                    let sum = [2 * index, 2 * index + 1].map(|at| word(1, at) * word(2, at)).iter().sum::<i64>();
                    put(&mut out, 4, index, lane(&sources[0], 4, index).wrapping_add(sum as u64));
                }
                self.write_vector(i, &out, bytes, 4)?;
            }
            M::Vdpbf16ps => {
                let sources = [self.vector(i, 0, bytes)?, self.vector(i, 1, bytes)?, self.vector(i, 2, bytes)?];
                let mut out = [0; 64];
                for index in 0..bytes / 4 {
                    let factor = |source: usize, at: usize| normal(float(lane(&sources[source], 2, at) << 16));
                    let mut sum = normal(float(lane(&sources[0], 4, index)));
                    // The odd words first.
                    for at in [2 * index + 1, 2 * index] {
                        sum = multiply_add(factor(1, at), factor(2, at), sum);
                    }
                    put(&mut out, 4, index, bits(sum));
                }
                self.write_vector(i, &out, bytes, 4)?;
            }
            M::Vpmaddubsw => {
                let pair = |a: u64, b: u64, at: u32| (a >> at & 0xff) as i32 * i32::from((b >> at) as u8 as i8);
                return self.two(i, 2, |a, b| (pair(a, b, 0) + pair(a, b, 8)).clamp(-32768, 32767) as u64);
            }
            M::Vpmaddwd => {
                let pair = |a: u64, b: u64, at: u32| i32::from((a >> at) as i16) * i32::from((b >> at) as i16);
                return self.two(i, 4, |a, b| pair(a, b, 0).wrapping_add(pair(a, b, 16)) as u64);
            }
            M::Vpacksswb | M::Vpackuswb | M::Vpackssdw | M::Vpackusdw => self.pack(i, name)?,
            _ => return self.mask_step(i, name),
        }
        Ok(true)
    }

    /// A byte at a time from two sources, each quarter of 16 bytes by itself.
    fn within_quarters(&mut self, i: &Instruction, f: impl Fn(&Bytes, &Bytes, usize) -> u8) -> Outcome<bool> {
        let bytes = self.vector_bytes(i);
        let (a, b) = (self.vector(i, 1, bytes)?, self.vector(i, 2, bytes)?);
        let mut out = [0; 64];
        (0..bytes).for_each(|byte| out[byte] = f(&a, &b, byte));
        self.write_vector(i, &out, bytes, 1)?;
        Ok(true)
    }

    fn pack(&mut self, i: &Instruction, name: &str) -> Outcome {
        let bytes = self.vector_bytes(i);
        let (a, b) = (self.vector(i, 1, bytes)?, self.vector(i, 2, bytes)?);
        let from = if name.ends_with("wb") { 2 } else { 4 };
        let to = from / 2;
        let (low, high) = if name.contains("us") {
            (0, (1i64 << (8 * to)) - 1)
        } else {
            (-(1i64 << (8 * to - 1)), (1i64 << (8 * to - 1)) - 1)
        };
        let mut out = [0; 64];
        for index in 0..bytes / to {
            let (quarter, within) = (index / (16 / to), index % (16 / to));
            let half = 16 / from;
            let source = if within < half { &a } else { &b };
            let number = signed(lane(source, from, quarter * half + within % half), from);
            put(&mut out, to, index, number.clamp(low, high) as u64);
        }
        self.write_vector(i, &out, bytes, to)
    }

    /// Changes of width and mask registers.
    fn mask_step(&mut self, i: &Instruction, name: &str) -> Outcome<bool> {
        let letter = |letter: u8| suffix(std::str::from_utf8(&[letter]).unwrap_or("q"));
        let k = |machine: &Machine, register: Register| machine.masks[register.number()];
        if let Some(widths) = name.strip_prefix("vpmovzx").or(name.strip_prefix("vpmovsx")) {
            let (from, to) = (letter(widths.as_bytes()[0]), letter(widths.as_bytes()[1]));
            let extends_sign = name.starts_with("vpmovsx");
            return self.resize(i, from, to, |a| if extends_sign { signed(a, from) as u64 } else { a });
        }
        match i.mnemonic() {
            M::Vpmovwb => return self.resize(i, 2, 1, |a| a),
            M::Vpmovdb => return self.resize(i, 4, 1, |a| a),
            M::Vpmovdw => return self.resize(i, 4, 2, |a| a),
            M::Vpmovqb => return self.resize(i, 8, 1, |a| a),
            M::Vpmovqw => return self.resize(i, 8, 2, |a| a),
            M::Vpmovqd => return self.resize(i, 8, 4, |a| a),
            M::Vpmovsdb => return self.resize(i, 4, 1, |a| signed(a, 4).clamp(-128, 127) as u64),
            M::Vpmovsdw => return self.resize(i, 4, 2, |a| signed(a, 4).clamp(-32768, 32767) as u64),
            M::Vpmovm2b | M::Vpmovm2d => {
                let width = suffix(name);
                let bytes = i.op_register(0).size();
                let mask = k(self, i.op_register(1));
                let mut out = [0; 64];
                for index in 0..bytes / width {
                    put(&mut out, width, index, if mask >> index & 1 == 1 { u64::MAX } else { 0 });
                }
                self.write_vector(i, &out, bytes, width)?;
            }
            M::Vpmovb2m => {
                let bytes = i.op_register(1).size();
                let a = self.vector(i, 1, bytes)?;
                let set = |all: u64, at: usize| all | u64::from(a[at] >> 7) << at;
                self.masks[i.op_register(0).number()] = (0..bytes).fold(0, set);
            }
            M::Kmovd | M::Kmovq => {
                let from_mask = i.op_kind(1) == OpKind::Register && i.op_register(1).is_mask();
                let value = if from_mask { k(self, i.op_register(1)) } else { self.number(i, 1)? };
                let value = if i.mnemonic() == M::Kmovd { value & 0xffff_ffff } else { value };
                if i.op_kind(0) == OpKind::Register && i.op_register(0).is_mask() {
                    self.masks[i.op_register(0).number()] = value;
                } else {
                    self.write(i, 0, value)?;
                }
            }
            M::Kandq | M::Kandnq | M::Korq | M::Kxorq => {
                let (a, b) = (k(self, i.op_register(1)), k(self, i.op_register(2)));
                self.masks[i.op_register(0).number()] = match i.mnemonic() {
                    M::Kandq => a & b,
                    M::Kandnq => !a & b,
                    M::Korq => a | b,
                    _ => a ^ b,
                };
            }
            M::Knotq => self.masks[i.op_register(0).number()] = !k(self, i.op_register(1)),
            M::Kshiftlq | M::Kshiftrq => {
                let (a, by) = (k(self, i.op_register(1)), u32::from(i.immediate8()));
                let out = if i.mnemonic() == M::Kshiftlq { a.checked_shl(by) } else { a.checked_shr(by) };
                self.masks[i.op_register(0).number()] = out.unwrap_or(0);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}
