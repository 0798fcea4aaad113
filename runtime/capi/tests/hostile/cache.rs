//! KV caches: numbers against plain attention, faults that are named, and a million hostile calls.

use super::{cpu, last};
use bitsmith::*;
use std::ffi::{CString, c_char};
use std::ptr::{null, null_mut};

/// A bundle for two heads over one of 16 channels, pages of 16 tokens.
fn bundle(folder: &std::path::Path, device: u64) -> u64 {
    let path = folder.join("bundle").display().to_string();
    let words =
        "bitsmith generate --recipe W4A16 --shapes 16x128 --no-measure --kv f16,int8-head,int4-token+16 --heads 2/1x16";
    let args = words.split_whitespace().chain(["--page", "16", "--out", &path]);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    assert_eq!(bitsmith_cli::run(args, &mut out, &mut err), 0, "{}", String::from_utf8_lossy(&err));
    let (path, mut handle) = (CString::new(path).unwrap(), 0);
    // SAFETY: a text and a place for the handle.
    unsafe { assert_eq!(bitsmith_bundle_open(device, path.as_ptr(), &mut handle), BITSMITH_OK, "{}", last()) };
    handle
}

const SHAPE: BitsmithKvShape =
    BitsmithKvShape { element: c"f16".as_ptr(), heads: 2, kv_heads: 1, k_dim: 16, v_dim: 16, page: 16 };

fn cache(kernels: u64, formats: &[*const c_char], pages: u64, requests: u64) -> u64 {
    let mut handle = 0;
    // SAFETY: a structure, texts and a place for the handle.
    let status =
        unsafe { bitsmith_kv_create(kernels, &SHAPE, formats.as_ptr(), formats.len(), pages, requests, &mut handle) };
    assert_eq!(status, BITSMITH_OK, "{}", last());
    handle
}

fn buffer(device: u64, bytes: usize) -> u64 {
    let mut handle = 0;
    // SAFETY: a place for the handle.
    unsafe { assert_eq!(bitsmith_buffer_create(device, bytes, &mut handle), BITSMITH_OK, "{}", last()) };
    handle
}

fn whole(buffer: u64) -> BitsmithView {
    BitsmithView { buffer, offset: 0, bytes: 0 }
}

