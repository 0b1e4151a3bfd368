//! Cancels groups of events, and takes that back, at one shard or another.

use std::collections::BTreeMap;

use escapement_protocol::ShardId;
use escapement_protocol::frame::{Frame, GroupAct, GroupOperation, Query, QueryAnswer};
use escapement_wal::memory::Rng;

use super::bug::Bug;
use super::control::{Received, hello, written};
use super::judge::Operated;
use super::net::connection_of;
use super::plan::GROUP_NAMES;
use super::world::{Who, World};

/// One client; its choices come from numbers of its own.
#[derive(Debug)]
pub(super) struct Grouper {
    rng: Rng,
    connection: Option<u64>,
    requests: u64,
    asked: BTreeMap<u64, Operated>,
    /// Cancellations that were sent, and not taken back so far.
    sent: Vec<Operated>,
}

impl Grouper {
    pub(super) fn new(seed: u64) -> Grouper {
        let rng = Rng::new(seed ^ 0x6772_6f75_7065_7273);
        Grouper { rng, connection: None, requests: 0, asked: BTreeMap::new(), sent: Vec::new() }
    }

    pub(super) fn cut(&mut self, connection: u64) {
        if self.connection == Some(connection) {
            self.connection = None;
            self.asked.clear();
        }
    }
}

impl World {
    pub(super) fn grouper_wakes(&mut self) {
        if self.is_calm() {
            return;
        }
        let after_ms = 1 + self.grouper.rng.below(25);
        self.wake(Who::Grouper, after_ms);
        if !self.admin.is_ready() {
            return;
        }
        let connection = match self.grouper.connection {
            Some(connection) => connection,
            None => {
                let Some(connection) = self.connect(Who::Grouper) else { return };
                self.grouper.connection = Some(connection);
                self.send(connection, 0, &hello(), Vec::new());
                connection
            }
        };
        for _ in 0..1 + self.grouper.rng.below(3) {
            self.operate(connection);
        }
    }

    fn operate(&mut self, connection: u64) {
        let Grouper { rng, sent, .. } = &mut self.grouper;
        let (act, shard, of, epoch) = match rng.below(9) {
            0..4 => {
                let shard = ShardId(rng.below(u64::from(self.plan.shards)) as u16);
                let topic = rng.below(self.plan.topics as u64) as usize;
                let group = rng.below(GROUP_NAMES.len() as u64) as usize;
                // Never the same again.
                (GroupAct::Cancel, shard, (topic, group), self.grouper.requests + 1)
            }
            // Mostly soon after it was sent, and perhaps answered: later nothing is left to be given back.
            4..7 if !sent.is_empty() => {
                let at = sent.len() - 1 - rng.below(sent.len().min(3) as u64) as usize;
                let Operated { shard, topic, group, epoch, .. } = sent.swap_remove(at);
                (GroupAct::Undo, shard, (topic, group), epoch)
            }
            _ => (GroupAct::Read, ShardId(0), (0, 0), 0),
        };
        self.grouper.requests += 1;
        let request = self.grouper.requests;
        let operated = self.judge.operates(act, shard, of, epoch);
        self.note(format_args!("{operated:?} is asked for"));
        if act == GroupAct::Cancel {
            self.grouper.sent.push(operated.clone());
        }
        self.grouper.asked.insert(request, operated);
        let mut asked_of = shard;
        if self.options.bug == Some(Bug::OperationsAstray) {
            asked_of.0 = (asked_of.0 + 1) % self.plan.shards;
        }
        let (topic, group) = (self.admin.topic_id(of.0), GROUP_NAMES[of.1].to_owned());
        let operation = GroupOperation { shard: asked_of, topic, group, act, epoch };
        let bytes = written(&Frame::Query { request, query: Query::Group(operation) });
        self.send(connection, 0, &bytes, Vec::new());
    }

    pub(super) fn grouper_frame(&mut self, stream: u64, frame: Received) {
        if self.grouper.connection != Some(connection_of(stream)) {
            return;
        }
        match frame {
            Received::QueryReply { request, answer: QueryAnswer::Group(answer) } => {
                let Some(operated) = self.grouper.asked.remove(&request) else { return };
                self.note(format_args!("{operated:?} is answered: {answer:?}"));
                self.judge.operated(&operated, &answer);
            }
            // What was refused may have been carried out, as far as is known here.
            Received::Error { request, .. } => drop(self.grouper.asked.remove(&request)),
            _ => {}
        }
    }
}
