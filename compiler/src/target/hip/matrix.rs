//! Matrix instructions: one helper function for each shape that a kernel uses.
//!
//! Reads the device's shapes, makes C++. Always holds: the helper takes and gives the fragments of the shape's lane map;
//! where the hardware wants them otherwise (RDNA 3 holds operands twice), the helper exchanges lanes.

use super::types::Vectors;
use crate::caps::{AmdGpu, Matrix, MmaShape};
use crate::dtype::DType;
use crate::ir::{Scalar, Type};

/// The name of the helper of a shape.
pub(super) fn name(shape: &MmaShape) -> String {
    let MmaShape { m, n, k, a, b, .. } = shape;
    let (a, b) = (a.name(), b.name());
    if a == b { format!("multiply_{m}x{n}x{k}_{a}") } else { format!("multiply_{m}x{n}x{k}_{a}_{b}") }
}

/// The helper of a shape; `None` if the device has no such instruction.
pub(super) fn helper(shape: &MmaShape, gpu: &AmdGpu, vectors: &mut Vectors) -> Option<String> {
    gpu.caps.matrix.iter().find(|known| *known == shape)?;
    let operand = |dtype| Some(Type::vector(element(dtype)?, u8::try_from(shape.a_elements()).ok()?));
    let (a, b) = (operand(shape.a)?, operand(shape.b)?);
    let sums = Type::vector(element(shape.acc)?, u8::try_from(shape.acc_elements()).ok()?);
    let integer = shape.acc == DType::I32;
    let (a_name, b_name, sum_name) = (vectors.name(a), vectors.name(b), vectors.name(sums));
    let sum = if integer { format!("bits_as<{}>(sum)", vectors.signed(sums)) } else { "sum".to_string() };
    let builtin = builtin(shape, gpu.matrix)?;
    let twice = gpu.matrix == Matrix::WmmaTwice;
    let register = register(shape.a, shape.a_elements() * if twice { 2 } else { 1 }, gpu.matrix)?;
    let pass = |operand: &str| {
        if twice {
            format!("both_halves<{register}>({operand})")
        } else if shape.a == DType::F16 {
            operand.to_string()
        } else {
            format!("bits_as<{register}>({operand})")
        }
    };
    let (left, right) = (pass("a"), pass("b"));
    let call = match (gpu.matrix, integer) {
        (Matrix::Mfma, _) => format!("{builtin}({left}, {right}, {sum}, 0, 0, 0)"),
        (Matrix::Wmma | Matrix::WmmaTwice, true) => format!("{builtin}(true, {left}, true, {right}, {sum}, false)"),
        (Matrix::Wmma | Matrix::WmmaTwice, false) => format!("{builtin}({left}, {right}, {sum})"),
    };
    let call = if integer { format!("bits_as<{sum_name}>({call})") } else { call };
    Some(format!(
        "/// {}: `a` times `b` plus `sum`.\n__device__ inline {sum_name} {}({a_name} a, {b_name} b, {sum_name} sum) {{\n    return {call};\n}}",
        shape,
        name(shape),
    ))
}

/// The scalar of the IR that holds an operand's elements.
fn element(dtype: DType) -> Option<Scalar> {
    Some(match dtype {
        DType::F16 => Scalar::F16,
        DType::Bf16 => Scalar::Bf16,
        DType::F32 => Scalar::F32,
        DType::I8 | DType::U8 => Scalar::I8,
        DType::I32 => Scalar::I32,
        DType::E4m3fn => Scalar::E4m3fn,
        DType::E4m3fnuz => Scalar::E4m3fnuz,
        DType::E5m2 => Scalar::E5m2,
        DType::E5m2fnuz => Scalar::E5m2fnuz,
        _ => return None,
    })
}

/// What clang calls an operand of so many elements.
fn register(dtype: DType, elements: u32, matrix: Matrix) -> Option<String> {
    Some(match (dtype, elements) {
        (DType::F16, _) => format!("vector<f16, {elements}>"),
        // Most instructions take bf16 as shorts; those of sixteen bytes that gfx950 added take the type itself.
        (DType::Bf16, 8) if matrix == Matrix::Mfma => "vector<__bf16, 8>".to_string(),
        (DType::Bf16, _) => format!("vector<i16, {elements}>"),
        (_, 4) => "i32".to_string(),
        (_, 8) if matrix == Matrix::Mfma => "i64".to_string(),
        (_, 8) => "vector<i32, 2>".to_string(),
        (_, 16) => "vector<i32, 4>".to_string(),
        _ => return None,
    })
}

/// The builtin of a shape.
fn builtin(shape: &MmaShape, matrix: Matrix) -> Option<String> {
    let float8 = |dtype| match dtype {
        DType::E4m3fn | DType::E4m3fnuz => Some("fp8"),
        DType::E5m2 | DType::E5m2fnuz => Some("bf8"),
        _ => None,
    };
    let MmaShape { m, n, k, a, b, .. } = *shape;
    let size = format!("{m}x{n}x{k}");
    let kind = match (float8(a), float8(b)) {
        (Some(a), Some(b)) => format!("f32_{size}_{a}_{b}"),
        _ => match (matrix, a, k) {
            (Matrix::Mfma, DType::F16, 16) => format!("f32_{size}f16"),
            (Matrix::Mfma, DType::Bf16, 16) => format!("f32_{size}bf16_1k"),
            (Matrix::Mfma, DType::I8, 16) => format!("i32_{size}i8"),
            (_, DType::F16, _) => format!("f32_{size}_f16"),
            (_, DType::Bf16, _) => format!("f32_{size}_bf16"),
            (Matrix::Mfma, DType::I8, _) => format!("i32_{size}_i8"),
            (_, DType::I8, _) => format!("i32_{size}_iu8"),
            _ => return None,
        },
    };
    Some(match matrix {
        Matrix::Mfma => format!("__builtin_amdgcn_mfma_{kind}"),
        Matrix::WmmaTwice => format!("__builtin_amdgcn_wmma_{kind}_w32"),
        Matrix::Wmma => format!("__builtin_amdgcn_wmma_{kind}_w32_gfx12"),
    })
}
