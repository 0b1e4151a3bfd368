//! Which blocks of the log still hold something needed, so that the oldest can go.

use std::collections::VecDeque;

use smallvec::SmallVec;

use escapement_protocol::Sequence;

use super::apply::WARM_COUNT;

/// What one block holds.
#[derive(Debug, Default, Clone)]
struct BlockUse {
    first_sequence: u64,
    published: u32,
    live: u32,
    /// Events that were appended again here, in any order.
    relocated: Vec<Sequence>,
}

impl BlockUse {
    /// What it holds at this place, alive or not: what was published first, then what was appended again.
    fn at(&self, index: usize) -> Option<Sequence> {
        match index.checked_sub(self.published as usize) {
            None => Some(Sequence(self.first_sequence + index as u64)),
            Some(index) => self.relocated.get(index).copied(),
        }
    }
}

/// A place among what blocks hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) block: u64,
    /// Of the event among those of the block.
    pub(super) index: usize,
}

/// Live events by block.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Sequence of the block at the front.
    first: u64,
    blocks: VecDeque<BlockUse>,
    /// Newest block from which the next sequence can be told.
    evidence: u64,
}

impl Ledger {
    fn block_mut(&mut self, block: u64) -> &mut BlockUse {
        if self.blocks.is_empty() {
            self.first = block;
        }
        assert!(block >= self.first, "blocks come in order");
        let index = (block - self.first) as usize;
        while self.blocks.len() <= index {
            self.blocks.push_back(BlockUse::default());
        }
        &mut self.blocks[index]
    }

    /// A block exists.
    pub(super) fn open(&mut self, block: u64) {
        self.block_mut(block);
    }

    /// `count` events with consecutive sequences were published in `block`.
    pub(super) fn published(&mut self, block: u64, first: Sequence, count: u32) {
        let entry = self.block_mut(block);
        if entry.published == 0 {
            entry.first_sequence = first.0;
        }
        entry.published += count;
        entry.live += count;
        self.evidence = block;
    }

    /// An event was appended again in `block`.
    pub(super) fn relocated(&mut self, block: u64, sequence: Sequence) {
        let entry = self.block_mut(block);
        entry.relocated.push(sequence);
        entry.live += 1;
    }

    /// `block` states the next sequence.
    pub(super) fn marked(&mut self, block: u64) {
        self.evidence = block;
    }

    /// An event whose newest copy is in the block with these low 32 bits has gone from it.
    pub(super) fn gone(&mut self, block_low: u32) {
        let index = block_low.wrapping_sub(self.first as u32) as usize;
        let entry = self.blocks.get_mut(index).expect("a live event's block is in the ledger");
        entry.live -= 1;
    }

    /// Newest block from which the next sequence can be told.
    pub(super) fn evidence(&self) -> u64 {
        self.evidence
    }

    /// Drops leading blocks without live events that end before `limit`, and returns the first kept.
    pub(super) fn release(&mut self, limit: u64) -> u64 {
        while self.first < limit && self.blocks.front().is_some_and(|block| block.live == 0) {
            self.blocks.pop_front();
            self.first += 1;
        }
        self.first
    }

    /// Sequences that may be live in blocks up to `upto`, oldest block first, each with its place.
    pub(super) fn candidates(&self, from: Place, upto: u64) -> impl Iterator<Item = (Place, Sequence)> {
        let skip = from.block.saturating_sub(self.first) as usize;
        let blocks = self.blocks.iter().enumerate().skip(skip).map(|(i, b)| (self.first + i as u64, b));
        blocks.take_while(move |(block, _)| *block <= upto).filter(|(_, b)| b.live > 0).flat_map(
            move |(block, b)| {
                let published = (b.first_sequence..).take(b.published as usize).map(Sequence);
                let all = published.chain(b.relocated.iter().copied()).enumerate();
                let skip = if block == from.block { from.index } else { 0 };
                all.skip(skip).map(move |(index, sequence)| (Place { block, index }, sequence))
            },
        )
    }

    /// The place behind all that blocks hold.
    pub(super) fn end(&self) -> Place {
        Place { block: self.first + self.blocks.len() as u64, index: 0 }
    }

    /// Gathers sequences below `bound` that may be live in blocks from a place on, each with its place, a batch at the most,
    /// and says where to go on. Each block and each sequence takes a look.
    pub(super) fn look_through(
        &self,
        from: Place,
        bound: Sequence,
        looks: &mut usize,
        into: &mut SmallVec<[(Place, Sequence); WARM_COUNT]>,
    ) -> Place {
        let mut place = from.max(Place { block: self.first, index: 0 });
        while let Ok(number) = usize::try_from(place.block - self.first)
            && let Some(held) = self.blocks.get(number)
        {
            if *looks == 0 {
                return place;
            }
            *looks -= 1;
            while held.live > 0
                && let Some(sequence) = held.at(place.index)
            {
                if sequence >= bound && place.index < held.published as usize {
                    // They ascend.
                    place.index = held.published as usize;
                    continue;
                }
                if *looks == 0 || into.len() == WARM_COUNT {
                    return place;
                }
                *looks -= 1;
                if sequence < bound {
                    into.push((place, sequence));
                }
                place.index += 1;
            }
            place = Place { block: place.block + 1, index: 0 };
        }
        place
    }

    /// Live events over all blocks.
    pub(super) fn live(&self) -> u64 {
        self.blocks.iter().map(|b| u64::from(b.live)).sum()
    }
}
