//! One program for all tests of the crate: it is linked once, and tests of every file run side by side.

mod common;
mod faults;
mod floats;
mod foreign;
mod hopper;
mod integers;
mod matrices;
mod warps;
