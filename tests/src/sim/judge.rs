//! What was promised, what came, and whether that is the same.
//!
//! `escapement_loadgen::Auditor` judges each subscription's events as a real node's would be judged: never early,
//! unaltered, under the name of the receipt. Everything that needs to know where the node crashed, what it was told and
//! when each push left it is judged here. All of it errs towards the node: what may have been so is not held against it.

mod attempts;
mod dues;
mod groups;
mod names;
mod reading;

use std::collections::{BTreeMap, BTreeSet};

use escapement_loadgen::auditor::Place as LoadPlace;
use escapement_loadgen::{Auditor, Pushed, Workload, WorkloadConfig};
use escapement_protocol::frame::{Accepted, CancelVerdict, GroupAct, PushItem};
use escapement_protocol::{EventId, EventView, Misfire, Outcome, Sequence, ShardId, WallMs};

use super::plan::Plan;
use super::publisher::Sending;
use attempts::{Attempts, Ended};
use dues::Dues;
pub(super) use dues::Sent;
use groups::Holds;
pub(super) use groups::Operated;

/// Shorter than any attempt's deadline.
const LATE_NS: u64 = 50_000_000;

/// Where an event is stored.
pub(in crate::sim) type Key = (ShardId, Sequence);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// A final result left, and may have come too late to count.
    MaybeDone,
    Done,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Cancel {
    #[default]
    No,
    /// Asked for, and the answer is not known.
    Asked,
    Cancelled,
}

/// One stored event for one subscription.
#[derive(Clone, Debug, Default)]
struct Task {
    fences: Vec<(u32, u16)>,
    state: State,
    /// From when on its completion was certainly durable.
    durable_ns: Option<u64>,
    /// Incarnation and moment before which a retry would break the backoff.
    retry_from: Option<(u32, u64)>,
}

/// One stored event.
#[derive(Clone, Debug, Default)]
struct Place {
    n: u64,
    /// Incarnation that acknowledged it, and the node's wall clock when that arrived.
    acked: Option<(u32, u64)>,
    /// When it was accepted; an event whose due time has passed is due then.
    accepted_ms: u64,
    cancel: Cancel,
    /// The last start that pushed it, and as due when.
    last_push: Option<(u32, u64)>,
    dues: Dues,
    /// Operations on its group that certainly hold it.
    held: Holds,
    tasks: Vec<Task>,
}

/// One event as its publisher knows it.
#[derive(Clone, Debug)]
struct Published {
    due_ms: u64,
    /// The earliest moment that it was ever asked to be due at.
    least_ms: u64,
    /// How long after it is due it is not delivered any more.
    ttl_ms: Option<u64>,
    topic: usize,
    answered: bool,
    group: Option<usize>,
    /// Operations on its group that may hold it, or have ended it, or have changed when it is due.
    holds: Holds,
    /// Whether there ever was one.
    was_held: bool,
    /// Subscriptions that existed, acknowledged, before it was sent.
    owed: Vec<bool>,
}

/// A push as it leaves the node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaving<'a> {
    pub(super) subscription: usize,
    pub(super) stream: u64,
    pub(super) host: u64,
    pub(super) epoch: u32,
    pub(super) item: PushItem,
    /// When the node says that its event was due.
    pub(super) due_ms: u64,
    pub(super) bytes: &'a [u8],
    /// The node's own.
    pub(super) wall_ms: u64,
    pub(super) now_ns: u64,
    /// Earliest moment at which it may have been decided.
    pub(super) decided_ns: u64,
}

