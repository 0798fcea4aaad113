//! Vectors and masks.

mod lanes;

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use super::{Machine, Named, Outcome};

type Bytes = [u8; 64];

fn lane(bytes: &Bytes, width: usize, index: usize) -> u64 {
    bytes[index * width..][..width].iter().rev().fold(0, |all, &byte| all << 8 | u64::from(byte))
}

fn put(bytes: &mut Bytes, width: usize, index: usize, value: u64) {
    bytes[index * width..][..width].copy_from_slice(&value.to_le_bytes()[..width]);
}

fn signed(value: u64, width: usize) -> i64 {
    let spare = 64 - 8 * width as u32;
    ((value << spare) as i64) >> spare
}

fn float(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn bits(number: f32) -> u64 {
    u64::from(number.to_bits())
}

/// Zero in place of a subnormal number.
fn normal(number: f32) -> f32 {
    if number.is_subnormal() { 0.0f32.copysign(number) } else { number }
}

/// A multiply-add whose results are zeros where they are tiny after rounding, as if exponents had no end: near the smallest
/// numbers it is done with all of them 2^96 times as large.
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    let sum = a.mul_add(b, c);
    if sum.is_nan() || sum.abs() > f32::MIN_POSITIVE {
        return sum;
    }
    // What is too large for it does not come to a number so small, but to nothing.
    let up = 2f32.powi(48);
    let large = (a * up).mul_add(b * up, c * up * up);
    if large.is_finite() && large.abs() < f32::MIN_POSITIVE * up * up { 0.0f32.copysign(sum) } else { normal(sum) }
}

/// Width of the lanes that a name ends in: `b`, `w`, `d`, `q`.
fn suffix(name: &str) -> usize {
    match name.as_bytes().last() {
        Some(b'b') => 1,
        Some(b'w') => 2,
        Some(b'd') => 4,
        _ => 8,
    }
}

impl Machine {
    /// Bytes of the vector that an instruction writes (or, where it writes memory or a mask, reads).
    fn vector_bytes(&self, i: &Instruction) -> usize {
        let is_vector = |operand: &u32| i.op_kind(*operand) == OpKind::Register && i.op_register(*operand).is_vector();
        (0..i.op_count()).find(is_vector).map_or(0, |operand| i.op_register(operand).size())
    }

    /// An operand of so many bytes; the rest is zero.
    fn vector(&self, i: &Instruction, operand: u32, bytes: usize) -> Outcome<Bytes> {
        let mut out = [0; 64];
        if self.is_memory(i, operand) {
            let at = self.address(i)?;
            if i.is_broadcast() {
                let element = i.memory_size().element_size();
                let one = self.load(at, element)?;
                (0..bytes).for_each(|byte| out[byte] = one[byte % element]);
            } else {
                out[..bytes].copy_from_slice(&self.load(at, bytes)?);
            }
            return Ok(out);
        }
        let register = i.op_register(operand);
        if !register.is_vector() {
            return Err(format!("reads {register:?} as a vector"));
        }
        out[..bytes].copy_from_slice(&self.vectors[register.number()][..bytes]);
        Ok(out)
    }

    /// Writes a vector of lanes of `width` bytes under the instruction's mask; the rest of the register is cleared.
    fn write_vector(&mut self, i: &Instruction, value: &Bytes, bytes: usize, width: usize) -> Outcome {
        if self.is_memory(i, 0) {
            if i.has_op_mask() {
                return Err("a masked store".into());
            }
            return self.store(self.address(i)?, &value[..bytes]);
        }
        let old = self.vectors[i.op_register(0).number()];
        let mut new = [0; 64];
        for index in 0..bytes / width {
            let on = !i.has_op_mask() || self.masks[i.op_mask().number()] >> index & 1 == 1;
            let kept = if i.zeroing_masking() { 0 } else { lane(&old, width, index) };
            put(&mut new, width, index, if on { lane(value, width, index) } else { kept });
        }
        self.vectors[i.op_register(0).number()] = new;
        Ok(())
    }

    /// Lane by lane from two sources.
    fn two(&mut self, i: &Instruction, width: usize, f: impl Fn(u64, u64) -> u64) -> Outcome<bool> {
        let bytes = self.vector_bytes(i);
        let (a, b) = (self.vector(i, 1, bytes)?, self.vector(i, 2, bytes)?);
        let mut out = [0; 64];
        for index in 0..bytes / width {
            put(&mut out, width, index, f(lane(&a, width, index), lane(&b, width, index)));
        }
        self.write_vector(i, &out, bytes, width)?;
        Ok(true)
    }

    /// Lane by lane from one source.
    fn one(&mut self, i: &Instruction, width: usize, f: impl Fn(u64) -> u64) -> Outcome<bool> {
        let bytes = self.vector_bytes(i);
        let a = self.vector(i, 1, bytes)?;
        let mut out = [0; 64];
        for index in 0..bytes / width {
            put(&mut out, width, index, f(lane(&a, width, index)));
        }
        self.write_vector(i, &out, bytes, width)?;
        Ok(true)
    }

