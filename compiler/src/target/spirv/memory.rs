//! Loads, stores and atomics: byte addresses become elements of arrays.
//!
//! A buffer is seen through arrays of bytes, half-words, words, pairs or quads of words, as many as its accesses need; all
//! of them are one binding. A shared array has one element type: the widest that every access to it is aligned to.
//! An array that matrices lie in has their elements, or vectors of these.
//! Offsets are 32-bit: they wrap to the right byte, since every binding is below 2 GiB (the runtime checks that).

use super::module::{Module, Repr};
use super::value::{self, Pieces};
use crate::ir::{Access, Address, Fragment, Inst, Kernel, Memory, ParamKind, Scalar, Type, Value};
use rspirv::dr::Operand;
use rspirv::spirv::{Capability, Decoration, Op, Scope, StorageClass, Word};
use std::collections::BTreeMap;

/// Memory of a kernel, by the arrays that it is seen through.
pub(super) struct Arrays {
    /// Variable of each buffer and element size.
    views: BTreeMap<(u16, u32), Word>,
    /// Variable of each shared array, and its elements.
    shared: Vec<(Word, Unit)>,
    /// Scalars: the variable and each parameter's member.
    scalars: Option<(Word, BTreeMap<u16, u32>)>,
    /// Number of each buffer's binding.
    bindings: BTreeMap<u16, u32>,
    /// Whether other threads of the workgroup may read what one writes.
    coherent: bool,
}

/// Offset in the push constants of each scalar parameter, and their size. The runtime lays them out by the same rule:
/// in order, each at a multiple of its size.
pub(super) fn scalar_offsets(kernel: &Kernel) -> (BTreeMap<u16, u32>, u32) {
    let mut at = 0u32;
    let mut offsets = BTreeMap::new();
    for (i, param) in kernel.params.iter().enumerate() {
        if let ParamKind::Scalar(scalar) = param.kind {
            at = at.next_multiple_of(scalar.bytes());
            offsets.insert(i as u16, at);
            at += scalar.bytes();
        }
    }
    (offsets, at)
}

impl Arrays {
    /// Declares scalars and shared arrays.
    pub fn new(m: &mut Module, kernel: &Kernel) -> Arrays {
        let (units, barrier) = survey(kernel);
        let mut bindings = BTreeMap::new();
        for (i, param) in kernel.params.iter().enumerate() {
            if let ParamKind::Buffer { .. } = param.kind {
                bindings.insert(i as u16, bindings.len() as u32);
            }
        }
        let (offsets, _) = scalar_offsets(kernel);
        let scalars = (!offsets.is_empty()).then(|| {
            let mut members = Vec::new();
            let mut numbers = BTreeMap::new();
            for (&param, &offset) in &offsets {
                let ParamKind::Scalar(scalar) = kernel.params[param as usize].kind else { continue };
                numbers.insert(param, members.len() as u32);
                members.push((m.ty(Repr::of(scalar), 1), offset));
            }
            let variable = m.block_of(StorageClass::PushConstant, &members);
            m.name(variable, "scalars");
            (variable, numbers)
        });
        let shared = kernel
            .shared
            .iter()
            .zip(units)
            .map(|(array, unit)| {
                let element = unit.ty(m);
                let ty = m.array(element, array.bytes.div_ceil(unit.bytes).max(1));
                let variable = m.global(StorageClass::Workgroup, ty);
                m.name(variable, &array.name);
                (variable, unit)
            })
            .collect();
        Arrays { views: BTreeMap::new(), shared, scalars, bindings, coherent: barrier }
    }

    /// Declares which views share a binding, when all are known.
    pub fn finish(&self, m: &mut Module) {
        let mut count = BTreeMap::new();
        for (param, _) in self.views.keys() {
            *count.entry(*param).or_insert(0) += 1;
        }
        for ((param, _), &variable) in &self.views {
            m.decorate(variable, if count[param] > 1 { Decoration::Aliased } else { Decoration::Restrict }, &[]);
        }
    }

    /// A scalar parameter.
    pub fn scalar(&self, m: &mut Module, param: u16, scalar: Scalar) -> Option<Word> {
        let (variable, members) = self.scalars.as_ref()?;
        let ty = m.ty(Repr::of(scalar), 1);
        let pointer = m.pointer(StorageClass::PushConstant, ty);
        let member = m.word(*members.get(&param)?);
        let place = m.op(Op::AccessChain, pointer, &[*variable, member]);
        Some(m.op(Op::Load, ty, &[place]))
    }

