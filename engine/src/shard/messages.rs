//! What shards tell one another.

use escapement_protocol::SubscriptionId;
use escapement_protocol::frame::{Items, ResultItem};
use escapement_router::{Credit, SessionId};

use super::Shard;
use crate::effects::{Effects, Message};

impl Shard {
    pub(super) fn message(&mut self, message: Message, out: &mut Effects) {
        let now = self.volatile.now;
        match message {
            Message::Offer { subscription, .. }
            | Message::Attach { subscription, .. }
            | Message::Expire { subscription, .. }
                if self.durable.registry.subscription(subscription).is_none() =>
            {
                self.volatile.early.push(message);
            }
            Message::Offer { subscription, task, next_due } => self.offer(subscription, task, next_due),
            Message::Expire { subscription, shard, sequence, unsent } => {
                self.router.expire_task(now.mono, subscription, (shard, sequence), unsent);
            }
            Message::Dispatch(push) => self.push(push, out),
            Message::TaskDone { subscription, sequence, outcome } => {
                self.volatile.end_task(subscription, sequence, outcome);
            }
            Message::AttemptFailed { subscription, sequence, attempt, excused, next_due } => {
                self.log_attempt_failed(subscription, sequence, attempt, excused, next_due, out);
            }
            Message::Attach { subscription, session, host, credit, running } => {
                // Known here, as subscriptions are never deleted.
                let _ = self.router.attach_host(now.mono, subscription, session, host, credit, &running);
            }
            Message::Credit { session, credit: now } => {
                match self.volatile.early.iter_mut().find_map(|early| early_credit(early, session)) {
                    Some(credit) => *credit = now,
                    None => drop(self.router.set_credit(session, now)),
                }
            }
            Message::Detach { session, how } => {
                self.volatile.early.retain_mut(|early| early_credit(early, session).is_none());
                self.router.detach(now.mono, session, how);
            }
            Message::Results { session, results } => self.results(session, Items::from(results.as_slice())),
            Message::Control { record } => self.control(&record, out),
            Message::ControlDurable { shard, version } => self.control_durable(shard, version, out),
            Message::Out { shard } => self.shard_out(shard, out),
        }
    }

    /// A subscription of this shard has come: what came for it before is taken now.
    pub(super) fn take_early(&mut self, subscription: SubscriptionId, out: &mut Effects) {
        for early in std::mem::take(&mut self.volatile.early) {
            match early {
                Message::Offer { subscription: of, .. }
                | Message::Attach { subscription: of, .. }
                | Message::Expire { subscription: of, .. }
                    if of == subscription =>
                {
                    self.message(early, out);
                }
                _ => self.volatile.early.push(early),
            }
        }
    }

    pub(super) fn results(&mut self, session: SessionId, results: Items<'_, ResultItem>) {
        let now = self.volatile.now.mono;
        for item in results {
            // A stale tag changes nothing: its attempt has ended another way.
            self.router.result(now, session, item.tag, item.result, item.retry_after_ms);
        }
    }
}

/// The credit of a session whose subscription is still on its way here.
fn early_credit(early: &mut Message, of: SessionId) -> Option<&mut Credit> {
    match early {
        Message::Attach { session, credit, .. } if *session == of => Some(credit),
        _ => None,
    }
}
