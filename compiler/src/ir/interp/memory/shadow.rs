//! Who touched each byte before, so that races are found.
//!
//! Always holds: of accesses that could run at the same time and are not both loads or both atomics, the later one is told.

use super::super::order::Order;
use super::{Use, Who};

#[cold]
pub(super) fn race(name: &str, byte: usize, what: Use, who: Who, other: Other) -> String {
    let describe = |what| match what {
        Use::Load => "read",
        Use::Store => "write",
        Use::Atomic => "atomic add",
    };
    let from = if other.tag == EVERY_WORKGROUP {
        "threads of several workgroups".to_string()
    } else if other.tag & MANY == MANY {
        format!("several threads of workgroup {}", (other.tag >> 36) - 1)
    } else {
        format!("thread {} of workgroup {}", other.tag & MANY, (other.tag >> 36) - 1)
    };
    format!(
        "race on byte {byte} of {name}: this {} by thread {} of workgroup {}, and a {} by {from} with no barrier between",
        describe(what),
        who.thread,
        who.workgroup,
        describe(other.what)
    )
}

/// An earlier access that races with this one.
pub(super) struct Other {
    tag: u64,
    what: Use,
}

/// Who touched each byte: a tag of `workgroup + 1` (28 bits), interval (24 bits) and thread (12 bits), 0 for nobody.
#[derive(Debug, Default)]
pub(super) struct Shadow {
    stores: Vec<u64>,
    loads: Vec<u64>,
    atomics: Vec<u64>,
}

/// The thread field of a tag that stands for several threads of one workgroup in one interval.
pub(super) const MANY: u64 = 0xfff;
/// The tag of accesses by more than one workgroup.
const EVERY_WORKGROUP: u64 = ((1 << 28) - 1) << 36;
/// Most workgroups that a tag can name.
pub const MAX_WORKGROUPS: u64 = (1 << 28) - 2;
/// Most threads of a workgroup that a tag can name.
pub const MAX_THREADS: u32 = MANY as u32 - 1;
/// Most barriers that a workgroup may meet.
pub const MAX_INTERVALS: u32 = 1 << 24;

impl Shadow {
    pub(super) fn clear(&mut self) {
        self.stores.fill(0);
        self.loads.fill(0);
        self.atomics.fill(0);
    }

    #[inline(always)]
    pub(super) fn note(
        &mut self,
        range: std::ops::Range<usize>,
        len: usize,
        what: Use,
        who: Who,
        order: &Order,
    ) -> Result<(), (usize, Other)> {
        self.check(range.clone(), what, who, order)?;
        self.mark(range, len, what, tag(who));
        Ok(())
    }

    /// Whether an access races with an earlier one: the byte, and that one.
    #[inline(always)]
    pub(super) fn check(
        &self,
        range: std::ops::Range<usize>,
        what: Use,
        who: Who,
        order: &Order,
    ) -> Result<(), (usize, Other)> {
        let tag = tag(who);
        let kinds = [(&self.stores, Use::Store), (&self.loads, Use::Load), (&self.atomics, Use::Atomic)];
        for (tags, kind) in kinds {
            // Two loads never race, and neither do two atomics.
            if (kind == what && what != Use::Store) || tags.is_empty() {
                continue;
            }
            let tags = &tags[range.clone()];
            if let Some(byte) = tags.iter().position(|&old| old != 0 && old != tag && conflict(old, tag, who, order)) {
                return Err((range.start + byte, Other { tag: tags[byte], what: kind }));
            }
        }
        Ok(())
    }

    #[inline(always)]
    pub(super) fn mark(&mut self, range: std::ops::Range<usize>, len: usize, what: Use, tag: u64) {
        let mine = match what {
            Use::Store => &mut self.stores,
            Use::Load => &mut self.loads,
            Use::Atomic => &mut self.atomics,
        };
        if mine.is_empty() {
            mine.resize(len, 0);
        }
        for old in &mut mine[range] {
            if *old != tag {
                *old = merge(*old, tag);
            }
        }
    }
}

/// The tag of an access by one thread.
#[inline(always)]
pub(super) fn tag(who: Who) -> u64 {
    (who.workgroup as u64 + 1) << 36 | (who.interval as u64) << 12 | who.thread as u64
}

/// Whether two accesses can run at the same time.
fn conflict(old: u64, new: u64, who: Who, order: &Order) -> bool {
    if old >> 36 != new >> 36 {
        let interval = (old >> 12) as u32 & (MAX_INTERVALS - 1);
        return old == EVERY_WORKGROUP || !order.is_before((old >> 36) as u32 - 1, interval, who);
    }
    old >> 12 == new >> 12 && old & MANY != new & MANY
}

/// One tag for an old access and a new one: older intervals of one workgroup can race with it no more.
fn merge(old: u64, new: u64) -> u64 {
    if old == 0 || old == new {
        new
    } else if old >> 36 != new >> 36 {
        EVERY_WORKGROUP
    } else if old >> 12 == new >> 12 {
        old | MANY
    } else {
        new
    }
}