#[test]
fn faults_are_named_and_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let device = cpu();
    let kernels = bundle(folder.path(), device);
    let kv = cache(kernels, &[c"int8-head".as_ptr()], 3, 1);
    let data = buffer(device, 4096);
    let (mut a, mut b, mut tokens) = (0, 0, 0);
    let view = whole(data);
    let short = BitsmithView { buffer: data, offset: 0, bytes: 64 };
    let odd = BitsmithView { buffer: data, offset: 2, bytes: 0 };
    // SAFETY: wrong on purpose, in ways that the library promises to notice.
    unsafe {
        assert_eq!(bitsmith_kv_open(kv, &mut a), BITSMITH_OK);
        assert_eq!(bitsmith_kv_open(kv, &mut b), BITSMITH_INVALID);
        assert!(a != 0 && b == 0 && last().contains("which is the most"), "{}", last());
        assert_eq!(bitsmith_kv_grow(kv, &a, &49, 1), BITSMITH_INVALID);
        assert!(last().contains("4 more pages of 16 tokens are needed, 3 of 3"), "{}", last());
        assert_eq!(bitsmith_kv_grow(kv, &a, &u64::MAX, 1), BITSMITH_INVALID);
        assert_eq!(bitsmith_kv_grow(kv, null(), &3, 1), BITSMITH_INVALID);
        assert_eq!(bitsmith_kv_grow(kv, &a, &3, 1), BITSMITH_OK);
        assert_eq!(bitsmith_kv_append(kv, 0, &short, &view), BITSMITH_INVALID);
        assert!(last().contains("k has 64 bytes; the step's rows take 96"), "{}", last());
        assert_eq!(bitsmith_kv_append(kv, 0, &odd, &view), BITSMITH_INVALID);
        assert_eq!(bitsmith_kv_append(kv, 1, &view, &view), BITSMITH_INVALID);
        assert!(last().contains("layer 1 of 1"), "{}", last());
        assert_eq!(bitsmith_kv_append(kv, 0, &view, null()), BITSMITH_INVALID);
        assert_eq!(bitsmith_kv_append(kv, 0, &view, &view), BITSMITH_OK, "{}", last());
        // Outputs may take the place of queries, which have been read by then.
        assert_eq!(bitsmith_kv_attend(kv, 0, &view, &view, null()), BITSMITH_OK, "{}", last());
        let out = whole(buffer(device, 4096));
        let with = |scale: f32, softcap: f32| BitsmithAttention {
            scale,
            softcap,
            window: 0,
            first: 0,
            slopes: null(),
            sinks: null(),
            heads: 0,
            split: 0,
        };
        assert_eq!(bitsmith_kv_attend(kv, 0, &view, &out, &with(f32::NAN, 0.0)), BITSMITH_INVALID);
        assert!(last().contains("a scale of NaN"), "{}", last());
        // The bundle was made for plain attention, and nothing is compiled behind it.
        assert_eq!(bitsmith_kv_attend(kv, 0, &view, &out, &with(0.0, 30.0)), BITSMITH_UNSUPPORTED);
        assert!(last().contains("soft cap 30") && last().contains("--kv"), "{}", last());
        assert_eq!(bitsmith_kv_attend(kv, 0, &view, &out, null()), BITSMITH_OK, "{}", last());
        let foreign = whole(buffer(cpu(), 4096));
        assert_eq!(bitsmith_kv_attend(kv, 0, &foreign, &out, null()), BITSMITH_INVALID);
        assert!(last().contains("another device"), "{}", last());
        assert_eq!(bitsmith_kv_tokens(kv, a, &mut tokens), BITSMITH_OK);
        assert_eq!(tokens, 3);
        assert_eq!(bitsmith_kv_truncate(kv, a, 4), BITSMITH_INVALID);
        assert_eq!(bitsmith_kv_scales(kv, 0, [1.0f32, 0.0, 0.0, 0.0].as_ptr(), 4), BITSMITH_INVALID);
        assert!(last().contains("a scale of 0"), "{}", last());
        assert_eq!(bitsmith_kv_end(kv, a), BITSMITH_OK);
        assert_eq!(bitsmith_kv_tokens(kv, a, &mut tokens), BITSMITH_INVALID);
        assert!(last().contains("not open"), "{}", last());
        assert_eq!(bitsmith_kv_end(device, a), BITSMITH_INVALID);
        assert!(last().contains("is a device; accepted: a KV cache"), "{}", last());
        let wide = BitsmithKvShape { heads: 3, kv_heads: 2, ..SHAPE };
        let formats = [c"f16".as_ptr()];
        assert_eq!(bitsmith_kv_create(kernels, &wide, formats.as_ptr(), 1, 4, 1, &mut b), BITSMITH_INVALID);
        assert!(last().contains("3 query heads over 2 KV heads"), "{}", last());
        assert_eq!(bitsmith_kv_create(kernels, &SHAPE, formats.as_ptr(), 1, u64::MAX, 1, &mut b), BITSMITH_INVALID);
        assert_eq!(bitsmith_kv_create(data, &SHAPE, formats.as_ptr(), 1, 4, 1, &mut b), BITSMITH_INVALID);
        assert!(last().contains("accepted: a bundle or a device"), "{}", last());
        // The cache lives by itself: what it was made of may be closed, and it answers after its own end.
        assert_eq!(bitsmith_close(kernels), BITSMITH_OK);
        assert_eq!(bitsmith_kv_open(kv, &mut a), BITSMITH_OK);
        assert_eq!(bitsmith_close(kv), BITSMITH_OK);
        assert_eq!(bitsmith_kv_open(kv, &mut a), BITSMITH_CLOSED);
    }
}

