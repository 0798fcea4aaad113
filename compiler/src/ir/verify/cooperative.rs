//! Cooperative matrices: the device has the shape, whole subgroups come, and nothing else looks into a matrix.

use super::Check;
use super::memory::Use;
use crate::caps::Feature;
use crate::dtype::DType;
use crate::ir::cooperative::{Cooperative, Fragment, Lines};
use crate::ir::kernel::{Inst, Statement};
use crate::ir::types::{Memory, Scalar, Type, Value};
use crate::ir::uniform::Uniform;
use smallvec::{SmallVec, smallvec};

impl Check<'_> {
    pub(super) fn cooperative(&mut self, inst: &Cooperative, ty: Option<Type>) {
        self.needs(Feature::CooperativeMatrix, inst.name());
        let shape = inst.shape();
        if !self.caps.matrix.contains(shape) || shape.map.is_some() {
            self.fault(format!("{} has no cooperative matrices of {shape}", self.caps.name));
        }
        if shape.lanes != self.caps.subgroup {
            let (name, subgroup) = (self.caps.name, self.caps.subgroup);
            self.fault(format!("{shape} takes subgroups of {}; {name} runs those of {subgroup}", shape.lanes));
        }
        self.reached_by(Uniform::Subgroup);
        if !self.kernel.threads().is_multiple_of(shape.lanes) {
            self.fault(format!("{} threads; matrices of {shape} take whole subgroups", self.kernel.threads()));
        }
        for (value, wanted) in inst.matrices() {
            self.operand(value);
            match self.fragment(value) {
                Some(found) if found == wanted => {}
                Some(found) => self.fault(format!("{value} is {}; it must be {}", spelled(&found), spelled(&wanted))),
                None => self.fault(format!("{value} is no matrix; it must be {}", spelled(&wanted))),
            }
        }
        match inst {
            Cooperative::Fill { fragment, value } => {
                if let Some(scalar) = Scalar::of(fragment.dtype()) {
                    self.expect(*value, scalar.into(), "the number");
                }
                self.agreed(*value, "the number");
            }
            Cooperative::Load { fragment, from } => self.lines(Use::Load, fragment, from),
            Cooperative::Store { shape, to, .. } => {
                self.lines(Use::Store, &Fragment { shape, part: crate::ir::Part::Sums }, to);
            }
            Cooperative::Multiply { .. } => {}
            Cooperative::Scale { shape, .. } => {
                if shape.acc != DType::F32 {
                    self.fault(format!("scales sums of f32, not of {}", shape.acc.name()));
                }
            }
        }
        let Some(result) = inst.result() else { return };
        match result.ty() {
            Some(wanted) => self.result_is(ty, wanted),
            None => self.fault(format!("the IR has no elements of {}", result.dtype().name())),
        }
    }

    /// A value that all lanes of the subgroup must agree on.
    fn agreed(&mut self, value: Value, role: &str) {
        if self.level(value) > Uniform::Subgroup {
            self.fault(format!("{role} {value} may differ between lanes; a matrix takes one that they agree on"));
        }
    }

    fn lines(&mut self, what: Use, fragment: &Fragment, lines: &Lines) {
        let Lines { order, address, stride } = *lines;
        if let Some(index) = address.index {
            self.agreed(index, "the index");
        }
        let align = fragment.align(order);
        self.access(what, &address, align, Some(Type::vector(Scalar::I8, align as u8)));
        let (count, bytes) = fragment.lines(order);
        let apart = stride >= bytes || count == 1 || (stride == 0 && what == Use::Load);
        if !stride.is_multiple_of(align) || !apart {
            let zero = if what == Use::Load { ", or 0" } else { "" };
            self.fault(format!("the stride is {stride}; accepted: multiples of {align} from {bytes} on{zero}"));
        }
        match address.memory {
            Memory::Param(_) => self.fault("a matrix lies in a shared array, not in a buffer"),
            Memory::Shared(number) => {
                let Some(size) = self.kernel.shared.get(number as usize).map(|shared| shared.bytes) else { return };
                let extent = fragment.extent(order, stride);
                let start = if address.index.is_none() { address.offset.max(0) as u64 } else { 0 };
                if start.saturating_add(extent) > u64::from(size) {
                    self.fault(format!("{extent} bytes at {start} pass the end of the array of {size} bytes"));
                }
            }
        }
    }

    fn fragment(&self, value: Value) -> Option<Fragment> {
        self.fragments.get(value.0 as usize).copied().flatten()
    }

    /// Nothing but matrix instructions, loops and branches takes a matrix.
    pub(super) fn opaque(&mut self, statement: &Statement) {
        if self.fragments.is_empty() {
            return;
        }
        let taken: SmallVec<[Value; 4]> = match &statement.inst {
            Inst::Cooperative(inner) => match &**inner {
                Cooperative::Fill { value, .. } => smallvec![*value],
                inner => inner.place().and_then(|(lines, _)| lines.address.index).into_iter().collect(),
            },
            Inst::For(inner) => smallvec![inner.start, inner.end],
            Inst::Yield(_) => SmallVec::new(),
            other => other.operands(),
        };
        for value in taken {
            if let Some(found) = self.fragment(value) {
                let found = spelled(&found);
                self.fault(format!("{value} is {found}, which only matrix instructions, loops and branches take"));
            }
        }
    }

    /// Both are the same kind of matrix, or neither is one.
    pub(super) fn same_matrix(&mut self, value: Value, wanted: Value) {
        let (found, expected) = (self.fragment(value), self.fragment(wanted));
        if found != expected {
            let spell = |fragment: Option<Fragment>| fragment.map_or("no matrix".to_string(), |f| spelled(&f));
            self.fault(format!("{value} is {}, but {wanted} is {}", spell(found), spell(expected)));
        }
    }
}

fn spelled(fragment: &Fragment) -> String {
    let part = crate::ir::names::name(crate::ir::names::PART, fragment.part);
    format!("the {part} of {}", fragment.shape)
}
