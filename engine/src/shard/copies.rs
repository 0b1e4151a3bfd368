//! How much of a log its pending events need.

use hashbrown::HashMap;

use escapement_protocol::TopicId;

use super::relocate::PROGRESS_COUNT_MAX;
use crate::record::{HEADER_SIZE_BYTES, PROGRESS_SIZE_BYTES, RELOCATED_FIXED_SIZE_BYTES};

/// What a copy of an event takes besides its bytes, while nothing is known of its tasks.
const BARE_SIZE_BYTES: usize = HEADER_SIZE_BYTES + RELOCATED_FIXED_SIZE_BYTES;

/// Subscriptions of a topic that may come while events are pending, and be reckoned with.
const MORE_SUBSCRIPTIONS: usize = 2;

#[derive(Debug)]
struct OfTopic {
    pending: usize,
    /// Besides the bytes of each event.
    each_size_bytes: usize,
}

impl Default for OfTopic {
    fn default() -> Self {
        OfTopic { pending: 0, each_size_bytes: BARE_SIZE_BYTES + MORE_SUBSCRIPTIONS * PROGRESS_SIZE_BYTES }
    }
}

/// What it takes to append every pending event once more, besides the events' own bytes: each with the longest history
/// that its tasks can come to. Short events with many subscribers need several times what they took when published, and
/// a log that did not reckon with it could be filled so far that nothing can be freed.
#[derive(Debug, Default)]
pub(super) struct Copies {
    topics: HashMap<TopicId, OfTopic>,
    size_bytes: usize,
}

impl Copies {
    /// Over all pending events.
    pub(super) fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    /// For one event of a topic.
    pub(super) fn each_size_bytes(&self, topic: TopicId) -> usize {
        self.topics.get(&topic).map_or(OfTopic::default().each_size_bytes, |held| held.each_size_bytes)
    }

    /// For one event of any topic, at most.
    pub(super) fn most_size_bytes(&self) -> usize {
        self.topics.values().map(|held| held.each_size_bytes).max().unwrap_or(BARE_SIZE_BYTES)
    }

    /// A topic has that many subscriptions.
    pub(super) fn set_fanout(&mut self, topic: TopicId, subscriptions: usize) {
        let held = self.topics.entry(topic).or_default();
        self.size_bytes -= held.pending * held.each_size_bytes;
        let tasks = (subscriptions + MORE_SUBSCRIPTIONS).min(PROGRESS_COUNT_MAX);
        held.each_size_bytes = BARE_SIZE_BYTES + tasks * PROGRESS_SIZE_BYTES;
        self.size_bytes += held.pending * held.each_size_bytes;
    }

    /// `count` more events of a topic are pending.
    pub(super) fn add(&mut self, topic: TopicId, count: usize) {
        let held = self.topics.entry(topic).or_default();
        held.pending += count;
        self.size_bytes += count * held.each_size_bytes;
    }

    /// An event of a topic has ended.
    pub(super) fn remove(&mut self, topic: TopicId) {
        let held = self.topics.get_mut(&topic).expect("a pending event's topic is counted");
        held.pending -= 1;
        self.size_bytes -= held.each_size_bytes;
    }

    /// Pending events of a topic.
    pub(super) fn pending_of(&self, topic: TopicId) -> u64 {
        self.topics.get(&topic).map_or(0, |held| held.pending as u64)
    }

    /// Pending events over all topics.
    pub(super) fn pending(&self) -> usize {
        self.topics.values().map(|held| held.pending).sum()
    }
}
