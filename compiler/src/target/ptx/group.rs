//! What threads know of each other: numbers of the launch, shuffles, reductions.
//!
//! Always holds: a shuffle names the lanes of its warp that exist, which are fewer in the last warp of a workgroup that
//! is no multiple of the warp.

use super::emit::Emitter;
use super::text::{F, Word};
use crate::ir::{BinOp, Builtin, ReduceOp, Scalar, ShuffleMode, Type, Value};

const AXES: [&str; 3] = ["x", "y", "z"];

impl Emitter<'_> {
    pub(super) fn builtin(&mut self, builtin: Builtin) -> Word {
        let special = |e: &mut Self, name: &str, axis: u8| {
            e.text.b32("mov.u32", &[&format!("%{name}.{}", AXES[axis as usize % 3])])
        };
        let width = self.target.caps.subgroup;
        match builtin {
            Builtin::WorkgroupId(axis) => special(self, "ctaid", axis),
            Builtin::WorkgroupCount(axis) => special(self, "nctaid", axis),
            Builtin::LocalId(axis) if self.kernel.workgroup[axis as usize % 3] == 1 => Word::I(0),
            Builtin::LocalId(axis) => special(self, "tid", axis),
            Builtin::Lane => {
                let thread = self.thread();
                self.text.b32("and.b32", &[&thread, &(width - 1)])
            }
            Builtin::Subgroup => {
                let thread = self.thread();
                self.text.b32("shr.u32", &[&thread, &width.trailing_zeros()])
            }
        }
    }

    /// The number of the thread in its workgroup, x fastest.
    fn thread(&mut self) -> Word {
        let [x, y, z] = self.kernel.workgroup;
        let mut thread = self.text.b32("mov.u32", &[&"%tid.x"]);
        if y > 1 {
            let axis = self.text.b32("mov.u32", &[&"%tid.y"]);
            thread = self.text.b32("mad.lo.u32", &[&axis, &x, &thread]);
        }
        if z > 1 {
            let axis = self.text.b32("mov.u32", &[&"%tid.z"]);
            thread = self.text.b32("mad.lo.u32", &[&axis, &(x * y), &thread]);
        }
        thread
    }

    /// Finds out which lanes of the subgroup exist.
    pub(super) fn subgroup_prologue(&mut self) {
        let (threads, width) = (self.kernel.threads(), self.target.caps.subgroup);
        let rest = threads % width;
        if rest == 0 {
            return;
        }
        let partial = Word::I((1 << rest) - 1);
        if threads < width {
            (self.members, self.last_lane) = (partial, Word::I(rest - 1));
            return;
        }
        let thread = self.thread();
        let last = self.text.pred("setp.ge.u32", &[&thread, &(threads - rest)]);
        self.members = self.text.b32("selp.b32", &[&partial, &Word::I(u32::MAX), &last]);
        self.last_lane = self.text.b32("selp.b32", &[&(rest - 1), &(width - 1), &last]);
    }

    pub(super) fn shuffle(&mut self, mode: ShuffleMode, value: Value, index: Value) -> Word {
        let name = match mode {
            ShuffleMode::Index => "shfl.sync.idx.b32",
            ShuffleMode::Xor => "shfl.sync.bfly.b32",
            // Past the last lane, a lane reads itself, as in the IR.
            ShuffleMode::Down => "shfl.sync.down.b32",
        };
        let (word, index) = (self.scalar(value), self.scalar(index));
        let word = self.text.reg(word);
        let (last, members) = (self.last_lane, self.members);
        self.text.b32(name, &[&word, &index, &last, &members])
    }

    pub(super) fn reduce(&mut self, op: ReduceOp, value: Value) -> Word {
        let ty = self.ty(value);
        let mut word = self.scalar(value);
        let (threads, width) = (self.kernel.threads(), self.target.caps.subgroup);
        if ty.scalar == Scalar::I32 {
            let name = if op == ReduceOp::Add { "redux.sync.add.s32" } else { "redux.sync.max.s32" };
            let word = self.text.reg(word);
            let members = self.members;
            return self.text.b32(name, &[&word, &members]);
        }
        // Where the last warp has fewer lanes, a lane whose partner does not exist keeps what it has.
        let ragged = threads > width && !threads.is_multiple_of(width);
        let mut distance = 1;
        while distance < width.min(threads) {
            let keep = self.text.reg(word);
            let (other, present) = self.partner(keep, ty, distance, ragged);
            let sum = self.combine(op, ty, keep, other);
            word = match present {
                Some(present) if ty.scalar == Scalar::I64 => self.text.b64("selp.b64", &[&sum, &keep, &present]),
                Some(present) => self.text.b32("selp.b32", &[&sum, &keep, &present]),
                None => sum,
            };
            distance *= 2;
        }
        word
    }

    /// The word of the lane at a distance, and whether there is one.
    fn partner(&mut self, word: Word, ty: Type, distance: u32, ragged: bool) -> (Word, Option<Word>) {
        let (last, members) = (self.last_lane, self.members);
        let mut present = None;
        let mut shuffle = |e: &mut Self, word: Word| {
            let result = e.text.new_word();
            let there = if ragged {
                let predicate = e.text.new_predicate();
                present = Some(predicate);
                format!("|{predicate}")
            } else {
                String::new()
            };
            e.text.line(format_args!("shfl.sync.bfly.b32 {result}{there}, {word}, {distance}, {last}, {members}"));
            result
        };
        if ty.scalar != Scalar::I64 {
            let other = shuffle(self, word);
            return (other, present);
        }
        let [low, high] = self.text.split_double(word);
        let (low, high) = (shuffle(self, low), shuffle(self, high));
        (self.text.join_double(low, high), present)
    }

    /// One step of a reduction.
    fn combine(&mut self, op: ReduceOp, ty: Type, a: Word, b: Word) -> Word {
        let float = if op == ReduceOp::Add { BinOp::Add } else { BinOp::Max };
        match (ty.scalar, op) {
            (Scalar::F32, ReduceOp::Add) => self.text.b32("add.rn.f32", &[&F(a), &F(b)]),
            (Scalar::F32, ReduceOp::Max) => self.text.b32("max.NaN.f32", &[&F(a), &F(b)]),
            (Scalar::F16, ReduceOp::Add) => self.text.b32("add.rn.f16x2", &[&a, &b]),
            (Scalar::F16, ReduceOp::Max) => self.text.b32("max.NaN.f16x2", &[&a, &b]),
            (Scalar::I64, ReduceOp::Add) => self.text.b64("add.s64", &[&a, &b]),
            (Scalar::I64, ReduceOp::Max) => self.text.b64("max.s64", &[&a, &b]),
            (Scalar::Bf16, _) => {
                let (a, b) = (self.widen(&[a], ty), self.widen(&[b], ty));
                let sum = self.f32_bin(float, a[0], b[0]);
                self.narrow(&[sum], ty)[0]
            }
            (_, ReduceOp::Add) => {
                let sum = self.text.b32("add.s32", &[&a, &b]);
                self.pack(ty, &[sum])[0]
            }
            (_, ReduceOp::Max) => {
                let a = self.lane(&[a], ty, 0, super::lanes::Fill::Sign);
                let b = self.lane(&[b], ty, 0, super::lanes::Fill::Sign);
                let most = self.text.b32("max.s32", &[&a, &b]);
                self.pack(ty, &[most])[0]
            }
        }
    }
}
