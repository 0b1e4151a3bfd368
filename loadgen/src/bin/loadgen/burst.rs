//! Many events that are due at one instant, beside a load whose lateness is looked at.

use std::time::Duration;

use anyhow::{Result, bail};
use escapement_client::{Client, SubscriberOptions};
use escapement_loadgen::DelayLaw;

use crate::args::Args;
use crate::clock::wall_ns;
use crate::node_process::NodeProcess;
use crate::preload::{Preload, PreloadEvents};
use crate::report::{self, Results};
use crate::run::{CREDIT_BYTES, Run};
use crate::slo::Metric;
use crate::units::Rate;

/// How long the node's capacity is measured at most.
const CAPACITY_WITHIN: Duration = Duration::from_secs(10);
/// Publishing the burst is given twice the time that the node's capacity says, and this.
const SPARE: Duration = Duration::from_secs(5);
/// The burst may take this many times as long as the node's capacity says until the measured time ends.
const WINDOW_FACTOR: f64 = 2.0;
const WINDOW_MIN: Duration = Duration::from_secs(2);
/// How long what is left of the burst is waited for after that.
const DRAIN_WITHIN: Duration = Duration::from_secs(120);

/// What came of a burst.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Burst {
    pub(crate) asked: u64,
    pub(crate) accepted: u64,
    pub(crate) delivered: u64,
    pub(crate) early: u64,
    /// From the due instant to the arrival of the last push.
    pub(crate) drained: Duration,
    /// Events that were published and completed a second, as fast as they were taken.
    pub(crate) capacity_per_s: f64,
    /// The 99th percentile of the load's lateness alone.
    pub(crate) usual: Duration,
    /// And of what was due while the burst was delivered: from its due instant to its last arrival.
    pub(crate) beside: Duration,
    /// How many events that were.
    pub(crate) beside_count: u64,
}

impl Burst {
    /// Whether all was accepted, and came, and nothing before its time.
    pub(crate) fn is_kept(&self) -> bool {
        self.accepted == self.asked && self.delivered >= self.accepted && self.early == 0
    }

    pub(crate) fn per_s(&self) -> f64 {
        self.delivered as f64 / self.drained.as_secs_f64().max(1e-9)
    }

    /// How long the node's capacity says that it takes.
    pub(crate) fn capacity_time(&self) -> Duration {
        Duration::from_secs_f64(self.accepted as f64 / self.capacity_per_s.max(1.0))
    }
}

/// Measures what the node can do, the load alone, and the load beside a burst of `count` events.
pub(crate) async fn run(
    args: &Args,
    count: u64,
    mut node: Option<&mut NodeProcess>,
    connected: &Client,
) -> Result<Results> {
    let head = |what: &str| {
        if !args.quiet {
            report::say(what);
        }
    };
    head("as fast as it goes:");
    let flat_out = Args {
        rate: Rate::Max,
        delay: DelayLaw::Fixed(0),
        duration: args.duration.min(CAPACITY_WITHIN),
        warmup: Some(Duration::from_secs(1)),
        ..args.clone()
    };
    let capacity = Run::load(&flat_out, node.as_deref_mut(), connected, &[], false).await?;
    let capacity_per_s = capacity.completed_per_s();
    head("without the burst:");
    let before = Run::load(args, node.as_deref_mut(), connected, &[], false).await?;

    head("the burst:");
    let expected = Duration::from_secs_f64(count as f64 / capacity_per_s.max(1.0));
    let longest = Duration::from_millis(args.delay.longest_ms());
    let lead = expected * 2 + longest + SPARE;
    let due_ms = (wall_ns() / 1_000_000) + lead.as_millis() as u64;
    let options = SubscriberOptions { credit_tasks: args.credit, credit_bytes: CREDIT_BYTES };
    let events = PreloadEvents::due_at(args, count, due_ms);
    let burst = Preload::publish(args, events, options, node.as_deref_mut(), connected).await?;
    let arrivals = burst.arrivals();
    let left = Duration::from_nanos((due_ms * 1_000_000).saturating_sub(wall_ns()));
    // What is due with the burst is sent up to the longest delay before.
    let Some(warmup) = left.checked_sub(longest).filter(|warmup| *warmup > Duration::from_secs(1)) else {
        bail!(
            "the burst took {:?} longer to publish than {lead:?}: make it smaller",
            SPARE.saturating_sub(left)
        );
    };
    head("beside the burst:");
    let window = expected.mul_f64(WINDOW_FACTOR).max(WINDOW_MIN);
    let noted_from_ms = Some(due_ms);
    let beside = Args { warmup: Some(warmup), duration: longest + window, noted_from_ms, ..args.clone() };
    let outcome = Run::load(&beside, node, connected, &args.slo, true).await?;
    let deadline = tokio::time::Instant::now() + DRAIN_WITHIN;
    let burst = loop {
        let (pending, _) = burst.pending();
        if pending == 0 || tokio::time::Instant::now() >= deadline {
            break burst.finish(connected, &[]).await?;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let usual = Duration::from_micros(before.all.of(Metric::Lateness).value_at_quantile(0.99));
    let last_ms = arrivals.last_ns() / 1_000_000;
    let noted = outcome.noted.iter().filter(|noted| noted.due_ms <= last_ms);
    let mut lateness_ns: Vec<u64> = noted.map(|noted| noted.lateness_ns).collect();
    lateness_ns.sort_unstable();
    let beside_ns = lateness_ns.get(lateness_ns.len() * 99 / 100).copied().unwrap_or_default();
    let burst = Burst {
        asked: count,
        accepted: burst.tally.acknowledged,
        delivered: burst.delivered,
        early: arrivals.early(),
        drained: Duration::from_nanos(arrivals.last_ns().saturating_sub(due_ms * 1_000_000)),
        capacity_per_s,
        usual,
        beside: Duration::from_nanos(beside_ns),
        beside_count: lateness_ns.len() as u64,
    };
    Ok(Results { before: Some(before), outcome: Some(outcome), burst: Some(burst), ..Results::default() })
}
