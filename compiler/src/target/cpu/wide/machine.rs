//! Machine code over virtual registers: what lowering makes and register allocation reads.
//!
//! An instruction is a mnemonic and its operands as x86 orders them, destination first; which encoding serves them is
//! decided in [`super::assemble`]. Always holds: a register is defined once, and conditional branches carry no values
//! (each leads to a block with one predecessor), so that no edge is critical.

use iced_x86::Mnemonic;

/// A class of registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// General purpose.
    General,
    /// Vectors of any width.
    Vector,
    /// AVX-512 masks.
    Mask,
}

/// A virtual register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Reg(pub u32);

/// How much of a register an instruction names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Size {
    B1,
    B2,
    B4,
    B8,
    X,
    Y,
    Z,
    K,
}

impl Size {
    /// The vector that holds this many bytes.
    pub fn vector(bytes: u32) -> Size {
        match bytes {
            0..=16 => Size::X,
            17..=32 => Size::Y,
            _ => Size::Z,
        }
    }

    /// Bytes of a vector or a general register.
    pub fn bytes(self) -> u32 {
        match self {
            Size::B1 => 1,
            Size::B2 => 2,
            Size::B4 => 4,
            Size::B8 | Size::K => 8,
            Size::X => 16,
            Size::Y => 32,
            Size::Z => 64,
        }
    }
}

/// Where an address starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Base {
    /// A register.
    Reg(Reg),
    /// A byte of the constants behind the code.
    Constant(u32),
}

/// A place in memory, `base + index * scale + offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Mem {
    pub base: Base,
    pub index: Option<(Reg, u8)>,
    pub offset: i32,
    /// Bytes that are read or written; one lane if `broadcast`.
    pub bytes: u32,
    /// AVX-512: one lane for all.
    pub broadcast: bool,
}

/// An operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arg {
    /// Written.
    Def(Reg, Size),
    /// Read.
    Use(Reg, Size),
    /// Read as the first and written as the second, which are one register.
    Change(Reg, Reg, Size),
    /// In memory.
    Mem(Mem),
    /// A number.
    Imm(i64),
}

/// A block of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Label(pub u32);

/// A condition of a branch, `setcc` or `cmovcc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    Zero,
    NotZero,
    /// Signed.
    Less,
    LessOrEqual,
    Greater,
    /// Unsigned.
    Below,
    Above,
}

/// An instruction.
#[derive(Clone, Debug)]
pub(super) enum Inst {
    /// Anything with no control flow and no fixed registers.
    Op {
        mnemonic: Mnemonic,
        args: Vec<Arg>,
        /// AVX-512: the mask, and whether lanes whose bit is clear become zero (a blend says itself what they become).
        mask: Option<(Reg, bool)>,
    },
    /// All bits of a vector clear.
    Zero(Reg),
    /// The arguments of the function.
    Entry([Reg; 4]),
    /// Quotient and remainder.
    Divide { signed: bool, size: Size, dividend: Reg, divisor: Reg, quotient: Reg, remainder: Reg },
    /// Goes to a block with values for its parameters.
    Jump(Label, Vec<Reg>),
    /// Goes to the first block if the flags say so, to the second otherwise.
    Branch(Condition, Label, Label),
    /// Leaves the function.
    Return,
}

impl Inst {
    /// Visits the registers that it reads, one that it reads twice twice.
    pub fn each_use(&self, visit: &mut dyn FnMut(Reg)) {
        match self {
            Inst::Op { args, mask, .. } => {
                for arg in args {
                    match *arg {
                        Arg::Use(reg, _) | Arg::Change(reg, ..) => visit(reg),
                        Arg::Mem(Mem { base, index, .. }) => {
                            if let Base::Reg(base) = base {
                                visit(base);
                            }
                            if let Some((index, _)) = index {
                                visit(index);
                            }
                        }
                        Arg::Def(..) | Arg::Imm(_) => {}
                    }
                }
                if let Some((mask, _)) = mask {
                    visit(*mask);
                }
            }
            Inst::Divide { dividend, divisor, .. } => {
                visit(*dividend);
                visit(*divisor);
            }
            Inst::Jump(_, values) => values.iter().for_each(|&value| visit(value)),
            Inst::Zero(_) | Inst::Entry(_) | Inst::Branch(..) | Inst::Return => {}
        }
    }

    /// Visits the registers that it writes.
    pub fn each_definition(&self, visit: &mut dyn FnMut(Reg)) {
        match self {
            Inst::Op { args, .. } => {
                for arg in args {
                    if let Arg::Def(reg, _) | Arg::Change(_, reg, _) = *arg {
                        visit(reg);
                    }
                }
            }
            Inst::Zero(reg) => visit(*reg),
            Inst::Entry(regs) => regs.iter().for_each(|&reg| visit(reg)),
            Inst::Divide { quotient, remainder, .. } => {
                visit(*quotient);
                visit(*remainder);
            }
            Inst::Jump(..) | Inst::Branch(..) | Inst::Return => {}
        }
    }
}

/// Instructions that end with a jump, a branch or a return.
#[derive(Clone, Debug, Default)]
pub(super) struct Block {
    pub params: Vec<Reg>,
    pub insts: Vec<Inst>,
    /// Loops of the kernel around it.
    pub depth: u32,
}

/// A function under construction. Blocks are laid out in the order in which they were begun.
#[derive(Debug, Default)]
pub(super) struct Function {
    pub classes: Vec<Class>,
    pub blocks: Vec<Block>,
    /// Blocks in layout order.
    pub order: Vec<Label>,
    /// What lies behind the code.
    pub constants: Vec<u8>,
    current: Option<Label>,
}

impl Function {
    /// A new register.
    pub fn reg(&mut self, class: Class) -> Reg {
        self.classes.push(class);
        Reg(self.classes.len() as u32 - 1)
    }

    /// A new block, to be begun later.
    pub fn label(&mut self) -> Label {
        self.blocks.push(Block::default());
        Label(self.blocks.len() as u32 - 1)
    }

    /// A new parameter of a block.
    pub fn param(&mut self, label: Label, class: Class) -> Reg {
        let reg = self.reg(class);
        self.blocks[label.0 as usize].params.push(reg);
        reg
    }

    /// Instructions go to this block from now on.
    pub fn begin(&mut self, label: Label, depth: u32) {
        self.blocks[label.0 as usize].depth = depth;
        self.order.push(label);
        self.current = Some(label);
    }

    /// Adds an instruction.
    pub fn push(&mut self, inst: Inst) {
        if let Some(current) = self.current {
            self.blocks[current.0 as usize].insts.push(inst);
        }
    }

    /// The offset of some bytes among the constants, at a multiple of their length.
    pub fn constant(&mut self, bytes: &[u8]) -> u32 {
        let step = bytes.len().max(1);
        if let Some(found) = self.constants.chunks_exact(step).position(|chunk| chunk == bytes) {
            return (found * step) as u32;
        }
        self.constants.resize(self.constants.len().next_multiple_of(step), 0);
        self.constants.extend_from_slice(bytes);
        (self.constants.len() - bytes.len()) as u32
    }
}
