//! Operations on groups: which events they certainly took, and which they may have taken.

use escapement_protocol::frame::{GroupAct, GroupAnswer, GroupVerdict};
use escapement_protocol::{Sequence, ShardId};

use super::{Cancel, Judge, Key};

/// An operation as its client sent it to one shard.
#[derive(Clone, Debug)]
pub(in crate::sim) struct Operated {
    pub(in crate::sim) act: GroupAct,
    pub(in crate::sim) shard: ShardId,
    pub(in crate::sim) topic: usize,
    pub(in crate::sim) group: usize,
    pub(in crate::sim) epoch: u64,
    /// Events that were certainly there when it was sent, in no other operation's hands; of one that is taken back, those
    /// that it certainly held.
    certain: Vec<Key>,
}

impl Judge {
    /// An event is about to be sent: an operation on its group that is under way may take it.
    pub(super) fn meets_operations(&mut self, n: u64) {
        let Some(event) = self.events.get_mut(&n) else { return };
        for operation in &self.operations {
            if event.topic == operation.topic && event.group == Some(operation.group) {
                event.holds.insert(operation.epoch);
                event.was_held = true;
            }
        }
    }

    /// An operation is about to be sent.
    pub(in crate::sim) fn operates(
        &mut self,
        act: GroupAct,
        shard: ShardId,
        (topic, group): (usize, usize),
        epoch: u64,
    ) -> Operated {
        let range = (shard, Sequence(0))..=(shard, Sequence::MAX);
        let of_group = |n: &u64| {
            let event = &self.events[n];
            event.topic == topic && event.group == Some(group)
        };
        let places = self.places.range(range).filter(|(_, place)| of_group(&place.n));
        let certain: Vec<Key> = match act {
            GroupAct::Cancel => {
                let is_certain = |(_, place): &(&Key, &super::Place)| {
                    let is_free = self.events[&place.n].holds.is_empty();
                    is_free && place.acked.is_some() && place.last_push.is_none()
                };
                places.filter(is_certain).map(|(key, _)| *key).collect()
            }
            _ => places.filter(|(_, place)| place.held.contains(&epoch)).map(|(key, _)| *key).collect(),
        };
        match act {
            GroupAct::Cancel => {
                let events = self.events.values_mut();
                for event in events.filter(|event| event.topic == topic && event.group == Some(group)) {
                    event.holds.insert(epoch);
                    event.was_held = true;
                }
            }
            GroupAct::Undo => {
                self.taken_back.insert(epoch);
                for place in self.places.values_mut() {
                    place.held.remove(&epoch);
                }
            }
            GroupAct::Read => {}
        }
        let operated = Operated { act, shard, topic, group, epoch, certain };
        if act == GroupAct::Cancel {
            self.operations.push(operated.clone());
        }
        operated
    }

    /// Of these events, those whose time has not come by any clock, and that nothing else can have ended.
    fn certainly_waiting(&self, keys: &[Key]) -> Vec<Key> {
        let is_waiting = |key: &&Key| {
            let place = &self.places[*key];
            place.cancel == Cancel::No && self.due_least_ms(**key) > self.latest_wall_ms
        };
        keys.iter().filter(is_waiting).copied().collect()
    }

    /// The answer to an operation.
    pub(in crate::sim) fn operated(&mut self, operated: &Operated, answer: &GroupAnswer) {
        let epoch = operated.epoch;
        self.operations.retain(|open| (open.epoch, open.shard) != (epoch, operated.shard));
        let waiting = self.certainly_waiting(&operated.certain);
        let least = waiting.len() as u64;
        match (operated.act, answer.verdict) {
            (GroupAct::Cancel, GroupVerdict::Cancelled) => {
                if answer.count < least {
                    self.breach(format!("{operated:?} took {}, and {least} events waited", answer.count));
                }
                let is_taken_back = self.taken_back.contains(&epoch);
                for key in waiting.into_iter().filter(|_| !is_taken_back) {
                    let place = self.places.get_mut(&key).expect("it is known");
                    // Another may have been sent meanwhile, and taken back, too.
                    let is_alone = self.events[&place.n].holds.len() == 1;
                    if is_alone && self.events[&place.n].holds.contains(&epoch) {
                        place.held.insert(epoch);
                    }
                }
            }
            (GroupAct::Undo, GroupVerdict::Undone) => {
                if answer.count < least {
                    self.breach(format!("{operated:?} gave back {} events, not {least}", answer.count));
                }
                let keys: Vec<Key> =
                    self.places.keys().copied().filter(|key| key.0 == operated.shard).collect();
                for key in self.certainly_waiting(&keys) {
                    let n = self.places[&key].n;
                    self.events.get_mut(&n).expect("it was published").holds.remove(&epoch);
                }
            }
            (GroupAct::Undo, GroupVerdict::NotFound) if least > 0 => {
                self.breach(format!("{operated:?} is not known, and holds {least} events"));
            }
            (GroupAct::Undo, GroupVerdict::NotFound) | (GroupAct::Read, GroupVerdict::Read) => {}
            (_, verdict) => self.breach(format!("{operated:?} was answered with {verdict:?}")),
        }
    }
}
