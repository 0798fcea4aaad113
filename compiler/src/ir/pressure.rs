//! What a kernel asks of a unit: registers of a thread, bytes of shared memory.
//!
//! Reads a kernel, makes an estimate that targets hold their assembler to: PTX and HIP sources carry it as the most registers
//! that a thread may have. Always holds: no place of the kernel, in the order in which it is written, has more live words than
//! the estimate says, but for the device's own limit.

use super::asynchronous::{Asynchronous, Factor};
use super::kernel::{Block, Inst, Kernel};
use super::late::late;
use super::types::{Scalar, Type, Value};
use crate::caps::Caps;
use crate::dtype::DType;

/// An estimate of what a workgroup needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Most 32-bit registers of a thread; a multiple of what the device deals out at once, but for its limit.
    pub registers: u32,
    /// Bytes of shared memory of a workgroup.
    pub shared_bytes: u64,
    /// Workgroups that a unit holds at once by these two and its threads; at least 1.
    pub workgroups_per_unit: u32,
}

/// Registers beside the live values: addresses under construction, what an instruction decodes on its way, the stack pointer.
const SPARE: u32 = 32;

/// Registers beside the most live values without which `ptxas` was seen to spill.
const MARGIN: u32 = 10;

/// Words of sums that start in one block before it matters that their products may run side by side.
const STARTED: u32 = 64;

/// Most registers that sums beyond these are given.
const MOST_STARTED: u32 = 60;

/// [`MARGIN`] where subgroups multiply 8-bit floats, whose decoding has more values on their way.
const MARGIN_FLOAT8: u32 = 35;

/// Words of the products of four subgroups in one block, see [`Products::warpgroup`], before it matters that an assembler
/// makes their operands long before they start.
const AHEAD: u32 = 256;

/// Words of sums of activations in one block, see [`Products::ones`], before it matters that they wait for their offsets.
const ONES: u32 = 64;

/// The estimate for a kernel on a GPU; `None` for other devices.
pub fn resources(kernel: &Kernel, caps: &Caps) -> Option<Resources> {
    let gpu = caps.gpu?;
    let threads = kernel.threads().max(1);
    let live = live_words_of(kernel, gpu.registers.tables);
    // A quarter more lets the assembler move loads ahead of what is written before them.
    let step = gpu.registers.step;
    let most = |workgroups: u32| {
        let each = gpu.registers_per_unit / (workgroups.max(1) * threads) / step * step;
        each.clamp(step, gpu.registers_per_thread)
    };
    let mut registers = (live + live / 4 + SPARE).next_multiple_of(step).min(most(1));
    let shared_bytes = kernel.shared_bytes();
    let by_shared = (gpu.shared_per_unit as u64).checked_div(shared_bytes).unwrap_or(u64::MAX);
    let by_registers = gpu.registers_per_unit / (registers.next_multiple_of(step) * threads);
    let by_both = by_registers.min(gpu.threads_per_unit / threads);
    if gpu.registers.leftover {
        registers = most(by_both);
    }
    let fits = (by_both as u64).min(by_shared);
    Some(Resources { registers, shared_bytes, workgroups_per_unit: fits.max(1) as u32 })
}

/// Whether a GPU's registers hold the values of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// They do.
    Sure,
    /// More words are live than is sure to fit, this many; an assembler may find a better order than the one counted here.
    Doubtful(u32),
    /// Far more are.
    No,
}

/// The values of a kernel, counted in 32-bit words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// The most that are live at one place, each made as late as possible.
    live: u32,
    /// What its products add to that.
    products: Products,
}

/// Matrix products that start from constants, of the block that has the most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Products {
    /// Words of sums of a subgroup's own.
    started: u32,
    /// Of products of four subgroups: words of sums that start, and four times those of operand A in registers.
    warpgroup: u32,
    /// Words of sums that start with an operand A of constants: of activations, as offsets take them.
    ones: u32,
    /// Whether a subgroup's own multiply 8-bit floats.
    float8: bool,
}

