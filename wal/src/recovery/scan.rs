//! Reading the chain, and looking for evidence behind its end.

use escapement_protocol::{Epoch, WallMs};

use super::error::OpenError;
use super::table::{BodyState, FrameState, HeaderState, Observation, RecoveryCase, SequenceState};
use super::{RecoveredBlock, Visitor};
use crate::aligned::AlignedBuf;
use crate::config::LogIdentity;
use crate::disk::{Directory, FileId};
use crate::format::{
    BLOCK_HEADER_SIZE_BYTES, Block, BlockHeader, Checksum, EXTENT_ALIGN_BYTES, EXTENT_SIZE_BYTES_MAX,
    FRAME_SIZE_BYTES, Frame, FrameError, Place, SEGMENT_HEADER_SIZE_BYTES,
};
use crate::local::Segment;
use crate::log::BlockSeq;

/// Bytes read at a time.
pub(super) const WINDOW_SIZE_BYTES: usize = 4 * 1024 * 1024;

const _: () = assert!(WINDOW_SIZE_BYTES >= EXTENT_SIZE_BYTES_MAX);

/// A stretch of one file, read in large pieces.
pub(super) struct Window {
    file: FileId,
    start: u64,
    buf: AlignedBuf,
}

impl Window {
    /// Reuses the memory of `buf`.
    pub(super) fn new(file: FileId, mut buf: AlignedBuf) -> Window {
        buf.clear();
        Window { file, start: 0, buf }
    }

    /// Everything from `offset` that is at hand: at least `size_bytes`, unless the file ends before.
    pub(super) fn at(
        &mut self,
        dir: &mut dyn Directory,
        offset: u64,
        size_bytes: usize,
    ) -> Result<&[u8], OpenError> {
        let held = offset >= self.start && offset + size_bytes as u64 <= self.start + self.buf.len() as u64;
        if !held {
            let path = self.file.path();
            self.start = offset;
            self.buf.set_len_stale(WINDOW_SIZE_BYTES);
            let read = dir.read_at(&path, offset, &mut self.buf).map_err(OpenError::io("read", path))?;
            self.buf.set_len_stale(read);
        }
        Ok(&self.buf[(offset - self.start) as usize..])
    }

    pub(super) fn into_buf(self) -> AlignedBuf {
        self.buf
    }
}

/// How far the chain is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor {
    pub(super) next: BlockSeq,
    pub(super) prev_checksum: Checksum,
    pub(super) epoch: Epoch,
    pub(super) leader_time: WallMs,
    pub(super) block_count: u64,
    pub(super) record_count: u64,
    pub(super) scanned_bytes: u64,
}

/// What an intact, or at least believable, header somewhere proves.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Evidence {
    pub(super) committed_through: BlockSeq,
    pub(super) epoch: Epoch,
}

impl Evidence {
    pub(super) fn note(&mut self, header: &BlockHeader) {
        self.committed_through = self.committed_through.max(header.committed_through);
        self.epoch = self.epoch.max(header.epoch);
    }
}

/// Looks at the extent that `bytes` begins with, where the block after `cursor` should be.
pub(super) fn observe<'a>(
    bytes: &'a [u8],
    place: Place,
    cursor: &Cursor,
    identity: &LogIdentity,
) -> (Observation, Option<Block<'a>>) {
    let mut seen = Observation {
        frame: FrameState::Here,
        header: HeaderState::Damaged,
        body: BodyState::Damaged,
        sequence: SequenceState::Expected,
        chained: false,
        epoch_holds: false,
    };
    let frame = match Frame::parse(bytes) {
        Ok(frame) if frame.place == place => frame,
        Ok(_) => return (Observation { frame: FrameState::Elsewhere, ..seen }, None),
        Err(FrameError::Blank) => return (Observation { frame: FrameState::Blank, ..seen }, None),
        Err(FrameError::Damaged) => return (Observation { frame: FrameState::Damaged, ..seen }, None),
    };
    let Some(header) = bytes.get(FRAME_SIZE_BYTES..).and_then(BlockHeader::parse) else {
        return (seen, None);
    };
    seen.header = if is_ours(&header, identity) { HeaderState::Ours } else { HeaderState::Foreign };
    seen.sequence = match header.block_seq.cmp(&cursor.next) {
        std::cmp::Ordering::Less => SequenceState::Behind,
        std::cmp::Ordering::Equal => SequenceState::Expected,
        std::cmp::Ordering::Greater => SequenceState::Ahead,
    };
    seen.chained = header.prev_checksum == cursor.prev_checksum;
    seen.epoch_holds = header.epoch >= cursor.epoch;
    let block = body(bytes, &frame, header);
    if block.is_some() {
        seen.body = BodyState::Intact;
    }
    (seen, block)
}

