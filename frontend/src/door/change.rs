//! Cancelling and rescheduling: ask every shard that a request concerns, answer once all have.

use escapement_protocol::event::{Due, EventError};
use escapement_protocol::frame::{
    Cancel, CancelByName, CancelReply, CancelVerdict, EventName, Frame, Items, Reschedule, RescheduleReply,
    RescheduleVerdict,
};
use escapement_protocol::ids::shard_of;
use escapement_protocol::{DELAY_MS_MAX, ErrorCode, EventId, Now, WallMs};

use super::stream::{Changing, Verdicts};
use super::{
    Backend, Door, REQUEST_ZERO, REQUESTS_MAX, Refusal, Violation, Waiting, malformed, refusal, too_many,
};

/// Most events in one request.
const CHANGE_COUNT_MAX: usize = 4_096;

/// Most events in one cancellation by name.
const NAME_COUNT_MAX: usize = 1_024;

/// Most events in all unanswered requests of one stream.
const CHANGE_EVENTS_MAX: usize = 16 * CHANGE_COUNT_MAX;

impl<S: Copy + Eq + std::hash::Hash> Door<S> {
    pub(super) fn cancel(
        &mut self,
        stream: S,
        cancel: &Cancel<'_>,
        backend: &mut impl Backend<S>,
    ) -> Result<(), Violation> {
        let verdicts = Verdicts::Cancel(vec![CancelVerdict::NotFound; cancel.events.len()]);
        let ask = |ticket, _, event| backend.cancel(ticket, event);
        self.change(stream, cancel.request, cancel.events, verdicts, ask)
    }

    pub(super) fn cancel_by_name(
        &mut self,
        stream: S,
        cancel: &CancelByName<'_>,
        backend: &mut impl Backend<S>,
    ) -> Result<(), Violation> {
        let CancelByName { request, topic, ref names } = *cancel;
        let verdicts = Verdicts::Cancel(vec![CancelVerdict::NotFound; names.len()]);
        if !self.begin_change(stream, request, verdicts, NAME_COUNT_MAX)? {
            return Ok(());
        }
        let shard_count = self.config.shard_map.shard_count;
        let default_source = backend.default_source(topic).to_owned();
        for (slot, name) in names.iter().enumerate() {
            let ticket = self.waiting.insert(Waiting::Change { stream, request, slot }) as u64;
            let states_default = name.source.is_empty() || name.source == default_source;
            let routed = if states_default { "" } else { name.source };
            let shard =
                shard_of(topic, name.ordering_key, routed.as_bytes(), name.id.as_bytes(), shard_count);
            let source = if states_default { &default_source } else { name.source };
            backend.cancel_by_name(ticket, shard, topic, &EventName { source, ..*name });
        }
        if names.is_empty() {
            self.finish_change(stream, request);
        }
        Ok(())
    }

    pub(super) fn reschedule(
        &mut self,
        now: Now,
        stream: S,
        reschedule: &Reschedule<'_>,
        backend: &mut impl Backend<S>,
    ) -> Result<(), Violation> {
        let Reschedule { request, events, due, versions } = *reschedule;
        let due = match due {
            Due::At(at) => at,
            Due::After(delay_ms) => now.wall.plus_ms(delay_ms),
        };
        if due > WallMs(now.wall.0.saturating_add(DELAY_MS_MAX)) && request != 0 {
            let error = EventError::DelayTooLong;
            self.send_error(stream, request, &refusal(error.code(), error.to_string()));
            return Ok(());
        }
        let expected: Vec<u64> = versions.iter().collect();
        let verdicts = Verdicts::Reschedule(vec![RescheduleVerdict::NotFound; events.len()]);
        let ask = |ticket, slot: usize, event| {
            backend.reschedule(ticket, event, due, expected.get(slot).copied());
        };
        self.change(stream, request, events, verdicts, ask)
    }

    /// Takes a request, and asks for each event that can be one of this node.
    fn change(
        &mut self,
        stream: S,
        request: u64,
        events: Items<'_, EventId>,
        verdicts: Verdicts,
        mut ask: impl FnMut(u64, usize, EventId),
    ) -> Result<(), Violation> {
        let shard_count = self.config.shard_map.shard_count;
        if !self.begin_change(stream, request, verdicts, CHANGE_COUNT_MAX)? {
            return Ok(());
        }
        for (slot, event) in events.iter().enumerate() {
            let ticket = self.waiting.insert(Waiting::Change { stream, request, slot }) as u64;
            if event.shard.0 >= shard_count {
                // No event of this node: as it was answered beforehand.
                self.change_answered(ticket, Ok(|_: &mut Verdicts, _| {}));
            } else {
                ask(ticket, slot, event);
            }
        }
        if events.is_empty() {
            self.finish_change(stream, request);
        }
        Ok(())
    }

