//! Topics that know what they have: an event that is published again within the window is the same event.

use escapement_protocol::EventId;
use escapement_protocol::frame::Accepted;

use super::super::plan::DAY_MS;
use super::{Judge, Key, Place};

impl Judge {
    fn window_ms(&self, n: u64) -> u64 {
        self.plan.dedup_windows_ms[self.events[&n].topic]
    }

    /// Acknowledged events of topics that know what they have.
    pub(in crate::sim) fn named_events(&self) -> Vec<u64> {
        if self.plan.dedup_windows_ms.iter().all(|window_ms| *window_ms == 0) {
            return Vec::new();
        }
        let acked = self.places.values().filter(|place| place.acked.is_some()).map(|place| place.n);
        let mut named: Vec<u64> = acked.filter(|n| self.window_ms(*n) > 0).collect();
        named.sort_unstable();
        named.dedup();
        named
    }

    /// Events that have a name for as long as the run lasts, with their ids.
    pub(in crate::sim) fn named_for_a_day(&self) -> Vec<(u64, EventId)> {
        let acked = self.places.iter().filter(|(_, place)| place.acked.is_some());
        let named = acked.filter(|(_, place)| self.window_ms(place.n) == DAY_MS);
        let id = |(key, place): (&Key, &Place)| {
            let (shard, sequence) = *key;
            (place.n, EventId { shard, sequence, schedule_time_ms: self.events[&place.n].due_ms })
        };
        named.map(id).collect()
    }

    /// A receipt is that of the event that it names.
    pub(super) fn judge_receipt(&mut self, key: Key, n: u64, receipt: Accepted) {
        let Some(scheduled) = receipt.duplicate else { return };
        if self.window_ms(n) == 0 {
            return self.breach(format!("event {n} is called a duplicate, and its topic has no window"));
        }
        if scheduled.0 != self.events[&n].due_ms {
            self.breach(format!("event {n}: a duplicate is scheduled for {scheduled}, and the first is not"));
        }
        let first = self.places.get(&key).filter(|place| place.acked.is_some());
        if let Some(first) = first.filter(|first| first.accepted_ms != receipt.accepted.0) {
            let (first_ms, now_ms) = (first.accepted_ms, receipt.accepted.0);
            self.breach(format!(
                "event {n} was accepted at {first_ms}, and its duplicate's receipt says {now_ms}"
            ));
        }
    }

    /// At most one event of a name is accepted within a window.
    pub(super) fn judge_names(&mut self, n: u64) {
        let window_ms = self.window_ms(n);
        if window_ms == 0 {
            return;
        }
        let stored = self.places.iter().filter(|(_, place)| place.n == n);
        // Of what was pushed and not acknowledged nobody knows when it was accepted; but no run is as long as a day.
        let stored = stored.filter(|(_, place)| place.acked.is_some() || window_ms == DAY_MS);
        let mut stored: Vec<(u64, Key)> = stored.map(|(key, place)| (place.accepted_ms, *key)).collect();
        stored.sort_unstable();
        for pair in stored.windows(2) {
            let [(first_ms, first), (second_ms, second)] = *pair else { continue };
            if second_ms - first_ms < window_ms || window_ms == DAY_MS {
                return self.breach(format!(
                    "event {n} is stored twice within its window of {window_ms} ms: at {first:?}, accepted at \
                     {first_ms}, and at {second:?}, accepted at {second_ms}"
                ));
            }
        }
    }
}