    /// A comparison: ones and zeros in lanes, or bits of a mask.
    fn compare(&mut self, i: &Instruction, width: usize, f: impl Fn(u64, u64) -> bool) -> Outcome<bool> {
        if !i.op_register(0).is_mask() {
            return self.two(i, width, |a, b| if f(a, b) { u64::MAX } else { 0 });
        }
        if i.has_op_mask() {
            return Err("a masked comparison".into());
        }
        let bytes = i.op_register(1).size();
        let (a, b) = (self.vector(i, 1, bytes)?, self.vector(i, 2, bytes)?);
        let set = |all: u64, index: usize| all | u64::from(f(lane(&a, width, index), lane(&b, width, index))) << index;
        self.masks[i.op_register(0).number()] = (0..bytes / width).fold(0, set);
        Ok(true)
    }

    /// A change of width: lanes of `from` bytes to lanes of `to`.
    fn resize(&mut self, i: &Instruction, from: usize, to: usize, f: impl Fn(u64) -> u64) -> Outcome<bool> {
        // The wider side says how many lanes there are.
        let wide = if to > from { i.op_register(0).size() } else { i.op_register(1).size() };
        let lanes = wide / from.max(to);
        let a = self.vector(i, 1, lanes * from)?;
        let mut out = [0; 64];
        (0..lanes).for_each(|index| put(&mut out, to, index, f(lane(&a, from, index))));
        self.write_vector(i, &out, lanes * to, to)?;
        Ok(true)
    }

