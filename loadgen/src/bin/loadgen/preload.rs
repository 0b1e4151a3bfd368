//! Events that a node holds while it is measured: published before, at full speed, and counted instead of audited, so
//! that memory does not follow their number.

mod feeder;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use escapement_client::{Client, PublisherOptions, PushHandler, ResultSink, SubscriberOptions};
use escapement_loadgen::{DelayLaw, Workload, WorkloadConfig};
use escapement_protocol::frame::{CancelVerdict, PushBatch};
use escapement_protocol::{AttemptResult, EventId, SubscriptionSettings, TopicSettings};
use tokio::task::JoinSet;

use crate::args::Args;
use crate::clock::wall_ns;
use crate::node_process::{Footprint, NodeProcess};
use crate::receive::UNPOISONED;
use crate::report::{say, thousands};
use feeder::{Feeder, Tally};

/// Due times without `--preload-delay`: of every [`SOON_EVERY`] events one has this law.
const SOON: DelayLaw = DelayLaw::Uniform(15 * 60_000, 60 * 60_000);
/// And the others this one.
const LATER: DelayLaw = DelayLaw::Uniform(60 * 60_000, 30 * 24 * 60 * 60_000);
const SOON_EVERY: u64 = 10;

/// Events whose ids are remembered, so that they can be cancelled at the end.
const SAMPLE_COUNT: u64 = 100;

/// Batches without a receipt hold at most this many events, for each publishing connection.
const IN_FLIGHT: usize = 16_384;

/// A node that accepts nothing for this long accepts nothing more.
const STALLED_AFTER: Duration = Duration::from_secs(60);

/// Sampled events that are due sooner than this are not asked for: their cancellation may come too late.
const CANCEL_AHEAD_MS: u64 = 5_000;

const TICK: Duration = Duration::from_secs(1);

/// The events of a preload: a pure function of the arguments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PreloadEvents {
    count: u64,
    soon: Workload,
    later: Workload,
    /// When all of them are due, in ms of the wall clock; `None` where each has a delay of its own.
    due_ms: Option<u64>,
}

impl PreloadEvents {
    /// Events that all are due at one moment of the wall clock, in ms.
    pub(crate) fn due_at(args: &Args, count: u64, due_ms: u64) -> Self {
        PreloadEvents { due_ms: Some(due_ms), ..PreloadEvents::of(args, count) }
    }

    pub(crate) fn of(args: &Args, count: u64) -> Self {
        let with = |delay| {
            let payload_size_bytes = args.payload;
            Workload::new(WorkloadConfig { seed: args.seed, delay, payload_size_bytes, ..Default::default() })
        };
        let (soon, later) = args.preload_delay.map_or((SOON, LATER), |law| (law, law));
        PreloadEvents { count, soon: with(soon), later: with(later), due_ms: None }
    }

    /// When event `n` is due if it is published at `wall_ms`.
    fn due_ms(&self, n: u64, wall_ms: u64) -> u64 {
        self.due_ms.unwrap_or_else(|| wall_ms + self.delay_ms(n))
    }

    /// Time from publish until event `n` is due, in ms.
    fn delay_ms(&self, n: u64) -> u64 {
        let of = if n.is_multiple_of(SOON_EVERY) { &self.soon } else { &self.later };
        of.delay_ms(n)
    }

    /// Whether event `n` is one of the few that are spread evenly over all and remembered.
    fn is_sampled(&self, n: u64) -> bool {
        let stride = self.count.div_ceil(SAMPLE_COUNT);
        n % stride == stride / 2
    }
}

/// What came of publishing.
#[derive(Debug)]
pub(crate) struct Preloaded {
    pub(crate) asked: u64,
    pub(crate) tally: Tally,
    /// Events that were sent again after a lost connection: each may be stored twice.
    pub(crate) resent: u64,
    /// From the first event to the last receipt.
    pub(crate) elapsed: Duration,
    /// Right after that, when the node may still be moving events from its log to runs; none without a node of our own.
    pub(crate) after: Option<Footprint>,
    /// After the measured run, before a restart.
    pub(crate) at_end: Option<Footprint>,
    /// Events that have come due and were pushed, so far.
    pub(crate) delivered: u64,
    /// Sampled events that were asked to be cancelled, and those that were.
    pub(crate) cancelled: (usize, usize),
}

