//! Hostile callers: each call answers with a status, and the library goes on.

mod cache;

use bitsmith::*;
use bitsmith_runtime::bundle::{Bundle, MANIFEST};
use std::ffi::{CString, c_void};
use std::ptr::{null, null_mut};

const HEADER: &str = include_str!("../../templates/c/bitsmith.h");

fn last() -> String {
    let mut text = [0i8; 512];
    // SAFETY: the buffer has the stated size.
    unsafe {
        bitsmith_last_error(text.as_mut_ptr(), text.len());
        std::ffi::CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned()
    }
}

fn cpu() -> u64 {
    let mut device = 0;
    // SAFETY: a text and a place for the handle.
    assert_eq!(unsafe { bitsmith_open(BITSMITH_ABI_VERSION, c"cpu:1".as_ptr(), &mut device) }, BITSMITH_OK);
    device
}

#[test]
fn the_header_states_what_the_library_has() {
    assert!(HEADER.contains(&format!("#define BITSMITH_ABI_VERSION {BITSMITH_ABI_VERSION}u")));
    for (name, value) in [
        ("OK", BITSMITH_OK),
        ("INVALID", BITSMITH_INVALID),
        ("UNSUPPORTED", BITSMITH_UNSUPPORTED),
        ("TOOL", BITSMITH_TOOL),
        ("BUG", BITSMITH_BUG),
        ("CLOSED", BITSMITH_CLOSED),
        ("ABI", BITSMITH_ABI),
    ] {
        assert!(HEADER.contains(&format!("BITSMITH_{name} = {value}")), "{name}");
    }
    // Every function that is exported stands in the header, and the other way round.
    let sources = [
        include_str!("../../src/bundle.rs"),
        include_str!("../../src/device.rs"),
        include_str!("../../src/guard.rs"),
        include_str!("../../src/kv.rs"),
        include_str!("../../src/weights.rs"),
    ];
    let exported: Vec<&str> = sources
        .iter()
        .flat_map(|source| source.split("extern \"C\" fn ").skip(1))
        .map(|rest| rest.split('(').next().unwrap_or_default())
        .collect();
    for name in &exported {
        assert!(HEADER.contains(&format!(" {name}(")) || HEADER.contains(&format!("*{name}(")), "{name}");
    }
    let declared = HEADER.lines().filter(|line| {
        ["int32_t bitsmith_", "uint32_t bitsmith_", "const char *bitsmith_", "size_t bitsmith_"]
            .iter()
            .any(|start| line.starts_with(start))
    });
    assert_eq!(declared.count(), exported.len());
    // The structures have the sizes that C gives them.
    assert_eq!(size_of::<BitsmithPart>(), 48);
    assert_eq!(size_of::<BitsmithWant>(), 48);
    assert_eq!(size_of::<BitsmithArgument>(), 56);
    assert_eq!(size_of::<BitsmithView>(), 24);
    assert_eq!(size_of::<BitsmithKvShape>(), 32);
    assert_eq!(size_of::<BitsmithAttention>(), 48);
}

#[test]
fn null_wrong_and_closed_are_answered_and_named() {
    let mut out = 7u64;
    // SAFETY: wrong on purpose, in ways that the library promises to notice.
    unsafe {
        assert_eq!(bitsmith_open(9, c"cpu".as_ptr(), &mut out), BITSMITH_ABI);
        assert!(last().contains("version 9"), "{}", last());
        assert_eq!(bitsmith_open(BITSMITH_ABI_VERSION, null(), &mut out), BITSMITH_INVALID);
        assert_eq!(bitsmith_open(BITSMITH_ABI_VERSION, c"cpu".as_ptr(), null_mut()), BITSMITH_INVALID);
        assert_eq!(bitsmith_open(BITSMITH_ABI_VERSION, c"toaster".as_ptr(), &mut out), BITSMITH_UNSUPPORTED);
        assert!(last().contains("accepted"), "{}", last());
        assert_eq!(bitsmith_open(BITSMITH_ABI_VERSION, c"\xff\xfe".as_ptr(), &mut out), BITSMITH_INVALID);
        let odd = (&raw mut out).cast::<u8>().wrapping_add(1).cast::<u64>();
        assert_eq!(bitsmith_open(BITSMITH_ABI_VERSION, c"cpu".as_ptr(), odd), BITSMITH_INVALID);
        assert!(last().contains("multiple of 8"), "{}", last());
        let device = cpu();
        assert_eq!(bitsmith_buffer_create(device, usize::MAX, &mut out), BITSMITH_INVALID);
        assert_eq!(bitsmith_buffer_create(device, 100, &mut out), BITSMITH_OK);
        let buffer = out;
        assert_eq!(bitsmith_buffer_create(buffer, 100, &mut out), BITSMITH_INVALID);
        assert!(last().contains("is a buffer; accepted: a device"), "{}", last());
        let data = [1u8; 200];
        let bytes = data.as_ptr().cast::<c_void>();
        assert_eq!(bitsmith_buffer_upload(buffer, 0, bytes, 101), BITSMITH_INVALID);
        assert_eq!(bitsmith_buffer_upload(buffer, usize::MAX, bytes, 1), BITSMITH_INVALID);
        assert_eq!(bitsmith_buffer_upload(buffer, 0, null(), 1), BITSMITH_INVALID);
        assert_eq!(bitsmith_buffer_upload(buffer, 100, null(), 0), BITSMITH_OK);
        assert_eq!(bitsmith_close(buffer), BITSMITH_OK);
        assert_eq!(bitsmith_close(buffer), BITSMITH_CLOSED);
        assert_eq!(bitsmith_buffer_upload(buffer, 0, bytes, 1), BITSMITH_CLOSED);
        assert_eq!(bitsmith_close(12345), BITSMITH_INVALID);
        let mut needed = 0;
        assert_eq!(bitsmith_describe(device, null_mut(), 0, &mut needed), BITSMITH_OK);
        let mut json = vec![0u8; needed];
        assert_eq!(bitsmith_describe(device, json.as_mut_ptr().cast(), needed - 1, &mut needed), BITSMITH_INVALID);
        assert_eq!(bitsmith_describe(device, json.as_mut_ptr().cast(), needed, &mut needed), BITSMITH_OK);
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&json).unwrap()["kind"], "device");
        assert_eq!(bitsmith_close(device), BITSMITH_OK);
        assert_eq!(bitsmith_synchronize(device), BITSMITH_CLOSED);
        let mut nan = vec![0.5f32; 64];
        nan[33] = f32::NAN;
        assert_eq!(bitsmith_quantize(c"int4-g32".as_ptr(), 2, 32, nan.as_ptr(), null(), &mut out), BITSMITH_INVALID);
        assert!(last().contains("row 1, column 1"), "{}", last());
        assert_eq!(
            bitsmith_quantize(c"int4-g32".as_ptr(), u64::MAX, 2, nan.as_ptr(), null(), &mut out),
            BITSMITH_INVALID
        );
    }
}

