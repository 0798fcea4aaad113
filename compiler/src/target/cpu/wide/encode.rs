//! From a mnemonic and operands in registers to an instruction of x86: a small assembler over iced's tables.
//!
//! Always holds: an instruction on vectors takes the encoding family of its level (VEX up to AVX2, EVEX for AVX-512),
//! so that a function never mixes what its registers allow; general and mask instructions take whatever fits.

use std::collections::HashMap;
use std::sync::OnceLock;

use iced_x86::{Code, EncodingKind, Instruction, Mnemonic, OpCodeOperandKind as Kind, OpKind, Register};

use super::machine::{Class, Size};

/// An operand whose registers are known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Placed {
    /// A register by its number.
    Reg(usize, Size),
    /// Memory at `base + index * scale + offset`.
    Mem { base: PlacedBase, index: Option<(usize, u8)>, offset: i32, bytes: u32, broadcast: bool },
    /// A number.
    Imm(i64),
}

/// Where a placed address starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum PlacedBase {
    /// A general register.
    Reg(usize),
    /// The constants; patched when their place is known.
    Constants,
}

/// Every instruction of 64-bit code by mnemonic.
fn codes(mnemonic: Mnemonic) -> &'static [Code] {
    static TABLE: OnceLock<HashMap<Mnemonic, Vec<Code>>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let mut table: HashMap<Mnemonic, Vec<Code>> = HashMap::new();
        for code in Code::values() {
            let facts = code.op_code();
            if facts.is_instruction() && facts.mode64() {
                table.entry(code.mnemonic()).or_default().push(code);
            }
        }
        table
    });
    table.get(&mnemonic).map_or(&[], Vec::as_slice)
}

fn in_range(value: i64, bits: u32) -> bool {
    value >= -(1i64 << (bits - 1)) && value < 1i64 << (bits - 1)
}

/// Whether an operand of an instruction can be this one.
fn fits(kind: Kind, operand: &Placed) -> bool {
    match *operand {
        Placed::Reg(_, size) => match size {
            Size::B1 => matches!(kind, Kind::r8_reg | Kind::r8_or_mem),
            Size::B2 => matches!(kind, Kind::r16_reg | Kind::r16_or_mem | Kind::r16_rm),
            Size::B4 => {
                matches!(kind, Kind::r32_reg | Kind::r32_or_mem | Kind::r32_rm | Kind::r32_vvvv | Kind::r32_opcode)
            }
            Size::B8 => {
                matches!(kind, Kind::r64_reg | Kind::r64_or_mem | Kind::r64_rm | Kind::r64_vvvv | Kind::r64_opcode)
            }
            Size::X => matches!(kind, Kind::xmm_reg | Kind::xmm_or_mem | Kind::xmm_rm | Kind::xmm_vvvv | Kind::xmm_is4),
            Size::Y => matches!(kind, Kind::ymm_reg | Kind::ymm_or_mem | Kind::ymm_rm | Kind::ymm_vvvv | Kind::ymm_is4),
            Size::Z => matches!(kind, Kind::zmm_reg | Kind::zmm_or_mem | Kind::zmm_rm | Kind::zmm_vvvv),
            Size::K => matches!(kind, Kind::k_reg | Kind::k_rm | Kind::k_vvvv | Kind::k_or_mem),
        },
        Placed::Mem { bytes, .. } => match kind {
            Kind::r8_or_mem => bytes == 1,
            Kind::r16_or_mem => bytes == 2,
            Kind::r32_or_mem => bytes <= 4,
            Kind::r64_or_mem => bytes == 8,
            Kind::mem | Kind::xmm_or_mem | Kind::ymm_or_mem | Kind::zmm_or_mem | Kind::k_or_mem => true,
            _ => false,
        },
        Placed::Imm(value) => match kind {
            Kind::imm8 => (-128..256).contains(&value),
            Kind::imm8_const_1 => value == 1,
            Kind::imm8sex32 | Kind::imm8sex64 => in_range(value, 8),
            Kind::imm32 => (-(1 << 31)..1 << 32).contains(&value),
            Kind::imm32sex64 => in_range(value, 32),
            Kind::imm64 => true,
            _ => false,
        },
    }
}

/// Bytes of a kind of immediate: the shortest that fits is taken.
fn length(kind: Kind) -> u32 {
    match kind {
        Kind::imm8 | Kind::imm8sex32 | Kind::imm8sex64 => 1,
        Kind::imm32 | Kind::imm32sex64 => 4,
        Kind::imm64 => 8,
        _ => 0,
    }
}

