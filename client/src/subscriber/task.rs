//! Attempts as handlers see them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use escapement_protocol::frame::{PushBatch, PushItem};
use escapement_protocol::{Epoch, EventView, Tag, TaskId, TopicId, WallMs};

use super::{Answer, Outbox, ResultSink};

/// One attempt, borrowed from the frame it came in.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// The task: stable over attempts, so that a subscriber can recognise a repetition.
    pub task: TaskId,
    /// Generation of the task's owner. With `attempt` it is the task's fence, the pair that only rises.
    pub epoch: Epoch,
    /// Number of the attempt, from 1.
    pub attempt: u16,
    /// The event's topic.
    pub topic: TopicId,
    /// When it was to be due as it was published, which its id carries.
    pub schedule_time: WallMs,
    /// When it was due: `schedule_time`, unless it was rescheduled.
    pub due: WallMs,
    /// Without a result this long after the push left, the attempt has failed.
    pub deadline: Duration,
    /// The event.
    pub event: EventView<'a>,
}

impl<'a> Attempt<'a> {
    fn new(batch: &PushBatch<'_>, item: &PushItem, due: WallMs, event: EventView<'a>) -> Self {
        Attempt {
            task: TaskId { event: item.event_id(), subscription: batch.subscription },
            epoch: batch.epoch,
            attempt: item.attempt,
            topic: item.topic,
            schedule_time: item.schedule_time,
            due,
            deadline: Duration::from_millis(item.deadline_ms.into()),
            event,
        }
    }
}

/// One attempt that owns its event's bytes, which it shares with the others of its frame.
#[derive(Clone, Debug)]
pub struct Task {
    /// The task: stable over attempts, so that a subscriber can recognise a repetition.
    pub task: TaskId,
    /// Generation of the task's owner. With `attempt` it is the task's fence, the pair that only rises.
    pub epoch: Epoch,
    /// Number of the attempt, from 1.
    pub attempt: u16,
    /// The event's topic.
    pub topic: TopicId,
    /// When it was to be due as it was published, which its id carries.
    pub schedule_time: WallMs,
    /// When it was due: `schedule_time`, unless it was rescheduled.
    pub due: WallMs,
    /// Without a result this long after the push left, the attempt has failed.
    pub deadline: Duration,
    event: Bytes,
}

impl Task {
    /// The event.
    ///
    /// # Panics
    /// Never: the bytes were read before.
    #[must_use]
    pub fn event(&self) -> EventView<'_> {
        EventView::trusted(&self.event).expect("a task is made of an event that was read")
    }
}

/// Each attempt of a frame with its tag; `None` where its event cannot be read.
pub(super) fn attempts(batch: &PushBatch<'_>, mut each: impl FnMut(Tag, Option<Attempt<'_>>)) {
    for ((item, bytes), due) in batch.iter().zip(batch.dues()) {
        let event = EventView::parse(bytes).ok();
        each(item.tag, event.map(|(event, _)| Attempt::new(batch, &item, due, event)));
    }
}

/// Each attempt of a frame with what answers it, registered as running. One whose event cannot be
/// read is answered with a retryable failure: the fault lies in between, and a retry may not meet it.
pub(super) fn tasks(
    batch: &PushBatch<'_>,
    outbox: &Arc<Outbox>,
    results: &mut ResultSink,
    mut each: impl FnMut(Task, Answer),
) {
    let events = batch.events.bytes();
    let shared = Bytes::copy_from_slice(events);
    attempts(batch, |tag, attempt| {
        let Some(Attempt { task, epoch, attempt, topic, schedule_time, due, deadline, event }) = attempt
        else {
            return results.push_retry(tag, 0);
        };
        let start = event.as_bytes().as_ptr().addr() - events.as_ptr().addr();
        let event = shared.slice(start..start + event.as_bytes().len());
        outbox.start(tag);
        let answer = Answer { tag, outbox: outbox.clone(), given: false };
        each(Task { task, epoch, attempt, topic, schedule_time, due, deadline, event }, answer);
    });
}
