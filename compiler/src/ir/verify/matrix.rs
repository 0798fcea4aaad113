//! Matrix instructions: the device has the shape, fragments have its types, whole subgroups come.

use super::Check;
use crate::caps::{Feature, MmaShape};
use crate::dtype::DType;
use crate::ir::types::{Scalar, Type, Value};
use crate::ir::uniform::Uniform;

/// The scalar of a fragment's elements; `None` where the IR has none.
pub(super) fn element(dtype: DType) -> Option<Scalar> {
    Some(match dtype {
        DType::F32 => Scalar::F32,
        DType::F16 => Scalar::F16,
        DType::Bf16 => Scalar::Bf16,
        DType::E4m3fn => Scalar::E4m3fn,
        DType::E4m3fnuz => Scalar::E4m3fnuz,
        DType::E5m2 => Scalar::E5m2,
        DType::E5m2fnuz => Scalar::E5m2fnuz,
        DType::I8 | DType::U8 => Scalar::I8,
        DType::I32 => Scalar::I32,
        _ => return None,
    })
}

impl Check<'_> {
    pub(super) fn mma(&mut self, shape: &MmaShape, [a, b, acc]: [Value; 3], ty: Option<Type>) {
        self.needs(Feature::Mma, "a matrix instruction");
        if !self.caps.matrix.contains(shape) {
            self.fault(format!("{} has no matrix instruction {shape}", self.caps.name));
        }
        self.reached_by(Uniform::Subgroup);
        let operands = [
            (a, shape.a, shape.a_elements(), "the fragment of A"),
            (b, shape.b, shape.b_elements(), "the fragment of B"),
            (acc, shape.acc, shape.acc_elements(), "the fragment of C"),
        ];
        for (value, dtype, elements, role) in operands {
            match element(dtype) {
                Some(scalar) => self.expect(value, Type::vector(scalar, elements as u8), role),
                None => self.fault(format!("{role}: {} has no type of values", dtype.name())),
            }
        }
        if let Some(scalar) = element(shape.acc) {
            self.result_is(ty, Type::vector(scalar, shape.acc_elements() as u8));
        }
    }
}
