//! Events of groups that are aside: kept in memory, and on no wheel but that of their timers.

use std::collections::BTreeSet;

use hashbrown::HashMap;

use escapement_protocol::{Sequence, WallMs};

use crate::groups::GroupId;
use crate::shard::SWEEP_COUNT;
use crate::wheel::{Tick, Wheel};

/// Events whose own time has come, and that wait for their group.
#[derive(Debug, Default)]
pub(super) struct Aside {
    pub(super) groups: HashMap<GroupId, BTreeSet<Sequence>>,
    /// How many.
    count: usize,
    /// Until when those wait that are only postponed.
    pub(super) until: HashMap<Sequence, (WallMs, GroupId)>,
    /// The same, by time.
    timers: Option<Box<Wheel>>,
}

impl Aside {
    /// Puts an event aside, for good or until a moment.
    pub(super) fn put(&mut self, group: GroupId, sequence: Sequence, until: Option<WallMs>, now: WallMs) {
        self.count += usize::from(self.groups.entry(group).or_default().insert(sequence));
        if let Some(until) = until {
            self.until.insert(sequence, (until, group));
            let timers = self.timers.get_or_insert_with(|| Box::new(Wheel::new(Tick(now.0))));
            timers.insert(Tick(until.0), sequence.0);
        }
    }

    /// Takes out what waits of a group.
    pub(super) fn take(&mut self, group: GroupId) -> BTreeSet<Sequence> {
        let taken = self.groups.remove(&group).unwrap_or_default();
        self.count -= taken.len();
        if !self.until.is_empty() {
            for sequence in &taken {
                self.until.remove(sequence);
            }
            if self.until.is_empty() {
                self.timers = None;
            }
        }
        taken
    }

    /// Takes out the events whose timers have run out, up to `most`.
    pub(super) fn take_due(&mut self, now: WallMs, most: usize, due: &mut Vec<u64>) {
        let Aside { groups, count, until, timers } = self;
        let Some(wheel) = timers else { return };
        let due_of = |key| until.get(&Sequence(key)).map(|(until, _)| Tick(until.0));
        wheel.advance(Tick(now.0), most, due_of, due);
        due.retain(|key| {
            let sequence = Sequence(*key);
            // One that was put aside twice until the same moment comes twice.
            let Some((_, group)) = until.remove(&sequence) else { return false };
            if let Some(waiting) = groups.get_mut(&group) {
                *count -= usize::from(waiting.remove(&sequence));
                if waiting.is_empty() {
                    groups.remove(&group);
                }
            }
            true
        });
        if until.is_empty() {
            *timers = None;
        } else if wheel.len() > 2 * until.len() + SWEEP_COUNT {
            let due_of = |key| until.get(&Sequence(key)).map(|(until, _)| Tick(until.0));
            wheel.sweep(SWEEP_COUNT, due_of);
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        // A node of the set holds at least 5 of 11.
        self.count * 2 * size_of::<Sequence>()
            + self.groups.capacity() * size_of::<(GroupId, BTreeSet<Sequence>)>()
            + self.until.capacity() * size_of::<(Sequence, (WallMs, GroupId))>()
            + self.timers.as_ref().map_or(0, |wheel| wheel.memory_bytes())
    }

    /// The next moment at which a timer runs out.
    pub(super) fn next_due(&self) -> Option<WallMs> {
        self.timers.as_ref()?.next_due().map(|tick| WallMs(tick.0))
    }
}
