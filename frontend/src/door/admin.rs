//! Administration: creation goes to shard 0, reads are answered from this core's copy.

use escapement_protocol::frame::{AdminAnswer, AdminRequest, Frame};

use super::{ANSWERS_SIZE_BYTES_MAX, Backend, Door, REQUESTS_MAX, Waiting, refusal, too_many, unavailable};

impl<S: Copy + Eq + std::hash::Hash> Door<S> {
    pub(super) fn admin(
        &mut self,
        stream: S,
        request: u64,
        body: AdminRequest,
        backend: &mut impl Backend<S>,
    ) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        if state.requests >= REQUESTS_MAX || state.out.len() >= ANSWERS_SIZE_BYTES_MAX {
            return self.send_error(stream, request, &too_many());
        }
        let error = match &body {
            AdminRequest::CreateTopic(settings) => settings.validate().err(),
            AdminRequest::CreateSubscription(settings) => settings.validate().err(),
            AdminRequest::ShardMap => {
                let map = AdminAnswer::ShardMap(self.config.shard_map.clone());
                return self.send(stream, &Frame::AdminReply { request, body: map });
            }
            AdminRequest::Snapshot { .. } | AdminRequest::EndSnapshot { .. } => None,
            _ => {
                match backend.read(&body) {
                    Ok(body) => self.send(stream, &Frame::AdminReply { request, body }),
                    Err(refusal) => self.send_error(stream, request, &refusal),
                }
                return;
            }
        };
        if let Some(error) = error {
            return self.send_error(stream, request, &refusal(error.code(), error.to_string()));
        }
        if self.draining {
            return self.send_error(stream, request, &unavailable());
        }
        state.requests += 1;
        let ticket = self.waiting.insert(Waiting::Admin { stream, request }) as u64;
        match body {
            AdminRequest::Snapshot { hold_ms } => backend.snapshot(ticket, stream, hold_ms),
            AdminRequest::EndSnapshot { snapshot } => backend.end_snapshot(ticket, stream, snapshot),
            body => backend.create(ticket, body),
        }
    }

    /// The answer to a creation, or to what was asked of a snapshot.
    pub fn administered(&mut self, ticket: u64, body: AdminAnswer) {
        let Some(&Waiting::Admin { stream, request }) = self.waiting.get(ticket as usize) else { return };
        self.waiting.remove(ticket as usize);
        if let Some(state) = self.streams.get_mut(&stream) {
            state.requests -= 1;
        }
        self.send(stream, &Frame::AdminReply { request, body });
    }
}
