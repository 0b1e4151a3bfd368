//! Tests that look at the system from outside any one room.
//!
//! Ordinary functions and structures that tests, simulation and fuzz targets share; the tests are in `tests/tests`.
#![forbid(unsafe_code)]

pub mod century;
pub mod corruption;
pub mod fuzzing;
pub mod harness;
mod lone;
pub mod powercut;
pub mod race;
pub mod recovery;
pub mod sim;
pub mod small_disk;
