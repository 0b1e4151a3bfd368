//! A run of names as bytes. Little-endian; `docs/formats/names-v1.md` is the specification.
//!
//! ```text
//! block …      4 KiB each: header, names by ascending hash, zeros
//! footer       the index, the names' topics, zeros, and a trailer in the file's last 64 bytes
//! ```

use std::ops::Range;

use escapement_protocol::{Sequence, ShardId, TopicId, WallMs};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::{Name, NameHash};
use crate::far::{RunDamage, RunId};

/// Bytes of a block, and what the footer's size is a multiple of.
pub const BLOCK_SIZE_BYTES: usize = 4096;

/// Bytes before a block's first name.
const BLOCK_HEADER_SIZE_BYTES: usize = 32;

/// Bytes of a name.
const ENTRY_SIZE_BYTES: usize = 40;

/// Names in a block; the last one may have fewer.
pub const BLOCK_COUNT_MAX: usize = (BLOCK_SIZE_BYTES - BLOCK_HEADER_SIZE_BYTES) / ENTRY_SIZE_BYTES;

/// Most names in a bucket of the index, in the mean.
const BUCKET_COUNT_MEAN_MAX: usize = 16;

/// Bytes of one topic in a footer.
const TOPIC_SIZE_BYTES: usize = 32;

/// Bytes of the trailer.
const TRAILER_SIZE_BYTES: usize = 64;

/// Of these, those of the checksum, which are the last.
const CHECKSUM_SIZE_BYTES: usize = 16;

/// `ENB1` and `ENF1`, as little-endian numbers.
const BLOCK_MAGIC: u32 = u32::from_le_bytes(*b"ENB1");
const TRAILER_MAGIC: u32 = u32::from_le_bytes(*b"ENF1");

/// Set in a trailer's flags: the names were given up, and none is here.
const FLAG_GIVEN_UP: u16 = 1;

/// Where in a run a name can be: 16 bits of each name's hash, in the order of the names, in buckets by the bits before.
///
/// It answers for a name that is not there about once in 4,000 times that it may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamesIndex {
    bucket_bits: u32,
    /// The place of each bucket's first name, and the count of all.
    starts: Vec<u32>,
    prints: Vec<u16>,
}

impl NamesIndex {
    /// Expects about `count` names, by ascending hash.
    fn for_count(count: usize) -> NamesIndex {
        let bucket_bits = count.div_ceil(BUCKET_COUNT_MEAN_MAX).next_power_of_two().trailing_zeros();
        let starts = Vec::with_capacity(bucket_count(bucket_bits) + 1);
        NamesIndex { bucket_bits, starts, prints: Vec::with_capacity(count) }
    }

    fn bucket(&self, hash: NameHash) -> usize {
        // Not shifted by all bits, which is no shift.
        (hash.0[0] >> 1 >> (63 - self.bucket_bits)) as usize
    }

    fn print(&self, hash: NameHash) -> u16 {
        (hash.0[0] << self.bucket_bits >> 48) as u16
    }

    fn push(&mut self, hash: NameHash) {
        self.begin_buckets(self.bucket(hash) + 1);
        self.prints.push(self.print(hash));
    }

    /// The next name is not in the buckets before the last of `count`.
    fn begin_buckets(&mut self, count: usize) {
        if self.starts.len() < count {
            self.starts.resize(count, self.prints.len() as u32);
        }
    }

    fn end(&mut self) {
        self.begin_buckets(bucket_count(self.bucket_bits) + 1);
        self.prints.shrink_to_fit();
    }

    /// Names.
    #[must_use]
    pub fn len(&self) -> usize {
        self.prints.len()
    }

