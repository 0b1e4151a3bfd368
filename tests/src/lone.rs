//! One shard alone: its log is a list of blocks, its runs are byte strings, and its clock says what it is told.
//!
//! Much faster than [`crate::sim`], which has a whole node: for proofs that take millions of inputs or many years.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use escapement_engine::far::{RunFiles, RunId, RunOp, RunTicket};
use escapement_engine::record::{HEADER_SIZE_BYTES, RecordWriter};
use escapement_engine::{
    AdminRequest, Effects, Input, Message, Push, Reply, ReplyBody, Shard, ShardConfig, Ticket,
};
use escapement_protocol::event::Due;
use escapement_protocol::frame::{Items, ResultItem};
use escapement_protocol::settings::{SubscriptionSettings, TopicSettings};
use escapement_protocol::{
    AttemptResult, Epoch, EventId, EventSpec, MonoNs, Now, Sequence, ShardId, SubscriptionId, TopicId, WallMs,
};
use escapement_router::{Credit, HostKey, SessionId};

/// Blocks that the log may hold before the older half is emptied.
const LOG_COUNT_MAX: usize = 64;
/// Bytes appended again at a time.
const RELOCATE_SIZE_BYTES: usize = 256 * 1024;
/// More turns than any shard of these sizes takes until it is settled.
const TURNS_MAX: usize = 20_000;

/// A block on its way to the disk.
struct Block {
    number: u64,
    records: Vec<u8>,
    replies: Vec<Reply>,
}

/// The files of runs.
#[derive(Clone, Debug, Default)]
struct Files(BTreeMap<RunId, Vec<u8>>);

impl Files {
    fn execute(&mut self, op: RunOp) -> io::Result<Vec<u8>> {
        match op {
            RunOp::Create { run } => {
                self.0.insert(run, Vec::new());
            }
            RunOp::Write { run, offset, bytes } => {
                let file = self.0.get_mut(&run).ok_or(io::ErrorKind::NotFound)?;
                assert_eq!(file.len() as u64, offset, "a run grows at its end");
                file.extend_from_slice(&bytes);
            }
            RunOp::Read { run, offset, len } => return self.read(run, offset, len),
            RunOp::Remove { run } => {
                self.0.remove(&run);
            }
        }
        Ok(Vec::new())
    }
}

impl RunFiles for Files {
    fn size(&mut self, run: RunId) -> io::Result<Option<u64>> {
        Ok(self.0.get(&run).map(|file| file.len() as u64))
    }

    fn read(&mut self, run: RunId, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let file = self.0.get(&run).ok_or(io::ErrorKind::NotFound)?;
        let rest = &file[(offset as usize).min(file.len())..];
        Ok(rest[..len.min(rest.len())].to_vec())
    }
}

pub(crate) struct Lone {
    config: ShardConfig,
    pub(crate) shard: Shard,
    pub(crate) now: Now,
    effects: Effects,
    in_flight: VecDeque<Block>,
    /// Durable blocks that were not trimmed.
    log: VecDeque<(u64, Vec<u8>)>,
    next_block: u64,
    files: Files,
    /// Each with the moment from which on it is done.
    run_ops: VecDeque<(MonoNs, RunTicket, RunOp)>,
    /// How long an operation on a run's file takes, where the shard is let [settle](Lone::settle).
    pub(crate) run_op_ms: u64,
    epoch: Epoch,
    next_ticket: u64,
    pub(crate) replies: Vec<Reply>,
    /// Pushes that nobody took yet.
    pub(crate) pushes: Vec<Push>,
    /// Replies leave before their records are durable: a planted bug.
    pub(crate) answers_at_once: bool,
}

/// A configuration for a shard that is alone.
pub(crate) fn config(seed: u64) -> ShardConfig {
    ShardConfig {
        shard: ShardId(0),
        shard_count: 1,
        memory_bytes_max: 1 << 30,
        admission_per_s: 0,
        block_size_bytes_max: 64 * 1024,
        horizon_ms: 15 * 60 * 1_000,
        run_size_bytes: 64 * 1024,
        names_run_size_bytes: 1 << 20,
        batch_count_max: 4_096,
        seed,
    }
}

pub(crate) fn event(due: WallMs) -> Vec<u8> {
    let mut bytes = Vec::new();
    EventSpec::new(Due::At(due), "e", &[7; 24]).encode(&mut bytes).expect("a valid event");
    bytes
}

impl Lone {
    pub(crate) fn new(config: ShardConfig, wall: WallMs) -> Lone {
        let mut shard = Shard::new(config.clone());
        let (now, epoch) = (Now { mono: MonoNs(5_000_000_000), wall }, Epoch(1));
        shard.recovered(now, epoch);
        Lone {
            config,
            shard,
            now,
            effects: Effects::default(),
            in_flight: VecDeque::new(),
            log: VecDeque::new(),
            next_block: 1,
            files: Files::default(),
            run_ops: VecDeque::new(),
            run_op_ms: 0,
            epoch,
            next_ticket: 0,
            replies: Vec::new(),
            pushes: Vec::new(),
            answers_at_once: false,
        }
    }

