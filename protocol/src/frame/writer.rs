//! Writes any frame. Small ones go through a FlatBuffer builder that is kept between frames.

use std::fmt;

use flatbuffers::{FlatBufferBuilder, ForwardsUOffset, Push, UnionWIPOffset, Vector, WIPOffset};

use super::{
    AdminAnswer, AdminRequest, Cancel, CancelByName, CancelReply, Credit, ErrorFrame, Fixed, Frame,
    FrameError, FrameKind, GroupAnswer, GroupOperation, Hello, Items, ListedEvent, Page, Prefix, Query,
    QueryAnswer, Reschedule, RescheduleReply, ShardCut, ShardMapInfo, SnapshotInfo, Subscribe, Subscribed,
    SubscriptionInfo, SubscriptionList, TopicInfo, TopicList, Welcome, encode_publish_ack,
    encode_publish_batch, encode_push_batch, encode_results,
};
use crate::event::Due;
use crate::generated::wire;
use crate::{SubscriptionSettings, TopicSettings};

type Builder = FlatBufferBuilder<'static>;
type VectorOffset<T> = WIPOffset<Vector<'static, T>>;

/// Appends frames to a buffer.
#[derive(Default)]
pub struct FrameWriter {
    builder: Builder,
}

impl fmt::Debug for FrameWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameWriter").finish_non_exhaustive()
    }
}

impl FrameWriter {
    /// A writer whose memory is allocated by its first small frame, and kept.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends `frame` to `out`.
    ///
    /// # Errors
    /// [`FrameError::Length`], where it would be longer than a frame may be; `out` is then as it was.
    pub fn write(&mut self, frame: &Frame<'_>, out: &mut Vec<u8>) -> Result<(), FrameError> {
        match frame {
            Frame::PublishBatch(batch) => return encode_publish_batch(batch, out),
            Frame::PublishAck(ack) => return encode_publish_ack(ack, out),
            Frame::PushBatch(batch) => return encode_push_batch(batch, out),
            Frame::ResultBatch(batch) => return encode_results(batch.results, out),
            _ => {}
        }
        self.builder.reset();
        self.build(frame);
        append(frame.kind(), self.builder.finished_data(), out)
    }

    fn build(&mut self, frame: &Frame<'_>) {
        let b = &mut self.builder;
        match frame {
            Frame::Hello(hello) => build_hello(b, hello),
            Frame::Welcome(welcome) => build_welcome(b, welcome),
            Frame::Subscribe(subscribe) => build_subscribe(b, subscribe),
            Frame::Subscribed(subscribed) => build_subscribed(b, *subscribed),
            Frame::Credit(credit) => build_credit(b, *credit),
            Frame::Detach => {
                let root = wire::Detach::create(b, &wire::DetachArgs {});
                b.finish_minimal(root);
            }
            Frame::Detached => {
                let root = wire::Detached::create(b, &wire::DetachedArgs {});
                b.finish_minimal(root);
            }
            Frame::Cancel(cancel) => build_cancel(b, cancel),
            Frame::CancelReply(reply) => build_cancel_reply(b, reply),
            Frame::CancelByName(cancel) => build_cancel_by_name(b, cancel),
            Frame::Reschedule(reschedule) => build_reschedule(b, reschedule),
            Frame::RescheduleReply(reply) => build_reschedule_reply(b, reply),
            Frame::Admin { request, body } => build_admin(b, *request, body),
            Frame::AdminReply { request, body } => build_admin_reply(b, *request, body),
            Frame::Error(error) => build_error(b, error),
            Frame::GoAway(go_away) => {
                let message = Some(b.create_string(go_away.message));
                let root = wire::GoAway::create(b, &wire::GoAwayArgs { message });
                b.finish_minimal(root);
            }
            Frame::Query { request, query } => build_query(b, *request, query),
            Frame::QueryReply { request, answer } => build_query_reply(b, *request, answer),
            Frame::PublishBatch(_) | Frame::PublishAck(_) | Frame::PushBatch(_) | Frame::ResultBatch(_) => {
                unreachable!("data frames are laid out by hand")
            }
        }
    }
}

fn append(kind: FrameKind, body: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
    out.extend_from_slice(&Prefix { kind, len_bytes: body.len() }.to_bytes()?);
    out.extend_from_slice(body);
    Ok(())
}

fn structs<T: Fixed, W: Push>(
    b: &mut Builder,
    items: Items<'_, T>,
    wrap: impl Fn(T::Bytes) -> W,
) -> Option<VectorOffset<W::Output>> {
    Some(b.create_vector_from_iter(items.iter().map(|item| wrap(item.to_wire()))))
}

