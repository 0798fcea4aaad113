//! Dense bit streams: fields of 1 to 8 bits, least significant bit first, in bytes or in 32-bit words.
//!
//! Reads and makes plain bytes and words. Always holds: field `i` of width `b` begins at bit `i * b` and may straddle;
//! since words are little-endian, a stream of words and the stream of their bytes are the same.

/// Bytes that hold `count` fields.
pub(super) fn bytes_for(count: usize, bits: u8) -> usize {
    (count * bits as usize).div_ceil(8)
}

/// Words that hold `count` fields.
pub(super) fn words_for(count: usize, bits: u8) -> usize {
    (count * bits as usize).div_ceil(32)
}

/// Packs fields into bytes.
pub(super) fn pack_bytes(fields: &[u8], bits: u8) -> Vec<u8> {
    let mut bytes = vec![0u8; bytes_for(fields.len(), bits)];
    for (i, field) in fields.iter().enumerate() {
        let position = i * bits as usize;
        let wide = (*field as u16) << (position % 8);
        bytes[position / 8] |= wide as u8;
        if wide > 0xFF {
            bytes[position / 8 + 1] |= (wide >> 8) as u8;
        }
    }
    bytes
}

/// The first `count` fields of bytes that hold at least as many.
pub(super) fn unpack_bytes(bytes: &[u8], bits: u8, count: usize) -> Vec<u8> {
    let mask = ((1u16 << bits) - 1) as u8;
    (0..count)
        .map(|i| {
            let position = i * bits as usize;
            let low = bytes[position / 8] as u16;
            let high = bytes.get(position / 8 + 1).copied().unwrap_or(0) as u16;
            ((high << 8 | low) >> (position % 8)) as u8 & mask
        })
        .collect()
}

/// Packs fields into words.
pub(super) fn pack_words(fields: &[u8], bits: u8) -> Vec<u32> {
    let mut words = vec![0u32; words_for(fields.len(), bits)];
    for (i, field) in fields.iter().enumerate() {
        let position = i * bits as usize;
        let wide = (*field as u64) << (position % 32);
        words[position / 32] |= wide as u32;
        if wide > u32::MAX as u64 {
            words[position / 32 + 1] |= (wide >> 32) as u32;
        }
    }
    words
}

/// The first `count` fields of words that hold at least as many.
pub(super) fn unpack_words(words: &[u32], bits: u8, count: usize) -> Vec<u8> {
    let mask = ((1u16 << bits) - 1) as u8;
    (0..count)
        .map(|i| {
            let position = i * bits as usize;
            let low = words[position / 32] as u64;
            let high = words.get(position / 32 + 1).copied().unwrap_or(0) as u64;
            ((high << 32 | low) >> (position % 32)) as u8 & mask
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_bit_fields_straddle_words() {
        let fields: Vec<u8> = (0..32).map(|i| if i == 10 || i == 21 { 0b101 } else { 0 }).collect();
        // Field 10 begins at bit 30, field 21 at bit 63.
        assert_eq!(pack_words(&fields, 3), [1 << 30, 1 | 1 << 31, 0b10]);
        assert_eq!(unpack_words(&pack_words(&fields, 3), 3, 32), fields);
    }

    #[test]
    fn every_width_comes_back_and_bytes_equal_words() {
        for bits in 1..=8u8 {
            let fields: Vec<u8> = (0..77u32).map(|i| ((i * 37 + 11) % (1 << bits)) as u8).collect();
            let (bytes, words) = (pack_bytes(&fields, bits), pack_words(&fields, bits));
            assert_eq!(unpack_bytes(&bytes, bits, 77), fields);
            assert_eq!(unpack_words(&words, bits, 77), fields);
            let of_words: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            assert_eq!(of_words[..bytes.len()], bytes);
        }
    }
}
