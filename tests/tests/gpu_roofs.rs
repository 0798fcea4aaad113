//! The kernels behind a GPU's roofs, as PTX on the PTX machine: each one's result is compared with what it must be, so that
//! a wrong one is an error here as on a GPU.

use bitsmith_autotune::gpu_roofs::{Extent, measure};
use bitsmith_autotune::suite::plant::{Fault, Faulty};

const SMALL: Extent = Extent { footprint: 100_000, turns: 3, groups_per_unit: 2, times: 1 };

const HOPPER: [&str; 9] =
    ["fma", "mma-f16", "wgmma-f16", "mma-bf16", "wgmma-bf16", "mma-i8", "wgmma-i8", "mma-e4m3", "wgmma-e4m3"];

#[test]
fn roofs_are_those_of_kernels_that_compute_what_they_should() {
    for (target, kinds) in [
        ("a100", ["fma", "mma-f16", "mma-bf16", "mma-i8"].as_slice()),
        ("l4", ["fma", "mma-f16", "mma-bf16", "mma-i8", "mma-e4m3"].as_slice()),
        ("h200", HOPPER.as_slice()),
    ] {
        let device = bitsmith_runtime::open(&format!("ptx:{target}")).unwrap();
        let roofs = measure(&*device, SMALL).unwrap_or_else(|error| panic!("{target}: {error}"));
        let names: Vec<&str> = roofs.arithmetic.iter().map(|peak| peak.name).collect();
        assert_eq!(names, kinds, "{target}");
        assert!(roofs.read_gbs > 0.0 && roofs.arithmetic.iter().all(|peak| peak.gops > 0.0), "{roofs:?}");
        // Two workgroups read 64 KiB each.
        assert_eq!((roofs.footprint, roofs.by_device_clock), (131_072, false));
        for fault in [Fault::MissingWorkgroup, Fault::FlippedBit] {
            let error = measure(&Faulty::new(device.clone(), fault), SMALL).unwrap_err().to_string();
            assert!(error.contains("reading on PTX machine"), "{}: {error}", fault.name());
        }
    }
}
