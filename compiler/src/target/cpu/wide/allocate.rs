//! Registers: `regalloc2` over a function of virtual registers.
//!
//! Reads a [`machine::Function`](super::machine::Function), gives every operand a place. Always holds: which registers
//! there are comes from the calling convention and the width of the level, never from the host.

use regalloc2 as ra;

use super::machine::{Arg, Base, Class, Function, Inst, Mem, Reg};

/// Numbers of the general registers as x86 encodes them.
pub(super) const RAX: usize = 0;
pub(super) const RCX: usize = 1;
pub(super) const RDX: usize = 2;
pub(super) const RBX: usize = 3;
pub(super) const RSP: usize = 4;
pub(super) const RBP: usize = 5;
pub(super) const RSI: usize = 6;
pub(super) const RDI: usize = 7;

/// A calling convention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Convention {
    /// System V, x86-64.
    SystemV,
    /// Microsoft x64.
    Windows,
}

impl Convention {
    /// Registers of the four arguments.
    pub fn args(self) -> [usize; 4] {
        match self {
            Convention::SystemV => [RDI, RSI, RDX, RCX],
            Convention::Windows => [RCX, RDX, 8, 9],
        }
    }

    /// Whether a function must leave a register of a class as it found it.
    pub fn keeps(self, class: Class, number: usize) -> bool {
        match (self, class) {
            (_, Class::General) if matches!(number, RBX | RSP | RBP | 12..=15) => true,
            (Convention::Windows, Class::General) => matches!(number, RSI | RDI),
            (Convention::Windows, Class::Vector) => matches!(number, 6..=15),
            _ => false,
        }
    }
}

fn class_of(class: Class) -> ra::RegClass {
    match class {
        Class::General => ra::RegClass::Int,
        Class::Vector => ra::RegClass::Float,
        Class::Mask => ra::RegClass::Vector,
    }
}

/// The class that a class of `regalloc2` stands for.
pub(super) fn class_from(class: ra::RegClass) -> Class {
    match class {
        ra::RegClass::Int => Class::General,
        ra::RegClass::Float => Class::Vector,
        ra::RegClass::Vector => Class::Mask,
    }
}

/// The view that `regalloc2` has of a function.
pub(super) struct View<'f> {
    function: &'f Function,
    /// Range of instructions of each block in layout order.
    ranges: Vec<ra::InstRange>,
    params: Vec<Vec<ra::VReg>>,
    successors: Vec<Vec<ra::Block>>,
    predecessors: Vec<Vec<ra::Block>>,
    operands: Vec<Vec<ra::Operand>>,
    /// The block and the place in it of each instruction.
    places: Vec<(u32, u32)>,
    jumps: Vec<Vec<ra::VReg>>,
    slot: usize,
}

/// Operands of an instruction in the order in which [`Arg`]s name registers.
fn operands(function: &Function, inst: &Inst, convention: Convention) -> Vec<ra::Operand> {
    let vreg = |reg: Reg| ra::VReg::new(reg.0 as usize, class_of(function.classes[reg.0 as usize]));
    let general = |number: usize| ra::PReg::new(number, ra::RegClass::Int);
    let mut list = Vec::new();
    match inst {
        Inst::Op { args, mask, .. } => {
            for arg in args {
                match *arg {
                    Arg::Def(reg, _) => list.push(ra::Operand::reg_def(vreg(reg))),
                    Arg::Use(reg, _) => list.push(ra::Operand::reg_use(vreg(reg))),
                    Arg::Change(from, to, _) => {
                        list.push(ra::Operand::reg_use(vreg(from)));
                        list.push(ra::Operand::reg_reuse_def(vreg(to), list.len() - 1));
                    }
                    Arg::Mem(Mem { base, index, .. }) => {
                        if let Base::Reg(base) = base {
                            list.push(ra::Operand::reg_use(vreg(base)));
                        }
                        if let Some((index, _)) = index {
                            list.push(ra::Operand::reg_use(vreg(index)));
                        }
                    }
                    Arg::Imm(_) => {}
                }
            }
            if let Some((mask, _)) = mask {
                list.push(ra::Operand::reg_use(vreg(*mask)));
            }
        }
        Inst::Zero(reg) => list.push(ra::Operand::reg_def(vreg(*reg))),
        Inst::Entry(args) => {
            for (&arg, number) in args.iter().zip(convention.args()) {
                list.push(ra::Operand::reg_fixed_def(vreg(arg), general(number)));
            }
        }
        Inst::Divide { dividend, divisor, quotient, remainder, .. } => {
            list.push(ra::Operand::reg_fixed_use(vreg(*dividend), general(RAX)));
            list.push(ra::Operand::reg_use_at_end(vreg(*divisor)));
            list.push(ra::Operand::reg_fixed_def(vreg(*quotient), general(RAX)));
            list.push(ra::Operand::reg_fixed_def(vreg(*remainder), general(RDX)));
        }
        Inst::Jump(..) | Inst::Branch(..) | Inst::Return => {}
    }
    list
}

