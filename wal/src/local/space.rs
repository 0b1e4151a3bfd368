//! Which slot file holds which segment, and which come next. Pure: no operation is made here.

use std::collections::VecDeque;

use super::OpId;
use crate::format::{Checksum, Place, SEGMENT_HEADER_SIZE_BYTES};
use crate::log::BlockSeq;

/// Bytes of extents between two entries of a segment's index.
const INDEX_STRIDE_BYTES: u32 = 1024 * 1024;

/// A segment that holds blocks, or is about to.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) id: u64,
    pub(crate) slot: u32,
    /// Its first block, written or to be written.
    pub(crate) first: BlockSeq,
    pub(crate) first_prev_checksum: Checksum,
    /// Its last block so far; the one before `first` while it is empty.
    pub(crate) last: BlockSeq,
    /// Where the next extent goes.
    pub(crate) used_bytes: u32,
    /// Every so often, a block and its offset: where a read may begin.
    index: Vec<(BlockSeq, u32)>,
}

impl Segment {
    pub(crate) fn new(id: u64, slot: u32, first: BlockSeq, first_prev_checksum: Checksum) -> Segment {
        let used_bytes = SEGMENT_HEADER_SIZE_BYTES as u32;
        let last = BlockSeq(first.0 - 1);
        Segment { id, slot, first, first_prev_checksum, last, used_bytes, index: Vec::new() }
    }

    /// Takes room for the block after `last`.
    pub(crate) fn push(&mut self, size_bytes: u32) -> Place {
        let offset = self.used_bytes;
        self.last = self.last.next();
        if self.index.last().is_none_or(|&(_, at)| offset - at >= INDEX_STRIDE_BYTES) {
            self.index.push((self.last, offset));
        }
        self.used_bytes += size_bytes;
        Place { segment_id: self.id, offset }
    }

    /// An offset, at most the index's stride before `seq`, where an extent begins.
    pub(crate) fn seek(&self, seq: BlockSeq) -> u32 {
        let behind = self.index.partition_point(|&(first, _)| first <= seq);
        behind.checked_sub(1).map_or(SEGMENT_HEADER_SIZE_BYTES as u32, |at| self.index[at].1)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.last < self.first
    }
}

/// The segment after the current one: its header is written ahead of need, so that rotation never waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Absent,
    Preparing { slot: u32, op: OpId },
    Ready { slot: u32 },
}

/// Whether an extent of some size could be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    InCurrent,
    InNext,
    /// Space is being made ready.
    Soon,
    No,
}

/// All slot files of a log. Every slot is in exactly one of: live, next, reusable, retiring, being created.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) segment_size_bytes: u32,
    pub(crate) extent_size_bytes_max: u32,
    pub(crate) slot_count_max: u64,
    /// Slots that hold nothing needed, from which on no file is created.
    pub(crate) ahead_count: usize,
    /// Consecutive ids, oldest first; the last is the one written to.
    pub(crate) live: VecDeque<Segment>,
    pub(crate) next: Next,
    /// Slots that may be given a new header.
    pub(crate) reusable: VecDeque<u32>,
    /// Slots no longer needed, until `SUPER` says so durably.
    pub(crate) retiring: VecDeque<u32>,
    /// Slot whose file is being created.
    pub(crate) creating: Option<(u32, OpId)>,
    /// The last creation failed, and nothing has happened since that would make another succeed.
    pub(crate) create_refused: bool,
    /// Files there are, the one being created not counted.
    pub(crate) slot_count: u32,
}

impl Space {
    pub(crate) fn current(&self) -> &Segment {
        self.live.back().expect("a log always has a segment that it writes to")
    }

    fn current_mut(&mut self) -> &mut Segment {
        self.live.back_mut().expect("a log always has a segment that it writes to")
    }

    pub(crate) fn next_segment_id(&self) -> u64 {
        self.current().id + 1
    }

    /// Bytes for extents in the segment that is written to.
    pub(crate) fn left_in_current(&self) -> usize {
        (self.segment_size_bytes - self.current().used_bytes) as usize
    }

    fn fits_current(&self, size_bytes: u32) -> bool {
        self.left_in_current() >= size_bytes as usize
    }

    pub(crate) fn room(&self, size_bytes: u32) -> Room {
        if self.fits_current(size_bytes) {
            return Room::InCurrent;
        }
        match self.next {
            Next::Ready { .. } => Room::InNext,
            Next::Preparing { .. } => Room::Soon,
            Next::Absent if !self.reusable.is_empty() || !self.retiring.is_empty() => Room::Soon,
            Next::Absent if self.creating.is_some() || self.may_create() => Room::Soon,
            Next::Absent => Room::No,
        }
    }

    /// Places an extent, in the next segment where the current one is too full.
    ///
    /// # Panics
    /// Unless [`Space::room`] says that there is room now.
    pub(crate) fn place(&mut self, size_bytes: u32, prev_checksum: Checksum) -> (u32, Place) {
        if !self.fits_current(size_bytes) {
            let Next::Ready { slot } = self.next else { panic!("placed an extent without room for it") };
            let (id, first) = (self.next_segment_id(), self.current().last.next());
            self.live.push_back(Segment::new(id, slot, first, prev_checksum));
            self.next = Next::Absent;
        }
        let segment = self.current_mut();
        (segment.slot, segment.push(size_bytes))
    }

    /// A slot for the next segment's header, where one is wanted and there is one.
    pub(crate) fn take_slot_to_prepare(&mut self) -> Option<u32> {
        if self.next == Next::Absent { self.reusable.pop_front() } else { None }
    }

    /// The number of a file to create, where the next segment will be needed soon and few slots are left for those after it.
    pub(crate) fn slot_to_create(&self) -> Option<u32> {
        let half_full = self.current().used_bytes >= self.segment_size_bytes / 2;
        let ahead_count = usize::from(self.next != Next::Absent) + self.reusable.len() + self.retiring.len();
        let wanted = (half_full || !self.fits_current(self.extent_size_bytes_max))
            && self.creating.is_none()
            && ahead_count < self.ahead_count;
        (wanted && self.may_create()).then_some(self.slot_count)
    }

    fn may_create(&self) -> bool {
        !self.create_refused && u64::from(self.slot_count) < self.slot_count_max
    }

    /// Retires every sealed segment that holds no block after `upto`; answers whether there was one.
    pub(crate) fn trim(&mut self, upto: BlockSeq) -> bool {
        let mut any = false;
        while self.live.len() > 1 && self.live.front().is_some_and(|oldest| oldest.last <= upto) {
            self.retiring.extend(self.live.pop_front().map(|oldest| oldest.slot));
            any = true;
        }
        any
    }

    pub(crate) fn find(&self, seq: BlockSeq) -> Option<&Segment> {
        let behind = self.live.partition_point(|segment| segment.first <= seq);
        self.live.get(behind.checked_sub(1)?).filter(|segment| seq <= segment.last)
    }

    /// Bytes that can still be written without trimming.
    pub(crate) fn free_bytes(&self) -> u64 {
        let whole = u64::from(self.segment_size_bytes) - SEGMENT_HEADER_SIZE_BYTES as u64;
        let creatable = if self.create_refused {
            0
        } else {
            self.slot_count_max.saturating_sub(u64::from(self.slot_count))
        };
        let slots = u64::from(self.next != Next::Absent)
            + (self.reusable.len() + self.retiring.len()) as u64
            + creatable;
        u64::from(self.segment_size_bytes - self.current().used_bytes) + slots * whole
    }
}
