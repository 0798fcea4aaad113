//! C++ expressions as text with what a reader of them must know.

use crate::ir::Value;

/// How tightly an expression's outermost operation binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Binds {
    /// Choices, comparisons, shifts and bit operations: always in parentheses as an operand.
    Loose,
    /// A sum.
    Sum,
    /// A product.
    Product,
    /// A prefix operator.
    Prefix,
    /// A name, a call, a literal.
    Atom,
}

/// An expression.
#[derive(Clone, Debug)]
pub(super) struct Expr {
    /// Its text.
    pub text: String,
    /// How tightly it binds.
    pub binds: Binds,
    /// Whether C++ takes it as a signed integer (of 32 or 64 bits; narrower ones are always unsigned).
    pub signed: bool,
    /// Variables that loops change and that it reads.
    pub reads: Vec<Value>,
    /// How many operations deep it is.
    pub depth: u32,
}

impl Expr {
    /// A name, a call or a literal.
    pub fn atom(text: impl Into<String>) -> Expr {
        Expr { text: text.into(), binds: Binds::Atom, signed: false, reads: Vec::new(), depth: 0 }
    }

    /// An expression of operands.
    pub fn of(text: String, binds: Binds, operands: &[&Expr]) -> Expr {
        let mut reads: Vec<Value> = operands.iter().flat_map(|operand| operand.reads.iter().copied()).collect();
        reads.sort_unstable();
        reads.dedup();
        let depth = 1 + operands.iter().map(|operand| operand.depth).max().unwrap_or(0);
        Expr { text, binds, signed: false, reads, depth }
    }

    /// A call of a function.
    pub fn call(function: &str, operands: &[&Expr]) -> Expr {
        let list: Vec<&str> = operands.iter().map(|operand| operand.text.as_str()).collect();
        Expr::of(format!("{function}({})", list.join(", ")), Binds::Atom, operands)
    }

    /// `a operator b`; sums and products chain on their left without parentheses.
    pub fn infix(operator: &str, a: &Expr, b: &Expr) -> Expr {
        let binds = match operator {
            "+" | "-" => Binds::Sum,
            "*" | "/" | "%" => Binds::Product,
            _ => Binds::Loose,
        };
        let left = if binds == Binds::Loose { a.at_least(Binds::Sum) } else { a.at_least(binds) };
        let right = if binds == Binds::Sum { b.at_least(Binds::Product) } else { b.at_least(Binds::Prefix) };
        // Arithmetic beside a bit operator or a shift reads badly without parentheses.
        let plain = matches!(operator, "<" | "<=" | "==" | "!=");
        let (left, right) = if binds == Binds::Loose && !plain {
            (a.at_least(Binds::Prefix), b.at_least(Binds::Prefix))
        } else if plain {
            (left, b.at_least(Binds::Sum))
        } else {
            (left, right)
        };
        Expr::of(format!("{left} {operator} {right}"), binds, &[a, b])
    }

    /// `operator a`.
    pub fn prefix(operator: &str, a: &Expr) -> Expr {
        Expr::of(format!("{operator}{}", a.at_least(Binds::Atom)), Binds::Prefix, &[a])
    }

    /// Its text, in parentheses if it binds less tightly than this.
    pub fn at_least(&self, binds: Binds) -> String {
        if self.binds >= binds { self.text.clone() } else { format!("({})", self.text) }
    }

    /// The same, taken as signed.
    pub fn taken_signed(mut self) -> Expr {
        self.signed = true;
        self
    }
}