impl Demand {
    /// Counts the values of a kernel for a GPU; none for other devices.
    pub fn of(kernel: Kernel, caps: &Caps) -> Demand {
        let Some(gpu) = caps.gpu else { return Demand { live: 0, products: Products::default() } };
        let mut constant = vec![false; kernel.types.len()];
        let products = Products::of(&kernel.body, &kernel, &mut constant);
        Demand { live: live_words_of(&late(kernel), gpu.registers.tables), products }
    }

    /// Whether so many threads of a workgroup hold them. Where more products start from nothing in one block than one tile
    /// has, an assembler begins the next before it has scaled the last: 35 of 64 of their words count. Products of four
    /// subgroups wait for each other, and their operands are made before the first of them starts: 3 of 8 of the words past
    /// [`AHEAD`] count, and 5 of 8 of sums of activations past [`ONES`]. Devices that are no GPUs hold everything.
    ///
    /// The constants are fitted to `ptxas`, which test `ptx_validate` runs over all kernels that families offer.
    pub fn fit(self, threads: u32, caps: &Caps) -> Fit {
        let Some(gpu) = caps.gpu else { return Fit::Sure };
        let registers = (gpu.registers_per_unit / threads.max(1)).min(gpu.registers_per_thread);
        let margin = if self.products.float8 { MARGIN_FLOAT8 } else { MARGIN };
        let started = self.products.started.saturating_sub(STARTED) * 35 / 64;
        let ahead = self.products.warpgroup.saturating_sub(AHEAD) * 3 / 8;
        let ones = self.products.ones.saturating_sub(ONES) * 5 / 8;
        if self.live + margin + (started + ahead).min(MOST_STARTED) + ones <= registers {
            Fit::Sure
        } else if self.live <= registers * 11 / 8 {
            Fit::Doubtful(self.live)
        } else {
            Fit::No
        }
    }
}

impl Products {
    /// Counts them; `constant` says which values are.
    fn of(block: &Block, kernel: &Kernel, constant: &mut [bool]) -> Products {
        let (mut here, mut most) = (Products::default(), Products::default());
        for statement in &block.statements {
            match &statement.inst {
                Inst::Const(_) => statement.results.iter().for_each(|value| constant[value.0 as usize] = true),
                inst @ (Inst::Vector(_) | Inst::Bitcast(_)) => {
                    let all = inst.operands().iter().all(|value| constant[value.0 as usize]);
                    statement.results.iter().for_each(|value| constant[value.0 as usize] = all);
                }
                Inst::Mma { acc, shape, .. } => {
                    here.float8 |= matches!(shape.a, DType::E4m3fn | DType::E5m2);
                    if constant[acc.0 as usize] {
                        here.started += words(kernel.ty(*acc));
                    }
                }
                Inst::Asynchronous(inner) => {
                    if let Asynchronous::Mma { acc, a: Factor::Fragments(a), .. } = &**inner
                        && constant[acc.0 as usize]
                    {
                        let sums = words(kernel.ty(*acc));
                        here.warpgroup += sums + 4 * a.iter().map(|&a| words(kernel.ty(a))).sum::<u32>();
                        if a.iter().all(|a| constant[a.0 as usize]) {
                            here.ones += sums;
                        }
                    }
                }
                Inst::For(inner) => most = most.max(Products::of(&inner.body, kernel, constant)),
                Inst::If(inner) => {
                    for body in [&inner.then, &inner.otherwise] {
                        most = most.max(Products::of(body, kernel, constant));
                    }
                }
                _ => {}
            }
        }
        most.max(here)
    }

    fn max(self, other: Products) -> Products {
        Products {
            started: self.started.max(other.started),
            warpgroup: self.warpgroup.max(other.warpgroup),
            ones: self.ones.max(other.ones),
            float8: self.float8 || other.float8,
        }
    }
}