    /// Whether there is no name.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.prints.is_empty()
    }

    /// The places that a name can have.
    #[must_use]
    pub fn places(&self, hash: NameHash) -> Range<usize> {
        let bucket = self.bucket(hash);
        let (start, end) = (self.starts[bucket] as usize, self.starts[bucket + 1] as usize);
        let (prints, print) = (&self.prints[start..end], self.print(hash));
        let first = prints.partition_point(|held| *held < print);
        let count = prints[first..].iter().take_while(|held| **held == print).count();
        start + first..start + first + count
    }

    /// Whether a name's place is one that it can have.
    fn is_at(&self, place: usize, hash: NameHash) -> bool {
        let bucket = self.bucket(hash);
        let held = self.starts[bucket] as usize..self.starts[bucket + 1] as usize;
        held.contains(&place) && self.prints[place] == self.print(hash)
    }

    fn said_size_bytes(&self) -> usize {
        self.starts.len() * 4 + self.prints.len() * 2
    }

    fn memory_bytes(&self) -> usize {
        self.starts.capacity() * 4 + self.prints.capacity() * 2
    }
}

fn bucket_count(bits: u32) -> usize {
    1 << bits
}

/// What a run has of one topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicNames {
    /// The topic.
    pub topic: TopicId,
    /// How many names.
    pub count: u32,
    /// No name's sequence is smaller.
    pub first: Sequence,
    /// No name's sequence is larger: with the run, all names of the topic up to it have left the log.
    pub last: Sequence,
    /// When the last of them was accepted.
    pub accepted: WallMs,
}

/// What a footer says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamesFooter {
    /// Where names can be.
    pub index: NamesIndex,
    /// By ascending number.
    pub topics: Vec<TopicNames>,
    /// Whether the names were given up, after the file was damaged.
    pub is_given_up: bool,
    /// A checksum of index and topics, which the log states, too.
    pub id: u64,
}

