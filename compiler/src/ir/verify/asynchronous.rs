//! Instructions that run beside the threads: features, places, sizes, who must come.

use super::Check;
use super::memory::Use;
use crate::caps::Feature;
use crate::ir::asynchronous::{Asynchronous, Factor, MMA_COLUMNS, Panel};
use crate::ir::kernel::Address;
use crate::ir::types::{Memory, Scalar, Type, Value};
use crate::ir::uniform::Uniform;

/// Most bytes that a phase of a barrier object can count.
const MOST_BYTES: u32 = (1 << 20) - 1;

impl Check<'_> {
    pub(super) fn asynchronous(&mut self, inst: &Asynchronous, ty: Option<Type>) {
        self.needs(inst.feature(), inst.name());
        match inst {
            Asynchronous::BarrierInit { barrier, arrivals } => {
                self.barrier_object(barrier);
                if *arrivals == 0 || *arrivals > MOST_BYTES {
                    self.fault(format!("{arrivals} arrivals; a phase has 1 to {MOST_BYTES}"));
                }
            }
            Asynchronous::BarrierArrive { barrier } => self.barrier_object(barrier),
            Asynchronous::BarrierExpect { barrier, bytes } => {
                self.barrier_object(barrier);
                if *bytes > MOST_BYTES {
                    self.fault(format!("{bytes} bytes; a phase counts {MOST_BYTES} at most"));
                }
            }
            Asynchronous::BarrierWait { barrier, parity } => {
                self.barrier_object(barrier);
                self.expect(*parity, Scalar::I32.into(), "the parity");
            }
            Asynchronous::BulkCopy { to, from, bytes, barrier } => {
                self.barrier_object(barrier);
                if *bytes == 0 || !bytes.is_multiple_of(16) || *bytes > MOST_BYTES {
                    self.fault(format!("{bytes} bytes; a bulk copy takes multiples of 16 up to {MOST_BYTES}"));
                }
                if !matches!(to.memory, Memory::Shared(_)) {
                    self.fault("copies to a buffer; it copies to a shared array");
                }
                if !matches!(from.memory, Memory::Param(_)) {
                    self.fault("copies from a shared array; it copies from a buffer");
                }
                self.range(to, *bytes);
                // A vector of 16 bytes stands for the range: the kernel knows no length of a buffer.
                self.access(Use::Load, from, 16, Some(Type::vector(Scalar::I8, 16)));
            }
            Asynchronous::Fence => {}
            Asynchronous::SubgroupBarrier => {
                self.needs(Feature::Subgroups, "a meeting of the subgroup");
                self.reached_by(Uniform::Subgroup);
            }
            Asynchronous::Mma { shape, columns, a, b, acc, pending } => {
                if !self.caps.matrix.contains(shape) || (shape.m, shape.n, shape.lanes) != (16, 8, 32) {
                    self.fault(format!("{} has no product of four subgroups in parts of {shape}", self.caps.name));
                }
                self.reached_by(Uniform::Subgroup);
                if !self.kernel.threads().is_multiple_of(128) {
                    self.fault(format!("{} threads; four subgroups of 32 work together", self.kernel.threads()));
                }
                if !MMA_COLUMNS.contains(columns) {
                    self.fault(format!("{columns} columns; accepted: {MMA_COLUMNS:?}"));
                    return;
                }
                let steps = a.steps();
                if !(1..=16).contains(&steps) {
                    self.fault(format!("{steps} steps of k; accepted: 1 to 16"));
                }
                match a {
                    Factor::Fragments(list) => {
                        if let Some(scalar) = Scalar::of(shape.a) {
                            let fragment = Type::vector(scalar, shape.a_elements() as u8);
                            list.iter().for_each(|&value| self.expect(value, fragment, "the fragment of A"));
                        }
                    }
                    Factor::Panel(panel, _) => self.panel(panel, 64, steps),
                }
                self.panel(b, *columns, steps);
                if let Some(scalar) = Scalar::of(shape.acc) {
                    let sums = Type::vector(scalar, (columns / 2) as u8);
                    self.expect(*acc, sums, "the sums");
                    if *pending && self.constants[acc.0 as usize].is_none() && self.uses(*acc) > 1 {
                        self.fault("the sums of a pending product are used elsewhere too; it takes their registers");
                    }
                    self.result_is(ty, sums);
                }
            }
            Asynchronous::MmaWait(left) => {
                self.reached_by(Uniform::Subgroup);
                if *left > 7 {
                    self.fault(format!("waits for all but {left} products; accepted: 0 to 7"));
                }
            }
            Asynchronous::Registers { count, .. } => {
                self.reached_by(Uniform::Subgroup);
                if !(24..=256).contains(count) || !count.is_multiple_of(8) {
                    self.fault(format!("{count} registers; accepted: multiples of 8 from 24 to 256"));
                }
            }
            Asynchronous::LaunchDependents | Asynchronous::AwaitDependencies | Asynchronous::DeviceFence => {}
        }
    }

    /// How often a value is read.
    fn uses(&self, value: Value) -> u32 {
        let count = || {
            let mut uses = vec![0; self.kernel.types.len()];
            self.kernel.body.each(&mut |statement| {
                statement.inst.operands().into_iter().for_each(|operand| uses[operand.0 as usize] += 1);
            });
            uses
        };
        self.uses.get_or_init(count)[value.0 as usize]
    }

    fn barrier_object(&mut self, address: &Address) {
        if !matches!(address.memory, Memory::Shared(_)) {
            self.fault("a barrier object lies in a shared array, not in a buffer");
        }
        self.access(Use::Store, address, 8, Some(Scalar::I64.into()));
    }

    /// A range of a shared array.
    fn range(&mut self, address: &Address, bytes: u32) {
        self.access(Use::Store, address, 16, Some(Type::vector(Scalar::I8, 16)));
        let Memory::Shared(number) = address.memory else { return };
        let Some(size) = self.kernel.shared.get(number as usize).map(|shared| shared.bytes) else { return };
        let end = address.offset.max(0).saturating_add(bytes as i64);
        if address.index.is_none() && end > size as i64 || bytes > size {
            self.fault(format!("{bytes} bytes at {} pass the end of the array of {size} bytes", address.offset));
        }
    }

    fn panel(&mut self, panel: &Panel, rows: u32, steps: u32) {
        if !matches!(panel.address.memory, Memory::Shared(_)) {
            self.fault("a panel lies in a shared array, not in a buffer");
        }
        if panel.swizzled && (panel.leading != 16 || panel.stride != 1024 || steps > 4) {
            self.fault("a swizzled panel has leading 16, stride 1024 and at most 4 steps");
            return;
        }
        for (name, bytes) in [("leading", panel.leading), ("stride", panel.stride)] {
            if !bytes.is_multiple_of(16) || bytes >= 1 << 18 {
                self.fault(format!("{name} is {bytes}; it is a multiple of 16 below 262144"));
                return;
            }
        }
        let last = panel.place(rows.saturating_sub(1), 2 * steps.clamp(1, 16) - 1) + 16;
        self.range(&panel.address, last.clamp(16, u32::MAX as i64) as u32);
    }
}
