//! ggml's CPU backend: `mul_mat` over weights in a plain buffer or in its `CPU_REPACK` buffer, and `flash_attn_ext`.
//!
//! Always holds: every pointer that ggml gave is freed once, after what depends on it.

use crate::subject::Subject;
use llama_cpp_sys_2 as sys;
use std::ffi::CStr;
use std::time::Instant;

/// A type of ggml's by the name that GGUF gives it.
pub fn kind(name: &str) -> Option<sys::ggml_type> {
    Some(match name {
        "q4_0" => sys::GGML_TYPE_Q4_0,
        "q8_0" => sys::GGML_TYPE_Q8_0,
        "q2_k" => sys::GGML_TYPE_Q2_K,
        "q4_k" => sys::GGML_TYPE_Q4_K,
        "q6_k" => sys::GGML_TYPE_Q6_K,
        "tq2_0" => sys::GGML_TYPE_TQ2_0,
        "f16" => sys::GGML_TYPE_F16,
        _ => return None,
    })
}

/// Floats `[n, k]` as blocks of a type.
pub fn quantize(kind: sys::ggml_type, floats: &[f32], n: usize, k: usize) -> Vec<u8> {
    // SAFETY: row size depends on the type alone.
    let mut out = vec![0u8; n * unsafe { sys::ggml_row_size(kind, k as i64) }];
    // SAFETY: source and destination hold n rows of k columns; no importance matrix is needed by these types.
    let written = unsafe {
        sys::ggml_quantize_chunk(
            kind,
            floats.as_ptr(),
            out.as_mut_ptr().cast(),
            0,
            n as i64,
            k as i64,
            std::ptr::null(),
        )
    };
    assert_eq!(written, out.len(), "ggml wrote another number of bytes than its rows have");
    out
}

/// The numbers that blocks of a type stand for.
pub fn dequantize(kind: sys::ggml_type, blocks: &[u8], count: usize) -> Result<Vec<f32>, String> {
    let mut out = vec![0f32; count];
    // SAFETY: the traits are constants; `blocks` holds `count` numbers (checked), and `out` takes as many.
    unsafe {
        assert_eq!(blocks.len(), sys::ggml_row_size(kind, count as i64), "blocks of another number of numbers");
        let traits = sys::ggml_get_type_traits(kind);
        let convert = (*traits).to_float.ok_or("ggml cannot read this type")?;
        convert(blocks.as_ptr().cast(), out.as_mut_ptr(), count as i64);
    }
    Ok(out)
}

/// Keeps ggml from telling which layout it takes for each tensor, copy after copy.
pub fn silence() {
    unsafe extern "C" fn nothing(_: sys::ggml_log_level, _: *const std::ffi::c_char, _: *mut std::ffi::c_void) {}
    // SAFETY: the function ignores what it is given.
    unsafe { sys::ggml_log_set(Some(nothing), std::ptr::null_mut()) };
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
            ("avx512_bf16", sys::ggml_cpu_has_avx512_bf16()),
            ("llamafile", sys::ggml_cpu_has_llamafile()),
        ]
    };
    list.iter().filter(|(_, has)| *has != 0).map(|(name, _)| *name).collect::<Vec<_>>().join(" ")
}

/// A product by ggml.
pub struct Ggml {
    name: String,
    context: *mut sys::ggml_context,
    backend: sys::ggml_backend_t,
    pool: sys::ggml_threadpool_t,
    buffers: Vec<sys::ggml_backend_buffer_t>,
    graphs: Vec<*mut sys::ggml_cgraph>,
    output: *mut sys::ggml_tensor,
    outputs: usize,
    weight_bytes: usize,
    turn: usize,
}

impl Ggml {
    /// A backend with threads of its own, and room for `graphs` graphs of so many tensors each, and a shared input.
    pub fn open(name: &str, graphs: usize, tensors: usize, threads: usize) -> Result<Ggml, String> {
        // SAFETY: objects are made in the order in which ggml wants them, and checked for null before they are used.
        unsafe {
            let params = sys::ggml_init_params {
                mem_size: sys::ggml_tensor_overhead() * (tensors * graphs + 9)
                    + sys::ggml_graph_overhead_custom(8, false) * graphs,
                mem_buffer: std::ptr::null_mut(),
                no_alloc: true,
            };
            let backend = sys::ggml_backend_cpu_init();
            let mut pool_params = sys::ggml_threadpool_params_default(threads as i32);
            let pool = sys::ggml_threadpool_new(&mut pool_params);
            let context = sys::ggml_init(params);
            if backend.is_null() || pool.is_null() || context.is_null() {
                return Err("ggml has no memory".into());
            }
            sys::ggml_backend_cpu_set_n_threads(backend, threads as i32);
            sys::ggml_backend_cpu_set_threadpool(backend, pool);
            Ok(Ggml {
                name: name.into(),
                context,
                backend,
                pool,
                buffers: Vec::new(),
                graphs: Vec::new(),
                output: std::ptr::null_mut(),
                outputs: 0,
                weight_bytes: 0,
                turn: 0,
            })
        }
    }