    /// The variable that shows a buffer as elements of so many bytes.
    fn view(&mut self, m: &mut Module, kernel: &Kernel, param: u16, unit: u32) -> Word {
        if let Some(&known) = self.views.get(&(param, unit)) {
            return known;
        }
        match unit {
            1 => m.needs(Capability::StorageBuffer8BitAccess),
            2 => m.needs(Capability::StorageBuffer16BitAccess),
            _ => {}
        }
        let element = Unit::words(unit).ty(m);
        let array = m.endless(element, unit);
        let variable = m.block_of(StorageClass::StorageBuffer, &[(array, 0)]);
        m.decorate(variable, Decoration::DescriptorSet, &[0]);
        m.decorate(variable, Decoration::Binding, &[self.bindings[&param]]);
        let declared = &kernel.params[param as usize];
        match declared.kind {
            ParamKind::Buffer { access: Access::Read, .. } => m.decorate(variable, Decoration::NonWritable, &[]),
            ParamKind::Buffer { access: Access::Write, .. } => m.decorate(variable, Decoration::NonReadable, &[]),
            // In Vulkan's memory model, each access says so.
            ParamKind::Buffer { access: Access::ReadWrite, .. } if self.coherent && !m.vulkan_memory => {
                m.decorate(variable, Decoration::Coherent, &[]);
            }
            ParamKind::Buffer { .. } | ParamKind::Scalar(_) => {}
        }
        m.name(variable, &format!("{}_{}", declared.name, 8 * unit));
        self.views.insert((param, unit), variable);
        variable
    }

    /// Pointers to `count` elements from a byte offset on, and the size of an element: the widest that the alignment
    /// allows, no wider than what is moved.
    fn places(
        &mut self,
        m: &mut Module,
        kernel: &Kernel,
        memory: Memory,
        offset: Word,
        align: u32,
        bytes: u32,
    ) -> (Vec<Word>, Unit) {
        let (variable, unit, class) = match memory {
            Memory::Param(param) => {
                let unit = align.min(16).min(bytes);
                (self.view(m, kernel, param, unit), Unit::words(unit), StorageClass::StorageBuffer)
            }
            Memory::Shared(array) => {
                let (variable, unit) = self.shared[array as usize];
                (variable, unit, StorageClass::Workgroup)
            }
        };
        let word = m.ty(Repr::U32, 1);
        let element = unit.ty(m);
        let pointer = m.pointer(class, element);
        let shift = m.word(unit.bytes.trailing_zeros());
        let first = if unit.bytes == 1 { offset } else { m.op(Op::ShiftRightLogical, word, &[offset, shift]) };
        let zero = m.word(0);
        let places = (0..bytes / unit.bytes)
            .map(|i| {
                let index = if i == 0 {
                    first
                } else {
                    let step = m.word(i);
                    m.op(Op::IAdd, word, &[first, step])
                };
                let indices = match memory {
                    Memory::Param(_) => vec![variable, zero, index],
                    Memory::Shared(_) => vec![variable, index],
                };
                m.op(Op::AccessChain, pointer, &indices)
            })
            .collect();
        (places, unit)
    }

    /// Reads a value.
    pub fn load(
        &mut self,
        m: &mut Module,
        kernel: &Kernel,
        memory: Memory,
        offset: Word,
        align: u32,
        ty: Type,
    ) -> Pieces {
        let (places, unit) = self.places(m, kernel, memory, offset, align, ty.bytes());
        let element = unit.ty(m);
        let access = shared(kernel, memory).then(|| m.seen_by_others()).flatten();
        let parts: Vec<Word> = places
            .iter()
            .map(|&place| {
                m.op_with(Op::Load, element, std::iter::once(Operand::IdRef(place)).chain(access.clone()).collect())
            })
            .collect();
        let raw = unit.values(ty.bytes());
        let pieces = match unit.lanes() {
            // A quad is a piece; two pairs make one.
            4 => parts,
            2 => {
                let repr = Repr::of(raw.scalar);
                let quad = |pair: &[Word]| if pair.len() == 1 { pair[0] } else { m.construct_quad(repr, pair) };
                parts.chunks(2).map(quad).collect()
            }
            _ => value::gather(m, raw.scalar, &parts),
        };
        value::bitcast(m, &pieces, raw, ty)
    }

    /// Writes a value.
    #[expect(clippy::too_many_arguments, reason = "an address has that many parts")]
    pub fn store(
        &mut self,
        m: &mut Module,
        kernel: &Kernel,
        memory: Memory,
        offset: Word,
        align: u32,
        ty: Type,
        pieces: &Pieces,
    ) {
        let (places, unit) = self.places(m, kernel, memory, offset, align, ty.bytes());
        let raw = unit.values(ty.bytes());
        let access = shared(kernel, memory).then(|| m.seen_by_others()).flatten();
        let pieces = value::bitcast(m, pieces, ty, raw);
        for (i, &place) in places.iter().enumerate() {
            let element = match unit.lanes() {
                4 => pieces[i],
                2 if raw.lanes == 2 => pieces[0],
                2 => m.half_of(Repr::of(raw.scalar), pieces[i / 2], i % 2),
                _ => value::extract(m, &pieces, raw, i as u8),
            };
            m.act(Op::Store, [place, element].map(Operand::IdRef).into_iter().chain(access.clone()).collect());
        }
    }

    /// Where a matrix starts in a shared array, and bytes of what is pointed to.
    pub fn matrix(&mut self, m: &mut Module, kernel: &Kernel, memory: Memory, offset: Word) -> (Word, u32) {
        let bytes = match memory {
            Memory::Shared(array) => self.shared[array as usize].1.bytes,
            Memory::Param(_) => 4,
        };
        let (places, unit) = self.places(m, kernel, memory, offset, bytes, bytes);
        (places[0], unit.bytes)
    }

