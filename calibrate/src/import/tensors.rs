//! One matrix out of safetensors, whatever tool wrote it.
//!
//! Reads the tensors that lie under a layer's name and the scheme of the checkpoint; makes a [`Linear`]. Always holds:
//! codes, scales and zeros are those of the file, bit for bit, and containers check every shape and type.

use super::scheme::{CtGroup, Scheme};
use crate::file::{SafeTensor, SafeTensorsFile, SafeTensorsType as T, clip};
use crate::model::{Floats, Linear, Weight};
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::{
    AWQ, CT_PACK, CT_PLAIN, Code, Container, Format, GPTQ_V1, GPTQ_V2, Granularity, HF_FP8, PLAIN, Part, PartType,
    Quantized, Scale, Zero, gptq,
};
use bitsmith_compiler::{Error, Result};
use half::{bf16, f16};

/// Suffixes that stand for a matrix.
const WEIGHTS: &[&str] = &["weight", "qweight", "weight_packed", "W_q", "n16"];

/// Whether a matrix of this name is there.
pub(super) fn has(file: &SafeTensorsFile, linear: &str) -> bool {
    WEIGHTS.iter().any(|suffix| file.tensor(&format!("{linear}.{suffix}")).is_some())
}

/// A matrix.
pub(super) fn linear(
    file: &SafeTensorsFile,
    scheme: &Scheme,
    name: &str,
    n: usize,
    k: usize,
    note: &mut dyn FnMut(String),
) -> Result<Linear> {
    let bias = match file.tensor(&format!("{name}.bias")) {
        Some(_) => Some(floats(file, &format!("{name}.bias"), &[n])?),
        None => None,
    };
    let plain = file.tensor(&format!("{name}.weight")).is_some_and(|t| float_type(t.dtype).is_some());
    let mut linear = Linear::floats(name, n, k, Floats::f32(Vec::new()));
    linear.bias = bias;
    if plain {
        linear.weight = Weight::Floats(floats(file, &format!("{name}.weight"), &[n, k])?);
        return Ok(linear);
    }
    if let Scheme::Packed(packed) = scheme
        && let Some(found) = packed.linear(file, name, n, k)?
    {
        return Ok(Linear { bias: linear.bias, ..found });
    }
    let source = Source { file, name, n, k };
    let q = match scheme {
        Scheme::Gptq { bits, group, sym, v2, dynamic } => {
            let own = dynamic.iter().find(|(regex, _)| regex.is_match(name)).and_then(|(_, own)| *own);
            let (bits, group) = own.unwrap_or((*bits, *group));
            source.gptq(bits, group, *sym, *v2, note)?
        }
        Scheme::Awq { group } => {
            let dtype = source.float("scales")?;
            let format = integer(4, granularity(*group, k), false, dtype, &AWQ);
            source.unpack(&format, &["qweight", "qzeros", "scales"])?
        }
        Scheme::Ct { groups, .. } => {
            let group = groups.iter().find(|group| group.holds(name)).ok_or_else(|| {
                Error::invalid(format!("{name}: is quantized, but no config group of the checkpoint names it"))
            })?;
            linear.activation = group.activation;
            if let Some(text) = &group.activation_note {
                note(text.clone());
            }
            source.compressed(group)?
        }
        Scheme::Fp8 { block, activation } => {
            linear.activation = Some(*activation);
            source.fp8(*block)?
        }
        Scheme::Bnb => source.bitsandbytes()?,
        Scheme::Hqq => source.hqq()?,
        Scheme::None | Scheme::Gguf | Scheme::Packed(_) => {
            let found = file.tensor(&format!("{name}.weight")).map_or("missing".into(), |t| t.dtype.to_string());
            return Err(Error::invalid(format!(
                "{}: tensor `{name}.weight` is {found}; accepted without a quantization config: F32, F16, BF16",
                file.name()
            )));
        }
    };
    if file.tensor(&format!("{name}.input_scale")).is_some() {
        linear.input_scale = Some(scalar(file, &format!("{name}.input_scale"))?);
    }
    linear.weight = Weight::Quantized(q);
    Ok(linear)
}

/// A tensor of floats of a known shape.
pub(super) fn floats(file: &SafeTensorsFile, name: &str, shape: &[usize]) -> Result<Floats> {
    let tensor = find(file, name)?;
    if tensor.shape != shape {
        return Err(Error::invalid(format!(
            "{}: tensor `{}` has the shape {:?}; the configuration means {shape:?}",
            file.name(),
            clip(name),
            tensor.shape
        )));
    }
    let dtype = float_type(tensor.dtype).ok_or_else(|| {
        Error::Unsupported(format!(
            "{}: tensor `{}` is {}; accepted: F32, F16, BF16",
            file.name(),
            clip(name),
            tensor.dtype
        ))
    })?;
    Ok(Floats { values: decode(file.data(tensor), dtype), dtype })
}

