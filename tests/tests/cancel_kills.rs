//! Cancels at about the due moment against a real node that is killed again and again.
//!
//! `ESCAPEMENT_KILLS` sets how many kills there are (6), and `ESCAPEMENT_SEED` when they come (1).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use escapement_client::{Client, ClientError, Publisher, PublisherOptions, SubscriberOptions};
use escapement_protocol::event::Due;
use escapement_protocol::frame::CancelVerdict;
use escapement_protocol::{AttemptResult, ErrorCode, EventId, EventSpec, TopicId, WallMs};
use escapement_tests::harness::{NodeSpec, PATIENCE, create, patient, say, setting, wall_ms};
use escapement_wal::memory::Rng;

const NODE: &str = env!("CARGO_BIN_EXE_node_under_test");

const BATCH: u64 = 40;
/// Events become due while the cancels of their batch are on their way.
const DELAY_MS_MAX: u64 = 60;
/// Events of one request to cancel.
const REQUEST_COUNT: usize = 4;
const CANCELLERS: u64 = 3;

/// What is known of an event from outside.
#[derive(Clone, Debug, Default)]
struct Fate {
    deliveries: u64,
    /// It was acknowledged to one who then asked to cancel it, or not to.
    is_known: bool,
    verdict: Option<CancelVerdict>,
    /// A cancel whose answer a kill took may have come through.
    is_in_doubt: bool,
}

impl Fate {
    fn is_owed(&self) -> bool {
        let pending = match self.verdict {
            None => !self.is_in_doubt,
            Some(CancelVerdict::TooLate { .. }) => true,
            // Found by nobody: it was delivered, unless an earlier cancel came through.
            Some(CancelVerdict::NotFound) => !self.is_in_doubt,
            Some(CancelVerdict::Cancelled) => false,
        };
        self.is_known && pending && self.deliveries == 0
    }
}

#[derive(Debug, Default)]
struct Fates {
    events: Mutex<HashMap<EventId, Fate>>,
    moved: Condvar,
}

impl Fates {
    fn change(&self, event: EventId, change: impl FnOnce(&mut Fate)) {
        change(self.events.lock().expect("nothing panics with it").entry(event).or_default());
        self.moved.notify_all();
    }

    /// Waits until what is known of all of them is as wanted.
    fn wait_until(&self, what: &str, reached: impl Fn(&HashMap<EventId, Fate>) -> bool) {
        let events = self.events.lock().expect("nothing panics with it");
        let waited = self.moved.wait_timeout_while(events, PATIENCE, |events| !reached(events));
        let (events, timeout) = waited.expect("nothing panics with it");
        let owed: Vec<_> = events.iter().filter(|(_, fate)| fate.is_owed()).take(5).collect();
        assert!(!timeout.timed_out(), "waiting until {what}, owed are {owed:?}");
    }
}

/// Publishes batches, and cancels most of each as it becomes due, through every restart.
async fn publish_and_cancel(
    fates: Arc<Fates>,
    (client, publisher): (Client, Publisher),
    topic: TopicId,
    mut random: Rng,
    stop: Arc<AtomicBool>,
    verdicts: Arc<AtomicU64>,
) {
    while !stop.load(Ordering::Relaxed) {
        let now = wall_ms();
        let dues: Vec<u64> = (0..BATCH).map(|_| now + random.below(DELAY_MS_MAX)).collect();
        let specs: Vec<EventSpec<'_>> =
            dues.iter().map(|due| EventSpec::new(Due::At(WallMs(*due)), "e", b"data")).collect();
        let answers = publisher.publish_batch(topic, &specs).await.expect("the events are valid");
        let mut events: Vec<EventId> = answers
            .into_iter()
            .map(|answer| answer.expect("nothing is refused, and the node always comes back").event_id)
            .collect();
        events.iter().for_each(|event| fates.change(*event, |fate| fate.is_known = true));
        events.sort_by_key(|event| event.schedule_time_ms);
        events.retain(|_| !random.one_in(8));
        for part in events.chunks(REQUEST_COUNT) {
            cancel(&fates, &client, part, &stop).await;
            verdicts.fetch_add(part.len() as u64, Ordering::Relaxed);
        }
    }
}

