//! A log without a disk.

use escapement_protocol::{Epoch, ShardId};

use crate::aligned::AlignedBuf;
use crate::format::{
    Block, BlockHeader, BlockKind, Checksum, FRAME_SIZE_BYTES, Place, RECORDS_SIZE_BYTES_MAX, encode_extent,
};
use crate::log::{BlockContent, BlockSeq, LogError, ReadChunk, ShardLog};
use crate::recovery::RecoveredBlock;

/// Blocks that may be in flight.
const IN_FLIGHT_COUNT_MAX: usize = 2;

/// The smallest [`ShardLog`]: keeps blocks in memory, and calls them durable when [`MemoryLog::complete_one`] says so.
/// For tests of what stands on top of a log.
#[derive(Debug)]
pub struct MemoryLog {
    epoch: Epoch,
    /// Extents, the first is block `first`.
    extents: Vec<AlignedBuf>,
    first: BlockSeq,
    durable: BlockSeq,
    last_checksum: Checksum,
    read: Option<BlockSeq>,
}

impl Default for MemoryLog {
    fn default() -> MemoryLog {
        MemoryLog::new()
    }
}

impl MemoryLog {
    /// An empty log in epoch 1.
    #[must_use]
    pub fn new() -> MemoryLog {
        MemoryLog {
            epoch: Epoch(1),
            extents: Vec::new(),
            first: BlockSeq(1),
            durable: BlockSeq(0),
            last_checksum: Checksum::default(),
            read: None,
        }
    }

    /// Makes the oldest block in flight durable; answers whether there was one.
    pub fn complete_one(&mut self) -> bool {
        let any = self.in_flight() > 0;
        self.durable.0 += u64::from(any);
        any
    }

    /// Loses what is not durable and begins the next epoch, handing what is left to `visitor`.
    pub fn crash(&mut self, visitor: &mut dyn FnMut(RecoveredBlock<'_>)) {
        self.extents.truncate((self.durable.0 + 1 - self.first.0) as usize);
        self.epoch.0 += 1;
        self.read = None;
        for extent in &self.extents {
            let block = Block::parse(&extent[FRAME_SIZE_BYTES..]).expect("memory keeps what it was given");
            self.last_checksum = block.checksum();
            visitor(RecoveredBlock::from(&block));
        }
    }

    fn last(&self) -> BlockSeq {
        BlockSeq(self.first.0 + self.extents.len() as u64 - 1)
    }
}

impl ShardLog for MemoryLog {
    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn submit(&mut self, block: BlockContent<'_>) -> Result<BlockSeq, LogError> {
        assert!(!block.records.is_empty() && block.record_count > 0, "a submitted block holds records");
        if !self.ready() {
            return Err(LogError::Backpressure);
        }
        let header = BlockHeader {
            kind: BlockKind::Data,
            prev_checksum: self.last_checksum,
            cluster: 0,
            shard: ShardId(0),
            epoch: self.epoch,
            block_seq: self.last().next(),
            committed_through: self.durable,
            leader_time: block.leader_time,
            record_count: block.record_count,
            records_size_bytes: block.records.len() as u32,
        };
        let mut extent = AlignedBuf::new();
        self.last_checksum = encode_extent(&mut extent, place(), &header, block.records);
        self.extents.push(extent);
        Ok(header.block_seq)
    }

    fn ready(&self) -> bool {
        self.in_flight() < IN_FLIGHT_COUNT_MAX
    }

    fn in_flight(&self) -> usize {
        (self.last().0 - self.durable.0) as usize
    }

    fn durable(&self) -> BlockSeq {
        self.durable
    }

    fn records_size_bytes_max(&self) -> usize {
        RECORDS_SIZE_BYTES_MAX
    }

    fn read(&mut self, from: BlockSeq) -> Result<(), LogError> {
        if self.read.is_some() {
            return Err(LogError::Backpressure);
        }
        if from < self.first || from > self.durable {
            return Err(LogError::Unavailable);
        }
        self.read = Some(from);
        Ok(())
    }

    fn poll_read(&mut self) -> Option<Result<ReadChunk, LogError>> {
        let from = self.read.take()?;
        let extent = from.0.checked_sub(self.first.0).and_then(|at| self.extents.get(at as usize));
        Some(
            extent
                .map(|extent| ReadChunk::collect(extent.clone(), place(), from, from))
                .ok_or(LogError::Unavailable),
        )
    }

    fn trim(&mut self, upto: BlockSeq) {
        let upto = upto.min(self.durable);
        while self.first <= upto {
            self.extents.remove(0);
            self.first = self.first.next();
        }
    }

    fn error(&self) -> Option<LogError> {
        None
    }
}

/// Every extent lies in a place of its own, so all may state the same.
fn place() -> Place {
    Place { segment_id: 1, offset: 0 }
}
