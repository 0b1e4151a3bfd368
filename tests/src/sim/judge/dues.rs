//! When an event may be due, as far as answers to its rescheduling tell.

use std::collections::BTreeMap;

use escapement_protocol::frame::{GroupAct, RescheduleVerdict};

use super::{Holds, Judge, Key};

/// A rescheduling that was asked for, and of which it is not known whether it was carried out, or when.
#[derive(Clone, Copy, Debug)]
struct Asked {
    /// The start of the node that it was sent to.
    incarnation: u32,
    /// No sooner than this.
    least_ms: u64,
}

/// What is known of one event's due time.
#[derive(Clone, Debug, Default)]
pub(super) struct Dues {
    /// The time and the version that an answer named last; `None` while there was none.
    known: Option<(u64, u64)>,
    /// When that answer came: the start of the node, and its clock.
    known_at: Option<(u32, u64)>,
    /// By request.
    asked: BTreeMap<u64, Asked>,
}

impl Dues {
    /// Whether the event may be due then, one that was published for `published_ms` and may have been postponed with its group.
    pub(super) fn may_be(&self, due_ms: u64, published_ms: u64, holds: &Holds) -> bool {
        let known_ms = self.known.map_or(published_ms, |(known_ms, _)| known_ms);
        let is_known = due_ms.checked_sub(known_ms).is_some_and(|later_ms| holds.may_postpone_by(later_ms));
        is_known || self.asked.values().any(|asked| asked.least_ms <= due_ms)
    }

    fn version(&self) -> u64 {
        self.known.map_or(0, |(_, version)| version)
    }

    /// When the last answer says that the event is due.
    pub(super) fn known_ms(&self) -> Option<u64> {
        self.known.map(|(due_ms, _)| due_ms)
    }

    /// Whether everything that was asked for had its answer.
    pub(super) fn is_sure(&self) -> bool {
        self.asked.is_empty()
    }

    /// Whether the last answer came before that moment of that start of the node: what was asked then is answered with it.
    pub(super) fn was_known_at(&self, asked: Option<(u32, u64)>) -> bool {
        self.known_at.is_none_or(|known_at| asked.is_some_and(|asked| known_at < asked))
    }

    pub(super) fn is_untouched(&self) -> bool {
        self.known.is_none() && self.asked.is_empty()
    }
}

/// A rescheduling as its client sent it.
#[derive(Clone, Copy, Debug)]
pub(in crate::sim) struct Sent {
    pub(in crate::sim) key: Key,
    pub(in crate::sim) request: u64,
    pub(in crate::sim) incarnation: u32,
    /// The moment that was asked for; `None` for one that counts from when the node read it.
    pub(in crate::sim) at_ms: Option<u64>,
    /// No sooner than this.
    pub(in crate::sim) least_ms: u64,
    pub(in crate::sim) expected: Option<u64>,
}

impl Judge {
    /// The version that an event has, as far as is known.
    pub(in crate::sim) fn version(&self, key: Key) -> u64 {
        self.places.get(&key).map_or(0, |place| place.dues.version())
    }

    /// When an event is due, as far as is known.
    pub(in crate::sim) fn known_due_ms(&self, key: Key) -> u64 {
        let place = &self.places[&key];
        place.dues.known.map_or(self.events[&place.n].due_ms, |(due_ms, _)| due_ms)
    }

    /// The earliest moment at which an event may be due.
    pub(super) fn due_least_ms(&self, key: Key) -> u64 {
        let least = self.places[&key].dues.asked.values().map(|asked| asked.least_ms).min();
        least.map_or(u64::MAX, |least_ms| least_ms).min(self.known_due_ms(key))
    }

    /// A rescheduling is about to be sent.
    pub(in crate::sim) fn reschedule_asked(&mut self, sent: &Sent) {
        let Some(place) = self.places.get_mut(&sent.key) else { return };
        let asked = Asked { incarnation: sent.incarnation, least_ms: sent.least_ms };
        place.dues.asked.insert(sent.request, asked);
        let n = place.n;
        let published = self.events.get_mut(&n).expect("it was published");
        published.least_ms = published.least_ms.min(sent.least_ms);
        let topic = published.topic;
        for index in self.of_topic(topic) {
            self.auditors[index].rescheduled(n);
        }
    }

