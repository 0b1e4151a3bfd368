//! Publishing: single events with receipts, and batches for speed.

mod lane;
mod receipt;
mod stream;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use escapement_protocol::event::{EventError, EventSpec};
use escapement_protocol::frame::ShardCore;
use escapement_protocol::{ShardId, TopicId, ids::shard_of};
use tokio::sync::{Notify, mpsc};

use crate::link::UNPOISONED;
use crate::{Client, ClientError, NodeInfo};
use lane::{LaneState, Reply, TokenReceipt};
pub use receipt::{BatchReceipt, Duplicate, Receipt, ReceiptRun, Refusal};

/// How events are collected, and how many may be unacknowledged.
#[derive(Clone, Copy, Debug)]
pub struct PublisherOptions {
    /// Longest time that a single event waits for company. It waits only while others are under way.
    pub linger: Duration,
    /// A batch of single events leaves with this many.
    pub batch_events: usize,
    /// A batch of single events leaves with this many bytes.
    pub batch_bytes: usize,
    /// Most events without a receipt, for each core of the node; a batch may exceed it once.
    pub in_flight_events_max: usize,
    /// Most bytes without a receipt, for each core of the node; a batch may exceed it once.
    pub in_flight_bytes_max: usize,
}

impl Default for PublisherOptions {
    fn default() -> Self {
        PublisherOptions {
            linger: Duration::from_millis(1),
            batch_events: 256,
            batch_bytes: 32 * 1024,
            in_flight_events_max: 65_536,
            in_flight_bytes_max: 16 * 1024 * 1024,
        }
    }
}

/// What a publisher did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PublisherStats {
    /// Events handed over.
    pub published: u64,
    /// Events accepted by the node.
    pub acknowledged: u64,
    /// Of these, events that had been accepted before: see [`Receipt::duplicate`].
    pub duplicates: u64,
    /// Events refused by the node.
    pub refused: u64,
    /// Events sent again after a lost connection: each may be stored twice.
    pub resent: u64,
    /// Streams opened.
    pub streams: u64,
    /// Events without a receipt now.
    pub in_flight: u64,
}

/// Publishes to one node. Clones publish through the same streams.
///
/// Each core of the node that owns shards has a lane: a stream on a connection that the core itself
/// answers, opened with the first event for it. Events of a lane are stored in the order in which
/// they were handed over.
#[derive(Clone, Debug)]
pub struct Publisher {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: Client,
    lanes: Vec<Arc<Lane>>,
    shard_count: u16,
    /// Lane of each shard.
    shard_lanes: Vec<u16>,
    receipts: Mutex<Option<mpsc::UnboundedReceiver<TokenReceipt>>>,
}

/// One lane and its wake-ups.
#[derive(Debug)]
struct Lane {
    core: u16,
    state: Mutex<LaneState>,
    started: AtomicBool,
    /// There may be something to send.
    work: Notify,
    /// Something was answered.
    answered: Notify,
}

impl Lane {
    fn lock(&self) -> MutexGuard<'_, LaneState> {
        self.state.lock().expect(UNPOISONED)
    }
}

impl Publisher {
    pub(crate) fn new(client: Client, options: PublisherOptions, info: &NodeInfo) -> Self {
        let (sender, receipts) = mpsc::unbounded_channel();
        let lanes = (0..info.core_count)
            .map(|core| {
                Arc::new(Lane {
                    core,
                    state: Mutex::new(LaneState::new(options, sender.clone())),
                    started: AtomicBool::new(false),
                    work: Notify::new(),
                    answered: Notify::new(),
                })
            })
            .collect();
        // A shard that does not serve is nobody's: core 0 answers for it.
        let mut shard_lanes = vec![0; usize::from(info.shard_count)];
        for &ShardCore { shard, core } in &info.shards {
            if let Some(lane) = shard_lanes.get_mut(usize::from(shard.0))
                && core < info.core_count
            {
                *lane = core;
            }
        }
        let receipts = Mutex::new(Some(receipts));
        Publisher {
            inner: Arc::new(Inner { client, lanes, shard_count: info.shard_count, shard_lanes, receipts }),
        }
    }

    /// Publishes one event, and waits until the node has made it durable.
    ///
    /// # Errors
    /// The event is not valid or was refused; or the connection could not be had back in time, in
    /// which case the event may be stored or not.
    pub async fn publish(&self, topic: TopicId, event: &EventSpec<'_>) -> Result<Receipt, ClientError> {
        let answered = self.add(topic, event).await?;
        answered.await.unwrap_or(Err(ClientError::Closed))
    }

