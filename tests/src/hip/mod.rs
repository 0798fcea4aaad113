//! HIP sources without an AMD GPU: clang compiles them for the device, and a shim runs them on the host.

pub mod clang;
pub mod host;
