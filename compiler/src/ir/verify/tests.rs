//! Faults that no text can spell; all others are case files in `tests/cases/verify`.

use crate::caps::Caps;
use crate::ir::kernel::{Address, BinOp, Block, Builtin, Constant, For, If, Inst, Kernel, Shared, Statement};
use crate::ir::types::{Memory, Scalar, Type, Value};
use crate::ir::verify;

fn kernel(types: Vec<Type>, statements: Vec<Statement>) -> Kernel {
    let body = Block { statements };
    Kernel { name: "k".to_string(), params: Vec::new(), shared: Vec::new(), workgroup: [1, 1, 1], types, body }
}

fn statement(results: &[u32], inst: Inst) -> Statement {
    Statement { results: results.iter().map(|&v| Value(v)).collect(), inst }
}

fn faults(kernel: &Kernel) -> Vec<String> {
    // The printer must bear whatever the verifier bears.
    assert!(!kernel.to_string().is_empty());
    match verify(kernel, &Caps::ANY) {
        Ok(_) => Vec::new(),
        Err(faults) => faults.iter().map(ToString::to_string).collect(),
    }
}

#[track_caller]
fn assert_fault(kernel: &Kernel, part: &str) {
    let faults = faults(kernel);
    assert!(faults.iter().any(|fault| fault.contains(part)), "nobody says `{part}`: {faults:#?}");
}

#[test]
fn names_are_identifiers() {
    for name in ["", "9x", "a-b", "ä", "a b"] {
        let mut kernel = kernel(Vec::new(), Vec::new());
        kernel.name = name.to_string();
        assert_fault(&kernel, "a name is a letter or _");
        kernel.name = "k".to_string();
        kernel.shared.push(Shared { name: name.to_string(), bytes: 4, align: 4 });
        assert_fault(&kernel, "a name is a letter or _");
    }
}

#[test]
fn values_without_a_type_are_faults_and_not_panics() {
    let i32 = Type::scalar(Scalar::I32);
    let far = Value(u32::MAX);
    let undefined = kernel(vec![i32], vec![statement(&[0], Inst::Bin(BinOp::Add, far, far))]);
    assert_fault(&undefined, "%4294967295 does not exist; the kernel has 1 values");
    assert_fault(&kernel(Vec::new(), vec![statement(&[7], Inst::Barrier)]), "%7 has no type");
    let body = Block { statements: vec![statement(&[], Inst::Yield(vec![far]))] };
    let inst = For { variable: far, start: far, end: far, step: i64::MIN, carried: vec![(far, far)], body };
    assert_fault(&kernel(Vec::new(), vec![statement(&[9], Inst::For(Box::new(inst)))]), "does not exist");
}

#[test]
fn memories_and_axes_that_do_not_exist_are_faults() {
    let i32 = Type::scalar(Scalar::I32);
    for (memory, part) in [(Memory::Param(9), "no parameter number 9"), (Memory::Shared(9), "no shared array number 9")]
    {
        let address = Address { memory, index: None, offset: i64::MIN };
        assert_fault(&kernel(vec![i32], vec![statement(&[0], Inst::Load { address, align: 4 })]), part);
        assert_fault(&kernel(vec![i32], vec![statement(&[0], Inst::AtomicAdd { address, value: Value(0) })]), part);
    }
    assert_fault(&kernel(vec![i32], vec![statement(&[0], Inst::Arg(3))]), "no parameter number 3");
    for axis in [3, 255] {
        assert_fault(&kernel(vec![i32], vec![statement(&[0], Inst::Builtin(Builtin::LocalId(axis)))]), "the axes are");
    }
}

#[test]
fn blocks_end_with_one_yield() {
    let bool = Type::scalar(Scalar::Bool);
    let cond = || statement(&[0], Inst::Const(Constant::Splat(1)));
    let branch = |then: Vec<Statement>| {
        let otherwise = Block { statements: vec![statement(&[], Inst::Yield(Vec::new()))] };
        let inst = If { cond: Value(0), then: Block { statements: then }, otherwise };
        kernel(vec![bool], vec![cond(), statement(&[], Inst::If(Box::new(inst)))])
    };
    assert_fault(&branch(Vec::new()), "body.1.then is empty; a block ends with `yield`");
    assert_fault(&branch(vec![statement(&[], Inst::Barrier)]), "the block ends here without a `yield`");
    assert_eq!(faults(&branch(vec![statement(&[], Inst::Yield(Vec::new()))])), Vec::<String>::new());
}

#[test]
fn lanes_beyond_any_type_are_faults_and_not_panics() {
    for lanes in [0, 3, 65, 255] {
        let ty = Type::vector(Scalar::I64, lanes);
        let add = kernel(
            vec![ty; 2],
            vec![
                statement(&[0], Inst::Const(Constant::Lanes(vec![0; lanes as usize]))),
                statement(&[1], Inst::Swizzle { a: Value(0), b: Value(0), lanes: vec![255; lanes as usize] }),
            ],
        );
        assert_fault(&add, "a type has 1, 2, 4, 8, 16, 32 or 64 lanes");
    }
}

#[test]
fn nesting_is_limited() {
    let mut block = Block { statements: vec![statement(&[], Inst::Yield(Vec::new()))] };
    for _ in 0..500 {
        let otherwise = Block { statements: vec![statement(&[], Inst::Yield(Vec::new()))] };
        let inst = Inst::If(Box::new(If { cond: Value(0), then: block, otherwise }));
        block = Block { statements: vec![statement(&[], inst), statement(&[], Inst::Yield(Vec::new()))] };
    }
    assert_fault(&kernel(Vec::new(), block.statements), "blocks may nest 64 deep at most");
}

#[test]
fn long_statements_are_cut_in_diagnostics() {
    let ty = Type::scalar(Scalar::I32);
    let long = kernel(vec![ty], vec![statement(&[0], Inst::Vector(vec![Value(5); 1000]))]);
    assert!(faults(&long).iter().all(|fault| fault.len() < 600));
    assert_fault(&long, "…");
}
