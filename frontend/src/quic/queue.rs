//! Bytes of one stream that QUIC has not taken yet.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Chunks below this size are merged where two would follow one another: quinn-proto walks the unacknowledged chunks
/// of a stream one by one, so a few large ones are much cheaper than many small ones.
const COALESCED_BELOW_BYTES: usize = 4 * 1024;

/// Size up to which small chunks are merged.
const COALESCED_SIZE_BYTES: usize = 16 * 1024;

/// Chunks in order. The last may still be growing.
#[derive(Debug, Default)]
pub(super) struct WriteQueue {
    sealed: VecDeque<Bytes>,
    growing: BytesMut,
    len: usize,
}

impl WriteQueue {
    /// Bytes held.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Appends. A chunk that follows another small one is copied, any other is kept as it is.
    pub(super) fn push(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        self.len += data.len();
        if data.len() >= COALESCED_BELOW_BYTES {
            self.seal();
            self.sealed.push_back(data);
            return;
        }
        if self.growing.is_empty() {
            match self.sealed.back() {
                Some(last) if last.len() < COALESCED_BELOW_BYTES => {
                    let last = self.sealed.pop_back().unwrap_or_default();
                    self.growing.reserve(COALESCED_SIZE_BYTES);
                    self.growing.extend_from_slice(&last);
                }
                _ => {
                    self.sealed.push_back(data);
                    return;
                }
            }
        }
        self.growing.extend_from_slice(&data);
        if self.growing.len() >= COALESCED_SIZE_BYTES {
            self.seal();
        }
    }

    fn seal(&mut self) {
        if !self.growing.is_empty() {
            self.sealed.push_back(self.growing.split().freeze());
        }
    }

    /// The chunks to offer to QUIC. Those that it takes in part it advances itself.
    pub(super) fn chunks(&mut self) -> &mut [Bytes] {
        self.seal();
        self.sealed.make_contiguous()
    }

    /// Drops what QUIC took: `bytes` in all, `chunks` of them whole.
    pub(super) fn taken(&mut self, bytes: usize, chunks: usize) {
        self.len -= bytes;
        self.sealed.drain(..chunks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pushed(sizes: &[usize]) -> WriteQueue {
        let mut queue = WriteQueue::default();
        let mut next = 0_u8;
        for size in sizes {
            let bytes: Vec<u8> = (0..*size).map(|i| next.wrapping_add(i as u8)).collect();
            next = next.wrapping_add(*size as u8);
            queue.push(Bytes::from(bytes));
        }
        queue
    }

    fn sizes(queue: &mut WriteQueue) -> Vec<usize> {
        queue.chunks().iter().map(Bytes::len).collect()
    }

    #[test]
    fn small_neighbours_are_merged_and_order_is_kept() {
        let mut queue = pushed(&[100, 200, 5_000, 0, 300, 4_000, 10]);
        assert_eq!(sizes(&mut queue), [300, 5_000, 4_310]);
        assert_eq!(queue.len(), 9_610);
        let all: Vec<u8> = queue.chunks().iter().flat_map(|c| c.to_vec()).collect();
        assert!(all.iter().enumerate().all(|(i, b)| *b == i as u8));
    }

    #[test]
    fn merged_chunks_stop_growing_at_their_size() {
        let mut queue = pushed(&[1_000; 40]);
        assert_eq!(sizes(&mut queue), [17_000, 17_000, 6_000]);
    }

    #[test]
    fn a_single_small_chunk_is_not_copied() {
        let data = Bytes::from(vec![1; 64]);
        let mut queue = WriteQueue::default();
        queue.push(data.clone());
        assert_eq!(queue.chunks()[0].as_ptr(), data.as_ptr());
        queue.taken(64, 1);
        assert_eq!((queue.len(), queue.chunks().len()), (0, 0));
    }
}
