//! From runs back into memory, ahead of need.

use std::cmp::Ordering;
use std::io;

use super::super::{ApplyError, Durable};
use super::{Purpose, Shard};
use crate::effects::Effects;
use crate::far::format::{BlockPlace, RunBlock, RunEntry};
use crate::far::{Closing, RunDamage, RunError, RunId, RunOp};
use crate::record::{Forward, RunStatement};
use crate::table::Entry;
use crate::wheel::Tick;
use escapement_protocol::WallMs;

/// Bytes of blocks that are read at once, unless a single block is larger.
const READ_SIZE_BYTES: usize = 256 * 1024;

/// Reads under way, and chunks of events on their way to the log, at once.
const CHUNK_COUNT_MAX: usize = 8;

/// What blocks of a run are read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::shard) enum Why {
    /// Their time comes near.
    Near,
    /// Most of their run has gone: what is left goes to another.
    Sparse,
}

/// Of the log's room, the part that what is written again may take.
pub(super) const SPARSE_ROOM_SHARE: usize = 4;

/// Blocks of a run that were read and verified.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) run: RunId,
    pub(super) first_block: u32,
    pub(super) block_count: u32,
    /// Bytes of the log that it may take to append it again.
    pub(super) copy_size_bytes: usize,
    why: Why,
    /// Due time of its first event.
    pub(super) due: WallMs,
    pub(super) bytes: Vec<u8>,
    /// Where each block begins in them.
    starts: Vec<usize>,
}

impl Chunk {
    /// Takes in what a read has brought.
    pub(super) fn verified(
        shard: &Shard,
        run: RunId,
        (first_block, block_count): (u32, u32),
        (copy_size_bytes, why): (usize, Why),
        result: io::Result<Vec<u8>>,
    ) -> Result<Chunk, RunError> {
        let bytes = result.map_err(|error| RunError::Io(run, error))?;
        let held = shard.durable.runs.get(run);
        let index = held.and_then(|held| held.footer.as_ref()).map_or(&[][..], |footer| &footer.index);
        let first = index.get(first_block as usize).ok_or(RunError::Missing(run))?;
        let (start, due) = (first.offset, first.first.0);
        let mut starts = Vec::with_capacity(block_count as usize);
        for number in first_block..first_block + block_count {
            let damaged = RunError::Damaged(run, RunDamage::Block(number));
            let Some(place) = index.get(number as usize) else { return Err(damaged) };
            let at = (place.offset - start) as usize;
            let block = bytes.get(at..).unwrap_or_default();
            RunBlock::parse_at(block, shard.config.shard, run, number, place).map_err(|_| damaged)?;
            starts.push(at);
        }
        Ok(Chunk { run, first_block, block_count, copy_size_bytes, why, due, bytes, starts })
    }

    fn entries(&self) -> impl Iterator<Item = RunEntry<'_>> {
        self.starts.iter().flat_map(|start| RunBlock::trusted(&self.bytes[*start..]).entries())
    }
}

impl Shard {
    /// The run to be read next and when its events are due, unless that has to wait for room: what is due already
    /// waits on the disk, too, while memory or the log is full of what nobody takes.
    pub(super) fn next_read(&self) -> Option<(WallMs, RunId)> {
        let far = &self.volatile.far;
        let first = *far.to_read.first()?;
        let is_overdue = |(due, _): &(WallMs, RunId)| self.volatile.lane.is_overdue(*due);
        // What is overdue can wait for what comes near, and leaves half of the memory for it.
        let near = far.first_after(self.volatile.lane.until()).filter(|_| is_overdue(&first));
        let (due, id) = near.filter(|(due, _)| *due <= self.horizon()).unwrap_or(first);
        // What is in memory may all be due later, and wait for what is read here.
        let is_before = |next: Option<WallMs>| next.is_some_and(|next| next < due);
        let may_others_end = self.volatile.open_tasks > 0
            || far.coming_bytes > 0
            || due > self.volatile.now.wall
            || is_before(self.volatile.wheel.next_due().map(|tick| WallMs(tick.0)))
            || is_before(self.volatile.lane.next_due())
            || is_before(self.volatile.backlog.next_due());
        let memory_bytes_max = self.config.memory_bytes_max / if is_overdue(&(due, id)) { 2 } else { 1 };
        let has_room = || {
            self.live_bytes() < memory_bytes_max
                && self.copy_size_bytes(&self.places(id)[0]) <= self.log_room_bytes()
        };
        let may_read =
            far.reading.len() + far.chunks.len() < CHUNK_COUNT_MAX && (!may_others_end || has_room());
        may_read.then_some((due, id))
    }

