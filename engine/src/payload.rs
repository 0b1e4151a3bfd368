//! The bytes of pending events, in chunks that are freed whole.
//!
//! An event is copied here out of its block once the block is durable, so that a block's buffer is
//! free at once and what is retained is what is pending. A chunk whose events have mostly gone is
//! emptied by moving the survivors, so retained memory stays within a small factor of live bytes.

use escapement_protocol::Sequence;
use escapement_protocol::event::{padded_len, stated_len};

/// Bytes of one chunk: must hold the largest event and its prefix.
pub(crate) const CHUNK_SIZE_BYTES: usize = 1024 * 1024;

const _: () = assert!(CHUNK_SIZE_BYTES >= 2 * escapement_protocol::EVENT_SIZE_BYTES_MAX);

/// Before each event: its sequence, so that a chunk's survivors can be found.
const PREFIX_SIZE_BYTES: usize = 8;

/// log2 of the most chunks, 8-byte units in a chunk, and 8-byte units of an event.
const CHUNK_BITS: u32 = 64 - 2 * UNIT_BITS;
const UNIT_BITS: u32 = 18;

const _: () = assert!(CHUNK_SIZE_BYTES / 8 < 1 << UNIT_BITS);

/// Where an event's bytes are, and how many: with the length here, an event ends without a look at its bytes, which
/// may have left the caches long ago. From the top: chunk, offset of the prefix and length of the event, both in units
/// of 8 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Location(u64);

impl Location {
    /// No event's.
    pub(crate) const NOWHERE: Location = Location(0);

    pub(crate) fn new(chunk: u32, at: usize, event_len: usize) -> Location {
        assert!(chunk >> CHUNK_BITS == 0, "at most 2^{CHUNK_BITS} chunks");
        let (at, len) = (at as u64 / 8, event_len as u64 / 8);
        Location((u64::from(chunk) << (2 * UNIT_BITS)) | (at << UNIT_BITS) | len)
    }

    fn chunk(self) -> u32 {
        (self.0 >> (2 * UNIT_BITS)) as u32
    }

    /// Offset of the prefix in the chunk, in bytes.
    fn at(self) -> usize {
        (self.0 >> UNIT_BITS) as usize % (1 << UNIT_BITS) * 8
    }

    /// Bytes of the event with its padding.
    pub(crate) fn event_len(self) -> usize {
        self.0 as usize % (1 << UNIT_BITS) * 8
    }
}

#[derive(Debug)]
struct Chunk {
    bytes: Vec<u8>,
    live_bytes: usize,
}

/// Retained events' bytes.
#[derive(Debug, Default)]
pub(crate) struct PayloadStore {
    chunks: Vec<Chunk>,
    vacant: Vec<u32>,
    filling: Option<u32>,
    live_bytes: usize,
    retained_bytes: usize,
}

impl PayloadStore {
    /// Bytes of chunks in use.
    #[must_use]
    pub(crate) fn retained_bytes(&self) -> usize {
        self.retained_bytes
    }

    /// Bytes of pending events.
    #[must_use]
    pub(crate) fn live_bytes(&self) -> usize {
        self.live_bytes
    }

    /// Copies an event in. `event` is padded to 8.
    ///
    /// # Panics
    /// If the event is larger than a chunk.
    pub(crate) fn insert(&mut self, sequence: Sequence, event: &[u8]) -> Location {
        let len = PREFIX_SIZE_BYTES + event.len();
        assert!(
            len <= CHUNK_SIZE_BYTES && event.len().is_multiple_of(8),
            "an event fits a chunk and is padded"
        );
        let chunk = match self.filling {
            Some(chunk) if self.chunks[chunk as usize].bytes.len() + len <= CHUNK_SIZE_BYTES => chunk,
            _ => self.next_chunk(),
        };
        let target = &mut self.chunks[chunk as usize];
        let location = Location::new(chunk, target.bytes.len(), event.len());
        target.bytes.extend_from_slice(&sequence.0.to_le_bytes());
        target.bytes.extend_from_slice(event);
        target.live_bytes += len;
        self.live_bytes += len;
        location
    }

    fn next_chunk(&mut self) -> u32 {
        if let Some(full) = self.filling.take() {
            self.free_if_dead(full);
        }
        let chunk = self.vacant.pop().unwrap_or_else(|| {
            self.chunks.push(Chunk { bytes: Vec::new(), live_bytes: 0 });
            (self.chunks.len() - 1) as u32
        });
        let target = &mut self.chunks[chunk as usize];
        if target.bytes.capacity() < CHUNK_SIZE_BYTES {
            target.bytes.reserve_exact(CHUNK_SIZE_BYTES);
        }
        self.retained_bytes += CHUNK_SIZE_BYTES;
        self.filling = Some(chunk);
        chunk
    }

