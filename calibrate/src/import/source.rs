//! The tensors under one layer's name, by the tools that write integers and FP8: GPTQ, AWQ, compressed-tensors, FP8.
//!
//! Reads what a scheme says and the tensors that are there; makes a [`Quantized`]. Always holds: where the two contradict
//! each other, the tensors win and a note says so, or the layer is refused.

use super::scheme::CtGroup;
use super::tensors::float_type;
use crate::file::{SafeTensor, SafeTensorsFile, SafeTensorsType as T, clip};
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::{
    AWQ, CT_PACK, CT_PLAIN, Code, Container, Format, GPTQ_V1, GPTQ_V2, Granularity, HF_FP8, PLAIN, Part, PartType,
    Quantized, Scale, Zero, gptq,
};
use bitsmith_compiler::{Error, Result};

pub(super) fn granularity(group: Option<u32>, k: usize) -> Granularity {
    // A group as long as the row is the row.
    group.filter(|&g| (g as usize) < k).map_or(Granularity::Channel, Granularity::Group)
}

fn integer(bits: u8, granularity: Granularity, sym: bool, scale: DType, container: &'static Container) -> Format {
    let zero = if sym { Zero::Bias(1 << (bits - 1)) } else { Zero::Int(bits) };
    Format { code: Code::Int { bits, signed: false }, granularity, zero, scale: Scale::of(scale), container }
}

pub(super) fn part_type(dtype: T) -> Option<PartType> {
    Some(match dtype {
        T::U8 | T::F8_E8M0 => PartType::U8,
        T::I8 => PartType::I8,
        T::I32 => PartType::I32,
        T::I64 => PartType::I64,
        T::F16 => PartType::F16,
        T::BF16 => PartType::Bf16,
        T::F32 => PartType::F32,
        T::F8_E4M3 => PartType::E4m3fn,
        T::F8_E5M2 => PartType::E5m2,
        T::F8_E4M3FNUZ => PartType::E4m3fnuz,
        T::F8_E5M2FNUZ => PartType::E5m2fnuz,
        _ => return None,
    })
}

fn small_float(dtype: T) -> Option<DType> {
    match dtype {
        T::F8_E4M3 => Some(DType::E4m3fn),
        T::F8_E5M2 => Some(DType::E5m2),
        T::F8_E4M3FNUZ => Some(DType::E4m3fnuz),
        T::F8_E5M2FNUZ => Some(DType::E5m2fnuz),
        _ => None,
    }
}

/// The tensors under one layer's name.
pub(super) struct Source<'f> {
    pub file: &'f SafeTensorsFile,
    pub name: &'f str,
    pub n: usize,
    pub k: usize,
}

