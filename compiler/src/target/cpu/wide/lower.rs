//! From kernel IR to machine code over virtual registers: the function around a kernel and its control flow.
//!
//! Statements are lowered in the order of the IR. Loads that one arithmetic instruction uses become its memory operand
//! (see [`super::fold`]); constants are operands in memory, or made where a block first
//! uses them.

mod control;

use std::collections::{HashMap, HashSet};

use iced_x86::Mnemonic as M;

use super::fold;
use super::machine::{Arg, Base, Class, Condition, Function, Inst as Op, Mem, Reg, Size};
use super::value::Repr;
use crate::ir::{self, Builtin, Inst, Memory, Scalar, Type};

/// What decides between instruction sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// AVX-512 F, BW, CD, DQ and VL: vectors of 64 bytes, 32 registers, masks.
    pub evex: bool,
    /// `vpdpbusd` in the encoding family of the level.
    pub vnni: bool,
}

/// Lowers one kernel.
pub(super) struct Lower<'a> {
    pub f: Function,
    pub kernel: &'a ir::Kernel,
    pub facts: Facts,
    /// The defining instruction of each value that has one of its own.
    pub defs: Vec<Option<&'a Inst>>,
    /// Loads, and bitcasts of them, that become operands of the instruction that uses them.
    pub folded: HashSet<ir::Value>,
    pub values: Vec<Option<Repr>>,
    /// Constant vectors that the present block can read, by size and bytes.
    pub vectors: HashMap<(Size, Vec<u8>), Reg>,
    /// Start of each memory and what lies constantly before it, in the present workgroup.
    pub bases: HashMap<Memory, (Reg, i64)>,
    /// 64-bit forms of 32-bit indices, innermost open block last.
    pub extended: Vec<HashMap<ir::Value, Reg>>,
    /// Sums of products that wait for their last term: see [`super::dot`].
    pub chains: HashMap<ir::Value, super::dot::Chain>,
    pub uses: Vec<u32>,
    /// The dot product of the same block that takes a sum as its accumulator.
    pub continued: HashMap<ir::Value, &'a Inst>,
    /// Even and odd bytes of values in 16 bits each, in the present block: see [`super::dot`].
    pub widened_bytes: HashMap<(ir::Value, Reg, bool, bool), Reg>,
    /// Lines that the present block has asked for.
    pub prefetched: HashSet<Mem>,
    /// Whether the kernel has hints of its own.
    pub prefetches: bool,
    /// Loops of the kernel around the present block.
    pub depth: u32,
    arguments: Vec<Option<Reg>>,
    grid: [Reg; 3],
    workgroup: [Reg; 3],
}

/// The function of a kernel that has passed [`super::super::support::check`].
pub(super) fn function(kernel: &ir::Kernel, facts: Facts) -> Function {
    let mut f = Function::default();
    let entry = f.label();
    f.begin(entry, 0);
    let arguments = [(); 4].map(|()| f.reg(Class::General));
    f.push(Op::Entry(arguments));
    let mut lower = Lower {
        f,
        kernel,
        facts,
        defs: vec![None; kernel.types.len()],
        folded: HashSet::new(),
        values: vec![None; kernel.types.len()],
        vectors: HashMap::new(),
        bases: HashMap::new(),
        extended: vec![HashMap::new()],
        chains: HashMap::new(),
        uses: vec![0; kernel.types.len()],
        continued: HashMap::new(),
        widened_bytes: HashMap::new(),
        prefetched: HashSet::new(),
        prefetches: false,
        depth: 0,
        arguments: vec![None; kernel.params.len()],
        grid: [arguments[0]; 3],
        workgroup: [arguments[0]; 3],
    };
    lower.note(&kernel.body);
    lower.folded = fold::folded(kernel, &lower.uses, facts);
    lower.frame(arguments);
    let mut f = lower.f;
    fold::remove_unused(&mut f);
    f
}

impl<'a> Lower<'a> {
    fn note(&mut self, block: &'a ir::Block) {
        let mut here: HashSet<ir::Value> = HashSet::new();
        for statement in &block.statements {
            if let Inst::Dot4 { acc, .. } = &statement.inst {
                if here.contains(acc) {
                    self.continued.insert(*acc, &statement.inst);
                }
                here.extend(&statement.results);
            }
            self.prefetches |= matches!(statement.inst, Inst::Prefetch(_));
            if let [result] = statement.results[..] {
                self.defs[result.0 as usize] = Some(&statement.inst);
            }
            for value in statement.inst.operands() {
                self.uses[value.0 as usize] += 1;
            }
            match &statement.inst {
                Inst::For(for_) => self.note(&for_.body),
                Inst::If(if_) => {
                    self.note(&if_.then);
                    self.note(&if_.otherwise);
                }
                _ => {}
            }
        }
    }

