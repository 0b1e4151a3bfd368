//! From a frame's FlatBuffer to its verified view.

use flatbuffers::{Follow, ForwardsUOffset, Vector, Verifiable, VerifierOptions};

use super::{
    AdminAnswer, AdminRequest, Cancel, CancelByName, CancelReply, Counts, Credit, DueCount, Durability,
    ErrorFrame, EventDetail, EventInfo, EventName, EventPage, Events, Fixed, Frame, FrameError, FrameKind,
    GoAway, GroupAct, GroupAnswer, GroupEpoch, GroupOperation, GroupVerdict, Hello, Items, ListEvents,
    ListedEvent, OutcomeCount, Page, PublishAck, PublishBatch, PushBatch, PushDue, Query, QueryAnswer,
    Reschedule, RescheduleReply, ResultBatch, ShardCore, ShardCut, ShardMapInfo, SnapshotInfo, Subscribe,
    Subscribed, SubscriptionInfo, SubscriptionList, TaskInfo, TaskState, TopicInfo, TopicList, Welcome,
};
use crate::event::Due;
use crate::generated::wire;
use crate::settings::Misfire;
use crate::{
    Epoch, EventId, FRAME_SIZE_BYTES_MAX, ShardId, SubscriptionId, SubscriptionSettings, TopicId,
    TopicSettings, WallMs,
};

/// Deepest nesting of any frame is 4: `AdminReply`, a list, an entry, its settings.
///
/// The apparent size bounds the work on a hostile body whose offsets lead to the same bytes again and
/// again: an honest one counts each byte once, and vtables once for every table that shares them.
const VERIFIER: VerifierOptions = VerifierOptions {
    max_depth: 8,
    max_tables: 2_048,
    max_apparent_size: 2 * FRAME_SIZE_BYTES_MAX,
    ignore_missing_null_terminator: false,
};

/// Verifies a frame's bytes after its prefix.
///
/// # Errors
/// [`FrameError::Malformed`], and no other.
pub fn parse_body(kind: FrameKind, body: &[u8]) -> Result<Frame<'_>, FrameError> {
    let malformed = |reason| FrameError::Malformed { kind, reason };
    parse(kind, body).map_err(malformed)
}

type Parsed<T> = Result<T, &'static str>;

