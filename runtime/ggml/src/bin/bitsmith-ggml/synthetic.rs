//! A model of random weights in the shape of a Llama with a billion weights, as a GGUF file.
//!
//! Writes a file. Always holds: the same type and seed give the same bytes. Nothing that it says makes sense; it is there to
//! be timed.

use llama_cpp_sys_2 as sys;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Llama-3.2-1B's shapes, with the vocabulary of Llama 2.
const HIDDEN: usize = 2048;
const LAYERS: usize = 16;
const FEED: usize = 8192;
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const VOCABULARY: usize = 32000;

/// Types that a file can be written in.
pub const TYPES: [(&str, sys::ggml_type); 5] = [
    ("q4_0", sys::GGML_TYPE_Q4_0),
    ("q8_0", sys::GGML_TYPE_Q8_0),
    ("q4_k", sys::GGML_TYPE_Q4_K),
    ("q5_k", sys::GGML_TYPE_Q5_K),
    ("q6_k", sys::GGML_TYPE_Q6_K),
];

/// Weights that are quantized; blocks of them are dealt out at random.
const DECK: usize = 1 << 20;

/// Writes a model into a folder and returns its path.
pub fn write(folder: &Path, name: &str, seed: u64) -> Result<PathBuf, String> {
    let &(name, kind) = TYPES.iter().find(|(known, _)| *known == name).ok_or_else(|| {
        let known: Vec<_> = TYPES.iter().map(|(name, _)| *name).collect();
        format!("type `{name}`; accepted: {}", known.join(", "))
    })?;
    let path = folder.join(format!("llama-1b-{name}.gguf"));
    let temporary = path.with_extension("gguf.part");
    let io = |error: std::io::Error| format!("{}: {error}", temporary.display());
    let header = Header::new(kind)?;
    let mut file = BufWriter::with_capacity(1 << 20, File::create(&temporary).map_err(io)?);
    file.write_all(&header.bytes()).map_err(io)?;
    let mut random = fastrand::Rng::with_seed(seed);
    let deck = Deck::new(kind, &mut random);
    for tensor in &header.tensors {
        let bytes = tensor.bytes(&deck, &mut random);
        file.write_all(&bytes).map_err(io)?;
        file.write_all(&vec![0; bytes.len().next_multiple_of(ALIGNMENT) - bytes.len()]).map_err(io)?;
    }
    file.into_inner().map_err(|error| error.to_string())?.sync_all().map_err(io)?;
    std::fs::rename(&temporary, &path).map_err(io)?;
    Ok(path)
}

/// Where tensors start at multiples of: GGUF's default.
const ALIGNMENT: usize = 32;

struct Tensor {
    kind: sys::ggml_type,
    /// Columns, rows.
    shape: [usize; 2],
}

impl Tensor {
    /// Random blocks, or ones for what scales a norm.
    fn bytes(&self, deck: &Deck, random: &mut fastrand::Rng) -> Vec<u8> {
        if self.kind == sys::GGML_TYPE_F32 {
            return 1f32.to_le_bytes().repeat(self.shape[0]);
        }
        let blocks = self.shape[0] / deck.weights * self.shape[1];
        (0..blocks).flat_map(|_| deck.block(random.usize(..DECK / deck.weights))).copied().collect()
    }
}

/// Random weights, quantized.
struct Deck {
    bytes: Vec<u8>,
    /// Weights and bytes of a block.
    weights: usize,
    block: usize,
}

impl Deck {
    fn new(kind: sys::ggml_type, random: &mut fastrand::Rng) -> Deck {
        // The sum of four uniform numbers, of a size that keeps activations alike from layer to layer.
        let floats: Vec<f32> = (0..DECK).map(|_| (0..4).map(|_| random.f32() - 0.5).sum::<f32>() * 0.04).collect();
        // SAFETY: the room is that of a row of so many weights; these types need no importances.
        unsafe {
            let mut bytes = vec![0; sys::ggml_row_size(kind, DECK as i64)];
            let to = bytes.as_mut_ptr().cast();
            sys::ggml_quantize_chunk(kind, floats.as_ptr(), to, 0, 1, DECK as i64, std::ptr::null());
            Deck { bytes, weights: sys::ggml_blck_size(kind) as usize, block: sys::ggml_type_size(kind) }
        }
    }

    fn block(&self, index: usize) -> &[u8] {
        &self.bytes[index * self.block..][..self.block]
    }
}

/// A GGUF header in ggml's own hands.
struct Header {
    gguf: *mut sys::gguf_context,
    context: *mut sys::ggml_context,
    tensors: Vec<Tensor>,
}

