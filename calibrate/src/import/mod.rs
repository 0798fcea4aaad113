//! Checkpoints of other tools, and of our own: a folder or a file to typed layers, one at a time.
//!
//! Reads safetensors (plain, GPTQ, AWQ, compressed-tensors, FP8, bitsandbytes) and GGUF; makes [`Layer`]s and whole
//! [`Model`]s. Always holds: quantized matrices come in with the codes and scales that the file holds, nothing is
//! rounded again; a checkpoint's quirk that was detected is told in [`Checkpoint::notes`]; only what is asked for is
//! brought into memory, so that a model may be larger than it.

mod flat;
mod gguf;
mod scheme;
mod source;
mod tensors;

pub(crate) use gguf::file_name as gguf_name;
pub use scheme::{CtGroup, GptqRule, Scheme};

use crate::file::ModelFile;
use crate::model::{Attention, Config, Family, Floats, Gated, Layer, Layers, Linear, Mlp, Model, Rope};
use crate::recipe::Sizes;
use bitsmith_compiler::{Error, Result};
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// An open checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    /// Sizes and constants.
    pub config: Config,
    /// How its matrices are quantized.
    pub scheme: Scheme,
    /// The folder that holds it.
    pub folder: PathBuf,
    file: ModelFile,
    notes: Mutex<Vec<String>>,
}

