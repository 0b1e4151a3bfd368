//! One frame of every kind, and one of every body: what golden files hold and tests take apart.

use std::sync::LazyLock;

use escapement_protocol::event::{Due, EventSpec};
use escapement_protocol::frame::*;
use escapement_protocol::{
    AttemptResult, Epoch, ErrorCode, EventId, Sequence, ShardId, SubscriptionId, SubscriptionSettings, Tag,
    TopicId, TopicSettings, WallMs, settings::Misfire,
};

/// Three events of different shapes, back to back.
static EVENTS: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = Vec::new();
    let specs = [
        EventSpec::new(Due::At(WallMs(1_800_000_000_123)), "order-1", b"hello"),
        EventSpec {
            ordering_key: b"customer-7",
            ..EventSpec::new(Due::After(1_500), "order-2", &[0xab; 128])
        },
        EventSpec {
            source: "/orders",
            type_: "order.created",
            extensions: &[("traceparent", "00-ab")],
            ..EventSpec::new(Due::After(0), "order-3", b"")
        },
    ];
    for spec in specs {
        spec.encode(&mut bytes).expect("a valid event");
    }
    bytes
});

const RUNS: &[AckRun] = &[
    AckRun { first_sequence: Sequence(1), accepted: WallMs(1_800_000_000_000), count: 2, shard: ShardId(0) },
    AckRun { first_sequence: Sequence(77), accepted: WallMs(1_800_000_000_001), count: 1, shard: ShardId(1) },
];
const EXCEPTIONS: &[AckException] = &[
    AckException { item: 11, retry_after_ms: 250, code: ErrorCode::ResourceExhausted as u16 },
    AckException { item: 13, retry_after_ms: 0, code: ErrorCode::MalformedEvent as u16 },
];
const PUSHED: &[PushItem] = &[
    PushItem {
        tag: Tag(0x0102_0304_0506_0708),
        sequence: Sequence(41),
        schedule_time: WallMs(1_800_000_000_123),
        deadline_ms: 30_000,
        topic: TopicId(3),
        shard: ShardId(5),
        attempt: 1,
    },
    PushItem {
        tag: Tag(2),
        sequence: Sequence(42),
        schedule_time: WallMs(1_800_000_000_124),
        deadline_ms: 100,
        topic: TopicId(3),
        shard: ShardId(5),
        attempt: 65_535,
    },
    PushItem {
        tag: Tag(3),
        sequence: Sequence((1 << 48) - 1),
        schedule_time: WallMs(0),
        deadline_ms: 1,
        topic: TopicId(u32::MAX),
        shard: ShardId(255),
        attempt: 2,
    },
];
const RESULTS: &[ResultItem] = &[
    ResultItem { tag: Tag(0x0102_0304_0506_0708), retry_after_ms: 0, result: AttemptResult::Success },
    ResultItem { tag: Tag(2), retry_after_ms: 5_000, result: AttemptResult::RetryableFailure },
    ResultItem { tag: Tag(3), retry_after_ms: 0, result: AttemptResult::PermanentFailure },
];
const SHARDS: &[ShardCore] =
    &[ShardCore { shard: ShardId(0), core: 0 }, ShardCore { shard: ShardId(1), core: 1 }];
const IDS: &[EventId] = &[
    EventId { shard: ShardId(1), sequence: Sequence(77), schedule_time_ms: 1_800_000_000_123 },
    EventId { shard: ShardId(0), sequence: Sequence(1), schedule_time_ms: 1_800_000_001_500 },
];
const DUES: &[PushDue] = &[PushDue { due: WallMs(1_800_000_009_000), item: 1 }];
const RESCHEDULED: &[RescheduleVerdict] = &[
    RescheduleVerdict::Rescheduled { due: WallMs(1_800_000_009_000), version: 3 },
    RescheduleVerdict::TooLate { state: TaskState::Ready, attempt: 2 },
    RescheduleVerdict::NotFound,
    RescheduleVerdict::VersionMismatch { version: 7 },
];
const VERDICTS: &[CancelVerdict] = &[
    CancelVerdict::Cancelled,
    CancelVerdict::TooLate { state: TaskState::Running, attempt: 2 },
    CancelVerdict::NotFound,
];

fn topic_info() -> TopicInfo {
    let settings = TopicSettings {
        name: "orders".into(),
        default_source: "/orders".into(),
        default_type: "order.created".into(),
        default_content_type: "application/json".into(),
        dedup_window_ms: 86_400_000,
    };
    TopicInfo { topic: TopicId(3), version: 1, settings }
}

