//! A real node whose machine's clock is wrong, or that is frozen: nothing comes early by the true time, nothing is lost.
//!
//! `ESCAPEMENT_FREEZE_S` sets how long the node is frozen, in seconds (3). The tests that set the node's clock want
//! libfaketime (Debian's package `libfaketime`), and say so where it is not there.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use escapement_client::{Client, Publisher, PublisherOptions, Stopper, SubscriberOptions};
use escapement_protocol::event::Due;
use escapement_protocol::{AttemptResult, EventSpec, TopicId, WallMs};
use escapement_tests::harness::{Ledger, NodeProcess, NodeSpec, create, patient, say, setting, wall_ms};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

const NODE: &str = env!("CARGO_BIN_EXE_node_under_test");

const HOUR_MS: u64 = 3_600_000;
/// Where Debian and Fedora put it.
const FAKETIME: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
];

/// What a test publishes, and what came of it.
struct Scene {
    runtime: Runtime,
    ledger: Arc<Ledger>,
    topic: TopicId,
    publisher: Publisher,
    stopper: Stopper,
    receiving: JoinHandle<()>,
    next: u64,
}

impl Scene {
    fn new(node: &NodeProcess) -> Scene {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let ledger = Arc::new(Ledger::new("clock"));
        let (topic, publisher, stopper, receiving) = runtime.block_on(async {
            let client = Client::connect(patient(node.options())).await.expect("connected");
            let topic = create(&client).await;
            let publisher = client.publisher(PublisherOptions::default()).await.expect("a publisher");
            let another = client.another().await.expect("connected");
            let subscriber = another.subscriber("s", SubscriberOptions::default());
            let (stopper, seen) = (subscriber.stopper(), ledger.clone());
            let receiving = tokio::spawn(async move {
                let run = subscriber.run(|attempt| {
                    seen.delivered(attempt.event.id(), attempt.schedule_time.0, attempt.event.data());
                    AttemptResult::Success
                });
                run.await.expect("the node always comes back");
            });
            (topic, publisher, stopper, receiving)
        });
        Scene { runtime, ledger, topic, publisher, stopper, receiving, next: 0 }
    }

    /// Publishes events that are due so many ms from now, and waits for their receipts.
    fn publish(&mut self, delays_ms: impl Iterator<Item = u64>) {
        let now_ms = wall_ms();
        let ledger = &self.ledger;
        let first = self.next;
        let events: Vec<(u64, String, Vec<u8>, u64)> = (first..)
            .zip(delays_ms)
            .map(|(n, delay_ms)| (n, ledger.id(n), ledger.data(n), now_ms + delay_ms))
            .collect();
        self.next += events.len() as u64;
        let specs: Vec<EventSpec<'_>> =
            events.iter().map(|(_, id, data, due)| EventSpec::new(Due::At(WallMs(*due)), id, data)).collect();
        events.iter().for_each(|(n, .., due)| ledger.published(*n, *due));
        let answers = self.runtime.block_on(self.publisher.publish_batch(self.topic, &specs));
        for ((n, ..), answer) in events.iter().zip(answers.expect("the events are valid")) {
            answer.expect("nothing is refused");
            ledger.acknowledged(*n);
        }
    }

    /// Waits until all but so many have come.
    fn wait_for_all_but(&self, far_count: u64) {
        self.ledger.wait_until("all that is due has come", |counts| {
            counts.acknowledged - counts.delivered <= far_count
        });
    }

    /// Holds that nothing came early or altered, and that so many are still to come.
    fn end(self, node: NodeProcess, far_count: u64) {
        self.ledger.assert_clean();
        let counts = self.ledger.counts();
        assert_eq!(counts.acknowledged - counts.delivered, far_count, "what is far away has not come");
        self.stopper.stop();
        self.runtime.block_on(self.receiving).expect("subscribed to the end");
        node.drain();
    }
}

/// A machine's clock that can be set: a file that says what it is wrong by.
struct Clock(PathBuf);

