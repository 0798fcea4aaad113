//! Builds a kernel statement by statement, typing each value as it is made.
//!
//! The builder asserts only what its callers in `lower` and `pass` promise; the verifier checks the whole kernel later.

use super::asynchronous::{Asynchronous, Factor, Panel};
use super::cooperative::Cooperative;
use super::kernel::{
    Access, Address, BinOp, Block, Builtin, CastOp, CmpOp, Constant, Dot4Signs, For, If, Inst, Kernel, Param,
    ParamKind, Shared, Statement, UnOp,
};
use super::types::{Memory, Scalar, Type, Value};
use crate::caps::MmaShape;

/// Builds one kernel. Statements go to the innermost open block.
#[derive(Debug)]
pub struct Builder {
    kernel: Kernel,
    open: Vec<Block>,
}

impl Builder {
    /// An empty kernel with a workgroup of one thread.
    pub fn new(name: &str) -> Builder {
        Builder {
            kernel: Kernel {
                name: name.to_string(),
                params: Vec::new(),
                shared: Vec::new(),
                workgroup: [1, 1, 1],
                types: Vec::new(),
                body: Block::default(),
            },
            open: vec![Block::default()],
        }
    }

    /// Goes on with a kernel whose body has been taken out; new values are numbered after its own.
    pub fn extend(kernel: Kernel) -> Builder {
        Builder { kernel: Kernel { body: Block::default(), ..kernel }, open: vec![Block::default()] }
    }

    /// Sets the threads per workgroup.
    pub fn workgroup(&mut self, x: u32, y: u32, z: u32) {
        self.kernel.workgroup = [x, y, z];
    }

    /// The kernel.
    pub fn finish(mut self) -> Kernel {
        assert_eq!(self.open.len(), 1, "a block is still open");
        self.kernel.body = self.open.pop().expect("one block is open");
        self.kernel
    }

    /// Type of a value made before.
    pub fn ty(&self, value: Value) -> Type {
        self.kernel.ty(value)
    }

    /// Declares a buffer parameter.
    pub fn buffer(&mut self, name: &str, access: Access, align: u32) -> Memory {
        self.kernel.params.push(Param { name: name.to_string(), kind: ParamKind::Buffer { access, align } });
        Memory::Param(self.kernel.params.len() as u16 - 1)
    }

    /// Declares a scalar parameter and reads it.
    pub fn scalar(&mut self, name: &str, scalar: Scalar) -> Value {
        self.kernel.params.push(Param { name: name.to_string(), kind: ParamKind::Scalar(scalar) });
        let index = self.kernel.params.len() as u16 - 1;
        self.push(scalar.into(), Inst::Arg(index))
    }

    /// Declares a shared array.
    pub fn shared(&mut self, name: &str, bytes: u32, align: u32) -> Memory {
        self.kernel.shared.push(Shared { name: name.to_string(), bytes, align });
        Memory::Shared(self.kernel.shared.len() as u16 - 1)
    }

    /// A new value of this type, defined by a statement that the caller makes.
    pub fn value(&mut self, ty: Type) -> Value {
        self.kernel.types.push(ty);
        Value(self.kernel.types.len() as u32 - 1)
    }

    /// Adds a statement with one result.
    pub fn push(&mut self, ty: Type, inst: Inst) -> Value {
        let result = self.value(ty);
        self.statement(Statement { results: vec![result], inst });
        result
    }

    /// Adds a finished statement.
    pub fn statement(&mut self, statement: Statement) {
        self.open.last_mut().expect("a block is open").statements.push(statement);
    }

    /// An integer (or raw bits) in every lane.
    pub fn int(&mut self, ty: impl Into<Type>, value: i64) -> Value {
        let ty = ty.into();
        let bits = ty.scalar.bits();
        let mask = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
        self.push(ty, Inst::Const(Constant::Splat(value as u64 & mask)))
    }

    /// An `f32` in every lane.
    pub fn f32(&mut self, lanes: u8, value: f32) -> Value {
        self.push(Type::vector(Scalar::F32, lanes), Inst::Const(Constant::Splat(value.to_bits() as u64)))
    }

    /// A constant with its own bit pattern per lane.
    pub fn lanes(&mut self, scalar: Scalar, bits: &[u64]) -> Value {
        self.push(Type::vector(scalar, bits.len() as u8), Inst::Const(Constant::Lanes(bits.to_vec())))
    }

    /// A number of the launch.
    pub fn builtin(&mut self, builtin: Builtin) -> Value {
        self.push(Scalar::I32.into(), Inst::Builtin(builtin))
    }

    /// `a op b`.
    pub fn bin(&mut self, op: BinOp, a: Value, b: Value) -> Value {
        self.push(self.ty(a), Inst::Bin(op, a, b))
    }

