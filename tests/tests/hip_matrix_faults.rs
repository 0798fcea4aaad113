//! Faults planted in kernels of matrix instructions, each of which the checks must catch: a barrier gone, an overrun of shared
//! memory, a lane map with two bits swapped. The kernels themselves pass.

use bitsmith_autotune::problem::{Problem, Sample};
use bitsmith_compiler::caps::{Caps, Float8, LaneMap, MmaShape};
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::ir::interp::ArgValue;
use bitsmith_compiler::ir::{Block, Inst, Kernel, verify};
use bitsmith_compiler::layout::{Bit, Layout};
use bitsmith_compiler::lower;
use bitsmith_compiler::op::{Activation, Epilogue, Matmul, Op, Per};
use bitsmith_compiler::schedule::{Family, Schedule};
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::hip::HipTarget;
use bitsmith_tests::hip::clang;
use bitsmith_tests::hip::host::{Launch, Order, Program, Sanitize};
use std::path::{Path, PathBuf};

const ORDERS: [Order; 4] = [Order::Forward, Order::Reversed, Order::Random(1), Order::Random(2)];
const M: usize = 20;

/// A device, and what its activations are.
const SETTINGS: [(&str, Activation); 3] = [
    ("mi300x", Activation::Float(DType::F16)),
    ("mi250", Activation::Int8(Per::Token)),
    ("rx9070xt", Activation::Float(DType::Bf16)),
];

struct Setting {
    clang: PathBuf,
    target: HipTarget,
    op: Op,
    schedule: Schedule,
    problem: Problem,
}

fn settings() -> Vec<Setting> {
    let Some(clang) = clang::find("hip_matrix_faults") else { return Vec::new() };
    let setting = |(device, activation): (&str, Activation)| {
        let target = HipTarget::named(device).unwrap();
        let weight = "int4-g128-asym".parse().unwrap();
        let op = Matmul { n: 70, k: 512, weight, activation, out: DType::F32, epilogue: Epilogue::default() };
        let op = Op::Matmul(op);
        let lanes = target.caps().subgroup;
        let schedule = Schedule::single(Family::Mma, 16, 32, 1).with_threads(4 * lanes, 4);
        let problem = Problem::random(&op, M, 5).unwrap().packed_for(&schedule, target.caps()).unwrap();
        Setting { clang: clang.clone(), target, op, schedule, problem }
    };
    SETTINGS.into_iter().map(setting).collect()
}

impl Setting {
    fn launch(&self, kernel: &Kernel, change: impl Fn(String) -> String) -> Launch {
        let caps = self.target.caps();
        let legal = self.target.legalize(&verify(kernel, caps).unwrap()).unwrap();
        let artifact = self.target.emit(&verify(&legal, caps).unwrap()).unwrap();
        let source = change(clang::source(&artifact).to_string());
        let mut args: Vec<ArgValue> =
            self.problem.buffers.iter().map(|buffer| ArgValue::filled(buffer.bytes.clone())).collect();
        args.push(ArgValue::I32(M as i32));
        let grid = lower::grid(&self.op, &self.schedule, M);
        Launch { artifact, source, wave: caps.subgroup, grid, args }
    }

    fn kernel(&self, caps: &Caps) -> Kernel {
        lower::lower(&self.op, &self.schedule, caps).unwrap()
    }

    /// For each order under which a kernel is wrong, what is wrong.
    fn faults(&self, launch: Launch, sanitize: Sanitize) -> Vec<String> {
        let fnuz = self.target.gpu().float8 == Float8::Fnuz;
        let program = Program::build(Path::new(&self.clang), vec![launch], fnuz, sanitize).unwrap();
        let wrong = |order| match program.run(order) {
            Ok(results) => {
                let outputs: Vec<&[u8]> = results[0]
                    .iter()
                    .zip(&self.problem.buffers)
                    .filter(|(_, buffer)| buffer.signature.written)
                    .map(|(bytes, _)| bytes.as_slice())
                    .collect();
                let report = self.problem.check(self.schedule.family, &outputs, Sample::Everything);
                (!report.passed()).then(|| format!("{order:?}: {}", report.first_wrong.unwrap_or_default()))
            }
            Err(why) => Some(why),
        };
        ORDERS.into_iter().filter_map(wrong).collect()
    }
}

