//! The text of instructions on cooperative matrices.
//!
//! ```text
//! inst  = "matrix_fill" shape part "," value
//!       | "matrix_load" shape part lines
//!       | "matrix_store" shape lines "," value
//!       | ("matrix_multiply" | "matrix_scale") shape value "," value "," value        two factors, then what is added
//! part  = "a" | "b" | "sums"
//! lines = ("rows" | "columns") address "stride" int                                   bytes
//! ```

use super::{Parsed, Parser, find, names};
use crate::ir::cooperative::{Cooperative, Fragment, Lines, Part};

/// The words that start one.
pub(super) const NAMES: [&str; 5] = ["matrix_fill", "matrix_load", "matrix_store", "matrix_multiply", "matrix_scale"];

impl Parser<'_> {
    /// What follows one of [`NAMES`].
    pub(super) fn cooperative(&mut self, name: &str) -> Parsed<Cooperative> {
        let shape = self.shape()?;
        Ok(match name {
            "matrix_fill" => {
                let part = self.part()?;
                Cooperative::Fill { fragment: Fragment { shape, part }, value: self.comma_value()? }
            }
            "matrix_load" => {
                let part = self.part()?;
                Cooperative::Load { fragment: Fragment { shape, part }, from: self.lines_of_matrix()? }
            }
            "matrix_store" => {
                let to = self.lines_of_matrix()?;
                Cooperative::Store { shape, to, sums: self.comma_value()? }
            }
            _ => {
                let (a, b, sums) = (self.value()?, self.comma_value()?, self.comma_value()?);
                match name {
                    "matrix_multiply" => Cooperative::Multiply { shape, a, b, sums },
                    _ => Cooperative::Scale { shape, a, b, sums },
                }
            }
        })
    }

    fn part(&mut self) -> Parsed<Part> {
        let at = self.next;
        let word = self.any_word("a part of a product: a, b or sums")?;
        find(names::PART, word).ok_or_else(|| self.error(at, "a part of a product: a, b or sums"))
    }

    fn lines_of_matrix(&mut self) -> Parsed<Lines> {
        let at = self.next;
        let word = self.any_word("what lies side by side: rows or columns")?;
        let order = find(names::ORDER, word);
        let order = order.ok_or_else(|| self.error(at, "what lies side by side: rows or columns"))?;
        let address = self.address()?;
        self.word("stride")?;
        Ok(Lines { order, address, stride: self.int()? })
    }
}