fn subscription_info() -> SubscriptionInfo {
    let settings = SubscriptionSettings {
        name: "billing".into(),
        topic: "orders".into(),
        max_concurrent_dispatches: 100,
        attempt_deadline_ms: 5_000,
        max_attempts: 4,
        min_backoff_ms: 10,
        max_backoff_ms: 20_000,
        max_doublings: 3,
        jitter_permille: 0,
        misfire: Misfire::SkipOlderThan(3_600_000),
    };
    SubscriptionInfo { subscription: SubscriptionId(9), topic: TopicId(3), version: 2, settings }
}

fn snapshot_info() -> SnapshotInfo {
    let cut = ShardCut {
        shard: ShardId(1),
        epoch: Epoch(4),
        first_segment_id: 9,
        first_block_seq: 1_000,
        first_prev_checksum: 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100,
        through_block_seq: 1_234,
        end_segment_id: 12,
        end_offset: 8_192,
    };
    SnapshotInfo { snapshot: 5, hold_ms: 600_000, shards: vec![cut] }
}

fn data_frames() -> Vec<(&'static str, Frame<'static>)> {
    let events = Events::new(&EVENTS, 3).expect("three events");
    vec![
        ("03-publish-batch", Frame::PublishBatch(PublishBatch { topic: TopicId(3), first_item: 10, events })),
        (
            "04-publish-ack",
            Frame::PublishAck(PublishAck {
                through_item: 15,
                durability: Durability::LOCAL_DISK,
                runs: RUNS.into(),
                exceptions: EXCEPTIONS.into(),
                exhausted: "",
                duplicates: Items::default(),
            }),
        ),
        (
            "07-push-batch",
            Frame::PushBatch(PushBatch {
                subscription: SubscriptionId(9),
                epoch: Epoch(4),
                items: PUSHED.into(),
                events,
                rescheduled: Items::default(),
            }),
        ),
        (
            "07-push-batch-rescheduled",
            Frame::PushBatch(PushBatch {
                subscription: SubscriptionId(9),
                epoch: Epoch(4),
                items: PUSHED.into(),
                events,
                rescheduled: DUES.into(),
            }),
        ),
        ("08-result-batch", Frame::ResultBatch(ResultBatch { results: RESULTS.into() })),
    ]
}

fn admin_frames() -> Vec<(&'static str, Frame<'static>)> {
    let page = Page { after_id: 3, count_max: 100 };
    let topic = topic_info();
    let subscription = subscription_info();
    let shard_map = ShardMapInfo { epoch: Epoch(4), shard_count: 2, core_count: 2, shards: SHARDS.to_vec() };
    let requests = [
        ("14-admin-create-topic", AdminRequest::CreateTopic(topic.settings.clone())),
        ("14-admin-get-topic", AdminRequest::GetTopic { name: "orders".into() }),
        ("14-admin-list-topics", AdminRequest::ListTopics(page)),
        ("14-admin-create-subscription", AdminRequest::CreateSubscription(subscription.settings.clone())),
        ("14-admin-get-subscription", AdminRequest::GetSubscription { name: "billing".into() }),
        ("14-admin-list-subscriptions", AdminRequest::ListSubscriptions(page)),
        ("14-admin-shard-map", AdminRequest::ShardMap),
        ("14-admin-snapshot", AdminRequest::Snapshot { hold_ms: 600_000 }),
        ("14-admin-end-snapshot", AdminRequest::EndSnapshot { snapshot: 5 }),
    ];
    let answers = [
        ("15-admin-reply-topic", AdminAnswer::Topic(topic.clone())),
        (
            "15-admin-reply-topics",
            AdminAnswer::Topics(TopicList { topics: vec![topic.clone(), topic], more: true }),
        ),
        ("15-admin-reply-subscription", AdminAnswer::Subscription(subscription.clone())),
        (
            "15-admin-reply-subscriptions",
            AdminAnswer::Subscriptions(SubscriptionList { subscriptions: vec![subscription], more: false }),
        ),
        ("15-admin-reply-shard-map", AdminAnswer::ShardMap(shard_map)),
        ("15-admin-reply-snapshot-held", AdminAnswer::SnapshotHeld(snapshot_info())),
        ("15-admin-reply-snapshot-ended", AdminAnswer::SnapshotEnded),
    ];
    let requests = requests.into_iter().map(|(name, body)| (name, Frame::Admin { request: 7, body }));
    let answers = answers.into_iter().map(|(name, body)| (name, Frame::AdminReply { request: 7, body }));
    requests.chain(answers).collect()
}

