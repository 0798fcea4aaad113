//! One program for all tests of the crate: it is linked once, and tests of every file run side by side.

mod algorithms;
mod families;
mod large;
mod models;
mod own_model;
mod picker;
mod quality;
mod quantizers;
mod support;
mod traps;
