//! What runs beside the threads from sm_90 on: barrier objects (`mbarrier`), bulk copies, `wgmma`, proxy fences, register
//! counts, grid dependencies; fences between workgroups on every device.
//!
//! Always holds: a product is fenced before and waited for behind its last step, so that its sums are plain registers.

use super::emit::Emitter;
use super::memory::list;
use super::text::Word;
use crate::ir::{Address, Asynchronous, Factor, Panel};

impl Emitter<'_> {
    pub(super) fn asynchronous(&mut self, inst: &Asynchronous) -> Vec<Word> {
        match inst {
            Asynchronous::BarrierInit { barrier, arrivals } => {
                let place = self.place(barrier, 8).at(0);
                self.text.line(format_args!("mbarrier.init.shared::cta.b64 {place}, {arrivals}"));
            }
            Asynchronous::BarrierArrive { barrier } => {
                let place = self.place(barrier, 8).at(0);
                self.text.b64("mbarrier.arrive.shared::cta.b64", &[&place]);
            }
            Asynchronous::BarrierExpect { barrier, bytes } => {
                let place = self.place(barrier, 8).at(0);
                self.text.b64("mbarrier.arrive.expect_tx.shared::cta.b64", &[&place, bytes]);
            }
            Asynchronous::BarrierWait { barrier, parity } => {
                let place = self.place(barrier, 8).at(0);
                let parity = self.scalar(*parity);
                let parity = self.text.b32("and.b32", &[&parity, &1]);
                let number = self.text.new_label();
                self.text.label("$wait", number);
                let done = self.text.pred("mbarrier.try_wait.parity.shared::cta.b64", &[&place, &parity]);
                self.text.line(format_args!("@!{done} bra $wait_{number}"));
            }
            Asynchronous::BulkCopy { to, from, bytes, barrier } => {
                let (to, from) = (self.place(to, *bytes).at(0), self.place(from, *bytes).at(0));
                let barrier = self.place(barrier, 8).at(0);
                self.text.line(format_args!(
                    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes {to}, {from}, {bytes}, {barrier}"
                ));
            }
            Asynchronous::Fence => self.text.line(format_args!("fence.proxy.async.shared::cta")),
            Asynchronous::SubgroupBarrier => self.text.line(format_args!("bar.warp.sync 0xffffffff")),
            Asynchronous::Registers { count, more } => {
                let way = if *more { "inc" } else { "dec" };
                self.text.line(format_args!("setmaxnreg.{way}.sync.aligned.u32 {count}"));
            }
            Asynchronous::LaunchDependents => self.text.line(format_args!("griddepcontrol.launch_dependents")),
            Asynchronous::AwaitDependencies => self.text.line(format_args!("griddepcontrol.wait")),
            Asynchronous::DeviceFence => self.text.line(format_args!("fence.acq_rel.gpu")),
            Asynchronous::MmaWait(left) => self.text.line(format_args!("wgmma.wait_group.sync.aligned {left}")),
            Asynchronous::Mma { shape, columns, a, b, acc, pending } => {
                let before = self.words(*acc);
                let fresh = before.iter().all(|word| *word == Word::I(0));
                // Sums of a pending product may be under way: no instruction but further products touches their registers.
                let stay = *pending && before.iter().all(|word| matches!(word, Word::R(_)));
                let sums: Vec<Word> =
                    if stay { before.clone() } else { before.iter().map(|_| self.text.new_word()).collect() };
                if !fresh && !stay {
                    sums.iter().zip(&before).for_each(|(&to, &from)| self.text.copy(to, from));
                }
                let fragments: Vec<String> = match a {
                    Factor::Fragments(values) => {
                        let one = |value: &_| {
                            let words: Vec<Word> = self.words(*value);
                            let words: Vec<Word> = words.into_iter().map(|word| self.text.reg(word)).collect();
                            list(&words)
                        };
                        values.iter().map(one).collect()
                    }
                    Factor::Panel(panel, steps) => self.descriptors(panel, *steps),
                };
                let panels = self.descriptors(b, a.steps());
                self.text.line(format_args!("wgmma.fence.sync.aligned"));
                let sums_list = list(&sums);
                let spelled = super::matrix::spelled;
                let types =
                    format!("{}.{}.{}", spelled(shape.acc.name()), spelled(shape.a.name()), spelled(shape.b.name()));
                let in_registers = matches!(a, Factor::Fragments(_));
                let tail = match (spelled(shape.acc.name()), shape.a.bits(), in_registers) {
                    ("s32", ..) => "",
                    (_, 8, _) => ", 1, 1",
                    (_, _, true) => ", 1, 1, 0",
                    (_, _, false) => ", 1, 1, 0, 0",
                };
                for (step, (a, b)) in fragments.iter().zip(&panels).enumerate() {
                    let adds = u8::from(step > 0 || !fresh);
                    self.text.line(format_args!(
                        "wgmma.mma_async.sync.aligned.m64n{columns}k{}.{types} {sums_list}, {a}, {b}, {adds}{tail}",
                        shape.k
                    ));
                }
                self.text.line(format_args!("wgmma.commit_group.sync.aligned"));
                if !pending {
                    self.text.line(format_args!("wgmma.wait_group.sync.aligned 0"));
                }
                return sums;
            }
        }
        Vec::new()
    }

    /// A matrix descriptor for each step of k, which is two pieces of a row: start, leading and stride in units of 16
    /// bytes from bits 0, 16 and 32 on; bit 62 says that rows are swizzled.
    fn descriptors(&mut self, panel: &Panel, steps: u32) -> Vec<String> {
        let start = self.shared_address(&panel.address);
        let units = self.text.b32("shr.u32", &[&start, &4]);
        let units = self.text.b64("cvt.u64.u32", &[&units]);
        let swizzle = u64::from(panel.swizzled) << 62;
        let offsets = ((panel.leading as u64 >> 4) << 16) | ((panel.stride as u64 >> 4) << 32) | swizzle;
        let first = self.text.b64("or.b64", &[&units, &Word::L(offsets)]);
        let mut list = vec![first.to_string()];
        for step in 1..steps {
            let further = 2 * step as u64 * (panel.leading as u64 >> 4);
            list.push(self.text.b64("add.s64", &[&first, &Word::L(further)]).to_string());
        }
        list
    }

    /// An address in shared memory as a register.
    fn shared_address(&mut self, address: &Address) -> Word {
        let place = self.place(address, 16);
        let (base, offset) = place.parts();
        let base = self.text.reg(base);
        if offset == 0 { base } else { self.text.b32("add.s32", &[&base, &offset]) }
    }
}