impl<'f> View<'f> {
    /// The view of a function whose spilled vectors take `vector_bytes`.
    pub fn new(function: &'f Function, convention: Convention, vector_bytes: u32) -> View<'f> {
        let mut number = vec![0u32; function.blocks.len()];
        for (place, label) in function.order.iter().enumerate() {
            number[label.0 as usize] = place as u32;
        }
        let count = function.order.len();
        let mut view = View {
            function,
            ranges: Vec::with_capacity(count),
            params: Vec::with_capacity(count),
            successors: vec![Vec::new(); count],
            predecessors: vec![Vec::new(); count],
            operands: Vec::new(),
            places: Vec::new(),
            jumps: Vec::with_capacity(count),
            slot: vector_bytes as usize / 8,
        };
        let vregs = |regs: &[Reg]| -> Vec<ra::VReg> {
            regs.iter().map(|reg| ra::VReg::new(reg.0 as usize, class_of(function.classes[reg.0 as usize]))).collect()
        };
        for (place, label) in function.order.iter().enumerate() {
            let block = &function.blocks[label.0 as usize];
            let first = view.operands.len();
            for (at, inst) in block.insts.iter().enumerate() {
                view.operands.push(operands(function, inst, convention));
                view.places.push((label.0, at as u32));
            }
            view.ranges.push(ra::InstRange::new(ra::Inst::new(first), ra::Inst::new(view.operands.len())));
            view.params.push(vregs(&block.params));
            let mut values = Vec::new();
            let next: Vec<u32> = match block.insts.last() {
                Some(Inst::Jump(to, carried)) => {
                    values = vregs(carried);
                    vec![to.0]
                }
                Some(Inst::Branch(_, yes, no)) => vec![yes.0, no.0],
                _ => Vec::new(),
            };
            view.jumps.push(values);
            for to in next {
                let to = number[to as usize];
                view.successors[place].push(ra::Block::new(to as usize));
                view.predecessors[to as usize].push(ra::Block::new(place));
            }
        }
        view
    }

    /// The block and the instruction behind a number of `regalloc2`.
    pub fn inst(&self, inst: ra::Inst) -> &'f Inst {
        let (block, at) = self.places[inst.index()];
        &self.function.blocks[block as usize].insts[at as usize]
    }
}

impl ra::Function for View<'_> {
    fn num_insts(&self) -> usize {
        self.operands.len()
    }

    fn num_blocks(&self) -> usize {
        self.ranges.len()
    }

    fn entry_block(&self) -> ra::Block {
        ra::Block::new(0)
    }

    fn block_insns(&self, block: ra::Block) -> ra::InstRange {
        self.ranges[block.index()]
    }

    fn block_succs(&self, block: ra::Block) -> &[ra::Block] {
        &self.successors[block.index()]
    }

    fn block_preds(&self, block: ra::Block) -> &[ra::Block] {
        &self.predecessors[block.index()]
    }

    fn block_params(&self, block: ra::Block) -> &[ra::VReg] {
        &self.params[block.index()]
    }

    fn is_ret(&self, inst: ra::Inst) -> bool {
        matches!(self.inst(inst), Inst::Return)
    }

    fn is_branch(&self, inst: ra::Inst) -> bool {
        matches!(self.inst(inst), Inst::Jump(..) | Inst::Branch(..))
    }

    fn branch_blockparams(&self, block: ra::Block, _inst: ra::Inst, _successor: usize) -> &[ra::VReg] {
        &self.jumps[block.index()]
    }

    fn inst_operands(&self, inst: ra::Inst) -> &[ra::Operand] {
        &self.operands[inst.index()]
    }

    fn inst_clobbers(&self, _inst: ra::Inst) -> ra::PRegSet {
        ra::PRegSet::empty()
    }

    fn num_vregs(&self) -> usize {
        self.function.classes.len()
    }

    fn spillslot_size(&self, class: ra::RegClass) -> usize {
        if class == ra::RegClass::Float { self.slot } else { 1 }
    }
}

/// The registers of a convention. AVX-512 has 32 vectors and seven masks (the eighth means "no mask").
pub(super) fn environment(convention: Convention, avx512: bool) -> ra::MachineEnv {
    let mut preferred = [ra::PRegSet::empty(); 3];
    let mut others = [ra::PRegSet::empty(); 3];
    let mut add = |class: Class, number: usize| {
        let class_ = class_of(class);
        let set = if convention.keeps(class, number) { &mut others } else { &mut preferred };
        set[class_ as usize].add(ra::PReg::new(number, class_));
    };
    (0..16).filter(|&number| number != RSP).for_each(|number| add(Class::General, number));
    (0..if avx512 { 32 } else { 16 }).for_each(|number| add(Class::Vector, number));
    (1..if avx512 { 8 } else { 1 }).for_each(|number| add(Class::Mask, number));
    ra::MachineEnv {
        preferred_regs_by_class: preferred,
        non_preferred_regs_by_class: others,
        scratch_by_class: [None; 3],
        fixed_stack_slots: Vec::new(),
    }
}
