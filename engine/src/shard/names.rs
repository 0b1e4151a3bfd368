//! Recognising what is published twice: a topic with a `dedup_window` answers it with the receipt of the first.
//!
//! Decided against the names that are durable, and those of events that are still in flight to the disk: the answer
//! to a duplicate of one of these leaves with that one's. Where a name may be in a run, its publish waits for a block of
//! that to be read ([`probe`]).

mod flush;
mod probe;

use std::collections::VecDeque;

use hashbrown::HashMap;

use escapement_protocol::event::padded_len;
use escapement_protocol::frame::CancelVerdict;
use escapement_protocol::{ErrorCode, EventId, EventView, MonoNs, Sequence, TopicId, WallMs};

use super::far::{Aim, LookUp};
use super::publish::{Offer, RUN_SIZE_BYTES_MAX, SPACE_RETRY_AFTER_MS, cut};
use super::{Durable, Shard};
use crate::effects::{Duplicate, Effects, Refusal, ReplyBody, Ticket};
use crate::far::{RunError, RunId};
use crate::names::format::NamesFooter;
use crate::names::{NAME_HASH_SIZE_BYTES, NAME_SIZE_BYTES, Name, NameHash, NamePlace, Statement};
use crate::record::{HeldNames, NameHashes, effective_due, published_events};
use flush::Flush;
pub(super) use probe::Probe;
use probe::{Known, Waiting, What};

/// Names take at most this part of the memory for pending events.
const MEMORY_SHARE: usize = 4;

/// What a name takes in memory at most, in its generation and in what the log's blocks are known to hold.
const NAME_MEMORY_SIZE_BYTES: usize = NAME_SIZE_BYTES + 24;

/// What a name takes of the log, in its event's record and in one that states it again.
const NAME_LOG_SIZE_BYTES: usize = NAME_HASH_SIZE_BYTES + NAME_SIZE_BYTES;

/// How often the windows of the oldest names are looked at.
const FORGET_EVERY_MS: u64 = 1_000;

/// What is lost in a crash of what is known of names.
#[derive(Debug, Default)]
pub(super) struct Naming {
    /// Of events that are accepted and not applied yet.
    in_flight: HashMap<NameHash, Name>,
    /// By topic, which names are forgotten, or in a run, once what says so is durable.
    forgetting: HashMap<TopicId, Sequence>,
    forget_at: MonoNs,
    flush: Option<Flush>,
    /// Of runs that the log does not know yet, in the order of their statements.
    footers: VecDeque<(RunId, NamesFooter)>,
    retry_at: MonoNs,
    /// What waits for blocks of runs.
    probing: Waiting,
    /// A block that was needed could not be read.
    damage: Option<RunError>,
    /// Cancellations of events that are accepted and not applied yet.
    waiting: Vec<(Ticket, TopicId, NameHash)>,
    // Scratch, kept for its memory.
    items: Vec<Item>,
    hashes: Vec<NameHash>,
    fresh: Vec<u8>,
}

impl Naming {
    /// Who waits for names to be read, or for a cancellation to be decided.
    pub(super) fn take_waiting(&mut self, tickets: &mut Vec<Ticket>) {
        self.probing.take_waiting(tickets);
        tickets.extend(self.waiting.drain(..).map(|(ticket, ..)| ticket));
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let flush = self.flush.as_ref().map_or(0, Flush::memory_bytes);
        self.in_flight.capacity() * size_of::<(NameHash, Name)>() + flush + self.probing.memory_bytes()
    }
}

/// Cancellations that wait for events to be durable at once.
const WAITING_COUNT_MAX: usize = 1_024;

/// How long a caller should wait where they are as many.
const WAITING_RETRY_AFTER_MS: u32 = 100;

/// One event of a run.
#[derive(Clone, Copy, Debug)]
struct Item {
    hash: NameHash,
    /// Its bytes, padding included.
    size_bytes: usize,
    /// Where it was published before.
    first: Option<Name>,
}

impl Durable {
    fn dedup_window_ms(&self, topic: TopicId) -> u64 {
        self.registry.topic(topic).map_or(0, |topic| topic.settings.dedup_window_ms)
    }

