//! Far-future events: where they are while their time is far away.
//!
//! An event that is due beyond the horizon is kept in memory only until enough of them have come. Then they are
//! sorted by (due time, sequence) and written to a *run*: an immutable file of blocks and a footer with an index
//! ([`mod@format`], specified in `docs/formats/far-v1.md`). When a run is durable, `Moved` records say which events have
//! left the log for it, a few blocks at a time. As the clock nears, a run's blocks are read back in order, and a
//! `Loaded` record says that their events are in memory again: they then live in the log like events published in
//! that block, but that their bytes are in the run. So every pending event is reachable from exactly one place at each
//! position of the log, and a crash between any two records changes nothing.
//!
//! What the log says of a run ([`crate::record::Record::Run`]) is stated again when the block that holds it is to be
//! freed, as control objects are. A run's file goes once all of it was loaded, and the log holds no `Loaded` record of
//! it that recovery could read.
//!
//! Invariants:
//! * an event is moved only after the block of the run that holds it is durable, and loaded only after it was moved;
//! * the keys of a run ascend strictly, over all its blocks;
//! * what ended while it was in a run is in the run's `ended` set, from that record on until the run is closed.
//!
//! Left out on purpose: files ([`RunOp`] says what is wanted of them) and when to do what (`shard::far`).

mod buffer;
pub mod format;
mod run;

use std::io;

pub(crate) use buffer::{FarBuffer, Merge};
pub use format::RunDamage;
pub(crate) use run::{Ahead, Closing, Key, Run, Runs, read_footer};

/// Names a run of a shard: numbered from 1, in the order of their making, never reused while the log speaks of one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(pub u32);

impl std::fmt::Display for RunId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What a shard wants done with the file of a run. Each is answered by [`crate::Shard::run_op_done`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunOp {
    /// Make the file, empty.
    Create {
        /// Whose.
        run: RunId,
    },
    /// Append to the file. Complete when the bytes and the file's size are durable.
    Write {
        /// Whose.
        run: RunId,
        /// The end of what was written so far, a multiple of 4 KiB.
        offset: u64,
        /// A multiple of 4 KiB.
        bytes: Vec<u8>,
    },
    /// Read a part of the file.
    Read {
        /// Whose.
        run: RunId,
        /// A multiple of 4 KiB.
        offset: u64,
        /// A multiple of 4 KiB.
        len: usize,
    },
    /// Remove the file, durably.
    Remove {
        /// Whose.
        run: RunId,
    },
}

/// Names a [`RunOp`] until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunTicket(pub u64);

/// The files of a shard's runs, for recovery: it reads them at once.
pub trait RunFiles {
    /// Bytes of the file, `None` where there is none.
    ///
    /// # Errors
    /// Of the operating system.
    fn size(&mut self, run: RunId) -> io::Result<Option<u64>>;

    /// Reads `len` bytes from `offset` on, fewer only at the end of the file. Both are multiples of 4 KiB.
    ///
    /// # Errors
    /// Of the operating system.
    fn read(&mut self, run: RunId, offset: u64, len: usize) -> io::Result<Vec<u8>>;
}

/// A shard without runs: no file is there.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoRuns;

impl RunFiles for NoRuns {
    fn size(&mut self, _: RunId) -> io::Result<Option<u64>> {
        Ok(None)
    }

    fn read(&mut self, _: RunId, _: u64, _: usize) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// Why a run can't be used.
#[derive(Debug)]
pub enum RunError {
    /// Its file is not there, and holds pending events.
    Missing(RunId),
    /// Its file can't be read.
    Io(RunId, io::Error),
    /// Its file is not what was written.
    Damaged(RunId, RunDamage),
}

impl std::fmt::Display for RunError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RunError::Missing(run) => {
                write!(f, "the file of run {run} is missing: restore far/{:08}.run from a copy", run.0)
            }
            RunError::Io(run, error) => write!(f, "far/{:08}.run can't be read: {error}", run.0),
            RunError::Damaged(run, damage) => {
                write!(f, "far/{:08}.run is damaged, {damage}: restore it from a copy", run.0)
            }
        }
    }
}

impl std::error::Error for RunError {}
