//! A run as bytes. Little-endian; `docs/formats/far-v1.md` is the specification.
//!
//! ```text
//! block …      each at a multiple of 4 KiB: header, entries, zeros
//! footer       the index of the blocks, zeros, and a trailer in the file's last 64 bytes
//! ```

use escapement_protocol::event::{padded_len, stated_len};
use escapement_protocol::{Sequence, ShardId, TopicId, WallMs};
use xxhash_rust::xxh3::Xxh3;

use super::{Key, RunId};
use crate::record::Forward;

/// Blocks and the footer begin at multiples of this, in bytes.
pub const ALIGN: usize = 4096;

/// Bytes of a block at which no further event is put into it. A larger event has a block of its own.
pub const BLOCK_SIZE_BYTES: usize = 64 * 1024;

/// Bytes before a block's first entry.
const BLOCK_HEADER_SIZE_BYTES: usize = 48;

/// Bytes before an entry's event.
const ENTRY_HEADER_SIZE_BYTES: usize = 24;

/// Bytes of one block in the index.
const INDEX_ENTRY_SIZE_BYTES: usize = 32;

/// Bytes of one count by topic.
const TOPIC_COUNT_SIZE_BYTES: usize = 8;

/// Bytes of one rescheduled event in a footer.
const FORWARD_ENTRY_SIZE_BYTES: usize = 32;

/// Bytes of the trailer.
const TRAILER_SIZE_BYTES: usize = 64;

/// `ERB1` and `ERF1`, as little-endian numbers.
const BLOCK_MAGIC: u32 = u32::from_le_bytes(*b"ERB1");
const TRAILER_MAGIC: u32 = u32::from_le_bytes(*b"ERF1");

/// What is wrong with a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunDamage {
    /// The block of that number is not the one that was written.
    Block(u32),
    /// The footer is not the one that was written.
    Footer,
}

impl std::fmt::Display for RunDamage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RunDamage::Block(number) => write!(f, "at block {number}"),
            RunDamage::Footer => f.write_str("at its footer"),
        }
    }
}

/// One block in a run's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockPlace {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its bytes with their padding.
    pub size_bytes: u32,
    /// Events in it.
    pub count: u32,
    /// Due time and sequence of its first event.
    pub first: Key,
}

/// One event of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunEntry<'a> {
    /// Its due time and sequence.
    pub key: Key,
    /// Its topic.
    pub topic: TopicId,
    /// Its bytes, padded to 8.
    pub event: &'a [u8],
}

/// An event of a run that was rescheduled before it came there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// Its sequence.
    pub sequence: Sequence,
    /// When it is due, which places it in the run.
    pub due: WallMs,
    /// What its id needs to be known by.
    pub forward: Forward,
}

/// Writes a run's blocks and footer into byte buffers, one after the other.
#[derive(Debug)]
pub struct RunWriter {
    shard: ShardId,
    run: RunId,
    index: Vec<BlockPlace>,
    /// Where the next block begins.
    offset: u64,
    /// The block that is being filled: from here on in the caller's buffer.
    open: Option<(usize, BlockPlace)>,
    sequences: (u64, u64),
    block_count_max: u32,
    topics: TopicCounts,
    /// The topic of each event of the open block.
    open_topics: Vec<TopicId>,
    forwards: Vec<Forwarded>,
}

/// How many events of which topics each block of a run has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicCounts {
    /// Of one block after the other; within a block by ascending topic.
    counts: Vec<(TopicId, u32)>,
    /// Where the counts of each block end.
    ends: Vec<u32>,
}

impl TopicCounts {
    /// Takes in the topics of the next block's events, and leaves the vector empty.
    fn push(&mut self, topics: &mut Vec<TopicId>) {
        topics.sort_unstable();
        let of_one = topics.chunk_by(|a, b| a == b).map(|same| (same[0], same.len() as u32));
        self.counts.extend(of_one);
        self.ends.push(self.counts.len() as u32);
        topics.clear();
    }

