//! One program for all tests that may run side by side: it is linked once, and every test that waits for a tool or for one
//! thread leaves the other processors to the rest. What needs a process to itself (a working directory, an allocator) has a
//! program of its own.

mod architecture;
mod asynchronous;
mod browser;
mod bundles;
mod cli;
mod cli_models;
mod cli_support {
    pub mod gguf;
    pub mod link;
}
mod clif_exec;
mod cooperative;
mod cuda_driver;
mod dense;
mod differential;
mod differential_gpu;
mod dtype;
mod foreign;
mod formats;
mod golden_fp8;
mod golden_gguf;
mod golden_kernels;
mod golden_packing;
mod gpu_roofs;
mod gpu_scripts;
mod hip_differential;
mod hip_faults;
mod hip_fnuz;
mod hip_matrix;
mod hip_matrix_faults;
mod hip_offered;
mod hip_random;
mod kir_cases;
mod kir_text;
mod kv_cache;
mod kv_cli;
mod kv_differential;
mod kv_machines;
mod kv_ptx;
mod layouts;
mod ptx_machine;
mod ptx_random;
mod ptx_validate;
mod random;
mod random_cpu;
mod release;
mod selftest;
mod shared_tiles;
mod spills;
mod support_matrix;
mod vulkan;
mod vulkan_cli;
mod wgsl;
mod x86_machine;