impl Preloaded {
    /// Whether all of it was accepted and every event of the sample found.
    pub(crate) fn is_kept(&self) -> bool {
        self.tally.acknowledged == self.asked && self.cancelled.0 == self.cancelled.1
    }

    pub(crate) fn events_per_s(&self) -> f64 {
        self.tally.acknowledged as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// The share of `bytes` that falls to each accepted event.
    pub(crate) fn per_event(&self, bytes: u64) -> f64 {
        bytes as f64 / self.tally.acknowledged.max(1) as f64
    }
}

/// What has come due after all.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    count: AtomicU64,
    /// Those that came before they were due.
    early: AtomicU64,
    /// When the last came, in ns of the wall clock.
    last_ns: AtomicU64,
}

impl Arrivals {
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    pub(crate) fn early(&self) -> u64 {
        self.early.load(Ordering::Relaxed)
    }

    pub(crate) fn last_ns(&self) -> u64 {
        self.last_ns.load(Ordering::Relaxed)
    }
}

/// Counts what comes due, and answers it.
#[derive(Debug)]
struct Counter(Arc<Arrivals>);

impl PushHandler for Counter {
    fn pushed(&mut self, batch: &PushBatch<'_>, results: &mut ResultSink) {
        let wall_ns = wall_ns();
        self.0.last_ns.fetch_max(wall_ns, Ordering::Relaxed);
        for (item, _) in batch.iter() {
            self.0.count.fetch_add(1, Ordering::Relaxed);
            let is_early = wall_ns / 1_000_000 < item.schedule_time.0;
            self.0.early.fetch_add(u64::from(is_early), Ordering::Relaxed);
            results.push(item.tag, AttemptResult::Success);
        }
    }
}

/// What a node was given, and who takes what comes due of it.
#[derive(Debug)]
pub(crate) struct Preload {
    preloaded: Preloaded,
    arrivals: Arc<Arrivals>,
    receivers: JoinSet<()>,
}

