//! Object files: machine code of several kernels, each behind its entry's name.

use cranelift_codegen::ir::{AbiParam, Signature, types};
use cranelift_codegen::isa::{self, CallConv};
use cranelift_codegen::settings;
use cranelift_module::{Linkage, Module, default_libcall_names};
use cranelift_object::{ObjectBuilder, ObjectModule};
use target_lexicon::Triple;

use crate::artifact::{Artifact, Payload};
use crate::error::{Error, Result};

/// Alignment of each function: a cache line, so that a kernel's speed does not hang on its neighbours.
const ALIGN: u64 = 64;

/// One object file (ELF, Mach-O or COFF, as the triple says) that exports each artifact's entry. The same artifacts
/// and triple give the same bytes. The module docs of [`super`] say how to call an entry.
pub fn object(artifacts: &[&Artifact], triple: &Triple) -> Result<Vec<u8>> {
    let mut faults = Vec::new();
    for (i, artifact) in artifacts.iter().enumerate() {
        if matches!(artifact.payload, Payload::Text(_)) {
            faults.push(format!("`{}` is text for {}, not machine code", artifact.entry, artifact.target));
        }
        if artifacts[..i].iter().any(|other| other.entry == artifact.entry) {
            faults.push(format!("two artifacts are named `{}`", artifact.entry));
        }
    }
    if !faults.is_empty() {
        return Err(Error::Invalid(faults));
    }
    let unsupported = |message: String| Error::Unsupported(format!("an object file for {triple}: {message}"));
    let isa = isa::lookup(triple.clone())
        .map_err(|error| unsupported(error.to_string()))?
        .finish(settings::Flags::new(settings::builder()))
        .map_err(|error| unsupported(error.to_string()))?;
    let builder =
        ObjectBuilder::new(isa, "bitsmith", default_libcall_names()).map_err(|error| unsupported(error.to_string()))?;
    let mut module = ObjectModule::new(builder);
    let mut signature = Signature::new(CallConv::triple_default(triple));
    signature.params = vec![AbiParam::new(types::I64); 4];
    let failed = |error: &dyn std::fmt::Display| Error::Bug {
        message: format!("writing an object file for {triple}: {error}"),
        text: artifacts.iter().map(|artifact| artifact.entry.as_str()).collect::<Vec<_>>().join("\n"),
    };
    for artifact in artifacts {
        let id =
            module.declare_function(&artifact.entry, Linkage::Export, &signature).map_err(|error| failed(&error))?;
        module.define_function_bytes(id, ALIGN, artifact.payload.bytes(), &[]).map_err(|error| failed(&error))?;
    }
    module.finish().emit().map_err(|error| failed(&error))
}