    fn read_slot(&mut self, args: Reg, slot: usize) -> Arg {
        Arg::Mem(Mem { base: Base::Reg(args), index: None, offset: 8 * slot as i32, bytes: 8, broadcast: false })
    }

    fn compare(&mut self, size: Size, a: Reg, b: Reg) {
        self.push(M::Cmp, vec![Arg::Use(a, size), Arg::Use(b, size)]);
    }

    /// The loop over workgroups.
    fn frame(&mut self, [args, scratch, begin, end]: [Reg; 4]) {
        let has = |wanted: fn(&Builtin) -> bool| {
            self.defs.iter().flatten().any(|inst| matches!(inst, Inst::Builtin(builtin) if wanted(builtin)))
        };
        let needs_place = has(|builtin| matches!(builtin, Builtin::WorkgroupId(_)));
        let (first, head, exit) = (self.f.label(), self.f.label(), self.f.label());
        let (skip, again, done) = (self.f.label(), self.f.label(), self.f.label());
        self.compare(Size::B8, begin, end);
        self.f.push(Op::Branch(Condition::Below, first, skip));
        self.f.begin(skip, 0);
        self.f.push(Op::Jump(exit, Vec::new()));
        self.f.begin(first, 0);
        let mut start = vec![begin];
        if needs_place {
            let grid: Vec<Reg> = (0..2)
                .map(|axis| {
                    let slot = self.read_slot(args, self.kernel.params.len() + axis);
                    self.general(M::Mov, Size::B8, &[slot])
                })
                .collect();
            let (rows, x) = self.divide(false, Size::B8, begin, grid[0]);
            let (z, y) = self.divide(false, Size::B8, rows, grid[1]);
            start.extend([x, y, z]);
        }
        self.f.push(Op::Jump(head, start.clone()));

        let places: Vec<Reg> = start.iter().map(|_| self.f.param(head, Class::General)).collect();
        self.f.begin(head, 0);
        if let [_, x, y, z] = places[..] {
            self.workgroup = [x, y, z];
        }
        for i in 0..self.kernel.params.len() {
            let ty = match self.kernel.params[i].kind {
                ir::ParamKind::Buffer { .. } => None,
                ir::ParamKind::Scalar(scalar) => Some(scalar),
            };
            let slot = self.read_slot(args, i);
            let value = match ty {
                Some(Scalar::F32) => {
                    let Arg::Mem(place) = slot else { return };
                    self.vec(M::Vmovd, Size::X, &[Arg::Mem(Mem { bytes: 4, ..place })])
                }
                _ => self.general(M::Mov, Size::B8, &[slot]),
            };
            self.arguments[i] = Some(value);
            self.bases.insert(Memory::Param(i as u16), (value, 0));
        }
        for axis in 0..3 {
            let slot = self.read_slot(args, self.kernel.params.len() + axis);
            self.grid[axis] = self.general(M::Mov, Size::B8, &[slot]);
        }
        let mut at = 0;
        for (i, shared) in self.kernel.shared.iter().enumerate() {
            at = (at + i64::from(shared.align) - 1) / i64::from(shared.align) * i64::from(shared.align);
            self.bases.insert(Memory::Shared(i as u16), (scratch, at));
            at += i64::from(shared.bytes);
        }
        self.block(&self.kernel.body);

        let next = self.general2(M::Add, Size::B8, places[0], Arg::Imm(1));
        let mut following = vec![next];
        if let [_, x, y, z] = places[..] {
            // A finished row raises y, a finished plane z.
            let slots: Vec<Reg> = (0..2)
                .map(|axis| {
                    let slot = self.read_slot(args, self.kernel.params.len() + axis);
                    self.general(M::Mov, Size::B8, &[slot])
                })
                .collect();
            let x = self.general2(M::Add, Size::B8, x, Arg::Imm(1));
            let row_ends = self.set_if(Condition::Zero, Size::B8, x, slots[0]);
            let y = self.general2(M::Add, Size::B8, y, Arg::Use(row_ends, Size::B8));
            let plane_ends = self.set_if(Condition::Zero, Size::B8, y, slots[1]);
            let z = self.general2(M::Add, Size::B8, z, Arg::Use(plane_ends, Size::B8));
            let keep = |this: &mut Self, value: Reg, ends: Reg| {
                let mask = this.general2(M::Sub, Size::B8, ends, Arg::Imm(1));
                this.general2(M::And, Size::B8, value, Arg::Use(mask, Size::B8))
            };
            let (x, y) = (keep(self, x, row_ends), keep(self, y, plane_ends));
            following.extend([x, y, z]);
        }
        self.compare(Size::B8, next, end);
        self.f.push(Op::Branch(Condition::Below, again, done));
        self.f.begin(again, 0);
        self.f.push(Op::Jump(head, following));
        self.f.begin(done, 0);
        self.f.push(Op::Jump(exit, Vec::new()));
        self.f.begin(exit, 0);
        self.f.push(Op::Return);
    }

