//! Events on their way to one core of the node: collected, sealed, sent, acknowledged.
//!
//! A lane is one stream at a time. Its state is behind a lock that callers and the stream's task
//! share; nobody waits while holding it.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use escapement_protocol::event::{Due, EventError, EventSpec};
use escapement_protocol::frame::{
    AckDuplicate, AckRun, Events, Frame, FrameKind, PREFIX_SIZE_BYTES, PublishAck, PublishBatch,
    PublishBatchWriter, encode_publish_batch, parse_body,
};
use escapement_protocol::{ErrorCode, FrameError, TopicId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::{BatchReceipt, Duplicate, PublisherOptions, PublisherStats, Receipt};
use crate::ClientError;

/// Frames handed to the stream at once: enough to fill several datagrams, few enough to stay fresh.
const FRAMES_OUT_MAX: usize = 64;

/// Whom a batch's answers go to.
#[derive(Debug)]
pub(super) enum Reply {
    /// Whoever waits for each event, in the order of the events.
    Each(Vec<Waiter>),
    /// The publisher's channel of receipts, under this number.
    Channel(u64),
}

/// Someone who waits for one event.
#[derive(Debug)]
pub(super) struct Waiter {
    due: Due,
    answer: oneshot::Sender<Result<Receipt, ClientError>>,
}

/// What the publisher's channel of receipts carries.
pub(super) type TokenReceipt = (u64, Result<BatchReceipt, ClientError>);

/// A batch that takes no more events.
#[derive(Debug)]
struct Sealed {
    frame: Bytes,
    /// Number on the stream of its first event that is in `frame`.
    first_item: u64,
    /// Events in `frame`.
    count: u32,
    /// Events before them that were answered on an earlier stream, and are not in `frame` any more.
    answered: u32,
    receipt: BatchReceipt,
    reply: Reply,
}

impl Sealed {
    fn end(&self) -> u64 {
        self.first_item + u64::from(self.count)
    }

    /// Gives the events from number `from` on the old stream new numbers on another.
    fn renumber(&mut self, from: u64, first_item: u64) -> Result<(), FrameError> {
        let skip = from.saturating_sub(self.first_item) as u32;
        if skip == 0 && self.first_item == first_item {
            return Ok(());
        }
        let body = self.frame.get(PREFIX_SIZE_BYTES..).unwrap_or_default();
        let Frame::PublishBatch(batch) = parse_body(FrameKind::PublishBatch, body)? else {
            return Err(FrameError::misplaced(
                FrameKind::PublishBatch,
                "a sealed batch is one frame of its kind",
            ));
        };
        let skipped: usize = batch.events.iter().take(skip as usize).map(<[u8]>::len).sum();
        let events = Events::new(&batch.events.bytes()[skipped..], self.count - skip).unwrap_or_default();
        let mut frame = Vec::with_capacity(self.frame.len());
        encode_publish_batch(&PublishBatch { topic: batch.topic, first_item, events }, &mut frame)?;
        self.frame = frame.into();
        self.first_item = first_item;
        self.count -= skip;
        self.answered += skip;
        Ok(())
    }

    fn resolve(self, receipts: &mpsc::UnboundedSender<TokenReceipt>) {
        // Whoever asked may have stopped waiting: then nobody is told.
        match self.reply {
            Reply::Channel(token) => {
                let _ = receipts.send((token, Ok(self.receipt)));
            }
            Reply::Each(waiters) => {
                for (index, waiter) in (0..).zip(waiters) {
                    let answer = match self.receipt.answer(index, waiter.due) {
                        Some(Ok(receipt)) => Ok(receipt),
                        Some(Err(refusal)) => Err(ClientError::Refused {
                            number: refusal.number,
                            retry_after_ms: refusal.retry_after_ms,
                            message: self.receipt.words_of(refusal).to_owned(),
                        }),
                        None => Err(ClientError::lost("the event was not answered")),
                    };
                    let _ = waiter.answer.send(answer);
                }
            }
        }
    }

    fn fail(self, error: &ClientError, receipts: &mpsc::UnboundedSender<TokenReceipt>) {
        match self.reply {
            Reply::Channel(token) => {
                let _ = receipts.send((token, Err(error.clone())));
            }
            Reply::Each(waiters) => fail_waiters(waiters, error),
        }
    }
}

fn fail_waiters(waiters: Vec<Waiter>, error: &ClientError) {
    for waiter in waiters {
        let _ = waiter.answer.send(Err(error.clone()));
    }
}

/// The batch of single events that is being collected.
#[derive(Debug)]
struct Lingering {
    waiters: Vec<Waiter>,
    since: Instant,
}

/// Everything that one lane holds.
#[derive(Debug)]
pub(super) struct LaneState {
    options: PublisherOptions,
    receipts: mpsc::UnboundedSender<TokenReceipt>,
    writer: PublishBatchWriter,
    topic: TopicId,
    lingering: Option<Lingering>,
    queued: VecDeque<Sealed>,
    sent: VecDeque<Sealed>,
    /// Number of the next event that is collected.
    next_item: u64,
    /// Numbers below are answered.
    answered_through: u64,
    held_events: usize,
    held_bytes: usize,
    closing: bool,
    failed: Option<ClientError>,
    stats: PublisherStats,
}

impl LaneState {
    pub(super) fn new(options: PublisherOptions, receipts: mpsc::UnboundedSender<TokenReceipt>) -> Self {
        LaneState {
            options,
            receipts,
            writer: PublishBatchWriter::new(),
            topic: TopicId(0),
            lingering: None,
            queued: VecDeque::new(),
            sent: VecDeque::new(),
            next_item: 0,
            answered_through: 0,
            held_events: 0,
            held_bytes: 0,
            closing: false,
            failed: None,
            stats: PublisherStats::default(),
        }
    }

    /// Whether the limits leave room for another batch.
    pub(super) fn check_room(&self) -> Result<(), ClientError> {
        match &self.failed {
            Some(error) => Err(error.clone()),
            None if self.closing => Err(ClientError::Closed),
            None if self.held_events >= self.options.in_flight_events_max
                || self.held_bytes >= self.options.in_flight_bytes_max =>
            {
                Err(ClientError::Full)
            }
            None => Ok(()),
        }
    }

    /// Begins a batch of its own, after what was collected before.
    pub(super) fn begin(&mut self, topic: TopicId) {
        self.seal_lingering();
        self.topic = topic;
        self.writer.begin(topic, self.next_item);
    }

    pub(super) fn writer(&mut self) -> &mut PublishBatchWriter {
        &mut self.writer
    }

    pub(super) fn writer_ref(&self) -> &PublishBatchWriter {
        &self.writer
    }

    /// Ends the batch that [`LaneState::begin`] began; nothing happens where it is empty.
    pub(super) fn seal(&mut self, reply: Reply) {
        let count = self.writer.count();
        if count == 0 {
            return;
        }
        let frame = Bytes::from(self.writer.finish_owned());
        self.held_events += count as usize;
        self.held_bytes += frame.len();
        let first_item = self.next_item;
        self.next_item += u64::from(count);
        self.stats.published += u64::from(count);
        let receipt = BatchReceipt::default();
        self.queued.push_back(Sealed { frame, first_item, count, answered: 0, receipt, reply });
    }

    /// Drops the batch that [`LaneState::begin`] began.
    pub(super) fn discard(&mut self) {
        self.writer.begin(self.topic, self.next_item);
    }

    /// Adds a single event to the lingering batch.
    pub(super) fn add(
        &mut self,
        topic: TopicId,
        event: &EventSpec<'_>,
    ) -> Result<oneshot::Receiver<Result<Receipt, ClientError>>, EventError> {
        if self.lingering.is_none() || self.topic != topic || self.is_full() {
            self.begin(topic);
        }
        self.writer.push_spec(event)?;
        let (answer, answered) = oneshot::channel();
        let waiter = Waiter { due: event.due, answer };
        match &mut self.lingering {
            Some(lingering) => lingering.waiters.push(waiter),
            None => self.lingering = Some(Lingering { waiters: vec![waiter], since: Instant::now() }),
        }
        Ok(answered)
    }

    fn is_full(&self) -> bool {
        self.writer.count() as usize >= self.options.batch_events
            || self.writer.len_bytes() >= self.options.batch_bytes
    }

    pub(super) fn seal_lingering(&mut self) {
        if let Some(lingering) = self.lingering.take() {
            self.seal(Reply::Each(lingering.waiters));
        }
    }

    /// Moves what should leave now to `out`; answers when to ask again, where time alone will change the answer.
    pub(super) fn take_due(&mut self, now: Instant, out: &mut Vec<Bytes>) -> Option<Instant> {
        let mut again = None;
        if let Some(lingering) = &self.lingering {
            let deadline = lingering.since + self.options.linger;
            // With nothing under way there is nothing to wait for: an answer would not come sooner in company.
            let alone = self.sent.is_empty() && self.queued.is_empty();
            if alone || now >= deadline || self.closing || self.is_full() {
                self.seal_lingering();
            } else {
                again = Some(deadline);
            }
        }
        while out.len() < FRAMES_OUT_MAX
            && let Some(sealed) = self.queued.pop_front()
        {
            out.push(sealed.frame.clone());
            self.sent.push_back(sealed);
        }
        again
    }

    /// A new stream begins: what was sent and not answered is sent again, in order, with numbers from 0.
    pub(super) fn restart(&mut self) -> Result<(), FrameError> {
        self.seal_lingering();
        for sealed in &mut self.sent {
            sealed.receipt.resent = true;
            self.stats.resent += sealed.end().saturating_sub(self.answered_through.max(sealed.first_item));
        }
        self.sent.append(&mut self.queued);
        std::mem::swap(&mut self.sent, &mut self.queued);
        let mut next = 0;
        for sealed in &mut self.queued {
            sealed.renumber(self.answered_through, next)?;
            next = sealed.end();
        }
        self.next_item = next;
        self.answered_through = 0;
        self.stats.streams += 1;
        self.writer.begin(self.topic, next);
        Ok(())
    }

    /// Takes an acknowledgement, and answers every batch that it completes.
    pub(super) fn acknowledge(&mut self, ack: &PublishAck<'_>) -> Result<(), FrameError> {
        let sent_through = self.sent.back().map_or(self.answered_through, Sealed::end);
        // Holds the frame to its form: below, runs and exceptions are exactly its items.
        ack.items(self.answered_through..sent_through)?;
        let (mut runs, mut exceptions) = (ack.runs.iter(), ack.exceptions.iter().peekable());
        let mut duplicates = ack.duplicates.iter().peekable();
        let mut rest: Option<AckRun> = None;
        let mut exhausted: Option<Arc<str>> = None;
        while self.answered_through < ack.through_item
            && let Some(sealed) = self.sent.front_mut()
        {
            let item = self.answered_through;
            let index = sealed.answered + (item - sealed.first_item) as u32;
            if let Some(exception) = exceptions.next_if(|exception| exception.item == item) {
                sealed.receipt.refuse(index, exception);
                let explained = [ErrorCode::ResourceExhausted as u16, ErrorCode::Unavailable as u16];
                if explained.contains(&exception.code) && !ack.exhausted.is_empty() {
                    let words = exhausted.get_or_insert_with(|| ack.exhausted.into());
                    sealed.receipt.exhausted = Some(Arc::clone(words));
                }
                self.stats.refused += 1;
                self.answered_through += 1;
            } else if let Some(run) = rest.take().or_else(|| runs.next()) {
                let next_exception = exceptions.peek().map_or(u64::MAX, |exception| exception.item);
                let stop = ack.through_item.min(sealed.end()).min(next_exception);
                let count = run.count.min((stop - item) as u32);
                sealed.receipt.accept(index, AckRun { count, ..run }, ack.durability);
                rest = run.after(count);
                let end = item + u64::from(count);
                while let Some(AckDuplicate { item: of, schedule_time }) =
                    duplicates.next_if(|duplicate| duplicate.item < end)
                {
                    let index = index + (of - item) as u32;
                    sealed.receipt.duplicates.push(Duplicate { index, schedule_time });
                    self.stats.duplicates += 1;
                }
                self.stats.acknowledged += u64::from(count);
                self.answered_through += u64::from(count);
            } else {
                break;
            }
            if self.answered_through == sealed.end() {
                self.release_front();
            }
        }
        Ok(())
    }

    fn release_front(&mut self) {
        if let Some(sealed) = self.sent.pop_front() {
            self.held_events -= (sealed.answered + sealed.count) as usize;
            self.held_bytes = self.held_bytes.saturating_sub(sealed.frame.len());
            if self.sent.is_empty() && self.queued.is_empty() {
                // Frames shrink where a part of them was answered on an earlier stream.
                self.held_bytes = 0;
            }
            sealed.resolve(&self.receipts);
        }
    }

    /// Nothing will be sent any more: whoever waits is told why.
    pub(super) fn fail(&mut self, error: &ClientError) {
        self.failed = Some(error.clone());
        if let Some(lingering) = self.lingering.take() {
            fail_waiters(lingering.waiters, error);
        }
        self.discard();
        for sealed in self.sent.drain(..).chain(self.queued.drain(..)) {
            sealed.fail(error, &self.receipts);
        }
        (self.held_events, self.held_bytes) = (0, 0);
    }

    pub(super) fn close(&mut self) {
        self.closing = true;
    }

    /// Whether every event was answered.
    pub(super) fn is_idle(&self) -> bool {
        self.held_events == 0 && self.lingering.is_none()
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing
    }

    pub(super) fn stats(&self) -> PublisherStats {
        PublisherStats { in_flight: self.held_events as u64, ..self.stats }
    }
}

trait After: Sized {
    /// What is left when the first `count` events are taken.
    fn after(self, count: u32) -> Option<Self>;
}

impl After for AckRun {
    fn after(self, count: u32) -> Option<Self> {
        let first_sequence = escapement_protocol::Sequence(self.first_sequence.0 + u64::from(count));
        (self.count > count).then(|| AckRun { first_sequence, count: self.count - count, ..self })
    }
}

#[cfg(test)]
mod tests;
