//! Products by packed matrices inside ggml's own graphs, against numbers in `f64` and against ggml's CPU backend.
//!
//! Every type that is served, ragged shapes, rows that do not lie one after another, activations that products share, other
//! operations around them, one to three threads.

use llama_cpp_sys_2 as sys;
use std::ffi::c_void;

/// Largest squared error, relative to the squared result, that ggml's own tests accept of a product.
const TOLERANCE: f64 = 5e-4;

const KINDS: [sys::ggml_type; 13] = [
    sys::GGML_TYPE_Q4_0,
    sys::GGML_TYPE_Q4_1,
    sys::GGML_TYPE_Q5_0,
    sys::GGML_TYPE_Q5_1,
    sys::GGML_TYPE_Q8_0,
    sys::GGML_TYPE_IQ4_NL,
    sys::GGML_TYPE_Q2_K,
    sys::GGML_TYPE_Q3_K,
    sys::GGML_TYPE_Q4_K,
    sys::GGML_TYPE_Q5_K,
    sys::GGML_TYPE_Q6_K,
    sys::GGML_TYPE_TQ1_0,
    sys::GGML_TYPE_TQ2_0,
];

/// A graph's world: a context without memory, and buffers.
struct World {
    context: *mut sys::ggml_context,
    backend: sys::ggml_backend_t,
    buffers: Vec<sys::ggml_backend_buffer_t>,
}

impl World {
    /// With our backend, or ggml's for the CPU.
    fn new(ours: bool, threads: i32) -> World {
        // SAFETY: objects are checked for null before they are used.
        unsafe {
            let params = sys::ggml_init_params {
                mem_size: sys::ggml_tensor_overhead() * 64 + sys::ggml_graph_overhead(),
                mem_buffer: std::ptr::null_mut(),
                no_alloc: true,
            };
            let backend = if ours {
                bitsmith_ggml::register().unwrap();
                let registration = sys::ggml_backend_reg_by_name(c"Bitsmith".as_ptr());
                assert!(!registration.is_null());
                let device = sys::ggml_backend_reg_dev_get(registration, 0);
                let backend = sys::ggml_backend_dev_init(device, std::ptr::null());
                let set = sys::ggml_backend_reg_get_proc_address(registration, c"ggml_backend_set_n_threads".as_ptr());
                let set: unsafe extern "C" fn(sys::ggml_backend_t, i32) = std::mem::transmute(set);
                set(backend, threads);
                backend
            } else {
                let backend = sys::ggml_backend_cpu_init();
                sys::ggml_backend_cpu_set_n_threads(backend, threads);
                backend
            };
            let context = sys::ggml_init(params);
            assert!(!backend.is_null() && !context.is_null());
            World { context, backend, buffers: Vec::new() }
        }
    }

    fn place(&mut self, kind: sys::ggml_backend_buffer_type_t, tensor: *mut sys::ggml_tensor) {
        // SAFETY: the buffer has as many bytes as its type says that the tensor needs.
        unsafe {
            let buffer = sys::ggml_backend_buft_alloc_buffer(kind, sys::ggml_backend_buft_get_alloc_size(kind, tensor));
            let base = sys::ggml_backend_buffer_get_base(buffer);
            assert_eq!(sys::ggml_backend_tensor_alloc(buffer, tensor, base), sys::GGML_STATUS_SUCCESS);
            self.buffers.push(buffer);
        }
    }

    /// A tensor of floats in ordinary memory.
    fn floats(&mut self, values: &[f32], shape: [i64; 3]) -> *mut sys::ggml_tensor {
        // SAFETY: the tensor has as many elements as there are values.
        unsafe {
            let tensor = sys::ggml_new_tensor_3d(self.context, sys::GGML_TYPE_F32, shape[0], shape[1], shape[2]);
            self.place(sys::ggml_backend_cpu_buffer_type(), tensor);
            sys::ggml_backend_tensor_set(tensor, values.as_ptr().cast(), 0, values.len() * 4);
            tensor
        }
    }

    /// A matrix of weights where the backend wants it.
    fn weights(&mut self, kind: sys::ggml_type, blocks: &[u8], n: usize, k: usize) -> *mut sys::ggml_tensor {
        // SAFETY: the blocks are those of the tensor.
        unsafe {
            let tensor = sys::ggml_new_tensor_2d(self.context, kind, k as i64, n as i64);
            self.place(sys::ggml_backend_get_default_buffer_type(self.backend), tensor);
            sys::ggml_backend_tensor_set(tensor, blocks.as_ptr().cast(), 0, blocks.len());
            tensor
        }
    }

