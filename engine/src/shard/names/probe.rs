//! Looking for names in runs: a publish of an event whose name may be in one waits until the block is read.
//!
//! What comes to a topic behind one that waits is looked up at once and decided after it: a topic's events get their
//! sequences in the order in which they came.

use std::collections::VecDeque;
use std::io;

use hashbrown::HashMap;
use smallvec::SmallVec;

use escapement_protocol::{ErrorCode, TopicId, WallMs};

use super::super::far::Purpose;
use crate::effects::{Effects, Refusal, Ticket};
use crate::far::{RunError, RunId, RunOp};
use crate::names::format::{BLOCK_COUNT_MAX, BLOCK_SIZE_BYTES, NamesBlock};
use crate::names::{Name, NameHash, NamePlace};
use crate::shard::Shard;

/// Requests that wait at once, and their bytes.
const WAITING_COUNT_MAX: usize = 1_024;
const WAITING_SIZE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Blocks that are being read at once.
const READING_COUNT_MAX: usize = 256;

/// How long a caller should wait where they are as many.
const RETRY_AFTER_MS: u32 = 100;

/// What was read of runs for a request.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) found: HashMap<NameHash, Name>,
    /// In runs up to this one, what was not found is not.
    pub(super) through: RunId,
}

#[derive(Debug)]
pub(super) enum What {
    /// These events.
    Publish(Vec<u8>),
    /// Cancel the event of this name.
    Cancel(NameHash),
}

/// A request that waits for the disk, or behind one that does.
#[derive(Debug)]
struct Waiter {
    number: u64,
    ticket: Ticket,
    topic: TopicId,
    what: What,
    known: Known,
    /// Runs after this one are looked at now.
    after: RunId,
    /// Names that are being looked for.
    pending: usize,
}

impl Waiter {
    fn size_bytes(&self) -> usize {
        let What::Publish(events) = &self.what else { return 0 };
        events.len()
    }
}

/// A name that is being looked for, for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::shard) struct Probe {
    waiter: u64,
    topic: TopicId,
    hash: NameHash,
    place: NamePlace,
}

/// Requests that wait, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    queue: VecDeque<Waiter>,
    size_bytes: usize,
    next_number: u64,
    /// To be read.
    probes: VecDeque<Probe>,
    reading_count: usize,
}

impl Waiting {
    /// Bytes of the events, and about as many for what is known of them.
    pub(super) fn memory_bytes(&self) -> usize {
        2 * self.size_bytes + self.queue.capacity() * size_of::<Waiter>()
    }

    /// Who waits, in the order in which they came.
    pub(super) fn take_waiting(&mut self, tickets: &mut Vec<Ticket>) {
        tickets.extend(self.queue.drain(..).map(|waiter| waiter.ticket));
    }

    pub(super) fn is_any_of(&self, topic: TopicId) -> bool {
        self.queue.iter().any(|waiter| waiter.topic == topic)
    }

    /// Why no request with so many bytes may wait.
    pub(super) fn refusal(&self, size_bytes: usize) -> Option<Refusal> {
        let is_full = self.queue.len() >= WAITING_COUNT_MAX
            || self.size_bytes + size_bytes > WAITING_SIZE_BYTES_MAX.max(size_bytes);
        is_full.then(|| Refusal {
            code: ErrorCode::ResourceExhausted,
            message: "too many look-ups of names wait for the disk: try again".into(),
            retry_after_ms: RETRY_AFTER_MS,
        })
    }
}

impl Shard {
    /// A request waits until the names at these places were read, and all that came before it to its topic.
    pub(super) fn wait_for_names(
        &mut self,
        (ticket, topic): (Ticket, TopicId),
        what: What,
        needed: &[(NameHash, NamePlace)],
        out: &mut Effects,
    ) {
        let through = self.durable.names.runs.last();
        let waiting = &mut self.volatile.naming.probing;
        waiting.next_number += 1;
        let number = waiting.next_number;
        let known = Known { found: HashMap::new(), through };
        let waiter = Waiter { number, ticket, topic, what, known, after: RunId(0), pending: needed.len() };
        waiting.size_bytes += waiter.size_bytes();
        waiting.queue.push_back(waiter);
        let probes =
            needed.iter().map(|(hash, place)| Probe { waiter: number, topic, hash: *hash, place: *place });
        waiting.probes.extend(probes);
        self.read_names(out);
    }

    fn read_names(&mut self, out: &mut Effects) {
        let waiting = &mut self.volatile.naming.probing;
        while waiting.reading_count < READING_COUNT_MAX
            && let Some(probe) = waiting.probes.pop_front()
        {
            waiting.reading_count += 1;
            let NamePlace { run, block } = probe.place;
            let offset = u64::from(block) * BLOCK_SIZE_BYTES as u64;
            let op = RunOp::Read { run, offset, len: BLOCK_SIZE_BYTES };
            self.volatile.far.request(Purpose::NameProbe(probe), op, out);
        }
    }

