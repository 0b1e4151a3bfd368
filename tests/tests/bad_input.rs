//! What people get wrong, and what they are told: each refusal through the SDK has its code, says what to do,
//! and has its entry in the errors document.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use escapement_client::{Client, ClientError, Publisher, PublisherOptions, Receipt, SubscriberOptions};
use escapement_protocol::event::Due;
use escapement_protocol::frame::CancelVerdict;
use escapement_protocol::{
    AttemptResult, DELAY_MS_MAX, EVENT_SIZE_BYTES_MAX, ErrorCode, EventId, EventSpec, Sequence, ShardId,
    SubscriptionSettings, TopicId, TopicSettings, WallMs,
};
use escapement_tests::harness::{NodeProcess, NodeSpec, PATIENCE, wall_ms};

const NODE: &str = env!("CARGO_BIN_EXE_node_under_test");

/// Holds a refusal to what every refusal owes: its code, words that contain `says`, an entry in the document.
#[track_caller]
fn assert_refused<T: std::fmt::Debug>(answer: Result<T, ClientError>, code: ErrorCode, says: &str) {
    let error = answer.expect_err("it should have been refused");
    assert_eq!(error.code(), Some(code), "{error}");
    assert_eq!(error.is_retryable(), code.is_retryable(), "{error}");
    assert!(error.to_string().contains(says), "{error}");
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/errors.md");
    let document = std::fs::read_to_string(document).expect("the errors document");
    assert!(document.contains(&format!("### `{code}`")), "{code} has no entry");
}

/// Runs `body` with a client of a small node on which `flags` are set.
fn with_node(flags: &[(&str, &str)], body: impl AsyncFnOnce(&mut NodeProcess, Client)) {
    let dir = tempfile::tempdir().expect("a directory");
    let spec = NodeSpec::small(NODE, &dir.path().join("data"));
    let mut node = flags.iter().fold(spec, |spec, (name, value)| spec.flag(name, value)).start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client = Client::connect(node.options()).await.expect("connected");
        body(&mut node, client).await;
    });
    assert!(node.is_alive(), "{}", node.notices());
}

fn topic(name: &str) -> TopicSettings {
    TopicSettings { name: name.into(), ..TopicSettings::default() }
}

fn subscription(name: &str) -> SubscriptionSettings {
    SubscriptionSettings { name: name.into(), topic: "t".into(), ..SubscriptionSettings::default() }
}

async fn ready(client: &Client) -> (TopicId, Publisher) {
    let topic = client.create_topic(topic("t")).await.expect("created").topic;
    client.create_subscription(subscription("s")).await.expect("created");
    (topic, client.publisher(PublisherOptions::default()).await.expect("a publisher"))
}

#[test]
fn events_that_cannot_be_taken_are_refused_one_by_one() {
    with_node(&[], async |_, client| {
        let (topic, publisher) = ready(&client).await;
        let small = |due| EventSpec::new(due, "id", b"data");
        let unknown = publisher.publish(TopicId(999), &small(Due::After(0))).await;
        assert_refused(unknown, ErrorCode::UnknownTopic, "create it");

        let data = vec![0; EVENT_SIZE_BYTES_MAX];
        let large = publisher.publish(topic, &EventSpec::new(Due::After(0), "id", &data)).await;
        assert_refused(large, ErrorCode::EventTooLarge, "262144 bytes");

        let far = publisher.publish(topic, &small(Due::After(DELAY_MS_MAX + 1))).await;
        assert_refused(far, ErrorCode::DelayTooLong, "10 years");
        let far = WallMs(wall_ms() + DELAY_MS_MAX + 3_600_000);
        let far = publisher.publish(topic, &small(Due::At(far))).await;
        assert_refused(far, ErrorCode::DelayTooLong, "10 years");

        let nameless = publisher.publish(topic, &EventSpec::new(Due::After(0), "", b"data")).await;
        assert_refused(nameless, ErrorCode::MalformedEvent, "no id");

        // None of it spoils the publisher, nor the neighbours in a batch.
        let batch = [small(Due::After(0)), small(Due::At(WallMs(u64::MAX))), small(Due::After(0))];
        let answers = publisher.publish_batch(topic, &batch).await.expect("the events are well-formed");
        let [Ok(_), far, Ok(_)] = <[_; 3]>::try_from(answers).expect("three answers") else {
            panic!("the neighbours were refused");
        };
        assert_refused(far, ErrorCode::DelayTooLong, "10 years");
    });
}

