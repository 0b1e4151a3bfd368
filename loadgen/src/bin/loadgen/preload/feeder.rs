//! One publishing connection of a preload: sends as fast as receipts come, waits as the node asks, and sends again what
//! was refused for now.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use escapement_client::{BatchReceipt, ClientError, Publisher};
use escapement_loadgen::generator::EventTemplate;
use escapement_protocol::{ErrorCode, EventId, FRAME_SIZE_BYTES_MAX, Sequence, TopicId, WallMs};
use hashbrown::HashMap;
use tokio::sync::mpsc::UnboundedReceiver;

use super::PreloadEvents;
use crate::clock::wall_ns;
use crate::judge::BatchEvents;
use crate::receive::UNPOISONED;

/// Least wait after a refusal that says nothing of it.
const RETRY_AFTER_MS_MIN: u32 = 10;

/// What was answered so far, over all publishing connections.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) acknowledged: u64,
    /// Refused for good.
    pub(crate) refused: u64,
    /// Refused for now, and sent again.
    pub(crate) retried: u64,
    /// Refusals of both kinds by the code's number.
    pub(crate) refused_by_code: BTreeMap<u16, u64>,
    /// Why the last one was refused, in the node's words.
    pub(crate) words: Option<Arc<str>>,
    /// Accepted events of the sample.
    pub(crate) sample: Vec<EventId>,
    /// When the last receipt came.
    pub(super) last_at: Option<Instant>,
}

/// Events of one lane that leave in one batch.
#[derive(Debug)]
struct Batch {
    lane: usize,
    events: BatchEvents,
    count: u32,
}

/// A batch that was sent and not answered.
#[derive(Debug)]
struct Flight {
    events: BatchEvents,
    /// Place and due time of the sampled events in it.
    sampled: Vec<(u32, u64)>,
}

pub(super) struct Feeder {
    events: PreloadEvents,
    template: EventTemplate,
    topic: TopicId,
    publisher: Publisher,
    receipts: UnboundedReceiver<(u64, Result<BatchReceipt, ClientError>)>,
    /// The first event that no connection has taken yet.
    next: Arc<AtomicU64>,
    tally: Arc<Mutex<Tally>>,
    batch_max: u64,
    /// Ready to be sent.
    waiting: Vec<Batch>,
    flights: HashMap<u64, Flight>,
    next_token: u64,
    /// Refused for now.
    refused: Vec<u64>,
    /// Nothing is sent before, as the node asked.
    hold_until: Instant,
}

impl Feeder {
    pub(super) fn new(
        events: PreloadEvents,
        topic: TopicId,
        publisher: Publisher,
        next: Arc<AtomicU64>,
        tally: Arc<Mutex<Tally>>,
        batch_max: u32,
    ) -> Result<Self> {
        let template = EventTemplate::new(events.later).context("--payload")?;
        // Leaves room for the frame's own fields.
        let fitting = (FRAME_SIZE_BYTES_MAX - 1_024) / template.size_bytes();
        let receipts = publisher.take_receipts().ok_or_else(|| anyhow!("the receipts are taken already"))?;
        Ok(Feeder {
            events,
            template,
            topic,
            publisher,
            receipts,
            next,
            tally,
            batch_max: u64::from(batch_max).min(fitting as u64).max(1),
            waiting: Vec::new(),
            flights: HashMap::new(),
            next_token: 0,
            refused: Vec::new(),
            hold_until: Instant::now(),
        })
    }

    /// Until every event that it took is answered and none is left to take.
    pub(super) async fn run(mut self) -> Result<()> {
        loop {
            while let Ok((token, receipt)) = self.receipts.try_recv() {
                self.answered(token, &receipt?);
            }
            let held = self.hold_until.saturating_duration_since(Instant::now());
            if held.is_zero() {
                if self.waiting.is_empty() {
                    self.waiting = self.take();
                }
                if self.send_waiting()? {
                    // The connection is served by tasks that may have only this thread.
                    tokio::task::yield_now().await;
                    continue;
                }
            }
            let is_idle = self.flights.is_empty() && self.waiting.is_empty() && self.refused.is_empty();
            if held.is_zero() && is_idle {
                return Ok(());
            }
            tokio::select! {
                receipt = self.receipts.recv() => {
                    let (token, receipt) = receipt.ok_or_else(|| anyhow!("the publisher was closed"))?;
                    self.answered(token, &receipt?);
                }
                () = tokio::time::sleep(held), if !held.is_zero() => {}
            }
        }
    }

    /// The next batches: what was refused comes first. None where nothing is left.
    fn take(&mut self) -> Vec<Batch> {
        if !self.refused.is_empty() {
            let first = self.refused.len().saturating_sub(self.batch_max as usize);
            let numbers = self.refused.split_off(first);
            return self.by_lane(&numbers);
        }
        let first = self.next.fetch_add(self.batch_max, Ordering::Relaxed);
        let count = self.events.count.saturating_sub(first).min(self.batch_max);
        if count == 0 {
            return Vec::new();
        }
        if self.publisher.lanes() == 1 {
            return vec![Batch { lane: 0, events: BatchEvents::From(first), count: count as u32 }];
        }
        let numbers: Vec<u64> = (first..first + count).collect();
        self.by_lane(&numbers)
    }

    fn by_lane(&self, numbers: &[u64]) -> Vec<Batch> {
        let mut lanes = vec![Vec::new(); self.publisher.lanes()];
        for &n in numbers {
            lanes[self.publisher.lane_of(self.topic, &[], &[], &self.events.later.id(n))].push(n);
        }
        let lanes = lanes.into_iter().enumerate().filter(|(_, numbers)| !numbers.is_empty());
        lanes
            .map(|(lane, numbers)| Batch {
                lane,
                count: numbers.len() as u32,
                events: BatchEvents::Listed(numbers),
            })
            .collect()
    }

