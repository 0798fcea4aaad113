//! Quantized KV caches under the small model.

use super::{FLOATS, OWN};
use bitsmith_calibrate::engine::{Engine, KvCache, PagedCaches, Through, with_caches};
use bitsmith_calibrate::evaluate::{Windows, compare};
use bitsmith_calibrate::kv::{self, KvScales};

/// A cache that plays every call on two others, and holds one against the other.
struct Beside {
    kernels: Box<dyn KvCache>,
    dequantized: Box<dyn KvCache>,
    worst: std::sync::Arc<std::sync::Mutex<f32>>,
}

impl KvCache for Beside {
    fn tokens(&self) -> usize {
        self.kernels.tokens()
    }

    fn append(&mut self, keys: &[f32], values: &[f32]) -> bitsmith_compiler::Result<()> {
        self.kernels.append(keys, values)?;
        self.dequantized.append(keys, values)
    }

    fn attend(&mut self, queries: &[f32], m: usize) -> bitsmith_compiler::Result<Vec<f32>> {
        let (ours, exact) = (self.kernels.attend(queries, m)?, self.dequantized.attend(queries, m)?);
        let top = exact.iter().fold(0.0f32, |a, x| a.max(x.abs()));
        let off = ours.iter().zip(&exact).fold(0.0f32, |a, (x, y)| a.max((x - y).abs())) / top;
        let mut worst = self.worst.lock().unwrap();
        *worst = worst.max(off);
        Ok(ours)
    }
}

/// Attention kernels on codes against floats on the same codes, dequantized: each output of each layer, and the perplexity.
///
/// The bound of an output: kernel and reference add up at most 129 products in `f32`, of scores over 32 channels, with a
/// relative error of (129 + 32 + 8) 2^-24 = 1e-5 of the magnitudes that enter; these exceed the largest output by less than
/// 10 here, since a weighted mean of values that do not cancel is no smaller than that. So 1e-4 of the largest output. The
/// bound of the perplexity is twice that: the residual stream and with it the logits are off by no more than outputs are, and a
/// log-likelihood is the difference of two numbers made of logits.
#[test]
fn quantized_caches_run_within_their_bound() {
    let (own, windows, prompts) = &*OWN;
    let device = bitsmith_runtime::open("cpu:2").unwrap();
    let windows = Windows { list: windows.list[..6].to_vec(), ..windows.clone() };
    for (name, most) in [
        ("f16", 1e-4),
        ("int8-token-head", 2e-3),
        ("int8-tensor", 5e-3),
        ("int8-head", 5e-3),
        ("fp8-tensor", 1e-2),
        ("fp8-head", 1e-2),
        ("fp8-token-head", 1e-2),
        ("int4-head", 0.2),
        ("int4-token-head", 0.1),
        ("int4-group32-asym", 0.1),
        ("int4-kivi", 0.1),
        ("int4-channel-asym.int4-token-asym+64", 0.1),
    ] {
        let format = kv::format(name).unwrap().unwrap();
        let fixed = format.k.is_static() || format.v.is_static();
        let scales = fixed.then(|| kv::calibrate(own, prompts, &FLOATS, &format).unwrap());
        let make = |through| PagedCaches::new(device.clone(), format, through, 130, scales.clone()).unwrap();
        let (kernels, dequantized) = (make(Through::Kernels), make(Through::Dequantized));
        let worst = std::sync::Arc::new(std::sync::Mutex::new(0.0f32));
        let beside = |config: &_, layer: usize| -> bitsmith_compiler::Result<Box<dyn KvCache>> {
            Ok(Box::new(Beside {
                kernels: kernels.cache(config, layer)?,
                dequantized: dequantized.cache(config, layer)?,
                worst: worst.clone(),
            }))
        };
        let ours = compare((own, &FLOATS), (own, &FLOATS), &windows, &beside).unwrap();
        let exact =
            with_caches(Some(&dequantized), |cache| compare((own, &FLOATS), (own, &FLOATS), &windows, cache)).unwrap();
        let off = (ours.model.perplexity / exact.model.perplexity).ln().abs();
        let worst = *worst.lock().unwrap();
        println!(
            "{name:40} perplexity {:.5} ({:+.3} %), dequantized {:.5} (off {off:.1e}); outputs off by {worst:.1e} of the largest",
            ours.model.perplexity,
            100.0 * ours.increase,
            exact.model.perplexity
        );
        // Where sums are integers, queries are rounded to multiples of their largest over 32767. A score of s moves by up to
        // s / 65534 times that largest over the mean, and weights and outputs by as much as scores: 4 for the ratio and 6 for
        // the largest score come to this. Beside codes of 4 bits they have 7 bits, which makes 0.1 of it;
        // of the perplexity that is little next to what such codes change themselves. Beside FP8, queries and weights have the 8
        // bits of bf16 where processors multiply those; other codes of floats are summed up as floats.
        let (most_off, most_shift) = match name {
            _ if name.starts_with("int4") => (0.1, most / 100.0),
            _ if name.starts_with("int") => (4e-4, 2e-4),
            _ if name.starts_with("fp8") => (2e-2, most / 20.0),
            _ => (1e-4, 2e-4),
        };
        assert!(worst < most_off && off < most_shift, "{name}: outputs {worst:e}, perplexity {off:e}");
        assert!(ours.increase.abs() < most && ours.mean_divergence > 0.0, "{name}: {ours:?}");
    }
}

