//! Names of events, for topics that recognise what is published twice.
//!
//! A name is topic, ordering key, source and id, kept as a hash of 128 bits: a shorter one would take an event for
//! another sooner or later, and that event would be lost. For each name its event's receipt is kept, from acceptance on
//! for the topic's `dedup_window` and up to an eighth longer, whatever becomes of the event.
//!
//! Sequences rise with the time of acceptance, so that a topic's names in the order of their sequences are also in the
//! order in which their windows end. They lie in generations: each is filled once, never rehashed, and goes as a whole,
//! so that no turn has to touch more than a few of them.
//!
//! Only the newest names are in memory and in the log. Once they are many, they are written to a *run of names*: an
//! immutable file like those of far-future events, sorted by hash ([`mod@format`], specified in
//! `docs/formats/names-v1.md`), of which memory keeps an index. When it is durable, a `NamesRun` record says that its
//! topics' names up to a sequence are there, and no longer in memory and log; when all their windows have passed, a
//! `NamesRunEnded` record says so.
//!
//! Which blocks of the log hold which names is kept as ranges of sequences, in the order of the blocks: before a block
//! is freed, its names are stated again. All memory is counted.

pub mod format;
mod generation;
mod runs;
mod statements;

use std::collections::{BTreeMap, VecDeque};

use xxhash_rust::xxh3::Xxh3;

use escapement_protocol::{Sequence, TopicId, WallMs};

use format::TopicNames;
use generation::Generation;
pub(crate) use runs::{NamePlace, NamesRuns, read_footer};
pub(crate) use statements::{Statement, Statements};

/// Bytes of a name in memory, and in a `Names` record.
pub(crate) const NAME_SIZE_BYTES: usize = size_of::<Name>();

/// A name's bytes in the record that its event was published with.
pub(crate) const NAME_HASH_SIZE_BYTES: usize = size_of::<NameHash>();

/// A generation spans at most this part of the window, so that its memory is freed soon after its names have passed.
const SPANS_PER_WINDOW: u64 = 8;

/// Shortest span, so that a short window does not make a generation of every turn.
const SPAN_MS_MIN: u64 = 1_000;

/// XXH3, 128 bits, of a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NameHash(pub [u64; 2]);

impl NameHash {
    /// The name of an event whose source is as stated here: the topic's default is filled in by the caller.
    #[must_use]
    pub fn of(topic: TopicId, ordering_key: &[u8], source: &[u8], id: &[u8]) -> NameHash {
        let mut hasher = Xxh3::new();
        hasher.update(&topic.0.to_le_bytes());
        // With their lengths, so that no two names are the same bytes.
        for part in [ordering_key, source] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.update(id);
        let hash = hasher.digest128();
        NameHash([hash as u64, (hash >> 64) as u64])
    }
}

/// A name with the receipt of its event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// Which name.
    pub hash: NameHash,
    /// The event's sequence.
    pub sequence: Sequence,
    /// When the event is scheduled for, as its id says.
    pub schedule_time: WallMs,
    /// When it was accepted.
    pub accepted: WallMs,
}

impl Name {
    /// Whether what is published under this name now is its event once more.
    pub(crate) fn covers(&self, now: WallMs, window_ms: u64) -> bool {
        now < self.accepted.plus_ms(window_ms)
    }
}

#[derive(Debug, Default)]
struct OfTopic {
    /// By ascending sequence.
    generations: VecDeque<Generation>,
    /// Whether the newest generation takes no more.
    is_sealed: bool,
    /// Names of smaller sequences are forgotten, or in runs.
    forgotten_before: Sequence,
}

impl OfTopic {
    fn iter(&self) -> impl Iterator<Item = &Name> {
        self.range(self.forgotten_before, Sequence::MAX)
    }

    fn range(&self, first: Sequence, last: Sequence) -> impl Iterator<Item = &Name> {
        let first = first.max(self.forgotten_before);
        let skip = self.generations.partition_point(|generation| generation.last().sequence < first);
        let names = self.generations.range(skip..).flat_map(move |generation| generation.from(first));
        names.take_while(move |name| name.sequence <= last)
    }

    /// Names that are not forgotten, of sequences from `first` on.
    fn count_from(&self, first: Sequence) -> usize {
        let first = first.max(self.forgotten_before);
        self.generations.iter().rev().map(|held| held.from(first).len()).take_while(|count| *count > 0).sum()
    }
}

