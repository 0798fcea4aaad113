//! llama.cpp as a program uses it: a model in a file, a context, tokens in and logits out.
//!
//! Reads GGUF files; makes tokens, text and logits. Always holds: whether a model runs with the backend was settled when it
//! was opened, so that one with and one without live side by side.

use llama_cpp_sys_2 as sys;
use std::collections::HashSet;
use std::ffi::{CStr, CString, c_void};
use std::path::Path;

/// Where a model's weights lie and who multiplies by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// bitsmith's kernels, where they serve the type of weights.
    Bitsmith,
    /// ggml's CPU backend, with the layouts that it prefers for this processor.
    Ggml,
    /// ggml's CPU backend on weights as the file has them.
    GgmlPlain,
}

impl How {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            How::Bitsmith => "bitsmith",
            How::Ggml => "ggml repack",
            How::GgmlPlain => "ggml plain",
        }
    }
}

/// Threads of ggml's that contexts share.
pub struct Threads(sys::ggml_threadpool_t);

impl Threads {
    /// As many.
    pub fn new(threads: usize) -> Result<Threads, String> {
        // SAFETY: the parameters are ggml's own for so many threads.
        let pool = unsafe {
            let mut params = sys::ggml_threadpool_params_default(threads as i32);
            sys::ggml_threadpool_new(&mut params)
        };
        if pool.is_null() {
            return Err(format!("ggml gives no pool of {threads} threads"));
        }
        Ok(Threads(pool))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // SAFETY: engines borrow the pool, so none computes on it any more.
        unsafe {
            bitsmith_ggml::share_threadpool(std::ptr::null_mut());
            sys::ggml_threadpool_free(self.0);
        }
    }
}

/// A model with a context.
pub struct Engine<'a> {
    model: *mut sys::llama_model,
    context: *mut sys::llama_context,
    _threads: &'a Threads,
}

/// Keeps llama.cpp from telling what it does; errors and warnings still come through.
pub fn quiet() {
    unsafe extern "C" fn tell(level: sys::ggml_log_level, text: *const std::ffi::c_char, _: *mut c_void) {
        if level == sys::GGML_LOG_LEVEL_ERROR {
            // SAFETY: ggml gives text that ends with a zero byte.
            eprint!("{}", unsafe { CStr::from_ptr(text) }.to_string_lossy());
        }
    }
    // SAFETY: the function only reads what it is given.
    unsafe { sys::llama_log_set(Some(tell), std::ptr::null_mut()) };
}

/// What ggml was compiled with.
pub fn features() -> String {
    // SAFETY: these functions only report constants.
    let list = unsafe {
        [
            ("avx2", sys::ggml_cpu_has_avx2()),
            ("avx512", sys::ggml_cpu_has_avx512()),
            ("avx512_vnni", sys::ggml_cpu_has_avx512_vnni()),
            ("avx_vnni", sys::ggml_cpu_has_avx_vnni()),
            ("amx_int8", sys::ggml_cpu_has_amx_int8()),
            ("llamafile", sys::ggml_cpu_has_llamafile()),
        ]
    };
    list.iter().filter(|(_, has)| *has != 0).map(|(name, _)| *name).collect::<Vec<_>>().join(" ")
}

/// Most tokens of a batch.
pub const BATCH: u32 = 512;

impl<'a> Engine<'a> {
    /// Opens a model with room for so many tokens.
    pub fn open(path: &Path, how: How, tokens: u32, threads: &'a Threads) -> Result<Engine<'a>, String> {
        let name = path.display();
        let file = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| format!("{name}: a zero byte"))?;
        if !path.is_file() {
            return Err(format!("{name}: no such file"));
        }
        if how == How::Bitsmith {
            bitsmith_ggml::register().map_err(|error| error.to_string())?;
        }
        // SAFETY: objects are checked for null before they are used; the pool outlives the context.
        let opened = unsafe {
            let mut params = sys::llama_model_default_params();
            params.n_gpu_layers = 0;
            params.use_extra_bufts = how != How::GgmlPlain;
            let model = sys::llama_model_load_from_file(file.as_ptr(), params);
            let mut context = std::ptr::null_mut();
            if !model.is_null() {
                let mut params = sys::llama_context_default_params();
                params.n_ctx = tokens;
                params.n_batch = BATCH;
                params.n_ubatch = BATCH;
                params.no_perf = true;
                // Left to itself, llama.cpp takes flash attention only where its CPU device computes it.
                params.flash_attn_type = sys::LLAMA_FLASH_ATTN_TYPE_ENABLED;
                context = sys::llama_init_from_model(model, params);
            }
            (model, context)
        };
        if how == How::Bitsmith {
            bitsmith_ggml::unregister();
        }
        let (model, context) = opened;
        if model.is_null() {
            return Err(format!("{name}: llama.cpp cannot open it"));
        }
        let engine = Engine { model, context, _threads: threads };
        if context.is_null() {
            return Err(format!("{name}: llama.cpp has no context of {tokens} tokens for it"));
        }
        // SAFETY: the pool outlives the context.
        unsafe {
            sys::llama_attach_threadpool(context, threads.0, threads.0);
            bitsmith_ggml::share_threadpool(threads.0);
        }
        Ok(engine)
    }

    /// How many threads compute from now on, at most those of the pool.
    pub fn set_threads(&mut self, threads: usize) {
        // SAFETY: the context is alive.
        unsafe { sys::llama_set_n_threads(self.context, threads as i32, threads as i32) };
    }