    /// `a op constant` for integers.
    pub fn bin_imm(&mut self, op: BinOp, a: Value, b: i64) -> Value {
        let b = self.int(self.ty(a), b);
        self.bin(op, a, b)
    }

    /// `a + b`.
    pub fn add(&mut self, a: Value, b: Value) -> Value {
        self.bin(BinOp::Add, a, b)
    }

    /// `a * b`.
    pub fn mul(&mut self, a: Value, b: Value) -> Value {
        self.bin(BinOp::Mul, a, b)
    }

    /// `op a`.
    pub fn un(&mut self, op: UnOp, a: Value) -> Value {
        self.push(self.ty(a), Inst::Un(op, a))
    }

    /// `a op b` to bools.
    pub fn cmp(&mut self, op: CmpOp, a: Value, b: Value) -> Value {
        self.push(self.ty(a).with_scalar(Scalar::Bool), Inst::Cmp(op, a, b))
    }

    /// `cond ? a : b`.
    pub fn select(&mut self, cond: Value, a: Value, b: Value) -> Value {
        self.push(self.ty(a), Inst::Select { cond, a, b })
    }

    /// Converts to another scalar.
    pub fn cast(&mut self, op: CastOp, a: Value, to: Scalar) -> Value {
        self.push(self.ty(a).with_scalar(to), Inst::Cast(op, a))
    }

    /// Reads the bits as another type of the same width.
    pub fn bitcast(&mut self, a: Value, to: impl Into<Type>) -> Value {
        let to = to.into();
        if self.ty(a) == to { a } else { self.push(to, Inst::Bitcast(a)) }
    }

    /// `a * b + c`, rounded once.
    pub fn fma(&mut self, a: Value, b: Value, c: Value) -> Value {
        self.push(self.ty(a), Inst::Fma(a, b, c))
    }

    /// A vector of scalars.
    pub fn vector(&mut self, lanes: &[Value]) -> Value {
        let ty = self.ty(lanes[0]).with_lanes(lanes.len() as u8);
        self.push(ty, Inst::Vector(lanes.to_vec()))
    }

    /// A scalar in every lane; the scalar itself for one lane.
    pub fn splat(&mut self, a: Value, lanes: u8) -> Value {
        if lanes == 1 { a } else { self.push(self.ty(a).with_lanes(lanes), Inst::Splat(a)) }
    }

    /// One lane; the value itself if it is a scalar.
    pub fn extract(&mut self, vector: Value, lane: u8) -> Value {
        let ty = self.ty(vector);
        if ty.lanes == 1 { vector } else { self.push(ty.scalar.into(), Inst::Extract { vector, lane }) }
    }

    /// Lanes picked from `a ++ b`.
    pub fn swizzle(&mut self, a: Value, b: Value, lanes: &[u8]) -> Value {
        let ty = self.ty(a).with_lanes(lanes.len() as u8);
        self.push(ty, Inst::Swizzle { a, b, lanes: lanes.to_vec() })
    }

    /// Reads memory.
    pub fn load(&mut self, ty: impl Into<Type>, address: Address, align: u32) -> Value {
        self.push(ty.into(), Inst::Load { address, align })
    }

    /// Writes memory.
    pub fn store(&mut self, address: Address, align: u32, value: Value) {
        self.statement(Statement { results: Vec::new(), inst: Inst::Store { address, align, value } });
    }

    /// Says that the cache line at an address will be read soon.
    pub fn prefetch(&mut self, address: Address) {
        self.statement(Statement { results: Vec::new(), inst: Inst::Prefetch(address) });
    }

    /// Meets all threads of the workgroup.
    pub fn barrier(&mut self) {
        self.statement(Statement { results: Vec::new(), inst: Inst::Barrier });
    }

    /// Cuts bit fields out of containers; `to` gives the lanes and whether to convert to `f32`.
    pub fn unpack(&mut self, a: Value, shift: u8, bits: u8, signed: bool, to: Type) -> Value {
        self.push(to, Inst::Unpack { a, shift, bits, signed })
    }

    /// `acc + Σ a.byte * b.byte` per 32-bit lane.
    pub fn dot4(&mut self, signs: Dot4Signs, a_bits: u8, a: Value, b: Value, acc: Value) -> Value {
        self.push(self.ty(acc), Inst::Dot4 { signs, a_bits, a, b, acc })
    }

    /// `acc + Σ a.part * b.part` per lane, of 16-bit integers, bf16, or unsigned by signed bytes.
    pub fn dot2(&mut self, a: Value, b: Value, acc: Value) -> Value {
        self.push(self.ty(acc), Inst::Dot2 { a, b, acc })
    }

