//! One shard: a plain struct with one owner. Each handler has its file; control flow is here.

mod apply;
mod backlog;
mod check;
mod control;
mod copies;
mod counts;
mod due;
mod expiry;
mod far;
mod groups;
mod lane;
mod ledger;
mod list;
mod messages;
mod misfire;
mod names;
mod publish;
mod query;
mod relocate;
mod reschedule;
mod soon;

use std::collections::VecDeque;

use hashbrown::{HashMap, HashSet};

use escapement_protocol::{Epoch, MonoNs, Now, Outcome, Sequence, ShardId, SubscriptionId, TopicId, WallMs};
use escapement_router::{Decision, Router};

use crate::effects::{Effects, Input, Message, Ticket};
use crate::far::{RunError, Runs};
use crate::groups::Groups;
use crate::names::Names;
use crate::payload::PayloadStore;
use crate::record::{FORWARD_SIZE_BYTES, Forward};
use crate::registry::Registry;
use crate::table::EventTable;
use crate::wheel::{Tick, Wheel};
pub use apply::ApplyError;
use apply::{ProgressMap, Progressed};
pub use control::newest_control;
use copies::Copies;
pub use expiry::Undelivered;
pub use far::HeldRun;
use far::{Aim, Far, LookUp};
use ledger::{Ledger, Place};
use reschedule::Rescheduling;

/// Entries of the wheel that are looked at in one turn, when it drops those of cancelled events.
const SWEEP_COUNT: usize = 1_024;

/// What a shard is given at start.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Which shard.
    pub shard: ShardId,
    /// How many there are.
    pub shard_count: u16,
    /// Most bytes of pending events and their index, retained space included.
    pub memory_bytes_max: usize,
    /// Events accepted per second at most; 0 for no cap.
    pub admission_per_s: u64,
    /// Most bytes of records that one block of the log takes.
    pub block_size_bytes_max: usize,
    /// How far ahead of their time events are kept in memory, in ms, while half of it is free; those due later wait in
    /// runs on the disk.
    pub horizon_ms: u64,
    /// Bytes of far-future events that are gathered for one run.
    pub run_size_bytes: usize,
    /// Bytes of memory that names of events take before they are written to a run.
    pub names_run_size_bytes: usize,
    /// Most events that become due in one [`Shard::maintain`].
    pub batch_count_max: usize,
    /// Seed of everything random, such as jitter.
    pub seed: u64,
}

/// Counters and gauges of a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardStats {
    /// Events pending now; without those that are cancelled with their group, which wait for their time.
    pub pending: u64,
    /// Of these, far-future events that are in runs on the disk, and not in memory.
    pub far: u64,
    /// Of these, events that are held, since their run can't be read.
    pub held: u64,
    /// Bytes of the files of runs.
    pub run_bytes: u64,
    /// Events accepted since start.
    pub published: u64,
    /// Events refused since start.
    pub refused: u64,
    /// Events published again since start, and answered with the receipt of the first.
    pub duplicates: u64,
    /// Names of events that are held, in memory or in runs, so that they are known when they are published again.
    pub names: u64,
    /// Pushes since start.
    pub dispatched: u64,
    /// Of the pending ones, those in memory that were due before the shard served, and were not matched so far.
    pub overdue: u64,
    /// Tasks ended since start.
    pub completed: u64,
    /// Of these, tasks of events whose ttl had passed.
    pub expired: u64,
    /// Of these, tasks of events whose time was missed and that were skipped.
    pub skipped: u64,
    /// Bytes of payloads retained.
    pub payload_bytes: u64,
    /// Bytes of the index.
    pub index_bytes: u64,
    /// Entries of the wheel: of what is not due yet, and of cancelled events that it has not dropped so far.
    pub timers: u64,
}

/// Changed by `apply` alone.
#[derive(Debug)]
struct Durable {
    registry: Registry,
    table: EventTable,
    payloads: PayloadStore,
    /// Only for events whose tasks have a history.
    progress: ProgressMap,
    /// Only for events in memory that were rescheduled. Where an event is in the log, a record of its own there, or of
    /// its copy, says so; where it is in a run, the run's footer does.
    forwards: HashMap<Sequence, Forward>,
    next_sequence: u64,
    ledger: Ledger,
    copies: Copies,
    runs: Runs,
    names: Names,
    groups: Groups,
    /// The newest block of which every record was applied.
    applied: u64,
}

