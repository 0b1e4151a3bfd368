//! What the door asks of its core.

use escapement_engine::names::NameHash;
use escapement_engine::{Duplicate, Input, Message, Refusal, Registry, Reply, ReplyBody, Ticket, owner_of};
use escapement_frontend::door::{self, Backend, OpenSession};
use escapement_protocol::frame::{
    self, AdminAnswer, AdminRequest, EventName, Items, Query, ResultItem, Subscribe, Subscribed,
    SubscriptionInfo, SubscriptionList, TopicInfo, TopicList,
};
use escapement_protocol::{ErrorCode, EventId, ShardId, TopicId, WallMs};
use escapement_router::{Credit, Detach, HostKey, SessionId};

use super::{Inside, Parcel, SESSION_CORE_SHIFT, core_of, out};

impl<S: Copy + Eq + std::hash::Hash> Inside<S> {
    fn ticket(&self, number: u64) -> Ticket {
        Ticket { core: self.config.core, number }
    }

    /// Whether something has to be known of past events of a topic, so that each belongs to one shard only.
    fn has_names(&self, topic: TopicId) -> bool {
        self.registry().topic(topic).is_some_and(|topic| topic.settings.dedup_window_ms > 0)
    }
}

impl<S> Inside<S> {
    /// This core's copy of the registry: that of its first serving shard, or one that it is told.
    ///
    /// # Panics
    /// If it has neither: a core without a serving shard was given none at its start.
    pub(super) fn registry(&self) -> &Registry {
        let mut serving = self.shards.iter().flatten().filter(|logged| logged.failure().is_none());
        let serving = serving.next().map(|logged| logged.shard().registry());
        serving.or(self.bare.copy.as_ref()).expect("a core without a serving shard holds a copy")
    }
}

impl<S: Copy + Eq + std::hash::Hash> Inside<S> {
    /// The refusal of a creation under a name that something else has, which shard 0 would refuse too: what is held here is
    /// held there, and does not change. Here it is known in what they differ.
    fn exists_otherwise(&self, request: &AdminRequest) -> Option<Refusal> {
        let registry = self.registry();
        let (what, name, differences) = match request {
            AdminRequest::CreateTopic(asked) => {
                let held = registry.topic_named(&asked.name)?;
                ("topic", &asked.name, asked.differences(&held.settings))
            }
            AdminRequest::CreateSubscription(asked) => {
                let held = registry.subscription_named(&asked.name)?;
                ("subscription", &asked.name, asked.differences(&held.settings))
            }
            _ => return None,
        };
        (!differences.is_empty()).then(|| Refusal {
            code: ErrorCode::AlreadyExists,
            message: format!(
                "a {what} named {name:?} exists with other settings: {differences}; choose another name, or the same \
                 settings"
            ),
            retry_after_ms: 0,
        })
    }
}

impl<S> Inside<S> {
    /// The refusal of a name that nothing held here has. Only where shard 0 serves does that say that nothing has it: the
    /// shards here may have been out of service when it was given.
    fn unknown(&self, code: ErrorCode, what: &str, name: &str) -> door::Refusal {
        let name: String = name.chars().take(64).collect();
        if self.config.epochs.first().is_some_and(Option::is_some) {
            let message = format!("no {what} is named {name:?}: create it first");
            return door::Refusal { code, message, retry_after_ms: 0 };
        }
        let Refusal { code, message, retry_after_ms } = out::refusal(ShardId(0));
        let message = format!("no {what} named {name:?} is known without shard 0: {message}");
        door::Refusal { code, message, retry_after_ms }
    }
}

impl<S: Copy + Eq + std::hash::Hash> Backend<S> for Inside<S> {
    fn publish(&mut self, ticket: u64, shard: ShardId, topic: TopicId, count: u32, events: &[u8]) {
        let ticket = self.ticket(ticket);
        let core = core_of(shard, self.config.core_count);
        if core == self.config.core {
            self.step(shard, Input::Publish { ticket, topic, count, events }, Some(ticket));
        } else {
            let events = events.into();
            self.mail[usize::from(core)].push(Parcel::Publish { shard, ticket, topic, count, events });
        }
    }

    fn default_source(&self, topic: TopicId) -> &str {
        self.registry().topic(topic).map_or("", |topic| &topic.settings.default_source)
    }

