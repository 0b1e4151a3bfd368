//! One core: its shards, its door, its sessions, and the order of a turn.
//!
//! A core is synchronous and owns everything it touches. The host's loop (`crate::run`) and the simulator
//! drive it through the same calls, once a turn, in this order:
//!
//! 1. [`Core::opened`], [`Core::bytes`], [`Core::closed`]: what came over streams;
//! 2. [`Core::disk_completed`]: durable blocks are applied, their replies leave;
//! 3. [`Core::receive`]: mail from other cores;
//! 4. [`Core::finish_turn`]: what is due fires, routers pick, one block for each shard goes to its log;
//! 5. [`Core::poll_disk_op`], [`Core::take_mail`], [`Core::flush_replies`], [`Core::flush_pushes`]: what the turn
//!    wants done outside.
//!
//! It knows streams only by a name `S` of the transport's, so that it runs below QUIC too.

mod backend;
mod bare;
mod catch_up;
mod hold;
mod logged_shard;
mod mail;
mod out;

use std::collections::VecDeque;

use bytes::Bytes;
use hashbrown::HashMap;

use escapement_delivery::Sessions;
use escapement_engine::{
    Deadline, Input, Message, Push, Registry, Reply, ReplyBody, Shard, ShardStats, Ticket,
};
use escapement_frontend::door::{Door, DoorConfig, PublishAnswer, Violation};
use escapement_protocol::frame::{
    AdminAnswer, PushItem, ShardCore, ShardMapInfo, SubscriptionInfo, TopicInfo,
};
use escapement_protocol::{Epoch, Now, ShardId};
use escapement_router::{Credit, SessionId};
use escapement_wal::{DiskCompletion, DiskOp, LocalWal};

pub use hold::{GivenUp, HoldAnswer};
use logged_shard::LoggedShard;
pub use logged_shard::{CommitPolicy, ShardFailure};
pub use mail::{Mail, Parcel};

/// Batches of due events in one turn, but one for each shard at least: keeps a turn short when a million are due at once.
const BATCHES_PER_TURN: usize = 16;

/// What is due comes before what is published now: for one byte of events that publishers send while shards are behind,
/// so many bytes of due ones were matched.
const DUE_PER_PUBLISHED: u64 = 2;

/// What a core is given at start.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// Which core.
    pub core: u16,
    /// How many there are.
    pub core_count: u16,
    /// How many shards the data directory has.
    pub shard_count: u16,
    /// The epoch of each shard's fences, in order; `None` for one that is out of service.
    pub epochs: Vec<Option<Epoch>>,
    /// The node's identity.
    pub node_id: u64,
    /// When a block is closed.
    pub commit: CommitPolicy,
    /// Bytes that may wait for the log before publishers are no longer read.
    pub intake_size_bytes_max: usize,
    /// Most credit that a session gets, whatever it asks for.
    pub credit_max: Credit,
}

/// Which core runs a shard.
#[must_use]
pub fn core_of(shard: ShardId, core_count: u16) -> u16 {
    shard.0 % core_count
}

/// Everything of a core but its door, so that the door can call it.
pub(crate) struct Inside<S> {
    config: CoreConfig,
    /// Shards `core`, `core + core_count`, …; `None` where a shard is not serving.
    shards: Vec<Option<LoggedShard>>,
    sessions: Sessions<S>,
    /// The shard that owns each local session's subscription.
    session_owner: HashMap<u64, ShardId>,
    next_session: u64,
    mail: Vec<Mail>,
    /// Messages between shards of this core.
    local: VecDeque<(ShardId, Message)>,
    replies: VecDeque<Reply>,
    /// Bytes that publishers' streams may be read for in the next turn.
    intake_size_bytes: usize,
    /// Bytes of events that this core's shards had matched in turns when it was last looked.
    matched_size_bytes: u64,
    catch_up: catch_up::CatchUp,
    bare: bare::Bare,
    snapshots: hold::Snapshots<S>,
    /// The shards that served at the start: of these, one owns each subscription.
    owners: Vec<ShardId>,
    /// Shards that have stopped, until the door knows.
    gone: Vec<ShardId>,
    /// Streams of sessions that ended because their subscription's owner stopped, until they are told.
    lost: Vec<(S, ShardId)>,
    now: Now,
}

/// A core. See the module's documentation.
pub struct Core<S> {
    inside: Inside<S>,
    door: Door<S>,
}

impl<S> std::fmt::Debug for Core<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("core", &self.inside.config.core)
            .field("door", &self.door)
            .finish_non_exhaustive()
    }
}

