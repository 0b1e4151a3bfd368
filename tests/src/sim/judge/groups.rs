//! Operations on groups: which events they certainly took, and which they may have taken.

use std::collections::{BTreeMap, BTreeSet};

use escapement_protocol::frame::{GroupAct, GroupAnswer, GroupVerdict};
use escapement_protocol::{Sequence, ShardId};

use super::{Cancel, Judge, Key, Place, Published};

/// Operations by epoch: what they do, and by how much those postpone that do.
#[derive(Clone, Debug, Default)]
pub(super) struct Holds(BTreeMap<u64, (GroupAct, u64)>);

impl Holds {
    /// Whether an operation that does this is among them.
    pub(super) fn has(&self, act: GroupAct) -> bool {
        self.0.values().any(|(held, _)| *held == act)
    }

    fn postpones_by(&self) -> u64 {
        self.0.values().map(|(_, by_ms)| by_ms).sum()
    }

    /// Whether some of them together postpone by so much.
    pub(super) fn may_postpone_by(&self, ms: u64) -> bool {
        let mut sums = BTreeSet::from([0]);
        for (_, by_ms) in self.0.values().filter(|(act, _)| *act == GroupAct::Postpone) {
            sums.extend(sums.clone().into_iter().map(|sum| sum + by_ms).filter(|sum| *sum <= ms));
        }
        sums.contains(&ms)
    }
}

/// An operation as its client sent it to one shard.
#[derive(Clone, Debug)]
pub(in crate::sim) struct Operated {
    pub(in crate::sim) act: GroupAct,
    pub(in crate::sim) by_ms: u64,
    pub(in crate::sim) shard: ShardId,
    pub(in crate::sim) topic: usize,
    pub(in crate::sim) group: usize,
    pub(in crate::sim) epoch: u64,
    /// Events that were certainly there when it was sent, in no other operation's hands; of one that is taken back, those
    /// that it certainly held.
    certain: Vec<Key>,
    /// Whether it takes a pause back.
    resumes: bool,
}

impl Judge {
    /// An event is about to be sent: an operation on its group that is under way may take it.
    pub(super) fn meets_operations(&mut self, n: u64) {
        let Some(event) = self.events.get_mut(&n) else { return };
        for operation in &self.operations {
            if event.topic == operation.topic && event.group == Some(operation.group) {
                event.holds.0.insert(operation.epoch, (operation.act, operation.by_ms));
                event.was_held = true;
            }
        }
        self.may_come_postponed(n);
    }

    /// Where an event may be postponed, it may be due at another time than the auditors know.
    fn may_come_postponed(&mut self, n: u64) {
        let event = &self.events[&n];
        if event.holds.has(GroupAct::Postpone) {
            for index in self.of_topic(event.topic) {
                self.auditors[index].rescheduled(n);
            }
        }
    }

    /// Whether an event may be postponed with its group, or may have been.
    pub(super) fn may_be_postponed(&self, place: &Place) -> bool {
        self.events[&place.n].holds.has(GroupAct::Postpone)
    }

    /// Why an event must not be pushed as due then, if it must not.
    pub(super) fn is_held_back(&self, key: Key, due_ms: u64) -> Option<String> {
        let held = &self.places[&key].held;
        if held.has(GroupAct::Cancel) || held.has(GroupAct::Pause) {
            return Some(format!("after operations on its group: {held:?}"));
        }
        let least_ms = self.due_least_ms(key) + held.postpones_by();
        (due_ms < least_ms).then(|| format!("as due at {due_ms}, and was postponed to {least_ms}: {held:?}"))
    }

