//! Every matrix instruction of every AMD device: the lane maps of caps against the shim's independent table, by products of
//! small numbers, which are exact. A map with two bits swapped must not pass.

use bitsmith_compiler::caps::{Caps, Float8, LaneMap, MmaShape};
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::ir::interp::ArgValue;
use bitsmith_compiler::ir::{Access, Address, BinOp, Builder, Builtin, Inst, Kernel, Scalar, Type, verify};
use bitsmith_compiler::layout::{Bit, Dim, Layout};
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::hip::HipTarget;
use bitsmith_tests::hip::clang;
use bitsmith_tests::hip::host::{Launch, Order, Program, Sanitize};

fn scalar(dtype: DType) -> Scalar {
    Scalar::ALL.into_iter().find(|scalar| scalar.name() == dtype.name()).unwrap()
}

/// One wave multiplies fragments that lie lane by lane in memory.
fn kernel(name: &str, shape: &'static MmaShape) -> Kernel {
    let mut b = Builder::new(name);
    b.workgroup(shape.lanes, 1, 1);
    let [left, right, sums] = ["left", "right", "sums"].map(|name| b.buffer(name, Access::Read, 16));
    let out = b.buffer("out", Access::Write, 16);
    let lane = b.builtin(Builtin::LocalId(0));
    let mut fragment = |memory, dtype, elements: u32| {
        let ty = Type::vector(scalar(dtype), elements as u8);
        let index = b.bin_imm(BinOp::Mul, lane, i64::from(ty.bytes()));
        let address = Address { memory, index: Some(index), offset: 0 };
        (b.load(ty, address, ty.bytes().min(16)), Address { memory: out, ..address }, ty)
    };
    let (a, ..) = fragment(left, shape.a, shape.a_elements());
    let (c, place, ty) = fragment(sums, shape.acc, shape.acc_elements());
    let (right, ..) = fragment(right, shape.b, shape.b_elements());
    let product = b.push(ty, Inst::Mma { shape, a, b: right, acc: c });
    b.store(place, 16, product);
    b.finish()
}

/// The bytes of a matrix as fragments, lane after lane.
fn fragments(map: &Layout, dtype: DType, number: impl Fn(u64, u64) -> f64) -> Vec<u8> {
    let code = |address: usize| {
        let at = map.coords(address);
        let number = number(u64::from(at.get(Dim::Row)), u64::from(at.get(Dim::Column)));
        match dtype {
            DType::I32 => number as i32 as u32,
            DType::F32 => (number as f32).to_bits(),
            _ => dtype.encode(number),
        }
    };
    let bytes = scalar(dtype).bytes() as usize;
    (0..map.size() as usize).flat_map(|address| code(address).to_le_bytes()[..bytes].to_vec()).collect()
}

/// No power of two below 1024 is 1 modulo 11, so that swapped bits of a coordinate change the number.
fn left(row: u64, k: u64) -> f64 {
    ((row * 5 + k * 3) % 11) as f64 - 5.0
}

fn right(k: u64, column: u64) -> f64 {
    ((k * 2 + column * 3 + k * column) % 11) as f64 - 5.0
}

fn added(row: u64, column: u64) -> f64 {
    (row * 16 + column) as f64
}

/// A launch with fragments after a map, and the sums that the device's own map promises.
fn launch(target: &HipTarget, shape: &'static MmaShape, map: &LaneMap, number: usize) -> (Launch, Vec<u8>) {
    let caps: &Caps = target.caps();
    let kernel = kernel(&format!("product_{number}"), shape);
    let legal = target.legalize(&verify(&kernel, caps).unwrap()).unwrap();
    let artifact = target.emit(&verify(&legal, caps).unwrap()).unwrap();
    let sum = |row, column| {
        added(row, column) + (0..u64::from(shape.k)).map(|k| left(row, k) * right(k, column)).sum::<f64>()
    };
    let acc = fragments(&map.acc, shape.acc, added);
    let args = vec![
        ArgValue::filled(fragments(&map.a, shape.a, left)),
        ArgValue::filled(fragments(&map.b, shape.b, right)),
        ArgValue::filled(acc.clone()),
        ArgValue::filled(vec![0; acc.len()]),
    ];
    let expected = fragments(&map.acc, shape.acc, sum);
    let source = clang::source(&artifact).to_string();
    (Launch { artifact, source, wave: caps.subgroup, grid: [1, 1, 1], args }, expected)
}

/// A layout with two address bits swapped.
fn swapped(layout: &Layout, i: usize, j: usize) -> Layout {
    let mut bits: Vec<Bit> = layout.bits().to_vec();
    bits.swap(i, j);
    Layout::new(&bits).unwrap()
}

/// For each launch, whether it gave what is expected.
fn verdicts(change: impl Fn(LaneMap) -> LaneMap) -> Option<Vec<(String, bool)>> {
    let clang = clang::find("hip_matrix")?;
    let mut all = Vec::new();
    for device in HipTarget::names() {
        let target = HipTarget::named(device).unwrap();
        let shapes = target.caps().matrix;
        let (launches, expected): (Vec<Launch>, Vec<Vec<u8>>) = shapes
            .iter()
            .enumerate()
            .map(|(number, shape)| launch(&target, shape, &change(shape.map.unwrap()), number))
            .unzip();
        if clang::knows(&clang, target.arch()) {
            let text: String = launches.iter().map(|launch| launch.source.as_str()).collect();
            let folder = tempfile::tempdir().unwrap();
            let code = folder.path().join("products");
            let resources = clang::compile(&clang, target.arch(), &text, &code).unwrap();
            assert_eq!(resources.len(), shapes.len());
            for (name, text) in clang::disassembly(&clang, target.arch(), &code).unwrap() {
                assert!(
                    text.contains("v_mfma_") || text.contains("v_wmma_"),
                    "{device}, {name}: no matrix instruction\n{text}"
                );
            }
        }
        let program = Program::build(&clang, launches, target.gpu().float8 == Float8::Fnuz, Sanitize::Nothing).unwrap();
        let results = program.run(Order::Random(1)).unwrap();
        for ((shape, result), expected) in shapes.iter().zip(results).zip(expected) {
            all.push((format!("{device}: {shape}"), result[3] == expected));
        }
    }
    Some(all)
}

#[test]
fn lane_maps_are_those_of_an_independent_table() {
    let Some(all) = verdicts(|map| map) else { return };
    assert!(all.len() >= 30, "{all:?}");
    let wrong: Vec<&String> = all.iter().filter(|(_, right)| !right).map(|(name, _)| name).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn a_swapped_lane_map_is_found() {
    let changes: [fn(LaneMap) -> LaneMap; 3] = [
        |map| LaneMap { a: swapped(&map.a, 0, map.a.len() as usize - 1), ..map },
        |map| LaneMap { b: swapped(&map.b, 0, map.b.len() as usize - 1), ..map },
        |map| LaneMap { acc: swapped(&map.acc, 1, map.acc.len() as usize - 1), ..map },
    ];
    for change in changes {
        let Some(all) = verdicts(change) else { return };
        let passed: Vec<&String> = all.iter().filter(|(_, right)| *right).map(|(name, _)| name).collect();
        assert!(passed.is_empty(), "{passed:?}");
    }
}
