//! What the tests share: seeded random kernels, and whatever several test files need.

pub mod random;