/// A task that ended, on its way to the log.
#[derive(Clone, Copy, Debug)]
struct Ended {
    subscription: SubscriptionId,
    outcome: Outcome,
    last: bool,
    sequence: Sequence,
}

/// Lost in a crash, rebuilt or forgotten without harm.
#[derive(Debug)]
struct Volatile {
    now: Now,
    /// Names this start of the shard in page tokens.
    start: u32,
    next_sequence: u64,
    wheel: Wheel,
    /// When events expire whose tasks are with routers.
    expiries: Wheel,
    standstills: misfire::Standstills,
    /// By subscription. Subscriptions are few, and never deleted.
    undelivered: HashMap<SubscriptionId, Undelivered>,
    /// How far ahead of its time an event is kept in memory now, in ms.
    horizon_ms: u64,
    far: Far,
    /// Events that were due already when the shard began to serve.
    lane: lane::Lane,
    /// Whether the wheel drops entries of cancelled events.
    sweeping: bool,
    /// Events that are due and wait for their topic's turn.
    backlog: backlog::Backlog,
    /// Whether the wheel holds more that is due than one turn takes.
    more_due: bool,
    draining: bool,
    /// Bytes that the log still takes of what is published.
    log_room_bytes: usize,
    /// Cancelled, not yet durable.
    fenced: HashSet<Sequence>,
    /// Rescheduled, not yet durable.
    rescheduling: HashMap<Sequence, Rescheduling>,
    /// Tasks that routers have of events of this shard.
    open_tasks: usize,
    /// Events that are due and open.
    open: counts::Open,
    soon: soon::Soon,
    ended_counts: counts::EndedCounts,
    /// Tasks left, of events with more than one.
    fanout: HashMap<Sequence, u32>,
    ended: Vec<Ended>,
    /// Events whose end is logged and not yet applied, in the order of the log.
    ending: VecDeque<Sequence>,
    /// What is logged of tasks and not yet applied, in the order of the log.
    progressed: VecDeque<Progressed>,
    /// For subscriptions of this shard whose records are still on their way here.
    early: Vec<Message>,
    /// Bytes of accepted events that are not yet applied.
    accepted_bytes: usize,
    admission: publish::Admission,
    control: control::Pending,
    naming: names::Naming,
    grouping: groups::Grouping,
    /// What comes next of what is to be appended again.
    relocated_upto: Place,
    /// Whether the registry and the mark were appended again and are not yet applied.
    relocating_registry: bool,
    stats: ShardStats,
    // Scratch, kept for its memory.
    due: Vec<u64>,
    decisions: Vec<Decision>,
    sequences: Vec<Sequence>,
}

/// A shard. See the crate's documentation.
#[derive(Debug)]
pub struct Shard {
    config: ShardConfig,
    durable: Durable,
    volatile: Volatile,
    router: Router,
    recovering: bool,
}