/// Random calls on random handles, pointers and sizes. Buffers are as large as the arguments say, so that only the library's own
/// checks stand between them and disaster.
#[test]
fn a_million_hostile_calls_are_answered() {
    let mut rng = fastrand::Rng::with_seed(9);
    let mut handles: Vec<u64> = vec![0, 1, u64::MAX, cpu()];
    let names: Vec<CString> =
        ["cpu:1", "", "int4-g32", "q4_k", "n16", "matmul", "int0-g1", "\u{fffd}", "x-64", "blocks", "u8"]
            .iter()
            .map(|name| CString::new(*name).unwrap())
            .collect();
    let mut memory = vec![0u64; 512];
    let mut statuses = [0u64; 7];
    let calls = 1_000_000;
    for _ in 0..calls {
        let handle = handles[rng.usize(..handles.len())];
        let name = if rng.u8(..8) == 0 { null() } else { names[rng.usize(..names.len())].as_ptr() };
        let start = memory.as_mut_ptr().cast::<u8>();
        // Null, misaligned, or good for 2 KiB.
        let pointer = match rng.u8(..8) {
            0 => null_mut(),
            1 => start.wrapping_add(rng.usize(1..8)),
            _ => start,
        };
        let mut out = 0u64;
        let place: *mut u64 = match rng.u8(..16) {
            0 => null_mut(),
            1 => (&raw mut out).cast::<u8>().wrapping_add(4).cast(),
            _ => &mut out,
        };
        let bytes = match rng.u8(..4) {
            0 => 0,
            1 => rng.usize(..2048),
            2 => usize::MAX - rng.usize(..64),
            _ => rng.usize(2048..),
        };
        // What the library would read or write must be there; larger sizes only go where they are checked first.
        let held = bytes.min(2048);
        let m = [0, 1, 3, u64::MAX, i32::MAX as u64 + 1][rng.usize(..5)];
        // SAFETY: wrong on purpose, in ways that the library promises to notice.
        let status = unsafe {
            match rng.u8(..18) {
                0 => bitsmith_buffer_create(handle, bytes.min(4096), place),
                1 => bitsmith_buffer_create(handle, usize::MAX - held, place),
                2 => bitsmith_buffer_upload(handle, bytes, pointer.cast(), held),
                3 => bitsmith_buffer_download(handle, bytes, pointer.cast(), held),
                4 => bitsmith_buffer_wrap(handle, pointer.cast(), held, place),
                5 => bitsmith_synchronize(handle),
                6 => bitsmith_describe(handle, pointer.cast(), held, place.cast()),
                7 => bitsmith_quantize(
                    name,
                    rng.u64(..9),
                    [0, 32, 33, u64::MAX][rng.usize(..4)],
                    pointer.cast(),
                    null(),
                    place,
                ),
                8 => bitsmith_weights_dequantize(handle, pointer.cast(), held / 4),
                9 => bitsmith_weights_pack(handle, name, pointer.cast(), held, place.cast()),
                10 => bitsmith_bundle_open(handle, name, place),
                11 => bitsmith_kernel_arguments(handle, place.cast()),
                12 => bitsmith_kernel_workspace(handle, m, place),
                13 => bitsmith_launch(handle, m, pointer.cast(), bytes),
                14 => bitsmith_close(if rng.u8(..4) == 0 && handle != handles[3] { handle } else { 0 }),
                15 => {
                    let shape = [rng.u64(..5), rng.u64(..40)];
                    let part = BitsmithPart {
                        name,
                        element: names[rng.usize(..names.len())].as_ptr(),
                        data: pointer.cast(),
                        bytes: held,
                        shape: shape.as_ptr(),
                        rank: 2,
                    };
                    bitsmith_weights_import(name, rng.u64(..5), 32, &part, usize::from(rng.bool()), place)
                }
                16 => {
                    let want = BitsmithWant { op: name, layer: name, format: null(), activation: null(), n: m, k: 0 };
                    bitsmith_kernel_choose(handle, if rng.bool() { &want } else { null() }, m, place)
                }
                _ => bitsmith_open(if rng.u8(..8) == 0 { 2 } else { BITSMITH_ABI_VERSION }, null(), place),
            }
        };
        assert!((0..7).contains(&status), "{status}");
        assert_ne!(status, BITSMITH_BUG, "{}", last());
        statuses[status as usize] += 1;
        // Floats that a later quantization reads are small; handles that were given are used again.
        memory[rng.usize(..512)] = u64::from(rng.u32(0x3f00_0000..0x3f80_0000)) * 0x1_0000_0001;
        if status == BITSMITH_OK && out > 1 << 40 {
            if handles.len() < 64 {
                handles.push(out);
            } else {
                let old = std::mem::replace(&mut handles[rng.usize(4..64)], out);
                bitsmith_close(old);
            }
        }
    }
    eprintln!("{calls} calls by status: {statuses:?}");
    assert!(statuses[0] > 10_000 && statuses[1] > 100_000 && statuses[5] > 100, "{statuses:?}");
}

