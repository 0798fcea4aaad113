//! The structures of `ggml-backend-impl.h`, through which a backend is called: what the public headers leave opaque.
//!
//! Reads nothing; declares tables of functions in the order of that header, version 3 of the interface. Always holds:
//! [`faults`] compares sizes and places of their fields with the library that is linked, and [`crate::register`]
//! refuses to go on where they differ.

use llama_cpp_sys_2 as sys;
use std::ffi::{CStr, c_char, c_int, c_void};

/// The version of the interface that these tables are of.
pub const VERSION: c_int = 3;

/// A function of a table that nobody has to provide and we do not.
pub type Absent = Option<unsafe extern "C" fn()>;
type Buft = sys::ggml_backend_buffer_type_t;
type Buffer = sys::ggml_backend_buffer_t;
type Dev = sys::ggml_backend_dev_t;
type Reg = sys::ggml_backend_reg_t;
type Stream = sys::ggml_backend_t;
type Tensor = *mut sys::ggml_tensor;

/// `ggml_backend_buffer_type`.
#[repr(C)]
pub struct BufferType {
    pub get_name: Option<unsafe extern "C" fn(Buft) -> *const c_char>,
    pub alloc_buffer: Option<unsafe extern "C" fn(Buft, usize) -> Buffer>,
    pub alloc_buffer_n: Absent,
    pub get_alignment: Option<unsafe extern "C" fn(Buft) -> usize>,
    pub get_max_size: Absent,
    pub get_alloc_size: Option<unsafe extern "C" fn(Buft, *const sys::ggml_tensor) -> usize>,
    pub get_alloc_size_n: Absent,
    pub is_host: Option<unsafe extern "C" fn(Buft) -> bool>,
    pub device: Dev,
    pub context: *mut c_void,
}

/// `ggml_backend_buffer_i`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct BufferTable {
    pub free_buffer: Option<unsafe extern "C" fn(Buffer)>,
    pub get_base: Option<unsafe extern "C" fn(Buffer) -> *mut c_void>,
    pub init_tensor: Option<unsafe extern "C" fn(Buffer, Tensor) -> sys::ggml_status>,
    pub memset_tensor: Option<unsafe extern "C" fn(Buffer, Tensor, u8, usize, usize)>,
    pub set_tensor: Option<unsafe extern "C" fn(Buffer, Tensor, *const c_void, usize, usize)>,
    pub get_tensor: Option<unsafe extern "C" fn(Buffer, *const sys::ggml_tensor, *mut c_void, usize, usize)>,
    pub set_tensor_2d: Absent,
    pub get_tensor_2d: Absent,
    pub cpy_tensor: Absent,
    pub clear: Option<unsafe extern "C" fn(Buffer, u8)>,
    pub reset: Absent,
}

/// `ggml_backend_buffer`.
#[repr(C)]
pub struct BufferObject {
    pub table: BufferTable,
    pub buft: Buft,
    pub context: *mut c_void,
    pub size: usize,
    pub usage: sys::ggml_backend_buffer_usage,
}

/// `ggml_backend`.
#[repr(C)]
pub struct StreamObject {
    pub guid: *mut [u8; 16],
    pub get_name: Option<unsafe extern "C" fn(Stream) -> *const c_char>,
    pub free: Option<unsafe extern "C" fn(Stream)>,
    pub set_tensor_async: Absent,
    pub get_tensor_async: Absent,
    pub set_tensor_2d_async: Absent,
    pub get_tensor_2d_async: Absent,
    pub cpy_tensor_async: Absent,
    pub synchronize: Absent,
    pub graph_plan_create: Absent,
    pub graph_plan_free: Absent,
    pub graph_plan_update: Absent,
    pub graph_plan_compute: Absent,
    pub graph_compute: Option<unsafe extern "C" fn(Stream, *mut sys::ggml_cgraph) -> sys::ggml_status>,
    pub event_record: Absent,
    pub event_wait: Absent,
    pub graph_optimize: Absent,
    pub device: Dev,
    pub context: *mut c_void,
}

/// `ggml_backend_device`.
#[repr(C)]
pub struct Device {
    pub get_name: Option<unsafe extern "C" fn(Dev) -> *const c_char>,
    pub get_description: Option<unsafe extern "C" fn(Dev) -> *const c_char>,
    pub get_memory: Option<unsafe extern "C" fn(Dev, *mut usize, *mut usize)>,
    pub get_type: Option<unsafe extern "C" fn(Dev) -> sys::ggml_backend_dev_type>,
    pub get_props: Option<unsafe extern "C" fn(Dev, *mut sys::ggml_backend_dev_props)>,
    pub init_backend: Option<unsafe extern "C" fn(Dev, *const c_char) -> Stream>,
    pub get_buffer_type: Option<unsafe extern "C" fn(Dev) -> Buft>,
    pub get_host_buffer_type: Absent,
    pub buffer_from_host_ptr: Absent,
    pub supports_op: Option<unsafe extern "C" fn(Dev, *const sys::ggml_tensor) -> bool>,
    pub supports_buft: Option<unsafe extern "C" fn(Dev, Buft) -> bool>,
    pub offload_op: Absent,
    pub event_new: Absent,
    pub event_free: Absent,
    pub event_synchronize: Absent,
    pub reg: Reg,
    pub context: *mut c_void,
}

