//! Formats of a KV cache: how keys and values of attention are stored, as one `Copy` value.
//!
//! `KvFormat` = codes of K, codes of V, and how many of the newest tokens stay in f16. Codes = code × granularity × symmetry.
//! Reads `dtype` and `layout`; knows nothing of operations or devices. Always holds: a code that [`KvCodes`] makes is finite,
//! and its scale is rounded away from zero, so that no code is ever clipped.
//!
//! ```text
//! value = scale · code                        symmetric; 4-bit codes are stored with a bias of 8, values -7 to 7
//! value = scale · code + offset               asymmetric: codes 0 to 2^bits - 1, offset at or below the least number
//! ```
//!
//! Scales and offsets that the cache makes are bf16: the exponent range of f32 in two bytes. Since codes are computed with
//! the scale as stored, its few digits cost no accuracy of their own. Scales per tensor and per head come from the caller.

pub mod codes;
mod grammar;
mod layout;

pub use layout::{KvLayout, Part, Side};

use crate::dtype::DType;

/// How a KV cache is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvFormat {
    /// Keys.
    pub k: KvCodes,
    /// Values.
    pub v: KvCodes,
    /// The newest tokens of each request that stay in f16, a multiple of the page; 0 for none. A page is quantized when the
    /// token that needs its place arrives.
    pub window: u32,
}

/// How keys, or values, are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvCodes {
    /// Type of a code.
    pub code: KvCode,
    /// Which numbers share a scale; `Tensor` for f16 and bf16, which have none.
    pub per: KvPer,
    /// An offset beside each scale.
    pub asymmetric: bool,
    /// Two levels of scales: a byte per group, times a bf16 per token and head.
    pub two_level: bool,
}

/// Type of a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvCode {
    /// IEEE binary16, without a scale.
    F16,
    /// bfloat16, without a scale.
    Bf16,
    /// A byte.
    Int8,
    /// Half a byte.
    Int4,
    /// FP8 E4M3 (OCP).
    E4m3fn,
    /// FP8 E4M3 with bias 8 (MI300).
    E4m3fnuz,
    /// FP8 E5M2 (OCP).
    E5m2,
}

/// Which numbers share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvPer {
    /// All keys, or all values; the caller gives the scale.
    Tensor,
    /// Those of a KV head; the caller gives the scales.
    Head,
    /// Those of a token and head.
    Token,
    /// So many neighbouring channels of a token and head.
    Group(u16),
    /// Those of a channel over a page (keys only, after KIVI).
    Channel,
}

impl KvCode {
    /// Every code.
    pub const ALL: [KvCode; 7] =
        [KvCode::F16, KvCode::Bf16, KvCode::Int8, KvCode::Int4, KvCode::E4m3fn, KvCode::E4m3fnuz, KvCode::E5m2];

    /// Stable name.
    pub const fn name(self) -> &'static str {
        match self {
            KvCode::F16 => "f16",
            KvCode::Bf16 => "bf16",
            KvCode::Int8 => "int8",
            KvCode::Int4 => "int4",
            KvCode::E4m3fn => "fp8e4m3",
            KvCode::E4m3fnuz => "fp8e4m3fnuz",
            KvCode::E5m2 => "fp8e5m2",
        }
    }

    /// Width in bits.
    pub const fn bits(self) -> usize {
        match self {
            KvCode::F16 | KvCode::Bf16 => 16,
            KvCode::Int8 | KvCode::E4m3fn | KvCode::E4m3fnuz | KvCode::E5m2 => 8,
            KvCode::Int4 => 4,
        }
    }

    /// Codes that share a unit of storage: a 16-bit number by itself, and as many smaller codes as 32 bits hold.
    pub const fn per_unit(self) -> usize {
        match self.bits() {
            16 => 1,
            bits => 32 / bits,
        }
    }

    /// Bytes of a unit of storage.
    pub const fn unit_bytes(self) -> usize {
        if self.bits() == 16 { 2 } else { 4 }
    }

    /// The float type whose bits a code has, if it is a float.
    pub const fn float(self) -> Option<DType> {
        match self {
            KvCode::F16 => Some(DType::F16),
            KvCode::Bf16 => Some(DType::Bf16),
            KvCode::E4m3fn => Some(DType::E4m3fn),
            KvCode::E4m3fnuz => Some(DType::E4m3fnuz),
            KvCode::E5m2 => Some(DType::E5m2),
            KvCode::Int8 | KvCode::Int4 => None,
        }
    }

    /// Whether numbers are stored as they are.
    pub const fn is_plain(self) -> bool {
        matches!(self, KvCode::F16 | KvCode::Bf16)
    }
}