impl Checkpoint {
    /// Opens a folder or a file.
    pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint> {
        let path = path.as_ref();
        let file = ModelFile::open(path)?;
        let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) }.to_owned();
        Checkpoint::new(file, folder)
    }

    /// Takes a file that is open already; `folder` is where a tokenizer would lie.
    pub fn new(file: ModelFile, folder: PathBuf) -> Result<Checkpoint> {
        let (mut config, scheme) = match &file {
            ModelFile::Gguf(gguf) => (Config::from_gguf(gguf)?, Scheme::Gguf),
            ModelFile::SafeTensors(tensors) => {
                let json = tensors
                    .config()
                    .ok_or_else(|| Error::invalid(format!("{}: config.json is missing beside it", tensors.name())))?;
                let side = folder.join("quantize_config.json");
                let side = if side.is_file() {
                    let text = crate::file::safetensors::read_text(&side)?;
                    Some(crate::file::safetensors::parse_json(&text, &side.display().to_string())?)
                } else {
                    None
                };
                let scheme = match crate::export::open_packed(&folder)? {
                    Some(packed) => Scheme::Packed(packed),
                    None => Scheme::read(json, side.as_ref(), tensors.name())?,
                };
                (Config::from_json(json, tensors.name())?, scheme)
            }
        };
        if let ModelFile::Gguf(gguf) = &file
            && gguf.tensor("rope_freqs.weight").is_some()
        {
            config.rope.factors = Some(file.tensor_f32("rope_freqs.weight")?);
            if config.rope.factors.as_ref().is_some_and(|factors| factors.len() != config.shape.head_dim / 2) {
                return Err(Error::invalid(format!("{}: `rope_freqs.weight` does not fit the head", file.name())));
            }
        }
        Ok(Checkpoint { config, scheme, folder, file, notes: Mutex::default() })
    }

    /// What errors call it.
    pub fn name(&self) -> &str {
        self.file.name()
    }

    /// The file or files behind it.
    pub fn file(&self) -> &ModelFile {
        &self.file
    }

    /// Quirks that were met while reading, each once.
    pub fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn note(&self, note: String) {
        let mut notes = self.notes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !notes.contains(&note) {
            notes.push(note);
        }
    }

    /// The whole model.
    pub fn model(&self) -> Result<Model> {
        self.whole()
    }

    /// Names and sizes of the matrices, the head last where it stands alone, without a look at their numbers.
    pub fn sizes(&self) -> Vec<Sizes> {
        let s = &self.config.shape;
        let (queries, keys) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
        let (part, [gate, up, down]) = self.config.family.expert_names();
        let mut list = Vec::new();
        let mut add = |name: String, n: usize, k: usize| list.push(Sizes { name, n, k });
        for index in 0..s.layers {
            let prefix = format!("model.layers.{index}");
            for (name, n, k) in
                [("q", queries, s.hidden), ("k", keys, s.hidden), ("v", keys, s.hidden), ("o", s.hidden, queries)]
            {
                add(format!("{prefix}.self_attn.{name}_proj"), n, k);
            }
            for expert in 0..s.experts {
                let block = match s.is_mixture() {
                    true => format!("{prefix}.{part}.experts.{expert}"),
                    false => format!("{prefix}.{part}"),
                };
                add(format!("{block}.{gate}"), s.ffn, s.hidden);
                add(format!("{block}.{up}"), s.ffn, s.hidden);
                add(format!("{block}.{down}"), s.hidden, s.ffn);
            }
        }
        if !s.tied {
            add("lm_head".into(), s.vocab, s.hidden);
        }
        list
    }

    /// The embedding.
    pub fn embedding(&self) -> Result<Linear> {
        let (vocab, hidden) = (self.config.shape.vocab, self.config.shape.hidden);
        let name = "model.embed_tokens";
        // Tied checkpoints may hold either of the two names.
        if self.config.shape.tied && !self.has(name) && self.has("lm_head") {
            let head = self.linear("lm_head", vocab, hidden)?;
            return Ok(Linear { name: name.into(), ..head });
        }
        self.linear(name, vocab, hidden)
    }

    /// The output head; `None` where it is the embedding.
    pub fn head(&self) -> Result<Option<Linear>> {
        let (vocab, hidden) = (self.config.shape.vocab, self.config.shape.hidden);
        if self.config.shape.tied {
            return Ok(None);
        }
        self.linear("lm_head", vocab, hidden).map(Some)
    }

    /// The gain of the last norm.
    pub fn norm(&self) -> Result<Floats> {
        self.floats("model.norm.weight", self.config.shape.hidden)
    }

    /// One decoder layer.
    pub fn layer(&self, index: usize) -> Result<Layer> {
        let s = &self.config.shape;
        let prefix = format!("model.layers.{index}");
        let attention = format!("{prefix}.self_attn");
        let (queries, keys) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
        let head_norm = |which: &str| {
            let norm = || self.floats(&format!("{attention}.{which}.weight"), s.head_dim);
            self.config.family.head_norms().then(norm).transpose()
        };
        let gated = |prefix: &str, names: [&str; 3]| -> Result<Gated> {
            Ok(Gated {
                gate: self.linear(&format!("{prefix}.{}", names[0]), s.ffn, s.hidden)?,
                up: self.linear(&format!("{prefix}.{}", names[1]), s.ffn, s.hidden)?,
                down: self.linear(&format!("{prefix}.{}", names[2]), s.hidden, s.ffn)?,
            })
        };
        let (part, names) = self.config.family.expert_names();
        let mlp = if self.config.family.is_mixture() {
            let router = self.linear(&format!("{prefix}.{part}.gate"), s.experts, s.hidden)?;
            let one = |e: usize| gated(&format!("{prefix}.{part}.experts.{e}"), names);
            Mlp::Experts { router, experts: (0..s.experts).map(one).collect::<Result<_>>()? }
        } else {
            Mlp::Dense(gated(&format!("{prefix}.{part}"), names)?)
        };
        Ok(Layer {
            input_norm: self.floats(&format!("{prefix}.input_layernorm.weight"), s.hidden)?,
            attention: Attention {
                q: self.linear(&format!("{attention}.q_proj"), queries, s.hidden)?,
                k: self.linear(&format!("{attention}.k_proj"), keys, s.hidden)?,
                v: self.linear(&format!("{attention}.v_proj"), keys, s.hidden)?,
                o: self.linear(&format!("{attention}.o_proj"), s.hidden, queries)?,
                q_norm: head_norm("q_norm")?,
                k_norm: head_norm("k_norm")?,
            },
            post_norm: self.floats(&format!("{prefix}.post_attention_layernorm.weight"), s.hidden)?,
            mlp,
            kv_scales: self.kv_scales(&attention)?,
        })
    }

    fn has(&self, linear: &str) -> bool {
        match &self.file {
            ModelFile::Gguf(file) => gguf::file_name(linear).is_some_and(|(name, _)| file.tensor(&name).is_some()),
            ModelFile::SafeTensors(file) => tensors::has(file, linear),
        }
    }

    /// A matrix by its name in Hugging Face's spelling.
    fn linear(&self, name: &str, n: usize, k: usize) -> Result<Linear> {
        match &self.file {
            ModelFile::Gguf(file) => gguf::linear(file, name, n, k, &self.order(name)),
            ModelFile::SafeTensors(file) => {
                tensors::linear(file, &self.scheme, name, n, k, &mut |note| self.note(note))
            }
        }
    }

    /// A vector by its name in Hugging Face's spelling.
    fn floats(&self, name: &str, length: usize) -> Result<Floats> {
        match &self.file {
            ModelFile::Gguf(file) => gguf::floats(file, name, length),
            ModelFile::SafeTensors(file) => tensors::floats(file, name, &[length]),
        }
    }

    /// The order that brings a GGUF file's rows of queries and keys back into halves.
    fn order(&self, name: &str) -> Option<Vec<usize>> {
        let s = &self.config.shape;
        // Only the `llama` architecture is written in the interleaved order.
        if !matches!(self.config.family, Family::Llama | Family::Mixtral) {
            return None;
        }
        if name.ends_with("q_proj") {
            Some(Rope::half_split_order(s.heads, s.head_dim))
        } else if name.ends_with("k_proj") {
            Some(Rope::half_split_order(s.kv_heads, s.head_dim))
        } else {
            None
        }
    }

    fn kv_scales(&self, attention: &str) -> Result<Option<(f32, f32)>> {
        let ModelFile::SafeTensors(file) = &self.file else { return Ok(None) };
        let scale = |part: &str| -> Result<Option<f32>> {
            match file.tensor(&format!("{attention}.{part}")) {
                None => Ok(None),
                Some(_) => Ok(Some(tensors::scalar(file, &format!("{attention}.{part}"))?)),
            }
        };
        let both = scale("kv_scale")?;
        let (k, v) = (scale("k_scale")?.or(both), scale("v_scale")?.or(both));
        if self.scheme.kv_cache() && (k.is_none() || v.is_none()) {
            self.note(format!(
                "{attention}: the checkpoint asks for a quantized KV cache but has no scales; 1 is taken"
            ));
        }
        Ok(match (k, v) {
            (None, None) => None,
            (k, v) => Some((k.unwrap_or(1.0), v.unwrap_or(1.0))),
        })
    }
}

impl Layers for Checkpoint {
    fn config(&self) -> &Config {
        &self.config
    }

    fn embedding(&self) -> Result<Cow<'_, Linear>> {
        Checkpoint::embedding(self).map(Cow::Owned)
    }

    fn layer(&self, index: usize) -> Result<Cow<'_, Layer>> {
        Checkpoint::layer(self, index).map(Cow::Owned)
    }

    fn norm(&self) -> Result<Cow<'_, Floats>> {
        Checkpoint::norm(self).map(Cow::Owned)
    }

    fn head(&self) -> Result<Option<Cow<'_, Linear>>> {
        Ok(Checkpoint::head(self)?.map(Cow::Owned))
    }
}