fn build_hello(b: &mut Builder, hello: &Hello<'_>) {
    let client = Some(b.create_string(hello.client));
    let root = wire::Hello::create(b, &wire::HelloArgs { version: hello.version, client });
    b.finish_minimal(root);
}

fn build_welcome(b: &mut Builder, welcome: &Welcome<'_>) {
    let shards = structs(b, welcome.shards, wire::ShardCore);
    let args = wire::WelcomeArgs {
        version: welcome.version,
        node_id: welcome.node_id,
        epoch: welcome.epoch.0,
        shard_count: welcome.shard_count,
        core_count: welcome.core_count,
        shards,
        event_size_max: welcome.event_size_bytes_max,
        frame_size_max: welcome.frame_size_bytes_max,
        wall_ms: welcome.wall.0,
    };
    let root = wire::Welcome::create(b, &args);
    b.finish_minimal(root);
}

fn build_subscribe(b: &mut Builder, subscribe: &Subscribe<'_>) {
    let subscription = Some(b.create_string(subscribe.subscription));
    let running = Some(b.create_vector_from_iter(subscribe.running.iter().map(|tag| tag.0)));
    let args = wire::SubscribeArgs {
        subscription,
        credit_tasks: subscribe.credit.tasks,
        credit_bytes: subscribe.credit.bytes,
        running,
        host: subscribe.host,
    };
    let root = wire::Subscribe::create(b, &args);
    b.finish_minimal(root);
}

fn build_subscribed(b: &mut Builder, subscribed: Subscribed) {
    let args = wire::SubscribedArgs {
        subscription_id: subscribed.subscription.0,
        session_id: subscribed.session_id,
        epoch: subscribed.epoch.0,
    };
    let root = wire::Subscribed::create(b, &args);
    b.finish_minimal(root);
}

fn build_credit(b: &mut Builder, credit: Credit) {
    let args = wire::CreditArgs { credit_tasks: credit.tasks, credit_bytes: credit.bytes };
    let root = wire::Credit::create(b, &args);
    b.finish_minimal(root);
}

fn build_cancel(b: &mut Builder, cancel: &Cancel<'_>) {
    let events = structs(b, cancel.events, wire::EventIdBytes);
    let root = wire::Cancel::create(b, &wire::CancelArgs { request: cancel.request, events });
    b.finish_minimal(root);
}

fn build_cancel_reply(b: &mut Builder, reply: &CancelReply<'_>) {
    let verdicts = structs(b, reply.verdicts, wire::CancelVerdict);
    let root = wire::CancelReply::create(b, &wire::CancelReplyArgs { request: reply.request, verdicts });
    b.finish_minimal(root);
}

fn build_cancel_by_name(b: &mut Builder, cancel: &CancelByName<'_>) {
    let names = tables(b, &cancel.names, |b, name| {
        let args = wire::EventNameArgs {
            ordering_key: Some(b.create_vector(name.ordering_key)),
            source: Some(b.create_string(name.source)),
            id: Some(b.create_string(name.id)),
        };
        wire::EventName::create(b, &args)
    });
    let args = wire::CancelByNameArgs { request: cancel.request, topic_id: cancel.topic.0, names };
    let root = wire::CancelByName::create(b, &args);
    b.finish_minimal(root);
}

fn build_reschedule(b: &mut Builder, reschedule: &Reschedule<'_>) {
    let events = structs(b, reschedule.events, wire::EventIdBytes);
    let versions = Some(b.create_vector_from_iter(reschedule.versions.iter()));
    let (due_ms, is_delay) = match reschedule.due {
        Due::At(at) => (at.0, false),
        Due::After(delay_ms) => (delay_ms, true),
    };
    let args = wire::RescheduleArgs { request: reschedule.request, events, due_ms, is_delay, versions };
    let root = wire::Reschedule::create(b, &args);
    b.finish_minimal(root);
}

fn build_reschedule_reply(b: &mut Builder, reply: &RescheduleReply<'_>) {
    let verdicts = structs(b, reply.verdicts, wire::RescheduleVerdict);
    let args = wire::RescheduleReplyArgs { request: reply.request, verdicts };
    let root = wire::RescheduleReply::create(b, &args);
    b.finish_minimal(root);
}

fn build_error(b: &mut Builder, error: &ErrorFrame<'_>) {
    let message = Some(b.create_string(error.message));
    let args = wire::ErrorArgs {
        request: error.request,
        code: error.code,
        retry_after_ms: error.retry_after_ms,
        message,
    };
    let root = wire::Error::create(b, &args);
    b.finish_minimal(root);
}

