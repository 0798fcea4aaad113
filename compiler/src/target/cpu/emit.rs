//! The function around a kernel: arguments, the loop over workgroups, and structured control flow.
//!
//! `for` becomes one block with a compare-and-branch at its end; carried values are block parameters. Constants are
//! made where a block first uses them, so that none of them holds a register across a loop.

mod control;

use std::collections::{HashMap, HashSet};

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{self as clif, AbiParam, BlockArg, InstBuilder, MemFlagsData, Signature, types};
use cranelift_codegen::isa::CallConv;
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};

use super::level::{Arch, Facts, Level};
use super::value::{Repr, lane_type, piece_count, vector_type};
use crate::ir::{self, Builtin, Constant, Inst, Memory, Scalar};

/// Emits one kernel's function.
pub(super) struct Emitter<'a> {
    pub b: FunctionBuilder<'a>,
    pub kernel: &'a ir::Kernel,
    pub facts: Facts,
    /// The defining instruction of each value that has one of its own.
    pub defs: Vec<Option<&'a Inst>>,
    /// Loads of 32- and 64-bit integers that only splats use: they are read as floats, which broadcast from memory.
    pub broadcast: HashSet<ir::Value>,
    /// Dot products whose results stay in 16 bits for the next one: see [`super::dot_runs`].
    pub continued: HashSet<ir::Value>,
    /// Those results: the accumulator of the run's first dot product, and the 16-bit sums so far.
    pub pending: HashMap<ir::Value, (Repr, Vec<clif::Value>)>,
    /// Start of each memory, and what lies constantly before it.
    pub bases: HashMap<Memory, (clif::Value, i64)>,
    /// Sums of memory start and index, innermost open block last.
    pub addresses: Vec<HashMap<(Memory, ir::Value), clif::Value>>,
    /// Counters of 32-bit loops as the 64-bit numbers that they are kept in.
    pub wide_counters: HashMap<ir::Value, clif::Value>,
    constants: HashMap<ir::Value, Repr>,
    /// Vectors of constants of the present CLIF block, by type and bytes: loads of them cost a port that weights need.
    pub vectors: HashMap<(clif::Type, Vec<u8>), clif::Value>,
    values: Vec<Option<Repr>>,
    args: Vec<Option<clif::Value>>,
    grid: [clif::Value; 3],
    workgroup: [clif::Value; 3],
}

/// Makes the function of a kernel that [`super::support::check`] let pass.
pub(super) fn function(kernel: &ir::Kernel, level: &Level) -> clif::Function {
    let mut signature = Signature::new(CallConv::triple_default(level.isa.triple()));
    signature.params = vec![AbiParam::new(types::I64); 4];
    let mut function = clif::Function::with_name_signature(clif::UserFuncName::user(0, 0), signature);
    let mut context = FunctionBuilderContext::new();
    let mut b = FunctionBuilder::new(&mut function, &mut context);
    let entry = b.create_block();
    b.append_block_params_for_function_params(entry);
    b.switch_to_block(entry);
    let nothing = b.block_params(entry)[0];
    let mut emitter = Emitter {
        b,
        kernel,
        facts: level.facts,
        defs: vec![None; kernel.types.len()],
        broadcast: HashSet::new(),
        continued: match level.facts {
            Facts { arch: Arch::X86, vnni: false, .. } => super::dot_runs::continued(kernel),
            _ => HashSet::new(),
        },
        pending: HashMap::new(),
        bases: HashMap::new(),
        addresses: vec![HashMap::new()],
        wide_counters: HashMap::new(),
        constants: HashMap::new(),
        vectors: HashMap::new(),
        values: vec![None; kernel.types.len()],
        args: vec![None; kernel.params.len()],
        grid: [nothing; 3],
        workgroup: [nothing; 3],
    };
    emitter.note_definitions(&kernel.body);
    emitter.note_broadcasts();
    emitter.frame(entry);
    emitter.b.seal_all_blocks();
    let config = level.isa.frontend_config();
    emitter.b.finalize(config);
    function
}

