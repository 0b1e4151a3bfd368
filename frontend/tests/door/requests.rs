//! Requests that are answered one by one: cancellations, administration, questions, snapshots.

use super::*;

fn cancel(request: u64, events: &[EventId]) -> Frame<'_> {
    Frame::Cancel(Cancel { request, events: Items::from(events) })
}

fn id(n: u64) -> EventId {
    EventId { shard: ShardId((n % 2) as u16), sequence: Sequence(n), schedule_time_ms: n }
}

#[test]
fn verdicts_come_in_the_order_of_the_request_whatever_the_order_of_answers() {
    let mut peer = Peer::new(2);
    let foreign = EventId { shard: ShardId(200), ..id(9) };
    let events = [id(1), foreign, id(2), id(3)];
    assert_eq!(
        peer.send(0, &Frame::Cancel(Cancel { request: 8, events: Items::from(events.as_slice()) })),
        Ok(())
    );
    let tickets: Vec<_> = std::iter::from_fn(|| peer.backend.asked.pop_front())
        .map(|asked| match asked {
            Asked::Cancel { ticket, event } => (ticket, event),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(tickets.iter().map(|(_, event)| *event).collect::<Vec<_>>(), [id(1), id(2), id(3)]);
    let late = CancelVerdict::TooLate { state: TaskState::Ready, attempt: 2 };
    peer.door.cancelled(tickets[2].0, CancelVerdict::Cancelled);
    peer.door.cancelled(tickets[0].0, late);
    assert_eq!(peer.written(), []);
    peer.door.cancelled(tickets[1].0, CancelVerdict::NotFound);
    let verdicts = [late, CancelVerdict::NotFound, CancelVerdict::NotFound, CancelVerdict::Cancelled];
    let reply = CancelReply { request: 8, verdicts: Items::from(verdicts.as_slice()) };
    assert_eq!(peer.frames(), [format!("{:?}", Frame::CancelReply(reply))]);
}

#[test]
fn a_cancellation_sent_twice_breaks_the_protocol_and_its_late_answers_harm_nobody() {
    let mut peer = Peer::new(2);
    let many: Vec<_> = (0..100).map(id).collect();
    assert_eq!(
        peer.send(0, &Frame::Cancel(Cancel { request: 8, events: Items::from(many.as_slice()) })),
        Ok(())
    );
    let again = Frame::Cancel(Cancel { request: 8, events: Items::from(&many[..1]) });
    assert_eq!(peer.violates(&again), ErrorCode::MalformedFrame);
    while let Some(Asked::Cancel { ticket, .. }) = peer.backend.asked.pop_front() {
        peer.door.cancelled(ticket, CancelVerdict::Cancelled);
    }
    assert_eq!(peer.door.waiting_count(), 0);
}

#[test]
fn a_cancellation_that_a_shard_cannot_answer_is_refused_and_not_called_unknown() {
    let mut peer = Peer::new(2);
    let events = [id(1), id(2)];
    assert_eq!(
        peer.send(0, &Frame::Cancel(Cancel { request: 8, events: Items::from(events.as_slice()) })),
        Ok(())
    );
    while let Some(Asked::Cancel { ticket, event }) = peer.backend.asked.pop_front() {
        if event == id(1) {
            peer.door.refused(ticket, &refusal(ErrorCode::Unavailable));
        } else {
            peer.door.cancelled(ticket, CancelVerdict::Cancelled);
        }
    }
    assert_eq!(peer.error(), (8, ErrorCode::Unavailable));
}

#[test]
fn a_rescheduling_is_asked_of_every_shard_and_answered_once_in_its_order() {
    let mut peer = Peer::new(2);
    let events = [id(4), EventId { shard: ShardId(9), ..id(5) }, id(7)];
    let ask = |request, due, versions: &'static [u64], events: &'static [EventId]| {
        Frame::Reschedule(Reschedule { request, events: events.into(), due, versions: versions.into() })
    };
    let events: &'static [EventId] = Vec::leak(events.to_vec());
    assert_eq!(peer.send(0, &ask(8, Due::After(250), &[1, 2, 3], events)), Ok(()));
    let due = NOW.wall.plus_ms(250);
    let mut tickets = Vec::new();
    while let Some(Asked::Reschedule { ticket, event, due: asked, expected }) = peer.backend.asked.pop_front()
    {
        assert_eq!(asked, due, "a delay counts from when it is read");
        assert_eq!(expected, Some(if event == events[0] { 1 } else { 3 }));
        tickets.push(ticket);
    }
    peer.door.rescheduled(tickets[1], RescheduleVerdict::VersionMismatch { version: 9 });
    assert!(peer.frames().is_empty(), "one is missing");
    peer.door.rescheduled(tickets[0], RescheduleVerdict::Rescheduled { due, version: 2 });
    let verdicts = [
        RescheduleVerdict::Rescheduled { due, version: 2 },
        RescheduleVerdict::NotFound,
        RescheduleVerdict::VersionMismatch { version: 9 },
    ];
    let reply = RescheduleReply { request: 8, verdicts: verdicts.as_slice().into() };
    assert_eq!(peer.frames(), [format!("{:?}", Frame::RescheduleReply(reply))]);

    // The past is the shard's business, ten years are the door's.
    assert_eq!(peer.send(0, &ask(9, Due::At(WallMs(5)), &[], &events[..1])), Ok(()));
    assert!(matches!(peer.asked(), Asked::Reschedule { due: WallMs(5), expected: None, .. }));
    for due in [Due::After(DELAY_MS_MAX + 1), Due::After(u64::MAX), Due::At(WallMs(u64::MAX))] {
        assert_eq!(peer.send(0, &ask(10, due, &[], &events[..1])), Ok(()));
        let frames = peer.frames();
        assert!(
            frames.len() == 1 && frames[0].contains("Error") && frames[0].contains("10 years"),
            "{frames:?}"
        );
    }
    assert!(peer.backend.asked.is_empty());
    assert_eq!(peer.send(0, &ask(11, Due::After(DELAY_MS_MAX), &[], &events[..1])), Ok(()));
    assert!(matches!(peer.asked(), Asked::Reschedule { .. }));
}

#[test]
fn cancellations_are_bounded_in_events_and_in_requests() {
    let mut peer = Peer::new(2);
    let many: Vec<_> = (0..4_097).map(id).collect();
    assert_eq!(peer.send(0, &cancel(1, &many)), Ok(()));
    assert_eq!(peer.error(), (1, ErrorCode::TooManyRequests));
    for request in 2..18 {
        assert_eq!(peer.send(0, &cancel(request, &many[1..])), Ok(()));
    }
    assert_eq!(peer.written(), []);
    assert_eq!(peer.send(0, &cancel(18, &many[..1])), Ok(()));
    assert_eq!(peer.error(), (18, ErrorCode::TooManyRequests));
    assert_eq!(peer.door.waiting_count(), 16 * 4_096);
}

pub(crate) fn create(name: &str) -> AdminRequest {
    AdminRequest::CreateTopic(TopicSettings { name: name.into(), ..TopicSettings::default() })
}

#[test]
fn administration_is_validated_at_the_door_and_answered_by_request() {
    let mut peer = Peer::new(2);
    assert_eq!(peer.send(0, &Frame::Admin { request: 1, body: create("-bad-") }), Ok(()));
    assert_eq!(peer.error(), (1, ErrorCode::InvalidName));
    let get = AdminRequest::GetTopic { name: "t".into() };
    assert_eq!(peer.send(0, &Frame::Admin { request: 2, body: get }), Ok(()));
    assert_eq!(peer.error(), (2, ErrorCode::UnknownTopic));
    let mut tickets = Vec::new();
    for request in [3, 4] {
        assert_eq!(peer.send(0, &Frame::Admin { request, body: create("t") }), Ok(()));
        match peer.asked() {
            Asked::Create { ticket, request } => {
                assert_eq!(request, create("t"));
                tickets.push(ticket);
            }
            other => panic!("{other:?}"),
        }
    }
    peer.door.refused(tickets[1], &refusal(ErrorCode::AlreadyExists));
    assert_eq!(peer.error(), (4, ErrorCode::AlreadyExists));
    let settings = TopicSettings { name: "t".into(), ..TopicSettings::default() };
    let body = AdminAnswer::Topic(TopicInfo { topic: TopicId(1), version: 1, settings });
    peer.door.administered(tickets[0], body.clone());
    assert_eq!(peer.frames(), [format!("{:?}", Frame::AdminReply { request: 3, body })]);
}

#[test]
fn answers_to_small_requests_cannot_fill_the_memory() {
    let mut peer = Peer::new(2);
    for request in 1..=2_000 {
        let body = AdminRequest::ListTopics(Page::default());
        assert_eq!(peer.send(0, &Frame::Admin { request, body }), Ok(()));
    }
    let size_bytes: usize = peer.written().iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(size_bytes < 2 << 20, "{size_bytes} bytes");
    for request in 1..=2_000 {
        assert_eq!(peer.send(0, &Frame::Admin { request, body: create("t") }), Ok(()));
    }
    assert_eq!(peer.door.waiting_count(), 1_024);
}

fn get(request: u64, event: EventId, peek: bool) -> Frame<'static> {
    Frame::Query { request, query: Query::Event { event, peek } }
}

#[test]
fn questions_go_to_their_shard_and_are_answered_by_request() {
    let mut peer = Peer::new(2);
    let mut tickets = Vec::new();
    for request in [1, 2, 3] {
        assert_eq!(peer.send(0, &get(request, id(request), false)), Ok(()));
        match peer.asked() {
            Asked::Query { ticket, query } => {
                assert_eq!(query, Query::Event { event: id(request), peek: false });
                tickets.push(ticket);
            }
            other => panic!("{other:?}"),
        }
    }
    let answer = || QueryAnswer::Event(None);
    peer.door.answered(tickets[1], answer());
    assert_eq!(peer.frames(), [format!("{:?}", Frame::QueryReply { request: 2, answer: answer() })]);
    peer.door.refused(tickets[0], &refusal(ErrorCode::Unavailable));
    assert_eq!(peer.error(), (1, ErrorCode::Unavailable));
    let foreign = EventId { shard: ShardId(200), ..id(9) };
    assert_eq!(peer.send(0, &get(4, foreign, true)), Ok(()));
    assert_eq!(peer.frames(), [format!("{:?}", Frame::QueryReply { request: 4, answer: answer() })]);
    assert_eq!(peer.violates(&get(0, id(1), false)), ErrorCode::MalformedFrame);
    peer.door.closed(0, &mut peer.backend);
    peer.door.answered(tickets[2], answer());
    assert_eq!(peer.door.waiting_count(), 0);
}

#[test]
fn pages_go_to_the_shard_that_the_token_or_the_key_names_and_bad_tokens_to_none() {
    let mut peer = Peer::new(4);
    let first = ListEvents { topic: TopicId(1), ..ListEvents::default() };
    let ask = |list: &ListEvents| Frame::Query { request: 5, query: Query::List(Box::new(list.clone())) };
    let shard_of = |peer: &mut Peer, list: &ListEvents| {
        assert_eq!(peer.send(0, &ask(list)), Ok(()));
        match peer.asked() {
            Asked::Query { ticket, query } => {
                peer.door.answered(ticket, QueryAnswer::List(EventPage::default()));
                peer.written();
                query.shard()
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(shard_of(&mut peer, &first), ShardId(0));
    let position = first.position(4).expect("no token");
    let third = PageToken { shard: ShardId(3), ..position };
    let list = ListEvents { token: third.to_bytes(), ..first.clone() };
    assert_eq!(shard_of(&mut peer, &list), ShardId(3));
    let keyed = ListEvents { ordering_key: b"k".to_vec(), ..first.clone() };
    let owner = keyed.position(4).expect("no token").shard;
    assert_eq!(shard_of(&mut peer, &keyed), owner);
    let beyond = PageToken { shard: ShardId(4), ..position }.to_bytes();
    for token in [vec![1], vec![0; 56], beyond] {
        assert_eq!(peer.send(0, &ask(&ListEvents { token, ..first.clone() })), Ok(()));
        assert_eq!(peer.error(), (5, ErrorCode::InvalidPageToken));
    }
    assert_eq!(peer.send(0, &ask(&ListEvents { token: third.to_bytes(), ..keyed })), Ok(()));
    assert_eq!(peer.error(), (5, ErrorCode::InvalidPageToken));
    assert_eq!(peer.door.waiting_count(), 0);
}

#[test]
fn questions_are_bounded_by_the_bytes_of_their_answers() {
    let mut peer = Peer::new(2);
    for request in 1..=2_000 {
        assert_eq!(peer.send(0, &get(request, id(1), true)), Ok(()));
    }
    let waiting = peer.door.waiting_count();
    assert!((10..=16).contains(&waiting), "{waiting} answers of up to 256 KiB are waited for");
    let Asked::Query { ticket, .. } = peer.asked() else { panic!("a question") };
    peer.written();
    peer.door.answered(ticket, QueryAnswer::Event(None));
    assert_eq!(peer.send(0, &get(3_000, id(1), true)), Ok(()));
    assert_eq!(peer.door.waiting_count(), waiting, "an answer makes room for a question");
}

#[test]
fn a_snapshot_is_asked_for_in_the_name_of_its_stream_and_not_while_draining() {
    let mut peer = Peer::new(2);
    let (begin, end) = (AdminRequest::Snapshot { hold_ms: 50 }, AdminRequest::EndSnapshot { snapshot: 9 });
    assert_eq!(peer.send(0, &Frame::Admin { request: 1, body: begin.clone() }), Ok(()));
    let Asked::Snapshot { ticket, stream: 0, hold_ms: 50 } = peer.asked() else { panic!("asked otherwise") };
    peer.door.administered(ticket, AdminAnswer::SnapshotEnded);
    assert_eq!(peer.frames().len(), 1);
    assert_eq!(peer.send(0, &Frame::Admin { request: 2, body: end }), Ok(()));
    let Asked::EndSnapshot { ticket, stream: 0, snapshot: 9 } = peer.asked() else {
        panic!("asked otherwise")
    };
    peer.door.refused(ticket, &refusal(ErrorCode::Unavailable));
    assert_eq!(peer.error(), (2, ErrorCode::Unavailable));
    peer.door.drain();
    peer.written();
    assert_eq!(peer.send(0, &Frame::Admin { request: 3, body: begin }), Ok(()));
    assert_eq!(peer.error(), (3, ErrorCode::Unavailable));
}

#[test]
fn an_operation_on_a_group_is_asked_of_its_shard_and_refused_where_it_cannot_be_one() {
    let mut peer = Peer::new(2);
    let cancel = |shard, group: &str, epoch| {
        let (shard, topic, group) = (ShardId(shard), TopicId(3), group.to_owned());
        Query::Group(GroupOperation { shard, topic, group, act: GroupAct::Cancel, epoch, by_ms: 0 })
    };
    let ask = |request, query: &Query| Frame::Query { request, query: query.clone() };
    let operation = cancel(1, "account-7", 9);
    assert_eq!(peer.send(0, &ask(8, &operation)), Ok(()));
    let Asked::Query { ticket, query } = peer.asked() else { panic!("a question") };
    assert_eq!(query, operation);
    let answer = QueryAnswer::Group(GroupAnswer {
        verdict: GroupVerdict::Cancelled,
        count: 5,
        pending: 0,
        paused: 0,
        cancelled: 5,
        operations: Vec::new(),
    });
    peer.door.answered(ticket, answer.clone());
    assert_eq!(peer.frames(), [format!("{:?}", Frame::QueryReply { request: 8, answer })]);

    let long = "g".repeat(256);
    let by = |act, by_ms| {
        let Query::Group(operation) = cancel(1, "g", 9) else { panic!("an operation") };
        Query::Group(GroupOperation { act, by_ms, ..operation })
    };
    let bad = [cancel(1, "", 9), cancel(1, &long, 9), cancel(1, "g", 0), cancel(SHARDS, "g", 9)];
    let wrongly_by =
        [by(GroupAct::Postpone, 0), by(GroupAct::Postpone, DELAY_MS_MAX + 1), by(GroupAct::Pause, 1)];
    for bad in bad.into_iter().chain(wrongly_by) {
        assert_eq!(peer.send(0, &ask(9, &bad)), Ok(()));
        assert_eq!(peer.error(), (9, ErrorCode::InvalidSettings));
    }
    assert!(peer.backend.asked.is_empty());
}