fn query_frames() -> Vec<(&'static str, Frame<'static>)> {
    let info = EventInfo {
        id: IDS[0],
        due: WallMs(1_800_000_000_200),
        topic: TopicId(3),
        size_bytes: 48,
        state: TaskState::Backoff,
        place: EventPlace::Memory,
    };
    let tasks = vec![
        TaskInfo {
            subscription: SubscriptionId(9),
            attempt: 3,
            excused: 1,
            next_due: WallMs(1_800_000_060_000),
            done: false,
        },
        TaskInfo {
            subscription: SubscriptionId(10),
            attempt: 0,
            excused: 0,
            next_due: WallMs(0),
            done: true,
        },
    ];
    let bytes = Events::new(&EVENTS, 3).expect("three events").iter().next().map(<[u8]>::to_vec);
    let detail = EventDetail { info, tasks, task_count: 2, bytes, version: 0 };
    let moved = EventDetail { info, tasks: Vec::new(), task_count: 0, bytes: None, version: 3 };
    let count = Query::Count { shard: ShardId(1), topic: TopicId(3), subscription: SubscriptionId(9) };
    let counts = Counts {
        scheduled: 100_000_000,
        ready: 7,
        in_runs: 99_000_000,
        queued: 4,
        running: 3,
        backoff: 2,
        ended: vec![OutcomeCount { outcome: 1, count: 1_234 }, OutcomeCount { outcome: 3, count: 5 }],
    };
    let due = Query::Due { shard: ShardId(1), topic: TopicId(3) };
    let due_counts = DUE_WITHIN_MS.map(|within_ms| DueCount {
        within_ms,
        count: 7 + within_ms / 1_000,
        exact: within_ms < 60_000,
    });
    let first = ListEvents { topic: TopicId(3), ..ListEvents::default() };
    let token = PageToken {
        start: 0x0102_0304,
        bound: Sequence(1_000),
        block: 17,
        index: 3,
        run: 5,
        run_block: 2,
        entry: 9,
        ..PageToken::first(ShardId(1), 0x0506_0708_090a_0b0c)
    };
    let list = ListEvents {
        state: Some(TaskState::Scheduled),
        ordering_key: b"order-7".to_vec(),
        from: WallMs(1_800_000_000_000),
        until: WallMs(1_800_000_060_000),
        count_max: 100,
        token: token.to_bytes(),
        ..first
    };
    let listed = ListedEvent { info, id: "a".into(), ordering_key: b"order-7".to_vec(), attempt: 2 };
    let page = EventPage { events: vec![listed], token: token.to_bytes(), unread: 0, missing: Vec::new() };
    let unread = EventPage { unread: 23, ..EventPage::default() };
    let missing = EventPage { token: token.to_bytes(), missing: vec![ShardId(1)], ..EventPage::default() };
    let operation = GroupOperation {
        shard: ShardId(1),
        topic: TopicId(3),
        group: "account-7".to_owned(),
        act: GroupAct::Postpone,
        epoch: 1_800_000_000_123,
        by_ms: 600_000,
    };
    let group = GroupAnswer {
        verdict: GroupVerdict::Postponed,
        count: 100_000_000,
        pending: 100_000_007,
        paused: 7,
        cancelled: 5,
        operations: vec![
            GroupEpoch { epoch: 3, taken: 9, left: 5, by_ms: 0, act: GroupAct::Cancel, is_undone: false },
            GroupEpoch { epoch: 4, taken: 8, left: 0, by_ms: 0, act: GroupAct::Pause, is_undone: true },
            GroupEpoch {
                epoch: 1_800_000_000_123,
                taken: 100_000_000,
                left: 100_000_000,
                by_ms: 600_000,
                act: GroupAct::Postpone,
                is_undone: false,
            },
        ],
    };
    let answered = |answer| Frame::QueryReply { request: 7, answer };
    vec![
        ("20-get-event", Frame::Query { request: 7, query: Query::Event { event: IDS[0], peek: true } }),
        ("21-get-event-reply", answered(QueryAnswer::Event(Some(Box::new(detail))))),
        ("21-get-event-reply-rescheduled", answered(QueryAnswer::Event(Some(Box::new(moved))))),
        ("21-get-event-reply-not-found", answered(QueryAnswer::Event(None))),
        ("24-count-events", Frame::Query { request: 7, query: count }),
        ("27-list-events", Frame::Query { request: 7, query: Query::List(Box::new(list)) }),
        ("27-list-events-first", Frame::Query { request: 8, query: Query::List(Box::new(first)) }),
        ("28-list-events-reply", answered(QueryAnswer::List(page))),
        ("28-list-events-reply-last", answered(QueryAnswer::List(EventPage::default()))),
        ("28-list-events-reply-unread", answered(QueryAnswer::List(unread))),
        ("28-list-events-reply-missing", answered(QueryAnswer::List(missing))),
        ("29-count-due", Frame::Query { request: 7, query: due }),
        ("30-count-due-reply", answered(QueryAnswer::Due(due_counts.to_vec()))),
        ("25-count-events-reply", answered(QueryAnswer::Count(counts))),
        ("32-group-operation", Frame::Query { request: 7, query: Query::Group(operation) }),
        ("33-group-operation-reply", answered(QueryAnswer::Group(group))),
    ]
}