impl<S: Copy + Eq + std::hash::Hash> Core<S> {
    /// A core over its shards, in the order of their ids, each with its log; both after recovery.
    ///
    /// # Panics
    /// If the shards are not those of this core.
    #[must_use]
    pub fn new(config: CoreConfig, shards: Vec<Option<(Shard, LocalWal)>>) -> Self {
        let expected = (config.core..config.shard_count).step_by(usize::from(config.core_count)).count();
        assert_eq!(shards.len(), expected, "a core has every {}th shard", config.core_count);
        let serving = config.epochs.iter().enumerate().filter(|(_, epoch)| epoch.is_some());
        let shard_map = ShardMapInfo {
            // A shard's rises whenever its log is opened: the highest does as long as the shard that has it serves.
            epoch: config.epochs.iter().copied().flatten().max().unwrap_or_default(),
            shard_count: config.shard_count,
            core_count: config.core_count,
            shards: serving
                .map(|(shard, _)| ShardId(shard as u16))
                .map(|shard| ShardCore { shard, core: core_of(shard, config.core_count) })
                .collect(),
        };
        let door = Door::new(DoorConfig { node_id: config.node_id, shard_map });
        let ids = (config.core..config.shard_count).step_by(usize::from(config.core_count));
        let serving = (0..config.shard_count).zip(&config.epochs).filter(|(_, epoch)| epoch.is_some());
        let owners: Vec<ShardId> = serving.map(|(shard, _)| ShardId(shard)).collect();
        let logged = |(mut state, log): (Shard, LocalWal), shard: u16| {
            state.set_serving(owners.iter().copied());
            LoggedShard::new(ShardId(shard), state, log, config.commit)
        };
        let shards = shards
            .into_iter()
            .zip(ids)
            .map(|(opened, shard)| opened.map(|opened| logged(opened, shard)))
            .collect();
        let inside = Inside {
            shards,
            sessions: Sessions::default(),
            session_owner: HashMap::new(),
            next_session: 1,
            mail: (0..config.core_count).map(|_| Mail::default()).collect(),
            local: VecDeque::new(),
            replies: VecDeque::new(),
            intake_size_bytes: usize::MAX,
            matched_size_bytes: 0,
            catch_up: catch_up::CatchUp::default(),
            bare: bare::Bare::default(),
            snapshots: hold::Snapshots::default(),
            owners,
            gone: Vec::new(),
            lost: Vec::new(),
            now: Now::default(),
            config,
        };
        Core { inside, door }
    }

    /// A peer opened a stream.
    pub fn opened(&mut self, stream: S) {
        self.door.opened(stream);
    }

    /// A stream, or its connection, ended.
    pub fn closed(&mut self, now: Now, stream: S) {
        self.inside.now = now;
        self.door.closed(stream, &mut self.inside);
        self.inside.end_snapshots_of(|asker| *asker == stream);
        self.settle(now);
    }

    /// Every stream that `which` names ended: a connection has.
    pub fn closed_where(&mut self, now: Now, which: impl Fn(&S) -> bool) {
        self.inside.now = now;
        for stream in self.door.streams_where(&which) {
            self.door.closed(stream, &mut self.inside);
        }
        self.inside.end_snapshots_of(which);
        self.settle(now);
    }

    /// Whether a stream has published.
    #[must_use]
    pub fn is_publisher(&self, stream: S) -> bool {
        self.door.is_publisher(stream)
    }

    /// Bytes came on a stream.
    ///
    /// # Errors
    /// The peer broke the protocol: flush, then close its connection.
    pub fn bytes(&mut self, now: Now, stream: S, bytes: &[u8]) -> Result<(), Violation> {
        self.inside.now = now;
        let result = self.door.bytes(now, stream, bytes, &mut self.inside);
        self.settle(now);
        result
    }

    /// The peer ended its side of a stream.
    ///
    /// # Errors
    /// It ended inside a frame: flush, then close its connection.
    pub fn finished(&mut self, stream: S) -> Result<(), Violation> {
        self.door.finished(stream)
    }

    /// Whether a stream may be read now: publishers wait while the log is behind, and everyone until the shards of every
    /// core know every control object that was acknowledged before the start.
    #[must_use]
    pub fn may_read(&self, stream: S) -> bool {
        if !self.inside.catch_up.is_over() {
            return false;
        }
        !self.door.is_publisher(stream) || (self.inside.intake_open() && !self.door.is_behind(stream))
    }

    /// Bytes that publishers' streams may be read for in this turn, all together: a bounded number where shards are behind
    /// with what is due. So whoever publishes to a topic with little to do is not held up for long by another's burst, and
    /// what is due gets less all the same.
    #[must_use]
    pub fn intake_size_bytes(&self) -> usize {
        self.inside.intake_size_bytes
    }

