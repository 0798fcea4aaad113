//! The tensor types of GGUF: id, name, weights per block, bytes per block.
//!
//! Facts from ggml's `ggml.h` and `gguf/constants.py` (`GGML_QUANT_SIZES`). Ids are never reused: 4, 5, 31 to 33 and
//! 36 to 38 belonged to types that were removed, and stay unknown here.

use std::fmt;

macro_rules! gguf_types {
    ($($(#[$doc:meta])* $name:ident = $id:literal, $block:literal / $bytes:literal;)*) => {
        /// How the weights of one GGUF tensor are stored.
        #[allow(non_camel_case_types)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum GgufType {
            $($(#[$doc])* $name,)*
        }

        impl GgufType {
            /// Every known type, by rising id.
            pub const ALL: &'static [GgufType] = &[$(GgufType::$name),*];

            /// Id, name, weights per block, bytes per block.
            const fn facts(self) -> (u32, &'static str, usize, usize) {
                match self {
                    $(GgufType::$name => ($id, stringify!($name), $block, $bytes),)*
                }
            }
        }
    };
}

gguf_types! {
    /// IEEE binary32.
    F32 = 0, 1 / 4;
    /// IEEE binary16.
    F16 = 1, 1 / 2;
    /// 4 bits, one f16 scale.
    Q4_0 = 2, 32 / 18;
    /// 4 bits, f16 scale and minimum.
    Q4_1 = 3, 32 / 20;
    /// 5 bits, one f16 scale.
    Q5_0 = 6, 32 / 22;
    /// 5 bits, f16 scale and minimum.
    Q5_1 = 7, 32 / 24;
    /// 8 bits, one f16 scale.
    Q8_0 = 8, 32 / 34;
    /// 8 bits, f16 scale and sum; an activation type.
    Q8_1 = 9, 32 / 36;
    /// 2 bits, 4-bit scales and minima.
    Q2_K = 10, 256 / 84;
    /// 3 bits, 6-bit scales.
    Q3_K = 11, 256 / 110;
    /// 4 bits, 6-bit scales and minima.
    Q4_K = 12, 256 / 144;
    /// 5 bits, 6-bit scales and minima.
    Q5_K = 13, 256 / 176;
    /// 6 bits, 8-bit scales.
    Q6_K = 14, 256 / 210;
    /// 8 bits, f32 scale and sums; an activation type.
    Q8_K = 15, 256 / 292;
    /// Codebook, about 2.06 bits.
    IQ2_XXS = 16, 256 / 66;
    /// Codebook, about 2.31 bits.
    IQ2_XS = 17, 256 / 74;
    /// Codebook, about 3.06 bits.
    IQ3_XXS = 18, 256 / 98;
    /// Codebook, about 1.56 bits.
    IQ1_S = 19, 256 / 50;
    /// 4 bits into a table of 16 values.
    IQ4_NL = 20, 32 / 18;
    /// Codebook, about 3.44 bits.
    IQ3_S = 21, 256 / 110;
    /// Codebook, about 2.56 bits.
    IQ2_S = 22, 256 / 82;
    /// 4 bits into a table of 16 values, 6-bit scales.
    IQ4_XS = 23, 256 / 136;
    /// Signed byte.
    I8 = 24, 1 / 1;
    /// 16-bit integer.
    I16 = 25, 1 / 2;
    /// 32-bit integer.
    I32 = 26, 1 / 4;
    /// 64-bit integer.
    I64 = 27, 1 / 8;
    /// IEEE binary64.
    F64 = 28, 1 / 8;
    /// Codebook, about 1.75 bits.
    IQ1_M = 29, 256 / 56;
    /// Upper half of a binary32.
    BF16 = 30, 1 / 2;
    /// Ternary, five to a byte.
    TQ1_0 = 34, 256 / 54;
    /// Ternary, four to a byte.
    TQ2_0 = 35, 256 / 66;
    /// OCP microscaling FP4: one E8M0 scale.
    MXFP4 = 39, 32 / 17;
    /// NVIDIA FP4: four UE4M3 scales.
    NVFP4 = 40, 64 / 36;
    /// 1 bit, one f16 scale.
    Q1_0 = 41, 128 / 18;
    /// 2 bits, one f16 scale.
    Q2_0 = 42, 64 / 18;
}

impl GgufType {
    /// The type of a file's type id.
    pub fn from_id(id: u32) -> Option<GgufType> {
        GgufType::ALL.iter().copied().find(|kind| kind.id() == id)
    }

    /// The type of a name as ggml spells it, such as `Q4_K`; case does not matter.
    pub fn from_name(name: &str) -> Option<GgufType> {
        GgufType::ALL.iter().copied().find(|kind| kind.name().eq_ignore_ascii_case(name))
    }

    /// The id in the file.
    pub const fn id(self) -> u32 {
        self.facts().0
    }

    /// The name as ggml spells it.
    pub const fn name(self) -> &'static str {
        self.facts().1
    }

    /// Weights in one block; K must be a multiple of it.
    pub const fn block(self) -> usize {
        self.facts().2
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        self.facts().3
    }

    /// The names and ids of all types, for messages.
    pub fn accepted() -> String {
        GgufType::ALL.iter().map(|kind| format!("{}={}", kind.id(), kind.name())).collect::<Vec<_>>().join(" ")
    }

    /// How many bytes a tensor of this shape (numpy order, last dimension contiguous) takes, or what is wrong with it.
    pub(crate) fn tensor_bytes(self, shape: &[usize]) -> Result<usize, String> {
        if let Some(at) = shape.iter().position(|&dim| dim == 0) {
            return Err(format!("dimension {at} of shape {shape:?} is zero; every dimension must be at least 1"));
        }
        let k = shape.last().copied().unwrap_or(1);
        if !k.is_multiple_of(self.block()) {
            let block = self.block();
            return Err(format!("K = {k} is not a multiple of {block}, the block of {self} (shape {shape:?})"));
        }
        (shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim)))
            .and_then(|elements| (elements / self.block()).checked_mul(self.block_bytes()))
            .filter(|&bytes| bytes <= isize::MAX as usize)
            .ok_or_else(|| format!("shape {shape:?} of {self} overflows the address space"))
    }
}

impl fmt::Display for GgufType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_rise_and_names_find_their_type() {
        assert!(GgufType::ALL.windows(2).all(|pair| pair[0].id() < pair[1].id()));
        for &kind in GgufType::ALL {
            assert_eq!(GgufType::from_id(kind.id()), Some(kind));
            assert_eq!(GgufType::from_name(&kind.name().to_lowercase()), Some(kind));
        }
        for removed in [4, 5, 31, 32, 33, 36, 37, 38, 43, u32::MAX] {
            assert_eq!(GgufType::from_id(removed), None);
        }
    }

    #[test]
    fn sizes_follow_the_block() {
        assert_eq!(GgufType::Q4_K.tensor_bytes(&[3, 512]), Ok(3 * 2 * 144));
        assert_eq!(GgufType::F32.tensor_bytes(&[]), Ok(4));
        assert!(GgufType::Q4_0.tensor_bytes(&[4, 48]).unwrap_err().contains("multiple of 32"));
        assert!(GgufType::F32.tensor_bytes(&[usize::MAX, 2]).unwrap_err().contains("overflows"));
        assert!(GgufType::F32.tensor_bytes(&[0, 2]).unwrap_err().contains("zero"));
    }
}
