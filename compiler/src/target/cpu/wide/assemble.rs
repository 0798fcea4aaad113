//! Bytes: a function with registers allocated becomes position-independent code with its constants behind it.
//!
//! Branches take 32-bit distances. A block that only jumps on vanishes, so a loop whose carried values stay in their
//! registers ends with one conditional branch. Heads of loops lie at multiples of 32.

use iced_x86::{Code, Encoder, Instruction, Mnemonic};
use regalloc2 as ra;

use super::allocate::{Convention, RDX, RSP, View, class_from, environment};
use super::encode::{Placed, PlacedBase, instruction, register, whole};
use super::machine::{Arg, Base, Class, Condition, Function, Inst, Label, Size};
use super::report::{Report, inner_of, loops_of};

/// The bytes of a function, its code first, and the report.
pub(super) fn assemble(function: &Function, convention: Convention, evex: bool) -> Result<(Vec<u8>, Report), String> {
    let vector_bytes = if evex { 64 } else { 32 };
    let view = View::new(function, convention, vector_bytes);
    let options =
        ra::RegallocOptions { verbose_log: false, validate_ssa: cfg!(debug_assertions), ..Default::default() };
    let allocated = ra::run(&view, &environment(convention, evex), &options).map_err(|error| format!("{error:?}"))?;
    let mut writer = Writer {
        encoder: Encoder::new(64),
        at: 0,
        evex,
        frame: Frame::new(&allocated, convention),
        fixes: Vec::new(),
        report: Report::default(),
    };
    let empty: Vec<bool> =
        (0..function.order.len()).map(|place| jumps_on(function, &allocated, &view, place)).collect();
    let mut place_of = vec![0; function.blocks.len()];
    for (place, label) in function.order.iter().enumerate() {
        place_of[label.0 as usize] = place;
    }
    let resolve = |label: Label| {
        let mut place = place_of[label.0 as usize];
        while empty[place] {
            match function.blocks[function.order[place].0 as usize].insts.last() {
                Some(Inst::Jump(to, _)) => place = place_of[to.0 as usize],
                _ => break,
            }
        }
        place
    };
    let mut starts = vec![0usize; function.order.len()];
    let loops = loops_of(function, &place_of);
    let inner = inner_of(&loops, function.order.len());
    for place in 0..function.order.len() {
        if empty[place] {
            continue;
        }
        let block = &function.blocks[function.order[place].0 as usize];
        let next = (place + 1..function.order.len()).find(|&next| !empty[next]);
        if loops.iter().any(|range| *range.start() == place) && block.depth > 0 {
            writer.align(32)?;
        }
        starts[place] = writer.at;
        for item in allocated.block_insts_and_edits(&view, ra::Block::new(place)) {
            match item {
                ra::InstOrEdit::Edit(ra::Edit::Move { from, to }) => {
                    writer.transfer(*from, *to, (block.depth, inner[place]))?;
                }
                ra::InstOrEdit::Inst(number) => {
                    let allocs = allocated.inst_allocs(number);
                    match view.inst(number) {
                        Inst::Jump(to, _) => {
                            let to = resolve(*to);
                            if next != Some(to) {
                                writer.branch(Code::Jmp_rel32_64, to)?;
                            }
                        }
                        Inst::Branch(condition, yes, no) => {
                            let (yes, no) = (resolve(*yes), resolve(*no));
                            if next == Some(yes) {
                                writer.branch(branch_code(*condition, true), no)?;
                            } else {
                                writer.branch(branch_code(*condition, false), yes)?;
                                if next != Some(no) {
                                    writer.branch(Code::Jmp_rel32_64, no)?;
                                }
                            }
                        }
                        inst => writer.inst(inst, allocs)?,
                    }
                }
            }
        }
    }
    writer.finish(&starts, &function.constants)
}

/// Whether a block only jumps on, with no moves before that.
fn jumps_on(function: &Function, allocated: &ra::Output, view: &View<'_>, place: usize) -> bool {
    let block = &function.blocks[function.order[place].0 as usize];
    let [Inst::Jump(..)] = block.insts[..] else { return false };
    allocated.block_insts_and_edits(view, ra::Block::new(place)).all(|item| match item {
        ra::InstOrEdit::Edit(ra::Edit::Move { from, to }) => from == to,
        ra::InstOrEdit::Inst(_) => true,
    })
}