fn build_query(b: &mut Builder, request: u64, query: &Query) {
    match query {
        Query::Event { event, peek } => {
            let event = wire::EventIdBytes(event.to_bytes());
            let args = wire::GetEventArgs { request, event: Some(&event), peek: *peek };
            let root = wire::GetEvent::create(b, &args);
            b.finish_minimal(root);
        }
        Query::Count { shard, topic, subscription } => {
            let (shard, topic_id, subscription_id) = (shard.0, topic.0, subscription.0);
            let args = wire::CountEventsArgs { request, shard, topic_id, subscription_id };
            let root = wire::CountEvents::create(b, &args);
            b.finish_minimal(root);
        }
        Query::Due { shard, topic } => {
            let args = wire::CountDueArgs { request, shard: shard.0, topic_id: topic.0 };
            let root = wire::CountDue::create(b, &args);
            b.finish_minimal(root);
        }
        Query::List(list) => {
            let args = wire::ListEventsArgs {
                request,
                topic_id: list.topic.0,
                state: list.state.map_or(0, |state| state as u8),
                ordering_key: Some(b.create_vector(&list.ordering_key)),
                from_ms: list.from.0,
                until_ms: if list.until.0 == u64::MAX { 0 } else { list.until.0 },
                count_max: list.count_max,
                token: Some(b.create_vector(&list.token)),
            };
            let root = wire::ListEvents::create(b, &args);
            b.finish_minimal(root);
        }
        Query::Group(GroupOperation { shard, topic, group, act, epoch, by_ms }) => {
            let (shard, topic_id, act, epoch, by_ms) = (shard.0, topic.0, *act as u8, *epoch, *by_ms);
            let group = Some(b.create_string(group));
            let args = wire::GroupOperationArgs { request, shard, act, topic_id, epoch, group, by_ms };
            let root = wire::GroupOperation::create(b, &args);
            b.finish_minimal(root);
        }
    }
}

fn build_query_reply(b: &mut Builder, request: u64, answer: &QueryAnswer) {
    match answer {
        QueryAnswer::Event(detail) => {
            let mut args = wire::GetEventReplyArgs { request, ..wire::GetEventReplyArgs::default() };
            if let Some(detail) = detail {
                let info = [detail.info];
                args.event = structs(b, Items::from(info.as_slice()), wire::EventInfo);
                args.tasks = structs(b, Items::from(detail.tasks.as_slice()), wire::TaskInfo);
                args.task_count = detail.task_count;
                args.version = detail.version;
                args.bytes = detail.bytes.as_ref().map(|bytes| b.create_vector(bytes));
            }
            let root = wire::GetEventReply::create(b, &args);
            b.finish_minimal(root);
        }
        QueryAnswer::Count(counts) => {
            let ended = structs(b, Items::from(counts.ended.as_slice()), wire::OutcomeCount);
            let args = wire::CountEventsReplyArgs {
                request,
                scheduled: counts.scheduled,
                ready: counts.ready,
                in_runs: counts.in_runs,
                queued: counts.queued,
                running: counts.running,
                backoff: counts.backoff,
                ended,
            };
            let root = wire::CountEventsReply::create(b, &args);
            b.finish_minimal(root);
        }
        QueryAnswer::Due(counts) => {
            let counts = structs(b, Items::from(counts.as_slice()), wire::DueCount);
            let root = wire::CountDueReply::create(b, &wire::CountDueReplyArgs { request, counts });
            b.finish_minimal(root);
        }
        QueryAnswer::List(page) => {
            let events: Vec<_> = page.events.iter().map(|event| listed_event(b, event)).collect();
            let missing: Vec<u16> = page.missing.iter().map(|shard| shard.0).collect();
            let args = wire::ListEventsReplyArgs {
                request,
                events: Some(b.create_vector(&events)),
                token: Some(b.create_vector(&page.token)),
                unread: page.unread,
                missing: (!missing.is_empty()).then(|| b.create_vector(&missing)),
            };
            let root = wire::ListEventsReply::create(b, &args);
            b.finish_minimal(root);
        }
        QueryAnswer::Group(answer) => {
            let GroupAnswer { verdict, count, pending, paused, cancelled, ref operations } = *answer;
            let operations = structs(b, Items::from(operations.as_slice()), wire::GroupEpoch);
            let verdict = verdict as u8;
            let args = wire::GroupOperationReplyArgs {
                request,
                verdict,
                count,
                pending,
                cancelled,
                operations,
                paused,
            };
            let root = wire::GroupOperationReply::create(b, &args);
            b.finish_minimal(root);
        }
    }
}

