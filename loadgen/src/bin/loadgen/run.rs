//! Runs, from an empty node to a verdict.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use escapement_client::{Client, ClientError, ClientStats, ConnectOptions, Publisher, PublisherOptions};
use escapement_client::{SubscriberOptions, Trust};
use escapement_loadgen::Workload;
use escapement_loadgen::auditor::Report;
use escapement_protocol::{SubscriptionSettings, TopicId, TopicSettings};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::args::Args;
use crate::burst;
use crate::clock::{Clock, wall_ns};
use crate::judge::Judge;
use crate::measure::Distributions;
use crate::node_process::{NodeProcess, NodeSample, own_cpu, stolen};
use crate::preload::{Preload, PreloadEvents};
use crate::publish::{Sender, by_schedule, flat_out, take_receipts};
use crate::receive::{Receiver, UNPOISONED};
use crate::report::{self, Outcome, Progress, Results};
use crate::restart::restart;
use crate::slo::Slo;
use crate::sys;

/// Bytes that may be under way to a subscriber.
pub(crate) const CREDIT_BYTES: u32 = 32 * 1024 * 1024;

/// How long outstanding events are waited for beyond the longest delay.
const DRAIN_WITHIN: Duration = Duration::from_secs(30);
/// The same, in addition, where attempts fail by plan and come again after backing off.
const RETRIES_WITHIN: Duration = Duration::from_secs(60);

/// Time between connecting and the first event.
const LEAD: Duration = Duration::from_millis(20);

/// Runs a load. True where every promise and objective was kept.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let (node_cpus, own_cpus) = split_cpus(args)?;
    let node = match args.addr {
        Some(_) => None,
        None => Some(NodeProcess::start(args, &node_cpus)?),
    };
    if node.is_some() {
        sys::pin(&sys::cpu_set(&own_cpus)).context("keeping the generator on its CPUs")?;
    }
    // On one CPU a second thread would only take turns with the first.
    let mut runtime = match own_cpus.len() {
        0 | 1 => tokio::runtime::Builder::new_current_thread(),
        more => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(more.min(4));
            builder
        }
    };
    let runtime = runtime.enable_all().build().context("tokio's runtime")?;
    let outcome = runtime.block_on(async {
        let mut interrupted = signal(SignalKind::interrupt()).context("SIGINT")?;
        let mut ended = signal(SignalKind::terminate()).context("SIGTERM")?;
        tokio::select! {
            outcome = whole(args, node) => outcome,
            _ = interrupted.recv() => bail!("interrupted"),
            _ = ended.recv() => bail!("ended by a signal"),
        }
    })?;
    report::write(args, &outcome)?;
    Ok(outcome.is_kept())
}

/// The measured run; with a preload, before and on top of it, and what it leads to.
async fn whole(args: &Args, mut node: Option<NodeProcess>) -> Result<Results> {
    let mut results = Results::default();
    let mut connected = Client::connect(connect_options(args, node.as_ref())?).await?;
    if let Some(count) = args.burst {
        return burst::run(args, count, node.as_mut(), &connected).await;
    }
    let Some(count) = args.preload else {
        results.outcome = Some(Run::load(args, node.as_mut(), &connected, &args.slo, true).await?);
        return Ok(results);
    };
    let head = |what: &str| {
        if !args.quiet {
            report::say(what);
        }
    };
    let is_measured = !args.duration.is_zero();
    if is_measured {
        head("before the preload:");
        results.before = Some(Run::load(args, node.as_mut(), &connected, &[], false).await?);
    }
    let mut preload = {
        let events = PreloadEvents::of(args, count);
        Preload::publish(args, events, SubscriberOptions::default(), node.as_mut(), &connected).await?
    };
    if is_measured {
        head("on top of the preload:");
        results.outcome = Some(Run::load(args, node.as_mut(), &connected, &args.slo, true).await?);
    }
    if let Some(node) = &node {
        preload.look(node)?;
    }
    let mut cancelled = None;
    if let Some(node) = node.as_mut().filter(|_| args.restart) {
        let restarted;
        (connected, restarted, cancelled) = restart(args, node, &mut preload, connected).await?;
        results.restart = Some(restarted);
    }
    results.preload = Some(preload.finish(&connected, cancelled.as_slice()).await?);
    Ok(results)
}

