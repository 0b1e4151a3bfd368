//! Events whose ttl passes before their tasks are done.
//!
//! An event with a ttl gets a second entry, on a wheel of its own, when its tasks come to be. Once that is due, tasks that
//! wait are taken back from their routers, wherever these are; an attempt that is out goes on. What a router decides
//! meanwhile is held back where it would leave: the event's shard alone says whether it has expired.

use escapement_protocol::{EventView, Sequence, SubscriptionId, Tag, WallMs, event::has_ttl};

use super::{Durable, SWEEP_COUNT, Shard, Volatile};
use crate::effects::{Effects, Message};
use crate::record::WALL_MAX;
use crate::wheel::Tick;

/// Tasks of one subscription that ended undelivered, of this shard's events, since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Undelivered {
    /// Because their events' ttl had passed.
    pub expired: u64,
    /// Because their events' due times were missed, and the subscription skips them.
    pub skipped: u64,
}

/// When an event that is due at `due` expires, if ever: the one place that says so. The ttl of one that was rescheduled
/// counts from when it is due now.
pub(super) fn expire_time(event: &[u8], due: WallMs, is_rescheduled: bool) -> Option<WallMs> {
    if !has_ttl(event) {
        return None;
    }
    let view = EventView::trusted(event)?;
    let expiry = if is_rescheduled { due.plus_ms(view.ttl_ms()?) } else { view.expire_time(due)? };
    Some(expiry.min(WALL_MAX))
}

impl Shard {
    /// Tasks of a subscription, of this shard's events, that ended undelivered since start.
    #[must_use]
    pub fn undelivered(&self, subscription: SubscriptionId) -> Undelivered {
        self.volatile.undelivered.get(&subscription).copied().unwrap_or_default()
    }

    /// Whether a pending event's ttl has passed.
    pub(super) fn has_expired(&self, sequence: Sequence) -> bool {
        let Some(entry) = self.durable.table.get(sequence) else { return false };
        let expiry = expire_time(
            self.durable.payloads.event(entry.location),
            entry.due,
            self.durable.forwards.contains_key(&sequence),
        );
        expiry.is_some_and(|expiry| expiry <= self.volatile.now.wall)
    }

    /// Takes back the tasks of events whose ttl has passed, up to a batch.
    pub(super) fn expire_due(&mut self, out: &mut Effects) {
        if self.volatile.expiries.is_empty() {
            return;
        }
        let mut due = std::mem::take(&mut self.volatile.due);
        let Volatile { expiries, now, open_tasks, .. } = &mut self.volatile;
        let Durable { table, payloads, forwards, .. } = &self.durable;
        let due_of = |key| {
            let entry = table.get(Sequence(key))?;
            let expiry = expire_time(
                payloads.event(entry.location),
                entry.due,
                forwards.contains_key(&Sequence(key)),
            )?;
            Some(Tick(expiry.0))
        };
        expiries.advance(Tick(now.wall.0), self.config.batch_count_max, due_of, &mut due);
        // Live entries are at most as many as open tasks.
        if expiries.len() > 2 * *open_tasks + SWEEP_COUNT {
            expiries.sweep(SWEEP_COUNT, due_of);
        }
        for sequence in due.drain(..).map(Sequence) {
            let Some(entry) = self.durable.table.get(sequence) else { continue };
            let topic = self.durable.registry.topic(entry.topic);
            let subscriptions = topic.map(|topic| topic.subscriptions.clone()).unwrap_or_default();
            for (subscription, _) in subscriptions {
                self.expire_task(subscription, sequence, None, out);
            }
        }
        self.volatile.due = due;
    }

    /// Asks the owner of a subscription to end its task of an expired event.
    pub(super) fn expire_task(
        &mut self,
        subscription: SubscriptionId,
        sequence: Sequence,
        unsent: Option<Tag>,
        out: &mut Effects,
    ) {
        let (shard, mono) = (self.config.shard, self.volatile.now.mono);
        let owner = self.durable.registry.owner_of(subscription);
        if owner == shard {
            self.router.expire_task(mono, subscription, (shard, sequence), unsent);
        } else {
            out.forwards.push((owner, Message::Expire { subscription, shard, sequence, unsent }));
        }
    }
}
