//! Cancelling: ask every shard that a request concerns, answer once all have.

use escapement_protocol::frame::{CancelByName, CancelReply, CancelVerdict, EventName, Frame, Items};
use escapement_protocol::ids::shard_of;
use escapement_protocol::{ErrorCode, EventId};

use super::stream::Cancelling;
use super::{
    Backend, Door, REQUEST_ZERO, REQUESTS_MAX, Refusal, Violation, Waiting, malformed, refusal, too_many,
};

/// Most events in one cancellation.
const CANCEL_COUNT_MAX: usize = 4_096;

/// Most events in one cancellation by name.
const CANCEL_NAME_COUNT_MAX: usize = 1_024;

/// Most events in all unanswered cancellations of one stream.
const CANCEL_EVENTS_MAX: usize = 16 * CANCEL_COUNT_MAX;

impl<S: Copy + Eq + std::hash::Hash> Door<S> {
    pub(super) fn cancel(
        &mut self,
        stream: S,
        request: u64,
        events: Items<'_, EventId>,
        backend: &mut impl Backend<S>,
    ) -> Result<(), Violation> {
        let shard_count = self.config.shard_map.shard_count;
        if !self.begin_cancel(stream, request, events.len(), CANCEL_COUNT_MAX)? {
            return Ok(());
        }
        for (slot, event) in events.iter().enumerate() {
            let ticket = self.waiting.insert(Waiting::Cancel { stream, request, slot }) as u64;
            if event.shard.0 >= shard_count {
                self.cancelled(ticket, CancelVerdict::NotFound);
            } else {
                backend.cancel(ticket, event);
            }
        }
        if events.is_empty() {
            self.finish_cancel(stream, request);
        }
        Ok(())
    }

    pub(super) fn cancel_by_name(
        &mut self,
        stream: S,
        cancel: &CancelByName<'_>,
        backend: &mut impl Backend<S>,
    ) -> Result<(), Violation> {
        let CancelByName { request, topic, ref names } = *cancel;
        let shard_count = self.config.shard_map.shard_count;
        if !self.begin_cancel(stream, request, names.len(), CANCEL_NAME_COUNT_MAX)? {
            return Ok(());
        }
        let default_source = backend.default_source(topic).to_owned();
        for (slot, name) in names.iter().enumerate() {
            let ticket = self.waiting.insert(Waiting::Cancel { stream, request, slot }) as u64;
            let states_default = name.source.is_empty() || name.source == default_source;
            let routed = if states_default { "" } else { name.source };
            let shard =
                shard_of(topic, name.ordering_key, routed.as_bytes(), name.id.as_bytes(), shard_count);
            let source = if states_default { &default_source } else { name.source };
            backend.cancel_by_name(ticket, shard, topic, &EventName { source, ..*name });
        }
        if names.is_empty() {
            self.finish_cancel(stream, request);
        }
        Ok(())
    }

    /// Notes a request to cancel so many events; false where it was refused.
    fn begin_cancel(
        &mut self,
        stream: S,
        request: u64,
        asked: usize,
        most: usize,
    ) -> Result<bool, Violation> {
        let Some(state) = self.streams.get_mut(&stream) else { return Ok(false) };
        if request == 0 {
            return Err(malformed(REQUEST_ZERO));
        }
        if state.cancels.contains_key(&request) {
            return Err(malformed(format!("cancellation {request} has no answer yet, and was sent again")));
        }
        if asked > most {
            let message = format!("one request cancels at most {most} events, not {asked}");
            self.send_error(stream, request, &refusal(ErrorCode::TooManyRequests, message));
            return Ok(false);
        }
        if state.cancels.len() >= REQUESTS_MAX || state.cancel_events + asked > CANCEL_EVENTS_MAX {
            self.send_error(stream, request, &too_many());
            return Ok(false);
        }
        state.cancel_events += asked;
        let verdicts = vec![CancelVerdict::NotFound; asked];
        state.cancels.insert(request, Cancelling { verdicts, missing: asked, refusal: None });
        Ok(true)
    }

    /// A verdict for a ticket.
    pub fn cancelled(&mut self, ticket: u64, verdict: CancelVerdict) {
        self.cancel_answered(ticket, Ok(verdict));
    }

    pub(super) fn cancel_answered(&mut self, ticket: u64, answer: Result<CancelVerdict, Refusal>) {
        let Some(&Waiting::Cancel { stream, request, slot }) = self.waiting.get(ticket as usize) else {
            return;
        };
        self.waiting.remove(ticket as usize);
        let Some(state) = self.streams.get_mut(&stream) else { return };
        let Some(cancelling) = state.cancels.get_mut(&request) else { return };
        match answer {
            Ok(verdict) => cancelling.verdicts[slot] = verdict,
            Err(refusal) => cancelling.refusal = Some(refusal),
        }
        cancelling.missing -= 1;
        if cancelling.missing == 0 {
            self.finish_cancel(stream, request);
        }
    }

    fn finish_cancel(&mut self, stream: S, request: u64) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        let Some(Cancelling { verdicts, refusal, .. }) = state.cancels.remove(&request) else { return };
        state.cancel_events -= verdicts.len();
        match refusal {
            // Of some events nothing is known: the client asks again, and those that were cancelled are not found.
            Some(refusal) => self.send_error(stream, request, &refusal),
            None => {
                let verdicts = Items::from(verdicts.as_slice());
                self.send(stream, &Frame::CancelReply(CancelReply { request, verdicts }));
            }
        }
    }
}