    /// Sends what has room; false where nothing had.
    fn send_waiting(&mut self) -> Result<bool> {
        let mut any = false;
        for batch in std::mem::take(&mut self.waiting) {
            match self.send(batch)? {
                None => any = true,
                Some(batch) => self.waiting.push(batch),
            }
        }
        Ok(any)
    }

    /// Answers with the batch where too much is unacknowledged.
    fn send(&mut self, batch: Batch) -> Result<Option<Batch>> {
        let mut guard = match self.publisher.open(batch.lane, self.topic) {
            Ok(guard) => guard,
            Err(ClientError::Full) => return Ok(Some(batch)),
            Err(error) => return Err(error.into()),
        };
        let wall_ms = wall_ns() / 1_000_000;
        let mut sampled = Vec::new();
        for index in 0..batch.count {
            let n = batch.events.at(index);
            let due_ms = self.events.due_ms(n, wall_ms);
            if self.events.is_sampled(n) {
                sampled.push((index, due_ms));
            }
            guard.push(self.template.event(n, WallMs(due_ms)));
        }
        self.next_token += 1;
        self.flights.insert(self.next_token, Flight { events: batch.events, sampled });
        guard.seal(self.next_token);
        Ok(None)
    }

    fn answered(&mut self, token: u64, receipt: &BatchReceipt) {
        let Some(flight) = self.flights.remove(&token) else { return };
        let mut tally = self.tally.lock().expect(UNPOISONED);
        let (again, wait) = tally.take(&flight, receipt);
        self.refused.extend(again);
        self.hold_until = self.hold_until.max(Instant::now() + wait);
    }
}

impl Tally {
    /// Counts a receipt; answers the events that are to be sent again, and how long to wait before anything is sent.
    fn take(&mut self, flight: &Flight, receipt: &BatchReceipt) -> (Vec<u64>, Duration) {
        self.last_at = Some(Instant::now());
        for run in &receipt.runs {
            self.acknowledged += u64::from(run.count);
            let places = run.first_index..run.first_index + run.count;
            for (index, due_ms) in flight.sampled.iter().filter(|(index, _)| places.contains(index)) {
                let sequence = Sequence(run.first_sequence.0 + u64::from(index - run.first_index));
                self.sample.push(EventId { shard: run.shard, sequence, schedule_time_ms: *due_ms });
            }
        }
        let (mut again, mut wait_ms) = (Vec::new(), 0);
        for refusal in &receipt.refusals {
            *self.refused_by_code.entry(refusal.number).or_default() += 1;
            if refusal.code().is_some_and(ErrorCode::is_retryable) {
                again.push(flight.events.at(refusal.index));
                wait_ms = wait_ms.max(refusal.retry_after_ms.max(RETRY_AFTER_MS_MIN));
            } else {
                self.refused += 1;
            }
        }
        self.retried += again.len() as u64;
        if receipt.exhausted.is_some() {
            self.words.clone_from(&receipt.exhausted);
        }
        (again, Duration::from_millis(u64::from(wait_ms)))
    }
}

#[cfg(test)]
mod tests {
    use escapement_client::{ReceiptRun, Refusal};
    use escapement_protocol::ShardId;

    use super::*;

    fn receipt(refusals: Vec<Refusal>) -> BatchReceipt {
        let run = |first_index, count, shard, first_sequence| ReceiptRun {
            first_index,
            count,
            shard: ShardId(shard),
            first_sequence: Sequence(first_sequence),
            accepted: WallMs(1),
        };
        BatchReceipt { runs: vec![run(0, 4, 0, 100), run(6, 4, 1, 500)], refusals, ..BatchReceipt::default() }
    }

    fn flight() -> Flight {
        Flight { events: BatchEvents::From(1_000), sampled: vec![(3, 70_000), (8, 80_000)] }
    }

    #[test]
    fn a_sampled_event_is_remembered_by_the_id_that_the_node_gave_it() {
        let mut tally = Tally::default();
        assert_eq!(tally.take(&flight(), &receipt(Vec::new())), (Vec::new(), Duration::ZERO));
        assert_eq!(tally.acknowledged, 8);
        let id = |shard, sequence, schedule_time_ms| EventId {
            shard: ShardId(shard),
            sequence: Sequence(sequence),
            schedule_time_ms,
        };
        assert_eq!(tally.sample, [id(0, 103, 70_000), id(1, 502, 80_000)]);
    }

    #[test]
    fn what_is_refused_for_now_comes_again_after_the_longest_wait_and_the_rest_is_counted_as_refused() {
        let refusal =
            |index, code: ErrorCode, retry_after_ms| Refusal { index, number: code as u16, retry_after_ms };
        let mut tally = Tally::default();
        let (again, wait) = tally.take(
            &flight(),
            &receipt(vec![
                refusal(4, ErrorCode::ResourceExhausted, 250),
                refusal(5, ErrorCode::EventTooLarge, 9_000),
            ]),
        );
        assert_eq!((again, wait), (vec![1_004], Duration::from_millis(250)));
        assert_eq!((tally.acknowledged, tally.retried, tally.refused), (8, 1, 1));
        assert_eq!(tally.refused_by_code.values().sum::<u64>(), 2);
    }

    #[test]
    fn a_refusal_for_now_that_names_no_time_still_waits() {
        let refusal = Refusal { index: 4, number: ErrorCode::ResourceExhausted as u16, retry_after_ms: 0 };
        let (_, wait) = Tally::default().take(&flight(), &receipt(vec![refusal]));
        assert!(!wait.is_zero());
    }
}
