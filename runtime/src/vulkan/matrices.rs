//! Which cooperative matrices a driver has.
//!
//! Reads what the driver reports of `VK_KHR_cooperative_matrix`; makes the sizes that code of ours may use. Always holds:
//! they are matrices of f16 with sums in f32 that a subgroup holds, in compute.

use ash::{Entry, Instance, vk};
use bitsmith_compiler::Result;

/// The sizes, `[m, n, k]`, in the driver's order; none where it lacks the extension, its feature, or Vulkan's memory model,
/// which such code asks for.
pub(super) fn sizes(
    entry: &Entry,
    instance: &Instance,
    device: vk::PhysicalDevice,
    extensions: &[vk::ExtensionProperties],
) -> Result<Vec<[u32; 3]>> {
    if !extensions.iter().any(|e| e.extension_name_as_c_str() == Ok(ash::khr::cooperative_matrix::NAME)) {
        return Ok(Vec::new());
    }
    let mut v12 = vk::PhysicalDeviceVulkan12Features::default();
    let mut matrices = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default();
    let mut features = vk::PhysicalDeviceFeatures2::default().push_next(&mut v12).push_next(&mut matrices);
    // SAFETY: the chain lives through the call and holds structures that the device knows: it has the extension.
    unsafe { instance.get_physical_device_features2(device, &mut features) };
    let mut stages = vk::PhysicalDeviceCooperativeMatrixPropertiesKHR::default();
    let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut stages);
    // SAFETY: as above.
    unsafe { instance.get_physical_device_properties2(device, &mut properties) };
    let compute = stages.cooperative_matrix_supported_stages.contains(vk::ShaderStageFlags::COMPUTE);
    if matrices.cooperative_matrix == 0 || v12.vulkan_memory_model == 0 || !compute {
        return Ok(Vec::new());
    }
    let functions = ash::khr::cooperative_matrix::Instance::new(entry, instance);
    // SAFETY: the device is of this instance and has the extension.
    let reported = unsafe { functions.get_physical_device_cooperative_matrix_properties(device) };
    Ok(served(&reported.map_err(super::instance::failed("list cooperative matrices"))?))
}

/// Those of the reported matrices that code of ours may use.
fn served(reported: &[vk::CooperativeMatrixPropertiesKHR<'_>]) -> Vec<[u32; 3]> {
    let (half, single) = (vk::ComponentTypeKHR::FLOAT16, vk::ComponentTypeKHR::FLOAT32);
    let fits = |p: &&vk::CooperativeMatrixPropertiesKHR<'_>| {
        [p.a_type, p.b_type, p.c_type, p.result_type] == [half, half, single, single]
            && p.scope == vk::ScopeKHR::SUBGROUP
            && p.saturating_accumulation == vk::FALSE
    };
    reported.iter().filter(fits).map(|p| [p.m_size, p.n_size, p.k_size]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(size: [u32; 3], types: [vk::ComponentTypeKHR; 4]) -> vk::CooperativeMatrixPropertiesKHR<'static> {
        vk::CooperativeMatrixPropertiesKHR::default()
            .m_size(size[0])
            .n_size(size[1])
            .k_size(size[2])
            .a_type(types[0])
            .b_type(types[1])
            .c_type(types[2])
            .result_type(types[3])
            .scope(vk::ScopeKHR::SUBGROUP)
    }

    #[test]
    fn sizes_of_f16_with_f32_sums_in_a_subgroup_are_served() {
        let (half, single) = (vk::ComponentTypeKHR::FLOAT16, vk::ComponentTypeKHR::FLOAT32);
        let byte = vk::ComponentTypeKHR::SINT8;
        let list = [
            reported([16, 8, 8], [half; 4]),
            reported([16, 16, 16], [half, half, single, single]),
            reported([16, 8, 16], [half, half, single, single]),
            reported([32, 32, 16], [half, half, single, single]).scope(vk::ScopeKHR::WORKGROUP),
            reported([16, 16, 32], [byte, byte, vk::ComponentTypeKHR::SINT32, vk::ComponentTypeKHR::SINT32]),
            reported([8, 8, 16], [half, half, single, single]).saturating_accumulation(true),
        ];
        assert_eq!(served(&list), [[16, 16, 16], [16, 8, 16]]);
        assert_eq!(served(&[]), Vec::<[u32; 3]>::new());
    }
}
