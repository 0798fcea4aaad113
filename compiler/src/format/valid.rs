//! What makes a format sound, and a matrix consistent with its format.
//!
//! Reads a `Format` or a `Quantized` whose fields anyone may have written; makes a list of faults. Containers call it
//! before they index anything, so that no field can make them panic.

use super::{Code, Format, Granularity, Outer, OuterRule, Quantized, Scale, Span, Zero};
use crate::dtype::DType;
use crate::error::{Error, Result};

/// The smallest group: a matrix instruction's K on the smallest device.
pub const MIN_GROUP: u32 = 16;
/// The largest group; no layer has a longer row.
pub const MAX_GROUP: u32 = 1 << 20;

impl Format {
    /// Faults of the format itself, whatever the shape.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        match self.code {
            Code::Int { bits, .. } if !(1..=8).contains(&bits) => {
                faults.push(format!("an integer code of {bits} bits; accepted are 1 to 8"));
            }
            Code::Log { bits } if !(2..=4).contains(&bits) => {
                faults.push(format!("a log code of {bits} bits; accepted are 2 to 4"));
            }
            Code::Float(DType::E4m3fn | DType::E4m3fnuz | DType::E5m2 | DType::E5m2fnuz | DType::E2m1) => {}
            Code::Float(other) => {
                faults
                    .push(format!("a float code of {other:?}; accepted are E4m3fn, E4m3fnuz, E5m2, E5m2fnuz and E2m1"));
            }
            Code::Int { .. } | Code::Log { .. } | Code::Ternary | Code::Binary | Code::Table(_) => {}
        }
        match self.granularity {
            Granularity::Group(g) if !(MIN_GROUP..=MAX_GROUP).contains(&g) => {
                faults.push(format!("a group of {g} weights; accepted are {MIN_GROUP} to {MAX_GROUP}"));
            }
            Granularity::Block { n, k } if n == 0 || k == 0 || n > MAX_GROUP || k > MAX_GROUP => {
                faults.push(format!("a block of {n} by {k} weights; accepted are 1 to {MAX_GROUP} on each side"));
            }
            Granularity::Tensor | Granularity::Channel | Granularity::Group(_) | Granularity::Block { .. } => {}
        }
        let unsigned = matches!(self.code, Code::Int { signed: false, .. });
        match self.zero {
            Zero::None => {}
            Zero::Bias(_) | Zero::Int(_) | Zero::Float(_) if !unsigned => {
                faults.push(format!(
                    "a zero point beside the code {:?}; accepted beside unsigned integers only",
                    self.code
                ));
            }
            Zero::Int(bits) if !(1..=8).contains(&bits) => {
                faults.push(format!("a zero point of {bits} bits; accepted are 1 to 8"));
            }
            Zero::Float(dtype) if !matches!(dtype, DType::F16 | DType::Bf16 | DType::F32) => {
                faults.push(format!("a float zero point of {dtype:?}; accepted are F16, Bf16 and F32"));
            }
            Zero::Offset { scale, sign } => {
                faults.extend(self.scale_faults(&scale, "an offset"));
                if sign != 1 && sign != -1 {
                    faults.push(format!("an offset with sign {sign}; accepted are 1 and -1"));
                }
            }
            Zero::Bias(_) | Zero::Int(_) | Zero::Float(_) => {}
        }
        faults.extend(self.scale_faults(&self.scale, "a scale"));
        faults
    }

    fn scale_faults(&self, scale: &Scale, what: &str) -> Vec<String> {
        let mut faults = Vec::new();
        let alone = matches!(scale.dtype, DType::F32 | DType::F16 | DType::Bf16 | DType::E4m3fn | DType::E8m0);
        let inner = matches!(scale.dtype, DType::U4 | DType::U8 | DType::I8 | DType::E4m3fn);
        match scale.outer {
            None if !alone => {
                faults.push(format!("{what} of {:?}; accepted are F32, F16, Bf16, E4m3fn and E8m0", scale.dtype));
            }
            Some(_) if !inner => faults
                .push(format!("{what} of {:?} under a second level; accepted are U4, U8, I8 and E4m3fn", scale.dtype)),
            Some(Outer { dtype, .. }) if !matches!(dtype, DType::F32 | DType::F16) => {
                faults.push(format!("a second level of {dtype:?}; accepted are F32 and F16"));
            }
            Some(Outer { rule: OuterRule::DynamicMap, .. }) if scale.dtype != DType::U8 => {
                faults.push(format!("{what} of {:?} under the dynamic map; accepted is U8", scale.dtype));
            }
            Some(Outer { span: Span::Flat(0) | Span::Weights(0), .. }) => {
                faults.push(format!("{what} whose second level spans 0 numbers"));
            }
            Some(Outer { span: Span::Weights(w), .. }) => match self.granularity {
                Granularity::Group(g) if g > 0 && w % g == 0 => {}
                other => faults.push(format!("{what} per {w} weights does not hold whole granules of {other:?}")),
            },
            Some(Outer { span: Span::Row, .. })
                if matches!(self.granularity, Granularity::Tensor | Granularity::Block { .. }) =>
            {
                faults.push(format!("{what} per row where a granule is {:?}", self.granularity));
            }
            None | Some(_) => {}
        }
        faults
    }

    /// Faults of a shape that no container can hold.
    pub(super) fn shape_faults(&self, n: usize, k: usize) -> Vec<String> {
        let mut faults = self.faults();
        if n == 0 || k == 0 {
            faults.push(format!("a matrix of {n} rows by {k} columns is empty"));
        } else if n.checked_mul(k).is_none_or(|count| count > 1 << 44) {
            faults.push(format!("a matrix of {n} rows by {k} columns does not fit memory"));
        }
        faults
    }
}

