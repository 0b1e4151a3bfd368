//! Counts that nobody could take again at a moment's notice: of events that are due and open, and of what has ended.

use hashbrown::HashMap;

use escapement_protocol::{Outcome, SubscriptionId, TopicId};

/// Events by topic that were handed to their subscriptions and have not ended.
///
/// What is counted together mostly has one topic: only another one costs a look-up.
#[derive(Debug, Default)]
pub(super) struct Open {
    topics: HashMap<TopicId, i64>,
    /// The topic that was counted last, and what is not in the map yet.
    last: (TopicId, i64),
}

impl Open {
    /// `count` more of a topic, or fewer.
    #[inline]
    pub(super) fn add(&mut self, topic: TopicId, count: i64) {
        if self.last.0 != topic {
            let (last, more) = std::mem::replace(&mut self.last, (topic, 0));
            *self.topics.entry(last).or_default() += more;
        }
        self.last.1 += count;
    }

    /// Of one topic.
    pub(super) fn of(&self, topic: TopicId) -> u64 {
        let more = if self.last.0 == topic { self.last.1 } else { 0 };
        unsigned(self.topics.get(&topic).copied().unwrap_or(0) + more)
    }

    /// Of all.
    pub(super) fn total(&self) -> u64 {
        unsigned(self.topics.values().sum::<i64>() + self.last.1)
    }
}

fn unsigned(count: i64) -> u64 {
    u64::try_from(count).expect("an event ends once, after it was handed out")
}

/// How many outcomes there can be: their codes are small.
const OUTCOMES: usize = 16;

/// Tasks that have ended since start, by subscription and outcome; under subscription 0 events that ended without one.
#[derive(Debug, Default)]
pub(super) struct EndedCounts(HashMap<SubscriptionId, [u64; OUTCOMES]>);

impl EndedCounts {
    pub(super) fn add(&mut self, subscription: SubscriptionId, outcome: Outcome, count: u64) {
        self.0.entry(subscription).or_default()[outcome as usize] += count;
    }

    /// Outcomes that there were, with their counts.
    pub(super) fn of(&self, subscription: SubscriptionId) -> impl Iterator<Item = (Outcome, u64)> + '_ {
        let counts = self.0.get(&subscription);
        let of = move |outcome: Outcome| counts.map_or(0, |counts| counts[outcome as usize]);
        Outcome::ALL.into_iter().map(move |outcome| (outcome, of(outcome))).filter(|(_, count)| *count > 0)
    }
}