fn listed_event<'a>(b: &mut Builder, event: &ListedEvent) -> WIPOffset<wire::ListedEvent<'a>> {
    let args = wire::ListedEventArgs {
        info: Some(&wire::EventInfo(event.info.to_wire())),
        id: Some(b.create_string(&event.id)),
        ordering_key: Some(b.create_vector(&event.ordering_key)),
        attempt: event.attempt,
    };
    wire::ListedEvent::create(b, &args)
}

type Union = Option<WIPOffset<UnionWIPOffset>>;

fn build_admin(b: &mut Builder, request: u64, body: &AdminRequest) {
    let (body_type, body): (_, Union) = match body {
        AdminRequest::CreateTopic(settings) => {
            let settings = Some(topic_settings(b, settings));
            let body = wire::CreateTopic::create(b, &wire::CreateTopicArgs { settings });
            (wire::AdminBody::CreateTopic, Some(body.as_union_value()))
        }
        AdminRequest::GetTopic { name } => {
            let name = Some(b.create_string(name));
            let body = wire::GetTopic::create(b, &wire::GetTopicArgs { name });
            (wire::AdminBody::GetTopic, Some(body.as_union_value()))
        }
        AdminRequest::ListTopics(Page { after_id, count_max }) => {
            let args = wire::ListTopicsArgs { after_id: *after_id, count_max: *count_max };
            let body = wire::ListTopics::create(b, &args);
            (wire::AdminBody::ListTopics, Some(body.as_union_value()))
        }
        AdminRequest::CreateSubscription(settings) => {
            let settings = Some(subscription_settings(b, settings));
            let body = wire::CreateSubscription::create(b, &wire::CreateSubscriptionArgs { settings });
            (wire::AdminBody::CreateSubscription, Some(body.as_union_value()))
        }
        AdminRequest::GetSubscription { name } => {
            let name = Some(b.create_string(name));
            let body = wire::GetSubscription::create(b, &wire::GetSubscriptionArgs { name });
            (wire::AdminBody::GetSubscription, Some(body.as_union_value()))
        }
        AdminRequest::ListSubscriptions(Page { after_id, count_max }) => {
            let args = wire::ListSubscriptionsArgs { after_id: *after_id, count_max: *count_max };
            let body = wire::ListSubscriptions::create(b, &args);
            (wire::AdminBody::ListSubscriptions, Some(body.as_union_value()))
        }
        AdminRequest::ShardMap => {
            let body = wire::ShardMap::create(b, &wire::ShardMapArgs {});
            (wire::AdminBody::ShardMap, Some(body.as_union_value()))
        }
        AdminRequest::Snapshot { hold_ms } => {
            let body = wire::Snapshot::create(b, &wire::SnapshotArgs { hold_ms: *hold_ms });
            (wire::AdminBody::Snapshot, Some(body.as_union_value()))
        }
        AdminRequest::EndSnapshot { snapshot } => {
            let body = wire::EndSnapshot::create(b, &wire::EndSnapshotArgs { snapshot: *snapshot });
            (wire::AdminBody::EndSnapshot, Some(body.as_union_value()))
        }
    };
    let root = wire::Admin::create(b, &wire::AdminArgs { request, body_type, body });
    b.finish_minimal(root);
}