    /// Attention of one query token `[heads, dim]` over `copies` copies of keys and values, each `[kv head, token, dim]` in
    /// blocks of a type.
    pub fn attention(
        kind: sys::ggml_type,
        (keys, values): (&[u8], &[u8]),
        q: &[f32],
        (heads, kv_heads, tokens, dim): (usize, usize, usize, usize),
        copies: usize,
        threads: usize,
    ) -> Result<Ggml, String> {
        let mut this = Ggml::open("ggml flash attention", copies, 3, threads)?;
        (this.outputs, this.weight_bytes) = (heads * dim, keys.len() + values.len());
        // SAFETY: the tensors have the sizes of what is copied into them (checked), and belong to this context.
        unsafe {
            let (context, backend) = (this.context, this.backend);
            let plain = sys::ggml_backend_get_default_buffer_type(backend);
            let query = sys::ggml_new_tensor_3d(context, sys::GGML_TYPE_F32, dim as i64, 1, heads as i64);
            this.place(plain, query)?;
            assert_eq!(sys::ggml_nbytes(query), q.len() * 4, "ggml's query has another size");
            sys::ggml_backend_tensor_set(query, q.as_ptr().cast(), 0, q.len() * 4);
            for copy in 0..copies {
                let mut sides = Vec::new();
                for bytes in [keys, values] {
                    let side = sys::ggml_new_tensor_3d(context, kind, dim as i64, tokens as i64, kv_heads as i64);
                    this.place(plain, side)?;
                    assert_eq!(sys::ggml_nbytes(side), bytes.len(), "ggml's cache has another size");
                    sys::ggml_backend_tensor_set(side, bytes.as_ptr().cast(), 0, bytes.len());
                    sides.push(side);
                }
                let scale = 1.0 / (dim as f32).sqrt();
                let none = std::ptr::null_mut();
                let output = sys::ggml_flash_attn_ext(context, query, sides[0], sides[1], none, scale, 0.0, 0.0);
                this.place(plain, output)?;
                if !sys::ggml_backend_supports_op(backend, output) {
                    return Err("ggml has no flash attention over this type".into());
                }
                let graph = sys::ggml_new_graph_custom(context, 8, false);
                sys::ggml_build_forward_expand(graph, output);
                this.graphs.push(graph);
                if copy == 0 {
                    this.output = output;
                }
            }
            Ok(this)
        }
    }

    /// Weights in `copies` copies and activations `[m, k]`. `None` if `repack` is wanted and ggml has none for the type.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        kind: sys::ggml_type,
        blocks: &[u8],
        x: &[f32],
        (n, k, m): (usize, usize, usize),
        copies: usize,
        threads: usize,
        repack: bool,
    ) -> Result<Option<Ggml>, String> {
        // SAFETY: objects are made in the order in which ggml wants them, each is checked for null before it is used, and
        // `blocks` and `x` have the sizes that the tensors are given.
        unsafe {
            let mut this =
                Ggml::open(&format!("ggml {}", if repack { "repack" } else { "plain" }), copies, 2, threads)?;
            (this.outputs, this.weight_bytes) = (m * n, blocks.len());
            let (context, backend) = (this.context, this.backend);
            let plain = sys::ggml_backend_get_default_buffer_type(backend);
            let kept = if repack {
                match repack_buffer(backend) {
                    Some(kept) => kept,
                    None => return Ok(None),
                }
            } else {
                plain
            };
            let input = sys::ggml_new_tensor_2d(context, sys::GGML_TYPE_F32, k as i64, m as i64);
            this.place(plain, input)?;
            sys::ggml_backend_tensor_set(input, x.as_ptr().cast(), 0, x.len() * 4);
            for copy in 0..copies {
                let weights = sys::ggml_new_tensor_2d(context, kind, k as i64, n as i64);
                this.place(kept, weights)?;
                // A repacking buffer without a layout for this type leaves the tensor without traits.
                if repack && (*weights).extra.is_null() {
                    return Ok(None);
                }
                sys::ggml_backend_tensor_set(weights, blocks.as_ptr().cast(), 0, blocks.len());
                let output = sys::ggml_mul_mat(context, weights, input);
                this.place(plain, output)?;
                if !sys::ggml_backend_supports_op(backend, output) {
                    return Ok(None);
                }
                let graph = sys::ggml_new_graph_custom(context, 8, false);
                sys::ggml_build_forward_expand(graph, output);
                this.graphs.push(graph);
                if copy == 0 {
                    this.output = output;
                }
            }
            Ok(Some(this))
        }
    }

    /// Gives a tensor a buffer of its own.
    ///
    /// # Safety
    /// `tensor` belongs to this context, and has no memory yet.
    unsafe fn place(
        &mut self,
        kind: sys::ggml_backend_buffer_type_t,
        tensor: *mut sys::ggml_tensor,
    ) -> Result<(), String> {
        // SAFETY: the buffer is as large as the type of buffer says that this tensor needs.
        unsafe {
            let bytes = sys::ggml_backend_buft_get_alloc_size(kind, tensor);
            let buffer = sys::ggml_backend_buft_alloc_buffer(kind, bytes);
            if buffer.is_null() {
                return Err(format!("ggml has no {bytes} bytes"));
            }
            self.buffers.push(buffer);
            match sys::ggml_backend_tensor_alloc(buffer, tensor, sys::ggml_backend_buffer_get_base(buffer)) {
                sys::GGML_STATUS_SUCCESS => Ok(()),
                status => Err(format!("ggml_backend_tensor_alloc: status {status}")),
            }
        }
    }

    fn once(&mut self, graph: usize) -> Result<(), String> {
        // SAFETY: graph and backend live as long as `self`.
        match unsafe { sys::ggml_backend_graph_compute(self.backend, self.graphs[graph]) } {
            sys::GGML_STATUS_SUCCESS => Ok(()),
            status => Err(format!("ggml_backend_graph_compute: status {status}")),
        }
    }
}