    fn statement(&mut self, inst: &'a Inst, result: Option<ir::Value>) {
        if result.is_some_and(|value| self.folded.contains(&value)) {
            return;
        }
        let ty = result.map_or(Type::scalar(Scalar::I32), |value| self.kernel.ty(value));
        let repr = match inst {
            // Constants are made where they are used.
            Inst::Const(_) | Inst::Barrier | Inst::For(_) | Inst::If(_) | Inst::Yield(_) => return,
            // Refused by `support` before.
            Inst::Mma { .. }
            | Inst::AsyncCopy { .. }
            | Inst::AsyncCommit
            | Inst::AsyncWait(_)
            | Inst::Asynchronous(_)
            | Inst::Cooperative(_) => return,
            Inst::Prefetch(address) => {
                let mem = self.place(address, 64);
                return self.push(M::Prefetcht0, vec![Arg::Mem(mem)]);
            }
            Inst::Store { address, value, .. } => return self.store(address, *value),
            Inst::Arg(index) => {
                let reg = self.arguments[*index as usize].unwrap_or(self.grid[0]);
                if ty.scalar == Scalar::F32 { Repr::vector(Size::X, vec![reg]) } else { Repr::general(ty.scalar, reg) }
            }
            Inst::Builtin(builtin) => {
                let reg = match builtin {
                    Builtin::WorkgroupId(axis) => self.workgroup[*axis as usize],
                    Builtin::WorkgroupCount(axis) => self.grid[*axis as usize],
                    Builtin::LocalId(_) | Builtin::Lane | Builtin::Subgroup => self.int(Size::B4, 0),
                };
                Repr::general(Scalar::I32, reg)
            }
            Inst::Bin(op, a, b) => self.bin(*op, *a, *b),
            Inst::Un(op, a) => self.un(*op, *a),
            Inst::Cmp(op, a, b) => self.cmp(*op, *a, *b),
            Inst::Select { cond, a, b } => self.select(*cond, *a, *b),
            Inst::Cast(op, a) => self.cast(*op, *a, ty),
            Inst::Bitcast(a) => self.bitcast(*a, ty),
            Inst::Fma(a, b, c) => self.fma(*a, *b, *c),
            Inst::Vector(lanes) => self.vector(lanes, ty),
            Inst::Splat(a) => self.splat(*a, ty),
            Inst::Extract { vector, lane } => self.extract(*vector, *lane),
            Inst::Swizzle { a, b, lanes } => self.swizzle(*a, *b, lanes),
            Inst::Load { address, .. } => self.load(address, ty),
            Inst::Unpack { a, shift, bits, signed } => self.unpack(*a, *shift, *bits, *signed, ty),
            Inst::Dot4 { signs, a_bits, a, b, acc } => match self.dot4(*signs, *a_bits, [*a, *b, *acc], result) {
                Some(repr) => repr,
                None => return,
            },
            Inst::Dot2 { a, b, acc } => self.dot2([*a, *b, *acc]),
            Inst::PermuteBytes { table, index } => self.permute_bytes(*table, *index),
            Inst::PermuteLong { low, high, index } => self.permute_long([*low, *high], *index),
            // The subgroup is this thread alone.
            Inst::Shuffle { value, .. } | Inst::SubgroupReduce(_, value) => self.get(*value),
            Inst::AtomicAdd { address, value } => self.atomic_add(address, *value),
        };
        if let Some(result) = result {
            self.define(result, repr);
        }
    }
}
