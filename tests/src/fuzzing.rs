//! What the fuzz targets do with an input, as ordinary functions.
//!
//! The fuzzer (`fuzz/`) calls them with inputs of its own making; `tests/tests/fuzz_corpus.rs` calls them with the
//! kept ones, in every test run. Each function takes any bytes at all and panics where a decoder breaks its word.

mod block;
mod event;
mod frame;
mod record;

use std::fmt;

pub use block::wal_block;
pub use event::event_parse;
pub use frame::frame_decode;
pub use record::engine_record;

/// A fuzz target: its name, what it does with an input, and inputs to start from.
#[derive(Clone, Copy)]
pub struct Target {
    /// The target's name, which is also its folder's name in `fuzz/corpus`.
    pub name: &'static str,
    /// Tries one input. Panics where the decoder under test breaks its word.
    pub run: fn(&[u8]),
    /// Inputs that the real encoders write, each with a file name.
    pub seeds: fn() -> Vec<(&'static str, Vec<u8>)>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Every target. The folder `fuzz/fuzz_targets` holds one file for each.
pub const TARGETS: &[Target] = &[
    Target { name: "event_parse", run: event_parse, seeds: event::seeds },
    Target { name: "frame_decode", run: frame_decode, seeds: frame::seeds },
    Target { name: "wal_block", run: wal_block, seeds: block::seeds },
    Target { name: "engine_record", run: engine_record, seeds: record::seeds },
];