#[derive(Clone, Copy, Debug)]
struct FirstPush {
    order: (u64, Sequence),
    incarnation: u32,
    /// When it left.
    left_ns: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Judge {
    plan: Plan,
    auditors: Vec<Auditor>,
    created: Vec<bool>,
    events: BTreeMap<u64, Published>,
    places: BTreeMap<Key, Place>,
    attempts: Attempts,
    first_pushes: BTreeMap<(usize, u32), Vec<FirstPush>>,
    /// The event whose retry a key waits for.
    held: BTreeMap<(usize, u32), Key>,
    /// Final results since the last moment at which everything was durable.
    fresh_done: Vec<(Key, usize)>,
    incarnation: u32,
    /// Latest moment of the node's clock that an acknowledgement names.
    newest_accepted_ms: u64,
    /// The latest that a node's clock can have said so far.
    latest_wall_ms: u64,
    /// What was due before this may have been missed by some standstill.
    missed_until_ms: u64,
    /// What the node's clock said in each turn of this start, and when, in ns.
    walls: Vec<(u64, u64)>,
    /// Operations on groups that have no answer yet.
    operations: Vec<Operated>,
    /// Of all of them, those that somebody asked to take back.
    taken_back: BTreeSet<u64>,
    pub(super) pushes: u64,
    breach: Option<String>,
}

impl Judge {
    pub(super) fn new(plan: &Plan) -> Self {
        // Key order is judged here, where crashes are known.
        let workload = Workload::new(WorkloadConfig { keys: 0, ..*plan.workload.config() });
        Judge {
            auditors: plan.subscriptions.iter().map(|_| Auditor::new(workload, 0)).collect(),
            created: vec![false; plan.subscriptions.len()],
            events: BTreeMap::new(),
            places: BTreeMap::new(),
            attempts: Attempts::default(),
            first_pushes: BTreeMap::new(),
            held: BTreeMap::new(),
            fresh_done: Vec::new(),
            incarnation: 0,
            newest_accepted_ms: 0,
            latest_wall_ms: 0,
            missed_until_ms: 0,
            walls: Vec::new(),
            operations: Vec::new(),
            taken_back: BTreeSet::new(),
            pushes: 0,
            breach: None,
            plan: plan.clone(),
        }
    }

    /// The node does not get to serve until this moment, or its clock steps there.
    pub(super) fn stood_still(&mut self, until_ms: u64) {
        self.missed_until_ms = self.missed_until_ms.max(until_ms);
    }

    /// A core has its turn.
    pub(super) fn turn(&mut self, now_ns: u64, wall_ms: u64) {
        self.walls.push((now_ns, wall_ms));
    }

    /// The least that the node's clock can have said at a moment of this start.
    fn wall_ms_at(&self, at_ns: u64) -> u64 {
        let later = self.walls.partition_point(|(turn_ns, _)| *turn_ns <= at_ns);
        later.checked_sub(1).map_or(0, |last| self.walls[last].1)
    }

    /// Time passes.
    pub(super) fn clock(&mut self, latest_wall_ms: u64) {
        self.latest_wall_ms = latest_wall_ms;
    }

    pub(super) fn breach(&mut self, what: String) {
        self.breach.get_or_insert(what);
    }

    pub(super) fn broken(&mut self) -> Option<String> {
        for (index, auditor) in self.auditors.iter().enumerate() {
            if !auditor.report().is_clean() {
                let broken = auditor.report().breaches().into_iter().find(|(_, breaches)| breaches.count > 0);
                self.breach.get_or_insert(format!("subscription {index}: {broken:?}"));
            }
        }
        self.breach.clone()
    }

    fn of_topic(&self, topic: usize) -> impl Iterator<Item = usize> + use<> {
        let topics: Vec<usize> = self.plan.subscriptions.iter().map(|s| s.topic).collect();
        topics.into_iter().enumerate().filter(move |(_, of)| *of == topic).map(|(index, _)| index)
    }

    pub(super) fn subscription_created(&mut self, index: usize) {
        self.created[index] = true;
    }

    pub(super) fn published(&mut self, n: u64, due_ms: u64, topic: usize) {
        for index in self.of_topic(topic) {
            self.auditors[index].published(n, due_ms);
        }
        let owed = self
            .plan
            .subscriptions
            .iter()
            .zip(&self.created)
            .map(|(s, created)| s.topic == topic && *created);
        let ttl_ms = self.plan.ttl_ms(n);
        let ttl_ms = (ttl_ms > 0).then_some(ttl_ms);
        let group = self.plan.group(n);
        let published = Published {
            due_ms,
            least_ms: due_ms,
            ttl_ms,
            topic,
            answered: false,
            group,
            holds: Holds::default(),
            was_held: false,
            owed: owed.collect(),
        };
        self.events.insert(n, published);
        self.meets_operations(n);
    }

