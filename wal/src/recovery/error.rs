//! Why a log could not be formatted or opened, and what to do about it.

use std::io;

use super::table::RecoveryCase;
use crate::config::LogIdentity;
use crate::disk::{FileId, SEGMENT_DIR};
use crate::format::FORMAT_VERSION;
use crate::log::BlockSeq;

/// Why [`crate::format_log`] or [`crate::open`] refused. Unless it says otherwise, nothing on the disk was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No log here.
    #[error(
        "the file SUPER is missing, which says where the log begins: put it back, or restore the shard's directory from a \
         copy"
    )]
    NotFormatted,
    /// Formatting found something.
    #[error("{found} is already here: format an empty directory, or move the old log away first")]
    AlreadyFormatted {
        /// What was found.
        found: String,
    },
    /// The configuration can't be.
    #[error("the log's configuration can't be: {0}")]
    InvalidConfig(&'static str),
    /// Written by another version.
    #[error(
        "{file} has format {found}, this program reads format {}: {}", FORMAT_VERSION,
        if *found > FORMAT_VERSION { "start the newer program that wrote it" } else { "convert it with the program that wrote it" }
    )]
    OtherFormat {
        /// Which file.
        file: FileId,
        /// The version that it states.
        found: u16,
    },
    /// `SUPER` can't be believed.
    #[error(
        "no two copies in SUPER agree ({intact_count} of 4 are intact): restore the shard's directory from a copy"
    )]
    SuperDamaged {
        /// Copies whose checksum holds.
        intact_count: usize,
    },
    /// Another log's `SUPER`.
    #[error(
        "the log here is that of {found}, and that of {expected} belongs here: put each shard's directory back in its place"
    )]
    ForeignSuper {
        /// Whose it is.
        found: LogIdentity,
        /// Whose it should be.
        expected: LogIdentity,
    },
    /// Another log's segment, or one under a wrong name.
    #[error(
        "{file} was written as slot {slot} of shard {shard} in cluster {cluster:#x}: move it back where it came from"
    )]
    ForeignSegment {
        /// Which file.
        file: FileId,
        /// Cluster in its header.
        cluster: u64,
        /// Shard in its header.
        shard: u16,
        /// Slot in its header.
        slot: u32,
    },
    /// Two files claim the same segment.
    #[error("{first} and {second} both hold segment {segment_id}: one is a copy, move it away")]
    DuplicateSegment {
        /// One of them.
        first: FileId,
        /// The other.
        second: FileId,
        /// What both claim.
        segment_id: u64,
    },
    /// A file that is not the log's.
    #[error("wal/{name} is no file of this log: move it away")]
    UnexpectedFile {
        /// Its name.
        name: String,
    },
    /// A segment file of the wrong size.
    #[error("{file} has {found_bytes} bytes instead of {expected_bytes}: restore it from a copy")]
    SegmentSize {
        /// Which file.
        file: FileId,
        /// Its size.
        found_bytes: u64,
        /// What it should be.
        expected_bytes: u64,
    },
    /// The directory of the segment files is gone, and with it every block. A loss cannot be accepted here: it ends a
    /// log, and there is none.
    #[error(
        "the folder {SEGMENT_DIR}/ is missing, which held blocks up to {committed_through} at least: put it back, or restore \
         the shard's directory from a copy"
    )]
    SegmentsMissing {
        /// Last block that `SUPER` knows to have been acknowledged.
        committed_through: BlockSeq,
    },
    /// Acknowledged blocks are damaged or missing. The log is left as it is.
    #[error(
        "acknowledged blocks {first} to {last} are damaged ({case:?} in segment {segment_id} at byte {offset}): \
         copy the directory, then restore it, or let `escapement repair` say what these blocks hold, and give them up with --accept-loss {token:016x}"
    )]
    Corrupt {
        /// First block that can't be read.
        first: BlockSeq,
        /// Last block known to have been acknowledged.
        last: BlockSeq,
        /// What was found at the first one's place.
        case: RecoveryCase,
        /// Segment of that place.
        segment_id: u64,
        /// Offset of that place in the segment's file.
        offset: u64,
        /// Names exactly this finding, for [`crate::WalConfig::accept_loss`].
        token: u64,
    },
    /// The operating system refused. Where this happens while opening writes, opening again continues.
    #[error("can't {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: String,
        /// Why not.
        source: io::Error,
    },
}

impl OpenError {
    pub(super) fn io(action: &'static str, path: impl Into<String>) -> impl FnOnce(io::Error) -> OpenError {
        let path = path.into();
        move |source| OpenError::Io { action, path, source }
    }
}
