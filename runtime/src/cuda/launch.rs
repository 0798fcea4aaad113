//! Launches on a stream, one at a time or many as a graph that is timed by the device's own clock.
//!
//! Always holds: a launch has been checked against its artifact before anything of it reaches the driver.

use super::CudaDevice;
use super::context::Memory;
use super::driver::check;
use super::module::{Function, Module};
use crate::device::{Buffer, Launch, LaunchArg, check_launch};
use crate::timing::Recording;
use bitsmith_compiler::{Error, Result};
use cudarc::driver::sys::{self, CUevent, CUgraphExec, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchConfig};
use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr;

/// Most workgroups along each axis (CUDA C++ Programming Guide, "Compute Capabilities").
const MOST_GROUPS: [u32; 3] = [(1 << 31) - 1, 65535, 65535];

/// A launch that has been checked, with the values of its arguments.
pub struct Ready<'a> {
    /// Whether its kernels wait by themselves.
    waits: bool,
    /// Its kernels in order: one, or two where another runs first.
    kernels: Vec<Run<'a>>,
}

/// One kernel of a launch.
struct Run<'a> {
    function: &'a Function,
    grid: [u32; 3],
    workgroup: [u32; 3],
    values: Vec<u64>,
    entry: &'a str,
}

impl<'a> Ready<'a> {
    /// Checks a launch. `None` where its grid is empty.
    pub fn new(device: &CudaDevice, launch: &Launch<'a>) -> Result<Option<Ready<'a>>> {
        check_launch(launch)?;
        let artifact = &launch.program.artifact;
        let module = launch.program.code.downcast_ref::<Module>().filter(|module| module.is_of(&device.context));
        let module = module.ok_or_else(|| Error::invalid("the program belongs to another device"))?;
        if launch.grid.contains(&0) {
            return Ok(None);
        }
        let grids = artifact.preparation.iter().map(|first| first.grid).chain([launch.grid]);
        for grid in grids {
            if grid.iter().zip(MOST_GROUPS).any(|(&groups, most)| groups > most) {
                let most = format!("CUDA takes at most {MOST_GROUPS:?}");
                return Err(Error::Unsupported(format!("a grid of {grid:?} workgroups; {most}")));
            }
        }
        let mut values = Vec::with_capacity(launch.args.len());
        for arg in &launch.args {
            values.push(match arg {
                LaunchArg::Buffer(view) => own(device, view.buffer)?.address + view.offset as u64,
                LaunchArg::I32(x) => *x as u32 as u64,
                LaunchArg::I64(x) => *x as u64,
                LaunchArg::F32(x) => x.to_bits() as u64,
            });
        }
        let mut kernels = Vec::with_capacity(2);
        match (&artifact.preparation, &module.first) {
            (Some(first), Some(function)) => {
                let values = first.places(&artifact.args)?.into_iter().map(|place| values[place]).collect();
                let (grid, workgroup, entry) = (first.grid, first.workgroup, first.entry.as_str());
                kernels.push(Run { function, grid, workgroup, values, entry });
            }
            (None, None) => {}
            _ => return Err(Error::invalid(format!("{} was loaded from another artifact", artifact.entry))),
        }
        let (grid, workgroup, entry) = (launch.grid, artifact.workgroup, artifact.entry.as_str());
        kernels.push(Run { function: &module.own, grid, workgroup, values, entry });
        Ok(Some(Ready { waits: module.waits, kernels }))
    }

    /// Queues it. The caller holds the context's lock.
    pub fn queue(&mut self, device: &CudaDevice) -> Result<()> {
        let waits = self.waits;
        // Kernels of a stream run one after the other.
        self.kernels.iter_mut().try_for_each(|kernel| kernel.queue(device, waits))
    }
}

impl Run<'_> {
    fn queue(&mut self, device: &CudaDevice, waits: bool) -> Result<()> {
        let mut pointers: Vec<*mut c_void> = self.values.iter_mut().map(|value| ptr::from_mut(value).cast()).collect();
        // A kernel that waits by itself may start while the one before it still runs.
        let mut attribute = CUlaunchAttribute {
            id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let [grid_x, grid_y, grid_z] = self.grid;
        let [block_x, block_y, block_z] = self.workgroup;
        let config = CUlaunchConfig {
            gridDimX: grid_x,
            gridDimY: grid_y,
            gridDimZ: grid_z,
            blockDimX: block_x,
            blockDimY: block_y,
            blockDimZ: block_z,
            sharedMemBytes: self.function.dynamic_shared,
            hStream: device.context.stream,
            attrs: &mut attribute,
            numAttrs: u32::from(waits),
        };
        // SAFETY: `check_launch` matched the arguments to the artifact; the driver copies them before it returns, and each
        // pointer leads to eight bytes, at least as many as its parameter has.
        let status =
            unsafe { sys::cuLaunchKernelEx(&config, self.function.handle, pointers.as_mut_ptr(), ptr::null_mut()) };
        check(status, &format!("launching {}", self.entry))
    }
}

/// The memory of a buffer, which must be this device's.
pub fn own<'b>(device: &CudaDevice, buffer: &'b Buffer) -> Result<&'b Memory> {
    let memory = buffer.memory.downcast_ref::<Memory>().filter(|memory| memory.is_of(&device.context));
    memory.ok_or_else(|| Error::invalid("the buffer belongs to another device"))
}

