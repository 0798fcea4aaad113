//! What a driver reports about a device, as far as code for it cares.

use super::matrices;
use ash::{Entry, Instance, vk};
use bitsmith_compiler::caps::Feature;
use bitsmith_compiler::caps::vulkan::{FloatModes, Vulkan};
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::{Error, Result};

/// One device's facts.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub model: String,
    driver: vk::DriverId,
    /// Made for one machine's memory: the host reads and writes it directly.
    pub shares_memory: bool,
    pub core_1_3: bool,
    pub int8: bool,
    pub int16: bool,
    pub int64: bool,
    pub float16: bool,
    pub float64: bool,
    pub storage8: bool,
    pub storage16: bool,
    pub dot: bool,
    /// Cooperative matrices of f16 with sums in f32, `[m, n, k]`.
    pub matrices: Vec<[u32; 3]>,
    shuffles: bool,
    /// Whether a pipeline may choose its subgroup's width.
    pub sized_subgroups: bool,
    /// The width that pipelines have where they do not choose.
    subgroup: u32,
    widths: [u32; 2],
    max_workgroup: u32,
    shared_bytes: u32,
    pub max_grid: [u32; 3],
    pub max_binding: u64,
    pub offset_align: usize,
    /// Nanoseconds per tick of the device's clock; 0 where it has none.
    pub tick: f32,
    f16_modes: FloatModes,
    f32_modes: FloatModes,
}

impl Facts {
    /// What a device calls itself.
    pub fn name(instance: &Instance, device: vk::PhysicalDevice) -> String {
        // SAFETY: the device is of this instance.
        let properties = unsafe { instance.get_physical_device_properties(device) };
        properties.device_name_as_c_str().map_or(String::new(), |name| name.to_string_lossy().into_owned())
    }

    /// Asks the driver.
    pub fn of(entry: &Entry, instance: &Instance, device: vk::PhysicalDevice) -> Result<Facts> {
        // SAFETY: the device is of this instance.
        let basic = unsafe { instance.get_physical_device_properties(device) };
        let model = Facts::name(instance, device);
        if basic.api_version < vk::API_VERSION_1_2 {
            let (major, minor) = (vk::api_version_major(basic.api_version), vk::api_version_minor(basic.api_version));
            return Err(Error::Unsupported(format!("{model} has Vulkan {major}.{minor}; accepted: 1.2 and up")));
        }
        let core_1_3 = basic.api_version >= vk::API_VERSION_1_3;
        // SAFETY: the device is of this instance.
        let extensions = unsafe { instance.enumerate_device_extension_properties(device) }
            .map_err(super::instance::failed("list extensions"))?;
        let has = |name| core_1_3 || extensions.iter().any(|e| e.extension_name_as_c_str() == Ok(name));
        let can_size = has(ash::ext::subgroup_size_control::NAME);
        let can_dot = has(ash::khr::shader_integer_dot_product::NAME);

        let (mut v11, mut v12) =
            (vk::PhysicalDeviceVulkan11Features::default(), vk::PhysicalDeviceVulkan12Features::default());
        let mut size = vk::PhysicalDeviceSubgroupSizeControlFeatures::default();
        let mut dot = vk::PhysicalDeviceShaderIntegerDotProductFeatures::default();
        let mut features = vk::PhysicalDeviceFeatures2::default().push_next(&mut v11).push_next(&mut v12);
        if can_size {
            features = features.push_next(&mut size);
        }
        if can_dot {
            features = features.push_next(&mut dot);
        }
        // SAFETY: the chain lives through the call and holds structures that the device knows.
        unsafe { instance.get_physical_device_features2(device, &mut features) };
        let core = features.features;

        let (mut p11, mut p12) =
            (vk::PhysicalDeviceVulkan11Properties::default(), vk::PhysicalDeviceVulkan12Properties::default());
        let mut sizes = vk::PhysicalDeviceSubgroupSizeControlProperties::default();
        let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut p11).push_next(&mut p12);
        if can_size {
            properties = properties.push_next(&mut sizes);
        }
        // SAFETY: as above.
        unsafe { instance.get_physical_device_properties2(device, &mut properties) };
        let limits = properties.properties.limits;

