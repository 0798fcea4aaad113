//! A SPIR-V module under construction: types and constants made once, instructions appended to the open block.
//!
//! Reads nothing of the kernel; makes ids by `rspirv`'s builder. Always holds: ids are handed out in the order of the
//! calls, and every table is ordered, so that the same calls give the same bytes.

use crate::ir::Scalar;
use rspirv::binary::Assemble;
use rspirv::dr::{Builder, InsertPoint, Instruction, Module as Finished, Operand};
use rspirv::spirv::{
    AddressingModel, BuiltIn, Capability, CooperativeMatrixUse, Decoration, ExecutionMode, ExecutionModel,
    FunctionControl, GlslStd450Op, MemoryAccess, MemoryModel, Op, Scope, StorageClass, Word,
};
use std::collections::{BTreeMap, BTreeSet};

/// How a scalar of the IR lies in a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Repr {
    Bool,
    U8,
    U16,
    U32,
    U64,
    F16,
    F32,
    /// Where a device needs it to round once.
    F64,
}

impl Repr {
    /// The unsigned integer that holds so many bits.
    pub fn of_bits(bits: u32) -> Repr {
        match bits {
            8 => Repr::U8,
            16 => Repr::U16,
            32 => Repr::U32,
            _ => Repr::U64,
        }
    }

    /// 8-bit floats and bf16 are bits alone.
    pub fn of(scalar: Scalar) -> Repr {
        match scalar {
            Scalar::Bool => Repr::Bool,
            Scalar::F16 => Repr::F16,
            Scalar::F32 => Repr::F32,
            Scalar::I8
            | Scalar::I16
            | Scalar::I32
            | Scalar::I64
            | Scalar::Bf16
            | Scalar::E4m3fn
            | Scalar::E4m3fnuz
            | Scalar::E5m2
            | Scalar::E5m2fnuz
            | Scalar::E8m0 => Repr::of_bits(scalar.bits()),
        }
    }
}

/// The module.
pub(super) struct Module {
    b: Builder,
    glsl: Word,
    types: BTreeMap<(Repr, u8), Word>,
    matrices: BTreeMap<(Repr, [u32; 3]), Word>,
    pointers: BTreeMap<(u32, Word), Word>,
    constants: BTreeMap<(Repr, Vec<u64>), Word>,
    builtins: BTreeMap<u32, (Word, Repr, u8)>,
    capabilities: BTreeSet<u32>,
    extensions: BTreeSet<&'static str>,
    interface: Vec<Word>,
    modes: Vec<(ExecutionMode, Vec<u32>)>,
    entry: Word,
    /// Variables of the entry, which come first in its first block.
    locals: Vec<Instruction>,
    /// Whether memory follows Vulkan's own model, where accesses that others see say so themselves.
    pub vulkan_memory: bool,
    /// Label of the open block.
    pub block: Word,
}

impl Module {
    /// A module with the entry's first block open. `matrices`: it holds cooperative matrices, which ask for Vulkan's own
    /// memory model.
    pub fn new(workgroup: [u32; 3], matrices: bool) -> Module {
        let mut b = Builder::new();
        // SPIR-V 1.5 is what Vulkan 1.2 takes.
        b.set_version(1, 5);
        let glsl = b.ext_inst_import("GLSL.std.450");
        b.memory_model(AddressingModel::Logical, if matrices { MemoryModel::Vulkan } else { MemoryModel::GLSL450 });
        let void = b.type_void();
        let function = b.type_function(void, []);
        let entry = b.begin_function(void, None, FunctionControl::NONE, function).expect("no function is open");
        let block = b.begin_block(None).expect("a function is open");
        let mut module = Module {
            b,
            glsl,
            types: BTreeMap::new(),
            matrices: BTreeMap::new(),
            pointers: BTreeMap::new(),
            constants: BTreeMap::new(),
            builtins: BTreeMap::new(),
            capabilities: BTreeSet::new(),
            extensions: BTreeSet::new(),
            interface: Vec::new(),
            modes: vec![(ExecutionMode::LocalSize, workgroup.to_vec())],
            entry,
            locals: Vec::new(),
            vulkan_memory: matrices,
            block,
        };
        module.needs(Capability::Shader);
        if matrices {
            module.needs(Capability::VulkanMemoryModel);
            module.needs(Capability::CooperativeMatrixKHR);
            module.extension("SPV_KHR_cooperative_matrix");
        }
        module
    }

