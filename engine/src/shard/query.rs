//! Saying what is pending. Nothing here changes anything but operations on groups, which have their own file. Every answer is
//! from durable state: an event whose publish was acknowledged is found, and one whose cancellation was acknowledged is not.

use escapement_protocol::frame::{
    Counts, EventDetail, EventInfo, EventPlace, OutcomeCount, Query, QueryAnswer, TASK_INFO_COUNT_MAX,
    TaskInfo, TaskState,
};
use escapement_protocol::{EventId, SubscriptionId, TopicId, WallMs};

use super::far::{Aim, LookUp};
use super::{PendingEvent, Shard};
use crate::effects::{Effects, ReplyBody, Ticket};
use crate::record::TaskProgress;

/// What is known of a pending event, wherever it is.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) due: WallMs,
    pub(super) topic: TopicId,
    pub(super) size_bytes: u32,
    pub(super) place: EventPlace,
    pub(super) tasks: &'a [TaskProgress],
    /// How often it was rescheduled.
    pub(super) version: u64,
}

/// Where an event stands, as far as its own shard knows: who runs its tasks is known to the subscriptions' owners.
pub(super) fn state_of(now: WallMs, due: WallMs, tasks: &[TaskProgress]) -> TaskState {
    if due > now {
        TaskState::Scheduled
    } else if tasks.iter().any(|task| !task.done && task.next_due > now) {
        TaskState::Backoff
    } else {
        TaskState::Ready
    }
}

impl Shard {
    pub(super) fn query(&mut self, ticket: Ticket, query: &Query, out: &mut Effects) {
        match query {
            Query::Event { event, peek } => self.get(ticket, *event, *peek, out),
            Query::Count { topic, subscription, .. } => {
                let counts = self.counts(*topic, *subscription);
                out.reply(ticket, ReplyBody::Answered(QueryAnswer::Count(counts)));
            }
            Query::Due { topic, .. } => {
                let counts = self.due_counts(*topic);
                out.reply(ticket, ReplyBody::Answered(QueryAnswer::Due(counts)));
            }
            Query::List(list) => self.list(ticket, list, out),
            Query::Group(operation) => self.operate_on_group(ticket, operation, out),
        }
    }

    /// Pending events of a topic, or of all for topic 0; and the tasks of a subscription.
    fn counts(&self, topic: TopicId, subscription: SubscriptionId) -> Counts {
        let Shard { durable, volatile, router, .. } = self;
        let (memory, in_runs, ready) = match topic {
            TopicId(0) => (durable.table.len() as u64, durable.runs.pending(), volatile.open.total()),
            topic => {
                (durable.copies.pending_of(topic), durable.runs.pending_of(topic), volatile.open.of(topic))
            }
        };
        let tasks = router.stats(subscription).unwrap_or_default();
        let ended = volatile.ended_counts.of(subscription);
        // Those that are cancelled with their group wait for their time, here or there.
        let scheduled = (memory + in_runs - ready).saturating_sub(durable.groups.cancelled_of(topic));
        Counts {
            scheduled,
            ready,
            in_runs: in_runs.min(scheduled),
            queued: tasks.queued as u64,
            running: tasks.running as u64,
            backoff: tasks.backoff as u64,
            ended: ended.map(|(outcome, count)| OutcomeCount { outcome: outcome as u8, count }).collect(),
        }
    }

    /// The event of that id, if it is in memory. The whole id must be right: its due time guards against a number that
    /// was made up.
    pub(super) fn named(&self, event: EventId) -> Option<PendingEvent<'_>> {
        self.event(event.sequence).filter(|held| held.schedule_time().0 == event.schedule_time_ms)
    }

    /// Answers what is known of an event.
    pub(super) fn get(&mut self, ticket: Ticket, event: EventId, peek: bool, out: &mut Effects) {
        let Some(held) = self.named(event) else {
            return self.look_up(LookUp { ticket, event, aim: Aim::Get { peek } }, out);
        };
        let PendingEvent { bytes, due, topic, .. } = held;
        if self.durable.is_cancelled_with_group(topic, event.sequence, bytes) {
            return out.reply(ticket, Aim::Get { peek }.not_found());
        }
        let due = self.durable.due_with_group(topic, event.sequence, bytes, due);
        let tasks = self.durable.progress.get(event.sequence);
        let (size_bytes, place) = (bytes.len() as u32, EventPlace::Memory);
        let version = self.durable.version(event.sequence);
        let known = Known { due, topic, size_bytes, place, tasks, version };
        let answer = self.detail(event, known, peek.then(|| bytes.to_vec()));
        out.reply(ticket, ReplyBody::Answered(answer));
    }

    /// The answer about one event.
    pub(super) fn detail(&self, id: EventId, known: Known<'_>, bytes: Option<Vec<u8>>) -> QueryAnswer {
        let Known { due, topic, size_bytes, place, tasks, version } = known;
        let state = state_of(self.volatile.now.wall, due, tasks);
        let info = EventInfo { id, due, topic, size_bytes, state, place };
        let shown = tasks.iter().take(TASK_INFO_COUNT_MAX).map(|task| TaskInfo {
            subscription: task.subscription,
            attempt: task.attempt,
            excused: task.excused,
            next_due: task.next_due,
            done: task.done,
        });
        let (tasks, task_count) = (shown.collect(), tasks.len() as u32);
        QueryAnswer::Event(Some(Box::new(EventDetail { info, tasks, task_count, bytes, version })))
    }
}
