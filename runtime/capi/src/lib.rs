//! `libbitsmith`: the runtime behind a C ABI. `templates/c/bitsmith.h` is its documentation; the names are the same.
//!
//! Reads handles, pointers and sizes from a caller who may be wrong; answers with a status. Always holds: a null or misaligned
//! pointer, a short buffer, a closed or foreign handle is answered with a status and nothing is touched; no panic crosses the
//! boundary; handles are numbers that are never given twice, so that one used after it was closed is always known.

mod bundle;
mod device;
mod guard;
mod kv;
mod pointer;
mod registry;
mod weights;

pub use bundle::*;
pub use device::*;
pub use guard::*;
pub use kv::*;
pub use weights::*;