impl Scale {
    /// How many numbers the second level has.
    pub(super) fn outer_len(&self, granularity: Granularity, n: usize, k: usize) -> usize {
        match self.outer {
            None => 0,
            Some(Outer { span, .. }) => match span {
                Span::Tensor => 1,
                Span::Row => n,
                Span::Weights(w) => n * k.div_ceil(w as usize),
                Span::Flat(s) => {
                    let (rows, columns) = granularity.grid(n, k);
                    (rows * columns).div_ceil(s as usize)
                }
            },
        }
    }
}

impl Quantized {
    /// Whether every field has the length and the range that the format and the shape ask for.
    pub fn check(&self) -> Result<()> {
        let format = &self.format;
        let mut faults = format.shape_faults(self.n, self.k);
        if !faults.is_empty() {
            return Err(Error::Invalid(faults));
        }
        let (rows, columns) = format.granularity.grid(self.n, self.k);
        let granules = rows * columns;
        let mut length = |what: &str, found: usize, accepted: usize| {
            if found != accepted {
                faults.push(format!("{found} {what} for a [{}, {}] matrix; accepted is {accepted}", self.n, self.k));
            }
        };
        let outer = format.scale.outer_len(format.granularity, self.n, self.k);
        let (zeros, zeros_outer, zero_width) = match format.zero {
            Zero::None | Zero::Bias(_) => (0, 0, 32),
            Zero::Int(bits) => (granules, 0, bits as u32),
            Zero::Float(dtype) => (granules, 0, dtype.bits()),
            Zero::Offset { scale, .. } => {
                (granules, scale.outer_len(format.granularity, self.n, self.k), scale.dtype.bits())
            }
        };
        length("codes", self.codes.len(), self.n * self.k);
        length("scales", self.scales.len(), granules);
        length("second-level scales", self.outer.len(), outer);
        length("zeros", self.zeros.len(), zeros);
        length("second-level zeros", self.zeros_outer.len(), zeros_outer);
        if let Some(order) = &self.order {
            length("group indices", order.len(), self.k);
            match format.granularity {
                Granularity::Group(_) => {
                    if let Some(g) = order.iter().find(|g| **g as usize >= columns) {
                        faults.push(format!("a column in group {g}; there are {columns} groups"));
                    }
                }
                other => faults.push(format!("group indices where a granule is {other:?}")),
            }
        }
        if let Some(at) = self.codes.iter().position(|code| !format.code.valid(*code)) {
            faults.push(format!(
                "code {} at row {}, column {} is none of {:?}",
                self.codes[at],
                at / self.k,
                at % self.k,
                format.code
            ));
        }
        let mut width = |what: &str, raw: &[u32], bits: u32| {
            if let Some(bad) = raw.iter().find(|raw| bits < 32 && **raw >> bits != 0) {
                faults.push(format!("the {what} {bad:#x} is wider than {bits} bits"));
            }
        };
        width("scale", &self.scales, format.scale.dtype.bits());
        width("zero", &self.zeros, zero_width);
        if let Some(outer) = format.scale.outer {
            width("second-level scale", &self.outer, outer.dtype.bits());
        }
        if let Zero::Offset { scale: Scale { outer: Some(outer), .. }, .. } = format.zero {
            width("second-level zero", &self.zeros_outer, outer.dtype.bits());
        }
        if faults.is_empty() { Ok(()) } else { Err(Error::Invalid(faults)) }
    }
}