    /// Runs an instruction on vectors or masks; `false` if it is none that the machine knows.
    pub(super) fn vector_step(&mut self, i: &Instruction) -> Outcome<bool> {
        let name = format!("{:?}", i.mnemonic()).to_lowercase();
        match i.mnemonic() {
            M::Vpaddb | M::Vpaddw | M::Vpaddd | M::Vpaddq => self.two(i, suffix(&name), u64::wrapping_add),
            M::Vpsubb | M::Vpsubw | M::Vpsubd | M::Vpsubq => self.two(i, suffix(&name), u64::wrapping_sub),
            M::Vpmullw => self.two(i, 2, u64::wrapping_mul),
            M::Vpmulld => self.two(i, 4, u64::wrapping_mul),
            M::Vpmullq => self.two(i, 8, u64::wrapping_mul),
            M::Vpmuludq => self.two(i, 8, |a, b| (a & 0xffff_ffff) * (b & 0xffff_ffff)),
            M::Vpand => self.two(i, 8, |a, b| a & b),
            M::Vpor => self.two(i, 8, |a, b| a | b),
            M::Vpxor => self.two(i, 8, |a, b| a ^ b),
            M::Vpandd => self.two(i, 4, |a, b| a & b),
            M::Vpord => self.two(i, 4, |a, b| a | b),
            M::Vpxord => self.two(i, 4, |a, b| a ^ b),
            M::Vpminsb | M::Vpminsw | M::Vpminsd | M::Vpminsq => {
                let width = suffix(&name);
                self.two(i, width, |a, b| signed(a, width).min(signed(b, width)) as u64)
            }
            M::Vpmaxsb | M::Vpmaxsw | M::Vpmaxsd | M::Vpmaxsq => {
                let width = suffix(&name);
                self.two(i, width, |a, b| signed(a, width).max(signed(b, width)) as u64)
            }
            M::Vpcmpeqb | M::Vpcmpeqw | M::Vpcmpeqd | M::Vpcmpeqq => self.compare(i, suffix(&name), |a, b| a == b),
            M::Vpcmpgtb | M::Vpcmpgtw | M::Vpcmpgtd | M::Vpcmpgtq => {
                let width = suffix(&name);
                self.compare(i, width, |a, b| signed(a, width) > signed(b, width))
            }
            M::Vpcmpb | M::Vpcmpw | M::Vpcmpd | M::Vpcmpq | M::Vpcmpub | M::Vpcmpuw | M::Vpcmpud | M::Vpcmpuq => {
                let width = suffix(&name);
                let unsigned = name.starts_with("vpcmpu");
                let predicate = i.immediate8() & 7;
                self.compare(i, width, |a, b| {
                    let order = if unsigned { a.cmp(&b) } else { signed(a, width).cmp(&signed(b, width)) };
                    match predicate {
                        0 => order.is_eq(),
                        1 => order.is_lt(),
                        2 => order.is_le(),
                        3 => false,
                        4 => order.is_ne(),
                        5 => order.is_ge(),
                        6 => order.is_gt(),
                        _ => true,
                    }
                })
            }
            M::Vcmpps => {
                let predicate = i.immediate8();
                self.compare(i, 4, |a, b| {
                    let (a, b) = (float(a), float(b));
                    match predicate {
                        0 => a == b,
                        3 => a.is_nan() || b.is_nan(),
                        4 => a != b,
                        7 => !(a.is_nan() || b.is_nan()),
                        13 => a >= b,
                        17 => a < b,
                        18 => a <= b,
                        other => panic!("predicate {other} of vcmpps is not known"),
                    }
                })
            }
            M::Vpsllw | M::Vpslld | M::Vpsllq => self.shift(i, suffix(&name), |a, by, _| a << by, 0),
            M::Vpsrlw | M::Vpsrld | M::Vpsrlq => self.shift(i, suffix(&name), |a, by, _| a >> by, 0),
            M::Vpsraw | M::Vpsrad | M::Vpsraq => {
                let width = suffix(&name);
                self.shift(i, width, |a, by, width| (signed(a, width) >> by) as u64, 8 * width as u64 - 1)
            }
            M::Vpsllvw | M::Vpsllvd | M::Vpsllvq => {
                let width = suffix(&name);
                self.two(i, width, |a, by| if by < 8 * width as u64 { a << by } else { 0 })
            }
            M::Vpsrlvw | M::Vpsrlvd | M::Vpsrlvq => {
                let width = suffix(&name);
                self.two(i, width, |a, by| if by < 8 * width as u64 { a >> by } else { 0 })
            }
            M::Vpsravw | M::Vpsravd | M::Vpsravq => {
                let width = suffix(&name);
                self.two(i, width, |a, by| (signed(a, width) >> by.min(8 * width as u64 - 1)) as u64)
            }
            M::Vaddps => self.two(i, 4, |a, b| bits(float(a) + float(b))),
            M::Vsubps => self.two(i, 4, |a, b| bits(float(a) - float(b))),
            M::Vmulps => self.two(i, 4, |a, b| bits(float(a) * float(b))),
            M::Vdivps => self.two(i, 4, |a, b| bits(float(a) / float(b))),
            // The second source where either is NaN, or both are zeros.
            M::Vminps => self.two(i, 4, |a, b| if float(a) < float(b) { a } else { b }),
            M::Vmaxps => self.two(i, 4, |a, b| if float(a) > float(b) { a } else { b }),
            M::Vsqrtps => self.one(i, 4, |a| bits(float(a).sqrt())),
            M::Vroundps | M::Vrndscaleps => {
                let how = i.immediate8();
                if !matches!(how, 8 | 9) {
                    return Err("a rounding that is not known".into());
                }
                self.one(i, 4, |a| bits(if how == 8 { float(a).round_ties_even() } else { float(a).floor() }))
            }
            M::Vfmadd213ps | M::Vfmadd231ps => {
                let bytes = self.vector_bytes(i);
                let sources = [self.vector(i, 0, bytes)?, self.vector(i, 1, bytes)?, self.vector(i, 2, bytes)?];
                let mut out = [0; 64];
                for index in 0..bytes / 4 {
                    let [first, second, third] = sources.each_ref().map(|source| float(lane(source, 4, index)));
                    // The digits number the factors and the addend.
                    let sum = match i.mnemonic() {
                        M::Vfmadd213ps => second.mul_add(first, third),
                        _ => second.mul_add(third, first),
                    };
                    put(&mut out, 4, index, bits(sum));
                }
                self.write_vector(i, &out, bytes, 4)?;
                Ok(true)
            }
            M::Vcvtdq2ps => self.one(i, 4, |a| bits(a as u32 as i32 as f32)),
            M::Vcvtudq2ps => self.one(i, 4, |a| bits(a as u32 as f32)),
            M::Vcvttps2dq | M::Vcvtps2dq => self.one(i, 4, |a| {
                // By the mode that a process starts in, to the nearest one.
                let number = if i.mnemonic() == M::Vcvtps2dq { float(a).round_ties_even() } else { float(a) };
                let fits = (-2147483648.0..2147483648.0).contains(&number);
                u64::from(if fits { number as i32 as u32 } else { 0x8000_0000 })
            }),
            M::Vcvtph2ps => self.resize(i, 2, 4, |a| bits(half::f16::from_bits(a as u16).to_f32())),
            M::Vcvtps2ph if i.immediate8() == 0 => {
                self.resize(i, 4, 2, |a| u64::from(half::f16::from_f32(float(a)).to_bits()))
            }
            _ => self.lane_step(i, &name),
        }
    }

    /// A shift of all lanes by a number; past the width the result is that of `most`, or zero where `most` is 0.
    fn shift(&mut self, i: &Instruction, width: usize, f: fn(u64, u64, usize) -> u64, most: u64) -> Outcome<bool> {
        if i.op_kind(2) != OpKind::Immediate8 {
            return Err("a shift by a register".into());
        }
        let by = u64::from(i.immediate8());
        self.one(i, width, |a| match by < 8 * width as u64 {
            true => f(a, by, width),
            false if most > 0 => f(a, most, width),
            false => 0,
        })
    }
}
