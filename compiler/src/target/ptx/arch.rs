//! The architectures that PTX is written for, and the PTX version that each text declares.

/// One architecture.
#[derive(Debug)]
pub struct Arch {
    /// As `.target` and `ptxas -arch` spell it, and `Gpu::arch` of its devices.
    pub name: &'static str,
    /// The least PTX version that has every instruction emitted for it; a driver takes it and all before its own.
    pub version: &'static str,
}

/// Every architecture, oldest first.
pub const ARCHES: &[Arch] = &[
    Arch { name: "sm_80", version: "7.8" },
    Arch { name: "sm_86", version: "7.8" },
    // Conversions of e4m3 came with 8.1, their matrix instructions with 8.4.
    Arch { name: "sm_89", version: "8.4" },
    // `wgmma` of unsigned by signed bytes came with 8.4 too.
    Arch { name: "sm_90a", version: "8.4" },
    Arch { name: "sm_100a", version: "8.8" },
    Arch { name: "sm_120a", version: "8.8" },
];
