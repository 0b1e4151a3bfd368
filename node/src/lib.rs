//! The composition root: one process, one pinned thread per core, and all that touches the operating system.

pub mod io;