/// Flags of an access that cannot fault; `aligned` if its address is a multiple of its size.
pub(super) fn flags(aligned: bool) -> MemFlagsData {
    let flags = MemFlagsData::new().with_notrap();
    if aligned { flags.with_aligned() } else { flags }
}

impl<'a> Emitter<'a> {
    fn note_definitions(&mut self, block: &'a ir::Block) {
        for statement in &block.statements {
            if let [result] = statement.results[..] {
                self.defs[result.0 as usize] = Some(&statement.inst);
            }
            match &statement.inst {
                Inst::For(for_) => self.note_definitions(&for_.body),
                Inst::If(if_) => {
                    self.note_definitions(&if_.then);
                    self.note_definitions(&if_.otherwise);
                }
                _ => {}
            }
        }
    }

    fn note_broadcasts(&mut self) {
        let mut others = HashSet::new();
        let mut splatted = HashSet::new();
        uses(&self.kernel.body, &mut |inst, value| {
            if matches!(inst, Inst::Splat(_)) {
                splatted.insert(value)
            } else {
                others.insert(value)
            };
        });
        self.broadcast = splatted
            .difference(&others)
            .copied()
            .filter(|value| {
                matches!(self.defs[value.0 as usize], Some(Inst::Load { .. }))
                    && matches!(self.kernel.ty(*value).scalar, Scalar::I32 | Scalar::I64)
            })
            .collect();
    }

    /// Reads the arguments and loops over the workgroups.
    fn frame(&mut self, entry: clif::Block) {
        let &[args, scratch, begin, end] = self.b.block_params(entry) else { return };
        for (i, param) in self.kernel.params.iter().enumerate() {
            let ty = match param.kind {
                ir::ParamKind::Buffer { .. } => types::I64,
                ir::ParamKind::Scalar(scalar) => lane_type(scalar),
            };
            let value = self.b.ins().load(ty, flags(true), args, 8 * i as i32);
            self.args[i] = Some(value);
            self.bases.insert(Memory::Param(i as u16), (value, 0));
        }
        for axis in 0..3 {
            let slot = 8 * (self.kernel.params.len() + axis) as i32;
            self.grid[axis] = self.b.ins().load(types::I64, flags(true), args, slot);
        }
        let mut at = 0;
        for (i, shared) in self.kernel.shared.iter().enumerate() {
            at = (at + i64::from(shared.align) - 1) / i64::from(shared.align) * i64::from(shared.align);
            self.bases.insert(Memory::Shared(i as u16), (scratch, at));
            at += i64::from(shared.bytes);
        }

        let needs_place = self.defs.iter().flatten().any(|inst| matches!(inst, Inst::Builtin(Builtin::WorkgroupId(_))));
        let (first, head, exit) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        let any = self.b.ins().icmp(IntCC::UnsignedLessThan, begin, end);
        self.b.ins().brif(any, first, &[], exit, &[]);

        self.b.switch_to_block(first);
        let mut start = vec![begin];
        if needs_place {
            let rows = self.b.ins().udiv(begin, self.grid[0]);
            let x = self.b.ins().urem(begin, self.grid[0]);
            let y = self.b.ins().urem(rows, self.grid[1]);
            let z = self.b.ins().udiv(rows, self.grid[1]);
            start.extend([x, y, z]);
        }
        self.jump(head, &start);

        self.b.switch_to_block(head);
        let places: Vec<clif::Value> = start.iter().map(|_| self.b.append_block_param(head, types::I64)).collect();
        if let [_, x, y, z] = places[..] {
            self.workgroup = [x, y, z];
        }
        self.block(&self.kernel.body);

        let next = self.b.ins().iadd_imm_s(places[0], 1);
        let mut following = vec![next];
        if let [_, x, y, z] = places[..] {
            let zero = self.b.ins().iconst(types::I64, 0);
            let x = self.b.ins().iadd_imm_s(x, 1);
            let row_ends = self.b.ins().icmp(IntCC::Equal, x, self.grid[0]);
            let carry = self.b.ins().uextend(types::I64, row_ends);
            let y = self.b.ins().iadd(y, carry);
            let plane_ends = self.b.ins().icmp(IntCC::Equal, y, self.grid[1]);
            let carry = self.b.ins().uextend(types::I64, plane_ends);
            let z = self.b.ins().iadd(z, carry);
            let x = self.b.ins().select(row_ends, zero, x);
            let y = self.b.ins().select(plane_ends, zero, y);
            following.extend([x, y, z]);
        }
        let more = self.b.ins().icmp(IntCC::UnsignedLessThan, next, end);
        let following: Vec<BlockArg> = following.into_iter().map(BlockArg::Value).collect();
        self.b.ins().brif(more, head, &following, exit, &[]);

        self.b.switch_to_block(exit);
        self.b.ins().return_(&[]);
    }

