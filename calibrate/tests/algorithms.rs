//! Quantizers against other tools' golden vectors: AWQ and SmoothQuant in numbers, GPTQ up to rounding.

use crate::support;
use bitsmith_calibrate::file::SafeTensorsFile;
use bitsmith_calibrate::model::dequantize;
use bitsmith_calibrate::quantize::{Stats, awq, gptq::Gptq, smooth};
use bitsmith_compiler::format::Format;
use std::path::Path;

struct Golden(SafeTensorsFile);

impl Golden {
    fn open(path: &Path) -> Golden {
        Golden(SafeTensorsFile::open(path).unwrap())
    }

    fn f32s(&self, name: &str) -> Vec<f32> {
        let tensor = self.0.tensor(name).unwrap_or_else(|| panic!("no {name}"));
        self.0.data(tensor).as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
    }

    fn f64s(&self, name: &str) -> Vec<f64> {
        let tensor = self.0.tensor(name).unwrap();
        self.0.data(tensor).as_chunks::<8>().0.iter().map(|&b| f64::from_le_bytes(b)).collect()
    }
}

fn close(a: &[f32], b: &[f32], relative: f32, what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= relative * b.abs().max(1e-6), "{what} at {i}: {a} is not {b}");
    }
}

/// A golden file of AutoAWQ: weights, inputs, statistics of both, the loss at each ratio, and the clip on the scaled weights.
struct AwqCase {
    golden: Golden,
    w: Vec<f32>,
    stats: Stats,
    format: Format,
}

const AWQ: (usize, usize) = (64, 128);

impl AwqCase {
    fn open(data: &Path, file: &str, format: &str) -> AwqCase {
        let golden = Golden::open(&data.join(file));
        let mut stats = Stats::new(AWQ.1, true);
        stats.add(&golden.f32s("X"));
        close(&stats.mean_abs(), &golden.f32s("x_mean"), 1e-5, "mean inputs");
        AwqCase { w: golden.f32s("W"), golden, stats, format: format.parse().unwrap() }
    }

    fn best(&self) -> usize {
        self.golden.0.data(self.golden.0.tensor("best_ratio_index").unwrap())[0] as usize
    }

    /// The clip is searched on the scaled weights, with inputs divided.
    fn check_clip(mut self, scales: &[f32], most: usize) {
        let mut scaled = self.w;
        smooth::scale_columns(&mut scaled, scales);
        self.stats.divide(scales);
        let clip = awq::clip(&scaled, AWQ.0, AWQ.1, &self.format, &self.stats).unwrap();
        let expected = self.golden.f32s("clip_max_on_scaled");
        let differ = clip.iter().zip(&expected).filter(|(a, b)| (*a - *b).abs() > 1e-3 * b.abs()).count();
        // Squared error of what each group of 64 adds to the outputs.
        let moments = self.stats.full_moments();
        let error = |clip: &[f32]| -> f64 {
            let cut = awq::clamped(&scaled, AWQ.1, 64, clip);
            let values = dequantize(&self.format.encode_nearest(&cut, AWQ.0, AWQ.1, None).unwrap());
            let d: Vec<f32> = values.iter().zip(&scaled).map(|(q, w)| q - w).collect();
            let of = |row: usize, group: usize| -> f64 {
                let range = group * 64..group * 64 + 64;
                let pairs = range.clone().flat_map(|a| range.clone().map(move |b| (a, b)));
                pairs.map(|(a, b)| (moments[a * AWQ.1 + b] * d[row * AWQ.1 + a] * d[row * AWQ.1 + b]) as f64).sum()
            };
            (0..AWQ.0).flat_map(|row| [of(row, 0), of(row, 1)]).sum()
        };
        let (ours, theirs) = (error(&clip), error(&expected));
        println!("{differ} of {} clips differ; error {ours:.4}, AutoAWQ's clips {theirs:.4}", clip.len());
        // Where both ends of a group with zeros are cut, they fall halfway between two codes, and a last bit decides.
        assert!(differ <= most, "{differ} of {} clips differ", clip.len());
        assert!(ours <= 1.0001 * theirs, "{ours} against {theirs}");
    }
}

