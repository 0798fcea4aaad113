//! Matrix fragments in registers: `ldmatrix`, `stmatrix`, `movmatrix` and `mma.sync`.
//!
//! With `group = lane / 4`, `member = lane % 4` and `e` elements in a 32-bit register:
//!
//! ```text
//! A  register r, element j:  row = group + 8 (r % 2)            k = member e + 4 e (r / 2) + j
//!    (8-row shapes have one row of registers: row = group        k = member e + 4 e r + j)
//! B  register r, element j:  k = member e + 4 e r + j            column = group
//! C  element i:              row = group + 8 (i / 2)            column = 2 member + i % 2
//! ```
//!
//! Products and sums are exact up to `f64`; a result is rounded once. Hardware truncates inside, so compare with tolerance.

use crate::alu::Lanes;
use crate::alu::real::{half_from_f64, half_to_f32};
use crate::exec::Machine;
use crate::exec::state::Warp;
use crate::fault::{Fault, FaultKind};
use crate::numeric::{E4M3, E5M2};
use crate::op::{Place, Reg};

/// An element of a multiplicand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F16,
    Bf16,
    Tf32,
    E4m3,
    E5m2,
    F64,
    Signed(u32),
    Unsigned(u32),
}

impl Element {
    pub(crate) fn parse(name: &str) -> Option<Element> {
        Some(match name {
            "f16" => Element::F16,
            "bf16" => Element::Bf16,
            "tf32" => Element::Tf32,
            "e4m3" => Element::E4m3,
            "e5m2" => Element::E5m2,
            "f64" => Element::F64,
            "s8" => Element::Signed(8),
            "u8" => Element::Unsigned(8),
            "s4" => Element::Signed(4),
            "u4" => Element::Unsigned(4),
            _ => return None,
        })
    }

    pub(crate) fn bits(self) -> u32 {
        match self {
            Element::F16 | Element::Bf16 => 16,
            Element::Tf32 => 32,
            Element::E4m3 | Element::E5m2 => 8,
            Element::F64 => 64,
            Element::Signed(bits) | Element::Unsigned(bits) => bits,
        }
    }

    /// The value of the low bits.
    pub(crate) fn value(self, raw: u64) -> f64 {
        match self {
            Element::F16 => f64::from(half_to_f32(raw as u16)),
            Element::Bf16 => f64::from(f32::from_bits((raw as u32) << 16)),
            // The low bits of a tf32 register do not count.
            Element::Tf32 => f64::from(f32::from_bits(raw as u32 & !0x1fff)),
            Element::E4m3 => E4M3.value(raw as u32 & 0xff),
            Element::E5m2 => E5M2.value(raw as u32 & 0xff),
            Element::F64 => f64::from_bits(raw),
            Element::Signed(bits) => (((raw << (64 - bits)) as i64) >> (64 - bits)) as f64,
            Element::Unsigned(bits) => (raw & ((1 << bits) - 1)) as f64,
        }
    }
}

/// What sums are kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sum {
    F16,
    F32,
    F64,
    S32,
}

impl Sum {
    pub(crate) fn parse(name: &str) -> Option<Sum> {
        Some(match name {
            "f16" => Sum::F16,
            "f32" => Sum::F32,
            "f64" => Sum::F64,
            "s32" => Sum::S32,
            _ => return None,
        })
    }

    /// Where element `i` of a thread's fragment lies: register and shift.
    pub(crate) fn slot(self, i: usize) -> (usize, u32) {
        if self == Sum::F16 { (i / 2, 16 * (i % 2) as u32) } else { (i, 0) }
    }

    pub(crate) fn value(self, raw: u64) -> f64 {
        match self {
            Sum::F16 => f64::from(half_to_f32(raw as u16)),
            Sum::F32 => f64::from(f32::from_bits(raw as u32)),
            Sum::F64 => f64::from_bits(raw),
            Sum::S32 => f64::from(raw as u32 as i32),
        }
    }

    pub(crate) fn bits(self, x: f64, saturate: bool) -> u64 {
        match self {
            Sum::F16 => u64::from(half_from_f64(x)),
            Sum::F32 => crate::alu::Slot::put(x as f32),
            Sum::F64 => x.to_bits(),
            Sum::S32 if saturate => u64::from(x.clamp(f64::from(i32::MIN), f64::from(i32::MAX)) as i32 as u32),
            Sum::S32 => u64::from(x as i64 as u32),
        }
    }
}

/// `mma.sync`.
#[derive(Clone, Debug)]
pub(crate) struct Mma {
    pub rows: usize,
    pub depth: usize,
    pub a: Element,
    pub b: Element,
    pub sum: Sum,
    pub saturate: bool,
    pub d_registers: Vec<Reg>,
    pub a_registers: Vec<Reg>,
    pub b_registers: Vec<Reg>,
    pub c_registers: Vec<Reg>,
}

/// What moves a fragment between registers and shared memory, or transposes it.
#[derive(Clone, Debug)]
pub(crate) struct MatrixMove {
    pub how: Move,
    pub transposed: bool,
    pub registers: Vec<Reg>,
}

/// Direction of a fragment's move.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Move {
    Load(Place),
    Store(Place),
    /// `movmatrix`: from this register.
    Transpose(Reg),
}

fn elements(lanes: &Lanes, lane: usize, element: Element, j: usize) -> f64 {
    element.value(lanes[lane] >> (element.bits() * j as u32))
}