    /// Ends the entry and gives the words of the module.
    pub fn finish(mut self, name: &str) -> Finished {
        self.end(Op::Return, vec![]);
        self.b.end_function().expect("the entry is open");
        let first = self.b.module_mut().functions.first_mut().and_then(|function| function.blocks.first_mut());
        first.expect("the entry has a block").instructions.splice(0..0, self.locals.drain(..));
        // Capabilities and extensions in the order of their numbers and names.
        for number in &self.capabilities {
            self.b.capability(Capability::from_u32(*number).expect("it was a capability"));
        }
        for extension in &self.extensions {
            self.b.extension(*extension);
        }
        self.b.entry_point(ExecutionModel::GLCompute, self.entry, name, &self.interface);
        for (mode, numbers) in &self.modes {
            self.b.execution_mode(self.entry, *mode, numbers);
        }
        self.b.module()
    }

    /// Declares a capability.
    pub fn needs(&mut self, capability: Capability) {
        self.capabilities.insert(capability as u32);
    }

    /// Declares an extension.
    pub fn extension(&mut self, name: &'static str) {
        self.extensions.insert(name);
    }

    /// Declares an execution mode of the entry.
    pub fn mode(&mut self, mode: ExecutionMode, numbers: Vec<u32>) {
        self.modes.push((mode, numbers));
    }

    /// A new id, for a label or a value that a phi reads before it is made.
    pub fn id(&mut self) -> Word {
        self.b.id()
    }

    /// The type of a scalar or of a vector of up to 4 lanes.
    pub fn ty(&mut self, repr: Repr, lanes: u8) -> Word {
        if let Some(&known) = self.types.get(&(repr, lanes)) {
            return known;
        }
        let id = if lanes > 1 {
            let scalar = self.ty(repr, 1);
            self.b.type_vector(scalar, lanes as u32)
        } else {
            match repr {
                Repr::Bool => self.b.type_bool(),
                Repr::U8 => {
                    self.needs(Capability::Int8);
                    self.b.type_int(8, 0)
                }
                Repr::U16 => {
                    self.needs(Capability::Int16);
                    self.b.type_int(16, 0)
                }
                Repr::U32 => self.b.type_int(32, 0),
                Repr::U64 => {
                    self.needs(Capability::Int64);
                    self.b.type_int(64, 0)
                }
                Repr::F16 => {
                    self.needs(Capability::Float16);
                    self.b.type_float(16, None)
                }
                Repr::F32 => self.b.type_float(32, None),
                Repr::F64 => {
                    self.needs(Capability::Float64);
                    self.b.type_float(64, None)
                }
            }
        };
        self.types.insert((repr, lanes), id);
        id
    }

    /// The type of a cooperative matrix of a subgroup.
    pub fn matrix(&mut self, repr: Repr, rows: u32, columns: u32, part: CooperativeMatrixUse) -> Word {
        let key = (repr, [rows, columns, part as u32]);
        if let Some(&known) = self.matrices.get(&key) {
            return known;
        }
        // Its lanes are those of a subgroup that is full.
        self.needs(Capability::GroupNonUniform);
        let element = self.ty(repr, 1);
        let scope = self.scope(Scope::Subgroup);
        let [rows, columns, part] = key.1.map(|number| self.word(number));
        let id = self.b.type_cooperative_matrix_khr(element, scope, rows, columns, part);
        self.matrices.insert(key, id);
        id
    }

