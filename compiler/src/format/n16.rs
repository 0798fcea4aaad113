//! N16, the CPU's compute packing.
