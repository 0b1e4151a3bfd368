//! What is known of a shard's runs: how far each was moved and loaded, and what ended in it.

use std::collections::BTreeMap;
use std::ops::Range;

use escapement_protocol::{EventId, Sequence, ShardId, TopicId, WallMs};
use hashbrown::HashMap;

use super::format::RunFooter;
use super::{RunDamage, RunError, RunFiles, RunId};
use crate::record::{CANCELLED_SIZE_BYTES, RunStatement};

/// What orders events: due time, then sequence.
pub(crate) type Key = (WallMs, Sequence);

const KEY_MAX: Key = (WallMs(u64::MAX), Sequence(u64::MAX));

/// Memory of one ended event: the nodes of a tree are about two thirds full.
const ENDED_SIZE_BYTES: usize = size_of::<(Key, TopicId)>() * 3 / 2;

/// Bytes of what is said of a run, without what ended in it.
const STATEMENT_SIZE_BYTES: usize = 64;

/// How far a run is from being forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Closing {
    #[default]
    Open,
    /// Loaded whole, and the record that says so is on its way to the disk.
    Stated,
    /// Loaded whole: the file goes once recovery can't ask for it any more.
    Closed,
}

/// What is ahead of a place among the blocks of runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ahead {
    /// This block may have what is looked for.
    Block(u32),
    /// No block has, of those that are there by now.
    Nothing,
    /// So many were looked at that the rest has to wait.
    Unknown,
}

/// One run.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// `None` only while recovery has not met its file, or where the file has gone.
    pub(crate) footer: Option<RunFooter>,
    /// Blocks whose events have left the log for it, from the first on.
    pub(crate) moved: u32,
    /// Blocks whose events are in memory again, from the first on.
    pub(crate) loaded: u32,
    /// Events that ended while they were here.
    pub(crate) ended: BTreeMap<Key, TopicId>,
    /// Events in its file.
    count: u64,
    /// Of these, such in blocks that are moved and not loaded.
    ahead: u64,
    /// And of these, such that ended.
    ended_ahead: usize,
    pub(crate) size_bytes: u64,
    /// What the log says of it is in this block and later ones; `None` until it says so.
    pub(crate) block: Option<u64>,
    /// The newest block of the log that says that a part of it was loaded.
    pub(crate) last_loaded_block: u64,
    pub(crate) closing: Closing,
    /// A statement of it is on its way to the disk.
    pub(crate) is_stating: bool,
}

impl Run {
    /// The first key of a block; past the last one, a key above all.
    fn first_of(&self, block: u32) -> Key {
        let index = self.footer.as_ref().map_or(&[][..], |footer| &footer.index);
        index.get(block as usize).map_or(KEY_MAX, |place| place.first)
    }

    /// What is ahead of the block `from`, among those that are moved and not loaded, of a topic's events with such due times.
    /// Each block takes a look; `from` goes on to what was found, or to where the next look begins.
    pub(crate) fn block_ahead(
        &self,
        from: &mut u32,
        topic: TopicId,
        due: &Range<WallMs>,
        looks: &mut usize,
    ) -> Ahead {
        let Some(footer) = &self.footer else { return Ahead::Nothing };
        let before = footer.index.partition_point(|place| place.first.0 < due.start);
        // Those before the last that begins too early end too early, too.
        let first = u32::try_from(before.saturating_sub(1)).unwrap_or(u32::MAX);
        *from = (*from).max(first).max(self.loaded);
        while *from < self.moved {
            if *looks == 0 {
                return Ahead::Unknown;
            }
            *looks -= 1;
            if footer.index[*from as usize].first.0 >= due.end {
                break;
            }
            if footer.topics.count(*from, topic) > 0 {
                return Ahead::Block(*from);
            }
            *from += 1;
        }
        *from = self.moved;
        Ahead::Nothing
    }

    /// Blocks that are moved, not loaded, and begin by `last`.
    pub(crate) fn blocks_by(&self, last: WallMs) -> Range<u32> {
        let index = self.footer.as_ref().map_or(&[][..], |footer| &footer.index);
        let end = index.partition_point(|place| place.first.0 <= last) as u32;
        self.loaded..end.min(self.moved).max(self.loaded)
    }

    /// Events in blocks that are moved and not loaded, those that ended included.
    pub(crate) fn count_ahead(&self) -> u64 {
        self.ahead
    }

    /// Of these, those that ended.
    pub(crate) fn ended_ahead(&self) -> usize {
        self.ended_ahead
    }

    /// Those that ended of these blocks.
    pub(crate) fn ended_in_blocks(&self, blocks: Range<u32>) -> impl Iterator<Item = (&Key, &TopicId)> {
        self.ended.range(self.first_of(blocks.start)..self.first_of(blocks.end))
    }

