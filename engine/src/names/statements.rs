//! Which blocks of the log hold which names.

use std::collections::VecDeque;

use escapement_protocol::{Sequence, TopicId};

/// Bytes of a `Names` record besides its names.
const RECORD_SIZE_BYTES: usize = crate::record::HEADER_SIZE_BYTES + crate::record::NAMES_FIXED_SIZE_BYTES;

/// Of a block's statements, those that are looked at to find one that can be made longer.
const MERGE_COUNT: usize = 8;

/// The names of a topic in a range of sequences are in a block. No two statements of a topic overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Statement {
    pub(crate) block: u64,
    pub(crate) topic: TopicId,
    pub(crate) first: Sequence,
    pub(crate) last: Sequence,
    /// Whether the names were stated before, in a block that is not needed any more.
    pub(crate) again: bool,
    /// Whether the record that states them again is on its way to the disk. Means nothing after a crash.
    pub(crate) is_restating: bool,
}

/// All of them, in the order of the blocks.
#[derive(Debug, Default)]
pub(crate) struct Statements(VecDeque<Statement>);

impl Statements {
    pub(crate) fn memory_bytes(&self) -> usize {
        self.0.capacity() * size_of::<Statement>()
    }

    /// Bytes of records besides the names in them.
    pub(crate) fn size_bytes(&self) -> usize {
        self.0.len() * RECORD_SIZE_BYTES
    }

    pub(crate) fn oldest_block(&self) -> Option<u64> {
        self.0.front().map(|statement| statement.block)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Statement> {
        self.0.iter()
    }

    /// Those of blocks up to this one.
    pub(crate) fn upto(&mut self, block: u64) -> impl Iterator<Item = &mut Statement> {
        self.0.iter_mut().take_while(move |statement| statement.block <= block)
    }

    /// A newest block holds names.
    pub(crate) fn push(&mut self, next: Statement) {
        let of_block = self.0.iter_mut().rev().take_while(|held| held.block == next.block);
        // Between two originals of one block there are no names of the topic in any other.
        let merged =
            of_block.take(MERGE_COUNT).find(|held| held.topic == next.topic && !held.again && !next.again);
        match merged {
            Some(held) => held.last = next.last,
            None => self.0.push_back(next),
        }
    }

    /// Takes out the statement that begins so, and says whether it was there.
    pub(crate) fn remove(&mut self, block: u64, topic: TopicId, first: Sequence) -> bool {
        let from = self.0.partition_point(|held| held.block < block);
        let of_block = self.0.range(from..).take_while(|held| held.block == block);
        let at = of_block.into_iter().position(|held| held.topic == topic && held.first == first);
        at.and_then(|at| self.0.remove(from + at)).is_some()
    }

    pub(crate) fn drop_oldest_while(&mut self, is_dead: impl Fn(&Statement) -> bool) {
        while self.0.front().is_some_and(&is_dead) {
            self.0.pop_front();
        }
        if self.0.is_empty() {
            self.0.shrink_to(1_024);
        }
    }
}
