//! From statements to WGSL: declarations, control flow, and each instruction to the file that knows it.
//!
//! A loop is a `for` over an `i32` with mutable variables for what it carries; a branch writes its results to variables
//! declared before it.

use super::arith;
use super::memory::{self, Array, Shape};
use super::text::{Lane, Text, lane, signed, type_name, vector, words};
use super::value::{self, Pieces};
use crate::caps::{Caps, Feature};
use crate::ir::{
    Access, Address, Block, Builtin, Dot4Signs, For, If, Inst, Kernel, Memory, ParamKind, Scalar, Statement, Type,
    Value,
};
use crate::target::pieces::{Definitions, piece_count, piece_lanes};
use std::collections::BTreeMap;

/// The shader of a kernel that [`super::support`] has passed.
pub(super) fn shader(kernel: &Kernel, caps: &Caps) -> String {
    let mut t = Text::new();
    let shapes = memory::shapes(kernel);
    declare(&mut t, kernel, &shapes);
    let mut emitter = Emitter {
        kernel,
        t,
        shapes,
        values: Definitions::new(kernel),
        packed_dot: caps.features.has(Feature::Dot4SignedSigned),
    };
    emitter.t.indent = 1;
    emitter.block(&kernel.body);
    emitter.t.indent = 0;
    emitter.t.line("}");
    emitter.t.out
}

fn element(shape: Shape) -> &'static str {
    match shape {
        Shape { atomic: true, .. } => "atomic<u32>",
        Shape { unit: 16, .. } => "vec4<u32>",
        Shape { .. } => "u32",
    }
}

fn declare(t: &mut Text, kernel: &Kernel, shapes: &BTreeMap<Memory, Shape>) {
    t.line(format!("// Kernel {} by bitsmith.", kernel.name));
    let mut binding = 0;
    let mut scalars = Vec::new();
    for (i, param) in kernel.params.iter().enumerate() {
        match param.kind {
            ParamKind::Buffer { access, .. } => {
                let shape = shapes.get(&Memory::Param(i as u16)).copied();
                let shape = shape.unwrap_or(Shape { unit: 4, atomic: false });
                // Atomics read what they write.
                let mode = if access == Access::Read && !shape.atomic { "read" } else { "read_write" };
                t.line(format!(
                    "@group(0) @binding({binding}) var<storage, {mode}> b_{}: array<{}>;",
                    param.name,
                    element(shape)
                ));
                binding += 1;
            }
            ParamKind::Scalar(scalar) => scalars.push((&param.name, scalar)),
        }
    }
    if !scalars.is_empty() {
        t.line("struct Scalars {");
        for (name, scalar) in scalars {
            let ty = match scalar {
                Scalar::F32 => "f32",
                Scalar::I64 => "vec2<u32>",
                _ => "u32",
            };
            t.line(format!("    s_{name}: {ty},"));
        }
        t.line("}");
        t.line(format!("@group(0) @binding({binding}) var<uniform> scalars: Scalars;"));
    }
    for (i, shared) in kernel.shared.iter().enumerate() {
        let shape = shapes.get(&Memory::Shared(i as u16)).copied().unwrap_or(Shape { unit: 4, atomic: false });
        let count = shared.bytes.div_ceil(shape.unit).max(1);
        t.line(format!("var<workgroup> w_{}: array<{}, {count}>;", shared.name, element(shape)));
    }
    let [x, y, z] = kernel.workgroup;
    t.line("");
    t.line(format!("@compute @workgroup_size({x}, {y}, {z})"));
    t.line(format!("fn {}(", kernel.name));
    t.line("    @builtin(workgroup_id) workgroup_id: vec3<u32>,");
    t.line("    @builtin(num_workgroups) num_workgroups: vec3<u32>,");
    t.line("    @builtin(local_invocation_id) local_id: vec3<u32>,");
    t.line("    @builtin(local_invocation_index) local_index: u32,");
    t.line(") {");
}

