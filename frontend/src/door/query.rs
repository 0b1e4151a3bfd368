//! Questions about what is pending, and operations on groups: each to one shard.

use escapement_protocol::event::KEY_SIZE_BYTES_MAX;
use escapement_protocol::frame::{Frame, GroupAct, GroupOperation, Query, QueryAnswer};
use escapement_protocol::{DELAY_MS_MAX, ErrorCode};

use super::{ANSWERS_SIZE_BYTES_MAX, Backend, Door, REQUESTS_MAX, Refusal, Waiting, refusal, too_many};

/// Bytes that the answers come to that one stream may wait for.
const AWAITED_SIZE_BYTES_MAX: usize = 4 * ANSWERS_SIZE_BYTES_MAX;

impl<S: Copy + Eq + std::hash::Hash> Door<S> {
    pub(super) fn query(&mut self, stream: S, request: u64, mut query: Query, backend: &mut impl Backend<S>) {
        let shard_count = self.config.shard_map.shard_count;
        let Some(state) = self.streams.get_mut(&stream) else { return };
        let answer_size_bytes = query.answer_size_bytes_max();
        let awaited = state.answers_size_bytes + answer_size_bytes;
        let is_full = awaited > AWAITED_SIZE_BYTES_MAX || state.out.len() >= ANSWERS_SIZE_BYTES_MAX;
        if state.requests >= REQUESTS_MAX || is_full {
            return self.send_error(stream, request, &too_many());
        }
        if let Query::List(list) = &mut query {
            match list.position(shard_count) {
                Ok(position) => list.shard = position.shard,
                Err(error) => {
                    let refusal = refusal(ErrorCode::InvalidPageToken, error.to_string());
                    return self.send_error(stream, request, &refusal);
                }
            }
        }
        if query.shard().0 >= shard_count {
            return match query {
                // Such an event never was.
                Query::Event { .. } => {
                    let answer = QueryAnswer::Event(None);
                    self.send(stream, &Frame::QueryReply { request, answer });
                }
                _ => {
                    let last = shard_count.saturating_sub(1);
                    let message = format!("the node has no such shard: its shards are 0 to {last}");
                    self.send_error(stream, request, &refusal(ErrorCode::InvalidSettings, message));
                }
            };
        }
        if let Query::Group(operation) = &query
            && let Some(message) = fault_of(operation)
        {
            let refused = refusal(ErrorCode::InvalidSettings, message.to_owned());
            return self.send_error(stream, request, &refused);
        }
        state.requests += 1;
        state.answers_size_bytes = awaited;
        let waiting = Waiting::Query { stream, request, answer_size_bytes };
        let ticket = self.waiting.insert(waiting) as u64;
        backend.query(ticket, query);
    }

    /// The answer to a question.
    pub fn answered(&mut self, ticket: u64, answer: QueryAnswer) {
        self.query_answered(ticket, Ok(answer));
    }

    pub(super) fn query_answered(&mut self, ticket: u64, answer: Result<QueryAnswer, &Refusal>) {
        let Some(&Waiting::Query { stream, request, answer_size_bytes }) = self.waiting.get(ticket as usize)
        else {
            return;
        };
        self.waiting.remove(ticket as usize);
        let Some(state) = self.streams.get_mut(&stream) else { return };
        state.requests -= 1;
        state.answers_size_bytes -= answer_size_bytes;
        match answer {
            Ok(answer) => self.send(stream, &Frame::QueryReply { request, answer }),
            Err(refusal) => self.send_error(stream, request, refusal),
        }
    }
}

/// Why an operation can't be asked of a shard.
fn fault_of(operation: &GroupOperation) -> Option<&'static str> {
    if !(1..=KEY_SIZE_BYTES_MAX).contains(&operation.group.len()) {
        return Some("a group's name has from 1 to 255 bytes");
    }
    if operation.epoch == 0 && operation.act != GroupAct::Read {
        return Some("an operation has an epoch, which is not 0: choose one that this group never had");
    }
    let is_by = (1..=DELAY_MS_MAX).contains(&operation.by_ms);
    if operation.act == GroupAct::Postpone && !is_by {
        return Some("events are postponed by 1 ms to ten years");
    }
    if operation.act != GroupAct::Postpone && operation.by_ms != 0 {
        return Some("only what postpones events says by how much");
    }
    None
}