impl Preload {
    /// Publishes the preload.
    pub(crate) async fn publish(
        args: &Args,
        events: PreloadEvents,
        options: SubscriberOptions,
        mut node: Option<&mut NodeProcess>,
        connected: &Client,
    ) -> Result<Preload> {
        let count = events.count;
        let name = format!("loadgen-{:x}-{:x}-preload", wall_ns() / 1_000_000, args.seed);
        let topic = TopicSettings { name: name.clone(), ..TopicSettings::default() };
        let topic = connected.create_topic(topic).await?.topic;
        let settings = SubscriptionSettings {
            name: format!("{name}-s"),
            topic: name.clone(),
            ..SubscriptionSettings::default()
        };
        connected.create_subscription(settings).await?;
        let arrivals = Arc::new(Arrivals::default());
        let mut receivers = JoinSet::new();
        let subscriber = connected.another().await?.subscriber(&format!("{name}-s"), options);
        let mut counter = Counter(arrivals.clone());
        receivers.spawn(async move {
            // One that can't be had back shows as events that are not delivered.
            let _ = subscriber.run_batches(&mut counter).await;
        });

        let (next, tally) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Tally::default())));
        let (mut feeding, mut publishers) = (JoinSet::new(), Vec::new());
        for _ in 0..args.publishers {
            let options = PublisherOptions {
                in_flight_events_max: args.in_flight.unwrap_or(IN_FLIGHT),
                in_flight_bytes_max: usize::MAX,
                ..PublisherOptions::default()
            };
            let publisher = connected.another().await?.publisher(options).await?;
            let feeder =
                Feeder::new(events, topic, publisher.clone(), next.clone(), tally.clone(), args.batch_max)?;
            feeding.spawn(feeder.run());
            publishers.push(publisher);
        }
        let began = Instant::now();
        let mut progress = Progress::new(args.quiet, count, began);
        while !feeding.is_empty() {
            tokio::select! {
                Some(ended) = feeding.join_next() => ended.context("a publisher of the preload")??,
                () = tokio::time::sleep(TICK) => {}
            }
            if node.as_deref_mut().is_some_and(NodeProcess::has_ended) {
                bail!("the node ended by itself during the preload; why is above");
            }
            let at = tally.lock().expect(UNPOISONED).clone();
            if progress.is_stalled(&at, Instant::now(), node.as_deref()) && !feeding.is_empty() {
                let reason = at.words.as_deref().unwrap_or("no receipt came");
                say(&format!("preload stopped: nothing was accepted for {STALLED_AFTER:?}: {reason}"));
                feeding.shutdown().await;
            }
        }
        let tally = tally.lock().expect(UNPOISONED).clone();
        let elapsed = tally.last_at.map_or(began.elapsed(), |last| last.duration_since(began));
        let after = node.as_deref().map(NodeProcess::footprint).transpose()?;
        let resent = publishers.iter().map(|publisher| publisher.stats().resent).sum();
        let preloaded = Preloaded {
            asked: count,
            tally,
            resent,
            elapsed,
            after,
            at_end: None,
            delivered: 0,
            cancelled: (0, 0),
        };
        Ok(Preload { preloaded, arrivals, receivers })
    }

    /// What has come of it, now and later.
    pub(crate) fn arrivals(&self) -> Arc<Arrivals> {
        self.arrivals.clone()
    }

    /// Looks at the node before it is restarted or ended.
    pub(crate) fn look(&mut self, node: &NodeProcess) -> Result<()> {
        self.preloaded.at_end = Some(node.footprint()?);
        Ok(())
    }

    /// Ids of sampled events that are not due soon.
    pub(crate) fn sample(&self) -> Vec<EventId> {
        let least = wall_ns() / 1_000_000 + CANCEL_AHEAD_MS;
        let sample = self.preloaded.tally.sample.iter().copied();
        sample.filter(|event| event.schedule_time_ms > least).collect()
    }

    /// Events that were accepted and not pushed so far, and how many more there may be since they were sent twice.
    pub(crate) fn pending(&self) -> (u64, u64) {
        let delivered = self.arrivals.count();
        (self.preloaded.tally.acknowledged.saturating_sub(delivered), self.preloaded.resent)
    }

    /// Lets go of the connections to a node that is about to be ended.
    pub(crate) async fn disconnect(&mut self) {
        self.receivers.shutdown().await;
    }

    /// Cancels the sample, which shows that its events are still there; `before` of them were cancelled already.
    pub(crate) async fn finish(mut self, client: &Client, before: &[EventId]) -> Result<Preloaded> {
        let mut sample = self.sample();
        sample.retain(|event| !before.contains(event));
        let verdicts = client.cancel(&sample).await.context("cancelling the sample of the preload")?;
        let cancelled = verdicts.iter().filter(|verdict| **verdict == CancelVerdict::Cancelled).count();
        self.disconnect().await;
        self.preloaded.cancelled = (sample.len() + before.len(), cancelled + before.len());
        self.preloaded.delivered = self.arrivals.count();
        Ok(self.preloaded)
    }
}

/// A line every second, and whether anything happens at all.
#[derive(Debug)]
struct Progress {
    quiet: bool,
    count: u64,
    last: u64,
    printed_at: Instant,
    accepted_at: Instant,
}

impl Progress {
    fn new(quiet: bool, count: u64, now: Instant) -> Self {
        Progress { quiet, count, last: 0, printed_at: now, accepted_at: now }
    }