fn build_admin_reply(b: &mut Builder, request: u64, body: &AdminAnswer) {
    let (body_type, body): (_, Union) = match body {
        AdminAnswer::Topic(info) => {
            let body = topic_info(b, info);
            (wire::AdminReplyBody::TopicInfo, Some(body.as_union_value()))
        }
        AdminAnswer::Topics(TopicList { topics, more }) => {
            let topics = tables(b, topics, topic_info);
            let body = wire::TopicList::create(b, &wire::TopicListArgs { topics, more: *more });
            (wire::AdminReplyBody::TopicList, Some(body.as_union_value()))
        }
        AdminAnswer::Subscription(info) => {
            let body = subscription_info(b, info);
            (wire::AdminReplyBody::SubscriptionInfo, Some(body.as_union_value()))
        }
        AdminAnswer::Subscriptions(SubscriptionList { subscriptions, more }) => {
            let subscriptions = tables(b, subscriptions, subscription_info);
            let args = wire::SubscriptionListArgs { subscriptions, more: *more };
            let body = wire::SubscriptionList::create(b, &args);
            (wire::AdminReplyBody::SubscriptionList, Some(body.as_union_value()))
        }
        AdminAnswer::ShardMap(ShardMapInfo { epoch, shard_count, core_count, shards }) => {
            let shards = structs(b, Items::from(shards.as_slice()), wire::ShardCore);
            let args = wire::ShardMapInfoArgs {
                epoch: epoch.0,
                shard_count: *shard_count,
                core_count: *core_count,
                shards,
            };
            let body = wire::ShardMapInfo::create(b, &args);
            (wire::AdminReplyBody::ShardMapInfo, Some(body.as_union_value()))
        }
        AdminAnswer::SnapshotHeld(SnapshotInfo { snapshot, hold_ms, shards }) => {
            let shards = tables(b, shards, shard_cut);
            let args = wire::SnapshotHeldArgs { snapshot: *snapshot, hold_ms: *hold_ms, shards };
            let body = wire::SnapshotHeld::create(b, &args);
            (wire::AdminReplyBody::SnapshotHeld, Some(body.as_union_value()))
        }
        AdminAnswer::SnapshotEnded => {
            let body = wire::SnapshotEnded::create(b, &wire::SnapshotEndedArgs {});
            (wire::AdminReplyBody::SnapshotEnded, Some(body.as_union_value()))
        }
    };
    let root = wire::AdminReply::create(b, &wire::AdminReplyArgs { request, body_type, body });
    b.finish_minimal(root);
}

fn tables<T, W>(
    b: &mut Builder,
    entries: &[T],
    build: impl Fn(&mut Builder, &T) -> WIPOffset<W>,
) -> Option<VectorOffset<ForwardsUOffset<W>>> {
    let offsets: Vec<WIPOffset<W>> = entries.iter().map(|entry| build(b, entry)).collect();
    Some(b.create_vector(&offsets))
}

fn shard_cut(b: &mut Builder, cut: &ShardCut) -> WIPOffset<wire::ShardCut<'static>> {
    let args = wire::ShardCutArgs {
        shard: cut.shard.0,
        epoch: cut.epoch.0,
        first_segment_id: cut.first_segment_id,
        first_block_seq: cut.first_block_seq,
        first_prev_checksum_low: cut.first_prev_checksum as u64,
        first_prev_checksum_high: (cut.first_prev_checksum >> 64) as u64,
        through_block_seq: cut.through_block_seq,
        end_segment_id: cut.end_segment_id,
        end_offset: cut.end_offset,
    };
    wire::ShardCut::create(b, &args)
}

fn topic_info(b: &mut Builder, info: &TopicInfo) -> WIPOffset<wire::TopicInfo<'static>> {
    let settings = Some(topic_settings(b, &info.settings));
    let args = wire::TopicInfoArgs { topic_id: info.topic.0, version: info.version, settings };
    wire::TopicInfo::create(b, &args)
}

fn subscription_info(b: &mut Builder, info: &SubscriptionInfo) -> WIPOffset<wire::SubscriptionInfo<'static>> {
    let settings = Some(subscription_settings(b, &info.settings));
    let args = wire::SubscriptionInfoArgs {
        subscription_id: info.subscription.0,
        topic_id: info.topic.0,
        version: info.version,
        settings,
    };
    wire::SubscriptionInfo::create(b, &args)
}

fn topic_settings(b: &mut Builder, settings: &TopicSettings) -> WIPOffset<wire::TopicSettings<'static>> {
    let args = wire::TopicSettingsArgs {
        name: Some(b.create_string(&settings.name)),
        default_source: Some(b.create_string(&settings.default_source)),
        default_type: Some(b.create_string(&settings.default_type)),
        default_content_type: Some(b.create_string(&settings.default_content_type)),
        dedup_window_ms: settings.dedup_window_ms,
    };
    wire::TopicSettings::create(b, &args)
}

fn subscription_settings(
    b: &mut Builder,
    settings: &SubscriptionSettings,
) -> WIPOffset<wire::SubscriptionSettings<'static>> {
    let (misfire, misfire_ms) = settings.misfire.code();
    let args = wire::SubscriptionSettingsArgs {
        name: Some(b.create_string(&settings.name)),
        topic: Some(b.create_string(&settings.topic)),
        max_concurrent_dispatches: settings.max_concurrent_dispatches,
        attempt_deadline_ms: settings.attempt_deadline_ms,
        max_attempts: settings.max_attempts,
        min_backoff_ms: settings.min_backoff_ms,
        max_backoff_ms: settings.max_backoff_ms,
        max_doublings: settings.max_doublings,
        jitter_permille: settings.jitter_permille,
        misfire,
        misfire_ms,
    };
    wire::SubscriptionSettings::create(b, &args)
}
