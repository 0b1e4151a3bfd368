//! One shard with its log and its runs on a disk in memory, and nothing else of a node.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use escapement_engine::far::RunOp;
use escapement_engine::record::HEADER_SIZE_BYTES;
use escapement_engine::{
    AdminRequest, Duplicate, Effects, Input, Message, Push, Reply, ReplyBody, Shard, ShardConfig, Ticket,
};
use escapement_node::runs::RunDirectory;
use escapement_protocol::frame::{CancelVerdict, Items, ResultItem};
use escapement_protocol::{AttemptResult, EventId, Now, Sequence, ShardId, SubscriptionId, TopicId};
use escapement_router::{Credit, HostKey, SessionId};
use escapement_wal::disk::execute;
use escapement_wal::memory::MemDisk;
use escapement_wal::{
    AlignedBuf, BlockContent, BlockSeq, Directory, FileId, LocalWal, LogIdentity, RUN_DIR, ShardLog,
    WalConfig,
};

use crate::recovery::{self, Recovered, Refusal};

pub(super) const IDENTITY: LogIdentity = LogIdentity { cluster: 7, shard: ShardId(0), shard_count: 1 };

/// Segments that are in use before the oldest is emptied.
const SEGMENTS_CALM: usize = 3;
/// Bytes appended again at a time.
const RELOCATE_SIZE_BYTES: usize = 16 * 1024;
/// More turns than any shard of these sizes takes.
const TURNS_MAX: usize = 100_000;

/// What a shard is given, at every start.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) wal: WalConfig,
    pub(super) shard: ShardConfig,
}

/// Recovers the shard on this disk.
pub(super) fn recover(disk: &mut MemDisk, settings: &Settings) -> Result<Recovered, Refusal> {
    let mut runs = RunDirectory(disk.clone());
    recovery::recover(disk, &mut runs, IDENTITY, &settings.wal, settings.shard.clone())
}

/// An event on its way to the subscriber.
#[derive(Clone, Debug)]
pub(super) struct Arrival {
    pub(super) push: Push,
    pub(super) bytes: Vec<u8>,
}

struct InFlight {
    seq: BlockSeq,
    records: Vec<u8>,
    replies: Vec<Reply>,
}

pub(super) struct Running {
    pub(super) shard: Shard,
    pub(super) disk: MemDisk,
    pub(super) now: Now,
    log: LocalWal,
    effects: Effects,
    in_flight: VecDeque<InFlight>,
    next_ticket: u64,
    replies: Vec<Reply>,
    pub(super) arrivals: Vec<Arrival>,
    /// The state after each durable block.
    pub(super) states: BTreeMap<u64, u64>,
}

impl Running {
    pub(super) fn start(disk: MemDisk, recovered: Recovered, now: Now) -> Running {
        let Recovered { mut shard, log, report } = recovered;
        let states = BTreeMap::from([(report.last.0, shard.state_hash())]);
        shard.recovered(now, report.epoch);
        Running {
            shard,
            disk,
            now,
            log,
            effects: Effects::default(),
            in_flight: VecDeque::new(),
            next_ticket: 0,
            replies: Vec::new(),
            arrivals: Vec::new(),
            states,
        }
    }

    pub(super) fn advance_ms(&mut self, ms: u64) {
        self.now = Now { mono: self.now.mono.plus_ms(ms), wall: self.now.wall.plus_ms(ms) };
    }

    /// Turns until nothing is left to be written and nothing more is to be pushed now, or names can't be read.
    pub(super) fn settle(&mut self) {
        self.free_segments();
        for _ in 0..TURNS_MAX {
            self.shard.maintain(self.now, &mut self.effects);
            self.drain();
            let mut has_worked = false;
            while self.commit() {
                has_worked = true;
            }
            has_worked |= self.run_ops();
            let next = self.shard.next_deadline();
            let is_due = next.mono.is_some_and(|at| at <= self.now.mono)
                || next.wall.is_some_and(|at| at <= self.now.wall);
            if self.shard.names_damage().is_some() || !(has_worked || is_due) {
                return;
            }
        }
        panic!("the shard has work without end at {:?}", self.now);
    }

