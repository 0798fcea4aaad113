//! A model that gives its parts one at a time, wherever they are: in memory, in a checkpoint, in a temporary file.
//!
//! Always holds: asking twice gives the same, and a part that was given is not kept by the giver.

use super::{Config, Floats, Layer, Linear, Model};
use bitsmith_compiler::Result;
use std::borrow::Cow;

/// Gives the parts of a model.
pub trait Layers {
    /// Sizes and constants.
    fn config(&self) -> &Config;

    /// The embedding.
    fn embedding(&self) -> Result<Cow<'_, Linear>>;

    /// A decoder layer.
    fn layer(&self, index: usize) -> Result<Cow<'_, Layer>>;

    /// The gain of the last norm.
    fn norm(&self) -> Result<Cow<'_, Floats>>;

    /// The output head; `None` where it is the embedding.
    fn head(&self) -> Result<Option<Cow<'_, Linear>>>;

    /// The matrix that makes logits.
    fn logits(&self) -> Result<Cow<'_, Linear>> {
        match self.head()? {
            Some(head) => Ok(head),
            None => self.embedding(),
        }
    }

    /// All of it in memory.
    fn whole(&self) -> Result<Model> {
        Ok(Model {
            config: self.config().clone(),
            embedding: self.embedding()?.into_owned(),
            layers: (0..self.config().shape.layers)
                .map(|index| Ok(self.layer(index)?.into_owned()))
                .collect::<Result<_>>()?,
            norm: self.norm()?.into_owned(),
            head: self.head()?.map(Cow::into_owned),
        })
    }

    /// Shows every matrix that recipes speak of, in order, the head last where it stands alone.
    fn each_linear(&self, see: &mut dyn FnMut(&Linear) -> Result<()>) -> Result<()> {
        for index in 0..self.config().shape.layers {
            self.layer(index)?.linears().into_iter().try_for_each(&mut *see)?;
        }
        self.head()?.map_or(Ok(()), |head| see(&head))
    }
}

impl Layers for Model {
    fn config(&self) -> &Config {
        &self.config
    }

    fn embedding(&self) -> Result<Cow<'_, Linear>> {
        Ok(Cow::Borrowed(&self.embedding))
    }

    fn layer(&self, index: usize) -> Result<Cow<'_, Layer>> {
        Ok(Cow::Borrowed(&self.layers[index]))
    }

    fn norm(&self) -> Result<Cow<'_, Floats>> {
        Ok(Cow::Borrowed(&self.norm))
    }

    fn head(&self) -> Result<Option<Cow<'_, Linear>>> {
        Ok(self.head.as_ref().map(Cow::Borrowed))
    }
}
