//! When `SUPER` is written while the log runs: once segments are to be retired, and once the first block of a new segment
//! is durable, so that the loss of that whole segment would be noticed. Never twice at a time.

use super::{OpId, Segment};
use crate::format::{SUPER_COPY_SIZE_BYTES, Superblock};
use crate::log::BlockSeq;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Idle,
    /// A pair of copies is to be written, or is being written where `op` is known.
    Pair {
        second: bool,
        op: Option<OpId>,
        retired_count: usize,
    },
}

/// Writes generations one after the other, each in two steps. See [`Superblock`].
#[derive(Debug)]
pub(crate) struct Supers {
    /// The last generation, durable or being written.
    superblock: Superblock,
    stage: Stage,
    /// First block of the chain by the last generation of which all copies are durable.
    durable_first: BlockSeq,
}

impl Supers {
    pub(crate) fn new(durable: Superblock) -> Supers {
        Supers { superblock: durable, stage: Stage::Idle, durable_first: durable.first_block_seq }
    }

    /// Where every later opening begins, or behind it.
    pub(crate) fn durable_first(&self) -> BlockSeq {
        self.durable_first
    }

    /// The next write, where one is due: its offset in the file, and what both copies there are to hold.
    pub(crate) fn next_write(
        &mut self,
        oldest: &Segment,
        current: &Segment,
        durable: BlockSeq,
        retiring_count: usize,
    ) -> Option<(u64, Superblock)> {
        let rotated = self.superblock.committed_through < current.first && current.first <= durable;
        if self.stage == Stage::Idle && (retiring_count > 0 || rotated) {
            self.superblock = Superblock {
                generation: self.superblock.generation + 1,
                committed_through: durable,
                first_segment_id: oldest.id,
                first_block_seq: oldest.first,
                first_prev_checksum: oldest.first_prev_checksum,
                ..self.superblock
            };
            self.stage = Stage::Pair { second: false, op: None, retired_count: retiring_count };
        }
        let Stage::Pair { second, op: None, .. } = self.stage else { return None };
        Some((if second { 2 * SUPER_COPY_SIZE_BYTES as u64 } else { 0 }, self.superblock))
    }

    pub(crate) fn started(&mut self, id: OpId) {
        if let Stage::Pair { op, .. } = &mut self.stage {
            *op = Some(id);
        }
    }

    pub(crate) fn is(&self, id: OpId) -> bool {
        matches!(self.stage, Stage::Pair { op: Some(op), .. } if op == id)
    }

    /// A pair is durable. After the second, answers how many of the retiring slots the generation covers.
    pub(crate) fn complete(&mut self) -> Option<usize> {
        let Stage::Pair { second, retired_count, .. } = self.stage else { return None };
        if !second {
            self.stage = Stage::Pair { second: true, op: None, retired_count };
            return None;
        }
        self.stage = Stage::Idle;
        self.durable_first = self.superblock.first_block_seq;
        Some(retired_count)
    }
}
