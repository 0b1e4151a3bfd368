//! Publishing: verify each event once, cut by shard, answer in the order of the items.

use std::collections::VecDeque;

use smallvec::SmallVec;

use escapement_protocol::frame::{
    AckDuplicate, AckException, AckRun, Durability, Items, PublishAck, PublishBatch, ShardCore,
    encode_publish_ack,
};
use escapement_protocol::ids::shard_of;
use escapement_protocol::{ErrorCode, EventView, Now, Sequence, ShardId, TopicId, WallMs};

use super::{Backend, Door, Refusal, Violation, Waiting, malformed, unavailable};

/// So many answers make an acknowledgement frame: the rest follows in the next. With those of one batch more, each a
/// duplicate in a run of its own, they fit a frame.
const ANSWERS_MAX: usize = 8 * 1024;

/// Batches of one stream that wait for the disk from which on the stream is not read any further.
const BATCHES_MAX: usize = 32 * 1024;

/// What a shard says to a run of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublishAnswer {
    /// A prefix of the run was accepted and is durable.
    Accepted {
        /// Sequence of its first event that is no duplicate; those of the others follow.
        first_sequence: Sequence,
        /// Events accepted, from the first on.
        count: u32,
        /// Moment of acceptance.
        accepted: WallMs,
        /// Why the rest was not.
        rest: Option<Refusal>,
        /// Those of the prefix that had been accepted before, ascending.
        duplicates: Vec<Duplicate>,
    },
    /// None was accepted.
    Refused(Refusal),
}

/// An event that had been published before, with the receipt of the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duplicate {
    /// Its place in the run, from 0.
    pub index: u32,
    /// The first one's sequence.
    pub sequence: Sequence,
    /// When the first one is scheduled for.
    pub schedule_time: WallMs,
    /// When the first one was accepted.
    pub accepted: WallMs,
}

/// The part of a batch that went to one shard.
#[derive(Debug)]
struct Part {
    shard: ShardId,
    answer: Option<PublishAnswer>,
    /// Items of this part answered so far, while the acknowledgement is written.
    taken: u32,
    /// Of these, duplicates.
    duplicates_taken: u32,
}

/// Where each item of a batch went.
#[derive(Debug)]
enum Layout {
    /// All to `parts[0]`.
    Uniform,
    /// Item by item: an index into `parts`, or [`EXCEPTION`].
    Mixed(Vec<u16>),
}

const EXCEPTION: u16 = u16::MAX;

/// Most bytes of words about limits and shards in one acknowledgement.
const EXHAUSTED_SIZE_BYTES_MAX: usize = 1_024;

#[derive(Debug)]
struct Batch {
    first_item: u64,
    count: u32,
    layout: Layout,
    parts: SmallVec<[Part; 1]>,
    /// Parts without an answer.
    missing: u32,
    /// Items refused at the door, ascending.
    exceptions: Vec<AckException>,
}

/// A stream's batches, in order.
#[derive(Debug, Default)]
pub(super) struct Publisher {
    next_item: u64,
    acked_item: u64,
    /// Number of `batches[0]` among the stream's batches.
    first_batch: u64,
    batches: VecDeque<Batch>,
    runs: Vec<AckRun>,
    exceptions: Vec<AckException>,
    duplicates: Vec<AckDuplicate>,
    /// The limits that the exceptions met, and the shards that are out of service, each once.
    exhausted: String,
}

impl<S: Copy + Eq + std::hash::Hash> Door<S> {
    pub(super) fn publish(
        &mut self,
        now: Now,
        stream: S,
        batch: &PublishBatch<'_>,
        backend: &mut impl Backend<S>,
    ) -> Result<(), Violation> {
        let draining = self.draining;
        let Some(state) = self.streams.get_mut(&stream) else { return Ok(()) };
        let publisher = state.publisher.get_or_insert_default();
        if batch.first_item != publisher.next_item {
            let message = format!(
                "the batch begins with item {}, and item {} is next on this stream: number items without a gap",
                batch.first_item, publisher.next_item
            );
            return Err(malformed(message));
        }
        if batch.events.count() == 0 {
            return Err(malformed("a batch without events"));
        }
        let number = publisher.first_batch + publisher.batches.len() as u64;
        let count = batch.events.count();
        publisher.next_item += u64::from(count);
        let mut entry = Batch {
            first_item: batch.first_item,
            count,
            layout: Layout::Uniform,
            parts: SmallVec::new(),
            missing: 0,
            exceptions: Vec::new(),
        };
        if draining {
            let refused = unavailable();
            entry.refuse_all(&refused);
            publisher.batches.push_back(entry);
            self.mark(stream);
            return Ok(());
        }
        let map = &self.config.shard_map;
        let route = Route {
            topic: batch.topic,
            shard_count: map.shard_count,
            serving: &map.shards,
            may_move: backend.may_move(batch.topic),
            default_source: backend.default_source(batch.topic).as_bytes(),
        };
        let split = split(now, batch, &route);
        let waiting = &mut self.waiting;
        let topic = batch.topic;
        let mut submit = |entry: &mut Batch, shard: ShardId, count: u32, events: &[u8]| {
            let part = entry.parts.len();
            let ticket = waiting.insert(Waiting::Publish { stream, batch: number, part }) as u64;
            entry.parts.push(Part { shard, answer: None, taken: 0, duplicates_taken: 0 });
            entry.missing += 1;
            backend.publish(ticket, shard, topic, count, events);
        };
        match split {
            Split::Whole(shard) => submit(&mut entry, shard, count, batch.events.bytes()),
            Split::Mixed { layout, runs, exceptions } => {
                entry.layout = Layout::Mixed(layout);
                entry.exceptions = exceptions;
                for (shard, count, events) in runs {
                    submit(&mut entry, shard, count, &events);
                }
            }
        }
        let publisher = state.publisher.get_or_insert_default();
        let resolved = entry.missing == 0;
        publisher.batches.push_back(entry);
        if resolved {
            self.mark(stream);
        }
        Ok(())
    }