    /// A variable of this thread.
    pub fn local(&mut self, to: Word) -> Word {
        let pointer = self.pointer(StorageClass::Function, to);
        let id = self.b.id();
        let class = Operand::StorageClass(StorageClass::Function);
        self.locals.push(Instruction::new(Op::Variable, Some(pointer), Some(id), vec![class]));
        id
    }

    /// What a load or store of memory that other threads see carries, after its other operands.
    pub fn seen_by_others(&self) -> Option<Operand> {
        self.vulkan_memory.then_some(Operand::MemoryAccess(MemoryAccess::NON_PRIVATE_POINTER))
    }

    /// A constant: one bit pattern per lane.
    pub fn constant(&mut self, repr: Repr, lanes: &[u64]) -> Word {
        let key = (repr, lanes.to_vec());
        if let Some(&known) = self.constants.get(&key) {
            return known;
        }
        let ty = self.ty(repr, lanes.len() as u8);
        let id = match (lanes, repr) {
            (&[bits], Repr::Bool) if bits != 0 => self.b.constant_true(ty),
            (&[_], Repr::Bool) => self.b.constant_false(ty),
            (&[bits], Repr::U64 | Repr::F64) => self.b.constant_bit64(ty, bits),
            (&[bits], _) => self.b.constant_bit32(ty, bits as u32),
            _ => {
                let parts: Vec<Word> = lanes.iter().map(|&bits| self.constant(repr, &[bits])).collect();
                self.b.constant_composite(ty, parts)
            }
        };
        self.constants.insert(key, id);
        id
    }

    /// The same constant in every lane.
    pub fn splat(&mut self, repr: Repr, lanes: u8, bits: u64) -> Word {
        self.constant(repr, &vec![bits; lanes as usize])
    }

    /// A 32-bit constant.
    pub fn word(&mut self, bits: u32) -> Word {
        self.constant(Repr::U32, &[bits as u64])
    }

    /// Appends an instruction with a result.
    pub fn op(&mut self, op: Op, ty: Word, operands: &[Word]) -> Word {
        self.op_with(op, ty, operands.iter().map(|&id| Operand::IdRef(id)).collect())
    }

    /// Appends an instruction with a result and operands of any kind.
    pub fn op_with(&mut self, op: Op, ty: Word, operands: Vec<Operand>) -> Word {
        let id = self.b.id();
        self.define(id, op, ty, operands);
        id
    }

    /// Appends an instruction whose result has a given id.
    pub fn define(&mut self, id: Word, op: Op, ty: Word, operands: Vec<Operand>) {
        self.append(Instruction::new(op, Some(ty), Some(id), operands));
    }

    /// Appends an instruction without a result.
    pub fn act(&mut self, op: Op, operands: Vec<Operand>) {
        self.append(Instruction::new(op, None, None, operands));
    }

    fn append(&mut self, instruction: Instruction) {
        self.b.insert_into_block(InsertPoint::End, instruction).expect("a block is open");
    }

    /// Appends an instruction of the standard's extended set.
    pub fn extended(&mut self, op: GlslStd450Op, ty: Word, operands: &[Word]) -> Word {
        let mut list = vec![Operand::IdRef(self.glsl), Operand::LiteralExtInstInteger(op as u32)];
        list.extend(operands.iter().map(|&id| Operand::IdRef(id)));
        self.op_with(Op::ExtInst, ty, list)
    }

    /// Ends the open block with a jump.
    pub fn end(&mut self, op: Op, operands: Vec<Operand>) {
        self.append(Instruction::new(op, None, None, operands));
        self.b.select_block(None).expect("a function is open");
    }

    /// Opens a block.
    pub fn begin(&mut self, label: Word) {
        self.block = self.b.begin_block(Some(label)).expect("no block is open");
    }

    /// Decorates an id.
    pub fn decorate(&mut self, id: Word, decoration: Decoration, numbers: &[u32]) {
        self.b.decorate(id, decoration, numbers.iter().map(|&n| Operand::LiteralBit32(n)));
    }

