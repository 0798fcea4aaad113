//! Branches, loops, and what threads do together.

use super::{ALIGN, Maker, PLACE};
use bitsmith_compiler::ir::{Address, BinOp, Builder, Inst, ReduceOp, Scalar, ShuffleMode, Type, Value};

impl Maker {
    /// Runs `make` one level deeper; what it defines goes out of scope.
    fn inside<T>(&mut self, uniform: bool, make: impl FnOnce(&mut Maker) -> T) -> T {
        let (mark, was) = (self.scope.len(), self.uniform);
        self.depth += 1;
        self.uniform &= uniform;
        let out = make(self);
        self.uniform = was;
        self.depth -= 1;
        self.scope.truncate(mark);
        out
    }

    pub(super) fn branch(&mut self, b: &mut Builder) -> Value {
        let cond = self.value(b, Scalar::Bool.into());
        let types: Vec<Type> = (0..self.rng.usize(1..4)).map(|_| self.memory_type()).collect();
        let count = self.rng.i32(1..8);
        // Two closures want the maker, one after the other.
        let this = std::cell::RefCell::new(self);
        let side = |b: &mut Builder| {
            this.borrow_mut().inside(false, |maker| {
                maker.block(b, count);
                types.iter().map(|&ty| maker.value(b, ty)).collect()
            })
        };
        let results = b.if_else(cond, side, side);
        let maker = this.into_inner();
        maker.scope.extend(&results);
        results[0]
    }

    pub(super) fn repeat(&mut self, b: &mut Builder) -> Value {
        let scalar = if self.rng.bool() { Scalar::I32 } else { Scalar::I64 };
        let known = self.rng.u32(0..3) > 0;
        let start = self.rng.i64(-2..3);
        let turns = self.rng.i64(0..5);
        let step = self.rng.i64(1..4);
        let start_value = b.int(scalar, start);
        let end = if known {
            b.int(scalar, start + turns)
        } else {
            let x = self.value(b, scalar.into());
            b.bin_imm(BinOp::And, x, 3)
        };
        let types: Vec<Type> = (0..self.rng.usize(1..4)).map(|_| self.memory_type()).collect();
        let init: Vec<Value> = types.iter().map(|&ty| self.value(b, ty)).collect();
        let count = self.rng.i32(1..10);
        let results = b.for_loop(start_value, end, step, &init, |b, variable, carried| {
            self.inside(known, |maker| {
                maker.scope.push(variable);
                maker.scope.extend(carried);
                maker.block(b, count);
                types.iter().map(|&ty| maker.value(b, ty)).collect()
            })
        });
        self.scope.extend(&results);
        results[0]
    }

    // Several threads.

    /// Something that the threads of a workgroup do together, or an atomic addition where they are apart.
    pub(super) fn team_work(&mut self, b: &mut Builder) -> Option<Value> {
        let team = self.team.as_ref()?;
        let (shared, counters) = (team.shared, team.counters);
        if !self.uniform {
            let value = self.value(b, Scalar::I32.into());
            let offset = 4 * self.rng.i64(0..16);
            // The old value depends on who comes first, so nobody reads it.
            b.push(
                Scalar::I32.into(),
                Inst::AtomicAdd { address: Address { memory: counters, index: None, offset }, value },
            );
            return None;
        }
        let scalar: Type = if self.rng.bool() { Scalar::I32.into() } else { Scalar::F32.into() };
        match self.rng.u32(0..3) {
            0 => {
                let value = self.value(b, scalar);
                let op = if self.rng.bool() { ReduceOp::Add } else { ReduceOp::Max };
                Some(b.push(scalar, Inst::SubgroupReduce(op, value)))
            }
            1 => {
                let value = self.value(b, scalar);
                let mode = [ShuffleMode::Index, ShuffleMode::Xor, ShuffleMode::Down][self.rng.usize(0..3)];
                let index = self.value(b, Scalar::I32.into());
                let index = b.bin_imm(BinOp::And, index, self.options.subgroup as i64 - 1);
                Some(b.push(scalar, Inst::Shuffle { mode, value, index }))
            }
            _ => {
                let ty = self.memory_type();
                let value = self.value(b, ty);
                let align = ty.bytes().min(ALIGN);
                let mine = b.bin_imm(BinOp::Mul, self.local, PLACE as i64);
                b.store(Address { memory: shared, index: Some(mine), offset: 0 }, align, value);
                b.barrier();
                let distance = self.rng.i64(0..self.options.threads as i64);
                let other = b.bin_imm(BinOp::Add, self.local, distance);
                let other = b.bin_imm(BinOp::RemS, other, self.options.threads as i64);
                let theirs = b.bin_imm(BinOp::Mul, other, PLACE as i64);
                let value = b.load(ty, Address { memory: shared, index: Some(theirs), offset: 0 }, align);
                b.barrier();
                Some(value)
            }
        }
    }
}