/// Manifests and object files with bytes changed, lost or added. A changed manifest never opens, a changed file never runs.
#[test]
fn corrupt_and_truncated_bundles_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    let path = out.display().to_string();
    let args = ["bitsmith", "generate", "--recipe", "W4A8", "--shapes", "32x64", "--no-measure", "--out", &path];
    let (mut text, mut errors) = (Vec::new(), Vec::new());
    assert_eq!(bitsmith_cli::run(args, &mut text, &mut errors), 0, "{}", String::from_utf8_lossy(&errors));
    let manifest = std::fs::read_to_string(out.join(MANIFEST)).unwrap();
    let bundle = Bundle::open(&out).unwrap();
    assert!(bundle.faults().is_empty());
    let mut rng = fastrand::Rng::with_seed(3);
    for _ in 0..20_000 {
        let mut bytes = manifest.as_bytes().to_vec();
        match rng.u8(..4) {
            0 => bytes.truncate(rng.usize(..bytes.len() - 1)),
            1 => bytes[rng.usize(..manifest.len())] ^= 1 << rng.u8(..8),
            2 => drop(bytes.drain(rng.usize(..100)..rng.usize(100..200))),
            _ => {
                // A number that a launch would believe.
                let digits: Vec<usize> = (0..bytes.len()).filter(|&i| bytes[i].is_ascii_digit()).collect();
                let at = digits[rng.usize(..digits.len())];
                bytes[at] = if bytes[at] == b'9' { b'8' } else { bytes[at] + 1 };
            }
        }
        if bytes == manifest.as_bytes() {
            continue;
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let parsed = bitsmith_runtime::bundle::Manifest::parse(&text, "manifest.json");
        // White space outside of texts is not part of what is said.
        if let Ok(parsed) = parsed {
            assert_eq!(parsed.to_text().unwrap(), manifest, "{text}");
        }
    }
    // A file of which one bit changed is refused when its kernel is asked for, by the C functions too.
    let device = cpu();
    let mut handle = 0;
    let folder = CString::new(path).unwrap();
    let want = BitsmithWant { op: c"matmul".as_ptr(), layer: null(), format: null(), activation: null(), n: 32, k: 64 };
    // SAFETY: texts, a structure and places for handles.
    unsafe {
        assert_eq!(bitsmith_bundle_open(device, folder.as_ptr(), &mut handle), BITSMITH_OK, "{}", last());
        let opened = handle;
        for kernel in bundle.manifest().kernels().map(|(_, kernel)| kernel) {
            let file = out.join(&kernel.object.file);
            let whole = std::fs::read(&file).unwrap();
            let mut changed = whole.clone();
            if rng.bool() {
                changed[rng.usize(..whole.len())] ^= 1 << rng.u8(..8);
            } else {
                changed.truncate(rng.usize(..whole.len()));
            }
            std::fs::write(&file, changed).unwrap();
        }
        assert_eq!(bitsmith_kernel_choose(opened, &want, 1, &mut handle), BITSMITH_INVALID);
        assert!(last().contains("SHA-256"), "{}", last());
        assert_eq!(bitsmith_close(opened), BITSMITH_OK);
        assert_eq!(bitsmith_kernel_choose(opened, &want, 1, &mut handle), BITSMITH_CLOSED);
    }
}
