//! Publishing against a small node.

mod support;

use std::sync::atomic::Ordering;

use escapement_client::{Client, ClientError, PublisherOptions, Trust};
use escapement_protocol::event::{Due, EventSpec};
use escapement_protocol::{ErrorCode, TopicId, TopicSettings, WallMs};
use support::FakeNode;

const TOPIC: TopicId = TopicId(1);

#[tokio::test]
async fn a_single_event_is_acknowledged_under_the_id_that_the_node_gave_it() {
    let node = FakeNode::start();
    let publisher = node.client().await.publisher(PublisherOptions::default()).await.expect("a publisher");
    let at = WallMs(support::wall().0 + 60_000);
    let receipt = publisher.publish(TOPIC, &EventSpec::new(Due::At(at), "a", b"x")).await.expect("accepted");
    assert_eq!((receipt.event_id.sequence.0, receipt.event_id.schedule_time_ms), (1, at.0));
    let receipt =
        publisher.publish(TOPIC, &EventSpec::new(Due::After(500), "b", b"x")).await.expect("accepted");
    assert_eq!(receipt.event_id.schedule_time_ms, receipt.accepted.0 + 500, "a delay counts from acceptance");
}

#[tokio::test]
async fn refused_events_are_told_apart_from_accepted_ones_whatever_the_runs() {
    for runs_of in [0, 1, 2, 5] {
        let node = FakeNode::start();
        node.script.refuse_every.store(3, Ordering::Relaxed);
        node.script.runs_of.store(runs_of, Ordering::Relaxed);
        let publisher =
            node.client().await.publisher(PublisherOptions::default()).await.expect("a publisher");
        let names: Vec<String> = (0..20).map(|n| format!("e{n}")).collect();
        let events: Vec<_> = names.iter().map(|id| EventSpec::new(Due::After(0), id, b"")).collect();
        let answers = publisher.publish_batch(TOPIC, &events).await.expect("valid events");
        let mut sequence = 0;
        for (n, answer) in answers.iter().enumerate() {
            match answer {
                Err(error) => {
                    assert_eq!(n % 3, 2, "{error}");
                    assert_eq!(error.code(), Some(ErrorCode::ResourceExhausted));
                    assert!(error.is_retryable());
                }
                Ok(receipt) => {
                    sequence += 1;
                    assert_eq!(receipt.event_id.sequence.0, sequence, "runs of {runs_of}, event {n}");
                }
            }
        }
    }
}

#[tokio::test]
async fn batches_give_one_receipt_each_with_their_tokens() {
    let node = FakeNode::start();
    let publisher = node.client().await.publisher(PublisherOptions::default()).await.expect("a publisher");
    let mut receipts = publisher.take_receipts().expect("nobody took them");
    assert!(publisher.take_receipts().is_none());
    for token in 0..50 {
        let mut batch = publisher.open(0, TOPIC).expect("room");
        for n in 0..=token {
            batch.push_spec(&EventSpec::new(Due::After(1), &format!("{token}-{n}"), b"data")).expect("valid");
        }
        assert_eq!(u64::from(batch.count()), token + 1);
        batch.seal(token);
    }
    let mut sequence = 1;
    for expected in 0..50 {
        let (token, receipt) = receipts.recv().await.expect("a receipt for each batch");
        let receipt = receipt.expect("accepted");
        assert_eq!(token, expected);
        assert_eq!((receipt.runs.len(), receipt.refusals.len(), receipt.resent), (1, 0, false));
        assert_eq!(u64::from(receipt.runs[0].count), expected + 1);
        assert_eq!(receipt.runs[0].first_sequence.0, sequence);
        sequence += expected + 1;
    }
    publisher.flush().await;
    assert_eq!(publisher.stats().in_flight, 0);
}

#[tokio::test]
async fn what_was_not_acknowledged_is_sent_again_in_order_after_a_lost_connection() {
    let node = FakeNode::start();
    node.script.cut_after_batches.store(3, Ordering::Relaxed);
    let publisher = node.client().await.publisher(PublisherOptions::default()).await.expect("a publisher");
    let mut receipts = publisher.take_receipts().expect("nobody took them");
    for token in 0..10 {
        let mut batch = publisher.open(0, TOPIC).expect("room");
        batch.push_spec(&EventSpec::new(Due::After(1), &format!("{token}"), b"")).expect("valid");
        batch.seal(token);
    }
    let mut resent = 0;
    for expected in 0..10 {
        let (token, receipt) = receipts.recv().await.expect("a receipt for each batch");
        assert_eq!(token, expected);
        resent += u64::from(receipt.expect("accepted in the end").resent);
    }
    assert!(resent > 0, "the cut batch was sent twice");
    assert_eq!(publisher.stats().resent, resent);
    assert_eq!(publisher.stats().streams, 2);
    // On the second stream every event comes once and in order, up to the last.
    let ids = node.script.ids.lock().expect("sane").clone();
    let again = ids.iter().rposition(|id| ids.iter().filter(|other| *other == id).count() == 2);
    let (first, second) = ids.split_at(3.min(ids.len()));
    assert!(again.is_some() && first == ["0", "1", "2"], "{ids:?}");
    let numbers: Vec<u64> = second.iter().map(|id| id.parse().expect("a number")).collect();
    let whole: Vec<u64> = (numbers[0]..10).collect();
    assert_eq!(numbers, whole, "in order and without a gap");
}

#[tokio::test]
async fn a_full_publisher_says_so_and_has_room_again_when_answers_come() {
    let node = FakeNode::start();
    let options = PublisherOptions { in_flight_events_max: 2, ..PublisherOptions::default() };
    let publisher = node.client().await.publisher(options).await.expect("a publisher");
    let mut batch = publisher.open(0, TOPIC).expect("room");
    for id in ["a", "b"] {
        batch.push_spec(&EventSpec::new(Due::After(1), id, b"")).expect("valid");
    }
    batch.seal(0);
    assert!(matches!(publisher.open(0, TOPIC), Err(ClientError::Full)));
    publisher.ready(0).await.expect("room after the answer");
    assert!(publisher.open(0, TOPIC).is_ok());
}

#[tokio::test]
async fn another_certificate_than_the_pinned_one_is_refused_at_once() {
    let node = FakeNode::start();
    let mut options = node.options();
    options.trust = Trust::Pin([7; 32]);
    let error = Client::connect(options).await.expect_err("not the pinned certificate");
    assert!(matches!(error, ClientError::Connect { retryable: false, .. }), "{error}");
}

#[tokio::test]
async fn requests_are_answered_or_refused_by_their_own_error() {
    let node = FakeNode::start();
    let client = node.client().await;
    assert_eq!(client.topic("orders").await.expect("it exists").topic, TOPIC);
    let error = client.topic("nothing").await.expect_err("it does not");
    assert_eq!(error.code(), Some(ErrorCode::UnknownTopic));
    let error = client.create_topic(TopicSettings::default()).await.expect_err("a topic needs a name");
    assert_eq!(error.code(), Some(ErrorCode::InvalidName));
}

#[tokio::test]
async fn a_node_that_drains_is_greeted_and_still_answers() {
    let node = FakeNode::start();
    node.script.draining.store(true, Ordering::Relaxed);
    let client = node.client().await;
    assert_eq!(client.topic("orders").await.expect("it exists").topic, TOPIC);
    let publisher = client.publisher(PublisherOptions::default()).await.expect("a publisher");
    publisher.publish(TOPIC, &EventSpec::new(Due::After(0), "a", b"")).await.expect("accepted");
}
