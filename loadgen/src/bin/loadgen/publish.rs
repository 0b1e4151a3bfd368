//! Publishing: by schedule, whatever the node does, or as fast as receipts come.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use escapement_client::{BatchReceipt, ClientError, Publisher};
use escapement_loadgen::Workload;
use escapement_loadgen::generator::{EVENTS_MAX, EventTemplate};
use escapement_protocol::{FRAME_SIZE_BYTES_MAX, TopicId, WallMs};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::clock::{Clock, wall_ns};
use crate::judge::{BatchEvents, Judge};
use crate::receive::UNPOISONED;
use crate::sys::Timer;

/// How long events are collected at high rates before they are sent: the price of a wake-up is shared
/// by more of them, and they fill a frame.
const QUANTUM_HIGH_RATE: Duration = Duration::from_micros(250);
/// The same at lower rates, where latency is the question.
const QUANTUM: Duration = Duration::from_micros(100);
/// Rates from here on are high.
const HIGH_RATE_PER_S: u64 = 300_000;

/// Receipts taken at once.
const RECEIPTS_MAX: usize = 256;

/// Sends the events of a load.
#[derive(Debug)]
pub(crate) struct Sender {
    workload: Workload,
    template: EventTemplate,
    topics: Vec<TopicId>,
    publisher: Publisher,
    judge: Arc<Mutex<Judge>>,
    clock: Clock,
    batch_max: u64,
    /// Events by topic and lane, reused from batch to batch.
    buckets: Vec<Vec<u64>>,
}

impl Sender {
    pub(crate) fn new(
        workload: Workload,
        topics: Vec<TopicId>,
        publisher: Publisher,
        judge: Arc<Mutex<Judge>>,
        clock: Clock,
        batch_max: u32,
    ) -> Result<Self> {
        let template = EventTemplate::new(workload).context("--payload")?;
        // Leaves room for the frame's own fields.
        let fitting = (FRAME_SIZE_BYTES_MAX - 1_024) / template.size_bytes();
        let batch_max = u64::from(batch_max).min(fitting as u64).max(1);
        let buckets = vec![Vec::new(); topics.len() * publisher.lanes()];
        Ok(Sender { workload, template, topics, publisher, judge, clock, batch_max, buckets })
    }

    /// Sends events from `first` to before `end`, at most one batch of them, and says how many: none
    /// where too much is unacknowledged.
    fn send(&mut self, first: u64, end: u64) -> Result<u64> {
        let count = (end - first).min(self.batch_max);
        if first + count >= EVENTS_MAX {
            bail!("the load has more events than ids can number");
        }
        if self.buckets.len() == 1 {
            let sent = self.send_batch(0, 0, count as u32, BatchEvents::From(first))?;
            return Ok(if sent { count } else { 0 });
        }
        for lane in 0..self.publisher.lanes() {
            match self.publisher.open(lane, self.topics[0]) {
                Ok(_) => {}
                Err(ClientError::Full) => return Ok(0),
                Err(error) => return Err(error.into()),
            }
        }
        for n in first..first + count {
            let topic = self.workload.topic(n) as usize;
            let key = self.workload.key(n).map(|key| self.workload.key_bytes(key));
            let key = key.as_ref().map_or(&[][..], |key| &key[..]);
            let lane = self.publisher.lane_of(self.topics[topic], key, &[], &self.workload.id(n));
            self.buckets[topic * self.publisher.lanes() + lane].push(n);
        }
        for at in 0..self.buckets.len() {
            let events = std::mem::take(&mut self.buckets[at]);
            if !events.is_empty() {
                let (topic, lane) = (at / self.publisher.lanes(), at % self.publisher.lanes());
                let count = events.len() as u32;
                // Room was there a moment ago, and a batch may exceed the limit: several of one lane may not.
                if !self.send_batch(topic, lane, count, BatchEvents::Listed(events))? {
                    bail!("--in-flight is too small for --topics: raise it to at least {}", self.batch_max);
                }
            }
        }
        Ok(count)
    }

    fn send_batch(&mut self, topic: usize, lane: usize, count: u32, events: BatchEvents) -> Result<bool> {
        let mut batch = match self.publisher.open(lane, self.topics[topic]) {
            Ok(batch) => batch,
            Err(ClientError::Full) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let now_ns = self.clock.elapsed_ns();
        let mut judge = self.judge.lock().expect(UNPOISONED);
        for index in 0..count {
            let n = events.at(index);
            let intended_ns = judge.intended_ns(n, now_ns);
            let due_ms = self.clock.wall_at_ns(intended_ns) / 1_000_000 + self.workload.delay_ms(n);
            judge.published(n, due_ms, intended_ns, now_ns);
            batch.push(self.template.event(n, WallMs(due_ms)));
        }
        let token = judge.sent(events, count, now_ns);
        drop(judge);
        batch.seal(token);
        Ok(true)
    }
}

/// Sends by the schedule until `end_ns` of the run; answers how many events were sent.
///
/// What the schedule asked for and the node's receipts held back is sent late, and is missed where
/// the end comes first.
pub(crate) async fn by_schedule(senders: &mut [Sender], end_ns: u64) -> Result<u64> {
    let timer = Timer::new().context("timerfd")?;
    let (workload, clock) = (senders[0].workload, senders[0].clock);
    let rate = workload.config().rate_per_s;
    let quantum = if rate >= HIGH_RATE_PER_S { QUANTUM_HIGH_RATE } else { QUANTUM };
    let total = workload.intended_count(end_ns.saturating_sub(1));
    let (mut next, mut turn) = (0, 0);
    loop {
        let now_ns = clock.elapsed_ns();
        let asked = workload.intended_count(now_ns).min(total);
        let mut held_back = 0;
        while next < asked && held_back < senders.len() {
            let sent = senders[turn].send(next, asked)?;
            held_back = if sent == 0 { held_back + 1 } else { 0 };
            next += sent;
            turn = (turn + 1) % senders.len();
        }
        // Time is up after the pass that began at the end or later: what it could not send is missed.
        if next == total || now_ns >= end_ns {
            return Ok(next);
        }
        let now_ns = clock.elapsed_ns();
        let until_next = workload.intended_ns(next).saturating_sub(now_ns);
        timer.sleep(Duration::from_nanos(until_next).max(quantum)).await.context("timerfd")?;
    }
}

/// Sends as fast as receipts come until `end_ns` of the run.
pub(crate) async fn flat_out(mut sender: Sender, next: Arc<Mutex<u64>>, end_ns: u64) -> Result<()> {
    while sender.clock.elapsed_ns() < end_ns {
        for lane in 0..sender.publisher.lanes() {
            sender.publisher.ready(lane).await?;
        }
        let mut next = next.lock().expect(UNPOISONED);
        let first = *next;
        *next += sender.send(first, first + sender.batch_max)?;
    }
    Ok(())
}

/// Reports receipts until the publisher is gone.
pub(crate) async fn take_receipts(
    mut receipts: UnboundedReceiver<(u64, Result<BatchReceipt, ClientError>)>,
    judge: Arc<Mutex<Judge>>,
    clock: Clock,
) -> Result<()> {
    let mut taken = Vec::with_capacity(RECEIPTS_MAX);
    while receipts.recv_many(&mut taken, RECEIPTS_MAX).await > 0 {
        let (now_ns, wall_ms) = (clock.elapsed_ns(), wall_ns() / 1_000_000);
        let mut judge = judge.lock().expect(UNPOISONED);
        for (token, receipt) in taken.drain(..) {
            judge.answered(token, &receipt?, now_ns, wall_ms);
        }
    }
    Ok(())
}