    fn ended_in(&self, blocks: Range<u32>) -> usize {
        if self.ended.is_empty() || blocks.is_empty() {
            return 0;
        }
        self.ended.range(self.first_of(blocks.start)..self.first_of(blocks.end)).count()
    }

    fn count_in(&self, blocks: Range<u32>) -> u64 {
        let index = self.footer.as_ref().map_or(&[][..], |footer| &footer.index);
        let places = index.get(blocks.start as usize..blocks.end as usize).unwrap_or_default();
        places.iter().map(|place| u64::from(place.count)).sum()
    }

    fn memory_bytes(&self) -> usize {
        self.footer.as_ref().map_or(0, RunFooter::memory_bytes) + self.ended.len() * ENDED_SIZE_BYTES
    }

    /// Tells `add` how many events of which topics are pending in blocks, and takes those away that ended.
    fn topics_in(&self, blocks: Range<u32>, mut add: impl FnMut(TopicId, i64)) {
        let Some(footer) = &self.footer else { return };
        for block in blocks.clone() {
            footer.topics.of(block).iter().for_each(|(topic, count)| add(*topic, i64::from(*count)));
        }
        if !self.ended.is_empty() && !blocks.is_empty() {
            let ended = self.ended.range(self.first_of(blocks.start)..self.first_of(blocks.end));
            ended.for_each(|(_, topic)| add(*topic, -1));
        }
    }

    /// Pending events that are here and nowhere else.
    pub(crate) fn pending(&self) -> u64 {
        self.ahead - self.ended_ahead as u64
    }

    /// Of these, those in blocks from `block` on.
    pub(crate) fn pending_from(&self, block: u32) -> u64 {
        let blocks = block.max(self.loaded)..self.moved.max(block).max(self.loaded);
        self.count_in(blocks.clone()) - self.ended_in(blocks) as u64
    }

    /// Those of a topic in blocks that were moved, where they are not loaded.
    pub(crate) fn pending_of(&self, topic: TopicId, blocks: Range<u32>) -> u64 {
        let Some(footer) = &self.footer else { return 0 };
        let blocks = blocks.start.max(self.loaded)..blocks.end.max(self.loaded);
        let count: u64 = blocks.clone().map(|block| u64::from(footer.topics.count(block, topic))).sum();
        let ended = self.ended_in_blocks(blocks).filter(|(_, of)| **of == topic).count();
        count.saturating_sub(ended as u64)
    }

    /// Whether more than half of its events have gone, so that most of its file is kept for nothing.
    pub(crate) fn is_sparse(&self) -> bool {
        let Some(footer) = &self.footer else { return false };
        let is_whole = self.moved as usize == footer.index.len();
        let is_open = self.closing == Closing::Open && self.loaded < self.moved;
        is_open && is_whole && 2 * self.pending() < self.count
    }

    /// When its last block begins, about the end of its file's life.
    pub(crate) fn last_due(&self) -> Option<WallMs> {
        self.footer.as_ref()?.index.last().map(|place| place.first.0)
    }

    /// The block that holds `key`, if it is here at all, and neither loaded nor still to be moved.
    pub(crate) fn block_of(&self, key: Key) -> Option<u32> {
        let footer = self.footer.as_ref()?;
        if key.1 < footer.sequences.0 || key.1 > footer.sequences.1 {
            return None;
        }
        let behind = footer.index.partition_point(|place| place.first <= key);
        let block = u32::try_from(behind.checked_sub(1)?).expect("blocks are counted in 32 bits");
        (self.loaded..self.moved).contains(&block).then_some(block)
    }

    /// How often an event that came here had been rescheduled before.
    pub(crate) fn version_of(&self, sequence: Sequence) -> u64 {
        let forwarded = self.footer.as_ref().and_then(|footer| footer.forwarded(sequence));
        forwarded.map_or(0, |forwarded| forwarded.forward.version)
    }

    /// The key that an event has here, and the block that holds it, if it is here and nowhere else.
    pub(crate) fn place_of(&self, event: EventId) -> Option<(Key, u32)> {
        let forwarded = self.footer.as_ref()?.forwarded(event.sequence);
        let schedule_time = WallMs(event.schedule_time_ms);
        // One that was never rescheduled is due when its id says: it was far ahead when it was accepted.
        let due = forwarded.map_or(schedule_time, |forwarded| forwarded.due);
        let is_named = forwarded.is_none_or(|forwarded| forwarded.forward.schedule_time == schedule_time);
        let key = (due, event.sequence);
        if !is_named || self.ended.contains_key(&key) {
            return None;
        }
        Some((key, self.block_of(key)?))
    }

    /// Ended events in blocks that are not loaded: what a crash must not change.
    pub(crate) fn ended_not_loaded(&self) -> impl Iterator<Item = (&Key, &TopicId)> {
        self.ended.range(self.first_of(self.loaded)..)
    }
}

