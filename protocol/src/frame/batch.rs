//! Frames of the data path, laid out by hand.
//!
//! A FlatBuffer that a builder makes is copied twice: into the builder, and from there into the
//! frame. These frames have one layout each, known beforehand, so their bytes go straight into place:
//! root offset, vtable, table, and then the vectors, the large one copied once. Readers see
//! ordinary FlatBuffers of the schema.

use super::{
    BATCH_COUNT_MAX, Events, Fixed, FrameError, FrameKind, Items, PREFIX_SIZE_BYTES, Prefix, PublishBatch,
    PushBatch, PushDue, PushItem, ResultItem,
};
use crate::event::{EventError, EventSpec, padded_len, stated_len};
use crate::{Epoch, FRAME_SIZE_BYTES_MAX, SubscriptionId, TopicId, WallMs};

/// Bytes of a `PublishBatch` body before its events.
const PUBLISH_HEAD_SIZE_BYTES: usize = 48;
/// Bytes of a `PushBatch` body before its events.
const PUSH_HEAD_SIZE_BYTES: usize = 48;
/// Bytes of a `ResultBatch` body before its results.
const RESULT_HEAD_SIZE_BYTES: usize = 24;
/// A vector that follows bytes which end at a multiple of 8: 4 zeros, then its length.
pub(super) const VECTOR_HEAD_SIZE_BYTES: usize = 8;
const PUSH_ITEM_SIZE_BYTES: usize = size_of::<<PushItem as Fixed>::Bytes>();
const PUSH_DUE_SIZE_BYTES: usize = size_of::<<PushDue as Fixed>::Bytes>();

/// What an event that was rescheduled takes of a `PushBatch` more than another one, at the most.
pub const PUSH_DUE_SIZE_BYTES_MAX: usize = VECTOR_HEAD_SIZE_BYTES + PUSH_DUE_SIZE_BYTES;

/// A body's first bytes, filled in at constant offsets.
pub(super) struct Head<const N: usize>(pub(super) [u8; N]);

impl<const N: usize> Head<N> {
    pub(super) fn u16s(mut self, at: usize, values: &[u16]) -> Self {
        for (value, out) in values.iter().zip(self.0[at..].chunks_exact_mut(2)) {
            out.copy_from_slice(&value.to_le_bytes());
        }
        self
    }

    pub(super) fn u32(mut self, at: usize, value: usize) -> Self {
        self.0[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes());
        self
    }

    pub(super) fn u64(mut self, at: usize, value: u64) -> Self {
        self.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
        self
    }

    pub(super) fn byte(mut self, at: usize, value: u8) -> Self {
        self.0[at] = value;
        self
    }
}

/// ```text
///  0 root = 16 | 4 vtable: 12, 24, topic 4, first_item 8, count 16, events 20
/// 16 table: to vtable 12 | 20 topic | 24 first_item | 32 count | 36 to events 8 | 40 zeros
/// 44 length | 48 events
/// ```
fn publish_head(
    topic: TopicId,
    first_item: u64,
    count: u32,
    events_size_bytes: usize,
) -> [u8; PUBLISH_HEAD_SIZE_BYTES] {
    Head([0; PUBLISH_HEAD_SIZE_BYTES])
        .u32(0, 16)
        .u16s(4, &[12, 24, 4, 8, 16, 20])
        .u32(16, 12)
        .u32(20, topic.0 as usize)
        .u64(24, first_item)
        .u32(32, count as usize)
        .u32(36, 44 - 36)
        .u32(44, events_size_bytes)
        .0
}

/// Events come before items, so that they lie at a constant offset and can be collected in place.
///
/// ```text
///  0 root = 20 | 4 zeros | 6 vtable: 14, 24, subscription 4, epoch 8, items 12, events 16, rescheduled 20 or 0
/// 20 table: to vtable 14 | 24 subscription | 28 epoch | 32 to items | 36 to events 8 | 40 to rescheduled, or 0
/// 44 length | 48 events | zeros | length | items [ | zeros | length | rescheduled ]
/// ```
fn push_head(
    subscription: SubscriptionId,
    epoch: Epoch,
    events_size_bytes: usize,
    count: usize,
    rescheduled_count: usize,
) -> [u8; PUSH_HEAD_SIZE_BYTES] {
    let items_at = PUSH_HEAD_SIZE_BYTES + events_size_bytes + 4;
    let rescheduled_at = items_at + 4 + count * PUSH_ITEM_SIZE_BYTES + 4;
    let (field, to_rescheduled) = if rescheduled_count == 0 { (0, 0) } else { (20, rescheduled_at - 40) };
    Head([0; PUSH_HEAD_SIZE_BYTES])
        .u32(0, 20)
        .u16s(6, &[14, 24, 4, 8, 12, 16, field])
        .u32(20, 14)
        .u32(24, subscription.0 as usize)
        .u32(28, epoch.0 as usize)
        .u32(32, items_at - 32)
        .u32(36, 44 - 36)
        .u32(40, to_rescheduled)
        .u32(44, events_size_bytes)
        .0
}

