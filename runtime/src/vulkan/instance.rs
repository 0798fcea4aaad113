//! The loader, the instance, and the choice of a device.
//!
//! Reads what the driver reports; makes a logical device and the name of the target whose code it runs. Always holds: a
//! target is chosen only where the driver has all that the target's code may use, and the error names what is missing.

use super::facts::Facts;
use super::pool::Pool;
use ash::{Device, Entry, Instance, vk};
use bitsmith_compiler::caps::Feature;
use bitsmith_compiler::caps::vulkan::{COOPERATIVE_SUFFIX, DEVICES, Vulkan};
use bitsmith_compiler::dtype::DType;
use bitsmith_compiler::{Error, Result};
use std::ffi::{CStr, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How to get a loader and a driver.
const INSTALL: &str = "install a Vulkan loader and a driver: on Debian, `apt install libvulkan1` with the graphics \
                       driver of your GPU, or `mesa-vulkan-drivers`, which also runs on the CPU";

/// Names the loader's library where it is not the system's.
const LOADER: &str = "BITSMITH_VULKAN_LOADER";

const VALIDATION: &CStr = c"VK_LAYER_KHRONOS_validation";

/// The logical device and what hangs on it. Dropped last of all.
pub(super) struct Context {
    pub device: Device,
    pub instance: Instance,
    pub physical: vk::PhysicalDevice,
    pub queue_family: u32,
    pub facts: Facts,
    /// Device memory. Who holds a piece of it holds this context too.
    pool: Mutex<Pool>,
    messenger: Option<(ash::ext::debug_utils::Instance, vk::DebugUtilsMessengerEXT)>,
    /// What the validation layers said. Boxed, since the driver holds its address.
    complaints: Box<Mutex<Vec<String>>>,
    /// The library; code from it runs until everything above is gone.
    _entry: Entry,
}

/// An error of the driver.
pub(super) fn failed(what: &str) -> impl Fn(vk::Result) -> Error + '_ {
    move |code| Error::Unsupported(format!("Vulkan cannot {what}: {code}"))
}

impl Context {
    /// Opens the `index`-th device.
    pub fn open(index: usize, validate: bool) -> Result<Context> {
        let named = std::env::var_os(LOADER);
        // SAFETY: the system's Vulkan loader, or the library that the user names in its place, is what it is said to be.
        let entry = match &named {
            // SAFETY: the user named a Vulkan loader.
            Some(path) => unsafe { Entry::load_from(path) },
            // SAFETY: loading the system's Vulkan loader runs its initializers.
            None => unsafe { Entry::load() },
        }
        .map_err(|error| {
            let place = named.map_or("here".into(), |path| format!("at {} ({LOADER})", path.display()));
            Error::Unsupported(format!("Vulkan has no loader {place}: {error}; {INSTALL}"))
        })?;
        let complaints = Box::new(Mutex::new(Vec::new()));
        let instance = instance(&entry, validate)?;
        let messenger = match messenger(&entry, &instance, validate, &complaints) {
            Ok(messenger) => messenger,
            Err(error) => {
                // SAFETY: nothing was made of it.
                unsafe { instance.destroy_instance(None) };
                return Err(error);
            }
        };
        let destroy = |error: Error| {
            if let Some((functions, messenger)) = &messenger {
                // SAFETY: made from this instance, and not used again.
                unsafe { functions.destroy_debug_utils_messenger(*messenger, None) };
            }
            // SAFETY: all that was made of it is gone.
            unsafe { instance.destroy_instance(None) };
            error
        };
        let (physical, facts) = choose(&entry, &instance, index).map_err(&destroy)?;
        let (device, queue_family) = logical(&instance, physical, &facts).map_err(&destroy)?;
        let pool = Mutex::default();
        Ok(Context { device, physical, queue_family, facts, pool, messenger, complaints, _entry: entry, instance })
    }

    /// The device's memory.
    pub fn pool(&self) -> MutexGuard<'_, Pool> {
        // Its lists are whole between any two statements that can panic.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the validation layers have said so far.
    pub fn complaints(&self) -> Vec<String> {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.pool().clear(&self.device);
        // SAFETY: every owner of a part of the device holds this context and has destroyed its part; the queue was
        // waited for before.
        unsafe {
            self.device.destroy_device(None);
            if let Some((functions, messenger)) = &self.messenger {
                functions.destroy_debug_utils_messenger(*messenger, None);
            }
            self.instance.destroy_instance(None);
        }
    }
}

