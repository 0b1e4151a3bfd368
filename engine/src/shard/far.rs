//! Far-future events: which leave memory for runs, and when they come back.

mod apply;
mod flush;
mod held;
mod list;
mod load;
mod look_up;
mod rewrite;

use std::collections::{BTreeSet, VecDeque};
use std::io;

use hashbrown::HashMap;

use escapement_protocol::{MonoNs, Now, Sequence, WallMs};

use super::ledger::Place;
use super::list::Page;
use super::names::Probe;
use super::{Durable, Shard};
use crate::effects::{Effects, Ticket};
use crate::far::format::{RunBlock, RunFooter};
use crate::far::{Closing, FarBuffer, Key, RunError, RunFiles, RunId, RunOp, RunTicket};
use crate::wheel::Tick;
use flush::Flush;
use held::Held;
pub use held::HeldRun;
use load::{Chunk, Why};
pub(super) use look_up::{Aim, LookUp};
use rewrite::Rewriting;

/// An event that is due sooner is not written to a run, however short memory is: it would hardly be back in time.
const NEAR_MS: u64 = 2_000;

/// How long a shard whose disk refused a run waits before it tries another.
const RETRY_AFTER_MS: u64 = 1_000;

/// What an answered operation was for.
#[derive(Debug)]
pub(super) enum Purpose {
    Flush(RunId),
    NamesFlush(RunId),
    NameProbe(Probe),
    Load { run: RunId, first_block: u32, block_count: u32, copy_size_bytes: usize, why: Why },
    LookUp { look_up: LookUp, run: RunId, block: u32 },
    List { page: Box<Page>, run: RunId, first_block: u32, block_count: u32 },
    Remove,
}

/// Events that are on their way from the log to a run.
#[derive(Debug)]
pub(super) struct Moving {
    pub(super) run: RunId,
    /// No event of it is due before.
    due: WallMs,
    /// By ascending sequence.
    sequences: Vec<Sequence>,
}

/// What a crash takes with it.
#[derive(Debug, Default)]
pub(super) struct Far {
    /// In memory, due beyond the horizon, in no run and not on the wheel.
    buffer: FarBuffer,
    /// When the first of them came.
    since: Option<MonoNs>,
    /// What is in the buffer keeps the log from being trimmed.
    is_wanted: bool,
    flush: Option<Flush>,
    next_run: u32,
    retry_at: MonoNs,
    next_ticket: u64,
    purposes: HashMap<RunTicket, Purpose>,
    /// `Moved` records on their way to the disk, in the order of the log.
    pub(super) moving: VecDeque<Moving>,
    /// What `Loaded` records on their way to the disk speak of, in the order of the log.
    chunks: VecDeque<Chunk>,
    /// The next block to read of each run that is not read to its end.
    next_blocks: HashMap<RunId, u32>,
    /// By the due time of the block that is to be read next: runs of which none is being read.
    to_read: BTreeSet<(WallMs, RunId)>,
    /// Bytes of the log that it may take to append again what is being loaded.
    coming_bytes: usize,
    /// Runs that are being read, each with the due time of the first event that this brings.
    reading: Vec<(WallMs, RunId)>,
    /// Cancelled in a run, which is given, on their way to the disk.
    pub(super) cancelled: HashMap<Sequence, RunId>,
    /// Look-ups of events that are being loaded.
    waiting: Vec<LookUp>,
    lookup_count: usize,
    /// Pages that wait for the disk.
    page_count: usize,
    /// Of runs that the log does not know yet, in the order of their first statements.
    pub(super) footers: VecDeque<(RunId, RunFooter)>,
    /// Whether something has happened since that lets a run be closed.
    pub(super) may_close: bool,
    rewriting: Rewriting,
    /// Runs that were made, or given up.
    flush_count: u64,
    /// What [`Far::awaits_flush`] was asked last, and after how many runs it is no longer awaited.
    awaited: Option<(Place, u64)>,
    /// What can't be read of runs.
    held: Held,
}

