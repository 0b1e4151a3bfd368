//! A shard with its log: what is stepped becomes blocks, what is durable is applied.

use std::collections::VecDeque;

use escapement_engine::far::{RunId, RunOp, RunTicket};
use escapement_engine::record::HEADER_SIZE_BYTES;
use escapement_engine::{Deadline, Effects, HeldRun, Input, Reply, Shard, Ticket};
use escapement_protocol::frame::ShardCut;
use escapement_protocol::{MonoNs, Now, ShardId};
use escapement_wal::{
    AlignedBuf, BlockContent, BlockSeq, DiskCompletion, DiskOp, FileId, LocalWal, LogError, LogUsage, OpId,
    ShardLog,
};

use super::hold::{GivenUp, Holds};

/// How often a file that could not be created is tried again.
const HEAL_EVERY_MS: u64 = 1_000;

/// When a block is closed and written.
#[derive(Clone, Copy, Debug)]
pub struct CommitPolicy {
    /// With a block in flight, another is written once this many bytes of records wait. With none, at once.
    pub size_bytes: usize,
    /// Idle for this long after a block, an empty one seals it.
    pub seal_after_ms: u64,
    /// How often the oldest segment is looked at, to free it.
    pub trim_every_ms: u64,
    /// Bytes appended again in one turn, while the oldest segment is being emptied.
    pub relocate_size_bytes: usize,
}

impl Default for CommitPolicy {
    fn default() -> Self {
        CommitPolicy {
            size_bytes: 64 * 1024,
            seal_after_ms: 5,
            trim_every_ms: 50,
            relocate_size_bytes: 128 * 1024,
        }
    }
}

/// Why a shard has stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardFailure {
    /// Its log has: what is on the disk is known only to recovery.
    Log(LogError, String),
    /// A run of names can't be read: what is published may have been accepted before.
    Names(String),
}

impl std::fmt::Display for ShardFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ShardFailure::Log(error, cause) if cause.is_empty() => error.fmt(f),
            ShardFailure::Log(error, cause) => write!(f, "{error}: {cause}"),
            ShardFailure::Names(damage) => f.write_str(damage),
        }
    }
}

/// A block on its way to the disk.
#[derive(Debug)]
struct InFlight {
    seq: BlockSeq,
    records: Vec<u8>,
    replies: Vec<Reply>,
}

/// Room in a log.
#[derive(Clone, Copy, Debug)]
struct Room {
    /// For what is published, in bytes.
    publish_size_bytes: u64,
    /// Too little to wait for the next look at the oldest segment.
    is_urgent: bool,
    /// Nothing more can be published.
    is_short: bool,
    /// The oldest segment is to be emptied.
    is_crowded: bool,
}

impl Room {
    /// Room in a log with `live` bytes that would have to be appended again, and `waiting` bytes that are still to be written.
    ///
    /// Publishes leave a reserve: two segments, one for what ends events and one to empty the oldest one into, and three
    /// eighths of the log. And they stop before everything that is alive, padded to whole blocks, would not fit the
    /// reserve: then all of the log can be emptied into it, whatever else its segments hold, and what ends events finds
    /// room again. The oldest segments alone may need more than they give back, as a copy states the history of its
    /// tasks, which younger segments hold.
    fn of(usage: &LogUsage, live: u64, waiting: u64) -> Room {
        let segment_size = usage.size_bytes / u64::from(usage.slot_count.max(1));
        let held = usage.segment_count as u64 * segment_size;
        let free = usage.free_bytes;
        let capacity = held + free;
        // Less in a very small log.
        let reserve = (capacity * 3 / 8).max((capacity / 2).min(2 * segment_size));
        let unused = free.saturating_sub(reserve + waiting);
        let alive_max = reserve * 4 / 5;
        let is_urgent = free < reserve + segment_size;
        Room {
            publish_size_bytes: unused.min(alive_max.saturating_sub(live + waiting)),
            is_urgent,
            is_short: unused == 0,
            // Twice what is alive, and a few segments besides: so appending again costs at most as much as appending.
            is_crowded: is_urgent || held > 2 * live + 4 * segment_size,
        }
    }
}