    fn vocabulary(&self) -> *const sys::llama_vocab {
        // SAFETY: the model is alive.
        unsafe { sys::llama_model_get_vocab(self.model) }
    }

    /// Tokens that the model knows.
    pub fn vocabulary_size(&self) -> usize {
        // SAFETY: the vocabulary is the model's.
        unsafe { sys::llama_vocab_n_tokens(self.vocabulary()) as usize }
    }

    /// The token that starts a text, if the model has one.
    pub fn start(&self) -> Option<i32> {
        // SAFETY: as above.
        let token = unsafe { sys::llama_vocab_bos(self.vocabulary()) };
        (token >= 0).then_some(token)
    }

    /// Whether a token ends the text.
    pub fn ends(&self, token: i32) -> bool {
        // SAFETY: as above.
        unsafe { sys::llama_vocab_is_eog(self.vocabulary(), token) }
    }

    /// A text without the characters that the vocabulary cannot spell. llama.cpp's tokenizer of SentencePiece vocabularies throws
    /// a C++ exception at these, which nothing on our side may catch: a character must be a token, or its bytes must be.
    fn spelled(&self, text: &str) -> String {
        // SAFETY: as above.
        if unsafe { sys::llama_vocab_type(self.vocabulary()) } != sys::LLAMA_VOCAB_TYPE_SPM {
            return text.into();
        }
        let (mut characters, mut bytes) = (HashSet::from([' ']), HashSet::new());
        for token in 0..self.vocabulary_size() as i32 {
            // SAFETY: the token is one of the vocabulary's, whose texts end with a zero byte.
            let name = unsafe { CStr::from_ptr(sys::llama_vocab_get_text(self.vocabulary(), token)) }.to_string_lossy();
            let byte = name.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
            bytes.extend(byte.and_then(|digits| u8::from_str_radix(digits, 16).ok()));
            let mut all = name.chars();
            characters.extend(all.next().filter(|_| all.next().is_none()));
        }
        let mut room = [0; 4];
        let mut spells =
            |c: &char| characters.contains(c) || c.encode_utf8(&mut room).bytes().all(|byte| bytes.contains(&byte));
        text.chars().filter(|c| spells(c)).collect()
    }

    /// A text's tokens, without those that start or end it; characters that no token spells are left out.
    pub fn tokens(&self, text: &str) -> Result<Vec<i32>, String> {
        // SAFETY: as above.
        if unsafe { sys::llama_vocab_type(self.vocabulary()) } == sys::LLAMA_VOCAB_TYPE_NONE {
            return Err("the model has no vocabulary to read text with".into());
        }
        let text = self.spelled(text);
        let mut tokens = vec![0; text.len() + 8];
        // SAFETY: lengths are those of the text and of the room.
        let count = unsafe {
            sys::llama_tokenize(
                self.vocabulary(),
                text.as_ptr().cast(),
                text.len() as i32,
                tokens.as_mut_ptr(),
                tokens.len() as i32,
                false,
                false,
            )
        };
        tokens.truncate(usize::try_from(count).map_err(|_| "the text has more tokens than bytes".to_string())?);
        Ok(tokens)
    }

    /// The text of tokens.
    pub fn text(&self, tokens: &[i32]) -> String {
        let mut bytes = Vec::new();
        for &token in tokens {
            let mut piece = [0u8; 256];
            // SAFETY: the room has this size.
            let count = unsafe {
                sys::llama_token_to_piece(self.vocabulary(), token, piece.as_mut_ptr().cast(), 256, 0, false)
            };
            bytes.extend_from_slice(&piece[..count.max(0) as usize]);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Forgets what has been read.
    pub fn forget(&mut self) {
        // SAFETY: the context is alive.
        unsafe { sys::llama_memory_clear(sys::llama_get_memory(self.context), false) };
    }

    /// Reads tokens, at most a batch of them, after those before; the logits of the last one can then be asked for, or of all.
    pub fn read(&mut self, tokens: &[i32], all: bool) -> Result<(), String> {
        assert!(!tokens.is_empty() && tokens.len() <= BATCH as usize, "{} tokens in a batch", tokens.len());
        let mut tokens = tokens.to_vec();
        let mut wanted: Vec<i8> = (0..tokens.len()).map(|i| i8::from(all || i + 1 == tokens.len())).collect();
        // SAFETY: arrays are as long as the batch says, and live until it has been decoded; positions follow those before.
        let status = unsafe {
            let mut batch = sys::llama_batch_get_one(tokens.as_mut_ptr(), tokens.len() as i32);
            batch.logits = wanted.as_mut_ptr();
            sys::llama_decode(self.context, batch)
        };
        if status == 0 { Ok(()) } else { Err(format!("llama_decode: status {status}")) }
    }

    /// The logits after a token of the last batch; -1 is the last one.
    pub fn logits(&self, place: i32) -> Result<&[f32], String> {
        // SAFETY: llama.cpp gives as many numbers as there are tokens in the vocabulary, until the next batch.
        unsafe {
            let logits = sys::llama_get_logits_ith(self.context, place);
            if logits.is_null() {
                return Err(format!("llama.cpp has no logits for token {place} of the batch"));
            }
            Ok(std::slice::from_raw_parts(logits, self.vocabulary_size()))
        }
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        // SAFETY: nothing of this is used afterwards; llama.cpp takes null.
        unsafe {
            if !self.context.is_null() {
                sys::llama_free(self.context);
            }
            sys::llama_model_free(self.model);
        }
    }
}
