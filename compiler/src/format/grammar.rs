//! The grammar of format names: `int4-g64-asym`, `fp8e4m3-channel`, `gptq-int4-g128`, `q4_k`.
//!
//! Reads a name, makes a [`Format`], and back. Always holds: `parse(print(f)) == f` for every format that a name makes.
//! A name is either one of [`Format::ALL`], or a family's prefix and its own words, or, in the plain container,
//!
//! ```text
//! name        = code "-" granularity { "-" modifier }          (words after the code in any order)
//! code        = int2..int8     two's complement; unsigned once a zero, a bias or an offset is named
//!             | uint1..uint8   unsigned
//!             | ternary | binary | log2 | log3 | log4 | nf4 | iq4nl | fp4
//!             | fp8e4m3 | fp8e5m2 | fp8e4m3fnuz | fp8e5m2fnuz
//! granularity = tensor | channel | g<size> | block<size> | block<rows>x<columns>
//! zero        = asym       an integer zero point as wide as the code; asym<bits> for another width
//!             | fzero      a float zero point, f16; fzero32 and fzerobf16 for other types
//!             | bias       a fixed bias, half the range; bias<number> for another one
//!             | offset     an offset per granule, of the scale's type: w = s * code + m
//! scale       = f32 | f16 | bf16 | fp8 (E4M3) | e8m0           default f16; f32 under the 8-bit floats, whose
//!                                                              scales would fall below f16's normal range
//!             | dq         two levels: u8 scales; f16 per 256 weights if the group divides 256, else f32 per row;
//!                          per matrix for channels and blocks
//!             | fp8-dq     two levels: E4M3 scales, f32 per matrix
//! ```

use super::plain::PLAIN;
use super::{Code, Format, Granularity, Outer, OuterRule, Scale, Span, Zero, tables};
use crate::dtype::DType;
use crate::error::{Error, Result};
use std::fmt::{Display, Formatter};
use std::str::FromStr;

/// A family of names with parameters: `gptq-…`.
pub(super) struct Family {
    /// How its names begin, hyphen included.
    pub prefix: &'static str,
    /// What follows, for messages.
    pub accepted: &'static str,
    /// Reads what follows the prefix.
    pub parse: fn(&str) -> Result<Format>,
    /// Prints what follows the prefix; `None` if the format is of another family.
    pub print: fn(&Format) -> Option<String>,
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(name: &str) -> Result<Format> {
        let name = name.trim().to_ascii_lowercase();
        if let Some(named) = Format::ALL.iter().find(|named| named.name == name) {
            return Ok(named.format);
        }
        let format = match super::named::FAMILIES.iter().find(|family| name.starts_with(family.prefix)) {
            Some(family) => (family.parse)(&name[family.prefix.len()..])
                .map_err(|error| Error::invalid(format!("format `{name}`: {error}")))?,
            None => plain(&name)?,
        };
        let faults = format.faults();
        if faults.is_empty() {
            Ok(format)
        } else {
            Err(Error::Invalid(faults.iter().map(|fault| format!("format `{name}`: {fault}")).collect()))
        }
    }
}

impl Display for Format {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        if let Some(named) = Format::ALL.iter().find(|named| named.format == *self) {
            return f.pad(named.name);
        }
        for family in super::named::FAMILIES {
            if let Some(tail) = (family.print)(self) {
                return f.pad(&format!("{}{tail}", family.prefix));
            }
        }
        f.pad(&self.plain_name())
    }
}

const CODES: &str = "int2 to int8, uint1 to uint8, ternary, binary, log2 to log4, nf4, iq4nl, fp4, fp8e4m3, fp8e5m2, \
                     fp8e4m3fnuz, fp8e5m2fnuz";
const GRANULARITIES: &str = "tensor, channel, g<16 to 1048576>, block<size>, block<rows>x<columns>";
const MODIFIERS: &str = "asym, fzero, bias, offset; f32, f16, bf16, fp8, e8m0, dq";