/// A shard's runs.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    runs: BTreeMap<RunId, Run>,
    pending: u64,
    /// Of these, those of each topic.
    topics: HashMap<TopicId, i64>,
    memory_bytes: usize,
    ended_count: usize,
    /// Recovery has ended: it meets what the log says of a run in pieces, so that counts would be wrong on the way.
    is_counting: bool,
}

impl Runs {
    pub(crate) fn get(&self, run: RunId) -> Option<&Run> {
        self.runs.get(&run)
    }

    pub(crate) fn get_mut(&mut self, run: RunId) -> Option<&mut Run> {
        self.runs.get_mut(&run)
    }

    /// The run of that number; as one that nothing is known of where there is none.
    pub(crate) fn entry(&mut self, run: RunId) -> &mut Run {
        self.runs.entry(run).or_default()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (RunId, &Run)> {
        self.runs.iter().map(|(id, run)| (*id, run))
    }

    /// The first run of this number or a higher one.
    pub(crate) fn first_from(&self, run: RunId) -> Option<(RunId, &Run)> {
        self.runs.range(run..).next().map(|(id, run)| (*id, run))
    }

    pub(crate) fn remove(&mut self, run: RunId) {
        if let Some(run) = self.runs.remove(&run) {
            self.memory_bytes -= run.memory_bytes();
            self.ended_count -= run.ended.len();
        }
    }

    /// A run's footer is known.
    pub(crate) fn set_footer(&mut self, run: RunId, footer: RunFooter) {
        self.memory_bytes += footer.memory_bytes();
        let run = self.runs.entry(run).or_default();
        run.count = footer.index.iter().map(|place| u64::from(place.count)).sum();
        run.footer = Some(footer);
    }

    /// The highest number in use, 0 where there is none.
    pub(crate) fn last(&self) -> RunId {
        self.runs.last_key_value().map_or(RunId(0), |(id, _)| *id)
    }

    /// About how many events that were not loaded are due before `now`: those of a block that begins before count as one.
    pub(crate) fn due_count(&self, now: WallMs) -> u64 {
        let unread = self.runs.values().filter_map(|run| {
            let index = &run.footer.as_ref()?.index;
            index.get(run.loaded as usize..run.moved as usize)
        });
        let due = unread.flat_map(|index| index.iter().take_while(|place| place.first.0 < now));
        due.map(|place| u64::from(place.count)).sum()
    }

    /// Pending events in runs.
    pub(crate) fn pending(&self) -> u64 {
        self.pending
    }

    /// Pending events of a topic in runs.
    pub(crate) fn pending_of(&self, topic: TopicId) -> u64 {
        self.topics.get(&topic).map_or(0, |count| u64::try_from(*count).unwrap_or(0))
    }

    /// Bytes of indexes, and of what ended.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.memory_bytes + self.runs.len() * size_of::<Run>()
    }

    /// Bytes of the records that say again what the log says of runs.
    pub(crate) fn statements_size_bytes(&self) -> usize {
        self.ended_count * CANCELLED_SIZE_BYTES + self.runs.len() * STATEMENT_SIZE_BYTES
    }