    /// The events of a block by topic; nothing where there is no such block.
    #[must_use]
    pub fn of(&self, block: u32) -> &[(TopicId, u32)] {
        let block = block as usize;
        let start = block.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied());
        let range = start.zip(self.ends.get(block).copied());
        range.and_then(|(start, end)| self.counts.get(start as usize..end as usize)).unwrap_or_default()
    }

    /// Events of a topic in a block.
    #[must_use]
    pub fn count(&self, block: u32, topic: TopicId) -> u32 {
        let counts = self.of(block);
        counts.binary_search_by_key(&topic, |(topic, _)| *topic).map_or(0, |at| counts[at].1)
    }

    /// Counts of all blocks together.
    #[must_use]
    pub fn len(&self) -> usize {
        self.counts.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        size_of_val(&self.counts[..]) + size_of_val(&self.ends[..])
    }

    /// Reads the counts of blocks with so many events each; `None` where they do not come to these.
    fn parse(bytes: &[u8], blocks: &[BlockPlace]) -> Option<TopicCounts> {
        let mut entries = bytes.chunks_exact(TOPIC_COUNT_SIZE_BYTES);
        let mut read = TopicCounts::default();
        for place in blocks {
            let (mut left, mut last) = (place.count, None);
            while left > 0 {
                let entry = entries.next()?;
                let (topic, count) = (TopicId(u32_at(entry, 0)?), u32_at(entry, 4)?);
                left = left.checked_sub(count).filter(|_| count > 0 && last < Some(topic))?;
                last = Some(topic);
                read.counts.push((topic, count));
            }
            read.ends.push(read.counts.len() as u32);
        }
        entries.next().is_none().then_some(read)
    }
}

impl RunWriter {
    /// Begins a run whose blocks hold at most `block_count_max` events each.
    #[must_use]
    pub fn new(shard: ShardId, run: RunId, block_count_max: u32) -> RunWriter {
        let sequences = (u64::MAX, 0);
        let (topics, open_topics) = (TopicCounts::default(), Vec::new());
        let (index, forwards) = (Vec::new(), Vec::new());
        RunWriter {
            shard,
            run,
            index,
            offset: 0,
            open: None,
            sequences,
            block_count_max,
            topics,
            open_topics,
            forwards,
        }
    }

    /// Appends an event to the block at the end of `out`, or to a new one behind it.
    ///
    /// # Panics
    /// If `key` does not ascend within its block.
    pub fn push(&mut self, out: &mut Vec<u8>, key: Key, topic: TopicId, event: &[u8]) {
        let needed = ENTRY_HEADER_SIZE_BYTES + event.len();
        if let Some((start, block)) = &self.open
            && (out.len() - start + needed > BLOCK_SIZE_BYTES || block.count >= self.block_count_max)
        {
            self.end_block(out);
        }
        let (_, block) = self.open.get_or_insert_with(|| {
            let start = out.len();
            out.resize(start + BLOCK_HEADER_SIZE_BYTES, 0);
            (start, BlockPlace { offset: self.offset, size_bytes: 0, count: 0, first: key })
        });
        assert!(block.count == 0 || block.first < key, "a run's keys ascend");
        block.count += 1;
        self.open_topics.push(topic);
        self.sequences = (self.sequences.0.min(key.1.0), self.sequences.1.max(key.1.0));
        out.extend_from_slice(&key.0.0.to_le_bytes());
        out.extend_from_slice(&key.1.0.to_le_bytes());
        out.extend_from_slice(&topic.0.to_le_bytes());
        out.extend_from_slice(&(event.len() as u32).to_le_bytes());
        out.extend_from_slice(event);
    }

    /// Says of an event that it was rescheduled before.
    pub fn forward(&mut self, forwarded: Forwarded) {
        self.forwards.push(forwarded);
    }