impl Source<'_> {
    pub(super) fn fault(&self, message: impl std::fmt::Display) -> Error {
        Error::invalid(format!("{}: {}: {message}", self.file.name(), clip(self.name)))
    }

    pub(super) fn tensor(&self, suffix: &str) -> Option<&SafeTensor> {
        self.file.tensor(&format!("{}.{suffix}", self.name))
    }

    pub(super) fn part(&self, suffix: &'static str) -> Result<Option<Part>> {
        let Some(tensor) = self.tensor(suffix) else { return Ok(None) };
        let dtype = part_type(tensor.dtype)
            .ok_or_else(|| self.fault(format!("`{suffix}` is {}, which no container holds", tensor.dtype)))?;
        Ok(Some(Part { name: suffix, dtype, shape: tensor.shape.clone(), bytes: self.file.data(tensor).to_vec() }))
    }

    pub(super) fn float(&self, suffix: &str) -> Result<DType> {
        let tensor = self.tensor(suffix).ok_or_else(|| self.fault(format!("`{suffix}` is missing")))?;
        float_type(tensor.dtype)
            .ok_or_else(|| self.fault(format!("`{suffix}` is {}; accepted: F32, F16, BF16", tensor.dtype)))
    }

    pub(super) fn unpack(&self, format: &Format, parts: &[&'static str]) -> Result<Quantized> {
        let parts: Vec<Part> = parts.iter().filter_map(|&part| self.part(part).transpose()).collect::<Result<_>>()?;
        (format.container.unpack)(format, self.n, self.k, &parts).map_err(|error| match error {
            Error::Invalid(faults) => {
                Error::Invalid(faults.iter().map(|fault| self.fault(fault).to_string()).collect())
            }
            other => other,
        })
    }

    /// Trusts the zeros of a symmetric matrix over what the checkpoint declares.
    pub(super) fn gptq(
        &self,
        bits: u8,
        group: Option<u32>,
        sym: bool,
        v2: bool,
        note: &mut dyn FnMut(String),
    ) -> Result<Quantized> {
        let zeros = self.part("qzeros")?.ok_or_else(|| self.fault("`qzeros` is missing"))?;
        let shown = gptq::version(&zeros.bytes, bits);
        let mut v2 = v2;
        if sym
            && let Some(version) = shown
            && (version == 2) != v2
        {
            v2 = version == 2;
            note(format!(
                "GPTQ: declared version {}, but the zeros are those of version {version}; taken as such",
                3 - version
            ));
        }
        if !v2 && !sym {
            let spoiled = gptq::spoiled_words(&zeros.bytes, bits);
            if spoiled > 0 {
                note(format!(
                    "{}: {spoiled} words of qzeros look spoiled by a writer that does not mask a zero of 0; \
                     their higher zeros are lost",
                    self.name
                ));
            }
        }
        let container = if v2 { &GPTQ_V2 } else { &GPTQ_V1 };
        let grain = granularity(group, self.k);
        // Zeros that differ from each other are what they are, whatever `sym` says.
        let middle = sym && shown.is_some();
        let format = integer(bits, grain, middle, self.float("scales")?, container);
        self.unpack(&format, &["qweight", "qzeros", "scales", "g_idx"])
    }

    /// The gemm version.
    pub(super) fn awq(&self, group: Option<u32>) -> Result<Quantized> {
        let format = integer(4, granularity(group, self.k), false, self.float("scales")?, &AWQ);
        self.unpack(&format, &["qweight", "qzeros", "scales"])
    }

    pub(super) fn compressed(&self, group: &CtGroup) -> Result<Quantized> {
        let grain = match (group.strategy.as_str(), group.group, group.block) {
            ("tensor", ..) => Granularity::Tensor,
            ("channel", ..) => Granularity::Channel,
            ("group" | "tensor_group", Some(g), _) => granularity(Some(g), self.k),
            ("block", _, Some((n, k))) => Granularity::Block { n, k },
            (other, ..) => return Err(self.fault(format!("strategy `{}` without its size", clip(other)))),
        };
        let bits = group.bits;
        let named = |name: &str| name.parse::<Format>();
        if self.tensor("weight_packed").is_some_and(|t| t.dtype == T::I32) {
            let format = integer(bits, grain, group.symmetric, self.float("weight_scale")?, &CT_PACK);
            return self.unpack(
                &format,
                &["weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"],
            );
        }
        if self.tensor("weight_packed").is_some() {
            let format =
                if self.tensor("weight_global_scale").is_some() { named("nvfp4")? } else { named("ct-mxfp4")? };
            return self.unpack(&format, &["weight_packed", "weight_scale", "weight_global_scale"]);
        }
        let weight =
            self.tensor("weight").ok_or_else(|| self.fault("neither `weight` nor `weight_packed` is there"))?;
        let e8m0 = self.tensor("weight_scale").is_some_and(|t| matches!(t.dtype, T::U8 | T::F8_E8M0));
        let code = match weight.dtype {
            T::I8 => Code::Int { bits: 8, signed: true },
            other => Code::Float(small_float(other).ok_or_else(|| {
                self.fault(format!("`weight` is {other}; accepted: I8, F8_E4M3, F8_E5M2 and their FNUZ kinds"))
            })?),
        };
        if e8m0 {
            return self.bytes(code, grain, DType::E8m0, "weight_scale");
        }
        let scale = self.float("weight_scale")?;
        let zeros = weight.dtype == T::I8 && self.tensor("weight_zero_point").is_some() && !group.symmetric;
        if zeros || !matches!(code, Code::Int { .. } | Code::Float(DType::E4m3fn)) {
            return self.bytes(code, grain, scale, "weight_scale");
        }
        let format =
            Format { code, granularity: grain, zero: Zero::None, scale: Scale::of(scale), container: &CT_PLAIN };
        self.unpack(&format, &["weight", "weight_scale"])
    }

    /// A byte per code with codes, scales or zeros that compressed-tensors' plain container has no words for: MXFP8, FP8 of
    /// AMD and E5M2, and int8 with zero points.
    fn bytes(&self, code: Code, grain: Granularity, scale: DType, scales: &'static str) -> Result<Quantized> {
        let (n, k) = (self.n, self.k);
        let (rows, columns) = grain.grid(n, k);
        let part = |suffix: &'static str, count: usize, size: usize| -> Result<Vec<u8>> {
            let part = self.part(suffix)?.ok_or_else(|| self.fault(format!("`{suffix}` is missing")))?;
            if part.bytes.len() != count * size {
                return Err(self.fault(format!("`{suffix}` has the shape {:?}; accepted: {count} numbers", part.shape)));
            }
            Ok(part.bytes)
        };
        let mut codes = part("weight", n * k, 1)?;
        let size = if scale == DType::E8m0 { 1 } else { scale.bits() as usize / 8 };
        let raw = part(scales, rows * columns, size)?;
        let scales =
            raw.chunks_exact(size).map(|c| c.iter().rev().fold(0u32, |bits, b| bits << 8 | *b as u32)).collect();
        let mut format =
            Format { code, granularity: grain, zero: Zero::None, scale: Scale::of(scale), container: &PLAIN };
        let mut zeros = Vec::new();
        if matches!(code, Code::Int { .. }) && self.tensor("weight_zero_point").is_some() {
            // Signed codes and zeros, both moved up by 128: the difference stays.
            format.code = Code::Int { bits: 8, signed: false };
            format.zero = Zero::Int(8);
            codes.iter_mut().for_each(|code| *code ^= 0x80);
            zeros = part("weight_zero_point", rows * columns, 1)?.iter().map(|z| (z ^ 0x80) as u32).collect();
        }
        let q = Quantized {
            format,
            n,
            k,
            codes,
            scales,
            outer: vec![],
            zeros,
            zeros_outer: vec![],
            scale_offset: 0.0,
            order: None,
        };
        q.check().map_err(|error| self.fault(error))?;
        Ok(q)
    }

    pub(super) fn fp8(&self, block: Option<(u32, u32)>) -> Result<Quantized> {
        let found = self.tensor("weight").map(|t| t.dtype);
        let code = Code::Float(found.and_then(small_float).ok_or_else(|| {
            let found = found.map_or("missing".into(), |dtype| dtype.to_string());
            self.fault(format!("`weight` is {found}; accepted: F8_E4M3, F8_E5M2 and their FNUZ kinds"))
        })?);
        if let Some((n, k)) = block {
            let scale = self.float("weight_scale_inv")?;
            if code != Code::Float(DType::E4m3fn) {
                return self.bytes(code, Granularity::Block { n, k }, scale, "weight_scale_inv");
            }
            let format = Format {
                code,
                granularity: Granularity::Block { n, k },
                zero: Zero::None,
                scale: Scale::of(scale),
                container: &HF_FP8,
            };
            return self.unpack(&format, &["weight", "weight_scale_inv"]);
        }
        let scale = self.float("weight_scale")?;
        let rows = self.tensor("weight_scale").map_or(1, |t| t.shape.iter().product::<usize>());
        let granularity = if rows == self.n && rows > 1 { Granularity::Channel } else { Granularity::Tensor };
        if code != Code::Float(DType::E4m3fn) {
            return self.bytes(code, granularity, scale, "weight_scale");
        }
        let format = Format { code, granularity, zero: Zero::None, scale: Scale::of(scale), container: &CT_PLAIN };
        self.unpack(&format, &["weight", "weight_scale"])
    }

    /// Refuses codes and scales that are no finite number: a kernel would carry them on in silence.
    pub(super) fn finite(&self, q: &Quantized) -> Result<()> {
        if matches!(q.format.code, Code::Float(_)) {
            let sound: Vec<bool> = (0..=255u8).map(|code| q.format.code.decode(code).is_finite()).collect();
            if let Some(at) = q.codes.iter().position(|code| !sound[*code as usize]) {
                return Err(self.fault(format!(
                    "code {:#04x} at row {}, column {} is NaN or infinite in {}; accepted are finite numbers",
                    q.codes[at],
                    at / q.k,
                    at % q.k,
                    q.format
                )));
            }
        }
        let dtype = q.format.scale.dtype;
        match q.scales.iter().position(|scale| !dtype.decode(*scale).is_finite()) {
            Some(at) => Err(self.fault(format!("scale {at} is NaN or infinite; accepted are finite numbers"))),
            None => Ok(()),
        }
    }
}