/// Each frame with the name of its golden file.
pub(crate) fn frames() -> Vec<(&'static str, Frame<'static>)> {
    let mut frames = vec![
        ("01-hello", Frame::Hello(Hello { version: 1, client: "escapement-rust/0.1.0" })),
        (
            "02-welcome",
            Frame::Welcome(Welcome {
                version: 1,
                node_id: 0x0123_4567_89ab_cdef,
                epoch: Epoch(4),
                shard_count: 2,
                core_count: 2,
                shards: SHARDS.into(),
                event_size_bytes_max: 262_144,
                frame_size_bytes_max: 1_048_576,
                wall: WallMs(1_800_000_000_000),
            }),
        ),
        (
            "05-subscribe",
            Frame::Subscribe(Subscribe {
                subscription: "billing",
                credit: Credit { tasks: 1_024, bytes: 1_048_576 },
                host: 0x4242,
                running: [Tag(2), Tag(3)].as_slice().into(),
            }),
        ),
        (
            "06-subscribed",
            Frame::Subscribed(Subscribed {
                subscription: SubscriptionId(9),
                session_id: 12,
                epoch: Epoch(4),
            }),
        ),
        ("09-credit", Frame::Credit(Credit { tasks: 2_048, bytes: 4_194_304 })),
        ("10-detach", Frame::Detach),
        ("11-detached", Frame::Detached),
        ("12-cancel", Frame::Cancel(Cancel { request: 6, events: IDS.into() })),
        (
            "26-cancel-by-name",
            Frame::CancelByName(CancelByName {
                request: 7,
                topic: TopicId(3),
                names: vec![
                    EventName { ordering_key: b"order-7", source: "/orders", id: "a" },
                    EventName { id: "b", ..EventName::default() },
                ],
            }),
        ),
        ("13-cancel-reply", Frame::CancelReply(CancelReply { request: 6, verdicts: VERDICTS.into() })),
        (
            "18-reschedule-at",
            Frame::Reschedule(Reschedule {
                request: 8,
                events: IDS.into(),
                due: Due::At(WallMs(1_800_000_009_000)),
                versions: [0, 3].as_slice().into(),
            }),
        ),
        (
            "18-reschedule-after",
            Frame::Reschedule(Reschedule {
                request: 9,
                events: IDS.into(),
                due: Due::After(250),
                versions: Items::default(),
            }),
        ),
        (
            "19-reschedule-reply",
            Frame::RescheduleReply(RescheduleReply { request: 8, verdicts: RESCHEDULED.into() }),
        ),
        (
            "16-error",
            Frame::Error(ErrorFrame {
                request: 7,
                code: ErrorCode::UnknownTopic as u16,
                retry_after_ms: 0,
                message: "no topic is called \"orders\": create it first",
            }),
        ),
        ("17-go-away", Frame::GoAway(GoAway { message: "the node is draining" })),
    ];
    frames.extend(query_frames());
    frames.extend(data_frames());
    frames.extend(admin_frames());
    frames.sort_by_key(|(name, _)| *name);
    frames
}

/// The frame's bytes, prefix included.
pub(crate) fn encoded(frame: &Frame<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    FrameWriter::new().write(frame, &mut out).expect("a sample fits a frame");
    out
}