/// Bytes of the vector that says of which items the due time is another one; none where there are none.
fn rescheduled_size_bytes(count: usize) -> usize {
    if count == 0 { 0 } else { VECTOR_HEAD_SIZE_BYTES + count * PUSH_DUE_SIZE_BYTES }
}

/// ```text
///  0 root = 12 | 4 zeros | 6 vtable: 6, 8, results 4
/// 12 table: to vtable 6 | 16 to results 4
/// 20 length | 24 results
/// ```
fn result_head(count: usize) -> [u8; RESULT_HEAD_SIZE_BYTES] {
    Head([0; RESULT_HEAD_SIZE_BYTES])
        .u32(0, 12)
        .u16s(6, &[6, 8, 4])
        .u32(12, 6)
        .u32(16, 20 - 16)
        .u32(20, count)
        .0
}

pub(super) fn vector_head(count: usize) -> [u8; VECTOR_HEAD_SIZE_BYTES] {
    Head([0; VECTOR_HEAD_SIZE_BYTES]).u32(4, count).0
}

pub(super) fn body_len<T: Fixed>(head_size_bytes: usize, elements: &Items<'_, T>) -> usize {
    head_size_bytes + elements.len() * size_of::<T::Bytes>()
}

/// Appends a frame.
///
/// # Errors
/// It would be longer than a frame may be; `out` is then as it was.
pub fn encode_publish_batch(batch: &PublishBatch<'_>, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let events = batch.events.bytes();
    let prefix = Prefix { kind: FrameKind::PublishBatch, len_bytes: PUBLISH_HEAD_SIZE_BYTES + events.len() }
        .to_bytes()?;
    out.extend_from_slice(&prefix);
    out.extend_from_slice(&publish_head(batch.topic, batch.first_item, batch.events.count(), events.len()));
    out.extend_from_slice(events);
    Ok(())
}

/// Appends a frame.
///
/// # Errors
/// It would be longer than a frame may be; `out` is then as it was.
pub fn encode_push_batch(batch: &PushBatch<'_>, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let events = batch.events.bytes();
    let head_size_bytes = PUSH_HEAD_SIZE_BYTES + events.len() + VECTOR_HEAD_SIZE_BYTES;
    let (count, rescheduled) = (batch.items.len(), batch.rescheduled.len());
    let len_bytes = body_len(head_size_bytes, &batch.items) + rescheduled_size_bytes(rescheduled);
    out.extend_from_slice(&Prefix { kind: FrameKind::PushBatch, len_bytes }.to_bytes()?);
    out.extend_from_slice(&push_head(batch.subscription, batch.epoch, events.len(), count, rescheduled));
    out.extend_from_slice(events);
    out.extend_from_slice(&vector_head(count));
    batch.items.append_to(out);
    if rescheduled > 0 {
        out.extend_from_slice(&vector_head(rescheduled));
        batch.rescheduled.append_to(out);
    }
    Ok(())
}

/// Appends a `ResultBatch` frame.
///
/// # Errors
/// It would be longer than a frame may be; `out` is then as it was.
pub fn encode_results(results: Items<'_, ResultItem>, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let len_bytes = body_len(RESULT_HEAD_SIZE_BYTES, &results);
    out.extend_from_slice(&Prefix { kind: FrameKind::ResultBatch, len_bytes }.to_bytes()?);
    out.extend_from_slice(&result_head(results.len()));
    results.append_to(out);
    Ok(())
}

/// Events collected at the place where their frame wants them: room for prefix and head is kept in front.
#[derive(Debug, Default)]
struct Collected<const HEAD_SIZE_BYTES: usize> {
    frame: Vec<u8>,
    count: u32,
}

