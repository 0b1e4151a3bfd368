//! A real process, killed again and again while it works, with clients that live through all of it.
//!
//! `ESCAPEMENT_KILLS` sets how many kills there are (10), `ESCAPEMENT_SEED` when they come (1), and
//! `ESCAPEMENT_PENDING` how many events a recovery finds (20,000).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use escapement_client::{Client, Publisher, PublisherOptions, SubscriberOptions};
use escapement_protocol::event::Due;
use escapement_protocol::{AttemptResult, EventSpec, TopicId, WallMs};
use escapement_tests::harness::{
    Counts, Ledger, NodeProcess, NodeSpec, create, patient, say, setting, wall_ms,
};
use escapement_wal::memory::Rng;
use tokio::task::JoinHandle;

const NODE: &str = env!("CARGO_BIN_EXE_node_under_test");

/// Events that each of the publishers hands over at once.
const BATCH: u64 = 40;
const PUBLISHERS: u64 = 2;
const DELAY_MS_MAX: u64 = 300;

/// Publishes batch after batch, each when the one before is acknowledged, through every restart.
async fn publish(
    ledger: Arc<Ledger>,
    publisher: Publisher,
    topic: TopicId,
    next: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) {
    while !stop.load(Ordering::Relaxed) {
        let first = next.fetch_add(BATCH, Ordering::Relaxed);
        let mut random = Rng::new(first);
        let events: Vec<(u64, String, Vec<u8>, u64)> = (first..first + BATCH)
            .map(|n| (n, ledger.id(n), ledger.data(n), wall_ms() + random.below(DELAY_MS_MAX)))
            .collect();
        let specs: Vec<EventSpec<'_>> =
            events.iter().map(|(_, id, data, due)| EventSpec::new(Due::At(WallMs(*due)), id, data)).collect();
        for (n, _, _, due) in &events {
            ledger.published(*n, *due);
        }
        let answers = publisher.publish_batch(topic, &specs).await.expect("the events are valid");
        for ((n, ..), answer) in events.iter().zip(answers) {
            answer.expect("nothing is refused, and the node always comes back");
            ledger.acknowledged(*n);
        }
    }
}

fn subscribe(client: &Client, ledger: &Arc<Ledger>) -> (escapement_client::Stopper, JoinHandle<()>) {
    let subscriber = client.subscriber("s", SubscriberOptions::default());
    let stopper = subscriber.stopper();
    let ledger = ledger.clone();
    let running = tokio::spawn(async move {
        let run = subscriber.run(|attempt| {
            ledger.delivered(attempt.event.id(), attempt.schedule_time.0, attempt.event.data());
            AttemptResult::Success
        });
        run.await.expect("the node always comes back");
    });
    (stopper, running)
}

/// Kills of a node that served, and of one that had not said that it does.
#[derive(Debug, Default)]
struct Kills {
    serving: u64,
    recovering: u64,
}

/// Kills and restarts until there were `count` kills. Half of them are followed by one at a random moment of the start.
fn kill_again_and_again(
    spec: &NodeSpec,
    mut node: NodeProcess,
    ledger: &Ledger,
    count: u64,
    random: &mut Rng,
) -> (NodeProcess, Kills) {
    let mut kills = Kills::default();
    while kills.serving + kills.recovering < count {
        let target = ledger.counts().progress() + 1 + random.below(1_500);
        ledger.wait_until("a kill is due", |counts| counts.progress() >= target);
        node.kill();
        kills.serving += 1;
        while random.below(2) == 0 && kills.serving + kills.recovering < count {
            match spec.spawn().ready_within(Duration::from_millis(random.below(120))) {
                Ok(ready) => {
                    ready.kill();
                    kills.serving += 1;
                }
                Err(starting) => {
                    starting.kill();
                    kills.recovering += 1;
                }
            }
        }
        node = spec.start();
    }
    (node, kills)
}