    /// An operation of [`Core::poll_disk_op`] has ended.
    pub fn disk_completed(&mut self, now: Now, shard: ShardId, completion: DiskCompletion) {
        self.inside.now = now;
        if let Some(logged) = self.inside.logged_mut(shard) {
            logged.disk_completed(now, completion);
        }
        self.inside.drain_shard(shard);
        self.inside.tell_bare_cores();
        self.settle(now);
    }

    /// Mail came from another core.
    pub fn receive(&mut self, now: Now, mail: Mail) {
        self.inside.now = now;
        for parcel in mail.parcels {
            match parcel {
                Parcel::Shard(shard, message) => self.inside.local.push_back((shard, message)),
                Parcel::Publish { shard, ticket, topic, count, events } => {
                    self.inside.step(
                        shard,
                        Input::Publish { ticket, topic, count, events: &events },
                        Some(ticket),
                    );
                }
                Parcel::Reschedule { shard, ticket, event, due, expected } => {
                    let input = Input::Reschedule { ticket, event, due, expected };
                    self.inside.step(shard, input, Some(ticket));
                }
                Parcel::Cancel { shard, ticket, event } => {
                    self.inside.step(shard, Input::Cancel { ticket, event }, Some(ticket));
                }
                Parcel::Query { ticket, query } => {
                    self.inside.step(query.shard(), Input::Query { ticket, query }, Some(ticket));
                }
                Parcel::CancelByName { shard, ticket, topic, name } => {
                    self.inside.step(shard, Input::CancelByName { ticket, topic, name }, Some(ticket));
                }
                Parcel::Admin { ticket, request } => {
                    self.inside.step(ShardId(0), Input::Admin { ticket, request }, Some(ticket));
                }
                Parcel::Push { session, item, rescheduled, event } => {
                    self.inside.sessions.push(now.mono, session, (item, rescheduled), &event);
                }
                Parcel::Reply(reply) => self.inside.replies.push_back(reply),
                Parcel::Hold { snapshot, until } => self.inside.hold(snapshot, until),
                Parcel::HoldAnswer { snapshot, answer } => self.inside.hold_answered(snapshot, answer),
                Parcel::Objects(objects) => self.inside.take_objects(&objects),
                Parcel::Out(shard) => self.inside.shard_out(shard),
                Parcel::CaughtUp => self.inside.catch_up.other_is_done(),
            }
        }
        self.settle(now);
    }

    /// Ends a turn: what is due fires, routers pick, blocks are closed.
    pub fn finish_turn(&mut self, now: Now) {
        self.inside.now = now;
        let mut left = BATCHES_PER_TURN;
        let mut is_first = true;
        let mut more = true;
        while more && (is_first || left > 0) {
            more = false;
            for index in 0..self.inside.shards.len() {
                if is_first || self.inside.shards[index].as_ref().is_some_and(LoggedShard::is_behind) {
                    more |= self.inside.maintain(index);
                    left = left.saturating_sub(1);
                }
            }
            is_first = false;
        }
        self.inside.reckon_intake(more);
        self.settle(now);
        for logged in self.inside.shards.iter_mut().flatten() {
            logged.commit(now);
        }
        if self.inside.notice_stopped() {
            self.settle(now);
        }
    }

    /// Carries messages between this core's shards and answers to the door, until there are none.
    fn settle(&mut self, now: Now) {
        self.inside.notice_stopped();
        loop {
            // First in, first out: what one sender says to one shard keeps its order, here as through the mesh.
            if let Some((shard, message)) = self.inside.local.pop_front() {
                self.inside.step(shard, Input::Message(message), None);
                continue;
            }
            let Some(reply) = self.inside.replies.pop_front() else { break };
            self.answer(reply);
        }
        while let Some((ticket, answer)) = self.inside.snapshots.answers.pop_front() {
            match answer {
                Ok(body) => self.door.administered(ticket, body),
                Err(refusal) => self.door.refused(ticket, &refusal),
            }
        }
        for shard in self.inside.gone.drain(..) {
            self.door.shard_out(shard);
        }
        for (stream, shard) in self.inside.lost.drain(..) {
            self.door.session_lost(stream, &backend::refusal(out::refusal(shard)));
        }
        self.inside.notice_caught_up();
        self.inside.now = now;
    }