fn parse(kind: FrameKind, body: &[u8]) -> Parsed<Frame<'_>> {
    Ok(match kind {
        FrameKind::Hello => {
            let table = root::<wire::Hello<'_>>(body)?;
            Frame::Hello(Hello { version: table.version(), client: table.client().unwrap_or_default() })
        }
        FrameKind::Welcome => Frame::Welcome(welcome(body)?),
        FrameKind::PublishBatch => Frame::PublishBatch(publish_batch(body)?),
        FrameKind::PublishAck => {
            let table = root::<wire::PublishAck<'_>>(body)?;
            Frame::PublishAck(PublishAck {
                through_item: table.through_item(),
                durability: Durability(table.durability()),
                runs: items(table.runs())?,
                exceptions: items(table.exceptions())?,
                exhausted: table.exhausted().unwrap_or_default(),
                duplicates: items(table.duplicates())?,
            })
        }
        FrameKind::Subscribe => {
            let table = root::<wire::Subscribe<'_>>(body)?;
            Frame::Subscribe(Subscribe {
                subscription: table.subscription().unwrap_or_default(),
                credit: Credit { tasks: table.credit_tasks(), bytes: table.credit_bytes() },
                host: table.host(),
                running: items(table.running())?,
            })
        }
        FrameKind::Subscribed => {
            let table = root::<wire::Subscribed<'_>>(body)?;
            Frame::Subscribed(Subscribed {
                subscription: SubscriptionId(table.subscription_id()),
                session_id: table.session_id(),
                epoch: Epoch(table.epoch()),
            })
        }
        FrameKind::PushBatch => Frame::PushBatch(push_batch(body)?),
        FrameKind::ResultBatch => {
            let results = items(root::<wire::ResultBatch<'_>>(body)?.results())?;
            Frame::ResultBatch(ResultBatch { results })
        }
        FrameKind::Credit => {
            let table = root::<wire::Credit<'_>>(body)?;
            Frame::Credit(Credit { tasks: table.credit_tasks(), bytes: table.credit_bytes() })
        }
        FrameKind::Detach => root::<wire::Detach<'_>>(body).map(|_| Frame::Detach)?,
        FrameKind::Detached => root::<wire::Detached<'_>>(body).map(|_| Frame::Detached)?,
        FrameKind::Cancel => {
            let table = root::<wire::Cancel<'_>>(body)?;
            Frame::Cancel(Cancel { request: table.request(), events: items(table.events())? })
        }
        FrameKind::CancelReply => {
            let table = root::<wire::CancelReply<'_>>(body)?;
            Frame::CancelReply(CancelReply { request: table.request(), verdicts: items(table.verdicts())? })
        }
        FrameKind::CancelByName => {
            let table = root::<wire::CancelByName<'_>>(body)?;
            let names = table.names().map(|names| names.iter().map(event_name).collect());
            Frame::CancelByName(CancelByName {
                request: table.request(),
                topic: TopicId(table.topic_id()),
                names: names.unwrap_or_default(),
            })
        }
        FrameKind::Reschedule => Frame::Reschedule(reschedule(body)?),
        FrameKind::RescheduleReply => {
            let table = root::<wire::RescheduleReply<'_>>(body)?;
            let (request, verdicts) = (table.request(), items(table.verdicts())?);
            Frame::RescheduleReply(RescheduleReply { request, verdicts })
        }
        FrameKind::Admin => {
            let table = root::<wire::Admin<'_>>(body)?;
            Frame::Admin { request: table.request(), body: admin_request(table)? }
        }
        FrameKind::AdminReply => {
            let table = root::<wire::AdminReply<'_>>(body)?;
            Frame::AdminReply { request: table.request(), body: admin_answer(table)? }
        }
        FrameKind::Error => {
            let table = root::<wire::Error<'_>>(body)?;
            Frame::Error(ErrorFrame {
                request: table.request(),
                code: table.code(),
                retry_after_ms: table.retry_after_ms(),
                message: table.message().unwrap_or_default(),
            })
        }
        FrameKind::GoAway => {
            let message = root::<wire::GoAway<'_>>(body)?.message().unwrap_or_default();
            Frame::GoAway(GoAway { message })
        }
        FrameKind::GetEvent => {
            let table = root::<wire::GetEvent<'_>>(body)?;
            let event = table.event().ok_or("it names no event")?;
            let event = EventId::from_bytes(event.0).ok_or("its event id has bytes that are not zero")?;
            Frame::Query { request: table.request(), query: Query::Event { event, peek: table.peek() } }
        }
        FrameKind::CountEvents => {
            let table = root::<wire::CountEvents<'_>>(body)?;
            let query = Query::Count {
                shard: ShardId(table.shard()),
                topic: TopicId(table.topic_id()),
                subscription: SubscriptionId(table.subscription_id()),
            };
            Frame::Query { request: table.request(), query }
        }
        FrameKind::GroupOperation => {
            let table = root::<wire::GroupOperation<'_>>(body)?;
            let operation = GroupOperation {
                shard: ShardId(table.shard()),
                topic: TopicId(table.topic_id()),
                group: text(table.group()),
                act: GroupAct::from_code(table.act()).ok_or("it asks for no known act")?,
                epoch: table.epoch(),
                by_ms: table.by_ms(),
            };
            Frame::Query { request: table.request(), query: Query::Group(operation) }
        }
        FrameKind::GroupOperationReply => {
            let table = root::<wire::GroupOperationReply<'_>>(body)?;
            let operations: Items<'_, GroupEpoch> = items(table.operations())?;
            let answer = GroupAnswer {
                verdict: GroupVerdict::from_code(table.verdict()).ok_or("its verdict is none")?,
                count: table.count(),
                pending: table.pending(),
                paused: table.paused(),
                cancelled: table.cancelled(),
                operations: operations.iter().collect(),
            };
            Frame::QueryReply { request: table.request(), answer: QueryAnswer::Group(answer) }
        }
        FrameKind::CountEventsReply => {
            let table = root::<wire::CountEventsReply<'_>>(body)?;
            let ended: Items<'_, OutcomeCount> = items(table.ended())?;
            let counts = Counts {
                scheduled: table.scheduled(),
                ready: table.ready(),
                in_runs: table.in_runs(),
                queued: table.queued(),
                running: table.running(),
                backoff: table.backoff(),
                ended: ended.iter().collect(),
            };
            Frame::QueryReply { request: table.request(), answer: QueryAnswer::Count(counts) }
        }
        FrameKind::CountDue => {
            let table = root::<wire::CountDue<'_>>(body)?;
            let (shard, topic) = (ShardId(table.shard()), TopicId(table.topic_id()));
            Frame::Query { request: table.request(), query: Query::Due { shard, topic } }
        }
        FrameKind::CountDueReply => {
            let table = root::<wire::CountDueReply<'_>>(body)?;
            let counts: Items<'_, DueCount> = items(table.counts())?;
            let answer = QueryAnswer::Due(counts.iter().collect());
            Frame::QueryReply { request: table.request(), answer }
        }
        FrameKind::ListEvents => {
            let table = root::<wire::ListEvents<'_>>(body)?;
            Frame::Query { request: table.request(), query: Query::List(Box::new(list_events(table)?)) }
        }
        FrameKind::ListEventsReply => {
            let table = root::<wire::ListEventsReply<'_>>(body)?;
            let events = list(table.events(), listed_event)?;
            let token = table.token().map_or(Vec::new(), |token| token.bytes().to_vec());
            let missing = table.missing().map_or(Vec::new(), |shards| shards.iter().map(ShardId).collect());
            let page = EventPage { events, token, unread: table.unread(), missing };
            let answer = QueryAnswer::List(page);
            Frame::QueryReply { request: table.request(), answer }
        }
        FrameKind::GetEventReply => {
            let table = root::<wire::GetEventReply<'_>>(body)?;
            Frame::QueryReply { request: table.request(), answer: QueryAnswer::Event(event_detail(table)?) }
        }
    })
}

