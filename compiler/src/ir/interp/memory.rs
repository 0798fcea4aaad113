//! Memory with suspicion: bounds, alignment, never-written bytes, and races.
//!
//! Reads and writes buffers and shared arrays for the threads of a launch. Always holds: every access that returns is
//! inside its memory, aligned as claimed, allowed by the parameter's access, reads written bytes only, and does not
//! race with any access that ran before it.

mod shadow;
mod together;

pub use shadow::{MAX_INTERVALS, MAX_THREADS, MAX_WORKGROUPS};

use super::ArgValue;
use super::order::Order;
use crate::ir::kernel::{Access, Kernel, ParamKind};
use crate::ir::types::Memory;
use shadow::{Shadow, race};

/// Who accesses memory, and when: accesses of one workgroup in different intervals have a barrier between them.
#[derive(Clone, Copy, Debug)]
pub struct Who {
    pub workgroup: u32,
    pub thread: u32,
    pub interval: u32,
}

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    Load,
    Store,
    Atomic,
}

/// All memory of a launch; shared arrays are those of the workgroup that runs.
#[derive(Debug)]
pub struct Space {
    params: Vec<Region>,
    shared: Vec<Region>,
    /// How often each thread has arrived at a barrier object or met its subgroup.
    stamps: Vec<u32>,
    /// Which accesses of other workgroups come before those of the one that runs.
    order: Order,
}

impl Space {
    /// Takes the buffers out of the arguments, which have been checked against the parameters.
    pub fn new(kernel: &Kernel, args: &mut [ArgValue], threads_in_launch: u64) -> Space {
        let track = threads_in_launch > 1;
        let params = kernel.params.iter().zip(args).map(|(param, arg)| match (param.kind, arg) {
            (ParamKind::Buffer { access, align }, ArgValue::Buffer(buffer)) => Region {
                name: param.name.clone(),
                bytes: std::mem::take(&mut buffer.bytes),
                written: buffer.written.take(),
                access,
                align,
                shadow: (track && access != Access::Read).then(Shadow::default),
                readers: None,
                under_way: None,
            },
            _ => Region::scalar(),
        });
        let shared = kernel.shared.iter().map(|shared| Region {
            name: shared.name.clone(),
            bytes: vec![0; shared.bytes as usize],
            written: Some(vec![false; shared.bytes as usize]),
            access: Access::ReadWrite,
            align: shared.align,
            shadow: (kernel.threads() > 1).then(Shadow::default),
            readers: None,
            under_way: None,
        });
        Space { params: params.collect(), shared: shared.collect(), stamps: Vec::new(), order: Order::default() }
    }

    /// Gives the buffers back.
    pub fn give_back(self, args: &mut [ArgValue]) {
        for (region, arg) in self.params.into_iter().zip(args) {
            if let ArgValue::Buffer(buffer) = arg {
                buffer.bytes = region.bytes;
                buffer.written = region.written;
            }
        }
    }

    /// Forgets what the last workgroup left in shared memory.
    pub fn enter_workgroup(&mut self) {
        self.order.enter_workgroup();
        for region in &mut self.shared {
            if let Some(written) = &mut region.written {
                written.fill(false);
            }
            if let Some(shadow) = &mut region.shadow {
                shadow.clear();
            }
            if let Some(readers) = &mut region.readers {
                readers.fill(None);
            }
            if let Some(under_way) = &mut region.under_way {
                under_way.fill(false);
            }
        }
    }

    /// The bytes `[at, at + len)`, after every check that this use of them calls for. `at` may lie anywhere.
    #[inline(always)]
    pub fn access(
        &mut self,
        memory: Memory,
        at: i64,
        len: usize,
        align: u32,
        what: Use,
        who: Who,
    ) -> Result<&mut [u8], String> {
        let region = match memory {
            Memory::Param(number) => &mut self.params[number as usize],
            Memory::Shared(number) => &mut self.shared[number as usize],
        };
        let inside =
            usize::try_from(at).is_ok_and(|at| at.checked_add(len).is_some_and(|end| end <= region.bytes.len()));
        let sound = inside && at as u64 & (align as u64).wrapping_sub(1) == 0 && align <= region.align;
        let allowed = match (what, region.access) {
            (Use::Load, Access::Write) | (Use::Store | Use::Atomic, Access::Read) | (Use::Atomic, Access::Write) => {
                false
            }
            (Use::Load, Access::Read | Access::ReadWrite) | (_, Access::ReadWrite) | (Use::Store, Access::Write) => {
                true
            }
        };
        if !sound || !allowed {
            return Err(region.complain(at, len, align, what, inside));
        }
        let range = at as usize..at as usize + len;
        if let Some(readers) = &mut region.readers {
            if what != Use::Load {
                return Err(format!("writes to {}, which bulk copies write", region.name));
            }
            let stamp = self.stamps.get(who.thread as usize).copied().unwrap_or(0);
            readers[range.start / 16..range.end.div_ceil(16)].fill(Some((who.thread, who.interval, stamp)));
        }
        if let Some(written) = &mut region.written {
            if what == Use::Store {
                written[range.clone()].fill(true);
            } else if let Some(hole) = written[range.clone()].iter().position(|&written| !written) {
                let hole = at as usize + hole;
                return Err(format!("reads byte {hole} of {}, which nothing has written", region.name));
            }
        }
        if let Some(shadow) = &mut region.shadow
            && let Err((byte, other)) = shadow.note(range.clone(), region.bytes.len(), what, who, &self.order)
        {
            return Err(race(&region.name, byte, what, who, other));
        }
        if what == Use::Atomic && matches!(memory, Memory::Param(_)) {
            self.order.atomic(memory, at, who);
        }
        Ok(&mut region.bytes[range])
    }