#[test]
fn awq_scale_and_clip_search_reproduce_autoawq() {
    let Some(data) = support::data("golden/algo", "awq_scale_and_clip_search_reproduce_autoawq") else { return };
    let case = AwqCase::open(&data, "awq_g64_sym_xonly.safetensors", "int4-g64-f32");
    let found = awq::search_rule(&[(&case.w, AWQ.0, case.format)], &case.stats, false, None).unwrap();
    assert_eq!(found.best, case.best());
    for (i, (a, b)) in found.losses.iter().zip(case.golden.f64s("losses")).enumerate() {
        assert!((a / b - 1.0).abs() < 1e-3, "loss {i} is {a}, not {b}");
    }
    close(&found.scales, &case.golden.f32s("best_scales"), 1e-4, "scales");
    case.check_clip(&found.scales, 2);
}

/// Where weights enter the rule (duo), ratio 0 scales by more than 1, and that shows what AutoAWQ does on a CPU: the weights
/// it saves to start each ratio from share memory with those that it scales in place (`v.cpu()` copies nothing there), so
/// that every ratio but the first starts from weights scaled already. All twenty of its losses come out when that is done
/// to ours; the search itself starts from the weights as they are, and finds scales of half the loss.
#[test]
fn awq_duo_rule_reproduces_autoawq_and_its_shared_memory() {
    let Some(data) = support::data("golden/algo", "awq_duo_rule_reproduces_autoawq_and_its_shared_memory") else {
        return;
    };
    let case = AwqCase::open(&data, "awq_g64_zp_duo.safetensors", "int4-g64-asym-f32");
    let shared = [(&case.w[..], AWQ.0, case.format)];
    let (x_mean, w_mean) = (case.stats.mean_abs(), awq::weight_means(&shared, AWQ.1));
    close(&w_mean, &case.golden.f32s("w_mean"), 1e-5, "mean weights");
    let first = awq::scales(&x_mean, Some(&w_mean), 0.0);
    close(&first, &case.golden.f32s("best_scales"), 1e-4, "scales");
    let mut spoiled = case.w.clone();
    smooth::scale_columns(&mut spoiled, &first);
    let moments = case.stats.full_moments();
    let expected = case.golden.f64s("losses");
    for (step, expected) in expected.iter().enumerate() {
        let scales = awq::scales(&x_mean, Some(&w_mean), step as f32 / 20.0);
        let mut scaled = if step == 0 { case.w.clone() } else { spoiled.clone() };
        smooth::scale_columns(&mut scaled, &scales);
        let values = dequantize(&case.format.encode_nearest(&scaled, AWQ.0, AWQ.1, None).unwrap());
        let d: Vec<f32> = values.iter().enumerate().map(|(i, q)| q / scales[i % AWQ.1] - case.w[i]).collect();
        let loss = awq::quadratic(&d, &moments, AWQ.0, AWQ.1) / (case.stats.moment_rows() * AWQ.0 as f64);
        assert!((loss / expected - 1.0).abs() < 1e-3, "loss {step} is {loss}, not {expected}");
    }
    assert_eq!(case.best(), 0);
    let found = awq::search_rule(&shared, &case.stats, true, None).unwrap();
    assert!((found.losses[0] / expected[0] - 1.0).abs() < 1e-3);
    assert!(found.losses[found.best] < 0.6 * expected[0], "{:?}", found.losses);
    case.check_clip(&first, 16);
}

#[test]
fn smoothquant_scales_are_the_formula() {
    let Some(data) = support::data("golden/algo", "smoothquant_scales_are_the_formula") else { return };
    for (file, alpha) in [("smoothquant_a50.safetensors", 0.5), ("smoothquant_a75.safetensors", 0.75)] {
        let golden = Golden::open(&data.join(file));
        let (w1, w2) = (golden.f32s("W1"), golden.f32s("W2"));
        let columns = smooth::column_max([&w1[..], &w2[..]], 128);
        let s = smooth::scales(&golden.f32s("act_absmax"), &columns, alpha);
        close(&s, &golden.f32s("scales"), 1e-5, file);
        let mut out = w1;
        smooth::scale_columns(&mut out, &s);
        close(&out, &golden.f32s("W1_out"), 1e-5, file);
        let ln: Vec<f32> = golden.f32s("ln").iter().zip(&s).map(|(g, s)| g / s).collect();
        close(&ln, &golden.f32s("ln_out"), 1e-5, file);
    }
}