/// The most 32-bit words that are live at one place. Constants are operands of instructions and take none; bools are
/// predicates.
pub fn live_words(kernel: &Kernel) -> u32 {
    live_words_of(kernel, false)
}

/// The same, where the tables of look-ups count too if they lie in registers.
fn live_words_of(kernel: &Kernel, tables: bool) -> u32 {
    let count = kernel.types.len();
    let none = || vec![false; count];
    let mut analysis =
        Analysis { kernel, live: none(), constant: none(), seen: vec![0; count], walk: 0, now: 0, most: 0 };
    analysis.constants(&kernel.body);
    if tables {
        kernel.body.each(&mut |statement| {
            if let Inst::PermuteBytes { table, .. } = statement.inst {
                analysis.constant[table.0 as usize] = false;
            }
        });
    }
    analysis.block(&kernel.body);
    // Each parameter stays where it has been read to.
    analysis.most + 2 * kernel.params.len() as u32
}

struct Analysis<'k> {
    kernel: &'k Kernel,
    live: Vec<bool>,
    constant: Vec<bool>,
    /// The last walk through a body that met a value, and how many there were.
    seen: Vec<u32>,
    walk: u32,
    now: u32,
    most: u32,
}

impl Analysis<'_> {
    fn constants(&mut self, block: &Block) {
        for statement in &block.statements {
            match &statement.inst {
                Inst::Const(_) => statement.results.iter().for_each(|value| self.constant[value.0 as usize] = true),
                Inst::For(inner) => self.constants(&inner.body),
                Inst::If(inner) => {
                    self.constants(&inner.then);
                    self.constants(&inner.otherwise);
                }
                _ => {}
            }
        }
    }

    fn enter(&mut self, value: Value) {
        let at = value.0 as usize;
        if !self.constant[at] && !std::mem::replace(&mut self.live[at], true) {
            self.now += words(self.kernel.ty(value));
        }
    }

    fn leave(&mut self, value: Value) {
        if std::mem::replace(&mut self.live[value.0 as usize], false) {
            self.now -= words(self.kernel.ty(value));
        }
    }

    /// From what is live behind a block to what is live before it, statements last to first.
    fn block(&mut self, block: &Block) {
        for statement in block.statements.iter().rev() {
            // A result that nobody reads takes its registers all the same.
            statement.results.iter().for_each(|&value| self.enter(value));
            self.most = self.most.max(self.now);
            match &statement.inst {
                Inst::For(inner) => {
                    statement.results.iter().for_each(|&value| self.leave(value));
                    // What the body reads from outside lives through every turn.
                    let mut outside = Vec::new();
                    self.reads(&inner.body, &mut outside);
                    outside.iter().for_each(|&value| self.enter(value));
                    self.enter(inner.end);
                    self.enter(inner.variable);
                    self.block(&inner.body);
                    self.leave(inner.variable);
                    inner.carried.iter().for_each(|&(name, _)| self.leave(name));
                    inner.carried.iter().for_each(|&(_, start)| self.enter(start));
                    self.enter(inner.start);
                }
                Inst::If(inner) => {
                    statement.results.iter().for_each(|&value| self.leave(value));
                    let behind = (self.live.clone(), self.now);
                    self.block(&inner.then);
                    let then = std::mem::replace(&mut self.live, behind.0);
                    self.now = behind.1;
                    self.block(&inner.otherwise);
                    for (number, live) in then.into_iter().enumerate() {
                        if live {
                            self.enter(Value(number as u32));
                        }
                    }
                    self.enter(inner.cond);
                }
                inst => {
                    statement.results.iter().for_each(|&value| self.leave(value));
                    inst.operands().into_iter().for_each(|value| self.enter(value));
                }
            }
            self.most = self.most.max(self.now);
        }
    }

    /// Values that a block reads and does not define, each once.
    fn reads(&mut self, block: &Block, list: &mut Vec<Value>) {
        self.walk += 1;
        self.visit(block, list);
    }

    /// What is made is seen before it is read, so what is read unseen comes from outside.
    fn visit(&mut self, block: &Block, list: &mut Vec<Value>) {
        for statement in &block.statements {
            for value in statement.inst.operands() {
                if self.meets(value) {
                    list.push(value);
                }
            }
            match &statement.inst {
                Inst::For(inner) => {
                    self.meets(inner.variable);
                    inner.carried.iter().for_each(|&(name, _)| _ = self.meets(name));
                    self.visit(&inner.body, list);
                }
                Inst::If(inner) => {
                    self.visit(&inner.then, list);
                    self.visit(&inner.otherwise, list);
                }
                _ => {}
            }
            statement.results.iter().for_each(|&value| _ = self.meets(value));
        }
    }

    /// Whether this walk meets a value for the first time.
    fn meets(&mut self, value: Value) -> bool {
        std::mem::replace(&mut self.seen[value.0 as usize], self.walk) != self.walk
    }
}

