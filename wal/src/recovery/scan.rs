//! Reading the chain, and looking for evidence behind its end.

use escapement_protocol::{Epoch, WallMs};

use super::error::OpenError;
use super::table::{BodyState, FrameState, HeaderState, Observation, RecoveryCase, SequenceState};
use super::{RecoveredBlock, Visitor};
use crate::aligned::AlignedBuf;
use crate::config::LogIdentity;
use crate::disk::{Directory, FileId};
use crate::format::{
    Block, BlockHeader, Checksum, EXTENT_ALIGN_BYTES, EXTENT_SIZE_BYTES_MAX, FRAME_SIZE_BYTES, Frame,
    FrameError, Place, SEGMENT_HEADER_SIZE_BYTES, decode_extent, extent_size_bytes,
};
use crate::local::Segment;
use crate::log::BlockSeq;

/// Bytes read at a time.
pub(super) const WINDOW_SIZE_BYTES: usize = 4 * 1024 * 1024;

const _: () = assert!(WINDOW_SIZE_BYTES >= EXTENT_SIZE_BYTES_MAX);

/// A stretch of one file, read in large pieces.
pub(super) struct Window {
    file: FileId,
    file_size_bytes: u64,
    start: u64,
    buf: AlignedBuf,
}

impl Window {
    /// Reuses the memory of `buf`.
    pub(super) fn new(file: FileId, file_size_bytes: u64, mut buf: AlignedBuf) -> Window {
        buf.clear();
        Window { file, file_size_bytes, start: 0, buf }
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
            // No more than the file has: touching fresh memory costs more than reading into it.
            let left = self.file_size_bytes.saturating_sub(offset).min(WINDOW_SIZE_BYTES as u64);
            self.buf.set_len_stale(left as usize);
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

impl Cursor {
    fn accept(&mut self, block: &Block<'_>, size_bytes: u32) {
        let header = block.header();
        self.next = header.block_seq.next();
        self.prev_checksum = block.checksum();
        self.epoch = header.epoch;
        self.leader_time = self.leader_time.max(header.leader_time);
        self.block_count += 1;
        self.record_count += u64::from(header.record_count);
        self.scanned_bytes += u64::from(size_bytes);
    }
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
    let block = decode_extent(bytes, &frame, header);
    if block.is_some() {
        seen.body = BodyState::Intact;
    }
    (seen, block)
}

pub(super) fn is_ours(header: &BlockHeader, identity: &LogIdentity) -> bool {
    header.cluster == identity.cluster && header.shard == identity.shard
}

/// What opening knows of the chain so far.
pub(super) struct Scan {
    pub(super) identity: LogIdentity,
    pub(super) segment_size_bytes: u64,
    pub(super) cursor: Cursor,
    pub(super) evidence: Evidence,
    /// Memory for reading, kept from one file to the next.
    pub(super) buf: AlignedBuf,
}

impl Scan {
    /// Accepts blocks from the start of `segment` as long as the chain holds, hands each to `visitor`, and answers why
    /// it stopped; `segment.used_bytes` is where.
    pub(super) fn segment(
        &mut self,
        dir: &mut dyn Directory,
        segment: &mut Segment,
        visitor: Visitor<'_>,
    ) -> Result<RecoveryCase, OpenError> {
        let buf = std::mem::take(&mut self.buf);
        let mut window = Window::new(FileId::Slot(segment.slot), self.segment_size_bytes, buf);
        let end = loop {
            let offset = u64::from(segment.used_bytes);
            if offset >= self.segment_size_bytes {
                break RecoveryCase::SegmentEnd;
            }
            let mut bytes = window.at(dir, offset, EXTENT_ALIGN_BYTES)?;
            if let Ok(frame) = Frame::parse(bytes)
                && frame.size_bytes as usize > bytes.len()
            {
                bytes = window.at(dir, offset, frame.size_bytes as usize)?;
            }
            let place = Place { segment_id: segment.id, offset: segment.used_bytes };
            let (seen, block) = observe(bytes, place, &self.cursor, &self.identity);
            let case = seen.case();
            let Some(block) = block.filter(|_| case == RecoveryCase::Accept) else { break case };
            let size_bytes = extent_size_bytes(block.records().len()) as u32;
            segment.push(size_bytes);
            self.evidence.note(block.header());
            self.cursor.accept(&block, size_bytes);
            visitor(RecoveredBlock::from(&block));
        };
        self.buf = window.into_buf();
        Ok(end)
    }

    /// Looks for believable headers of this log at every place of `from..to` where an extent could begin.
    pub(super) fn search(
        &mut self,
        dir: &mut dyn Directory,
        file: FileId,
        from: u64,
        to: u64,
    ) -> Result<(), OpenError> {
        let mut window = Window::new(file, to, std::mem::take(&mut self.buf));
        let mut offset = from.max(SEGMENT_HEADER_SIZE_BYTES as u64);
        while offset < to {
            let bytes = window.at(dir, offset, EXTENT_ALIGN_BYTES)?;
            let sectors = bytes.chunks_exact(EXTENT_ALIGN_BYTES);
            if sectors.len() == 0 {
                break;
            }
            offset += (sectors.len() * EXTENT_ALIGN_BYTES) as u64;
            for sector in sectors {
                if let Some(header) = BlockHeader::parse(&sector[FRAME_SIZE_BYTES..])
                    && is_ours(&header, &self.identity)
                {
                    self.evidence.note(&header);
                }
            }
        }
        self.buf = window.into_buf();
        Ok(())
    }
}
