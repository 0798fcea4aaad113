//! bitsmith
fn main() {}