    pub(super) fn resent(&mut self, n: u64) {
        let topic = self.events[&n].topic;
        for index in self.of_topic(topic) {
            self.auditors[index].resent(n);
        }
    }

    pub(super) fn due_ms(&self, n: u64) -> u64 {
        self.events[&n].due_ms
    }

    /// Whether a node can have found that an event's ttl had passed.
    pub(super) fn may_have_expired(&self, n: u64) -> bool {
        let published = &self.events[&n];
        published.ttl_ms.is_some_and(|ttl_ms| published.least_ms + ttl_ms <= self.latest_wall_ms)
    }

    /// A receipt has arrived. `wall_ms` is the node's clock, where it is the same start of the node.
    pub(super) fn acknowledged(
        &mut self,
        sending: Sending,
        receipt: Accepted,
        incarnation: u32,
        wall_ms: Option<u64>,
    ) {
        let Sending { n, again } = sending;
        let key = (receipt.shard, receipt.sequence);
        let published = self.events.get_mut(&n).expect("it was published");
        assert!(published.answered == again, "a publisher forgets what is answered");
        published.answered = true;
        let topic = published.topic;
        for index in self.of_topic(topic).filter(|_| !again) {
            let place = LoadPlace { shard: key.0, sequence: key.1 };
            self.auditors[index].acknowledged(n, wall_ms.unwrap_or(u64::MAX), place);
        }
        self.judge_receipt(key, n, receipt);
        if let Some(place) = self.place(key, n) {
            place.acked.get_or_insert((incarnation, wall_ms.unwrap_or(u64::MAX)));
            place.accepted_ms = receipt.accepted.0;
        }
        self.judge_names(n);
        self.newest_accepted_ms = self.newest_accepted_ms.max(receipt.accepted.0);
    }

    pub(super) fn refused(&mut self, n: u64) {
        let published = self.events.get_mut(&n).expect("it was published");
        published.answered = true;
        let topic = published.topic;
        for index in self.of_topic(topic) {
            self.auditors[index].refused(n);
        }
    }

    fn place(&mut self, key: Key, n: u64) -> Option<&mut Place> {
        let count = self.plan.subscriptions.len();
        let fresh = || Place { n, tasks: vec![Task::default(); count], ..Place::default() };
        let place = self.places.entry(key).or_insert_with(fresh);
        if place.n != n {
            let what = format!("{key:?} was given to event {n} after event {}", place.n);
            self.breach.get_or_insert(what);
            return None;
        }
        Some(place)
    }