impl Clock {
    /// Has the node of `spec` read this clock. `None` where libfaketime is not there.
    fn of(spec: NodeSpec, dir: &Path) -> Option<(Clock, NodeSpec)> {
        let Some(library) = FAKETIME.iter().find(|path| Path::new(path).exists()) else {
            say("NOT RUN: setting a node's clock wants libfaketime; install it: apt-get install libfaketime");
            return None;
        };
        let file = dir.join("clock");
        let spec = spec
            .variable("LD_PRELOAD", library)
            .variable("FAKETIME_TIMESTAMP_FILE", &file.display().to_string())
            .variable("FAKETIME_NO_CACHE", "1")
            // Only the real-time clock is wrong; those that count from the machine's boot can't be set.
            .variable("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        let clock = Clock(file);
        clock.set(0);
        Some((clock, spec))
    }

    /// Sets the clock so many seconds ahead of true time, or behind it.
    fn set(&self, error_s: i64) {
        let written = self.0.with_extension("new");
        std::fs::write(&written, format!("{error_s:+}s")).expect("written");
        // Never seen half written.
        std::fs::rename(written, &self.0).expect("renamed");
    }
}

#[test]
fn a_frozen_node_loses_nothing_and_sends_nothing_early() {
    let freeze = Duration::from_secs(setting("ESCAPEMENT_FREEZE_S", 3));
    let freeze_ms = freeze.as_millis() as u64;
    let dir = tempfile::tempdir().expect("a directory");
    let node = NodeSpec::steady(NODE, dir.path()).start();
    let mut scene = Scene::new(&node);
    scene.publish((0..400).map(|n| n * (freeze_ms + 3_000) / 400));
    scene.publish((0..10).map(|_| HOUR_MS));
    node.signal("STOP");
    let began = Instant::now();
    // Nothing can be waited for but time itself: the freeze is what is tested.
    let (_sender, nothing) = std::sync::mpsc::channel::<()>();
    nothing.recv_timeout(freeze).expect_err("nobody sends");
    let before = scene.ledger.counts();
    node.signal("CONT");
    let frozen = began.elapsed();
    assert!(before.delivered < before.published - 10, "some were due in the freeze: {before:?}");
    scene.publish((0..100).map(|n| n * 10));
    scene.wait_for_all_but(10);
    say(&format!("frozen for {frozen:?}, with {} of 400 events delivered before", before.delivered));
    scene.end(node, 10);
}

#[test]
fn steps_of_the_clock_by_an_hour_make_nothing_early_and_hold_nothing_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some((clock, spec)) = Clock::of(NodeSpec::steady(NODE, dir.path()), dir.path()) else { return };
    let node = spec.start();
    let mut scene = Scene::new(&node);
    // Due well within what the clock will jump over.
    scene.publish((0..50).map(|n| HOUR_MS / 4 + n * 1_000));
    for (error_s, said) in [
        (3_600, Some("the machine's clock jumped 3")),
        (-3_600, Some("agree again")),
        (0, None),
        (3_600, Some("the machine's clock jumped 3")),
        // A leap second.
        (-1, Some("agree again")),
    ] {
        scene.publish((0..100).map(|n| n * 10));
        clock.set(error_s);
        if let Some(said) = said {
            let _ = node.notice(said);
        }
        scene.publish((0..100).map(|n| n * 10));
        scene.wait_for_all_but(50);
    }
    scene.end(node, 50);
}

#[test]
fn a_restart_with_the_clock_in_1970_makes_nothing_early_and_loses_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some((clock, spec)) = Clock::of(NodeSpec::steady(NODE, dir.path()), dir.path()) else { return };
    let mut node = spec.start();
    let mut scene = Scene::new(&node);
    scene.publish((0..50).map(|n| HOUR_MS + n));
    for error_s in [10 - (wall_ms() / 1_000) as i64, 0] {
        scene.publish((0..100).map(|n| n * 20));
        node.kill();
        clock.set(error_s);
        node = spec.start();
        scene.publish((0..100).map(|n| n * 20));
        scene.wait_for_all_but(50);
    }
    scene.end(node, 50);
}
