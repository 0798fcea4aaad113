//! A backend stream: graphs as ggml's CPU backend computes them, with the products by packed matrices exchanged for ours.
//!
//! Reads a graph; computes it. For the time of the computation, each such product becomes a custom operation, which ggml's
//! CPU backend runs on all of its threads: one pool of threads does everything, and none waits beside it. Always holds: the
//! graph is left as it came.

use crate::abi::StreamObject;
use crate::buffer::{self, packed};
use crate::device;
use crate::job::{self, Gather, Halves, Job, Quantization};
use crate::product::{Kernel, Packed};
use crate::room::Room;
use bitsmith_compiler::lower::Role;
use bitsmith_compiler::{Error, Result};
use bitsmith_runtime::cpu::{DirectArg, DirectCall};
use llama_cpp_sys_2 as sys;
use std::ffi::{c_char, c_int, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

/// `GGML_N_TASKS_MAX` of `ggml.h`, a macro: an operation for as many threads as there are.
const ALL_THREADS: c_int = -1;

/// What a stream owns.
struct Stream {
    /// ggml's CPU backend, which computes.
    cpu: sys::ggml_backend_t,
    threads: usize,
    /// A pool of our own, and its threads; null where there is one thread, or a shared pool.
    pool: sys::ggml_threadpool_t,
    pool_threads: usize,
    /// Where nodes are made to copy from.
    context: *mut sys::ggml_context,
    /// Quantized activations, one set for each way to quantize that graphs have had so far.
    activations: Vec<Activations>,
    scratch: Room,
}

/// The activations that were quantized last in one way.
#[derive(Default)]
struct Activations {
    /// Columns that share a scale, columns that share a sum.
    way: (usize, usize),
    /// What was quantized last in the present graph.
    source: *const sys::ggml_tensor,
    numbers: Room,
    codes: Room,
    scales: Room,
    sums: Room,
}

static SHARED_POOL: AtomicPtr<sys::ggml_threadpool> = AtomicPtr::new(std::ptr::null_mut());

/// Makes every stream compute on the threads of this pool instead of its own: the one that an engine attaches to its
/// contexts, so that no second pool looks out for work beside it. Null takes it back.
///
/// # Safety
/// The pool must not be freed before every stream that computed on it.
pub unsafe fn share_threadpool(pool: sys::ggml_threadpool_t) {
    SHARED_POOL.store(pool, Ordering::Release);
}

/// A new stream; null where ggml has no memory.
pub fn start() -> sys::ggml_backend_t {
    // SAFETY: objects are checked for null before they are used.
    unsafe {
        let cpu = sys::ggml_backend_cpu_init();
        let params = sys::ggml_init_params {
            mem_size: 2 * sys::ggml_tensor_overhead(),
            mem_buffer: std::ptr::null_mut(),
            no_alloc: true,
        };
        let context = sys::ggml_init(params);
        if cpu.is_null() || context.is_null() {
            return std::ptr::null_mut();
        }
        let stream = Stream {
            cpu,
            threads: 1,
            pool: std::ptr::null_mut(),
            pool_threads: 0,
            context,
            activations: Vec::new(),
            scratch: Room::default(),
        };
        sys::ggml_backend_cpu_set_n_threads(cpu, 1);
        static GUID: [u8; 16] = *b"bitsmith-kernels";
        Box::into_raw(Box::new(StreamObject {
            guid: std::ptr::from_ref(&GUID).cast_mut(),
            get_name: Some(name),
            free: Some(free),
            set_tensor_async: None,
            get_tensor_async: None,
            set_tensor_2d_async: None,
            get_tensor_2d_async: None,
            cpy_tensor_async: None,
            synchronize: None,
            graph_plan_create: None,
            graph_plan_free: None,
            graph_plan_update: None,
            graph_plan_compute: None,
            graph_compute: Some(compute),
            event_record: None,
            event_wait: None,
            graph_optimize: None,
            device: device::device(),
            context: Box::into_raw(Box::new(stream)).cast(),
        }))
        .cast()
    }
}

unsafe extern "C" fn name(_: sys::ggml_backend_t) -> *const c_char {
    c"Bitsmith".as_ptr()
}

unsafe extern "C" fn free(stream: sys::ggml_backend_t) {
    // SAFETY: ggml frees a stream once; the CPU backend is freed before the pool that it runs on.
    unsafe {
        let object = Box::from_raw(stream.cast::<StreamObject>());
        let stream = Box::from_raw(object.context.cast::<Stream>());
        sys::ggml_backend_free(stream.cpu);
        if !stream.pool.is_null() {
            sys::ggml_threadpool_free(stream.pool);
        }
        sys::ggml_free(stream.context);
    }
}

/// How many threads compute from now on.
///
/// # Safety
/// `stream` is one of ours, and is not computing.
pub unsafe extern "C" fn set_threads(stream: sys::ggml_backend_t, threads: c_int) {
    // SAFETY: the caller's promise.
    unsafe {
        let stream = &mut *(*stream.cast::<StreamObject>()).context.cast::<Stream>();
        stream.threads = threads.max(1) as usize;
        sys::ggml_backend_cpu_set_n_threads(stream.cpu, stream.threads as c_int);
    }
}

unsafe extern "C" fn compute(stream: sys::ggml_backend_t, graph: *mut sys::ggml_cgraph) -> sys::ggml_status {
    // SAFETY: ggml gives a stream of ours, and a graph whose tensors all have memory.
    unsafe {
        let stream = &mut *(*stream.cast::<StreamObject>()).context.cast::<Stream>();
        stream.choose_pool();
        match stream.exchange(graph) {
            Ok(exchanged) => {
                let status = sys::ggml_backend_graph_compute(stream.cpu, graph);
                exchanged.restore();
                status
            }
            Err(error) => {
                eprintln!("bitsmith: {error}");
                sys::GGML_STATUS_FAILED
            }
        }
    }
}

/// The products of a graph, as they were and as they are.
struct Exchanged {
    nodes: Vec<(*mut sys::ggml_tensor, sys::ggml_op, [i32; 16])>,
    /// Pointed at by the nodes' parameters.
    _jobs: Vec<Job>,
}

impl Exchanged {
    /// # Safety
    /// The nodes are alive.
    unsafe fn restore(self) {
        for (node, op, parameters) in self.nodes {
            // SAFETY: the caller's promise.
            unsafe {
                (*node).op = op;
                (*node).op_params = parameters;
            }
        }
    }
}

impl Stream {
    /// Sees to it that as many threads are there as were asked for.
    fn choose_pool(&mut self) {
        let shared = SHARED_POOL.load(Ordering::Acquire);
        // SAFETY: a pool of ours is freed only after the backend has been given another, or none.
        unsafe {
            let own = shared.is_null() && self.threads > 1;
            if own && self.pool_threads < self.threads {
                let mut params = sys::ggml_threadpool_params_default(self.threads as c_int);
                let old = self.pool;
                self.pool = sys::ggml_threadpool_new(&mut params);
                self.pool_threads = self.threads;
                sys::ggml_backend_cpu_set_threadpool(self.cpu, self.pool);
                if !old.is_null() {
                    sys::ggml_threadpool_free(old);
                }
                return;
            }
            let pool = if own { self.pool } else { shared };
            sys::ggml_backend_cpu_set_threadpool(self.cpu, pool);
        }
    }

    /// Exchanges the products by packed matrices for jobs.
    ///
    /// # Safety
    /// The graph's tensors are alive and have memory.
    unsafe fn exchange(&mut self, graph: *mut sys::ggml_cgraph) -> Result<Exchanged> {
        // SAFETY: the caller's promise, here and below.
        let nodes: Vec<_> = unsafe {
            (0..sys::ggml_graph_n_nodes(graph))
                .map(|i| sys::ggml_graph_node(graph, i))
                .filter_map(|node| product_of(node).map(|matrix| (node, matrix)))
                .collect()
        };
        for set in &mut self.activations {
            set.source = std::ptr::null();
        }
        for &(node, matrix) in &nodes {
            // SAFETY: as above.
            unsafe { self.reserve(node, matrix) };
        }
        let mut jobs = Vec::with_capacity(nodes.len());
        for &(node, matrix) in &nodes {
            // SAFETY: as above.
            jobs.push(unsafe { self.job(node, matrix)? });
        }
        let stride = jobs.iter().map(Job::scratch_bytes).max().unwrap_or(0).next_multiple_of(64);
        let threads = self.threads.max(1);
        self.scratch.grow(stride * threads);
        let scratch = self.scratch.start();
        let mut exchanged = Vec::with_capacity(nodes.len());
        for (job, &(node, _)) in jobs.iter_mut().zip(&nodes) {
            job.set_scratch(scratch, stride);
            // SAFETY: as above; `jobs` is not moved in memory any more, and lives in the result.
            unsafe {
                let like = self.custom(std::ptr::from_mut(job).cast());
                exchanged.push((node, (*node).op, (*node).op_params));
                (*node).op = (*like).op;
                (*node).op_params = (*like).op_params;
            }
        }
        Ok(Exchanged { nodes: exchanged, _jobs: jobs })
    }

    /// A custom operation as ggml makes it, to copy from.
    ///
    /// # Safety
    /// What the last call returned is not used any more.
    unsafe fn custom(&mut self, job: *mut c_void) -> *const sys::ggml_tensor {
        let type_ = sys::GGML_TYPE_F32;
        // SAFETY: the context has room for a tensor, and holds none that is used.
        unsafe {
            sys::ggml_reset(self.context);
            sys::ggml_custom_4d(
                self.context,
                type_,
                1,
                1,
                1,
                1,
                std::ptr::null_mut(),
                0,
                Some(job::run),
                ALL_THREADS,
                job,
            )
        }
    }

    /// The activations of a product's way to quantize.
    fn set(&mut self, matrix: &Packed) -> &mut Activations {
        let quantize = matrix.product.quantize();
        let way = (quantize.group(), quantize.sum_group);
        let place = self.activations.iter().position(|set| set.way == way).unwrap_or_else(|| {
            self.activations.push(Activations { way, source: std::ptr::null(), ..Activations::default() });
            self.activations.len() - 1
        });
        &mut self.activations[place]
    }

    /// Makes room for the activations of a product, before any place of it is told to a job.
    ///
    /// # Safety
    /// The node is alive.
    unsafe fn reserve(&mut self, node: *const sys::ggml_tensor, matrix: &Packed) {
        // SAFETY: the caller's promise.
        let (x, m) = unsafe { ((*node).src[1].cast_const(), rows((*node).src[1])) };
        let quantize = matrix.product.quantize();
        let k = quantize.k;
        let set = self.set(matrix);
        set.codes.grow(m * k);
        set.scales.grow(m * quantize.per.per_row(k) * 4);
        set.sums.grow(m * k.div_ceil(quantize.sum_group) * 4);
        // SAFETY: the caller's promise.
        if !unsafe { lies_straight(x) } {
            set.numbers.grow(m * k * 4);
        }
    }

    /// The job of a product, in order: it quantizes its activations unless the one before it has.
    ///
    /// # Safety
    /// The node is alive and its tensors have memory.
    unsafe fn job(&mut self, node: *const sys::ggml_tensor, matrix: &Packed) -> Result<Job> {
        // SAFETY: the caller's promise.
        let (weights, x, y) = unsafe { ((*node).src[0], (*node).src[1].cast_const(), (*node).data.cast::<u8>()) };
        // SAFETY: as above.
        let (m, straight) = unsafe { (rows(x), lies_straight(x)) };
        let set = self.set(matrix);
        let quantize = if set.source == x {
            None
        } else {
            set.source = x;
            // SAFETY: as above.
            let data = unsafe { (*x).data.cast::<u8>() };
            let gather = (!straight).then(|| Gather { from: x, to: set.numbers.start().cast() });
            let x = gather.as_ref().map_or(data, |gather| gather.to.cast());
            let places = |role| match role {
                Role::Activations => Some(x),
                Role::Output => Some(set.codes.start()),
                Role::ActivationScales => Some(set.scales.start()),
                Role::ActivationSums => Some(set.sums.start()),
                _ => None,
            };
            let call = call(matrix.quantizer()?, m, places)?;
            let per_row = matrix.product.quantize().per.per_row(matrix.product.matmul.k);
            let halves = matrix.product.half_scales().then(|| Halves { scales: set.scales.start().cast(), per_row });
            Some(Quantization { call, gather, halves })
        };
        // SAFETY: as above.
        let packed = unsafe { (*weights).data.cast::<u8>() };
        let product = call(matrix.kernel(m)?, m, |role| match role {
            Role::Activations => Some(set.codes.start()),
            Role::ActivationScales => Some(set.scales.start()),
            Role::ActivationSums => Some(set.sums.start()),
            Role::Weights => Some(packed),
            Role::Output => Some(y),
            _ => None,
        })?;
        Ok(Job::new(quantize, product))
    }
}

/// A call of a kernel for `m` rows, its buffers by role.
fn call(kernel: &Kernel, m: usize, mut place: impl FnMut(Role) -> Option<*mut u8>) -> Result<DirectCall> {
    let mut args = Vec::with_capacity(8);
    for &role in &kernel.roles {
        let memory = place(role).ok_or_else(|| Error::invalid(format!("no memory for an argument, {role:?}")))?;
        args.push(DirectArg::Memory(memory));
    }
    args.push(DirectArg::I32(m as i32));
    DirectCall::new(&kernel.program, &args, kernel.grid(m))
}

/// The packed matrix of a node that is a product by one, and is to be computed.
///
/// # Safety
/// The node and its sources are alive.
unsafe fn product_of<'a>(node: *mut sys::ggml_tensor) -> Option<&'a Packed> {
    // SAFETY: the caller's promise.
    unsafe {
        let wanted = (*node).flags as u32 & sys::GGML_TENSOR_FLAG_COMPUTE != 0;
        let product = (*node).op == sys::GGML_OP_MUL_MAT && wanted && !sys::ggml_is_empty(node);
        if product && buffer::is_ours((*node).src[0]) { packed((*node).src[0]) } else { None }
    }
}

/// Rows of a tensor, over all but the first of its dimensions.
///
/// # Safety
/// The tensor is alive.
unsafe fn rows(tensor: *const sys::ggml_tensor) -> usize {
    // SAFETY: the caller's promise.
    let ne = unsafe { (*tensor).ne };
    ne[1..].iter().map(|&n| n as usize).product()
}

/// Whether a tensor's rows lie one after another, where a kernel may read floats.
///
/// # Safety
/// The tensor is alive.
unsafe fn lies_straight(tensor: *const sys::ggml_tensor) -> bool {
    // SAFETY: the caller's promise.
    unsafe { sys::ggml_is_contiguous(tensor) && ((*tensor).data as usize).is_multiple_of(4) }
}
