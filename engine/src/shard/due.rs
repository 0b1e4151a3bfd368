//! What happens at an event's due time: matching, routing, pushing, ending.

use escapement_protocol::event::{FLAG_ORDERING_KEY, has_group, has_ttl};
use escapement_protocol::{EventView, MonoNs, Now, Outcome, Sequence, SubscriptionId, TopicId, WallMs};
use escapement_router::{Decision, TaskRef};

use super::apply::{Change, Progressed};
use super::expiry::expire_time;
use super::misfire::Missed;
use super::publish::TASK_SIZE_BYTES;
use super::{Durable, Ended, Shard, Volatile};
use crate::effects::{Effects, Message, Push};
use crate::record::WALL_MAX;
use crate::registry::Topic;
use crate::wheel::Tick;

/// Most sequences of one `Completed` record.
const COMPLETED_COUNT_MAX: usize = 16 * 1024;

impl Shard {
    /// Tasks of this shard's events that may be with routers at once. Beyond, what is due waits in queues: a backlog
    /// that nobody takes must not fill the memory, nor the router that owns it.
    pub(super) fn open_tasks_max(&self) -> usize {
        let share = escapement_router::TASK_COUNT_MAX / 2 / usize::from(self.config.shard_count.max(1));
        (self.config.memory_bytes_max / TASK_SIZE_BYTES).min(share)
    }

    /// Matches what has become due, up to a batch.
    pub(super) fn fire_due(&mut self, out: &mut Effects) {
        if !self.keeps_order() {
            return self.fire_in_turns(out);
        }
        let unread = self.far_due();
        let most = self.config.batch_count_max;
        let mut due = std::mem::take(&mut self.volatile.due);
        let mut more_due = self.advance_wheel(most, &mut due);
        self.volatile.backlog.matched_in_order(more_due);
        self.durable.warm(due.iter().map(|sequence| Sequence(*sequence)));
        self.hold_back(&mut due, unread);
        self.expand(&due, None, out);
        let mut room = most - due.len().min(most);
        due.clear();
        more_due |= self.release_held(unread, room, &mut due);
        self.expand(&due, None, out);
        room -= due.len();
        due.clear();
        self.volatile.due = due;
        self.volatile.more_due = more_due;
        if !more_due {
            self.drain_overdue(room, out);
        }
    }

    /// Appends what the wheel yields of what has become due to `due`, up to `most`. Answers whether more is due.
    pub(super) fn advance_wheel(&mut self, most: usize, due: &mut Vec<u64>) -> bool {
        let now = self.volatile.now.wall;
        let table = &self.durable.table;
        let Volatile { wheel, fenced, rescheduling, .. } = &mut self.volatile;
        let due_of = |key: u64| {
            let sequence = Sequence(key);
            let entry = table.get(sequence)?;
            // An event whose cancellation or other due time is on its way to the disk must not leave.
            let is_changing = fenced.contains(&sequence) || rescheduling.contains_key(&sequence);
            (!is_changing).then_some(Tick(entry.due.0))
        };
        wheel.advance(Tick(now.0), most, due_of, due)
    }

