//! `runtime/src/cuda` against a stand-in for NVIDIA's driver: which functions are called, in which order, with what. The
//! stand-in is a library that gcc compiles here; the tests run in a process whose loader finds it.

use bitsmith_compiler::artifact::{Arg, ArgKind, Artifact, Payload, Preparation};
use bitsmith_compiler::{Error, Result};
use bitsmith_runtime::cuda::CudaDevice;
use bitsmith_runtime::{Buffer, Device, Launch, LaunchArg, Program};
use std::path::Path;
use std::process::Command;

#[test]
fn the_driver_is_called_as_it_wants_to_be() {
    let test = "the_driver_is_called_as_it_wants_to_be";
    let folder = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda/driver.c");
    // Both names that the loader may be asked for.
    for name in ["libcuda.so", "libcuda.so.1"] {
        let mut gcc = Command::new("gcc");
        gcc.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-o"])
            .arg(folder.path().join(name))
            .arg(&source);
        match gcc.output() {
            Ok(built) => assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr)),
            Err(error) => return bitsmith_tests::skip("gcc", test, &error.to_string()),
        }
    }
    let text = bitsmith_tests::in_child(module_path!(), "child", |command| {
        command.env("LD_LIBRARY_PATH", folder.path());
    });
    let alive = "alive: 0 contexts, 0 allocations, 0 modules, 0 streams, 0 events, 0 graphs; 16 launches";
    assert!(text.contains(alive), "no `{alive}` in\n{text}");
}

/// An artifact whose text has one entry.
fn artifact(entry: &str, body: &str, args: &[(&str, ArgKind)], shared_bytes: u64) -> Artifact {
    Artifact {
        target: "sm_90a".into(),
        entry: entry.into(),
        payload: Payload::Text(format!(".version 8.0\n.target sm_90a\n.visible .entry {entry}() {{ {body} ret; }}\n")),
        args: args.iter().map(|&(name, kind)| Arg { name: name.into(), kind }).collect(),
        workgroup: [64, 1, 1],
        shared_bytes,
        preparation: None,
    }
}

fn scale(shared_bytes: u64) -> Artifact {
    let (read, write) = (ArgKind::Read { align: 16 }, ArgKind::Write { align: 16 });
    artifact("scale", "", &[("in", read), ("out", write), ("n", ArgKind::I32), ("factor", ArgKind::F32)], shared_bytes)
}

fn counting(body: &str) -> Artifact {
    artifact("count", body, &[("out", ArgKind::ReadWrite { align: 4 })], 0)
}

fn words(device: &CudaDevice, buffer: &Buffer) -> Vec<u32> {
    let mut bytes = vec![0; buffer.bytes()];
    device.download(buffer, 0, &mut bytes).unwrap();
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
}

fn floats(device: &CudaDevice, buffer: &Buffer) -> Vec<f32> {
    words(device, buffer).into_iter().map(f32::from_bits).collect()
}

fn one<'a>(program: &'a Program, counter: &'a Buffer) -> Launch<'a> {
    Launch { program, grid: [1, 1, 1], args: vec![LaunchArg::Buffer(counter.view())] }
}

fn why<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("it was served"),
        Err(error) => error.to_string(),
    }
}