    fn may_move(&self, topic: TopicId) -> bool {
        !self.has_names(topic)
    }

    fn cancel(&mut self, ticket: u64, event: EventId) {
        let ticket = self.ticket(ticket);
        let core = core_of(event.shard, self.config.core_count);
        if core == self.config.core {
            self.step(event.shard, Input::Cancel { ticket, event }, Some(ticket));
        } else {
            self.mail[usize::from(core)].push(Parcel::Cancel { shard: event.shard, ticket, event });
        }
    }

    fn query(&mut self, ticket: u64, query: Query) {
        let (ticket, shard) = (self.ticket(ticket), query.shard());
        let core = core_of(shard, self.config.core_count);
        if core == self.config.core {
            self.step(shard, Input::Query { ticket, query }, Some(ticket));
        } else {
            self.mail[usize::from(core)].push(Parcel::Query { ticket, query });
        }
    }

    fn cancel_by_name(&mut self, ticket: u64, shard: ShardId, topic: TopicId, name: &EventName<'_>) {
        let ticket = self.ticket(ticket);
        let EventName { ordering_key, source, id } = *name;
        let name = NameHash::of(topic, ordering_key, source.as_bytes(), id.as_bytes());
        let core = core_of(shard, self.config.core_count);
        if core == self.config.core {
            self.step(shard, Input::CancelByName { ticket, topic, name }, Some(ticket));
        } else {
            self.mail[usize::from(core)].push(Parcel::CancelByName { shard, ticket, topic, name });
        }
    }

    fn reschedule(&mut self, ticket: u64, event: EventId, due: WallMs, expected: Option<u64>) {
        let ticket = self.ticket(ticket);
        let (shard, core) = (event.shard, core_of(event.shard, self.config.core_count));
        if core == self.config.core {
            self.step(shard, Input::Reschedule { ticket, event, due, expected }, Some(ticket));
        } else {
            self.mail[usize::from(core)].push(Parcel::Reschedule { shard, ticket, event, due, expected });
        }
    }

    fn create(&mut self, ticket: u64, request: AdminRequest) {
        let ticket = self.ticket(ticket);
        if let Some(refusal) = self.exists_otherwise(&request) {
            self.replies.push_back(Reply { ticket, body: ReplyBody::Refused(refusal) });
            return;
        }
        let request = match request {
            AdminRequest::CreateTopic(settings) => escapement_engine::AdminRequest::CreateTopic(settings),
            AdminRequest::CreateSubscription(settings) => {
                escapement_engine::AdminRequest::CreateSubscription(settings)
            }
            _ => unreachable!("the door passes creations only"),
        };
        let core = core_of(ShardId(0), self.config.core_count);
        if core == self.config.core {
            self.step(ShardId(0), Input::Admin { ticket, request }, Some(ticket));
        } else {
            self.mail[usize::from(core)].push(Parcel::Admin { ticket, request });
        }
    }

    fn snapshot(&mut self, ticket: u64, stream: S, hold_ms: u64) {
        self.begin_snapshot(ticket, stream, hold_ms);
    }

    fn end_snapshot(&mut self, ticket: u64, stream: S, snapshot: u64) {
        Inside::end_snapshot(self, ticket, stream, snapshot);
    }

    fn read(&mut self, request: &AdminRequest) -> Result<AdminAnswer, door::Refusal> {
        let registry = self.registry();
        match request {
            AdminRequest::GetTopic { name } => {
                let topic = registry
                    .topic_named(name)
                    .ok_or_else(|| self.unknown(ErrorCode::UnknownTopic, "topic", name))?;
                Ok(AdminAnswer::Topic(topic_info(topic)))
            }
            AdminRequest::GetSubscription { name } => {
                let subscription = registry
                    .subscription_named(name)
                    .ok_or_else(|| self.unknown(ErrorCode::UnknownSubscription, "subscription", name))?;
                Ok(AdminAnswer::Subscription(subscription_info(subscription)))
            }
            AdminRequest::ListTopics(page) => {
                let after = registry.topics().into_iter().filter(|topic| topic.id.0 > page.after_id);
                let (topics, more) = cut(after.map(topic_info), page.count());
                Ok(AdminAnswer::Topics(TopicList { topics, more }))
            }
            AdminRequest::ListSubscriptions(page) => {
                let after = registry.subscriptions().into_iter().filter(|s| s.id.0 > page.after_id);
                let (subscriptions, more) = cut(after.map(subscription_info), page.count());
                Ok(AdminAnswer::Subscriptions(SubscriptionList { subscriptions, more }))
            }
            _ => unreachable!("the door passes reads of the registry only"),
        }
    }

