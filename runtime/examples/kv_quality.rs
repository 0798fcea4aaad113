//! How far attention over a quantized KV cache drifts from attention over f64, over lengths of context.
//!
//! `cargo run --release -p bitsmith-runtime --example kv_quality -- [most tokens] [plot.svg]`
//!
//! Keys have channels of large numbers with a mean of their own, as those of real models have, and so have values, less so.
//! The number is `|y - exact| / |exact|` over the outputs of 8 query heads at the newest token, keys and values exact in f16.
//! Formats of integers come twice: summed up as floats, and as integers (`op::kv::Arithmetic`); FP8 as floats and as bf16.
//! Formats with scales per head are calibrated on the first 1024 tokens.

use bitsmith_compiler::Result;
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::format::kv::{KvCode, KvCodes, KvFormat};
use bitsmith_compiler::op::kv::{Arithmetic, KvStatics};
use bitsmith_runtime::kv::{AttendOptions, KvCache, KvShape};
use bitsmith_runtime::{Buffer, Device, cpu};
use std::sync::Arc;

const FORMATS: [&str; 11] = [
    "f16",
    "fp8e4m3-head",
    "fp8e4m3-token",
    "int8-head",
    "int8-token",
    "int8-group32",
    "int4-token",
    "int4-token-asym",
    "int4-group32-asym",
    "int4-group32-dq",
    "int4-channel-asym.int4-token-asym+64",
];
const SHAPE: KvShape = KvShape { heads: 8, kv_heads: 2, k_dim: 128, v_dim: 128, page: 64, dtype: DType::F16 };

/// Normal numbers.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

/// f16 numbers, as bits and exactly.
fn f16(x: f64) -> (u16, f32) {
    let bits = DType::F16.encode(x);
    (bits as u16, DType::F16.decode(bits) as f32)
}

/// Rows `[token][kv head][channel]`; every 16th channel is an outlier of so large a spread, around a mean.
fn rows(random: &mut Random, tokens: usize, outlier: f64, bits: &mut Vec<u8>, numbers: &mut Vec<f32>) {
    for index in 0..tokens * SHAPE.kv_heads * SHAPE.k_dim {
        let large = index % 16 == 7;
        let x = random.normal() * if large { 0.3 * outlier } else { 1.0 } + if large { outlier } else { 0.0 };
        let (code, number) = f16(x);
        bits.extend(code.to_le_bytes());
        numbers.push(number);
    }
}

fn exact(k: &[f32], v: &[f32], q: &[f32], tokens: usize) -> Vec<f64> {
    let per = SHAPE.kv_heads * SHAPE.k_dim;
    let mut out = Vec::new();
    for head in 0..SHAPE.heads {
        let kv = head / (SHAPE.heads / SHAPE.kv_heads) * SHAPE.k_dim;
        let q = &q[head * SHAPE.k_dim..][..SHAPE.k_dim];
        let scores: Vec<f64> = (0..tokens)
            .map(|t| {
                let k = &k[t * per + kv..][..SHAPE.k_dim];
                k.iter().zip(q).map(|(&k, &q)| k as f64 * q as f64).sum::<f64>() / (SHAPE.k_dim as f64).sqrt()
            })
            .collect();
        let top = scores.iter().fold(f64::MIN, |a, &s| a.max(s));
        let below: f64 = scores.iter().map(|s| (s - top).exp()).sum();
        let mut sums = vec![0.0; SHAPE.v_dim];
        for (t, s) in scores.iter().enumerate() {
            let p = (s - top).exp() / below;
            for (sum, &v) in sums.iter_mut().zip(&v[t * per + kv..][..SHAPE.v_dim]) {
                *sum += p * v as f64;
            }
        }
        out.extend(sums);
    }
    out
}

fn statics(codes: [&KvCodes; 2], data: [&[f32]; 2]) -> Vec<KvStatics> {
    let per = SHAPE.kv_heads * SHAPE.k_dim;
    let of = |side: usize, head: usize| {
        let numbers = data[side].chunks(per).take(1024).flat_map(|row| &row[head * SHAPE.k_dim..][..SHAPE.k_dim]);
        let (low, high) = numbers.fold((0.0f32, 0.0f32), |(low, high), &x| (low.min(x), high.max(x)));
        let top = codes[side].top();
        if codes[side].asymmetric { ((high - low) / top, low) } else { (high.max(-low) / top, 0.0) }
    };
    (0..SHAPE.kv_heads).map(|head| KvStatics { k: of(0, head), v: of(1, head) }).collect()
}

