//! Accesses of a whole subgroup, of which nobody says which lane touches what.
//!
//! Always holds: such an access races with any other of its interval that is not a load beside a load, even with one of the
//! same subgroup.

use super::shadow::{MANY, race, tag};
use super::{Space, Use, Who};
use crate::ir::types::Memory;

impl Space {
    /// The bytes `[at, at + len)` for lanes that touch them together: the one of `who` and the `lanes - 1` after it.
    pub fn together(
        &mut self,
        memory: Memory,
        (at, len): (i64, usize),
        align: u32,
        what: Use,
        (who, lanes): (Who, u32),
    ) -> Result<&mut [u8], String> {
        let number = match memory {
            Memory::Shared(number) => number,
            Memory::Param(_) => return Err("touches a buffer; matrices lie in shared arrays".into()),
        };
        // Whichever of two lanes touched a byte before, the other one is not it.
        let last = Who { thread: who.thread + lanes.saturating_sub(1), ..who };
        let region = &self.shared[number as usize];
        let range =
            usize::try_from(at).ok().map(|at| at..at.saturating_add(len)).filter(|r| r.end <= region.bytes.len());
        if let (Some(shadow), Some(range)) = (&region.shadow, &range)
            && let Err((byte, other)) = shadow.check(range.clone(), what, last, &self.order)
        {
            return Err(race(&region.name, byte, what, last, other));
        }
        self.access(memory, at, len, align, what, who)?;
        let region = &mut self.shared[number as usize];
        let range = at as usize..at as usize + len;
        if let Some(shadow) = &mut region.shadow {
            shadow.mark(range.clone(), region.bytes.len(), what, tag(who) | MANY);
        }
        Ok(&mut region.bytes[range])
    }
}