/// A tensor of one float, of any shape.
pub(super) fn scalar(file: &SafeTensorsFile, name: &str) -> Result<f32> {
    let tensor = find(file, name)?;
    let values = float_type(tensor.dtype).map(|dtype| decode(file.data(tensor), dtype)).unwrap_or_default();
    match values[..] {
        [value] if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err(Error::invalid(format!(
            "{}: tensor `{}` is {} of {:?}; accepted: one finite float above 0",
            file.name(),
            clip(name),
            tensor.dtype,
            tensor.shape
        ))),
    }
}

fn find<'f>(file: &'f SafeTensorsFile, name: &str) -> Result<&'f SafeTensor> {
    file.tensor(name).ok_or_else(|| Error::invalid(format!("{}: has no tensor `{}`", file.name(), clip(name))))
}

fn float_type(dtype: T) -> Option<DType> {
    match dtype {
        T::F32 => Some(DType::F32),
        T::F16 => Some(DType::F16),
        T::BF16 => Some(DType::Bf16),
        _ => None,
    }
}

fn decode(data: &[u8], dtype: DType) -> Vec<f32> {
    match dtype {
        DType::F32 => data.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        DType::F16 => data.as_chunks::<2>().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
        _ => data.as_chunks::<2>().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
    }
}

fn granularity(group: Option<u32>, k: usize) -> Granularity {
    // A group as long as the row is the row.
    group.filter(|&g| (g as usize) < k).map_or(Granularity::Channel, Granularity::Group)
}

fn integer(bits: u8, granularity: Granularity, sym: bool, scale: DType, container: &'static Container) -> Format {
    let zero = if sym { Zero::Bias(1 << (bits - 1)) } else { Zero::Int(bits) };
    Format { code: Code::Int { bits, signed: false }, granularity, zero, scale: Scale::of(scale), container }
}

fn part_type(dtype: T) -> Option<PartType> {
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
        _ => return None,
    })
}

/// The tensors under one layer's name.
struct Source<'f> {
    file: &'f SafeTensorsFile,
    name: &'f str,
    n: usize,
    k: usize,
}

