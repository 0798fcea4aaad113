//! What a launch must be, and the memory and parameters that it starts with.

use super::{Argument, Kernel, Launch, MAP_MARK, TensorMap};
use crate::ast::{Init, Variable};
use crate::decode::global_variables;
use crate::fault::{Fault, FaultKind};
use crate::memory::{Bytes, Memory, segment_base};

impl Kernel<'_> {
    pub(super) fn check(&self, launch: &Launch) -> Result<(), Fault> {
        let fail = |message: String| Err(Fault::new(FaultKind::Launch, message));
        let threads: u64 = launch.block.iter().map(|n| u64::from(*n)).product();
        if threads == 0 || threads > 1024 {
            return fail(format!("{threads} threads in a block; accepted: 1 to 1024"));
        }
        if launch.grid.contains(&0) {
            return fail("an empty grid".into());
        }
        for (name, numbers) in &self.program.directives {
            let product: u64 = numbers.iter().map(|n| u64::from(*n)).product();
            if name == "reqntid" && product != threads || name == "maxntid" && threads > product {
                return fail(format!("{threads} threads in a block, against `.{name}` {numbers:?}"));
            }
        }
        if (0..3).any(|i| launch.cluster[i] == 0 || !launch.grid[i].is_multiple_of(launch.cluster[i]))
            || launch.cluster.iter().product::<u32>() > 16
        {
            return fail(format!("clusters of {:?} in a grid of {:?}", launch.cluster, launch.grid));
        }
        if let Some(required) = self.program.directives.get("reqnctapercluster") {
            let mut wanted = [1; 3];
            wanted.iter_mut().zip(required).for_each(|(w, r)| *w = *r);
            if wanted != launch.cluster {
                return fail(format!("clusters of {:?}, against `.reqnctapercluster` {required:?}", launch.cluster));
            }
        }
        let shared = self.static_shared() + u64::from(launch.dynamic_shared);
        if shared > 227 * 1024 {
            return fail(format!("{shared} bytes of shared memory; accepted: at most {}", 227 * 1024));
        }
        Ok(())
    }

    pub(super) fn memory(&self, launch: &Launch) -> Result<(Memory, usize), Fault> {
        let mut memory = Memory::default();
        let variables: Vec<&Variable> = global_variables(&self.module.text).collect();
        for v in &variables {
            if v.external || v.size == 0 {
                return Err(Fault::new(
                    FaultKind::Launch,
                    format!("module variable `{}` is defined elsewhere", v.name),
                ));
            }
            // Module variables without an initial value start as zero.
            let mut bytes = Bytes { data: vec![0; v.size as usize], valid: vec![1; v.size as usize] };
            for (i, init) in v.init.iter().enumerate() {
                let bits = match init {
                    Init::Bits(bits) => *bits,
                    Init::Address(name, offset, _) => match variables.iter().position(|w| w.name == *name) {
                        Some(index) => segment_base(index).wrapping_add_signed(*offset),
                        None => {
                            let message = format!("`{name}` in the initial value of `{}`", v.name);
                            return Err(Fault::new(FaultKind::Launch, message));
                        }
                    },
                };
                bytes.write(i * v.element as usize, v.element as usize, bits, true);
            }
            memory.add(&v.name, bytes, v.space != crate::ast::Space::Const);
        }
        let first = memory.segments.len();
        for buffer in &launch.buffers {
            let bytes = Bytes { data: buffer.data.clone(), valid: buffer.valid.clone() };
            if bytes.data.len() != bytes.valid.len() {
                return Err(Fault::new(
                    FaultKind::Launch,
                    format!("buffer `{}`: data and validity differ", buffer.name),
                ));
            }
            memory.add(&buffer.name, bytes, buffer.writable);
        }
        Ok((memory, first))
    }

    pub(super) fn parameters(&self, launch: &Launch, first: usize, maps: &mut Vec<TensorMap>) -> Result<Bytes, Fault> {
        let fail = |message: String| Err(Fault::new(FaultKind::Launch, message));
        let wanted = &self.program.parameters;
        if wanted.len() != launch.arguments.len() {
            return fail(format!("`{}` takes {} arguments, not {}", self.name, wanted.len(), launch.arguments.len()));
        }
        let mut out = Bytes::poisoned(self.program.parameter_bytes as usize);
        for ((name, at, size), argument) in wanted.iter().zip(&launch.arguments) {
            let bytes = match argument {
                Argument::Pointer { buffer, offset } => {
                    if *buffer >= launch.buffers.len() {
                        return fail(format!("argument `{name}`: no buffer {buffer}"));
                    }
                    segment_base(first + buffer).wrapping_add_signed(*offset).to_le_bytes().to_vec()
                }
                Argument::Bytes(bytes) => bytes.clone(),
                Argument::Map(map) => {
                    if let Err(message) = map.check(launch.buffers.len()) {
                        return fail(format!("argument `{name}`: {message}"));
                    }
                    let mut bytes = MAP_MARK.to_vec();
                    bytes.extend((maps.len() as u16).to_le_bytes());
                    bytes.resize(128, 0);
                    maps.push(map.clone());
                    bytes
                }
            };
            if bytes.len() as u64 != *size {
                return fail(format!("argument `{name}` has {} bytes; accepted: {size}", bytes.len()));
            }
            let (at, size) = (*at as usize, *size as usize);
            out.data[at..at + size].copy_from_slice(&bytes);
            out.valid[at..at + size].fill(1);
        }
        Ok(out)
    }
}
