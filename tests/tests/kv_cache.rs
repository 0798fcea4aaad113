//! The cache of the runtime on the CPU: the same bytes however tokens arrive, nobody else's pages touched, errors before
//! anything is written, and a long random life beside a plain f32 cache.

use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::kv::KvFormat;
use bitsmith_compiler::op::kv::{Rope, Sight};
use bitsmith_runtime::kv::{AttendOptions, KvCache, KvShape, RequestId};
use bitsmith_runtime::{Buffer, Device, cpu::CpuDevice};
use std::sync::Arc;

fn device() -> Arc<dyn Device> {
    Arc::new(CpuDevice::new(2).unwrap())
}

fn shape(page: usize) -> KvShape {
    KvShape { heads: 4, kv_heads: 2, k_dim: 32, v_dim: 32, page, dtype: DType::F32 }
}

fn upload(device: &dyn Device, numbers: &[f32]) -> Buffer {
    let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    let buffer = device.allocate(bytes.len().max(4)).unwrap();
    device.upload(&buffer, 0, &bytes).unwrap();
    buffer
}

fn download(device: &dyn Device, buffer: &Buffer, count: usize) -> Vec<f32> {
    let mut bytes = vec![0; 4 * count];
    device.download(buffer, 0, &mut bytes).unwrap();
    bytes.chunks(4).map(|chunk| f32::from_le_bytes(chunk.try_into().unwrap())).collect()
}

fn pool_bytes(device: &dyn Device, cache: &KvCache, layer: usize) -> Vec<u8> {
    let pool = cache.pool(layer).unwrap();
    let mut bytes = vec![0; pool.bytes()];
    device.download(pool, 0, &mut bytes).unwrap();
    bytes
}

fn row(shape: &KvShape, rng: &mut fastrand::Rng, tokens: usize) -> Vec<f32> {
    (0..tokens * shape.kv_heads * shape.k_dim).map(|_| rng.f32() * 4.0 - 2.0).collect()
}

/// Appends tokens of one request in these pieces.
fn append(cache: &mut KvCache, device: &dyn Device, id: RequestId, k: &[f32], v: &[f32], pieces: &[usize]) {
    let per = 2 * 32;
    let mut done = 0;
    for &count in pieces {
        cache.grow(&[(id, count)]).unwrap();
        let (kb, vb) = (
            upload(device, &k[done * per..(done + count) * per]),
            upload(device, &v[done * per..(done + count) * per]),
        );
        cache.append(0, kb.view(), vb.view()).unwrap();
        done += count;
    }
}

