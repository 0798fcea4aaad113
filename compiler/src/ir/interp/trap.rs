//! What a run that went wrong says: which statement, which thread, why.

use crate::ir::kernel::{Block, Inst, Kernel, Statement};
use std::fmt;

/// Why a run stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trap {
    /// Where: statement path such as `body.3.for.1`; `launch` if the arguments do not fit.
    pub place: String,
    /// The statement.
    pub text: String,
    /// What went wrong.
    pub message: String,
    /// Index of the workgroup along x, y, z.
    pub workgroup: [u32; 3],
    /// Index of the thread in its workgroup, x fastest.
    pub thread: u32,
}

impl fmt::Display for Trap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.workgroup;
        write!(f, "{}: `{}`: {} (workgroup {x},{y},{z}, thread {})", self.place, self.text, self.message, self.thread)
    }
}

impl std::error::Error for Trap {}

impl Trap {
    /// A launch that does not fit its kernel.
    pub(super) fn launch(message: String) -> Trap {
        Trap { place: "launch".to_string(), text: String::new(), message, workgroup: [0; 3], thread: 0 }
    }

    /// A trap at statement number `origin` of the kernel, in order of appearance.
    pub(super) fn at(kernel: &Kernel, origin: u32, message: String, workgroup: [u32; 3], thread: u32) -> Trap {
        let mut left = origin;
        let (place, text) = find(&kernel.body, "body", &mut left).unwrap_or_default();
        Trap { place, text, message, workgroup, thread }
    }
}

fn find(block: &Block, path: &str, left: &mut u32) -> Option<(String, String)> {
    for (i, statement) in block.statements.iter().enumerate() {
        let here = format!("{path}.{i}");
        if *left == 0 {
            return Some((here, text(statement)));
        }
        *left -= 1;
        let found = match &statement.inst {
            Inst::For(inner) => find(&inner.body, &format!("{here}.for"), left),
            Inst::If(inner) => find(&inner.then, &format!("{here}.then"), left)
                .or_else(|| find(&inner.otherwise, &format!("{here}.else"), left)),
            _ => None,
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

/// The statement without the bodies inside it.
fn text(statement: &Statement) -> String {
    let results: Vec<String> = statement.results.iter().map(|value| value.to_string()).collect();
    let inst = match &statement.inst {
        Inst::For(inner) => format!("for {} in {}..{} step {}", inner.variable, inner.start, inner.end, inner.step),
        Inst::If(inner) => format!("if {}", inner.cond),
        other => format!("{other:?}"),
    };
    if results.is_empty() { inst } else { format!("{} = {inst}", results.join(", ")) }
}
