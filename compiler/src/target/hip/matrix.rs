//! Matrix instructions: one helper function for each shape that a kernel uses.
//!
//! Reads the device's shapes, makes C++. Always holds: the helper takes and gives the fragments of the shape's lane map;
//! where the hardware wants them otherwise (RDNA 3 holds operands twice), the helper exchanges lanes.

use super::types::Vectors;
use crate::caps::{AmdGpu, Matrix, MmaShape};
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
    let elements = u8::try_from(shape.a_elements()).ok()?;
    let (a, b) = (Type::vector(element(shape.a.name())?, elements), Type::vector(element(shape.b.name())?, elements));
    let sums = Type::vector(element(shape.acc.name())?, u8::try_from(shape.acc_elements()).ok()?);
    let integer = sums.scalar == Scalar::I32;
    let (a_name, b_name, sum_name) = (vectors.name(a), vectors.name(b), vectors.name(sums));
    let sum = if integer { format!("bits_as<{}>(sum)", vectors.signed(sums)) } else { "sum".to_string() };
    let builtin = builtin(shape, gpu.matrix)?;
    let twice = gpu.matrix == Matrix::WmmaTwice;
    let register = register(a.scalar, shape.a_elements() * if twice { 2 } else { 1 }, gpu.matrix)?;
    let pass = |operand: &str| {
        if twice {
            format!("both_halves<{register}>({operand})")
        } else if a.scalar == Scalar::F16 {
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
    // clang would decode the operands of every product of a turn before the first one, into more registers than there are
    // for those of `v_wmma`. What may pass: scalar and memory instructions, 0x4 and 0x3f0.
    let order = match gpu.matrix {
        Matrix::Mfma => "",
        Matrix::Wmma | Matrix::WmmaTwice => {
            "    __builtin_amdgcn_sched_barrier(0x3f4); // An operand is decoded after the product before.\n"
        }
    };
    // The builtin returns GCC's vector type, which is mangled as clang's own is: a template over both would be defined twice.
    let call = if integer { format!("({sum_name}){call}") } else { call };
    Some(format!(
        "/// {}: `a` times `b` plus `sum`.\n__device__ inline {sum_name} {}({a_name} a, {b_name} b, {sum_name} sum) {{\n{order}    return {call};\n}}",
        shape,
        name(shape),
    ))
}

/// The scalar of the IR that holds an operand's elements, by the name of their type.
fn element(name: &str) -> Option<Scalar> {
    if name == "u8" { Some(Scalar::I8) } else { Scalar::ALL.into_iter().find(|scalar| scalar.name() == name) }
}

/// What clang calls an operand of so many elements.
fn register(element: Scalar, elements: u32, matrix: Matrix) -> Option<String> {
    Some(match (element, elements) {
        (Scalar::F16, _) => format!("vector<f16, {elements}>"),
        // Most instructions take bf16 as shorts; those of sixteen bytes that gfx950 added take the type itself.
        (Scalar::Bf16, 8) if matrix == Matrix::Mfma => "vector<__bf16, 8>".to_string(),
        (Scalar::Bf16, _) => format!("vector<i16, {elements}>"),
        (_, 4) => "i32".to_string(),
        (_, 8) if matrix == Matrix::Mfma => "i64".to_string(),
        (_, 8) => "vector<i32, 2>".to_string(),
        (_, 16) => "vector<i32, 4>".to_string(),
        _ => return None,
    })
}

/// The builtin of a shape.
fn builtin(shape: &MmaShape, matrix: Matrix) -> Option<String> {
    let float8 = |scalar| match scalar {
        Scalar::E4m3fn | Scalar::E4m3fnuz => Some("fp8"),
        Scalar::E5m2 | Scalar::E5m2fnuz => Some("bf8"),
        _ => None,
    };
    let MmaShape { m, n, k, .. } = *shape;
    let (a, b) = (element(shape.a.name())?, element(shape.b.name())?);
    let size = format!("{m}x{n}x{k}");
    let kind = match (float8(a), float8(b)) {
        (Some(a), Some(b)) => format!("f32_{size}_{a}_{b}"),
        _ => match (matrix, a, k) {
            (Matrix::Mfma, Scalar::F16, 16) => format!("f32_{size}f16"),
            (Matrix::Mfma, Scalar::Bf16, 16) => format!("f32_{size}bf16_1k"),
            (Matrix::Mfma, Scalar::I8, 16) => format!("i32_{size}i8"),
            (_, Scalar::F16, _) => format!("f32_{size}_f16"),
            (_, Scalar::Bf16, _) => format!("f32_{size}_bf16"),
            (Matrix::Mfma, Scalar::I8, _) => format!("i32_{size}_i8"),
            (_, Scalar::I8, _) => format!("i32_{size}_iu8"),
            _ => return None,
        },
    };
    Some(match matrix {
        Matrix::Mfma => format!("__builtin_amdgcn_mfma_{kind}"),
        Matrix::WmmaTwice => format!("__builtin_amdgcn_wmma_{kind}_w32"),
        Matrix::Wmma => format!("__builtin_amdgcn_wmma_{kind}_w32_gfx12"),
    })
}