#[test]
fn the_largest_event_and_the_longest_delay_are_taken() {
    with_node(&[], async |_, client| {
        let (topic, publisher) = ready(&client).await;
        let mut spec = EventSpec::new(Due::After(DELAY_MS_MAX), "id", b"");
        let mut encoded = Vec::new();
        spec.encode(&mut encoded).expect("a valid event");
        let bare = escapement_protocol::event::stated_len(&encoded).expect("it has a header");
        let data = vec![1; EVENT_SIZE_BYTES_MAX - bare];
        spec.data = &data;
        publisher.publish(topic, &spec).await.expect("taken");
    });
}

#[test]
fn settings_and_names_out_of_range_are_refused_by_name_and_range() {
    with_node(&[], async |_, client| {
        ready(&client).await;
        for name in ["", "-t", "two words", "ümlaut", &"x".repeat(129)] {
            let refused = client.create_topic(topic(name)).await;
            assert_refused(refused, ErrorCode::InvalidName, "use 1 to 128 of A-Z a-z 0-9 - _ .");
            let refused = client.create_subscription(subscription(name)).await;
            assert_refused(refused, ErrorCode::InvalidName, "use 1 to 128 of A-Z a-z 0-9 - _ .");
        }
        let long = TopicSettings { default_source: "x".repeat(256), ..topic("long") };
        assert_refused(client.create_topic(long).await, ErrorCode::InvalidSettings, "at most 255");
        let base = || subscription("other");
        for (settings, says) in [
            (
                SubscriptionSettings { max_concurrent_dispatches: 16_000_001, ..base() },
                "max_concurrent_dispatches is 16000001, and must be from 0 to 16000000",
            ),
            (
                SubscriptionSettings { attempt_deadline_ms: 99, ..base() },
                "attempt_deadline_ms is 99, and must be from 100 to 86400000",
            ),
            (
                SubscriptionSettings { max_attempts: 0, ..base() },
                "max_attempts is 0, and must be from 1 to 65535",
            ),
            (
                SubscriptionSettings { min_backoff_ms: 0, ..base() },
                "min_backoff_ms is 0, and must be from 1 to 604800000",
            ),
            (
                SubscriptionSettings { max_backoff_ms: 10, ..base() },
                "max_backoff_ms is 10, and must be from 1000 to 604800000",
            ),
            (
                SubscriptionSettings { max_doublings: 33, ..base() },
                "max_doublings is 33, and must be from 0 to 32",
            ),
            (
                SubscriptionSettings { jitter_permille: 1_001, ..base() },
                "jitter_permille is 1001, and must be from 0 to 1000",
            ),
        ] {
            assert_refused(client.create_subscription(settings).await, ErrorCode::InvalidSettings, says);
        }
        let subscriptions = client.subscriptions().await.expect("an answer");
        assert_eq!(subscriptions.len(), 1, "nothing of that was created");
    });
}

#[test]
fn names_that_do_not_exist_or_exist_otherwise_are_refused() {
    with_node(&[], async |_, client| {
        ready(&client).await;
        client.create_topic(topic("t")).await.expect("the same again is the same");
        let other = TopicSettings { default_source: "/other".into(), ..topic("t") };
        assert_refused(client.create_topic(other).await, ErrorCode::AlreadyExists, "other settings");
        let other = SubscriptionSettings { max_attempts: 3, ..subscription("s") };
        assert_refused(client.create_subscription(other).await, ErrorCode::AlreadyExists, "other settings");

        assert_refused(client.topic("nope").await, ErrorCode::UnknownTopic, "create it first");
        assert_refused(client.subscription("nope").await, ErrorCode::UnknownSubscription, "create it first");
        let orphan = SubscriptionSettings { topic: "nope".into(), ..subscription("orphan") };
        assert_refused(client.create_subscription(orphan).await, ErrorCode::UnknownTopic, "create");
        let nobody = client.subscriber("nope", SubscriberOptions::default());
        let run = nobody.run(|_| AttemptResult::Success).await;
        assert_refused(run, ErrorCode::UnknownSubscription, "create it first");
    });
}

#[test]
fn cancelling_what_is_not_there_says_so() {
    with_node(&[], async |_, client| {
        let (topic, publisher) = ready(&client).await;
        let receipt = publisher
            .publish(topic, &EventSpec::new(Due::After(3_600_000), "id", b""))
            .await
            .expect("accepted");
        let real = receipt.event_id;
        let invented = [
            EventId { sequence: Sequence(real.sequence.0 + 1_000), ..real },
            EventId { shard: ShardId(77), ..real },
            EventId { schedule_time_ms: real.schedule_time_ms + 1, ..real },
            real,
            real,
        ];
        let verdicts = client.cancel(&invented).await.expect("answered");
        let none = CancelVerdict::NotFound;
        assert_eq!(verdicts[..3], [none, none, none]);
        assert_eq!(verdicts[3], CancelVerdict::Cancelled);
        assert_eq!(client.cancel(&[real]).await.expect("answered"), [none]);
    });
}

