//! AMD GPUs: libamdhip64 and hiprtc, loaded when the first HIP device is opened.
//!
//! Reads artifacts whose payload is HIP source (compiled by hiprtc for the device that is here) or a code object. Always
//! holds: without the libraries or a device there is an error that names what is missing; nothing falls back.
//!
//! No AMD GPU was at hand when this was written: it has been run only as far as a machine without one goes.

mod api;
mod compile;

use crate::device::{Buffer, Device, DeviceInfo, Launch, LaunchArg, Program, check_launch};
use api::{Handle, Hip};
use bitsmith_compiler::artifact::{Artifact, Payload};
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::hip::HipTarget;
use bitsmith_compiler::{Error, Result};
use std::ffi::{CString, c_int, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One AMD GPU.
pub struct HipDevice {
    hip: &'static Hip,
    index: c_int,
    model: String,
    target: HipTarget,
    /// Where copies and launches are queued: null for the default stream, or the caller's.
    stream: Handle,
    /// HIP's current device belongs to a thread; whoever calls HIP sets it first and holds this.
    lock: Mutex<()>,
}

// SAFETY: the stream is an opaque handle that HIP's functions take from any thread; calls are ordered by the lock.
unsafe impl Send for HipDevice {}
// SAFETY: as above.
unsafe impl Sync for HipDevice {}

/// Device memory.
struct Memory {
    hip: &'static Hip,
    index: c_int,
    address: *mut c_void,
}

// SAFETY: the address is the device's; only HIP's functions, which any thread may call, follow it.
unsafe impl Send for Memory {}
// SAFETY: as above; copies and launches are ordered by the device's lock.
unsafe impl Sync for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the address came from `hipMalloc` on this device and is freed once; HIP waits for launches that use it.
        unsafe {
            (self.hip.set_device)(self.index);
            (self.hip.free)(self.address);
        }
    }
}

/// A loaded module and its one function.
struct Module {
    hip: &'static Hip,
    module: Handle,
    function: Handle,
}

// SAFETY: the handles are opaque, and HIP's functions may be called with them from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: the module was loaded and is unloaded once.
        unsafe { (self.hip.unload_module)(self.module) };
    }
}

/// Room for `hipDeviceProp_tR0600`, which has 1472 bytes in ROCm 6 and may grow.
const PROPERTIES: usize = 16 << 10;

impl HipDevice {
    /// The device of this number, on its default stream.
    pub fn open(index: u32) -> Result<HipDevice> {
        HipDevice::on(index, ptr::null_mut())
    }

    /// The same on a stream of the caller's (`hipStream_t`; null for the default one), so that copies and launches come in order
    /// with what others queue there.
    ///
    /// # Safety
    /// The stream is one of that device, and outlives the device and all that was made of it.
    pub unsafe fn open_on(index: u32, stream: *mut c_void) -> Result<HipDevice> {
        HipDevice::on(index, stream)
    }

    fn on(index: u32, stream: Handle) -> Result<HipDevice> {
        let hip = api::hip()?;
        let mut count = 0;
        // SAFETY: the calls take a flag word that must be 0, and a place for the number.
        unsafe {
            hip.check((hip.init)(0), "starting")?;
            hip.check((hip.device_count)(&mut count), "counting devices")?;
        }
        let index = c_int::try_from(index).ok().filter(|&index| index < count).ok_or_else(|| {
            Error::Unsupported(format!("device `hip:{index}`; HIP sees {count} devices, numbered from 0"))
        })?;
        let mut properties = vec![0u8; PROPERTIES];
        // SAFETY: the buffer is larger than the structure of any release that has this symbol.
        hip.check(unsafe { (hip.properties)(properties.as_mut_ptr().cast(), index) }, "asking for properties")?;
        let text = |at: usize| {
            let end = properties[at..].iter().position(|&byte| byte == 0).map_or(properties.len(), |n| at + n);
            String::from_utf8_lossy(&properties[at..end]).into_owned()
        };
        // The name comes first; the name of the instruction set is the one text that starts with `gfx`.
        let model = text(0);
        let arch = properties.windows(3).position(|window| window == b"gfx").map(text).unwrap_or_default();
        let arch = arch.split(':').next().unwrap_or_default();
        let by_model = HipTarget::names().filter_map(|name| HipTarget::named(name).ok()).find(|target| {
            target.arch() == arch && target.gpu().caps.gpu.is_some_and(|gpu| model.ends_with(gpu.model))
        });
        let target = match by_model {
            Some(target) => target,
            None => HipTarget::named(arch).map_err(|_| {
                Error::Unsupported(format!("device `hip:{index}` is {model} ({arch}), which no target is made for"))
            })?,
        };
        Ok(HipDevice { hip, index, model, target, stream, lock: Mutex::new(()) })
    }

    /// Makes this the thread's device and keeps others out.
    fn enter(&self) -> Result<MutexGuard<'_, ()>> {
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the number was below the count of devices.
        self.hip.check(unsafe { (self.hip.set_device)(self.index) }, "choosing the device")?;
        Ok(guard)
    }
}

fn own(buffer: &Buffer) -> Result<&Memory> {
    buffer.memory.downcast_ref::<Memory>().ok_or_else(|| Error::invalid("the buffer belongs to another device"))
}