impl NamesFooter {
    /// Bytes kept in memory of it.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.index.memory_bytes() + size_of_val(&self.topics[..])
    }

    /// What there is of a topic.
    #[must_use]
    pub fn topic(&self, topic: TopicId) -> Option<&TopicNames> {
        let at = self.topics.binary_search_by_key(&topic, |held| held.topic).ok()?;
        self.topics.get(at)
    }

    /// Blocks before the footer.
    #[must_use]
    pub fn block_count(&self) -> u32 {
        self.index.len().div_ceil(BLOCK_COUNT_MAX) as u32
    }

    /// The file of a run whose names are given up: the log states it by this id.
    #[must_use]
    pub fn given_up(shard: ShardId, run: RunId, id: u64) -> Vec<u8> {
        let mut index = NamesIndex::for_count(0);
        index.end();
        let footer = NamesFooter { index, topics: Vec::new(), is_given_up: true, id };
        let mut bytes = Vec::new();
        footer.write(shard, run, &mut bytes);
        bytes
    }

    fn said(&self) -> Vec<u8> {
        let mut said =
            Vec::with_capacity(self.index.said_size_bytes() + self.topics.len() * TOPIC_SIZE_BYTES);
        self.index.starts.iter().for_each(|start| said.extend_from_slice(&start.to_le_bytes()));
        self.index.prints.iter().for_each(|print| said.extend_from_slice(&print.to_le_bytes()));
        for held in &self.topics {
            said.extend_from_slice(&held.topic.0.to_le_bytes());
            said.extend_from_slice(&held.count.to_le_bytes());
            said.extend_from_slice(&held.first.0.to_le_bytes());
            said.extend_from_slice(&held.last.0.to_le_bytes());
            said.extend_from_slice(&held.accepted.0.to_le_bytes());
        }
        said
    }

    /// Appends the footer. `bytes` end where the last block does.
    fn write(&self, shard: ShardId, run: RunId, bytes: &mut Vec<u8>) {
        let start = u64::from(self.block_count()) * BLOCK_SIZE_BYTES as u64;
        let from = bytes.len();
        bytes.extend_from_slice(&self.said());
        let len = (bytes.len() - from + TRAILER_SIZE_BYTES).next_multiple_of(BLOCK_SIZE_BYTES);
        bytes.resize(from + len - TRAILER_SIZE_BYTES, 0);
        bytes.extend_from_slice(&TRAILER_MAGIC.to_le_bytes());
        bytes.extend_from_slice(&run.0.to_le_bytes());
        bytes.extend_from_slice(&shard.0.to_le_bytes());
        let flags = if self.is_given_up { FLAG_GIVEN_UP } else { 0 };
        bytes.extend_from_slice(&flags.to_le_bytes());
        bytes.extend_from_slice(&self.index.bucket_bits.to_le_bytes());
        bytes.extend_from_slice(&start.to_le_bytes());
        bytes.extend_from_slice(&(self.index.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(self.topics.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.id.to_le_bytes());
        bytes.extend_from_slice(&[0; 8]);
        let checksum = checksum(&[&bytes[from..]]);
        bytes.extend_from_slice(&checksum);
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
    ) -> Result<Result<NamesFooter, RunDamage>, E> {
        let damaged = Ok(Err(RunDamage::Footer));
        if size < BLOCK_SIZE_BYTES as u64 || !size.is_multiple_of(BLOCK_SIZE_BYTES as u64) {
            return damaged;
        }
        let last = read(size - BLOCK_SIZE_BYTES as u64, BLOCK_SIZE_BYTES)?;
        let trailer = last.len().checked_sub(TRAILER_SIZE_BYTES).map(|at| Fields(&last[at..]));
        let Some(start) = trailer.and_then(|trailer| trailer.u64(16)) else { return damaged };
        if start >= size || !start.is_multiple_of(BLOCK_SIZE_BYTES as u64) {
            return damaged;
        }
        let footer = read(start, (size - start) as usize)?;
        Ok(Self::parse(&footer, start, shard, run).ok_or(RunDamage::Footer))
    }

    fn parse(bytes: &[u8], start: u64, shard: ShardId, run: RunId) -> Option<NamesFooter> {
        let (rest, stated) = bytes.split_last_chunk::<CHECKSUM_SIZE_BYTES>()?;
        let at = bytes.len().checked_sub(TRAILER_SIZE_BYTES)?;
        let trailer = Fields(&bytes[at..]);
        let is_it = trailer.u32(0)? == TRAILER_MAGIC
            && trailer.u32(4)? == run.0
            && trailer.u16(8)? == shard.0
            && trailer.u64(16)? == start
            && trailer.u64(40)? == 0
            && *stated == checksum(&[rest]);
        let (flags, bucket_bits) = (trailer.u16(10)?, trailer.u32(12)?);
        if !is_it || flags & !FLAG_GIVEN_UP != 0 || bucket_bits > 32 {
            return None;
        }
        let (name_count, topic_count) = (trailer.u32(24)? as usize, trailer.u32(28)? as usize);
        let starts_size = (bucket_count(bucket_bits) + 1).checked_mul(4)?;
        let prints_size = name_count.checked_mul(2)?;
        let topics_size = topic_count.checked_mul(TOPIC_SIZE_BYTES)?;
        let said = bytes.get(..at)?;
        let (starts, said) = said.split_at_checked(starts_size)?;
        let (prints, said) = said.split_at_checked(prints_size)?;
        let (topics, zeros) = said.split_at_checked(topics_size)?;
        let starts: Vec<u32> =
            starts.as_chunks().0.iter().map(|number| u32::from_le_bytes(*number)).collect();
        let prints = prints.as_chunks().0.iter().map(|number| u16::from_le_bytes(*number)).collect();
        let topics = topics.chunks_exact(TOPIC_SIZE_BYTES).map(|bytes| topic_names(Fields(bytes)));
        let topics: Vec<TopicNames> = topics.collect::<Option<_>>()?;
        let is_sound = zeros.iter().all(|byte| *byte == 0)
            && starts.first() == Some(&0)
            && starts.is_sorted()
            && starts.last().is_some_and(|count| *count as usize == name_count)
            && topics.is_sorted_by(|a, b| a.topic < b.topic);
        let is_given_up = flags & FLAG_GIVEN_UP != 0;
        let index = NamesIndex { bucket_bits, starts, prints };
        let footer = NamesFooter { index, topics, is_given_up, id: trailer.u64(32)? };
        let is_whole = u64::from(footer.block_count()) * BLOCK_SIZE_BYTES as u64 == start;
        let is_id = is_given_up || footer.id == xxh3_64(&bytes[..starts_size + prints_size + topics_size]);
        (is_sound && is_whole && is_id).then_some(footer)
    }
}

fn topic_names(fields: Fields<'_>) -> Option<TopicNames> {
    Some(TopicNames {
        topic: TopicId(fields.u32(0)?),
        count: fields.u32(4)?,
        first: fields.sequence(8)?,
        last: fields.sequence(16)?,
        accepted: WallMs(fields.u64(24)?),
    })
}

/// Writes a run's blocks and footer into byte buffers, one after the other.
#[derive(Debug)]
pub struct NamesWriter {
    shard: ShardId,
    run: RunId,
    index: NamesIndex,
    /// Names of the block that is being filled, with room for its header before them.
    open: Vec<u8>,
    open_count: u16,
    block_count: u32,
}

impl NamesWriter {
    /// Begins a run of about `count` names.
    #[must_use]
    pub fn new(shard: ShardId, run: RunId, count: usize) -> NamesWriter {
        let open = vec![0; BLOCK_HEADER_SIZE_BYTES];
        NamesWriter { shard, run, index: NamesIndex::for_count(count), open, open_count: 0, block_count: 0 }
    }

    /// Adds a name; its hash is not below that of the one before. A block that is full is appended to `bytes`.
    pub fn push(&mut self, bytes: &mut Vec<u8>, name: &Name) {
        for number in [name.hash.0[0], name.hash.0[1], name.sequence.0, name.schedule_time.0, name.accepted.0]
        {
            self.open.extend_from_slice(&number.to_le_bytes());
        }
        self.open_count += 1;
        self.index.push(name.hash);
        if usize::from(self.open_count) == BLOCK_COUNT_MAX {
            self.end_block(bytes);
        }
    }

    fn end_block(&mut self, bytes: &mut Vec<u8>) {
        let block = &mut self.open;
        block.resize(BLOCK_SIZE_BYTES, 0);
        block[0..4].copy_from_slice(&BLOCK_MAGIC.to_le_bytes());
        block[4..8].copy_from_slice(&self.run.0.to_le_bytes());
        block[8..12].copy_from_slice(&self.block_count.to_le_bytes());
        block[12..14].copy_from_slice(&self.shard.0.to_le_bytes());
        block[14..16].copy_from_slice(&self.open_count.to_le_bytes());
        let checksum = checksum(&[&block[..16], &block[BLOCK_HEADER_SIZE_BYTES..]]);
        block[16..BLOCK_HEADER_SIZE_BYTES].copy_from_slice(&checksum);
        bytes.extend_from_slice(block);
        block.truncate(BLOCK_HEADER_SIZE_BYTES);
        self.open_count = 0;
        self.block_count += 1;
    }

    /// Appends what is left and the footer.
    #[must_use]
    pub fn finish(mut self, topics: Vec<TopicNames>, bytes: &mut Vec<u8>) -> NamesFooter {
        if self.open_count > 0 {
            self.end_block(bytes);
        }
        self.index.end();
        let mut footer = NamesFooter { index: self.index, topics, is_given_up: false, id: 0 };
        footer.id = xxh3_64(&footer.said());
        footer.write(self.shard, self.run, bytes);
        footer
    }

    /// Bytes kept in memory of it.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.index.memory_bytes()
    }
}