    /// An attempt leaves the node.
    pub(super) fn pushed(&mut self, push: Leaving<'_>) {
        self.pushes += 1;
        let Leaving { subscription: index, item, epoch, .. } = push;
        let Ok((view, _)) = EventView::parse(push.bytes) else {
            return self.breach(format!("a push of {item:?} carries no event"));
        };
        let pushed = Pushed {
            id: view.id(),
            data: view.data(),
            event: item.event_id(),
            due_ms: push.due_ms,
            received_wall_ns: push.wall_ms * 1_000_000,
        };
        self.auditors[index].pushed(&pushed);
        let workload = self.plan.workload;
        let Some(n) = workload.number(view.id()).filter(|n| self.events.contains_key(n)) else {
            return self.breach(format!("a push of {item:?} is of no event that was published"));
        };
        let ordering_key = workload.key(n);
        if ordering_key.map_or(Vec::new(), |key| workload.key_bytes(key).to_vec()) != view.ordering_key() {
            return self.breach(format!("event {n} was pushed under another key"));
        }
        let key = (item.shard, item.sequence);
        if let Some(expiry_ms) = self.events[&n].ttl_ms.map(|ttl_ms| push.due_ms + ttl_ms)
            && self.wall_ms_at(push.decided_ns) >= expiry_ms
        {
            return self
                .breach(format!("event {n} at {key:?} was pushed after it had expired at {expiry_ms}"));
        }
        let incarnation = self.incarnation;
        let Some(place) = self.place(key, n) else { return };
        if place.cancel == Cancel::Cancelled {
            return self.breach(format!("event {n} at {key:?} was pushed after it was cancelled"));
        }
        if let Some(what) = self.is_held_back(key, push.due_ms) {
            return self.breach(format!("event {n} at {key:?} was pushed {what}"));
        }
        self.judge_names(n);
        let Some(place) = self.places.get_mut(&key) else { return };
        let task = &mut place.tasks[index];
        let fence = (epoch, item.attempt);
        let first = task.fences.is_empty();
        // Only a push that was held up for as long as an attempt lasts can leave after its successor.
        let late = push.now_ns - push.decided_ns > LATE_NS;
        let risen = task.fences.iter().all(|past| if late { *past != fence } else { *past < fence });
        let (past, durable_ns, retry_from) = (task.fences.clone(), task.durable_ns, task.retry_from);
        task.fences.push(fence);
        if !risen {
            return self.breach(format!("event {n} at {key:?}: fence {fence:?} after {past:?}"));
        }
        if durable_ns.is_some_and(|at| push.decided_ns > at) {
            return self.breach(format!("event {n} at {key:?} was pushed again after it was done, durably"));
        }
        if retry_from.is_some_and(|(of, at)| of == incarnation && push.now_ns < at) {
            return self.breach(format!("event {n} at {key:?} was retried before its backoff had passed"));
        }
        if let Some(ordering_key) = ordering_key {
            self.judge_order(&push, ordering_key, key, first);
        }
        self.judge_due(key, push.due_ms);
        if let Err(what) =
            self.attempts.begin(&push, key, ordering_key, &self.plan.subscriptions[index].settings)
        {
            self.breach(format!("event {n} at {key:?}: {what}"));
        }
    }

    /// Within a key: by due time, then sequence; nobody passes a task that will be retried.
    fn judge_order(&mut self, push: &Leaving<'_>, ordering_key: u32, key: Key, first: bool) {
        let index = push.subscription;
        if let Some(held) = self.held.get(&(index, ordering_key))
            && *held != key
            && !self.may_have_expired(self.places[held].n)
        {
            let what = format!("{key:?} passed {held:?}, which its key waits for");
            return self.breach(what);
        }
        let place = &self.places[&key];
        if !first {
            return;
        }
        let (due_ms, known_since) = self.order_of(key, push.due_ms);
        let order = (due_ms, key.1);
        // An event that a subscription need not have is due to it from the moment that it exists, if at all.
        let known_since = known_since.filter(|_| self.events[&place.n].owed[index]);
        let pushes = self.first_pushes.entry((index, ordering_key)).or_default();
        // Known, certainly, before the other one became due: its receipt had arrived.
        let known = |other: &FirstPush| {
            known_since.is_some_and(|(incarnation, wall_ms)| {
                incarnation < other.incarnation
                    || (incarnation == other.incarnation && wall_ms < other.order.0)
            })
        };
        let overtook =
            |other: &FirstPush| order < other.order && other.left_ns < push.decided_ns && known(other);
        let overtaker = pushes.iter().copied().find(overtook);
        pushes.push(FirstPush { order, incarnation: self.incarnation, left_ns: push.now_ns });
        if let Some(other) = overtaker {
            self.breach(format!("{:?} passed {order:?} of the same key", other.order));
        }
    }