/// Random calls on random caches, requests, views and lists, most of them with one thing wrong.
#[test]
fn a_million_hostile_calls_on_caches_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    let device = cpu();
    let kernels = bundle(folder.path(), device);
    let mut rng = fastrand::Rng::with_seed(17);
    let kept = 6;
    let plain = cache(kernels, &[c"int8-head".as_ptr(), c"f16".as_ptr()], 8, 3);
    let windowed = cache(kernels, &[c"int4-token+16".as_ptr()], 8, 3);
    let mut handles = vec![device, kernels, plain, windowed, buffer(device, 1024), buffer(device, 1024), 0, u64::MAX];
    let names: Vec<CString> = ["f16", "int8-head", "int4-token+16", "int4-channel", "int9", "", "bf16", "f32", "u8"]
        .iter()
        .map(|name| CString::new(*name).unwrap())
        .collect();
    let mut requests: Vec<u64> = vec![0, 1, u64::MAX, 1 << 32];
    let (mut statuses, mut done) = ([0u64; 7], [0u64; 12]);
    let numbers: Vec<f32> = (0..64).map(|i| 0.25 + (i % 7) as f32).collect();
    let calls = 1_000_000;
    for _ in 0..calls {
        let any = handles[rng.usize(..handles.len())];
        let kv = if rng.u8(..4) > 0 { handles[rng.usize(2..4)] } else { any };
        let mut out = 0u64;
        let place: *mut u64 = match rng.u8(..32) {
            0 => null_mut(),
            1 => (&raw mut out).cast::<u8>().wrapping_add(4).cast(),
            _ => &mut out,
        };
        let layer = [0, 0, 0, 0, 1, 2, u64::MAX][rng.usize(..7)];
        let mut views = [(); 2].map(|()| BitsmithView {
            buffer: if rng.u8(..8) > 0 { handles[rng.usize(4..6)] } else { handles[rng.usize(..handles.len())] },
            offset: [0, 0, 0, 64, 128, 1, 1024, u64::MAX][rng.usize(..8)],
            bytes: [0, 0, 0, 512, 32, 1025, u64::MAX][rng.usize(..7)],
        });
        if rng.bool() {
            // Two whole buffers, so that what is wrong is elsewhere.
            views = [whole(handles[4]), whole(handles[5])];
        }
        let view = |i: usize, rng: &mut fastrand::Rng| match rng.u8(..64) {
            0 => null(),
            1 => (&raw const views[i]).cast::<u8>().wrapping_add(4).cast(),
            _ => &raw const views[i],
        };
        let (first, second) = (view(0, &mut rng), view(1, &mut rng));
        let request = requests[rng.usize(..requests.len())];
        let tokens = [0, 1, 1, 2, 3, 7, 17, 200, i32::MAX as u64, u64::MAX][rng.usize(..10)];
        let floats = match rng.u8(..8) {
            0 => null(),
            1 => numbers.as_ptr().cast::<u8>().wrapping_add(2).cast(),
            _ => numbers.as_ptr(),
        };
        let kind = rng.usize(..12);
        // SAFETY: wrong on purpose, in ways that the library promises to notice.
        let status = unsafe {
            match kind {
                0 => {
                    let texts: Vec<*const c_char> = (0..rng.usize(..3))
                        .map(|_| if rng.u8(..8) == 0 { null() } else { names[rng.usize(..names.len())].as_ptr() })
                        .collect();
                    let mut shape = BitsmithKvShape { ..SHAPE };
                    if rng.bool() {
                        let wrong = [0, 1, 3, 16, 24, 48, 512, u32::MAX][rng.usize(..8)];
                        match rng.u8(..6) {
                            0 => shape.heads = wrong,
                            1 => shape.kv_heads = wrong,
                            2 => shape.k_dim = wrong,
                            3 => shape.v_dim = wrong,
                            4 => shape.page = wrong,
                            _ => shape.element = names[rng.usize(..names.len())].as_ptr(),
                        }
                    }
                    let (pages, most) =
                        ([0, 1, 8, u64::MAX, 1 << 40][rng.usize(..5)], [0, 1, 3, u64::MAX][rng.usize(..4)]);
                    // Few are made of the compiler, since that takes milliseconds.
                    let of = if rng.u8(..100) == 0 { device } else { any };
                    let of = if of == device && rng.u8(..50) > 0 { kernels } else { of };
                    let shape = if rng.u8(..32) == 0 { null() } else { &raw const shape };
                    bitsmith_kv_create(of, shape, texts.as_ptr(), texts.len(), pages, most, place)
                }
                1 => bitsmith_kv_scales(kv, layer, floats, rng.usize(..9)),
                2 => bitsmith_kv_rope(
                    // The kept caches stay without: the bundle has no kernel for it.
                    if kv == plain || kv == windowed { any & !1 } else { kv },
                    [0, 2, 3, 16, 18, u32::MAX][rng.usize(..6)],
                    rng.u32(..2),
                    floats,
                    rng.usize(..64),
                ),
                3 => bitsmith_kv_open(kv, place),
                // Most are left open, so that the other calls meet requests that are.
                4 => bitsmith_kv_end(kv, if rng.u8(..6) == 0 { request } else { 1 << 40 }),
                5 => bitsmith_kv_truncate(kv, request, tokens),
                6 => bitsmith_kv_tokens(kv, request, place),
                7 => {
                    let list: Vec<u64> = (0..3).map(|_| requests[rng.usize(..requests.len())]).collect();
                    let counts = [tokens, rng.u64(..3), rng.u64(..3)];
                    bitsmith_kv_grow(kv, list.as_ptr(), counts.as_ptr(), rng.usize(..4))
                }
                8 => bitsmith_kv_append(kv, layer, first, second),
                9 => {
                    let heads = [0, 1, 2, 2, 2, usize::MAX][rng.usize(..6)];
                    let how = BitsmithAttention {
                        scale: [0.0, 0.0, 0.25, -1.0, f32::NAN, f32::INFINITY][rng.usize(..6)],
                        softcap: [0.0, 0.0, 0.0, 30.0, f32::NAN, 1e30][rng.usize(..6)],
                        window: [0, 0, 5, u32::MAX][rng.usize(..4)],
                        first: [0, 0, 1, u32::MAX][rng.usize(..4)],
                        slopes: if rng.bool() { null() } else { floats },
                        sinks: if rng.bool() { null() } else { floats },
                        // Lists are as long as they are said to be.
                        heads,
                        split: [0, 0, 16, u64::MAX][rng.usize(..4)],
                    };
                    let how = if rng.bool() { null() } else { &raw const how };
                    bitsmith_kv_attend(kv, layer, first, second, how)
                }
                10 => {
                    let start = [0, 0, 0, 1, 17, u64::MAX][rng.usize(..6)];
                    bitsmith_kv_dequantize(kv, layer, request, start, rng.u64(..5), first, second)
                }
                _ => {
                    let mut needed = 0;
                    bitsmith_describe(kv, null_mut(), 0, &mut needed)
                }
            }
        };
        assert!((0..7).contains(&status), "{status}");
        assert_ne!(status, BITSMITH_BUG, "{}", last());
        statuses[status as usize] += 1;
        if status == BITSMITH_OK {
            done[kind] += 1;
            if kind == 0 {
                // A few caches at a time, closed in between and used after that.
                if handles.len() < 24 {
                    handles.push(out);
                } else {
                    let at = rng.usize(8..24);
                    bitsmith_close(std::mem::replace(&mut handles[at], out));
                }
            } else if kind == 3 {
                let at = rng.usize(..12);
                if at < requests.len() { requests[at] = out } else { requests.push(out) }
            }
        } else if statuses[status as usize] % 1000 == 0 && handles.len() > 8 {
            bitsmith_close(handles[rng.usize(8..handles.len())]);
        }
    }
    assert!(handles.len() > kept);
    eprintln!("{calls} calls by status: {statuses:?}; done by kind: {done:?}");
    assert!(done.iter().enumerate().all(|(kind, &count)| count > 50 || kind == 2), "{done:?}");
    assert!(statuses[1] > 100_000 && statuses[5] > 100, "{statuses:?}");
}