    /// Computes a tensor and what it needs; afterwards every operation must be what it was.
    fn compute(&mut self, result: *mut sys::ggml_tensor) -> Vec<f32> {
        // SAFETY: the graph's tensors are placed before it is computed.
        unsafe {
            let graph = sys::ggml_new_graph(self.context);
            sys::ggml_build_forward_expand(graph, result);
            let nodes: Vec<_> = (0..sys::ggml_graph_n_nodes(graph)).map(|i| sys::ggml_graph_node(graph, i)).collect();
            for &node in &nodes {
                assert!(sys::ggml_backend_supports_op(self.backend, node));
                if (*node).view_src.is_null() && (*node).data.is_null() {
                    self.place(sys::ggml_backend_cpu_buffer_type(), node);
                } else if !(*node).view_src.is_null() {
                    sys::ggml_backend_view_init(node);
                }
            }
            let before: Vec<_> = nodes.iter().map(|&node| ((*node).op, (*node).op_params)).collect();
            for _ in 0..2 {
                assert_eq!(sys::ggml_backend_graph_compute(self.backend, graph), sys::GGML_STATUS_SUCCESS);
            }
            assert!(
                nodes.iter().zip(&before).all(|(&node, &(op, params))| (*node).op == op && (*node).op_params == params)
            );
            let mut out = vec![0f32; sys::ggml_nelements(result) as usize];
            sys::ggml_backend_tensor_get(result, out.as_mut_ptr().cast::<c_void>(), 0, out.len() * 4);
            out
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // SAFETY: nothing of this is used afterwards.
        unsafe {
            for &buffer in &self.buffers {
                sys::ggml_backend_buffer_free(buffer);
            }
            sys::ggml_backend_free(self.backend);
            sys::ggml_free(self.context);
        }
    }
}

fn bell(random: &mut fastrand::Rng, count: usize, size: f32) -> Vec<f32> {
    (0..count).map(|_| (0..4).map(|_| random.f32() - 0.5).sum::<f32>() * size).collect()
}

/// Blocks of a type and the numbers that they stand for.
fn quantized(kind: sys::ggml_type, floats: &[f32], n: usize, k: usize) -> (Vec<u8>, Vec<f32>) {
    // SAFETY: the rooms are those of n rows of k weights.
    unsafe {
        let mut blocks = vec![0; n * sys::ggml_row_size(kind, k as i64)];
        let importance = vec![1f32; k];
        sys::ggml_quantize_chunk(
            kind,
            floats.as_ptr(),
            blocks.as_mut_ptr().cast(),
            0,
            n as i64,
            k as i64,
            importance.as_ptr(),
        );
        let mut values = vec![0f32; n * k];
        let decode = (*sys::ggml_get_type_traits(kind)).to_float.unwrap();
        decode(blocks.as_ptr().cast(), values.as_mut_ptr(), (n * k) as i64);
        (blocks, values)
    }
}

fn product(x: &[f32], w: &[f32], k: usize) -> Vec<f32> {
    let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(&x, &w)| x as f64 * w as f64).sum::<f64>() as f32;
    x.chunks(k).flat_map(|x| w.chunks(k).map(move |w| dot(x, w))).collect()
}

fn error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |x: f64| x * x;
    let wrong: f64 = found.iter().zip(expected).map(|(&a, &b)| square(a as f64 - b as f64)).sum();
    wrong / expected.iter().map(|&b| square(b as f64)).sum::<f64>()
}

/// Every type by few and many rows: as near to the `f64` product as ggml's tests ask, and hardly farther than ggml itself.
#[test]
fn every_type_is_as_near_as_ggml() {
    let mut random = fastrand::Rng::with_seed(11);
    for (case, &kind) in KINDS.iter().enumerate() {
        let (n, k) = ([64, 53, 16][case % 3], [256, 512, 768][case / 3 % 3]);
        let floats = bell(&mut random, n * k, 0.05);
        let (blocks, values) = quantized(kind, &floats, n, k);
        for (turn, m) in [1usize, 2, 5, 9, 33, 150].into_iter().enumerate() {
            let x = bell(&mut random, m * k, 2.0);
            let expected = product(&x, &values, k);
            let errors = [true, false].map(|ours| {
                let mut world = World::new(ours, 1 + (turn % 3) as i32);
                let weights = world.weights(kind, &blocks, n, k);
                let x = world.floats(&x, [k as i64, m as i64, 1]);
                // SAFETY: both belong to the context.
                let y = unsafe { sys::ggml_mul_mat(world.context, weights, x) };
                error(&world.compute(y), &expected)
            });
            assert!(errors[0] < TOLERANCE, "type {kind}, {n}x{k}, {m} rows: {errors:?}");
            assert!(errors[0] < 1.5 * errors[1] + 1e-6, "type {kind}, {n}x{k}, {m} rows: {errors:?}");
        }
    }
}

