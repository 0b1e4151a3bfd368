//! Cancelling an event that is in a run: a block is read to know it, and a record says so.

use std::io;

use escapement_protocol::frame::CancelVerdict;
use escapement_protocol::{ErrorCode, EventId, WallMs};

use super::{Purpose, Shard};
use crate::effects::{Effects, Refusal, ReplyBody, Ticket};
use crate::far::format::RunBlock;
use crate::far::{Key, RunError, RunId, RunOp};

/// Cancellations that wait for the disk at once.
const LOOKUP_COUNT_MAX: usize = 1_024;

/// How long a caller should wait where they are as many.
const RETRY_AFTER_MS: u32 = 100;

fn key_of(event: EventId) -> Key {
    // A far-future event is due when it was scheduled for.
    (WallMs(event.schedule_time_ms), event.sequence)
}

impl Shard {
    /// Cancels an event that is not in memory.
    pub(in crate::shard) fn cancel_far(&mut self, ticket: Ticket, event: EventId, out: &mut Effects) {
        self.look_up(ticket, event, RunId(0), out);
    }

    /// Logs the cancellation of an event that is in a run, or on its way there.
    pub(in crate::shard) fn log_cancelled(
        &mut self,
        ticket: Ticket,
        run: RunId,
        key: Key,
        out: &mut Effects,
    ) {
        // The first request's record may be on its way: this answer waits for it too.
        if self.volatile.far.cancelled.insert(key.1) {
            out.log().cancelled_in_run(run, [key].into_iter());
        }
        out.reply_on_commit(ticket, ReplyBody::Cancelled(CancelVerdict::Cancelled));
    }

    /// Looks for the event in runs from `from` on.
    fn look_up(&mut self, ticket: Ticket, event: EventId, from: RunId, out: &mut Effects) {
        let key = key_of(event);
        let held = self.durable.runs.iter().skip_while(|(id, _)| *id < from);
        let found = held.filter(|(_, run)| !run.ended.contains(&key)).find_map(|(id, run)| {
            let block = run.block_of(key)?;
            let footer = run.footer.as_ref()?;
            Some((id, block, footer.index[block as usize]))
        });
        let Some((run, block, place)) = found else {
            return out.reply(ticket, ReplyBody::Cancelled(CancelVerdict::NotFound));
        };
        if self.volatile.far.is_cancelled(key.1) {
            return out.reply_on_commit(ticket, ReplyBody::Cancelled(CancelVerdict::Cancelled));
        }
        let is_loading = self.is_loading(run, block);
        let far = &mut self.volatile.far;
        if far.lookup_count + far.waiting.len() >= LOOKUP_COUNT_MAX {
            let refusal = Refusal {
                code: ErrorCode::ResourceExhausted,
                message: "too many cancellations of far-future events wait for the disk: try again".into(),
                retry_after_ms: RETRY_AFTER_MS,
            };
            return out.reply(ticket, ReplyBody::Refused(refusal));
        }
        if is_loading {
            return far.waiting.push((ticket, event));
        }
        far.lookup_count += 1;
        let op = RunOp::Read { run, offset: place.offset, len: place.size_bytes as usize };
        far.request(Purpose::Cancel { ticket, event, run, block }, op, out);
    }

    /// Whether the log is about to say that a block was loaded.
    fn is_loading(&self, run: RunId, block: u32) -> bool {
        let chunks = &mut self.volatile.far.chunks.iter();
        chunks.any(|c| c.run == run && (c.first_block..c.first_block + c.block_count).contains(&block))
    }

    /// The block that may hold the event was read.
    pub(super) fn cancel_looked_up(
        &mut self,
        ticket: Ticket,
        event: EventId,
        (run, block): (RunId, u32),
        result: io::Result<Vec<u8>>,
        out: &mut Effects,
    ) {
        let key = key_of(event);
        let still_there = self.durable.runs.get(run).and_then(|held| held.block_of(key)) == Some(block);
        if !still_there || self.is_loading(run, block) {
            // It has come to memory meanwhile, or is about to.
            return self.cancel(ticket, event, out);
        }
        let read = result.map_err(|error| RunError::Io(run, error)).and_then(|bytes| {
            let footer = self.durable.runs.get(run).and_then(|held| held.footer.as_ref());
            let place = &footer.expect("a run that was read is known").index[block as usize];
            let parsed = RunBlock::parse_at(&bytes, self.config.shard, run, block, place);
            let is_there = parsed.map(|block| block.entries().any(|entry| entry.key == key));
            is_there.map_err(|damage| RunError::Damaged(run, damage))
        });
        match read {
            Ok(true) => self.log_cancelled(ticket, run, key, out),
            // Another run had it, and it has come to memory meanwhile.
            Ok(false) if self.durable.table.get(event.sequence).is_some() => self.cancel(ticket, event, out),
            Ok(false) => self.look_up(ticket, event, RunId(run.0 + 1), out),
            Err(error) => self.damaged(error),
        }
    }

    /// Cancellations that waited for events to be loaded are decided now.
    pub(in crate::shard) fn cancel_waiting(&mut self, out: &mut Effects) {
        for (ticket, event) in std::mem::take(&mut self.volatile.far.waiting) {
            self.cancel(ticket, event, out);
        }
    }
}