/// Launches as one graph, with an event before and one after it.
pub struct Graph<'a> {
    device: &'a CudaDevice,
    graph: CUgraphExec,
    events: [CUevent; 2],
    /// What the graph uses lives as long.
    used: PhantomData<Launch<'a>>,
}

impl<'a> Graph<'a> {
    /// Records launches in order.
    pub fn record(device: &'a CudaDevice, launches: &[Launch<'a>]) -> Result<Graph<'a>> {
        let mut ready = Vec::with_capacity(launches.len());
        for launch in launches {
            ready.extend(Ready::new(device, launch)?);
        }
        let mut made = Graph { device, graph: ptr::null_mut(), events: [ptr::null_mut(); 2], used: PhantomData };
        made.capture(&mut ready)?;
        Ok(made)
    }

    fn capture(&mut self, ready: &mut [Ready<'_>]) -> Result<()> {
        let device = self.device;
        let stream = device.context.stream;
        let _guard = device.context.enter()?;
        for event in &mut self.events {
            let flag = sys::CUevent_flags_enum::CU_EVENT_DEFAULT as u32;
            // SAFETY: the context is the thread's, and the place is written on success.
            check(unsafe { sys::cuEventCreate(event, flag) }, "making an event")?;
        }
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is the context's; nothing else is queued while the lock is held.
        check(unsafe { sys::cuStreamBeginCapture_v2(stream, mode) }, "recording launches")?;
        let queued = ready.iter_mut().try_for_each(|launch| launch.queue(device));
        let mut graph = ptr::null_mut();
        // SAFETY: the capture began above, and ends whatever became of the launches.
        let ended = check(unsafe { sys::cuStreamEndCapture(stream, &mut graph) }, "ending a recording");
        let made = queued.and(ended).and_then(|()| {
            // SAFETY: the graph was made by the capture.
            check(unsafe { sys::cuGraphInstantiateWithFlags(&mut self.graph, graph, 0) }, "making a graph")
        });
        if !graph.is_null() {
            // SAFETY: the graph was made above; what was made of it does not need it.
            unsafe { sys::cuGraphDestroy(graph) };
        }
        made
    }
}

impl Recording for Graph<'_> {
    fn run(&mut self) -> Result<f64> {
        let context = &self.device.context;
        let [start, end] = self.events;
        let _guard = context.enter()?;
        let mut milliseconds = 0.0f32;
        // SAFETY: events, graph and stream are of this context, which is the thread's.
        unsafe {
            check(sys::cuEventRecord(start, context.stream), "marking the start")?;
            check(sys::cuGraphLaunch(self.graph, context.stream), "starting a graph")?;
            check(sys::cuEventRecord(end, context.stream), "marking the end")?;
            check(sys::cuEventSynchronize(end), "waiting for a graph")?;
            check(sys::cuEventElapsedTime(&mut milliseconds, start, end), "reading the clock")?;
        }
        Ok(f64::from(milliseconds) * 1e-3)
    }
}

impl Drop for Graph<'_> {
    fn drop(&mut self) {
        let Ok(_guard) = self.device.context.enter() else { return };
        // SAFETY: each handle was made by `capture` and is destroyed once, when nothing of it runs any more.
        unsafe {
            sys::cuStreamSynchronize(self.device.context.stream);
            if !self.graph.is_null() {
                sys::cuGraphExecDestroy(self.graph);
            }
            for event in self.events.into_iter().filter(|event| !event.is_null()) {
                sys::cuEventDestroy_v2(event);
            }
        }
    }
}
