//! Our type of buffer: ordinary memory, in which quantized matrices are packed as they are written.
//!
//! Reads tensors as ggml lays them; keeps packed matrices. Always holds: a tensor of such a buffer either lies as ggml lays it,
//! or is a packed matrix and says so by [`packed`]; a packed one is only written as a whole, and never read back.

use crate::abi::{BufferObject, BufferTable, BufferType};
use crate::device;
use crate::product::{Packed, Product};
use llama_cpp_sys_2 as sys;
use std::alloc::{Layout, alloc, dealloc};
use std::ffi::{c_char, c_void};
use std::sync::Mutex;

/// Where every tensor starts at multiples of: a cache line, and what kernels ask of weights.
const ALIGN: usize = 64;
/// Memory starts at a multiple of this, so that the system can give large pages.
const LARGE: usize = 2 << 20;

/// The one object of the type, which lives as long as the process.
pub fn kind() -> sys::ggml_backend_buffer_type_t {
    static KIND: Once<BufferType> = Once(std::sync::OnceLock::new());
    let kind = KIND.0.get_or_init(|| BufferType {
        get_name: Some(name),
        alloc_buffer: Some(allocate),
        alloc_buffer_n: None,
        get_alignment: Some(alignment),
        get_max_size: None,
        get_alloc_size: Some(size_of_tensor),
        get_alloc_size_n: None,
        is_host: Some(is_host),
        device: device::device(),
        context: std::ptr::null_mut(),
    });
    std::ptr::from_ref(kind).cast_mut().cast()
}

/// An object that ggml is given the address of, and never changes.
pub struct Once<T>(pub std::sync::OnceLock<T>);

// SAFETY: the pointers in these objects are to other such objects, or null.
unsafe impl<T> Sync for Once<T> {}
// SAFETY: as above.
unsafe impl<T> Send for Once<T> {}

/// What a buffer of ours holds.
struct Memory {
    start: *mut u8,
    layout: Layout,
    /// Owned here, pointed at by `extra` of their tensors.
    #[expect(clippy::vec_box, reason = "their addresses must stay")]
    matrices: Mutex<Vec<Box<Packed>>>,
}

unsafe extern "C" fn name(_: sys::ggml_backend_buffer_type_t) -> *const c_char {
    c"Bitsmith".as_ptr()
}

unsafe extern "C" fn alignment(_: sys::ggml_backend_buffer_type_t) -> usize {
    ALIGN
}

/// Packed matrices are not as ggml lays them, so nobody else may read them.
unsafe extern "C" fn is_host(_: sys::ggml_backend_buffer_type_t) -> bool {
    false
}

unsafe extern "C" fn size_of_tensor(_: sys::ggml_backend_buffer_type_t, tensor: *const sys::ggml_tensor) -> usize {
    // SAFETY: ggml gives a tensor.
    unsafe {
        let plain = sys::ggml_nbytes(tensor);
        weights(tensor).and_then(|product| product.packed_bytes().ok()).map_or(plain, |packed| packed.max(plain))
    }
}

unsafe extern "C" fn allocate(kind: sys::ggml_backend_buffer_type_t, bytes: usize) -> sys::ggml_backend_buffer_t {
    let align = if bytes >= LARGE { LARGE } else { ALIGN };
    let Ok(layout) = Layout::from_size_align(bytes.max(1), align) else { return std::ptr::null_mut() };
    // SAFETY: the layout has at least one byte.
    let start = unsafe { alloc(layout) };
    if start.is_null() {
        return std::ptr::null_mut();
    }
    large_pages(start, bytes);
    // SAFETY: the memory is ours. It gets its pages here, after the system has been asked for large ones.
    unsafe { start.write_bytes(0, layout.size()) };
    let table = BufferTable {
        free_buffer: Some(free),
        get_base: Some(base),
        init_tensor: Some(init),
        memset_tensor: Some(fill),
        set_tensor: Some(write),
        get_tensor: Some(read),
        set_tensor_2d: None,
        get_tensor_2d: None,
        cpy_tensor: None,
        clear: Some(clear),
        reset: None,
    };
    let memory = Box::into_raw(Box::new(Memory { start, layout, matrices: Mutex::new(Vec::new()) }));
    // SAFETY: the table is that of the linked version, which was checked; ggml owns the buffer and frees it by `free`.
    unsafe { init_buffer(kind, table, memory.cast(), bytes) }
}