    /// Brings recovered names into their order.
    pub(super) fn build_names(&mut self) {
        let registry = &self.registry;
        let window_ms = |topic| registry.topic(topic).map_or(0, |topic| topic.settings.dedup_window_ms);
        self.names.build(window_ms);
    }
}

impl Shard {
    /// Why a run of names can't be read, once that has happened. The shard must stop: it can't say whether what is published
    /// was published before.
    #[must_use]
    pub fn names_damage(&self) -> Option<&RunError> {
        self.volatile.naming.damage.as_ref()
    }

    /// Publishes to a topic with a `dedup_window`.
    pub(super) fn publish_named(
        &mut self,
        (ticket, topic): (Ticket, TopicId),
        count: u32,
        events: &[u8],
        out: &mut Effects,
    ) {
        let is_behind = self.volatile.naming.probing.is_any_of(topic);
        let known = Known::default();
        let needed = if is_behind {
            let needed = self.look_up_names(topic, events, &known);
            self.take_back_names();
            needed
        } else {
            self.publish_known((ticket, topic), events, &known, out)
        };
        if needed.is_empty() && !is_behind {
            return;
        }
        if let Some(refusal) = self.volatile.naming.probing.refusal(events.len()) {
            return self.refuse_publish(ticket, count, refusal, out);
        }
        self.wait_for_names((ticket, topic), What::Publish(events.to_vec()), &needed, out);
    }

    /// Decides on events, unless some have to be looked for in runs first: at these places.
    fn publish_known(
        &mut self,
        (ticket, topic): (Ticket, TopicId),
        events: &[u8],
        known: &Known,
        out: &mut Effects,
    ) -> Vec<(NameHash, NamePlace)> {
        let needed = self.look_up_names(topic, events, known);
        if needed.is_empty() {
            self.publish_looked_up(ticket, topic, events, out);
        } else {
            self.take_back_names();
        }
        needed
    }

    /// Decides on events whose names were looked up.
    fn publish_looked_up(&mut self, ticket: Ticket, topic: TopicId, events: &[u8], out: &mut Effects) {
        let now = self.volatile.now.wall;
        let mut items = std::mem::take(&mut self.volatile.naming.items);
        let groups = self.new_groups_size_bytes(topic, items.len() as u32, events);
        let fresh = || items.iter().filter(|item| item.first.is_none());
        let offer = Offer {
            count: fresh().count() as u32,
            size_bytes: fresh().map(|item| item.size_bytes).sum(),
            largest_size_bytes: fresh().map(|item| item.size_bytes).max().unwrap_or(0),
            extra_size_bytes: NAME_LOG_SIZE_BYTES,
            groups_size_bytes: groups.as_ref().map_or(0, |size_bytes| size_bytes.unwrap_or(0)),
        };
        let has_groups = !matches!(groups, Ok(None));
        let (taken, refusal) = if offer.count == 0 {
            (0, None)
        } else if let Some(refusal) = self.names_refusal(offer.count) {
            (0, Some(refusal))
        } else if let Err(refusal) = groups {
            (0, Some(refusal))
        } else {
            self.admit(topic, offer)
        };
        let first_sequence = Sequence(self.volatile.next_sequence);
        self.volatile.next_sequence += u64::from(taken);
        assert!(self.volatile.next_sequence <= Sequence::MAX.0, "48 bits of sequence are used up");

        // An event that is not taken ends what is accepted, so that the publisher sends the rest again in order.
        let naming = &mut self.volatile.naming;
        let (mut accepted_count, mut fresh_count, mut at, mut waits) = (0, 0, 0, taken > 0);
        let mut duplicates = Vec::new();
        for (index, item) in (0..).zip(&items) {
            let event = &events[at..at + item.size_bytes];
            at += item.size_bytes;
            match item.first {
                Some(Name { hash, sequence, schedule_time, accepted }) => {
                    waits |= naming.in_flight.get(&hash).is_some_and(|held| held.sequence == sequence);
                    duplicates.push(Duplicate { index, sequence, schedule_time, accepted });
                }
                None if fresh_count == taken => break,
                None => {
                    fresh_count += 1;
                    naming.hashes.push(item.hash);
                    naming.fresh.extend_from_slice(event);
                }
            }
            accepted_count += 1;
        }
        for item in items[accepted_count as usize..].iter().filter(|item| item.first.is_none()) {
            naming.in_flight.remove(&item.hash);
        }
        self.volatile.stats.duplicates += duplicates.len() as u64;
        self.volatile.stats.refused += items.len() as u64 - u64::from(accepted_count);
        items.clear();
        self.volatile.naming.items = items;
        if has_groups {
            let fresh = std::mem::take(&mut self.volatile.naming.fresh);
            self.join_groups(topic, first_sequence, taken, &fresh);
            self.volatile.naming.fresh = fresh;
        }
        self.log_named(topic, first_sequence, out);
        let body = match refusal {
            Some(refusal) if accepted_count == 0 => ReplyBody::Refused(refusal),
            refusal => {
                ReplyBody::Published { first_sequence, accepted_count, accepted: now, refusal, duplicates }
            }
        };
        if waits {
            out.reply_on_commit(ticket, body);
        } else {
            out.reply(ticket, body);
        }
    }

