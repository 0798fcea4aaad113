//! Launches that are repeated and timed: by the device's own clock where it has one, by the host's elsewhere.

use bitsmith_compiler::Result;
use bitsmith_runtime::timing::Recording;
use bitsmith_runtime::{Device, Launch};
use std::time::Instant;

/// Launches in order, ready to be repeated.
pub struct Repeat<'d> {
    device: &'d dyn Device,
    launches: Vec<Launch<'d>>,
    recording: Option<Box<dyn Recording + 'd>>,
}

impl<'d> Repeat<'d> {
    /// Prepares launches on a device; nothing runs yet.
    pub fn new(device: &'d dyn Device, launches: Vec<Launch<'d>>) -> Result<Repeat<'d>> {
        let recording = device.record(&launches)?;
        Ok(Repeat { device, launches, recording })
    }

    /// Whether the device's own clock tells the time.
    pub fn by_device(&self) -> bool {
        self.recording.is_some()
    }

    /// How many launches there are.
    pub fn count(&self) -> usize {
        self.launches.len()
    }

    /// Runs all of them once, and waits; seconds for all.
    pub fn run(&mut self) -> Result<f64> {
        if let Some(recording) = &mut self.recording {
            return recording.run();
        }
        let start = Instant::now();
        for launch in &self.launches {
            self.device.launch(launch)?;
        }
        self.device.synchronize()?;
        Ok(start.elapsed().as_secs_f64())
    }
}
