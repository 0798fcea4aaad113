//! Exact change of container between OCP fp8 (`fn`, `e5m2`) and the `fnuz` types of MI300.
//!
//! The same bits stand for half the number in a `fnuz` type, so codes stay and the scale doubles. Negative zero becomes
//! zero. A NaN has no such code, and is refused: it would become a finite number without a word.

use super::DType;
use crate::error::{Error, Result};

/// OCP codes as `fnuz` codes in place; the caller doubles the scale. Fails at the first NaN or infinity, and then has
/// changed nothing, so the caller still holds the tensor it started with.
pub fn fn_to_fnuz(dtype: DType, codes: &mut [u8]) -> Result<()> {
    for (i, &code) in codes.iter().enumerate() {
        if !dtype.decode(code as u32).is_finite() {
            return Err(Error::invalid(format!(
                "code {i} is {code:#04x}, not a finite {dtype}: it has no {dtype}uz counterpart"
            )));
        }
    }
    for code in codes {
        if *code == 0x80 {
            *code = 0;
        }
    }
    Ok(())
}

/// `fnuz` codes as OCP codes in place; the caller halves the scale. Fails at the first NaN, and at codes whose bits are
/// NaN or infinity in `to`.
pub fn fnuz_to_fn(to: DType, codes: &[u8]) -> Result<()> {
    for (i, &code) in codes.iter().enumerate() {
        if code == 0x80 {
            return Err(Error::invalid(format!("code {i} is NaN (0x80): it has no {to} counterpart")));
        }
        if !to.decode(code as u32).is_finite() {
            return Err(Error::invalid(format!("code {i} is {code:#04x}, which is beyond the range of {to}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_stand_for_half_the_number() {
        for (ocp, uz) in [(DType::E4m3fn, DType::E4m3fnuz), (DType::E5m2, DType::E5m2fnuz)] {
            for code in 0..=255u8 {
                let mut codes = [code];
                let converted = fn_to_fnuz(ocp, &mut codes);
                assert_eq!(converted.is_ok(), ocp.decode(code as u32).is_finite(), "{ocp} {code:#04x}");
                if converted.is_ok() {
                    assert_eq!(2.0 * uz.decode(codes[0] as u32), ocp.decode(code as u32), "{ocp} {code:#04x}");
                    assert!(fnuz_to_fn(ocp, &codes).is_ok());
                }
            }
            assert!(fnuz_to_fn(ocp, &[0x80]).is_err());
        }
    }

    #[test]
    fn a_refused_tensor_is_unchanged() {
        let mut codes = [0x80, 0x01, 0x7f];
        let message = fn_to_fnuz(DType::E4m3fn, &mut codes).unwrap_err().to_string();
        assert!(message.contains("code 2 is 0x7f"), "{message}");
        assert_eq!(codes, [0x80, 0x01, 0x7f]);
    }
}
