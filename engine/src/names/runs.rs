//! Runs of names: those that are no longer in memory.

use std::collections::BTreeMap;

use escapement_protocol::{ShardId, TopicId, WallMs};

use super::NameHash;
use super::format::{BLOCK_COUNT_MAX, NamesFooter};
use crate::far::{RunDamage, RunError, RunFiles, RunId};
use crate::record::{HEADER_SIZE_BYTES, NAMES_RUN_FIXED_SIZE_BYTES};

/// Above every run.
const RUN_MAX: RunId = RunId(u32::MAX);

/// One run.
#[derive(Debug)]
pub(crate) struct NamesRun {
    /// `None` only in recovery, where the file is not there or not what was written.
    pub(crate) footer: Option<NamesFooter>,
    /// As the log states it.
    pub(crate) footer_id: u64,
    /// Why there is no footer.
    fault: Option<RunError>,
    /// The newest block of the log that states it.
    pub(crate) block: u64,
    /// A statement of it is on its way to the disk.
    pub(crate) is_stating: bool,
    /// That its windows have passed is on its way to the disk.
    pub(crate) is_ending: bool,
    /// All windows have passed: the file goes once recovery can't ask for it any more.
    pub(crate) is_ended: bool,
}

/// Where in a run a name can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NamePlace {
    pub(crate) run: RunId,
    pub(crate) block: u32,
}

/// A shard's runs of names, by number: a later one holds later names of each topic.
#[derive(Debug, Default)]
pub(crate) struct NamesRuns {
    runs: BTreeMap<RunId, NamesRun>,
    count: usize,
    memory_bytes: usize,
}

impl NamesRuns {
    pub(crate) fn get(&self, run: RunId) -> Option<&NamesRun> {
        self.runs.get(&run)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (RunId, &NamesRun)> {
        self.runs.iter().map(|(id, run)| (*id, run))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (RunId, &mut NamesRun)> {
        self.runs.iter_mut().map(|(id, run)| (*id, run))
    }

    /// The highest number in use, 0 where there is none.
    pub(crate) fn last(&self) -> RunId {
        self.runs.last_key_value().map_or(RunId(0), |(id, _)| *id)
    }

    /// Names in runs whose windows have not passed.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.memory_bytes + self.runs.len() * size_of::<NamesRun>()
    }

    /// Bytes of the records that state them again.
    pub(crate) fn statements_size_bytes(&self) -> usize {
        self.runs.len() * (HEADER_SIZE_BYTES + NAMES_RUN_FIXED_SIZE_BYTES)
    }

    /// The oldest block of the log that is needed to know of them.
    pub(crate) fn oldest_block(&self) -> Option<u64> {
        self.runs.values().filter(|run| !run.is_ended).map(|run| run.block).min()
    }

    /// A run is stated in a block of the log, for the first time or again.
    pub(crate) fn state(
        &mut self,
        id: RunId,
        block: u64,
        footer_id: u64,
        footer: Result<NamesFooter, RunError>,
    ) {
        let (footer, fault) = match footer {
            Ok(footer) => (Some(footer), None),
            Err(fault) => (None, Some(fault)),
        };
        self.count += footer.as_ref().map_or(0, |footer| footer.index.len());
        self.memory_bytes += footer.as_ref().map_or(0, NamesFooter::memory_bytes);
        let run = NamesRun {
            footer,
            footer_id,
            fault,
            block,
            is_stating: false,
            is_ending: false,
            is_ended: false,
        };
        let before = self.runs.insert(id, run);
        assert!(before.is_none(), "a run is made once");
    }

    pub(crate) fn state_again(&mut self, id: RunId, block: u64) {
        if let Some(run) = self.runs.get_mut(&id) {
            run.block = block;
            run.is_stating = false;
        }
    }

    /// All windows of a run's names have passed. Nothing where the log no longer states the run.
    pub(crate) fn end(&mut self, id: RunId) {
        let Some(run) = self.runs.get_mut(&id).filter(|run| !run.is_ended) else { return };
        run.is_ended = true;
        self.count -= run.footer.as_ref().map_or(0, |footer| footer.index.len());
        self.memory_bytes -= run.footer.take().map_or(0, |footer| footer.memory_bytes());
    }

    /// Takes out the runs that ended and that no block after `through` states.
    pub(crate) fn take_unstated(&mut self, through: u64) -> Vec<RunId> {
        let is_unstated = |_: &RunId, run: &mut NamesRun| run.is_ended && run.block <= through;
        self.runs.extract_if(.., is_unstated).map(|(id, _)| id).collect()
    }

    /// Where a name can be that was accepted within the window, in the newest run after one.
    pub(crate) fn place_after(
        &self,
        name: (TopicId, NameHash),
        after: RunId,
        is_within: impl Fn(WallMs) -> bool,
    ) -> Option<NamePlace> {
        self.place_between(name, (after, RUN_MAX), is_within)
    }

    /// As [`NamesRuns::place_after`], in runs before another.
    pub(crate) fn place_between(
        &self,
        (topic, hash): (TopicId, NameHash),
        (after, before): (RunId, RunId),
        is_within: impl Fn(WallMs) -> bool,
    ) -> Option<NamePlace> {
        let newest_first = self.runs.range(..before).rev().take_while(|(id, _)| **id > after);
        for (id, run) in newest_first {
            let Some(footer) = &run.footer else { continue };
            if !footer.topic(topic).is_some_and(|held| is_within(held.accepted)) {
                continue;
            }
            let places = footer.index.places(hash);
            if !places.is_empty() {
                return Some(NamePlace { run: *id, block: (places.start / BLOCK_COUNT_MAX) as u32 });
            }
        }
        None
    }

    /// Why a run that is needed can't be used.
    pub(crate) fn take_fault(&mut self) -> Option<RunError> {
        self.runs.values_mut().filter(|run| !run.is_ended).find_map(|run| run.fault.take())
    }

    /// Says whether what always holds does.
    pub(crate) fn audit(&self) -> Result<(), String> {
        let footers = || self.runs.values().filter_map(|run| run.footer.as_ref());
        let count: usize = footers().map(|footer| footer.index.len()).sum();
        let memory_bytes: usize = footers().map(NamesFooter::memory_bytes).sum();
        if (count, memory_bytes) != (self.count, self.memory_bytes) {
            return Err(format!(
                "runs have {count} names in {memory_bytes} bytes, and {} in {} are counted",
                self.count, self.memory_bytes
            ));
        }
        Ok(())
    }
}

/// Reads the footer of a run of names that the log states by this id.
///
/// # Errors
/// [`RunError`].
pub(crate) fn read_footer(
    shard: ShardId,
    run: RunId,
    footer_id: u64,
    files: &mut dyn RunFiles,
) -> Result<NamesFooter, RunError> {
    let io = |error| RunError::Io(run, error);
    let size = files.size(run).map_err(io)?.ok_or(RunError::Missing(run))?;
    let footer =
        NamesFooter::read(size, shard, run, |offset, len| files.read(run, offset, len)).map_err(io)?;
    let footer = footer.map_err(|damage| RunError::Damaged(run, damage))?;
    if footer.id == footer_id { Ok(footer) } else { Err(RunError::Damaged(run, RunDamage::Footer)) }
}
