//! A GGUF file with a tensor of every type that has a format here, named after its type.

use bitsmith_autotune::problem::numbers;
use bitsmith_calibrate::file::{GgufType, GgufWriter};
use bitsmith_compiler::format::Format;
use std::path::{Path, PathBuf};

/// The types.
pub const NAMES: [&str; 14] = [
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "TQ1_0", "TQ2_0", "MXFP4",
];

/// Writes it; also `floats` `[24, 64]`, `row` `[32]`, and `IQ4_XS`, which has no format.
pub fn write_every_type(folder: &Path) -> PathBuf {
    let (n, k) = (20, 512);
    let mut writer = GgufWriter::new();
    for (seed, name) in NAMES.iter().enumerate() {
        let format: Format = name.to_lowercase().parse().unwrap();
        let floats = numbers(&mut fastrand::Rng::with_seed(seed as u64), n * k);
        let weights = format.encode(&floats, n, k, None).unwrap();
        let part = (format.container.pack)(&weights).unwrap().remove(0);
        writer.tensor(name, GgufType::from_name(name).unwrap(), &[n, k], part.bytes).unwrap();
    }
    let floats: Vec<u8> =
        numbers(&mut fastrand::Rng::with_seed(7), 24 * 64).iter().flat_map(|x| x.to_le_bytes()).collect();
    writer.tensor("floats", GgufType::F32, &[24, 64], floats).unwrap();
    writer.tensor("row", GgufType::F32, &[32], vec![0; 128]).unwrap();
    writer.tensor("IQ4_XS", GgufType::IQ4_XS, &[2, 256], vec![0; 272]).unwrap();
    let path = folder.join("every.gguf");
    writer.write(&path).unwrap();
    path
}