fn event_name(table: wire::EventName<'_>) -> EventName<'_> {
    EventName {
        ordering_key: table.ordering_key().map_or(&[], |key| key.bytes()),
        source: table.source().unwrap_or_default(),
        id: table.id().unwrap_or_default(),
    }
}

fn root<'a, T: Follow<'a> + Verifiable + 'a>(body: &'a [u8]) -> Parsed<T::Inner> {
    flatbuffers::root_with_opts::<T>(&VERIFIER, body).map_err(|_| "its FlatBuffer does not verify")
}

/// A vector's elements; one that is absent has none.
fn items<'a, V: 'a, T: Fixed>(vector: Option<Vector<'a, V>>) -> Parsed<Items<'a, T>> {
    let bytes = vector.map_or(&[][..], |vector| vector.bytes());
    Items::from_wire(bytes).ok_or("an element has padding that is not zero, or an unknown code")
}

/// Events lie 8-aligned in their frame, so that a reader who wants their words need not copy them.
fn events<'a>(body: &[u8], vector: Option<Vector<'a, u8>>, count: u32) -> Parsed<Events<'a>> {
    let bytes = vector.filter(|_| count > 0).ok_or("it holds no event")?.bytes();
    let at = bytes.as_ptr().addr() - body.as_ptr().addr();
    if !at.is_multiple_of(8) {
        return Err("its events do not start at a multiple of 8");
    }
    Events::new(bytes, count).ok_or("its events are not as many as it says, or do not fill their vector")
}

fn publish_batch(body: &[u8]) -> Parsed<PublishBatch<'_>> {
    let table = root::<wire::PublishBatch<'_>>(body)?;
    let first_item = table.first_item();
    if first_item.checked_add(u64::from(table.count())).is_none() {
        return Err("its items have numbers beyond 2^64");
    }
    let events = events(body, table.events(), table.count())?;
    Ok(PublishBatch { topic: TopicId(table.topic_id()), first_item, events })
}

fn push_batch(body: &[u8]) -> Parsed<PushBatch<'_>> {
    let table = root::<wire::PushBatch<'_>>(body)?;
    let items: Items<'_, _> = items(table.items())?;
    let events = events(body, table.events(), items.len() as u32)?;
    let rescheduled: Items<'_, PushDue> = self::items(table.rescheduled())?;
    let mut before = None;
    for PushDue { item, .. } in rescheduled.iter() {
        if Some(item) <= before.replace(item) || item as usize >= items.len() {
            return Err("its rescheduled items do not ascend, or are none of its items");
        }
    }
    Ok(PushBatch {
        subscription: SubscriptionId(table.subscription_id()),
        epoch: Epoch(table.epoch()),
        items,
        events,
        rescheduled,
    })
}

fn reschedule(body: &[u8]) -> Parsed<Reschedule<'_>> {
    let table = root::<wire::Reschedule<'_>>(body)?;
    let (events, versions): (Items<'_, EventId>, Items<'_, u64>) =
        (items(table.events())?, items(table.versions())?);
    if !versions.is_empty() && versions.len() != events.len() {
        return Err("it has versions, and not one for each event");
    }
    let due_ms = table.due_ms();
    let due = if table.is_delay() { Due::After(due_ms) } else { Due::At(WallMs(due_ms)) };
    Ok(Reschedule { request: table.request(), events, due, versions })
}

