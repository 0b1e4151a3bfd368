//! Subscribing against a small node.

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use escapement_client::{PublisherOptions, SessionChange, SubscriberOptions};
use escapement_protocol::event::{Due, EventSpec};
use escapement_protocol::{AttemptResult, ErrorCode, TopicId};
use support::FakeNode;
use tokio::sync::Notify;

async fn publish(node: &FakeNode, count: u32) {
    let publisher = node.client().await.publisher(PublisherOptions::default()).await.expect("a publisher");
    let names: Vec<String> = (0..count).map(|n| n.to_string()).collect();
    let events: Vec<_> = names.iter().map(|id| EventSpec::new(Due::After(0), id, id.as_bytes())).collect();
    let answers = publisher.publish_batch(TopicId(1), &events).await.expect("valid events");
    assert!(answers.iter().all(Result::is_ok));
}

async fn results(node: &FakeNode, count: usize) -> Vec<(u64, AttemptResult)> {
    loop {
        let came = node.script.result_came.notified();
        {
            let results = node.script.results.lock().expect("sane");
            if results.len() >= count {
                return results.clone();
            }
        }
        came.await;
    }
}

#[tokio::test]
async fn every_pushed_event_is_handed_over_once_and_its_result_comes_back() {
    let node = FakeNode::start();
    publish(&node, 3_000).await;
    let subscriber = node.client().await.subscriber("s", SubscriberOptions::default());
    let stopper = subscriber.stopper();
    let mut seen = Vec::new();
    subscriber
        .run(|attempt| {
            assert_eq!(attempt.event.id(), attempt.event.data());
            let n: u64 = String::from_utf8_lossy(attempt.event.id()).parse().expect("a number");
            seen.push(n);
            if seen.len() == 3_000 {
                stopper.stop();
            }
            if n.is_multiple_of(2) { AttemptResult::Success } else { AttemptResult::PermanentFailure }
        })
        .await
        .expect("stopped by us");
    assert_eq!(seen, (0..3_000).collect::<Vec<_>>());
    let results = results(&node, 3_000).await;
    assert_eq!(results.len(), 3_000);
    for (tag, result) in results {
        let even = (tag - 1) % 2 == 0;
        assert_eq!(result == AttemptResult::Success, even, "{tag}");
    }
}

#[tokio::test]
async fn futures_run_at_once_and_a_panic_is_a_retryable_failure() {
    let node = FakeNode::start();
    publish(&node, 3).await;
    let subscriber = node.client().await.subscriber("s", SubscriberOptions::default());
    let stopper = subscriber.stopper();
    let gate = Arc::new(Notify::new());
    let running = tokio::spawn(subscriber.run_async({
        let gate = gate.clone();
        move |task| {
            let gate = gate.clone();
            async move {
                match task.event().id() {
                    // Waits for the next one: both must be running at the same time.
                    b"0" => gate.notified().await,
                    b"1" => gate.notify_one(),
                    _ => std::panic::resume_unwind(Box::new("planted")),
                }
                AttemptResult::Success
            }
        }
    }));
    let all: BTreeSet<_> =
        results(&node, 3).await.into_iter().map(|(tag, result)| (tag, result as u8)).collect();
    assert_eq!(all, BTreeSet::from([(1, 1), (2, 1), (3, 2)]));
    stopper.stop();
    running.await.expect("no panic gets out").expect("stopped by us");
}

#[tokio::test]
async fn a_new_session_names_the_attempts_that_still_run() {
    let node = FakeNode::start();
    publish(&node, 2).await;
    let client = node.client().await;
    let mut tasks = client.subscriber("s", SubscriberOptions::default()).into_tasks();
    let (first, answer) = tasks.next().await.expect("no error").expect("a task");
    let (_, second_answer) = tasks.next().await.expect("no error").expect("a task");
    assert_eq!(first.event().id(), b"0");
    answer.give(AttemptResult::Success);
    results(&node, 1).await;
    // The node loses its connections; the next session comes by itself.
    node.script.cut_after_batches.store(1, std::sync::atomic::Ordering::Relaxed);
    let publisher = client.publisher(PublisherOptions::default()).await.expect("a publisher");
    publisher
        .publish(TopicId(1), &EventSpec::new(Due::After(0), "2", b"2"))
        .await
        .expect("accepted in the end");
    let (third, third_answer) = tasks.next().await.expect("no error").expect("a task");
    assert_eq!(third.event().id(), b"2");
    assert_eq!(*node.script.running.lock().expect("sane"), [vec![], vec![2]]);
    second_answer.give(AttemptResult::Success);
    drop(third_answer);
    let last: Vec<_> = results(&node, 3).await;
    assert_eq!(last[1], (2, AttemptResult::Success));
    assert_eq!(
        last[2].1,
        AttemptResult::RetryableFailure,
        "an answer that is dropped is a retryable failure"
    );
    tasks.stop();
    assert!(tasks.next().await.expect("stopped by us").is_none());
}

#[tokio::test]
async fn a_lost_session_is_told_once_and_so_is_the_next_one() {
    let node = FakeNode::start();
    let client = node.client().await;
    let (told, changes) = std::sync::mpsc::channel();
    let subscriber = client.subscriber("s", SubscriberOptions::default()).watched(move |change| {
        let line = match change {
            SessionChange::Lost(why) => format!("lost: {why}"),
            SessionChange::Restored => "restored".to_owned(),
        };
        told.send(line).expect("read at the end");
    });
    let stopper = subscriber.stopper();
    node.script.cut_after_batches.store(1, std::sync::atomic::Ordering::Relaxed);
    let publishing = async {
        let publisher = client.publisher(PublisherOptions::default()).await.expect("a publisher");
        let event = EventSpec::new(Due::After(0), "0", b"0");
        publisher.publish(TopicId(1), &event).await.expect("accepted in the end");
    };
    let running = subscriber.run(|_| {
        stopper.stop();
        AttemptResult::Success
    });
    let (ended, ()) = tokio::join!(running, publishing);
    ended.expect("stopped by us");
    let changes: Vec<String> = changes.iter().collect();
    assert_eq!(changes.len(), 2, "{changes:?}");
    assert!(changes[0].starts_with("lost: ") && changes[1] == "restored", "{changes:?}");
}

#[tokio::test]
async fn a_subscription_that_does_not_exist_ends_the_subscriber_with_the_nodes_words() {
    let node = FakeNode::start();
    let subscriber = node.client().await.subscriber("none", SubscriberOptions::default());
    let error = subscriber.run(|_| AttemptResult::Success).await.expect_err("refused");
    assert_eq!(error.code(), Some(ErrorCode::UnknownSubscription));
}
