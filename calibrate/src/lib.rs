//! Model files, recipes and shapes: what a model is made of, and which formats a recipe gives it.
//!
//! Reads model files (GGUF, safetensors) and `config.json`; makes tensors, linear-layer shapes and recipes. Always
//! holds: a file that is damaged, unknown or hostile gives an error that names the file and the tensor or key, never
//! a panic, and never an allocation larger than a small multiple of the file.

#![deny(unsafe_code)]

pub mod collect;
pub mod engine;
pub mod evaluate;
pub mod export;
pub mod file;
pub mod import;
pub mod kv;
pub mod model;
pub mod pick;
pub mod quantize;
pub mod recipe;
pub mod report;
pub mod shapes;
pub mod text;