    /// An answer to a rescheduling. `wall_ms` is the node's clock, where it is the same start of the node.
    pub(in crate::sim) fn reschedule_answered(
        &mut self,
        sent: &Sent,
        verdict: RescheduleVerdict,
        wall_ms: Option<u64>,
    ) {
        let due_least_ms = self.due_least_ms(sent.key);
        let Some(place) = self.places.get_mut(&sent.key) else { return };
        let n = place.n;
        let unsure = place.dues.asked.len() as u64;
        place.dues.asked.remove(&sent.request);
        let held = place.dues.version();
        let broken = match verdict {
            RescheduleVerdict::Rescheduled { due, version } => {
                let was_asked = match sent.at_ms {
                    Some(at_ms) => {
                        due.0 == at_ms || (at_ms < due.0 && wall_ms.is_none_or(|now| due.0 <= now))
                    }
                    None => due.0 >= sent.least_ms,
                };
                let is_next = version > held && version <= held + unsure;
                let is_expected = sent.expected.is_none_or(|expected| version == expected + 1);
                // What was asked of an earlier start, and had no answer, was carried out before or never.
                place.dues.asked.retain(|_, asked| asked.incarnation >= sent.incarnation);
                place.dues.known = Some((due.0, version));
                place.dues.known_at = Some((sent.incarnation, wall_ms.unwrap_or(u64::MAX)));
                let is_sure = place.dues.asked.is_empty();
                let pushed = place.last_push.filter(|(of, _)| *of == sent.incarnation && is_sure);
                match pushed {
                    _ if !was_asked => {
                        Some(format!("was rescheduled to {due}, which {sent:?} did not ask for"))
                    }
                    _ if !is_next || !is_expected => {
                        Some(format!("has version {version} after {held}, by {sent:?}"))
                    }
                    Some((_, pushed_ms)) if pushed_ms != due.0 => {
                        Some(format!("was pushed as due at {pushed_ms}, and rescheduled to {due} after that"))
                    }
                    _ => None,
                }
            }
            RescheduleVerdict::TooLate { .. } if wall_ms.is_some_and(|now| now < due_least_ms) => {
                Some(format!("was called too late to reschedule before it was due: {sent:?}"))
            }
            RescheduleVerdict::VersionMismatch { version } => {
                let is_other = sent.expected.is_some_and(|expected| expected != version);
                let is_held = version >= held && version < held + unsure;
                (!is_other || !is_held)
                    .then(|| format!("is said to have version {version}, where {held} is known: {sent:?}"))
            }
            // A cancellation may have come before, or the event may be complete.
            RescheduleVerdict::TooLate { .. } | RescheduleVerdict::NotFound => None,
        };
        if let Some(what) = broken {
            self.breach(format!("event {n} at {:?} {what}", sent.key));
        }
    }

    /// A rescheduling was refused, and changed nothing.
    pub(in crate::sim) fn reschedule_refused(&mut self, sent: &Sent) {
        if let Some(place) = self.places.get_mut(&sent.key) {
            place.dues.asked.remove(&sent.request);
        }
    }

    /// An event leaves the node as one that was due then: holds that it may have been.
    pub(super) fn judge_due(&mut self, key: Key, due_ms: u64) {
        let incarnation = self.incarnation;
        let Some(place) = self.places.get_mut(&key) else { return };
        place.last_push = Some((incarnation, due_ms));
        let published = &self.events[&place.n];
        // One that was published late is postponed from when it was accepted, which only its receipt says.
        let is_late = published.holds.has(GroupAct::Postpone) && due_ms > published.due_ms;
        let may_be = |from_ms| place.dues.may_be(due_ms, from_ms, &published.holds);
        let may_be_late =
            is_late && (place.acked.is_none() || may_be(published.due_ms.max(place.accepted_ms)));
        if !may_be(published.due_ms) && !may_be_late {
            let what =
                format!("event {} at {key:?} was pushed as due at {due_ms}: {:?}", place.n, place.dues);
            self.breach(what);
        }
    }

    /// An event was recovered as due then, in that version; a version that is not known is none.
    pub(super) fn recovered_due(&self, key: Key, due_ms: u64, version: Option<u64>) -> Option<String> {
        let place = &self.places[&key];
        let published = &self.events[&place.n];
        let published_ms = published.due_ms.max(place.accepted_ms);
        let is_sure = !place.dues.is_untouched();
        let is_back = version.is_some_and(|version| version < place.dues.version());
        let is_wrong = place.acked.is_some() && !place.dues.may_be(due_ms, published_ms, &published.holds);
        (is_sure && (is_wrong || is_back)).then(|| {
            format!(
                "event {} at {key:?} was recovered as due at {due_ms} in version {version:?}: {:?}",
                place.n, place.dues
            )
        })
    }

    /// When an event is due as far as the order within its key goes, and since when the node certainly knows it.
    pub(super) fn order_of(&self, key: Key, due_ms: u64) -> (u64, Option<(u32, u64)>) {
        let place = &self.places[&key];
        if self.events[&place.n].was_held {
            // Since when it can be delivered, an operation on its group may have decided.
            return (due_ms, None);
        }
        if place.dues.is_untouched() {
            return (self.events[&place.n].due_ms.max(place.accepted_ms), place.acked);
        }
        let is_known =
            place.dues.asked.is_empty() && place.dues.known.is_some_and(|(known, _)| known == due_ms);
        (
            due_ms,
            place.dues.known_at.filter(|_| is_known).or_else(|| {
                // None of what was asked for was carried out.
                place.acked.filter(|_| place.dues.known.is_none() && place.dues.asked.is_empty())
            }),
        )
    }
}