/// CPUs for the node and for this process. One CPU is shared.
fn split_cpus(args: &Args) -> Result<(Vec<usize>, Vec<usize>)> {
    let allowed = sys::allowed_cpus().context("the CPUs of this process")?;
    if args.addr.is_some() || allowed.len() < 2 {
        return Ok((allowed.clone(), allowed));
    }
    let node = args.node_cpus.unwrap_or(allowed.len() / 2).clamp(1, allowed.len() - 1);
    let (node, own) = allowed.split_at(node);
    Ok((node.to_vec(), own.to_vec()))
}

/// A run under way.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    args: &'a Args,
    node: Option<&'a mut NodeProcess>,
    objectives: &'a [Slo],
    judge: Arc<Mutex<Judge>>,
    clock: Clock,
    all: Distributions,
    hlog: Option<report::IntervalLog>,
    progress: Progress,
    /// Receivers and receipt takers: none of them ends by itself.
    tasks: JoinSet<Result<()>>,
}

/// What is looked at when the measured time begins and ends.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mark {
    pub(crate) at_ns: u64,
    pub(crate) report: Report,
    pub(crate) node: NodeSample,
    pub(crate) own_cpu: Duration,
    pub(crate) stolen: Duration,
}

impl<'a> Run<'a> {
    /// Makes one run on topics of its own, and judges it by these objectives.
    pub(crate) async fn load(
        args: &'a Args,
        node: Option<&'a mut NodeProcess>,
        connected: &Client,
        objectives: &'a [Slo],
        is_logged: bool,
    ) -> Result<Outcome> {
        let (topics, subscriptions) = create(args, connected).await?;
        let mut judge = Judge::new(args.workload(), args.max_concurrent);
        judge.note_from(args.noted_from_ms.unwrap_or(u64::MAX));
        let judge = Arc::new(Mutex::new(judge));
        let mut tasks = JoinSet::new();

        let mut receiving = Vec::new();
        for _ in 0..args.subscribers {
            let client = connected.another().await?;
            let options = SubscriberOptions { credit_tasks: args.credit, credit_bytes: CREDIT_BYTES };
            for subscription in &subscriptions {
                let subscriber = client.subscriber(subscription, options);
                let mut receiver = Receiver::new(judge.clone());
                tasks.spawn(async move { Ok(subscriber.run_batches(&mut receiver).await?) });
            }
            receiving.push(client);
        }
        let mut publishing = Vec::new();
        let mut publishers = Vec::new();
        for _ in 0..args.publishers {
            let client = connected.another().await?;
            let options = PublisherOptions {
                in_flight_events_max: args.in_flight(),
                in_flight_bytes_max: usize::MAX,
                ..PublisherOptions::default()
            };
            publishers.push(client.publisher(options).await?);
            publishing.push(client);
        }
        // Path discovery and the subscribers' sessions get a moment before the first event.
        tokio::time::sleep(LEAD).await;

        let clock = Clock::start();
        let hlog = args.hlog.as_deref().filter(|_| is_logged);
        let hlog = hlog.map(|path| report::IntervalLog::create(path, clock)).transpose()?;
        let progress = Progress::new(args.quiet);
        let all = Distributions::new();
        let mut run = Run { args, node, objectives, judge, clock, all, hlog, progress, tasks };
        for publisher in &publishers {
            if let Some(receipts) = publisher.take_receipts() {
                run.tasks.spawn(take_receipts(receipts, run.judge.clone(), clock));
            }
        }
        let (begin, end, sent) = run.publish(&topics, &publishers).await?;
        let drained = run.drain(&publishers).await?;
        run.tick()?;
        let datagrams = Datagrams { received: sum(&receiving).await, published: sum(&publishing).await };
        run.outcome(begin, end, sent, drained, &publishers, datagrams)
    }