    /// The CLIF values of an IR value; constants are made here.
    pub(super) fn get(&mut self, value: ir::Value) -> Repr {
        if let Some(repr) = &self.values[value.0 as usize] {
            return repr.clone();
        }
        if let Some(repr) = self.constants.get(&value) {
            return repr.clone();
        }
        let Some(Inst::Const(constant)) = self.defs[value.0 as usize] else {
            unreachable!("the verifier let {value} be used before it is defined");
        };
        let repr = self.constant(constant, self.kernel.ty(value));
        self.constants.insert(value, repr.clone());
        repr
    }

    /// The bits of a value that is the same known number in every lane.
    pub(super) fn known(&self, value: ir::Value) -> Option<u64> {
        match self.defs[value.0 as usize]? {
            Inst::Const(Constant::Splat(bits)) => Some(*bits),
            Inst::Const(Constant::Lanes(lanes)) => lanes.iter().all(|&bits| bits == lanes[0]).then_some(lanes[0]),
            Inst::Splat(scalar) => self.known(*scalar),
            _ => None,
        }
    }

    fn constant(&mut self, constant: &Constant, ty: ir::Type) -> Repr {
        let lane = lane_type(ty.scalar);
        // A bool in a vector is a mask lane.
        let of = |bits: u64| if ty.scalar == Scalar::Bool && ty.lanes > 1 { 0u64.wrapping_sub(bits & 1) } else { bits };
        let lanes: Vec<u64> = match constant {
            Constant::Splat(bits) => vec![of(*bits); ty.lanes as usize],
            Constant::Lanes(lanes) => lanes.iter().map(|&bits| of(bits)).collect(),
        };
        if ty.lanes == 1 {
            let value = self.number(lane, lanes[0]);
            return Repr::scalar(lane, value);
        }
        let width = lane.bytes() as usize;
        let mut bytes: Vec<u8> = lanes.iter().flat_map(|bits| bits.to_le_bytes()[..width].to_vec()).collect();
        // A short vector repeats over its piece, so that equal constants of several lengths are one constant.
        let own = bytes.clone();
        while bytes.len() < 16 {
            bytes.extend_from_slice(&own);
        }
        let mut made: Vec<(Vec<u8>, clif::Value)> = Vec::new();
        let pieces = bytes
            .chunks(16)
            .take(piece_count(lane, ty.lanes))
            .map(|piece| {
                if let Some((_, value)) = made.iter().find(|(bytes, _)| bytes == piece) {
                    return *value;
                }
                let value = self.vconst(vector_type(lane), piece.to_vec());
                made.push((piece.to_vec(), value));
                value
            })
            .collect();
        Repr { lane, lanes: ty.lanes, pieces }
    }

    fn define(&mut self, value: ir::Value, repr: Repr) {
        self.values[value.0 as usize] = Some(repr);
    }