    /// A matrix instruction of the subgroup: fragments of A and B multiplied and added to those of C.
    pub fn mma(&mut self, shape: &'static MmaShape, a: Value, b: Value, acc: Value) -> Value {
        self.push(self.ty(acc), Inst::Mma { shape, a, b, acc })
    }

    /// Starts a copy of 4, 8 or 16 bytes from a buffer to shared memory.
    pub fn async_copy(&mut self, to: Address, from: Address, bytes: u8) {
        self.statement(Statement { results: Vec::new(), inst: Inst::AsyncCopy { to, from, bytes } });
    }

    /// Ends a group of copies.
    pub fn async_commit(&mut self) {
        self.statement(Statement { results: Vec::new(), inst: Inst::AsyncCommit });
    }

    /// Waits until at most `pending` groups of copies are under way.
    pub fn async_wait(&mut self, pending: u8) {
        self.statement(Statement { results: Vec::new(), inst: Inst::AsyncWait(pending) });
    }

    /// One of the instructions that run beside the threads, but for `Mma`.
    pub fn asynchronous(&mut self, inst: Asynchronous) {
        self.statement(Statement { results: Vec::new(), inst: Inst::Asynchronous(Box::new(inst)) });
    }

    /// A matrix product of four subgroups, see [`Asynchronous::Mma`].
    pub fn warpgroup_mma(&mut self, shape: &'static MmaShape, columns: u32, a: Factor, b: Panel, acc: Value) -> Value {
        let inst = Asynchronous::Mma { shape, columns, a, b, acc, pending: false };
        self.push(self.ty(acc), Inst::Asynchronous(Box::new(inst)))
    }

    /// The same, begun only: [`Asynchronous::MmaWait`] sees it end.
    pub fn begin_warpgroup_mma(
        &mut self,
        shape: &'static MmaShape,
        columns: u32,
        a: Factor,
        b: Panel,
        acc: Value,
    ) -> Value {
        let inst = Asynchronous::Mma { shape, columns, a, b, acc, pending: true };
        self.push(self.ty(acc), Inst::Asynchronous(Box::new(inst)))
    }

    /// An instruction on matrices of the subgroup; its result, but for a store.
    ///
    /// # Panics
    /// If the shape has elements that the IR has no type for.
    pub fn cooperative(&mut self, inst: Cooperative) -> Option<Value> {
        let result = inst.result();
        let inst = Inst::Cooperative(Box::new(inst));
        let Some(fragment) = result else {
            self.statement(Statement { results: Vec::new(), inst });
            return None;
        };
        Some(self.push(fragment.ty().expect("the IR has elements of this shape"), inst))
    }

    /// A counted loop. `body` gets the counter and the carried values, and returns their next values.
    pub fn for_loop(
        &mut self,
        start: Value,
        end: Value,
        step: i64,
        init: &[Value],
        body: impl FnOnce(&mut Builder, Value, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        let variable = self.value(self.ty(start));
        let names: Vec<Value> = init.iter().map(|&v| self.value(self.ty(v))).collect();
        self.open.push(Block::default());
        let next = body(self, variable, &names);
        let body = self.close(next);
        let results: Vec<Value> = init.iter().map(|&v| self.value(self.ty(v))).collect();
        let carried = names.into_iter().zip(init.iter().copied()).collect();
        self.statement(Statement {
            results: results.clone(),
            inst: Inst::For(Box::new(For { variable, start, end, step, carried, body })),
        });
        results
    }

    /// A branch; both sides return results of the same types.
    pub fn if_else(
        &mut self,
        cond: Value,
        then: impl FnOnce(&mut Builder) -> Vec<Value>,
        otherwise: impl FnOnce(&mut Builder) -> Vec<Value>,
    ) -> Vec<Value> {
        self.open.push(Block::default());
        let yielded = then(self);
        let types: Vec<Type> = yielded.iter().map(|&v| self.ty(v)).collect();
        let then = self.close(yielded);
        self.open.push(Block::default());
        let yielded = otherwise(self);
        let otherwise = self.close(yielded);
        let results: Vec<Value> = types.into_iter().map(|ty| self.value(ty)).collect();
        self.statement(Statement { results: results.clone(), inst: Inst::If(Box::new(If { cond, then, otherwise })) });
        results
    }

    /// A branch with no results and no else.
    pub fn if_then(&mut self, cond: Value, then: impl FnOnce(&mut Builder)) {
        self.if_else(
            cond,
            |b| {
                then(b);
                Vec::new()
            },
            |_| Vec::new(),
        );
    }

    fn close(&mut self, yielded: Vec<Value>) -> Block {
        self.statement(Statement { results: Vec::new(), inst: Inst::Yield(yielded) });
        self.open.pop().expect("a block is open")
    }
}
