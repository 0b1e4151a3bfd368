//! What records about runs change.

use escapement_protocol::TopicId;

use super::super::{ApplyError, apply::in_batches};
use super::load::{Chunk, Why};
use super::{Key, Shard};
use crate::effects::Effects;
use crate::far::{RunDamage, RunError, RunFiles, RunId, read_footer};
use crate::record::{RunStatement, Sequences};

impl Shard {
    /// A run as the log states it.
    pub(in crate::shard) fn apply_run(
        &mut self,
        stated: &RunStatement,
        files: &mut dyn RunFiles,
    ) -> Result<(), RunError> {
        let id = stated.run;
        if self.recovering {
            // Of a closed one the file may have gone, or be damaged, and nobody needs it.
            if !stated.closed {
                self.know_footer(id, files)?;
            }
            let footer = self.durable.runs.get(id).and_then(|run| run.footer.as_ref());
            if footer.is_some_and(|footer| footer.id != stated.footer_id) {
                return Err(RunError::Damaged(id, RunDamage::Footer));
            }
        } else if self.durable.runs.get(id).is_none() {
            let footer = self.volatile.far.footers.pop_front().filter(|(of, _)| *of == id);
            let (_, footer) = footer.expect("the log states first what this shard has just written");
            self.durable.runs.set_footer(id, footer);
            self.volatile.far.may_close = true;
        }
        self.durable.runs.state(stated);
        Ok(())
    }

    /// Reads a run's footer, in recovery, where its file is there.
    fn know_footer(&mut self, id: RunId, files: &mut dyn RunFiles) -> Result<(), RunError> {
        let is_known = self.durable.runs.get(id).is_some_and(|run| run.footer.is_some());
        if !is_known && let Some(footer) = read_footer(self.config.shard, id, files)? {
            self.durable.runs.set_footer(id, footer);
        }
        Ok(())
    }

    /// Events have left the log for the blocks of a run up to `end`.
    pub(in crate::shard) fn apply_moved(&mut self, id: RunId, end: u32, sequences: Sequences<'_>) {
        if !self.recovering {
            let moving = self.volatile.far.moving.pop_front();
            assert_eq!(moving.map(|moving| moving.run), Some(id), "events move in the order of the log");
        }
        in_batches(sequences.iter(), |batch| {
            self.durable.table.touch(batch.iter().copied());
            for sequence in batch {
                let was_pending = self.end_event(*sequence).is_some();
                assert!(
                    was_pending || self.recovering,
                    "{sequence:?} was moved to run {id} and is not pending"
                );
            }
        });
        self.durable.runs.moved(id, end);
        if !self.recovering {
            let far = &mut self.volatile.far;
            far.may_close = true;
            far.rewriting.consider(id, self.durable.runs.entry(id));
            self.more_to_read(id);
        }
    }

    /// Blocks of a run are pending in the log's block `block`.
    pub(in crate::shard) fn apply_loaded(
        &mut self,
        block: u64,
        run: RunId,
        first_block: u32,
        block_count: u32,
        files: &mut dyn RunFiles,
        out: &mut Effects,
    ) -> Result<(), ApplyError> {
        if !self.recovering {
            let chunk = self.volatile.far.chunks.pop_front().expect("what the log says of it was read");
            let is_it = (chunk.run, chunk.first_block, chunk.block_count) == (run, first_block, block_count);
            assert!(is_it, "events are loaded in the order of the log");
            self.volatile.far.coming_bytes -= chunk.copy_size_bytes;
            // Alive from now on, which the log's owner reckons with in its next turn.
            self.volatile.log_room_bytes = self.volatile.log_room_bytes.saturating_sub(chunk.copy_size_bytes);
            let taken = self.take_in(&chunk, block);
            taken.expect("events that were moved are pending in one place");
            self.decide_waiting(out);
            return Ok(());
        }
        self.know_footer(run, files)?;
        let footer = self.durable.runs.get(run).and_then(|run| run.footer.as_ref());
        let index = &footer.ok_or(RunError::Missing(run))?.index;
        let blocks = index.get(first_block as usize..(first_block + block_count) as usize);
        let Some([first, ..]) = blocks else {
            return Err(RunError::Damaged(run, RunDamage::Footer).into());
        };
        let len = blocks.into_iter().flatten().map(|place| place.size_bytes as usize).sum();
        let bytes = files.read(run, first.offset, len);
        let chunk = Chunk::verified(self, run, (first_block, block_count), (0, Why::Near), bytes)?;
        self.take_in(&chunk, block)
    }

    pub(in crate::shard) fn apply_cancelled_in_run(&mut self, id: RunId, key: Key, topic: TopicId) {
        self.end_in_run(id, key, topic);
        if !self.recovering {
            let cancelled = &mut self.volatile.far.cancelled;
            if cancelled.get(&key.1) == Some(&id) {
                cancelled.remove(&key.1);
            }
            return;
        }
        // Said again after the event was loaded, while the first record that says so was trimmed. One that was rescheduled
        // since is another version, and lives on.
        let run = self.durable.runs.get(id).filter(|run| run.footer.is_some());
        if run.is_some_and(|run| run.version_of(key.1) == self.durable.version(key.1)) {
            self.end_event(key.1);
        }
    }

    /// An event is pending in this run no more.
    pub(in crate::shard) fn end_in_run(&mut self, id: RunId, key: Key, topic: TopicId) {
        self.durable.runs.ended(id, key, topic);
        if !self.recovering
            && let Some(run) = self.durable.runs.get(id)
        {
            self.volatile.far.rewriting.consider(id, run);
        }
    }
}
