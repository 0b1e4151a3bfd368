//! A node on a real disk that is full: what it refuses, what goes on, and how it heals, where the tools and rights for such
//! a disk are.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use escapement_client::{Client, ClientError, Publisher, PublisherOptions, SubscriberOptions};
use escapement_protocol::event::Due;
use escapement_protocol::frame::CancelVerdict;
use escapement_protocol::{AttemptResult, ErrorCode, EventId, EventSpec, TopicId};
use escapement_tests::harness::{NodeSpec, PATIENCE, create, patient};
use escapement_tests::small_disk::{SmallDisk, missing};
use tokio::sync::mpsc;

const NODE: &str = env!("CARGO_BIN_EXE_node_under_test");

const DISK_SIZE_BYTES: u64 = 96 << 20;
/// Left on the disk once the node runs.
const LEFT_BYTES: u64 = 12 << 20;
const HOUR_MS: u64 = 3_600_000;
/// Events that become due while the disk is full.
const NEAR_COUNT: usize = 300;

/// Printed even where the test passes.
fn say(text: &str) {
    writeln!(std::io::stderr(), "{text}").expect("standard error is open");
}

struct Load {
    publisher: Publisher,
    topic: TopicId,
    next: u64,
}

impl Load {
    async fn new(client: &Client) -> Load {
        let topic = create(client).await;
        let publisher = client.publisher(PublisherOptions::default()).await.expect("a publisher");
        Load { publisher, topic, next: 0 }
    }

    /// Publishes one event; its id, or why it was refused.
    async fn one(&mut self, after_ms: u64, data: &[u8]) -> Result<EventId, String> {
        self.next += 1;
        let id = format!("event-{}", self.next);
        match self.publisher.publish(self.topic, &EventSpec::new(Due::After(after_ms), &id, data)).await {
            Ok(receipt) => Ok(receipt.event_id),
            Err(ClientError::Refused { number, message, .. }) => {
                assert_eq!(ErrorCode::from_number(number), Some(ErrorCode::ResourceExhausted), "{message}");
                Err(message)
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Publishes far-future events until one is refused; the ids of those that were not, and why it was.
    async fn until_refused(&mut self, accepted: &mut Vec<EventId>) -> String {
        let data = vec![0xab; 8_000];
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let numbers: Vec<String> = (0..20).map(|n| format!("far-{}-{n}", self.next)).collect();
            self.next += 20;
            let due = |n: usize| Due::After(2 * HOUR_MS + n as u64 * 60_000);
            let specs: Vec<EventSpec<'_>> =
                numbers.iter().enumerate().map(|(n, id)| EventSpec::new(due(n), id, &data)).collect();
            let answers = self.publisher.publish_batch(self.topic, &specs).await.expect("connected");
            let before = accepted.len();
            accepted.extend(answers.iter().filter_map(|answer| Some(answer.as_ref().ok()?.event_id)));
            if accepted.len() == before {
                match self.one(2 * HOUR_MS, &data).await {
                    Ok(id) => accepted.push(id),
                    Err(why) => return why,
                }
            }
        }
        panic!("the disk is not full after {PATIENCE:?}, and {} events", accepted.len())
    }

    /// Publishes an event for hours ahead, again and again until it is accepted.
    async fn until_taken(&mut self, data: &[u8]) -> EventId {
        let begun = Instant::now();
        loop {
            match self.one(3 * HOUR_MS, data).await {
                Ok(id) => return id,
                Err(why) => assert!(begun.elapsed() < PATIENCE, "still refused: {why}"),
            }
        }
    }
}

/// Tells the ids of the events that arrive, which succeed.
async fn subscribe(client: &Client) -> mpsc::UnboundedReceiver<String> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let subscriber = client.another().await.expect("connected").subscriber("s", SubscriberOptions::default());
    tokio::spawn(async move {
        let run = subscriber.run(|attempt| {
            let _ = sender.send(String::from_utf8_lossy(attempt.event.id()).into_owned());
            AttemptResult::Success
        });
        // It ends with the node.
        let _ = run.await;
    });
    receiver
}

async fn arrived(receiver: &mut mpsc::UnboundedReceiver<String>, count: usize) {
    let mut ids = std::collections::BTreeSet::new();
    while ids.len() < count {
        let id = tokio::time::timeout(PATIENCE, receiver.recv()).await;
        let id =
            id.unwrap_or_else(|_| panic!("{} of {count} events arrived while the disk was full", ids.len()));
        ids.insert(id.expect("the subscriber runs"));
    }
}

async fn cancel_all(client: &Client, events: &[EventId], verdict: CancelVerdict) {
    // Few of those that are in runs may wait for the disk at one time.
    for part in events.chunks(16) {
        let verdicts = client.cancel(part).await.expect("connected");
        let other = part.iter().zip(&verdicts).find(|(_, given)| **given != verdict);
        assert_eq!(other, None, "of {}", events.len());
    }
}

fn spec(data: &Path) -> NodeSpec {
    NodeSpec::small(NODE, data).flag("horizon", "1s").flag("shards", "1").flag("memory", "128MiB")
}

#[test]
fn a_full_disk_refuses_publishes_and_nothing_else_and_heals_by_itself() {
    if let Some(what) = missing() {
        return say(&format!("no disk was filled: {what}"));
    }
    let dir = tempfile::tempdir().expect("a directory");
    let disk = SmallDisk::new(dir.path(), DISK_SIZE_BYTES).unwrap_or_else(|what| panic!("{what}"));
    let spec = spec(&disk.path().join("data"));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut far = Vec::new();

    let node = spec.start();
    runtime.block_on(async {
        let client = Client::connect(patient(node.options())).await.expect("connected");
        let mut load = Load::new(&client).await;
        let mut arriving = subscribe(&client).await;
        disk.fill_but(LEFT_BYTES).expect("it can be filled");
        for n in 0..NEAR_COUNT {
            load.one(5_000 + 10 * n as u64, b"near").await.expect("there is room");
        }
        let why = load.until_refused(&mut far).await;
        assert!(why.contains("log") && why.contains("disk"), "it names what is full: {why}");
        say(&format!("refused after {} far events: {why}", far.len()));
        // What was accepted goes on.
        let cancelled = far.split_off(far.len() - 20);
        cancel_all(&client, &cancelled, CancelVerdict::Cancelled).await;
        arrived(&mut arriving, NEAR_COUNT).await;
        cancel_all(&client, &cancelled, CancelVerdict::NotFound).await;
        let again = load.until_refused(&mut far).await;
        assert!(again.contains("disk"), "{again}");
    });

    // An operator's first thought, while there is no space yet.
    node.kill();
    let node = spec.start();
    runtime.block_on(async {
        let client = Client::connect(patient(node.options())).await.expect("connected");
        let mut load = Load::new(&client).await;
        let cancelled = far.split_off(far.len() - 20);
        cancel_all(&client, &cancelled, CancelVerdict::Cancelled).await;
        disk.free().expect("it can be freed");
        let begun = Instant::now();
        far.push(load.until_taken(&[7; 8_000]).await);
        say(&format!("healed {} ms after there was space", begun.elapsed().as_millis()));
        // The first may find a segment that was just freed; these need new ones.
        for _ in 0..200 {
            far.push(load.until_taken(&[8; 8_000]).await);
        }
    });
    let notices = node.notices();
    say(&notices);
    node.kill();

    // Nothing that was acknowledged is lost.
    let node = spec.start();
    runtime.block_on(async {
        let client = Client::connect(patient(node.options())).await.expect("connected");
        cancel_all(&client, &far, CancelVerdict::Cancelled).await;
    });
    node.drain();
}
