//! Text to token ids, by the tokenizer that a model comes with.

use bitsmith_compiler::{Error, Result};
use std::path::Path;

/// A tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, or the one in a folder.
    pub fn open(path: impl AsRef<Path>) -> Result<Tokenizer> {
        let path = path.as_ref();
        let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
        if !file.is_file() {
            return Err(Error::invalid(format!("{}: there is no tokenizer; --tokenizer names one", file.display())));
        }
        let inner = tokenizers::Tokenizer::from_file(&file)
            .map_err(|error| Error::invalid(format!("{}: {error}", file.display())))?;
        Ok(Tokenizer { inner })
    }

    /// The ids of a text, without special tokens around it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding =
            self.inner.encode_fast(text, false).map_err(|error| Error::invalid(format!("tokenizer: {error}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of ids.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, false).map_err(|error| Error::invalid(format!("tokenizer: {error}")))
    }
}