    /// True once nothing was accepted for too long.
    fn is_stalled(&mut self, tally: &Tally, now: Instant, node: Option<&NodeProcess>) -> bool {
        let accepted = tally.acknowledged - self.last;
        if !self.quiet {
            let rate = accepted as f64 / now.duration_since(self.printed_at).as_secs_f64().max(1e-9);
            let memory = node.map_or(0, |node| node.sample().rss_anon_bytes);
            say(&format!(
                "preload  {} of {}  {}/s  sent again {}  node memory {:.0} MiB",
                thousands(tally.acknowledged),
                thousands(self.count),
                thousands(rate as u64),
                thousands(tally.retried),
                memory as f64 / 1024.0 / 1024.0,
            ));
        }
        (self.last, self.printed_at) = (tally.acknowledged, now);
        if accepted > 0 {
            self.accepted_at = now;
        }
        now.duration_since(self.accepted_at) >= STALLED_AFTER
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn events(line: &str, count: u64) -> PreloadEvents {
        PreloadEvents::of(&Args::try_parse_from(line.split(' ')).expect("valid"), count)
    }

    #[test]
    fn a_tenth_is_due_within_the_hour_and_nothing_before_a_quarter_of_it() {
        let events = events("loadgen", 10_000);
        let delays: Vec<u64> = (0..10_000).map(|n| events.delay_ms(n)).collect();
        assert!(delays.iter().all(|ms| (900_000..=2_592_000_000).contains(ms)));
        assert_eq!(delays.iter().filter(|ms| **ms < 3_600_000).count(), 1_000);
    }

    #[test]
    fn a_law_that_is_asked_for_holds_for_every_event() {
        let events = events("loadgen --preload 1k --preload-delay uniform:2h..3h", 1_000);
        assert!((0..1_000).all(|n| (7_200_000..=10_800_000).contains(&events.delay_ms(n))));
    }

    #[test]
    fn the_sample_is_bounded_and_spread_over_all_events() {
        for count in [1, 7, 100, 101, 12_345, 1_000_000] {
            let events = events("loadgen", count);
            let sample: Vec<u64> = (0..count).filter(|n| events.is_sampled(*n)).collect();
            assert!((1..=100).contains(&sample.len()), "{count}: {}", sample.len());
            assert!(
                sample[0] <= count / 100 + 1 && sample[sample.len() - 1] >= count - count / 50 - 1,
                "{count}"
            );
        }
    }

    #[test]
    fn the_tenth_that_is_due_soon_is_in_the_sample_too() {
        let events = events("loadgen", 100_000);
        let soon = (0..100_000).filter(|n| events.is_sampled(*n)).filter(|n| events.delay_ms(*n) < 3_600_000);
        assert!(soon.count() > 0);
    }

    #[test]
    fn a_node_has_stalled_once_it_has_accepted_nothing_for_long_and_not_while_it_accepts_a_little() {
        let start = Instant::now();
        let mut progress = Progress::new(true, 1_000, start);
        let accepted = |acknowledged| Tally { acknowledged, ..Tally::default() };
        assert!(!progress.is_stalled(&accepted(1), start + STALLED_AFTER, None));
        let almost = start + 2 * STALLED_AFTER - TICK;
        assert!(!progress.is_stalled(&accepted(1), almost, None));
        assert!(!progress.is_stalled(&accepted(2), almost + TICK, None));
        assert!(progress.is_stalled(&accepted(2), almost + TICK + STALLED_AFTER, None));
    }

    #[test]
    fn a_preload_is_kept_where_all_was_accepted_and_the_sample_found() {
        let tally = Tally { acknowledged: 1_000, ..Tally::default() };
        let preloaded = |asked, cancelled| Preloaded {
            asked,
            tally: tally.clone(),
            resent: 0,
            elapsed: Duration::from_secs(2),
            after: None,
            at_end: None,
            delivered: 0,
            cancelled,
        };
        assert!(preloaded(1_000, (10, 10)).is_kept());
        assert!(!preloaded(1_001, (10, 10)).is_kept());
        assert!(!preloaded(1_000, (10, 9)).is_kept());
        let figures = preloaded(1_000, (0, 0));
        assert_eq!((figures.events_per_s(), figures.per_event(200_000)), (500.0, 200.0));
    }
}