/// Changes the kernel itself, not the helpers before it, in one of the places where a text stands.
fn changed(source: String, from: &str, to: &str, place: usize) -> String {
    let (head, body) = source.rsplit_once("extern \"C\"").unwrap();
    let (at, _) =
        body.match_indices(from).nth(place).unwrap_or_else(|| panic!("no {from}, number {place}, in\n{body}"));
    format!("{head}extern \"C\"{}{to}{}", &body[..at], &body[at + from.len()..])
}

#[test]
fn the_kernels_are_right_as_they_are() {
    for setting in settings() {
        let launch = setting.launch(&setting.kernel(setting.target.caps()), |source| source);
        assert_eq!(setting.faults(launch, Sanitize::AddressAndUndefined), [""; 0], "{}", setting.target.arch());
    }
}

#[test]
fn a_deleted_barrier_is_found() {
    for setting in settings() {
        let kernel = setting.kernel(setting.target.caps());
        // After the partial results are written, and between the two halvings.
        for place in 0..2 {
            let launch = setting.launch(&kernel, |source| changed(source, "barrier();", "", place));
            let faults = setting.faults(launch, Sanitize::Nothing);
            assert!(
                !faults.is_empty(),
                "{}: no order of waves shows that barrier {place} is gone",
                setting.target.arch()
            );
        }
    }
}

#[test]
fn an_overrun_of_shared_memory_is_found() {
    for setting in settings() {
        let kernel = setting.kernel(setting.target.caps());
        let bytes = kernel.shared[0].bytes;
        let (from, to) = (format!("[{bytes}]"), format!("[{}]", bytes - 16));
        let launch = setting.launch(&kernel, |source| changed(source, &from, &to, 0));
        let faults = setting.faults(launch, Sanitize::AddressAndUndefined);
        assert!(faults.iter().all(|why| why.contains("overflow")) && faults.len() == ORDERS.len(), "{faults:?}");
    }
}

/// A layout with two address bits swapped.
fn swapped(layout: &Layout, i: usize, j: usize) -> Layout {
    let mut bits: Vec<Bit> = layout.bits().to_vec();
    bits.swap(i, j);
    Layout::new(&bits).unwrap()
}

/// Gives matrix instructions the shape that the device has.
fn mend(block: &mut Block, shapes: &'static [MmaShape]) {
    for statement in &mut block.statements {
        match &mut statement.inst {
            Inst::Mma { shape, .. } => {
                let same = |own: &&MmaShape| (own.a, own.b, own.acc, own.k) == (shape.a, shape.b, shape.acc, shape.k);
                *shape = shapes.iter().find(same).unwrap();
            }
            Inst::For(inner) => mend(&mut inner.body, shapes),
            Inst::If(inner) => {
                mend(&mut inner.then, shapes);
                mend(&mut inner.otherwise, shapes);
            }
            _ => {}
        }
    }
}

#[test]
fn a_kernel_made_for_a_swapped_lane_map_is_found() {
    // The last two lane bits of the sums, and the first two of B, hold other rows and columns than the kernel takes them for.
    let changes: [fn(LaneMap, usize) -> LaneMap; 2] = [
        |map, _| LaneMap { acc: swapped(&map.acc, map.acc.len() as usize - 1, map.acc.len() as usize - 2), ..map },
        |map, elements| LaneMap { b: swapped(&map.b, elements, elements + 1), ..map },
    ];
    for setting in settings() {
        let caps = setting.target.caps();
        for change in changes {
            let wrong = |shape: &MmaShape| {
                let first = shape.b_elements().trailing_zeros() as usize;
                MmaShape { map: shape.map.map(|map| change(map, first)), ..*shape }
            };
            let shapes: &'static [MmaShape] = caps.matrix.iter().map(wrong).collect::<Vec<_>>().leak();
            let mut kernel = setting.kernel(&Caps { matrix: shapes, ..*caps });
            mend(&mut kernel.body, caps.matrix);
            let faults = setting.faults(setting.launch(&kernel, |source| source), Sanitize::Nothing);
            assert_eq!(faults.len(), ORDERS.len(), "{}: {faults:?}", setting.target.arch());
        }
    }
}