/// Asks until there is an answer.
async fn cancel(fates: &Fates, client: &Client, part: &[EventId], stop: &AtomicBool) {
    loop {
        match client.cancel(part).await {
            Ok(answered) => {
                for (event, verdict) in part.iter().zip(answered) {
                    fates.change(*event, |fate| fate.verdict = Some(verdict));
                }
                return;
            }
            Err(ClientError::Refused { number, .. }) if number != ErrorCode::Unavailable as u16 => {
                panic!("a cancel is refused with code {number}");
            }
            Err(_) => part.iter().for_each(|event| fates.change(*event, |fate| fate.is_in_doubt = true)),
        }
        if stop.load(Ordering::Relaxed) {
            return;
        }
    }
}

#[test]
fn a_verdict_is_what_the_subscriber_sees_also_where_the_node_is_killed() {
    let (count, seed): (u64, u64) = (setting("ESCAPEMENT_KILLS", 6), setting("ESCAPEMENT_SEED", 1));
    let dir = tempfile::tempdir().expect("a directory");
    let spec = NodeSpec::steady(NODE, dir.path());
    let mut node = spec.start();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let fates = Arc::new(Fates::default());
    let (stop, verdicts) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (cancelling, stopper, receiving) = runtime.block_on(async {
        let client = Client::connect(patient(node.options())).await.expect("connected");
        let topic = create(&client).await;
        let subscriber =
            client.another().await.expect("connected").subscriber("s", SubscriberOptions::default());
        let stopper = subscriber.stopper();
        let seen = fates.clone();
        let receiving = tokio::spawn(async move {
            let run = subscriber.run(|attempt| {
                seen.change(attempt.task.event, |fate| fate.deliveries += 1);
                AttemptResult::Success
            });
            run.await.expect("the node always comes back");
        });
        let mut cancelling = Vec::new();
        for number in 0..CANCELLERS {
            let client = client.another().await.expect("connected");
            let publisher = client.publisher(PublisherOptions::default()).await.expect("a publisher");
            let random = Rng::new(seed << 8 | number);
            let (fates, stop, verdicts) = (fates.clone(), stop.clone(), verdicts.clone());
            let clients = (client, publisher);
            cancelling.push(tokio::spawn(publish_and_cancel(fates, clients, topic, random, stop, verdicts)));
        }
        (cancelling, stopper, receiving)
    });

    let mut random = Rng::new(seed);
    for _ in 0..count {
        let target = verdicts.load(Ordering::Relaxed) + 50 + random.below(400);
        fates.wait_until("a kill is due", |_| verdicts.load(Ordering::Relaxed) >= target);
        node.kill();
        node = match spec.spawn().ready_within(Duration::from_millis(random.below(120))) {
            Ok(node) => node,
            Err(starting) => {
                starting.kill();
                spec.start()
            }
        };
    }

    stop.store(true, Ordering::Relaxed);
    for cancelling in cancelling {
        runtime.block_on(cancelling).expect("no cancel failed for good");
    }
    fates.wait_until("all that is owed has come", |events| events.values().all(|fate| !fate.is_owed()));
    stopper.stop();
    runtime.block_on(receiving).expect("subscribed to the end");
    node.drain();
    let node = spec.start();
    assert!(node.notice("recovered ").starts_with("0 pending events"), "what has ended stays so");

    let events = fates.events.lock().expect("nothing panics with it");
    let with = |wanted: fn(&CancelVerdict) -> bool| {
        events.values().filter(|fate| fate.verdict.as_ref().is_some_and(wanted)).count()
    };
    let cancelled = with(|verdict| *verdict == CancelVerdict::Cancelled);
    let too_late = with(|verdict| matches!(verdict, CancelVerdict::TooLate { .. }));
    let not_found = with(|verdict| *verdict == CancelVerdict::NotFound);
    let in_doubt = events.values().filter(|fate| fate.is_in_doubt).count();
    say(&format!(
        "{count} kills with ESCAPEMENT_SEED={seed}: {cancelled} CANCELLED, {too_late} TOO_LATE, {not_found} NOT_FOUND, \
         {in_doubt} asked more than once"
    ));
    assert!(cancelled > 0 && too_late + not_found > 0, "both sides of the race were run");
    for (event, fate) in &*events {
        let is_cancelled = fate.verdict == Some(CancelVerdict::Cancelled);
        assert!(!is_cancelled || fate.deliveries == 0, "{event:?} came although it was cancelled: {fate:?}");
    }
}
