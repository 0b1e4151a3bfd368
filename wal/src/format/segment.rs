//! The segment header: says which segment of the log a slot file holds now.

use escapement_protocol::{Epoch, ShardId};
use xxhash_rust::xxh3::xxh3_64;

use super::{FORMAT_VERSION, field, is_zero, put, u16_at, u32_at, u64_at};
use crate::aligned::AlignedBuf;
use crate::log::BlockSeq;

/// Size of a segment's header, in bytes; the first extent follows it.
pub const SEGMENT_HEADER_SIZE_BYTES: usize = 4096;

pub(super) const SEGMENT_MAGIC: [u8; 4] = *b"ESSG";

pub(super) mod at {
    pub(crate) const CHECKSUM: usize = 0;
    pub(crate) const MAGIC: usize = 8;
    pub(crate) const FORMAT: usize = 12;
    pub(crate) const RESERVED: usize = 14;
    pub(crate) const CLUSTER: usize = 16;
    pub(crate) const SHARD: usize = 24;
    pub(crate) const RESERVED_2: usize = 26;
    pub(crate) const SLOT: usize = 28;
    pub(crate) const SEGMENT_ID: usize = 32;
    pub(crate) const SEGMENT_SIZE: usize = 40;
    pub(crate) const FIRST_SEQ_MIN: usize = 48;
    pub(crate) const EPOCH: usize = 56;
    pub(crate) const PADDING: usize = 60;
}

/// A segment header's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Cluster that the log belongs to.
    pub cluster: u64,
    /// Shard that the log belongs to.
    pub shard: ShardId,
    /// Number of the file, as in its name.
    pub slot: u32,
    /// Which segment of the log the file holds; from 1, without gaps.
    pub segment_id: u64,
    /// Size of the file, in bytes.
    pub segment_size_bytes: u64,
    /// No block before this one is in the segment. The header is written ahead of need, when the first block's
    /// sequence is not yet known; that block states its own.
    pub first_seq_min: BlockSeq,
    /// Epoch that wrote the header.
    pub epoch: Epoch,
}

/// Why bytes are no segment header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentHeaderError {
    /// All zero: the file holds no segment yet.
    Blank,
    /// Intact, but of another version of the format.
    OtherFormat(u16),
    /// Something else.
    Damaged,
}

impl SegmentHeader {
    /// Writes the header's sector into `buf`, replacing its content.
    pub fn encode(&self, buf: &mut AlignedBuf) {
        buf.clear();
        buf.set_len_stale(SEGMENT_HEADER_SIZE_BYTES);
        buf.fill(0);
        put(buf, at::MAGIC, SEGMENT_MAGIC);
        put(buf, at::FORMAT, FORMAT_VERSION.to_le_bytes());
        put(buf, at::CLUSTER, self.cluster.to_le_bytes());
        put(buf, at::SHARD, self.shard.0.to_le_bytes());
        put(buf, at::SLOT, self.slot.to_le_bytes());
        put(buf, at::SEGMENT_ID, self.segment_id.to_le_bytes());
        put(buf, at::SEGMENT_SIZE, self.segment_size_bytes.to_le_bytes());
        put(buf, at::FIRST_SEQ_MIN, self.first_seq_min.0.to_le_bytes());
        put(buf, at::EPOCH, self.epoch.0.to_le_bytes());
        let checksum = xxh3_64(&buf[at::MAGIC..]);
        put(buf, at::CHECKSUM, checksum.to_le_bytes());
    }

    /// Reads the header at the start of a segment file.
    ///
    /// # Errors
    /// [`SegmentHeaderError`].
    pub fn parse(bytes: &[u8]) -> Result<SegmentHeader, SegmentHeaderError> {
        let bytes = bytes.get(..SEGMENT_HEADER_SIZE_BYTES).ok_or(SegmentHeaderError::Damaged)?;
        if is_zero(bytes) {
            return Err(SegmentHeaderError::Blank);
        }
        match intact_format(bytes).ok_or(SegmentHeaderError::Damaged)? {
            FORMAT_VERSION => SegmentHeader::parse_fields(bytes).ok_or(SegmentHeaderError::Damaged),
            other => Err(SegmentHeaderError::OtherFormat(other)),
        }
    }

    fn parse_fields(bytes: &[u8]) -> Option<SegmentHeader> {
        let header = SegmentHeader {
            cluster: u64_at(bytes, at::CLUSTER)?,
            shard: ShardId(u16_at(bytes, at::SHARD)?),
            slot: u32_at(bytes, at::SLOT)?,
            segment_id: u64_at(bytes, at::SEGMENT_ID)?,
            segment_size_bytes: u64_at(bytes, at::SEGMENT_SIZE)?,
            first_seq_min: BlockSeq(u64_at(bytes, at::FIRST_SEQ_MIN)?),
            epoch: Epoch(u32_at(bytes, at::EPOCH)?),
        };
        let possible = header.segment_id != 0
            && u16_at(bytes, at::RESERVED)? == 0
            && u16_at(bytes, at::RESERVED_2)? == 0
            && is_zero(bytes.get(at::PADDING..)?);
        possible.then_some(header)
    }
}

/// The version stated by an intact header of any version: magic, version and checksum stay where they are.
fn intact_format(bytes: &[u8]) -> Option<u16> {
    let intact = field::<4>(bytes, at::MAGIC)? == SEGMENT_MAGIC
        && u64_at(bytes, at::CHECKSUM)? == xxh3_64(bytes.get(at::MAGIC..)?);
    if intact { u16_at(bytes, at::FORMAT) } else { None }
}