    /// Forbids to fuse or reorder an operation on floats.
    pub fn exact(&mut self, id: Word) -> Word {
        self.decorate(id, Decoration::NoContraction, &[]);
        id
    }

    /// A pointer type.
    pub fn pointer(&mut self, class: StorageClass, to: Word) -> Word {
        if let Some(&known) = self.pointers.get(&(class as u32, to)) {
            return known;
        }
        let id = self.b.type_pointer(None, class, to);
        self.pointers.insert((class as u32, to), id);
        id
    }

    /// A global variable of the entry's interface.
    pub fn global(&mut self, class: StorageClass, to: Word) -> Word {
        let pointer = self.pointer(class, to);
        let id = self.b.id();
        // The builder itself would put it into the open block.
        let variable = Instruction::new(Op::Variable, Some(pointer), Some(id), vec![Operand::StorageClass(class)]);
        self.b.module_mut().types_global_values.push(variable);
        self.interface.push(id);
        id
    }

    /// A variable that holds a struct of members at byte offsets.
    pub fn block_of(&mut self, class: StorageClass, members: &[(Word, u32)]) -> Word {
        let id = self.b.id();
        self.b.type_struct_id(Some(id), members.iter().map(|&(ty, _)| ty));
        self.decorate(id, Decoration::Block, &[]);
        for (i, &(_, offset)) in members.iter().enumerate() {
            self.b.member_decorate(id, i as u32, Decoration::Offset, [Operand::LiteralBit32(offset)]);
        }
        self.global(class, id)
    }

    /// An array without end of elements so many bytes apart.
    pub fn endless(&mut self, element: Word, stride: u32) -> Word {
        let id = self.b.id();
        self.b.type_runtime_array_id(Some(id), element);
        self.decorate(id, Decoration::ArrayStride, &[stride]);
        id
    }

    /// An array of so many elements.
    pub fn array(&mut self, element: Word, length: u32) -> Word {
        let length = self.word(length);
        self.b.type_array(element, length)
    }

    /// Names an id, for people.
    pub fn name(&mut self, id: Word, name: &str) {
        self.b.name(id, name);
    }

    /// Reads a number of the launch; of a vector, one of its lanes.
    pub fn builtin(&mut self, builtin: BuiltIn, lane: Option<u8>) -> Word {
        let lanes = if lane.is_some() { 3 } else { 1 };
        let ty = self.ty(Repr::U32, lanes);
        let variable = match self.builtins.get(&(builtin as u32)) {
            Some(&(variable, ..)) => variable,
            None => {
                let variable = self.global(StorageClass::Input, ty);
                self.b.decorate(variable, Decoration::BuiltIn, [Operand::BuiltIn(builtin)]);
                self.builtins.insert(builtin as u32, (variable, Repr::U32, lanes));
                variable
            }
        };
        let value = self.op(Op::Load, ty, &[variable]);
        match lane {
            Some(lane) => self.extract(value, Repr::U32, lane),
            None => value,
        }
    }

    /// One lane of a vector.
    pub fn extract(&mut self, vector: Word, repr: Repr, lane: u8) -> Word {
        let ty = self.ty(repr, 1);
        let operands = vec![Operand::IdRef(vector), Operand::LiteralBit32(lane as u32)];
        self.op_with(Op::CompositeExtract, ty, operands)
    }

    /// A vector of scalars (or a scalar of one).
    pub fn construct(&mut self, repr: Repr, parts: &[Word]) -> Word {
        match parts {
            &[one] => one,
            _ => {
                let ty = self.ty(repr, parts.len() as u8);
                self.op(Op::CompositeConstruct, ty, parts)
            }
        }
    }

    /// A scope, as the constant that instructions take.
    pub fn scope(&mut self, scope: Scope) -> Word {
        self.word(scope as u32)
    }
}

/// The words of a finished module as bytes, low byte first.
pub(super) fn bytes(module: &Finished) -> Vec<u8> {
    module.assemble().into_iter().flat_map(u32::to_le_bytes).collect()
}
