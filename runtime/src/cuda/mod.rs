//! NVIDIA GPUs: the driver's API, loaded when the first CUDA device is opened.
//!
//! Reads artifacts whose payload is PTX, which the driver assembles for the device that is here, or a cubin. Always holds:
//! without a driver or a device there is an error that names what is missing; nothing falls back.
//!
//! It has run on an H100 (driver 580, CUDA 13): the hardware suite, graphs, the tuner.

mod choose;
mod context;
mod driver;
mod launch;
mod module;

pub use choose::{Choice, Facts, choose};

use self::context::{Context, Memory};
use self::launch::{Graph, Ready, own};
use self::module::Module;
use crate::device::{Buffer, Device, DeviceInfo, Launch, Program};
use crate::timing::Recording;
use bitsmith_compiler::artifact::Artifact;
use bitsmith_compiler::target::Target;
use bitsmith_compiler::target::ptx::PtxTarget;
use bitsmith_compiler::{Error, Result};
use cudarc::driver::sys::{self, CUdevice, CUdevice_attribute};
use driver::check;
use std::ffi::{c_char, c_int, c_void};
use std::sync::Arc;

/// One NVIDIA GPU.
pub struct CudaDevice {
    index: u32,
    facts: Facts,
    target: PtxTarget,
    notes: Vec<String>,
    context: Arc<Context>,
}

impl CudaDevice {
    /// The device of this number, in the driver's order (`CUDA_VISIBLE_DEVICES` changes it), with a stream of its own.
    pub fn open(index: u32) -> Result<CudaDevice> {
        CudaDevice::on(index, Context::new)
    }

    /// The same on the caller's context (a `CUcontext`; null for the device's primary one) and stream (a `CUstream` or
    /// `cudaStream_t`; null for the default one), so that launches come in order with what others queue there.
    ///
    /// # Safety
    /// The context is one of that device, the stream one of the context, and both outlive the device and all that was made
    /// of it.
    pub unsafe fn open_on(index: u32, context: *mut c_void, stream: *mut c_void) -> Result<CudaDevice> {
        CudaDevice::on(index, |device| {
            if context.is_null() {
                Context::primary(device, stream.cast())
            } else {
                Ok(Context::adopted(context.cast(), stream.cast()))
            }
        })
    }