    pub(crate) fn advance_ms(&mut self, ms: u64) {
        self.now = Now { mono: self.now.mono.plus_ms(ms), wall: self.now.wall.plus_ms(ms) };
    }

    pub(crate) fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket { core: 0, number: self.next_ticket }
    }

    pub(crate) fn step(&mut self, input: Input<'_>) {
        self.shard.step(self.now, input, &mut self.effects);
        self.drain();
    }

    pub(crate) fn maintain(&mut self) {
        self.shard.maintain(self.now, &mut self.effects);
        self.drain();
    }

    fn drain(&mut self) {
        loop {
            let done = self.now.mono.plus_ms(self.run_op_ms);
            self.run_ops.extend(self.effects.run_ops.drain(..).map(|(ticket, op)| (done, ticket, op)));
            self.replies.append(&mut self.effects.replies);
            self.pushes.append(&mut self.effects.pushes);
            let mail = std::mem::take(&mut self.effects.forwards);
            if mail.is_empty() {
                return;
            }
            for (_, message) in mail {
                self.shard.step(self.now, Input::Message(message), &mut self.effects);
            }
        }
    }

    /// Closes one block, as full as it may be.
    pub(crate) fn commit(&mut self) {
        let Effects { records, record_count, on_commit, .. } = &mut self.effects;
        let mut len = 0;
        while let Some(header) = records.get(len..len + HEADER_SIZE_BYTES) {
            let body = u32::from_le_bytes(header[4..8].try_into().expect("4 bytes")) as usize;
            if len + HEADER_SIZE_BYTES + body > self.config.block_size_bytes_max {
                break;
            }
            len += HEADER_SIZE_BYTES + body;
            *record_count -= 1;
        }
        let held = on_commit.partition_point(|(end, _)| *end <= len);
        let mut replies: Vec<Reply> = on_commit.drain(..held).map(|(_, reply)| reply).collect();
        on_commit.iter_mut().for_each(|(end, _)| *end -= len);
        if self.answers_at_once {
            self.replies.append(&mut replies);
        }
        if len > 0 || !replies.is_empty() {
            let records = records.drain(..len).collect();
            self.in_flight.push_back(Block { number: self.next_block, records, replies });
            self.next_block += 1;
        }
    }

    /// The oldest block that is in flight becomes durable. False where there is none.
    pub(crate) fn complete(&mut self) -> bool {
        let Some(block) = self.in_flight.pop_front() else { return false };
        let applied = self.shard.apply_block(block.number, &block.records, &mut self.effects);
        applied.expect("a shard reads itself");
        self.log.push_back((block.number, block.records));
        self.replies.extend(block.replies);
        self.drain();
        true
    }

    /// Carries out the oldest operation on a run's file. False where there is none.
    pub(crate) fn run_op(&mut self) -> bool {
        let Some((_, ticket, op)) = self.run_ops.pop_front() else { return false };
        let result = self.files.execute(op);
        self.shard.run_op_done(self.now, ticket, result, &mut self.effects);
        self.drain();
        true
    }

    /// Turns until nothing is left to be written and nothing more happens at this moment.
    pub(crate) fn settle(&mut self) {
        self.free_blocks();
        for _ in 0..TURNS_MAX {
            self.maintain();
            let mut has_worked = false;
            while !self.effects.records.is_empty() || !self.effects.on_commit.is_empty() {
                self.commit();
                has_worked = true;
            }
            while self.complete() || (self.run_op_at() <= Some(self.now.mono) && self.run_op()) {
                has_worked = true;
            }
            let next = self.shard.next_deadline();
            let is_due = next.mono.is_some_and(|at| at <= self.now.mono)
                || next.wall.is_some_and(|at| at <= self.now.wall);
            assert_eq!(self.shard.take_held(), [], "every run can be read");
            assert!(self.shard.names_damage().is_none(), "{:?}", self.shard.names_damage());
            if !has_worked && !is_due {
                return;
            }
        }
        panic!("the shard has work without end at {:?}: it wants {:?}", self.now, self.shard.next_deadline());
    }

    /// When the next operation on a run's file is done.
    fn run_op_at(&self) -> Option<MonoNs> {
        self.run_ops.front().map(|(at, ..)| *at)
    }

    /// When the shard wants to be maintained next, or its disk has done something, in ms from now.
    pub(crate) fn next_deadline_ms(&self) -> Option<u64> {
        let next = self.shard.next_deadline();
        let wall = next.wall.map(|at| at.0.saturating_sub(self.now.wall.0));
        let ms = |at: MonoNs| at.since(self.now.mono).div_ceil(1_000_000);
        [wall, next.mono.map(ms), self.run_op_at().map(ms)].into_iter().flatten().min()
    }

    /// Frees what the log no longer needs, and empties its older half where it is long.
    fn free_blocks(&mut self) {
        let upto = self.shard.releasable();
        while self.log.front().is_some_and(|(number, _)| *number <= upto) {
            self.log.pop_front();
        }
        if let Some((oldest, _)) = self.log.front() {
            self.shard.log_trimmed(oldest - 1, &mut self.effects);
            self.drain();
        }
        if self.log.len() > LOG_COUNT_MAX {
            let upto = self.log[self.log.len() / 2].0;
            self.shard.relocate(upto, RELOCATE_SIZE_BYTES, &mut self.effects);
        }
    }

    /// The node dies and comes back with what is durable, and with so many of the blocks that were still in flight.
    pub(crate) fn crash(&mut self, in_flight_count: usize) {
        let kept = self.in_flight.drain(..).take(in_flight_count);
        self.log.extend(kept.map(|block| (block.number, block.records)));
        self.epoch.0 += 1;
        let mut shard = Shard::new(self.config.clone());
        for (number, records) in &self.log {
            shard.replay_block(*number, records, &mut self.files).expect("a shard reads itself");
        }
        shard.replayed().expect("every run that is needed is there");
        shard.recovered(self.now, self.epoch);
        self.shard = shard;
        self.effects = Effects::default();
        self.run_ops.clear();
        let runs = self.shard.runs();
        self.files.0.retain(|run, _| runs.contains(run));
        self.next_block = self.log.back().map_or(self.next_block, |(number, _)| number + 1);
        self.replies.clear();
        self.pushes.clear();
    }

    /// As if this many events had been published before. Only for a shard that is new.
    pub(crate) fn skip_sequences(&mut self, count: u64) {
        let (mut records, mut record_count) = (Vec::new(), 0);
        RecordWriter::new(&mut records, &mut record_count).mark(Sequence(1 + count));
        self.log.push_back((self.next_block, records));
        self.crash(0);
    }

    /// The newest durable block is lost: a planted bug.
    pub(crate) fn forget_newest_block(&mut self) {
        self.log.pop_back();
    }

    /// Blocks that the log holds.
    pub(crate) fn log_count(&self) -> usize {
        self.log.len()
    }

    /// Files of runs.
    pub(crate) fn file_count(&self) -> usize {
        self.files.0.len()
    }

    /// Blocks in flight now.
    pub(crate) fn in_flight_count(&self) -> usize {
        self.in_flight.len()
    }

    pub(crate) fn reply(&mut self, ticket: Ticket) -> Option<ReplyBody> {
        let at = self.replies.iter().position(|reply| reply.ticket == ticket)?;
        Some(self.replies.swap_remove(at).body)
    }

    /// Creates the topic `t` and a subscription to it, which retries after `min_backoff_ms`.
    pub(crate) fn create(&mut self, min_backoff_ms: u64) -> (TopicId, SubscriptionId) {
        let topic = TopicSettings { name: "t".into(), ..TopicSettings::default() };
        let topic = match self.admin(AdminRequest::CreateTopic(topic)) {
            ReplyBody::Topic { id, .. } => id,
            other => panic!("{other:?}"),
        };
        let settings = SubscriptionSettings {
            name: "s".into(),
            topic: "t".into(),
            max_attempts: 65_535,
            min_backoff_ms,
            ..SubscriptionSettings::default()
        };
        match self.admin(AdminRequest::CreateSubscription(settings)) {
            ReplyBody::Subscription { id, .. } => (topic, id),
            other => panic!("{other:?}"),
        }
    }

    fn admin(&mut self, request: AdminRequest) -> ReplyBody {
        let ticket = self.ticket();
        self.step(Input::Admin { ticket, request });
        self.settle();
        self.reply(ticket).expect("an answer")
    }

    /// Attaches a session with ample credit.
    pub(crate) fn attach(&mut self, subscription: SubscriptionId) {
        let credit = Credit { tasks: 1 << 20, bytes: 1 << 30 };
        let (session, host) = (SessionId(u64::from(self.epoch.0)), HostKey(1));
        self.step(Input::Message(Message::Attach {
            subscription,
            session,
            host,
            credit,
            running: Vec::new(),
        }));
    }

    /// Publishes events durably, all of which must be accepted.
    ///
    /// # Panics
    /// If one is not.
    pub(crate) fn publish(&mut self, topic: TopicId, dues: &[WallMs]) -> Vec<EventId> {
        let ticket = self.ticket();
        let events: Vec<u8> = dues.iter().flat_map(|due| event(*due)).collect();
        self.step(Input::Publish { ticket, topic, count: dues.len() as u32, events: &events });
        self.settle();
        let Some(ReplyBody::Published { first_sequence, accepted_count, refusal: None, .. }) =
            self.reply(ticket)
        else {
            panic!("the events are not accepted");
        };
        assert_eq!(accepted_count as usize, dues.len());
        let id = |(at, due): (u64, &WallMs)| EventId {
            shard: ShardId(0),
            sequence: Sequence(first_sequence.0 + at),
            schedule_time_ms: due.0,
        };
        (0..).zip(dues).map(id).collect()
    }

    pub(crate) fn cancel(&mut self, event: EventId) -> Ticket {
        let ticket = self.ticket();
        self.step(Input::Cancel { ticket, event });
        ticket
    }

    pub(crate) fn answer(&mut self, push: &Push, result: AttemptResult) {
        let results = [ResultItem { tag: push.tag, retry_after_ms: 0, result }];
        self.step(Input::Results { session: push.session, results: Items::from(results.as_slice()) });
    }
}
