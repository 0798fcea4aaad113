//! What an entry of a table is about: a matmul by its words and sizes, and a number of rows.
//!
//! Reads operations; makes keys of plain words, so that a table can be read and compared without this program, and
//! operations from keys again. Always holds: `key.op()` is the operation that the key was made from.

use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::op::{Epilogue, Matmul, Op};
use bitsmith_compiler::{Error, Result};
use serde::{Deserialize, Serialize};

/// A matmul and a number of rows. Keys sort by words first, then by sizes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Format of the weights, in the format grammar.
    pub weight: String,
    /// How activations come: `f16`, `int8-token`.
    pub activation: String,
    /// Type of results.
    pub out: String,
    /// What is done to a sum before it is stored: `bias`, `silu_mul`, `residual`, joined by `+`; empty for nothing.
    pub epilogue: String,
    /// Inputs.
    pub k: usize,
    /// Outputs.
    pub n: usize,
    /// Rows.
    pub m: usize,
}

const PARTS: [&str; 3] = ["bias", "silu_mul", "residual"];

impl Key {
    /// The key of an operation and rows; `None` for what is no matmul, which tables do not hold.
    pub fn of(op: &Op, m: usize) -> Option<Key> {
        let Op::Matmul(op) = op else { return None };
        let on = [op.epilogue.bias, op.epilogue.silu_mul, op.epilogue.residual];
        let parts: Vec<&str> = PARTS.into_iter().zip(on).filter(|(_, on)| *on).map(|(name, _)| name).collect();
        Some(Key {
            weight: op.weight.to_string(),
            activation: op.activation.to_string(),
            out: op.out.name().to_string(),
            epilogue: parts.join("+"),
            k: op.k,
            n: op.n,
            m,
        })
    }

    /// The operation. Fails where a word is unknown or the sizes contradict it.
    pub fn op(&self) -> Result<Op> {
        let out = DType::ALL.iter().copied().find(|dtype| dtype.name() == self.out);
        let out = out.ok_or_else(|| Error::invalid(format!("result type `{}`; accepted: f32, f16, bf16", self.out)))?;
        let parts: Vec<&str> = self.epilogue.split('+').filter(|part| !part.is_empty()).collect();
        if let Some(part) = parts.iter().find(|part| !PARTS.contains(part)) {
            return Err(Error::invalid(format!("epilogue `{part}`; accepted: {}", PARTS.join(", "))));
        }
        let on = PARTS.map(|part| parts.contains(&part));
        let epilogue = Epilogue { bias: on[0], silu_mul: on[1], residual: on[2] };
        let (weight, activation) = (self.weight.parse()?, self.activation.parse()?);
        Op::Matmul(Matmul { n: self.n, k: self.k, weight, activation, out, epilogue }).checked()
    }

    /// Whether two keys differ in sizes and rows only.
    pub fn same_words(&self, other: &Key) -> bool {
        (&self.weight, &self.activation, &self.out, &self.epilogue)
            == (&other.weight, &other.activation, &other.out, &other.epilogue)
    }

    /// How far apart the sizes of two keys are, in doublings: 0 for the same, infinite where words differ.
    pub fn distance(&self, other: &Key) -> f64 {
        if !self.same_words(other) {
            return f64::INFINITY;
        }
        let doublings = |a: usize, b: usize| (a as f64 / b as f64).log2().abs();
        doublings(self.n, other.n) + doublings(self.k, other.k) + doublings(self.m, other.m)
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} x {} -> {} {}x{}", self.weight, self.activation, self.out, self.n, self.k)?;
        if !self.epilogue.is_empty() {
            write!(f, " +{}", self.epilogue)?;
        }
        write!(f, " M={}", self.m)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_its_operation_and_sorts_by_size() {
        let key = |n: usize, m: usize| Key {
            weight: "int4-g32".into(),
            activation: "f16".into(),
            out: "f16".into(),
            epilogue: "bias+residual".into(),
            k: 64,
            n,
            m,
        };
        let op = key(32, 1).op().unwrap();
        assert_eq!(Key::of(&op, 1), Some(key(32, 1)));
        assert!(key(32, 16) < key(64, 1));
        assert_eq!(key(32, 1).distance(&key(64, 4)), 3.0);
        for bad in [Key { out: "f12".into(), ..key(32, 1) }, Key { epilogue: "tanh".into(), ..key(32, 1) }] {
            assert!(bad.op().unwrap_err().to_string().contains("accepted"));
        }
    }
}
