//! CPU machine code through Cranelift.