#[derive(Debug)]
pub(super) struct LoggedShard {
    id: ShardId,
    shard: Shard,
    log: LocalWal,
    pub(super) effects: Effects,
    /// Snapshots that are being made of this shard's files.
    holds: Holds,
    /// Runs that are no longer needed, until no snapshot reads them any more.
    kept_runs: Vec<(RunTicket, RunOp)>,
    /// Operations on files of runs that nobody has fetched yet.
    run_ops: VecDeque<(RunTicket, RunOp)>,
    /// Of the last write to a run, for the next one: memory that was touched before costs no faults.
    run_buf: AlignedBuf,
    in_flight: VecDeque<InFlight>,
    spare: Vec<Vec<u8>>,
    policy: CommitPolicy,
    /// When the newest block was submitted, until it is sealed.
    unsealed_since: Option<MonoNs>,
    trim_at: MonoNs,
    heal_at: MonoNs,
    /// Blocks up to here are being emptied.
    emptying: Option<BlockSeq>,
    draining: bool,
    failure: Option<ShardFailure>,
    /// Who waited for an answer when the shard stopped, until somebody looks.
    stopped: Option<Vec<Ticket>>,
    /// What an operator has to know, until somebody looks.
    notices: Vec<String>,
    now: Now,
}

impl LoggedShard {
    pub(super) fn new(id: ShardId, shard: Shard, log: LocalWal, policy: CommitPolicy) -> Self {
        LoggedShard {
            id,
            shard,
            log,
            effects: Effects::default(),
            holds: Holds::default(),
            kept_runs: Vec::new(),
            run_ops: VecDeque::new(),
            run_buf: AlignedBuf::new(),
            in_flight: VecDeque::new(),
            spare: Vec::new(),
            policy,
            unsealed_since: None,
            trim_at: MonoNs(0),
            heal_at: MonoNs(0),
            emptying: None,
            draining: false,
            failure: None,
            stopped: None,
            notices: Vec::new(),
            now: Now::default(),
        }
    }

    pub(super) fn id(&self) -> ShardId {
        self.id
    }

    pub(super) fn shard(&self) -> &Shard {
        &self.shard
    }

    pub(super) fn failure(&self) -> Option<&ShardFailure> {
        self.failure.as_ref()
    }

    /// Whether the shard has stopped since the last look, and who waits for what it will not answer.
    pub(super) fn take_stopped(&mut self) -> Option<Vec<Ticket>> {
        self.stopped.take()
    }

    pub(super) fn into_log(self) -> (ShardId, LocalWal) {
        (self.id, self.log)
    }

    pub(super) fn poll_op(&mut self) -> Option<DiskOp> {
        if let Some(op) = self.log.poll_op() {
            return Some(op);
        }
        if self.run_ops.is_empty() {
            self.run_ops.extend(self.effects.run_ops.drain(..));
        }
        loop {
            let (ticket, op) = self.run_ops.pop_front()?;
            // The log as a snapshot has it may still speak of a run that is closed by now.
            if matches!(op, RunOp::Remove { .. }) && self.holds.is_any() {
                self.kept_runs.push((ticket, op));
                continue;
            }
            return Some(disk_op(ticket, op, &mut self.run_buf));
        }
    }

    /// Keeps the files as they are for a snapshot, and says where the log stands; `None` where the shard has stopped.
    pub(super) fn begin_hold(&mut self, snapshot: u64, until: MonoNs) -> Option<ShardCut> {
        if self.failure.is_some() {
            return None;
        }
        self.holds.begin(snapshot, until);
        let cut = self.log.cut();
        Some(ShardCut {
            shard: self.id,
            epoch: cut.epoch,
            first_segment_id: cut.first_segment_id,
            first_block_seq: cut.first_block_seq.0,
            first_prev_checksum: cut.first_prev_checksum.0,
            through_block_seq: cut.through.0,
            end_segment_id: cut.end_segment_id,
            end_offset: cut.end_offset,
        })
    }