#[test]
fn kills_at_any_moment_lose_nothing_and_send_nothing_early_or_altered() {
    let (count, seed) = (setting("ESCAPEMENT_KILLS", 10), setting("ESCAPEMENT_SEED", 1));
    say(&format!("{count} kills with ESCAPEMENT_SEED={seed}"));
    let dir = tempfile::tempdir().expect("a directory");
    let spec = NodeSpec::steady(NODE, dir.path());
    let node = spec.start();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let began = Instant::now();
    let ledger = Arc::new(Ledger::new("kill"));
    let stop = Arc::new(AtomicBool::new(false));
    let (publisher, publishing, stopper, receiving) = runtime.block_on(async {
        let client = Client::connect(patient(node.options())).await.expect("connected");
        let topic = create(&client).await;
        let publisher = client.publisher(PublisherOptions::default()).await.expect("a publisher");
        let next = Arc::new(AtomicU64::new(0));
        let publishing: Vec<_> = (0..PUBLISHERS)
            .map(|_| {
                tokio::spawn(publish(ledger.clone(), publisher.clone(), topic, next.clone(), stop.clone()))
            })
            .collect();
        let (stopper, receiving) = subscribe(&client.another().await.expect("connected"), &ledger);
        (publisher, publishing, stopper, receiving)
    });

    let (node, kills) = kill_again_and_again(&spec, node, &ledger, count, &mut Rng::new(seed));

    stop.store(true, Ordering::Relaxed);
    for publishing in publishing {
        runtime.block_on(publishing).expect("every event was acknowledged");
    }
    let counts: Counts =
        ledger.wait_until("all that was acknowledged is delivered", |counts| counts.outstanding == 0);
    stopper.stop();
    runtime.block_on(receiving).expect("subscribed to the end");
    ledger.assert_clean();
    let resent = publisher.stats().resent;
    say(&format!("{kills:?}, {counts:?}, resent {resent}, in {:?}", began.elapsed()));
    assert_eq!((counts.acknowledged, counts.delivered), (counts.published, counts.published));
    assert_eq!(counts.foreign, 0);
    node.drain();
    let node = spec.start();
    assert!(node.notice("recovered ").starts_with("0 pending events"), "what is done stays done");
}

#[test]
fn a_killed_node_comes_back_with_everything_that_was_pending() {
    let count: u64 = setting("ESCAPEMENT_PENDING", 20_000);
    let dir = tempfile::tempdir().expect("a directory");
    let spec =
        NodeSpec::small(NODE, &dir.path().join("data")).flag("segment-size", "16MiB").flag("memory", "4GiB");
    let node = spec.start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let began = Instant::now();
    runtime.block_on(async {
        let client = Client::connect(node.options()).await.expect("connected");
        let topic = create(&client).await;
        publish_for_later(&client, topic, count).await;
    });
    let published = began.elapsed();
    node.kill();
    let began = Instant::now();
    let node = spec.start();
    let ready = began.elapsed();
    let topics = runtime.block_on(async {
        let client = Client::connect(node.options()).await.expect("connected");
        client.topics().await.expect("an answer")
    });
    let answered = began.elapsed();
    let notice = node.notice("recovered ");
    say(&format!(
        "{count} events published in {published:?}; after the kill ready in {} ms, first answer in {} ms; the node says: recovered {notice}",
        ready.as_millis(),
        answered.as_millis()
    ));
    assert_eq!(topics.len(), 1);
    assert!(notice.starts_with(&format!("{count} pending events")), "{notice}");
}

/// Publishes `count` events of 128 bytes, due in an hour, and waits for all receipts.
async fn publish_for_later(client: &Client, topic: TopicId, count: u64) {
    let publisher = client.publisher(PublisherOptions::default()).await.expect("a publisher");
    let mut receipts = publisher.take_receipts().expect("taken once");
    let mut accepted = 0;
    for first in (0..count).step_by(500) {
        publisher.ready(0).await.expect("room");
        let mut batch = publisher.open(0, topic).expect("room");
        for n in first..count.min(first + 500) {
            let id = format!("later-{n}");
            let event = EventSpec::new(Due::After(3_600_000), &id, &[7; 128]);
            batch.push_spec(&event).expect("a valid event");
        }
        batch.seal(first);
        while let Ok((_, receipt)) = receipts.try_recv() {
            accepted += accepted_count(&receipt.expect("answered"));
        }
    }
    while accepted < count {
        let (_, receipt) = receipts.recv().await.expect("every batch is answered");
        accepted += accepted_count(&receipt.expect("answered"));
    }
}

fn accepted_count(receipt: &escapement_client::BatchReceipt) -> u64 {
    assert!(receipt.refusals.is_empty(), "{:?}", receipt.refusals);
    receipt.runs.iter().map(|run| u64::from(run.count)).sum()
}