    /// Offers the load; answers the marks at begin and end of the measured time, and the events sent.
    async fn publish(&mut self, topics: &[TopicId], publishers: &[Publisher]) -> Result<(Mark, Mark, u64)> {
        let (args, clock) = (self.args, self.clock);
        let workload = Workload::new(args.workload());
        let mut senders = publishers
            .iter()
            .map(|p| {
                Sender::new(workload, topics.to_vec(), p.clone(), self.judge.clone(), clock, args.batch_max)
            })
            .collect::<Result<Vec<_>>>()?;
        let warmup = args.warmup();
        let end_ns = (warmup + args.duration).as_nanos() as u64;
        let next = Arc::new(Mutex::new(0));
        let mut sending = JoinSet::new();
        let scheduled = args.rate_per_s() > 0;
        if scheduled {
            self.judge().measure_from(workload.intended_count(warmup.as_nanos() as u64).saturating_sub(1));
            let next = next.clone();
            sending.spawn(async move {
                *next.lock().expect(UNPOISONED) = by_schedule(&mut senders, end_ns).await?;
                Ok(())
            });
        } else {
            for sender in senders {
                sending.spawn(flat_out(sender, next.clone(), end_ns));
            }
        }
        let mut begin = None;
        while !sending.is_empty() {
            let until_tick = self.progress.until_next();
            let elapsed = Duration::from_nanos(clock.elapsed_ns());
            let until_begin = if begin.is_none() { warmup.saturating_sub(elapsed) } else { Duration::MAX };
            tokio::select! {
                Some(sent) = sending.join_next() => sent.context("a sender")??,
                Some(ended) = self.tasks.join_next() => return Err(unexpected(ended)),
                () = tokio::time::sleep(until_tick.min(until_begin)) => {}
            }
            if begin.is_none() && Duration::from_nanos(clock.elapsed_ns()) >= warmup {
                if !scheduled {
                    self.judge().measure_from(*next.lock().expect(UNPOISONED));
                }
                begin = Some(self.mark());
            }
            self.tick_if_due()?;
        }
        let sent = *next.lock().expect(UNPOISONED);
        Ok((begin.unwrap_or_default(), self.mark(), sent))
    }

    /// Waits for receipts and pushes that are outstanding; false where not all of them came.
    async fn drain(&mut self, publishers: &[Publisher]) -> Result<bool> {
        let mut within = DRAIN_WITHIN + Duration::from_millis(self.args.delay.longest_ms());
        if self.args.fail > 0 {
            within += RETRIES_WITHIN;
        }
        let deadline = tokio::time::Instant::now() + within;
        loop {
            let unanswered: u64 = publishers.iter().map(|publisher| publisher.stats().in_flight).sum();
            let (flights, outstanding) = {
                let judge = self.judge();
                (judge.flights(), judge.report().outstanding)
            };
            if unanswered == 0 && flights == 0 && outstanding == 0 {
                return Ok(true);
            }
            if tokio::time::Instant::now() >= deadline {
                return Ok(false);
            }
            tokio::select! {
                Some(ended) = self.tasks.join_next() => return Err(unexpected(ended)),
                () = tokio::time::sleep(Duration::from_millis(10)) => {}
            }
            self.tick_if_due()?;
        }
    }