    /// Ends a snapshot; answers what had ended it before, if anything had.
    pub(super) fn end_hold(&mut self, snapshot: u64) -> Option<GivenUp> {
        let given_up = self.holds.end(snapshot);
        self.remove_kept_runs();
        given_up
    }

    fn remove_kept_runs(&mut self) {
        if !self.holds.is_any() {
            self.run_ops.extend(self.kept_runs.drain(..));
        }
    }

    /// Ends snapshots that take too long, or for which publishes would be refused.
    fn look_at_holds(&mut self, room: Room) {
        if !self.holds.is_any() {
            return;
        }
        self.holds.give_up_late(self.now.mono);
        let oldest = self.log.usage().oldest_sealed_last_block_seq;
        if room.is_short && oldest.is_some_and(|last| last.0 <= self.shard.releasable()) {
            self.holds.give_up_all(GivenUp::LogFull);
        }
        self.remove_kept_runs();
    }

    /// Whether more is due here than was matched so far.
    pub(super) fn is_behind(&self) -> bool {
        self.failure.is_none() && self.shard.is_behind()
    }

    /// Bytes of records that are not durable yet.
    pub(super) fn unlogged_size_bytes(&self) -> usize {
        self.effects.records.len() + self.in_flight.iter().map(|block| block.records.len()).sum::<usize>()
    }

    pub(super) fn is_synced(&self) -> bool {
        let is_written = self.effects.records.is_empty() && self.in_flight.is_empty();
        self.failure.is_some() || (is_written && self.shard.is_logged())
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.is_synced() && (self.failure.is_some() || self.shard.running_count() == 0)
    }

    pub(super) fn drain(&mut self) {
        // Emptying old segments would keep the log busy for as long as there are any.
        self.draining = true;
        self.emptying = None;
        self.shard.drain();
    }

    pub(super) fn step(&mut self, now: Now, input: Input<'_>) {
        self.now = now;
        self.shard.step(now, input, &mut self.effects);
    }

    fn room(&self) -> Room {
        let waiting = self.unlogged_size_bytes() as u64;
        Room::of(&self.log.usage(), self.shard.relocation_size_bytes() as u64, waiting)
    }

    pub(super) fn disk_completed(&mut self, now: Now, completion: DiskCompletion) {
        self.now = now;
        if completion.id.is_foreign() {
            return self.run_op_completed(completion);
        }
        self.log.on_completion(completion);
        self.notice_failure();
        if self.failure.is_some() {
            return;
        }
        let durable = self.log.durable();
        while self.in_flight.front().is_some_and(|block| block.seq <= durable) {
            let mut block = self.in_flight.pop_front().expect("it is there");
            let applied = self.shard.apply_block(block.seq.0, &block.records, &mut self.effects);
            applied.expect("a shard reads the records that it wrote");
            self.effects.replies.append(&mut block.replies);
            block.records.clear();
            if self.spare.len() < 8 {
                self.spare.push(block.records);
            }
        }
    }

    fn run_op_completed(&mut self, completion: DiskCompletion) {
        if self.failure.is_some() {
            return;
        }
        let DiskCompletion { id, result, buf } = completion;
        let ticket = RunTicket(id.0 & !OpId::FOREIGN_BIT);
        let bytes = result.map(|()| buf.as_deref().map_or_else(Vec::new, <[u8]>::to_vec));
        if let Some(buf) = buf.filter(|buf| buf.capacity() > self.run_buf.capacity()) {
            self.run_buf = buf;
        }
        self.shard.run_op_done(self.now, ticket, bytes, &mut self.effects);
        for held in self.shard.take_held() {
            let (ShardId(shard), RunId(run)) = (self.id, held.run);
            let HeldRun { block, count, due: (first, last), why, .. } = held;
            self.notices.push(format!(
                "shard {shard} holds {count} events due from {first} to {last}, from block {block} of far/{run:08}.run on: \
                 {why}, and start the node again"
            ));
        }
        if let Some(damage) = self.shard.names_damage() {
            self.fail(ShardFailure::Names(damage.to_string()));
        }
    }