    /// Turns due events into their tasks. Of an overdue one, `position` says which of all overdue ones it is.
    pub(super) fn expand(&mut self, due: &[u64], position: Option<u64>, out: &mut Effects) {
        let Shard { durable, volatile, router, config, .. } = self;
        let now = volatile.now;
        // Events that are due together mostly have one topic.
        let mut topic: Option<&Topic> = None;
        for sequence in due.iter().copied().map(Sequence) {
            let Some(entry) = durable.table.get(sequence) else { continue };
            assert!(entry.due <= now.wall, "never early: {sequence:?} is due at {}", entry.due);
            if !volatile.fenced.is_empty() && volatile.fenced.contains(&sequence) {
                continue;
            }
            let event = durable.payloads.event(entry.location);
            if has_group(event) && !volatile.leave_group(durable, sequence, entry) {
                continue;
            }
            volatile.open.add(entry.topic, 1);
            let task = task_ref(config.shard, sequence, entry.due, entry.topic, event);
            if topic.is_none_or(|topic| topic.id != entry.topic) {
                topic = durable.registry.topic(entry.topic);
            }
            let subscriptions = topic.map_or(&[][..], |topic| &topic.subscriptions);
            let standstill = volatile.standstills.of(entry.due);
            let progress = durable.progress.get(sequence);
            let of = |id: SubscriptionId| progress.iter().find(|task| task.subscription == id);
            let open = || subscriptions.iter().filter(|(id, _)| !of(*id).is_some_and(|task| task.done));
            let count = if progress.is_empty() { subscriptions.len() } else { open().count() };
            if count == 0 {
                // Where some tasks had ended before a restart and none is left, the event has simply ended.
                let ended = if progress.is_empty() { Outcome::Unmatched } else { Outcome::Succeeded };
                volatile.end_task(SubscriptionId(0), sequence, ended);
                continue;
            }
            volatile.open_tasks += count;
            if count > 1 {
                volatile.fanout.insert(sequence, count as u32);
            }
            if task.expires
                && let Some(expiry) = expire_time(event, entry.due, durable.forwards.contains_key(&sequence))
            {
                if expiry <= now.wall {
                    open().for_each(|(id, _)| volatile.end_task(*id, sequence, Outcome::Expired));
                    continue;
                }
                volatile.expiries.insert(Tick(expiry.0), sequence.0);
            }
            for (id, owner) in open() {
                let (task, next_due) = match (of(*id), standstill) {
                    (Some(past), _) => {
                        (TaskRef { attempt: past.attempt, excused: past.excused, ..task }, past.next_due)
                    }
                    (None, None) => (task, WallMs(0)),
                    (None, Some(standstill)) => {
                        let subscription = durable.registry.subscription(*id).expect("its topic names it");
                        let misfire = subscription.settings.misfire;
                        match standstill.missed(misfire, entry.due, position.unwrap_or(0), now.wall) {
                            Missed::Offer { from } => (task, from),
                            Missed::Skip => {
                                volatile.end_task(*id, sequence, Outcome::Skipped);
                                continue;
                            }
                        }
                    }
                };
                if position.is_some() {
                    volatile.lane.opened(*id, sequence);
                }
                if *owner == config.shard {
                    router.offer(now.mono, *id, not_before(now, task, next_due));
                } else {
                    out.forwards.push((*owner, Message::Offer { subscription: *id, task, next_due }));
                }
            }
        }
    }

    /// Takes a due task of another shard into this shard's router.
    pub(super) fn offer(&mut self, subscription: SubscriptionId, task: TaskRef, next_due: WallMs) {
        let now = self.volatile.now;
        self.router.offer(now.mono, subscription, not_before(now, task, next_due));
    }

    /// Lets the router pick, and carries out or forwards what it decides.
    pub(super) fn route(&mut self, out: &mut Effects) {
        let now = self.volatile.now;
        let mut decisions = std::mem::take(&mut self.volatile.decisions);
        self.router.run(now.mono, &mut decisions);
        for decision in decisions.drain(..) {
            match decision {
                Decision::Dispatch { subscription, session, tag, task, attempt, deadline_ms } => {
                    let TaskRef { sequence, expires, .. } = task;
                    let push = Push { session, subscription, tag, sequence, attempt, deadline_ms, expires };
                    if task.shard == self.config.shard {
                        self.push(push, out);
                    } else {
                        out.forwards.push((task.shard, Message::Dispatch(push)));
                    }
                }
                Decision::Complete { subscription, task, outcome } => {
                    if task.shard == self.config.shard {
                        self.volatile.end_task(subscription, task.sequence, outcome);
                    } else {
                        let sequence = task.sequence;
                        out.forwards
                            .push((task.shard, Message::TaskDone { subscription, sequence, outcome }));
                    }
                }
                Decision::AttemptFailed { subscription, task, attempt, next_due } => {
                    let next_due = wall_of(now, next_due);
                    let TaskRef { sequence, excused, .. } = task;
                    if task.shard == self.config.shard {
                        self.log_attempt_failed(subscription, sequence, attempt, excused, next_due, out);
                    } else {
                        let message =
                            Message::AttemptFailed { subscription, sequence, attempt, excused, next_due };
                        out.forwards.push((task.shard, message));
                    }
                }
            }
        }
        self.volatile.decisions = decisions;
    }

    pub(super) fn push(&mut self, push: Push, out: &mut Effects) {
        if push.expires && self.has_expired(push.sequence) {
            return self.expire_task(push.subscription, push.sequence, Some(push.tag), out);
        }
        self.volatile.stats.dispatched += 1;
        out.pushes.push(push);
    }