impl<const HEAD_SIZE_BYTES: usize> Collected<HEAD_SIZE_BYTES> {
    const EVENTS_AT: usize = PREFIX_SIZE_BYTES + HEAD_SIZE_BYTES;

    fn open(&mut self) {
        if self.frame.is_empty() {
            self.frame.resize(Self::EVENTS_AT, 0);
        }
    }

    fn body_size_bytes(&self) -> usize {
        self.frame.len().max(Self::EVENTS_AT) - PREFIX_SIZE_BYTES
    }

    fn events_size_bytes(&self) -> usize {
        self.body_size_bytes() - HEAD_SIZE_BYTES
    }

    fn push(&mut self, event: &[u8]) {
        let padded = padded_len(event.len());
        assert_eq!(
            stated_len(event).map(padded_len),
            Some(padded),
            "an event's bytes are as long as its header says, with or without padding"
        );
        self.open();
        self.frame.extend_from_slice(event);
        self.frame.resize(self.frame.len() + padded - event.len(), 0);
        self.count += 1;
    }

    /// Fills in prefix and head, once `frame` is complete.
    fn seal(&mut self, kind: FrameKind, head: [u8; HEAD_SIZE_BYTES]) {
        let prefix = Prefix { kind, len_bytes: self.frame.len() - PREFIX_SIZE_BYTES }.to_bytes();
        let prefix = prefix.ok().filter(|_| self.count <= BATCH_COUNT_MAX);
        let prefix = prefix.expect("whoever collects a frame asks whether an event fits before adding it");
        self.frame[..PREFIX_SIZE_BYTES].copy_from_slice(&prefix);
        self.frame[PREFIX_SIZE_BYTES..Self::EVENTS_AT].copy_from_slice(&head);
    }
}

/// Collects a `PublishBatch` frame, one event at a time.
#[derive(Debug, Default)]
pub struct PublishBatchWriter {
    topic: TopicId,
    first_item: u64,
    collected: Collected<PUBLISH_HEAD_SIZE_BYTES>,
}

impl PublishBatchWriter {
    /// A writer without events, for no topic yet. Allocates nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a frame: events collected before and not finished are dropped.
    pub fn begin(&mut self, topic: TopicId, first_item: u64) {
        self.topic = topic;
        self.first_item = first_item;
        self.collected.frame.clear();
        self.collected.count = 0;
    }

    /// Number of events collected.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.collected.count
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.collected.count == 0
    }

    /// Length of the frame as it stands, prefix included.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        PREFIX_SIZE_BYTES + self.collected.body_size_bytes()
    }

    /// Whether an event of that length still fits the frame.
    #[must_use]
    pub fn fits(&self, event_size_bytes: usize) -> bool {
        self.count() < BATCH_COUNT_MAX
            && self.collected.body_size_bytes() + padded_len(event_size_bytes) <= FRAME_SIZE_BYTES_MAX
    }

    /// Adds an encoded event, with or without its padding.
    ///
    /// # Panics
    /// If the length is not the one that the event's header states.
    pub fn push(&mut self, event: &[u8]) {
        self.collected.push(event);
    }

    /// Encodes an event in place.
    ///
    /// # Errors
    /// The event is not valid; the frame is then as it was.
    pub fn push_spec(&mut self, event: &EventSpec<'_>) -> Result<(), EventError> {
        self.collected.open();
        event.encode(&mut self.collected.frame)?;
        self.collected.count += 1;
        Ok(())
    }

    /// Appends the frame to `out`, and begins the next, whose items follow this one's.
    ///
    /// # Panics
    /// If the writer is empty, or the frame is too long because [`fits`](Self::fits) was not asked.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.seal();
        out.extend_from_slice(&self.collected.frame);
        self.begin(self.topic, self.first_item + u64::from(self.collected.count));
    }

    /// Hands over the frame without a copy, and begins the next, whose items follow this one's.
    ///
    /// # Panics
    /// As [`finish`](Self::finish).
    pub fn finish_owned(&mut self) -> Vec<u8> {
        self.seal();
        let frame = std::mem::take(&mut self.collected.frame);
        self.begin(self.topic, self.first_item + u64::from(self.collected.count));
        frame
    }

    fn seal(&mut self) {
        assert!(!self.is_empty(), "a batch holds at least one event");
        let events_size_bytes = self.collected.events_size_bytes();
        let head = publish_head(self.topic, self.first_item, self.collected.count, events_size_bytes);
        self.collected.seal(FrameKind::PublishBatch, head);
    }
}