    /// Cancels the event that was accepted under a name within the window.
    pub(super) fn cancel_by_name(
        &mut self,
        ticket: Ticket,
        topic: TopicId,
        hash: NameHash,
        out: &mut Effects,
    ) {
        let window_ms = self.durable.dedup_window_ms(topic);
        if window_ms == 0 {
            let Some(held) = self.durable.registry.topic(topic) else {
                return out.reply(ticket, ReplyBody::Refused(self.unknown_topic(topic)));
            };
            let message = format!(
                "topic {:?} has no dedup_window, and keeps no names of events: cancel by event id",
                held.settings.name
            );
            return out.refuse(ticket, ErrorCode::InvalidSettings, 0, message);
        }
        let is_behind = self.volatile.naming.probing.is_any_of(topic);
        let needed = if is_behind {
            Vec::new()
        } else {
            self.cancel_known((ticket, topic), hash, &Known::default(), out)
        };
        if needed.is_empty() && !is_behind {
            return;
        }
        if let Some(refusal) = self.volatile.naming.probing.refusal(0) {
            return out.reply(ticket, ReplyBody::Refused(refusal));
        }
        self.wait_for_names((ticket, topic), What::Cancel(hash), &needed, out);
    }

    /// Cancels the event of a name, unless it has to be looked for in runs first: at this place.
    fn cancel_known(
        &mut self,
        (ticket, topic): (Ticket, TopicId),
        hash: NameHash,
        known: &Known,
        out: &mut Effects,
    ) -> Vec<(NameHash, NamePlace)> {
        let (now, window_ms) = (self.volatile.now.wall, self.durable.dedup_window_ms(topic));
        let naming = &mut self.volatile.naming;
        if naming.in_flight.get(&hash).is_some_and(|name| name.covers(now, window_ms)) {
            // Decided once it is pending.
            if naming.waiting.len() >= WAITING_COUNT_MAX {
                let message = "too many cancellations wait for what was just published: try again";
                out.refuse(ticket, ErrorCode::ResourceExhausted, WAITING_RETRY_AFTER_MS, message);
            } else {
                naming.waiting.push((ticket, topic, hash));
            }
            return Vec::new();
        }
        let held = self.durable.names.find(topic, hash, now, window_ms);
        let read = || known.found.get(&hash).filter(|name| name.covers(now, window_ms));
        if let Some(&Name { sequence, schedule_time, .. }) = held.or_else(read) {
            let shard = self.config.shard;
            let event = EventId { shard, sequence, schedule_time_ms: schedule_time.0 };
            self.change(LookUp { ticket, event, aim: Aim::Cancel }, out);
            return Vec::new();
        }
        let place = self.name_place_after(topic, hash, known.through);
        if place.is_none() {
            out.reply(ticket, ReplyBody::Cancelled(CancelVerdict::NotFound));
        }
        place.map(|place| (hash, place)).into_iter().collect()
    }

    /// Cancellations that waited for events to be applied are decided now.
    pub(super) fn cancel_named_waiting(&mut self, out: &mut Effects) {
        if self.volatile.naming.waiting.is_empty() {
            return;
        }
        for (ticket, topic, hash) in std::mem::take(&mut self.volatile.naming.waiting) {
            self.cancel_by_name(ticket, topic, hash, out);
        }
    }