/// One token at a time gives what a whole prompt gives, and what cannot be is refused by name.
#[test]
fn quantized_caches_grow_and_refuse() {
    let (own, ..) = &*OWN;
    let device = bitsmith_runtime::open("cpu:2").unwrap();
    let format = kv::format("int8-token-head").unwrap().unwrap();
    let caches = PagedCaches::new(device.clone(), format, Through::Kernels, 40, None).unwrap();
    let engine = Engine::new(own, &FLOATS).unwrap();
    let ids: Vec<u32> = (0..40).map(|i| 3 + i * 7 % 100).collect();
    let run = |step: usize| -> Vec<f32> {
        let mut all = Vec::new();
        let mut list = engine.caches(&|config, layer| caches.cache(config, layer)).unwrap();
        for part in ids.chunks(step) {
            engine.forward(part, &mut list, part.len(), |_, logits| all.extend_from_slice(logits)).unwrap();
        }
        all
    };
    let (whole, one, some) = (run(40), run(1), run(7));
    for other in [&one, &some] {
        let worst = whole.iter().zip(other).fold(0.0f32, |a, (x, y)| a.max((x - y).abs()));
        // One row and many are summed up in another order, and outputs may be off by 4e-4 of the largest either way (see above). That
        // is enough for codes of later layers to be one more or less, which moves logits of up to 15 by thousandths; f16, whose codes
        // are finer, moves them by 6e-4.
        assert!(worst < 1e-2, "{worst}");
    }
    let mut cache = caches.cache(&own.config, 0).unwrap();
    let width = own.config.shape.kv_heads * own.config.shape.head_dim;
    cache.append(&vec![0.5; 64 * width], &vec![0.5; 64 * width]).unwrap();
    let more = cache.append(&vec![0.5; width], &vec![0.5; width]).unwrap_err().to_string();
    assert!(more.contains("65 tokens in a KV cache with pages for 64"), "{more}");
    assert!(cache.append(&[0.5], &[0.5]).is_err() && cache.attend(&[0.0], 1).is_err());
    let fixed = kv::format("fp8-head").unwrap().unwrap();
    let refused = |scales: Option<KvScales>| {
        PagedCaches::new(device.clone(), fixed, Through::Kernels, 40, scales).err().unwrap().to_string()
    };
    assert!(refused(None).contains("calibrate --kv fp8e4m3-head"));
    let other = KvScales { schema: 1, format: "int8-head".into(), layers: Vec::new() };
    assert!(refused(Some(other)).contains("scales for KV format int8-head"));
    let short = KvScales { schema: 1, format: "fp8e4m3-head".into(), layers: Vec::new() };
    let caches = PagedCaches::new(device.clone(), fixed, Through::Kernels, 40, Some(short)).unwrap();
    let error = caches.cache(&own.config, 0).unwrap().append(&vec![0.5; width], &vec![0.5; width]).unwrap_err();
    assert!(error.to_string().contains("KV scales of 0 layers"), "{error}");
}