    /// What an operator has to know, since the last look.
    pub(super) fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices)
    }

    /// Nothing that was decided since the last durable block may be seen outside.
    fn fail(&mut self, failure: ShardFailure) {
        self.failure = Some(failure);
        let Effects { on_commit, replies, .. } = std::mem::take(&mut self.effects);
        let in_flight = self.in_flight.drain(..).flat_map(|block| block.replies);
        let held = in_flight.chain(on_commit.into_iter().map(|(_, reply)| reply)).chain(replies);
        let mut waiting: Vec<Ticket> = held.map(|reply| reply.ticket).collect();
        waiting.extend(self.shard.take_waiting());
        self.stopped = Some(waiting);
        self.run_ops.clear();
        self.kept_runs.clear();
        self.holds.give_up_all(GivenUp::Stopped);
    }

    fn notice_failure(&mut self) {
        let Some(error @ (LogError::Poisoned | LogError::Fenced | LogError::Corrupt { .. })) =
            self.log.error()
        else {
            return;
        };
        if self.failure.is_none() {
            let cause = self.log.poison_cause().map(ToString::to_string).unwrap_or_default();
            self.fail(ShardFailure::Log(error, cause));
        }
    }

    pub(super) fn maintain(&mut self, now: Now) {
        if self.failure.is_some() {
            return;
        }
        self.now = now;
        self.shard.maintain(now, &mut self.effects);
        let room = self.room();
        self.look_at_holds(room);
        // Until the next turn, room only grows but for what is published.
        self.shard.set_log_room(usize::try_from(room.publish_size_bytes).unwrap_or(usize::MAX));
        if (room.is_urgent || now.mono >= self.trim_at) && !self.draining {
            self.trim_at = now.mono.plus_ms(self.policy.trim_every_ms);
            self.trim();
        }
        // What is appended again waits for the disk like all else, and must not pile up before a slow one.
        if let Some(upto) = self.emptying
            && self.unlogged_size_bytes() < 4 * self.policy.relocate_size_bytes
            // What is left then is for the records that end events: only they free anything for sure.
            && !self.log.is_at_its_end()
        {
            self.shard.relocate(upto.0, self.policy.relocate_size_bytes, &mut self.effects);
        }
        if let Some(since) = self.unsealed_since
            && now.mono >= since.plus_ms(self.policy.seal_after_ms)
            && self.is_synced()
        {
            self.log.seal_idle();
            self.unsealed_since = None;
        }
    }

    /// Frees what the log no longer needs, and decides whether its oldest segment is to be emptied.
    fn trim(&mut self) {
        if !self.holds.is_any() {
            self.log.trim(BlockSeq(self.shard.releasable()));
        }
        self.shard.log_trimmed(self.log.trimmed_through().0, &mut self.effects);
        if self.now.mono >= self.heal_at {
            self.heal_at = self.now.mono.plus_ms(HEAL_EVERY_MS);
            self.log.heal();
        }
        let oldest = self.log.usage().oldest_sealed_last_block_seq;
        if let Some(last) = oldest {
            self.shard.relocate_control(last.0, &mut self.effects);
        }
        let is_crowded = self.room().is_crowded;
        self.emptying = oldest.filter(|_| is_crowded);
    }

    /// Closes at most one block.
    pub(super) fn commit(&mut self, now: Now) {
        self.now = now;
        self.hand_over_replies();
        let waiting = self.effects.records.len();
        let most = self.log.room_size_bytes();
        if self.failure.is_some() || waiting == 0 || most == 0 {
            return;
        }
        if !self.in_flight.is_empty() && waiting < self.policy.size_bytes {
            return;
        }
        let (len, count) = cut(&self.effects.records, self.effects.record_count, most);
        if count == 0 {
            assert!(self.log.is_at_its_end(), "no record is larger than a block");
            return;
        }
        let block = BlockContent {
            records: &self.effects.records[..len],
            record_count: count,
            leader_time: now.wall,
        };
        let seq = match self.log.submit(block) {
            Ok(seq) => seq,
            Err(LogError::Backpressure | LogError::Full | LogError::Unavailable) => return,
            Err(_) => return self.notice_failure(),
        };
        let held = self.effects.on_commit.partition_point(|(end, _)| *end <= len);
        let replies = self.effects.on_commit.drain(..held).map(|(_, reply)| reply).collect();
        let mut records = self.spare.pop().unwrap_or_default();
        if len == waiting {
            std::mem::swap(&mut records, &mut self.effects.records);
        } else {
            records.extend_from_slice(&self.effects.records[..len]);
            self.effects.records.drain(..len);
        }
        self.effects.record_count -= count;
        for (end, _) in &mut self.effects.on_commit {
            *end -= len;
        }
        self.in_flight.push_back(InFlight { seq, records, replies });
        self.unsealed_since = Some(now.mono);
    }

    /// Answers to what an earlier block already holds leave with that block: there may be no other for long.
    fn hand_over_replies(&mut self) {
        let held = self.effects.on_commit.partition_point(|(end, _)| *end == 0);
        if held > 0
            && let Some(newest) = self.in_flight.back_mut()
        {
            newest.replies.extend(self.effects.on_commit.drain(..held).map(|(_, reply)| reply));
        }
    }

    pub(super) fn next_deadline(&self) -> Deadline {
        if self.failure.is_some() {
            return Deadline::default();
        }
        let mut next = self.shard.next_deadline();
        let seal =
            self.unsealed_since.filter(|_| self.is_synced()).map(|s| s.plus_ms(self.policy.seal_after_ms));
        // An idle log is emptied, too: a restart reads what it holds.
        let has_old = || self.log.usage().oldest_sealed_last_block_seq.is_some() && self.room().is_crowded;
        let busy = !self.draining && (!self.is_synced() || self.emptying.is_some() || has_old());
        let trim = busy.then_some(self.trim_at);
        next.mono = [next.mono, seal, trim, self.holds.next_end()].into_iter().flatten().min();
        next
    }
}