impl Shard {
    /// An empty shard that expects [`Shard::apply_block`] for every recovered block, then [`Shard::recovered`].
    ///
    /// # Panics
    /// If blocks are too small to hold an event's records.
    #[must_use]
    pub fn new(config: ShardConfig) -> Self {
        assert!(
            config.block_size_bytes_max >= publish::BLOCK_SIZE_BYTES_MIN,
            "a block takes at least {} bytes of records",
            publish::BLOCK_SIZE_BYTES_MIN
        );
        let router = Router::new(Epoch(0), config.seed);
        Shard {
            durable: Durable {
                registry: Registry::new(config.shard_count),
                table: EventTable::default(),
                payloads: PayloadStore::default(),
                progress: ProgressMap::default(),
                forwards: HashMap::new(),
                next_sequence: 1,
                ledger: Ledger::default(),
                copies: Copies::default(),
                runs: Runs::default(),
                names: Names::default(),
                groups: Groups::default(),
                applied: 0,
            },
            volatile: Volatile {
                now: Now::default(),
                start: 0,
                next_sequence: 1,
                wheel: Wheel::new(Tick(0)),
                expiries: Wheel::new(Tick(0)),
                standstills: misfire::Standstills::default(),
                undelivered: HashMap::new(),
                horizon_ms: config.horizon_ms,
                far: Far::default(),
                lane: lane::Lane::default(),
                sweeping: false,
                backlog: backlog::Backlog::default(),
                more_due: false,
                draining: false,
                log_room_bytes: usize::MAX,
                fenced: HashSet::new(),
                rescheduling: HashMap::new(),
                open_tasks: 0,
                open: counts::Open::default(),
                soon: soon::Soon::default(),
                ended_counts: counts::EndedCounts::default(),
                fanout: HashMap::new(),
                ended: Vec::new(),
                ending: VecDeque::new(),
                progressed: VecDeque::new(),
                early: Vec::new(),
                accepted_bytes: 0,
                admission: publish::Admission::new(config.admission_per_s),
                control: control::Pending::new(config.shard_count),
                naming: names::Naming::default(),
                grouping: groups::Grouping::default(),
                relocated_upto: Place::default(),
                relocating_registry: false,
                stats: ShardStats::default(),
                due: Vec::new(),
                decisions: Vec::new(),
                sequences: Vec::new(),
            },
            router,
            config,
            recovering: true,
        }
    }

    /// Says whether everything pending can be reached, once every recovered block was replayed.
    ///
    /// # Errors
    /// [`RunError`] where a run that is needed has no file, or not the one that the log speaks of: the caller refuses the shard.
    pub fn replayed(&mut self) -> Result<(), RunError> {
        self.durable.runs.check_files()?;
        if let Some(fault) = self.names_run_fault() {
            return Err(fault);
        }
        self.durable.runs.count();
        self.durable.build_names();
        Ok(())
    }

    /// Ends recovery under the epoch that the log was opened with: what is pending goes on the wheel, what is
    /// overdue is due at once, in order. Call [`Shard::replayed`] before.
    ///
    /// # Panics
    /// If it was called before.
    pub fn recovered(&mut self, now: Now, epoch: Epoch) {
        assert!(self.recovering, "recovery ends once");
        self.recovering = false;
        self.router = Router::new(epoch, self.config.seed);
        self.volatile.now = now;
        self.volatile.start = list::start_of(epoch, self.config.seed);
        self.volatile.next_sequence = self.durable.next_sequence;
        self.volatile.admission.start(now.mono);
        self.durable.runs.count();
        self.durable.build_names();
        self.volatile.far.start(&self.durable);
        self.start_groups();
        self.volatile.wheel = Wheel::new(Tick(now.wall.0.saturating_sub(1)));
        self.volatile.expiries = Wheel::new(Tick(now.wall.0));
        self.volatile.soon.start(now.wall);
        let (mut overdue, mut later) = (Vec::new(), Vec::new());
        for (sequence, entry) in self.durable.table.iter() {
            self.volatile.soon.add(entry.topic, entry.due);
            if entry.due <= now.wall {
                overdue.push((entry.due, sequence));
                self.volatile.lane.expect_key(self.durable.payloads.event(entry.location));
            } else {
                later.push((entry.due, sequence, entry.location.event_len()));
            }
        }
        let overdue_count = overdue.len() as u64 + self.durable.runs.due_count(now.wall);
        for (due, sequence, size_bytes) in later {
            self.schedule(due, sequence, size_bytes);
        }
        self.volatile.standstills.started(now.wall, overdue_count);
        let unread = self.far_due();
        self.volatile.lane.start(now.wall, overdue, unread, self.config.batch_count_max);
        self.take_subscriptions();
    }