/// A block that was verified.
#[derive(Clone, Copy, Debug)]
pub struct NamesBlock<'a>(&'a [u8]);

impl<'a> NamesBlock<'a> {
    /// Verifies the block of number `number`, and that it is the one of which its run's index speaks: an earlier run may
    /// have had the same number.
    ///
    /// # Errors
    /// [`RunDamage::Block`] unless it is the block that was written there.
    pub fn parse(
        bytes: &'a [u8],
        (shard, run): (ShardId, RunId),
        number: u32,
        index: &NamesIndex,
    ) -> Result<NamesBlock<'a>, RunDamage> {
        let before = number as usize * BLOCK_COUNT_MAX;
        let count = index.len().saturating_sub(before).min(BLOCK_COUNT_MAX);
        let is_it = |block: &NamesBlock<'_>| {
            block.names().count() == count
                && block.names().zip(before..).all(|(name, place)| index.is_at(place, name.hash))
        };
        Self::verified(bytes, (shard, run), number, count).filter(is_it).ok_or(RunDamage::Block(number))
    }

    fn verified(
        bytes: &'a [u8],
        (shard, run): (ShardId, RunId),
        number: u32,
        count: usize,
    ) -> Option<NamesBlock<'a>> {
        let block = bytes.get(..BLOCK_SIZE_BYTES)?;
        let header = Fields(block);
        let is_it = header.u32(0)? == BLOCK_MAGIC
            && header.u32(4)? == run.0
            && header.u32(8)? == number
            && header.u16(12)? == shard.0
            && usize::from(header.u16(14)?) == count
            && block[16..BLOCK_HEADER_SIZE_BYTES]
                == checksum(&[&block[..16], &block[BLOCK_HEADER_SIZE_BYTES..]]);
        let names = block.get(BLOCK_HEADER_SIZE_BYTES..BLOCK_HEADER_SIZE_BYTES + count * ENTRY_SIZE_BYTES)?;
        is_it.then_some(NamesBlock(names))
    }

    /// Its names, by ascending hash.
    pub fn names(&self) -> impl Iterator<Item = Name> + use<'a> {
        self.0.chunks_exact(ENTRY_SIZE_BYTES).map_while(|bytes| {
            let fields = Fields(bytes);
            Some(Name {
                hash: NameHash([fields.u64(0)?, fields.u64(8)?]),
                sequence: fields.sequence(16)?,
                schedule_time: WallMs(fields.u64(24)?),
                accepted: WallMs(fields.u64(32)?),
            })
        })
    }
}