impl Machine<'_> {
    pub(crate) fn whole_warp(&self, active: u32, what: &str) -> Result<(), Fault> {
        if active == !0 {
            return Ok(());
        }
        Err(Fault::new(FaultKind::Divergence, format!("{what} with lanes {active:#010x}; accepted: the whole warp")))
    }

    pub(crate) fn mma(&mut self, warp: &mut Warp, active: u32, mma: &Mma) -> Result<(), Fault> {
        self.whole_warp(active, "`mma`")?;
        for register in mma.a_registers.iter().chain(&mma.b_registers).chain(&mma.c_registers) {
            self.need(warp, active, *register)?;
        }
        let per = (32 / mma.a.bits()).max(1) as usize;
        let mut a = vec![0.0f64; mma.rows * mma.depth];
        let mut b = vec![0.0f64; 8 * mma.depth];
        let blocks = mma.rows / 8;
        for (r, register) in mma.a_registers.iter().enumerate() {
            let lanes = &warp.registers[*register as usize];
            for lane in 0..32 {
                let row = lane / 4 + 8 * (r % blocks);
                let k = lane % 4 * per + 4 * per * (r / blocks);
                for j in 0..per {
                    a[row * mma.depth + k + j] = elements(lanes, lane, mma.a, j);
                }
            }
        }
        for (r, register) in mma.b_registers.iter().enumerate() {
            let lanes = &warp.registers[*register as usize];
            for lane in 0..32 {
                let k = lane % 4 * per + 4 * per * r;
                for j in 0..per {
                    b[(lane / 4) * mma.depth + k + j] = elements(lanes, lane, mma.b, j);
                }
            }
        }
        let mut out = vec![[0u64; 32]; mma.d_registers.len()];
        for lane in 0..32 {
            for i in 0..2 * blocks {
                let (row, column) = (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2);
                let (register, shift) = mma.sum.slot(i);
                let c = mma.sum.value(warp.registers[mma.c_registers[register] as usize][lane] >> shift);
                let (x, y) = (&a[row * mma.depth..][..mma.depth], &b[column * mma.depth..][..mma.depth]);
                let value = x.iter().zip(y).fold(0.0, |sum, (x, y)| sum + x * y) + c;
                out[register][lane] |= mma.sum.bits(value, mma.saturate) << shift;
            }
        }
        for (register, value) in mma.d_registers.iter().zip(&out) {
            crate::exec::write(warp, active, *register, value);
        }
        Ok(())
    }

    pub(crate) fn matrix_move(
        &mut self,
        warp: &mut Warp,
        active: u32,
        matrix: &MatrixMove,
        source: u32,
    ) -> Result<(), Fault> {
        self.whole_warp(active, "a matrix move")?;
        let place = match matrix.how {
            Move::Transpose(from) => {
                self.need(warp, active, from)?;
                let value = warp.registers[from as usize];
                let mut out = [0u64; 32];
                for (lane, slot) in out.iter_mut().enumerate() {
                    for j in 0..2 {
                        // Element (lane / 4, 2 (lane % 4) + j) of the result is its mirror of the source.
                        let (row, column) = (2 * (lane % 4) + j, lane / 4);
                        let half = value[4 * row + column / 2] >> (16 * (column % 2)) & 0xffff;
                        *slot |= half << (16 * j);
                    }
                }
                crate::exec::write(warp, active, matrix.registers[0], &out);
                return Ok(());
            }
            Move::Load(place) | Move::Store(place) => place,
        };
        let store = matches!(matrix.how, Move::Store(_));
        let count = matrix.registers.len();
        self.need(warp, if count == 4 { active } else { (1 << (8 * count)) - 1 }, place.base)?;
        let mut rows = Vec::new();
        let actor = self.actor(warp, source);
        for lane in 0..8 * count {
            let address = warp.registers[place.base as usize][lane].wrapping_add_signed(place.offset);
            let address = match crate::memory::locate(address) {
                (crate::ast::Space::Shared, inside) => inside,
                _ => address,
            };
            let blame = |fault: Fault| Fault { lane: Some(lane as u32), ..fault };
            let spot = self.shared_spot(warp.block, address, 16, 16).map_err(blame)?;
            if store {
                self.check_write(warp.block, spot, 16, actor).map_err(blame)?;
            } else {
                self.check_read(warp.block, spot, 16, actor).map_err(blame)?;
            }
            rows.push(spot);
        }
        for (i, register) in matrix.registers.iter().enumerate() {
            let register = *register as usize;
            for lane in 0..32 {
                for j in 0..2 {
                    let (row, column) =
                        if matrix.transposed { (2 * (lane % 4) + j, lane / 4) } else { (lane / 4, 2 * (lane % 4) + j) };
                    let (slot, at) = rows[8 * i + row];
                    let bytes = &mut self.blocks[slot].shared;
                    let shift = 16 * j as u32;
                    let bit = 1u32 << lane;
                    if store {
                        let half = warp.registers[register][lane] >> shift & 0xffff;
                        bytes.write(at + 2 * column, 2, half, warp.defined[register] & bit != 0);
                    } else {
                        let (half, valid) = bytes.read(at + 2 * column, 2);
                        let old = if j == 0 { 0 } else { warp.registers[register][lane] };
                        warp.registers[register][lane] = old | half << shift;
                        let before = j == 0 || warp.defined[register] & bit != 0;
                        warp.defined[register] &= !bit;
                        warp.defined[register] |= if valid && before { bit } else { 0 };
                    }
                }
            }
            if !store {
                warp.stamps[register] = self.warp_instructions;
            }
        }
        Ok(())
    }
}