fn upload(device: &dyn Device, bytes: &[u8]) -> Result<Buffer> {
    let buffer = device.allocate(bytes.len())?;
    device.upload(&buffer, 0, bytes)?;
    Ok(buffer)
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let most: usize = args.next().and_then(|text| text.parse().ok()).unwrap_or(16384);
    let svg = args.next();
    let device: Arc<dyn Device> = Arc::new(cpu::CpuDevice::new(cpu::available_threads())?);
    let lengths: Vec<usize> = std::iter::successors(Some(1024), |n| Some(n * 2)).take_while(|&n| n <= most).collect();
    let mut random = Random(2026);
    let (mut k, mut v) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    rows(&mut random, most, 8.0, &mut k.0, &mut k.1);
    rows(&mut random, most, 2.0, &mut v.0, &mut v.1);
    let queries: Vec<(u16, f32)> = (0..SHAPE.heads * SHAPE.k_dim).map(|_| f16(random.normal())).collect();
    let q: Vec<f32> = queries.iter().map(|q| q.1).collect();
    let q_bytes: Vec<u8> = queries.iter().flat_map(|q| q.0.to_le_bytes()).collect();
    let expected: Vec<Vec<f64>> = lengths.iter().map(|&n| exact(&k.1, &v.1, &q, n)).collect();
    print!("{:48}", "format");
    lengths.iter().for_each(|n| print!("{:>9}", format!("{}k", n / 1024)));
    println!();
    let mut curves = Vec::new();
    let all = [Arithmetic::Float, Arithmetic::Integer, Arithmetic::Bf16];
    for (name, arithmetic) in FORMATS.into_iter().flat_map(|name| all.map(|arithmetic| (name, arithmetic))) {
        let format: KvFormat = name.parse()?;
        let codes = [format.k.code, format.v.code];
        let integers = |code: &KvCode| matches!(code, KvCode::Int8 | KvCode::Int4);
        let how = match arithmetic {
            Arithmetic::Integer if codes.iter().any(integers) => ", integers",
            // Where the device does not multiply them it is floats once more.
            Arithmetic::Bf16 if !codes.iter().any(|code| integers(code) || code.is_plain()) => ", bf16",
            Arithmetic::Float => "",
            _ => continue,
        };
        let mut cache = KvCache::new(Arc::clone(&device), SHAPE, &[format], most / SHAPE.page + 1, 1)?;
        if format.k.is_static() {
            cache.set_scales(0, &statics([&format.k, &format.v], [&k.1, &v.1]))?;
        }
        let id = cache.open()?;
        let (mut done, mut errors) = (0, Vec::new());
        let row = 2 * SHAPE.kv_heads * SHAPE.k_dim;
        let y = device.allocate(2 * SHAPE.heads * SHAPE.v_dim)?;
        let q = upload(&*device, &q_bytes)?;
        for (&length, expected) in lengths.iter().zip(&expected) {
            // The last token comes alone, so that the step has one query.
            for count in [length - 1 - done, 1] {
                cache.grow(&[(id, count)])?;
                let range = done * row..(done + count) * row;
                let (k, v) = (upload(&*device, &k.0[range.clone()])?, upload(&*device, &v.0[range])?);
                cache.append(0, k.view(), v.view())?;
                done += count;
            }
            let options = AttendOptions::causal(1.0 / (SHAPE.k_dim as f32).sqrt());
            let options = AttendOptions { arithmetic: Some(arithmetic), ..options };
            cache.attend(0, q.view(), y.view(), &options)?;
            let mut bytes = vec![0; y.bytes()];
            device.download(&y, 0, &mut bytes)?;
            let got = bytes.chunks(2).map(|c| DType::F16.decode(u16::from_le_bytes([c[0], c[1]]) as u32));
            let (mut off, mut size) = (0.0, 0.0);
            for (got, &exact) in got.zip(expected) {
                off += (got - exact) * (got - exact);
                size += exact * exact;
            }
            errors.push((off / size).sqrt());
        }
        let name = format!("{name}{how}");
        print!("{name:48}");
        errors.iter().for_each(|error| print!("{error:>9.5}"));
        println!();
        curves.push((name, errors));
    }
    if let Some(path) = svg {
        let temporary = format!("{path}.part");
        let done =
            std::fs::write(&temporary, picture(&lengths, &curves)).and_then(|()| std::fs::rename(&temporary, &path));
        done.map_err(|error| bitsmith_compiler::Error::invalid(format!("{path} cannot be written: {error}")))?;
    }
    Ok(())
}

/// Both axes are logarithmic.
fn picture(lengths: &[usize], curves: &[(String, Vec<f64>)]) -> String {
    let (left, top, width, height) = (60.0, 30.0, 520.0, 380.0);
    let all = || curves.iter().flat_map(|curve| curve.1.iter().copied()).filter(|&x| x > 0.0);
    let (low, high) = (all().fold(1.0, f64::min).log10().floor(), all().fold(1e-6, f64::max).log10().ceil());
    let x = |i: usize| left + width * i as f64 / (lengths.len().max(2) - 1) as f64;
    let y = |e: f64| top + height * (high - e.max(1e-12).log10()) / (high - low);
    let mut body = String::new();
    for (i, n) in lengths.iter().enumerate() {
        body += &format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}k</text>",
            x(i),
            top + height + 18.0,
            n / 1024
        );
    }
    for power in low as i32..=high as i32 {
        let at = y(10f64.powi(power));
        body += &format!("<line x1=\"{left}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>", left + width);
        body += &format!("<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">1e{power}</text>", left - 6.0, at + 4.0);
    }
    for (c, (name, errors)) in curves.iter().enumerate() {
        let color = format!("hsl({}, 65%, 42%)", c * 360 / curves.len());
        let points: Vec<String> = errors.iter().enumerate().map(|(i, &e)| format!("{:.1},{:.1}", x(i), y(e))).collect();
        body += &format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.8\"/>",
            points.join(" ")
        );
        let line = top + 16.0 * c as f64 + 8.0;
        body += &format!("<text x=\"{}\" y=\"{line:.1}\" fill=\"{color}\">{name}</text>", left + width + 14.0);
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 880 450\" font-family=\"sans-serif\" font-size=\"12\">\
         <rect width=\"880\" height=\"450\" fill=\"white\"/><text x=\"{left}\" y=\"18\" font-size=\"14\">Error of attention outputs \
         over tokens of context, relative to f64</text>{body}</svg>\n"
    )
}