/// Asks for large pages, where the system gives them on request alone: a product streams through all of its weights, and with
/// small pages the processor looks up where each lies.
fn large_pages(start: *mut u8, bytes: usize) {
    #[cfg(target_os = "linux")]
    if bytes >= LARGE {
        // SAFETY: the range is our own; the call is a hint, and its failure changes nothing.
        unsafe { libc::madvise(start.cast(), bytes, libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, bytes);
}

unsafe extern "C" {
    /// Declared in `ggml-backend-impl.h`, for makers of backends.
    #[link_name = "ggml_backend_buffer_init"]
    fn init_buffer(
        kind: sys::ggml_backend_buffer_type_t,
        table: BufferTable,
        context: *mut c_void,
        size: usize,
    ) -> sys::ggml_backend_buffer_t;
}

/// # Safety
/// `buffer` is one that [`allocate`] made.
unsafe fn memory<'a>(buffer: sys::ggml_backend_buffer_t) -> &'a Memory {
    // SAFETY: the caller's promise.
    unsafe { &*(*buffer.cast::<BufferObject>()).context.cast::<Memory>() }
}

unsafe extern "C" fn free(buffer: sys::ggml_backend_buffer_t) {
    // SAFETY: ggml frees a buffer once, and nothing of it is used afterwards.
    unsafe {
        let memory = Box::from_raw((*buffer.cast::<BufferObject>()).context.cast::<Memory>());
        dealloc(memory.start, memory.layout);
    }
}

unsafe extern "C" fn base(buffer: sys::ggml_backend_buffer_t) -> *mut c_void {
    // SAFETY: `buffer` is ours.
    unsafe { memory(buffer).start.cast() }
}

unsafe extern "C" fn init(buffer: sys::ggml_backend_buffer_t, tensor: *mut sys::ggml_tensor) -> sys::ggml_status {
    // SAFETY: `buffer` is ours, and the tensor is being placed in it.
    unsafe {
        if let Some(product) = weights(tensor) {
            let matrix = Box::new(Packed::new(product));
            (*tensor).extra = std::ptr::from_ref(&*matrix).cast_mut().cast();
            memory(buffer).matrices.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(matrix);
        }
    }
    sys::GGML_STATUS_SUCCESS
}

unsafe extern "C" fn fill(
    _: sys::ggml_backend_buffer_t,
    tensor: *mut sys::ggml_tensor,
    value: u8,
    offset: usize,
    bytes: usize,
) {
    // SAFETY: ggml has checked the range against the tensor's own bytes.
    unsafe {
        whole(tensor, "is filled");
        (*tensor).data.cast::<u8>().add(offset).write_bytes(value, bytes);
    }
}

unsafe extern "C" fn write(
    _: sys::ggml_backend_buffer_t,
    tensor: *mut sys::ggml_tensor,
    data: *const c_void,
    offset: usize,
    bytes: usize,
) {
    // SAFETY: ggml has checked the range against the tensor's own bytes; a packed matrix has as many as it said it needs.
    unsafe {
        let to = (*tensor).data.cast::<u8>();
        let Some(matrix) = packed(tensor) else {
            whole(tensor, "is written through a view");
            std::ptr::copy_nonoverlapping(data.cast::<u8>(), to.add(offset), bytes);
            return;
        };
        if offset != 0 || bytes != sys::ggml_nbytes(tensor) {
            abort(tensor, &format!("is written in parts: bytes {offset}+{bytes}"));
        }
        let blocks = std::slice::from_raw_parts(data.cast::<u8>(), bytes);
        let done = matrix
            .product
            .packed_bytes()
            .and_then(|size| matrix.product.pack(blocks, std::slice::from_raw_parts_mut(to, size)));
        if let Err(error) = done {
            abort(tensor, &error.to_string());
        }
    }
}

unsafe extern "C" fn read(
    _: sys::ggml_backend_buffer_t,
    tensor: *const sys::ggml_tensor,
    data: *mut c_void,
    offset: usize,
    bytes: usize,
) {
    // SAFETY: ggml has checked the range against the tensor's own bytes.
    unsafe {
        whole(tensor, "is read back");
        std::ptr::copy_nonoverlapping((*tensor).data.cast::<u8>().add(offset), data.cast::<u8>(), bytes);
    }
}

unsafe extern "C" fn clear(buffer: sys::ggml_backend_buffer_t, value: u8) {
    // SAFETY: the memory has this size.
    unsafe {
        let memory = memory(buffer);
        memory.start.write_bytes(value, memory.layout.size());
    }
}

/// Ends the process where a packed matrix is touched as if it lay as ggml lays it: ggml's functions return nothing that could
/// say so, and its own repacking buffers do the same.
///
/// # Safety
/// `tensor` is alive.
unsafe fn whole(tensor: *const sys::ggml_tensor, what: &str) {
    // SAFETY: the caller's promise.
    if unsafe { holds_packed(tensor) } {
        // SAFETY: as above.
        unsafe { abort(tensor, &format!("{what}, but it is packed")) }
    }
}

/// # Safety
/// `tensor` is alive.
unsafe fn abort(tensor: *const sys::ggml_tensor, why: &str) -> ! {
    // SAFETY: the caller's promise; a tensor's name ends with a zero byte.
    let name = unsafe { std::ffi::CStr::from_ptr((*tensor).name.as_ptr()) }.to_string_lossy();
    eprintln!("bitsmith: tensor `{name}` {why}");
    std::process::abort()
}

/// The product that a tensor is packed for in a buffer of ours, whether or not it already is in one: a matrix of weights, of a
/// type and shape that kernels know.
///
/// # Safety
/// `tensor` is alive.
pub unsafe fn weights(tensor: *const sys::ggml_tensor) -> Option<Product> {
    // SAFETY: the caller's promise.
    unsafe {
        let t = &*tensor;
        let matrix = t.ne[2] == 1 && t.ne[3] == 1 && sys::ggml_is_contiguous(tensor);
        if t.op != sys::GGML_OP_NONE || !t.view_src.is_null() || !matrix {
            return None;
        }
        Product::of(t.type_, usize::try_from(t.ne[1]).ok()?, usize::try_from(t.ne[0]).ok()?)
    }
}

/// Whether a tensor lies in a buffer of ours.
///
/// # Safety
/// `tensor` is alive.
pub unsafe fn is_ours(tensor: *const sys::ggml_tensor) -> bool {
    // SAFETY: the caller's promise; a buffer has a type.
    unsafe {
        let buffer = if (*tensor).view_src.is_null() { (*tensor).buffer } else { (*(*tensor).view_src).buffer };
        !buffer.is_null() && sys::ggml_backend_buffer_get_type(buffer) == kind()
    }
}

/// Whether a tensor of ours is a packed matrix or a view of one.
///
/// # Safety
/// `tensor` is alive.
pub unsafe fn holds_packed(tensor: *const sys::ggml_tensor) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let root = if (*tensor).view_src.is_null() { tensor } else { (*tensor).view_src.cast_const() };
        // In a buffer of no bytes it has not been placed: an engine asks where to put it.
        is_ours(root) && (!(*root).extra.is_null() || (is_empty((*root).buffer) && weights(root).is_some()))
    }
}

/// Whether a buffer has no bytes: engines make one to ask which operations would be supported on weights in it.
///
/// # Safety
/// `buffer` is alive, or null.
pub unsafe fn is_empty(buffer: sys::ggml_backend_buffer_t) -> bool {
    // SAFETY: the caller's promise.
    !buffer.is_null() && unsafe { sys::ggml_backend_buffer_get_size(buffer) } == 0
}

/// The packed matrix that a tensor of ours is.
///
/// # Safety
/// `tensor` is alive, and so is its buffer for as long as the result is used.
pub unsafe fn packed<'a>(tensor: *const sys::ggml_tensor) -> Option<&'a Packed> {
    // SAFETY: the caller's promise; in buffers of ours, `extra` is null or was set by `init`.
    unsafe {
        let extra = (*tensor).extra.cast::<Packed>();
        (is_ours(tensor) && (*tensor).view_src.is_null() && !extra.is_null()).then(|| &*extra)
    }
}
