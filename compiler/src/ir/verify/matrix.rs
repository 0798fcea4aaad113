//! Matrix instructions: the device has the shape, fragments have its types, whole subgroups come.

use super::Check;
use crate::caps::{Feature, MmaShape};
use crate::ir::types::{Scalar, Type, Value};
use crate::ir::uniform::Uniform;

impl Check<'_> {
    pub(super) fn mma(&mut self, shape: &MmaShape, [a, b, acc]: [Value; 3], ty: Option<Type>) {
        self.needs(Feature::Mma, "a matrix instruction");
        if !self.caps.matrix.contains(shape) || shape.map.is_none() {
            self.fault(format!("{} has no matrix instruction {shape}", self.caps.name));
        }
        self.reached_by(Uniform::Subgroup);
        let operands = [
            (a, shape.a, shape.a_elements(), "the fragment of A"),
            (b, shape.b, shape.b_elements(), "the fragment of B"),
            (acc, shape.acc, shape.acc_elements(), "the fragment of C"),
        ];
        for (value, dtype, elements, role) in operands {
            match Scalar::of(dtype) {
                Some(scalar) => self.expect(value, Type::vector(scalar, elements as u8), role),
                None => self.fault(format!("{role}: {} has no type of values", dtype.name())),
            }
        }
        if let Some(scalar) = Scalar::of(shape.acc) {
            self.result_is(ty, Type::vector(scalar, shape.acc_elements() as u8));
        }
    }
}