fn choose(mnemonic: Mnemonic, operands: &[Placed], evex: bool) -> Option<Code> {
    let vectors = operands.iter().any(|o| matches!(o, Placed::Reg(_, Size::X | Size::Y | Size::Z)));
    let broadcast = operands.iter().any(|o| matches!(o, Placed::Mem { broadcast: true, .. }));
    codes(mnemonic)
        .iter()
        .copied()
        .filter(|code| {
            let facts = code.op_code();
            let family = match facts.encoding() {
                EncodingKind::EVEX => evex && vectors,
                EncodingKind::VEX => !vectors || !evex,
                EncodingKind::Legacy => !vectors,
                _ => false,
            };
            let kinds = facts.op_kinds();
            family
                && kinds.len() == operands.len()
                && (!broadcast || facts.can_broadcast())
                && kinds.iter().zip(operands).all(|(&kind, operand)| fits(kind, operand))
        })
        .min_by_key(|code| code.op_code().op_kinds().iter().map(|&kind| length(kind)).sum::<u32>())
}

/// The register of iced for a number.
pub(super) fn register(number: usize, size: Size) -> Register {
    let first = match size {
        // The high-byte registers lie between BL and SPL in iced's order.
        Size::B1 if number < 4 => Register::AL,
        Size::B1 => return Register::SPL + (number as u32 - 4),
        Size::B2 => Register::AX,
        Size::B4 => Register::EAX,
        Size::B8 => Register::RAX,
        Size::X => Register::XMM0,
        Size::Y => Register::YMM0,
        Size::Z => Register::ZMM0,
        Size::K => Register::K0,
    };
    first + number as u32
}

/// The instruction of a mnemonic with these operands, or why there is none. `mask`: an AVX-512 mask, and whether its
/// clear bits make lanes zero. Addresses of constants are their offset among them.
pub(super) fn instruction(
    mnemonic: Mnemonic,
    operands: &[Placed],
    mask: Option<(usize, bool)>,
    evex: bool,
) -> Result<Instruction, String> {
    let code = choose(mnemonic, operands, evex)
        .ok_or_else(|| format!("no {} encoding of {mnemonic:?} {operands:?}", if evex { "EVEX" } else { "VEX" }))?;
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    for (i, operand) in operands.iter().enumerate() {
        let at = i as u32;
        match *operand {
            Placed::Reg(number, size) => {
                instruction.set_op_kind(at, OpKind::Register);
                instruction.set_op_register(at, register(number, size));
            }
            Placed::Mem { base, index, offset, broadcast, .. } => {
                instruction.set_op_kind(at, OpKind::Memory);
                match base {
                    PlacedBase::Reg(number) => {
                        instruction.set_memory_base(register(number, Size::B8));
                        instruction.set_memory_displ_size(u32::from(offset != 0));
                        instruction.set_memory_displacement64(i64::from(offset) as u64);
                    }
                    PlacedBase::Constants => {
                        instruction.set_memory_base(Register::RIP);
                        instruction.set_memory_displ_size(8);
                        instruction.set_memory_displacement64(offset as u64);
                    }
                }
                if let Some((number, scale)) = index {
                    instruction.set_memory_index(register(number, Size::B8));
                    instruction.set_memory_index_scale(u32::from(scale));
                }
                instruction.set_is_broadcast(broadcast);
            }
            Placed::Imm(value) => {
                let kind = match code.op_code().op_kinds()[i] {
                    Kind::imm8sex32 => OpKind::Immediate8to32,
                    Kind::imm8sex64 => OpKind::Immediate8to64,
                    Kind::imm32 => OpKind::Immediate32,
                    Kind::imm32sex64 => OpKind::Immediate32to64,
                    Kind::imm64 => OpKind::Immediate64,
                    _ => OpKind::Immediate8,
                };
                instruction.set_op_kind(at, kind);
                instruction.set_immediate_i64(at, value);
            }
        }
    }
    if let Some((mask, zeroing)) = mask {
        instruction.set_op_mask(register(mask, Size::K));
        instruction.set_zeroing_masking(zeroing);
    }
    Ok(instruction)
}

/// The move of a whole register of a class.
pub(super) fn whole(class: Class, evex: bool) -> (Mnemonic, Size) {
    match class {
        Class::General => (Mnemonic::Mov, Size::B8),
        Class::Vector if evex => (Mnemonic::Vmovups, Size::Z),
        Class::Vector => (Mnemonic::Vmovups, Size::Y),
        Class::Mask => (Mnemonic::Kmovq, Size::K),
    }
}