impl Source<'_> {
    fn fault(&self, message: impl std::fmt::Display) -> Error {
        Error::invalid(format!("{}: {}: {message}", self.file.name(), clip(self.name)))
    }

    fn tensor(&self, suffix: &str) -> Option<&SafeTensor> {
        self.file.tensor(&format!("{}.{suffix}", self.name))
    }

    fn part(&self, suffix: &'static str) -> Result<Option<Part>> {
        let Some(tensor) = self.tensor(suffix) else { return Ok(None) };
        let dtype = part_type(tensor.dtype)
            .ok_or_else(|| self.fault(format!("`{suffix}` is {}, which no container holds", tensor.dtype)))?;
        Ok(Some(Part { name: suffix, dtype, shape: tensor.shape.clone(), bytes: self.file.data(tensor).to_vec() }))
    }

    fn float(&self, suffix: &str) -> Result<DType> {
        let tensor = self.tensor(suffix).ok_or_else(|| self.fault(format!("`{suffix}` is missing")))?;
        float_type(tensor.dtype)
            .ok_or_else(|| self.fault(format!("`{suffix}` is {}; accepted: F32, F16, BF16", tensor.dtype)))
    }

    fn unpack(&self, format: &Format, parts: &[&'static str]) -> Result<Quantized> {
        let parts: Vec<Part> = parts.iter().filter_map(|&part| self.part(part).transpose()).collect::<Result<_>>()?;
        (format.container.unpack)(format, self.n, self.k, &parts).map_err(|error| match error {
            Error::Invalid(faults) => {
                Error::Invalid(faults.iter().map(|fault| self.fault(fault).to_string()).collect())
            }
            other => other,
        })
    }

    /// Trusts the zeros of a symmetric matrix over what the checkpoint declares.
    fn gptq(
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

    fn compressed(&self, group: &CtGroup) -> Result<Quantized> {
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
            T::F8_E4M3 => Code::Float(DType::E4m3fn),
            other => return Err(self.fault(format!("`weight` is {other}; accepted: I8, F8_E4M3"))),
        };
        if e8m0 {
            return self.bytes(code, grain, DType::E8m0);
        }
        let scale = self.float("weight_scale")?;
        if weight.dtype == T::I8 && self.tensor("weight_zero_point").is_some() && !group.symmetric {
            return self.bytes(code, grain, scale);
        }
        let format =
            Format { code, granularity: grain, zero: Zero::None, scale: Scale::of(scale), container: &CT_PLAIN };
        self.unpack(&format, &["weight", "weight_scale"])
    }

    /// A byte per code with scales or zeros that compressed-tensors' plain container has no words for: MXFP8, and int8
    /// with zero points.
    fn bytes(&self, code: Code, grain: Granularity, scale: DType) -> Result<Quantized> {
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
        let raw = part("weight_scale", rows * columns, size)?;
        let scales =
            raw.chunks_exact(size).map(|c| c.iter().rev().fold(0u32, |bits, b| bits << 8 | *b as u32)).collect();
        let mut format =
            Format { code, granularity: grain, zero: Zero::None, scale: Scale::of(scale), container: &PLAIN };
        let mut zeros = Vec::new();
        if matches!(code, Code::Int { .. }) {
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

    fn fp8(&self, block: Option<(u32, u32)>) -> Result<Quantized> {
        let code = Code::Float(DType::E4m3fn);
        if let Some((n, k)) = block {
            let scale = self.float("weight_scale_inv")?;
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
        let format = Format { code, granularity, zero: Zero::None, scale: Scale::of(scale), container: &CT_PLAIN };
        self.unpack(&format, &["weight", "weight_scale"])
    }

    fn bitsandbytes(&self) -> Result<Quantized> {
        let state = self
            .tensor("weight.quant_state.bitsandbytes__nf4")
            .ok_or_else(|| self.fault("has no `quant_state.bitsandbytes__nf4`; accepted: nf4"))?;
        let text = std::str::from_utf8(self.file.data(state)).map_err(|_| self.fault("its quant state is no text"))?;
        let state = crate::file::safetensors::parse_json(text, self.name)?;
        if state.get("blocksize").and_then(serde_json::Value::as_u64) != Some(64) {
            return Err(self.fault("blocks are not of 64 weights, the only accepted size"));
        }
        let mut parts = Vec::new();
        for (file, name) in [
            ("weight", "weight"),
            ("weight.absmax", "absmax"),
            ("weight.quant_map", "quant_map"),
            ("weight.nested_absmax", "nested_absmax"),
            ("weight.nested_quant_map", "nested_quant_map"),
        ] {
            let Some(tensor) = self.tensor(file) else { continue };
            let dtype = part_type(tensor.dtype).ok_or_else(|| self.fault(format!("`{file}` is {}", tensor.dtype)))?;
            parts.push(Part { name, dtype, shape: tensor.shape.clone(), bytes: self.file.data(tensor).to_vec() });
        }
        let nested = parts.iter().any(|part| part.name == "nested_absmax");
        if nested {
            let offset = state.get("nested_offset").and_then(serde_json::Value::as_f64).unwrap_or(0.0) as f32;
            parts.push(Part {
                name: "nested_offset",
                dtype: PartType::F32,
                shape: vec![1],
                bytes: offset.to_le_bytes().to_vec(),
            });
        }
        let format: Format = if nested { "nf4-dq" } else { "nf4" }.parse()?;
        (format.container.unpack)(&format, self.n, self.k, &parts).map_err(|error| self.fault(error))
    }

    /// HQQ of 4 or 8 bits along rows: the first half of the groups lies in high nibbles, the second in low ones.
    fn hqq(&self) -> Result<Quantized> {
        let int = |suffix: &str| -> Option<usize> {
            let tensor = self.tensor(suffix)?;
            let word = self.file.data(tensor);
            Some(match tensor.dtype {
                T::I64 => i64::from_le_bytes(word.get(..8)?.try_into().ok()?) as usize,
                T::I32 => i32::from_le_bytes(word.get(..4)?.try_into().ok()?) as usize,
                _ => return None,
            })
        };
        let (bits, group, axis) =
            (int("nbits").unwrap_or(4), int("group_size").unwrap_or(64), int("axis").unwrap_or(1));
        if axis != 1 || !matches!(bits, 4 | 8) || group < 16 || !self.k.is_multiple_of(group) {
            return Err(self
                .fault(format!("HQQ of {bits} bits, axis {axis}, groups of {group}; accepted: 4 or 8 bits, axis 1")));
        }
        let packed = self.part("W_q")?.ok_or_else(|| self.fault("`W_q` is missing"))?;
        let codes: Vec<u8> = match bits {
            8 => packed.bytes.clone(),
            _ => packed.bytes.iter().map(|b| b >> 4).chain(packed.bytes.iter().map(|b| b & 15)).collect(),
        };
        let scale = self.float("scale")?;
        let zero = self.float("zero")?;
        let raw = |suffix: &'static str| -> Result<Vec<u32>> {
            let part = self.part(suffix)?.ok_or_else(|| self.fault(format!("`{suffix}` is missing")))?;
            let size = part.dtype.bytes();
            Ok(part.bytes.chunks_exact(size).map(|c| c.iter().rev().fold(0u32, |x, b| x << 8 | *b as u32)).collect())
        };
        let format = Format {
            code: Code::Int { bits: bits as u8, signed: false },
            granularity: granularity(Some(group as u32), self.k),
            zero: Zero::Float(zero),
            scale: Scale::of(scale),
            container: &PLAIN,
        };
        let q = Quantized {
            format,
            n: self.n,
            k: self.k,
            codes,
            scales: raw("scale")?,
            outer: vec![],
            zeros: raw("zero")?,
            zeros_outer: vec![],
            scale_offset: 0.0,
            order: None,
        };
        q.check().map_err(|error| self.fault(error))?;
        Ok(q)
    }
}
