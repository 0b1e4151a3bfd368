//! Attempts that the node must count as running, as an observer at its edge can know it.

use std::collections::BTreeMap;

use escapement_protocol::SubscriptionSettings;

use super::{Key, Leaving};

/// A result that comes this long before an attempt's earliest deadline certainly counts.
const MARGIN_NS: u64 = 60_000_000;

/// How sure it is that a result ended its attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Certainly,
    Perhaps,
}

#[derive(Clone, Copy, Debug)]
struct Attempt {
    key: Key,
    ordering_key: Option<u32>,
    stream: u64,
    host: u64,
    /// Its deadline passes at this moment or later.
    ends_ns: u64,
    ended: bool,
}

/// Attempts of one start of the node, by subscription, epoch and tag.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    all: BTreeMap<(usize, u32, u64), Attempt>,
}

impl Attempts {
    /// Takes in a push, and counts.
    pub(super) fn begin(
        &mut self,
        push: &Leaving<'_>,
        key: Key,
        ordering_key: Option<u32>,
        settings: &SubscriptionSettings,
    ) -> Result<(), String> {
        let index = push.subscription;
        let ends_ns = push.decided_ns + u64::from(push.item.deadline_ms) * 1_000_000;
        let attempt =
            Attempt { key, ordering_key, stream: push.stream, host: push.host, ends_ns, ended: false };
        let range = (index, 0, 0)..(index + 1, 0, 0);
        let running = |attempt: &Attempt| !attempt.ended && push.now_ns < attempt.ends_ns;
        let others = || self.all.range(range.clone()).map(|(_, attempt)| attempt).filter(|a| running(a));
        let mut result = Ok(());
        if running(&attempt) {
            let limit = settings.max_concurrent_dispatches as usize;
            let count = others().count() + 1;
            if limit != 0 && count > limit {
                result = Err(format!("{count} attempts run at once, and {limit} may"));
            }
            if others().any(|other| other.key == key) {
                result = Err("two of its attempts run at once".into());
            }
            if ordering_key.is_some() && others().any(|other| other.ordering_key == ordering_key) {
                result = Err("two attempts of its key run at once".into());
            }
        }
        self.all.insert((index, push.epoch, push.item.tag.0), attempt);
        result
    }

    pub(super) fn end_by_result(
        &mut self,
        index: usize,
        epoch: u32,
        tag: u64,
        stream: u64,
        now_ns: u64,
    ) -> Option<(Ended, Key, Option<u32>)> {
        let attempt = self.all.get_mut(&(index, epoch, tag))?;
        // Whatever comes for an attempt that has ended, or from elsewhere, may still have counted.
        let certain = !attempt.ended && attempt.stream == stream && now_ns + MARGIN_NS < attempt.ends_ns;
        attempt.ended = true;
        let ended = if certain { Ended::Certainly } else { Ended::Perhaps };
        Some((ended, attempt.key, attempt.ordering_key))
    }

    pub(super) fn attached(&mut self, index: usize, host: u64, stream: u64, running: &[u64]) {
        for ((_, _, tag), attempt) in self.all.range_mut((index, 0, 0)..(index + 1, 0, 0)) {
            if running.contains(tag) {
                attempt.stream = stream;
            } else if attempt.host == host && attempt.stream != stream {
                attempt.ended = true;
            }
        }
    }

    pub(super) fn left(&mut self, stream: u64) {
        for attempt in self.all.values_mut().filter(|attempt| attempt.stream == stream) {
            attempt.ended = true;
        }
    }
}
