//! The same matrix in another container: codes are moved, never rounded.
//!
//! Reads a [`Quantized`] and the container that is wanted; makes one in that container. Always holds: every number is the
//! same before and after, which is checked, or the request is refused with what the container accepts.

use crate::model::dequantize;
use bitsmith_compiler::dtype::{DType, fnuz_to_fn};
use bitsmith_compiler::format::{Code, Container, Format, GPTQ_V2, Granularity, Quantized, Zero};
use bitsmith_compiler::{Error, Result};

/// The matrix in a container, with whatever code and zero of those that it holds means the same.
pub fn reframe(q: &Quantized, container: &'static Container) -> Result<Quantized> {
    if *q.format.container == *container {
        return Ok(q.clone());
    }
    let mut faults = Vec::new();
    for candidate in candidates(q) {
        let format = Format { container, ..candidate.format };
        let list = (container.check)(&format, q.n, q.k);
        if list.is_empty() {
            let moved = Quantized { format, ..candidate };
            if moved.check().is_ok() && same(q, &moved) {
                return Ok(moved);
            }
            return Err(Error::Bug {
                message: format!("{} does not mean the same in {}", q.format, container.name),
                text: format!("{format:?}"),
            });
        }
        if faults.is_empty() || list.len() < faults.len() {
            faults = list;
        }
    }
    Err(Error::Invalid(
        faults.into_iter().map(|fault| format!("{} as {}: {fault}", q.format, container.name)).collect(),
    ))
}

/// The matrix in a format that has a name, GGUF's `q4_0` for instance.
pub fn reframe_as(q: &Quantized, format: &Format) -> Result<Quantized> {
    let found = candidates(q)
        .into_iter()
        .find(|candidate| Format { container: format.container, ..candidate.format } == *format);
    match found {
        Some(candidate) if same(q, &candidate) => Ok(Quantized { format: *format, ..candidate }),
        _ => Err(Error::invalid(format!("{} cannot be written as {format} without rounding again", q.format))),
    }
}

fn same(a: &Quantized, b: &Quantized) -> bool {
    let (a, b) = (dequantize(a), dequantize(b));
    a.iter().zip(&b).all(|(a, b)| a == b)
}

/// The matrix in every code and zero that mean the same, the present one first.
fn candidates(q: &Quantized) -> Vec<Quantized> {
    let mut list = vec![q.clone()];
    match (q.format.code, q.format.zero) {
        (Code::Int { bits, signed: true }, Zero::None) => {
            let flip = 1u8 << (bits - 1);
            let mut unsigned = q.clone();
            unsigned.codes.iter_mut().for_each(|code| *code ^= flip);
            unsigned.format.code = Code::Int { bits, signed: false };
            unsigned.format.zero = Zero::Bias(flip as i16);
            // Zeros are written only where a container has no other word for the middle.
            list.push(unsigned.clone());
            list.push(with_zeros(&unsigned, bits));
        }
        (Code::Int { bits, signed: false }, Zero::Bias(bias)) => {
            list.push(with_zeros(q, bits));
            if bias == 1 << (bits - 1) && bits > 1 {
                let mut signed = q.clone();
                signed.codes.iter_mut().for_each(|code| *code ^= 1u8 << (bits - 1));
                signed.format.code = Code::Int { bits, signed: true };
                signed.format.zero = Zero::None;
                list.push(signed);
            }
        }
        (Code::Int { bits, signed: false }, Zero::Int(_)) => {
            let middle = 1u32 << (bits - 1);
            if q.zeros.iter().all(|zero| *zero == middle) {
                let mut plain = q.clone();
                plain.zeros.clear();
                plain.format.zero = Zero::Bias(middle as i16);
                list.extend(candidates(&plain));
            }
        }
        (Code::Float(DType::E4m3fnuz), Zero::None) if fnuz_to_fn(DType::E4m3fn, &q.codes).is_ok() => {
            // The same byte means half as much in fnuz, so scales halve; powers of two are exact in every float scale.
            let mut ocp = q.clone();
            ocp.format.code = Code::Float(DType::E4m3fn);
            ocp.scales.iter_mut().for_each(|s| *s = q.format.scale.dtype.encode(q.format.scale.dtype.decode(*s) / 2.0));
            list.push(ocp);
        }
        _ => {}
    }
    // A group as long as the row, and the row, are the same.
    let rows: Vec<Quantized> = list
        .iter()
        .filter_map(|c| {
            let granularity = match c.format.granularity {
                Granularity::Group(g) if g as usize >= c.k => Granularity::Channel,
                Granularity::Channel if c.k >= 16 => Granularity::Group(c.k as u32),
                _ => return None,
            };
            Some(Quantized { format: Format { granularity, ..c.format }, ..c.clone() })
        })
        .collect();
    list.extend(rows);
    list
}