/// The CPU backend's `CPU_REPACK` type of buffer, which it hands out by the name of a function.
///
/// # Safety
/// `backend` is a CPU backend.
unsafe fn repack_buffer(backend: sys::ggml_backend_t) -> Option<sys::ggml_backend_buffer_type_t> {
    type ExtraBuffers = unsafe extern "C" fn(sys::ggml_backend_dev_t) -> *mut sys::ggml_backend_buffer_type_t;
    // SAFETY: the function of this name has this type, and its list ends with null.
    unsafe {
        let device = sys::ggml_backend_get_device(backend);
        let registry = sys::ggml_backend_dev_backend_reg(device);
        let found = sys::ggml_backend_reg_get_proc_address(registry, c"ggml_backend_dev_get_extra_bufts".as_ptr());
        if found.is_null() {
            return None;
        }
        let list = std::mem::transmute::<*mut std::ffi::c_void, ExtraBuffers>(found.cast())(device);
        (0..)
            .map(|i| *list.add(i))
            .take_while(|kind| !kind.is_null())
            .find(|&kind| CStr::from_ptr(sys::ggml_backend_buft_name(kind)) == c"CPU_REPACK")
    }
}

impl Subject for Ggml {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn weight_bytes(&self) -> f64 {
        self.weight_bytes as f64
    }

    /// Its threads are awake for these runs alone, so that they do not poll while others are timed.
    fn run(&mut self, runs: usize) -> Result<f64, String> {
        // SAFETY: the pool lives as long as `self`.
        unsafe { sys::ggml_threadpool_resume(self.pool) };
        self.once(self.turn % self.graphs.len())?;
        let start = Instant::now();
        for _ in 0..runs {
            self.turn += 1;
            self.once(self.turn % self.graphs.len())?;
        }
        let seconds = start.elapsed().as_secs_f64() / runs as f64;
        // SAFETY: as above.
        unsafe { sys::ggml_threadpool_pause(self.pool) };
        Ok(seconds)
    }

    fn result(&mut self) -> Result<Option<Vec<f32>>, String> {
        // SAFETY: as in `run`; the output tensor holds this many floats.
        unsafe {
            sys::ggml_threadpool_resume(self.pool);
            self.once(0)?;
            sys::ggml_threadpool_pause(self.pool);
            let mut out = vec![0f32; self.outputs];
            sys::ggml_backend_tensor_get(self.output, out.as_mut_ptr().cast(), 0, out.len() * 4);
            Ok(Some(out))
        }
    }
}

impl Drop for Ggml {
    fn drop(&mut self) {
        // SAFETY: nothing of this is used afterwards; the backend is freed before the pool that it runs on.
        unsafe {
            for &buffer in &self.buffers {
                sys::ggml_backend_buffer_free(buffer);
            }
            sys::ggml_free(self.context);
            sys::ggml_backend_free(self.backend);
            sys::ggml_threadpool_free(self.pool);
        }
    }
}
