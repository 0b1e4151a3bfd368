//! Some shards of one node, with logs that are vectors and a clock that stands still until it is told.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use escapement_engine::far::{RunFiles, RunId, RunOp, RunTicket};
use escapement_engine::record::{HEADER_SIZE_BYTES, RecordWriter};
use escapement_engine::{
    AdminRequest, Effects, Input, Message, Push, Reply, ReplyBody, Shard, ShardConfig, Ticket,
    newest_control, owner_of,
};
use escapement_protocol::event::Due;
use escapement_protocol::frame::{
    CancelVerdict, Counts, DueCount, EventDetail, GroupAct, GroupAnswer, GroupOperation, Items, Query,
    QueryAnswer, ResultItem,
};
use escapement_protocol::settings::{SubscriptionSettings, TopicSettings};
use escapement_protocol::{
    AttemptResult, Epoch, EventId, EventSpec, MonoNs, Now, Sequence, ShardId, SubscriptionId, TopicId, WallMs,
};
use escapement_router::{Credit, Detach, HostKey, SessionId};

/// When every test begins.
pub(crate) const START: WallMs = WallMs(1_800_000_000_000);
/// Of every event's publisher; other tickets count up from 1.
pub(crate) const NOBODY: Ticket = Ticket { core: 9, number: 9 };

/// A block on its way to the disk.
struct Block {
    number: u64,
    records: Vec<u8>,
    replies: Vec<Reply>,
}

/// A shard with its log.
struct Slot {
    shard: Shard,
    effects: Effects,
    in_flight: VecDeque<Block>,
    /// Durable blocks that were not trimmed.
    log: Vec<(u64, Vec<u8>)>,
    next_block: u64,
    files: Files,
    run_ops: VecDeque<(RunTicket, RunOp)>,
}

/// The files of a shard's runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Files(pub(crate) BTreeMap<RunId, Vec<u8>>);