    /// Publishes events without waiting in between; the answers are in their order.
    ///
    /// # Errors
    /// An event is not valid: those before it are published, and nobody waits for them.
    pub async fn publish_batch(
        &self,
        topic: TopicId,
        events: &[EventSpec<'_>],
    ) -> Result<Vec<Result<Receipt, ClientError>>, ClientError> {
        let mut waiting = Vec::with_capacity(events.len());
        for event in events {
            waiting.push(self.add(topic, event).await?);
        }
        for lane in &self.inner.lanes {
            lane.lock().seal_lingering();
            lane.work.notify_one();
        }
        let mut answers = Vec::with_capacity(events.len());
        for answered in waiting {
            answers.push(answered.await.unwrap_or(Err(ClientError::Closed)));
        }
        Ok(answers)
    }

    async fn add(
        &self,
        topic: TopicId,
        event: &EventSpec<'_>,
    ) -> Result<tokio::sync::oneshot::Receiver<Result<Receipt, ClientError>>, ClientError> {
        let at = self.lane_of(topic, event.ordering_key, event.source.as_bytes(), event.id.as_bytes());
        loop {
            let lane = self.started(at);
            // Before the check, so that an answer in between is not missed.
            let room = lane.answered.notified();
            let checked = {
                let mut state = lane.lock();
                state.check_room().and_then(|()| Ok(state.add(topic, event)?))
            };
            match checked {
                Err(ClientError::Full) => room.await,
                Err(error) => return Err(error),
                Ok(answered) => {
                    lane.work.notify_one();
                    return Ok(answered);
                }
            }
        }
    }

    /// Number of lanes.
    #[must_use]
    pub fn lanes(&self) -> usize {
        self.inner.lanes.len()
    }

    /// The lane whose core owns the shard of an event with these attributes. Another lane works too,
    /// at the price of a hop inside the node.
    #[must_use]
    pub fn lane_of(&self, topic: TopicId, ordering_key: &[u8], source: &[u8], id: &[u8]) -> usize {
        let Inner { lanes, shard_count, shard_lanes, .. } = &*self.inner;
        if lanes.len() == 1 {
            return 0;
        }
        let ShardId(shard) = shard_of(topic, ordering_key, source, id, *shard_count);
        usize::from(shard_lanes[usize::from(shard)])
    }

    /// Begins a batch of encoded events on a lane: the path for hundreds of thousands of events a second.
    /// The receipt arrives on the channel that [`Publisher::take_receipts`] gives.
    ///
    /// The guard holds the lane's lock: fill and seal it without waiting in between.
    ///
    /// # Errors
    /// [`ClientError::Full`] where too much is unacknowledged: see [`Publisher::ready`]. What ended the lane, if
    /// something did.
    ///
    /// # Panics
    /// If there is no such lane.
    pub fn open(&self, lane: usize, topic: TopicId) -> Result<BatchGuard<'_>, ClientError> {
        let lane = self.started(lane);
        let mut state = lane.lock();
        state.check_room()?;
        state.begin(topic);
        Ok(BatchGuard { lane, state })
    }

    /// Waits until [`Publisher::open`] would find room on the lane.
    ///
    /// # Errors
    /// What ended the lane, if something did.
    ///
    /// # Panics
    /// If there is no such lane.
    pub async fn ready(&self, lane: usize) -> Result<(), ClientError> {
        loop {
            let lane = self.started(lane);
            let room = lane.answered.notified();
            let checked = lane.lock().check_room();
            match checked {
                Err(ClientError::Full) => room.await,
                other => return other,
            }
        }
    }

    /// The receipts of all batches that are sealed with a token, each with its token. Can be taken once.
    #[must_use]
    pub fn take_receipts(&self) -> Option<mpsc::UnboundedReceiver<(u64, Result<BatchReceipt, ClientError>)>> {
        self.inner.receipts.lock().expect(UNPOISONED).take()
    }

    /// Sends what lingers, and waits until every event is answered.
    pub async fn flush(&self) {
        for lane in &self.inner.lanes {
            loop {
                let answered = lane.answered.notified();
                {
                    let mut state = lane.lock();
                    state.seal_lingering();
                    if state.is_idle() {
                        break;
                    }
                }
                lane.work.notify_one();
                answered.await;
            }
        }
    }

    /// What was done so far, over all lanes.
    #[must_use]
    pub fn stats(&self) -> PublisherStats {
        let mut sum = PublisherStats::default();
        for lane in &self.inner.lanes {
            let stats = lane.lock().stats();
            sum.published += stats.published;
            sum.acknowledged += stats.acknowledged;
            sum.duplicates += stats.duplicates;
            sum.refused += stats.refused;
            sum.resent += stats.resent;
            sum.streams += stats.streams;
            sum.in_flight += stats.in_flight;
        }
        sum
    }

    fn started(&self, at: usize) -> &Lane {
        let lane = &self.inner.lanes[at];
        if !lane.started.swap(true, Ordering::Relaxed) {
            tokio::spawn(stream::run(lane.clone(), self.inner.client.clone()));
        }
        lane
    }
}

/// Lanes send what they hold, and end.
impl Drop for Inner {
    fn drop(&mut self) {
        for lane in &self.lanes {
            lane.lock().close();
            lane.work.notify_one();
        }
    }
}

/// A batch that is being filled. Dropped without [`BatchGuard::seal`], it is discarded.
#[derive(Debug)]
pub struct BatchGuard<'a> {
    lane: &'a Lane,
    state: MutexGuard<'a, LaneState>,
}

impl BatchGuard<'_> {
    /// Adds an encoded event, with or without its padding.
    ///
    /// # Panics
    /// If the length is not the one that the event's header states.
    pub fn push(&mut self, event: &[u8]) {
        self.state.writer().push(event);
    }

    /// Encodes an event into the batch.
    ///
    /// # Errors
    /// The event is not valid; the batch is then as it was.
    pub fn push_spec(&mut self, event: &EventSpec<'_>) -> Result<(), EventError> {
        self.state.writer().push_spec(event)
    }

    /// Whether an event of that many bytes still fits the frame.
    #[must_use]
    pub fn fits(&self, event_size_bytes: usize) -> bool {
        self.state.writer_ref().fits(event_size_bytes)
    }

    /// Events so far.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.state.writer_ref().count()
    }

    /// Bytes of the frame so far.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.state.writer_ref().len_bytes()
    }

    /// Hands the batch over for sending. Its receipt comes with `token`; an empty batch has none.
    pub fn seal(mut self, token: u64) {
        self.state.seal(Reply::Channel(token));
        self.lane.work.notify_one();
    }
}

impl Drop for BatchGuard<'_> {
    fn drop(&mut self) {
        self.state.discard();
    }
}