impl Header {
    fn new(kind: sys::ggml_type) -> Result<Header, String> {
        // SAFETY: objects are checked for null before they are used.
        let mut header = unsafe {
            let params = sys::ggml_init_params {
                mem_size: sys::ggml_tensor_overhead() * (LAYERS * 9 + 8),
                mem_buffer: std::ptr::null_mut(),
                no_alloc: true,
            };
            Header { gguf: sys::gguf_init_empty(), context: sys::ggml_init(params), tensors: Vec::new() }
        };
        if header.gguf.is_null() || header.context.is_null() {
            return Err("ggml has no memory".into());
        }
        header.text(c"general.architecture", c"llama");
        header.text(c"general.name", c"random weights in the shape of a Llama with a billion weights");
        header.text(c"tokenizer.ggml.model", c"no_vocab");
        for (key, value) in [
            (c"llama.context_length", 4096),
            (c"llama.embedding_length", HIDDEN),
            (c"llama.block_count", LAYERS),
            (c"llama.feed_forward_length", FEED),
            (c"llama.attention.head_count", HEADS),
            (c"llama.attention.head_count_kv", KV_HEADS),
            (c"llama.rope.dimension_count", HIDDEN / HEADS),
            (c"llama.vocab_size", VOCABULARY),
        ] {
            // SAFETY: the header is alive.
            unsafe { sys::gguf_set_val_u32(header.gguf, key.as_ptr(), value as u32) };
        }
        let epsilon = c"llama.attention.layer_norm_rms_epsilon";
        // SAFETY: as above.
        unsafe { sys::gguf_set_val_f32(header.gguf, epsilon.as_ptr(), 1e-5) };
        let keys = HIDDEN / HEADS * KV_HEADS;
        header.add("token_embd.weight", kind, [HIDDEN, VOCABULARY])?;
        for layer in 0..LAYERS {
            let mut add = |name: &str, kind, shape| header.add(&format!("blk.{layer}.{name}.weight"), kind, shape);
            add("attn_norm", sys::GGML_TYPE_F32, [HIDDEN, 1])?;
            add("attn_q", kind, [HIDDEN, HIDDEN])?;
            add("attn_k", kind, [HIDDEN, keys])?;
            add("attn_v", kind, [HIDDEN, keys])?;
            add("attn_output", kind, [HIDDEN, HIDDEN])?;
            add("ffn_norm", sys::GGML_TYPE_F32, [HIDDEN, 1])?;
            add("ffn_gate", kind, [HIDDEN, FEED])?;
            add("ffn_up", kind, [HIDDEN, FEED])?;
            add("ffn_down", kind, [FEED, HIDDEN])?;
        }
        header.add("output_norm.weight", sys::GGML_TYPE_F32, [HIDDEN, 1])?;
        header.add("output.weight", kind, [HIDDEN, VOCABULARY])?;
        Ok(header)
    }

    fn text(&mut self, key: &CStr, value: &CStr) {
        // SAFETY: the header is alive, and copies both.
        unsafe { sys::gguf_set_val_str(self.gguf, key.as_ptr(), value.as_ptr()) };
    }

    fn add(&mut self, name: &str, kind: sys::ggml_type, shape: [usize; 2]) -> Result<(), String> {
        let name = CString::new(name).map_err(|error| error.to_string())?;
        // SAFETY: the context has room for this many tensors, and the header copies what it is told of them.
        unsafe {
            let tensor = match shape {
                [columns, 1] => sys::ggml_new_tensor_1d(self.context, kind, columns as i64),
                [columns, rows] => sys::ggml_new_tensor_2d(self.context, kind, columns as i64, rows as i64),
            };
            sys::ggml_set_name(tensor, name.as_ptr());
            sys::gguf_add_tensor(self.gguf, tensor);
        }
        self.tensors.push(Tensor { kind, shape });
        Ok(())
    }

    /// All that stands in front of the tensors.
    fn bytes(&self) -> Vec<u8> {
        // SAFETY: the room is as large as the header says.
        unsafe {
            let mut bytes = vec![0u8; sys::gguf_get_meta_size(self.gguf)];
            sys::gguf_get_meta_data(self.gguf, bytes.as_mut_ptr().cast());
            bytes
        }
    }
}

impl Drop for Header {
    fn drop(&mut self) {
        // SAFETY: nothing of this is used afterwards.
        unsafe {
            sys::gguf_free(self.gguf);
            sys::ggml_free(self.context);
        }
    }
}
