//! The binary on a machine without drivers: it says what to install, and exits with 2.

use std::process::Command;

/// Runs the binary; it must fail with 2 and name these things.
fn refuses(environment: &[(&str, &str)], device: &str, words: &[&str]) {
    let args = ["bench", "--device", device, "-n", "32", "-k", "64", "--m", "1", "--cycle-mb", "0"];
    let output = Command::new(env!("CARGO_BIN_EXE_bitsmith"))
        .args(args)
        .envs(environment.iter().copied())
        .output()
        .expect("the binary starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{device}: {said}");
    for word in words {
        assert!(said.contains(word), "{device}: no `{word}` in: {said}");
    }
}

#[test]
fn vulkan_without_a_loader_says_what_to_install() {
    let nowhere = [("BITSMITH_VULKAN_LOADER", "/nowhere/libvulkan.so.1")];
    refuses(&nowhere, "vulkan:0", &["no loader", "/nowhere/libvulkan.so.1", "apt install libvulkan1"]);
}

#[test]
fn vulkan_without_a_driver_says_what_to_install() {
    // Loaders before 1.3.207 know the second name alone. Where there is no loader, the advice is the same.
    let nothing = [("VK_DRIVER_FILES", "/nowhere.json"), ("VK_ICD_FILENAMES", "/nowhere.json")];
    refuses(&nothing, "vulkan:0", &["Vulkan", "mesa-vulkan-drivers"]);
}

#[test]
fn a_device_to_generate_for_is_none_to_run_on() {
    refuses(&[], "vulkan-nvidia", &["vulkan-nvidia", "vulkan:<index>"]);
    refuses(&[], "webgpu", &["webgpu", "vulkan:<index>"]);
}
