//! Shards out of service: refused at the start, or stopped since. The others go on.
//!
//! | what a shard that is out would have done | what becomes of it |
//! |---|---|
//! | give a page of a listing over all shards | the page says that the shard is missing, and the next shard goes on |
//! | answer what else it was asked | refused with `UNAVAILABLE`, at once and from then on; whether what was on its way to its log is stored, nobody knows |
//! | take events without an ordering key, of a topic that keeps no names | other shards take them (`frontend::door`) |
//! | take other events | refused: their order, or what is known of them, is there |
//! | decide for subscriptions | from the start on another shard does; for those of one that stopped later, their tasks wait in the other shards until the next start |
//! | have its own events delivered | not before it serves again; where it stopped, the other shards forget its tasks |
//!
//! A shard that stopped stays out until the next start: only recovery says what is on its disk.

use escapement_engine::{Input, Message, Refusal, Reply, ReplyBody};
use escapement_protocol::frame::{EventPage, Query, QueryAnswer};
use escapement_protocol::{ErrorCode, ShardId};

use super::{Inside, Parcel};

/// How long somebody should wait who was refused for a shard that is out.
const RETRY_AFTER_MS: u32 = 1_000;

/// The answer to whoever asks for a shard that is out of service.
pub(super) fn refusal(shard: ShardId) -> Refusal {
    Refusal {
        code: ErrorCode::Unavailable,
        message: format!(
            "shard {} is out of service, and the others go on: the node's standard error says why. With the node stopped, \
             `escapement verify DIR` says what is damaged, and `escapement repair DIR` by which token it can be given up",
            shard.0
        ),
        retry_after_ms: RETRY_AFTER_MS,
    }
}

impl<S: Copy + Eq + std::hash::Hash> Inside<S> {
    /// Looks for shards of this core that have just stopped, refuses who waits for them, and tells all others. Answers
    /// whether there were any.
    pub(super) fn notice_stopped(&mut self) -> bool {
        let mut any = false;
        for index in 0..self.shards.len() {
            let Some(logged) = &mut self.shards[index] else { continue };
            let shard = logged.id();
            let Some(waiting) = logged.take_stopped() else { continue };
            any = true;
            for ticket in waiting {
                self.replies.push_back(Reply { ticket, body: ReplyBody::Refused(refusal(shard)) });
            }
            for core in (0..self.config.core_count).filter(|core| *core != self.config.core) {
                // Behind all that the shard has sent there.
                self.mail[usize::from(core)].push(Parcel::Out(shard));
            }
            self.shard_out(shard);
        }
        any
    }

    /// A shard, here or elsewhere, has stopped.
    pub(super) fn shard_out(&mut self, shard: ShardId) {
        if let Some(epoch) = self.config.epochs.get_mut(usize::from(shard.0)) {
            *epoch = None;
        }
        self.gone.push(shard);
        for logged in self.shards.iter().flatten().filter(|logged| logged.failure().is_none()) {
            // Behind all that the shard has sent here.
            self.local.push_back((logged.id(), Message::Out { shard }));
        }
        let owned = self.session_owner.iter().filter(|(_, owner)| **owner == shard);
        let mut sessions: Vec<u64> = owned.map(|(session, _)| *session).collect();
        sessions.sort_unstable();
        for session in sessions {
            self.session_owner.remove(&session);
            let stream = self.sessions.close(session).map(|session| session.stream);
            self.lost.extend(stream.map(|stream| (stream, shard)));
        }
        self.look_for_bare_cores();
    }

    /// Steps a shard of this core; one that is out refuses whoever waits.
    pub(super) fn step(
        &mut self,
        shard: ShardId,
        input: Input<'_>,
        ticket: Option<escapement_engine::Ticket>,
    ) {
        let now = self.now;
        match self.logged_mut(shard).filter(|logged| logged.failure().is_none()) {
            Some(logged) => {
                logged.step(now, input);
                self.drain_shard(shard);
            }
            None => {
                let body = self.answer_for(shard, input);
                self.replies.extend(ticket.map(|ticket| Reply { ticket, body }));
            }
        }
    }

    /// What is answered for a shard that is out.
    fn answer_for(&self, shard: ShardId, input: Input<'_>) -> ReplyBody {
        match input {
            // A listing goes on with the next shard, and says so.
            Input::Query { query: Query::List(list), .. } if list.is_of_every_shard() => {
                let token = list.token_past(shard, self.config.shard_count);
                let page = EventPage { token, missing: vec![shard], ..EventPage::default() };
                ReplyBody::Answered(QueryAnswer::List(page))
            }
            _ => ReplyBody::Refused(refusal(shard)),
        }
    }
}
