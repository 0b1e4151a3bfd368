//! Topics and subscriptions: shard 0 decides, every shard's log holds a copy, and the answer waits for all.

use escapement_protocol::settings::{SubscriptionSettings, TopicSettings};
use escapement_protocol::{ErrorCode, ShardId, TopicId};

use super::Shard;
use crate::effects::{AdminRequest, Effects, Message, Refusal, ReplyBody, Ticket};
use crate::record::{Record, RecordWriter, records};

/// How long somebody should wait who was refused for shard 0.
const RETRY_AFTER_MS: u32 = 1_000;

/// A change on its way.
#[derive(Debug)]
struct Change {
    version: u64,
    tickets: Vec<Ticket>,
    body: ReplyBody,
    /// Serving shards whose logs do not hold it durably yet, this one included.
    missing: Vec<ShardId>,
}

/// Changes on their way, in the order of their versions.
#[derive(Debug)]
pub(super) struct Pending {
    changes: Vec<Change>,
    /// Shards whose copies a change waits for.
    serving: Vec<ShardId>,
}

impl Pending {
    pub(super) fn new(shard_count: u16) -> Self {
        Pending { changes: Vec::new(), serving: (0..shard_count).map(ShardId).collect() }
    }
}

impl Shard {
    /// Says which shards serve, where not all do: a change waits for no others, as they catch up before they
    /// serve, and only these own subscriptions. Call before the first step.
    pub fn set_serving(&mut self, serving: impl IntoIterator<Item = ShardId>) {
        let serving: Vec<ShardId> = serving.into_iter().collect();
        self.volatile.control.serving.clone_from(&serving);
        self.durable.registry.set_serving(serving);
        self.take_subscriptions();
    }

    /// The router gets every subscription that this shard owns.
    pub(super) fn take_subscriptions(&mut self) {
        let registry = &self.durable.registry;
        for subscription in registry.subscriptions() {
            if registry.owner_of(subscription.id) == self.config.shard {
                self.router.upsert(subscription.id, &subscription.settings);
            }
        }
    }

    /// Another shard is out of service until the next start: nothing is waited for from it, and its tasks are forgotten
    /// here, as they will be due again where they are. Subscriptions that it owns wait for it.
    pub(super) fn shard_out(&mut self, out_shard: ShardId, out: &mut Effects) {
        self.router.forget(out_shard);
        self.volatile.early.retain(|early| match early {
            Message::Offer { task, .. } => task.shard != out_shard,
            Message::Expire { shard, .. } => *shard != out_shard,
            _ => true,
        });
        let control = &mut self.volatile.control;
        control.serving.retain(|shard| *shard != out_shard);
        let versions: Vec<u64> = control.changes.iter().map(|change| change.version).collect();
        for version in versions {
            self.control_durable(out_shard, version, out);
        }
    }

    /// The refusal of what names a topic that is not held here.
    ///
    /// Only next to shard 0 does that say that there is none: this shard may have been out of service while the topic was
    /// created, and shard 0 be out now.
    pub(super) fn unknown_topic(&self, topic: TopicId) -> Refusal {
        if self.volatile.control.serving.contains(&ShardId(0)) {
            return Refusal {
                code: ErrorCode::UnknownTopic,
                message: format!("no topic has number {}: create it, or look its number up by name", topic.0),
                retry_after_ms: 0,
            };
        }
        Refusal {
            code: ErrorCode::Unavailable,
            message: format!(
                "shard {} does not know topic {}, and shard 0, which would, is out of service: try again when it is back",
                self.config.shard.0, topic.0
            ),
            retry_after_ms: RETRY_AFTER_MS,
        }
    }

    /// Who waits for an answer that this shard, which has stopped, will not give: but for those whose answers were decided
    /// and wait for the disk.
    pub fn take_waiting(&mut self) -> Vec<Ticket> {
        let changes = std::mem::take(&mut self.volatile.control.changes);
        let mut tickets: Vec<Ticket> = changes.into_iter().flat_map(|change| change.tickets).collect();
        self.volatile.far.take_waiting(&mut tickets);
        self.volatile.naming.take_waiting(&mut tickets);
        tickets
    }

    pub(super) fn admin(&mut self, ticket: Ticket, request: AdminRequest, out: &mut Effects) {
        assert_eq!(self.config.shard, ShardId(0), "control objects are decided by shard 0");
        match request {
            AdminRequest::CreateTopic(settings) => self.create_topic(ticket, settings, out),
            AdminRequest::CreateSubscription(settings) => self.create_subscription(ticket, settings, out),
        }
    }

    fn create_topic(&mut self, ticket: Ticket, settings: TopicSettings, out: &mut Effects) {
        if let Err(error) = settings.validate() {
            return out.refuse(ticket, error.code(), 0, error.to_string());
        }
        for change in &mut self.volatile.control.changes {
            if let ReplyBody::Topic { settings: pending, .. } = &change.body
                && pending.name == settings.name
            {
                if *pending == settings {
                    change.tickets.push(ticket);
                    return;
                }
                return refuse_other(out, ticket, "topic", &settings.name);
            }
        }
        if let Some(held) = self.durable.registry.topic_named(&settings.name) {
            if held.settings != settings {
                return refuse_other(out, ticket, "topic", &settings.name);
            }
            let (id, version) = (held.id, held.version);
            return out.reply(ticket, ReplyBody::Topic { id, version, settings });
        }
        let mut id = self.durable.registry.next_topic_id();
        id.0 += self.unapplied(|body| matches!(body, ReplyBody::Topic { .. }));
        let version = self.next_version();
        out.log().topic(id, version, &settings);
        self.await_all(ticket, version, ReplyBody::Topic { id, version, settings });
    }

