//! A loaded artifact: a pipeline with the layout of its arguments.

use super::instance::{Context, failed};
use ash::vk;
use bitsmith_compiler::artifact::{ArgKind, Artifact, Payload};
use bitsmith_compiler::target::spirv::SpirvTarget;
use bitsmith_compiler::{Error, Result};
use std::ffi::CString;
use std::sync::Arc;

/// A pipeline.
pub(super) struct Pipeline {
    pub pipeline: vk::Pipeline,
    pub layout: vk::PipelineLayout,
    pub set_layout: vk::DescriptorSetLayout,
    /// Bytes of the scalars.
    pub scalar_bytes: u32,
    context: Arc<Context>,
}

/// `OpCapability`'s number, and that of the least and the greatest capability about subgroups.
const OP_CAPABILITY: u32 = 17;
const GROUP_CAPABILITIES: std::ops::RangeInclusive<u32> = 61..=68;

impl Pipeline {
    /// Compiles an artifact of a Vulkan target for this device.
    pub fn new(context: &Arc<Context>, artifact: &Artifact) -> Result<Pipeline> {
        let Payload::Binary(bytes) = &artifact.payload else {
            return Err(Error::invalid(format!("{} holds no SPIR-V module", artifact.entry)));
        };
        let made_for = SpirvTarget::named(&artifact.target)?;
        let missing = context.facts.missing(made_for.device());
        if !missing.is_empty() {
            return Err(Error::Unsupported(format!(
                "{} is code for {}; {} lacks {}",
                artifact.entry,
                artifact.target,
                context.facts.model,
                missing.join(", ")
            )));
        }
        let (words, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(Error::invalid(format!("{} is cut short: SPIR-V comes in whole words", artifact.entry)));
        }
        let words: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
        let width = made_for.device().caps.subgroup;
        let width = uses_subgroups(&words).then_some(width);
        if let Some(width) = width
            && !context.facts.runs_subgroup(width)
        {
            return Err(Error::Unsupported(format!(
                "{} is code for subgroups of {width} threads, which {} does not run",
                artifact.entry, context.facts.model
            )));
        }
        let mut scalar_bytes = 0u32;
        let mut bindings = Vec::new();
        for arg in &artifact.args {
            match arg.kind {
                ArgKind::Read { .. } | ArgKind::Write { .. } | ArgKind::ReadWrite { .. } => bindings.push(
                    vk::DescriptorSetLayoutBinding::default()
                        .binding(bindings.len() as u32)
                        .descriptor_type(vk::DescriptorType::STORAGE_BUFFER)
                        .descriptor_count(1)
                        .stage_flags(vk::ShaderStageFlags::COMPUTE),
                ),
                ArgKind::I32 | ArgKind::F32 => scalar_bytes = scalar_bytes.next_multiple_of(4) + 4,
                ArgKind::I64 => scalar_bytes = scalar_bytes.next_multiple_of(8) + 8,
            }
        }
        let device = &context.device;
        let mut made = Pipeline {
            pipeline: vk::Pipeline::null(),
            layout: vk::PipelineLayout::null(),
            set_layout: vk::DescriptorSetLayout::null(),
            scalar_bytes,
            context: context.clone(),
        };
        let info = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
        // SAFETY: the device is alive, and `info` lives through the call; so for all calls below.
        made.set_layout =
            unsafe { device.create_descriptor_set_layout(&info, None) }.map_err(failed("lay out a set"))?;
        let sets = [made.set_layout];
        let ranges = [vk::PushConstantRange::default().stage_flags(vk::ShaderStageFlags::COMPUTE).size(scalar_bytes)];
        let mut info = vk::PipelineLayoutCreateInfo::default().set_layouts(&sets);
        if scalar_bytes > 0 {
            info = info.push_constant_ranges(&ranges);
        }
        // SAFETY: as above.
        made.layout = unsafe { device.create_pipeline_layout(&info, None) }.map_err(failed("lay out a pipeline"))?;
        made.pipeline = made.compile(artifact, &words, width)?;
        Ok(made)
    }

    fn compile(&self, artifact: &Artifact, words: &[u32], width: Option<u32>) -> Result<vk::Pipeline> {
        let device = &self.context.device;
        let entry = CString::new(artifact.entry.as_str())
            .map_err(|_| Error::invalid(format!("entry {:?} holds a zero byte", artifact.entry)))?;
        let info = vk::ShaderModuleCreateInfo::default().code(words);
        // SAFETY: the device has every feature that the module's target may use, and the module is one that the target
        // made; its words live through the call.
        let module = unsafe { device.create_shader_module(&info, None) }.map_err(failed("take a module"))?;
        let mut sized = vk::PipelineShaderStageRequiredSubgroupSizeCreateInfo::default()
            .required_subgroup_size(width.unwrap_or_default());
        let mut stage = vk::PipelineShaderStageCreateInfo::default()
            .stage(vk::ShaderStageFlags::COMPUTE)
            .module(module)
            .name(&entry);
        if width.is_some() && self.context.facts.sized_subgroups {
            stage = stage.flags(vk::PipelineShaderStageCreateFlags::REQUIRE_FULL_SUBGROUPS).push_next(&mut sized);
        }
        let info = vk::ComputePipelineCreateInfo::default().stage(stage).layout(self.layout);
        // SAFETY: as above.
        let pipelines = unsafe { device.create_compute_pipelines(vk::PipelineCache::null(), &[info], None) };
        // SAFETY: a pipeline does not need its module once it is made.
        unsafe { device.destroy_shader_module(module, None) };
        match pipelines {
            Ok(pipelines) => Ok(pipelines[0]),
            Err((_, code)) => Err(Error::Unsupported(format!("Vulkan cannot compile {}: {code}", artifact.entry))),
        }
    }
}

/// Whether a module declares a capability about subgroups.
fn uses_subgroups(words: &[u32]) -> bool {
    let mut at = 5;
    while let Some(&first) = words.get(at) {
        let (length, op) = ((first >> 16) as usize, first & 0xffff);
        // Capabilities come first.
        if op != OP_CAPABILITY || length == 0 {
            return false;
        }
        if words.get(at + 1).is_some_and(|number| GROUP_CAPABILITIES.contains(number)) {
            return true;
        }
        at += length;
    }
    false
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        // SAFETY: launches hold the pipeline that they use until they are done; null handles are ignored.
        unsafe {
            self.context.device.destroy_pipeline(self.pipeline, None);
            self.context.device.destroy_pipeline_layout(self.layout, None);
            self.context.device.destroy_descriptor_set_layout(self.set_layout, None);
        }
    }
}
