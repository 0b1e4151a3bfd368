//! The block: unit of group commit, of the chain and, later, of replication. Its bytes do not depend on where they lie.

use escapement_protocol::{Epoch, ShardId, WallMs};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::{FORMAT_VERSION, RECORDS_SIZE_BYTES_MAX, field, put, u16_at, u32_at, u64_at, u128_at};
use crate::log::BlockSeq;

/// Size of a block's header, in bytes.
pub const BLOCK_HEADER_SIZE_BYTES: usize = 96;

pub(super) const BLOCK_MAGIC: [u8; 4] = *b"ESBK";

pub(super) mod at {
    pub(crate) const CHECKSUM: usize = 0;
    pub(crate) const HEADER_CHECKSUM: usize = 16;
    pub(crate) const MAGIC: usize = 24;
    pub(crate) const FORMAT: usize = 28;
    pub(crate) const KIND: usize = 30;
    pub(crate) const PREV_CHECKSUM: usize = 32;
    pub(crate) const CLUSTER: usize = 48;
    pub(crate) const SHARD: usize = 56;
    pub(crate) const RESERVED: usize = 58;
    pub(crate) const EPOCH: usize = 60;
    pub(crate) const BLOCK_SEQ: usize = 64;
    pub(crate) const COMMITTED_THROUGH: usize = 72;
    pub(crate) const LEADER_TIME: usize = 80;
    pub(crate) const RECORD_COUNT: usize = 88;
    pub(crate) const RECORDS_SIZE: usize = 92;
}

/// A block's own checksum, and through the next block's `prev_checksum` the link of the chain.
///
/// xxh3-128: guards against faults, not against someone who forges a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checksum(pub u128);

/// What a block is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// Carries records.
    Data,
    /// Carries nothing but `committed_through`: evidence for the blocks before it, written when the log goes idle.
    Seal,
    /// First block of an epoch, carries no records.
    EpochOpen,
}

impl BlockKind {
    const fn code(self) -> u16 {
        match self {
            BlockKind::Data => 1,
            BlockKind::Seal => 2,
            BlockKind::EpochOpen => 3,
        }
    }

    const fn from_code(code: u16) -> Option<BlockKind> {
        match code {
            1 => Some(BlockKind::Data),
            2 => Some(BlockKind::Seal),
            3 => Some(BlockKind::EpochOpen),
            _ => None,
        }
    }
}

/// A block's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHeader {
    /// What the block is for.
    pub kind: BlockKind,
    /// Checksum of the block before it.
    pub prev_checksum: Checksum,
    /// Cluster that the log belongs to.
    pub cluster: u64,
    /// Shard that the log belongs to.
    pub shard: ShardId,
    /// Epoch in which the block was written.
    pub epoch: Epoch,
    /// Position in the chain.
    pub block_seq: BlockSeq,
    /// Watermark known when the block was built: evidence that every block up to it was durable.
    pub committed_through: BlockSeq,
    /// The leader's wall clock when the block was built.
    pub leader_time: WallMs,
    /// Records in the block.
    pub record_count: u32,
    /// Their bytes together.
    pub records_size_bytes: u32,
}

impl BlockHeader {
    /// Writes the header in front of the records that `block` already holds, and answers the block's checksum.
    ///
    /// # Panics
    /// If `block` is shorter than a header.
    pub fn seal(&self, block: &mut [u8]) -> Checksum {
        block[..BLOCK_HEADER_SIZE_BYTES].fill(0);
        put(block, at::MAGIC, BLOCK_MAGIC);
        put(block, at::FORMAT, FORMAT_VERSION.to_le_bytes());
        put(block, at::KIND, self.kind.code().to_le_bytes());
        put(block, at::PREV_CHECKSUM, self.prev_checksum.0.to_le_bytes());
        put(block, at::CLUSTER, self.cluster.to_le_bytes());
        put(block, at::SHARD, self.shard.0.to_le_bytes());
        put(block, at::EPOCH, self.epoch.0.to_le_bytes());
        put(block, at::BLOCK_SEQ, self.block_seq.0.to_le_bytes());
        put(block, at::COMMITTED_THROUGH, self.committed_through.0.to_le_bytes());
        put(block, at::LEADER_TIME, self.leader_time.0.to_le_bytes());
        put(block, at::RECORD_COUNT, self.record_count.to_le_bytes());
        put(block, at::RECORDS_SIZE, self.records_size_bytes.to_le_bytes());
        let header_checksum = xxh3_64(&block[at::MAGIC..BLOCK_HEADER_SIZE_BYTES]);
        put(block, at::HEADER_CHECKSUM, header_checksum.to_le_bytes());
        let checksum = Checksum(xxh3_128(&block[at::HEADER_CHECKSUM..]));
        put(block, at::CHECKSUM, checksum.0.to_le_bytes());
        checksum
    }