    /// Notes a request to change as many events as there are verdicts; false where it was refused.
    fn begin_change(
        &mut self,
        stream: S,
        request: u64,
        verdicts: Verdicts,
        most: usize,
    ) -> Result<bool, Violation> {
        let Some(state) = self.streams.get_mut(&stream) else { return Ok(false) };
        if request == 0 {
            return Err(malformed(REQUEST_ZERO));
        }
        if state.changes.contains_key(&request) {
            let what = match verdicts {
                Verdicts::Cancel(_) => "cancellation",
                Verdicts::Reschedule(_) => "rescheduling",
            };
            return Err(malformed(format!("{what} {request} has no answer yet, and was sent again")));
        }
        let asked = verdicts.len();
        if asked > most {
            let message = format!("one request changes at most {most} events, not {asked}");
            self.send_error(stream, request, &refusal(ErrorCode::TooManyRequests, message));
            return Ok(false);
        }
        if state.changes.len() >= REQUESTS_MAX || state.change_events + asked > CHANGE_EVENTS_MAX {
            self.send_error(stream, request, &too_many());
            return Ok(false);
        }
        state.change_events += asked;
        let changing = Changing { verdicts, count: asked, missing: asked, refusal: None };
        state.changes.insert(request, changing);
        Ok(true)
    }

    /// A verdict for a ticket.
    ///
    /// # Panics
    /// If the ticket was not of a cancellation.
    pub fn cancelled(&mut self, ticket: u64, verdict: CancelVerdict) {
        self.change_answered(
            ticket,
            Ok(|verdicts: &mut Verdicts, slot| match verdicts {
                Verdicts::Cancel(verdicts) => verdicts[slot] = verdict,
                Verdicts::Reschedule(_) => panic!("a rescheduling was answered as a cancellation"),
            }),
        );
    }

    /// A verdict for a ticket.
    ///
    /// # Panics
    /// If the ticket was not of a rescheduling.
    pub fn rescheduled(&mut self, ticket: u64, verdict: RescheduleVerdict) {
        self.change_answered(
            ticket,
            Ok(|verdicts: &mut Verdicts, slot| match verdicts {
                Verdicts::Reschedule(verdicts) => verdicts[slot] = verdict,
                Verdicts::Cancel(_) => panic!("a cancellation was answered as a rescheduling"),
            }),
        );
    }

    pub(super) fn change_refused(&mut self, ticket: u64, refusal: Refusal) {
        self.change_answered::<fn(&mut Verdicts, usize)>(ticket, Err(refusal));
    }

    fn change_answered<F: FnOnce(&mut Verdicts, usize)>(&mut self, ticket: u64, answer: Result<F, Refusal>) {
        let Some(&Waiting::Change { stream, request, slot }) = self.waiting.get(ticket as usize) else {
            return;
        };
        self.waiting.remove(ticket as usize);
        let Some(state) = self.streams.get_mut(&stream) else { return };
        let Some(changing) = state.changes.get_mut(&request) else { return };
        match answer {
            Ok(set) => set(&mut changing.verdicts, slot),
            Err(refusal) => changing.refusal = Some(refusal),
        }
        changing.missing -= 1;
        if changing.missing == 0 {
            self.finish_change(stream, request);
        }
    }

    fn finish_change(&mut self, stream: S, request: u64) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        let Some(Changing { verdicts, count, refusal, .. }) = state.changes.remove(&request) else { return };
        state.change_events -= count;
        match (refusal, verdicts) {
            // Of some events nothing is known: the client asks again, and those that were cancelled are not found.
            (Some(refusal), _) => self.send_error(stream, request, &refusal),
            (None, Verdicts::Cancel(verdicts)) => {
                let verdicts = Items::from(verdicts.as_slice());
                self.send(stream, &Frame::CancelReply(CancelReply { request, verdicts }));
            }
            (None, Verdicts::Reschedule(verdicts)) => {
                let verdicts = Items::from(verdicts.as_slice());
                self.send(stream, &Frame::RescheduleReply(RescheduleReply { request, verdicts }));
            }
        }
    }
}
