//! The composition root: one process, one pinned thread per core, and all that touches the operating system.

pub mod cli;
mod clock_notice;
pub mod config;
pub mod core;
mod cores;
pub mod data_dir;
mod disk_notice;
pub mod io;
mod mesh;
mod open_files;
mod progress;
mod run;
pub mod runs;
pub mod serve;
pub mod signals;
mod supervisor;