fn with_zeros(q: &Quantized, bits: u8) -> Quantized {
    let Zero::Bias(bias) = q.format.zero else { return q.clone() };
    Quantized {
        format: Format { zero: Zero::Int(bits), ..q.format },
        zeros: vec![bias as u32; q.scales.len()],
        ..q.clone()
    }
}

/// Whether GPTQ's version 2 is the safe one to write: a zero of 0 is what other readers of version 1 get wrong.
pub fn needs_gptq_v2(q: &Quantized) -> bool {
    *q.format.container == GPTQ_V2 || matches!(q.format.zero, Zero::Int(_)) && q.zeros.contains(&0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_compiler::format::{AWQ, CT_PACK, CT_PLAIN, GPTQ_V1};

    fn encoded(name: &str) -> Quantized {
        let mut rng = fastrand::Rng::with_seed(1);
        let w: Vec<f32> = (0..32 * 128).map(|_| rng.f32() - 0.5).collect();
        name.parse::<Format>().unwrap().encode(&w, 32, 128, None).unwrap()
    }

    #[test]
    fn integers_move_between_containers_and_back() {
        for (from, container) in [
            ("int4-g64", &CT_PACK),
            ("int4-g64", &GPTQ_V1),
            ("int4-g64", &AWQ),
            ("int4-g64-asym", &AWQ),
            ("int4-g64-asym", &CT_PACK),
            ("int3-g64", &GPTQ_V1),
            ("int8-channel", &CT_PLAIN),
            ("ct-int8-channel", &CT_PLAIN),
            ("int4-g128", &CT_PACK),
            ("fp8e4m3-channel", &CT_PLAIN),
            ("fp8e4m3fnuz-channel", &CT_PLAIN),
        ] {
            let mut q = encoded(from);
            if q.format.code == Code::Float(DType::E4m3fnuz) {
                // The largest number of fnuz has the bits of fn's NaN, so it cannot move.
                assert!(reframe(&q, container).is_err(), "{from}");
                q.codes.iter_mut().filter(|code| **code & 0x7f == 0x7f).for_each(|code| *code -= 1);
            }
            let moved = reframe(&q, container).unwrap_or_else(|error| panic!("{from} to {}: {error}", container.name));
            assert_eq!(dequantize(&moved), dequantize(&q), "{from}");
            let parts = (container.pack)(&moved).unwrap();
            assert_eq!((container.unpack)(&moved.format, 32, 128, &parts).unwrap(), moved, "{from}");
        }
    }

    #[test]
    fn what_would_be_rounded_is_refused_with_a_reason() {
        assert!(reframe(&encoded("int3-g64"), &AWQ).unwrap_err().to_string().contains("4-bit"));
        assert!(reframe(&encoded("nf4"), &CT_PACK).is_err());
        let q4_0: Format = "q4_0".parse().unwrap();
        assert!(reframe_as(&encoded("int4-g64"), &q4_0).is_err());
        assert_eq!(dequantize(&reframe_as(&encoded("int4-g32"), &q4_0).unwrap()), dequantize(&encoded("int4-g32")));
    }

    #[test]
    fn a_zero_of_0_asks_for_version_2() {
        let mut q = encoded("int4-g64-asym");
        q.zeros.fill(3);
        assert!(!needs_gptq_v2(&q));
        q.zeros[5] = 0;
        assert!(needs_gptq_v2(&q));
    }
}
