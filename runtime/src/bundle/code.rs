//! From a file of a bundle to an artifact.

use super::kv::KvEntry;
use super::manifest::{KernelEntry, TargetEntry};
use bitsmith_compiler::artifact::{Artifact, Payload};
use bitsmith_compiler::target::cpu::CpuTarget;
use bitsmith_compiler::{Error, Result};
use object::{Object, ObjectSection, ObjectSymbol};

/// The first word of every SPIR-V module, low byte first.
const SPIRV: [u8; 4] = 0x0723_0203u32.to_le_bytes();

/// The artifact of a kernel whose file has this content.
pub(super) fn artifact(target: &TargetEntry, kernel: &KernelEntry, content: Vec<u8>) -> Result<Artifact> {
    Ok(Artifact {
        target: target.made_for.clone(),
        entry: kernel.entry.clone(),
        payload: payload(target, &kernel.entry, content)?,
        args: kernel.args.iter().map(|arg| arg.arg()).collect(),
        workgroup: kernel.workgroup,
        shared_bytes: kernel.scratch_bytes,
        preparation: kernel.preparation.clone(),
    })
}

/// The artifact of a kernel of a KV cache whose file has this content.
pub(super) fn kv_artifact(target: &TargetEntry, kernel: &KvEntry, content: Vec<u8>) -> Result<Artifact> {
    Ok(Artifact {
        target: target.made_for.clone(),
        entry: kernel.entry.clone(),
        payload: payload(target, &kernel.entry, content)?,
        args: kernel.args.clone(),
        workgroup: kernel.workgroup,
        shared_bytes: kernel.scratch_bytes,
        preparation: None,
    })
}

fn payload(target: &TargetEntry, entry: &str, content: Vec<u8>) -> Result<Payload> {
    if CpuTarget::named(&target.made_for).is_ok() {
        return Ok(Payload::Machine(machine_code(&content, entry)?));
    }
    if content.starts_with(&SPIRV) {
        return Ok(Payload::Binary(content));
    }
    Ok(match String::from_utf8(content) {
        Ok(text) => Payload::Text(text),
        Err(error) => Payload::Binary(error.into_bytes()),
    })
}

/// The bytes of the one function of an object file (ELF, Mach-O or COFF). It needs no relocation, as our emitters promise.
fn machine_code(content: &[u8], entry: &str) -> Result<Vec<u8>> {
    let fault = |what: String| Error::invalid(format!("the object file of {entry}: {what}"));
    let file = object::File::parse(content).map_err(|error| fault(error.to_string()))?;
    // Mach-O puts an underscore before every name.
    let named = |name: &str| name == entry || name.strip_prefix('_') == Some(entry);
    let symbol = file
        .symbols()
        .find(|symbol| symbol.is_definition() && symbol.name().is_ok_and(named))
        .ok_or_else(|| fault("it does not define that symbol".into()))?;
    let section = symbol
        .section_index()
        .and_then(|index| file.section_by_index(index).ok())
        .ok_or_else(|| fault("the symbol lies in no section".into()))?;
    if section.relocations().next().is_some() {
        return Err(fault("it has relocations; accepted: code that stands by itself".into()));
    }
    let data = section.data().map_err(|error| fault(error.to_string()))?;
    let start = symbol.address().checked_sub(section.address()).and_then(|start| usize::try_from(start).ok());
    let code = start.and_then(|start| {
        // COFF and Mach-O state no sizes: there the function is the rest of the section.
        let size =
            if symbol.size() == 0 { data.len().checked_sub(start)? } else { usize::try_from(symbol.size()).ok()? };
        data.get(start..start.checked_add(size)?)
    });
    match code {
        Some(code) if !code.is_empty() => Ok(code.to_vec()),
        _ => Err(fault("the symbol lies outside its section".into())),
    }
}