impl KvCodes {
    /// f16, the format of windows.
    pub const F16: KvCodes = KvCodes { code: KvCode::F16, per: KvPer::Tensor, asymmetric: false, two_level: false };

    /// The largest magnitude of a symmetric code, or the largest asymmetric one.
    pub fn top(&self) -> f32 {
        match (self.code, self.asymmetric) {
            (KvCode::Int8, false) => 127.0,
            (KvCode::Int8, true) => 255.0,
            (KvCode::Int4, false) => 7.0,
            (KvCode::Int4, true) => 15.0,
            (KvCode::E4m3fn, _) => 448.0,
            (KvCode::E4m3fnuz, _) => 240.0,
            (KvCode::E5m2, _) => 57344.0,
            (KvCode::F16, _) => 65504.0,
            (KvCode::Bf16, _) => 3.3e38,
        }
    }

    /// What is taken off a stored code before it is scaled.
    pub fn bias(&self) -> f32 {
        if self.code == KvCode::Int4 && !self.asymmetric { 8.0 } else { 0.0 }
    }

    /// Whether the caller gives the scales.
    pub fn is_static(&self) -> bool {
        !self.code.is_plain() && matches!(self.per, KvPer::Tensor | KvPer::Head)
    }

    /// Channels that share a scale within a token and head of `head_dim` channels.
    pub fn group(&self, head_dim: usize) -> usize {
        match self.per {
            KvPer::Group(g) => g as usize,
            KvPer::Tensor | KvPer::Head | KvPer::Token | KvPer::Channel => head_dim,
        }
    }

    /// Groups of a token and head.
    pub fn groups(&self, head_dim: usize) -> usize {
        head_dim / self.group(head_dim)
    }

    fn faults(&self, what: &str, faults: &mut Vec<String>) {
        let code = self.code.name();
        if self.code.is_plain() && (self.per != KvPer::Tensor || self.asymmetric || self.two_level) {
            faults.push(format!("{what}: {code} has no scale; accepted: `{code}` alone"));
        }
        if self.asymmetric && self.code.float().is_some() {
            faults.push(format!("{what}: {code} is symmetric; accepted with `asym`: int8, int4"));
        }
        if let KvPer::Group(g) = self.per
            && ![16, 32, 64, 128].contains(&g)
        {
            faults.push(format!("{what}: groups of {g} channels; accepted: 16, 32, 64, 128"));
        }
        if self.two_level && (self.code != KvCode::Int4 || !matches!(self.per, KvPer::Group(_)) || self.asymmetric) {
            faults.push(format!("{what}: two levels of scales are for symmetric int4 groups, such as int4-group32-dq"));
        }
    }
}

impl KvFormat {
    /// f16 keys and values.
    pub const F16: KvFormat = KvFormat { k: KvCodes::F16, v: KvCodes::F16, window: 0 };

    /// Formats that tables and tests name; any other of the grammar is as good.
    pub const NAMED: [&'static str; 22] = [
        "f16",
        "bf16",
        "int8-tensor",
        "int8-head",
        "int8-token",
        "int8-token-asym",
        "int8-group32",
        "fp8e4m3-tensor",
        "fp8e4m3-head",
        "fp8e4m3-token",
        "fp8e4m3fnuz-head",
        "fp8e5m2-tensor",
        "int4-head",
        "int4-head-asym",
        "int4-token",
        "int4-token-asym",
        "int4-group32",
        "int4-group32-asym",
        "int4-group32-dq",
        "int8-token.int4-group32",
        "int8-channel.int8-token+64",
        "int4-channel-asym.int4-token-asym+64",
    ];

    /// Every fault.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        self.k.faults("keys", &mut faults);
        self.v.faults("values", &mut faults);
        if self.v.per == KvPer::Channel {
            faults.push("values: scales per channel are for keys; accepted: tensor, head, token, group<N>".into());
        }
        if self.k.per == KvPer::Channel && self.window == 0 {
            faults.push(
                "keys: scales per channel are known when a page is full, so the newest tokens stay in f16; add a window \
                 of at least a page, such as `+64`"
                    .into(),
            );
        }
        if self.window > 1 << 16 {
            faults.push(format!("a window of {} tokens; accepted: at most 65536", self.window));
        }
        faults
    }
}