#[test]
#[ignore = "started by the test that puts a driver where the loader looks"]
fn child() {
    let device = CudaDevice::open(0).unwrap();
    let info = device.info();
    assert_eq!((info.name.as_str(), info.target.as_str(), info.threads), ("cuda:0", "h100", 132));
    assert!(info.notes.is_empty(), "{:?}", info.notes);
    assert!(why(CudaDevice::open(1)).contains("sees 1 devices"));

    // Copies and a launch, twice: with little shared memory, and with more than a function has without asking.
    let numbers: Vec<u8> = (0..100).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let (input, output) = (device.allocate(400).unwrap(), device.allocate(400).unwrap());
    device.upload(&input, 0, &numbers[..200]).unwrap();
    device.upload(&input, 200, &numbers[200..]).unwrap();
    for (turn, shared) in [(1, 1024), (2, 100_000)] {
        let program = device.load(&scale(shared)).unwrap();
        let args = vec![
            LaunchArg::Buffer(input.range(16, 384).unwrap()),
            LaunchArg::Buffer(output.view()),
            LaunchArg::I32(90),
            LaunchArg::F32(turn as f32),
        ];
        device.upload(&output, 0, &[0; 400]).unwrap();
        device.launch(&Launch { program: &program, grid: [2, 1, 1], args: args.clone() }).unwrap();
        device.synchronize().unwrap();
        // The input starts four numbers in; ten of the results are beyond n.
        let expected = |i: usize| if i < 90 { turn as f32 * (i + 4) as f32 } else { 0.0 };
        assert_eq!(floats(&device, &output), (0..100).map(expected).collect::<Vec<f32>>());
        // Nothing of a launch that is refused reaches the driver.
        let empty = Launch { program: &program, grid: [0, 1, 1], args: args.clone() };
        device.launch(&empty).unwrap();
        let wide = Launch { program: &program, grid: [1, 70000, 1], args: args.clone() };
        assert!(why(device.launch(&wide)).contains("65535"));
        let fewer = Launch { program: &program, grid: [1, 1, 1], args: args[1..].to_vec() };
        assert!(why(device.launch(&fewer)).contains("takes 4"));
    }

    // What the device does not take is refused by name.
    let refused = device.load(&artifact("scale", "nonsense", &[], 0));
    assert!(matches!(refused, Err(Error::Tool { .. })));
    assert!(why(refused).contains("line 3; error: nonsense"));
    assert!(why(device.load(&Artifact { target: "sm_100a".into(), ..scale(0) })).contains("sm_100a"));
    let absent = Artifact { entry: "other".into(), ..scale(0) };
    assert!(why(device.load(&absent)).contains("finding other"));
    assert!(why(device.load(&scale(300_000))).contains("300000 bytes of shared memory"));
    let cpu = bitsmith_runtime::open("cpu:1").unwrap();
    assert!(why(device.upload(&cpu.allocate(4).unwrap(), 0, &[0; 4])).contains("another device"));
    assert!(why(device.upload(&input, 399, &[0; 4])).contains("399+4"));

    // A recording runs nothing until it is run, and then everything, in order, by the device's clock.
    let program = device.load(&counting("")).unwrap();
    let counter = device.allocate(4).unwrap();
    device.upload(&counter, 0, &[0; 4]).unwrap();
    let mut recording = device.record(&vec![one(&program, &counter); 3]).unwrap().unwrap();
    assert_eq!(words(&device, &counter), [0]);
    assert_eq!(recording.run().unwrap(), 1.5e-3);
    assert_eq!(recording.run().unwrap(), 1.5e-3);
    assert_eq!(words(&device, &counter), [6]);
    drop(recording);
    // A recording of a launch that is refused leaves the stream as it was.
    let fewer = Launch { program: &program, grid: [1, 1, 1], args: Vec::new() };
    assert!(device.record(&[fewer]).is_err());

    // A kernel that waits for the one before it by itself may start early.
    let early = device.load(&counting("griddepcontrol.wait;")).unwrap();
    device.launch(&one(&early, &counter)).unwrap();
    assert_eq!(words(&device, &counter), [106]);

    // A launch of two kernels runs both, the first one first: it makes the smallest number of a zero.
    {
        let rw = ArgKind::ReadWrite { align: 4 };
        let both = Artifact {
            payload: Payload::Text(
                ".version 8.0\n.target sm_90a\n.visible .entry scale() {}\n.visible .entry count() {}\n".into(),
            ),
            args: scale(0)
                .args
                .into_iter()
                .map(|arg| if arg.name == "in" { Arg { kind: rw, ..arg } } else { arg })
                .collect(),
            preparation: Some(Preparation {
                entry: "count".into(),
                args: vec![Arg { name: "in".into(), kind: rw }],
                grid: [1, 1, 1],
                workgroup: [32, 1, 1],
                shared_bytes: 0,
            }),
            ..scale(0)
        };
        let program = device.load(&both).unwrap();
        let (number, scaled) = (device.allocate(16).unwrap(), device.allocate(16).unwrap());
        device.upload(&number, 0, &[0; 16]).unwrap();
        let args = vec![
            LaunchArg::Buffer(number.view()),
            LaunchArg::Buffer(scaled.view()),
            LaunchArg::I32(1),
            LaunchArg::F32(2f32.powi(100)),
        ];
        let launch = Launch { program: &program, grid: [1, 1, 1], args };
        device.launch(&launch).unwrap();
        assert_eq!(floats(&device, &scaled)[0], 2f32.powi(-49));
        device.record(&[launch]).unwrap().unwrap().run().unwrap();
        assert_eq!(floats(&device, &scaled)[0], 2f32.powi(-48));
        let first = both.preparation.clone().unwrap();
        let absent = Artifact { preparation: Some(Preparation { entry: "other".into(), ..first }), ..both };
        assert!(why(device.load(&absent)).contains("finding other"));
    }

    // Memory of somebody else's, on somebody else's stream.
    let mut own = vec![0u32; 2];
    // SAFETY: the stand-in's memory is the host's; `own` lives until the end of the test.
    let borrowed = unsafe { device.borrow(own.as_mut_ptr() as u64, 8) };
    device.launch(&one(&program, &borrowed)).unwrap();
    device
        .launch(&Launch { args: vec![LaunchArg::Buffer(borrowed.range(4, 4).unwrap())], ..one(&program, &borrowed) })
        .unwrap();
    drop(borrowed);
    assert_eq!(own, [1, 1]);

    // The caller's context and stream. The stand-in has one context, and knows a stream by its address.
    let mut stream = [0u64; 1];
    let context = device.raw_context();
    // SAFETY: both outlive the device.
    let adopted = unsafe { CudaDevice::open_on(0, context, stream.as_mut_ptr().cast()) }.unwrap();
    let counter = adopted.allocate(4).unwrap();
    adopted.upload(&counter, 0, &[0; 4]).unwrap();
    let program = adopted.load(&counting("")).unwrap();
    adopted.launch(&one(&program, &counter)).unwrap();
    assert_eq!(words(&adopted, &counter), [1]);
    assert!(why(adopted.launch(&one(&early, &counter))).contains("another device"));
    // Bundles hold code for several targets.
    let ranks = ["h100", "sm_90a", "a100"].map(|target| device.accepts(target));
    assert!(ranks[0] > ranks[1] && ranks[1] > ranks[2] && ranks[2].is_some(), "{ranks:?}");
    assert_eq!(device.accepts("b200"), None);
}