/// Collects a `PushBatch` frame, one attempt at a time.
#[derive(Debug, Default)]
pub struct PushBatchWriter {
    subscription: SubscriptionId,
    epoch: Epoch,
    collected: Collected<PUSH_HEAD_SIZE_BYTES>,
    items: Vec<u8>,
    rescheduled: Vec<PushDue>,
}

impl PushBatchWriter {
    /// A writer without attempts, for no subscription yet. Allocates nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a frame: attempts collected before and not finished are dropped.
    pub fn begin(&mut self, subscription: SubscriptionId, epoch: Epoch) {
        self.subscription = subscription;
        self.epoch = epoch;
        self.collected.frame.clear();
        self.collected.count = 0;
        self.items.clear();
        self.rescheduled.clear();
    }

    /// Number of attempts collected.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.collected.count
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.collected.count == 0
    }

    /// Length of the frame as it stands, prefix included.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        let tables_size_bytes = self.items.len() + rescheduled_size_bytes(self.rescheduled.len());
        PREFIX_SIZE_BYTES + self.collected.body_size_bytes() + VECTOR_HEAD_SIZE_BYTES + tables_size_bytes
    }

    /// Whether an attempt with an event of that length still fits the frame. One that was rescheduled needs
    /// [`PUSH_DUE_SIZE_BYTES_MAX`] more.
    #[must_use]
    pub fn fits(&self, event_size_bytes: usize) -> bool {
        self.count() < BATCH_COUNT_MAX
            && self.len_bytes() + PUSH_ITEM_SIZE_BYTES + padded_len(event_size_bytes)
                <= PREFIX_SIZE_BYTES + FRAME_SIZE_BYTES_MAX
    }

    /// Adds an attempt and its event's bytes, with or without their padding.
    ///
    /// # Panics
    /// If the length is not the one that the event's header states.
    pub fn push(&mut self, item: PushItem, event: &[u8]) {
        self.collected.push(event);
        self.items.extend_from_slice(&item.to_wire());
    }

    /// Adds an attempt of an event that was rescheduled, and was due at `due`.
    ///
    /// # Panics
    /// As [`push`](Self::push).
    pub fn push_rescheduled(&mut self, item: PushItem, due: WallMs, event: &[u8]) {
        self.rescheduled.push(PushDue { due, item: self.count() });
        self.push(item, event);
    }

    /// Appends the frame to `out`, and begins the next for the same subscription.
    ///
    /// # Panics
    /// If the writer is empty, or the frame is too long because [`fits`](Self::fits) was not asked.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.seal();
        out.extend_from_slice(&self.collected.frame);
        self.begin(self.subscription, self.epoch);
    }

    /// Hands over the frame without a copy of its events, and begins the next for the same subscription.
    ///
    /// # Panics
    /// As [`finish`](Self::finish).
    pub fn finish_owned(&mut self) -> Vec<u8> {
        self.seal();
        let frame = std::mem::take(&mut self.collected.frame);
        self.begin(self.subscription, self.epoch);
        frame
    }

    fn seal(&mut self) {
        assert!(!self.is_empty(), "a batch holds at least one attempt");
        let (count, rescheduled) = (self.collected.count as usize, self.rescheduled.len());
        let events_size_bytes = self.collected.events_size_bytes();
        let head = push_head(self.subscription, self.epoch, events_size_bytes, count, rescheduled);
        self.collected.frame.extend_from_slice(&vector_head(count));
        self.collected.frame.extend_from_slice(&self.items);
        if rescheduled > 0 {
            self.collected.frame.extend_from_slice(&vector_head(rescheduled));
            Items::from(self.rescheduled.as_slice()).append_to(&mut self.collected.frame);
        }
        self.collected.seal(FrameKind::PushBatch, head);
    }
}

impl<'a> PublishBatch<'a> {
    /// A batch of encoded events back to back. `None` where they are not exactly `count`.
    #[must_use]
    pub fn new(topic: TopicId, first_item: u64, events: &'a [u8], count: u32) -> Option<Self> {
        Some(PublishBatch { topic, first_item, events: Events::new(events, count)? })
    }
}