fn checksum(parts: &[&[u8]]) -> [u8; CHECKSUM_SIZE_BYTES] {
    let mut hasher = Xxh3::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.digest128().to_le_bytes()
}

#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..)?.first_chunk().copied()
    }

    fn u16(self, at: usize) -> Option<u16> {
        self.bytes(at).map(u16::from_le_bytes)
    }

    fn u32(self, at: usize) -> Option<u32> {
        self.bytes(at).map(u32::from_le_bytes)
    }

    fn u64(self, at: usize) -> Option<u64> {
        self.bytes(at).map(u64::from_le_bytes)
    }

    fn sequence(self, at: usize) -> Option<Sequence> {
        self.u64(at).map(Sequence).filter(|sequence| *sequence <= Sequence::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: ShardId = ShardId(3);
    const RUN: RunId = RunId(7);

    fn name(n: u64) -> Name {
        let hash = NameHash::of(TopicId(1), b"", b"/s", &n.to_le_bytes());
        Name { hash, sequence: Sequence(n), schedule_time: WallMs(2 * n), accepted: WallMs(n) }
    }

    fn file(count: u64) -> (Vec<u8>, NamesFooter, Vec<Name>) {
        let mut names: Vec<Name> = (1..=count).map(name).collect();
        names.sort_unstable();
        let (mut bytes, mut writer) = (Vec::new(), NamesWriter::new(SHARD, RUN, names.len()));
        names.iter().for_each(|name| writer.push(&mut bytes, name));
        let topic = TopicNames {
            topic: TopicId(1),
            count: count as u32,
            first: Sequence(1),
            last: Sequence(count),
            accepted: WallMs(count),
        };
        let footer = writer.finish(vec![topic], &mut bytes);
        (bytes, footer, names)
    }

    fn read(bytes: &[u8]) -> Result<NamesFooter, RunDamage> {
        let part = |offset: u64, len| Ok::<_, ()>(bytes[offset as usize..][..len].to_vec());
        NamesFooter::read(bytes.len() as u64, SHARD, RUN, part).expect("a vector can be read")
    }

    #[test]
    fn the_document_has_the_constants_and_the_places_of_the_code() {
        let document = include_str!("../../../docs/formats/names-v1.md");
        let (bytes, footer, names) = file(150);
        for (name, value) in [
            ("BLOCK_SIZE_BYTES", "4,096".to_owned()),
            ("BLOCK_COUNT_MAX", BLOCK_COUNT_MAX.to_string()),
            ("BUCKET_COUNT_MEAN_MAX", BUCKET_COUNT_MEAN_MAX.to_string()),
        ] {
            assert!(document.contains(&format!("\n| `{name}` | {value} |")), "{name}");
        }
        let at = |at: usize, field: &[u8]| assert_eq!(&bytes[at..at + field.len()], field, "at {at}");
        at(0, b"ENB1");
        at(14, &101_u16.to_le_bytes());
        at(32, &names[0].hash.0[0].to_le_bytes());
        at(48, &names[0].sequence.0.to_le_bytes());
        at(4_096, b"ENB1");
        let trailer = bytes.len() - 64;
        at(trailer, b"ENF1");
        at(trailer + 8, &SHARD.0.to_le_bytes());
        at(trailer + 16, &8_192_u64.to_le_bytes());
        at(trailer + 24, &150_u32.to_le_bytes());
        at(trailer + 32, &footer.id.to_le_bytes());
        let topic = 8_192 + (16 + 1) * 4 + 150 * 2;
        at(topic, &1_u32.to_le_bytes());
        at(topic + 16, &150_u64.to_le_bytes());
    }

    #[test]
    fn every_name_is_found_at_one_of_the_places_that_the_index_says() {
        for count in [0, 1, 16, 17, 101, 102, 5_000] {
            let (bytes, footer, names) = file(count);
            assert_eq!(read(&bytes), Ok(footer.clone()), "{count} names");
            assert!(bytes.len().is_multiple_of(BLOCK_SIZE_BYTES));
            let mut found = Vec::new();
            for number in 0..footer.block_count() {
                let block = &bytes[number as usize * BLOCK_SIZE_BYTES..];
                let block = NamesBlock::parse(block, (SHARD, RUN), number, &footer.index).expect("intact");
                found.extend(block.names());
            }
            assert_eq!(found, names);
            for (place, name) in names.iter().enumerate() {
                assert!(footer.index.places(name.hash).contains(&place), "{name:?}");
            }
        }
    }

    #[test]
    fn a_name_that_is_not_there_is_hardly_ever_read_for_and_takes_under_three_bytes() {
        for count in [20_000, 60_000] {
            let (_, footer, _) = file(count);
            let tried = 100_000;
            let asked =
                (count + 1..=count + tried).filter(|n| !footer.index.places(name(*n).hash).is_empty());
            let asked = asked.count();
            assert!(asked < tried as usize / 2_000, "{asked} of {tried} by {count}");
            let bytes = footer.memory_bytes() as f64 / count as f64;
            assert!((2.2..2.7).contains(&bytes), "{bytes} bytes a name by {count}");
        }
    }

    #[test]
    fn no_changed_byte_goes_unnoticed() {
        let (bytes, footer, _) = file(150);
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 8);
            let block = at / BLOCK_SIZE_BYTES;
            if block < footer.block_count() as usize {
                let part = &changed[block * BLOCK_SIZE_BYTES..];
                let parsed = NamesBlock::parse(part, (SHARD, RUN), block as u32, &footer.index);
                assert_eq!(parsed.err(), Some(RunDamage::Block(block as u32)), "byte {at}");
            } else {
                assert_eq!(read(&changed), Err(RunDamage::Footer), "byte {at}");
            }
        }
    }

    #[test]
    fn a_block_of_another_run_of_the_same_number_is_not_taken() {
        let (_, footer, _) = file(101);
        let mut other: Vec<Name> = (1_001..=1_101).map(name).collect();
        other.sort_unstable();
        let (mut bytes, mut writer) = (Vec::new(), NamesWriter::new(SHARD, RUN, 101));
        other.iter().for_each(|name| writer.push(&mut bytes, name));
        assert!(NamesBlock::parse(&bytes, (SHARD, RUN), 0, &footer.index).is_err());
    }

    #[test]
    fn a_given_up_file_has_the_id_that_the_log_states_and_no_name() {
        let bytes = NamesFooter::given_up(SHARD, RUN, 42);
        let footer = read(&bytes).expect("a footer");
        assert_eq!((footer.id, footer.is_given_up, footer.index.len()), (42, true, 0));
        assert!(footer.index.places(name(1).hash).is_empty() && footer.topics.is_empty());
    }
}