    /// A shard's answer for a ticket.
    pub fn published(&mut self, ticket: u64, answer: PublishAnswer) {
        let Some(&Waiting::Publish { stream, batch, part }) = self.waiting.get(ticket as usize) else {
            return;
        };
        self.waiting.remove(ticket as usize);
        let Some(publisher) = self.streams.get_mut(&stream).and_then(|s| s.publisher.as_mut()) else {
            return;
        };
        let Some(index) = batch.checked_sub(publisher.first_batch) else { return };
        let Some(entry) = publisher.batches.get_mut(index as usize) else { return };
        entry.parts[part].answer = Some(answer);
        entry.missing -= 1;
        if entry.missing == 0 {
            self.mark(stream);
        }
    }
}

/// Where the events of a batch go.
enum Split {
    /// All are sound, and go to one shard.
    Whole(ShardId),
    /// Rare: a foreign client that does not route, or a faulty event.
    Mixed { layout: Vec<u16>, runs: Vec<(ShardId, u32, Vec<u8>)>, exceptions: Vec<AckException> },
}

/// What says where the events of a batch go.
struct Route<'a> {
    topic: TopicId,
    shard_count: u16,
    serving: &'a [ShardCore],
    /// Whether events without an ordering key may go to another shard where theirs is out of service.
    may_move: bool,
    default_source: &'a [u8],
}

impl Route<'_> {
    fn shard_of(&self, view: &EventView<'_>) -> ShardId {
        if self.shard_count == 1 {
            return ShardId(0);
        }
        // An event that states what its topic fills in has the name of one that does not, and so its shard.
        let source = if view.source() == self.default_source { &[] } else { view.source() };
        let shard = shard_of(self.topic, view.ordering_key(), source, view.id(), self.shard_count);
        let all_serve = self.serving.len() == usize::from(self.shard_count);
        if all_serve || !self.may_move || !view.ordering_key().is_empty() {
            return shard;
        }
        self.instead_of(shard, view)
    }

    /// The shard, of those that serve, that takes an event of this one.
    fn instead_of(&self, shard: ShardId, view: &EventView<'_>) -> ShardId {
        if self.serving.is_empty() || self.serving.iter().any(|held| held.shard == shard) {
            return shard;
        }
        let among = shard_of(self.topic, &[], view.source(), view.id(), self.serving.len() as u16);
        self.serving[usize::from(among.0)].shard
    }
}

fn split(now: Now, batch: &PublishBatch<'_>, route: &Route<'_>) -> Split {
    let verify = |event| verify(now, event, route);
    let mut events = batch.events.iter();
    if let Some(Ok(first)) = events.next().map(verify)
        && events.all(|event| verify(event) == Ok(first))
    {
        return Split::Whole(first);
    }
    let mut runs: Vec<(ShardId, u32, Vec<u8>)> = Vec::new();
    let mut layout = Vec::with_capacity(batch.events.count() as usize);
    let mut exceptions = Vec::new();
    for (item, event) in (batch.first_item..).zip(batch.events.iter()) {
        match verify(event) {
            Ok(shard) => {
                let at = runs.iter().position(|run| run.0 == shard).unwrap_or_else(|| {
                    runs.push((shard, 0, Vec::new()));
                    runs.len() - 1
                });
                runs[at].1 += 1;
                runs[at].2.extend_from_slice(event);
                layout.push(at as u16);
            }
            Err(code) => {
                exceptions.push(AckException { item, retry_after_ms: 0, code: code as u16 });
                layout.push(EXCEPTION);
            }
        }
    }
    Split::Mixed { layout, runs, exceptions }
}

fn verify(now: Now, event: &[u8], route: &Route<'_>) -> Result<ShardId, ErrorCode> {
    let (view, taken) = EventView::parse(event).map_err(|error| error.code())?;
    if taken != event.len() {
        return Err(ErrorCode::MalformedEvent);
    }
    view.check_times(now.wall).map_err(|error| error.code())?;
    Ok(route.shard_of(&view))
}