    /// Bytes of the files.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.runs.values().map(|run| run.size_bytes).sum()
    }

    /// The oldest block of the log that says something of a run that is needed.
    pub(crate) fn oldest_block(&self) -> Option<u64> {
        let open = self.runs.values().filter(|run| run.closing != Closing::Closed);
        open.filter_map(|run| run.block).min()
    }

    /// The events of blocks up to `end` have left the log.
    pub(crate) fn moved(&mut self, run: RunId, end: u32) {
        let run = self.runs.entry(run).or_default();
        let blocks = run.moved..end.max(run.moved);
        run.moved = blocks.end;
        if !self.is_counting {
            return;
        }
        let (count, ended) = (run.count_in(blocks.clone()), run.ended_in(blocks.clone()));
        run.ahead += count;
        run.ended_ahead += ended;
        self.pending += count - ended as u64;
        run.topics_in(blocks, |topic, count| *self.topics.entry(topic).or_default() += count);
    }

    /// The events of blocks up to `end` are in memory again; the block of the log that says so.
    pub(crate) fn loaded(&mut self, run: RunId, end: u32, block: u64) {
        let run = self.runs.entry(run).or_default();
        run.last_loaded_block = block;
        let blocks = run.loaded..end.max(run.loaded);
        run.loaded = blocks.end;
        if !self.is_counting {
            return;
        }
        let (count, ended) = (run.count_in(blocks.clone()), run.ended_in(blocks.clone()));
        run.ahead -= count;
        run.ended_ahead -= ended;
        self.pending -= count - ended as u64;
        run.topics_in(blocks, |topic, count| *self.topics.entry(topic).or_default() -= count);
    }

    /// An event has ended here. False where that was known.
    pub(crate) fn ended(&mut self, run: RunId, key: Key, topic: TopicId) -> bool {
        let run = self.runs.entry(run).or_default();
        let is_new = run.ended.insert(key, topic).is_none();
        if is_new {
            self.memory_bytes += ENDED_SIZE_BYTES;
            self.ended_count += 1;
        }
        if is_new && self.is_counting && key >= run.first_of(run.loaded) && key < run.first_of(run.moved) {
            run.ended_ahead += 1;
            self.pending -= 1;
            *self.topics.entry(topic).or_default() -= 1;
        }
        is_new
    }

    /// Takes in what the log states of a run.
    pub(crate) fn state(&mut self, stated: &RunStatement) {
        let run = self.runs.entry(stated.run).or_default();
        run.moved = run.moved.max(stated.moved);
        run.loaded = run.loaded.max(stated.loaded);
        run.size_bytes = stated.size_bytes;
        run.block = Some(stated.as_of + 1);
        run.is_stating = false;
        if stated.closed {
            run.closing = Closing::Closed;
        }
    }

    /// Whether the file of every run that is needed is there, and large enough for what the log says of it.
    ///
    /// # Errors
    /// [`RunError::Missing`], [`RunError::Damaged`].
    pub(crate) fn check_files(&self) -> Result<(), RunError> {
        for (id, run) in self.runs.iter().filter(|(_, run)| run.closing != Closing::Closed) {
            match &run.footer {
                Some(footer) if footer.index.len() < run.moved as usize => {
                    return Err(RunError::Damaged(*id, RunDamage::Footer));
                }
                Some(_) if run.block.is_some() => {}
                None if run.block.is_some() && run.loaded == run.moved => {}
                _ => return Err(RunError::Missing(*id)),
            }
        }
        Ok(())
    }

    /// Recovery has ended: counts everything, and goes on from there.
    pub(crate) fn count(&mut self) {
        self.is_counting = true;
        self.pending = 0;
        self.topics = self.count_topics();
        for run in self.runs.values_mut() {
            run.ahead = run.count_in(run.loaded..run.moved);
            run.ended_ahead = run.ended_in(run.loaded..run.moved);
            self.pending += run.pending();
        }
    }

    fn count_topics(&self) -> HashMap<TopicId, i64> {
        let mut topics = HashMap::new();
        for run in self.runs.values() {
            run.topics_in(run.loaded..run.moved, |topic, count| *topics.entry(topic).or_default() += count);
        }
        topics
    }

    /// Says whether what always holds does.
    ///
    /// # Errors
    /// What does not.
    pub(crate) fn audit(&self) -> Result<(), String> {
        let mut pending = 0;
        for (id, run) in &self.runs {
            let Run { moved, loaded, ahead, ended_ahead, .. } = run;
            if loaded > moved || (run.closing == Closing::Closed && loaded != moved) {
                return Err(format!("of run {id}, {moved} blocks were moved and {loaded} loaded"));
            }
            let (count, ended) = (run.count_in(*loaded..*moved), run.ended_in(*loaded..*moved));
            if count != *ahead {
                return Err(format!("in run {id}, {count} events are to be loaded, and {ahead} are counted"));
            }
            if ended != *ended_ahead {
                return Err(format!("in run {id}, {ended} events ended, and {ended_ahead} are counted"));
            }
            pending += run.pending();
        }
        let mut topics = self.count_topics();
        if let Some((TopicId(topic), count)) = topics.iter().find(|(_, count)| **count < 0) {
            return Err(format!("more events of topic {topic} ended in runs than there are, by {}", -count));
        }
        topics.retain(|_, count| *count > 0);
        let mut counted = self.topics.clone();
        counted.retain(|_, count| *count != 0);
        if topics != counted {
            return Err(format!("in runs are by topic {topics:?} events, and {counted:?} are counted"));
        }
        if pending != self.pending {
            return Err(format!("{pending} events are pending in runs, and {} are counted", self.pending));
        }
        Ok(())
    }
}

/// Reads the footer of a run, where its file is there.
///
/// # Errors
/// [`RunError::Io`], [`RunError::Damaged`].
pub(crate) fn read_footer(
    shard: ShardId,
    run: RunId,
    files: &mut dyn RunFiles,
) -> Result<Option<RunFooter>, RunError> {
    let io = |error| RunError::Io(run, error);
    let Some(size) = files.size(run).map_err(io)? else { return Ok(None) };
    let footer = RunFooter::read(size, shard, run, |offset, len| files.read(run, offset, len)).map_err(io)?;
    footer.map(Some).map_err(|damage| RunError::Damaged(run, damage))
}
