//! A real node at work on a logged disk, and what its clients learned when.

use std::collections::HashMap;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use escapement_client::{Client, Publisher, PublisherOptions, SubscriberOptions};
use escapement_protocol::event::Due;
use escapement_protocol::{AttemptResult, EventId, EventSpec, TopicId, WallMs};
use escapement_wal::memory::Rng;

use super::rig::LoggedDisk;
use crate::harness::{Ledger, NodeProcess, NodeSpec, PATIENCE, create, patient, wall_ms};

/// How far ahead the node keeps events in memory.
const HORIZON_MS: u64 = 1_000;
const HOUR_MS: u64 = 3_600_000;
const PUBLISHERS: u64 = 3;
const BATCH: u64 = 5;
/// Bytes of the disk's log from which on nothing more is published.
const LOG_SIZE_BYTES_MAX: u64 = 700 * 1024 * 1024;

/// Begins every event's id.
pub(super) fn ledger() -> Ledger {
    Ledger::new("cut")
}

/// The node's settings, but for where it listens.
pub(super) fn node(program: &Path, data: &Path) -> NodeSpec {
    NodeSpec::small(&program.display().to_string(), data).flag("horizon", "1s")
}

/// An event that was acknowledged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acknowledged {
    pub(super) number: u64,
    pub(super) id: EventId,
    /// Bytes of the disk's log when the acknowledgement had come.
    pub(super) at: u64,
}

/// All that clients learned.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) acknowledged: Vec<Acknowledged>,
    /// Bytes of the disk's log when the first result of an event was given.
    pub(super) results: HashMap<u64, u64>,
    /// Bytes of the disk's log before the node was started, and when it was stopped.
    pub(super) from: u64,
    pub(super) to: u64,
}

/// Tells how far the disk's log is: whatever was written by now lies before that.
#[derive(Clone, Debug)]
struct Position(PathBuf);

impl Position {
    fn now(&self) -> u64 {
        std::fs::metadata(&self.0).expect("the log is there").len()
    }
}

/// What all publishers share.
#[derive(Clone)]
struct Load {
    topic: TopicId,
    position: Position,
    next: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    acknowledged: Sender<Acknowledged>,
}

/// Runs a node for that long, kills it twice and starts it once again.
pub(super) fn run(disk: &LoggedDisk, program: &Path, work: &Path, most: Duration) -> Heard {
    let position = Position(disk.log().to_owned());
    let from = position.now();
    let free = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
    let spec = node(program, &disk.path().join("data")).flag("listen", &free.to_string()).certified(work);
    let node = spec.start();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let (sender, receiver) = channel();
    let results = Arc::new(Mutex::new(HashMap::new()));
    let stop = Arc::new(AtomicBool::new(false));
    runtime.block_on(async {
        let client = Client::connect(patient(node.options())).await.expect("connected");
        let topic = create(&client).await;
        subscribe(&client, position.clone(), results.clone()).await;
        let publisher = client.publisher(PublisherOptions::default()).await.expect("a publisher");
        let next = Arc::new(AtomicU64::new(0));
        let load = Load { topic, position: position.clone(), next, stop: stop.clone(), acknowledged: sender };
        for _ in 0..PUBLISHERS {
            tokio::spawn(publish(publisher.clone(), load.clone()));
        }
    });
    let mut acknowledged = collect(&receiver, most / 2, &node);
    node.kill();
    let node = spec.start();
    acknowledged.extend(collect(&receiver, most / 2, &node));
    stop.store(true, Ordering::Relaxed);
    // To the last: every publisher waits for its answers, and then lets go of the channel.
    while let Ok(last) = receiver.recv_timeout(PATIENCE) {
        acknowledged.push(last);
    }
    let to = position.now();
    node.kill();
    runtime.shutdown_background();
    let results = std::mem::take(&mut *results.lock().expect("nobody panics with it"));
    Heard { acknowledged, results, from, to }
}

fn collect(receiver: &Receiver<Acknowledged>, most: Duration, node: &NodeProcess) -> Vec<Acknowledged> {
    let end = Instant::now() + most;
    let mut all = Vec::new();
    loop {
        match receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(acknowledged) => all.push(acknowledged),
            Err(RecvTimeoutError::Timeout) => return all,
            Err(RecvTimeoutError::Disconnected) => panic!("publishing has ended: {}", node.notices()),
        }
        if Instant::now() >= end {
            return all;
        }
    }
}

async fn subscribe(client: &Client, position: Position, results: Arc<Mutex<HashMap<u64, u64>>>) {
    let client = client.another().await.expect("connected");
    let subscriber = client.subscriber("s", SubscriberOptions::default());
    tokio::spawn(async move {
        let run = subscriber.run(|attempt| {
            if let Some(number) = number_of(attempt.event.id()) {
                // Before the result leaves, so that nothing that follows from it lies before this.
                results.lock().expect("nobody panics with it").entry(number).or_insert(position.now());
            }
            AttemptResult::Success
        });
        // It ends with the runtime.
        let _ = run.await;
    });
}

/// The number of the event with this id.
pub(super) fn number_of(id: &[u8]) -> Option<u64> {
    std::str::from_utf8(id).ok()?.strip_prefix("cut-")?.parse().ok()
}

async fn publish(publisher: Publisher, load: Load) {
    let ledger = ledger();
    while !load.stop.load(Ordering::Relaxed) && load.position.now() < LOG_SIZE_BYTES_MAX {
        let first = load.next.fetch_add(BATCH, Ordering::Relaxed);
        let mut rng = Rng::new(first);
        let events: Vec<(u64, String, Vec<u8>, u64)> = (first..first + BATCH)
            .map(|number| {
                let after_ms = match rng.below(3) {
                    0 => rng.below(HORIZON_MS / 2),
                    1 => 2 * HORIZON_MS + rng.below(4 * HORIZON_MS),
                    _ => HOUR_MS + rng.below(48 * HOUR_MS),
                };
                (number, ledger.id(number), ledger.data(number), wall_ms() + after_ms)
            })
            .collect();
        let specs: Vec<EventSpec<'_>> =
            events.iter().map(|(_, id, data, due)| EventSpec::new(Due::At(WallMs(*due)), id, data)).collect();
        let answers = publisher.publish_batch(load.topic, &specs).await.expect("the events are valid");
        let at = load.position.now();
        for ((number, ..), answer) in events.iter().zip(answers) {
            let id = answer.expect("nothing is refused, and the node comes back").event_id;
            let sent = load.acknowledged.send(Acknowledged { number: *number, id, at });
            sent.expect("somebody collects them");
        }
    }
}