/// Reads a name of the plain container.
fn plain(name: &str) -> Result<Format> {
    let mut words = name.split('-');
    let first = words.next().unwrap_or_default();
    let mut code = code(first).ok_or_else(|| unknown_name(name))?;
    let (mut granularity, mut zero, mut scale, mut two_level) = (None, None, None, false);
    let twice = |what: &str| Error::invalid(format!("format `{name}` names {what} twice"));
    for word in words {
        if let Some(found) = self::granularity(word).map_err(|e| Error::invalid(format!("format `{name}`: {e}")))? {
            if granularity.replace(found).is_some() {
                return Err(twice("a granularity"));
            }
        } else if let Some(found) = zero_word(word, code.bits()) {
            if zero.replace(found).is_some() {
                return Err(twice("a zero"));
            }
        } else if let Some(found) = scale_word(word) {
            if scale.replace(found).is_some() {
                return Err(twice("a scale type"));
            }
        } else if word == "dq" && !two_level {
            two_level = true;
        } else {
            return Err(Error::invalid(format!(
                "format `{name}`: unknown word `{word}`; accepted are a granularity ({GRANULARITIES}) and modifiers \
                 ({MODIFIERS})"
            )));
        }
    }
    let granularity = granularity
        .ok_or_else(|| Error::invalid(format!("format `{name}` names no granularity; accepted are {GRANULARITIES}")))?;
    let scale = match (two_level, scale) {
        (false, scale) => Scale::of(scale.unwrap_or(default_scale(code))),
        (true, None) => two_levels(DType::U8, granularity),
        (true, Some(DType::E4m3fn)) => two_levels(DType::E4m3fn, granularity),
        (true, Some(other)) => {
            return Err(Error::invalid(format!(
                "format `{name}`: two-level scales of {other:?}; accepted are `dq` (u8) and `fp8-dq` (E4M3)"
            )));
        }
    };
    let zero = match zero {
        None => Zero::None,
        // The word comes before the scale's type may be known.
        Some(Zero::Offset { sign, .. }) => Zero::Offset { scale, sign },
        Some(zero) => zero,
    };
    if let (Code::Int { bits, signed: true }, Zero::Bias(_) | Zero::Int(_) | Zero::Float(_) | Zero::Offset { .. }) =
        (code, zero)
    {
        code = Code::Int { bits, signed: false };
    }
    if two_level && matches!(granularity, Granularity::Tensor) {
        return Err(Error::invalid(format!("format `{name}`: one scale for all has no second level")));
    }
    if let (true, Zero::Offset { .. }) = (two_level, zero) {
        return Err(Error::invalid(format!("format `{name}`: an offset has either sign, and two levels hold one")));
    }
    if let Zero::Offset { scale: Scale { dtype: DType::E8m0 | DType::E4m3fn, .. }, .. } = zero {
        return Err(Error::invalid(format!("format `{name}`: an offset takes f32, f16 or bf16")));
    }
    Ok(Format { code, granularity, zero, scale, container: &PLAIN })
}

fn unknown_name(name: &str) -> Error {
    let named: Vec<_> = Format::ALL.iter().map(|named| named.name).collect();
    let families: Vec<_> =
        super::named::FAMILIES.iter().map(|family| format!("{}{}", family.prefix, family.accepted)).collect();
    Error::invalid(format!(
        "unknown format `{name}`; accepted are {}; {}; or a code ({CODES}), a granularity ({GRANULARITIES}) and \
         modifiers ({MODIFIERS}) joined by hyphens, such as int4-g64-asym",
        named.join(", "),
        families.join(", ")
    ))
}

fn code(word: &str) -> Option<Code> {
    if let Some(bits) = word.strip_prefix("int") {
        return number(bits).filter(|b| (2..=8).contains(b)).map(|bits| Code::Int { bits: bits as u8, signed: true });
    }
    if let Some(bits) = word.strip_prefix("uint") {
        return number(bits).filter(|b| (1..=8).contains(b)).map(|bits| Code::Int { bits: bits as u8, signed: false });
    }
    if let Some(bits) = word.strip_prefix("log") {
        return number(bits).filter(|b| (2..=4).contains(b)).map(|bits| Code::Log { bits: bits as u8 });
    }
    NAMED_CODES.iter().find(|(name, _)| *name == word).map(|(_, code)| *code)
}

const NAMED_CODES: &[(&str, Code)] = &[
    ("ternary", Code::Ternary),
    ("binary", Code::Binary),
    ("nf4", Code::Table(&tables::NF4)),
    ("iq4nl", Code::Table(&tables::IQ4_NL)),
    ("fp4", Code::Float(DType::E2m1)),
    ("fp8e4m3", Code::Float(DType::E4m3fn)),
    ("fp8e5m2", Code::Float(DType::E5m2)),
    ("fp8e4m3fnuz", Code::Float(DType::E4m3fnuz)),
    ("fp8e5m2fnuz", Code::Float(DType::E5m2fnuz)),
];

/// A decimal number without sign or leading zeros.
pub(super) fn number(word: &str) -> Option<u32> {
    let plain = !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    plain.then(|| word.parse().ok()).flatten()
}

/// Reads a granularity; `None` if the word is none, an error if it is one that is not accepted.
pub(super) fn granularity(word: &str) -> Result<Option<Granularity>> {
    let refused = || Err(Error::invalid(format!("granularity `{word}`; accepted are {GRANULARITIES}")));
    match word {
        "tensor" => return Ok(Some(Granularity::Tensor)),
        "channel" => return Ok(Some(Granularity::Channel)),
        _ => {}
    }
    if let Some(size) = word.strip_prefix("block") {
        let (n, k) = size.split_once('x').unwrap_or((size, size));
        return match (number(n), number(k)) {
            (Some(n), Some(k)) if n > 0 && k > 0 => Ok(Some(Granularity::Block { n, k })),
            _ => refused(),
        };
    }
    match word.strip_prefix('g') {
        None => Ok(None),
        Some(size) => match number(size) {
            Some(size) if (super::valid::MIN_GROUP..=super::valid::MAX_GROUP).contains(&size) => {
                Ok(Some(Granularity::Group(size)))
            }
            _ => refused(),
        },
    }
}