    /// Takes one input. Total, synchronous, bounded by the input's size.
    ///
    /// # Panics
    /// If recovery has not ended, or a clock goes backwards: both are the caller's mistakes.
    pub fn step(&mut self, now: Now, input: Input<'_>, out: &mut Effects) {
        self.advance_clock(now);
        match input {
            Input::Publish { ticket, topic, count, events } => {
                self.publish(ticket, topic, count, events, out);
            }
            Input::Cancel { ticket, event } => self.change(LookUp { ticket, event, aim: Aim::Cancel }, out),
            Input::Reschedule { ticket, event, due, expected } => {
                self.change(LookUp { ticket, event, aim: Aim::Reschedule { due, expected } }, out);
            }
            Input::Query { ticket, query } => self.query(ticket, &query, out),
            Input::CancelByName { ticket, topic, name } => self.cancel_by_name(ticket, topic, name, out),
            Input::Admin { ticket, request } => self.admin(ticket, request, out),
            Input::Results { session, results } => self.results(session, results),
            Input::Message(message) => self.message(message, out),
        }
    }

    /// Ends a turn: fires a batch of what is due, lets the router pick, logs what ended. Call after every batch of
    /// steps, when [`Shard::next_deadline`] has come, and again while [`Shard::is_behind`].
    pub fn maintain(&mut self, now: Now, out: &mut Effects) {
        self.advance_clock(now);
        self.maintain_far(out);
        self.expire_due(out);
        self.forget_names(out);
        self.flush_names(out);
        self.forget_operations(out);
        if !self.volatile.draining {
            self.volatile.ask_postponed(&self.durable, self.config.batch_count_max);
            self.fire_due(out);
        }
        self.route(out);
        self.log_left(out);
        self.log_ended(out);
        self.compact();
        self.sweep();
    }

    /// When [`Shard::maintain`] must next be called even without input.
    #[must_use]
    pub fn next_deadline(&self) -> Deadline {
        let at_once = self.is_behind() || (!self.is_full() && self.can_drain());
        let (far_wall, far_mono) = self.far_deadline();
        let earliest = |a: Option<WallMs>, b: Option<WallMs>| [a, b].into_iter().flatten().min();
        let due = if self.volatile.draining {
            None
        } else if at_once {
            Some(self.volatile.now.wall)
        } else {
            let next = self.volatile.wheel.next_due().map(|tick| WallMs(tick.0));
            earliest(next, self.volatile.grouping.next_due())
        };
        // What ended after the turn's maintenance still wants to be logged.
        let mono = if self.is_logged() { self.router.next_deadline() } else { Some(self.volatile.now.mono) };
        let expiry = self.volatile.expiries.next_due().map(|tick| WallMs(tick.0));
        Deadline {
            wall: earliest(earliest(due, far_wall), expiry),
            mono: [mono, far_mono, self.names_deadline()].into_iter().flatten().min(),
        }
    }

    /// Whether everything that was decided has its record. What messages end between one maintenance and
    /// the next has none yet.
    #[must_use]
    pub fn is_logged(&self) -> bool {
        self.volatile.ended.is_empty()
    }

