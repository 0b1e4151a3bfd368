//! The log of one shard: an append-only chain of blocks on disk.
//!
//! * [`ShardLog`] is the seam between a shard and whatever keeps its blocks. [`conformance`] says what every
//!   implementation must do.
//! * [`LocalWal`] implements it on a local disk, sans-IO: it hands out [`DiskOp`]s and takes back [`DiskCompletion`]s, so
//!   that a ring, a thread and a simulator drive the same code.
//! * [`format_log`] makes a log in a [`Directory`], [`open`] recovers one, [`check`] says what it would find. The decision what to accept is a table:
//!   [`recovery::table`].
//! * [`copy_log`] copies a log that is open: [`snapshot`].
//! * [`mod@format`] holds the byte forms, pure; `docs/formats/wal-v1.md` specifies them.
//! * [`memory`] is a disk in memory that loses power on command; [`inspect`] looks at a log for a person.
//!
//! What holds at every moment: a block is acknowledged only once it and every block before it are durable; what was
//! acknowledged is found by [`open`], or [`open`] refuses and says which blocks are missing; after the first failed
//! write nothing is acknowledged any more.
//!
//! Left out on purpose: locking the data directory against a second node, deciding what a record means, deciding when
//! to commit, trim or seal, and quarantining a damaged log. Those are the node's.
#![deny(unsafe_code)]

pub mod aligned;
pub mod config;
pub mod conformance;
pub mod disk;
pub mod format;
pub mod fs;
pub mod inspect;
mod local;
pub mod log;
pub mod memory;
pub mod recovery;
pub mod snapshot;

pub use aligned::AlignedBuf;
pub use config::{LogIdentity, WalConfig};
pub use disk::{Directory, DiskCompletion, DiskOp, FileId, OpId, RUN_DIR};
pub use format::BlockKind;
pub use fs::FsDirectory;
pub use local::{LocalWal, LogUsage};
pub use log::{BlockContent, BlockSeq, LogError, ReadChunk, ShardLog};
pub use recovery::{
    Loss, OpenError, ReadLog, RecoveredBlock, RecoveryReport, check, format as format_log, last_epoch, open,
    read,
};
pub use snapshot::{COPY_EPOCH_STEP, CopiedLog, CopyError, LogCut, check_copy, copy_log};