    /// A result is read by the node.
    pub(super) fn result(
        &mut self,
        subscriber: (usize, u64),
        tag: u64,
        epoch: u32,
        result: escapement_protocol::AttemptResult,
        retry_after_ms: u32,
        now_ns: u64,
    ) {
        use escapement_protocol::AttemptResult::{RetryableFailure, Success};
        let (index, stream) = subscriber;
        let Some((ended, key, ordering_key)) = self.attempts.end_by_result(index, epoch, tag, stream, now_ns)
        else {
            return;
        };
        let certain = ended == Ended::Certainly;
        let settings = &self.plan.subscriptions[index].settings;
        let incarnation = self.incarnation;
        let Some(place) = self.places.get_mut(&key) else { return };
        let n = place.n;
        let task = &mut place.tasks[index];
        if result == RetryableFailure {
            if certain {
                let least_ms = settings.min_backoff_ms * u64::from(1_000 - settings.jitter_permille) / 1_000;
                let asked_ms = u64::from(retry_after_ms).min(settings.max_backoff_ms);
                task.retry_from = Some((incarnation, now_ns + least_ms.max(asked_ms) * 1_000_000));
                if let Some(ordering_key) = ordering_key
                    && settings.max_attempts > 1_000
                {
                    self.held.insert((index, ordering_key), key);
                }
            }
            return;
        }
        if certain {
            task.state = State::Done;
            self.fresh_done.push((key, index));
        } else if task.state == State::Open {
            task.state = State::MaybeDone;
        }
        if let Some(ordering_key) = ordering_key
            && self.held.get(&(index, ordering_key)) == Some(&key)
        {
            self.held.remove(&(index, ordering_key));
        }
        self.auditors[index].finished(Some(n), Success);
    }

    /// A session's first frame is read by the node.
    pub(super) fn attached(&mut self, index: usize, host: u64, stream: u64, running: &[u64]) {
        self.attempts.attached(index, host, stream, running);
    }

    /// A session ended after it had asked for no more.
    pub(super) fn left(&mut self, stream: u64) {
        self.attempts.left(stream);
    }

    /// Everything that the node was told is durable.
    pub(super) fn all_durable(&mut self, now_ns: u64) {
        for (key, index) in self.fresh_done.drain(..) {
            if let Some(place) = self.places.get_mut(&key) {
                place.tasks[index].durable_ns.get_or_insert(now_ns);
            }
        }
    }

    /// A new start of the node, whose clock begins at `wall`: not before what any shard accepted, if all serve.
    pub(super) fn started(&mut self, incarnation: u32, wall: WallMs, all_serve: bool) {
        if all_serve && wall.0 < self.newest_accepted_ms {
            let newest_ms = self.newest_accepted_ms;
            self.breach(format!("the clock went back to {wall} from {newest_ms} or later"));
        }
        self.incarnation = incarnation;
        self.missed_until_ms = self.missed_until_ms.max(wall.0);
        self.attempts = Attempts::default();
        self.held.clear();
        self.walls.clear();
        self.fresh_done.clear();
        // What was asked of an earlier start is carried out by none.
        self.operations.clear();
    }

    /// The node reads a request to cancel.
    pub(super) fn cancel_asked(&mut self, event: EventId) {
        if let Some(place) = self.places.get_mut(&(event.shard, event.sequence)) {
            place.cancel = place.cancel.max_of(Cancel::Asked);
        }
    }

    /// An answer to a cancellation. `wall_ms` is the node's clock, where it is the same start of the node.
    pub(super) fn cancel_answered(&mut self, event: EventId, verdict: CancelVerdict, wall_ms: Option<u64>) {
        let key = (event.shard, event.sequence);
        if !self.places.contains_key(&key) {
            return;
        }
        let due_least_ms = self.due_least_ms(key);
        let Some(place) = self.places.get_mut(&key) else { return };
        let n = place.n;
        match verdict {
            CancelVerdict::Cancelled => {
                place.cancel = Cancel::Cancelled;
                // Of an earlier start, whose clock was ahead, there may be pushes.
                if place.last_push.is_some_and(|(of, _)| of == self.incarnation) {
                    self.breach(format!("event {n} was cancelled after it was pushed"));
                }
            }
            CancelVerdict::TooLate { .. } => {
                if wall_ms.is_some_and(|wall_ms| wall_ms < due_least_ms) {
                    self.breach(format!("event {n} was called too late to cancel before it was due"));
                } else if place.cancel == Cancel::Cancelled {
                    self.breach(format!("event {n} was cancelled, and then was too late to cancel"));
                } else {
                    place.cancel = Cancel::No;
                }
            }
            // A stopped shard says so too, and then nothing is known.
            CancelVerdict::NotFound => {}
        }
    }