    /// Finds each event's first, and enters those that have none as in flight, as if all were taken. Answers where in
    /// runs some of these may be.
    fn look_up_names(&mut self, topic: TopicId, events: &[u8], known: &Known) -> Vec<(NameHash, NamePlace)> {
        let mut needed = Vec::new();
        let now = self.volatile.now.wall;
        let Some(held) = self.durable.registry.topic(topic) else { return needed };
        let (window_ms, default_source) = (held.settings.dedup_window_ms, &held.settings.default_source);
        let names = &self.durable.names;
        let Naming { in_flight, items, .. } = &mut self.volatile.naming;
        items.clear();
        let mut sequence = Sequence(self.volatile.next_sequence);
        let mut rest = events;
        while let Some(view) = EventView::trusted(rest) {
            let source = if view.source().is_empty() { default_source.as_bytes() } else { view.source() };
            let hash = NameHash::of(topic, view.ordering_key(), source, view.id());
            let read = || known.found.get(&hash).filter(|name| name.covers(now, window_ms));
            let first = in_flight.get(&hash).filter(|name| name.covers(now, window_ms));
            let first = first.or_else(|| names.find(topic, hash, now, window_ms)).or_else(read).copied();
            let size_bytes = padded_len(view.as_bytes().len());
            if first.is_none() {
                let within = |accepted: WallMs| now < accepted.plus_ms(window_ms);
                let place = names.runs.place_after((topic, hash), known.through, within);
                needed.extend(place.map(|place| (hash, place)));
                let schedule_time = schedule_time(&rest[..size_bytes], now);
                in_flight.insert(hash, Name { hash, sequence, schedule_time, accepted: now });
                sequence.0 += 1;
            }
            items.push(Item { hash, size_bytes, first });
            rest = &rest[size_bytes..];
        }
        needed
    }

    /// What was looked up is not published now.
    fn take_back_names(&mut self) {
        let Naming { in_flight, items, .. } = &mut self.volatile.naming;
        for item in items.drain(..).filter(|item| item.first.is_none()) {
            in_flight.remove(&item.hash);
        }
    }

    /// Logs the events that were set aside as new.
    fn log_named(&mut self, topic: TopicId, first: Sequence, out: &mut Effects) {
        let most = self.event_size_bytes_max(NAME_HASH_SIZE_BYTES).min(RUN_SIZE_BYTES_MAX);
        let naming = &mut self.volatile.naming;
        let (mut hashes, mut rest, mut sequence) = (&naming.hashes[..], &naming.fresh[..], first);
        while !hashes.is_empty() {
            let (count, size_bytes) = cut(rest, hashes.len() as u32, most, NAME_HASH_SIZE_BYTES);
            let (names, later) = hashes.split_at(count as usize);
            out.log().published_named(topic, sequence, self.volatile.now.wall, names, &rest[..size_bytes]);
            (hashes, rest) = (later, &rest[size_bytes..]);
            sequence.0 += u64::from(count);
        }
        self.volatile.accepted_bytes += naming.fresh.len();
        self.volatile.stats.published += naming.hashes.len() as u64;
        naming.hashes.clear();
        naming.fresh.clear();
    }

    /// Why so many more names can't be held. None that is held is ever given up for them.
    fn names_refusal(&self, count: u32) -> Option<Refusal> {
        let refusal = |message: &str| {
            let message = message.to_owned();
            Some(Refusal {
                code: ErrorCode::ResourceExhausted,
                message,
                retry_after_ms: SPACE_RETRY_AFTER_MS,
            })
        };
        let names = &self.durable.names;
        let coming = self.volatile.naming.in_flight.len() + count as usize;
        let flush = self.volatile.naming.flush.as_ref().map_or(0, Flush::memory_bytes);
        let memory_bytes = names.memory_bytes() + flush + coming * NAME_MEMORY_SIZE_BYTES;
        if memory_bytes > self.config.memory_bytes_max / MEMORY_SHARE {
            return refusal(
                "the names that dedup windows cover fill their quarter of the memory: publish again later, raise \
                 memory, or publish to a topic with a shorter dedup_window or none",
            );
        }
        // Half of what the log can hold at most, so that other topics find room.
        if names.statements_size_bytes() + coming * NAME_LOG_SIZE_BYTES > self.log_room_bytes() {
            return refusal(
                "the names that dedup windows cover fill their half of the log: publish again later, raise \
                 log_size_max, or publish to a topic with a shorter dedup_window or none",
            );
        }
        None
    }

