//! The tensors under one layer's name, by the tools that pack a matrix as one flat row: bitsandbytes and HQQ.

use super::source::{Source, granularity, part_type};
use crate::file::SafeTensorsType as T;
use bitsmith_compiler::Result;
use bitsmith_compiler::format::{Code, Format, PLAIN, Part, PartType, Quantized, Scale, Zero};

impl Source<'_> {
    pub(super) fn bitsandbytes(&self) -> Result<Quantized> {
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
    pub(super) fn hqq(&self) -> Result<Quantized> {
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
