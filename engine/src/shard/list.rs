//! Listing what is pending, a page at a time, at a cost that is bounded whatever is pending.
//!
//! A shard passes over what is in memory in the order of the blocks of the log that hold it, and over runs in the order
//! of their numbers and blocks. Whatever moves comes in at the end of one of these two: an event that is loaded, leaves
//! a run for another due time or is appended again is in a new block of the log, and one that leaves the log is in the
//! next blocks of the newest run. So an event that is pending all the time is at each moment in a place that was passed
//! over after it came there, or in one that is ahead; and a listing is over once nothing is ahead in either. It shows an
//! event twice that has moved meanwhile, and ends as soon as it catches up with what moves. Events that came after it
//! began are left out by their sequence.
//!
//! Due times are asked for as they are without groups: what is postponed with its group is found by the due time of its own, and
//! shown with the later one.
//!
//! A token says how far both have come ([`PageToken`]). It is good for one start of the shard: a number of a run may be
//! used again by the next.

use smallvec::SmallVec;

use escapement_protocol::frame::{
    EVENT_PAGE_SIZE_BYTES_MAX, EventInfo, EventPage, EventPlace, ListEvents, ListedEvent, PageToken,
    QueryAnswer, TokenError,
};
use escapement_protocol::{Epoch, ErrorCode, EventId, EventView, Sequence, ShardId, TopicId, WallMs};

use super::Shard;
use super::ledger::Place;
use super::query::state_of;
use crate::effects::{Effects, Refusal, ReplyBody, Ticket};
use crate::record::TaskProgress;

/// Blocks and events that one page looks at, in memory and in what is known of runs.
const LOOK_COUNT_MAX: usize = 4_096;

/// Names one start of a shard, and is not 0.
pub(super) fn start_of(epoch: Epoch, seed: u64) -> u32 {
    xxhash_rust::xxh3::xxh3_64_with_seed(&epoch.0.to_le_bytes(), seed) as u32 | 1
}

/// A page that is being put together.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) ticket: Ticket,
    pub(super) list: ListEvents,
    /// What comes next.
    pub(super) at: PageToken,
    pub(super) events: Vec<ListedEvent>,
    size_bytes: usize,
    /// Of the topic, in blocks that could not be read.
    pub(super) unread: u64,
    /// How many it may still look at.
    pub(super) looks: usize,
}

/// A pending event, wherever it is.
pub(super) struct Candidate<'a> {
    pub(super) sequence: Sequence,
    pub(super) due: WallMs,
    /// As its id says.
    pub(super) schedule_time: WallMs,
    pub(super) topic: TopicId,
    pub(super) place: EventPlace,
    pub(super) tasks: &'a [TaskProgress],
    pub(super) bytes: &'a [u8],
}

impl Page {
    /// Whether it has as many events, or bytes of them, as it may.
    pub(super) fn is_full(&self) -> bool {
        self.events.len() >= self.list.page_count_max() || self.size_bytes >= EVENT_PAGE_SIZE_BYTES_MAX
    }

    /// Whether an event is asked for, as far as these say.
    pub(super) fn wants(&self, sequence: Sequence, topic: TopicId, due: WallMs) -> bool {
        let ListEvents { from, until, .. } = self.list;
        sequence < self.at.bound && topic == self.list.topic && from <= due && due < until
    }

    /// Takes an event in, if the rest of it is asked for, too.
    pub(super) fn offer(&mut self, shard: ShardId, now: WallMs, event: &Candidate<'_>) {
        let state = state_of(now, event.due, event.tasks);
        let Some(view) = EventView::trusted(event.bytes) else { return };
        let key = &self.list.ordering_key;
        let has_key = key.is_empty() || view.ordering_key() == key;
        if !has_key || self.list.state.is_some_and(|wanted| wanted != state) {
            return;
        }
        let Candidate { sequence, due, topic, place, .. } = *event;
        let id = EventId { shard, sequence, schedule_time_ms: event.schedule_time.0 };
        let listed = ListedEvent {
            info: EventInfo { id, due, topic, size_bytes: event.bytes.len() as u32, state, place },
            id: String::from_utf8_lossy(view.id()).into_owned(),
            ordering_key: view.ordering_key().to_vec(),
            attempt: event.tasks.iter().map(|task| task.attempt).max().unwrap_or(0),
        };
        self.size_bytes += listed.size_bytes();
        self.events.push(listed);
    }