    /// An operation is about to be sent.
    pub(in crate::sim) fn operates(
        &mut self,
        (act, by_ms): (GroupAct, u64),
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
        let is_operation = !matches!(act, GroupAct::Undo | GroupAct::Read);
        let certain: Vec<Key> = if is_operation {
            let is_certain = |(_, place): &(&Key, &Place)| {
                let holds = &self.events[&place.n].holds;
                let is_taken = holds.has(GroupAct::Cancel) || act == GroupAct::Pause && holds.has(act);
                !is_taken && place.acked.is_some() && place.last_push.is_none()
            };
            places.filter(is_certain).map(|(key, _)| *key).collect()
        } else {
            places.filter(|(_, place)| place.held.0.contains_key(&epoch)).map(|(key, _)| *key).collect()
        };
        let is_pause = |key: &Key| matches!(self.places[key].held.0.get(&epoch), Some((GroupAct::Pause, _)));
        let resumes = act == GroupAct::Undo && certain.iter().any(is_pause);
        match act {
            GroupAct::Undo => {
                self.taken_back.insert(epoch);
                for place in self.places.values_mut() {
                    place.held.0.remove(&epoch);
                }
            }
            GroupAct::Read => {}
            _ => {
                let is_meant = |event: &Published| event.topic == topic && event.group == Some(group);
                let events = self.events.iter_mut().filter(|(_, event)| is_meant(event));
                let meant: Vec<u64> = events
                    .map(|(n, event)| {
                        event.holds.0.insert(epoch, (act, by_ms));
                        event.was_held = true;
                        *n
                    })
                    .collect();
                meant.into_iter().for_each(|n| self.may_come_postponed(n));
            }
        }
        let operated = Operated { act, by_ms, shard, topic, group, epoch, certain, resumes };
        if is_operation {
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
        let least = if operated.resumes {
            // What is paused waits whether its time has come or not.
            let is_there = |key: &&Key| self.places[*key].cancel == Cancel::No;
            operated.certain.iter().filter(is_there).count() as u64
        } else {
            waiting.len() as u64
        };
        match (operated.act, answer.verdict) {
            (GroupAct::Cancel, GroupVerdict::Cancelled)
            | (GroupAct::Pause, GroupVerdict::Paused)
            | (GroupAct::Postpone, GroupVerdict::Postponed) => {
                if answer.count < least {
                    self.breach(format!("{operated:?} took {}, and {least} events waited", answer.count));
                }
                self.took(operated, &waiting);
            }
            (GroupAct::Undo, GroupVerdict::Undone) => {
                if answer.count < least {
                    self.breach(format!("{operated:?} gave back {} events, not {least}", answer.count));
                }
                let keys: Vec<Key> =
                    self.places.keys().copied().filter(|key| key.0 == operated.shard).collect();
                for key in self.certainly_waiting(&keys) {
                    let n = self.places[&key].n;
                    let holds = &mut self.events.get_mut(&n).expect("it was published").holds;
                    // One that may have been postponed may be due at another time from then on.
                    if holds.0.get(&epoch).is_some_and(|(act, _)| *act != GroupAct::Postpone) {
                        holds.0.remove(&epoch);
                    }
                }
            }
            (GroupAct::Undo, GroupVerdict::NotFound) if least > 0 => {
                self.breach(format!("{operated:?} is not known, and holds {least} events"));
            }
            (GroupAct::Undo, GroupVerdict::NotFound) | (GroupAct::Read, GroupVerdict::Read) => {}
            (_, verdict) => self.breach(format!("{operated:?} was answered with {verdict:?}")),
        }
    }

    /// An operation is acknowledged, and these events waited all the time.
    fn took(&mut self, operated: &Operated, waiting: &[Key]) {
        let Operated { act, by_ms, epoch, .. } = *operated;
        if self.taken_back.contains(&epoch) {
            return;
        }
        for key in waiting {
            let place = self.places.get_mut(key).expect("it is known");
            let holds = &self.events[&place.n].holds;
            // Another may have been sent meanwhile, and taken back, too.
            let others = holds.0.iter().filter(|(of, _)| **of != epoch);
            let is_alone = others.into_iter().all(|(_, (other, _))| {
                *other != GroupAct::Cancel && (act != GroupAct::Pause || *other != GroupAct::Pause)
            });
            if is_alone && holds.0.contains_key(&epoch) {
                place.held.0.insert(epoch, (act, by_ms));
            }
        }
    }
}