    /// Says which names have passed out of their windows, now and then.
    pub(super) fn forget_names(&mut self, out: &mut Effects) {
        let now = self.volatile.now;
        if now.mono < self.volatile.naming.forget_at {
            return;
        }
        self.volatile.naming.forget_at = now.mono.plus_ms(FORGET_EVERY_MS);
        self.end_names_runs(out);
        for topic in self.durable.names.topics() {
            let window_ms = self.durable.dedup_window_ms(topic);
            let Some(before) = self.durable.names.passed(topic, now.wall, window_ms) else { continue };
            let said = self.volatile.naming.forgetting.entry(topic).or_default();
            if *said < before {
                *said = before;
                out.log().names_forgotten(topic, before);
            }
        }
    }

    /// States names again that blocks up to `upto` hold, until the records have come to `budget_end` bytes.
    pub(super) fn restate_names(&mut self, upto: u64, budget_end: usize, out: &mut Effects) {
        if self.durable.names.oldest_block().is_none_or(|block| block > upto) {
            return;
        }
        let mut statements = std::mem::take(&mut self.durable.names.statements);
        for statement in statements.upto(upto).filter(|statement| !statement.is_restating) {
            if out.records.len() >= budget_end {
                break;
            }
            let Statement { block, topic, first, last, .. } = *statement;
            // What is to be forgotten by then is not stated after it.
            let forgotten = self.volatile.naming.forgetting.get(&topic).copied().unwrap_or_default();
            let mut names = self.durable.names.range(topic, first.max(forgotten), last).peekable();
            if names.peek().is_some() {
                statement.is_restating = true;
                out.log().names(topic, block, first, names);
            }
        }
        self.durable.names.statements = statements;
    }

    pub(super) fn apply_names_published(
        &mut self,
        block: u64,
        topic: TopicId,
        first: Sequence,
        accepted: WallMs,
        names: NameHashes<'_>,
        events: &[u8],
    ) {
        if names.count() == 0 {
            return;
        }
        let window_ms = self.durable.dedup_window_ms(topic);
        for (hash, (sequence, _, event)) in names.iter().zip(published_events(first, accepted, events)) {
            let name = Name { hash, sequence, schedule_time: schedule_time(event, accepted), accepted };
            if self.recovering {
                self.durable.names.recover(topic, name);
                continue;
            }
            self.durable.names.insert(topic, window_ms, name);
            // Under a name whose window has passed meanwhile there may be a later one.
            let in_flight = &mut self.volatile.naming.in_flight;
            if in_flight.get(&hash) == Some(&name) {
                in_flight.remove(&hash);
            }
        }
        let last = Sequence(first.0 + names.count() as u64 - 1);
        let statement = Statement { block, topic, first, last, again: false, is_restating: false };
        self.durable.names.statements.push(statement);
    }

    pub(super) fn apply_names_again(
        &mut self,
        block: u64,
        topic: TopicId,
        of_block: u64,
        first: Sequence,
        names: HeldNames<'_>,
    ) {
        let held = &mut self.durable.names;
        let was_there = held.statements.remove(of_block, topic, first);
        assert!(was_there || self.recovering, "names are stated again from where they were");
        let sequences = || names.iter().map(|name| name.sequence);
        if let Some((first, last)) = sequences().next().zip(sequences().next_back()) {
            let statement = Statement { block, topic, first, last, again: true, is_restating: false };
            held.statements.push(statement);
        }
        if self.recovering {
            names.iter().for_each(|name| held.recover(topic, name));
        } else {
            held.drop_dead_statements();
        }
    }

    pub(super) fn apply_names_forgotten(&mut self, topic: TopicId, before: Sequence) {
        self.durable.names.forget(topic, before);
    }
}

/// When an event accepted at `accepted` is scheduled for, as its id says.
fn schedule_time(event: &[u8], accepted: WallMs) -> WallMs {
    let stated = EventView::trusted(event).and_then(|view| view.stated_time());
    stated.or_else(|| effective_due(event, accepted)).unwrap_or(accepted)
}