    /// Logs what ended in this turn: one record for each subscription and outcome.
    pub(super) fn log_ended(&mut self, out: &mut Effects) {
        if self.volatile.ended.is_empty() {
            return;
        }
        let mut ended = std::mem::take(&mut self.volatile.ended);
        let mut sequences = std::mem::take(&mut self.volatile.sequences);
        let group = |e: &Ended| (e.subscription, e.outcome as u8, e.last);
        if ended.windows(2).any(|pair| group(&pair[0]) != group(&pair[1])) {
            ended.sort_unstable_by_key(|e| (group(e), e.sequence));
        }
        for same in ended.chunk_by(|a, b| group(a) == group(b)) {
            let Ended { subscription, outcome, last, .. } = same[0];
            self.volatile.ended_counts.add(subscription, outcome, same.len() as u64);
            // Half a block, so that records pack well.
            let count_max = COMPLETED_COUNT_MAX.min(self.config.block_size_bytes_max / 8);
            for part in same.chunks(count_max) {
                sequences.clear();
                sequences.extend(part.iter().map(|e| e.sequence));
                out.log().completed(subscription, outcome, last, &sequences);
                if last {
                    self.volatile.ending.extend(&sequences);
                } else {
                    let done = |sequence| Progressed { sequence, subscription, change: Change::Done };
                    self.volatile.progressed.extend(sequences.iter().copied().map(done));
                }
            }
        }
        ended.clear();
        self.volatile.ended = ended;
        self.volatile.sequences = sequences;
    }

    pub(super) fn log_attempt_failed(
        &mut self,
        subscription: SubscriptionId,
        sequence: Sequence,
        attempt: u16,
        excused: u16,
        next_due: WallMs,
        out: &mut Effects,
    ) {
        self.volatile.lane.freed(subscription, sequence);
        out.log().attempt_failed(subscription, sequence, attempt, excused, next_due);
        let change = Change::Failed { attempt, excused, next_due };
        self.volatile.progressed.push_back(Progressed { sequence, subscription, change });
        // The attempt was out when the event expired: there is no further one.
        if self.has_expired(sequence) {
            self.expire_task(subscription, sequence, None, out);
        }
    }
}

impl Durable {
    /// Reads a little of each event before the whole batch is worked on, so that the batch's cache misses overlap
    /// instead of following one another: at a million pending events nearly every first touch is one.
    pub(super) fn warm(&self, sequences: impl Iterator<Item = Sequence>) {
        let touched = sequences.filter_map(|sequence| self.table.get(sequence));
        let mixed = touched.fold(0, |mixed, entry| mixed ^ self.payloads.touch(entry.location));
        std::hint::black_box(mixed);
    }
}

impl Volatile {
    /// Whether an event's cancellation or other due time is on its way to the disk.
    pub(super) fn is_changing(&self, sequence: Sequence) -> bool {
        self.fenced.contains(&sequence) || self.rescheduling.contains_key(&sequence)
    }

    /// A task of this shard's event has ended.
    pub(super) fn end_task(&mut self, subscription: SubscriptionId, sequence: Sequence, outcome: Outcome) {
        let fanout = &mut self.fanout;
        let mut last = true;
        if !fanout.is_empty()
            && let Some(left) = fanout.get_mut(&sequence)
        {
            *left -= 1;
            last = *left == 0;
            if last {
                fanout.remove(&sequence);
            }
        }
        // An event that nobody subscribes to ends without a task.
        if subscription != SubscriptionId(0) {
            self.open_tasks -= 1;
        }
        self.lane.freed(subscription, sequence);
        self.stats.completed += 1;
        match outcome {
            Outcome::Expired => {
                self.stats.expired += 1;
                self.undelivered.entry(subscription).or_default().expired += 1;
            }
            Outcome::Skipped => {
                self.stats.skipped += 1;
                self.undelivered.entry(subscription).or_default().skipped += 1;
            }
            _ => {}
        }
        self.ended.push(Ended { subscription, outcome, last, sequence });
    }
}

fn not_before(now: Now, task: TaskRef, next_due: WallMs) -> TaskRef {
    if next_due <= now.wall {
        return task;
    }
    TaskRef { not_before: now.mono.plus_ms(next_due.0 - now.wall.0), ..task }
}

fn wall_of(now: Now, at: MonoNs) -> WallMs {
    // Rounded up: a retry, too, is never early.
    now.wall.plus_ms(at.since(now.mono).div_ceil(1_000_000)).min(WALL_MAX)
}

fn task_ref(
    shard: escapement_protocol::ShardId,
    sequence: Sequence,
    due: WallMs,
    topic: TopicId,
    event: &[u8],
) -> TaskRef {
    let (size_bytes, key) = (event.len() as u32, key_of(event));
    TaskRef { shard, sequence, due, size_bytes, topic, key, expires: has_ttl(event), ..TaskRef::default() }
}

/// Hash of an event's ordering key; 0 where there is none.
pub(super) fn key_of(event: &[u8]) -> u64 {
    let keyed = event.get(5).is_some_and(|flags| flags & FLAG_ORDERING_KEY != 0);
    if keyed {
        let view = EventView::trusted(event);
        // 0 means no key, so that one hash value is moved.
        view.map_or(0, |view| xxhash_rust::xxh3::xxh3_64(view.ordering_key()).max(1))
    } else {
        0
    }
}
