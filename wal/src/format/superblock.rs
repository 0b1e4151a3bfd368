//! `SUPER`: the little that must be known before the log can be read, in four copies.
//!
//! A generation is written to copies 0 and 1, then, once those are durable, to copies 2 and 3. At every moment two
//! copies agree on the generation before or on the new one; after both writes any two copies may rot. That holds only
//! if all four agree before a generation is begun: opening first rewrites, one by one, the copies that don't.

use escapement_protocol::{Epoch, ShardId};
use xxhash_rust::xxh3::xxh3_128;

use super::{Checksum, FORMAT_VERSION, field, is_zero, put, u16_at, u32_at, u64_at, u128_at};
use crate::aligned::AlignedBuf;
use crate::log::BlockSeq;

/// Copies in the file.
pub const SUPER_COPY_COUNT: usize = 4;

/// Size of one copy, in bytes.
pub const SUPER_COPY_SIZE_BYTES: usize = 4096;

/// Size of the file, in bytes.
pub const SUPER_SIZE_BYTES: usize = SUPER_COPY_COUNT * SUPER_COPY_SIZE_BYTES;

pub(super) const SUPER_MAGIC: [u8; 4] = *b"ESSU";

pub(super) mod at {
    pub(crate) const CHECKSUM: usize = 0;
    pub(crate) const MAGIC: usize = 16;
    pub(crate) const FORMAT: usize = 20;
    pub(crate) const RESERVED: usize = 22;
    pub(crate) const RESERVED_2: usize = 24;
    pub(crate) const GENERATION: usize = 32;
    pub(crate) const CLUSTER: usize = 40;
    pub(crate) const SHARD: usize = 48;
    pub(crate) const SHARD_COUNT: usize = 50;
    pub(crate) const EPOCH: usize = 52;
    pub(crate) const SEGMENT_SIZE: usize = 56;
    pub(crate) const COMMITTED_THROUGH: usize = 64;
    pub(crate) const FIRST_SEGMENT_ID: usize = 72;
    pub(crate) const FIRST_BLOCK_SEQ: usize = 80;
    pub(crate) const RESERVED_3: usize = 88;
    pub(crate) const FIRST_PREV_CHECKSUM: usize = 96;
    pub(crate) const PADDING: usize = 112;
}

/// The content of one copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Rises with every write of the file.
    pub generation: u64,
    /// Cluster that the log belongs to.
    pub cluster: u64,
    /// Shard that the log belongs to.
    pub shard: ShardId,
    /// Shards in the data directory, fixed when it was formatted.
    pub shard_count: u16,
    /// Epoch of the last opening.
    pub epoch: Epoch,
    /// Size of every segment file, fixed when the log was formatted, in bytes.
    pub segment_size_bytes: u64,
    /// A lower bound of what was acknowledged.
    pub committed_through: BlockSeq,
    /// Oldest segment that is still needed. Older ones may have been recycled.
    pub first_segment_id: u64,
    /// First block of that segment.
    pub first_block_seq: BlockSeq,
    /// `prev_checksum` of that block.
    pub first_prev_checksum: Checksum,
}

/// Why the file tells nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuperblockError {
    /// Two intact copies agree on another version of the format.
    OtherFormat(u16),
    /// No two intact copies agree.
    NoQuorum {
        /// Copies whose checksum holds.
        intact_count: usize,
    },
}

impl Superblock {
    /// Writes two copies into `buf`, replacing its content: one of the two writes that make a generation.
    pub fn encode_pair(&self, buf: &mut AlignedBuf) {
        buf.clear();
        buf.set_len_stale(2 * SUPER_COPY_SIZE_BYTES);
        let (first, second) = buf.split_at_mut(SUPER_COPY_SIZE_BYTES);
        self.encode(first);
        second.copy_from_slice(first);
    }

    /// Writes one copy into `buf`, replacing its content.
    pub fn encode_copy(&self, buf: &mut AlignedBuf) {
        buf.clear();
        buf.set_len_stale(SUPER_COPY_SIZE_BYTES);
        self.encode(buf);
    }

