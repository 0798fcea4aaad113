//! What `--shapes` names: a model, a `config.json`, or sizes such as `4096x14336`.

use crate::failure::Failure;
use bitsmith_calibrate::shapes::{Class, ModelShape};

/// Linear layers of one size and class.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Layers {
    /// The layers: `q_proj+o_proj`.
    pub name: String,
    /// Outputs.
    pub n: usize,
    /// Inputs.
    pub k: usize,
    /// How many the model holds.
    pub count: usize,
    /// Whether it is the output head.
    pub head: bool,
}

/// A model by its linear layers.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    /// Its name, or the sizes as they were given.
    pub name: String,
    /// Layers merged by size, the head last.
    pub layers: Vec<Layers>,
    /// Its attention; `None` for sizes.
    pub heads: Option<Heads>,
}

/// Heads of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heads {
    /// Query heads.
    pub query: usize,
    /// KV heads.
    pub kv: usize,
    /// Channels of a head.
    pub dim: usize,
}

impl std::str::FromStr for Heads {
    type Err = String;

    /// `32/8x128`.
    fn from_str(text: &str) -> Result<Heads, String> {
        let numbers = text.split_once('/').and_then(|(query, rest)| {
            let (kv, dim) = rest.split_once(['x', 'X'])?;
            Some(Heads { query: query.parse().ok()?, kv: kv.parse().ok()?, dim: dim.parse().ok()? })
        });
        numbers.ok_or_else(|| "accepted: query heads/KV heads x channels, such as 32/8x128".into())
    }
}

/// Resolves `--shapes`; several sizes are separated by commas.
pub(crate) fn resolve(text: &str) -> Result<Model, Failure> {
    let sizes: Option<Vec<Option<(usize, usize)>>> = text.split(',').map(size).collect();
    if let Some(sizes) = sizes {
        let mut layers: Vec<Layers> = Vec::new();
        for (size, word) in sizes.into_iter().zip(text.split(',')) {
            let (n, k) = size.ok_or_else(|| Failure::invalid(format!("shape `{word}`: a size is beyond 64 bits")))?;
            if n == 0 || k == 0 {
                return Err(Failure::invalid(format!("shape `{word}`: N and K must be at least 1")));
            }
            if !layers.iter().any(|other| (other.n, other.k) == (n, k)) {
                layers.push(Layers { name: format!("{n}x{k}"), n, k, count: 1, head: false });
            }
        }
        return Ok(Model { name: text.to_string(), layers, heads: None });
    }
    let shape = ModelShape::resolve(text).map_err(|error| match error {
        bitsmith_compiler::Error::Invalid(faults) if !std::path::Path::new(text).exists() => {
            Failure::invalid(format!("{}, or <N>x<K> such as 4096x14336", faults.join("; ")))
        }
        other => Failure::Request(other),
    })?;
    let mut layers: Vec<Layers> = Vec::new();
    for linear in shape.linears() {
        let head = linear.class == Class::LmHead;
        match layers.iter_mut().find(|l| (l.n, l.k, l.head) == (linear.n, linear.k, head)) {
            Some(same) => {
                same.name = format!("{}+{}", same.name, linear.name);
                same.count += linear.count;
            }
            None => layers.push(Layers {
                name: linear.name.to_string(),
                n: linear.n,
                k: linear.k,
                count: linear.count,
                head,
            }),
        }
    }
    let heads = Heads { query: shape.heads, kv: shape.kv_heads, dim: shape.head_dim };
    Ok(Model { name: shape.name.to_string(), layers, heads: Some(heads) })
}

/// `NxK`; `None` where it is none, `Some(None)` where it is one whose numbers are too long.
fn size(word: &str) -> Option<Option<(usize, usize)>> {
    let (n, k) = word.trim().split_once(['x', 'X'])?;
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    (digits(n) && digits(k)).then(|| Some((n.parse().ok()?, k.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_merged_by_size_and_its_head_stays_apart() {
        let model = resolve("llama-3-8b").unwrap();
        let names: Vec<&str> = model.layers.iter().map(|l| l.name.as_str()).collect();
        assert_eq!(names, ["q_proj+o_proj", "k_proj+v_proj", "gate_proj+up_proj", "down_proj", "lm_head"]);
        assert!(model.layers[4].head && model.layers[4].count == 1 && model.layers[0].count == 64);
    }

    #[test]
    fn sizes() {
        let model = resolve("64x96,32x16,64x96").unwrap();
        assert_eq!(model.layers.iter().map(|l| (l.n, l.k)).collect::<Vec<_>>(), [(64, 96), (32, 16)]);
        for bad in ["0x64", "64x0", "99999999999999999999999x1", "64x", "x", "llama-9"] {
            assert!(resolve(bad).is_err(), "{bad}");
        }
    }
}