struct Emitter<'k> {
    kernel: &'k Kernel,
    t: Text,
    shapes: BTreeMap<Memory, Shape>,
    values: Definitions<String>,
    packed_dot: bool,
}

impl Emitter<'_> {
    fn ty(&self, value: Value) -> Type {
        self.kernel.ty(value)
    }

    /// Emits statements; gives the pieces that a yield at the end gives.
    fn block(&mut self, block: &Block) -> Vec<Pieces> {
        for statement in &block.statements {
            match &statement.inst {
                Inst::Yield(values) => return values.iter().map(|&value| self.values.get(value)).collect(),
                Inst::For(inner) => self.repeat(inner, &statement.results),
                Inst::If(inner) => self.branch(inner, &statement.results),
                _ => self.statement(statement),
            }
        }
        Vec::new()
    }

    fn statement(&mut self, statement: &Statement) {
        match (statement.results.as_slice(), &statement.inst) {
            (&[result], inst) => {
                let pieces = self.value(inst, self.ty(result));
                self.values.set(result, pieces);
            }
            (_, Inst::Store { address, align, value }) => {
                let (ty, pieces, offset) = (self.ty(*value), self.values.get(*value), self.offset(address));
                self.array(address.memory).store(&mut self.t, &offset, *align, ty, &pieces);
            }
            (_, Inst::Barrier) => {
                self.t.line("workgroupBarrier();");
                self.t.line("storageBarrier();");
            }
            // Everything else has a result, or is control flow.
            _ => {}
        }
    }

    fn array(&self, memory: Memory) -> Array {
        let shape = self.shapes.get(&memory).copied().unwrap_or(Shape { unit: 4, atomic: false });
        let name = match memory {
            Memory::Param(i) => format!("b_{}", self.kernel.params[i as usize].name),
            Memory::Shared(i) => format!("w_{}", self.kernel.shared[i as usize].name),
        };
        Array { name, shape }
    }

    /// A byte offset; 32 bits wrap to the right place.
    fn offset(&mut self, address: &Address) -> String {
        let constant = words(1, address.offset as u32);
        match address.index {
            None => self.t.bind(constant),
            Some(index) if address.offset == 0 => self.values.one(index),
            Some(index) => {
                let index = self.values.one(index);
                self.t.bind(format!("{index} + {constant}"))
            }
        }
    }

    /// Applies a function to the pieces of operands with as many pieces.
    fn each<const N: usize>(&mut self, operands: [Value; N], f: impl Fn(&mut Text, [&str; N]) -> String) -> Pieces {
        let lists = operands.map(|value| self.values.get(value));
        (0..lists[0].len()).map(|i| f(&mut self.t, std::array::from_fn(|n| lists[n][i].as_str()))).collect()
    }

    fn value(&mut self, inst: &Inst, ty: Type) -> Pieces {
        let lanes = piece_lanes(ty);
        match inst {
            Inst::Const(constant) => value::constant(&mut self.t, constant, ty),
            Inst::Arg(param) => {
                let name = &self.kernel.params[*param as usize].name;
                let low = if ty.scalar == Scalar::I64 { ".x" } else { "" };
                vec![self.t.bind(format!("scalars.s_{name}{low}"))]
            }
            Inst::Builtin(builtin) => {
                let axis = |axis: u8| lane("", 3, axis);
                let text = match builtin {
                    Builtin::WorkgroupId(a) => format!("workgroup_id{}", axis(*a)),
                    Builtin::WorkgroupCount(a) => format!("num_workgroups{}", axis(*a)),
                    Builtin::LocalId(a) => format!("local_id{}", axis(*a)),
                    // Each thread is a subgroup of its own.
                    Builtin::Lane => "0u".to_string(),
                    Builtin::Subgroup => "local_index".to_string(),
                };
                vec![self.t.bind(text)]
            }
            Inst::Bin(op, a, b) => self.each([*a, *b], |t, [a, b]| arith::bin(t, *op, ty.scalar, lanes, a, b)),
            Inst::Un(op, a) => self.each([*a], |t, [a]| arith::un(t, *op, ty.scalar, lanes, a)),
            Inst::Cmp(op, a, b) => {
                let scalar = self.ty(*a).scalar;
                self.each([*a, *b], |t, [a, b]| arith::cmp(t, *op, scalar, lanes, a, b))
            }
            Inst::Select { cond, a, b } if self.ty(*cond).lanes == 1 => {
                let cond = self.values.one(*cond);
                self.each([*a, *b], |t, [a, b]| t.bind(format!("select({b}, {a}, {cond})")))
            }
            Inst::Select { cond, a, b } => {
                self.each([*cond, *a, *b], |t, [cond, a, b]| t.bind(format!("select({b}, {a}, {cond})")))
            }
            Inst::Cast(op, a) => {
                let from = self.ty(*a).scalar;
                self.each([*a], |t, [a]| arith::cast(t, *op, from, ty.scalar, lanes, a))
            }
            Inst::Bitcast(a) => {
                let (from, pieces) = (self.ty(*a), self.values.get(*a));
                value::bitcast(&mut self.t, &pieces, from, ty)
            }
            Inst::Fma(a, b, c) => self.each([*a, *b, *c], |t, [a, b, c]| t.bind(format!("fma({a}, {b}, {c})"))),
            Inst::Vector(parts) => {
                let parts: Vec<String> = parts.iter().map(|&part| self.values.one(part)).collect();
                value::gather(&mut self.t, ty.scalar, &parts)
            }
            Inst::Splat(a) => {
                let name = type_name(Lane::of(ty.scalar), lanes);
                let piece = self.t.bind(format!("{name}({})", self.values.one(*a)));
                vec![piece; piece_count(ty)]
            }
            Inst::Extract { vector, lane } => vec![value::extract(&self.values.get(*vector), self.ty(*vector), *lane)],
            Inst::Swizzle { a, b, lanes } => {
                let (from, a, b) = (self.ty(*a), self.values.get(*a), self.values.get(*b));
                let parts: Vec<String> = lanes
                    .iter()
                    .map(|&pick| {
                        let second = pick >= from.lanes;
                        value::extract(
                            if second { &b } else { &a },
                            from,
                            if second { pick - from.lanes } else { pick },
                        )
                    })
                    .collect();
                value::gather(&mut self.t, ty.scalar, &parts)
            }
            Inst::Load { address, align } => {
                let offset = self.offset(address);
                self.array(address.memory).load(&mut self.t, &offset, *align, ty)
            }
            Inst::Dot4 { signs, a_bits, a, b, acc } => self.dot4(*signs, *a_bits, [*a, *b, *acc], ty),
            Inst::AtomicAdd { address, value } => {
                let (offset, addend) = (self.offset(address), self.values.one(*value));
                vec![self.array(address.memory).atomic_add(&mut self.t, &offset, &addend)]
            }
            // Expanded or refused before, or without a result.
            Inst::Unpack { .. }
            | Inst::Dot2 { .. }
            | Inst::PermuteBytes { .. }
            | Inst::PermuteLong { .. }
            | Inst::Shuffle { .. }
            | Inst::SubgroupReduce(..)
            | Inst::Mma { .. }
            | Inst::AsyncCopy { .. }
            | Inst::AsyncCommit
            | Inst::AsyncWait(_)
            | Inst::Asynchronous(_)
            | Inst::Cooperative(_)
            | Inst::Store { .. }
            | Inst::Prefetch(_)
            | Inst::Barrier
            | Inst::For(_)
            | Inst::If(_)
            | Inst::Yield(_) => Vec::new(),
        }
    }

    /// By the built-in on packed bytes where there is one and `a` fits it, else by a product of vectors.
    fn dot4(&mut self, signs: Dot4Signs, a_bits: u8, [a, b, acc]: [Value; 3], ty: Type) -> Pieces {
        let bytes = self.ty(a);
        let (a, b, acc) = (self.values.get(a), self.values.get(b), self.values.get(acc));
        let packed = self.packed_dot && (signs == Dot4Signs::SignedSigned || a_bits < 8);
        let sums: Vec<String> = (0..ty.lanes)
            .map(|i| {
                let (a, b) = (&a[i as usize], &b[i as usize]);
                let acc = value::extract(&acc, ty, i);
                let product = if packed {
                    let (a, b) = (value::to_words(&mut self.t, a, bytes), value::to_words(&mut self.t, b, bytes));
                    format!("dot4I8Packed({}, {})", a[0], b[0])
                } else {
                    let a = match signs {
                        Dot4Signs::SignedSigned => signed(a, 8, 4),
                        Dot4Signs::UnsignedSigned => format!("bitcast<{}>({a})", vector("i32", 4)),
                    };
                    format!("dot({a}, {})", signed(b, 8, 4))
                };
                self.t.bind(format!("{acc} + bitcast<u32>({product})"))
            })
            .collect();
        value::gather(&mut self.t, ty.scalar, &sums)
    }

    /// Variables for values of a type, with what they hold first.
    fn variables(&mut self, ty: Type, first: Option<&Pieces>) -> Pieces {
        let lanes = piece_lanes(ty);
        let name = type_name(Lane::of(ty.scalar), lanes);
        (0..piece_count(ty))
            .map(|i| {
                let variable = self.t.name("m");
                let start = first.map_or(String::new(), |pieces| format!(" = {}", pieces[i]));
                self.t.line(format!("var {variable}: {name}{start};"));
                variable
            })
            .collect()
    }

    fn assign(&mut self, variables: &[Pieces], values: &[Pieces]) {
        for (variable, value) in variables.iter().flatten().zip(values.iter().flatten()) {
            self.t.line(format!("{variable} = {value};"));
        }
    }

    /// Names for what variables hold now.
    fn read(&mut self, variables: &Pieces) -> Pieces {
        variables.iter().map(|variable| self.t.bind(variable)).collect()
    }

    fn repeat(&mut self, inner: &For, results: &[Value]) {
        let mut variables = Vec::new();
        for &(name, first) in &inner.carried {
            let first = self.values.get(first);
            variables.push(self.variables(self.ty(name), Some(&first)));
        }
        let (start, end) = (self.values.one(inner.start), self.values.one(inner.end));
        // `i32` would be one, and is a type.
        let counter = self.t.name("turn");
        let step = inner.step;
        self.t.line(format!(
            "for (var {counter}: i32 = bitcast<i32>({start}); {counter} < bitcast<i32>({end}); {counter} += {step}) {{"
        ));
        self.t.indent += 1;
        let turn = self.t.bind(format!("bitcast<u32>({counter})"));
        self.values.set(inner.variable, vec![turn]);
        for (&(name, _), variables) in inner.carried.iter().zip(&variables) {
            let pieces = self.read(variables);
            self.values.set(name, pieces);
        }
        let yielded = self.block(&inner.body);
        self.assign(&variables, &yielded);
        self.t.indent -= 1;
        self.t.line("}");
        for (&result, variables) in results.iter().zip(&variables) {
            let pieces = self.read(variables);
            self.values.set(result, pieces);
        }
    }

    fn branch(&mut self, inner: &If, results: &[Value]) {
        let variables: Vec<Pieces> = results.iter().map(|&result| self.variables(self.ty(result), None)).collect();
        self.t.line(format!("if ({}) {{", self.values.one(inner.cond)));
        for (block, end) in [(&inner.then, "} else {"), (&inner.otherwise, "}")] {
            self.t.indent += 1;
            let yielded = self.block(block);
            self.assign(&variables, &yielded);
            self.t.indent -= 1;
            self.t.line(end);
        }
        for (&result, variables) in results.iter().zip(&variables) {
            let pieces = self.read(variables);
            self.values.set(result, pieces);
        }
    }
}
