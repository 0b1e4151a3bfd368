//! What the log says of a shard's runs, and what their files do: for the commands that look into a data directory.
//!
//! It takes records as they come and believes each, so that it has an answer for a log that cannot be replayed, too.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;

use escapement_engine::far::format::{RunBlock, RunFooter};
use escapement_engine::far::{RunDamage, RunFiles, RunId};
use escapement_engine::names::Name;
use escapement_engine::names::format::{BLOCK_SIZE_BYTES as NAMES_BLOCK_SIZE_BYTES, NamesBlock, NamesFooter};
use escapement_engine::record::Record;
use escapement_protocol::{Sequence, ShardId, WallMs};

/// A due time and a sequence: what orders a run's events.
pub(super) type Key = (WallMs, Sequence);

/// What a `Moved` record says.
#[derive(Clone, Debug)]
pub(super) struct Move {
    pub(super) blocks: Range<u32>,
    /// Events that left the log for them.
    pub(super) count: u64,
}

/// What the log says of one run.
#[derive(Debug, Default)]
pub(super) struct LoggedRun {
    /// Blocks whose events have left the log for it, from the first on.
    pub(super) moved: u32,
    /// Blocks whose events are in the log again, from the first on.
    pub(super) loaded: u32,
    pub(super) closed: bool,
    /// Bytes of its file, where a record states them.
    pub(super) size_bytes: Option<u64>,
    /// Cancelled in it, or rescheduled out of it.
    pub(super) cancelled: BTreeSet<Key>,
    pub(super) moves: Vec<Move>,
    /// Blocks that replaying the log reads.
    pub(super) replayed: Vec<Range<u32>>,
}

impl LoggedRun {
    /// Whether an event that is pending may be in its file and nowhere else.
    pub(super) fn holds_events(&self) -> bool {
        self.loaded < self.moved
    }

    /// Whether a start reads its file.
    pub(super) fn is_needed(&self) -> bool {
        self.holds_events() || !self.replayed.is_empty()
    }

    pub(super) fn is_replayed(&self, block: u32) -> bool {
        self.replayed.iter().any(|blocks| blocks.contains(&block))
    }

    /// Cancelled events between the first keys of two blocks.
    pub(super) fn cancelled_in(&self, index: &RunFooter, blocks: Range<u32>) -> u64 {
        let first = |block: u32| index.index.get(block as usize).map(|place| place.first);
        let Some(from) = first(blocks.start) else { return 0 };
        let until = first(blocks.end);
        self.cancelled.range(from..).take_while(|key| until.is_none_or(|until| **key < until)).count() as u64
    }

    /// Events that are in its file and nowhere else.
    pub(super) fn pending(&self, footer: &RunFooter) -> u64 {
        let blocks = self.loaded..self.moved;
        count_in(footer, blocks.clone()).saturating_sub(self.cancelled_in(footer, blocks))
    }
}

/// What the log says of one run of names.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LoggedNames {
    /// Of its footer.
    pub(super) footer_id: u64,
    /// Whether all windows have passed, so that its file may have gone.
    pub(super) is_ended: bool,
}

/// What the log says of a shard's runs.
#[derive(Debug, Default)]
pub(super) struct LoggedRuns {
    /// Those of far-future events.
    pub(super) events: BTreeMap<RunId, LoggedRun>,
    /// Those of names.
    pub(super) names: BTreeMap<RunId, LoggedNames>,
}