pub(super) fn words(ty: Type) -> u32 {
    match ty.scalar {
        Scalar::Bool => 0,
        _ => ty.bytes().div_ceil(4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caps::{AMD_DEVICES, NVIDIA_DEVICES};
    use crate::ir::parse;

    #[test]
    fn what_workgroups_leave_over_and_tables_are_counted_where_the_device_says_so() {
        let text = "kernel @k(x: read align 16, y: write align 16) workgroup 256 1 1 {
          %0: i8x16 = const [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
          %1: i8x4 = load x[0] align 4
          %2: i8x4 = permute_bytes %0, %1
          store y[0] align 4, %2
        }";
        let kernel = parse(text).unwrap();
        // The index, two words for each parameter; four words of the table where permutes take no constants.
        assert_eq!((live_words_of(&kernel, false), live_words_of(&kernel, true)), (1 + 4, 4 + 1 + 4));
        let of = |list: &[Caps], name: &str| {
            let caps = list.iter().find(|caps| caps.name == name).unwrap();
            let found = resources(&kernel, caps).unwrap();
            (found.registers, found.workgroups_per_unit)
        };
        // Eight waves of a SIMD share 512 registers, sixteen 1536; `ptxas` is held to 5 + 1 + 32, in eights.
        assert_eq!(of(&AMD_DEVICES, "mi300x"), (64, 8));
        assert_eq!(of(&AMD_DEVICES, "rx7900xtx"), (96, 4));
        assert_eq!(of(&NVIDIA_DEVICES, "h100").0, 40);
    }

    #[test]
    fn live_values_are_counted_where_most_meet() {
        let text = "kernel @k(x: read align 16, y: write align 16) workgroup 1 1 1 {
          %0: f32x4 = load x[0] align 16
          %1: f32x4 = load x[16] align 16
          %2: i64 = const 3
          %3: f32x4 = add %0, %1
          store y[0] align 16, %3
        }";
        let kernel = parse(text).unwrap();
        // The two vectors, and two words for each parameter; their sum may take the place of one of them.
        assert_eq!(live_words(&kernel), 8 + 4);
        let text = "kernel @k(x: read align 16, y: write align 16) workgroup 1 1 1 {
          %0: i64 = const 0
          %1: i64 = const 64
          %2: f32x4 = load x[0] align 16
          %3: f32x4 = load x[16] align 16
          %4: f32x4 = for %5: i64 = %0 to %1 step 16 carry (%6: f32x4 = %2) {
            %7: f32x4 = load x[%5] align 16
            %8: f32x4 = fma %7, %3, %6
            yield %8
          }
          store y[0] align 16, %4
        }";
        let kernel = parse(text).unwrap();
        // In the loop: the counter, the sum, the factor from outside, the number just read.
        assert_eq!(live_words(&kernel), 2 + 4 + 4 + 4 + 4);
    }
}