    /// Takes the complete blocks out of `out`, and leaves there the one that is being filled.
    pub fn take_complete(&mut self, out: &mut Vec<u8>) -> Vec<u8> {
        let end = self.open.as_ref().map_or(out.len(), |(start, _)| *start);
        if let Some((start, _)) = &mut self.open {
            *start = 0;
        }
        let rest = out.split_off(end);
        std::mem::replace(out, rest)
    }

    /// Bytes of the complete blocks.
    #[must_use]
    pub fn complete_size_bytes(&self) -> u64 {
        self.offset
    }

    /// Ends the block at the end of `out`, if one is open there.
    pub fn end_block(&mut self, out: &mut Vec<u8>) {
        let Some((start, mut block)) = self.open.take() else { return };
        let len = out.len() - start;
        out.resize(start + len.next_multiple_of(ALIGN), 0);
        block.size_bytes = (out.len() - start) as u32;
        let number = self.index.len() as u32;
        let header = &mut out[start..start + BLOCK_HEADER_SIZE_BYTES];
        header[..4].copy_from_slice(&BLOCK_MAGIC.to_le_bytes());
        header[4..8].copy_from_slice(&self.run.0.to_le_bytes());
        header[8..12].copy_from_slice(&number.to_le_bytes());
        header[12..16].copy_from_slice(&block.count.to_le_bytes());
        header[16..20].copy_from_slice(&(len as u32).to_le_bytes());
        header[20..22].copy_from_slice(&self.shard.0.to_le_bytes());
        let checksum = block_checksum(&out[start..start + len]);
        out[start + 32..start + BLOCK_HEADER_SIZE_BYTES].copy_from_slice(&checksum.to_le_bytes());
        self.offset += u64::from(block.size_bytes);
        self.index.push(block);
        self.topics.push(&mut self.open_topics);
    }