/// Every code is AutoGPTQ's. Sums of floats may be taken in another order, so that a weight on the border between two codes
/// could fall on its other side: few may differ, and the loss that GPTQ minimises hardly.
#[test]
fn gptq_comes_to_the_weights_of_autogptq() {
    let Some(data) = support::data("golden/packing", "gptq_comes_to_the_weights_of_autogptq") else { return };
    let shared = Golden::open(&data.join("gptq_shared.safetensors"));
    let (w, x, n, k) = (shared.f32s("W"), shared.f32s("X"), 64, 128);
    let mut stats = Stats::new(k, true);
    stats.add(&x);
    let moments = stats.full_moments();
    let loss = |q: &[f32]| {
        let d: Vec<f32> = q.iter().zip(&w).map(|(a, b)| a - b).collect();
        awq::quadratic(&d, &moments, n, k)
    };
    for (file, format) in [
        ("gptq_b8_sym_g64_noact.safetensors", "gptq-int8-g64-f32"),
        ("gptq_b4_sym_g64_noact.safetensors", "gptq-int4-g64-f32"),
        ("gptq_b4_asym_g32_noact.safetensors", "gptq-int4-g32-asym-f32"),
        ("gptq_b3_sym_g32_noact.safetensors", "gptq-int3-g32-f32"),
        ("gptq_b2_asym_g64_noact.safetensors", "gptq-int2-g64-asym-f32"),
    ] {
        let expected = Golden::open(&data.join(file)).f32s("Wq");
        let format: Format = format.parse().unwrap();
        let found = Gptq::default().quantize(&w, n, k, &format, &stats).unwrap();
        assert_eq!(found.damping, Some(0.01));
        let values = dequantize(&found.quantized);
        let nearest = dequantize(&format.encode_nearest(&w, n, k, None).unwrap());
        let same = values.iter().zip(&expected).filter(|(a, b)| (*a - *b).abs() < 1e-4).count();
        let (ours, theirs, rtn) = (loss(&values), loss(&expected), loss(&nearest));
        println!("{file}: loss {ours:.4}, AutoGPTQ {theirs:.4}, nearest {rtn:.4}; {same} of {} weights equal", n * k);
        assert!((ours / theirs - 1.0).abs() < 0.002, "{file}: {ours} against {theirs}");
        assert!(same as f64 > 0.995 * (n * k) as f64, "{file}: {same} weights equal");
        assert!(ours < 0.95 * rtn, "{file}: {ours} against {rtn} of rounding to nearest");
    }
}

#[test]
fn act_order_and_fixed_scales_lower_the_loss_too() {
    let mut rng = fastrand::Rng::with_seed(9);
    let (n, k) = (32, 256);
    let w: Vec<f32> = (0..n * k).map(|_| rng.f32() - 0.5).collect();
    let mut stats = Stats::new(k, true);
    // Inputs with a common part and some large channels.
    for _ in 0..8 {
        let rows: Vec<f32> = (0..64)
            .flat_map(|_| {
                let common = rng.f32() - 0.5;
                (0..k).map(|c| (rng.f32() - 0.5 + common) * if c % 37 == 0 { 8.0 } else { 1.0 }).collect::<Vec<_>>()
            })
            .collect();
        stats.add(&rows);
    }
    let moments = stats.full_moments();
    let loss = |q: &bitsmith_compiler::format::Quantized| {
        let d: Vec<f32> = dequantize(q).iter().zip(&w).map(|(a, b)| a - b).collect();
        awq::quadratic(&d, &moments, n, k)
    };
    for name in
        ["ct-int4-g64", "int4-channel", "int3-g32-asym", "nvfp4", "nf4-dq", "q4_k", "fp8e4m3-block128", "ternary-g128"]
    {
        let format: Format = name.parse().unwrap();
        let nearest = loss(&format.encode_nearest(&w, n, k, None).unwrap());
        for act_order in [false, true] {
            let how = Gptq { act_order, ..Gptq::default() };
            let found = how.quantize(&w, n, k, &format, &stats).unwrap();
            found.quantized.check().unwrap();
            assert!(
                loss(&found.quantized) < nearest,
                "{name}, act order {act_order}: {} {nearest}",
                loss(&found.quantized)
            );
        }
    }
}