#[test]
fn the_bytes_do_not_depend_on_how_tokens_arrive() {
    let (device, shape) = (device(), shape(16));
    for name in KvFormat::NAMED {
        let format: KvFormat = name.parse().unwrap();
        let mut rng = fastrand::Rng::with_seed(7);
        let total = 135;
        let (k, v) = (row(&shape, &mut rng, total), row(&shape, &mut rng, total));
        let table: Vec<f32> = (0..200 * 32).map(|_| rng.f32() * 2.0 - 1.0).collect();
        let chunks = [1, 30, 7, 64, 3, 29, 1];
        let ways: [Vec<usize>; 3] = [vec![1; total], chunks.to_vec(), vec![total]];
        let mut seen: Option<(Vec<u8>, Vec<f32>)> = None;
        for pieces in &ways {
            let mut cache = KvCache::new(Arc::clone(&device), shape, &[format], 12, 2).unwrap();
            cache.set_rope(Rope { rotary: 32, interleaved: false }, &table).unwrap();
            // What was in the pages before is not seen after.
            let garbage: Vec<u8> = (0..cache.pool(0).unwrap().bytes()).map(|_| rng.u8(..)).collect();
            device.upload(cache.pool(0).unwrap(), 0, &garbage).unwrap();
            let other = cache.open().unwrap();
            append(&mut cache, &*device, other, &k, &v, &[20]);
            let before = pool_bytes(&*device, &cache, 0);
            let id = cache.open().unwrap();
            append(&mut cache, &*device, id, &k, &v, pieces);
            let after = pool_bytes(&*device, &cache, 0);
            let bytes = cache.layout(0).unwrap().page_bytes();
            let own: Vec<usize> =
                cache.pages().table(id).unwrap().iter().flatten().map(|&page| page as usize).collect();
            for page in (0..12).filter(|page| !own.contains(page)) {
                let range = page * bytes..(page + 1) * bytes;
                assert!(before[range.clone()] == after[range], "{name}: page {page} is another request's");
            }
            // What is stored, in the order of the request's pages.
            let (kb, vb) = (upload(&*device, &vec![0.0; total * 64]), upload(&*device, &vec![0.0; total * 64]));
            cache.dequantize(0, id, 0, total, kb.view(), vb.view()).unwrap();
            let mut numbers = download(&*device, &kb, total * 64);
            numbers.extend(download(&*device, &vb, total * 64));
            // Whole pages byte by byte: every section of a record fills multiples of 16 bytes here, so that padding is at the end.
            let stored = (total / 16).saturating_sub(format.window as usize / 16);
            let used = cache.layout(0).unwrap().used_bytes();
            let record = cache.layout(0).unwrap().record;
            let records = own[..stored].iter().flat_map(|&page| {
                let after = &after;
                (0..2).flat_map(move |head| after[page * bytes + head * record..][..used].to_vec())
            });
            let records: Vec<u8> = records.collect();
            match &seen {
                None => seen = Some((records, numbers)),
                Some((expected, stored)) => {
                    assert!(*expected == records, "{name}: other bytes in pieces of {pieces:?}");
                    let same = stored.iter().zip(&numbers).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{name}: other numbers in pieces of {} tokens", pieces[0]);
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_done_is_refused_before_anything_is_written() {
    let (device, shape) = (device(), shape(16));
    let mut cache = KvCache::new(Arc::clone(&device), shape, &["int4-token".parse().unwrap()], 3, 2).unwrap();
    let mut rng = fastrand::Rng::with_seed(3);
    let (k, v) = (row(&shape, &mut rng, 49), row(&shape, &mut rng, 49));
    let (a, b) = (cache.open().unwrap(), cache.open().unwrap());
    assert!(cache.open().unwrap_err().to_string().contains("2 requests are open"));
    append(&mut cache, &*device, a, &k, &v, &[32]);
    let before = pool_bytes(&*device, &cache, 0);
    let error = cache.grow(&[(a, 1), (b, 1)]).unwrap_err().to_string();
    assert!(error.contains("the cache is full") && error.contains("1 of 3"), "{error}");
    // The step did not begin: the rows of the last one still count, and too few bytes for them are refused.
    let small = upload(&*device, &k[..64]);
    assert!(cache.append(0, small.view(), small.view()).unwrap_err().to_string().contains("the step's rows take"));
    assert!(cache.append(1, small.view(), small.view()).is_err());
    assert!(cache.attend(0, small.view(), small.view(), &AttendOptions::causal(1.0)).is_err());
    assert!(pool_bytes(&*device, &cache, 0) == before);
    assert_eq!((cache.pages().tokens(a).unwrap(), cache.pages().tokens(b).unwrap()), (32, 0));
    cache.close(a).unwrap();
    assert!(cache.close(a).unwrap_err().to_string().contains("not open"));
    append(&mut cache, &*device, b, &k, &v, &[48]);
    cache.pages().check().unwrap();
    assert_eq!(cache.pages().free(), 0);
    let windowed = "int8-channel.int8-token+32".parse().unwrap();
    let mut cache = KvCache::new(Arc::clone(&device), shape, &[windowed], 8, 1).unwrap();
    let id = cache.open().unwrap();
    append(&mut cache, &*device, id, &k, &v, &[49]);
    assert!(cache.truncate(id, 31).unwrap_err().to_string().contains("f16 window starts at token 32"));
    cache.truncate(id, 33).unwrap();
}

/// A request as a plain cache has it.
struct Plain {
    id: RequestId,
    k: Vec<f32>,
    v: Vec<f32>,
}

/// Attention in f64 over plain numbers, and how far off rounding of keys and values (relative to a token's or a head's
/// largest number) may take it.
fn plain_attention(
    shape: &KvShape,
    plain: &Plain,
    q: &[f32],
    head: usize,
    scale: f64,
    steps: (f64, f64),
) -> Vec<(f64, f64)> {
    let (per, kv) = (shape.kv_heads * shape.k_dim, head / (shape.heads / shape.kv_heads));
    let tokens = plain.k.len() / per;
    let line = |list: &[f32], t: usize| -> Vec<f64> {
        list[t * per + kv * shape.k_dim..][..shape.k_dim].iter().map(|&x| x as f64).collect()
    };
    let top = |xs: &[f64]| {
        let (low, high) = xs.iter().fold((f64::MAX, f64::MIN), |(l, h), &x| (l.min(x), h.max(x)));
        // Asymmetric ranges are no wider than twice the largest magnitude.
        (high - low).max(high.abs()).max(low.abs())
    };
    let mut scores = Vec::new();
    let (mut slack, mut value_error) = (0.0f64, 0.0f64);
    for t in 0..tokens {
        let (k, v) = (line(&plain.k, t), line(&plain.v, t));
        scores.push(k.iter().zip(q).map(|(k, &q)| k * q as f64).sum::<f64>() * scale);
        let size: f64 = q.iter().map(|&q| (q as f64).abs()).sum();
        slack = slack.max(size * top(&k) * steps.0 * scale);
        value_error = value_error.max(top(&v) * steps.1);
    }
    let most = scores.iter().fold(f64::MIN, |a, &s| a.max(s));
    let below: f64 = scores.iter().map(|s| (s - most).exp()).sum();
    (0..shape.v_dim)
        .map(|c| {
            let (mut sum, mut size) = (0.0, 0.0);
            for (t, s) in scores.iter().enumerate() {
                let v = plain.v[t * per + kv * shape.k_dim + c] as f64;
                sum += (s - most).exp() / below * v;
                size += (s - most).exp() / below * v.abs();
            }
            let weight = (2.0 * slack).exp_m1() + 1e-5;
            (sum, weight * (size + value_error) * (1.0 + weight) + value_error + 1e-5)
        })
        .collect()
}

#[test]
fn a_hundred_thousand_random_steps_beside_a_plain_cache() {
    let (device, shape) = (device(), shape(16));
    let total_pages = 40;
    // Half a step of a code, of the largest number of a token and head: 127 and 15 steps, with scales up to 1/128 too large.
    let formats = [("int8-token", 0.504 / 127.0), ("int4-token-asym+16", 0.504 / 15.0)];
    let list: Vec<KvFormat> = formats.iter().map(|(name, _)| name.parse().unwrap()).collect();
    let mut cache = KvCache::new(Arc::clone(&device), shape, &list, total_pages, 8).unwrap();
    let mut rng = fastrand::Rng::with_seed(2026);
    let mut plain: Vec<Plain> = Vec::new();
    let scale = 1.0 / (shape.k_dim as f32).sqrt();
    let (mut steps, mut full, mut compared, mut worst) = (0u64, 0, 0, 0.0f64);
    let (mut buffers, per) = (Vec::new(), shape.kv_heads * shape.k_dim);
    for _ in 0..4 {
        buffers.push(device.allocate(64 * shape.heads * shape.k_dim * 4).unwrap());
    }
    let options = AttendOptions { sight: Sight::All, ..AttendOptions::causal(scale) };
    while steps < 100_000 {
        match rng.u8(..20) {
            0 if plain.len() < 8 => {
                plain.push(Plain { id: cache.open().unwrap(), k: Vec::new(), v: Vec::new() });
                steps += 1;
            }
            1 if !plain.is_empty() => {
                let gone = plain.swap_remove(rng.usize(..plain.len()));
                cache.close(gone.id).unwrap();
                steps += 1;
            }
            2 if !plain.is_empty() => {
                // A speculation that failed.
                let index = rng.usize(..plain.len());
                let request = &mut plain[index];
                let tokens = request.k.len() / per;
                let keep = tokens - rng.usize(0..=tokens.min(3));
                if cache.truncate(request.id, keep).is_ok() {
                    request.k.truncate(keep * per);
                    request.v.truncate(keep * per);
                }
                steps += 1;
            }
            _ => {
                let chosen: Vec<usize> = (0..plain.len()).filter(|_| rng.bool()).collect();
                let step: Vec<(RequestId, usize)> =
                    chosen.iter().map(|&i| (plain[i].id, if rng.u8(..8) == 0 { rng.usize(0..7) } else { 1 })).collect();
                steps += 1;
                if cache.grow(&step).is_err() {
                    full += 1;
                    if let Some(index) = (0..plain.len()).max_by_key(|&i| plain[i].k.len()) {
                        let gone = plain.swap_remove(index);
                        cache.close(gone.id).unwrap();
                    }
                    continue;
                }
                let rows: usize = step.iter().map(|step| step.1).sum();
                if rows == 0 {
                    continue;
                }
                let (k, v) = (row(&shape, &mut rng, rows), row(&shape, &mut rng, rows));
                for (buffer, numbers) in buffers.iter().zip([&k, &v]) {
                    let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
                    device.upload(buffer, 0, &bytes).unwrap();
                }
                let mut first = 0;
                for (&i, &(_, count)) in chosen.iter().zip(&step) {
                    plain[i].k.extend(&k[first * per..(first + count) * per]);
                    plain[i].v.extend(&v[first * per..(first + count) * per]);
                    first += count;
                }
                let layers = list.len();
                for layer in 0..layers {
                    cache.append(layer, buffers[0].view(), buffers[1].view()).unwrap();
                    steps += step.len() as u64;
                }
                if rng.u8(..4) != 0 {
                    continue;
                }
                let q: Vec<f32> = (0..rows * shape.heads * shape.k_dim).map(|_| rng.f32() * 2.0 - 1.0).collect();
                let bytes: Vec<u8> = q.iter().flat_map(|x| x.to_le_bytes()).collect();
                device.upload(&buffers[2], 0, &bytes).unwrap();
                for (layer, &(name, half)) in formats.iter().enumerate() {
                    cache.attend(layer, buffers[2].view(), buffers[3].view(), &options).unwrap();
                    steps += step.len() as u64;
                    let y = download(&*device, &buffers[3], rows * shape.heads * shape.v_dim);
                    // The last row of one request, one head of it.
                    let which = rng.usize(..chosen.len());
                    if step[which].1 == 0 {
                        continue;
                    }
                    let line = step[..=which].iter().map(|step| step.1).sum::<usize>() - 1;
                    let head = rng.usize(..shape.heads);
                    let at = line * shape.heads + head;
                    let expected = plain_attention(
                        &shape,
                        &plain[chosen[which]],
                        &q[at * 32..][..32],
                        head,
                        scale as f64,
                        (half, half),
                    );
                    for (c, (value, bound)) in expected.into_iter().enumerate() {
                        let error = (y[at * 32 + c] as f64 - value).abs();
                        worst = worst.max(error / bound);
                        assert!(error <= bound, "{name}, step {steps}: {} and {value}, bound {bound}", y[at * 32 + c]);
                    }
                    compared += 1;
                }
            }
        }
    }
    for request in plain {
        cache.close(request.id).unwrap();
    }
    cache.pages().check().unwrap();
    assert_eq!(cache.pages().free(), total_pages, "a page has leaked");
    println!(
        "{steps} appends, frees and attends; full {full} times; {compared} outputs compared, worst {worst:.3} of the bound"
    );
    assert!(full > 10 && compared > 1000, "full {full} times, {compared} compared");
}
