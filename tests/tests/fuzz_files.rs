//! Damaged model files: valid ones are mutated some hundred thousand times, and every reader must refuse or read.
//!
//! Always holds: no panic, no memory beyond a small multiple of the input, and what parses gives only data in bounds.
//! Cases come from fixed seeds, so a failure names a case that comes back.

use bitsmith_calibrate::file::{Array, Gguf, GgufType, GgufWriter, SafeTensorsFile, Value};
use bitsmith_calibrate::shapes::ModelShape;
use safetensors::tensor::{Dtype, TensorView, serialize};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

const GGUF_CASES: u64 = 60_000;
const SAFETENSORS_CASES: u64 = 40_000;
const SHARDED_CASES: u64 = 15_000;
const CONFIG_CASES: u64 = 25_000;

#[test]
fn gguf_mutants_are_refused_or_read() {
    let seeds = [gguf_seed(32), gguf_seed(128)];
    let read = drive(&seeds, GGUF_CASES, |bytes| {
        let Ok(file) = Gguf::parse(bytes, "mutant.gguf") else { return false };
        let tensors = file.tensors();
        assert!(tensors.iter().all(|tensor| file.data(tensor).len() == tensor.bytes));
        assert!(tensors.iter().all(|tensor| tensor.offset % file.alignment() == 0));
        let (from, to) = spans(tensors.iter().map(|tensor| (tensor.offset, tensor.offset + tensor.bytes)));
        assert!(from.iter().skip(1).zip(&to).all(|(next, end)| end <= next), "tensors share bytes");
        assert!(file.metadata().iter().all(|(key, _)| file.get(key).is_some()));
        true
    });
    assert!(
        read > 0 && read < GGUF_CASES,
        "{read} of {GGUF_CASES} were read: the mutations are too weak or too strong"
    );
}

#[test]
fn safetensors_mutants_are_refused_or_read() {
    let read = drive(&[safetensors_seed(&["a", "b.weight", "c"])], SAFETENSORS_CASES, |bytes| {
        let Ok(file) = SafeTensorsFile::parse(bytes, "mutant.safetensors") else { return false };
        assert!(file.tensors().iter().all(|tensor| file.data(tensor).len() == tensor.bytes));
        true
    });
    assert!(read > 0 && read < SAFETENSORS_CASES, "{read} were read");
}

#[test]
fn sharded_mutants_are_refused_or_read() {
    let index =
        br#"{"metadata":{"total_size":64},"weight_map":{"a":"1.safetensors","b":"1.safetensors","c":"2.safetensors"}}"#;
    let shards = [safetensors_seed(&["a", "b"]), safetensors_seed(&["c"])];
    let read = drive(&[index.to_vec()], SHARDED_CASES, |bytes| {
        let Ok(index) = String::from_utf8(bytes) else { return false };
        let load = |name: &str| match name {
            "1.safetensors" => Some(shards[0].clone()),
            "2.safetensors" => Some(shards[1].clone()),
            _ => None,
        };
        let Ok(model) = SafeTensorsFile::parse_sharded(&index, "mutant.json", load) else { return false };
        assert!(model.tensors().iter().all(|tensor| model.data(tensor).len() == tensor.bytes));
        true
    });
    assert!(read > 0 && read < SHARDED_CASES, "{read} were read");
}

#[test]
fn config_mutants_are_refused_or_read() {
    let seeds = [
        br#"{"model_type":"llama","hidden_size":4096,"intermediate_size":14336,"num_attention_heads":32,"num_hidden_layers":32,"num_key_value_heads":8,"tie_word_embeddings":false,"vocab_size":128256}"#.to_vec(),
        br#"{"model_type":"qwen3_moe","hidden_size":2048,"moe_intermediate_size":768,"num_attention_heads":32,"num_hidden_layers":48,"num_key_value_heads":4,"head_dim":128,"vocab_size":151936,"num_experts":128,"num_experts_per_tok":8,"mlp_only_layers":[]}"#.to_vec(),
    ];
    let read = drive(&seeds, CONFIG_CASES, |bytes| {
        let Ok(text) = String::from_utf8(bytes) else { return false };
        let Ok(shape) = ModelShape::parse_config(&text, "mutant.json") else { return false };
        assert!(shape.linears().iter().all(|linear| linear.n > 0 && linear.k > 0 && linear.count > 0));
        assert!(shape.parameters() > 0 && !shape.distinct().is_empty());
        true
    });
    assert!(read > 0 && read < CONFIG_CASES, "{read} were read");
}