/// All names of a shard.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Names in memory. Few topics, and gone through in one order.
    topics: BTreeMap<TopicId, OfTopic>,
    /// The others.
    pub(crate) runs: NamesRuns,
    pub(crate) statements: Statements,
    count: usize,
    memory_bytes: usize,
    /// In recovery, in the order of the log: names that were stated again come late, and some twice.
    recovered: Vec<(TopicId, Name)>,
}

impl Names {
    /// Names in memory.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Bytes of the names in memory, and of the indexes of runs.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.newest_memory_bytes() + self.runs.memory_bytes()
    }

    /// Bytes of the names in memory.
    pub(crate) fn newest_memory_bytes(&self) -> usize {
        self.memory_bytes + self.statements.memory_bytes()
    }

    /// Bytes of records that it takes to state all of them again.
    pub(crate) fn statements_size_bytes(&self) -> usize {
        self.count * NAME_SIZE_BYTES + self.statements.size_bytes() + self.runs.statements_size_bytes()
    }

    /// What a next run is to be made of, by ascending topic: everything in memory of the topics with about the same
    /// window that have most, so that a run's names pass at about one time. Names that come later are kept apart from it.
    pub(crate) fn seal(&mut self, window_ms: impl Fn(TopicId) -> u64) -> Vec<TopicNames> {
        let mut by_window: BTreeMap<u64, (usize, Vec<TopicNames>)> = BTreeMap::new();
        for (topic, held) in &self.topics {
            let Some(last) = held.generations.back().map(Generation::last) else { continue };
            let count = held.count_from(Sequence(0));
            let (all, topics) = by_window.entry(window_ms(*topic).next_power_of_two()).or_default();
            *all += count;
            let (topic, first) = (*topic, held.forgotten_before);
            let (last, accepted) = (last.sequence, last.accepted);
            topics.push(TopicNames { topic, count: count as u32, first, last, accepted });
        }
        let most = by_window.into_values().max_by_key(|(count, _)| *count);
        let topics = most.map(|(_, topics)| topics).unwrap_or_default();
        for held in &topics {
            self.topics.get_mut(&held.topic).expect("it has names").is_sealed = true;
        }
        topics
    }

    /// The name, where an event of this topic was accepted under it within the window, and it is in memory.
    pub(crate) fn find(&self, topic: TopicId, hash: NameHash, now: WallMs, window_ms: u64) -> Option<&Name> {
        let held = self.topics.get(&topic)?;
        let recent = held.generations.iter().rev();
        recent
            .take_while(|generation| generation.last().covers(now, window_ms))
            .find_map(|generation| generation.find(hash, |name| name.covers(now, window_ms)))
            .filter(|name| name.sequence >= held.forgotten_before)
    }

    /// An event was accepted under a name, later than all that are held of its topic.
    pub(crate) fn insert(&mut self, topic: TopicId, window_ms: u64, name: Name) {
        let held = self.topics.entry(topic).or_default();
        if name.sequence < held.forgotten_before {
            return;
        }
        let span_ms = (window_ms / SPANS_PER_WINDOW).max(SPAN_MS_MIN);
        let fits = held.generations.back().is_some_and(|newest| newest.takes(&name, span_ms));
        if !fits || held.is_sealed {
            held.is_sealed = false;
            let next = Generation::after(held.generations.back());
            self.memory_bytes += next.memory_bytes();
            held.generations.push_back(next);
        }
        let newest = held.generations.back_mut().expect("it was made where there was none");
        newest.push(name);
        self.memory_bytes += NAME_SIZE_BYTES;
        self.count += 1;
    }

    /// In recovery: a name as the log states it, perhaps not for the first time.
    pub(crate) fn recover(&mut self, topic: TopicId, name: Name) {
        self.recovered.push((topic, name));
    }

    /// Brings the recovered names into their order, once the log has been read.
    pub(crate) fn build(&mut self, window_ms: impl Fn(TopicId) -> u64) {
        let mut recovered = std::mem::take(&mut self.recovered);
        recovered.sort_unstable_by_key(|(topic, name)| (*topic, name.sequence));
        recovered.dedup_by_key(|(topic, name)| (*topic, name.sequence));
        for (topic, name) in recovered {
            self.insert(topic, window_ms(topic), name);
        }
        self.drop_dead_statements();
    }

    /// Of a topic the first sequence that is to be kept, where all names before it have passed out of the window and
    /// make up a generation.
    pub(crate) fn passed(&self, topic: TopicId, now: WallMs, window_ms: u64) -> Option<Sequence> {
        let generations = &self.topics.get(&topic)?.generations;
        let passed = generations.iter().take_while(|held| !held.last().covers(now, window_ms)).last()?;
        Some(Sequence(passed.last().sequence.0 + 1))
    }

    /// Topics of which there are names.
    pub(crate) fn topics(&self) -> impl Iterator<Item = TopicId> {
        self.topics.iter().filter(|(_, held)| !held.generations.is_empty()).map(|(topic, _)| *topic)
    }

    /// Names of a topic of sequences before this one are forgotten, or in a run from now on.
    pub(crate) fn forget(&mut self, topic: TopicId, before: Sequence) {
        let held = self.topics.entry(topic).or_default();
        if before <= held.forgotten_before {
            return;
        }
        self.count -= held.count_from(Sequence(0)) - held.count_from(before);
        held.forgotten_before = before;
        while held.generations.front().is_some_and(|oldest| oldest.last().sequence < before) {
            let gone = held.generations.pop_front().expect("it is there");
            self.memory_bytes -= gone.memory_bytes();
        }
        self.drop_dead_statements();
    }

    /// Names of a topic in a range of sequences, ascending.
    pub(crate) fn range(
        &self,
        topic: TopicId,
        first: Sequence,
        last: Sequence,
    ) -> impl Iterator<Item = &Name> {
        self.topics.get(&topic).into_iter().flat_map(move |held| held.range(first, last))
    }

    /// The oldest block that holds a name, or states a run.
    pub(crate) fn oldest_block(&self) -> Option<u64> {
        [self.statements.oldest_block(), self.runs.oldest_block()].into_iter().flatten().min()
    }

    /// The oldest statement is of names that are not all forgotten.
    pub(crate) fn drop_dead_statements(&mut self) {
        // What recovery has not put in its place yet may be among them.
        if !self.recovered.is_empty() {
            return;
        }
        let topics = &self.topics;
        self.statements.drop_oldest_while(|statement| {
            topics.get(&statement.topic).is_none_or(|held| statement.last < held.forgotten_before)
        });
    }

    /// All names in memory by topic and sequence, those that recovery has not put in their places yet included. Copies them: for
    /// tools and tests.
    pub(crate) fn sorted(&self) -> Vec<(TopicId, Name)> {
        let forgotten = |topic| self.topics.get(&topic).map_or(Sequence(0), |held| held.forgotten_before);
        let recovered =
            self.recovered.iter().copied().filter(|(topic, name)| name.sequence >= forgotten(*topic));
        let mut all: Vec<_> = self.iter().map(|(topic, name)| (topic, *name)).chain(recovered).collect();
        all.sort_unstable_by_key(|(topic, name)| (*topic, name.sequence));
        all.dedup_by_key(|(topic, name)| (*topic, name.sequence));
        all
    }

    /// Each name with its topic, by topic and sequence.
    fn iter(&self) -> impl Iterator<Item = (TopicId, &Name)> {
        self.topics.iter().flat_map(|(topic, held)| held.iter().map(|name| (*topic, name)))
    }

    /// Says whether every name is counted, and stated by exactly one record that is kept.
    pub(crate) fn audit(&self) -> Result<(), String> {
        self.runs.audit()?;
        let footers = self.runs.iter().filter_map(|(id, run)| Some((id, run.footer.as_ref()?)));
        for (id, held) in footers.flat_map(|(id, footer)| footer.topics.iter().map(move |held| (id, held))) {
            let both =
                self.topics.get(&held.topic).and_then(|topic| topic.range(Sequence(0), held.last).next());
            if both.is_some() {
                let TopicId(topic) = held.topic;
                return Err(format!("names of topic {topic} are in run {id} and in memory as well"));
            }
        }
        let counted = self.iter().count();
        if counted != self.count {
            return Err(format!("{counted} names of events are held, and {} counted", self.count));
        }
        let stated: usize =
            self.statements.iter().map(|s| self.range(s.topic, s.first, s.last).count()).sum();
        if stated != counted {
            return Err(format!("each of {counted} names of events is in one block, which makes {stated}"));
        }
        Ok(())
    }
}
