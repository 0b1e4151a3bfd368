//! One run: its file, block for block, and whether it is what the log says of it.

use std::collections::BTreeMap;
use std::ops::Range;

use escapement_engine::Shard;
use escapement_engine::far::format::{ALIGN, BlockPlace, RunBlock, RunFooter};
use escapement_engine::far::{RunFiles, RunId};
use escapement_protocol::{ShardId, TopicId};
use escapement_wal::FileId;

use super::Finding;
use crate::cli::runs::{Key, LoggedRun, count_in, footer_of};

/// Bytes of the trailer, at the end of the footer.
const TRAILER_SIZE_BYTES: usize = 64;

/// What is needed to check a run.
pub(super) struct RunCheck<'a> {
    pub(super) shard: ShardId,
    pub(super) run: RunId,
    pub(super) logged: &'a LoggedRun,
    /// What replaying the log has come to, where it came to its end.
    pub(super) replayed: Option<&'a Shard>,
    pub(super) files: &'a mut dyn RunFiles,
    pub(super) findings: &'a mut Vec<Finding>,
}

/// What the blocks come to.
#[derive(Default)]
struct Seen {
    last: Option<Key>,
    cancelled: u64,
    /// Blocks whose events could not be read.
    unread: u32,
}

impl RunCheck<'_> {
    /// Checks everything, and answers how many bytes were read and, where its blocks can be found, how many pending
    /// events are in the file and nowhere else.
    pub(super) fn check(&mut self, size_bytes: u64) -> (u64, Option<u64>) {
        if let Some(stated) = self.logged.size_bytes.filter(|stated| *stated != size_bytes) {
            self.damaged(
                None,
                format!("it has {size_bytes} bytes, and the log says {stated}: {}", self.loss()),
            );
            return (0, None);
        }
        let footer = match footer_of(self.files, self.shard, self.run, size_bytes) {
            Err(error) => {
                self.damaged(None, format!("it can't be read: {error}"));
                return (0, None);
            }
            Ok(Err(_)) => {
                let what = "its footer is damaged, which says where its blocks are";
                self.damaged(
                    Some(size_bytes - size_bytes.min(ALIGN as u64)),
                    format!("{what}: {}", self.loss()),
                );
                return (0, None);
            }
            Ok(Ok(footer)) => footer,
        };
        if let Some(fault) = index_fault(&footer, size_bytes) {
            self.damaged(None, format!("{fault}: {}", self.loss()));
            return (0, None);
        }
        if self.logged.moved as usize > footer.index.len() {
            let (moved, blocks) = (self.logged.moved, footer.index.len());
            self.damaged(
                None,
                format!("it has {blocks} blocks, and the log says that {moved} count: {}", self.loss()),
            );
            return (0, None);
        }
        let mut seen = Seen::default();
        for (number, place) in footer.index.iter().enumerate() {
            self.check_block(number as u32, *place, &footer, &mut seen);
        }
        self.check_footer_zeros(&footer, size_bytes);
        if seen.unread == 0 {
            self.check_log(&footer, &seen);
        }
        (size_bytes, Some(self.logged.pending(&footer)))
    }

    fn check_block(&mut self, number: u32, place: BlockPlace, footer: &RunFooter, seen: &mut Seen) {
        let tell = |check: &mut Self, fault: String| {
            let needs = check.needs(number, footer);
            let text = format!(
                "block {number}: {fault}; {}",
                needs.as_deref().unwrap_or("nothing needs it any more")
            );
            check.tell(needs.is_some(), Some((number, place.offset)), text);
        };
        let bytes = match self.files.read(self.run, place.offset, place.size_bytes as usize) {
            Ok(bytes) => bytes,
            Err(error) => {
                seen.unread += 1;
                return tell(self, format!("it can't be read: {error}"));
            }
        };
        let Ok(block) = RunBlock::parse(&bytes, self.shard, self.run, number) else {
            seen.unread += 1;
            return tell(self, "it is not what was written there".into());
        };
        let (mut count, mut first, mut ascends, mut within, mut both) = (0, None, true, true, 0);
        let mut topics: BTreeMap<TopicId, u32> = BTreeMap::new();
        let is_held = (self.logged.loaded..self.logged.moved).contains(&number);
        for entry in block.entries() {
            count += 1;
            first.get_or_insert(entry.key);
            *topics.entry(entry.topic).or_default() += 1;
            ascends &= seen.last < Some(entry.key);
            within &= footer.sequences.0 <= entry.key.1 && entry.key.1 <= footer.sequences.1;
            seen.last = Some(entry.key);
            let is_cancelled = self.logged.cancelled.contains(&entry.key);
            seen.cancelled += u64::from(is_cancelled);
            let is_in_log = || self.replayed.is_some_and(|shard| shard.event(entry.key.1).is_some());
            both += u32::from(is_held && !is_cancelled && is_in_log());
        }
        if count != block.count() || count != place.count {
            let (header, index) = (block.count(), place.count);
            tell(self, format!("it holds {count} events, its header says {header}, and the index {index}"));
        }
        if first != Some(place.first) {
            tell(self, "its first event is not the one that the index names".into());
        }
        if !topics.into_iter().eq(footer.topics.of(number).iter().copied()) {
            tell(self, "its events are not of the topics that the footer counts".into());
        }
        if !ascends {
            tell(self, "its events do not come in order".into());
        }
        if !within {
            tell(self, "it holds sequences that the footer says are not here".into());
        }
        if both > 0 {
            tell(self, format!("{both} of its pending events are pending in the log as well"));
        }
        if bytes.get(block.size_bytes()..).is_none_or(|rest| rest.iter().any(|byte| *byte != 0)) {
            let what = "the bytes behind its events are not zero: no event is changed, but the medium has changed something";
            self.tell(true, Some((number, place.offset)), format!("block {number}: {what}"));
        }
    }

    /// The bytes between index and trailer, which no checksum covers.
    fn check_footer_zeros(&mut self, footer: &RunFooter, size_bytes: u64) {
        let len = footer.size_bytes();
        let offset = size_bytes - len as u64;
        let bytes = match self.files.read(self.run, offset, len) {
            Ok(bytes) => bytes,
            Err(error) => return self.damaged(Some(offset), format!("it can't be read: {error}")),
        };
        let zeros = footer.said_size_bytes()..len - TRAILER_SIZE_BYTES;
        if bytes.get(zeros).is_none_or(|zeros| zeros.iter().any(|byte| *byte != 0)) {
            let what = "the bytes between index and trailer are not zero: no event is changed, but the medium has changed \
                        something";
            self.damaged(Some(offset), what.into());
        }
    }

    /// Whether what the log says of events that came and were cancelled fits the file.
    fn check_log(&mut self, footer: &RunFooter, seen: &Seen) {
        let cancelled = self.logged.cancelled.len() as u64;
        if cancelled > seen.cancelled {
            let missing = cancelled - seen.cancelled;
            self.damaged(
                None,
                format!("the log says that {missing} events were cancelled in it that it does not hold"),
            );
        }
        for moved in &self.logged.moves {
            let (held, gone) = (
                count_in(footer, moved.blocks.clone()),
                self.logged.cancelled_in(footer, moved.blocks.clone()),
            );
            if moved.count > held || moved.count + gone < held {
                let (count, Range { start, end }) = (moved.count, &moved.blocks);
                let what = format!(
                    "the log says that {count} events left it for blocks {start} to {}, which hold {held}, {gone} of them \
                     cancelled",
                    end.saturating_sub(1)
                );
                self.findings.push(Finding::damaged(self.shard, FileId::Run(self.run.0).path(), what));
            }
        }
    }

    /// What needs a block, and what is to be done; `None` where nothing does.
    fn needs(&self, number: u32, footer: &RunFooter) -> Option<String> {
        if (self.logged.loaded..self.logged.moved).contains(&number) {
            let blocks = number..number + 1;
            let count =
                count_in(footer, blocks.clone()).saturating_sub(self.logged.cancelled_in(footer, blocks));
            return Some(format!(
                "{count} pending events are in it and nowhere else: restore the file from a copy"
            ));
        }
        let what = "a start reads it for the log, and the shard will not serve: restore the file from a copy";
        self.logged.is_replayed(number).then(|| what.to_owned())
    }

    /// What it means that the file as a whole cannot be used.
    fn loss(&self) -> String {
        let LoggedRun { moved, loaded, .. } = self.logged;
        let held = if self.logged.holds_events() {
            format!(" pending events are in {} of its blocks and nowhere else,", moved - loaded)
        } else {
            String::new()
        };
        let then = if self.logged.is_needed() || self.logged.size_bytes.is_some() {
            " and the shard will not serve: restore the file from a copy"
        } else {
            " and nothing needs it any more"
        };
        let text = format!("{held}{then}");
        text.trim_start().trim_start_matches("and ").to_owned()
    }

    fn damaged(&mut self, offset: Option<u64>, what: String) {
        let finding = Finding::damaged(self.shard, FileId::Run(self.run.0).path(), what);
        self.findings.push(Finding { offset, ..finding });
    }

    fn tell(&mut self, is_damage: bool, place: Option<(u32, u64)>, what: String) {
        let finding = Finding::damaged(self.shard, FileId::Run(self.run.0).path(), what);
        let block = place.map(|(number, _)| u64::from(number));
        let offset = place.map(|(_, offset)| offset);
        self.findings.push(Finding { is_damage, block, offset, ..finding });
    }
}

/// Whether blocks follow one another, from the start of the file to the footer.
fn index_fault(footer: &RunFooter, size_bytes: u64) -> Option<String> {
    let mut end = 0;
    for (number, place) in footer.index.iter().enumerate() {
        let is_sound =
            place.offset == end && place.size_bytes > 0 && place.size_bytes.is_multiple_of(ALIGN as u32);
        if !is_sound {
            return Some(format!("its index does not say rightly where block {number} is"));
        }
        end += u64::from(place.size_bytes);
    }
    let is_whole = end + footer.size_bytes() as u64 == size_bytes;
    (!is_whole).then(|| format!("its index ends at {end}, and not where its footer begins"))
}