impl Files {
    fn execute(&mut self, op: RunOp) -> io::Result<Vec<u8>> {
        match op {
            RunOp::Create { run } => {
                assert!(self.0.insert(run, Vec::new()).is_none(), "run {run} is made once");
                Ok(Vec::new())
            }
            RunOp::Write { run, offset, bytes } => {
                let file = self.0.get_mut(&run).ok_or(io::ErrorKind::NotFound)?;
                assert_eq!(file.len() as u64, offset, "a run grows at its end");
                file.extend_from_slice(&bytes);
                Ok(Vec::new())
            }
            RunOp::Read { run, offset, len } => self.read(run, offset, len),
            RunOp::Remove { run } => {
                self.0.remove(&run);
                Ok(Vec::new())
            }
        }
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

pub(crate) struct Rig {
    pub(crate) config: ShardConfig,
    slots: Vec<Slot>,
    pub(crate) now: Now,
    epoch: Epoch,
    next_session: u64,
    next_ticket: u64,
    mail: VecDeque<(ShardId, Message)>,
    /// Pushes that nobody took yet, each with the event's shard.
    pub(crate) pushes: Vec<(ShardId, Push)>,
    pub(crate) replies: Vec<Reply>,
}

pub(crate) fn config(shard_count: u16) -> ShardConfig {
    ShardConfig {
        shard: ShardId(0),
        shard_count,
        memory_bytes_max: 1 << 30,
        admission_per_s: 0,
        block_size_bytes_max: 8 * 1024,
        horizon_ms: 15 * 60 * 1_000,
        run_size_bytes: 64 * 1024,
        names_run_size_bytes: 1 << 20,
        batch_count_max: 1_000,
        seed: 7,
    }
}

pub(crate) fn event(due: Due, id: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    EventSpec::new(due, id, data).encode(&mut bytes).expect("a valid event");
    bytes
}

impl Rig {
    pub(crate) fn new(config: ShardConfig) -> Rig {
        let slots = (0..config.shard_count).map(|shard| Slot {
            shard: Shard::new(ShardConfig { shard: ShardId(shard), ..config.clone() }),
            effects: Effects::default(),
            in_flight: VecDeque::new(),
            log: Vec::new(),
            next_block: 1,
            files: Files::default(),
            run_ops: VecDeque::new(),
        });
        let mut rig = Rig {
            slots: slots.collect(),
            config,
            now: Now { mono: MonoNs(5_000_000_000), wall: START },
            epoch: Epoch(1),
            next_session: 1,
            next_ticket: 1,
            mail: VecDeque::new(),
            pushes: Vec::new(),
            replies: Vec::new(),
        };
        rig.slots.iter_mut().for_each(|slot| slot.shard.recovered(rig.now, rig.epoch));
        rig
    }

    pub(crate) fn shard(&self, shard: u16) -> &Shard {
        &self.slots[usize::from(shard)].shard
    }

    pub(crate) fn shard_mut(&mut self, shard: u16) -> &mut Shard {
        &mut self.slots[usize::from(shard)].shard
    }

    pub(crate) fn log_len(&self, shard: u16) -> usize {
        self.slots[usize::from(shard)].log.len()
    }

    pub(crate) fn advance_ms(&mut self, ms: u64) {
        self.now = Now { mono: self.now.mono.plus_ms(ms), wall: self.now.wall.plus_ms(ms) };
    }

    pub(crate) fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket { core: 0, number: self.next_ticket }
    }

    /// One input, without what follows from it.
    pub(crate) fn step_only(&mut self, shard: u16, input: Input<'_>) {
        let slot = &mut self.slots[usize::from(shard)];
        slot.shard.step(self.now, input, &mut slot.effects);
        self.drain(shard);
    }

    pub(crate) fn step(&mut self, shard: u16, input: Input<'_>) {
        self.step_only(shard, input);
        self.carry_mail();
    }

    fn drain(&mut self, shard: u16) {
        let Slot { effects, run_ops, .. } = &mut self.slots[usize::from(shard)];
        run_ops.extend(effects.run_ops.drain(..));
        self.replies.append(&mut effects.replies);
        self.mail.extend(effects.forwards.drain(..));
        let from = ShardId(shard);
        self.pushes.extend(effects.pushes.drain(..).map(|push| (from, push)));
    }

    /// Holds mail back: what is on its way to `shard` is given to the test.
    pub(crate) fn intercept(&mut self, shard: u16) -> Vec<Message> {
        let (held, rest): (VecDeque<_>, _) = self.mail.drain(..).partition(|(to, _)| to.0 == shard);
        self.mail = rest;
        held.into_iter().map(|(_, message)| message).collect()
    }

    pub(crate) fn carry_mail(&mut self) {
        while let Some((to, message)) = self.mail.pop_front() {
            self.step_only(to.0, Input::Message(message));
        }
    }

    pub(crate) fn maintain(&mut self) {
        for shard in 0..self.config.shard_count {
            let slot = &mut self.slots[usize::from(shard)];
            slot.shard.maintain(self.now, &mut slot.effects);
            self.drain(shard);
        }
        self.carry_mail();
    }

    /// Closes one block of a shard, as full as it may be.
    pub(crate) fn commit(&mut self, shard: u16) {
        let slot = &mut self.slots[usize::from(shard)];
        let Effects { records, record_count, on_commit, .. } = &mut slot.effects;
        let mut len = 0;
        while let Some(header) = records.get(len..len + HEADER_SIZE_BYTES) {
            let body = u32::from_le_bytes(header[4..8].try_into().expect("4 bytes")) as usize;
            assert!(HEADER_SIZE_BYTES + body <= self.config.block_size_bytes_max, "a record fits a block");
            if len + HEADER_SIZE_BYTES + body > self.config.block_size_bytes_max {
                break;
            }
            len += HEADER_SIZE_BYTES + body;
            *record_count -= 1;
        }
        let held = on_commit.partition_point(|(end, _)| *end <= len);
        let replies: Vec<Reply> = on_commit.drain(..held).map(|(_, reply)| reply).collect();
        on_commit.iter_mut().for_each(|(end, _)| *end -= len);
        if len > 0 || !replies.is_empty() {
            let records = records.drain(..len).collect();
            slot.in_flight.push_back(Block { number: slot.next_block, records, replies });
            slot.next_block += 1;
        }
    }

    /// The oldest block of a shard that is in flight becomes durable. False where there is none.
    pub(crate) fn complete(&mut self, shard: u16) -> bool {
        if self.slots[usize::from(shard)].in_flight.is_empty() {
            return false;
        }
        self.complete_quietly(shard);
        self.carry_mail();
        true
    }

    /// As [`Rig::complete`], with what follows for others still on its way.
    pub(crate) fn complete_quietly(&mut self, shard: u16) {
        let slot = &mut self.slots[usize::from(shard)];
        let block = slot.in_flight.pop_front().expect("a block in flight");
        slot.shard
            .apply_block(block.number, &block.records, &mut slot.effects)
            .expect("a shard reads itself");
        slot.log.push((block.number, block.records));
        self.replies.extend(block.replies);
        self.drain(shard);
    }

    /// Records of the durable block at `index`.
    pub(crate) fn block(&self, shard: u16, index: usize) -> &[u8] {
        &self.slots[usize::from(shard)].log[index].1
    }

    /// Number of the oldest block that was not trimmed.
    pub(crate) fn oldest(&self, shard: u16) -> u64 {
        self.slots[usize::from(shard)].log.first().map_or(0, |(number, _)| *number)
    }

    /// Whether every decision is durable.
    pub(crate) fn is_synced(&self) -> bool {
        let is_synced = |slot: &Slot| {
            slot.effects.records.is_empty() && slot.in_flight.is_empty() && slot.shard.is_logged()
        };
        self.slots.iter().all(is_synced)
    }

    /// Carries out the oldest operation on a run's file. False where there is none.
    pub(crate) fn run_op(&mut self, shard: u16) -> bool {
        let slot = &mut self.slots[usize::from(shard)];
        let Some((ticket, op)) = slot.run_ops.pop_front() else { return false };
        let result = slot.files.execute(op);
        slot.shard.run_op_done(self.now, ticket, result, &mut slot.effects);
        self.drain(shard);
        true
    }

    /// The oldest operation on a run's file fails.
    pub(crate) fn run_op_fails(&mut self, shard: u16) -> bool {
        let slot = &mut self.slots[usize::from(shard)];
        let Some((ticket, op)) = slot.run_ops.pop_front() else { return false };
        assert!(!matches!(op, RunOp::Read { .. }), "a failed read holds its run");
        let result = Err(io::ErrorKind::StorageFull.into());
        slot.shard.run_op_done(self.now, ticket, result, &mut slot.effects);
        self.drain(shard);
        true
    }

    pub(crate) fn next_run_op(&self, shard: u16) -> Option<&RunOp> {
        self.slots[usize::from(shard)].run_ops.front().map(|(_, op)| op)
    }

    /// Takes the oldest operation from the queue of the disk.
    pub(crate) fn hold_run_op(&mut self, shard: u16) -> (RunTicket, RunOp) {
        self.slots[usize::from(shard)].run_ops.pop_front().expect("an operation")
    }

    /// Puts an operation back to the queue's end.
    pub(crate) fn release_run_op(&mut self, shard: u16, held: (RunTicket, RunOp)) {
        self.slots[usize::from(shard)].run_ops.push_back(held);
    }

    pub(crate) fn files(&mut self, shard: u16) -> &mut Files {
        &mut self.slots[usize::from(shard)].files
    }

    /// Turns until nothing is left to be written, neither to the log nor to runs.
    pub(crate) fn settle(&mut self) {
        loop {
            self.sync();
            let due = |slot: &Slot| slot.shard.next_deadline().mono.is_some_and(|at| at <= self.now.mono);
            let work = self.slots.iter().any(due);
            let done = (0..self.config.shard_count).fold(false, |done, shard| self.run_op(shard) | done);
            if !done && !work {
                break;
            }
        }
    }

    /// Turns until nothing is left to be written to the log.
    pub(crate) fn sync(&mut self) {
        self.maintain();
        while !self.is_synced() {
            for shard in 0..self.config.shard_count {
                self.commit(shard);
                while self.complete(shard) {}
            }
            self.maintain();
        }
    }

    /// Appends again what the blocks up to `upto` hold.
    pub(crate) fn relocate(&mut self, shard: u16, upto: u64, budget_bytes: usize) {
        let slot = &mut self.slots[usize::from(shard)];
        slot.shard.relocate(upto, budget_bytes, &mut slot.effects);
    }

    /// Number of the newest durable block.
    pub(crate) fn newest(&self, shard: u16) -> u64 {
        self.slots[usize::from(shard)].log.last().map_or(0, |(number, _)| *number)
    }

    /// Frees blocks that may go, and at most `most` of them.
    pub(crate) fn trim(&mut self, shard: u16, most: usize) {
        let slot = &mut self.slots[usize::from(shard)];
        let upto = slot.shard.releasable();
        let gone = slot.log.iter().take_while(|(number, _)| *number <= upto).count().min(most);
        slot.log.drain(..gone);
        if let Some((oldest, _)) = slot.log.first() {
            slot.shard.log_trimmed(oldest - 1, &mut slot.effects);
        }
        self.drain(shard);
    }

    /// What recovery would make of a shard's durable blocks now.
    pub(crate) fn replayed(&self, shard: u16) -> Shard {
        let mut replay = self.try_replay(shard);
        replay.replayed().expect("every run that is needed is there");
        replay
    }

    /// As [`Rig::replayed`], before it is known whether every run that is needed is there.
    pub(crate) fn try_replay(&self, shard: u16) -> Shard {
        let mut replay = Shard::new(ShardConfig { shard: ShardId(shard), ..self.config.clone() });
        let slot = &self.slots[usize::from(shard)];
        let mut files = slot.files.clone();
        for (number, records) in &slot.log {
            replay.replay_block(*number, records, &mut files).expect("a shard reads itself");
        }
        replay
    }

    /// The end of a shard's log is damaged, and somebody gives it up.
    pub(crate) fn lose_newest_block(&mut self, shard: u16) {
        self.slots[usize::from(shard)].log.pop().expect("a block");
    }

    /// The node dies and comes back with what is durable.
    pub(crate) fn crash(&mut self) {
        self.epoch.0 += 1;
        for shard in 0..self.config.shard_count {
            let mut replay = self.replayed(shard);
            replay.recovered(self.now, self.epoch);
            let slot = &mut self.slots[usize::from(shard)];
            slot.shard = replay;
            slot.effects = Effects::default();
            slot.in_flight.clear();
            slot.run_ops.clear();
            let runs = slot.shard.runs();
            slot.files.0.retain(|run, _| runs.contains(run));
            slot.next_block = slot.log.last().map_or(slot.next_block, |(number, _)| number + 1);
        }
        self.mail.clear();
        self.pushes.clear();
        self.replies.clear();
        let (version, record) = newest_control(self.slots.iter().map(|slot| &slot.shard));
        for shard in 0..self.config.shard_count {
            if self.shard(shard).registry().version() < version {
                self.step(shard, Input::Message(Message::Control { record: record.clone() }));
            }
        }
    }

    pub(crate) fn reply(&mut self, ticket: Ticket) -> Option<ReplyBody> {
        let at = self.replies.iter().position(|reply| reply.ticket == ticket)?;
        Some(self.replies.remove(at).body)
    }

    pub(crate) fn admin(&mut self, request: AdminRequest) -> ReplyBody {
        let ticket = self.ticket();
        self.step(0, Input::Admin { ticket, request });
        self.sync();
        self.reply(ticket).expect("an answer")
    }

    pub(crate) fn create_topic(&mut self, name: &str) -> TopicId {
        let settings = TopicSettings { name: name.into(), ..TopicSettings::default() };
        match self.admin(AdminRequest::CreateTopic(settings)) {
            ReplyBody::Topic { id, .. } => id,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn create_subscription(&mut self, settings: SubscriptionSettings) -> SubscriptionId {
        match self.admin(AdminRequest::CreateSubscription(settings)) {
            ReplyBody::Subscription { id, .. } => id,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn owner(&self, subscription: SubscriptionId) -> u16 {
        owner_of(subscription, &(0..self.config.shard_count).map(ShardId).collect::<Vec<_>>()).0
    }

    /// Attaches a session with ample credit.
    pub(crate) fn attach(&mut self, subscription: SubscriptionId) -> SessionId {
        let session = SessionId(self.next_session);
        self.next_session += 1;
        let credit = Credit { tasks: 1 << 20, bytes: 1 << 30 };
        let host = HostKey(1);
        let attach = Message::Attach { subscription, session, host, credit, running: Vec::new() };
        self.step(self.owner(subscription), Input::Message(attach));
        session
    }

    pub(crate) fn attach_all(&mut self, subscriptions: &[SubscriptionId]) {
        for subscription in subscriptions {
            self.attach(*subscription);
        }
    }

    pub(crate) fn detach(&mut self, subscription: SubscriptionId, session: SessionId, how: Detach) {
        self.step(self.owner(subscription), Input::Message(Message::Detach { session, how }));
    }

    pub(crate) fn answer(&mut self, push: &Push, result: AttemptResult) {
        let results = [ResultItem { tag: push.tag, retry_after_ms: 0, result }];
        let results = Items::from(results.as_slice());
        self.step(self.owner(push.subscription), Input::Results { session: push.session, results });
    }

    /// Publishes without waiting for the disk.
    pub(crate) fn publish(&mut self, shard: u16, topic: TopicId, events: &[Vec<u8>]) -> Ticket {
        let ticket = self.ticket();
        let count = events.len() as u32;
        self.step(shard, Input::Publish { ticket, topic, count, events: &events.concat() });
        ticket
    }

    /// Publishes one event, durably.
    pub(crate) fn published(&mut self, shard: u16, topic: TopicId, event: Vec<u8>) -> Sequence {
        let ticket = self.publish(shard, topic, &[event]);
        self.sync();
        match self.reply(ticket) {
            Some(ReplyBody::Published { first_sequence, accepted_count: 1, refusal: None, .. }) => {
                first_sequence
            }
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn id(&self, shard: u16, sequence: Sequence) -> EventId {
        let held = self.shard(shard).event(sequence).expect("pending");
        EventId { shard: ShardId(shard), sequence, schedule_time_ms: held.schedule_time().0 }
    }

    pub(crate) fn cancel(&mut self, event: EventId) -> Ticket {
        let ticket = self.ticket();
        self.step(event.shard.0, Input::Cancel { ticket, event });
        ticket
    }

    pub(crate) fn cancelled(&mut self, event: EventId) -> CancelVerdict {
        let ticket = self.cancel(event);
        self.sync();
        match self.reply(ticket) {
            Some(ReplyBody::Cancelled(verdict)) => verdict,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn query(&mut self, query: Query) -> Ticket {
        let ticket = self.ticket();
        self.step(query.shard().0, Input::Query { ticket, query });
        ticket
    }

    /// What is known of an event, with its bytes.
    pub(crate) fn peek(&mut self, event: EventId) -> Option<EventDetail> {
        let ticket = self.query(Query::Event { event, peek: true });
        while self.run_op(event.shard.0) {}
        self.sync();
        self.detail(ticket)
    }

    pub(crate) fn count(&mut self, topic: TopicId, subscription: SubscriptionId) -> Counts {
        let ticket = self.query(Query::Count { shard: ShardId(0), topic, subscription });
        match self.reply(ticket) {
            Some(ReplyBody::Answered(QueryAnswer::Count(counts))) => counts,
            other => panic!("{other:?}"),
        }
    }

    /// How many events of a topic come due soon, at shard 0.
    pub(crate) fn count_due(&mut self, topic: TopicId) -> Vec<DueCount> {
        let ticket = self.query(Query::Due { shard: ShardId(0), topic });
        match self.reply(ticket) {
            Some(ReplyBody::Answered(QueryAnswer::Due(counts))) => counts,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn detail(&mut self, ticket: Ticket) -> Option<EventDetail> {
        match self.reply(ticket) {
            Some(ReplyBody::Answered(QueryAnswer::Event(detail))) => detail.map(|detail| *detail),
            other => panic!("{other:?}"),
        }
    }

    /// Asks for an operation on a group, of shard 0.
    pub(crate) fn operate(&mut self, topic: TopicId, group: &str, act: GroupAct, epoch: u64) -> Ticket {
        self.operate_by(topic, group, (act, 0), epoch)
    }

    /// The same, with by how much a postponement postpones.
    pub(crate) fn operate_by(
        &mut self,
        topic: TopicId,
        group: &str,
        (act, by_ms): (GroupAct, u64),
        epoch: u64,
    ) -> Ticket {
        let (shard, group) = (ShardId(0), group.to_owned());
        self.query(Query::Group(GroupOperation { shard, topic, group, act, epoch, by_ms }))
    }

    pub(crate) fn group_answer(&mut self, ticket: Ticket) -> Option<GroupAnswer> {
        match self.reply(ticket)? {
            ReplyBody::Answered(QueryAnswer::Group(answer)) => Some(answer),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn reschedule(&mut self, event: EventId, due: WallMs, expected: Option<u64>) -> Ticket {
        let ticket = self.ticket();
        self.step(event.shard.0, Input::Reschedule { ticket, event, due, expected });
        ticket
    }

    pub(crate) fn check(&self) {
        self.slots.iter().for_each(|slot| slot.shard.check());
    }

    /// Holds that recovery from what is durable now would give the state that is there now.
    pub(crate) fn check_replay(&self) {
        for shard in 0..self.config.shard_count {
            let (live, replayed) = (self.shard(shard), self.replayed(shard));
            assert_eq!(replayed.stats().pending, live.stats().pending, "of shard {shard}");
            assert_eq!(replayed.state_hash(), live.state_hash(), "of shard {shard}");
        }
    }
}

/// A topic's record, as shard 0 sends it.
pub(crate) fn topic_record(id: TopicId, version: u64, name: &str) -> Vec<u8> {
    let (mut bytes, mut count) = (Vec::new(), 0);
    let settings = TopicSettings { name: name.into(), ..TopicSettings::default() };
    RecordWriter::new(&mut bytes, &mut count).topic(id, version, &settings);
    bytes
}

/// A small generator of numbers, the same for the same seed.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}