    fn judge(&self) -> std::sync::MutexGuard<'_, Judge> {
        self.judge.lock().expect(UNPOISONED)
    }

    fn mark(&self) -> Mark {
        Mark {
            at_ns: self.clock.elapsed_ns(),
            report: self.judge().report().clone(),
            node: self.node.as_deref().map(NodeProcess::sample).unwrap_or_default(),
            own_cpu: own_cpu(),
            stolen: stolen(),
        }
    }

    fn tick_if_due(&mut self) -> Result<()> {
        if self.progress.until_next().is_zero() { self.tick() } else { Ok(()) }
    }

    /// Takes the last second's distributions and prints a line.
    fn tick(&mut self) -> Result<()> {
        if self.node.as_deref_mut().is_some_and(NodeProcess::has_ended) {
            bail!("the node ended by itself; why is above");
        }
        let mark = self.mark();
        let Run { judge, all, hlog, progress, .. } = self;
        let mut written = Ok(());
        judge.lock().expect(UNPOISONED).take_second(all, |second| {
            progress.print(&mark, second);
            written = hlog.as_mut().map_or(Ok(()), |hlog| hlog.write(second, mark.at_ns));
        });
        written
    }

    fn outcome(
        self,
        begin: Mark,
        end: Mark,
        sent: u64,
        drained: bool,
        publishers: &[Publisher],
        datagrams: Datagrams,
    ) -> Result<Outcome> {
        let last = self.mark();
        let workload = Workload::new(self.args.workload());
        let judge = self.judge();
        let asked = workload.intended_count((self.args.warmup() + self.args.duration).as_nanos() as u64 - 1);
        Ok(Outcome {
            has_node: self.node.is_some(),
            begin,
            end,
            missed: asked.saturating_sub(sent),
            drained,
            lost_examples: judge.outstanding_examples(),
            refused_by_code: judge.refused_by_code.clone(),
            noted: judge.noted.clone(),
            resent: publishers.iter().map(|publisher| publisher.stats().resent).sum(),
            datagrams,
            last,
            missed_objectives: report::missed_objectives(self.objectives, &self.all),
            all: self.all.clone(),
        })
    }
}

/// What connections sent and received, by their purpose.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Datagrams {
    pub(crate) received: ClientStats,
    pub(crate) published: ClientStats,
}

async fn sum(clients: &[Client]) -> ClientStats {
    let mut sum = ClientStats::default();
    for client in clients {
        let stats = client.stats().await;
        sum.datagrams_sent += stats.datagrams_sent;
        sum.datagrams_received += stats.datagrams_received;
        sum.bytes_sent += stats.bytes_sent;
        sum.bytes_received += stats.bytes_received;
        sum.packets_lost += stats.packets_lost;
        sum.mtu = sum.mtu.max(stats.mtu);
    }
    sum
}

fn unexpected(ended: Result<Result<()>, tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok(Err(error)) => error.context("a connection of the load ended"),
        Ok(Ok(())) => anyhow::anyhow!("a connection of the load ended without being asked to"),
        Err(panic) => panic.into(),
    }
}

pub(crate) fn connect_options(args: &Args, node: Option<&NodeProcess>) -> Result<ConnectOptions> {
    let (addr, trust) = match (node, args.addr, args.cert_sha256) {
        (Some(node), _, _) => (node.addr, Trust::Pin(node.cert_sha256)),
        (None, Some(addr), Some(sha256)) => (addr, Trust::Pin(sha256)),
        (None, Some(addr), None) => (addr, Trust::System),
        (None, None, _) => bail!("there is no node"),
    };
    let mut options = ConnectOptions::new(addr, trust);
    options.server_name = addr.ip().to_string();
    options.client_name = concat!("escapement-loadgen/", env!("CARGO_PKG_VERSION")).to_owned();
    options.transport.mtu_upper_bound = args.mtu();
    Ok(options)
}

/// Creates the load's topics, each with one subscription, under names that no other run has.
async fn create(args: &Args, client: &Client) -> Result<(Vec<TopicId>, Vec<String>), ClientError> {
    let run = format!("loadgen-{:x}-{:x}", wall_ns() / 1_000_000, args.seed);
    let (mut topics, mut subscriptions) = (Vec::new(), Vec::new());
    for n in 0..args.topics {
        let topic = format!("{run}-{n}");
        let settings = TopicSettings { name: topic.clone(), ..TopicSettings::default() };
        topics.push(client.create_topic(settings).await?.topic);
        let name = format!("{topic}-s");
        let settings = SubscriptionSettings {
            name: name.clone(),
            topic,
            max_concurrent_dispatches: args.max_concurrent,
            // Planned failures are to come again while the run lasts.
            min_backoff_ms: 100,
            max_backoff_ms: 1_000,
            ..SubscriptionSettings::default()
        };
        client.create_subscription(settings).await?;
        subscriptions.push(name);
    }
    Ok((topics, subscriptions))
}