fn branch_code(condition: Condition, inverted: bool) -> Code {
    match (condition, inverted) {
        (Condition::Zero, false) | (Condition::NotZero, true) => Code::Je_rel32_64,
        (Condition::NotZero, false) | (Condition::Zero, true) => Code::Jne_rel32_64,
        (Condition::Less, false) => Code::Jl_rel32_64,
        (Condition::Less, true) => Code::Jge_rel32_64,
        (Condition::LessOrEqual, false) | (Condition::Greater, true) => Code::Jle_rel32_64,
        (Condition::Greater, false) | (Condition::LessOrEqual, true) => Code::Jg_rel32_64,
        (Condition::Below, false) => Code::Jb_rel32_64,
        (Condition::Below, true) => Code::Jae_rel32_64,
        (Condition::Above, false) => Code::Ja_rel32_64,
        (Condition::Above, true) => Code::Jbe_rel32_64,
    }
}

/// What lies on the stack: saved vectors, then spilled values; saved general registers are pushed above.
struct Frame {
    bytes: i32,
    pushed: Vec<usize>,
    saved: Vec<usize>,
    spills: i32,
    probes: bool,
}

impl Frame {
    fn new(allocated: &ra::Output, convention: Convention) -> Frame {
        let mut used = ra::PRegSet::empty();
        let note = |used: &mut ra::PRegSet, alloc: &ra::Allocation| {
            if let Some(reg) = alloc.as_reg() {
                used.add(reg);
            }
        };
        allocated.allocs.iter().for_each(|alloc| note(&mut used, alloc));
        for (_, ra::Edit::Move { from, to }) in &allocated.edits {
            note(&mut used, from);
            note(&mut used, to);
        }
        let kept = |class: Class, ra_class: ra::RegClass, count: usize| -> Vec<usize> {
            (0..count).filter(|&n| convention.keeps(class, n) && used.contains(ra::PReg::new(n, ra_class))).collect()
        };
        let pushed = kept(Class::General, ra::RegClass::Int, 16);
        let saved = kept(Class::Vector, ra::RegClass::Float, 16);
        let spills = 16 * saved.len() as i32;
        let bytes = (spills + 8 * allocated.num_spillslots as i32 + 15) / 16 * 16;
        Frame { bytes, pushed, saved, spills, probes: convention == Convention::Windows }
    }

    fn slot(&self, slot: usize, bytes: u32) -> Placed {
        Placed::Mem {
            base: PlacedBase::Reg(RSP),
            index: None,
            offset: self.spills + 8 * slot as i32,
            bytes,
            broadcast: false,
        }
    }

    fn saved_at(&self, i: usize) -> Placed {
        Placed::Mem { base: PlacedBase::Reg(RSP), index: None, offset: 16 * i as i32, bytes: 16, broadcast: false }
    }
}

/// A place whose bytes depend on where something else comes to lie.
enum Fix {
    /// The last four bytes before `end`: the distance to a block.
    Branch { end: usize, to: usize },
    /// Four bytes at `at` of an instruction that ends at `end`: the distance to a constant.
    Constant { at: usize, end: usize, offset: u64 },
}

struct Writer {
    encoder: Encoder,
    at: usize,
    evex: bool,
    frame: Frame,
    fixes: Vec<Fix>,
    report: Report,
}

impl Writer {
    fn encode(&mut self, made: &Instruction) -> Result<(), String> {
        let rip = made.is_ip_rel_memory_operand();
        let mut made = *made;
        let offset = made.memory_displacement64();
        if rip {
            // Any target near enough will do until constants have their place.
            made.set_memory_displacement64(self.at as u64);
        }
        let length = self
            .encoder
            .encode(&made, self.at as u64)
            .map_err(|error| format!("{made:?} {:?}: {error}", made.code()))?;
        if rip {
            let at = self.at + self.encoder.get_constant_offsets().displacement_offset();
            self.fixes.push(Fix::Constant { at, end: self.at + length, offset });
        }
        self.at += length;
        self.report.instructions += 1;
        Ok(())
    }