/// Adds a limit's or a shard's words to those of others, once.
fn note(words: &mut String, message: &str) {
    let separator = if words.is_empty() { "" } else { "; " };
    let fits = words.len() + separator.len() + message.len() <= EXHAUSTED_SIZE_BYTES_MAX;
    if fits && !words.contains(message) {
        words.push_str(separator);
        words.push_str(message);
    }
}

impl Batch {
    fn refuse_all(&mut self, refusal: &Refusal) {
        self.layout = Layout::Mixed(vec![EXCEPTION; self.count as usize]);
        let exception =
            |item| AckException { item, retry_after_ms: refusal.retry_after_ms, code: refusal.code as u16 };
        self.exceptions = (self.first_item..).take(self.count as usize).map(exception).collect();
    }
}

impl Publisher {
    pub(super) fn is_behind(&self) -> bool {
        self.batches.len() >= BATCHES_MAX
    }

    /// Appends an acknowledgement of every leading batch whose answers are all there.
    pub(super) fn write_ack(&mut self, out: &mut Vec<u8>) {
        while self.batches.front().is_some_and(|batch| batch.missing == 0) {
            let batch = self.batches.pop_front().expect("it is there");
            self.first_batch += 1;
            self.answer(batch);
            if self.runs.len() + self.exceptions.len() + self.duplicates.len() >= ANSWERS_MAX {
                self.write(out);
            }
        }
        self.write(out);
    }

    fn write(&mut self, out: &mut Vec<u8>) {
        let through_item = self.batches.front().map_or(self.next_item, |batch| batch.first_item);
        if through_item == self.acked_item {
            return;
        }
        self.acked_item = through_item;
        let ack = PublishAck {
            through_item,
            durability: Durability::LOCAL_DISK,
            runs: Items::from(self.runs.as_slice()),
            exceptions: Items::from(self.exceptions.as_slice()),
            exhausted: &self.exhausted,
            duplicates: Items::from(self.duplicates.as_slice()),
        };
        encode_publish_ack(&ack, out).expect("answers are bounded by the frames they answer");
        self.runs.clear();
        self.exceptions.clear();
        self.duplicates.clear();
        self.exhausted.clear();
    }

    fn answer(&mut self, mut batch: Batch) {
        if let Layout::Uniform = batch.layout {
            self.answer_part(batch.first_item, batch.count, &mut batch.parts[0]);
            return;
        }
        let Layout::Mixed(layout) = &batch.layout else { return };
        let mut exceptions = batch.exceptions.iter();
        for (item, part) in (batch.first_item..).zip(layout) {
            if *part == EXCEPTION {
                self.exceptions.extend(exceptions.next());
            } else {
                self.answer_part(item, 1, &mut batch.parts[usize::from(*part)]);
            }
        }
    }

    /// Answers the next `count` items of a part, of which the first is `item`.
    fn answer_part(&mut self, item: u64, count: u32, part: &mut Part) {
        let Part { shard, answer, taken, duplicates_taken } = part;
        let (first_sequence, accepted_count, accepted, refusal, duplicates) = match &*answer {
            Some(PublishAnswer::Accepted { first_sequence, count, accepted, rest, duplicates }) => {
                (*first_sequence, *count, *accepted, rest.as_ref(), &duplicates[..])
            }
            Some(PublishAnswer::Refused(refusal)) => (Sequence(0), 0, WallMs(0), Some(refusal), &[][..]),
            None => unreachable!("a batch is answered when no part is missing"),
        };
        let good = accepted_count.saturating_sub(*taken).min(count);
        let (mut index, end) = (*taken, *taken + good);
        while index < end {
            let next = duplicates.get(*duplicates_taken as usize);
            let until = next.map_or(end, |duplicate| duplicate.index.min(end));
            if until > index {
                let first_sequence = Sequence(first_sequence.0 + u64::from(index - *duplicates_taken));
                self.push_run(AckRun { first_sequence, accepted, count: until - index, shard: *shard });
                index = until;
            } else if let Some(Duplicate { sequence, schedule_time, accepted, .. }) = next.copied() {
                // Accepted, as it was the first time.
                self.push_run(AckRun { first_sequence: sequence, accepted, count: 1, shard: *shard });
                let item = item + u64::from(index - *taken);
                self.duplicates.push(AckDuplicate { item, schedule_time });
                *duplicates_taken += 1;
                index += 1;
            }
        }
        if let Some(refusal) = refusal {
            let exception = |item| AckException {
                item,
                retry_after_ms: refusal.retry_after_ms,
                code: refusal.code as u16,
            };
            self.exceptions.extend((item..).take(count as usize).skip(good as usize).map(exception));
            if matches!(refusal.code, ErrorCode::ResourceExhausted | ErrorCode::Unavailable) {
                note(&mut self.exhausted, &refusal.message);
            }
        }
        *taken += count;
    }

    fn push_run(&mut self, run: AckRun) {
        if let Some(last) = self.runs.last_mut()
            && last.shard == run.shard
            && last.accepted == run.accepted
            && last.first_sequence.0 + u64::from(last.count) == run.first_sequence.0
            && let Some(sum) = last.count.checked_add(run.count)
        {
            last.count = sum;
            return;
        }
        self.runs.push(run);
    }
}