    /// The blocks of a run that were moved and not read, up to the first that can't be.
    pub(super) fn places(&self, id: RunId) -> &[BlockPlace] {
        let run = self.durable.runs.get(id).expect("a run that is read is known");
        let index = &run.footer.as_ref().expect("its footer is known").index;
        let far = &self.volatile.far;
        let next = far.next_blocks[&id].min(run.moved);
        &index[next as usize..far.held.end(id, run.moved).max(next) as usize]
    }

    /// Bytes of the log that it may take to append a block's events again.
    pub(super) fn copy_size_bytes(&self, place: &BlockPlace) -> usize {
        place.size_bytes as usize + place.count as usize * self.durable.copies.most_size_bytes()
    }

    /// Reads what comes within the horizon, the earliest first.
    pub(super) fn load_ahead(&mut self, out: &mut Effects) {
        let horizon = self.horizon();
        while !self.volatile.draining
            && let Some((due, id)) = self.next_read().filter(|(due, _)| *due <= horizon)
        {
            self.read(due, id, horizon, Why::Near, out);
        }
    }

    /// Reads the next blocks of a run, as many as are due by `upto`, but one at least.
    pub(super) fn read(&mut self, due: WallMs, id: RunId, upto: WallMs, why: Why, out: &mut Effects) {
        let room = match why {
            Why::Near => self.log_room_bytes(),
            Why::Sparse => self.log_room_bytes() / SPARSE_ROOM_SHARE,
        };
        let (mut len, mut copy_size_bytes) = (0, 0);
        let places = self.places(id);
        let fits = places.iter().take_while(|place| {
            let next = (len + place.size_bytes as usize, copy_size_bytes + self.copy_size_bytes(place));
            let is_first = len == 0;
            let fits = place.first.0 <= upto && next.0 <= READ_SIZE_BYTES && next.1 <= room;
            if fits || is_first {
                (len, copy_size_bytes) = next;
            }
            fits || is_first
        });
        let block_count = fits.count() as u32;
        let offset = places[0].offset;
        let far = &mut self.volatile.far;
        far.to_read.remove(&(due, id));
        far.reading.push((due, id));
        far.coming_bytes += copy_size_bytes;
        let first_block = far.next_blocks[&id];
        let purpose = Purpose::Load { run: id, first_block, block_count, copy_size_bytes, why };
        far.request(purpose, RunOp::Read { run: id, offset, len }, out);
    }

    /// Logs that what was read is pending in the log again.
    pub(super) fn log_loaded(&mut self, chunk: Chunk, out: &mut Effects) {
        let Chunk { run, first_block, block_count, .. } = chunk;
        out.log().loaded(run, first_block, block_count);
        let end = first_block + block_count;
        self.volatile.far.chunks.push_back(chunk);
        self.volatile.far.next_blocks.insert(run, end);
        self.read_next(run);
    }

    /// A run whose next block may be read now is entered among those to be read.
    pub(super) fn read_next(&mut self, id: RunId) {
        let run = self.durable.runs.get(id).expect("a run that is read is known");
        let far = &mut self.volatile.far;
        let next = *far.next_blocks.entry(id).or_insert(run.loaded);
        if next < far.held.end(id, run.moved) {
            let footer = run.footer.as_ref().expect("its footer is known");
            far.to_read.insert((footer.index[next as usize].first.0, id));
        }
    }

    /// Blocks of a run have been moved: they may be read, once their time comes.
    pub(in crate::shard) fn more_to_read(&mut self, id: RunId) {
        if !self.volatile.far.reading.iter().any(|(_, reading)| *reading == id) {
            self.read_next(id);
        }
    }

