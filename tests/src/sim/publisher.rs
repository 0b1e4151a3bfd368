//! A publisher: batches on one stream, answers cumulative, everything unanswered sent again on the next connection.

use std::collections::VecDeque;

use escapement_loadgen::generator::EventTemplate;
use escapement_protocol::event::Due;
use escapement_protocol::frame::{Durability, Items, PublishAck, PublishBatch, encode_publish_batch};
use escapement_protocol::{ErrorCode, EventSpec, EventView, WallMs};

use super::control::{Received, hello};
use super::net::connection_of;
use super::plan::{DAY_MS, GROUP_NAMES};
use super::world::{Who, World};

/// Most events without an answer.
const UNANSWERED_MAX: usize = 40;

/// Stream of a connection that batches go out on.
const STREAM: u64 = 1;

/// An event on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sending {
    pub(super) n: u64,
    /// It was acknowledged before, and is published again all the same.
    pub(super) again: bool,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Publisher {
    connection: Option<u64>,
    /// Events without an answer, oldest first: on this connection's stream, items `first_item` and on.
    unanswered: VecDeque<Sending>,
    first_item: u64,
    /// Of these, how many were sent on this connection.
    sent: usize,
}

impl Publisher {
    pub(super) fn unanswered(&self) -> usize {
        self.unanswered.len()
    }
}

/// The same event with a ttl and a group, where it has them.
fn with_attributes(event: &[u8], ttl_ms: u64, group: Option<usize>, out: &mut Vec<u8>) {
    let (view, _) = EventView::parse(event).expect("the plan's events are events");
    let due = view.stated_time().expect("the plan's events state a due time");
    let id = std::str::from_utf8(view.id()).expect("ids are text");
    let spec = EventSpec {
        ttl_ms,
        group: group.map_or("", |group| GROUP_NAMES[group]),
        ordering_key: view.ordering_key(),
        ..EventSpec::new(Due::At(due), id, view.data())
    };
    spec.encode(out).expect("the plan's events are small");
}

impl World {
    pub(super) fn publisher_wakes(&mut self, index: usize) {
        let after_ms = self.rng.below(12);
        let is_done = self.handed_out == self.plan.events && self.publishers[index].unanswered.is_empty();
        let has_names = self.plan.dedup_windows_ms.iter().any(|window_ms| *window_ms > 0);
        if is_done && (self.is_calm() || !has_names) {
            return;
        }
        // What is left to do then is to publish again what the node should know.
        let after_ms = if is_done { 10 * after_ms } else { after_ms };
        self.wake(Who::Publisher(index), after_ms);
        if !self.admin.is_ready() {
            return;
        }
        if self.publishers[index].connection.is_none() {
            let Some(connection) = self.connect(Who::Publisher(index)) else { return };
            let publisher = &mut self.publishers[index];
            publisher.connection = Some(connection);
            publisher.first_item = 0;
            publisher.sent = 0;
            for sending in &publisher.unanswered {
                self.judge.resent(sending.n);
            }
            self.send(connection, 0, &hello(), Vec::new());
        }
        self.take_events(index);
        self.take_again(index);
        self.send_batches(index);
    }

    /// Events of the plan for this publisher, in the order of their numbers.
    fn take_events(&mut self, index: usize) {
        let count = 1 + self.rng.below(self.plan.batch_max);
        for _ in 0..count {
            let room = self.publishers[index].unanswered.len() < UNANSWERED_MAX;
            if !room || self.handed_out == self.plan.events {
                return;
            }
            let n = self.handed_out;
            self.handed_out += 1;
            let due_ms = self.plan.due_ms(n, self.true_wall_ms());
            self.judge.published(n, due_ms, self.plan.workload.topic(n) as usize);
            self.publishers[index].unanswered.push_back(Sending { n, again: false });
        }
    }

    /// Now and then something that was acknowledged, where its topic knows what it has.
    fn take_again(&mut self, index: usize) {
        let known = self.judge.named_events();
        let room = self.publishers[index].unanswered.len() < UNANSWERED_MAX;
        if !room || known.is_empty() || self.is_calm() || !self.again_rng.one_in(3) {
            return;
        }
        let n = known[self.again_rng.below(known.len() as u64) as usize];
        self.judge.resent(n);
        self.publishers[index].unanswered.push_back(Sending { n, again: true });
    }