/// `ggml_backend_reg`.
#[repr(C)]
pub struct Registration {
    pub api_version: c_int,
    pub get_name: Option<unsafe extern "C" fn(Reg) -> *const c_char>,
    pub get_device_count: Option<unsafe extern "C" fn(Reg) -> usize>,
    pub get_device: Option<unsafe extern "C" fn(Reg, usize) -> Dev>,
    pub get_proc_address: Option<unsafe extern "C" fn(Reg, *const c_char) -> *mut c_void>,
    pub context: *mut c_void,
}

/// Where these declarations and the linked library differ: the fields of ggml's own CPU backend are read through both the
/// tables above and the public functions, last fields included, since those move when one before them comes or goes.
pub fn faults() -> Vec<String> {
    let mut faults = Vec::new();
    let mut same = |what: &str, equal: bool| {
        if !equal {
            faults.push(format!(
                "{what} lies elsewhere in this version of ggml than in version {VERSION} of its interface"
            ));
        }
    };
    // SAFETY: the CPU backend is always linked, and its objects are never freed. Each field is compared with what the public
    // function gives before what depends on it is followed; the sizes of the objects are at least those of their first fields.
    unsafe {
        let reg = sys::ggml_backend_cpu_reg();
        let table = &*reg.cast::<Registration>();
        same("ggml_backend_reg.api_version", table.api_version == VERSION);
        if table.api_version != VERSION {
            return faults;
        }
        let dev = sys::ggml_backend_reg_dev_get(reg, 0);
        let called = table.get_device.map(|get| get(reg, 0));
        same("ggml_backend_reg.get_device", called == Some(dev));
        let lookup = c"ggml_backend_set_n_threads";
        let public = sys::ggml_backend_reg_get_proc_address(reg, lookup.as_ptr());
        let called = table.get_proc_address.map(|get| get(reg, lookup.as_ptr()));
        same("ggml_backend_reg.get_proc_address", called == Some(public));

        let device = &*dev.cast::<Device>();
        same("ggml_backend_device.reg", device.reg == reg);
        let plain = sys::ggml_backend_dev_buffer_type(dev);
        same("ggml_backend_device.get_buffer_type", device.get_buffer_type.map(|get| get(dev)) == Some(plain));
        same("ggml_backend_device.supports_buft", device.supports_buft.map(|ask| ask(dev, plain)) == Some(true));
        let mut props = std::mem::zeroed();
        sys::ggml_backend_dev_get_props(dev, &mut props);
        same("ggml_backend_device.get_type", device.get_type.map(|get| get(dev)) == Some(props.type_));

        let buft = &*plain.cast::<BufferType>();
        same("ggml_backend_buffer_type.device", buft.device == dev || buft.device.is_null());
        let alignment = sys::ggml_backend_buft_get_alignment(plain);
        same("ggml_backend_buffer_type.get_alignment", buft.get_alignment.map(|get| get(plain)) == Some(alignment));
        same("ggml_backend_buffer_type.is_host", buft.is_host.map(|ask| ask(plain)) == Some(true));

        let buffer = sys::ggml_backend_buft_alloc_buffer(plain, 4096);
        if buffer.is_null() {
            same("a buffer of 4096 bytes", false);
            return faults;
        }
        sys::ggml_backend_buffer_set_usage(buffer, sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        let object = &*buffer.cast::<BufferObject>();
        same("ggml_backend_buffer.buft", object.buft == plain);
        same("ggml_backend_buffer.size", object.size == sys::ggml_backend_buffer_get_size(buffer));
        same("ggml_backend_buffer.usage", object.usage == sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        let base = sys::ggml_backend_buffer_get_base(buffer);
        same("ggml_backend_buffer.get_base", object.table.get_base.map(|get| get(buffer)) == Some(base));
        sys::ggml_backend_buffer_free(buffer);

        let stream = sys::ggml_backend_cpu_init();
        if stream.is_null() {
            same("a CPU backend", false);
            return faults;
        }
        let object = &*stream.cast::<StreamObject>();
        same("ggml_backend.guid", *object.guid == *sys::ggml_backend_guid(stream));
        same("ggml_backend.device", object.device == dev);
        let name = object.get_name.map(|get| CStr::from_ptr(get(stream)));
        same("ggml_backend.get_name", name == Some(CStr::from_ptr(sys::ggml_backend_name(stream))));
        same("ggml_backend.graph_compute", object.graph_compute.is_some());
        sys::ggml_backend_free(stream);
    }
    faults
}