impl LoggedRuns {
    /// Takes in the next record of the log.
    pub(super) fn take(&mut self, record: &Record<'_>) {
        match record {
            Record::Run(statement) => {
                let held = self.events.entry(statement.run).or_default();
                held.moved = held.moved.max(statement.moved);
                held.loaded = held.loaded.max(statement.loaded);
                held.closed |= statement.closed;
                held.size_bytes = Some(statement.size_bytes);
            }
            Record::Moved { run, first_block, block_count, sequences } => {
                let blocks = *first_block..first_block.saturating_add(*block_count);
                let held = self.events.entry(*run).or_default();
                held.moved = held.moved.max(blocks.end);
                held.moves.push(Move { blocks, count: sequences.count() as u64 });
            }
            Record::Loaded { run, first_block, block_count } => {
                let blocks = *first_block..first_block.saturating_add(*block_count);
                let held = self.events.entry(*run).or_default();
                held.loaded = held.loaded.max(blocks.end);
                held.replayed.push(blocks);
            }
            Record::CancelledInRun { run, events } => {
                self.events.entry(*run).or_default().cancelled.extend(events.iter());
            }
            Record::CancelledInRunOfGroup { run, key, .. } => {
                self.events.entry(*run).or_default().cancelled.insert(*key);
            }
            Record::RescheduledInRun { run, was_due, sequence, .. } => {
                self.events.entry(*run).or_default().cancelled.insert((*was_due, *sequence));
            }
            Record::NamesRun { run, footer_id } => {
                self.names.insert(*run, LoggedNames { footer_id: *footer_id, is_ended: false });
            }
            Record::NamesRunEnded { run } => {
                if let Some(held) = self.names.get_mut(run) {
                    held.is_ended = true;
                }
            }
            Record::Published { .. }
            | Record::Relocated { .. }
            | Record::Rescheduled { .. }
            | Record::Completed { .. }
            | Record::AttemptFailed { .. }
            | Record::Topic { .. }
            | Record::Subscription { .. }
            | Record::Names { .. }
            | Record::NamesForgotten { .. }
            | Record::Group(_)
            | Record::GroupLeft { .. }
            | Record::Mark { .. } => {}
        }
    }
}

/// What is wrong with the file of a run of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NamesFault {
    /// Number and offset of the block, where it is one.
    pub(super) block: Option<(u32, u64)>,
    pub(super) what: String,
}

/// Reads the file of a run of names whole: its footer, and every fault.
///
/// # Errors
/// Of the operating system.
pub(super) fn check_names(
    files: &mut dyn RunFiles,
    shard: ShardId,
    run: RunId,
    logged: LoggedNames,
) -> io::Result<(Option<NamesFooter>, Vec<NamesFault>)> {
    let whole = |what: &str| vec![NamesFault { block: None, what: what.to_owned() }];
    let Some(size_bytes) = files.size(run)? else { return Ok((None, whole("it is missing"))) };
    let footer = NamesFooter::read(size_bytes, shard, run, |offset, len| files.read(run, offset, len))?;
    let Ok(footer) = footer else {
        return Ok((None, whole("its footer is damaged, which says where its names are")));
    };
    if footer.id != logged.footer_id {
        return Ok((None, whole("it is another run's file than the one that the log speaks of")));
    }
    let mut faults = Vec::new();
    let mut last = None;
    for number in 0..footer.block_count() {
        let offset = u64::from(number) * NAMES_BLOCK_SIZE_BYTES as u64;
        let mut tell =
            |what: &str| faults.push(NamesFault { block: Some((number, offset)), what: what.to_owned() });
        let bytes = files.read(run, offset, NAMES_BLOCK_SIZE_BYTES)?;
        let Ok(block) = NamesBlock::parse(&bytes, (shard, run), number, &footer.index) else {
            tell("it is not what was written there");
            continue;
        };
        let is_sorted = block.names().all(|name| last.replace(name.hash) <= Some(name.hash));
        let is_of =
            |name: &Name| footer.topics.iter().any(|held| (held.first..=held.last).contains(&name.sequence));
        if !is_sorted {
            tell("its names do not come in order");
        }
        if !block.names().all(|name| is_of(&name)) {
            tell("it holds sequences that the footer says are not here");
        }
    }
    Ok((Some(footer), faults))
}

/// Events of these blocks, by the index.
pub(super) fn count_in(footer: &RunFooter, blocks: Range<u32>) -> u64 {
    let places = footer.index.get(blocks.start as usize..blocks.end as usize).unwrap_or_default();
    places.iter().map(|place| u64::from(place.count)).sum()
}

/// The footer of a run whose file has that size.
///
/// # Errors
/// Of the operating system, and within that what is wrong with it.
pub(super) fn footer_of(
    files: &mut dyn RunFiles,
    shard: ShardId,
    run: RunId,
    size_bytes: u64,
) -> io::Result<Result<RunFooter, RunDamage>> {
    RunFooter::read(size_bytes, shard, run, |offset, len| files.read(run, offset, len))
}

/// The due time of a run's last event; `None` where its block cannot be read.
pub(super) fn last_due(
    files: &mut dyn RunFiles,
    shard: ShardId,
    run: RunId,
    footer: &RunFooter,
) -> Option<WallMs> {
    let place = footer.index.last()?;
    let bytes = files.read(run, place.offset, place.size_bytes as usize).ok()?;
    let block = RunBlock::parse(&bytes, shard, run, footer.index.len() as u32 - 1).ok()?;
    block.entries().last().map(|entry| entry.key.0)
}