/// Prints a granularity.
pub(super) fn granularity_word(granularity: Granularity) -> String {
    match granularity {
        Granularity::Tensor => "tensor".into(),
        Granularity::Channel => "channel".into(),
        Granularity::Group(size) => format!("g{size}"),
        Granularity::Block { n, k } if n == k => format!("block{n}"),
        Granularity::Block { n, k } => format!("block{n}x{k}"),
    }
}

fn zero_word(word: &str, bits: u8) -> Option<Zero> {
    match word {
        "asym" => Some(Zero::Int(bits)),
        "fzero" => Some(Zero::Float(DType::F16)),
        "fzero32" => Some(Zero::Float(DType::F32)),
        "fzerobf16" => Some(Zero::Float(DType::Bf16)),
        "bias" => Some(Zero::Bias(1 << (bits - 1))),
        "offset" => Some(Zero::Offset { scale: Scale::of(DType::F16), sign: 1 }),
        _ => match (word.strip_prefix("asym"), word.strip_prefix("bias")) {
            (Some(width), _) => number(width).filter(|w| (1..=8).contains(w)).map(|w| Zero::Int(w as u8)),
            (_, Some(bias)) => number(bias).filter(|b| *b < 256).map(|b| Zero::Bias(b as i16)),
            (None, None) => None,
        },
    }
}

fn scale_word(word: &str) -> Option<DType> {
    SCALES.iter().find(|(name, _)| *name == word).map(|(_, dtype)| *dtype)
}

const SCALES: &[(&str, DType)] =
    &[("f32", DType::F32), ("f16", DType::F16), ("bf16", DType::Bf16), ("fp8", DType::E4m3fn), ("e8m0", DType::E8m0)];

fn default_scale(code: Code) -> DType {
    match code {
        Code::Float(DType::E2m1) => DType::F16,
        Code::Float(_) => DType::F32,
        Code::Int { .. } | Code::Ternary | Code::Binary | Code::Log { .. } | Code::Table(_) => DType::F16,
    }
}

/// The second level that `dq` stands for.
fn two_levels(inner: DType, granularity: Granularity) -> Scale {
    let (dtype, span) = match granularity {
        Granularity::Group(g) if inner == DType::U8 && 256 % g == 0 => (DType::F16, Span::Weights(256)),
        Granularity::Group(_) if inner == DType::U8 => (DType::F32, Span::Row),
        Granularity::Tensor | Granularity::Channel | Granularity::Group(_) | Granularity::Block { .. } => {
            (DType::F32, Span::Tensor)
        }
    };
    Scale { dtype: inner, outer: Some(Outer { dtype, span, rule: OuterRule::Multiply }) }
}

impl Format {
    /// The name in the plain container's grammar; in angle brackets, and then not readable, where the grammar has none.
    fn plain_name(&self) -> String {
        let plain = self.plain_words().filter(|_| *self.container == PLAIN);
        plain.unwrap_or_else(|| {
            format!(
                "<{:?} {} {:?} {:?} {}>",
                self.code,
                granularity_word(self.granularity),
                self.zero,
                self.scale,
                self.container.name
            )
        })
    }

    fn plain_words(&self) -> Option<String> {
        let mut words = vec![];
        words.push(match self.code {
            Code::Int { bits, signed: true } => format!("int{bits}"),
            Code::Int { bits, signed: false } if self.zero == Zero::None || bits == 1 => format!("uint{bits}"),
            Code::Int { bits, signed: false } => format!("int{bits}"),
            Code::Log { bits } => format!("log{bits}"),
            other => NAMED_CODES.iter().find(|(_, code)| *code == other)?.0.to_string(),
        });
        words.push(granularity_word(self.granularity));
        let bits = self.code.bits();
        match self.zero {
            Zero::None => {}
            Zero::Int(width) if width == bits => words.push("asym".into()),
            Zero::Int(width) => words.push(format!("asym{width}")),
            Zero::Bias(bias) if bias == 1 << (bits - 1) => words.push("bias".into()),
            Zero::Bias(bias) => words.push(format!("bias{bias}")),
            Zero::Float(DType::F32) => words.push("fzero32".into()),
            Zero::Float(DType::Bf16) => words.push("fzerobf16".into()),
            Zero::Float(_) => words.push("fzero".into()),
            Zero::Offset { scale, sign: 1 } if scale == self.scale => words.push("offset".into()),
            Zero::Offset { .. } => return None,
        }
        let Scale { dtype, outer } = self.scale;
        if outer.is_some() {
            if self.scale != two_levels(dtype, self.granularity) {
                return None;
            }
            if dtype == DType::E4m3fn {
                words.push("fp8".into());
            }
            words.push("dq".into());
        } else if dtype != default_scale(self.code) {
            words.push(SCALES.iter().find(|(_, scale)| *scale == dtype)?.0.into());
        }
        Some(words.join("-"))
    }
}