    fn go_to(&mut self, place: Place) {
        // An index that does not fit is one that nobody can have got.
        (self.at.block, self.at.index) = (place.block, u32::try_from(place.index).unwrap_or(u32::MAX));
    }
}

impl Shard {
    pub(super) fn list(&mut self, ticket: Ticket, list: &ListEvents, out: &mut Effects) {
        let position = list.position(self.config.shard_count).and_then(|at| {
            let is_here = at.shard == self.config.shard;
            match at.start {
                0 => {
                    let bound = Sequence(self.durable.next_sequence);
                    let begun = PageToken::first(at.shard, at.filter);
                    Ok(PageToken { start: self.volatile.start, bound, ..begun })
                }
                start if start == self.volatile.start => Ok(at),
                _ => Err(TokenError::Stale),
            }
            .and_then(|at| if is_here { Ok(at) } else { Err(TokenError::Stale) })
        });
        match position {
            Ok(at) => {
                let (list, events) = (list.clone(), Vec::new());
                let looks = LOOK_COUNT_MAX;
                let page = Page { ticket, list, at, events, size_bytes: 0, unread: 0, looks };
                self.fill_page(Box::new(page), true, out);
            }
            Err(error) => {
                let (code, message) = (ErrorCode::InvalidPageToken, error.to_string());
                out.reply(ticket, ReplyBody::Refused(Refusal { code, message, retry_after_ms: 0 }));
            }
        }
    }

    /// Goes on with a page: over what is in memory, then over runs, of which one read at most is made.
    pub(super) fn fill_page(&mut self, mut page: Box<Page>, may_read: bool, out: &mut Effects) {
        let is_over = self.list_memory(&mut page) && {
            match self.blocks_ahead(&mut page) {
                // What was found does not wait for the disk.
                Some(blocks) if may_read && page.events.is_empty() && !blocks.is_empty() => {
                    return self.read_listed(page, blocks, out);
                }
                blocks => blocks.is_none(),
            }
        };
        self.end_page(*page, is_over, out);
    }

    /// Looks at what is in memory. Answers whether nothing is ahead there.
    fn list_memory(&self, page: &mut Page) -> bool {
        let mut batch = SmallVec::new();
        loop {
            let from = Place { block: page.at.block, index: page.at.index as usize };
            let next = self.durable.ledger.look_through(from, page.at.bound, &mut page.looks, &mut batch);
            self.durable.table.touch(batch.iter().map(|(_, sequence)| *sequence));
            for (place, sequence) in batch.drain(..) {
                if page.is_full() {
                    page.go_to(place);
                    return false;
                }
                self.offer_from_memory(page, place, sequence);
            }
            page.go_to(next);
            if next >= self.durable.ledger.end() {
                return true;
            }
            if page.looks == 0 {
                return false;
            }
        }
    }

    fn offer_from_memory(&self, page: &mut Page, place: Place, sequence: Sequence) {
        let Some(entry) = self.durable.table.get(sequence) else { return };
        // Where it was appended again it is ahead, or was looked at.
        if entry.block != place.block as u32 || !page.wants(sequence, entry.topic, entry.due) {
            return;
        }
        let Some(event) = self.event(sequence) else { return };
        if self.durable.is_cancelled_with_group(event.topic, sequence, event.bytes) {
            return;
        }
        let candidate = Candidate {
            sequence,
            due: self.durable.due_with_group(event.topic, sequence, event.bytes, event.due),
            schedule_time: event.schedule_time(),
            topic: event.topic,
            place: EventPlace::Memory,
            tasks: self.durable.progress.get(sequence),
            bytes: event.bytes,
        };
        page.offer(self.config.shard, self.volatile.now.wall, &candidate);
    }

    /// Answers with what a page has. Where nothing is ahead here, the next shard goes on.
    fn end_page(&mut self, page: Page, is_over: bool, out: &mut Effects) {
        let Page { ticket, list, at, events, unread, .. } = page;
        let token = if is_over { list.token_past(at.shard, self.config.shard_count) } else { at.to_bytes() };
        let page = EventPage { events, token, unread, missing: Vec::new() };
        out.reply(ticket, ReplyBody::Answered(QueryAnswer::List(page)));
    }

    /// Too many pages wait for the disk.
    pub(super) fn refuse_page(&mut self, page: &Page, retry_after_ms: u32, out: &mut Effects) {
        let message = "too many listings wait for the disk: ask for the same page again".into();
        let code = ErrorCode::ResourceExhausted;
        out.reply(page.ticket, ReplyBody::Refused(Refusal { code, message, retry_after_ms }));
    }
}