impl Device for HipDevice {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            name: format!("hip:{}", self.index),
            model: self.model.clone(),
            target: self.target.caps().name.into(),
            threads: self.target.gpu().caps.gpu.map_or(0, |gpu| gpu.units as usize),
            features: self.target.caps().features.iter().map(|f| f.name().to_string()).collect(),
            notes: Vec::new(),
        }
    }

    fn target(&self) -> &dyn Target {
        &self.target
    }

    fn allocate(&self, bytes: usize) -> Result<Buffer> {
        let _guard = self.enter()?;
        let mut address = ptr::null_mut();
        // SAFETY: the place is written on success.
        let status = unsafe { (self.hip.malloc)(&mut address, bytes.max(1)) };
        self.hip.check(status, &format!("allocating {bytes} bytes"))?;
        Ok(Buffer::new(Arc::new(Memory { hip: self.hip, index: self.index, address }), bytes))
    }

    fn upload(&self, buffer: &Buffer, offset: usize, bytes: &[u8]) -> Result<()> {
        buffer.check(offset, bytes.len())?;
        let memory = own(buffer)?;
        let _guard = self.enter()?;
        // SAFETY: the range lies in the buffer, and the call returns when the bytes have been read.
        let status = unsafe {
            let to = memory.address.byte_add(offset);
            (self.hip.copy)(to, bytes.as_ptr().cast(), bytes.len(), api::TO_DEVICE, self.stream)
        };
        self.hip.check(status, "copying to the device")
    }

    fn download(&self, buffer: &Buffer, offset: usize, bytes: &mut [u8]) -> Result<()> {
        buffer.check(offset, bytes.len())?;
        let memory = own(buffer)?;
        let _guard = self.enter()?;
        // SAFETY: the range lies in the buffer, and the call returns when the bytes have been written.
        let status = unsafe {
            let from = memory.address.byte_add(offset);
            (self.hip.copy)(bytes.as_mut_ptr().cast(), from, bytes.len(), api::TO_HOST, self.stream)
        };
        self.hip.check(status, "copying from the device")
    }

    fn load(&self, artifact: &Artifact) -> Result<Program> {
        artifact.alone("HIP")?;
        let made_for = HipTarget::named(&artifact.target)?;
        if made_for.arch() != self.target.arch() {
            return Err(Error::Unsupported(format!(
                "{} is code for {} ({}); this device is {}",
                artifact.entry,
                artifact.target,
                made_for.arch(),
                self.target.arch()
            )));
        }
        let compiled;
        let code = match &artifact.payload {
            Payload::Machine(code) => code,
            Payload::Binary(_) => {
                return Err(Error::invalid(format!("{} is a module for another driver", artifact.entry)));
            }
            Payload::Text(source) => {
                compiled = compile::compile(artifact, source, self.target.arch())?;
                &compiled
            }
        };
        let entry = CString::new(artifact.entry.as_str())
            .map_err(|_| Error::invalid(format!("the entry {:?} holds a zero byte", artifact.entry)))?;
        let _guard = self.enter()?;
        let mut module = ptr::null_mut();
        // SAFETY: HIP copies the code object, and the places are written on success.
        self.hip.check(unsafe { (self.hip.load_module)(&mut module, code.as_ptr().cast()) }, "loading code")?;
        let mut module = Module { hip: self.hip, module, function: ptr::null_mut() };
        // SAFETY: the module is loaded, and the name is a C string.
        let status = unsafe { (self.hip.function)(&mut module.function, module.module, entry.as_ptr()) };
        self.hip.check(status, &format!("finding {}", artifact.entry))?;
        Ok(Program { code: Arc::new(module), artifact: Arc::new(artifact.clone()) })
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        check_launch(launch)?;
        let module = launch
            .program
            .code
            .downcast_ref::<Module>()
            .ok_or_else(|| Error::invalid("the program belongs to another device"))?;
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let [x, y, z] = launch.program.artifact.workgroup;
        // The hardware counts threads of a grid in 32 bits along each axis.
        if launch.grid.iter().zip([x, y, z]).any(|(&groups, threads)| groups.checked_mul(threads).is_none()) {
            return Err(Error::invalid(format!(
                "a grid of {:?} workgroups; accepted: below 2^32 threads",
                launch.grid
            )));
        }
        let mut values = Vec::with_capacity(launch.args.len());
        for arg in &launch.args {
            values.push(match arg {
                LaunchArg::Buffer(view) => own(view.buffer)?.address as u64 + view.offset as u64,
                LaunchArg::I32(x) => *x as u32 as u64,
                LaunchArg::I64(x) => *x as u64,
                LaunchArg::F32(x) => x.to_bits() as u64,
            });
        }
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|value| ptr::from_mut(value).cast()).collect();
        let _guard = self.enter()?;
        let [grid_x, grid_y, grid_z] = launch.grid;
        // SAFETY: `check_launch` matched the arguments to the artifact; HIP copies them before it returns, and each points to
        // at least as many bytes as its parameter has.
        let status = unsafe {
            (self.hip.launch)(
                module.function,
                grid_x,
                grid_y,
                grid_z,
                x,
                y,
                z,
                0,
                self.stream,
                pointers.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        self.hip.check(status, &format!("launching {}", launch.program.artifact.entry))
    }

    fn synchronize(&self) -> Result<()> {
        let _guard = self.enter()?;
        // SAFETY: the stream is the default one, or the caller's, which lives.
        self.hip.check(unsafe { (self.hip.synchronize)(self.stream) }, "waiting for the stream")
    }
}
