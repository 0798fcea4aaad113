//! One program for all tests of the crate: it is linked once, and tests of every file run side by side.

mod hostile;
mod package;
mod pages;
mod python;
mod support;
