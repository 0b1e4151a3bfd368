//! Far-future events on their way into a run: sorted a piece at a time, so that no turn is long.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use escapement_protocol::WallMs;

use super::Key;

/// Keys sorted at a time.
const PIECE_LEN: usize = 4096;

/// Keys of events that are due beyond the horizon and in no run yet.
#[derive(Debug, Default)]
pub(crate) struct FarBuffer {
    /// Each sorted, with the bytes of its events; the oldest first.
    pieces: VecDeque<(Vec<Key>, usize)>,
    filling: Vec<Key>,
    filling_size_bytes: usize,
    len: usize,
    size_bytes: usize,
    /// No key is due before.
    due_min: Option<WallMs>,
}

impl FarBuffer {
    /// Adds a key, of an event of that many bytes.
    pub(crate) fn push(&mut self, key: Key, size_bytes: usize) {
        self.filling.push(key);
        self.filling_size_bytes += size_bytes;
        self.len += 1;
        self.size_bytes += size_bytes;
        self.due_min = Some(self.due_min.map_or(key.0, |due| due.min(key.0)));
        if self.filling.len() == PIECE_LEN {
            self.end_piece();
        }
    }

    fn end_piece(&mut self) {
        if !self.filling.is_empty() {
            self.filling.sort_unstable();
            let size_bytes = std::mem::take(&mut self.filling_size_bytes);
            self.pieces.push_back((std::mem::take(&mut self.filling), size_bytes));
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of the events, those that ended meanwhile included.
    pub(crate) fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    /// No key is due before that moment.
    pub(crate) fn due_min(&self) -> Option<WallMs> {
        self.due_min
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        (self.len + self.filling.capacity()) * size_of::<Key>()
    }

    /// Takes everything, in order.
    pub(crate) fn take(&mut self) -> Merge {
        self.take_some(usize::MAX)
    }

    /// Takes what came first, of at least so many bytes where there is as much, in order.
    pub(crate) fn take_some(&mut self, size_bytes: usize) -> Merge {
        let mut taken = Vec::new();
        let mut taken_size_bytes = 0;
        while taken_size_bytes < size_bytes {
            if self.pieces.is_empty() {
                self.end_piece();
            }
            let Some((piece, size_bytes)) = self.pieces.pop_front() else { break };
            self.len -= piece.len();
            self.size_bytes -= size_bytes;
            taken_size_bytes += size_bytes;
            taken.push(piece);
        }
        let rest = self.pieces.iter().filter_map(|(piece, _)| piece.first()).chain(self.filling.iter().min());
        self.due_min = rest.min().map(|key| key.0);
        Merge::new(taken, taken_size_bytes)
    }
}

/// The keys of sorted pieces, or whatever else they hold, in order.
#[derive(Debug)]
pub(crate) struct Merge<T = Key> {
    pieces: Vec<std::vec::IntoIter<T>>,
    heads: BinaryHeap<Reverse<(T, usize)>>,
    mean_size_bytes: usize,
}

impl<T: Ord + Copy> Merge<T> {
    /// What the pieces hold stands for so many bytes.
    pub(crate) fn new(pieces: Vec<Vec<T>>, size_bytes: usize) -> Merge<T> {
        let len: usize = pieces.iter().map(Vec::len).sum();
        let mean_size_bytes = size_bytes / len.max(1);
        let mut pieces: Vec<_> = pieces.into_iter().map(Vec::into_iter).collect();
        let heads = pieces.iter_mut().enumerate();
        let heads = heads.filter_map(|(at, piece)| Some(Reverse((piece.next()?, at)))).collect();
        Merge { pieces, heads, mean_size_bytes }
    }

    /// Bytes of one of their events in the mean.
    pub(crate) fn mean_size_bytes(&self) -> usize {
        self.mean_size_bytes
    }

    /// The next key, without taking it.
    pub(crate) fn peek(&self) -> Option<T> {
        self.heads.peek().map(|Reverse((key, _))| *key)
    }
}

impl<T: Ord + Copy> Iterator for Merge<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let mut head = self.heads.peek_mut()?;
        let Reverse((key, at)) = *head;
        match self.pieces[at].next() {
            Some(next) => *head = Reverse((next, at)),
            None => {
                std::collections::binary_heap::PeekMut::pop(head);
            }
        }
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use escapement_protocol::Sequence;

    #[test]
    fn everything_comes_out_once_and_in_order() {
        let mut buffer = FarBuffer::default();
        let key = |n: u64| (WallMs(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 5_000), Sequence(n));
        let mut expected: Vec<Key> = (0..3 * PIECE_LEN as u64 + 17).map(key).collect();
        expected.iter().for_each(|key| buffer.push(*key, 100));
        expected.sort_unstable();
        assert_eq!(buffer.due_min(), expected.first().map(|key| key.0));
        let first = buffer.take_some(150_000);
        assert!(first.eq({
            let mut first: Vec<Key> = (0..PIECE_LEN as u64).map(key).collect();
            first.sort_unstable();
            first
        }));
        expected.retain(|key| key.1.0 >= PIECE_LEN as u64);
        assert_eq!(buffer.due_min(), expected.first().map(|key| key.0));
        assert_eq!(buffer.size_bytes(), 100 * expected.len());
        let merge = buffer.take();
        assert_eq!(merge.peek(), expected.first().copied());
        assert!(merge.eq(expected));
        assert!(buffer.is_empty() && buffer.due_min().is_none() && buffer.size_bytes() == 0);
    }
}