/// Two products share activations, a third has others; rows lie apart; results go through ggml's own operations.
#[test]
fn products_among_other_operations() {
    let (n, k, m) = (48usize, 256usize, 6usize);
    let mut random = fastrand::Rng::with_seed(12);
    let matrices: Vec<_> = [sys::GGML_TYPE_Q8_0, sys::GGML_TYPE_Q8_0, sys::GGML_TYPE_Q4_K]
        .map(|kind| {
            let floats = bell(&mut random, n * k, 0.05);
            (kind, quantized(kind, &floats, n, k).0)
        })
        .to_vec();
    let x = bell(&mut random, m * k, 2.0);
    for threads in [1, 2, 3] {
        let results = [true, false].map(|ours| {
            let mut world = World::new(ours, threads);
            let w: Vec<_> = matrices.iter().map(|(kind, blocks)| world.weights(*kind, blocks, n, k)).collect();
            // Two by three rows, which a permutation takes out of order.
            let x = world.floats(&x, [k as i64, 2, 3]);
            // SAFETY: all belong to the context.
            let y = unsafe {
                let context = world.context;
                let apart = sys::ggml_permute(context, x, 0, 2, 1, 3);
                let a = sys::ggml_mul_mat(context, w[0], apart);
                let b = sys::ggml_mul_mat(context, w[1], apart);
                let gate = sys::ggml_mul(context, sys::ggml_silu(context, a), b);
                let norm = sys::ggml_rms_norm(context, sys::ggml_cont(context, apart), 1e-5);
                let c = sys::ggml_mul_mat(context, w[2], norm);
                let d = sys::ggml_mul_mat(context, w[1], norm);
                sys::ggml_add(context, sys::ggml_add(context, gate, c), d)
            };
            world.compute(y)
        });
        let error = error(&results[0], &results[1]);
        assert!(error < TOLERANCE, "{threads} threads: {error:.1e}");
        assert!(results[0].iter().any(|y| y.abs() > 0.1));
    }
}

/// Packed matrices are for products alone, and what cannot be packed is not taken.
#[test]
fn other_uses_of_packed_matrices_are_refused() {
    let (n, k) = (32usize, 256usize);
    let floats = bell(&mut fastrand::Rng::with_seed(13), n * k, 0.05);
    let (blocks, _) = quantized(sys::GGML_TYPE_Q4_0, &floats, n, k);
    let mut world = World::new(true, 1);
    let weights = world.weights(sys::GGML_TYPE_Q4_0, &blocks, n, k);
    let indices = {
        // SAFETY: the context is alive.
        let tensor = unsafe { sys::ggml_new_tensor_1d(world.context, sys::GGML_TYPE_I32, 4) };
        // SAFETY: as above.
        world.place(unsafe { sys::ggml_backend_cpu_buffer_type() }, tensor);
        tensor
    };
    let x = world.floats(&floats[..4 * k], [k as i64, 4, 1]);
    // SAFETY: all belong to the context; nothing is computed.
    unsafe {
        let context = world.context;
        let supports = |op| sys::ggml_backend_supports_op(world.backend, op);
        assert!(supports(sys::ggml_mul_mat(context, weights, x)));
        assert!(!supports(sys::ggml_get_rows(context, weights, indices)), "rows of a packed matrix");
        let half = sys::ggml_view_2d(context, weights, k as i64, n as i64 / 2, (*weights).nb[1], 0);
        assert!(!supports(sys::ggml_mul_mat(context, half, x)), "a part of a packed matrix");
        assert!(supports(sys::ggml_rms_norm(context, x, 1e-5)), "what ggml computes on ordinary memory");
        let kind = sys::ggml_backend_get_default_buffer_type(world.backend);
        assert!(!sys::ggml_backend_buft_is_host(kind), "nobody else may read packed matrices");
        // What llama.cpp asks before it places a tensor: a buffer of no bytes.
        let ask = |kind: sys::ggml_type| {
            let tensor = sys::ggml_new_tensor_2d(context, kind, k as i64, n as i64);
            let buffer =
                sys::ggml_backend_buft_alloc_buffer(sys::ggml_backend_get_default_buffer_type(world.backend), 0);
            (*tensor).buffer = buffer;
            let answer = supports(sys::ggml_mul_mat(context, tensor, x));
            sys::ggml_backend_buffer_free(buffer);
            (*tensor).buffer = std::ptr::null_mut();
            answer
        };
        assert!(ask(sys::GGML_TYPE_Q6_K) && ask(sys::GGML_TYPE_Q8_0));
        assert!(!ask(sys::GGML_TYPE_F16) && !ask(sys::GGML_TYPE_IQ2_XXS), "left to ggml");
    }
}
