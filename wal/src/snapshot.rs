//! A copy of a log that is open and written to meanwhile.
//!
//! The log says where it stands ([`LocalWal::cut`](crate::LocalWal::cut)), its owner trims nothing from then on, and
//! [`copy_log`] reads the files besides it: whole segments up to the one that the cut lies in, and of that one what is
//! before the cut. Those blocks are durable and never written again, so that reading them needs no lock. What else
//! there is in the files, a segment being prepared or blocks behind the cut, is left out.
//!
//! A copy has its own numbers of slot files, from 0, and a `SUPER` whose epoch lies [`COPY_EPOCH_STEP`] ahead.

use std::io;

use escapement_protocol::Epoch;

use crate::aligned::AlignedBuf;
use crate::config::{LogIdentity, WalConfig};
use crate::disk::{Directory, FileId, SEGMENT_DIR};
use crate::format::{Checksum, SEGMENT_HEADER_SIZE_BYTES, SegmentHeader, Superblock};
use crate::log::BlockSeq;
use crate::recovery::{OpenError, check, put_super, survey_segments};

/// How far the epochs of a copy begin ahead of those of its log. A node that starts on the copy may be the one that
/// goes on: what it pushes must count as newer than what the other pushed after the copy was taken, over as many
/// restarts as it may have had since.
pub const COPY_EPOCH_STEP: u32 = 1 << 16;

/// Where a log stands: its blocks from the first that it keeps through its newest durable one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogCut {
    /// Epoch in which the log is open.
    pub epoch: Epoch,
    /// The oldest segment that it keeps.
    pub first_segment_id: u64,
    /// First block of that segment.
    pub first_block_seq: BlockSeq,
    /// Checksum of the block before.
    pub first_prev_checksum: Checksum,
    /// The newest durable block; the one before `first_block_seq` where there is none.
    pub through: BlockSeq,
    /// Segment of that block.
    pub end_segment_id: u64,
    /// Where that block ends in the segment's file, in bytes.
    pub end_offset: u32,
}

/// A log that was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopiedLog {
    /// Segment files made.
    pub segment_count: u64,
    /// Bytes of all files made.
    pub size_bytes: u64,
}

/// Why a log could not be copied, or its copy cannot be relied on.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The cut cannot be one.
    #[error("the node says of its log what cannot be: {0}")]
    Cut(&'static str),
    /// A segment that the copy needs is not there: the log did not keep still.
    #[error("no file holds segment {0}: the log was freed while it was copied")]
    SegmentMissing(u64),
    /// Reading the log or writing the copy failed.
    #[error(transparent)]
    Files(OpenError),
    /// The copy was read back, and is not what it should be.
    #[error("the copy does not hold: {0}")]
    Copy(OpenError),
}

/// Copies the log in `from`, which may be open elsewhere, into `to`, which holds none. Whoever has the log open gave
/// the cut, and trims nothing until this has returned. Of `config` the segment size must be the log's.
///
/// # Errors
/// [`CopyError`]. What was made by then stays, and is no log: `SUPER` comes last.
pub fn copy_log(
    from: &mut dyn Directory,
    to: &mut dyn Directory,
    identity: LogIdentity,
    config: &WalConfig,
    cut: &LogCut,
) -> Result<CopiedLog, CopyError> {
    let segment_size_bytes = config.segment_size_bytes;
    let end_offset = u64::from(cut.end_offset);
    if config.fault().is_some() {
        return Err(CopyError::Cut("the size of its segments"));
    }
    if cut.first_segment_id == 0 || cut.end_segment_id < cut.first_segment_id {
        return Err(CopyError::Cut("the order of its segments"));
    }
    if !(SEGMENT_HEADER_SIZE_BYTES as u64..=segment_size_bytes).contains(&end_offset) {
        return Err(CopyError::Cut("where its last block ends"));
    }
    let slots = survey_segments(from, &identity, segment_size_bytes).map_err(CopyError::Files)?;
    to.create_dir(SEGMENT_DIR).map_err(files("create", SEGMENT_DIR))?;
    let mut segment_count = 0;
    for segment_id in cut.first_segment_id..=cut.end_segment_id {
        let source = slots.iter().find(|(held, _)| *held == segment_id);
        let (_, source) = source.ok_or(CopyError::SegmentMissing(segment_id))?;
        let slot = segment_count as u32;
        let header = SegmentHeader {
            cluster: identity.cluster,
            shard: identity.shard,
            slot,
            segment_id,
            segment_size_bytes,
            first_seq_min: cut.first_block_seq,
            epoch: cut.epoch,
        };
        let end = if segment_id == cut.end_segment_id { end_offset } else { segment_size_bytes };
        copy_segment(from, *source, to, &header, end)?;
        segment_count += 1;
    }
    let superblock = Superblock {
        generation: 1,
        cluster: identity.cluster,
        shard: identity.shard,
        shard_count: identity.shard_count,
        epoch: Epoch(cut.epoch.0.saturating_add(COPY_EPOCH_STEP)),
        segment_size_bytes,
        committed_through: cut.through,
        first_segment_id: cut.first_segment_id,
        first_block_seq: cut.first_block_seq,
        first_prev_checksum: cut.first_prev_checksum,
    };
    put_super(to, &superblock).map_err(CopyError::Files)?;
    let super_size_bytes = crate::format::SUPER_SIZE_BYTES as u64;
    Ok(CopiedLog { segment_count, size_bytes: segment_count * segment_size_bytes + super_size_bytes })
}

/// Reads a copy back as a start would read it: every block up to the cut is there, and nothing behind it.
///
/// # Errors
/// [`CopyError::Copy`] where it is not whole, [`CopyError::Cut`] where it ends elsewhere.
pub fn check_copy(
    to: &mut dyn Directory,
    identity: LogIdentity,
    config: &WalConfig,
    cut: &LogCut,
) -> Result<(), CopyError> {
    let report = check(to, identity, config, &mut |_| {}).map_err(CopyError::Copy)?;
    if report.last == cut.through { Ok(()) } else { Err(CopyError::Cut("which block is its last")) }
}

fn files(action: &'static str, path: impl Into<String>) -> impl FnOnce(io::Error) -> CopyError {
    let path = path.into();
    move |source| CopyError::Files(OpenError::Io { action, path, source })
}

/// Makes the slot file that `header` names, of what the file `source` holds before `end`; behind it there are zeros.
fn copy_segment(
    from: &mut dyn Directory,
    source: FileId,
    to: &mut dyn Directory,
    header: &SegmentHeader,
    end: u64,
) -> Result<(), CopyError> {
    let path = FileId::Slot(header.slot).path();
    let source_path = source.path();
    let mut sector = AlignedBuf::new();
    header.encode(&mut sector);
    let mut fill = |offset: u64, buf: &mut [u8]| {
        let wanted = end.saturating_sub(offset).min(buf.len() as u64) as usize;
        if wanted > 0 && from.read_at(&source_path, offset, &mut buf[..wanted])? != wanted {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buf[wanted..].fill(0);
        if offset == 0 {
            buf[..SEGMENT_HEADER_SIZE_BYTES].copy_from_slice(&sector);
        }
        Ok(())
    };
    to.create_filled(&path, header.segment_size_bytes, &mut fill).map_err(files("copy a segment to", &path))
}