    /// Proves the last block, as the node does once the log is idle.
    pub(super) fn seal(&mut self) {
        self.log.seal_idle();
        self.log_ops();
    }

    fn step(&mut self, input: Input<'_>) {
        self.shard.step(self.now, input, &mut self.effects);
        self.drain();
    }

    fn drain(&mut self) {
        loop {
            self.replies.append(&mut self.effects.replies);
            for push in std::mem::take(&mut self.effects.pushes) {
                let event = self.shard.event(push.sequence).expect("what is pushed is in memory");
                assert!(event.due <= self.now.wall, "{push:?} is early");
                self.arrivals.push(Arrival { push, bytes: event.bytes.to_vec() });
            }
            let mail = std::mem::take(&mut self.effects.forwards);
            if mail.is_empty() {
                return;
            }
            for (_, message) in mail {
                self.shard.step(self.now, Input::Message(message), &mut self.effects);
            }
        }
    }

    /// Frees what the log no longer needs, and empties its oldest segment where it holds many.
    fn free_segments(&mut self) {
        self.log.trim(BlockSeq(self.shard.releasable()));
        self.log_ops();
        self.shard.log_trimmed(self.log.trimmed_through().0, &mut self.effects);
        let usage = self.log.usage();
        if let Some(last) = usage.oldest_sealed_last_block_seq {
            self.shard.relocate_control(last.0, &mut self.effects);
            if usage.segment_count > SEGMENTS_CALM {
                self.shard.relocate(last.0, RELOCATE_SIZE_BYTES, &mut self.effects);
            }
        }
    }

    /// Writes as many blocks at once as may be in flight, and applies them. False where nothing waits.
    fn commit(&mut self) -> bool {
        let mut any = false;
        while !self.effects.records.is_empty() {
            let most = self.log.room_size_bytes();
            let (len, count) = cut(&self.effects.records, most);
            if count == 0 {
                break;
            }
            let Effects { records, record_count, on_commit, .. } = &mut self.effects;
            let content =
                BlockContent { records: &records[..len], record_count: count, leader_time: self.now.wall };
            let seq = self.log.submit(content).expect("there is room");
            let held = on_commit.partition_point(|(end, _)| *end <= len);
            let replies = on_commit.drain(..held).map(|(_, reply)| reply).collect();
            on_commit.iter_mut().for_each(|(end, _)| *end -= len);
            *record_count -= count;
            self.in_flight.push_back(InFlight { seq, records: records.drain(..len).collect(), replies });
            any = true;
        }
        self.log_ops();
        while let Some(block) = self.in_flight.pop_front_if(|block| block.seq <= self.log.durable()) {
            let applied = self.shard.apply_block(block.seq.0, &block.records, &mut self.effects);
            applied.expect("a shard reads what it wrote");
            self.states.insert(block.seq.0, self.shard.state_hash());
            self.replies.extend(block.replies);
            self.drain();
        }
        // Answers to what was durable already.
        if self.effects.records.is_empty() {
            self.replies.extend(self.effects.on_commit.drain(..).map(|(_, reply)| reply));
        }
        any
    }

    fn log_ops(&mut self) {
        while let Some(op) = self.log.poll_op() {
            let done = execute(&mut self.disk, op);
            self.log.on_completion(done);
            assert!(self.log.poison_cause().is_none(), "{:?}", self.log.poison_cause());
        }
    }

    fn run_ops(&mut self) -> bool {
        let ops = std::mem::take(&mut self.effects.run_ops);
        let any = !ops.is_empty();
        for (ticket, op) in ops {
            let result = run_op(&mut self.disk, op);
            self.shard.run_op_done(self.now, ticket, result, &mut self.effects);
            self.drain();
        }
        any
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket { core: 0, number: self.next_ticket }
    }