/// The block, if the extent is what was written, to its last byte.
fn body<'a>(bytes: &'a [u8], frame: &Frame, header: BlockHeader) -> Option<Block<'a>> {
    let extent = bytes.get(..frame.size_bytes as usize)?;
    let block_size_bytes = BLOCK_HEADER_SIZE_BYTES + header.records_size_bytes as usize;
    if block_size_bytes != frame.block_size_bytes as usize {
        return None;
    }
    let padding = extent.get(FRAME_SIZE_BYTES + block_size_bytes..)?;
    if padding.iter().any(|&byte| byte != 0) {
        return None;
    }
    Block::with_header(header, &extent[FRAME_SIZE_BYTES..])
}

pub(super) fn is_ours(header: &BlockHeader, identity: &LogIdentity) -> bool {
    header.cluster == identity.cluster && header.shard == identity.shard
}

/// Accepts blocks from the start of `segment` as long as the chain holds, hands each to `visitor`, and answers why it
/// stopped; `segment.used_bytes` is where.
pub(super) fn scan_segment(
    dir: &mut dyn Directory,
    segment: &mut Segment,
    segment_size_bytes: u64,
    identity: &LogIdentity,
    cursor: &mut Cursor,
    evidence: &mut Evidence,
    visitor: Visitor<'_>,
    buf: AlignedBuf,
) -> Result<(RecoveryCase, AlignedBuf), OpenError> {
    let mut window = Window::new(FileId(segment.slot), buf);
    loop {
        let offset = u64::from(segment.used_bytes);
        if offset >= segment_size_bytes {
            return Ok((RecoveryCase::SegmentEnd, window.into_buf()));
        }
        let mut bytes = window.at(dir, offset, EXTENT_ALIGN_BYTES)?;
        if let Ok(frame) = Frame::parse(bytes)
            && frame.size_bytes as usize > bytes.len()
        {
            bytes = window.at(dir, offset, frame.size_bytes as usize)?;
        }
        let place = Place { segment_id: segment.id, offset: segment.used_bytes };
        let (seen, block) = observe(bytes, place, cursor, identity);
        let case = seen.case();
        let Some(block) = block.filter(|_| case == RecoveryCase::Accept) else {
            return Ok((case, window.into_buf()));
        };
        let header = block.header();
        evidence.note(header);
        let size_bytes = crate::format::extent_size_bytes(block.records().len()) as u32;
        segment.push(size_bytes);
        cursor.next = header.block_seq.next();
        cursor.prev_checksum = block.checksum();
        cursor.epoch = header.epoch;
        cursor.leader_time = cursor.leader_time.max(header.leader_time);
        cursor.block_count += 1;
        cursor.record_count += u64::from(header.record_count);
        cursor.scanned_bytes += u64::from(size_bytes);
        visitor(RecoveredBlock::from(&block));
    }
}

/// Looks for believable headers of this log at every place of `from..to` where an extent could begin.
pub(super) fn search(
    dir: &mut dyn Directory,
    file: FileId,
    from: u64,
    to: u64,
    identity: &LogIdentity,
    evidence: &mut Evidence,
    buf: AlignedBuf,
) -> Result<AlignedBuf, OpenError> {
    let mut window = Window::new(file, buf);
    let mut offset = from.max(SEGMENT_HEADER_SIZE_BYTES as u64);
    while offset < to {
        let bytes = window.at(dir, offset, EXTENT_ALIGN_BYTES)?;
        let whole = bytes.len().min((to - offset) as usize) / EXTENT_ALIGN_BYTES;
        for sector in bytes.chunks_exact(EXTENT_ALIGN_BYTES).take(whole) {
            if let Some(header) = BlockHeader::parse(&sector[FRAME_SIZE_BYTES..])
                && is_ours(&header, identity)
            {
                evidence.note(&header);
            }
        }
        if whole == 0 {
            break;
        }
        offset += (whole * EXTENT_ALIGN_BYTES) as u64;
    }
    Ok(window.into_buf())
}
