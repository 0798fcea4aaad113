//! OCP fp8 weights for devices whose 8-bit floats are the `fnuz` types (MI300): the same numbers, written otherwise.
//!
//! Reads a matrix whose codes are `E4m3fn` or `E5m2`; makes one whose codes are `E4m3fnuz` or `E5m2fnuz`. The same bits stand
//! for half the number there, so codes stay (minus zero becomes zero) and scales double. Always holds: every number of the
//! matrix is exactly the same, or the matrix is refused with the place of what cannot be written.

use super::{Code, Format, OuterRule, PLAIN, Quantized, Scale};
use crate::dtype::{DType, fn_to_fnuz};
use crate::error::{Error, Result};

/// The `fnuz` counterpart of an OCP type; `None` for every other type.
pub const fn fnuz_type(dtype: DType) -> Option<DType> {
    match dtype {
        DType::E4m3fn => Some(DType::E4m3fnuz),
        DType::E5m2 => Some(DType::E5m2fnuz),
        _ => None,
    }
}

/// The format whose codes are the `fnuz` counterparts of a format's; `None` if its codes are no OCP fp8.
pub fn fnuz_format(format: &Format) -> Option<Format> {
    let Code::Float(dtype) = format.code else { return None };
    // Only the plain container has a place for these types whatever the granularity.
    fnuz_type(dtype).map(|dtype| Format { code: Code::Float(dtype), container: &PLAIN, ..*format })
}

/// A matrix with `fnuz` codes. Fails, with row and column, at a code that is NaN or infinite, and, with its number, at a
/// scale whose double its type does not have.
pub fn to_fnuz(q: &Quantized) -> Result<Quantized> {
    let (Some(format), Code::Float(dtype)) = (fnuz_format(&q.format), q.format.code) else {
        return Err(Error::invalid(format!("format {}: accepted: codes of e4m3fn or e5m2", q.format)));
    };
    if let Some(at) = q.codes.iter().position(|&code| !dtype.decode(code as u32).is_finite()) {
        let (row, column, code) = (at / q.k, at % q.k, q.codes[at]);
        return Err(Error::invalid(format!(
            "row {row}, column {column}: code {code:#04x} of {dtype} is not a finite number; {dtype}uz has none like it"
        )));
    }
    let mut out = Quantized { format, ..q.clone() };
    fn_to_fnuz(dtype, &mut out.codes)?;
    match q.format.scale {
        Scale { dtype, outer: None } => double(dtype, &mut out.scales, "scale", 2.0)?,
        Scale { outer: Some(outer), .. } => match outer.rule {
            OuterRule::Multiply => double(outer.dtype, &mut out.outer, "second-level scale", 2.0)?,
            OuterRule::Divide => double(outer.dtype, &mut out.outer, "second-level scale", 0.5)?,
            OuterRule::DynamicMap => {
                return Err(Error::Unsupported(format!("format {}: fnuz codes under a dynamic map", q.format)));
            }
        },
    }
    Ok(out)
}

/// Numbers times a power of two, exactly.
fn double(dtype: DType, bits: &mut [u32], what: &str, by: f64) -> Result<()> {
    for (number, bits) in bits.iter_mut().enumerate() {
        let (old, wanted) = (dtype.decode(*bits), dtype.decode(*bits) * by);
        let new = dtype.encode(wanted);
        if !old.is_finite() || dtype.decode(new) != wanted {
            return Err(Error::invalid(format!("{what} {number} is {old}: {dtype} does not have {wanted}")));
        }
        *bits = new;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(text: &str, codes: Vec<u8>) -> Quantized {
        let format: Format = text.parse().unwrap();
        let (n, k) = (codes.len() / 32, 32);
        let zeros = format.encode(&vec![1.0; n * k], n, k, None).unwrap();
        Quantized { codes, ..zeros }
    }

    #[test]
    fn every_code_stands_for_the_same_number() {
        for (text, dtype) in [
            ("fp8e4m3-channel", DType::E4m3fn),
            ("fp8e5m2-channel-bf16", DType::E5m2),
            ("fp8e4m3-g16-f16", DType::E4m3fn),
            ("fp8e5m2-tensor", DType::E5m2),
        ] {
            for code in 0..=255u8 {
                let mut codes = vec![0x38; 64];
                codes[41] = code;
                let q = matrix(text, codes);
                match to_fnuz(&q) {
                    Ok(uz) => {
                        assert!(uz.codes.iter().all(|&code| code != 0x80), "0x80 is NaN in {}", uz.format);
                        assert_ne!(uz.format.code, q.format.code);
                        for at in 0..64 {
                            let (row, column) = (at / 32, at % 32);
                            assert_eq!(uz.value(row, column), q.value(row, column), "{text}, code {code:#04x}");
                        }
                        assert!(dtype.decode(code as u32).is_finite());
                    }
                    Err(error) => {
                        assert!(!dtype.decode(code as u32).is_finite(), "{text}, {code:#04x}: {error}");
                        assert!(error.to_string().contains("row 1, column 9"), "{error}");
                    }
                }
            }
        }
    }

    #[test]
    fn scales_whose_double_does_not_exist_are_refused() {
        let mut q = matrix("fp8e4m3-channel-f16", vec![0x38; 64]);
        q.scales[1] = DType::F16.encode(40000.0);
        let error = to_fnuz(&q).unwrap_err().to_string();
        assert!(error.contains("scale 1 is 40000"), "{error}");
        q.scales[1] = DType::F16.encode(32000.0);
        assert_eq!(to_fnuz(&q).unwrap().value(1, 3), q.value(1, 3));
        assert!(to_fnuz(&matrix("int8-channel", vec![1; 64])).is_err());
    }
}