    fn answer(&mut self, reply: Reply) {
        let Ticket { core, number } = reply.ticket;
        if core != self.inside.config.core {
            self.inside.mail[usize::from(core)].push(Parcel::Reply(reply));
            return;
        }
        let door = &mut self.door;
        match reply.body {
            ReplyBody::Published { first_sequence, accepted_count: count, accepted, refusal, duplicates } => {
                let rest = refusal.map(backend::refusal);
                let duplicates = duplicates.into_iter().map(backend::duplicate).collect();
                let answer = PublishAnswer::Accepted { first_sequence, count, accepted, rest, duplicates };
                door.published(number, answer);
            }
            ReplyBody::Refused(refusal) => door.refused(number, &backend::refusal(refusal)),
            ReplyBody::Cancelled(verdict) => door.cancelled(number, verdict),
            ReplyBody::Answered(answer) => door.answered(number, answer),
            ReplyBody::Rescheduled(verdict) => door.rescheduled(number, verdict),
            ReplyBody::Topic { id, version, settings } => {
                let version = backend::version(version);
                door.administered(number, AdminAnswer::Topic(TopicInfo { topic: id, version, settings }));
            }
            ReplyBody::Subscription { id, topic, version, settings } => {
                let version = backend::version(version);
                let info = SubscriptionInfo { subscription: id, topic, version, settings };
                door.administered(number, AdminAnswer::Subscription(info));
            }
        }
    }

    /// The next disk operation that a shard's log wants done.
    pub fn poll_disk_op(&mut self) -> Option<(ShardId, DiskOp)> {
        self.inside.shards.iter_mut().flatten().find_map(|logged| Some((logged.id(), logged.poll_op()?)))
    }

    /// Mail for another core; empty where there is none.
    pub fn take_mail(&mut self, core: u16) -> Mail {
        std::mem::take(&mut self.inside.mail[usize::from(core)])
    }

    /// Hands over answers. They are small and bounded by what peers have asked.
    pub fn flush_replies(&mut self, write: impl FnMut(S, Bytes)) {
        self.door.flush(write);
    }

    /// Offers pushes. One that finds no room is given back, kept, and offered again by the next call.
    pub fn flush_pushes(&mut self, write: impl FnMut(S, Bytes) -> Result<(), Bytes>) {
        self.inside.sessions.flush(self.inside.now.mono, write);
    }

    /// When [`Core::finish_turn`] must be called even if nothing comes.
    #[must_use]
    pub fn next_deadline(&self) -> Deadline {
        let mut next = Deadline::default();
        for logged in self.inside.shards.iter().flatten() {
            let deadline = logged.next_deadline();
            next.wall = [next.wall, deadline.wall].into_iter().flatten().min();
            next.mono = [next.mono, deadline.mono].into_iter().flatten().min();
        }
        next
    }

    /// Stops intake: publishes and new sessions are refused, nothing more is dispatched, results are taken.
    pub fn drain(&mut self, now: Now) {
        self.inside.now = now;
        self.door.drain();
        let mut sessions: Vec<u64> = self.inside.session_owner.keys().copied().collect();
        sessions.sort_unstable();
        for session in sessions {
            self.inside.set_credit(session, Credit::default());
        }
        for logged in self.inside.shards.iter_mut().flatten() {
            logged.drain();
        }
        self.settle(now);
    }

    /// Whether nothing waits: no attempt runs here, every record is durable, every answer has left.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        // Of what a stopped shard was asked nobody will ever know here: its tickets are not waited for.
        let answered = self.door.waiting_count() == 0 || self.failures().next().is_some();
        answered && self.inside.shards.iter().flatten().all(LoggedShard::is_quiet)
    }

    /// Whether every record so far is durable.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.inside.shards.iter().flatten().all(LoggedShard::is_synced)
    }

    /// Shards that have stopped, and why.
    pub fn failures(&self) -> impl Iterator<Item = (ShardId, &ShardFailure)> {
        self.inside.shards.iter().flatten().filter_map(|logged| Some((logged.id(), logged.failure()?)))
    }

    /// What an operator has to know, since the last call.
    pub fn take_notices(&mut self) -> impl Iterator<Item = String> {
        self.inside.shards.iter_mut().flatten().flat_map(LoggedShard::take_notices)
    }

    /// Counters and gauges of this core's shards.
    pub fn stats(&self) -> impl Iterator<Item = (ShardId, ShardStats)> {
        self.inside.shards.iter().flatten().map(|logged| (logged.id(), logged.shard().stats()))
    }

    /// A shard of this core.
    #[must_use]
    pub fn shard(&self, shard: ShardId) -> Option<&Shard> {
        self.inside.logged(shard).map(LoggedShard::shard)
    }

    /// Gives up the core and hands back its shards' logs, as a crash or the end of a simulation wants them.
    #[must_use]
    pub fn into_logs(self) -> Vec<(ShardId, LocalWal)> {
        self.inside.shards.into_iter().flatten().map(LoggedShard::into_log).collect()
    }

    /// The node's control objects, for a core that has no serving shard to answer from, and for the core of shard 0, which
    /// tells that one of new ones. Call once, before the first turn, at every core.
    pub fn hold_registry(&mut self, newest: &Registry) {
        self.inside.hold_registry(newest);
    }
}