    /// Reads the header at the start of `bytes`; `None` unless its own checksum holds and every field is possible.
    ///
    /// A header is worth believing without its records: `committed_through` is evidence even where the rest of the
    /// block is torn.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<BlockHeader> {
        let bytes = bytes.get(..BLOCK_HEADER_SIZE_BYTES)?;
        if field::<4>(bytes, at::MAGIC)? != BLOCK_MAGIC
            || u64_at(bytes, at::HEADER_CHECKSUM)? != xxh3_64(bytes.get(at::MAGIC..)?)
            || u16_at(bytes, at::FORMAT)? != FORMAT_VERSION
            || u16_at(bytes, at::RESERVED)? != 0
        {
            return None;
        }
        let header = BlockHeader {
            kind: BlockKind::from_code(u16_at(bytes, at::KIND)?)?,
            prev_checksum: Checksum(u128_at(bytes, at::PREV_CHECKSUM)?),
            cluster: u64_at(bytes, at::CLUSTER)?,
            shard: ShardId(u16_at(bytes, at::SHARD)?),
            epoch: Epoch(u32_at(bytes, at::EPOCH)?),
            block_seq: BlockSeq(u64_at(bytes, at::BLOCK_SEQ)?),
            committed_through: BlockSeq(u64_at(bytes, at::COMMITTED_THROUGH)?),
            leader_time: WallMs(u64_at(bytes, at::LEADER_TIME)?),
            record_count: u32_at(bytes, at::RECORD_COUNT)?,
            records_size_bytes: u32_at(bytes, at::RECORDS_SIZE)?,
        };
        let possible = header.records_size_bytes as usize <= RECORDS_SIZE_BYTES_MAX
            && header.committed_through < header.block_seq
            && (header.kind == BlockKind::Data) == (header.record_count > 0)
            && (header.kind == BlockKind::Data) == (header.records_size_bytes > 0);
        possible.then_some(header)
    }
}

/// A verified block, borrowed from the bytes that it was read into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block<'a> {
    header: BlockHeader,
    checksum: Checksum,
    bytes: &'a [u8],
}

impl<'a> Block<'a> {
    /// Reads the block that `bytes` begins with; `None` unless header and checksum hold. Bytes behind it are ignored.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Block<'a>> {
        Block::with_header(BlockHeader::parse(bytes)?, bytes)
    }

    /// As [`Block::parse`], for a header already read from the same bytes.
    #[must_use]
    pub fn with_header(header: BlockHeader, bytes: &'a [u8]) -> Option<Block<'a>> {
        let bytes = bytes.get(..BLOCK_HEADER_SIZE_BYTES + header.records_size_bytes as usize)?;
        let checksum = Checksum(u128_at(bytes, at::CHECKSUM)?);
        let covered = bytes.get(at::HEADER_CHECKSUM..)?;
        (checksum.0 == xxh3_128(covered)).then_some(Block { header, checksum, bytes })
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &BlockHeader {
        &self.header
    }

    /// The checksum that the next block names.
    #[must_use]
    pub fn checksum(&self) -> Checksum {
        self.checksum
    }

    /// The records, as the writer handed them over.
    #[must_use]
    pub fn records(&self) -> &'a [u8] {
        &self.bytes[BLOCK_HEADER_SIZE_BYTES..]
    }

    /// The whole block, header included: what travels to another node.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}
