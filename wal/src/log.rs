//! The seam between a shard and whatever keeps its blocks: [`ShardLog`].

use escapement_protocol::{Epoch, WallMs};

use crate::aligned::AlignedBuf;
use crate::format::{Block, FRAME_SIZE_BYTES, Frame, Place};

/// Position of a block in its shard's chain, from 1, without gaps. 0 stands before the first.
///
/// Counts blocks, not events: those have an [`escapement_protocol::Sequence`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockSeq(pub u64);

impl BlockSeq {
    /// The position behind this one.
    #[must_use]
    pub const fn next(self) -> BlockSeq {
        BlockSeq(self.0 + 1)
    }
}

impl std::fmt::Display for BlockSeq {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What a caller wants to have written as one block.
#[derive(Clone, Copy, Debug)]
pub struct BlockContent<'a> {
    /// The records, opaque to the log. Not empty, at most [`ShardLog::records_size_bytes_max`].
    pub records: &'a [u8],
    /// How many they are. Not 0.
    pub record_count: u32,
    /// The caller's wall clock, kept with the block.
    pub leader_time: WallMs,
}

/// Why a log refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// A newer epoch owns the log. Final.
    #[error("a newer epoch owns this log")]
    Fenced,
    /// A write or a sync failed: what is on the disk is known only to recovery. Final until the log is opened again.
    #[error("a write to the log failed; only opening it again tells what the disk holds")]
    Poisoned,
    /// Acknowledged blocks can't be read.
    #[error("acknowledged blocks {first} to {last} can't be read")]
    Corrupt {
        /// First damaged block.
        first: BlockSeq,
        /// Last block that may be affected.
        last: BlockSeq,
    },
    /// No space, until something is trimmed or the disk has room again.
    #[error("the log has no space left")]
    Full,
    /// What was asked for is not there now: trimmed, not yet durable, or the service behind the log can't be reached.
    #[error("not available now")]
    Unavailable,
    /// As much as is allowed is in flight. Ask again after a completion.
    #[error("as much as is allowed is in flight")]
    Backpressure,
}

/// A shard's log: an append-only chain of blocks with one writer.
///
/// Sans-IO: no call blocks, and nothing is durable before [`ShardLog::durable`] says so. The owner calls, in every
/// turn of its loop:
///
/// 1. what the implementation needs to make progress (for `LocalWal`: `on_completion`, later `poll_op`);
/// 2. [`ShardLog::durable`]: everything up to it may be applied and acknowledged, in order;
/// 3. [`ShardLog::submit`], once, if [`ShardLog::ready`].
///
/// The log also writes blocks of its own (seals, the opening of an epoch), so that a caller sees
/// ascending, but not consecutive, sequences from [`ShardLog::submit`].
///
/// Every implementation passes [`crate::conformance::run`].
pub trait ShardLog {
    /// The epoch in which this log was opened; every block written through it carries it.
    fn epoch(&self) -> Epoch;

    /// Hands over a block. Its bytes are copied before this returns.
    ///
    /// # Errors
    /// [`LogError::Backpressure`], [`LogError::Full`], [`LogError::Poisoned`], [`LogError::Fenced`] or
    /// [`LogError::Unavailable`]; nothing was taken then.
    ///
    /// # Panics
    /// If the records are empty, counted as 0, or larger than [`ShardLog::records_size_bytes_max`].
    fn submit(&mut self, block: BlockContent<'_>) -> Result<BlockSeq, LogError>;

    /// Whether a block of any allowed size would be accepted now.
    fn ready(&self) -> bool;

    /// Blocks submitted and not yet durable, the log's own included.
    fn in_flight(&self) -> usize;

    /// Every block up to this one is durable.
    fn durable(&self) -> BlockSeq;

    /// Most bytes of records that one block takes.
    fn records_size_bytes_max(&self) -> usize;

    /// Starts to read durable blocks back, beginning with `from`. One read at a time.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] where `from` was trimmed away or is not durable, [`LogError::Backpressure`] while
    /// another read is under way or its result was not taken, [`LogError::Poisoned`], [`LogError::Fenced`].
    fn read(&mut self, from: BlockSeq) -> Result<(), LogError>;

    /// The result of the read, once. It holds `from` and as many of the following blocks as came with it.
    fn poll_read(&mut self) -> Option<Result<ReadChunk, LogError>>;

    /// Blocks up to `upto` are no longer needed. Their space comes back in whole segments, in the background.
    fn trim(&mut self, upto: BlockSeq);

    /// The standing reason why [`ShardLog::submit`] would refuse, other than backpressure.
    fn error(&self) -> Option<LogError>;
}

/// Consecutive verified blocks that were read back together.
#[derive(Debug)]
pub struct ReadChunk {
    buf: AlignedBuf,
    /// Offsets of the blocks' first bytes in `buf`. Verified when the chunk was built.
    starts: Vec<usize>,
}

impl ReadChunk {
    /// Takes the blocks `from..=through` out of `buf`, which holds extents written at `place` and behind. Stops at the
    /// end of the buffer, at a block past `through`, and at whatever is not an intact extent of this place.
    pub(crate) fn collect(buf: AlignedBuf, place: Place, from: BlockSeq, through: BlockSeq) -> ReadChunk {
        let mut starts = Vec::new();
        let mut at = 0;
        while let Some(Ok(frame)) = buf.get(at..).map(Frame::parse) {
            let expected = Place { offset: place.offset + at as u32, ..place };
            let Some(extent) = buf.get(at..at + frame.size_bytes as usize) else { break };
            let Some(block) = Block::parse(&extent[FRAME_SIZE_BYTES..]) else { break };
            if frame.place != expected || block.header().block_seq > through {
                break;
            }
            if block.header().block_seq >= from {
                starts.push(at + FRAME_SIZE_BYTES);
            }
            at += frame.size_bytes as usize;
        }
        ReadChunk { buf, starts }
    }

    /// The blocks, in order.
    pub fn blocks(&self) -> impl Iterator<Item = Block<'_>> {
        self.starts.iter().filter_map(|&start| Block::parse(&self.buf[start..]))
    }

    /// How many they are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// The memory, for another use.
    #[must_use]
    pub fn into_buf(self) -> AlignedBuf {
        self.buf
    }
}