impl<S: Copy + Eq + std::hash::Hash> Inside<S> {
    fn index(&self, shard: ShardId) -> usize {
        usize::from(shard.0 / self.config.core_count)
    }

    fn logged(&self, shard: ShardId) -> Option<&LoggedShard> {
        self.shards.get(self.index(shard))?.as_ref()
    }

    fn logged_mut(&mut self, shard: ShardId) -> Option<&mut LoggedShard> {
        let index = self.index(shard);
        self.shards.get_mut(index)?.as_mut()
    }

    fn intake_open(&self) -> bool {
        let most = self.config.intake_size_bytes_max;
        self.intake_size_bytes > 0
            && self.shards.iter().flatten().all(|logged| logged.unlogged_size_bytes() < most)
            && self.mail.iter().all(|mail| mail.size_bytes() < most)
    }

    /// Matches a batch of what is due in a shard. Answers whether more is.
    fn maintain(&mut self, index: usize) -> bool {
        let now = self.now;
        let Some(logged) = &mut self.shards[index] else { return false };
        if logged.failure().is_some() {
            return false;
        }
        logged.maintain(now);
        let (shard, is_behind) = (logged.id(), logged.is_behind());
        // What became due is copied into its pushes now, while it is near.
        self.drain_shard(shard);
        is_behind
    }

    /// What is due comes first: where a core can't keep up with both, publishers slow down, not deliveries.
    fn reckon_intake(&mut self, is_behind: bool) {
        let shards = self.shards.iter().flatten();
        let matched = shards.map(|logged| logged.shard().taken_in_turns_size_bytes()).sum();
        let before = std::mem::replace(&mut self.matched_size_bytes, matched);
        self.intake_size_bytes =
            if is_behind { ((matched - before) / DUE_PER_PUBLISHED) as usize } else { usize::MAX };
    }

    /// Carries out what a shard's steps want done, but for its log.
    fn drain_shard(&mut self, shard: ShardId) {
        let index = self.index(shard);
        let Some(Some(logged)) = self.shards.get_mut(index) else { return };
        let effects = &mut logged.effects;
        self.replies.extend(effects.replies.drain(..));
        for (to, message) in effects.forwards.drain(..) {
            let core = core_of(to, self.config.core_count);
            if core == self.config.core {
                self.local.push_back((to, message));
            } else {
                self.mail[usize::from(core)].push(Parcel::Shard(to, message));
            }
        }
        let mut pushes = std::mem::take(&mut effects.pushes);
        for push in pushes.drain(..) {
            let Some(event) = logged.shard().event(push.sequence) else { continue };
            let item = push_item(shard, &push, event);
            let rescheduled = event.forward.map(|_| event.due);
            let core = (push.session.0 >> SESSION_CORE_SHIFT) as u16;
            if core == self.config.core {
                self.sessions.push(self.now.mono, push.session.0, (item, rescheduled), event.bytes);
            } else {
                let event = event.bytes.into();
                let session = push.session.0;
                self.mail[usize::from(core)].push(Parcel::Push { session, item, rescheduled, event });
            }
        }
        logged.effects.pushes = pushes;
    }

    /// Sends a message to a shard, wherever it is.
    fn tell(&mut self, shard: ShardId, message: Message) {
        let core = core_of(shard, self.config.core_count);
        if core == self.config.core {
            self.step(shard, Input::Message(message), None);
        } else {
            self.mail[usize::from(core)].push(Parcel::Shard(shard, message));
        }
    }

    fn set_credit(&mut self, session: u64, credit: Credit) {
        if let Some(owner) = self.session_owner.get(&session) {
            self.tell(*owner, Message::Credit { session: SessionId(session), credit });
        }
    }
}

/// A session's number begins with its core's.
const SESSION_CORE_SHIFT: u32 = 48;

fn push_item(shard: ShardId, push: &Push, event: escapement_engine::PendingEvent<'_>) -> PushItem {
    PushItem {
        tag: push.tag,
        sequence: push.sequence,
        schedule_time: event.schedule_time(),
        deadline_ms: push.deadline_ms,
        topic: event.topic,
        shard,
        attempt: push.attempt,
    }
}

#[cfg(test)]
mod tests;