    /// Brings a chunk's events to memory. `block` is the log's block that says so.
    ///
    /// # Errors
    /// [`ApplyError::Twice`].
    pub(super) fn take_in(&mut self, chunk: &Chunk, block: u64) -> Result<(), ApplyError> {
        let horizon = self.horizon();
        let Durable { runs, table, payloads, progress, ledger, copies, forwards, next_sequence, .. } =
            &mut self.durable;
        let run = runs.entry(chunk.run);
        let forwarded = |sequence| run.footer.as_ref().and_then(|footer| footer.forwarded(sequence));
        let mut far = Vec::new();
        for entry in chunk.entries() {
            if !run.ended.is_empty() && run.ended.contains_key(&entry.key) {
                continue;
            }
            let (due, sequence) = entry.key;
            let forward = forwarded(sequence).map(|forwarded| forwarded.forward);
            let location = payloads.insert(sequence, entry.event);
            let held = Entry { due, location, topic: entry.topic, block: block as u32 };
            if let Some(before) = table.insert(sequence, held) {
                // In recovery, the record that the event had left a run may be trimmed, and said again later on: of two
                // versions the later one is pending.
                let version = |forward: Option<&Forward>| forward.map_or(0, |forward| forward.version);
                match version(forwards.get(&sequence)).cmp(&version(forward.as_ref())) {
                    Ordering::Greater if self.recovering => {
                        table.insert(sequence, before);
                        payloads.remove(location);
                        continue;
                    }
                    Ordering::Less if self.recovering => {
                        payloads.remove(before.location);
                        copies.remove(before.topic);
                        ledger.gone(before.block);
                        progress.remove(sequence);
                    }
                    _ => return Err(ApplyError::Twice(sequence)),
                }
            }
            if let Some(forward) = forward {
                forwards.insert(sequence, forward);
            }
            copies.add(entry.topic, 1);
            self.volatile.soon.add(entry.topic, due);
            ledger.relocated(block, sequence);
            *next_sequence = (*next_sequence).max(sequence.0 + 1);
            if self.recovering || self.volatile.lane.loaded(due, sequence, entry.event) {
                continue;
            }
            if chunk.why == Why::Sparse && due > horizon {
                far.push((due, sequence, location.event_len()));
            } else {
                // What is near stays near, even where the horizon has shrunk since it was read.
                self.volatile.wheel.insert(Tick(due.0), sequence.0);
            }
        }
        for (due, sequence, size_bytes) in far {
            self.schedule(due, sequence, size_bytes);
        }
        self.durable.runs.loaded(chunk.run, chunk.first_block + chunk.block_count, block);
        let far = &mut self.volatile.far;
        far.may_close = true;
        if !self.recovering {
            let run = self.durable.runs.entry(chunk.run);
            far.rewriting.loaded(chunk.run, chunk.why);
            far.rewriting.consider(chunk.run, run);
        }
        Ok(())
    }

    /// States of each run that was loaded whole that nothing more is needed of it.
    pub(super) fn close_loaded(&mut self, out: &mut Effects) {
        if !self.volatile.far.may_close || !self.volatile.far.moving.is_empty() {
            return;
        }
        self.volatile.far.may_close = false;
        // A run that is being made gets more.
        let flushing = self.volatile.far.flushing();
        let is_done = |id: RunId, run: &crate::far::Run| {
            run.closing == Closing::Open
                && run.loaded == run.moved
                && flushing != Some(id)
                && run.block.is_some()
        };
        let done: Vec<RunId> =
            self.durable.runs.iter().filter(|(id, run)| is_done(*id, run)).map(|(id, _)| id).collect();
        for id in done {
            self.durable.runs.get_mut(id).expect("it is there").closing = Closing::Stated;
            self.state_run(id, out);
        }
    }

    /// Says again what older blocks of the log say of a run.
    pub(in crate::shard) fn state_run(&mut self, id: RunId, out: &mut Effects) {
        let run = self.durable.runs.get_mut(id).expect("it is there");
        run.is_stating = true;
        let ended: Vec<_> = run.ended.iter().map(|(key, topic)| (*key, *topic)).collect();
        for part in ended.chunks(self.config.block_size_bytes_max / 64) {
            out.log().cancelled_in_run(id, part.iter().copied());
        }
        let closed = run.closing == Closing::Stated;
        out.log().run(&RunStatement {
            run: id,
            closed,
            moved: run.moved,
            loaded: run.loaded,
            footer_id: run.footer.as_ref().map_or(0, |footer| footer.id),
            as_of: self.durable.applied,
            size_bytes: run.size_bytes,
        });
    }
}