    fn encode(&self, copy: &mut [u8]) {
        copy.fill(0);
        put(copy, at::MAGIC, SUPER_MAGIC);
        put(copy, at::FORMAT, FORMAT_VERSION.to_le_bytes());
        put(copy, at::GENERATION, self.generation.to_le_bytes());
        put(copy, at::CLUSTER, self.cluster.to_le_bytes());
        put(copy, at::SHARD, self.shard.0.to_le_bytes());
        put(copy, at::SHARD_COUNT, self.shard_count.to_le_bytes());
        put(copy, at::EPOCH, self.epoch.0.to_le_bytes());
        put(copy, at::SEGMENT_SIZE, self.segment_size_bytes.to_le_bytes());
        put(copy, at::COMMITTED_THROUGH, self.committed_through.0.to_le_bytes());
        put(copy, at::FIRST_SEGMENT_ID, self.first_segment_id.to_le_bytes());
        put(copy, at::FIRST_BLOCK_SEQ, self.first_block_seq.0.to_le_bytes());
        put(copy, at::FIRST_PREV_CHECKSUM, self.first_prev_checksum.0.to_le_bytes());
        let checksum = xxh3_128(&copy[at::MAGIC..]);
        put(copy, at::CHECKSUM, checksum.to_le_bytes());
    }

    /// The newest generation on which at least two copies of `file` agree.
    ///
    /// # Errors
    /// [`SuperblockError`].
    pub fn choose(file: &[u8]) -> Result<Superblock, SuperblockError> {
        let mut intact: Vec<(&[u8], u16)> = Vec::with_capacity(SUPER_COPY_COUNT);
        for copy in file.chunks_exact(SUPER_COPY_SIZE_BYTES).take(SUPER_COPY_COUNT) {
            intact.extend(intact_format(copy).map(|format| (copy, format)));
        }
        let agreed = |copy: &[u8]| intact.iter().filter(|(other, _)| *other == copy).count() >= 2;
        let newest = intact
            .iter()
            .filter(|(copy, _)| agreed(copy))
            .max_by_key(|(copy, _)| u64_at(copy, at::GENERATION));
        let no_quorum = SuperblockError::NoQuorum { intact_count: intact.len() };
        match newest {
            None => Err(no_quorum),
            Some((copy, FORMAT_VERSION)) => Superblock::parse_fields(copy).ok_or(no_quorum),
            Some((_, other)) => Err(SuperblockError::OtherFormat(*other)),
        }
    }

    /// The generation of each copy in `file`, `None` where its checksum does not hold.
    #[must_use]
    pub fn generations(file: &[u8]) -> [Option<u64>; SUPER_COPY_COUNT] {
        std::array::from_fn(|number| {
            let copy = file.get(number * SUPER_COPY_SIZE_BYTES..)?.get(..SUPER_COPY_SIZE_BYTES)?;
            intact_format(copy).and_then(|_| u64_at(copy, at::GENERATION))
        })
    }

    fn parse_fields(copy: &[u8]) -> Option<Superblock> {
        let superblock = Superblock {
            generation: u64_at(copy, at::GENERATION)?,
            cluster: u64_at(copy, at::CLUSTER)?,
            shard: ShardId(u16_at(copy, at::SHARD)?),
            shard_count: u16_at(copy, at::SHARD_COUNT)?,
            epoch: Epoch(u32_at(copy, at::EPOCH)?),
            segment_size_bytes: u64_at(copy, at::SEGMENT_SIZE)?,
            committed_through: BlockSeq(u64_at(copy, at::COMMITTED_THROUGH)?),
            first_segment_id: u64_at(copy, at::FIRST_SEGMENT_ID)?,
            first_block_seq: BlockSeq(u64_at(copy, at::FIRST_BLOCK_SEQ)?),
            first_prev_checksum: Checksum(u128_at(copy, at::FIRST_PREV_CHECKSUM)?),
        };
        let possible = superblock.first_segment_id != 0
            && superblock.first_block_seq.0 != 0
            && u16_at(copy, at::RESERVED)? == 0
            && u64_at(copy, at::RESERVED_2)? == 0
            && u64_at(copy, at::RESERVED_3)? == 0
            && is_zero(copy.get(at::PADDING..)?);
        possible.then_some(superblock)
    }
}

/// The version stated by an intact copy of any version: magic, version, checksum and generation stay where they are.
fn intact_format(copy: &[u8]) -> Option<u16> {
    let intact = field::<4>(copy, at::MAGIC)? == SUPER_MAGIC
        && u128_at(copy, at::CHECKSUM)? == xxh3_128(copy.get(at::MAGIC..)?);
    if intact { u16_at(copy, at::FORMAT) } else { None }
}
