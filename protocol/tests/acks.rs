//! Cumulative acknowledgements: every item gets exactly one answer, or the frame is refused.

use escapement_protocol::frame::{
    Accepted, AckDuplicate, AckException, AckRun, Durability, Items, PublishAck,
};
use escapement_protocol::{ErrorCode, Sequence, ShardId, WallMs};

const RUNS: [AckRun; 2] = [
    AckRun { first_sequence: Sequence(40), accepted: WallMs(1_000), count: 2, shard: ShardId(0) },
    AckRun { first_sequence: Sequence(7), accepted: WallMs(1_001), count: 1, shard: ShardId(3) },
];
const EXCEPTIONS: [AckException; 2] = [
    AckException { item: 11, retry_after_ms: 50, code: ErrorCode::ResourceExhausted as u16 },
    AckException { item: 14, retry_after_ms: 0, code: ErrorCode::MalformedEvent as u16 },
];

fn ack<'a>(through_item: u64, runs: &'a [AckRun], exceptions: &'a [AckException]) -> PublishAck<'a> {
    PublishAck {
        through_item,
        durability: Durability::LOCAL_DISK,
        runs: runs.into(),
        exceptions: exceptions.into(),
        exhausted: "",
        duplicates: Items::default(),
    }
}

#[test]
fn items_that_are_no_exception_take_the_runs_in_order() {
    let answers: Vec<_> = ack(15, &RUNS, &EXCEPTIONS)
        .items(10..20)
        .expect("consistent")
        .map(|answer| (answer.item, answer.answer))
        .collect();
    let accepted = |shard, sequence, accepted| {
        Ok(Accepted {
            shard: ShardId(shard),
            sequence: Sequence(sequence),
            accepted: WallMs(accepted),
            duplicate: None,
        })
    };
    assert_eq!(
        answers,
        [
            (10, accepted(0, 40, 1_000)),
            (11, Err(EXCEPTIONS[0])),
            (12, accepted(0, 41, 1_000)),
            (13, accepted(3, 7, 1_001)),
            (14, Err(EXCEPTIONS[1])),
        ]
    );
}

#[test]
fn an_acknowledgement_that_does_not_add_up_is_refused() {
    let empty = [AckRun { count: 0, ..RUNS[0] }];
    let endless = [AckRun { count: u32::MAX, ..RUNS[0] }];
    let twice = [EXCEPTIONS[0], EXCEPTIONS[0]];
    let backwards = [EXCEPTIONS[1], EXCEPTIONS[0]];
    for (case, ack) in [
        ("too few answers", ack(16, &RUNS, &EXCEPTIONS)),
        ("too many answers", ack(13, &RUNS, &EXCEPTIONS[..1])),
        ("an exception beyond the end", ack(14, &RUNS, &EXCEPTIONS)),
        ("an exception twice", ack(15, &RUNS, &twice)),
        ("exceptions backwards", ack(15, &RUNS, &backwards)),
        ("answers to what was never sent", ack(21, &RUNS, &EXCEPTIONS)),
        ("an end before the last one", ack(9, &[], &[])),
        ("an empty run", ack(10, &empty, &[])),
        ("an endless run", ack(15, &endless, &EXCEPTIONS)),
    ] {
        let error = ack.items(10..20).map(|_| ()).expect_err(case);
        assert_eq!(error.code(), ErrorCode::MalformedFrame, "{case}");
    }
}

#[test]
fn an_acknowledgement_of_nothing_new_is_empty() {
    assert_eq!(ack(10, &[], &[]).items(10..20).map(Iterator::count), Ok(0));
}

#[test]
fn a_duplicate_is_accepted_and_has_the_schedule_time_of_the_first() {
    let first = WallMs(7_777);
    let duplicates = [AckDuplicate { item: 12, schedule_time: first }];
    let ack = PublishAck { duplicates: duplicates.as_slice().into(), ..ack(15, &RUNS, &EXCEPTIONS) };
    let answers: Vec<_> = ack.items(10..20).expect("consistent").map(|answer| answer.answer).collect();
    let duplicate_of = |at: usize| answers[at].expect("accepted").duplicate;
    assert_eq!([duplicate_of(0), duplicate_of(2), duplicate_of(3)], [None, Some(first), None]);
    let id = answers[2].expect("accepted").event_id(WallMs(1));
    assert_eq!((id.sequence, id.schedule_time_ms), (Sequence(41), first.0));
}

#[test]
fn duplicates_that_are_no_accepted_items_are_refused() {
    let duplicate = |item| AckDuplicate { item, schedule_time: WallMs(1) };
    for wrong in [[11, 12], [12, 12], [13, 12], [9, 12], [12, 15]] {
        let duplicates = wrong.map(duplicate);
        let ack = PublishAck { duplicates: duplicates.as_slice().into(), ..ack(15, &RUNS, &EXCEPTIONS) };
        assert!(ack.items(10..20).is_err(), "{wrong:?}");
    }
}
