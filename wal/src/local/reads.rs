//! Reading durable blocks back, one stretch at a time.

use std::io;

use super::OpId;
use crate::aligned::AlignedBuf;
use crate::disk::{DiskOp, FileId};
use crate::format::{EXTENT_SIZE_BYTES_MAX, Place};
use crate::log::{BlockSeq, LogError, ReadChunk};

/// Bytes read at a time: the index's stride and the largest extent, so that the wanted block is always whole.
const READ_SIZE_BYTES: u32 = (1024 * 1024 + EXTENT_SIZE_BYTES_MAX) as u32;

/// What a read is after.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) segment_id: u64,
    /// Where an extent begins, at or before the wanted one.
    pub(super) offset: u32,
    /// End of the segment's written part.
    pub(super) written_bytes: u32,
    pub(super) from: BlockSeq,
    pub(super) through: BlockSeq,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Idle,
    Reading(OpId, Span),
    Done(Result<ReadChunk, LogError>),
}

#[derive(Debug, Default)]
pub(super) struct Reads {
    state: State,
}

impl Reads {
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    pub(super) fn is(&self, id: OpId) -> bool {
        matches!(self.state, State::Reading(op, _) if op == id)
    }

    pub(super) fn start(&mut self, id: OpId, file: FileId, span: Span) -> DiskOp {
        let mut buf = AlignedBuf::new();
        buf.set_len_stale((span.written_bytes - span.offset).min(READ_SIZE_BYTES) as usize);
        self.state = State::Reading(id, span);
        DiskOp::Read { id, file, offset: u64::from(span.offset), buf }
    }

    /// The read under way will not be answered any more.
    pub(super) fn abort(&mut self) {
        if matches!(self.state, State::Reading(..)) {
            self.state = State::Done(Err(LogError::Poisoned));
        }
    }

    pub(super) fn complete(
        &mut self,
        result: io::Result<()>,
        buf: Option<AlignedBuf>,
        oldest_segment_id: u64,
    ) {
        let State::Reading(_, span) = self.state else { return };
        if span.segment_id < oldest_segment_id {
            // Trimmed meanwhile: the file may hold another segment by now.
            self.state = State::Done(Err(LogError::Unavailable));
            return;
        }
        let unreadable = LogError::Corrupt { first: span.from, last: span.from };
        let read = match (result, buf) {
            (Ok(()), Some(buf)) => {
                let place = Place { segment_id: span.segment_id, offset: span.offset };
                let chunk = ReadChunk::collect(buf, place, span.from, span.through);
                let found = chunk.blocks().next().is_some_and(|block| block.header().block_seq == span.from);
                if found { Ok(chunk) } else { Err(unreadable) }
            }
            _ => Err(unreadable),
        };
        self.state = State::Done(read);
    }

    pub(super) fn take(&mut self) -> Option<Result<ReadChunk, LogError>> {
        if !matches!(self.state, State::Done(_)) {
            return None;
        }
        match std::mem::take(&mut self.state) {
            State::Done(result) => Some(result),
            State::Idle | State::Reading(..) => None,
        }
    }
}
