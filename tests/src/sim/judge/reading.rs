//! Answers about what is pending, against what was acknowledged.

use std::collections::BTreeSet;

use escapement_protocol::frame::{
    Counts, EventDetail, EventPage, GroupAct, ListEvents, ListedEvent, TaskState,
};
use escapement_protocol::{EventId, EventView, Sequence, ShardId, TopicId};

use super::super::reader::{Asked, Listing, Owed};
use super::{Cancel, Judge, Key, Place};

impl Judge {
    fn place_of(&self, event: EventId) -> Option<&Place> {
        self.places.get(&(event.shard, event.sequence))
    }

    /// Whether an event's cancellation was acknowledged.
    pub(in crate::sim) fn is_cancelled(&self, event: EventId) -> bool {
        self.place_of(event)
            .is_some_and(|place| place.cancel == Cancel::Cancelled || place.held.has(GroupAct::Cancel))
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

    /// Events whose cancellation was acknowledged.
    pub(in crate::sim) fn cancelled_events(&self) -> BTreeSet<Key> {
        let cancelled = self.places.iter().filter(|(_, place)| place.cancel == Cancel::Cancelled);
        cancelled.map(|(key, _)| *key).collect()
    }

    fn ordering_key(&self, n: u64) -> Vec<u8> {
        let workload = self.plan.workload;
        workload.key(n).map_or(Vec::new(), |key| workload.key_bytes(key).to_vec())
    }

    /// The ordering key of an event, empty where it has none.
    pub(in crate::sim) fn ordering_key_of(&self, event: EventId) -> Vec<u8> {
        self.place_of(event).map_or(Vec::new(), |place| self.ordering_key(place.n))
    }

    /// When an event is due, where nothing can have changed that.
    fn sure_due_ms(&self, key: Key) -> Option<u64> {
        let place = &self.places[&key];
        let due_ms = place.dues.known_ms().unwrap_or(self.events[&place.n].due_ms.max(place.accepted_ms));
        (place.dues.is_sure() && !self.may_be_postponed(place)).then_some(due_ms)
    }

    /// Events that a listing which begins now has to show, if nothing happens to them.
    pub(in crate::sim) fn owed_to(&self, list: &ListEvents, topic: usize) -> Vec<Owed> {
        let is_meant = |place: &Place| {
            let key = self.ordering_key(place.n);
            self.events[&place.n].topic == topic && (list.ordering_key.is_empty() || list.ordering_key == key)
        };
        let owed = self.places.iter().filter(|(_, place)| is_meant(place) && self.is_owed(place));
        let known = owed.filter_map(|(key, _)| {
            let (key, due_ms, version) = (*key, self.sure_due_ms(*key)?, self.version(*key));
            Some(Owed { key, due_ms, version })
        });
        known.filter(|owed| (list.from.0..list.until.0).contains(&owed.due_ms)).collect()
    }

    /// A page of a listing: what it shows is there, and was asked for.
    pub(in crate::sim) fn listed(
        &mut self,
        listing: &mut Listing,
        page: &EventPage,
        clock: Option<(u64, u64)>,
    ) {
        for listed in &page.events {
            listing.seen.insert((listed.info.id.shard, listed.info.id.sequence));
            if let Some(wrong) = self.wrong_in(listing, listed, clock) {
                self.breach(format!("{listed:?} was listed for {:?}: {wrong}", listing.list));
            }
        }
    }

    fn wrong_in(
        &self,
        listing: &Listing,
        listed: &ListedEvent,
        clock: Option<(u64, u64)>,
    ) -> Option<&'static str> {
        let (info, list) = (listed.info, &listing.list);
        let place = self.place_of(info.id)?;
        let due_ms = self.events[&place.n].due_ms.max(place.accepted_ms);
        let is_known = place.dues.was_known_at(clock.map(|(then_ms, _)| (self.incarnation, then_ms)));
        let is_as_published = place.dues.is_untouched() && !self.may_be_postponed(place);
        let clock = clock.filter(|_| is_as_published && place.acked.is_some());
        let holds = &self.events[&place.n].holds;
        let is_early = clock.is_some_and(|(_, now_ms)| info.state != TaskState::Scheduled && now_ms < due_ms);
        let is_late =
            clock.is_some_and(|(then_ms, _)| info.state == TaskState::Scheduled && due_ms <= then_ms);
        let key = self.ordering_key(place.n);
        if listing.cancelled.contains(&(info.id.shard, info.id.sequence)) {
            Some("it was cancelled before")
        } else if info.id.schedule_time_ms != self.events[&place.n].due_ms
            || self.plan.workload.number(listed.id.as_bytes()) != Some(place.n)
            || listed.ordering_key != key
        {
            Some("it is another event")
        } else if info.topic != list.topic || self.events[&place.n].topic != listing.topic {
            Some("it is of another topic")
        } else if !list.ordering_key.is_empty() && list.ordering_key != key {
            Some("it has another key")
        } else if place.acked.is_some() && is_known && !place.dues.may_be(info.due.0, due_ms, holds) {
            Some("it is due at another time")
        } else if !(list.from..list.until).contains(&info.due) && !self.may_be_postponed(place) {
            Some("it is due at a time that was not asked for")
        } else if is_early || is_late || list.state.is_some_and(|state| state != info.state) {
            Some("it is in another state")
        } else {
            None
        }
    }

    /// A listing has come to its end: what was pending all the time was shown. `wall_ms` is the node's clock.
    pub(in crate::sim) fn list_ended(&mut self, listing: &Listing, wall_ms: Option<u64>) {
        let list = &listing.list;
        let is_any_time = list.from.0 == 0 && list.until.0 == u64::MAX;
        let has_state = |due_ms: u64| match list.state {
            None => true,
            Some(TaskState::Scheduled) => wall_ms.is_some_and(|now_ms| now_ms < due_ms),
            Some(_) => false,
        };
        let missed = listing.owed.iter().find(|owed| {
            let Owed { key, due_ms, version } = **owed;
            let is_as_it_was = self.sure_due_ms(key) == Some(due_ms) && self.version(key) == version;
            let is_asked_for = is_as_it_was && has_state(due_ms) || is_any_time && list.state.is_none();
            let is_there = !listing.missing.contains(&key.0);
            is_asked_for && is_there && self.is_owed(&self.places[&key]) && !listing.seen.contains(&key)
        });
        if let Some(Owed { key, due_ms, .. }) = missed {
            let n = self.places[key].n;
            self.breach(format!("event {n} at {key:?}, due at {due_ms}, was not listed for {list:?}"));
        }
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
        let is_known = place.dues.was_known_at(clock.map(|(then_ms, _)| (self.incarnation, then_ms)));
        let clock = clock.filter(|_| place.dues.is_untouched() && !self.may_be_postponed(place));
        let holds = &self.events[&place.n].holds;
        let is_early = clock.is_some_and(|(_, now_ms)| info.state != TaskState::Scheduled && now_ms < due_ms);
        let is_late =
            clock.is_some_and(|(then_ms, _)| info.state == TaskState::Scheduled && due_ms <= then_ms);
        let number = |bytes: &[u8]| self.plan.workload.number(EventView::parse(bytes).ok()?.0.id());
        let is_another = detail.bytes.as_deref().map(number).is_some_and(|of| of != Some(n));
        let wrong = if asked.is_made_up {
            "nobody was given that id"
        } else if asked.was_cancelled && self.is_cancelled(event) {
            "it was cancelled before"
        } else if info.id != event || topic.is_some_and(|topic| topic != info.topic) || is_another {
            "it is another event"
        } else if is_known && !place.dues.may_be(info.due.0, due_ms, holds) {
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
