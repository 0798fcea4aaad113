//! Numbers of rows that are tuned: powers of two up to 4096. Every other number of rows takes the schedule of one of them.

/// The rows that are tuned, ascending. The last stands for all that are more.
pub const BUCKETS: [usize; 13] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096];

/// Rows up to which a matmul counts as decoding: it is bound by the reading of weights.
pub const DECODE_ROWS: usize = 8;

/// The bucket that serves so many rows: the smallest that holds them, the last one for all beyond.
pub fn bucket(m: usize) -> usize {
    BUCKETS.into_iter().find(|&bucket| bucket >= m).unwrap_or(BUCKETS[BUCKETS.len() - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_rows_has_a_bucket() {
        assert_eq!([1, 2, 3, 5, 9, 100, 4096, 4097, 1 << 20].map(bucket), [1, 2, 4, 8, 16, 128, 4096, 4096, 4096]);
    }
}