fn instance(entry: &Entry, validate: bool) -> Result<Instance> {
    // SAFETY: the entry is loaded.
    let version = unsafe { entry.try_enumerate_instance_version() }.map_err(failed("tell its version"))?;
    let version = version.unwrap_or(vk::API_VERSION_1_0);
    if version < vk::API_VERSION_1_2 {
        let (major, minor) = (vk::api_version_major(version), vk::api_version_minor(version));
        return Err(Error::Unsupported(format!(
            "the Vulkan loader is of version {major}.{minor}; accepted: 1.2 and up"
        )));
    }
    let application =
        vk::ApplicationInfo::default().application_name(c"bitsmith").api_version(version.min(vk::API_VERSION_1_3));
    let (mut layers, mut extensions) = (Vec::new(), Vec::new());
    if validate {
        // SAFETY: the entry is loaded.
        let known = unsafe { entry.enumerate_instance_layer_properties() }.map_err(failed("list layers"))?;
        if !known.iter().any(|layer| layer.layer_name_as_c_str() == Ok(VALIDATION)) {
            return Err(Error::Unsupported(
                "Vulkan has no validation layers here; on Debian, `apt install vulkan-validationlayers`".into(),
            ));
        }
        layers.push(VALIDATION.as_ptr());
        extensions.push(ash::ext::debug_utils::NAME.as_ptr());
    }
    let info = vk::InstanceCreateInfo::default()
        .application_info(&application)
        .enabled_layer_names(&layers)
        .enabled_extension_names(&extensions);
    // SAFETY: `info` and all that it points to live through the call.
    unsafe { entry.create_instance(&info, None) }
        .map_err(|code| Error::Unsupported(format!("Vulkan makes no instance: {code}; {INSTALL}")))
}

type Messenger = Option<(ash::ext::debug_utils::Instance, vk::DebugUtilsMessengerEXT)>;

fn messenger(entry: &Entry, instance: &Instance, validate: bool, to: &Mutex<Vec<String>>) -> Result<Messenger> {
    if !validate {
        return Ok(None);
    }
    let functions = ash::ext::debug_utils::Instance::new(entry, instance);
    let info = vk::DebugUtilsMessengerCreateInfoEXT::default()
        .message_severity(vk::DebugUtilsMessageSeverityFlagsEXT::WARNING | vk::DebugUtilsMessageSeverityFlagsEXT::ERROR)
        .message_type(vk::DebugUtilsMessageTypeFlagsEXT::VALIDATION)
        .pfn_user_callback(Some(note))
        .user_data(std::ptr::from_ref(to).cast_mut().cast());
    // SAFETY: `info` lives through the call; the list that it names is boxed and outlives the messenger.
    let messenger = unsafe { functions.create_debug_utils_messenger(&info, None) };
    Ok(Some((functions, messenger.map_err(failed("listen to the validation layers"))?)))
}

/// Notes what a validation layer says.
unsafe extern "system" fn note(
    _: vk::DebugUtilsMessageSeverityFlagsEXT,
    _: vk::DebugUtilsMessageTypeFlagsEXT,
    data: *const vk::DebugUtilsMessengerCallbackDataEXT<'_>,
    list: *mut c_void,
) -> vk::Bool32 {
    // SAFETY: the layer passes a valid message and the list that the messenger was made with.
    unsafe {
        let list = &*list.cast::<Mutex<Vec<String>>>().cast_const();
        if let Some(text) = data.as_ref().filter(|data| !data.p_message.is_null()) {
            let text = CStr::from_ptr(text.p_message).to_string_lossy().into_owned();
            list.lock().unwrap_or_else(PoisonError::into_inner).push(text);
        }
    }
    vk::FALSE
}

fn choose(entry: &Entry, instance: &Instance, index: usize) -> Result<(vk::PhysicalDevice, Facts)> {
    // SAFETY: the instance is alive.
    let all = unsafe { instance.enumerate_physical_devices() }.map_err(failed("list devices"))?;
    if all.is_empty() {
        return Err(Error::Unsupported(format!("Vulkan finds no device; {INSTALL}")));
    }
    let Some(&physical) = all.get(index) else {
        let names: Vec<String> = all
            .iter()
            .enumerate()
            .map(|(i, &device)| format!("vulkan:{i} ({})", Facts::name(instance, device)))
            .collect();
        return Err(Error::Unsupported(format!("device vulkan:{index}; accepted: {}", names.join(", "))));
    };
    Ok((physical, Facts::of(entry, instance, physical)?))
}

