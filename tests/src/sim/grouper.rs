//! Cancels, pauses and postpones groups of events, and takes that back, at one shard or another.

use std::collections::BTreeMap;

use escapement_protocol::ShardId;
use escapement_protocol::frame::{Frame, GroupAct, GroupAnswer, GroupOperation, Query, QueryAnswer};
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
    /// Operations that were sent, and not taken back so far.
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
        let is_calm = self.is_calm();
        let after_ms = if is_calm { 100 } else { 1 + self.grouper.rng.below(25) };
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
        if is_calm {
            self.look_for_pauses(connection);
            return;
        }
        for _ in 0..1 + self.grouper.rng.below(3) {
            self.operate(connection);
        }
    }

    /// Asks each shard for each group, so that no pause is left in the end, whatever became of the answers.
    fn look_for_pauses(&mut self, connection: u64) {
        for shard in (0..self.plan.shards).map(ShardId) {
            for topic in 0..self.plan.topics {
                for group in 0..GROUP_NAMES.len() {
                    self.ask_group(connection, (GroupAct::Read, 0), shard, (topic, group), 0);
                }
            }
        }
    }

    fn operate(&mut self, connection: u64) {
        let only_cancels = self.plan.only_cancels_groups;
        let Grouper { rng, sent, .. } = &mut self.grouper;
        match rng.below(9) {
            0..4 => {
                let shard = ShardId(rng.below(u64::from(self.plan.shards)) as u16);
                let topic = rng.below(self.plan.topics as u64) as usize;
                let group = rng.below(GROUP_NAMES.len() as u64) as usize;
                let act = match if only_cancels { 0 } else { rng.below(9) } {
                    0 => (GroupAct::Cancel, 0),
                    1..5 => (GroupAct::Pause, 0),
                    _ => {
                        let most_ms = [400, 3_000][rng.below(2) as usize];
                        (GroupAct::Postpone, 1 + rng.below(most_ms))
                    }
                };
                // Never the same again.
                let epoch = self.grouper.requests + 1;
                self.ask_group(connection, act, shard, (topic, group), epoch);
            }
            // Mostly soon after it was sent, and perhaps answered: later nothing is left to be given back.
            4..7 if !sent.is_empty() && (only_cancels || rng.one_in(3)) => {
                let at = sent.len() - 1 - rng.below(sent.len().min(3) as u64) as usize;
                let Operated { shard, topic, group, epoch, .. } = sent.swap_remove(at);
                self.ask_group(connection, (GroupAct::Undo, 0), shard, (topic, group), epoch);
            }
            _ => self.ask_group(connection, (GroupAct::Read, 0), ShardId(0), (0, 0), 0),
        }
    }

    fn ask_group(
        &mut self,
        connection: u64,
        (act, by_ms): (GroupAct, u64),
        shard: ShardId,
        of: (usize, usize),
        epoch: u64,
    ) {
        self.grouper.requests += 1;
        let request = self.grouper.requests;
        let operated = self.judge.operates((act, by_ms), shard, of, epoch);
        self.note(format_args!("{operated:?} is asked for"));
        if !matches!(act, GroupAct::Undo | GroupAct::Read) {
            self.grouper.sent.push(operated.clone());
        }
        self.grouper.asked.insert(request, operated);
        let mut asked_of = shard;
        if self.options.bug == Some(Bug::OperationsAstray) {
            asked_of.0 = (asked_of.0 + 1) % self.plan.shards;
        }
        let (topic, group) = (self.admin.topic_id(of.0), GROUP_NAMES[of.1].to_owned());
        let operation = GroupOperation { shard: asked_of, topic, group, act, epoch, by_ms };
        let bytes = written(&Frame::Query { request, query: Query::Group(operation) });
        self.send(connection, 0, &bytes, Vec::new());
    }

    /// A group was read once all is calm: what is paused is resumed.
    fn resume(&mut self, connection: u64, operated: &Operated, answer: &GroupAnswer) {
        let pauses = answer.operations.iter().filter(|held| held.act == GroupAct::Pause && !held.is_undone);
        for epoch in pauses.map(|held| held.epoch) {
            let Operated { shard, topic, group, .. } = *operated;
            self.ask_group(connection, (GroupAct::Undo, 0), shard, (topic, group), epoch);
        }
    }

    pub(super) fn grouper_frame(&mut self, stream: u64, frame: Received) {
        let connection = connection_of(stream);
        if self.grouper.connection != Some(connection) {
            return;
        }
        match frame {
            Received::QueryReply { request, answer: QueryAnswer::Group(answer) } => {
                let Some(operated) = self.grouper.asked.remove(&request) else { return };
                self.note(format_args!("{operated:?} is answered: {answer:?}"));
                self.judge.operated(&operated, &answer);
                if self.is_calm() && operated.act == GroupAct::Read {
                    self.resume(connection, &operated, &answer);
                }
            }
            // What was refused may have been carried out, as far as is known here.
            Received::Error { request, .. } => drop(self.grouper.asked.remove(&request)),
            _ => {}
        }
    }
}