    /// A value in the shape that its type alone decides: a vector of bools has byte lanes.
    fn canonical(&mut self, value: ir::Value) -> Repr {
        let repr = self.get(value);
        let ty = self.kernel.ty(value);
        if ty.scalar == Scalar::Bool && ty.lanes > 1 { self.mask_of_width(&repr, 8) } else { repr }
    }

    fn canonical_pieces(&mut self, values: &[ir::Value]) -> Vec<clif::Value> {
        values.iter().flat_map(|&value| self.canonical(value).pieces).collect()
    }

    fn statement(&mut self, inst: &'a Inst, result: Option<ir::Value>) {
        let repr = match inst {
            // Constants are made where they are used.
            Inst::Const(_) | Inst::Barrier | Inst::For(_) | Inst::If(_) | Inst::Yield(_) => return,
            // Cranelift has no instruction for the hint.
            Inst::Prefetch(_) => return,
            // Refused by `support` before.
            Inst::Mma { .. }
            | Inst::AsyncCopy { .. }
            | Inst::AsyncCommit
            | Inst::AsyncWait(_)
            | Inst::Asynchronous(_)
            | Inst::Cooperative(_) => return,
            Inst::Store { address, align, value } => {
                let value = self.get(*value);
                return self.store(address, *align, &value);
            }
            Inst::Arg(index) => {
                let ty = lane_type(self.scalar_of(result));
                Repr::scalar(ty, self.args[*index as usize].unwrap_or(self.grid[0]))
            }
            Inst::Builtin(builtin) => self.builtin(*builtin),
            Inst::Bin(op, a, b) => self.bin(*op, *a, *b),
            Inst::Un(op, a) => self.un(*op, *a),
            Inst::Cmp(op, a, b) => self.cmp(*op, *a, *b),
            Inst::Select { cond, a, b } => self.select(*cond, *a, *b),
            Inst::Cast(op, a) => self.cast(*op, *a, self.scalar_of(result)),
            Inst::Bitcast(a) => {
                let a = self.get(*a);
                self.bitcast(&a, self.type_of_result(result))
            }
            Inst::Fma(a, b, c) => self.fma(*a, *b, *c),
            Inst::Vector(lanes) => self.vector(lanes),
            Inst::Splat(a) => self.splat(*a, self.type_of_result(result)),
            Inst::Extract { vector, lane } => {
                let bool_lane = self.kernel.ty(*vector).scalar == Scalar::Bool;
                let vector = self.get(*vector);
                let value = self.lane(&vector, *lane);
                if bool_lane && vector.lanes > 1 {
                    let value = if vector.lane == types::I8 { value } else { self.b.ins().ireduce(types::I8, value) };
                    Repr::scalar(types::I8, self.b.ins().band_imm_u(value, 1))
                } else {
                    Repr::scalar(vector.lane, value)
                }
            }
            Inst::Swizzle { a, b, lanes } => self.swizzle(*a, *b, lanes),
            Inst::Load { address, align } => {
                let ty = self.type_of_result(result);
                let as_float = result.is_some_and(|value| self.broadcast.contains(&value));
                self.load(address, *align, ty, as_float)
            }
            Inst::Unpack { a, shift, bits, signed } => {
                self.unpack(*a, *shift, *bits, *signed, self.type_of_result(result))
            }
            Inst::Dot4 { signs, a_bits, a, b, acc } => {
                let goes_on = result.filter(|value| self.continued.contains(value));
                match goes_on {
                    Some(result) => return self.dot4_continued(*a, *b, *acc, result),
                    None => self.dot4(*signs, *a_bits, *a, *b, *acc),
                }
            }
            Inst::Dot2 { .. } => unreachable!("the pass list expands dot2"),
            Inst::PermuteBytes { table, index } => self.permute_bytes(*table, *index),
            Inst::PermuteLong { .. } => unreachable!("`support` refuses permute_long"),
            // The subgroup is this thread alone.
            Inst::Shuffle { value, .. } | Inst::SubgroupReduce(_, value) => self.get(*value),
            Inst::AtomicAdd { address, value } => {
                let value = self.get(*value).one();
                self.atomic_add(address, value)
            }
        };
        if let Some(result) = result {
            self.define(result, repr);
        }
    }