impl Far {
    /// Begins after recovery.
    pub(super) fn start(&mut self, durable: &Durable) {
        self.next_run = durable.runs.last().max(durable.names.runs.last()).0 + 1;
        self.may_close = true;
        for (id, run) in durable.runs.iter() {
            self.rewriting.consider(id, run);
            if run.closing == Closing::Open && run.loaded < run.moved {
                let footer = run.footer.as_ref().expect("recovery has read every footer that is needed");
                self.next_blocks.insert(id, run.loaded);
                self.to_read.insert((footer.index[run.loaded as usize].first.0, id));
            }
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let chunks: usize = self.chunks.iter().map(|chunk| chunk.bytes.len()).sum();
        let flush = self.flush.as_ref().map_or(0, Flush::memory_bytes);
        self.buffer.memory_bytes() + chunks + flush
    }

    pub(super) fn is_moving(&self, sequence: Sequence) -> Option<RunId> {
        is_moving(&self.moving, sequence)
    }

    /// The first run to be read whose next event is due after `due`.
    fn first_after(&self, due: WallMs) -> Option<(WallMs, RunId)> {
        self.to_read.range((due.plus_ms(1), RunId(0))..).next().copied()
    }

    /// An event that keeps the log from being trimmed is far, and may be in no run yet: says whether it is worth
    /// waiting until it has left the log, and sees to it. Not longer than until all that was in memory has.
    pub(super) fn awaits_flush(&mut self, now: MonoNs, place: Place, run_size_bytes: usize) -> bool {
        if now < self.retry_at {
            return false;
        }
        // Once for a block of the log: some of its events may be on the wheel, from when the horizon was wider.
        if self.awaited.is_none_or(|(awaited, _)| awaited.block != place.block) {
            // Of the one that is being made, and of those made next, the event may not be a part.
            let before = usize::from(self.flush.is_some()) + self.buffer.size_bytes() / run_size_bytes.max(1);
            self.awaited = Some((place, self.flush_count + 1 + before as u64));
        }
        let is_coming = self.awaited.is_some_and(|(_, count)| self.flush_count < count);
        self.is_wanted |= is_coming && !self.buffer.is_empty();
        is_coming && (self.flush.is_some() || !self.buffer.is_empty())
    }

    /// Who waits for an event to be looked up, by ascending ticket.
    pub(super) fn take_waiting(&mut self, tickets: &mut Vec<Ticket>) {
        let read = self.purposes.values().filter_map(|purpose| match purpose {
            Purpose::LookUp { look_up, .. } => Some(look_up.ticket),
            Purpose::List { page, .. } => Some(page.ticket),
            _ => None,
        });
        let mut looking: Vec<Ticket> =
            read.chain(self.waiting.drain(..).map(|look_up| look_up.ticket)).collect();
        looking.sort_unstable_by_key(|ticket| (ticket.core, ticket.number));
        tickets.append(&mut looking);
    }

    /// Whether an event's cancellation in a run is on its way to the disk.
    pub(super) fn is_cancelled(&self, sequence: Sequence) -> bool {
        !self.cancelled.is_empty() && self.cancelled.contains_key(&sequence)
    }

    /// A run was made, or given up.
    fn flush_ended(&mut self) {
        self.flush_count += 1;
        self.may_close = true;
    }

    fn flushing(&self) -> Option<RunId> {
        self.flush.as_ref().map(Flush::run)
    }

    /// The number of a run that is to be made.
    pub(super) fn next_run(&mut self) -> RunId {
        self.next_run += 1;
        RunId(self.next_run - 1)
    }

    pub(super) fn request(&mut self, purpose: Purpose, op: RunOp, out: &mut Effects) {
        self.next_ticket += 1;
        let ticket = RunTicket(self.next_ticket);
        self.purposes.insert(ticket, purpose);
        out.run_ops.push((ticket, op));
    }
}

/// The run that an event is on its way to.
fn is_moving(moving: &VecDeque<Moving>, sequence: Sequence) -> Option<RunId> {
    let moving = moving.iter().find(|moving| moving.sequences.binary_search(&sequence).is_ok());
    moving.map(|moving| moving.run)
}

impl Shard {
    /// How far ahead of its time an event is kept in memory, in ms. It shrinks once half of the memory is in use, or of
    /// the log's room for what is alive.
    fn horizon_ms(&self) -> u64 {
        let most_ms = self.config.horizon_ms;
        let share = |used: usize, free: usize| {
            let (free, all) = (free as u128, (used as u128 + free as u128).max(1));
            (u128::from(most_ms) * (2 * free).min(all) / all) as u64
        };
        let used = self.live_bytes();
        let by_memory = share(used, self.config.memory_bytes_max.saturating_sub(used));
        let by_log = share(self.relocation_size_bytes(), self.log_room_bytes());
        by_memory.min(by_log).max(NEAR_MS.min(most_ms))
    }

