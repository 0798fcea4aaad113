//! WGSL for WebGPU, validated by naga, and through naga Metal's and Direct3D's languages.
//!
//! Reads a verified kernel, makes an [`Artifact`] whose payload is WGSL text. Always holds: naga has parsed and validated
//! every shader that leaves here; the target's name alone decides the text.
//!
//! What a page must know: the `i`-th buffer among the parameters is the storage buffer at group 0, binding `i`, padded to
//! whole quads of words; scalars are one uniform buffer at the binding after the last, each at a multiple of its size.
//! Sums and products may be fused, and quotients and roots be off by some units in the last place: WGSL promises no more.

mod arith;
mod emit;
mod memory;
mod support;
mod text;
mod value;

use crate::artifact::{Artifact, Payload};
use crate::caps::Caps;
use crate::caps::webgpu::WEBGPU;
use crate::error::{Error, Result};
use crate::ir::{Kernel, Verified};
use crate::pass::expand::{Choice, expand_chosen};
use crate::pass::{self, Pass};
use crate::target::{Target, arg};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};

/// What a kernel goes through before this target emits it, apart from the expansions.
const PASSES: &[Pass] = &[pass::NARROW, pass::FOLD, pass::CSE, pass::HOIST, pass::DCE];

/// WebGPU in one of its forms.
#[derive(Debug)]
pub struct WgslTarget {
    caps: Caps,
}

impl WgslTarget {
    /// A form by name: `webgpu`, which every browser takes, or `webgpu-packed`, with dot products of packed bytes.
    pub fn named(name: &str) -> Result<WgslTarget> {
        let caps = WEBGPU.iter().find(|caps| caps.name == name).ok_or_else(|| {
            let names: Vec<&str> = WgslTarget::names().collect();
            Error::Unsupported(format!("WebGPU form `{name}`; accepted: {}", names.join(", ")))
        })?;
        Ok(WgslTarget { caps: *caps })
    }

    /// The names that [`WgslTarget::named`] takes.
    pub fn names() -> impl Iterator<Item = &'static str> {
        WEBGPU.iter().map(|caps| caps.name)
    }

    fn text(&self, kernel: &Kernel) -> Result<String> {
        support::check(kernel, &self.caps)?;
        Ok(emit::shader(kernel, &self.caps))
    }
}

impl Target for WgslTarget {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn legalize(&self, kernel: &Verified<'_>) -> Result<Kernel> {
        let folded = pass::fold(kernel.kernel().clone());
        let expanded = expand_chosen(
            folded,
            &Choice {
                dot4_unsigned_signed: false,
                dot4_signed_signed: false,
                popcount: false,
                subgroup_of_one: self.caps.subgroup == 1,
                ..Choice::ALL
            },
        );
        Ok(pass::run_all(expanded, PASSES, self.caps()))
    }

    fn emit(&self, kernel: &Verified<'_>) -> Result<Artifact> {
        let kernel = kernel.kernel();
        let text = self.text(kernel)?;
        parse(&text)?;
        Ok(Artifact {
            target: self.caps.name.to_string(),
            entry: kernel.name.clone(),
            payload: Payload::Text(text),
            args: kernel.params.iter().map(arg).collect::<Result<_>>()?,
            workgroup: kernel.workgroup,
            shared_bytes: kernel.shared_bytes(),
            preparation: None,
        })
    }

    fn show(&self, kernel: &Verified<'_>, stage: &str) -> Option<Result<String>> {
        let translate: fn(&str) -> Result<String> = match stage {
            "asm" | "wgsl" => |text| Ok(text.to_string()),
            "msl" => metal,
            "hlsl" => direct3d,
            _ => return None,
        };
        Some(self.text(kernel.kernel()).and_then(|text| translate(&text)))
    }
}

/// Parses and validates a shader.
fn parse(text: &str) -> Result<(naga::Module, ModuleInfo)> {
    let bug = |message: String| Error::Bug { message, text: text.to_string() };
    let module = naga::front::wgsl::parse_str(text).map_err(|error| bug(error.emit_to_string(text)))?;
    let mut validator = Validator::new(ValidationFlags::all(), Capabilities::empty());
    let info = validator.validate(&module).map_err(|error| bug(error.emit_to_string(text)))?;
    Ok((module, info))
}

/// The same shader in Metal's language.
fn metal(text: &str) -> Result<String> {
    let (module, info) = parse(text)?;
    let (options, pipeline) = (naga::back::msl::Options::default(), naga::back::msl::PipelineOptions::default());
    naga::back::msl::write_string(&module, &info, &options, &pipeline)
        .map(|(text, _)| text)
        .map_err(|error| Error::Bug { message: format!("naga writes no MSL: {error}"), text: text.to_string() })
}

/// The same shader in Direct3D's language.
fn direct3d(text: &str) -> Result<String> {
    let (module, info) = parse(text)?;
    let (options, pipeline) = (naga::back::hlsl::Options::default(), naga::back::hlsl::PipelineOptions::default());
    let mut out = String::new();
    let written = naga::back::hlsl::Writer::new(&mut out, &options, &pipeline).write(&module, &info, None);
    written.map_err(|error| Error::Bug { message: format!("naga writes no HLSL: {error}"), text: text.to_string() })?;
    Ok(out)
}
