//! Code books: what the 16 codes of the table formats stand for.

use super::Table;

/// NormalFloat 4 of QLoRA: quantiles of a normal distribution, scaled to [-1, 1], with an exact 0
/// (bitsandbytes `csrc/kernels.cu`, `nf4_data`).
pub static NF4: Table = Table {
    name: "nf4",
    values: [
        -1.0,
        -0.696_192_8,
        -0.525_073_05,
        -0.394_917_5,
        -0.284_441_38,
        -0.184_773_43,
        -0.091_050_036,
        0.0,
        0.079_580_3,
        0.160_930_2,
        0.246_112_3,
        0.337_915_24,
        0.440_709_83,
        0.562_617,
        0.722_956_84,
        1.0,
    ],
};

/// ggml's non-linear 4-bit book (`ggml-common.h`, `kvalues_iq4nl`).
pub static IQ4_NL: Table = Table {
    name: "iq4_nl",
    values: [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0],
};