    /// Appends the footer to `out`, and answers what it says and the bytes of the whole file.
    pub fn finish(mut self, out: &mut Vec<u8>) -> (RunFooter, u64) {
        self.end_block(out);
        let start = out.len();
        for block in &self.index {
            out.extend_from_slice(&block.offset.to_le_bytes());
            out.extend_from_slice(&block.size_bytes.to_le_bytes());
            out.extend_from_slice(&block.count.to_le_bytes());
            out.extend_from_slice(&block.first.0.0.to_le_bytes());
            out.extend_from_slice(&block.first.1.0.to_le_bytes());
        }
        for (topic, count) in &self.topics.counts {
            out.extend_from_slice(&topic.0.to_le_bytes());
            out.extend_from_slice(&count.to_le_bytes());
        }
        self.forwards.sort_unstable_by_key(|forwarded| forwarded.sequence);
        for Forwarded { sequence, due, forward } in &self.forwards {
            for number in [sequence.0, due.0, forward.schedule_time.0, forward.version] {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
        let index_end = out.len();
        let size = (index_end - start + TRAILER_SIZE_BYTES).next_multiple_of(ALIGN);
        out.resize(start + size, 0);
        let at = out.len() - TRAILER_SIZE_BYTES;
        let trailer = &mut out[at..];
        trailer[..4].copy_from_slice(&TRAILER_MAGIC.to_le_bytes());
        trailer[4..8].copy_from_slice(&self.run.0.to_le_bytes());
        trailer[8..10].copy_from_slice(&self.shard.0.to_le_bytes());
        trailer[12..16].copy_from_slice(&(self.index.len() as u32).to_le_bytes());
        trailer[16..24].copy_from_slice(&self.offset.to_le_bytes());
        trailer[24..32].copy_from_slice(&self.sequences.0.to_le_bytes());
        trailer[32..40].copy_from_slice(&self.sequences.1.to_le_bytes());
        trailer[40..44].copy_from_slice(&(self.topics.len() as u32).to_le_bytes());
        trailer[44..48].copy_from_slice(&(self.forwards.len() as u32).to_le_bytes());
        let checksum = footer_checksum(&out[start..index_end], &out[at..at + 48]);
        out[at + 48..].copy_from_slice(&checksum.to_le_bytes());
        let sequences = (Sequence(self.sequences.0), Sequence(self.sequences.1));
        let (index, topics, forwards) = (self.index, self.topics, self.forwards);
        let footer = RunFooter { index, topics, sequences, forwards, id: checksum as u32 };
        (footer, self.offset + size as u64)
    }
}

fn block_checksum(block: &[u8]) -> u128 {
    let mut hasher = Xxh3::new();
    hasher.update(&block[..32]);
    hasher.update(&block[BLOCK_HEADER_SIZE_BYTES..]);
    hasher.digest128()
}

fn footer_checksum(index: &[u8], trailer: &[u8]) -> u128 {
    let mut hasher = Xxh3::new();
    hasher.update(index);
    hasher.update(trailer);
    hasher.digest128()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u128_at(bytes: &[u8], at: usize) -> Option<u128> {
    Some(u128::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A block that was verified.
#[derive(Clone, Copy, Debug)]
pub struct RunBlock<'a> {
    entries: &'a [u8],
    count: u32,
}

impl<'a> RunBlock<'a> {
    /// Verifies the block of number `number`, whose bytes are at the start of `bytes`, and that it is the one of which its
    /// run's index speaks: an earlier run may have had the same number, and no two have the same first event.
    ///
    /// # Errors
    /// [`RunDamage::Block`] unless it is the block that was written there.
    pub fn parse_at(
        bytes: &'a [u8],
        shard: ShardId,
        run: RunId,
        number: u32,
        place: &BlockPlace,
    ) -> Result<RunBlock<'a>, RunDamage> {
        let block = Self::parse(bytes, shard, run, number)?;
        let is_it = block.count == place.count
            && block.entries().next().is_some_and(|first| first.key == place.first);
        if is_it { Ok(block) } else { Err(RunDamage::Block(number)) }
    }

    /// Verifies the block of number `number`, whose bytes are at the start of `bytes`.
    ///
    /// # Errors
    /// [`RunDamage::Block`] unless it is one with that number of a run with that number.
    pub fn parse(
        bytes: &'a [u8],
        shard: ShardId,
        run: RunId,
        number: u32,
    ) -> Result<RunBlock<'a>, RunDamage> {
        Self::verified(bytes, shard, run, number).ok_or(RunDamage::Block(number))
    }

    fn verified(bytes: &'a [u8], shard: ShardId, run: RunId, number: u32) -> Option<RunBlock<'a>> {
        let len = u32_at(bytes, 16)? as usize;
        let block = bytes.get(..len).filter(|block| block.len() >= BLOCK_HEADER_SIZE_BYTES)?;
        let is_it = u32_at(block, 0)? == BLOCK_MAGIC
            && u32_at(block, 4)? == run.0
            && u32_at(block, 8)? == number
            && block[20..22] == shard.0.to_le_bytes()
            && u128_at(block, 32)? == block_checksum(block);
        let block = RunBlock { entries: &block[BLOCK_HEADER_SIZE_BYTES..], count: u32_at(block, 12)? };
        is_it.then_some(block)
    }

    /// A block that was verified before.
    ///
    /// # Panics
    /// If `bytes` do not begin with one.
    #[must_use]
    pub fn trusted(bytes: &'a [u8]) -> RunBlock<'a> {
        let len = u32_at(bytes, 16).expect("a block has a header") as usize;
        let count = u32_at(bytes, 12).expect("a block has a header");
        RunBlock { entries: &bytes[BLOCK_HEADER_SIZE_BYTES..len], count }
    }

    /// How many events it has.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Bytes of header and entries, without the zeros behind them.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        BLOCK_HEADER_SIZE_BYTES + self.entries.len()
    }

    /// Its events, by ascending key.
    pub fn entries(&self) -> impl Iterator<Item = RunEntry<'a>> + use<'a> {
        let mut rest = self.entries;
        std::iter::from_fn(move || {
            let key = (WallMs(u64_at(rest, 0)?), Sequence(u64_at(rest, 8)?));
            let topic = TopicId(u32_at(rest, 16)?);
            let len = u32_at(rest, 20)? as usize;
            let event = rest.get(ENTRY_HEADER_SIZE_BYTES..)?.get(..len)?;
            let is_event = stated_len(event).is_some_and(|stated| padded_len(stated) == len);
            rest = &rest[ENTRY_HEADER_SIZE_BYTES + len..];
            is_event.then_some(RunEntry { key, topic, event })
        })
    }
}

/// What a footer says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunFooter {
    /// The blocks.
    pub index: Vec<BlockPlace>,
    /// Events by block and topic.
    pub topics: TopicCounts,
    /// The smallest and the largest sequence in it.
    pub sequences: (Sequence, Sequence),
    /// Events that were rescheduled before they came here, by sequence.
    pub forwards: Vec<Forwarded>,
    /// The low bits of its checksum, which the log states, too.
    pub id: u32,
}

impl RunFooter {
    /// Bytes of the index, of the counts by topic, and of what is said of rescheduled events: the footer begins with them.
    #[must_use]
    pub fn said_size_bytes(&self) -> usize {
        self.index.len() * INDEX_ENTRY_SIZE_BYTES
            + self.topics.len() * TOPIC_COUNT_SIZE_BYTES
            + self.forwards.len() * FORWARD_ENTRY_SIZE_BYTES
    }

    /// Bytes of the whole footer, zeros and trailer included.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        (self.said_size_bytes() + TRAILER_SIZE_BYTES).next_multiple_of(ALIGN)
    }

    /// Bytes kept in memory of it.
    pub(crate) fn memory_bytes(&self) -> usize {
        size_of_val(&self.index[..]) + self.topics.memory_bytes() + size_of_val(&self.forwards[..])
    }

    /// Reads the footer of a run, by `read(offset, len)` of its file of `size` bytes.
    ///
    /// # Errors
    /// Those of `read`, and within them [`RunDamage::Footer`].
    pub fn read<E>(
        size: u64,
        shard: ShardId,
        run: RunId,
        mut read: impl FnMut(u64, usize) -> Result<Vec<u8>, E>,
    ) -> Result<Result<RunFooter, RunDamage>, E> {
        let damaged = Ok(Err(RunDamage::Footer));
        if size < ALIGN as u64 || !size.is_multiple_of(ALIGN as u64) {
            return damaged;
        }
        let last = read(size - ALIGN as u64, ALIGN)?;
        let Some(start) = last.len().checked_sub(TRAILER_SIZE_BYTES).and_then(|at| u64_at(&last, at + 16))
        else {
            return damaged;
        };
        if start >= size || !start.is_multiple_of(ALIGN as u64) {
            return damaged;
        }
        let footer = read(start, (size - start) as usize)?;
        Ok(Self::parse(&footer, shard, run).ok_or(RunDamage::Footer))
    }

    /// What is said of a rescheduled event; nothing of one that was not.
    #[must_use]
    pub fn forwarded(&self, sequence: Sequence) -> Option<&Forwarded> {
        let at = self.forwards.binary_search_by_key(&sequence, |forwarded| forwarded.sequence).ok()?;
        self.forwards.get(at)
    }

    fn parse(bytes: &[u8], shard: ShardId, run: RunId) -> Option<RunFooter> {
        let trailer = &bytes[bytes.len().checked_sub(TRAILER_SIZE_BYTES)?..];
        let index_size = (u32_at(trailer, 12)? as usize).checked_mul(INDEX_ENTRY_SIZE_BYTES)?;
        let topics_size = (u32_at(trailer, 40)? as usize).checked_mul(TOPIC_COUNT_SIZE_BYTES)?;
        let forwards_size = (u32_at(trailer, 44)? as usize).checked_mul(FORWARD_ENTRY_SIZE_BYTES)?;
        let said_size = index_size.checked_add(topics_size)?.checked_add(forwards_size)?;
        let said = bytes.get(..said_size)?;
        let (index, rest) = said.split_at_checked(index_size)?;
        let (topics, forwards) = rest.split_at_checked(topics_size)?;
        let checksum = u128_at(trailer, 48)?;
        let is_it = u32_at(trailer, 0)? == TRAILER_MAGIC
            && u32_at(trailer, 4)? == run.0
            && trailer[8..10] == shard.0.to_le_bytes()
            && checksum == footer_checksum(said, &trailer[..48]);
        if !is_it {
            return None;
        }
        let place = |entry: &[u8]| {
            Some(BlockPlace {
                offset: u64_at(entry, 0)?,
                size_bytes: u32_at(entry, 8)?,
                count: u32_at(entry, 12)?,
                first: (WallMs(u64_at(entry, 16)?), Sequence(u64_at(entry, 24)?)),
            })
        };
        let index: Vec<BlockPlace> =
            index.chunks_exact(INDEX_ENTRY_SIZE_BYTES).map(place).collect::<Option<_>>()?;
        let forwarded = |entry: &[u8]| {
            let forward = Forward { schedule_time: WallMs(u64_at(entry, 16)?), version: u64_at(entry, 24)? };
            Some(Forwarded { sequence: Sequence(u64_at(entry, 0)?), due: WallMs(u64_at(entry, 8)?), forward })
        };
        Some(RunFooter {
            topics: TopicCounts::parse(topics, &index)?,
            forwards: forwards
                .chunks_exact(FORWARD_ENTRY_SIZE_BYTES)
                .map(forwarded)
                .collect::<Option<_>>()?,
            index,
            sequences: (Sequence(u64_at(trailer, 24)?), Sequence(u64_at(trailer, 32)?)),
            id: checksum as u32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use escapement_protocol::EventSpec;
    use escapement_protocol::event::Due;

    fn event(n: u64, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        EventSpec::new(Due::At(WallMs(n)), "id", &vec![n as u8; len]).encode(&mut bytes).expect("valid");
        bytes
    }

    fn written() -> (Vec<u8>, Vec<BlockPlace>) {
        let (mut file, mut out) = (Vec::new(), Vec::new());
        let mut writer = RunWriter::new(ShardId(3), RunId(9), 400);
        for n in 0..2_000 {
            let len = if n == 700 { 200_000 } else { (n % 300) as usize };
            writer.push(
                &mut out,
                (WallMs(1_000 + n / 2), Sequence(n + 1)),
                TopicId(n as u32 % 5),
                &event(n, len),
            );
            if n % 250 == 0 {
                file.append(&mut writer.take_complete(&mut out));
                assert_eq!(file.len() as u64, writer.complete_size_bytes());
            }
        }
        let (footer, size) = writer.finish(&mut out);
        file.append(&mut out);
        assert_eq!(size, file.len() as u64);
        assert!(footer.index.iter().all(|place| place.count <= 400));
        (file, footer.index)
    }

    #[test]
    fn what_is_said_of_rescheduled_events_is_found_by_their_sequences_and_nothing_of_others() {
        let mut file = Vec::new();
        let mut writer = RunWriter::new(ShardId(3), RunId(9), 400);
        let forwarded = |n: u64| Forwarded {
            sequence: Sequence(n),
            due: WallMs(10_000 - n),
            forward: Forward { schedule_time: WallMs(n), version: n },
        };
        for n in (1..=300).rev() {
            writer.push(&mut file, (WallMs(10_000 - n), Sequence(n)), TopicId(1), &event(n, 10));
            if n % 3 == 0 {
                writer.forward(forwarded(n));
            }
        }
        let (written, _) = writer.finish(&mut file);
        let read = footer(&file, RunId(9)).expect("intact");
        assert_eq!(read, written);
        for n in 0..=301 {
            let is_known = n > 0 && n % 3 == 0;
            assert_eq!(read.forwarded(Sequence(n)), is_known.then(|| forwarded(n)).as_ref());
        }
        let start = file.len() - read.size_bytes();
        for at in start..start + read.said_size_bytes() {
            let mut bad = file.clone();
            bad[at] ^= 1 << (at % 8);
            assert_eq!(footer(&bad, RunId(9)), Err(RunDamage::Footer), "byte {at}");
        }
    }

    fn footer(bytes: &[u8], run: RunId) -> Result<RunFooter, RunDamage> {
        let read = |offset: u64, len: usize| Ok::<_, ()>(bytes[offset as usize..][..len].to_vec());
        RunFooter::read(bytes.len() as u64, ShardId(3), run, read).expect("memory can be read")
    }

    #[test]
    fn what_is_written_is_read_back_block_by_block() {
        let (bytes, index) = written();
        let footer = footer(&bytes, RunId(9)).expect("intact");
        assert_eq!((footer.sequences, &footer.index), ((Sequence(1), Sequence(2_000)), &index));
        let mut n = 0;
        for (number, place) in index.iter().enumerate() {
            let block = &bytes[place.offset as usize..][..place.size_bytes as usize];
            let block = RunBlock::parse(block, ShardId(3), RunId(9), number as u32).expect("intact");
            assert_eq!(block.entries().next().expect("no empty block").key, place.first);
            for (topic, count) in footer.topics.of(number as u32) {
                let of_topic = block.entries().filter(|entry| entry.topic == *topic);
                assert_eq!(of_topic.count(), *count as usize, "block {number}, topic {}", topic.0);
            }
            for entry in block.entries() {
                let len = if n == 700 { 200_000 } else { (n % 300) as usize };
                assert_eq!(entry.key, (WallMs(1_000 + n / 2), Sequence(n + 1)));
                assert_eq!(entry.event, event(n, len));
                n += 1;
            }
        }
        assert_eq!(n, 2_000);
    }

    #[test]
    fn every_flipped_bit_that_says_something_is_seen_and_so_is_another_place() {
        let (bytes, index) = written();
        let place = index[1];
        let block = bytes[place.offset as usize..][..place.size_bytes as usize].to_vec();
        let parse = |bytes: &[u8], shard, run, number| {
            RunBlock::parse(bytes, ShardId(shard), RunId(run), number).map(|block| block.count())
        };
        let len = u32_at(&block, 16).expect("a header") as usize;
        for at in (0..BLOCK_HEADER_SIZE_BYTES).chain((BLOCK_HEADER_SIZE_BYTES..len).step_by(97)) {
            let mut bad = block.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(parse(&bad, 3, 9, 1).is_err(), "byte {at}");
        }
        assert!(parse(&block, 3, 9, 2).is_err() && parse(&block, 3, 8, 1).is_err());
        assert!(parse(&block, 2, 9, 1).is_err() && parse(&block[..60], 3, 9, 1).is_err());
        let start = place.offset.max(index.last().map_or(0, |b| b.offset + u64::from(b.size_bytes))) as usize;
        let said = footer(&bytes, RunId(9)).expect("intact").said_size_bytes();
        for at in (start..start + said).chain(bytes.len() - 64..bytes.len()) {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << (at % 8);
            assert_eq!(footer(&bad, RunId(9)), Err(RunDamage::Footer), "byte {at}");
        }
        assert_eq!(footer(&bytes, RunId(8)), Err(RunDamage::Footer));
        assert_eq!(footer(&bytes[..bytes.len() - ALIGN], RunId(9)), Err(RunDamage::Footer));
    }
}