    fn attach(&mut self, stream: S, subscribe: &Subscribe<'_>) -> Result<OpenSession, door::Refusal> {
        let name = subscribe.subscription;
        let registry = self.registry();
        let subscription = registry
            .subscription_named(name)
            .ok_or_else(|| self.unknown(ErrorCode::UnknownSubscription, "subscription", name))?
            .id;
        let owner = owner_of(subscription, &self.owners);
        let Some(epoch) = self.config.epochs.get(usize::from(owner.0)).copied().flatten() else {
            return Err(refusal(out::refusal(owner)));
        };
        let session = u64::from(self.config.core) << SESSION_CORE_SHIFT | self.next_session;
        self.next_session += 1;
        self.session_owner.insert(session, owner);
        self.sessions.open(session, stream, subscription, epoch);
        let attach = Message::Attach {
            subscription,
            session: SessionId(session),
            host: HostKey(subscribe.host),
            credit: self.clamp(subscribe.credit),
            running: subscribe.running.iter().collect(),
        };
        self.tell(owner, attach);
        Ok(OpenSession { session, subscribed: Subscribed { subscription, session_id: session, epoch } })
    }

    fn credit(&mut self, session: u64, credit: frame::Credit) {
        let credit = self.clamp(credit);
        self.set_credit(session, credit);
    }

    fn leave(&mut self, session: u64) {
        self.set_credit(session, Credit::default());
    }

    fn end(&mut self, session: u64, left: bool) {
        self.sessions.close(session);
        if let Some(owner) = self.session_owner.remove(&session) {
            let how = if left { Detach::Graceful } else { Detach::Cut };
            self.tell(owner, Message::Detach { session: SessionId(session), how });
        }
    }

    fn results(&mut self, session: u64, results: Items<'_, ResultItem>) {
        let Some(&owner) = self.session_owner.get(&session) else { return };
        let core = core_of(owner, self.config.core_count);
        let session = SessionId(session);
        if core == self.config.core {
            self.step(owner, Input::Results { session, results }, None);
        } else {
            let results = results.iter().collect();
            self.mail[usize::from(core)].push(Parcel::Shard(owner, Message::Results { session, results }));
        }
    }
}

impl<S> Inside<S> {
    fn clamp(&self, credit: frame::Credit) -> Credit {
        let most = self.config.credit_max;
        Credit { tasks: credit.tasks.min(most.tasks), bytes: u64::from(credit.bytes).min(most.bytes) }
    }
}

fn cut<T>(items: impl Iterator<Item = T>, count: u32) -> (Vec<T>, bool) {
    let mut items: Vec<T> = items.take(count as usize + 1).collect();
    let more = items.len() > count as usize;
    items.truncate(count as usize);
    (items, more)
}

fn topic_info(topic: &escapement_engine::Topic) -> TopicInfo {
    TopicInfo { topic: topic.id, version: version(topic.version), settings: topic.settings.clone() }
}

fn subscription_info(subscription: &escapement_engine::Subscription) -> SubscriptionInfo {
    SubscriptionInfo {
        subscription: subscription.id,
        topic: subscription.topic,
        version: version(subscription.version),
        settings: subscription.settings.clone(),
    }
}

/// Versions count changes of control objects: they stay far below 32 bits.
pub(super) fn version(version: u64) -> u32 {
    u32::try_from(version).unwrap_or(u32::MAX)
}

pub(super) fn refusal(refusal: Refusal) -> door::Refusal {
    let Refusal { code, message, retry_after_ms } = refusal;
    door::Refusal { code, message, retry_after_ms }
}

pub(super) fn duplicate(duplicate: Duplicate) -> door::Duplicate {
    let Duplicate { index, sequence, schedule_time, accepted } = duplicate;
    door::Duplicate { index, sequence, schedule_time, accepted }
}