/// What is wanted of a run's file, as an operation on the shard's directory.
fn disk_op(ticket: RunTicket, op: RunOp, spare: &mut AlignedBuf) -> DiskOp {
    let id = OpId(ticket.0 | OpId::FOREIGN_BIT);
    match op {
        RunOp::Create { run } => DiskOp::Create { id, file: FileId::Run(run.0), size_bytes: 0 },
        RunOp::Write { run, offset, bytes } => {
            let mut buf = std::mem::take(spare);
            buf.clear();
            buf.extend_from_slice(&bytes);
            DiskOp::Write { id, file: FileId::Run(run.0), offset, buf }
        }
        RunOp::Read { run, offset, len } => {
            let mut buf = AlignedBuf::new();
            buf.set_len_stale(len);
            DiskOp::Read { id, file: FileId::Run(run.0), offset, buf }
        }
        RunOp::Remove { run } => DiskOp::Remove { id, file: FileId::Run(run.0) },
    }
}

/// As many whole records as fit `most` bytes: their bytes, and how many they are.
fn cut(records: &[u8], count: u32, most: usize) -> (usize, u32) {
    if records.len() <= most {
        return (records.len(), count);
    }
    let mut len = 0;
    let mut taken = 0;
    while let Some(body_len) = records.get(len + 4..len + HEADER_SIZE_BYTES) {
        let body_len = u32::from_le_bytes(body_len.try_into().expect("4 bytes")) as usize;
        let next = len + HEADER_SIZE_BYTES + body_len;
        if next > most {
            break;
        }
        len = next;
        taken += 1;
    }
    (len, taken)
}