    /// Whether an event must still be there: acknowledged, and nothing happened that could have ended it.
    fn is_owed(&self, place: &Place) -> bool {
        let published = &self.events[&place.n];
        place.acked.is_some()
            && place.cancel == Cancel::No
            && !published.holds.has(GroupAct::Cancel)
            && !self.may_have_expired(place.n)
            && self.open_tasks(place, published).next().is_some()
    }

    fn open_tasks<'a>(
        &'a self,
        place: &'a Place,
        published: &'a Published,
    ) -> impl Iterator<Item = usize> + 'a {
        let lasting = |index: &usize| self.plan.subscriptions[*index].settings.max_attempts > 1_000;
        let lasting = move |index: &usize| lasting(index) && !self.may_skip(*index, published);
        let open = |index: &usize| place.tasks[*index].state == State::Open;
        (0..place.tasks.len()).filter(|index| published.owed[*index]).filter(lasting).filter(open)
    }

    /// Whether a subscription can have skipped its task of an event.
    fn may_skip(&self, index: usize, published: &Published) -> bool {
        match self.plan.subscriptions[index].settings.misfire {
            Misfire::SkipOlderThan(ms) => self.latest_wall_ms.saturating_sub(published.least_ms) > ms,
            _ => false,
        }
    }

    /// Holds a recovered shard to what was acknowledged.
    pub(super) fn recovered(
        &mut self,
        shard: ShardId,
        held: impl Fn(Sequence) -> Option<(WallMs, Option<u64>)>,
    ) {
        let range = (shard, Sequence(0))..=(shard, Sequence::MAX);
        let mut found = None;
        for (key, place) in self.places.range(range) {
            let held = held(key.1);
            let pending = held.is_some();
            if let Some(what) = held.and_then(|(due, version)| self.recovered_due(*key, due.0, version)) {
                found.get_or_insert(what);
            }
            if !pending && self.is_owed(place) {
                found.get_or_insert(format!("event {} at {key:?} was acknowledged and is lost", place.n));
            }
            if pending && place.cancel == Cancel::Cancelled {
                found.get_or_insert(format!("event {} at {key:?} was cancelled and is back", place.n));
            }
        }
        if let Some(what) = found {
            self.breach(what);
        }
    }

    /// The log says that a task has ended undelivered, in a block of this time or an earlier one.
    pub(super) fn ended(&mut self, key: Key, subscription: Option<usize>, outcome: Outcome, at: WallMs) {
        let Some(place) = self.places.get(&key) else { return };
        let published = &self.events[&place.n];
        let misfire = subscription.map(|index| self.plan.subscriptions[index].settings.misfire);
        // Of an event that was rescheduled, at any of the times that were asked for.
        let due_ms = published.least_ms.max(place.accepted_ms);
        let is_early = match outcome {
            Outcome::Expired => published.ttl_ms.is_none_or(|ttl_ms| at.0 < published.least_ms + ttl_ms),
            Outcome::Skipped => match misfire {
                Some(Misfire::SkipOlderThan(ms)) => {
                    due_ms >= self.missed_until_ms || at.0.saturating_sub(due_ms) <= ms
                }
                _ => true,
            },
            _ => false,
        };
        if is_early {
            self.breach(format!("{key:?} ended as {outcome:?} by {at}, and should not have"));
        }
    }

    /// What is acknowledged and not delivered.
    pub(super) fn outstanding(&self) -> Vec<(Key, u64)> {
        let owed = self.places.iter().filter(|(_, place)| self.is_owed(place));
        owed.map(|(key, place)| (*key, place.n)).collect()
    }

    /// Places that could be cancelled now, at random by `choose`.
    pub(super) fn pending_events(&self) -> Vec<EventId> {
        let pending = self.places.iter().filter(|(_, place)| place.acked.is_some());
        let id = |(key, place): (&Key, &Place)| EventId {
            shard: key.0,
            sequence: key.1,
            schedule_time_ms: self.events[&place.n].due_ms,
        };
        pending.map(id).collect()
    }
}

impl Cancel {
    fn max_of(self, other: Cancel) -> Cancel {
        if self == Cancel::Cancelled { self } else { other }
    }
}
