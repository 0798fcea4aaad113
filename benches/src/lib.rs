//! Criterion benches: `cargo bench -p bitsmith-benches`.