    fn on(index: u32, context: impl FnOnce(CUdevice) -> Result<Context>) -> Result<CudaDevice> {
        let version = driver::open()?;
        let mut count = 0;
        // SAFETY: the driver has been started, and the place is written on success.
        check(unsafe { sys::cuDeviceGetCount(&mut count) }, "counting devices")?;
        let ordinal = c_int::try_from(index).ok().filter(|&index| index < count).ok_or_else(|| {
            Error::Unsupported(format!("device `cuda:{index}`; CUDA sees {count} devices, numbered from 0"))
        })?;
        let mut device = 0;
        // SAFETY: the number is below the count, and the place is written on success.
        check(unsafe { sys::cuDeviceGet(&mut device, ordinal) }, "choosing the device")?;
        let mut name = [0u8; 256];
        // SAFETY: the buffer has the size that is named.
        let status = unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast::<c_char>(), name.len() as c_int, device) };
        check(status, "asking for the device's name")?;
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        let number = |attribute: CUdevice_attribute| -> Result<i32> {
            let mut value = 0;
            // SAFETY: the place is written on success.
            let status = unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) };
            check(status, "asking for properties")?;
            Ok(value)
        };
        let major = number(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = number(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let shared = number(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let facts = Facts {
            model: String::from_utf8_lossy(&name[..end]).into_owned(),
            capability: 10 * major + minor,
            units: number(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
        };
        let Choice { target, mut notes } = choose(&facts)?;
        choose::fits(&target, shared as u32)?;
        if let Some(needed) = choose::needs(target.arch().name, version) {
            notes.push(format!(
                "the driver offers CUDA {}; code for {} may need {}: update the driver where it refuses a kernel",
                driver::spelled(version),
                target.arch().name,
                driver::spelled(needed)
            ));
        }
        let context = Arc::new(context(device)?);
        Ok(CudaDevice { index, facts, target, notes, context })
    }

    /// The device's number in the driver's order, its compute capability and its units.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The context, a `CUcontext`, for other libraries that are to share it; good as long as the device lives.
    pub fn raw_context(&self) -> *mut c_void {
        self.context.raw()
    }

    /// Memory of the caller's as a buffer, so that a launch can take a pointer of another library.
    ///
    /// # Safety
    /// `address` is the start of so many bytes of this device's memory, which stay allocated as long as the buffer or a
    /// clone of it lives, and which nobody else touches while a launch uses them.
    pub unsafe fn borrow(&self, address: u64, bytes: usize) -> Buffer {
        Buffer::new(Arc::new(Memory::borrowed(&self.context, address)), bytes)
    }
}

impl Device for CudaDevice {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            name: format!("cuda:{}", self.index),
            model: self.facts.model.clone(),
            target: self.target.caps().name.into(),
            threads: self.facts.units as usize,
            features: self.target.caps().features.iter().map(|f| f.name().to_string()).collect(),
            notes: self.notes.clone(),
        }
    }

    fn target(&self) -> &dyn Target {
        &self.target
    }

    fn allocate(&self, bytes: usize) -> Result<Buffer> {
        Ok(Buffer::new(Arc::new(Memory::new(&self.context, bytes)?), bytes))
    }

    fn upload(&self, buffer: &Buffer, offset: usize, bytes: &[u8]) -> Result<()> {
        buffer.check(offset, bytes.len())?;
        let memory = own(self, buffer)?;
        let _guard = self.context.enter()?;
        let (to, from) = (memory.address + offset as u64, bytes.as_ptr().cast());
        // SAFETY: the range lies in the buffer, and the bytes are read before the wait below ends.
        let status = unsafe { sys::cuMemcpyHtoDAsync_v2(to, from, bytes.len(), self.context.stream) };
        check(status, "copying to the device")?;
        self.context.wait("copying to the device")
    }

    fn download(&self, buffer: &Buffer, offset: usize, bytes: &mut [u8]) -> Result<()> {
        buffer.check(offset, bytes.len())?;
        let memory = own(self, buffer)?;
        let _guard = self.context.enter()?;
        let (to, from) = (bytes.as_mut_ptr().cast(), memory.address + offset as u64);
        // SAFETY: the range lies in the buffer, and the bytes are written before the wait below ends.
        let status = unsafe { sys::cuMemcpyDtoHAsync_v2(to, from, bytes.len(), self.context.stream) };
        check(status, "copying from the device")?;
        self.context.wait("copying from the device")
    }

    fn accepts(&self, target: &str) -> Option<u32> {
        choose::rank(target, &self.target, self.facts.capability)
    }

    fn load(&self, artifact: &Artifact) -> Result<Program> {
        if !choose::runs(&artifact.target, self.facts.capability) {
            return Err(Error::Unsupported(format!(
                "{} is code for {}; this device is {} (compute capability {}.{})",
                artifact.entry,
                artifact.target,
                self.facts.model,
                self.facts.capability / 10,
                self.facts.capability % 10
            )));
        }
        let module = Module::load(&self.context, artifact)?;
        Ok(Program { code: Arc::new(module), artifact: Arc::new(artifact.clone()) })
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        let Some(mut ready) = Ready::new(self, launch)? else { return Ok(()) };
        let _guard = self.context.enter()?;
        ready.queue(self)
    }

    fn synchronize(&self) -> Result<()> {
        let _guard = self.context.enter()?;
        self.context.wait("waiting for the device")
    }

    fn record<'a>(&'a self, launches: &[Launch<'a>]) -> Result<Option<Box<dyn Recording + 'a>>> {
        Ok(Some(Box::new(Graph::record(self, launches)?)))
    }
}