    /// The answer to an input, once everything is settled.
    fn asked(&mut self, input: impl FnOnce(Ticket) -> Input<'static>) -> Option<ReplyBody> {
        let ticket = self.ticket();
        self.step(input(ticket));
        self.answer_to(ticket)
    }

    fn answer_to(&mut self, ticket: Ticket) -> Option<ReplyBody> {
        self.settle();
        let at = self.replies.iter().position(|reply| reply.ticket == ticket)?;
        Some(self.replies.swap_remove(at).body)
    }

    pub(super) fn admin(&mut self, request: AdminRequest) -> ReplyBody {
        self.asked(|ticket| Input::Admin { ticket, request }).expect("an answer")
    }

    /// Publishes events; answers the sequence of the first and how many were accepted.
    pub(super) fn publish(&mut self, topic: TopicId, events: &[Vec<u8>]) -> (Sequence, u32) {
        let ticket = self.ticket();
        let count = events.len() as u32;
        self.step(Input::Publish { ticket, topic, count, events: &events.concat() });
        match self.answer_to(ticket) {
            Some(ReplyBody::Published { first_sequence, accepted_count, .. }) => {
                (first_sequence, accepted_count)
            }
            // The shard has stopped, or has no room.
            None | Some(ReplyBody::Refused(_)) => (Sequence(0), 0),
            other => panic!("{other:?}"),
        }
    }

    /// Publishes events that were accepted before; answers which of them are known, and nothing where the shard has
    /// stopped.
    pub(super) fn publish_again(&mut self, topic: TopicId, events: &[Vec<u8>]) -> Option<Vec<Duplicate>> {
        let ticket = self.ticket();
        let count = events.len() as u32;
        self.step(Input::Publish { ticket, topic, count, events: &events.concat() });
        match self.answer_to(ticket)? {
            ReplyBody::Published { duplicates, .. } => Some(duplicates),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn cancel(&mut self, event: EventId) -> Option<CancelVerdict> {
        match self.asked(|ticket| Input::Cancel { ticket, event })? {
            ReplyBody::Cancelled(verdict) => Some(verdict),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn attach(&mut self, subscription: SubscriptionId) {
        let credit = Credit { tasks: 1 << 20, bytes: 1 << 30 };
        let (session, host) = (SessionId(1), HostKey(1));
        self.step(Input::Message(Message::Attach {
            subscription,
            session,
            host,
            credit,
            running: Vec::new(),
        }));
    }

    pub(super) fn answer(&mut self, push: &Push, result: AttemptResult) {
        let results = [ResultItem { tag: push.tag, retry_after_ms: 0, result }];
        self.step(Input::Results { session: push.session, results: Items::from(results.as_slice()) });
    }
}

/// As many whole records as fit `most` bytes: their bytes, and how many they are.
fn cut(records: &[u8], most: usize) -> (usize, u32) {
    let (mut len, mut count) = (0, 0);
    while let Some(header) = records.get(len..len + HEADER_SIZE_BYTES) {
        let body = u32::from_le_bytes(header[4..8].try_into().expect("4 bytes")) as usize;
        if len + HEADER_SIZE_BYTES + body > most {
            break;
        }
        len += HEADER_SIZE_BYTES + body;
        count += 1;
    }
    (len, count)
}

fn run_op(disk: &mut MemDisk, op: RunOp) -> io::Result<Vec<u8>> {
    match op {
        RunOp::Create { run } => {
            disk.create_dir(RUN_DIR)?;
            disk.create_zeroed(&FileId::Run(run.0).path(), 0)?;
        }
        RunOp::Write { run, offset, bytes } => disk.write_at(&FileId::Run(run.0).path(), offset, &bytes)?,
        RunOp::Read { run, offset, len } => {
            let mut buf = AlignedBuf::zeroed(len);
            let read = disk.read_at(&FileId::Run(run.0).path(), offset, &mut buf)?;
            if read < len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            return Ok(buf.to_vec());
        }
        RunOp::Remove { run } => {
            disk.remove(&FileId::Run(run.0).path())?;
            disk.sync_dir(RUN_DIR)?;
        }
    }
    Ok(Vec::new())
}