    /// The event's bytes with their padding.
    ///
    /// # Panics
    /// If `location` is not that of a pending event: the table and this store disagree.
    #[must_use]
    #[inline]
    pub(crate) fn event(&self, location: Location) -> &[u8] {
        let at = location.at() + PREFIX_SIZE_BYTES;
        &self.chunks[location.chunk() as usize].bytes[at..at + location.event_len()]
    }

    /// Reads a byte of each of an event's first cache lines, and nothing else, to bring them near.
    #[inline]
    pub(crate) fn touch(&self, location: Location) -> u8 {
        let event = self.event(location);
        let line = |n: usize| event.get(n * 64).copied().unwrap_or(0);
        line(0) ^ line(1) ^ line(2) ^ event.last().copied().unwrap_or(0)
    }

    /// Forgets an event.
    pub(crate) fn remove(&mut self, location: Location) {
        let len = PREFIX_SIZE_BYTES + location.event_len();
        let number = location.chunk();
        let chunk = &mut self.chunks[number as usize];
        chunk.live_bytes -= len;
        self.live_bytes -= len;
        if chunk.live_bytes == 0 && self.filling != Some(number) {
            self.free_if_dead(number);
        }
    }

    fn free_if_dead(&mut self, chunk: u32) {
        let target = &mut self.chunks[chunk as usize];
        if target.live_bytes != 0 {
            return;
        }
        target.bytes.clear();
        // A few empty chunks are kept for reuse; beyond that the memory goes back.
        if self.vacant.len() >= 32 {
            target.bytes = Vec::new();
        }
        self.retained_bytes -= CHUNK_SIZE_BYTES;
        self.vacant.push(chunk);
    }

    /// Whether dead bytes outweigh live ones by enough that [`PayloadStore::compact`] pays.
    #[must_use]
    pub(crate) fn wants_compaction(&self) -> bool {
        self.retained_bytes > 8 * CHUNK_SIZE_BYTES && self.retained_bytes > 2 * self.live_bytes
    }

    /// Empties the sparsest chunk. `is_at` says whether an event still lives at a location, and `moved`
    /// learns where it went. Bounded by one chunk.
    pub(crate) fn compact(
        &mut self,
        is_at: impl Fn(Sequence, Location) -> bool,
        mut moved: impl FnMut(Sequence, Location),
    ) {
        let sparsest = (0..self.chunks.len() as u32)
            .filter(|c| Some(*c) != self.filling && !self.chunks[*c as usize].bytes.is_empty())
            .min_by_key(|c| self.chunks[*c as usize].live_bytes);
        let Some(chunk) = sparsest else { return };
        let bytes = std::mem::take(&mut self.chunks[chunk as usize].bytes);
        let mut at = 0;
        while let Some((prefix, rest)) = bytes[at..].split_first_chunk::<PREFIX_SIZE_BYTES>() {
            let sequence = Sequence(u64::from_le_bytes(*prefix));
            let len = padded_len(stated_len(rest).expect("events follow one another"));
            let location = Location::new(chunk, at, len);
            if is_at(sequence, location) {
                self.chunks[chunk as usize].live_bytes -= PREFIX_SIZE_BYTES + len;
                self.live_bytes -= PREFIX_SIZE_BYTES + len;
                let new = self.insert(sequence, &rest[..len]);
                moved(sequence, new);
            }
            at += PREFIX_SIZE_BYTES + len;
        }
        self.chunks[chunk as usize].bytes = bytes;
        assert_eq!(self.chunks[chunk as usize].live_bytes, 0, "every survivor was moved");
        self.free_if_dead(chunk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use escapement_protocol::event::Due;
    use escapement_protocol::{EventSpec, WallMs};
    use std::collections::HashMap;

    #[test]
    fn retained_memory_follows_live_bytes_and_no_event_is_altered() {
        let mut store = PayloadStore::default();
        let mut places: HashMap<Sequence, (Location, Vec<u8>)> = HashMap::new();
        for n in 0..200_000u64 {
            let mut event = Vec::new();
            let data = vec![n as u8; (n % 300) as usize];
            EventSpec::new(Due::At(WallMs(n)), "id", &data).encode(&mut event).expect("valid");
            places.insert(Sequence(n), (store.insert(Sequence(n), &event), event));
            if n >= 1_000 && n % 100 != 0 {
                let (location, event) = places.remove(&Sequence(n - 1_000)).unwrap_or_default();
                if !event.is_empty() {
                    assert_eq!(store.event(location), event);
                    store.remove(location);
                }
            }
            if store.wants_compaction() {
                let mut moves = Vec::new();
                store.compact(
                    |s, l| places.get(&s).is_some_and(|(at, _)| *at == l),
                    |s, l| moves.push((s, l)),
                );
                for (sequence, location) in moves {
                    places.get_mut(&sequence).expect("live").0 = location;
                }
            }
        }
        for (location, event) in places.values() {
            assert_eq!(store.event(*location), event);
        }
        assert!(store.retained_bytes() <= 2 * store.live_bytes() + 10 * CHUNK_SIZE_BYTES);
    }
}