    fn op(&mut self, mnemonic: Mnemonic, operands: &[Placed]) -> Result<(), String> {
        let made = instruction(mnemonic, operands, None, self.evex)?;
        self.encode(&made)
    }

    fn branch(&mut self, code: Code, to: usize) -> Result<(), String> {
        let made = Instruction::with_branch(code, self.at as u64).map_err(|error| error.to_string())?;
        self.encode(&made)?;
        self.fixes.push(Fix::Branch { end: self.at, to });
        Ok(())
    }

    fn align(&mut self, to: usize) -> Result<(), String> {
        let mut room = self.at.next_multiple_of(to) - self.at;
        while room > 0 {
            let length = room.min(9);
            // The multi-byte forms of nop that both vendors' manuals list.
            const NOPS: [&[u8]; 9] = [
                &[0x90],
                &[0x66, 0x90],
                &[0x0f, 0x1f, 0x00],
                &[0x0f, 0x1f, 0x40, 0x00],
                &[0x0f, 0x1f, 0x44, 0x00, 0x00],
                &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
                &[0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00],
                &[0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
                &[0x66, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
            ];
            let made = Instruction::with_declare_byte(NOPS[length - 1]).map_err(|error| error.to_string())?;
            self.encode(&made)?;
            room -= length;
        }
        Ok(())
    }

    fn transfer(
        &mut self,
        from: ra::Allocation,
        to: ra::Allocation,
        (depth, inner): (u32, bool),
    ) -> Result<(), String> {
        if from == to {
            return Ok(());
        }
        let Some(reg) = from.as_reg().or(to.as_reg()) else {
            return Err(format!("a move from {from} to {to}"));
        };
        let class = class_from(reg.class());
        let (mnemonic, size) = whole(class, self.evex);
        let stack = from.is_stack() || to.is_stack();
        let place = |frame: &Frame, alloc: ra::Allocation| match (alloc.as_reg(), alloc.as_stack()) {
            (Some(reg), _) => Placed::Reg(reg.hw_enc(), size),
            (None, slot) => frame.slot(slot.map_or(0, |slot| slot.index()), size.bytes()),
        };
        let operands = [place(&self.frame, to), place(&self.frame, from)];
        if !stack {
            self.report.moves += 1;
        } else {
            self.report.spills += 1;
            match class {
                _ if depth == 0 => {}
                Class::General => self.report.general_spills_in_loops += 1,
                Class::Vector | Class::Mask => {
                    self.report.vector_spills_in_loops += 1;
                    self.report.vector_spills_in_inner_loops += usize::from(inner);
                }
            }
        }
        self.op(mnemonic, &operands)
    }

    fn prologue(&mut self) -> Result<(), String> {
        for &number in &self.frame.pushed.clone() {
            let made = Instruction::with1(Code::Push_r64, register(number, Size::B8)).map_err(|e| e.to_string())?;
            self.encode(&made)?;
        }
        if self.frame.probes {
            // Windows grows the stack page by page: each page is touched before the next one is used.
            for page in 1..=self.frame.bytes / 4096 {
                let place = Placed::Mem {
                    base: PlacedBase::Reg(RSP),
                    index: None,
                    offset: -4096 * page,
                    bytes: 8,
                    broadcast: false,
                };
                self.op(Mnemonic::Or, &[place, Placed::Imm(0)])?;
            }
        }
        if self.frame.bytes > 0 {
            self.op(Mnemonic::Sub, &[Placed::Reg(RSP, Size::B8), Placed::Imm(i64::from(self.frame.bytes))])?;
        }
        for (i, &number) in self.frame.saved.clone().iter().enumerate() {
            let place = self.frame.saved_at(i);
            self.op(Mnemonic::Vmovups, &[place, Placed::Reg(number, Size::X)])?;
        }
        Ok(())
    }

    fn epilogue(&mut self) -> Result<(), String> {
        let plain = |code: Code| Instruction::with(code);
        self.encode(&plain(Code::VEX_Vzeroupper))?;
        for (i, &number) in self.frame.saved.clone().iter().enumerate() {
            let place = self.frame.saved_at(i);
            self.op(Mnemonic::Vmovups, &[Placed::Reg(number, Size::X), place])?;
        }
        if self.frame.bytes > 0 {
            self.op(Mnemonic::Add, &[Placed::Reg(RSP, Size::B8), Placed::Imm(i64::from(self.frame.bytes))])?;
        }
        for &number in self.frame.pushed.clone().iter().rev() {
            let made = Instruction::with1(Code::Pop_r64, register(number, Size::B8)).map_err(|e| e.to_string())?;
            self.encode(&made)?;
        }
        self.encode(&plain(Code::Retnq))
    }

    /// Everything but jumps and branches.
    fn inst(&mut self, inst: &Inst, allocs: &[ra::Allocation]) -> Result<(), String> {
        let mut regs = Vec::with_capacity(allocs.len());
        for alloc in allocs {
            regs.push(alloc.as_reg().ok_or_else(|| format!("{inst:?} got {alloc}"))?.hw_enc());
        }
        match inst {
            Inst::Op { mnemonic, args, mask } => {
                let mut next = regs.iter().copied();
                let mut take = || next.next().unwrap_or(0);
                let mut operands = Vec::with_capacity(args.len());
                for arg in args {
                    operands.push(match *arg {
                        Arg::Def(_, size) | Arg::Use(_, size) => Placed::Reg(take(), size),
                        Arg::Change(_, _, size) => {
                            take();
                            Placed::Reg(take(), size)
                        }
                        Arg::Imm(value) => Placed::Imm(value),
                        Arg::Mem(mem) => {
                            let (base, offset) = match mem.base {
                                Base::Reg(_) => (PlacedBase::Reg(take()), mem.offset),
                                Base::Constant(at) => (PlacedBase::Constants, at as i32 + mem.offset),
                            };
                            let index = mem.index.map(|(_, scale)| (take(), scale));
                            Placed::Mem { base, index, offset, bytes: mem.bytes, broadcast: mem.broadcast }
                        }
                    });
                }
                let mask = mask.map(|(_, zeroing)| (take(), zeroing));
                let made = instruction(*mnemonic, &operands, mask, self.evex)?;
                self.encode(&made)
            }
            Inst::Zero(_) => {
                let place = Placed::Reg(regs[0], Size::X);
                self.op(if self.evex { Mnemonic::Vpxord } else { Mnemonic::Vpxor }, &[place; 3])
            }
            Inst::Entry(_) => self.prologue(),
            Inst::Divide { signed, size, .. } => {
                let divisor = Placed::Reg(regs[1], *size);
                if *signed {
                    self.encode(&Instruction::with(if *size == Size::B8 { Code::Cqo } else { Code::Cdq }))?;
                    self.op(Mnemonic::Idiv, &[divisor])
                } else {
                    self.op(Mnemonic::Xor, &[Placed::Reg(RDX, Size::B4), Placed::Reg(RDX, Size::B4)])?;
                    self.op(Mnemonic::Div, &[divisor])
                }
            }
            Inst::Return => self.epilogue(),
            Inst::Jump(..) | Inst::Branch(..) => Ok(()),
        }
    }

    /// Places the constants and patches the distances.
    fn finish(mut self, starts: &[usize], constants: &[u8]) -> Result<(Vec<u8>, Report), String> {
        let mut code = self.encoder.take_buffer();
        self.report.code_bytes = code.len();
        self.report.constant_bytes = constants.len();
        let first = if constants.is_empty() { code.len() } else { code.len().next_multiple_of(64) };
        for fix in &self.fixes {
            let (at, end, to) = match *fix {
                Fix::Branch { end, to } => (end - 4, end, starts[to] as i64),
                Fix::Constant { at, end, offset } => (at, end, first as i64 + offset as i64),
            };
            let distance = i32::try_from(to - end as i64).map_err(|_| "the code is larger than 2 GiB".to_string())?;
            code[at..at + 4].copy_from_slice(&distance.to_le_bytes());
        }
        code.resize(first, 0xcc);
        code.extend_from_slice(constants);
        Ok((code, self.report))
    }
}