        let sized = size.subgroup_size_control != 0
            && size.compute_full_subgroups != 0
            && sizes.required_subgroup_size_stages.contains(vk::ShaderStageFlags::COMPUTE);
        let wanted =
            vk::SubgroupFeatureFlags::BASIC | vk::SubgroupFeatureFlags::SHUFFLE | vk::SubgroupFeatureFlags::ARITHMETIC;
        let together = |independence| independence == vk::ShaderFloatControlsIndependence::NONE;
        // Where widths cannot differ, a module of one width could not ask for it alone.
        let (rounds, keeps) = (!together(p12.rounding_mode_independence), !together(p12.denorm_behavior_independence));
        Ok(Facts {
            model,
            driver: p12.driver_id,
            shares_memory: basic.device_type != vk::PhysicalDeviceType::DISCRETE_GPU,
            core_1_3,
            int8: v12.shader_int8 != 0,
            int16: core.shader_int16 != 0,
            int64: core.shader_int64 != 0,
            float16: v12.shader_float16 != 0,
            float64: core.shader_float64 != 0,
            storage8: v12.storage_buffer8_bit_access != 0,
            storage16: v11.storage_buffer16_bit_access != 0,
            dot: dot.shader_integer_dot_product != 0,
            matrices: matrices::sizes(entry, instance, device, &extensions)?,
            shuffles: p11.subgroup_supported_operations.contains(wanted)
                && p11.subgroup_supported_stages.contains(vk::ShaderStageFlags::COMPUTE),
            sized_subgroups: sized,
            subgroup: p11.subgroup_size,
            widths: if sized {
                [sizes.min_subgroup_size, sizes.max_subgroup_size]
            } else {
                [p11.subgroup_size, p11.subgroup_size]
            },
            max_workgroup: limits.max_compute_work_group_invocations.min(limits.max_compute_work_group_size[0]),
            shared_bytes: limits.max_compute_shared_memory_size,
            max_grid: limits.max_compute_work_group_count,
            max_binding: u64::from(limits.max_storage_buffer_range),
            offset_align: limits.min_storage_buffer_offset_alignment as usize,
            tick: if limits.timestamp_compute_and_graphics != 0 { limits.timestamp_period } else { 0.0 },
            f16_modes: FloatModes {
                preserves_nan: p12.shader_signed_zero_inf_nan_preserve_float16 != 0,
                rounds_to_even: rounds && p12.shader_rounding_mode_rte_float16 != 0,
                keeps_subnormals: keeps && p12.shader_denorm_preserve_float16 != 0,
            },
            f32_modes: FloatModes {
                preserves_nan: p12.shader_signed_zero_inf_nan_preserve_float32 != 0,
                rounds_to_even: rounds && p12.shader_rounding_mode_rte_float32 != 0,
                keeps_subnormals: keeps && p12.shader_denorm_preserve_float32 != 0,
            },
        })
    }

    /// Name of the listed devices that this one is of.
    pub fn family(&self) -> &'static str {
        match self.driver {
            vk::DriverId::MESA_LLVMPIPE => "vulkan-lavapipe",
            vk::DriverId::NVIDIA_PROPRIETARY | vk::DriverId::MESA_NVK => "vulkan-nvidia",
            vk::DriverId::AMD_PROPRIETARY | vk::DriverId::AMD_OPEN_SOURCE | vk::DriverId::MESA_RADV => "vulkan-amd",
            vk::DriverId::INTEL_OPEN_SOURCE_MESA | vk::DriverId::INTEL_PROPRIETARY_WINDOWS => "vulkan-intel",
            _ => "vulkan",
        }
    }

    /// A subgroup's width that this device can run, the wanted one if it can.
    pub fn best_subgroup(&self, wanted: u32) -> u32 {
        if self.runs_subgroup(wanted) { wanted } else { self.subgroup }
    }

    /// Whether pipelines can have subgroups of so many threads.
    pub fn runs_subgroup(&self, width: u32) -> bool {
        (self.widths[0]..=self.widths[1]).contains(&width)
    }

    /// What code for a listed device may use and this device lacks.
    pub fn missing(&self, device: &Vulkan) -> Vec<String> {
        let caps = &device.caps;
        let wants = |feature| caps.features.has(feature);
        let modes = |wanted: FloatModes, here: FloatModes| {
            (!wanted.preserves_nan || here.preserves_nan)
                && (!wanted.rounds_to_even || here.rounds_to_even)
                && (!wanted.keeps_subnormals || here.keeps_subnormals)
        };
        let dots = wants(Feature::Dot4SignedSigned) || wants(Feature::Dot4UnsignedSigned);
        let list = [
            (self.int8, "8-bit integers (shaderInt8)"),
            (self.int16, "16-bit integers (shaderInt16)"),
            (self.int64, "64-bit integers (shaderInt64)"),
            (self.float16, "16-bit floats (shaderFloat16)"),
            (self.float64 || device.fuses_f32, "64-bit floats (shaderFloat64)"),
            (self.storage8, "8-bit storage (storageBuffer8BitAccess)"),
            (self.storage16, "16-bit storage (storageBuffer16BitAccess)"),
            (self.shuffles, "shuffles and sums of subgroups in compute"),
            (self.dot || !dots, "integer dot products (shaderIntegerDotProduct)"),
            (modes(device.f16_modes, self.f16_modes), "the rounding of 16-bit floats (VK_KHR_shader_float_controls)"),
            (modes(device.f32_modes, self.f32_modes), "the rounding of 32-bit floats (VK_KHR_shader_float_controls)"),
        ];
        let mut missing: Vec<String> = list.iter().filter(|(has, _)| !has).map(|(_, name)| name.to_string()).collect();
        if wants(Feature::CooperativeMatrix) {
            missing.extend(missing_matrices(&self.matrices, device));
        }
        if self.max_workgroup < caps.max_workgroup {
            missing.push(format!("workgroups of {} threads ({} at most)", caps.max_workgroup, self.max_workgroup));
        }
        if self.shared_bytes < caps.max_shared_bytes {
            missing.push(format!("{} bytes of shared memory ({} at most)", caps.max_shared_bytes, self.shared_bytes));
        }
        missing
    }
}