fn welcome(body: &[u8]) -> Parsed<Welcome<'_>> {
    let table = root::<wire::Welcome<'_>>(body)?;
    Ok(Welcome {
        version: table.version(),
        node_id: table.node_id(),
        epoch: Epoch(table.epoch()),
        shard_count: table.shard_count(),
        core_count: table.core_count(),
        shards: items(table.shards())?,
        event_size_bytes_max: table.event_size_max(),
        frame_size_bytes_max: table.frame_size_max(),
        wall: WallMs(table.wall_ms()),
    })
}

fn admin_request(table: wire::Admin<'_>) -> Parsed<AdminRequest> {
    if let Some(body) = table.body_as_create_topic() {
        return Ok(AdminRequest::CreateTopic(topic_settings(body.settings())?));
    }
    if let Some(body) = table.body_as_get_topic() {
        return Ok(AdminRequest::GetTopic { name: text(body.name()) });
    }
    if let Some(body) = table.body_as_list_topics() {
        let page = Page { after_id: body.after_id(), count_max: body.count_max() };
        return Ok(AdminRequest::ListTopics(page));
    }
    if let Some(body) = table.body_as_create_subscription() {
        return Ok(AdminRequest::CreateSubscription(subscription_settings(body.settings())?));
    }
    if let Some(body) = table.body_as_get_subscription() {
        return Ok(AdminRequest::GetSubscription { name: text(body.name()) });
    }
    if let Some(body) = table.body_as_list_subscriptions() {
        let page = Page { after_id: body.after_id(), count_max: body.count_max() };
        return Ok(AdminRequest::ListSubscriptions(page));
    }
    if table.body_as_shard_map().is_some() {
        return Ok(AdminRequest::ShardMap);
    }
    if let Some(body) = table.body_as_snapshot() {
        return Ok(AdminRequest::Snapshot { hold_ms: body.hold_ms() });
    }
    if let Some(body) = table.body_as_end_snapshot() {
        return Ok(AdminRequest::EndSnapshot { snapshot: body.snapshot() });
    }
    Err("it has no body of a known type")
}

fn admin_answer(table: wire::AdminReply<'_>) -> Parsed<AdminAnswer> {
    if let Some(body) = table.body_as_topic_info() {
        return Ok(AdminAnswer::Topic(topic_info(body)?));
    }
    if let Some(body) = table.body_as_topic_list() {
        let topics = list(body.topics(), topic_info)?;
        return Ok(AdminAnswer::Topics(TopicList { topics, more: body.more() }));
    }
    if let Some(body) = table.body_as_subscription_info() {
        return Ok(AdminAnswer::Subscription(subscription_info(body)?));
    }
    if let Some(body) = table.body_as_subscription_list() {
        let subscriptions = list(body.subscriptions(), subscription_info)?;
        return Ok(AdminAnswer::Subscriptions(SubscriptionList { subscriptions, more: body.more() }));
    }
    if let Some(body) = table.body_as_shard_map_info() {
        let shards: Items<'_, ShardCore> = items(body.shards())?;
        return Ok(AdminAnswer::ShardMap(ShardMapInfo {
            epoch: Epoch(body.epoch()),
            shard_count: body.shard_count(),
            core_count: body.core_count(),
            shards: shards.iter().collect(),
        }));
    }
    if let Some(body) = table.body_as_snapshot_held() {
        let shards = list(body.shards(), shard_cut)?;
        let (snapshot, hold_ms) = (body.snapshot(), body.hold_ms());
        return Ok(AdminAnswer::SnapshotHeld(SnapshotInfo { snapshot, hold_ms, shards }));
    }
    if table.body_as_snapshot_ended().is_some() {
        return Ok(AdminAnswer::SnapshotEnded);
    }
    Err("it has no body of a known type")
}

fn list_events(table: wire::ListEvents<'_>) -> Parsed<ListEvents> {
    let state = match table.state() {
        0 => None,
        code => Some(TaskState::from_code(code).ok_or("it asks for a state that events do not have")?),
    };
    let bytes = |vector: Option<Vector<'_, u8>>| vector.map_or(Vec::new(), |vector| vector.bytes().to_vec());
    let until = match table.until_ms() {
        0 => u64::MAX,
        until_ms => until_ms,
    };
    Ok(ListEvents {
        topic: TopicId(table.topic_id()),
        state,
        ordering_key: bytes(table.ordering_key()),
        from: WallMs(table.from_ms()),
        until: WallMs(until),
        count_max: table.count_max(),
        token: bytes(table.token()),
        ..ListEvents::default()
    })
}