/// Runs `check` on the seeds and on `cases` mutants of them; gives how many of the mutants it could read.
fn drive(seeds: &[Vec<u8>], cases: u64, check: impl Fn(Vec<u8>) -> bool) -> u64 {
    for seed in seeds {
        assert!(check(seed.clone()), "an unharmed seed must be read");
    }
    let mut read = 0;
    for case in 0..cases {
        let mut random = fastrand::Rng::with_seed(case);
        let bytes = mutate(&mut random, seeds);
        let length = bytes.len();
        let before = start_peak();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(bytes)));
        let used = peak() - before;
        match outcome {
            Ok(was_read) => read += u64::from(was_read),
            Err(_) => panic!("case {case} panicked; its message is above"),
        }
        // The widest honest ratios are those of a JSON tree and of a tensor entry to its bytes; 64 leaves room.
        let allowed = 64 * length as isize + (64 << 10);
        assert!(used <= allowed, "case {case} took {used} bytes for a file of {length}");
    }
    read
}

/// One to four changes to one of the seeds.
fn mutate(random: &mut fastrand::Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[random.usize(..seeds.len())].clone();
    for _ in 0..random.usize(1..=4) {
        if bytes.is_empty() {
            break;
        }
        // Half of the changes fall into the first part, where counts, names and types lie.
        let reach = if random.bool() { bytes.len() } else { bytes.len().min(256) };
        let at = random.usize(..reach);
        match random.u8(..7) {
            0 | 1 => bytes[at] ^= 1 << random.u8(..8),
            2 => bytes[at] = random.u8(..),
            3 => bytes.truncate(at),
            4 => {
                let end = (at + random.usize(1..64)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                let to = random.usize(..=bytes.len());
                bytes.splice(to..to, part);
            }
            5 => {
                let end = (at + random.usize(1..32)).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => extreme(random, &mut bytes, at),
        }
    }
    bytes
}

/// Sets a number to an extreme: a decimal one in text, a binary one elsewhere.
fn extreme(random: &mut fastrand::Rng, bytes: &mut Vec<u8>, at: usize) {
    const VALUES: [u64; 12] =
        [0, 1, 2, 31, 0x7FFF_FFFF, 0xFFFF_FFFF, 1 << 32, 1 << 61, 1 << 62, i64::MAX as u64, u64::MAX - 31, u64::MAX];
    let value = VALUES[random.usize(..VALUES.len())];
    if let Some(start) = (at..bytes.len().min(at + 32)).find(|&i| bytes[i].is_ascii_digit()) {
        let length = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        bytes.splice(start..start + length, value.to_string().into_bytes());
    } else {
        let width = if random.bool() { 4 } else { 8 };
        let end = (at + width).min(bytes.len());
        bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
    }
}

/// Starts and ends of spans, by rising start.
fn spans(spans: impl Iterator<Item = (usize, usize)>) -> (Vec<usize>, Vec<usize>) {
    let mut spans: Vec<_> = spans.collect();
    spans.sort_unstable();
    spans.into_iter().unzip()
}

/// A GGUF file with every value type and every tensor type.
fn gguf_seed(alignment: u32) -> Vec<u8> {
    let mut writer = GgufWriter::new();
    writer.key("general.alignment", Value::U32(alignment)).unwrap();
    let values = [
        Value::U8(1),
        Value::I8(-1),
        Value::U16(2),
        Value::I16(-2),
        Value::U32(3),
        Value::I32(-3),
        Value::F32(0.5),
        Value::Bool(true),
        Value::String("llama".into()),
        Value::U64(5),
        Value::I64(-5),
        Value::F64(0.25),
        Value::Array(Array::String(vec!["a".into(), "bc".into()])),
        Value::Array(Array::Array(vec![Array::U16(vec![1, 2]), Array::Bool(vec![true])])),
        Value::Array(Array::F32(vec![1.0; 5])),
    ];
    for (index, value) in values.into_iter().enumerate() {
        writer.key(&format!("k{index}"), value).unwrap();
    }
    for dtype in GgufType::ALL {
        writer.tensor(dtype.name(), *dtype, &[2, dtype.block()], vec![7; 2 * dtype.block_bytes()]).unwrap();
    }
    writer.to_bytes().unwrap()
}

fn safetensors_seed(names: &[&str]) -> Vec<u8> {
    let data = [9; 16];
    let kinds = [(Dtype::F32, [2, 2]), (Dtype::BF16, [2, 4]), (Dtype::F8_E4M3, [4, 4])];
    let tensors = names.iter().zip(kinds.iter().cycle()).map(|(name, (dtype, shape))| {
        (*name, TensorView::new(*dtype, shape.to_vec(), &data).expect("16 bytes fit every kind"))
    });
    serialize(tensors, None).unwrap()
}

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// Starts a new peak, and gives what is live now.
fn start_peak() -> isize {
    let live = LIVE.get();
    PEAK.set(live);
    live
}

fn peak() -> isize {
    PEAK.get()
}

fn count(change: isize) {
    // While a thread ends, its counters are gone, and nothing is measured any more.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + change);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

/// Counts what each thread holds.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is handed to the system's allocator unchanged; the counters are plain cells of the own thread,
// and touching them allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: `pointer` came from the system's allocator with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: `pointer` came from the system's allocator with this layout, and the caller vouches for `size`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
