//! Answers about what is pending, against what was acknowledged.

use escapement_protocol::frame::{Counts, EventDetail, TaskState};
use escapement_protocol::{EventId, EventView, Sequence, ShardId, TopicId};

use super::super::reader::Asked;
use super::{Cancel, Judge, Key, Place};

impl Judge {
    fn place_of(&self, event: EventId) -> Option<&Place> {
        self.places.get(&(event.shard, event.sequence))
    }

    /// Whether an event's cancellation was acknowledged.
    pub(in crate::sim) fn is_cancelled(&self, event: EventId) -> bool {
        self.place_of(event).is_some_and(|place| place.cancel == Cancel::Cancelled)
    }

    /// Index of an event's topic.
    pub(in crate::sim) fn topic_of(&self, event: EventId) -> Option<usize> {
        Some(self.events[&self.place_of(event)?.n].topic)
    }

    /// Events of a shard, and of a topic or of all, that must be there.
    pub(in crate::sim) fn owed_in(&self, shard: ShardId, topic: Option<usize>) -> Vec<Key> {
        let places = self.places.range((shard, Sequence(0))..=(shard, Sequence::MAX));
        let of_topic = |place: &Place| topic.is_none_or(|topic| self.events[&place.n].topic == topic);
        places.filter(|(_, place)| of_topic(place) && self.is_owed(place)).map(|(key, _)| *key).collect()
    }

    /// The answer about counts: what had to be there when it was asked for, and has to be there still, is counted.
    pub(in crate::sim) fn counted(&mut self, asked: &Asked, counts: &Counts) {
        let still =
            asked.owed.iter().filter(|key| self.places.get(key).is_some_and(|place| self.is_owed(place)));
        let least = still.count() as u64;
        if counts.scheduled + counts.ready < least || counts.in_runs > counts.scheduled {
            self.breach(format!("{least} events and more are pending, and {:?} is {counts:?}", asked.query));
        }
    }

    /// The answer about an event: `found` where the node says that it is pending. `clock` is the node's when it was asked
    /// and now, where both are of one start of the node.
    pub(in crate::sim) fn event_answered(
        &mut self,
        (event, peek): (EventId, bool),
        asked: &Asked,
        found: Option<&EventDetail>,
        topic: Option<TopicId>,
        clock: Option<(u64, u64)>,
    ) {
        let Some(place) = self.place_of(event) else { return };
        let (n, due_ms) = (place.n, self.events[&place.n].due_ms.max(place.accepted_ms));
        let Some(detail) = found else {
            if !asked.is_made_up && self.is_owed(place) {
                self.breach(format!("event {n} at {event} is pending and was not found"));
            }
            return;
        };
        let info = detail.info;
        let clock = clock.filter(|_| place.dues.is_untouched());
        let is_early = clock.is_some_and(|(_, now_ms)| info.state != TaskState::Scheduled && now_ms < due_ms);
        let is_late =
            clock.is_some_and(|(then_ms, _)| info.state == TaskState::Scheduled && due_ms <= then_ms);
        let number = |bytes: &[u8]| self.plan.workload.number(EventView::parse(bytes).ok()?.0.id());
        let is_another = detail.bytes.as_deref().map(number).is_some_and(|of| of != Some(n));
        let wrong = if asked.is_made_up {
            "nobody was given that id"
        } else if asked.was_cancelled {
            "it was cancelled before"
        } else if info.id != event || topic.is_some_and(|topic| topic != info.topic) || is_another {
            "it is another event"
        } else if !place.dues.may_be(info.due.0, due_ms) {
            "it is due at another time"
        } else if is_early || is_late {
            "it is in another state"
        } else if peek != detail.bytes.is_some() {
            "its bytes are there only where they were asked for"
        } else {
            return;
        };
        self.breach(format!("event {n} at {event}, due at {due_ms}, was found as {info:?}: {wrong}"));
    }
}