#[test]
fn publishing_faster_than_the_admission_rate_is_refused_with_the_time_to_wait() {
    with_node(&[("admission", "200/s"), ("shards", "1")], async |_, client| {
        let (topic, publisher) = ready(&client).await;
        let event = EventSpec::new(Due::After(3_600_000), "id", b"");
        let began = Instant::now();
        let answers = publisher.publish_batch(topic, &vec![event; 1_000]).await.expect("valid events");
        let (mut accepted, mut refused) = (0u64, 0u64);
        for answer in answers {
            match answer {
                Ok(_) => accepted += 1,
                Err(error) => {
                    let ClientError::Refused { retry_after_ms, .. } = error else { panic!("{error}") };
                    assert!((1..=1_000).contains(&retry_after_ms), "{retry_after_ms}");
                    assert_refused(Err::<(), _>(error), ErrorCode::ResourceExhausted, "try again in");
                    refused += 1;
                }
            }
        }
        assert!(refused > 0, "{accepted} were accepted at once");
        // Who comes again is served, and the rate holds over the whole time.
        while accepted < 100 {
            accepted += u64::from(publisher.publish(topic, &event).await.is_ok());
            assert!(began.elapsed() < PATIENCE, "only {accepted} were accepted");
        }
        let most = 200.0 * (began.elapsed().as_secs_f64() + 0.1) + 1.0;
        assert!(accepted as f64 <= most + 10.0, "{accepted} of at most {most}");
    });
}

/// Events of 8 KiB that nobody will see for an hour, until one is refused: that one, and those before it.
async fn publish_until_refused(publisher: &Publisher, topic: TopicId) -> (Vec<EventId>, ClientError) {
    let mut accepted = Vec::new();
    let data = [3; 8 * 1024];
    loop {
        let events: Vec<String> = (0..16).map(|n| format!("later-{}", accepted.len() + n)).collect();
        let specs: Vec<EventSpec<'_>> =
            events.iter().map(|id| EventSpec::new(Due::After(3_600_000), id, &data)).collect();
        let answers = publisher.publish_batch(topic, &specs).await.expect("valid events");
        let mut refused = None;
        for answer in answers {
            match answer {
                Ok(Receipt { event_id, .. }) => accepted.push(event_id),
                Err(error) => refused = Some(error),
            }
        }
        if let Some(refused) = refused {
            return (accepted, refused);
        }
        assert!(accepted.len() < 4_096, "32 MiB fit a log of 6 MiB");
    }
}

#[test]
fn a_full_log_refuses_publishes_delivers_what_is_due_and_heals() {
    with_node(&[("shards", "1"), ("log-size-max", "6MiB")], async |_, client| {
        let (topic, publisher) = ready(&client).await;
        // Due soon, and held back by the missing subscriber until the log is full.
        let mut due = HashSet::new();
        for n in 0..50 {
            let id = format!("due-{n}");
            let event = EventSpec::new(Due::After(1), &id, &[1; 1024]);
            publisher.publish(topic, &event).await.expect("there is room");
            due.insert(id);
        }
        let (held, refused) = publish_until_refused(&publisher, topic).await;
        assert!(held.len() > 100, "only {} events fit", held.len());
        assert!(matches!(refused, ClientError::Refused { retry_after_ms: 1.., .. }), "{refused}");
        assert_refused(
            Err::<(), _>(refused),
            ErrorCode::ResourceExhausted,
            "the log is full: publish again later",
        );

        let subscriber = client.subscriber("s", SubscriberOptions::default());
        let stopper = subscriber.stopper();
        let run = subscriber.run(|attempt| {
            due.remove(std::str::from_utf8(attempt.event.id()).expect("text"));
            if due.is_empty() {
                stopper.stop();
            }
            AttemptResult::Success
        });
        tokio::time::timeout(PATIENCE, run).await.expect("all that is due is delivered").expect("subscribed");

        // Still full, until what fills it is cancelled: then it heals by itself.
        let verdicts = client.cancel(&held).await.expect("cancels are taken by a full log");
        assert!(verdicts.iter().all(|verdict| *verdict == CancelVerdict::Cancelled));
        let began = Instant::now();
        let event = EventSpec::new(Due::After(3_600_000), "again", &[2; 1024]);
        loop {
            match tokio::time::timeout(Duration::from_secs(10), publisher.publish(topic, &event)).await {
                Ok(Ok(_)) => break,
                Ok(Err(error)) => assert_eq!(error.code(), Some(ErrorCode::ResourceExhausted), "{error}"),
                Err(_) => panic!("no answer to a publish"),
            }
            assert!(began.elapsed() < PATIENCE, "the log is still full");
        }
    });
}