    /// A fence between workgroups.
    pub fn fence(&mut self, who: Who) {
        self.order.fence(who);
    }
}

impl Space {
    /// Starts a bulk copy to a shared array. From then on such copies alone write it, and in place of barriers of the
    /// workgroup its barrier objects order them: the bytes count as never written until the copy ends, and whoever has read
    /// them last must have arrived or met others since.
    pub fn begin_bulk(&mut self, memory: Memory, at: i64, len: usize, who: Who) -> Result<(), String> {
        let Memory::Shared(number) = memory else { return Err("a bulk copy to a buffer".into()) };
        let region = &mut self.shared[number as usize];
        if region.readers.is_none() {
            if region.written.as_ref().is_some_and(|written| written.contains(&true)) {
                return Err(format!("copies to {}, which other instructions have written", region.name));
            }
            region.shadow = None;
            region.readers = Some(vec![None; region.bytes.len().div_ceil(16)]);
        }
        let inside =
            at >= 0 && (at as u64).is_multiple_of(16) && at as usize + len <= region.bytes.len() && region.align >= 16;
        if !inside {
            return Err(region.complain(at, len, 16, Use::Store, at >= 0 && at as usize + len <= region.bytes.len()));
        }
        let range = at as usize..at as usize + len;
        for chunk in &region.readers.as_ref().expect("made above")[range.start / 16..range.end.div_ceil(16)] {
            let Some((thread, interval, stamp)) = *chunk else { continue };
            let now = self.stamps.get(thread as usize).copied().unwrap_or(0);
            if thread != who.thread && interval == who.interval && stamp == now {
                return Err(format!(
                    "race: this copy writes bytes of {} that thread {thread} has read and not arrived anywhere since",
                    region.name
                ));
            }
        }
        if let Some(under_way) = &mut region.under_way {
            if let Some(byte) = under_way[range.clone()].iter().position(|&under_way| under_way) {
                return Err(format!("byte {} of {} is under way already", range.start + byte, region.name));
            }
            under_way[range.clone()].fill(true);
        } else {
            let mut under_way = vec![false; region.bytes.len()];
            under_way[range.clone()].fill(true);
            region.under_way = Some(under_way);
        }
        if let Some(written) = &mut region.written {
            written[range].fill(false);
        }
        Ok(())
    }

    /// Ends a bulk copy.
    pub fn end_bulk(&mut self, memory: Memory, at: i64, bytes: &[u8]) {
        let Memory::Shared(number) = memory else { return };
        let region = &mut self.shared[number as usize];
        let range = at as usize..at as usize + bytes.len();
        region.bytes[range.clone()].copy_from_slice(bytes);
        if let Some(under_way) = &mut region.under_way {
            under_way[range.clone()].fill(false);
        }
        if let Some(written) = &mut region.written {
            written[range].fill(true);
        }
    }

    /// Notes that a thread has arrived at a barrier object, or met its subgroup.
    pub fn synchronized(&mut self, thread: u32) {
        let at = thread as usize;
        if self.stamps.len() <= at {
            self.stamps.resize(at + 1, 0);
        }
        self.stamps[at] += 1;
    }

    /// Starts an asynchronous store: it is checked like any other, and until it ends the bytes count as never written.
    pub fn begin_store(&mut self, memory: Memory, at: i64, len: usize, align: u32, who: Who) -> Result<(), String> {
        self.access(memory, at, len, align, Use::Store, who)?.fill(0xa5);
        let region = match memory {
            Memory::Param(number) => &mut self.params[number as usize],
            Memory::Shared(number) => &mut self.shared[number as usize],
        };
        if let Some(written) = &mut region.written {
            written[at as usize..][..len].fill(false);
        }
        Ok(())
    }
}

/// One buffer or shared array.
#[derive(Debug)]
struct Region {
    name: String,
    bytes: Vec<u8>,
    written: Option<Vec<bool>>,
    access: Access,
    align: u32,
    shadow: Option<Shadow>,
    /// Where bulk copies write it: who has read each 16 bytes last (thread, interval, stamp).
    readers: Option<Vec<Option<(u32, u32, u32)>>>,
    /// Which bytes a bulk copy is about to write.
    under_way: Option<Vec<bool>>,
}

impl Region {
    /// The place of a scalar parameter, which no address names.
    fn scalar() -> Region {
        Region {
            name: String::new(),
            bytes: Vec::new(),
            written: None,
            access: Access::Read,
            align: 1,
            shadow: None,
            readers: None,
            under_way: None,
        }
    }

    #[cold]
    fn complain(&self, at: i64, len: usize, align: u32, what: Use, inside: bool) -> String {
        let name = &self.name;
        let verb = match what {
            Use::Load => "reads",
            Use::Store => "writes",
            Use::Atomic => "adds to",
        };
        if !inside {
            let end = at as i128 + len as i128;
            format!("{verb} bytes {at}..{end} of {name}, which has {}: out of bounds", self.bytes.len())
        } else if align > self.align {
            format!("claims alignment {align} in {name}, which is itself aligned to {} only", self.align)
        } else if at as u64 & (align as u64).wrapping_sub(1) != 0 {
            format!("{verb} byte {at} of {name}: misaligned, since the instruction claims a multiple of {align}")
        } else {
            format!("{verb} {name}, whose access is {:?}", self.access)
        }
    }
}