    /// Topics and subscriptions, as far as they are durable here.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.durable.registry
    }

    /// The bytes of a pending event, padding included, with its id's due time and its topic.
    #[must_use]
    pub fn event(&self, sequence: Sequence) -> Option<PendingEvent<'_>> {
        let entry = self.durable.table.get(sequence)?;
        Some(PendingEvent {
            bytes: self.durable.payloads.event(entry.location),
            due: entry.due,
            topic: entry.topic,
            forward: self.durable.forwards.get(&sequence).copied(),
        })
    }

    /// Attempts that run now for subscriptions of this shard.
    #[must_use]
    pub fn running_count(&self) -> usize {
        let running = |id| self.router.stats(id).map_or(0, |stats| stats.running - stats.held);
        self.durable.registry.subscriptions().into_iter().map(|subscription| running(subscription.id)).sum()
    }

    /// Whether more is newly due than one turn takes: what was accepted before comes before what is published now.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.volatile.more_due || self.can_take_turns()
    }

    /// Says how many bytes of what is published the log has room for, from now on; what ends events is logged all
    /// the same.
    pub fn set_log_room(&mut self, bytes: usize) {
        self.volatile.log_room_bytes = bytes;
    }

    /// Bytes of records that it takes to append every pending event again, whatever its tasks come to, and what is known
    /// of runs, names and groups.
    #[must_use]
    pub fn relocation_size_bytes(&self) -> usize {
        self.durable.payloads.live_bytes()
            + self.durable.copies.size_bytes()
            + self.durable.runs.statements_size_bytes()
            + self.durable.names.statements_size_bytes()
            + self.durable.groups.statements_size_bytes()
            + self.durable.forwards.len() * FORWARD_SIZE_BYTES
    }

    /// From now on nothing more becomes due here; results are still taken.
    pub fn drain(&mut self) {
        self.volatile.draining = true;
    }

    /// Counters and gauges.
    #[must_use]
    pub fn stats(&self) -> ShardStats {
        ShardStats {
            pending: (self.durable.table.len() as u64 + self.durable.runs.pending())
                .saturating_sub(self.durable.groups.cancelled_of(TopicId(0))),
            far: self.durable.runs.pending(),
            held: self.held_count(),
            run_bytes: self.durable.runs.size_bytes(),
            names: (self.durable.names.count() + self.durable.names.runs.count()) as u64,
            payload_bytes: self.durable.payloads.retained_bytes() as u64,
            timers: (self.volatile.wheel.len() + self.volatile.expiries.len()) as u64,
            overdue: self.volatile.lane.len() as u64,
            index_bytes: self.index_bytes() as u64,
            ..self.volatile.stats
        }
    }

    fn advance_clock(&mut self, now: Now) {
        assert!(!self.recovering, "recovery has ended before the first step");
        let before = self.volatile.now;
        assert!(
            now.mono >= before.mono && now.wall >= before.wall,
            "time went backwards: {before:?} to {now:?}"
        );
        self.note_standstill(now);
        self.volatile.now = now;
        self.volatile.soon.advance(now.wall);
    }

    fn refuse_publish(&mut self, ticket: Ticket, count: u32, refusal: crate::Refusal, out: &mut Effects) {
        self.volatile.stats.refused += u64::from(count);
        out.reply(ticket, crate::ReplyBody::Refused(refusal));
    }

    fn compact(&mut self) {
        let Durable { table, payloads, .. } = &mut self.durable;
        if !payloads.wants_compaction() {
            return;
        }
        let mut moves = Vec::new();
        payloads.compact(
            |sequence, location| table.get(sequence).is_some_and(|entry| entry.location == location),
            |sequence, location| moves.push((sequence, location)),
        );
        for (sequence, location) in moves {
            table.get_mut(sequence).expect("a survivor is pending").location = location;
        }
    }

    /// Drops entries of cancelled events from the wheel, a few in each turn, once they are most of what it holds: left
    /// alone, one that was due in ten years would take its memory for so long.
    fn sweep(&mut self) {
        let Volatile { wheel, sweeping, .. } = &mut self.volatile;
        let table = &self.durable.table;
        if *sweeping || wheel.len() > 2 * table.len() + SWEEP_COUNT {
            let due_of = |key| table.get(Sequence(key)).map(|entry| Tick(entry.due.0));
            *sweeping = !wheel.sweep(SWEEP_COUNT, due_of);
        }
    }

    /// The router's view of the subscriptions that this shard owns.
    #[must_use]
    pub fn router(&self) -> &Router {
        &self.router
    }
}

impl PendingEvent<'_> {
    /// The due time as its publisher asked for it, which the event's id carries.
    #[must_use]
    pub fn schedule_time(&self) -> WallMs {
        if let Some(forward) = self.forward {
            return forward.schedule_time;
        }
        // A delay counts from acceptance and never lies before it, so that both due times are one.
        let view = escapement_protocol::EventView::trusted(self.bytes);
        view.and_then(|event| event.stated_time()).unwrap_or(self.due)
    }
}

/// A pending event, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct PendingEvent<'a> {
    /// Its bytes, padded to 8.
    pub bytes: &'a [u8],
    /// Its effective due time.
    pub due: WallMs,
    /// Its topic.
    pub topic: TopicId,
    /// Where it was rescheduled.
    pub forward: Option<Forward>,
}

/// When a shard must be maintained next, on each clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deadline {
    /// When the wall clock gets there.
    pub wall: Option<WallMs>,
    /// When the monotonic clock gets there.
    pub mono: Option<MonoNs>,
}