    /// The newest place where a name can be, in a run after one.
    pub(super) fn name_place_after(&self, topic: TopicId, hash: NameHash, after: RunId) -> Option<NamePlace> {
        let (now, window_ms) = (self.volatile.now.wall, self.durable.dedup_window_ms(topic));
        self.durable
            .names
            .runs
            .place_after((topic, hash), after, |accepted| now < accepted.plus_ms(window_ms))
    }

    /// The block where a name can be was read.
    pub(in crate::shard) fn name_read(
        &mut self,
        probe: Probe,
        result: io::Result<Vec<u8>>,
        out: &mut Effects,
    ) {
        self.volatile.naming.probing.reading_count -= 1;
        let (found, next) = match self.find_in_run(probe, result) {
            Ok(found) => found,
            Err(error) => {
                self.volatile.naming.damage.get_or_insert(error);
                return;
            }
        };
        let Probe { topic, hash, place, waiter: number } = probe;
        let queue = &self.volatile.naming.probing.queue;
        let at = queue.binary_search_by_key(&number, |waiter| waiter.number);
        let at = at.expect("a request waits for what is read for it");
        let after = queue[at].after;
        let next = next.or_else(|| {
            let (now, window_ms) = (self.volatile.now.wall, self.durable.dedup_window_ms(topic));
            let is_within = |accepted: WallMs| now < accepted.plus_ms(window_ms);
            let older =
                || self.durable.names.runs.place_between((topic, hash), (after, place.run), is_within);
            if found.is_none() { older() } else { None }
        });
        let waiting = &mut self.volatile.naming.probing;
        if let Some(place) = next {
            waiting.probes.push_front(Probe { place, ..probe });
            return self.read_names(out);
        }
        let waiter = &mut waiting.queue[at];
        waiter.known.found.extend(found.map(|name| (hash, name)));
        waiter.pending -= 1;
        if waiter.pending == 0 {
            self.decide_named(out);
        }
        self.read_names(out);
    }

    /// The name, where it is in the block that was read; or the next block of the run that it may be in.
    fn find_in_run(
        &self,
        probe: Probe,
        result: io::Result<Vec<u8>>,
    ) -> Result<(Option<Name>, Option<NamePlace>), RunError> {
        let Probe { topic, hash, place: NamePlace { run, block }, .. } = probe;
        let footer = self.durable.names.runs.get(run).and_then(|held| held.footer.as_ref());
        // Its windows have passed meanwhile.
        let Some(footer) = footer else { return Ok((None, None)) };
        let bytes = result.map_err(|error| RunError::Io(run, error))?;
        let parsed = NamesBlock::parse(&bytes, (self.config.shard, run), block, &footer.index);
        let parsed = parsed.map_err(|damage| RunError::Damaged(run, damage))?;
        let (now, window_ms) = (self.volatile.now.wall, self.durable.dedup_window_ms(topic));
        let found = parsed.names().find(|name| name.hash == hash && name.covers(now, window_ms));
        let goes_on = footer.index.places(hash).end > (block as usize + 1) * BLOCK_COUNT_MAX;
        let next = NamePlace { run, block: block + 1 };
        Ok((found, (found.is_none() && goes_on).then_some(next)))
    }

    /// Decides what waits and needs no block any more, in order.
    fn decide_named(&mut self, out: &mut Effects) {
        let mut kept = VecDeque::new();
        let mut blocked: SmallVec<[TopicId; 4]> = SmallVec::new();
        for mut waiter in std::mem::take(&mut self.volatile.naming.probing.queue) {
            let topic = waiter.topic;
            if waiter.pending == 0 && !blocked.contains(&topic) {
                let needed = match &waiter.what {
                    What::Publish(events) => {
                        self.publish_known((waiter.ticket, topic), events, &waiter.known, out)
                    }
                    What::Cancel(hash) => {
                        self.cancel_known((waiter.ticket, topic), *hash, &waiter.known, out)
                    }
                };
                let waiting = &mut self.volatile.naming.probing;
                if needed.is_empty() {
                    waiting.size_bytes -= waiter.size_bytes();
                    continue;
                }
                // Names have gone from memory to another run since.
                waiter.after = waiter.known.through;
                waiter.known.through = self.durable.names.runs.last();
                waiter.pending = needed.len();
                let number = waiter.number;
                let probes =
                    needed.into_iter().map(|(hash, place)| Probe { waiter: number, topic, hash, place });
                waiting.probes.extend(probes);
            }
            blocked.push(topic);
            kept.push_back(waiter);
        }
        self.volatile.naming.probing.queue = kept;
    }
}