/// The listed device whose code this one runs: its vendor's where it has all of that, with cooperative matrices where it
/// has these too; else the generic one.
pub(super) fn target(facts: &Facts) -> Result<Vulkan> {
    let named = |name: String| DEVICES.iter().filter(move |device| device.caps.name == name);
    let (own, generic) = (facts.family(), DEVICES[0].caps.name);
    let with_matrices = |name: &str| named(format!("{name}{COOPERATIVE_SUFFIX}"));
    for device in with_matrices(own).chain(named(own.into())).chain(with_matrices(generic)).chain(&DEVICES[..1]) {
        let device = device.with_subgroup(facts.best_subgroup(device.caps.subgroup));
        let caps = &device.caps;
        let matrices = caps.features.has(Feature::CooperativeMatrix);
        if matrices && caps.cooperative(DType::F16, DType::F16, DType::F32).is_none() {
            continue;
        }
        let missing = facts.missing(&device);
        if missing.is_empty() {
            return Ok(device);
        }
        if device.caps.name == DEVICES[0].caps.name {
            return Err(Error::Unsupported(format!("{} lacks {}", facts.model, missing.join(", "))));
        }
    }
    Err(Error::Unsupported(format!("{}: no code is made for it", facts.model)))
}

fn logical(instance: &Instance, physical: vk::PhysicalDevice, facts: &Facts) -> Result<(Device, u32)> {
    // SAFETY: the device is of this instance.
    let families = unsafe { instance.get_physical_device_queue_family_properties(physical) };
    let family = families
        .iter()
        .position(|family| family.queue_flags.contains(vk::QueueFlags::COMPUTE))
        .ok_or_else(|| Error::Unsupported(format!("{} has no queue for compute", facts.model)))?
        as u32;
    let queues = [vk::DeviceQueueCreateInfo::default().queue_family_index(family).queue_priorities(&[1.0])];
    let basic = vk::PhysicalDeviceFeatures::default()
        .shader_int16(facts.int16)
        .shader_int64(facts.int64)
        .shader_float64(facts.float64);
    let has_matrices = !facts.matrices.is_empty();
    let mut matrices = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default().cooperative_matrix(has_matrices);
    let mut v11 = vk::PhysicalDeviceVulkan11Features::default().storage_buffer16_bit_access(facts.storage16);
    let mut v12 = vk::PhysicalDeviceVulkan12Features::default()
        .shader_int8(facts.int8)
        .shader_float16(facts.float16)
        .storage_buffer8_bit_access(facts.storage8)
        .vulkan_memory_model(has_matrices);
    let mut size = vk::PhysicalDeviceSubgroupSizeControlFeatures::default()
        .subgroup_size_control(facts.sized_subgroups)
        .compute_full_subgroups(facts.sized_subgroups);
    let mut dot = vk::PhysicalDeviceShaderIntegerDotProductFeatures::default().shader_integer_dot_product(facts.dot);
    let mut info = vk::DeviceCreateInfo::default()
        .queue_create_infos(&queues)
        .enabled_features(&basic)
        .push_next(&mut v11)
        .push_next(&mut v12);
    let mut extensions = Vec::new();
    if facts.sized_subgroups {
        info = info.push_next(&mut size);
        extensions.push(ash::ext::subgroup_size_control::NAME.as_ptr());
    }
    if facts.dot {
        info = info.push_next(&mut dot);
        extensions.push(ash::khr::shader_integer_dot_product::NAME.as_ptr());
    }
    if facts.core_1_3 {
        extensions.clear();
    }
    if has_matrices {
        info = info.push_next(&mut matrices);
        extensions.push(ash::khr::cooperative_matrix::NAME.as_ptr());
    }
    let info = info.enabled_extension_names(&extensions);
    // SAFETY: `info` and all that it points to live through the call; the device reported what is asked for.
    let device = unsafe { instance.create_device(physical, &info, None) }.map_err(failed("open the device"))?;
    Ok((device, family))
}
