//! Everything of a log in memory, for tests and simulation: a disk that fails on command, and a log without a disk.
//!
//! Deterministic: the same seed and the same calls give the same bytes.

mod disk;
mod file;
mod log;
mod rng;

pub use disk::{Faults, MemDisk};
pub use log::MemoryLog;
pub use rng::Rng;