fn listed_event(table: wire::ListedEvent<'_>) -> Parsed<ListedEvent> {
    let info = table.info().ok_or("it tells nothing of an event")?;
    Ok(ListedEvent {
        info: EventInfo::from_wire(&info.0)
            .ok_or("an element has padding that is not zero, or an unknown code")?,
        id: text(table.id()),
        ordering_key: table.ordering_key().map_or(Vec::new(), |key| key.bytes().to_vec()),
        attempt: table.attempt(),
    })
}

fn event_detail(table: wire::GetEventReply<'_>) -> Parsed<Option<Box<EventDetail>>> {
    let events: Items<'_, EventInfo> = items(table.event())?;
    let Some(info) = events.iter().next() else { return Ok(None) };
    if events.len() > 1 {
        return Err("it tells of more than one event");
    }
    let tasks: Items<'_, TaskInfo> = items(table.tasks())?;
    let bytes = table.bytes().map(|bytes| bytes.bytes().to_vec());
    Ok(Some(Box::new(EventDetail {
        info,
        tasks: tasks.iter().collect(),
        task_count: table.task_count(),
        bytes,
        version: table.version(),
    })))
}

fn shard_cut(table: wire::ShardCut<'_>) -> Parsed<ShardCut> {
    let (low, high) = (table.first_prev_checksum_low(), table.first_prev_checksum_high());
    Ok(ShardCut {
        shard: ShardId(table.shard()),
        epoch: Epoch(table.epoch()),
        first_segment_id: table.first_segment_id(),
        first_block_seq: table.first_block_seq(),
        first_prev_checksum: u128::from(high) << 64 | u128::from(low),
        through_block_seq: table.through_block_seq(),
        end_segment_id: table.end_segment_id(),
        end_offset: table.end_offset(),
    })
}

fn list<'a, E: Follow<'a, Inner = E> + 'a, T>(
    entries: Option<Vector<'a, ForwardsUOffset<E>>>,
    read: impl Fn(E) -> Parsed<T>,
) -> Parsed<Vec<T>> {
    entries.map_or_else(|| Ok(Vec::new()), |entries| entries.iter().map(read).collect())
}

fn topic_info(table: wire::TopicInfo<'_>) -> Parsed<TopicInfo> {
    Ok(TopicInfo {
        topic: TopicId(table.topic_id()),
        version: table.version(),
        settings: topic_settings(table.settings())?,
    })
}

fn subscription_info(table: wire::SubscriptionInfo<'_>) -> Parsed<SubscriptionInfo> {
    Ok(SubscriptionInfo {
        subscription: SubscriptionId(table.subscription_id()),
        topic: TopicId(table.topic_id()),
        version: table.version(),
        settings: subscription_settings(table.settings())?,
    })
}

fn topic_settings(table: Option<wire::TopicSettings<'_>>) -> Parsed<TopicSettings> {
    let table = table.ok_or("it has no settings")?;
    Ok(TopicSettings {
        name: text(table.name()),
        default_source: text(table.default_source()),
        default_type: text(table.default_type()),
        default_content_type: text(table.default_content_type()),
        dedup_window_ms: table.dedup_window_ms(),
    })
}

fn subscription_settings(table: Option<wire::SubscriptionSettings<'_>>) -> Parsed<SubscriptionSettings> {
    let table = table.ok_or("it has no settings")?;
    Ok(SubscriptionSettings {
        name: text(table.name()),
        topic: text(table.topic()),
        max_concurrent_dispatches: table.max_concurrent_dispatches(),
        attempt_deadline_ms: table.attempt_deadline_ms(),
        max_attempts: table.max_attempts(),
        min_backoff_ms: table.min_backoff_ms(),
        max_backoff_ms: table.max_backoff_ms(),
        max_doublings: table.max_doublings(),
        jitter_permille: table.jitter_permille(),
        misfire: Misfire::from_code(table.misfire(), table.misfire_ms())
            .ok_or("its misfire policy is none")?,
    })
}

fn text(text: Option<&str>) -> String {
    text.unwrap_or_default().to_owned()
}