    /// Sends what was not sent on this connection, in batches of one topic each.
    fn send_batches(&mut self, index: usize) {
        let mut template = EventTemplate::new(self.plan.workload).expect("the plan's events are small");
        loop {
            let publisher = &self.publishers[index];
            let Some(connection) = publisher.connection else { return };
            let rest: Vec<Sending> = publisher.unanswered.iter().skip(publisher.sent).copied().collect();
            let Some(first) = rest.first() else { return };
            let topic = self.plan.workload.topic(first.n);
            let most = self.plan.batch_max as usize;
            let of_topic =
                rest.into_iter().take_while(|sending| self.plan.workload.topic(sending.n) == topic);
            let batch: Vec<Sending> = of_topic.take(most).collect();
            let mut events = Vec::new();
            for Sending { n, again } in &batch {
                // For another time, where it must not be stored.
                let is_other = *again && self.plan.dedup_windows_ms[topic as usize] == DAY_MS;
                let due_ms = self.judge.due_ms(*n) + if is_other { 777 } else { 0 };
                let event = template.event(*n, WallMs(due_ms));
                match (self.plan.ttl_ms(*n), self.plan.group(*n)) {
                    (0, None) => events.extend_from_slice(event),
                    (ttl_ms, group) => with_attributes(event, ttl_ms, group, &mut events),
                }
            }
            let first_item = publisher.first_item + publisher.sent as u64;
            let topic = self.admin.topic_id(topic as usize);
            let frame =
                PublishBatch::new(topic, first_item, &events, batch.len() as u32).expect("whole events");
            let mut bytes = Vec::new();
            encode_publish_batch(&frame, &mut bytes).expect("the plan's batches are small");
            self.publishers[index].sent += batch.len();
            self.send(connection, STREAM, &bytes, Vec::new());
        }
    }

    pub(super) fn publisher_frame(&mut self, index: usize, stream: u64, incarnation: u32, frame: Received) {
        if self.publishers[index].connection != Some(connection_of(stream)) {
            return;
        }
        let Received::Ack { through_item, runs, exceptions, duplicates } = frame else { return };
        let ack = PublishAck {
            through_item,
            durability: Durability::LOCAL_DISK,
            runs: Items::from(runs.as_slice()),
            exceptions: Items::from(exceptions.as_slice()),
            exhausted: "",
            duplicates: Items::from(duplicates.as_slice()),
        };
        let publisher = &mut self.publishers[index];
        let waiting = publisher.first_item..publisher.first_item + publisher.sent as u64;
        let answers = match ack.items(waiting) {
            Ok(answers) => answers,
            Err(error) => return self.judge.breach(format!("an acknowledgement is wrong: {error}")),
        };
        let wall_ms = self.node_wall_ms(incarnation);
        for answer in answers {
            let publisher = &mut self.publishers[index];
            let sending = publisher.unanswered.pop_front().expect("the answer is to something sent");
            let Sending { n, again } = sending;
            publisher.first_item += 1;
            publisher.sent -= 1;
            match answer.answer {
                Ok(accepted) => {
                    self.trace.line(self.now_ns, format_args!("event {n} is acknowledged: {accepted:?}"));
                    self.judge.acknowledged(sending, accepted, incarnation, wall_ms);
                }
                Err(exception) => {
                    let expected = [ErrorCode::ResourceExhausted as u16, ErrorCode::Unavailable as u16];
                    let has_expired =
                        exception.code == ErrorCode::AlreadyExpired as u16 && self.judge.may_have_expired(n);
                    if !expected.contains(&exception.code) && !has_expired {
                        let code = ErrorCode::from_number(exception.code);
                        self.judge.breach(format!("event {n} was refused with {code:?}"));
                    }
                    if !again {
                        if exception.code == ErrorCode::Unavailable as u16 {
                            // It may have been on its way to a log that failed, and be stored all the same.
                            self.judge.resent(n);
                        }
                        self.judge.refused(n);
                    }
                }
            }
        }
    }

    pub(super) fn publisher_cut(&mut self, index: usize, connection: u64) {
        let publisher = &mut self.publishers[index];
        if publisher.connection == Some(connection) {
            publisher.connection = None;
        }
    }
}