    /// Adds to a word in one step; gives what was there.
    pub fn atomic_add(&mut self, m: &mut Module, kernel: &Kernel, memory: Memory, offset: Word, addend: Word) -> Word {
        let (places, _) = self.places(m, kernel, memory, offset, 4, 4);
        let word = m.ty(Repr::U32, 1);
        let scope = m.scope(match memory {
            Memory::Param(_) => Scope::Device,
            Memory::Shared(_) => Scope::Workgroup,
        });
        let relaxed = m.word(0);
        m.op(Op::AtomicIAdd, word, &[places[0], scope, relaxed, addend])
    }
}

impl Module {
    /// Two pairs as one vector.
    fn construct_quad(&mut self, repr: Repr, pairs: &[Word]) -> Word {
        let ty = self.ty(repr, 4);
        self.op(Op::CompositeConstruct, ty, pairs)
    }

    /// The low or high pair of a vector of four.
    fn half_of(&mut self, repr: Repr, quad: Word, half: usize) -> Word {
        let ty = self.ty(repr, 2);
        let lane = 2 * half as u32;
        let operands = vec![
            Operand::IdRef(quad),
            Operand::IdRef(quad),
            Operand::LiteralBit32(lane),
            Operand::LiteralBit32(lane + 1),
        ];
        self.op_with(Op::VectorShuffle, ty, operands)
    }
}

/// Whether threads see what others write there.
fn shared(kernel: &Kernel, memory: Memory) -> bool {
    match memory {
        Memory::Shared(_) => true,
        Memory::Param(param) => {
            matches!(kernel.params[param as usize].kind, ParamKind::Buffer { access: Access::ReadWrite, .. })
        }
    }
}

/// An element of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    /// Its bytes.
    pub bytes: u32,
    /// What it holds, or part of it.
    scalar: Scalar,
}

impl Unit {
    /// Integers of so many bytes; pairs and quads of words, where these are more than 4.
    fn words(bytes: u32) -> Unit {
        let scalar = match bytes {
            1 => Scalar::I8,
            2 => Scalar::I16,
            _ => Scalar::I32,
        };
        Unit { bytes, scalar }
    }

    fn lanes(self) -> u8 {
        (self.bytes / self.scalar.bytes()) as u8
    }

    fn ty(self, m: &mut Module) -> Word {
        m.ty(Repr::of(self.scalar), self.lanes())
    }

    /// What so many bytes of an array are.
    fn values(self, bytes: u32) -> Type {
        Type::vector(self.scalar, (bytes / self.scalar.bytes()) as u8)
    }
}

/// The scalar that matrices of this type consist of in an array, where no other access to it is shorter.
pub(super) fn matrix_scalar(fragment: &Fragment) -> Option<Scalar> {
    Scalar::of(fragment.dtype())
}

/// The constant and variable part of an address.
pub(super) fn offset(m: &mut Module, address: &Address, word_of: impl FnOnce(&mut Module, Value) -> Word) -> Word {
    let constant = m.word(address.offset as u32);
    match address.index {
        None => constant,
        Some(index) => {
            let index = word_of(m, index);
            if address.offset as u32 == 0 {
                return index;
            }
            let word = m.ty(Repr::U32, 1);
            m.op(Op::IAdd, word, &[index, constant])
        }
    }
}

/// The element of each shared array, and whether there is a barrier.
fn survey(kernel: &Kernel) -> (Vec<Unit>, bool) {
    let (mut units, mut barrier) = (vec![16u32; kernel.shared.len()], false);
    let mut matrices: Vec<Option<Scalar>> = vec![None; kernel.shared.len()];
    kernel.body.each(&mut |statement| match &statement.inst {
        Inst::Load { address: Address { memory: Memory::Shared(array), .. }, align } => {
            let bytes = statement.results.first().map_or(1, |&value| kernel.ty(value).bytes());
            let unit = &mut units[*array as usize];
            *unit = (*unit).min(*align).min(bytes);
        }
        Inst::Store { address: Address { memory: Memory::Shared(array), .. }, align, value } => {
            let unit = &mut units[*array as usize];
            *unit = (*unit).min(*align).min(kernel.ty(*value).bytes());
        }
        Inst::Barrier => barrier = true,
        Inst::Cooperative(inner) => {
            if let Some((lines, fragment)) = inner.place()
                && let Memory::Shared(array) = lines.address.memory
            {
                matrices[array as usize] = matrix_scalar(&fragment);
                let unit = &mut units[array as usize];
                *unit = (*unit).min(fragment.align(lines.order));
            }
        }
        _ => {}
    });
    let unit = |(bytes, scalar): (u32, Option<Scalar>)| match scalar {
        // Vectors of up to four elements: fewer accesses for threads that fill or read the array.
        Some(scalar) => Unit { bytes: bytes.clamp(scalar.bytes(), 4 * scalar.bytes()), scalar },
        None => Unit::words(bytes.min(4)),
    };
    (units.into_iter().zip(matrices).map(unit).collect(), barrier)
}