#[test]
fn moments_that_cannot_be_inverted_fall_back_to_rounding() {
    let (n, k) = (4, 32);
    let w: Vec<f32> = (0..n * k).map(|i| (i as f32 * 0.7).sin()).collect();
    let mut stats = Stats::new(k, true);
    stats.add(&vec![1.0; k]);
    if let Some(moments) = &mut stats.moments {
        moments[5 * k + 2] = f32::NAN;
    }
    let format: Format = "int4-g32".parse().unwrap();
    let found = Gptq::default().quantize(&w, n, k, &format, &stats).unwrap();
    assert_eq!(found.damping, None);
    assert_eq!(found.quantized, format.encode_nearest(&w, n, k, None).unwrap());
}

/// KIVI's own codes of random keys (per channel over 32 tokens) and values (groups of 32 channels). Ours have scales rounded
/// up and offsets rounded down to bf16, KIVI's are exact: a scale is wider by at most two steps of bf16 (the offset's step
/// may widen it too), a code differs by at most one, and most are the same; numbers are within a step of what went in.
#[test]
fn kivi_codes_are_those_of_kivi_up_to_bf16_scales() {
    use bitsmith_compiler::format::kv::{KvLayout, Side};
    use bitsmith_compiler::op::kv::Pool;
    let name = "kivi_codes_are_those_of_kivi_up_to_bf16_scales";
    let Some(data) = support::data("golden/packing/kivi_b4.safetensors", name) else { return };
    let golden = Golden::open(&data);
    let ints = |name: &str| -> Vec<u32> {
        let tensor = golden.0.tensor(name).unwrap();
        golden.0.data(tensor).as_chunks::<4>().0.iter().map(|&b| u32::from_le_bytes(b)).collect()
    };
    let (heads, tokens, dim) = (2, 64, 32);
    let format = bitsmith_calibrate::kv::format("int4-kivi").unwrap().unwrap();
    let layout = KvLayout::new(format, 32, heads, dim, dim).unwrap();
    let mut bytes = vec![0; 2 * layout.page_bytes()];
    let mut pool = Pool { layout, statics: &[], bytes: &mut bytes };
    let (k, v) = (golden.f32s("k"), golden.f32s("v"));
    let row = |x: &[f32], head: usize, token: usize| x[(head * tokens + token) * dim..][..dim].to_vec();
    for (page, head) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let rows: Vec<Vec<f32>> = (0..32).map(|token| row(&k, head, page * 32 + token)).collect();
        pool.store_page(Side::K, page, head, &rows);
        (0..32).for_each(|token| pool.store_token(Side::V, page, head, token, &row(&v, head, page * 32 + token)));
    }
    let (k_codes, v_codes) = (ints("k_code"), ints("v_code"));
    let scales = (golden.f32s("k_scale"), golden.f32s("v_scale"));
    let (mut same, mut count) = (0, 0);
    for (head, token, c) in (0..heads).flat_map(|h| (0..tokens).flat_map(move |t| (0..dim).map(move |c| (h, t, c)))) {
        let (page, at) = (token / 32, token % 32);
        let sides = [
            (
                Side::K,
                k_codes[(head * 8 + token / 8) * dim + c] >> (4 * (token % 8)),
                scales.0[(head * 2 + page) * dim + c],
                &k,
            ),
            (
                Side::V,
                v_codes[(head * tokens + token) * 4 + c / 8] >> (4 * (c % 8)),
                scales.1[head * tokens + token],
                &v,
            ),
        ];
        for (side, theirs, scale, x) in sides {
            let ours = pool.code(side, page, head, at, c);
            assert!(ours.abs_diff(theirs & 15) <= 1, "{side:?} {head} {token} {c}: {ours}, theirs {}", theirs & 15);
            same += usize::from(ours == theirs & 15);
            count += 1;
            let wider = pool.scale(side, page, head, at, c).0 / scale;
            assert!((1.0 - 1e-5..1.02).contains(&wider), "{side:?} {head} {token} {c}: scale {wider} of theirs");
            let off = (pool.stored(side, page, head, at, c) - row(x, head, token)[c]).abs();
            assert!(off <= 0.52 * scale * wider, "{side:?} {head} {token} {c}: off by {off}, scale {scale}");
        }
    }
    println!("{same} of {count} codes are KIVI's");
    assert!(same as f64 > 0.9 * count as f64);
}