/// The cooperative matrices that code for a device uses and a driver with these sizes lacks.
fn missing_matrices(sizes: &[[u32; 3]], device: &Vulkan) -> Option<String> {
    let caps = &device.caps;
    // Code for subgroups of a width that no shape has uses none.
    let shape = caps.cooperative(DType::F16, DType::F16, DType::F32)?;
    let wanted = [shape.m, shape.n, shape.k];
    let name = |[m, n, k]: [u32; 3]| format!("{m}x{n}x{k}");
    let found = sizes.iter().map(|&size| name(size)).collect::<Vec<_>>().join(", ");
    let found = if found.is_empty() { "none".to_string() } else { found };
    (!sizes.contains(&wanted)).then(|| {
        let wanted = name(wanted);
        format!("cooperative matrices of {wanted} with f16 and f32 sums (VK_KHR_cooperative_matrix; it has {found})")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_compiler::target::spirv::SpirvTarget;

    #[test]
    fn code_with_matrices_needs_the_size_of_its_subgroups_width() {
        let device = |name: &str| *SpirvTarget::named(name).unwrap().device();
        let (square, intel) = ([16, 16, 16], [8, 16, 16]);
        assert_eq!(missing_matrices(&[[16, 8, 8], square], &device("vulkan-nvidia-coop")), None);
        assert_eq!(missing_matrices(&[square], &device("vulkan-amd-coop@64")), None);
        assert_eq!(missing_matrices(&[intel], &device("vulkan-intel-coop")), None);
        let refused = missing_matrices(&[intel], &device("vulkan-coop")).unwrap();
        assert!(refused.contains("16x16x16") && refused.contains("it has 8x16x16"), "{refused}");
        let refused = missing_matrices(&[], &device("vulkan-intel-coop@8")).unwrap();
        assert!(refused.contains("8x8x16") && refused.contains("it has none"), "{refused}");
        assert_eq!(missing_matrices(&[], &device("vulkan-coop@4")), None);
    }
}