    fn create_subscription(&mut self, ticket: Ticket, settings: SubscriptionSettings, out: &mut Effects) {
        if let Err(error) = settings.validate() {
            return out.refuse(ticket, error.code(), 0, error.to_string());
        }
        for change in &mut self.volatile.control.changes {
            if let ReplyBody::Subscription { settings: pending, .. } = &change.body
                && pending.name == settings.name
            {
                if *pending == settings {
                    change.tickets.push(ticket);
                    return;
                }
                return refuse_other(out, ticket, "subscription", &settings.name);
            }
        }
        if let Some(held) = self.durable.registry.subscription_named(&settings.name) {
            if held.settings != settings {
                return refuse_other(out, ticket, "subscription", &settings.name);
            }
            let (id, topic, version) = (held.id, held.topic, held.version);
            return out.reply(ticket, ReplyBody::Subscription { id, topic, version, settings });
        }
        let Some(topic) = self.durable.registry.topic_named(&settings.topic).map(|topic| topic.id) else {
            let message = format!("no topic is named {:?}: create it first", settings.topic);
            return out.refuse(ticket, ErrorCode::UnknownTopic, 0, message);
        };
        let mut id = self.durable.registry.next_subscription_id();
        id.0 += self.unapplied(|body| matches!(body, ReplyBody::Subscription { .. }));
        let version = self.next_version();
        out.log().subscription(id, version, topic, &settings);
        self.await_all(ticket, version, ReplyBody::Subscription { id, topic, version, settings });
    }

    /// Of the changes on their way, how many of a sort this shard's registry does not hold yet.
    fn unapplied(&self, sort: impl Fn(&ReplyBody) -> bool) -> u32 {
        let held = self.durable.registry.version();
        self.volatile.control.changes.iter().filter(|c| c.version > held && sort(&c.body)).count() as u32
    }

    fn next_version(&self) -> u64 {
        let pending = self.volatile.control.changes.last().map_or(0, |change| change.version);
        pending.max(self.durable.registry.version()) + 1
    }

    fn await_all(&mut self, ticket: Ticket, version: u64, body: ReplyBody) {
        let missing = self.volatile.control.serving.clone();
        self.volatile.control.changes.push(Change { version, tickets: vec![ticket], body, missing });
    }

    /// Shard 0's copy is durable: the others get theirs.
    pub(super) fn replicate_control(&mut self, record: &Record<'_>, version: u64, out: &mut Effects) {
        for shard in &self.volatile.control.serving {
            if *shard != self.config.shard {
                let mut bytes = Vec::new();
                write_control(record, &mut bytes);
                out.forwards.push((*shard, Message::Control { record: bytes }));
            }
        }
        self.control_durable(ShardId(0), version, out);
    }

    /// Takes a copy of a control object from shard 0.
    pub(super) fn control(&mut self, record: &[u8], out: &mut Effects) {
        // Parsed first: a log must never hold what replay would refuse.
        for parsed in records(record) {
            match parsed {
                Ok(parsed @ (Record::Topic { .. } | Record::Subscription { .. })) => {
                    let mut bytes = Vec::new();
                    write_control(&parsed, &mut bytes);
                    out.records.extend_from_slice(&bytes);
                    out.record_count += 1;
                }
                _ => panic!("shard 0 sends control records only"),
            }
        }
    }

    pub(super) fn control_durable(&mut self, shard: ShardId, version: u64, out: &mut Effects) {
        let changes = &mut self.volatile.control.changes;
        // A copy that a start caught up with has nobody waiting for it.
        let Some(at) = changes.iter().position(|change| change.version == version) else { return };
        changes[at].missing.retain(|other| *other != shard);
        if changes[at].missing.is_empty() {
            let change = changes.remove(at);
            for ticket in change.tickets {
                out.reply(ticket, change.body.clone());
            }
        }
    }
}

/// Of shards that have recovered: the version of their newest control object, and as records all that the one furthest
/// behind misses up to there. What a shard holds already changes nothing there.
///
/// Mostly shard 0 is ahead, as it decides. Where it had to give up the end of its log, others hold what it no longer
/// knows, and it must not give the same numbers to something else.
#[must_use]
pub fn newest_control<'a>(shards: impl IntoIterator<Item = &'a Shard>) -> (u64, Vec<u8>) {
    let (mut least, mut newest) = (u64::MAX, None::<&Shard>);
    for shard in shards {
        let version = shard.registry().version();
        least = least.min(version);
        if newest.is_none_or(|held| held.registry().version() < version) {
            newest = Some(shard);
        }
    }
    let mut records = Vec::new();
    let Some(newest) = newest else { return (0, records) };
    newest.durable.registry.write_since(least, &mut RecordWriter::new(&mut records, &mut 0));
    (newest.registry().version(), records)
}

fn refuse_other(out: &mut Effects, ticket: Ticket, what: &str, name: &str) {
    let message = format!(
        "a {what} named {name:?} exists with other settings: choose another name, or the same settings"
    );
    out.refuse(ticket, ErrorCode::AlreadyExists, 0, message);
}

fn write_control(record: &Record<'_>, bytes: &mut Vec<u8>) {
    let mut count = 0;
    let mut writer = RecordWriter::new(bytes, &mut count);
    match record {
        Record::Topic { id, version, settings } => writer.topic(*id, *version, settings),
        Record::Subscription { id, version, topic, settings } => {
            writer.subscription(*id, *version, *topic, settings);
        }
        _ => unreachable!("callers pass control records"),
    }
}