    fn type_of_result(&self, result: Option<ir::Value>) -> ir::Type {
        result.map_or(Scalar::I32.into(), |value| self.kernel.ty(value))
    }

    fn scalar_of(&self, result: Option<ir::Value>) -> Scalar {
        self.type_of_result(result).scalar
    }

    fn builtin(&mut self, builtin: Builtin) -> Repr {
        let value = match builtin {
            Builtin::WorkgroupId(axis) => self.b.ins().ireduce(types::I32, self.workgroup[axis as usize]),
            Builtin::WorkgroupCount(axis) => self.b.ins().ireduce(types::I32, self.grid[axis as usize]),
            Builtin::LocalId(_) | Builtin::Lane | Builtin::Subgroup => self.b.ins().iconst(types::I32, 0),
        };
        Repr::scalar(types::I32, value)
    }
}

/// Calls `f` with each operand of each instruction.
pub(super) fn uses(block: &ir::Block, f: &mut impl FnMut(&Inst, ir::Value)) {
    for statement in &block.statements {
        let inst = &statement.inst;
        let mut each = |values: &[ir::Value]| values.iter().for_each(|&value| f(inst, value));
        match inst {
            Inst::Const(_) | Inst::Arg(_) | Inst::Builtin(_) | Inst::Barrier => {}
            // `support` has refused these.
            Inst::AsyncCommit | Inst::AsyncWait(_) | Inst::Asynchronous(_) | Inst::Cooperative(_) => {}
            Inst::AsyncCopy { to, from, .. } => {
                each(to.index.as_slice());
                each(from.index.as_slice());
            }
            Inst::Mma { a, b, acc, .. } => each(&[*a, *b, *acc]),
            Inst::Bin(_, a, b) | Inst::Cmp(_, a, b) => each(&[*a, *b]),
            Inst::Un(_, a) | Inst::Cast(_, a) | Inst::Bitcast(a) | Inst::Splat(a) => each(&[*a]),
            Inst::Unpack { a, .. } | Inst::SubgroupReduce(_, a) => each(&[*a]),
            Inst::Select { cond, a, b } => each(&[*cond, *a, *b]),
            Inst::Fma(a, b, c) => each(&[*a, *b, *c]),
            Inst::Dot2 { a, b, acc } => each(&[*a, *b, *acc]),
            Inst::Dot4 { a, b, acc, .. } => each(&[*a, *b, *acc]),
            Inst::Vector(values) | Inst::Yield(values) => each(values),
            Inst::Extract { vector, .. } => each(&[*vector]),
            Inst::Swizzle { a, b, .. } => each(&[*a, *b]),
            Inst::PermuteBytes { table, index } => each(&[*table, *index]),
            Inst::PermuteLong { low, high, index } => each(&[*low, *high, *index]),
            Inst::Shuffle { value, index, .. } => each(&[*value, *index]),
            Inst::Load { address, .. } => each(address.index.as_slice()),
            Inst::Prefetch(address) => each(address.index.as_slice()),
            Inst::Store { address, value, .. } | Inst::AtomicAdd { address, value } => {
                each(address.index.as_slice());
                each(&[*value]);
            }
            Inst::For(for_) => {
                each(&[for_.start, for_.end]);
                for_.carried.iter().for_each(|&(_, init)| each(&[init]));
                uses(&for_.body, f);
            }
            Inst::If(if_) => {
                each(&[if_.cond]);
                uses(&if_.then, f);
                uses(&if_.otherwise, f);
            }
        }
    }
}