    /// Bytes of the log for what becomes alive there: what is on its way back from runs has its part already.
    pub(super) fn log_room_bytes(&self) -> usize {
        self.volatile.log_room_bytes.saturating_sub(self.volatile.far.coming_bytes)
    }

    /// Events due after this are far.
    pub(super) fn horizon(&self) -> WallMs {
        self.volatile.now.wall.plus_ms(self.volatile.horizon_ms)
    }

    /// A pending event's time begins to run: on the wheel, or in the far buffer.
    pub(super) fn schedule(&mut self, due: WallMs, sequence: Sequence, size_bytes: usize) {
        if due <= self.horizon() {
            self.volatile.wheel.insert(Tick(due.0), sequence.0);
            return;
        }
        let far = &mut self.volatile.far;
        far.since.get_or_insert(self.volatile.now.mono);
        far.buffer.push((due, sequence), size_bytes);
    }

    /// Moves far-future events on: into runs, and back.
    pub(super) fn maintain_far(&mut self, out: &mut Effects) {
        self.volatile.horizon_ms = self.horizon_ms();
        self.flush(out);
        self.load_ahead(out);
        self.rewrite(out);
        self.close_loaded(out);
    }

    /// An operation of [`Effects::run_ops`] has ended; a read with the bytes that were asked for.
    ///
    /// # Panics
    /// If the ticket is not of one that was asked for and not answered.
    pub fn run_op_done(
        &mut self,
        now: Now,
        ticket: RunTicket,
        result: io::Result<Vec<u8>>,
        out: &mut Effects,
    ) {
        self.advance_clock(now);
        let purpose = self.volatile.far.purposes.remove(&ticket).expect("every operation ends once");
        match purpose {
            Purpose::Flush(run) => self.flush_op_done(run, result.is_err(), out),
            Purpose::NamesFlush(run) => self.names_flush_op_done(run, result.is_err(), out),
            Purpose::NameProbe(probe) => self.name_read(probe, result, out),
            Purpose::Load { run, first_block, block_count, copy_size_bytes, why } => {
                self.volatile.far.reading.retain(|(_, of)| *of != run);
                let blocks = (first_block, block_count);
                match Chunk::verified(self, run, blocks, (copy_size_bytes, why), result) {
                    Ok(chunk) => self.log_loaded(chunk, out),
                    Err(error) => {
                        self.volatile.far.coming_bytes -= copy_size_bytes;
                        self.volatile.far.rewriting.loaded(run, why);
                        self.hold(run, first_block, &error);
                    }
                }
            }
            Purpose::LookUp { look_up, run, block } => {
                self.volatile.far.lookup_count -= 1;
                self.looked_up(look_up, (run, block), result, out);
            }
            Purpose::List { page, run, first_block, block_count } => {
                self.volatile.far.page_count -= 1;
                self.list_read(page, run, first_block..first_block + block_count, result, out);
            }
            // A file that could not be removed is removed by the next start.
            Purpose::Remove => {}
        }
    }

    /// Every block of the log up to `through` has gone for good: files that only they needed go too.
    pub fn log_trimmed(&mut self, through: u64, out: &mut Effects) {
        let runs = self.durable.runs.iter();
        let gone = runs.filter(|(_, run)| run.closing == Closing::Closed && run.last_loaded_block <= through);
        let gone: Vec<RunId> = gone.map(|(id, _)| id).collect();
        for run in gone {
            self.durable.runs.remove(run);
            self.volatile.far.next_blocks.remove(&run);
            self.volatile.far.request(Purpose::Remove, RunOp::Remove { run }, out);
        }
        for run in self.durable.names.runs.take_unstated(through) {
            self.volatile.far.request(Purpose::Remove, RunOp::Remove { run }, out);
        }
    }

    /// The pending events that are in runs, and not in memory. Reads all of them: for tools and tests.
    ///
    /// # Errors
    /// [`RunError`] where one can't be read.
    pub fn far_events(&self, files: &mut dyn RunFiles) -> Result<Vec<(WallMs, Sequence)>, RunError> {
        let mut events = Vec::new();
        for (id, run) in self.durable.runs.iter() {
            let index = run.footer.as_ref().map_or(&[][..], |footer| &footer.index);
            for number in run.loaded..run.moved {
                let place = index.get(number as usize).ok_or(RunError::Missing(id))?;
                let bytes = files.read(id, place.offset, place.size_bytes as usize);
                let bytes = bytes.map_err(|error| RunError::Io(id, error))?;
                let block = RunBlock::parse_at(&bytes, self.config.shard, id, number, place);
                let block = block.map_err(|damage| RunError::Damaged(id, damage))?;
                let keys = block.entries().map(|entry| entry.key);
                events.extend(keys.filter(|key| !run.ended.contains_key(key)));
            }
        }
        Ok(events)
    }

    /// Numbers of the runs whose files are still needed or about to be removed; any other file is left over.
    #[must_use]
    pub fn runs(&self) -> Vec<RunId> {
        let names = self.durable.names.runs.iter().map(|(id, _)| id);
        self.durable.runs.iter().map(|(id, _)| id).chain(names).collect()
    }

    /// No event that is not on the wheel is due before this moment. Only earlier ones may be dispatched: the clock can
    /// have jumped past what is still on the disk, and within a key the order is by due time.
    pub(super) fn far_due(&self) -> Option<WallMs> {
        let far = &self.volatile.far;
        let chunks = far.chunks.iter().map(|chunk| chunk.due).min();
        let reading = far.reading.iter().map(|(due, _)| *due).min();
        let moving = far.moving.iter().map(|moving| moving.due).min();
        let unread = far.to_read.first().map(|(due, _)| *due);
        [chunks, reading, moving, unread, self.rescue_due()].into_iter().flatten().min()
    }

    /// When far-future events want [`Shard::maintain`].
    pub(super) fn far_deadline(&self) -> (Option<WallMs>, Option<MonoNs>) {
        if self.volatile.draining {
            return (None, None);
        }
        let before = |due: WallMs, ms: u64| WallMs(due.0.saturating_sub(ms));
        let read = match self.next_read() {
            Some((due, _)) => Some(before(due, self.volatile.horizon_ms)),
            // What has to wait for room may be read without, once it is due and nothing else can end; and what comes near
            // is read ahead of what is overdue.
            None => {
                let now = self.volatile.now.wall;
                let next = self.volatile.far.first_after(now).map(|(due, _)| due);
                next.map(|due| {
                    Some(before(due, self.volatile.horizon_ms)).filter(|at| *at > now).unwrap_or(due)
                })
            }
        };
        let rescue = self.rescue_due().map(|due| before(due, self.rescue_ms()));
        let wall = [read, rescue].into_iter().flatten().min();
        (wall, self.flush_deadline())
    }
}
